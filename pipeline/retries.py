"""Bounded patience with servers: what may pass is asked again, and then it is an error."""

from collections.abc import Callable
from typing import ParamSpec, TypeVar

from tenacity import Retrying, retry_if_exception, stop_after_attempt, wait_random_exponential

P = ParamSpec("P")
R = TypeVar("R")

ATTEMPTS = 3  # s3fs asks five times by itself, with pauses; plain HTTP is asked by us alone
LONGEST = 20.0  # seconds between two attempts
# Of these packages not every error is an OSError.
CLIENTS = frozenset({"aiobotocore", "aiohttp", "botocore", "fsspec", "gcsfs", "adlfs"})
LASTING = (FileNotFoundError, FileExistsError, PermissionError, IsADirectoryError)


class ServerError(OSError):
    """A server went on failing."""


def passing(error: BaseException) -> bool:
    """Say whether an error may pass: none that we made, or that a server will give again."""
    if isinstance(error, LASTING) or "Credentials" in type(error).__name__:
        return False
    status = getattr(error, "status", 500)  # of HTTP
    if 400 <= status < 500 and status not in (408, 429):
        return False
    known = isinstance(error, OSError | TimeoutError)
    return known or type(error).__module__.partition(".")[0] in CLIENTS


def patiently(what: str, function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
    """Call `function`, which asks a server for `what`, again while its errors may pass.

    Raises:
        ServerError: they didn't, ATTEMPTS times, with growing pauses between.
    """
    retrying = Retrying(
        stop=stop_after_attempt(ATTEMPTS),
        wait=wait_random_exponential(multiplier=0.5, max=LONGEST),
        retry=retry_if_exception(passing),
        reraise=True,
    )
    try:
        return retrying(function, *args, **kwargs)
    except Exception as error:
        if not passing(error):
            raise
        raise ServerError(
            f"expected an answer about {what}, got {type(error).__name__} {ATTEMPTS} times, last:"
            f" {error}; run the same command again: what is finished is kept"
        ) from error
