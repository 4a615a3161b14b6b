"""What a test asks of an error: its type, and that its message is one line which names the thing."""

import re
from collections.abc import Iterator
from contextlib import contextmanager

import pytest


@contextmanager
def refused(
    error: type[Exception] | tuple[type[Exception], ...], *named: object
) -> Iterator[pytest.ExceptionInfo[Exception]]:
    """A `with` block that must raise `error`, with a message of one line that contains each of `named`."""
    with pytest.raises(error) as caught:
        yield caught
    assert_names(str(caught.value), *named)


def assert_names(message: str, *named: object) -> None:
    """Assert that a message of one line contains each of `named` as a whole word or number."""
    assert "\n" not in message, message
    missing = [name for name in named if not _contains(message, name)]
    assert not missing, f"{message!r} does not name {missing}"


def _contains(message: str, name: object) -> bool:
    text = str(name)
    after = r"(?!\w|\.\d)" if isinstance(name, int | float) else r"(?!\w)"
    before = r"(?<![\w.])" if isinstance(name, int | float) else r"(?<!\w)"
    pattern = (before if text[0].isalnum() else "") + re.escape(text) + (after if text[-1].isalnum() else "")
    return re.search(pattern, message) is not None
