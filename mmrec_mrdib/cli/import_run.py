"""`mmrec-mrdib leaderboard import-run`: results of other programs, measured from their scores."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from mmrec_mrdib.cli import parameters
from mmrec_mrdib.cli.recommend import warnings_only
from mmrec_mrdib.errors import ConfigError

_DESCRIPTION = """\
Evaluate the scores or ranked lists of another program as ours are, on the same split, and put them on boards as measured, with their
origin: every board of RUNS and of this split has them, and the tests over users and seeds are those of our runs. Import one file a
seed. 'NAME+X' is compared with 'NAME' of the same origin. The same name, origin, seed and split replace what was imported before.

Instead of a file, the folder of a run (result.json and per_user.npz) that was written elsewhere: taken over if it is of this split.
"""

_EPILOG = """\
FILE is one of, told by its ending:
{forms}
Ids are those of the data set. What the program chose its parameters and epoch on cannot be seen here, nor what it was trained on: boards
say so. --their_split holds a table of user, item and split (train, valid, test; or x_label) against ours.

Errors: ids that the data does not have, pairs that stand there twice, NaN, test users that are missing (but see --absent), lists that
were ranked among a sample of the items. Counted and told: listed items of the user's training (dropped), lists shorter than k (evaluated
as they are), equal scores (ranked as those of our models are: by torch.topk, which knows nothing of what is relevant), users that
are not evaluated (ignored).

examples:
  mmrec-mrdib data export baby --data_path datasets --output baby-split           the split, to train on
  mmrec-mrdib leaderboard import-run scores.npz --dataset baby --data_path datasets --name MGCN --origin "MMRec 1.0, e775373" --seed 1
  mmrec-mrdib leaderboard import-run test.csv --valid valid.csv --dataset baby --name "My model" --origin "my code, 3f2a" --eval_mask=history
  mmrec-mrdib leaderboard import-run elsewhere/runs/MGCN+MRdIB-baby-1-0a1b2c3d --origin "the other machine"
"""


def parser() -> argparse.ArgumentParser:
    from mmrec_mrdib.data.sources.scores import FORMS

    out = argparse.ArgumentParser(
        prog="mmrec-mrdib leaderboard import-run",
        description=_DESCRIPTION,
        epilog=_EPILOG.format(forms="\n".join(f"  {line}" for line in FORMS.splitlines())),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    out.add_argument("file", type=Path, metavar="FILE|RUN", help="scores or lists for the test split; or a run folder")
    out.add_argument("--dataset", metavar="NAME", help="as in run_mrdib.py (default, of a run folder: its own)")
    out.add_argument("--data_path", metavar="DIR", help="folder of the data sets; built-in ones are found without")
    out.add_argument("--config_files", nargs="+", default=[], metavar="FILE", help="yaml files with parameters")
    out.add_argument("--name", metavar="TEXT", help="of their model (default, of a run folder: its own)")
    out.add_argument("--origin", metavar="TEXT", help="whose it is: program, version, commit")
    out.add_argument("--seed", type=int, metavar="N", help="of their training (default: 1; of a run folder: its own)")
    out.add_argument("--valid", type=Path, metavar="FILE", help="scores or lists for the validation split")
    out.add_argument("--their_split", type=Path, metavar="FILE", help="what they trained and tested on, to be compared")
    out.add_argument(
        "--absent",
        choices=("error", "zero"),
        default="error",
        help="users of the split that FILE does not have: an error (default), or 0 in every metric",
    )
    out.add_argument(
        "--ids",
        choices=("original", "numbers"),
        default="original",
        help="of a data set that 'data prepare' made: the ids it was made from, as 'recommend' and 'export' write them (default), or the numbers of its .inter",
    )
    out.add_argument("--runs", type=Path, default=Path("runs"), metavar="DIR", help="default: %(default)s")
    return out


def main(arguments: Sequence[str]) -> int:
    options, values = parameters.parse(parser(), arguments)
    warnings_only()

    from mmrec_mrdib.experiment import foreign, record

    is_run = (options.file / "result.json").is_file()
    theirs = record.load_result(options.file) if is_run else {}

    def needed(option: str, given: str | None, key: str) -> str:
        value = given if given is not None else theirs.get(key)
        if value is None:
            raise ConfigError(f"{option}: is needed; 'mmrec-mrdib leaderboard import-run --help' has examples")
        return str(value)

    dataset = needed("--dataset", options.dataset, "dataset")
    name, origin = needed("--name", options.name, "model"), needed("--origin", options.origin, "origin")
    of_files = {"--valid": options.valid, "--their_split": options.their_split}
    if is_run and (given := [k for k, v in of_files.items() if v is not None]):
        raise ConfigError(f"{', '.join(given)}: {options.file} is the folder of a run, which has what there is")
    seed = options.seed if options.seed is not None else theirs.get("seed", 1)
    claim = foreign.Claim(name, origin, seed)
    if options.data_path is not None:
        values["data_path"] = options.data_path
    split = foreign.Split(dataset, values, options.config_files, options.ids)
    if is_run:
        done = foreign.import_folder(options.file, split, claim, options.runs)
    else:
        done = foreign.import_scores(
            options.file, split, claim, options.runs, options.valid, options.their_split, options.absent
        )
    print(*done.told, sep="\n", end="\n" if done.told else "", file=sys.stderr)
    metrics = "  ".join(f"{metric} {value:.4f}" for metric, value in done.result["test"].items())
    print(f"{name} [{origin}] on {dataset}, seed {seed}: {metrics}")
    print(f"written: {done.folder}")
    return 0
