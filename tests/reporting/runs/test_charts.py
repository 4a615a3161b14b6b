"""Where the lines of a chart are."""

import re

import pytest

from nar_scale.reporting.runs.charts import BOTTOM, HEIGHT, LEFT, RIGHT, TOP, Line, draw_chart, format_value, smoothed


def places(path):
    return [tuple(map(float, pair)) for pair in re.findall(r"([\d.]+),([\d.]+)", path)]


def chart_of(points, **options):
    chart = draw_chart("title", [Line("", points, 0)], **options)
    assert chart is not None
    return chart


def test_a_line_goes_from_corner_to_corner():
    chart = chart_of([(0, 0.0), (50, 5.0), (100, 10.0)])
    bottom, right = HEIGHT - BOTTOM, chart.width - RIGHT
    middle = ((LEFT + right) / 2, (TOP + bottom) / 2)
    assert places(chart.lines[0].path) == [(LEFT, bottom), middle, (right, TOP)]
    assert [tick.label for tick in chart.y_ticks] == ["0", "2", "4", "6", "8", "10"]
    assert [tick.label for tick in chart.x_ticks] == ["0", "20", "40", "60", "80", "100"]
    assert [tick.place for tick in chart.y_ticks] == sorted((tick.place for tick in chart.y_ticks), reverse=True)
    assert not chart.logarithmic


def test_many_magnitudes_are_drawn_by_their_logarithms():
    chart = chart_of([(0, 1.0), (1, 10.0), (2, 1000.0)])
    assert chart.logarithmic
    bottom = HEIGHT - BOTTOM
    heights = [bottom - y for _, y in places(chart.lines[0].path)]
    assert heights == pytest.approx([0, (bottom - TOP) / 3, bottom - TOP], abs=0.1)
    assert [tick.label for tick in chart.y_ticks] == ["1", "10", "100", "1,000"]


@pytest.mark.parametrize("points", [[(7, 2.5)], [(1, 0.0), (2, 0.0)], [(3, -4.0)], [(1, 1e-30), (2, 1e30)]])
def test_few_or_equal_points_are_drawn_inside(points):
    chart = chart_of(points)
    found = places(chart.lines[0].path)
    assert len(found) == len(points)
    assert all(LEFT <= x <= chart.width - RIGHT and TOP <= y <= HEIGHT - BOTTOM for x, y in found)


def test_nothing_is_no_chart():
    assert draw_chart("title", [Line("", [], 0)]) is None


def test_a_long_line_keeps_its_spikes():
    points = [(step, 1.0) for step in range(100_000)]
    points[54_321] = (54_321, 9.0)
    chart = chart_of(points)
    found = places(chart.lines[0].path)
    assert len(found) <= 1000
    assert min(y for _, y in found) < max(y for _, y in found)
    assert len(chart.lines[0].marks) < 100
    assert "step 99,999: 1" in chart.lines[0].marks[-1].label


def test_what_happened_is_marked_where_it_happened():
    chart = chart_of([(0, 0.0), (100, 1.0)], happenings=[(50, "resumed"), (200, "after the end")])
    assert [(rule.place, rule.label) for rule in chart.rules] == [((LEFT + chart.width - RIGHT) / 2, "resumed")]


def test_a_mean_of_neighbours():
    line = [(step, float(step)) for step in range(1000)]
    assert list(smoothed(line)) == line
    alternating = [(step, float(step % 2)) for step in range(1000)]
    assert all(abs(value - 0.5) < 0.02 for _, value in list(smoothed(alternating))[50:-50])
    assert list(smoothed([(3, 1.0), (4, 2.0)])) == [(3, 1.0), (4, 2.0)]
    assert list(smoothed([])) == []


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0"),
        (1.0, "1"),
        (12345.6, "12,346"),
        (2.5, "2.5"),
        (0.00012345, "0.000123"),
        (1e9, "1e+09"),
        (-0.5, "-0.5"),
    ],
)
def test_numbers(value, text):
    assert format_value(value) == text
