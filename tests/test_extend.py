"""docs/extend.md is real: its package, put into a folder, does all that ours do. And backbones of an unusual form."""

import copy
import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from recbole.utils import InputType
from torch import nn

from mmrec_mrdib import cli, registry, train
from mmrec_mrdib.errors import ConfigError
from mmrec_mrdib.experiment import run
from mmrec_mrdib.experiment.run import make_config
from mmrec_mrdib.experiment.workers import LocalPool
from mmrec_mrdib.models.base import Embeddings, MultimodalRecommender
from mmrec_mrdib.testing.contract import ContractTests, build, gradients
from mmrec_mrdib.testing.toy import write_mmrec
from tests.conftest import ROOT

PAGE = (ROOT / "docs" / "extend.md").read_text()
SMALL = ["--dataset=toy", "--epochs=2", "--embedding_size=8", "--show_progress=false"]


def install(folder, groups):
    """What pip leaves of a package: its metadata beside it."""
    info = folder / f"{folder.name}-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {folder.name}\nVersion: 1.0\n")
    lines = [
        line for group, names in groups.items() for line in (f"[{group}]", *(f"{k} = {v}" for k, v in names.items()))
    ]
    (info / "entry_points.txt").write_text("\n".join(lines) + "\n")


@pytest.fixture
def registered():
    """The registry, put back afterwards."""
    tables = [table for table, _ in registry.GROUPS.values()]
    before = [copy.copy(table) for table in (*tables, registry.UNUSABLE)]
    yield registry
    for table, entries in zip((*tables, registry.UNUSABLE), before, strict=True):
        table.clear()
        table.update(entries)


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """A folder for sys.path with the package of the page in it, file by file."""
    folder = tmp_path_factory.mktemp("site") / "my_rec_site"
    files = re.findall(r"`([\w./-]+)`[^\n]*:\n\n```\w+\n(.*?)```", PAGE, re.DOTALL)
    assert {"pyproject.toml", "my_rec/pooled.py", "my_rec/properties/search/Pooled.yaml"} <= {name for name, _ in files}
    for name, text in files:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    install(folder, tomllib.loads((folder / "pyproject.toml").read_text())["project"]["entry-points"])
    return folder


@pytest.fixture
def installed(site, registered, monkeypatch):
    monkeypatch.syspath_prepend(site)
    registry.discover()
    return site


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    write_mmrec(folder / "toy", users=40, items=30, dims={"a": 12, "b": 8})
    return folder


@pytest.mark.usefixtures("installed")
class TestPooled(ContractTests):
    model = "Pooled"


def test_it_is_trained_recommended_from_and_exported(installed, data, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    given = [*SMALL, f"--data_path={data}", "--quiet"]
    assert cli.main(["train", "--model", "Pooled", "--compare", "--pooling=max", "--stage_epochs=1", *given]) == 0
    terms = ["--mi_estimator=crosscorr", "--objectives={spread: 0.1}", "--pooling=max"]
    assert cli.main(["train", "--model", "Pooled+MRdIB (paper)", *terms, *given]) == 0
    assert cli.main(["train", "--model", "Pooled+Shrink (strong)", *given]) == 0
    results = {r["model"]: r for r in (json.loads(p.read_text()) for p in Path("runs").glob("*/result.json"))}
    assert results.keys() == {"Pooled", "Pooled+MRdIB", "Pooled+MRdIB (paper)", "Pooled+Shrink (strong)"}
    assert [results[m]["config"]["pooling"] for m in sorted(results)] == ["max", "max", "max", "mean"]
    losses = results["Pooled+MRdIB (paper)"]["epochs"][0]["losses"]
    assert losses["objective/spread"] > 0 and losses["redundant"] > 0
    assert results["Pooled+Shrink (strong)"]["epochs"][0]["losses"]["shrink"] > 0
    plain = next(Path("runs").glob("Pooled-toy-*"))
    assert cli.main(["recommend", str(plain), "--output", "recs.csv"]) == 0
    assert len(Path("recs.csv").read_text().splitlines()) > 40
    assert cli.main(["export", str(plain), "--output", "e.npz"]) == 0
    with np.load("e.npz") as arrays:
        pooled = np.maximum(arrays["item_a"], arrays["item_b"])
        np.testing.assert_allclose(arrays["items"], pooled, rtol=1e-6)
    variant = next(Path("runs").glob("Pooled+MRdIB-toy-*"))
    capsys.readouterr()
    assert cli.main(["explain", str(variant), "--user", "3", "--top", "2", "--json"]) == 0
    for entry in (told := json.loads(capsys.readouterr().out))["items"]:
        content = sum(entry["modalities"].values())
        assert entry["modalities"].keys() == {"a", "b"}
        assert entry["score"] == pytest.approx(entry["backbone"] + content)
        assert sum(part for _, part in entry["history"]) == pytest.approx(content, abs=1e-6)
    assert told["user"] == "3" and len(told["items"]) == 2
    assert cli.main(["tune", "--model", "Pooled", "--trials", "2", *given[:-1]]) == 0
    best = yaml.safe_load(Path("tuned/Pooled-toy/best.yaml").read_text())
    assert best.keys() == {"pooling", "learning_rate"} and best["pooling"] in ("mean", "max")
    capsys.readouterr()
    for wrong, told in (("--poling=max", "Did you mean pooling"), ("--pooling=sum", "--pooling='sum'"),
                        ("--mi_estimator=crosscor", "Did you mean crosscorr"), ("--objectives={sprad: 1}", "Did you mean spread")):  # fmt: skip
        assert cli.main(["train", "--model", "Pooled+MRdIB", wrong, *given]) == 2
        assert told in (line := capsys.readouterr().err) and line.count("\n") == 1, line


def test_it_stands_on_boards_whose_workers_start_anew(installed, data, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    command = ["leaderboard", "--models", "Pooled,BPR", "--datasets", "toy", "--seeds", "1", "--variants", "plain,shrink", "--jobs", "2"]  # fmt: skip
    # What is the package's is for its models alone: BPR has no pooling, and nothing to shrink.
    assert cli.main([*command, *SMALL[1:], "--pooling=max", "--shrink_weight=0.5", "--data_path", str(data)]) == 1
    board = json.loads(Path("leaderboard/leaderboard.json").read_text())
    states = {row["model"]: row["status"] for row in board["rows"]}
    assert states == {"Pooled": "complete", "Pooled+Shrink": "complete", "BPR": "complete", "BPR+Shrink": "failed"}
    assert "no representations to shrink" in json.dumps(board)
    configs = [json.loads(p.read_text())["config"] for p in Path("runs").glob("Pooled*/result.json")]
    assert [c["pooling"] for c in configs] == ["max", "max"]
    assert {c.get("shrink_weight") for c in configs} == {None, 0.5}


def test_a_fresh_process_finds_it_by_its_entry_points(site):
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(site), str(ROOT)])}
    out = subprocess.run(
        [sys.executable, ROOT / "run_mrdib.py", "--help"], env=environment, capture_output=True, text=True, timeout=120
    )
    text = " ".join(out.stdout.split())
    assert out.returncode == 0 and "BM3, Pooled, with or without '+MRdIB'" in text and "'+Shrink (strong)'" in text
    assert str(site / "my_rec/properties/plugin/Shrink.yaml") in text.replace(" ", "")


