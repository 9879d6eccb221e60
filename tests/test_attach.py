"""MRdIB on models that know nothing of it."""

import copy
import logging
import math
import subprocess
import sys

import numpy as np
import pytest
import scipy.sparse as sp
import torch
import torch.nn.functional as F
from torch import nn

import mmrec_mrdib as mrdib
from mmrec_mrdib.errors import ConfigError, ContractError, DataError
from mmrec_mrdib.hosts.attach import attached
from mmrec_mrdib.losses import bpr
from mmrec_mrdib.testing.contract import build

U, I = 12, 10  # noqa: E741
WIDTHS = {"image": 6, "text": 5}
OFF = {"rate_weight": 0, "redundant_weight": 0, "unique_weight": 0, "synergy_weight": 0}
STILL = {"init_log_var": -200, "min_log_var": -200}
TRAIN = (
    torch.arange(U).repeat_interleave(4),
    (torch.arange(U)[:, None] * 3 + torch.tensor([0, 1, 4, 7])).flatten() % I,
)
BATCH = (torch.tensor([0, 3, 5, 11]), torch.tensor([0, 9, 6, 4]), torch.tensor([2, 2, 8, 9]))
PATHS = {"image": "image_trs", "text": "text_trs"}


def features():
    generator = torch.Generator().manual_seed(3)
    return {m: torch.randn(I, width, generator=generator) for m, width in WIDTHS.items()}


class Host(nn.Module):
    """Users and items, each item with its projected features; trained by pairs."""

    def __init__(self, widths=(4, 4), twice=None):
        super().__init__()
        torch.manual_seed(0)
        self.n_users, self.n_items = U, I
        self.v_feat, self.t_feat = features().values()
        self.user_embedding = nn.Embedding(U, sum(widths))
        self.image_trs = nn.Linear(WIDTHS["image"], widths[0])
        self.text_trs = nn.Linear(WIDTHS["text"], widths[1])
        self.unused = nn.Linear(3, 4)
        self.matrix = nn.Parameter(torch.ones(WIDTHS["image"], 4))
        self.dropout = nn.Dropout(0.3)
        self.twice = twice
        self.seen = {}

    def forward(self):
        image = self.image_trs(self.v_feat.to(self.image_trs.weight.dtype))
        if self.twice is not None:
            self.seen["again"] = self.image_trs(self.twice(self.v_feat))
        text = self.text_trs(self.t_feat.to(self.text_trs.weight.dtype))
        self.seen |= {"image": image, "text": text}
        return self.dropout(self.user_embedding.weight), torch.cat([image, text], 1)

    def calculate_loss(self, users, positives, negatives):
        u, i = self.forward()
        positives += 100  # hosts shift ids in place
        positives -= 100
        return F.softplus((u[users] * (i[negatives] - i[positives])).sum(1)).mean()

    def full_sort_predict(self, users):
        u, i = self.forward()
        return u[users] @ i.T


def on(host, **values):
    return mrdib.attach(host, **({"projections": PATHS, "train": TRAIN, "seed": 1} | values))


def step(host, plug=None):
    """One step; gradients of the host by name."""
    torch.manual_seed(0)
    host.train()
    host.zero_grad()
    loss = host.calculate_loss(*(x.clone() for x in BATCH))
    if plug is not None:
        loss = loss + plug.loss(*BATCH)
    loss.backward()
    return loss.item(), {n: p.grad.clone() for n, p in host.named_parameters() if p.grad is not None}


def ranked(host):
    host.eval()
    with torch.no_grad():
        return host.full_sort_predict(torch.arange(U))


