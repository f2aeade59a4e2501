"""The servers fail as asked, and what s3fs, fsspec and zarr then do by themselves."""

import http.client
import subprocess
import sys
import time
from urllib.parse import urlsplit

import fsspec
import numpy as np
import pytest
import zarr
from aiohttp import ClientPayloadError, ServerDisconnectedError
from botocore.exceptions import ConnectionClosedError, EndpointConnectionError
from s3fs import S3FileSystem

from tests.servers import Request

CONTENT = bytes(range(250)) * 8


@pytest.fixture
def impatient(s3, monkeypatch):
    """Leave a failed request to s3fs; set before the first client is made, which reads it."""
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")  # by default 5
    monkeypatch.setattr(S3FileSystem, "retries", 2)  # by default 5


@pytest.fixture
def shard(s3):
    """Return the file system and path of an object of 2000 bytes."""
    system, path = fsspec.url_to_fs(f"{s3}/set/a.tar")
    system.pipe_file(path, CONTENT)
    return system, path


def test_objects_are_written_listed_and_read_by_range_with_the_environment_alone(shard, s3):
    system, path = shard
    assert system.ls(f"{s3}/set", detail=False) == [path]
    assert system.cat_file(path, start=5, end=9) == CONTENT[5:9]
    assert system.cat_file(path, start=1990, end=3000) == CONTENT[1990:]
    with pytest.raises(FileNotFoundError):
        system.cat_file(f"{path}.gz", start=0, end=4)


def test_a_store_written_here_is_read_by_another_process(s3):
    values = np.arange(32, dtype=np.float32).reshape(8, 4)
    group = zarr.open_group(f"{s3}/x.zarr", mode="w")
    group.create_array("embedding", data=values, chunks=(2, 4))
    code = f"import zarr; print(zarr.open_group('{s3}/x.zarr', mode='r')['embedding'][6, 1])"
    assert subprocess.check_output([sys.executable, "-c", code], text=True) == "25.0\n"
    assert [*zarr.open_group(f"{s3}/x.zarr", mode="r").array_keys()] == ["embedding"]


def test_every_test_has_an_empty_bucket_of_its_own(s3):
    assert not S3FileSystem._cache
    assert S3FileSystem().find(s3) == []


def test_one_fault_is_mended_by_s3fs_itself(flaky_s3, shard):
    system, path = shard
    for kind in ("error", "throttle", "limit", "drop", "cut"):
        flaky_s3.faults([kind])
        assert system.cat_file(path, start=10, end=1510) == CONTENT[10:1510]
        assert flaky_s3.injected == {kind: 1}
        assert [request.headers["range"] for request in flaky_s3.log] == ["bytes=10-1509"] * 2


@pytest.mark.parametrize(
    ("kind", "error", "message", "requests"),
    [
        # s3fs repeats a SlowDown and broken connections only,
        ("error", OSError, "internal error", 1),
        ("limit", OSError, "TooManyRequests", 1),
        ("throttle", OSError, "Errno 16. Please reduce", 2),
        ("cut", ClientPayloadError, "750 of 1500 bytes", 2),
        # these in two places, and aiohttp asks twice.
        ("drop", ConnectionClosedError, "closed before", 2 * 2 * 2),
    ],
)
def test_a_fault_that_stays_is_raised_after_as_many_requests(
    impatient, flaky_s3, shard, kind, error, message, requests
):
    system, path = shard
    flaky_s3.faults(rate=1.0, kinds=(kind,), only="GET")
    with pytest.raises(error, match=message):
        system.cat_file(path, start=10, end=1510)
    assert flaky_s3.injected == {kind: requests}


def test_a_cut_write_is_carried_out_and_a_dropped_one_is_not(s3, flaky_s3, moto):
    flaky_s3.faults(["cut", "drop"])
    for key in ("cut", "drop"):
        client = http.client.HTTPConnection(urlsplit(flaky_s3.url).netloc)
        client.request("PUT", f"/{s3[5:]}/{key}", CONTENT)
        with pytest.raises(http.client.RemoteDisconnected):
            client.getresponse()
        client.close()
    found = S3FileSystem(endpoint_url=moto).find(s3)
    assert found == [f"{s3[5:]}/cut"]


