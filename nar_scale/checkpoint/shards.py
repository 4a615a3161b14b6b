"""Weights as safetensors: one file, or numbered ones with an index as Hugging Face names them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from tqdm import tqdm

from nar_scale.checkpoint.tensor_file import DTYPES_BY_NAME, Layout, tensor_bytes, write_tensors
from nar_scale.errors import CheckpointError
from nar_scale.progress import progress_bar

SHARD_BYTES = 4 * 2**30


def save_weights(
    directory: Path,
    weights: Mapping[str, Tensor],
    stem: str = "model",
    shard_bytes: int = SHARD_BYTES,
    layout: Layout | None = None,
    progress: bool = True,
) -> None:
    """Write `STEM.safetensors`, or for more than `shard_bytes` `STEM-00001-of-0000N.safetensors` and an index.

    Args:
        weights: by name; each is asked for once, when its turn comes, so that they need not all be in memory.
        layout: name to dtype and shape, if asking the weights for them would read them.
        progress: show a progress bar if standard error is a terminal.
    """
    layout = layout or {name: (weight.dtype, tuple(weight.shape)) for name, weight in weights.items()}
    shards = list(_split(layout, shard_bytes))
    files: dict[str, str] = {}
    total = sum(tensor_bytes(*described) for described in layout.values())
    with progress_bar(f"write {stem}", total, "B", progress) as bar:
        for number, shard in enumerate(shards, 1):
            numbered = f"-{number:05d}-of-{len(shards):05d}" if len(shards) > 1 else ""
            file = f"{stem}{numbered}.safetensors"
            write_tensors(directory / file, shard, _counted(shard, weights, bar), {"format": "pt"})
            files.update(dict.fromkeys(shard, file))
    if len(shards) > 1:
        index = {"metadata": {"total_size": total}, "weight_map": files}
        (directory / f"{stem}.safetensors.index.json").write_text(json.dumps(index, indent=1))


def _counted(shard: Layout, weights: Mapping[str, Tensor], bar: tqdm[Any]) -> Iterator[Tensor]:
    for name, described in shard.items():
        yield weights[name]
        bar.update(tensor_bytes(*described))


def shard_names(directory: Path, stem: str = "model") -> Iterator[tuple[Path, str]]:
    """Names of the weights that `save_weights` wrote, each with its file.

    Raises:
        CheckpointError: a file that cannot be read.
    """
    for file in sorted([*directory.glob(f"{stem}.safetensors"), *directory.glob(f"{stem}-*.safetensors")]):
        with _opened(file) as shard:
            names = list(shard.keys())
        yield from ((file, name) for name in names)


def read_layout(file: Path) -> dict[str, tuple[torch.dtype, tuple[int, ...]]]:
    """Dtype and shape of each tensor of a file, by name, without the values.

    Raises:
        CheckpointError: the file cannot be read, or holds a tensor of another dtype than `write_tensors` writes.
    """
    with _opened(file) as shard:
        slices = {name: shard.get_slice(name) for name in shard.keys()}  # noqa: SIM118 - not a dictionary
        described = {name: (part.get_dtype(), tuple(part.get_shape())) for name, part in slices.items()}
    for name, (dtype, _) in described.items():
        if dtype not in DTYPES_BY_NAME:
            raise CheckpointError(f"{file}: {name!r} is of the dtype {dtype}; {', '.join(DTYPES_BY_NAME)} are read")
    return {name: (DTYPES_BY_NAME[dtype], shape) for name, (dtype, shape) in described.items()}


def stored_dtype(directory: Path, stem: str = "model") -> torch.dtype:
    """The dtype of the weights that `save_weights` wrote, which is one for all; float32 if there are none.

    Raises:
        CheckpointError: a file that cannot be read.
    """
    for file, name in shard_names(directory, stem):
        return read_layout(file)[name][0]
    return torch.float32


def read_weight(file: Path, name: str) -> Tensor:
    """A weight from its file.

    Raises:
        CheckpointError: the file cannot be read.
    """
    with _opened(file) as shard:
        return shard.get_tensor(name)


def read_shards(directory: Path, stem: str = "model") -> Iterator[tuple[Path, str, Tensor]]:
    """The weights that `save_weights` wrote, one at a time: file, name, tensor.

    Raises:
        CheckpointError: a file that cannot be read.
    """
    for file, name in shard_names(directory, stem):
        yield file, name, read_weight(file, name)


@contextmanager
def _opened(file: Path) -> Iterator[Any]:
    try:
        with safe_open(file, framework="pt") as shard:
            yield shard
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{file} cannot be read: {error}") from None


def _split(layout: Layout, shard_bytes: int) -> Iterable[Layout]:
    shard: dict[str, tuple[torch.dtype, tuple[int, ...]]] = {}
    size = 0
    for name, described in layout.items():
        if shard and size + tensor_bytes(*described) > shard_bytes:
            yield shard
            shard, size = {}, 0
        shard[name] = described
        size += tensor_bytes(*described)
    yield shard
