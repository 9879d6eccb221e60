"""`host`: a model of an unmodified checkout of MMRec, or of a suite with its interface, plain, with MRdIB, or both side by side."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mmrec_mrdib.cli import parameters
from mmrec_mrdib.cli.train import _seeds
from mmrec_mrdib.errors import ConfigError

_EPILOG = """\
The checkout's own loader, model, trainer and evaluator run in a process of their own; its scores are evaluated by ours, into run folders
as those of 'train'. +MRdIB is the host as it trains plain, with encoders of the plug-in's own and the readout beside its score;
mrdib-paper makes its projections stochastic (properties/hosts/mmrec.yaml names those of MMRec's models).

  mmrec-mrdib host --suite mmrec --root MMRec --model FREEDOM --dataset baby --compare --seeds 1,2,3
  mmrec-mrdib host --suite mmrec --root MMRec --model MyModel --dataset baby --compare --projections image=image_trs,text=text_trs
  mmrec-mrdib host --suite mmrec --root MMRec --model MGCN --dataset baby --variants plain,mrdib,content,content-shuffled --reg_weight=1e-4

--key=value: a parameter of the host, or of the plug-in (--mrdib.key=value where both have it).
"""


def parser() -> argparse.ArgumentParser:
    out = argparse.ArgumentParser(
        prog="mmrec-mrdib host",
        description="Run a model of an unmodified checkout of another suite, with MRdIB attached.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    out.add_argument(
        "--suite",
        required=True,
        metavar="NAME",
        help="mmrec (and its forks), mrlib, or a yaml file of your own, of their form",
    )
    out.add_argument("--root", required=True, type=Path, metavar="DIR", help="the checkout")
    out.add_argument("--model", required=True, help="a model of it: src/models/<model>.py")
    out.add_argument("--dataset", required=True, help="a data set of it: src/configs/dataset/<dataset>.yaml")
    which = out.add_mutually_exclusive_group()
    which.add_argument(
        "--compare",
        action="store_true",
        help="plain and +MRdIB, same seeds, side by side; with --projections, the published form, too",
    )
    which.add_argument(
        "--variants", metavar="a,b", help="of plain, mrdib, mrdib-paper, content, mrdib-shuffled, ... (default: mrdib)"
    )
    out.add_argument("--seeds", metavar="1,2,3", help="one run a seed (default: 999)")
    out.add_argument("--projections", metavar="m=PATH,...", help="modules that project the features, by modality")
    out.add_argument(
        "--user_view", metavar="m=PATH,...", help="users as the host sees them through a modality, for mrdib-paper"
    )
    out.add_argument(
        "--freeze", metavar="PATH,...", help="raw features that train in the host, where projections take part"
    )
    out.add_argument(
        "--recompute",
        metavar="METHOD",
        help="forward(), forward(batch): makes tables of the last batch anew before evaluation",
    )
    out.add_argument("--data_path", metavar="DIR", help="folder of the data sets (default: the checkout's)")
    out.add_argument(
        "--trust",
        action="store_true",
        help="let the checkout unpickle its files; a pickle can run any code with your rights",
    )
    out.add_argument("--threads", type=int, default=1, metavar="N", help="CPU threads (default: 1)")
    out.add_argument(
        "--runs", type=Path, default=Path("runs"), metavar="DIR", help="where run folders go (default: runs)"
    )
    out.add_argument("--quiet", action="store_true", help="no line an epoch")
    return out


def main(arguments: Sequence[str]) -> int:
    options, values = parameters.parse(parser(), arguments)
    if options.threads < 1:
        raise ConfigError(f"--threads={options.threads}: expected 1 or more")
    seeds = [s for s in _seeds(options.seeds, values) if s is not None] or [999]

    from mmrec_mrdib import registry
    from mmrec_mrdib.config import parse_value
    from mmrec_mrdib.hosts import suite

    given: dict[str, Any] = {
        "projections": options.projections and suite.named_paths(options.projections, "--projections"),
        "user_view": options.user_view
        and (suite.named_paths(options.user_view, "--user_view") if "=" in options.user_view else options.user_view),
        "freeze": options.freeze and tuple(options.freeze.split(",")),
        "recompute": options.recompute,
    }
    variants = [v.strip() for v in (options.variants or ("plain,mrdib" if options.compare else "mrdib")).split(",")]
    if options.projections and options.variants is None:
        variants.append("mrdib-paper")  # which is what they are for
    task = suite.plan(
        options.suite, options.root, options.model, options.dataset, seeds, variants, given,
        {k: parse_value(k, v) for k, v in values.items()}, options.runs, options.data_path, options.trust, options.threads, options.quiet,
    )  # fmt: skip
    unread = [o for o in ("projections", "user_view", "freeze") if getattr(options, o)]
    if unread and "mrdib-paper" not in task.variants:
        raise ConfigError(f"--{unread[0]}: no effect on {', '.join(task.variants)}; add mrdib-paper to --variants")
    results = suite.run(task)
    from mmrec_mrdib.cli.train import _show

    _show(
        results, [registry.Variant(task.model, *registry.kinds()[kind]).name for kind in task.variants], options.dataset
    )
    if "mrdib-paper" not in task.variants and task.table["projections"]:
        print(
            f"{task.model}'s projections are known: --variants {','.join([*task.variants, 'mrdib-paper'])} also trains the published form",
            file=sys.stderr,
        )
    return 1 if any(r["state"] != "complete" for r in results) else 0
