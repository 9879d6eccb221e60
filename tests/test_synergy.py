"""Planted synergy: relevance is the product of two modalities' signs, so that neither alone says anything."""

import numpy as np
import pytest
import torch
from torch import nn

from mmrec_mrdib import registry
from mmrec_mrdib.evaluation import Unimodal, rank
from mmrec_mrdib.experiment.run import make_config, prepare
from mmrec_mrdib.losses import bpr
from mmrec_mrdib.models.base import Embeddings, MultimodalRecommender
from mmrec_mrdib.trainer import MRdIBTrainer


class JointFusion(MultimodalRecommender):
    """Items are a network of both modalities' representations and nothing else: no table could learn the items by heart."""

    def __init__(self, config, dataset):
        super().__init__(config, dataset)
        self.users = nn.init.xavier_uniform_(nn.Parameter(torch.empty(self.n_users, 16)))
        for m, dims in self.feature_dims.items():
            self.encoders[m] = nn.Linear(dims, 16)
        self.fuse = nn.Sequential(nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 16))

    def propagate(self, enc):
        return Embeddings(self.users, self.fuse(torch.cat(list(enc.z.values()), 1)))

    def loss_parts(self, enc, emb, batch):
        return {"bpr": bpr(batch.margins(emb.users, emb.items, enc))}


def write_xor(folder, users=200, items=80):
    rng = np.random.default_rng(0)
    signs = rng.permutation(np.tile([[1, 1], [1, -1], [-1, 1], [-1, -1]], (items // 4, 1)))
    folder.mkdir()
    for n, name in enumerate(("left", "right")):
        noise = rng.normal(size=(items, 3)) * 0.3
        np.save(folder / f"{name}_feat.npy", np.column_stack([signs[:, n] * 1.0, noise]).astype(np.float32))
    lines = ["userID\titemID\trating\tx_label"]
    kind = signs.prod(1)
    for user in range(users):
        liked = rng.permutation(np.flatnonzero(kind == (1 if user % 2 else -1)))[:20]
        lines += [f"{user}\t{item}\t1\t{0 if n < 10 else 1 if n < 15 else 2}" for n, item in enumerate(liked)]
    (folder / f"{folder.name}.inter").write_text("\n".join(lines) + "\n")


@pytest.mark.parametrize("weight", [0.1, 0.5])
def test_synergy_finds_what_no_modality_says_alone(tmp_path, monkeypatch, weight):
    monkeypatch.setitem(registry.MODELS, "JointFusion", f"{__name__}:JointFusion")
    write_xor(tmp_path / "xor")
    values = {
        "data_path": str(tmp_path), "epochs": 60, "synergy_weight": weight,
        "learning_rate": 0.01, "train_batch_size": 512, "topk": [10], "valid_metric": "Recall@10", "stopping_step": 60,
    }  # fmt: skip
    config = make_config("JointFusion+MRdIB", "xor", 1, values=values)
    torch.manual_seed(0)
    splits = prepare(config)
    model = registry.model_class("MRdIB")(config, splits.parts[0])
    MRdIBTrainer(config, model, tmp_path / "r").fit(splits.train, splits.valid)
    model.eval()

    def recall(scored):
        return rank(scored, splits.test, ("recall",), (10,), "user_id").means["recall@10"]

    fused, alone = (
        recall(model),
        max(recall(Unimodal(model, *model.evaluation_embeddings().views[m])) for m in ("left", "right")),
    )
    # 10 of 70 candidates by chance: 0.14; 10 of the 30 of the right kind: 0.33
    assert fused > 0.28 and alone < 0.2
