"""`mmrec-mrdib data`: what is to be done with data before training."""

from __future__ import annotations

import argparse
import dataclasses
import json
import re
import shlex
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from mmrec_mrdib.cli import parameters
from mmrec_mrdib.errors import ConfigError, DataError

_How = tuple[int, Any, tuple[float, float, float], int]
_NAME = re.compile(r"[A-Za-z0-9_-]+")  # of a modality: it becomes part of file names


def parser() -> argparse.ArgumentParser:
    raw = argparse.RawDescriptionHelpFormatter
    out = argparse.ArgumentParser(prog="mmrec-mrdib data", description="Look at a data set, or make one.")
    commands = out.add_subparsers(metavar="COMMAND", required=True)
    _get_parser(commands, raw)
    check = commands.add_parser(
        "check",
        help="all that the loader would refuse or repair, and statistics",
        description="List everything in a data set's folder that the loader would refuse (error) or repair, what looks odd "
        "(warning), and statistics. Nothing is changed.",
        epilog="example:\n  mmrec-mrdib data check datasets/baby\n\nexit codes: 0 usable; 1 there are errors; 2 no such folder",
        formatter_class=raw,
    )
    check.add_argument(
        "folder",
        type=Path,
        metavar="DIR",
        help="the folder that holds <its name>.inter, inter.csv, or the files of a given split",
    )
    check.add_argument("--json", action="store_true", help="print one JSON object instead")
    check.set_defaults(run=_check)
    prepare = commands.add_parser("prepare", help="make a data set's folder from raw files")
    sources = prepare.add_subparsers(metavar="SOURCE", required=True)
    _amazon_parser(sources, raw)
    _csv_parser(sources, raw)
    mmrec = sources.add_parser(
        "mmrec",
        help="an MMRec or MRLib folder: checked, and turned into RecBole's atomic files",
        description="Check an MMRec or MRLib folder; with --output, write it as RecBole's atomic files (benchmark split, features with ids).",
        epilog="example:\n  mmrec-mrdib data prepare mmrec datasets/baby --output datasets/baby-atomic",
        formatter_class=raw,
    )
    mmrec.add_argument("folder", type=Path, metavar="DIR")
    mmrec.add_argument("--output", type=Path, metavar="DIR", help="folder to make; its name is the data set's")
    mmrec.set_defaults(run=_mmrec)
    recbole = sources.add_parser(
        "recbole",
        help="RecBole's atomic files, turned into an MMRec folder",
        description="Turn RecBole's atomic files into an MMRec folder. A benchmark split is kept as it is; one .inter file is "
        "filtered and split as the options say.",
        epilog="example:\n  mmrec-mrdib data prepare recbole datasets/ml-1m --output datasets/ml-1m-mmrec --core 10",
        formatter_class=raw,
    )
    recbole.add_argument("folder", type=Path, metavar="DIR")
    _common(recbole)
    _encoding(recbole, "that of <name>.yaml, else utf-8")
    recbole.set_defaults(run=_recbole)
    _encode_parser(commands, raw)
    export = commands.add_parser(
        "export",
        help="the split and the features, for other programs",
        description="Write a data set as training and evaluation see it, for other programs: interactions.csv (user, item, split) and, by\n"
        "modality, <m>_feat.npy (raw, unless --feature_norm says otherwise) with <m>_ids.txt, the item of each row. Ids are the original\n"
        "ones. What was trained on it, 'leaderboard import-run' compares. Parameters of the data are given as --key=value.",
        epilog="example:\n  mmrec-mrdib data export baby --data_path datasets --output baby-split",
        formatter_class=raw,
        allow_abbrev=False,
    )
    export.add_argument("dataset", metavar="NAME")
    export.add_argument("--data_path", metavar="DIR", help="folder of the data sets; built-in ones are found without")
    export.add_argument("--output", type=Path, required=True, metavar="DIR", help="folder to make")
    export.set_defaults(run=_export)
    return out


