"""Text files as users have them: with or without a byte-order mark, with any line ends, in any encoding; what only looks like text is named.

Tables here know no quotes and no missing values: a cell is the bytes between two separators. Everything that `.inter`, `.item` and `.user`
files hold comes through `table`.
"""

from __future__ import annotations

import csv
import io
import re
import zipfile
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from mmrec_mrdib.errors import ConfigError, DataError, listed

_UNWRITABLE = re.compile("[\0\n\r\ud800-\udfff]")
_BOM = b"\xef\xbb\xbf"


def is_id(text: str) -> bool:
    """Whether this can be an id: any text that is not empty and stands on one line of a UTF-8 file."""
    return bool(text) and not _UNWRITABLE.search(text)


_HEADS = (
    (b"version https://git-lfs", "a Git LFS pointer, the file itself was not fetched; run 'git lfs pull' in its repository"),
    (b"\x1f\x8b", "a gzip archive; unpack it (gunzip)"),
    (b"BZh91AY&SY", "a bzip2 archive; unpack it (bunzip2)"),
    (b"\xfd7zXZ\0", "an xz archive; unpack it (unxz)"),
    (b"\x28\xb5\x2f\xfd", "a zstd archive; unpack it (unzstd)"),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive; unpack it"),
    (b"Rar!\x1a", "a RAR archive; unpack it"),
    (b"\x89HDF\r\n\x1a\n", "an HDF5 file; write its array with np.save"),
    (b"PAR1\x15", "a Parquet file; its name must end in .parquet"),
    (b"\x89PNG", "a picture (PNG)"),
    (b"\xff\xd8\xff", "a picture (JPEG)"),
)  # fmt: skip


