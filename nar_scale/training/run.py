"""A training run from its config: set everything up, train, save."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from nar_scale.checkpoint import CONFIG_FILE, CheckpointStore, TrainingState
from nar_scale.cluster.attempts import read_attempts, tell_attempts
from nar_scale.cluster.endings import Kind, report
from nar_scale.config import (
    Config,
    load_config,
    resolve_deepspeed_config,
    steps_of_run,
)
from nar_scale.data.shards.shard_comparison import write_shard_list
from nar_scale.files import removed_if_empty
from nar_scale.fleet.holder import Holder
from nar_scale.model.parameters import full_size
from nar_scale.objectives import build_wrapper
from nar_scale.training.agreement import check_ranks_alike
from nar_scale.training.callbacks.callback import Callback
from nar_scale.training.callbacks.checkpointer import Checkpointer
from nar_scale.training.callbacks.evaluator import Evaluator
from nar_scale.training.callbacks.metrics_reporter import MetricsReporter
from nar_scale.training.callbacks.muon_check import MuonCheck
from nar_scale.training.callbacks.profiler import Profiler
from nar_scale.training.callbacks.sample_writer import SampleWriter
from nar_scale.training.checkpointing.io import check_writable, load_checkpoint
from nar_scale.training.checkpointing.record import is_finished, write_record
from nar_scale.training.checkpointing.resume import (
    find_checkpoint,
    start_from_weights,
)
from nar_scale.training.checkpointing.resume_rules import check_same_batch_sizes, check_same_model, check_same_stream
from nar_scale.training.data.build import TrainingData, open_training_data
from nar_scale.training.distributed import World, on_main
from nar_scale.training.engine.build import build_engine, initialize_deepspeed, sharded_initialization
from nar_scale.training.engine.machine import check_machine
from nar_scale.training.engine.sequence_parallel import sequence_parallel_context
from nar_scale.training.engine.zero_engine import ZeroEngine
from nar_scale.training.environment import write_environment
from nar_scale.training.fault_tolerance.activity import Activity
from nar_scale.training.fault_tolerance.error_reporting import own_store, report_error_once
from nar_scale.training.fault_tolerance.error_translation import translate_errors
from nar_scale.training.fault_tolerance.preemption import StopAgreement, StopRequest
from nar_scale.training.fault_tolerance.run_lease import RunLease, find_loss
from nar_scale.training.fault_tolerance.watchdog import Watchdog, timeout_beyond_watchdog
from nar_scale.training.metrics.events import ATTEMPTS, COMPLETE, RESUMED, STARTED, STOPPED, EventLog
from nar_scale.training.metrics.writer import MetricsWriter
from nar_scale.training.preflight import check_nodes
from nar_scale.training.start_summary import (
    start_from_checkpoint,
    start_from_nothing,
    start_from_other_weights,
    start_summary,
)
from nar_scale.training.trainer import RunContext, Trainer

_logger = logging.getLogger(__name__)


def train(
    config: Config,
    world: World,
    resume: str = "auto",
    init_from: Path | None = None,
    callbacks: Sequence[Callback] = (),
) -> bool:
    """Train as the config says, resuming where an earlier attempt stopped; on all ranks.

    Args:
        world: this process, connected to its peers.
        resume: `auto` for the newest good checkpoint of the run directory if there is one, `never`, or the
            path of a checkpoint (`RUN/checkpoints/step-000001000`).
        init_from: a consolidated or a training checkpoint whose weights a run that resumes nothing starts from.
        callbacks: called after those of the run itself.

    Returns:
        whether the run is complete; if not, it was asked to stop and has saved.

    Raises:
        UserError: anything the user can fix.
        PeerLostError: another process has ended without reporting an error.
    """
    activity = Activity()
    own_store()  # a connection that is there when others are not
    world.set_collective_timeout(timeout_beyond_watchdog(config.faults))
    request = StopRequest(world.is_main, activity, config.faults.stop_deadline_seconds)
    start = _Start(resume, init_from)
    with translate_errors(activity, config, world.device):
        request.install()
        try:
            check_ranks_alike(world, config)
            resolved = resolve_deepspeed_config(config, world.size)
            check_machine(config, world.device)
            world = world.with_sequence_parallel_groups(config.training.sequence_parallel_size)
            with _run_directory(config, world) as store:
                return _train(config, resolved, world, store, start, request, callbacks)
        finally:
            request.restore()


def check(config: Config, world: World) -> None:
    """Check what `train` checks before it builds the model, on all ranks, and write nothing that lasts.

    Raises:
        UserError: anything the user can fix; names the host.
        PeerLostError: another process has ended without reporting an error.
    """
    own_store()
    with translate_errors(Activity(), config, world.device):
        check_ranks_alike(world, config)
        resolve_deepspeed_config(config, world.size)
        check_machine(config, world.device)
        with _run_directory(config, world):
            data = open_training_data(config, world)
    if world.is_main:
        _logger.info("data: %s", data.summary)
        _logger.info("nothing is in the way of a run on %d rank(s)", world.size)


@dataclass(frozen=True)
class _Start:
    """Where a run starts: see `train`."""

    resume: str
    init_from: Path | None


@contextmanager
def _run_directory(config: Config, world: World) -> Iterator[CheckpointStore]:
    """A `with` block in which no other run uses the run directory; gives the checkpoints in it. On all ranks.

    A run that writes nothing leaves nothing behind.

    Raises:
        UserError: the directory cannot be written, or another run uses it.
    """
    directory = Path(str(config.training.run_directory))
    store = CheckpointStore(directory / "checkpoints")
    with ExitStack() as held:

        def hold() -> Holder:
            held.enter_context(removed_if_empty(store.directory))
            check_writable(store)
            holder = Holder.of_this_process()
            held.enter_context(RunLease(directory, _end_process, holder)).acquire()
            return holder

        holder = on_main(world, hold)
        check_writable(store)
        check_nodes(world, directory, config.data)
        try:
            yield store
        except Exception:
            if problem := find_loss(directory, holder):  # the error may come of what the other run has changed
                _end_process(problem)
            raise


def _end_process(problem: str) -> None:
    """End this process at once: what it would still write would damage what another run writes."""
    report(Kind.USER_ERROR, problem)
    report_error_once(problem)
    os._exit(2)


def _train(
    config: Config,
    resolved: Mapping[str, Any],
    world: World,
    store: CheckpointStore,
    start: _Start,
    request: StopRequest,
    more_callbacks: Sequence[Callback],
) -> bool:
    directory = store.directory.parent
    data = open_training_data(config, world)
    source, step = find_checkpoint(store, start.resume, world)
    own_step = step if source.directory.resolve() == store.directory.resolve() else None
    if world.is_main:
        store.clean_up(own_step or 0)

    engine = _build_engine(config, resolved, world, data.sample_format.vocabulary_size)
    state = _first_state(config, world, engine, data)
    origin = start_from_nothing(config)
    if step is not None:
        state = _resume(config, engine, data, source, step, state)
        origin = start_from_checkpoint(config, state, source.path(step))
    elif start.init_from is not None:
        trained, remarks = start_from_weights(engine, start.init_from)
        origin = "; ".join((start_from_other_weights(config, start.init_from, trained), *remarks))
    if step is not None and start.init_from is not None and world.is_main:
        _logger.info("--init-from %s is not used, since there is a checkpoint to go on from", start.init_from)
    finished = own_step is not None and is_finished(config, store.path(own_step), own_step)
    events = EventLog(directory) if world.is_main else None
    checkpointer = Checkpointer(store, config, world, state.step, events)
    checkpointer.start_thread()
    if own_step is not None:
        checkpointer.continue_from(own_step)

    writer = None
    if world.is_main:
        if not finished:
            write_record(config, resolved, directory, None if step is None else source.path(step), state.step)
            write_shard_list(directory, data.fingerprint, data.sources)
            parameters = sum(map(full_size, engine.module.parameters()))
            write_environment(directory, world.device, world.size, parameters)
        writer = MetricsWriter(directory, state.step)
        if not finished:
            writer.settings(config, resolved)
            if step is not None:
                writer.event(state.step, RESUMED, f"went on from {source.path(step)}")
            elif events is not None:
                events.write(state.step, STARTED, "")
        if attempts := read_attempts(directory):
            writer.event(state.step, ATTEMPTS, tell_attempts(attempts, os.environ))
        _logger.info(start_summary(config, world, engine, data, state, origin))
    callbacks = (*_callbacks(config, data, directory, writer, checkpointer), *more_callbacks)
    context = RunContext(config, world, engine, data, request.activity, StopAgreement(request, world))
    trainer = Trainer(context, state, checkpointer, callbacks)
    try:
        with Watchdog(request.activity, world, directory, config.faults):
            complete = trainer.run()
    finally:
        trainer.close()
        for callback in callbacks:
            callback.close()
        if writer is not None:
            writer.close()
    if events is not None:
        if not finished:
            events.write(trainer.state.step, COMPLETE if complete else STOPPED, "")
        _logger.info(_farewell(config, complete, finished, trainer.state, store))
    return complete


def _build_engine(config: Config, resolved: Mapping[str, Any], world: World, vocabulary_size: int) -> ZeroEngine:
    """The engine with new weights."""
    torch.manual_seed(config.training.seed)
    initialize_deepspeed()
    with sharded_initialization(resolved):
        wrapper = build_wrapper(config, vocabulary_size)
    engine = build_engine(wrapper, config, resolved, world)
    if world.sp_group is not None:
        engine.module.sequence_parallel = sequence_parallel_context(world)
    return engine


def _first_state(config: Config, world: World, engine: ZeroEngine, data: TrainingData) -> TrainingState:
    """Where a run starts that resumes nothing."""
    return TrainingState(
        step=0,
        samples=0,
        fingerprint=data.fingerprint,
        seed=config.training.seed,
        global_batch_size=config.training.global_batch_size,
        world_size=world.size,
        zero_stage=engine.stage,
        vocabulary_size=data.sample_format.vocabulary_size,
        tokenizer=data.tokenizer,
        end_token=data.end_token,
        source_samples=data.consumed(0),
        special_tokens=data.special_tokens,
    )


def _resume(
    config: Config, engine: ZeroEngine, data: TrainingData, source: CheckpointStore, step: int, first: TrainingState
) -> TrainingState:
    """Load a checkpoint into the engine; returns where the run goes on.

    Args:
        source: whose checkpoint of `step` it is.
        first: where the run would start from nothing.

    Raises:
        CheckpointError: it cannot be read, or the run has other data or another model.
    """
    path = source.path(step)
    before = load_config(path / CONFIG_FILE)
    check_same_model(config, before, path)
    check_same_batch_sizes(config, before, path, step)
    saved = load_checkpoint(source, step, engine, config)
    check_same_stream(saved, first, data.consumed(saved.samples), data.sources, config.training, path)
    # the ranks may be others, and a cache or a data set may have moved
    return replace(
        saved,
        global_batch_size=first.global_batch_size,
        world_size=first.world_size,
        zero_stage=first.zero_stage,
        tokenizer=first.tokenizer or saved.tokenizer,
    )


def _callbacks(
    config: Config, data: TrainingData, directory: Path, writer: MetricsWriter | None, checkpointer: Checkpointer
) -> tuple[Callback, ...]:
    """Those of every run, in the order in which they are called."""
    return (
        *([MuonCheck()] if config.optimizer.kind == "muon" else []),
        MetricsReporter(config, data.sources, writer),
        checkpointer,  # before what may fail or take long
        Evaluator(data.validation, writer),
        SampleWriter(writer),
        Profiler(directory),
    )


def _farewell(config: Config, complete: bool, finished: bool, state: TrainingState, store: CheckpointStore) -> str:
    end = "done" if complete else "stopped as asked; run the same command to go on"
    if finished:
        end = "done before; nothing was left to train"
    saved = f"checkpoint {store.path(state.step)}" if state.step else "nothing to save yet"
    return f"step {state.step}/{steps_of_run(config)}, {end}; {saved}"
