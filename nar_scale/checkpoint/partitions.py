"""The weights and the optimizer's state of a run, in pieces that fit any number of ranks and any ZeRO stage.

Each rank writes `partitions/rank-00000.safetensors`: of every parameter of which it holds a part, that part of the
flattened tensor as `weight/NAME`, and as `KIND/NAME` the same part of each state of the optimizer. A header entry says
where each part begins, the parameter's shape, and scalars such as Adam's step. Whoever reads asks for any range of any
parameter; which ranks wrote it does not matter.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from nar_scale.checkpoint.tensor_file import write_tensors
from nar_scale.errors import CheckpointError

DIRECTORY = "partitions"
WEIGHT = "weight"
_HEADER = "partitions"
_ELEMENTS_AT_A_TIME = 2**22


@dataclass(frozen=True)
class Partition:
    """A rank's part of a parameter.

    Attributes:
        name: of the parameter.
        shape: of the whole parameter.
        start: where the part begins in the flattened parameter.
        tensors: kind (`weight`, `exp_avg`, ...) to `[elements]`.
        scalars: kind to number.
    """

    name: str
    shape: tuple[int, ...]
    start: int
    tensors: Mapping[str, Tensor]
    scalars: Mapping[str, float] = field(default_factory=dict)


def partition_file(rank: int) -> str:
    """Where a rank writes, below a checkpoint."""
    return f"{DIRECTORY}/rank-{rank:05d}.safetensors"


def write_partitions(path: Path, partitions: Callable[[], Iterable[Partition]]) -> None:
    """Write what a rank holds, one tensor after the other.

    Args:
        partitions: gives them, and is called twice: for the header, then for the values.

    Raises:
        OSError: the disk refuses.
    """
    layout, header = {}, {}
    for partition in partitions():
        header[partition.name] = {
            "start": partition.start,
            "shape": partition.shape,
            "scalars": dict(partition.scalars),
        }
        for kind, tensor in partition.tensors.items():
            layout[f"{kind}/{partition.name}"] = (tensor.dtype, tuple(tensor.shape))
    tensors = (tensor for partition in partitions() for tensor in partition.tensors.values())
    path.parent.mkdir(parents=True, exist_ok=True)
    write_tensors(path, layout, tensors, {_HEADER: json.dumps(header)})


@dataclass(frozen=True)
class _Piece:
    start: int
    stop: int
    path: Path
    file: Any


class PartitionReader:
    """Reads what all ranks have written; a context manager. Only what is asked for comes into memory.

    Args:
        directory: of a training checkpoint.

    Attributes:
        directory: of the checkpoint.
        shapes: name of each parameter to its shape.
        kinds: name of each parameter to what there is of it: `weight`, and tensors of the optimizer's state.
        scalars: name of each parameter to the scalars of the optimizer's state.

    Raises:
        CheckpointError: a file is missing or cannot be read.
    """

    def __init__(self, directory: Path):
        self.directory = directory
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.kinds: dict[str, set[str]] = {}
        self.scalars: dict[str, dict[str, float]] = {}
        self._pieces: dict[tuple[str, str], list[_Piece]] = {}
        self._files = ExitStack()
        paths = sorted((directory / DIRECTORY).glob("rank-*.safetensors"))
        if not paths:
            raise CheckpointError(
                f"{directory} has no {DIRECTORY}/: it was not written by this version; train from it with the one "
                "that wrote it, or start anew in another training.run_directory"
            )
        for path in paths:
            with _naming(path):
                self._open(path)
        for pieces in self._pieces.values():
            pieces.sort(key=lambda piece: piece.start)

    def __enter__(self) -> PartitionReader:
        return self

    def __exit__(self, *_: object) -> None:
        self._files.close()

    def read(self, kind: str, name: str, start: int = 0, stop: int | None = None) -> Tensor:
        """Elements of a flattened parameter, or of a state of the optimizer, `[stop - start]`.

        Raises:
            CheckpointError: no rank has written them.
        """
        if stop is None:
            stop = torch.Size(self.shapes.get(name, ())).numel()
        found, position = None, start
        for piece in self._pieces.get((kind, name), ()):
            while piece.start <= position < min(piece.stop, stop):
                until = min(piece.stop, stop, position + _ELEMENTS_AT_A_TIME)
                with _naming(piece.path):
                    values = piece.file.get_slice(f"{kind}/{name}")[position - piece.start : until - piece.start]
                if found is None:
                    found = values.new_empty(stop - start)
                found[position - start : until - start] = values
                position = until
        if position < stop or found is None:
            raise CheckpointError(f"{self.directory} lacks {kind} of {name!r} from element {position} on")
        return found

    def whole(self, kind: str, name: str) -> Tensor:
        """A whole parameter, or a state of the optimizer in the parameter's shape."""
        return self.read(kind, name).view(self.shapes[name])

    def _open(self, path: Path) -> None:
        file = self._files.enter_context(safe_open(path, framework="pt"))
        described = json.loads(file.metadata()[_HEADER])
        for key in file.keys():  # noqa: SIM118 - not a dictionary
            kind, name = key.split("/", 1)
            start = described[name]["start"]
            stop = start + file.get_slice(key).get_shape()[0]
            self.shapes[name] = tuple(described[name]["shape"])
            self.scalars[name] = described[name]["scalars"]
            self.kinds.setdefault(name, set()).add(kind)
            self._pieces.setdefault((kind, name), []).append(_Piece(start, stop, path, file))


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Tell which file could not be read."""
    try:
        yield
    except (OSError, SafetensorError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from None
