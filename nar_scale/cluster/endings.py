"""How each rank or worker of an attempt has ended, in a file each that the supervisor of the job reads."""

from __future__ import annotations

import json
import os
import socket
import threading
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from enum import Enum
from pathlib import Path

from nar_scale.files import write_atomically

ATTEMPT_DIRECTORY_VARIABLE = "NAR_SCALE_ATTEMPT_DIRECTORY"
"""The environment variable with the directory, on a file system of all nodes, where the ranks report."""

NO_RESULT_YET = "stopped before its first result"
"""Why a generation worker has STOPPED that was asked to before it had made anything."""

_LONGEST_WRITE_SECONDS = 10.0


class Kind(str, Enum):
    """What a rank is doing, or why it has ended."""

    RUNNING = "running"
    COMPLETE = "complete"
    STOPPED = "stopped"
    """It was asked to stop, and what it had learned is saved."""
    USER_ERROR = "user error"
    """Something that another attempt would meet again, and that the user can fix."""
    ERROR = "error"
    PEER_LOST = "peer lost"
    HANG = "hang"


@dataclass(frozen=True)
class Ending:
    """What a rank has reported last.

    Attributes:
        rank: its number in the job.
        host: where it runs.
        kind: what it is doing, or why it has ended.
        why: one line; empty where there is no more to say.
    """

    rank: int
    host: str
    kind: Kind
    why: str = ""

    def __str__(self) -> str:
        return f"rank {self.rank} on {self.host}: {self.why or self.kind.value}"


def report(kind: Kind, why: str = "", environment: Mapping[str, str] = os.environ) -> None:
    """Report what this rank is doing or why it ends, if a supervisor has asked for it; takes ten seconds at most.

    A rank that cannot write, or whose file system does not answer, ends as it would have without a supervisor.
    """
    directory = environment.get(ATTEMPT_DIRECTORY_VARIABLE)
    rank = environment.get("RANK", environment.get("SLURM_PROCID", ""))
    if not directory or not rank.isdecimal():
        return
    ending = Ending(int(rank), socket.gethostname(), kind, why)
    thread = threading.Thread(target=_write, args=(Path(directory), ending), daemon=True)
    thread.start()
    thread.join(_LONGEST_WRITE_SECONDS)


def _write(directory: Path, ending: Ending) -> None:
    with suppress(OSError):
        write_atomically(directory / f"rank-{ending.rank}.json", json.dumps(asdict(ending)).encode())


def read_endings(directory: Path) -> list[Ending]:
    """What the ranks have reported so far, by rank; a file that cannot be read is left out."""
    found = []
    for path in directory.glob("rank-*.json"):
        with suppress(OSError, ValueError, TypeError, KeyError):
            values = json.loads(path.read_bytes())
            found.append(Ending(values["rank"], values["host"], Kind(values["kind"]), values["why"]))
    return sorted(found, key=lambda ending: ending.rank)
