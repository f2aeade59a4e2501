import hashlib
import io
import os
import tarfile

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # read by torch, at its import below

import numpy as np
import pytest
import torch
from hypothesis import settings
from PIL import Image

from askance.features.views import View

# Shared machines stall: a slow example is no failure.
settings.register_profile("patient", deadline=None)
settings.load_profile("patient")


def pytest_collection_modifyitems(items):
    """Start the longest files first, so that two processes end together."""
    items.sort(key=lambda item: "slow" not in item.keywords)


@pytest.fixture(scope="session")
def write_tar():
    """Return a function that writes {member, or its TarInfo: bytes} as a tar to a path."""

    def write(path, members):
        content = io.BytesIO()
        with tarfile.open(fileobj=content, mode="w") as tar:
            for name, data in members.items():
                entry = tarfile.TarInfo(name) if isinstance(name, str) else name
                entry.size = len(data)
                tar.addfile(entry, io.BytesIO(data))
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.getvalue())
        return path

    return write


@pytest.fixture(scope="session")
def encode():
    """Return a function that encodes a Pillow image, or random pixels made from a seed."""

    def encode(image=0, extension="png", size=(24, 20), **options):
        if isinstance(image, int):
            pixels = np.random.default_rng(image).integers(256, size=(*size[::-1], 3))
            image = Image.fromarray(pixels.astype(np.uint8))
        content = io.BytesIO()
        image.save(content, "jpeg" if extension == "jpg" else extension, **options)
        return content.getvalue()

    return encode


@pytest.fixture(scope="session")
def make_set(write_tar, encode):
    """Return a function that prepares a set: {key: (image bytes, label)}, in shards of `per`."""

    def make(folder, samples=None, per=10, n=25, classes=3):
        from askance.stages.prepare import run

        if samples is None:
            samples = {f"k{i:03}": (encode(i), i % classes) for i in range(n)}
        items = list(samples.items())
        for start in range(0, len(items), per):
            members = {}
            for key, (content, label) in items[start : start + per]:
                members |= {f"{key}.png": content, f"{key}.cls": str(label).encode()}
            write_tar(folder / "shards" / f"s{start // per}.tar", members)
        run(folder / "set", [f"shards 'path={folder}/shards/s*.tar'"])
        return folder / "set"

    return make


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory):
    """Return a function that writes fixed random weights of a tiny timm model with `classes`."""
    from safetensors.torch import save_file

    from askance.features import backbone  # mends torchvision before timm is imported

    def write(name="test_vit", classes=3, seed=0, **options):
        path = tmp_path_factory.mktemp("weights") / f"{name}-{classes}-{seed}.safetensors"
        torch.manual_seed(seed)
        network = backbone.timm.create_model(name, num_classes=classes, **options)
        save_file(network.state_dict(), path)
        return path

    return write


@pytest.fixture(scope="session")
def extract(checkpoint):
    """Return a function that runs the extract stage with a tiny ViT at 32 pixels."""
    weights = checkpoint(img_size=32)

    def extract(data, out, **options):
        from askance.stages.extract import run

        defaults = {
            "views": ["plain", "augment"],
            "backbone": "test_vit",
            "weights": str(weights),
            "size": 32,
            "block": 8,
            "batch": 8,
            "dtype": "float32",
            "device": "cpu",
        }
        options = defaults | options
        options["views"] = [View(view) for view in options["views"]]
        run(data, out, **options)
        return out

    return extract


@pytest.fixture(scope="session")
def whole_run(tmp_path_factory, make_set, extract):
    """Return the folder of a run: two heads of 40 images of 4 classes, measured on 20 of new ones.

    A test that changes it makes a copy.
    """
    from askance.stages import evaluate, probe, retrieve, train

    root = tmp_path_factory.mktemp("run")
    stores, losses = root / "stores", root / "stores" / "upstream.probe.zarr"
    for name, n, views in (("upstream", 40, ["plain"]), ("new", 20, ["plain", "crop"])):
        data = make_set(root / name, n=n, classes=4)
        extract(data, stores / f"{name}.zarr", views=views)
    probe.run(stores / "upstream.zarr", losses, folds=2, iterations=5)
    retrieve.run(stores / "new.zarr", root / "neighbours" / "new.parquet")
    options = {"heads": ["ranking", "norm"], "seeds": [0, 1], "steps": 4, "batch": 8, "width": 8}
    models, results = root / "models", root / "results"
    train.run(stores / "upstream.zarr", losses, models, results / "training", **options)
    evaluate.run(models, losses, stores, root / "neighbours", results, sets=["new"])
    return root


@pytest.fixture(scope="session")
def write_shard(write_tar):
    """Return a function that writes samples (key, label) as a shard, and returns its path."""

    def write(path, *samples):
        members = {}
        for key, label in samples:
            members |= {f"{key}.jpg": key.encode(), f"{key}.cls": str(label).encode()}
        return str(write_tar(path, members))

    return write


@pytest.fixture(scope="session")
def moto():
    """Return the URL of an S3 server on the loopback."""
    from tests.servers import s3_server

    with s3_server() as url:
        yield url


@pytest.fixture
def s3(moto, monkeypatch, request):
    """Return the s3:// URL of a new bucket; how to reach it is in the environment alone."""
    from tests.servers import ask, close_s3fs

    for name in list(os.environ):
        if name.startswith("AWS_") or name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_ENDPOINT_URL", moto)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "PLANTED-KEY-2b9c")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "PLANTED-SECRET-7f3a")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    for name in ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"):
        monkeypatch.setenv(name, os.devnull)
    bucket = f"test-{hashlib.sha256(request.node.nodeid.encode()).hexdigest()[:12]}"
    ask("PUT", f"{moto}/{bucket}")
    close_s3fs()  # file systems are kept by their arguments, and these say nothing of the server
    yield f"s3://{bucket}"
    close_s3fs()
    ask("POST", f"{moto}/moto-api/reset")


@pytest.fixture
def flaky_s3(s3, moto, monkeypatch):
    """Return the proxy that now stands before the bucket of `s3`: see `Server.faults`."""
    from tests.servers import Proxy

    with Proxy(moto) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
        yield proxy


@pytest.fixture
def http_server(tmp_path):
    """Return a server of the files in its `folder`, at its `url`: see `Server.faults`."""
    from tests.servers import Files

    (tmp_path / "www").mkdir()
    with Files(tmp_path / "www") as server:
        yield server
