"""The micro-batch of token samples that training and evaluation work on."""

from collections.abc import Callable
from copy import copy
from dataclasses import dataclass, field, fields

import torch
from torch import Tensor

PAD_TOKEN = 0


@dataclass(frozen=True)
class Batch:
    """A micro-batch; all tensors are int64 and on one device.

    Attributes:
        tokens: `[batch, n]`, 0 beyond the length of a sample.
        lengths: `[batch]`, valid tokens in each sample, in `[0, n]`; 0 for a sample that is skipped or missing.
        sample_ids: `[batch]`, the number of each sample in its data set.
        epochs: `[batch]`, how often the stream had passed over the data set before.
        positions: `[batch]`, the position of each sample in the endless stream.
        classes: `[batch]`, the class of each sample; None where samples have none.
        documents: `[batch, n]`, the number of the document within its sample that each token belongs to, never
            decreasing from left to right, 0 beyond the length; None where samples are not divided into documents.
        faults: why samples were skipped, one line each.
    """

    tokens: Tensor
    lengths: Tensor
    sample_ids: Tensor
    epochs: Tensor
    positions: Tensor
    classes: Tensor | None = None
    documents: Tensor | None = None
    faults: tuple[str, ...] = ()

    padded: bool = field(init=False)
    """Whether any sample is shorter than n; kept on the host, so that reading it never waits for a device."""

    on_host: "Batch | None" = field(init=False, default=None)
    """The batch on the CPU that this one was copied from to a device, to ask what its samples hold without waiting for
    the device; None for one that has not been moved."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "padded", bool((self.lengths < self.tokens.shape[1]).any()))

    def to(self, device: torch.device | str, non_blocking: bool = False) -> "Batch":
        """Return the batch on a device."""
        moved = self._map(lambda tensor: tensor.to(device, non_blocking=non_blocking))
        if self.tokens.device.type == "cpu" and moved.tokens.device.type != "cpu":
            object.__setattr__(moved, "on_host", self)
        return moved

    def pin_memory(self) -> "Batch":
        """Return the batch in page-locked memory."""
        return self._map(lambda tensor: tensor.pin_memory())

    def _map(self, change: Callable[[Tensor], Tensor]) -> "Batch":
        moved = copy(self)
        for tensor in fields(self):
            value = getattr(self, tensor.name)
            if isinstance(value, Tensor):
                object.__setattr__(moved, tensor.name, change(value))
        return moved
