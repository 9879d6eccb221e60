"""What a run leaves behind: one folder, written atomically, read back without unpickling.

runs/<model>-<dataset>-<seed>-<hash>/
    result.json     everything about the run; there only when the run is complete
    per_user.npz    each test user's metrics: `users` (tokens), `metrics` (names), `values` (N, metrics)
    best.pt         weights of the best epoch (tensors and plain values)
    last.pt         state to resume from; there only while the run is incomplete
    log.txt curves.png tensorboard/
"""

from __future__ import annotations

import hashlib
import io
import json
import pickle
import platform
import resource
import subprocess
import sys
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mmrec_mrdib import paths, process
from mmrec_mrdib.compat import plain
from mmrec_mrdib.errors import CheckpointError, DataError
from mmrec_mrdib.paths import write_atomically

RESULT_VERSION = 1
_REQUIRED = ("version", "model", "dataset", "seed", "config", "best_epoch", "valid", "test", "epochs")
# Parameters that do not change what is computed: left out of the hash that names a run folder.
_VOLATILE = (
    "data_path",
    "checkpoint_dir",
    "show_progress",
    "state",
    "checkpoint_interval",
    "threads",
    "features_on_disk",
    "gpu_id",
    "device",
    "log_wandb",
)


def write_json(path: Path, value: Any) -> None:
    """Write JSON; NaN is refused, as no other language reads it."""
    write_atomically(path, (json.dumps(plain(value), indent=1, allow_nan=False) + "\n").encode())


def save_checkpoint(path: Path, state: Mapping[str, Any]) -> None:
    """Write a checkpoint of tensors and plain values, atomically."""
    buffer = io.BytesIO()
    torch.save(dict(state), buffer)
    write_atomically(path, buffer.getbuffer())


def load_checkpoint(path: str | Path) -> dict[str, Any]:
    """Read a checkpoint that holds tensors and plain values only.

    Raises:
        CheckpointError: missing, damaged, or it would have to be unpickled (which can run any code).
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise CheckpointError(f"{path}: no such checkpoint") from error
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{path}: holds pickled objects, which are never loaded because they can run code; only checkpoints of "
            "tensors and plain values are (those this program writes)"
        ) from error
    except (OSError, RuntimeError, EOFError, ValueError, KeyError) as error:
        raise CheckpointError(f"{path}: not a readable checkpoint ({str(error).splitlines()[0]})") from error
    if not isinstance(state, dict):
        raise CheckpointError(f"{path}: expected a dictionary of tensors, found a {type(state).__name__}")
    return state


def load_result(path: str | Path) -> dict[str, Any]:
    """The result of a run, from its folder or its result.json.

    Raises:
        DataError: missing, not JSON, or not a result.
    """
    path = Path(path)
    path = path / "result.json" if path.is_dir() else path
    try:
        result = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such result; the run is not complete") from error
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise DataError(f"{path}: not a result file ({error})") from error
    missing = [k for k in _REQUIRED if not isinstance(result, dict) or k not in result]
    if missing or result["version"] != RESULT_VERSION:
        raise DataError(f"{path}: not a result of this program's version (missing: {', '.join(missing) or 'none'})")
    return result


def config_values(config: Any) -> dict[str, Any]:
    """All parameters of a run as plain values, sorted by name."""
    return {k: plain(v) for k, v in sorted(config.final_config_dict.items())}


def run_hash(config: Any, data_fingerprint: str) -> str:
    """8 hex digits that change with any parameter or datum that changes the outcome, the seed aside."""
    values = {k: v for k, v in config_values(config).items() if k not in (*_VOLATILE, "seed")}
    text = json.dumps([values, data_fingerprint], sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=4).hexdigest()


def run_folder(root: Path, model: str, dataset: str, seed: int, digest: str) -> Path:
    return root / f"{model}-{dataset}-{seed}-{digest}"


def versions() -> dict[str, str]:
    """Versions of everything that can change a number."""
    out = {"python": platform.python_version()}
    for package in (
        "mmrec-mrdib",
        "torch",
        "recbole",
        "numpy",
        "scipy",
        "pandas",
        "scikit-learn",
        "torch-scatter",
    ):
        try:
            out[package] = version(package)
        except PackageNotFoundError:
            continue
    root = paths.PACKAGE.parent
    if (root / ".git").exists():
        git = subprocess.run(["git", "-C", str(root), "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
        if git.returncode == 0:
            out["git"] = git.stdout.strip()
    return out


def write_per_user(path: Path, tokens: np.ndarray, per_user: Mapping[str, np.ndarray]) -> None:
    """per_user.npz: plain arrays, so that paired tests need nothing of this program."""
    buffer = io.BytesIO()
    np.savez_compressed(
        buffer,
        users=np.asarray(tokens, dtype=np.str_),
        metrics=np.asarray(list(per_user), dtype=np.str_),
        values=np.stack(list(per_user.values()), axis=1),
    )
    write_atomically(path, buffer.getvalue())


def reset_peak_memory() -> None:
    """Start a new measurement of the peak, where the system allows it (Linux)."""
    process.release()  # what an earlier run of this process has freed
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return


def peak_memory_mb() -> float:
    """Peak resident memory of this process in MB, since `reset_peak_memory` where the system allows it."""
    try:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM"):
                return int(line.split()[1]) / 1024
    except OSError:
        pass
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1024 if sys.platform != "darwin" else 1024**2)
