"""The consolidated checkpoint: a directory that needs neither DeepSpeed nor pickle to be loaded.

config.yaml             the resolved configuration of the run
model.safetensors       the weights; for large models model-00001-of-0000N.safetensors and an index
ema.safetensors         their moving average, if the run kept one
model.json              vocabulary, tokenizer, step, and how to decode
tokenizer.json          unless the tokenizer is `byte`
probe.safetensors       a forward pass of the live model
manifest.json           size and checksum of every file
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from nar_scale.checkpoint.directory import written_whole
from nar_scale.checkpoint.partitions import WEIGHT
from nar_scale.checkpoint.probe import check_probe, save_probe
from nar_scale.checkpoint.shards import SHARD_BYTES, read_shards, read_weight, save_weights, shard_names
from nar_scale.checkpoint.store import MANIFEST, find_damage, list_files, record_files
from nar_scale.checkpoint.streaming import read_as_it_runs
from nar_scale.config import Config, dump_config, load_config
from nar_scale.data import Tokenizer, load_tokenizer
from nar_scale.errors import CheckpointError
from nar_scale.files import write_atomically
from nar_scale.objectives import NonAutoregressiveWrapper, Wrapper, build_wrapper

CONFIG_FILE, MODEL_FILE = "config.yaml", "model.json"

WeightKind = Literal["model", "ema"]


@dataclass(frozen=True)
class DecodeManifest:
    """How samples are drawn from a model, so that a score can be reproduced.

    Attributes:
        sampler: `confidence`, `critic` or `left_to_right`.
        steps: network calls at most; None for one a token.
        schedule: of the masked fraction; None left to right.
        temperature: at the start.
        mask_id: the mask token; None left to right.
        end_token: ends a document.
        block_size: tokens that are demasked together; None for all.
        guidance_scale: of classifier-free guidance; 1 for none.
    """

    sampler: str
    steps: int | None
    schedule: str | None
    temperature: float
    mask_id: int | None
    end_token: int | None
    block_size: int | None = None
    guidance_scale: float = 1.0


@dataclass(frozen=True)
class ModelInfo:
    """What a consolidated checkpoint says of its model.

    Attributes:
        vocabulary_size: token ids in the data.
        tokenizer: `byte`, `tokenizer.json`, or None if the run knew none.
        step: optimizer steps taken.
        samples: sequences consumed.
        dtype: of the forward pass in training.
        decode: how to sample.
    """

    vocabulary_size: int
    tokenizer: str | None
    step: int
    samples: int
    dtype: str
    decode: DecodeManifest


@dataclass(frozen=True)
class LoadedModel:
    """A model ready to evaluate or generate.

    Attributes:
        wrapper: in eval mode.
        tokenizer: None if the run knew none.
    """

    wrapper: Wrapper
    config: Config
    info: ModelInfo
    tokenizer: Tokenizer | None = field(repr=False)


def describe_decoding(config: Config, wrapper: Wrapper, end_token: int | None) -> DecodeManifest:
    """The decode manifest of a model with its configured defaults."""
    if isinstance(wrapper, NonAutoregressiveWrapper):
        sampler = "confidence" if wrapper.token_critic is None else "critic"
        objective = config.objective
        block_size = objective.block_size if objective.kind == "block_diffusion" else None
        return DecodeManifest(
            sampler=sampler,
            steps=wrapper.steps,
            schedule=objective.schedule,
            temperature=1.0,
            mask_id=wrapper.mask_id,
            end_token=end_token,
            block_size=block_size,
            guidance_scale=objective.guidance_scale,
        )
    return DecodeManifest("left_to_right", None, None, 1.0, None, end_token)


def write_exported(
    output: Path,
    wrapper: Wrapper,
    config: Config,
    info: ModelInfo,
    probe: dict[str, Tensor],
    tokenizer_file: Path | None = None,
    shard_bytes: int = SHARD_BYTES,
    weights: Mapping[str, Tensor] | None = None,
    average: Mapping[str, Tensor] | None = None,
) -> float:
    """Write a consolidated checkpoint; it appears at `output` only after its reloaded logits match the probe.

    Args:
        wrapper: the model; if `weights` are given, it may be on the meta device, without any.
        weights: by name, each asked for once, in float32; the wrapper's own if not given.
        average: the moving average of the weights, likewise, if there is one.

    Returns:
        the largest difference of the logits over the largest logit.

    Raises:
        CheckpointError: the output exists or cannot be written, or the reloaded model is not the live one.
    """
    with written_whole(output) as writing:
        own = _weights(wrapper)
        layout = {name: (weight.dtype, tuple(weight.shape)) for name, weight in own.items()}
        save_weights(writing, weights or own, "model", shard_bytes, layout)
        if average is not None:
            save_weights(writing, average, "ema", shard_bytes, layout)
        (writing / CONFIG_FILE).write_text(dump_config(config))
        (writing / MODEL_FILE).write_text(json.dumps(asdict(info), indent=2) + "\n")
        if tokenizer_file is not None:
            shutil.copyfile(tokenizer_file, writing / "tokenizer.json")
        save_probe(writing, probe)
        records = record_files(writing, list_files(writing))
        write_atomically(writing / MANIFEST, json.dumps(records, indent=1).encode())
        difference = check_probe(writing, stream_exported(writing))
    return difference


def load_exported(
    directory: str | Path,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    verify: bool = True,
    weights: WeightKind = "model",
) -> LoadedModel:
    """Load a consolidated checkpoint.

    Args:
        device: where the model goes.
        dtype: of its weights.
        verify: compare every file with its recorded checksum first.
        weights: those of the last step (`model`), or their moving average (`ema`).

    Raises:
        CheckpointError: not a consolidated checkpoint, damaged, of another shape than its config says, or without a
            moving average to load.
    """
    directory = Path(directory)
    config, info, wrapper = _describe(directory, verify)
    if weights == "ema" and config.training.ema_decay is None:
        raise CheckpointError(f"{directory} has no moving average of the weights: its run had no training.ema_decay")
    wrapper.to_empty(device=device).to(dtype).net.tie_weights()
    _load_weights(directory, wrapper, weights)
    tokenizer = load_tokenizer(info.tokenizer, directory) if info.tokenizer else None
    return LoadedModel(wrapper.eval(), config, info, tokenizer)


class ExportedWeights:
    """The weights of a consolidated checkpoint in the place of a training checkpoint's, to start another run from.

    Whether it is damaged is not looked at.

    Attributes:
        shapes: name of each parameter to its shape.
        kinds: name of each parameter to `weight`; there is no state of an optimizer.
        scalars: name of each parameter to nothing.

    Raises:
        CheckpointError: as `load_exported`.
    """

    def __init__(self, directory: Path):
        _, _, wrapper = _describe(directory, verify=False)
        self.shapes = {name: tuple(weight.shape) for name, weight in wrapper.named_parameters()}
        self.kinds = {name: {WEIGHT} for name in self.shapes}
        self.scalars: dict[str, dict[str, float]] = {name: {} for name in self.shapes}
        self._files = {name: file for file, name in shard_names(directory)}

    def read(self, kind: str, name: str, start: int, stop: int) -> Tensor:
        """Elements of a flattened parameter, `[stop - start]`."""
        return read_weight(self._files[name], name).flatten()[start:stop]


def stream_exported(directory: Path) -> Wrapper:
    """A model that reads its blocks one after the other as it runs, for a look at a large one.

    Raises:
        CheckpointError: as `load_exported`.
    """
    _, _, wrapper = _describe(directory, verify=True)
    files = {name: file for file, name in shard_names(directory)}
    lacking = sorted(set(_weights(wrapper)) - set(files))
    if lacking:
        raise CheckpointError(f"{directory} lacks the weights {', '.join(lacking[:3])} ({len(lacking)} in all)")
    read_as_it_runs(wrapper.eval(), lambda name: read_weight(files[name], name))
    return wrapper


def _describe(directory: Path, verify: bool) -> tuple[Config, ModelInfo, Wrapper]:
    """What a consolidated checkpoint holds, and its model on the meta device."""
    if not (directory / MODEL_FILE).is_file():
        raise CheckpointError(
            f"{directory} is not a consolidated checkpoint (no {MODEL_FILE}); make one with launcher/consolidate.py"
        )
    if verify and (damage := find_damage(directory)):
        raise CheckpointError(f"{directory} is damaged: {damage}")
    config = load_config(directory / CONFIG_FILE)
    fields: dict[str, Any] = json.loads((directory / MODEL_FILE).read_text())
    info = ModelInfo(**{**fields, "decode": DecodeManifest(**fields["decode"])})
    with torch.device("meta"):
        wrapper = build_wrapper(config, info.vocabulary_size)
    return config, info, wrapper


def _weights(wrapper: Wrapper) -> dict[str, Tensor]:
    """Every weight once, under its first name."""
    return dict(wrapper.named_parameters())


@torch.no_grad()
def _load_weights(directory: Path, wrapper: Wrapper, kind: WeightKind) -> None:
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