def test_uploads_in_chunks_and_in_parts_pass_the_proxy(s3, flaky_s3):
    client = http.client.HTTPConnection(urlsplit(flaky_s3.url).netloc)
    pieces = (CONTENT[start : start + 300] for start in range(0, 2000, 300))
    client.request("PUT", f"/{s3[5:]}/chunks", pieces, encode_chunked=True)
    assert client.getresponse().status == 200
    client.close()
    system = S3FileSystem()
    assert system.cat_file(f"{s3}/chunks") == CONTENT
    system.pipe_file(f"{s3}/parts", bytes(11 << 20), chunksize=5 << 20)
    assert system.info(f"{s3}/parts")["size"] == 11 << 20
    assert sum("partNumber=" in request.path for request in flaky_s3.log) == 3


def test_a_store_comes_out_whole_through_a_server_that_often_fails(s3, flaky_s3):
    values = np.random.default_rng(0).random((16, 4), np.float32)
    flaky_s3.faults(rate=0.3, seed=5, only="(PUT|GET) .*/c/")  # chunks: they come all at a time
    zarr.open_group(f"{s3}/x.zarr", mode="w").create_array("loss", data=values, chunks=(2, 4))
    np.testing.assert_array_equal(zarr.open_group(f"{s3}/x.zarr", mode="r")["loss"][:], values)
    assert flaky_s3.injected.keys() == {"error", "throttle", "cut", "drop"}


def test_an_outage_refuses_connections_until_it_ends(impatient, flaky_s3, shard):
    system, path = shard
    assert system.exists(path)
    flaky_s3.down()
    with pytest.raises(EndpointConnectionError):
        system.exists(path)
    flaky_s3.up()
    assert system.exists(path)


def test_a_stall_delays_the_answer(http_server):
    (http_server.folder / "x").write_bytes(CONTENT)
    http_server.faults(["stall"], seconds=0.2)
    start = time.monotonic()
    assert fsspec.filesystem("http").cat_file(f"{http_server.url}/x") == CONTENT
    assert time.monotonic() - start > 0.2


def test_faults_depend_on_what_is_asked_and_not_on_when(http_server):
    asked = [Request("GET", f"/{name}", {}) for name in "abcdefgh"] * 3

    def met(requests):
        http_server.faults(rate=0.5, seed=3, only="GET /[a-g]")
        for request in requests:
            http_server.meet(request)
        return sorted(http_server.log, key=str)

    assert met(asked) == met(asked[::-1])
    assert 3 < http_server.injected.total() < 18
    assert not [request for request in http_server.log if request.path == "/h" and request.fault]


def test_a_fault_that_is_none_is_refused(http_server):
    with pytest.raises(ValueError, match="expected faults of .* got .'tear'."):
        http_server.faults(["tear"])


def test_files_come_by_range_and_whole_from_a_server_that_knows_no_ranges(http_server):
    (http_server.folder / "a b").write_bytes(CONTENT)
    system, path = fsspec.url_to_fs(f"{http_server.url}/a%20b")
    for start, end in ((5, 9), (1990, 3000), (-7, None)):
        assert system.cat_file(path, start=start, end=end) == CONTENT[start:end]
    assert system.size(path) == 2000
    http_server.ranges = False
    assert system.cat_file(path, start=5, end=9) == CONTENT  # fsspec does not look
    with pytest.raises(FileNotFoundError):
        system.cat_file(f"{path}.gz")


@pytest.mark.parametrize(
    ("kind", "error", "requests"),
    [("cut", ClientPayloadError, 1), ("drop", ServerDisconnectedError, 2)],
)
def test_fsspec_repeats_nothing_over_http(http_server, kind, error, requests):
    (http_server.folder / "x").write_bytes(CONTENT)
    http_server.faults(rate=1.0, kinds=(kind,))
    with pytest.raises(error):
        fsspec.filesystem("http").cat_file(f"{http_server.url}/x", start=0, end=1000)
    assert http_server.injected == {kind: requests}
