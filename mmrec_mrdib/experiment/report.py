"""A report on trained runs: what their representations hold, as JSON and as one HTML page that works offline."""

from __future__ import annotations

import base64
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mmrec_mrdib import process
from mmrec_mrdib.errors import ConfigError
from mmrec_mrdib.evaluation import Unimodal, rank
from mmrec_mrdib.experiment import record, slices
from mmrec_mrdib.experiment.explain import explain
from mmrec_mrdib.experiment.export import Trained, load
from mmrec_mrdib.mrdib import diagnostics
from mmrec_mrdib.mrdib.history import profiles
from mmrec_mrdib.paths import write_atomically
from mmrec_mrdib.plugins.channel import Channel

logger = logging.getLogger(__name__)
REPORT_VERSION = 2
_PAIRS = 100_000  # interactions that the decomposition looks at, at most
_POINTS = 1_000  # items in the t-SNE picture, at most
_WHY_USERS = 4
SLICES = {"popularity": "by the item's popularity", "history": "by the user's history"}
ATOMS = ("redundant", "unique_a", "unique_b", "synergistic")


def measure(trained: Trained, folder: Path, seed: int = 0, pictures: bool = True) -> dict[str, Any]:
    """All figures of one run, as plain values. Rankings and the decomposition are on the validation split: the test split was read when
    the run was recorded, and is not read again.

    Raises:
        ConfigError: the model has no modalities, or no view of its users through them.
    """
    model, result = trained.model, trained.result
    if not getattr(model, "modalities", ()):
        raise ConfigError(f"{folder}: {result['model']} has no modality representations to report on")
    model.eval()
    views = {m: (users.detach().cpu(), items.detach().cpu()) for m, (users, items) in _views(model, folder).items()}
    z = _representations(model, views)
    compared = diagnostics.of_one_width({m: x[_trained_items(trained)] for m, x in z.items()})
    best = next(e for e in result["epochs"] if e["epoch"] == result["best_epoch"])
    ks = [int(k) for k in result["config"]["topk"]]
    k = 20 if 20 in ks else max(ks)
    out = {
        "folder": str(folder),
        **{
            k: result[k]
            for k in ("model", "backbone", "plugin", "dataset", "seed", "best_epoch", "valid", "test", "epochs")
        },
        "valid_metric": str(result["config"]["valid_metric"]).lower(),
        "modalities": list(z),
        "readout": result.get("readout"),
        "trained_against": result["config"]["mi_estimator"] if result["config"].get("redundant_weight") else None,
        "rates": {name.partition("/")[2]: value for name, value in best["logs"].items() if name.startswith("rate/")},
        "ranking": {"all": _ranking(trained, model, ks)}
        | {m: _ranking(trained, Unimodal(model, *view), ks) for m, view in views.items()},
        "slices": {
            "k": k,
            "popularity": slices.by_popularity(trained, k),
            "history": slices.by_history(trained, k),
        },
        "redundancy": diagnostics.redundancy(compared, seed),
        "why": _why(trained, seed),
    }
    users, chosen, relevant = _pairs(trained, seed)
    scores = diagnostics.modality_scores(views, users, chosen)
    out["decomposition"] = diagnostics.decompose(scores, relevant, seed=seed)
    if pictures:
        out["tsne"] = _tsne(compared, seed)
    return out


@torch.no_grad()
def _views(model: Any, folder: Path) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """Modality -> users and items as it alone sees them, (U, d) and (I, d): where a plug-in has content of its own, histories and zhat,
    whatever weight their score has; the backbone's views elsewhere.

    Raises:
        ConfigError: the model has no view of its users through a modality.
    """
    if isinstance(model, Channel) and model.settings.readout != "none":
        unit, _ = model.catalogue()
        everybody = torch.arange(model.n_users, device=model.weight.device)
        return {m: (profiles(model.histories, z, everybody), z) for m, z in unit.items()}
    views = model.evaluation_embeddings().views
    if lacking := [m for m in model.modalities if m not in views]:
        raise ConfigError(f"{folder}: the model has no view of its users through {', '.join(lacking)}")
    return {m: views[m] for m in model.modalities}


