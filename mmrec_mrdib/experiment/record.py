"""What a run leaves behind: one folder, written atomically, read back without unpickling.

runs/<model>-<dataset>-<seed>-<hash>/
    result.json     everything about the run; there only when the run is complete
    per_user.npz    each test user's metrics: `users` (tokens), `metrics` (names), `values` (N, metrics)
    best.pt         weights of the best epoch (tensors and plain values)
    last.pt         state to resume from, and code.txt: the code that trained so far; there only while the run is incomplete
    log.txt curves.png tensorboard/
"""

from __future__ import annotations

import functools
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

from mmrec_mrdib import __version__, paths, process
from mmrec_mrdib.compat import plain
from mmrec_mrdib.errors import CheckpointError, DataError
from mmrec_mrdib.paths import write_atomically

RESULT_VERSION = 1
COMPLETE = "complete"
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
    """Write a checkpoint of tensors and plain values, atomically; tensors as those of the host, whatever device they are on."""
    buffer = io.BytesIO()
    torch.save(_on_host(dict(state)), buffer)
    write_atomically(path, buffer.getbuffer())


def _on_host(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return value.cpu()
    if isinstance(value, Mapping):
        return {k: _on_host(v) for k, v in value.items()}
    return type(value)(map(_on_host, value)) if type(value) in (list, tuple) else value


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


def state(diverged: Exception | None, epoch: int) -> dict[str, str]:
    """'state' of a result and, where training broke down in an epoch, 'error', by what."""
    return {"state": COMPLETE} if diverged is None else {"state": f"diverged at epoch {epoch}", "error": str(diverged)}


def diverged(result: Mapping[str, Any]) -> str | None:
    """'diverged at epoch 7 (<why>)' of a run that broke down after its best epoch; None of one that ended by itself."""
    state = result.get("state", COMPLETE)
    return None if state == COMPLETE else f"{state} ({result.get('error', '')})"


def config_values(config: Any) -> dict[str, Any]:
    """All parameters of a run as plain values, sorted by name."""
    return {k: plain(v) for k, v in sorted(config.final_config_dict.items())}


def run_hash(config: Any, data_fingerprint: str) -> str:
    """8 hex digits that change with any parameter or datum that changes the outcome, the seed aside."""
    values = {k: v for k, v in config_values(config).items() if k not in (*_VOLATILE, "seed")}
    text = json.dumps([values, data_fingerprint], sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=4).hexdigest()


def run_folder(root: Path, model: str, dataset: str, seed: int, digest: str) -> Path:
    return root / f"{model.replace(' (', '-').rstrip(')')}-{dataset}-{seed}-{digest}"


def versions() -> dict[str, str]:
    """Versions of everything that can change a number, and the `commit` under 'git' where there is one."""
    out = {"python": platform.python_version(), "mmrec-mrdib": __version__}
    for package in (
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
    return out | ({"git": git} if (git := commit()) else {})


@functools.cache  # of the code that was loaded, whatever becomes of the files later
def commit() -> str:
    """Hash of the commit that runs; with changed files '-dirty-' and 8 digits that change with the changes; '' outside a checkout."""
    root = paths.PACKAGE.parent
    if not (root / ".git").exists():
        return ""

    def git(*words: str) -> str:
        command = ["git", "-C", str(root), "--no-optional-locks", *words]
        return subprocess.run(command, capture_output=True, check=True).stdout.decode(errors="replace").strip()

    code = ("mmrec_mrdib", "properties")  # nothing else changes a number
    try:
        head = git("rev-parse", "HEAD")
        if not (changed := git("status", "--porcelain", "--", *code)):
            return head
        changes = f"{changed}\n{git('diff', 'HEAD', '--', *code)}"
    except (OSError, subprocess.CalledProcessError):
        return ""
    return f"{head}-dirty-{hashlib.blake2b(changes.encode(), digest_size=4).hexdigest()}"


def code(versions: Mapping[str, str] | None = None) -> str:
    """'0.1.0 2a0cd02': package and commit that run, or those in a result's `versions`. Another text: another code."""
    if versions is None:
        versions = {"mmrec-mrdib": __version__, "git": commit()}
    head, dash, dirty = versions.get("git", "").partition("-")
    return f"{versions.get('mmrec-mrdib', 'unknown')} {head[:7]}{dash}{dirty}".strip()


def codes(result: Mapping[str, Any]) -> list[str]:
    """Of all code that a result comes from: several where a run was resumed by another code than began it."""
    return list(result.get("code") or [code(result.get("versions", {}))])


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
    if torch.cuda.is_initialized():
        torch.cuda.reset_peak_memory_stats()
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return


def hardware(device: torch.device) -> dict[str, Any]:
    """'device' of a result, 'cpu' or a GPU by its name, and of a GPU the peak of the memory of its tensors, in MB."""
    if device.type != "cuda":
        return {"device": device.type}
    return {
        "device": torch.cuda.get_device_name(device),
        "peak_gpu_memory_mb": torch.cuda.max_memory_allocated(device) / 1024**2,
    }


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
