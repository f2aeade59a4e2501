"""Progress, rate and time left: a bar on a terminal, plain lines elsewhere."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

LINE_EVERY = 5.0  # seconds between two plain lines


@contextmanager
def progress(what: str, total: int, unit: str) -> Iterator[Callable[[int], None]]:
    """Yield `advance(count)` for a job of `total` units; report to standard error.

    The last line gives the whole job's time and rate, also where it was too short for any other.
    """
    start = shown = time.monotonic()
    done = 0
    terminal = sys.stderr.isatty()

    def line(now: float) -> str:
        rate = done / max(now - start, 1e-9)
        left = f", {_clock((total - done) / rate)} left" if 0 < done < total else ""
        speed = f"{rate:,.0f}" if rate >= 10 else f"{rate:.1f}"
        return f"{what}: {done:,}/{total:,} {unit}, {speed} {unit}/s{left}"

    def advance(count: int) -> None:
        nonlocal done, shown
        done += count
        now = time.monotonic()
        if now - shown >= (0.1 if terminal else LINE_EVERY):
            shown = now
            text = f"\r{line(now)}\033[K" if terminal else f"{line(now)}\n"
            print(text, end="", file=sys.stderr, flush=True)

    yield advance
    now = time.monotonic()
    lead = "\r\033[K" if terminal else ""
    print(f"{lead}{line(now)}, {_clock(now - start)} in all", file=sys.stderr, flush=True)


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
