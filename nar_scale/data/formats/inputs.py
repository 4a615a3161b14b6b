"""Reading input files of all formats as documents, in pieces for different processes.

The documents do not depend on how a file is cut into pieces.
"""

from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Protocol, cast

from nar_scale.data.formats import archives, arrays, parquet, webdataset
from nar_scale.data.formats.documents import DEFAULT_TEXT_FIELD, Documents, Piece
from nar_scale.data.formats.text import detection, plain_text
from nar_scale.data.formats.text.decompression import SUFFIXES, split_name
from nar_scale.errors import DataError


class InputFormat(Protocol):
    """How files of one format are read: what each module in `FORMATS` offers."""

    def split(self, file: Path, piece_bytes: int) -> list[Piece]:
        """Cut a file into pieces of about `piece_bytes` bytes; errors as in `split_into_pieces`."""

    def read(self, piece: Piece, text_field: str) -> Documents:
        """Yield the documents of a piece; arguments and errors as in `read_piece`."""


# by the end of the file's name, in lower case; any other file is text of some format, see `detection`
FORMATS: dict[str, InputFormat] = {
    ".parquet": parquet,
    ".tar": webdataset,
    ".npy": arrays,
    ".npz": archives,
}
TOKEN_FORMATS = (arrays, archives)
CORPUS_SUFFIXES = (*FORMATS, *detection.SUFFIXES, ".json", ".txt")
# what holds text that is not read
UNSUPPORTED = {
    **dict.fromkeys((".tgz", ".tbz", ".tbz2", ".txz", ".tzst"), "compressed tar"),
    **dict.fromkeys((".zip", ".7z", ".rar", ".lz4", ".br", ".lzma", ".z"), "archive"),
    **dict.fromkeys((".arrow", ".feather", ".orc", ".avro", ".xlsx"), "table of another format"),
    **dict.fromkeys((".pdf", ".docx", ".epub"), "document of another format"),
}


def split_into_pieces(file: Path, piece_bytes: int, as_text: Sequence[str] = ()) -> list[Piece]:
    """Cut an input file into pieces whose documents, one piece after the other, are those of the file in order.

    Args:
        file: the name under which it was given says which format it has, see `read_piece`: lines of JSON, `.parquet`
            and `.npy` are cut; compressed files and all others are one piece.
        piece_bytes: size of a piece in bytes, at least 1; a piece is larger by what completes its last line, row or
            row group.
        as_text: globs on the names of files that are one document of text, whatever they look like.

    Returns:
        The pieces in order; none for a file that has no lines, rows or row groups.

    Raises:
        DataError: the file cannot be read, is damaged, of a kind that is not read, or not what its suffix says.
        UserError: an optional package is needed and not installed.
    """
    return format_of(file, as_text).split(file, piece_bytes)


def read_piece(piece: Piece, text_field: str = DEFAULT_TEXT_FIELD, as_text: Sequence[str] = ()) -> Documents:
    """Read the documents of a piece one by one.

    - `.jsonl`, `.ndjson`, `.jsonlines`: one for each line that is not blank, a JSON object.
    - `.json`, and files of other names that begin like JSON: the same, or one for each object of an array.
    - `.csv`, `.tsv`: one for each row below the header; a `.tsv` has no quoting.
    - `.parquet`: one for each row.
    - `.tar`: one for each sample, in the layout of WebDataset.
    - `.npy`: one for each row of an array `[rows, ...]`, flattened row by row; an array `[n]` is one document.
    - `.npz`: the same, of its only array or that named tokens, images or x, with labels if there are any.
    - anything else: the whole file is one document of text.

    JSON, tables and text are decompressed if `.gz`, `.gzip`, `.bz2`, `.xz`, `.zst` or `.zstd` follows.

    Args:
        piece: from `split_into_pieces`, of a file that has not changed since.
        text_field: the key of an object, the column of a table, the field of a `.tar` (see `webdataset.read`).
        as_text: see `split_into_pieces`.

    Yields:
        Documents, and a `SkippedDocument` for each that is empty, binary (a NUL byte in a raw file or member) or
        without text.

    Raises:
        DataError: the file cannot be read or is damaged, or a document is malformed.
        UserError: an optional package is needed and not installed.
    """
    return format_of(piece.file, as_text).read(piece, text_field)


def is_token_file(file: Path) -> bool:
    """Return whether all documents of a file are tokens by its format; those of a tar may be tokens or text."""
    return _format_by_name(file) in TOKEN_FORMATS


def unsupported_kind(file: Path) -> str | None:
    """Return which kind of file that is not read a name tells, in a few words; None if there is no such kind."""
    name, compression = split_name(file.name)
    if compression is not None:
        inner = next((suffix for suffix in FORMATS if name.endswith(suffix)), None)
        return inner and f"compressed {inner.removeprefix('.')}"
    return next((kind for suffix, kind in UNSUPPORTED.items() if name.endswith(suffix)), None)


def tells_format(file: Path) -> bool:
    """Return whether the suffix of a file tells how to read it."""
    return file.suffix.lower() in (*CORPUS_SUFFIXES, *SUFFIXES)


def format_of(file: Path, as_text: Sequence[str]) -> InputFormat:
    """Return the module that reads a file; arguments and errors as in `split_into_pieces`."""
    if any(fnmatchcase(file.name, pattern) for pattern in as_text):
        return plain_text
    if kind := unsupported_kind(file):
        raise DataError(
            f"input {file} is of a kind that is not read ({kind}); unpack or convert it to .txt, .jsonl, .parquet or "
            ".tar, or exclude it"
        )
    return _format_by_name(file) or cast(InputFormat, detection.text_format(file))


def _format_by_name(file: Path) -> InputFormat | None:
    name = file.name.lower()
    return next((format for suffix, format in FORMATS.items() if name.endswith(suffix)), None)
