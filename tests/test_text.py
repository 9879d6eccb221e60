"""Text as it comes: byte-order marks, line ends, encodings, what only looks like text; and tables whose cells are bytes, not values."""

import gzip
import zipfile

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmrec_mrdib.data import text
from mmrec_mrdib.errors import ConfigError, DataError

ODD = [
    '"x',
    "x",
    '"x"',
    "NA",
    "null",
    "nan",
    "None",
    "1e5",
    "100000",
    "007",
    "7",
    "1.0",
    "True",
    " x ",
    "x ",
    "\u00a0",
    "a\u200db",
    "\u2028",
]


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_cells_are_text_byte_for_byte(tmp_path, end, encoding):
    rows = [(token, f"😀{n}") for n, token in enumerate(ODD)]
    content = end.join("\t".join(row) for row in [("user", "item"), *rows])
    (tmp_path / "t").write_bytes(content.encode(encoding))
    cells = text.table(tmp_path / "t", encoding=encoding.removesuffix("-sig"))
    assert list(cells.frame) == ["user", "item"] and cells.frame.to_numpy().tolist() == [list(r) for r in rows]
    assert cells.frame.index.tolist() == list(range(2, len(rows) + 2)) and not cells.ragged


def test_lines_keep_their_numbers(tmp_path):
    (tmp_path / "t").write_text("a\tb\n1\t2\n\n3\n4\t5\t6\n7\t\n")
    cells = text.table(tmp_path / "t")
    assert cells.frame.to_numpy().tolist() == [["1", "2"], ["7", ""]] and cells.frame.index.tolist() == [2, 6]
    assert cells.ragged == [(4, 1), (5, 3)]


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.lists(
            st.text(st.characters(exclude_characters="\0\t\r\n", exclude_categories=["Cs"])), min_size=1, max_size=4
        ),
        max_size=6,
    )
)
def test_tables_of_any_cells(tmp_path_factory, rows):
    path = tmp_path_factory.mktemp("t") / "t"
    path.write_bytes("\n".join(["\t".join(row) for row in [["a", "b"], *rows]]).encode())
    cells = text.table(path)
    assert cells.frame.to_numpy().tolist() == [r for r in rows if len(r) == 2]
    assert [n for _, n in cells.ragged] == [len(r) for r in rows if len(r) != 2 and r != [""]]


def test_separators_of_any_length(tmp_path):
    (tmp_path / "t").write_text("a::b\n1::2\n")
    assert text.table(tmp_path / "t", "::").frame.to_numpy().tolist() == [["1", "2"]]


@pytest.mark.parametrize(
    ("content", "encoding", "message"),
    [
        (b"a\tb\nx\ty\xe9\n", "utf-8", r"t, line 2: not text in UTF-8 \(byte 0xe9.*--encoding.*latin-1"),
        ("a\tb\n".encode("utf-16"), "utf-8", r"not text in UTF-8.*utf-16, by its first bytes"),
        (b"a\tb\n", "klingon", r"--encoding=klingon: no such encoding"),
        (b"a\tb\nx\0\ty\n", "utf-8", r"line 2: a NUL character"),
        (b"", "utf-8", "not a table"),
        (b"a\ta\n1\t2\n", "utf-8", "column a stands there twice"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "utf-8", "Git LFS pointer.*git lfs pull"),
        (b"\xef\xbb\xbf\n <!DOCTYPE html><html>", "utf-8", "a page of a web site"),
        (gzip.compress(b"a\tb\n", mtime=0), "utf-8", "a gzip archive; unpack it"),
    ],
)
def test_what_is_no_table_is_named(tmp_path, content, encoding, message):
    (tmp_path / "t").write_bytes(content)
    with pytest.raises((DataError, ConfigError), match=message) as error:
        text.table(tmp_path / "t", encoding=encoding)
    assert "\n" not in str(error.value)


def test_archives_are_told_apart(tmp_path):
    for member, message in (
        ("a.npy", "an .npz archive of a"),
        ("x/data.pkl", "a file of PyTorch"),
        ("a.csv", "a zip archive"),
    ):
        with zipfile.ZipFile(tmp_path / "t", "w") as archive:
            archive.writestr(member, "x")
        assert text.disguise(tmp_path / "t").startswith(message)
    for plain in (b"PAR1-7\n", b"BZh\n", b"Rar!\n", b"PK\n"):  # ids may begin like archives do
        (tmp_path / "t").write_bytes(plain)
        assert text.lines(tmp_path / "t") == [plain.decode().strip()]


def test_lines_and_ids(tmp_path):
    (tmp_path / "t").write_bytes("\ufeffa\r\n\r\n b \u2028c".encode())
    assert text.lines(tmp_path / "t") == ["a", "", " b \u2028c"]
    (tmp_path / "t").write_bytes(b"\xff")
    with pytest.raises(DataError, match="save it as UTF-8"):
        text.lines(tmp_path / "t")
    assert all(map(text.is_id, ODD)) and not any(map(text.is_id, ["", "a\nb", "a\r", "\0", "\ud800"]))


def test_skipped_lines_are_counted_and_shown(tmp_path):
    bad = text.BadLines(tmp_path / "x.csv", 5)
    bad.add(3, "no user", ",i1")
    bad.add(7, "broken quotes", "", 4)
    assert bad.told() == ["x.csv: 5 lines skipped", "  line 3: no user: ',i1'", "  line 7 to 10: broken quotes"]
    with pytest.raises(DataError, match=r"x\.csv, line 3, 7, 20: no item: 'u,'; 6 such lines, --max-bad=5 allowed"):
        bad.add(20, "no item", "u,")
