"""A directory of checkpoints that are complete or absent, never in between.

A checkpoint is written under a temporary name, its files are recorded with size and checksum and synced, the
directory is renamed, and only then the `latest` pointer moves, by rename too. Where the newest is damaged,
`newest_good` falls back to an older one.
"""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path

import xxhash

from nar_scale.checkpoint.directory import delete_leftovers, make_writing_directory
from nar_scale.errors import CheckpointError
from nar_scale.files import keep_as_damaged, remedy_for, sync_directory, write_atomically
from nar_scale.progress import progress_bar

_logger = logging.getLogger(__name__)

MANIFEST = "manifest.json"
POINTER = "latest"
BAR_DELAY = 1.0  # seconds of verification until a bar is shown
_STEP_NAME = re.compile(r"step-(\d+)")
_SUPERSEDED = ".superseded-"

FileRecord = dict[str, int | str]


class CheckpointStore:
    """The checkpoints of one run.

    Args:
        directory: where they are; created when the first is written.
    """

    def __init__(self, directory: str | Path):
        self.directory = Path(directory)

    def __repr__(self) -> str:
        return f"CheckpointStore({str(self.directory)!r}, steps={self.steps()})"

    def path(self, step: int) -> Path:
        """Where the complete checkpoint of a step is."""
        return self.directory / f"step-{step:09d}"

    @property
    def pointer(self) -> Path:
        """The file that names the newest checkpoint."""
        return self.directory / POINTER

    def steps(self) -> list[int]:
        """Steps of the published checkpoints, ascending."""
        if not self.directory.is_dir():
            return []
        names = (_STEP_NAME.fullmatch(entry.name) for entry in self.directory.iterdir() if entry.is_dir())
        return sorted(int(name[1]) for name in names if name)

    def prepare(self, step: int) -> Path:
        """Make an empty directory to write the checkpoint of a step into.

        Its name is new each time: an earlier attempt of the job, cut off from SLURM but alive, may still be
        writing. What killed attempts have left behind is removed once nothing has been written to it for a while.

        Raises:
            CheckpointError: the directory cannot be written.
        """
        try:
            return make_writing_directory(self.path(step))
        except OSError as error:
            raise CheckpointError(
                f"cannot write checkpoints to {self.directory}: {error.strerror}; "
                f"{remedy_for(error) or 'change that'}, or set another training.run_directory"
            ) from None

    def publish(self, writing: Path, step: int, records: dict[str, FileRecord]) -> Path:
        """Complete the checkpoint of a step, whose files have been written and recorded, and point to it.

        Args:
            writing: the directory from `prepare`.
            records: size and checksum of every file, from `record_files`.

        Raises:
            CheckpointError: a file is missing or has another size than recorded, or the disk refuses.
        """
        path = self.path(step)
        try:
            found = list_files(writing)
            if sorted(found) != sorted(records):
                raise CheckpointError(f"{writing} holds {sorted(found)} instead of {sorted(records)}; not published")
            for name, record in records.items():
                if (writing / name).stat().st_size != record["size"]:
                    raise CheckpointError(f"{writing / name} is not {record['size']} bytes long; not published")
            write_atomically(writing / MANIFEST, json.dumps(records, indent=1).encode())
            sync_directory(writing)
            if path.exists():
                quarantine(path)
            os.replace(writing, path)
            sync_directory(self.directory)
            self._point_to(step)
        except OSError as error:
            raise CheckpointError(
                f"cannot publish the checkpoint {path}: {error.strerror}; "
                f"{remedy_for(error) or 'change that'}, or set another training.run_directory"
            ) from None
        return path

    def newest_good(
        self,
        report: Callable[[str], None],
        steps: Sequence[int] | None = None,
        inspect: Callable[[Path], str | None] | None = None,
    ) -> int | None:
        """The newest step whose files are all as recorded; damaged ones are reported and passed over.

        Args:
            steps: to choose from, ascending; all if not given.
            inspect: finds what is wrong with a checkpoint; `verify_integrity` if not given.

        Raises:
            CheckpointError: there are checkpoints, but none is good.
        """
        damaged: list[tuple[int, str]] = []
        for step in reversed(self.steps() if steps is None else steps):
            problem = (inspect or verify_integrity)(self.path(step))
            if problem is None:
                for passed_over, reason in damaged:
                    report(f"checkpoint {self.path(passed_over)} is damaged and passed over: {reason}")
                return step
            damaged.append((step, problem))
        if damaged:
            raise CheckpointError(f"no checkpoint in {self.directory} is good; newest: {damaged[0][1]}")
        return None

    def clean_up(self, step: int) -> None:
        """Delete what killed attempts have left behind, before a run goes on from `step`: it needs the space."""
        delete_leftovers(self.directory)
        delete_quarantined(self.directory, step)

    def supersede_after(self, step: int) -> None:
        """Hide the checkpoints of later steps, damaged or left behind by going back: a run goes on from `step`."""
        if self.pointer.exists():
            self._point_to(step)
        for later in self.steps():
            if later > step:
                quarantine(self.path(later))

    def _point_to(self, step: int) -> None:
        if not _names_a_step(self.pointer):
            kept = keep_as_damaged(self.pointer)
            _logger.warning("%s is damaged; it is kept as %s and written anew", self.pointer, kept.name)
        write_atomically(self.pointer, f"{self.path(step).name}\n".encode())

    def retain(self, keep_last: int, keep_every: int | None, in_use: Collection[int] = ()) -> None:
        """Delete all but the last `keep_last` checkpoints, those at multiples of `keep_every` steps, and others.

        Those that were superseded go once the run has come as far again.
        """
        steps = self.steps()
        for step in steps[:-keep_last]:
            if step not in in_use and (not keep_every or step % keep_every):
                with suppress(OSError):
                    quarantine(self.path(step))  # at once: a kill must not leave half of a checkpoint
        if steps:
            delete_quarantined(self.directory, steps[-1])


