"""A report as a picture: likelihoods, frontiers of quality and entropy, and what the samples cost."""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Mapping, Sequence
from itertools import groupby
from typing import TYPE_CHECKING, Any, Literal

from nar_scale.errors import UserError
from nar_scale.reporting.frontier import FrontierPoint, TextQuality, at_entropy
from nar_scale.reporting.report import Report

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.text import Annotation
    from matplotlib.transforms import Bbox

_COLOURS = ("tab:blue", "tab:orange", "tab:green", "tab:red", "tab:purple", "tab:brown", "tab:pink", "tab:gray")
_MARKERS = "osD^vP*X"
_ROW = (10.5, 4.3)  # inches
_SMALL = 10  # points
_POINTS_OF_INCH = 72
_LOGARITHMIC_FROM, _DECADE = 3.0, 20.0  # largest over smallest value
_RISES = 8  # of the limit of a chart; a single one brings the points nearer to each other, so that more is needed
_EVALUATED_TEXT = "evaluated text"
_Cost = Callable[[FrontierPoint], float]
_Quality = Callable[[TextQuality], float]


def draw_picture(report: Report) -> bytes:
    """The bytes of a PNG file.

    Raises:
        UserError: matplotlib is not installed.
    """
    figure_of = import_figure()
    from matplotlib import rc_context

    layout = _layout(report)
    with rc_context(
        {
            "font.size": 12,
            "axes.titlesize": 13,
            "axes.grid": True,
            "axes.axisbelow": True,
            "grid.alpha": 0.3,
            "lines.linewidth": 1.6,
        }
    ):
        figure = figure_of(figsize=(_ROW[0], _ROW[1] * len(layout)), layout="constrained", dpi=110)
        axes = figure.subplot_mosaic(layout)
        _draw_likelihoods(axes["likelihood"], report)
        if "by fraction" in axes:
            _draw_by_fraction(axes["by fraction"], report)
        if report.validation_text is not None:
            _draw_samples(axes, report, report.validation_text)
        _add_legend(figure)
        _part_numbers(figure)
        stream = io.BytesIO()
        figure.savefig(stream, format="png")
    return stream.getvalue()


def _layout(report: Report) -> list[list[str]]:
    """The names of the charts in each row of two; one that is alone takes the whole row."""
    masked = any(model.likelihood.by_masked_fraction for model in report.models)
    rows = [["likelihood", "by fraction"] if masked else ["likelihood"]]
    if report.validation_text is not None:
        rows += [list(_measured(report, report.validation_text)), ["calls", "time"]]
    return [[row[0], row[-1]] for row in rows]


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


def _add_legend(figure: Figure) -> None:
    """One legend for all charts, above them, in as many columns as fit, at most four: a name means the same in each."""
    named = {}
    for each in figure.axes:
        handles, labels = each.get_legend_handles_labels()
        for handle, label in zip(handles, labels):
            named[label] = handle  # the later charts have the markers of the samplers
    if named:
        last = named.pop(_EVALUATED_TEXT, None)
        named |= {} if last is None else {_EVALUATED_TEXT: last}
        for columns in range(4, 0, -1):
            legend = figure.legend(
                named.values(), named.keys(), loc="outside upper center", ncols=columns, frameon=False
            )
            figure.draw_without_rendering()
            if columns == 1 or legend.get_window_extent().width <= figure.bbox.width:
                return
            legend.remove()


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
    axes.margins(x=0.18)
    axes.grid(axis="y", visible=False)
    axes.set_xlabel("bits/byte" if in_bytes else "nats/token")
    axes.set_title(f"likelihood of the {report.split} text (≤: upper bound)")


