"""The names of what belongs to a unit that is not finished."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field

FREE, FAILED, RESULTS, PART = "free", "failed", "results", "part"
_NAME = re.compile(rf"\.unit-(\d+)\.(\d+)(?:\.({FREE}|{FAILED}|{RESULTS}|{PART}))?")


def claim_name(unit: int, number: int, suffix: str | None = None) -> str:
    """The file of a claim, or one that belongs to it, which has a suffix."""
    return f".unit-{unit:05d}.{number}" + (f".{suffix}" if suffix else "")


def names_of_claim(unit: int, number: int) -> list[str]:
    """All files that may belong to a claim, its own as the last."""
    return [claim_name(unit, number, suffix) for suffix in (PART, RESULTS, FREE, FAILED, None)]


@dataclass
class UnitNames:
    """What a listing shows of a unit.

    Attributes:
        newest: the highest number of a claim; 0 if there was none.
        suffixes: of the files of the newest claim, with "" for its own.
        failed: numbers of the claims whose holders could not make the unit.
        names: all of them.
    """

    newest: int = 0
    suffixes: set[str] = field(default_factory=set)
    failed: list[int] = field(default_factory=list)
    names: list[str] = field(default_factory=list)

    @property
    def held(self) -> bool:
        """Whether the newest claim has been neither given back nor ended by an error."""
        return "" in self.suffixes and not self.suffixes & {FREE, FAILED}


def units_in(names: Iterable[str]) -> dict[int, UnitNames]:
    """What a listing of the directory shows of each unit that was claimed."""
    units: dict[int, UnitNames] = {}
    for name in names:
        match = _NAME.fullmatch(name) if name.startswith(".unit-") else None
        if match is None:
            continue
        unit, number, suffix = units.setdefault(int(match[1]), UnitNames()), int(match[2]), match[3] or ""
        unit.names.append(name)
        if number > unit.newest:
            unit.newest, unit.suffixes = number, set()
        if number == unit.newest:
            unit.suffixes.add(suffix)
        if suffix == FAILED:
            unit.failed.append(number)
    return units
