"""From raw files to a folder: the k-core and the split by their properties, every source, and what is refused."""

import gzip
import json
import random

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmrec_mrdib import cli
from mmrec_mrdib.data.check import check
from mmrec_mrdib.data.dataset import MultimodalDataset
from mmrec_mrdib.data.prepare import Collector, finish
from mmrec_mrdib.data.sources import table as tables
from mmrec_mrdib.errors import ConfigError, DataError
from mmrec_mrdib.experiment.run import make_config

RATIOS = (8.0, 1.0, 1.0)
pairs = st.lists(st.tuples(st.integers(0, 12), st.integers(0, 8), st.integers(0, 50)), min_size=1, max_size=150)


def collected(rows):
    collector = Collector()
    for user, item, time in rows:
        collector.add(f"u{user}", f"i{item}", 1.0, float(time))
    return collector.table()


def content(table, labels):
    return {
        (u, i): (t, int(label))
        for u, i, t, label in zip(
            table.user_tokens[table.users], table.item_tokens[table.items], table.times, labels, strict=True
        )
    }


# The k-core and the split.


def naive_core(found, k):
    while True:
        users = pd.Series([u for u, _ in found]).value_counts()
        items = pd.Series([i for _, i in found]).value_counts()
        left = {(u, i) for u, i in found if users[u] >= k and items[i] >= k}
        if left == found:
            return left
        found = left
        if not found:
            return found


