"""The same model, with the same weights, here and in x-transformers (github.com/lucidrains/x-transformers)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
import x_transformers
from torch import Tensor, nn

from nar_scale.interop import to_x_transformers
from nar_scale.interop.x_transformers.nets import RMS_NORM_EPS
from nar_scale.model import Decoder, Encoder, TransformerWrapper
from nar_scale.objectives import AutoregressiveWrapper, NonAutoregressiveWrapper

Objective = Literal["AR", "NAR"]


@dataclass(frozen=True)
class Shape:
    """Sizes of a model with rotary positions, RMS norms and SwiGLU."""

    dim: int
    depth: int
    heads: int
    hidden: int
    length: int
    vocabulary: int


class Twins(NamedTuple):
    """The same model twice.

    Attributes:
        ours: the wrapper of nar_scale.
        theirs: that of x-transformers.
    """

    ours: Any
    theirs: Any


def make_twins(
    objective: Objective, shape: Shape, device: torch.device, *, steps: int = 18, compile: bool = False
) -> Twins:
    """Both wrappers with the same random weights in float32, on a device.

    x-transformers' attention goes through torch's kernels, as ours does (`attn_flash`). The losses of the
    non-autoregressive wrappers are not weighted, since its weight does not train (benchmarks/RESULTS.md), and the mask
    is the last token.

    Args:
        steps: network calls in non-autoregressive generation.
        compile: compile the blocks of ours in training.
    """
    torch.manual_seed(0)
    kind = Decoder if objective == "AR" else Encoder
    stack = kind(
        shape.dim,
        shape.depth,
        shape.heads,
        feedforward_dim=shape.hidden,
        norm_eps=RMS_NORM_EPS,
        compile=compile,
    )
    net = TransformerWrapper(num_tokens=shape.vocabulary, max_seq_len=shape.length, attn_layers=stack)
    their_net = _in_x_transformers(net)
    if objective == "AR":
        return Twins(AutoregressiveWrapper(net).to(device), x_transformers.AutoregressiveWrapper(their_net).to(device))
    options: dict[str, Any] = {
        "mask_id": shape.vocabulary - 1,
        "steps": steps,
        "use_simple_mdlm_loss_weight": False,
    }
    return Twins(
        NonAutoregressiveWrapper(net, **options).to(device),
        x_transformers.NonAutoregressiveWrapper(their_net, **options).to(device),
    )


def random_tokens(shape: Shape, batch: int, length: int, device: torch.device) -> Tensor:
    """Token ids, int64 `[batch, length]`, without the last id, which may be the mask."""
    generator = torch.Generator().manual_seed(1)
    return torch.randint(shape.vocabulary - 1, (batch, length), generator=generator).to(device)


@torch.no_grad()
def difference(twins: Twins, objective: Objective, tokens: Tensor) -> float:
    """How far both are apart in float32 on the same tokens: 0 but for rounding.

    For AR it is the difference of the losses in nats; for NAR, where each draws masks of its own, the largest
    difference of logits over their standard deviation.
    """
    were_training = [twin.training for twin in twins]
    ours, theirs = (twin.eval() for twin in twins)
    if objective == "AR":
        result = (ours(tokens) - theirs(tokens)).abs()
    else:
        logits, expected = (wrapper.net(tokens) for wrapper in (ours, theirs))
        result = (logits - expected).abs().max() / expected.std()
    for twin, was_training in zip(twins, were_training):
        twin.train(was_training)
    return float(result)


def _in_x_transformers(net: TransformerWrapper) -> nn.Module:
    export = to_x_transformers(net)
    kind = x_transformers.Decoder if net.causal else x_transformers.Encoder
    layers = kind(**export.layer_options, attn_flash=True, verbose=False)
    theirs = x_transformers.TransformerWrapper(**export.wrapper_options, attn_layers=layers)
    theirs.load_state_dict(export.state_dict)
    return theirs
