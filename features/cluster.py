"""Embedding on many processes or machines with Dask: the client hands out tasks, workers embed.

A worker holds the backbone and needs to reach the shards and the weights; it writes nothing. The
client needs one arm's length: whatever a worker was doing when it died is handed to another.
"""

import logging
import os
import signal
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from itertools import islice
from uuid import uuid4

import dask.config
import torch
from distributed import Client, KilledWorker, LocalCluster, Worker, WorkerPlugin, get_worker
from distributed.client import FutureCancelledError, as_completed
from distributed.comm.core import CommClosedError
from distributed.utils import silence_logging_cmgr

from askance.features.blocks import Task
from askance.features.embed import Embedded, Embedder
from askance.features.recipe import Recipe
from askance.pipeline.artifacts import digest
from askance.pipeline.provenance import versions

PER_WORKER = 2  # tasks handed to a worker: it never waits for the next
PATIENCE = 120  # seconds until the first workers are there, or others take their place
CONNECT = "5s"  # until a scheduler that doesn't answer is taken for lost
GLANCE = 0.05  # seconds between two looks at what is done


class Embedding(WorkerPlugin):
    """Loads the backbone once into each worker, also into one that comes later.

    Its name says what it holds: runs that share a cluster don't take each other's backbone.
    """

    def __init__(self, recipe: Recipe, weights: str, kind: str, local: bool) -> None:
        self.recipe, self.weights, self.kind, self.local = recipe, weights, kind, local
        self.versions = versions()
        self.name = f"askance-{digest([asdict(recipe), weights])[:16]}"

    def setup(self, worker: Worker) -> None:
        """Load the backbone; Dask lets a late worker in although this fails, so tasks ask again.

        Raises:
            ValueError: this worker would give other numbers than the client: it has other weights,
                other versions, or another kind of device.
        """
        self.embedder, self.error = None, None
        try:
            self.embedder = self._loaded(worker)
        except Exception as error:
            self.error = error
            raise

    def _loaded(self, worker: Worker) -> Embedder:
        here = versions()
        other = [f"{n} {here[n]}" for n, told in self.versions.items() if here[n] != told]
        if other:
            raise ValueError(
                f"expected the client's versions on the worker {worker.name}, got"
                f" {', '.join(other)}: install the same"
            )
        device = self.recipe.device
        if self.local:
            device = device_of(worker.name, device)
        embedder = Embedder.load(replace(self.recipe, device=device))
        found, kind = embedder.backbone.weights_hash(), embedder.backbone.device.type
        if found != self.weights:
            raise ValueError(
                f"expected the client's weights {self.weights[:12]} on the worker {worker.name},"
                f" got {found[:12]}"
            )
        if kind != self.kind:
            raise ValueError(
                f"expected the client's kind of device, {self.kind}, on the worker {worker.name},"
                f" got {kind}: they round differently; set extract.device"
            )
        return embedder

    def embed(self, task: Task) -> Embedded:
        """Embed a task, if this worker is fit to; else raise what `setup` raised."""
        if self.embedder is None:
            raise self.error or RuntimeError("expected a backbone, got none")
        [embedded] = self.embedder.embed([task])
        return embedded


def device_of(name: object, device: str) -> str:
    """Return the device of a local cluster's worker, which are numbered from 0: a GPU each.

    Workers of other clusters are given theirs by CUDA_VISIBLE_DEVICES, as dask-cuda does.
    """
    gpus = torch.cuda.device_count()
    if device in ("auto", "cuda") and gpus > 1 and isinstance(name, int):
        return f"cuda:{name % gpus}"
    return device


@contextmanager
def cluster(scheduler: str, workers: int, embedder: Embedder) -> Iterator[tuple[Client, str]]:
    """Start a local cluster of `workers` workers, or wait for as many of that at an address.

    Yields its client, and the name under which the workers hold the backbone.

    Raises:
        OSError: no scheduler at the address.
        ValueError: too few workers in time, or one that would give other numbers.
    """
    # What Dask says of a lost worker or a closed line, with tracebacks, we say where it matters.
    with (
        silence_logging_cmgr(logging.CRITICAL),
        dask.config.set({"distributed.comm.timeouts.connect": CONNECT}),
        _client(scheduler, workers) as client,
    ):
        try:
            client.wait_for_workers(workers, timeout=PATIENCE)
        except TimeoutError:
            found = len(client.nthreads())
            raise ValueError(
                f"expected {workers} workers at {scheduler} within {PATIENCE} s, got {found}:"
                " start more, or lower extract.workers"
            ) from None
        backbone = embedder.backbone
        weights, kind = backbone.weights_hash(), backbone.device.type
        plugin = Embedding(embedder.recipe, weights, kind, scheduler == "local")
        client.register_plugin(plugin)
        yield client, plugin.name
        client.unregister_worker_plugin(plugin.name)  # after a failure it stays, for the next run


