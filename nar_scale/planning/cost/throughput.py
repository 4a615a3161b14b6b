"""How long a step takes on a kind of device, by what takes the time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from nar_scale.config import Config
from nar_scale.planning.cost.communication import Collective, Interconnect
from nar_scale.planning.cost.devices import Device
from nar_scale.planning.cost.workload import Workload

_ATTENTION_EFFICIENCY = 0.6  # of what matrix products reach
_TRAFFIC_EFFICIENCY = 0.8  # of the memory's bandwidth
_OPTIMIZER_BYTES = 40  # a parameter: master, moments, gradient, average of weights, norm and clipping
_HOST_OPTIMIZER_BANDWIDTH = 20e9  # bytes/s a rank, of the optimizer's step on the CPUs of a node
_DISK_BANDWIDTH = 3e9  # bytes/s a rank, of one NVMe disk for two devices
_SLOWED_BY_OVERLAP = 0.1  # of the time of a collective, by which the computing beside it is slower


@dataclass(frozen=True)
class Ceilings:
    """What a device does at best, as measured on it or by its data sheet.

    Attributes:
        matrix_flops: FLOP/s of large matrix products in a run.
        memory_bandwidth: bytes/s of a copy on the device, read and written.
        peak_flops: FLOP/s that MFU refers to.
        host_bandwidth: bytes/s in each direction, to the memory of the node.
        source: where the figures are from.
    """

    matrix_flops: float
    memory_bandwidth: float
    peak_flops: float
    host_bandwidth: float
    source: str

    @classmethod
    def of(cls, device: Device) -> Ceilings:
        """Those of a data sheet, with a part of the peak and of the bandwidth that large models reach."""
        return cls(
            matrix_flops=device.peak_flops * device.matrix_efficiency,
            memory_bandwidth=device.memory_bandwidth * _TRAFFIC_EFFICIENCY,
            peak_flops=device.peak_flops,
            host_bandwidth=device.host_bandwidth,
            source=f"data sheet, {device.matrix_efficiency:.0%} of the peak in matrix products assumed",
        )


@dataclass(frozen=True)
class StepTime:
    """Seconds of a step on every rank, by what takes them; the sum is the step.

    Attributes:
        matrices: products with weights.
        attention: attention itself.
        traffic: everything else on the device, by the bytes that it moves.
        optimizer: the optimizer's step, with what offload moves.
        exposed: communication that nothing is computed beside, or that slows what is, and weights from the host.
        communication: all communication; not a part of the sum.
    """

    matrices: float
    attention: float
    traffic: float
    optimizer: float
    exposed: float
    communication: float

    @property
    def total(self) -> float:
        """Seconds of the step."""
        return self.matrices + self.attention + self.traffic + self.optimizer + self.exposed


def step_time(
    config: Config,
    workload: Workload,
    tokens: float,
    accumulation: int,
    shard: int,
    collectives: Sequence[Collective],
    interconnect: Interconnect,
    ceilings: Ceilings,
) -> StepTime:
    """The time of an optimizer step.

    Computing is matrix products, attention and memory traffic one after the other. Of the collectives, those of a phase
    run beside its computing where `overlap_comm` lets them, and what is left when it has ended is waited for.

    Args:
        config: of the run.
        workload: of a token.
        tokens: of the data that a rank works on in a step.
        accumulation: micro-batches that they come in.
        shard: elements of the parameters that a rank steps.
        collectives: of the step.
        interconnect: that they run on.
        ceilings: of the device.
    """
    matrices = tokens * workload.matrix_flops / ceilings.matrix_flops
    attention = tokens * workload.attention_flops / (ceilings.matrix_flops * _ATTENTION_EFFICIENCY)
    traffic = tokens * workload.traffic / ceilings.memory_bandwidth
    computing = matrices + attention + traffic
    beside = {"forward": computing / 3, "backward": computing * 2 / 3}
    beside["last backward"] = beside["backward"] / accumulation
    total = 0.0
    exposed = _weights_from_host(config, shard, accumulation, ceilings)
    for phase in ("forward", "backward", "last backward", "after"):
        seconds = sum(interconnect.seconds(each) for each in collectives if each.phase == phase)
        hidden = min(seconds, beside.get(phase, 0.0))
        exposed += seconds - hidden + hidden * _SLOWED_BY_OVERLAP
        total += seconds
    return StepTime(matrices, attention, traffic, _optimizer(config, shard, ceilings), exposed, total)


def _weights_from_host(config: Config, shard: int, accumulation: int, ceilings: Ceilings) -> float:
    """Seconds in which offloaded weights come to the device, twice a micro-batch."""
    if config.zero.offload_parameters == "none":
        return 0.0
    bandwidth = ceilings.host_bandwidth if config.zero.offload_parameters == "cpu" else _DISK_BANDWIDTH
    return 2 * accumulation * shard * (4 if config.training.precision == "fp32" else 2) / bandwidth


def _optimizer(config: Config, shard: int, ceilings: Ceilings) -> float:
    place = config.zero.offload_optimizer
    if place == "none":
        return shard * _OPTIMIZER_BYTES / ceilings.memory_bandwidth
    moved = shard * 6 / ceilings.host_bandwidth  # gradients in float32 to the host, weights in half precision back
    stepped = shard * _OPTIMIZER_BYTES / _HOST_OPTIMIZER_BANDWIDTH
    disk = shard * 24 / _DISK_BANDWIDTH if place == "nvme" else 0.0  # master and moments, read and written
    return moved + stepped + disk
