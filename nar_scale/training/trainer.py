"""The step loop."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any, Protocol

import torch
from torch import Tensor

from nar_scale.checkpoint import TrainingState
from nar_scale.config import Config
from nar_scale.data import Batch
from nar_scale.errors import DataError
from nar_scale.masking import hash_counters
from nar_scale.training.data import TrainingData
from nar_scale.training.distributed import World
from nar_scale.training.engine import set_learning_rate
from nar_scale.training.optimizer import learning_rate_factor
from nar_scale.training.performance import Stopwatch
from nar_scale.training.phase import Phase
from nar_scale.training.stop import StopRequest
from nar_scale.training.votes import Votes
from nar_scale.training.window import LossWindow


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
    ):
        self.config, self.engine, self.world, self.state = config, engine, world, state
        self.data, self.hooks, self.stop, self.phase = data, hooks, stop, phase
        self.batches = iter(batches)
        self.window = LossWindow()
        self.stopwatch = Stopwatch()

    @property
    def complete(self) -> bool:
        """Whether the last step has been taken."""
        return self.state.step >= self.config.training.steps

    def due(self, every: int) -> bool:
        """Whether something that is done every so many steps, and after the last, is done now; 0 is never."""
        return bool(every) and (self.state.step % every == 0 or self.complete)

    def run(self) -> bool:
        """Train to the end of the run; returns whether it got there or was stopped."""
        asked_to_stop = False
        while not (self.complete or asked_to_stop):
            micro_batches = self.load_micro_batches()
            counts, votes = self.count(micro_batches)
            self.optimize(micro_batches, counts)
            wishes_to_stop, skipped = votes.read()
            asked_to_stop = wishes_to_stop > 0
            self.advance(int(skipped))
            with self.stopwatch.excluded():
                for hook in self.hooks:
                    hook.after_step(self)
        for hook in self.hooks:
            hook.at_end(self)
        return self.complete

    def load_micro_batches(self) -> list[Batch]:
        """This rank's part of the next global batch, on its device."""
        self.phase.enter("loading data")
        with self.stopwatch.waiting():
            loaded = [next(self.batches) for _ in range(self.engine.gradient_accumulation_steps())]
        for fault in (fault for batch in loaded for fault in batch.faults):
            print(f"skipped in step {self.state.step + 1}: {fault}", file=sys.stderr, flush=True)
        return [batch.to(self.world.device, non_blocking=True) for batch in loaded]

    def count(self, micro_batches: list[Batch]) -> tuple[Tensor, Votes]:
        """What the loss terms of the global batch are divided by, float64 `[terms]`.

        Two votes travel along: how many ranks have been asked to stop, and how many samples were skipped.
        """
        self.phase.enter("counting the global batch")
        seed = self.config.training.seed
        counts = torch.stack([self.engine.module.counts(batch, seed=seed) for batch in micro_batches]).double().sum(0)
        skipped = sum(len(batch.faults) for batch in micro_batches)
        totals = self.world.sum(torch.cat((counts, counts.new_tensor([float(bool(self.stop)), float(skipped)]))))
        return totals[:-2], Votes(totals[-2:])

    def optimize(self, micro_batches: list[Batch], counts: Tensor) -> None:
        """One optimizer step: gradients of sums over the global normaliser, never means of means."""
        training, step = self.config.training, self.state.step
        factor = learning_rate_factor(self.config.schedule, step, training.steps)
        set_learning_rate(self.engine, self.config.optimizer.learning_rate * factor)
        for number, batch in enumerate(micro_batches):
            # dropout as a counter: a resumed run draws what the unbroken one would have drawn
            torch.manual_seed(int(hash_counters(training.seed, step, number, self.world.rank)) & (2**62 - 1))
            self.phase.enter("forward pass")
            terms = self.engine(batch, seed=training.seed)
            loss = terms.total(counts.float()) * self.world.size  # DeepSpeed averages gradients over ranks
            self.phase.enter("backward pass")
            self.engine.backward(loss, scale_wrt_gas=False)
            self.phase.enter("optimizer step")
            self.engine.step()
            self.window.add(terms)
        self.window.finish_step(counts)

    def advance(self, skipped: int) -> None:
        """Note that a step is done.

        Raises:
            DataError: more samples than allowed could not be used.
        """
        samples = self.state.samples + self.config.training.global_batch_size
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
