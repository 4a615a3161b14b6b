"""URLs of web servers and object stores: recognising, expanding and showing them."""

from urllib.parse import urlsplit

from nar_scale.errors import DataError
from nar_scale.text import printable

SCHEMES = ("http", "https", "s3", "gs", "gcs")


def is_remote(location: str) -> bool:
    """Return whether a location is a URL of a web server or object store, and not a path."""
    scheme, separator, _ = location.partition("://")
    return bool(separator) and scheme.lower() in SCHEMES


def protocol_of(url: str) -> str:
    """Return "http", "s3" or "gs": which kind of server a URL names."""
    scheme = url.partition("://")[0].lower()
    return {"https": "http", "gcs": "gs"}.get(scheme, scheme)


def redacted(url: str) -> str:
    """Return a URL for messages, without the passwords and signatures that it may contain."""
    parts = urlsplit(url)
    query = "?..." if parts.query else ""
    return printable(f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}{query}")


def expand_braces(pattern: str) -> list[str]:
    """Return the names that a pattern such as `shard-{000000..000099}.tar` stands for, in order.

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
