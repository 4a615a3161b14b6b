"""What can go wrong with a remote object, and which errors of the libraries mean which."""

from nar_scale.data.storage.urls import redacted
from nar_scale.errors import DataError
from nar_scale.text import printable

TRANSIENT_STATUSES = (408, 425, 429)  # of those from 400 to 499
NO_SUCH_OBJECT, REFUSED = (404, 410), (401, 403)
# what a second attempt does not correct: options or an address that make no sense, and no credentials to be found
PERMANENT_ERRORS = (ValueError, TypeError, AttributeError, LookupError)
PERMANENT_ERROR_NAMES = ("NoCredentialsError", "PartialCredentialsError", "ProfileNotFound", "DefaultCredentialsError")


class ObjectMissing(DataError):
    """There is no such object."""


class ObjectRefused(DataError):
    """The server denies access to the object."""


class TransientError(Exception):
    """An attempt failed in a way that another attempt may not.

    Args:
        reason: what happened.
        final_message: the message of the `DataError` if all attempts fail; by default it names URL, reason and number
            of attempts.
    """

    def __init__(self, reason: str, final_message: str | None = None):
        super().__init__(reason)
        self.final_message = final_message


def classified(url: str, error: Exception) -> Exception:
    """Return what an error of aiohttp, s3fs, gcsfs or botocore means for the object at `url`.

    Returns:
        `ObjectMissing`, `ObjectRefused`, a `DataError` for what lasts, or a `TransientError`.
    """
    status = _http_status(error)
    if status in NO_SUCH_OBJECT:
        return ObjectMissing(f"{redacted(url)} does not exist (status {status}); copy it there or correct its location")
    if status in REFUSED:
        return ObjectRefused(
            f"{redacted(url)} is refused (status {status}); give credentials in data.storage_options or the environment"
        )
    reason = printable(" ".join(str(error).split())[:300]) or type(error).__name__
    if status is not None and 400 <= status < 500 and status not in TRANSIENT_STATUSES:
        return DataError(
            f"cannot fetch {redacted(url)}: status {status}, {reason}; correct its location or data.storage_options"
        )
    if isinstance(error, PERMANENT_ERRORS) or type(error).__name__ in PERMANENT_ERROR_NAMES:
        return DataError(f"cannot fetch {redacted(url)}: {reason}; correct its location or data.storage_options")
    return TransientError(reason if status is None else f"status {status}")


def _http_status(error: BaseException) -> int | None:
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
