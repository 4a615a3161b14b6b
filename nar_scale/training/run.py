"""A training run from its config: set everything up, train, save."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from nar_scale.checkpoint import CONFIG_FILE, CheckpointStore, TrainingState, find_damage
from nar_scale.config import Config, ModelConfig, dump_config, load_config, resolve_deepspeed_config
from nar_scale.data import ClassReader, DatasetIndex, DatasetInfo, TokenStream
from nar_scale.errors import CheckpointError, ConfigError, DataError
from nar_scale.files import write_atomically
from nar_scale.objectives import build_wrapper
from nar_scale.training.distributed import World
from nar_scale.training.engine import build_engine, sharded_from_birth
from nar_scale.training.held_out import HeldOut
from nar_scale.training.monitor import Monitor
from nar_scale.training.performance import full_size
from nar_scale.training.saving import check_writable, load_checkpoint
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
    info = _dataset_info(config)
    vocabulary_size, tokenizer = _vocabulary(config, info)
    index = _open_index(config, config.data.train, config.data.field, world)
    classes = _open_classes(config, config.data.train, world)

    source, step = _find_checkpoint(store, resume, world)
    torch.manual_seed(config.training.seed)
    with sharded_from_birth(config, world):
        wrapper = build_wrapper(config, vocabulary_size)
    parameters = sum(map(full_size, wrapper.parameters()))
    engine = build_engine(wrapper, config, world)
    state = TrainingState(
        step=0,
        samples=0,
        fingerprint=index.fingerprint,
        seed=config.training.seed,
        global_batch_size=config.training.global_batch_size,
        world_size=world.size,
        zero_stage=engine.zero_optimization_stage(),
        vocabulary_size=vocabulary_size,
        tokenizer=tokenizer,
        end_token=info.end_token if info else None,
    )
    if step is not None:
        _check_same_model(config, source.path(step))
        saved = load_checkpoint(source, step, engine, world)
        _check_same_stream(saved, state, source.path(step))
        if world.is_main and source.directory.resolve() == store.directory.resolve():
            store.supersede_after(step)
        state = saved
    if world.is_main:
        write_atomically(directory / "config.yaml", dump_config(config).encode())
        write_atomically(directory / "deepspeed.json", (json.dumps(resolved, indent=2) + "\n").encode())
        print(_summary(config, world, parameters, index, state, directory), flush=True)
        print(f"config: {json.dumps(config.model_dump(mode='json'))}\ndeepspeed: {json.dumps(resolved)}", flush=True)
    monitor = Monitor(directory, state.step, config.training.steps) if world.is_main else None
    stream = TokenStream(
        index,
        sequence_length=config.model.max_seq_len,
        vocabulary_size=vocabulary_size,
        seed=config.training.seed,
        global_batch_size=config.training.global_batch_size,
        micro_batch_size=config.training.micro_batch_size,
        rank=world.rank,
        world_size=world.size,
        window_shards=config.data.shuffle_window,
        workers=config.data.loader_workers,
        start_sample=state.samples,
        pin_memory=world.device.type == "cuda",
        classes=classes,
    )
    held_out = _held_out(config, world, info, vocabulary_size)
    trainer = Trainer(config, engine, world, stream, state, store, held_out, monitor, stop)
    try:
        complete = trainer.run()
    finally:
        stop.restore()
        if monitor is not None:
            monitor.close()
    if world.is_main:
        print(_farewell(config, complete, trainer.state, store), flush=True)
    return complete


def _dataset_info(config: Config) -> DatasetInfo | None:
    directory = Path(config.data.directory)
    if not directory.is_dir():
        raise DataError(f"data.directory {directory} does not exist; make it with launcher/prepare.py")
    return DatasetInfo.load(directory) if (directory / "dataset.json").exists() else None


def _vocabulary(config: Config, info: DatasetInfo | None) -> tuple[int, str | None]:
    """The number of token ids, and the tokenizer as `byte`, an absolute path or None."""
    size = config.data.vocabulary_size or (info.vocabulary_size if info else None)
    if size is None:
        raise ConfigError(f"data.vocabulary_size is needed, as {config.data.directory} has no dataset.json")
    name = config.data.tokenizer or (info.tokenizer if info else None)
    if name in (None, "byte"):
        return size, name
    folder = Path() if config.data.tokenizer else Path(config.data.directory)
    return size, str((folder / str(name)).resolve())


def _open_index(config: Config, pattern: str, field: str, world: World) -> DatasetIndex:
    """Open the shards; the main process builds a missing index before the others look."""
    cache = config.data.index_directory

    def open_index() -> DatasetIndex:
        return DatasetIndex.open(
            config.data.directory, pattern, field, Path(cache) if cache else None, progress=world.is_main
        )

    problem: Any = None
    index = None
    if world.is_main:
        try:
            index = open_index()
        except DataError as error:
            problem = str(error)
    problem = world.broadcast(problem)
    if problem is not None:
        raise DataError(problem)
    return index or open_index()


def _open_classes(config: Config, pattern: str, world: World) -> ClassReader | None:
    field, num_classes = config.data.class_field, config.objective.num_classes
    if field is None or num_classes is None:
        return None
    return ClassReader(_open_index(config, pattern, field, world), num_classes)


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


def _check_same_stream(saved: TrainingState, state: TrainingState, path: Path) -> None:
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


def _held_out(config: Config, world: World, info: DatasetInfo | None, vocabulary_size: int) -> HeldOut | None:
    if not config.data.validation or not config.logging.evaluate_every:
        return None
    split = info.splits.get("validation") if info else None
    return HeldOut(
        index=_open_index(config, config.data.validation, config.data.field, world),
        sequence_length=config.model.max_seq_len,
        vocabulary_size=vocabulary_size,
        batch_size=config.training.micro_batch_size,
        samples=config.logging.evaluation_samples,
        bytes_per_token=split.bytes_per_token if split else None,
        world=world,
        classes=_open_classes(config, config.data.validation, world),
    )


def _summary(
    config: Config, world: World, parameters: int, index: DatasetIndex, state: TrainingState, directory: Path
) -> str:
    training = config.training
    tokens = training.global_batch_size * config.model.max_seq_len
    accumulation = training.global_batch_size // (training.micro_batch_size * world.size)
    start = f"resuming at step {state.step} of" if state.step else "training"
    return "\n".join(
        (
            f"{start} {training.steps:,} steps: {config.objective.kind.replace('_', '-')}, {parameters / 1e6:.2f} M "
            f"parameters, {training.precision}, ZeRO {state.zero_stage}",
            f"data: {index.num_samples:,} sequences in {len(index.shards):,} shards; {tokens:,} tokens a step = "
            f"{world.size} rank(s) x {accumulation} micro-batch(es) of {training.micro_batch_size} x "
            f"{config.model.max_seq_len} tokens",
            f"run: {directory} (resolved configuration in config.yaml and deepspeed.json)",
        )
    )


def _farewell(config: Config, complete: bool, state: TrainingState, store: CheckpointStore) -> str:
    end = "done" if complete else "stopped as asked; run the same command to go on"
    saved = f"checkpoint {store.path(state.step)}" if state.step else "nothing to save yet"
    return f"step {state.step}/{config.training.steps}, {end}; {saved}"
