"""One report about one or several checkpoints on the same data: likelihoods, and samples beside their cost."""

from __future__ import annotations

import logging
import platform
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from nar_scale.checkpoint import LoadedModel, WeightKind, load_consolidated
from nar_scale.checkpoint.consolidated import MODEL_FILE, describe_consolidated
from nar_scale.config import SamplerConfig
from nar_scale.errors import UserError
from nar_scale.evaluation import (
    CheckpointReference,
    Likelihood,
    Reference,
    Split,
    TransformersReference,
    find_words,
    pool_likelihoods,
)
from nar_scale.evaluation.reencoding import cut_documents
from nar_scale.progress import with_progress
from nar_scale.reporting.frontier import FrontierPoint, TextQuality, measure_samples, measure_texts, words_in
from nar_scale.reporting.likelihoods import DataOptions, describe_likelihood, measure_any_likelihoods
from nar_scale.reporting.mauve import import_mauve
from nar_scale.reporting.sampling import SampleSet, draw_samples, settings_of

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class SampleOptions:
    """What samples a report is about.

    Attributes:
        count: samples of each setting; 0 for none.
        temperatures: of all samplers.
        samplers: of models that fill in masks; each checkpoint's own if None.
        steps: network calls for a sequence of models that fill in masks; parts of their length if None.
        seed: of all randomness.
        reference: directory of the model that scores the samples: a consolidated checkpoint, or one of the Hugging Face
            layout; None for no generative perplexity.
        training_samples: sequences of the training text that are searched for the words of the samples, at most; 0 for
            none.
        mauve: whether MAUVE is measured under the reference model.
    """

    count: int = 64
    temperatures: Sequence[float] = (0.5, 0.7, 0.85, 1.0)
    samplers: Sequence[str] | None = None
    steps: Sequence[int] | None = None
    seed: int = 0
    reference: str | None = None
    training_samples: int = 200_000
    mauve: bool = False


@dataclass(frozen=True)
class ModelReport:
    """What a report says about one checkpoint.

    Attributes:
        name: of the checkpoint in the report.
        checkpoint: its directory.
        kind: of its objective, such as `non_autoregressive`.
        parameters: number of its weights.
        step: optimizer steps taken.
        likelihood: of all sources together.
        sources: of each source.
        reencoded: whether the data was encoded anew with the checkpoint's tokenizer.
        decoding: the checkpoint's own settings of decoding; samples have those of them that their setting does not
            name, such as `top_p`.
        points: one for each setting of the samples.
    """

    name: str
    checkpoint: str
    kind: str
    parameters: int
    step: int
    likelihood: Likelihood
    sources: dict[str, Likelihood]
    reencoded: bool
    decoding: SamplerConfig
    points: list[FrontierPoint]


@dataclass(frozen=True)
class Report:
    """A report.

    Attributes:
        data: the directory or URL of each source.
        split: the part of the data that was evaluated.
        reference: the model that scored the samples; None if there was none.
        seed: of the samples.
        machine: what the samples were timed on.
        models: one for each checkpoint.
        validation_text: the same measurements of as many pieces of the evaluated text itself; None without samples.
    """

    data: Mapping[str, str]
    split: str
    reference: str | None
    seed: int
    machine: str
    models: list[ModelReport]
    validation_text: TextQuality | None

    def as_dict(self) -> dict[str, Any]:
        """The report for JSON."""
        result = asdict(self)
        for model, described in zip(self.models, result["models"]):
            described["likelihood"] = describe_likelihood(model.likelihood)
            described["decoding"] = model.decoding.model_dump(mode="json")
            described["sources"] = {name: describe_likelihood(each) for name, each in model.sources.items()}
        return result


def make_report(
    checkpoints: Sequence[str],
    data: DataOptions,
    samples: SampleOptions,
    device: str = "cpu",
    weights: WeightKind = "model",
) -> Report:
    """Evaluate checkpoints, one after the other in memory.

    Args:
        checkpoints: directories of consolidated checkpoints.
        data: what they are evaluated on; the text of the first source is that of the samples' comparison.
        samples: what samples are drawn.
        device: cpu or cuda.
        weights: `model` for the weights of the last step, `ema` for their moving average.

    Raises:
        UserError: a checkpoint, a data set or an option that cannot be used.
    """
    _check(samples, checkpoints)
    reference = None
    if samples.reference is not None and samples.count:
        reference = load_reference(samples.reference, device, data.batch_size)
    searched = samples.count and samples.training_samples
    training = [data.open(name, "train") for name in data.sources] if searched else []
    models, drawn = [], []
    for number, (name, checkpoint) in enumerate(zip(_names(checkpoints), checkpoints), 1):
        _logger.info("checkpoint %d of %d: %s", number, len(checkpoints), checkpoint)
        model = load_consolidated(checkpoint, device, weights=weights)
        sources, reencoded = measure_any_likelihoods(model, data)
        likelihood = pool_likelihoods(sources)
        _logger.info("%s: %s", name, likelihood)
        drawn.append(_draw(model, name, samples, data) if samples.count else [])
        models.append(
            ModelReport(
                name,
                checkpoint,
                model.config.objective.kind,
                sum(weight.numel() for weight in model.wrapper.parameters()),
                model.info.step,
                likelihood,
                sources,
                reencoded,
                model.info.decode.decoding,
                [],
            )
        )
    text = None
    if samples.count:
        text = _measure(models, drawn, reference, training, data, samples)
    name_of_reference = None if reference is None else reference.name
    return Report(dict(data.sources), data.split, name_of_reference, samples.seed, _machine(device), models, text)


