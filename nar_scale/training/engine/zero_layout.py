"""What a rank's engine holds of the weights and of the optimizer's state, whatever the ZeRO stage.

DeepSpeed cuts parameters up differently at each stage and for each number of ranks. Here every part is named by its
parameter and the place in it, so that a checkpoint fits any other cut.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from nar_scale.checkpoint import EMA, WEIGHT, ExportedWeights, Partition, PartitionReader
from nar_scale.checkpoint.weights import check_same_parameters
from nar_scale.model.parameters import full_shape

_SCALER_FIELDS = ("cur_scale", "cur_iter", "last_overflow_iter", "cur_hysteresis")


@dataclass(frozen=True)
class Place:
    """Where a rank holds elements `start` to `start + elements` of a parameter: `offset` in a master tensor."""

    parameter: nn.Parameter
    master: Tensor
    offset: int
    start: int
    elements: int

    def of(self, tensor: Tensor) -> Tensor:
        """The elements in the master tensor, or in a state of the optimizer of the same layout."""
        return tensor.detach().view(-1).narrow(0, self.offset, self.elements)


def partitions_of(engine: Any) -> Iterator[Partition]:
    """The parts of the master weights and of the optimizer's state that this rank is to save.

    Where every rank holds everything, each gives an equal share. The tensors are the engine's own: they change with the
    next step, and those of an optimizer on NVMe are there only until the next part is asked for.
    """
    names = {id(parameter): name for name, parameter in engine.module.named_parameters()}
    optimizer = _torch_optimizer(engine)
    for place in map(_share, places_of(engine)) if engine.zero_optimization_stage() == 0 else places_of(engine):
        if not place.elements:
            continue
        tensors, scalars = {WEIGHT: place.of(place.master)}, {}
        for kind, value in optimizer.state.get(place.master, {}).items():
            if torch.is_tensor(value) and value.ndim:
                tensors[kind] = place.of(value)
            else:
                scalars[kind] = float(value)
        yield Partition(names[id(place.parameter)], full_shape(place.parameter), place.start, tensors, scalars)


@torch.no_grad()
def restore(
    engine: Any,
    source: PartitionReader | ExportedWeights,
    ignored: Collection[str] = (),
    weights_only: bool = False,
) -> None:
    """Give an engine the weights of a source, and what it has of the optimizer's state.

    Args:
        ignored: kinds of state that are left alone.
        weights_only: leave all state alone.

    Raises:
        CheckpointError: the source has other parameters than the engine.
    """
    names = {id(parameter): name for name, parameter in engine.module.named_parameters()}
    check_same_parameters({names[id(p)]: full_shape(p) for p in engine.module.parameters()}, source.shapes)
    optimizer = _torch_optimizer(engine)
    for place in places_of(engine):
        name, stop = names[id(place.parameter)], place.start + place.elements
        state = optimizer.state[place.master]
        kinds = {WEIGHT} if weights_only else set(source.kinds[name]) - set(ignored)
        if not weights_only:
            for kind in set(state) - set(source.kinds[name]) - set(source.scalars[name]):
                del state[kind]  # of another past
        for kind in sorted(kinds) if place.elements else ():
            values = source.read(kind, name, place.start, stop)
            if kind == WEIGHT:
                place.of(place.master).copy_(values)
                continue
            if kind not in state:
                dtype = torch.float32 if kind == EMA else place.master.dtype  # whatever it was saved in
                state[kind] = torch.zeros_like(place.master, dtype=dtype)
            place.of(state[kind]).copy_(values)
        for kind, number in source.scalars[name].items() if not weights_only else ():
            on_device = optimizer.defaults.get("fused") or optimizer.defaults.get("capturable")
            state[kind] = torch.tensor(number, device=place.master.device if on_device else "cpu")
    _take_over_masters(engine)


def find_misplaced(engine: Any) -> str | None:
    """The name of a weight whose masters are not where they are taken to be; for an engine that has taken no step."""
    names = {id(parameter): name for name, parameter in engine.module.named_parameters()}
    misplaced = [names[id(place.parameter)] for place in places_of(engine) if not _holds_its_weight(place)]
    return misplaced[0] if misplaced else None


@torch.no_grad()
def _holds_its_weight(place: Place) -> bool:
    """Whether a master is the weight that the forward pass computes with, but for rounding."""
    if hasattr(place.parameter, "ds_tensor"):  # ZeRO 3's part of this rank
        if place.parameter.ds_tensor.status.name == "NOT_AVAILABLE":  # it is on NVMe
            return True
        weight = place.parameter.ds_tensor.view(-1).narrow(0, 0, place.elements)
    else:
        weight = place.parameter.view(-1).narrow(0, place.start, place.elements)
    return torch.equal(place.of(place.master).to(weight), weight)


def loss_scale_of(engine: Any) -> dict[str, float]:
    """The state of fp16's loss scaling; empty without."""
    scaler = _scaler(engine)
    return {name: getattr(scaler, name) for name in _SCALER_FIELDS if hasattr(scaler, name)}


