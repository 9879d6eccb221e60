"""Both layouts, alignment through tokens, and every refusal."""

import os
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from mmrec_mrdib import cli, registry
from mmrec_mrdib.config import Config
from mmrec_mrdib.data import modality
from mmrec_mrdib.data.check import check
from mmrec_mrdib.data.dataset import MultimodalDataset
from mmrec_mrdib.data.sampling import NegativeSampler
from mmrec_mrdib.errors import ConfigError, DataError, MRdIBError
from mmrec_mrdib.experiment.run import prepare


def load(folder, name="toy", **values):
    config = Config("VBPR", name, config_dict={"data_path": str(folder), "feature_norm": "none", **values})
    return MultimodalDataset(config)


def pairs(data, part):
    users = data.id2token("user_id", part.inter_feat["user_id"].numpy())
    items = data.id2token("item_id", part.inter_feat["item_id"].numpy())
    return sorted(zip(users.tolist(), items.tolist(), strict=True))


def write_inter(folder, rows, name="toy"):
    (folder / name).mkdir(exist_ok=True)
    lines = "\n".join("\t".join(map(str, r)) for r in rows)
    (folder / name / f"{name}.inter").write_text(f"userID\titemID\tx_label\n{lines}\n")


def test_mmrec_split_and_alignment_with_shuffled_and_missing_ids(tmp_path, rng):
    ids = np.array([17, 3, 11, 0, 8, 5, 19])  # neither sorted nor contiguous
    rows = [
        (u, i, label) for u in (4, 2, 9) for i, label in zip(rng.permutation(ids), [0, 0, 0, 0, 0, 1, 2], strict=True)
    ]
    rng.shuffle(rows)
    write_inter(tmp_path, rows)
    features = rng.normal(size=(20, 6)).astype(np.float16)
    np.save(tmp_path / "toy" / "image_feat.npy", features)
    data = load(tmp_path)
    parts = data.build()
    for label, part in enumerate(parts):
        assert pairs(data, part) == sorted((str(u), str(i)) for u, i, x in rows if x == label)
    assert data.item_num == 8 and data.features["image"].dtype == torch.float32
    for token in ids:
        internal = data.token2id("item_id", str(token))
        np.testing.assert_array_equal(data.features["image"][internal], features[token].astype(np.float32))
    assert data.features["image"][0].abs().sum() == 0


def test_a_folder_of_mmrec_as_it_is_published(tmp_path, rng):
    """With times and ratings, with id maps, and with the graphs that MMRec's models leave there: none of them is taken for features."""
    folder = tmp_path / "baby"
    folder.mkdir()
    lines = [f"{u}\t{i}\t5.0\t{1370000000 + i}\t{label}" for u in range(4) for i, label in enumerate((0, 0, 1, 2))]
    head = "userID\titemID\trating\ttimestamp\tx_label"
    (folder / "baby.inter").write_text("\n".join([head, *lines, "0\t4\t4.0\t1370000000\t0"]) + "\n")
    (folder / "i_id_mapping.csv").write_text("asin\titemID\nB1\t0\n")
    for name in ("image", "text"):
        np.save(folder / f"{name}_feat.npy", rng.normal(size=(5, 3)))
    for name in ("user_graph_dict.npy", "image_adj_10_True.pt", "mm_adj_freedomdsp_10_1.pt"):
        (folder / name).write_bytes(b"\x80\x04")
    data = load(tmp_path, "baby")
    assert [len(p) for p in data.build()] == [9, 4, 4] and sorted(data.features) == ["image", "text"]
    assert data.unread == {}
    (folder / "graph_feat.pt").write_bytes(b"\x80\x04")  # by its name these are features
    np.save(folder / "knowledge_graph.npy", np.ones((5, 3)))  # and these may be
    assert sorted(load(tmp_path, "baby").unread) == ["graph_feat.pt", "knowledge_graph.npy"]


MRLIB = [(u, i, label) for u in range(4) for i, label in ((3, 0), (0, 0), (u % 2 + 4, 1), (2, 2))] + [(3, 4, 0)]


def write_mrlib(folder, rng, separator=",", header="user_id,item_id,rating,label"):
    (folder / "tiktok").mkdir(exist_ok=True)
    lines = [header, *(f"{u},{i},1.0,{label}" for u, i, label in MRLIB), "0,1,0.5,0"]
    (folder / "tiktok" / "inter.csv").write_text("\n".join(lines).replace(",", separator) + "\n")
    features = {name: rng.normal(size=(6, 3)) for name in ("visual", "acoustic")}
    for name, values in features.items():
        np.save(folder / "tiktok" / f"{name}_feat.npy", values)
    return features


