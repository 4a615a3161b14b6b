"""How far the work in a directory is, without taking part in it."""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from nar_scale.errors import UserError
from nar_scale.fleet.claims import BEAT, LOOKS_PER_LEASE, read_holder
from nar_scale.fleet.holder import Holder
from nar_scale.fleet.journal import parse_journal
from nar_scale.fleet.names import FAILED, RESULTS, UnitNames, claim_name, units_in
from nar_scale.fleet.parts import Layout, seems_whole
from nar_scale.fleet.record import RECORD_FILE, read_record
from nar_scale.text import integer_ranges

RATE_SECONDS = 600.0


@dataclass(frozen=True)
class Running:
    """A unit that a worker holds.

    Attributes:
        unit: its number.
        holder: who holds it; None if its holder was killed while it wrote its name.
        seconds: since it was claimed.
        silent_seconds: since the last sign of its holder.
        lease_seconds: after which without a sign it is taken over.
        results: that are there.
    """

    unit: int
    holder: Holder | None
    seconds: float
    silent_seconds: float
    lease_seconds: float
    results: int

    @property
    def gone(self) -> bool:
        """Whether its holder is taken to be gone."""
        ended = self.holder is not None and self.holder.runs_here() is False
        return ended or self.silent_seconds > self.lease_seconds

    def __str__(self) -> str:
        holder = self.holder or "a process that was killed as it began"
        state = "gone, " if self.gone else ""
        return (
            f"unit {self.unit}: {holder}, for {self.seconds:.0f} s, {state}last sign {self.silent_seconds:.0f} s ago, "
            f"{self.results} results"
        )


@dataclass(frozen=True)
class Status:
    """How far the work is.

    Attributes:
        layout: of the work.
        done: finished units.
        truncated: those of them whose parts are not whole.
        running: units that workers hold.
        waiting: units that nobody holds and that can be claimed.
        failed: the reasons for which units that nobody holds could not be made.
        results: that are there, of finished units and of others.
        rate: results a second over the last ten minutes; None if nothing was finished meanwhile.
    """

    layout: Layout
    done: list[int]
    truncated: list[int]
    running: list[Running]
    waiting: list[int]
    failed: dict[int, str] = field(default_factory=dict)
    results: int = 0
    rate: float | None = None

    @property
    def complete(self) -> bool:
        """Whether all units are finished, and their parts whole."""
        return len(self.done) == self.layout.units and not self.truncated

    @property
    def seconds_left(self) -> float | None:
        """At the present rate; None if there is none."""
        return None if not self.rate else (self.layout.count - self.results) / self.rate

    def __str__(self) -> str:
        count, units = self.layout.count, self.layout.units
        lines = [
            f"{self.results} of {count} results ({self.results / count:.0%}), {len(self.done)} of {units} units done"
        ]
        if self.truncated:
            lines.append(f"truncated: units {_ranges(self.truncated)}; remove their parts, and start a worker")
        if self.running:
            lines += [f"running: {len(self.running)} units", *(f"  {each}" for each in self.running)]
        if self.waiting:
            lines.append(f"waiting: {len(self.waiting)} units ({_ranges(self.waiting)})")
        if self.failed:
            lines.append(f"failed: {len(self.failed)} units; a new worker tries them again")
            lines += [f"  unit {unit}: {reason}" for unit, reason in self.failed.items()]
        if not self.complete:
            left = self.seconds_left
            lines.append(
                f"nothing was finished in the last {RATE_SECONDS / 60:.0f} minutes"
                if left is None
                else f"{self.rate:.3g} results/s, {_duration(left)} left"
            )
        return "\n".join(lines)


def read_status(output: Path) -> Status:
    """How far the work in a directory is.

    Times are those of the file system, whose clock may differ from this host's.

    Args:
        output: the directory of the results.

    Raises:
        UserError: it holds no results of workers, or cannot be read.
    """
    _, layout = read_record(output)
    try:
        now = _file_system_time(output)
        entries = {entry.name: entry for entry in os.scandir(output)}
        parts = {unit: entry for entry in entries.values() if (unit := layout.unit_of(entry.name)) is not None}
        claimed = {unit: seen for unit, seen in units_in(entries).items() if unit not in parts}
        running = [each for unit in sorted(claimed) if (each := _running(output, unit, claimed[unit], layout, now))]
        free = {unit: seen for unit, seen in claimed.items() if not seen.held}
        journals = sum(each.results for each in running)
        journals += sum(_journal_results(output, unit, seen, layout) for unit, seen in free.items())
        truncated = [unit for unit in parts if not seems_whole(output / layout.part_name(unit), layout.numbers(unit))]
        recent = [unit for unit, entry in parts.items() if now - entry.stat().st_mtime <= RATE_SECONDS]
        begun = now - (output / RECORD_FILE).stat().st_mtime
    except OSError as error:
        raise UserError(f"cannot read {output}: {error.strerror}") from None
    failed = {unit: _reason(output, unit, seen) for unit, seen in sorted(free.items()) if seen.failed}
    held = {each.unit for each in running}
    made = sum(len(layout.numbers(unit)) for unit in recent)
    elapsed = min(RATE_SECONDS, max(begun, 1e-3))
    return Status(
        layout,
        sorted(parts),
        sorted(truncated),
        running,
        [unit for unit in range(layout.units) if unit not in parts and unit not in held and unit not in failed],
        failed,
        sum(len(layout.numbers(unit)) for unit in parts) + journals,
        made / elapsed if made else None,
    )


def _running(output: Path, unit: int, seen: UnitNames, layout: Layout, now: float) -> Running | None:
    if not seen.held:
        return None
    path = output / claim_name(unit, seen.newest)
    try:
        content, status = path.read_bytes(), path.stat()
    except FileNotFoundError:  # it was finished meanwhile
        return None
    holder, lease_seconds = read_holder(content)
    results = _journal_results(output, unit, seen, layout)
    silent = max(0.0, now - status.st_mtime)
    beats = content.partition(b"\n")[2].count(BEAT)
    return Running(unit, holder, beats * lease_seconds / LOOKS_PER_LEASE + silent, silent, lease_seconds, results)


def _journal_results(output: Path, unit: int, seen: UnitNames, layout: Layout) -> int:
    numbers: set[int] = set()
    for name in _journals(unit, seen):
        try:
            numbers.update(number for number, _ in parse_journal((output / name).read_bytes(), layout.numbers(unit)))
        except FileNotFoundError:
            continue
    return len(numbers)


def _journals(unit: int, seen: UnitNames) -> Iterator[str]:
    return (name for name in seen.names if name.endswith(f".{RESULTS}"))


def _reason(output: Path, unit: int, seen: UnitNames) -> str:
    try:
        return (output / claim_name(unit, max(seen.failed), FAILED)).read_text(errors="replace")
    except OSError:
        return "no reason was noted"


def _file_system_time(directory: Path) -> float:
    """The time by the clock that dates the files; this host's where nothing may be written."""
    path = directory / f".time-{uuid.uuid4().hex}"
    try:
        path.touch()
        return path.stat().st_mtime
    except OSError:
        return time.time()
    finally:
        path.unlink(missing_ok=True)


def _ranges(numbers: list[int]) -> str:
    ranges = integer_ranges(numbers)
    return ", ".join(ranges[:10]) + (", ..." if ranges[10:] else "")


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} minutes" if seconds < 7200 else f"{seconds / 3600:.1f} hours"
