"""The parameters of a model: their whole sizes, and which of them are matrices of the blocks."""

from __future__ import annotations

import torch
from torch import nn

from nar_scale.model.stack import AttentionLayers


def full_size(parameter: torch.Tensor) -> int:
    """Elements of a parameter, also when ZeRO 3 has sharded it."""
    return int(getattr(parameter, "ds_numel", parameter.numel()))


def is_matrix(parameter: nn.Parameter) -> bool:
    """Whether a parameter has at least two dimensions, also when ZeRO 3 has sharded it."""
    return len(full_shape(parameter)) >= 2


def full_shape(parameter: torch.Tensor) -> tuple[int, ...]:
    """Shape of a parameter, also when ZeRO 3 has sharded it."""
    return tuple(getattr(parameter, "ds_shape", parameter.shape))


def muon_matrices(module: nn.Module) -> dict[str, nn.Parameter]:
    """The matrices of the blocks by name: not those of embeddings and heads, for which Muon is not made."""
    blocks = {id(p) for stack in module.modules() if isinstance(stack, AttentionLayers) for p in stack.parameters()}
    return {
        name: parameter
        for name, parameter in module.named_parameters()
        if parameter.requires_grad and id(parameter) in blocks and is_matrix(parameter)
    }
