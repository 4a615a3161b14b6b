"""Packing one unit of the input into shards of its own, which appear all at once."""

import json
import os
import shutil
import uuid
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from hashlib import blake2b
from pathlib import Path

import numpy as np

from nar_scale.data.formats.input_formats import Skip, Source
from nar_scale.data.formats.inputs import read_piece
from nar_scale.data.preparation.packing import Packer
from nar_scale.data.preparation.plan import Recipe, Unit
from nar_scale.data.preparation.shard_writer import write_shard
from nar_scale.data.shards.sample_format import Sample
from nar_scale.data.shards.shard_index import index_path, make_shard_index
from nar_scale.data.storage.locks import locked, locked_if_possible
from nar_scale.data.tokenizers import Tokenizer, load_tokenizer
from nar_scale.errors import DataError
from nar_scale.files import sync_directory

RECORD_FILE = "record.json"
UNIT_SHARD_NAME = "shard-{:04d}.tar"
LOCK_SUFFIX = ".lock"
KEY = "{unit:06d}-{number:07d}"


@dataclass
class SplitRecord:
    """What a unit gave to a split: totals, and name, size in bytes and digest of each shard."""

    documents: int = 0
    samples: int = 0
    tokens: int = 0
    bytes: int = 0
    classes: int = 0
    shards: list[tuple[str, int, str]] = field(default_factory=list)


@dataclass
class UnitRecord:
    """What became of a unit.

    Attributes:
        splits: by name.
        skipped: documents left out, by reason.
    """

    splits: dict[str, SplitRecord]
    skipped: dict[str, int]

    @classmethod
    def load(cls, directory: Path) -> "UnitRecord | None":
        """Read the record of a finished unit; None if it is not finished."""
        try:
            content = json.loads((directory / RECORD_FILE).read_text())
        except FileNotFoundError:
            return None
        splits = {name: SplitRecord(**split) for name, split in content["splits"].items()}
        return cls(splits, content["skipped"])


def unit_directory(staging: Path, number: int) -> Path:
    """Return where the shards of a finished unit are."""
    return staging / f"unit-{number:06d}"


def prepare_unit(task: tuple[Unit, Recipe, Path]) -> UnitRecord:
    """Pack a unit, unless it is done.

    Any number of processes may do the same unit: the first to finish publishes it, by one rename.

    Args:
        task: the unit, the recipe, and the directory of all units.

    Raises:
        DataError: an input cannot be read, or a document of tokens has one outside the vocabulary.
        OSError: the shards cannot be written.
    """
    unit, recipe, staging = task
    target = unit_directory(staging, unit.number)
    record = UnitRecord.load(target)
    if record is not None:
        return record
    with _working_directory(staging, unit.number) as working:
        packed = working / "packed"
        packed.mkdir()
        record = _pack(unit, recipe, packed)
        with open(packed / RECORD_FILE, "w") as file:
            json.dump(asdict(record), file)
            file.flush()
            os.fsync(file.fileno())
        if target.exists() and UnitRecord.load(target) is None:
            os.rename(target, working / "incomplete")  # somebody has deleted a part of it
        try:
            os.rename(packed, target)
        except OSError:
            if UnitRecord.load(target) is None:
                raise
        sync_directory(staging)
    return record


def remove_leftovers(staging: Path) -> None:
    """Remove what processes of this node were writing when they were killed; the locks of others may not be seen."""
    for lock in staging.glob(f".unit-*-{os.uname().nodename}-*{LOCK_SUFFIX}"):
        with suppress(OSError), locked(lock, wait=False):
            shutil.rmtree(lock.with_name(lock.name.removesuffix(LOCK_SUFFIX)), ignore_errors=True)


@contextmanager
def _working_directory(staging: Path, number: int) -> Iterator[Path]:
    working = staging / f".unit-{number:06d}-{os.uname().nodename}-{uuid.uuid4().hex[:8]}"
    with locked_if_possible(working.with_name(working.name + LOCK_SUFFIX)):
        working.mkdir()
        try:
            yield working
        finally:
            shutil.rmtree(working, ignore_errors=True)


