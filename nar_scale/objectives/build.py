"""From a config to a wrapper."""

from __future__ import annotations

from nar_scale.config import Config
from nar_scale.model import Decoder, Encoder, TransformerWrapper
from nar_scale.objectives.autoregressive import AutoregressiveWrapper
from nar_scale.objectives.non_autoregressive import NonAutoregressiveWrapper

Wrapper = AutoregressiveWrapper | NonAutoregressiveWrapper


def build_wrapper(config: Config, vocabulary_size: int) -> Wrapper:
    """The wrapper that a config describes, freshly initialised from torch's default generator.

    Args:
        vocabulary_size: token ids in the data; a non-autoregressive model adds the mask as the last id.
    """
    model, objective = config.model, config.objective
    autoregressive = objective.kind == "autoregressive"
    layers = (Decoder if autoregressive else Encoder)(
        dim=model.dim,
        depth=model.depth,
        heads=model.heads,
        dim_head=model.dim_head,
        kv_heads=model.kv_heads,
        feedforward=model.feedforward,
        feedforward_mult=model.feedforward_mult,
        norm=model.norm,
        rotary=model.positions == "rotary",
        rotary_theta=model.rotary_theta,
        qk_norm=model.qk_norm,
        dropout=model.dropout,
        activation_checkpointing=model.activation_checkpointing,
    )
    net = TransformerWrapper(
        num_tokens=vocabulary_size + (0 if autoregressive else 1),
        max_seq_len=model.max_seq_len,
        attn_layers=layers,
        tie_embedding=model.tie_embeddings,
    )
    if autoregressive:
        return AutoregressiveWrapper(net, mask_prob=objective.mask_prob, add_attn_z_loss=objective.attention_z_loss)
    return NonAutoregressiveWrapper(
        net,
        mask_id=vocabulary_size,
        steps=objective.steps,
        self_cond=objective.self_conditioning,
        self_cond_train_prob=objective.self_conditioning_train_prob,
        no_replace_prob=objective.no_replace_prob,
        random_token_prob=objective.random_token_prob,
        schedule=objective.schedule,
        self_token_critic=objective.self_token_critic,
        critic_loss_weight=objective.critic_loss_weight,
        use_simple_mdlm_loss_weight=objective.loss == "mdlm",
    )
