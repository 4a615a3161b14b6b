"""What the page shows of runs: charts, and tables of final values, settings and events."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime, timezone
from itertools import cycle, groupby
from statistics import mean, median
from typing import Any

from nar_scale.config import flat_settings, steps_of_run
from nar_scale.config.key_descriptions import ANY_NAME, keys_at
from nar_scale.reporting.runs.charts import Chart, Line, draw_chart, format_value, smoothed
from nar_scale.reporting.runs.evaluation import MASKED
from nar_scale.reporting.runs.run_files import Event, RunFiles
from nar_scale.training.metrics.events import RESUMED, ROLLED_BACK, SKIPPED
from nar_scale.training.metrics.names import find_metric

_VALIDATION = re.compile(r"validation_(?:(.+)_)?nats_per_token")
_COLOURS, _FIRST_BIN_COLOUR = 8, 10  # of the page
_EVENTS_IN_A_ROW = 4
_END_OF_SENTENCE = re.compile(r"(?<=\.) ")
_RULED = (RESUMED, ROLLED_BACK, SKIPPED)
_STANDSTILLS = {
    "to save checkpoints": "checkpoint_seconds",
    "to evaluate": "evaluation_seconds",
    "to draw samples": "sampling_seconds",
}
_MEMORY = {"peak": "memory_gib", "now": "memory_now_gib"}
_ENVIRONMENT = {
    "cpu_cores": "CPU cores",
    "host_memory_gib": "memory of the host, GiB",
    "gpu_memory_gib": "memory of a GPU, GiB",
    "cuda": "CUDA",
}
_NAMES = {SKIPPED: "steps skipped", ROLLED_BACK: "rolled back"}

Row = tuple[str, list[str]]


def charts_of_run(run: RunFiles) -> list[Chart]:
    """The charts of one run; those without a value are left out."""
    loss = run.series.get("loss", ())
    lines = [Line("", loss, 0, faint=True), Line("training", smoothed(loss), 0)]
    lines += [
        Line(f"validation{f' of {source}' if source else ''}{_bound(run)}", run.series[name], colour, dots=True)
        for (source, name), colour in zip(validations(run), cycle([*range(1, _COLOURS), 0]))
    ]
    happened = [(e.step, f"{_named(e)} at step {e.step:,}: {e.text}") for e in run.events if e.kind in _RULED]
    note = "Pale: each report. Line: mean of those around it."
    if getattr(run.config.objective, "loss", "weighted") == "unweighted":
        note += " The training loss is the unweighted one, which is not the bound that validation is."
    if run.config.objective.kind == "hybrid":
        note += " The training loss is the sum of both losses, the validation is that of the next token."
    if happened:
        note += " Upright lines: resumes, roll-backs, skipped steps."
    bins = [
        Line(f"{100 * float(found[1]):.0f}-{100 * float(found[2]):.0f} %", smoothed(run.series[name]), colour)
        for colour, (name, found) in enumerate(_masked(run), _FIRST_BIN_COLOUR)
    ]
    return _present(
        draw_chart("Loss, training and validation", lines, "nats/token", note, wide=True, happenings=happened),
        draw_chart("Loss by the fraction that is masked", bins, "nats per masked token", "Means of reports around."),
        _chart(run, "Throughput", {"": "tokens_per_second"}, "tokens/s", from_zero=True),
        _chart(run, "Share of the time spent waiting for data", {"": "data_wait_fraction"}),
        _chart(run, "Model FLOPs utilisation (MFU)", {"": "mfu"}),
        _chart(run, "Learning rate", {"": "learning_rate"}, from_zero=True),
        _chart(run, "Gradient norm before clipping", {"": "gradient_norm"}),
        _chart(run, "Change of the weights in a step, relative to their size", {"": "update_ratio"}),
        _chart(run, "Time for which training stood still", _STANDSTILLS, "s", from_zero=True, dots=True),
        _chart(run, "Memory of the first process", _MEMORY, "GiB", from_zero=True),
    )


def charts_of_runs(runs: Sequence[RunFiles]) -> list[Chart]:
    """The charts of several runs over each other."""

    def overlaid(title: str, name: str, unit: str = "", smooth: bool = True, **options: Any) -> Chart | None:
        lines = []
        for number, run in enumerate(runs):
            series = run.series.get(name, ())
            shown = smoothed(series) if smooth else series
            bound = _bound(run) if name.startswith("validation") else ""
            lines.append(Line(f"{run.name}{bound}", shown, number % _COLOURS, dots=not smooth))
        return draw_chart(title, lines, unit, **options)

    hybrid = any(run.config.objective.kind == "hybrid" for run in runs)
    summed = " Of a hybrid the sum of both losses; compare the validation." if hybrid else ""
    sources = dict.fromkeys(pair for run in runs for pair in validations(run))
    validation = [
        overlaid(f"Validation{f' of {source}' if source else ''}", name, "nats/token", smooth=False, wide=True)
        for source, name in sources
    ]
    return _present(
        *validation,
        overlaid("Validation, bits per byte", "validation_bits_per_byte", "bits/byte", smooth=False),
        overlaid("Training loss", "loss", "nats/token", note=f"Means of reports around.{summed}"),
        overlaid("Throughput", "tokens_per_second", "tokens/s", from_zero=True),
        overlaid("Gradient norm before clipping", "gradient_norm"),
    )


def final_values(run: RunFiles) -> dict[str, str]:
    """The last values of a run by what they are; means over the last tenth of the reports where those scatter."""
    tokens = _last_tenth(run, "tokens_per_second", median)
    values = {
        "steps": f"{run.step:,} of {steps_of_run(run.config):,}",
        "parameters": _format(run.environment.get("parameters")),
        "training loss, nats/token": _rounded(_last_tenth(run, "loss", mean)),
    }
    for source, name in validations(run):
        prefix = name.removesuffix("nats_per_token")
        error, bits = run.last(f"{prefix}standard_error"), run.last(f"{prefix}bits_per_byte")
        of_source = f" of {source}" if source else ""
        exact = _bound(run).strip(" ()") or "exact"
        spread = "" if error is None else f" ± {error:.4f}"
        values[f"validation{of_source}, nats/token"] = f"{run.last(name):.4f}{spread} ({exact})"
        values[f"validation{of_source}, bits/byte"] = "" if bits is None else f"{bits:.3f}"
        values[f"validation{of_source}, diffusion bound"] = _rounded(run.last(f"{prefix}bound_nats_per_token"))
    for name, found in _masked(run):
        share = f"{100 * float(found[1]):.0f}-{100 * float(found[2]):.0f} %"
        values[f"loss where {share} are masked"] = _rounded(_last_tenth(run, name, mean))
    return {
        **values,
        "tokens/s": "" if tokens is None else f"{tokens:,.0f}",
        "MFU": _format(_last_tenth(run, "mfu", median)),
        "memory of the first process, GiB": _rounded(run.last("memory_gib")),
        "time": _duration(run.elapsed_seconds),
    }


def rows_of(columns: Sequence[Mapping[str, str]]) -> list[Row]:
    """A table with a row for each name that has a value in some column."""
    names = dict.fromkeys(name for column in columns for name in column)
    rows = [(name, [column.get(name, "") for column in columns]) for name in names]
    return [row for row in rows if any(row[1])]


def settings_of_run(run: RunFiles) -> list[Row]:
    """The settings that differ from the defaults: the value, the default and what the key means."""
    rows: list[Row] = []
    given = _flat(run.config.model_dump(mode="json", exclude_defaults=True), "")
    for path, value in given:
        keys = [key for key in keys_at(path.split(".")) if key.path.count(".") == path.count(".")]
        default = keys[0].default if keys and not keys[0].required and ANY_NAME not in keys[0].path else ""
        shown = "" if default == "" else _setting(default)
        rows.append((path, [_setting(value), shown, _meaning(keys[0].description, value) if keys else ""]))
    return rows


def _meaning(description: str, value: Any) -> str:
    """The first sentence of a key's description; of one that says a sentence about each value, that of the value."""
    of_value = description.partition(f"`{value}`: ")[2] if description.startswith("`") else ""
    return _END_OF_SENTENCE.split(of_value or description)[0].rstrip(".")


