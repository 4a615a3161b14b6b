"""Arrays of tokens (`.npy`): each row of an array `[rows, ...]` is a document, an array `[n]` is one document."""

from pathlib import Path

import numpy as np

from nar_scale.data.formats.documents import Document, Documents, Piece, SkippedDocument, input_errors, split_size
from nar_scale.data.formats.npy import MAX_HEADER_BYTES
from nar_scale.errors import DataError


def split(file: Path, piece_bytes: int) -> list[Piece]:
    """Return pieces of whole rows, each of about `piece_bytes` bytes; one piece for an array `[n]`.

    Raises:
        DataError: the file cannot be read, is damaged, or does not hold integers.
    """
    rows = _open(file)
    row_bytes = rows.nbytes // max(len(rows), 1)
    step = max(piece_bytes // max(row_bytes, 1), 1)
    return [
        Piece(file, start, min(start + step, len(rows)), (min(start + step, len(rows)) - start) * row_bytes)
        for start in range(0, len(rows), step)
    ]


def read(piece: Piece, text_field: str) -> Documents:
    """Yield a document for each row, without reading the array into memory; see `InputFormat.read`.

    Raises:
        DataError: the file has fewer rows than when it was cut, or a token is negative.
    """
    rows = _open(piece.file)
    if piece.end > len(rows):
        raise DataError(f"input {piece.file} has {len(rows)} rows, fewer than it had; wait until it is complete")
    sizes = split_size(piece.size, piece.end - piece.start)
    for number, size in zip(range(piece.start, piece.end), sizes):
        yield token_document(rows[number], size, None, f"input {piece.file}, row {number}")


def token_document(tokens: np.ndarray, size: int, label: int | None, location: str) -> Document | SkippedDocument:
    """Return an array of integers as a document, flattened row by row.

    Args:
        tokens: integers of any shape.
        size: bytes of input that it took.
        label: its class, if it has one.
        location: where the array is, for messages.

    Raises:
        DataError: a token is negative.
    """
    if tokens.size == 0:
        return SkippedDocument(size, "empty")
    if tokens.dtype.kind == "i" and tokens.min() < 0:
        raise DataError(f"{location}: token {tokens.min()} is negative; write it again with tokens >= 0")
    return Document(None, tokens.reshape(-1), size, label)


def token_rows(array: np.ndarray, location: str) -> np.ndarray:
    """Return an array `[rows, ...]` as it is and an array `[n]` as one row, `[1, n]`.

    Raises:
        DataError: it does not hold integers, or has no dimension.
    """
    check_tokens(array, location)
    return array if array.ndim > 1 else array[np.newaxis]


def check_tokens(array: np.ndarray, location: str) -> None:
    """Raise a `DataError` that names `location` unless an array holds integers and has at least one dimension."""
    if array.dtype.kind not in "iu":
        raise DataError(
            f"{location} holds {dtype_name(array)}, not integer tokens; write it again with an integer dtype"
        )
    if array.ndim == 0:
        raise DataError(
            f"{location} holds a single number, not a row of tokens; write it again with one dimension or more"
        )


def dtype_name(array: np.ndarray) -> str:
    """Return the dtype of an array for a message, cut to 80 letters: that of records names all their fields."""
    return str(array.dtype)[:80]


def _open(file: Path) -> np.ndarray:
    """The array `[documents, ...]`, mapped into memory."""
    with input_errors(file, Exception):  # numpy lets all kinds of errors through for a damaged header
        with open(file, "rb") as stream:
            start = stream.read(12)
        if start[6:7] > b"\1" and int.from_bytes(start[8:], "little") > MAX_HEADER_BYTES:
            raise ValueError("its header is too long")  # numpy would ask for that much memory
        array = np.lib.format.open_memmap(file, mode="r")
    return token_rows(np.asarray(array), f"input {file}")
