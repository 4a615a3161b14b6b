"""The consolidated checkpoint: a directory that is loaded without DeepSpeed and without pickle.

config.yaml             the resolved configuration of the run
model.safetensors       the weights; of large models model-00001-of-0000N.safetensors and an index
ema.safetensors         the moving average of the weights, if the run kept one
model.json              vocabulary, tokenizer, step, and how samples are drawn
tokenizer.json          unless the tokenizer is `byte`
probe.safetensors       a recorded forward pass of the live model
manifest.json           size and checksum of every file above
README.md               the model card, which may be edited
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import torch
from pydantic import Field, TypeAdapter, ValidationError
from torch import Tensor

from nar_scale.checkpoint.directory import written_whole
from nar_scale.checkpoint.partitions import WEIGHT
from nar_scale.checkpoint.probe import check_probe, save_probe
from nar_scale.checkpoint.shards import SHARD_BYTES, read_shards, read_weight, save_weights, shard_names, stored_dtype
from nar_scale.checkpoint.store import MANIFEST, list_files, record_files, verify_integrity
from nar_scale.checkpoint.streaming import read_as_it_runs
from nar_scale.config import Config, dump_config, load_config
from nar_scale.data import Tokenizer, load_tokenizer
from nar_scale.data.tokenizers import SpecialTokens
from nar_scale.decoding import DecodeManifest
from nar_scale.errors import CheckpointError
from nar_scale.files import write_atomically
from nar_scale.model.devices import find_device
from nar_scale.objectives import Objective, build_wrapper
from nar_scale.progress import with_progress
from nar_scale.text import message_of

CONFIG_FILE, MODEL_FILE = "config.yaml", "model.json"
CARD_FILE = "README.md"

WeightKind = Literal["model", "ema"]


@dataclass(frozen=True)
class RecordedLikelihood:
    """A likelihood of validation data that a run measured at the step of a checkpoint, or before.

    Attributes:
        source: of the data; empty where there is one.
        step: optimizer steps taken.
        nats_per_token: negative log-likelihood; an upper bound where the model masks.
        standard_error: of it, over the sequences.
        bits_per_byte: the same by bytes of text; None where their number is unknown.
    """

    source: str
    step: int
    nats_per_token: float
    standard_error: float | None = None
    bits_per_byte: float | None = None


@dataclass(frozen=True)
class ModelInfo:
    """What a consolidated checkpoint records about its model beside the configuration.

    Attributes:
        vocabulary_size: number of token ids in the data.
        tokenizer: `byte`, `tokenizer.json`, or None if the run had no tokenizer.
        step: optimizer steps taken.
        samples: sequences consumed.
        dtype: of the forward pass in training.
        decode: how samples are drawn by default.
        special_tokens: how special tokens that a text spells out are encoded, see `HuggingFaceTokenizer`; "ids" where
            the file does not say.
        likelihoods: what the run measured of its validation data; empty if it measured nothing.
        license: of the model, as Hugging Face names it, such as `apache-2.0`; None if nobody has said.
    """

    vocabulary_size: Annotated[int, Field(ge=1)]
    tokenizer: str | None
    step: int
    samples: int
    dtype: str
    decode: DecodeManifest
    special_tokens: SpecialTokens = "ids"
    likelihoods: tuple[RecordedLikelihood, ...] = ()
    license: str | None = None


@dataclass(frozen=True)
class LoadedModel:
    """A model that was loaded from a consolidated checkpoint, ready to be evaluated or to generate.

    Attributes:
        wrapper: the model, in eval mode.
        config: of its run.
        info: what the checkpoint records about it.
        tokenizer: None if the run had none.
    """

    wrapper: Objective
    config: Config
    info: ModelInfo
    tokenizer: Tokenizer | None = field(repr=False)


def write_consolidated(
    output: Path,
    wrapper: Objective,
    config: Config,
    info: ModelInfo,
    probe: dict[str, Tensor],
    tokenizer_file: Path | None = None,
    shard_bytes: int = SHARD_BYTES,
    weights: Mapping[str, Tensor] | None = None,
    average: Mapping[str, Tensor] | None = None,
    card: str | None = None,
    progress: bool = True,
) -> float:
    """Write a consolidated checkpoint, which appears at `output` only if the model, read again, matches the probe.

    Args:
        output: the directory to create.
        wrapper: the model; where `weights` are given, it may be on the meta device.
        config: of the run.
        info: what is recorded about the model.
        probe: of the live model, from `run_probe`.
        tokenizer_file: is copied as `tokenizer.json`.
        shard_bytes: size of a file of weights, at most.
        weights: tensors by name, of the dtype of `wrapper`, each of which is read once; those of `wrapper` if None.
        average: the moving average of the weights in the same form, if there is one.
        card: the model card, in Markdown.
        progress: show progress bars if standard error is a terminal.

    Returns:
        the largest difference of the logits, relative to the largest logit.

    Raises:
        CheckpointError: the output exists or cannot be written, or the reloaded model is not the live one.
    """
    with written_whole(output) as writing:
        own = _weights(wrapper)
        layout = {name: (weight.dtype, tuple(weight.shape)) for name, weight in own.items()}
        save_weights(writing, weights or own, "model", shard_bytes, layout, progress)
        if average is not None:
            save_weights(writing, average, "ema", shard_bytes, layout, progress)
        (writing / CONFIG_FILE).write_text(dump_config(config))
        (writing / MODEL_FILE).write_bytes(TypeAdapter(ModelInfo).dump_json(info, indent=2) + b"\n")
        if tokenizer_file is not None:
            shutil.copyfile(tokenizer_file, writing / "tokenizer.json")
        save_probe(writing, probe)
        files = list_files(writing)
        records = record_files(writing, with_progress(files, "checksums", "file", enabled=progress))
        write_atomically(writing / MANIFEST, json.dumps(records, indent=1).encode())
        if card is not None:  # without a checksum: people add to it
            (writing / CARD_FILE).write_text(card)
        difference = check_probe(writing, stream_consolidated(writing))
    return difference


def describe_consolidated(directory: str | Path, verify: bool = True) -> LoadedModel:
    """A consolidated checkpoint without its weights: the model is on the meta device.

    Args:
        directory: of the checkpoint.
        verify: compare every file with its recorded checksum.

    Raises:
        CheckpointError: the directory is not a consolidated checkpoint, or it is damaged.
    """
    directory = Path(directory)
    config, info, wrapper = _describe(directory, verify)
    tokenizer = None
    if info.tokenizer:
        tokenizer = load_tokenizer(info.tokenizer, directory, info.decode.end_token, info.special_tokens)
    return LoadedModel(wrapper.eval(), config, info, tokenizer)


def load_consolidated(
    directory: str | Path,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = torch.float32,
    verify: bool = True,
    weights: WeightKind = "model",
) -> LoadedModel:
    """Load a consolidated checkpoint.

    Args:
        directory: of the checkpoint.
        device: that the model is moved to.
        dtype: of its weights; None for that of the files.
        verify: compare every file with its recorded checksum first.
        weights: `model` for those of the last step, `ema` for their moving average.

    Raises:
        UserError: there is no such device.
        CheckpointError: the directory is not a consolidated checkpoint, or it is damaged, its weights are not those
            that its config describes, or there is no moving average to load.
    """
    device = find_device(device)
    model = describe_consolidated(directory, verify)
    load_weights(model, Path(directory), device, dtype, weights)
    return model


def load_weights(
    model: LoadedModel,
    directory: Path,
    device: torch.device,
    dtype: torch.dtype | None = torch.float32,
    kind: WeightKind = "model",
) -> None:
    """Give a model from `describe_consolidated` its weights; arguments as in `load_consolidated`.

    Raises:
        CheckpointError: the weights are not those that its config describes, there is no moving average to load, or
            the device has too little memory.
    """
    if kind == "ema" and model.config.training.ema_decay is None:
        raise CheckpointError(f"{directory} has no moving average of the weights: its run had no training.ema_decay")
    dtype = stored_dtype(directory, kind) if dtype is None else dtype
    try:
        model.wrapper.to_empty(device=device).to(dtype).net.tie_weights()
    except RuntimeError as error:
        raise CheckpointError(f"the model of {directory} does not fit into the memory of {device}") from error
    _load_weights(directory, model.wrapper, kind)


class ConsolidatedWeights:
    """The weights of a consolidated checkpoint as a training checkpoint has them, to start another run from.

    The integrity of the files is not verified.

    Args:
        directory: of the checkpoint.

    Attributes:
        directory: of the checkpoint.
        shapes: the shape of each parameter, by name.
        kinds: `{"weight"}` for each parameter, since there is no optimizer state.
        scalars: an empty dictionary for each parameter, for the same reason.

    Raises:
        CheckpointError: as `load_consolidated`.
    """

    def __init__(self, directory: Path):
        _, _, wrapper = _describe(directory, verify=False)
        self.directory = directory
        self.shapes = {name: tuple(weight.shape) for name, weight in wrapper.named_parameters()}
        self.kinds = {name: {WEIGHT} for name in self.shapes}
        self.scalars: dict[str, dict[str, float]] = {name: {} for name in self.shapes}
        self._files = {name: file for file, name in shard_names(directory)}

    def read(self, kind: str, name: str, start: int, stop: int) -> Tensor:
        """The elements from `start` to `stop` of a flattened parameter, `[stop - start]`; `kind` is `weight`."""
        return read_weight(self._files[name], name).flatten()[start:stop]


def stream_consolidated(directory: Path) -> Objective:
    """A model that reads the weights of each block when it runs and drops them afterwards, to check a large one.

    Args:
        directory: of a consolidated checkpoint, whose integrity is verified.

    Raises:
        CheckpointError: as `load_consolidated`.
    """
    _, _, wrapper = _describe(directory, verify=True)
    files = {name: file for file, name in shard_names(directory)}
    lacking = sorted(set(_weights(wrapper)) - set(files))
    if lacking:
        raise CheckpointError(f"{directory} lacks the weights {', '.join(lacking[:3])} ({len(lacking)} in all)")
    read_as_it_runs(wrapper.eval(), lambda name: read_weight(files[name], name))
    return wrapper


def _describe(directory: Path, verify: bool) -> tuple[Config, ModelInfo, Objective]:
    """The configuration and the records of a consolidated checkpoint, and its model on the meta device."""
    try:
        (directory / MODEL_FILE).stat()
    except (FileNotFoundError, NotADirectoryError):
        what = f"is not a consolidated checkpoint (no {MODEL_FILE})" if directory.exists() else "does not exist"
        run = directory.parents[1] if directory.parent.name == "checkpoints" else directory
        remedy = f"nar-scale consolidate --run {run if (run / 'checkpoints').is_dir() else 'RUN'} --output DIR"
        raise CheckpointError(f"{directory} {what}; make a consolidated checkpoint: {remedy}") from None
    except OSError as error:
        raise CheckpointError(f"{directory} cannot be read: {error.strerror}") from None
    if verify and (damage := verify_integrity(directory, progress=True)):
        raise CheckpointError(f"{directory} is damaged: {damage}")
    config = load_config(directory / CONFIG_FILE)
    info = read_info(directory)
    with torch.device("meta"):
        wrapper = build_wrapper(config, info.vocabulary_size)
    return config, info, wrapper


def read_info(directory: Path) -> ModelInfo:
    """What a consolidated checkpoint records about its model.

    Raises:
        CheckpointError: the record is missing, or does not describe a model.
    """
    path = directory / MODEL_FILE
    try:
        return TypeAdapter(ModelInfo).validate_json(path.read_bytes(), strict=True)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}") from None
    except ValidationError as error:
        problem = error.errors()[0]
        key = ".".join(map(str, problem["loc"]))
        raise CheckpointError(
            f"{path} does not describe a model: {f'{key}: ' if key else ''}{message_of(problem)}"
        ) from None


def _weights(wrapper: Objective) -> dict[str, Tensor]:
    """Each weight under its first name, tied weights once."""
    return dict(wrapper.named_parameters())


@torch.no_grad()
def _load_weights(directory: Path, wrapper: Objective, kind: WeightKind) -> None:
    missing = _weights(wrapper)
    for file, name, value in read_shards(directory, kind):
        _copy(missing, name, value, file)
    if missing:
        raise CheckpointError(f"{directory} lacks the weights {', '.join(sorted(missing)[:3])} ({len(missing)} in all)")


def _copy(missing: dict[str, Tensor], name: str, value: Tensor, file: Path) -> None:
    target = missing.pop(name, None)
    if target is None:
        raise CheckpointError(f"{file} holds {name!r}, which the model of config.yaml does not have")
    if target.shape != value.shape:
        raise CheckpointError(f"{file}: {name!r} has shape {list(value.shape)}, the model needs {list(target.shape)}")
    target.copy_(value)
