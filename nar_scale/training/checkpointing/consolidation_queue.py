"""Consolidated checkpoints that are made during the run."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from pathlib import Path

from nar_scale.checkpoint import CheckpointStore, delete_quarantined, quarantine

DIRECTORY = "consolidated"
_logger = logging.getLogger(__name__)
_COMMAND = "import sys; from nar_scale.checkpoint import consolidate_as_command; consolidate_as_command(*sys.argv[1:])"


class ConsolidationQueue:
    """Turns published checkpoints into consolidated ones, in a child process of the main rank while the run goes on.

    They appear as `consolidated/step-000001000` in the run directory. One is made at a time, and the run does not wait.

    Args:
        store: of the training checkpoints.
    """

    def __init__(self, store: CheckpointStore):
        self._store = store
        self._process: subprocess.Popen[bytes] | None = None
        self.steps: list[int] = []  # whose checkpoints are being read or will be, and must be kept

    def add(self, step: int) -> None:
        """Consolidate the published checkpoint of a step, when its turn comes; unless that is done, or asked for."""
        if step not in self.steps and not self._output(step).exists():
            self.steps.append(step)
        self.advance()

    def forget_after(self, step: int) -> None:
        """Drop those of later steps and quarantine what there is of them: the run goes on from an earlier step."""
        if self._process is not None and self.steps[0] > step:
            self.terminate()
        self.steps = [earlier for earlier in self.steps if earlier <= step]
        for output in sorted(self._output(step).parent.glob("step-*")):
            if output.name > self._output(step).name:
                quarantine(output)

    def advance(self) -> None:
        """Begin with the next one if the one before is done; to be called in the main thread."""
        if self._process is not None and self._process.poll() is not None:
            self._end()
        if self._process is None and self.steps:
            step = self.steps[0]
            arguments = [str(self._store.directory.parent), str(self._output(step)), str(step), str(os.getpid())]
            # the process ends with the thread that has started it
            self._process = subprocess.Popen([sys.executable, "-c", _COMMAND, *arguments])

    def terminate(self) -> None:
        """End the child process, leaving what it makes unfinished."""
        if self._process is not None:
            self._process.terminate()
            self._process.wait()
            self._process = None

    def _end(self) -> None:
        """Wait for the child process; its failure is logged, and does not end the run."""
        assert self._process is not None
        step = self.steps.pop(0)
        if self._process.wait():
            _logger.error("the checkpoint of step %d could not be consolidated", step)
        else:
            delete_quarantined(self._output(step).parent, step)
        self._process = None

    def _output(self, step: int) -> Path:
        return self._store.directory.parent / DIRECTORY / self._store.path(step).name
