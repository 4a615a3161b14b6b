"""What a run reports every few steps."""

from __future__ import annotations

import math
from collections.abc import Mapping

from nar_scale.data import DatasetIndex
from nar_scale.errors import UserError
from nar_scale.training.engine import gradient_norm
from nar_scale.training.monitor import Monitor
from nar_scale.training.performance import flops_per_token, peak_flops, peak_memory
from nar_scale.training.trainer import Trainer


class Reporter:
    """Reports losses, speed and memory of the steps since the last report.

    Args:
        monitor: on the main process.
    """

    def __init__(self, monitor: Monitor | None):
        self.monitor = monitor

    def after_step(self, trainer: Trainer) -> None:
        """Report if it is due."""
        if not trainer.due(trainer.config.logging.every):
            return
        trainer.phase.enter("reporting")
        steps, values = trainer.window.reduce(trainer.world, trainer.engine.module.term_names)
        norm = gradient_norm(trainer.engine)
        if norm is not None:
            values["gradient_norm"] = norm
        values["learning_rate"] = trainer.engine.optimizer.param_groups[0]["lr"]
        values.update(_speed(trainer, steps))
        values["memory_gib"] = peak_memory(trainer.world.device)
        if trainer.state.skipped_samples:
            values["skipped_samples"] = trainer.state.skipped_samples
        values.update(_consumption(trainer.state.source_samples, trainer.data.sources))
        if self.monitor is not None:
            self.monitor.scalars(trainer.state.step, values)
            self.monitor.progress.update(trainer.state.step, values["loss"], values["tokens_per_second"])
        if not math.isfinite(values["loss"]):
            raise UserError(
                f"the loss is {values['loss']} at step {trainer.state.step}; lower optimizer.learning_rate and run "
                "again, to go on from the last checkpoint"
            )

    def at_end(self, trainer: Trainer) -> None:
        """Nothing more to say."""


def _speed(trainer: Trainer, steps: int) -> dict[str, float]:
    seconds, waiting = trainer.stopwatch.lap()
    tokens = trainer.config.training.global_batch_size * trainer.config.model.max_seq_len * steps
    values = {"tokens_per_second": tokens / seconds, "data_wait_fraction": waiting}
    peak = peak_flops(trainer.world.device)
    if peak is not None:
        flops = flops_per_token(trainer.engine.module.net) * tokens / seconds
        values["mfu"] = flops / (peak * trainer.world.size)
    return values


def _consumption(samples: Mapping[str, int], sources: Mapping[str, DatasetIndex]) -> dict[str, float]:
    values: dict[str, float] = {}
    for name, consumed in samples.items():
        values[f"samples_of_{name}"] = consumed
        values[f"epochs_of_{name}"] = consumed / sources[name].num_samples
    return values
