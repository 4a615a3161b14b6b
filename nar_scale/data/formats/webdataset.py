"""WebDataset shards (`.tar`) as input: each sample is a document of text or of tokens."""

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from nar_scale.data.formats.arrays import check_tokens, token_document
from nar_scale.data.formats.documents import (
    DEFAULT_TEXT_FIELD,
    NAMES_IN_MESSAGES,
    Document,
    Documents,
    Piece,
    SkippedDocument,
    input_errors,
    one_line,
    quoted_names,
    raw_document,
)
from nar_scale.data.formats.field_names import CLASS_FIELD, TOKENS_FIELD
from nar_scale.data.formats.npy import decode_npy
from nar_scale.data.formats.tar import (
    DamagedTarError,
    LostMember,
    SplitSampleCheck,
    SplitSampleError,
    TarMember,
    sample_member,
    tar_members,
)
from nar_scale.data.formats.text.json_object import json_document
from nar_scale.errors import DataError

KEY_LETTERS_IN_MESSAGES = 256
CLASS_TEXT = re.compile(rb"\s*\d{1,18}\s*")

Members = dict[str, list[tuple[int, int]]]  # offset and size in bytes of the members of each field of a sample


def split(file: Path, piece_bytes: int) -> list[Piece]:
    """Return the shard as one piece; see `InputFormat.split`."""
    return [Piece.whole(file)]


def read(piece: Piece, text_field: str) -> Documents:
    """Yield a document for each sample; one without the field is skipped as "no text".

    A member that belongs to no sample, and one that is a link, is skipped by itself.

    Args:
        piece: the whole shard.
        text_field: the field of the documents. The default, `text`, takes the first field that a sample has of `txt`,
            `text`, `tokens.npy` and `json`, the last an object as in a line of a `.jsonl`. Fields that end in `npy`
            are tokens, with a label if the sample has a `cls`.

    Raises:
        DataError: the tar is damaged, a sample has the field twice or malformed, or no sample has it.
    """
    wanted = _wanted_fields(text_field.lower())
    json_key = DEFAULT_TEXT_FIELD if text_field == "json" else text_field
    seen: dict[str, None] = {}
    found = False
    position = 0
    with input_errors(piece.file), open(piece.file, "rb") as file:
        lost: list[LostMember] = []
        for key, members, end in _samples(piece.file, file, lost):
            yield from _skip(lost)
            size, position = end - position, end
            field = next((field for field in wanted if field in members), None)
            if field is None:
                seen.update(dict.fromkeys(list(members)[: NAMES_IN_MESSAGES + 1 - len(seen)]))
                yield SkippedDocument(size, "no text", key)
                continue
            found = True
            location = f"input {piece.file}, sample {key[:KEY_LETTERS_IN_MESSAGES]!r}, field {field!r}"
            content = _read_member(file, members[field], location)
            if field.endswith("npy"):
                label = _read_member(file, members[CLASS_FIELD], location) if CLASS_FIELD in members else None
                document = _token_member(content, label, size, location)
            elif field == "json":
                document = json_document(content, json_key, size, location)
            else:
                document = raw_document(content, size)
            yield document._replace(name=key) if isinstance(document, SkippedDocument) else document
        yield from _skip(lost)
    if seen and not found:
        raise DataError(
            f"input {piece.file} has no sample with a field {' or '.join(map(repr, wanted))}, only "
            f"{quoted_names(seen)}; name one of these as the text field"
        )


def _wanted_fields(text_field: str) -> tuple[str, ...]:
    """The fields that may hold the document, the best first."""
    if text_field == DEFAULT_TEXT_FIELD:
        return ("txt", "text", TOKENS_FIELD, "json")
    if text_field in ("txt", "json") or text_field.endswith("npy"):
        return (text_field,)
    return (text_field, "json")


def _skip(lost: list[LostMember]) -> Iterator[SkippedDocument]:
    yield from (SkippedDocument(0, kind, name) for kind, name in lost)
    lost.clear()


def _samples(path: Path, file: BinaryIO, lost: list[LostMember]) -> Iterator[tuple[str, Members, int]]:
    """The samples: key, members, and the byte at which the sample ends. What is in none is entered in `lost`."""
    check = SplitSampleCheck()
    for key, members, end in _adjacent_members(path, file, lost):
        try:
            check.add(key, members)
        except SplitSampleError as error:
            raise DataError(f"input {path} {error}") from None
        yield key, members, end


def _adjacent_members(path: Path, file: BinaryIO, lost: list[LostMember]) -> Iterator[tuple[str, Members, int]]:
    sample: str | None = None
    members: Members = {}
    end = 0
    for member in _members(path, file, lost):
        name = sample_member(member.name)
        if name is not None and name[0] != sample:
            if sample is not None:
                yield sample, members, end
            sample, members = name[0], {}
        end = member.end
        if name is None:
            lost.append(LostMember("file that is in no sample", member.name))
        else:
            members.setdefault(name[1], []).append((member.offset, member.size))
    if sample is not None:
        yield sample, members, end


def _members(path: Path, file: BinaryIO, lost: list[LostMember]) -> Iterator[TarMember]:
    try:
        yield from tar_members(file, os.fstat(file.fileno()).st_size, lost)
    except DamagedTarError as error:
        raise DataError(
            f"input {path} is truncated, damaged or not an uncompressed tar ({error}); copy it again"
        ) from None


def _read_member(file: BinaryIO, members: list[tuple[int, int]], location: str) -> bytes:
    if len(members) > 1:
        raise DataError(f"{location} occurs {len(members)} times in it; write the tar again")
    offset, size = members[0]
    file.seek(offset)
    return file.read(size)


def _token_member(content: bytes, label: bytes | None, size: int, location: str) -> Document | SkippedDocument:
    try:
        tokens = decode_npy(content)
    except Exception as error:  # numpy lets all kinds of errors through for a damaged header
        raise DataError(f"{location}: {one_line(error)}; write the tar again") from None
    check_tokens(tokens, location)
    if label is not None and not CLASS_TEXT.fullmatch(label):
        raise DataError(f"{location}: its class {label[:20]!r} is not an integer >= 0; write the tar again")
    return token_document(tokens, size, None if label is None else int(label), location)
