"""Biases of queries and keys favour a distance in each head, whatever the tokens are."""

from typing import cast

import pytest
import torch

from nar_scale.errors import ConfigError
from nar_scale.model import Decoder, Encoder
from nar_scale.model.attention import Attention
from nar_scale.model.distance_bias import near_distances
from nar_scale.model.layers import rotate
from tests.errors import refused

N = 12


def test_heads_look_at_the_nearest_tokens() -> None:
    assert near_distances(5, causal=False) == [-1, 1, -2, 2, -3]
    assert near_distances(4, causal=True) == [0, -1, -2, -3]


def favoured(stack: Encoder | Decoder) -> torch.Tensor:
    """The distance of the key with the largest logit from a query amid the sequence, by head, int64 `[heads]`.

    The tokens are the same everywhere, so that nothing but the biases tells keys apart.
    """
    attention, x = cast(Attention, stack.blocks[0].attention), torch.zeros(1, N, stack.dim)
    assert stack.rotary is not None
    angles = stack.rotary.angles(torch.arange(N))
    queries = rotate(attention._by_head(attention.to_queries(x), attention.heads), *angles)
    keys = rotate(attention._by_head(attention.to_keys(x), attention.kv_heads), *angles)
    keys = keys.repeat_interleave(attention.heads // attention.kv_heads, dim=1)
    return (queries @ keys.mT)[0, :, N // 2].argmax(dim=-1) - N // 2


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"kv_heads": 2, "rotary_theta": 100.0},
        {"rotary_dim": 8},
        {"rotary_interpolation_factor": 2.0, "rotary_base_rescale_factor": 3.0},
    ],
)
@pytest.mark.parametrize("kind", [Encoder, Decoder])
def test_each_head_favours_its_distance_at_first(kind: type[Encoder] | type[Decoder], options) -> None:
    stack = kind(64, 1, 4, qk_bias=True, **options)
    assert favoured(stack).tolist() == near_distances(4, kind.causal)


def test_half_precision_draws_the_same_biases() -> None:
    attention = cast(Attention, Encoder(64, 1, 4, qk_bias=True).blocks[0].attention)
    torch.set_default_dtype(torch.bfloat16)
    try:
        half = cast(Attention, Encoder(64, 1, 4, qk_bias=True).blocks[0].attention)
    finally:
        torch.set_default_dtype(torch.float32)
    assert half.to_queries.bias.dtype == torch.bfloat16
    torch.testing.assert_close(half.to_queries.bias, attention.to_queries.bias.bfloat16(), rtol=0, atol=0)


def test_cross_attention_has_no_biases() -> None:
    stack = Encoder(64, 1, 4, qk_bias=True, cross_attend=True)
    assert cast(Attention, stack.blocks[0].cross_attention).to_queries.bias is None


def test_biases_need_rotary_positions() -> None:
    with refused(ConfigError, "qk_bias", "rotary"):
        Encoder(64, 1, 4, qk_bias=True, rotary=False)
