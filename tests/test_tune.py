"""Hyper-parameter search: budgets, resumption, sharing, and that it never sees the test split."""

import csv
import json
import signal
import subprocess
import sys
import time

import pytest
import torch
import yaml

from mmrec_mrdib import paths, registry
from mmrec_mrdib.cli import main
from mmrec_mrdib.errors import ConfigError, DataError
from mmrec_mrdib.experiment import run as runs_module
from mmrec_mrdib.experiment import tune
from mmrec_mrdib.mrdib.weighting import TERMS
from mmrec_mrdib.schema import read_yaml
from tests.conftest import ROOT

optuna = pytest.importorskip("optuna", reason="optuna is not installed")
OperationalError = pytest.importorskip("sqlalchemy.exc").OperationalError
SPACE = {"learning_rate": [0.001, 0.01, 0.1], "reg_weight": [0.0, 0.1]}


def search(toy, trials, model="VBPR", **more):
    values = {"data_path": str(toy), "epochs": 3, "embedding_size": 8, "show_progress": False} | more.pop("values", {})
    return tune.tune(model, "toy", trials, values, runs=toy / "runs", **{"space": SPACE, **more})


def study_of(toy, name):
    return optuna.load_study(study_name=name, storage=f"sqlite:///{toy / 'runs' / 'optuna.db'}")


def test_the_budget_is_kept_and_counts_earlier_trials(toy):
    told = []
    first = search(toy, 2, told=told.append)
    assert first.trials == 2 and len(told) == 2
    again = search(toy, 2, told=told.append)
    assert again == first and len(told) == 2  # nothing was trained
    more = search(toy, 4)
    assert more.trials == 4 and more.study == first.study
    points = [tuple(t.params.items()) for t in study_of(toy, more.study).trials if "duplicate_of" not in t.user_attrs]
    assert len(set(points)) == len(points) == 4


def test_a_small_space_is_exhausted_before_the_budget(toy):
    told = []
    found = search(toy, 50, space={"learning_rate": [0.001, 0.01]}, told=told.append)
    assert found.trials == 2 and len(told) == 2


def test_an_interrupted_search_proposes_what_it_would_have_proposed(toy, tmp_path_factory):
    from mmrec_mrdib.testing.toy import write_mmrec

    other = tmp_path_factory.mktemp("other")
    write_mmrec(other / "toy", users=40, items=30, dims={"a": 12, "b": 8, "c": 5}, seed=0)
    whole = search(toy, 5)
    for n in (1, 3, 5):
        pieces = search(other, n)
    assert pieces.params == whole.params and pieces.value == whole.value
    histories = [[t.params for t in study_of(f, whole.study).trials] for f in (toy, other)]
    assert histories[0] == histories[1]


def test_other_questions_are_other_studies(toy):
    names = {
        tune.study_name("VBPR", "toy", seed, (), {"data_path": str(toy), "epochs": epochs}, space)
        for seed in (1, 2)
        for epochs in (3, 4)
        for space in (SPACE, {"reg_weight": [0.0]})
    }
    assert len(names) == 8


def test_the_test_split_is_not_read(toy, monkeypatch):
    read = []
    rank = runs_module.MRdIBTrainer.rank
    monkeypatch.setattr(
        runs_module.MRdIBTrainer, "rank", lambda self, split: read.append(split.name) or rank(self, split)
    )
    search(toy, 2)
    assert set(read) == {"valid"}


def test_hopeless_trials_are_stopped_and_count(toy):
    found = search(
        toy,
        6,
        values={"epochs": 14, "stopping_step": 14},
        space={"learning_rate": [0.1, 0.05, 0.02, 0.01, 1e-9, 1e-8, 1e-7]},
    )
    assert found.trials == 6
    states = [t.state.name for t in study_of(toy, found.study).trials]
    assert states.count("PRUNED") == found.pruned


def test_divergence_is_a_result(toy, monkeypatch):
    from mmrec_mrdib.errors import NonFiniteLossError

    real = tune.best_on_valid

    def sometimes(config, folder, judge):
        if config["learning_rate"] == 0.1:
            raise NonFiniteLossError("loss term bpr became NaN")
        return real(config, folder, judge)

    monkeypatch.setattr(tune, "best_on_valid", sometimes)
    found = search(toy, 6)
    assert found.trials == 6 and found.diverged == found.failed == 2 and found.params["learning_rate"] != 0.1


