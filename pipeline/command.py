"""What every command does around its work: the guard, one-line errors, and exit codes."""

import errno
import functools
import os
import sys
from collections.abc import Callable
from typing import ParamSpec

import typer

from askance.pipeline.retries import passing
from askance.pipeline.workspace import check_checkout

P = ParamSpec("P")
FAILED, TOO_MANY_REFUSED, INTERRUPTED = 1, 3, 130


class TooManyRefusedError(ValueError):
    """Finished, but more rows were refused than allowed."""


def command(function: Callable[P, None]) -> Callable[P, None]:
    """Wrap a typer command so that it ends with an exit code that tells the truth.

    0 done, 1 failed, 2 wrong usage (typer's own), 3 finished but more rows were refused than
    allowed, 130 interrupted and resumable. Expected failures (`ValueError`, `OSError`) print one
    line; anything else is our mistake and keeps its traceback.
    """

    @functools.wraps(function)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> None:
        # Spinning OpenMP threads slow a step tenfold beside a busy neighbour. Torch reads this
        # once, at its import, which the stages leave to their work.
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
        try:
            check_checkout()
            function(*args, **kwargs)
        except KeyboardInterrupt:
            _stop(INTERRUPTED, "interrupted; run the same command again: what is finished is kept")
        except TooManyRefusedError as error:
            _stop(TOO_MANY_REFUSED, str(error))
        except OSError as error:
            full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
            mend = "; free some space and run again: what is finished is kept" if full else ""
            _stop(FAILED, f"{error}{mend}")
        except ValueError as error:
            _stop(FAILED, str(error))
        except Exception as error:
            if "Credentials" in type(error).__name__:  # botocore's
                _stop(FAILED, f"expected credentials in the environment, got none: {error}")
            if not passing(error):  # our mistake: with its traceback
                raise
            again = "run the same command again: what is finished is kept"
            _stop(FAILED, f"a server failed ({type(error).__name__}: {error}); {again}")

    return wrapped


def _stop(code: int, message: str) -> None:
    # A stranger's file may be quoted in it: nothing that a terminal would obey.
    safe = "".join(c if c.isprintable() or c == "\n" else ascii(c)[1:-1] for c in message)
    print(f"askance: {safe}", file=sys.stderr)
    raise typer.Exit(code)
