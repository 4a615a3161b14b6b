"""Packing one work item into shards of its own, which appear all at once."""

import json
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from hashlib import blake2b
from pathlib import Path

import numpy as np

from nar_scale.data.formats.documents import Document, SkippedDocument, cut_document
from nar_scale.data.formats.inputs import read_piece
from nar_scale.data.preparation.packing import Packer
from nar_scale.data.preparation.plan import Recipe, WorkItem
from nar_scale.data.preparation.shard_writer import write_shard
from nar_scale.data.preparation.skipped import Skipped
from nar_scale.data.shards.sample_format import Sample
from nar_scale.data.shards.shard_index import index_path, make_shard_index
from nar_scale.data.storage.locks import exclusive_lock, exclusive_lock_if_supported
from nar_scale.data.tokenizers import SpecialTokens, Tokenizer, load_tokenizer
from nar_scale.errors import DataError
from nar_scale.files import sync_directory

RECORD_FILE = "record.json"
SHARD_NAME = "shard-{:04d}.tar"
LOCK_SUFFIX = ".lock"
KEY = "{work_item:06d}-{number:07d}"


@dataclass
class SplitRecord:
    """What a work item gave to a split: totals, and name, size in bytes and digest of each shard.

    Attributes:
        token_documents: of the documents, how many were arrays of tokens.
    """

    documents: int = 0
    samples: int = 0
    tokens: int = 0
    bytes: int = 0
    classes: int = 0
    token_documents: int = 0
    shards: list[tuple[str, int, str]] = field(default_factory=list)


@dataclass
class WorkItemRecord:
    """The outcome of a work item.

    Attributes:
        splits: by name.
        skipped: documents that were left out.
        input_bytes: bytes of input that the documents took.
        skipped_bytes: bytes of input that was left out.
        special_tokens: how often the text spells out a special token of the tokenizer.
    """

    splits: dict[str, SplitRecord]
    skipped: Skipped
    input_bytes: int = 0
    skipped_bytes: int = 0
    special_tokens: int = 0

    @classmethod
    def load(cls, directory: Path) -> "WorkItemRecord | None":
        """Read the record of a finished work item from its directory; None if it is not finished."""
        try:
            content = json.loads((directory / RECORD_FILE).read_text())
        except FileNotFoundError:
            return None
        splits = {name: SplitRecord(**split) for name, split in content["splits"].items()}
        return cls(**{**content, "splits": splits, "skipped": Skipped(**content["skipped"])})


def work_item_directory(staging: Path, number: int) -> Path:
    """Return where the shards of a finished work item are."""
    return staging / f"unit-{number:06d}"


def prepare_work_item(task: tuple[WorkItem, Recipe, Path]) -> WorkItemRecord:
    """Pack a work item, unless it is done.

    Any number of processes may do the same item: the first to finish publishes it, by one rename.

    Args:
        task: the work item, the recipe, and the directory of all items, which must exist.

    Raises:
        DataError: an input cannot be read, or a document of tokens has one outside the vocabulary.
        OSError: the shards cannot be written.
    """
    work_item, recipe, staging = task
    target = work_item_directory(staging, work_item.number)
    record = WorkItemRecord.load(target)
    if record is not None:
        return record
    with _working_directory(staging, work_item.number) as working:
        packed = working / "packed"
        packed.mkdir()
        record = _pack(work_item, recipe, packed)
        with open(packed / RECORD_FILE, "w") as file:
            json.dump(asdict(record), file)
            file.flush()
            os.fsync(file.fileno())
        if target.exists() and WorkItemRecord.load(target) is None:
            os.rename(target, working / "incomplete")  # a part of it has been deleted
        try:
            os.rename(packed, target)
        except OSError:
            if WorkItemRecord.load(target) is None:
                raise
        sync_directory(staging)
    return record


def remove_leftovers(staging: Path) -> None:
    """Remove what processes of this node were writing when they were killed; the locks of others may not be seen."""
    for lock in staging.glob(f".unit-*-{os.uname().nodename}-*{LOCK_SUFFIX}"):
        with suppress(OSError), exclusive_lock(lock, wait=False):
            shutil.rmtree(lock.with_name(lock.name.removesuffix(LOCK_SUFFIX)), ignore_errors=True)


@contextmanager
def _working_directory(staging: Path, number: int) -> Iterator[Path]:
    working = staging / f".unit-{number:06d}-{os.uname().nodename}-{uuid.uuid4().hex[:8]}"
    staging.stat()  # where it has been removed, the lock would make it again
    with exclusive_lock_if_supported(working.with_name(working.name + LOCK_SUFFIX)):
        working.mkdir()
        try:
            yield working
        finally:
            shutil.rmtree(working, ignore_errors=True)


