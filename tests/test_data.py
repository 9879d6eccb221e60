"""Both layouts, alignment through tokens, and every refusal."""

import os
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from mmrec_mrdib.config import Config
from mmrec_mrdib.data import modality
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
