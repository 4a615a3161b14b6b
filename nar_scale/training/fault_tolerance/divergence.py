"""Steps that are not finite and losses that jump: skipped, counted, reported, and after too many a roll-back."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace

from torch import Tensor

from nar_scale.checkpoint import TrainingState
from nar_scale.config import FaultsConfig
from nar_scale.data import Batch
from nar_scale.errors import DivergenceError
from nar_scale.text import integer_ranges
from nar_scale.training.distributed import World
from nar_scale.training.engine.zero_engine import ZeroEngine
from nar_scale.training.fault_tolerance.loss_spikes import SpikeDetector

_logger = logging.getLogger(__name__)


class LossSpikeError(DivergenceError):
    """A loss far above those before."""


class DivergenceHandler:
    """Checks each step, with the same outcome on all ranks, and decides whether the run may be rolled back.

    The engine has to skip steps that are not finite: see `ZeroEngine.skip_non_finite_steps`.

    Args:
        faults: what is tolerated.
    """

    def __init__(self, faults: FaultsConfig, engine: ZeroEngine, world: World) -> None:
        self._faults, self._engine, self._world = faults, engine, world
        self._spikes = SpikeDetector(faults.spike_sigma, faults.spike_window)
        self._skipped_in_a_row = 0
        self._loss_is_pending = False

    def check_loss(self, loss: float, state: TrainingState) -> None:
        """Look for a spike in the loss of the step before, which arrives with the flags of the next.

        Args:
            state: after the step before.

        Raises:
            LossSpikeError: it is a spike, and those are to be skipped.
        """
        score = self._spikes.score(loss) if self._loss_is_pending else None
        if score is None:
            return
        spike = f"the loss of step {state.step} is {loss:.4g}, {score:.1f} standard deviations above the mean"
        if self._faults.skip_spikes and state.roll_backs < self._faults.max_roll_backs:
            raise LossSpikeError(spike)
        self._warn(f"{spike} of the {self._faults.spike_window} steps before")

    def check_step(self, state: TrainingState, micro_batches: Sequence[Batch], loss: Tensor) -> TrainingState:
        """Report a step that was skipped, with its samples; returns the state with the step counted if it was.

        fp16 skips steps to find its loss scale: that is no fault as long as the scale can fall.

        Args:
            state: after the step.
            micro_batches: of this rank in it.
            loss: this rank's part of its loss, a scalar.
        """
        self._loss_is_pending = self._engine.step_applied
        if self._loss_is_pending:
            self._skipped_in_a_row = 0
            return state
        if not self._engine.loss_scale_is_exhausted:
            return state
        self._skipped_in_a_row += 1
        reason, samples = self._describe(micro_batches, loss)
        self._warn(f"step {state.step} skipped: {reason}; samples {samples}")
        return replace(state, skipped_steps=state.skipped_steps + 1)

    def check_skipped(self, state: TrainingState) -> None:
        """Go on unless too many steps in a row were skipped.

        Raises:
            DivergenceError: they were.
        """
        if self._skipped_in_a_row >= self._faults.max_non_finite_steps:
            raise DivergenceError(
                f"{self._skipped_in_a_row} step(s) in a row up to step {state.step} had no finite gradient"
            )

    def may_roll_back(self, state: TrainingState, problem: DivergenceError) -> bool:
        """Whether the run may answer a problem by going back to a checkpoint."""
        if state.roll_backs >= self._faults.max_roll_backs:
            return False
        return isinstance(problem, LossSpikeError) or self._faults.on_non_finite == "roll_back"

    def rolled_back(self, state: TrainingState, step: int, problem: DivergenceError) -> TrainingState:
        """Begin anew after a roll-back.

        Args:
            state: where the run was.
            step: of the checkpoint that has been loaded.

        Returns:
            where the run goes on: the step of the checkpoint, and the samples after those that failed, which
            would fail again.
        """
        self._skipped_in_a_row, self._loss_is_pending = 0, False
        self._spikes.reset()
        self._warn(
            f"rolled back to step {step} ({state.roll_backs + 1} of at most {self._faults.max_roll_backs}), as "
            f"{problem}; going on with sample {state.samples:,} of the stream, which from here on is ahead of the steps"
        )
        return replace(state, step=step, roll_backs=state.roll_backs + 1)

    def _describe(self, micro_batches: Sequence[Batch], loss: Tensor) -> tuple[str, str]:
        ids = [int(i) for batch in micro_batches for i in batch.sample_ids[batch.lengths > 0]]
        of_ranks = self._world.gather((bool(loss.isfinite()), ids))
        bad = [rank for rank, (finite, _) in enumerate(of_ranks) if not finite]
        reason = (
            f"the loss of rank {', '.join(integer_ranges(bad))} is not finite" if bad else "the gradient is not finite"
        )
        return reason, ", ".join(integer_ranges(i for _, ids in of_ranks for i in ids))

    def _warn(self, message: str) -> None:
        if self._world.is_main:
            _logger.warning(message)


def unrecoverable(state: TrainingState, problem: DivergenceError) -> DivergenceError:
    """The error that ends a run which is not rolled back, with what to do about it."""
    back = f" after {state.roll_backs} roll back(s)" if state.roll_backs else ""
    return DivergenceError(
        f"{problem}{back}; lower optimizer.learning_rate or look at the samples named above, and run again, to go on "
        "from the last checkpoint if there is one"
    )
