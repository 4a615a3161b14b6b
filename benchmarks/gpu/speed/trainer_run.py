"""Steps of nar_scale's own trainer, with data, schedule, reports and all, and how long they take."""

from __future__ import annotations

import contextlib
import gc
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu.speed.clock import Clock, synchronize
from benchmarks.gpu.speed.flops import TokenFlops
from benchmarks.gpu.speed.step_trace import StepTrace
from nar_scale.config import Config
from nar_scale.model.parameters import full_size
from nar_scale.planning.memory_estimate import GIBIBYTE
from nar_scale.training import World, train
from nar_scale.training.callbacks.callback import Callback, RunView
from nar_scale.training.metrics.throughput import memory_usage

WARM_UP = 3


class _Measured(Exception):
    """Ends a run that has taken the steps it was started for, before it writes a checkpoint."""


@dataclass
class StepSpeed:
    """What steps of the trainer have shown.

    Attributes:
        seconds: of each step, on the device's time line.
        tokens: in a step.
        parameters: of the model.
        hidden: width of its feed-forward layers.
        vocabulary: width of its head.
        flops: for a token.
        predicted: the part of the tokens that went through the head.
        peak_bytes: the most memory that the device's tensors took; of a CPU, what the process took.
        loss: the last one reported.
        waiting: the part of the time that the trainer waited for data, in the steps since the report before the last.
    """

    seconds: list[float]
    tokens: int
    parameters: int
    hidden: int
    vocabulary: int
    flops: TokenFlops
    predicted: float
    peak_bytes: float
    loss: float = field(default=float("nan"))
    waiting: float = field(default=float("nan"))


def run_steps(config: Config, world: World, steps: int, trace: Path | None = None) -> StepSpeed:
    """Train for some steps after those that warm up, measure them and end the run.

    Args:
        config: with a run directory that does not exist yet, and reports every `WARM_UP` steps.
        steps: how many to measure, a multiple of `WARM_UP`.
        trace: where a trace of one more step goes.

    Raises:
        UserError: the memory is full, or the config cannot be run.
    """
    stopwatch = _Stopwatch(steps, trace)
    try:
        with contextlib.suppress(_Measured):
            train(config, world, resume="never", callbacks=[stopwatch])
    finally:
        _let_go_of_engines()
    speed = stopwatch.speed
    assert speed is not None
    *_, last = (Path(str(config.training.run_directory)) / "metrics.jsonl").read_text().splitlines()
    report = json.loads(last)
    speed.loss, speed.waiting = report["loss"], report["data_wait_fraction"]
    return speed


def _let_go_of_engines() -> None:
    """Take DeepSpeed's hooks away, which otherwise keep an engine and its weights for as long as the process lives."""
    from deepspeed import DeepSpeedEngine  # not before libraries are told what to print

    for each in gc.get_objects():
        if issubclass(type(each), DeepSpeedEngine):
            with contextlib.suppress(AttributeError, RuntimeError):  # of one that is not complete, or a broken GPU
                each.destroy()


class _Stopwatch(Callback):
    """Marks the end of each step."""

    def __init__(self, steps: int, trace: Path | None):
        self.steps, self.trace = steps, trace
        self.speed: StepSpeed | None = None
        self._rows: list[int] = []

    def on_step_end(self, run: RunView) -> None:
        """Begin to measure, go on or finish."""
        measured = run.state.step - WARM_UP
        if measured == 0:
            self._begin(run)
        if 0 <= measured <= self.steps:
            self._clock.mark()
        if measured == self.steps:
            self.speed = self._finish(run)
            if self.trace is None:
                raise _Measured
            synchronize(run.world.device)  # so that nothing of this step is in the trace
            self._tracing = StepTrace(run.engine, run.engine.module, run.world.device)
        if measured > self.steps and self.trace is not None:
            self._tracing.finish(self.trace)
            raise _Measured

    def _begin(self, run: RunView) -> None:
        self._clock = Clock(run.world.device)
        self._rows.clear()
        self._counting = run.engine.module.net.to_logits.register_forward_pre_hook(self._count)
        if run.world.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(run.world.device)

    def _count(self, head: torch.nn.Module, arguments: tuple[Any, ...]) -> None:
        self._rows.append(len(arguments[0]))

    def _finish(self, run: RunView) -> StepSpeed:
        self._counting.remove()
        seconds = self._clock.intervals()
        net, config = run.engine.module.net, run.config
        block: Any = net.attn_layers.blocks[0]
        tokens = config.training.global_batch_size * config.model.max_seq_len
        predicted = sum(self._rows) / (tokens * self.steps)
        chunked = max(self._rows) > max(1, net.to_logits.chunk_size // net.to_logits.out_features)
        flops = TokenFlops.of(net, predicted, head_passes=2 if chunked else 1)
        peak = memory_usage(run.world.device)["memory_gib"] * GIBIBYTE
        return StepSpeed(
            seconds=seconds,
            tokens=tokens,
            parameters=sum(map(full_size, run.engine.module.parameters())),
            hidden=block.feedforward.to_out.in_features,
            vocabulary=net.to_logits.out_features,
            flops=flops,
            predicted=predicted,
            peak_bytes=peak,
        )
