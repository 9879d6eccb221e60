"""Interactions found in the top k, by an item's popularity and a user's history."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from mmrec_mrdib import load, train
from mmrec_mrdib.errors import ConfigError
from mmrec_mrdib.evaluation import RankingSplit, rank
from mmrec_mrdib.experiment.slices import by_history, by_popularity

USERS, ITEMS = 7, 9  # with padding


def pairs(*rows):
    users, items = torch.tensor(rows).T
    return users, items


def in_order(order):
    """Everyone's items by preference: order (I-1,) items, best first."""
    scores = torch.zeros(ITEMS)
    scores[torch.tensor(order)] = torch.arange(len(order), 0, -1.0)
    return SimpleNamespace(full_sort_predict=lambda interaction: scores.repeat(len(interaction["user"]), 1))


@pytest.fixture
def made(monkeypatch):
    """Item 1 has 11 training interactions (repeats stand for users that are not here), 2 has 6, 3 has 3, 4 has 2, 5 none; users have 1 to
    21. Blocks hold two users."""
    monkeypatch.setattr("mmrec_mrdib.evaluation.MIN_USERS", 1)
    rows = [(1, 1)] + [(2, 1)] * 4 + [(3, 1)] * 6 + [(4, 2)] * 6 + [(4, 3)] * 3 + [(4, 4)] * 2 + [(4, 8)] * 10
    users, items = pairs(*rows)
    feat = {"user": users, "item": items}
    valid = pairs((1, 2), (1, 5), (2, 3), (3, 4), (3, 2), (4, 1), (4, 5))
    test = pairs((1, 1), (4, 6))
    size = (USERS, ITEMS, 2 * ITEMS)
    splits = SimpleNamespace(
        parts=[SimpleNamespace(inter_feat=feat)],
        valid=RankingSplit("valid", *valid, [(users, items)], *size),
        test=RankingSplit("test", *test, [(users, items), valid], *size),
    )
    dataset = SimpleNamespace(uid_field="user", iid_field="item", user_num=USERS, item_num=ITEMS)
    return SimpleNamespace(model=in_order([1, 2, 3, 4, 5, 6, 7, 8]), splits=splits, dataset=dataset)


def figures(shares):
    return {name: (v["interactions"], v["found"]) for name, v in shares.items()}


def test_by_hand(made):
    # Top 2 without the users' own items: 1, 2, 3 -> [2, 3]; 4 -> [1, 5], since it has 2, 3, 4 and 8.
    assert len(made.splits.valid) == 2
    popularity = by_popularity(made, 2)
    assert figures(popularity) == {"0": (2, 1), "1-2": (1, 0), "3-5": (1, 1), "6-10": (2, 2), "more than 10": (1, 1)}
    assert popularity["0"]["share"] == 0.5 and popularity["1-2"]["share"] == 0
    history = by_history(made, 2)
    assert figures(history) == {"1-3": (2, 1), "4-5": (1, 1), "6-10": (2, 1), "11-20": (0, 0), "more than 20": (2, 2)}
    assert history["11-20"]["share"] is None


def test_of_the_test_split_with_its_masks(made):
    # (1, 1) is in training: masked, so not found, wherever it ranks; user 4 has 1 and 5 in valid: top 2 are 6 and 7.
    assert figures(by_popularity(made, 2, "test"))["more than 10"] == (1, 0)
    assert figures(by_popularity(made, 2, "test"))["0"] == (1, 1)
    assert figures(by_history(made, 1, split="test"))["more than 20"] == (1, 1)


def test_more_than_there_are_items_and_words_that_do_not_fit(made):
    assert sum(v["found"] for v in by_history(made, 100).values()) == 7
    with pytest.raises(ConfigError, match=r"k=0: expected 1 or more"):
        by_popularity(made, 0)
    with pytest.raises(ConfigError, match=r"split=train: expected one of valid, test"):
        by_history(made, 5, "train")


def test_what_is_found_is_what_recall_counts(toy, tmp_path):
    values = {
        "data_path": str(toy),
        "modalities": "a",
        "epochs": 1,
        "embedding_size": 8,
        "topk": [5],
        "valid_metric": "Recall@5",
    }
    trained = load(train("VBPR", "toy", 1, values=values, runs=tmp_path / "runs")["folder"])
    split = trained.splits.valid
    relevant = np.concatenate([block.n_relevant.numpy() for block in split])
    hits = rank(trained.model, split, ["recall"], [5], "user_id").per_user["recall@5"] @ relevant
    for shares in (by_popularity(trained, 5), by_history(trained, 5)):
        assert sum(v["found"] for v in shares.values()) == pytest.approx(hits) and hits > 0
        assert sum(v["interactions"] for v in shares.values()) == len(trained.splits.parts[1]) == relevant.sum()