def _get_parser(commands: Any, raw: Any) -> None:
    get = commands.add_parser(
        "get",
        help="a public data set by its name: fetched, checked and prepared",
        description="Fetch the files of a public data set from where they are published, and prepare it as the field does. Its licence is shown and\n"
        "must be agreed to. Broken off, the same command goes on where it was. The addresses are in properties/sources.yaml.",
        epilog="examples:\n  mmrec-mrdib data get --list\n  mmrec-mrdib data get amazon-baby --accept-licence",
        formatter_class=raw,
    )
    get.add_argument("name", nargs="?", metavar="NAME")
    get.add_argument("--list", action="store_true", help="the data sets that there are, as a table")
    get.add_argument(
        "--accept-licence", "--accept-license", action="store_true", help="you have read the licence and agree"
    )
    get.add_argument(
        "--data_path", type=Path, default=Path("datasets"), metavar="DIR",
        help="folder of the data sets (default: datasets); the files go to DIR/downloads/NAME",
    )  # fmt: skip
    get.add_argument(
        "--mirror",
        "--url",
        metavar="URL",
        help="a folder of the net that has the files, in place of their own addresses",
    )
    get.add_argument(
        "--again", action="store_true", help="fetch anew what is here, and hold it against what was first fetched"
    )
    get.set_defaults(run=_get)


def _get(options: argparse.Namespace) -> int:
    from mmrec_mrdib.data import fetch
    from mmrec_mrdib.data.prepare import PREPARED

    if options.list:
        _list_sources(options.data_path)
        return 0
    if options.name is None:
        raise ConfigError(f"data get: which one? {', '.join(fetch.sources())}; 'data get --list' tells more of them")
    source = fetch.source(options.name)
    raw, output = options.data_path / "downloads" / options.name, options.data_path / options.name
    for option in ("mirror", "again"):
        if getattr(options, option) and not any(f.url for f in source.files):
            raise ConfigError(f"--{option}: no effect on {options.name}: all of its files are put there by hand")
    licence = f"{source.licence.sentence} ({source.licence.link})"
    if not options.accept_licence:
        line = shlex.join(["mmrec-mrdib", "data", *options.arguments, "--accept-licence"])
        raise ConfigError(f"{options.name}, terms of use: {licence} If you agree, type: {line}")
    print(f"{options.name}: {source.what}", f"terms of use, agreed to: {licence}", sep="\n")
    if output.exists() and not (output / PREPARED).is_file():
        raise ConfigError(
            f"{output}: exists already, and 'data prepare' did not make it; move it away, or choose another --data_path"
        )
    made = not output.exists()
    for file in sorted(source.files, key=lambda f: f.url is not None):  # what is to be done by hand is told first
        target, again = raw / file.name, options.again and file.url is not None
        if not target.is_file() and (file.optional or not (made or again)):
            continue
        if file.url is not None and (again or not target.is_file()):
            print(f"{fetch.mirrored(file.url, options.mirror)} -> {target}", flush=True)
        moved = fetch.obtain(file, raw, options.mirror, again, source.page, sys.stderr.isatty())
        print(f"{target}: {'fetched' if moved else 'here'}, {target.stat().st_size:,} bytes")
        if file.archive is not None and not (raw / file.archive).is_dir():
            fetch.unpack(target, raw / file.archive)
    arguments = source.arguments(raw, output)
    if made:
        print(shlex.join(["mmrec-mrdib", "data", *arguments]), flush=True)
        main(arguments)
    wrong = fetch.differences(fetch.counts(output), source.expected)
    if wrong:
        if made:
            shutil.rmtree(output)
        anyway = f"to have it all the same: {shlex.join(['mmrec-mrdib', 'data', *arguments])}"
        raise DataError(
            f"{output}: {'; '.join(wrong)}: these are not the files that others use, or not prepared as theirs; "
            + (f"nothing was kept; {anyway}" if made else "remove the folder to prepare it anew")
        )
    if known := source.expected.model_dump(exclude_none=True):
        print(f"{', '.join(known)}: as expected")
    for file in source.files:
        if file.optional and not (raw / file.name).is_file():
            print(
                f"without {file.name}: {file.by_hand} (page: {source.page}; put it at {raw / file.name}, remove {output}, type the same command)"
            )
    for modality, file_name in source.features.items():
        if (raw / file_name).is_file() and not (output / f"{modality}_feat.npy").is_file():
            print(
                f"{raw / file_name}: not in {output}, which was made before; remove that folder and type the same command"
            )
    if source.then:
        print(f"next: {source.then.replace('{output}', str(output))}")
    return 0


