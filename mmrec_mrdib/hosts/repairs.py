"""What stops checkouts of suites on today's Python, NumPy, SciPy and PyTorch, repaired in this process only, each repair told when it is used.

Unlike `compat.py`, which changes RecBole's modules alone, these change NumPy, SciPy and PyTorch: they are for the process of a host
(`child.py`), never for the caller's. Nothing is written into the checkout.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import importlib.util
import logging
import os
import pickle
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse as sp
import torch
from torch import Tensor, nn

from mmrec_mrdib.errors import ConfigError

logger = logging.getLogger(__name__)
USED: list[str] = []
"""The repairs that were needed, in the order of their first use."""

# Names that left NumPy with 1.24 or 2.0, and what they were.
_ALIASES: dict[str, Any] = {
    "float": float, "int": int, "bool": bool, "object": object, "str": str, "complex": complex, "unicode": str,
    "float_": np.float64, "complex_": np.complex128, "string_": np.bytes_, "unicode_": np.str_,
    "Inf": np.inf, "infty": np.inf, "Infinity": np.inf, "PINF": np.inf, "NINF": -np.inf, "NaN": np.nan, "NAN": np.nan,
    "product": np.prod, "cumproduct": np.cumprod, "alltrue": np.all, "sometrue": np.any, "round_": np.round,
    "in1d": np.isin, "row_stack": np.vstack, "trapz": np.trapezoid, "asfarray": lambda a, dtype=np.float64: np.asarray(a, dtype),
    "msort": lambda a: np.sort(a, axis=0),
}  # fmt: skip
# Modules that such code imports and seldom uses.
_OFTEN_UNUSED = ("torchvision", "lmdb", "torch_scatter", "sparsesvd", "cv2", "seaborn", "matplotlib", "sentence_transformers", "ray", "hyperopt")  # fmt: skip


def note(what: str) -> None:
    if what not in USED:
        USED.append(what)
        logger.info("repaired in this process: %s", what)


def apply(checkout: Path, trust: bool) -> None:
    """All of them.

    Args:
        checkout: whose code is stopped from unpickling, unless it is trusted.
    """
    _numpy_aliases()
    _dictionaries_of_keys()
    _dense_attributes()
    if not torch.cuda.is_available():
        _no_gpu()
    _parameters_that_become_tables()
    sys.meta_path.append(_StandIns())
    if trust:
        logger.warning(
            "--trust: pickles in %s are loaded as its code asks; a pickle can run any code with your rights", checkout
        )
    _pickles(checkout, trust)


def _numpy_aliases() -> None:
    stock = np.__dict__.get("__getattr__")

    def look_up(name: str) -> Any:
        if name in _ALIASES:
            note(f"np.{name}, which left NumPy")
            np.__dict__[name] = _ALIASES[name]
            return _ALIASES[name]
        if stock is None:
            raise AttributeError(f"module 'numpy' has no attribute {name!r}")
        return stock(name)

    np.__dict__["__getattr__"] = look_up


def _dictionaries_of_keys() -> None:
    """`dok_matrix._update`, a private method, left SciPy with 1.13; the entries are in a dictionary as before."""
    if hasattr(sp.dok_matrix, "_update"):
        return

    def update(self: Any, entries: Any) -> None:
        note("dok_matrix._update, which left SciPy")
        self._dict.update(entries)

    sp.dok_matrix._update = update


def _dense_attributes() -> None:
    """`.A` and `.H` of sparse matrices left SciPy with 1.14."""
    made: dict[str, Callable[[Any], Any]] = {"A": lambda x: x.toarray(), "H": lambda x: x.conjugate().transpose()}
    for name, make in made.items():

        def get(self: Any, name: str = name, make: Callable[[Any], Any] = make) -> Any:
            note(f"the attribute .{name} of sparse matrices, which left SciPy")
            return make(self)

        for kind in (sp.spmatrix, sp.sparray):
            if not hasattr(kind, name):
                setattr(kind, name, property(get))


def _no_gpu() -> None:
    """Code that takes a GPU for granted computes on the CPU."""

    def stay(self: Any, *args: Any, **kwargs: Any) -> Any:
        note("calls of .cuda() on a machine without a GPU")
        return self

    Tensor.cuda = stay  # type: ignore[method-assign,assignment]
    nn.Module.cuda = stay  # type: ignore[method-assign,assignment]
    for kind in (Tensor, nn.Module):
        stock = kind.to

        def to(self: Any, *args: Any, stock: Any = stock, **kwargs: Any) -> Any:
            return stock(self, *(_on_cpu(a) for a in args), **{k: _on_cpu(v) for k, v in kwargs.items()})

        kind.to = to  # type: ignore[method-assign,assignment]
    for name in ("FloatTensor", "LongTensor", "IntTensor", "BoolTensor", "DoubleTensor"):
        setattr(torch.cuda, name, getattr(torch, name))
    for name in ("synchronize", "empty_cache", "manual_seed", "manual_seed_all", "set_device"):
        setattr(torch.cuda, name, lambda *args, **kwargs: None)


def _on_cpu(value: Any) -> Any:
    is_gpu = (
        value.type == "cuda" if isinstance(value, torch.device) else isinstance(value, str) and value.startswith("cuda")
    )
    if is_gpu:
        note("tensors sent to 'cuda' on a machine without a GPU")
    return torch.device("cpu") if is_gpu else value


def _parameters_that_become_tables() -> None:
    """`self.result = nn.Parameter(...).to(device)` is no parameter on a GPU, and one on a CPU, where a tensor cannot replace it."""
    stock = nn.Module.__setattr__

    def set_attribute(self: Any, name: str, value: Any) -> None:
        if (
            isinstance(value, Tensor)
            and not isinstance(value, nn.Parameter)
            and name in self.__dict__.get("_parameters", ())
        ):
            note(
                f"{type(self).__name__}.{name}, a parameter on a CPU alone, is replaced by a tensor, as it is on a GPU"
            )
            del self._parameters[name]
        stock(self, name, value)

    nn.Module.__setattr__ = set_attribute  # type: ignore[method-assign,assignment]


class _StandIns(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Last on the path: a module that is not installed and seldom used can be imported; using it says what to install."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        if name.partition(".")[0] not in _OFTEN_UNUSED:
            return None
        return importlib.machinery.ModuleSpec(name, self, is_package=True)

    def create_module(self, spec: Any) -> types.ModuleType:
        note(f"import of {spec.name}, which is not installed, by a stand-in")
        return _StandIn(spec.name)

    def exec_module(self, module: types.ModuleType) -> None:
        pass


class _StandIn(types.ModuleType):
    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return _Missing(self.__name__.partition(".")[0], name)


class _Missing:
    """Something of a module that is not installed."""

    package: str
    name: str

    def __init__(self, package: str, name: str) -> None:
        self.__dict__.update(package=package, name=name)

    def _refuse(self, *args: Any, **kwargs: Any) -> Any:
        raise ConfigError(
            f"the host uses {self.name} of {self.package}, which is not installed: pip install {self.package}"
        )

    __call__ = __getattr__ = __mro_entries__ = __iter__ = __getitem__ = _refuse


def _pickles(checkout: Path, trust: bool) -> None:
    """Loading a pickle can run any code. What the checkout's own code loads is refused where it would have to be unpickled."""
    if trust:
        stock_torch = torch.load

        def load_any(*args: Any, **kwargs: Any) -> Any:
            return stock_torch(*args, **{"weights_only": False, **kwargs})

        torch.load = load_any
        return

    def refuse(what: str, file: Any) -> ConfigError:
        name = getattr(file, "name", file)
        return ConfigError(
            f"{what} would unpickle {name if isinstance(name, str | os.PathLike) else 'data'}, which can run any code with your rights; if you trust "
            "whoever made it: --trust"
        )

    stock_np = np.load

    def load_array(file: Any, *args: Any, **kwargs: Any) -> Any:
        kwargs.pop("allow_pickle", None)
        args = (*args[:1], *((False,) if len(args) > 1 else ()), *args[2:])
        try:
            return stock_np(file, *args, **kwargs)
        except (ValueError, pickle.UnpicklingError) as error:
            if "allow_pickle" not in str(error) and "pickle" not in str(error).lower():
                raise
            raise refuse("np.load", file) from error

    np.load = load_array
    stock_torch = torch.load

    def load_tensors(file: Any, *args: Any, **kwargs: Any) -> Any:
        try:
            return stock_torch(file, *args, **{**kwargs, "weights_only": True})
        except pickle.UnpicklingError as error:
            raise refuse("torch.load", file) from error

    torch.load = load_tensors  # type: ignore[assignment]
    for module, name in ((pickle, "load"), (pickle, "loads"), (_pandas(), "read_pickle")):
        stock = getattr(module, name)

        def guarded(
            file: Any, *args: Any, stock: Any = stock, what: str = f"{module.__name__}.{name}", **kwargs: Any
        ) -> Any:
            caller = sys._getframe(1).f_code.co_filename
            if Path(caller).is_relative_to(checkout):
                raise refuse(what, file)
            return stock(file, *args, **kwargs)

        setattr(module, name, guarded)

    class Guarded(pickle.Unpickler):  # a class, as others derive theirs from it
        def __init__(self, file: Any, *args: Any, **kwargs: Any) -> None:
            if Path(sys._getframe(1).f_code.co_filename).is_relative_to(checkout):
                raise refuse("pickle.Unpickler", file)
            super().__init__(file, *args, **kwargs)

    pickle.Unpickler = Guarded  # type: ignore[misc]


def _pandas() -> Any:
    import pandas

    return pandas
