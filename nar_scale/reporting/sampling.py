"""Samples of a model over a grid of settings, with the time and the network calls that they took."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import yaml

from nar_scale.checkpoint import LoadedModel
from nar_scale.config import SAMPLERS_OF_KIND, UNMASKING_SAMPLERS, UNSCHEDULED_SAMPLERS
from nar_scale.errors import UserError
from nar_scale.evaluation.reencoding import cut_documents
from nar_scale.generation import SamplingOptions, check_requests, generate_samples, samples_from_scratch
from nar_scale.generation.sampling import check_options


@dataclass(frozen=True)
class Setting:
    """How samples are drawn.

    Attributes:
        temperature: of the sampler.
        sampler: its name, with settings behind a colon such as `threshold:threshold=0.6`; None for the one of an
            autoregressive model.
        steps: network calls for a sequence; None where it takes as many as it needs.
    """

    temperature: float
    sampler: str | None = None
    steps: int | None = None

    def __str__(self) -> str:
        steps = "" if self.steps is None else f", {self.steps} steps"
        return f"{self.sampler or 'left to right'}{steps}, temperature {self.temperature:g}"


@dataclass(frozen=True)
class SampleSet:
    """Samples that were drawn from scratch with one setting.

    Attributes:
        setting: how they were drawn.
        documents: the texts of the documents that each sample holds.
        tokens: generated tokens of all samples, in the model's own tokens.
        network_calls: the sum over the samples of the forward passes that each took.
        seconds: wall time of all samples.
    """

    setting: Setting
    documents: list[list[str]]
    tokens: int
    network_calls: int
    seconds: float


def settings_of(
    model: LoadedModel, temperatures: Sequence[float], samplers: Sequence[str] | None, steps: Sequence[int] | None
) -> list[Setting]:
    """The grid of settings that make sense for a model.

    Args:
        model: of any kind; its weights are not looked at, so that it may be on the meta device.
        temperatures: of all samplers.
        samplers: of models that fill in masks, as `Setting.sampler`; if None the checkpoint's own, or `random` where
            that is none of them. A hybrid has `self_speculative` in addition.
        steps: network calls of samplers that have a schedule; an eighth, a quarter, a half and all tokens if None.

    Raises:
        UserError: the model has no tokenizer, or a setting is unknown, out of range or not for this model.
    """
    if model.tokenizer is None:
        raise UserError(
            "samples are compared as text, but the checkpoint has no tokenizer; leave them out (--samples 0)"
        )
    grid = _grid(model, temperatures, samplers, steps)
    for setting in grid:
        check_options(_options(setting, 0), model)
    return grid


def _grid(
    model: LoadedModel, temperatures: Sequence[float], samplers: Sequence[str] | None, steps: Sequence[int] | None
) -> list[Setting]:
    if model.wrapper.mask_id is None:
        return [Setting(temperature) for temperature in temperatures]
    if samplers is None:
        own = model.info.decode.decoding.sampler
        samplers = [own if own in UNMASKING_SAMPLERS else "random"]
    n = model.wrapper.max_seq_len
    steps = steps or sorted({max(1, n // 8), max(1, n // 4), max(1, n // 2), n})
    grid = [
        Setting(temperature, sampler, count)
        for sampler in samplers
        for count in ([None] if sampler.partition(":")[0] in UNSCHEDULED_SAMPLERS else steps)
        for temperature in temperatures
    ]
    if "self_speculative" in SAMPLERS_OF_KIND[model.config.objective.kind]:
        grid = [Setting(temperature, "self_speculative") for temperature in temperatures] + grid
    return grid


def draw_samples(model: LoadedModel, setting: Setting, count: int, seed: int, batch_size: int) -> SampleSet:
    """Draw samples from scratch; one more is drawn before them, so that the time is not that of the first call.

    Args:
        model: with a tokenizer.
        setting: how to draw.
        count: number of samples.
        seed: of all randomness.
        batch_size: sequences in a batch.
    """
    assert model.tokenizer is not None, "as `settings_of` sees to"
    options = _options(setting, seed)
    requests = check_requests(samples_from_scratch(count), model, model.wrapper.max_seq_len)
    list(generate_samples(model, requests[:1], options, batch_size))
    start = time.perf_counter()
    samples = list(generate_samples(model, requests, options, batch_size))
    seconds = time.perf_counter() - start
    end_token, decode = model.info.decode.end_token, model.tokenizer.decode
    return SampleSet(
        setting,
        [[decode(document) for document in cut_documents(sample.tokens, end_token)] for sample in samples],
        sum(len(sample.tokens) for sample in samples),
        sum(sample.network_calls for sample in samples),
        seconds,
    )


def _options(setting: Setting, seed: int) -> SamplingOptions:
    """The only place where the options of a sampler are made."""
    name, _, settings = (setting.sampler or "").partition(":")
    pairs = (pair.partition("=") for pair in settings.split(",") if pair)
    return SamplingOptions(
        temperature=setting.temperature,
        sampler=name or None,
        steps=setting.steps,
        sampler_options={key: yaml.safe_load(value) for key, _, value in pairs},
        seed=seed,
    )
