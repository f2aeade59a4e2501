"""Rates of contenders that take turns: the median of rounds, in CPU-seconds and in wall time."""

import multiprocessing
import os
import resource
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch

ROUNDS = 5
CORES = len(os.sched_getaffinity(0))
REST = 0.1  # seconds of no work, after which a worker has nothing to do

Way = Callable[[], int]  # does some work and returns its number of rows


class Rates(NamedTuple):
    """Rows per CPU-second and per second."""

    cpu: float
    wall: float


def cpu() -> float:
    """Return the CPU-seconds of this process and of its workers, dead or alive."""
    ticks = 0
    for worker in multiprocessing.active_children():
        fields = Path(f"/proc/{worker.pid}/stat").read_text().rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])  # user, system
    dead = resource.getrusage(resource.RUSAGE_CHILDREN)
    alive = ticks / os.sysconf("SC_CLK_TCK")
    return time.process_time() + dead.ru_utime + dead.ru_stime + alive


def rested() -> float:
    """Return `cpu()` when the workers have read ahead all they may."""
    spent = cpu()
    while multiprocessing.active_children():
        time.sleep(REST)
        before, spent = spent, cpu()
        if spent - before < 0.1 * REST:
            break
    return spent


def measured(ways: dict[str, Way], rounds: int = ROUNDS) -> dict[str, Rates]:
    """Return the rates of each way with the threads that torch has now, after a warm-up."""
    taken: dict[str, list[Rates]] = {name: [] for name in ways}
    for turn in range(-1, rounds):
        for name, way in ways.items():
            before, start = rested(), time.perf_counter()
            rows = way()
            wall, spent = time.perf_counter() - start, rested() - before
            if turn >= 0:
                taken[name].append(Rates(rows / spent, rows / wall))
    return {
        name: Rates(*map(statistics.median, zip(*found, strict=True)))
        for name, found in taken.items()
    }


def rates(ways: dict[str, Way]) -> dict[str, Rates]:
    """Return rows per CPU-second with one compute thread, and per second with all cores."""
    found = []
    for threads in (1, CORES):
        torch.set_num_threads(threads)
        found.append(measured(ways))
    return {name: Rates(found[0][name].cpu, found[1][name].wall) for name in ways}
