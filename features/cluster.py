"""Embedding on many processes or machines with Dask: the client hands out tasks, workers embed.

A worker holds the backbone and needs to reach the shards and the weights; it writes nothing. The
client needs one arm's length: whatever a worker was doing when it died is handed to another.
"""

import os
import signal
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import CancelledError
from contextlib import contextmanager, suppress
from dataclasses import asdict, replace
from itertools import islice
from uuid import uuid4

import dask.config
from distributed import Client, KilledWorker, LocalCluster, Worker, WorkerPlugin
from distributed.client import FutureCancelledError, as_completed

from askance.features.blocks import Task
from askance.features.embed import Embedded, Embedder
from askance.features.recipe import Recipe
from askance.pipeline.artifacts import digest
from askance.pipeline.provenance import versions

PER_WORKER = 2  # tasks handed to a worker: it never waits for the next
PATIENCE = 120  # seconds until the first workers are there


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
        """Embed a task, if this worker is fit to."""
        if self.embedder is None:
            raise self.error or RuntimeError("expected a backbone, got none")
        [embedded] = self.embedder.embed([task])
        return embedded


def device_of(name: object, device: str) -> str:
    """Return the device of a local cluster's worker, which are numbered from 0: a GPU each.

    Workers of other clusters are given theirs by CUDA_VISIBLE_DEVICES, as dask-cuda does.
    """
    import torch

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
    with _client(scheduler, workers) as client:
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
        try:
            yield client, plugin.name
        finally:
            with suppress(OSError, TimeoutError, CancelledError):  # it may be gone
                client.unregister_worker_plugin(plugin.name)


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
        room = 0 if stopped() else PER_WORKER * len(client.nthreads()) - running.count()
        for task in islice(left, max(0, room)):
            # Another run on the same scheduler has blocks of the same numbers.
            key = f"block-{task.block.number}-{run}"
            running.add(client.submit(_embed, plugin, task, key=key, pure=False))

    try:
        hand_out()
        for future in running:
            yield future.result()
            future.release()
            hand_out()
    except KilledWorker as error:
        raise OSError(f"expected the workers to live, got {error}") from error
    except FutureCancelledError as error:
        raise OSError(
            f"expected the scheduler to go on, got {error} start it and run the same command again:"
            " what is finished is kept"
        ) from error


def _embed(name: str, task: Task) -> Embedded:
    from distributed import get_worker

    plugin = get_worker().plugins[name]
    assert isinstance(plugin, Embedding)
    return plugin.embed(task)
