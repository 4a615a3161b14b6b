"""Evaluation and sampling are interrupted when the run is asked to stop, on all ranks at the same point."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from typing import Any

from torch import nn

from nar_scale.data import Batch
from nar_scale.training.distributed import AllReducedFlags
from nar_scale.training.fault_tolerance.preemption import StopAgreement


class _Interrupted(Exception):
    """All ranks have agreed to stop."""


class _StopPoll:
    """Sums the requests to stop at each call and reads the sum at the next, so that nothing waits for it."""

    def __init__(self, stop: StopAgreement) -> None:
        self._stop = stop
        self._flags: AllReducedFlags | None = None

    def __call__(self) -> None:
        if self._flags is not None and any(self._flags.read()):
            self._stop.agree()
            raise _Interrupted
        self._flags = self._stop.poll()


def interruptible() -> AbstractContextManager[None]:
    """A `with` block that is left when `stopping_batches` or `stopping_calls` in it find that the run is to stop."""
    return suppress(_Interrupted)


def stopping_batches(stop: StopAgreement, batches: Iterable[Batch]) -> Iterator[Batch]:
    """The same batches, as long as no rank is asked to stop; every rank must have as many."""
    poll = _StopPoll(stop)
    for batch in batches:
        poll()
        yield batch


@contextmanager
def stopping_calls(stop: StopAgreement, net: nn.Module) -> Iterator[None]:
    """A `with` block in which calls of `net` look for requests to stop; every rank must make as many."""
    poll = _StopPoll(stop)

    def before_call(module: nn.Module, arguments: Any) -> None:
        poll()

    handle = net.register_forward_pre_hook(before_call, prepend=True)  # before ZeRO gathers its weights
    try:
        yield
    finally:
        handle.remove()
