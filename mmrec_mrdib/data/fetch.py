"""Data sets by name: what `properties/sources.yaml` says of them, and files from the net that arrive whole or not at all.

A transfer goes to `<file>.part`, with what the server said of it in `<file>.part.json`; broken off, the next call goes on behind it, if the server
still has the same file and can. The SHA-256 of a file's first transfer is kept in `checksums.json` beside it: another one later is an error.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import gzip
import hashlib
import http.client
import json
import re
import shutil
import stat
import tarfile
import tempfile
import urllib.error
import urllib.parse
import urllib.request
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import IO, Any, NamedTuple, NoReturn, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator
from tqdm import tqdm

from mmrec_mrdib import __version__, paths
from mmrec_mrdib.data import text
from mmrec_mrdib.errors import ConfigError, DataError, did_you_mean, listed
from mmrec_mrdib.schema import read_yaml

CHECKSUMS = "checksums.json"
_BLOCK = 1 << 16  # bytes in memory at a time
_TIMEOUT = 60  # seconds without a byte
_ARCHIVES = (".zip", ".tar.gz", ".tgz")
_SLOTS = re.compile(r"\{(raw|output)\}(?:/([^/]+))?")


# What the file of sources says.


class _Entry(BaseModel):
    model_config = ConfigDict(
        frozen=True, extra="forbid", coerce_numbers_to_str=True, str_strip_whitespace=True, str_min_length=1
    )


def _web(address: str) -> str:
    parts = urllib.parse.urlsplit(address)
    if parts.scheme not in ("http", "https") or not parts.netloc:
        raise ValueError("expected an address that begins with https:// (or http://)")
    return address


class Licence(_Entry):
    """What the publisher asks of those who use the data."""

    sentence: str
    link: str
    """Where to read it."""

    _address = field_validator("link")(_web)


class File(_Entry):
    """One file of a data set."""

    name: str
    """What it is called on this machine."""
    url: str | None = None
    """Where it is fetched from; none: it must be put there by hand."""
    by_hand: str | None = None
    """For a file without url: what it is, how to get it from the page, and what must be in it."""
    size: int | None = Field(default=None, gt=0)
    """Bytes, if they are known."""
    optional: bool = False
    """Whether the data set can be made without it; of those without url alone."""

    @field_validator("name")
    @classmethod
    def _plain(cls, name: str) -> str:
        if PurePosixPath(name).name != name or name.startswith(".") or name == CHECKSUMS:
            raise ValueError("expected a plain file name")
        return name

    @field_validator("url")
    @classmethod
    def _address(cls, url: str | None) -> str | None:
        return url if url is None else _web(url)

    @model_validator(mode="after")
    def _either(self) -> Self:
        if (self.url is None) == (self.by_hand is None):
            raise ValueError("expected one of url and by_hand")
        if self.optional and self.url is not None:
            raise ValueError("only a file by_hand can be optional")
        return self

    @property
    def archive(self) -> str | None:
        """The folder that it is unpacked to, where it is an archive."""
        return next((self.name.removesuffix(s) for s in _ARCHIVES if self.name.endswith(s)), None)


class Counts(_Entry):
    """What there must be after preparing; none: not known."""

    users: int | None = None
    items: int | None = None
    interactions: int | None = None


class Source(_Entry):
    """A data set: its files, and how it is made from them."""

    what: str
    page: str
    """The publisher's page."""
    licence: Licence
    files: tuple[File, ...] = Field(min_length=1)
    prepare: tuple[str, ...] = Field(min_length=1)
    """Arguments of `mmrec-mrdib data prepare`, without --output. '{raw}/NAME' is a file, or in the folder of an unpacked archive."""
    expected: Counts = Counts()
    features: dict[str, str] = Field(default_factory=dict)
    """Modality -> the optional file of `files` with its features, a table for --features."""
    then: str = ""
    """A command that makes sense next; '{output}' is the prepared folder."""

    _address = field_validator("page")(_web)

    @model_validator(mode="after")
    def _fits(self) -> Self:
        names = {f.archive or f.name for f in self.files}
        for argument in self.prepare:
            for slot in _SLOTS.finditer(argument):
                if slot[1] != "raw" or slot[2] not in names:
                    raise ValueError(f"prepare: {slot[0]}: no such file among {listed(sorted(names))}")
        for modality, name in self.features.items():
            if not any(f.name == name and f.optional for f in self.files):
                raise ValueError(f"features.{modality}: {name}: no optional file of that name")
        return self

    def arguments(self, raw: Path, output: Path) -> list[str]:
        """The arguments of `mmrec-mrdib data` that prepare it."""
        given = [a.replace("{raw}", str(raw)) for a in self.prepare]
        for modality, name in self.features.items():
            if (raw / name).is_file():
                given += ["--features", f"{modality}={raw / name}"]
        return ["prepare", *given, "--output", str(output)]


