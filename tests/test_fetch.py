"""Data sets by name, from a server on this machine: whole, broken off and gone on with, moved, changed, and archives that are not to be trusted."""

import contextlib
import fcntl
import gzip
import hashlib
import io
import json
import re
import tarfile
import threading
import urllib.request
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pandas as pd
import pytest

from mmrec_mrdib import cli, paths
from mmrec_mrdib.cli import data as data_cli
from mmrec_mrdib.data import fetch
from mmrec_mrdib.data.check import check
from mmrec_mrdib.errors import ConfigError, DataError
from tests.test_prepare import reviews

CONTENT = bytes(range(256)) * 40


class Handler(BaseHTTPRequestHandler):
    """Serves `server.files`, as the entry of a file says: cut (bytes after which the line breaks), ranges, tag, date, to (redirect), status, length."""

    def do_GET(self):
        name = self.path.removeprefix("/")
        content, how = self.server.files.get(name, (b"", {"status": 404}))
        self.server.seen.append((name, self.headers.get("Range")))
        headers = {k: how[v] for k, v in (("ETag", "tag"), ("Last-Modified", "date"), ("Location", "to")) if v in how}
        asked = self.headers.get("Range")
        held = self.headers.get("If-Range") in (None, how.get("tag", how.get("date")))
        status, body = how.get("status", 200), content
        if asked and how.get("ranges", True) and held and status == 200:
            start = int(asked.removeprefix("bytes=").removesuffix("-"))
            status = 206 if start < len(content) else 416
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
            if status == 416:
                headers["Content-Range"] = f"bytes */{len(content)}"
            body = content[start:] if status == 206 else b""
        self.send_response(status)
        if how.get("length", True):
            headers["Content-Length"] = str(len(body))
        for key, value in headers.items():
            self.send_header(key, value)
        self.end_headers()
        with contextlib.suppress(ConnectionError):
            self.wfile.write(body[: how.get("cut")])

    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def running():
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch):
    monkeypatch.setenv("no_proxy", "*")


@pytest.fixture
def server(running):
    running.files, running.seen = {}, []
    running.url = f"http://127.0.0.1:{running.server_address[1]}"
    return running


def file(server, name="x.bin", **values):
    return fetch.File(name=name, url=f"{server.url}/{name}", **values)


def record(folder):
    return json.loads((folder / "checksums.json").read_text())


# One file.


def test_a_whole_transfer(server, tmp_path, capsys):
    server.files["x.bin"] = (CONTENT, {"tag": '"1"'})
    assert fetch.obtain(file(server, size=len(CONTENT)), tmp_path / "raw", show=True)
    assert re.search(r"x\.bin: 100%.*10\.2k/10\.2k", capsys.readouterr().err)
    assert (tmp_path / "raw" / "x.bin").read_bytes() == CONTENT
    assert sorted(p.name for p in (tmp_path / "raw").iterdir()) == ["checksums.json", "x.bin"]
    entry = {"sha256": hashlib.sha256(CONTENT).hexdigest(), "size": len(CONTENT), "url": f"{server.url}/x.bin"}
    assert record(tmp_path / "raw") == {"x.bin": entry}
    assert not fetch.obtain(file(server), tmp_path / "raw") and len(server.seen) == 1


@pytest.mark.parametrize("known", [{"tag": '"1"'}, {"date": "Mon, 01 Jan 2024 00:00:00 GMT"}, {}, {"tag": 'W/"1"'}])
def test_broken_off_and_gone_on_with(server, tmp_path, known):
    server.files["x.bin"] = (CONTENT, {"cut": 3000, **known})
    for _ in range(2):
        with pytest.raises(
            DataError, match=r"x\.bin: broken off at [36],000 bytes \(10,240 were announced\); the same"
        ):
            fetch.obtain(file(server), tmp_path)
        assert not (tmp_path / "x.bin").exists() and not (tmp_path / "checksums.json").exists()
    server.files["x.bin"] = (CONTENT, known)
    assert fetch.obtain(file(server), tmp_path)
    assert (tmp_path / "x.bin").read_bytes() == CONTENT
    assert [r for _, r in server.seen] == [None, "bytes=3000-", "bytes=6000-"]
    assert not list(tmp_path.glob("*.part*"))


