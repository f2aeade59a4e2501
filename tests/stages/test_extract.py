"""extract on tiny shards with a tiny ViT: seeded views, refusals, resuming, and every bad input."""

import functools
import io
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from askance.features.embed import COMPUTATION
from askance.features.store import BLOCKS, FeatureStore
from askance.pipeline.command import TooManyRefusedError

MEAN_EMBEDDING = {2: 0.176655}


def content(path):
    files = [p for p in path.rglob("*") if p.is_file()]
    return {str(p.relative_to(path)): p.read_bytes() for p in files}


def test_a_store_holds_every_view_of_every_image(tmp_path, make_set, extract):
    store = FeatureStore.open(extract(make_set(tmp_path), tmp_path / "a.zarr"))
    assert store.read("embedding").shape == (25, 2, 64)
    assert np.isfinite(store.read("embedding")).all()
    assert store.keys == [f"k{i:03}" for i in range(25)]
    np.testing.assert_array_equal(store.labels, np.arange(25) % 3)
    assert store.content["backbone"] == "test_vit"
    assert len(store.content["weights"]) == 64


def test_the_embedding_is_timms_own(tmp_path, make_set, extract, checkpoint, encode):
    from safetensors.torch import load_file

    from askance.features import backbone

    store = FeatureStore.open(extract(make_set(tmp_path), tmp_path / "a.zarr"))
    timm, torch = backbone.timm, backbone.torch
    network = timm.create_model("test_vit", num_classes=3, img_size=32).eval()
    network.load_state_dict(load_file(checkpoint(img_size=32)))
    config = timm.data.resolve_model_data_config(network) | {"input_size": (3, 32, 32)}
    transform = timm.data.create_transform(**config, is_training=False)
    pictures = torch.stack([transform(Image.open(io.BytesIO(encode(i)))) for i in range(25)])
    with torch.inference_mode():
        expected = network.forward_head(network.forward_features(pictures), pre_logits=True)
    np.testing.assert_allclose(store.embedding("plain"), expected.numpy(), rtol=1e-4, atol=1e-5)


def test_a_finished_store_is_left_alone(tmp_path, make_set, extract, capsys):
    data = make_set(tmp_path)
    before = content(extract(data, tmp_path / "a.zarr"))
    capsys.readouterr()
    assert content(extract(data, tmp_path / "a.zarr")) == before
    assert "a.zarr: complete" in capsys.readouterr().out


@settings(max_examples=12)
@given(
    st.permutations(range(8)),
    st.integers(1, 8),
    st.integers(1, 9),
    st.integers(1, 9),
    st.integers(1, 3),
    st.integers(0, 3),
)
def test_a_row_depends_on_its_key_and_image_alone(
    make_set, extract, encode, order, per, batch, block, threads, stop
):
    """Not on the order or size of shards, batches, blocks, threads, or a stop after some blocks."""
    samples = {f"k{i}": (encode(i), 0) for i in range(8)}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        one = make_set(folder / "one", samples, per=8)
        other = make_set(folder / "other", {f"k{i}": samples[f"k{i}"] for i in order}, per=per)
        a = FeatureStore.open(extract(one, folder / "a.zarr", batch=16, block=8, threads=1))
        options = {"batch": batch, "block": block, "threads": threads}
        extract(other, folder / "b.zarr", **options)
        for record in sorted((folder / "b.zarr" / BLOCKS).iterdir())[stop:]:
            record.unlink()
        b = FeatureStore.open(extract(other, folder / "b.zarr", **options))
        x = a.read("embedding")[[a.keys.index(key) for key in b.keys]]
        # Another batch size rounds sums in another order: the contract's share is allowed.
        distance = np.linalg.norm(x - b.read("embedding"), axis=-1) / np.linalg.norm(x, axis=-1)
        assert distance.max() < 1e-5


def test_another_seed_changes_augmented_views_only(tmp_path, make_set, extract):
    data = make_set(tmp_path)
    a = FeatureStore.open(extract(data, tmp_path / "a.zarr", seed=0))
    b = FeatureStore.open(extract(data, tmp_path / "b.zarr", seed=1))
    np.testing.assert_array_equal(a.embedding("plain"), b.embedding("plain"))
    assert not np.isclose(a.embedding("augment"), b.embedding("augment")).all(axis=1).any()


def test_evaluation_stores_hold_the_crops_fraction(tmp_path, make_set, extract):
    store = FeatureStore.open(
        extract(make_set(tmp_path), tmp_path / "a.zarr", views=["plain", "crop"])
    )
    crop = store.read("crop")
    assert crop.dtype == np.float32
    assert ((crop >= 0.1) & (crop <= 0.75)).all()