@settings(max_examples=60, deadline=None)
@given(pairs, st.integers(1, 4), st.sampled_from(["random", "time"]), st.randoms())
def test_core_and_split(rows, k, order, shuffler):
    expected = naive_core({(f"u{u}", f"i{i}") for u, i, _ in rows}, k)
    if not expected:
        with pytest.raises(DataError, match="no interactions are left"):
            finish(collected(rows), k, order, RATIOS, 0)
        return
    table, labels = finish(collected(rows), k, order, RATIOS, 0)
    found = content(table, labels)
    assert found.keys() == expected and len(table) == len(found)  # each pair once, exactly the k-core
    assert np.bincount(table.users).min() >= k and np.bincount(table.items).min() >= k
    assert table.user_tokens.tolist() == sorted(table.user_tokens)
    for user in range(len(table.user_tokens)):
        mine = labels[table.users == user]
        n = len(mine)
        share = max(n // 10, 1)
        assert (mine == 2).sum() == (share if n >= 2 else 0) and (mine == 1).sum() == (share if n >= 3 else 0)
        if order == "time":
            times = table.times[table.users == user]
            for earlier, later in ((0, 1), (1, 2), (0, 2)):
                if (mine == earlier).any() and (mine == later).any():
                    assert times[mine == earlier].max() <= times[mine == later].min()
    earliest = {}
    for u, i, t in rows:
        earliest[f"u{u}", f"i{i}"] = min(t, earliest.get((f"u{u}", f"i{i}"), t))
    assert all(found[pair][0] == earliest[pair] for pair in found)
    shuffler.shuffle(rows)
    again = finish(collected(rows), k, order, RATIOS, 0)
    assert content(*again) == found  # the order of the lines does not matter
    np.testing.assert_array_equal(again[0].users, table.users)


def test_seeds_and_ratios():
    rows = [(u, i, 0) for u in range(20) for i in range(20)]
    labels = [finish(collected(rows), 1, "random", RATIOS, seed)[1] for seed in (0, 0, 1)]
    assert np.array_equal(labels[0], labels[1]) and not np.array_equal(labels[0], labels[2])
    assert np.bincount(finish(collected(rows), 1, "random", (7, 1, 2), 0)[1]).tolist() == [280, 40, 80]
    assert np.bincount(finish(collected(rows), 1, "random", (9, 0, 1), 0)[1]).tolist() == [360, 0, 40]
    held_out = labels[0].reshape(20, 20) == 2
    assert (held_out.sum(0) > 0).sum() > 10  # not the same items for all


def test_time_is_needed_to_split_by_it():
    collector = Collector()
    collector.add("u", "i", 1.0, float("nan"))
    with pytest.raises(DataError, match="have no time"):
        finish(collector.table(), 1, "time", RATIOS, 0)


# Times are distinct but for 8 and 10: before 8 there are 7 interactions, before 9 there are 9, and 8 of 12 are asked for.
BY_TIME = [
    ("a", "i1", 1), ("a", "i2", 2), ("b", "i1", 3), ("b", "i2", 4), ("a", "i3", 5), ("b", "i3", 6), ("c", "i1", 7),
    ("c", "i2", 8), ("b", "i4", 8), ("a", "i5", 9), ("d", "i6", 10), ("c", "i3", 10),
]  # fmt: skip


def by_time(tmp_path, rows, *more):
    (tmp_path / "log.csv").write_text("".join(f"{u},{i},{t}\n" for u, i, t in [("user", "item", "time"), *rows]))
    columns = ["--user", "user", "--item", "item", "--time", "time", "--core", 1, "--output", tmp_path / "out"]
    return run("csv", "--interactions", tmp_path / "log.csv", *columns, "--split", "global-time", *more)


@pytest.mark.parametrize("seed", [0, 1])
def test_one_point_in_time_for_all_users(tmp_path, capsys, seed):
    rows = random.Random(seed).sample(BY_TIME, len(BY_TIME))
    assert by_time(tmp_path, rows, "--ratios", "8:2:2") == 0
    out = capsys.readouterr().out
    assert "3 users, 5 items, 11 of 12 interactions" in out and "train 7, valid 3, test 1" in out
    assert "split at valid from 8, test from 10" in out
    assert "1 users, left out with 1 interactions and 1 items that nobody else has; 2 items, kept" in out
    folder = tmp_path / "out"
    users, items = ((folder / f"{n}.txt").read_text().split() for n in ("users", "items"))
    assert (users, items) == (["a", "b", "c"], ["i1", "i2", "i3", "i4", "i5"])  # d and i6 are gone
    frame = pd.read_csv(folder / "out.inter", sep="\t")
    found = {(users[r.userID], items[r.itemID], r.timestamp): r.x_label for r in frame.itertuples()}
    assert found == {
        r: 0 if r[2] < 8 else 1 if r[2] < 10 else 2 for r in BY_TIME if r[0] != "d"
    }  # the tie at 8 is valid
    record = json.loads((folder / "prepared.json").read_text())
    assert record["split"] == "global-time" and record["split_points"] == {"valid": 8, "test": 10}
    assert record["fallen_out"] == {"users": 1, "items": 1, "interactions": 1, "items_never_trained": 2}


def test_points_in_time_of_few_times(tmp_path, capsys):
    assert by_time(tmp_path, [("a", "i", 1), ("a", "j", 1), ("a", "k", 2)]) == 2
    assert "2 distinct times cannot make 3 parts" in capsys.readouterr().err
    assert by_time(tmp_path, [(f"u{t}", "i", t) for t in range(20)]) == 2
    assert "all users of the valid part are new" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    assert by_time(tmp_path, BY_TIME, "--ratios", "8:0:2") == 0  # no valid part was asked for
    assert "train 10, valid 0, test 1" in capsys.readouterr().out


@pytest.mark.parametrize("order", [(3, 1, 2), (1, 2, 3)])
def test_every_part_with_a_share_gets_something(order):
    labels = collected([(1, n, t) for n, t in enumerate((1, 1, 1, *order))]).split("global-time", RATIOS, 0)
    assert dict(zip((1, 1, 1, *order), labels.tolist(), strict=True)) == {1: 0, 2: 1, 3: 2}


# Amazon.

YEARS = {
    "2014": lambda u, i, t: {"reviewerID": f"A{u}", "asin": f"B{i:09}", "overall": 5.0, "unixReviewTime": t},
    "2023": lambda u, i, t: {
        "user_id": f"A{u}",
        "asin": "x",
        "parent_asin": f"B{i:09}",
        "rating": 4,
        "timestamp": t * 1000,
    },
}


def reviews(year, n_users=30, n_items=12):
    generator = random.Random(0)
    rows = [(u, i, generator.randrange(10**6)) for u in range(n_users) for i in generator.sample(range(n_items), 8)]
    return [json.dumps(YEARS[year](*row)) for row in rows]


def run(*arguments):
    return cli.main(["data", "prepare", *map(str, arguments)])


@pytest.mark.parametrize("year", YEARS)
@pytest.mark.parametrize("packed", [False, True])
def test_amazon(tmp_path, capsys, year, packed):
    lines = [*reviews(year), "{broken", '{"asin": "B1"}', ""]
    text = "\n".join(lines).encode()
    path = tmp_path / "reviews.json"
    text = b"\xef\xbb\xbf" + text
    path.write_bytes(gzip.compress(text) if packed else text)
    meta = [
        str(
            {
                "asin": "B000000003",
                "title": "It's a \u00e9clair",
                "description": "old\nkind",
                "categories": [["Baby", "Care"]],
            }
        ),
        json.dumps(
            {"parent_asin": "B000000004", "title": "New", "description": ["a", "b"], "store": "S", "features": []}
        ),
        json.dumps({"asin": "B999999999", "title": "not ours"}),
        json.dumps({"asin": "B000000005", "feature": ["soft", "washable"], "title": "half a pair: \ud800"}),
    ]
    (tmp_path / "meta.json").write_text("\n".join(meta) + "\n")
    images = {f"B{n:09}": np.full(4096, n, dtype="<f4") for n in (2, 5, 77)}
    (tmp_path / "images.b").write_bytes(b"".join(k.encode() + v.tobytes() for k, v in images.items()))
    target = tmp_path / "baby"
    files = ["--reviews", path, "--meta", tmp_path / "meta.json", "--images", tmp_path / "images.b"]
    assert run("amazon", *files, "--output", target) == 0
    out = capsys.readouterr().out
    assert "30 users, 12 items, 240 of 240 interactions" in out and "2 lines skipped" in out
    assert {p.name for p in target.iterdir()} == {
        "baby.inter", "prepared.json", "users.txt", "items.txt", "items.jsonl", "image_feat.npy", "image_ids.txt",
    }  # fmt: skip
    assert {p.name for p in tmp_path.iterdir()} == {"reviews.json", "meta.json", "images.b", "baby"}
    how = json.loads((target / "prepared.json").read_text())
    assert how["core"] == 5 and how["seed"] == 2020 and how["reviews"] == [str(path)]
    items = (target / "items.txt").read_text().split()
    assert items == [f"B{n:09}" for n in range(12)]
    told = [json.loads(line) for line in (target / "items.jsonl").read_text().splitlines()]
    assert [t["id"] for t in told] == items
    assert told[3]["title"] == "It's a \u00e9clair" and told[3]["description"] == "old kind"
    assert told[3]["categories"] == "Baby Care" and told[4]["description"] == "a b" and told[4]["brand"] == "S"
    assert told[5]["features"] == "soft washable" and told[5]["title"] == "half a pair: ?"
    assert "line 241: not JSON: '{broken'" in out and "line 242: no reviewerID or user_id" in out
    assert np.load(target / "image_feat.npy")[:, 0].tolist() == [2, 5]
    assert (target / "image_ids.txt").read_text().split() == ["2", "5"]
    frame = pd.read_csv(target / "baby.inter", sep="\t")
    assert frame.columns.tolist() == ["userID", "itemID", "rating", "timestamp", "x_label"]
    assert frame["timestamp"].max() > 1000
    config = make_config("VBPR", "baby", values={"data_path": str(tmp_path), "missing": "mean"})
    parts = MultimodalDataset(config).build()
    assert [len(p) for p in parts] == [180, 30, 30]


def test_broken_lines_beyond_the_limit(tmp_path, capsys):
    (tmp_path / "r.json").write_text("\n".join([*reviews("2014"), *["rubbish"] * 3]))
    assert run("amazon", "--reviews", tmp_path / "r.json", "--max-bad", 2, "--output", tmp_path / "x") == 2
    error = capsys.readouterr().err
    assert "line 241, 242, 243" in error and "--max-bad=2" in error
    assert {p.name for p in tmp_path.iterdir()} == {"r.json"}
    (tmp_path / "cut.gz").write_bytes(gzip.compress(b"{}\n" * 1000)[:-20])
    assert run("amazon", "--reviews", tmp_path / "cut.gz", "--max-bad", 9999, "--output", tmp_path / "x") == 2
    assert "cannot be read" in capsys.readouterr().err


def test_a_failure_in_the_middle_leaves_nothing(tmp_path, capsys):
    (tmp_path / "r.json").write_text("\n".join(reviews("2014")))
    (tmp_path / "images.b").write_bytes(b"short")
    files = ["--reviews", tmp_path / "r.json", "--images", tmp_path / "images.b"]
    assert run("amazon", *files, "--output", tmp_path / "x") == 2
    assert "no whole number of records" in capsys.readouterr().err
    assert {p.name for p in tmp_path.iterdir()} == {"r.json", "images.b"}


# Any table.


@pytest.fixture
def clinic(tmp_path):
    rows = [(f"p{u}", 100 + i, (u + i) % 5, f"2024-01-{1 + i:02}") for u in range(10) for i in range(8)]
    frame = pd.DataFrame(rows, columns=["patient", "drug", "stars", "day"])
    frame.to_csv(tmp_path / "visits.csv", index=False)
    frame.to_parquet(tmp_path / "visits.parquet")
    features = pd.DataFrame({"drug": [100 + i for i in range(8)], "x": np.arange(8.0), "y": -np.arange(8.0)})
    features.to_csv(tmp_path / "chem.csv", index=False)
    features.iloc[::-1].to_parquet(tmp_path / "chem.parquet")
    return tmp_path


def columns(folder, kind="csv"):
    return ["--interactions", folder / f"visits.{kind}", "--user", "patient", "--item", "drug", "--time", "day"]


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_tables(clinic, capsys, kind):
    if kind == "parquet":
        pytest.importorskip("pyarrow", reason="pyarrow is not installed (extra 'parquet')")
    more = ["--features", f"chem={clinic / f'chem.{kind}'}", "--order", "time", "--output", clinic / "out"]
    assert run("csv", *columns(clinic, kind), *more) == 0
    assert "chem: features of 8 of 8 items" in capsys.readouterr().out
    frame = pd.read_csv(clinic / "out" / "out.inter", sep="\t")
    assert (frame[frame["x_label"] == 2]["itemID"] == 7).all()  # the last day
    assert (clinic / "out" / "items.txt").read_text().split() == [str(100 + i) for i in range(8)]
    assert np.load(clinic / "out" / "chem_feat.npy")[:, 0].tolist() == list(range(8))
    report = check(clinic / "out")
    assert [f.what for f in report.findings if f.level == "error"] == [
        "10 users have all training items, so no negative can be drawn for them; leave them out"
    ]


@pytest.mark.parametrize("unit", ["s", "ms", "us", "ns"])
@pytest.mark.parametrize("zone", [None, "UTC", "Asia/Tokyo"])
def test_dates_of_any_unit_are_seconds(clinic, unit, zone):
    pytest.importorskip("pyarrow", reason="pyarrow is not installed (extra 'parquet')")
    frame = pd.read_csv(clinic / "visits.csv")
    dates = pd.to_datetime(frame["day"]).astype(f"datetime64[{unit}]")
    frame["day"] = dates if zone is None else dates.dt.tz_localize(zone)
    frame.to_parquet(clinic / "visits.parquet")
    assert run("csv", *columns(clinic, "parquet"), "--core", 1, "--output", clinic / "out") == 0
    times = pd.read_csv(clinic / "out" / "out.inter", sep="\t")["timestamp"]
    first = pd.Timestamp("2024-01-01", tz=zone or "UTC").timestamp()
    assert times.min() == first and times.max() == first + 7 * 86400


def test_extend_is_add_many_times():
    generator = np.random.default_rng(0)
    rows = [(f"u{generator.integers(5)}", f"i{generator.integers(4)}", float(n), float(-n)) for n in range(50)]
    one, many = Collector(), Collector()
    for row in rows:
        one.add(*row)
    for part in (rows[:20], rows[20:20], rows[20:]):
        users, items, ratings, times = (
            np.array([r[c] for r in part], dtype=t) for c, t in enumerate((object, object, float, float))
        )
        many.extend(users, items, ratings, times)
    for a, b in zip(vars(one.table()).values(), vars(many.table()).values(), strict=True):
        np.testing.assert_array_equal(a, b)


def test_ratings_below_a_limit_are_left_out(clinic):
    more = ["--rating", "stars", "--min-rating", 2, "--core", 1, "--output", clinic / "out"]
    assert run("csv", *columns(clinic), *more) == 0
    assert len(pd.read_csv(clinic / "out" / "out.inter", sep="\t")) == sum(
        (u + i) % 5 >= 2 for u in range(10) for i in range(8)
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--user", "patiens"], "no such column"),
        (["--features", "chem"], "expected NAME=FILE"),
        (["--features", "../chem=chem.csv"], "of letters, digits"),
        (["--features", "a=nothing.csv"], "no such file"),
        (["--feature-id", "drag", "--features", "a=chem.csv"], "Did you mean drug"),
        (["--features", "a=visits.csv"], "is not a finite number"),
        (["--min-rating", "3"], "--min-rating needs --rating"),
        (["--ratios", "8:1"], "expected three numbers"),
        (["--ratios", "0:1:1"], "the first above 0"),
        (["--core", "0"], "--core must be 1"),
        (["--core", "99"], "no interactions are left"),
        (["--time", "patient"], "--max-bad=10 allowed"),
        (["--interactions", "nowhere.csv"], "no such file"),
        (["--output", "chem.csv"], "exists already"),
        (["--output", "chem.csv/x"], "chem.csv is not a folder"),
    ],
)
def test_mistakes(clinic, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(clinic)
    before = sorted(p.name for p in clinic.iterdir())
    assert run("csv", *columns(clinic), "--output", "out", *arguments) == 2
    error = capsys.readouterr().err.strip()
    assert error.startswith("error: ") and message in error and "\n" not in error
    assert sorted(p.name for p in clinic.iterdir()) == before


ODD = ['"x', "x", "NA", "null", "nan", "1e5", "007", "7", "1.0", "True", " x ", "\u00a0", "a\u200db", "😀"]


def shop(path, form):
    """Six users with all odd ids, as a table of a form; returns the options that read it."""
    rows = [(f"u{u}", token) for u in range(6) for token in ODD]
    if form == "parquet":
        pytest.importorskip("pyarrow", reason="pyarrow is not installed (extra 'parquet')")
        pd.DataFrame(rows, columns=["user", "item"]).to_parquet(path.with_suffix(".parquet"))
        return ["--interactions", path.with_suffix(".parquet")]
    separator = {"tab": "\t", "two": "::"}.get(form, ",")
    content = "".join(f"{a}{separator}{b}\r\n" for a, b in [("user", "item"), *rows])
    if form == "quoted":
        content = "".join(f'{a},"{b.replace(chr(34), chr(34) * 2)}"\n' for a, b in [("user", "item"), *rows])
    content = content.encode("utf-16" if form == "utf-16" else "utf-8-sig")
    path.write_bytes(gzip.compress(content) if form == "gz" else content)
    more = {
        "tab": ["--separator", "\\t"],
        "two": ["--separator", "::"],
        "utf-16": ["--encoding", "utf-16"],
        "quoted": [],
    }
    return ["--interactions", path, *([] if form == "quoted" else ["--quoting", "none"]), *more.get(form, [])]


@pytest.mark.parametrize("form", ["comma", "tab", "two", "quoted", "utf-16", "gz", "parquet"])
def test_ids_are_text_as_it_stands(tmp_path, capsys, form):
    options = shop(tmp_path / "v.csv", form)
    features = "\n".join(["a;item;b", *(f"1;{t};{n}" for n, t in enumerate(ODD))])
    if form in ("quoted", "parquet"):
        features = features.replace(';"x;', ';"""x";')
    (tmp_path / "f.csv").write_bytes(features.encode("utf-16" if form == "utf-16" else "utf-8-sig"))
    target = tmp_path / "new" / "deeper" / "out"
    arguments = [*options, "--user", "user", "--item", "item", "--core", 1, "--features", f"text={tmp_path / 'f.csv'}"]
    assert run("csv", *arguments, "--output", target) == 0
    out = capsys.readouterr().out
    assert f"6 users, {len(ODD)} items, {6 * len(ODD)} of {6 * len(ODD)}" in out and "; 0 lines skipped" in out
    tokens = (target / "items.txt").read_bytes().decode().removesuffix("\n").split("\n")
    assert tokens == sorted(ODD)
    assert [int(x) for x in np.load(target / "text_feat.npy")[:, 1]] == [ODD.index(t) for t in tokens]


def test_a_table_without_a_header(tmp_path, capsys):
    (tmp_path / "v.dat").write_text("u::i::5::30\nu::j::x::20\nv::i::1::10\n")
    arguments = [
        "--interactions",
        tmp_path / "v.dat",
        "--separator",
        "::",
        "--user",
        "who",
        "--item",
        "what",
        "--core",
        1,
    ]
    arguments += ["--rating", "stars", "--time", "when"]
    assert run("csv", *arguments, "--names", "who, what,stars,when", "--output", tmp_path / "out") == 0
    assert "line 2: column stars: no number: 'x'" in capsys.readouterr().out
    frame = pd.read_csv(tmp_path / "out" / "out.inter", sep="\t")
    assert frame[["rating", "timestamp"]].to_numpy().tolist() == [[5, 30], [1, 10]]
    for names, message in (("who,what", "4 cells, --names has 2"), ("a,b,c,d", "--user=who: no such column"),
                           ("who,who", "each once"), ("who,,what", "the names of all columns")):  # fmt: skip
        assert run("csv", *arguments, "--names", names, "--max-bad", 0, "--output", tmp_path / "more") == 2
        assert message in capsys.readouterr().err


def test_whole_numbers_of_a_parquet_file_are_exact(tmp_path):
    pytest.importorskip("pyarrow", reason="pyarrow is not installed (extra 'parquet')")
    big = 2**60
    frame = pd.DataFrame(
        {"user": pd.array([big + 1, big + 2, None, big + 3], dtype="Int64"), "item": [1.0, 2.5, 2.5, 1.0]}
    )
    frame.to_parquet(tmp_path / "v.parquet")
    with pytest.raises(ConfigError, match="--names: no effect"):
        tables.read_interactions(tmp_path / "v.parquet", {}, Collector(), 1, tables.Csv(names=("a", "b")))
    collector = Collector()
    bad = tables.read_interactions(tmp_path / "v.parquet", {"user": "user", "item": "item"}, collector, 1)
    assert collector.table().user_tokens.tolist() == [str(big + n) for n in (1, 2, 3)] and bad.count == 1
    assert collector.table().item_tokens.tolist() == ["1", "2.5"]  # whatever stands in other rows


def test_a_quote_that_never_closes_swallows_nothing_in_silence(tmp_path, capsys):
    rows = [f"u{n % 9},{chr(34) if n % 10 == 0 else ''}i{n % 7}" for n in range(200)]
    (tmp_path / "v.csv").write_text("user,item\n" + "\n".join(rows) + "\n")
    arguments = [
        "--interactions",
        tmp_path / "v.csv",
        "--user",
        "user",
        "--item",
        "item",
        "--core",
        1,
        "--output",
        tmp_path / "out",
    ]
    assert run("csv", *arguments) == 2
    error = capsys.readouterr().err
    assert "broken quotes" in error and "--quoting=none" in error and "--max-bad=10 allowed" in error
    assert run("csv", *arguments, "--quoting", "none") == 0
    assert f"{len(set(rows))} of 200 interactions" in capsys.readouterr().out
    (tmp_path / "v.csv").write_text(
        'user,item,what\nu,i,"a\nlong ""text"" of, \ntwo lines"\nu,j,b\n'
    )  # as it should be
    assert run("csv", *arguments[:-1], tmp_path / "fine") == 0
    assert "2 of 2 interactions" in capsys.readouterr().out
    (tmp_path / "v.csv").write_text('user,item,what\nu,"i\nj",b\nu,j,b\n')
    assert run("csv", *arguments[:-1], tmp_path / "lines") == 0
    assert "line 2 to 3: column item: a item of more than one line" in capsys.readouterr().out


def test_every_skipped_line_is_shown(clinic, capsys):
    with (clinic / "visits.csv").open("a") as file:
        file.write(
            ",100,3,2024-01-01\np1,,3,2024-01-01\np1,100,three,2024-01-01\np1,100,3,31.1.2024\np1,100\n\np2,100,3,2024-01-01,x\n"
        )
    assert run("csv", *columns(clinic), "--rating", "stars", "--output", clinic / "out") == 0
    shown = capsys.readouterr().out
    assert "80 interactions" in shown and "6 lines skipped" in shown
    for line in (
        "line 82: column patient: no user", "line 83: column drug: no item", "line 84: column stars: no number: 'three'",
        "line 85: column day: neither a number nor a date such as 2024-01-31", ": '31.1.2024'",
        "line 86: 2 cells, the header has 4: 'p1,100'", "line 88: 5 cells",
    ):  # fmt: skip
        assert line in shown
    assert run("csv", *columns(clinic), "--rating", "stars", "--max-bad", 5, "--output", clinic / "more") == 2
    assert "6 such lines, --max-bad=5 allowed" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--core", "9"], "no interactions are left: the 9-core of the other 80 (10 users, 8 items) is empty"),
        (["--rating", "stars", "--min-rating", "9"], "of 80 that were read; 80 are rated below --min-rating=9"),
    ],
)
def test_nothing_left_says_where_it_went(clinic, capsys, more, message):
    assert run("csv", *columns(clinic), *more, "--output", clinic / "a" / "b") == 2
    assert message in capsys.readouterr().err and not (clinic / "a").exists()


