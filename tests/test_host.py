"""Models of a checkout of MMRec's form: the suite in miniature, run in processes of their own."""

import hashlib
import json
import os
import pickle
import re
import shlex
import subprocess
import sys
import time

import matplotlib.figure  # noqa: F401  once, not in each fork
import numpy as np
import pytest
import torch._dynamo  # noqa: F401  of optimizers, the same

from mmrec_mrdib import cli
from mmrec_mrdib.errors import ConfigError, DataError
from mmrec_mrdib.experiment import record
from mmrec_mrdib.experiment.run import make_config, prepare
from mmrec_mrdib.hosts import child, repairs, suite
from mmrec_mrdib.significance import paired_bootstrap
from mmrec_mrdib.testing.suite import pickled_graph, write_suite
from tests.conftest import ROOT

SHORT = ("--dataset", "mini", "--epochs=3", "--learning_rate=0.01")


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    return write_suite(tmp_path_factory.mktemp("host"))


@pytest.fixture
def forked(monkeypatch):
    """The child as a fork of this process, which has PyTorch loaded already: a second in place of many."""

    class Done:
        def __init__(self, code):
            self.returncode = code

    stock = subprocess.run

    def run(command, **kwargs):
        if "mmrec_mrdib.hosts.child" not in command:
            return stock(command, **kwargs)
        sys.stdout.flush(), sys.stderr.flush()
        if (pid := os.fork()) == 0:
            suite.subprocess.run = stock
            try:
                code = child.main(command[3:])
                sys.stderr.flush()
            except BaseException:
                code = 70
            os._exit(code)
        deadline = time.monotonic() + 300
        while os.waitpid(pid, os.WNOHANG) == (0, 0) if time.monotonic() < deadline else os.kill(pid, 9):
            time.sleep(0.01)
        return Done(0)

    monkeypatch.setattr(suite.subprocess, "run", run)


def host(checkout, runs, *more, table="hosts.yaml"):
    return cli.main(
        [
            "host",
            "--suite",
            str(checkout / table) if "." in table else table,
            "--root",
            str(checkout),
            "--runs",
            str(runs),
            *SHORT,
            *more,
        ]
    )


def results(runs):
    found = [record.load_result(f) | {"folder": f} for f in sorted(runs.iterdir()) if f.is_dir()]
    return {(r["model"], r["seed"]): r for r in found}


def split_hash(data_path):
    """Of the same file as our own loader reads it: ids, and the pairs of each split, whatever the order."""
    splits = prepare(make_config("Pop", "mini", 1, values={"data_path": str(data_path)}))
    data, digest, names = splits.dataset, hashlib.blake2b(digest_size=8), []
    for column in (data.uid_field, data.iid_field):
        names.append({token: n for n, token in enumerate(sorted(data.field2id_token[column][1:]))})
        digest.update("".join(f"{token}\n" for token in names[-1]).encode())
    for part in splits.parts:
        u, i = (data.id2token(c, part.inter_feat[c].numpy()) for c in (data.uid_field, data.iid_field))
        keys = np.sort([names[0][a] * (len(names[1]) + 1) + names[1][b] for a, b in zip(u, i, strict=True)])
        digest.update(str(len(keys)).encode() + keys.tobytes())
    return digest.hexdigest()


def test_a_stranger_compares_from_the_command_line(checkout, tmp_path):
    """In a process of its own, as a user does; the suite's own main.py gives the same numbers."""
    before = {p: p.stat().st_mtime for p in checkout.rglob("*") if p.is_file() and "__pycache__" not in str(p)}
    command = [
        sys.executable,
        "-m",
        "mmrec_mrdib",
        "host",
        "--suite",
        "mmrec",
    ]
    command += ["--root", str(checkout), "--model", "MiniFREEDOM", "--compare", *SHORT, "--runs", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=400, check=False)
    assert done.returncode == 0, done.stderr
    assert "MiniFREEDOM+MRdIB" in done.stdout and "recall@20" in done.stdout
    for what in ("np.int", "dok_matrix._update", "import of lmdb", "import of torchvision"):
        assert f"repaired in this process: {what}" in done.stderr
    assert "reg_weight: 0.001, the first of [0.001, 0.0]" in done.stderr
    found = results(tmp_path)
    plain = found["MiniFREEDOM", 999]
    assert {m for m, _ in found} == {"MiniFREEDOM", "MiniFREEDOM+MRdIB"}
    assert plain["host"]["its_own"]["test"]["recall@20"] == pytest.approx(plain["test"]["recall@20"], abs=5.1e-5)
    assert plain["host"]["its_own"]["valid"]["ndcg@5"] == pytest.approx(plain["valid"]["ndcg@5"], abs=5.1e-5)
    assert {p: p.stat().st_mtime for p in checkout.rglob("*") if p.is_file() and "__pycache__" not in str(p)} == before


