"""Objects on web servers and in object stores: naming, listing and receiving them."""

import asyncio
import random
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from functools import partial
from glob import has_magic
from typing import Any, TypeVar
from urllib.parse import urlsplit

from nar_scale.data.text import printable
from nar_scale.errors import DataError, UserError

T = TypeVar("T")

SCHEMES = ("http", "https", "s3", "gs", "gcs")
BLOCK_BYTES = 1 << 20
ATTEMPTS = 5
TIMEOUT = 60.0  # seconds without a byte
LISTING_SECONDS = 600.0  # for all pages of a listing, of a thousand objects each
FIRST_WAIT, LONGEST_WAIT = 1.0, 30.0  # seconds between attempts; each wait is twice the one before
CLOSING_SECONDS = 5.0
PASSING_STATUSES = (408, 425, 429)  # of those from 400 to 499
NO_SUCH_OBJECT, REFUSED = (404, 410), (401, 403)
# what a second attempt does not mend: options or an address that make no sense, and no credentials to be found
LASTING_ERRORS = (ValueError, TypeError, AttributeError, LookupError)
LASTING_ERROR_NAMES = ("NoCredentialsError", "PartialCredentialsError", "ProfileNotFound", "DefaultCredentialsError")

_kept = threading.local()


class ObjectMissing(DataError):
    """There is no such object."""


class ObjectRefused(DataError):
    """The server does not let us have the object."""


class Unavailable(Exception):
    """An attempt that failed in a way that may pass.

    Args:
        reason: what happened.
        verdict: the message of the error if it does not pass.
    """

    def __init__(self, reason: str, verdict: str | None = None):
        super().__init__(reason)
        self.verdict = verdict


def is_remote(location: str) -> bool:
    """Tell a URL of a web server or object store from a path."""
    scheme, separator, _ = location.partition("://")
    return bool(separator) and scheme.lower() in SCHEMES


def shown(url: str) -> str:
    """Return a URL for messages, without the passwords and signatures it may contain."""
    parts = urlsplit(url)
    query = "?..." if parts.query else ""
    return printable(f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}{query}")


def expand_braces(pattern: str) -> list[str]:
    """Return the names that a pattern such as `shard-{000000..000099}.tar` stands for.

    Raises:
        DataError: its braces are unbalanced.
    """
    if "{" not in pattern:
        return [pattern]
    from braceexpand import braceexpand  # comes with webdataset, whose users write this

    try:
        return list(braceexpand(pattern))
    except ValueError as error:
        raise DataError(f"{printable(pattern)} has unbalanced braces; write shard-{{000000..000099}}.tar") from error


def find_remote(pattern: str, storage_options: Mapping[str, Any]) -> list[str]:
    """Return the URLs that a pattern stands for, sorted, each once.

    Braces as in `shard-{000000..000099}.tar` are expanded everywhere; `*`, `?` and `[]` match objects of a store.
    Objects named without these are not looked for.

    Raises:
        DataError: nothing matches, the pattern is wrong, or the store cannot be listed.
        UserError: the package for this kind of store is not installed.
    """
    found: set[str] = set()
    for name in expand_braces(pattern):
        web = _protocol(name) == "http"
        if not has_magic(urlsplit(name).path if web else name):
            found.add(name)
            continue
        if web:
            raise DataError(
                f"{shown(name)}: web servers do not list their files; name the shards with braces as in "
                "shard-{000000..000099}.tar"
            )
        matches = with_retries(partial(_list, name, storage_options), name, ATTEMPTS)
        if not matches:
            raise DataError(f"no object matches {shown(name)}; copy the data set there or correct the location")
        found.update(matches)
    return sorted(found)