def test_losses_of_the_own_classifier_are_cross_entropies(tmp_path, make_set, extract):
    import torch

    path = extract(make_set(tmp_path), tmp_path / "a.zarr", classifier="own", logits="full")
    store = FeatureStore.open(path)
    weight, bias = (store.array(f"classifier/{n}")[:] for n in ("weight", "bias"))
    logits = torch.from_numpy(store.read("embedding") @ weight.T + bias)
    label = torch.from_numpy(store.labels).long()[:, None].expand(-1, 2)
    loss = torch.nn.functional.cross_entropy(logits.permute(0, 2, 1), label, reduction="none")
    np.testing.assert_allclose(store.read("loss"), loss, rtol=1e-5)
    np.testing.assert_allclose(store.read("logsumexp"), logits.logsumexp(-1), rtol=1e-5)
    entropy = torch.distributions.Categorical(logits=logits).entropy()
    np.testing.assert_allclose(store.read("entropy"), entropy, rtol=1e-4)
    np.testing.assert_allclose(store.read("logits"), logits.half(), rtol=1e-3)


def test_top_logits_are_the_largest_first(tmp_path, make_set, extract):
    full = FeatureStore.open(
        extract(make_set(tmp_path), tmp_path / "a.zarr", classifier="own", logits="full")
    )
    top = FeatureStore.open(
        extract(tmp_path / "set", tmp_path / "b.zarr", classifier="own", logits="top")
    )
    logits, index = full.read("logits"), top.read("logits_top_index")
    np.testing.assert_array_equal(
        np.take_along_axis(logits, index, axis=-1), top.read("logits_top")
    )
    assert (np.diff(top.read("logits_top"), axis=-1) <= 0).all()


