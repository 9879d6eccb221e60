"""Features made worse on purpose."""

import json

import numpy as np
import pytest
import torch

from mmrec_mrdib.data import corrupt
from mmrec_mrdib.errors import ConfigError
from mmrec_mrdib.experiment.run import make_config, prepare, train


def features(toy, **values):
    values = {"data_path": str(toy), **values}
    dataset = prepare(make_config("VBPR", "toy", 1, values=values)).dataset
    return dataset, {m: x.numpy() for m, x in dataset.features.items()}


def test_noise_has_the_ratio_asked_for():
    rng = np.random.default_rng(0)
    clean = (rng.normal(size=(9001, 3)) * [1, 10, 0.1]).astype(np.float32)
    clean[0] = 0
    for db in (10, 0, -10):
        noisy = clean.copy()
        corrupt.add_noise(noisy, db, rng)
        noise = (noisy - clean)[1:]
        assert 10 * np.log10(clean[1:].var(0) / noise.var(0)) == pytest.approx(db, abs=0.3)
        assert (noisy[0] == 0).all()
        assert abs(np.corrcoef(clean[1:, 0], noise[:, 0])[0, 1]) < 0.05


def test_controls_keep_the_form_and_lose_the_items():
    rng = np.random.default_rng(0)
    clean = rng.normal(2, 3, size=(5001, 2)).astype(np.float32)
    clean[0] = 0
    tables = {kind: clean.copy() for kind in ("shuffle", "constant", "random")}
    for kind, table in tables.items():
        corrupt.control(table, kind, np.random.default_rng(1))
        assert (table[0] == 0).all()
        assert np.square(table[1:]).mean(0) == pytest.approx(np.square(clean[1:]).mean(0), rel=0.05)
    assert np.array_equal(np.sort(tables["shuffle"], 0), np.sort(clean, 0))  # the same rows,
    rows = {tuple(r) for r in clean.tolist()}
    assert all(tuple(r) in rows for r in tables["shuffle"].tolist())  # each whole,
    assert (tables["shuffle"] == clean).all(1)[1:].mean() < 0.01  # but elsewhere
    assert len(np.unique(tables["constant"][1:], axis=0)) == 1
    assert tables["random"][1:].mean(0) == pytest.approx(clean[1:].mean(0), rel=0.05)
    assert tables["random"][1:].std(0) == pytest.approx(clean[1:].std(0), rel=0.05)
    assert abs(np.corrcoef(tables["random"][1:, 0], clean[1:, 0])[0, 1]) < 0.05


def test_each_chosen_item_loses_one_modality():
    rng = np.random.default_rng(0)
    clean = {m: rng.normal(size=(1001, 2)).astype(np.float32) for m in "abc"}
    values = {m: x.copy() for m, x in clean.items()}
    lost = corrupt.lose(values, 0.3, rng)
    times = sum(mask.astype(int) for mask in lost.values())
    assert times.sum() == 300 and times.max() == 1 and times[0] == 0
    for m, mask in lost.items():
        assert 70 < mask.sum() < 130
        kept = ~mask
        assert np.array_equal(values[m][kept], clean[m][kept])
        assert values[m][mask] == pytest.approx(np.tile(clean[m][1:][kept[1:]].mean(0), (mask.sum(), 1)), abs=1e-5)


def test_a_data_set_is_corrupted_the_same_way_for_every_seed_and_model(toy):
    settings = {"feature_noise": 3.0, "feature_dropout": 0.4, "feature_control": "{a: shuffle}"}
    dataset, worse = features(toy, **settings)
    _, clean = features(toy)
    other = prepare(make_config("VBPR+MRdIB (paper)", "toy", 7, values={"data_path": str(toy), **settings})).dataset
    assert all(np.array_equal(other.features[m].numpy(), worse[m]) for m in worse)
    assert all((worse[m][0] == 0).all() and not np.allclose(worse[m], clean[m]) for m in worse)
    notes = {k: v for k, v in dataset.notes.items() if k.startswith("items_that_lost")}
    assert sum(notes.values()) == round(0.4 * (dataset.item_num - 1))
    assert {m: int(mask.sum()) for m, mask in dataset.missing.items()} == {
        k.removeprefix("items_that_lost_"): v for k, v in notes.items()
    }
    moved = features(toy, **settings, split_seed=3)[1]
    assert not np.array_equal(moved["b"], worse["b"])


def test_a_control_can_be_for_one_modality(toy):
    _, clean = features(toy)
    _, worse = features(toy, feature_control="{b: constant}")
    assert np.array_equal(worse["a"], clean["a"]) and len(np.unique(worse["b"][1:], axis=0)) == 1
    _, all_of_them = features(toy, feature_control="random")
    assert all(not np.array_equal(all_of_them[m], clean[m]) for m in clean)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"feature_control": "{nope: shuffle}"}, "nope"),
        ({"feature_control": "swap"}, "feature_control"),
        ({"feature_dropout": 1.0}, "feature_dropout"),
        ({"feature_noise": "loud"}, "feature_noise"),
    ],
)
def test_mistakes_are_told(toy, values, message):
    with pytest.raises(ConfigError, match=message):
        features(toy, **values)


def test_a_corrupted_run_is_recorded_and_loads_again(toy, tmp_path):
    from mmrec_mrdib.experiment.export import load

    values = {
        "data_path": str(toy),
        "epochs": 1,
        "feature_noise": 0.0,
        "feature_control": "{a: constant}",
        "embedding_size": 8,
    }
    result = train("FREEDOM+MRdIB (paper)", "toy", 1, values=values, runs=tmp_path / "runs")
    saved = json.loads((tmp_path / "runs" / result["folder"].rsplit("/", 1)[1] / "result.json").read_text())
    assert saved["config"]["feature_noise"] == 0.0 and saved["config"]["feature_control"] == {"a": "constant"}
    trained = load(result["folder"])  # compares the fingerprint of the data
    assert torch.isfinite(trained.model.evaluation_embeddings().items).all()


def test_rows_that_stand_in_are_shuffled_with_their_mark(toy):
    raw = np.load(toy / "toy" / "a_feat.npy") + 3
    raw[[2, 5, 6]] = 0
    np.save(toy / "toy" / "a_feat.npy", raw)
    dataset, values = features(toy, feature_norm="none", feature_control="shuffle")
    mean = raw[raw.any(1)].mean(0)
    stands_in = np.isclose(values["a"], mean, atol=1e-5).all(1)
    assert stands_in.sum() == 3 and np.array_equal(stands_in, dataset.missing["a"].numpy())
