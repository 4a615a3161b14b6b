"""A short form of benchmarks/chaos.py: a run that is killed and whose checkpoints are spoilt ends as if undisturbed."""

import json
import sys
from pathlib import Path

import pytest

from . import jobs

CHAOS = jobs.REPOSITORY / "benchmarks" / "chaos.py"


@pytest.mark.parametrize("mode", [[], ["--asynchronous"]])
def test_killed_again_and_again(tmp_path: Path, mode: list[str]) -> None:
    report = tmp_path / "report.json"
    arguments = ["--kills", "5", "--steps", "60", "--seed", "3", "--json", str(report), *mode]
    output = jobs.run([sys.executable, str(CHAOS), *arguments])
    found = json.loads(report.read_text())
    assert found["finished"], output
    assert sum(found["kills"].values()) == 5
    assert found["attempts"] > 5
    assert found["samples"] == 60 * 8
    assert (found["bad_pointers"], found["differing_steps"]) == (0, 0), output