@pytest.mark.parametrize("separator", [",", "\t"])
@pytest.mark.parametrize("header", ["user_id,item_id,rating,label", "userID,itemID,rating,x_label"])
def test_a_folder_of_mrlib(tmp_path, rng, separator, header):
    truth = write_mrlib(tmp_path, rng, separator, header)
    data = load(tmp_path, "tiktok")
    for label, part in enumerate(data.build()):
        extra = [("0", "1")] if label == 0 else []
        assert pairs(data, part) == sorted([(str(u), str(i)) for u, i, x in MRLIB if x == label] + extra)
    for name, values in truth.items():
        for internal, token in enumerate(data.field2id_token["item_id"]):
            if internal:
                np.testing.assert_array_equal(data.features[name][internal], values[int(token)].astype(np.float32))
    rated = load(tmp_path, "tiktok", val_interval={"rating": "[1,inf)"})
    assert len(rated.build()[0]) == 9 and rated.notes["interactions_outside_val_interval"] == 1


def test_a_folder_of_mrlib_in_other_commands(tmp_path, rng, capsys):
    write_mrlib(tmp_path, rng)
    folder = tmp_path / "tiktok"
    assert cli.main(["data", "prepare", "mmrec", str(folder), "--output", str(tmp_path / "atoms")]) == 0
    assert "18 interactions as atomic files" in capsys.readouterr().out
    with pytest.raises(ConfigError, match=r"the split of .*tiktok is given"):
        load(tmp_path, "tiktok", eval_args={"split": {"LS": "valid_and_test"}})
    (folder / "tiktok.inter").write_text("userID\titemID\tx_label\n0\t0\t0\n")
    assert any(f.where == "inter.csv" and "not read" in f.what for f in check(folder).findings)
    with pytest.raises(DataError, match="6 rows, but the interactions name items 0 to 0"):
        load(tmp_path, "tiktok")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("label", "split"), r"inter\.csv: the header lacks label \(found user_id, item_id, rating, split\); expected user_id,item_id,rating,label"),
        ((",0\n", ",train\n"), r"inter\.csv: column label: expected 0 \(train\).*line 2: 'train'"),
        (("0,3,", "u0,3,"), r"inter\.csv: column user_id: expected whole numbers.*line 2: 'u0'"),
        (("1.0,2\n", "1.0\n"), r"inter\.csv: lines with more or fewer cells than the 4"),
    ],
)  # fmt: skip
def test_an_inter_csv_that_cannot_be_used(tmp_path, rng, change, message):
    write_mrlib(tmp_path, rng)
    path = tmp_path / "tiktok" / "inter.csv"
    path.write_text(path.read_text().replace(*change))
    with pytest.raises(DataError, match=message):
        load(tmp_path, "tiktok")
    assert next(f.where for f in check(tmp_path / "tiktok").findings if f.level == "error") == "inter.csv"


def write_atomic(folder, rng, ids, users=12):
    (folder / "atom").mkdir()
    lines = ["user_id:token\titem_id:token"]
    lines += [f"u{u}\t{i}" for u in range(users) for i in rng.choice(ids, 10, replace=False)]
    (folder / "atom" / "atom.inter").write_text("\n".join(lines) + "\n")
    order = rng.permutation(len(ids))
    features = rng.normal(size=(len(ids), 4)).astype(np.float32)
    np.save(folder / "atom" / "text_feat.npy", features)
    (folder / "atom" / "text_ids.txt").write_text("\n".join(ids[o] for o in order) + "\n")
    return {ids[o]: features[r] for r, o in enumerate(order)}


def test_atomic_layout_is_aligned_by_token(tmp_path, rng):
    truth = write_atomic(tmp_path, rng, [f"B{n:03d}" for n in range(25)])
    data = load(tmp_path, "atom")
    for internal, token in enumerate(data.field2id_token["item_id"]):
        if internal:
            np.testing.assert_array_equal(data.features["text"][internal], truth[token])
    train, valid, test = data.build()
    assert len(train) == 12 * 8 and len(valid) == len(test) == 12


def test_benchmark_files_give_the_split(tmp_path, rng):
    write_atomic(tmp_path, rng, [f"B{n:03d}" for n in range(25)])
    folder = tmp_path / "atom"
    lines = (folder / "atom.inter").read_text().splitlines()
    for n, part in enumerate(("train", "valid", "test")):
        rows = [line for r, line in enumerate(lines[1:]) if (r % 10 if r % 10 < 2 else 9) == (9, 0, 1)[n]]
        (folder / f"atom.{part}.inter").write_text("\n".join([lines[0], *rows]) + "\n")
    data = load(tmp_path, "atom", benchmark_filename=["train", "valid", "test"])
    assert [len(p) for p in data.build()] == [96, 12, 12]


