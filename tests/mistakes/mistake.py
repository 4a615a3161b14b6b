"""One mistake: a command, what is wrong before it runs, and what its answer must name."""

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Mistake:
    """A command that a user gives by mistake.

    Attributes:
        command: script and arguments as in a shell; `{here}` is a directory of its own, in which there are links
            `data`, `run`, `nar` and `ar` to those that all mistakes share, and `small.yaml`.
        named: what the answer must contain, as whole words: the key, file or number, and a word of the remedy.
        prepare: makes the mistake in `here`, for those that are not in the command.
        environment: variables that are set.
    """

    command: str
    named: tuple[str, ...]
    prepare: Callable[[Path], object] | None = None
    environment: tuple[tuple[str, str], ...] = ()


def write(name: str, content: str | bytes) -> Callable[[Path], object]:
    """A preparation that writes a file."""

    def prepare(here: Path) -> None:
        path = here / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)

    return prepare


def own(name: str, here: Path) -> Path:
    """A copy of a shared directory, to be damaged."""
    source = (here / name).resolve()
    (here / name).unlink()
    return Path(shutil.copytree(source, here / name))
