"""Several sources as one stream: a pure function of (weights, seed, position), as the order of one source is.

The positions of the stream are cut into blocks. In each block a source gets the whole samples of its share; what is
left over goes to some of the sources by systematic sampling of the fractions, so that over blocks none is favoured.
The samples of a source are spread evenly over a block, each at a random place of its own interval (stratified
sampling). So at any position the consumption of a source is known without counting, is within a few samples of its
share, and its samples come in the order that the source has on its own.

A block need not be laid out to find a sample: the one at an offset lies near that fraction of every source's interval,
so a few samples of each source around it are put in order, and those before them are known by number.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Protocol

import numpy as np

from nar_scale.data.loading.order import SampleOrder, hash_words
from nar_scale.data.shards.dataset_index import DatasetIndex, group
from nar_scale.errors import ConfigError

BLOCK_SAMPLES = 1 << 16
CYCLE_BLOCKS = 1 << 16  # after which the left-over samples have been given out exactly by the fractions
CYCLE_STEP = 40503  # odd, and near the golden ratio of a cycle: any run of blocks is spread evenly over it
CELL_SAMPLES = 32  # neighbours put in order together; divides a block
MIXTURE_ORDER = 3


class Order(Protocol):
    """Where the samples of a stream come: a `SampleOrder` or a `MixedOrder`."""

    def locate(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the epochs and the sample ids, int64 [n], at positions, int64 [n], of the endless stream."""


@dataclass(frozen=True)
class Stage:
    """Part of a curriculum: the weights of the sources from a position of the stream on; they need not sum to 1."""

    start: int
    weights: tuple[float, ...]


