"""Talking to web servers and object stores through fsspec: connecting, listing, opening a stream.

The file systems of fsspec are used asynchronously, within an event loop of the caller: their synchronous interface runs
in a thread that never ends, and processes could then not be forked at any time. The names used here that are not
public are those in `private_names`.
"""

import asyncio
import threading
from collections.abc import AsyncIterator, Awaitable, Mapping
from contextlib import asynccontextmanager, suppress
from typing import Any, NamedTuple, TypeVar

from nar_scale.data.storage.errors import TransientError, classified
from nar_scale.data.storage.urls import protocol_of, redacted
from nar_scale.errors import UserError

T = TypeVar("T")

CLOSING_SECONDS = 5.0

_INSTALLED_BY = {
    "http": "pip install 'nar_scale[remote]'",
    "s3": "pip install 'nar_scale[s3]'",
    "gs": "pip install 'nar_scale[gs]'",
}
_kept = threading.local()


class Connection(NamedTuple):
    """A file system of fsspec, and its session: a client of aiobotocore for S3, or else a session of aiohttp."""

    file_system: Any
    session: Any


class ObjectStream(NamedTuple):
    """An object whose content is arriving.

    Attributes:
        size: bytes that the server announces; None if it does not, or if they are not those of what is stored.
        body: has a coroutine `read(size)` that returns bytes, none at the end.
        response: has a method `close()`.
    """

    size: int | None
    body: Any
    response: Any


@asynccontextmanager
async def connected(url: str, storage_options: Mapping[str, Any], timeout: float) -> AsyncIterator[Connection]:
    """Connect to the server of a URL within the running event loop.

    Args:
        url: which server.
        storage_options: arguments of the file system of fsspec.
        timeout: seconds until the attempt to connect is given up.

    Raises:
        DataError: the options make no sense, or credentials are missing.
        TransientError: the attempt failed in a way that another may not.
        UserError: the package for this kind of store is not installed.
    """
    protocol = protocol_of(url)
    try:
        options = {**storage_options, **_default_options(protocol, storage_options)}
        file_system = _file_system_class(protocol)(**options, asynchronous=True, skip_instance_cache=True)
    except ImportError as error:
        raise UserError(f"{redacted(url)} needs an optional package: {_INSTALLED_BY[protocol]}") from error
    except Exception as error:
        raise classified(url, error) from error
    start = file_system._set_session if protocol == "gs" else file_system.set_session
    session = await bounded(start(), url, timeout)
    try:
        yield Connection(file_system, session)
    finally:
        with suppress(Exception):  # it has done its work
            await asyncio.wait_for(session.close(), CLOSING_SECONDS)


async def list_objects(connection: Connection, pattern: str) -> list[str]:
    """Return the URLs of the objects that match a glob such as `s3://bucket/train/*.tar`."""
    scheme = pattern.partition("://")[0]
    found = await connection.file_system._glob(pattern, detail=True)
    return [f"{scheme}://{name}" for name, info in found.items() if info["type"] == "file"]


async def open_stream(connection: Connection, url: str) -> ObjectStream:
    """Ask for an object, whole, in one request.

    Raises:
        Exception: whatever aiohttp, s3fs or gcsfs raise; see `classified`.
    """
    file_system, session = connection
    protocol = protocol_of(url)
    if protocol == "s3":
        bucket, key, version = file_system.split_path(url)
        versions = {} if version is None else {"VersionId": version}
        answer = await file_system._call_s3("get_object", Bucket=bucket, Key=key, **versions)
        return ObjectStream(answer.get("ContentLength"), answer["Body"], answer["Body"])
    if protocol == "gs":
        headers: dict[str, str] = {}
        file_system.credentials.apply(headers)
        options = {"params": file_system._get_params({}), "headers": headers}
        response = await session.get(file_system.url(url), timeout=_unlimited(), **options)
    else:
        response = await session.get(file_system.encode_url(url), **file_system.kwargs)
    response.raise_for_status()  # which closes it
    packed = response.headers.get("Content-Encoding", "identity") != "identity"
    return ObjectStream(None if packed else response.content_length, response.content, response)


async def bounded(work: Awaitable[T], url: str, timeout: float) -> T:
    """Await something that asks for `url`, and classify its errors.

    Raises:
        DataError: the object cannot be had for a reason that lasts.
        TransientError: there is no answer for `timeout` seconds, or the attempt failed in a way that another may not.
    """
    try:
        return await asyncio.wait_for(work, timeout)
    except (TimeoutError, asyncio.TimeoutError) as error:  # two classes before Python 3.11
        raise TransientError(f"no answer for {timeout:g} s") from error
    except Exception as error:
        raise classified(url, error) from error


def _file_system_class(protocol: str) -> Any:
    import fsspec

    if protocol == "gs":
        from gcsfs.core import GCSFileSystem  # what is registered speaks gRPC too, whose threads do not bear a fork

        return GCSFileSystem
    return fsspec.get_filesystem_class(protocol)


def _default_options(protocol: str, storage_options: Mapping[str, Any]) -> dict[str, Any]:
    if protocol == "s3" and not {"session", "profile"} & storage_options.keys():
        if not hasattr(_kept, "s3"):
            from aiobotocore.session import AioSession

            _kept.s3 = AioSession()  # to read the descriptions of all services takes a third of a second
        return {"session": _kept.s3}
    if protocol == "http":
        given = storage_options.get("client_kwargs", {})
        headers = {**given.get("headers", {}), "Accept-Encoding": "identity"}  # sizes are those of what is stored
        return {"client_kwargs": {"timeout": _unlimited(), **given, "headers": headers}}
    return {}


def _unlimited() -> Any:
    from aiohttp import ClientTimeout

    return ClientTimeout(total=None)  # by default any transfer is given up after five minutes
