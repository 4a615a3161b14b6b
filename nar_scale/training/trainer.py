"""The training loop."""

from __future__ import annotations

import logging
from collections.abc import Generator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from nar_scale.checkpoint import TrainingState
from nar_scale.config import Config, batch_size_at, gradient_accumulation_steps, steps_of_run
from nar_scale.data import Batch
from nar_scale.errors import DataError, DivergenceError
from nar_scale.masking import hash_counters
from nar_scale.objectives.terms import on_device
from nar_scale.training.callbacks.callback import Callback
from nar_scale.training.callbacks.checkpointer import Checkpointer
from nar_scale.training.data.build import TrainingData
from nar_scale.training.distributed import AllReducedFlags, World
from nar_scale.training.engine.zero_engine import ZeroEngine
from nar_scale.training.fault_tolerance.activity import Activity
from nar_scale.training.fault_tolerance.divergence import DivergenceHandler, unrecoverable
from nar_scale.training.fault_tolerance.preemption import StopAgreement
from nar_scale.training.metrics.interval_metrics import IntervalMetrics
from nar_scale.training.optimizers.learning_rate import learning_rate_factor

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class RunContext:
    """What a run is made of and keeps to its end.

    Attributes:
        config: of the run.
        world: this process and its peers.
        engine: around the wrapper, with the weights that the run starts from.
        data: what the micro-batches come from.
        activity: what this process is doing.
        stop: requests to stop.
    """

    config: Config
    world: World
    engine: ZeroEngine
    data: TrainingData
    activity: Activity
    stop: StopAgreement


