"""Graphs against dense formulas on random small ones; the cache; segment reductions against a loop and torch-scatter."""

import logging

import numpy as np
import pytest
import torch

from mmrec_mrdib import graphs
from mmrec_mrdib.graphs import Edges, Pattern, behaviour, neighbours, segments

SEEDS = range(5)


def dense(edges):
    out = torch.zeros(edges.shape)
    return out.index_put_((edges.rows, edges.cols), edges.values, accumulate=True)


def random_interactions(seed, n_users=13, n_items=9, share=0.25):
    """Unit interactions with padding at 0; user 3 and item 2 have none, user 1 has everything else."""
    generator = torch.Generator().manual_seed(seed)
    taken = torch.rand(n_users, n_items, generator=generator) < share
    taken[1] = True
    taken[0] = taken[3] = False
    taken[:, 0] = taken[:, 2] = False
    users, items = taken.nonzero(as_tuple=True)
    order = torch.randperm(len(users), generator=generator)
    return Edges(users[order], items[order], torch.ones(len(users)), (n_users, n_items))


def random_features(seed, n=9, d=4, zero=()):
    x = torch.randn(n, d, generator=torch.Generator().manual_seed(100 + seed))
    x[[0, *zero]] = 0
    return x


def blocks_of(monkeypatch, entries):
    for room in (behaviour, neighbours):
        monkeypatch.setattr(room, "BLOCK", entries)


def cosines(x):
    unit = torch.nn.functional.normalize(x)
    return unit @ unit.T


def inverse_root(sums):
    return torch.where(sums > 0, sums, torch.inf).rsqrt()


# Normalisation and multiplication.


@pytest.mark.parametrize("seed", SEEDS)
def test_user_item_graph(seed):
    edges = random_interactions(seed)
    a = dense(edges)
    square = torch.cat([torch.cat([torch.zeros(13, 13), a], 1), torch.cat([a.T, torch.zeros(9, 9)], 1)])
    scale = inverse_root(square.sum(1))
    truth = scale[:, None] * square * scale
    graph = edges.normalised("both").both_ways()
    torch.testing.assert_close(dense(graph), truth)
    matrix = graph.matrix()
    assert matrix.symmetric
    torch.testing.assert_close(matrix.csr().to_dense(), truth)
    values = torch.linalg.eigvalsh(truth.double())
    assert values.abs().max() <= 1 + 1e-6  # spectral radius
    isolated = [0, 3, 13, 13 + 2]
    assert not truth[isolated].any() and not truth[:, isolated].any()
    mean = dense(edges.both_ways().normalised("mean"))
    torch.testing.assert_close(mean.sum(1), (square.sum(1) > 0).float())


@pytest.mark.parametrize("norm", ["both", "rows", "mean"])
def test_normalisation_of_a_square_matrix_that_is_not_symmetric(norm):
    a = torch.tensor([[0.0, 0, 0, 0], [0, 1, 2, 0], [0, 0, 4, 0], [0, 3, 0, 0]])
    rows, cols = a.nonzero(as_tuple=True)
    edges = Edges(rows, cols, a[rows, cols], (4, 4))
    r, c = a.sum(1), a.sum(0)
    truth = {
        "both": a * inverse_root(r)[:, None] * inverse_root(c),
        "rows": a * inverse_root(r)[:, None] * inverse_root(r),
        "mean": a * inverse_root(r)[:, None] ** 2,
    }[norm]
    torch.testing.assert_close(dense(edges.normalised(norm)), truth)


def test_unknown_normalisation():
    with pytest.raises(ValueError, match="expected both, rows or mean"):
        random_interactions(0).normalised("sideways")


@pytest.mark.parametrize("seed", SEEDS)
def test_products_and_their_gradients(seed):
    edges = random_interactions(seed).normalised("both")
    doubled = edges + edges.scaled(0.5)  # repeated places add up
    truth = 1.5 * dense(edges)
    matrix = doubled.matrix()
    assert len(matrix) == len(edges) and not matrix.symmetric
    for call, by, rows in ((matrix, truth, 9), (matrix.transposed, truth.T, 13)):
        x = torch.randn(rows, 3, requires_grad=True)
        y = torch.randn(by.shape[0], 3)
        out = call(x)
        torch.testing.assert_close(out, by @ x)
        (out * y).sum().backward()
        torch.testing.assert_close(x.grad, by.T @ y)
    square = edges.both_ways().matrix()
    x = torch.randn(22, 3, requires_grad=True)
    (square(x) * x.detach()).sum().backward()
    torch.testing.assert_close(x.grad, square.csr().to_dense().T @ x.detach())


