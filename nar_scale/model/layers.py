"""Leaf layers. Each initialises itself in its constructor, so that `deepspeed.zero.Init` can shard it at once."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

NormName = Literal["rmsnorm", "layernorm"]
FeedForwardName = Literal["swiglu", "geglu", "gelu"]

EMBEDDING_STD = 0.02
_MULTIPLE = 8  # hidden widths are rounded up to this, which matrix units like


class Linear(nn.Linear):
    """A projection without bias, drawn from N(0, scale^2 / (3 * in_features)).

    With `scale` = 1 this is the variance of torch's own default. Projections that end in the residual stream
    of a stack of `depth` blocks use `scale` = 1 / sqrt(2 depth) (GPT-2), so that its variance does not grow.
    """

    def __init__(self, in_features: int, out_features: int, scale: float = 1.0):
        self.scale = scale
        super().__init__(in_features, out_features, bias=False)

    def reset_parameters(self) -> None:
        """Draw the weight anew."""
        nn.init.normal_(self.weight, std=self.scale * (3 * self.in_features) ** -0.5)


class Embedding(nn.Embedding):
    """A table of vectors drawn from N(0, 0.02^2)."""

    def reset_parameters(self) -> None:
        """Draw the table anew."""
        nn.init.normal_(self.weight, std=EMBEDDING_STD)


def make_norm(kind: NormName, dim: int) -> nn.Module:
    """RMSNorm or LayerNorm (without bias) over the last dimension."""
    return nn.RMSNorm(dim, eps=1e-6) if kind == "rmsnorm" else nn.LayerNorm(dim, bias=False)


class FeedForward(nn.Module):
    """Two projections around a non-linearity; gated for SwiGLU and GEGLU (arXiv:2002.05202).

    The gated forms have two thirds of the hidden width, hence the same number of parameters.

    Args:
        dim: width of the input and output, `[..., dim]`.
        mult: hidden width over `dim`.
        output_scale: scale of the output projection's initial values.
    """

    def __init__(self, dim: int, mult: float, kind: FeedForwardName, dropout: float, output_scale: float):
        super().__init__()
        self.gated = kind != "gelu"
        width = dim * mult * (2 / 3 if self.gated else 1)
        hidden = -(-int(width) // _MULTIPLE) * _MULTIPLE
        self.to_hidden = Linear(dim, hidden * (2 if self.gated else 1))
        self.to_out = Linear(hidden, dim, output_scale)
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
        dim_head: channels of a head, even.
        theta: base of the wavelengths.
    """

    def __init__(self, dim_head: int, theta: float):
        super().__init__()
        self.dim_head = dim_head
        self.theta = theta

    def angles(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Cosines and sines for int64 positions `[..., n]`, each float32 `[..., n, dim_head / 2]`."""
        exponents = torch.arange(0, self.dim_head, 2, device=positions.device, dtype=torch.float32) / self.dim_head
        angles = positions[..., None].float() * self.theta**-exponents
        return angles.cos(), angles.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate the channel pairs (i, i + dim/2) of `[batch, heads, n, dim_head]` by their angles."""
    first, second = x.float().chunk(2, dim=-1)
    rotated = torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)
    return rotated.type_as(x)
