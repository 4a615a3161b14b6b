"""Training speed of whole models through the trainer: tokens/s, MFU, memory, and where the time of a step goes."""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from pathlib import Path

import torch

from benchmarks.gpu.speed.attempts import Attempts, goal, is_out_of_memory, release_memory
from benchmarks.gpu.speed.breakdown import IDLE, break_down, longest_kernels
from benchmarks.gpu.speed.micro_batch import estimated_bytes, larger_one, largest_that_fits, smaller_one
from benchmarks.gpu.speed.trace_events import read_trace
from benchmarks.gpu.speed.trainer_run import WARM_UP, StepSpeed, run_steps
from nar_scale.config import Config, load_config
from nar_scale.planning.flops import peak_flops
from nar_scale.planning.memory_estimate import GIBIBYTE
from nar_scale.training import World

MFU_GOAL = 60.0
_TRIES = 3
_KERNELS = 15


@dataclass(frozen=True)
class Model:
    """A model to train.

    Attributes:
        name: in names of measurements.
        config_file: the YAML file, which says `data.vocabulary_size`.
        overrides: what differs from it, as `section.key=value`.
        accumulation: micro-batches in a step.
        steps: that are measured.
        sizes: of a micro-batch, to choose from.
        has_goal: whether the goal for the MFU is of this model.
    """

    name: str
    config_file: Path
    overrides: tuple[str, ...]
    accumulation: int
    steps: int
    sizes: tuple[int, ...]
    has_goal: bool = False


