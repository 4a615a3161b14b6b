"""Every key of a config's model and objective reaches the wrapper that is built."""

import pytest
import torch

from nar_scale.model import Decoder, Encoder
from nar_scale.objectives import (
    AutoregressiveWrapper,
    BlockDiffusionWrapper,
    HybridWrapper,
    NonAutoregressiveWrapper,
    build_wrapper,
)
from tests.config.helpers import config_with

VOCABULARY = 30
KINDS = {
    "non_autoregressive": (NonAutoregressiveWrapper, Encoder),
    "block_diffusion": (BlockDiffusionWrapper, Encoder),
    "autoregressive": (AutoregressiveWrapper, Decoder),
    "hybrid": (HybridWrapper, Decoder),
}


def built(**changes):
    torch.manual_seed(0)
    changes = {f"model.{name}" if "." not in name else name: value for name, value in changes.items()}
    if changes.get("objective.kind") in ("block_diffusion", "hybrid"):
        changes = {"objective.block_size": 4, **changes}
    return build_wrapper(config_with(**changes), VOCABULARY)


@pytest.mark.parametrize("kind", KINDS)
def test_the_kind_decides_wrapper_and_stack(kind):
    wrapper = built(**{"objective.kind": kind})
    assert (type(wrapper), type(wrapper.net.attn_layers)) == KINDS[kind]
    assert wrapper.net.num_tokens == VOCABULARY + (kind != "autoregressive")
    assert wrapper.mask_id == (None if kind == "autoregressive" else VOCABULARY)
    assert wrapper.max_seq_len == 12


def test_model_keys_reach_the_layers():
    net = built(
        dim=24,
        depth=3,
        heads=6,
        dim_head=10,
        kv_heads=3,
        feedforward="geglu",
        feedforward_dim=20,
        feedforward_bias=True,
        norm="layernorm",
        norm_eps=0.01,
        rotary_theta=50.0,
        rotary_dim=4,
        rotary_interpolation_factor=2.0,
        rotary_base_rescale_factor=3.0,
        qk_norm=True,
        window=5,
        tie_embeddings=True,
        tie_embedding_scale=0.5,
        dropout=0.25,
        activation_checkpointing="selective",
        compile=True,
        logits_chunk_size=99,
    ).net
    layers, block = net.attn_layers, net.attn_layers.blocks[2]
    assert (layers.dim, layers.depth, layers.heads, layers.dim_head) == (24, 3, 6, 10)
    assert (block.attention.kv_heads, block.attention.dropout, block.dropout.p) == (3, 0.25, 0.25)
    assert block.feedforward.to_hidden.weight.shape == (40, 24)
    assert block.feedforward.to_out.bias.shape == (24,)
    assert (type(layers.final_norm), layers.final_norm.eps) == (torch.nn.LayerNorm, 0.01)
    assert block.attention.key_norm.eps == 0.01
    assert (layers.rotary.dim, layers.rotary.theta, layers.rotary.interpolation_factor) == (4, 50.0 * 3.0**2, 2.0)
    assert (layers.window, layers.activation_checkpointing, layers.compile_blocks) == (5, "selective", True)
    assert net.to_logits.weight is net.token_emb.weight
    assert (net.to_logits.input_scale, net.to_logits.chunk_size) == (0.5, 99)
    wide = built(embedding_std=0.5, positions="learned", **{"objective.num_classes": 3, "data.class_field": "cls"})
    for embedding in (wide.net.token_emb, wide.net.pos_emb, wide.class_emb):
        assert embedding.weight.std().item() == pytest.approx(0.5, rel=0.2)
    flex = built(positions="learned", feedforward_mult=8.0, feedforward="gelu", attention_kernel="flex").net
    assert flex.attn_layers.rotary is None
    assert flex.attn_layers.blocks[0].feedforward.to_out.weight.shape == (16, 128)
    assert flex.attn_layers.attention_kernel == "flex"


@pytest.mark.parametrize("kind", ["non_autoregressive", "block_diffusion"])
def test_objective_keys_reach_the_wrapper(kind):
    options = {
        "no_replace_prob": 0.1,
        "random_token_prob": 0.2,
        "masking": "bernoulli",
        "num_classes": 5,
        "prefix_length": 3,
        "condition_drop_prob": 0.4,
    }
    schedules = {"objective.schedule": "cosine", "objective.training_schedule": "bell"}
    keys = {f"objective.{name}": value for name, value in options.items()}
    keys["data.class_field"] = "cls"
    wrapper = built(**{"objective.kind": kind, "objective.loss": "unweighted", **schedules, **keys})
    assert {name: getattr(wrapper, name) for name in options} == options
    assert wrapper.use_simple_mdlm_loss_weight is False
    assert wrapper.schedule.masked_fraction(torch.tensor(0.5)).item() == pytest.approx(0.5**0.5)
    assert wrapper.training_schedule.progress_at(torch.tensor(0.25)).item() == pytest.approx(0.75**2 * 1.5)
    assert built(**{"objective.kind": kind}).training_schedule.progress_at(torch.tensor(0.25)).item() == 0.75
    if kind == "block_diffusion":
        assert wrapper.block_size == 4


def test_keys_of_one_kind_alone_reach_the_wrapper():
    weights = {"objective.autoregressive_weight": 0.5, "objective.diffusion_weight": 2.0}
    hybrid = built(**{"objective.kind": "hybrid", **weights})
    assert (hybrid.block_size, hybrid.autoregressive_weight, hybrid.diffusion_weight) == (4, 0.5, 2.0)
    critical = built(
        **{
            "objective.self_conditioning": True,
            "objective.self_conditioning_train_prob": 0.3,
            "objective.self_token_critic": True,
            "objective.critic_loss_weight": 0.7,
        }
    )
    assert (critical.self_cond, critical.self_cond_train_prob, critical.critic_loss_weight) == (True, 0.3, 0.7)
    assert critical.term_names == ("generator_loss", "critic_loss")
    forgetful = built(
        **{"objective.kind": "autoregressive", "objective.mask_prob": 0.2, "objective.attention_z_loss": True}
    )
    assert (forgetful.mask_prob, forgetful.add_attn_z_loss) == (0.2, True)
