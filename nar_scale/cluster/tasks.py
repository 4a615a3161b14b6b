"""The tasks of one attempt of a SLURM job: started, asked to stop by a file, and not waited for without end."""

from __future__ import annotations

import logging
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from nar_scale.cluster.endings import ATTEMPT_DIRECTORY_VARIABLE, Ending, read_endings
from nar_scale.cluster.slurm import SlurmJob, UnreachableError
from nar_scale.errors import UserError
from nar_scale.processes import STOP_FILE_VARIABLE

_logger = logging.getLogger(__name__)
_WAIT_VARIABLE = "NAR_SCALE_WAIT_SECONDS"
_WAIT_SECONDS = 120.0
_POLL_SECONDS = 0.25
_LOOK_SECONDS = 2.0


class Tasks:
    """The tasks of an attempt.

    Args:
        job: that they belong to.
        environment: of the batch script; it names the file that asks the tasks to stop, which is removed in the end.
        directory: of a file system of all nodes; the tasks report how they have ended in a directory below it.
    """

    def __init__(self, job: SlurmJob, environment: Mapping[str, str], directory: Path) -> None:
        self._job, self._environment = job, environment
        self._stop_file = Path(environment[STOP_FILE_VARIABLE])
        attempt = environment.get("SLURM_RESTART_COUNT") or 0
        self._directory = directory / f"slurm-attempt-{environment['SLURM_JOB_ID']}-{attempt}"
        self.wait_seconds = float(environment.get(_WAIT_VARIABLE) or _WAIT_SECONDS)

    def run(
        self,
        command: Sequence[str],
        environment: Mapping[str, str],
        about_to_end: Callable[[Sequence[Ending]], bool],
        when_asked: str,
    ) -> tuple[int | None, list[Ending]]:
        """Run the tasks to their end.

        Args:
            command: starts them.
            environment: of the command, beside that of the batch script.
            about_to_end: tells from what the tasks have reported whether `srun` is to return soon. It is killed where
                it has not done so 1.5 times `wait_seconds` later.
            when_asked: a line to log when the stop file appears.

        Returns:
            the status of the command, or None if it had to be killed; and what the tasks have reported last.
        """
        shutil.rmtree(self._directory, ignore_errors=True)
        self._directory.mkdir()
        environment = {**self._environment, **environment, ATTEMPT_DIRECTORY_VARIABLE: str(self._directory)}
        try:
            # srun has a helper process, to be killed with it; a worker without srun stays in the process group of the
            # batch script, by which some sites find what is left of a job
            own_group = command[0] == "srun"
            with subprocess.Popen(command, env=environment, start_new_session=own_group) as process:
                try:
                    status = self._wait(process, about_to_end, when_asked)
                except BaseException:
                    process.kill()
                    raise
            return status, read_endings(self._directory)
        finally:
            shutil.rmtree(self._directory, ignore_errors=True)
            self._stop_file.unlink(missing_ok=True)

    def _wait(
        self, process: subprocess.Popen[bytes], about_to_end: Callable[[Sequence[Ending]], bool], when_asked: str
    ) -> int | None:
        ending_since: float | None = None
        looked = 0.0
        asked = False
        while (status := process.poll()) is None:
            time.sleep(_POLL_SECONDS)
            now = time.monotonic()
            if not asked and self._stop_file.exists():
                asked = True
                _logger.info("%s", when_asked)
            if ending_since is None and now - looked > _LOOK_SECONDS:
                looked = now
                if about_to_end(read_endings(self._directory)):
                    ending_since = now
            if ending_since is not None and now - ending_since > 1.5 * self.wait_seconds:
                self._give_up(process, now - ending_since)
                return None
        return status

    def _give_up(self, process: subprocess.Popen[bytes], seconds: float) -> None:
        _logger.warning("srun has not returned %.0f s after tasks have ended; it is killed", seconds)
        try:
            self._job.end_step()
        except (UserError, UnreachableError) as error:
            _logger.warning("the tasks cannot be killed: %s", error)
        with suppress(subprocess.TimeoutExpired):
            process.wait(timeout=min(self.wait_seconds / 2, 30.0))
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