class MixedOrder:
    """Mixes the orders of several sources by weight.

    Sample ids number the samples of all sources through, source after source. The epoch of a sample is that of its
    source.

    Args:
        orders: of the sources.
        stages: weights of the sources by position, the first from 0 on.
        seed: any integer.

    Raises:
        ConfigError: no first stage at 0, stages that do not ascend, a negative weight, no positive one, or one below
            a sample in 2**32.
    """

    def __init__(self, orders: Sequence[SampleOrder], stages: Sequence[Stage], seed: int):
        self.orders, self.stages, self.seed = list(orders), list(stages), seed
        starts = [stage.start for stage in stages]
        if not stages or starts[0] != 0 or sorted(set(starts)) != starts:
            raise ConfigError(f"the stages of a mixture start at {starts}; start at 0 and ascend")
        counts = np.array([order.num_samples for order in orders], dtype=np.int64)
        self._first_ids = np.cumsum(counts) - counts
        self._starts = np.array(starts, dtype=np.int64)
        self._shares = [_Shares(stage.weights) for stage in stages]
        self._consumed_before = np.zeros((len(stages), len(orders)), dtype=np.int64)
        for number in range(1, len(stages)):
            last = self.locate_sources(np.array([starts[number] - 1], dtype=np.int64))[0]
            before = self.consumed(starts[number] - 1)
            self._consumed_before[number] = before + np.bincount(last, minlength=len(orders))

    def locate(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the epochs and the sample ids at some positions of the endless stream.

        Args:
            positions: int64 [n], each at least 0.

        Returns:
            epochs, int64 [n], and sample ids, int64 [n].
        """
        positions = np.asarray(positions, dtype=np.int64)
        sources, places = self.locate_sources(positions)
        epochs, sample_ids = np.empty_like(positions), np.empty_like(positions)
        for source in np.unique(sources):
            chosen = sources == source
            epochs[chosen], ids = self.orders[source].locate(places[chosen])
            sample_ids[chosen] = self._first_ids[source] + ids
        return epochs, sample_ids

    def locate_sources(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return which source, int64 [n], and which position in its own stream, int64 [n], is at some positions."""
        firsts, cells = np.unique(self._first_of_cell(positions), return_inverse=True)
        rows = self._lay_out(firsts)
        columns = positions - rows.starts[cells]
        sources = rows.sources[cells, columns]
        return sources, rows.places[cells, columns]

    def consumed(self, position: int) -> np.ndarray:
        """Return how many samples of each source come before a position, int64 [sources]."""
        row = self._lay_out(self._first_of_cell(np.array([position], dtype=np.int64)))
        sources = row.sources[0, : position - row.starts[0]]
        return row.consumed[0] + np.bincount(sources, minlength=len(self.orders))

    def _first_of_cell(self, positions: np.ndarray) -> np.ndarray:
        starts = self._starts[self._stage_at(positions)]
        return positions - (positions - starts) % CELL_SAMPLES

    def _stage_at(self, positions: np.ndarray) -> np.ndarray:
        return np.searchsorted(self._starts, positions, side="right") - 1

    def _lay_out(self, firsts: np.ndarray) -> "_Rows":
        """Put in order the samples around some cells, given by their first positions, int64 [cells].

        With n samples of a source in a block, its sample of rank r has its place x in [r / n, (r + 1) / n] of the
        block, and so have the others: of each source, x n samples come before it, give or take one. Its offset is
        thus x BLOCK_SAMPLES, give or take one for each source, and which ranks may stand in a cell is known.
        """
        stages = self._stage_at(firsts)
        blocks, offsets = np.divmod(firsts - self._starts[stages], BLOCK_SAMPLES)
        before, shares = np.empty((2, len(firsts), len(self.orders)), dtype=np.int64)
        for stage in np.unique(stages):
            chosen = stages == stage
            before[chosen] = self._consumed_before[stage] + self._shares[stage].before(blocks[chosen])
            shares[chosen] = self._shares[stage].of(blocks[chosen])
        margin = len(self.orders) + 1
        low = np.maximum((offsets - margin)[:, None] * shares // BLOCK_SAMPLES - 1, 0)
        high = (offsets + CELL_SAMPLES + margin)[:, None] * shares // BLOCK_SAMPLES + 1
        widths = (high - low).max(axis=0, initial=0)
        sources = np.repeat(np.arange(len(widths)), widths)
        ranks = low[:, sources] + np.arange(len(sources)) - np.repeat(np.cumsum(widths) - widths, widths)
        hashes = hash_words(self.seed, MIXTURE_ORDER, stages[:, None], blocks[:, None], sources, ranks)
        in_block = shares[:, sources]
        keys = (ranks + hashes.astype(np.float64) / 2.0**64) / np.maximum(in_block, 1)
        in_order = np.argsort(np.where(ranks < in_block, keys, np.inf), axis=1, kind="stable")
        places = np.take_along_axis(before[:, sources] + ranks, in_order, axis=1)
        return _Rows(firsts - offsets + low.sum(axis=1), before + low, sources[in_order], places)

    def __reduce__(self) -> tuple[type["MixedOrder"], tuple[list[SampleOrder], list[Stage], int]]:
        return MixedOrder, (self.orders, self.stages, self.seed)


@dataclass(frozen=True)
class _Rows:
    """Samples in the order of the stream: several stretches of it."""

    starts: np.ndarray  # int64 [rows], position of the first sample of a row
    consumed: np.ndarray  # int64 [rows, sources], samples of each source before it
    sources: np.ndarray  # int64 [rows, columns]
    places: np.ndarray  # int64 [rows, columns], positions in the sources' own streams


class JoinedIndex:
    """The samples of several named data sets, numbered through.

    Attributes:
        names: of the sources.
        indexes: of the sources.
        num_samples: samples in all.
        fingerprint: hex digest of the names and fingerprints of the sources.
    """

    def __init__(self, indexes: Mapping[str, DatasetIndex]):
        self.names, self.indexes = list(indexes), list(indexes.values())
        counts = np.array([index.num_samples for index in self.indexes], dtype=np.int64)
        self.num_samples = int(counts.sum())
        self._ends = np.cumsum(counts)
        self._starts = self._ends - counts
        described = "".join(f"{name}\0{index.fingerprint}\n" for name, index in indexes.items())
        self.fingerprint = blake2b(described.encode(), digest_size=16).hexdigest()

    def read(self, sample_id: int, field: str) -> bytes:
        """Return a field of a sample as it is stored; errors as in `DatasetIndex.read`."""
        source, own_id = self._place(sample_id)
        return self.indexes[source].read(own_id, field)

    def read_many(self, sample_ids: np.ndarray, field: str) -> list[bytes]:
        """Return a field of several samples, int64 [n], in one go; errors as in `DatasetIndex.read`."""
        sources = np.searchsorted(self._ends, sample_ids, side="right")
        contents = [b""] * len(sample_ids)
        for chosen in group(sources):
            source = int(sources[chosen[0]])
            read = self.indexes[source].read_many(sample_ids[chosen] - self._starts[source], field)
            for place, content in zip(chosen.tolist(), read):
                contents[place] = content
        return contents

    def prefetch(self, sample_ids: np.ndarray) -> None:
        """Start to fetch the remote shards of samples, int64 [n], that will be read soon."""
        sources = np.searchsorted(self._ends, sample_ids, side="right")
        for chosen in group(sources):
            source = int(sources[chosen[0]])
            self.indexes[source].prefetch(sample_ids[chosen] - self._starts[source])

    def name(self, sample_id: int) -> str:
        """Return "source NAME, shard PATH, sample KEY" for messages."""
        source, own_id = self._place(sample_id)
        return f"source {self.names[source]}, {self.indexes[source].name(own_id)}"

    def _place(self, sample_id: int) -> tuple[int, int]:
        source = int(np.searchsorted(self._ends, sample_id, side="right"))
        return source, int(sample_id - self._starts[source])


def weights_by_temperature(num_samples: Sequence[int], temperature: float) -> tuple[float, ...]:
    """Return weights proportional to num_samples ** (1 / temperature) (Arivazhagan et al., arXiv:1907.05019).

    A temperature of 1 takes sources by size, a high one takes all alike.

    Raises:
        ConfigError: it is so low that the weight of a source is no number above 0.
    """
    sizes = np.array(num_samples, dtype=np.float64)
    weights = (sizes / sizes.max()) ** (1 / temperature)
    if not weights.all():
        raise ConfigError(
            f"at a temperature of {temperature} nothing is taken from a source of {int(sizes.min()):,} samples beside "
            f"one of {int(sizes.max()):,}; raise it"
        )
    return tuple((weights / weights.sum()).tolist())


class _Shares:
    """Samples of each source in the blocks of a stage."""

    def __init__(self, weights: Sequence[float]):
        wanted = np.array(weights, dtype=np.float64)
        if not np.isfinite(wanted).all() or (wanted < 0).any() or wanted.sum() <= 0:
            raise ConfigError(
                f"the weights of a mixture are {list(weights)}; none may be negative, and one must be positive"
            )
        exact = wanted / wanted.sum() * BLOCK_SAMPLES
        self._whole = np.floor(exact).astype(np.int64)
        # where the fractions end when they are laid end to end, in units of 1 / CYCLE_BLOCKS of a sample
        self._ends = np.rint(np.cumsum(exact - self._whole) * CYCLE_BLOCKS).astype(np.int64)
        self._ends[-1] = (BLOCK_SAMPLES - self._whole.sum()) * CYCLE_BLOCKS
        per_cycle = self._whole * CYCLE_BLOCKS + np.diff(self._ends, prepend=0)
        if ((per_cycle <= 0) & (wanted > 0)).any():
            smallest = float(wanted[wanted > 0].min() / wanted.sum())
            raise ConfigError(
                f"the weight {smallest:.2g} of a source is less than a sample in {BLOCK_SAMPLES * CYCLE_BLOCKS:,}; "
                "raise it or leave the source out"
            )
        self._per_cycle = per_cycle

    def of(self, blocks: np.ndarray) -> np.ndarray:
        """Samples in each of some blocks, int64 [n], by source: int64 [n, sources]."""
        return self.before(blocks + 1) - self.before(blocks)

    def before(self, blocks: np.ndarray) -> np.ndarray:
        """Samples in all blocks before each of some, int64 [n], by source: int64 [n, sources]."""
        cycles, blocks = np.divmod(blocks[:, None], CYCLE_BLOCKS)
        left_over = _sum_of_floors(blocks, CYCLE_STEP, np.append(0, self._ends), CYCLE_BLOCKS)
        return cycles * self._per_cycle + blocks * self._whole + np.diff(left_over, axis=1)


def _sum_of_floors(count: np.ndarray, step: int, first: np.ndarray, divisor: int) -> np.ndarray:
    """Sum (first + step i) // divisor over i in [0, count), elementwise, by Euclid's algorithm on step and divisor."""
    total = np.zeros(np.broadcast_shapes(count.shape, first.shape), dtype=np.int64)
    while divisor:
        total += count * (count - 1) // 2 * (step // divisor) + count * (first // divisor)
        step %= divisor
        # counted the other way: lattice points under the line, by height
        count, first = np.divmod(step * count + first % divisor, divisor)
        step, divisor = divisor, step
    return total
