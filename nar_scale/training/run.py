"""A training run from its config: set everything up, train, save."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from nar_scale.checkpoint import CONFIG_FILE, CheckpointStore, TrainingState
from nar_scale.config import Config, dump_config, load_config, resolve_deepspeed_config, steps_of_run
from nar_scale.files import write_atomically
from nar_scale.model.parameters import full_size
from nar_scale.objectives import build_wrapper
from nar_scale.training.callbacks.checkpointer import Saver
from nar_scale.training.callbacks.evaluator import Evaluator
from nar_scale.training.callbacks.metrics_reporter import Reporter
from nar_scale.training.callbacks.muon_check import MuonCheck
from nar_scale.training.callbacks.profiler import Profiler
from nar_scale.training.callbacks.sampler import SampleWriter
from nar_scale.training.checkpointing.io import check_writable, load_checkpoint
from nar_scale.training.checkpointing.resume import (
    check_same_batch_sizes,
    check_same_model,
    check_same_stream,
    find_checkpoint,
    start_from_weights,
)
from nar_scale.training.data.build import TrainingData, open_training_data
from nar_scale.training.distributed import World
from nar_scale.training.engine.build import build_engine, sharded_from_birth
from nar_scale.training.engine.sequence_parallel import share_sequences
from nar_scale.training.fault_tolerance.activity import Phase
from nar_scale.training.fault_tolerance.divergence import Guard
from nar_scale.training.fault_tolerance.error_reporting import own_store
from nar_scale.training.fault_tolerance.error_translation import in_plain_words
from nar_scale.training.fault_tolerance.preemption import StopRequest
from nar_scale.training.fault_tolerance.watchdog import Watchdog, beyond_all_limits
from nar_scale.training.metrics.stragglers import Stragglers
from nar_scale.training.metrics.writer import Monitor
from nar_scale.training.trainer import Hook, Trainer


def train(
    config: Config,
    world: World,
    resume: str = "auto",
    init_from: Path | None = None,
    more_hooks: Sequence[Hook] = (),
) -> bool:
    """Train as the config says, resuming where an earlier attempt stopped.

    Args:
        world: this process, connected to its peers.
        resume: `auto` for the newest good checkpoint of the run directory if there is one, `never`, or the
            path of a checkpoint (`RUN/checkpoints/step-000001000`).
        init_from: a consolidated or a training checkpoint whose weights a run that resumes nothing starts from.
        more_hooks: called after those of the run itself.

    Returns:
        whether the run is complete; if not, it was asked to stop and has saved.

    Raises:
        UserError: anything the user can mend.
        PeerLostError: another process has ended without a word.
    """
    phase = Phase()
    own_store()  # a connection that is there when others are not
    world.wait_up_to(beyond_all_limits(config.faults))
    with in_plain_words(phase, config, world.device):
        stop = StopRequest(world.is_main, phase, config.faults.stop_deadline_seconds)
        try:
            return _train(config, world, resume, init_from, phase, stop, more_hooks)
        finally:
            stop.restore()


def _train(
    config: Config,
    world: World,
    resume: str,
    init_from: Path | None,
    phase: Phase,
    stop: StopRequest,
    more_hooks: Sequence[Hook],
) -> bool:
    resolved = resolve_deepspeed_config(config, world.size)
    world = world.sharing_sequences(config.training.sequence_parallel_size)
    directory = Path(str(config.training.run_directory))
    store = CheckpointStore(directory / "checkpoints")
    check_writable(store)
    data = open_training_data(config, world)
    source, step = find_checkpoint(store, resume, world)
    own_step = step if source.directory.resolve() == store.directory.resolve() else None
    if world.is_main:
        store.clean_up(own_step or 0)
    engine, parameters = _build(config, world, data.sample_format.vocabulary_size)
    state = _start(config, world, engine, data, (source, step), init_from)
    saver = Saver(store, config, world, state.step)
    if own_step is not None:
        saver.go_back(own_step)
    monitor = None
    if world.is_main:
        print(_summary(config, world, parameters, data, state, directory), flush=True)
        monitor = _begin_records(config, resolved, directory, state)
    stream = data.stream(config, world, state.samples, state.step)
    hooks: tuple[Hook, ...] = (
        *([MuonCheck(engine)] if config.optimizer.kind == "muon" else []),
        Reporter(monitor, Stragglers(config.faults.straggler_ratio)),
        saver,  # before what may fail or take long
        Evaluator(monitor),
        SampleWriter(monitor),
        Profiler(directory, config.logging, engine, world, monitor, state.step),
        *more_hooks,
    )

    def reload() -> int | None:
        saver.settle()
        _, newest = find_checkpoint(store, "auto", world)
        if newest is not None:
            load_checkpoint(store, newest, engine, config)
            saver.go_back(newest)
            if monitor is not None:
                monitor.rewind(newest)
        return newest

    guard = Guard(config.faults, engine, world, reload)
    trainer = Trainer(config, engine, world, stream, data, state, hooks, stop, phase, guard)
    try:
        with Watchdog(phase, world, directory, config.faults):
            complete = trainer.run()
    finally:
        saver.close()
        if monitor is not None:
            monitor.close()
    if world.is_main:
        print(_farewell(config, complete, trainer.state, store), flush=True)
    return complete


def _build(config: Config, world: World, vocabulary_size: int) -> tuple[Any, int]:
    """The engine with new weights, and how many they are."""
    torch.manual_seed(config.training.seed)
    with sharded_from_birth(config, world):
        wrapper = build_wrapper(config, vocabulary_size)
    parameters = sum(map(full_size, wrapper.parameters()))
    engine = build_engine(wrapper, config, world)
    if world.sequence_group is not None:
        wrapper.share = share_sequences(world)
    return engine, parameters


def _start(
    config: Config,
    world: World,
    engine: Any,
    data: TrainingData,
    checkpoint: tuple[CheckpointStore, int | None],
    init_from: Path | None,
) -> TrainingState:
    """Give the engine what it starts from: a checkpoint, other weights, or nothing; returns where that is."""
    source, step = checkpoint
    state = TrainingState(
        step=0,
        samples=0,
        fingerprint=data.fingerprint,
        seed=config.training.seed,
        global_batch_size=config.training.global_batch_size,
        world_size=world.size,
        zero_stage=engine.zero_optimization_stage(),
        vocabulary_size=data.sample_format.vocabulary_size,
        tokenizer=data.tokenizer,
        end_token=data.end_token,
        source_samples=data.consumed(0),
    )
    if step is not None:
        path = source.path(step)
        before = load_config(path / CONFIG_FILE)
        check_same_model(config, before, path)
        check_same_batch_sizes(config, before, path, step)
        saved = load_checkpoint(source, step, engine, config)
        check_same_stream(saved, state, data.consumed(saved.samples), config.training, path)
        # the ranks may be others, and a cache or a data set may be in another place than it was
        return replace(
            saved,
            global_batch_size=state.global_batch_size,
            world_size=state.world_size,
            zero_stage=state.zero_stage,
            tokenizer=data.tokenizer or saved.tokenizer,
        )
    if init_from is not None:
        start_from_weights(engine, init_from)
    return state


def _begin_records(config: Config, resolved: dict[str, Any], directory: Path, state: TrainingState) -> Monitor:
    """Write down and print the settings of the run, which the main process does, and go on with its logs."""
    write_atomically(directory / "config.yaml", dump_config(config).encode())
    write_atomically(directory / "deepspeed.json", (json.dumps(resolved, indent=2) + "\n").encode())
    print(f"config: {json.dumps(config.model_dump(mode='json'))}\ndeepspeed: {json.dumps(resolved)}", flush=True)
    monitor = Monitor(directory, state.step, steps_of_run(config))
    monitor.settings(config, resolved)
    return monitor


def _summary(
    config: Config, world: World, parameters: int, data: TrainingData, state: TrainingState, directory: Path
) -> str:
    training = config.training
    tokens = training.global_batch_size * config.model.max_seq_len
    accumulation = training.global_batch_size // (training.micro_batch_size * world.data_size)
    start = f"resuming at step {state.step} of" if state.step else "training"
    ranks = f"{world.size} rank(s)"
    if world.sequence_size > 1:
        ranks = f"{world.data_size} group(s) of {world.sequence_size} ranks that share sequences"
    return "\n".join(
        (
            f"{start} {steps_of_run(config):,} steps: {config.objective.kind.replace('_', '-')}, "
            f"{parameters / 1e6:.2f} M parameters, {training.precision}, ZeRO {state.zero_stage}",
            f"data: {data.summary}; {tokens:,} tokens a step = "
            f"{ranks} x {accumulation} micro-batch(es) of {training.micro_batch_size} x "
            f"{config.model.max_seq_len} tokens",
            f"run: {directory} (resolved configuration in config.yaml and deepspeed.json)",
        )
    )


def _farewell(config: Config, complete: bool, state: TrainingState, store: CheckpointStore) -> str:
    end = "done" if complete else "stopped as asked; run the same command to go on"
    saved = f"checkpoint {store.path(state.step)}" if state.step else "nothing to save yet"
    return f"step {state.step}/{steps_of_run(config)}, {end}; {saved}"
