"""Embedding on many processes or machines with Dask: the client hands out tasks, workers embed.

A worker holds the backbone and needs to reach the shards and the weights; it writes nothing. The
client needs one arm's length: whatever a worker was doing when it died is handed to another.
"""

import os
import signal
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import islice

import dask.config
from distributed import Client, Future, KilledWorker, LocalCluster, Worker, WorkerPlugin
from distributed.client import FutureCancelledError, as_completed

from askance.features.blocks import Task
from askance.features.embed import Embedded, Embedder
from askance.features.recipe import Recipe
from askance.pipeline.provenance import versions

PER_WORKER = 2  # tasks handed to a worker: it never waits for the next
PATIENCE = 120  # seconds until the first workers are there


class Embedding(WorkerPlugin):
    """Loads the backbone once into each worker, also into one that comes later."""

    name = "askance"

    def __init__(self, recipe: Recipe, weights: str) -> None:
        self.recipe, self.weights, self.versions = recipe, weights, versions()

    def setup(self, worker: Worker) -> None:
        """Load the backbone.

        Raises:
            ValueError: this worker would give other numbers than the client: it has other weights
                or other versions.
        """
        here = versions()
        other = [f"{n} {here[n]}" for n, told in self.versions.items() if here[n] != told]
        if other:
            raise ValueError(
                f"expected the client's versions on the worker {worker.name}, got"
                f" {', '.join(other)}: install the same"
            )
        recipe = replace(self.recipe, device=device_of(worker.name, self.recipe.device))
        self.embedder = Embedder.load(recipe)
        found = self.embedder.backbone.weights_hash()
        if found != self.weights:
            raise ValueError(
                f"expected the client's weights {self.weights[:12]} on the worker {worker.name},"
                f" got {found[:12]}"
            )


def device_of(name: object, device: str) -> str:
    """Return the device of a worker: each of a local cluster's, numbered from 0, has its own GPU.

    Workers of other clusters are given theirs by CUDA_VISIBLE_DEVICES, as dask-cuda does.
    """
    import torch

    gpus = torch.cuda.device_count()
    if device in ("auto", "cuda") and gpus > 1 and isinstance(name, int):
        return f"cuda:{name % gpus}"
    return device


@contextmanager
def cluster(scheduler: str, workers: int, recipe: Recipe, weights: str) -> Iterator[Client]:
    """Yield a client of `workers` ready workers: of a local cluster, or of that at an address.

    Raises:
        OSError: no scheduler at the address.
        ValueError: too few workers in time, or one that would give other numbers.
    """
    with _client(scheduler, workers) as client:
        try:
            client.wait_for_workers(workers, timeout=PATIENCE)
        except TimeoutError:
            found = len(client.scheduler_info()["workers"])
            raise ValueError(
                f"expected {workers} workers at {scheduler} within {PATIENCE} s, got {found}:"
                " start more, or lower extract.workers"
            ) from None
        client.register_plugin(Embedding(recipe, weights))
        yield client


@contextmanager
def _client(scheduler: str, workers: int) -> Iterator[Client]:
    if scheduler != "local":
        with Client(scheduler, set_as_default=False) as client:
            yield client
        return
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    threads = str(max(1, (cores or 1) // workers))
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
    environment = dict.fromkeys(names, threads) | {"OMP_WAIT_POLICY": "PASSIVE"}
    with (
        dask.config.set({"distributed.nanny.pre-spawn-environ": environment}),
        _deaf_to_interrupts(),
    ):
        local = LocalCluster(
            n_workers=workers,
            threads_per_worker=1,
            processes=True,
            memory_limit=0,
            dashboard_address=None,
        )
    with local, Client(local, set_as_default=False) as client:
        yield client


@contextmanager
def _deaf_to_interrupts() -> Iterator[None]:
    """Ignore Ctrl-C for a while: processes started meanwhile ignore it for good.

    A terminal sends it to all of them, and a worker must finish what is to be written.
    """
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def embed_on(
    client: Client, tasks: Iterable[Task], stopped: Callable[[], bool]
) -> Iterator[Embedded]:
    """Embed tasks on the workers and yield them as they are done, in any order.

    Once `stopped()`, nothing more is handed out, and what the workers have is waited for.

    Raises:
        OSError: the scheduler is gone, or a task killed one worker after the other.
    """
    left, running = iter(tasks), as_completed(loop=client.loop)

    def hand_out() -> None:
        """Give every worker, also one that came later, its share of what is left."""
        room = PER_WORKER * len(client.scheduler_info()["workers"]) - running.count()
        running.update(_submit(client, task) for task in islice(left, max(0, room)))

    try:
        hand_out()
        for future in running:
            yield future.result()
            future.release()
            if not stopped():
                hand_out()
    except KilledWorker as error:
        raise OSError(f"expected the workers to live, got {error}") from error
    except FutureCancelledError as error:
        raise OSError(
            f"expected the scheduler to go on, got {error} start it and run the same command again:"
            " what is finished is kept"
        ) from error


def _submit(client: Client, task: Task) -> "Future[Embedded]":
    key = f"block-{task.block.number}"
    return client.submit(_embed, task, key=key, pure=False, retries=0)


def _embed(task: Task) -> Embedded:
    from distributed import get_worker

    plugin = get_worker().plugins[Embedding.name]
    assert isinstance(plugin, Embedding)
    [embedded] = plugin.embedder.embed([task])
    return embedded