def test_the_table_is_not_what_it_seems(clinic, capsys):
    (clinic / "visits.csv").write_bytes(b"patient,drug,day\nJos\xe9,1,2\n")
    assert run("csv", *columns(clinic), "--core", 1, "--output", clinic / "out") == 2
    assert "visits.csv, line 2: not text in UTF-8 (byte 0xe9" in capsys.readouterr().err
    assert run("csv", *columns(clinic), "--core", 1, "--encoding", "latin-1", "--output", clinic / "out") == 0
    assert (clinic / "out" / "users.txt").read_text() == "José\n"
    (clinic / "visits.csv").write_text("patient,drug,day\np,1,20240131\np,2,2024-02-01\n")
    assert run("csv", *columns(clinic), "--core", 1, "--output", clinic / "x") == 2
    assert "some times are numbers, others dates" in capsys.readouterr().err
    (clinic / "visits.csv").write_text("patient;drug;day\np;1;2\n")
    assert run("csv", *columns(clinic), "--output", clinic / "x") == 2
    assert "It has a single column: is --separator right?" in capsys.readouterr().err
    (clinic / "visits.csv").write_text("version https://git-lfs.github.com/spec/v1\n")
    assert run("csv", *columns(clinic), "--output", clinic / "x") == 2
    assert "Git LFS pointer" in capsys.readouterr().err


