"""`data check`: every finding at once, and nothing that the loader would take is called an error."""

import json

import numpy as np
import pytest

from mmrec_mrdib import cli
from mmrec_mrdib.data.check import check
from mmrec_mrdib.data.dataset import MultimodalDataset
from mmrec_mrdib.errors import MRdIBError
from mmrec_mrdib.experiment.run import make_config


def by_level(report, level):
    return [f for f in report.findings if f.level == level]


def loads(folder):
    try:
        MultimodalDataset(make_config("VBPR", folder.name, values={"data_path": str(folder.parent)})).build()
    except MRdIBError:
        return False
    return True


def test_a_sound_folder(toy):
    report = check(toy / "toy")
    assert report.usable and report.layout == "MMRec" and not by_level(report, "error") and loads(toy / "toy")
    stats = report.statistics
    assert (stats["users"], stats["items"]) == (40, 30) and stats["interactions"]["valid"] == 40
    values = np.load(toy / "toy" / "a_feat.npy")
    a = stats["modalities"]["a"]
    assert (a["rows"], a["dims"], a["items_without"]) == (30, 12, 0)
    assert a["min"] == pytest.approx(values.min()) and a["mean"] == pytest.approx(values.mean(), abs=1e-6)
    assert a["std"] == pytest.approx(values.std(0).mean(), rel=1e-5)


def test_real_data(lfm2k):
    report = check(lfm2k / "lfm2k")
    assert report.usable and report.statistics["interactions"] == {"train": 44327, "valid": 4799, "test": 7219}
    warnings = by_level(report, "warning")
    assert any(f.where == "vggish_feat.npy" and "|mean| > 3 std in 126 of 128" in f.what for f in warnings)


def test_everything_at_once(toy):
    folder = toy / "toy"
    inter = folder / "toy.inter"
    lines = inter.read_text().splitlines()
    repeated = len(lines) - len({tuple(line.split("\t")[:2]) for line in lines})
    bad = ["x\t1\t1\t0", "1\t-3\t1\t0", "2\t2.5\t1\t0", "3\t4\t1\t9", "99\t5\t1\t1"]
    inter.write_text("\n".join([*lines, lines[1], lines[2], *bad]) + "\n")
    a = np.load(folder / "a_feat.npy")
    a[3, 2], a[7, 0] = np.nan, np.inf
    a[:, 4] = 1.0
    a[:, 6] = a[:, 6] * 0.01 + 5
    np.save(folder / "a_feat.npy", a)
    np.save(folder / "b_feat.npy", np.zeros((7, 3)))
    np.save(folder / "c_feat.npy", np.array([{}], dtype=object))
    report = check(folder)
    errors = {(f.where, f.what.split(";")[0].split(" (")[0]): f for f in by_level(report, "error")}
    assert not report.usable and not loads(folder)
    user = errors["toy.inter", "column userID: expected whole numbers from 0"]
    assert user.count == 1 and user.examples == (f"line {len(lines) + 3}: 'x'",)
    assert errors["toy.inter", "column itemID: expected whole numbers from 0"].count == 2
    assert errors["toy.inter", "column x_label: expected 0"].examples == (f"line {len(lines) + 6}: '9'",)
    assert errors["a_feat.npy", "NaN or infinite values"].examples == ("row 3", "row 7")
    assert any(where == "b_feat.npy" and "7 rows" in what for where, what in errors)
    assert any(where == "c_feat.npy" and "never loaded" in str(f) for (where, _), f in errors.items())
    repairs = [f.what for f in by_level(report, "repair")]
    assert any(f"{repeated + 2} repeated interactions" in r for r in repairs)
    assert any("1 users of valid have no training interaction" in r for r in repairs)
    assert any("7 rows are all 0 and count as missing" in r for r in repairs)
    warnings = {(f.where, f.what.split(":")[0]): f for f in by_level(report, "warning")}
    assert warnings["a_feat.npy", "1 of 12 columns are constant"].examples == ("column 4",)
    assert warnings["a_feat.npy", "|mean| > 3 std in 1 of 12 columns"].examples == ("column 6",)
    assert [f.level for f in report.findings] == sorted(
        (f.level for f in report.findings), key="error repair warning".find
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "no such file"),
        ("", "not a table"),
        ("user\titem\n1\t2\n", "lacks userID, itemID, x_label"),
        ("userID\titemID\tx_label\n0\t0\t0\n0\t1\t1\n", "the test split is empty"),
        ("userID\titemID\tx_label\n0\t0\t0\n0\t1\t1\n1\t1\t2\n", "no user of test has a training interaction"),
        ("userID\titemID\tx_label\n0\t0\t0\n0\t1\t1\n0\t2\t2\n", "have all training items"),
        ("user_id:token\titem:token\n1\t2\n", "lacks item_id:token"),
        ("user_id:token\titem_id:token\n1\t\n", "cells of item_id:token are empty"),
        (b"\xff\xfe\x00", "UTF-8"),
    ],
)
def test_interactions_that_cannot_be_used(toy, text, message):
    folder = toy / "toy"
    if text is None:
        (folder / "toy.inter").unlink()
    else:
        (folder / "toy.inter").write_bytes(text if isinstance(text, bytes) else text.encode())
    report = check(folder)
    assert not report.usable and any(message in f.what for f in by_level(report, "error")), report.findings
    assert report.statistics["modalities"]["a"]["dims"] == 12  # features are looked at all the same