def test_random_split_depends_on_split_seed_only(tmp_path, rng):
    write_atomic(tmp_path, rng, [f"B{n:03d}" for n in range(25)])

    def split(**values):
        torch.manual_seed(values.pop("global_seed", 0))
        data = load(tmp_path, "atom", **values)
        return [pairs(data, p) for p in data.build()]

    assert split(seed=1, global_seed=1) == split(seed=2, global_seed=7)
    assert split(split_seed=1) != split(split_seed=2)


def test_atomic_layout_needs_ids(tmp_path, rng):
    write_atomic(tmp_path, rng, [f"B{n:03d}" for n in range(25)])
    (tmp_path / "atom" / "text_ids.txt").unlink()
    with pytest.raises(DataError, match=r"text_feat\.npy.*text_ids\.txt"):
        load(tmp_path, "atom")


@pytest.mark.parametrize("policy", ["error", "mean", "drop"])
def test_items_without_features(tmp_path, rng, policy):
    truth = write_atomic(tmp_path, rng, [f"B{n:03d}" for n in range(25)])
    ids = (tmp_path / "atom" / "text_ids.txt").read_text().split()
    without = ids[-1]
    (tmp_path / "atom" / "text_ids.txt").write_text("\n".join(ids[:-1]) + "\n")
    np.save(tmp_path / "atom" / "text_feat.npy", np.stack([truth[i] for i in ids[:-1]]))
    if policy == "error":
        with pytest.raises(DataError, match=f"1 of 25 items .{without}.*--missing=mean"):
            load(tmp_path, "atom")
        return
    data = load(tmp_path, "atom", missing=policy)
    tokens = data.field2token_id["item_id"]
    if policy == "drop":
        assert without not in tokens and data.notes["items_without_features"] == 1
    else:
        row = data.features["text"][tokens[without]]
        mean = np.mean([truth[i] for i in ids[:-1]], axis=0)
        np.testing.assert_allclose(row, mean, atol=1e-6)
        assert data.missing["text"].sum() == 1 and data.missing["text"][tokens[without]]


def test_standard_and_l2_norms(toy):
    standard = load(toy, feature_norm="standard").features["a"][1:]
    torch.testing.assert_close(standard.mean(0), torch.zeros(12), atol=1e-5, rtol=0)
    torch.testing.assert_close(standard.std(0, correction=0), torch.ones(12), atol=1e-4, rtol=0)
    torch.testing.assert_close(load(toy, feature_norm="l2").features["a"][1:].norm(dim=1), torch.ones(30))
    unit = load(toy, feature_norm="unit")
    torch.testing.assert_close(unit.features["a"][1:], torch.nn.functional.normalize(standard))
    raw = np.load(toy / "toy" / "a_feat.npy")  # what new items go through
    tokens = [int(t) for t in unit.id2token("item_id", range(1, 31))]
    torch.testing.assert_close(torch.from_numpy(unit.scalings["a"](raw[tokens])), unit.features["a"][1:])


def test_a_constant_column_becomes_zero_not_noise(tmp_path):
    np.save(tmp_path / "x_feat.npy", np.full((3, 1), 128.3, dtype=np.float32))
    file = modality.open_file("x", tmp_path / "x_feat.npy", None, 3)
    assert not modality.align(file, ["[PAD]", "2", "0", "1"], "standard")[0].any()


def test_repeated_interactions_are_kept_once_and_cold_users_dropped(toy):
    path = toy / "toy" / "toy.inter"
    lines = path.read_text().splitlines()
    header = lines[0].split("\t")
    cells = lines[1].split("\t")
    cells[3] = "0"
    repeated = "\t".join(cells)  # the test item of user 0, once more in train: the train one stays
    path.write_text("\n".join([*lines, repeated, repeated, "99\t3\t1\t1", "99\t4\t1\t2"]) + "\n")
    assert header == ["userID", "itemID", "rating", "x_label"]
    data = load(toy)
    before = data.notes["repeated_interactions"]
    parts = data.build()
    assert before >= 2
    everything = [p for part in parts for p in pairs(data, part)]
    assert len(everything) == len(set(everything))
    assert data.notes["valid_interactions_of_users_without_train_items"] == 1
    assert data.notes["test_interactions_of_users_without_train_items"] == 1
    assert not any(u == "99" for u, _ in everything)


def corrupt(values):
    def mend(folder):
        x = np.load(folder / "a_feat.npy")
        for row in (3, 7):
            x[row, 1] = values
        np.save(folder / "a_feat.npy", x)

    return mend


class Planted:
    """Would create a file if it were ever unpickled."""

    path = ""

    def __reduce__(self):
        return (open, (self.path, "w"))


def plant(folder):
    Planted.path = str(folder / "executed")
    np.save(folder / "a_feat.npy", np.array([[Planted()]], dtype=object), allow_pickle=True)