def test_a_server_that_knows_no_ranges_starts_over(server, tmp_path):
    server.files["x.bin"] = (CONTENT, {"cut": 3000, "tag": '"1"', "ranges": False})
    with pytest.raises(DataError, match="broken off at 3,000"):
        fetch.obtain(file(server), tmp_path)
    server.files["x.bin"] = (CONTENT, {"tag": '"1"', "ranges": False})
    assert fetch.obtain(file(server), tmp_path) and (tmp_path / "x.bin").read_bytes() == CONTENT


@pytest.mark.parametrize(
    ("first", "then", "length"),
    [
        ({"tag": '"1"'}, {"tag": '"2"'}, 10240),  # If-Range fails: the server sends all
        ({}, {}, 10000),  # no validator: the length tells
        ({"tag": '"1"'}, {"tag": '"1"'}, 10000),  # a server that gives the same tag to another file
        ({"length": False}, {"length": False}, 10240),  # nothing was known of the first
    ],
)
def test_a_file_that_changes_between_two_tries_is_never_mixed(server, tmp_path, first, then, length):
    server.files["x.bin"] = (CONTENT, {"cut": 3000, **first})
    with contextlib.suppress(DataError):
        fetch.obtain(file(server, size=10240 if "length" in first else None), tmp_path)
    (tmp_path / "x.bin").unlink(missing_ok=True)
    if "length" in first:  # cut and without a length: its end cannot be told, its size can
        assert not (tmp_path / "x.bin").exists() and not list(tmp_path.glob("*.part"))
    other = CONTENT[::-1][:length]
    server.files["x.bin"] = (other, then)
    assert fetch.obtain(file(server), tmp_path) and (tmp_path / "x.bin").read_bytes() == other


def test_a_part_that_was_complete_but_for_its_name(server, tmp_path):
    server.files["x.bin"] = (CONTENT, {"tag": '"1"'})
    (tmp_path / "x.bin.part").write_bytes(CONTENT)
    (tmp_path / "x.bin.part.json").write_text(json.dumps({"validator": '"1"', "size": len(CONTENT)}))
    assert fetch.obtain(file(server), tmp_path) and (tmp_path / "x.bin").read_bytes() == CONTENT
    assert len(server.seen) == 1
    (tmp_path / "y.bin.part").write_bytes(CONTENT + b"more")  # longer than the file
    (tmp_path / "y.bin.part.json").write_text(json.dumps({"validator": '"1"', "size": len(CONTENT)}))
    server.files["y.bin"] = server.files["x.bin"]
    assert fetch.obtain(file(server, "y.bin"), tmp_path) and (tmp_path / "y.bin").read_bytes() == CONTENT


@pytest.mark.parametrize("state", [None, "{", '{"validator": "x"}'])
def test_a_part_of_which_nothing_is_known_is_thrown_away(server, tmp_path, state):
    server.files["x.bin"] = (CONTENT, {"tag": '"1"'})
    (tmp_path / "x.bin.part").write_bytes(b"rubbish")
    if state is not None:
        (tmp_path / "x.bin.part.json").write_text(state)
    assert fetch.obtain(file(server), tmp_path) and (tmp_path / "x.bin").read_bytes() == CONTENT


def test_redirects(server, tmp_path):
    server.files |= {"x.bin": (b"", {"status": 302, "to": "/y"}), "y": (b"", {"status": 301, "to": "/z"})}
    server.files["z"] = (CONTENT, {"cut": 3000, "tag": '"1"'})
    with pytest.raises(DataError, match="broken off"):
        fetch.obtain(file(server), tmp_path)
    server.files["z"] = (CONTENT, {"tag": '"1"'})
    assert fetch.obtain(file(server), tmp_path) and (tmp_path / "x.bin").read_bytes() == CONTENT
    assert server.seen[-1] == ("z", "bytes=3000-")
    server.files["x.bin"] = (b"", {"status": 302, "to": "/x.bin"})
    with pytest.raises(DataError, match=r"^\S+x\.bin: HTTP 302, .*loop.*$"):
        fetch.obtain(file(server), tmp_path, again=True)
    server.files["x.bin"] = (b"", {"status": 302, "to": "file:///etc/hostname"})
    with pytest.raises(DataError):
        fetch.obtain(file(server), tmp_path, again=True)
    assert (tmp_path / "x.bin").read_bytes() == CONTENT


