"""Settings of a process on which the speed of PyTorch on a CPU depends (docs/performance.md)."""

from __future__ import annotations

import contextlib
import ctypes
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_TRIM_THRESHOLD, _MMAP_MAX = -1, -4  # glibc's malloc.h


def settle() -> None:
    """Called by the command line and its workers before PyTorch is loaded. Whoever has set any of it otherwise is respected.

    - Idle OpenMP workers sleep: spinning ones make an epoch many times slower as soon as another process runs.
    - Freed memory is kept for the next tensor: glibc hands every large block back to the system, which clears it anew, page by page, for
      the next one. (It is handed back at the end of the process, or by `release`.)
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    if not any(name.startswith("MALLOC_") or name == "GLIBC_TUNABLES" for name in os.environ):
        mallopt = _libc("mallopt")
        if mallopt is not None:
            mallopt(_TRIM_THRESHOLD, 2**31 - 1)
            mallopt(_MMAP_MAX, 0)


@dataclass(frozen=True)
class Place:
    """This process among those that torchrun has started together: its number, its number on this machine, and how many there are."""

    rank: int = 0
    local: int = 0
    size: int = 1


def place() -> Place:
    """From the environment that torchrun makes; of a process that was started by itself, `Place()`."""
    env = os.environ
    if not all(env.get(name) for name in ("MASTER_ADDR", "MASTER_PORT")):
        return Place()
    numbers = [env.get(name, "") for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE")]
    return Place(*map(int, numbers)) if all(n.isdigit() for n in numbers) else Place()


def several() -> bool:
    """Whether this process is one of several that are to train one model."""
    return place().size > 1


@contextlib.contextmanager
def as_found() -> Iterator[None]:
    """What a training sets for the whole process is put back at its end: random number generators, PyTorch's threads, cuDNN's choices.
    Also a decorator (`@as_found()`)."""
    import random

    import numpy as np
    import torch

    threads, cudnn = torch.get_num_threads(), torch.backends.cudnn
    flags = cudnn.benchmark, cudnn.deterministic
    generators = random.getstate(), np.random.get_state(), torch.get_rng_state()  # noqa: NPY002
    on_gpu = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else None
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        cudnn.benchmark, cudnn.deterministic = flags
        random.setstate(generators[0])
        np.random.set_state(generators[1])  # noqa: NPY002
        torch.set_rng_state(generators[2])
        if on_gpu is not None:
            torch.cuda.set_rng_state_all(on_gpu)


def out_of_gpu_memory(error: BaseException) -> bool:
    """Whether a GPU's memory was not enough, whoever says so: PyTorch's allocator, CUDA, cuBLAS."""
    told = str(error)
    return isinstance(error, RuntimeError) and "CU" in told and ("out of memory" in told or "ALLOC_FAILED" in told)


def gpu_is_lost(told: str) -> bool:
    """Whether an error, by its text, leaves CUDA unusable to its process: a kernel has failed, or the card. All that follows fails alike."""
    return any(library in told for library in ("CUDA error", "cuDNN error", "NCCL error"))


def release() -> None:
    """Hand freed memory back to the system, and the GPU's to other processes."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        torch.cuda.empty_cache()
    trim = _libc("malloc_trim")
    if trim is not None:
        trim(0)


def _libc(name: str) -> Any:
    """A function of glibc; None elsewhere (macOS, musl, Windows)."""
    return getattr(ctypes.CDLL(None), name, None) if sys.platform == "linux" else None


def available_memory() -> int | None:
    """Bytes that a process may still take, where the system tells (Linux)."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration, ValueError):
        return None
