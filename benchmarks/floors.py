"""Bare PyTorch loops of each backbone's mathematics: what an epoch costs without a framework around it.

Parameters, a shuffled order, uniform negatives that nobody checks, the loss written down with PyTorch's own operations (CSR products, InfoNCE
as a B x B cross entropy), Adam with one kernel. Graphs are those of the model, in the same settings.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.functional import embedding

D, BATCH = 64, 2048
Loss = Callable[[Tensor, Tensor, Tensor], Tensor]


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, a: Tensor, a_t: Tensor, x: Tensor) -> Tensor:
        ctx.a_t = a_t
        return a @ x

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[None, None, Tensor]:
        return None, None, ctx.a_t @ grads[0]


def product(matrix: Any) -> Callable[[Tensor], Tensor]:
    """x -> A x for a constant CSR matrix."""
    a, a_t = matrix.csr(), matrix.csr(transposed=True)
    return lambda x: _Product.apply(a, a_t, x)


def table(*shape: int) -> nn.Parameter:
    return nn.Parameter(nn.init.xavier_uniform_(torch.empty(*shape)))


def scores(u: Tensor, i: Tensor, j: Tensor) -> Tensor:
    return F.softplus((u * j).sum(1) - (u * i).sum(1)).mean()


def info_nce(a: Tensor, b: Tensor, t: float = 0.2) -> Tensor:
    logits = F.normalize(a) @ F.normalize(b).T / t
    return F.cross_entropy(logits, torch.arange(len(a)))


def layers(graph: Callable[[Tensor], Tensor], x: Tensor, n: int) -> list[Tensor]:
    out = [x]
    for _ in range(n):
        out.append(graph(out[-1]))
    return out


def epoch_of(
    splits: Any, parameters: list[Tensor], loss: Loss, before: Callable[[], None] = lambda: None
) -> Callable[[], None]:
    users, items = splits.train.users, splits.train.items
    n_items = splits.dataset.item_num
    optimizer = torch.optim.Adam(parameters, 1e-3, fused=True)

    def epoch() -> None:
        before()
        order = torch.randperm(len(users))
        negatives = torch.randint(1, n_items, (len(users),))
        for start in range(0, len(users), BATCH):
            part = order[start : start + BATCH]
            value = loss(users[part], items[part], negatives[start : start + BATCH])
            optimizer.zero_grad()
            value.backward()
            optimizer.step()

    return epoch


class _Data:
    """Sizes and features of a data set, and the parameters that a floor has made."""

    def __init__(self, splits: Any) -> None:
        self.splits = splits
        self.n_users, self.n_items = splits.dataset.user_num, splits.dataset.item_num
        self.x = splits.dataset.features
        self.parameters: list[Tensor] = []

    def table(self, *shape: int) -> nn.Parameter:
        self.parameters.append(table(*shape))
        return self.parameters[-1]

    def module(self, module: nn.Module) -> Any:
        self.parameters += module.parameters()
        return module

    def linears(self, bias: bool = True) -> dict[str, nn.Linear]:
        return {m: self.module(nn.Linear(x.shape[1], D, bias)) for m, x in self.x.items()}

    def split(self, nodes: Tensor) -> tuple[Tensor, ...]:
        return nodes.split([self.n_users, self.n_items])


def vbpr(splits: Any, model: Any) -> Callable[[], None]:
    data = _Data(splits)
    x = torch.cat(list(data.x.values()), 1)
    users, items, linear = (
        data.table(data.n_users, 2 * D),
        data.table(data.n_items, D),
        data.module(nn.Linear(x.shape[1], D)),
    )

    def loss(user: Tensor, positive: Tensor, negative: Tensor) -> Tensor:
        both = torch.cat([items, linear(x)], 1)
        u, i, j = embedding(user, users), embedding(positive, both), embedding(negative, both)
        return scores(u, i, j) + 2.0 / len(user) * (u.norm() + i.norm() + j.norm())

    return epoch_of(splits, data.parameters, loss)


def lightgcn(splits: Any, model: Any) -> Callable[[], None]:
    data, graph = _Data(splits), product(model.norm_adj_matrix)
    users, items = data.table(data.n_users, D), data.table(data.n_items, D)

    def loss(user: Tensor, positive: Tensor, negative: Tensor) -> Tensor:
        all_users, all_items = data.split(torch.stack(layers(graph, torch.cat([users, items]), 2)).mean(0))
        u, i, j = embedding(user, all_users), embedding(positive, all_items), embedding(negative, all_items)
        own = embedding(user, users), embedding(positive, items), embedding(negative, items)
        return scores(u, i, j) + 1e-4 / 2 / len(user) * sum(x.square().sum() for x in own)

    return epoch_of(splits, data.parameters, loss)


def mmgcn(splits: Any, model: Any) -> Callable[[], None]:
    data, mean = _Data(splits), product(model.mean)
    linears = data.linears()
    ids = data.table(data.n_users + data.n_items, D)
    preferences = {m: data.table(data.n_users, D) for m in data.x}
    nets = {m: [data.module(nn.ModuleList([nn.Linear(D, D, False), nn.Linear(D, D), nn.Linear(2 * D, D)])) for _ in range(3)] for m in data.x}  # fmt: skip

    def loss(user: Tensor, positive: Tensor, negative: Tensor) -> Tensor:
        outs = []
        for m, x in data.x.items():
            nodes = F.normalize(torch.cat([preferences[m], linears[m](x)]))
            for neighbours, own, combine in nets[m]:
                h = F.leaky_relu(mean(neighbours(nodes)))
                nodes = F.leaky_relu(combine(torch.cat([h, F.leaky_relu(own(nodes)) + ids], 1)))
            outs.append(nodes)
        users, items = data.split(torch.stack(outs).mean(0))
        squares = embedding(torch.cat([user, positive + data.n_users, negative + data.n_users]), ids).square().mean()
        squares = squares + torch.stack([p.square().mean() for p in preferences.values()]).mean()
        return scores(embedding(user, users), embedding(positive, items), embedding(negative, items)) + 1e-3 * squares

    return epoch_of(splits, data.parameters, loss)


def dualgnn(splits: Any, model: Any) -> Callable[[], None]:
    data, graph, user_graph = _Data(splits), product(model.graph), product(model.user_graph)
    nets = {m: data.module(nn.Sequential(nn.Linear(x.shape[1], 4 * D), nn.LeakyReLU(), nn.Linear(4 * D, D))) for m, x in data.x.items()}  # fmt: skip
    preferences = {m: data.table(data.n_users, D) for m in data.x}
    fusion = data.table(data.n_users, len(data.x))

    def loss(user: Tensor, positive: Tensor, negative: Tensor) -> Tensor:
        users, items = torch.zeros(()), torch.zeros(())
        for n, (m, x) in enumerate(data.x.items()):
            nodes = F.normalize(torch.cat([preferences[m], nets[m](x)]))
            of_users, of_items = data.split(sum(layers(graph, nodes, 2)))
            users, items = users + fusion[:, n, None] * of_users, items + of_items
        users = users + user_graph(users)
        squares = sum(embedding(user, p).square().mean() for p in preferences.values()) + fusion.square().mean()
        ranking = scores(embedding(user, users), embedding(positive, items), embedding(negative, items))
        return ranking / math.log(2) + 1e-3 * squares

    return epoch_of(splits, data.parameters, loss)


def freedom(splits: Any, model: Any) -> Callable[[], None]:
    data, item_graph = _Data(splits), product(model.item_graph)
    users, items, linears = data.table(data.n_users, D), data.table(data.n_items, D), data.linears()
    n = data.n_users + data.n_items
    pruned: list[Callable[[Tensor], Tensor]] = []

    def prune() -> None:
        pruner = model.pruner
        kept = torch.multinomial(pruner.weights, int(0.2 * len(pruner.weights)))
        u, i = pruner.users[kept], pruner.items[kept] + data.n_users
        degree = torch.bincount(torch.cat([u, i]), minlength=n).float().rsqrt()
        values = degree[u] * degree[i]
        places = torch.stack([torch.cat([u, i]), torch.cat([i, u])])
        graph = (
            torch.sparse_coo_tensor(places, values.repeat(2), (n, n), check_invariants=False).coalesce().to_sparse_csr()
        )
        pruned[:] = [lambda x: _Product.apply(graph, graph, x)]

    def loss(user: Tensor, positive: Tensor, negative: Tensor) -> Tensor:
        all_users, all_items = data.split(torch.stack(layers(pruned[0], torch.cat([users, items]), 2)).mean(0))
        all_items = all_items + item_graph(items)
        u = embedding(user, all_users)
        total = scores(u, embedding(positive, all_items), embedding(negative, all_items))
        for m, x in data.x.items():
            z = linears[m](x)
            total = total + 1e-3 * scores(u, embedding(positive, z), embedding(negative, z))
        return total

    return epoch_of(splits, data.parameters, loss, prune)


class _Views:
    """What MGCN and SOIL share: content, and each modality's purified view."""

    def __init__(self, data: _Data, model: Any) -> None:
        self.data = data
        self.graph, self.user_item = product(model.graph), product(model.user_item)
        self.item_graphs = {m: product(model.item_graphs[m]) for m in data.x}
        self.users, self.items, self.linears = data.table(data.n_users, D), data.table(data.n_items, D), data.linears()
        self.gates = {m: data.module(nn.Linear(D, D)) for m in data.x}
        self.hidden, self.score = data.module(nn.Linear(D, D)), data.module(nn.Linear(D, 1, bias=False))

    def __call__(self) -> tuple[Tensor, list[Tensor], Tensor]:
        content = torch.stack(layers(self.graph, torch.cat([self.users, self.items]), 2)).mean(0)
        views = []
        for m, x in self.data.x.items():
            q = self.item_graphs[m](self.items * torch.sigmoid(self.gates[m](self.linears[m](x))))
            views.append(torch.cat([self.user_item(q), q]))
        shares = torch.softmax(torch.cat([self.score(torch.tanh(self.hidden(c))) for c in views], 1), 1)
        return content, views, sum(shares[:, n, None] * c for n, c in enumerate(views))