@pytest.mark.parametrize("to", ["http://other/x", "ftp://other/x", "file:///x", "https://other/x"])
def test_no_way_down_from_https(to):
    ask = urllib.request.Request("https://here/x")
    if to.startswith("https"):
        assert fetch._NoDowngrade().redirect_request(ask, None, 302, "", {}, to).full_url == to
        return
    with pytest.raises(DataError, match=rf"https://here/x: sends on to {re.escape(to)}, which is not https: refused"):
        fetch._NoDowngrade().redirect_request(ask, None, 302, "", {}, to)


def test_wrong_sizes(server, tmp_path):
    server.files["x.bin"] = (CONTENT, {})
    with pytest.raises(DataError, match=r"x\.bin: 10,240 bytes, expected 99: another version"):
        fetch.obtain(file(server, size=99), tmp_path)
    server.files["x.bin"] = (CONTENT, {"length": False})
    with pytest.raises(DataError, match=r"x\.bin: 10,240 bytes, expected 99: another version"):
        fetch.obtain(file(server, size=99), tmp_path)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "x.bin").write_bytes(CONTENT)
    with pytest.raises(DataError, match=r"x\.bin: 10,240 bytes, expected 99; remove it"):
        fetch.obtain(file(server, size=99), tmp_path)


@pytest.mark.parametrize(
    ("status", "message"),
    [(404, "look where it is now .https://page/. and say --mirror="), (503, "try again later"), (403, "--mirror=")],
)
def test_what_a_server_refuses(server, tmp_path, status, message):
    server.files["x.bin"] = (b"", {"status": status})
    (tmp_path / "x.bin.part").write_bytes(b"begun")
    with pytest.raises(DataError, match=rf"^{server.url}/x\.bin: HTTP {status}, .*{message}.*put it at .*x\.bin$"):
        fetch.obtain(file(server), tmp_path, page="https://page/")
    assert (tmp_path / "x.bin.part").read_bytes() == b"begun"  # it may yet be gone on with


def test_no_network(tmp_path):
    nobody = fetch.File(name="x", url="http://127.0.0.1:9/x")
    with pytest.raises(DataError, match=r"^http://127.0.0.1:9/x: no connection \(.*refused\); is there a network.*$"):
        fetch.obtain(nobody, tmp_path)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "x").write_bytes(CONTENT)  # by other means
    assert not fetch.obtain(nobody, tmp_path) and record(tmp_path)["x"]["size"] == len(CONTENT)


@pytest.mark.parametrize(
    "url", ["http://127.0.0.1:x/", "http://" + "h" * 70 + "/x", "http://127.0.0.1/ü", "http://127.0.0.1/a b"]
)
def test_addresses_that_are_none(tmp_path, url):
    with pytest.raises(DataError, match="no connection"):
        fetch.receive(url, tmp_path / "x")
    assert list(tmp_path.iterdir()) == []


