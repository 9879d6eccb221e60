"""MRdIB on a model that knows nothing of it, by the paths of its projections: any `nn.Module`, without RecBole.

    plug = mrdib.attach(model, projections={"image": "image_trs", "text": "text_trs"}, train=(users, items))
    loss = model.calculate_loss(batch) + plug.loss(users, positives, negatives)

Each projection's output is the mean of a Gaussian while training, and itself in evaluation. Objectives, estimators, weights and settings are
the plug-in's (`mrdib/terms.py`, `mrdib/settings.py`); the readout is the one of `plugins/readout.py`.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import logging
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmrec_mrdib.data import corrupt
from mmrec_mrdib.encoded import Batch, Encoded
from mmrec_mrdib.errors import ConfigError, ContractError, DataError, did_you_mean, listed
from mmrec_mrdib.evaluation import PER_USER, RankingSplit, rank_ladder, score_all
from mmrec_mrdib.graphs import Edges, gather_rows
from mmrec_mrdib.hosts.given import (
    UserView,
    feature_tables,
    ids_of,
    names_of,
    of_recbole,
    pairs_of,
    resolve,
    settings_of,
    size_of,
)
from mmrec_mrdib.losses import at_least_single
from mmrec_mrdib.mrdib.encoder import Linear, standardisation
from mmrec_mrdib.mrdib.history import Histories
from mmrec_mrdib.mrdib.terms import Terms
from mmrec_mrdib.plugins.readout import Readout

logger = logging.getLogger(__name__)

_ENTRIES = ("calculate_loss", "forward")  # methods of a host in which a forward pass begins
_VIEW = re.compile(r"(?P<path>[\w.]+?)(?P<call>\(\))?(?:\[(?P<place>\d+)\])?(?:\[(?P<part>\d+)/(?P<parts>\d+)\])?")
_SCORES = 1 << 24  # user-item scores in memory at a time


def attach(
    model: nn.Module,
    projections: Mapping[str, str] | None = None,
    train: Any = None,
    *,
    features: Mapping[str, Any] | None = None,
    user_view: UserView = None,
    method: str = "full_sort_predict",
    interaction: Callable[[Tensor], Any] | None = None,
    shape: tuple[int, int] | None = None,
    widths: Mapping[str, int] | None = None,
    raw: bool = False,
    seed: int | None = None,
    **settings: Any,
) -> Attached:
    """Put MRdIB on a model.

    Args:
        model: the host; none of its parameters is touched, and its state dict stays as it is.
        projections: modality -> path of the module, of the host, that makes its representation of all items, (I, D) -> (I, d). The same path
            for several modalities: one linear layer over their features side by side, in this order. None: the plug-in has linear encoders
            of its own, on `features`, and the host is left alone but for its ranking.
        train: its training interactions, which histories and the readout are made of: (users, items), or a sparse (U, I) matrix.
        features: modality -> (I, D) item features.
        user_view: what decodes a modality: 'history', the user's other items; or a user table of the host, by path ('user_embedding.weight'),
            by modality ({'image': path, ...}), or by a callable, which gets the host and returns (U, d) or {modality: (U, d)}. A path may end in
            '[2/2]', the second of two equal parts of its columns, and may be a method's output, 'forward()[0]'. Modalities without one get a table
            of the plug-in's own. None: as the settings say.
        method: path of the host's full-ranking method, which the readout is added to.
        interaction: makes of user ids (B,) what that method takes. None: the ids themselves, or RecBole's Interaction for its models.
        shape: (U, I), where neither the model (`n_users`, `n_items`) nor a sparse `train` tells.
        widths: modality -> d, where a projection is no Linear and does not end in one.
        raw: the readout is of the features as they are, brought to one scale, and nothing is learned: the control.
        seed: of the plug-in's own random stream, which the host's does not notice; None: the host's.
        settings: any of properties/plugin/MRdIB.yaml, `preset` among them.

    Raises:
        ConfigError: something contradicts something; ContractError: the host is not as this says; DataError: the data are not.
    """
    if attached(model) is not None:
        raise ConfigError("the model has a plug-in already: plug.remove() first")
    return Attached(
        model, dict(projections or {}), train, features, user_view, method, interaction, shape, widths, raw, seed, settings
    )  # fmt: skip


def attached(model: nn.Module) -> Attached | None:
    """The plug-in on a model, of a copy of it, too: None where there is none."""
    for value in vars(model).values():
        plug = getattr(value.func, "__self__", None) if isinstance(value, functools.partial) else None
        if isinstance(plug, Attached):
            return plug
    return None


class Attached(Terms, Readout):
    """What `attach` returns. Its parameters are the plug-in's alone and belong into the optimizer, beside the host's:

        torch.optim.Adam([*model.parameters(), *plug.parameters()])

    Attributes:
        model: the host.
        parts: weighted terms of the last `loss`, by name; `logs`: what to look at, in nats.
    """

    model: Any
    scales: Tensor
    _keys: Tensor
    """Users times I plus items of the training interactions, sorted."""

    def __init__(
        self,
        model: nn.Module,
        projections: dict[str, str],
        train: Any,
        features: Mapping[str, Any] | None,
        user_view: UserView,
        method: str,
        interaction: Callable[[Tensor], Any] | None,
        shape: tuple[int, int] | None,
        widths: Mapping[str, int] | None,
        raw: bool,
        seed: int | None,
        settings: dict[str, Any],
    ) -> None:
        super().__init__()
        object.__setattr__(self, "model", model)  # no sub-module: its parameters are not ours
        self.settings = settings_of(type(model).__name__, settings, bool(projections), user_view, raw)
        self.raw, self.of_recbole = raw, of_recbole(model)
        self.first_item = int(self.of_recbole)
        self.method, self._interaction = method, interaction
        known = feature_tables(features or {})
        pairs = None if train is None else pairs_of("train", train)
        self.n_users, self.n_items = size_of(model, shape, train, pairs, known)
        self._check_needs(projections, known, pairs)
        self._at = self._find(projections)
        self._replaced: dict[tuple[str, str], Any] = {}
        self._forwards = self._depth = 0  # passes of the host so far, and how many of its methods within each other
        self._forget()
        self._inputs: dict[str, Tensor] = {}
        self._content_of: Any = None
        self._steps = 0
        self._before: tuple[int, ...] = ()
        self.parts: dict[str, Tensor] = {}
        self.logs: dict[str, Tensor] = {}
        theirs = next(model.parameters(), torch.zeros(())).device
        generator = torch.Generator().manual_seed(torch.initial_seed() % 2**63 if seed is None else seed)
        self._streams: dict[str, Tensor] = {"cpu": generator.get_state()}
        self._seed = int(generator.initial_seed())
        with self._stream(torch.device("cpu")):
            self._build(projections, known, pairs, widths or {})
            self._user_tables(user_view)
        self.to(theirs)
        self.eval()  # as the host is, while it trains: see `loss`
        self.register_load_state_dict_post_hook(lambda plug, keys: plug._loaded())
        self._install()

    # Construction.

    def _check_needs(self, projections: dict[str, str], features: Mapping[str, Tensor], pairs: Any) -> None:
        if not projections and not features:
            raise ConfigError(
                "attach: give projections={modality: path} or features={modality: array}; mrdib.suggest(model) lists the candidates"
            )
        if pairs is None and (self.settings.user_view == "history" or self.settings.readout == "late"):
            raise ConfigError(
                "attach: histories and the readout are made of the training interactions: train=(users, items), or user_view=a table of the "
                "model's and readout='none'"
            )
        if self.settings.readout == "late" and not callable(resolve(self.model, self.method)):
            raise ContractError(
                f"{type(self.model).__name__} has no method '{self.method}' that ranks all items; name it (method='...'), or readout='none'"
            )
        for m, x in features.items():
            if len(x) != self.n_items:
                raise DataError(f"features of {m}: {len(x)} rows, expected one for each of {self.n_items} items")

    def _find(self, projections: Mapping[str, str]) -> dict[str, tuple[nn.Module, list[str]]]:
        """Path -> (module, its modalities)."""
        modules = dict(self.model.named_modules())
        found: dict[str, tuple[nn.Module, list[str]]] = {}
        for m, path in projections.items():
            if path not in modules or not path:
                if isinstance(resolve(self.model, path), Tensor):
                    raise ContractError(
                        f"projections: '{path}' ({m}) is a matrix of {type(self.model).__name__}, no module, and its product cannot be "
                        "intercepted: leave projections out, and give features={...} for encoders of the plug-in's own"
                    )
                raise ContractError(
                    f"projections: {type(self.model).__name__} has no module '{path}' ({m}).{did_you_mean(path, modules)} "
                    f"It has: {listed([n for n in modules if n], 12) or 'none'}; mrdib.suggest(model) lists the candidates"
                )
            found.setdefault(path, (modules[path], []))[1].append(m)
        by_module = {id(module): path for path, (module, _) in found.items()}
        if len(by_module) < len(found):
            raise ContractError(f"projections: {', '.join(found)}: two names of one module; give each modality its own")
        return found

    def _build(
        self, projections: dict[str, str], features: dict[str, Tensor], pairs: Any, widths: Mapping[str, int]
    ) -> None:
        s = self.settings
        histories = None
        if pairs is not None:
            keys = torch.unique(pairs[0] * self.n_items + pairs[1])
            edges = Edges(
                keys // self.n_items, keys % self.n_items, torch.ones(len(keys)), (self.n_users, self.n_items)
            )
            histories = Histories(edges)
            self.register_buffer("_keys", keys, persistent=False)
        self.build_readout(histories)
        self.own_encoders: nn.ModuleDict | None = None
        self._columns: dict[str, tuple[int, int]] = {}
        self._modalities = tuple(projections or features)
        if projections:
            dims = {m: self._width(path, m, widths, features) for m, path in projections.items()}
        else:
            for m, x in features.items():
                if s.content_control is not None:
                    table = self._padded(x).numpy().copy()
                    corrupt.control(table, s.content_control, corrupt.generator(s.split_seed, "content", m))
                    x = torch.from_numpy(table[1 - self.first_item :])
                if self.raw:
                    mean, inverse_std = standardisation(self._padded(x))
                    x = (x - mean) * inverse_std
                self.register_buffer(f"features_{m}", x, persistent=False)
            tables = self.content_features()
            if not self.raw:
                encoders = {m: Linear(self._padded(x), s.content_size) for m, x in tables.items()}
                self.own_encoders = nn.ModuleDict(encoders)
            dims = {m: x.shape[1] if self.raw else s.content_size for m, x in tables.items()}
        self.dims = dims
        self.stage = self.gaussian(dims, None)
        self.register_buffer("scales", torch.full((len(dims),), torch.nan))
        if self.own_encoders is not None:
            with torch.no_grad():
                for m, z in self.content(self.content_features()).items():
                    self._calibrate(m, z[self.first_item :])
        self.build_terms(dims)

    def _padded(self, x: Tensor) -> Tensor:
        """With a padding row before the first item."""
        return x if self.first_item else F.pad(x, (0, 0, 1, 0))

    def _width(self, path: str, m: str, given: Mapping[str, int], features: Mapping[str, Tensor]) -> int:
        """d of a projection's output; of a joint layer, also which of its columns are the modality's."""
        module, names = self._at[path]
        if len(names) > 1:
            if not isinstance(module, nn.Linear) or not all(n in features for n in names):
                raise ContractError(
                    f"projections: '{path}' is given for {' and '.join(names)}: that means one Linear over their features side by side, and "
                    "needs features={...} of all of them"
                )
            sizes = [features[n].shape[1] for n in names]
            if sum(sizes) != module.in_features:
                raise ContractError(
                    f"projections: '{path}' takes {module.in_features} columns, the features of {', '.join(names)} have {sizes}"
                )
            start = sum(sizes[: names.index(m)])
            self._columns[m] = (start, start + features[m].shape[1])
        if m in given:
            return int(given[m])
        linears = [part for part in module.modules() if isinstance(part, nn.Linear)]
        if not linears:
            raise ContractError(
                f"projections: how wide the output of '{path}' ({type(module).__name__}) is cannot be told: widths={{'{m}': d}}"
            )
        return linears[-1].out_features

    def _user_tables(self, user_view: UserView) -> None:
        """Where the views of users come from, and tables of our own where there is none."""
        self.own_views = nn.ParameterDict()
        self._view: UserView = None
        self._captures: set[str] = set()
        s = self.settings
        if s.user_view == "history" or not (s.unique_weight or s.synergy_weight):
            return
        offered: set[str] = set()
        if callable(user_view):
            self._view, offered = user_view, set(self._modalities)
        elif user_view is not None and user_view != "history":
            table = dict.fromkeys(self._modalities, user_view) if isinstance(user_view, str) else dict(user_view)
            for m, spec in table.items():
                found = _VIEW.fullmatch(str(spec))
                if m not in self._modalities or found is None:
                    raise ConfigError(
                        f"user_view: {m}: '{spec}': expected modalities of {', '.join(self._modalities)}, and paths such as "
                        "'user_embedding.weight', 'u_embedding[2/2]' or 'forward()[0]'"
                    )
                if found["call"]:
                    self._captures.add(found["path"])
                first = found["path"].partition(".")[0]
                late = first == found["path"] and not found["call"]  # tables that a host makes in its first pass
                if not late and resolve(self.model, found["path"]) is None:
                    raise ContractError(
                        f"user_view: {type(self.model).__name__} has no '{found['path']}' ({m}).{did_you_mean(found['path'], names_of(self.model))}"
                    )
            self._view, offered = table, set(table)
        for m, d in self.dims.items():
            if m not in offered:
                self.own_views[m] = nn.init.xavier_uniform_(nn.Parameter(torch.empty(self.n_users, d)))

    def _install(self) -> None:
        """Hooks on the projections; the host's methods, on the object and not on its class, so that copies of it have their own."""
        self._handles = [
            module.register_forward_hook(functools.partial(self._on_call, path), with_kwargs=True)
            for path, (module, _) in self._at.items()
        ]
        ranks = {self.method} if self.settings.readout == "late" else set()
        for name in dict.fromkeys([*_ENTRIES, *self._captures]):
            if callable(getattr(self.model, name, None)) and name not in ranks:
                self._replace(name, self._entered)
        for name in ranks:
            self._replace(name, self._ranked)

    def _replace(self, path: str, by: Callable[..., Any]) -> None:
        owner, _, name = path.rpartition(".")
        holder = resolve(self.model, owner) if owner else self.model
        self._replaced[owner, name] = vars(holder).get(name)  # None: the class's
        object.__setattr__(holder, name, functools.partial(by, path))

    def remove(self) -> None:
        """Leave the model as it was before `attach`, whatever it has learned since."""
        for handle in self._handles:
            handle.remove()
        for (owner, name), before in self._replaced.items():
            holder = resolve(self.model, owner) if owner else self.model
            vars(holder).pop(name, None)
            if before is not None:
                object.__setattr__(holder, name, before)
        self._handles, self._replaced = [], {}
        self._forget()

    def _stock(self, path: str) -> Callable[..., Any]:
        """The host's own method."""
        owner, _, name = path.rpartition(".")
        holder = resolve(self.model, owner) if owner else self.model
        before = self._replaced.get((owner, name))
        bound: Callable[..., Any] = functools.partial(getattr(type(holder), name), holder) if before is None else before
        return bound

    def __getstate__(self) -> dict[str, Any]:
        """For copies: without what belongs to a forward pass that is under way."""
        state = self.__dict__.copy()
        passing: dict[str, Any] = {
            "_pending": {},
            "_captured": {},
            "_outputs": {},
            "_content": None,
            "_content_of": None,
        }
        return state | passing | {"parts": {}, "logs": {}, "_before": ()}

    def __deepcopy__(self, memo: dict[int, Any]) -> Attached:
        out = type(self).__new__(type(self))
        memo[id(self)] = out
        out.__dict__.update(copy.deepcopy(self.__getstate__(), memo))
        return out

    def _loaded(self) -> None:
        """After a state dict: the bounds of the variances, which are relative to where training began."""
        fresh = self.gaussian(self.dims, None)
        self.stage.bounds, self.stage.start = fresh.bounds, fresh.start
        for m, scale in zip(self._modalities, self.scales.tolist(), strict=True):
            if scale == scale:
                self.stage.make_relative(m, scale, begins=False)
        self.begin_epoch()

    # The host's passes.

    @contextlib.contextmanager
    def _stream(self, device: torch.device) -> Iterator[None]:
        """Draw from the plug-in's own random stream: the host's goes on as it does without."""
        theirs = torch.get_rng_state()
        on_gpu = torch.cuda.get_rng_state(device) if device.type == "cuda" else None
        torch.set_rng_state(self._streams["cpu"])
        if on_gpu is not None:
            if str(device) in self._streams:
                torch.cuda.set_rng_state(self._streams[str(device)], device)
            else:
                with torch.cuda.device(device):
                    torch.cuda.manual_seed(self._seed)
        try:
            yield
        finally:
            self._streams["cpu"] = torch.get_rng_state()
            torch.set_rng_state(theirs)
            if on_gpu is not None:
                self._streams[str(device)] = torch.cuda.get_rng_state(device)
                torch.cuda.set_rng_state(on_gpu, device)

    def _forget(self) -> None:
        self._pending: dict[str, tuple[Tensor, Tensor, Tensor | None]] = {}
        self._captured: dict[str, Any] = {}
        self._outputs: dict[str, tuple[int, Tensor, dict[str, Tensor]]] = {}
        self._forwards += 1

    def _entered(self, name: str, *args: Any, **kwargs: Any) -> Any:
        """A method of the host in which a forward pass begins, unless it is called within another."""
        if self._depth == 0:
            self._forwards += 1
        self._depth += 1
        try:
            out = self._stock(name)(*args, **kwargs)
        finally:
            self._depth -= 1
        if name in self._captures and self.model.training:
            self._captured[name] = out
        return out

    def _on_call(self, path: str, module: nn.Module, args: Any, kwargs: Any, output: Any) -> Tensor | None:
        """After a projection: in training, a sample in place of its output."""
        x = next(iter([*args, *kwargs.values()]), None)
        if isinstance(x, Tensor):
            self._inputs[path] = x if x.is_leaf else x.detach()
        if not module.training:
            return None
        _, names = self._at[path]
        if not isinstance(output, Tensor) or output.dim() != 2 or not output.is_floating_point():
            found = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
            raise ContractError(f"projections: '{path}' gives {found}; expected a matrix (items, d) of real numbers")
        if output.shape[1] != self.dims[names[0]]:
            raise ContractError(
                f"projections: '{path}' gives {output.shape[1]} columns, not {self.dims[names[0]]}: widths={{'{names[0]}': {output.shape[1]}}}"
            )
        if len(output) != self.n_items:
            raise ContractError(
                f"projections: '{path}' is called with {len(output)} rows, not with all {self.n_items} items: which items they are cannot be "
                "told. Project all items, then take rows; or leave projections out and give features={...}"
            )
        if self.weight.device != output.device:
            self.to(output.device)
        state = self._states(output.device)
        before = self._outputs.get(path)
        again = before if before is not None and before[0] == self._forwards else None  # in the same forward
        if again is not None:
            if not torch.equal(again[1], output.detach()):
                raise ContractError(
                    f"projections: '{path}' is called twice in one forward, with different inputs: the objectives would see one of the two. "
                    "Leave projections out and give features={...}, or make it one call"
                )
            self._restore(again[2])  # the same noise: one sample a forward
        with self._stream(output.device):
            out = self._sampled(path, module, x, output)
        self._outputs[path] = (self._forwards, output.detach(), state if again is None else again[2])
        if again is not None:
            self._restore(state)
        return out

    def _states(self, device: torch.device) -> dict[str, Tensor]:
        return {k: v for k, v in self._streams.items() if k in ("cpu", str(device))}

    def _restore(self, states: dict[str, Tensor]) -> None:
        self._streams.update(states)

    def _sampled(self, path: str, module: nn.Module, x: Any, output: Tensor) -> Tensor:
        """What the host goes on with; what the objectives see is kept."""
        _, names = self._at[path]
        out = output
        self.stage.train()
        for m in names:
            mean = output if len(names) == 1 else self._share(module, x, m, len(names))
            single = mean.float()
            self._calibrate(m, single.detach()[self.first_item :])
            z, _, rate = self.stage.encode(m, nn.Identity(), single)
            if len(names) > 1 or output.dtype == torch.float64:
                out = out + (z - single).to(output.dtype)
            else:
                out = z.to(output.dtype)
                z = at_least_single(out)  # of a half-precision host, what it computes with
            self._pending[m] = (z, single, rate)
        self.stage.eval()
        self._content = None
        return out

    def _share(self, module: nn.Module, x: Tensor, m: str, n: int) -> Tensor:
        """One modality's part of a joint layer: W [x1 ; x2] + b = (W1 x1 + b / 2) + (W2 x2 + b / 2)."""
        assert isinstance(module, nn.Linear)
        start, end = self._columns[m]
        bias = None if module.bias is None else module.bias / n
        return F.linear(x[:, start:end], module.weight[:, start:end], bias)

    def _calibrate(self, m: str, mean: Tensor) -> None:
        """Variances are relative to the mean square of mu where training begins."""
        at = self._modalities.index(m)
        if self.settings.sigma_scale == "relative" and bool(self.scales[at].isnan()):
            scale = max(float(mean.square().mean()), 1e-12)
            self.scales[at] = scale
            self.stage.make_relative(m, float(self.scales[at]))

    # The loss.

    def loss(
        self,
        users: Any,
        positives: Any,
        negatives: Any = None,
        *,
        host_loss: Any = None,
        margins: Tensor | None = None,
    ) -> Tensor:
        """() the plug-in's terms for the pairs of this step, to be added to the host's loss; after the host's forward pass, where it has
        projections.

        Args:
            users, positives, negatives: (B,) ids, from 0 as rows of the tables. Negatives are drawn where a term needs them and none are given.
            host_loss: the host's own, for `weighting: auto`.
            margins: (B,) s(u, i) - s(u, j) of the host's scores, for `synergy_weight` with a user view of the host.

        Raises:
            ContractError: evaluation mode; a projection was not called; a view does not fit.
        """
        if not self._handles and not self._replaced:
            raise ContractError("the plug-in is removed from its model: attach it anew")
        if self.raw:
            raise ConfigError(
                "attach(raw=True) learns nothing, so it has no loss; plug.select(users, items) chooses its weight"
            )
        if not self.model.training:
            self._forget()
            raise ContractError(
                f"{type(self.model).__name__} is in evaluation mode, where representations are means: model.train() before the forward pass"
            )
        self._watch()
        self.train()
        try:
            with self._stream(self.weight.device):
                total = self._loss(users, positives, negatives, host_loss, margins)
        finally:
            self.eval()
            self._content = None
            self._forget()
        return total

    def _loss(self, users: Any, positives: Any, negatives: Any, host_loss: Any, margins: Tensor | None) -> Tensor:
        device = self.weight.device
        u, i = (
            ids_of(name, x, n, device)
            for name, x, n in (("users", users, self.n_users), ("positives", positives, self.n_items))
        )
        s = self.settings
        by_views = s.user_view == "backbone" and (s.unique_weight or s.synergy_weight)
        j = None if negatives is None else ids_of("negatives", negatives, self.n_items, device)
        if len(i) != len(u) or (j is not None and len(j) != len(u)):
            raise DataError(
                f"users, positives and negatives: {len(u)}, {len(i)} and {'none' if j is None else len(j)}; expected as many of each"
            )
        if j is None and (by_views or s.unique_loss == "bpr"):
            j = self._draw_negatives(u)
        batch = Batch(u, i, j, self.n_items)
        enc = self._encoded(batch)
        views = None if s.user_view == "history" else self._views(enc) if by_views else {}
        parts: dict[str, Tensor] = {}
        if host_loss is not None:
            host_loss = sum(host_loss) if isinstance(host_loss, tuple | list) else host_loss
            parts["host"] = host_loss.sum()
        elif self.auto is not None:
            raise ConfigError("weighting='auto' balances against the host's loss: plug.loss(..., host_loss=loss)")

        def fused() -> Tensor:
            if margins is None:
                raise ConfigError(
                    "synergy_weight with a user view of the host needs its scores: plug.loss(..., margins=s(u, i) - s(u, j)); or synergy_weight=0"
                )
            return margins

        self.logs = self.add_terms(parts, enc, batch, views, fused)
        parts.pop("host", None)
        self.parts = {name: value.detach() for name, value in parts.items()}
        return torch.stack(list(parts.values())).sum() if parts else torch.zeros((), device=device)

    def _encoded(self, batch: Batch) -> Encoded:
        if self.own_encoders is not None:
            features, items = self.content_features(), self.items_to_read(batch)
            if items is not None:
                features = {m: gather_rows(x, items) for m, x in features.items()}
            return self.stage(self.own_encoders, features, items)
        missing = [
            f"'{path}' ({', '.join(names)})" for path, (_, names) in self._at.items() if names[0] not in self._pending
        ]
        if missing:
            raise ContractError(
                f"{', '.join(missing)} of {type(self.model).__name__} was not called since the last plug.loss: run the host's forward pass first. "
                "If it did run, it does not use that module in training, or not by calling it: name another one"
            )
        z, mean, rate = ({m: self._pending[m][n] for m in self._modalities} for n in range(3))
        return Encoded(z, mean, rate)  # type: ignore[arg-type]

    def _views(self, enc: Encoded) -> dict[str, tuple[Tensor, Tensor]]:
        """Modality -> ((U, d), (I, d))."""
        tables: dict[str, Any] = dict(self.own_views)
        if callable(self._view):
            given = self._view(self.model)
            tables |= dict(given) if isinstance(given, Mapping) else dict.fromkeys(self._modalities, given)
        elif isinstance(self._view, dict):
            tables |= {m: self._named_view(m, spec) for m, spec in self._view.items()}
        for m, z in enc.z.items():
            table = tables.get(m)
            if isinstance(table, Tensor):
                if table.dim() == 3 and table.shape[2] == 1:
                    table = table.squeeze(2)
                if table.dim() == 2 and len(table) == self.n_users + self.n_items:
                    table = table[: self.n_users]  # a table of nodes
            if not isinstance(table, Tensor) or table.shape != (self.n_users, z.shape[1]):
                found = f"a tensor {tuple(table.shape)}" if isinstance(table, Tensor) else f"{table!s:.40}"
                raise ContractError(
                    f"user_view: {m}: {found}; expected {(self.n_users, z.shape[1])}, as wide as the projection"
                )
            tables[m] = table
        return {m: (at_least_single(tables[m]), z) for m, z in enc.z.items()}

    def _named_view(self, m: str, spec: str) -> Any:
        found = _VIEW.fullmatch(spec)
        assert found is not None
        path, place = found["path"], found["place"]
        if found["call"]:
            if path not in self._captured:
                raise ContractError(f"user_view: {path}() was not called since the last plug.loss ({m})")
            value = self._captured[path]
        else:
            value = resolve(self.model, path)
            value = value.weight if isinstance(value, nn.Embedding) else value
        if place is not None:
            if not isinstance(value, tuple | list) or int(place) >= len(value):
                raise ContractError(f"user_view: {spec} ({m}): {path} has no output {place}")
            value = value[int(place)]
        if found["parts"] and isinstance(value, Tensor):
            value = value.chunk(int(found["parts"]), dim=1)[int(found["part"]) - 1]
        return value

    def _draw_negatives(self, users: Tensor) -> Tensor:
        """(B,) an item for each user, uniformly out of those that it has not in training (as far as a few draws find one)."""
        items = torch.randint(self.first_item, self.n_items, users.shape, device=users.device)
        if hasattr(self, "_keys"):
            keys = self._keys
            for _ in range(8):
                wanted = users * self.n_items + items
                known = keys[torch.searchsorted(keys, wanted).clamp(max=len(keys) - 1)] == wanted
                items = torch.where(known, torch.randint_like(items, self.first_item, self.n_items), items)
        return items

    def _watch(self) -> None:
        """Whoever forgets the plug-in's parameters in the optimizer trains against encoders and estimators that stay random."""
        self._steps += 1
        if self._steps > 4:
            return
        now = tuple(p._version for p in self.parameters() if p.grad is not None)
        if self._steps == 4 and now and now == self._before:
            logger.warning(
                "the plug-in's parameters do not change: give them to the optimizer, as in Adam([*model.parameters(), *plug.parameters()])"
            )
        if self._steps == 2:
            self._before = now

    # The readout.

    def content_features(self) -> dict[str, Tensor]:
        if self._at:
            return {}
        return {m: getattr(self, f"features_{m}") for m in self._modalities}

    def content(self, features: Mapping[str, Tensor]) -> dict[str, Tensor]:
        if self.raw:
            return dict(features)
        if self.own_encoders is not None:
            return {m: encoder(features[m]) for m, encoder in self.own_encoders.items()}
        out = {}
        for path, (module, names) in self._at.items():
            if path not in self._inputs:
                raise ContractError(
                    f"'{path}' was not called yet, so its representations are not known: run the host once"
                )
            x = self._inputs[path]
            for m in names:
                z = self._share(module, x, m, len(names)) if len(names) > 1 else _as_evaluated(module, x)
                out[m] = z.float()
        return out

    def catalogue(self) -> tuple[dict[str, Tensor], Tensor]:
        """As of every readout; made anew whenever a weight that it is made of has changed."""
        sources: list[Tensor] = [
            p for module, _ in self._at.values() for p in (*module.parameters(), *module.buffers())
        ]
        sources += [*self._inputs.values(), *(self.own_encoders.parameters() if self.own_encoders is not None else ())]
        made_of = [(x.data_ptr(), x._version) for x in sources]
        if made_of != self._content_of:
            self._content, self._content_of = None, made_of
        return super().catalogue()

    def host_scores(self, users: Tensor) -> Tensor:
        if self.of_recbole and self.method == "full_sort_predict" and self._interaction is None:
            scores = score_all(_Bare(self.model, self._stock(self.method)), users, self.model.USER_ID, self.n_items)
        else:
            asked = users if self._interaction is None else self._interaction(users)
            scores = self._stock(self.method)(asked)
        return self._matrix(scores, users).detach().float().clone()

    def _matrix(self, scores: Any, users: Tensor) -> Tensor:
        if not isinstance(scores, Tensor) or scores.numel() != len(users) * self.n_items:
            found = tuple(scores.shape) if isinstance(scores, Tensor) else type(scores).__name__
            raise ContractError(
                f"{self.method} gives {found} for {len(users)} users and {self.n_items} items; expected a score of each. If it takes something else "
                "than user ids: attach(interaction=lambda users: [users]), say"
            )
        return scores.view(len(users), self.n_items)

    @torch.no_grad()
    def scores(self, users: Any) -> Tensor:
        """(B, I) of all items: the host's, and the content's with the chosen weight; in evaluation mode."""
        ids = ids_of("users", users, self.n_users, self.weight.device)
        host = self.host_scores(ids)
        return host + self.weight * (self.profiles(ids) @ self.catalogue()[1].T) if self.reads_content else host

    def _ranked(self, path: str, *args: Any, **kwargs: Any) -> Any:
        """The host's full-ranking method, with the readout."""
        if not self.reads_content or self.model.training:
            return self._entered(path, *args, **kwargs)
        asked = next(iter([*args, *kwargs.values()]), None)
        users = self._users_in(asked).to(self.weight.device)
        try:
            scores = self._stock(path)(*args, **kwargs)
        except NotImplementedError:
            if not self.of_recbole:
                raise
            scores = self.host_scores(users)  # a model that scores pairs
        with torch.no_grad():
            beside = self.weight * (self.profiles(users) @ self.catalogue()[1].T)
        self._matrix(scores, users)
        return scores + beside.view_as(scores).to(scores.dtype)

    def _users_in(self, asked: Any) -> Tensor:
        if self.of_recbole:
            asked = asked[self.model.USER_ID]
        elif isinstance(asked, list | tuple):
            asked = asked[0]
        elif isinstance(asked, Mapping):
            asked = asked[getattr(self.model, "USER_ID", "user_id")]
        if not isinstance(asked, Tensor) or asked.dim() == 0:
            raise ContractError(f"{self.method}: no user ids in its first argument, {type(asked).__name__}")
        return asked[0] if asked.dim() == 2 else asked

    def select(self, users: Any, items: Any, metric: str = "recall@20") -> dict[str, float]:
        """Choose the readout's weight on validation pairs: full ranking without the users' training items.

        Args:
            users, items: (E,) pairs of the validation split.
            metric: one of recall, ndcg, precision, map, hit, mrr, at a k.

        Returns:
            'rung', 'weight', and the metric at it.
        """
        name, _, k = metric.partition("@")
        if name not in PER_USER or not k.isdigit() or int(k) < 1:
            raise ConfigError(f"metric={metric}: expected one of {', '.join(PER_USER)} at a k, as in recall@20")
        if self.settings.readout == "none":
            raise ConfigError("select: there is no readout (readout='none')")
        split = self._split(users, items)
        with self._evaluating():
            ranking = rank_ladder(self, split, [name], [int(k)], "", metric)
        return {**(self.readout() or {}), metric: ranking.means[metric]}

    def _split(self, users: Any, items: Any) -> RankingSplit:
        device = self.weight.device
        u, i = ids_of("users", users, self.n_users, device), ids_of("items", items, self.n_items, device)
        if not len(u) or len(u) != len(i):
            raise DataError(f"select: {len(u)} users and {len(i)} items; expected as many, one or more")
        known = (self._keys // self.n_items, self._keys % self.n_items)
        return RankingSplit("valid", u, i, [known], self.n_users, self.n_items, _SCORES, padded=bool(self.first_item))

    @contextlib.contextmanager
    def _evaluating(self) -> Iterator[None]:
        modes = [(module, module.training) for module in self.model.modules()]
        self.model.eval()
        try:
            yield
        finally:
            for module, mode in modes:
                module.training = mode

    def fit(self, users: Any, items: Any, metric: str = "recall@20") -> dict[str, float]:
        """Train the plug-in's own encoders beside a host that is trained already, as `training: staged` does, and choose the readout's weight:
        `stage_epochs`, `stage_patience`, `stage_batch_size` and `stage_learning_rate` of the settings.

        Args:
            users, items, metric: see `select`.

        Returns:
            What `select` returned at the best epoch, whose weights are kept.
        """
        if self._at:
            raise ConfigError(
                "fit is for encoders of the plug-in's own: with projections, train the host with plug.loss, then plug.select"
            )
        if self.raw:
            return self.select(users, items, metric)
        s, device = self.settings, self.weight.device
        optimizer = torch.optim.Adam(self.parameters(), s.stage_learning_rate)
        best: dict[str, float] = {}
        kept: dict[str, Tensor] = {}
        vain = 0
        for _ in range(s.stage_epochs):
            self.begin_epoch()
            self.train()
            with self._stream(device):
                for keys in self._keys[torch.randperm(len(self._keys)).to(device)].split(s.stage_batch_size):
                    optimizer.zero_grad(set_to_none=True)
                    total = self._loss(keys // self.n_items, keys % self.n_items, None, None, None)
                    if total.requires_grad:
                        total.backward()
                        optimizer.step()
            self.eval()
            self._content = None
            found = self.select(users, items, metric)
            if not best or found[metric] > best[metric]:
                best, vain = found, 0
                kept = {k: v.detach().clone() for k, v in self.state_dict().items()}
            elif (vain := vain + 1) >= s.stage_patience:
                break
        self.load_state_dict(kept)
        self._content = None
        return best


class _Bare:
    """A host as `score_all` takes it, with its own full-ranking method."""

    def __new__(cls, model: Any, method: Callable[..., Any]) -> Any:
        from recbole.model.abstract_recommender import AbstractRecommender

        if type(model).full_sort_predict is AbstractRecommender.full_sort_predict:
            return model  # which scores pairs: nothing of ours is asked
        bare = object.__new__(cls)
        bare.method = method
        return bare

    method: Callable[..., Any]

    def full_sort_predict(self, interaction: Any) -> Any:
        return self.method(interaction)


def _as_evaluated(module: nn.Module, x: Tensor) -> Tensor:
    """The module's output in evaluation, without its hooks."""
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        out: Tensor = module.forward(x)
    finally:
        for part, mode in modes:
            part.training = mode
    return out
