"""Weights as safetensors: one file, or numbered ones with an index as Hugging Face names them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from nar_scale.errors import CheckpointError

SHARD_BYTES = 4 * 2**30


def save_weights(
    directory: Path, weights: dict[str, Tensor], stem: str = "model", shard_bytes: int = SHARD_BYTES
) -> None:
    """Write `STEM.safetensors`, or for more than `shard_bytes` `STEM-00001-of-0000N.safetensors` and an index."""
    shards = list(_split(weights, shard_bytes))
    if len(shards) == 1:
        save_file(shards[0], directory / f"{stem}.safetensors", metadata={"format": "pt"})
        return
    files: dict[str, str] = {}
    for number, shard in enumerate(shards, 1):
        file = f"{stem}-{number:05d}-of-{len(shards):05d}.safetensors"
        save_file(shard, directory / file, metadata={"format": "pt"})
        files.update(dict.fromkeys(shard, file))
    total = sum(tensor.nbytes for shard in shards for tensor in shard.values())
    index = {"metadata": {"total_size": total}, "weight_map": files}
    (directory / f"{stem}.safetensors.index.json").write_text(json.dumps(index, indent=1))


def read_shards(directory: Path, stem: str = "model") -> Iterator[tuple[Path, str, Tensor]]:
    """The weights that `save_weights` wrote, one at a time: file, name, tensor.

    Raises:
        CheckpointError: a file that cannot be read.
    """
    for file in sorted([*directory.glob(f"{stem}.safetensors"), *directory.glob(f"{stem}-*.safetensors")]):
        try:
            with safe_open(file, framework="pt") as shard:
                for name in shard.keys():  # noqa: SIM118 - not a dictionary
                    yield file, name, shard.get_tensor(name)
        except SafetensorError as error:
            raise CheckpointError(f"{file} cannot be read: {error}") from None


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