def _list_sources(data_path: Path) -> None:
    from mmrec_mrdib.data import fetch
    from mmrec_mrdib.data.prepare import PREPARED

    rows = [("name", "users × items", "interactions", "bytes to fetch", "by hand", "here", "what")]
    for name, source in fetch.sources().items():
        c, sizes = source.expected, [f.size for f in source.files if f.url is not None]
        users, items, interactions = (f"{n:,}" if n is not None else "?" for n in (c.users, c.items, c.interactions))
        here = "prepared" if (data_path / name / PREPARED).is_file() else ""
        size = f"{sum(sizes):,}" if sizes and all(sizes) else "unknown" if sizes else "0"  # type: ignore[arg-type]
        by_hand = ", ".join(f.name for f in source.files if f.url is None and not f.optional)
        rows.append((name, f"{users} × {items}", interactions, size, by_hand, here, source.what))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    print(
        "\n?: not known. 'data get NAME' shows the licence, and which features can be added by hand. The addresses were not tried by the authors."
    )


def _common(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--output", type=Path, required=True, metavar="DIR", help="folder to make; its name is the data set's"
    )
    parser.add_argument(
        "--core", type=int, default=5, metavar="K", help="keep users and items with K interactions (default 5)"
    )
    parser.add_argument(
        "--split",
        "--order",
        choices=("random", "time", "global-time"),
        default="random",
        help="test is: a random part of each user's (default), each user's last ones, or all from one point in time on, the same for all users",
    )
    parser.add_argument(
        "--ratios", default="8:1:1", metavar="A:B:C", help="train, valid, test: of each user, or of all (default 8:1:1)"
    )
    parser.add_argument("--seed", type=int, default=2020, help="of the random split (default 2020)")


def _max_bad(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--max-bad", type=int, default=10, metavar="N",
        help="lines that may be skipped because they cannot be read, a file (default 10); they are counted and shown",
    )  # fmt: skip


def _encoding(parser: argparse.ArgumentParser, default: str = "utf-8") -> None:
    parser.add_argument("--encoding", help=f"of the text files: utf-8, latin-1, utf-16, ... (default: {default})")


def _amazon_parser(sources: Any, raw: Any) -> None:
    amazon = sources.add_parser(
        "amazon",
        help="Amazon's reviews of 2014, 2018 or 2023",
        description="Amazon's reviews and metadata (JSON lines, plain or .gz), and 2014's image features, as an MMRec folder.\n"
        "The metadata's texts go to items.jsonl.",
        epilog="example:\n  mmrec-mrdib data prepare amazon --reviews reviews_Baby.json.gz --meta meta_Baby.json.gz \\\n"
        "      --images image_features_Baby.b --output datasets/baby",
        formatter_class=raw,
    )
    amazon.add_argument("--reviews", type=Path, nargs="+", required=True, metavar="FILE")
    amazon.add_argument("--meta", type=Path, metavar="FILE", help="metadata, for the items' texts")
    amazon.add_argument("--images", type=Path, metavar="FILE.b", help="2014's binary image features (4096 dimensions)")
    _common(amazon)
    _max_bad(amazon)
    amazon.set_defaults(run=_amazon)


def _csv_parser(sources: Any, raw: Any) -> None:
    csv = sources.add_parser(
        "csv",
        help="any table, CSV or Parquet, by the names of its columns",
        description="A table of interactions and tables of features and texts (CSV or Parquet) as an MMRec folder.",
        epilog="example:\n  mmrec-mrdib data prepare csv --interactions visits.csv --user patient --item drug --time date \\\n"
        "      --features text=drug_texts.csv --features image=drug_images.parquet --output datasets/clinic",
        formatter_class=raw,
    )
    csv.add_argument("--interactions", type=Path, required=True, metavar="FILE")
    csv.add_argument("--user", required=True, metavar="COLUMN")
    csv.add_argument("--item", required=True, metavar="COLUMN")
    csv.add_argument("--rating", metavar="COLUMN")
    csv.add_argument("--min-rating", type=float, metavar="X", help="leave out interactions rated below X")
    csv.add_argument(
        "--time", metavar="COLUMN", help="numbers, or dates such as 2024-01-31 or 2024-01-31T18:30:00+02:00"
    )
    csv.add_argument("--separator", default=",", help="between the cells of the interactions (default ','; '\\t': tab)")
    csv.add_argument("--names", metavar="COLUMN,...", help="of the interactions' columns, where the file has no header")
    csv.add_argument(
        "--feature-separator",
        metavar="SEPARATOR",
        help="of the feature files (default: the one that shows the id's column in the header)",
    )
    csv.add_argument(
        "--quoting", choices=("minimal", "none"), default="minimal",
        help="minimal: cells may stand in double quotes (default); none: quotes are characters like others",
    )  # fmt: skip
    _encoding(csv)
    csv.add_argument(
        "--features",
        action="append",
        default=[],
        metavar="NAME=FILE",
        help="a modality: one row an item, all columns numbers",
    )
    csv.add_argument(
        "--texts",
        type=Path,
        metavar="FILE",
        help="one row an item, all columns texts: to items.jsonl, for `data encode --text`",
    )
    csv.add_argument("--text-names", metavar="COLUMN,...", help="of the texts' columns, where the file has no header")
    csv.add_argument("--text-separator", metavar="SEPARATOR", help="of the texts (default: found as that of features)")
    csv.add_argument(
        "--feature-id", metavar="COLUMN", help="item ids in the files of features and texts (default: as --item)"
    )
    _common(csv)
    _max_bad(csv)
    csv.set_defaults(run=_csv)