def _pack(work_item: WorkItem, recipe: Recipe, directory: Path) -> WorkItemRecord:
    tokenizer = recipe_tokenizer(recipe)
    splits = {split: _SplitWriter(work_item.number, split, recipe, directory) for split in ("train", "validation")}
    record = WorkItemRecord({split: writer.record for split, writer in splits.items()}, Skipped())
    for piece in work_item.pieces:
        for document in read_piece(piece, recipe.text_field, recipe.as_text):
            if isinstance(document, SkippedDocument):
                example = f"{piece.file}, {document.name}" if document.name else str(piece.file)
                record.skipped.add(document.reason, example)
                record.skipped_bytes += document.size
                continue
            record.input_bytes += document.size
            if document.label is not None and recipe.packed:
                raise DataError(
                    f"input {piece.file} has classes, which documents that are concatenated cannot keep; give "
                    "--one-document-per-sample"
                )
            if document.text is not None and tokenizer is not None:
                record.special_tokens += tokenizer.count_special_tokens(document.text)
            for split, part in _assign(document, work_item, recipe):
                splits[split].add(_encode(part, tokenizer, recipe, piece.file), part)
    for writer in splits.values():
        writer.finish()
    return record


def _assign(document: Document, work_item: WorkItem, recipe: Recipe) -> Iterator[tuple[str, Document]]:
    """Yield each split that a document goes to, whole or in part."""
    if recipe.by_place and not work_item.only_validation:
        first, last = cut_document(document, recipe.validation)
        yield "train", first
        if last is not None:
            yield "validation", last
    elif work_item.only_validation or _content_fraction(document) < recipe.validation:
        yield "validation", document
    else:
        yield "train", document


def _content_fraction(document: Document) -> float:
    """Return a hash of the content, uniform in [0, 1), so that equal documents are never in both splits."""
    content = document.text
    if document.tokens is not None:
        content = np.ascontiguousarray(document.tokens, dtype="<i8").tobytes()
    return int.from_bytes(blake2b(content or b"", digest_size=8).digest(), "big") / 2**64


def _encode(document: Document, tokenizer: Tokenizer | None, recipe: Recipe, file: Path) -> np.ndarray:
    """Return the tokens of a document with its end token, in the smallest unsigned dtype for the vocabulary."""
    dtype = np.min_scalar_type(recipe.vocabulary_size - 1)
    if document.text is not None:
        if tokenizer is None:
            raise DataError(f"input {file} holds text; give a tokenizer instead of a vocabulary size")
        ids = tokenizer.encode(document.text)
        if recipe.special_tokens == "text" and (ids == tokenizer.end_token).any():
            raise DataError(
                f"input {file}: the tokenizer makes its end token {tokenizer.end_token} of text in the middle of a "
                "document; name one that no text is encoded as with --end-token"
            )
        ended = np.empty(len(ids) + 1, dtype)  # the one copy of what may be a large part of the memory
        ended[:-1], ended[-1] = ids, tokenizer.end_token
        return ended
    tokens = np.asarray(document.tokens)
    highest = int(tokens.max())
    if highest >= recipe.vocabulary_size:
        raise DataError(
            f"input {file}: token {highest} is outside the vocabulary of {recipe.vocabulary_size}; give the tokenizer "
            "it was made with, or a larger vocabulary size"
        )
    if recipe.end_token is not None and tokens[-1] != recipe.end_token:
        tokens = np.append(tokens, recipe.end_token)
    return tokens.astype(dtype)


def recipe_tokenizer(recipe: Recipe) -> Tokenizer | None:
    """Return the tokenizer of a recipe, the same object again in each process; None if there is none."""
    if recipe.tokenizer is None:
        return None
    return _load_once(recipe.tokenizer, recipe.end_token, recipe.special_tokens)


@lru_cache(maxsize=1)
def _load_once(spec: str, end_token: int | None, special_tokens: SpecialTokens) -> Tokenizer:
    return load_tokenizer(spec, end_token=end_token, special_tokens=special_tokens)


class _SplitWriter:
    """Writes the samples of one split of a work item, shard after shard."""

    def __init__(self, work_item: int, split: str, recipe: Recipe, directory: Path):
        self.record = SplitRecord()
        self._work_item, self._recipe, self._directory = work_item, recipe, directory / split
        self._packer = Packer(recipe.seq_len, recipe.packed, recipe.document_ids)
        self._samples: list[Sample] = []

    def add(self, tokens: np.ndarray, document: Document) -> None:
        self.record.documents += 1
        self.record.tokens += len(tokens)
        self.record.bytes += len(document.text or b"")
        self.record.token_documents += document.text is None
        if document.label is not None:
            self.record.classes = max(self.record.classes, document.label + 1)
        self._collect(self._packer.add(tokens, document.label))

    def finish(self) -> None:
        self._collect(self._packer.finish())
        if self._samples:
            self._write()

    def _collect(self, samples: Iterator[Sample]) -> None:
        for sample in samples:
            self._samples.append(sample)
            if len(self._samples) == self._recipe.samples_per_shard:
                self._write()

    def _write(self) -> None:
        self._directory.mkdir(exist_ok=True)
        shard = self._directory / SHARD_NAME.format(len(self.record.shards))
        first = self.record.samples
        keys = (KEY.format(work_item=self._work_item, number=first + row) for row in range(len(self._samples)))
        write_shard(shard, zip(keys, self._samples))
        index = make_shard_index(str(shard), index_path(str(shard), None))
        self.record.samples += len(self._samples)
        self.record.shards.append((shard.name, index.stamp.size, index.stamp.digest))
        self._samples = []