def test_atomic_layout(tmp_path, rng):
    folder = tmp_path / "atom"
    folder.mkdir()
    rows = [f"u{n % 5}\ti{n % 7}" for n in range(35)]
    (folder / "atom.inter").write_text("\n".join(["user_id:token\titem_id:token", *rows, rows[0]]) + "\n")
    np.save(folder / "image_feat.npy", rng.normal(size=(7, 4)))
    report = check(folder)
    assert report.layout == "RecBole" and any("whose features are these" in f.what for f in by_level(report, "error"))
    (folder / "image_ids.txt").write_text("\n".join([*(f"i{n}" for n in range(6)), "other"]) + "\n")
    report = check(folder)
    assert report.statistics["interactions"] == {"all": 35} and report.statistics["users"] == 5
    (error,) = by_level(report, "error")
    assert error.examples == ("i6",) and "no features for 1 of 7 items" in error.what
    assert any("1 rows belong to items without interactions" in f.what for f in by_level(report, "warning"))


def test_the_yaml_beside_the_data_counts(tmp_path, rng):
    folder = tmp_path / "atom"
    folder.mkdir()
    (folder / "atom.inter").write_text("user_id:token\titem_id:token\nu\ti0\nv\ti1\n")
    np.save(folder / "pictures.npy", rng.normal(size=(1, 4)))
    (folder / "pictures.txt").write_text("i0\n")
    (folder / "atom.yaml").write_text(
        "modality_files: {image: {file: pictures.npy, ids: pictures.txt}}\nmissing: mean\n"
    )
    report = check(folder)
    assert report.usable and report.statistics["modalities"]["image"]["items_without"] == 1
    assert "missing=mean" in by_level(report, "repair")[0].what
    (folder / "atom.yaml").write_text("modality_files: {image: {file: nothing.npy}}\n")
    assert any("nothing.npy: no such file" in f.what for f in by_level(check(folder), "error"))
    for broken in ("modality_files: [1]\n", "modality_files: {image: {fil: x}}\n", "{"):
        (folder / "atom.yaml").write_text(broken)
        assert not check(folder).usable


def test_no_features(toy):
    for path in (toy / "toy").glob("*.npy"):
        path.unlink()
    report = check(toy / "toy")
    assert report.usable and any("no <modality>_feat.npy" in f.what for f in by_level(report, "warning"))


def test_command(toy, tmp_path, capsys):
    assert cli.main(["data", "check", str(toy / "toy")]) == 0
    out = capsys.readouterr().out
    assert "MMRec layout; usable" in out and "train items per user" in out
    np.save(toy / "toy" / "a_feat.npy", np.zeros((3, 3)))
    assert cli.main(["data", "check", str(toy / "toy"), "--json"]) == 1
    report = json.loads(capsys.readouterr().out)
    assert report["usable"] is False and report["findings"][0]["level"] == "error"
    assert cli.main(["data", "check", str(toy / "toy")]) == 1
    assert "1 errors: not usable" in capsys.readouterr().out
    assert cli.main(["data", "check", str(tmp_path / "nowhere")]) == 2
    assert "no such folder" in capsys.readouterr().err