def read_small(url: str, storage_options: Mapping[str, Any], limit: int) -> bytes | None:
    """Return the content of a small object, or None if there is none.

    A store that does not let us list its objects refuses what does not exist, so an object that is refused counts as
    one that is not there.

    Args:
        url: where it is.
        storage_options: passed to fsspec.
        limit: bytes; a longer object is an error.

    Raises:
        DataError: it is longer or cannot be fetched.
        UserError: the package for this kind of store is not installed.
    """

    def attempt() -> bytes:
        content = bytearray()

        def check(size: int | None) -> None:
            if size is not None and size > limit:
                raise DataError(f"{shown(url)} has more than {limit} bytes; is it the right file?")

        def take(block: bytes) -> None:
            content.extend(block)
            check(len(content))

        receive(url, storage_options, TIMEOUT, check, take)
        return bytes(content)

    try:
        return with_retries(attempt, url, ATTEMPTS)
    except (ObjectMissing, ObjectRefused):
        return None


def receive(
    url: str,
    storage_options: Mapping[str, Any],
    timeout: float,
    begin: Callable[[int | None], None],
    take: Callable[[bytes], None],
) -> None:
    """Fetch an object once, block by block. What `begin` and `take` raise passes through.

    No thread, connection or event loop outlives the call, so that processes can be forked at any time.

    Args:
        url: where it is.
        storage_options: passed to fsspec.
        timeout: seconds without a byte before the attempt is given up.
        begin: called before the first block with the size in bytes that the server announces, None if it does not.
        take: called with each block.

    Raises:
        ObjectMissing: there is none.
        ObjectRefused: credentials are missing or wrong.
        DataError: the object cannot be had for another reason that lasts.
        Unavailable: the attempt failed in a way that may pass.
        UserError: the package for this kind of store is not installed.
    """

    async def stream() -> None:
        async with _connected(url, storage_options) as file_system:
            size, body, answer = await _bounded(_open_stream(file_system, url), url, timeout)
            try:
                begin(size)
                while block := await _bounded(body.read(BLOCK_BYTES), url, timeout):
                    take(block)
            finally:
                answer.close()

    _run(stream())


def with_retries(attempt: Callable[[], T], url: str, attempts: int) -> T:
    """Call `attempt` until it is not `Unavailable`, with growing pauses.

    Raises:
        DataError: naming URL, reason and number of attempts, after the last.
    """
    for number in range(1, attempts + 1):
        try:
            return attempt()
        except Unavailable as error:
            if number == attempts:
                raise DataError(
                    error.verdict
                    or f"cannot fetch {shown(url)}: {error} (attempt {number} of {attempts}); see whether the server "
                    "and the network are up, and start again"
                ) from error
            # jitter: the processes of a job fail together, and should not come back together
            time.sleep(min(FIRST_WAIT * 2 ** (number - 1), LONGEST_WAIT) * random.uniform(0.5, 1.5))
    raise ValueError("attempts must be positive")


def _protocol(url: str) -> str:
    scheme = url.partition("://")[0].lower()
    return {"https": "http", "gcs": "gs"}.get(scheme, scheme)


def _run(coroutine: Coroutine[Any, Any, T]) -> T:
    if _inside_loop():  # as in a notebook
        with ThreadPoolExecutor(1) as pool:
            return pool.submit(asyncio.run, coroutine).result()
    return asyncio.run(coroutine)


def _inside_loop() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


@asynccontextmanager
async def _connected(url: str, storage_options: Mapping[str, Any]) -> AsyncIterator[Any]:
    protocol = _protocol(url)
    try:
        options = {**storage_options, **_defaults(protocol, storage_options)}
        file_system = _kind(protocol)(**options, asynchronous=True, skip_instance_cache=True)
    except ImportError as error:
        raise UserError(f"{shown(url)} needs an optional package: pip install 'nar_scale[remote]'") from error
    except Exception as error:
        raise _explained(url, error) from error
    try:
        yield file_system
    finally:
        session = getattr(file_system, "_s3" if protocol == "s3" else "_session")
        if session is not None:
            with suppress(Exception):  # it has done its work
                await asyncio.wait_for(session.close(), CLOSING_SECONDS)


def _kind(protocol: str) -> Any:
    import fsspec

    if protocol == "gs":
        from gcsfs.core import GCSFileSystem  # what is registered speaks gRPC too, whose threads do not bear a fork

        return GCSFileSystem
    return fsspec.get_filesystem_class(protocol)


