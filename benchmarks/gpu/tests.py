"""Stage 2: tests/gpu, each test a measurement as soon as it has ended."""

from __future__ import annotations

import os
import sys
from collections import Counter
from typing import Any

import pytest

from benchmarks.gpu import stage

DIRECTORY = "tests/gpu"


class Recorder:
    """A pytest plugin that writes down how each test ended, in the order in which they do."""

    def __init__(self, record: stage.Record):
        self.record = record
        self.outcomes: Counter[str] = Counter()

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Count the call of a test, or what came instead: a failed set-up or tear-down, or a skip."""
        if report.when != "call" and report.outcome == "passed":
            return
        self.outcomes[report.outcome] += 1
        name = report.nodeid.removeprefix(f"{DIRECTORY}/")
        extras: dict[str, Any] = {"seconds": round(report.duration, 2), **dict(report.user_properties)}
        if report.outcome == "skipped" and isinstance(report.longrepr, tuple):
            extras["message"] = report.longrepr[2]
        elif report.outcome == "failed":
            crash = getattr(report.longrepr, "reprcrash", None)
            extras |= {"message": crash.message[:300] if crash else report.longreprtext[-300:], "headline": True}
        counts = ", ".join(f"{self.outcomes[outcome]} {outcome}" for outcome in ("passed", "failed", "skipped"))
        self.record.add("all", counts, "", headline=True)
        self.record.add(name, report.outcome, "", **extras)


def main() -> int:
    arguments = stage.arguments(__doc__)
    recorder = Recorder(stage.Record(arguments.output))
    if arguments.rehearse:
        os.environ["NAR_SCALE_GPU_TESTS"] = "rehearse-one"
    return int(pytest.main([DIRECTORY, "--verbose", "-p", "no:cacheprovider"], plugins=[recorder]))


if __name__ == "__main__":
    sys.exit(main())