def test_an_impossible_point_costs_its_trial_and_nothing_else(toy):
    told, values = [], {"knn_k": 5}
    space = {"n_item_layers": [1, 2], "edge_dropout": [0.5, 1.5]}  # rho must be below 1

    def find(trials):
        return tune.tune("FREEDOM", "toy", trials, values | {"data_path": str(toy), "epochs": 1, "embedding_size": 8,
                         "show_progress": False}, runs=toy / "runs", space=space, told=told.append)  # fmt: skip

    found = find(4)
    assert (found.trials, found.failed, found.pruned, found.params["edge_dropout"]) == (4, 2, 0, 0.5)
    assert sum("failed: --edge_dropout=1.5" in line for line in told) == 2
    assert find(9) == found and len(told) == 4  # nothing is queued again
    assert {t.state.name for t in study_of(toy, found.study).trials} == {"COMPLETE", "PRUNED"}
    tune.write(found, "FREEDOM", "toy", None, toy / "runs", toy / "out", 1)
    with (toy / "out" / "trials.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert sorted(row["state"].partition(":")[0] for row in rows) == ["complete"] * 2 + ["failed"] * 2
    assert all("edge_dropout=1.5" in row["state"] for row in rows if row["edge_dropout"] == "1.5")
    with pytest.raises(ConfigError, match=r"none of 1 trials succeeded.*edge_dropout=1\.5"):
        search(toy, 1, space={"edge_dropout": [1.5]}, model="FREEDOM")


def test_what_would_fail_every_trial_shows_at_once(toy):
    with pytest.raises(DataError, match="SOIL needs two modalities"):
        search(toy, 5, model="SOIL", values={"modalities": ["a"]}, space={"contrast_weight": [0.1, 0.01]})
    study = optuna.load_study(
        study_name=optuna.get_all_study_names(f"sqlite:///{toy / 'runs' / 'optuna.db'}")[0],
        storage=f"sqlite:///{toy / 'runs' / 'optuna.db'}",
    )
    assert [t.state.name for t in study.trials] == ["FAIL"]  # not the point's fault: tried again when it is mended


def test_given_means_given(toy, tmp_path, capsys):
    """By value, in a file, for the plug-in alone: it leaves the space, and nothing else does."""
    file = tmp_path / "given.yaml"
    file.write_text("reg_weight: 0.5\n")
    space = {"learning_rate": [0.001, 0.01], "reg_weight": [0.0, 0.1], "unique_weight": [0.1, 0.2]}
    assert tune.searched(space, {"unique_weight": 0, "epochs": 3}, [file]) == {"learning_rate": [0.001, 0.01]}
    with pytest.raises(ConfigError, match=r"nothing is left.*leave out at least one of learning_rate, reg_weight, uni"):
        tune.searched(space, {"learning_rate": 1, "unique_weight": 0}, [file])
    out = tmp_path / "out"
    arguments = ["tune", "--model", "VBPR", "--dataset", "toy", "--data_path", str(toy), "--trials", "1", "--epochs=1",
                 "--embedding_size=8", "--learning_rate=0.02", "--runs", str(toy / "runs"), "--output", str(out)]  # fmt: skip
    assert main(arguments) == 0
    assert set(yaml.safe_load((out / "best.yaml").read_text())) == {"reg_weight"}
    assert "given, so not searched: learning_rate" in capsys.readouterr().err
    study = study_of(toy, tune.study_name("VBPR", "toy", 0, (), {"data_path": str(toy), "epochs": "1", "embedding_size": "8",
                     "learning_rate": "0.02"}, {"reg_weight": tune.search_space("VBPR")["reg_weight"]}))  # fmt: skip
    assert len(study.trials) == 1
    (toy / "toy" / "toy.yaml").write_text("reg_weight: 0.3\n")  # beside the data
    assert main(arguments) == 2 and "all of the search space is given" in capsys.readouterr().err


def test_pruning_can_be_switched_off(toy):
    def pruner(name, pruning):
        return tune._open(optuna, f"sqlite:///{toy / 'x.db'}", name, True, 5, pruning, False).pruner

    assert isinstance(pruner("a", "none"), optuna.pruners.NopPruner)
    assert isinstance(pruner("b", "median"), optuna.pruners.MedianPruner)
    names = {tune.study_name("VBPR", "toy", 1, (), {"data_path": str(toy)}, SPACE, p) for p in tune.PRUNING}
    assert len(names) == 2


def test_variant_and_backbone_share_the_backbones_space():
    for base in registry.MODELS:
        plain, variant, auto = (
            tune.search_space(*a) for a in ((base,), (f"{base}+MRdIB (paper)",), (f"{base}+MRdIB (paper)", "auto"))
        )
        twins = tune.TWINS.get(base, {})
        assert plain == auto and set(variant) - set(plain) == {f"{t}_weight" for t in TERMS}
        assert all(variant[k] == plain[k] for k in plain if k not in twins.values())
        for weight, parameter in twins.items():  # what their sum can reach is what the plain model can
            assert {a + b for a in variant[weight] for b in variant[parameter]} == set(plain[parameter])
            assert 0 not in auto[parameter]  # automatic weights are multiples of the backbone's losses
            told = (ROOT / "docs" / "leaderboard.md").read_text()
            assert f"{base}: `{parameter}` is MRdIB's `{weight}`" in told


@pytest.mark.parametrize("base", registry.MODELS)
def test_twins_are_all_there_are(base, toy):
    """All pairs of a weight of the plug-in and one of the backbone: is it the same to the gradient which of them grows?"""
    ours = [k for k in read_yaml(paths.properties_dir() / "plugin/MRdIB.yaml") if k.endswith("_weight")]
    theirs = [k for k in read_yaml(paths.properties_dir() / "model" / f"{base}.yaml") if k.endswith("_weight")]
    start = dict.fromkeys([*ours, *theirs], 0.5) | {"data_path": str(toy), "embedding_size": 8}
    splits = batch = None

    def gradient(more):
        nonlocal splits, batch
        config = runs_module.make_config(f"{base}+MRdIB (paper)", "toy", 1, values=start | more)
        splits = splits or runs_module.prepare(config)
        batch = batch if batch is not None else next(iter(splits.train))
        torch.manual_seed(0)
        model = registry.model_class("MRdIB")(config, splits.parts[0])
        torch.manual_seed(0)
        torch.stack(list(model.train().step_loss(batch).parts.values())).sum().backward()
        return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])

    at_start = gradient({})
    grown = {k: gradient({k: 0.9}) - at_start for k in (*ours, *theirs)}
    same = {(a, b) for a in ours for b in theirs if torch.allclose(grown[a], grown[b], rtol=1e-3, atol=1e-6)}
    assert all(g.abs().max() > 1e-5 for g in grown.values())
    assert same == set(tune.TWINS.get(base, {}).items())


