"""The order of training samples: a pure function of (counts, seed, position).

There is no shuffle buffer and no generator state: the sample at any position is computed, so a run resumes anywhere at
once. In every epoch the shards are permuted, cut into windows of a few shards, and the samples permuted inside each
window, so that only the shards of one window need to be open. The permutation of a window is a Feistel network
with cycle-walking (Black and Rogaway, "Ciphers with Arbitrary Finite Domains", 2002) over SplitMix64
(Steele, Lea and Flood, "Fast Splittable Pseudorandom Number Generators", OOPSLA 2014). Both are written out here
because a run must find the same order after an upgrade, which generators of libraries do not promise. `masking.noise`
has the same mixing function for int64 tensors on a device: numpy has unsigned integers and torch shifts signed ones, so
one text cannot serve both. A test compares the two.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from nar_scale.errors import DataError

# Even, so that halves of unequal width end where they began. So many because windows can be small: with six, neighbours
# of a window of 8 to 32 samples stay neighbours 5 to 15 % too often.
FEISTEL_ROUNDS = 16
ROUND_KEY = 0xD1B54A32D192ED03  # odd, so that no two rounds have one key
SHARD_ORDER, WINDOW_ORDER = 1, 2


@dataclass(frozen=True)
class _EpochPlan:
    shards: np.ndarray  # int64 [shards], shard numbers in the order of this epoch
    shard_ends: np.ndarray  # int64 [shards], samples up to the end of each, in that order
    window_ends: np.ndarray  # int64 [windows]


class SampleOrder:
    """An endless order of samples: another permutation of all of them in every epoch.

    Args:
        counts: int64 `[shards]`, samples in each shard; sample ids number them through in this order.
        seed: any integer; other seeds give other orders.
        window_shards: shards that are mixed with each other, at least 1; more mix better and keep more files open.

    Raises:
        DataError: there is no sample.
        ValueError: `window_shards` is below 1.
    """

    def __init__(self, counts: np.ndarray, seed: int, window_shards: int = 8):
        if window_shards < 1:
            raise ValueError(f"window_shards is {window_shards}, not at least 1")
        self.counts = np.asarray(counts, dtype=np.int64)
        self.num_samples = int(self.counts.sum())
        if self.num_samples == 0:
            raise DataError("there is no sample to put in order; check that the shards hold samples")
        self.seed = seed
        self.window_shards = window_shards
        self._shard_starts = np.cumsum(self.counts) - self.counts
        self._plan = lru_cache(maxsize=2)(self._plan_epoch)

    def locate(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the epochs and the sample ids at some positions of the endless stream.

        Args:
            positions: int64 `[n]`, each at least 0.

        Returns:
            The epochs, int64 `[n]`, and the sample ids, int64 `[n]`, each in `[0, num_samples)`. The num_samples
            positions of an epoch hold every sample once.
        """
        positions = np.asarray(positions, dtype=np.int64)
        epochs, offsets = np.divmod(positions, self.num_samples)
        sample_ids = np.empty_like(positions)
        for epoch in np.unique(epochs):
            chosen = epochs == epoch
            sample_ids[chosen] = self._locate_in_epoch(int(epoch), offsets[chosen])
        return epochs, sample_ids

    def _locate_in_epoch(self, epoch: int, offsets: np.ndarray) -> np.ndarray:
        plan = self._plan(epoch)
        window = np.searchsorted(plan.window_ends, offsets, side="right")
        window_start = np.append(0, plan.window_ends)[window]
        window_size = plan.window_ends[window] - window_start
        keys = hash_words(self.seed, WINDOW_ORDER, epoch, window)
        shuffled = window_start + permute(offsets - window_start, window_size, keys)
        slot = np.searchsorted(plan.shard_ends, shuffled, side="right")
        shard = plan.shards[slot]
        row = shuffled - (plan.shard_ends[slot] - self.counts[shard])
        return self._shard_starts[shard] + row

    def _plan_epoch(self, epoch: int) -> _EpochPlan:
        hashes = hash_words(self.seed, SHARD_ORDER, epoch, np.arange(len(self.counts)))
        shards = np.argsort(hashes, kind="stable")
        shard_ends = np.cumsum(self.counts[shards])
        last_of_window = np.arange(self.window_shards, len(shards) + self.window_shards, self.window_shards) - 1
        return _EpochPlan(shards, shard_ends, shard_ends[np.minimum(last_of_window, len(shards) - 1)])

    def __reduce__(self) -> tuple[type["SampleOrder"], tuple[np.ndarray, int, int]]:
        return SampleOrder, (self.counts, self.seed, self.window_shards)


def hash_words(*words: int | np.ndarray) -> np.ndarray:
    """Hash a sequence of integers, each a scalar or an array, to uint64 of their common shape, at least `[1]`."""
    state = np.zeros(1, dtype=np.uint64)
    for word in words:
        bits = np.uint64(word % 2**64) if isinstance(word, int) else word.astype(np.uint64)
        state = splitmix64(state ^ bits)
    return state


def permute(index: np.ndarray, size: np.ndarray, key: np.ndarray) -> np.ndarray:
    """Permute the integers in `[0, size)` by a keyed bijection, elementwise.

    Args:
        index: int64 `[n]`, each in `[0, size)`.
        size: int64 `[n]`, each in `[1, 2**53]`.
        key: uint64 `[n]` or `[1]`, which of the bijections.

    Returns:
        int64 `[n]`, each in `[0, size)`.
    """
    key = np.broadcast_to(key, index.shape)
    # The network permutes a power of two below 2 * size; where it leaves the range, going on until it is back
    # follows the cycle and so stays a bijection.
    bits = np.frexp((size - 1).astype(np.float64))[1].astype(np.uint64)
    result = _feistel(index.astype(np.uint64), bits, key)
    outside = np.flatnonzero(result >= size.astype(np.uint64))
    while outside.size:
        result[outside] = _feistel(result[outside], bits[outside], key[outside])
        outside = outside[result[outside] >= size[outside].astype(np.uint64)]
    return result.astype(np.int64)


def _feistel(value: np.ndarray, bits: np.ndarray, key: np.ndarray) -> np.ndarray:
    one = np.uint64(1)
    left_bits = bits // np.uint64(2)
    right_bits = bits - left_bits
    for number in range(FEISTEL_ROUNDS):
        left = value >> right_bits
        right = value & ((one << right_bits) - one)
        noise = splitmix64(right ^ (key + np.uint64(number * ROUND_KEY % 2**64)))
        value = (right << left_bits) | (left ^ (noise & ((one << left_bits) - one)))
        left_bits, right_bits = right_bits, left_bits
    return value


def splitmix64(value: np.ndarray) -> np.ndarray:
    """Return the output of SplitMix64 for states, uint64 of any shape: the golden gamma is added, then mixed."""
    value = value + np.uint64(0x9E3779B97F4A7C15)
    value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return value ^ (value >> np.uint64(31))
