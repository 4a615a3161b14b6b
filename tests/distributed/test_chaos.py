"""A short form of benchmarks/chaos.py: a run that is killed, with checkpoints damaged, ends as if undisturbed."""

import json
import sys
from pathlib import Path

import pytest

from . import jobs

CHAOS = jobs.REPOSITORY / "benchmarks" / "chaos.py"


@pytest.mark.parametrize("mode", [[], ["--asynchronous"]])
def test_killed_again_and_again(tmp_path: Path, mode: list[str]) -> None:
    report = tmp_path / "report.json"
    arguments = ["--kills", "4", "--steps", "120", "--seed", "3", "--json", str(report), *mode]
    output = jobs.run([sys.executable, str(CHAOS), *arguments])
    found = json.loads(report.read_text())
    assert found["finished"], output
    assert 3 <= sum(found["kills"].values()) <= 4  # the run may be quicker than they
    assert found["attempts"] > 3
    assert found["samples"] == 120 * 8
    assert (found["bad_pointers"], found["differing_steps"]) == (0, 0), output
