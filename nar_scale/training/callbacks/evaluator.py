"""Evaluation during a run."""

from __future__ import annotations

import logging
from collections.abc import Mapping

from nar_scale.evaluation import Likelihood, evaluate_likelihood
from nar_scale.training.callbacks.callback import Callback, RunView
from nar_scale.training.data.validation import ValidationData
from nar_scale.training.fault_tolerance.interruption import interruptible, stopping_batches
from nar_scale.training.metrics.writer import MetricsWriter, validation_prefix

_logger = logging.getLogger(__name__)


class Evaluator(Callback):
    """Measures the likelihood of the validation data of each source every `logging.evaluate_every` steps.

    Args:
        validation: by name of the source, "" for a single one.
        writer: on the main process.
    """

    def __init__(self, validation: Mapping[str, ValidationData], writer: MetricsWriter | None):
        self._validation, self._writer = validation, writer

    def on_step_end(self, run: RunView) -> None:
        """Evaluate if it is due, unless the run is to stop."""
        if run.stop.agreed or not run.due(run.config.logging.evaluate_every):
            return
        run.activity.enter("evaluation")
        with run.metrics.timed("evaluation_seconds"), interruptible():
            for source, validation in self._validation.items():
                likelihood = evaluate_likelihood(
                    run.engine.module,
                    stopping_batches(run.stop, validation.batches()),
                    run.world.device,
                    loss_terms=run.engine,
                    reduce=run.world.all_reduce,
                    bytes_per_token=validation.bytes_per_token,
                )
                self._report(source, run.state.step, likelihood)

    def _report(self, source: str, step: int, likelihood: Likelihood) -> None:
        if self._writer is None:
            return
        values = {"nats_per_token": likelihood.nats_per_token, "standard_error": likelihood.standard_error}
        if likelihood.bits_per_byte is not None:
            values["bits_per_byte"] = likelihood.bits_per_byte
        if likelihood.bound is not None:
            values["bound_nats_per_token"] = likelihood.bound.nats_per_token
        prefix = validation_prefix(source)
        self._writer.scalars(step, {f"{prefix}{name}": value for name, value in values.items()})
        _logger.info("step %d, validation%s: %s", step, f" of {source}" if source else "", likelihood)
