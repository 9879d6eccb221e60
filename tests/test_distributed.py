"""One model on two processes is the model of one process with the same global batch."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from mmrec_mrdib import cli, distributed, load_checkpoint, process, train
from mmrec_mrdib import trainer as trainer_module
from mmrec_mrdib.distributed import ALONE, Ranks
from mmrec_mrdib.errors import ConfigError
from mmrec_mrdib.evaluation import RankingSplit
from mmrec_mrdib.experiment.run import best_on_valid, make_config
from mmrec_mrdib.losses import frobenius
from mmrec_mrdib.testing.toy import write_mmrec
from tests import ranks as driver
from tests.conftest import ROOT

gloo = pytest.mark.skipif(
    not torch.distributed.is_available() or not torch.distributed.is_gloo_available(),
    reason="this build of PyTorch has no gloo to join processes by",
)


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """Everything that two processes do in one session of torchrun: its folder, and what it printed."""
    folder = tmp_path_factory.mktemp("two")
    write_mmrec(folder / "toy", users=40, items=30, dims={"a": 12, "b": 8}, seed=0)
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node=2",
        driver.__file__,
        str(folder),
    ]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    done = subprocess.run(
        command, capture_output=True, text=True, env=environment, cwd=folder, timeout=400, check=False
    )
    if not (folder / "outcome-0.json").is_file():
        pytest.fail(done.stderr)
    return folder, done.stderr


def outcome(two, rank):
    return json.loads((two[0] / f"outcome-{rank}.json").read_text())


@gloo
@pytest.mark.parametrize("case", ["rows", "tiny", "stopped", "resumed"])
def test_two_processes_train_what_one_does(two, case, monkeypatch):
    monkeypatch.setattr(trainer_module, "ROWS_PAY", 32)
    one, (first, second) = driver.run(case, two[0], "one"), (outcome(two, rank)[case] for rank in (0, 1))
    assert first["processes"] == 2 and "processes" not in one
    assert Path(one["folder"]).name == Path(first["folder"]).name  # the same configuration
    for ours in (first, second):
        assert ours["best_epoch"] == one["best_epoch"] and len(ours["epochs"]) == len(one["epochs"])
        for metrics in ("valid", "test", "popularity"):
            assert ours[metrics] == pytest.approx(one[metrics], abs=1e-6)
        for epoch, same in zip(ours["epochs"], one["epochs"], strict=True):
            assert epoch["losses"] == pytest.approx(same["losses"], rel=1e-5)
            assert epoch["valid"] == pytest.approx(same["valid"], abs=1e-6)
    a, b = (load_checkpoint(Path(r["folder"]) / "best.pt")["state_dict"] for r in (first, one))
    for name in b:
        torch.testing.assert_close(a[name], b[name], rtol=1e-4, atol=5e-5)
    if case == "stopped":
        assert len(one["epochs"]) < 40 and "itemcoverage@5" in one["test"]


@gloo
def test_they_agree_where_one_of_them_meets_nan(two):
    first, second = (outcome(two, rank)["diverged"] for rank in (0, 1))
    assert first["state"] == second["state"] and first["state"].startswith("diverged at epoch")
    assert first["best_epoch"] == second["best_epoch"] and first["test"] == second["test"]
    assert "another process met NaN" in first["error"] and "NaN in a score" in second["error"]


@gloo
def test_one_run_folder_which_the_first_writes(two):
    first, second = (outcome(two, rank) for rank in (0, 1))
    assert first["wrote"] and not second["wrote"]
    assert first["again"] == second["again"] == first["rows"]["folder"]
    folder = Path(first["rows"]["folder"])
    assert {p.name for p in folder.iterdir()} == {
        "result.json", "per_user.npz", "best.pt", "log.txt", "curves.png", "tensorboard"
    }  # fmt: skip
    assert len(list((folder / "tensorboard").iterdir())) == 1
    assert len((folder / "log.txt").read_text().split("best epoch")) == 2


@gloo
def test_a_process_that_dies_ends_the_others_with_a_line(two):
    folder, told = two
    assert json.loads((folder / "death-0.json").read_text()) == 2 and not (folder / "death-1.json").exists()
    line = next(line for line in told.splitlines() if line.startswith("error: process 0 of 2"))
    assert "lost the other processes" in line and "--resume" in line
    assert not list(folder.glob("two/VBPR-toy-7-*/result.json"))


@pytest.fixture
def launched(monkeypatch):
    """As torchrun starts a process: the second of three."""
    for name, value in {
        "RANK": 1,
        "LOCAL_RANK": 1,
        "WORLD_SIZE": 3,
        "MASTER_ADDR": "localhost",
        "MASTER_PORT": 1,
    }.items():
        monkeypatch.setenv(name, str(value))
    return monkeypatch


def test_places(launched):
    assert process.place() == process.Place(1, 1, 3) and process.several()
    launched.delenv("MASTER_ADDR")  # some schedulers set the others for programs of their own
    assert process.place() == process.Place() and not process.several()


@pytest.mark.parametrize(
    ("model", "values", "told"),
    [
        ("VBPR+MRdIB", {}, r"VBPR\+MRdIB on 3 processes: they train plain VBPR, LightGCN, FREEDOM; .*--baseline"),
        ("MGCN+MRdIB (paper)", {}, r"MGCN\+MRdIB"),
        ("MGCN", {}, "MGCN on 3 processes: .*not checked; start it without torchrun"),
        ("BPR", {}, "BPR on 3 processes"),
        ("LightGCN", {"require_pow": False}, "--require_pow=false on 3 processes"),
        ("VBPR", {"train_neg_sample_args": {"distribution": "popularity"}}, "--train_neg_sample_args on 3 processes"),
    ],
)
def test_what_is_refused(toy, launched, model, values, told):
    config = make_config(model, "toy", values={"data_path": str(toy), **values})
    with pytest.raises(ConfigError, match=told):
        distributed.join(config)
    with pytest.raises(ConfigError, match=told):
        train(model, "toy", values={"data_path": str(toy), **values}, runs=toy / "runs")
    assert not (toy / "runs").exists()
    launched.delenv("RANK")
    assert distributed.join(config) is ALONE


def test_other_commands_and_searches_run_in_one_process(toy, launched, capsys):
    config = make_config("VBPR", "toy", values={"data_path": str(toy)})
    with pytest.raises(ConfigError, match="without torchrun"):
        best_on_valid(config, toy / "scratch")
    assert cli.main(["tune", "--model=VBPR"]) == 2 and not capsys.readouterr().err  # the first of them says so
    launched.setenv("RANK", "0")
    assert cli.main(["tune", "--model=VBPR"]) == 2
    assert capsys.readouterr().err == "error: tune runs in one process: start it without torchrun\n"
    assert cli.main(["train", "--model=MGCN", "--baseline", "--dataset=toy", f"--data_path={toy}"]) == 2
    assert capsys.readouterr().err.startswith("error: process 0 of 3: MGCN on 3 processes")


@pytest.mark.parametrize("n", [1, 2, 3, 7, 8])
def test_shares_are_the_batch_and_weigh_one(n):
    pairs = torch.arange(n)
    shares = [Ranks(rank, 3).share(pairs) for rank in range(3)]
    assert sum(weight for _, weight in shares) == pytest.approx(1)
    mean = sum(weight * part.double().mean() for part, weight in shares)
    assert float(mean) == pytest.approx(pairs.double().mean())
    if n >= 3:
        assert torch.equal(torch.cat([part for part, _ in shares]), pairs)
    assert ALONE.share(pairs)[1] == 1 and ALONE.share(pairs)[0] is pairs


def test_norms_of_shared_rows():
    """What each process has adds up to the norms, and the gradients are those of all rows."""
    torch.manual_seed(0)
    whole = [torch.randn(5, 3), torch.randn(7, 3)]
    zero = torch.zeros(2, 3)
    cuts = [(slice(0, 2), slice(2, 5)), (slice(0, 4), slice(4, 7))]
    sums = torch.stack([x.square().sum() for x in (*whole, zero)])
    parts, grads = 0.0, [[], []]
    for rank in (0, 1):
        own = [x[cut[rank]].clone().requires_grad_() for x, cut in zip(whole, cuts, strict=True)]
        part = frobenius(*own, zero, summed=lambda x: sums)
        part.backward()
        parts += part.item()
        for grad, x in zip(grads, own, strict=True):
            grad.append(x.grad)
    leaves = [x.clone().requires_grad_() for x in whole]
    total = frobenius(*leaves, zero)
    total.backward()
    assert parts == pytest.approx(total.item(), rel=1e-6)
    for leaf, grad in zip(leaves, grads, strict=True):
        torch.testing.assert_close(torch.cat(grad), leaf.grad)


@pytest.mark.parametrize("n", [1, 3, 64, 200, 257])
def test_blocks_of_users_are_as_many_for_each_process(n):
    users = torch.arange(1, n + 1)
    split = RankingSplit("valid", users, torch.ones(n, dtype=torch.long), [], n + 1, 10, 640, ranks=2)
    assert torch.equal(torch.cat([block.users for block in split]), users)
    assert max(len(block.users) for block in split) <= 64
    of_each = [sum(len(b.users) for b in split.blocks[Ranks(rank, 2).part(len(split))]) for rank in (0, 1)]
    assert sum(of_each) == n and max(of_each) <= -(-n // 2) + len(split) // 2
