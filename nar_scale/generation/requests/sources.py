"""Where requests come from: all of them are known by number, and only those that are asked for are in memory."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from nar_scale.errors import UserError
from nar_scale.generation.requests.prompt_file import PromptFile
from nar_scale.generation.requests.prompt_shards import PromptShards
from nar_scale.generation.requests.request import STANDARD_INPUT, Request, read_requests


class RequestSource(Protocol):
    """A number of requests, which can be read in any order, the same ones on every host."""

    @property
    def count(self) -> int:
        """Number of requests."""

    @property
    def digest(self) -> str:
        """Differs for other requests."""

    def read(self, start: int, stop: int) -> list[Request]:
        """The requests from number `start` to `stop`, without that."""


class RequestList:
    """Requests that are in memory.

    Args:
        requests: numbered from 0.

    Raises:
        UserError: they are numbered in another way.
    """

    def __init__(self, requests: Sequence[Request]) -> None:
        if [request.number for request in requests] != list(range(len(requests))):
            raise UserError("the requests must be numbered from 0, without gaps")
        self._requests = requests
        content = json.dumps([request.as_dict() for request in requests]).encode()
        self.digest = hashlib.blake2b(content, digest_size=16).hexdigest()

    @property
    def count(self) -> int:
        """Number of requests."""
        return len(self._requests)

    def read(self, start: int, stop: int) -> list[Request]:
        """The requests from number `start` to `stop`, without that."""
        return list(self._requests[start:stop])


class SamplesFromScratch:
    """Requests without a prompt.

    Args:
        count: how many.
    """

    def __init__(self, count: int) -> None:
        self.count, self.digest = count, "from scratch"

    def read(self, start: int, stop: int) -> list[Request]:
        """The requests from number `start` to `stop`, without that."""
        return [Request(number) for number in range(start, min(stop, self.count))]


def open_requests(path: str | Path) -> RequestSource:
    """The prompts in a file of a JSON object a line, in WebDataset shards, or on the standard input.

    Args:
        path: a file as in `read_requests`; a shard (`.tar`) or a directory of shards, as in `PromptShards`; `-` for
            the standard input, whose requests are read at once, as are those of a pipe.

    Raises:
        UserError: the file cannot be read, or holds no prompts.
    """
    if str(path) == STANDARD_INPUT or Path(path).is_fifo():  # what can be read once alone
        return RequestList(read_requests(path))
    path = Path(path)
    return PromptShards(path) if path.is_dir() or path.suffix == ".tar" else PromptFile(path)
