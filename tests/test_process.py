"""Settings of a process: set where nobody has, left alone where somebody has."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

CODE = """
import ctypes, os, sys
from mmrec_mrdib import process
process.settle()
assert "torch" not in sys.modules
print(os.environ["OMP_WAIT_POLICY"])
import resource, torch
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
def work():
    for _ in range(20):
        torch.ones(1 << 20).add_(1)  # 4 MB: a thousand pages
torch.set_num_threads(1)
work()
before = faults()
work()
print(faults() - before)
process.release()
"""


def huge_pages():
    """Whether the system gives large blocks pages of 2 MB by itself."""
    setting = Path("/sys/kernel/mm/transparent_hugepage/enabled")
    return setting.is_file() and "[always]" in setting.read_text()


def run(**environment):
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("OMP_", "MALLOC_"))}
    done = subprocess.run(
        [sys.executable, "-c", CODE], env=kept | environment, capture_output=True, text=True, check=True
    )
    policy, faults = done.stdout.split()
    return policy, int(faults)


@pytest.mark.skipif(sys.platform != "linux", reason="glibc alone has these settings")
def test_memory_is_kept_between_tensors_unless_the_user_decides():
    policy, faults = run()
    assert policy == "PASSIVE" and faults < 1000
    policy, faults = run(OMP_WAIT_POLICY="ACTIVE", MALLOC_MMAP_THRESHOLD_="1000000")
    assert policy == "ACTIVE"
    if not huge_pages():
        assert faults > 15_000  # every tensor's pages anew


GUEST = """
import json, locale, logging, os, random, signal, sys, warnings
import matplotlib
matplotlib.use("svg")
import matplotlib.pyplot as plt
import numpy as np, pandas as pd, torch

plt.plot([1, 2])
torch.set_num_threads(2)
torch.backends.cudnn.benchmark = True
os.environ["CUDA_VISIBLE_DEVICES"] = "7"
np.set_printoptions(precision=3)
warnings.simplefilter("once", FutureWarning)
logging.getLogger().setLevel(logging.ERROR)
logging.getLogger("mmrec_mrdib").setLevel(logging.ERROR)


def state():
    return {
        "environment": dict(os.environ),
        "place": [os.getcwd(), list(sys.argv), list(sys.path)],
        "matplotlib": [matplotlib.get_backend(), plt.get_fignums(), dict(matplotlib.rcParams)],
        "torch": [torch.get_num_threads(), torch.get_default_dtype(), torch.are_deterministic_algorithms_enabled(),
                  torch.is_grad_enabled(), torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic,
                  torch.get_float32_matmul_precision()],
        "numpy": [np.get_printoptions(), np.geterr(), hasattr(np, "float")],
        "pandas": pd.get_option("mode.copy_on_write"),
        "warnings": list(warnings.filters),
        "logging": [(n, logging.getLogger(n).level, list(logging.getLogger(n).handlers)) for n in (None, "mmrec_mrdib", "recbole")],
        "signals": {s: signal.getsignal(s) for s in signal.valid_signals()},
        "streams": [sys.stdout, sys.stderr, sys.excepthook, sys.displayhook],
        "locale": locale.setlocale(locale.LC_ALL),
    }


def changed(before):
    now = state()
    return [key for key in before if repr(before[key]) != repr(now[key])]


# What other packages do when they are loaded, and PyTorch at the first step of any optimiser, is theirs.
import recbole.trainer, torch.utils.tensorboard
parameter = torch.zeros(1, requires_grad=True)
parameter.sum().backward(), torch.optim.Adam([parameter], fused=True).step()
random.seed(5), np.random.seed(5), torch.manual_seed(5)
draws = [random.random(), np.random.rand(), torch.rand(1).item()]
random.seed(5), np.random.seed(5), torch.manual_seed(5)
before = state()
import mmrec_mrdib
told = {"import": changed(before)}
mmrec_mrdib.Config, mmrec_mrdib.load, mmrec_mrdib.MRdIB
told["every module"] = changed(before)
values = {"data_path": sys.argv[1], "epochs": 1, "topk": [5], "valid_metric": "Recall@5", "embedding_size": 4, "threads": 1}
folder = mmrec_mrdib.train("FREEDOM+MRdIB (paper)", "toy", 1, values=values, runs=sys.argv[2])["folder"]
told["train"] = changed(before)
mmrec_mrdib.load(folder).recommend(k=1)
told["load"] = changed(before)
told["draws"] = [random.random(), np.random.rand(), torch.rand(1).item()] == draws
print(json.dumps(told))
"""


def test_the_process_of_the_caller_stays_as_it_was(toy, tmp_path):
    out = subprocess.run(
        [sys.executable, "-c", GUEST, str(toy), str(tmp_path / "runs")],
        capture_output=True,
        text=True,
        timeout=120,
        cwd=tmp_path,
    )
    assert out.returncode == 0, out.stderr
    told = json.loads(out.stdout.splitlines()[-1])
    assert told == {"import": [], "every module": [], "train": [], "load": [], "draws": True}
    assert {p.name for p in tmp_path.iterdir()} == {"runs", "toy"}  # and no folder of logs
