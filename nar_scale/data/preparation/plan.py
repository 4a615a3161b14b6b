"""What to prepare and how, cut into work items that do not depend on which process does them."""

import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from hashlib import blake2b
from itertools import groupby, islice
from pathlib import Path

from nar_scale.data.formats.documents import Document, Piece
from nar_scale.data.formats.heads import HeadFault, head_fault
from nar_scale.data.formats.inputs import format_of, read_piece, split_into_pieces
from nar_scale.data.formats.text import plain_text
from nar_scale.data.parallel import ordered_map
from nar_scale.data.preparation.corpus import Corpus, leave_out_faulty
from nar_scale.data.preparation.skipped import Skipped
from nar_scale.data.tokenizers import SpecialTokens
from nar_scale.errors import DataError, UserError

FILES_PER_TASK = 256
MOST_FEW = 1000  # documents, all of which are looked at


def check_least(least: int, **values: int | None) -> None:
    """Refuse numbers below `least`; None is none.

    Raises:
        UserError: names the number.
    """
    for name, value in values.items():
        if value is not None and value < least:
            raise UserError(f"{name} is {value}; give at least {least}")


@dataclass(frozen=True)
class Recipe:
    """How documents become samples.

    Attributes:
        seq_len: tokens in a sample.
        tokenizer: "byte", the path of a tokenizer file, or None where the input is tokens of no tokenizer.
        tokenizer_fingerprint: see `Tokenizer`; empty without a tokenizer.
        vocabulary_size: number of token ids.
        end_token: appended to documents; None if nothing is appended.
        special_tokens: how special tokens that a text spells out are encoded, see `HuggingFaceTokenizer`.
        text_field: see `read_piece`.
        validation: fraction of the documents for the validation split.
        by_place: the validation split is the last part of each document instead, as there are few documents.
        packed: concatenate documents instead of giving each samples of its own.
        document_ids: write which document each token belongs to.
        as_text: globs on the names of files that are read as text, whatever they look like.
        samples_per_shard: most samples in a tar file.
        unit_bytes: bytes of input in a work item.
    """

    seq_len: int
    tokenizer: str | None
    tokenizer_fingerprint: str
    vocabulary_size: int
    end_token: int | None
    special_tokens: SpecialTokens
    text_field: str
    validation: float
    packed: bool
    document_ids: bool
    as_text: tuple[str, ...]
    samples_per_shard: int
    unit_bytes: int
    by_place: bool = False

    def __post_init__(self) -> None:
        check_least(1, samples_per_shard=self.samples_per_shard, unit_bytes=self.unit_bytes)
        check_least(2, seq_len=self.seq_len)
        if not 0 <= self.validation < 1:
            raise UserError(f"validation is {self.validation}; give a fraction of the documents, 0 <= fraction < 1")


@dataclass(frozen=True)
class WorkItem:
    """Input that one process packs into shards of its own.

    Attributes:
        number: position of the item among all, from 0.
        pieces: what to read, in order.
        only_validation: all documents are for the validation split.
    """

    number: int
    pieces: tuple[Piece, ...]
    only_validation: bool = False

    @property
    def size(self) -> int:
        """Bytes of input."""
        return sum(piece.size for piece in self.pieces)


@dataclass(frozen=True)
class Plan:
    """All work items of a data set; the same on every machine that sees the same inputs.

    Attributes:
        recipe: how documents become samples.
        work_items: in the order of the inputs.
        skipped: files and links in folders that are not read.
        max_skipped: most documents and files, hidden and excluded ones aside, that may be left out; None for any.
        fingerprint: hex digest of the recipe and of name, size and mtime of the inputs.
    """

    recipe: Recipe
    work_items: tuple[WorkItem, ...]
    skipped: Skipped
    max_skipped: int | None
    fingerprint: str

    def part(self, number: int, parts: int) -> list[WorkItem]:
        """Return the work items of part `number`, from 1, of `parts`."""
        return list(self.work_items[number - 1 :: parts])


