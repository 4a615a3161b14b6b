"""How large checkpoints are, and how often to write one where devices fail."""

from __future__ import annotations

import math
from dataclasses import dataclass

from nar_scale.config import Config
from nar_scale.planning.cost.partitions import ParameterSizes

HOURS_BETWEEN_FAILURES = 50_000.0
"""Device-hours to an interruption: 419 in 54 days on 16,384 H100 (Llama 3, arXiv:2407.21783, section 3.3.4)."""

_FIXED_SECONDS = 1.0  # of a checkpoint, whatever its size: ranks that wait for each other, files made and listed
_RESTART_SECONDS = 600.0  # from a failure to the first step: the requeue, the start, the compiler


@dataclass(frozen=True)
class CheckpointPlan:
    """Checkpoints of a run on a number of devices.

    Attributes:
        size: bytes of one, with weights, moments and average.
        write_seconds: until it is on the disk.
        blocked_seconds: of these, the ones that the steps wait.
        failure_seconds: mean time between two failures of the job.
        interval_seconds: best time between two checkpoints.
        interval_steps: the same in steps.
        lost_fraction: of the time, to checkpoints, repeated steps and restarts, at that interval.
    """

    size: float
    write_seconds: float
    blocked_seconds: float
    failure_seconds: float
    interval_seconds: float
    interval_steps: int
    lost_fraction: float


def checkpoint_size(sizes: ParameterSizes, config: Config) -> float:
    """Bytes of a checkpoint: master weights and moments, and the moving average in float32."""
    master = 2 if config.training.master_weights == "bf16" else 4
    moments = sizes.moment_elements(0, 1)
    return (sizes.total + moments) * master + (4 * sizes.total if config.training.ema_decay else 0)


def best_interval(blocked: float, between_failures: float) -> float:
    """Seconds between two checkpoints for the least time lost, by Daly's estimate (doi:10.1016/j.future.2004.11.016).

    Young's sqrt(2 C M) to second order, with C seconds for a checkpoint and M between failures.
    """
    if blocked >= 2 * between_failures:
        return between_failures
    ratio = blocked / (2 * between_failures)
    return math.sqrt(2 * blocked * between_failures) * (1 + math.sqrt(ratio) / 3 + ratio / 9) - blocked


def plan_checkpoints(
    size: float,
    config: Config,
    devices: int,
    step_seconds: float,
    storage_bandwidth: float,
    host_bandwidth: float,
    hours_between_failures: float = HOURS_BETWEEN_FAILURES,
) -> CheckpointPlan:
    """The best interval of a run.

    An asynchronous checkpoint blocks the steps while it is copied to the host, by all devices at once, and no other is
    begun before it is on the disk.

    Args:
        size: bytes of a checkpoint.
        devices: on which the job runs; a failure of any ends it.
        step_seconds: of a step.
        storage_bandwidth: bytes/s that the file system takes from all ranks together.
        host_bandwidth: bytes/s from a device to the memory of its node.
        hours_between_failures: of a device.
    """
    write = size / storage_bandwidth
    blocked = _FIXED_SECONDS + (size / devices / host_bandwidth if config.checkpoint.asynchronous else write)
    between_failures = hours_between_failures * 3600 / devices
    interval = max(best_interval(blocked, between_failures), write)
    steps = max(1, round(interval / step_seconds))
    interval = steps * step_seconds
    lost = blocked / (interval + blocked) + (interval / 2 + _RESTART_SECONDS) / between_failures
    return CheckpointPlan(size, write, blocked, between_failures, interval, steps, min(1.0, lost))
