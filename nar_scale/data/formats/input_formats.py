"""Documents in Parquet files, tar files and NumPy arrays, and what all formats of input share."""

import json
import os
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from nar_scale.data.formats.field_names import CLASS_FIELD, TOKENS_FIELD
from nar_scale.data.formats.npy import MAX_HEADER_BYTES, decode_npy
from nar_scale.data.formats.tar import MEMBER_NAME, TarDamage, TarMember, tar_members
from nar_scale.data.text import printable
from nar_scale.errors import DataError, UserError

DEFAULT_TEXT_FIELD = "text"
BUFFER_BYTES = 1 << 20
ROWS_PER_BATCH = 128
NAMES_IN_MESSAGES = 20
NAME_LETTERS_IN_MESSAGES = 256
CONTENT_NAMES = ("tokens", "images", "x")
LABEL_NAMES = ("labels", "y", "cls")
CLASS_TEXT = re.compile(rb"\s*\d{1,18}\s*")


@dataclass(frozen=True)
class Piece:
    """A part of an input file that one process reads.

    Attributes:
        file: the input file.
        start, end: the part: bytes of a `.jsonl`, row groups of a `.parquet`, documents of a `.npy`; for other formats
            all bytes, for these are read whole.
        size: bytes of input it stands for: for progress bars and to balance work.
    """

    file: Path
    start: int
    end: int
    size: int


class Source(NamedTuple):
    """One document as it is stored: text or tokens.

    Attributes:
        text: UTF-8 by convention, unchecked where the file is text itself; None if the document is tokens.
        tokens: integers [n] >= 0 of whatever type they are stored in, perhaps read-only; None if it is text.
        size: bytes of input it took, for progress; approximate where the input is compressed.
        label: class >= 0 of a document of tokens, if it has one.
    """

    text: bytes | None
    tokens: np.ndarray | None
    size: int
    label: int | None = None


class Skip(NamedTuple):
    """A document left out: the bytes of input it took and the reason, "binary", "empty" or "no text"."""

    size: int
    reason: str


@contextmanager
def input_errors(file: Path, *damage: type[Exception]) -> Iterator[None]:
    """Turn into DataError what reading an input raises: OSError, and `damage`, the errors of its format."""
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
        reason = f"is truncated or damaged ({_one_line(error)})"
        raise DataError(f"input {file} {reason}; copy it again or exclude it") from error


def _one_line(error: Exception) -> str:
    return printable(" ".join(str(error).split())[:200]) or type(error).__name__


def optional_package(file: Path, error: ImportError) -> UserError:
    """Return the error for an input that needs a package which is not installed."""
    return UserError(f"input {file} needs an optional package ({error.name}): pip install 'nar_scale[inputs]'")


def raw_document(content: bytes, size: int) -> Source | Skip:
    """Return a document that is stored as it is: binary if it holds a NUL byte."""
    if not content or b"\0" in content:
        return Skip(size, "binary" if content else "empty")
    return Source(content, None, size)


def json_document(content: bytes, key: str, size: int, place: str) -> Source | Skip:
    """Return the document under a key of a JSON object.

    Args:
        content: the object, UTF-8.
        key: of a string.
        size: bytes of input.
        place: of the object, for messages.

    Raises:
        DataError: it is not JSON, no object, or has no string under the key.
    """
    try:
        text = _json_text(content, key)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{place}: {error}; mend or remove it, or name another text field") from None
    return Source(text, None, size) if text else Skip(size, "empty")


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
        raise ValueError(f"no key {key!r}, only {listed(value)}")
    text = value[key]
    if not isinstance(text, str):
        raise ValueError(f"{key!r} is {json.dumps(text)[:40]}, not a string")
    try:
        return text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise ValueError(f"{key!r} has half a surrogate pair at its character {error.start}") from None


def listed(names: Iterable[str]) -> str:
    """Return names for a message: quoted, the first of many."""
    quoted = [repr(name)[:80] for name in names]
    more = [f"{len(quoted) - NAMES_IN_MESSAGES} more"] if len(quoted) > NAMES_IN_MESSAGES else []
    return ", ".join(quoted[:NAMES_IN_MESSAGES] + more) or "nothing"


