"""Estimators of mutual information on correlated Gaussians, and what minimising them does to an encoder."""

import copy
import math

import pytest
import torch
from torch.distributions import MultivariateNormal, Normal

from mmrec_mrdib.mrdib.estimators import mine as mine_module
from mmrec_mrdib.mrdib.estimators.base import random_shift, reverse_gradient
from mmrec_mrdib.mrdib.estimators.club import CLUB
from mmrec_mrdib.mrdib.estimators.gaussian import GaussianMI
from mmrec_mrdib.mrdib.estimators.infonce import InfoNCE
from mmrec_mrdib.mrdib.estimators.mine import MINE
from mmrec_mrdib.registry import ESTIMATORS, load

RHOS = (0.0, 0.3, 0.6, 0.9)
DIMS = (1, 8, 64)


def correlated(n, rho, dim, generator):
    x = torch.randn(n, dim, generator=generator)
    return x, rho * x + math.sqrt(1 - rho**2) * torch.randn(n, dim, generator=generator)


def truth(rho, dim):
    return -0.5 * dim * math.log(1 - rho**2)


def create(name, dim, hidden=64):
    return load(ESTIMATORS[name]).create((dim, dim), hidden, 0.01)


def fitted(name, rho, dim, steps=400, batch=512, widths=None):
    """An estimate on held-out samples after training on fresh ones; `widths`: columns of the two that are used."""
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(1)
    widths = widths or (dim, dim)
    estimator = load(ESTIMATORS[name]).create(widths, 64, 0.01)

    def sample(n):
        return (x[:, :width] for x, width in zip(correlated(n, rho, dim, generator), widths, strict=True))

    parameters = list(estimator.parameters())
    optimizer = torch.optim.Adam(parameters, 3e-3) if parameters else None
    for _ in range(steps if parameters else 0):
        optimizer.zero_grad()
        estimator(*sample(batch), 0.0).loss.backward()
        optimizer.step()
    estimator.eval()
    with torch.no_grad():
        return estimator(*sample(4096), 0.0).nats.item()


@pytest.mark.parametrize("widths", [(3, 1), (1, 3)])
@pytest.mark.parametrize(("name", "value"), [("mine", 0.22), ("infonce", 0.22), ("gaussian", 0.22), ("club", 0.5625)])
def test_widths_may_differ(name, value, widths):
    """One column of the wider one is correlated, the others say nothing: the value is that of one pair (CLUB's: rho^2 / (1 - rho^2))."""
    assert fitted(name, 0.6, 3, steps=300, batch=256, widths=widths) == pytest.approx(value, abs=0.08)


def close_below(estimate, value):
    """What a lower bound owes: never above (but for sampling noise), and near where the value is moderate."""
    assert estimate < value + 0.03 + 0.02 * value
    if value < 2:
        assert estimate > 0.8 * value - 0.02


@pytest.mark.parametrize("dim", DIMS)
@pytest.mark.parametrize("rho", RHOS)
def test_mine_is_a_lower_bound(rho, dim):
    close_below(fitted("mine", rho, dim), truth(rho, dim))


@pytest.mark.parametrize("dim", DIMS)
@pytest.mark.parametrize("rho", RHOS)
def test_infonce_is_a_lower_bound_and_cannot_exceed_log_k(rho, dim):
    estimate = fitted("infonce", rho, dim, steps=300, batch=256)
    close_below(estimate, truth(rho, dim))
    assert estimate <= math.log(512)


@pytest.mark.parametrize("dim", DIMS)
@pytest.mark.parametrize("rho", RHOS)
def test_club_is_an_upper_bound(rho, dim):
    estimate = fitted("club", rho, dim, steps=1200)
    value = truth(rho, dim)
    assert estimate > value - 0.02
    # With the true conditional CLUB is d rho^2 / (1 - rho^2); q is fitted to nearly that.
    assert estimate == pytest.approx(dim * rho**2 / (1 - rho**2), rel=0.2, abs=0.02)


@pytest.mark.parametrize("dim", DIMS)
@pytest.mark.parametrize("rho", RHOS)
def test_gaussian_is_the_closed_form(rho, dim):
    estimate = GaussianMI()(*correlated(40_000, rho, dim, torch.Generator().manual_seed(1)), 0.0).nats.item()
    assert estimate == pytest.approx(truth(rho, dim), rel=0.05, abs=0.01)