def test_a_given_split_is_checked_as_the_loader_reads_it(toy, tmp_path):
    out = tmp_path / "out"
    assert cli.main(["data", "prepare", "mmrec", str(toy / "toy"), "--output", str(out)]) == 0
    report, original = check(out), check(toy / "toy")
    assert report.usable and report.layout == "RecBole" and loads(out)
    for key in ("users", "items", "interactions", "train_items_per_user", "cold_items"):
        assert report.statistics[key] == original.statistics[key]
    (out / "out.yaml").rename(out / "other.yaml")  # nothing says that there is a split
    (error,) = by_level(check(out), "error")
    assert "write 'benchmark_filename: [train, valid, test]' into out.yaml" in error.what and not loads(out)
    (out / "other.yaml").rename(out / "out.yaml")
    (out / "out.valid.inter").write_text("user_id:token\titem_id:token\n")
    assert any("valid split is empty" in f.what for f in by_level(check(out), "error")) and not loads(out)
    (out / "out.valid.inter").unlink()
    assert any(f.where == "out.valid.inter" for f in by_level(check(out), "error")) and not loads(out)


def test_filters_of_the_yaml_are_applied(toy):
    folder = toy / "toy"
    path = folder / "toy.inter"
    path.write_text(path.read_text() + "".join(f"0\t{i}\t1\t0\n" for i in range(30)))  # user 0 has everything
    assert any("have all training items" in f.what for f in by_level(check(folder), "error"))
    (folder / "toy.yaml").write_text("user_inter_num_interval: '[0,29]'\n")
    assert check(folder).usable and check(folder).statistics["users"] == 39 and loads(folder)
    for broken in (
        "user_inter_num_interval: '[0,'\n",
        "val_interval: 3\n",
        "val_interval: {rating: x}\n",
        "encoding: klingon\n",
    ):
        (folder / "toy.yaml").write_text(broken)
        assert not check(folder).usable and not loads(folder), broken


HEAD = "user_id:token\titem_id:token\ttimestamp:float\n"


@pytest.mark.parametrize(
    ("content", "yaml"),
    [
        (("\ufeff" + HEAD + "u\ti\t1\nu\tj\t2\nv\ti\t3\nv\tNA\t4\n").encode(), ""),
        ((HEAD + "u\ti\t1\nu\t\t2\n").encode(), ""),
        ((HEAD + "u\ti\t1\nu\tj\n").encode(), ""),
        ((HEAD + "u\ti\t1\nu\tj\t2\tx\n").encode(), ""),
        ((HEAD + "u\ti\tx\nu\tj\t2\nv\ti\t3\nv\tj\t4\n").encode(), ""),  # a column that is not loaded
        ((HEAD + "u\ti\tx\nu\tj\t2\n").encode(), "load_col: {inter: [user_id, item_id, timestamp]}"),
        (b"user_id:token\titem_id:token\nu\ti\xe9\n", ""),
        (b"user_id:token\titem_id:token\nu\ti\xe9\nu\tj\nv\tj\nv\ti\xe9\n", "encoding: latin-1"),
        (b"user_id:float\titem_id:token\n1\ti\n", ""),
        (b"user_id:token\titem_id:text\n1\ti\n", ""),
        (b"version https://git-lfs.github.com/spec/v1\n", ""),
        ((HEAD + "u\ti\t1\nu\tj\t2\n").encode(), "eval_args: {split: {RS: [8,1,1]}, order: TO, group_by: user, mode: full}"),
    ],
)  # fmt: skip
def test_check_and_loader_say_the_same_of_atomic_files(tmp_path, content, yaml):
    folder = tmp_path / "x"
    folder.mkdir()
    (folder / "x.inter").write_bytes(content)
    (folder / "x.yaml").write_text(yaml)

    def read():
        try:
            MultimodalDataset(make_config("BPR", "x", values={"data_path": str(tmp_path)}))
        except MRdIBError:
            return False
        return True

    assert check(folder).usable == read()


def test_features_of_other_forms_and_names(toy):
    folder = toy / "toy"
    (folder / "image_feat.pt").write_bytes(b"x")
    report = check(folder)
    assert report.usable and any(f.where == "image_feat.pt" and "torch.load" in f.what for f in report.findings)
    (folder / "a_feat.npy").rename(folder / "items_feat.npy")
    assert any("cannot be called 'items'" in f.what for f in by_level(check(folder), "error")) and not loads(folder)
    (folder / "toy.yaml").write_text("modalities: b,c\n")
    assert check(folder).usable and loads(folder)


def test_zeros_only_are_an_error(toy):
    np.save(toy / "toy" / "a_feat.npy", np.zeros((30, 4)))
    assert any("none of the 30 items has a features" in f.what for f in by_level(check(toy / "toy"), "error"))
    assert not loads(toy / "toy")
