"""What lies in a run directory, read while the run goes on or long after."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from nar_scale.checkpoint import CONFIG_FILE, MODEL_FILE
from nar_scale.config import Config, load_config, steps_of_run
from nar_scale.errors import DataError
from nar_scale.reporting.runs.evaluation import EVALUATION_FILE, Evaluation, parse_evaluation
from nar_scale.training.environment import ENVIRONMENT_FILE
from nar_scale.training.fault_tolerance.run_lease import find_holder
from nar_scale.training.metrics.events import COMPLETE, EVENTS_FILE, STOPPED
from nar_scale.training.metrics.writer import METRICS_FILE

Series = Sequence[tuple[int, float]]
RUNNING, ENDED = "running", "ended early"


@dataclass(frozen=True)
class Event:
    """What has happened to a run.

    Attributes:
        step: steps that it had taken.
        kind: such as `resumed`.
        text: about it.
        time: in seconds since 1970.
    """

    step: int
    kind: str
    text: str
    time: float


@dataclass(frozen=True)
class RunFiles:
    """A run as its directory shows it.

    Attributes:
        directory: of the run.
        name: what it is called; that of its directory, or the whole path where another run has the same.
        config: its settings.
        series: the finite values of each metric with their steps, by name, as in `metrics.jsonl`.
        elapsed_seconds: that the run has taken up to its last report, without pauses.
        first_time: of the first report, in seconds since 1970.
        last_time: of the last one.
        events: in order.
        environment: machine and versions by name; empty where the run did not record them.
        evaluation: what `evaluate` has written into the directory; None if there is nothing.
        samples: the file of each step that samples were drawn at, ascending.
        state: `running`, `complete`, `stopped` or `ended early`, that is killed or failed.
        remarks: what could not be read, a line each.
    """

    directory: Path
    name: str
    config: Config
    series: Mapping[str, Series]
    elapsed_seconds: float
    first_time: float | None
    last_time: float | None
    events: Sequence[Event]
    environment: Mapping[str, Any]
    evaluation: Evaluation | None
    samples: Sequence[tuple[int, Path]]
    state: str
    remarks: Sequence[str]

    @property
    def step(self) -> int:
        """Of the last report."""
        return max(series[-1][0] for series in self.series.values())

    def last(self, name: str) -> float | None:
        """The last value of a metric; None if it was never reported."""
        return self.series[name][-1][1] if name in self.series else None


def read_runs(directories: Sequence[str | Path]) -> list[RunFiles]:
    """Read several runs, which are told apart by their names.

    Raises:
        DataError: as `read_run`.
        ConfigError: as `read_run`.
    """
    runs = [read_run(directory) for directory in directories]
    count = Counter(run.name for run in runs)
    return [run if count[run.name] == 1 else replace(run, name=str(run.directory)) for run in runs]


def read_run(directory: str | Path) -> RunFiles:
    """Read what a run has left so far; a line that is cut off or damaged is passed over, with a remark.

    Raises:
        DataError: the directory is none of a run, or nothing has been reported yet.
        ConfigError: its settings cannot be read.
    """
    directory = Path(directory)
    metrics, settings = directory / METRICS_FILE, directory / CONFIG_FILE
    if not directory.is_dir():
        raise DataError(f"{directory} is no directory; give that of a run, such as runs/quickstart_nar")
    if (directory / MODEL_FILE).is_file():
        raise DataError(f"{directory} is a consolidated checkpoint; give the directory of the run that it is from")
    if not settings.is_file():
        raise DataError(f"{directory} is not the directory of a run: it has no {CONFIG_FILE}")
    config = load_config(settings)
    remarks: list[str] = []
    lines = [line for line in _json_lines(metrics, remarks) if isinstance(line.get("step"), int)]
    series = _series(lines)
    if not series:
        later = "try again later" if find_holder(directory) is not None else "and is not running"
        raise DataError(f"{directory} has reported no step yet (logging.every {config.logging.every}): {later}")
    events = _events(_json_lines(directory / EVENTS_FILE, remarks))
    times = [line["time"] for line in lines if _is_number(line.get("time"))]
    return RunFiles(
        directory=directory,
        name=directory.resolve().name,
        config=config,
        series=series,
        elapsed_seconds=max((v for _, v in series.get("elapsed_seconds", ())), default=0.0),
        first_time=min(times, default=None),
        last_time=max(times, default=None),
        events=events,
        environment=_environment(directory / ENVIRONMENT_FILE, remarks),
        evaluation=_evaluation(directory / EVALUATION_FILE, remarks),
        samples=_sample_files(directory / "samples"),
        state=_state(directory, config, events, max(of_name[-1][0] for of_name in series.values())),
        remarks=remarks,
    )


def _json_lines(path: Path, remarks: list[str]) -> list[dict[str, Any]]:
    """The objects in a file of JSON lines; none if it is missing. A last line without an end is being written."""
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return []
    except OSError as error:
        remarks.append(f"{path} cannot be read: {error.strerror}")
        return []
    *whole, _being_written = content.split(b"\n")
    found, damaged = [], 0
    for line in whole:
        try:
            value = json.loads(line)
        except (ValueError, RecursionError):
            value = None
        if isinstance(value, dict):
            found.append(value)
        else:
            damaged += 1
    if damaged:
        remarks.append(f"{path}: {damaged} of {len(whole)} lines are damaged and passed over")
    return found


def _series(lines: Sequence[Mapping[str, Any]]) -> dict[str, Series]:
    values: dict[str, dict[int, float]] = {}
    for line in lines:
        for name, value in line.items():
            if name not in ("step", "time") and _is_number(value):
                values.setdefault(name, {})[line["step"]] = float(value)
    return {name: sorted(of_steps.items()) for name, of_steps in values.items()}


def _events(lines: Sequence[Mapping[str, Any]]) -> list[Event]:
    types: dict[str, type | tuple[type, ...]] = {"step": int, "kind": str, "text": str, "time": (int, float)}
    return [
        Event(line["step"], line["kind"], line["text"], float(line["time"]))
        for line in lines
        if all(isinstance(line.get(name), kind) for name, kind in types.items())
    ]


def _environment(path: Path, remarks: list[str]) -> dict[str, Any]:
    try:
        content = json.loads(path.read_bytes())
    except FileNotFoundError:  # of an earlier version
        return {}
    except (OSError, ValueError, RecursionError):
        content = None
    if isinstance(content, dict):
        return content
    remarks.append(f"{path} cannot be read")
    return {}


def _evaluation(path: Path, remarks: list[str]) -> Evaluation | None:
    try:
        return parse_evaluation(path.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValueError):
        remarks.append(f"{path} is no result of `nar-scale evaluate --output` and is left out")
        return None


def _sample_files(directory: Path) -> list[tuple[int, Path]]:
    files = [*directory.glob("step-*.txt"), *directory.glob("step-*.png")]
    numbered = [(path.stem.removeprefix("step-"), path) for path in files]
    return sorted((int(number), path) for number, path in numbered if number.isdecimal())


def _state(directory: Path, config: Config, events: Sequence[Event], step: int) -> str:
    if find_holder(directory) is not None:
        return RUNNING
    if step >= steps_of_run(config):
        return COMPLETE
    return STOPPED if events and events[-1].kind == STOPPED else ENDED


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
