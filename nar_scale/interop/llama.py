"""Autoregressive models as Hugging Face Llama directories, for the programs that read those."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nar_scale.checkpoint.consolidated import CARD_FILE, LoadedModel
from nar_scale.checkpoint.directory import written_whole
from nar_scale.checkpoint.model_card import model_card
from nar_scale.checkpoint.shards import SHARD_BYTES, save_weights
from nar_scale.config import SamplerConfig
from nar_scale.errors import ConfigError
from nar_scale.interop.llama_layout import llama_names
from nar_scale.interop.llama_tokenizer import save_text_tokenizer
from nar_scale.model import TransformerWrapper
from nar_scale.objectives import AutoregressiveWrapper


@torch.no_grad()
def export_llama(
    model: LoadedModel, directory: str | Path, *, shard_bytes: int = SHARD_BYTES, license: str | None = None
) -> None:
    """Write weights, their configurations and a model card, and for a model with a tokenizer `tokenizer.json` too.

    `transformers.LlamaForCausalLM.from_pretrained(directory)` computes the same logits. `AutoTokenizer` gives
    the ids that the model was trained on, pads on the left with the end token, and so does `generate` with what has
    ended. The weights keep the model's dtype. The licence in the card is `license`, by default that of the model.

    Raises:
        ConfigError: the model has what Llama cannot represent.
        CheckpointError: the directory exists or cannot be written.
    """
    if not isinstance(model.wrapper, AutoregressiveWrapper):
        raise ConfigError("Llama has no non-autoregressive models; export one of objective.kind autoregressive")
    net = model.wrapper.net
    for refused, reason in _refusals(net):
        if refused:
            raise ConfigError(f"Llama has no {reason}")
    end_token = model.info.decode.end_token
    special = {"bos_token_id": None, "eos_token_id": end_token, "pad_token_id": end_token}
    config = {**_describe(net), **special}
    with written_whole(Path(directory)) as writing:
        save_weights(writing, _rename(net), "model", shard_bytes)
        (writing / "config.json").write_text(json.dumps(config, indent=2) + "\n")
        how = {**special, **_sampling(model.info.decode.decoding)}
        (writing / "generation_config.json").write_text(json.dumps(how, indent=2) + "\n")
        info = replace(model.info, license=license or model.info.license)
        card = model_card(Path(directory).name, model.config, info, model.wrapper, library="transformers")
        (writing / CARD_FILE).write_text(card)
        if model.tokenizer is not None:
            save_text_tokenizer(model.tokenizer, end_token, net.max_seq_len, writing)


def _sampling(decoding: SamplerConfig) -> dict[str, Any]:
    """What `transformers` calls the settings of decoding; texts that stop it are not among its files."""
    if decoding.temperature == 0:
        return {"do_sample": False}
    filters = {"top_k": decoding.top_k or 0, "top_p": 1.0 if decoding.top_p is None else decoding.top_p}
    return {"do_sample": True, "temperature": decoding.temperature, **filters}


def _refusals(net: TransformerWrapper) -> list[tuple[bool, str]]:
    stack = net.attn_layers
    block: Any = stack.blocks[0]
    rotary, feedforward = stack.rotary, block.feedforward
    kind = "geglu" if feedforward.gated else "gelu"
    return [
        (not stack.causal, "Encoder, in which tokens see both sides"),
        (not isinstance(stack.final_norm, nn.RMSNorm), "norm layernorm, only rmsnorm"),
        (feedforward.activation is not F.silu, f"feedforward {kind}, only swiglu"),
        (feedforward.to_out.bias is not None, "feedforward_bias"),
        (isinstance(block.attention.query_norm, nn.RMSNorm), "qk_norm"),
        (block.attention.to_queries.bias is not None, "qk_bias"),
        (rotary is None, "learned positions, only rotary ones"),
        (rotary is not None and rotary.dim != stack.dim_head, f"rotary_dim other than dim_head {stack.dim_head}"),
        (stack.dim % stack.heads != 0, f"dim {stack.dim} that heads {stack.heads} do not divide"),
        (stack.window is not None, "window"),
        (stack.cross_attend, "cross_attend"),
        (net.to_logits.input_scale != 1, "tie_embedding_scale other than 1"),
        (net.to_logits.out_features != net.num_tokens, f"logits_dim other than num_tokens {net.num_tokens}"),
        (net.add_continuous_pred_head, "continuous head (add_continuous_pred_head)"),
    ]


def _describe(net: TransformerWrapper) -> dict[str, Any]:
    stack = net.attn_layers
    block: Any = stack.blocks[0]
    rotary, dtype = stack.rotary, str(net.token_emb.weight.dtype).removeprefix("torch.")
    assert rotary is not None
    scaled = rotary.interpolation_factor != 1
    scaling = {"rope_type": "linear", "factor": rotary.interpolation_factor} if scaled else None
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": net.num_tokens,
        "hidden_size": stack.dim,
        "intermediate_size": block.feedforward.to_out.in_features,
        "num_hidden_layers": stack.depth,
        "num_attention_heads": stack.heads,
        "num_key_value_heads": block.attention.kv_heads,
        "head_dim": stack.dim_head,
        "hidden_act": "silu",
        "rms_norm_eps": stack.final_norm.eps,
        "attention_bias": False,
        "attention_dropout": block.attention.dropout,
        "mlp_bias": False,
        "max_position_embeddings": net.max_seq_len,
        "rope_theta": rotary.theta,  # up to transformers 4; what follows is for 5
        "rope_scaling": scaling,
        "rope_parameters": {**(scaling or {"rope_type": "default"}), "rope_theta": rotary.theta},
        "tie_word_embeddings": net.tie_embedding,
        "dtype": dtype,
        "torch_dtype": dtype,
    }


def _rename(net: TransformerWrapper) -> dict[str, Tensor]:
    renamed: dict[str, Tensor] = {}
    for name, weight in net.named_parameters():
        theirs = llama_names(name)
        renamed |= dict(zip(theirs, weight.chunk(len(theirs))))
    return renamed
