"""A second device on a machine that has one: tensors that claim to be elsewhere, and are refused wherever they meet those of the host.

On a CPU a model that indexes a table by ids of the host, or adds `torch.arange(n)` to its scores, is right by accident; on a GPU it fails, or waits
for a copy. Within `Elsewhere` such a mistake is an error here:

    with Elsewhere() as elsewhere:
        model = MyModel(config, dataset).to(elsewhere.device)
        model.calculate_loss(batch.to(elsewhere.device)).backward()
    print(elsewhere.waits)  # what would have waited for the GPU, and where

The device is PyTorch's `lazy`, which has no kernels: for autograd it is a device as any other, and what would run there runs on the CPU. Every
operation is checked, also those that autograd, optimisers and PyTorch's own functions are made of. Kernels are the CPU's: what CUDA lacks, or
does otherwise, does not show; nor do branches on `device.type == "cuda"`.
"""

from __future__ import annotations

import contextlib
import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import FrameType
from typing import Any, ClassVar
from unittest import mock
from weakref import WeakValueDictionary

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from mmrec_mrdib.config import Config

aten = torch.ops.aten
# Between devices by nature.
_MOVES = {aten._to_copy, aten.copy_, aten._copy_from, aten._foreach_copy_}
# Operations that take a number of the host as a tensor without dimensions, beside those that work element by element.
_TAKES_NUMBERS = {aten.index_put, aten.index_put_, aten._index_put_impl_}
# Operations whose result has a size, or is a number, that the host must be told: it waits until the GPU has come so far.
_WAITS = {
    aten._local_scalar_dense, aten.equal, aten.nonzero, aten.masked_select, aten._unique, aten._unique2, aten.unique_dim,
    aten.unique_consecutive, aten.bincount, aten._coalesce, aten.coalesce, aten.repeat_interleave,
}  # fmt: skip
_BY_ROWS = {aten.index, aten.index_put, aten.index_put_, aten._index_put_impl_}
_PACKAGE = Path(__file__).resolve().parent.parent


class MixedDevicesError(RuntimeError):
    """An operation was given tensors of two devices. As in PyTorch a RuntimeError: it is a mistake in the code, and none of a user."""


class Elsewhere(TorchDispatchMode):
    """Within the block `torch.zeros(3, device=Elsewhere.device)`, `x.to(Elsewhere.device)`, ... give tensors that claim to be there, and every
    Config names that device.

    Args:
        host_ids: let `table[ids]` and `table[mask]` with a host's ids or mask pass, as CUDA does, which copies them in silence: RecBole's
            models do so. `index_select` and embeddings never pass.

    Attributes:
        waits: what a GPU would have made the host wait for, 'nonzero: encoded.py:74' -> how often: copies to and from the host, sizes and
            numbers that it must be told.

    Raises:
        MixedDevicesError: from the operation that mixes.
    """

    device = torch.device("lazy", 0)

    def __init__(self, host_ids: bool = False) -> None:
        super().__init__()
        self.host_ids = host_ids
        self.waits: Counter[str] = Counter()
        self._patches = contextlib.ExitStack()

    def __enter__(self) -> Elsewhere:
        from torch.optim import optimizer

        find, supported = Config._init_device, optimizer._get_fused_kernels_supported_devices

        def init_device(config: Config) -> None:
            find(config)
            config.final_config_dict["device"] = self.device

        swaps = {
            (Config, "_init_device"): init_device,
            (torch, "Generator"): _Generator,
            (torch, "autocast"): _autocast(torch.autocast),
            (optimizer, "_get_fused_kernels_supported_devices"): lambda: [*supported(), self.device.type],
        }
        for place, other in swaps.items():
            self._patches.enter_context(mock.patch.object(*place, other))
        # `torch.tensor(..., device=...)` and `as_tensor` make it here and move it, so that the move is seen.
        self._patches.callback(torch._C._set_only_lift_cpu_tensors, torch._C._only_lift_cpu_tensors())
        torch._C._set_only_lift_cpu_tensors(True)
        super().__enter__()
        return self

    def __exit__(self, *exc: Any) -> None:
        super().__exit__(*exc)
        self._patches.close()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        given = list(_tensors((*args, *kwargs.values())))
        mine = {id(x.here): x for x in given if isinstance(x, _There)}
        there = _is_there(kwargs["device"]) if kwargs.get("device") is not None else bool(mine)
        if func.overloadpacket not in _MOVES:
            self._check(func, given)
            _check_generator(func, kwargs.get("generator"), there)
        if mine or there:
            self._count(func, args, given, there, kwargs.get("output_size") is not None)
        out = func(*_here(args), **{k: _here(v) for k, v in kwargs.items()})
        return out if not there else _claimed(out, mine)

    def _check(self, func: Any, given: list[Tensor]) -> None:
        numbers = torch.Tag.pointwise in func.tags or func.overloadpacket in _TAKES_NUMBERS
        if self.host_ids and func.overloadpacket in _BY_ROWS and isinstance(given[0], _There):
            return
        met = {isinstance(x, _There) for x in given if not (numbers and x.ndim == 0 and not isinstance(x, _There))}
        if len(met) > 1:
            told = ", ".join(f"{'elsewhere' if isinstance(x, _There) else 'host'} {tuple(x.shape)}" for x in given)
            raise MixedDevicesError(f"{func} at {_where()}: expected all tensors to be on one device, found {told}")

    def _count(self, func: Any, args: Any, given: list[Tensor], there: bool, sizes_given: bool) -> None:
        name = func.overloadpacket
        if name in _MOVES:
            ends = [isinstance(x, _There) for x in given]
            if {*ends, there} != {True, False}:
                return
            what = "to the host" if ends[-1] else "from the host"
        elif name in _BY_ROWS and any(x.dtype == torch.bool for x in _tensors(args[1])):
            what = "rows by a mask"
        elif name in _WAITS and not sizes_given:
            what = str(name).removeprefix("aten.").strip("_")
        else:
            return
        self.waits[f"{what}: {_where()}"] += 1


