"""How much memory a rank needs, by arithmetic."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

from nar_scale.config import Config, ModelConfig
from nar_scale.model import TransformerWrapper
from nar_scale.model.layers import hidden_width
from nar_scale.objectives import Objective
from nar_scale.planning.cost.partitions import ParameterSizes

_FP32 = 4


@dataclass(frozen=True)
class Part:
    """A part of the memory of a rank.

    Attributes:
        name: what it holds.
        size: in bytes.
        location: `device`, `cpu` or `nvme`.
    """

    name: str
    size: float
    location: str = "device"

    def __str__(self) -> str:
        where = {"device": "", "cpu": " (offloaded to memory)", "nvme": " (offloaded to disk)"}[self.location]
        return f"{self.name:<18}{self.size / GIBIBYTE:>10.3f} GiB{where}"


def estimate_memory(wrapper: Objective, config: Config, resolved: dict[str, Any], ranks: int) -> list[Part]:
    """What a rank holds at the end of a forward pass and in the step after it.

    With P parameters on R ranks, and b bytes an element in forward and backward pass (4 in fp32, else 2):

    - weights: P b; P b / R under ZeRO 3, where small ones are also there whole, and of the others those that DeepSpeed
      does not release between forward and backward pass (`ParameterSizes.retained`), two blocks at least; and P b / hpz
      more with a secondary partition.
    - gradients: P b under ZeRO 0 and 1, and P float32 more where ZeRO 1 sums in that beside bfloat16; under ZeRO 2
      and 3 P / R elements of `grad_accum_dtype`. In buckets they are reduced, each of at most P elements: one, or
      under ZeRO 1 and 2 with `overlap_comm` two, of which one is filled while the other is reduced.
    - master weights: P / R elements of float32 (or of bfloat16 if so configured), P under ZeRO 0; none under ZeRO 0
      where weights are of that type and are stepped themselves.
    - moments: two such copies for AdamW, one for Lion and for what Muon moves; the moving average is one in float32.
    - activations: see `activation_elements`, b bytes an element, and one chunk of logits in compute precision and
      twice, with its gradient, in float32; or if that is more what is computed again for one block, and 0.3 times as
      much for its gradients.

    P / R is rounded up as DeepSpeed does it, see `ParameterSizes`. Weights, gradients, master weights and moments are
    exactly what processes under DeepSpeed 0.19.8 hold between steps and micro-batches, but for the end of the parameter
    in which a rank's part of the gradients begins or ends, which ZeRO 2 keeps too where it sums in the type of the
    weights. The buckets of ZeRO 1 and 2 are there during the backward pass alone.

    Not counted are CUDA's own memory (about 0.5 GiB), NCCL's buffers, fragmentation, and copies of the data.

    Args:
        wrapper: on any device, also `meta`.
        resolved: the DeepSpeed config.
    """
    stage = resolved["zero_optimization"]["stage"]
    width = _FP32 if config.training.precision == "fp32" else 2
    master_width = 2 if config.training.master_weights == "bf16" else _FP32
    sizes, zero = ParameterSizes.of(wrapper, config.optimizer), resolved["zero_optimization"]
    parameters, shard = sizes.total, sizes.shard(stage, ranks)
    accumulated = _FP32 if resolved["data_types"]["grad_accum_dtype"] == "fp32" else 2
    optimizer_place, weights_place = _place(config.zero.offload_optimizer), _place(config.zero.offload_parameters)
    if stage < 3:
        weights = [Part("weights", (sizes.padded(ranks) if stage > 0 else parameters) * width)]
    else:
        persistent = sizes.persistent(zero) if ranks > 1 else 0  # one rank has whole weights, and computes with them
        gathered = min(parameters - persistent, max(sizes.retained(zero), 2 * sizes.largest_block)) if ranks > 1 else 0
        weights = [Part("weights", shard * width, weights_place), Part("small weights", persistent * width)]
        weights.append(Part("gathered weights", gathered * width))
        if config.zero.hpz_partition_size > 1:
            weights.append(Part("secondary weights", parameters * width / config.zero.hpz_partition_size))
    apart = stage == 1 and accumulated > width and optimizer_place == "device"
    if stage < 2:
        gradients = [Part("gradients", parameters * (width + apart * accumulated))]
    else:
        gradients = [Part("gradients", shard * accumulated, optimizer_place)]
    if stage > 0 and not apart:
        buckets = 2 if stage < 3 and zero["overlap_comm"] else 1
        gradients.append(Part("gradient buckets", buckets * min(parameters, zero["reduce_bucket_size"]) * width))
    stepped_itself = width == master_width and stage == 0
    masters = [] if stepped_itself else [Part("master weights", shard * master_width, optimizer_place)]
    moments = [Part("moments", sizes.moment_elements(stage, ranks) * master_width, optimizer_place)]
    average = [Part("moving average", shard * _FP32, optimizer_place)] if config.training.ema_decay else []
    return [*weights, *gradients, *masters, *moments, *average, *_activations(wrapper, config, width)]


def activation_elements(config: Config, tokens: int) -> tuple[float, float]:
    """Elements that the blocks keep of so many tokens for the backward pass, and that it computes again at a time.

    `full` recomputation keeps the input of each block, `selective` what `block_elements` says; what is not kept is
    there of one block at a time.
    """
    model = config.model
    block, products = block_elements(model)
    if model.activation_checkpointing == "full":
        return tokens * model.depth * model.dim, tokens * block
    if model.activation_checkpointing == "selective":
        return tokens * model.depth * products, tokens * (block - products)
    return tokens * model.depth * block, 0


def block_elements(model: ModelConfig) -> tuple[int, int]:
    """Elements of a token that a block makes for the backward pass, and those that `selective` recomputation keeps.

    A block of width d, with a channels in its queries, k in its keys, and h hidden ones, keeps of each token, where g
    is 1 for a gated feed-forward layer and 0 for another,

        4 d + 3 a + 2 k + (2 + 2 g) h

    elements: inputs and results of its two norms, queries, keys, values and twice what attention gives, and around the
    feed-forward's activation its input and result and where it is gated the gate and the product. To those come, with
    normed queries and keys, a + k. `selective` recomputation keeps the block's input and the results of matrix products
    and of attention, 3 d + 2 a + 2 k + (1 + g) h.
    """
    channels = model.dim_head or model.dim // model.heads
    queries, keys = channels * model.heads, channels * (model.kv_heads or model.heads)
    gated = int(model.feedforward != "gelu")
    hidden = model.feedforward_dim or hidden_width(model.dim, model.feedforward_mult, model.feedforward)
    block = 4 * model.dim + 3 * queries + 2 * keys + (2 + 2 * gated) * hidden + model.qk_norm * (queries + keys)
    return block, 3 * model.dim + 2 * queries + 2 * keys + (1 + gated) * hidden


def _activations(wrapper: Objective, config: Config, width: int) -> list[Part]:
    # a critic judges the whole sequence in a forward pass of its own, which the backward pass needs as well
    passes = 2 if getattr(config.objective, "self_token_critic", False) else 1
    training, net = config.training, _net(wrapper)
    tokens = training.micro_batch_size * config.model.max_seq_len // training.sequence_parallel_size
    around = 3 * net.emb_dim * tokens  # embedding, final norm, and what the head is given
    kept, again = activation_elements(config, wrapper.copies * tokens)
    logits = min(config.model.logits_chunk_size, tokens * net.num_tokens) * (width + 2 * _FP32)
    # the logits are gone when the first block is computed again
    rest = max(0.0, 1.3 * again * width - logits)
    return [Part("activations", (passes * kept + around) * width + rest), Part("logits", logits)]


def _place(offload: str) -> str:
    return "device" if offload == "none" else offload


def _net(wrapper: nn.Module) -> TransformerWrapper:
    net = wrapper.net
    assert isinstance(net, TransformerWrapper)
    return net


GIBIBYTE = 2**30
