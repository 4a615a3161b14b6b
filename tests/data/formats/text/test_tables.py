import csv
import io

import pytest

from tests.data.formats.reading import COMPRESSORS, assert_refused, read, reasons, texts, write

LINES = ["one", '"', '"opens', 'closes"', 'with "quotes", commas', '"all" of it', "", "ü\u2028\x85", "x" * 500_000]
ROWS = ["one", 'with "quotes", commas', "lines\nand\r\nmore", "", "ü\u2028\x85", "x" * 500_000]


def quoted(rows):
    """A table of commas, whose cells are quoted where they have to be."""
    file = io.StringIO()
    csv.writer(file).writerows([("id", "text"), *enumerate(rows)])
    return file.getvalue().encode()


def tabs(rows):
    """A table of tabs, in which nothing is quoted."""
    return "".join(f"{number}\t{text}\n" for number, text in [("id", "text"), *enumerate(rows)]).encode()


@pytest.mark.parametrize("suffix", ["", *COMPRESSORS])
@pytest.mark.parametrize(("name", "table", "rows"), [("a.csv", quoted, ROWS), ("a.TSV", tabs, LINES)])
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_each_row_is_a_document(tmp_path, name, table, rows, suffix, mark):
    file = write(tmp_path / (name + suffix), COMPRESSORS.get(suffix, bytes)(mark + table(rows)))
    sources = read(file, 10)
    assert texts(sources) == [row.encode() for row in rows if row]
    assert reasons(sources) == ["empty"]
    assert texts(read(file, text_field="id")) == [b"%d" % number for number in range(len(rows))]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"1,2,3\n4,5,6\n", "no column 'text' among '1', '2', '3'"),
        (b"text,a,text\n", "2 column 'text'"),
        (b"text,b\na,1\nb\n", "line 3: 1 cells"),
        (b"text,b\na,1\nb,1,2\n", "line 3: 3 cells"),
        (b'text,b\n"never closed,1\n', "unexpected end"),
        (b'text,b\n"closed"too early,1\n', "expected after"),
        (b'text,b\na,1\n"closed"too early,1\n', "line 3: "),
        (b"text,b\nb\xff,1\n", "not UTF-8"),
        (b"text\na\0b\n\xff", "not UTF-8"),
    ],
)
def test_a_malformed_table_is_named(tmp_path, content, reason):
    assert_refused(write(tmp_path / "a.csv", content), reason)


def test_a_table_of_tabs_with_quoted_ends_of_lines_is_refused(tmp_path):
    assert_refused(write(tmp_path / "a.tsv", b'text\tb\n"a\nb"\t1\n'), "line 2", "1 cells")


def test_tables_without_rows_and_with_blank_lines(tmp_path):
    assert reasons(read(write(tmp_path / "a.csv", b""))) == ["empty"]
    assert read(write(tmp_path / "a.csv", b"text\n")) == []
    assert texts(read(write(tmp_path / "a.csv", b"text\n\na\n\r\nb"))) == [b"a", b"b"]
    before = csv.field_size_limit()
    read(write(tmp_path / "a.csv", b"text\na\n"))
    assert csv.field_size_limit() == before