def mgcn(splits: Any, model: Any) -> Callable[[], None]:
    data = _Data(splits)
    views_of = _Views(data, model)
    preferences = [data.module(nn.Linear(D, D)) for _ in data.x]

    def loss(user: Tensor, positive: Tensor, negative: Tensor) -> Tensor:
        content, views, common = views_of()
        side = common + sum(torch.sigmoid(p(content)) * (c - common) for p, c in zip(preferences, views, strict=True))
        side = side / (len(views) + 1)
        users, items = data.split(content + side)
        u, i, j = embedding(user, users), embedding(positive, items), embedding(negative, items)
        squares = sum(x.square().sum() for x in (u, i, j))
        (content_u, content_i), (side_u, side_i) = data.split(content), data.split(side)
        contrast = info_nce(embedding(positive, side_i), embedding(positive, content_i))
        contrast = contrast + info_nce(embedding(user, side_u), embedding(user, content_u))
        return scores(u, i, j) + 1e-4 / 2 / BATCH * squares + 0.01 * contrast

    return epoch_of(splits, data.parameters, loss)


def soil(splits: Any, model: Any) -> Callable[[], None]:
    data = _Data(splits)
    views_of = _Views(data, model)

    def loss(user: Tensor, positive: Tensor, negative: Tensor) -> Tensor:
        content, views, common = views_of()
        side = (sum(views) - common) / (len(views) + 1)
        users, items = data.split(content + side)
        u, i, j = embedding(user, users), embedding(positive, items), embedding(negative, items)
        (content_u, content_i), (side_u, side_i) = data.split(content), data.split(side)
        of_side, of_content = embedding(positive, side_i), embedding(positive, content_i)
        contrast = info_nce(of_side, of_content) + info_nce(embedding(user, side_u), embedding(user, content_u))
        cross = info_nce(u, of_content) + info_nce(u, of_side)
        return scores(u, i, j) + 0.01 * contrast + 0.01 * cross

    return epoch_of(splits, data.parameters, loss)


