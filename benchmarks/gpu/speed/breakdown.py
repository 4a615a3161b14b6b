"""Where the time of a step goes, from a trace of it."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

from benchmarks.gpu.speed.step_trace import AFTER, BACKWARD, DATA, HEAD, OPTIMIZER
from benchmarks.gpu.speed.trace_events import Work, busy_time

ATTENTION = "attention kernels"
PROJECTIONS = "attention projections"
FEEDFORWARD = "feed-forward products"
ELEMENTWISE = "element-wise work of the blocks"
HEAD_AND_LOSS = "head and loss"
EMBEDDING = "embedding"
GRADIENTS = "gradients of ZeRO"
STEP = "optimizer"
LOADING = "data, counts and masks"
IDLE = "nothing running"
CATEGORIES = (
    *(ATTENTION, PROJECTIONS, FEEDFORWARD, ELEMENTWISE, HEAD_AND_LOSS, EMBEDDING, GRADIENTS, STEP, LOADING, IDLE),
)

_ATTENTION_NAMES = re.compile(r"flash|fmha|sdpa|attention|flex_", re.IGNORECASE)
_FUSED = ("triton_poi_", "triton_red_", "triton_per_")  # whose names list all that has been fused into them
_PRODUCTS = re.compile(r"aten::(mm|addmm|bmm|baddbmm)$")
_AUTOGRAD = "autograd::engine::evaluate_function"
_NAME_LENGTH = 90


@dataclass
class Part:
    """A category's share of a step.

    Attributes:
        microseconds: that the device spent on it.
        pieces: kernels, or operations where there is no GPU.
        flops: of its matrix products.
        product_microseconds: that these took.
    """

    microseconds: float = 0.0
    pieces: int = 0
    flops: float = 0.0
    product_microseconds: float = 0.0
    kernels: dict[str, float] = field(default_factory=lambda: defaultdict(float))


def break_down(work: Sequence[Work], span: float, hidden: Collection[int], vocabulary: int) -> dict[str, Part]:
    """Share out the time of a step.

    Where kernels run side by side the categories add up to more than the step.

    Args:
        work: what ran.
        span: from the beginning of the step to the end of its last work, in microseconds.
        hidden: widths by which the matrix products of feed-forward layers are known: that of the hidden layer, and
            twice that where it is gated.
        vocabulary: the same of the head.
    """
    parts = {name: Part() for name in CATEGORIES}
    for each in work:
        part = parts[classify(each, hidden, vocabulary)]
        part.microseconds += each.duration
        part.pieces += 1
        part.kernels[each.name[:_NAME_LENGTH]] += each.duration
        if product := product_flops(each):
            part.flops += product
            part.product_microseconds += each.duration
    parts[IDLE].microseconds = max(span - busy_time(work), 0.0)
    return parts


def classify(work: Work, hidden: Collection[int], vocabulary: int) -> str:
    """The category of a piece of work, by the part of the step, the operations around it and the shapes of products.

    Compiled blocks fuse norms, rotary positions, activations and residuals as it suits the compiler, so these are one
    category.
    """
    innermost = work.operations[-1] if work.operations else ""
    sizes = {size for shape in work.shapes for size in shape}
    if work.part == OPTIMIZER:
        return STEP
    names = [name for name in (work.name, *work.operations) if not name.startswith(_FUSED)]
    if any(_ATTENTION_NAMES.search(name) for name in names):
        return ATTENTION
    if work.part == HEAD:
        return HEAD_AND_LOSS
    if work.part in (DATA, AFTER):
        return LOADING
    if work.part == BACKWARD and _is_of_zero(work):
        return GRADIENTS
    if any("embedding" in name.lower() for name in names):
        return EMBEDDING
    if _PRODUCTS.match(innermost):
        if vocabulary in sizes:
            return HEAD_AND_LOSS
        return FEEDFORWARD if sizes & set(hidden) else PROJECTIONS
    return ELEMENTWISE


def product_flops(work: Work) -> float:
    """FLOPs of a matrix product, by the shapes of its two last matrices; 0 for anything else."""
    innermost = work.operations[-1] if work.operations else ""
    found = _PRODUCTS.match(innermost)
    if not found:
        return 0.0
    shapes = work.shapes[1:] if "add" in found[1] else work.shapes
    if len(shapes) < 2 or len(shapes[0]) < 2 or len(shapes[1]) < 2:
        return 0.0
    left, right = shapes[0], shapes[1]
    batch = left[0] if len(left) == 3 else 1
    return 2.0 * batch * left[-2] * left[-1] * right[-1]


def longest_kernels(parts: dict[str, Part], count: int) -> list[str]:
    """The kernels that take most of a step, as lines of category, milliseconds and name."""
    kernels = [(time, name, category) for category, part in parts.items() for name, time in part.kernels.items()]
    return [f"{category}: {time / 1e3:.2f} ms {name}" for time, name, category in sorted(kernels, reverse=True)[:count]]


def _is_of_zero(work: Work) -> bool:
    """Whether it is asked for where gradients have just become whole, or after autograd is done."""
    around = [name for name in work.operations if name.startswith(_AUTOGRAD)]
    return not around or any("AccumulateGrad" in name for name in around)