def test_what_needs_no_recbole_does_not_import_it():
    code = """
import sys
sys.modules["recbole"] = None  # any import of it fails
import torch
from torch import nn
import mmrec_mrdib as mrdib
import mmrec_mrdib.mrdib.encoder
class Host(nn.Module):
    def __init__(self):
        super().__init__()
        self.trs, self.users = nn.Linear(3, 4), nn.Embedding(4, 4)
    def forward(self):
        return self.trs(torch.eye(3))
    def full_sort_predict(self, users):
        return self.users(users) @ self.forward().T
host = Host()
plug = mrdib.attach(host, {"image": "trs"}, ([0, 0, 1, 2], [0, 1, 2, 1]), shape=(4, 3), redundant_weight=0.1)
host()
plug.loss(torch.tensor([0, 1]), torch.tensor([1, 2])).backward()
print(plug.select([1, 2], [0, 0], "recall@1")["rung"] >= 0, host.trs.weight.grad.abs().sum() > 0)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout.split() == ["True", "tensor(True)"], done.stderr


def test_off_is_the_host_to_the_last_bit():
    loss, grads = step(Host())
    for values in (OFF, {"rate_weight": 0.0, "unique_weight": 0.0, "synergy_weight": 0.0}):
        host = Host()
        ours, own = step(host, on(host, **values, **STILL))
        assert ours == loss and own.keys() == grads.keys()
        assert all(torch.equal(g, grads[n]) for n, g in own.items())


def test_the_random_stream_of_the_host_goes_on_as_without():
    """Its dropout draws the same, and so does whatever it draws next."""

    def two_steps(host, plug):
        torch.manual_seed(5)
        drawn = []
        host.train()
        for _ in range(2):
            host.calculate_loss(*(x.clone() for x in BATCH))
            drawn.append(host.dropout(torch.ones(20)))
            if plug is not None:
                plug.loss(*BATCH)
        return torch.stack(drawn)

    host = Host()
    plug = on(host, rate_weight=1.0, redundant_weight=0.1)
    assert torch.equal(two_steps(host, plug), two_steps(Host(), None))
    first, second = (on(Host(), seed=n) for n in (1, 2))
    for each in (first, second):
        each.model.train().forward()
    assert not torch.equal(first.model.seen["image"], second.model.seen["image"])


def test_projections_are_samples_in_training_and_themselves_in_evaluation():
    host = Host()
    scores = ranked(host)
    plug = on(host)
    assert torch.equal(ranked(host), scores)
    host.train()
    mean = host.image_trs.forward(host.v_feat)
    draws = []
    for _ in range(100):
        host.forward()
        draws.append(host.seen["image"].detach())
    spread = torch.stack(draws).std(0)
    assert not torch.equal(draws[0], draws[1])
    torch.testing.assert_close(torch.stack(draws).mean(0), mean.detach(), atol=0.05, rtol=0.1)
    expected = math.exp(-4.6 / 2) * mean.square().mean().sqrt()  # relative to the root mean square of mu
    assert spread.mean().item() == pytest.approx(expected.item(), rel=0.08)
    assert plug.scales[0].item() == pytest.approx(mean.square().mean().item())


def test_the_objectives_see_what_the_host_has_sampled():
    host = Host()
    plug = on(
        host,
        preset="paper",
        synergy_weight=0,
        user_view="user_embedding.weight[1/2]",
        rate_weight=0.3,
        unique_weight=0.7,
    )
    host.train()
    host.calculate_loss(*(x.clone() for x in BATCH))
    z, u = dict(host.seen), host.user_embedding.weight[:, :4]
    total = plug.loss(*BATCH)
    users, pos, neg = BATCH
    unique = sum(bpr((u[users] * (z[m][pos] - z[m][neg])).sum(1)) for m in PATHS)
    assert plug.parts["unique"].item() == pytest.approx(0.7 * unique.item(), rel=1e-6)
    present = torch.unique(torch.cat([pos, neg]))
    mean = host.image_trs.forward(host.v_feat)
    rate = 0.5 * (mean.square() + math.exp(-4) - 1 + 4).sum(1)[present].mean()
    assert plug.logs["rate/image"].item() == pytest.approx(rate.item(), rel=1e-5)
    assert total.item() == pytest.approx(sum(p.item() for p in plug.parts.values()), abs=1e-4)


def test_its_terms_are_those_of_the_contracts_plugin(tmp_path):
    """Two entrances: the same representations give the same losses through either."""
    weights = {
        "rate_weight": 0.2,
        "redundant_weight": 0.1,
        "unique_weight": 1.0,
        "mi_estimator": "gaussian",
        "sigma_scale": "absolute",
        **STILL,
    }
    model, splits = build("VBPR+MRdIB (joint)", tmp_path, encoders="backbone", **weights)
    interaction = next(iter(splits.train))
    ours = model.train().step_loss(interaction)
    edges, encoders = model.interactions(splits.parts[0]), copy.deepcopy(dict(model.backbone.encoders.items()))

    class Projections(nn.Module):
        def __init__(self):
            super().__init__()
            self.own = nn.ModuleDict(encoders)

        def forward(self):
            return [module(model.features(m)) for m, module in self.own.items()]

    host = Projections()
    plug = mrdib.attach(
        host, {m: f"own.{m}" for m in encoders}, (edges.rows, edges.cols), shape=edges.shape, readout="none", **weights
    )
    host.train()()
    plug.loss(*(interaction[name] for name in ("user_id", "item_id", "neg_item_id")))
    assert set(plug.parts) == {"rate", "redundant", "unique", "synergistic"}
    for name, value in plug.parts.items():
        assert value.item() == pytest.approx(ours.parts[name].item(), rel=1e-5)


def test_everything_learns():
    host = Host()
    plug = on(host, preset="paper", synergy_weight=0)
    _, grads = step(host, plug)
    assert set(grads) == {n for n, _ in host.named_parameters() if n.partition(".")[0] not in ("unused", "matrix")}
    still = [n for n, p in plug.named_parameters() if p.grad is None or p.grad.abs().sum() == 0]
    assert not still and {"own_views.image", "stage.heads.text.weight"} <= {n for n, _ in plug.named_parameters()}


def test_it_goes_without_a_trace():
    host, twin = Host(), Host()
    keys, before = list(host.state_dict()), dict(vars(host))
    plug = on(host)
    assert list(host.state_dict()) == keys and [n for n, _ in host.named_modules()] == [
        n for n, _ in twin.named_modules()
    ]
    plug.choose(3, 1.0)
    plug.remove()
    assert vars(host).keys() == before.keys() and attached(host) is None
    assert all(not m._forward_hooks and not m._forward_hooks_with_kwargs for m in host.modules())
    assert step(host)[0] == step(twin)[0] and torch.equal(ranked(host), ranked(twin))
    with pytest.raises(ContractError, match="removed"):
        plug.loss(*BATCH)
    assert on(host) is attached(host)  # and comes back
    with pytest.raises(ConfigError, match="has a plug-in already"):
        on(host)


@pytest.mark.parametrize(
    ("change", "error", "match"),
    [
        ({"projections": {"image": "image_tr"}}, ContractError, "no module 'image_tr'.*Did you mean image_trs"),
        ({"projections": {"image": "matrix"}}, ContractError, "'matrix'.*no module.*features="),
        ({"projections": {"image": "dropout"}}, ContractError, r"widths=\{'image': d\}"),
        ({"projections": {"image": "image_trs", "text": "image_trs"}}, ContractError, "needs features="),
        ({"projections": None}, ConfigError, "projections=.*or features="),
        ({"train": None}, ConfigError, "train="),
        ({"train": ([0, 1], [3])}, DataError, "2 users and 1 items"),
        ({"train": ([0, 99], [3, 1])}, DataError, "ids up to 99"),
        ({"train": ([0.5, 1], [3, 1])}, DataError, "whole numbers"),
        ({"features": {"image": np.ones((3, 6))}}, DataError, "3 rows.*10 items"),
        ({"features": {"image": np.full((I, 6), np.nan)}}, DataError, "finite"),
        ({"method": "rank"}, ContractError, "no method 'rank'"),
        ({"user_view": "user_embeding.weight"}, ContractError, "Did you mean user_embedding.weight"),
        ({"user_view": {"audio": "user_embedding"}}, ConfigError, "audio"),
        ({"rate_wight": 1}, ConfigError, "Did you mean rate_weight"),
        ({"rate_weight": -1}, ConfigError, "rate_weight"),
        ({"encoders": "own"}, ConfigError, "unknown setting 'encoders'"),
        ({"preset": "papr"}, ConfigError, "no preset 'papr'.*paper"),
        ({"raw": True}, ConfigError, "leave projections out"),
        ({"projections": None, "features": features(), "preset": "paper"}, ConfigError, "give projections"),
        ({"projections": None, "features": features(), "user_view": "user_embedding"}, ConfigError, "user_view='history'"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_told_where_it_is_given(change, error, match):
    host = Host()
    with pytest.raises(error, match=match):
        on(host, **change)
    assert attached(host) is None and not host.image_trs._forward_hooks


def test_a_projection_that_is_not_called_is_named():
    host = Host()
    plug = on(host, projections={"image": "image_trs", "audio": "unused"})
    host.train()
    host.forward()
    with pytest.raises(ContractError, match=r"'unused' \(audio\) of Host was not called"):
        plug.loss(*BATCH)


def test_a_projection_that_is_called_twice():
    """With the same input: one sample. With another: whose sample the objectives see would be chance."""
    host = Host(twice=lambda x: x)
    plug = on(host)
    host.train().forward()
    assert torch.equal(host.seen["image"], host.seen["again"]) and not torch.equal(
        host.seen["image"], host.image_trs.forward(host.v_feat)
    )
    first = host.seen["image"]
    plug.loss(*BATCH)
    host.forward()
    assert not torch.equal(first, host.seen["image"])
    plug.remove()
    host = Host(twice=lambda x: x * 2)
    on(host)
    with pytest.raises(ContractError, match="'image_trs' is called twice"):
        host.train().forward()
    assert ranked(host).shape == (U, I)


def test_some_rows_are_not_all_items():
    host = Host()
    plug = on(host)
    host.train()
    with pytest.raises(ContractError, match="3 rows, not with all 10 items"):
        host.image_trs(host.v_feat[:3])
    plug.remove()
    on(host, widths={"image": 3})
    with pytest.raises(ContractError, match="4 columns, not 3"):
        host.forward()


def test_widths_may_differ_but_a_users_view_is_as_wide_as_its_modality():
    host = Host(widths=(4, 3))
    plug = on(host, redundant_weight=0.1, unique_weight=1.0)
    assert math.isfinite(step(host, plug)[0]) and set(plug.parts) == {"redundant", "unique", "synergistic"}
    plug.remove()
    plug = on(host, preset="paper", user_view={"image": "user_embedding"})
    with pytest.raises(ContractError, match=r"image: a tensor \(12, 7\); expected \(12, 4\)"):
        step(host, plug)
    plug.remove()
    tables = {m: torch.ones(U + I, d, 1) for m, d in (("image", 4), ("text", 3))}  # of nodes, users first
    plug = on(host, preset="paper", user_view=lambda model: tables if model is host else None)
    assert math.isfinite(step(host, plug)[0])
    assert not list(plug.own_views.items())


def test_the_output_of_a_method_may_be_the_users_view():
    host = Host()
    plug = on(host, preset="paper", user_view="forward()[0][2/2]", rate_weight=0, redundant_weight=0, unique_weight=1)
    host.train()
    torch.manual_seed(1)
    host.calculate_loss(*(x.clone() for x in BATCH))
    z = dict(host.seen)
    plug.loss(*BATCH)
    torch.manual_seed(1)
    p = F.dropout(host.user_embedding.weight, 0.3)[:, 4:]
    expected = sum(bpr((p[BATCH[0]] * (z[m][BATCH[1]] - z[m][BATCH[2]])).sum(1)) for m in PATHS)
    assert plug.parts["unique"].item() == pytest.approx(expected.item(), rel=1e-5)


def test_a_loss_in_evaluation_mode_is_refused_and_so_are_shifted_ids():
    host = Host()
    plug = on(host)
    host.eval()
    host.forward()
    with pytest.raises(ContractError, match=r"evaluation mode.*model.train\(\)"):
        plug.loss(*BATCH)
    host.train().forward()
    with pytest.raises(
        DataError, match="positives: expected ids from 0 to 9, found 12 to 21; if the host shifts its batch in place"
    ):
        plug.loss(BATCH[0], BATCH[1] + U, BATCH[2])


@pytest.mark.parametrize("when", ["fresh", "under way"])
def test_a_copy_has_a_plugin_of_its_own(when):
    host = Host()
    plug = on(host)
    if when == "under way":
        host.train().forward()
        host.seen = {}
    twin = copy.deepcopy(host)
    its = attached(twin)
    assert its is not plug and its.model is twin and its.stage is not plug.stage
    ranked(twin), ranked(host)
    with torch.no_grad():
        twin.user_embedding.weight.zero_()
    assert ranked(twin).abs().sum() == 0 and ranked(host).abs().sum() > 0
    its.choose(3, 1.0)
    assert ranked(twin).abs().sum() > 0 and not plug.reads_content
    with pytest.raises(ContractError, match="was not called"):
        its.train() and twin.train() and its.loss(*BATCH)
    assert math.isfinite(step(twin, its)[0])
    its.remove()
    assert not twin.image_trs._forward_hooks and host.image_trs._forward_hooks


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_hosts_of_other_precision(dtype):
    host = Host()
    plug = on(host, rate_weight=0.1, redundant_weight=0.1)
    host.to(dtype)
    host.train().forward()
    z = host.seen["image"]
    assert z.dtype == dtype and {p.dtype for p in plug.parameters()} == {torch.float32}
    assert torch.equal(plug._pending["image"][0].to(dtype), z) or dtype == torch.float64
    loss = plug.loss(*BATCH)
    loss.backward()
    assert loss.dtype == torch.float32 and host.image_trs.weight.grad.dtype == dtype
    exact = Host().to(dtype)
    on(exact, **STILL)
    exact.train().forward()
    assert torch.equal(exact.seen["image"], exact.image_trs.forward(exact.v_feat.to(dtype)))


def test_a_joint_layer_is_split_by_its_columns():
    class Joint(nn.Module):
        def __init__(self):
            super().__init__()
            self.n_users, self.n_items = U, I
            self.both = torch.cat(list(features().values()), 1)
            self.item_linear = nn.Linear(11, 4)

        def forward(self):
            return self.item_linear(self.both)

    host = Joint()
    joint = {"image": "item_linear", "text": "item_linear"}
    plug = on(host, projections=joint, features=features(), readout="none", **STILL)
    host.train()
    assert torch.equal(host(), host.item_linear.forward(host.both))
    torch.testing.assert_close(
        plug._pending["image"][0] + plug._pending["text"][0], host.item_linear.forward(host.both)
    )
    shares = F.linear(host.both[:, 6:], host.item_linear.weight[:, 6:], host.item_linear.bias / 2)
    torch.testing.assert_close(plug._pending["text"][0], shares)
    plug.remove()
    with pytest.raises(ContractError, match=r"takes 11 columns.*\[6, 6\]"):
        on(host, projections=joint, features={m: torch.ones(I, 6) for m in joint}, readout="none")


# The readout.


def test_the_readout_adds_the_content_to_the_hosts_ranking():
    host = Host()
    plug = on(host, projections=None, features=features())
    base = ranked(host)
    plug.choose(4, 2.0)
    weight = 0.4 * 2
    assert plug.readout() == {"rung": 0.4, "weight": pytest.approx(weight)}
    expected = base.clone()
    a = torch.zeros(U, I)
    a[TRAIN] = 1
    for m, x in features().items():
        unit = F.normalize(plug.own_encoders[m](x))
        expected += weight * F.normalize(a @ unit) @ unit.T
    torch.testing.assert_close(ranked(host), expected.detach())
    torch.testing.assert_close(plug.scores(torch.arange(U)), expected.detach())
    host.train()
    torch.manual_seed(1)
    unread = host.full_sort_predict(torch.arange(U))
    plug.remove()
    torch.manual_seed(1)
    assert torch.equal(unread, host.full_sort_predict(torch.arange(U)))  # while it trains, scores are its own


def test_the_readout_follows_the_projections():
    host = Host()
    plug = on(host)
    with pytest.raises(ContractError, match="not called yet"):
        plug.catalogue()
    ranked(host)
    plug.choose(4, 1.0)
    before = ranked(host)
    unit = {m: F.normalize(z) for m, z in host.seen.items()}
    torch.testing.assert_close(plug.catalogue()[0], {m: z.detach() for m, z in unit.items()})
    with torch.no_grad():
        host.image_trs.weight.mul_(-1)
        host.image_trs.bias.add_(1)
    assert not torch.equal(ranked(host), before)
    torch.testing.assert_close(plug.catalogue()[0]["image"], F.normalize(host.seen["image"]).detach())


def test_the_weight_is_chosen_on_validation():
    """Items are of two kinds, which the features tell and the host does not know; users like one."""
    torch.manual_seed(0)
    kind = torch.arange(40) % 2
    x = F.one_hot(kind, 2).float() * 3 + torch.randn(40, 2) * 0.3
    likes = torch.arange(30) % 2
    mine = torch.stack([torch.randperm(20)[:8] * 2 + k for k in likes])
    users = torch.arange(30)

    class Random(nn.Module):
        def __init__(self):
            super().__init__()
            self.table = nn.Parameter(torch.randn(30, 40))

        def rank_all(self, interaction):
            return self.table[interaction[0]]

    host = Random().eval()
    train = sp.coo_matrix((np.ones(180), (users.repeat_interleave(6), mine[:, :6].flatten())), (30, 40))
    plug = mrdib.attach(
        host, train=train, features={"x": x}, method="rank_all", interaction=lambda u: [u], content_size=2
    )
    found = plug.fit(users, mine[:, 6], "ndcg@5")
    assert found["rung"] > 0 and plug.weight > 0
    with torch.no_grad():
        best = host.rank_all([users]).scatter(1, mine[:, :6], -torch.inf).argmax(1)
    assert (kind[best] == likes).float().mean() > 0.9  # the host alone: half of them
    plug.remove()
    raw = mrdib.attach(host, train=train, features={"x": x}, method="rank_all", interaction=lambda u: [u], raw=True)
    assert raw.select(users, mine[:, 6], "ndcg@5")["rung"] > 0
    with pytest.raises(ConfigError, match="learns nothing"):
        raw.loss(users, users)
    raw.remove()
    shuffled = mrdib.attach(
        host,
        train=train,
        features={"x": x},
        method="rank_all",
        interaction=lambda u: [u],
        raw=True,
        content_control="shuffle",
    )
    assert shuffled.select(users, mine[:, 6], "ndcg@5")["ndcg@5"] < found["ndcg@5"] / 2
    with pytest.raises(ConfigError, match="metric=recal@5: expected one of recall"):
        shuffled.select(users, mine[:, 6], "recal@5")


def test_a_host_that_takes_something_else_than_ids_is_told():
    host = Host()
    host.full_sort_predict = lambda interaction: interaction[0].float()
    plug = on(host)
    with pytest.raises(ContractError, match=r"full_sort_predict gives .* expected a score of each.*interaction="):
        plug.scores(torch.arange(3))
    plug.remove()
    assert host.full_sort_predict([torch.ones(1)]) == 1  # the object's own method is back


def test_the_forward_pass_itself_may_rank():
    class Ranks(Host):
        def forward(self, users=None):
            u, i = super().forward()
            return u[users] @ i.T

    host = Ranks()
    with torch.no_grad():
        base = host.eval()(torch.arange(U))
        plug = on(host, method="forward")
        plug.choose(4, 1.0)
        host.eval()(torch.arange(2))  # so that representations are known
        beside = (
            F.normalize(plug.histories.sums(plug.catalogue()[0]["image"], torch.arange(U)))
            @ plug.catalogue()[0]["image"].T
        )
        beside += (
            F.normalize(plug.histories.sums(plug.catalogue()[0]["text"], torch.arange(U)))
            @ plug.catalogue()[0]["text"].T
        )
        torch.testing.assert_close(host(torch.arange(U)), base + 0.4 * beside)
    host.train()(torch.arange(3))
    assert math.isfinite(plug.loss(*BATCH).item())
    plug.remove()
    assert "forward" not in vars(host)


# Whoever uses it.


def test_suggest_writes_the_line():
    text = mrdib.suggest(Host())
    assert "image: 'image_trs' (Linear, 6 -> 4)" in text and "'matrix' is a matrix (6, 4)" in text
    plug = eval(
        text.splitlines()[-1].partition(" = ")[2],
        {"mrdib": mrdib, "model": Host(), "users": TRAIN[0], "items": TRAIN[1]},
    )
    assert list(plug._at) == ["image_trs", "text_trs"]
    assert "features={...}" in mrdib.suggest(nn.Linear(3, 2)).splitlines()[-1]


def test_parameters_forgotten_in_the_optimizer_are_noticed(caplog):
    for forgotten in (True, False):
        host = Host()
        plug = on(host, rate_weight=0.1)
        optimizer = torch.optim.SGD([*host.parameters(), *(() if forgotten else plug.parameters())], 0.1)
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            for _ in range(5):
                step(host, plug)
                optimizer.step()
        assert ("give them to the optimizer" in caplog.text) == forgotten


def test_a_state_dict_brings_everything_back():
    host = Host()
    plug = on(host, rate_weight=0.1)
    step(host, plug)
    plug.choose(2, 3.0)
    with torch.no_grad():
        for p in host.parameters():
            p.mul_(3)  # the means grow, and the scale of the variances stays that of the start
    other = Host()
    again = on(other, rate_weight=0.1)
    other.load_state_dict(host.state_dict())
    again.load_state_dict(plug.state_dict())
    assert again.stage.bounds == plug.stage.bounds and again.readout() == plug.readout()


def test_missing_negatives_are_drawn_and_known_items_are_none():
    host = Host()
    plug = on(host, preset="paper")
    users = torch.arange(U).repeat(50)
    drawn = plug._draw_negatives(users)
    assert not (plug._keys[:, None] == users * I + drawn).any() and len(torch.unique(drawn)) == I
    host.train().forward()
    assert math.isfinite(plug.loss(BATCH[0], BATCH[1]).item())


def test_automatic_weights_need_the_hosts_loss():
    host = Host()
    plug = on(host, preset="paper", weighting="auto")
    host.train()
    loss = host.calculate_loss(*(x.clone() for x in BATCH))
    with pytest.raises(ConfigError, match="host_loss=loss"):
        plug.loss(*BATCH)
    loss = host.calculate_loss(*(x.clone() for x in BATCH))
    assert plug.loss(*BATCH, host_loss=(loss, loss * 0)).isfinite() and "alpha/unique" in plug.logs


# RecBole's own models, in a script of a user's.


def test_recboles_own_models_and_trainer(tmp_path):
    """A user's RecBole script: her model, RecBole's Config, data set, loaders and Trainer, and three lines of ours."""
    from recbole.config import Config
    from recbole.data import create_dataset, data_preparation
    from recbole.model.general_recommender import BPR, NeuMF
    from recbole.trainer import Trainer

    from mmrec_mrdib import compat

    compat.activate()
    folder = tmp_path / "tiny"
    folder.mkdir()
    rows = [f"u{u}\ti{(u * 3 + k * k) % 20}" for u in range(15) for k in range(8)]
    (folder / "tiny.inter").write_text("user_id:token\titem_id:token\n" + "\n".join(dict.fromkeys(rows)) + "\n")
    values = {"data_path": str(tmp_path), "epochs": 2, "train_batch_size": 64, "checkpoint_dir": str(tmp_path / "saved"), "use_gpu": False,
              "show_progress": False, "topk": [5], "valid_metric": "NDCG@5", "metrics": ["NDCG"], "state": "ERROR"}  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path)
        patch.setattr(sys, "argv", ["script"])
        config = Config(model=BPR, dataset="tiny", config_dict=values)
        dataset = create_dataset(config)
        train, valid, _ = data_preparation(config, dataset)

        class Mine(BPR):
            def __init__(self, config, dataset):
                super().__init__(config, dataset)
                self.register_buffer("pictures", torch.randn(self.n_items, 6), persistent=False)
                self.picture_trs = nn.Linear(6, self.embedding_size)

            def get_item_embedding(self, item):
                return super().get_item_embedding(item) + self.picture_trs(self.pictures)[item]

            def full_sort_predict(self, interaction):
                user = self.get_user_embedding(interaction[self.USER_ID])
                return (user @ (self.item_embedding.weight + self.picture_trs(self.pictures)).T).view(-1)

        torch.manual_seed(1)
        model = Mine(config, train.dataset)
        feat = train.dataset.inter_feat
        plug = mrdib.attach(model, {"picture": "picture_trs"}, (feat["user_id"], feat["item_id"]), seed=1)
        stock = model.calculate_loss
        model.calculate_loss = lambda batch: (
            stock(batch) + plug.loss(batch["user_id"], batch["item_id"], batch["neg_item_id"])
        )
        trainer = Trainer(config, model)
        trainer.optimizer.add_param_group({"params": list(plug.parameters())})
        trainer.fit(train, valid, saved=False, show_progress=False, verbose=False)
        assert all(p.grad is not None for p in plug.parameters() if p.requires_grad and p.ndim)
        base = trainer.evaluate(valid, load_best_model=False)
        held = valid.dataset.inter_feat
        assert plug.select(held["user_id"], held["item_id"], "ndcg@5")["ndcg@5"] >= base["ndcg@5"] - 1e-3
        plug.choose(9, 100.0)  # the content alone, in effect
        by_content = trainer.evaluate(valid, load_best_model=False)
        assert by_content != base
        users = torch.arange(1, model.n_users)
        scores = model.full_sort_predict({"user_id": users}).view(len(users), -1)
        expected = F.normalize(plug.histories.sums(plug.catalogue()[1], users)) @ plug.catalogue()[1].T
        assert (scores.argmax(1) == (expected * plug.weight + plug.host_scores(users)).argmax(1)).all()
        plug.remove()
        pairs = NeuMF(Config(model=NeuMF, dataset="tiny", config_dict=values), train.dataset)
        beside = mrdib.attach(
            pairs, train=(feat["user_id"], feat["item_id"]), features={"x": torch.randn(model.n_items, 6)}, raw=True
        )
        pairs.eval()
        assert beside.host_scores(users).shape == (len(users), model.n_items)  # a model that scores pairs
        beside.choose(9, 1.0)
        from recbole.data.interaction import Interaction

        assert pairs.full_sort_predict(Interaction({"user_id": users})).shape == (len(users), model.n_items)