def sources(path: Path | None = None) -> dict[str, Source]:
    """Name -> data set, of `properties/sources.yaml` or of another file.

    Raises:
        ConfigError: it does not keep the form; names the place.
    """
    path = paths.properties_dir() / "sources.yaml" if path is None else path
    out = {}
    for name, value in read_yaml(path).items():
        try:
            out[str(name)] = Source.model_validate(value)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in (name, *first["loc"]))
            what = first["msg"].removeprefix("Value error, ")
            raise ConfigError(f"{path}: {where}: {what[0].lower()}{what[1:]} (found {first['input']!r:.80})") from error
    return out


def source(name: str, path: Path | None = None) -> Source:
    """
    Raises:
        ConfigError: none of this name.
    """
    known = sources(path)
    if name not in known:
        raise ConfigError(f"no source for '{name}'.{did_you_mean(name, known)} Known: {', '.join(known)}")
    return known[name]


# From the net.


class _NoDowngrade(urllib.request.HTTPRedirectHandler):
    """Follows redirects, but not from https to anything else."""

    def redirect_request(self, request: Any, response: Any, code: int, message: str, headers: Any, url: str) -> Any:
        scheme = urllib.parse.urlsplit(url).scheme
        if scheme not in ("http", "https") or (request.type == "https" and scheme != "https"):
            raise DataError(
                f"{request.full_url}: sends on to {url}, which is not https: refused, as anyone on the way could change the file; look "
                "for its new address, and say it with --mirror"
            )
        return super().redirect_request(request, response, code, message, headers, url)


def _opener() -> urllib.request.OpenerDirector:
    out = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler(), urllib.request.HTTPHandler(), urllib.request.HTTPSHandler(), _NoDowngrade(),
        urllib.request.HTTPDefaultErrorHandler(), urllib.request.HTTPErrorProcessor(),
    ):  # fmt: skip
        out.add_handler(handler)  # no ftp:, file: or data:
    return out


class _Known(NamedTuple):
    """What a server said of a file: a validator of HTTP (a strong ETag, or when it was modified) and the bytes of the whole; None: nothing."""

    validator: str | None
    size: int | None

    @classmethod
    def of(cls, headers: Any, size: int | None) -> _Known:
        tag = headers.get("ETag")
        return cls(tag if tag and not tag.startswith("W/") else headers.get("Last-Modified"), size)

    def holds(self, now: _Known) -> bool:
        """Whether a part of the file can be gone on with: nothing differs, and something is known. An answer with a part need not repeat the
        date, having been asked to hold it against that (If-Range)."""
        same = now.size == self.size and now.validator in (self.validator, None)
        return same and (self.validator is not None or self.size is not None)


def mirrored(url: str, mirror: str | None) -> str:
    """The address of the file in another folder of the net, under its own name."""
    if mirror is None:
        return url
    try:
        base = _web(mirror)
    except ValueError as error:
        raise ConfigError(f"--mirror={mirror}: {error}") from error
    return f"{base.rstrip('/')}/{urllib.parse.urlsplit(url).path.rpartition('/')[2]}"