def rewrite(old, new):
    def mend(folder):
        path = folder / "toy.inter"
        path.write_text(path.read_text().replace(old, new, 1))

    return mend


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: (f / "toy.inter").unlink(), r"toy\.inter: no such file"),
        (
            lambda f: np.save(f / "a_feat.npy", np.ones((29, 4))),
            r"a_feat\.npy: 29 rows.*30 rows are expected",
        ),
        (corrupt(np.nan), r"a_feat\.npy: NaN or infinite values in 2 rows \(3, 7"),
        (corrupt(np.inf), r"a_feat\.npy: NaN or infinite values in 2 rows \(3, 7"),
        (plant, r"a_feat\.npy: holds Python objects \(a pickle\)"),
        (lambda f: (f / "a_feat.npy").write_bytes(b"rubbish"), r"a_feat\.npy"),
        (lambda f: (f / "a_feat.npy").write_bytes(b""), r"a_feat\.npy"),
        (
            lambda f: np.save(f / "a_feat.npy", np.ones(30)),
            r"found shape \(30,\).*expected \(items, dimensions\)",
        ),
        (rewrite("userID\titemID", "user\titemID"), r"header lacks userID"),
        (rewrite("\n0\t", "\n0.5\t"), r"column userID: expected whole numbers from 0 \(line 2: '0\.5'; 1 in all"),
        (rewrite("\n0\t", "\n-1\t"), r"column userID: .*line 2: '-1'"),
        (rewrite("\t1\t2\n", "\t1\t7\n"), r"column x_label: expected 0 \(train\).*line 2: '7'"),
        (
            lambda f: (f / "toy.inter").write_text("userID\titemID\tx_label\n0\t0\t0\n0\t29\t1\n"),
            "test split is empty",
        ),
        (lambda f: (f / "toy.inter").write_text(""), "toy.inter"),
        (lambda f: (f / "toy.inter").write_bytes(b"\xff\xfe\x00"), "UTF-8"),
    ],
)
def test_bad_input_is_named(toy, damage, message):
    damage(toy / "toy")
    with pytest.raises(MRdIBError, match=message) as error:
        load(toy).build()
    assert "\n" not in str(error.value)
    assert not (toy / "toy" / "executed").exists()


def test_unknown_modality(toy):
    with pytest.raises(ConfigError, match=r"no modality 'text'.*Available: a, b, c"):
        load(toy, modalities="a,text")
    assert list(load(toy, modalities="c,a").features) == ["c", "a"]


def test_negatives_are_uniform_over_the_items_left(toy):
    train = prepare(Config("VBPR", "toy", config_dict={"data_path": str(toy)})).train
    sampler = train.sampler
    user = int(train.users[0])
    own = set(train.items[train.users == user].tolist())
    drawn = sampler.sample(torch.full((60000,), user), torch.Generator().manual_seed(0))
    values, counts = drawn.unique(return_counts=True)
    assert set(values.tolist()) == set(sampler.candidates.tolist()) - own
    expected = 60000 / len(values)
    assert ((counts - expected) ** 2 / expected).sum().item() < 60  # chi-square, 99.9 % for up to 30 items
    with pytest.raises(DataError, match="no negative"):
        NegativeSampler(torch.tensor([1, 1, 2]), torch.tensor([1, 2, 1]), 3)


def test_an_epoch_has_every_positive_once(toy):
    train = prepare(Config("VBPR", "toy", config_dict={"data_path": str(toy), "train_batch_size": 64})).train
    batches = list(train)
    assert len(batches) == len(train)
    users, items, negatives = (torch.cat([b[f] for b in batches]) for f in ("user_id", "item_id", "neg_item_id"))
    assert torch.equal((users * 100 + items).sort().values, (train.users * 100 + train.items).sort().values)
    assert not len(train.sampler.which_positive(users, negatives))
    assert not torch.equal(torch.cat([b["item_id"] for b in train]), items)  # another order in the next epoch


def test_ml_100k_modalities(tmp_path, monkeypatch):
    monkeypatch.setenv("MMREC_MRDIB_CACHE", str(tmp_path))
    data = MultimodalDataset(Config("VBPR", "ml-100k"))
    assert {m: x.shape[1] for m, x in data.features.items()} == {"genre": 20, "kg": 128, "title": 128}
    parts = data.build()
    assert sum(map(len, parts)) == 55375 and data.user_num == 943
    cached = next(tmp_path.glob("ml-100k-*/title_feat.npy"))
    written = cached.stat().st_mtime_ns
    again = MultimodalDataset(Config("VBPR", "ml-100k"))
    assert cached.stat().st_mtime_ns == written
    torch.testing.assert_close(again.features["title"], data.features["title"], rtol=0, atol=0)


