"""The record of a run's attempts, `attempts.jsonl` in the run directory.

A line is written when an attempt starts and another, with the same `job` and `attempt`, when it ends. Where the second
is missing, nobody was left to write it: the batch script's node was lost, or SLURM ended the job.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

from nar_scale.config import Config, dump_config, steps_of_run

ATTEMPTS_FILE = "attempts.jsonl"
COMPLETE = "complete"
"""Why the attempt ended that has taken the last step of a run and done all that follows it."""
NOBODY_LEFT = "ended without a word: the node of the batch script was lost, or SLURM ended the job"


@dataclass(frozen=True)
class Attempt:
    """One start of a SLURM job on a run directory.

    Attributes:
        job: number of the SLURM job.
        attempt: how often SLURM had put it back into the queue.
        nodes: in SLURM's notation, such as `n[1-4]`.
        start: seconds since 1970, by the clock of the batch script's node.
        start_step: step of the newest checkpoint at the start; 0 for none.
        end: seconds since 1970; None while it runs, or where nobody was left to tell.
        step: step of the newest checkpoint at the end.
        why: how it ended, in a line.
        submitted: when the job was submitted, by the same clock as `start`; None where SLURM has not told.
    """

    job: str
    attempt: int
    nodes: str
    start: float
    start_step: int
    end: float | None = None
    step: int | None = None
    why: str | None = None
    submitted: float | None = None

    def ended(self, step: int, why: str) -> Attempt:
        """The same attempt, ended now."""
        return replace(self, end=round(time.time(), 3), step=step, why=why)

    def __str__(self) -> str:
        steps = f"steps {self.start_step} to {'?' if self.step is None else self.step}"
        return f"job {self.job}, attempt {self.attempt} on {self.nodes}, {steps}: {self.why or NOBODY_LEFT}"


def record(run_directory: Path, attempt: Attempt) -> None:
    """Append a line for an attempt that starts or has ended; creates the run directory.

    Raises:
        OSError: the file cannot be written.
    """
    run_directory.mkdir(parents=True, exist_ok=True)
    line = json.dumps(asdict(attempt)).encode() + b"\n"
    with open(run_directory / ATTEMPTS_FILE, "ab", buffering=0) as file:
        if file.tell():  # of a line that a kill has cut off
            with open(run_directory / ATTEMPTS_FILE, "rb") as written:
                written.seek(-1, os.SEEK_END)
                line = line if written.read() == b"\n" else b"\n" + line
        file.write(line)
        os.fsync(file.fileno())


def read_attempts(run_directory: Path) -> list[Attempt]:
    """The attempts of a run in the order of their starts; lines that are damaged are left out."""
    try:
        lines = (run_directory / ATTEMPTS_FILE).read_bytes().splitlines()
    except (FileNotFoundError, NotADirectoryError):
        return []
    names = {field.name for field in fields(Attempt)}
    found: dict[tuple[str, int, float], Attempt] = {}
    for line in lines:
        with suppress(ValueError, TypeError, AttributeError):
            attempt = Attempt(**{name: value for name, value in json.loads(line).items() if name in names})
            found[attempt.job, attempt.attempt, attempt.start] = attempt
    return list(found.values())


def tell_attempts(attempts: Sequence[Attempt], environment: Mapping[str, str]) -> str:
    """The attempts of a run, a paragraph each, as the one that goes on knows them.

    Args:
        attempts: in order.
        environment: of a task of the job that goes on, or of a process without one.
    """
    job, attempt = environment.get("SLURM_JOB_ID"), int(environment.get("SLURM_RESTART_COUNT") or 0)
    return "\n\n".join(
        str(replace(each, why="goes on") if each.end is None and (each.job, each.attempt) == (job, attempt) else each)
        for each in attempts
    )


def without_new_step(attempts: Sequence[Attempt], job: str, step: int) -> int:
    """How many of a run's last attempts have added nothing to the checkpoint that is now the newest.

    Those of other jobs count as far as they have ended after this job was submitted: the earlier links of a chain.
    Whoever submits a job after attempts that came to nothing has seen them, and is given as many again.

    Args:
        attempts: of the run, in order.
        job: number of the SLURM job, which is one of them.
        step: of the newest checkpoint now; 0 for none.
    """
    own = [attempt.submitted for attempt in attempts if attempt.job == job]
    submitted = min((time for time in own if time is not None), default=math.inf)  # a requeue sets it anew
    count = 0
    for attempt in reversed(attempts):
        end = attempt.start if attempt.end is None else attempt.end
        if attempt.start_step != step or (attempt.job != job and end < submitted):
            break
        count += 1
    return count


def newest_step(run_directory: Path) -> int:
    """The step of the newest checkpoint of a run, as its `latest` file says; 0 for none."""
    try:
        name = (run_directory / "checkpoints" / "latest").read_text().strip()
    except (OSError, ValueError):
        return 0
    number = name.rpartition("-")[2]
    return int(number) if number.isdecimal() else 0


def is_complete(config: Config, run_directory: Path) -> bool:
    """Whether an attempt has recorded that the run is complete, which had the same settings as `config` in every key.

    Where a setting differs the ranks are to say what that means, and where an attempt was killed after its last
    checkpoint they have still to do what follows it.

    Args:
        config: that the next attempt would have.
        run_directory: of the run.
    """
    step = newest_step(run_directory)
    if not step or step < steps_of_run(config):
        return False
    if not any(attempt.why == COMPLETE and attempt.step == step for attempt in read_attempts(run_directory)):
        return False
    try:
        return (run_directory / "config.yaml").read_text() == dump_config(config)
    except (OSError, ValueError):
        return False
