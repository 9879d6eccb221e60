"""Pools: what a worker's death does, and to whom."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from mmrec_mrdib.errors import ConfigError
from mmrec_mrdib.experiment.tune import tune
from mmrec_mrdib.experiment.workers import Failure, LocalPool, RayPool, _outcome, call, visible_gpus
from tests.conftest import ROOT

TASK = "tests.worker_task:task"


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


def test_workers_see_a_gpu_each_and_one_that_lost_it_is_replaced():
    pool = LocalPool(TASK, 2, ("2", "5"))
    seen = run_all(pool, {"a": {"do": "see"}, "b": {"do": "see"}})
    lost = run_all(pool, {"c": {"do": "poison"}})["c"]
    again = run_all(pool, {"d": {"do": "see"}, "e": {"do": "see"}})
    pool.close()
    assert lost.reason == "RuntimeError: CUDA error: an illegal memory access was encountered" and lost.ends_its_process
    assert not Failure("RuntimeError: CUDA out of memory. Tried to allocate 2.00 GiB").ends_its_process
    for outcomes in (seen, again):
        assert sorted(o["gpu"] for o in outcomes.values()) == ["2", "5"]
    assert len({o["pid"] for o in seen.values()} & {o["pid"] for o in again.values()}) == 1


@pytest.mark.parametrize(
    ("named", "count", "expected"),
    [(None, 2, ("0", "1")), ("3, GPU-5", 2, ("3", "GPU-5")), ("", 0, ()), ("1,-1,2", 1, ("1",)), (None, 0, ())],
)
def test_gpus_are_those_that_are_visible(named, count, expected, monkeypatch):
    monkeypatch.setattr("torch.cuda.device_count", lambda: count)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if named is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", named)
    assert visible_gpus() == expected


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


@pytest.mark.parametrize(("gpus", "asked", "own"), [(2, True, True), (2, False, False), (0, True, False)])
def test_ray_gives_each_task_a_gpu(gpus, asked, own, monkeypatch):
    ray = pytest.importorskip("ray", reason="ray is not installed")
    options = {}
    monkeypatch.setattr(ray, "init", lambda **given: None)
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 8.0} | ({"GPU": float(gpus)} if gpus else {}))
    monkeypatch.setattr(ray, "remote", lambda **given: options.update(given) or (lambda function: function))
    RayPool(TASK, gpu=asked)
    assert options == {"num_cpus": 1, "max_retries": 3} | ({"num_gpus": 1, "max_calls": 1} if own else {})


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


OUT_OF_MEMORY = "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 79.18 GiB"


@pytest.mark.parametrize(
    "told", [OUT_OF_MEMORY, "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"]
)
def test_a_gpu_without_memory_is_one_failed_cell_that_says_what_to_lower(told, toy, tmp_path, monkeypatch):
    def fail(*args, **kwargs):
        raise torch.OutOfMemoryError(told) if told is OUT_OF_MEMORY else RuntimeError(told)

    monkeypatch.setattr("mmrec_mrdib.trainer.MRdIBTrainer._step", fail)
    payload = {
        "kind": "train", "model": "VBPR", "dataset": "toy", "seed": 1, "config_files": [], "fresh": False, "only_complete": False,
        "values": {"data_path": str(toy), "train_batch_size": 512}, "runs": str(tmp_path / "runs"),
    }  # fmt: skip
    outcome = _outcome(call("mmrec_mrdib.experiment.leaderboard:work", json.dumps(payload)))
    assert outcome == Failure(
        "VBPR on toy: the GPU's memory is not enough; lower --train_batch_size (now 512) or --eval_batch_size (now 1048576), or "
        f"--jobs where several share it ({told})"
    )
    assert outcome.ends_its_process == ("error" in told)


def test_a_lost_gpu_is_no_fault_of_a_trial(toy, tmp_path, monkeypatch):
    """Every later trial would fail alike, and be pruned in silence."""

    def fail(*args, **kwargs):
        raise RuntimeError("CUDA error: device-side assert triggered")

    monkeypatch.setattr("mmrec_mrdib.experiment.tune.best_on_valid", fail)
    with pytest.raises(RuntimeError, match="device-side assert"):
        tune("VBPR", "toy", 2, {"data_path": str(toy)}, runs=tmp_path, space={"reg_weight": [0.1, 0.2]})
