"""Archives of arrays (`.npz`): one array of tokens or images, each row a document, and perhaps one of labels."""

from pathlib import Path

import numpy as np

from nar_scale.data.formats.arrays import dtype_name, token_document, token_rows
from nar_scale.data.formats.documents import Documents, Piece, input_errors, quoted_names, split_size
from nar_scale.errors import DataError

TOKEN_ARRAYS = ("tokens", "images", "x")
LABEL_ARRAYS = ("labels", "y", "cls")


def split(file: Path, piece_bytes: int) -> list[Piece]:
    """Return the archive as one piece; see `InputFormat.split`."""
    return [Piece.whole(file)]


def read(piece: Piece, text_field: str) -> Documents:
    """Yield a document for each row of the tokens, with its label if the archive has labels; see `InputFormat.read`.

    Raises:
        DataError: the file is damaged, or its arrays are not one of tokens and at most one of labels.
    """
    file = piece.file
    # numpy and zipfile let all kinds of errors through
    with input_errors(file, Exception), np.load(file, allow_pickle=False) as archive:
        tokens_name, labels_name = _array_names(file, archive.files)
        tokens = archive[tokens_name]
        labels = None if labels_name is None else archive[labels_name]
    rows = token_rows(tokens, f"input {file}, array {tokens_name!r}")
    if labels is not None:
        _check_labels(labels, len(rows), f"input {file}, array {labels_name!r}")
    for number, size in enumerate(split_size(piece.size, len(rows))):
        label = None if labels is None else int(labels[number])
        yield token_document(rows[number], size, label, f"input {file}, row {number}")


def _array_names(file: Path, names: list[str]) -> tuple[str, str | None]:
    """The names of the array of tokens and of that of labels."""
    if len(names) == 1:
        return names[0], None
    tokens = [name for name in names if name in TOKEN_ARRAYS]
    labels = [name for name in names if name in LABEL_ARRAYS]
    if len(tokens) != 1 or len(labels) != 1 or len(names) != 2:
        raise DataError(
            f"input {file} holds the arrays {quoted_names(names)}; write one with the tokens, named tokens, images or "
            "x, and perhaps one named labels, y or cls"
        )
    return tokens[0], labels[0]


def _check_labels(labels: np.ndarray, rows: int, location: str) -> None:
    if labels.dtype.kind not in "iu" or labels.shape != (rows,) or labels.min(initial=0) < 0:
        raise DataError(
            f"{location} holds {dtype_name(labels)} {list(labels.shape)}; write it again with an integer >= 0 for each "
            f"of the {rows} rows of tokens"
        )
