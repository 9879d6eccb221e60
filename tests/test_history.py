"""Views of users by their items, and the objectives over them, against dense and hand-written forms."""

import math

import pytest
import torch
import torch.nn.functional as F

from mmrec_mrdib.graphs import Edges
from mmrec_mrdib.models.base import Batch
from mmrec_mrdib.mrdib.history import Histories, leave_one_out, profiles
from mmrec_mrdib.mrdib.objectives.contrast import contrast
from mmrec_mrdib.testing.contract import build

# User 0 is padding; 3 has one item, 5 has none; item 0 is padding, nobody has 6.
ITEMS = {1: [5, 1, 3], 2: [2, 3], 3: [4], 4: [1, 2, 3, 4, 5]}
PAIRS = [(u, i) for u, items in ITEMS.items() for i in items]


def histories(order=None):
    users, items = torch.tensor(PAIRS)[torch.arange(len(PAIRS)) if order is None else order].T
    return Histories(Edges(users, items, torch.ones(len(users)), (6, 7)))


@pytest.fixture
def dense():
    a = torch.zeros(6, 7)
    a[tuple(torch.tensor(PAIRS).T)] = 1
    return a


def table(width=4, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(7, width, generator=generator, requires_grad=True)


def test_lengths_and_entries_are_those_of_the_lists():
    users = torch.tensor([4, 5, 1, 4, 0])
    rows, items = histories().entries(users)
    assert histories().lengths(users).tolist() == [5, 0, 3, 5, 0]
    expected = [(n, i) for n, u in enumerate(users.tolist()) for i in sorted(ITEMS.get(u, []))]
    assert list(zip(rows.tolist(), items.tolist(), strict=True)) == expected
    rows, items = histories().entries(torch.tensor([5, 0]))
    assert len(rows) == len(items) == 0


def test_sums_and_their_gradient_are_a_dense_product(dense):
    users, x = torch.tensor([4, 5, 1, 1, 0]), table()
    upstream = torch.randn(5, 4)
    sums = histories().sums(x, users)
    torch.testing.assert_close(sums, dense[users] @ x)
    (ours,) = torch.autograd.grad(sums, x, upstream)
    torch.testing.assert_close(ours, dense[users].T @ upstream)
    assert ours[6].abs().sum() == 0 and ours[0].abs().sum() == 0
    assert (sums[[1, 4]] == 0).all()  # nothing, and padding


def test_profiles_are_directions_of_sums(dense):
    unit = F.normalize(table().detach())
    everybody = torch.arange(6)
    p = profiles(histories(), unit, everybody)
    for u, items in ITEMS.items():
        total = unit[items].sum(0)
        torch.testing.assert_close(p[u], total / total.norm())
    assert (p[[0, 5]] == 0).all()


def test_the_order_of_a_history_says_nothing():
    unit = F.normalize(table().detach())
    order = torch.randperm(len(PAIRS), generator=torch.Generator().manual_seed(1))
    everybody = torch.arange(6)
    assert torch.equal(profiles(histories(), unit, everybody), profiles(histories(order), unit, everybody))
    assert torch.equal(histories().entries(everybody)[1], histories(order).entries(everybody)[1])


def test_leave_one_out_is_a_loop_over_the_other_items():
    x = table()
    users, items = torch.tensor(PAIRS).T
    unit = F.normalize(x)
    views = leave_one_out(histories(), unit, users, items)
    rows = []
    for u, i in PAIRS:
        others = [j for j in ITEMS[u] if j != i]
        rows.append(F.normalize(unit[others].sum(0), dim=0) if others else torch.zeros(4))
    torch.testing.assert_close(views, torch.stack(rows))
    upstream = torch.randn(len(PAIRS), 4)
    ours, loop = (torch.autograd.grad(v, x, upstream, retain_graph=True)[0] for v in (views, torch.stack(rows)))
    torch.testing.assert_close(ours, loop, atol=1e-5, rtol=1e-5)
    assert (views[PAIRS.index((3, 4))] == 0).all()  # the only item of its user


def test_no_gradient_reaches_the_left_out_item():
    """Exactly: an item must not predict itself, not even by rounding."""
    unit = F.normalize(table()).detach().requires_grad_()
    for u, i in PAIRS:
        view = leave_one_out(histories(), unit, torch.tensor([u]), torch.tensor([i]))
        (grad,) = torch.autograd.grad(view, unit, torch.randn(1, 4))
        others = [j for j in ITEMS[u] if j != i]
        assert grad[i].abs().max() == 0 and (grad[others].abs().sum(1) > 0).all()


# The softmax over the items of the batch.


def batch_of(m, n_pairs=6, n_items=5, seed=0):
    """Pairs of items 0, 1, ... of a batch, all of which are candidates; modality k is k + 2 wide."""
    generator = torch.Generator().manual_seed(seed)
    widths = [k + 2 for k in range(m)]

    def rows(n):
        return torch.randn(n, sum(widths), generator=generator, dtype=torch.float64).requires_grad_()

    users, items = rows(n_pairs), rows(n_items)
    own = torch.tensor([0, 1, 2, 3, 4, 1])
    others = [{2, 4}, set(), set(), {0}, set(), set()]  # the users' other items
    weights = torch.tensor([1.0, 0.5, 0.0, 1.0, 0.25, 1.0], dtype=torch.float64)
    return widths, users, items, own, others, weights


def plain_contrast(widths, users, items, own, others, weights, t, candidates):
    """The formula, pair by pair, left to autograd."""
    logits = [p @ z.T / t for p, z in zip(users.split(widths, 1), items.split(widths, 1), strict=True)]
    losses = []
    for x in (*logits, torch.stack(logits).sum(0)):
        total = 0
        for b in range(len(own)):
            i = own[b].item()
            rest = [i, *(k for k in candidates if k != i and k not in others[b])]
            total = total + weights[b] * (torch.logsumexp(x[b, rest], 0) - x[b, i])
        losses.append(total / weights.sum())
    return torch.stack(losses)


@pytest.mark.parametrize("candidates", [[0, 1, 2, 3, 4], [3, 1]])
@pytest.mark.parametrize("m", [1, 2, 3])
@pytest.mark.parametrize("t", [0.15, 1.0])
def test_contrast_is_the_formula_and_so_is_its_gradient(m, t, candidates):
    widths, users, items, own, others, weights = batch_of(m)
    blocked = torch.tensor([[k == i or k in o for k in candidates] for i, o in zip(own.tolist(), others, strict=True)])
    sides = users, items[own], items[candidates]
    unique, together = contrast(*sides, blocked, weights, t, widths)
    truth = plain_contrast(widths, users, items, own, others, weights, t, candidates)
    torch.testing.assert_close(torch.cat([unique, together[None]]), truth)
    if m == 1:
        torch.testing.assert_close(unique[0], together)
    scale = torch.arange(1.0, m + 2, dtype=torch.float64)  # each loss pulls by another weight
    ours = torch.autograd.grad((unique * scale[:m]).sum() + together * scale[m], [users, items])
    theirs = torch.autograd.grad((truth * scale).sum(), [users, items], retain_graph=True)
    torch.testing.assert_close(ours, theirs)
    assert ours[0][2].abs().max() == 0  # a pair of weight 0
    none, only = contrast(*(x.detach() for x in sides), blocked, weights, t, widths, alone=False)
    assert none.shape == (0,)
    torch.testing.assert_close(only, truth[-1])
    _, only = contrast(users, items[own], items[candidates], blocked, weights, t, widths, alone=False)
    torch.testing.assert_close(
        torch.autograd.grad(only, [users, items]), torch.autograd.grad(truth[-1], [users, items])
    )


def test_contrast_by_hand():
    """One pair, one other item: ln(1 + exp((s_1 - s_0) / t))."""
    p, i, j = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.6, 0.8]]), torch.tensor([[0.8, 0.6]])
    free, one = torch.zeros(1, 1, dtype=torch.bool), torch.ones(1)
    twice = [torch.cat([x, x], 1) for x in (p, i, j)]
    unique, together = contrast(*twice, free, one, 0.5, [2, 2])
    assert unique.tolist() == pytest.approx([math.log1p(math.exp(0.2 / 0.5))] * 2)
    assert together.item() == pytest.approx(math.log1p(math.exp(0.4 / 0.5)))
    assert contrast(p, i, j, ~free, one, 0.5, [2])[1].item() == 0  # nothing left but the item itself
    assert contrast(p, i, j[:0], free[:, :0], one, 0.5, [2])[1].item() == 0
    nobody = contrast(p, i, j, free, torch.zeros(1), 0.5, [2])
    assert nobody[1].item() == 0 and nobody[0].isfinite().all()


