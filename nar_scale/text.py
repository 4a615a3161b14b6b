"""Text for messages and reports."""

from collections.abc import Iterable, Mapping
from reprlib import Repr
from typing import Any


def printable(name: str) -> str:
    """Return a name from an untrusted file with its control characters escaped, which could deceive a terminal.

    Bytes of a file name that are not UTF-8, which Python keeps as surrogates, are shown as bytes.
    """
    return "".join(letter if letter.isprintable() else f"\\x{_code(letter):02x}" for letter in name)


def _code(letter: str) -> int:
    return ord(letter) - 0xDC00 if "\udc80" <= letter <= "\udcff" else ord(letter)


def quoted(text: str, longest: int) -> str:
    """Return a text in quotes on one line, of so many letters at most: a long one lacks its middle."""
    shortener = Repr()
    shortener.maxstring = longest
    return shortener.repr(text)


def message_of(problem: Mapping[str, Any]) -> str:
    """Return what pydantic says of a value, one of the `errors()` of a `ValidationError`, as a part of a sentence."""
    message: str = problem["msg"].removeprefix("Value error, ")
    return message[:1].lower() + message[1:]


def counted(number: int, noun: str) -> str:
    """Return how many there are, such as "1 shard" or "2,000 shards", of a noun in the singular."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def integer_ranges(numbers: Iterable[int]) -> list[str]:
    """Return integers as ranges in ascending order, such as ["0-9", "13"] for 0 to 9 and 13; each counts once."""
    ranges: list[list[int]] = []
    for number in sorted(set(numbers)):
        if ranges and number == ranges[-1][1] + 1:
            ranges[-1][1] = number
        else:
            ranges.append([number, number])
    return [str(first) if first == last else f"{first}-{last}" for first, last in ranges]
