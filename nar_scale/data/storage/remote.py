"""Objects on web servers and in object stores: finding and receiving them."""

import asyncio
from collections.abc import Callable, Coroutine, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from glob import has_magic
from typing import Any, TypeVar
from urllib.parse import urlsplit

from nar_scale.data.storage.errors import ObjectMissing, ObjectRefused
from nar_scale.data.storage.object_stores import bounded, connected, list_objects, open_stream
from nar_scale.data.storage.retries import with_retries
from nar_scale.data.storage.urls import expand_braces, protocol_of, redacted
from nar_scale.errors import DataError

T = TypeVar("T")

BLOCK_BYTES = 1 << 20
ATTEMPTS = 5
TIMEOUT = 60.0  # seconds without a byte
LISTING_SECONDS = 600.0  # for all pages of a listing, of a thousand objects each


def find_remote(pattern: str, storage_options: Mapping[str, Any]) -> list[str]:
    """Return the URLs that a pattern stands for, sorted, each once.

    Braces as in `shard-{000000..000099}.tar` are expanded for all servers; `*`, `?` and `[]` match objects of a store.
    Whether objects that are named without these exist is not checked.

    Args:
        pattern: a URL with braces or glob characters.
        storage_options: arguments of the file system of fsspec.

    Raises:
        DataError: nothing matches, the pattern is wrong, or the store cannot be listed.
        UserError: the package for this kind of store is not installed.
    """
    found: set[str] = set()
    for name in expand_braces(pattern):
        web = protocol_of(name) == "http"
        if not has_magic(urlsplit(name).path if web else name):
            found.add(name)
            continue
        if web:
            raise DataError(
                f"{redacted(name)}: web servers do not list their files; name the shards with braces as in "
                "shard-{000000..000099}.tar"
            )
        matches = with_retries(partial(_list, name, storage_options), name, ATTEMPTS)
        if not matches:
            raise DataError(f"no object matches {redacted(name)}; copy the data set there or correct the location")
        found.update(matches)
    return sorted(found)


def read_small(url: str, storage_options: Mapping[str, Any], limit: int) -> bytes | None:
    """Return the content of a small object, or None if there is none.

    A store that does not let us list its objects refuses what does not exist, so an object that is refused counts as
    one that does not exist.

    Args:
        url: the object.
        storage_options: arguments of the file system of fsspec.
        limit: bytes; a longer object is an error.

    Raises:
        DataError: it is longer or cannot be fetched.
        UserError: the package for this kind of store is not installed.
    """

    def attempt() -> bytes:
        content = bytearray()

        def check(size: int | None) -> None:
            if size is not None and size > limit:
                raise DataError(f"{redacted(url)} has more than {limit} bytes; is it the right file?")

        def append(block: bytes) -> None:
            content.extend(block)
            check(len(content))

        receive(url, storage_options, TIMEOUT, check, append)
        return bytes(content)

    try:
        return with_retries(attempt, url, ATTEMPTS)
    except (ObjectMissing, ObjectRefused):
        return None


def receive(
    url: str,
    storage_options: Mapping[str, Any],
    timeout: float,
    on_start: Callable[[int | None], None],
    on_block: Callable[[bytes], None],
) -> None:
    """Fetch an object once, block by block. What `on_start` and `on_block` raise passes through.

    No thread, connection or event loop outlives the call, so that processes can be forked at any time.

    Args:
        url: the object.
        storage_options: arguments of the file system of fsspec.
        timeout: seconds without a byte after which the attempt is given up.
        on_start: called before the first block with the size in bytes that the server announces, None if it does not.
        on_block: called with each block.

    Raises:
        ObjectMissing: there is no such object.
        ObjectRefused: credentials are missing or wrong.
        DataError: the object cannot be had for another reason that lasts.
        TransientError: the attempt failed in a way that another may not.
        UserError: the package for this kind of store is not installed.
    """

    async def stream() -> None:
        async with connected(url, storage_options, timeout) as connection:
            size, body, response = await bounded(open_stream(connection, url), url, timeout)
            try:
                on_start(size)
                while block := await bounded(body.read(BLOCK_BYTES), url, timeout):
                    on_block(block)
            finally:
                response.close()

    _run(stream())


def _list(pattern: str, storage_options: Mapping[str, Any]) -> list[str]:
    async def listing() -> list[str]:
        async with connected(pattern, storage_options, LISTING_SECONDS) as connection:
            return await bounded(list_objects(connection, pattern), pattern, LISTING_SECONDS)

    return _run(listing())


def _run(coroutine: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine in an event loop of its own, in another thread if one is running here, as in a notebook."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(coroutine)
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(asyncio.run, coroutine).result()
