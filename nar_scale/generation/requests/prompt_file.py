"""A file of prompts of any size: where its lines begin is found out once, and lines are read when they are due."""

from __future__ import annotations

import codecs
import hashlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np

from nar_scale.errors import UserError
from nar_scale.generation.requests.request import Request, is_blank, parse_line

_CHUNK_BYTES = 1 << 22
_LINE_FEED = 10
# a line that begins with another byte is not blank
_MAY_BE_BLANK = np.zeros(256, dtype=bool)
_MAY_BE_BLANK[list(b" \t\r\x0b\x0c\n" + codecs.BOM_UTF8[:1])] = True


class PromptFile:
    """Prompts, one JSON object a line, as `read_requests` reads them.

    It takes 16 bytes of memory a prompt.

    Args:
        path: of the file.

    Attributes:
        digest: of the content of the file.

    Raises:
        UserError: the file cannot be read, or holds no prompts.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        digest = hashlib.blake2b(digest_size=16)
        try:
            with open(path, "rb") as file:
                self._version = _version(file)
                blocks = list(_line_starts(file, digest.update))
        except OSError as error:
            raise self._cannot_read(error) from None
        self._starts = np.concatenate([starts for starts, _ in blocks])
        self._lines = np.concatenate([lines for _, lines in blocks])  # their numbers, from 1
        self.digest = digest.hexdigest()
        if not len(self._starts):
            raise UserError(f"{path} holds no prompts")

    @property
    def count(self) -> int:
        """Number of prompts."""
        return len(self._starts)

    def read(self, start: int, stop: int) -> list[Request]:
        """The requests from number `start` to `stop`, without that.

        Raises:
            UserError: the file cannot be read, or has changed.
        """
        if start >= min(stop, self.count):
            return []
        first, end = int(self._starts[start]), None if stop >= self.count else int(self._starts[stop])
        try:
            with open(self._path, "rb") as file:
                if _version(file) != self._version:
                    raise UserError(f"the prompts {self._path} have changed meanwhile; start the worker again")
                file.seek(first)
                content = file.read() if end is None else file.read(end - first)
        except OSError as error:
            raise self._cannot_read(error) from None
        lines = (line for line in enumerate(content.split(b"\n"), int(self._lines[start])) if not is_blank(line[1]))
        return [parse_line(line, number, self._path, place) for number, (place, line) in enumerate(lines, start)]

    def _cannot_read(self, error: OSError) -> UserError:
        return UserError(f"cannot read the prompts {self._path}: {error.strerror}")


def _version(file: BinaryIO) -> tuple[int, int]:
    status = os.fstat(file.fileno())
    return status.st_size, status.st_mtime_ns


def _line_starts(file: BinaryIO, update: Callable[[bytes], None]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Where the lines that are not blank begin, and their numbers from 1, of one piece of the file after the other."""
    offset, line, rest = 0, 1, b""
    while True:
        chunk = file.read(_CHUNK_BYTES)
        update(chunk)
        content = rest + (chunk or b"\n")  # the last line may have no line feed
        whole = content.rfind(b"\n") + 1
        content, rest = content[:whole], content[whole:]
        array = np.frombuffer(content, dtype=np.uint8)
        ends = np.flatnonzero(array == _LINE_FEED)
        starts = np.concatenate([[0], ends[:-1] + 1]) if len(ends) else ends
        filled = ~_MAY_BE_BLANK[array[starts]]
        for doubtful in np.flatnonzero(~filled & (starts < ends)):
            filled[doubtful] = not is_blank(content[starts[doubtful] : ends[doubtful]])
        yield starts[filled] + offset, np.flatnonzero(filled) + line
        offset, line = offset + whole, line + len(ends)
        if not chunk:
            return
