"""Biases of queries and keys, which rotary positions turn into a bias of distance."""

from __future__ import annotations

import math

from nar_scale.model.layers import Rotary

AMPLITUDE = 2.0
"""Of the biases at first; queries and keys themselves have a root mean square of 0.6 then."""


def near_distances(heads: int, causal: bool) -> list[int]:
    """The distances in tokens that heads favour at first: 0, -1, -2, ... if `causal`, else -1, 1, -2, 2, ..."""
    if causal:
        return [-head for head in range(heads)]
    return [(head // 2 + 1) * (1 if head % 2 else -1) for head in range(heads)]


def near_biases(
    rotary: Rotary, dim_head: int, heads: int, kv_heads: int, causal: bool
) -> tuple[list[float], list[float]]:
    """Biases of queries and keys with which each head favours one of the nearest tokens.

    Rotary positions rotate biases too. With a direction b as the bias of the keys, and b rotated by d positions as that
    of the queries, the product of a query at m and a key at n gets AMPLITUDE^2 sum_i cos(theta_i (n - m - d)) whatever
    the tokens are, which is largest at the distance n - m = d. Models of Qwen (arXiv:2309.16609) have such biases,
    which start from 0.

    Args:
        rotary: the positions.
        dim_head: channels of a head.
        heads: query heads.
        kv_heads: key/value heads.
        causal: whether a token sees only the past.

    Returns:
        the biases of queries, `heads * dim_head` numbers, and of keys, `kv_heads * dim_head`.
    """
    queries = [bias for distance in near_distances(heads, causal) for bias in _direction(rotary, dim_head, distance)]
    return queries, _direction(rotary, dim_head, distance=0) * kv_heads


def _direction(rotary: Rotary, dim_head: int, distance: int) -> list[float]:
    """The direction b, rotated by a distance."""
    pairs = rotary.dim // 2
    # in numbers of Python, since `deepspeed.zero.Init` makes all tensors of the dtype of the weights
    angles = [distance / rotary.interpolation_factor * rotary.theta ** (-pair / pairs) for pair in range(pairs)]
    rotated = [AMPLITUDE * part(angle) for part in (math.cos, math.sin) for angle in angles]
    return rotated + [0.0] * (dim_head - rotary.dim)
