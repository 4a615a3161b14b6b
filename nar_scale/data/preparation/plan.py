"""What to prepare and how, cut into work items that do not depend on which process does them."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from hashlib import blake2b
from itertools import groupby
from pathlib import Path

from nar_scale.data.formats.documents import Piece
from nar_scale.data.formats.heads import HeadFault, head_fault
from nar_scale.data.formats.inputs import split_into_pieces
from nar_scale.data.parallel import ordered_map
from nar_scale.data.preparation.corpus import Corpus, leave_out_faulty
from nar_scale.data.preparation.skipped import Skipped
from nar_scale.data.tokenizers import SpecialTokens
from nar_scale.errors import DataError

FILES_PER_TASK = 256


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


@dataclass(frozen=True)
class WorkItem:
    """Input that one process packs into shards of its own.

    Attributes:
        number: position of the item among all, from 0.
        pieces: what to read, in order.
    """

    number: int
    pieces: tuple[Piece, ...]

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


def make_plan(corpus: Corpus, recipe: Recipe, max_skipped: int | None, workers: int) -> Plan:
    """Cut a corpus into work items of about `recipe.unit_bytes` bytes of input.

    Args:
        corpus: the files.
        recipe: how they are prepared.
        max_skipped: see `Plan`.
        workers: processes that look at the files.

    Raises:
        DataError: a file cannot be read or is damaged; see also `leave_out_faulty`.
        UserError: an optional package is needed and not installed.
    """
    settings = {name: value for name, value in asdict(recipe).items() if name != "tokenizer"}  # but its fingerprint
    if recipe.special_tokens == "text":
        del settings["special_tokens"]  # to go on with what was begun before there was a choice
    hasher = blake2b(repr(sorted(settings.items())).encode(), digest_size=8)
    tasks = [
        (corpus.files[start : start + FILES_PER_TASK], recipe) for start in range(0, len(corpus.files), FILES_PER_TASK)
    ]
    pieces: list[Piece] = []
    faults: list[HeadFault] = []
    for found, described, faulty in ordered_map(_split, tasks, min(workers, len(tasks))):
        pieces.extend(found)
        faults.extend(faulty)
        hasher.update(described)
    left_out = leave_out_faulty(corpus, faults)
    pieces = [piece for piece in pieces if piece.file not in left_out]
    groups = _group(pieces, recipe.unit_bytes)
    work_items = tuple(WorkItem(number, tuple(group)) for number, group in enumerate(groups))
    return Plan(recipe, work_items, corpus.skipped, max_skipped, hasher.hexdigest())


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