def test_features_that_repeat_an_item(clinic, capsys):
    (clinic / "twice.csv").write_text("drug,x\n100,1\n100,2\n")
    assert run("csv", *columns(clinic), "--features", f"a={clinic / 'twice.csv'}", "--output", clinic / "out") == 2
    assert "line 3: id '100' stands in another line already" in capsys.readouterr().err
    (clinic / "foreign.csv").write_text("drug,x\n7,1\n")
    assert run("csv", *columns(clinic), "--features", f"a={clinic / 'foreign.csv'}", "--output", clinic / "out") == 2
    assert "none of their ids is an item's" in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_texts(clinic, capsys, kind):
    if kind == "parquet":
        pytest.importorskip("pyarrow", reason="pyarrow is not installed (extra 'parquet')")
    table = pd.DataFrame(
        {
            "drug": [107, 5, 100, 102],
            "name": ["red  and\n blue", "of no item", "café", None],
            "class": [1, 2, None, None],
        }
    )
    table = table.astype({"class": "Int64"})
    table.to_csv(clinic / "t.csv", index=False) if kind == "csv" else table.to_parquet(clinic / "t.parquet")
    assert run("csv", *columns(clinic), "--texts", clinic / f"t.{kind}", "--output", clinic / "out") == 0
    assert "items.jsonl: name, class of 2 of 8 items" in capsys.readouterr().out
    found = [json.loads(line) for line in (clinic / "out" / "items.jsonl").read_text(encoding="utf-8").splitlines()]
    assert found[0] == {"id": "100", "name": "café"} and found[7] == {"id": "107", "name": "red and blue", "class": "1"}
    assert found[1:7] == [{"id": str(n)} for n in range(101, 107)]
    assert (
        cli.main(
            ["data", "encode", str(clinic / "out"), "--text", "name,class", "--encoder", "tfidf-svd", "--dims", "1"]
        )
        == 0
    )
    assert np.load(clinic / "out" / "text_feat.npy").shape == (8, 1)


