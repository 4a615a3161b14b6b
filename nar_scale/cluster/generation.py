"""Supervises the workers of a generation job from its batch script.

Workers share the requests with those of other jobs and may be killed at any time (`nar_scale.fleet`), so that one of
them is enough to finish the work. What is left to decide is whether the job goes back into the queue: after its workers
were asked to stop, as long as its attempts make results.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from nar_scale.cluster.decision import Decision
from nar_scale.cluster.endings import NO_RESULT_YET, Ending, Kind
from nar_scale.cluster.requeue import put_back
from nar_scale.cluster.slurm import SlurmJob
from nar_scale.cluster.tasks import Tasks
from nar_scale.processes import RESUMABLE_EXIT_STATUS

ATTEMPTS_WITHOUT_RESULT = 3
"""So many attempts of a job in a row may end without a result of any of its workers."""

_logger = logging.getLogger(__name__)
_WORKER = "launcher/generate.py"


def decide_generation(status: int | None, endings: Sequence[Ending], in_vain: int) -> Decision:
    """What becomes of a generation job, from how its workers have ended.

    Args:
        status: of the workers, the highest of all; None where `srun` had to be killed.
        endings: what the workers have reported last.
        in_vain: attempts of the job in a row, this one included, in which workers were stopped before a result.
    """
    if status == 0 or any(ending.kind is Kind.COMPLETE for ending in endings):  # which each worker waits for
        return Decision(False, 0, "all results are there")
    no_result = (
        f"{in_vain} attempt(s) in a row without a result; after {ATTEMPTS_WITHOUT_RESULT} the job ends: its time limit "
        "must be longer than loading the model and a batch take, with the seconds of --signal"
    )
    if in_vain >= ATTEMPTS_WITHOUT_RESULT:
        return Decision(False, 1, no_result)
    if status == RESUMABLE_EXIT_STATUS or any(ending.kind is Kind.STOPPED for ending in endings):
        return Decision(True, RESUMABLE_EXIT_STATUS, no_result if in_vain else "committed")
    status = 1 if status is None else status
    return Decision(False, status, _worker(endings[0]) if endings else f"a worker ended with status {status}")


def stopped_too_early(endings: Sequence[Ending]) -> bool:
    """Whether workers were asked to stop, and none of them had made a result."""
    stopped = [ending for ending in endings if ending.kind is Kind.STOPPED]
    return bool(stopped) and all(ending.why == NO_RESULT_YET for ending in stopped)


class GenerationSupervisor:
    """One attempt of a generation job.

    Args:
        arguments: of `launcher/generate.py`.
        environment: of the batch script.
        directory: that the job was submitted from.
    """

    def __init__(self, arguments: Sequence[str], environment: Mapping[str, str], directory: Path) -> None:
        self.arguments, self.environment, self.directory = list(arguments), environment, directory
        array = environment.get("SLURM_ARRAY_JOB_ID")
        # the number of one task of an array is that of the whole array as well
        self.job = SlurmJob(f"{array}_{environment['SLURM_ARRAY_TASK_ID']}" if array else environment["SLURM_JOB_ID"])
        self.count_in_vain = directory / f"slurm-attempts-in-vain-{environment['SLURM_JOB_ID']}"

    def run(self) -> int:
        """Run the attempt; returns the exit status of the job, of which a requeue takes no notice."""
        workers = int(self.environment.get("SLURM_NTASKS") or 1)
        status, endings = Tasks(self.job, self.environment, self.directory).run(
            self._command(workers),
            self._worker_environment(),
            lambda endings: _all_have_ended(endings, workers),
            "asked to stop; the workers commit what they have made",
        )
        in_vain = self._in_vain() + 1 if stopped_too_early(endings) else 0
        decision = decide_generation(status, endings, in_vain)
        if decision.requeue and in_vain:
            self.count_in_vain.write_text(f"{in_vain}\n")
        else:
            self.count_in_vain.unlink(missing_ok=True)
        if decision.requeue or decision.status == 0:
            for ending in endings:
                if ending.kind not in (Kind.COMPLETE, Kind.STOPPED):
                    _logger.warning("%s; the others have gone on without it", _worker(ending))
        if decision.requeue:
            attempt, nodes = self.environment.get("SLURM_RESTART_COUNT") or "0", self.environment["SLURM_JOB_NODELIST"]
            put_back(self.job, int(attempt), nodes, decision)
        elif decision.status:
            _logger.error("not requeued: %s", decision.why)
        return decision.status

    def _command(self, workers: int) -> list[str]:
        srun = ["srun", "--label", "--kill-on-bad-exit=0", "--wait=0"] if workers > 1 else []
        return [*srun, sys.executable, _WORKER, *self.arguments]

    def _worker_environment(self) -> dict[str, str]:
        cpus = self.environment.get("SLURM_CPUS_PER_TASK") or "1"
        # since SLURM 22.05 srun does not take it over from sbatch
        return {"OMP_NUM_THREADS": self.environment.get("OMP_NUM_THREADS") or cpus, "SRUN_CPUS_PER_TASK": cpus}

    def _in_vain(self) -> int:
        with suppress(OSError, ValueError):
            return int(self.count_in_vain.read_text())
        return 0


def _all_have_ended(endings: Sequence[Ending], workers: int) -> bool:
    """Whether all tasks of `srun` have ended; a single worker is started without it."""
    return workers > 1 and len(endings) == workers and all(ending.kind is not Kind.RUNNING for ending in endings)


def _worker(ending: Ending) -> str:
    why = "was killed" if ending.kind is Kind.RUNNING else ending.why or ending.kind.value
    return f"worker {ending.rank} on {ending.host}: {why}"
