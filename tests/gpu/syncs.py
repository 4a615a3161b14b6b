"""Where the host waits for the device.

On a GPU these count: what `torch.cuda.set_sync_debug_mode` warns of (copies to and from pageable memory, `.item()`,
`nonzero`, ...) and calls that wait for a stream, an event or the device. On CPUs, for rehearsals, what
`tests/training/waits.py` records.
"""

from __future__ import annotations

import linecache
import sys
import traceback
import warnings
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from importlib.util import find_spec
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple
from unittest import mock

import torch

from tests.training.waits import Found, Functions, Operators

_DEEPSPEED = "deepspeed"
_PACKAGES = {name: Path(find_spec(name).origin).parent for name in ("nar_scale", _DEEPSPEED)}  # type: ignore[union-attr, arg-type]
_WARNING = "called a synchronizing CUDA operation"


class Sync(NamedTuple):
    """A line of the source at which the host waits.

    Attributes:
        owner: `nar_scale`, `deepspeed`, `autograd` (an operator of the backward pass, which torch does not name) or
            `other`.
        file: below the package, such as `nar_scale/masking/masks.py`.
        line: its number.
        function: around it.
        code: what stands there.
    """

    owner: str
    file: str
    line: int
    function: str
    code: str


def here() -> Sync:
    """The innermost line of the stack that belongs to nar_scale or to DeepSpeed."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        file = Path(frame.f_code.co_filename)
        for owner, package in _PACKAGES.items():
            if file.is_relative_to(package):
                code = linecache.getline(str(file), frame.f_lineno).strip()
                # what operators of the backward pass have to say is said where that was called
                backward = owner == _DEEPSPEED and ".backward(" in code
                name = str(file.relative_to(package.parent))
                return Sync("autograd" if backward else owner, name, frame.f_lineno, _function(frame), code)
        frame = frame.f_back
    return Sync("other", "", 0, "", "".join(traceback.format_stack(limit=4)))


def _function(frame: FrameType) -> str:
    """The name of the function that a frame is of, or that its lambda or comprehension stands in."""
    while frame.f_code.co_name.startswith("<") and frame.f_back is not None:
        frame = frame.f_back
    return frame.f_code.co_name


class Recorder:
    """Counts how often the host waits at each line, between `start` and `stop`.

    Attributes:
        counts: of each line.
    """

    def __init__(self) -> None:
        self.counts: Counter[Sync] = Counter()
        self._entered = ExitStack()

    def start(self) -> None:
        """Count from now on."""

    def stop(self) -> None:
        """Count no more."""
        self._entered.close()

    def note(self) -> None:
        """Whoever calls this would wait here."""
        self.counts[here()] += 1


class CudaRecorder(Recorder):
    """Listens to CUDA's warnings and to calls that wait."""

    def start(self) -> None:
        def show(message: Warning | str, category: type[Warning], *rest: Any, **options: Any) -> None:
            if _WARNING in str(message):
                self.note()

        self._entered.enter_context(warnings.catch_warnings())
        warnings.filterwarnings("always", message=f".*{_WARNING}")
        self._entered.enter_context(mock.patch.object(warnings, "showwarning", show))
        for holder in (torch.cuda, torch.cuda.Event, torch.cuda.Stream):
            self._entered.enter_context(mock.patch.object(holder, "synchronize", self._noting(holder.synchronize)))
        torch.cuda.set_sync_debug_mode("warn")
        self._entered.callback(torch.cuda.set_sync_debug_mode, "default")

    def _noting(self, synchronize: Callable[..., None]) -> Callable[..., None]:
        def synchronizing(*arguments: Any, **options: Any) -> None:
            self.note()
            synchronize(*arguments, **options)

        return synchronizing


class HostRecorder(Recorder):
    """Looks at operators instead, for a rehearsal without a GPU; where they were called is known to the function."""

    def start(self) -> None:
        """Count from now on."""
        self._found: Found = Counter()
        for mode in (Operators(self._found), Functions(self._found)):
            self._entered.enter_context(mode)

    def stop(self) -> None:
        """Count no more."""
        super().stop()
        for (operator, where), count in self._found.items():
            file, _, function = where.partition(": ")
            self.counts[Sync(file.split("/")[0], file, 0, function, operator)] = count
