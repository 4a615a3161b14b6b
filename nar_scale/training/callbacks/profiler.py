"""Where the time of chosen steps goes, and what they compute."""

from __future__ import annotations

import logging
from pathlib import Path

import torch
from torch.profiler import ProfilerAction, ProfilerActivity, profile

from nar_scale.training.callbacks.callback import Callback, RunView

PROFILE_DIRECTORY = "profile"
_logger = logging.getLogger(__name__)


class Profiler(Callback):
    """Traces `logging.profile_steps` on `logging.profile_ranks`, and counts the FLOPs of `logging.flops_step`.

    The last of the callbacks: a trace holds whole steps with what the other callbacks do after them, so choose steps
    without an evaluation. Steps that are traced or counted are slower than others.

    Args:
        directory: the run directory; results are in its `profile`.
    """

    def __init__(self, directory: Path):
        self._directory = directory / PROFILE_DIRECTORY
        self._trace: profile | None = None
        self._traced: list[int] = []

    def on_run_start(self, run: RunView) -> None:
        """Prepare what begins with the first step."""
        self._prepare(run, run.state.step + 1)

    def on_step_end(self, run: RunView) -> None:
        """Finish what ends with this step, and prepare what begins with the next."""
        step, steps = run.state.step, run.config.logging.profile_steps
        if steps is not None and _is_traced(run, step):
            self._traced.append(step)
            if self._trace is not None:
                self._trace.step()
            if step == steps[1]:
                self._finish_trace(run)
        if not run.complete:
            self._prepare(run, step + 1)

    def on_run_end(self, run: RunView) -> None:
        """Keep a trace that the end of the run has cut short."""
        if self._traced:
            self._finish_trace(run)

    def _prepare(self, run: RunView, step: int) -> None:
        settings = run.config.logging
        starts = not self._traced and _is_traced(run, step)
        if starts and run.world.rank in settings.profile_ranks and self._trace is None:
            self._trace = _start_trace(step)
        if step == settings.flops_step and run.world.is_main:
            path = self._directory / f"flops-step-{step}.txt"
            run.engine.count_flops(
                path, step, lambda: _logger.info("FLOPs of a forward pass in step %d: %s", step, path)
            )

    def _finish_trace(self, run: RunView) -> None:
        steps = f"{self._traced[0]}-to-{self._traced[-1]}"
        self._traced = []
        if self._trace is not None:
            self._trace.stop()
            self._directory.mkdir(exist_ok=True)
            name = f"steps-{steps}.rank-{run.world.rank}.pt.trace.json.gz"
            self._trace.export_chrome_trace(str(self._directory / name))
            self._trace = None
        if run.world.is_main:
            files = self._directory / f"steps-{steps}.rank-*.pt.trace.json.gz"
            _logger.info("trace, for https://ui.perfetto.dev or chrome://tracing: %s", files)


def _is_traced(run: RunView, step: int) -> bool:
    steps = run.config.logging.profile_steps
    return steps is not None and steps[0] <= step <= steps[1]


def _start_trace(step: int) -> profile:
    activities = [ProfilerActivity.CPU]
    if torch.cuda.is_available():
        activities.append(ProfilerActivity.CUDA)
    # with a schedule the trace names the steps
    trace = profile(activities=activities, schedule=lambda _: ProfilerAction.RECORD)
    trace.step_num = step
    trace.start()
    return trace
