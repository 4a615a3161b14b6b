"""Telling whether one input file is a copy of another in another format."""

from collections.abc import Sequence
from itertools import islice
from pathlib import Path

import numpy as np

from nar_scale.data.formats.documents import Document, NoTextError
from nar_scale.data.formats.inputs import CORPUS_SUFFIXES, read_piece, split_into_pieces
from nar_scale.data.formats.text.decompression import split_name

DOCUMENTS = 1000
PIECE_BYTES = 1 << 24


def stem(file: Path) -> str:
    """Return the name of a file without the suffixes of its compression and of a format for corpora.

    Files in one folder that share it may be copies of each other: img2dataset leaves the captions of `00000.tar` in
    `00000.parquet` as well.
    """
    name, _ = split_name(file.name)
    suffix = next((suffix for suffix in CORPUS_SUFFIXES if name.endswith(suffix)), "")
    return name.removesuffix(suffix)


def are_copies(first: Path, second: Path, text_field: str, as_text: Sequence[str]) -> bool:
    """Return whether two files share at least half of their documents, as far as their first thousand tell.

    Args:
        first: an input file.
        second: another one.
        text_field: see `read_piece`.
        as_text: see `split_into_pieces`.

    Raises:
        DataError: a file cannot be read or is damaged, or a document is malformed.
        UserError: an optional package is needed and not installed.
    """
    documents = [_first_documents(file, text_field, as_text) for file in (first, second)]
    fewer = min(map(len, documents))
    return fewer > 0 and 2 * len(documents[0] & documents[1]) >= fewer


def _first_documents(file: Path, text_field: str, as_text: Sequence[str]) -> set[bytes]:
    found = (
        document
        for piece in split_into_pieces(file, PIECE_BYTES, as_text)
        for document in read_piece(piece, text_field, as_text)
        if isinstance(document, Document)
    )
    try:
        return {
            document.text.strip() if document.text is not None else np.asarray(document.tokens, dtype="<i8").tobytes()
            for document in islice(found, DOCUMENTS)
        }
    except NoTextError:  # to be skipped or refused later
        return set()