def _encode_parser(commands: Any, raw: Any) -> None:
    encode = commands.add_parser(
        "encode",
        help="features from the items' texts, pictures or sounds",
        description="Make a modality from texts (fields of items.jsonl), pictures or sounds (files named after the items' ids).\n"
        "Writes <name>_feat.npy and, beside it, what made it. An empty text is a row of zeros, which counts as missing.\n"
        "Interrupted, the same command goes on where it was.",
        epilog="examples:\n"
        "  mmrec-mrdib data encode datasets/baby --text title,description --encoder tfidf-svd\n"
        "  mmrec-mrdib data encode datasets/baby --text title --encoder minilm\n"
        "  mmrec-mrdib data encode datasets/baby --images pictures --encoder timm:resnet50.a1_in1k --precision fp16\n"
        "  mmrec-mrdib data encode datasets/songs --audio wav --encoder mel",
        formatter_class=raw,
    )
    encode.add_argument("folder", type=Path, metavar="DIR", help="a folder made by `data prepare`")
    what = encode.add_mutually_exclusive_group(required=True)
    what.add_argument("--text", metavar="FIELDS", help="fields of items.jsonl, joined, e.g. title,description")
    what.add_argument("--images", type=Path, metavar="DIR", help="folder of pictures <item id>.jpg, .png, ...")
    what.add_argument("--audio", type=Path, metavar="DIR", help="folder of sounds <item id>.wav")
    encode.add_argument("--encoder", required=True, help="texts: tfidf-svd | minilm | sentence-transformers:NAME | FOLDER; "
                        "pictures: torchvision:NAME | timm:NAME | FOLDER; sounds: mel")  # fmt: skip
    encode.add_argument("--name", help="of the modality (default: text, image or audio)")
    encode.add_argument("--dims", type=int, default=384, help="of tfidf-svd (default 384)")
    encode.add_argument("--batch-size", type=int, default=64, metavar="N")
    encode.add_argument(
        "--precision", choices=("fp32", "fp16"), default="fp32", help="of the file, and of the encoder on a GPU"
    )
    encode.add_argument("--device", default="cpu", help="cpu (default), cuda, ...")
    encode.set_defaults(run=_encode)


def _encode(options: argparse.Namespace) -> int:
    from mmrec_mrdib.data import encode, modality

    kind = "text" if options.text is not None else "image" if options.images is not None else "audio"
    name = options.name or kind
    _check_modality("--name", name, name)
    if options.batch_size < 1 or options.dims < 1:
        raise ConfigError("--batch-size and --dims must be 1 or more")
    encode.check_encoder(options.encoder, kind)
    show, half = sys.stderr.isatty(), options.precision == "fp16" and options.device != "cpu"
    about: dict[str, Any] = {"encoder": options.encoder}
    numbers = None
    if kind == "text":
        fields = [f.strip() for f in options.text.split(",") if f.strip()]
        inputs: Sequence[Any] = encode.item_texts(options.folder, fields)
        about["fields"] = fields
    elif kind == "image":
        numbers, inputs = encode.item_files(options.folder, options.images, "--images", encode.PICTURES)
    else:
        numbers, inputs = encode.item_files(options.folder, options.audio, "--audio", encode.SOUNDS)
    if options.encoder == "tfidf-svd":
        from importlib.metadata import version

        values = encode.tfidf_svd(inputs, options.dims)
        about["made_with"] = {"scikit-learn": version("scikit-learn")}
    else:
        if kind == "audio":
            encoder = encode.mel_encoder()
        else:
            make = encode.text_encoder if kind == "text" else encode.image_encoder
            encoder = make(options.encoder, options.device, half)
        about["made_with"] = encoder.made_with
        values = encode.encode_in_batches(
            options.folder, name, inputs, encoder, options.batch_size, options.precision, show
        )
    items, found = len(encode.item_tokens(options.folder)), len(values) - len(modality.blank_rows(values))
    partial = numbers if numbers is not None and len(numbers) < items else None
    encode.write_features(options.folder, name, values, partial, options.precision, about)
    print(f"{options.folder / f'{name}_feat.npy'}: {_lacking(name, found, items)}, {values.shape[1]} dimensions")
    return 0


