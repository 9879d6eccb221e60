"""Weights that set themselves, and the synergy objective."""

import math

import pytest
import torch

from mmrec_mrdib.errors import ConfigError
from mmrec_mrdib.mrdib.objectives.synergistic import synergistic
from mmrec_mrdib.mrdib.weighting import AutoWeights
from mmrec_mrdib.testing.contract import build


def auto(**start):
    return AutoWeights(start, 0.5, {"redundant": 0.1, "unique": 0.4}, (1e-4, 1.0), interval=4)


def test_the_rate_weight_grows_above_the_target_and_falls_below():
    weights = auto(rate=0.01)
    for rate, factor in ((0.75, 0.5), (50.0, 1.0), (0.25, -0.5), (0.5, 0.0)):
        before = weights.log_alpha.clone()
        weights.hold_rate(torch.tensor(rate))
        assert (weights.log_alpha - before).item() == pytest.approx(0.01 * factor, abs=1e-6)
    for _ in range(2000):
        weights.hold_rate(torch.tensor(9.0))
    assert weights.values()["rate"].item() == pytest.approx(1.0)
    for _ in range(2000):
        weights.hold_rate(torch.tensor(0.0))
    assert weights.values()["rate"].item() == pytest.approx(1e-4)


def test_the_rate_is_held_at_its_target():
    """A Gaussian encoder that wants to be far from the prior: the multiplier settles where the constraint holds."""
    from mmrec_mrdib.mrdib.objectives.rate import rate

    weights = auto(rate=0.01)
    mean = torch.nn.Parameter(torch.zeros(8, 4))
    optimizer = torch.optim.SGD([mean], 1.0)
    for _ in range(4000):
        optimizer.zero_grad()
        value = rate(0.5 * mean.square().sum(1))  # sigma = 1
        (weights.values()["rate"] * value - mean.mean() * 0.5).backward()
        weights.hold_rate(value.detach() / 4)
        optimizer.step()
    assert value.item() / 4 == pytest.approx(0.5, rel=0.1)


def test_a_term_gets_its_share_of_the_gradient():
    weights = auto(redundant=0.01, unique=0.01)
    z = torch.tensor([[3.0, 4.0]], requires_grad=True)
    rec, redundant, unique = 2 * z.norm(), 10 * z.sum(), 0.5 * z[0, 0]
    for _ in range(60):  # averaged in the logarithm
        weights.balance(rec, {"redundant": redundant, "unique": unique}, [z])
    values = weights.values()
    assert values["redundant"].item() == pytest.approx(0.1 * 2 / (10 * math.sqrt(2)), rel=1e-3)
    assert values["unique"].item() == pytest.approx(min(0.4 * 2 / 0.5, 1.0))  # the bound
    before = weights.log_alpha.clone()
    weights.balance(rec, {"redundant": z.sum() * 0.0}, [z])  # nothing to balance: nothing moves
    assert torch.equal(weights.log_alpha, before)


def test_gradients_are_measured_every_so_many_steps_across_epochs_and_checkpoints():
    weights = auto(unique=0.1)
    assert [weights.due() for _ in range(6)] == [True, False, False, False, True, False]
    restored = auto(unique=0.1)
    restored.load_state_dict(weights.state_dict())
    for w in (weights, restored):
        w.begin_epoch()
        assert [w.due() for _ in range(4)] == [False, False, True, False]


def test_a_model_with_automatic_weights_moves_them_and_keeps_them_in_its_state(tmp_path):
    model, splits = build("VBPR+MRdIB (paper)", tmp_path, weighting="auto", weight_bounds="[0.0001, 0.5]")
    model.train()
    batch = next(iter(splits.train))
    step = model.step_loss(batch)
    assert {k for k in step.logs if k.startswith("alpha/")} == {"alpha/rate", "alpha/redundant", "alpha/unique"}
    assert step.parts["unique"].item() == pytest.approx(0.05 * (step.logs["unique/a"] + step.logs["unique/b"]).item())
    moved = model.step_loss(batch).logs
    assert all(moved[f"alpha/{t}"] != step.logs[f"alpha/{t}"] for t in ("rate", "redundant", "unique"))
    state = model.state_dict()
    assert "auto.log_alpha" in state
    other, _ = build("VBPR+MRdIB (paper)", tmp_path, weighting="auto", weight_bounds="[0.0001, 0.5]")
    other.load_state_dict(state)
    assert torch.equal(other.auto.log_alpha, model.auto.log_alpha)
    model.eval()
    with torch.no_grad():
        model.evaluation_embeddings()
    assert torch.equal(other.auto.log_alpha, model.auto.log_alpha)


