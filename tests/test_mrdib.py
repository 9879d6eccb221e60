"""Objectives and estimators against closed forms and laws."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch.distributions import Normal, kl_divergence

from mmrec_mrdib.errors import ConfigError
from mmrec_mrdib.experiment.run import make_config, prepare
from mmrec_mrdib.losses import margin
from mmrec_mrdib.mrdib.encoder import Gaussian, Linear, _Sample, standardisation
from mmrec_mrdib.mrdib.estimators.mine import MINE
from mmrec_mrdib.mrdib.objectives.rate import rate
from mmrec_mrdib.mrdib.objectives.redundant import Redundancy
from mmrec_mrdib.mrdib.objectives.unique import unique
from mmrec_mrdib.registry import model_class
from mmrec_mrdib.testing.contract import build, gradients
from mmrec_mrdib.testing.toy import write_mmrec
from mmrec_mrdib.trainer import MRdIBTrainer


def test_rate_is_the_closed_form_and_so_is_its_gradient():
    torch.manual_seed(0)
    mean = torch.randn(7, 5, dtype=torch.float64, requires_grad=True)
    raw = torch.randn(7, 5, dtype=torch.float64, requires_grad=True)
    log_var = raw.clamp(-1, 1)  # some are beyond
    prior = Normal(torch.zeros(5, dtype=torch.float64), torch.ones(5, dtype=torch.float64))
    truth = kl_divergence(Normal(mean, (0.5 * log_var).exp()), prior).sum(1)
    kl = _Sample.apply(mean, raw, -1.0, 1.0, 1.0)[1]
    torch.testing.assert_close(kl, truth)
    present = torch.tensor([False, True, False, False, True, False, False])
    torch.testing.assert_close(rate(kl, present), truth[[1, 4]].mean())
    torch.testing.assert_close(rate(kl), truth.mean())
    assert _Sample.apply(torch.zeros(3, 5), torch.zeros(3, 5), -1.0, 1.0, 1.0)[1].sum() == 0

    def sampled(m, v):  # the same noise at each call
        torch.manual_seed(0)
        z, kl = _Sample.apply(m, v, -1.0, 1.0, 1.0)
        return z, rate(kl, present)

    torch.autograd.gradcheck(sampled, (mean, raw))
    torch.autograd.gradcheck(lambda m, v: sampled(m, v)[1], (mean, raw))


def test_sampling_is_reparameterised():
    stage = Gaussian({"m": 3}, -1.0, -8.0, 4.0)
    x = torch.randn(20000, 3)
    mean = torch.ones(20000, 3, requires_grad=True)
    z, mu, _ = stage.encode("m", lambda _: mean, x)
    assert z.mean().item() == pytest.approx(1, abs=0.02)
    assert z.var().item() == pytest.approx(math.exp(-1), rel=0.03)
    upstream = torch.randn_like(z)
    z.backward(upstream)
    # dz/dmu = 1 (the head's weights are 0 at the start), dz/dlog_var = (z - mu) / 2
    torch.testing.assert_close(mean.grad, upstream)
    torch.testing.assert_close(
        stage.heads["m"].bias.grad, (upstream * (z - mu).detach() / 2).sum(0), rtol=1e-3, atol=1e-3
    )
    stage.eval()
    z, mu, kl = stage.encode("m", lambda _: mean, x)
    assert z is mu and kl is None


def test_no_gradient_reaches_the_variance_beyond_its_bounds():
    raw = torch.tensor([[-3.0, 0.0, 3.0]], requires_grad=True)
    mean = torch.zeros(1, 3, requires_grad=True)
    z, kl = _Sample.apply(mean, raw, -1.0, 1.0, 1.0)
    assert kl.item() == pytest.approx((math.exp(-1) + math.exp(1) - 2) / 2)  # sigma^2 = 1/e, 1, e
    z.sum().backward()
    eps = z.detach()[0, 1]  # sigma = 1 there
    torch.testing.assert_close(raw.grad, torch.tensor([[0.0, eps / 2, 0.0]]))
    assert mean.grad.tolist() == [[1, 1, 1]]


def test_unique_is_bpr_by_hand():
    users, pos, neg = torch.tensor([[1.0, 2.0]]), torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]])
    assert unique(margin(users, pos, neg)).item() == pytest.approx(-math.log(1 / (1 + math.exp(1))))  # margin 1 - 2


def test_redundancy_runs_over_pairs():
    z = {m: torch.randn(20, 4) for m in "abcd"}
    redundancy = Redundancy(tuple(z), lambda a, b: MINE((4, 4), 8, 0.01))
    loss, nats = redundancy(z, 0.1)
    assert set(nats) == {"a-b", "a-c", "a-d", "b-c", "b-d", "c-d"} and loss.isfinite()
    assert Redundancy(("a",), lambda a, b: MINE((4, 4), 8, 0.01))({"a": z["a"]}, 0.1) == (None, {})


def test_total_is_the_weighted_sum(tmp_path):
    model, splits = build("VBPR+MRdIB (paper)", tmp_path, rate_weight=0.3, unique_weight=0.7, redundant_weight=0)
    model.train()
    step = model.step_loss(next(iter(splits.train)))
    assert set(step.parts) == {"bpr", "l2", "rate", "unique"}
    rates = step.logs["rate/a"] + step.logs["rate/b"]
    assert step.parts["rate"].item() == pytest.approx(0.3 * rates.item(), rel=1e-5)
    uniques = step.logs["unique/a"] + step.logs["unique/b"]
    assert step.parts["unique"].item() == pytest.approx(0.7 * uniques.item(), rel=1e-5)


def test_estimators_are_a_group_of_their_own(tmp_path):
    build("VBPR", tmp_path)
    values = {"data_path": str(tmp_path), "weight_decay": 0.1}
    config = make_config("VBPR+MRdIB (paper)", "toy", 1, values=values)
    model = model_class("MRdIB")(config, prepare(config).parts[0])
    groups = MRdIBTrainer(config, model, tmp_path / "r").optimizer.param_groups
    assert [g["weight_decay"] for g in groups] == [0.1, 0.0]
    assert {id(p) for p in groups[1]["params"]} == {id(p) for p in model.redundancy.parameters()}


def test_settings_are_checked(tmp_path):
    with pytest.raises(ConfigError, match="rate_weight"):
        build("VBPR+MRdIB", tmp_path, rate_weight=-1)
    with pytest.raises(ConfigError, match="min_log_var"):
        build("VBPR+MRdIB (paper)", tmp_path, min_log_var=0)


# Units and scales.


def test_a_mean_over_dimensions_is_a_sum_with_another_weight(tmp_path):
    d, steps = 8, []
    for reduce, weight in (("sum", 0.3), ("mean", 0.3 * d)):
        model, splits = build("VBPR+MRdIB (paper)", tmp_path, rate_reduce=reduce, rate_weight=weight)
        model.train()
        torch.manual_seed(5)
        loss, grads = gradients(model, next(iter(splits.train)))
        steps.append((loss, grads))
    assert steps[1][0] == pytest.approx(steps[0][0], rel=1e-6)
    for name, grad in steps[0][1].items():
        torch.testing.assert_close(steps[1][1][name], grad, rtol=1e-4, atol=1e-7)


def test_a_wider_prior_is_a_narrower_encoder():
    """KL(N(mu, sigma^2) to N(0, s^2)) = KL(N(mu / s, sigma^2 / s^2) to N(0, 1)), and so are the gradients of both."""
    torch.manual_seed(0)
    s = 0.37
    mean = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    log_var = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    wide = _Sample.apply(mean, log_var, -20.0, 20.0, s)[1]
    one = _Sample.apply(mean / s, log_var - 2 * math.log(s), -20.0, 20.0, 1.0)[1]
    torch.testing.assert_close(wide, one)
    truth = kl_divergence(Normal(mean, (0.5 * log_var).exp()), Normal(torch.zeros_like(mean), s)).sum(1)
    torch.testing.assert_close(wide, truth)
    for a, b in zip(*(torch.autograd.grad(x.square().sum(), [mean, log_var]) for x in (wide, one)), strict=True):
        torch.testing.assert_close(a, b)
    assert Gaussian({"m": 3}, 2 * math.log(s), -8.0, 4.0, prior_std=s).double().encode("m", torch.nn.Identity(), mean)[
        2
    ].detach().tolist() == pytest.approx((0.5 * (mean / s).square().sum(1)).tolist())  # sigma = s at the start


def test_one_sigma_an_item_is_one_a_dimension_with_equal_biases():
    x = torch.randn(6, 3)
    out = {}
    for sigma in ("dim", "item"):
        stage = Gaussian({"m": 3}, -1.3, -8.0, 4.0, sigma)
        torch.manual_seed(2)
        z, mean, kl = stage.encode("m", lambda x: x, x)
        out[sigma] = z, kl
        assert stage.heads["m"].weight.shape == ((3 if sigma == "dim" else 1), 3) and mean is x
    assert all(torch.equal(a, b) for a, b in zip(*out.values(), strict=True))
    with torch.no_grad():
        stage.heads["m"].weight.normal_()
    noise = stage.encode("m", lambda x: x, torch.zeros(1, 3).expand(5000, 3) + torch.tensor([1.0, -2.0, 0.5]))[0].std(0)
    torch.testing.assert_close(noise, noise.mean().expand(3), rtol=0.05, atol=0)  # the same in all dimensions


def test_a_constant_sigma_does_not_learn():
    stage = Gaussian({"m": 3}, -1.4, -8.0, 4.0, "constant", scales={"m": 4.0})
    assert not list(stage.parameters())
    mean = torch.ones(20000, 3, requires_grad=True)
    z, mu, kl = stage.encode("m", lambda x: x, mean)
    var = 4 * math.exp(-1.4)
    assert (z - mu).var().item() == pytest.approx(var, rel=0.03)
    assert kl[0].item() == pytest.approx(1.5 * (1 + var - 1 - math.log(var)), rel=1e-5)
    z.sum().backward()
    assert torch.equal(mean.grad, torch.ones_like(mean))


@pytest.mark.parametrize("scale", [0.01, 1.0, 100.0])
@pytest.mark.parametrize("model", ["VBPR+MRdIB", "VBPR+MRdIB (paper)"])
def test_a_relative_sigma_starts_as_a_share_of_mu(tmp_path, model, scale):
    """Whatever the scale of the features: with own encoders mu is standardised, with the backbone's it is not."""
    write_mmrec(tmp_path / "toy", 40, 30, {"a": 12, "b": 8})
    for m in ("a", "b"):
        file = tmp_path / "toy" / f"{m}_feat.npy"
        np.save(file, np.load(file) * np.float32(scale))
    values = {
        "data_path": str(tmp_path), "feature_norm": "none", "sigma_scale": "relative", "init_log_var": -2.0, "embedding_size": 8
    }  # fmt: skip
    config = make_config(model, "toy", 1, values=values)
    built = model_class("MRdIB")(config, prepare(config).parts[0])
    stage = built.stage if built.own_encoders is not None else built.backbone.stage
    for m, mean in built._means(built.content_features()).items():
        rms = mean[1:].square().mean().sqrt().item()
        sigma = math.exp(stage.start[m] / 2)
        assert sigma / rms == pytest.approx(math.exp(-1), rel=1e-4)
        assert stage.heads[m].bias.tolist() == pytest.approx(
            [stage.start[m]] * 8 if "paper" in model else [stage.start[m]] * 64
        )
        assert rms == pytest.approx(1, rel=1e-4) or "paper" in model
        z = stage.train()({m: torch.nn.Identity()}, {m: mean[1:].detach().repeat(200, 1)}, None).z[m]
        assert (z - mean[1:].detach().repeat(200, 1)).std().item() / rms == pytest.approx(math.exp(-1), rel=0.03)