def _export(options: argparse.Namespace) -> int:
    from mmrec_mrdib.cli.recommend import warnings_only

    warnings_only()

    from mmrec_mrdib.experiment.foreign import export_data

    where = {} if options.data_path is None else {"data_path": options.data_path}
    print(f"{options.output}:", *export_data(options.dataset, options.output, options.values | where), sep="\n")
    return 0


def main(arguments: Sequence[str]) -> int:
    arguments = list(arguments)
    if arguments[:1] == ["export"]:  # takes parameters beside its options
        options, values = parameters.parse(parser(), arguments)
        options.values = values
    else:
        options = parser().parse_args(arguments)
        options.arguments = arguments
    run: Callable[[argparse.Namespace], int] = options.run
    return run(options)


def _check_modality(option: str, given: str, name: str) -> None:
    from mmrec_mrdib.data.modality import bad_name

    if not _NAME.fullmatch(name):
        raise ConfigError(f"{option}={given}: expected a modality's name of letters, digits, - and _")
    why = bad_name(name)
    if why is not None:
        raise ConfigError(f"{option}={given}: a modality cannot be called '{name}': {why}")


def _check(options: argparse.Namespace) -> int:
    if not options.folder.is_dir():
        raise DataError(f"{options.folder}: no such folder")

    from mmrec_mrdib.data.check import check

    report = check(options.folder)
    if options.json:
        print(json.dumps(report.plain(), indent=1))
        return 0 if report.usable else 1
    for finding in report.findings:
        print(finding)
    if report.findings:
        print()
    _show(report.statistics)
    errors = sum(f.level == "error" for f in report.findings)
    layout = f"{report.layout} layout" if report.layout != "none" else "no interactions"
    print(f"{layout}; {f'{errors} errors: not usable' if errors else 'usable'}")
    return 0 if report.usable else 1


def _show(values: dict[str, Any], indent: str = "") -> None:
    for name, value in values.items():
        label = f"{indent}{name.replace('_', ' ')}"
        if isinstance(value, dict) and any(isinstance(v, dict) for v in value.values()):
            print(label)
            _show(value, indent + "  ")
        elif isinstance(value, dict):
            print(f"{label:24}" + ", ".join(f"{k.replace('_', ' ')} {_text(v)}" for k, v in value.items()))
        else:
            print(f"{label:24}{_text(value)}")


