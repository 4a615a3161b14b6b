"""Trying again what failed in a way that may not last."""

import random
from collections.abc import Callable
from typing import TypeVar

from tenacity import RetryCallState, Retrying, retry_if_exception_type, stop_after_attempt, wait_exponential

from nar_scale.data.storage.errors import TransientError
from nar_scale.data.storage.urls import redacted
from nar_scale.errors import DataError

T = TypeVar("T")

FIRST_WAIT, LONGEST_WAIT = 1.0, 30.0  # seconds between attempts; each wait is twice the one before


def with_retries(attempt: Callable[[], T], url: str, attempts: int) -> T:
    """Call `attempt` until it raises no `TransientError`, with growing pauses, and return its result.

    Args:
        attempt: fetches something once.
        url: what is fetched, for messages.
        attempts: how often it is called at most, at least once.

    Raises:
        DataError: the last attempt failed too; it names URL, reason and number of attempts.
    """

    def give_up(state: RetryCallState) -> T:
        error = None if state.outcome is None else state.outcome.exception()
        assert isinstance(error, TransientError)
        raise DataError(
            error.final_message
            or f"cannot fetch {redacted(url)}: {error} (attempt {state.attempt_number} of {attempts}); check that the "
            "server and the network are up, and start again"
        ) from error

    retrying = Retrying(
        stop=stop_after_attempt(attempts),
        wait=_seconds_to_wait,
        retry=retry_if_exception_type(TransientError),
        retry_error_callback=give_up,
    )
    return retrying(attempt)


def _seconds_to_wait(state: RetryCallState) -> float:
    # jitter: the processes of a job fail together, and should not come back together
    return wait_exponential(multiplier=FIRST_WAIT, max=LONGEST_WAIT)(state) * random.uniform(0.5, 1.5)
