"""The few questions and requests that a job has for SLURM, each repeated while the controller does not answer."""

from __future__ import annotations

import logging
import re
import subprocess
import time
from collections.abc import Sequence

from nar_scale.cluster.exclusion import Node
from nar_scale.errors import UserError

_logger = logging.getLogger(__name__)
_COMMAND_SECONDS = 60.0
_POLL_SECONDS = 5.0
# what SLURM's commands say where the controller is not there, or is too busy; other refusals are final
_UNREACHABLE = (
    *("Unable to contact slurm controller", "Communication connection failure", "Connection refused"),
    *("Socket timed out", "Zero Bytes were transmitted", "Connection timed out", "temporarily unable", "backup mode"),
)


class UnreachableError(Exception):
    """The controller has not answered for as long as it was asked."""


class SlurmJob:
    """A SLURM job as its batch script sees it.

    Args:
        job: its number.
        patience_seconds: for how long a request is repeated while the controller does not answer.
    """

    def __init__(self, job: str, patience_seconds: float = 300.0) -> None:
        self.job, self.patience_seconds = job, patience_seconds

    def describe(self) -> dict[str, str]:
        """What `scontrol show job` says: JobState, Restarts, EndTime, Requeue, ...; empty for a job that is gone.

        Raises:
            UnreachableError: the controller does not answer.
        """
        try:
            text = self._ask(["scontrol", "show", "job", "--oneliner", self.job])
        except UserError:
            return {}
        shown: dict[str, str] = {}
        for key, value in re.findall(r"(\S+?)=(\S*)", text):
            shown.setdefault(key, value)
        return shown

    def requeue(self) -> None:
        """Put the job back into the queue; SLURM soon kills its processes, the one that asks among them.

        Raises:
            UserError: SLURM refuses, with its reason.
            UnreachableError: the controller does not answer.
        """
        self._ask(["scontrol", "requeue", self.job])

    def exclude(self, nodes: Sequence[str]) -> None:
        """Have the next attempt do without these nodes alone; none for any node.

        Raises:
            UserError: SLURM refuses, as it does unless the job is pending.
            UnreachableError: the controller does not answer.
        """
        self._ask(["scontrol", "update", f"JobId={self.job}", f"ExcNodeList={','.join(nodes)}"])

    def end_step(self, step: int = 0) -> None:
        """Have the tasks of a step killed.

        Raises:
            UserError: SLURM refuses, as where the step has ended.
            UnreachableError: the controller does not answer.
        """
        self._ask(["scancel", "--signal=KILL", f"{self.job}.{step}"])

    def hosts(self, nodes: str) -> list[str]:
        """The names in a list of nodes such as `n[1-4]`; needs no controller.

        Raises:
            UserError: it is not such a list.
        """
        return self._ask(["scontrol", "show", "hostnames", nodes]).split()

    def nodes(self, partition: str) -> list[Node]:
        """All nodes of a partition; empty where SLURM does not tell.

        Raises:
            UnreachableError: the controller does not answer.
        """
        try:
            text = self._ask(
                ["sinfo", "--noheader", "--Node", f"--partition={partition}", "--format=%N %T %c,%m,%G,%f"]
            )
        except UserError:
            return []
        lines = (line.split(maxsplit=2) for line in text.splitlines())
        return [Node(*line) for line in lines if len(line) == 3]

    def lost_nodes(self, nodes: str) -> list[str]:
        """Those of some nodes that SLURM knows to be down, failed, or not responding.

        Raises:
            UnreachableError: the controller does not answer.
        """
        try:
            text = self._ask(["sinfo", "--noheader", "--Node", f"--nodes={nodes}", "--format=%N %T"])
        except UserError:
            return []
        lines = (line.split() for line in text.splitlines())
        return sorted({line[0] for line in lines if len(line) == 2 and _is_lost(line[1])})

    def _ask(self, command: Sequence[str]) -> str:
        deadline = time.monotonic() + self.patience_seconds
        told = False
        while True:
            problem = None
            try:
                done = subprocess.run(command, capture_output=True, text=True, timeout=_COMMAND_SECONDS, check=False)
                if done.returncode == 0:
                    return done.stdout
                problem = " ".join(done.stderr.split()) or f"status {done.returncode}"
            except subprocess.TimeoutExpired:
                problem = f"no answer in {_COMMAND_SECONDS:.0f} s"
            except OSError as error:
                raise UserError(f"{command[0]}: {error.strerror}") from None
            else:
                if not any(part in problem for part in _UNREACHABLE):
                    raise UserError(problem)
            if time.monotonic() >= deadline:
                raise UnreachableError(problem)
            if not told:
                _logger.warning(
                    "SLURM's controller does not answer (%s: %s); trying for %.0f s",
                    *command[:1],
                    problem,
                    self.patience_seconds,
                )
                told = True
            time.sleep(min(_POLL_SECONDS, self.patience_seconds))


def _is_lost(state: str) -> bool:
    """Whether a node's state, such as `down*` or `allocated`, means that nothing runs there."""
    return state.endswith("*") or state.startswith(("down", "fail", "unknown", "powered_down"))