def disguise(path: Path) -> str | None:
    """What the file is by its first bytes, with the mend, where that is neither text nor a plain array; None: nothing known.

    Raises:
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        head = file.read(512)
    for start, what in _HEADS:
        if head.startswith(start):
            return what
    if head.startswith(b"PK\x03\x04"):
        try:
            with zipfile.ZipFile(path) as archive:
                names = archive.namelist()
        except (zipfile.BadZipFile, OSError, ValueError):
            names = []
        if any(n.endswith("data.pkl") for n in names):
            return "a file of PyTorch; in Python: np.save(NAME, torch.load(FILE, weights_only=True).numpy())"
        arrays = [n.removesuffix(".npy") for n in names if n.endswith(".npy")]
        if arrays:
            return f"an .npz archive of {listed(arrays, 3)}; in Python: np.save(NAME, np.load(FILE)['{arrays[0]}'])"
        return "a zip archive; unpack it"
    if head[257:262] == b"ustar":
        return "a tar archive; unpack it"
    start = head.removeprefix(_BOM).lstrip()[:14].lower()
    if start.startswith((b"<!doctype html", b"<html", b"<?xml")):
        return "a page of a web site (HTML or XML), not the file itself; download it anew"
    return None


def read(path: Path, encoding: str = "utf-8", option: str = "--encoding") -> bytes:
    """The file's text as UTF-8, without byte-order mark, every line end a newline.

    Args:
        option: where the user says the encoding, for the error; '' where the file must be UTF-8.

    Raises:
        DataError: it cannot be read, is no text, or is in another encoding.
        ConfigError: no such encoding.
    """
    try:
        data = path.read_bytes()
        what = disguise(path)
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such file") from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error})") from error
    if what is not None:
        raise DataError(f"{path}: this is {what}")
    try:
        text = data.decode(encoding)
        if not is_utf8(encoding):
            data = text.encode()
    except LookupError as error:
        raise ConfigError(
            f"{option}={encoding}: no such encoding; known are utf-8, latin-1, cp1252, utf-16, ..."
        ) from error
    except UnicodeError as error:  # decoding, or a lone half of a surrogate pair that UTF-16 lets through
        raise not_encoded(path, encoding, error, data, option) from error
    data = data.removeprefix(_BOM)
    if b"\r" in data:
        data = data.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
    return data


def is_utf8(encoding: str) -> bool:
    return encoding.lower().replace("_", "-") in ("utf-8", "utf8", "utf-8-sig")


def not_encoded(
    path: Path, encoding: str, error: UnicodeError, data: bytes = b"", option: str = "--encoding", line: int = 0
) -> DataError:
    """The error for bytes that are not in the encoding, with a guess at what they are.

    Args:
        data: the whole file, where the place in `error` counts from its start; else `line` is where.
    """
    what, mend = str(error), "latin-1, cp1252 or gb18030 may be it"
    if isinstance(error, UnicodeDecodeError):
        what = f"byte 0x{error.object[error.start]:02x}, {error.reason}"
        line = data.count(b"\n", 0, error.start) + 1 if data else line
        if error.object[:2] in (b"\xff\xfe", b"\xfe\xff"):
            mend = "utf-16, by its first bytes"
    mend = f"say its encoding with {option} ({mend})" if option else f"save it as UTF-8 ({mend} now)"
    where = f", line {line}" if line else ""
    return DataError(f"{path}{where}: not text in {'UTF-8' if is_utf8(encoding) else encoding} ({what}); {mend}")


def lines(path: Path) -> list[str]:
    """The lines of a UTF-8 file, each without its end; an end behind the last one makes no further line.

    Raises:
        DataError: see `read`.
    """
    text = read(path, option="").decode()
    return text.removesuffix("\n").split("\n") if text else []


class Cells(NamedTuple):
    """A table as text.

    Attributes:
        frame: cells as objects (str), columns as the header names them; the index is the line in the file, the header being line 1.
        ragged: (line, number of cells) of the lines that have more or fewer cells than the header: not in the frame.
    """

    frame: pd.DataFrame
    ragged: list[tuple[int, int]]


def table(path: Path, separator: str = "\t", encoding: str = "utf-8", option: str = "--encoding") -> Cells:
    """All cells of a table with a header, byte for byte; blank lines are passed over.

    Raises:
        DataError: see `read`; no header, a column named twice, a NUL character.
        ConfigError: no such encoding.
    """
    data = read(path, encoding, option)
    if b"\0" in data:
        line = data.count(b"\n", 0, data.index(b"\0")) + 1
        raise DataError(f"{path}, line {line}: a NUL character; this is no text file, or a broken one")
    mark = separator.encode()
    if len(mark) != 1:
        data, mark = data.replace(mark, b"\x1f"), b"\x1f"
    head, _, body = data.partition(b"\n")
    names = head.decode().split(mark.decode())
    if not head.strip():
        raise DataError(f"{path}: not a table: its first line is empty, where the names of the columns are expected")
    twice = {n for n in names if names.count(n) > 1}
    if twice:
        raise DataError(f"{path}, line 1: column {listed(sorted(twice))} stands there twice")
    numbers, cells, body = _rectangular(body, mark, len(names))
    ragged = [(int(n), int(c)) for n, c in zip(*cells, strict=True)]
    if not len(numbers):
        return Cells(pd.DataFrame({n: np.empty(0, dtype=object) for n in names}), ragged)
    frame = pd.read_csv(
        io.BytesIO(body), sep=mark.decode(), header=None, names=list(range(len(names))), index_col=False, dtype=object,
        quoting=csv.QUOTE_NONE, keep_default_na=False, na_filter=False, skip_blank_lines=False, lineterminator="\n",
        encoding="utf-8", engine="c", low_memory=False,
    )  # fmt: skip
    frame.columns = pd.Index(names, dtype=object)
    frame.index = pd.Index(numbers)
    return Cells(frame, ragged)


def _rectangular(body: bytes, mark: bytes, columns: int) -> tuple[np.ndarray, tuple[np.ndarray, np.ndarray], bytes]:
    """(line numbers of the rows, (line numbers, cells) of those that do not fit, the rows alone)."""
    if not body:
        return np.empty(0, dtype=np.int64), (np.empty(0), np.empty(0)), b""
    body = body if body.endswith(b"\n") else body + b"\n"
    array = np.frombuffer(body, dtype=np.uint8)
    ends = np.flatnonzero(array == 10)
    marks = np.searchsorted(np.flatnonzero(array == mark[0]), ends)
    cells = np.diff(marks, prepend=0) + 1
    lengths = np.diff(ends, prepend=-1)  # with the newline
    numbers = np.arange(2, len(ends) + 2)
    blank, fits = lengths == 1, cells == columns
    keep = fits & ~blank
    if not keep.all():
        body = array[np.repeat(keep, lengths)].tobytes()
    wrong = ~fits & ~blank
    return numbers[keep], (numbers[wrong], cells[wrong]), body


class BadLines:
    """Lines that cannot be used: counted, with examples, up to a limit.

    Args:
        limit: more of them are an error; None: the first one is, and there is no option for it.
    """

    SHOWN = 10

    def __init__(self, path: Path, limit: int | None) -> None:
        self.path, self.limit = path, limit
        self.count = 0
        self.first: list[int] = []
        self.examples: list[str] = []

    def add(self, line: int, why: str, found: str, lines: int = 1) -> None:
        """Note a line, or a row that takes several of them.

        Args:
            found: what stands there.

        Raises:
            DataError: one too many; names the lines.
        """
        self.count += lines
        shown = f": {(found if len(found) <= 60 else found[:57] + '...')!r}" if found else ""
        example = f"line {line}{f' to {line + lines - 1}' if lines > 1 else ''}: {why}{shown}"
        if self.limit is None:
            raise DataError(f"{self.path}, {example}")
        if len(self.examples) < self.SHOWN:
            self.first.append(line)
            self.examples.append(example)
        if self.count > self.limit:
            raise DataError(
                f"{self.path}, line {listed(self.first)}: {why}{shown}; {self.count} such lines, --max-bad={self.limit} allowed"
            )

    def told(self) -> list[str]:
        """What was skipped, for the user: a count, and each line or the first of them."""
        if not self.count:
            return []
        return [f"{self.path.name}: {self.count} lines skipped", *(f"  {e}" for e in self.examples)]
