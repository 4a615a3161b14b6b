"""Every name of a library that `object_stores` uses although it is not public, and why no public one serves.

A test fails with the names that an installed version lacks. Check the uses in `object_stores` against the source of a
new version before it is adopted.
"""

from typing import NamedTuple


class PrivateName(NamedTuple):
    """A name of a library that is not public.

    Attributes:
        owner: the module and class that have it, as "module:Class".
        name: the attribute.
        reason: what it is used for, and why a public name does not serve.
    """

    owner: str
    name: str
    reason: str


class Library(NamedTuple):
    """A library and its private names in use.

    Attributes:
        distribution: its name for pip.
        checked_version: the version whose source the uses were checked against.
        names: what is used.
    """

    distribution: str
    checked_version: str
    names: tuple[PrivateName, ...]


LIBRARIES = (
    Library(
        "fsspec",
        "2026.9.0",
        (
            PrivateName(
                "fsspec.asyn:AsyncFileSystem",
                "_glob",
                "lists objects: the documented coroutine behind `glob`, which runs in a thread that never ends",
            ),
        ),
    ),
    Library(
        "s3fs",
        "2026.9.0",
        (
            PrivateName(
                "s3fs.core:S3FileSystem",
                "_call_s3",
                "reads an object in one request with the file system's own arguments: `open_async` ignores versions, "
                "`open` asks for many ranges",
            ),
        ),
    ),
    Library(
        "gcsfs",
        "2026.10.1",
        (
            PrivateName(
                "gcsfs.core:GCSFileSystem", "_set_session", "opens the session: there is no public coroutine for it"
            ),
            PrivateName(
                "gcsfs.core:GCSFileSystem", "_get_params", "who pays for a request: no public name makes the parameter"
            ),
        ),
    ),
)