def features_of_three_factors(n=50, d=7):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(n, 3, generator=generator) @ torch.randn(3, d, generator=generator)
    return torch.cat([torch.zeros(1, d), x + 0.1 * torch.randn(n, d, generator=generator)])


@pytest.mark.parametrize("width", [3, 7, 12])
def test_own_encoders_start_at_principal_components(width):
    x = features_of_three_factors()
    encoder = Linear(x, width)
    mu = encoder(x)[1:]
    known = x[1:]
    standard = ((known - known.mean(0)) / known.std(0, correction=0)).double()
    vectors = torch.linalg.eigh(standard.T @ standard).eigenvectors
    k = min(width, 7)
    truth = standard @ vectors.flip(1)[:, :k]
    truth = truth / (truth.square().sum() / (len(truth) * width)).sqrt()
    torch.testing.assert_close((mu @ mu.T).double(), truth @ truth.T, rtol=1e-3, atol=1e-3)  # up to rotations and signs
    assert mu.square().mean().item() == pytest.approx(1, rel=1e-4)
    assert (mu[:, k:] == 0).all() and mu.mean(0).abs().max() < 1e-5
    if width >= 7:  # nothing is lost: cosines of mu are cosines of the standardised features
        torch.testing.assert_close(
            F.normalize(mu.double()) @ F.normalize(mu.double()).T,
            F.normalize(standard) @ F.normalize(standard).T,
            rtol=1e-3,
            atol=1e-4,
        )


