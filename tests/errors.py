"""What a test asks of an error: its type, and that its message is one line which names the thing."""

import re
from collections.abc import Iterator
from contextlib import contextmanager

import pytest


@contextmanager
def refused(error: type[Exception] | tuple[type[Exception], ...], *named: object) -> Iterator[None]:
    """A `with` block that must raise `error`, with a message of one line that contains each of `named`."""
    with pytest.raises(error) as caught:
        yield
    message = str(caught.value)
    assert "\n" not in message
    assert_names(message, *named)


def assert_names(message: str, *named: object) -> None:
    """Whether a message contains each of `named`, as whole words."""
    missing = [name for name in map(str, named) if not re.search(rf"(?<!\w){re.escape(name)}(?!\w)", message)]
    assert not missing, f"{message!r} does not name {missing}"
