"""The server of docs/serve.py under load, with and without batches, beside the bare model.

Each client posts its next photograph when it has the answer to the last. All ways take turns, and
each reports the median of its rounds; clients, server and neighbours share the cores, so read the
ratios, and the server's CPU-time of a request. Uses the run in the current folder.
"""

import http.client
import os
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from io import BytesIO
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from sklearn.datasets import load_sample_images

import askance
from askance.features.views import decode
from askance.pipeline.provenance import machine

ROUNDS, BATCHES, CLIENTS = 5, (32, 1), (1, 8, 32)
PHOTOS, REQUESTS = 64, 96  # in a round


class Load(NamedTuple):
    """Requests per second; latency, half of all and 95 % of all, and CPU-time of one, in ms."""

    rate: float
    p50: float
    p95: float
    cpu: float


def photographs() -> list[bytes]:
    """Return JPEGs of 500 x 375 pixels, cut out of the two of scikit-learn."""
    random, sources, found = np.random.default_rng(0), load_sample_images().images, []
    for number in range(PHOTOS):
        left, top = random.integers(640 - 500), random.integers(427 - 375)
        pixels = sources[number % 2][top : top + 375, left : left + 500]
        Image.fromarray(pixels).save(file := BytesIO(), "jpeg", quality=92)
        found.append(file.getvalue())
    return found


@contextmanager
def served(batch: int) -> Iterator[tuple[int, int]]:
    """Start a server of the run here; yield its port and its process."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "docs/serve.py", ".", "--port", str(port), "--batch", str(batch)]
    with subprocess.Popen(command) as process:
        while not reachable(port):
            assert process.poll() is None
            time.sleep(0.1)
        yield port, process.pid
        process.terminate()


def reachable(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def spent(process: int) -> float:
    """Return the CPU-seconds of a process."""
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def loaded(port: int, process: int, clients: int, photos: list[bytes]) -> Load:
    """Post photographs by some clients at a time."""

    def client(number: int) -> list[float]:
        connection, taken = http.client.HTTPConnection("127.0.0.1", port), []
        for turn in range(number, REQUESTS, clients):
            start = time.perf_counter()
            connection.request("POST", "/score", photos[turn % PHOTOS])
            answer = connection.getresponse()
            assert answer.read()
            assert answer.status == 200
            taken.append(1e3 * (time.perf_counter() - start))
        return taken

    before, start = spent(process), time.perf_counter()
    with ThreadPoolExecutor(clients) as pool:
        latencies = [one for each in pool.map(client, range(clients)) for one in each]
    wall, cpu = time.perf_counter() - start, spent(process) - before
    p50, p95 = np.quantile(latencies, (0.5, 0.95))
    return Load(REQUESTS / wall, p50, p95, 1e3 * cpu / REQUESTS)


def bare(model: askance.Model, photos: list[bytes], batch: int) -> Load:
    """Decode and embed the same photographs in this process, some at a time."""
    before, start, taken = time.process_time(), time.perf_counter(), []
    with torch.inference_mode():
        for first in range(0, PHOTOS, batch):
            begun = time.perf_counter()
            model([decode(photo) for photo in photos[first : first + batch]])
            taken.append(1e3 * (time.perf_counter() - begun))
    wall, cpu = time.perf_counter() - start, time.process_time() - before
    p50, p95 = np.quantile(taken, (0.5, 0.95))
    return Load(PHOTOS / wall, p50, p95, 1e3 * cpu / PHOTOS)


def main() -> None:
    """Print a line per way: the median over rounds."""
    photos, model = photographs(), askance.load(".")
    ways: dict[str, Callable[[], Load]] = {
        f"bare model, {n} at a time": lambda n=n: bare(model, photos, n) for n in BATCHES
    }
    with ExitStack() as stack:
        for batch in BATCHES:
            port, process = stack.enter_context(served(batch))
            for clients in CLIENTS:
                way = f"batches of up to {batch}, {clients} clients"
                ways[way] = lambda a=port, b=process, c=clients: loaded(a, b, c, photos)
        rounds = [{name: way() for name, way in ways.items()} for _ in range(ROUNDS + 1)][1:]
    print(f"{machine()}, {torch.get_num_threads()} threads, photographs of 500 x 375")
    for name in ways:
        found = Load(*map(statistics.median, zip(*(each[name] for each in rounds), strict=True)))
        print(
            f"{name:36} {found.rate:6.1f}/s  p50 {found.p50:6.0f} ms  p95 {found.p95:6.0f} ms"
            f"  {found.cpu:5.1f} CPU-ms each"
        )


if __name__ == "__main__":
    main()