def differing_settings(runs: Sequence[RunFiles]) -> list[Row]:
    """The settings that the runs do not share; of those that only some of them have, what differs from the default."""
    all_settings = [flat_settings(run.config) for run in runs]
    names = dict.fromkeys(name for settings in all_settings for name in settings)
    of_all = set.intersection(*map(set, all_settings))
    given = {name for run in runs for name, _ in _flat(run.config.model_dump(mode="json", exclude_defaults=True), "")}
    rows = [
        (name, [_setting(each[name]) if name in each else "" for each in all_settings])
        for name in names
        if name in of_all | given
    ]
    return [row for row in rows if len(set(row[1])) > 1]


def rows_of_events(events: Sequence[Event]) -> list[tuple[str, str, str, str]]:
    """Time, step, kind and text of each event; of many alike in a row the first, how many and the last."""
    rows: list[tuple[str, str, str, str]] = []
    for _, group in groupby(events, key=lambda event: event.kind):
        alike = list(group)
        shown = [(format_time(each.time), f"{each.step:,}", _named(each), each.text) for each in alike]
        if len(alike) > _EVENTS_IN_A_ROW:
            shown = [shown[0], ("", "...", f"{len(alike) - 2} more alike", ""), shown[-1]]
        rows += shown
    return rows


def environment_of(run: RunFiles) -> dict[str, str]:
    """Machine and versions by name."""
    known = {_ENVIRONMENT.get(name, name): value for name, value in run.environment.items() if name != "parameters"}
    return {name: _setting(value) for name, value in known.items() if value is not None}


