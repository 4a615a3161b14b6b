"""The base class of callbacks, and the view of the run that they are given."""

from __future__ import annotations

from typing import Protocol

from nar_scale.checkpoint import TrainingState
from nar_scale.config import Config
from nar_scale.training.distributed import World
from nar_scale.training.engine.zero_engine import ZeroEngine
from nar_scale.training.fault_tolerance.activity import Activity
from nar_scale.training.fault_tolerance.preemption import StopAgreement
from nar_scale.training.metrics.interval_metrics import IntervalMetrics


class RunView(Protocol):
    """What a callback sees of a run; nothing of it is to be set."""

    @property
    def config(self) -> Config:
        """The configuration of the run."""
        ...

    @property
    def world(self) -> World:
        """This process and its peers."""
        ...

    @property
    def engine(self) -> ZeroEngine:
        """The engine, whose module is the wrapper."""
        ...

    @property
    def state(self) -> TrainingState:
        """The position of the run: steps taken, samples consumed, steps and samples skipped."""
        ...

    @property
    def complete(self) -> bool:
        """Whether the last step has been taken."""
        ...

    @property
    def metrics(self) -> IntervalMetrics:
        """Losses and times since the last report, to which callbacks add what they take."""
        ...

    @property
    def activity(self) -> Activity:
        """What this process is doing, to which callbacks say what they begin."""
        ...

    @property
    def stop(self) -> StopAgreement:
        """Requests to stop: what takes long asks for them."""
        ...

    def due(self, every: int, ahead: int = 0) -> bool:
        """Whether something that is done every so many steps, and after the last, is done now; 0 is never.

        Args:
            every: steps.
            ahead: whether it will be due after so many more steps.
        """
        ...


class Callback:
    """Called at named points of a run, on all ranks, in the order in which callbacks are given.

    All methods may be collectives, so each must do the same on all ranks. What a method does not override does nothing.
    """

    def on_run_start(self, run: RunView) -> None:
        """Before the first step of this process."""

    def on_step_end(self, run: RunView) -> None:
        """After each step; `run.state` counts it."""

    def on_roll_back(self, run: RunView) -> None:
        """After the run has gone back to a checkpoint, before its next step; `run.state` is where it goes on."""

    def on_run_end(self, run: RunView) -> None:
        """After the last step, or when the run stops on request; in reverse order, so that the first comes last."""

    def close(self) -> None:
        """When the run ends, with an error or without; not a collective."""
