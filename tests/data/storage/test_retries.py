from types import SimpleNamespace

import pytest

from nar_scale.data.storage import retries
from nar_scale.data.storage.errors import ObjectMissing, TransientError
from nar_scale.data.storage.retries import with_retries
from nar_scale.errors import DataError
from tests.errors import refused

URL = "http://host/a"


@pytest.fixture(autouse=True)
def short_waits(monkeypatch):
    monkeypatch.setattr(retries, "FIRST_WAIT", 1e-4)


def attempts_of(*outcomes):
    """A function that raises or returns one outcome after the other."""
    left = list(outcomes)

    def attempt():
        outcome = left.pop(0)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    return attempt, left


def test_the_first_success_is_returned():
    attempt, left = attempts_of(TransientError("a"), TransientError("b"), 5, 6)
    assert with_retries(attempt, URL, attempts=3) == 5
    assert left == [6]


def test_after_the_last_attempt_the_error_names_what_happened():
    attempt, left = attempts_of(TransientError("first"), TransientError("second"), 5)
    with refused(DataError, URL, "second", "2 of 2") as raised:
        with_retries(attempt, URL, attempts=2)
    assert left == [5]
    assert isinstance(raised.value.__cause__, TransientError)


def test_the_final_message_of_an_error_is_used_if_there_is_one():
    attempt, _ = attempts_of(TransientError("first"), TransientError("second", "shard a changed"))
    with pytest.raises(DataError) as raised:
        with_retries(attempt, URL, attempts=2)
    assert str(raised.value) == "shard a changed"


@pytest.mark.parametrize("error", [ObjectMissing("none"), OSError(5, "disk"), KeyError("bug")])
def test_other_errors_are_not_tried_again(error):
    attempt, left = attempts_of(error, 5)
    with pytest.raises(type(error)) as raised:
        with_retries(attempt, URL, attempts=3)
    assert raised.value is error
    assert left == [5]


def test_pauses_double_up_to_a_limit_and_are_jittered(monkeypatch):
    monkeypatch.setattr(retries, "FIRST_WAIT", 1.0)
    for number, expected in enumerate((1, 2, 4, 8, 16, 30, 30), start=1):
        pauses = {retries._seconds_to_wait(SimpleNamespace(attempt_number=number)) for _ in range(200)}
        assert 0.5 * expected <= min(pauses) < 0.6 * expected
        assert 1.4 * expected < max(pauses) <= 1.5 * expected
