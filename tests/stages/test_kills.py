"""SIGKILL at random points, any number of times: the next run goes on, to equal bytes."""

import multiprocessing
import shutil
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from askance.features.views import View
from askance.stages.extract import run

KILLS = 20


@pytest.fixture(scope="module")
def start(checkpoint):
    """Return a function that starts an extraction as a process of its own.

    A fork server has torch imported already: a real process in a few milliseconds.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["askance.features.embed", "askance.features.cost"])
    options = {
        "views": [View.PLAIN, View.AUGMENT],
        "backbone": "test_vit",
        "weights": str(checkpoint(img_size=32)),
        "size": 32,
        "dtype": "float32",
        "batch": 4,
        "block": 6,
        "refusals": 1.0,
        "device": "cpu",
    }

    def start(data, out, **more):
        process = context.Process(target=partial(run, data, out, **options, **more))
        process.start()
        return process

    return start


def content(path: Path) -> dict[str, bytes]:
    return {str(p.relative_to(path)): p.read_bytes() for p in path.rglob("*") if p.is_file()}


def kill_at_random(begin, finished, whole, kills, seed):
    """Kill what `begin` starts `kills` times; whenever one gets through, `finished` judges it."""
    random, alive = np.random.default_rng(seed), 0
    for _ in range(5 * kills):
        process = begin()
        process.join(random.uniform(0, whole))
        if process.is_alive():
            alive += 1
            process.kill()
        process.join()
        assert process.exitcode in (0, -9)
        if process.exitcode == 0:
            finished()
        if alive == kills:
            return
    raise AssertionError(f"expected {kills} kills of a living process, got {alive}")


def timed(process):
    begin = time.monotonic()
    process.join()
    assert process.exitcode == 0
    return time.monotonic() - begin


def test_any_number_of_kills_leaves_the_bytes_of_an_unbroken_run(tmp_path, make_set, start):
    data, out = make_set(tmp_path, n=150, per=7), tmp_path / "killed" / "a.zarr"
    unbroken = tmp_path / "whole" / "a.zarr"
    timed(start(data, unbroken))  # starts the fork server, too
    shutil.rmtree(unbroken.parent)
    whole = timed(start(data, unbroken))

    def finished():
        assert content(out) == content(unbroken)
        shutil.rmtree(out)

    kill_at_random(lambda: start(data, out), finished, whole, KILLS, seed=1)
    timed(start(data, out))
    finished()


def test_kills_during_a_retry_lose_nothing(tmp_path, make_set, start):
    data, shards, out = (
        make_set(tmp_path, n=60, per=7),
        tmp_path / "shards",
        tmp_path / "b" / "a.zarr",
    )
    unbroken = tmp_path / "whole" / "a.zarr"
    timed(start(data, unbroken))
    lost = [shards / f"s{number}.tar" for number in (1, 4, 6)]
    for shard in lost:
        shard.rename(shard.with_suffix(".lost"))
    timed(start(data, out))
    assert content(out) != content(unbroken)
    for shard in lost:
        shard.with_suffix(".lost").rename(shard)
    refused = tmp_path / "refused"
    shutil.copytree(out, refused)
    whole = timed(start(data, out, retry=True))

    def finished():
        assert content(out) == content(unbroken)
        shutil.rmtree(out)
        shutil.copytree(refused, out)

    finished()
    kill_at_random(lambda: start(data, out, retry=True), finished, whole, KILLS // 4, seed=2)
    timed(start(data, out, retry=True))
    finished()
