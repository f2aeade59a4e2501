"""Locks: one writer at a time of what comes about bit by bit."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout


@contextmanager
def only_writer(path: Path, lock: Path) -> Iterator[None]:
    """Hold the file `lock`, which says that nobody else writes what is at `path`.

    Raises:
        ValueError: another process holds it.
    """
    held = FileLock(lock)
    try:
        held.acquire(timeout=0)  # the kernel lets go of it at any death
    except Timeout:
        raise ValueError(
            f"expected to be the only writer of {path}, got another one that runs: wait for it, or"
            " stop it"
        ) from None
    try:
        yield
    finally:
        held.release()