def test_automatic_weights_are_not_searched(toy):
    with pytest.raises(ConfigError, match=r"unique_weight set themselves.*--weights=auto"):
        tune.tune("VBPR+MRdIB (paper)", "toy", 1, {"data_path": str(toy), "weighting": "auto"}, runs=toy / "runs")


def test_other_code_is_told_and_fresh_forgets(toy, monkeypatch):
    from mmrec_mrdib.experiment import record

    first = search(toy, 1)
    assert first.code == [record.code()]
    monkeypatch.setattr(record, "code", lambda versions=None: "9.9 abcdef0")
    assert search(toy, 2).code == sorted(["9.9 abcdef0", *first.code])
    told = []
    assert search(toy, 1, fresh=True, told=told.append).code == ["9.9 abcdef0"] and len(told) == 1


def test_killed_in_the_middle_nothing_is_lost_or_counted_twice(toy):
    script = (
        "import sys; from tests.test_tune import search; from pathlib import Path\n"
        "search(Path(sys.argv[1]), 4, values={'epochs': 60, 'stopping_step': 60}, told=lambda t: print(t, flush=True))"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", script, str(toy)],
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )
    assert process.stdout.readline().startswith("trial 1 of 4")
    time.sleep(0.2)  # in the middle of the second
    process.send_signal(signal.SIGKILL)
    process.wait()
    told = []
    found = search(toy, 4, values={"epochs": 60, "stopping_step": 60}, told=told.append)
    assert found.trials == 4 and len(told) in (2, 3)
    trials = study_of(toy, found.study).trials
    assert not [t for t in trials if t.state.name == "RUNNING"]
    lost = [t for t in trials if t.state.name == "FAIL"]
    done = [t.params for t in trials if t.state.name in ("COMPLETE", "PRUNED") and "duplicate_of" not in t.user_attrs]
    assert len(done) == 4 and all(any(t.params.items() <= d.items() for d in done) for t in lost)


def test_two_processes_share_one_study(toy):
    script = (
        "import sys; from tests.test_tune import search; from pathlib import Path\n"
        "search(Path(sys.argv[1]), 6, values={'epochs': 20}, told=lambda t: print(t, flush=True))"
    )
    both = [
        subprocess.Popen([sys.executable, "-c", script, str(toy)], stdout=subprocess.PIPE, text=True, cwd=ROOT)
        for _ in range(2)
    ]
    outputs = [p.communicate(timeout=120)[0] for p in both]
    assert [p.returncode for p in both] == [0, 0]
    found = search(toy, 6, values={"epochs": 20})
    told = [line for output in outputs for line in output.splitlines()]
    assert found.trials == 6 == sum(line.startswith("trial ") for line in told), told