def test_runs_of_hosts_are_as_ours(checkout, tmp_path, forked, capfd):
    """Same folders, users and metrics; paired over users; one data set, one split, however it is read."""
    assert host(checkout, tmp_path, "--model", "MiniBM3", "--variants", "plain,mrdib", "--seeds", "1,2") == 0
    found = results(tmp_path)
    assert set(found) == {(m, s) for m in ("MiniBM3", "MiniBM3+MRdIB") for s in (1, 2)}
    plain, ours = found["MiniBM3", 1], found["MiniBM3+MRdIB", 1]
    assert plain["origin"] == "hosts" and ours["readout"]["rung"] >= 0 and "readout" not in plain
    assert ours["epochs"] == plain["epochs"] and ours["best_epoch"] == plain["best_epoch"]  # one training of the host
    assert found["MiniBM3", 2]["epochs"][0]["losses"] != plain["epochs"][0]["losses"]
    per_user = {}
    for run in (plain, ours):
        with np.load(run["folder"] / "per_user.npz", allow_pickle=False) as file:
            assert file["users"].tolist() == [str(u) for u in range(40)]
            per_user[run["model"]] = dict(zip(file["metrics"].tolist(), file["values"].T, strict=True))
        assert per_user[run["model"]]["ndcg@10"].mean() == pytest.approx(run["test"]["ndcg@10"])
    assert 0 <= paired_bootstrap(per_user["MiniBM3+MRdIB"]["recall@20"] - per_user["MiniBM3"]["recall@20"]).p <= 1
    assert plain["data"]["splits"] == split_hash(checkout / "data")
    assert plain["popularity"]["recall@20"] == pytest.approx(ours["popularity"]["recall@20"])
    assert (plain["folder"] / "result.json").is_file() and json.loads((plain["folder"] / "result.json").read_text())[
        "eval_mask"
    ] == "train"
    with pytest.raises(DataError, match="its model is in that checkout"):
        from mmrec_mrdib.experiment.export import load

        load(plain["folder"])
    # On to a board, beside a model of ours.
    place = ["--dataset", "mini", "--data_path", str(checkout / "data"), "--runs", str(tmp_path / "board")]
    for run in (plain, ours):
        assert cli.main(["leaderboard", "import-run", str(run["folder"]), *place]) == 0
    words = ["leaderboard", "--models", "Pop", "--datasets", "mini", "--seeds", "1", "--output", str(tmp_path / "out")]
    assert cli.main([*words, *place[2:]]) == 0
    rows = {r["model"]: r for r in json.loads((tmp_path / "out" / "leaderboard.json").read_text())["rows"]}
    for run in (plain, ours):
        assert rows[f"{run['model']} [hosts]"]["mean"]["recall@20"] == run["test"]["recall@20"]
        assert rows[f"{run['model']} [hosts]"]["source"] == "measured"


def test_projections_of_the_host_and_what_stops_it(checkout, tmp_path, forked, capfd):
    """A model that shifts ids in place, keeps the table of its last batch, takes a GPU for granted and replaces a parameter by it."""
    arguments = ("--model", "MiniDualGNN", "--variants", "plain,mrdib-paper", "--unique_weight=0.5")
    assert host(checkout, tmp_path, *arguments) == 0
    log = capfd.readouterr().err
    assert "calls of .cuda()" in log and "MiniDualGNN.result, a parameter on a CPU alone" in log
    found = results(tmp_path)
    paper, plain = found["MiniDualGNN+MRdIB (paper)", 999], found["MiniDualGNN", 999]
    assert paper["config"]["mrdib.unique_weight"] == 0.5 and paper["config"]["mrdib.user_view"] == "backbone"
    assert [set(r["epochs"][0]["losses"]) for r in (plain, paper)] == [
        {"loss_1", "loss_2"},
        {"loss_1", "loss_2", "loss_3"},
    ]
    for run in (plain, paper):  # scores are of the recomputed table, for both evaluators
        assert run["host"]["its_own"]["valid"]["recall@20"] == pytest.approx(run["valid"]["recall@20"], abs=5.1e-5)
    assert plain["host"]["known"]["recompute"] == "forward(batch)"


