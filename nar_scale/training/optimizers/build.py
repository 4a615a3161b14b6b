"""Parameter groups and the optimizer."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from nar_scale.config import MuonConfig, OptimizerConfig
from nar_scale.model.layers import Embedding
from nar_scale.model.parameters import is_matrix, muon_matrices
from nar_scale.training.optimizers.ema import averaging, forget_averages
from nar_scale.training.optimizers.lion import Lion
from nar_scale.training.optimizers.muon import Muon

_KINDS: dict[str, Any] = {"adamw": torch.optim.AdamW, "lion": Lion, "muon": Muon}


def parameter_groups(module: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Two groups of named parameters: matrices, which are decayed, and vectors and embeddings, which are not.

    Works on parameters before an engine shards them, and on those that `deepspeed.zero.Init` has sharded. A
    parameter shared by an embedding and the output projection counts as an embedding.
    """
    embeddings = {id(layer.weight) for layer in module.modules() if isinstance(layer, Embedding)}
    decayed: list[tuple[str, nn.Parameter]] = []
    others: list[tuple[str, nn.Parameter]] = []
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            group = decayed if is_matrix(parameter) and id(parameter) not in embeddings else others
            group.append((name, parameter))
    groups = ((decayed, weight_decay), (others, 0.0))
    return [{"params": named, "weight_decay": decay} for named, decay in groups if named]


def build_optimizer(
    module: nn.Module, config: OptimizerConfig, ema_decay: float | None = None
) -> torch.optim.Optimizer:
    """The optimizer of a config, over whole parameters or those that `deepspeed.zero.Init` has sharded.

    AdamW (arXiv:1711.05101), fused into one kernel on GPUs, `Lion`, or `Muon` with AdamW for all but the matrices of
    the blocks; with an average of the weights if a decay is given.
    """
    groups = parameter_groups(module, config.weight_decay)
    settings: dict[str, Any] = {"lr": config.learning_rate, "betas": config.betas}
    if config.kind != "lion":
        settings |= {"eps": config.eps, "fused": next(module.parameters()).is_cuda}
    if config.kind == "muon":
        groups = _with_muon(groups, module, config)
    if ema_decay is not None:
        return averaging(_KINDS[config.kind])(groups, decay=ema_decay, **settings)
    optimizer = _KINDS[config.kind](groups, **settings)
    optimizer.register_load_state_dict_post_hook(forget_averages)
    return optimizer


def _with_muon(groups: list[dict[str, Any]], module: nn.Module, config: MuonConfig) -> list[dict[str, Any]]:
    """The same groups without the matrices of the blocks, and one with them."""
    matrices = muon_matrices(module)
    muon = {
        "params": list(matrices.items()),
        "use_muon": True,
        "lr": config.muon_learning_rate,
        "momentum": config.muon_momentum,
        "weight_decay": config.weight_decay,
    }
    for group in groups:
        group["params"] = [(name, parameter) for name, parameter in group["params"] if name not in matrices]
    return [*(group | {"use_muon": False} for group in groups if group["params"]), muon]