class ModelRuns:
    """Measures models in one process, one after another.

    Args:
        ceiling: FLOP/s of a matrix product, which is also the peak of the MFU where no data sheet is known.
        directory: for runs; shards to train on are in its `data`.
    """

    def __init__(self, attempts: Attempts, world: World, ceiling: float, directory: Path):
        self.attempts, self.world, self.ceiling, self.directory = attempts, world, ceiling, directory
        self.peak = peak_flops(world.device) or ceiling
        self.larger: dict[str, int] = {}
        self._runs = 0

    def measure(self, model: Model, trace: Path | None = None) -> None:
        """Train with the largest micro-batch that fits; what that is, is estimated first and tried then.

        Args:
            trace: where a trace of a step goes, which is broken down.

        Raises:
            UserError: the memory is full with the smallest micro-batch that is tried, or the config cannot be run.
        """
        available = self._available_bytes()
        estimate = {size: estimated_bytes(self._config(model, size)) for size in {*model.sizes, 1, 2}}
        size = largest_that_fits({each: estimate[each] for each in model.sizes}, available)
        for _ in range(_TRIES):
            speed = self._try(model, size, trace)
            if speed is not None:
                break
            size = smaller_one(size) or size
        else:
            raise MemoryError(f"micro-batches of {size} do not fit")
        self._record(model, size, speed, estimate[size])
        measurable = self.world.device.type == "cuda"  # elsewhere the next one, for rehearsals
        larger = larger_one(size, estimate, speed.peak_bytes, available) if measurable else max(model.sizes)
        if larger is not None and larger > size:
            self.larger[model.name] = larger
        if trace is not None:
            self._record_breakdown(model, speed, trace)

    def measure_larger(self, model: Model) -> None:
        """Train again with larger micro-batches, which should fit by what the first run took; keep what is faster."""
        record = self.attempts.record
        before = record.measurements[f"{model.name} training"]
        size: int | None = self.larger[model.name]
        while size is not None and size > before["micro_batch"]:
            speed = self._try(model, size)
            if speed is not None:
                rate = speed.tokens / statistics.median(speed.seconds)
                speeds = f"{rate:.0f} tokens/s, those of {before['micro_batch']} {before['value']:.0f}"
                record.note(f"{model.name}: micro-batches of {size} give {speeds}")
                if rate > before["value"]:
                    self._record(model, size, speed, estimated_bytes(self._config(model, size)))
                return
            size = smaller_one(size)

    def _try(self, model: Model, size: int, trace: Path | None = None) -> StepSpeed | None:
        """None, and a note, if the memory does not suffice; an exception with the smallest size."""
        try:
            return self._run(model, size, trace)
        except Exception as error:
            if size == min(model.sizes) or not is_out_of_memory(error):
                raise
        self.attempts.record.note(f"{model.name}: micro-batches of {size} do not fit")
        release_memory(self.world.device)
        return None

    def _run(self, model: Model, size: int, trace: Path | None = None) -> StepSpeed:
        self._runs += 1
        return run_steps(self._config(model, size), self.world, model.steps, trace)

    def _config(self, model: Model, size: int) -> Config:
        overrides = (
            f"data.directory={self.directory / 'data'}",
            "data.cache_directory=null",
            "data.storage_options={}",
            f"training.run_directory={self.directory / f'run-{self._runs}'}",
            f"training.micro_batch_size={size}",
            f"training.global_batch_size={size * model.accumulation}",
            "checkpoint.every=1000000000",
            "checkpoint.consolidate_every=0",
            "checkpoint.asynchronous=false",
            f"logging.every={WARM_UP}",
            "logging.evaluate_every=0",
            "logging.sample_every=0",
        )
        return load_config(model.config_file, (*overrides, *model.overrides))

    def _available_bytes(self) -> float:
        if self.world.device.type == "cuda":
            return float(torch.cuda.mem_get_info(self.world.device)[0])
        return 0.0  # for rehearsals: the smallest is taken

    def _record(self, model: Model, size: int, speed: StepSpeed, estimate: float) -> None:
        record, seconds = self.attempts.record, statistics.median(speed.seconds)
        rate = speed.tokens / seconds
        record.add(
            f"{model.name} training",
            rate,
            "tokens/s",
            headline=model.has_goal,
            parameters=speed.parameters,
            micro_batch=size,
            accumulation=model.accumulation,
            step_ms=[1e3 * each for each in speed.seconds],
            loss=speed.loss,
            waiting_for_data=speed.waiting,
            predicted_part=speed.predicted,
        )
        record.add(
            f"{model.name} memory", speed.peak_bytes / GIBIBYTE, "GiB", micro_batch=size, estimate=estimate / GIBIBYTE
        )
        flops = speed.flops
        mfu = 100 * flops.ours * rate / self.peak
        goals = goal(mfu, MFU_GOAL) if model.has_goal else {}
        of_peak = {"peak": self.peak, "flops_per_token": flops.ours}
        record.add(f"{model.name} MFU", mfu, "%", headline=model.has_goal, **of_peak, **goals)
        for name, per_token in (
            ("FLOPs as nanochat", flops.nanochat),
            ("FLOPs as PaLM", flops.palm),
            ("computed FLOPs alone", flops.computed),
        ):
            value = 100 * per_token * rate / self.peak
            record.add(f"{model.name} MFU, {name}", value, "%", flops_per_token=per_token)
        share = 100 * flops.ours * rate / self.ceiling
        record.add(f"{model.name} share of the ceiling", share, "%", ceiling=self.ceiling)

    def _record_breakdown(self, model: Model, speed: StepSpeed, trace: Path) -> None:
        work, span = read_trace(trace)
        parts = break_down(work, span, (speed.hidden, 2 * speed.hidden), speed.vocabulary)
        for name, part in parts.items():
            self.attempts.record.add(
                f"{model.name} step: {name}",
                100 * part.microseconds / span,
                "%",
                milliseconds=part.microseconds / 1e3,
                **({} if name == IDLE else {"kernels": part.pieces}),
                **({"product_tflops": part.flops / part.product_microseconds / 1e6} if part.flops else {}),
            )
        longest = longest_kernels(parts, _KERNELS)
        self.attempts.record.add(f"{model.name} step, traced", span / 1e3, "ms", longest=longest)