def _draw_by_fraction(axes: Axes, report: Report) -> None:
    for model, colour in zip(report.models, _cycle(_COLOURS, len(report.models))):
        losses = model.likelihood.by_masked_fraction
        if losses:
            edges = [map(float, name.removeprefix("masked_").split("_to_")) for name in losses]
            labels = ["-".join(f"{100 * edge:.0f}" for edge in pair) for pair in edges]
            nats = [loss.nats_per_token for loss in losses.values()]
            # of samples, the legend has the names from their charts
            label = model.name if report.validation_text is None else None
            axes.plot(labels, nats, marker="o", color=colour, label=label)
    axes.set_xlabel("tokens that are masked, %")
    axes.set_ylabel("nats/token")
    axes.set_title("cross-entropy of masked tokens")


def _draw_samples(axes: Mapping[str, Axes], report: Report, text: TextQuality) -> None:
    measured, by_calls, by_time = _measured(report, text), axes["calls"], axes["time"]
    for label, quality in measured.items():
        _draw_frontier(axes[label], report, quality, text)
        axes[label].set_ylabel(label)
        axes[label].set_title(f"{label} and diversity,\nalong temperatures (numbers: steps)")
    label, quality = next(iter(measured.items()))
    _draw_cost(by_calls, report, lambda point: point.tokens_per_call, quality, text)
    by_calls.set_xlabel("tokens a network call")
    _draw_cost(by_time, report, lambda point: point.tokens_per_second, quality, text)
    by_time.set_xlabel(f"tokens/s ({report.machine})")
    _spread(by_calls, "x", base=2)
    _spread(by_time, "x")
    for each, cost in ((by_calls, "network calls"), (by_time, "time")):
        each.set_ylabel(label)
        each.set_title(f"{label} and {cost},\nat the text's entropy (numbers: steps)")
    if report.reference is not None:
        for each in (axes[label], by_calls, by_time):
            _spread(each, "y")


def _measured(report: Report, text: TextQuality) -> dict[str, _Quality]:
    """The measures of quality that the report has, by label, the most telling first."""
    measured: dict[str, _Quality] = {}
    if report.reference is not None:
        measured["generative perplexity"] = _perplexity
    if text.known_words is not None:
        measured["share of known words"] = _known_words
    return measured or {"repetition": lambda text: text.repetition}


def _spread(axes: Axes, which: Literal["x", "y"], base: int = 10) -> None:
    """A logarithmic axis with plain numbers, where the values differ by more than a few times.

    With base 2 the numbers are powers of two, as those of steps and of the tokens of a call are.
    """
    from matplotlib.ticker import LogLocator, NullLocator, StrMethodFormatter

    low, high = axes.dataLim.intervalx if which == "x" else axes.dataLim.intervaly
    if not 0 < low < high / _LOGARITHMIC_FROM:
        return
    axes.set(**{f"{which}scale": "log"})
    axis = axes.xaxis if which == "x" else axes.yaxis
    digits = (1,) if base == 2 else (1, 2, 3, 5) if high < _DECADE * low else (1, 2, 5)
    axis.set_major_locator(LogLocator(base, digits))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(StrMethodFormatter("{x:g}"))


def _draw_frontier(axes: Axes, report: Report, value: _Quality, text: TextQuality) -> None:
    """A line along the temperatures for each model, sampler and number of steps, which stands at its cold end."""
    for model, colour in zip(report.models, _cycle(_COLOURS, len(report.models))):
        marker_of = dict(zip(dict.fromkeys(point.setting.sampler for point in model.points), _MARKERS))
        groups = groupby(model.points, key=lambda point: (point.setting.sampler, point.setting.steps))
        for (sampler, steps), group in groups:
            points = sorted(group, key=lambda point: point.setting.temperature)
            places = [(point.quality.entropy, value(point.quality)) for point in points]
            label, marker = _label(model.name, sampler), marker_of.get(sampler, _MARKERS[-1])
            axes.plot(*zip(*places), marker=marker, markersize=5, color=colour, label=label)
            if steps is not None:
                _write_beside(axes, places[0], str(steps), colour, to_the_left=True)
    if not math.isnan(own := value(text)):
        place = ([text.entropy], [own])
        axes.plot(*place, marker="*", markersize=15, color="black", linestyle="", label=_EVALUATED_TEXT)
    axes.margins(x=0.1)
    axes.set_xlabel("entropy of a sample, nats")


