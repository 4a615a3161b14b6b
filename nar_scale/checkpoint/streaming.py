"""A forward pass of a model that is larger than memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from nar_scale.objectives import Objective


def read_as_it_runs(wrapper: Objective, read: Callable[[str], Tensor]) -> None:
    """Let each block of a wrapper on the meta device read its weights when its turn comes, and forget them after.

    What is outside the blocks is read now.

    Args:
        read: a weight by its name.
    """
    blocks = {f"net.attn_layers.blocks.{number}.": block for number, block in enumerate(wrapper.net.attn_layers.blocks)}
    for name, parameter in list(wrapper.named_parameters()):
        if not name.startswith(tuple(blocks)):
            _set(wrapper, name, read(name).to(parameter.dtype))
    wrapper.net.tie_weights()
    for prefix, block in blocks.items():
        _stream(block, prefix, read)


def _stream(block: nn.Module, prefix: str, read: Callable[[str], Tensor]) -> None:
    def fetch(*_: Any) -> None:
        for name, parameter in list(block.named_parameters()):
            _set(block, name, read(prefix + name).to(parameter.dtype))

    def forget(*_: Any) -> None:
        for name, parameter in list(block.named_parameters()):
            _set(block, name, torch.empty_like(parameter, device="meta"))

    block.register_forward_pre_hook(fetch)
    block.register_forward_hook(forget)


def _set(module: nn.Module, name: str, value: Tensor) -> None:
    owner, _, attribute = name.rpartition(".")
    setattr(module.get_submodule(owner), attribute, nn.Parameter(value, requires_grad=False))
