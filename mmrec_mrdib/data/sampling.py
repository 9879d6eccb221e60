"""Training batches: shuffled positives, each with a uniform negative, without a Python loop over interactions."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from recbole.data.interaction import Interaction
from torch import Tensor

from mmrec_mrdib.errors import DataError


class NegativeSampler:
    """Uniform negatives: items seen in training that are not a training item of the user.

    Most draws are no positive, and one look into a table of marks says so, where a binary search would miss the cache at every step.
    A mark stands for one pair where a table of all pairs is small; else there are two tables, addressed by two hashes, whose marks
    only say "perhaps": the few pairs that both hold (a draw in 250) are searched for.

    Args:
        users, items: (E,) training interactions (internal ids).
        n_items: number of items, padding included.

    Raises:
        DataError: a user has every item of the training set, so that no negative exists.
    """

    FILTER = 16  # bytes of a table for each training interaction
    SMALL = 1 << 22  # bytes that a table of all pairs may take in any case
    BLOCK = 1 << 16  # pairs looked up at a time
    # 2^64 / golden ratio, and a second odd number, as signed ones
    HASHES = (-7046029254386353131, -4417276706812531889)

    def __init__(self, users: Tensor, items: Tensor, n_items: int) -> None:
        self.n_items = n_items
        self.candidates = torch.unique(items)
        first, last = int(self.candidates[0]), int(self.candidates[-1])
        self.lowest = first if last - first + 1 == len(self.candidates) else None  # of ids without a gap
        self.positives = torch.unique(users * n_items + items)  # sorted keys of the pairs
        per_user = torch.bincount(self.positives // n_items)
        full = torch.nonzero(per_user >= len(self.candidates)).flatten()
        if len(full):
            raise DataError(
                f"{len(full)} users have all {len(self.candidates)} training items, so no negative can be drawn for them; "
                "leave such users out (RecBole's user_inter_num_interval)"
            )
        n_pairs = (int(users.max()) + 1) * n_items
        self.bits = (len(self.positives) * self.FILTER - 1).bit_length()
        self.exact = n_pairs <= max(2 << self.bits, self.SMALL)
        tables, size = (1, n_pairs) if self.exact else (2, 1 << self.bits)
        self.marks = [torch.zeros(size, dtype=torch.bool, device=items.device) for _ in range(tables)]
        for n, table in enumerate(self.marks):
            table[self._place(self.positives, n)] = True

    def _place(self, keys: Tensor, table: int) -> Tensor:
        """Where the marks of keys are: at the key itself, or at the top bits of a product (Knuth, TAOCP 3, 6.4)."""
        if self.exact:
            return keys
        return (keys * self.HASHES[table]).bitwise_right_shift_(64 - self.bits).bitwise_and_((1 << self.bits) - 1)

    def which_positive(self, users: Tensor, items: Tensor) -> Tensor:
        """Places, among (B,) pairs, of those that are training interactions, in order."""
        if len(users) > self.BLOCK and users.device.type == "cpu":  # what is made on the way stays in the cache
            parts = zip(users.split(self.BLOCK), items.split(self.BLOCK), strict=True)
            return torch.cat([self.which_positive(u, i) + n * self.BLOCK for n, (u, i) in enumerate(parts)])
        keys = torch.add(items, users, alpha=self.n_items)
        at = self.marks[0].index_select(0, self._place(keys, 0)).nonzero().flatten()
        if self.exact:
            return at
        at = at[self.marks[1].index_select(0, self._place(keys[at], 1))]
        keys = keys[at]
        found = torch.searchsorted(self.positives, keys).clamp_(max=len(self.positives) - 1)
        return at[self.positives[found] == keys]

    def sample(self, users: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """(B,) one negative for each user, independent and uniform (rejection keeps the distribution exact)."""
        device = self.candidates.device

        def draw(n: int) -> Tensor:
            low = self.lowest or 0
            drawn = torch.randint(low, low + len(self.candidates), (n,), generator=generator, device=device)
            return self.candidates.index_select(0, drawn) if self.lowest is None else drawn

        out = draw(len(users))
        todo = self.which_positive(users, out)
        while len(todo):
            fresh = draw(len(todo))
            out.index_copy_(0, todo, fresh)
            todo = todo.index_select(0, self.which_positive(users.index_select(0, todo), fresh))
        return out


class TrainBatches:
    """What RecBole's Trainer takes for a training loader: iterating it is one epoch.

    RecBole's own loader asks a Python set for each interaction. Here the order of an epoch and all its negatives are
    drawn at once, on the device, and a batch is three slices. The generator is our own: neither the model's noise nor its
    initialisation moves the batches, so that a backbone and its +MRdIB variant see the same ones.

    Attributes:
        dataset: the training split.
        generator: state of the random stream (saved in checkpoints).
    """

    def __init__(self, dataset, batch_size: int, seed: int, device: torch.device, shuffle: bool = True) -> None:
        self.dataset = self._dataset = dataset
        self.batch_size = batch_size
        self.shuffle = shuffle
        self.user_field, self.item_field = dataset.uid_field, dataset.iid_field
        self.negative_field = dataset.config["NEG_PREFIX"] + self.item_field
        self.users = dataset.inter_feat[self.user_field].to(device)
        self.items = dataset.inter_feat[self.item_field].to(device)
        self.sampler = self._sampler(dataset.item_num)
        self.generator = torch.Generator(device=device).manual_seed(seed)

    def _sampler(self, n_items: int) -> NegativeSampler | None:
        return NegativeSampler(self.users, self.items, n_items)

    def __len__(self) -> int:
        return -(-len(self.users) // self.batch_size)

    def __iter__(self) -> Iterator[Interaction]:
        users, items = self.users, self.items
        if self.shuffle:
            order = torch.randperm(len(users), generator=self.generator, device=users.device)
            users, items = users[order], items[order]
        columns = {self.user_field: users, self.item_field: items}
        if self.sampler is not None:
            columns[self.negative_field] = self.sampler.sample(users, self.generator)
        for start in range(0, len(users), self.batch_size):
            part = slice(start, start + self.batch_size)
            yield Interaction({name: values[part] for name, values in columns.items()})


class PositiveBatches(TrainBatches):
    """`TrainBatches` for models that are trained without negatives: none is drawn."""

    def _sampler(self, n_items: int) -> None:
        return None
