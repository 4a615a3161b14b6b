"""Lines of JSON (`.jsonl`, `.ndjson`, `.jsonlines`): each line that is not blank is an object with one document."""

import codecs
from pathlib import Path
from typing import BinaryIO

from nar_scale.data.formats.documents import (
    BUFFER_BYTES,
    Document,
    Documents,
    Piece,
    SkippedDocument,
    input_errors,
)
from nar_scale.data.formats.text.decompression import open_content, split_name
from nar_scale.data.formats.text.json_object import json_document, remedy_for
from nar_scale.errors import DataError


def split(file: Path, piece_bytes: int) -> list[Piece]:
    """Return pieces of `piece_bytes` bytes, one if compressed; a line belongs to the piece in which it starts."""
    whole = Piece.whole(file)
    if split_name(file.name)[1] is not None:
        return [whole]
    size = whole.size
    starts = range(0, size, piece_bytes)
    return [Piece(file, start, min(start + piece_bytes, size), min(piece_bytes, size - start)) for start in starts]


def read(piece: Piece, text_field: str) -> Documents:
    """Yield the document under the key `text_field` of each line; see `InputFormat.read`.

    Raises:
        DataError: the file is damaged, or shorter than when it was cut, or a line is not such an object.
    """
    if split_name(piece.file.name)[1] is not None:
        yield from _read_compressed(piece.file, text_field)
        return
    with input_errors(piece.file), open(piece.file, "rb") as file:
        position = _seek_first_line(file, piece)
        while position < piece.end:
            line = file.readline()
            if not line:
                raise DataError(
                    f"input {piece.file} ends at byte {position}, earlier than it did; wait until it is complete"
                )
            if document := _line_document(piece.file, line, position, text_field, len(line)):
                yield document
            position += len(line)


def _read_compressed(path: Path, text_field: str) -> Documents:
    with open_content(path) as content:
        position = 0
        for line in content.file:
            if document := _line_document(path, line, position, text_field, content.taken()):
                yield document
            position += len(line)


def _line_document(
    file: Path, line: bytes, position: int, text_field: str, size: int
) -> Document | SkippedDocument | None:
    """The document in a line that starts at a byte of the file, or None for a blank line."""
    if position == 0:
        line = line.removeprefix(codecs.BOM_UTF8)
    if line.isspace() or not line:
        return None
    return json_document(line, text_field, size, f"input {file}, line at byte {position}", remedy_for(file))


def _seek_first_line(file: BinaryIO, piece: Piece) -> int:
    """Go to the first line that starts in the piece and return its position, the end or later if there is none."""
    if piece.start == 0:
        return 0
    # a line starts here if the byte before ends one
    position = file.seek(piece.start - 1)
    while position < piece.end and (part := file.readline(BUFFER_BYTES)):
        position += len(part)
        if part.endswith(b"\n"):
            break
    return position
