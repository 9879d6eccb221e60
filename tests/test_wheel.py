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

from tests.conftest import ROOT

# Runs the console script as a shell would, and tells which files of the checkout were opened on the way, and where our modules came from.
RUN = """
import runpy, sys
checkout, environment, *sys.argv = sys.argv[1:]
opened = []
def watch(event, arguments):
    if event == "open" and str(arguments[0]).startswith(checkout) and not str(arguments[0]).startswith(environment):
        opened.append(str(arguments[0]))
sys.addaudithook(watch)
try:
    runpy.run_path(sys.argv[0], run_name="__main__")
finally:
    import json, pathlib
    ours = [m.__file__ for n, m in sys.modules.items() if n.partition(".")[0] == "mmrec_mrdib" and m.__file__]
    pathlib.Path("told.json").write_text(json.dumps([opened, ours]))
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


def shipped(*folders):
    """Path in the package -> bytes, of every file of these folders of the checkout."""
    files = [p for f in folders for p in (ROOT / f).rglob("*") if p.is_file() and "__pycache__" not in p.parts]
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
    for name, content in shipped("tests", "benchmarks", "docs").items():
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
    demo = "leaderboard --models VBPR --datasets ml-100k --variants plain,mrdib --seeds 1 --epochs=1 --cold_items=0.1"
    demo += " --columns recall@20,ndcg@20,new:recall@20 --runs runs --output demo"
    own = [str(ROOT), sysconfig.get_path("data"), str(environment / "bin" / "mmrec-mrdib")]
    out = subprocess.run([python, "-c", RUN, *own, *demo.split()], cwd=away, env=env, capture_output=True, text=True, timeout=300)  # fmt: skip
    assert out.returncode == 0, out.stderr
    opened, ours = json.loads((away / "told.json").read_text())
    assert opened == [] and len(ours) > 30 and {Path(f).is_relative_to(site) for f in ours} == {True}
    results = [json.loads(path.read_text()) for path in away.glob("runs/*/result.json")]
    assert {r["model"] for r in results} == {"VBPR", "VBPR+MRdIB"} and all(
        0 < r["test"]["recall@20"] < 1 for r in results
    )
    page = (away / "demo" / "leaderboard.html").read_text()
    assert "VBPR" in page and "MRdIB" in page and "ml-100k" in page
