"""Pools that run one function on many payloads: local processes, or a Ray cluster. A worker's death is one task's failure.

Payloads and results are plain values and travel as JSON. So do the names that were registered in this process (`registry.additions`).
"""

from __future__ import annotations

import json
import logging
import multiprocessing
import os
import signal
import socket
import sys
import threading
import traceback
from collections import deque
from collections.abc import Mapping, Sequence
from multiprocessing import connection as connections
from typing import Any, NamedTuple, Protocol

from mmrec_mrdib import process, registry
from mmrec_mrdib.errors import ConfigError, MRdIBError


class Failure(NamedTuple):
    """Why a task has no result.

    Attributes:
        reason: one line.
        trace: the traceback, where the error is not one the user can mend.
    """

    reason: str
    trace: str = ""

    @property
    def ends_its_process(self) -> bool:
        """Whether the process in which it happened is good for nothing more."""
        return process.gpu_is_lost(self.reason)


Payload = Mapping[str, Any]


class Pool(Protocol):
    """Tasks go in with a key, and come out in the order in which they end."""

    def submit(self, key: str, payload: Payload) -> None: ...

    def next(self) -> tuple[str, dict[str, Any] | Failure]:
        """The next task that ended; waits for it. Not to be called with nothing submitted."""
        ...

    def close(self) -> None:
        """End all work at once."""
        ...


def call(function: str, payload: str, names: str = "{}") -> str:
    """Run 'module:function' on a JSON payload; the outcome as JSON: [result, reason, trace].

    Args:
        names: what is registered where the task comes from, `registry.additions` as JSON.
    """
    process.settle()
    registry.add(json.loads(names))
    try:
        return json.dumps([registry.load(function)(json.loads(payload)), "", ""])
    except MRdIBError as error:
        return json.dumps([None, str(error), ""])
    except Exception as error:
        return json.dumps([None, f"{type(error).__name__}: {error}".splitlines()[0], traceback.format_exc()])


def _outcome(text: str) -> dict[str, Any] | Failure:
    result, reason, trace = json.loads(text)
    return Failure(reason, trace) if reason else result


def visible_gpus() -> tuple[str, ...]:
    """GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them."""
    import torch

    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    count = torch.cuda.device_count()  # which ends at the first name that is none
    return tuple(map(str, range(count))) if named is None else tuple(n.strip() for n in named.split(","))[:count]


class LocalPool:
    """Processes of this machine, each kept for many tasks.

    Args:
        function: 'module:function' of one payload.
        jobs: processes.
        gpus: spread over the processes: each sees one, the one that the fewest others see. None: each sees what this process does.
    """

    def __init__(self, function: str, jobs: int, gpus: Sequence[str] = ()) -> None:
        self.function, self.jobs, self.gpus = function, jobs, tuple(gpus)
        self.waiting: deque[tuple[str, str]] = deque()
        self.idle: list[_Worker] = []
        self.busy: list[_Worker] = []

    def submit(self, key: str, payload: Payload) -> None:
        self.waiting.append((key, json.dumps(payload)))
        self._start()

    def _start(self) -> None:
        while self.waiting and len(self.busy) < self.jobs:
            self.busy.append(self._at_work(*self.waiting.popleft()))

    def _at_work(self, key: str, payload: str) -> _Worker:
        """An idle worker or a new one, with the task. Of idle ones some may have died; that is no task's failure."""
        while self.idle:
            worker = self.idle.pop()
            if worker.begin(key, payload):
                return worker
            worker.end()
        taken = [w.gpu for w in (*self.idle, *self.busy)]
        worker = _Worker(self.function, min(self.gpus, key=taken.count, default=None))
        worker.begin(key, payload)  # one that dies as soon as it is born has its end for a result
        return worker

    def next(self) -> tuple[str, dict[str, Any] | Failure]:
        by_handle: dict[Any, _Worker] = {w.connection: w for w in self.busy}
        by_handle |= {w.process.sentinel: w for w in self.busy}
        worker = by_handle[connections.wait(list(by_handle))[0]]
        self.busy.remove(worker)
        key, outcome = worker.key, worker.result()
        if isinstance(outcome, Failure) and (outcome.ends_its_process or not worker.process.is_alive()):
            worker.end()
        else:
            self.idle.append(worker)
        self._start()
        return key, outcome

    def close(self) -> None:
        for worker in self.busy:
            worker.process.kill()
        for worker in (*self.idle, *self.busy):
            worker.end()
        self.busy, self.idle = [], []
        self.waiting.clear()


