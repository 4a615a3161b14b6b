"""Consolidated checkpoints made while the run goes on."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from nar_scale.checkpoint import CheckpointStore, delete_set_aside, set_aside

DIRECTORY = "consolidated"
_COMMAND = "import sys; from nar_scale.checkpoint import consolidate_as_command; consolidate_as_command(*sys.argv[1:])"


class Consolidations:
    """Turns published checkpoints into consolidated ones, in a process of the main rank beside the run.

    They appear as `consolidated/step-000001000` in the run directory. One is made at a time, and the run does not wait.

    Args:
        store: of the training checkpoints.
    """

    def __init__(self, store: CheckpointStore):
        self._store = store
        self._process: subprocess.Popen[bytes] | None = None
        self.steps: list[int] = []  # of checkpoints that are being read or will be, and must stay

    def add(self, step: int) -> None:
        """Consolidate the published checkpoint of a step, when its turn comes; unless that is done, or asked for."""
        if step not in self.steps and not self._output(step).exists():
            self.steps.append(step)
        self.advance()

    def forget_after(self, step: int) -> None:
        """Give up those of later steps, and set aside what there is of them: the run takes another way."""
        if self._process is not None and self.steps[0] > step:
            self.abandon()
        self.steps = [earlier for earlier in self.steps if earlier <= step]
        for output in sorted(self._output(step).parent.glob("step-*")):
            if output.name > self._output(step).name:
                set_aside(output)

    def advance(self) -> None:
        """Begin with the next one if the one before is done."""
        if self._process is not None and self._process.poll() is not None:
            self._end()
        if self._process is None and self.steps:
            step = self.steps[0]
            arguments = [str(self._store.directory.parent), str(self._output(step)), str(step), str(os.getpid())]
            # in the main thread, whose end the process hears of
            self._process = subprocess.Popen([sys.executable, "-c", _COMMAND, *arguments])

    def abandon(self) -> None:
        """End the one that is being made, unfinished."""
        if self._process is not None:
            self._process.terminate()
            self._process.wait()
            self._process = None

    def _end(self) -> None:
        """Wait for the one that is being made; that it failed is told, and does not end the run."""
        assert self._process is not None
        step = self.steps.pop(0)
        if self._process.wait():
            print(f"the checkpoint of step {step} could not be consolidated", file=sys.stderr, flush=True)
        else:
            delete_set_aside(self._output(step).parent, step)
        self._process = None

    def _output(self, step: int) -> Path:
        return self._store.directory.parent / DIRECTORY / self._store.path(step).name