# In the plug-in.


def plugged(tmp_path, **values):
    """VBPR+MRdIB without noise, its histories those above."""
    values = {"init_log_var": -200, "min_log_var": -200, "content_size": 3, "unique_weight": 1.0, **values}
    model, _ = build("VBPR+MRdIB", tmp_path, **values)
    model.histories = histories()
    model.n_items = 7
    for m in model.modalities:  # the items above, and no more
        for name in (f"features_{m}",):
            model.backbone.register_buffer(name, getattr(model.backbone, name)[:7].clone(), persistent=False)
    return model.train()


def step_of(model, pairs, negative=None):
    users, positive = torch.tensor(pairs).T
    negative = torch.full_like(positive, 6) if negative is None else torch.tensor(negative)
    return model.step_loss({model.USER_ID: users, model.ITEM_ID: positive, model.NEG_ITEM_ID: negative})


def test_the_other_items_of_a_user_are_no_negatives(tmp_path):
    model = plugged(tmp_path)
    batch = Batch(torch.tensor([1, 2, 1]), torch.tensor([5, 2, 3]), torch.tensor([6, 6, 6]), 7)
    items, blocked = model._candidates(batch)
    assert items.tolist() == [2, 3, 5]
    # user 1 has 1, 3 and 5, user 2 has 2 and 3
    assert blocked.tolist() == [[False, True, True], [True, True, False], [False, True, True]]


