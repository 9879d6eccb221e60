"""What the benchmarks compare with: floors that train, generated data that is sound, exponents."""

import argparse
import json
import os

import numpy as np
import pytest
import torch
from recbole.data.interaction import Interaction

from benchmarks import growth, null, planted, table
from benchmarks.floors import FLOORS
from mmrec_mrdib import registry
from mmrec_mrdib.data import check
from mmrec_mrdib.experiment.run import make_config, prepare


@pytest.mark.parametrize("model", FLOORS)
def test_floors_do_what_the_models_do(model, toy):
    """A few epochs move all of a floor's parameters, and as many numbers as the model has."""
    config = make_config(model, "toy", 1, values={"data_path": str(toy)})
    splits = prepare(config)
    torch.manual_seed(0)
    net = registry.model_class(model)(config, splits.parts[0])
    net.train()
    optimizers = []
    original = torch.optim.Adam.__init__

    def remember(self, params, *args, **kwargs):
        optimizers.append(self)
        original(self, params, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.optim.Adam, "__init__", remember)
        epoch = FLOORS[model](splits, net)
    (parameters,) = (group["params"] for group in optimizers[0].param_groups)
    before = [p.detach().clone() for p in parameters]
    for _ in range(3):
        epoch()
    assert all(p.isfinite().all() and not torch.equal(p, b) for p, b in zip(parameters, before, strict=True))
    biases = 0 if model != "VBPR" else 2 * config["embedding_size"]  # a bias a modality here, one of their sum there
    assert sum(p.numel() for p in parameters) + biases == sum(p.numel() for p in net.parameters() if p.requires_grad)


def test_generated_data_is_sound(tmp_path):
    growth.generate(tmp_path / "small", 4000, 300, 500)
    config = make_config("VBPR", "small", 1, values={"data_path": str(tmp_path)})
    splits = prepare(config)
    assert sum(map(len, splits.parts)) == 4000
    assert (splits.dataset.user_num, splits.dataset.item_num) == (301, 501)
    assert {m: x.shape[1] for m, x in splits.dataset.features.items()} == {"image": 384, "text": 384}
    assert check.check(tmp_path / "small").usable


def test_one_column_decides_in_planted_data_and_none_in_independent(tmp_path):
    planted.write(tmp_path, users=200, items=60, each=8)
    texts = {d.name: (d / f"{d.name}.inter").read_text().split("\n", 1)[1] for d in tmp_path.iterdir()}
    assert len(texts) == 4 and len({text.replace(name, "") for name, text in texts.items()}) == 1
    table = np.loadtxt(tmp_path / "planted-16" / "planted-16.inter", skiprows=1, dtype=int)
    users, items = table[table[:, 2] == 0][: 200 * 4, :2].T

    def alike(name, modality):
        """Of each column, the correlation of its values of a user's items: squared mean over mean square."""
        x = np.load(tmp_path / name / f"{modality}_feat.npy")[items]
        means = np.stack([np.bincount(users, x[:, n], 200) / 4 for n in range(x.shape[1])])
        return (means**2).mean(1) / (x**2).mean(0)

    decides = alike("planted-16", "a") > 0.6  # a quarter for independent columns
    assert decides.sum() == 1 and len(decides) == 17 and check.check(tmp_path / "planted-16").usable
    assert (alike("independent", "a") < 0.45).all() and (alike("planted-16", "b") < 0.45).all()


def test_exponents_and_their_picture(tmp_path):
    sizes = np.array([1e3, 1e4, 1e5])
    assert growth.exponent(sizes, 3 * sizes**1.5) == pytest.approx(1.5)
    row = {"model": "VBPR", "users": 10, **dict.fromkeys(growth.FIGURES, 0.1)}
    results = [
        row | {"interactions": int(n), "items": 0, "epoch_seconds": 1e-6 * n, "peak_gib": 1e-9 * n**2} for n in sizes
    ]
    fits = growth.fits(results)["VBPR"]
    assert fits["epoch_seconds"] == pytest.approx(1) and fits["peak_gib last"] == pytest.approx(2)
    growth.plot(results, tmp_path / "growth.png")
    assert (tmp_path / "growth.png").read_bytes()[:4] == b"\x89PNG"


def test_item_knn_by_hand(monkeypatch):
    """Items 1 and 2 have users 1 and 2, item 3 has users 2 and 3: cosines 1, 1/2, 1/2; item 4 has none."""
    users, items = np.array([1, 1, 2, 2, 2, 3, 3]), np.array([1, 2, 1, 2, 3, 3, 3])  # (3, 3) twice: counts once

    def scores():
        model = table.ItemKNN(users, items, 4, 5)
        return model.full_sort_predict(Interaction({"user_id": torch.tensor([1, 2, 3])})).tolist()

    assert scores() == [pytest.approx(s) for s in ([0, 1, 1, 1, 0], [0, 1.5, 1.5, 1, 0], [0, 0.5, 0.5, 0, 0])]
    monkeypatch.setattr(table, "NEIGHBOURS", 1)  # of 1: 2; of 2: 1; of 3: 1, the first of two alike
    assert scores() == [pytest.approx(s) for s in ([0, 1, 1, 0.5, 0], [0, 1, 1, 0.5, 0], [0, 0, 0, 0, 0])]