def load_reference(directory: str, device: str, batch_size: int) -> Reference:
    """The model that scores samples, from a consolidated checkpoint or a directory of the Hugging Face layout.

    Raises:
        UserError: it is neither, or has no tokenizer.
    """
    if (Path(directory) / MODEL_FILE).exists():
        model = load_consolidated(directory, device)
        if model.tokenizer is None:
            raise UserError(f"the reference model {directory} has no tokenizer, so it cannot score text")
        return CheckpointReference(model.wrapper, model.tokenizer, directory, batch_size)
    if (Path(directory) / "config.json").exists():
        return TransformersReference(directory, device, batch_size)
    raise UserError(
        f"the reference model {directory} is neither a consolidated checkpoint (no {MODEL_FILE}) nor of the Hugging "
        "Face layout (no config.json)"
    )


def _draw(model: LoadedModel, name: str, samples: SampleOptions, data: DataOptions) -> list[SampleSet]:
    """Samples of a model with each setting that makes sense for it."""
    settings = settings_of(model, samples.temperatures, samples.samplers, samples.steps)
    drawn = []
    for number, setting in enumerate(with_progress(settings, "samples", "setting", enabled=data.progress), 1):
        one = draw_samples(model, setting, samples.count, samples.seed, data.batch_size)
        _logger.info(
            "%s, setting %d of %d: %d samples in %.1f s: %s",
            name,
            number,
            len(settings),
            samples.count,
            one.seconds,
            setting,
        )
        drawn.append(one)
    return drawn


def _measure(
    models: Sequence[ModelReport],
    drawn: Sequence[Sequence[SampleSet]],
    reference: Reference | None,
    training: Sequence[Split],
    data: DataOptions,
    samples: SampleOptions,
) -> TextQuality:
    """Fill in the points of all models, and return the quality of the evaluated text itself."""
    source = next(iter(data.sources))
    split = data.open(source, data.split)
    tokenizer = split.tokenizer()
    texts = [[tokenizer.decode(part) for part in parts] for parts in _pieces(split, samples.count)]
    human = texts if samples.mauve else None
    known: set[str] | None = None
    if training:
        wanted = {word for sets in drawn for one in sets for word in words_in(one.documents)} | set(words_in(texts))
        known = set()
        for each in training:
            known |= find_words(wanted - known, each, samples.training_samples, data.progress)
    all_sets = [(model, one) for model, sets in zip(models, drawn) for one in sets]
    for model, one in with_progress(all_sets, "score", "setting", enabled=data.progress):
        model.points.append(measure_samples(one, reference, tokenizer, known, human))
    return measure_texts(texts, reference, tokenizer, known)


def _pieces(split: Split, count: int) -> Iterator[list[list[int]]]:
    """The documents in each of a number of sequences, spread evenly over a split."""
    total = split.index.num_samples
    for number in islice(range(0, total, max(1, total // count)), count):
        yield cut_documents(split.read(number).tolist(), split.info.end_token)


def _check(samples: SampleOptions, checkpoints: Sequence[str]) -> None:
    """Refuse what cannot be drawn, before anything that takes long."""
    if samples.count < 0 or samples.training_samples < 0:
        raise UserError("the numbers of samples cannot be negative; 0 leaves them out")
    if samples.mauve and samples.reference is None:
        raise UserError("MAUVE is measured under a reference model; name one with --reference-checkpoint")
    if samples.mauve:
        import_mauve()
    if not samples.temperatures or (samples.samplers is not None and not samples.samplers):
        raise UserError("samples need at least one temperature and one sampler")
    for checkpoint in checkpoints if samples.count else ():
        model = describe_consolidated(checkpoint, verify=False)
        settings_of(model, samples.temperatures, samples.samplers, samples.steps)


def _names(checkpoints: Sequence[str]) -> list[str]:
    """The last part of each path, or the whole path where two have the same one."""
    last = [Path(checkpoint).name or checkpoint for checkpoint in checkpoints]
    if len(set(checkpoints)) < len(checkpoints):
        raise UserError("a checkpoint is given twice")
    return last if len(set(last)) == len(last) else list(checkpoints)


def _machine(device: str) -> str:
    if device.startswith("cuda"):
        return torch.cuda.get_device_name(device)
    return f"{platform.machine()} CPU, {torch.get_num_threads()} thread(s)"