def odd_samples(encode):
    rgb = Image.fromarray(np.random.default_rng(9).integers(256, size=(20, 24, 3)).astype(np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6
    return {
        "good": (encode(1), 0),
        "cut": (encode(2)[:-40], 1),
        "text": (b"this is no image", 2),
        "grey": (encode(rgb.convert("L")), 0),
        "cmyk": (encode(rgb.convert("CMYK"), "jpg"), 1),
        "deep": (encode(Image.fromarray(np.full((9, 9), 40_000, np.uint16))), 2),
        "film": (encode(rgb, "gif", save_all=True, append_images=[rgb.rotate(90)]), 0),
        "turned": (encode(rgb, "jpg", exif=exif), 1),
    }


def test_images_that_cannot_be_read_are_refused_and_no_other(tmp_path, make_set, extract, encode):
    data = make_set(tmp_path, odd_samples(encode))
    with pytest.raises(
        TooManyRefusedError, match=r"at most 0.00% of 8 images refused, got 2; the first: cut"
    ):
        extract(data, tmp_path / "a.zarr")
    refused = pq.read_table(tmp_path / "a.zarr" / "status" / "refused.parquet").to_pylist()
    assert [(r["key"], r["shard"].rpartition("/")[2]) for r in refused] == [
        ("cut", "s0.tar"),
        ("text", "s0.tar"),
    ]
    assert "damaged" in refused[0]["reason"]
    assert "something else" in refused[1]["reason"]
    store = FeatureStore.open(tmp_path / "a.zarr")
    assert store.keys == [
        "good",
        "grey",
        "cmyk",
        "deep",
        "film",
        "turned",
    ]
    extract(data, tmp_path / "b.zarr", refusals=0.25)  # a share that is allowed


def test_a_refused_row_does_not_change_the_others(tmp_path, make_set, extract, encode):
    samples = odd_samples(encode)
    mended = samples | {"cut": (encode(2), 1)}
    a = FeatureStore.open(
        extract(make_set(tmp_path / "a", samples), tmp_path / "a.zarr", refusals=1.0)
    )
    b = FeatureStore.open(
        extract(make_set(tmp_path / "b", mended), tmp_path / "b.zarr", refusals=1.0)
    )
    rows = np.isin(b.rows, a.rows)
    np.testing.assert_array_equal(a.read("embedding"), b.read("embedding")[rows])


def test_a_label_outside_the_classifier_stops_before_the_first_image(
    tmp_path, make_set, extract, encode
):
    data = make_set(tmp_path, {"a": (encode(1), 0), "b": (encode(2), 3)})
    with pytest.raises(
        ValueError, match="expected labels from 0 to 2 .*, got 0 to 3 .*upstream.classifier"
    ):
        extract(data, tmp_path / "a.zarr", classifier="own")
    assert not (tmp_path / "a.zarr").exists()


def test_a_backbone_without_classifier_has_no_losses_of_its_own(
    tmp_path, make_set, extract, checkpoint
):
    bare = str(checkpoint(classes=0, img_size=32))
    with pytest.raises(
        ValueError, match="expected a backbone with a linear classifier, got test_vit"
    ):
        extract(make_set(tmp_path), tmp_path / "a.zarr", classifier="own", weights=bare)


def test_a_shard_that_vanished_is_refused_and_then_retried(tmp_path, make_set, extract):
    """What is there is written; `retry` adds what came back, to the bytes of an unbroken run."""
    data, shard = make_set(tmp_path), tmp_path / "shards" / "s1.tar"
    whole = extract(data, tmp_path / "whole" / "a.zarr")
    shard.rename(tmp_path / "kept")
    reason = "got 10; the first: k010 of .*s1.tar .*No such file"
    with pytest.raises(TooManyRefusedError, match=reason):
        extract(data, tmp_path / "a.zarr")
    assert FeatureStore.open(tmp_path / "a.zarr").keys == [
        f"k{i:03}" for i in [*range(10), *range(20, 25)]
    ]
    (tmp_path / "kept").rename(shard)
    with pytest.raises(TooManyRefusedError, match="got 10"):
        extract(data, tmp_path / "a.zarr")
    extract(data, tmp_path / "a.zarr", retry=True)
    assert content(tmp_path / "a.zarr") == content(whole)


def test_a_shard_cut_after_it_was_indexed_loses_only_what_was_cut(tmp_path, make_set, extract):
    data, shard = make_set(tmp_path), tmp_path / "shards" / "s1.tar"
    os.truncate(shard, 512 * 14)
    with pytest.raises(TooManyRefusedError, match="which ends before: mend it"):
        extract(data, tmp_path / "a.zarr")
    assert "k010" in FeatureStore.open(tmp_path / "a.zarr").keys


def test_a_shard_exchanged_after_it_was_indexed_gives_no_wrong_image(tmp_path, make_set, extract):
    data = make_set(tmp_path)
    (tmp_path / "shards" / "s2.tar").replace(tmp_path / "shards" / "s1.tar")
    with pytest.raises(TooManyRefusedError, match="the shard changed, prepare the set again"):
        extract(data, tmp_path / "a.zarr")
    assert FeatureStore.open(tmp_path / "a.zarr").keys == [f"k{i:03}" for i in range(10)]


def start(data, out, weights, *options, **kwargs):
    command = [
        sys.executable,
        "-m",
        "askance.stages.extract",
        data,
        out,
        "--views",
        "plain",
        "--views",
        "augment",
        "--backbone",
        "test_vit",
        "--weights",
        weights,
        "--size",
        "32",
        "--block",
        "2",
        "--batch",
        "2",
        "--dtype",
        "float32",
        "--device",
        "cpu",
        *options,
    ]
    return subprocess.Popen(
        [str(c) for c in command],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **kwargs,
    )


def test_an_interrupted_run_goes_on_and_gives_the_same_bytes(
    tmp_path, make_set, extract, checkpoint
):
    """Ctrl-C to the real command; what SIGKILL does is in test_kills."""
    data, weights = make_set(tmp_path, n=240), checkpoint(img_size=32)
    out = tmp_path / "a" / "a.zarr"
    # A shell starts background jobs deaf to Ctrl-C, and children inherit that.
    hear = functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    process = start(data, out, weights, preexec_fn=hear)
    records = out / "status" / "blocks"
    deadline = time.monotonic() + 60
    while process.poll() is None and len(list(records.glob("*.json"))) < 3:
        assert time.monotonic() < deadline, "no block within a minute"
        time.sleep(0.005)
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 130, error
    done = len(list(records.glob("*.json")))
    assert 3 <= done < 120, "the run must be stopped half way"
    assert "interrupted; run the same command again: what is finished is kept" in error
    with pytest.raises(ValueError, match="not done"):
        FeatureStore.open(out)
    options = {"block": 2, "batch": 2, "weights": str(weights)}
    extract(data, out, **options)
    whole = extract(data, tmp_path / "b" / "a.zarr", **options)
    assert content(out) == content(whole)


def test_no_space_left_stops_with_a_mend_and_keeps_what_is_finished(tmp_path, make_set, checkpoint):
    """A real failing write: the process may not write files above 2 kB, chunks are larger."""
    import resource

    data, weights = make_set(tmp_path), checkpoint(img_size=32)

    def limit():
        resource.setrlimit(resource.RLIMIT_FSIZE, (2048, 2048))

    process = start(data, tmp_path / "a.zarr", weights, "--block", "25", preexec_fn=limit)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "free some space and run again: what is finished is kept" in error


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"backbone": "test_vitt"}, "expected a timm model, got 'test_vitt'; near it: test_vit"),
        (
            {"weights": "/nothing.pth"},
            "expected a checkpoint or 'pretrained' as weights, got /nothing.pth",
        ),
        ({"device": "cuda:7"}, "expected the device 'cuda:7', which was asked for"),
    ],
)
def test_what_is_not_there_is_named(tmp_path, make_set, extract, option, message):
    with pytest.raises((ValueError, OSError), match=message):
        extract(make_set(tmp_path), tmp_path / "a.zarr", **option)