def grcn(splits: Any, model: Any) -> Callable[[], None]:
    data, n = _Data(splits), model.n_users
    linears, ids = data.linears(), data.table(data.n_users + data.n_items, D)
    preferences = {m: data.table(data.n_users, D) for m in data.x}
    confidence = data.table(data.n_users + data.n_items, len(data.x))
    user, item = model.edges.rows, model.edges.cols

    def softmax(logits: Tensor, at: Tensor, size: int) -> Tensor:
        exps = torch.exp(logits - logits.detach().max())
        return exps / torch.zeros(size, *exps.shape[1:]).index_add(0, at, exps)[at]

    def spread(weights: Tensor, x: Tensor, source: Tensor, at: Tensor, size: int) -> Tensor:
        return torch.zeros(size, D).index_add(0, at, weights[:, None] * embedding(source, x))

    def dots(u: Tensor, i: Tensor) -> Tensor:
        return (embedding(user, u) * embedding(item, i)).sum(1)

    def loss(users: Tensor, positive: Tensor, negative: Tensor) -> Tensor:
        sides = {}
        for m, x in data.x.items():
            i, u = F.normalize(F.leaky_relu(linears[m](x))), F.normalize(preferences[m])
            for _ in range(3):
                u = F.normalize(u + spread(softmax(dots(u, i), user, n), i, item, user, n))
            sides[m] = u, i
        logits = torch.stack([dots(u, i) for u, i in sides.values()], 1)
        to_user, to_item = softmax(logits, user, n), softmax(logits, item, data.n_items)
        us, is_ = [], []
        for k, (u, i) in enumerate(sides.values()):
            us.append(u + spread(to_user[:, k], i, item, user, n))
            is_.append(i + spread(to_item[:, k], u, user, item, data.n_items))
        of_users, of_items = data.split(confidence)
        w_user = (to_user * embedding(item, of_items)).amax(1).relu()
        w_item = (to_item * embedding(user, of_users)).amax(1).relu()
        u, i = data.split(F.normalize(ids))
        all_u, all_i = u, i
        for _ in range(2):
            u, i = spread(w_user, i, item, user, n), spread(w_item, u, user, item, data.n_items)
            all_u, all_i = all_u + u, all_i + i
        all_u, all_i = torch.cat([all_u, *us], 1), torch.cat([all_i, *is_], 1)
        rows = torch.cat([users, positive + n, negative + n])
        squares = embedding(rows, ids).square().mean() + sum(
            embedding(users, p).square().mean() for p in preferences.values()
        )
        return scores(embedding(users, all_u), embedding(positive, all_i), embedding(negative, all_i)) + 1e-3 * squares

    return epoch_of(splits, data.parameters, loss)


