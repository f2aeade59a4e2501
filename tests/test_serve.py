"""The server of docs/serve.py: a real one on the loopback, and its batches by themselves."""

import asyncio
import json
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from importlib import util
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

pytest.importorskip("fastapi")
pytest.importorskip("uvicorn")

import askance
from askance.features.backbone import load_backbone
from askance.features.views import decode

SERVE = Path(__file__).parents[1] / "docs" / "serve.py"


@pytest.fixture(scope="module")
def serve():
    """Return docs/serve.py as a module."""
    spec = util.spec_from_file_location("serve", SERVE)
    spec.loader.exec_module(module := util.module_from_spec(spec))
    return module


@pytest.fixture(scope="module")
def source(tmp_path_factory, checkpoint):
    """Return a head's file and the weights of its tiny backbone."""
    path, weights = (
        tmp_path_factory.mktemp("served") / "a.safetensors",
        str(checkpoint(img_size=32)),
    )
    backbone = load_backbone("test_vit", weights, 32, "own", "float32")
    card = {"backbone": "test_vit", "weights": backbone.weights_hash(), "precision": "float32"}
    scorer = askance.UncertaintyScorer(steps=2, width=8, device="cpu")
    scorer.fit(np.random.default_rng(0).normal(size=(50, backbone.width)), np.arange(50))
    scorer.save(path, card | {"preprocessing": asdict(backbone.preprocessing)})
    return str(path), weights


@pytest.fixture(scope="module")
def server(source):
    """Start the server; return its process and its URL."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, SERVE, source[0], "--weights", source[1], "--port", str(port)]
    with subprocess.Popen([*command, "--patience", "0.1"], stderr=subprocess.PIPE) as process:
        deadline = time.monotonic() + 120
        while not reachable(port):
            assert process.poll() is None, process.stderr.read().decode()
            assert time.monotonic() < deadline
            time.sleep(0.05)
        yield process, f"http://127.0.0.1:{port}/score"
        process.kill()


def reachable(port, host="127.0.0.1"):
    with socket.socket() as probe:
        return probe.connect_ex((host, port)) == 0


def post(url, content):
    """Return status and answer."""
    try:
        with urllib.request.urlopen(urllib.request.Request(url, content), timeout=60) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.load(error)


def test_images_posted_together_are_answered_as_the_model_does(server, source, encode):
    images = [encode(i, size=(40 + i, 33)) for i in range(9)]
    images[4:4] = [b"no image", encode(1)[:200]]
    with ThreadPoolExecutor(len(images)) as pool:
        found = list(pool.map(lambda image: post(f"{server[1]}?embedding=true", image), images))
    (first, why), (second, cut) = found[4:6]
    assert (first, why) == (422, {"detail": "expected an image, got 8 bytes of something else"})
    assert second == 422
    assert cut["detail"].startswith("expected a whole image")
    model = askance.load(*source)
    embedding, uncertainty = model([decode(image) for image in images[:4] + images[6:]])
    good = [answer for status, answer in found[:4] + found[6:] if status == 200]
    expected = {
        "uncertainty": uncertainty,
        "percentile": model.percentile(uncertainty),
        "embedding": embedding,
    }
    assert [list(answer) for answer in good] == [list(expected)] * 9
    for name, values in expected.items():
        np.testing.assert_allclose([a[name] for a in good], values, rtol=1e-3, atol=1e-4)


def test_the_embedding_comes_on_request_alone(server, encode):
    status, answer = post(server[1], encode(0))
    assert (status, list(answer)) == (200, ["uncertainty", "percentile"])


def test_only_the_loopback_is_listened_to(server):
    port = int(server[1].split(":")[2].partition("/")[0])
    assert reachable(port)
    assert not reachable(port, "127.0.0.2")  # a server of all addresses would answer


def test_a_request_that_came_before_the_end_is_answered(server, encode):
    process, url = server
    with ThreadPoolExecutor() as pool:
        last = pool.submit(post, url, encode(0))
        time.sleep(0.05)  # less than the server's patience
        process.send_signal(signal.SIGTERM)
        assert last.result()[0] == 200
    assert process.wait(30) == -signal.SIGTERM
    assert process.stderr.read() == b""


class Spy:
    """A model of one-pixel images whose uncertainty is the pixel, for one batch at a time."""

    device = torch.device("cpu")

    def __init__(self):
        self.sizes, self.alone = [], threading.Lock()

    def __call__(self, images):
        assert self.alone.acquire(blocking=False)
        self.sizes.append(len(images))
        time.sleep(0.02)
        self.alone.release()
        if (images < 0).any():
            raise RuntimeError("out of memory")
        return images, images[:, 0]

    def percentile(self, uncertainty):
        return torch.where(uncertainty > 5, torch.nan, uncertainty)


def answers(serve, values, size, cancel=None):
    """Return each value's answer, or its error, and the sizes of the batches."""
    spy = Spy()

    async def all_of_them():
        batches = serve.Batches(spy, size, 0.001)
        images = [torch.tensor([float(value)]) for value in values]
        tasks = [asyncio.create_task(batches.answer(image)) for image in images]
        if cancel is not None:
            await asyncio.sleep(0.005)
            tasks[cancel].cancel()
        found = await asyncio.gather(*tasks, return_exceptions=True)
        return [*found, await batches.answer(torch.tensor([3.0]))]

    return asyncio.run(all_of_them()), spy.sizes


def test_batches_are_full_while_images_wait_and_everyone_gets_their_own_answer(serve):
    found, sizes = answers(serve, range(10), 4)
    assert sizes == [4, 4, 2, 1]
    assert [answer["uncertainty"] for answer in found] == [*range(10), 3]
    assert [answer["embedding"] for answer in found[:2]] == [[0], [1]]
    assert [answer["percentile"] for answer in found[4:7]] == [4, 5, None]


def test_an_error_is_that_of_its_batch_alone(serve):
    found, sizes = answers(serve, [0, -1, 2, 3, 4], 3)
    assert sizes == [3, 2, 1]
    assert [str(answer) for answer in found[:3]] == ["out of memory"] * 3
    assert [answer["uncertainty"] for answer in found[3:]] == [3, 4, 3]


@pytest.mark.parametrize("cancel", [0, 2])
def test_who_goes_away_leaves_the_others_their_answer(serve, cancel):
    found, sizes = answers(serve, range(4), 4, cancel)
    assert sizes == [4, 1]
    assert isinstance(found.pop(cancel), asyncio.CancelledError)
    assert [answer["uncertainty"] for answer in found] == [n for n in range(4) if n != cancel] + [3]


def test_a_huge_body_is_not_held(serve):
    read = []

    async def stream():
        for _ in range(100):
            read.append(1 << 20)
            yield bytes(1 << 20)

    with pytest.raises(serve.HTTPException, match="413: expected an image of at most 20,971,520"):
        asyncio.run(serve.received(SimpleNamespace(stream=stream)))
    assert sum(read) == (20 << 20) + (1 << 20)
