"""The results of a unit that is not finished: each claim has a file of its own, to which its holder alone adds."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping

import xxhash

from nar_scale.fleet.claims import Claim
from nar_scale.fleet.directory import SharedDirectory
from nar_scale.fleet.names import RESULTS, claim_name


class Journal:
    """The results that the holder of a claim has made, by number, as JSON.

    A line is a checksum and a result. One that was cut off, by a kill or a loss of power, does not count.

    Args:
        directory: of the unit.
        claim: whose results these are.
    """

    def __init__(self, directory: SharedDirectory, claim: Claim) -> None:
        self._directory, self._claim = directory, claim
        self._exists = False

    def append(self, results: Mapping[int, bytes]) -> None:
        """Add results, which survive a loss of power from then on.

        Raises:
            FileNotFoundError: another worker has finished the unit.
        """
        name = self._claim.name(RESULTS)
        if not self._exists:
            self._directory.create(name)
            self._exists = True
        self._directory.append(name, b"".join(map(_line, results.values())), durable=True)

    def read_earlier(self, numbers: range) -> dict[int, bytes]:
        """The results that earlier holders of the unit have left behind.

        Args:
            numbers: of the results of the unit.
        """
        results: dict[int, bytes] = {}
        for number in range(1, self._claim.number):
            content = self._directory.read(claim_name(self._claim.unit, number, RESULTS))
            for result_number, result in parse_journal(content or b"", numbers):
                results.setdefault(result_number, result)
        return results


def parse_journal(content: bytes, numbers: range) -> Iterable[tuple[int, bytes]]:
    """The results in a journal that are whole: their numbers and their JSON."""
    for line in content.split(b"\n")[:-1]:
        checksum, _, result = line.partition(b" ")
        if checksum == _checksum(result):
            number = json.loads(result)["number"]
            if number in numbers:
                yield number, result


def _line(result: bytes) -> bytes:
    return _checksum(result) + b" " + result + b"\n"


def _checksum(result: bytes) -> bytes:
    return xxhash.xxh3_64_hexdigest(result).encode()