class _Worker:
    def __init__(self, function: str, gpu: str | None = None) -> None:
        self.gpu = gpu
        context = multiprocessing.get_context("spawn")  # PyTorch's threads do not survive a fork
        self.connection, theirs = context.Pipe()
        names = json.dumps(registry.additions())
        self.process = context.Process(target=_serve, args=(theirs, function, names, gpu), daemon=True)
        self.process.start()
        theirs.close()
        self.key = ""

    def begin(self, key: str, payload: str) -> bool:
        """Hand over a task; False where nobody is there to take it."""
        self.key = key
        try:
            self.connection.send_bytes(payload.encode())
        except OSError:
            return False
        return True

    def result(self) -> dict[str, Any] | Failure:
        try:
            if self.connection.poll():
                return _outcome(self.connection.recv_bytes().decode())
        except (EOFError, ConnectionError):
            pass
        self.process.join()
        code = self.process.exitcode or 0
        if code < 0:
            name = signal.Signals(-code).name
            hint = "; out of memory?" if -code == signal.SIGKILL else ""
            return Failure(f"its process was killed ({name}{hint})")
        return Failure(f"its process ended with exit code {code}")

    def end(self) -> None:
        self.connection.close()  # an idle worker ends by itself
        self.process.join(timeout=5)
        self.process.kill()
        self.process.join()


def _serve(connection: Any, function: str, names: str, gpu: str | None) -> None:
    if gpu is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = gpu  # CUDA reads it when it is first used
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which ends its workers
    parent = multiprocessing.parent_process()
    assert parent is not None

    def end_with_parent() -> None:
        parent.join()  # a parent that is killed tells nobody
        os._exit(1)

    threading.Thread(target=end_with_parent, daemon=True).start()
    while True:
        try:
            payload = connection.recv_bytes().decode()
        except (EOFError, OSError):
            return
        outcome = call(function, payload, names)
        process.release()  # other processes use the same GPU
        connection.send_bytes(outcome.encode())


class RayPool:
    """Tasks on a Ray cluster that is running already. A task whose worker dies is tried again on another one; folders named in
    payloads must be the same on all machines.

    Args:
        function: as for LocalPool.
        address: of the cluster; none: $RAY_ADDRESS, or the one running on this machine.
        cpus: of each task.
        gpu: whether each task gets a GPU for itself, where the cluster has any. Shares of one would be dealt out of the first
            until it is full.

    Raises:
        ConfigError: Ray is not installed, or no cluster is found.
    """

    retries = 3

    def __init__(self, function: str, address: str | None = None, cpus: int = 1, gpu: bool = True) -> None:
        try:
            import ray
        except ImportError as error:
            raise ConfigError("--executor=ray needs Ray: pip install 'mmrec-mrdib[ray]'") from error
        self.ray: Any = ray  # whose stubs know less than its options
        self.function = function
        environment = {
            "OMP_WAIT_POLICY": os.environ.get("OMP_WAIT_POLICY", "PASSIVE"),
            "PYTHONPATH": os.pathsep.join(p for p in sys.path if p),
        }
        address = address or os.environ.get("RAY_ADDRESS") or "auto"
        try:
            if address != "auto":  # Ray itself would try for minutes
                host, _, port = address.removeprefix("ray://").rpartition(":")
                socket.create_connection((host, int(port)), timeout=10).close()
            ray.init(
                address=address,
                runtime_env={"env_vars": environment},
                logging_level=logging.ERROR,
                log_to_driver=False,
            )
        except (OSError, RuntimeError, ValueError) as error:
            reason = str(error).splitlines()[0]
            raise ConfigError(
                f"--executor=ray: no Ray cluster found ({reason}); start one with: ray start --head"
            ) from error
        options = {"num_cpus": cpus, "max_retries": self.retries}
        if gpu and self.ray.cluster_resources().get("GPU", 0) >= 1:  # without one Ray hides all of them
            options |= {"num_gpus": 1, "max_calls": 1}  # a new process for each task: CUDA keeps memory, and errors
        self.remote = self.ray.remote(**options)(call)
        self.keys: dict[Any, str] = {}

    def submit(self, key: str, payload: Payload) -> None:
        self.keys[self.remote.remote(self.function, json.dumps(payload), json.dumps(registry.additions()))] = key

    def next(self) -> tuple[str, dict[str, Any] | Failure]:
        (done, *_), _ = self.ray.wait(list(self.keys), num_returns=1)
        key = self.keys.pop(done)
        try:
            return key, _outcome(self.ray.get(done))
        except self.ray.exceptions.RayError as error:
            return key, Failure(f"Ray: {type(error).__name__}: {str(error).splitlines()[0]}", str(error))

    def close(self) -> None:
        for task in self.keys:
            self.ray.cancel(task, force=True)
        self.keys = {}
        self.ray.shutdown()
