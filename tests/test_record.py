"""What a result says of the code that made it."""

import subprocess

import pytest

from mmrec_mrdib import __version__, paths
from mmrec_mrdib.experiment import record
from mmrec_mrdib.experiment import run as run_module


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """A repository with one commit, taken for the one that runs; commits are looked up anew."""

    def git(*words):
        who = ("-c", "user.name=a", "-c", "user.email=a@b")
        subprocess.run(["git", "-C", str(tmp_path), *who, *words], check=True, capture_output=True)

    (tmp_path / "mmrec_mrdib").mkdir()
    (tmp_path / "mmrec_mrdib" / "a.py").write_text("1")
    git("init")
    git("add", ".")
    git("commit", "-m", "first")
    monkeypatch.setattr(paths, "PACKAGE", tmp_path / "mmrec_mrdib")
    monkeypatch.setattr(record, "commit", record.commit.__wrapped__)
    return tmp_path


def test_the_commit_and_a_mark_that_changes_with_the_changes(checkout):
    clean = record.commit()
    assert len(clean) == 40 and record.versions()["git"] == clean
    assert record.code() == f"{__version__} {clean[:7]}" == record.code(record.versions())
    (checkout / "README.md").write_text("changes no number")
    assert record.commit() == clean
    seen = {clean}
    for name, text in (("a.py", "2"), ("a.py", "3"), ("new.py", "4")):
        (checkout / "mmrec_mrdib" / name).write_text(text)
        seen.add(record.commit())
    assert len(seen) == 4 and all(mark.startswith(f"{clean}-dirty-") for mark in seen - {clean})
    assert record.code().startswith(f"{__version__} {clean[:7]}-dirty-")


def test_without_a_checkout_the_version_alone(checkout, monkeypatch):
    monkeypatch.setattr(paths, "PACKAGE", checkout / "mmrec_mrdib" / "installed")
    assert record.commit() == "" and "git" not in record.versions() and record.code() == __version__


def test_results_from_before_this_was_noted():
    assert record.codes({"versions": {"mmrec-mrdib": "0.0.1", "git": "0123456789"}}) == ["0.0.1 0123456"]
    assert record.codes({}) == ["unknown"]


def test_a_run_that_other_code_began_says_so(tmp_path, caplog):
    (tmp_path / "code.txt").write_text("0.0.1 0123456")
    assert run_module._codes(tmp_path) == [record.code()] and not caplog.records  # no checkpoint: begun anew
    (tmp_path / "code.txt").write_text("0.0.1 0123456")
    (tmp_path / "last.pt").touch()
    for _ in range(2):
        assert run_module._codes(tmp_path) == ["0.0.1 0123456", record.code()]
        assert "goes on from what other code trained (0.0.1 0123456)" in caplog.text
