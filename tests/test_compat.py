"""One test for each workaround in compat.py, and RecBole's own pieces with our models."""

import numpy as np
import pytest
import torch
from recbole.config import Config as RecBoleConfig
from recbole.data import data_preparation
from recbole.data.interaction import Interaction
from recbole.trainer import Trainer
from recbole.utils import init_seed

from mmrec_mrdib import VBPR, MRdIB, MultimodalDataset, compat, train
from mmrec_mrdib.errors import ConfigError
from mmrec_mrdib.evaluation import PER_USER, ranking_metric
from mmrec_mrdib.experiment.run import make_config, prepare
from mmrec_mrdib.registry import MODELS, model_class
from mmrec_mrdib.trainer import MRdIBTrainer

compat.activate()


@pytest.fixture
def recbole_config(toy, tmp_path, monkeypatch):
    """RecBole's own Config, as its documentation uses it, on a data set in its atomic layout."""
    monkeypatch.setattr("sys.argv", ["pytest"])
    monkeypatch.chdir(tmp_path)
    folder = toy / "toy"
    rows = [line.split("\t")[:2] for line in (folder / "toy.inter").read_text().splitlines()[1:]]
    (folder / "toy.inter").write_text("\n".join(["user_id:token\titem_id:token", *("\t".join(r) for r in rows)]) + "\n")
    for m in "abc":
        (folder / f"{m}_ids.txt").write_text("\n".join(map(str, range(30))) + "\n")

    def make(model, **values):
        values = {"data_path": str(toy), "epochs": 1, "checkpoint_dir": str(tmp_path / "saved"), **values}
        return RecBoleConfig(model=model, dataset="toy", config_dict={"show_progress": False, **values})

    return make


@pytest.mark.parametrize(
    ("model", "backbone"),
    [(model_class(name), None) for name in MODELS] + [(MRdIB, "VBPR"), (MRdIB, "SOIL")],
    ids=[*MODELS, "VBPR+MRdIB (paper)", "SOIL+MRdIB (paper)"],
)
def test_recboles_own_config_loaders_and_trainer(recbole_config, model, backbone):
    config = recbole_config(model, **({"backbone": backbone, "preset": "paper"} if backbone else {}))
    init_seed(config["seed"], True)
    train, valid, test = data_preparation(config, MultimodalDataset(config))
    instance = model(config, train.dataset).to(config["device"])
    before = {n: p.clone() for n, p in instance.named_parameters()}
    trainer = Trainer(config, instance)
    _, best = trainer.fit(train, valid, show_progress=False)
    result = trainer.evaluate(test)  # loads the stock trainer's own checkpoint
    assert best["recall@10"] >= 0 and 0 < result["recall@10"] < 1
    assert any(not torch.equal(before[n], p) for n, p in instance.named_parameters())
    again = Trainer(config, instance)
    again.resume_checkpoint(trainer.saved_model_file)
    assert again.start_epoch == 1


def test_recboles_trainer_knows_no_stages(recbole_config):
    """A backbone that was never trained must not pass for a trained one."""
    config = recbole_config(MRdIB, backbone="VBPR")
    train, valid, _ = data_preparation(config, MultimodalDataset(config))
    trainer = Trainer(config, MRdIB(config, train.dataset).to(config["device"]))
    with pytest.raises(ConfigError, match=r"VBPR is to be trained first.*choose --training=joint"):
        trainer.fit(train, valid, show_progress=False)


def test_numpy_is_left_alone(recbole_config):
    recbole_config(VBPR)
    assert not hasattr(np, "float") and not hasattr(np, "unicode")


def test_metrics_equal_recboles():
    from recbole.evaluator.metrics import MAP, MRR, NDCG, Hit, Precision, Recall

    rng = np.random.default_rng(0)
    n = rng.integers(1, 15, size=300)
    hit = rng.random((300, 10)) < 0.3
    hit[hit.cumsum(1) > n[:, None]] = False
    for name, metric in zip(PER_USER, (Recall, NDCG, Precision, MAP, Hit, MRR), strict=True):
        config = {"metric_decimal_place": 4, "topk": [1, 5, 10]}
        recboles = metric(config).metric_info(*([hit] if name in ("precision", "hit", "mrr") else [hit, n]))
        ours = ranking_metric(name, torch.from_numpy(hit), torch.from_numpy(n), [1, 5, 10])
        for k, values in ours.items():
            np.testing.assert_allclose(values.numpy(), recboles[:, k - 1], atol=1e-12, err_msg=f"{name}@{k}")


