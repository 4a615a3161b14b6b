"""What to prepare and how, cut into units of work that do not depend on who does them."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from hashlib import blake2b
from itertools import groupby
from pathlib import Path

from nar_scale.data.formats.corpus import Corpus
from nar_scale.data.formats.input_formats import Piece
from nar_scale.data.formats.inputs import split_into_pieces
from nar_scale.data.parallel import ordered_map
from nar_scale.errors import DataError

FILES_PER_TASK = 256


@dataclass(frozen=True)
class Recipe:
    """How documents become samples.

    Attributes:
        seq_len: tokens in a sample.
        tokenizer: "byte", the path of a tokenizer file, or None where the input is tokens of no tokenizer.
        tokenizer_fingerprint: of that file.
        vocabulary_size: number of token ids.
        end_token: appended to documents; None if they are joined as they are.
        text_field: see `read_piece`.
        validation: fraction of the documents to hold out.
        packed: join documents instead of giving each samples of its own.
        document_ids: write which document each token belongs to.
        samples_per_shard: most samples in a tar file.
        unit_bytes: input that is packed together.
    """

    seq_len: int
    tokenizer: str | None
    tokenizer_fingerprint: str
    vocabulary_size: int
    end_token: int | None
    text_field: str
    validation: float
    packed: bool
    document_ids: bool
    samples_per_shard: int
    unit_bytes: int


@dataclass(frozen=True)
class Unit:
    """Input that one process packs into shards of its own.

    Attributes:
        number: the place of the unit among all.
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
    """All units of a data set; the same on every machine that sees the same inputs.

    Attributes:
        recipe: how documents become samples.
        units: in the order of the inputs.
        hidden: hidden files that were passed over.
        fingerprint: hex digest of the recipe and of name, size and mtime of the inputs.
    """

    recipe: Recipe
    units: tuple[Unit, ...]
    hidden: int
    fingerprint: str

    def part(self, number: int, parts: int) -> list[Unit]:
        """Return the units of part `number`, from 1, of `parts`."""
        return list(self.units[number - 1 :: parts])


def make_plan(corpus: Corpus, recipe: Recipe, workers: int) -> Plan:
    """Cut a corpus into units of about `recipe.unit_bytes`.

    Raises:
        DataError: a file cannot be read or is damaged.
        UserError: an optional package is needed and not installed.
    """
    settings = {name: value for name, value in asdict(recipe).items() if name != "tokenizer"}  # but its fingerprint
    hasher = blake2b(repr(sorted(settings.items())).encode(), digest_size=8)
    tasks = [
        (corpus.files[start : start + FILES_PER_TASK], recipe.unit_bytes)
        for start in range(0, len(corpus.files), FILES_PER_TASK)
    ]
    pieces: list[Piece] = []
    for found, described in ordered_map(_split, tasks, min(workers, len(tasks))):
        pieces.extend(found)
        hasher.update(described.encode())
    units = tuple(Unit(number, tuple(unit)) for number, unit in enumerate(_group(pieces, recipe.unit_bytes)))
    return Plan(recipe, units, corpus.hidden, hasher.hexdigest())


def _split(task: tuple[Sequence[Path], int]) -> tuple[list[Piece], str]:
    files, piece_bytes = task
    pieces, described = [], []
    for file in files:
        try:
            status = file.stat()
        except OSError as error:
            raise DataError(f"cannot read {file}: {error.strerror}; make it readable or exclude it") from error
        pieces.extend(split_into_pieces(file, piece_bytes))
        described.append(f"{file}\0{status.st_size}\0{status.st_mtime_ns}\n")
    return pieces, "".join(described)


def _group(pieces: Sequence[Piece], unit_bytes: int) -> Iterator[list[Piece]]:
    """Pieces that start in the same stretch of `unit_bytes` of the whole input."""
    end = 0
    stretches = []
    for piece in pieces:
        stretches.append(end // unit_bytes)
        end += piece.size
    for _, numbered in groupby(zip(stretches, pieces), key=lambda pair: pair[0]):
        yield [piece for _, piece in numbered]