def test_a_parameter_that_does_not_exist_is_wrong_usage(tmp_path):
    process = start("data", "out", "weights", "--learning-rate", "1")
    _, error = process.communicate(timeout=60)
    assert process.returncode == 2
    assert "No such option: --learning-rate" in error.replace("\n", " ")


def test_without_a_hub_the_message_says_what_to_do(tmp_path, make_set, extract, monkeypatch):
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(
        OSError, match=r"expected the weights of test_vit from the model hub.*extract.weights"
    ):
        extract(make_set(tmp_path), tmp_path / "a.zarr", weights="pretrained")


def test_a_pickled_checkpoint_runs_no_code(tmp_path, make_set, extract):
    import pickle

    class Hostile:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "hacked"),)

    (tmp_path / "bad.pth").write_bytes(pickle.dumps({"weight": Hostile()}))
    with pytest.raises(ValueError, match="expected a checkpoint that fits, got .*bad.pth"):
        extract(make_set(tmp_path), tmp_path / "a.zarr", weights=str(tmp_path / "bad.pth"))
    assert not (tmp_path / "hacked").exists()


def test_weights_of_another_architecture_are_refused(tmp_path, make_set, extract, checkpoint):
    other = str(checkpoint("test_resnet"))
    with pytest.raises(ValueError, match="expected a checkpoint that fits, got .*test_resnet"):
        extract(make_set(tmp_path), tmp_path / "a.zarr", weights=other)


def test_the_embedding_is_that_of_this_version(tmp_path, make_set, extract, checkpoint):
    """Pinned from a run of ours; where it changes, COMPUTATION must: old stores are continued."""
    from safetensors.torch import load_file, save_file

    state = load_file(checkpoint(img_size=32))
    for number, (name, tensor) in enumerate(sorted(state.items())):
        waves = np.sin(np.arange(tensor.numel()) * (0.37 + number / 100)) / 4
        state[name] = (tensor * 0).flatten().add(torch.from_numpy(waves)).view_as(tensor).float()
    save_file(state, tmp_path / "waves.safetensors")
    weights = str(tmp_path / "waves.safetensors")
    store = FeatureStore.open(extract(make_set(tmp_path), tmp_path / "a.zarr", weights=weights))
    found = np.abs(store.embedding("plain")).mean()
    np.testing.assert_allclose(found, MEAN_EMBEDDING[COMPUTATION], rtol=1e-4)


def test_published_preprocessing_is_imagenets_whatever_the_model(tmp_path, make_set, extract):
    data = make_set(tmp_path)
    own = FeatureStore.open(extract(data, tmp_path / "a.zarr")).content["preprocessing"]
    published = FeatureStore.open(
        extract(data, tmp_path / "b.zarr", preprocess="published")
    ).content["preprocessing"]
    assert own["mean"] == [0.5, 0.5, 0.5]
    assert own["crop"] == 0.95
    assert published["mean"] == [0.485, 0.456, 0.406]
    assert published["crop"] == 0.875


@pytest.mark.gpu
def test_a_gpu_gives_the_embeddings_of_the_cpu(tmp_path, make_set, extract):
    data = make_set(tmp_path)
    on_cpu = FeatureStore.open(extract(data, tmp_path / "a.zarr")).read("embedding")
    on_gpu = FeatureStore.open(extract(data, tmp_path / "b.zarr", device="cuda")).read("embedding")
    np.testing.assert_allclose(on_gpu, on_cpu, atol=2e-3 * np.abs(on_cpu).max())  # TF32 allowed