def _bound(run: RunFiles) -> str:
    """What is added to the name of a validation that is not the exact likelihood."""
    return "" if run.config.objective.kind in ("autoregressive", "hybrid") else " (upper bound)"


def validations(run: RunFiles) -> list[tuple[str, str]]:
    """Source, empty for a single one, and metric of each likelihood of validation data."""
    found = [(_VALIDATION.fullmatch(name), name) for name in run.series]
    return [(match[1] or "", name) for match, name in found if match and match[1] != "bound"]


def format_time(seconds: float) -> str:
    """A time since 1970 as a date, UTC."""
    try:
        return datetime.fromtimestamp(seconds, timezone.utc).strftime("%Y-%m-%d %H:%M:%S")
    except (OverflowError, ValueError, OSError):  # no time that a run has written
        return ""


def _masked(run: RunFiles) -> list[tuple[str, re.Match[str]]]:
    found = [(name, MASKED.fullmatch(name)) for name in run.series if find_metric(name) is not None]
    return sorted(((name, match) for name, match in found if match), key=lambda pair: pair[0])


def _chart(
    run: RunFiles, title: str, names: Mapping[str, str], unit: str = "", from_zero: bool = False, dots: bool = False
) -> Chart | None:
    lines = [
        Line(label, run.series[name], colour, dots=dots)
        for colour, (label, name) in enumerate(names.items())
        if name in run.series
    ]
    return draw_chart(title, lines, unit, from_zero=from_zero)


def _present(*charts: Chart | None) -> list[Chart]:
    return [chart for chart in charts if chart is not None]


def _named(event: Event) -> str:
    return _NAMES.get(event.kind, event.kind)


def _last_tenth(run: RunFiles, name: str, average: Any) -> float | None:
    """An average over the last tenth of the reports of a metric; None if there are none."""
    values = [value for _, value in run.series.get(name, ())]
    return float(average(values[-max(len(values) // 10, 1) :])) if values else None


def _format(value: Any) -> str:
    return format_value(value) if isinstance(value, (int, float)) else ""


def _rounded(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


def _setting(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _flat(values: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, dict) and value:
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}"