def make_plan(
    corpus: Corpus, recipe: Recipe, max_skipped: int | None, workers: int, validation_corpus: Corpus | None = None
) -> Plan:
    """Cut a corpus into work items of about `recipe.unit_bytes` bytes of input.

    Where the recipe's fraction is of fewer documents than it takes to make one for validation, they are split by place.

    Args:
        corpus: the files.
        recipe: how they are prepared.
        max_skipped: see `Plan`.
        workers: processes that look at the files.
        validation_corpus: files of which all documents are for validation.

    Raises:
        DataError: a file cannot be read or is damaged; see also `leave_out_faulty`.
        UserError: an optional package is needed and not installed.
    """
    pieces, described = _look_at(corpus, recipe, workers)
    only_validation: list[Piece] = []
    described_validation = b""
    if validation_corpus is not None:
        only_validation, described_validation = _look_at(validation_corpus, recipe, workers)
        corpus.skipped.update(validation_corpus.skipped)
    recipe = replace(recipe, by_place=recipe.packed and recipe.validation > 0 and _are_few(pieces, recipe))
    settings = {name: value for name, value in asdict(recipe).items() if name != "tokenizer"}  # but its fingerprint
    if recipe.special_tokens == "text":
        del settings["special_tokens"]  # to go on with what was begun before there was a choice
    if not recipe.by_place:
        del settings["by_place"]  # likewise
    hasher = blake2b(repr(sorted(settings.items())).encode(), digest_size=8)
    hasher.update(described)
    if described_validation:
        hasher.update(b"\0validation\0" + described_validation)
    groups = [(group, False) for group in _group(pieces, recipe.unit_bytes)]
    groups += [(group, True) for group in _group(only_validation, recipe.unit_bytes)]
    work_items = tuple(WorkItem(number, tuple(group), only) for number, (group, only) in enumerate(groups))
    return Plan(recipe, work_items, corpus.skipped, max_skipped, hasher.hexdigest())


def _look_at(corpus: Corpus, recipe: Recipe, workers: int) -> tuple[list[Piece], bytes]:
    """Return the pieces of the files, and what tells these files from others."""
    tasks = [
        (corpus.files[start : start + FILES_PER_TASK], recipe) for start in range(0, len(corpus.files), FILES_PER_TASK)
    ]
    pieces: list[Piece] = []
    faults: list[HeadFault] = []
    descriptions = []
    for found, described, faulty in ordered_map(_split, tasks, min(workers, len(tasks))):
        pieces.extend(found)
        faults.extend(faulty)
        descriptions.append(described)
    left_out = leave_out_faulty(corpus, faults)
    return [piece for piece in pieces if piece.file not in left_out], b"".join(descriptions)


def _are_few(pieces: Sequence[Piece], recipe: Recipe) -> bool:
    """Whether the documents are fewer than it takes to make one of them a validation document on average."""
    most = min(math.ceil(1 / recipe.validation), MOST_FEW)
    count = sum(1 for _ in islice(_documents(pieces, recipe), most))
    return 0 < count < most


def _documents(pieces: Sequence[Piece], recipe: Recipe) -> Iterator[Piece | Document]:
    """Yield something for each document; a file of text is one, which need not be read for that."""
    for piece in pieces:
        if format_of(piece.file, recipe.as_text) is plain_text:
            if piece.size:
                yield piece
            continue
        for document in read_piece(piece, recipe.text_field, recipe.as_text):
            if isinstance(document, Document):
                yield document


def _split(task: tuple[Sequence[Path], Recipe]) -> tuple[list[Piece], bytes, list[HeadFault]]:
    """Return the pieces of some files, real path, name, size and mtime of each file, and those that are faulty."""
    files, recipe = task
    pieces, described, faults = [], [], []
    for file in files:
        try:
            status = file.stat()
        except OSError as error:
            raise DataError(f"cannot read {file}: {error.strerror}; make it readable or exclude it") from error
        found = split_into_pieces(file, recipe.unit_bytes, recipe.as_text)
        pieces.extend(found)
        if found and (fault := head_fault(found[0], recipe.text_field, recipe.as_text)):
            faults.append(fault)
        path = os.path.realpath(file)
        described.append(f"{path}\0{file.name}\0{status.st_size}\0{status.st_mtime_ns}\n")
    return pieces, os.fsencode("".join(described)), faults


def _group(pieces: Sequence[Piece], group_bytes: int) -> Iterator[list[Piece]]:
    """Yield groups of the pieces that start in the same stretch of `group_bytes` bytes of the whole input."""
    end = 0
    stretches = []
    for piece in pieces:
        stretches.append(end // group_bytes)
        end += piece.size
    for _, numbered in groupby(zip(stretches, pieces), key=lambda pair: pair[0]):
        yield [piece for _, piece in numbered]