def receive(url: str, target: Path, size: int | None = None, page: str = "", show: bool = False) -> Path:
    """Transfer a file to `<target>.part`, behind what is there of it already; returns that path when all of it is there.

    Args:
        size: bytes that it must have, if known.
        page: where to look when it is not there, for the error.

    Raises:
        DataError: it cannot be had; one line with the address and what to do.
    """
    part = target.with_name(f"{target.name}.part")
    part.parent.mkdir(parents=True, exist_ok=True)
    by_hand = f", or get the file by other means and put it at {target}"
    with part.open("ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise DataError(f"{part}: another process is fetching this file; wait for it") from error
        try:
            _transfer(url, part, file, size, show)
        except urllib.error.HTTPError as error:
            why = f"HTTP {error.code}, {_line(error.reason)}"
            if error.code in (408, 425, 429) or error.code >= 500:
                raise DataError(f"{url}: {why}; try again later{by_hand}") from error
            where = f"look where it is now ({page})" if page else "look where it is now"
            raise DataError(f"{url}: {why}; {where} and say --mirror=ADDRESS OF ITS FOLDER{by_hand}") from error
        except (OSError, ValueError, http.client.HTTPException) as error:  # ValueError: of an address
            there, why = file.tell(), _line(getattr(error, "reason", None) or error)
            if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise DataError(f"{part}: the disk is full; make room, and the same command goes on") from error
            if there:
                raise DataError(
                    f"{url}: broken off at {there:,} bytes ({why}); the same command goes on from there"
                ) from error
            raise DataError(
                f"{url}: no connection ({why}); is there a network, and does it need a proxy (https_proxy)? Try again{by_hand}"
            ) from error
        finally:
            if part.is_file() and not part.stat().st_size and not file.tell():
                _forget(part)  # nothing came
    if not part.is_file():
        raise DataError(f"{url}: what came is an empty file; look at {page or 'its site'}{by_hand}")
    what = text.disguise(part)
    if what is not None and what.startswith("a page"):
        _forget(part)
        raise DataError(f"{url}: what came is {what.partition(';')[0]}; look at {page or 'its site'}{by_hand}")
    return part


def _line(reason: Any) -> str:
    return " ".join(str(reason).split()) or type(reason).__name__


def _transfer(url: str, part: Path, file: IO[bytes], size: int | None, show: bool) -> None:
    """Fill the part up: from its end where the server has the same file still and lets us, else anew."""
    there, before = file.seek(0, 2), _read_state(part)
    headers = {"User-Agent": f"mmrec-mrdib/{__version__}", "Accept-Encoding": "identity"}
    if there and before is not None:
        headers["Range"] = f"bytes={there}-"
        if before.validator:
            headers["If-Range"] = before.validator
    try:
        response = _opener().open(urllib.request.Request(url, headers=headers), timeout=_TIMEOUT)
    except urllib.error.HTTPError as error:
        if error.code != 416 or "Range" not in headers:
            raise
        error.close()
        if before is not None and before.validator and error.headers.get("Content-Range") == f"bytes */{there}":
            return  # it was complete but for its name
        _empty(file)
        return _transfer(url, part, file, size, show)
    with response:
        start, whole = _begins(response)
        if start and not there:
            raise http.client.HTTPException("an answer with a part of the file that nobody asked for")
        now = _Known.of(response.headers, whole)
        if start and (start != there or before is None or not before.holds(now)):
            _empty(file)
            response.close()
            return _transfer(url, part, file, size, show)
        if not start:
            _empty(file)
            _state(part).write_text(json.dumps(now._asdict()))
        if size is not None and whole is not None and whole != size:
            _wrong_size(url, part, file, whole, size)
        name = part.name.removesuffix(".part")
        with tqdm(total=whole, initial=start, unit="B", unit_scale=True, desc=name, disable=not show) as bar:
            while block := response.read(_BLOCK):
                file.write(block)
                bar.update(len(block))
        file.flush()
    end = file.tell()
    if whole is not None and end != whole:
        raise http.client.HTTPException(f"{whole:,} were announced")
    if size is not None and end != size:
        _wrong_size(url, part, file, end, size)


def _wrong_size(url: str, part: Path, file: IO[bytes], found: int, expected: int) -> NoReturn:
    _empty(file)
    _forget(part)
    raise DataError(f"{url}: {found:,} bytes, expected {expected:,}: another version of the file, or another file")


def _begins(response: Any) -> tuple[int, int | None]:
    """(the byte at which the answer begins, the bytes of the whole file)."""
    if response.status != 206:
        length = response.headers.get("Content-Length", "")
        return 0, int(length) if length.isdecimal() else None
    found = re.fullmatch(r"bytes (\d+)-(\d+)/(\d+|\*)", response.headers.get("Content-Range", "").strip())
    if found is None:
        raise http.client.HTTPException("an answer with a part of the file that does not say which")
    return int(found[1]), None if found[3] == "*" else int(found[3])


def _state(part: Path) -> Path:
    return part.with_name(f"{part.name}.json")


def _read_state(part: Path) -> _Known | None:
    try:
        values = json.loads(_state(part).read_text())
        return _Known(values["validator"], values["size"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _empty(file: IO[bytes]) -> None:
    file.truncate(0)
    file.seek(0)


def _forget(part: Path) -> None:
    part.unlink(missing_ok=True)
    _state(part).unlink(missing_ok=True)


# Checksums.


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def recorded(folder: Path) -> dict[str, dict[str, Any]]:
    """File name -> sha256, size and url of its first transfer.

    Raises:
        DataError: the record cannot be read.
    """
    path = folder / CHECKSUMS
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        if not all(isinstance(v["sha256"], str) for v in values.values()):
            raise ValueError("no sha256")
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, TypeError, AttributeError, KeyError) as error:
        raise DataError(
            f"{path}: cannot be read ({error}); remove it to trust the files that are there as they are"
        ) from error
    return dict(values)


def obtain(
    file: File, folder: Path, mirror: str | None = None, again: bool = False, page: str = "", show: bool = False
) -> bool:
    """See that the file is in the folder and is the one that was first fetched; returns whether it was transferred now.

    Args:
        again: transfer it, although it is there.

    Raises:
        DataError: it cannot be had, or is not what it was. What was there stays there.
    """
    target, known = folder / file.name, recorded(folder)
    before = known.get(file.name)
    if target.is_file() and not again:
        found, size = sha256(target), target.stat().st_size
        if before is not None and found != before["sha256"]:
            raise DataError(
                f"{target}: changed since it was first fetched ({_differ(found, before)}); remove the file to fetch it anew, or its entry in "
                f"{folder / CHECKSUMS} to go on with it"
            )
        if file.size not in (None, size):
            raise DataError(f"{target}: {size:,} bytes, expected {file.size:,}; remove it to fetch it anew")
        if before is None:
            _record(folder, known, file, found, size, "put there by hand")
        return False
    if file.url is None:
        raise DataError(by_hand(file, target, page))
    url = mirrored(file.url, mirror)
    part = receive(url, target, file.size, page, show)
    found, size = sha256(part), part.stat().st_size
    if before is not None and found != before["sha256"]:
        _forget(part)
        kept = "the old file stays" if target.is_file() else "it was not kept"
        raise DataError(
            f"{url}: another file than was first fetched from {before.get('url')} ({_differ(found, before)}); {kept}; to take the new one, remove "
            f"its entry in {folder / CHECKSUMS}"
        )
    part.replace(target)
    _state(part).unlink(missing_ok=True)
    _record(folder, known, file, found, size, url)
    return True


def _differ(found: str, before: dict[str, Any]) -> str:
    return f"sha256 {found[:12]}…, was {before['sha256'][:12]}…"


def by_hand(file: File, target: Path, page: str) -> str:
    """What to do about a file that no program can fetch."""
    return (
        f"{target}: not there, and cannot be fetched by a program: {file.by_hand} (page: {page}); put it "
        "there, and type the same command again"
    )


def _record(folder: Path, known: dict[str, Any], file: File, digest: str, size: int, url: str) -> None:
    if file.archive is not None and digest != known.get(file.name, {}).get("sha256"):
        shutil.rmtree(folder / file.archive, ignore_errors=True)  # what another archive held
    if file.url is not None:  # others are made by hand, and may be made anew
        known = known | {file.name: {"sha256": digest, "size": size, "url": url}}
        paths.write_atomically(folder / CHECKSUMS, (json.dumps(known, indent=1) + "\n").encode())


def counts(folder: Path) -> dict[str, int]:
    """users, items and interactions of a prepared folder."""
    found = {kind: len(text.lines(folder / f"{kind}.txt")) for kind in ("users", "items")}
    return found | {"interactions": len(text.lines(folder / f"{folder.name}.inter")) - 1}


def differences(found: dict[str, int], expected: Counts) -> list[str]:
    """'users: 3, expected 5' of those that are not as expected."""
    wanted = expected.model_dump(exclude_none=True)
    return [f"{kind}: {found[kind]:,}, expected {n:,}" for kind, n in wanted.items() if found[kind] != n]


# Archives.


class _Member(NamedTuple):
    name: str
    kind: str
    """'file', 'folder', or what it is instead."""
    size: int
    key: Any


def unpack(path: Path, target: Path) -> None:
    """Unpack a zip or tar.gz archive; the folder `target` is there as a whole or not at all.

    Raises:
        DataError: it is damaged or encrypted, or has members that are links, devices, or outside of the folder.
    """
    temporary = Path(tempfile.mkdtemp(dir=target.absolute().parent, prefix=f".{target.name}-"))
    try:
        with _archive(path) as (members, read):
            places = [(m, temporary / _inside(path, m)) for m in members]
            free = shutil.disk_usage(temporary).free
            if sum(m.size for m in members) > free:
                raise DataError(
                    f"{path}: unpacked it has {sum(m.size for m in members):,} bytes, {free:,} are free here"
                )
            for member, place in places:
                if member.kind == "folder":
                    place.mkdir(parents=True, exist_ok=True)
                    continue
                place.parent.mkdir(parents=True, exist_ok=True)
                with read(member.key) as content, place.open("xb") as out:
                    shutil.copyfileobj(content, out, _BLOCK)
        temporary.chmod(0o755)
        temporary.rename(target)
    except FileExistsError as error:
        raise DataError(f"{path}: a member stands there twice ({error.filename}); {_ANEW}") from error
    except (zipfile.BadZipFile, tarfile.TarError, zlib.error, gzip.BadGzipFile, EOFError, RuntimeError) as error:
        raise DataError(f"{path}: the archive cannot be unpacked ({error}); {_ANEW}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


_ANEW = "remove it to fetch it anew"


@contextlib.contextmanager
def _archive(path: Path) -> Iterator[tuple[list[_Member], Any]]:
    if path.name.endswith(".zip"):
        with zipfile.ZipFile(path) as packed:
            yield [_zipped(i) for i in packed.infolist()], packed.open
    else:
        with gzip.open(path) as stream:  # its checksum is behind the last member, where tarfile does not look
            while stream.read(_BLOCK):
                pass
        with tarfile.open(path, "r:gz") as packed_tar:
            yield [_tarred(i) for i in packed_tar.getmembers()], packed_tar.extractfile


def _zipped(info: zipfile.ZipInfo) -> _Member:
    kind = stat.S_IFMT(info.external_attr >> 16)
    name = "folder" if info.is_dir() else "file" if kind in (0, stat.S_IFREG) else "a link or device"
    return _Member(info.filename, name, info.file_size, info)


def _tarred(info: tarfile.TarInfo) -> _Member:
    kind = "folder" if info.isdir() else "file" if info.isreg() else "a link or device"
    return _Member(info.name, kind, info.size, info)


def _inside(path: Path, member: _Member) -> PurePosixPath:
    """The member's place below the folder."""
    name = PurePosixPath(member.name)
    outside = name.is_absolute() or ".." in name.parts or "\\" in member.name or re.match("[A-Za-z]:/", member.name)
    if outside or member.kind not in ("file", "folder"):
        why = "points outside of its folder" if outside else f"is {member.kind}"
        raise DataError(f"{path}: member {member.name!r} {why}: the archive is not unpacked")
    return name