@pytest.mark.parametrize(
    ("content", "more", "message"),
    [
        ("drug,name\n100,a\n100,b\n", [], "line 3: id '100' stands in another line already"),
        ("drug,name\n7,a\n", [], "no text of any of the 8 items, by column 'drug'"),
        ("drug,name\n100,\n", [], "no text of any of the 8 items"),
        ("drug,id\n100,a\n", [], "a column 'id' beside 'drug'"),
        ("name\nx\n", [], "no such column"),
        ("100::a\n", ["--text-names", "drug"], "no text of any of the 8 items"),
        (None, ["--text-names", "drug,name"], "--text-names needs --texts"),
    ],
)
def test_texts_that_are_refused(clinic, capsys, content, more, message):
    if content is not None:
        (clinic / "t.csv").write_text(content)
        more = [*more, "--texts", clinic / "t.csv"]
    assert run("csv", *columns(clinic), *more, "--output", clinic / "out") == 2
    assert message in capsys.readouterr().err and not (clinic / "out").exists()


# MMRec and RecBole.


def triples(folder):
    parts = MultimodalDataset(make_config("VBPR", folder.name, values={"data_path": str(folder.parent)})).build()
    names = parts[0].field2id_token
    out = []
    for part in parts:
        users, items = names["user_id"][part.inter_feat["user_id"]], names["item_id"][part.inter_feat["item_id"]]
        out.append(set(zip(users.tolist(), items.tolist(), strict=True)))
    first = next(iter(out[0]))[1]
    return out, parts[0].features["a"][parts[0].token2id("item_id", first)].tolist(), first


