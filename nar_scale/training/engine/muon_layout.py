"""How ZeRO has cut up the matrices that Muon steps."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist

from nar_scale.errors import UserError
from nar_scale.model.parameters import full_shape, full_size, muon_matrices
from nar_scale.training.engine.fragments import flat_masters, fragments_of
from nar_scale.training.optimizers.muon import Muon
from nar_scale.training.optimizers.sharded_matrices import MatrixFragment, ShardedMatrices


def connect_muon(optimizer: Muon, engine: Any, device: torch.device) -> None:
    """Set `optimizer.sharded`: which fragments of which matrices the flat master tensors hold, on all ranks.

    Args:
        engine: a DeepSpeed engine of ZeRO stage 1 to 3.
        device: where matrices are put together and stepped.

    Raises:
        UserError: these are not all fragments of just the matrices that Muon is to step.
    """
    matrices = muon_matrices(engine.module)
    names = {id(parameter): name for name, parameter in matrices.items()}
    group, masters = flat_masters(engine)
    own: list[list[MatrixFragment]] = [[] for _ in masters]
    numbers = {id(master): number for number, master in enumerate(masters)}
    for each in fragments_of(engine):
        if id(each.parameter) in names and each.elements:
            fragment = MatrixFragment(names[id(each.parameter)], each.offset, each.start, each.elements)
            own[numbers[id(each.master)]].append(fragment)
    ranks: list[Any] = [None] * dist.get_world_size(group)
    dist.all_gather_object(ranks, own, group)
    found: dict[str, int] = dict.fromkeys(matrices, 0)
    for number, master in enumerate(masters):
        fragments: list[list[MatrixFragment]] = [of_rank[number] for of_rank in ranks]
        present = sorted({fragment.matrix for of_rank in fragments for fragment in of_rank})
        for fragment in (fragment for of_rank in fragments for fragment in of_rank):
            found[fragment.matrix] += fragment.elements
        if present:
            shapes = {name: full_shape(matrices[name]) for name in present}
            optimizer.sharded[master] = ShardedMatrices(shapes, fragments, group, device)
    incomplete = [name for name, elements in found.items() if elements != full_size(matrices[name])]
    if incomplete or not any(group.get("use_muon") for group in optimizer.param_groups):
        name = incomplete[0] if incomplete else "any matrix"
        raise UserError(f"Muon does not step {name}; set optimizer.kind adamw")