def restore_loss_scale(engine: Any, saved: Mapping[str, float]) -> None:
    """Set the state of fp16's loss scaling to what `loss_scale_of` gave."""
    scaler = _scaler(engine)
    for name, value in saved.items():
        if hasattr(scaler, name):
            setattr(scaler, name, value)


def places_of(engine: Any) -> Iterator[Place]:
    """All that this rank holds; what is on NVMe is in memory while its places are given, and written back after."""
    optimizer, stage = engine.optimizer, engine.zero_optimization_stage()
    if stage == 3:
        yield from _places_of_stage_3(optimizer)
    elif stage > 0:
        yield from _places_of_stages_1_and_2(optimizer)
    elif optimizer is _torch_optimizer(engine):
        for parameter in chain.from_iterable(group["params"] for group in optimizer.param_groups):
            yield Place(parameter, parameter, 0, 0, parameter.numel())
    else:
        for parameter, master in _pairs(optimizer):
            yield Place(parameter, master, 0, 0, parameter.numel())


def _places_of_stages_1_and_2(optimizer: Any) -> Iterator[Place]:
    if hasattr(optimizer, "bit16_groups"):
        groups, masters = optimizer.bit16_groups, optimizer.single_partition_of_fp32_groups
    else:  # stage 1 with bf16 weights and fp32 gradients
        groups, masters = optimizer.bf16_groups, optimizer.fp32_groups_flat_partition
    for group, master in zip(groups, masters):
        for parameter in group:
            if parameter._hp_mapping is not None:
                held, here = parameter._hp_mapping.lp_fragment_address, parameter._hp_mapping.hp_fragment_address
                yield Place(parameter, master, here.start, held.start, held.numel)


def _places_of_stage_3(optimizer: Any) -> Iterator[Place]:
    for number, group in enumerate(optimizer.fp16_groups):
        on_nvme = optimizer._swappable_optimizer_subgroup(number)
        if on_nvme:
            optimizer._optimizer_states_and_gradient_swap_in(number)
        for parameter in group:
            _, offset, elements = optimizer.grad_position[optimizer.get_param_id(parameter)]
            start = optimizer._get_param_partition_rank(parameter) * elements
            elements = max(0, min(elements, parameter.ds_numel - start))  # the rest is padding
            yield Place(parameter, optimizer.fp32_partitioned_groups_flat[number], offset, start, elements)
        if on_nvme:
            optimizer._optimizer_states_and_gradient_swap_out(number)


def _pairs(optimizer: Any) -> Iterator[tuple[nn.Parameter, Tensor]]:
    """Weights in half precision and their masters at stage 0."""
    for group, masters in zip(optimizer.fp16_groups, optimizer.fp32_groups):
        yield from zip(group, masters)


def _share(place: Place) -> Place:
    """This rank's share of what every rank holds."""
    size = -(-place.elements // dist.get_world_size())
    start = min(dist.get_rank() * size, place.elements)
    return replace(place, offset=start, start=start, elements=min(size, place.elements - start))


@torch.no_grad()
def _take_over_masters(engine: Any) -> None:
    """Compute with the master weights from now on, as after a step."""
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
    elif optimizer is not _torch_optimizer(engine):
        for parameter, master in _pairs(optimizer):
            parameter.copy_(master)


def _torch_optimizer(engine: Any) -> torch.optim.Optimizer:
    return getattr(engine.optimizer, "optimizer", engine.optimizer)


def _scaler(engine: Any) -> Any:
    if engine.module.net.token_emb.weight.dtype != torch.float16:
        return None
    return getattr(engine.optimizer, "loss_scaler", None) or engine.optimizer.loss_scale_config