def test_a_page_in_place_of_the_file(server, tmp_path):
    server.files["x.bin"] = (b"<!DOCTYPE html><title>Please log in</title>", {})
    with pytest.raises(DataError, match=r"x\.bin: what came is a page of a web site .*not the file itself"):
        fetch.obtain(file(server), tmp_path)
    assert list(tmp_path.iterdir()) == []
    server.files["x.bin"] = (b"", {})
    with pytest.raises(DataError, match=r"x\.bin: what came is an empty file; look"):
        fetch.obtain(file(server), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_another_process_at_the_same_file(server, tmp_path):
    with (tmp_path / "x.bin.part").open("ab") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(DataError, match="another process is fetching this file"):
            fetch.obtain(file(server), tmp_path)


def test_checksums(server, tmp_path):
    server.files["x.bin"] = (CONTENT, {})
    fetch.obtain(file(server), tmp_path)
    assert fetch.obtain(file(server), tmp_path, again=True)  # the same
    server.files["x.bin"] = (b"changed", {})
    with pytest.raises(
        DataError, match=rf"{server.url}/x\.bin: another file than was first fetched.*the old file stays"
    ):
        fetch.obtain(file(server), tmp_path, again=True)
    assert (tmp_path / "x.bin").read_bytes() == CONTENT and not list(tmp_path.glob("*.part*"))
    (tmp_path / "x.bin").unlink()  # the record outlives the file
    with pytest.raises(DataError, match=r"another file than was first fetched.*it was not kept"):
        fetch.obtain(file(server), tmp_path)
    assert not (tmp_path / "x.bin").exists()
    (tmp_path / "x.bin").write_bytes(b"damaged")
    with pytest.raises(DataError, match=r"x\.bin: changed since it was first fetched"):
        fetch.obtain(file(server), tmp_path)
    (tmp_path / "checksums.json").unlink()  # as the message says
    assert not fetch.obtain(file(server), tmp_path)
    (tmp_path / "checksums.json").write_text("[1]")
    with pytest.raises(DataError, match=r"checksums\.json: cannot be read"):
        fetch.obtain(file(server), tmp_path)


# Archives.


def packed(kind, members):
    """A zip or tar.gz of (name, content; None: a link)."""
    out = io.BytesIO()
    if kind == "zip":
        with zipfile.ZipFile(out, "w") as archive:
            for name, content in members:
                info = zipfile.ZipInfo(name)
                info.external_attr = (0o120777 if content is None else 0o100644) << 16
                archive.writestr(info, b"/etc" if content is None else content)
    else:
        with tarfile.open(fileobj=out, mode="w:gz") as archive:
            for name, content in members:
                tar = tarfile.TarInfo(name)
                tar.size = len(content or b"")
                if content is None:
                    tar.type, tar.linkname = tarfile.SYMTYPE, "/etc"
                archive.addfile(tar, io.BytesIO(content or b""))
    return out.getvalue()


@pytest.mark.parametrize("kind", ["zip", "tar.gz"])
def test_archives_are_unpacked(tmp_path, kind):
    (tmp_path / f"a.{kind}").write_bytes(packed(kind, [("in/x.dat", b"1"), ("in/deep/y.dat", b"2"), ("a:b", b"3")]))
    fetch.unpack(tmp_path / f"a.{kind}", tmp_path / "a")
    found = {
        p.relative_to(tmp_path / "a").as_posix(): p.read_bytes() for p in (tmp_path / "a").rglob("*.*") if p.is_file()
    }
    assert found == {"in/x.dat": b"1", "in/deep/y.dat": b"2"} and (tmp_path / "a" / "a:b").read_bytes() == b"3"


@pytest.mark.parametrize("kind", ["zip", "tar.gz"])
@pytest.mark.parametrize(
    ("member", "message"),
    [
        (("../out.txt", b"x"), "'../out.txt' points outside"), (("in/../../out.txt", b"x"), "points outside"), (("/tmp/out.txt", b"x"), "points outside"),
        (("..\\out.txt", b"x"), "points outside"), (("C:/out.txt", b"x"), "points outside"), (("link", None), "'link' is a link or device"),
        (("good.txt", b"again"), "stands there twice"),
    ],
)  # fmt: skip
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_archives_that_are_not_to_be_trusted(tmp_path, kind, member, message):
    place = tmp_path / "place"
    place.mkdir()
    (place / f"a.{kind}").write_bytes(packed(kind, [("good.txt", b"x"), member]))
    with pytest.raises(DataError, match=message):
        fetch.unpack(place / f"a.{kind}", place / "a")
    assert [p.name for p in place.iterdir()] == [f"a.{kind}"] and [p.name for p in tmp_path.iterdir()] == ["place"]


@pytest.mark.parametrize("kind", ["zip", "tar.gz"])
@pytest.mark.parametrize("damage", [lambda b: b[: len(b) // 2], lambda b: b"rubbish", lambda b: b"", "flip"])
def test_damaged_archives(tmp_path, kind, damage):
    content = bytearray(packed(kind, [("x.dat", np.random.default_rng(0).bytes(5000))]))
    if damage == "flip":
        content[2000] ^= 255
    else:
        content = damage(bytes(content))
    (tmp_path / f"a.{kind}").write_bytes(content)
    with pytest.raises(DataError, match=r"cannot be unpacked .*; remove it to fetch it anew"):
        fetch.unpack(tmp_path / f"a.{kind}", tmp_path / "a")
    assert [p.name for p in tmp_path.iterdir()] == [f"a.{kind}"]


# The file of sources.


def test_the_sources_that_are_shipped():
    known = fetch.sources()
    named = "amazon-baby amazon-sports amazon-clothing lastfm-2k ml-1m dbbook microlens-50k"
    assert list(known) == named.split()
    assert known["amazon-baby"].expected == fetch.Counts(users=19445, items=7050, interactions=160792)
    for name, source in known.items():
        options = data_cli.parser().parse_args(source.arguments(paths.Path("raw"), paths.Path(name)))
        data_cli._split_options(options)
        assert options.ratios == "8:1:1" and options.core == (5 if name.startswith("amazon") else 1)
        assert all(f.url is None or f.url.startswith("https://") for f in source.files)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"what": None}, "s.what: "), ({"pages": "x"}, "s.pages: extra inputs"), ({"page": "ftp://x/y"}, "s.page: expected an address that begins"),
        ({"licence": {"sentence": "x"}}, "s.licence.link: field required"), ({"files": []}, "s.files: "),
        ({"files": [{"name": "../x", "url": "https://h/x"}]}, r"s.files.0.name: expected a plain file name \(found '../x'\)"),
        ({"files": [{"name": "x"}]}, "s.files.0: expected one of url and by_hand"), ({"files": [{"name": "x", "url": "https://h/x", "size": -1}]}, "s.files.0.size"),
        ({"prepare": ["csv", "{raw}/y"]}, "s: prepare: {raw}/y: no such file among x"), ({"features": {"text": "x"}}, "s: features.text: x: no optional file"),
        ({"expected": {"users": "many"}}, "s.expected.users: input should be a valid integer"),
    ],
)  # fmt: skip
def test_sources_that_do_not_keep_the_form(tmp_path, change, message):
    good = {
        "what": "x", "page": "https://h/", "licence": {"sentence": "x", "link": "https://h/l"}, "files": [{"name": "x", "url": "https://h/x"}],
        "prepare": ["csv", "{raw}/x", "--core", 5],
    }  # fmt: skip
    path = tmp_path / "sources.yaml"
    path.write_text(json.dumps({"s": good}))
    assert fetch.sources(path)["s"].prepare == ("csv", "{raw}/x", "--core", "5")
    path.write_text(json.dumps({"s": good | change}))
    with pytest.raises(ConfigError, match=rf"^{path}: {message}") as found:
        fetch.sources(path)
    assert "\n" not in str(found.value)


