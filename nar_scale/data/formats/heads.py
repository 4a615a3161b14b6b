"""What is wrong with tables and JSON, as far as their first documents tell: found before hours of work, not after."""

import json
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from nar_scale.data.formats import parquet
from nar_scale.data.formats.documents import NoTextError, Piece
from nar_scale.data.formats.inputs import format_of
from nar_scale.data.formats.text import json_values, jsonl, tables
from nar_scale.data.formats.text.decompression import open_content
from nar_scale.data.formats.text.detection import HEAD_BYTES
from nar_scale.data.formats.text.json_object import says_json
from nar_scale.errors import DataError

DOCUMENTS = 16


class HeadFault(NamedTuple):
    """Why a file cannot be read.

    Attributes:
        file: the file.
        reason: the message of the error.
        lacks_text: it is a table or JSON of something else, without a column or key for the text.
    """

    file: Path
    reason: str
    lacks_text: bool


def head_fault(piece: Piece, text_field: str, as_text: Sequence[str]) -> HeadFault | None:
    """Read the first documents of a table or of JSON, and return what is wrong with them; None if nothing is.

    JSON that has the key anywhere in its head, and what is JSON only by its content, does not count as without text.

    Args:
        piece: the first of a file.
        text_field: see `read_piece`.
        as_text: see `split_into_pieces`.

    Raises:
        UserError: an optional package is needed and not installed.
    """
    file, module = piece.file, format_of(piece.file, as_text)
    if module not in (parquet, tables, jsonl, json_values):
        return None
    try:
        for _ in islice(module.read(piece, text_field), DOCUMENTS):
            pass
    except NoTextError as error:
        is_json = module in (jsonl, json_values)
        return HeadFault(file, str(error), not is_json or (says_json(file) and not _has_key(file, text_field)))
    except DataError as error:
        return HeadFault(file, str(error), False)
    return None


def _has_key(file: Path, key: str) -> bool:
    with open_content(file) as content:
        head = content.file.read(HEAD_BYTES)
    return any(json.dumps(key, ensure_ascii=ascii).encode("utf-8", "surrogatepass") in head for ascii in (True, False))
