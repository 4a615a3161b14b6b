"""When a run saves, and what it waits for."""

from __future__ import annotations

import time
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace

import torch.distributed as dist

from nar_scale.checkpoint import CheckpointStore
from nar_scale.config import Config, steps_of_run
from nar_scale.training.callbacks.consolidation import Consolidations
from nar_scale.training.checkpointing.io import Memory, Snapshot, take_snapshot, write_checkpoint
from nar_scale.training.distributed import World
from nar_scale.training.engine.nonfinite import check_weights
from nar_scale.training.metrics.throughput import timed
from nar_scale.training.trainer import Trainer

_SECONDS_BETWEEN_LOOKS = 0.2


class Saver:
    """Writes a checkpoint every `checkpoint.every` steps, and where the run ends or stops.

    With `checkpoint.asynchronous` the ranks only copy what they hold into memory and go on; a thread writes, verifies
    and publishes it, and the next checkpoint waits for that.

    Args:
        store: where to.
        config: of the run.
        world: of this rank.
        saved_step: of the last checkpoint.
    """

    def __init__(self, store: CheckpointStore, config: Config, world: World, saved_step: int):
        self.store, self.config, self.saved_step = store, config, saved_step
        self.consolidations = Consolidations(store) if world.is_main else None
        self._thread: ThreadPoolExecutor | None = None
        self._memory: Memory | None = None
        self._world = world
        self._writing: Future[int] | None = None
        if config.checkpoint.asynchronous:
            self._thread, self._memory = ThreadPoolExecutor(1, "checkpoint"), {}
            # what the thread and the steps have to agree on must not get mixed up
            self._world = replace(world, control=dist.new_group(backend="gloo", timeout=world.patience))

    def after_step(self, trainer: Trainer) -> None:
        """Save if it is due."""
        settings = self.config.checkpoint
        if trainer.due(settings.every) or trainer.due(settings.consolidate_every):
            self._save(trainer)
        elif self._writing is not None and self._writing.done():
            if self._writing.exception() is None:
                self.settle()
            else:  # which ranks notice at different steps; they end together, where `at_end` raises it on all
                trainer.stop.ask()
        if self.consolidations is not None:
            self.consolidations.advance()

    def at_end(self, trainer: Trainer) -> None:
        """Save the last step unless that is done, and wait for what is being written."""
        if self.saved_step != trainer.state.step:
            self._save(trainer)
        trainer.phase.enter("waiting for the last checkpoint")
        self.settle()
        self._finish_consolidations(trainer)

    def close(self) -> None:
        """End what goes on beside the run, whatever has ended that."""
        if self.consolidations is not None:
            self.consolidations.abandon()

    def go_back(self, step: int) -> None:
        """Note that the run goes on from the checkpoint of a step, whatever came after: a restart, or other samples."""
        self.saved_step = step
        if self._world.is_main:
            self.store.supersede_after(step)
        if self.consolidations is not None:
            self.consolidations.forget_after(step)
            for earlier in self.store.steps():
                self._consolidate(earlier)  # what an earlier attempt was stopped at

    def _finish_consolidations(self, trainer: Trainer) -> None:
        """Wait for those under way, all ranks, since a launcher ends a job of which some have left.

        Not if the run is to stop: there may be little time left.
        """
        before = 0
        while left := trainer.world.broadcast(self._consolidations_left()):
            stops = trainer.world.gather(bool(trainer.stop))
            if any(stops) or not trainer.complete:
                self.close()
                return
            if left != before:  # each may take its time
                trainer.phase.enter("waiting for a consolidated checkpoint")
            before = left
            time.sleep(_SECONDS_BETWEEN_LOOKS)
        if trainer.world.is_main:
            self._retain()
        trainer.world.barrier()

    def _consolidations_left(self) -> int:
        if self.consolidations is None:
            return 0
        self.consolidations.advance()
        return len(self.consolidations.steps)

    def _save(self, trainer: Trainer) -> None:
        """Write a checkpoint, unless a step has spoilt the weights."""
        trainer.phase.enter("saving a checkpoint")
        step = trainer.state.step
        with timed(trainer.timings, "checkpoint_seconds"):
            check_weights(trainer.engine, trainer.world, step)
            self.settle()
            snapshot = take_snapshot(trainer.engine, trainer.state, trainer.config, self._memory)
            if self._thread is None:
                self._consolidate(self._write(snapshot))
            else:
                self._writing = self._thread.submit(self._write, snapshot)
        self.saved_step = step

    def _write(self, snapshot: Snapshot) -> int:
        write_checkpoint(self.store, snapshot, self._world)
        if self._world.is_main:
            self._retain()
        return snapshot.state.step

    def _retain(self) -> None:
        in_use = self.consolidations.steps if self.consolidations is not None else ()
        self.store.retain(self.config.checkpoint.keep_last, self.config.checkpoint.keep_every, in_use)

    def settle(self) -> None:
        """Wait for what is being written.

        Raises:
            CheckpointError: it could not be.
        """
        if self._writing is not None:
            writing, self._writing = self._writing, None
            self._consolidate(writing.result())

    def _consolidate(self, step: int) -> None:
        every, last = self.config.checkpoint.consolidate_every, steps_of_run(self.config)
        if self.consolidations is not None and every and (step % every == 0 or step >= last):
            self.consolidations.add(step)