def test_a_model_of_ones_own_by_its_projections(checkout, tmp_path, forked, capfd):
    """Weights 0 and no noise: the host, to all digits. Raw features that train in the host stay, in the plain run, too."""
    off = [f"--mrdib.{t}_weight=0" for t in ("rate", "redundant", "unique", "synergy")]
    off += ["--init_log_var=-200", "--min_log_var=-200"]
    own = ("--projections", "image=image_trs,text=text_trs", "--freeze", "image_embedding.weight,text_embedding.weight")
    assert host(checkout, tmp_path, "--model", "MiniFREEDOM", "--compare", *own, *off, table="mmrec") == 0
    found = results(tmp_path)
    plain, paper = found["MiniFREEDOM", 999], found["MiniFREEDOM+MRdIB (paper)", 999]
    assert paper["test"] == plain["test"] and paper["epochs"][2]["losses"] == plain["epochs"][2]["losses"]
    assert (
        plain["parameters"] < (12 + 8) * 30 + 2000 and "image_embedding.weight stays as it is" in capfd.readouterr().err
    )


def test_pickles_are_for_those_who_trust_them(checkout, tmp_path, forked, capfd):
    file = pickled_graph(checkout)
    try:
        assert host(checkout, tmp_path, "--model", "MiniDualGNN") == 2
        error = capfd.readouterr().err.splitlines()[-1]
        assert (
            error.startswith("error: MiniDualGNN of") and "user_graph_dict.npy" in error and error.endswith("--trust")
        )
        assert not list(tmp_path.iterdir())
        assert host(checkout, tmp_path, "--model", "MiniDualGNN", "--trust", "--epochs=1") == 2  # epochs is given twice
        assert "--epochs is given twice" in capfd.readouterr().err
        assert host(checkout, tmp_path, "--model", "MiniDualGNN", "--trust") == 0
        assert "a pickle can run any code" in capfd.readouterr().err
    finally:
        file.unlink()


