"""The token critic: a judge of which tokens are wrong (Token-Critic, arXiv:2209.04439)."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nar_scale.decoding import sample
from nar_scale.masking import Noise
from nar_scale.model import TransformerWrapper
from nar_scale.model.layers import Linear
from nar_scale.objectives.predicted import PredictedTokens

_COLDEST = 1e-2


class SelfCritic(nn.Module):
    """A critic that shares the generator's net and adds one linear head."""

    def __init__(self, net: TransformerWrapper):
        super().__init__()
        self.net = net
        self.to_logits = Linear(net.emb_dim, 1)

    def forward(self, tokens: Tensor, **kwargs: Any) -> Tensor:
        """The logit that each token is wrong, `[batch, n, 1]`."""
        return self.to_logits(self.net(tokens, return_embeddings=True, **kwargs))


@torch.no_grad()
def draw_answers(
    net: TransformerWrapper,
    hidden: Tensor,
    masked: PredictedTokens,
    mask_id: int,
    noise: Noise,
    temperature: float | None,
) -> Tensor:
    """Sample the masked tokens from the generator, int64 `[slots]`, for the critic to judge.

    Args:
        hidden: embeddings of the masked tokens, `[slots, dim]`.
        temperature: drawn uniformly for each sequence if not given.
    """
    temperatures = noise.derive(0).uniform()
    if temperature is not None:
        temperatures = torch.full_like(temperatures, temperature)

    def draw(logits: Tensor, temperature: Tensor, uniform: Tensor) -> Tensor:
        logits[:, mask_id] = -torch.inf
        return sample(logits.double() / temperature[:, None], 1.0, uniform)

    uniform = masked.select(noise.uniform(masked.total // len(temperatures)))
    return net.to_logits(hidden, draw, masked.spread(temperatures).clamp(min=_COLDEST), uniform)


def critic_loss(judged: Tensor, generated: Tensor, tokens: Tensor, present: Tensor) -> Tensor:
    """How well wrong tokens are told from right ones: binary cross-entropy in nats, summed over the present tokens.

    Args:
        judged: logits that tokens are wrong, `[batch, n]`.
        generated: int64 `[batch, n]`, what was judged.
        tokens: int64 `[batch, n]`, the truth.
        present: bool `[batch, n]`.
    """
    wrong = (generated != tokens).float()
    return (F.binary_cross_entropy_with_logits(judged.float(), wrong, reduction="none") * present).sum()