def test_the_pull_at_z_is_the_share_asked_for(tmp_path):
    """After some measurements on one batch, |alpha_3 dL_U/dz| is unique_share |dL_rec/dz|, both by autograd from outside."""
    model, splits = build(
        "VBPR+MRdIB (paper)",
        tmp_path,
        weighting="auto",
        balance_interval=1,
        unique_share=0.3,
        init_log_var=-8,
        weight_bounds="[1e-6, 1e6]",
    )
    model.train()
    batch = next(iter(splits.train))
    for _ in range(40):
        model.step_loss(batch)
    seen = {}
    encode = model.backbone.stage.forward

    def spy(*args):
        seen["enc"] = encode(*args)
        return seen["enc"]

    model.backbone.stage.forward = spy
    step = model.step_loss(batch)
    z = list(seen["enc"].z.values())

    def pull(*names):
        grads = torch.autograd.grad(sum(step.parts[n] for n in names), z, retain_graph=True, allow_unused=True)
        return torch.cat([g.flatten() for g in grads if g is not None]).norm().item()

    assert pull("unique") / pull("bpr", "l2") == pytest.approx(0.3, rel=0.05)


def test_a_weight_of_zero_stays_off(tmp_path):
    model, splits = build("VBPR+MRdIB (paper)", tmp_path, weighting="auto", redundant_weight=0)
    model.train()
    assert "redundant" not in model.step_loss(next(iter(splits.train))).parts
    one, splits = build("VBPR+MRdIB (paper)", tmp_path, 1, weighting="auto")
    one.train()
    assert set(one.step_loss(next(iter(splits.train))).logs) == {"rate/a", "unique/a", "alpha/rate", "alpha/unique"}


def test_resuming_goes_on_with_the_same_weights(tmp_path):
    from mmrec_mrdib.experiment.run import train

    build("VBPR", tmp_path)
    values = {
        "data_path": str(tmp_path),
        "weighting": "auto",
        "balance_interval": 3,
        "weight_bounds": [1e-6, 10.0],
        "train_batch_size": 64,
        "checkpoint_interval": 0,
        "embedding_size": 8,
    }
    whole = train("VBPR+MRdIB (paper)", "toy", 1, values=values | {"epochs": 4}, runs=tmp_path / "a")
    alphas = [e["logs"]["alpha/unique"] for e in whole["epochs"]]
    assert len(set(alphas)) == 4

    from recbole.utils import init_seed

    from mmrec_mrdib.experiment.run import make_config, prepare, seeded_model
    from mmrec_mrdib.trainer import MRdIBTrainer

    def trainer(epochs):
        config = make_config("VBPR+MRdIB (paper)", "toy", 1, values=values | {"epochs": epochs})
        init_seed(1, True)
        splits = prepare(config)
        return MRdIBTrainer(config, seeded_model(config, splits), tmp_path / "r"), splits

    first, splits = trainer(2)
    first.fit(splits.train, splits.valid)
    first.write_checkpoint(tmp_path / "r" / "last.pt")
    second, splits = trainer(4)
    second.resume_checkpoint(tmp_path / "r" / "last.pt", splits.train)
    second.fit(splits.train, splits.valid)
    assert [e["logs"]["alpha/unique"] for e in second.history] == alphas


def test_synergy_by_hand():
    fused = torch.tensor([0.5, -1.0], requires_grad=True)
    a, b = torch.tensor([2.0, -1.0], requires_grad=True), torch.tensor([0.0, -3.0])
    w = [1 - torch.sigmoid(torch.tensor(x)).item() for x in (2.0, -1.0)]  # by the best modality of each pair
    mean = sum(w) / 2
    expected = sum(x / mean * math.log1p(math.exp(-s)) for x, s in zip(w, (0.5, -1.0), strict=True)) / 2
    loss = synergistic(fused, [a, b])
    assert loss.item() == pytest.approx(expected)
    loss.backward()
    assert a.grad is None  # the weights are constants
    assert fused.grad[1].abs() > fused.grad[0].abs()


def test_synergy_of_equal_margins_is_bpr():
    same = torch.full((5,), 0.7)
    assert synergistic(same, [same]).item() == pytest.approx(math.log1p(math.exp(-0.7)))
    sure = torch.full((5,), 200.0)  # sigmoid is 1 in floating point
    assert synergistic(same, [sure]).isfinite()


def test_synergy_is_added_with_its_weight(tmp_path):
    model, splits = build("MGCN+MRdIB (paper)", tmp_path, synergy_weight=0.5, unique_weight=0)
    model.train()
    step = model.step_loss(next(iter(splits.train)))
    assert step.parts["synergistic"].item() > 0 and "unique" not in step.parts


def test_bounds_are_checked(tmp_path):
    with pytest.raises(ConfigError, match="weight_bounds"):
        build("VBPR+MRdIB (paper)", tmp_path, weighting="auto", weight_bounds="[1, 0.1]")
    with pytest.raises(ConfigError, match="weighting"):
        build("VBPR+MRdIB (paper)", tmp_path, weighting="automatic")


def test_nothing_to_balance_against_is_told(tmp_path):
    """FREEDOM's representations are in its unimodal losses alone: without these, automatic weights would stay at their start for good."""
    model, splits = build("FREEDOM+MRdIB (paper)", tmp_path, weighting="auto", reg_weight=0.0)
    model.train()
    model.before_epoch(0)
    with pytest.raises(ConfigError, match="no gradient to its representations"):
        model.calculate_loss(next(iter(splits.train)))
