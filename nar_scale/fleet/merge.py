"""All parts of a directory as one file, or as WebDataset shards, in the order of the requests."""

from __future__ import annotations

import hashlib
import json
import os
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

from nar_scale.errors import UserError
from nar_scale.files import remedy_for, write_atomically
from nar_scale.fleet.parts import read_part, write_samples
from nar_scale.fleet.record import RECORD_FILE, read_record
from nar_scale.text import integer_ranges

SAMPLES_PER_SHARD = 10_000
MANIFEST_FILE = "manifest.json"
_RANGES = 10


def merge(results: Path, output: Path, samples_per_shard: int = SAMPLES_PER_SHARD) -> dict[str, Any]:
    """Write all results in the order of their numbers, with a manifest.

    Args:
        results: the directory of finished parts.
        output: the file to write, if its name ends in `.jsonl`, whose manifest is `NAME.jsonl.manifest.json`; else a
            directory of shards `shard-NNNNN.tar`, with `manifest.json`.
        samples_per_shard: results in a shard.

    Returns:
        the manifest: `count` of results and of those that are `errors`, name, bytes, results and SHA-256 of each of the
        `files`, and what `generation.json` records.

    Raises:
        UserError: units are not finished, or the output exists or cannot be written.
        DataError: a part is truncated or damaged.
    """
    record, layout = read_record(results)
    paths = [results / layout.part_name(unit) for unit in range(layout.units)]
    missing = integer_ranges(unit for unit, path in enumerate(paths) if not path.exists())
    if missing:
        named = ", ".join(missing[:_RANGES]) + (", ..." if missing[_RANGES:] else "")
        raise UserError(f"{results} lacks the parts {named} of {layout.units}; start a worker, which makes them")
    one_file = output.suffix == ".jsonl"
    manifest_path = output.with_name(f"{output.name}.manifest.json") if one_file else output / MANIFEST_FILE
    if output.exists():
        raise UserError(f"{output} exists already; remove it or choose another --output")
    errors = 0

    def lines() -> Iterator[bytes]:
        nonlocal errors
        for unit, path in enumerate(paths):
            part = read_part(path, layout.numbers(unit))
            errors += sum("error" in json.loads(line) for line in part)
            yield from part

    try:
        if one_file:
            files = [_write_lines(output, lines())]
        else:
            files = _write_shards(output, lines(), samples_per_shard)
        manifest = {"count": layout.count, "errors": errors, "files": files, RECORD_FILE: record}
        write_atomically(manifest_path, (json.dumps(manifest, indent=2) + "\n").encode())
    except OSError as error:
        remedy = remedy_for(error) or "choose another --output"
        raise UserError(f"cannot write {output}: {error.strerror}; {remedy}") from None
    return manifest


class _Summed:
    """A file that sums up what is written to it."""

    def __init__(self, file: BinaryIO) -> None:
        self._file, self.sha256, self.bytes = file, hashlib.sha256(), 0

    def write(self, content: bytes) -> int:
        self.sha256.update(content)
        self.bytes += len(content)
        return self._file.write(content)

    def tell(self) -> int:
        return self.bytes


@contextmanager
def _written(path: Path) -> Iterator[_Summed]:
    """A file to write, which gets its name at the end, or is removed if an error comes before."""
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        with open(temporary, "xb") as file:
            yield _Summed(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _write_lines(path: Path, lines: Iterable[bytes]) -> dict[str, Any]:
    count = 0
    with _written(path) as file:
        for line in lines:
            file.write(line + b"\n")
            count += 1
    return _describe(path, file, count)


def _write_shards(directory: Path, lines: Iterator[bytes], samples_per_shard: int) -> list[dict[str, Any]]:
    directory.mkdir(parents=True)
    files: list[dict[str, Any]] = []
    while shard := list(islice(lines, samples_per_shard)):
        path = directory / f"shard-{len(files):05d}.tar"
        with _written(path) as file:
            write_samples(file, shard)
        files.append(_describe(path, file, len(shard)))
    return files


def _describe(path: Path, file: _Summed, count: int) -> dict[str, Any]:
    return {"name": path.name, "bytes": file.bytes, "results": count, "sha256": file.sha256.hexdigest()}
