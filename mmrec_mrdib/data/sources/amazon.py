"""Amazon's review data, as published in 2014, 2018 and 2023: reviews and metadata as JSON lines, and 2014's image features.

| | user | item | rating | time |
|---|---|---|---|---|
| 2014, 2018 | reviewerID | asin | overall | unixReviewTime, seconds |
| 2023 | user_id | parent_asin, else asin | rating | timestamp, milliseconds |

Files are read line by line, plain or gzip (told by their first bytes). Nothing is evaluated: 2014's metadata are Python literals,
which `ast.literal_eval` reads without running anything.
"""

from __future__ import annotations

import ast
import gzip
import io
import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from mmrec_mrdib.data.prepare import Collector, Features
from mmrec_mrdib.data.text import BadLines, disguise, is_id
from mmrec_mrdib.errors import DataError

FIELDS = {  # ours -> theirs, of one year or another
    "title": ("title",),
    "description": ("description",),
    "features": ("features", "feature"),
    "categories": ("categories", "category"),
    "brand": ("brand", "store"),
}
_IMAGE_DIMS = 4096
_ID_BYTES = 10


def open_lines(path: Path, show: bool) -> Iterator[tuple[int, bytes]]:
    """(number from 1, line) of a plain or gzip file, without a byte-order mark; with a progress bar over its bytes on disk.

    Raises:
        DataError: it cannot be read, or the gzip stream is damaged.
    """
    try:
        what = disguise(path)
        if what is not None and not what.startswith("a gzip"):
            raise DataError(f"{path}: no JSON lines but {what}")
        with path.open("rb") as raw:
            packed = raw.read(2) == b"\x1f\x8b"
            raw.seek(0)
            bar = tqdm(total=path.stat().st_size, unit="B", unit_scale=True, desc=path.name, disable=not show)
            stream: Any = io.BufferedReader(gzip.GzipFile(fileobj=raw)) if packed else raw  # type: ignore[arg-type]
            for number, line in enumerate(stream, 1):
                if not number % 10_000:
                    bar.update(raw.tell() - bar.n)
                yield number, line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line
            bar.update(path.stat().st_size - bar.n)
            bar.close()
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path}: cannot be read ({error})") from error


def _record(line: bytes) -> dict[str, Any]:
    """The object in a line. Raises ValueError otherwise."""
    try:
        content = line.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError("not in UTF-8; convert the file (iconv)") from error
    try:
        value = json.loads(content)
    except ValueError:
        try:
            value = ast.literal_eval(content.strip())
        except (SyntaxError, ValueError, MemoryError, RecursionError, TypeError) as error:
            raise ValueError("not JSON") from error
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
    if not isinstance(value, dict):
        raise ValueError("not an object")
    return value


def _token(record: dict[str, Any], *names: str) -> str:
    for name in names:
        value = record.get(name)
        if isinstance(value, str | int) and not isinstance(value, bool) and is_id(str(value)):
            return str(value)
    raise ValueError(f"no {' or '.join(names)}")


def _number(record: dict[str, Any], *names: str) -> float:
    for name in names:
        value = record.get(name)
        if value is not None:
            try:
                return float(value)
            except (TypeError, ValueError, OverflowError) as error:
                raise ValueError(f"{name} is not a number") from error
    return float("nan")


def read_reviews(path: Path, collector: Collector, max_bad: int, show: bool = False) -> BadLines:
    """Feed the reviews of a file to the collector; returns the lines that were skipped.

    Raises:
        DataError: more than `max_bad` lines cannot be used, or the file cannot be read.
    """
    bad = BadLines(path, max_bad)
    for number, line in open_lines(path, show):
        if not line.strip():
            continue
        try:
            review = _record(line)
            user, item = _token(review, "reviewerID", "user_id"), _token(review, "parent_asin", "asin")
            rating = _number(review, "overall", "rating")
            time = _number(review, "unixReviewTime", "timestamp")
        except ValueError as error:
            bad.add(number, str(error), line.decode("utf-8", "replace").strip())
            continue
        collector.add(user, item, rating, time)
    return bad


def write_metadata(path: Path, items: list[str], out: Path, max_bad: int, show: bool = False) -> tuple[int, BadLines]:
    """Write `out`, one JSON object an item in the order of `items`: id, and of FIELDS what the metadata have, as text.

    What arrives is parked in a file beside `out`, so that memory holds no more than a place an item.

    Returns:
        (items with metadata, lines skipped)
    """
    wanted = {token: n for n, token in enumerate(items)}
    places: dict[int, tuple[int, int]] = {}
    bad = BadLines(path, max_bad)
    parked = out.with_name(f".{out.name}.parked")
    with parked.open("w+b") as file:
        for number, line in open_lines(path, show):
            if not line.strip():
                continue
            try:
                record = _record(line)
                n = wanted.get(_token(record, "parent_asin", "asin"))
            except ValueError as error:
                bad.add(number, str(error), line.decode("utf-8", "replace").strip())
                continue
            if n is None or n in places:
                continue
            fields = {f: next((_text(record[k]) for k in keys if record.get(k)), "") for f, keys in FIELDS.items()}
            content = json.dumps({"id": items[n], **fields}, ensure_ascii=False).encode("utf-8", "replace") + b"\n"
            places[n] = (file.tell(), len(content))
            file.write(content)
        with out.open("wb") as final:
            for n, token in enumerate(items):
                if n in places:
                    start, length = places[n]
                    file.seek(start)
                    final.write(file.read(length))
                else:
                    final.write(json.dumps({"id": token}, ensure_ascii=False).encode() + b"\n")
    parked.unlink()
    return len(places), bad


def _text(value: Any) -> str:
    """Text of a string or of nested lists of strings, on one line."""
    if isinstance(value, list | tuple):
        return " ".join(filter(None, map(_text, value)))
    return " ".join(str(value).split()) if isinstance(value, str | int | float) else ""


def read_images(path: Path, items: list[str], folder: Path, show: bool = False) -> Features:
    """Features of the wanted items from 2014's binary file: records of a 10-byte id and 4,096 little-endian float32.

    They go to a memory map in `folder`, not to memory.

    Raises:
        DataError: the file is no whole number of records.
    """
    size = _ID_BYTES + 4 * _IMAGE_DIMS
    try:
        length = path.stat().st_size
        if length % size or not length:
            raise DataError(
                f"{path}: {length} bytes are no whole number of records of {size} (10-byte id, 4096 float32)"
            )
        wanted = set(items)
        row_of: dict[str, int] = {}
        shape = (len(items), _IMAGE_DIMS)
        values = np.lib.format.open_memmap(folder / ".images.npy", mode="w+", dtype=np.float32, shape=shape)
        with path.open("rb") as file:
            bar = tqdm(total=length, unit="B", unit_scale=True, desc=path.name, disable=not show)
            while record := file.read(size):
                bar.update(size)
                token = record[:_ID_BYTES].decode("ascii", errors="replace").strip("\0 ")
                if token in wanted and token not in row_of:
                    values[len(row_of)] = np.frombuffer(record, dtype="<f4", offset=_ID_BYTES)
                    row_of[token] = len(row_of)
            bar.close()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error})") from error
    return Features(values, row_of)
