"""Which worker holds which unit: claims, heartbeats and leases that run out."""

from __future__ import annotations

import json
import random
import time
from collections import deque
from collections.abc import Callable
from dataclasses import asdict, dataclass, field

from nar_scale.fleet.directory import SharedDirectory
from nar_scale.fleet.holder import Holder
from nar_scale.fleet.names import FAILED, FREE, UnitNames, claim_name, names_of_claim, units_in
from nar_scale.fleet.parts import Layout

LEASE_SECONDS = 60.0
LOOKS_PER_LEASE = 12
BEAT = b"."


@dataclass(frozen=True)
class Claim:
    """A unit that a worker holds.

    Attributes:
        unit: its number, from 0.
        number: how often the unit has been claimed, this time included.
    """

    unit: int
    number: int

    def name(self, suffix: str | None = None) -> str:
        """The file of the claim, or one that belongs to it."""
        return claim_name(self.unit, self.number, suffix)


@dataclass
class _Watch:
    """What a worker has seen of another one's claim."""

    number: int
    size: int
    looked: float
    unchanged: float = 0.0  # seconds that the claim has been seen without a heartbeat
    holder: Holder | None = None
    lease_seconds: float = 0.0


@dataclass
class _Listing:
    free: deque[tuple[int, int]] = field(default_factory=deque)  # units, and the number of their newest claim
    held: dict[int, int] = field(default_factory=dict)