def _defaults(protocol: str, storage_options: Mapping[str, Any]) -> dict[str, Any]:
    if protocol == "s3" and not {"session", "profile"} & storage_options.keys():
        if not hasattr(_kept, "s3"):
            from aiobotocore.session import AioSession

            _kept.s3 = AioSession()  # to read the descriptions of all services takes a third of a second
        return {"session": _kept.s3}
    if protocol == "http":
        given = storage_options.get("client_kwargs", {})
        headers = {**given.get("headers", {}), "Accept-Encoding": "identity"}  # sizes are those of what is stored
        return {"client_kwargs": {"timeout": _no_limit(), **given, "headers": headers}}
    return {}


def _list(pattern: str, storage_options: Mapping[str, Any]) -> list[str]:
    async def glob() -> dict[str, Any]:
        async with _connected(pattern, storage_options) as file_system:
            return await _bounded(file_system._glob(pattern, detail=True), pattern, LISTING_SECONDS)

    scheme = pattern.partition("://")[0]
    return [f"{scheme}://{name}" for name, info in _run(glob()).items() if info["type"] == "file"]


async def _open_stream(file_system: Any, url: str) -> tuple[int | None, Any, Any]:
    """Return the size that is announced, what can be read, and what must be closed."""
    protocol = _protocol(url)
    if protocol == "s3":
        bucket, key, version = file_system.split_path(url)
        versions = {} if version is None else {"VersionId": version}
        answer = await file_system._call_s3("get_object", Bucket=bucket, Key=key, **versions)
        return answer.get("ContentLength"), answer["Body"], answer["Body"]
    if protocol == "gs":
        session = await file_system._set_session()
        options = {"params": file_system._get_params({}), "headers": file_system._get_headers(None)}
        response = await session.get(file_system.url(url), timeout=_no_limit(), **options)
    else:
        session = await file_system.set_session()
        response = await session.get(file_system.encode_url(url), **file_system.kwargs)
    response.raise_for_status()  # which closes it
    packed = response.headers.get("Content-Encoding", "identity") != "identity"
    return None if packed else response.content_length, response.content, response


def _no_limit() -> Any:
    from aiohttp import ClientTimeout

    return ClientTimeout(total=None)  # it would give up any transfer after five minutes


async def _bounded(work: Awaitable[T], url: str, timeout: float) -> T:
    try:
        return await asyncio.wait_for(work, timeout)
    except (TimeoutError, asyncio.TimeoutError) as error:  # two classes before Python 3.11
        raise Unavailable(f"no answer for {timeout:g} s") from error
    except Exception as error:
        raise _explained(url, error) from error


def _explained(url: str, error: Exception) -> Exception:
    status = _status(error)
    if status in NO_SUCH_OBJECT:
        return ObjectMissing(f"{shown(url)} does not exist (status {status}); copy it there or correct its location")
    if status in REFUSED:
        return ObjectRefused(
            f"{shown(url)} is refused (status {status}); give credentials in data.storage_options or the environment"
        )
    reason = printable(" ".join(str(error).split())[:300]) or type(error).__name__
    if status is not None and 400 <= status < 500 and status not in PASSING_STATUSES:
        return DataError(
            f"cannot fetch {shown(url)}: status {status}, {reason}; correct its location or data.storage_options"
        )
    if isinstance(error, LASTING_ERRORS) or type(error).__name__ in LASTING_ERROR_NAMES:
        return DataError(f"cannot fetch {shown(url)}: {reason}; correct its location or data.storage_options")
    return Unavailable(reason if status is None else f"status {status}")


def _status(error: BaseException) -> int | None:
    """Return the HTTP status that is behind an error of aiohttp, s3fs or gcsfs."""
    answer = getattr(error.__cause__ or error, "response", None)  # s3fs translates the errors of botocore
    if isinstance(answer, dict):
        return answer.get("ResponseMetadata", {}).get("HTTPStatusCode")
    for name in ("status", "code"):  # aiohttp, gcsfs
        status = getattr(error, name, None)
        if isinstance(status, int | str) and str(status).isdigit():
            return int(status)
    if isinstance(error, FileNotFoundError):
        return 404
    return 403 if isinstance(error, PermissionError) else None
