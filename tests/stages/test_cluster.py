"""extract on Dask: the same bytes from any cluster, and every death on the way.

Schedulers, workers and most clients are real processes, each the leader of a group of its own that
is killed at the end, whatever happens.
"""

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

import dask.config
import psutil
import pytest
import torch
from distributed import Client

from askance.features import cluster
from askance.features.writer import StoreWriter
from askance.pipeline.provenance import versions

ROOT = Path(__file__).parents[2]
ROWS, BLOCK = 240, 2
BLOCKS = ROWS // BLOCK
POISON = """
import os
from askance.features import embed

def fatal(content, decode=embed.decode):
    if content.endswith(b"poison"):
        os._exit(1)
    return decode(content)

if embed.decode.__name__ == "decode":  # this is run twice
    embed.decode = fatal
"""


def content(path):
    files = [p for p in path.rglob("*") if p.is_file()]
    return {str(p.relative_to(path)): p.read_bytes() for p in files}


def written(out):
    return len(list((out / "status" / "blocks").glob("*.json")))


def members(leader):
    """Return the living processes of the group that a process leads."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error, ProcessLookupError):
            alive = process.status() != psutil.STATUS_ZOMBIE
            if alive and os.getpgid(process.pid) == leader.pid:
                found.append(process)
    return found


def worker_processes(processes):
    """Return those that run tasks: neither nannies nor helpers of multiprocessing."""
    found = []
    for process in processes:
        with suppress(psutil.Error):
            if "spawn_main" in " ".join(process.cmdline()):
                found.append(process)
    return found


def wait_until(true, seconds=60):
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, f"not within {seconds} s"
        time.sleep(0.02)


@pytest.fixture(scope="module")
def start():
    """Return a function that starts `python -m words`; what it started dies with it at the end."""
    leaders = []

    def start(*words, output=subprocess.DEVNULL, environment=None, cwd=ROOT):
        environment = (
            os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)} | (environment or {})
        )
        process = subprocess.Popen(
            [sys.executable, "-m", *map(str, words)],
            stdout=output,
            stderr=output,
            text=True,
            env=environment,
            cwd=cwd,
            start_new_session=True,
            # A shell starts background jobs deaf to Ctrl-C, and children inherit that.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
        leaders.append(process)
        return process

    yield start
    for leader in leaders:
        for process in members(leader):
            with suppress(psutil.NoSuchProcess):
                process.kill()
        leader.communicate()


@pytest.fixture(scope="module")
def there(tmp_path_factory):
    """Return the folder in which the workers of the shared cluster run."""
    return tmp_path_factory.mktemp("there")


@pytest.fixture(scope="module")
def shared(start, there):
    """Return a cluster of four workers, which die of poisonous images; the last test ends it.

    Its scheduler takes Dask's usual port of a dashboard, as one on a user's machine does.
    """
    file, preload = there / "scheduler.json", there / "poison.py"
    preload.write_text(POISON)
    scheduler = start(
        "distributed.cli.dask_scheduler",
        *("--host", "127.0.0.1", "--port", "0"),
        *("--scheduler-file", file, "--idle-timeout", "10 minutes"),  # if the tests are killed
        environment={"DASK_DISTRIBUTED__SCHEDULER__ALLOWED_FAILURES": "1"},
    )
    nannies = start(
        *("distributed.cli.dask_worker", "--scheduler-file", file, "--no-dashboard"),
        *("--nworkers", "4", "--nthreads", "1", "--memory-limit", "0"),
        *("--preload", preload, "--local-directory", there),
        cwd=there,
    )
    wait_until(file.exists)
    return SimpleNamespace(
        address=json.loads(file.read_text())["address"], scheduler=scheduler, nannies=nannies
    )


def workers_of(shared):
    """Return the four processes of the shared cluster that run tasks."""
    wait_until(lambda: len(worker_processes(members(shared.nannies))) == 4)
    return worker_processes(members(shared.nannies))


@pytest.fixture(scope="module")
def data(tmp_path_factory, make_set):
    return make_set(tmp_path_factory.mktemp("data"), n=ROWS, per=100)


@pytest.fixture(scope="module")
def weights(checkpoint):
    return checkpoint(img_size=32)


@pytest.fixture(scope="module")
def embed(data, weights, extract):
    """Return a function that runs extract in this process."""

    def embed(out, data=data, **options):
        return extract(data, out, **{"block": BLOCK, "batch": 4, "weights": str(weights)} | options)

    return embed


@pytest.fixture(scope="module")
def whole(embed, tmp_path_factory):
    """Return the content of the store that one process writes."""
    return content(embed(tmp_path_factory.mktemp("whole") / "a.zarr"))


@pytest.fixture(scope="module")
def client(start, data, weights):
    """Return a function that starts extract as a process."""

    def client(out, *options):
        return start(
            *("askance.stages.extract", data, out, "--views", "plain", "--views", "augment"),
            *("--backbone", "test_vit", "--weights", weights, "--size", "32", "--block", BLOCK),
            *("--batch", "4", "--dtype", "float32", "--device", "cpu", *options),
            output=subprocess.PIPE,
        )

    return client


@pytest.fixture
def at_third_block(monkeypatch):
    """Return a function that has something done once three blocks are written."""

    def at_third_block(act):
        write, count = StoreWriter.write, []

        def counting(self, *arguments):
            write(self, *arguments)
            count.append(1)
            if len(count) == 3:
                act()

        monkeypatch.setattr(StoreWriter, "write", counting)

    return at_third_block


def mid_run(process, out):
    """Return the process once it has written three blocks, and is not done."""
    wait_until(lambda: process.poll() is not None or written(out) >= 3)
    assert process.poll() is None, process.communicate()
    return process


def test_four_workers_write_the_bytes_of_one_process(tmp_path, embed, whole, shared):
    embed(tmp_path / "a.zarr", scheduler=shared.address, workers=4)
    assert content(tmp_path / "a.zarr") == whole


def test_a_worker_that_dies_changes_nothing(tmp_path, embed, whole, shared, at_third_block):
    worker = workers_of(shared)[0]
    at_third_block(worker.kill)
    embed(tmp_path / "a.zarr", scheduler=shared.address, workers=4)
    assert not worker.is_running()
    assert content(tmp_path / "a.zarr") == whole


def test_a_local_worker_that_dies_is_replaced(tmp_path, embed, whole, at_third_block):
    killed = []

    def kill():
        killed.extend(worker_processes(psutil.Process().children()))
        killed[0].kill()

    at_third_block(kill)
    embed(tmp_path / "a.zarr", scheduler="local", workers=1)
    assert len(killed) == 1
    assert content(tmp_path / "a.zarr") == whole


def test_ctrl_c_finishes_the_blocks_at_work(tmp_path, embed, whole, client):
    """A terminal sends it to all processes: also to a worker that took the place of another."""
    out = tmp_path / "a.zarr"
    process = mid_run(client(out, "--scheduler", "local", "--workers", 2), out)
    first, second = worker_processes(members(process))
    second.suspend()  # else the run may be over before the new worker has come
    first.kill()
    wait_until(lambda: len(set(worker_processes(members(process))) - {first}) == 2)
    second.resume()
    before = written(out)
    os.killpg(process.pid, signal.SIGINT)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 130, error
    assert before < written(out) < BLOCKS
    assert "interrupted: finishing the blocks at work; again to stop at once" in error
    assert f"extract a.zarr: {2 * BLOCK * written(out)}/{2 * ROWS} img" in error
    assert "askance: interrupted; run the same command again: what is finished is kept" in error
    wait_until(lambda: not members(process), seconds=5)
    embed(out)
    assert content(out) == whole


def test_ctrl_c_while_the_workers_start_is_not_lost(tmp_path, embed):
    """In this process alone: the workers are deaf to it."""

    def interrupt():
        wait_until(lambda: worker_processes(psutil.Process().children()))
        os.kill(os.getpid(), signal.SIGINT)

    ThreadPoolExecutor(1).submit(interrupt)
    with pytest.raises(KeyboardInterrupt):
        embed(tmp_path / "a.zarr", scheduler="local", workers=1)
    assert not worker_processes(psutil.Process().children())


def test_a_second_ctrl_c_stops_at_once(tmp_path, embed, whole, client, shared):
    out, workers = tmp_path / "a.zarr", workers_of(shared)
    process = mid_run(client(out, "--scheduler", shared.address, "--workers", 4), out)
    for worker in workers:
        worker.suspend()  # no block is ever finished
    try:
        os.killpg(process.pid, signal.SIGINT)
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(timeout=1)
        os.killpg(process.pid, signal.SIGINT)
        _, error = process.communicate(timeout=10)
    finally:
        for worker in workers:
            worker.resume()
    assert process.returncode == 130
    assert "Traceback" not in error
    embed(out)
    assert content(out) == whole


def test_local_workers_die_with_their_client(tmp_path, embed, whole, client):
    out = tmp_path / "a.zarr"
    process = mid_run(client(out, "--scheduler", "local", "--workers", 1), out)
    process.kill()
    wait_until(lambda: not members(process), seconds=30)
    embed(out)
    assert content(out) == whole


def test_a_full_disk_stops_with_a_mend(tmp_path, embed, whole, client):
    """A real failing write: from the third block on the client may write no file above 100 B."""
    out = tmp_path / "a.zarr"
    process = mid_run(client(out, "--scheduler", "local", "--workers", 1), out)
    resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (100, 100))
    _, error = process.communicate(timeout=60)
    assert process.returncode == 1
    assert error.endswith("free some space and run again: what is finished is kept\n")
    assert "Traceback" not in error
    assert 3 <= written(out) < BLOCKS
    wait_until(lambda: not members(process), seconds=5)
    embed(out)
    assert content(out) == whole


def test_a_worker_with_other_weights_is_refused(
    tmp_path, there, weights, embed, checkpoint, shared, monkeypatch
):
    """The same name, from another folder."""
    shutil.copy(checkpoint(img_size=32, seed=1), there / "weights.safetensors")
    shutil.copy(weights, tmp_path / "weights.safetensors")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="expected the client's weights .* on the worker .*, got"):
        embed(
            tmp_path / "a.zarr",
            scheduler=shared.address,
            workers=4,
            weights="weights.safetensors",
        )


def test_a_worker_that_comes_later_with_other_weights_is_refused(
    tmp_path, there, weights, embed, checkpoint, shared, at_third_block, monkeypatch
):
    shutil.copy(weights, there / "weights.safetensors")
    monkeypatch.chdir(there)

    def replace():  # the run waits meanwhile
        shutil.copy(checkpoint(img_size=32, seed=1), there / "weights.safetensors")
        with Client(shared.address, set_as_default=False) as watcher:
            before = set(watcher.scheduler_info(n_workers=-1)["workers"])
            workers_of(shared)[0].kill()
            wait_until(lambda: set(watcher.scheduler_info(n_workers=-1)["workers"]) - before)

    at_third_block(replace)
    with pytest.raises(ValueError, match="expected the client's weights .* on the worker .*, got"):
        embed(
            tmp_path / "a.zarr",
            scheduler=shared.address,
            workers=4,
            weights="weights.safetensors",
        )


def test_a_worker_with_other_versions_is_refused(tmp_path, embed, shared, monkeypatch):
    monkeypatch.setattr(cluster, "versions", lambda: versions() | {"torch": "1.0"})
    with pytest.raises(
        ValueError, match="expected the client's versions on the worker .*, got torch"
    ):
        embed(tmp_path / "a.zarr", scheduler=shared.address, workers=4)


def test_too_few_workers_are_counted(tmp_path, embed, shared, monkeypatch):
    monkeypatch.setattr(cluster, "PATIENCE", 1)
    with pytest.raises(ValueError, match="expected 9 workers at tcp.* within 1 s, got 4: start"):
        embed(tmp_path / "a.zarr", scheduler=shared.address, workers=9)


def test_an_address_where_nobody_listens_is_named(tmp_path, embed):
    with (
        dask.config.set({"distributed.comm.timeouts.connect": "1s"}),
        pytest.raises(OSError, match="expected a Dask scheduler at 'tcp://127.0.0.1:9', got"),
    ):
        embed(tmp_path / "a.zarr", scheduler="tcp://127.0.0.1:9")


def test_two_runs_may_use_a_cluster_at_once(tmp_path, embed, whole, shared, client, at_third_block):
    out = tmp_path / "other" / "a.zarr"

    def other():
        process = client(out, "--scheduler", shared.address, "--workers", 4, "--seed", 1)
        assert process.wait(timeout=60) == 0

    at_third_block(other)
    embed(tmp_path / "a.zarr", scheduler=shared.address, workers=4)
    assert content(tmp_path / "a.zarr") == whole
    embed(tmp_path / "alone" / "a.zarr", seed=1)
    assert content(out) == content(tmp_path / "alone" / "a.zarr")


def test_a_block_that_kills_its_workers_is_named(tmp_path, embed, make_set, encode, shared):
    """The scheduler's `allowed-failures` bounds the deaths: here one more than 1."""
    samples = {f"k{i}": (encode(i) + b"poison" * (i == 30), 0) for i in range(40)}
    data, out = make_set(tmp_path, samples), tmp_path / "a.zarr"
    with pytest.raises(OSError, match="expected block 15 to be embedded, got 2 workers that died"):
        embed(out, data, scheduler=shared.address, workers=4)
    assert 1 <= written(out) < 20
    assert not (out / "status" / "blocks" / "00015.json").exists()


