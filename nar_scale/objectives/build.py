"""From a config to the wrapper that it describes."""

from __future__ import annotations

from inspect import signature
from typing import Any

from nar_scale.config import Config, ModelConfig
from nar_scale.model import AttentionLayers, Decoder, Encoder, TransformerWrapper
from nar_scale.objectives.autoregressive import AutoregressiveWrapper
from nar_scale.objectives.block_diffusion import BlockDiffusionWrapper
from nar_scale.objectives.hybrid import HybridWrapper
from nar_scale.objectives.non_autoregressive import NonAutoregressiveWrapper
from nar_scale.objectives.objective import Objective

_LAYER_OPTIONS = set(signature(AttentionLayers).parameters) & set(ModelConfig.model_fields)


def build_wrapper(config: Config, vocabulary_size: int) -> Objective:
    """Build the wrapper that a config describes, initialised from torch's default generator.

    Args:
        config: its `model` and `objective` sections.
        vocabulary_size: number of token ids in the data; all kinds but the autoregressive one add the mask
            token as the last id.

    Raises:
        ConfigError: settings that do not fit each other.
    """
    model, objective = config.model, config.objective
    autoregressive = objective.kind == "autoregressive"
    net = TransformerWrapper(
        num_tokens=vocabulary_size + (0 if autoregressive else 1),
        max_seq_len=model.max_seq_len,
        attn_layers=(Decoder if objective.kind in ("autoregressive", "hybrid") else Encoder)(
            **{name: getattr(model, name) for name in _LAYER_OPTIONS}, rotary=model.positions == "rotary"
        ),
        embedding_std=model.embedding_std,
        tie_embedding=model.tie_embeddings,
        tie_embedding_scale=model.tie_embedding_scale,
        logits_chunk_size=model.logits_chunk_size,
    )
    if objective.kind == "autoregressive":
        return AutoregressiveWrapper(net, mask_prob=objective.mask_prob, add_attn_z_loss=objective.attention_z_loss)
    if objective.kind == "hybrid":
        return HybridWrapper(
            net,
            mask_id=vocabulary_size,
            block_size=objective.block_size,
            autoregressive_weight=objective.autoregressive_weight,
            diffusion_weight=objective.diffusion_weight,
        )
    options: dict[str, Any] = {
        "mask_id": vocabulary_size,
        "no_replace_prob": objective.no_replace_prob,
        "random_token_prob": objective.random_token_prob,
        "schedule": objective.schedule,
        "training_schedule": objective.training_schedule,
        "use_simple_mdlm_loss_weight": objective.loss == "weighted",
        "masking": objective.masking,
        "num_classes": objective.num_classes,
        "prefix_length": objective.prefix_length,
        "condition_drop_prob": objective.condition_drop_prob,
    }
    if objective.kind == "block_diffusion":
        return BlockDiffusionWrapper(net, block_size=objective.block_size, **options)
    return NonAutoregressiveWrapper(
        net,
        self_cond=objective.self_conditioning,
        self_cond_train_prob=objective.self_conditioning_train_prob,
        self_token_critic=objective.self_token_critic,
        critic_loss_weight=objective.critic_loss_weight,
        **options,
    )
