"""The step loop."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any, Protocol

import torch
from torch import Tensor

from nar_scale.checkpoint import TrainingState
from nar_scale.config import Config, batch_size_at, gradient_accumulation_steps, steps_of_run
from nar_scale.data import Batch
from nar_scale.errors import DataError, DivergenceError
from nar_scale.masking import hash_counters
from nar_scale.training.data.build import TrainingData
from nar_scale.training.distributed import Votes, World
from nar_scale.training.engine.build import set_accumulation, set_learning_rates
from nar_scale.training.engine.nonfinite import spoil_gradient_of_bad_loss
from nar_scale.training.fault_tolerance.activity import Phase
from nar_scale.training.fault_tolerance.divergence import Guard
from nar_scale.training.fault_tolerance.preemption import StopRequest
from nar_scale.training.metrics.accumulator import LossWindow
from nar_scale.training.metrics.stragglers import OwnTime
from nar_scale.training.metrics.throughput import Stopwatch
from nar_scale.training.metrics.update_ratio import UpdateRatio
from nar_scale.training.optimizers.build import learning_rate_factor


class Hook(Protocol):
    """What is done beside the steps, on all ranks alike: reporting, evaluating, sampling, saving."""

    def after_step(self, trainer: Trainer) -> None:
        """A step has been taken."""
        ...

    def at_end(self, trainer: Trainer) -> None:
        """The run is complete or stops as asked."""
        ...


class Trainer:
    """Takes optimizer steps until the run is complete or somebody asks it to stop.

    Args:
        config: the run.
        engine: a DeepSpeed engine around a wrapper.
        batches: this rank's endless micro-batches, from the position of `state` on.
        data: what they come from.
        state: where the run starts.
        hooks: called in order after each step.
        stop: requests to stop.
        phase: told what this rank is doing.
        guard: judges each step.
    """

    def __init__(
        self,
        config: Config,
        engine: Any,
        world: World,
        batches: Iterable[Batch],
        data: TrainingData,
        state: TrainingState,
        hooks: Sequence[Hook],
        stop: StopRequest,
        phase: Phase,
        guard: Guard,
    ):
        self.config, self.engine, self.world, self.state = config, engine, world, state
        self.data, self.hooks, self.stop, self.phase, self.guard = data, hooks, stop, phase, guard
        self.stopping = False
        self.batches = iter(batches)
        self.window = LossWindow(self.world.device)
        self.stopwatch = Stopwatch()
        self.own_time = OwnTime(self.world.device)
        self.timings: dict[str, float] = {}  # what hooks took since the last report, in seconds
        # asked while a step is taken, before it counts
        self.update_ratio = UpdateRatio(engine, wanted=lambda: self.due(config.logging.every, ahead=1))

    @property
    def complete(self) -> bool:
        """Whether the last step has been taken."""
        return self.state.step >= steps_of_run(self.config)

    def due(self, every: int, ahead: int = 0) -> bool:
        """Whether something that is done every so many steps, and after the last, is done now; 0 is never.

        Args:
            ahead: whether it will be after so many more steps.
        """
        step = self.state.step + ahead
        return bool(every) and (step % every == 0 or step >= steps_of_run(self.config))

    def run(self) -> bool:
        """Train to the end of the run; returns whether it got there or was stopped.

        Raises:
            DivergenceError: losses, gradients or weights are not finite, and no roll back helps.
        """
        if any(self.ask_to_stop().read()):
            self.begin_to_stop()
        while True:
            try:
                self.take_steps()
                for hook in reversed(self.hooks):  # the first reports what the others took
                    hook.at_end(self)
                return self.complete
            except DivergenceError as problem:
                self.phase.enter("rolling back")
                self.state = self.guard.roll_back(self.state, problem)
                self.window = LossWindow(self.world.device)
                self.stopwatch.lap()
                stream = self.data.stream(self.config, self.world, self.state.samples, self.state.step)
                self.batches = iter(stream)

    def take_steps(self) -> None:
        """Train until the run is complete or all agree to stop."""
        while not (self.complete or self.stopping):
            micro_batches = self.load_micro_batches()
            counts, votes = self.count(micro_batches)
            self.optimize(micro_batches, counts)
            wishes_to_stop, skipped, loss_before = votes.read()
            if wishes_to_stop:
                self.begin_to_stop()
            self.guard.judge_loss(loss_before, self.state)
            self.advance(int(skipped))
            self.state = self.guard.judge_step(self.state, micro_batches, self.window.last_loss)
            self.guard.check_progress(self.state)
            with self.stopwatch.excluded():
                for hook in self.hooks:
                    hook.after_step(self)

    def begin_to_stop(self) -> None:
        """All ranks have agreed that no further step is taken."""
        self.stopping = True
        self.stop.begin_deadline()

    def ask_to_stop(self) -> Votes:
        """How many ranks have been asked to stop; all must take part."""
        return Votes(self.world.sum(torch.tensor([float(bool(self.stop))], device=self.world.device)))

    def load_micro_batches(self) -> list[Batch]:
        """This rank's part of the next global batch, on its device."""
        self.phase.enter("loading data")
        set_accumulation(self.engine, gradient_accumulation_steps(self.config, self.world.size, self.state.step))
        with self.stopwatch.waiting(), self.own_time.of_host():
            loaded = [next(self.batches) for _ in range(self.engine.gradient_accumulation_steps())]
        for fault in (fault for batch in loaded for fault in batch.faults if self.world.sequence_rank == 0):
            print(f"skipped in step {self.state.step + 1}: {fault}", file=sys.stderr, flush=True)
        return [batch.to(self.world.device, non_blocking=True) for batch in loaded]

    def count(self, micro_batches: list[Batch]) -> tuple[Tensor, Votes]:
        """What the loss terms of the global batch are divided by, float64 `[terms]`.

        Three votes travel along: how many ranks have been asked to stop, how many samples were skipped, and the loss
        of the step before.
        """
        self.phase.enter("counting the global batch")
        seed = self.config.training.seed
        counts = torch.stack([self.engine.module.counts(batch, seed=seed) for batch in micro_batches]).double().sum(0)
        skipped = sum(len(batch.faults) for batch in micro_batches)
        if self.world.sequence_rank > 0:  # the first of the peers counts what they share
            counts, skipped = torch.zeros_like(counts), 0
        votes = torch.cat((counts.new_tensor([float(bool(self.stop)), float(skipped)]), self.window.last_loss[None]))
        totals = self.world.sum(torch.cat((counts, votes)))
        return totals[: len(counts)], Votes(totals[len(counts) :])

    def optimize(self, micro_batches: list[Batch], counts: Tensor) -> None:
        """One optimizer step: gradients of sums over the global normaliser, never means of means."""
        training, step = self.config.training, self.state.step
        factor = learning_rate_factor(self.config.schedule, step, steps_of_run(self.config))
        set_learning_rates(self.engine, self.config.optimizer, factor)
        # dropout as a counter: a resumed run draws what the unbroken one would have drawn
        seeds = hash_counters(training.seed, step, torch.arange(len(micro_batches)), self.world.rank) & (2**62 - 1)
        for number, (batch, dropout_seed) in enumerate(zip(micro_batches, seeds.tolist())):
            _seed_generators(self.world.device, dropout_seed)
            self.phase.enter("forward pass")
            with self.own_time.of_device():
                terms = self.engine(batch, seed=training.seed)
            loss = terms.total(counts.float()) * self.world.size  # DeepSpeed averages gradients over ranks
            self.phase.enter("backward pass")
            self.engine.set_gradient_accumulation_boundary(number == len(micro_batches) - 1)
            self.engine.backward(spoil_gradient_of_bad_loss(loss), scale_wrt_gas=False)
            self.phase.enter("optimizer step")
            self.engine.step()
            self.window.add(terms)
        self.window.finish_step(counts, self.engine.was_step_applied())

    def advance(self, skipped: int) -> None:
        """Note that a step is done.

        Raises:
            DataError: more samples than allowed could not be used.
        """
        samples = self.state.samples + batch_size_at(self.config.training, self.state.step)
        self.phase.steps += 1
        self.state = replace(
            self.state,
            step=self.state.step + 1,
            samples=samples,
            source_samples=self.data.consumed(samples),
            skipped_samples=self.state.skipped_samples + skipped,
        )
        limit = self.config.data.max_skipped_samples
        if skipped and self.state.skipped_samples > limit:
            raise DataError(
                f"{self.state.skipped_samples} samples were skipped up to step {self.state.step}, more than "
                f"data.max_skipped_samples {limit} (they are named above); mend the shards or raise it"
            )


def _seed_generators(device: torch.device, seed: int) -> None:
    # `torch.manual_seed` takes a millisecond where there is no GPU, looking for devices of all makes
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.manual_seed(seed)
