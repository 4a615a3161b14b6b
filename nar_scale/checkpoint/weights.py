"""The weights of a consolidated or of a training checkpoint, without anything else of it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from torch import nn

from nar_scale.checkpoint.consolidated import CONFIG_FILE, MODEL_FILE, ConsolidatedWeights
from nar_scale.checkpoint.partitions import PartitionReader
from nar_scale.checkpoint.store import verify_integrity
from nar_scale.errors import CheckpointError

_POSITIONS = "pos_emb.weight"


def check_same_parameters(ours: Mapping[str, tuple[int, ...]], source: PartitionReader | ConsolidatedWeights) -> None:
    """Refuse, with a CheckpointError, a checkpoint whose parameters have other names or shapes."""
    theirs = source.shapes
    for name in [*ours, *theirs]:
        if ours.get(name) != theirs.get(name):
            here, there = ours.get(name, "absent"), theirs.get(name, "absent")
            remedy = "set the model section as it was"
            if name.endswith(_POSITIONS) and name in ours and name in theirs:
                remedy = f"set model.max_seq_len {theirs[name][0]}, since learned positions are as many as were trained"
            raise CheckpointError(
                f"the weight {name!r} is {here} in the model of this configuration and {there} in {source.directory}; "
                f"{remedy}, or start anew in another training.run_directory"
            )


def check_weights_fit(module: nn.Module, path: Path) -> None:
    """Refuse what `start_from_weights` would for a module, which may be on the meta device; only checksums are left.

    Raises:
        CheckpointError: as there.
    """
    with open_weights(path, checksums=False) as source:
        check_same_parameters({name: tuple(p.shape) for name, p in module.named_parameters()}, source)


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
