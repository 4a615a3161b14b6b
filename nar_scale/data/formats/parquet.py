"""Parquet files: each row is a document, the text of one column. Needs pyarrow."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from nar_scale.data.formats.documents import (
    BUFFER_BYTES,
    Document,
    Documents,
    NoTextError,
    Piece,
    SkippedDocument,
    input_errors,
    optional_package,
    quoted_names,
    raw_document,
    split_size,
)
from nar_scale.errors import DataError

ROWS_PER_BATCH = 128
STRING_TYPES = ("string", "large_string", "string_view")
BINARY_TYPES = ("binary", "large_binary", "binary_view")


def split(file: Path, piece_bytes: int) -> list[Piece]:
    """Return pieces of whole row groups, each of `piece_bytes` bytes or a little more.

    Raises:
        DataError: the file cannot be read or is damaged.
        UserError: pyarrow is not installed.
    """
    pieces = []
    start = position = group_end = weight = 0
    with _open(file) as parquet:
        metadata = parquet.metadata
        weights = [metadata.row_group(group).total_byte_size for group in range(metadata.num_row_groups)]
        file_size = file.stat().st_size
    for group, group_weight in enumerate(weights):
        # The weights are of uncompressed data. To ask for compressed sizes, column by column, is slow, and pyarrow
        # ends the process if their statistics are damaged.
        weight += group_weight
        group_end = file_size * weight // max(sum(weights), 1)
        if group_end - position >= piece_bytes or group == len(weights) - 1:
            pieces.append(Piece(file, start, group + 1, group_end - position))
            start, position = group + 1, group_end
    return pieces


def read(piece: Piece, text_field: str) -> Documents:
    """Yield a document for each row of the column `text_field`; see `InputFormat.read`.

    Raises:
        DataError: the file is damaged, or the column is missing or holds no text.
        UserError: pyarrow is not installed.
    """
    with _open(piece.file) as parquet:
        import pyarrow

        is_string = _is_string_column(piece.file, parquet.schema_arrow, text_field)
        groups = range(piece.start, piece.end)
        rows = sum(parquet.metadata.row_group(group).num_rows for group in groups)
        sizes = split_size(piece.size, rows)
        for batch in parquet.iter_batches(ROWS_PER_BATCH, groups, [text_field], use_threads=False):
            column = batch.column(0)
            column = column.dictionary_decode() if pyarrow.types.is_dictionary(column.type) else column
            for text, size in zip(column.cast(pyarrow.large_binary()).to_pylist(), sizes):
                if text is None:
                    yield SkippedDocument(size, "no text")
                elif text and is_string:
                    yield Document(text, None, size)
                else:
                    yield raw_document(text, size)


def _is_string_column(file: Path, schema: Any, name: str) -> bool:
    """Return whether a column holds strings, which cannot be binary, or else bytes."""
    import pyarrow

    if name not in schema.names:
        raise NoTextError(
            f"input {file} has no column {name!r}, only {quoted_names(schema.names)}; name one of these as "
            "the text field"
        )
    kind = schema.field(name).type
    kind = kind.value_type if pyarrow.types.is_dictionary(kind) else kind
    if str(kind) not in (*STRING_TYPES, *BINARY_TYPES):
        tokens = ": token ids are read from .npy, .npz and tokens.npy in a .tar" if pyarrow.types.is_list(kind) else ""
        raise DataError(f"input {file}: column {name!r} is {kind}, not text{tokens}; name another text field")
    return str(kind) in STRING_TYPES


@contextmanager
def _open(file: Path) -> Iterator[Any]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise optional_package(file, error) from None
    # without these two options a whole column of a row group is read into memory
    with (
        input_errors(file, pyarrow.ArrowException, ValueError, IndexError, MemoryError),
        open(file, "rb") as stored,  # pyarrow takes no name that is not UTF-8
        pyarrow.parquet.ParquetFile(stored, buffer_size=BUFFER_BYTES, pre_buffer=False) as parquet,
    ):
        yield parquet
