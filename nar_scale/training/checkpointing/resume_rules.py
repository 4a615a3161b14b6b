"""What may not change when a run is resumed.

Keys that give weights another meaning are marked `FixedOnResume` in `nar_scale.config.sections`; the data and the sizes
of the batches taken so far are compared here.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from nar_scale.checkpoint import TrainingState
from nar_scale.config import Config, TrainingConfig, batch_size_at, first_step_from, fixed_on_resume
from nar_scale.data import DatasetIndex
from nar_scale.data.shards.shard_comparison import describe_difference
from nar_scale.errors import CheckpointError


def check_same_stream(
    saved: TrainingState,
    state: TrainingState,
    consumed: dict[str, int],
    sources: Mapping[str, DatasetIndex],
    training: TrainingConfig,
    path: Path,
) -> None:
    """Refuse to go on with other data than the checkpoint has seen.

    Args:
        saved: of the checkpoint.
        state: of a run that starts now.
        consumed: samples of each source that come before the position of the checkpoint, as this run mixes them.
        sources: the shards of this run, by name of the source.
        training: of this run.
        path: of the checkpoint.
    """
    changed = "the shards in data.directory have changed since"
    if saved.fingerprint != state.fingerprint:
        difference = describe_difference(path.parent.parent, saved.fingerprint, sources)
        changed += f" ({difference}); restore them" if difference else "; restore them"
    for name, remedy in (("fingerprint", changed), ("vocabulary_size", "the vocabulary has changed since")):
        before, now = getattr(saved, name), getattr(state, name)
        if before != now:
            raise CheckpointError(
                f"{path} has {name} {before}, this run {now}: {remedy}, or start anew in another training.run_directory"
            )
    if saved.source_samples != consumed:
        later = max(saved.step, first_step_from(training, saved.samples))  # the stream is ahead after a roll back
        raise CheckpointError(
            f"{path} has consumed {_counts(saved.source_samples)}, but this mixture would have consumed "
            f"{_counts(consumed)} by then: set weights and batch sizes back, and change them by a data.curriculum or a "
            f"training.batch_size_warmup from step {later} or later on"
        )


def _counts(consumed: dict[str, int]) -> str:
    return ", ".join(f"{number:,} samples of {name}" for name, number in consumed.items()) or "a single source"


def check_same_model(config: Config, saved: Config, path: Path) -> None:
    """Refuse to go on with settings that give weights and position in the stream another meaning than those saved."""
    settings = fixed_on_resume(config)
    for key, before in fixed_on_resume(saved).items():
        now = settings.get(key)  # another kind may lack the key, but `kind` comes before it
        if before != now:
            raise CheckpointError(
                f"{path} was trained with {key} {before}, not {now}; set it back, or start anew in another "
                "training.run_directory"
            )


def check_same_batch_sizes(config: Config, saved: Config, path: Path, step: int) -> None:
    """Refuse to go on at a step with settings by which the steps before it were of other sizes than those saved."""
    warmup = config.training.batch_size_warmup
    for start in sorted({0, *(stage.from_step for stage in (*saved.training.batch_size_warmup, *warmup))}):
        before, now = batch_size_at(saved.training, start), batch_size_at(config.training, start)
        if start < step and before != now:
            key = "training.batch_size_warmup" if warmup else "training.global_batch_size"
            remedy = (
                f"for other sizes from here on let training.batch_size_warmup have a stage from step {step} or later"
            )
            if config.data.sequential:
                remedy = "data.sequential keeps one size; for another start anew in another training.run_directory"
            raise CheckpointError(
                f"{path} took step {start + 1} with {before} sequences, but by {key} it would have had {now}: set it "
                f"back; {remedy}"
            )
