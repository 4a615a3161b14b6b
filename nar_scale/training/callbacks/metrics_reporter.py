"""What a run reports every few steps."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from nar_scale.checkpoint import TrainingState
from nar_scale.config import samples_before
from nar_scale.data import DatasetIndex
from nar_scale.planning.flops import flops_per_token, peak_flops
from nar_scale.training.engine.build import gradient_norm
from nar_scale.training.metrics.stragglers import Stragglers
from nar_scale.training.metrics.throughput import memory
from nar_scale.training.metrics.writer import Monitor
from nar_scale.training.trainer import Trainer


class Reporter:
    """Reports losses, speed and memory of the steps since the last report.

    Args:
        monitor: on the main process.
        stragglers: told how long each rank takes.
    """

    def __init__(self, monitor: Monitor | None, stragglers: Stragglers):
        self.monitor, self.stragglers = monitor, stragglers

    def after_step(self, trainer: Trainer) -> None:
        """Report if it is due."""
        if not trainer.due(trainer.config.logging.every):
            return
        trainer.phase.enter("reporting")
        steps = trainer.window.steps
        names, own_seconds = trainer.engine.module.term_names, trainer.own_time.take()
        values, seconds = trainer.window.reduce(trainer.world, names, own_seconds)
        slowest, warning = self.stragglers.look(seconds)
        values.update(slowest)
        norm = gradient_norm(trainer.engine)
        if norm is not None and math.isfinite(norm):
            values["gradient_norm"] = norm
        values.update(trainer.update_ratio.take(trainer.world))
        values.update(_learning_rates(trainer.engine.optimizer.param_groups))
        values.update(_speed(trainer, steps))
        values.update(memory(trainer.world.device))
        values.update(trainer.timings)
        trainer.timings.clear()
        if trainer.state.skipped_samples:
            values["skipped_samples"] = trainer.state.skipped_samples
        if trainer.state.skipped_steps:
            values["skipped_steps"] = trainer.state.skipped_steps
        values.update(_consumption(trainer.state, trainer.data.sources))
        if self.monitor is not None:
            if warning is not None:
                self.monitor.progress.say(warning)
            self.monitor.scalars(trainer.state.step, values)
            self.monitor.progress.update(trainer.state.step, values.get("loss", math.nan), values["tokens_per_second"])

    def at_end(self, trainer: Trainer) -> None:
        """Report how long the last checkpoint took."""
        if self.monitor is not None and trainer.timings:
            self.monitor.scalars(trainer.state.step, trainer.timings)


def _learning_rates(groups: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """That of the first group of parameters, and those of all where they differ."""
    rates = [float(group["lr"]) for group in groups]
    each = {f"learning_rate_{number}": rate for number, rate in enumerate(rates)} if len(set(rates)) > 1 else {}
    return {"learning_rate": rates[0], **each}


def _speed(trainer: Trainer, steps: int) -> dict[str, float]:
    config, step = trainer.config, trainer.state.step
    seconds, waiting = trainer.stopwatch.lap()
    samples = samples_before(config.training, step) - samples_before(config.training, step - steps)
    tokens = samples * config.model.max_seq_len
    values = {
        "steps_per_second": steps / seconds,
        "samples_per_second": samples / seconds,
        "tokens_per_second": tokens / seconds,
        "data_wait_fraction": waiting,
    }
    peak = config.logging.peak_flops or peak_flops(trainer.world.device)
    if peak is not None:
        flops = flops_per_token(trainer.engine.module.net) * tokens / seconds
        values["mfu"] = flops / (peak * trainer.world.size)
    return values


def _consumption(state: TrainingState, sources: Mapping[str, DatasetIndex]) -> dict[str, float]:
    if set(sources) == {""}:
        return {"epoch": state.samples / sources[""].num_samples}
    values: dict[str, float] = {}
    for name, consumed in state.source_samples.items():
        values[f"samples_of_{name}"] = consumed
        values[f"epochs_of_{name}"] = consumed / sources[name].num_samples
    return values
