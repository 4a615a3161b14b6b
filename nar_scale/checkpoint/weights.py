"""The weights of a consolidated or of a training checkpoint, without anything else of it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

from nar_scale.checkpoint.consolidated import CONFIG_FILE, MODEL_FILE, ConsolidatedWeights, read_info
from nar_scale.checkpoint.partitions import WEIGHT, PartitionReader
from nar_scale.checkpoint.state import TrainingState
from nar_scale.checkpoint.store import verify_integrity
from nar_scale.config import load_config
from nar_scale.errors import CheckpointError
from nar_scale.model.parameters import full_shape
from nar_scale.objectives import Objective

_POSITIONS = "pos_emb.weight"
_TABLES = ("net.token_emb.weight", "net.to_logits.weight")  # a row for each token id
_NET = "net."


class StartingWeights:
    """The weights that a run of any objective starts from, fitted to its model.

    The weights of the network must have the names and shapes of the model's, with one exception: an autoregressive
    model has no mask token, whose row is the last of the embedding table and of the output projection. A model that has
    one keeps that row as it was initialised; in the projection it has no effect, since the mask is never predicted. In
    the other direction the row is left out. What the objective has beside the network (for self-conditioning, classes
    or a critic) and the checkpoint lacks stays as it was initialised, too.

    Args:
        source: the weights of a checkpoint.
        objective: the model; it may be on the meta device, and ZeRO 3 may have sharded it.

    Attributes:
        directory: of the checkpoint.
        kinds: `{"weight"}` for each parameter that the checkpoint gives, an empty set for the others.
        scalars: an empty dictionary for each parameter, since there is no optimizer state.
        shapes: the shape of each parameter of the model, by name.
        resized: names of the parameters that have a row for the mask token here or in the checkpoint alone.
        initial: names of the parameters that stay as they were initialised.

    Raises:
        CheckpointError: it holds another network, or weights beside it that the model does not have.
    """

    def __init__(self, source: PartitionReader | ConsolidatedWeights, objective: Objective):
        self._source = source
        self.directory = source.directory
        self.shapes = {name: full_shape(parameter) for name, parameter in objective.named_parameters()}
        source_has_mask = load_config(source.directory / CONFIG_FILE).objective.kind != "autoregressive"
        self._more_rows = (objective.mask_id is not None) - source_has_mask
        self.resized = [name for name in _TABLES if self._more_rows and name in self.shapes]
        self.initial = [name for name in self.shapes if name not in source.shapes and not name.startswith(_NET)]
        self.kinds = {name: set() if name in self.initial else {WEIGHT} for name in self.shapes}
        self.scalars: dict[str, dict[str, float]] = {name: {} for name in self.shapes}
        expected = {name: shape for name, shape in self.shapes.items() if name not in self.initial}
        for name in self.resized:
            rows, dim = self.shapes[name]
            expected[name] = (rows - self._more_rows, dim)
        check_same_parameters(expected, source)

    def read(self, kind: str, name: str, start: int, stop: int) -> Tensor:
        """The elements from `start` to `stop` of a flattened parameter, as many of them as the checkpoint has.

        Args:
            kind: is `weight`.

        Returns:
            `[stop - start]`, or fewer where the row of the mask token is to stay as it is.
        """
        stop = min(stop, torch.Size(self._source.shapes[name]).numel())
        return self._source.read(kind, name, start, stop) if start < stop else torch.empty(0)

    def remarks(self) -> list[str]:
        """What is not taken from the checkpoint as it is, a sentence for each."""
        tables, initial = ", ".join(self.resized), ", ".join(self.initial)
        if not self.resized:
            resized = []
        elif self._more_rows > 0:
            resized = [f"the mask token's row of {tables}, which it lacks, starts as it was initialised"]
        else:
            resized = [f"the mask token's row of {tables} is left out"]
        return [*resized, *([f"{initial}, which it lacks, start as they were initialised"] if initial else [])]


def check_same_parameters(ours: Mapping[str, tuple[int, ...]], source: PartitionReader | ConsolidatedWeights) -> None:
    """Refuse, with a CheckpointError, a checkpoint whose parameters have other names or shapes."""
    theirs = source.shapes
    for name in [*ours, *theirs]:
        if ours.get(name) != theirs.get(name):
            here, there = ours.get(name, "absent"), theirs.get(name, "absent")
            raise CheckpointError(
                f"the weight {name!r} is {here} in the model of this configuration and {there} in {source.directory}; "
                f"{_remedy(name, ours.get(name), theirs.get(name))}, or start anew in another training.run_directory"
            )


def _remedy(name: str, ours: tuple[int, ...] | None, theirs: tuple[int, ...] | None) -> str:
    if ours is not None and theirs is not None and ours[1:] == theirs[1:]:
        if name.endswith(_POSITIONS):
            return f"set model.max_seq_len {theirs[0]}, since learned positions are as many as were trained"
        if name in _TABLES:
            return "its rows are token ids, without the mask: use data of its tokenizer, with its data.vocabulary_size"
    return "set the model section as it was"


def check_weights_fit(objective: Objective, path: Path) -> list[str]:
    """Refuse what `start_from_weights` would for a model, which may be on the meta device; only checksums are left.

    Returns:
        the `remarks` of `StartingWeights`.

    Raises:
        CheckpointError: as there.
    """
    with open_weights(path, checksums=False) as source:
        return StartingWeights(source, objective).remarks()


def steps_of_weights(path: Path) -> int:
    """Optimizer steps that the weights of a consolidated or of a training checkpoint were trained for.

    Raises:
        CheckpointError: its records cannot be read.
    """
    if (path / MODEL_FILE).is_file():
        return read_info(path).step
    return TrainingState.load(path).step


@contextmanager
def open_weights(path: Path, checksums: bool = True) -> Iterator[PartitionReader | ConsolidatedWeights]:
    """Open the weights of a consolidated or of a training checkpoint, whichever the directory is.

    Args:
        path: the directory of either.
        checksums: whether the checksums of all files are compared.

    Raises:
        CheckpointError: it is neither, or it is damaged.
    """
    exported = (path / MODEL_FILE).is_file()
    if not exported and (not (path / CONFIG_FILE).is_file() or (path / "checkpoints").is_dir()):
        raise CheckpointError(
            f"--init-from {path}: neither a consolidated checkpoint nor a training checkpoint "
            "(RUN/checkpoints/step-NNNNNNNNN)"
        )
    if damage := verify_integrity(path, checksums=checksums):
        raise CheckpointError(f"--init-from {path} is damaged: {damage}")
    if exported:
        yield ConsolidatedWeights(path)
        return
    with PartitionReader(path) as reader:
        yield reader