def test_own_encoders_are_blind_to_shift_and_scale_of_the_columns():
    x = features_of_three_factors()
    moved = x.clone()
    moved[1:] = x[1:] * torch.tensor([1e-2, 1.0, 1e2, 2.0, 5.0, 0.1, 7.0]) + torch.tensor([0.1, -3, 2e2, 0, 1, 0.2, -9])
    a, b = (Linear(t, 3)(t)[1:] for t in (x, moved))
    torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-3)
    still = torch.cat([x, torch.full((len(x), 1), 3.0)], 1)  # a column that says nothing
    torch.testing.assert_close(Linear(still, 3)(still)[1:].abs(), a.abs(), rtol=1e-3, atol=1e-3)


def test_the_rounding_of_a_constant_column_is_no_feature():
    torch.manual_seed(0)
    x = torch.randn(4001, 3)
    x[:, 1] = torch.where(
        x[:, 1] > 0, 1000.1, torch.nextafter(torch.tensor(1000.1), torch.tensor(0.0))
    )  # equal but for rounding
    x[0] = 0.0
    assert x[1:, 1].std() > 0
    x[:, 2] = 2 * x[:, 2] + 5
    mean, inverse_std = standardisation(x)
    assert inverse_std[1] == 0
    z = ((x[1:] - mean) * inverse_std).double()
    torch.testing.assert_close(z.mean(0), torch.zeros(3).double(), rtol=0, atol=1e-5)
    torch.testing.assert_close(z.square().mean(0), torch.tensor([1.0, 0.0, 1.0]).double(), rtol=0, atol=1e-4)


def test_the_rate_of_all_is_that_of_a_batch_with_every_item(tmp_path):
    """A small batch is encoded by itself, a large one is picked out of the catalogue: with the same items, the same rate."""
    model, _ = build("VBPR+MRdIB (paper)", tmp_path, rate_weight=1.0, unique_weight=0, redundant_weight=0)
    model.train()
    every = torch.arange(1, model.n_items)
    interaction = {model.USER_ID: torch.ones_like(every), model.ITEM_ID: every, model.NEG_ITEM_ID: every}
    seen = []
    for asked in (None, every):
        model.backbone.items_to_encode = lambda batch, asked=asked: asked
        seen.append(model.step_loss(interaction).parts["rate"])
    whole = model.backbone.encode_items().rate
    truth = sum(kl[1:].mean() for kl in whole.values())
    assert seen[0].item() == pytest.approx(truth.item(), rel=1e-5) and seen[1].item() == pytest.approx(
        truth.item(), rel=1e-5
    )
