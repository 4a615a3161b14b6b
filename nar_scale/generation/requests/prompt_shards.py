"""Prompts in WebDataset shards."""

from __future__ import annotations

import hashlib
import os
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import replace
from itertools import accumulate
from pathlib import Path

from nar_scale.data.formats.tar import DamagedTarError, TarMember, sample_member, tar_members
from nar_scale.errors import UserError
from nar_scale.generation.requests.request import Request, parse_line, request_of

_FIELDS = ("json", "txt", "text", "cls")
_CHUNK_BYTES = 1 << 22

_Sample = dict[str, TarMember]  # the members that matter, by field, and by "" the first one


class PromptShards:
    """Prompts in shards, of which each sample is a request: `KEY.json` as a line of `read_requests`, or `KEY.txt` with
    a prompt and perhaps `KEY.cls` with its class. The `id` is the key, unless the object has one.

    The headers of all shards are read once; the samples of one shard are in memory at a time, without their contents.

    Args:
        path: a shard, or a directory, whose `.tar` files are read in the order of their names.

    Attributes:
        digest: of the content of all shards.

    Raises:
        UserError: there are no shards, one cannot be read or is damaged, or there are no prompts.
    """

    def __init__(self, path: Path) -> None:
        self._shards = sorted(path.glob("*.tar")) if path.is_dir() else [path]
        if not self._shards:
            raise UserError(f"the directory {path} holds no shards (*.tar) of prompts")
        digest = hashlib.blake2b(digest_size=16)
        counts = []
        for shard in self._shards:
            try:
                with open(shard, "rb") as file:
                    while chunk := file.read(_CHUNK_BYTES):
                        digest.update(chunk)
            except OSError as error:
                raise _cannot_read(shard, error) from None
            counts.append(sum(1 for _ in _samples(shard)))
        self._ends = list(accumulate(counts))
        self._open: tuple[int, list[tuple[str, _Sample]]] = (-1, [])
        self.digest = digest.hexdigest()
        if not self.count:
            raise UserError(f"{path} holds no prompts, which are samples with a field {' or '.join(_FIELDS[:2])}")

    @property
    def count(self) -> int:
        """Number of prompts."""
        return self._ends[-1]

    def read(self, start: int, stop: int) -> list[Request]:
        """The requests from number `start` to `stop`, without that.

        Raises:
            UserError: a shard cannot be read.
        """
        requests: list[Request] = []
        number = start
        while number < min(stop, self.count):
            shard = bisect_right(self._ends, number)
            begin = self._ends[shard] - len(self._samples_of(shard))
            until = min(stop, self._ends[shard])
            requests += self._read_shard(shard, number, self._samples_of(shard)[number - begin : until - begin])
            number = until
        return requests

    def _read_shard(self, shard: int, number: int, samples: list[tuple[str, _Sample]]) -> list[Request]:
        path = self._shards[shard]
        try:
            with open(path, "rb") as file:

                def content(member: TarMember) -> bytes:
                    file.seek(member.offset)
                    return file.read(member.size)

                return [
                    _request(place, key, {field: content(member) for field, member in sample.items()}, path)
                    for place, (key, sample) in enumerate(samples, number)
                ]
        except OSError as error:
            raise _cannot_read(path, error) from None

    def _samples_of(self, shard: int) -> list[tuple[str, _Sample]]:
        if self._open[0] != shard:
            self._open = (shard, list(_samples(self._shards[shard])))
        return self._open[1]


def _request(number: int, key: str, fields: dict[str, bytes], path: Path) -> Request:
    if "json" in fields:
        request = parse_line(fields["json"], number, path, None)
        return request if request.id is not None else replace(request, id=_printable(key))
    known: dict[str, object] = {"id": _printable(key)}
    try:
        text = fields.get("txt", fields.get("text"))
        if text is not None:
            known["prompt"] = text.decode()
        if "cls" in fields:
            known["class"] = int(fields["cls"])
    except ValueError as error:
        return Request(number, id=_printable(key), file=path, fault=f"sample {_printable(key)!r:.60}: {error}")
    return request_of(known, number, path, None)


def _printable(key: str) -> str:
    return key.encode(errors="surrogateescape").decode(errors="replace")


def _samples(shard: Path) -> Iterator[tuple[str, _Sample]]:
    """The key of each sample that is a request, and its members."""
    key, members = None, _Sample()
    try:
        with open(shard, "rb") as file:
            for member in tar_members(file, os.fstat(file.fileno()).st_size):
                name = sample_member(member.name)
                if name is None:
                    continue
                if name[0] != key:
                    if key is not None and members:
                        yield key, members
                    key, members = name[0], {}
                if name[1] in _FIELDS:
                    members.setdefault(name[1], member)
            if key is not None and members:
                yield key, members
    except DamagedTarError as error:
        raise UserError(f"the shard {shard} {error.description}; copy it again") from None
    except OSError as error:
        raise _cannot_read(shard, error) from None


def _cannot_read(shard: Path, error: OSError) -> UserError:
    return UserError(f"cannot read the prompts {shard}: {error.strerror}")
