"""The engine: rows in order whatever the batches, fixed shapes, and the way over a GPU."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from askance.features.backbone import Backbone
from askance.features.engine import IN_FLIGHT, Engine
from askance.features.views import Preprocessing

PLAIN = Preprocessing(4, 1.0, "bilinear", (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))


class Mean(torch.nn.Module):
    """A network whose embedding is the mean of each channel, and that has so much memory."""

    def __init__(self, room=1000):
        super().__init__()
        self.room, self.shapes = room, []

    def forward_features(self, images):
        self.shapes.append(len(images))
        if len(images) > self.room:
            raise torch.OutOfMemoryError(f"tried {len(images)}")
        return images.mean(dim=(2, 3))

    def forward_head(self, features, pre_logits):
        return features


class Forgetful(Mean):
    def forward_features(self, images):
        return images.mean(dim=(2, 3))


def engine(batch, room=1000):
    return Engine(Backbone(Mean(room), PLAIN, "float32"), batch)


def pictures(count, seed=0):
    return np.random.default_rng(seed).integers(256, size=(count, 4, 4, 3)).astype(np.uint8)


@given(st.lists(st.integers(1, 8), max_size=6), st.integers(1, 8))
def test_every_batch_comes_back_in_order(sizes, room):
    batches = [pictures(size, seed) for seed, size in enumerate(sizes)]
    found = list(engine(8, room).embed(iter(batches)))
    assert len(found) == len(batches)
    for pixels, embedding in zip(batches, found, strict=True):
        np.testing.assert_allclose(embedding, pixels.mean(axis=(1, 2)) / 255, rtol=1e-5)


def test_the_network_sees_one_shape():
    one = engine(8)
    list(one.embed([pictures(8), pictures(3), pictures(8)]))
    assert one.backbone.network.shapes == [8, 8, 8]


def test_what_does_not_fit_is_halved_for_good_and_told(capsys):
    one = engine(8, room=3)
    found = list(one.embed([pictures(8), pictures(8)]))
    assert one.backbone.network.shapes == [8, 4, 2, 2, 2, 2, 2, 2, 2, 2]
    np.testing.assert_allclose(found[0], pictures(8).mean(axis=(1, 2)) / 255, rtol=1e-5)
    assert "out of memory: going on with batches of 2" in capsys.readouterr().err


def test_where_not_one_picture_fits_there_is_an_error():
    with pytest.raises(torch.OutOfMemoryError, match="tried 1"):
        list(engine(4, room=0).embed([pictures(4)]))


@pytest.fixture
def gpu(monkeypatch):
    """Swap the device: a GPU's calls in their order, computed here."""
    calls, to = [], torch.Tensor.to

    class Event(torch.cuda.Event):
        def __new__(cls):
            return object.__new__(cls)

        def __init__(self):
            pass

        def record(self):
            calls.append("record")

        def synchronize(self):
            calls.append("wait")

    def move(self, device=None, *args, non_blocking=False, **kwargs):
        if isinstance(device, torch.device) or device == "cpu":
            calls.append(("up" if isinstance(device, torch.device) else "down", non_blocking))
            return self
        return to(self, device, *args, non_blocking=non_blocking, **kwargs)

    monkeypatch.setattr(torch.Tensor, "to", move)
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda self: calls.append("pin") or self)
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(Backbone, "device", torch.device("cuda"))
    monkeypatch.setattr("torch.autocast", lambda *_, **__: torch.no_grad())
    return calls


def test_a_gpu_has_the_next_batches_before_the_first_is_waited_for(gpu):
    batches = [pictures(4, seed) for seed in range(5)]
    found = engine(4).embed(iter(batches))
    first = next(found)
    sent = ["pin", ("up", True), ("down", True), "record"]
    assert gpu == sent * (IN_FLIGHT + 1) + ["wait"]
    rest = list(found)
    assert gpu.count("wait") == gpu.count("record") == 5
    for pixels, embedding in zip(batches, [first, *rest], strict=True):
        np.testing.assert_allclose(embedding, pixels.mean(axis=(1, 2)) / 255, rtol=1e-5)


@pytest.mark.gpu
def test_a_real_gpu_gives_the_same_rows_in_order():
    batches = [pictures(size, seed) for seed, size in enumerate((4, 4, 2))]
    there = engine(4)
    there.backbone.cuda()
    for pixels, embedding in zip(batches, there.embed(batches), strict=True):
        np.testing.assert_allclose(embedding, pixels.mean(axis=(1, 2)) / 255, rtol=1e-5)


def test_a_compiled_network_gives_the_same_and_is_compiled_for_one_shape(monkeypatch):
    """Without a C++ compiler: torch's own tracer, which guards shapes all the same."""
    compile_ = torch.compile
    shapes = []

    def backend(graph, inputs):
        shapes.append(tuple(inputs[0].shape))
        return graph

    monkeypatch.setattr(torch, "compile", lambda f, **k: compile_(f, backend=backend, **k))
    plain, compiled = engine(8), engine(8)
    compiled.backbone.network = Forgetful()
    compiled.backbone.compile_network()
    batches = [pictures(8), pictures(3)]
    for a, b in zip(plain.embed(batches), compiled.embed(batches), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6)
    assert set(shapes) == {(8, 3, 4, 4)}
