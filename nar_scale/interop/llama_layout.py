"""The names of the weights in Hugging Face Llama directories.

Rotary channels are paired there as here, and query heads share key heads alike, so no weight is permuted.
"""

from __future__ import annotations

_OF_MODEL = {
    "token_emb.weight": "model.embed_tokens.weight",
    "attn_layers.final_norm.weight": "model.norm.weight",
    "to_logits.weight": "lm_head.weight",
}
_OF_BLOCK = {
    "attention_norm.weight": ("input_layernorm.weight",),
    "attention.to_queries.weight": ("self_attn.q_proj.weight",),
    "attention.to_keys.weight": ("self_attn.k_proj.weight",),
    "attention.to_values.weight": ("self_attn.v_proj.weight",),
    "attention.to_out.weight": ("self_attn.o_proj.weight",),
    "feedforward_norm.weight": ("post_attention_layernorm.weight",),
    "feedforward.to_hidden.weight": ("mlp.gate_proj.weight", "mlp.up_proj.weight"),
    "feedforward.to_out.weight": ("mlp.down_proj.weight",),
}


def llama_names(name: str) -> tuple[str, ...]:
    """The names of the equal parts, from the first row on, that a weight of a `TransformerWrapper` is stored in.

    Raises:
        KeyError: Llama has no such weight.
    """
    if name in _OF_MODEL:
        return (_OF_MODEL[name],)
    _, _, layer, of_block = name.split(".", 3)
    return tuple(f"model.layers.{layer}.{theirs}" for theirs in _OF_BLOCK[of_block])