class Units:
    """The units of a directory as one worker sees them.

    Claim n of a unit is the file `.unit-UUUUU.n`, which exactly one process has created; to claim a unit is to create
    the next number. Numbers never come back before the unit is finished, so nobody can take a new claim for an old one
    that has expired.

    Args:
        directory: where the units are.
        layout: which units there are.
        holder: this worker.
        lease_seconds: without a heartbeat, after which others may take over what this worker holds.
        clock: seconds that go on steadily, by this host's own count.
    """

    def __init__(
        self,
        directory: SharedDirectory,
        layout: Layout,
        holder: Holder,
        lease_seconds: float = LEASE_SECONDS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.directory, self.layout = directory, layout
        self.lease_seconds = lease_seconds
        self.failed: dict[int, str] = {}  # units that this worker could not make
        self._holder, self._clock = holder, clock
        self._random = random.Random(holder.token)
        self._done: set[int] = set()
        self._listing = _Listing()
        self._watched: dict[int, _Watch] = {}

    @property
    def done(self) -> int:
        """How many units are known to be finished."""
        return len(self._done)

    @property
    def complete(self) -> bool:
        """Whether all units are known to be finished."""
        return len(self._done) == self.layout.units

    @property
    def holders(self) -> list[str]:
        """Those that were last seen holding units, for messages."""
        seen = {str(watch.holder) for unit, watch in self._watched.items() if watch.holder and unit not in self._done}
        return sorted(seen)

    def poll_seconds(self) -> float:
        """How often a worker that finds nothing to claim looks again."""
        return self.lease_seconds / LOOKS_PER_LEASE

    def look(self) -> None:
        """List the directory; what finished units have left behind is removed."""
        names = self.directory.list()
        self._done.update(unit for name in names if (unit := self.layout.unit_of(name)) is not None)
        units = units_in(names)
        for unit in [unit for unit in units if unit in self._done]:
            for name in units.pop(unit).names:
                self.directory.remove(name)
        free = [
            (unit, units.get(unit, _UNCLAIMED).newest)
            for unit in range(self.layout.units)
            if unit not in self._done and unit not in self.failed and not units.get(unit, _UNCLAIMED).held
        ]
        held = {unit: seen.newest for unit, seen in units.items() if seen.held}
        # beside others each worker begins elsewhere, and goes on from there: they seldom want the same unit
        start = self._random.randrange(len(free)) if free and held else 0
        self._listing = _Listing(deque(free[start:] + free[:start]), held)

    def claim(self) -> Claim | None:
        """Claim a unit that nobody holds; None where there is none."""
        fresh = False
        while True:
            if not self._listing.free:
                if fresh:
                    return None
                self.look()
                fresh = True
                continue
            claim = self._take(*self._listing.free.popleft())
            if claim is not None:
                return claim
            self._listing.free.clear()  # somebody else was faster: what is free is known no longer
            fresh = False

    def take_over(self) -> Claim | None:
        """Look once at the claims of others, and take over a unit whose holder is gone; None where there is none.

        A holder is gone when its process is known to have ended, or when the claim has been seen without a new
        heartbeat for the length of the lease. The time counts only while somebody looks: where a file system stalls,
        no one can send heartbeats, and nobody loses a unit.
        """
        for unit, number in self._listing.held.items():
            if unit not in self.failed and self._is_abandoned(unit, number):
                claim = self._take(unit, number)
                if claim is not None:
                    return claim
        return None

    def beat(self, claim: Claim) -> bool:
        """Renew the lease of a claim; False if the unit has been taken over, or is finished."""
        try:
            self.directory.append(claim.name(), BEAT)
        except FileNotFoundError:
            return False
        return not self.directory.exists(claim_name(claim.unit, claim.number + 1))

    def give_back(self, claim: Claim) -> None:
        """Let others have the unit; the results that were made stay."""
        self.directory.create(claim.name(FREE))

    def fail(self, claim: Claim, reason: str) -> None:
        """Give back a unit that could not be made; this worker does not try it again."""
        self.failed[claim.unit] = reason
        if self.directory.create(claim.name(FAILED)):
            self.directory.append(claim.name(FAILED), reason.encode())

    def finish(self, claim: Claim) -> None:
        """Remove all claims of a unit whose part is there."""
        self._done.add(claim.unit)
        for number in range(1, claim.number + 1):
            for name in names_of_claim(claim.unit, number):
                self.directory.remove(name)

    def _take(self, unit: int, number: int) -> Claim | None:
        claim = Claim(unit, number + 1)
        if not self.directory.create(claim.name()):
            return None
        record = {**asdict(self._holder), "lease_seconds": self.lease_seconds}
        try:
            self.directory.append(claim.name(), json.dumps(record).encode() + b"\n")
        except FileNotFoundError:  # the unit was finished already, and another worker has tidied up
            self._done.add(unit)
            return None
        if self.directory.exists(self.layout.part_name(unit)):  # the listing was old
            self.finish(claim)
            return None
        return claim

    def _is_abandoned(self, unit: int, number: int) -> bool:
        now = self._clock()
        size = self.directory.size(claim_name(unit, number))
        if size is None:  # it is finished by now
            return False
        watch = self._watched.get(unit)
        if watch is None or (watch.number, watch.size) != (number, size):
            known = watch if watch is not None and watch.number == number and watch.holder else None
            watch = self._watched[unit] = _Watch(number, size, now)
            if known is not None:
                watch.holder, watch.lease_seconds = known.holder, known.lease_seconds
            else:
                watch.holder, watch.lease_seconds = read_holder(self.directory.read(claim_name(unit, number)))
        watch.unchanged += min(now - watch.looked, 2 * self.poll_seconds())
        watch.looked = now
        if watch.holder is not None and (
            watch.holder.runs_here() is False or self._holder.attempts_since(watch.holder) > 0
        ):
            return True
        return watch.unchanged >= max(self.lease_seconds, watch.lease_seconds)


_UNCLAIMED = UnitNames()


def read_holder(claim: bytes | None) -> tuple[Holder | None, float]:
    """Who holds a unit and for how many seconds without a heartbeat, from the content of a claim.

    One whose holder was killed while it wrote the claim says nothing: None and 0.
    """
    try:
        record = json.loads((claim or b"").split(b"\n", 1)[0])
        return Holder(**{name: value for name, value in record.items() if name != "lease_seconds"}), float(
            record["lease_seconds"]
        )
    except (ValueError, TypeError, KeyError, AttributeError):
        return None, 0.0
