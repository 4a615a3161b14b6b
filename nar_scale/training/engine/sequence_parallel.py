"""Sequence parallelism: ranks that share sequences, through DeepSpeed's Ulysses all-to-all."""

from __future__ import annotations

import torch
from torch import Tensor

from nar_scale.model import SequenceParallelContext
from nar_scale.training.distributed import World


def sequence_parallel_context(world: World) -> SequenceParallelContext:
    """This rank's part of the sequences that it shares with its group, and the exchange with it.

    Registers the group with DeepSpeed, whose process groups must be set up.

    DeepSpeed lends the exchange alone: its differentiable all-to-all, which `torch.compile` sees as one operator. Its
    ZeRO engine takes the ranks of a group for ranks with data of their own, and is right to: each computes a part of
    the sums that make up the loss, the gradients of all parts add up, and all ranks have the same weights.
    """
    from deepspeed.sequence.layer import register_all_to_all_group

    name = register_all_to_all_group(world.sp_group)

    def exchange(values: Tensor) -> Tensor:
        return torch.ops.deepspeed.dim_zero_all_to_all(values.contiguous(), name)

    return SequenceParallelContext(world.sp_rank, world.sp_size, exchange)
