"""A report as a picture: likelihoods, frontiers of quality and entropy, and what the samples cost."""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Sequence
from itertools import groupby
from typing import TYPE_CHECKING, Any, Literal

from nar_scale.errors import UserError
from nar_scale.reporting.frontier import FrontierPoint, TextQuality, at_entropy
from nar_scale.reporting.markdown import fraction_label
from nar_scale.reporting.report import Report

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_COLOURS = ("tab:blue", "tab:orange", "tab:green", "tab:red", "tab:purple", "tab:brown", "tab:pink", "tab:gray")
_MARKERS = "osD^vP*X"
_Cost = Callable[[FrontierPoint], float]
_Quality = Callable[[TextQuality], float]


def draw_picture(report: Report) -> bytes:
    """The bytes of a PNG file.

    Raises:
        UserError: matplotlib is not installed.
    """
    figure_of = import_figure()
    rows = 1 if report.validation_text is None else 3
    figure = figure_of(figsize=(13, 4.2 * rows), layout="constrained", dpi=110)
    axes = figure.subplots(rows, 2, squeeze=False)
    _draw_likelihoods(axes[0, 0], report)
    _draw_by_fraction(axes[0, 1], report)
    if report.validation_text is not None:
        _draw_samples(axes[1:].flatten(), report, report.validation_text)
    stream = io.BytesIO()
    figure.savefig(stream, format="png")
    return stream.getvalue()


