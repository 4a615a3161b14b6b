"""What the README says was measured stands in benchmarks/RESULTS.md, in the section that it links to."""

import re

import pytest

from .blocks import REPOSITORY

TITLE = "## What was measured\n"
README = (REPOSITORY / "README.md").read_text()
RESULTS = (REPOSITORY / "benchmarks" / "RESULTS.md").read_text()
ROW = re.compile(r"^\| \[(?P<question>[^]]+)\]\(benchmarks/RESULTS\.md#(?P<anchor>[\w-]+)\) \| (?P<answer>.+) \|$")
NUMBER = r"\d[\d,]*(?:\.\d+)?"
UNITS = (
    r"%|x\b|times\b|m?s\b|ms\b|(?:milli)?seconds?\b|minutes?\b|hours?\b|days?\b|[kMGT]i?B(?:/s)?\b|tokens/s\b|"
    r"(?:bits|nats)(?:/byte|/token| per| a)\b"
)
WORDS = "one|two|three|four|five|six|seven|eight|nine|ten|twice|half|a third|a quarter"


def sections_of(text):
    """Texts of the sections, by the anchors of their titles, as GitHub makes them."""
    parts = re.split(r"^## (.+)\n", text, flags=re.MULTILINE)
    anchors = (re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in parts[1::2])
    return dict(zip(anchors, parts[2::2], strict=True))


def rows_of(readme):
    """The rows of the table of figures."""
    table = readme.partition(TITLE)[2].partition("\n## ")[0]
    return [line for line in table.splitlines() if line.startswith("| ")][1:]


def numbers_of(text):
    return re.findall(rf"(?<![\w.^-]){NUMBER}(?!\w)", text)


def is_measured(figure, section):
    """Whether a number stands in a text, as it is or with more digits."""
    decimals = len(figure.partition(".")[2])
    value = float(figure.replace(",", ""))
    others = (float(each.replace(",", "")) for each in re.findall(rf"(?<![\w.^-]){NUMBER}", section))
    return any(abs(each - value) <= 0.5 * 10**-decimals * (1 + 1e-9) for each in others)


def figures_beside_the_table(readme):
    """Numbers with a unit of what is measured, outside the table and blocks of code; comments of these are included."""
    text = readme.replace(readme.partition(TITLE)[2].partition("\n## ")[0], "")
    comments = "\n".join(re.findall(r" # .*$", text, flags=re.MULTILINE))
    prose = re.sub(r"^```.*?^```$|`[^`\n]*`|\]\([^)]*\)", "", text, flags=re.MULTILINE | re.DOTALL)
    numbers = rf"(?<![\w.^-])({NUMBER}|\b(?:{WORDS})\b) ?(?:{UNITS})"
    return [found[0] for found in re.finditer(numbers, f"{prose}\n{comments}")]


@pytest.mark.parametrize("row", rows_of(README))
def test_a_figure_is_in_the_section_that_its_row_links_to(row):
    found = ROW.match(row)
    assert found, f"{row} does not link to a section"
    section = sections_of(RESULTS)[found["anchor"]]
    figures = numbers_of(found["question"]) + numbers_of(found["answer"])
    assert figures
    assert [figure for figure in figures if not is_measured(figure, section)] == []


def test_there_are_rows():
    assert len(rows_of(README)) >= 6


def test_no_figure_is_beside_the_table():
    assert figures_beside_the_table(README) == []


def test_what_is_not_measured_is_found():
    section = "| 2 ranks | 453 ms | 1.021 (1.012 to 1.030) | 4,800 |\n15.4x"
    assert [is_measured(figure, section) for figure in ("1.02", "15", "4,800", "1.05", "16", "45")] == [
        *(True, True, True),
        *(False, False, False),
    ]
    page = f"it takes 4.5 minutes, 3 samples\n{TITLE}| a | b |\n|---|---|\n| c | 5 s |\n\n## Next\nthree times, 30 %.\n"
    assert figures_beside_the_table(page) == ["4.5 minutes", "three times", "30 %"]
    assert figures_beside_the_table("```bash\nmake install  # once, two minutes\nsleep 5 s\n```\n") == ["two minutes"]
