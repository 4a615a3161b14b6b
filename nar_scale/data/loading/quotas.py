"""How many samples of each source a mixture takes, exactly and without counting them one by one."""

from collections.abc import Sequence

import numpy as np

from nar_scale.errors import ConfigError

BLOCK_SAMPLES = 1 << 16
CYCLE_BLOCKS = 1 << 16  # after which the left-over samples have been given out exactly by the fractions
CYCLE_STEP = 40503  # odd, and near the golden ratio of a cycle: any run of blocks is spread evenly over it


class Quotas:
    """How many samples of each source stand in each block of `BLOCK_SAMPLES` of a stream.

    In each block a source gets the whole samples of its quota; what is left over goes to some of the sources by
    systematic sampling of the fractions, so that over many blocks no source is favoured.

    Args:
        weights: of the sources; they need not sum to 1.

    Raises:
        ConfigError: a weight is negative or not finite, none is positive, or one is below a sample in 2**32.
    """

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
        """Return the samples of each source in some blocks, int64 `[n]`, as int64 `[n, sources]`."""
        return self.before(blocks + 1) - self.before(blocks)

    def before(self, blocks: np.ndarray) -> np.ndarray:
        """Return the samples of each source in all blocks before some, int64 `[n]`, as int64 `[n, sources]`."""
        cycles, blocks = np.divmod(blocks[:, None], CYCLE_BLOCKS)
        left_over = sum_of_floors(blocks, CYCLE_STEP, np.append(0, self._ends), CYCLE_BLOCKS)
        return cycles * self._per_cycle + blocks * self._whole + np.diff(left_over, axis=1)


def sum_of_floors(count: np.ndarray, step: int, first: np.ndarray, divisor: int) -> np.ndarray:
    """Sum (first + step i) // divisor over i in [0, count), elementwise, by Euclid's algorithm on step and divisor.

    Args:
        count: int64, at least 0.
        step: at least 0.
        first: int64, at least 0, broadcast against `count`.
        divisor: at least 1.

    Returns:
        int64 of the common shape.
    """
    total = np.zeros(np.broadcast_shapes(count.shape, first.shape), dtype=np.int64)
    while divisor:
        total += count * (count - 1) // 2 * (step // divisor) + count * (first // divisor)
        step %= divisor
        # counted the other way: lattice points under the line, by height
        count, first = np.divmod(step * count + first % divisor, divisor)
        step, divisor = divisor, step
    return total
