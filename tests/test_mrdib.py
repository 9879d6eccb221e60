"""Objectives and estimators against closed forms and laws."""

import math

import pytest
import torch
from torch.distributions import Normal, kl_divergence

from mmrec_mrdib.errors import ConfigError
from mmrec_mrdib.losses import margin
from mmrec_mrdib.mrdib.encoder import Gaussian, _Sample
from mmrec_mrdib.mrdib.estimators.mine import MINE
from mmrec_mrdib.mrdib.objectives.rate import rate
from mmrec_mrdib.mrdib.objectives.redundant import Redundancy
from mmrec_mrdib.mrdib.objectives.unique import unique
from mmrec_mrdib.testing.contract import build


def test_rate_is_the_closed_form_and_so_is_its_gradient():
    torch.manual_seed(0)
    mean = torch.randn(7, 5, dtype=torch.float64, requires_grad=True)
    raw = torch.randn(7, 5, dtype=torch.float64, requires_grad=True)
    log_var = raw.clamp(-1, 1)  # some are beyond
    prior = Normal(torch.zeros(5, dtype=torch.float64), torch.ones(5, dtype=torch.float64))
    truth = kl_divergence(Normal(mean, (0.5 * log_var).exp()), prior).sum(1)
    kl = _Sample.apply(mean, raw, -1.0, 1.0)[1]
    torch.testing.assert_close(kl, truth)
    present = torch.tensor([False, True, False, False, True, False, False])
    torch.testing.assert_close(rate(kl, present), truth[[1, 4]].mean())
    torch.testing.assert_close(rate(kl), truth.mean())
    assert _Sample.apply(torch.zeros(3, 5), torch.zeros(3, 5), -1.0, 1.0)[1].sum() == 0

    def sampled(m, v):  # the same noise at each call
        torch.manual_seed(0)
        z, kl = _Sample.apply(m, v, -1.0, 1.0)
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
    z, kl = _Sample.apply(mean, raw, -1.0, 1.0)
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
    model, splits = build("VBPR+MRdIB", tmp_path, rate_weight=0.3, unique_weight=0.7, redundant_weight=0)
    model.train()
    step = model.step_loss(next(iter(splits.train)))
    assert set(step.parts) == {"bpr", "l2", "rate", "unique"}
    rates = step.logs["rate/a"] + step.logs["rate/b"]
    assert step.parts["rate"].item() == pytest.approx(0.3 * rates.item(), rel=1e-5)
    uniques = step.logs["unique/a"] + step.logs["unique/b"]
    assert step.parts["unique"].item() == pytest.approx(0.7 * uniques.item(), rel=1e-5)


def test_estimators_are_a_group_of_their_own(tmp_path):
    from mmrec_mrdib.experiment.run import make_config, prepare
    from mmrec_mrdib.registry import model_class
    from mmrec_mrdib.trainer import MRdIBTrainer

    build("VBPR", tmp_path)
    values = {"data_path": str(tmp_path), "weight_decay": 0.1}
    config = make_config("VBPR+MRdIB", "toy", 1, values=values)
    model = model_class("MRdIB")(config, prepare(config).parts[0])
    groups = MRdIBTrainer(config, model, tmp_path / "r").optimizer.param_groups
    assert [g["weight_decay"] for g in groups] == [0.1, 0.0]
    assert {id(p) for p in groups[1]["params"]} == {id(p) for p in model.redundancy.parameters()}


def test_settings_are_checked(tmp_path):
    with pytest.raises(ConfigError, match="rate_weight"):
        build("VBPR+MRdIB", tmp_path, rate_weight=-1)
    with pytest.raises(ConfigError, match="min_log_var"):
        build("VBPR+MRdIB", tmp_path, min_log_var=0)
