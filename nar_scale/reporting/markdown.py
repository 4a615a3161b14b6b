"""A report as Markdown tables."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from nar_scale.config import UNSCHEDULED_SAMPLERS, SamplerConfig
from nar_scale.reporting.frontier import FrontierPoint, TextQuality, at_entropy, typical_point
from nar_scale.reporting.report import ModelReport, Report
from nar_scale.text import printable


def render_markdown(report: Report, picture: str | None = None) -> str:
    """The text of a report.

    Args:
        report: what is written.
        picture: name of the file with its picture, beside the text.
    """
    return "\n".join(_lines(report, picture)) + "\n"


def _lines(report: Report, picture: str | None) -> Iterator[str]:
    yield f"# {', '.join(model.name for model in report.models)}"
    yield ""
    yield f"Evaluated on the split `{report.split}` of {', '.join(f'`{each}`' for each in report.data.values())}."
    if picture is not None:
        yield from ("", f"![The report as a picture]({picture})")
    yield from ("", "## Likelihood", "")
    yield from _likelihoods(report)
    if any(model.likelihood.by_masked_fraction for model in report.models):
        yield from ("", "Cross-entropy of masked tokens by the fraction that is masked, nats/token:", "")
        yield from _by_fraction(report.models)
    if report.validation_text is not None:
        yield from ("", "## Samples", "")
        yield from _beginnings(report, report.validation_text)
        yield from ("", "## Quality and cost of the samples", "")
        yield from _samples(report, report.validation_text)


def _likelihoods(report: Report) -> Iterator[str]:
    rows = []
    for model in report.models:
        sources = {"": model.likelihood} if len(model.sources) == 1 else {"all": model.likelihood, **model.sources}
        for name, likelihood in sources.items():
            bits = likelihood.bits_per_byte
            bound = "" if likelihood.bound is None else f", diffusion bound {likelihood.bound.nats_per_token:.4f}"
            rows.append(
                (
                    model.name,
                    *((name,) if len(report.data) > 1 else ()),
                    model.kind,
                    f"{model.parameters:,}",
                    f"{model.step:,}",
                    f"{likelihood.nats_per_token:.4f} ± {likelihood.standard_error:.4f}",
                    "" if bits is None else f"{bits:.3f}",
                    likelihood.estimator + bound + (", text encoded anew" if model.reencoded else ""),
                )
            )
    source = ("source",) if len(report.data) > 1 else ()
    yield from _table(("model", *source, "kind", "parameters", "steps", "nats/token", "bits/byte", "estimator"), rows)
    yield from ("", "Tokens of different tokenizers differ: compare bits/byte. A NELBO is an upper bound.")


def _by_fraction(models: Sequence[ModelReport]) -> Iterator[str]:
    names = sorted({name for model in models for name in model.likelihood.by_masked_fraction})
    rows = []
    for model in models:
        losses = model.likelihood.by_masked_fraction
        if losses:
            rows.append(
                (model.name, *(f"{losses[name].nats_per_token:.3f}" if name in losses else "" for name in names))
            )
    yield from _table(("model", *(fraction_label(name) for name in names)), rows)


def fraction_label(name: str) -> str:
    """A range of masked fractions, such as "0.2 to 0.4", from the name `masked_0.2_to_0.4`."""
    return name.removeprefix("masked_").replace("_", " ")


def _beginnings(report: Report, text: TextQuality) -> Iterator[str]:
    """The beginning of one sample of each model."""
    chosen = "most network calls" if report.reference is None else "best generative perplexity"
    yield (
        "The beginning of each model's first sample with one setting: of those near the entropy of the evaluated text, "
        f"the one with the {chosen}."
    )
    for model in report.models:
        if (point := typical_point(model.points, text.entropy)) is not None:
            yield from ("", f"**{model.name}**, {point.setting}:", "")
            yield from _code_block(point.sample)


def _code_block(text: str) -> Iterator[str]:
    """A block with a fence that the text does not have; control characters other than line breaks are escaped."""
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", text)), default=0))
    yield from (fence, *(printable(line.expandtabs(4)) for line in text.split("\n")), fence)


def _samples(report: Report, text: TextQuality) -> Iterator[str]:
    reference = "no reference model" if report.reference is None else f"reference model `{report.reference}`"
    yield (
        f"{text.samples} samples of each setting, seed {report.seed}; {reference}; timed on {report.machine}. Low "
        "perplexity with low entropy is no quality: compare perplexities at equal entropy, with that of the evaluated "
        "text as the mark. Entropy grows with length, so mind the tokens of a sample."
    )
    yield from _own_settings(report.models)
    yield from ("", "At the temperature whose entropy is nearest to that of the evaluated text:", "")
    near = [(model, point) for model in report.models for point in at_entropy(model.points, text.entropy)]
    yield from _points(near, text)
    yield from ("", "All settings:", "")
    yield from _points([(model, point) for model in report.models for point in model.points], text)


_COMMON = ("top_k", "top_p", "guidance", "stop")  # what all samplers have


def _own_settings(models: Sequence[ModelReport]) -> Iterator[str]:
    """How the checkpoints' own decoding differs from the defaults, in what a setting need not name."""
    own = {model.name: _differing(model.decoding) for model in models}
    if not any(own.values()):
        return
    described = "; ".join(f"{name}: {settings or 'none'}" for name, settings in own.items())
    common = {tuple(getattr(model.decoding, name) for name in _COMMON) for model in models}
    differ = " What all samplers have differs, so that the samples compare settings too." if len(common) > 1 else ""
    yield from ("", f"What a setting does not name is that of the checkpoint's own `decoding`. {described}.{differ}")