class Trainer:
    """Takes optimizer steps until the run is complete or is asked to stop; the `RunView` of its callbacks.

    Args:
        context: of the run.
        state: where it starts.
        checkpointer: one of the callbacks, which also brings the engine back to a checkpoint.
        callbacks: called in order.

    Attributes:
        state: where the run is.
        metrics: of the steps since the last report.
    """

    def __init__(
        self, context: RunContext, state: TrainingState, checkpointer: Checkpointer, callbacks: Sequence[Callback]
    ):
        self.config, self.world, self.engine = context.config, context.world, context.engine
        self.activity, self.stop = context.activity, context.stop
        self.state = state
        self.metrics = IntervalMetrics(self.world.device)
        self._data, self._checkpointer, self._callbacks = context.data, checkpointer, callbacks
        self._divergence = DivergenceHandler(self.config.faults, self.engine, self.world)
        self._batches = self._stream()

    @property
    def complete(self) -> bool:
        """Whether the last step has been taken."""
        return self.state.step >= steps_of_run(self.config)

    def due(self, every: int, ahead: int = 0) -> bool:
        """See `RunView.due`."""
        step = self.state.step + ahead
        return bool(every) and (step % every == 0 or step >= steps_of_run(self.config))

    def run(self) -> bool:
        """Train to the end of the run; returns whether it got there or was stopped.

        Raises:
            DivergenceError: losses, gradients or weights are not finite, and no roll-back helps.
        """
        self.engine.skip_non_finite_steps()
        for callback in self._callbacks:
            callback.on_run_start(self)
        if any(self.stop.poll().read()):
            self.stop.agree()
        while True:
            try:
                while not (self.complete or self.stop.agreed):
                    self.train_step()
                    with self.metrics.stopwatch.excluded():
                        for callback in self._callbacks:
                            callback.on_step_end(self)
                for callback in reversed(self._callbacks):
                    callback.on_run_end(self)
                return self.complete
            except DivergenceError as problem:
                self.roll_back(problem)

    def train_step(self) -> None:
        """Take one optimizer step over the next global batch; a collective.

        Raises:
            DivergenceError: too many steps in a row were not finite, or the loss of the step before is a spike.
            DataError: more samples than allowed could not be used.
        """
        micro_batches = self._load_micro_batches()
        counts, flags = self._count_global_batch(micro_batches)
        self.engine.set_learning_rates(
            learning_rate_factor(self.config.schedule, self.state.step, steps_of_run(self.config))
        )
        for number, (batch, dropout_seed) in enumerate(zip(micro_batches, self._dropout_seeds(len(micro_batches)))):
            _seed_generators(self.world.device, dropout_seed)
            self._forward_and_backward(batch, counts, last=number == len(micro_batches) - 1)
            self.activity.enter("optimizer step")
            self.engine.step()
        self.metrics.losses.finish_step(counts, self.engine.step_applied)

        stop_requests, skipped_samples, loss_before = flags.read()
        if stop_requests:
            self.stop.agree()
        self._divergence.check_loss(loss_before, self.state)
        self._advance(int(skipped_samples))
        self.state = self._divergence.check_step(self.state, micro_batches, self.metrics.losses.last_loss)
        self._divergence.check_skipped(self.state)

    def roll_back(self, problem: DivergenceError) -> None:
        """Go back to the newest good checkpoint, but not in the stream: the same samples would fail again.

        A collective.

        Raises:
            DivergenceError: `problem`, if it is not to be answered by a roll-back, there is no checkpoint, or there
                have been too many roll-backs.
        """
        self.activity.enter("rolling back")
        if not self._divergence.may_roll_back(self.state, problem):
            raise unrecoverable(self.state, problem)
        step = self._checkpointer.restore_newest(self.engine)
        if step is None:
            raise unrecoverable(self.state, problem)
        self.state = self._divergence.rolled_back(self.state, step, problem)
        self.metrics.reset()
        for callback in self._callbacks:
            callback.on_roll_back(self)
        self._batches.close()
        self._batches = self._stream()

    def close(self) -> None:
        """End the processes that load data, which would be left to the garbage collector and take it seconds."""
        self._batches.close()

    def _stream(self) -> Generator[Batch, None, None]:
        """This rank's endless micro-batches, from the position of the run on."""
        return self._data.stream(self.config, self.world, self.state.samples, self.state.step)

    def _load_micro_batches(self) -> list[Batch]:
        """This rank's part of the next global batch, on its device."""
        self.activity.enter("loading data")
        self.engine.set_accumulation(gradient_accumulation_steps(self.config, self.world.size, self.state.step))
        with self.metrics.stopwatch.waiting(), self.metrics.own_time.of_host():
            loaded = [next(self._batches) for _ in range(self.engine.accumulation)]
        for fault in (fault for batch in loaded for fault in batch.faults if self.world.sp_rank == 0):
            _logger.warning("skipped in step %d: %s", self.state.step + 1, fault)
        if self.world.sp_rank == 0:
            self.metrics.tokens += sum(int(batch.lengths.sum()) for batch in loaded)
        return [batch.to(self.world.device, non_blocking=True) for batch in loaded]

    def _count_global_batch(self, micro_batches: list[Batch]) -> tuple[Tensor, AllReducedFlags]:
        """What the loss terms of the global batch are divided by, float64 `[terms]`.

        Three numbers are summed along with them: how many ranks have been asked to stop, how many samples were skipped,
        and the loss of the step before.
        """
        self.activity.enter("counting the global batch")
        seed = self.config.training.seed
        counts = torch.stack([self.engine.counts(batch, seed=seed) for batch in micro_batches]).double().sum(0)
        skipped = sum(len(batch.faults) for batch in micro_batches)
        if self.world.sp_rank > 0:  # the first rank of a group counts the sequences that they share
            counts, skipped = torch.zeros_like(counts), 0
        flags = on_device([float(self.stop.requested), float(skipped)], counts)
        totals = self.world.all_reduce(torch.cat((counts, flags, self.metrics.losses.last_loss[None])))
        return totals[: len(counts)], AllReducedFlags(totals[len(counts) :])

    def _dropout_seeds(self, micro_batches: int) -> list[int]:
        """A seed for each micro-batch, a pure function of step and rank, so that a resumed run has the same dropout."""
        seeds = hash_counters(
            self.config.training.seed, self.state.step, torch.arange(micro_batches), self.world.rank
        ) & (2**62 - 1)
        return seeds.tolist()

    def _forward_and_backward(self, batch: Batch, counts: Tensor, last: bool) -> None:
        """Add the gradient of a micro-batch: that of sums over the global normaliser, never of means of means."""
        self.activity.enter("forward pass")
        with self.metrics.own_time.of_device():
            terms = self.engine(batch, seed=self.config.training.seed)
        loss = terms.total(counts.float()) * self.world.size  # DeepSpeed averages gradients over ranks
        self.activity.enter("backward pass")
        self.engine.backward(loss, last)
        self.metrics.losses.add(terms)

    def _advance(self, skipped: int) -> None:
        """Count a step and its samples.

        Raises:
            DataError: more samples than allowed could not be used.
        """
        samples = self.state.samples + batch_size_at(self.config.training, self.state.step)
        self.activity.steps += 1
        self.state = replace(
            self.state,
            step=self.state.step + 1,
            samples=samples,
            source_samples=self._data.consumed(samples),
            skipped_samples=self.state.skipped_samples + skipped,
        )
        limit = self.config.data.max_skipped_samples
        if skipped and self.state.skipped_samples > limit:
            raise DataError(
                f"{self.state.skipped_samples} samples were skipped up to step {self.state.step}, more than "
                f"data.max_skipped_samples {limit} (they are named above); repair the shards or raise it"
            )


def _seed_generators(device: torch.device, seed: int) -> None:
    # `torch.manual_seed` takes a millisecond where there is no GPU, looking for devices of all makes
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.manual_seed(seed)
