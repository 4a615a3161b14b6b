"""What a token of the data costs in training: operations and memory traffic, by kind of objective and recomputation."""

from __future__ import annotations

import math
from dataclasses import dataclass

from nar_scale.config import Config
from nar_scale.model.parameters import full_size
from nar_scale.objectives import Objective
from nar_scale.planning.flops import flops_per_token
from nar_scale.planning.memory_estimate import block_elements

# a kept element is written and read in the forward pass; in the backward pass it is read, its gradient written and read
_PASSES, _PASSES_OF_RECOMPUTATION = 5, 2
_LAST_PRODUCT = "feedforward.to_out.weight"  # of a block
_ATTENTION_BACKWARD = 2.5  # times the forward pass: five products for two (FlashAttention-2, arXiv:2307.08691)


@dataclass(frozen=True)
class Workload:
    """What one token of the data costs, forward, backward and computed again.

    Attributes:
        model_flops: operations by which MFU is counted, see `flops_per_token`.
        matrix_flops: operations of the products with weights that are really made.
        attention_flops: those of attention itself.
        traffic: bytes that all else moves between a device and its memory.
    """

    model_flops: float
    matrix_flops: float
    attention_flops: float
    traffic: float


def workload_of(wrapper: Objective, config: Config) -> Workload:
    """What a token costs by the wrapper's kind, with a wrapper on any device, also `meta`.

    A non-autoregressive model passes logits for masked tokens alone. Self-conditioning adds a forward pass, a token
    critic a forward and a backward pass and drawn answers; block diffusion has the masked and the true sequence in the
    network at once. `full` recomputation repeats the blocks' forward pass but for its last product, whose result the
    backward pass does not need; several chunks of logits repeat that of the head.
    """
    model, net = config.model, wrapper.net
    layers = net.attn_layers
    width = 4 if config.training.precision == "fp32" else 2
    copies = _copies(config)
    forward, trained = _passes(config)
    again = trained if model.activation_checkpointing == "full" else 0
    blocks = sum(map(full_size, layers.parameters()))
    last = sum(full_size(weight) for name, weight in layers.named_parameters() if name.endswith(_LAST_PRODUCT))
    repeated_weights = again * (blocks - last)
    predicted = predicted_fraction(config)
    head = net.num_tokens * net.emb_dim
    tokens = config.training.micro_batch_size * model.max_seq_len
    chunked = predicted * tokens * net.num_tokens > model.logits_chunk_size
    head_passes = 3 + chunked + bool(getattr(config.objective, "self_token_critic", False))
    attended = 4.0 * layers.depth * layers.heads * layers.dim_head * copies * model.max_seq_len * computed_keys(config)
    block, products = block_elements(model)
    repeated = {"none": 0, "selective": block - products, "full": block}[model.activation_checkpointing]
    inference = forward - trained
    elements = layers.depth * (
        trained * (_PASSES * block + _PASSES_OF_RECOMPUTATION * repeated) + _PASSES_OF_RECOMPUTATION * inference * block
    )
    return Workload(
        model_flops=flops_per_token(net),
        matrix_flops=2.0 * copies * (blocks * (forward + 2 * trained) + repeated_weights)
        + 2.0 * predicted * head * head_passes,
        attention_flops=copies * attended * (forward + _ATTENTION_BACKWARD * trained + again),
        traffic=copies * elements * width + predicted * net.num_tokens * _PASSES * (width + 4),
    )


def predicted_fraction(config: Config) -> float:
    """Tokens of which logits are computed, over those of the data: the masked part on average, or all."""
    if config.objective.kind == "autoregressive":
        return 1.0
    schedule = getattr(config.objective, "training_schedule", None) or config.objective.schedule
    masked = 2 / math.pi if schedule == "cosine" else 0.5
    return masked + (config.objective.kind == "hybrid")


def computed_keys(config: Config) -> float:
    """The part of all pairs of tokens that the attention kernel works on.

    `sdpa` skips the future of an autoregressive model without a window or documents, and with a mask works on
    everything; `flex` skips what a window or the order of blocks hides, but for blocks in part.
    """
    model, kind = config.model, config.objective.kind
    masked = model.window is not None or config.data.document_field is not None
    causal = 0.5 if kind == "autoregressive" else 1.0
    if model.attention_kernel == "sdpa":
        return 1.0 if masked else causal
    if _copies(config) == 2:
        return 0.25  # a masked token sees true ones of earlier blocks, a true one those and its own
    if model.window is None:
        return causal
    return min(causal, model.window / model.max_seq_len * (1 if kind == "autoregressive" else 2))


def _copies(config: Config) -> int:
    """How often a token of the data is in the network: where there are blocks, masked and beside that true."""
    n = config.model.max_seq_len
    return 2 if getattr(config.objective, "block_size", n) < n else 1


def _passes(config: Config) -> tuple[int, int]:
    """Forward passes of the blocks, and those among them that a backward pass follows."""
    trained = 1 + bool(getattr(config.objective, "self_token_critic", False))
    return trained + bool(getattr(config.objective, "self_conditioning", False)), trained