def _pack(unit: Unit, recipe: Recipe, directory: Path) -> UnitRecord:
    tokenizer = None if recipe.tokenizer is None else _worker_tokenizer(recipe.tokenizer)
    splits = {split: _SplitWriter(unit.number, split, recipe, directory) for split in ("train", "validation")}
    skipped = Counter[str]()
    for piece in unit.pieces:
        for source in read_piece(piece, recipe.text_field):
            if isinstance(source, Skip):
                skipped[source.reason] += 1
                continue
            if source.label is not None and recipe.packed:
                raise DataError(
                    f"input {piece.file} has classes, which documents that are joined cannot keep; give "
                    "--one-document-per-sample"
                )
            split = "validation" if _fraction(source) < recipe.validation else "train"
            splits[split].add(_encode(source, tokenizer, recipe, piece.file), source)
    for writer in splits.values():
        writer.finish()
    return UnitRecord({split: writer.record for split, writer in splits.items()}, dict(skipped))


def _fraction(source: Source) -> float:
    """A hash of the content, uniform in [0, 1), so that equal documents never stand in both splits."""
    content = source.text if source.tokens is None else np.ascontiguousarray(source.tokens, dtype="<i8").tobytes()
    return int.from_bytes(blake2b(content or b"", digest_size=8).digest(), "big") / 2**64


def _encode(source: Source, tokenizer: Tokenizer | None, recipe: Recipe, file: Path) -> np.ndarray:
    dtype = np.min_scalar_type(recipe.vocabulary_size - 1)
    if source.text is not None:
        if tokenizer is None:
            raise DataError(f"input {file} holds text; give a tokenizer instead of a vocabulary size")
        ids = tokenizer.encode(source.text)
        ended = np.empty(len(ids) + 1, dtype)  # the one copy of what may be a large part of the memory
        ended[:-1], ended[-1] = ids, tokenizer.end_token
        return ended
    tokens = np.asarray(source.tokens)
    highest = int(tokens.max())
    if highest >= recipe.vocabulary_size:
        raise DataError(
            f"input {file}: token {highest} is outside the vocabulary of {recipe.vocabulary_size}; give the tokenizer "
            "it was made with, or a larger vocabulary size"
        )
    if recipe.end_token is not None and tokens[-1] != recipe.end_token:
        tokens = np.append(tokens, recipe.end_token)
    return tokens.astype(dtype)


@lru_cache(maxsize=1)
def _worker_tokenizer(spec: str) -> Tokenizer:
    return load_tokenizer(spec)


class _SplitWriter:
    """Writes the samples of one split of a unit, shard after shard."""

    def __init__(self, unit: int, split: str, recipe: Recipe, directory: Path):
        self.record = SplitRecord()
        self._unit, self._recipe, self._directory = unit, recipe, directory / split
        self._packer = Packer(recipe.seq_len, recipe.packed, recipe.document_ids)
        self._samples: list[Sample] = []

    def add(self, tokens: np.ndarray, source: Source) -> None:
        self.record.documents += 1
        self.record.tokens += len(tokens)
        self.record.bytes += len(source.text or b"")
        if source.label is not None:
            self.record.classes = max(self.record.classes, source.label + 1)
        self._take(self._packer.add(tokens, source.label))

    def finish(self) -> None:
        self._take(self._packer.finish())
        if self._samples:
            self._write()

    def _take(self, samples: Iterator[Sample]) -> None:
        for sample in samples:
            self._samples.append(sample)
            if len(self._samples) == self._recipe.samples_per_shard:
                self._write()

    def _write(self) -> None:
        self._directory.mkdir(exist_ok=True)
        shard = self._directory / UNIT_SHARD_NAME.format(len(self.record.shards))
        first = self.record.samples
        keys = (KEY.format(unit=self._unit, number=first + row) for row in range(len(self._samples)))
        write_shard(shard, zip(keys, self._samples))
        index = make_shard_index(str(shard), index_path(str(shard), None))
        self.record.samples += len(self._samples)
        self.record.shards.append((shard.name, index.stamp.size, index.stamp.digest))
        self._samples = []
