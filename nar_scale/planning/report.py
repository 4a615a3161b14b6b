"""What a run would be, without running it: its settings in full, its size, and what it needs."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch

from nar_scale.checkpoint import CheckpointStore
from nar_scale.checkpoint.weights import check_weights_fit
from nar_scale.config import (
    Config,
    SourceConfig,
    dump_config,
    gradient_accumulation_steps,
    resolve_deepspeed_config,
    samples_before,
    steps_of_run,
)
from nar_scale.data import DatasetInfo
from nar_scale.errors import DataError
from nar_scale.model.layers import Embedding
from nar_scale.model.parameters import full_size
from nar_scale.objectives import Objective, build_wrapper
from nar_scale.planning.data_sets import check_lengths, mixture_of, padding_warnings, vocabulary_of
from nar_scale.planning.flops import flops_per_token
from nar_scale.planning.memory_estimate import GIBIBYTE, estimate_memory


def describe_run(config: Config, ranks: int, init_from: Path | None = None, in_full: bool = True) -> str:
    """What follows from a config and a number of ranks; nothing is written, no weight is made.

    Args:
        config: of the run.
        ranks: how many processes there would be.
        init_from: a checkpoint whose weights the run is to start from, of which names and shapes are read.
        in_full: show all settings after the summary, DeepSpeed's too.

    Raises:
        ConfigError: the batch does not divide, or the vocabulary is not known.
        DataError: the data do not fit the model.
        CheckpointError: the weights to start from do not.
    """
    resolved = resolve_deepspeed_config(config, ranks)
    wrapper, infos = model_of(config)
    memory = estimate_memory(wrapper, config, resolved, ranks)
    on_device = sum(part.size for part in memory if part.location == "device")
    return "\n".join(
        (
            *summarize(config, ranks, wrapper, infos, init_from),
            "",
            "memory of a rank, estimated, without the libraries' own:",
            *(f"  {part}" for part in memory if part.size),
            f"  {'on the device':<18}{on_device / GIBIBYTE:>10.3f} GiB",
            *(("", settings_in_full(config, ranks)) if in_full else ()),
        )
    )


def model_of(config: Config) -> tuple[Objective, dict[str, DatasetInfo | None]]:
    """The wrapper that a config means, on the `meta` device, and what is known of its data sets.

    Raises:
        ConfigError: the vocabulary is not known.
        DataError: the data do not fit the model.
    """
    sources = _sources(config)
    infos = {name: _find(source.directory, config) for name, source in sources.items()}
    check_lengths(config.model.max_seq_len, sources, infos)
    with torch.device("meta"):
        return build_wrapper(config, vocabulary_of(config.data, sources, infos).size), infos


def summarize(
    config: Config,
    ranks: int,
    wrapper: Objective,
    infos: Mapping[str, DatasetInfo | None],
    init_from: Path | None = None,
) -> list[str]:
    """Lines on the size of the model, batches, length and data.

    Args:
        wrapper: from `model_of`, as `infos`.
        init_from: see `describe_run`.

    Raises:
        ConfigError: the batch does not divide.
        CheckpointError: the weights to start from do not fit.
    """
    return [
        f"model:  {_size(wrapper)}",
        *([f"start:  {_start(wrapper, config, init_from)}"] if init_from is not None else []),
        f"batch:  {_batch(config, ranks)}",
        f"length: {_length(config, wrapper)}",
        f"data:   {_data(config, infos)}",
        *(f"warning: {warning}" for warning in padding_warnings(config.model.max_seq_len, _sources(config), infos)),
    ]


def settings_in_full(config: Config, ranks: int) -> str:
    """The resolved configuration, and that of DeepSpeed for so many ranks."""
    resolved = resolve_deepspeed_config(config, ranks)
    return (
        f"# resolved configuration\n{dump_config(config)}\n"
        f"# DeepSpeed configuration for {ranks} rank(s)\n{json.dumps(resolved, indent=2)}"
    )


def _sources(config: Config) -> Mapping[str, SourceConfig]:
    return config.data.sources or {"": SourceConfig(directory=str(config.data.directory))}


def _find(directory: str, config: Config) -> DatasetInfo | None:
    """What is known of a data set, if it is there."""
    try:
        return DatasetInfo.find(directory, config.data.storage_options)
    except DataError:
        if config.data.vocabulary_size is None:
            raise
        return None


def _size(wrapper: Objective) -> str:
    total = sum(map(full_size, wrapper.parameters()))
    tables = {id(layer.weight): layer.weight for layer in wrapper.modules() if isinstance(layer, Embedding)}
    embeddings = sum(map(full_size, tables.values()))
    return f"{total:,} parameters: {embeddings:,} in embeddings, {total - embeddings:,} elsewhere"


def _start(wrapper: Objective, config: Config, init_from: Path) -> str:
    store = CheckpointStore(Path(str(config.training.run_directory)) / "checkpoints")
    if steps := store.steps():
        return f"{store.path(steps[-1])} is resumed, so the weights of {init_from} are not used"
    remarks = check_weights_fit(wrapper, init_from)
    return "; ".join(
        (f"the weights of {init_from}, which fit", *remarks, "their checksums are compared when the run starts")
    )


def _batch(config: Config, ranks: int) -> str:
    training = config.training
    groups = ranks // training.sequence_parallel_size
    starts = [stage.from_step for stage in training.batch_size_warmup] or [0]
    sizes = []
    for step in starts:
        accumulation = gradient_accumulation_steps(config, ranks, step)
        sequences = accumulation * training.micro_batch_size * groups
        since = f"from step {step} " if len(starts) > 1 else ""
        sizes.append(
            f"{since}{sequences:,} sequences = {groups} rank(s) x {accumulation} micro-batch(es) of "
            f"{training.micro_batch_size}, {sequences * config.model.max_seq_len:,} tokens a step"
        )
    shared = f", each sequence shared by {training.sequence_parallel_size} ranks" if groups < ranks else ""
    return "; ".join(sizes) + shared


def _length(config: Config, wrapper: Objective) -> str:
    steps = steps_of_run(config)
    samples = samples_before(config.training, steps)
    tokens = samples * config.model.max_seq_len
    flops = tokens * flops_per_token(wrapper.net, wrapper.copies)
    return f"{steps:,} steps, {samples:,} sequences, {tokens:,} tokens, {flops:.4g} FLOPs"


def _data(config: Config, infos: Mapping[str, DatasetInfo | None]) -> str:
    """How often each source is passed over."""
    sizes: dict[str, int] = {}
    for name, info in infos.items():
        pattern = config.data.sources[name].train if name else None
        split = (pattern or config.data.train).removesuffix("/*.tar")
        if info is None or split not in info.splits:
            return "not prepared here, so the number of epochs is not known"
        sizes[name] = info.splits[split].samples
    samples = samples_before(config.training, steps_of_run(config))
    taken = {"": samples}
    if config.data.sources:
        mixture = mixture_of(config, {name: np.array([size]) for name, size in sizes.items()})
        taken = dict(zip(sizes, mixture.consumed(samples).tolist()))
    return "; ".join(
        f"{name + ': ' if name else ''}{size:,} sequences, {taken[name] / size:.3g} epochs"
        for name, size in sizes.items()
    )
