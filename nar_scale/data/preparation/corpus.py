"""Finding the files of a corpus in files and folders."""

import logging
import os
from collections import defaultdict
from collections.abc import Iterator, Sequence, Set
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from nar_scale.data.formats.copies import stem
from nar_scale.data.formats.heads import HeadFault
from nar_scale.data.formats.inputs import tells_format, unsupported_kind
from nar_scale.data.preparation.skipped import EXCLUDED, HIDDEN, Skipped
from nar_scale.errors import DataError
from nar_scale.text import printable

logger = logging.getLogger(__name__)

FILES_IN_MESSAGES = 20
DESCRIPTORS = ("/dev/", "/proc/")  # links that the system makes for open files, whose names tell nothing


@dataclass(frozen=True)
class Corpus:
    """The files of a corpus.

    Attributes:
        files: absolute paths, in the order in which they are read, under the names by which they were found.
        skipped: files, links and excluded folders in folders that are not read.
        named: those of the files that were given by their names, not found in folders.
        same_stem: pairs of files in one folder that may be copies of each other in two formats.
    """

    files: list[Path]
    skipped: Skipped
    named: Set[Path]
    same_stem: list[tuple[Path, Path]]


def find_corpus(
    inputs: Sequence[Path],
    include: str,
    exclude: Sequence[str],
    left_out: Sequence[str | Path],
    as_text: Sequence[str] = (),
) -> Corpus:
    """List the files of a corpus: inputs in the given order, folders walked in sorted order.

    A file keeps the name under which it was found, which tells its format: in the cache of the Hugging Face hub it is
    a link to a file with a digest for a name. A file that is found twice, by whatever links, is taken once.

    Args:
        inputs: files, always taken, and folders, walked recursively.
        include: glob that the name of a file in a folder must match.
        exclude: globs; a file with any part of its path below the folder matching one is left out.
        left_out: folders, and files in folders, that are left out: a data set or tokenizer is not its own input.
        as_text: see `split_into_pieces`.

    Raises:
        DataError: an input does not exist or is a pipe, or a folder cannot be read.
    """
    files: dict[str, Path] = {}  # by the real path
    named = {os.path.realpath(_given_file(path)) for path in inputs if not path.is_dir()}
    skipped = Skipped()
    stems = defaultdict[tuple[str, str], list[Path]](list)
    pairs = []
    unwanted = {os.path.realpath(path) for path in left_out}
    for path in inputs:
        if not path.is_dir():
            _take(files, _given_file(path))
            continue
        for file in _walk(path, exclude, unwanted, skipped):
            if file.name.startswith("."):
                skipped.add(HIDDEN, str(file))
            elif fnmatchcase(file.name, include):
                is_text = any(fnmatchcase(file.name, pattern) for pattern in as_text)
                if (kind := unsupported_kind(file)) and not is_text:
                    skipped.add(kind, str(file))
                    continue
                if _take(files, file.absolute()) and not is_text:
                    same = stems[str(file.parent), stem(file)]
                    pairs += [(earlier, file) for earlier in same]
                    same.append(file)
    return Corpus(list(files.values()), skipped, {file for real, file in files.items() if real in named}, pairs)


def leave_out_faulty(corpus: Corpus, faults: Sequence[HeadFault]) -> Set[Path]:
    """Return the files that are left out because they have no text, which are entered in `corpus.skipped`.

    Raises:
        DataError: other files are faulty, or were given by their names, or there are no others; names them all.
    """
    stray = [fault for fault in faults if fault.lacks_text and fault.file not in corpus.named]
    refused = [fault for fault in faults if fault not in stray]
    if stray and len(stray) == len(corpus.files):
        refused = stray
    if refused:
        others = [printable(str(fault.file)) for fault in refused[1 : FILES_IN_MESSAGES + 1]]
        more = f" ({len(refused) - 1:,} more cannot be read: {', '.join(others)})" if others else ""
        raise DataError(refused[0].reason + more)
    for fault in stray:
        corpus.skipped.add("no text", str(fault.file))
        logger.warning("WARNING: skipped as without text: %s", printable(fault.reason))
    return {fault.file for fault in stray}


def _take(files: dict[str, Path], file: Path) -> bool:
    """Enter a file, and return whether it is new; a name that tells the format takes the place of one that does not."""
    real = os.path.realpath(file)
    known = files.get(real)
    if known is None or (tells_format(file) and not tells_format(known)):
        files[real] = file
    return known is None


def _given_file(path: Path) -> Path:
    if not path.exists():
        raise DataError(f"input {path} does not exist; give existing files or folders")
    if not path.is_file():
        raise DataError(
            f"input {path} is a pipe or device, which can be read only once, and preparing takes several processes and "
            "looks; write it to a file and give that"
        )
    if str(path).startswith(DESCRIPTORS):
        path = Path(os.path.realpath(path))
        if not path.exists():
            raise DataError(f"input {path} is an open file without a name; give a file that has one")
    return path.absolute()


def _refuse(error: OSError) -> None:
    raise DataError(f"cannot read folder {error.filename}: {error.strerror}; make it readable or exclude it") from error


def _walk(root: Path, exclude: Sequence[str], unwanted: Set[str], skipped: Skipped) -> Iterator[Path]:
    def excluded(folder: str, name: str) -> bool:
        matches = any(fnmatchcase(name, pattern) for pattern in exclude)
        if matches:
            skipped.add(EXCLUDED, str(Path(folder, name)))
        return matches

    for folder, subfolders, names in os.walk(root, onerror=_refuse):
        subfolders[:] = sorted(
            name
            for name in subfolders
            if os.path.realpath(Path(folder, name)) not in unwanted
            and not excluded(folder, name)
            and not name.startswith(".")
        )
        for link in filter(Path.is_symlink, (Path(folder) / name for name in subfolders)):
            skipped.add("link to a folder", str(link))
        for name in sorted(names):
            file = Path(folder) / name
            if os.path.realpath(file) in unwanted or excluded(folder, name):
                continue
            if file.is_file():
                yield file
            else:
                skipped.add("broken link" if file.is_symlink() else "pipe or device", str(file))