def lattice(splits: Any, model: Any) -> Callable[[], None]:
    data, graph = _Data(splits), product(model.graph)
    raw = [product(matrix) for matrix in model.raw_graphs.values()]
    users, items, linears = data.table(data.n_users, D), data.table(data.n_items, D), data.linears()
    logits = data.table(1, len(data.x))
    learnt: list[Any] = []

    def build() -> tuple[Tensor, Tensor, Tensor]:
        """Neighbours by one dense product a modality, their cosines with gradients."""
        rows, cols, values = [], [], []
        for share, (m, x) in zip(torch.softmax(logits[0], 0), data.x.items(), strict=True):
            z = F.normalize(linears[m](x))
            near = (z.detach() @ z.detach().T).topk(10, 1).indices
            rows.append(torch.arange(len(z)).repeat_interleave(10))
            cols.append(near.flatten())
            values.append(share * (z[rows[-1]] * z[cols[-1]]).sum(1).relu())
        row, col, value = torch.cat(rows), torch.cat(cols), torch.cat(values)
        scale = torch.zeros(data.n_items).index_add(0, row, value).clamp_min(1e-9).rsqrt()
        return row, col, value * scale[row] * scale[col]

    def loss(user: Tensor, positive: Tensor, negative: Tensor) -> Tensor:
        fresh = not learnt
        row, col, value = build() if fresh else learnt[0]
        h = 0.1 * torch.zeros(data.n_items, D).index_add(0, row, value[:, None] * embedding(col, items))
        for share, matrix in zip(torch.softmax(logits[0], 0), raw, strict=True):
            h = h + 0.9 * share * matrix(items)
        if fresh:
            learnt.append((row, col, value.detach()))
        all_users, all_items = data.split(torch.stack(layers(graph, torch.cat([users, items]), 2)).mean(0))
        all_items = all_items + F.normalize(h)
        u, i, j = embedding(user, all_users), embedding(positive, all_items), embedding(negative, all_items)
        return scores(u, i, j) + 1e-4 / 2 / BATCH * sum(x.square().sum() for x in (u, i, j))

    return epoch_of(splits, data.parameters, loss, learnt.clear)


