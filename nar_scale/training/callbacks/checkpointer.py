"""When a run saves, and what it waits for."""

from __future__ import annotations

import time
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace

import torch
import torch.distributed as dist

from nar_scale.checkpoint import CheckpointStore
from nar_scale.config import Config, steps_of_run
from nar_scale.errors import DivergenceError
from nar_scale.training.callbacks.callback import Callback, RunView
from nar_scale.training.checkpointing.consolidation_queue import ConsolidationQueue
from nar_scale.training.checkpointing.io import HostMemory, Snapshot, load_checkpoint, take_snapshot, write_checkpoint
from nar_scale.training.checkpointing.resume import find_checkpoint
from nar_scale.training.distributed import World
from nar_scale.training.engine.zero_engine import ZeroEngine
from nar_scale.training.metrics.events import CHECKPOINT, EventLog

_POLL_SECONDS = 0.2


class Checkpointer(Callback):
    """Writes a checkpoint every `checkpoint.every` steps, and where the run ends or stops.

    With `checkpoint.asynchronous` the ranks only copy what they hold into memory and go on; a thread writes, verifies
    and publishes it, and the next checkpoint waits for that.

    Args:
        store: where to.
        config: of the run.
        world: of this rank.
        saved_step: of the last checkpoint.
        events: of the run, on the main process.
    """

    def __init__(
        self, store: CheckpointStore, config: Config, world: World, saved_step: int, events: EventLog | None = None
    ):
        self._store, self._config, self._world, self._saved_step = store, config, world, saved_step
        self._events = events
        self._consolidation = ConsolidationQueue(store) if world.is_main else None
        self._thread: ThreadPoolExecutor | None = None
        self._memory: HostMemory | None = None
        self._writing: Future[int] | None = None

    def start_thread(self) -> None:
        """Create the thread that writes asynchronously, and its process group, if the run is to; a collective."""
        if self._config.checkpoint.asynchronous:
            self._thread, self._memory = ThreadPoolExecutor(1, "checkpoint"), {}
            # the messages of the thread and those of the steps must not get mixed up
            control = dist.new_group(backend="gloo", timeout=self._world.control_timeout)
            self._world = replace(self._world, control=control)

    def on_step_end(self, run: RunView) -> None:
        """Save if it is due."""
        settings = self._config.checkpoint
        if run.due(settings.every) or run.due(settings.consolidate_every):
            self.save(run)
        elif self._writing is not None and self._writing.done():
            if self._writing.exception() is None:
                self.finish_writing()
            else:  # which ranks notice at different steps; they end together, where `on_run_end` raises it on all
                run.stop.request()
        if self._consolidation is not None:
            self._consolidation.advance()

    def on_run_end(self, run: RunView) -> None:
        """Save the last step unless that is done, and wait for what is being written."""
        if self._saved_step != run.state.step:
            self.save(run)
        run.activity.enter("waiting for the last checkpoint")
        self.finish_writing()
        self._finish_consolidation(run)

    def close(self) -> None:
        """End the consolidation that is under way."""
        if self._consolidation is not None:
            self._consolidation.terminate()

    def save(self, run: RunView) -> None:
        """Write a checkpoint, or begin to; a collective.

        Raises:
            DivergenceError: weights or optimizer state are not finite.
            CheckpointError: it, or the one before, cannot be written.
        """
        run.activity.enter("saving a checkpoint")
        with run.metrics.timed("checkpoint_seconds"):
            _check_finite(run)
            self.finish_writing()
            snapshot = take_snapshot(run.engine, run.state, run.config, self._memory)
            if self._thread is None:
                self._consolidate(self._write(snapshot))
            else:
                self._writing = self._thread.submit(self._write, snapshot)
        self._saved_step = run.state.step

    def finish_writing(self) -> None:
        """Wait for what is being written.

        Raises:
            CheckpointError: it could not be.
        """
        if self._writing is not None:
            writing, self._writing = self._writing, None
            self._consolidate(writing.result())

    def restore_newest(self, engine: ZeroEngine) -> int | None:
        """Bring the engine back to the newest good checkpoint; a collective.

        Returns:
            its step; None, with the engine as it was, if there is no checkpoint.
        """
        self.finish_writing()
        _, step = find_checkpoint(self._store, "auto", self._world)
        if step is not None:
            load_checkpoint(self._store, step, engine, self._config)
            self.continue_from(step)
        return step

    def continue_from(self, step: int) -> None:
        """Note that the run goes on from the checkpoint of a step, which supersedes those of later steps."""
        self._saved_step = step
        if self._world.is_main:
            self._store.supersede_after(step)
        if self._consolidation is not None:
            self._consolidation.forget_after(step)
            for earlier in self._store.steps():
                self._consolidate(earlier)  # what an earlier attempt was stopped at

    def _write(self, snapshot: Snapshot) -> int:
        write_checkpoint(self._store, snapshot, self._world)
        if self._world.is_main:
            self._retain()
        if self._events is not None:
            self._events.write(snapshot.state.step, CHECKPOINT, str(self._store.path(snapshot.state.step)))
        return snapshot.state.step

    def _retain(self) -> None:
        in_use = self._consolidation.steps if self._consolidation is not None else ()
        self._store.retain(self._config.checkpoint.keep_last, self._config.checkpoint.keep_every, in_use)

    def _consolidate(self, step: int) -> None:
        every, last = self._config.checkpoint.consolidate_every, steps_of_run(self._config)
        if self._consolidation is not None and every and (step % every == 0 or step >= last):
            self._consolidation.add(step)

    def _finish_consolidation(self, run: RunView) -> None:
        """Wait for those under way, on all ranks, since a launcher ends a job of which some have left.

        Not if the run is to stop: there may be little time left.
        """
        before = 0
        while left := run.world.broadcast(self._consolidations_left()):
            stops = run.world.gather(run.stop.requested)
            if any(stops) or not run.complete:
                self.close()
                return
            if left != before:  # each has the whole timeout
                run.activity.enter("waiting for a consolidated checkpoint")
            before = left
            time.sleep(_POLL_SECONDS)
        if run.world.is_main:
            self._retain()
        run.world.barrier()

    def _consolidations_left(self) -> int:
        if self._consolidation is None:
            return 0
        self._consolidation.advance()
        return len(self._consolidation.steps)


def _check_finite(run: RunView) -> None:
    """Refuse, on all ranks, to save weights or optimizer state that are not finite on any of them.

    Raises:
        DivergenceError: they are not.
    """
    bad = torch.tensor([float(not run.engine.is_finite())], device=run.world.device)
    if run.world.all_reduce(bad).item():
        raise DivergenceError(f"weights or moments are not finite at step {run.state.step}, which is not saved")