def test_local_workers_have_one_gpu_each(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 8)
    assert [cluster.device_of(n, "cuda") for n in (0, 3, 7, 8)] == [
        f"cuda:{n}" for n in (0, 3, 7, 0)
    ]
    assert cluster.device_of(3, "auto") == "cuda:3"
    assert cluster.device_of(3, "cuda:1") == "cuda:1"
    assert cluster.device_of(3, "cpu") == "cpu"
    assert cluster.device_of("host-3", "cuda") == "cuda"  # of another cluster: it is given its own
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert cluster.device_of(3, "auto") == "auto"


# Last, since they end the shared cluster.


def test_the_loss_of_all_workers_ends_the_run(tmp_path, embed, shared, at_third_block, monkeypatch):
    with Client(shared.address, set_as_default=False) as watcher:
        watcher.wait_for_workers(4, timeout=60)
    monkeypatch.setattr(cluster, "PATIENCE", 3)
    at_third_block(shared.nannies.terminate)  # as a batch system does
    with pytest.raises(OSError, match="expected workers at tcp.*, got none for 3 s: start some"):
        embed(tmp_path / "a.zarr", scheduler=shared.address, workers=4)
    assert 3 <= written(tmp_path / "a.zarr") < BLOCKS


def test_the_loss_of_the_scheduler_ends_the_run(
    tmp_path, there, start, embed, whole, client, shared
):
    out = tmp_path / "a.zarr"
    start(
        *("distributed.cli.dask_worker", shared.address, "--nthreads", "1", "--no-dashboard"),
        *("--local-directory", there),
    )
    process = mid_run(client(out, "--scheduler", shared.address), out)
    shared.scheduler.kill()
    _, error = process.communicate(timeout=30)
    assert process.returncode == 1, error
    wait_until(lambda: not members(process), seconds=5)
    assert error.splitlines()[-1] == (
        f"askance: expected the scheduler at {shared.address} to go on, got no connection: start"
        " it and its workers, and run the same command again: what is finished is kept"
    )
    assert "Traceback" not in error
    assert 3 <= written(out) < BLOCKS
    embed(out)
    assert content(out) == whole