@pytest.mark.parametrize("pairs", ["every pair has a mark", "two hash filters"])
def test_membership_is_that_of_a_set(monkeypatch, rng, pairs):
    n_users, n_items = 50, 40
    if pairs != "every pair has a mark":
        monkeypatch.setattr(NegativeSampler, "SMALL", 0)
        monkeypatch.setattr(NegativeSampler, "FILTER", 1)  # many marks that say "perhaps" of pairs that are none
    monkeypatch.setattr(NegativeSampler, "BLOCK", 64)
    keys = rng.choice(n_users * n_items, 500, replace=False)
    users, items = torch.from_numpy(keys // n_items), torch.from_numpy(keys % n_items)
    sampler = NegativeSampler(users, items, n_items)
    assert sampler.exact == (pairs == "every pair has a mark")
    every = torch.cartesian_prod(torch.arange(n_users), torch.arange(n_items))
    known = set(keys.tolist())
    truth = [n for n, (u, i) in enumerate(every.tolist()) if u * n_items + i in known]
    assert sampler.which_positive(*every.T).tolist() == truth
    drawn = sampler.sample(users, torch.Generator().manual_seed(0))
    assert not known & set((users * n_items + drawn).tolist())


def test_items_with_gaps_between_their_ids_are_drawn_too():
    users, items = torch.tensor([1, 1, 2, 3]), torch.tensor([2, 9, 2, 5])  # nobody has 1, 3, 4, 6, 7, 8
    drawn = NegativeSampler(users, items, 10).sample(torch.full((300,), 1), torch.Generator().manual_seed(0))
    assert set(drawn.tolist()) == {5}
    assert set(NegativeSampler(users, items, 10).sample(torch.full((300,), 2)).tolist()) == {5, 9}


def test_features_on_disk_are_the_same_features(toy, tmp_path, monkeypatch):
    monkeypatch.setenv("MMREC_MRDIB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(modality, "_BLOCK", 7)
    in_memory, mapped = (load(toy, feature_norm="standard", features_on_disk=d) for d in (False, True))
    for m, x in in_memory.features.items():
        assert torch.equal(mapped.features[m], x)
    if sys.platform == "linux":
        maps = [line for line in Path("/proc/self/maps").read_text().splitlines() if str(tmp_path / "cache") in line]
        assert len(maps) == 3
    assert list((tmp_path / "cache" / "features").iterdir()) == []  # nameless: nothing to clean up
    raw = np.load(toy / "toy" / "a_feat.npy").astype(np.float64)
    truth = (raw - raw.mean(0)) / raw.std(0)
    row = [int(t) for t in in_memory.field2id_token["item_id"][1:]]
    np.testing.assert_allclose(in_memory.features["a"][1:], truth[row], rtol=1e-5, atol=1e-6)
    monkeypatch.setenv("MMREC_MRDIB_CACHE", str(toy / "toy" / "toy.inter"))
    with pytest.raises(DataError, match="MMREC_MRDIB_CACHE"):
        load(toy, features_on_disk=True)
    if hasattr(os, "posix_fallocate"):  # more than any disk holds: told at once, not by a signal later
        with pytest.raises(DataError, match=r"cannot hold 4000000000\.0 GB"):
            modality.table(10**9, 10**9, tmp_path / "cache")


# What silently went wrong once: ids that look like something else, times, filters, rows of zeros, names.

ODD = [
    '"x',
    "x",
    '"x"',
    "NA",
    "null",
    "nan",
    "None",
    "1e5",
    "100000",
    "007",
    "7",
    "1.0",
    "True",
    " x ",
    "\u00a0",
    "é",
    "[PAD]",
]


def atomic(folder, files, name="atom", ids=(), rng=None):
    (folder / name).mkdir()
    for suffix, rows in files.items():
        (folder / name / f"{name}.{suffix}").write_text(
            "".join("\t".join(map(str, r)) + "\n" for r in rows), encoding="utf-8"
        )
    if ids:
        np.save(folder / name / "text_feat.npy", np.random.default_rng(0).normal(size=(len(ids), 3)))
        (folder / name / "text_ids.txt").write_text("".join(f"{i}\n" for i in ids), encoding="utf-8")
    return folder / name


@pytest.mark.parametrize("given_split", [False, True])
def test_ids_are_text_byte_for_byte(tmp_path, given_split):
    head = ("user_id:token", "item_id:token")
    rows = [(u, i) for u in ODD[::-1] for i in ODD if u != i]
    files = {"inter": [head, *rows]}
    if given_split:
        files = {f"{s}.inter": [head, *rows[n::3]] for n, s in enumerate(("train", "valid", "test"))}
    folder = atomic(tmp_path, files, ids=ODD)
    for path in folder.glob("*.inter"):  # with a mark and foreign line ends
        path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\n", b"\r\n"))
    raw = np.load(folder / "text_feat.npy").astype(np.float32)
    data = load(tmp_path, "atom", **({"benchmark_filename": ["train", "valid", "test"]} if given_split else {}))
    assert sorted(data.field2id_token["item_id"][1:].tolist()) == sorted(ODD) and data.user_num == len(ODD) + 1
    for row, token in enumerate(ODD):
        np.testing.assert_array_equal(data.features["text"][data.token2id("item_id", token)], raw[row])
    assert sorted(p for part in data.build() for p in pairs(data, part)) == sorted(rows)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([("u", "i"), ("u", "")], r"atom\.inter: cells of item_id:token are empty \(line 3; 1 in all\)"),
        ([("u", "i"), ("u",), ("u", "i", "x")], r"more or fewer cells than the 2 columns.*line 3: 1, line 4: 3"),
    ],
)
def test_atomic_lines_that_cannot_be_read(tmp_path, rows, message):
    atomic(tmp_path, {"inter": [("user_id:token", "item_id:token"), *rows]})
    with pytest.raises(DataError, match=message):
        load(tmp_path, "atom")