# The command.


def get(*arguments):
    return cli.main(["data", "get", *map(str, arguments)])


@pytest.fixture
def baby(server, tmp_path, monkeypatch):
    """The files of amazon-baby, small, and its entry with their counts."""
    lines = "\n".join(reviews("2014")).encode()
    meta = "\n".join(json.dumps({"asin": f"B{i:09}", "title": f"toy {i}"}) for i in range(12)).encode()
    pictures = np.random.default_rng(0).random((12, 4096)).astype("<f4")
    server.files |= {
        "m/reviews_Baby_5.json.gz": (gzip.compress(lines), {"tag": '"1"'}),
        "m/meta_Baby.json.gz": (gzip.compress(meta), {"tag": '"2"'}),
        "m/image_features_Baby.b": (b"".join(f"B{i:09}".encode() + x.tobytes() for i, x in enumerate(pictures)), {}),
    }
    whole = fetch.sources()
    counts = fetch.Counts(users=30, items=12, interactions=240)
    small = whole | {"amazon-baby": whole["amazon-baby"].model_copy(update={"expected": counts})}
    monkeypatch.setattr(fetch, "sources", lambda path=None: small)
    return ["amazon-baby", "--data_path", tmp_path / "sets", "--mirror", f"{server.url}/m"]


def test_a_licence_is_agreed_to(baby, server, tmp_path, capsys):
    assert get(*baby) == 2
    err = capsys.readouterr().err
    assert (
        err.count("\n") == 1
        and "cseweb.ucsd.edu" in err
        and "If you agree, type: mmrec-mrdib data get amazon-baby --data_path" in err
    )
    assert err.endswith("--accept-licence\n") and server.seen == [] and not (tmp_path / "sets").exists()


