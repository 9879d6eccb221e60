"""RecBole's general recommenders: each runs or is refused in one line, and gives the numbers that its name promises."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from recbole.data.interaction import Interaction
from recbole.model.abstract_recommender import AbstractRecommender

from mmrec_mrdib import cli, evaluation, general, load, registry, train
from mmrec_mrdib.errors import ConfigError, NonFiniteLossError
from mmrec_mrdib.evaluation import score_all
from mmrec_mrdib.experiment import figures, leaderboard, tune
from mmrec_mrdib.experiment.run import make_config, prepare, seeded_model
from mmrec_mrdib.testing.toy import write_mmrec
from mmrec_mrdib.trainer import MRdIBTrainer
from tests.test_leaderboard import InProcess

NAMES = sorted(registry.recbole_models().keys() - registry.REFUSED.keys())
ONE_PASS = {"Pop", "Random", "ItemKNN", "EASE", "SLIMElastic", "ADMMSLIM", "NCEPLRec"}
PAIRS_ONLY = {"NeuMF", "NNCF", "ConvNCF"}
# Whose predict() is not what full_sort_predict() gives: RecBole's FISM gives its sigmoid twice, the diffusion models' fails.
OTHER_PREDICT = {"FISM": lambda x: x.sigmoid().sigmoid(), "DiffRec": None, "LDiffRec": None}
SMALL = {"RecVAE": {"hidden_dimension": 16}, "LDiffRec": {"dims_dnn": [16]}, "DiffRec": {"dims_dnn": [16]}}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A data_path with 'tiny': 14 users, 12 items, a modality that these models do not look at."""
    folder = tmp_path_factory.mktemp("general")
    write_mmrec(folder / "tiny", users=14, items=12, dims={"a": 3}, seed=1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(figures, "curves", lambda *args: b"")  # slow, and no concern of these tests
        yield folder


def values(tiny, name="", **more):
    few = {"topk": [3, 5], "valid_metric": "Recall@5", "checkpoint_interval": 0, "show_progress": False}
    return {"data_path": str(tiny), "epochs": 1, **few, **SMALL.get(name, {}), **more}


def made(tiny, name, **more):
    """(config, splits, model in evaluation mode)"""
    config = make_config(name, "tiny", 1, values=values(tiny, name, **more))
    splits = prepare(config)
    return config, splits, seeded_model(config, splits).eval()


@pytest.mark.parametrize("name", NAMES)
def test_each_model_trains_and_recommends_what_it_was_judged_by(tiny, name):
    result = train(name, "tiny", 1, values=values(tiny, name), runs=tiny / "runs")
    for part in (result["valid"], result["test"], result["epochs"][0]["valid"]):
        assert part and all(0 <= v <= 1 for v in part.values())
    assert [e["epoch"] for e in result["epochs"]] == [0] and result["best_epoch"] == 0
    assert (result["parameters"] == 0) == (result["epochs"][0]["losses"] == {}) == (name in ONE_PASS)
    trained = load(result["folder"])
    users = torch.arange(1, 15)
    with torch.no_grad():
        scores = score_all(trained.model, users, "user_id", 13)
        assert torch.isfinite(scores[:, 1:]).all() and scores.shape == (14, 13)
        torch.testing.assert_close(score_all(trained.model, users, "user_id", 13), scores, rtol=0, atol=0)
        pairs = torch.cartesian_prod(users, torch.arange(13))
        to_predict = OTHER_PREDICT.get(name, lambda x: x)
        if to_predict is not None:
            alone = trained.model.predict(Interaction({"user_id": pairs[:, 0], "item_id": pairs[:, 1]}))
            expected = to_predict(scores)[:, 1:].double()
            torch.testing.assert_close(alone.view(14, 13)[:, 1:].double(), expected, rtol=1e-4, atol=1e-5)
    ranking = MRdIBTrainer(make_config(name, "tiny", 1, values=values(tiny, name)), trained.model, tiny).rank(
        trained.splits.test
    )
    assert ranking.means == pytest.approx(result["test"], abs=1e-12)


def test_the_groups_are_those_of_the_classes(tiny):
    assert {n for n in NAMES if general.fitted_in_one_pass(registry.model_class(n))} == ONE_PASS
    no_full_sort = AbstractRecommender.full_sort_predict
    assert {n for n in NAMES if registry.model_class(n).full_sort_predict is no_full_sort} == PAIRS_ONLY


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("RaCT", "RaCT does not run here: it trains in three stages.*--model MultiVAE"),
        ("SASRec", "sequential recommender: it needs the order"),
        ("DeepFM", "context-aware recommender"),
        ("KGAT", "knowledge graph"),
        ("xgboost", "decision trees.*the package xgboost, which is not installed"),
        ("LightGBM", "decision trees.*the package lightgbm, which is not installed"),
        ("ItemKN", "Did you mean ItemKNN.*EASE.*SpectralCF"),
    ],
)
def test_what_does_not_run_is_told_in_one_true_line(name, message):
    with pytest.raises(ConfigError, match=message) as caught:
        make_config(name, "ml-100k")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "given", "message"),
    [
        ("EASE", {"reg_weight": 0.0}, "expected a number above 0"),
        ("LDiffRec", {"n_cate": 2}, "n_cate above 1 needs kmeans_pytorch, which is not installed"),
        ("NNCF", {"neigh_info_method": "louvain"}, "needs python-louvain, which is not installed"),
        ("DMF", {"inter_matrix_type": "rating"}, "DMF cannot be made: .*rating"),
        ("DGCF", {"n_factors": 7}, "DGCF cannot be made: AssertionError"),
        ("ItemKNN", {"k": 0}, "expected k of 1 or more"),
    ],
)
def test_parameters_that_do_not_work_are_told_in_one_line(tiny, name, given, message):
    with pytest.raises(ConfigError, match=message) as caught:
        made(tiny, name, **given)
    assert "\n" not in str(caught.value)


