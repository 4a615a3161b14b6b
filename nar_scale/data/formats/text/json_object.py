"""The document in a JSON object: what a line, a member of a tar or an element of an array holds."""

import json
from pathlib import Path

from nar_scale.data.formats.documents import Document, NoTextError, SkippedDocument, quoted_names
from nar_scale.data.formats.text.decompression import split_name
from nar_scale.errors import DataError

REMEDY = "correct or remove it, or name another text field"
LETTERS_IN_MESSAGES = 40
SUFFIXES = (".json", ".jsonl", ".ndjson", ".jsonlines")  # of names that say what is in the file


class LacksText(ValueError):
    """A value of JSON is no object with the key for the text."""


def says_json(file: Path) -> bool:
    """Return whether a file is JSON by its name; else it may be prose that begins like it."""
    return split_name(file.name)[0].endswith(SUFFIXES)


def remedy_for(file: Path) -> str:
    """Return what to do about a file that cannot be read as JSON."""
    if says_json(file):
        return REMEDY
    return "correct or remove it, name another text field, or read it as it is with --as-text"


def json_document(
    content: bytes, key: str, size: int, location: str, remedy: str = REMEDY
) -> Document | SkippedDocument:
    """Return the document under a key of a JSON object; null is skipped as "no text".

    Args:
        content: the object, UTF-8.
        key: the key of a string.
        size: bytes of input that the object took.
        location: where the object is, for messages.
        remedy: what to do about one that is wrong, for messages.

    Raises:
        NoTextError: it is no object, or has no such key.
        DataError: it is not JSON, or has neither a string nor null under the key.
    """
    try:
        value = json.loads(content.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise DataError(f"{location}: not UTF-8 at its byte {error.start}; {remedy}") from None
    except json.JSONDecodeError as error:
        raise DataError(f"{location}: not valid JSON ({error.msg} {error.pos} characters in); {remedy}") from None
    except (ValueError, RecursionError) as error:
        raise DataError(f"{location}: {error}; {remedy}") from None
    return object_document(value, key, size, location, remedy)


def object_document(
    value: object, key: str, size: int, location: str, remedy: str = REMEDY
) -> Document | SkippedDocument:
    """Return the document of an object that has been decoded; arguments and errors as in `json_document`."""
    try:
        text = _text_of(value, key)
    except LacksText as error:
        raise NoTextError(f"{location}: {error}; {remedy}") from None
    except (ValueError, RecursionError) as error:
        raise DataError(f"{location}: {error}; {remedy}") from None
    if text is None:
        return SkippedDocument(size, "no text")
    return Document(text, None, size) if text else SkippedDocument(size, "empty")


def _text_of(value: object, key: str) -> bytes | None:
    if not isinstance(value, dict):
        raise LacksText(f"{shown(value)} is not a JSON object")
    if key not in value:
        raise LacksText(f"no key {key!r}, only {quoted_names(value)}")
    text = value[key]
    if text is None:
        return None
    if isinstance(text, list) and text and isinstance(text[0], int):
        raise ValueError(
            f"{key!r} is {shown(text)}: token ids are not read from JSON, but from .npy, .npz and tokens.npy in a .tar"
        )
    if not isinstance(text, str):
        raise ValueError(f"{key!r} is {shown(text)}, not a string")
    try:
        return text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise ValueError(f"{key!r} has half a surrogate pair at its character {error.start}") from None


def shown(value: object) -> str:
    """Return a value for a message, as JSON cut to 40 letters."""
    return json.dumps(value)[:LETTERS_IN_MESSAGES]