@pytest.mark.parametrize("unit", [1, 1000, 10**9, 0.001], ids=["s", "ms", "ns", "fractions"])
@pytest.mark.parametrize("split", ["{LS: valid_and_test}", "{RS: [8,1,1]}"])
def test_the_latest_are_the_test_items(tmp_path, rng, unit, split):
    rows, last = [], {}
    for u in range(12):
        items = rng.permutation(30)[:8]
        start = 1_700_000_000 + int(rng.integers(100))
        for n, i in enumerate(items):
            time = (start + n) * unit if unit != 0.001 else f"{start}.{n:03d}"
            rows.append((f"u{u}", f"i{i}", time))
        last[f"u{u}"] = f"i{items[-1]}"
    rng.shuffle(rows)
    atomic(tmp_path, {"inter": [("user_id:token", "item_id:token", "timestamp:float"), *rows]})
    values = {"eval_args": f"{{split: {split}, order: TO, group_by: user, mode: full}}"}
    data = load(tmp_path, "atom", load_col="{inter: [user_id, item_id, timestamp]}", **values)
    parts = data.build()
    assert dict(pairs(data, parts[2])) == last
    times = parts[0].inter_feat["timestamp"]
    assert times.dtype in (torch.int64, torch.float64) and set(times.tolist()) <= {
        float(r[2]) if unit == 0.001 else int(r[2]) for r in rows
    }
    with pytest.raises(ConfigError, match="order TO needs the column 'timestamp'"):
        load(tmp_path, "atom", **values)
    (tmp_path / "atom" / "atom.inter").write_text("user_id:token\titem_id:token\ttimestamp:float\nu\ti\t\nu\tj\t1\n")
    with pytest.raises(DataError, match="1 interactions have no timestamp"):
        load(tmp_path, "atom", load_col="{inter: [user_id, item_id, timestamp]}", **values)


def test_columns_of_every_type(tmp_path):
    head = ("item_id:token", "price:float", "brand:token", "tags:token_seq", "place:float_seq")
    items = [("a", "1.5", "NA", '"x y', "1 2"), ("b", "", "", "", ""), ("c", "2.5", "null", "y", "3")]
    inter = [("user_id:token", "item_id:token"), *((u, i) for u in "uvw" for i in "abc")]
    atomic(tmp_path, {"inter": inter, "item": [head, *items]})
    columns = [c.split(":")[0] for c in head]
    data = load(tmp_path, "atom", load_col={"inter": ["user_id", "item_id"], "item": columns})
    data.build()
    at = [int(data.token2id("item_id", i)) for i in "abc"]
    assert data.item_feat["price"][at].tolist() == [1.5, 2.0, 2.5]  # the mean where there is none, as RecBole has it
    assert data.id2token("brand", data.item_feat["brand"][at].numpy()).tolist() == ["NA", "[PAD]", "null"]
    assert data.id2token("tags", data.item_feat["tags"][at].numpy()).tolist() == [
        ['"x', "y"],
        ["[PAD]"] * 2,
        ["y", "[PAD]"],
    ]
    assert data.item_feat["place"][at].tolist() == [[1, 2], [0, 0], [3, 0]]
    (tmp_path / "atom" / "atom.item").write_text("\ufeffitem_id:token\tprice:float\na\t1,5\n")
    with pytest.raises(DataError, match=r"atom\.item: column price: expected a number \(line 2: '1,5'"):
        load(tmp_path, "atom", load_col={"inter": ["user_id", "item_id"], "item": ["item_id", "price"]})
    with pytest.raises(ConfigError, match=r"load_col=.*expected {inter: \[user_id, item_id\]}"):
        load(tmp_path, "atom", load_col={"inter": ["item_id"]})


