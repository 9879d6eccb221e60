"""The wheel by itself: built from the checkout and from the source distribution, installed into a fresh environment, run from elsewhere."""

import json
import os
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

from mmrec_mrdib.testing.toy import write_mmrec
from tests.conftest import ROOT

# Runs the console script as a shell would, and writes down which files of the checkout were opened on the way and where our modules came from. The
# board's worker is a fork, which has PyTorch loaded already: seconds less.
RUN = """
import multiprocessing, os, runpy, sys
checkout, environment, told, *sys.argv = sys.argv[1:]
told = os.open(told, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
def watch(event, arguments):
    if event == "open" and str(arguments[0]).startswith(checkout) and not str(arguments[0]).startswith(environment):
        os.write(told, f"opened {arguments[0]}\\n".encode())
sys.addaudithook(watch)
fork = multiprocessing.get_context("fork")
multiprocessing.get_context = lambda kind: fork
try:
    runpy.run_path(sys.argv[0], run_name="__main__")
finally:
    for name, module in sys.modules.items():
        if name.partition(".")[0] == "mmrec_mrdib":
            os.write(told, f"{module.__file__}\\n".encode())
"""


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The folder with the wheel and the source distribution, as an installer asks hatchling for them."""
    backend = pytest.importorskip("hatchling.build", reason="hatchling is not installed (extra 'dev')")
    folder = tmp_path_factory.mktemp("dist")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        backend.build_sdist(str(folder))
        backend.build_wheel(str(folder))
    return folder


def contents(wheel):
    with zipfile.ZipFile(wheel) as archive:
        return {name: archive.read(name) for name in archive.namelist() if not name.endswith("/")}


def shipped(folder, pattern="*"):
    """Path in the package -> bytes, of every file of this folder of the checkout."""
    files = [p for p in (ROOT / folder).rglob(pattern) if p.is_file() and "__pycache__" not in p.parts]
    return {str(p.relative_to(ROOT)): p.read_bytes() for p in files}


def test_wheel_and_source_distribution_hold_everything(built, tmp_path, monkeypatch):
    from hatchling import build

    wheel = contents(next(built.glob("*.whl")))
    package = shipped("mmrec_mrdib") | {f"mmrec_mrdib/{k}": v for k, v in shipped("properties").items()}
    assert {"mmrec_mrdib/experiment/templates/leaderboard.html", "mmrec_mrdib/properties/overall.yaml"} < set(package)
    assert {k: v for k, v in wheel.items() if ".dist-info/" not in k} == package
    with tarfile.open(next(built.glob("*.tar.gz"))) as archive:
        archive.extractall(tmp_path, filter="data")
    (source,) = tmp_path.iterdir()
    for name, content in (shipped("tests", "*.py") | shipped("benchmarks", "*.py")).items():
        assert (source / name).read_bytes() == content
    assert all((source / name).is_file() for name in ("Makefile", "constraints.txt", "README.md", "LICENSE"))
    (tmp_path / "again").mkdir()
    monkeypatch.chdir(source)
    assert contents(tmp_path / "again" / build.build_wheel(str(tmp_path / "again"))) == wheel


def test_the_installed_wheel_runs_the_demo_far_from_the_checkout(built, tmp_path):
    environment, away = tmp_path / "environment", tmp_path / "away"
    away.mkdir()
    venv.create(environment)
    python = environment / "bin" / "python"
    # what it depends on lies beside this Python; a path in a .pth file brings no editable installation along
    (site,) = (environment / "lib").glob("python*/site-packages")
    (site / "beside.pth").write_text("\n".join({sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}))
    env = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    pip = [sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-deps", "--no-index", "--no-compile", "--no-warn-script-location"]  # fmt: skip
    subprocess.run([*pip, next(built.glob("*.whl"))], env=os.environ, check=True, timeout=120)
    # the command of 'make demo', in small
    write_mmrec(away / "datasets" / "toy", users=40, items=30, dims={"image": 8, "text": 5})
    demo = "leaderboard --models VBPR --datasets toy --variants plain,mrdib --seeds 1 --epochs=1 --embedding_size=8"
    script = environment / "bin" / "mmrec-mrdib"
    command = [python, "-c", RUN, ROOT, sysconfig.get_path("data"), "told", script, *demo.split(), "--output", "demo"]
    out = subprocess.run(command, cwd=away, env=env, capture_output=True, text=True, timeout=300)
    assert out.returncode == 0, out.stderr
    told = (away / "told").read_text().splitlines()
    assert len(told) > 30 and {Path(line).is_relative_to(site) for line in told} == {True}
    results = [json.loads(path.read_text()) for path in away.glob("runs/*/result.json")]
    assert {r["model"] for r in results} == {"VBPR", "VBPR+MRdIB"}
    assert all(0 < r["test"]["recall@20"] <= 1 for r in results)
    page = (away / "demo" / "leaderboard.html").read_text()
    assert "VBPR+MRdIB" in page and "toy" in page
