"""Supervises the ranks of a training job from its batch script: starts them, passes requests to stop on, and decides.

What it does not leave to SLURM: a request to stop reaches the ranks as a file, since a signal that `srun` passes on
gets lost at times and kills a task that is still importing; `srun` is not waited for without end; the job goes back
into the queue after a save and after lost nodes, but not for ever; each attempt leaves a record; and a job that finds
the run complete ends at once.
"""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import datetime
from pathlib import Path

from nar_scale.cluster.attempts import Attempt, is_complete, newest_step, read_attempts, record, without_new_step
from nar_scale.cluster.decision import ATTEMPTS_WITHOUT_STEP, Decision, bounded, decide, no_progress
from nar_scale.cluster.endings import Ending, Kind
from nar_scale.cluster.layout import layout_of, port_of
from nar_scale.cluster.requeue import put_back, submit_without
from nar_scale.cluster.slurm import SlurmJob, UnreachableError
from nar_scale.cluster.tasks import Tasks
from nar_scale.config import Config, load_config
from nar_scale.errors import UserError
from nar_scale.processes import RESUMABLE_EXIT_STATUS

_logger = logging.getLogger(__name__)
_TRAINER = "launcher/train.py"


class TrainingSupervisor:
    """One attempt of a training job.

    Args:
        arguments: of `launcher/train.py`, the configuration first.
        environment: of the batch script.
        directory: that the job was submitted from.

    Raises:
        UserError: the job cannot be started like this.
    """

    def __init__(self, arguments: Sequence[str], environment: Mapping[str, str], directory: Path) -> None:
        self.arguments, self.environment, self.directory = list(arguments), environment, directory
        self._check()
        self.job = SlurmJob(environment["SLURM_JOB_ID"])
        self.attempt = int(environment.get("SLURM_RESTART_COUNT") or 0)
        self.nodes = environment.get("SLURM_JOB_NODELIST", "")
        self.layout = layout_of(environment)
        self.config = _config(self.arguments)
        self.run_directory = Path(str(self.config.training.run_directory)) if self.config else None

    def _check(self) -> None:
        if not self.arguments:
            raise UserError("no configuration given: sbatch slurm/train.sbatch CONFIG [section.key=value ...]")
        if not Path(self.arguments[0]).is_file():
            raise UserError(f"no configuration file {self.arguments[0]} in {self.directory}")

    def run(self) -> int:
        """Run the attempt; returns the exit status of the job, of which a requeue takes no notice."""
        if self.config is not None and self._is_complete(self.config):
            return 0
        started = self._record_start()
        if started is not None and self._attempts_without_step(started.start_step) > ATTEMPTS_WITHOUT_STEP:
            problem = no_progress(ATTEMPTS_WITHOUT_STEP, started.start_step)
            self._record(started.ended(started.start_step, problem))
            _logger.error("%s; not tried again: see what ended them, and submit again", problem)
            return 1
        status, endings = self._run_tasks()
        decision = decide(status, endings, self._lost_nodes(status))
        if started is not None:
            decision = self._bounded(decision, started)
        if decision.requeue:
            put_back(self.job, self.attempt, self.nodes, decision)
        elif decision.status:
            _logger.error("not requeued: %s", decision.why)
            if decision.suspects:
                _logger.warning("look at %s", submit_without(decision.suspects))
        return decision.status

    def _is_complete(self, config: Config) -> bool:
        """Whether nothing is left to do, as in the later links of a chain of jobs."""
        if self.run_directory is None or any(argument.startswith("--resume") for argument in self.arguments):
            return False
        complete = is_complete(config, self.run_directory)
        if complete:
            _logger.info("%s is complete, nothing is left to train", self.run_directory)
        return complete

    def _run_tasks(self) -> tuple[int | None, list[Ending]]:
        tasks = Tasks(self.job, self.environment, self.directory)
        return tasks.run(
            self._command(tasks.wait_seconds),
            self._task_environment(),
            lambda endings: any(ending.kind is not Kind.RUNNING for ending in endings),
            "asked to stop; the run is saved at the next step",
        )

    def _command(self, wait_seconds: float) -> list[str]:
        # A task that ends first must not have the others killed while they still save (some sites set KillOnBadExit),
        # yet a crashed one must not leave them waiting for it until the time limit.
        srun = ["srun", "--label", "--kill-on-bad-exit=0", f"--wait={wait_seconds:.0f}", *self.layout.options]
        return [*srun, sys.executable, _TRAINER, "--config", *self.arguments]

    def _task_environment(self) -> dict[str, str]:
        cpus = str(self.layout.cpus_per_task)
        first = self.job.hosts(self.nodes)[0]
        end = {}
        with suppress(KeyError, ValueError):  # "Unknown" without a time limit
            end = {"SLURM_JOB_END_TIME": f"{datetime.fromisoformat(self._described()['EndTime']).timestamp():.0f}"}
        return {
            "OMP_NUM_THREADS": self.environment.get("OMP_NUM_THREADS", cpus),
            **end,
            "SRUN_CPUS_PER_TASK": cpus,  # since SLURM 22.05 srun does not take it over from sbatch
            "MASTER_ADDR": first,
            "MASTER_PORT": str(port_of(self.job.job)),
        }

    def _lost_nodes(self, status: int | None) -> list[str]:
        if status in (0, RESUMABLE_EXIT_STATUS):
            return []
        try:
            return self.job.lost_nodes(self.nodes)
        except UnreachableError:
            return []

    def _record_start(self) -> Attempt | None:
        """Tell of the attempt before, and record this one; None where the run directory is not known."""
        if self.run_directory is None:
            return None
        earlier = [attempt for attempt in read_attempts(self.run_directory) if attempt.job == self.job.job]
        if earlier:
            _logger.info("the attempt before: %s", earlier[-1])
        now = round(time.time(), 3)
        started = Attempt(
            self.job.job, self.attempt, self.nodes, now, newest_step(self.run_directory), submitted=self._submitted(now)
        )
        self._record(started)
        return started

    def _submitted(self, now: float) -> float | None:
        """When the job was submitted, by the clock of this node; SLURM's may be another."""
        shown = self._described()
        with suppress(KeyError, ValueError):
            waited = datetime.fromisoformat(shown["StartTime"]) - datetime.fromisoformat(shown["SubmitTime"])
            return round(now - waited.total_seconds(), 3)
        return None

    def _described(self) -> dict[str, str]:
        """What SLURM says of the job; empty while its controller does not answer."""
        try:
            return self.job.describe()
        except UnreachableError:
            return {}

    def _record(self, attempt: Attempt) -> None:
        assert self.run_directory is not None
        try:
            record(self.run_directory, attempt)
        except OSError as error:
            _logger.warning("%s: the record of attempts cannot be written: %s", self.run_directory, error.strerror)

    def _attempts_without_step(self, step: int) -> int:
        assert self.run_directory is not None
        return without_new_step(read_attempts(self.run_directory), self.job.job, step)

    def _bounded(self, decision: Decision, started: Attempt) -> Decision:
        """Record the end of the attempt; bound how often the job goes on without a new step."""
        assert self.run_directory is not None
        step = newest_step(self.run_directory)
        attempts = self._attempts_without_step(step)
        decision = bounded(decision, attempts, step)
        self._record(started.ended(step, decision.why))
        if decision.requeue and attempts:
            _logger.warning(
                "%s; after %d the job ends: where the time limit ended it, ask for more time than a start takes "
                "and the seconds of --signal",
                no_progress(attempts, step),
                ATTEMPTS_WITHOUT_STEP,
            )
        return decision


def _config(arguments: Sequence[str]) -> Config | None:
    """That of the run; None for one that the tasks will refuse, and for a mere preflight, of which nothing is kept."""
    if "--preflight" in arguments:
        return None
    overrides = [argument for argument in arguments[1:] if "=" in argument and not argument.startswith("-")]
    try:
        return load_config(arguments[0], overrides)
    except (UserError, OSError):
        return None