def test_dense_models_are_refused_where_they_do_not_fit(tiny, monkeypatch):
    monkeypatch.setattr("mmrec_mrdib.process.available_memory", lambda: 16 * 13 * 13 - 1)
    with pytest.raises(ConfigError, match=r"EASE needs about 0.0 GiB .* over 12 items.* use ItemKNN"):
        made(tiny, "EASE")
    made(tiny, "ItemKNN")
    monkeypatch.setattr("mmrec_mrdib.process.available_memory", lambda: 16 * 13 * 13)
    made(tiny, "EASE")


# Right values. Users 0 to 3 have {0,1,2}, {0,1}, {0,3}, {1}; item 4 is nobody's in training.
HAVE = [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (2, 0), (2, 3), (3, 1)]
RATINGS = np.zeros((4, 5))
RATINGS[tuple(zip(*HAVE, strict=True))] = 1


@pytest.fixture(scope="module")
def hand(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hand")
    (folder / "tiny").mkdir()
    rows = [(u, i, 0) for u, i in HAVE] + [(1, 4, 1), (2, 1, 1), (3, 4, 2), (1, 2, 2)]
    (folder / "tiny" / "tiny.inter").write_text(
        "userID\titemID\tx_label\n" + "".join(f"{u}\t{i}\t{label}\n" for u, i, label in rows)
    )
    np.save(folder / "tiny" / "a_feat.npy", np.eye(5, dtype=np.float32))
    return folder


def scores_of(hand, name, **given):
    """(4, 5) scores by the data's own ids."""
    _, splits, model = made(hand, name, **given)
    order = [splits.dataset.token2id("item_id", str(i)) for i in range(5)]
    users = torch.tensor([splits.dataset.token2id("user_id", str(u)) for u in range(4)])
    return score_all(model, users, "user_id", 6)[:, order].double().numpy()


def test_popularity_by_hand(hand):
    # RecBole's Pop counts batches and drawn negatives: here it would be 1 for each item
    np.testing.assert_allclose(scores_of(hand, "Pop", train_batch_size=2048), [[1, 1, 1 / 3, 1 / 3, 0]] * 4)


def test_itemknn_by_hand(hand):
    # cosines: 0-1: 2/3; 0-2, 1-2 and 0-3: 1/sqrt(3); the others 0
    root = 1 / np.sqrt(3)
    scores = scores_of(hand, "ItemKNN", k=5)
    np.testing.assert_allclose(scores[2], [root, 2 / 3, root, root, 0], atol=1e-6)  # has 0 and 3
    np.testing.assert_allclose(scores[3], [2 / 3, 0, root, 0, 0], atol=1e-6)  # has 1
    assert list(np.argsort(-scores[3])[:2]) == [0, 2]
    nearest = scores_of(hand, "ItemKNN", k=1)  # the nearest of item 0 is 1, and of 1 it is 0
    np.testing.assert_allclose(nearest[2, [0, 1, 3]], [0, 2 / 3, root], atol=1e-6)
    np.testing.assert_allclose(scores_of(hand, "ItemKNN", k=5, shrink=1.0)[3, 0], 2 / 4, atol=1e-6)


def test_itemknn_is_the_same_in_blocks(hand, monkeypatch):
    whole = scores_of(hand, "ItemKNN", k=2)
    monkeypatch.setattr(general, "_BLOCK", 12)  # two items at a time
    np.testing.assert_array_equal(scores_of(hand, "ItemKNN", k=2), whole)


@pytest.mark.parametrize(("name", "given"), [("ItemKNN", {"k": 20, "shrink": 3.0}), ("EASE", {"reg_weight": 5.0})])
def test_ours_are_recboles(tiny, name, given):
    config, splits, model = made(tiny, name, **given)
    users = torch.arange(15)
    theirs = registry.load(registry.recbole_models()[name])
    assert theirs is not type(model)
    expected = score_all(theirs(config, splits.parts[0]), users, "user_id", 13)
    torch.testing.assert_close(score_all(model, users, "user_id", 13), expected, rtol=1e-5, atol=1e-6)


def test_ease_by_its_definition(hand):
    # Steck, WWW 2019, eq. 8: B = -P / diag(P) off the diagonal, P = (X'X + reg)^-1
    inverse = np.linalg.inv(RATINGS.T @ RATINGS + 0.5 * np.eye(5))
    weights = -inverse / np.diag(inverse)
    np.fill_diagonal(weights, 0)
    scores = scores_of(hand, "EASE", reg_weight=0.5)
    np.testing.assert_allclose(scores, RATINGS @ weights, atol=1e-5)
    # of user 3, who has item 1: 2 goes with 1 in all of its interactions, 0 in two of three, 4 with nothing
    assert scores[3, 0] > scores[3, 4] == 0 and scores[3, 2] > scores[3, 3]


def test_random_is_uniform_and_depends_on_user_item_and_seed(tiny):
    scores = score_all(made(tiny, "Random")[2], torch.arange(15), "user_id", 13)
    other = make_config("Random", "tiny", 2, values=values(tiny))
    again = score_all(seeded_model(other, prepare(other)), torch.arange(15), "user_id", 13)
    assert len(torch.unique(torch.cat([scores, again]))) == 2 * 15 * 13
    assert scores.min() >= 0 and scores.max() < 1 and abs(scores.mean() - 0.5) < 4 * np.sqrt(1 / 12 / scores.numel())
    ranks = scores.argsort(1).double()
    assert abs(torch.corrcoef(ranks)[~torch.eye(15, dtype=bool)].mean()) < 0.1  # users' orders have nothing in common


def test_full_ranking_by_predict_is_full_ranking(tiny, monkeypatch):
    _, _, model = made(tiny, "BPR")
    users = torch.arange(1, 9)
    whole = score_all(model, users, "user_id", 13)
    monkeypatch.setattr(type(model), "full_sort_predict", AbstractRecommender.full_sort_predict)
    monkeypatch.setattr(evaluation, "PAIRS", 7)
    torch.testing.assert_close(score_all(model, users, "user_id", 13), whole)


def test_scores_that_are_nan_are_no_ranking(tiny):
    config, splits, model = made(tiny, "BPR")
    with torch.no_grad():
        model.item_embedding.weight[3] = torch.nan
    with pytest.raises(NonFiniteLossError, match="BPR scores items with NaN"):
        MRdIBTrainer(config, model, tiny / "scratch").rank(splits.valid)


# One pass.


def test_the_folder_of_a_model_of_one_pass(tiny):
    given = values(tiny, epochs=7, eval_step=3, stopping_step=1, metrics=["Recall", "ItemCoverage"])
    result = train("EASE", "tiny", 1, values=given, runs=tiny / "one")
    folder = Path(result["folder"])
    assert {p.name for p in folder.iterdir()} == {"result.json", "per_user.npz", "best.pt", "log.txt"}
    assert len(result["epochs"]) == 1 and result["seconds_per_epoch"] > 0 and 0 < result["test"]["itemcoverage@5"] <= 1
    assert "fitted in one pass" in (folder / "log.txt").read_text()
    stamp = (folder / "result.json").stat().st_mtime_ns
    assert train("EASE", "tiny", 1, values=given, runs=tiny / "one", resume=True) == result
    assert (folder / "result.json").stat().st_mtime_ns == stamp
    (folder / "result.json").unlink()  # as if killed: there is nothing to go on from, and the same comes out
    assert train("EASE", "tiny", 1, values=given, runs=tiny / "one", resume=True)["test"] == result["test"]


def test_the_commands(tiny, tmp_path, capsys):
    runs = ["--runs", str(tmp_path)]
    arguments = ["train", "--model", "ItemKNN", "--dataset", "tiny", "--data_path", str(tiny), "--baseline", "--quiet"]
    assert cli.main([*arguments, "--topk=[5]", "--valid_metric=Recall@5", *runs]) == 0
    folder = next(tmp_path.glob("ItemKNN-*"))
    assert cli.main(["recommend", str(folder), "--top", "2", "--output", str(tmp_path / "r.csv")]) == 0
    assert len((tmp_path / "r.csv").read_text().splitlines()) > 14
    capsys.readouterr()
    assert cli.main(["train", "--model", "RaCT", "--dataset", "tiny", "--data_path", str(tiny), "--baseline"]) == 2
    assert len(capsys.readouterr().err.strip().splitlines()) == 1


# Training.


def test_labelled_batches(tiny):
    _, splits, _ = made(tiny, "NeuMF", train_batch_size=16)
    known = set(zip(*(splits.parts[0].inter_feat[f].tolist() for f in ("user_id", "item_id")), strict=True))
    seen = []
    for batch in splits.train:
        pairs = list(zip(batch["user_id"].tolist(), batch["item_id"].tolist(), strict=True))
        half = len(pairs) // 2
        assert batch["label"].tolist() == [1.0] * half + [0.0] * half
        assert [u for u, _ in pairs[:half]] == [u for u, _ in pairs[half:]]
        assert not known & set(pairs[half:])
        seen += pairs[:half]
    assert sorted(seen) == sorted(
        zip(*(splits.parts[0].inter_feat[f].tolist() for f in ("user_id", "item_id")), strict=True)
    )


RESUMED = {
    "NeuMF": {},
    "MultiVAE": {"train_batch_size": 4},
    "NCL": {"m_step": 3, "warm_up_step": 0},  # the prototypes of epoch 0 hold in epoch 2
    "DGCF": {},
    "LINE": {},
    "DiffRec": {
        "train_batch_size": 4,
        "history_num_per_term": 2,
    },  # steps are drawn by their losses once these are full
    "SGL": {},
    "BPR": {"train_neg_sample_args": {"distribution": "popularity", "sample_num": 1, "alpha": 1.0, "dynamic": False}},
}


@pytest.mark.parametrize("name", RESUMED)
def test_training_goes_on_exactly(tiny, tmp_path, name):
    def epochs(n, resume=False):
        torch.manual_seed(resume)  # nothing may hang on what came before
        config, splits, model = made(tiny, name, epochs=n, **{"train_batch_size": 16, **RESUMED[name]})
        trainer = MRdIBTrainer(config, model, tmp_path)
        if resume:
            trainer.resume_checkpoint(tmp_path / "last.pt", splits.train)
        trainer.fit(splits.train, splits.valid)
        trainer.tensorboard.close()
        return [{k: e[k] for k in ("epoch", "losses", "valid")} for e in trainer.history], model.state_dict()

    whole, weights = epochs(3)
    first, _ = epochs(2)
    second, resumed = epochs(3, resume=True)
    assert first == whole[:2] and second == whole
    for key, value in weights.items():
        assert torch.equal(resumed[key], value), key


def test_recvae_alternates(tiny):
    _, splits, model = made(tiny, "RecVAE", n_enc_epochs=2, n_dec_epochs=3)
    batches = list(splits.train)
    turns = []
    for batch in model.train().batches(batches):
        model.zero_grad()
        model.calculate_loss(batch).backward()
        learning = tuple(any(p.grad is not None for p in part.parameters()) for part in (model.encoder, model.decoder))
        turns.append(learning)
    assert turns == [(True, False)] * 2 * len(batches) + [(False, True)] * 3 * len(batches)
    for old, new in zip(model.prior.encoder_old.parameters(), model.encoder.parameters(), strict=True):
        assert torch.equal(old, new)
    assert all(p.requires_grad for part in (model.encoder, model.decoder) for p in part.parameters())


def test_ncl_adds_prototypes_after_the_warm_up(tiny):
    _, splits, model = made(tiny, "NCL", warm_up_step=2, m_step=2)
    batch = next(iter(splits.train))
    parts, found = [], []
    for epoch in range(4):
        model.before_epoch(epoch)
        parts.append(len(model.calculate_loss(batch)))
        found.append(model.user_centroids)
    assert parts == [2, 2, 3, 3]
    assert found[0] is found[1] and found[2] is found[3] and found[1] is not found[2]


def test_kmeans_finds_clusters():
    torch.manual_seed(0)
    centres = torch.tensor([[0.0, 0.0], [9.0, 0.0], [0.0, 9.0]])
    points = (centres[:, None] + 0.1 * torch.randn(3, 20, 2)).view(-1, 2)
    best = min((general.kmeans(points, 3) for _ in range(5)), key=lambda r: float((points - r[0][r[1]]).square().sum()))
    torch.testing.assert_close(best[0][best[1]].view(3, 20, 2).mean(1), centres, atol=0.1, rtol=0)
    assert all(len(torch.unique(part)) == 1 for part in best[1].view(3, 20))
    centroids, cluster = general.kmeans(points[:2], 2)
    assert torch.equal(centroids[cluster], points[:2])


def test_ngcf_drops_messages_in_training_only(tiny):
    _, _, model = made(tiny, "NGCF", message_dropout=0.5)
    with torch.no_grad():
        assert torch.equal(model.forward()[0], model.forward()[0])
        model.train()
        assert not torch.equal(model.forward()[0], model.forward()[0])
    assert model.message_dropout == 0.5


# Searches and boards.


def test_searches(tiny):
    def search(name, trials, space=None):
        return tune.tune(name, "tiny", trials, values(tiny), runs=tiny / "search", space=space)

    only = search("Pop", 3)
    assert only.trials == 1 and only.params == {}  # there is but one point
    found = search("ItemKNN", 4, {"k": [1, 5]})
    assert found.trials == 2 and found.params["k"] in (1, 5)
    with pytest.raises(ConfigError, match="no search space for LINE"):
        tune.search_space("LINE")


def test_rows_of_a_board(tiny, tmp_path):
    shared = values(tiny, embedding_size=8, epochs=2)
    del shared["data_path"]
    spec = leaderboard.Spec(
        models=("Pop", "ItemKNN", "EASE", "BPR"), datasets=("tiny",), seeds=(1, 2), trials=1, values=shared,
        data_path=str(tiny), runs=tmp_path, metrics=("recall@5",),
    )  # fmt: skip
    found = leaderboard.execute(spec, InProcess())
    plain, variants = found[::2], found[1::2]
    assert [c.model for c in plain] == ["Pop", "ItemKNN", "EASE", "BPR"] and not any(c.failures for c in found)
    assert [c.model for c in variants] == [f"{c.model}+MRdIB" for c in plain]
    assert ["embedding_size" in c.values for c in plain] == [False, False, False, True]
    for cell in plain[:3]:  # nothing is drawn: all seeds are one
        first, second = (cell.results[seed]["test"] for seed in (1, 2))
        assert first == second and first["recall@5"] > 0
    board = json.dumps(leaderboard.board(spec, found), default=str)
    assert all(name in board for name in ("Pop", "ItemKNN", "EASE"))
