"""What `attach` is given, checked: settings, features, interactions, ids, paths."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mmrec_mrdib import paths
from mmrec_mrdib.errors import ConfigError, DataError, did_you_mean
from mmrec_mrdib.mrdib.settings import MRdIBSettings

UserView = str | Mapping[str, str] | Callable[[Any], Any] | None
_FIXED = ("backbone", "training", "encoders", "user_view")  # settings that other arguments say


def settings_of(host: str, given: dict[str, Any], projected: bool, user_view: UserView, raw: bool) -> MRdIBSettings:
    known = sorted(set(MRdIBSettings.model_fields) - set(_FIXED))
    for key in given:
        if key not in known:
            raise ConfigError(f"attach: unknown setting '{key}'.{did_you_mean(key, known)} Known: {', '.join(known)}")
    preset = given.get("preset")
    if preset is not None and not (paths.properties_dir() / f"plugin/MRdIB-{preset}.yaml").is_file():
        have = sorted(p.stem.partition("-")[2] for p in (paths.properties_dir() / "plugin").glob("MRdIB-*.yaml"))
        raise ConfigError(f"attach: no preset '{preset}'; expected one of {', '.join(have)}")
    fixed: dict[str, Any] = {"dataset": "", "backbone": host, "training": "joint"}
    if raw and projected:
        raise ConfigError("attach: raw=True reads features as they are: leave projections out")
    if preset == "paper" and not projected:
        raise ConfigError(
            "attach: preset='paper' makes projections of the host stochastic: give projections={modality: path}"
        )
    fixed["encoders"] = "backbone" if projected else "own"
    if user_view is not None:
        fixed["user_view"] = "history" if user_view == "history" else "backbone"
        if not projected and user_view != "history":
            raise ConfigError(
                "attach: the host's users know nothing of the plug-in's own encoders: user_view='history'"
            )
    return MRdIBSettings.from_config(given | fixed)


def of_recbole(model: nn.Module) -> bool:
    return any(c.__module__ == "recbole.model.abstract_recommender" for c in type(model).__mro__)


def feature_tables(given: Mapping[str, Any]) -> dict[str, Tensor]:
    out = {}
    for m, x in given.items():
        table = (x.detach().cpu() if isinstance(x, Tensor) else torch.from_numpy(np.array(x))).float()
        if table.dim() != 2 or not bool(table.isfinite().all()):
            raise DataError(
                f"features of {m}: expected a matrix (items, D) of finite numbers, found {tuple(table.shape)}"
            )
        if not m.isidentifier():
            raise DataError(f"features: '{m}': expected a name of letters, digits and '_'")
        out[m] = table
    return out


def pairs_of(name: str, given: Any) -> tuple[Tensor, Tensor]:
    if hasattr(given, "tocoo"):
        coo = given.tocoo()
        given = (coo.row, coo.col)
    try:
        users, items = given
    except (TypeError, ValueError) as error:
        raise DataError(f"{name}: expected (users, items) or a sparse matrix of users by items") from error
    u, i = ids_of(f"{name}: users", users, None, "cpu"), ids_of(f"{name}: items", items, None, "cpu")
    if len(u) != len(i) or not len(u):
        raise DataError(f"{name}: {len(u)} users and {len(i)} items; expected as many, one or more")
    return u, i


def ids_of(name: str, given: Any, n: int | None, device: Any) -> Tensor:
    """A copy, so that a host that shifts ids in place does not shift ours."""
    ids = given.detach() if isinstance(given, Tensor) else torch.as_tensor(np.asarray(given))
    if ids.dim() != 1 or ids.is_floating_point() or ids.is_complex():
        raise DataError(f"{name}: expected whole numbers (B,), found {ids.dtype} {tuple(ids.shape)}")
    ids = ids.to(device, torch.long, copy=True)
    if len(ids) and (int(ids.min()) < 0 or (n is not None and int(ids.max()) >= n)):
        limit = "" if n is None else f" to {n - 1}"
        raise DataError(
            f"{name}: expected ids from 0{limit}, found {int(ids.min())} to {int(ids.max())}; if the host shifts its batch in place, give plug.loss "
            "what it was before"
        )
    return ids


def size_of(
    model: nn.Module, shape: tuple[int, int] | None, train: Any, pairs: Any, features: Mapping[str, Tensor]
) -> tuple[int, int]:
    """(U, I): as given, or the model's, or the matrix's, or as many as there are."""
    found = shape
    if found is None:
        own = getattr(model, "n_users", None), getattr(model, "n_items", None)
        if isinstance(own[0], int) and isinstance(own[1], int):
            found = own[0], own[1]
        elif hasattr(train, "tocoo"):
            found = train.shape
        elif pairs is not None:
            most = [len(x) for x in features.values()] + [int(pairs[1].max()) + 1]
            found = (int(pairs[0].max()) + 1, max(most))
        else:
            raise ConfigError("attach: how many users and items there are cannot be told: shape=(users, items)")
    n_users, n_items = (int(n) for n in found)
    if pairs is not None and (int(pairs[0].max()) >= n_users or int(pairs[1].max()) >= n_items):
        raise DataError(
            f"train: ids up to {int(pairs[0].max())} and {int(pairs[1].max())}, but {n_users} users and {n_items} items"
        )
    return n_users, n_items


def resolve(model: Any, path: str) -> Any:
    """What is at a path of attributes; None where nothing is."""
    value = model
    for name in path.split("."):
        value = getattr(value, name, None)
        if value is None:
            return None
    return value


def names_of(model: nn.Module) -> list[str]:
    return [*dict(model.named_parameters()), *dict(model.named_buffers()), *vars(model)]
