"""Real shards for tests, written by webdataset or tarfile, and what lies in them."""

import io
import json
import tarfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import webdataset
from xxhash import xxh3_64_hexdigest

from nar_scale.data import DatasetIndex


def write_samples(shard: Path, samples: Sequence[np.ndarray], field: str = "tokens.npy", first_key: int = 0) -> None:
    """Write arrays as one shard in the way any user of webdataset would."""
    with webdataset.TarWriter(str(shard)) as writer:
        for number, sample in enumerate(samples, start=first_key):
            writer.write({"__key__": f"{number:09d}", field: sample})


def numbered_index(directory: Path, counts: Sequence[int]) -> DatasetIndex:
    """Open shards of the given sizes whose sample i is the two tokens [i, i + 1]."""
    first = 0
    for number, count in enumerate(counts):
        samples = [np.array([i, i + 1], dtype=np.uint16) for i in range(first, first + count)]
        write_samples(directory / f"shard-{number:06d}.tar", samples, first_key=first)
        first += count
    return DatasetIndex.open(directory, "shard-*.tar", progress=False)


def index_file(header: dict[str, Any], records: bytes) -> bytes:
    """An index file whose checksums are right, whatever it says."""
    header = {**header, "checksum": xxh3_64_hexdigest(records)}
    header.pop("seal", None)
    seal = xxh3_64_hexdigest(json.dumps(header).encode())
    return json.dumps({**header, "seal": seal}).encode() + b"\n" + records


def npy(array: Any, version: tuple[int, int] | None = None, allow_pickle: bool = True) -> bytes:
    """The content of a `.npy` file."""
    file = io.BytesIO()
    np.lib.format.write_array(file, np.asarray(array), version, allow_pickle)
    return file.getvalue()


def write_tar(
    path: Path, members: Iterable[tuple[str, bytes | dict[str, Any]]], tar_format: int = tarfile.PAX_FORMAT
) -> Path:
    """Write a tar whose members are a name and its content, or what `tarfile.TarInfo` is to look like."""
    with tarfile.open(path, "w", format=tar_format, encoding="utf-8", errors="surrogateescape") as tar:
        for name, content in members:
            member = tarfile.TarInfo(name)
            if isinstance(content, dict):
                for key, value in content.items():
                    setattr(member, key, value)
                tar.addfile(member)
            else:
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    return path


class CreatesFile:
    """Makes a file when it is unpickled."""

    def __init__(self, path: Path):
        self.path = str(path)

    def __reduce__(self) -> tuple[Any, tuple[str, str]]:
        return open, (self.path, "w")
