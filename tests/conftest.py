"""Toy data sets in both layouts, and the places of optional reference data."""

from __future__ import annotations

from mmrec_mrdib import process

process.settle()  # as the command line does: spinning workers make these tests a hundred times slower beside other work

import logging
import signal
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from mmrec_mrdib.testing.toy import write_mmrec

ROOT = Path(__file__).resolve().parent.parent
SHARED = ROOT.parent / "shared"
torch.set_num_threads(1)
if (
    signal.getsignal(signal.SIGINT) is signal.SIG_IGN
):  # as a shell starts what is in the background; tests are about Ctrl-C
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Neither read nor fill the user's cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MMREC_MRDIB_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(autouse=True)
def own_log_levels() -> Iterator[None]:
    """Commands set the level of what they tell, in this process, too."""
    loggers = logging.getLogger(), logging.getLogger("mmrec_mrdib")
    levels = [logger.level for logger in loggers]
    yield
    for logger, level in zip(loggers, levels, strict=True):
        logger.setLevel(level)


@pytest.fixture(scope="session")
def golden() -> Path:
    folder = SHARED / "reference" / "golden"
    if not folder.is_dir():
        pytest.skip("no ../shared/reference/golden beside the checkout")
    return folder


@pytest.fixture(scope="session")
def lfm2k() -> Path:
    folder = SHARED / "data"
    if not (folder / "lfm2k").is_dir():
        pytest.skip("no ../shared/data/lfm2k beside the checkout")
    return folder


@pytest.fixture
def toy(tmp_path: Path) -> Path:
    """A data_path with the data set 'toy' in the MMRec layout: 40 users, 30 items, modalities a, b, c."""
    write_mmrec(tmp_path / "toy", users=40, items=30, dims={"a": 12, "b": 8, "c": 5}, seed=0)
    return tmp_path


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[str]:
    """Address of a local Ray cluster with two workers."""
    pytest.importorskip("ray", reason="ray is not installed")
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "include_dashboard": False})
    yield cluster.address
    cluster.shutdown()
