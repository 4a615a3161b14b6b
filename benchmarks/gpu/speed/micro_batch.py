"""The largest micro-batch that fits, by the estimate of the dry run and by what a run has measured."""

from __future__ import annotations

import torch

from nar_scale.config import Config, resolve_deepspeed_config
from nar_scale.objectives import build_wrapper
from nar_scale.planning.memory_estimate import GIBIBYTE, estimate_memory

SIZES = (1, 2, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128)
_LIBRARIES = 1.0 * GIBIBYTE  # what is not counted: handles of cuBLAS and NCCL, fragments
_MARGIN = 0.94


def estimated_bytes(config: Config) -> float:
    """What one rank needs in its device's memory by the estimate of the dry run, with `data.vocabulary_size` given."""
    assert config.data.vocabulary_size is not None
    with torch.device("meta"):
        wrapper = build_wrapper(config, config.data.vocabulary_size)
    parts = estimate_memory(wrapper, config, resolve_deepspeed_config(config, 1), 1)
    return sum(part.size for part in parts if part.location == "device")


def largest_that_fits(needed: dict[int, float], available: float) -> int:
    """The largest size whose bytes leave a margin of what is available; the smallest size if none does."""
    fitting = [size for size, amount in needed.items() if amount + _LIBRARIES <= _MARGIN * available]
    return max(fitting, default=min(needed))


def larger_one(size: int, estimate: dict[int, float], measured: float, available: float) -> int | None:
    """A larger size that a run with `size`, which took `measured` bytes, has shown to fit; None if there is none.

    Whatever of the estimate did not come true is taken to have been activations, which grow with the size.
    """
    fixed = 2 * estimate[1] - estimate[2]
    each = max(measured - fixed, 0.0) / size
    if not each:
        return None
    largest = largest_that_fits({other: fixed + each * other for other in SIZES}, available)
    return largest if largest > size else None


def smaller_one(size: int) -> int | None:
    """The next smaller size; None if there is none."""
    return max((other for other in SIZES if other < size), default=None)