def test_a_matrix_moves_with_its_model_and_is_in_no_checkpoint():
    matrix = random_interactions(0).matrix()
    assert not matrix.state_dict() and {b.device.type for b in matrix.buffers()} == {"cpu"}
    assert {b.device.type for b in matrix.to("meta").buffers()} == {"meta"}


def test_propagation_is_the_mean_of_powers():
    graph = random_interactions(0).normalised("both").both_ways().matrix()
    a, x = graph.csr().to_dense(), torch.randn(22, 3)
    torch.testing.assert_close(graphs.propagate_mean(graph, x, 2), (x + a @ x + a @ a @ x) / 3)
    torch.testing.assert_close(graphs.propagate_mean(graph, x, 0), x)


# Interactions.


def test_edges_are_drawn_without_replacement_by_weight():
    torch.manual_seed(0)
    weights = torch.tensor([1.0, 2.0, 3.0, 0.5])
    seen = torch.zeros(4, 4)
    for _ in range(20000):
        first, second = graphs.sample_edges(weights, 2)
        seen[first, second] += 1
    p = weights / weights.sum()
    # P({a, b}) = p_a p_b / (1 - p_a) + p_b p_a / (1 - p_b): one after the other
    truth = p[:, None] * p / (1 - p[:, None])
    truth = (truth + truth.T).triu(1)
    torch.testing.assert_close(seen / 20000, truth, atol=0.015, rtol=0)
    assert not seen.tril().any()  # sorted, and no edge twice


def test_popular_nodes_lose_their_edges_first():
    edges = random_interactions(0)
    users, items = dense(edges).sum(1), dense(edges).sum(0)
    truth = 1 / torch.sqrt(users[edges.rows] * items[edges.cols])
    torch.testing.assert_close(graphs.degree_sensitive(edges), truth)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("block", [1 << 24, 1])  # in one block, and a row at a time
def test_cooccurrence(seed, block, monkeypatch):
    blocks_of(monkeypatch, block)
    edges = random_interactions(seed)
    a = dense(edges)
    common = (a @ a.T).fill_diagonal_(0)
    truth = torch.zeros_like(common)
    for user, row in enumerate(common):
        best = sorted(range(len(row)), key=lambda v: (-row[v], v))[:4]
        for v in best:
            truth[user, v] = row[v]
    torch.testing.assert_close(dense(graphs.cooccurrence(edges, 4)), truth)


# Graphs from features.


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("block", [1 << 24, 20])
def test_knn(seed, block, monkeypatch):
    blocks_of(monkeypatch, block)
    x = random_features(seed)
    c = cosines(x)
    weighted, binary = torch.zeros(9, 9), torch.zeros(9, 9)
    for row in range(1, 9):
        for col in sorted(range(1, 9), key=lambda j: -c[row, j])[:3]:
            weighted[row, col], binary[row, col] = c[row, col].clamp(min=0), 1
    torch.testing.assert_close(dense(graphs.knn(x, 3, True)), weighted)
    found = dense(graphs.knn(x, 3, False))
    torch.testing.assert_close(found, binary)
    assert (found.sum(1)[1:] == 3).all() and (found.diagonal()[1:] == 1).all() and not found[0].any()


def test_knn_of_items_without_features_and_of_few_items():
    x = random_features(0, zero=(4,))
    weighted, binary = dense(graphs.knn(x, 20, True)), dense(graphs.knn(x, 20, False))
    others = [1, 2, 3, 5, 6, 7, 8]
    assert not weighted[4].any() and not weighted[:, 4].any() and weighted.isfinite().all()
    assert binary[4].tolist() == [0, 0, 0, 0, 1, 0, 0, 0, 0] and binary[others][:, others].all()
    normalised = dense(graphs.knn(x, 20, True).normalised("rows"))
    assert normalised.isfinite().all()


@pytest.mark.parametrize("modalities", [1, 2, 3])
@pytest.mark.parametrize("block", [1 << 24, 60])
def test_interest_graphs_against_dense_loops(modalities, block, monkeypatch):
    blocks_of(monkeypatch, block)
    edges = random_interactions(3)
    features = [random_features(10 + m) for m in range(modalities)]
    taken, clipped = dense(edges), [cosines(x).clamp(min=0) for x in features]
    wanted = torch.zeros(13, 9)
    for c in clipped:
        scores = taken @ c
        for user in range(13):
            for item in sorted(range(9), key=lambda k: -scores[user, k])[:2]:
                wanted[user, item] = max(wanted[user, item], float(scores[user, item] > 0))
    found = graphs.interests(edges, features, 2)
    torch.testing.assert_close(dense(found), wanted)
    for x, c in zip(features, clipped, strict=True):
        truth = torch.zeros(9, 9)
        for user in range(13):
            for t in taken[user].nonzero().flatten():
                for k in wanted[user].nonzero().flatten():
                    truth[t, k] += c[t, k]
        torch.testing.assert_close(dense(graphs.interest_graph(edges, found, x)), truth)


