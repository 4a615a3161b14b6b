"""Text files: the whole file is one document."""

import io
from pathlib import Path
from typing import BinaryIO

from nar_scale.data.formats.documents import (
    BUFFER_BYTES,
    Document,
    Documents,
    Piece,
    SkippedDocument,
    input_errors,
    raw_document,
)


def split(file: Path, piece_bytes: int) -> list[Piece]:
    """Return the file as one piece; see `InputFormat.split`."""
    return [Piece.whole(file)]


def read(piece: Piece, text_field: str) -> Documents:
    """Yield the one document of the file; see `InputFormat.read`."""
    with input_errors(piece.file), open(piece.file, "rb") as file:
        yield read_stream(file, piece.size)


def read_stream(file: BinaryIO, size: int) -> Document | SkippedDocument:
    """Return the rest of a file as one document that took `size` bytes of input."""
    text = io.BytesIO()
    while block := file.read(BUFFER_BYTES):
        if b"\0" in block:  # the rest of a large binary file need not be read
            return SkippedDocument(size, "binary")
        text.write(block)
    return raw_document(text.getvalue(), size)
