"""Line charts as places on a drawing of fixed size, which the template of the page writes as SVG."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from nar_scale.reporting.runs.run_files import Series

HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 260.0, 56.0, 14.0, 10.0, 34.0
_BUCKETS = 250  # of a line; more than the pixels show
_MARKS = 60  # places of a line that tell their numbers
_SMOOTHED_OVER = 20  # as a share of the line, one in so many; of short lines more
_LOGARITHMIC_FROM = 100.0  # largest over smallest value


@dataclass(frozen=True)
class Line:
    """A line of a chart.

    Attributes:
        label: its name in the legend; empty for one that is not named there.
        points: step and value, in order.
        colour: number of a colour of the page.
        faint: whether it stays in the background.
        dots: whether each point is marked.
    """

    label: str
    points: Series
    colour: int
    faint: bool = False
    dots: bool = False


@dataclass(frozen=True)
class Tick:
    """A number at an axis.

    Attributes:
        place: on the drawing.
        label: the number.
    """

    place: float
    label: str


@dataclass(frozen=True)
class Mark:
    """A point that tells its numbers when it is pointed at.

    Attributes:
        x: its place.
        y: its place.
        label: what it tells.
    """

    x: float
    y: float
    label: str


@dataclass(frozen=True)
class DrawnLine:
    """A line as it is drawn.

    Attributes:
        line: what it shows.
        path: the `d` of an SVG path.
        marks: points along it.
    """

    line: Line
    path: str
    marks: Sequence[Mark]


@dataclass(frozen=True)
class Chart:
    """A chart as it is drawn; places are in units of the drawing, from the top left.

    Attributes:
        title: what is shown.
        unit: of the values.
        note: what else is to be known.
        width: of the drawing, whose height is `HEIGHT`.
        lines: in the order in which they are drawn.
        x_ticks: of the steps.
        y_ticks: of the values.
        rules: upright lines at steps where something happened.
        logarithmic: whether the values are.
    """

    title: str
    unit: str
    note: str
    width: float
    lines: Sequence[DrawnLine]
    x_ticks: Sequence[Tick]
    y_ticks: Sequence[Tick]
    rules: Sequence[Tick]
    logarithmic: bool


def draw_chart(
    title: str,
    lines: Sequence[Line],
    unit: str = "",
    note: str = "",
    wide: bool = False,
    from_zero: bool = False,
    happenings: Sequence[tuple[int, str]] = (),
) -> Chart | None:
    """A chart of lines over steps; None if they have no points. Values of many magnitudes get a logarithmic axis.

    Args:
        title: what is shown.
        lines: what is drawn, the last on top.
        unit: of the values.
        note: what else is to be known.
        wide: whether it takes the whole width of the page.
        from_zero: whether the axis of the values begins at 0.
        happenings: steps at which something happened, and what.
    """
    points = [point for line in lines for point in line.points]
    if not points:
        return None
    width = 1080.0 if wide else 530.0
    steps, values = [step for step, _ in points], [value for _, value in points]
    low, high = min(values), max(values)
    logarithmic = not from_zero and low > 0 and high > _LOGARITHMIC_FROM * low
    y = _Axis(0.0 if from_zero else low, high, HEIGHT - BOTTOM, TOP, logarithmic, 5)
    x = _Axis(min(steps), max(steps), LEFT, width - RIGHT, False, 10 if wide else 6, whole=True)
    drawn = [
        DrawnLine(line, _path(line.points, x, y), () if line.faint else list(_marks(line, x, y, unit)))
        for line in lines
        if line.points
    ]
    rules = [Tick(x.place(step), what) for step, what in happenings if min(steps) <= step <= max(steps)]
    return Chart(title, unit, note, width, drawn, x.ticks, y.ticks, rules, logarithmic)


def smoothed(series: Series) -> Series:
    """The mean of each point and its neighbours, about a 20th of the series in all, or seven of a short one."""
    reach = max(len(series) // (2 * _SMOOTHED_OVER), min(3, len(series) // 10))
    sums = [0.0]
    for _, value in series:
        sums.append(sums[-1] + value)
    means = []
    for number, (step, _) in enumerate(series):
        around = min(reach, number, len(series) - 1 - number)  # the ends are not drawn towards the middle
        first, last = number - around, number + around + 1
        means.append((step, (sums[last] - sums[first]) / (last - first)))
    return means


def format_value(value: float) -> str:
    """A number with four digits that count, and with separators from a thousand on."""
    if value and not 1e-3 <= abs(value) < 1e7:
        return f"{value:.3g}"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


class _Axis:
    """Places of numbers along an axis, which is widened to round ones.

    Args:
        low: the smallest number.
        high: the largest.
        start: the place of the smallest.
        end: that of the largest.
        logarithmic: by their logarithms.
        count: about so many numbers stand at it.
        whole: whether they are integers, between which the axis is not widened.
    """

    def __init__(
        self, low: float, high: float, start: float, end: float, logarithmic: bool, count: int, whole: bool = False
    ):
        self._start, self._end, self._logarithmic = start, end, logarithmic
        if logarithmic:
            first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
            numbers = [10.0**power for power in range(first, last + 1, math.ceil((last - first) / count))]
            self._low, self._high = float(first), float(last)
        else:
            if low == high:
                low, high = low - (abs(low) or 1.0) / 2, high + (abs(high) or 1.0) / 2
            step = _round_step((high - low) / count)
            step = max(round(step), 1) if whole else step
            first, last = math.floor(low / step), math.ceil(high / step)
            numbers = [number * step for number in range(first, last + 1)]
            self._low, self._high = (low, high) if whole else (first * step, last * step)
            numbers = [number for number in numbers if self._low <= number <= self._high]
        self.ticks = [Tick(self.place(number), format_value(number)) for number in numbers]

    def place(self, number: float) -> float:
        """Where a number is, rounded to a tenth."""
        value = math.log10(number) if self._logarithmic else number
        share = (value - self._low) / (self._high - self._low)
        return round(self._start + share * (self._end - self._start), 1)


def _round_step(step: float) -> float:
    """The nearest of 1, 2 and 5 times a power of ten above a step."""
    power = 10.0 ** math.floor(math.log10(step))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= step * (1 - 1e-9))


def _path(points: Series, x: _Axis, y: _Axis) -> str:
    places = [f"{x.place(step)},{y.place(value)}" for step, value in _thinned(points)]
    return "M" + "L".join(places)


def _thinned(points: Series) -> Iterator[tuple[int, float]]:
    """Of each stretch the first, the lowest, the highest and the last point: the same drawing of fewer points.

    M4, doi:10.14778/2732951.2732953.
    """
    if len(points) <= 4 * _BUCKETS:
        yield from points
        return
    size = math.ceil(len(points) / _BUCKETS)
    for start in range(0, len(points), size):
        some = range(start, min(start + size, len(points)))
        by_value = sorted(some, key=lambda number: points[number][1])
        yield from (points[number] for number in sorted({some[0], by_value[0], by_value[-1], some[-1]}))


def _marks(line: Line, x: _Axis, y: _Axis, unit: str) -> Iterator[Mark]:
    every = 1 if line.dots else math.ceil(len(line.points) / _MARKS)
    last = len(line.points) - 1
    for number, (step, value) in enumerate(line.points):
        if number % every == 0 or number == last:
            label = f"{line.label + ', ' if line.label else ''}step {step:,}: {format_value(value)} {unit}"
            yield Mark(x.place(step), y.place(value), label.strip())
