"""One stage as a process group: its time limit, its output, and its result on disk while it goes on."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from benchmarks.gpu import report
from benchmarks.gpu.stage import ROOT

LOG = "log.txt"
LOG_BYTES = 2_000_000
STAGE_LOG_BYTES = 500_000
KEPT_LINES = 60
POLL_SECONDS = 0.1


@dataclass(frozen=True)
class Stage:
    """A program to be run: its name, what the interpreter takes to start it, and its time limit in seconds."""

    name: str
    arguments: tuple[str, ...]
    seconds: float


class Interrupted(Exception):
    """The use was ended from outside during a stage, whose result is attached."""

    def __init__(self, result: report.Result):
        super().__init__()
        self.result = result


@dataclass(frozen=True)
class StageRun:
    """How stages are run.

    Attributes:
        output: the directory of the results.
        variables: the environment variables of a stage.
        work: a directory for files that end with the use.
        common: what the results of all stages say: `rehearsal`, `command`, `commit`, `hardware`, `versions`.
        order: the names of all stages that may have results in `output`, as the table shows them.
    """

    output: Path
    variables: dict[str, str]
    work: Path
    common: dict[str, Any]
    order: list[str]

    def run(self, stage: Stage, limit: float) -> report.Result:
        """Run a stage, kill all its processes after `limit` seconds, and save its result.

        Raises:
            Interrupted: Ctrl-C or SIGTERM came; the stage is killed and its result saved.
        """
        earlier = next(iter(report.load(self.output, [stage.name])), None)
        result, file, saved = self._new_result(stage, limit), self.work / f"{stage.name}.json", 0
        start = time.monotonic()
        process, log_begin = self._start(stage, limit, file)
        try:
            while process.poll() is None and time.monotonic() - start < limit:
                time.sleep(POLL_SECONDS)
                if file.exists() and file.stat().st_mtime_ns != saved:
                    saved = file.stat().st_mtime_ns
                    self._save(result, file, earlier, time.monotonic() - start)
            result["status"] = {None: "timed out", 0: "passed"}.get(process.poll(), "failed")
        except KeyboardInterrupt:
            result["status"] = "interrupted"
        finally:
            kill_group(process)
        result["exit_status"] = process.returncode
        if result["status"] != "passed":
            result["output_end"] = self._end_of_output(log_begin)
        keep_end(self.output / LOG, log_begin, STAGE_LOG_BYTES)
        keep_end(self.output / LOG, 0, LOG_BYTES)
        self._save(result, file, earlier, time.monotonic() - start)
        if result["status"] == "interrupted":
            raise Interrupted(result)
        return result

    def not_started(self, stage: Stage) -> report.Result:
        """The result of a stage that no time was left for; it is saved unless an earlier one is there."""
        result = {**self._new_result(stage, 0.0), "status": "not started"}
        if not report.load(self.output, [stage.name]):
            report.save(self.output, result, self.order)
        return result

    def _new_result(self, stage: Stage, limit: float) -> report.Result:
        return {
            "stage": stage.name,
            "status": "unfinished",  # what stays on disk if the use itself is killed
            "exit_status": None,
            "seconds": 0.0,
            "limit": limit,
            "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            **self.common,
            "measurements": [],
            "notes": [],
            "output_end": [],
        }

    def _start(self, stage: Stage, limit: float, file: Path) -> tuple[subprocess.Popen[bytes], int]:
        """Start a stage; also where its output begins in the log."""
        command = [sys.executable, *stage.arguments, "--output", str(file), "--seconds", f"{limit:.1f}"]
        command += ["--rehearse"] * self.common["rehearsal"]
        with open(self.output / LOG, "ab") as log:
            log.write(f"== {stage.name}: {shlex.join(command)}\n".encode())
            log.flush()
            begin = log.tell()
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=self.variables,
                cwd=ROOT,
                # not a session of its own, which would outlive a machine's clearing up after a command
                preexec_fn=os.setpgrp,
            )
            return process, begin

    def _end_of_output(self, begin: int) -> list[str]:
        with open(self.output / LOG, "rb") as log:
            log.seek(begin)
            return log.read().decode(errors="replace").splitlines()[-KEPT_LINES:]

    def _save(self, result: report.Result, file: Path, earlier: report.Result | None, seconds: float) -> None:
        """Save what the stage has measured until now."""
        result["seconds"] = round(seconds, 1)
        if file.exists():
            measured = json.loads(file.read_text())
            result |= {"measurements": measured["measurements"], "notes": measured["notes"]}
        if result["status"] != "passed":
            result["measurements"] = report.merge(result["measurements"], earlier)
        report.save(self.output, result, self.order)


def kill_group(process: subprocess.Popen[bytes]) -> None:
    """Kill a process that leads a group with all others in it, also those that it left behind, and wait for it."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def keep_end(path: Path, begin: int, size: int) -> None:
    """Shorten what a file has from the byte `begin` on to its last `size` bytes."""
    if path.stat().st_size - begin <= size:
        return
    with open(path, "r+b") as stream:
        stream.seek(-size, os.SEEK_END)
        end = stream.read()
        stream.seek(begin)
        stream.write(end)
        stream.truncate()
