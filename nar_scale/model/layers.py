"""Leaf layers. Each initialises itself in its constructor, so that `deepspeed.zero.Init` can shard it at once."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

NormName = Literal["rmsnorm", "layernorm"]
FeedForwardName = Literal["swiglu", "geglu", "gelu"]

EMBEDDING_STD = 0.02
"""Standard deviation of embeddings at first, unless told otherwise (GPT-2)."""
_MULTIPLE = 8  # hidden widths are rounded up to this, which matrix units like


@torch.no_grad()
def draw_normal(weight: Tensor, std: float) -> None:
    """Fill a weight from N(0, std^2), drawn in float32 so that it is the same, but for rounding, in any dtype."""
    weight.copy_(weight.new_empty(weight.shape, dtype=torch.float32).normal_(std=std))


class Linear(nn.Linear):
    """A projection drawn from N(0, scale^2 / (3 * in_features)), with a bias of 0, of given values, or none.

    With `scale` = 1 this is the variance of torch's own default. Projections that end in the residual stream
    of a stack of `depth` blocks use `scale` = 1 / sqrt(2 depth) (GPT-2), so that its variance does not grow.
    """

    def __init__(self, in_features: int, out_features: int, scale: float = 1.0, bias: bool | list[float] = False):
        self.scale, self.first_bias = scale, bias
        super().__init__(in_features, out_features, bias=bool(bias))

    def reset_parameters(self) -> None:
        """Draw the weight anew."""
        draw_normal(self.weight, std=self.scale * (3 * self.in_features) ** -0.5)
        if isinstance(self.first_bias, list):
            with torch.no_grad():
                self.bias.copy_(self.bias.new_tensor(self.first_bias))
        elif self.first_bias:
            nn.init.zeros_(self.bias)


class Embedding(nn.Embedding):
    """A table of vectors drawn from N(0, std^2)."""

    def __init__(self, rows: int, dim: int, std: float = EMBEDDING_STD):
        self.std = std
        super().__init__(rows, dim)

    def reset_parameters(self) -> None:
        """Draw the table anew."""
        draw_normal(self.weight, std=self.std)


def make_norm(kind: NormName, dim: int, eps: float | None = None) -> nn.Module:
    """RMSNorm (`eps` 1e-6 if not given) or LayerNorm without bias (1e-5) over the last dimension."""
    if kind == "rmsnorm":
        return nn.RMSNorm(dim, eps=1e-6 if eps is None else eps)
    return nn.LayerNorm(dim, eps=1e-5 if eps is None else eps, bias=False)


def hidden_width(dim: int, mult: float, kind: FeedForwardName) -> int:
    """Hidden width of a feed-forward layer: `dim * mult`, two thirds of it where it is gated, rounded up."""
    width = int(dim * mult * (1 if kind == "gelu" else 2 / 3))
    return -(-width // _MULTIPLE) * _MULTIPLE


class FeedForward(nn.Module):
    """Two projections around a non-linearity; gated for SwiGLU and GEGLU (arXiv:2002.05202).

    Args:
        dim: width of the input and output, `[..., dim]`.
        hidden: width between the projections.
        bias: give the projections biases.
        output_scale: scale of the output projection's initial values.
    """

    def __init__(self, dim: int, hidden: int, kind: FeedForwardName, bias: bool, dropout: float, output_scale: float):
        super().__init__()
        self.gated = kind != "gelu"
        self.to_hidden = Linear(dim, hidden * (2 if self.gated else 1), bias=bias)
        self.to_out = Linear(hidden, dim, output_scale, bias=bias)
        self.activation = F.silu if kind == "swiglu" else F.gelu
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """Map `[..., dim]` to `[..., dim]`."""
        x = self.to_hidden(x)
        if self.gated:
            gate, x = x.chunk(2, dim=-1)
            x = self.activation(gate) * x
        else:
            x = self.activation(x)
        return self.to_out(self.dropout(x))


class Rotary(nn.Module):
    """Rotary position embedding (arXiv:2104.09864), computed in float32.

    Args:
        dim: channels of a head that are rotated, even; the others carry no position.
        theta: base of the wavelengths.
        interpolation_factor: divides positions, so that a longer sequence spans the angles learned on a shorter one
            (position interpolation, arXiv:2306.15595).
        base_rescale_factor: stretches the long wavelengths by this and leaves the short ones (NTK-aware scaling):
            theta times the factor to the power dim / (dim - 2).
    """

    def __init__(self, dim: int, theta: float, interpolation_factor: float = 1.0, base_rescale_factor: float = 1.0):
        super().__init__()
        self.dim = dim
        self.theta = theta if base_rescale_factor == 1 else theta * base_rescale_factor ** (dim / (dim - 2))
        self.interpolation_factor = interpolation_factor

    def angles(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Cosines and sines for int64 positions `[..., n]`, each float32 `[..., n, dim]`.

        Both halves have the same angles, and the sines of the first are negative: factors of what `rotate` adds.
        """
        exponents = torch.arange(0, self.dim, 2, device=positions.device, dtype=torch.float32) / self.dim
        angles = (positions / self.interpolation_factor)[..., None].float() * self.theta**-exponents
        cos, sin = angles.cos(), angles.sin()
        return torch.cat((cos, cos), dim=-1), torch.cat((-sin, sin), dim=-1)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate the channel pairs (i, i + r) of `[batch, heads, n, dim_head]` by what `Rotary.angles` gives for them.

    Channels from 2r on stay as they are.
    """
    rotated, rest = x.split((cos.shape[-1], x.shape[-1] - cos.shape[-1]), dim=-1)
    rotated = rotated.float()
    # one after the other for both halves: (first cos - second sin, second cos + first sin)
    rotated = (rotated * cos + rotated.roll(cos.shape[-1] // 2, dims=-1) * sin).type_as(x)
    return torch.cat((rotated, rest), dim=-1) if rest.shape[-1] else rotated
