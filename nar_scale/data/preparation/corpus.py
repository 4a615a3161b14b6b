"""Finding the files of a corpus in files and folders."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from nar_scale.errors import DataError


@dataclass(frozen=True)
class Corpus:
    """The files of a corpus.

    Attributes:
        files: absolute paths, in the order in which they are read.
        hidden: number of hidden files that were skipped.
    """

    files: list[Path]
    hidden: int


def find_corpus(inputs: Sequence[Path], include: str, exclude: Sequence[str], output: Path) -> Corpus:
    """List the files of a corpus: inputs in the given order, folders walked in sorted order.

    Args:
        inputs: files, always taken, and folders, walked recursively. A file reached twice is taken once.
        include: glob that the name of a file in a folder must match.
        exclude: globs; a file with any part of its path below the folder matching one is left out.
        output: a folder that is left out, so that a data set does not become its own input.

    Raises:
        DataError: an input does not exist, or a folder cannot be read.
    """
    files: dict[Path, None] = {}
    hidden = 0
    for path in inputs:
        if not path.exists():
            raise DataError(f"input {path} does not exist; give existing files or folders")
        if not path.is_dir():
            files.setdefault(path.resolve())
            continue
        for file in _walk(path, exclude, output.resolve()):
            if file.name.startswith("."):
                hidden += 1
            elif fnmatchcase(file.name, include):
                files.setdefault(file.resolve())
    return Corpus(list(files), hidden)


def _refuse(error: OSError) -> None:
    raise DataError(f"cannot read folder {error.filename}: {error.strerror}; make it readable or exclude it") from error


def _walk(root: Path, exclude: Sequence[str], output: Path) -> Iterator[Path]:
    def excluded(name: str) -> bool:
        return any(fnmatchcase(name, pattern) for pattern in exclude)

    for folder, subfolders, names in os.walk(root, onerror=_refuse):
        subfolders[:] = sorted(
            name
            for name in subfolders
            if not excluded(name) and not name.startswith(".") and (Path(folder) / name).resolve() != output
        )
        for name in sorted(names):
            file = Path(folder) / name
            if file.is_file() and not excluded(name):
                yield file
