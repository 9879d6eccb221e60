"""Users that a model was never trained on: a data set without some of its users, and how well their histories alone rank for them.

Read by `python -m benchmarks.study --parts new`. By itself, users of a few ratings: `python -m benchmarks.new_users` holds a tenth of the users out,
trains without them, and tells what is found for them by five of their training items, by all, and by popularity. Parameters of the training are
given as --key=value.
"""

from __future__ import annotations

import argparse
import csv
import io
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from mmrec_mrdib.cli import parameters
from mmrec_mrdib.data import builtin, modality
from mmrec_mrdib.errors import ConfigError, DataError, MRdIBError
from mmrec_mrdib.evaluation import Popularity, RankingSplit, rank
from mmrec_mrdib.experiment import export
from mmrec_mrdib.experiment.export import Trained
from mmrec_mrdib.experiment.run import Splits, make_config, prepare, train
from mmrec_mrdib.graphs import Edges
from mmrec_mrdib.mrdib.history import Histories
from mmrec_mrdib.paths import write_atomically

METRICS, KS = ("recall", "ndcg"), (5, 20)
HELD_OUT = 0.1  # of the users


def without(config: Any, share: float, target: Path) -> Path:
    """Write the data set of a Config without a random share of its users, of `split_seed`; the same call writes the same bytes.

    Features are links to the originals, with the item of each row named: an item may have lost all its users.

    Returns:
        The folder that holds the data set, under its own name.

    Raises:
        DataError: its interactions are not in one file.
    """
    source, name = Path(config["data_path"]), config["dataset"]
    path = source / f"{name}.inter"
    if config["benchmark_filename"] or not path.is_file():
        raise DataError(f"{path}: no such file; users are held out of data sets whose interactions are in one file")
    frame = pd.read_csv(path, sep="\t", dtype=str, keep_default_na=False, quoting=csv.QUOTE_NONE)
    column = next(c for c in frame if c.split(":")[0] in ("userID", config["USER_ID_FIELD"]))
    users = np.unique(frame[column].to_numpy(dtype=str))
    held = np.random.default_rng(config["split_seed"]).choice(users, round(share * len(users)), replace=False)
    buffer = io.StringIO()
    frame[~frame[column].isin(held)].to_csv(buffer, sep="\t", index=False, quoting=csv.QUOTE_NONE, lineterminator="\n")
    folder = target / name
    folder.mkdir(parents=True, exist_ok=True)
    features = builtin.modality_folder(source, name) if builtin.is_builtin(source, name) else source
    for m, (file, ids) in modality.find(features, {}).items():
        link, named = folder / f"{m}{modality.SUFFIX}", folder / f"{m}_ids.txt"
        link.unlink(missing_ok=True)
        link.symlink_to(file.resolve())
        rows = range(len(np.load(file, mmap_mode="r", allow_pickle=False)))
        write_atomically(named, ids.read_bytes() if ids else "".join(f"{row}\n" for row in rows).encode())
    write_atomically(folder / f"{name}.inter", buffer.getvalue().encode())
    return target


class ByHistory:
    """A model as `rank` takes it, that ranks for users it was not trained on by what the items of their histories say, and by nothing else.

    Args:
        model: reads content (`plugins/channel.py`), in evaluation mode.
        histories: of users 0, 1, ...
    """

    def __init__(self, model: Any, histories: Histories) -> None:
        self.model, self.histories = model, histories
        self.content = model.catalogue()[1]

    def full_sort_predict(self, interaction: Any) -> Tensor:
        return self.model.profiles(interaction[self.model.USER_ID], self.histories) @ self.content.T


