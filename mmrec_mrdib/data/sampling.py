"""Training batches: shuffled positives, each with a uniform negative, without a Python loop over interactions."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from recbole.data.interaction import Interaction
from torch import Tensor

from mmrec_mrdib.errors import DataError


class NegativeSampler:
    """Uniform negatives: items seen in training that are not a training item of the user.

    Args:
        users, items: (E,) training interactions (internal ids).
        n_items: number of items, padding included.

    Raises:
        DataError: a user has every item of the training set, so that no negative exists.
    """

    def __init__(self, users: Tensor, items: Tensor, n_items: int) -> None:
        self.n_items = n_items
        self.candidates = torch.unique(items)
        self.positives = torch.unique(users * n_items + items)  # sorted keys of the pairs
        per_user = torch.bincount(self.positives // n_items)
        full = torch.nonzero(per_user >= len(self.candidates)).flatten()
        if len(full):
            raise DataError(
                f"{len(full)} users have all {len(self.candidates)} training items, so no negative can be drawn for them; "
                "leave such users out (RecBole's user_inter_num_interval)"
            )

    def is_positive(self, users: Tensor, items: Tensor) -> Tensor:
        """(B,) bool: whether each pair is a training interaction."""
        keys = users * self.n_items + items
        at = torch.searchsorted(self.positives, keys).clamp_(max=len(self.positives) - 1)
        return self.positives[at] == keys

    def sample(self, users: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """(B,) one negative for each user, independent and uniform (rejection keeps the distribution exact)."""
        device = self.candidates.device

        def draw(n: int) -> Tensor:
            return self.candidates[torch.randint(len(self.candidates), (n,), generator=generator, device=device)]

        out = draw(len(users))
        todo = torch.nonzero(self.is_positive(users, out)).flatten()
        while len(todo):
            fresh = draw(len(todo))
            out[todo] = fresh
            todo = todo[self.is_positive(users[todo], fresh)]
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
        self.sampler = NegativeSampler(self.users, self.items, dataset.item_num)
        self.generator = torch.Generator(device=device).manual_seed(seed)

    def __len__(self) -> int:
        return -(-len(self.users) // self.batch_size)

    def __iter__(self) -> Iterator[Interaction]:
        users, items = self.users, self.items
        if self.shuffle:
            order = torch.randperm(len(users), generator=self.generator, device=users.device)
            users, items = users[order], items[order]
        negatives = self.sampler.sample(users, self.generator)
        for start in range(0, len(users), self.batch_size):
            part = slice(start, start + self.batch_size)
            yield Interaction(
                {
                    self.user_field: users[part],
                    self.item_field: items[part],
                    self.negative_field: negatives[part],
                }
            )
