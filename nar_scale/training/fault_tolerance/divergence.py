"""What is done about steps that go astray: skipped, counted, named, and after too many a roll back or the end."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor

from nar_scale.checkpoint import TrainingState
from nar_scale.config import FaultsConfig
from nar_scale.data import Batch
from nar_scale.errors import DivergenceError
from nar_scale.text import integer_ranges
from nar_scale.training.distributed import World
from nar_scale.training.engine.nonfinite import scale_is_exhausted, skip_steps_without_finite_gradient
from nar_scale.training.fault_tolerance.loss_spikes import SpikeDetector


class LossSpikeError(DivergenceError):
    """A loss far above those before."""


class Guard:
    """Judges each step, on all ranks alike.

    Args:
        faults: what is tolerated.
        engine: whose steps are judged; from now on it skips those whose gradient is not finite.
        reload: brings the engine back to the newest good checkpoint, on all ranks together, and returns its step; None
            if there is no checkpoint.
    """

    def __init__(self, faults: FaultsConfig, engine: Any, world: World, reload: Callable[[], int | None]) -> None:
        skip_steps_without_finite_gradient(engine)
        self.faults, self.engine, self.world, self._reload = faults, engine, world, reload
        self._spikes = SpikeDetector(faults.spike_sigma, faults.spike_window)
        self._skipped_in_a_row = 0
        self._loss_is_coming = False

    def judge_step(self, state: TrainingState, micro_batches: Sequence[Batch], loss: Tensor) -> TrainingState:
        """Look at what has become of a step; returns the state with the step counted if it was skipped.

        fp16 skips steps to find its loss scale: that is no fault as long as the scale can fall.

        Args:
            state: after the step.
            micro_batches: of this rank in it.
            loss: this rank's share of its loss.
        """
        self._loss_is_coming = self.engine.was_step_applied()
        if self._loss_is_coming:
            self._skipped_in_a_row = 0
            return state
        if not scale_is_exhausted(self.engine):
            return state
        self._skipped_in_a_row += 1
        reason, samples = self._describe(micro_batches, loss)
        self._say(f"step {state.step} skipped: {reason}; samples {samples}")
        return replace(state, skipped_steps=state.skipped_steps + 1)

    def check_progress(self, state: TrainingState) -> None:
        """Go on unless too many steps in a row were skipped.

        Raises:
            DivergenceError: they were.
        """
        if self._skipped_in_a_row >= self.faults.max_non_finite_steps:
            raise DivergenceError(
                f"{self._skipped_in_a_row} step(s) in a row up to step {state.step} had no finite gradient"
            )

    def judge_loss(self, loss: float, state: TrainingState) -> None:
        """Look at the loss of the step before, which has come with the votes of the next.

        Args:
            state: after the step before.

        Raises:
            LossSpikeError: it is a spike, and those are to be skipped.
        """
        score = self._spikes.look(loss) if self._loss_is_coming else None
        if score is None:
            return
        spike = f"the loss of step {state.step} is {loss:.4g}, {score:.1f} standard deviations above the mean"
        if self.faults.skip_spikes and state.roll_backs < self.faults.max_roll_backs:
            raise LossSpikeError(spike)
        self._say(f"{spike} of the {self.faults.spike_window} steps before")

    def roll_back(self, state: TrainingState, problem: DivergenceError) -> TrainingState:
        """Go back to the newest good checkpoint, but not in the stream: the same samples would fail again.

        Args:
            state: where the run is.

        Returns:
            where it goes on: the step of the checkpoint, and the samples after those that led astray.

        Raises:
            DivergenceError: `problem`, if it is not answered by a roll back, there is no checkpoint, or there have been
                too many roll backs.
        """
        if isinstance(problem, LossSpikeError) or self.faults.on_non_finite == "roll_back":
            step = self._reload() if state.roll_backs < self.faults.max_roll_backs else None
        else:
            step = None
        if step is None:
            back = f" after {state.roll_backs} roll back(s)" if state.roll_backs else ""
            raise DivergenceError(
                f"{problem}{back}; lower optimizer.learning_rate or look at the samples named above, and run again, to "
                "go on from the last checkpoint if there is one"
            )
        self._skipped_in_a_row, self._loss_is_coming = 0, False
        self._spikes.forget()
        self._say(
            f"rolled back to step {step} ({state.roll_backs + 1} of at most {self.faults.max_roll_backs}), as "
            f"{problem}; going on with sample {state.samples:,} of the stream, which from here on is ahead of the steps"
        )
        return replace(state, step=step, roll_backs=state.roll_backs + 1)

    def _describe(self, micro_batches: Sequence[Batch], loss: Tensor) -> tuple[str, str]:
        ids = [int(i) for batch in micro_batches for i in batch.sample_ids[batch.lengths > 0]]
        of_ranks = self.world.gather((bool(loss.isfinite()), ids))
        bad = [rank for rank, (finite, _) in enumerate(of_ranks) if not finite]
        reason = f"the loss of rank {as_runs(bad)} is not finite" if bad else "the gradient is not finite"
        return reason, as_runs(i for _, ids in of_ranks for i in ids)

    def _say(self, line: str) -> None:
        if self.world.is_main:
            print(line, file=sys.stderr, flush=True)


def as_runs(numbers: Any) -> str:
    """Integers in ascending order, neighbours joined: `3-5, 9`."""
    return ", ".join(integer_ranges(numbers))