@pytest.mark.parametrize("rho", [0.0, 0.6])
def test_gaussian_has_no_bias_in_small_batches(rho):
    generator = torch.Generator().manual_seed(0)
    estimates = [GaussianMI()(*correlated(60, rho, 10, generator), 0.0).nats.item() for _ in range(400)]
    plug_in = []
    for _ in range(400):
        x = torch.corrcoef(torch.cat(correlated(60, rho, 10, generator), 1).T)
        plug_in.append(0.5 * (x[:10, :10].logdet() + x[10:, 10:].logdet() - x.logdet()).item())
    value, error = truth(rho, 10), torch.tensor(estimates).std().item() / 20
    assert sum(estimates) / 400 == pytest.approx(value, abs=4 * error + 0.02 * value)
    assert sum(plug_in) / 400 > value + 0.8  # what the correction takes off: about d^2 / 2n


# rank 19 in 64 columns, exactly and but for noise of 5 and 30 %; the truth in closed form, through an invertible map of what varies
@pytest.mark.parametrize(
    ("rho", "noise", "rows"), [(0.0, 0.0, 1400), (0.5, 0.0, 1400), (0.0, 0.05, 300), (0.0, 0.3, 300)]
)
def test_gaussian_takes_off_the_bias_of_the_rank_not_of_the_columns(rho, noise, rows):
    generator = torch.Generator().manual_seed(0)

    def wide(x):
        return x @ torch.randn(19, 64, generator=generator) + noise * torch.randn(len(x), 64, generator=generator)

    estimates = torch.tensor(
        [GaussianMI()(*map(wide, correlated(rows, rho, 19, generator)), 0.0).nats.item() for _ in range(40)]
    )
    assert estimates.mean().item() == pytest.approx(truth(rho, 19), abs=0.02 + 4 * estimates.std().item() / 40**0.5)
    if not rho:
        assert (
            estimates.std() < 0.25
        )  # so that the line above says something: with all columns it would be -1.4, -7.8 and -2.8


def test_gaussian_by_hand_and_its_gradient():
    torch.manual_seed(0)
    a = torch.randn(40, 2, dtype=torch.float64, requires_grad=True)
    b = torch.randn(40, 3, dtype=torch.float64, requires_grad=True)

    def canonical(x, y):
        q, r = (torch.linalg.qr(v - v.mean(0)).Q for v in (x, y))
        return -0.5 * torch.log1p(-torch.linalg.svdvals(q.T @ r).square()).sum()

    def expected_log_det(p):  # of a Wishart matrix, up to what cancels
        return sum(torch.digamma(torch.tensor((40 - i) / 2)) for i in range(1, p + 1))

    bias = expected_log_det(2) + expected_log_det(3) - expected_log_det(5)
    estimate = GaussianMI()(a, b, 1.0)
    assert estimate.nats.item() == pytest.approx(canonical(a, b).item() - 0.5 * bias.item(), abs=2e-3)  # the shrinkage
    torch.autograd.gradcheck(lambda x, y: GaussianMI()(x, y, 0.7).loss, (a, b))


def test_club_by_hand_and_its_gradients():
    """All pairs of two different rows, one by one; q learns from the likelihood alone, a and b from the estimate alone."""
    torch.manual_seed(0)
    club = CLUB((2, 2), 5)
    a, b = torch.randn(6, 2, requires_grad=True), torch.randn(6, 2, requires_grad=True)
    mean, log_var = club.conditional(a, learn=True)
    density = torch.distributions.Normal(mean[:, None], (0.5 * log_var).exp()[:, None])
    table = density.log_prob(b[None]).sum(2)  # (i, j): log q(b_j | a_i)
    by_hand = table.diagonal().mean() - table[~torch.eye(6, dtype=torch.bool)].mean()
    estimate = club(a, b, 0.3)
    assert estimate.nats.item() == pytest.approx(by_hand.item(), abs=1e-5)
    parameters = list(club.parameters())
    got = torch.autograd.grad(estimate.loss, [a, b, *parameters])
    of_data = torch.autograd.grad(0.3 * by_hand, [a, b], retain_graph=True)
    of_q = torch.autograd.grad(-table.diagonal().mean(), parameters)
    for ours, expected in zip(got, (*of_data, *of_q), strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-6)


def test_infonce_by_hand_and_its_gradients():
    torch.manual_seed(0)
    nce = InfoNCE((2, 2), 4)
    a, b = torch.randn(7, 2, requires_grad=True), torch.randn(7, 2, requires_grad=True)
    scores = nce.left(a) @ nce.right(b).T / 2
    by_hand = (scores.log_softmax(1).diagonal() + math.log(7)).mean()
    estimate = nce(a, b, 0.3)
    assert estimate.nats.item() == pytest.approx(by_hand.item(), abs=1e-6)
    parameters = list(nce.parameters())
    got = torch.autograd.grad(estimate.loss, [a, b, *parameters])
    expected = torch.autograd.grad(by_hand, [a, b, *parameters])
    for n, (ours, value) in enumerate(zip(got, expected, strict=True)):
        torch.testing.assert_close(ours, 0.3 * value if n < 2 else -value)


