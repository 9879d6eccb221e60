"""Readers meet rubbish: nothing but a DataError (or a finding) comes of it, and no pickle is ever executed."""

import io
import json
import pickle
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mmrec_mrdib import cli, load
from mmrec_mrdib.data import encode, modality, text
from mmrec_mrdib.data.check import check
from mmrec_mrdib.data.prepare import Collector
from mmrec_mrdib.data.sources import amazon, atomic, mmrec
from mmrec_mrdib.data.sources import table as tables
from mmrec_mrdib.errors import MRdIBError
from mmrec_mrdib.experiment import record

fuzz = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
cells = st.one_of(
    st.text(max_size=6), st.integers(-3, 40).map(str), st.sampled_from(["", "1e3", "nan", "inf", "0x1", '"', "\t"])
)
text_tables = st.lists(st.lists(cells, max_size=5).map("\t".join), max_size=8).map("\n".join)
headed = st.tuples(
    st.sampled_from(["userID\titemID\tx_label\n", "user_id:token\titem_id:token\n", "userID\tuserID\titemID\n", ""]),
    text_tables,
).map("".join)
content = st.one_of(st.binary(max_size=80), headed.map(lambda t: t.encode("utf-8", "surrogatepass")))


def only_our_errors(call, *arguments):
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return call(*arguments)
    except MRdIBError as error:
        assert str(error).strip()
        return None


@fuzz
@given(content)
def test_interactions(tmp_path, data):
    folder = tmp_path / "x"
    folder.mkdir(exist_ok=True)
    path = folder / "x.inter"
    path.write_bytes(data)
    frame = only_our_errors(mmrec.read, path)
    if frame is not None and len(frame):
        assert frame["x_label"].between(0, 2).all() and (frame[["userID", "itemID"]] >= 0).all().all()
    other = folder / mmrec.CSV
    other.write_bytes(data.replace(b"userID\titemID\tx_label", b"user_id\titem_id\tlabel").replace(b"\t", b","))
    frame = only_our_errors(mmrec.read, other)
    if frame is not None and len(frame):
        assert frame["x_label"].between(0, 2).all() and (frame[["userID", "itemID"]] >= 0).all().all()
    other.unlink()
    only_our_errors(atomic.read, folder)
    report = check(folder)  # never raises
    json.dumps(report.plain())


def npy(array):
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


@fuzz
@given(st.data())
def test_feature_files(tmp_path, data):
    whole = bytearray(npy(np.arange(12, dtype=np.float32).reshape(4, 3)))
    for _ in range(data.draw(st.integers(0, 4))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    if data.draw(st.booleans()):
        header = data.draw(st.sampled_from([
            "{'descr': '<f4', 'fortran_order': False, 'shape': (99999999999, 99999999999), }",
            "{'descr': '<f4', 'fortran_order': False, 'shape': (-1, 3), }",
            "{'descr': '|O', 'fortran_order': False, 'shape': (4, 3), }",
            "{'descr': [('a', '<f4')], 'fortran_order': False, 'shape': (4, 3), }",
            "{'descr': '<M8[s]', 'fortran_order': False, 'shape': (4, 3), }",
            "{'descr': '<f4', 'fortran_order': False, 'shape': " + "(" * 90 + ")" * 90 + ", }",
            "__import__('os').system('true')",
            data.draw(st.text(max_size=40)),
        ]))  # fmt: skip
        raw = header.encode("latin1", "replace") + b"\n"
        whole = bytearray(b"\x93NUMPY\x01\x00" + len(raw).to_bytes(2, "little") + raw + bytes(whole[128:]))
    path = tmp_path / "a_feat.npy"
    path.write_bytes(
        bytes(whole[: data.draw(st.integers(0, len(whole)))]) if data.draw(st.booleans()) else bytes(whole)
    )
    rows = only_our_errors(modality.open_rows, path)
    if rows is not None:
        assert rows.ndim == 2
        file = only_our_errors(modality.open_file, "a", path, None, len(rows))
        only_our_errors(modality.align, file, ["[PAD]", *map(str, range(len(rows)))], "standard")
    json.dumps(check(tmp_path).plain())


@fuzz
@given(
    st.one_of(st.binary(max_size=60), st.lists(cells, max_size=6).map(lambda t: "\n".join(t).encode("utf-8", "ignore")))
)
def test_ids(tmp_path, data):
    np.save(tmp_path / "a_feat.npy", np.ones((3, 2)))
    (tmp_path / "a_ids.txt").write_bytes(data)
    file = only_our_errors(modality.open_file, "a", tmp_path / "a_feat.npy", tmp_path / "a_ids.txt", None)
    assert file is None or len(file.row_of) == 3


values = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=8)),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=6), inner, max_size=3)),
    max_leaves=6,
)
names = [
    "reviewerID",
    "user_id",
    "asin",
    "parent_asin",
    "overall",
    "rating",
    "unixReviewTime",
    "timestamp",
    "title",
    "categories",
]
records = st.dictionaries(st.sampled_from(names), values, max_size=8)
lines = st.one_of(
    records.map(lambda r: json.dumps(r).encode()),
    records.map(lambda r: repr(r).encode("utf-8", "ignore")),
    st.binary(max_size=30),
    st.sampled_from([b"[" * 5000, b"{'a': " * 500, b"__import__('os').abort()", b"\x00", b'{"asin": 1e999}']),
)


