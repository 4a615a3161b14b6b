"""Reading input files of all formats as documents, in pieces for different processes.

The documents do not depend on how a file is cut into pieces.
"""

from pathlib import Path
from typing import Protocol

from nar_scale.data.formats import archives, arrays, compressed, jsonl, parquet, plain_text, webdataset
from nar_scale.data.formats.documents import DEFAULT_TEXT_FIELD, Documents, Piece


class InputFormat(Protocol):
    """How files of one format are read: what each module in `FORMATS` offers."""

    def split(self, file: Path, piece_bytes: int) -> list[Piece]:
        """Cut a file into pieces of about `piece_bytes` bytes; errors as in `split_into_pieces`."""

    def read(self, piece: Piece, text_field: str) -> Documents:
        """Yield the documents of a piece; arguments and errors as in `read_piece`."""


# by the end of the file's name, in lower case; any other file is plain text
FORMATS: dict[str, InputFormat] = {
    ".jsonl": jsonl,
    ".ndjson": jsonl,
    ".gz": compressed,
    ".zst": compressed,
    ".parquet": parquet,
    ".tar": webdataset,
    ".npy": arrays,
    ".npz": archives,
}
TOKEN_FORMATS = (arrays, archives)


def split_into_pieces(file: Path, piece_bytes: int) -> list[Piece]:
    """Cut an input file into pieces whose documents, one piece after the other, are those of the file in order.

    Args:
        file: the suffix of its name, in whatever case, says which format it has: `.jsonl`, `.ndjson`, `.parquet` and
            `.npy` are cut; `.tar`, `.npz`, `.gz`, `.zst` and all other files are one piece.
        piece_bytes: size of a piece in bytes, at least 1; a piece is larger by what completes its last line, row or
            row group.

    Returns:
        The pieces in order; none for a file that has no lines, rows or row groups.

    Raises:
        DataError: the file cannot be read, is damaged or does not hold what its suffix says.
        UserError: an optional package is needed and not installed.
    """
    return _format_of(file).split(file, piece_bytes)


def read_piece(piece: Piece, text_field: str = DEFAULT_TEXT_FIELD) -> Documents:
    """Read the documents of a piece one by one.

    - `.jsonl`, `.ndjson`, also followed by `.gz` or `.zst`: one for each line that is not blank, a JSON object.
    - `.parquet`: one for each row.
    - `.tar`: one for each sample, in the layout of WebDataset.
    - `.npy`: one for each row of an array `[rows, ...]`, flattened row by row; an array `[n]` is one document.
    - `.npz`: the same, of its only array or that named tokens, images or x, with labels if there are any.
    - anything else: the whole file is one document of text, decompressed if it ends in `.gz` or `.zst`.

    Args:
        piece: from `split_into_pieces`, of a file that has not changed since.
        text_field: the key of a line, the column of a `.parquet`, the field of a `.tar` (see `webdataset.read`).

    Yields:
        Documents, and a `SkippedDocument` for each that is empty, binary (a NUL byte in a raw file or member) or
        without text.

    Raises:
        DataError: the file cannot be read or is damaged, or a document is malformed.
        UserError: an optional package is needed and not installed.
    """
    return _format_of(piece.file).read(piece, text_field)


def is_token_file(file: Path) -> bool:
    """Return whether all documents of a file are tokens by its format; those of a tar may be tokens or text."""
    return _format_of(file) in TOKEN_FORMATS


def _format_of(file: Path) -> InputFormat:
    name = file.name.lower()
    return next((format for suffix, format in FORMATS.items() if name.endswith(suffix)), plain_text)