def import_figure() -> Any:
    """The class of figures.

    Raises:
        UserError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise UserError(
            f"the picture of a report needs an optional package ({error.name}): pip install 'nar_scale[report]'"
        ) from error
    return Figure


def _draw_likelihoods(axes: Axes, report: Report) -> None:
    """A bar for each model, and for each of its sources where there are several."""
    several = len(report.data) > 1
    names, values, errors, colours = [], [], [], []
    in_bytes = all(model.likelihood.bits_per_byte is not None for model in report.models)
    for model, colour in zip(report.models, _cycle(_COLOURS, len(report.models))):
        for name, likelihood in {"": model.likelihood, **(model.sources if several else {})}.items():
            factor = 1.0
            if in_bytes and likelihood.bits_per_byte is not None:
                factor = likelihood.bits_per_byte / likelihood.nats_per_token
            names.append(f"{model.name}{f': {name}' if name else ''}{' ≤' if likelihood.kind == 'bound' else ''}")
            values.append(likelihood.nats_per_token * factor)
            errors.append(likelihood.standard_error * factor)
            colours.append(colour)
    bars = axes.barh(names, values, xerr=errors, color=colours, height=0.6)
    axes.bar_label(bars, fmt="%.3f", padding=4)
    axes.invert_yaxis()
    axes.margins(x=0.15)
    axes.set_xlabel("bits/byte" if in_bytes else "nats/token")
    axes.set_title(f"likelihood of the {report.split} text (≤: upper bound)")


def _draw_by_fraction(axes: Axes, report: Report) -> None:
    for model, colour in zip(report.models, _cycle(_COLOURS, len(report.models))):
        losses = model.likelihood.by_masked_fraction
        if losses:
            labels = [fraction_label(name) for name in losses]
            nats = [loss.nats_per_token for loss in losses.values()]
            axes.plot(labels, nats, marker="o", color=colour, label=model.name)
    if not axes.lines:
        axes.set_axis_off()
        return
    axes.set_xlabel("fraction that is masked")
    axes.set_ylabel("nats/token")
    axes.set_title("cross-entropy of masked tokens")
    axes.legend()


def _draw_samples(axes: Sequence[Axes], report: Report, text: TextQuality) -> None:
    measured = _measured(report, text)
    frontiers, (by_calls, by_time, *empty) = axes[: len(measured)], axes[len(measured) :]
    for each, (label, quality) in zip(frontiers, measured.items()):
        _draw_frontier(each, report, quality, label, text)
        each.set_title(f"{label} and diversity, along temperatures")
    for each in empty:
        each.set_axis_off()
    handles, labels = frontiers[0].get_legend_handles_labels()
    beside = (0.0 if empty else 1.01, 0.5)  # no place in the charts is free
    (empty or frontiers)[-1].legend(handles, labels, fontsize=8, loc="center left", bbox_to_anchor=beside)
    label, quality = next(iter(measured.items()))
    _draw_cost(by_calls, report, lambda point: point.tokens_per_call, quality, text)
    by_calls.set_xlabel("tokens a network call")
    _draw_cost(by_time, report, lambda point: point.tokens_per_second, quality, text)
    by_time.set_xlabel(f"tokens/s ({report.machine})")
    for each in (by_calls, by_time):
        _use_powers(each, "x")
        each.set_ylabel(label)
        each.set_title("at the entropy nearest to that of the text (numbers: steps)")
    if report.reference is not None:
        for each in (frontiers[0], by_calls, by_time):
            _use_powers(each, "y")


def _measured(report: Report, text: TextQuality) -> dict[str, _Quality]:
    """The measures of quality that the report has, by label, the most telling first."""
    measured: dict[str, _Quality] = {}
    if report.reference is not None:
        measured["generative perplexity"] = _perplexity
    if text.known_words is not None:
        measured["share of known words"] = _known_words
    return measured or {"repetition": lambda text: text.repetition}


def _use_powers(axes: Axes, which: Literal["x", "y"]) -> None:
    """A logarithmic axis with plain numbers."""
    from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

    axes.set(**{f"{which}scale": "log"})
    axis = axes.xaxis if which == "x" else axes.yaxis
    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axis.set_minor_formatter(NullFormatter())


def _draw_frontier(axes: Axes, report: Report, value: _Quality, label: str, text: TextQuality) -> None:
    for model, colour in zip(report.models, _cycle(_COLOURS, len(report.models))):
        groups = groupby(model.points, key=lambda point: (point.setting.sampler, point.setting.steps))
        for ((_, steps), group), marker in zip(groups, _cycle(_MARKERS, len(model.points))):
            points = sorted(group, key=lambda point: point.setting.temperature)
            axes.plot(
                [point.quality.entropy for point in points],
                [value(point.quality) for point in points],
                marker=marker,
                markersize=4,
                linewidth=1,
                color=colour,
                label=_line_name(model.name, points[0], steps),
            )
    if not math.isnan(own := value(text)):
        axes.plot([text.entropy], [own], marker="*", markersize=11, color="black", linestyle="", label="evaluated text")
    axes.set_xlabel("entropy of a sample, nats")
    axes.set_ylabel(label)


def _draw_cost(axes: Axes, report: Report, cost: _Cost, quality: _Quality, text: TextQuality) -> None:
    for model, colour in zip(report.models, _cycle(_COLOURS, len(report.models))):
        near = at_entropy(model.points, text.entropy)
        for sampler, marker in zip(dict.fromkeys(point.setting.sampler for point in near), _MARKERS):
            points = sorted((point for point in near if point.setting.sampler == sampler), key=cost)
            name = model.name if sampler is None else f"{model.name}, {sampler}"
            costs, values = [cost(point) for point in points], [quality(point.quality) for point in points]
            axes.plot(costs, values, marker=marker, linewidth=1, color=colour, label=name)
        for point in near:
            if point.setting.steps is not None:
                place = (cost(point), quality(point.quality))
                axes.annotate(str(point.setting.steps), place, (4, 4), textcoords="offset points", fontsize=7)
    if not math.isnan(own := quality(text)):
        axes.axhline(own, color="black", linewidth=1, linestyle=":", label="evaluated text")
    axes.legend(fontsize=7)


def _line_name(model: str, point: FrontierPoint, steps: int | None) -> str:
    sampler = "" if point.setting.sampler is None else f", {point.setting.sampler}"
    return f"{model}{sampler}" if steps is None else f"{model}{sampler}, {steps} steps"


def _perplexity(text: TextQuality) -> float:
    return math.nan if text.generative_perplexity is None else text.generative_perplexity


def _known_words(text: TextQuality) -> float:
    return math.nan if text.known_words is None else text.known_words


def _cycle(values: Sequence[str], count: int) -> list[str]:
    return [values[number % len(values)] for number in range(count)]