def test_the_last_trial_is_begun_once(toy, monkeypatch):
    """Another process begins and ends it after this one saw that a trial is missing, and before it began one itself."""
    study = study_of(toy, search(toy, 1).study)
    own = optuna.samplers.TPESampler

    def the_other_is_faster(**options):
        if options and len(study.trials) == 1:  # a study makes one without options when it is opened
            study.tell(study.ask(), 0.0)
        return own(**options)

    monkeypatch.setattr(optuna.samplers, "TPESampler", the_other_is_faster)
    told = []
    assert search(toy, 2, told=told.append).trials == 2 and not told
    assert [sorted(t.params) for t in study.trials] == [sorted(SPACE), [], []]
    assert "surplus" in study.trials[2].user_attrs
    assert search(toy, 3, told=told.append).trials == 3 and len(told) == 1  # a larger budget goes on


def test_a_process_that_is_too_late_to_create_the_tables_opens_them(toy, monkeypatch):
    """As seen with SQLite: two processes find an empty database, and one of them creates its tables first."""
    original, calls = optuna.storages.RDBStorage.__init__, []

    def late(self, *args, **kwargs):
        calls.append(args)
        if len(calls) < 3:
            raise OperationalError("CREATE TABLE", {}, Exception("table alembic_version already exists"))
        original(self, *args, **kwargs)

    monkeypatch.setattr(optuna.storages.RDBStorage, "__init__", late)
    monkeypatch.setattr(tune.time, "sleep", lambda seconds: None)
    assert search(toy, 1).trials == 1 and len(calls) == 3

    def broken(self, *args, **kwargs):
        raise OperationalError("SELECT", {}, Exception("disk I/O error"))

    monkeypatch.setattr(optuna.storages.RDBStorage, "__init__", broken)
    with pytest.raises(ConfigError, match=r"cannot be opened.*disk I/O error"):
        search(toy, 1)


def test_the_command_writes_what_a_run_can_read(toy, tmp_path, capsys):
    space = tmp_path / "space.yaml"
    space.write_text(yaml.safe_dump({**SPACE, "learning_rate": [0.001, 0.1], "learning_rate_scheduler": [[0.9, 50]]}))
    out = tmp_path / "out"
    arguments = ["tune", "--model", "VBPR+MRdIB (paper)", "--dataset", "toy", "--data_path", str(toy), "--trials", "4", "--epochs=2", "--seed=1",
                 "--embedding_size", "8", "--space", str(space), "--runs", str(tmp_path / "runs"), "--output", str(out)]  # fmt: skip
    assert main(arguments) == 0
    assert "best of 4 trials" in capsys.readouterr().out
    best = yaml.safe_load((out / "best.yaml").read_text())
    assert set(best) == {"learning_rate", "reg_weight", "learning_rate_scheduler"}
    with (out / "trials.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 4 and all(json.loads(row["learning_rate_scheduler"]) == [0.9, 50] for row in rows)
    assert all((out / name).read_bytes().startswith(b"\x89PNG") for name in ("history.png", "importance.png"))
    again = ["train", "--model", "VBPR", "--dataset", "toy", "--data_path", str(toy), "--epochs=1", "--embedding_size=8",
             "--config_files", str(out / "best.yaml"), "--runs", str(tmp_path / "runs"), "--quiet"]  # fmt: skip
    assert main(again) == 0


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--trials", "0"], "expected 1 or more"),
        (["--storage", "nonsense"], "SQLAlchemy URL"),
        (["--space", "absent.yaml"], "no such file"),
        (["--learning_rate=0.1", "--reg_weight=0"], "leave out at least one of reg_weight, learning_rate"),
        (["--seed=x"], "--seed=x"),
    ],
)
def test_mistakes_are_told_in_one_line(toy, tmp_path, capsys, more, message):
    arguments = [
        "tune",
        "--model",
        "VBPR",
        "--dataset",
        "toy",
        "--data_path",
        str(toy),
        "--runs",
        str(tmp_path / "runs"),
    ]
    assert main([*arguments, "--output", str(tmp_path / "out"), *more]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: ") and message in error
    assert not (tmp_path / "out").exists()


def test_a_wrong_value_in_the_space_shows_at_once(toy):
    with pytest.raises(ConfigError, match="reg_weight"):
        search(toy, 2, space={"reg_weight": ["much"]})
    with pytest.raises(ConfigError, match="list of values"):
        bad = toy / "bad.yaml"
        bad.write_text("reg_weight: 3")
        tune.search_space("VBPR", file=bad)