def _names_a_step(pointer: Path) -> bool:
    """Whether a pointer is as it should be, or absent; a link to a checkpoint is replaced as well."""
    if pointer.is_symlink() or not pointer.exists():
        return True
    return pointer.is_file() and bool(_STEP_NAME.fullmatch(pointer.read_bytes().decode(errors="replace").strip()))


def quarantine(path: Path) -> None:
    """Hide what there is of a step, in place of what was hidden of it before."""
    hidden = path.with_name(f"{_SUPERSEDED}{path.name}")
    shutil.rmtree(hidden, ignore_errors=True)
    os.replace(path, hidden)


def delete_quarantined(directory: Path, step: int) -> None:
    """Delete what is hidden of steps up to this one."""
    for hidden in directory.glob(f"{_SUPERSEDED}*"):
        name = _STEP_NAME.fullmatch(hidden.name.removeprefix(_SUPERSEDED))
        if name and int(name[1]) <= step:
            shutil.rmtree(hidden, ignore_errors=True)


def list_files(directory: Path) -> list[str]:
    """Relative names of all files below a directory but the manifest, sorted."""
    files = (path for path in directory.rglob("*") if path.is_file())
    return sorted(str(path.relative_to(directory)) for path in files if path.name != MANIFEST)


def record_files(directory: Path, names: Iterable[str]) -> dict[str, FileRecord]:
    """Sync files to disk and record the size and XXH3 checksum of each."""
    records: dict[str, FileRecord] = {}
    for name in names:
        with open(directory / name, "rb") as file:
            os.fsync(file.fileno())
            records[name] = {"size": os.fstat(file.fileno()).st_size, "xxh3_128": _checksum(directory / name)}
    return records


def verify_integrity(
    path: Path, reader: tuple[int, int] = (0, 1), checksums: bool = True, progress: bool = False
) -> str | None:
    """What is wrong with a published directory, in a few words naming the file; None if nothing is.

    Args:
        reader: rank and number of the readers, who check the files in turn; the rank-th of each round.
        checksums: read them, and not only look at their sizes.
        progress: show a progress bar if standard error is a terminal and this takes long.
    """
    try:
        for name in _neither_files_nor_directories(path):
            return f"{path / name} is no file"
        records = json.loads((path / MANIFEST).read_text())
        expected = {path / name: (record["size"], record["xxh3_128"]) for name, record in records.items()}
        outside = next((name for name in records if Path(name).is_absolute() or ".." in Path(name).parts), None)
    except OSError as error:
        return f"{path / MANIFEST} cannot be read ({error.strerror})"
    except (ValueError, TypeError, AttributeError, KeyError, RecursionError):
        return f"{path / MANIFEST} is not a manifest"
    if outside is not None:
        return f"{path / MANIFEST} names {outside!r}, which is outside"
    rank, readers = reader
    mine = list(expected.items())[rank::readers]
    total = sum(size for _, (size, _) in mine if isinstance(size, int))
    with progress_bar("verify", total, "B", progress and checksums, delay=BAR_DELAY) as bar:
        for file, (size, checksum) in mine:
            try:
                if not file.is_file():
                    return f"{file} is missing"
                if file.stat().st_size != size:
                    return f"{file} has {file.stat().st_size} bytes instead of {size}"
                if checksums and _checksum(file, bar.update) != checksum:
                    return f"{file} has a wrong checksum"
            except OSError as error:
                return f"{file} cannot be read ({error.strerror})"
    return None if records else f"{path / MANIFEST} names no file"


def _neither_files_nor_directories(path: Path) -> Iterator[str]:
    """Names of pipes, devices and the like, and of links to them, which would be read for ever."""
    for name in sorted(os.listdir(path)):
        file = path / name
        if os.path.exists(file) and not os.path.isfile(file) and not os.path.isdir(file):
            yield name


def _checksum(path: Path, report: Callable[[int], object] = lambda count: None) -> str:
    """The XXH3 checksum of a file; `report` is told how many bytes were read."""
    digest = xxhash.xxh3_128()
    buffer = memoryview(bytearray(1 << 22))
    with open(path, "rb", buffering=0) as file:
        while count := file.readinto(buffer):
            digest.update(buffer[:count])
            report(count)
    return digest.hexdigest()