@pytest.mark.parametrize("modalities", [1, 2, 3])
@pytest.mark.parametrize("n", [0, 2, 5])
@pytest.mark.parametrize("block", [1 << 24, 20])
def test_interest_edges_against_the_whole_pool_of_pairs(modalities, n, block, monkeypatch):
    blocks_of(monkeypatch, block)
    edges = random_interactions(4)
    features = [random_features(20 + m) for m in range(modalities)]
    product = torch.ones(9, 9)
    for x in features:
        product = product * cosines(x).clamp(min=0)
    truth, tied = torch.zeros(13, 9), []
    for user, row in enumerate(dense(edges)):
        items = row.nonzero().flatten().tolist()
        keep = n + len(items)
        pool = []
        for t in items:  # of each item its best, then of all of these the best
            pool += sorted(((product[t, k].item(), k) for k in range(9)), reverse=True)[:keep]
        pool.sort(reverse=True)
        for value, k in pool[:keep]:
            truth[user, k] += value
        # (t, k) and (k, t) have one product: where the cut falls between two such pairs, either is right
        tied.append(len(pool) > keep and pool[keep - 1][0] - pool[keep][0] < 1e-6 and pool[keep][0] > 0)
    found, clear = dense(graphs.interest_edges(edges, features, n)), ~torch.tensor(tied)
    torch.testing.assert_close(found.sum(1), truth.sum(1))
    assert clear.sum() > 6
    torch.testing.assert_close(found[clear], truth[clear])


def test_nothing_is_as_large_as_items_by_items(monkeypatch):
    """Every similarity block stays within its bound."""
    seen = []
    original = neighbours.cosines_to_all
    blocks_of(monkeypatch, 1 << 12)
    monkeypatch.setattr(behaviour, "cosines_to_all", lambda *a: seen.append(original(*a)) or seen[-1])
    x = random_features(0, n=500)
    edges = random_interactions(0, n_users=40, n_items=500, share=0.02)
    graphs.knn(x, 10, True)
    graphs.interest_graph(edges, graphs.interests(edges, [x], 3), x)
    graphs.interest_edges(edges, [x], 2)
    assert len(seen) > 100 and max(block.numel() for block in seen) <= 1 << 12


# The cache.


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("MMREC_MRDIB_CACHE", str(tmp_path))
    return tmp_path / "graphs"


def test_cache_is_keyed_by_all_that_matters(cache):
    x = random_features(0)
    first = graphs.cached(graphs.knn, x, 3, True)
    again = graphs.cached(graphs.knn, x.clone(), 3, True)
    assert len(list(cache.iterdir())) == 1
    assert all(torch.equal(a, b) for a, b in zip(first.tensors(), again.tensors(), strict=True))
    assert again.shape == first.shape
    other = x.clone()
    other[3, 1] += 1e-6
    edges = random_interactions(0)
    for build, arguments in (
        (graphs.knn, (x, 4, True)),
        (graphs.knn, (x, 3, False)),
        (graphs.knn, (other, 3, True)),
        (graphs.cooccurrence, (edges, 3)),
        (graphs.interests, (edges, [x], 3)),
        (graphs.interests, (edges, [x, other], 3)),
    ):
        graphs.cached(build, *arguments)
    assert len(list(cache.iterdir())) == 7


def damaged(path, kind):
    if kind == "cut off":
        path.write_bytes(path.read_bytes()[:200])
    elif kind == "flipped bits":
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 0xFF
        path.write_bytes(bytes(content))
    elif kind == "pickled":
        np.savez(path, rows=np.array([{}]), cols=np.array([{}]), values=np.array([{}]), shape=np.array([9, 9]))
    elif kind == "out of range":
        ids = np.array([1, 99])
        np.savez(path, rows=ids, cols=ids, values=np.ones(2, np.float32), shape=np.array([9, 9]))
    else:
        path.write_bytes(b"")


@pytest.mark.parametrize("kind", ["cut off", "flipped bits", "pickled", "out of range", "empty"])
def test_a_damaged_cache_file_is_told_and_made_anew(cache, caplog, kind):
    x = random_features(0)
    truth = graphs.cached(graphs.knn, x, 3, True)
    path = next(cache.iterdir())
    whole = path.read_bytes()
    damaged(path, kind)
    with caplog.at_level(logging.WARNING):
        found = graphs.cached(graphs.knn, x, 3, True)
    assert "damaged" in caplog.text and str(path) in caplog.text
    torch.testing.assert_close(dense(found), dense(truth))
    assert path.read_bytes() == whole