def test_a_step_reads_the_batch_and_its_histories(tmp_path):
    """Encoding no more than these gives the same losses and gradients as encoding the whole catalogue."""
    model = plugged(tmp_path, rate_weight=0.1, redundant_weight=0.1, mi_estimator="gaussian")
    pairs, negative = [(3, 4), (2, 2), (2, 3)], [4, 2, 4]
    batch = Batch(torch.tensor([3, 2, 2]), torch.tensor([4, 2, 3]), torch.tensor(negative), 7)
    assert model.items_to_read(batch).tolist() == [2, 3, 4]
    weights = [e.weight for e in model.own_encoders.values()]
    some = step_of(model, pairs, negative)
    model.items_to_read = lambda batch: None
    whole = step_of(model, pairs, negative)
    assert some.parts.keys() == whole.parts.keys() == {"rate", "redundant", "unique", "synergistic"}
    for name, part in some.parts.items():
        torch.testing.assert_close(part, whole.parts[name])
    torch.testing.assert_close(torch.autograd.grad(some.total, weights), torch.autograd.grad(whole.total, weights))


def reference(model, pairs, cap, t, bpr=None):
    """Unique by modality and synergistic, in loops; `bpr`: the negatives of the pairs."""
    z = {m: F.normalize(model.own_encoders[m](model.features(m))) for m in model.modalities}
    items = sorted({i for _, i in pairs})
    weights, losses = [], []
    for n, (u, i) in enumerate(pairs):
        others = [j for j in ITEMS[u] if j != i]
        if not others:
            continue
        weights.append(min(1, cap / len(ITEMS[u])))
        s = torch.stack([F.normalize(x[others].sum(0), dim=0) @ x.T for x in z.values()]) / t
        s = torch.cat([s, s.sum(0, keepdim=True)])
        if bpr is None:
            rest = [k for k in items if k == i or k not in ITEMS[u]]
            losses.append(torch.logsumexp(s[:, rest], 1) - s[:, i])
        else:
            losses.append(F.softplus(s[:, bpr[n]] - s[:, i]))
    w = torch.tensor(weights)
    total = (torch.stack(losses) * w[:, None]).sum(0) / w.sum()
    return total[:-1], total[-1]


@pytest.mark.parametrize("loss", ["softmax", "bpr"])
def test_both_objectives_by_loops(tmp_path, loss):
    """Caps, users with one item and negatives, by value and gradient; the synergistic one is over summed similarities."""
    model = plugged(
        tmp_path, unique_loss=loss, history_cap=2, contrast_temperature=0.4, unique_weight=0.7, synergy_weight=0.3
    )
    negative = [6, 4, 2, 6, 6, 6]
    pairs = [(1, 5), (1, 3), (3, 4), (4, 1), (4, 2), (2, 2)]
    step = step_of(model, pairs, negative)
    unique, together = reference(model, pairs, 2, 0.4, negative if loss == "bpr" else None)
    assert step.parts["unique"].item() == pytest.approx(0.7 * unique.sum().item(), rel=1e-5)
    assert step.parts["synergistic"].item() == pytest.approx(0.3 * together.item(), rel=1e-5)
    assert [step.logs[f"unique/{m}"].item() for m in model.modalities] == pytest.approx(unique.tolist(), rel=1e-5)
    weights = [e.weight for e in model.own_encoders.values()]
    ours = torch.autograd.grad(step.total, weights)
    theirs = torch.autograd.grad(0.7 * unique.sum() + 0.3 * together, weights)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("loss", ["softmax", "bpr"])
def test_users_with_one_item_have_no_view_and_no_loss(tmp_path, loss):
    model = plugged(tmp_path, unique_loss=loss)
    step = step_of(model, [(3, 4)])
    assert {k: v.item() for k, v in step.parts.items()} == {"unique": 0, "synergistic": 0}
    step.total.backward()
    assert all(p.grad is None or not p.grad.any() for p in model.parameters())
