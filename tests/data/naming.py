"""Expecting errors by their type and by what they must name, whatever their prose."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest


@contextmanager
def raises_naming(kind: type[Exception], *things: Any) -> Iterator[pytest.ExceptionInfo[Exception]]:
    """Expect an error of this type whose message is one line and names all things: paths, keys, numbers, settings."""
    with pytest.raises(kind) as raised:
        yield raised
    assert_named(str(raised.value), *things)


def assert_named(message: str, *things: Any) -> None:
    """Assert that a message of one line names all things; a number must stand there as a number of its own."""
    assert "\n" not in message, message
    missing = [thing for thing in things if not _is_named(thing, message)]
    assert not missing, f"{missing} not in {message!r}"


def _is_named(thing: Any, message: str) -> bool:
    if isinstance(thing, int | float):
        return re.search(rf"(?<![\w.]){re.escape(str(thing))}(?![\w]|\.\d)", message) is not None
    return str(thing) in message