def test_a_data_set_by_name(baby, server, tmp_path, capsys):
    name = "m/image_features_Baby.b"
    server.files[name] = (server.files[name][0], {"cut": 20_000})
    assert get(*baby, "--accept-licence") == 2
    assert "image_features_Baby.b: broken off at 20,000 bytes" in capsys.readouterr().err
    assert not (tmp_path / "sets" / "amazon-baby").exists()
    server.files[name] = (server.files[name][0], {})
    assert get(*baby, "--accept-licence") == 0
    assert server.seen[-1] == (name, "bytes=20000-") and len(server.seen) == 4  # the others were here
    out, err = capsys.readouterr()
    assert (
        "terms of use, agreed to: The page names" in out
        and "30 users, 12 items, 240 of 240 interactions" in out
        and not err
    )
    assert (
        "users, items, interactions: as expected" in out
        and f"next: mmrec-mrdib data encode {tmp_path / 'sets' / 'amazon-baby'}" in out
    )
    folder = tmp_path / "sets" / "amazon-baby"
    assert check(folder).usable and np.load(folder / "image_feat.npy").shape == (12, 4096)
    assert json.loads((folder / "prepared.json").read_text())["core"] == 5
    assert set(record(tmp_path / "sets" / "downloads" / "amazon-baby")) == {n.removeprefix("m/") for n in server.files}
    for path in (tmp_path / "sets" / "downloads" / "amazon-baby").glob("meta*"):
        path.unlink()  # what was prepared needs it no longer
    assert get(*baby, "--accept-licence") == 0 and len(server.seen) == 4
    assert get(*baby, "--accept-licence", "--again") == 0 and len(server.seen) == 7
    server.files[name] = (b"changed", {})
    assert get(*baby, "--accept-licence", "--again") == 2
    assert "another file than was first fetched" in capsys.readouterr().err
    (tmp_path / "sets" / "downloads" / "amazon-baby" / "reviews_Baby_5.json.gz").write_bytes(b"x")
    assert get(*baby, "--accept-licence") == 2
    assert "changed since it was first fetched" in capsys.readouterr().err
    with pytest.raises(DataError, match=r"Did you mean amazon-baby\? Available: amazon-baby\. "):
        paths.find_dataset("amazon_baby", tmp_path / "sets")  # the downloads are none
    with pytest.raises(DataError, match=r"'mmrec-mrdib data get amazon-baby' fetches it\."):
        paths.find_dataset("amazon-baby", tmp_path)


def test_other_counts_than_expected(baby, server, tmp_path, capsys):
    content = gzip.decompress(server.files["m/reviews_Baby_5.json.gz"][0]).splitlines()
    server.files["m/reviews_Baby_5.json.gz"] = (gzip.compress(b"\n".join(content[:-8])), {})  # a user less
    assert get(*baby, "--accept-licence") == 2
    err = capsys.readouterr().err
    assert "amazon-baby: users: 29, expected 30; interactions: 232, expected 240: these are not the files" in err
    assert "nothing was kept; to have it all the same: mmrec-mrdib data prepare amazon --reviews" in err
    assert not (tmp_path / "sets" / "amazon-baby").exists()
    line = err.partition("all the same: mmrec-mrdib ")[2].split()
    assert cli.main(line) == 0 and (tmp_path / "sets" / "amazon-baby").is_dir()  # what it says to type
    assert get(*baby, "--accept-licence") == 2
    assert "users: 29, expected 30" in capsys.readouterr().err and (tmp_path / "sets" / "amazon-baby").is_dir()


