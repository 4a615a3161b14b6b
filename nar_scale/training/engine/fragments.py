"""Where a rank's DeepSpeed engine holds the weights, whatever the ZeRO stage.

DeepSpeed cuts parameters up differently at each stage and for each number of ranks. Here every fragment is named by its
parameter and its position in it, so that a checkpoint fits any other cut.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn


@dataclass(frozen=True)
class Fragment:
    """Elements `start` to `start + elements` of a flattened parameter, which this rank holds in a master tensor.

    Attributes:
        parameter: the parameter that the forward pass computes with.
        master: the tensor that the optimizer steps, flat or of the parameter's shape.
        offset: position of the fragment in the flattened master tensor, in elements.
        start: position of the fragment in the flattened parameter, in elements.
        elements: length of the fragment; 0 where this rank holds nothing but padding.
    """

    parameter: nn.Parameter
    master: Tensor
    offset: int
    start: int
    elements: int

    def of(self, tensor: Tensor) -> Tensor:
        """A view `[elements]` of the master tensor, or of an optimizer state of the same layout."""
        return tensor.detach().view(-1).narrow(0, self.offset, self.elements)

    def share_of(self, rank: int, size: int) -> Fragment:
        """The equal share of this fragment for one of `size` ranks that all hold it."""
        elements = -(-self.elements // size)
        start = min(rank * elements, self.elements)
        return replace(self, offset=start, start=start, elements=min(elements, self.elements - start))


def torch_optimizer(engine: Any) -> torch.optim.Optimizer:
    """The optimizer of torch that a DeepSpeed engine steps, which ZeRO and mixed precision wrap in their own."""
    return getattr(engine.optimizer, "optimizer", engine.optimizer)


def fragments_of(engine: Any) -> Iterator[Fragment]:
    """All fragments that this rank holds.

    Those on NVMe are in memory while their group is iterated over, and are written back after it.
    """
    optimizer, stage = engine.optimizer, engine.zero_optimization_stage()
    if stage == 3:
        yield from _fragments_of_stage_3(optimizer)
    elif stage > 0:
        yield from _fragments_of_stages_1_and_2(optimizer)
    elif optimizer is torch_optimizer(engine):
        for parameter in chain.from_iterable(group["params"] for group in optimizer.param_groups):
            yield Fragment(parameter, parameter, 0, 0, parameter.numel())
    else:
        for parameter, master in _half_precision_pairs(optimizer):
            yield Fragment(parameter, master, 0, 0, parameter.numel())


def fragments_to_save(engine: Any) -> Iterator[Fragment]:
    """The fragments that this rank writes into a checkpoint: an equal share where every rank holds everything."""
    fragments = fragments_of(engine)
    if engine.zero_optimization_stage() == 0:
        rank, size = dist.get_rank(), dist.get_world_size()
        fragments = (fragment.share_of(rank, size) for fragment in fragments)
    return (fragment for fragment in fragments if fragment.elements)


def flat_masters(engine: Any) -> tuple[dist.ProcessGroup, list[Tensor]]:
    """The flat master tensors of ZeRO stages 1 to 3, `[elements]` each, and the group of ranks that share them."""
    optimizer = engine.optimizer
    if engine.zero_optimization_stage() == 3:
        return optimizer.dp_process_group, optimizer.fp32_partitioned_groups_flat
    if hasattr(optimizer, "bf16_groups"):  # stage 1 with bf16 weights and fp32 sums of gradients
        return optimizer.real_dp_process_group[0], optimizer.fp32_groups_flat_partition
    return optimizer.real_dp_process_group[0], optimizer.single_partition_of_fp32_groups


@torch.no_grad()
def compute_with_masters(engine: Any) -> None:
    """Copy the master weights into those that the forward pass computes with, as an optimizer step does."""
    optimizer, stage = engine.optimizer, engine.zero_optimization_stage()
    if stage == 3:
        optimizer._partition_all_parameters()
        for number in range(len(optimizer.fp16_groups)):
            on_nvme = optimizer._swappable_optimizer_subgroup(number)
            if on_nvme:
                optimizer._optimizer_states_and_gradient_swap_in(number)
            optimizer._reassign_or_swap_out_partitioned_parameters(number)
            if on_nvme:
                optimizer._optimizer_states_and_gradient_swap_out(number)
        optimizer._post_step(set())
    elif stage > 0:
        optimizer.update_lp_params()
    elif optimizer is not torch_optimizer(engine):
        for parameter, master in _half_precision_pairs(optimizer):
            parameter.copy_(master)


def find_misplaced_weight(engine: Any) -> str | None:
    """The name of a weight whose masters are not where `fragments_of` finds them; None if all are.

    For an engine that has taken no step.
    """
    names = {id(parameter): name for name, parameter in engine.module.named_parameters()}
    misplaced = [names[id(each.parameter)] for each in fragments_of(engine) if not _holds_its_weight(each)]
    return misplaced[0] if misplaced else None


@torch.no_grad()
def _holds_its_weight(fragment: Fragment) -> bool:
    """Whether a master is the weight that the forward pass computes with, up to rounding."""
    if hasattr(fragment.parameter, "ds_tensor"):  # ZeRO 3's partition of this rank
        if fragment.parameter.ds_tensor.status.name == "NOT_AVAILABLE":  # it is on NVMe
            return True
        weight = fragment.parameter.ds_tensor.view(-1).narrow(0, 0, fragment.elements)
    else:
        weight = fragment.parameter.view(-1).narrow(0, fragment.start, fragment.elements)
    return torch.equal(fragment.of(fragment.master).to(weight), weight)


def _fragments_of_stages_1_and_2(optimizer: Any) -> Iterator[Fragment]:
    if hasattr(optimizer, "bit16_groups"):
        groups, masters = optimizer.bit16_groups, optimizer.single_partition_of_fp32_groups
    else:  # stage 1 with bf16 weights and fp32 gradients
        groups, masters = optimizer.bf16_groups, optimizer.fp32_groups_flat_partition
    for group, master in zip(groups, masters):
        for parameter in group:
            if parameter._hp_mapping is not None:
                held, here = parameter._hp_mapping.lp_fragment_address, parameter._hp_mapping.hp_fragment_address
                yield Fragment(parameter, master, here.start, held.start, held.numel)


def _fragments_of_stage_3(optimizer: Any) -> Iterator[Fragment]:
    for number, group in enumerate(optimizer.fp16_groups):
        on_nvme = optimizer._swappable_optimizer_subgroup(number)
        if on_nvme:
            optimizer._optimizer_states_and_gradient_swap_in(number)
        for parameter in group:
            _, offset, elements = optimizer.grad_position[optimizer.get_param_id(parameter)]
            start = optimizer._get_param_partition_rank(parameter) * elements
            elements = max(0, min(elements, parameter.ds_numel - start))  # the rest is padding
            yield Fragment(parameter, optimizer.fp32_partitioned_groups_flat[number], offset, start, elements)
        if on_nvme:
            optimizer._optimizer_states_and_gradient_swap_out(number)


def _half_precision_pairs(optimizer: Any) -> Iterator[tuple[nn.Parameter, Tensor]]:
    """Weights in half precision and their float32 masters at stage 0."""
    for group, masters in zip(optimizer.fp16_groups, optimizer.fp32_groups):
        yield from zip(group, masters)
