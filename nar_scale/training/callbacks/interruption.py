"""Evaluation and sampling end early when the run is asked to stop, on all ranks alike."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from nar_scale.data import Batch
from nar_scale.training.distributed import Votes
from nar_scale.training.trainer import Trainer


class _Abandoned(Exception):
    """All ranks have agreed to stop."""


class _Poll:
    """Asks whether to stop at each call, and hears the answer at the next, so that nothing waits for it."""

    def __init__(self, trainer: Trainer) -> None:
        self._trainer = trainer
        self._votes: Votes | None = None

    def __call__(self) -> None:
        if self._votes is not None and any(self._votes.read()):
            self._trainer.begin_to_stop()
            raise _Abandoned
        self._votes = self._trainer.ask_to_stop()


@contextmanager
def abandoned_on_request(trainer: Trainer) -> Iterator[None]:
    """A `with` block that is left when `polled_batches` or `polled_calls` within it find that the run is to stop."""
    try:
        yield
    except _Abandoned:
        trainer.engine.train()


def polled_batches(trainer: Trainer, batches: Iterable[Batch]) -> Iterator[Batch]:
    """The same batches, of which every rank must have as many, as long as nobody asks to stop."""
    poll = _Poll(trainer)
    for batch in batches:
        poll()
        yield batch


@contextmanager
def polled_calls(trainer: Trainer, net: nn.Module) -> Iterator[None]:
    """A `with` block in which each call of `net`, of which every rank must make as many, asks whether to stop."""
    poll = _Poll(trainer)

    def before_call(module: nn.Module, arguments: Any) -> None:
        poll()

    handle = net.register_forward_pre_hook(before_call, prepend=True)  # before ZeRO gathers its weights
    try:
        yield
    finally:
        handle.remove()