class _There(Tensor):
    """A tensor that claims to be elsewhere.

    Attributes:
        here: its values.
    """

    here: Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @staticmethod
    def __new__(cls, here: Tensor) -> _There:
        strided = here.layout is torch.strided
        place: dict[str, Any] = {"strides": here.stride(), "storage_offset": here.storage_offset()} if strided else {}
        out = torch.Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls, here.size(), dtype=here.dtype, layout=here.layout, device=Elsewhere.device, **place
        )
        out.here = here
        return out

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        raise MixedDevicesError(f"{func}: a tensor of `Elsewhere` outside its block")

    def tolist(self) -> Any:
        return self.cpu().tolist()

    def numpy(self, *, force: bool = False) -> Any:
        if force:
            return self.detach().cpu().numpy()
        raise TypeError(f"can't convert {self.device} device type tensor to numpy. Use Tensor.cpu() first")

    def data_ptr(self) -> int:
        return self.here.data_ptr()


class _Generator(torch._C.Generator):
    """PyTorch's, which knows no device without random numbers of its own."""

    known: ClassVar[WeakValueDictionary[int, _Generator]] = WeakValueDictionary()
    """By address: an operation sees another object of Python's."""

    def __new__(cls, device: Any = "cpu") -> _Generator:
        out: Any = super().__new__(cls, "cpu" if _is_there(device) else device)  # type: ignore[call-arg]
        if _is_there(device):
            cls.known[out._cdata] = out
        return out


def _check_generator(func: Any, generator: Any, there: bool) -> None:
    if generator is not None and there != (generator._cdata in _Generator.known):
        wanted, found = ("elsewhere", "the host") if there else ("the host", "elsewhere")
        raise MixedDevicesError(f"{func} at {_where()}: expected a generator of {wanted}, found one of {found}")


def _autocast(real: Any) -> Any:
    return lambda device_type, *args, **kwargs: real("cpu" if _is_there(device_type) else device_type, *args, **kwargs)


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, list | tuple):
        for part in value:
            yield from _tensors(part)


def _here(value: Any) -> Any:
    """An argument, on the CPU."""
    if isinstance(value, _There):
        return value.here
    if isinstance(value, torch.device):
        return torch.device("cpu") if _is_there(value) else value
    return type(value)(map(_here, value)) if type(value) in (list, tuple) else value


def _claimed(value: Any, mine: Mapping[int, _There]) -> Any:
    """A result of what runs elsewhere; `mine`: the operation's own arguments, by the address of their values."""
    if not isinstance(value, Tensor):
        return type(value)(_claimed(v, mine) for v in value) if type(value) in (list, tuple) else value
    known = mine.get(id(value))
    if known is None:
        return _There(value)
    if known.shape != value.shape:  # squeeze_, out=, ...
        with torch._C._DisableTorchDispatch():  # type: ignore[attr-defined]
            known.data = _There(value)
    return known


def _is_there(device: Any) -> bool:
    return torch.device(device).type == "lazy"


def _where() -> str:
    """The innermost line of this package, or else of RecBole, that is being run."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        path = Path(frame.f_code.co_filename)
        if path.name != Path(__file__).name and (_PACKAGE in path.parents or "recbole" in path.parts):
            return f"{path.name}:{frame.f_lineno}"
        frame = frame.f_back
    return "?"
