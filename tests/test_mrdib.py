"""Objectives and estimators against closed forms and laws."""

import copy
import math

import pytest
import torch
from torch.distributions import MultivariateNormal, Normal, kl_divergence

from mmrec_mrdib.errors import ConfigError
from mmrec_mrdib.mrdib.encoder import Gaussian, _Sample
from mmrec_mrdib.mrdib.estimators.base import random_shift, reverse_gradient
from mmrec_mrdib.mrdib.estimators.mine import MINE
from mmrec_mrdib.mrdib.objectives.rate import rate
from mmrec_mrdib.mrdib.objectives.redundant import Redundancy
from mmrec_mrdib.mrdib.objectives.unique import unique
from mmrec_mrdib.testing.contract import build


def correlated(n, rho, generator):
    x = torch.randn(n, 1, generator=generator)
    return x, rho * x + math.sqrt(1 - rho**2) * torch.randn(n, 1, generator=generator)


def test_rate_is_the_closed_form_and_so_is_its_gradient():
    torch.manual_seed(0)
    mean = torch.randn(7, 5, dtype=torch.float64, requires_grad=True)
    log_var = torch.randn(7, 5, dtype=torch.float64, requires_grad=True)
    prior = Normal(torch.zeros(5, dtype=torch.float64), torch.ones(5, dtype=torch.float64))
    truth = kl_divergence(Normal(mean, (0.5 * log_var).exp()), prior).sum(1)
    torch.testing.assert_close(rate(mean, log_var), truth.mean())
    present = torch.tensor([False, True, False, False, True, False, False])
    torch.testing.assert_close(rate(mean, log_var, present), truth[[1, 4]].mean())
    assert rate(torch.zeros(3, 5), torch.zeros(3, 5)) == 0
    torch.autograd.gradcheck(lambda m, v: rate(m, v, present), (mean, log_var))


def test_sampling_is_reparameterised():
    stage = Gaussian({"m": 3}, -1.0, -8.0, 4.0)
    x = torch.randn(20000, 3)
    mean = torch.ones(20000, 3, requires_grad=True)
    z, mu, log_var = stage.encode("m", lambda _: mean, x)
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
    z, mu, log_var = stage.encode("m", lambda _: mean, x)
    assert z is mu and log_var is None


def test_no_gradient_reaches_the_variance_beyond_its_bounds():
    raw = torch.tensor([[-3.0, 0.0, 3.0]], requires_grad=True)
    mean = torch.zeros(1, 3, requires_grad=True)
    z, log_var = _Sample.apply(mean, raw, -1.0, 1.0)
    assert log_var.tolist() == [[-1, 0, 1]]
    (z.sum() + 2 * log_var.sum()).backward()
    eps = z.detach()[0, 1]  # sigma = 1 there
    torch.testing.assert_close(raw.grad, torch.tensor([[0.0, eps / 2 + 2, 0.0]]))
    assert mean.grad.tolist() == [[1, 1, 1]]


def test_unique_is_bpr_by_hand():
    users, pos, neg = torch.tensor([[1.0, 2.0]]), torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]])
    assert unique(users, pos, neg).item() == pytest.approx(-math.log(1 / (1 + math.exp(1))))  # margin 1 - 2


@pytest.mark.parametrize("rho", [0.0, 0.6, 0.9])
def test_mine_approaches_the_truth_from_below(rho):
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(1)
    truth = -0.5 * math.log(1 - rho**2)
    mine = MINE(1, 32, 0.01)
    optimizer = torch.optim.Adam(mine.parameters(), 5e-3)
    for _ in range(800):
        optimizer.zero_grad()
        mine(*correlated(512, rho, generator), 0.0).loss.backward()
        optimizer.step()
    mine.eval()
    x, y = correlated(20000, rho, generator)  # held out
    estimate = mine(x, y, 0.0).nats.item()
    assert truth - 0.12 < estimate < truth + 0.02


def test_mine_gradients_take_opposite_signs():
    torch.manual_seed(0)
    mine = MINE(2, 8, 0.5)
    a, b = torch.randn(50, 2, requires_grad=True), torch.randn(50, 2, requires_grad=True)
    state = copy.deepcopy(mine.state_dict())

    def bound(weight_for_encoder=None):
        mine.load_state_dict(state)
        mine.zero_grad()
        a.grad = b.grad = None
        torch.manual_seed(3)
        estimate = mine(a, b, weight_for_encoder)
        estimate.loss.backward()
        return estimate, a.grad.clone(), mine.first.weight.grad.clone()

    estimate, grad_a, grad_t = bound(0.5)
    # The first batch sets the moving average to its own mean: the gradient is exactly that of the bound.
    torch.manual_seed(3)
    joint, product = mine.scores(a, b, random_shift(50))
    dv = joint.mean() - (torch.logsumexp(product, 0) - math.log(50))
    assert dv.item() == pytest.approx(estimate.nats.item(), abs=1e-6)
    true_a, true_t = torch.autograd.grad(dv, (a, mine.first.weight))
    torch.testing.assert_close(grad_a, 0.5 * true_a)  # minimising the loss descends the bound in a, with the weight
    torch.testing.assert_close(grad_t, -true_t)  # and ascends it in T, with weight 1
    _, no_push, still_learns = bound(0.0)
    assert no_push.abs().sum() == 0 and torch.equal(still_learns, grad_t)


