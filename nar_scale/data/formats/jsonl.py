"""Lines of JSON (`.jsonl`, `.ndjson`): each line that is not blank is an object with one document."""

import codecs
import json
from pathlib import Path
from typing import BinaryIO

from nar_scale.data.formats.documents import (
    BUFFER_BYTES,
    Document,
    Documents,
    Piece,
    SkippedDocument,
    input_errors,
    quoted_names,
)
from nar_scale.errors import DataError

SUFFIXES = (".jsonl", ".ndjson")


def split(file: Path, piece_bytes: int) -> list[Piece]:
    """Return pieces of `piece_bytes` bytes; a line belongs to the piece in which it starts."""
    size = Piece.whole(file).size
    starts = range(0, size, piece_bytes)
    return [Piece(file, start, min(start + piece_bytes, size), min(piece_bytes, size - start)) for start in starts]


def read(piece: Piece, text_field: str) -> Documents:
    """Yield the document under the key `text_field` of each line; see `InputFormat.read`.

    Raises:
        DataError: the file is shorter than when it was cut, or a line is not such an object.
    """
    with input_errors(piece.file), open(piece.file, "rb") as file:
        position = _seek_first_line(file, piece)
        while position < piece.end:
            line = file.readline()
            if not line:
                raise DataError(
                    f"input {piece.file} ends at byte {position}, earlier than it did; wait until it is complete"
                )
            if document := line_document(piece.file, line, position, text_field, len(line)):
                yield document
            position += len(line)


def line_document(
    file: Path, line: bytes, position: int, text_field: str, size: int
) -> Document | SkippedDocument | None:
    """Return the document in a line, or None for a blank line.

    Args:
        file: for messages.
        line: the bytes of the line, with or without its end.
        position: the byte at which the line starts, for messages; a byte order mark is dropped at 0.
        text_field: the key of the text.
        size: bytes of input that the line took.

    Raises:
        DataError: the line is not a JSON object with a string under the key.
    """
    if position == 0:
        line = line.removeprefix(codecs.BOM_UTF8)
    if line.isspace() or not line:
        return None
    return json_document(line, text_field, size, f"input {file}, line at byte {position}")


def json_document(content: bytes, key: str, size: int, location: str) -> Document | SkippedDocument:
    """Return the document under a key of a JSON object.

    Args:
        content: the object, UTF-8.
        key: the key of a string.
        size: bytes of input that the object took.
        location: where the object is, for messages.

    Raises:
        DataError: it is not JSON, is no object, or has no string under the key.
    """
    try:
        text = _json_text(content, key)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{location}: {error}; correct or remove it, or name another text field") from None
    return Document(text, None, size) if text else SkippedDocument(size, "empty")


def _json_text(content: bytes, key: str) -> bytes:
    try:
        value = json.loads(content.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise ValueError(f"not UTF-8 at its byte {error.start}") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"not valid JSON ({error.msg} {error.pos} characters in)") from None
    if not isinstance(value, dict):
        raise ValueError(f"{json.dumps(value)[:40]} is not a JSON object")
    if key not in value:
        raise ValueError(f"no key {key!r}, only {quoted_names(value)}")
    text = value[key]
    if not isinstance(text, str):
        raise ValueError(f"{key!r} is {json.dumps(text)[:40]}, not a string")
    try:
        return text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise ValueError(f"{key!r} has half a surrogate pair at its character {error.start}") from None


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
