"""What is read from an input file: pieces of the file, the documents in them, and the errors that reading raises."""

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from nar_scale.errors import DataError, UserError
from nar_scale.text import printable

DEFAULT_TEXT_FIELD = "text"
BUFFER_BYTES = 1 << 20
NAMES_IN_MESSAGES = 20


@dataclass(frozen=True)
class Piece:
    """A part of an input file that one process reads.

    Attributes:
        file: the input file.
        start: where the part begins: a byte of lines of JSON, a row group of a `.parquet`, a document of a `.npy`, and
            0 for all other formats, which are read whole.
        end: where it ends, in the same unit, exclusive.
        size: bytes of input that it stands for, for progress bars and to balance the work.
    """

    file: Path
    start: int
    end: int
    size: int

    @classmethod
    def whole(cls, file: Path) -> "Piece":
        """Return a whole file as one piece.

        Raises:
            DataError: the file cannot be read.
        """
        with input_errors(file):
            size = file.stat().st_size
        return cls(file, 0, size, size)


class Document(NamedTuple):
    """One document as it is stored: text or tokens.

    Attributes:
        text: UTF-8 by convention, not checked where the file is text itself; None if the document is tokens.
        tokens: integers `[n]`, each at least 0, of the type in which they are stored, possibly read-only; None if the
            document is text.
        size: bytes of input that it took, for progress; approximate where the input is compressed.
        label: the class of a document of tokens, at least 0; None if it has none.
    """

    text: bytes | None
    tokens: np.ndarray | None
    size: int
    label: int | None = None


class SkippedDocument(NamedTuple):
    """A document that is left out.

    Attributes:
        size: bytes of input that it took.
        reason: "binary", "empty", "no text", or a kind of tar member such as "hard link".
        name: of the sample or member of a tar; empty elsewhere.
    """

    size: int
    reason: str
    name: str = ""


class NoTextError(DataError):
    """A table has no column, or an object of JSON no key, for the text."""


Documents = Iterator[Document | SkippedDocument]


def raw_document(content: bytes, size: int) -> Document | SkippedDocument:
    """Return text that is stored as it is; content with a NUL byte is taken for binary and skipped."""
    if not content or b"\0" in content:
        return SkippedDocument(size, "binary" if content else "empty")
    return Document(content, None, size)


def cut_document(document: Document, fraction: float) -> tuple[Document, Document | None]:
    """Cut off the last part of a document: text at the end of a line near the place, or else between two characters.

    Args:
        document: of text or tokens.
        fraction: of the document that is cut off, in (0, 1).

    Returns:
        The first and the last part; None for the last part of what is too short to be cut.
    """
    if document.tokens is not None:
        tokens = document.tokens
        place = _place(len(tokens), fraction)
        parts = [document._replace(tokens=part) for part in (tokens[:place], tokens[place:])]
    else:
        text = document.text or b""
        place = _line_or_letter(text, _place(len(text), fraction))
        parts = [document._replace(text=part) for part in (text[:place], text[place:])]
    if place < 1:
        return document, None
    first_size = round(document.size * (1 - fraction))
    return parts[0]._replace(size=first_size), parts[1]._replace(size=document.size - first_size)


def _place(length: int, fraction: float) -> int:
    return length - max(1, round(length * fraction))


def _line_or_letter(text: bytes, place: int) -> int:
    """The begin of a line near a place, or else of the letter there; less than 1 if there is none before the place."""
    line = text.rfind(b"\n", max(0, 2 * place - len(text)), max(0, place)) + 1
    if line:
        return line
    while place > 0 and text[place] & 0xC0 == 0x80:  # the middle of a character in UTF-8
        place -= 1
    return place


def split_size(size: int, documents: int) -> Iterator[int]:
    """Yield the bytes of input that each of some documents of about the same length stands for; the sum is `size`."""
    return (size * (i + 1) // documents - size * i // documents for i in range(documents))


@contextmanager
def input_errors(file: Path, *damage: type[Exception]) -> Iterator[None]:
    """Turn what reading an input file raises into a `DataError` that names the file.

    Args:
        file: the input file.
        damage: the exceptions by which a library reports that the content of the file is damaged.

    Raises:
        DataError: in place of an `OSError` or one of `damage`.
    """
    errors: tuple[type[Exception], ...] = (OSError, *damage)
    try:
        yield
    except UserError:
        raise
    except errors as error:
        # decompressors and pyarrow raise OSError without a number for damaged content
        if isinstance(error, OSError) and error.errno is not None:
            reason = os.strerror(error.errno)
            raise DataError(f"cannot read {file}: {reason}; make it readable or exclude it") from error
        reason = f"is truncated or damaged ({one_line(error)})"
        raise DataError(f"input {file} {reason}; copy it again or exclude it") from error


def optional_package(file: Path, error: ImportError) -> UserError:
    """Return the error for an input file that needs a package which is not installed."""
    return UserError(f"input {file} needs an optional package ({error.name}): pip install 'nar_scale[inputs]'")


def one_line(error: Exception) -> str:
    """Return the message of an error in one printable line, or the name of its type if it has no message."""
    return printable(" ".join(str(error).split())[:200]) or type(error).__name__


def quoted_names(names: Iterable[str]) -> str:
    """Return names for a message, in quotes; of many names only the first, and how many more there are."""
    quoted = [repr(name)[:80] for name in names]
    more = [f"{len(quoted) - NAMES_IN_MESSAGES} more"] if len(quoted) > NAMES_IN_MESSAGES else []
    return ", ".join(quoted[:NAMES_IN_MESSAGES] + more) or "nothing"
