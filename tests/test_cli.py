"""The command line as a user sees it: in processes of its own."""

import json
import os
import re
import signal
import subprocess
import sys
import time

import pytest

from mmrec_mrdib import __version__, cli
from mmrec_mrdib.cli.parameters import joined, parameters
from mmrec_mrdib.errors import ConfigError
from tests.conftest import ROOT

FAST = ["--topk=[5]", "--valid_metric=Recall@5", "--embedding_size=8"]


def call(*arguments, cwd, **env):
    command = [sys.executable, str(ROOT / "run_mrdib.py"), *arguments]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, env=os.environ | env, timeout=120)


def test_compare(toy, tmp_path):
    (tmp_path / "a.yaml").write_text("unique_weight: 0.03\nlearning_rate: 0.002\n")
    out = call("--model", "VBPR", "--dataset", "toy", "--data_path", str(toy), "--config_files", "a.yaml", "--compare", "--seeds", "1,2",
               "--epochs", "2", "--rate_weight=0.02", "--output", "out.json", *FAST, cwd=tmp_path)  # fmt: skip
    assert out.returncode == 0, out.stderr
    results = json.loads((tmp_path / "out.json").read_text())
    assert [(r["model"], r["seed"]) for r in results] == [
        ("VBPR", 1), ("VBPR+MRdIB", 1), ("VBPR", 2), ("VBPR+MRdIB", 2)
    ]  # fmt: skip
    assert results[1]["config"]["rate_weight"] == 0.02
    assert results[1]["config"]["unique_weight"] == 0.03 and "unique_weight" not in results[0]["config"]
    assert [r["config"]["learning_rate"] for r in results] == [0.002] * 4
    mean = [(results[n]["test"]["ndcg@5"] + results[n + 2]["test"]["ndcg@5"]) / 2 for n in (0, 1)]
    line = next(row for row in out.stdout.splitlines() if "ndcg@5" in row)
    shown = [float(x) for x in re.findall(r"\d\.\d{4}", line)]
    assert shown[0] == pytest.approx(mean[0], abs=6e-5) and shown[2] == pytest.approx(mean[1], abs=6e-5)
    assert f"{mean[1] / mean[0] - 1:+.1%}" in line
    assert sum(r["folder"] in out.stdout for r in results) == 4


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model", "VPBR", "--dataset", "ml-100k"], "Did you mean VBPR"),
        (["--model", "VBPR", "--dataset", "nowhere"], "no data set 'nowhere'"),
        (["--model", "VBPR", "--dataset", "ml-100k", "--learning_rat=1"], "learning_rate"),
        (["--model", "VBPR", "--dataset", "ml-100k", "--modalities=titel"], "Did you mean title"),
        (["--model", "VBPR+MRdIB", "--dataset", "ml-100k", "--baseline"], "--model=VBPR with"),
        (["--model", "VBPR+MRdIB (pape)", "--dataset", "ml-100k"], "no such plug-in or preset"),
        (["--model", "VBPR", "--dataset", "ml-100k", "--seeds", "a"], "whole numbers"),
        (["--model", "VBPR", "--dataset", "ml-100k", "--output", "no/such/x.json"], "folder that exists"),
    ],
)
def test_mistakes_are_one_line_and_code_2(arguments, message, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["train", *arguments]) == 2
    lines = [line for line in capsys.readouterr().err.strip().splitlines() if not line.startswith("deriving")]
    assert len(lines) == 1 and lines[0].startswith("error: ") and message in lines[0]
    assert not list(tmp_path.iterdir())


def test_bad_data_leaves_nothing_behind(toy, tmp_path):
    (toy / "toy" / "a_feat.npy").write_bytes(b"rubbish")
    out = call("--model", "VBPR", "--dataset", "toy", "--data_path", str(toy), "--runs", "runs", cwd=tmp_path)
    assert (
        out.returncode == 2
        and out.stderr.strip().splitlines()[-1].startswith("error: ")
        and "Traceback" not in out.stderr
    )
    assert not (tmp_path / "runs").exists()


def test_a_model_that_refuses_the_data_leaves_nothing_behind(toy, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    arguments = ["--model", "SOIL", "--dataset", "toy", "--data_path", str(toy), "--modalities=a", *FAST]
    assert cli.main(["train", *arguments]) == 2
    assert "SOIL needs two modalities" in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


def test_ctrl_c_leaves_a_resumable_run_and_says_how_to_go_on(toy, tmp_path):
    arguments = ["--model", "VBPR", "--dataset", "toy", "--data_path", str(toy), "--baseline", *FAST]
    arguments += ["--epochs=100000", "--stopping_step=100000", "--checkpoint_interval=0"]
    command = [sys.executable, str(ROOT / "run_mrdib.py"), *arguments]
    process = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True)
    until = time.monotonic() + 60
    while not list(tmp_path.glob("runs/*/last.pt")) and time.monotonic() < until:
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    error = process.communicate(timeout=60)[1]
    assert process.returncode == 130, error
    assert re.search(r"epochs 0 to \d+ are saved", error) and "--resume" in error and "Traceback" not in error


def test_help_needs_no_pytorch():
    code = "import sys; from mmrec_mrdib import cli\ntry: cli.main(['train', '--help'])\nexcept SystemExit: pass\n"
    out = subprocess.run(
        [sys.executable, "-c", code + "assert 'torch' not in sys.modules"], capture_output=True, text=True
    )
    assert out.returncode == 0, out.stderr
    assert "--compare" in out.stdout and "examples:" in out.stdout


def test_as_a_module():
    done = subprocess.run(
        [sys.executable, "-m", "mmrec_mrdib", "--version"], capture_output=True, text=True, check=True
    )
    assert done.stdout == f"mmrec-mrdib {__version__}\n"
    assert subprocess.run([sys.executable, "-m", "mmrec_mrdib", "nothing"], capture_output=True).returncode == 2


def test_parameters_in_both_forms():
    known = {"--model", "--resume", "--config_files"}
    given = ["--model", "VBPR", "--reg_weight", "0.1", "--resume", "--config_files", "a", "b", "--epochs=3"]
    assert joined(given, known) == [
        "--model",
        "VBPR",
        "--reg_weight=0.1",
        "--resume",
        "--config_files",
        "a",
        "b",
        "--epochs=3",
    ]
    assert parameters(["--a=1", "--b=x=y"], known) == {"a": "1", "b": "x=y"}
    with pytest.raises(ConfigError, match="given twice"):
        parameters(["--a=1", "--a=2"], known)
    with pytest.raises(ConfigError, match="expected an option"):
        parameters(["stray"], known)
