import math

import pytest
import torch
from einops import rearrange, repeat

from nar_scale.model.attention import Attention
from nar_scale.model.layers import Rotary, rotate

BATCH, N, DIM = 2, 7, 24


def attention(heads=4, kv_heads=2, dim_head=6, qk_norm=False, **options):
    torch.manual_seed(0)
    return Attention(DIM, heads, kv_heads, dim_head, qk_norm, dropout=0.0, output_scale=1.0, **options)


def inputs(seed=1):
    return torch.randn(BATCH, N, DIM, generator=torch.Generator().manual_seed(seed))


def rotate_by_hand(x, positions, theta):
    """Multiply the complex numbers (x_i, x_{i + d/2}) by e^{i p theta^(-2i/d)}."""
    half = x.shape[-1] // 2
    turns = torch.polar(torch.ones(N, half), positions[:, None] * theta ** (-torch.arange(half) / half))
    turned = torch.complex(x[..., :half], x[..., half:]) * turns
    return torch.cat((turned.real, turned.imag), dim=-1)


def attend_by_hand(layer, x, allowed, rotary=False, context=None):
    source = x if context is None else context
    q, k, v = (
        rearrange(projected, "b n (h d) -> b h n d", d=layer.dim_head)
        for projected in (layer.to_queries(x), layer.to_keys(source), layer.to_values(source))
    )
    if rotary:
        q, k = (rotate_by_hand(each, torch.arange(N).float(), 100.0) for each in (q, k))
    k, v = (repeat(each, "b h n d -> b (h g) n d", g=layer.heads // layer.kv_heads) for each in (k, v))
    logits = torch.einsum("bhid,bhjd->bhij", q, k) / math.sqrt(layer.dim_head)
    weights = logits.masked_fill(~allowed, -math.inf).softmax(dim=-1)
    out = layer.to_out(rearrange(weights @ v, "b h n d -> b n (h d)"))
    return out, logits.masked_fill(~allowed, -math.inf).exp().sum(dim=-1).log().square().sum(dim=1)


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
@pytest.mark.parametrize("rotary", [False, True])
def test_the_kernel_equals_naive_attention(kv_heads, rotary):
    layer, x = attention(kv_heads=kv_heads), inputs()
    angles = Rotary(6, 100.0).angles(torch.arange(N)) if rotary else None
    causal = torch.ones(N, N, dtype=torch.bool).tril()
    masked = (torch.rand(BATCH, 1, 1, N, generator=torch.Generator().manual_seed(2)) < 0.6) | torch.eye(N).bool()
    for allowed, arguments in (
        (torch.ones_like(causal), {}),
        (causal, {"is_causal": True}),
        (masked, {"mask": masked}),
    ):
        out, z_loss = layer(x, angles, with_z_loss=True, **arguments)
        expected, expected_z_loss = attend_by_hand(layer, x, allowed, rotary)
        torch.testing.assert_close(out, expected, rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(z_loss, expected_z_loss, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kv_heads", [2, 4])
def test_attention_to_a_context_equals_naive_attention(kv_heads):
    layer, x = attention(kv_heads=kv_heads, dim_context=5), inputs()
    context = torch.randn(BATCH, 3, 5, generator=torch.Generator().manual_seed(3))
    allowed = torch.tensor([[True, True, False], [False, True, True]])[:, None, None]
    for arguments in ({}, {"mask": allowed}):
        out, _ = layer(x, context=context, **arguments)
        expected, _ = attend_by_hand(layer, x, arguments.get("mask", torch.tensor(True)), context=context)
        torch.testing.assert_close(out, expected, rtol=1e-4, atol=1e-6)


def test_grouped_heads_equal_repeated_heads():
    grouped, full, x = attention(kv_heads=2), attention(kv_heads=4), inputs()
    full.load_state_dict(
        {
            name: repeat(weight, "(h d) c -> (h g d) c", g=2, d=6)
            if name.startswith(("to_keys", "to_values"))
            else weight
            for name, weight in grouped.state_dict().items()
        }
    )
    torch.testing.assert_close(grouped(x, None)[0], full(x, None)[0])


def test_query_key_norm_bounds_the_logits():
    layer = attention(kv_heads=4, qk_norm=True)
    _, z_loss = layer(1e3 * inputs(), None, with_z_loss=True)
    largest = math.sqrt(6) + math.log(N)  # |q| = |k| = sqrt(d), so q k / sqrt(d) <= sqrt(d)
    assert (z_loss <= 4 * largest**2).all()


def test_rotary_products_depend_on_the_distance_alone():
    rotary, (q, k) = Rotary(6, 100.0), torch.randn(2, 1, 1, 1, 6)

    def product(i, j):
        turned = [rotate(x, *rotary.angles(torch.tensor([p]))) for x, p in ((q, i), (k, j))]
        return float((turned[0] * turned[1]).sum())

    assert product(3, 1) == pytest.approx(product(103, 101), abs=1e-4)
    assert product(3, 1) != pytest.approx(product(3, 2), abs=1e-2)
    assert product(5, 5) == pytest.approx(float((q * k).sum()), abs=1e-5)