def test_infonce_groups_hold_the_same_rows_of_both_sides(monkeypatch):
    from mmrec_mrdib.mrdib.estimators import infonce

    monkeypatch.setattr(infonce, "_GROUP", 4)
    torch.manual_seed(0)
    nce = InfoNCE((2, 2), 4)
    a, b = torch.randn(11, 2), torch.randn(11, 2)
    groups = [list(range(g, 9, 3)) for g in range(3)]  # 3 groups of 3; two rows are left out
    by_hand = [(nce.left(a[g]) @ nce.right(b[g]).T / 2).log_softmax(1).diagonal().mean() + math.log(3) for g in groups]
    assert nce(a, b, 0.0).nats.item() == pytest.approx(sum(by_hand).item() / 3, abs=1e-6)


@pytest.mark.parametrize("name", ESTIMATORS)
def test_no_weight_moves_no_representation_and_still_learns(name):
    torch.manual_seed(0)
    estimator = create(name, 2, 8)
    a, b = torch.randn(50, 2, requires_grad=True), torch.randn(50, 2, requires_grad=True)
    estimator(a, b, 0.0).loss.backward()
    assert a.grad.abs().sum() == b.grad.abs().sum() == 0
    assert all(p.grad.abs().sum() > 0 for p in estimator.parameters())
    weight = torch.tensor(0.5)  # automatic weights come as tensors
    estimator.zero_grad()
    estimator(a, b, weight).loss.backward()
    assert a.grad.abs().sum() > 0


@pytest.mark.parametrize("name", ESTIMATORS)
def test_one_item_and_constant_features_give_no_nan(name):
    estimator = create(name, 3, 4)
    a = torch.zeros(1, 3, requires_grad=True)
    estimate = estimator(a, a, 1.0)
    estimate.loss.backward()
    assert estimate.nats == 0 and a.grad.abs().sum() == 0
    for _ in range(20):  # an estimator that learns on constants must not run away
        constant = torch.ones(10, 3, requires_grad=True)
        estimate = estimator(constant, constant, 1.0)
        estimate.loss.backward()
        with torch.no_grad():
            for p in estimator.parameters():
                p -= 0.1 * p.grad
                p.grad = None
        assert abs(estimate.nats.item()) < 1e-3 and constant.grad.isfinite().all()
    half = torch.randn(40, 3)
    half[:, 1] = 7.0
    assert estimator(half.requires_grad_(), torch.randn(40, 3), 1.0).nats.isfinite()


def test_gaussian_tells_once_that_a_batch_is_too_small(caplog):
    estimator = GaussianMI()
    for _ in range(2):
        assert estimator(torch.randn(5, 4), torch.randn(5, 4), 1.0).nats == 0
    assert [r.levelname for r in caplog.records] == ["WARNING"] and "train_batch_size" in caplog.text


def train_encoder(name: str, reversal: bool = True) -> float:
    """A shared factor in two views; what is left of the dependence when two encoders minimised the estimate, in nats, by an
    estimator that was not trained on (for the Gaussian estimator itself: fresh InfoNCE)."""
    torch.manual_seed(0)
    encoders = torch.nn.ModuleList(torch.nn.Linear(2, 1, bias=False) for _ in range(2))
    estimator = create(name, 1, 32)
    optimizer = torch.optim.Adam(
        [{"params": encoders.parameters(), "lr": 3e-3}, {"params": estimator.parameters(), "lr": 1e-2}]
    )
    for layer in encoders:
        torch.nn.init.constant_(layer.weight, 0.7)

    def views(n):
        shared = torch.randn(n, 1)
        out = [layer(torch.cat([shared, torch.randn(n, 1)], 1)) for layer in encoders]
        return [torch.nn.functional.normalize(v, dim=0) * n**0.5 for v in out]  # no way out through the scale

    for _ in range(600):
        optimizer.zero_grad()
        a, b = views(256)
        if reversal:
            loss = estimator(a, b, 1.0).loss
        else:  # naive: one minimisation of the bound over everything
            joint, product = estimator.scores(a, b), estimator.scores(a, b.roll(random_shift(len(a)), 0))
            loss = joint.mean() - torch.logsumexp(product, 0)
        loss.backward()
        optimizer.step()
    judge = create("infonce" if name == "gaussian" else "gaussian", 1, 32)
    optimizer = torch.optim.Adam(judge.parameters(), 1e-2) if name == "gaussian" else None
    for _ in range(200 if optimizer else 0):
        optimizer.zero_grad()
        a, b = (v.detach() for v in views(256))
        judge(a, b, 0.0).loss.backward()
        optimizer.step()
    with torch.no_grad():
        return judge(*views(4096), 0.0).nats.item()