def _differing(decoding: SamplerConfig) -> str:
    named = ["sampler", "temperature", *(["steps"] if decoding.sampler not in UNSCHEDULED_SAMPLERS else [])]
    fields = type(decoding).model_fields
    return ", ".join(
        f"`{name}` {value!r}" for name, value in decoding if name not in named and value != fields[name].default
    )


def _points(points: Sequence[tuple[ModelReport, FrontierPoint]], text: TextQuality) -> Iterator[str]:
    rows = [
        {
            "model": model.name,
            "sampler": point.setting.sampler or "left to right",
            "steps": "" if point.setting.steps is None else str(point.setting.steps),
            "temperature": f"{point.setting.temperature:g}",
            "tokens": f"{point.quality.tokens_per_sample:.0f}",
            "tokens/call": f"{point.tokens_per_call:.2f}",
            "tokens/s": f"{point.tokens_per_second:,.0f}",
            **_quality(point.quality),
        }
        for model, point in points
    ]
    rows.append({"model": "evaluated text", "tokens": f"{text.tokens_per_sample:.0f}", **_quality(text)})
    head = list(dict.fromkeys(name for row in rows for name in row))
    yield from _table(head, [[row.get(name, "") for name in head] for row in rows])


def _quality(quality: TextQuality) -> dict[str, str]:
    """What was measured of a text, by name of the column."""
    perplexity, error = quality.generative_perplexity, quality.generative_perplexity_error
    return {
        **({} if perplexity is None else {"generative perplexity": f"{perplexity:.2f} ± {error:.2f}"}),
        "entropy": f"{quality.entropy:.3f}",
        **{f"distinct-{n}": f"{share:.3f}" for n, share in quality.distinct.items()},
        "repetition": f"{quality.repetition:.3f}",
        **({} if quality.known_words is None else {"known words": f"{quality.known_words:.1%} of {quality.words:,}"}),
        **({} if quality.mauve is None else {"MAUVE": f"{quality.mauve:.3f}"}),
    }


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    yield f"| {' | '.join(head)} |"
    yield f"|{'---|' * len(head)}"
    for row in rows:
        yield f"| {' | '.join(row)} |"
