"""JSON that is not in lines (`.json`): an array of objects with one document each, or objects one after the other."""

import codecs
import json
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

from nar_scale.data.formats.documents import Documents, NoTextError, Piece, SkippedDocument
from nar_scale.data.formats.text.decompression import open_content
from nar_scale.data.formats.text.json_object import LacksText, object_document, remedy_for, shown
from nar_scale.errors import DataError

BLOCK_BYTES = 1 << 16
SPACE = " \t\n\r"
DECODER = json.JSONDecoder()


def split(file: Path, piece_bytes: int) -> list[Piece]:
    """Return the file as one piece: it can only be read from its start; see `InputFormat.split`."""
    return [Piece.whole(file)]


def read(piece: Piece, text_field: str) -> Documents:
    """Yield the document under the key `text_field` of each object; see `InputFormat.read`.

    A file that is a single object without the key, such as one of settings, is skipped as "no text".

    Raises:
        DataError: the file is damaged, is not JSON, or one of several objects is without the key.
    """
    with open_content(piece.file) as content:
        number = 0
        try:
            for number, found in enumerate(_values(_Reader(content.file)), 1):
                size = content.taken()
                if not isinstance(found.value, dict):
                    number -= 1
                    raise LacksText(f"{shown(found.value)} is not a JSON object")
                if found.is_alone and text_field not in found.value:
                    yield SkippedDocument(size, "no text")
                    continue
                location = f"input {piece.file}, object {number}"
                yield object_document(found.value, text_field, size, location, remedy_for(piece.file))
        except DataError:
            raise
        except (ValueError, RecursionError) as error:
            reason = error.msg if isinstance(error, json.JSONDecodeError) else str(error)
            raise (NoTextError if isinstance(error, LacksText) else DataError)(
                f"input {piece.file} begins like JSON, but after {number} objects there is something else ({reason}); "
                "correct or exclude it, or read it as it is with --as-text"
            ) from None
        if number == 0:
            yield SkippedDocument(content.taken(), "empty")


class _Value(NamedTuple):
    value: object
    is_alone: bool  # the whole file is this value


def _values(reader: "_Reader") -> Iterator[_Value]:
    if reader.next_letter() != "[":
        first = True
        while reader.next_letter():
            value = reader.value()
            yield _Value(value, first and not reader.next_letter())
            first = False
        return
    reader.skip("[")
    if reader.next_letter() != "]":
        yield _Value(reader.value(), False)
        while reader.next_letter() == ",":
            reader.skip(",")
            yield _Value(reader.value(), False)
    reader.skip("]")
    if reader.next_letter():
        raise ValueError("there is more after the end of its array")


class _Reader:
    """Decodes the values in a stream one by one, in memory for one of them."""

    def __init__(self, file: BinaryIO):
        self._file, self._decoder = file, codecs.getincrementaldecoder("utf-8-sig")()
        self._text, self._position, self._ended = "", 0, False

    def next_letter(self) -> str:
        """The next letter that is not space, which is not taken; empty at the end."""
        while True:
            while self._position < len(self._text) and self._text[self._position] in SPACE:
                self._position += 1
            if self._position < len(self._text):
                return self._text[self._position]
            if not self._fill():
                return ""

    def skip(self, letter: str) -> None:
        if self.next_letter() != letter:
            raise ValueError(f"{letter!r} is missing")
        self._position += 1

    def value(self) -> object:
        self.next_letter()
        while True:
            try:
                value, end = DECODER.raw_decode(self._text, self._position)
            except json.JSONDecodeError:
                if self._fill():
                    continue
                raise
            if end < len(self._text) or not self._fill():  # else a number may go on
                self._position = end
                return value

    def _fill(self) -> bool:
        """Read on, as much again as there is, so that a long value is decoded few times; False at the end."""
        if self._ended:
            return False
        block = self._file.read(max(BLOCK_BYTES, len(self._text) - self._position))
        self._ended = not block
        self._text = self._text[self._position :] + self._decoder.decode(block, self._ended)
        self._position = 0
        return True
