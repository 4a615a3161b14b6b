"""Several sources as one stream: a pure function of (weights, seed, position), as the order of one source is.

The positions of the stream are cut into blocks. In each block a source gets the whole samples of its share; what is
left over goes to some of the sources by systematic sampling of the fractions, so that over blocks none is favoured.
The samples of a source are spread evenly over a block, each at a random place of its own interval (stratified
sampling). So at any position the consumption of a source is known without counting, is within a few samples of its
share, and its samples come in the order that the source has on its own.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from hashlib import blake2b
from typing import Protocol

import numpy as np

from nar_scale.data.index import DatasetIndex, group
from nar_scale.data.order import SampleOrder, hash_words
from nar_scale.errors import ConfigError

BLOCK_SAMPLES = 1 << 16
CYCLE_BLOCKS = 1 << 16  # after which the left-over samples have been given out exactly by the fractions
CYCLE_STEP = 40503  # odd, and near the golden ratio of a cycle: any run of blocks is spread evenly over it
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
        self._layout = lru_cache(maxsize=8)(self._lay_out)
        self._consumed_before = np.zeros((len(stages), len(orders)), dtype=np.int64)
        for number in range(1, len(stages)):
            self._consumed_before[number] = self.consumed(starts[number] - 1) + self._at(starts[number] - 1)

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
        stages = np.searchsorted(self._starts, positions, side="right") - 1
        blocks, offsets = np.divmod(positions - self._starts[stages], BLOCK_SAMPLES)
        sources, places = np.empty_like(positions), np.empty_like(positions)
        for stage, block in set(zip(stages.tolist(), blocks.tolist())):
            chosen = (stages == stage) & (blocks == block)
            of_source, rank = self._layout(stage, block)
            source = of_source[offsets[chosen]]
            before = self._consumed_before[stage] + self._shares[stage].before(block)
            sources[chosen], places[chosen] = source, before[source] + rank[offsets[chosen]]
        return sources, places

    def consumed(self, position: int) -> np.ndarray:
        """Return how many samples of each source come before a position, int64 [sources]."""
        stage = int(np.searchsorted(self._starts, position, side="right")) - 1
        block, offset = divmod(position - int(self._starts[stage]), BLOCK_SAMPLES)
        part = np.bincount(self._layout(stage, block)[0][:offset], minlength=len(self.orders))
        return self._consumed_before[stage] + self._shares[stage].before(block) + part

    def _at(self, position: int) -> np.ndarray:
        sources, _ = self.locate_sources(np.array([position], dtype=np.int64))
        return np.bincount(sources, minlength=len(self.orders))

    def _lay_out(self, stage: int, block: int) -> tuple[np.ndarray, np.ndarray]:
        """Source, int64 [BLOCK_SAMPLES], and rank among the block's samples of that source, for every offset."""
        shares = self._shares[stage].of(block)
        sources = np.repeat(np.arange(len(shares)), shares)
        ranks = np.arange(BLOCK_SAMPLES) - np.repeat(np.cumsum(shares) - shares, shares)
        jitter = hash_words(self.seed, MIXTURE_ORDER, stage, block, sources, ranks).astype(np.float64) / 2.0**64
        in_order = np.argsort((ranks + jitter) / shares[sources], kind="stable")
        return sources[in_order], ranks[in_order]

    def __reduce__(self) -> tuple[type["MixedOrder"], tuple[list[SampleOrder], list[Stage], int]]:
        return MixedOrder, (self.orders, self.stages, self.seed)


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
            own_ids = sample_ids[chosen] - (self._ends[source] - self.indexes[source].num_samples)
            for place, content in zip(chosen.tolist(), self.indexes[source].read_many(own_ids, field)):
                contents[place] = content
        return contents

    def prefetch(self, sample_ids: np.ndarray) -> None:
        """Start to fetch the remote shards of samples, int64 [n], that will be read soon."""
        sources = np.searchsorted(self._ends, sample_ids, side="right")
        for chosen in group(sources):
            source = int(sources[chosen[0]])
            first = self._ends[source] - self.indexes[source].num_samples
            self.indexes[source].prefetch(sample_ids[chosen] - first)

    def name(self, sample_id: int) -> str:
        """Return "source NAME, shard PATH, sample KEY" for messages."""
        source, own_id = self._place(sample_id)
        return f"source {self.names[source]}, {self.indexes[source].name(own_id)}"

    def _place(self, sample_id: int) -> tuple[int, int]:
        source = int(np.searchsorted(self._ends, sample_id, side="right"))
        return source, int(sample_id - self._ends[source] + self.indexes[source].num_samples)


def weights_by_temperature(num_samples: Sequence[int], temperature: float) -> tuple[float, ...]:
    """Return weights proportional to num_samples ** (1 / temperature) (Arivazhagan et al., arXiv:1907.05019).

    A temperature of 1 takes sources by size, a high one takes all alike.
    """
    sizes = np.array(num_samples, dtype=np.float64)
    weights = (sizes / sizes.sum()) ** (1 / temperature)
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
        self._in_cycle = lru_cache(maxsize=8)(self._count_in_cycle)

    def of(self, block: int) -> np.ndarray:
        """Samples in a block, int64 [sources]."""
        return self.before(block + 1) - self.before(block)

    def before(self, block: int) -> np.ndarray:
        """Samples in all blocks before one, int64 [sources]."""
        cycles, blocks = divmod(block, CYCLE_BLOCKS)
        return cycles * self._per_cycle + self._in_cycle(blocks)

    def _count_in_cycle(self, blocks: int) -> np.ndarray:
        starts = np.arange(blocks, dtype=np.int64) * CYCLE_STEP % CYCLE_BLOCKS
        left_over = np.array([((end + starts) // CYCLE_BLOCKS).sum() for end in self._ends], dtype=np.int64)
        return blocks * self._whole + np.diff(left_over, prepend=0)
