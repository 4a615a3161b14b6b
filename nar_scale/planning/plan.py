"""A run on a number of devices, planned: what fits, how fast it is, what it sends, saves and costs."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from nar_scale.config import (
    Config,
    check_run,
    gradient_accumulation_steps,
    resolve_deepspeed_config,
    samples_before,
    steps_of_run,
    validate_config,
)
from nar_scale.errors import ConfigError, UserError
from nar_scale.objectives import Objective
from nar_scale.planning.cost.checkpoint_interval import (
    HOURS_BETWEEN_FAILURES,
    CheckpointPlan,
    checkpoint_size,
    plan_checkpoints,
)
from nar_scale.planning.cost.communication import Collective, Interconnect, collectives_of_step
from nar_scale.planning.cost.devices import USABLE_MEMORY, Device
from nar_scale.planning.cost.partitions import ParameterSizes
from nar_scale.planning.cost.throughput import Ceilings, StepTime, step_time
from nar_scale.planning.cost.workload import workload_of
from nar_scale.planning.memory_estimate import GIBIBYTE, Part, estimate_memory

SCALES = tuple(2**power for power in range(15))
"""Numbers of devices of the scaling table, 1 to 16,384."""

_BYTES_OF_A_MEMBER = 1536  # of a sample in a tar: two headers and padding


@dataclass(frozen=True)
class Terms:
    """What a plan is made for, beside the YAML.

    Attributes:
        device: the kind.
        ceilings: what one does at best.
        per_node: devices of a node.
        network_bandwidth: bytes/s in each direction and for each device between nodes.
        price: of a device and hour, in any currency; None if unknown.
        hours_between_failures: of a device.
        storage_bandwidth: bytes/s that the file system of the checkpoints takes from all ranks together.
    """

    device: Device
    ceilings: Ceilings
    per_node: int
    network_bandwidth: float
    price: float | None = None
    hours_between_failures: float = HOURS_BETWEEN_FAILURES
    storage_bandwidth: float = 5e9

    def nodes(self, devices: int) -> int:
        """Nodes that so many devices take."""
        return math.ceil(devices / self.per_node)

    @property
    def usable_memory(self) -> float:
        """Bytes of a device that a run can fill."""
        return USABLE_MEMORY * self.device.memory


@dataclass(frozen=True)
class PlannedRun:
    """A run with one setting on a number of devices.

    Attributes:
        config: the setting, with the micro-batch to use.
        devices: in all.
        nodes: that they stand in.
        accumulation: micro-batches of a step.
        memory: of a rank, by what it holds.
        collectives: what is sent in a step.
        step: its time.
        tokens_per_second: of the data, on all devices.
        mfu: model FLOPs utilisation of the peak.
        seconds: of the run, without checkpoints and failures.
        checkpoints: how large, and how often.
        data_bandwidth: bytes/s that all ranks read.
        price: of the whole run, with what checkpoints and failures cost; None if that of an hour is unknown.
    """

    config: Config
    devices: int
    nodes: int
    accumulation: int
    memory: tuple[Part, ...]
    collectives: tuple[Collective, ...]
    step: StepTime
    tokens_per_second: float
    mfu: float
    seconds: float
    checkpoints: CheckpointPlan
    data_bandwidth: float
    price: float | None

    @property
    def days(self) -> float:
        """Days that the run takes, with what checkpoints and failures cost."""
        return self.seconds / max(1e-9, 1 - self.checkpoints.lost_fraction) / 86_400

    @property
    def on_device(self) -> float:
        """Bytes on each device."""
        return sum(part.size for part in self.memory if part.location == "device")

    @property
    def on_host(self) -> float:
        """Bytes that each rank keeps in the memory of its node."""
        return sum(part.size for part in self.memory if part.location == "cpu")

    @property
    def sent(self) -> float:
        """Bytes that each rank sends in a step."""
        return sum(collective.sent(self.devices) for collective in self.collectives)


class DoesNotFitError(UserError):
    """A run for which a device of a kind has too little memory.

    Args:
        message: the line for the user.
        short: the same in a few words.
    """

    def __init__(self, message: str, short: str):
        super().__init__(message)
        self.short = short


def plan_run(wrapper: Objective, config: Config, terms: Terms, devices: int) -> PlannedRun:
    """Plan a run with the largest micro-batch that fits.

    Args:
        wrapper: that the config means, on any device, also `meta`.
        config: whose micro-batch is not looked at.
        terms: what it is planned for.
        devices: in all, one rank each.

    Raises:
        ConfigError: the global batch does not divide by so many devices.
        DoesNotFitError: not even a micro-batch of one sequence fits.
    """
    found = _fitting(wrapper, config, terms, devices)
    sizes, training = ParameterSizes.of(wrapper, found.optimizer), found.training
    resolved = resolve_deepspeed_config(found, devices)
    accumulation = gradient_accumulation_steps(found, devices)
    workload = workload_of(wrapper, found)
    collectives = collectives_of_step(sizes, found, resolved, devices, accumulation)
    tokens = training.global_batch_size * found.model.max_seq_len
    nodes = terms.nodes(devices)
    interconnect = Interconnect.of(terms.device, devices, nodes, terms.network_bandwidth)
    shard = sizes.shard(training.zero_stage, devices)
    step = step_time(found, workload, tokens / devices, accumulation, shard, collectives, interconnect, terms.ceilings)
    speed = tokens / step.total
    seconds = samples_before(training, steps_of_run(found)) * found.model.max_seq_len / speed
    checkpoints = plan_checkpoints(
        checkpoint_size(sizes, found),
        found,
        devices,
        step.total,
        terms.storage_bandwidth,
        terms.ceilings.host_bandwidth,
        terms.hours_between_failures,
    )
    run = PlannedRun(
        config=found,
        devices=devices,
        nodes=nodes,
        accumulation=accumulation,
        memory=tuple(estimate_memory(wrapper, found, resolved, devices)),
        collectives=tuple(collectives),
        step=step,
        tokens_per_second=speed,
        mfu=speed * workload.model_flops / (devices * terms.ceilings.peak_flops),
        seconds=seconds,
        checkpoints=checkpoints,
        data_bandwidth=speed * _bytes_of_a_token(wrapper, found),
        price=None,
    )
    return run if terms.price is None else replace(run, price=terms.price * devices * 24 * run.days)


def plan_settings(
    wrapper: Objective, config: Config, terms: Terms, devices: int
) -> Iterator[tuple[Config, PlannedRun | None]]:
    """Plan the run under every ZeRO stage, with and without offload and recomputation; None for what does not fit.

    What the config cannot be combined with is left out.
    """
    for setting in _settings(config):
        try:
            check_run(validate_config(setting.model_dump(), "a setting of the plan"))
            yield setting, plan_run(wrapper, setting, terms, devices)
        except ConfigError:
            continue
        except DoesNotFitError:
            yield setting, None


def plan_scales(wrapper: Objective, config: Config, terms: Terms) -> dict[int, PlannedRun | str]:
    """Plan the run on 1 to 16,384 devices; what keeps it from running is a line in place of a plan.

    Where there are more devices than sequences in the global batch, it is raised to one for each; the number of tokens
    stays.
    """
    found: dict[int, PlannedRun | str] = {}
    for devices in SCALES:
        try:
            found[devices] = plan_run(wrapper, _with_enough_sequences(config, devices), terms, devices)
        except ConfigError as error:
            found[devices] = str(error)
        except DoesNotFitError as error:
            found[devices] = error.short
    return found


def _with_enough_sequences(config: Config, devices: int) -> Config:
    training, groups = config.training, devices // config.training.sequence_parallel_size
    if training.global_batch_size >= groups:
        return config
    samples = samples_before(training, steps_of_run(config))
    length = {"steps": None, "tokens": None, "samples": samples}
    return _with(config, training={"global_batch_size": groups, "batch_size_warmup": (), **length})


def _settings(config: Config) -> Iterator[Config]:
    for stage in (0, 1, 2, 3):
        offloads = [("none", "none"), *([("cpu", "none")] if stage else []), *([("cpu", "cpu")] if stage == 3 else [])]
        for optimizer, parameters in offloads:
            for recomputation in ("none", "selective", "full"):
                zero: dict[str, Any] = {"offload_optimizer": optimizer, "offload_parameters": parameters}
                if stage < 3:
                    zero |= {"hpz_partition_size": 1, "quantized_weights": False, "quantized_gradients": False}
                model = {"activation_checkpointing": recomputation}
                yield _with(config, training={"zero_stage": stage}, zero=zero, model=model)


def _with(config: Config, **sections: dict[str, Any]) -> Config:
    return config.model_copy(
        update={name: getattr(config, name).model_copy(update=values) for name, values in sections.items()}
    )


def _fitting(wrapper: Objective, config: Config, terms: Terms, devices: int) -> Config:
    """The config with the largest micro-batch that fits and divides all batches of the run."""
    training = config.training
    groups = devices // training.sequence_parallel_size
    sizes = [training.global_batch_size, *(stage.global_batch_size for stage in training.batch_size_warmup)]
    common = math.gcd(*sizes)
    if devices % training.sequence_parallel_size or common % groups:
        raise ConfigError(_indivisible(config, devices, common))
    needed = 0.0
    for size in range(common // groups, 0, -1):
        if common // groups % size == 0:
            found = _with(config, training={"micro_batch_size": size})
            memory = estimate_memory(wrapper, found, resolve_deepspeed_config(found, devices), devices)
            needed = sum(part.size for part in memory if part.location == "device")
            if needed <= terms.usable_memory:
                return found
    usable = terms.usable_memory / GIBIBYTE
    raise DoesNotFitError(
        f"with {setting_name(config)} one sequence needs {needed / GIBIBYTE:.1f} GiB on each of {devices} "
        f"{terms.device.name}, which have {usable:.1f} for it",
        f"needs {needed / GIBIBYTE:.0f} GiB of {usable:.0f}",
    )


def setting_name(config: Config) -> str:
    """A ZeRO stage with its offload and recomputation, as the keys of the YAML."""
    zero, how = config.zero, config.model.activation_checkpointing
    parts = [f"training.zero_stage {config.training.zero_stage}"]
    parts += [f"zero.offload_optimizer {zero.offload_optimizer}"] if zero.offload_optimizer != "none" else []
    parts += [f"zero.offload_parameters {zero.offload_parameters}"] if zero.offload_parameters != "none" else []
    return ", ".join([*parts, f"model.activation_checkpointing {how}"])


def _indivisible(config: Config, devices: int, common: int) -> str:
    peers = config.training.sequence_parallel_size
    if devices % peers:
        return f"training.sequence_parallel_size {peers} does not divide {devices} devices; take a multiple of {peers}"
    possible = [peers * count for count in range(1, common + 1) if common % count == 0]
    near = sorted(possible, key=lambda count: abs(count - devices))[:2]
    return (
        f"a global batch of {common} sequences does not divide by {devices} devices; take "
        f"{' or '.join(str(count) for count in sorted(near))}, or change training.global_batch_size"
    )


def _bytes_of_a_token(wrapper: Objective, config: Config) -> float:
    """Bytes that are read for a token: its id, in the type that `prepare.py` takes, and the headers of its sample."""
    return np.min_scalar_type(wrapper.net.num_tokens - 1).itemsize + _BYTES_OF_A_MEMBER / config.model.max_seq_len
