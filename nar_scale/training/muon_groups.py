"""Muon under an engine: telling it how ZeRO has cut the matrices up, and making sure that it moves them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from nar_scale.errors import UserError
from nar_scale.training.matrices import Part, ShardedMatrices
from nar_scale.training.muon import Muon
from nar_scale.training.optimizer import muon_matrices
from nar_scale.training.partitions import places_of

if TYPE_CHECKING:
    from nar_scale.training.trainer import Trainer

_LARGEST_SINGULAR_VALUE = (0.6, 1.4)


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
        shapes = {name: _shape(matrices[name]) for name in sorted({p.matrix for of_rank in parts for p in of_rank})}
        for part in (part for of_rank in parts for part in of_rank):
            found[part.matrix] += part.elements
        if shapes:
            optimizer.sharded[master] = ShardedMatrices(shapes, parts, group, device)
    wrong = [name for name, elements in found.items() if elements != _elements(matrices[name])]
    if wrong or not any(group.get("use_muon") for group in optimizer.param_groups):
        raise UserError(f"Muon is not in charge of {wrong[0] if wrong else 'any matrix'}; set optimizer.kind adamw")


def _masters(engine: Any) -> tuple[dist.ProcessGroup, list[Tensor]]:
    optimizer = engine.optimizer
    if engine.zero_optimization_stage() == 3:
        return optimizer.dp_process_group, optimizer.fp32_partitioned_groups_flat
    if hasattr(optimizer, "bf16_groups"):  # stage 1 with bf16 weights and fp32 sums of gradients
        return optimizer.real_dp_process_group[0], optimizer.fp32_groups_flat_partition
    return optimizer.real_dp_process_group[0], optimizer.single_partition_of_fp32_groups


class MuonCheck:
    """Makes sure, as a hook of the trainer, that the first step moves a matrix by an orthogonal one.

    The largest singular value of the change, over learning rate and scale, must be about 1: it is far above for
    AdamW, which moves each element as much, and far below for clipped gradients. Done for the smallest matrix, where
    there are float32 weights.

    Args:
        engine: which has taken no step since the weights were set.
    """

    def __init__(self, engine: Any):
        matrices = muon_matrices(engine.module)
        self.name = min(matrices, key=lambda name: (_elements(matrices[name]), name))
        self.parameter = matrices[self.name]
        before = whole_weight(self.parameter)
        # in bfloat16 a small step is lost in rounding
        self.before: Tensor | None = before if before.dtype == torch.float32 else None

    def after_step(self, trainer: Trainer) -> None:
        """Look at the first step that changes the weights.

        Raises:
            UserError: it is no orthogonal one.
        """
        if self.before is None or not trainer.engine.was_step_applied():
            return
        (group,) = (group for group in trainer.engine.optimizer.param_groups if group.get("use_muon"))
        if not group["lr"]:
            return
        before, after = self.before, whole_weight(self.parameter)
        self.before = None
        change = before * (1 - group["lr"] * group["weight_decay"]) - after
        scale = group["lr"] * max(1.0, before.shape[0] / before.shape[1]) ** 0.5
        largest = float(torch.linalg.matrix_norm(change, 2)) / scale
        low, high = _LARGEST_SINGULAR_VALUE
        if largest and not low < largest < high:
            raise UserError(
                f"the first step has moved {self.name} by {largest:.3g} times the learning rate of Muon instead of "
                "about once: Muon has not taken effect; set optimizer.kind adamw"
            )

    def at_end(self, trainer: Trainer) -> None:
        """Nothing more to see."""


def whole_weight(parameter: nn.Parameter) -> Tensor:
    """A copy of the master weight, gathered from all ranks; of the weight itself where there is none."""
    from deepspeed.utils import safe_get_full_fp32_param

    master = safe_get_full_fp32_param(parameter)
    return (parameter if master is None else master).detach().clone()


def _shape(parameter: nn.Parameter) -> tuple[int, ...]:
    return tuple(getattr(parameter, "ds_shape", parameter.shape))


def _elements(parameter: nn.Parameter) -> int:
    return int(getattr(parameter, "ds_numel", parameter.numel()))
