"""What a worker does: claim a unit, have its results made, commit them, and so on until all units are finished."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from typing import Protocol

from nar_scale.errors import UserError
from nar_scale.files import remedy_for
from nar_scale.fleet.claims import Claim, Units
from nar_scale.fleet.heartbeat import Heartbeat
from nar_scale.fleet.journal import Journal
from nar_scale.fleet.names import PART
from nar_scale.fleet.parts import encode_part
from nar_scale.fleet.stopping import Stopped
from nar_scale.text import integer_ranges

_logger = logging.getLogger(__name__)

_FIRST_POLL_SECONDS = 0.05
_LOOKS_IN_SILENCE = 6


class Maker(Protocol):
    """Makes the results of a unit."""

    def make(self, numbers: list[int]) -> Iterator[Mapping[int, bytes]]:
        """Make results by their numbers, as JSON without line feeds; each group is committed as soon as it is made."""

    def before_commit(self, unit: int, results: list[bytes]) -> None:
        """Do what must be there before the part of a unit is."""


class Renewal(Protocol):
    """Something that renews a lease, and knows whether it was lost."""

    lost: bool


class Worker:
    """One of any number of workers on a directory.

    Args:
        units: as this worker sees them.
        maker: makes their results.
        stop: is true once the worker is to stop.
        sleep: waits for so many seconds.
        renewing: a `with` block in which the lease of a claim is renewed.
        on_results: is called with the number of results that were added to those of this worker.
    """

    def __init__(
        self,
        units: Units,
        maker: Maker,
        stop: Callable[[], bool] = lambda: False,
        sleep: Callable[[float], None] = time.sleep,
        renewing: Callable[[Units, Claim], AbstractContextManager[Renewal]] = Heartbeat,
        on_results: Callable[[int], None] = lambda count: None,
    ) -> None:
        self._units, self._maker, self._stop, self._sleep = units, maker, stop, sleep
        self._renewing, self._on_results = renewing, on_results
        self._directory, self._layout = units.directory, units.layout
        self.made = 0  # results

    def run(self) -> None:
        """Work until all units are finished, whoever finishes them.

        Raises:
            Stopped: the worker was asked to stop.
            UserError: the directory cannot be written, or this worker could not make some units, and all others are
                finished.
        """
        looks = 0  # in vain
        while True:
            self._check_stop()
            claim = self._claim()
            if claim is not None:
                self._do(claim)
                looks = 0
            elif self._units.complete:
                return
            elif self._units.failed and self._units.done + len(self._units.failed) == self._layout.units:
                self._report_failed()
            else:
                if looks == _LOOKS_IN_SILENCE:
                    _logger.info("waiting for the last units of %s", ", ".join(self._units.holders) or "other workers")
                # at first often: the others may be about to finish
                self._sleep(min(self._units.poll_seconds(), _FIRST_POLL_SECONDS * 2**looks))
                looks += 1

    def _claim(self) -> Claim | None:
        try:
            return self._units.claim() or self._units.take_over()
        except OSError as error:
            raise self._cannot_write(error) from None

    def _do(self, claim: Claim) -> None:
        """Make what is missing of a unit, and commit it."""
        try:
            with self._renewing(self._units, claim) as renewal:
                results = self._collect(claim, renewal)
                if results is None:
                    self._let_go(claim)
                else:
                    self._commit(claim, results)
        except (UserError, Stopped):
            self._give_back(claim)
            raise
        except OSError as error:
            self._give_back(claim)
            raise self._cannot_write(error, self._layout.part_name(claim.unit)) from None
        except Exception as error:  # whatever it is: the next unit may be made, and another worker may make this one
            reason = f"{type(error).__name__}: {error}".split("\n", 1)[0]
            _logger.exception("unit %d cannot be made", claim.unit)
            try:
                self._units.fail(claim, reason)
            except OSError as problem:  # the lease runs out
                _logger.warning("that could not be noted: %s", problem.strerror)

    def _collect(self, claim: Claim, renewal: Renewal) -> dict[int, bytes] | None:
        """All results of a unit; None if another worker has it by now."""
        journal, numbers = Journal(self._directory, claim), self._layout.numbers(claim.unit)
        results = journal.read_earlier(numbers)
        if claim.number > 1:
            _logger.info("unit %d is continued: %d of its %d results are there", claim.unit, len(results), len(numbers))
        missing = [number for number in numbers if number not in results]
        batches = self._maker.make(missing) if missing else iter(())
        for batch in batches:
            if renewal.lost:
                return None
            try:
                journal.append(batch)
            except FileNotFoundError:
                return None
            results.update(batch)
            self.made += len(batch)
            self._on_results(len(batch))
            if len(results) < len(numbers):
                self._check_stop()
        return results

    def _commit(self, claim: Claim, results: dict[int, bytes]) -> None:
        lines = [results[number] for number in self._layout.numbers(claim.unit)]
        self._maker.before_commit(claim.unit, lines)
        temporary, part = claim.name(PART), self._layout.part_name(claim.unit)
        try:
            self._directory.create(temporary)
            self._directory.append(temporary, encode_part(self._layout, lines), durable=True)
            self._directory.publish(temporary, part)
        except FileNotFoundError:
            if not self._directory.exists(part):  # else another worker has finished the unit
                raise
        self._units.finish(claim)

    def _let_go(self, claim: Claim) -> None:
        _logger.warning("unit %d was taken over by another worker; this one goes on with the next", claim.unit)
        if self._directory.exists(self._layout.part_name(claim.unit)):
            self._units.finish(claim)

    def _give_back(self, claim: Claim) -> None:
        try:
            self._directory.remove(claim.name(PART))  # half a part, where the disk is full
            self._units.give_back(claim)
        except OSError as error:  # the lease runs out
            _logger.warning("unit %d could not be given back: %s", claim.unit, error.strerror)

    def _check_stop(self) -> None:
        if self._stop():
            raise Stopped(self.made)

    def _report_failed(self) -> None:
        unit, reason = next(iter(self._units.failed.items()))
        raise UserError(
            f"of {self._layout.units} units {', '.join(integer_ranges(self._units.failed))} cannot be made, "
            f"unit {unit} for the reason {reason}; all others are finished"
        )

    def _cannot_write(self, error: OSError, name: str = "") -> UserError:
        known = remedy_for(error)
        remedy = (
            f"{known} and run the same command again, which keeps what was made" if known else "choose another --output"
        )
        return UserError(f"cannot write {self._directory.path / name}: {error.strerror}; {remedy}")
