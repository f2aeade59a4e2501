"""Shards and stores on S3, over real HTTP: the same bytes, whatever the server's temper."""

import os
import subprocess
import sys

import fsspec
import pytest
import typer

import askance
from askance.features.store import FeatureStore
from askance.pipeline import retries
from askance.pipeline.artifacts import place
from askance.stages.prepare import run as prepare

SECRETS = (b"PLANTED-SECRET-7f3a", b"PLANTED-KEY-2b9c")


def content(path):
    files = {str(p.relative_to(str(path))): p.read_bytes() for p in path.rglob("*") if p.is_file()}
    return {name: text for name, text in files.items() if name != "zarr.json"}


@pytest.fixture
def remote(tmp_path, make_set, s3):
    """Return a set whose shards lie in the bucket, and the same one on disk."""
    local = make_set(tmp_path / "local", n=25, per=7)
    for shard in (tmp_path / "local" / "shards").iterdir():
        place(f"{s3}/shards/{shard.name}").write_bytes(shard.read_bytes())
    prepare(tmp_path / "set", [f"shards path={s3}/shards/*.tar"])
    return tmp_path / "set", local


@pytest.fixture
def quick(monkeypatch):
    """Don't wait between attempts."""
    monkeypatch.setattr(retries, "LONGEST", 0.01)


def test_shards_and_store_on_s3_give_the_numbers_of_a_disk(tmp_path, remote, extract, s3):
    there, here = remote
    store = askance.open_store(str(extract(there, place(f"{s3}/stores/a.zarr"))))
    disk = FeatureStore.open(extract(here, tmp_path / "a.zarr"))
    assert store.keys == disk.keys
    assert (store.read("embedding") == disk.read("embedding")).all()


def test_a_store_on_s3_resumes_and_is_never_continued_with_other_parameters(
    tmp_path, remote, extract, s3, capsys, monkeypatch
):
    from askance.features.writer import StoreWriter

    data, out = remote[0], place(f"{s3}/a.zarr")
    whole = place(f"{s3}/whole.zarr")
    extract(data, whole)
    write, written = StoreWriter.write, []

    def interrupted(self, block, arrays, refused):
        if len(written) == 2:
            raise KeyboardInterrupt
        write(self, block, arrays, refused)
        written.append(block.number)

    monkeypatch.setattr(StoreWriter, "write", interrupted)
    with pytest.raises(KeyboardInterrupt):
        extract(data, out)
    monkeypatch.setattr(StoreWriter, "write", write)
    capsys.readouterr()
    extract(data, out)
    assert f"{out}: continuing" in capsys.readouterr().out
    assert content(out) == content(whole)
    with pytest.raises(ValueError, match="where seed changed: name another place"):
        extract(data, out, seed=1)
    assert content(out) == content(whole)


def test_a_creation_cut_short_on_s3_is_begun_again(remote, extract, s3):
    data, out, whole = remote[0], place(f"{s3}/a.zarr"), place(f"{s3}/whole.zarr")
    extract(data, whole)
    for name in ("zarr.json", "embedding/zarr.json"):
        (out / name).write_bytes((whole / name).read_bytes())
    extract(data, out)
    assert content(out) == content(whole)


@pytest.mark.usefixtures("quick")
def test_a_flaky_server_changes_nothing(tmp_path, remote, extract, s3, flaky_s3):
    from tests.servers import close_s3fs

    data, here = remote
    close_s3fs()
    flaky_s3.faults(rate=0.1, seed=3)
    out = extract(data, place(f"{s3}/a.zarr"))
    assert set(flaky_s3.injected) == {"error", "throttle", "cut", "drop"}
    flaky_s3.faults()
    store = FeatureStore.open(out)
    disk = FeatureStore.open(extract(here, tmp_path / "a.zarr"))
    assert (store.read("embedding") == disk.read("embedding")).all()


@pytest.mark.usefixtures("quick")
def test_an_outage_stops_the_run_and_keeps_what_is_finished(
    remote, extract, s3, flaky_s3, monkeypatch, capsys
):
    from askance.features import embed
    from askance.pipeline.command import command
    from tests.servers import close_s3fs

    data, out, render = remote[0], place(f"{s3}/a.zarr"), embed.render
    close_s3fs()

    def pull_the_plug(image, views, preprocessing, seed, key):
        if key == "k012":
            flaky_s3.down()
        return render(image, views, preprocessing, seed, key)

    monkeypatch.setattr(embed, "render", pull_the_plug)
    with pytest.raises(typer.Exit) as end:
        command(extract)(data, out)
    assert end.value.exit_code == 1
    assert "run the same command again: what is finished is kept" in capsys.readouterr().err
    monkeypatch.setattr(embed, "render", render)
    flaky_s3.up()
    close_s3fs()
    extract(data, out)
    assert len(FeatureStore.open(out).keys) == 25


def test_no_credential_is_ever_written(tmp_path, remote, checkpoint, s3):
    """Not into the store, not beside it, not on the screen; through the real command."""
    data, weights = remote[0], checkpoint(img_size=32)
    command = [sys.executable, "-m", "askance.stages.extract", data]
    options = ["--views", "plain", "--backbone", "test_vit", "--weights", weights, "--size", "32"]
    for out in (f"{s3}/a.zarr", tmp_path / "a.zarr"):
        done = subprocess.run(
            [*map(str, [*command, out, *options])], capture_output=True, check=True
        )
        assert not any(secret in done.stdout + done.stderr for secret in SECRETS)
    files = [p for root in (tmp_path, place(s3)) for p in root.rglob("*") if p.is_file()]
    assert len(files) > 30
    assert not [p for p in files for secret in SECRETS if secret in p.read_bytes()]
    assert os.environ["AWS_SECRET_ACCESS_KEY"].encode() in SECRETS


def test_credentials_in_a_url_are_refused_unseen(tmp_path, make_set):
    command = [sys.executable, "-m", "askance.stages.extract", make_set(tmp_path)]
    out = "s3://key:PLANTED-SECRET-7f3a@bucket/a.zarr"
    done = subprocess.run(
        [*map(str, command), out, "--views", "plain", "--backbone", "test_vit"],
        capture_output=True,
        text=True,
    )
    assert done.returncode in (1, 2)
    assert "they come from the environment" in " ".join(done.stderr.split())
    assert "PLANTED" not in done.stderr


def test_shards_over_http_give_the_numbers_of_a_disk(tmp_path, make_set, extract, http_server):
    here = make_set(tmp_path / "local", n=12, per=7)
    for shard in (tmp_path / "local" / "shards").iterdir():
        (http_server.folder / shard.name).write_bytes(shard.read_bytes())
    prepare(tmp_path / "set", [f"shards path={http_server.url}/s{{0..1}}.tar"])
    with fsspec.open(f"{http_server.url}/s0.tar") as file:
        assert file.read(3) == b"k00"
    there = FeatureStore.open(extract(tmp_path / "set", tmp_path / "there.zarr"))
    disk = FeatureStore.open(extract(here, tmp_path / "here.zarr"))
    assert (there.read("embedding") == disk.read("embedding")).all()
