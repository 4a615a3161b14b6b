"""Results on disk, a JSON file for each stage and one table in Markdown, and the short table of the terminal."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

Result = dict[str, Any]
MAX_LINES = 40
TABLE = "results.md"
_SHOWN = {"name", "value", "unit", "headline"}


def write(path: Path, text: str) -> None:
    """Write a file that appears whole or not at all."""
    temporary = path.with_name(f".{path.name}.new")
    temporary.write_text(text)
    os.replace(temporary, path)


def load(output: Path, order: Sequence[str]) -> list[Result]:
    """The results of all stages that there are in a directory, in this order of stages."""
    found = [output / f"{name}.json" for name in order]
    return [json.loads(path.read_text()) for path in found if path.exists()]


def save(output: Path, result: Result, order: Sequence[str]) -> None:
    """Write the result of a stage, and the table of all that there are."""
    write(output / f"{result['stage']}.json", json.dumps(result, indent=1) + "\n")
    write(output / TABLE, markdown(load(output, order)))


def merge(measured: list[Result], earlier: Result | None) -> list[Result]:
    """Measurements of a use that did not complete a stage, and after them those that only an earlier use made."""
    if earlier is None:
        return measured
    names = {measurement["name"] for measurement in measured}
    origin = f"{earlier['date']}, commit {earlier['commit']}"
    kept = [{"earlier": origin, **one} for one in earlier["measurements"] if one["name"] not in names]
    return measured + kept


def markdown(results: Sequence[Result]) -> str:
    """All measurements, a section for each stage."""
    lines = ["# Results on a GPU", ""]
    if any(result["rehearsal"] for result in results):
        lines = ["# Rehearsal on CPUs", "", "The figures say nothing about a GPU.", ""]
    for result in results:
        lines += [f"## {result['stage']}: {result['status']} after {result['seconds']:.1f} s", ""]
        lines += [f"{_origin(result)}", "", f"    {result['command']}", ""]
        if result["measurements"]:
            lines += ["| measurement | value | unit | |", "|---|---|---|---|"]
            lines += [_row(measurement) for measurement in result["measurements"]] + [""]
        lines += [f"- {note}" for note in result["notes"]] + [""] * bool(result["notes"])
        if result["output_end"]:
            lines += ["The end of its output:", "", *(f"    {line}" for line in result["output_end"]), ""]
    return "\n".join(lines)


def _origin(result: Result) -> str:
    hardware, versions = result["hardware"], result["versions"]
    gpus = [f"{gpu['name']} (driver {gpu['driver_version']})" for gpu in hardware["gpus"]]
    device = ", ".join(gpus) or f"{hardware['cores']} cores of {hardware['processor']}"
    packages = ", ".join(f"{name} {versions[name]}" for name in versions if versions[name])
    return f"{result['date']}, {device}, commit {result['commit']}; {packages}"


def _row(measurement: Result) -> str:
    details = "; ".join(f"{key} {_number(value)}" for key, value in measurement.items() if key not in _SHOWN)
    cells = (measurement["name"], _number(measurement["value"]), measurement["unit"], details)
    return f"| {' | '.join(cell.replace('|', '/').replace(chr(10), ' ') for cell in cells)} |"


def _goal(measurement: Result) -> str:
    if "goal" not in measurement:
        return ""
    return f" (goal {measurement['goal']:g}, {'reached' if measurement['reached'] else 'not reached'})"


def _number(value: Any) -> str:
    if isinstance(value, float) and abs(value) < 1000:
        return f"{value:.4g}"
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return f"{value:,.0f}"
    return value if isinstance(value, str) else json.dumps(value)


def summary(results: Sequence[Result]) -> str:
    """At most 40 lines: how each stage ended, and the measurements that are headlines."""
    width = max((len(result["stage"]) for result in results), default=0)
    lines = [f"{'stage':{width}}  {'status':11}  seconds  measured"]
    for result in results:
        measured = len(result["measurements"])
        lines.append(f"{result['stage']:{width}}  {result['status']:11}  {result['seconds']:7.1f}  {measured:8}")
    headlines = []
    for result in results:
        for one in result["measurements"]:
            if one.get("headline"):
                earlier = " (earlier)" if "earlier" in one else ""
                figure = f"{result['stage']}: {one['name']}: {_number(one['value'])} {one['unit']}"
                headlines.append(f"{figure}{_goal(one)}{earlier}")
    space = MAX_LINES - len(lines)
    if len(headlines) > space:
        headlines = [*headlines[: space - 1], f"and {len(headlines) - space + 1} more in {TABLE}"]
    return "\n".join((*lines, *headlines))