def test_table_of_defaults(tmp_path):
    """Of results as they are on disk: a dash where none is, a mark below popularity."""
    options = argparse.Namespace(runs=tmp_path, data_path=None, tables=["defaults"], models=None)
    assert [c.name for c in table.cells(options)][:2] == ["VBPR-defaults-lfm2k", "VBPR-defaults-ml-100k"]

    def outcome(valid, test):
        return {"valid": {"recall@20": valid}, "test": {"recall@20": test, "ndcg@20": test / 2}}

    known = {"Popularity": outcome(0.2, 0.1), "ItemKNN": outcome(0.3, 0.2)}
    (tmp_path / "floors-ml-100k.json").write_text(json.dumps(known))
    (tmp_path / "VBPR-defaults-ml-100k.json").write_text(json.dumps(outcome(0.1, 0.4)))
    lines = table.defaults_table(options)
    assert lines[2:6] == [
        "| Popularity | 0.1000, 0.0500 |",
        "| ItemKNN | 0.2000, 0.1000 |",
        "| VBPR | 0.4000, 0.2000 (!) |",
        "| FREEDOM | – |",
    ]


def test_table_of_the_field(tmp_path):
    """The newest run of a model counts, and a longer name that begins alike is another model's."""

    def write(name, valid, test, epochs=3, seconds=2.0):
        folder = tmp_path / name
        folder.mkdir()
        result = {
            "version": 1, "state": "complete", "model": name.split("-")[0], "dataset": "baby", "seed": 1, "best_epoch": 2, "config": {},
            "epochs": [{}] * epochs, "valid": {"recall@20": valid}, "test": {"recall@20": test, "ndcg@20": test / 2},
            "popularity": {"recall@20": 0.05}, "seconds_per_epoch": seconds, "peak_memory_mb": 512.3,
        }  # fmt: skip
        (folder / "result.json").write_text(json.dumps(result))

    write("VBPR-baby-1-00000001", 0.2, 0.3)
    os.utime(tmp_path / "VBPR-baby-1-00000001" / "result.json", (1, 1))
    write("VBPR-baby-1-00000002", 0.2, 0.1)
    write("VBPR+MRdIB-baby-1-00000003", 0.2, 0.12, epochs=4)
    write("VBPR+MRdIB-shuffled-baby-1-00000004", 0.2, 0.9)
    write("Pop-baby-1-00000005", 0.04, 0.04, epochs=1, seconds=0.0)
    write("BPR-baby-1-00000006", 0.04, 0.04)
    lines = table.field_table(argparse.Namespace(runs=tmp_path), "baby")
    assert len(lines) == 3 + len(registry.BASELINES) + len(registry.MODELS)
    assert "| VBPR | 0.1000, 0.0500 | 0.1200, 0.0600 | +20.0 % | 3 (2) | 2.0 | 512 | 4, 2.0 | .0663/.0284 |" in lines
    assert "| Pop | 0.0400, 0.0200 | – | – | one pass | 0.0 | 512 | – | – |" in lines
    assert "| BPR | 0.0400, 0.0200 (!) | – | – | 3 (2) | 2.0 | 512 | – | – |" in lines
    assert "| SOIL | – | – | – | – | – | – | – | .1028/.0454 |" in lines


def test_the_null_experiment_sees_what_users_alone_would_have_called_significant():
    """Seeds that matter much: the bootstrap over users is wrong far too often; what is printed in bold is not."""
    rng = np.random.default_rng(0)
    drawn = [[null.simulated(rng, 5, users=60, seed_sd=0.03, noise=0.05)] for _ in range(120)]
    found = null.alarms(drawn)
    assert all(total == 120 for _, total in found.values())
    assert found["bootstrap"][0] > 30 and found["board"][0] <= found["t"][0] <= 12
    assert null.alarms([[null.simulated(rng, 3, gain=0.5)]])["board"] == (0, 1)  # three seeds, whatever the gain
    assert null.alarms([[null.simulated(rng, 5, gain=0.5)]])["board"] == (1, 1)
    runs = rng.random((10, 40, 2))
    assert sum(len(pair) for pair in null.deals(runs, rng, 3)) == 6
    assert null.t_alone(rng.random(200), rng, 2000) == pytest.approx(0.05, abs=0.02)
    assert null.interval(5, 100) == pytest.approx((0.0215, 0.1118), abs=1e-4)
