"""Evaluation during a run."""

from __future__ import annotations

from nar_scale.evaluation import Likelihood, evaluate_likelihood
from nar_scale.training.callbacks.interruption import abandoned_on_request, polled_batches
from nar_scale.training.data.validation import HeldOut
from nar_scale.training.metrics.throughput import timed
from nar_scale.training.metrics.writer import Monitor, validation_group
from nar_scale.training.trainer import Trainer


class Evaluator:
    """Measures the likelihood of the held-out data of each source every `logging.evaluate_every` steps.

    Args:
        monitor: on the main process.
    """

    def __init__(self, monitor: Monitor | None):
        self.monitor = monitor

    def after_step(self, trainer: Trainer) -> None:
        """Evaluate if it is due, unless the run is asked to stop."""
        if trainer.stopping or not trainer.due(trainer.config.logging.evaluate_every):
            return
        trainer.phase.enter("evaluation")
        with timed(trainer.timings, "evaluation_seconds"), abandoned_on_request(trainer):
            for source, held_out in trainer.data.held_out.items():
                self._report(source, trainer.state.step, _evaluate(trainer, held_out))

    def at_end(self, trainer: Trainer) -> None:
        """The last step has been evaluated."""

    def _report(self, source: str, step: int, likelihood: Likelihood) -> None:
        if self.monitor is None:
            return
        values = {"nats_per_token": likelihood.nats_per_token, "standard_error": likelihood.standard_error}
        if likelihood.bits_per_byte is not None:
            values["bits_per_byte"] = likelihood.bits_per_byte
        self.monitor.scalars(step, values, group=validation_group(source))
        of_source = f" of {source}" if source else ""
        self.monitor.progress.say(f"step {step}, held out{of_source}: {likelihood}")


def _evaluate(trainer: Trainer, held_out: HeldOut) -> Likelihood:
    return evaluate_likelihood(
        trainer.engine,
        polled_batches(trainer, held_out.batches()),
        trainer.world.device,
        reduce=trainer.world.sum,
        bytes_per_token=held_out.bytes_per_token,
    )
