"""Muon under an engine: telling it how ZeRO has cut the matrices up, and making sure that it moves them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from nar_scale.errors import UserError
from nar_scale.model.parameters import full_shape, full_size, muon_matrices
from nar_scale.training.engine.zero_layout import places_of
from nar_scale.training.optimizers.muon import Muon
from nar_scale.training.optimizers.sharded_matrices import Part, ShardedMatrices

if TYPE_CHECKING:
    pass


def connect_muon(optimizer: Muon, engine: Any, device: torch.device) -> None:
    """Tell the optimizer of a new engine which parts of which matrices its flat tensors hold.

    Raises:
        UserError: these are not all parts of just the matrices that Muon is to move.
    """
    matrices = muon_matrices(engine.module)
    names = {id(parameter): name for name, parameter in matrices.items()}
    group, masters = _masters(engine)
    mine: list[list[Part]] = [[] for _ in masters]
    numbers = {id(master): number for number, master in enumerate(masters)}
    for place in places_of(engine):
        if id(place.parameter) in names and place.elements:
            part = Part(names[id(place.parameter)], place.offset, place.start, place.elements)
            mine[numbers[id(place.master)]].append(part)
    ranks: list[Any] = [None] * dist.get_world_size(group)
    dist.all_gather_object(ranks, mine, group)
    found: dict[str, int] = dict.fromkeys(matrices, 0)
    for number, master in enumerate(masters):
        parts = [of_rank[number] for of_rank in ranks]
        shapes = {name: full_shape(matrices[name]) for name in sorted({p.matrix for of_rank in parts for p in of_rank})}
        for part in (part for of_rank in parts for part in of_rank):
            found[part.matrix] += part.elements
        if shapes:
            optimizer.sharded[master] = ShardedMatrices(shapes, parts, group, device)
    wrong = [name for name, elements in found.items() if elements != full_size(matrices[name])]
    if wrong or not any(group.get("use_muon") for group in optimizer.param_groups):
        raise UserError(f"Muon is not in charge of {wrong[0] if wrong else 'any matrix'}; set optimizer.kind adamw")


def _masters(engine: Any) -> tuple[dist.ProcessGroup, list[Tensor]]:
    optimizer = engine.optimizer
    if engine.zero_optimization_stage() == 3:
        return optimizer.dp_process_group, optimizer.fp32_partitioned_groups_flat
    if hasattr(optimizer, "bf16_groups"):  # stage 1 with bf16 weights and fp32 sums of gradients
        return optimizer.real_dp_process_group[0], optimizer.fp32_groups_flat_partition
    return optimizer.real_dp_process_group[0], optimizer.single_partition_of_fp32_groups


def whole_weight(parameter: nn.Parameter) -> Tensor:
    """A copy of the master weight, gathered from all ranks; of the weight itself where there is none."""
    from deepspeed.utils import safe_get_full_fp32_param

    master = safe_get_full_fp32_param(parameter)
    return (parameter if master is None else master).detach().clone()
