"""What a run reports every few steps."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence

from nar_scale.checkpoint import TrainingState
from nar_scale.config import Config, samples_before, steps_of_run
from nar_scale.data import DatasetIndex
from nar_scale.planning.flops import flops_per_token, peak_flops
from nar_scale.training.callbacks.callback import Callback, RunView
from nar_scale.training.metrics.events import ROLLED_BACK, SKIPPED
from nar_scale.training.metrics.progress import Progress
from nar_scale.training.metrics.stragglers import StragglerDetector
from nar_scale.training.metrics.throughput import memory_usage
from nar_scale.training.metrics.update_ratio import UpdateRatio
from nar_scale.training.metrics.writer import MetricsWriter

_logger = logging.getLogger(__name__)


class MetricsReporter(Callback):
    """Reports losses, speed and memory of the steps since the last report, every `logging.every` steps.

    Args:
        config: of the run.
        sources: the shards of the run by name of the source, of which epochs are counted.
        writer: on the main process, which also shows the progress.
    """

    def __init__(self, config: Config, sources: Mapping[str, DatasetIndex], writer: MetricsWriter | None):
        self._sources, self._writer = sources, writer
        self._stragglers = StragglerDetector(config.faults.straggler_ratio)
        self._update_ratio = UpdateRatio()
        self._progress = Progress(steps_of_run(config)) if writer is not None else None
        self._skipped_steps = 0

    def on_run_start(self, run: RunView) -> None:
        """Begin to measure, and to show the progress."""
        self._skipped_steps = run.state.skipped_steps
        # asked while a step is taken, before it counts
        self._update_ratio.attach(run.engine, wanted=lambda: run.due(run.config.logging.every, ahead=1))
        if self._progress is not None:
            self._progress.open(run.state.step)

    def on_step_end(self, run: RunView) -> None:
        """Report if it is due."""
        if not run.due(run.config.logging.every):
            return
        run.activity.enter("reporting")
        values, message = self._collect(run)
        if message is not None and run.world.is_main:
            _logger.warning(message)
        if self._writer is not None and self._progress is not None:
            self._writer.scalars(run.state.step, values)
            if run.state.skipped_steps > self._skipped_steps:
                skipped = run.state.skipped_steps - self._skipped_steps
                self._writer.event(run.state.step, SKIPPED, f"{skipped} since the report before")
                self._skipped_steps = run.state.skipped_steps
            self._progress.update(run.state.step, values.get("loss", math.nan), values["tokens_per_second"])

    def on_roll_back(self, run: RunView) -> None:
        """Drop what was reported of steps that are undone."""
        if self._writer is not None:
            self._writer.rewind(run.state.step)
            self._writer.event(run.state.step, ROLLED_BACK, f"back to step {run.state.step}")

    def on_run_end(self, run: RunView) -> None:
        """Report how long the last checkpoint took."""
        if self._writer is not None and run.metrics.timings:
            self._writer.scalars(run.state.step, run.metrics.timings)

    def close(self) -> None:
        """Give the terminal back."""
        if self._progress is not None:
            self._progress.close()

    def _collect(self, run: RunView) -> tuple[dict[str, float], str | None]:
        """The values of a report, and a message about a rank that is slow; a collective."""
        steps = run.metrics.losses.steps
        values, seconds, tokens = run.metrics.losses.reduce(
            run.world, run.engine.term_names, run.metrics.own_time.take(), run.metrics.tokens
        )
        run.metrics.tokens = 0
        slowest, message = self._stragglers.update(seconds)
        values.update(slowest)
        norm = run.engine.gradient_norm
        if norm is not None and math.isfinite(norm):
            values["gradient_norm"] = norm
        values.update(self._update_ratio.take(run.world))
        values.update(_learning_rates(run.engine.learning_rates))
        values.update(_speed(run, steps, tokens))
        values.update(memory_usage(run.world.device))
        values.update(run.metrics.timings)
        run.metrics.timings.clear()
        if run.state.skipped_samples:
            values["skipped_samples"] = run.state.skipped_samples
        if run.state.skipped_steps:
            values["skipped_steps"] = run.state.skipped_steps
        values.update(_consumption(run.state, self._sources))
        return values, message


def _learning_rates(rates: Sequence[float]) -> dict[str, float]:
    """That of the first group of parameters, and those of all where they differ."""
    each = {f"learning_rate_{number}": rate for number, rate in enumerate(rates)} if len(set(rates)) > 1 else {}
    return {"learning_rate": rates[0], **each}


def _speed(run: RunView, steps: int, tokens: int) -> dict[str, float]:
    """Rates since the last report, over all ranks; `tokens` are those of the samples, without padding."""
    config, step = run.config, run.state.step
    seconds, waiting = run.metrics.stopwatch.lap()
    samples = samples_before(config.training, step) - samples_before(config.training, step - steps)
    values = {
        "steps_per_second": steps / seconds,
        "samples_per_second": samples / seconds,
        "tokens_per_second": tokens / seconds,
        "data_wait_fraction": waiting,
    }
    peak = config.logging.peak_flops or peak_flops(run.world.device)
    if peak is not None:
        positions = samples * config.model.max_seq_len  # padding is computed, too
        flops = flops_per_token(run.engine.module.net) * positions / seconds
        values["mfu"] = flops / (peak * run.world.size)
    return values


def _consumption(state: TrainingState, sources: Mapping[str, DatasetIndex]) -> dict[str, float]:
    if set(sources) == {""}:
        return {"epoch": state.samples / sources[""].num_samples}
    values: dict[str, float] = {}
    for name, consumed in state.source_samples.items():
        values[f"samples_of_{name}"] = consumed
        values[f"epochs_of_{name}"] = consumed / sources[name].num_samples
    return values
