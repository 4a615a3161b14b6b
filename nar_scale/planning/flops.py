"""FLOPs of a training step, and what devices can do."""

from __future__ import annotations

import torch

from nar_scale.model import TransformerWrapper
from nar_scale.model.layers import Embedding
from nar_scale.model.parameters import full_size
from nar_scale.planning.cost.devices import device_of


def flops_per_token(net: TransformerWrapper, copies: int = 1) -> float:
    """FLOPs of a forward and backward pass per token: 6 N + 12 L H Q n (PaLM, arXiv:2204.02311, appendix B).

    N counts the weights of matrix products, so not the embedding tables; L layers of H heads with Q channels, and n
    tokens. The output projection counts for every token, also where a non-autoregressive model predicts only some.

    Args:
        net: the network.
        copies: how often each token passes it, see `Objective.copies`.
    """
    tables = {id(layer.weight) for layer in net.modules() if isinstance(layer, Embedding)}
    tables -= {id(net.to_logits.weight)}
    weights = sum(full_size(parameter) for parameter in net.parameters() if id(parameter) not in tables)
    layers = net.attn_layers
    return copies * (6.0 * weights + 12.0 * layers.depth * layers.heads * layers.dim_head * net.max_seq_len)


def peak_flops(device: torch.device) -> float | None:
    """The device's bf16 peak in FLOP/s, if it is known."""
    if device.type != "cuda":
        return None
    known = device_of(torch.cuda.get_device_name(device))
    return None if known is None else known.peak_flops
