"""The consolidated checkpoint: a directory that needs neither DeepSpeed nor pickle to be loaded.

config.yaml             the resolved configuration of the run
model.safetensors       the weights; for large models model-00001-of-0000N.safetensors and an index
model.json              vocabulary, tokenizer, step, and how to decode
tokenizer.json          unless the tokenizer is `byte`
probe.safetensors       a forward pass of the live model
manifest.json           size and checksum of every file
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from nar_scale.checkpoint.probe import check_probe, save_probe
from nar_scale.checkpoint.store import MANIFEST, find_damage, list_files, record_files
from nar_scale.config import Config, dump_config, load_config
from nar_scale.data import Tokenizer, load_tokenizer
from nar_scale.errors import CheckpointError
from nar_scale.files import sync_directory, write_atomically
from nar_scale.objectives import NonAutoregressiveWrapper, Wrapper, build_wrapper

CONFIG_FILE, MODEL_FILE, INDEX_FILE = "config.yaml", "model.json", "model.safetensors.index.json"
SHARD_BYTES = 4 * 2**30


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
    """

    sampler: str
    steps: int | None
    schedule: str | None
    temperature: float
    mask_id: int | None
    end_token: int | None


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
        return DecodeManifest(sampler, wrapper.steps, config.objective.schedule, 1.0, wrapper.mask_id, end_token)
    return DecodeManifest("left_to_right", None, None, 1.0, None, end_token)


def write_exported(
    output: Path,
    wrapper: Wrapper,
    config: Config,
    info: ModelInfo,
    probe: dict[str, Tensor],
    tokenizer_file: Path | None = None,
    shard_bytes: int = SHARD_BYTES,
) -> float:
    """Write a consolidated checkpoint; it appears at `output` only after its reloaded logits match the probe.

    Returns:
        the largest difference of the logits over the largest logit.

    Raises:
        CheckpointError: the output exists or cannot be written, or the reloaded model is not the live one.
    """
    if output.exists():
        raise CheckpointError(f"{output} exists already; remove it or choose another --output")
    writing = output.with_name(f".writing-{output.name}")
    try:
        shutil.rmtree(writing, ignore_errors=True)
        writing.mkdir(parents=True)
        _save_weights(writing, wrapper, shard_bytes)
        (writing / CONFIG_FILE).write_text(dump_config(config))
        (writing / MODEL_FILE).write_text(json.dumps(asdict(info), indent=2) + "\n")
        if tokenizer_file is not None:
            shutil.copyfile(tokenizer_file, writing / "tokenizer.json")
        save_probe(writing, probe)
        records = record_files(writing, list_files(writing))
        write_atomically(writing / MANIFEST, json.dumps(records, indent=1).encode())
        difference = check_probe(writing, load_exported(writing).wrapper)
        os.replace(writing, output)
        sync_directory(output.parent)
    except OSError as error:
        raise CheckpointError(f"cannot write {output}: {error.strerror}") from None
    finally:
        shutil.rmtree(writing, ignore_errors=True)
    return difference


def load_exported(
    directory: str | Path, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32, verify: bool = True
) -> LoadedModel:
    """Load a consolidated checkpoint.

    Args:
        device: where the model goes.
        dtype: of its weights.
        verify: compare every file with its recorded checksum first.

    Raises:
        CheckpointError: not a consolidated checkpoint, damaged, or of another shape than its config says.
    """
    directory = Path(directory)
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
    wrapper.to_empty(device=device).to(dtype).net.tie_weights()
    _load_weights(directory, wrapper)
    tokenizer = load_tokenizer(info.tokenizer, directory) if info.tokenizer else None
    return LoadedModel(wrapper.eval(), config, info, tokenizer)


def _weights(wrapper: Wrapper) -> dict[str, Tensor]:
    """Every weight once, under its first name."""
    return dict(wrapper.named_parameters())


def _save_weights(directory: Path, wrapper: Wrapper, shard_bytes: int) -> None:
    shards = list(_split(_weights(wrapper), shard_bytes))
    if len(shards) == 1:
        save_file(shards[0], directory / "model.safetensors", metadata={"format": "pt"})
        return
    names: dict[str, str] = {}
    for number, shard in enumerate(shards, 1):
        file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        save_file(shard, directory / file, metadata={"format": "pt"})
        names.update(dict.fromkeys(shard, file))
    total = sum(tensor.nbytes for shard in shards for tensor in shard.values())
    index = {"metadata": {"total_size": total}, "weight_map": names}
    (directory / INDEX_FILE).write_text(json.dumps(index, indent=1))


def _split(weights: dict[str, Tensor], shard_bytes: int) -> Iterable[dict[str, Tensor]]:
    shard: dict[str, Tensor] = {}
    size = 0
    for name, weight in weights.items():
        if shard and size + weight.nbytes > shard_bytes:
            yield shard
            shard, size = {}, 0
        shard[name] = weight.detach().cpu().contiguous()
        size += weight.nbytes
    yield shard


@torch.no_grad()
def _load_weights(directory: Path, wrapper: Wrapper) -> None:
    missing = _weights(wrapper)
    for file in sorted(directory.glob("model*.safetensors")):
        try:
            with safe_open(file, framework="pt") as shard:
                for name in shard.keys():  # noqa: SIM118 - not a dictionary
                    _copy(missing, name, shard.get_tensor(name), file)
        except SafetensorError as error:
            raise CheckpointError(f"{file} cannot be read: {error}") from None
    if missing:
        raise CheckpointError(f"{directory} lacks the weights {', '.join(sorted(missing)[:3])} ({len(missing)} in all)")


def _copy(missing: dict[str, Tensor], name: str, value: Tensor, file: Path) -> None:
    target = missing.pop(name, None)
    if target is None:
        raise CheckpointError(f"{file} holds {name!r}, which the model of config.yaml does not have")
    if target.shape != value.shape:
        raise CheckpointError(f"{file}: {name!r} has shape {list(value.shape)}, the model needs {list(target.shape)}")
    target.copy_(value)
