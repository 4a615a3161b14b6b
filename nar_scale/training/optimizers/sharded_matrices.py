"""Matrices of which each rank has parts, in one flat tensor, as ZeRO cuts them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import chain
from math import prod
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

Shape = tuple[int, ...]


class MatrixFragment(NamedTuple):
    """Elements `start` to `start + elements` of a flattened matrix, at `offset` in a rank's tensor."""

    matrix: str
    offset: int
    start: int
    elements: int


class ShardedMatrices:
    """Computes on whole matrices that are spread over the ranks of a group, each on one of them.

    Two exchanges, each of as many elements as the rank has: of the parts to the rank that is to compute, and back.

    Args:
        shapes: of the matrices, by name.
        parts: for each rank of the group, what its tensor holds, in any order.
        group: those ranks.
        device: where to compute and communicate, as tensors may be offloaded.
    """

    def __init__(
        self,
        shapes: dict[str, Shape],
        parts: Sequence[Sequence[MatrixFragment]],
        group: dist.ProcessGroup,
        device: torch.device,
    ):
        self.shapes, self.group, self.device = shapes, group, device
        rank = dist.get_rank(group)
        owners = _share_out(shapes, len(parts))
        ranks = range(len(parts))
        # what this rank sends to each other, and what each other sends to this one, in the same order on both sides
        self._sent = [sorted(part for part in parts[rank] if owners[part.matrix] == other) for other in ranks]
        self._received = [sorted(part for part in parts[other] if owners[part.matrix] == rank) for other in ranks]
        self._own = [name for name in shapes if owners[name] == rank]

    def map(self, function: Callable[[Tensor], Tensor], shard: Tensor) -> Tensor:
        """Apply a function to each matrix; all ranks of the group take part.

        Args:
            function: from a matrix to one of the same shape.
            shard: this rank's parts, `[elements]`; what lies between them is padding.

        Returns:
            this rank's parts of the results, with zeros between.
        """
        flat = shard.to(self.device)
        outgoing = [flat[:0], *(flat.narrow(0, part.offset, part.elements) for part in chain(*self._sent))]
        incoming = self._exchange(outgoing, self._sent, self._received)
        matrices = {name: flat.new_zeros(prod(self.shapes[name])) for name in self._own}
        for part, values in incoming:
            matrices[part.matrix].narrow(0, part.start, part.elements).copy_(values)
        results = {name: function(matrix.view(self.shapes[name])).reshape(-1) for name, matrix in matrices.items()}
        parts = chain(*self._received)
        returning = [flat[:0], *(results[part.matrix].narrow(0, part.start, part.elements) for part in parts)]
        result = torch.zeros_like(flat)
        for part, values in self._exchange(returning, self._received, self._sent):
            result.narrow(0, part.offset, part.elements).copy_(values)
        return result.to(shard.device)

    def _exchange(
        self, outgoing: list[Tensor], sent: list[list[MatrixFragment]], received: list[list[MatrixFragment]]
    ) -> list[tuple[MatrixFragment, Tensor]]:
        sizes = [[sum(part.elements for part in of_rank) for of_rank in side] for side in (sent, received)]
        buffer = torch.cat(outgoing)
        arrived = buffer.new_empty(sum(sizes[1]))
        dist.all_to_all_single(arrived, buffer, sizes[1], sizes[0], group=self.group)
        parts = list(chain(*received))
        return list(zip(parts, arrived.split([part.elements for part in parts])))


def _share_out(shapes: dict[str, Shape], ranks: int) -> dict[str, int]:
    """A rank for each matrix, so that all have about as much to compute; the same on every rank."""
    loads, owners = [0] * ranks, {}
    for name in sorted(shapes, key=lambda name: (-prod(shapes[name]), name)):
        owners[name] = loads.index(min(loads))
        loads[owners[name]] += prod(shapes[name]) * min(shapes[name])
    return owners