def _shares(total: int, count: int) -> Iterator[int]:
    """Split bytes among documents of about the same size."""
    return (total * (i + 1) // count - total * i // count for i in range(count))


# Parquet


def split_parquet(file: Path, piece_bytes: int) -> list[Piece]:
    """Return pieces of whole row groups, each of `piece_bytes` or a little more."""
    pieces = []
    start = position = group_end = weight = 0
    with _open_parquet(file) as parquet:
        metadata = parquet.metadata
        weights = [metadata.row_group(group).total_byte_size for group in range(metadata.num_row_groups)]
        file_size = file.stat().st_size
    for group, group_weight in enumerate(weights):
        # The weights are of uncompressed data. To ask for compressed sizes, column by column, is slow, and pyarrow
        # ends the process if their statistics are damaged.
        weight += group_weight
        group_end = file_size * weight // max(sum(weights), 1)
        if group_end - position >= piece_bytes or group == len(weights) - 1:
            pieces.append(Piece(file, start, group + 1, group_end - position))
            start, position = group + 1, group_end
    return pieces


def read_parquet(piece: Piece, text_field: str) -> Iterator[Source | Skip]:
    """Yield a document for each row."""
    import pyarrow

    with _open_parquet(piece.file) as parquet:
        schema = parquet.schema_arrow
        if text_field not in schema.names:
            raise DataError(
                f"input {piece.file} has no column {text_field!r}, only {listed(schema.names)}; name one of these as "
                "the text field"
            )
        kind = schema.field(text_field).type
        kind = kind.value_type if pyarrow.types.is_dictionary(kind) else kind
        is_string = str(kind) in ("string", "large_string", "string_view")
        if not is_string and str(kind) not in ("binary", "large_binary", "binary_view"):
            raise DataError(f"input {piece.file}: column {text_field!r} is {kind}, not text; name another text field")
        groups = range(piece.start, piece.end)
        rows = sum(parquet.metadata.row_group(group).num_rows for group in groups)
        sizes = _shares(piece.size, rows)
        for batch in parquet.iter_batches(ROWS_PER_BATCH, groups, [text_field], use_threads=False):
            column = batch.column(0)
            column = column.dictionary_decode() if pyarrow.types.is_dictionary(column.type) else column
            for text, size in zip(column.cast(pyarrow.large_binary()).to_pylist(), sizes):
                if text and is_string:
                    yield Source(text, None, size)
                else:
                    yield raw_document(text or b"", size)


@contextmanager
def _open_parquet(file: Path) -> Iterator[Any]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise optional_package(file, error) from None
    # without these two options a whole column of a row group is read into memory
    with (
        input_errors(file, pyarrow.ArrowException, ValueError, IndexError, MemoryError),
        pyarrow.parquet.ParquetFile(file, buffer_size=BUFFER_BYTES, pre_buffer=False) as parquet,
    ):
        yield parquet


# Tar


def read_tar(piece: Piece, text_field: str) -> Iterator[Source | Skip]:
    """Yield a document for each sample; one without the field is left out as "no text".

    Raises:
        DataError: the tar is damaged, a sample has the field twice or malformed, or none has it.
    """
    wanted = _wanted_fields(text_field)
    key_of_json = DEFAULT_TEXT_FIELD if text_field == "json" else text_field
    seen: dict[str, None] = {}
    found = False
    position = 0
    with input_errors(piece.file), open(piece.file, "rb") as file:
        for key, members, end in _tar_samples(piece.file, file):
            size, position = end - position, end
            field = next((field for field in wanted if field in members), None)
            if field is None:
                seen.update(dict.fromkeys(list(members)[: NAMES_IN_MESSAGES + 1 - len(seen)]))
                yield Skip(size, "no text")
                continue
            found = True
            place = f"input {piece.file}, sample {key[:NAME_LETTERS_IN_MESSAGES]!r}, field {field!r}"
            content = _read_member(file, members[field], place)
            if field.endswith("npy"):
                label = _read_member(file, members[CLASS_FIELD], place) if CLASS_FIELD in members else None
                yield _token_member(content, label, size, place)
            elif field == "json":
                yield json_document(content, key_of_json, size, place)
            else:
                yield raw_document(content, size)
    if seen and not found:
        raise DataError(
            f"input {piece.file} has no sample with a field {' or '.join(map(repr, wanted))}, only {listed(seen)}; "
            "name one of these as the text field"
        )


def _wanted_fields(text_field: str) -> tuple[str, ...]:
    """The fields that may hold the document, the best first."""
    if text_field == DEFAULT_TEXT_FIELD:
        return ("txt", "text", TOKENS_FIELD, "json")
    if text_field in ("txt", "json") or text_field.endswith("npy"):
        return (text_field,)
    return (text_field, "json")


def _tar_samples(path: Path, file: BinaryIO) -> Iterator[tuple[str, dict[str, list[tuple[int, int]]], int]]:
    """The samples: key, offset and size of the members of each field, and where the sample ends."""
    sample: str | None = None
    members: dict[str, list[tuple[int, int]]] = {}
    end = 0
    for member in _tar_members(path, file):
        name = MEMBER_NAME.fullmatch(member.name)
        if name is not None and name[1] != sample:
            if sample is not None:
                yield sample, members, end
            sample, members = name[1], {}
        end = member.end
        if name is not None:
            members.setdefault(name[2], []).append((member.offset, member.size))
    if sample is not None:
        yield sample, members, end


def _tar_members(path: Path, file: BinaryIO) -> Iterator[TarMember]:
    try:
        yield from tar_members(file, os.fstat(file.fileno()).st_size)
    except TarDamage as error:
        raise DataError(
            f"input {path} is truncated, damaged or not an uncompressed tar ({error}); copy it again"
        ) from None


def _read_member(file: BinaryIO, places: list[tuple[int, int]], place: str) -> bytes:
    if len(places) > 1:
        raise DataError(f"{place} occurs {len(places)} times in it; write the tar again")
    offset, size = places[0]
    file.seek(offset)
    return file.read(size)


def _token_member(content: bytes, label: bytes | None, size: int, place: str) -> Source | Skip:
    try:
        tokens = decode_npy(content)
    except Exception as error:  # numpy lets all kinds of errors through for a damaged header
        raise DataError(f"{place}: {_one_line(error)}; write the tar again") from None
    _check_type(tokens, place)
    if label is not None and not CLASS_TEXT.fullmatch(label):
        raise DataError(f"{place}: its class {label[:20]!r} is not an integer >= 0; write the tar again")
    return _token_document(tokens, size, None if label is None else int(label), place)


# NumPy


def split_array(file: Path, piece_bytes: int) -> list[Piece]:
    """Return pieces of about `piece_bytes`, each of whole rows of an array [rows, ...]; one for an array [n]."""
    rows = _open_array(file)
    row_bytes = rows.nbytes // max(len(rows), 1)
    step = max(piece_bytes // max(row_bytes, 1), 1)
    return [
        Piece(file, start, min(start + step, len(rows)), (min(start + step, len(rows)) - start) * row_bytes)
        for start in range(0, len(rows), step)
    ]


def read_array(piece: Piece) -> Iterator[Source | Skip]:
    """Yield a document for each row, or a single one for an array [n], without reading it into memory."""
    rows = _open_array(piece.file)
    if piece.end > len(rows):
        raise DataError(f"input {piece.file} has {len(rows)} rows, fewer than it had; wait until it is complete")
    sizes = _shares(piece.size, piece.end - piece.start)
    for number, size in zip(range(piece.start, piece.end), sizes):
        yield _token_document(rows[number], size, None, f"input {piece.file}, row {number}")


def read_archive(piece: Piece) -> Iterator[Source | Skip]:
    """Yield a document for each row of the tokens in a `.npz` file, with its label if the file has labels."""
    file = piece.file
    # numpy and zipfile let all kinds of errors through
    with input_errors(file, Exception), np.load(file, allow_pickle=False) as archive:
        content, labels = _archive_names(file, archive.files)
        tokens = archive[content]
        label_of_row = None if labels is None else archive[labels]
    rows = _rows(tokens, f"input {file}, array {content!r}")
    if label_of_row is not None:
        _check_labels(label_of_row, len(rows), f"input {file}, array {labels!r}")
    for number, size in enumerate(_shares(piece.size, len(rows))):
        label = None if label_of_row is None else int(label_of_row[number])
        yield _token_document(rows[number], size, label, f"input {file}, row {number}")


def _archive_names(file: Path, names: list[str]) -> tuple[str, str | None]:
    """The names of the tokens and of the labels."""
    if len(names) == 1:
        return names[0], None
    content = [name for name in names if name in CONTENT_NAMES]
    labels = [name for name in names if name in LABEL_NAMES]
    if len(content) != 1 or len(labels) != 1 or len(names) != 2:
        raise DataError(
            f"input {file} holds the arrays {listed(names)}; write one with the tokens, named tokens, images or x, and "
            "perhaps one named labels, y or cls"
        )
    return content[0], labels[0]


def _open_array(file: Path) -> np.ndarray:
    """The array [documents, ...], mapped into memory."""
    with input_errors(file, Exception):  # numpy lets all kinds of errors through for a damaged header
        with open(file, "rb") as stream:
            start = stream.read(12)
        if start[6:7] > b"\1" and int.from_bytes(start[8:], "little") > MAX_HEADER_BYTES:
            raise ValueError("its header is too long")  # numpy would ask for that much memory
        array = np.lib.format.open_memmap(file, mode="r")
    return _rows(np.asarray(array), f"input {file}")


def _rows(array: np.ndarray, place: str) -> np.ndarray:
    _check_type(array, place)
    return array if array.ndim > 1 else array[np.newaxis]


def _check_type(array: np.ndarray, place: str) -> None:
    if array.dtype.kind not in "iu":
        raise DataError(f"{place} holds {_dtype(array)}, not integer tokens; write it again with an integer dtype")
    if array.ndim == 0:
        raise DataError(
            f"{place} holds a single number, not a row of tokens; write it again with one dimension or more"
        )


def _check_labels(labels: np.ndarray, rows: int, place: str) -> None:
    if labels.dtype.kind not in "iu" or labels.shape != (rows,) or labels.min(initial=0) < 0:
        raise DataError(
            f"{place} holds {_dtype(labels)} {list(labels.shape)}; write it again with an integer >= 0 for each of the "
            f"{rows} rows of tokens"
        )


def _dtype(array: np.ndarray) -> str:
    return str(array.dtype)[:80]  # that of records names all their fields


def _token_document(tokens: np.ndarray, size: int, label: int | None, place: str) -> Source | Skip:
    if tokens.size == 0:
        return Skip(size, "empty")
    if tokens.dtype.kind == "i" and tokens.min() < 0:
        raise DataError(f"{place}: token {tokens.min()} is negative; write it again with tokens >= 0")
    return Source(None, tokens.reshape(-1), size, label)
