"""A training run from its config: set everything up, train, save."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import torch

from nar_scale.checkpoint import CONFIG_FILE, CheckpointStore, TrainingState, find_damage
from nar_scale.config import Config, ModelConfig, dump_config, load_config, resolve_deepspeed_config
from nar_scale.errors import CheckpointError
from nar_scale.files import write_atomically
from nar_scale.objectives import build_wrapper
from nar_scale.training.data import TrainingData, open_training_data
from nar_scale.training.distributed import World
from nar_scale.training.engine import build_engine, sharded_from_birth
from nar_scale.training.evaluating import Evaluator
from nar_scale.training.monitor import Monitor
from nar_scale.training.performance import full_size
from nar_scale.training.phase import Phase
from nar_scale.training.reporting import Reporter
from nar_scale.training.samples import SampleWriter
from nar_scale.training.saving import Saver, check_writable, load_checkpoint
from nar_scale.training.stop import StopRequest
from nar_scale.training.trainer import Trainer

# how a model is computed rather than what it is
_FREE = ("dropout", "activation_checkpointing", "attention_kernel", "compile", "logits_chunk_size")
# what a checkpoint cannot be resumed with when it has changed
_FIXED = (
    *(f"model.{name}" for name in ModelConfig.model_fields if name not in _FREE),
    "objective.kind",
    "objective.block_size",
    "objective.num_classes",
    "objective.prefix_length",
    "objective.self_conditioning",
    "objective.self_token_critic",
    "data.field",
    "data.class_field",
    "data.document_field",
    "data.sequential",
    "data.shuffle_window",
    "training.seed",
    "training.global_batch_size",
)


def train(config: Config, world: World, resume: str = "auto") -> bool:
    """Train as the config says, resuming where an earlier attempt stopped.

    Args:
        world: this process, connected to its peers.
        resume: `auto` for the newest good checkpoint of the run directory if there is one, `never`, or the
            path of a checkpoint (`RUN/checkpoints/step-000001000`).

    Returns:
        whether the run is complete; if not, it was asked to stop and has saved.

    Raises:
        UserError: anything the user can mend; on every rank.
    """
    stop = StopRequest(watch_file=world.is_main)
    resolved = resolve_deepspeed_config(config, world.size)
    directory = Path(str(config.training.run_directory))
    store = CheckpointStore(directory / "checkpoints")
    check_writable(store)
    data = open_training_data(config, world)
    vocabulary_size = data.sample_format.vocabulary_size

    source, step = _find_checkpoint(store, resume, world)
    torch.manual_seed(config.training.seed)
    with sharded_from_birth(config, world):
        wrapper = build_wrapper(config, vocabulary_size)
    parameters = sum(map(full_size, wrapper.parameters()))
    engine = build_engine(wrapper, config, world)
    state = TrainingState(
        step=0,
        samples=0,
        fingerprint=data.fingerprint,
        seed=config.training.seed,
        global_batch_size=config.training.global_batch_size,
        world_size=world.size,
        zero_stage=engine.zero_optimization_stage(),
        vocabulary_size=vocabulary_size,
        tokenizer=data.tokenizer,
        end_token=data.end_token,
        source_samples=data.consumed(0),
    )
    if step is not None:
        _check_same_model(config, source.path(step))
        saved = load_checkpoint(source, step, engine, world)
        _check_same_stream(saved, state, data.consumed(saved.samples), source.path(step))
        if world.is_main and source.directory.resolve() == store.directory.resolve():
            store.supersede_after(step)
        # a cache or a data set may be in another place than it was
        state = replace(saved, tokenizer=data.tokenizer or saved.tokenizer)
    if world.is_main:
        write_atomically(directory / "config.yaml", dump_config(config).encode())
        write_atomically(directory / "deepspeed.json", (json.dumps(resolved, indent=2) + "\n").encode())
        print(_summary(config, world, parameters, data, state, directory), flush=True)
        print(f"config: {json.dumps(config.model_dump(mode='json'))}\ndeepspeed: {json.dumps(resolved)}", flush=True)
    monitor = Monitor(directory, state.step, config.training.steps) if world.is_main else None
    stream = data.stream(config, world, state.samples)
    hooks = (Reporter(monitor), Evaluator(monitor), SampleWriter(monitor), Saver(store, state.step))
    trainer = Trainer(config, engine, world, stream, data, state, hooks, stop, Phase())
    try:
        complete = trainer.run()
    finally:
        stop.restore()
        if monitor is not None:
            monitor.close()
    if world.is_main:
        print(_farewell(config, complete, trainer.state, store), flush=True)
    return complete


def _find_checkpoint(store: CheckpointStore, resume: str, world: World) -> tuple[CheckpointStore, int | None]:
    if resume == "never":
        if store.steps():
            raise CheckpointError(
                f"{store.directory} holds checkpoints up to step {store.steps()[-1]}; --resume never would overwrite "
                "them: remove them or set another training.run_directory"
            )
        return store, None
    problem, step = None, None
    if resume != "auto":
        path = Path(resume)
        store = CheckpointStore(path.parent)
        steps = {store.path(step): step for step in store.steps()}
        if path not in steps:
            raise CheckpointError(f"--resume {resume}: no checkpoint there; give RUN/checkpoints/step-NNNNNNNNN")
        step = steps[path]
        problem = find_damage(path) if world.is_main else None
    elif world.is_main:
        try:
            step = store.newest_good(report=print)
        except CheckpointError as error:
            problem = str(error)
    problem, step = world.broadcast((problem, step))
    if problem is not None:
        raise CheckpointError(problem)
    return store, step


def _check_same_stream(saved: TrainingState, state: TrainingState, consumed: dict[str, int], path: Path) -> None:
    """Refuse to go on with other data than the checkpoint has seen."""
    for name, remedy in (
        ("fingerprint", "the shards in data.directory have changed since"),
        ("vocabulary_size", "the vocabulary has changed since"),
    ):
        before, now = getattr(saved, name), getattr(state, name)
        if before != now:
            raise CheckpointError(
                f"{path} has {name} {before}, this run {now}: {remedy}, or start anew in another training.run_directory"
            )
    if saved.source_samples != consumed:
        raise CheckpointError(
            f"{path} has consumed {_counts(saved.source_samples)}, but this mixture would have consumed "
            f"{_counts(consumed)} by then: set the weights back, and change them by a data.curriculum from step "
            f"{saved.step} or later on"
        )


def _counts(consumed: dict[str, int]) -> str:
    return ", ".join(f"{number:,} samples of {name}" for name, number in consumed.items()) or "a single source"


def _check_same_model(config: Config, path: Path) -> None:
    """Refuse to go on with settings that give the weights or the position in the stream another meaning."""
    saved = load_config(path / CONFIG_FILE)
    for key in _FIXED:
        section, name = key.split(".")
        before, now = getattr(getattr(saved, section), name), getattr(getattr(config, section), name)
        if before != now:
            raise CheckpointError(
                f"{path} was trained with {key} {before}, not {now}; set it back, or start anew in another "
                "training.run_directory"
            )


def _summary(
    config: Config, world: World, parameters: int, data: TrainingData, state: TrainingState, directory: Path
) -> str:
    training = config.training
    tokens = training.global_batch_size * config.model.max_seq_len
    accumulation = training.global_batch_size // (training.micro_batch_size * world.size)
    start = f"resuming at step {state.step} of" if state.step else "training"
    return "\n".join(
        (
            f"{start} {training.steps:,} steps: {config.objective.kind.replace('_', '-')}, {parameters / 1e6:.2f} M "
            f"parameters, {training.precision}, ZeRO {state.zero_stage}",
            f"data: {data.summary}; {tokens:,} tokens a step = "
            f"{world.size} rank(s) x {accumulation} micro-batch(es) of {training.micro_batch_size} x "
            f"{config.model.max_seq_len} tokens",
            f"run: {directory} (resolved configuration in config.yaml and deepspeed.json)",
        )
    )


def _farewell(config: Config, complete: bool, state: TrainingState, store: CheckpointStore) -> str:
    end = "done" if complete else "stopped as asked; run the same command to go on"
    saved = f"checkpoint {store.path(state.step)}" if state.step else "nothing to save yet"
    return f"step {state.step}/{config.training.steps}, {end}; {saved}"
