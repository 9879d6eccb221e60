"""Hyper-parameter search: budgets, resumption, sharing, and that it never sees the test split."""

import signal
import subprocess
import sys
import time

import pytest
import yaml

from mmrec_mrdib.cli import main
from mmrec_mrdib.errors import ConfigError
from mmrec_mrdib.experiment import run as runs_module
from mmrec_mrdib.experiment import tune
from tests.conftest import ROOT

optuna = pytest.importorskip("optuna", reason="optuna is not installed")
OperationalError = pytest.importorskip("sqlalchemy.exc").OperationalError
SPACE = {"learning_rate": [0.001, 0.01, 0.1], "reg_weight": [0.0, 0.1]}


def search(toy, trials, **more):
    values = {"data_path": str(toy), "epochs": 3, "embedding_size": 8, "show_progress": False} | more.pop("values", {})
    return tune.tune("VBPR", "toy", trials, values, runs=toy / "runs", **{"space": SPACE, **more})


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
    assert found.trials == 6 and found.diverged == 2 and found.params["learning_rate"] != 0.1


def test_variant_and_backbone_share_the_backbones_space():
    plain, variant, auto = (tune.search_space(*a) for a in (("VBPR",), ("VBPR+MRdIB",), ("VBPR+MRdIB", "auto")))
    assert plain == auto and plain.items() <= variant.items()
    assert set(variant) - set(plain) == {"rate_weight", "redundant_weight", "unique_weight"}


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
    assert found.trials == 6 == sum(o.count("trial ") for o in outputs)


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
    space.write_text(yaml.safe_dump({**SPACE, "learning_rate": [0.001, 0.01]}))
    out = tmp_path / "out"
    arguments = ["tune", "--model", "VBPR+MRdIB", "--dataset", "toy", "--data_path", str(toy), "--trials", "4", "--epochs=2",
                 "--embedding_size", "8", "--space", str(space), "--runs", str(tmp_path / "runs"), "--output", str(out)]  # fmt: skip
    assert main(arguments) == 0
    assert "best of 4 trials" in capsys.readouterr().out
    best = yaml.safe_load((out / "best.yaml").read_text())
    assert set(best) == {"learning_rate", "reg_weight"}
    assert len((out / "trials.csv").read_text().splitlines()) == 5
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