def test_terms_of_ones_own_have_the_values_that_they_say(installed, tmp_path):
    values = {"mi_estimator": "crosscorr", "redundant_weight": 0.5, "objectives": {"spread": 0.25}}
    model, splits = build("VBPR+MRdIB (paper)", tmp_path, **values)
    batch = next(iter(splits.train))
    model.train()
    enc, _ = model.forward_batch(model.batch(batch))
    model.forward_batch = lambda batch: (enc, model.propagate(enc))  # the same noise
    rows = model.batch(batch).items
    a, b = (z[rows] if enc.items is None else z for z in enc.z.values())
    parts = model.step_loss(batch).parts
    hinge = sum((1 - z.std(0)).clamp_min(0).mean() for z in (a, b))
    torch.testing.assert_close(parts["objective/spread"], 0.25 * hinge)
    corr = torch.corrcoef(torch.cat([a, b], 1).T)[: a.shape[1], a.shape[1] :]
    torch.testing.assert_close(parts["redundant"], 0.5 * 0.5 * corr.square().sum())


def test_names_that_are_taken_or_broken_are_told_and_replace_nothing(registered, tmp_path, monkeypatch):
    folder = tmp_path / "rival"
    install(folder, {
        "mmrec_mrdib.models": {"VBPR": "rival:VBPR", "NeuMF": "rival:NeuMF", "Gone": "rival:Gone", "Odd-one": "rival:Odd", "Text": "json:dumps",
                               "Plain": "recbole.model.general_recommender.bpr:BPR"},
        "mmrec_mrdib.plugins": {"mrdib": "rival:MRdIB"},
    })  # fmt: skip
    monkeypatch.syspath_prepend(folder)
    before = copy.copy(registry.PLUGINS)
    registry.discover()
    assert before == registry.PLUGINS and registry.MODELS["VBPR"].startswith("mmrec_mrdib.")
    for name, told in (("VBPR", "of rival takes a name that is taken"), ("NeuMF", "is taken"), ("Odd-one", "a name of letters"),
                       ("Gone", r"rival:Gone cannot be loaded \(ModuleNotFoundError"), ("Text", "json:dumps is no MultimodalRecommender"),
                       ("Plain", "group mmrec_mrdib.baselines")):  # fmt: skip
        with pytest.raises(ConfigError, match=told):
            make_config(name, "ml-100k")
    assert make_config("FREEDOM+mrdib", "ml-100k")["model"] == "MRdIB"


def test_names_that_a_script_assigns_travel_to_workers(registered):
    registry.MODELS["Assigned"] = f"{__name__}:Uneven"
    pool = LocalPool("mmrec_mrdib.registry:is_multimodal", 1)
    try:
        for name in ("Assigned", "Unassigned"):
            pool.submit(name, name)
        assert dict(pool.next() for _ in range(2)) == {"Assigned": True, "Unassigned": False}
    finally:
        pool.close()


