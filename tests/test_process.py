"""Settings of a process: set where nobody has, left alone where somebody has."""

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