@fuzz
@given(st.lists(lines, max_size=6))
def test_json_lines(tmp_path, found):
    path = tmp_path / "reviews.json"
    path.write_bytes(b"\n".join(found))
    collector = Collector()
    skipped = only_our_errors(amazon.read_reviews, path, collector, 100)
    assert skipped is None or skipped.count + len(collector) <= sum(len(x.splitlines()) or 1 for x in found) + len(
        found
    )
    if len(collector):
        table = collector.table()
        tokens = [*table.user_tokens, *table.item_tokens]
        (tmp_path / "users.txt").write_text("".join(f"{t}\n" for t in tokens), encoding="utf-8")
        assert text.lines(tmp_path / "users.txt") == tokens and all(tokens)  # whatever an id is, it comes back
    only_our_errors(amazon.write_metadata, path, ["a", "b"], tmp_path / "items.jsonl", 100)
    (tmp_path / "items.txt").write_text("a\nb\n")
    (tmp_path / "items.jsonl").write_bytes(b"\n".join(found))
    only_our_errors(encode.item_texts, tmp_path, ["title"])


@fuzz
@given(
    st.one_of(
        st.binary(max_size=60),
        st.tuples(st.just("u,i,t\n"), text_tables).map(lambda x: "".join(x).encode("utf-8", "ignore")),
    )
)
def test_tables(tmp_path, data):
    for kind in ("csv", "parquet"):
        path = tmp_path / f"x.{kind}"
        path.write_bytes(data)
        only_our_errors(tables.read_interactions, path, {"user": "u", "item": "i", "time": "t"}, Collector(), 3)
        only_our_errors(tables.read_features, path, "u")


# Pickles.


class Trap:
    """Unpickled, it leaves a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


def test_no_pickle_is_ever_executed(toy, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("MMREC_MRDIB_CACHE", str(tmp_path / "cache"))
    sprung = tmp_path / "sprung"
    bait = pickle.dumps(Trap(sprung))
    pickle.loads(bait)
    assert sprung.exists()  # the trap works
    sprung.unlink()
    arguments = [
        "--model",
        "DualGNN",
        "--dataset",
        "toy",
        "--data_path",
        str(toy),
        "--baseline",
        "--epochs=1",
        "--topk=[5]",
    ]
    arguments += ["--valid_metric=Recall@5", "--runs", str(tmp_path / "runs"), "--quiet"]
    assert cli.main(["train", *arguments]) == 0
    (run,) = (tmp_path / "runs").glob("DualGNN*")
    objects = np.array([[Trap(sprung)] * 3] * 30, dtype=object)
    # graph caches
    for path in (tmp_path / "cache" / "graphs").iterdir():
        np.savez(path, rows=objects, cols=objects, values=objects, shape=objects)
    assert cli.main(["train", *arguments]) == 0
    # checkpoints, the best and the one to resume from
    torch.save({"state_dict": Trap(sprung)}, run / "best.pt")
    with pytest.raises(MRdIBError, match="pickled"):
        load(run)
    (run / "best.pt").write_bytes(bait)
    with pytest.raises(MRdIBError):
        load(run)
    (run / "result.json").unlink()
    torch.save({"state_dict": Trap(sprung)}, run / "last.pt")
    assert cli.main(["train", *arguments, "--resume"]) == 2
    (run / "result.json").write_bytes(bait)
    with pytest.raises(MRdIBError):
        record.load_result(run)
    # features, and files that only look like them
    for save in (lambda p: np.save(p, objects), lambda p: p.write_bytes(bait)):
        save(toy / "toy" / "a_feat.npy")
        assert cli.main(["train", *arguments]) == 2
        assert cli.main(["data", "check", str(toy / "toy")]) == 1
    (toy / "toy" / "toy.inter").write_bytes(bait)
    assert cli.main(["data", "check", str(toy / "toy")]) == 1
    reviews = tmp_path / "reviews.json"
    reviews.write_bytes(bait)
    assert cli.main(["data", "prepare", "amazon", "--reviews", str(reviews), "--output", str(tmp_path / "out")]) == 2
    capsys.readouterr()
    assert not sprung.exists()


@pytest.mark.parametrize("name", ["../evil", "..", "a/b", "/etc"])
def test_nothing_is_written_outside(toy, tmp_path, name, capsys):
    before = sorted(p for p in tmp_path.rglob("*"))
    assert cli.main(["train", "--model", "VBPR", "--dataset", name, "--data_path", str(toy)]) == 2
    assert (
        cli.main(["data", "encode", str(toy / "toy"), "--text", "title", "--encoder", "tfidf-svd", "--name", name]) == 2
    )
    arguments = [
        "data",
        "prepare",
        "csv",
        "--interactions",
        "x.csv",
        "--user",
        "u",
        "--item",
        "i",
        "--features",
        f"{name}=x.csv",
    ]
    assert cli.main([*arguments, "--output", str(tmp_path / "out")]) == 2
    capsys.readouterr()
    assert sorted(p for p in tmp_path.rglob("*")) == before
