"""Text files: the whole file, decompressed, is one document."""

import io
from pathlib import Path

from nar_scale.data.formats.documents import BUFFER_BYTES, Documents, Piece, SkippedDocument, raw_document
from nar_scale.data.formats.text.decompression import open_content


def split(file: Path, piece_bytes: int) -> list[Piece]:
    """Return the file as one piece; see `InputFormat.split`."""
    return [Piece.whole(file)]


def read(piece: Piece, text_field: str) -> Documents:
    """Yield the one document of the file; see `InputFormat.read`."""
    with open_content(piece.file) as content:
        text = io.BytesIO()
        while block := content.file.read(BUFFER_BYTES):
            if b"\0" in block:  # the rest of a large binary file need not be read
                yield SkippedDocument(piece.size, "binary")
                return
            text.write(block)
        yield raw_document(text.getvalue(), piece.size)
