"""MRdIB: a representation-disentangling information bottleneck for multimodal recommenders, on RecBole.

The public API. Names are imported on first use, so that `import mmrec_mrdib` costs nothing.
"""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

_API = {
    "Config": "mmrec_mrdib.config",  # parameters of a run
    "MultimodalDataset": "mmrec_mrdib.data.dataset",  # interactions and named modalities
    "MultimodalRecommender": "mmrec_mrdib.models.base",  # what a backbone inherits
    "VBPR": "mmrec_mrdib.models.vbpr",  # the backbones
    "MMGCN": "mmrec_mrdib.models.mmgcn",
    "DualGNN": "mmrec_mrdib.models.dualgnn",
    "FREEDOM": "mmrec_mrdib.models.freedom",
    "MGCN": "mmrec_mrdib.models.mgcn",
    "SOIL": "mmrec_mrdib.models.soil",
    "LATTICE": "mmrec_mrdib.models.lattice",
    "SMORE": "mmrec_mrdib.models.smore",
    "PGL": "mmrec_mrdib.models.pgl",
    "GUME": "mmrec_mrdib.models.gume",
    "MENTOR": "mmrec_mrdib.models.mentor",
    "MRdIB": "mmrec_mrdib.mrdib.plugin",  # wraps any backbone
    "attach": "mmrec_mrdib.hosts.attach",  # MRdIB on any nn.Module, without RecBole
    "suggest": "mmrec_mrdib.hosts.suggest",  # where it could be attached
    "MRdIBTrainer": "mmrec_mrdib.trainer",
    "train": "mmrec_mrdib.experiment.run",  # one run: data, model, training, test, run folder
    "load": "mmrec_mrdib.experiment.export",  # a trained run: .recommend(users, k), .embeddings()
    "load_result": "mmrec_mrdib.experiment.record",  # a run folder's result.json, checked
    "load_checkpoint": "mmrec_mrdib.experiment.record",  # tensors and plain values, never unpickled
}
__all__ = ["__version__", *_API]


def __getattr__(name: str) -> Any:
    if name not in _API:
        raise AttributeError(f"module 'mmrec_mrdib' has no attribute {name!r}")
    return getattr(importlib.import_module(_API[name]), name)