@pytest.mark.parametrize("name", ESTIMATORS)
def test_minimising_the_estimate_removes_a_planted_factor(name):
    assert train_encoder(name) < 0.02  # 0.14 at the start: correlation 0.5


def test_naive_joint_minimisation_does_not():
    assert train_encoder("mine", reversal=False) > 0.05


def test_moving_average_corrects_the_gradient():
    torch.manual_seed(0)
    mine = MINE((1, 1), 4, 0.25)
    with torch.no_grad():
        mine.log_average.fill_(math.log(3.0))
    a, b = torch.randn(40, 1), torch.randn(40, 1)
    torch.manual_seed(5)
    mine(a, b, 0.0).loss.backward()
    got = mine.last.weight.grad.clone()
    torch.manual_seed(5)
    joint, product = mine.scores(a, b), mine.scores(a, b.roll(random_shift(40), 0))
    average = 0.75 * 3.0 + 0.25 * product.exp().mean().item()
    assert mine.log_average.item() == pytest.approx(math.log(average), abs=1e-5)
    expected = torch.autograd.grad(-(joint.mean() - product.exp().mean() / average), mine.last.weight)[0]
    torch.testing.assert_close(got, expected)


def test_mine_gradients_take_opposite_signs():
    torch.manual_seed(0)
    mine = MINE((2, 2), 8, 0.5)
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
    joint, product = mine.scores(a, b), mine.scores(a, b.roll(random_shift(50), 0))
    dv = joint.mean() - (torch.logsumexp(product, 0) - math.log(50))
    assert dv.item() == pytest.approx(estimate.nats.item(), abs=1e-6)
    true_a, true_t = torch.autograd.grad(dv, (a, mine.first.weight))
    torch.testing.assert_close(grad_a, 0.5 * true_a)  # minimising the loss descends the bound in a, with the weight
    torch.testing.assert_close(grad_t, -true_t)  # and ascends it in T, with weight 1
    _, no_push, still_learns = bound(0.0)
    assert no_push.abs().sum() == 0 and torch.equal(still_learns, grad_t)


@pytest.mark.parametrize("shift", [1, 3, 6])
def test_the_closed_form_gradient_is_that_of_the_formula(shift, monkeypatch):
    torch.manual_seed(0)
    mine = MINE((2, 2), 5, 0.1).eval()
    a, b = torch.randn(7, 2, requires_grad=True), torch.randn(7, 2, requires_grad=True)
    network = (mine.first.weight, mine.first.bias, mine.last.weight)
    torch.nn.init.normal_(mine.first.bias)
    mine.log_average.fill_(0.7)
    monkeypatch.setattr(mine_module, "random_shift", lambda n: shift)
    estimate = mine(a, b, 0.3)
    ours = torch.autograd.grad(2 * estimate.loss, (a, b, *network))
    joint, product = mine.scores(a, b), mine.scores(a, b.roll(shift, 0))
    loss = product.exp().mean() / math.exp(0.7) - joint.mean()
    truth = torch.autograd.grad(2 * loss, (a, b, *network))
    torch.testing.assert_close(estimate.loss, loss)
    torch.testing.assert_close(estimate.nats, joint.mean() - product.exp().mean().log())
    for n, (got, true) in enumerate(zip(ours, truth, strict=True)):
        torch.testing.assert_close(got, true if n > 1 else -0.3 * true)


def test_shift_never_pairs_an_item_with_itself():
    shifts = {random_shift(4) for _ in range(200)}
    assert shifts == {1, 2, 3}


def test_reverse_gradient():
    x = torch.ones(2, requires_grad=True)
    y = reverse_gradient(x, 0.25)
    y.sum().backward()
    assert torch.equal(y, x) and torch.equal(x.grad, torch.full((2,), -0.25))


def test_the_closed_form_used_above():
    """The closed form used above, against numerical integration of log density ratios."""
    rho = 0.6
    joint = MultivariateNormal(torch.zeros(2), torch.tensor([[1, rho], [rho, 1]]))
    sample = joint.sample((200000,))
    ratio = joint.log_prob(sample) - Normal(0, 1).log_prob(sample).sum(1)
    assert ratio.mean().item() == pytest.approx(-0.5 * math.log(1 - rho**2), abs=0.01)