def test_mmrec_to_recbole_and_back(toy, tmp_path, capsys):
    assert run("mmrec", toy / "toy", "--output", tmp_path / "atoms") == 0
    assert "usable" in capsys.readouterr().out
    assert triples(tmp_path / "atoms")[0] == triples(toy / "toy")[0]
    assert run("recbole", tmp_path / "atoms", "--output", tmp_path / "again") == 0
    users = (tmp_path / "again" / "users.txt").read_text().split()
    items = (tmp_path / "again" / "items.txt").read_text().split()
    back, _, _ = triples(tmp_path / "again")
    assert [{(users[int(u)], items[int(i)]) for u, i in part} for part in back] == triples(toy / "toy")[0]
    original, copied = np.load(toy / "toy" / "a_feat.npy"), np.load(tmp_path / "again" / "a_feat.npy")
    np.testing.assert_array_equal(copied, original[[int(i) for i in items]])


def test_one_atomic_file_is_filtered_and_split(tmp_path, capsys):
    folder = tmp_path / "atom"
    folder.mkdir()
    rows = [f"u{u}\ti{i}\t{i}" for u in range(6) for i in range(10)]
    (folder / "atom.inter").write_text(
        "\n".join(["user_id:token\titem_id:token\ttimestamp:float", *rows, "lone\ti1\t3"])
    )
    assert run("recbole", folder, "--order", "time", "--output", tmp_path / "out") == 0
    assert "6 users, 10 items, 60 of 61" in capsys.readouterr().out
    frame = pd.read_csv(tmp_path / "out" / "out.inter", sep="\t")
    assert (frame.loc[frame["x_label"] == 2, "itemID"] == 9).all()
    assert run("recbole", tmp_path / "out", "--output", tmp_path / "more") == 2
    assert "the header lacks user_id:token" in capsys.readouterr().err


def test_a_folder_with_errors_is_not_converted(toy, tmp_path, capsys):
    (toy / "toy" / "a_feat.npy").write_bytes(b"rubbish")
    assert run("mmrec", toy / "toy", "--output", tmp_path / "atoms") == 1
    assert "not usable" in capsys.readouterr().out and not (tmp_path / "atoms").exists()