@pytest.fixture
def rated(tmp_path):
    """Three forms of one data set: one atomic file, three, and MMRec's. User 0 has all 12 items; every first pair stands there twice."""
    rows = [(u, i, (u + i) % 5 + 1, (u + i) % 3) for u in range(10) for i in range(12) if u == 0 or (u * i) % 7 < 4]
    rows += [row for row in rows if row[1] == 0]
    head = ("user_id:token", "item_id:token", "rating:float")
    atomic(tmp_path, {"inter": [head, *(r[:3] for r in rows)]}, "one")
    parts = {
        f"{s}.inter": [head, *(r[:3] for r in rows if r[3] == n)] for n, s in enumerate(("train", "valid", "test"))
    }
    (atomic(tmp_path, parts, "three") / "three.yaml").write_text("benchmark_filename: [train, valid, test]\n")
    atomic(tmp_path, {"inter": [("userID", "itemID", "rating", "x_label"), *rows]}, "mm")
    return tmp_path, rows


@pytest.mark.parametrize("name", ["one", "three", "mm"])
@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"user_inter_num_interval": "[0,11]"}, lambda f: f.groupby("u").filter(lambda g: len(g) <= 11)),
        ({"item_inter_num_interval": "[8,inf)"}, lambda f: f.groupby("i").filter(lambda g: len(g) >= 8)),
        ({"val_interval": {"rating": "[3,inf)"}}, lambda f: f[f.r >= 3]),
        ({"val_interval": {"rating": [2, 4]}}, lambda f: f[f.r.between(2, 4)]),
        ({"val_interval": {"item_id": [1, 2, 3]}}, lambda f: f[f.i.isin([1, 2, 3])]),
    ],
)
def test_filters_work_in_every_layout(rated, name, values, expected):
    import pandas as pd

    folder, rows = rated
    frame = pd.DataFrame(rows, columns=["u", "i", "r", "x"]).drop_duplicates(["u", "i"])
    left = {(str(u), str(i)) for u, i in zip(*(expected(frame)[c] for c in "ui"), strict=True)}
    assert 0 < len(left) < len(frame)
    columns = {} if name == "mm" else {"load_col": {"inter": ["user_id", "item_id", "rating"]}}
    data = load(folder, name, **columns, **values)
    names = [data.field2id_token[f][data.inter_feat[f].to_numpy()] for f in ("user_id", "item_id")]
    assert sorted(zip(*(n.tolist() for n in names), strict=True)) == sorted(left)
    if name != "one":
        labels = dict(zip(zip(frame.u.astype(str), frame.i.astype(str), strict=True), frame.x, strict=True))
        split = np.repeat([0, 1, 2], data.file_size_list)
        assert [labels[p] for p in zip(*(n.tolist() for n in names), strict=True)] == split.tolist()


def test_filters_that_could_have_no_effect_are_refused(rated):
    folder, _ = rated
    for name in ("three", "mm"):
        with pytest.raises(ConfigError, match=r"--eval_args={'order': 'TO'}: no effect here: the split of .* is given"):
            load(folder, name, eval_args="{order: TO, mode: full}")
    with pytest.raises(ConfigError, match="no column 'stars' among those loaded"):
        load(folder, "mm", val_interval={"stars": "[3,inf)"})
    with pytest.raises(ConfigError, match=r"no column 'rating'.*load_col, as in {inter: \[user_id, item_id, rating\]}"):
        load(folder, "one", val_interval={"rating": "[3,inf)"})
    with pytest.raises(ConfigError, match="expected intervals such as"):
        load(folder, "mm", user_inter_num_interval="[8")
    with pytest.raises(DataError, match="no interactions are left"):
        load(folder, "three", user_inter_num_interval="[99,inf)")


def test_the_core_counts_each_pair_once(tmp_path):
    rows = [("u", "i"), ("u", "i"), ("u", "j"), *((v, i) for v in "vwx" for i in "ijk")]
    atomic(tmp_path, {"inter": [("user_id:token", "item_id:token"), *rows]})
    data = load(tmp_path, "atom", user_inter_num_interval="[3,inf)")
    assert "u" not in data.field2token_id["user_id"] and data.notes["repeated_interactions"] == 1


@pytest.mark.parametrize("norm", ["none", "standard", "l2"])
@pytest.mark.parametrize("policy", ["error", "mean", "drop"])
def test_rows_of_zeros_are_missing(toy, norm, policy):
    raw = np.load(toy / "toy" / "a_feat.npy") + 3
    raw[[2, 5, 6]] = 0
    np.save(toy / "toy" / "a_feat.npy", raw)
    data = load(toy, feature_norm=norm, missing=policy)
    assert data.notes["items_with_a_all_zero"] == 3
    tokens = data.field2token_id["item_id"]
    if policy == "drop":
        assert not {"2", "5", "6"} & set(tokens) and data.notes["items_without_features"] == 3
        return
    at = [tokens[t] for t in "256"]
    assert data.missing["a"].nonzero().flatten().tolist() == sorted(at)
    known = ~data.missing["a"]
    known[0] = False
    x = data.features["a"]
    torch.testing.assert_close(x[at], x[known].mean(0).expand(3, -1), atol=1e-5, rtol=0)
    if norm == "standard":  # over the items that have features alone
        torch.testing.assert_close(x[known].std(0, correction=0), torch.ones(12), atol=1e-4, rtol=0)
        assert not x[at].any()


