"""Graphs on disk, under a hash of what they were made from."""

from __future__ import annotations

import hashlib
import io
import logging
import time
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mmrec_mrdib import paths
from mmrec_mrdib.graphs.edges import Edges

logger = logging.getLogger(__name__)
CACHE_VERSION = 1  # raise it when a builder computes something else


def cached(build: Callable[..., Edges], *args: Any) -> Edges:
    """build(*args), kept in the cache folder under a hash of the builder's name and of its arguments.

    A plain npz file, never unpickled. A damaged file is told and made anew; a folder that cannot be written only costs time.
    """
    digest = hashlib.blake2b(f"{CACHE_VERSION} {build.__name__}".encode(), digest_size=12)
    _feed(digest, args)
    path = paths.cache_dir() / "graphs" / f"{build.__name__}-{digest.hexdigest()}.npz"
    try:
        return _read(path)
    except FileNotFoundError:
        pass
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        logger.warning("%s: damaged (%s); the graph is built anew", path, str(error).splitlines()[0])
    started = time.perf_counter()
    edges = build(*args)
    logger.info("graph %s: %d entries, %.1f s", build.__name__, len(edges), time.perf_counter() - started)
    buffer = io.BytesIO()
    rows, cols, values = (x.cpu().numpy() for x in edges.tensors())
    np.savez(buffer, rows=rows, cols=cols, values=values, shape=np.asarray(edges.shape))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        paths.write_atomically(path, buffer.getbuffer())
    except OSError as error:
        logger.info("%s: cannot be written (%s); the graph will be built again next time", path, error)
    return edges


def _feed(digest: Any, value: Any) -> None:
    if isinstance(value, Tensor):
        array = value.detach().cpu().contiguous().numpy()
        digest.update(f"{array.dtype}{array.shape}".encode())
        digest.update(array.data)
    elif isinstance(value, Edges):
        _feed(digest, (*value.tensors(), *value.shape))
    elif isinstance(value, list | tuple):
        digest.update(f"[{len(value)}".encode())
        for part in value:
            _feed(digest, part)
    else:
        digest.update(repr(value).encode())


def _read(path: Path) -> Edges:
    with np.load(path, allow_pickle=False) as file:
        rows, cols, values, shape = (file[name] for name in ("rows", "cols", "values", "shape"))
    n_rows, n_cols = (int(n) for n in shape)
    sound = rows.dtype == cols.dtype == np.int64 and values.dtype == np.float32 and rows.ndim == 1
    sound = sound and rows.shape == cols.shape == values.shape
    if not sound or (
        len(rows) and not (0 <= rows.min() <= rows.max() < n_rows and 0 <= cols.min() <= cols.max() < n_cols)
    ):
        raise ValueError("not the entries of a sparse matrix")
    return Edges(torch.from_numpy(rows), torch.from_numpy(cols), torch.from_numpy(values), (n_rows, n_cols))