@contextmanager
def _client(scheduler: str, workers: int) -> Iterator[Client]:
    if scheduler != "local":
        try:
            client = Client(scheduler, set_as_default=False)
        except OSError as error:
            raise OSError(
                f"expected a Dask scheduler at {scheduler!r}, got {error}: start one (dask"
                " scheduler), or set extract.scheduler to local or none"
            ) from error
        with client:
            yield client
        return
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    threads = str(max(1, (cores or 1) // workers))
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
    environment = dict.fromkeys(names, threads) | {"OMP_WAIT_POLICY": "PASSIVE"}
    with (
        dask.config.set({"distributed.nanny.pre-spawn-environ": environment}),
        _interrupts_held(),
    ):
        local = LocalCluster(
            n_workers=workers,
            threads_per_worker=1,
            processes=True,
            memory_limit=0,
            dashboard_address=":0",
            silence_logs=logging.CRITICAL,
        )
    with local, Client(local, set_as_default=False) as client:
        yield client


@contextmanager
def _interrupts_held() -> Iterator[None]:
    """Hold Ctrl-C back for a while; threads and processes started meanwhile never hear it.

    A terminal sends it to all of them, and a worker must finish what is to be written.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def embed_on(
    client: Client, plugin: str, tasks: Iterable[Task], stopped: Callable[[], bool]
) -> Iterator[Embedded]:
    """Embed tasks on the workers and yield them as they are done, in any order.

    Once `stopped()`, nothing more is handed out, and what the workers have is waited for.

    Raises:
        OSError: the scheduler is gone, or a task killed one worker after the other.
    """
    left, running, run = iter(tasks), as_completed(loop=client.loop), uuid4().hex

    def hand_out() -> None:
        """Give every worker, also one that came later, its share of what is left."""
        room = 0 if stopped() else PER_WORKER * _workers(client) - running.count()
        for task in islice(left, max(0, room)):
            # Another run on the same scheduler has blocks of the same numbers.
            key = f"block-{task.block.number}-{run}"
            running.add(client.submit(_embed, plugin, task, key=key, pure=False))

    assert client.scheduler is not None
    with _says_what_is_lost(str(client.scheduler.address)):
        hand_out()
        seen = time.monotonic()
        while running.count():
            if running.has_ready():
                future = next(running)
                yield future.result(timeout=PATIENCE)  # its worker may be gone meanwhile
                future.release()
                hand_out()
            else:
                time.sleep(GLANCE)
            if _workers(client):
                seen = time.monotonic()
            elif time.monotonic() - seen > PATIENCE:
                raise TimeoutError


@contextmanager
def _says_what_is_lost(address: str) -> Iterator[None]:
    """Say which part of a cluster is gone, and what to do."""
    again = "run the same command again: what is finished is kept"
    try:
        yield
    except TimeoutError as error:
        raise OSError(
            f"expected workers at {address}, got none for {PATIENCE} s: start some and {again}"
        ) from error
    except KilledWorker as error:
        number, workers = str(error.task).split("-")[1], error.allowed_failures + 1
        raise OSError(
            f"expected block {number} to be embedded, got {workers} workers that died of it; look"
            " for the cause in their logs, or take its rows out of the set"
        ) from error
    except (FutureCancelledError, CommClosedError) as error:
        raise OSError(
            f"expected the scheduler at {address} to go on, got no connection: start it and its"
            f" workers, and {again}"
        ) from error


def _workers(client: Client) -> int:
    try:
        return len(client.nthreads())
    except OSError as error:  # what a worker's task raised may be one, too
        raise CommClosedError("the scheduler doesn't answer") from error


def _embed(name: str, task: Task) -> Embedded:
    plugin = get_worker().plugins[name]
    assert isinstance(plugin, Embedding)
    return plugin.embed(task)