@torch.no_grad()
def _representations(model: Any, views: Mapping[str, tuple[torch.Tensor, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """Modality -> (I, d) what scores are made of: zhat where they read content, the means of the backbone's encoders elsewhere."""
    if isinstance(model, Channel) and model.settings.readout != "none":
        return {m: items for m, (_, items) in views.items()}
    return {m: mean.detach().cpu() for m, mean in model.encode_items().mean.items()}


def _why(trained: Trained, seed: int) -> list[dict[str, Any]]:
    """The best item of a few users of the validation split and the parts of its score; none where scores read no content."""
    model = trained.model
    if not isinstance(model, Channel) or not model.reads_content:
        return []
    ids = trained.splits.valid.users.cpu().numpy()
    chosen = np.sort(np.random.default_rng(seed).choice(ids, min(_WHY_USERS, len(ids)), replace=False))
    out = []
    for user in trained.users[chosen].tolist():
        for entry in explain(trained, user, top=1)["items"]:
            out.append({"user": user, **entry, "history": entry["history"][:3]})
    return out


def _trained_items(trained: Trained) -> torch.Tensor:
    """Items of the training split: of the others a model has learnt nothing."""
    return trained.splits.parts[0].inter_feat[trained.dataset.iid_field].unique()


def _ranking(trained: Trained, model: Any, ks: Sequence[int]) -> dict[str, float]:
    return rank(model, trained.splits.valid, ("recall", "ndcg"), ks, trained.dataset.uid_field).means


def _pairs(trained: Trained, seed: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(users, items, relevant): validation interactions, and for each a training item that its user has in no split."""
    dataset = trained.dataset
    uid, iid = dataset.uid_field, dataset.iid_field
    valid = trained.splits.parts[1].inter_feat
    rng = np.random.default_rng(seed)
    pick = rng.permutation(len(valid))[:_PAIRS]
    users, items = valid[uid].numpy()[pick], valid[iid].numpy()[pick]
    n = dataset.item_num
    owned = np.unique(
        np.concatenate([p.inter_feat[uid].numpy() * n + p.inter_feat[iid].numpy() for p in trained.splits.parts])
    )
    candidates = _trained_items(trained).numpy()
    negatives = np.empty_like(items)
    open_ = np.arange(len(users))
    for _ in range(1000):
        if not len(open_):
            break
        negatives[open_] = rng.choice(candidates, len(open_))
        cells = users[open_] * n + negatives[open_]
        open_ = open_[owned[np.searchsorted(owned, cells).clip(max=len(owned) - 1)] == cells]
    keep = np.ones(len(users), dtype=bool)
    keep[open_] = False  # users who have (nearly) every item
    users, items, negatives = users[keep], items[keep], negatives[keep]
    relevant = np.repeat([True, False], len(users))
    return (
        torch.from_numpy(np.tile(users, 2)),
        torch.from_numpy(np.concatenate([items, negatives])),
        torch.from_numpy(relevant),
    )


def _tsne(z: Mapping[str, torch.Tensor], seed: int) -> dict[str, list[list[float]]]:
    from sklearn.manifold import TSNE

    rows = np.random.default_rng(seed).permutation(len(next(iter(z.values()))))[:_POINTS]
    stacked = np.concatenate([x.numpy()[rows] for x in z.values()])
    perplexity = min(30.0, (len(stacked) - 1) / 3)
    xy = TSNE(perplexity=perplexity, init="pca", random_state=seed).fit_transform(stacked)
    return {m: np.round(part, 3).tolist() for m, part in zip(z, np.split(xy, len(z)), strict=True)}


@process.as_found()
def build(
    folders: Sequence[Path],
    data_path: Path | None = None,
    pictures: bool = True,
    seed: int = 0,
    told: Callable[[str], None] = lambda text: None,
) -> dict[str, Any]:
    """Measure runs, plain ones before their +MRdIB; see `measure`. `told` hears of each run before it is measured."""
    torch.set_num_threads(1)  # many small steps: more threads cost more than they bring (docs/performance.md)
    results = {folder: record.load_result(folder) for folder in folders}
    order = sorted(
        results,
        key=lambda f: (*(results[f][k] for k in ("dataset", "backbone", "seed")), results[f]["plugin"] is not None),
    )
    runs = []
    for n, folder in enumerate(order, 1):
        told(f"run {n} of {len(order)}: {folder}")
        runs.append(measure(load(folder, data_path), folder, seed, pictures))
    for run, label in zip(runs, _labels(runs), strict=True):
        run["label"] = label
    return {"version": REPORT_VERSION, "seed": seed, "runs": runs}


def _labels(runs: Sequence[Mapping[str, Any]]) -> list[str]:
    """Names as short as they can be and still distinct."""
    parts: list[Callable[[Mapping[str, Any]], str]] = [
        lambda r: r["model"],
        lambda r: f"{r['model']}, seed {r['seed']}",
        lambda r: f"{r['model']}, {r['dataset']}",
        lambda r: f"{r['model']}, {r['dataset']}, seed {r['seed']}",
        lambda r: Path(r["folder"]).name,
    ]
    for part in parts:
        labels = [part(r) for r in runs]
        if len(set(labels)) == len(labels):
            return labels
    return [r["folder"] for r in runs]


def write(report: Mapping[str, Any], path: Path) -> list[Path]:
    """FILE.html and FILE.json. Returns both paths."""
    page = render(report)
    data = path.with_suffix(".json")
    record.write_json(data, report)
    write_atomically(path, page.encode())
    return [path, data]


def render(report: Mapping[str, Any]) -> str:
    """The page: every picture inside, nothing loaded from elsewhere.

    Raises:
        ConfigError: Jinja2 or matplotlib is not installed.
    """
    try:
        import jinja2

        from mmrec_mrdib.experiment import figures
    except ImportError as error:
        raise ConfigError(f"{error}; the page needs: pip install 'mmrec-mrdib[report]'") from error

    runs = report["runs"]

    def picture(data: bytes, form: str = "svg+xml") -> str:
        return f"data:image/{form};base64,{base64.b64encode(data).decode()}"

    def bars(panels: Mapping[str, Any], ylabel: str) -> list[str]:
        """One picture a panel: a page as narrow as one shows them below each other."""
        return [picture(figures.bars({title: groups}, ylabel, "svg")) for title, groups in panels.items()]

    metrics = [m for m in ("recall@20", "ndcg@20") if m in runs[0]["ranking"]["all"]] or list(
        runs[0]["ranking"]["all"]
    )[:2]
    measures = {
        "mine": "fresh MINE, held-out items (nats)",
        "gaussian": "Gaussian (nats)",
        "cka": "linear CKA (0 to 1)",
    }
    pairs = list(dict.fromkeys(pair for r in runs for pair in r["redundancy"]))
    scores = list(dict.fromkeys(name for r in runs for name in r["ranking"]))
    rated = {r["label"]: r["rates"] for r in runs if r["rates"]}
    # Everywhere the runs are the bars of a group, in the same colours: what is to be compared stands side by side.
    pictures: dict[str, Any] = {
        "curves": {
            r["label"]: [
                picture(figures.curves("", {name: lines}, r["best_epoch"], "svg"))
                for name, lines in figures.progress(r["epochs"], r["valid_metric"]).items()
            ]
            for r in runs
            if len(r["epochs"]) > 1  # one pass has no curve
        },
        "slices": bars(
            {
                f"{title} (training interactions)": {
                    name: {r["label"]: r["slices"][by][name]["share"] for r in runs} for name in runs[0]["slices"][by]
                }
                for by, title in SLICES.items()
            },
            f"share found in the top {runs[0]['slices']['k']}",
        ),
        "ranking": bars(
            {m: {n: {r["label"]: r["ranking"].get(n, {}).get(m) for r in runs} for n in scores} for m in metrics},
            "valid",
        ),
    }
    if rated:
        modalities = dict.fromkeys(m for rates in rated.values() for m in rates)
        groups = {m: {label: rates.get(m) for label, rates in rated.items()} for m in modalities}
        pictures["rates"] = bars({"rate at the kept epoch": groups}, "nats")
    if pairs:
        pictures["redundancy"] = bars(
            {
                title: {p: {r["label"]: r["redundancy"].get(p, {}).get(key) for r in runs} for p in pairs}
                for key, title in measures.items()
            },
            "dependence",
        )
        pictures["decomposition"] = [
            picture(figures.stacks({pair: parts}, "bits about relevance", "svg"))
            for pair in pairs
            if (parts := {r["label"]: _named(r["decomposition"][pair]) for r in runs if pair in r["decomposition"]})
        ]
    if all("tsne" in r for r in runs):
        pictures["tsne"] = [
            picture(figures.points({r["label"]: {m: np.asarray(xy) for m, xy in r["tsne"].items()}}), "png")
            for r in runs
        ]
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("mmrec_mrdib.experiment"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
    )
    return environment.get_template("report.html").render(
        runs=runs, metrics=metrics, pairs=pairs, pictures=pictures, atoms=ATOMS, slices=SLICES
    )


def _named(atoms: Mapping[str, Any]) -> dict[str, float]:
    names = {
        "redundant": "in both",
        "unique_a": f"only {atoms['a']}",
        "unique_b": f"only {atoms['b']}",
        "synergistic": "synergistic",
    }
    return {name: atoms[key] for key, name in names.items()}
