"""The token critic, which tells wrong tokens from right ones (Token-Critic, arXiv:2209.04439)."""

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
    """A critic that uses the generator's network with one more linear head.

    Args:
        net: the generator's network.
    """

    def __init__(self, net: TransformerWrapper):
        super().__init__()
        self.net = net
        self.to_logits = Linear(net.emb_dim, 1)

    def forward(self, tokens: Tensor, **kwargs: Any) -> Tensor:
        """The logit that each token is wrong, `[batch, n, 1]`.

        Args:
            tokens: int64 `[batch, n]`.
            kwargs: further arguments of the network.
        """
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
    """Sample the masked tokens from the generator, for the critic to find the wrong ones; int64 `[slots]`.

    Args:
        net: the generator's network.
        hidden: embeddings of the masked tokens, `[slots, dim]`.
        masked: the batch that they belong to.
        mask_id: the mask token, which is never sampled.
        noise: of the sequences.
        temperature: of the sampling; if None, each sequence has one of its own, uniform in (0, 1).
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
    """Binary cross-entropy between the critic's logits and which tokens are wrong, in nats, summed over the sequences.

    Args:
        judged: logits that tokens are wrong, `[batch, n]`.
        generated: int64 `[batch, n]`, the tokens that the critic saw.
        tokens: int64 `[batch, n]`, the true tokens.
        present: bool `[batch, n]`, false for padding, which does not count.
    """
    wrong = (generated != tokens).float()
    return (F.binary_cross_entropy_with_logits(judged.float(), wrong, reduction="none") * present).sum()