def _draw_cost(axes: Axes, report: Report, cost: _Cost, quality: _Quality, text: TextQuality) -> None:
    for model, colour in zip(report.models, _cycle(_COLOURS, len(report.models))):
        near = at_entropy(model.points, text.entropy)
        for sampler, marker in zip(dict.fromkeys(point.setting.sampler for point in near), _MARKERS):
            points = sorted((point for point in near if point.setting.sampler == sampler), key=cost)
            costs, values = [cost(point) for point in points], [quality(point.quality) for point in points]
            axes.plot(costs, values, marker=marker, markersize=7, color=colour, label=_label(model.name, sampler))
            for point, place in zip(points, zip(costs, values)):
                if point.setting.steps is not None:
                    _write_beside(axes, place, str(point.setting.steps), colour)
    if not math.isnan(own := quality(text)):
        axes.axhline(own, color="black", linestyle=":")
        axes.annotate(
            _EVALUATED_TEXT,
            (1, own),
            (-4, 4),
            xycoords=("axes fraction", "data"),
            textcoords="offset points",
            ha="right",
            fontsize=_SMALL,
        )
    axes.margins(x=0.1, y=0.1)


def _write_beside(axes: Axes, place: tuple[float, float], text: str, colour: str, to_the_left: bool = False) -> None:
    offset, alignment = ((-6, 0), ("right", "center")) if to_the_left else ((5, 5), ("left", "bottom"))
    horizontal, vertical = alignment
    axes.annotate(
        text, place, offset, textcoords="offset points", ha=horizontal, va=vertical, color=colour, fontsize=_SMALL
    )


def _part_numbers(figure: Figure) -> None:
    """Move the numbers of steps upwards until none lies over another one, and raise the limit of a chart for them."""
    from matplotlib import text as texts

    figure.draw_without_rendering()  # gives everything its place
    for axes in figure.axes:
        numbers = [text for text in axes.texts if isinstance(text, texts.Annotation) and text.get_text().isdigit()]
        offsets = [text.get_position() for text in numbers]
        for rise in range(_RISES + 1):
            for text, offset in zip(numbers, offsets):
                text.set_position(offset)
            above = _move_upwards(numbers, figure.dpi) - axes.bbox.y1
            if above <= 1 or rise == _RISES:  # pixel
                break
            top = axes.bbox.y1 + min(above, axes.bbox.height / 4)
            axes.set_ylim(top=axes.transData.inverted().transform((0, top))[1])


def _move_upwards(numbers: Sequence[Annotation], dots_per_inch: float) -> float:
    """Move texts, from the lowest on, above those that they lie over; returns where the highest ends, in pixels."""
    placed: list[Bbox] = []
    for text in sorted(numbers, key=lambda text: text.get_window_extent().y0):
        box = text.get_window_extent()
        for other in sorted(placed, key=lambda other: other.y0):
            if box.overlaps(other):
                box = box.translated(0, other.y1 - box.y0 + 1)
        placed.append(box)
        x, y = text.get_position()
        text.set_position((x, y + (box.y0 - text.get_window_extent().y0) * _POINTS_OF_INCH / dots_per_inch))
    return max((box.y1 for box in placed), default=0.0)


def _label(model: str, sampler: str | None) -> str:
    """The name of a model, with its sampler where it is not the one of left-to-right models."""
    return model if sampler is None else f"{model}, {sampler}"


def _perplexity(text: TextQuality) -> float:
    return math.nan if text.generative_perplexity is None else text.generative_perplexity


def _known_words(text: TextQuality) -> float:
    return math.nan if text.known_words is None else text.known_words


def _cycle(values: Sequence[str], count: int) -> list[str]:
    return [values[number % len(values)] for number in range(count)]