def test_an_archive_without_a_header(server, tmp_path, monkeypatch, capsys):
    ratings = "".join(f"{u}::{i}::{1 + (u * i) % 5}::{978300000 + i}\n" for u in range(1, 5) for i in range(1, 13))
    films = "".join(f"{i}::Amélie {i} (2001)::Comedy|Romance\n" for i in range(1, 15)).encode("latin-1")
    archive = packed(
        "zip", [("ml-1m/ratings.dat", ratings.encode()), ("ml-1m/movies.dat", films), ("ml-1m/README", b"x")]
    )
    server.files["ml-1m.zip"] = (archive, {})
    small = fetch.source("ml-1m").model_copy(update={"expected": fetch.Counts(users=4, items=12, interactions=48)})
    monkeypatch.setattr(fetch, "sources", lambda path=None: {"ml-1m": small})
    where = ["ml-1m", "--data_path", tmp_path, "--url", server.url, "--accept-license"]
    raw = tmp_path / "downloads" / "ml-1m"
    raw.mkdir(parents=True)
    (raw / "text.csv").write_text("item,x,y\n" + "".join(f"{i},{i},{-i}\n" for i in range(1, 13)))
    assert get(*where) == 0
    out = capsys.readouterr().out
    assert "4 users, 12 items, 48 of 48" in out and "without image.csv: features of the films' posters" in out
    frame = pd.read_csv(tmp_path / "ml-1m" / "ml-1m.inter", sep="\t")
    items = (tmp_path / "ml-1m" / "items.txt").read_text().split()
    assert sorted(frame["rating"].unique()) == [1, 2, 3, 4, 5] and frame["timestamp"].min() == 978300001
    np.testing.assert_array_equal(np.load(tmp_path / "ml-1m" / "text_feat.npy")[:, 0], [int(i) for i in items])
    texts = [json.loads(line) for line in (tmp_path / "ml-1m" / "items.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [t["id"] for t in texts] == items and texts[0]["title"] == f"Amélie {items[0]} (2001)"
    (raw / "image.csv").write_text((raw / "text.csv").read_text())
    assert get(*where) == 0
    assert f"{raw / 'image.csv'}: not in {tmp_path / 'ml-1m'}, which was made before" in capsys.readouterr().out
    # Another archive, accepted by hand: what the first one held is gone.
    later = ratings.replace("978300", "978400").encode()
    other = packed("zip", [("ml-1m/ratings.dat", later), ("ml-1m/movies.dat", films)])
    (raw / "ml-1m.zip").write_bytes(other)
    (raw / "checksums.json").unlink()
    data_cli.shutil.rmtree(tmp_path / "ml-1m")
    assert get(*where) == 0
    assert pd.read_csv(tmp_path / "ml-1m" / "ml-1m.inter", sep="\t")["timestamp"].min() == 978400001


def test_files_that_no_program_can_fetch(tmp_path, capsys):
    where = ["dbbook", "--data_path", tmp_path, "--accept-licence"]
    assert get(*where) == 2
    err = capsys.readouterr().err
    put = tmp_path / "downloads" / "dbbook" / "interactions.csv"
    assert (
        f"{put}: not there, and cannot be fetched by a program" in err and "(page: https://github.com/swapUniba" in err
    )
    put.parent.mkdir(parents=True, exist_ok=True)
    put.write_text("user,item,rating\n" + "".join(f"u{u},b{i},{int(i != u)}\n" for u in range(4) for i in range(12)))
    assert get(*where) == 0  # the same command goes on
    assert "4 users, 12 items, 44 of 48 interactions" in capsys.readouterr().out  # what is rated 0 is not liked
    assert get(*where, "--mirror", "http://x/") == 2
    assert "--mirror: no effect on dbbook" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "data get: which one? amazon-baby, "), (["amazon-babe"], "no source for 'amazon-babe'. Did you mean amazon-baby?"),
        (["ml-1m", "--accept-licence", "--mirror", "ftp://x/"], "--mirror=ftp://x/: expected an address that begins with https://"),
        (["lastfm-2k", "--accept-licence"], "exists already, and 'data prepare' did not make it"),
    ],
)  # fmt: skip
def test_mistakes(tmp_path, monkeypatch, capsys, arguments, message):
    (tmp_path / "datasets" / "lastfm-2k").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert get(*arguments) == 2
    err = capsys.readouterr().err
    assert message in err and err.count("\n") == 1


def test_the_table(tmp_path, capsys):
    assert get("--list", "--data_path", tmp_path) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 1 + 7 + 2 and "19,445 × 7,050" in lines[1] and "160,792" in lines[1] and "unknown" in lines[1]
    assert "  interactions.csv  " in next(line for line in lines if line.startswith("dbbook"))
    assert max(map(len, lines)) <= 150
    assert "not tried" in lines[-1]