@pytest.mark.parametrize("norm", ["none", "standard", "l2"])
@pytest.mark.parametrize("model", ["FREEDOM", "MGCN", "SOIL"])
def test_items_without_features_are_nobody_s_neighbours(toy, model, norm):
    for m in "abc":
        raw = np.load(toy / "toy" / f"{m}_feat.npy") + 1
        raw[:4] = 0
        np.save(toy / "toy" / f"{m}_feat.npy", raw)
    config = Config(model, "toy", config_dict={"data_path": str(toy), "feature_norm": norm, "knn_k": 5})
    splits = prepare(config)
    built = registry.model_class(model)(config, splits.parts[0])
    zero = {int(splits.dataset.token2id("item_id", str(n))) for n in range(4)}
    graphs = built.item_graphs.values() if hasattr(built, "item_graphs") else [built.item_graph]
    for graph in graphs:
        for i in zero:
            assert not {int(j) for j in graph.col[graph.crow[i] : graph.crow[i + 1]]} - {i}
        others = [
            j for i in range(1, 31) if i not in zero for j in graph.col[graph.crow[i] : graph.crow[i + 1]].tolist()
        ]
        assert others and not zero & set(others)


def test_a_modality_that_says_nothing_is_refused(toy):
    np.save(toy / "toy" / "a_feat.npy", np.zeros((30, 4)))
    with pytest.raises(DataError, match=r"none of the 30 items has a features: 30 rows are all 0"):
        load(toy, missing="mean")
    np.save(toy / "toy" / "a_feat.npy", np.zeros((30, 1)))  # a column of one number, where 0 is a number
    assert "items_with_a_all_zero" not in load(toy).notes


@pytest.mark.parametrize(
    "name", ["items", "type", "keys", "training", "forward", "_modules", "image.v2", "", "a b", "a,b"]
)
def test_names_that_a_model_could_not_have(toy, name):
    (toy / "toy" / "a_feat.npy").rename(toy / "toy" / f"{name}_feat.npy")
    with pytest.raises(DataError, match=r"a modality cannot be called.*--modality_files=") as error:
        load(toy)
    again = str(error.value).split("--modality_files='")[1].rstrip("'")
    assert len(load(toy, modality_files=again).features) == 3  # the mend is true
    assert list(load(toy, modalities="b,c").features) == ["b", "c"]


def test_pairs_of_modalities_have_names_of_their_own(toy):
    for old, new in (("a", "x-y"), ("b", "z"), ("c", "y-z")):
        (toy / "toy" / f"{old}_feat.npy").rename(toy / "toy" / f"{new}_feat.npy")
    np.save(toy / "toy" / "x_feat.npy", np.ones((30, 2)))
    with pytest.raises(DataError, match="'x-y-z' could be two pairs"):
        load(toy)


def test_features_in_other_forms_are_named(toy, caplog):
    folder = toy / "toy"
    for name in (
        "image_feat.pt",
        "image_features.csv",
        "audio_feat.npz",
        "pictures.npy",
        "a_feat.json",
        "b_feat.pt",
        "items.jsonl",
    ):
        (folder / name).write_bytes(b"x")
    data = load(toy)
    assert sorted(data.unread) == ["audio_feat.npz", "image_feat.pt", "image_features.csv", "pictures.npy"]
    assert "np.save('image_feat.npy', torch.load('image_feat.pt', weights_only=True).numpy())" in caplog.text
    assert "rename it to pictures_feat.npy" in data.unread["pictures.npy"]
    with pytest.raises(ConfigError, match=r"no modality 'image'.*image_feat\.pt: not read"):
        load(toy, modalities="image")
    for path in folder.glob("?_feat.npy"):
        path.unlink()
    with pytest.raises(DataError, match=r"needs item features.*image_feat\.pt: not read"):
        registry.model_class("VBPR")(Config("VBPR", "toy", config_dict={"data_path": str(toy)}), load(toy).build()[0])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"version https://git-lfs.github.com/spec/v1\n", "Git LFS pointer"),
        (b"<!doctype html>", "a page of a web site"),
        (b"\x1f\x8b\x08", "a gzip archive"),
        (b"0.1,0.2\n", "no array of NumPy but text"),
        (b"\x89HDF\r\n\x1a\n", "an HDF5 file"),
    ],
)
def test_files_that_only_have_the_name(toy, content, message):
    (toy / "toy" / "a_feat.npy").write_bytes(content)
    with pytest.raises(DataError, match=message) as error:
        load(toy)
    assert "pickle" not in str(error.value)
