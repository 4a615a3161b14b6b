"""Positions, norms, widths and initial values of the layers, against their formulas."""

import math

import pytest
import torch

from nar_scale.errors import ConfigError
from nar_scale.model import Decoder, Encoder, TransformerWrapper
from nar_scale.model.layers import Rotary, make_norm, rotate

from .helpers import small_net


def tokens(n=9):
    return torch.randint(11, (2, n), generator=torch.Generator().manual_seed(0))


def layers(**options):
    torch.manual_seed(0)
    return Encoder(**{"dim": 16, "depth": 2, "heads": 2, **options})


@pytest.mark.parametrize(("dim", "theta", "factor"), [(6, 100.0, 1.0), (8, 10_000.0, 4.0), (2, 10.0, 1.0)])
def test_angles_are_positions_times_falling_frequencies(dim, theta, factor):
    positions = torch.tensor([0, 1, 7, 5000])
    cos, sin = Rotary(dim, theta, base_rescale_factor=factor).angles(positions)
    if factor > 1:
        theta *= factor ** (dim / (dim - 2))
    for row, position in enumerate(positions.tolist()):
        for pair in range(dim // 2):
            angle = position * theta ** (-2 * pair / dim)
            for half, sign in ((0, -1), (dim // 2, 1)):
                assert cos[row, half + pair].item() == pytest.approx(math.cos(angle), abs=2e-3)
                assert sin[row, half + pair].item() == pytest.approx(sign * math.sin(angle), abs=2e-3)


def test_rescaling_the_base_stretches_the_longest_wavelength_by_the_factor_and_leaves_the_shortest():
    position = torch.tensor([1])
    plain, rescaled = (Rotary(8, 1000.0, 1.0, factor).angles(position)[1][0, 4:].asin() for factor in (1.0, 4.0))
    assert rescaled[0].item() == pytest.approx(plain[0].item(), rel=1e-6)
    assert rescaled[-1].item() == pytest.approx(plain[-1].item() / 4, rel=1e-4)
    assert (plain / rescaled).diff().min() > 0


def test_interpolation_divides_positions():
    plain, interpolated = small_net(Encoder), small_net(Encoder, rotary_interpolation_factor=4.0)
    far, near = torch.arange(9) * 4, torch.arange(9)
    torch.testing.assert_close(interpolated(tokens(), positions=far), plain(tokens(), positions=near))
    assert not torch.allclose(interpolated(tokens(), positions=near), plain(tokens(), positions=near), atol=1e-3)
    halves = Rotary(6, 100.0, 2.0).angles(torch.tensor([3]))[0]
    torch.testing.assert_close(halves[0], torch.cos(1.5 * 100.0 ** (-torch.arange(3) / 3)).repeat(2))


def test_the_options_of_the_stack_reach_the_rotary_positions():
    def logits(**options):
        return small_net(Encoder, **options)(tokens())

    plain = logits()
    torch.testing.assert_close(logits(rotary_theta=10_000.0, rotary_dim=8), plain)
    for option, value in {"rotary_theta": 50.0, "rotary_base_rescale_factor": 8.0, "rotary_dim": 4}.items():
        assert not torch.allclose(logits(**{option: value}), plain, atol=1e-3), option
    small = small_net(Encoder, rotary_dim=4, rotary_theta=50.0, rotary_base_rescale_factor=3.0)
    theta = 50.0 * 3.0 ** (4 / 2)
    torch.testing.assert_close(small_net(Encoder, rotary_dim=4, rotary_theta=theta)(tokens()), small(tokens()))


def test_only_the_first_channels_are_rotated():
    x, positions = torch.randn(2, 3, 5, 10), torch.arange(5) + 3
    turned = rotate(x, *Rotary(4, 100.0).angles(positions))
    assert torch.equal(turned[..., 4:], x[..., 4:])
    turns = torch.polar(torch.ones(5, 2), positions[:, None] * 100.0 ** (-torch.arange(2) / 2))
    expected = torch.complex(x[..., :2], x[..., 2:4]) * turns
    torch.testing.assert_close(turned[..., :2], expected.real)
    torch.testing.assert_close(turned[..., 2:4], expected.imag)


@pytest.mark.parametrize("eps", [None, 0.5])
@pytest.mark.parametrize("kind", ["rmsnorm", "layernorm"])
def test_norms_by_hand(kind, eps):
    x = torch.randn(4, 8) * 1e-3 + (1e-3 if kind == "layernorm" else 0)
    norm = make_norm(kind, 8, eps)
    centred = x - x.mean(dim=-1, keepdim=True) if kind == "layernorm" else x
    added = eps or (1e-5 if kind == "layernorm" else 1e-6)
    torch.testing.assert_close(norm(x), centred / (centred.square().mean(dim=-1, keepdim=True) + added).sqrt())
    assert [name for name, _ in norm.named_parameters()] == ["weight"]


def test_the_epsilon_reaches_every_norm():
    stack = layers(norm_eps=0.03, qk_norm=True, cross_attend=True)
    norms = [module for module in stack.modules() if isinstance(module, torch.nn.RMSNorm)]
    assert len(norms) == 2 * (3 + 4) + 1
    assert {norm.eps for norm in norms} == {0.03}


@pytest.mark.parametrize(
    ("options", "into", "out_of"),
    [
        ({"feedforward": "gelu"}, 64, 64),
        ({"feedforward": "gelu", "feedforward_mult": 1.3}, 24, 24),
        ({"feedforward": "swiglu"}, 96, 48),  # two thirds of 64, rounded up to a multiple of 8
        ({"feedforward": "geglu", "feedforward_dim": 13}, 26, 13),
        ({"feedforward": "gelu", "feedforward_dim": 13, "feedforward_mult": 9.0}, 13, 13),
    ],
)
@pytest.mark.parametrize("bias", [False, True])
def test_widths_of_the_feedforward_layer(options, into, out_of, bias):
    block = layers(**options, feedforward_bias=bias).blocks[1]
    assert block.feedforward.to_hidden.weight.shape == (into, 16)
    assert block.feedforward.to_out.weight.shape == (16, out_of)
    biases = {name: value for name, value in block.named_parameters() if name.endswith("bias")}
    assert list(biases) == (["feedforward.to_hidden.bias", "feedforward.to_out.bias"] if bias else [])
    assert not any(value.any() for value in biases.values())


@pytest.mark.parametrize("depth", [1, 6])
def test_initial_values_have_the_documented_spread(depth):
    torch.manual_seed(0)
    stack = Decoder(96, depth, 4, dim_head=48, feedforward_dim=200, cross_attend=True, dim_context=80, qk_norm=True)
    net = TransformerWrapper(num_tokens=300, max_seq_len=8, attn_layers=stack)
    expected = {"token_emb": 0.02, "to_logits": (3 * 96) ** -0.5}
    for number in range(depth):
        for place in ("attention", "cross_attention"):
            source = 80 if place == "cross_attention" else 96
            name = f"attn_layers.blocks.{number}.{place}"
            expected |= {
                f"{name}.to_queries": (3 * 96) ** -0.5,
                f"{name}.to_keys": (3 * source) ** -0.5,
                f"{name}.to_values": (3 * source) ** -0.5,
                f"{name}.to_out": (3 * 4 * 48 * 2 * depth) ** -0.5,
            }
        name = f"attn_layers.blocks.{number}.feedforward"
        expected |= {f"{name}.to_hidden": (3 * 96) ** -0.5, f"{name}.to_out": (3 * 200 * 2 * depth) ** -0.5}
    for name, weight in net.named_parameters():
        module = name.removesuffix(".weight")
        if "norm" in module:
            assert (weight == 1).all(), name
        else:
            assert weight.std().item() == pytest.approx(expected.pop(module), rel=0.03), name
            assert abs(weight.mean().item()) < 5 * weight.std().item() / weight.numel() ** 0.5, name
    assert not expected


def test_embeddings_have_the_spread_asked_for():
    torch.manual_seed(0)
    stack = Encoder(96, 1, 4, rotary=False)
    net = TransformerWrapper(num_tokens=300, max_seq_len=64, attn_layers=stack, embedding_std=0.5)
    for embedding in (net.token_emb, net.pos_emb):
        assert embedding.weight.std().item() == pytest.approx(0.5, rel=0.03)
    assert net.to_logits.weight.std().item() == pytest.approx((3 * 96) ** -0.5, rel=0.03)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rotary_dim": 3}, "even rotary_dim of at most dim_head 8, not 3"),
        ({"rotary_dim": 10}, "even rotary_dim of at most dim_head 8, not 10"),
        ({"attention_kernel": "flash"}, "attention_kernel must be sdpa or flex, not 'flash'"),
        ({"activation_checkpointing": True}, "activation_checkpointing must be none, full or selective, not True"),
        ({"window": 0}, "window must be at least 1, not 0"),
        ({"attention_kernel": "flex", "dropout": 0.1}, "flex has no attention dropout"),
    ],
)
def test_options_that_cannot_be_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        layers(**options)


@pytest.mark.parametrize(
    ("options", "message"), [({"norm": "rms"}, "norm must be"), ({"feedforward": "silu"}, "not 'silu'")]
)
def test_misspelt_kinds_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        Encoder(dim=8, depth=1, heads=2, **options)