class UnevenPairs(MultimodalRecommender):
    """s(u, i) = sum_m <p_u^m, z_i^m>, each modality as wide as it likes."""

    z_in_score = "yes"

    def __init__(self, config, dataset):
        super().__init__(config, dataset)
        self.widths = {m: 3 + 2 * n for n, m in enumerate(self.modalities)}
        for m, width in self.widths.items():
            self.encoders[m] = nn.Linear(self.feature_dims[m], width)
        self.users = nn.Parameter(torch.randn(self.n_users, sum(self.widths.values())) * 0.1)

    def propagate(self, enc):
        parts = dict(zip(self.widths, self.users.split(list(self.widths.values()), 1), strict=True))
        items = torch.cat(list(enc.z.values()), 1)
        return Embeddings(self.users, items, views={m: (parts[m], z) for m, z in enc.z.items()})

    def loss_parts(self, enc, emb, batch):
        return {"bpr": nn.functional.softplus(-batch.margins(emb.users, emb.items, enc)).mean()}


class Uneven(UnevenPairs):
    """The same without negatives: 1 - cos(p_u, z_i)."""

    input_type = InputType.POINTWISE

    def loss_parts(self, enc, emb, batch):
        assert batch.negative is None
        return {"cosine": 1 - torch.cosine_similarity(self.users[batch.users], emb.items[batch.positive]).mean()}


@pytest.fixture
def uneven(registered):
    registry.MODELS.update({c.__name__: f"{__name__}:{c.__name__}" for c in (Uneven, UnevenPairs)})


@pytest.mark.usefixtures("uneven")
@pytest.mark.parametrize("kind", [k for k in registry.kinds() if k != "plain"])
@pytest.mark.parametrize("model", ["Uneven", "UnevenPairs"])
def test_every_variant_takes_unequal_widths_and_models_without_negatives(tmp_path, model, kind):
    name = registry.Variant(model, *registry.kinds()[kind]).name
    if (model, kind) == ("Uneven", "mrdib-paper"):  # its unique term compares with a sampled negative
        with pytest.raises(ConfigError, match="Uneven is trained without; choose --user_view=history"):
            build(name, tmp_path)
        return
    if (model, kind) == ("Uneven", "unimodal"):
        with pytest.raises(
            ConfigError, match="Unimodal: compares with sampled negatives, and Uneven is trained without"
        ):
            build(name, tmp_path)
        return
    if kind == "fettle":
        with pytest.raises(ConfigError, match=rf"{model}\+FETTLE: aligns views of one width, and of {model}'s items"):
            build(name, tmp_path)
        return
    trains = not kind.startswith("content")
    net, splits = build(name, tmp_path, modalities=3, redundant_weight=0.1 if kind.startswith("mrdib") else None)
    net.train()
    if trains:
        loss, grads = gradients(net, next(iter(splits.train)))
        assert np.isfinite(loss) and grads and all(g.isfinite().all() for g in grads.values())
    if kind == "mrdib-paper":
        inputs = [mi.first.in_features for mi in net.redundancy.estimators.values()]
        assert inputs == [3 + 5, 3 + 7, 5 + 7]
    net.eval()
    interaction = {net.USER_ID: torch.arange(1, 5)}
    assert net.full_sort_predict(interaction).shape == (4, net.n_items)


@pytest.mark.usefixtures("uneven")
@pytest.mark.parametrize("estimator", registry.ESTIMATORS)
def test_every_estimator_takes_unequal_widths(tmp_path, estimator):
    net, splits = build("UnevenPairs+MRdIB (paper)", tmp_path, modalities=3, mi_estimator=estimator, weighting="auto")
    _, grads = gradients(net.train(), next(iter(splits.train)))
    assert all(grads[f"backbone.encoders.{m}.weight"].abs().sum() > 0 for m in net.modalities)


@pytest.mark.usefixtures("uneven")
@pytest.mark.parametrize("model", ["Uneven", "Uneven+MRdIB", "Uneven+MRdIB (joint)"])
def test_models_without_negatives_are_trained_on_positives_alone(data, tmp_path, model):
    given = {"data_path": str(data), "epochs": 2, "show_progress": False}
    result = train(model, "toy", 1, values=given | ({"stage_epochs": 1} if "+" in model else {}), runs=tmp_path)
    assert result["state"] == "complete"
    with pytest.raises(ConfigError, match="no effect here: Uneven is trained without negatives"):
        make_config(
            "Uneven", "toy", values={"data_path": str(data), "train_neg_sample_args": {"distribution": "uniform"}}
        )


@pytest.mark.parametrize("model", ["NeuMF", "EASE"])
def test_backbones_that_are_not_trained_on_pairs_train_first(data, model):
    config = make_config(f"{model}+MRdIB (joint)", "toy", values={"data_path": str(data)})
    with pytest.raises(ConfigError, match=f"{model} is not trained on pairs of items; choose --training=staged"):
        run.build(config)