def slmrec(splits: Any, model: Any) -> Callable[[], None]:
    data, block = _Data(splits), model.block
    down = product(block)
    a, a_t = block.csr(), block.csr(transposed=True)
    users, items, linears = data.table(data.n_users, D), data.table(data.n_items, D), data.linears()
    x = {m: F.normalize(f) for m, f in data.x.items()}
    fuse = [data.module(nn.Linear((len(x) + 1) * D, D)) for _ in range(2)]
    start = data.module(nn.Linear(D, D))
    last = len(x) - 1
    widths = [D // 2 if last and n == last else D for n in range(len(x))]
    matches = [data.module(nn.Linear(D, width)) for width in widths]
    before_last = [D] * (max(len(x), 3) - 2) + [D // 2] if last else []
    hops = [data.module(nn.Linear(D, width)) for width in before_last]

    def lightgcn(u: Tensor, i: Tensor) -> tuple[Tensor, Tensor]:
        all_u, all_i = u, i
        for _ in range(3):
            u, i = down(i), _Product.apply(a_t, a, u)
            all_u, all_i = all_u + u, all_i + i
        return all_u / 4, all_i / 4

    def contrast(one: Tensor, other: Tensor) -> Tensor:
        return F.cross_entropy(one @ other.T / 0.2, torch.arange(len(one)))

    def loss(user: Tensor, positive: Tensor, negative: Tensor) -> Tensor:
        sides = [lightgcn(users, i) for i in (items, *(linears[m](f) for m, f in x.items()))]
        u, i = (layer(torch.cat(side, 1)) for layer, side in zip(fuse, zip(*sides, strict=True), strict=True))
        total = info_nce(embedding(user, u), embedding(positive, i))
        chain = start(embedding(positive, sides[0][1]))
        for n, (_, y) in enumerate(sides[1:]):
            for hop in hops[n - 1 : n if n < last else None] if n else []:
                chain = hop(chain)
            total = total + 0.05 * contrast(chain, matches[n](embedding(positive, y)))
        return total

    return epoch_of(splits, data.parameters, loss)


def bm3(splits: Any, model: Any) -> Callable[[], None]:
    data, graph = _Data(splits), product(model.graph)
    users, items, linears = data.table(data.n_users, D), data.table(data.n_items, D), data.linears()
    predict = data.module(nn.Linear(D, D))

    def apart(one: Tensor, other: Tensor) -> Tensor:
        return 1 - F.cosine_similarity(one, F.dropout(other.detach(), 0.5)).mean()

    def loss(user: Tensor, positive: Tensor, negative: Tensor) -> Tensor:
        all_users, all_items = data.split(torch.stack(layers(graph, torch.cat([users, items]), 1)).mean(0))
        all_items = all_items + items
        u, i = embedding(user, all_users), embedding(positive, all_items)
        total = apart(predict(u), i) + apart(predict(i), u)
        for m, x in data.x.items():
            z = embedding(positive, linears[m](x))
            q = predict(z)
            total = total + 2.0 * (apart(q, i) + apart(q, z))
        return total + 0.1 / len(items) * (all_users.norm() + all_items.norm())

    return epoch_of(splits, data.parameters, loss)


def dragon(splits: Any, model: Any) -> Callable[[], None]:
    data, graph, user_graph = _Data(splits), product(model.graph), product(model.user_graph)
    item_graph = product(model.item_graph)
    nets = {m: data.module(nn.Sequential(nn.Linear(x.shape[1], 4 * D), nn.LeakyReLU(), nn.Linear(4 * D, D))) for m, x in data.x.items()}  # fmt: skip
    preferences = {m: data.table(data.n_users, D) for m in data.x}
    fusion = data.table(data.n_users, len(data.x))

    def loss(user: Tensor, positive: Tensor, negative: Tensor) -> Tensor:
        of_users, of_items = [], []
        for n, (m, x) in enumerate(data.x.items()):
            u, i = data.split(sum(layers(graph, F.normalize(torch.cat([preferences[m], nets[m](x)])), 2)))
            of_users.append(fusion[:, n, None] * u)
            of_items.append(i)
        users, items = torch.cat(of_users, 1), torch.cat(of_items, 1)
        users, items = users + user_graph(users), items + item_graph(items)
        squares = sum(embedding(user, p).square().mean() for p in preferences.values()) + fusion.square().mean()
        ranking = scores(embedding(user, users), embedding(positive, items), embedding(negative, items))
        return ranking / math.log(2) + 1e-3 * squares

    return epoch_of(splits, data.parameters, loss)


def lgmrec(splits: Any, model: Any) -> Callable[[], None]:
    data, graph, taken, mean = _Data(splits), product(model.graph), product(model.taken), product(model.mean)
    users, items, linears = data.table(data.n_users, D), data.table(data.n_items, D), data.linears(bias=False)
    hyperedges = {m: data.table(x.shape[1], 4) for m, x in data.x.items()}

    def incidence(logits: Tensor) -> Tensor:
        noise = -torch.empty_like(logits).exponential_().log()
        return F.dropout(torch.softmax((logits + noise) / 0.2, 1), 0.5)

    def contrast(one: Tensor, other: Tensor, rows: Tensor) -> Tensor:
        logits = F.normalize(embedding(rows, one)) @ F.normalize(other).T / 0.2
        return F.cross_entropy(logits, rows, reduction="sum")

    def loss(user: Tensor, positive: Tensor, negative: Tensor) -> Tensor:
        nodes = torch.stack(layers(graph, torch.cat([users, items]), 2)).mean(0)
        of_items, modal, hyper = data.split(nodes)[1], torch.zeros(()), []
        for m, x in data.x.items():
            z = linears[m](x)
            modal = modal + F.normalize(layers(graph, torch.cat([mean(z), z]), 2)[-1])
            logits = x @ hyperedges[m]
            item_edges, user_edges = incidence(logits), incidence(taken(logits))
            edges = item_edges.T @ of_items
            hyper.append(torch.cat([user_edges @ edges, item_edges @ edges]))
        all_users, all_items = data.split(nodes + modal + 0.3 * F.normalize(sum(hyper)))
        u, i, j = embedding(user, all_users), embedding(positive, all_items), embedding(negative, all_items)
        total = scores(u, i, j) + 1e-6 / len(user) * (u.norm() + i.norm() + j.norm())
        for one, other in itertools.combinations(map(data.split, hyper), 2):
            total = total + 1e-4 * (contrast(one[0], other[0], user) + contrast(one[1], other[1], positive))
        return total

    return epoch_of(splits, data.parameters, loss)


FLOORS: dict[str, Callable[[Any, Any], Callable[[], None]]] = {
    "VBPR": vbpr, "LightGCN": lightgcn, "MMGCN": mmgcn, "DualGNN": dualgnn, "FREEDOM": freedom, "MGCN": mgcn, "SOIL": soil,
    "GRCN": grcn, "LATTICE": lattice, "SLMRec": slmrec, "BM3": bm3, "DRAGON": dragon, "LGMRec": lgmrec,
}  # fmt: skip
