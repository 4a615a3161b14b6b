"""What the ranks send each other in a step under ZeRO, and how long that takes."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

from nar_scale.config import Config
from nar_scale.planning.cost.devices import Device
from nar_scale.planning.cost.partitions import ParameterSizes

Kind = Literal["all-reduce", "all-gather", "reduce-scatter", "all-to-all"]
Phase = Literal["forward", "backward", "last backward", "after"]

_BUS_EFFICIENCY = 0.8  # of the links' bandwidth, as NCCL's collectives of large tensors reach it
_LINK_LATENCY, _NETWORK_LATENCY = 2e-6, 5e-6  # seconds for a hop of a ring
_LAYERS_OF_A_BLOCK = 8  # whose weights ZeRO 3 fetches one after the other where it does not prefetch
_TREE_LATENCY = 15e-6  # seconds for a level of NCCL's trees


@dataclass(frozen=True)
class Collective:
    """A tensor that all ranks work on together, so many times in a step.

    Attributes:
        name: what for.
        kind: of the collective.
        phase: `forward` and `backward` of every micro-batch, `last backward` of a step, or `after` it, when nothing is
            computed meanwhile.
        size: bytes of the whole tensor.
        calls: how many collectives it is divided into.
        times: how often in a step, by the number of micro-batches.
        within_node: whether it stays inside a node.
    """

    name: str
    kind: Kind
    phase: Phase
    size: float
    calls: int
    times: int
    within_node: bool = False

    def sent(self, ranks: int) -> float:
        """Bytes that a rank sends in a step, in a ring: 2 (R - 1) / R of the tensor to reduce and gather it."""
        return self.times * self.size * (ranks - 1) / ranks * (2 if self.kind == "all-reduce" else 1)


@dataclass(frozen=True)
class Interconnect:
    """The links between ranks.

    Attributes:
        ranks: devices in all.
        nodes: that they stand in.
        link_bandwidth: bytes/s in each direction between the devices of a node.
        network_bandwidth: bytes/s in each direction to other nodes, for each device.
    """

    ranks: int
    nodes: int
    link_bandwidth: float
    network_bandwidth: float

    @classmethod
    def of(cls, device: Device, ranks: int, nodes: int, network_bandwidth: float | None = None) -> Interconnect:
        """That of a kind of device, whose network can be another."""
        return cls(ranks, nodes, device.link_bandwidth, network_bandwidth or device.network_bandwidth)

    def seconds(self, collective: Collective) -> float:
        """Seconds of a collective in a step: of the hops of a ring, or of a tree, and of the bytes.

        Rings go once through every node, each through another of its network cards, so that a node takes in what all
        its devices need as fast as its cards together.
        """
        nodes, ranks = (1, self.ranks // self.nodes) if collective.within_node else (self.nodes, self.ranks)
        if ranks == 1:
            return 0.0
        bandwidth = self.link_bandwidth
        if nodes > 1:
            bandwidth = min(bandwidth, self.network_bandwidth * ranks / nodes)
        hops = (ranks - nodes) * _LINK_LATENCY + (nodes if nodes > 1 else 0) * _NETWORK_LATENCY
        if collective.kind == "all-reduce":
            hops = min(2 * hops, 2 * math.log2(ranks) * _TREE_LATENCY)
        transfer = collective.sent(ranks) / (bandwidth * _BUS_EFFICIENCY)
        return transfer + collective.times * collective.calls * hops


def collectives_of_step(
    sizes: ParameterSizes, config: Config, resolved: dict[str, Any], ranks: int, accumulation: int
) -> list[Collective]:
    """What DeepSpeed 0.19.8 sends in a step, checked against the bytes that its processes send.

    ZeRO 0 and 1 reduce gradients once a step, ZeRO 2 and 3 those of every micro-batch. Up to ZeRO 2 every rank receives
    the whole reduced gradient, of which it keeps its part; after the step ZeRO 1 and 2 gather the weights. ZeRO 3
    gathers weights before they are used, forward and backward, but for small ones, which stay whole and are gathered
    after the step, and for those whose next use is within `stage3_max_reuse_distance` elements.

    Args:
        sizes: of the model's parameters.
        resolved: the DeepSpeed configuration.
        ranks: in the job.
        accumulation: micro-batches of a step.
    """
    zero, stage = resolved["zero_optimization"], config.training.zero_stage
    width = 4 if config.training.precision == "fp32" else 2
    total = sizes.total
    buckets = math.ceil(total / zero["reduce_bucket_size"])
    shared = _sequence_collectives(config, accumulation)
    reduced = total * (4 if config.training.sequence_parallel_size > 1 and stage in (1, 2) else width)
    if stage == 0:
        return [Collective("gradients", "all-reduce", "after", reduced, buckets, 1), *shared]
    padded = sizes.padded(ranks) * width
    if stage == 1:
        apart = resolved["data_types"]["grad_accum_dtype"] == "fp32" and width == 2
        phase: Phase = "after" if apart else "last backward"
        summed = total * 4 if apart else reduced
        gradients = Collective("gradients", "all-reduce", phase, summed, buckets, 1)
        return [gradients, Collective("weights", "all-gather", "after", padded, 2, 1), *shared]
    if stage == 2:
        gradients = Collective("gradients", "all-reduce", "backward", reduced, buckets, accumulation)
        return [gradients, Collective("weights", "all-gather", "after", padded, 2, 1), *shared]
    return [*_of_stage_3(sizes, config, zero, width, ranks, accumulation), *shared]


def _of_stage_3(
    sizes: ParameterSizes, config: Config, zero: dict[str, Any], width: int, ranks: int, accumulation: int
) -> list[Collective]:
    persistent, retained = sizes.persistent(zero), sizes.retained(zero)
    gathered_width = 1 if config.zero.quantized_weights else width
    gathered = (sizes.total - persistent) * gathered_width
    again = (sizes.total - persistent - retained) * gathered_width
    bucket = max(zero["stage3_prefetch_bucket_size"], sizes.total // (_LAYERS_OF_A_BLOCK * config.model.depth))
    calls = config.model.depth + math.ceil(sizes.total / bucket)
    buckets = math.ceil(sizes.total / zero["reduce_bucket_size"])
    reduce: Kind = "all-to-all" if config.zero.quantized_gradients else "reduce-scatter"
    reduced = sizes.total * (0.5 if config.zero.quantized_gradients else width)
    in_node = config.zero.hpz_partition_size > 1
    found = [
        Collective("weights, forward", "all-gather", "forward", gathered, calls, accumulation),
        Collective("weights, backward", "all-gather", "backward", again, calls, accumulation, in_node),
        Collective("gradients", reduce, "backward", reduced, buckets, accumulation),
        Collective("small weights", "all-gather", "after", persistent * width, 1, 1),
    ]
    return [each for each in found if each.size > 0]


def _sequence_collectives(config: Config, accumulation: int) -> list[Collective]:
    """Of Ulysses (arXiv:2309.14509): queries, keys, values and what attention gives, forward and backward."""
    model, training = config.model, config.training
    peers = training.sequence_parallel_size
    if peers == 1:
        return []
    channels = model.dim_head or model.dim // model.heads
    elements = 2 * channels * (model.heads + (model.kv_heads or model.heads)) * model.depth
    tokens = training.micro_batch_size * model.max_seq_len // peers
    size = tokens * elements * (4 if training.precision == "fp32" else 2)
    calls = 4 * model.depth
    return [
        Collective(f"sequences, {phase}", "all-to-all", "after", size, calls, accumulation, within_node=True)
        for phase in ("forward", "backward")
    ]