def test_interaction_takes_python_scalars():
    assert Interaction({"x": [1.0, 2.0]})["x"].tolist() == [1.0, 2.0]


def test_missing_values_of_atomic_files_are_filled(recbole_config, toy):
    lines = [
        "item_id:token\tname:token_seq\tprice:float\tbrand:token",
        "0\tred shoe\t1.0\tx",
        "1\t\t\t",
        "2\tcap\t3.0\ty",
    ]
    (toy / "toy" / "toy.item").write_text("\n".join(lines) + "\n")
    columns = {"inter": ["user_id", "item_id"], "item": ["item_id", "name", "price", "brand"]}
    data = MultimodalDataset(recbole_config(VBPR, load_col=columns, filter_inter_by_user_or_item=False))
    row = data.token2id("item_id", "1")
    assert (
        data.item_feat["price"][row] == 2.0
        and data.item_feat["brand"][row] == 0
        and len(data.item_feat["name"][row]) == 0
    )
    data.build()
    assert data.item_feat["name"][row].sum() == 0


def test_tensors_do_not_lie_on_read_only_memory(recbole_config, recwarn):
    data = MultimodalDataset(recbole_config(VBPR))
    data.build()
    assert not [w for w in recwarn if "not writable" in str(w.message)]


def test_models_import_without_kmeans_pytorch():
    import sys

    from recbole.model.general_recommender import BPR

    assert BPR.__name__ == "BPR" and "kmeans_pytorch" not in sys.modules


def test_plain_values():
    value = compat.plain({"a": np.float64(1.5), 2: (torch.device("cpu"), None, np.int64(3))})
    assert value == {"a": 1.5, "2": ["cpu", None, 3]} and type(value["a"]) is float


def test_loaded_weights_are_not_scored_with_tables_of_an_earlier_evaluation(toy, tmp_path):
    values = {"data_path": str(toy), "epochs": 3, "topk": [5], "valid_metric": "Recall@5", "learning_rate": 0.1}
    result = train("LightGCN", "toy", 1, values=values, runs=tmp_path / "runs")
    config = make_config("LightGCN", "toy", 1, values=values)
    splits = prepare(config)
    model = model_class("LightGCN")(config, splits.parts[0])
    trainer = MRdIBTrainer(config, model, tmp_path)
    trainer.rank(splits.test)  # fills the tables with random weights
    assert trainer.evaluate(splits.test, model_file=f"{result['folder']}/best.pt") == result["test"]


def test_adjacency_from_dictionaries(toy):
    """D^-1/2 A D^-1/2 of users and items, and SpectralCF's I - D^-1 A, in the modules that call `dok_matrix._update`."""
    splits = prepare(make_config("NGCF", "toy", values={"data_path": str(toy)}))
    pairs = splits.parts[0].inter_matrix(form="coo")
    users = pairs.shape[0]
    adjacency = torch.zeros(sum(pairs.shape), sum(pairs.shape))
    adjacency[pairs.row, pairs.col + users] = adjacency[pairs.col + users, pairs.row] = 1
    degrees = adjacency.sum(1)
    scale = torch.where(degrees > 0, degrees.rsqrt(), 0)
    expected = scale[:, None] * adjacency * scale
    for name in ("NGCF", "GCMC", "NCL"):
        model = model_class(name)(make_config(name, "toy", values={"data_path": str(toy)}), splits.parts[0])
        torch.testing.assert_close(model.get_norm_adj_mat().to_dense(), expected, atol=1e-5, rtol=0)
    model = model_class("SpectralCF")(make_config("SpectralCF", "toy", values={"data_path": str(toy)}), splits.parts[0])
    laplacian = torch.eye(len(expected)) - (scale**2)[:, None] * adjacency
    torch.testing.assert_close(model.get_laplacian_matrix().to_dense(), laplacian, atol=1e-5, rtol=0)


def test_dgcf_samples_no_more_than_there_are():
    from recbole.model.general_recommender import dgcf

    users, items = dgcf.sample_cor_samples(3, 50, 10)
    assert sorted(users) == [0, 1, 2] and len(set(items)) == 10 and set(items) <= set(range(50))


def test_other_generators_come_back():
    import random

    def drawn():
        return random.random(), random.gauss(), np.random.normal(), np.random.rand()  # noqa: NPY002

    random.gauss(), np.random.normal()  # both keep a second value for the next call  # noqa: NPY002
    state = compat.other_generators()
    first = drawn()
    compat.restore_other_generators(state)
    assert drawn() == first
