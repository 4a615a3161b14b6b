"""Tables as text (`.csv`, `.tsv`) with a header: each row is a document, the text of one column.

In a `.csv`, a quoted cell may hold delimiters and ends of lines. In a `.tsv` each line is a row and a quotation mark is
a letter like any other, as in the media type text/tab-separated-values.
"""

import csv
import io
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from nar_scale.data.formats.documents import Document, Documents, NoTextError, Piece, SkippedDocument, quoted_names
from nar_scale.data.formats.text.decompression import open_content, split_name
from nar_scale.errors import DataError

REMEDY = "correct it, exclude it, or read it as it is with --as-text"


class _TabSeparated(csv.excel_tab):
    quoting = csv.QUOTE_NONE


def split(file: Path, piece_bytes: int) -> list[Piece]:
    """Return the file as one piece: a quoted text may hold ends of lines; see `InputFormat.split`."""
    return [Piece.whole(file)]


def read(piece: Piece, text_field: str) -> Documents:
    """Yield a document for each row, its column `text_field`; see `InputFormat.read`.

    Raises:
        DataError: the file is damaged, has no such column, or a row has not as many cells as the header.
    """
    dialect = _TabSeparated if split_name(piece.file.name)[0].endswith(".tsv") else csv.excel
    with open_content(piece.file) as content, _field_limit(sys.maxsize):
        text = io.TextIOWrapper(content.file, encoding="utf-8-sig", newline="")
        rows = csv.reader(text, dialect, strict=True)
        try:
            header = next(rows, None)
            if header is None:
                yield SkippedDocument(content.taken(), "empty")
                return
            column = _column(piece.file, header, text_field)
            for row in filter(None, rows):
                if len(row) != len(header):
                    raise DataError(
                        f"input {piece.file}, row that ends in line {rows.line_num}: {len(row)} cells under a header "
                        f"of {len(header)}; {REMEDY}"
                    )
                size = content.taken()
                yield Document(row[column].encode(), None, size) if row[column] else SkippedDocument(size, "empty")
        except csv.Error as error:
            raise DataError(f"input {piece.file}, line {rows.line_num}: {error}; {REMEDY}") from None
        except UnicodeDecodeError:  # in what is read ahead
            raise DataError(f"input {piece.file}, after line {rows.line_num}: not UTF-8; {REMEDY}") from None
        finally:
            text.detach()


def _column(file: Path, header: list[str], name: str) -> int:
    if header.count(name) != 1:
        raise (DataError if name in header else NoTextError)(
            f"input {file} has {header.count(name) or 'no'} column {name!r} among {quoted_names(header)}; name one as "
            "the text field, exclude the file, or read it as it is with --as-text"
        )
    return header.index(name)


@contextmanager
def _field_limit(most: int) -> Iterator[None]:
    before = csv.field_size_limit(most)
    try:
        yield
    finally:
        csv.field_size_limit(before)