@pytest.mark.parametrize("how", ["pickle.load(file)", "pickle.loads(file.read())", "pickle.Unpickler(file).load()"])
def test_what_the_checkouts_own_code_unpickles(tmp_path, how):
    """Refused whichever way it asks, and to nobody else: in a fork, as the repairs stay in their process."""
    (tmp_path / "thing.pkl").write_bytes(pickle.dumps({"a": 1}))
    code = f"import pickle\ndef read(path):\n    with open(path, 'rb') as file:\n        return {how}\n"
    ended = []
    for trust in (False, True):
        if (pid := os.fork()) == 0:
            repairs.apply(tmp_path, trust)
            of_checkout, of_others = {}, {}
            exec(compile(code, str(tmp_path / "models" / "model.py"), "exec"), of_checkout)
            exec(compile(code, "/elsewhere.py", "exec"), of_others)
            try:
                good = of_others["read"](tmp_path / "thing.pkl") == {"a": 1}
                good &= of_checkout["read"](tmp_path / "thing.pkl") == {"a": 1}
                os._exit(0 if good else 3)
            except ConfigError as error:
                os._exit(2 if good and str(error).endswith("--trust") else 3)
            except BaseException:
                os._exit(4)
        ended.append(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
    assert ended == [2, 0]


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (["--model", "MiniFREDOM"], "has no minifredom.py. Did you mean minifreedom"),
        (["--model", "MiniBM3", "--dataset", "baby"], "has no baby.yaml.*It has: mini"),
        (["--model", "MiniBM3", "--learning_rat=1"], "Did you mean learning_rate"),
        (["--model", "MiniBM3", "--variants", "mrdib-paper"], "no projections of MiniBM3 are known"),
        (["--model", "MiniBM3", "--variants", "papr"], "no 'papr'"),
        (["--model", "MiniBM3", "--projections", "image_trs"], "expected modality=path"),
        (["--model", "MiniBM3", "--variants", "plain", "--freeze", "x"], "--freeze: no effect on plain"),
        (["--model", "MiniBM3", "--suite", "mmrek"], "Did you mean mmrec"),
        (["--model", "MiniBM3", "--root", "/nowhere"], "no such folder"),
        (["--model", "MiniBM3", "--seeds", "a"], "expected whole numbers"),
    ],
)
def test_mistakes_are_told_before_anything_runs(checkout, tmp_path, change, match, capsys, monkeypatch):
    monkeypatch.setattr(suite, "run", lambda task: pytest.fail("it ran"))
    given = {"--suite": "mmrec", "--root": str(checkout), "--dataset": "mini", "--runs": str(tmp_path)}
    given |= dict(zip(change[::2], change[1::2], strict=True)) if len(change) % 2 == 0 else {}
    more = [] if len(change) % 2 == 0 else [change[-1], *change[:-1]]
    arguments = [a for pair in given.items() for a in pair] + more
    assert cli.main(["host", *arguments]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and re.search(match, error), error


def test_a_folder_that_is_no_suite_is_told(tmp_path):
    with pytest.raises(ConfigError, match=r"not a suite of MMRec's form.*utils/configurator.py"):
        suite.code_folder(tmp_path)


@pytest.mark.parametrize(
    ("file", "old", "new", "match"),
    [
        ("models/minibm3.py", "import torch\n", "import torch\nimport no_such_package\n", r"needs no_such_package: pip install no-such-package"),
        ("models/minibm3.py", "import torch\n", "import torch\nfrom torchvision import ops\nops.nms(1)\n", "uses ops of torchvision, which is not installed"),
        ("models/minibm3.py", "u, i = self", "u, i = 1 / 0, self", r"ZeroDivisionError.*models/minibm3.py, line"),
        ("utils/utils.py", "def init_seed", "def seeds", "utils/utils.py has no init_seed"),
        ("models/minibm3.py", ".reshape(1)", ".reshape(1) * float('nan')", "a loss became NaN in epoch 0"),
    ],
)  # fmt: skip
def test_a_host_that_cannot_work_says_so_in_one_line(tmp_path, forked, capfd, file, old, new, match):
    root = write_suite(tmp_path / "suite")
    code = (root / "src" / file).read_text()
    assert old in code
    (root / "src" / file).write_text(code.replace(old, new, 1))
    assert host(root, tmp_path / "runs", "--model", "MiniBM3", "--quiet") == 2
    lines = [line for line in capfd.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1 and re.search(match, lines[0]), lines


def test_the_commands_of_the_page(tmp_path, monkeypatch, forked, capfd):
    """docs/suites.md, as a stranger types them."""
    page = (ROOT / "docs" / "suites.md").read_text()
    blocks = [
        text for language, text in re.findall(r"^```(\w*)\n(.*?)^```", page, re.DOTALL | re.MULTILINE) if not language
    ]
    first, *commands = next(b for b in blocks if "write_suite" in b).splitlines()
    monkeypatch.chdir(tmp_path)
    exec(shlex.split(first)[2])
    assert len(commands) == 3
    for command in map(shlex.split, commands):
        assert cli.main(command[1:]) == 0, capfd.readouterr().err
    assert {m for m, _ in results(tmp_path / "runs")} == {
        "MiniFREEDOM", "MiniFREEDOM+MRdIB", "MiniFREEDOM+MRdIB (paper)", "MiniBM3", "MiniBM3+MRdIB", "MiniBM3+Content",
        "MiniBM3+Content (shuffled)",
    }  # fmt: skip


def test_tables_name_what_models_have():
    """Each entry is of the known form, and a fork's table may lean on another."""
    for name in ("mmrec", "mrlib"):
        for model in suite.table(name):
            known = suite.known_of(name, model, {})
            assert known.projections or known.note, model
    assert suite.table("mrlib")["FREEDOM"] == suite.table("mmrec")["FREEDOM"] and "GUME" in suite.table("mrlib")
    assert len(suite.table("mmrec")) == 16