def _text(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else str(value)


def _split_options(options: argparse.Namespace) -> _How:
    """core, split, ratios and seed; checked, with the target, before any work."""
    from mmrec_mrdib.data.prepare import check_target

    check_target(options.output)
    parts = options.ratios.split(":")
    try:
        ratios = tuple(float(p) for p in parts)
    except ValueError:
        ratios = ()
    if len(ratios) != 3 or min(ratios) < 0 or not 0 < ratios[0] < float("inf") or sum(ratios) == float("inf"):
        raise ConfigError(f"--ratios={options.ratios}: expected three numbers such as 8:1:1, the first above 0")
    if options.core < 1 or getattr(options, "max_bad", 0) < 0 or options.seed < 0:
        raise ConfigError("--core must be 1 or more, --max-bad and --seed 0 or more")
    return options.core, options.split, (ratios[0], ratios[1], ratios[2]), options.seed


def _amazon(options: argparse.Namespace) -> int:
    from mmrec_mrdib.data import prepare
    from mmrec_mrdib.data.sources import amazon

    how = _split_options(options)
    show = sys.stderr.isatty()
    collector = prepare.Collector()
    skipped = [amazon.read_reviews(path, collector, options.max_bad, show) for path in options.reviews]
    table, labels, fallen = _finish(collector.table(), how, _lost(skipped))
    raw = len(collector)
    del collector
    items = table.item_tokens.tolist()
    notes = _fallen(fallen)
    extra: list[Callable[[Path], None]] = []
    if options.meta is not None:

        def metadata(folder: Path) -> None:
            found, bad = amazon.write_metadata(options.meta, items, folder / "items.jsonl", options.max_bad, show)
            notes.append(f"metadata of {found} of {len(items)} items in items.jsonl, {bad.count} lines skipped")
            notes.extend(bad.told())

        extra.append(metadata)
    if options.images is not None:

        def images(folder: Path) -> None:
            features = amazon.read_images(options.images, items, folder, show)
            prepare.feature_writer("image", features, items)(folder)
            (folder / ".images.npy").unlink()
            notes.append(_lacking("image", len(features.row_of), len(items)))

        extra.append(images)
    prepare.write_mmrec(options.output, table, labels, _settings(options) | fallen, extra)
    return _done(options.output, raw, skipped, table, labels, notes)


def _csv(options: argparse.Namespace) -> int:
    from mmrec_mrdib.data import prepare
    from mmrec_mrdib.data.sources import table as tables

    how = _split_options(options)
    files: dict[str, Path] = {}
    for text in options.features:
        name, equals, file = text.partition("=")
        if not equals or name in files:
            raise ConfigError(f"--features={text}: expected NAME=FILE, each NAME once")
        _check_modality("--features", text, name)
        files[name] = Path(file)
    if options.min_rating is not None and options.rating is None:
        raise ConfigError("--min-rating needs --rating, the column it is held against")
    for option in ("text_names", "text_separator"):
        if getattr(options, option) is not None and options.texts is None:
            raise ConfigError(f"--{option.replace('_', '-')} needs --texts, the file that it is about")
    collector = prepare.Collector()
    columns = {"user": options.user, "item": options.item, "rating": options.rating, "time": options.time}
    csv = tables.Csv(options.separator, options.quoting, options.encoding or "utf-8")
    headed = dataclasses.replace(csv, names=_names(options.names))
    skipped = [tables.read_interactions(options.interactions, columns, collector, options.max_bad, headed)]
    whole = collector.table()
    lost = _lost(skipped)
    if options.min_rating is not None:
        whole = whole.kept(whole.ratings >= options.min_rating)
        if len(whole) < len(collector):
            lost.append(f"{len(collector) - len(whole)} are rated below --min-rating={options.min_rating:g}, or not")
    table, labels, fallen = _finish(whole, how, [f"of {len(collector)} that were read", *lost] if lost else [])
    items = table.item_tokens.tolist()
    notes, extra = _fallen(fallen), []
    for name, path in files.items():
        features = tables.read_features(
            path, options.feature_id or options.item, dataclasses.replace(csv, separator=options.feature_separator)
        )
        extra.append(prepare.feature_writer(name, features, items))
        notes.append(_lacking(name, sum(t in features.row_of for t in items), len(items)))
    if options.texts is not None:
        how_texts = dataclasses.replace(
            csv, separator=options.text_separator, names=_names(options.text_names, "--text-names")
        )
        texts = tables.read_texts(options.texts, options.feature_id or options.item, items, how_texts)
        extra.append(prepare.text_writer(texts))
        fields = dict.fromkeys(k for record in texts for k in record if k != "id")
        notes.append(f"items.jsonl: {', '.join(fields)} of {sum(len(r) > 1 for r in texts)} of {len(items)} items")
    prepare.write_mmrec(options.output, table, labels, _settings(options) | fallen, extra)
    return _done(options.output, len(collector), skipped, table, labels, notes)


def _names(given: str | None, option: str = "--names") -> tuple[str, ...] | None:
    if given is None:
        return None
    names = tuple(n.strip() for n in given.split(","))
    if not all(names) or len(set(names)) < len(names):
        raise ConfigError(f"{option}={given}: expected the names of all columns, each once, with commas between them")
    return names


def _finish(whole: Any, how: _How, lost: Sequence[str] = ()) -> tuple[Any, Any, dict[str, Any]]:
    """The table and its split; with one by points in time, without the users who are new after the first, and for the record:
    the points, and what fell out."""
    from mmrec_mrdib.data import prepare

    table, labels = prepare.finish(whole, *how, lost)
    if how[1] != "global-time":
        return table, labels, {}
    starts = {n: table.times[labels == k] for n, k in (("valid", prepare.VALID), ("test", prepare.TEST))}
    left, left_labels = table.without_new_users(labels)
    trained = len(set(left.items[left_labels == prepare.TRAIN].tolist()))
    fallen = {
        "users": len(table.user_tokens) - len(left.user_tokens),
        "items": len(table.item_tokens) - len(left.item_tokens),
        "interactions": len(table) - len(left),
        "items_never_trained": len(left.item_tokens) - trained,
    }
    points = {n: float(times.min()) for n, times in starts.items() if len(times)}
    return left, left_labels, {"split_points": points, "fallen_out": fallen}


def _fallen(about: dict[str, Any]) -> list[str]:
    if not about:
        return []
    points = ", ".join(f"{name} from {time:.15g}" for name, time in about["split_points"].items())
    lost = about["fallen_out"]
    return [
        f"split at {points} (times as in the data)",
        f"without training interactions: {lost['users']} users, left out with {lost['interactions']} interactions and "
        f"{lost['items']} items that nobody else has; {lost['items_never_trained']} items, kept: they are ranked",
    ]


def _lost(skipped: Sequence[Any]) -> list[str]:
    count = sum(bad.count for bad in skipped)
    return [f"{count} lines could not be read"] if count else []


def _settings(options: argparse.Namespace) -> dict[str, Any]:
    """The options of a `prepare`, as plain values, for its record."""
    plain = {k: v for k, v in vars(options).items() if k not in ("run", "output", "arguments")}
    return {
        k: [str(x) for x in v] if isinstance(v, list) else str(v) if isinstance(v, Path) else v
        for k, v in plain.items()
    }


def _lacking(name: str, found: int, items: int) -> str:
    note = f"{name}: features of {found} of {items} items"
    return note if found == items else f"{note}; train with --missing=mean or --missing=drop"


def _mmrec(options: argparse.Namespace) -> int:
    from mmrec_mrdib.data.prepare import check_target
    from mmrec_mrdib.data.sources import atomic

    if options.output is not None:
        check_target(options.output)
    code = _check(argparse.Namespace(folder=options.folder, json=False))
    if code or options.output is None:
        return code
    rows = atomic.write(options.output, options.folder)
    print(f"{options.output}: {rows} interactions as atomic files")
    return 0


def _recbole(options: argparse.Namespace) -> int:
    import numpy as np

    from mmrec_mrdib.data import prepare
    from mmrec_mrdib.data.sources import atomic
    from mmrec_mrdib.schema import read_yaml

    how = _split_options(options)
    beside = options.folder / f"{options.folder.resolve().name}.yaml"
    values = read_yaml(beside) if beside.is_file() else {}
    if options.encoding is not None:
        values["encoding"] = options.encoding
    whole, labels = atomic.read(options.folder, atomic.Format.of(values))
    fallen: dict[str, Any] = {}
    if labels is None:
        table, labels, fallen = _finish(whole, how)
    else:  # the split is given: each pair counts where it first stands
        pair = whole.users * len(whole.item_tokens) + whole.items
        first = np.sort(np.unique(pair, return_index=True)[1])
        table, labels = whole.kept(first).renumbered(), labels[first]
    items = table.item_tokens.tolist()
    found = atomic.features(options.folder)
    prepare.write_mmrec(
        options.output,
        table,
        labels,
        _settings(options) | fallen,
        [prepare.feature_writer(n, f, items) for n, f in found.items()],
    )
    notes = [_lacking(n, sum(t in f.row_of for t in items), len(items)) for n, f in found.items()]
    notes = _fallen(fallen) + notes
    return _done(options.output, len(whole), (), table, labels, notes)


def _done(output: Path, raw: int, skipped: Sequence[Any], table: Any, labels: Any, notes: Sequence[str]) -> int:
    import numpy as np

    train, valid, test = np.bincount(labels, minlength=3)
    print(
        f"{output}: {len(table.user_tokens)} users, {len(table.item_tokens)} items, {len(table)} of {raw} interactions"
    )
    print(f"train {train}, valid {valid}, test {test}; {sum(bad.count for bad in skipped)} lines skipped")
    for bad in skipped:
        print(*bad.told(), sep="\n", end="\n" if bad.count else "")
    for note in notes:
        print(note)
    return 0
