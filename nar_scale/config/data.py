"""The section `data`: where the shards are and how they are read."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt
from pydantic import model_validator as validator

from nar_scale.config.section import Section


class SourceConfig(Section):
    """One of several data sets that are mixed."""

    directory: str
    """As `data.directory`."""
    train: str | None = None
    """As `data.train`, which it falls back to."""
    validation: str | None = None
    """As `data.validation`, which it falls back to."""
    weight: NonNegativeFloat | None = None
    """Share of the samples; weights need not sum to 1."""
    epochs: PositiveFloat | None = None
    """Instead of a weight: how often this source is passed over while the others are as often as they say."""


class CurriculumStage(Section):
    """Weights of the sources from a step on."""

    from_step: NonNegativeInt
    weights: dict[str, NonNegativeFloat]
    """By source; one that is not named gets nothing."""


class DataConfig(Section):
    """Where the shards are and how they are read."""

    directory: str | None = None
    """A directory that `launcher/prepare.py` wrote, or any folder of WebDataset shards; a path or an http(s)://, s3://
    or gs:// URL."""
    sources: dict[str, SourceConfig] = Field(default_factory=dict)
    """Several named data sets instead of one, mixed by weight, by epochs, or if neither is given by size."""
    temperature: PositiveFloat = 1.0
    """Sources without weights or epochs get their size to the power of 1 / temperature."""
    curriculum: Annotated[tuple[CurriculumStage, ...], Field(strict=False)] = ()
    """Other weights from some steps on."""
    train: str = "train/*.tar"
    """Shards to train on, a glob pattern below `directory`; over http, where nothing can be listed, `*.tar` takes what
    dataset.json counts, and other shards are named by `train/shard-{000000..000099}.tar`."""
    validation: str = "validation/*.tar"
    """Held-out shards; an empty string if there are none."""
    field: str = "tokens.npy"
    """The member of each sample that holds the token ids, a one-dimensional integer array."""
    class_field: str | None = None
    """The member that holds the class of each sample, an integer as text (WebDataset's `cls`) or a `.npy`."""
    document_field: str | None = None
    """The member that says which document each token of a sample belongs to, as `prepare.py --document-ids` writes it:
    attention, positions and predictions then stay within documents."""
    tokenizer: str | None = None
    """`byte` or a tokenizer file; what `dataset.json` names if not given."""
    vocabulary_size: PositiveInt | None = None
    """Number of token ids; what `dataset.json` says if not given."""
    index_directory: str | None = None
    """Where shard indices are kept when they cannot stand beside the shards."""
    cache_directory: str | None = None
    """Where copies of remote shards are kept, on a disk of each node."""
    cache_gib: PositiveFloat = 100.0
    """Most that these copies take on a node, in GiB."""
    storage_options: dict[str, Any] = Field(default_factory=dict)
    """Passed to fsspec for remote shards, such as credentials or an endpoint."""
    memory_map: bool = True
    """Read shards through memory maps. On a network file system that now and then fails, switch it off: reading is
    then slower and repeated on errors, which a memory map does not survive."""
    max_skipped_samples: NonNegativeInt = 0
    """Samples that may be unusable: they are skipped, named and counted. One more ends the run; 0 for none."""
    shuffle_window: PositiveInt = 8
    """Shards among which samples are mixed at a time."""
    loader_workers: NonNegativeInt = 1
    """Reading processes a rank."""
    prefetch: PositiveInt = 2
    """Micro-batches that each of them reads ahead."""
    sequential: bool = False
    """Allow `.tar.gz` shards and `pipe:` commands, which a shell runs. Inexact: samples come more or less often than
    once an epoch, and in another order after a restart."""

    @validator(mode="after")
    def _one_way_to_name_data(self) -> DataConfig:
        if (self.directory is None) == (not self.sources):
            raise ValueError("give either directory or sources")
        if self.sequential and self.sources:
            raise ValueError("sequential streams are not mixed; give a directory")
        if self.directory is not None and (self.curriculum or self.temperature != 1):
            raise ValueError("curriculum and temperature need sources")
        for name, remote in (("directory", self.directory), *((k, v.directory) for k, v in self.sources.items())):
            if remote is not None and "://" in remote and self.cache_directory is None and not self.sequential:
                raise ValueError(f"{name} {remote} is remote: give cache_directory, on a disk of each node")
        return self

    @validator(mode="after")
    def _weights_fit(self) -> DataConfig:
        given = [source for source in self.sources.values() if source.weight is not None or source.epochs is not None]
        by_epochs = [source for source in given if source.epochs is not None]
        if any(source.weight is not None for source in by_epochs) or 0 < len(by_epochs) < len(given):
            raise ValueError("sources have weights or epochs, not both")
        if given and len(given) < len(self.sources):
            raise ValueError("give every source a weight, or epochs, or none of them")
        if given and self.temperature != 1:
            raise ValueError("temperature means nothing to sources with weights or epochs")
        for stage in self.curriculum:
            unknown = [name for name in stage.weights if name not in self.sources]
            if unknown:
                raise ValueError(f"curriculum names {unknown[0]!r}, which is none of {', '.join(self.sources)}")
        steps = [stage.from_step for stage in self.curriculum]
        if steps != sorted(set(steps)):
            raise ValueError(f"curriculum starts at steps {steps}; let them ascend")
        return self
