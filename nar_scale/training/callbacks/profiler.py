"""Where the time of chosen steps goes, and what they compute."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.profiler import ProfilerAction, ProfilerActivity, profile

from nar_scale.config import LoggingConfig
from nar_scale.training.distributed import World
from nar_scale.training.metrics.writer import Monitor
from nar_scale.training.trainer import Trainer

PROFILE_DIRECTORY = "profile"


class Profiler:
    """Traces `logging.profile_steps` on `logging.profile_ranks`, and counts the FLOPs of `logging.flops_step`.

    The last of the hooks: a trace holds whole steps with what the other hooks do after them, so choose steps without an
    evaluation. Steps that are traced or counted are slower than others.

    Args:
        directory: the run directory; results are in its `profile`.
        settings: of the run.
        engine: whose module is counted.
        world: of this rank.
        monitor: on the main process.
        step: the step that the run starts or resumes from.
    """

    def __init__(
        self, directory: Path, settings: LoggingConfig, engine: Any, world: World, monitor: Monitor | None, step: int
    ):
        self._directory = directory / PROFILE_DIRECTORY
        self._settings, self._engine, self._world, self._monitor = settings, engine, world, monitor
        self._trace: profile | None = None
        self._traced: list[int] = []
        self._prepare(step + 1)

    def after_step(self, trainer: Trainer) -> None:
        """Finish what ends with this step, and prepare what begins with the next."""
        step = trainer.state.step
        if self._settings.profile_steps is not None and self._between(step):
            self._traced.append(step)
            if self._trace is not None:
                self._trace.step()
            if step == self._settings.profile_steps[1]:
                self._finish_trace()
        if not trainer.complete:
            self._prepare(step + 1)

    def at_end(self, trainer: Trainer) -> None:
        """Keep a trace that the end of the run has cut short."""
        if self._traced:
            self._finish_trace()

    def _prepare(self, step: int) -> None:
        """Get ready for the step that comes."""
        starts = not self._traced and self._between(step)
        if starts and self._world.rank in self._settings.profile_ranks and self._trace is None:
            self._trace = _start_trace(step)
        if step == self._settings.flops_step and self._world.is_main:
            _count_flops(self._engine, self._directory / f"flops-step-{step}.txt", step, self._monitor)

    def _between(self, step: int) -> bool:
        steps = self._settings.profile_steps
        return steps is not None and steps[0] <= step <= steps[1]

    def _finish_trace(self) -> None:
        steps = f"{self._traced[0]}-to-{self._traced[-1]}"
        self._traced = []
        if self._trace is not None:
            self._trace.stop()
            self._directory.mkdir(exist_ok=True)
            name = f"steps-{steps}.rank-{self._world.rank}.pt.trace.json.gz"
            self._trace.export_chrome_trace(str(self._directory / name))
            self._trace = None
        if self._monitor is not None:
            files = self._directory / f"steps-{steps}.rank-*.pt.trace.json.gz"
            self._monitor.progress.say(f"trace, for https://ui.perfetto.dev or chrome://tracing: {files}")


def _start_trace(step: int) -> profile:
    activities = [ProfilerActivity.CPU]
    if torch.cuda.is_available():
        activities.append(ProfilerActivity.CUDA)
    # with a schedule the trace names the steps
    trace = profile(activities=activities, schedule=lambda _: ProfilerAction.RECORD)
    trace.step_num = step
    trace.start()
    return trace


def _count_flops(engine: Any, path: Path, step: int, monitor: Monitor | None) -> None:
    """Let the next forward pass be counted, and write the account of each module to a file."""
    from deepspeed.profiling.flops_profiler import FlopsProfiler

    counter = FlopsProfiler(engine.module, engine)
    counter.start_profile()

    def finish(module: nn.Module, *_: Any) -> None:
        handle.remove()
        counter.stop_profile()
        path.parent.mkdir(exist_ok=True)
        counter.print_model_profile(profile_step=step, output_file=str(path))
        counter.end_profile()
        if monitor is not None:
            monitor.progress.say(f"FLOPs of a forward pass in step {step}: {path}")

    handle = engine.module.register_forward_hook(finish)
