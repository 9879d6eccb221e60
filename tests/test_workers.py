"""Pools: what a worker's death does, and to whom."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mmrec_mrdib.errors import ConfigError, DataError
from mmrec_mrdib.experiment.workers import Failure, LocalPool, RayPool
from tests.conftest import ROOT


def task(payload):
    """What the tests below run in workers."""
    match payload["do"]:
        case "square":
            return {"value": payload["x"] ** 2, "pid": os.getpid()}
        case "refuse":
            raise DataError("the data is wrong")
        case "crash":
            raise ZeroDivisionError("by zero")
        case "die":
            os.kill(os.getpid(), signal.SIGKILL)
        case "leave":
            os._exit(3)
        case "once":  # is killed the first time, and goes on the second
            mark = Path(payload["mark"])
            if not mark.exists():
                mark.write_text("here")
                os.kill(os.getpid(), signal.SIGKILL)
            return {"value": "second time"}
        case "wait":
            Path(payload["mark"]).write_text(str(os.getpid()))
            time.sleep(60)
            return {}


TASK = "tests.test_workers:task"


def run_all(pool, payloads):
    for key, payload in payloads.items():
        pool.submit(key, payload)
    return dict(pool.next() for _ in payloads)


def test_every_task_gets_its_own_outcome():
    pool = LocalPool(TASK, 2)
    outcomes = run_all(pool, {str(x): {"do": "square", "x": x} for x in range(12)})
    assert {k: o["value"] for k, o in outcomes.items()} == {str(x): x**2 for x in range(12)}
    assert len({o["pid"] for o in outcomes.values()}) == 2  # processes are used again
    pool.close()


def test_errors_and_deaths_touch_nobody_else():
    pool = LocalPool(TASK, 2)
    bad = {kind: {"do": kind} for kind in ("refuse", "crash", "die", "leave")}
    good = {f"good {n}": {"do": "square", "x": n} for n in range(6)}
    outcomes = run_all(
        pool,
        dict(zip(*zip(*[*list(good.items())[:2], *bad.items(), *list(good.items())[2:]], strict=True), strict=True)),
    )
    pool.close()
    assert outcomes["refuse"] == Failure("the data is wrong")
    assert outcomes["crash"].reason == "ZeroDivisionError: by zero" and "in task" in outcomes["crash"].trace
    assert "SIGKILL" in outcomes["die"].reason and "exit code 3" in outcomes["leave"].reason
    assert [outcomes[f"good {n}"]["value"] for n in range(6)] == [0, 1, 4, 9, 16, 25]


def test_a_worker_that_dies_while_idle_is_nobodys_failure():
    pool = LocalPool(TASK, 2)
    first = run_all(pool, {str(x): {"do": "square", "x": x} for x in range(4)})
    for pid in {outcome["pid"] for outcome in first.values()}:
        os.kill(pid, signal.SIGKILL)
    for worker in pool.idle:
        worker.process.join()
    second = run_all(pool, {str(x): {"do": "square", "x": x} for x in range(4)})
    pool.close()
    assert {k: o["value"] for k, o in second.items()} == {str(x): x**2 for x in range(4)}
    assert not {o["pid"] for o in first.values()} & {o["pid"] for o in second.values()}


def test_a_worker_that_dies_at_birth_fails_its_task_alone():
    pool = LocalPool("no.such.module:task", 1)
    outcomes = run_all(pool, {"a": {}, "b": {}})
    pool.close()
    assert all(isinstance(o, Failure) and "no" in o.reason for o in outcomes.values())


def test_workers_end_with_a_killed_parent(tmp_path):
    script = (
        "import sys\nfrom mmrec_mrdib.experiment.workers import LocalPool\n"
        "if __name__ == '__main__':\n"
        f"    pool = LocalPool({TASK!r}, 1)\n"
        "    pool.submit('a', {'do': 'wait', 'mark': sys.argv[1]})\n    pool.next()\n"
    )
    (tmp_path / "parent.py").write_text(script)
    mark = tmp_path / "mark"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    parent = subprocess.Popen([sys.executable, str(tmp_path / "parent.py"), str(mark)], env=environment)
    for _ in range(300):
        if mark.exists() and mark.read_text():
            break
        time.sleep(0.1)
    worker = int(mark.read_text())
    parent.kill()
    parent.wait()
    for _ in range(100):
        try:
            if Path(f"/proc/{worker}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                break
        except FileNotFoundError:
            break
        time.sleep(0.1)
    else:
        pytest.fail("the worker outlived its parent")


def test_ray_without_a_cluster_is_one_clear_line(monkeypatch):
    pytest.importorskip("ray", reason="ray is not installed")
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with pytest.raises(ConfigError, match="ray start --head"):
        RayPool(TASK, "127.0.0.1:1")


def test_ray_runs_tasks_and_survives_a_killed_worker(ray_cluster, tmp_path):
    pool = RayPool(TASK, ray_cluster)
    outcomes = run_all(
        pool,
        {
            "good": {"do": "square", "x": 3},
            "refuse": {"do": "refuse"},
            "killed": {"do": "once", "mark": str(tmp_path / "mark")},
            "other": {"do": "square", "x": 4},
        },
    )
    pool.close()
    assert outcomes["good"]["value"] == 9 and outcomes["other"]["value"] == 16
    assert outcomes["refuse"] == Failure("the data is wrong")
    assert outcomes["killed"] == {"value": "second time"}