@torch.no_grad()
def judge(trained: Trained, whole: Splits, most: int | None = None) -> dict[str, Any]:
    """How well the test items of users that were held out are ranked by their training items.

    Args:
        trained: trained without them.
        whole: splits of the data set with them.
        most: how many of these items, the first of each user, are known; none of the others is ranked either.

    Returns:
        'users', 'interactions', 'unknown' (test interactions with items that nobody else has, which no model can rank; left out), 'histories'
        and 'popularity' (metrics by name, of the model and of popularity among the users that were trained on).
    """
    uid, iid, n_items = whole.dataset.uid_field, whole.dataset.iid_field, trained.dataset.item_num
    new = ~np.isin(whole.dataset.field2id_token[uid], trained.dataset.field2id_token[uid])
    number = np.cumsum(new) - 1
    place = pd.Index(trained.dataset.field2id_token[iid]).get_indexer(whole.dataset.field2id_token[iid])
    device, n_users = trained.model.device, int(new.sum())

    def pairs(part: Any) -> tuple[Tensor, Tensor]:
        """(users, items) of the new users' interactions, items by the ids they were trained under; -1: by none."""
        users, items = part.inter_feat[uid].numpy(), place[part.inter_feat[iid].numpy()]
        return torch.from_numpy(number[users[new[users]]]).to(device), torch.from_numpy(items[new[users]]).to(device)

    def some(pairs: tuple[Tensor, Tensor], keep: Tensor) -> tuple[Tensor, Tensor]:
        return pairs[0][keep], pairs[1][keep]

    train, valid, test = (pairs(part) for part in whole.parts)
    unknown = int((test[1] < 1).sum())
    train, valid, test = (some(part, part[1] > 0) for part in (train, valid, test))
    test = some(test, torch.bincount(train[0], minlength=n_users)[test[0]] > 0)
    masks = [train, valid] if trained.result["eval_mask"] == "history" else [train]
    in_memory = trained.result["config"]["eval_batch_size"]
    split = RankingSplit("new users", *test, masks, n_users, n_items, in_memory)
    if most is not None:
        train = some(train, _nth(train[0]) < most)
    histories = Histories(Edges(*train, torch.ones(len(train[0]), device=device), (n_users, n_items))).to(device)
    popular = trained.splits.parts[0].inter_feat[iid].to(device)
    scorers = {"histories": ByHistory(trained.model, histories), "popularity": Popularity(popular, n_items, uid)}
    counts = {"users": len(split.users), "interactions": len(test[0]), "unknown": unknown}
    return counts | {name: rank(scorer, split, METRICS, KS, uid).means for name, scorer in scorers.items()}


def _nth(users: Tensor) -> Tensor:
    """How many entries before each one are of the same user."""
    order = torch.argsort(users, stable=True)
    counts = torch.bincount(users)
    starts = torch.repeat_interleave(counts.cumsum(0) - counts, counts)
    return torch.empty_like(users).scatter_(0, order, torch.arange(len(users), device=users.device) - starts)


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.new_users",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "--model", default="VBPR+MRdIB", help="one that reads content: +MRdIB, +Content (default: %(default)s)"
    )
    parser.add_argument("--dataset", default="ml-100k", help="default: %(default)s")
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="default: %(default)s")
    parser.add_argument(
        "--most", type=int, default=5, metavar="N", help="items known of each user (default: %(default)s)"
    )
    options, values = parameters.parse(parser, arguments)
    if options.most < 1:
        raise ConfigError(f"--most={options.most}: expected 1 or more")
    config = make_config(options.model, options.dataset, 1, values=values)
    held = {**values, "data_path": str(without(config, HELD_OUT, options.runs / "without-users"))}
    logging.getLogger("mmrec_mrdib").setLevel(logging.ERROR)
    result = train(options.model, options.dataset, 1, values=held, runs=options.runs)
    trained, whole = export.load(Path(result["folder"]), held["data_path"]), prepare(config)
    some, every = (judge(trained, whole, most) for most in (options.most, None))
    metric = f"recall@{KS[-1]}"
    found = (
        (f"by {options.most} of their items", some["histories"]),
        ("by all of them", every["histories"]),
        ("popularity", every["popularity"]),
    )
    print(f"{every['users']} users of {options.dataset} that {options.model} was not trained on, Recall@{KS[-1]}:")
    print(", ".join(f"{how} {means[metric]:.3f}" for how, means in found))
    return 0


if __name__ == "__main__":
    try:
        code = main(sys.argv[1:])
    except MRdIBError as error:
        print(f"error: {error}", file=sys.stderr)
        code = 2
    sys.exit(code)
