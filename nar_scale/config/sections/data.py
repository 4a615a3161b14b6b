"""The section `data`: where the shards are and how they are read."""

from typing import Annotated, Any

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt
from pydantic import model_validator as validator

from nar_scale.config.sections.section import FixedOnResume, LocalPath, Operational, Section, Unit


class SourceConfig(Section):
    """One of several data sets that are mixed."""

    directory: Annotated[LocalPath, Operational()] = Field(
        description="Directory or URL of the shards of this source, as `data.directory`.",
    )
    train: Annotated[str | None, Operational()] = Field(
        default=None,
        description="Shards of this source to train on; `data.train` if not given.",
    )
    validation: Annotated[str | None, Operational()] = Field(
        default=None,
        description="Validation shards of this source; `data.validation` if not given.",
    )
    weight: NonNegativeFloat | None = Field(
        default=None,
        description="Fraction of the samples that come from this source; weights need not sum to 1.",
    )
    epochs: Annotated[PositiveFloat | None, Unit("epochs")] = Field(
        default=None,
        description="Instead of a weight: passes over this source in the time that the others take for theirs.",
    )


class CurriculumStage(Section):
    """Weights of the sources from a step on."""

    from_step: Annotated[NonNegativeInt, Unit("steps")] = Field(
        description="First step of the stage, counted from 0.",
    )
    weights: dict[str, NonNegativeFloat] = Field(
        description="Weight of each source by its name; a source that is not named is not used.",
    )


class DataConfig(Section):
    """Where the shards are and how they are read."""

    directory: Annotated[LocalPath | None, Operational()] = Field(
        default=None,
        description="A directory that `launcher/prepare.py` wrote, or any folder of WebDataset shards: a path, or an "
        "http(s)://, s3:// or gs:// URL. A resumed run may name another place of the same shards.",
    )
    sources: dict[str, SourceConfig] = Field(
        default={},
        description="Several named data sets instead of one directory, mixed by weight, by epochs, or if neither is "
        "given by size.",
    )
    temperature: PositiveFloat = Field(
        default=1.0,
        description="Sources without weights or epochs are mixed by their size to the power of 1 / temperature.",
    )
    curriculum: Annotated[tuple[CurriculumStage, ...], Field(strict=False)] = Field(
        default=(),
        description="Other weights of the sources from given steps on. A resumed run must keep the mixture of the "
        "steps that have been taken.",
    )
    train: Annotated[str, Operational()] = Field(
        default="train/*.tar",
        description="Shards to train on, a glob pattern below `directory`. Over http, where nothing can be listed, "
        "`*.tar` stands for what dataset.json counts, and other shards are named by "
        "`train/shard-{000000..000099}.tar`.",
    )
    validation: Annotated[str, Operational()] = Field(
        default="validation/*.tar",
        description="Validation shards, a glob pattern below `directory`; an empty string if there are none.",
    )
    field: Annotated[str, FixedOnResume()] = Field(
        default="tokens.npy",
        description="Member of each sample that holds the token ids, a one-dimensional integer array.",
    )
    class_field: Annotated[str | None, FixedOnResume()] = Field(
        default=None,
        description="Member that holds the class of each sample: an integer as text (WebDataset's `cls`) or a `.npy` "
        "file.",
    )
    document_field: Annotated[str | None, FixedOnResume()] = Field(
        default=None,
        description="Member that says which document each token of a sample belongs to, as `prepare.py --document-ids` "
        "writes it: attention, positions and predictions then stay within documents.",
    )
    tokenizer: LocalPath | None = Field(
        default=None,
        description="`byte` or a tokenizer file; what `dataset.json` names if not given.",
    )
    vocabulary_size: Annotated[PositiveInt | None, Operational(), Unit("token ids")] = Field(
        default=None,
        description="Number of token ids; what `dataset.json` says if not given.",
    )
    index_directory: Annotated[LocalPath | None, Operational()] = Field(
        default=None,
        description="Directory of the shard indices, where they cannot be written beside the shards.",
    )
    cache_directory: Annotated[LocalPath | None, Operational()] = Field(
        default=None,
        description="Directory of copies of remote shards, on a disk of each node.",
    )
    cache_gib: Annotated[PositiveFloat, Operational(), Unit("GiB")] = Field(
        default=100.0,
        description="Largest size of the copies of remote shards on a node.",
    )
    storage_options: Annotated[dict[str, Any], Operational()] = Field(
        default={},
        description="Options of fsspec for remote shards, such as credentials or an endpoint.",
    )
    memory_map: Annotated[bool, Operational()] = Field(
        default=True,
        description="Read shards through memory maps. Switch it off on a network file system that fails now and then: "
        "reading is then slower and is repeated on errors, which a memory map does not survive.",
    )
    max_skipped_samples: Annotated[NonNegativeInt, Operational(), Unit("samples")] = Field(
        default=0,
        description="Unusable samples that are skipped, named and counted; one more ends the run.",
    )
    shuffle_window: Annotated[PositiveInt, FixedOnResume(), Unit("shards")] = Field(
        default=8,
        description="Shards among which samples are mixed at a time.",
    )
    loader_workers: Annotated[NonNegativeInt, Operational(), Unit("processes per rank")] = Field(
        default=1,
        description="Processes of each rank that read data; 0 to read within the training process.",
    )
    prefetch: Annotated[PositiveInt, Operational(), Unit("micro-batches per process")] = Field(
        default=2,
        description="Micro-batches that each loader process reads ahead.",
    )
    sequential: Annotated[bool, FixedOnResume()] = Field(
        default=False,
        description="Allow `.tar.gz` shards and `pipe:` commands, which a shell runs. The stream is then not exact: "
        "samples come more or less often than once an epoch, and in another order after a restart.",
    )

    @validator(mode="after")
    def _one_way_to_name_data(self) -> "DataConfig":
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
    def _weights_fit(self) -> "DataConfig":
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
