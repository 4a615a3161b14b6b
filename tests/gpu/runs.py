"""The processes that train, and what they leave behind."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from nar_scale.checkpoint import WEIGHT, CheckpointStore, PartitionReader, TrainingState
from nar_scale.config import Config, load_config
from tests.distributed import jobs

from .cases import CASES

RecordProperty = Callable[[str, object], None]
"""Of pytest: a measurement of a test, by name."""

_SECONDS_BETWEEN_LOOKS = 0.1
_LAST_CHARACTERS = 4000


@dataclass(frozen=True)
class Run:
    """A case that has run to its end.

    Attributes:
        config: of the last run.
        directory: of the run.
        found: what the observer has found.
        weights_before: the consolidated checkpoint that it started from, if it did.
    """

    config: Config
    directory: Path
    found: Mapping[str, Any]
    weights_before: Path

    @property
    def losses(self) -> dict[int, float]:
        """By step, of the steps that were taken."""
        return jobs.losses(self.directory)

    @property
    def log(self) -> dict[int, dict[str, float]]:
        """All metrics by step."""
        return jobs.metrics(self.directory)

    def state(self, kind: str = WEIGHT) -> dict[str, Any]:
        """The weights, or another state of each, in the last checkpoint."""
        store = CheckpointStore(self.directory / "checkpoints")
        with PartitionReader(store.path(store.steps()[-1])) as reader:
            return {name: reader.whole(kind, name) for name in reader.shapes if kind in reader.kinds[name]}

    @property
    def loss_scales(self) -> dict[int, dict[str, float]]:
        """The state of fp16's loss scaling in each checkpoint, by step."""
        store = CheckpointStore(self.directory / "checkpoints")
        return {step: TrainingState.load(store.path(step)).loss_scale for step in store.steps()}


class Process:
    """Trains cases one after the other; one that takes the process down fails, and another goes on with the rest.

    Args:
        directory: with configurations and weights, see `run_cases`.
        names: of the cases.
        environment: of the process.
    """

    def __init__(self, directory: Path, names: Sequence[str], environment: Mapping[str, str]):
        self.directory, self.asked, self.environment = directory, list(names), environment
        self._left = self.asked
        self._log = directory / f"{names[0]}.log"
        self._start()

    def result(self, name: str) -> dict[str, Any]:
        """What a case has left behind, when it has."""
        path = self.directory / "results" / f"{name}.json"
        while not path.exists():
            if self._process.poll() is not None and not path.exists():
                self._replace()
            time.sleep(_SECONDS_BETWEEN_LOOKS)
        found: dict[str, Any] = json.loads(path.read_text())
        return found

    def end(self) -> None:
        """Let it be, whatever it is at."""
        if self._process.poll() is None:
            jobs.kill(self._process)

    def _start(self) -> None:
        command = [sys.executable, "-m", "tests.gpu.run_cases", str(self.directory), *self._left]
        with self._log.open("w") as log:
            self._process = subprocess.Popen(
                command,
                cwd=jobs.REPOSITORY,
                env=dict(self.environment),
                text=True,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def _replace(self) -> None:
        """Blame the case that the process has ended in, and go on with those after it."""
        results = self.directory / "results"
        blamed, *self._left = [name for name in self._left if not (results / f"{name}.json").exists()]
        output = self._log.read_text()[-_LAST_CHARACTERS:]
        problem = f"exit status {self._process.returncode} in this case:\n{output}"
        (results / f"{blamed}.json").write_text(json.dumps({"problem": problem}))
        if self._left:
            self._start()


def names_of(items: Sequence[pytest.Item]) -> list[str]:
    """The cases that tests ask for, in their order."""
    asked: list[str] = []
    for item in items:
        of_test = item.callspec.params if isinstance(item, pytest.Function) and hasattr(item, "callspec") else {}
        asked += [str(of_test[fixture]) for fixture in ("case", "resumed") if fixture in of_test]
    return [name for name in dict.fromkeys(asked) if name in CASES]


def last_config(directory: Path, name: str) -> Config:
    """The configuration of the last run of a case."""
    case = CASES[name]
    return load_config(
        directory / f"{case.data}.yaml", [*case.runs[-1], f"training.run_directory={directory / 'runs' / name}"]
    )
