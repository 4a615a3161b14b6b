"""One or several runs as one HTML file that needs nothing else: no script, no font, no picture from elsewhere."""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from nar_scale.errors import UserError
from nar_scale.files import write_atomically
from nar_scale.reporting.runs import charts, contents
from nar_scale.reporting.runs.evaluation import rows_of_evaluation
from nar_scale.reporting.runs.run_files import RunFiles
from nar_scale.reporting.runs.samples import samples_over_time

_TEMPLATE = "page.html"
_BEHIND_A_MARK = re.compile(r"(?<=[_/])(?=\w)")


def write_page(runs: Sequence[RunFiles], output: str | Path) -> None:
    """Write the page of a run, or of several that are compared; an older file is replaced.

    Args:
        runs: from `read_run`, at least one.
        output: the HTML file.

    Raises:
        UserError: it cannot be written.
    """
    try:
        write_atomically(Path(output), render_page(runs).encode())
    except OSError as error:
        raise UserError(f"cannot write the report {output}: {error.strerror}") from None


def render_page(runs: Sequence[RunFiles]) -> str:
    """The text of the page. What comes from the runs is escaped, and a policy in the page stops scripts."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["with_code"] = _with_code
    environment.filters["breakable"] = _breakable
    alone = len(runs) == 1
    values = [contents.final_values(run) for run in runs]
    evaluated = [run for run in runs if run.evaluation is not None]
    return environment.get_template(_TEMPLATE).render(
        runs=runs,
        layout=charts,
        charts=contents.charts_of_run(runs[0]) if alone else contents.charts_of_runs(runs),
        values=contents.rows_of(values),
        cards=_cards(values[0]) if alone else [],
        evaluated=evaluated,
        evaluations=contents.rows_of([rows_of_evaluation(run.evaluation) for run in evaluated]),
        settings=contents.settings_of_run(runs[0]) if alone else contents.differing_settings(runs),
        samples=[(run, samples_over_time(run) if alone else samples_over_time(run, 1)) for run in runs],
        events=[(run, contents.rows_of_events(run.events)) for run in runs],
        environments=contents.rows_of([contents.environment_of(run) for run in runs]),
        times=[(contents.format_time(run.first_time or 0), contents.format_time(run.last_time or 0)) for run in runs],
        written=contents.format_time(time.time()),
        version=version("nar_scale"),
    )


def _with_code(text: str) -> Markup:
    """A text whose parts in backticks are shown as code."""
    parts = text.split("`")
    return Markup("").join(Markup("<code>{}</code>").format(part) if n % 2 else part for n, part in enumerate(parts))


def _breakable(text: str) -> Markup:
    """A text such as a path or a name, which a narrow column breaks behind `_` and `/` rather than within a word."""
    return Markup("<wbr>").join(_BEHIND_A_MARK.split(text))


def _cards(values: dict[str, str]) -> list[tuple[str, str]]:
    """The values that are looked at first."""
    first = ("validation", "training loss", "tokens/s", "steps", "time")
    return [(name, value) for start in first for name, value in values.items() if name.startswith(start) and value][:8]