@pytest.mark.parametrize("shift", [1, 3, 6])
def test_scores_and_their_gradient_are_the_networks(shift):
    torch.manual_seed(0)
    mine = MINE(2, 5, 0.1)
    a, b = torch.randn(7, 2, requires_grad=True), torch.randn(7, 2, requires_grad=True)
    leaves = (a, b, mine.first.weight, mine.first.bias, mine.last.weight)
    torch.nn.init.normal_(mine.first.bias)

    def network(x, y):
        return mine.last(torch.relu(mine.first(torch.cat([x, y], 1)))).squeeze(1)

    results = []
    for joint, product in (mine.scores(a, b, shift), (network(a, b), network(a, b.roll(shift, 0)))):
        loss = (joint * torch.arange(7)).sum() + product.square().sum()
        results.append((joint, product, *torch.autograd.grad(loss, leaves)))
    for ours, truth in zip(*results, strict=True):
        torch.testing.assert_close(ours, truth)


def test_moving_average_corrects_the_gradient():
    torch.manual_seed(0)
    mine = MINE(1, 4, 0.25)
    with torch.no_grad():
        mine.log_average.fill_(math.log(3.0))
    a, b = torch.randn(40, 1), torch.randn(40, 1)
    torch.manual_seed(5)
    mine(a, b, 0.0).loss.backward()
    got = mine.last.weight.grad.clone()
    torch.manual_seed(5)
    joint, product = mine.scores(a, b, random_shift(40))
    average = 0.75 * 3.0 + 0.25 * product.exp().mean().item()
    assert mine.log_average.item() == pytest.approx(math.log(average), abs=1e-5)
    expected = torch.autograd.grad(-(joint.mean() - product.exp().mean() / average), mine.last.weight)[0]
    torch.testing.assert_close(got, expected)


def test_one_item_and_constant_features_give_no_nan():
    mine = MINE(3, 4, 0.1)
    a = torch.zeros(1, 3, requires_grad=True)
    estimate = mine(a, a, 1.0)
    estimate.loss.backward()
    assert estimate.nats == 0 and a.grad.abs().sum() == 0
    constant = torch.ones(10, 3, requires_grad=True)
    estimate = mine(constant, constant, 1.0)
    estimate.loss.backward()
    assert abs(estimate.nats.item()) < 1e-6 and constant.grad.isfinite().all()


def test_shift_never_pairs_an_item_with_itself():
    shifts = {random_shift(4) for _ in range(200)}
    assert shifts == {1, 2, 3}


def test_reverse_gradient():
    x = torch.ones(2, requires_grad=True)
    y = reverse_gradient(x, 0.25)
    y.sum().backward()
    assert torch.equal(y, x) and torch.equal(x.grad, torch.full((2,), -0.25))


def train_encoder(reversal: bool) -> float:
    """A shared factor in two views; returns the dependence left, by an estimator that was not trained on: correlation."""
    torch.manual_seed(0)
    encoders = torch.nn.ModuleList(torch.nn.Linear(2, 1, bias=False) for _ in range(2))
    mine = MINE(1, 32, 0.05)
    optimizer = torch.optim.Adam(
        [{"params": encoders.parameters(), "lr": 3e-3}, {"params": mine.parameters(), "lr": 1e-2}]
    )
    for layer in encoders:
        torch.nn.init.constant_(layer.weight, 0.7)

    def views(n):
        shared = torch.randn(n, 1)
        return [layer(torch.cat([shared, torch.randn(n, 1)], 1)) for layer in encoders]

    for _ in range(600):
        optimizer.zero_grad()
        a, b = (torch.nn.functional.normalize(v, dim=0) * len(v) ** 0.5 for v in views(256))
        if reversal:
            loss = mine(a, b, 1.0).loss
        else:  # naive: one minimisation of the bound over everything
            joint, product = mine.scores(a, b, random_shift(len(a)))
            loss = joint.mean() - torch.logsumexp(product, 0)
        loss.backward()
        optimizer.step()
    a, b = (v.flatten() for v in views(20000))
    return abs(torch.corrcoef(torch.stack([a, b]))[0, 1].item())


def test_reversal_removes_a_planted_factor_where_naive_minimisation_does_not():
    assert train_encoder(reversal=True) < 0.15
    assert train_encoder(reversal=False) > 0.3  # 0.5 at the start


def test_redundancy_runs_over_pairs():
    z = {m: torch.randn(20, 4) for m in "abcd"}
    redundancy = Redundancy(tuple(z), lambda: MINE(4, 8, 0.01))
    loss, nats = redundancy(z, 0.1)
    assert set(nats) == {"a-b", "a-c", "a-d", "b-c", "b-d", "c-d"} and loss.isfinite()
    assert Redundancy(("a",), lambda: MINE(4, 8, 0.01))({"a": z["a"]}, 0.1) == (None, {})


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
    values = {"data_path": str(tmp_path), "weight_decay": 0.1, "checkpoint_dir": str(tmp_path / "r")}
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


def test_multivariate_truth_of_the_mine_test():
    """The closed form used above, against numerical integration of log density ratios."""
    rho = 0.6
    joint = MultivariateNormal(torch.zeros(2), torch.tensor([[1, rho], [rho, 1]]))
    sample = joint.sample((200000,))
    ratio = joint.log_prob(sample) - Normal(0, 1).log_prob(sample).sum(1)
    assert ratio.mean().item() == pytest.approx(-0.5 * math.log(1 - rho**2), abs=0.01)