def test_a_cache_that_cannot_be_written_is_no_error(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("not a folder")
    monkeypatch.setenv("MMREC_MRDIB_CACHE", str(tmp_path / "file"))
    assert len(graphs.cached(graphs.knn, random_features(0), 3, False)) == 24


# Rows and segments.


@pytest.fixture
def edges():
    generator = torch.Generator().manual_seed(0)
    return torch.randn(200, 3, generator=generator), torch.randint(
        0, 12, (200,), generator=generator
    ) + 1  # 0, 13 empty


@pytest.mark.parametrize("reduce", ["sum", "mean", "max", "min"])
def test_native_path_against_a_loop(edges, reduce):
    values, index = edges
    op = {
        "sum": lambda v: v.sum(0),
        "mean": lambda v: v.mean(0),
        "max": lambda v: v.amax(0),
        "min": lambda v: v.amin(0),
    }
    truth = torch.stack([op[reduce](values[index == s]) if (index == s).any() else torch.zeros(3) for s in range(14)])
    torch.testing.assert_close(segments._native_reduce(values, index, 14, reduce), truth)


@pytest.mark.parametrize("reduce", ["sum", "mean", "max", "min"])
def test_both_paths_agree_in_value_and_gradient(edges, reduce):
    pytest.importorskip("torch_scatter", reason="torch-scatter is not built here")
    values, index = edges
    results = []
    for path in (segments._native_reduce, graphs.segment_reduce):
        x = values.clone().requires_grad_()
        out = path(x, index, 14, reduce)
        out.square().sum().backward()
        results.append((out.detach(), x.grad))
    torch.testing.assert_close(results[0], results[1])


def test_a_build_for_the_cpu_alone_is_left_alone_elsewhere(monkeypatch):
    # As torch-scatter is without CUDA: whatever is asked of it fails.
    monkeypatch.setattr(segments, "torch_scatter", object())
    out = graphs.segment_reduce(torch.ones(2, 3, device="meta"), torch.tensor([0, 1], device="meta"), 4, "sum")
    assert out.shape == (4, 3)


def test_softmax_sums_to_one_and_survives_large_scores(edges):
    values, index = edges
    weights = graphs.segment_softmax(values * 1000, index, 14)
    sums = graphs.segment_reduce(weights, index, 14, "sum")
    torch.testing.assert_close(sums[1:13], torch.ones(12, 3))
    assert weights.isfinite().all()


def test_gather_rows_is_indexing():
    table = torch.randn(5, 4, requires_grad=True)
    ids = torch.tensor([1, 1, 3])
    graphs.gather_rows(table, ids).sum().backward()
    assert table.grad[:, 0].tolist() == [0, 2, 0, 1, 0]


def test_unknown_reduction():
    with pytest.raises(ValueError, match="median"):
        graphs.segment_reduce(torch.ones(2, 1), torch.tensor([0, 1]), 2, "median")


def clustered(items, dims=32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(20, dims, generator=generator)
    x = centres[torch.randint(0, 20, (items,), generator=generator)] + torch.randn(items, dims, generator=generator)
    return torch.cat([torch.zeros(1, dims), x])


@pytest.mark.parametrize("weighted", [True, False])
def test_approximate_neighbours_are_nearly_the_exact_ones(weighted):
    x = clustered(3000)
    x[[5, 70]] = 0  # items without features
    found, exact = graphs.approximate_knn(x, 10, weighted), graphs.knn(x, 10, weighted)
    pairs = [set(zip(e.rows.tolist(), e.cols.tolist(), strict=True)) for e in (found, exact)]
    assert len(pairs[0] & pairs[1]) / len(pairs[1]) > 0.93  # 0.95 was asked for on a sample
    assert len(found) == len(exact) and not any(0 in pair for pair in pairs[0])
    truth = dict(zip(zip(exact.rows.tolist(), exact.cols.tolist(), strict=True), exact.values.tolist(), strict=True))
    for row, col, value in zip(found.rows.tolist(), found.cols.tolist(), found.values.tolist(), strict=True):
        assert (row, col) not in truth or truth[row, col] == pytest.approx(value, abs=1e-5)
    loops = {(5, 5), (70, 70)}
    assert loops <= pairs[0] if not weighted else not any(5 in p or 70 in p for p in pairs[0])


def test_tiny_catalogues_have_approximate_neighbours_too():
    x = random_features(0)[:4]
    torch.testing.assert_close(dense(graphs.approximate_knn(x, 10, True)), dense(graphs.knn(x, 10, True)))


def test_the_method_is_chosen_by_size(monkeypatch):
    built = []
    for name in ("knn", "approximate_knn"):
        monkeypatch.setattr(neighbours, name, name)
    monkeypatch.setattr(neighbours, "cached", lambda build, *args: built.append(build))
    monkeypatch.setattr(neighbours, "EXACT_UP_TO", 10)
    for items, method in ((10, "auto"), (11, "auto"), (11, "exact"), (5, "approximate")):
        graphs.nearest(torch.ones(items, 2), 3, True, method)
    assert built == ["knn", "approximate_knn", "knn", "approximate_knn"]


# Entries in any and in all of several graphs.


@pytest.mark.parametrize("seed", SEEDS)
def test_largest_and_common_entries(seed):
    parts = [graphs.knn(random_features(seed + n), 4, True) for n in range(3)]
    tables = torch.stack([dense(p) for p in parts])
    torch.testing.assert_close(dense(graphs.largest(parts)), tables.amax(0))
    common = (tables > 0).all(0).fill_diagonal_(False).float()
    assert torch.equal(dense(graphs.in_all(parts)), common) and torch.equal(
        graphs.largest(parts[:1]).values.sort().values, parts[0].values.sort().values
    )


# The spectrum.


@pytest.mark.parametrize("size", [(13, 9), (90, 70)])
def test_principal_part_of_the_spectrum(size, monkeypatch):
    edges = random_interactions(0, *size).normalised("both")
    u, s, v = torch.linalg.svd(dense(edges).double())
    truth = sum(s[j] * s[4 + j] * torch.outer(u[:, j], v[j]) for j in range(2)).float()
    assert (truth.abs() < 0.005).any()
    truth[truth.abs() < 0.005] = 0
    blocks_of(monkeypatch, 5 * size[1])
    torch.testing.assert_close(dense(graphs.principal(edges, 6, 2, 0.005)), truth, rtol=1e-4, atol=1e-6)


def test_pattern_is_a_sparse_matrix_with_learnt_values():
    torch.manual_seed(0)
    places = torch.randperm(7 * 5)[:12]
    pattern = Pattern(Edges(places // 5, places % 5, torch.ones(12), (7, 5)))
    rows, cols = pattern.rows, pattern.cols
    where = torch.zeros(7, 5, dtype=torch.bool).index_put_((rows, cols), torch.tensor(True))
    assert len(pattern) == 12 == where.sum()
    a, b = torch.randn(7, 3), torch.randn(5, 3)

    def outcome(by_hand):
        u, i = a.clone().requires_grad_(), b.clone().requires_grad_()
        if by_hand:
            scores = (u @ i.T).masked_fill(~where, -torch.inf)
            by_row, by_col = (torch.softmax(scores, dim).nan_to_num() for dim in (1, 0))
            x, y = by_row @ i, by_col.T @ u
        else:
            scores = pattern.dots(u, i)
            x = pattern.product(pattern.softmax(scores), i)
            y = pattern.product(pattern.softmax(scores, transposed=True), u, transposed=True)
        (x.square().sum() + (y * b).sum()).backward()
        return x.detach(), y.detach(), u.grad, i.grad

    for ours, truth in zip(outcome(False), outcome(True), strict=True):
        assert torch.isfinite(truth).all()
        torch.testing.assert_close(ours, truth)


@pytest.mark.parametrize("seed", SEEDS)
def test_agreeing_neighbours_are_nearer_than_average_in_every_modality(monkeypatch, seed):
    features = [random_features(seed, 12, 3), random_features(seed + 50, 12, 4, zero=[5])]
    cosines = [torch.nn.functional.normalize(x) @ torch.nn.functional.normalize(x).T for x in features]
    keep = torch.ones(12, 12, dtype=torch.bool)
    for c in cosines:
        keep &= c >= c[1:, 1:].mean()
    keep[[0, 5]] = keep[:, [0, 5]] = False
    blocks_of(monkeypatch, 30)
    for which, c in enumerate(cosines):
        ours = dense(graphs.agreeing_knn(features, which, 2))
        truth = torch.zeros(12, 12)
        for row in range(1, 12):
            ids = keep[row].nonzero().flatten()
            truth[row, ids[c[row, ids].topk(min(2, len(ids))).indices]] = 1
        truth[5, 5] = 1
        torch.testing.assert_close(ours, truth)
        assert keep.sum(1)[1:5].min() < 2 < keep.sum(1).max() or seed  # both cases occur
