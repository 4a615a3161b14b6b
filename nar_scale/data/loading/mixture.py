"""Several sources as one stream: a pure function of (weights, seed, position), as the order of one source is.

The positions of the stream are cut into blocks, and `Quotas` says how many samples of each source stand in a block. The
samples of a source are spread evenly over a block, each at a random point of its own interval (stratified sampling). So
at any position the consumption of a source is known without counting, is within a few samples of its quota, and its
samples come in the order that the source has on its own.

A block need not be laid out to find a sample: the one at an offset lies near that fraction of every source's interval,
so a few samples of each source around it are put in order, and those before them are known by number.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from nar_scale.data.loading.quotas import BLOCK_SAMPLES, Quotas
from nar_scale.data.loading.sample_order import SampleOrder, hash_words
from nar_scale.errors import ConfigError

CELL_SAMPLES = 32  # neighbours put in order together; divides a block
MIXTURE_ORDER = 3


class Order(Protocol):
    """The order of the samples of a stream: a `SampleOrder` or a `MixedOrder`."""

    def locate(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the epochs and the sample ids, both int64 `[n]`, at positions, int64 `[n]`, of the endless stream."""


@dataclass(frozen=True)
class Stage:
    """A part of a curriculum.

    Attributes:
        start: the position of the stream, in samples, at which it begins.
        weights: of the sources from there on; they need not sum to 1.
    """

    start: int
    weights: tuple[float, ...]


class MixedOrder:
    """Mixes the orders of several sources by weight.

    Sample ids number the samples of all sources through, source after source. The epoch of a sample is that of its
    source.

    Args:
        orders: of the sources.
        stages: weights of the sources by position; the first begins at 0.
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
        self._quotas = [Quotas(stage.weights) for stage in stages]
        self._consumed_before = np.zeros((len(stages), len(orders)), dtype=np.int64)
        for number in range(1, len(stages)):
            last = self.locate_sources(np.array([starts[number] - 1], dtype=np.int64))[0]
            before = self.consumed(starts[number] - 1)
            self._consumed_before[number] = before + np.bincount(last, minlength=len(orders))

    def locate(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the epochs and the sample ids at some positions of the endless stream.

        Args:
            positions: int64 `[n]`, each at least 0.

        Returns:
            The epochs, int64 `[n]`, and the sample ids, int64 `[n]`.
        """
        positions = np.asarray(positions, dtype=np.int64)
        sources, own_positions = self.locate_sources(positions)
        epochs, sample_ids = np.empty_like(positions), np.empty_like(positions)
        for source in np.unique(sources):
            chosen = sources == source
            epochs[chosen], ids = self.orders[source].locate(own_positions[chosen])
            sample_ids[chosen] = self._first_ids[source] + ids
        return epochs, sample_ids

    def locate_sources(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the source of the samples at some positions, and their positions in the stream of that source.

        Args:
            positions: int64 `[n]`, each at least 0.

        Returns:
            The numbers of the sources, int64 `[n]`, and positions, int64 `[n]`.
        """
        firsts, cells = np.unique(self._first_of_cell(positions), return_inverse=True)
        rows = self._lay_out(firsts)
        columns = positions - rows.starts[cells]
        sources = rows.sources[cells, columns]
        return sources, rows.own_positions[cells, columns]

    def consumed(self, position: int) -> np.ndarray:
        """Return how many samples of each source come before a position, int64 `[sources]`."""
        row = self._lay_out(self._first_of_cell(np.array([position], dtype=np.int64)))
        sources = row.sources[0, : position - row.starts[0]]
        return row.consumed[0] + np.bincount(sources, minlength=len(self.orders))

    def _first_of_cell(self, positions: np.ndarray) -> np.ndarray:
        starts = self._starts[self._stage_at(positions)]
        return positions - (positions - starts) % CELL_SAMPLES

    def _stage_at(self, positions: np.ndarray) -> np.ndarray:
        return np.searchsorted(self._starts, positions, side="right") - 1

    def _lay_out(self, firsts: np.ndarray) -> "_Rows":
        """Put in order the samples around some cells, given by their first positions, int64 `[cells]`.

        With n samples of a source in a block, its sample of rank r stands at a point x in [r / n, (r + 1) / n] of the
        block, and so do those of the others: of each source, x n samples come before it, give or take one. Its offset
        is thus x BLOCK_SAMPLES, give or take one for each source, and which ranks may stand in a cell is known.
        """
        stages = self._stage_at(firsts)
        blocks, offsets = np.divmod(firsts - self._starts[stages], BLOCK_SAMPLES)
        before, quotas = np.empty((2, len(firsts), len(self.orders)), dtype=np.int64)
        for stage in np.unique(stages):
            chosen = stages == stage
            before[chosen] = self._consumed_before[stage] + self._quotas[stage].before(blocks[chosen])
            quotas[chosen] = self._quotas[stage].of(blocks[chosen])
        margin = len(self.orders) + 1
        low = np.maximum((offsets - margin)[:, None] * quotas // BLOCK_SAMPLES - 1, 0)
        high = (offsets + CELL_SAMPLES + margin)[:, None] * quotas // BLOCK_SAMPLES + 1
        widths = (high - low).max(axis=0, initial=0)
        sources = np.repeat(np.arange(len(widths)), widths)
        ranks = low[:, sources] + np.arange(len(sources)) - np.repeat(np.cumsum(widths) - widths, widths)
        hashes = hash_words(self.seed, MIXTURE_ORDER, stages[:, None], blocks[:, None], sources, ranks)
        in_block = quotas[:, sources]
        keys = (ranks + hashes.astype(np.float64) / 2.0**64) / np.maximum(in_block, 1)
        in_order = np.argsort(np.where(ranks < in_block, keys, np.inf), axis=1, kind="stable")
        own_positions = np.take_along_axis(before[:, sources] + ranks, in_order, axis=1)
        return _Rows(firsts - offsets + low.sum(axis=1), before + low, sources[in_order], own_positions)

    def __reduce__(self) -> tuple[type["MixedOrder"], tuple[list[SampleOrder], list[Stage], int]]:
        return MixedOrder, (self.orders, self.stages, self.seed)


@dataclass(frozen=True)
class _Rows:
    """Samples in the order of the stream: several stretches of it."""

    starts: np.ndarray  # int64 [rows], position of the first sample of a row
    consumed: np.ndarray  # int64 [rows, sources], samples of each source before it
    sources: np.ndarray  # int64 [rows, columns]
    own_positions: np.ndarray  # int64 [rows, columns], positions in the sources' own streams


def weights_by_temperature(num_samples: Sequence[int], temperature: float) -> tuple[float, ...]:
    """Return weights proportional to num_samples ** (1 / temperature) (Arivazhagan et al., arXiv:1907.05019).

    A temperature of 1 weights sources by size, a high one weights all nearly the same.

    Args:
        num_samples: samples of each source.
        temperature: above 0.

    Returns:
        One weight for each source; they sum to 1.

    Raises:
        ConfigError: the temperature is so low that the weight of a source becomes 0.
    """
    sizes = np.array(num_samples, dtype=np.float64)
    weights = (sizes / sizes.max()) ** (1 / temperature)
    if not weights.all():
        raise ConfigError(
            f"at a temperature of {temperature} nothing is taken from a source of {int(sizes.min()):,} samples beside "
            f"one of {int(sizes.max()):,}; raise it"
        )
    return tuple((weights / weights.sum()).tolist())
