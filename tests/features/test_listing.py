"""Listing: each image once, in order, under the key a user finds it by; and what is no image."""

import errno
import os
import tempfile
from pathlib import Path

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from s3fs import S3FileSystem

from askance.features import listing, reader
from askance.features.listing import list_images
from askance.features.reader import MAX_IMAGE, WHOLE, images
from askance.pipeline import retries
from askance.pipeline.artifacts import place


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(retries, "LONGEST", 0)
    return tmp_path


def write(*names):
    """Write files whose content is their name."""
    for name in names:
        path = Path(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode())


def keys(*paths, column=""):
    return list_images(paths, column)["key"].to_pylist()


def read(*paths, column=""):
    return dict(images([list_images(paths, column)]))


def test_a_folder_is_listed_at_any_depth_sorted_and_without_hidden_files(here):
    write("x/b.JPG", "x/a.png", "x/deep/er/c.tiff", "x/.d.png", "x/.git/e.png", "x/notes.txt")
    expected = ["x/a.png", "x/b.JPG", "x/deep/er/c.tiff"]
    assert keys("x") == keys("./x/") == expected
    assert read("x") == {key: key.encode() for key in expected}
    assert keys(".") == expected
    assert keys(str(here / "x")) == [str(here / key) for key in expected]


@settings(max_examples=20)
@given(st.sets(st.text("ab./", min_size=1, max_size=6).map(lambda x: f"{x}.png"), max_size=8))
def test_what_is_not_hidden_is_listed_once(names):
    """The oracle: pathlib's own walk, whatever the names."""
    with tempfile.TemporaryDirectory() as folder:
        for name in names:
            path = Path(f"{folder}/x/{name}")
            if ".." not in path.parts and not any(p.is_file() for p in path.parents):
                path.parent.mkdir(parents=True, exist_ok=True)
                path.is_dir() or path.write_bytes(b"")
        found = (path for path in Path(folder).rglob("*.png") if path.is_file())
        below = {path: path.relative_to(folder).parts for path in found}
        expected = {str(p) for p, parts in below.items() if not any(x[0] == "." for x in parts)}
        got = keys(folder) if expected else []
        assert set(got) == expected
        assert len(got) == len(expected)


def test_images_of_a_tar_need_no_label_and_are_read_out_of_it(here, write_tar):
    members = {"a/0.jpg": b"zero", "a/0.txt": b"text", "a/1.json": b"none", "b.png": b"last"}
    write_tar(here / "x" / "s.tar", members)
    expected = {"x/s.tar/a/0": b"zero", "x/s.tar/b": b"last"}
    assert read("x/s.tar") == read("x") == expected


def test_patterns_and_braces_stand_for_what_matches(here):
    write("1/a.png", "1/b.png", "2/a.png", "3/a.png", "odd{1,2}[x]/a.png")
    assert keys("{1,2}/a.png") == ["1/a.png", "2/a.png"]
    assert keys("?/a.png", "1/*.png") == ["1/a.png", "2/a.png", "3/a.png", "1/a.png", "1/b.png"]
    assert keys("[23]") == ["2/a.png", "3/a.png"]
    assert keys("odd{1,2}[x]") == ["odd{1,2}[x]/a.png"]


@pytest.mark.parametrize("kind", ["parquet", "csv"])
def test_a_table_names_images_from_its_own_folder(here, kind):
    write("x/a.png", "x/007.png")
    table = pa.table(
        {
            "note": [None, "x"],
            "key": ["007", "008"],
            "file": ["a.png", f"file://{here}/x/007.png"],
            "other": ["007.png", "a.png"],
        }
    )
    save = pq.write_table if kind == "parquet" else pa.csv.write_csv
    save(table, f"x/t.{kind}")
    assert read(f"x/t.{kind}") == {"007": b"x/a.png", "008": b"x/007.png"}
    assert read(f"x/t.{kind}", column="other") == {"007": b"x/007.png", "008": b"x/a.png"}
    save(table.select(["other"]), f"x/u.{kind}")
    assert keys(f"x/u.{kind}", column="other") == ["007.png", "a.png"]


def test_only_needed_columns_of_a_table_are_read(here, monkeypatch):
    pq.write_table(pa.table({"url": ["a.png"], "large": ["x"], "key": ["k"]}), "t.parquet")
    iterate, asked = pq.ParquetFile.iter_batches, []

    def spy(self, **options):
        asked.append(options["columns"])
        return iterate(self, **options)

    monkeypatch.setattr(pq.ParquetFile, "iter_batches", spy)
    assert keys("t.parquet") == ["k"]
    assert asked == [["url", "key"]]


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"link": ["a"]}, "expected the column url, path, file in t.parquet, got link: name it by"),
        ({"url": ["a", None]}, "every row of t.parquet, got none in row 2: leave such rows out"),
        ({"url": ["a", ""]}, "every row of t.parquet, got none in row 2"),
        ({"url": ["s3://u:SECRET@b/a"]}, "t.parquet: expected a URL without credentials"),
        ({"url": ["https://h/a?sig=SECRET"]}, "t.parquet: expected a URL without a query"),
        ({"url": ["ftp://h/a"]}, "t.parquet: expected a path, or a URL of abfs"),
    ],
)
def test_tables_that_will_not_do_are_told(here, columns, message):
    pq.write_table(pa.table(columns), "t.parquet")
    with pytest.raises(ValueError, match="expected") as error:
        list_images(["t.parquet"])
    assert message in str(error.value)
    assert "SECRET" not in str(error.value)


def test_a_store_without_a_reader_is_told_before_anything_is_read(here, monkeypatch):
    def missing(_):
        raise ImportError("Please install gcsfs")

    pq.write_table(pa.table({"url": ["gs://b/a"]}), "t.parquet")
    monkeypatch.setattr("fsspec.core.url_to_fs", missing)
    with pytest.raises(ValueError, match="t.parquet: expected a reader for gs://: Please install"):
        list_images(["t.parquet"])


@pytest.mark.parametrize("name", ["t.parquet", "t.csv"])
@pytest.mark.parametrize("content", [b"", b"\xff\xfe,a\n\xff\n", b"url,b\n1\n"])
def test_what_is_no_table_is_told(here, name, content):
    Path(name).write_bytes(content)
    with pytest.raises(ValueError, match=rf"expected a Parquet or .csv table in {name}, got"):
        list_images([name])


@pytest.mark.parametrize(
    ("path", "error", "message"),
    [
        ("none", FileNotFoundError, "expected images at none, got no such file: check the path"),
        ("x/*.jpg", ValueError, r"expected images at 'x/\*.jpg', got none: no file matches"),
        ("empty", ValueError, "expected images or tars .*.png.* in empty, got none"),
        ("empty.tar", ValueError, "expected images in empty.tar, got none"),
        ("text.tar", ValueError, "expected a whole, uncompressed tar, got .*text.tar"),
        ("x.tgz", ValueError, "expected a whole, uncompressed tar, got .*x.tgz"),
        ("two.tar", ValueError, "expected one image in the sample 'a' of two.tar, got .jpg, .png"),
        ("pipe:cat x", ValueError, "commands are never run"),
        ("s3://user:pw@b/x", ValueError, "expected a URL without credentials"),
        ("https://h/x.jpg?key=1", ValueError, "expected a URL without a query"),
        ("ftp://h/x.jpg", ValueError, "expected a path, or a URL of abfs"),
    ],
)
def test_what_can_not_be_listed_is_told(here, write_tar, path, error, message):
    write("x/a.txt", "text.tar", "x.tgz")
    Path("empty").mkdir()
    write_tar(here / "empty.tar", {"a.txt": b""})
    write_tar(here / "two.tar", {"a.jpg": b"", "a.png": b""})
    with pytest.raises(error, match=message):
        list_images([path])


def test_a_folder_that_may_not_be_read_stops_the_listing(here, monkeypatch):
    """Root may read all: the error is made where the system makes it."""
    write("x/a.png", "x/shut/b.png")
    scandir = os.scandir

    def refused(path):
        if str(path).endswith("shut"):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refused)
    with pytest.raises(PermissionError, match=r"Permission denied: '.*shut'"):
        list_images(["x"])


def test_the_version_tells_another_file_from_the_same_one(here, write_tar):
    write("x/a.png", "x/b.png")
    write_tar(here / "x" / "s.tar", {"c.png": b"c"})
    first = list_images(["x"])
    assert list_images(["x"]).equals(first)
    Path("x/b.png").write_bytes(b"other")
    os.utime("x/s.tar", (1, 1))
    changed = [a != b for a, b in zip(first["version"], list_images(["x"])["version"], strict=True)]
    assert changed == [False, True, True]


def test_rows_are_made_into_a_table_some_at_a_time(here, monkeypatch):
    write(*(f"x/{number}.png" for number in range(7)))
    whole = list_images(["x", "x/1.png"])
    monkeypatch.setattr(listing, "ROWS", 3)
    parts = list_images(["x", "x/1.png"])
    assert max(len(chunk) for chunk in parts["key"].chunks) == 3
    assert parts.equals(whole)


def test_a_name_in_no_encoding_is_shown_and_refused(here):
    Path("x").mkdir()
    Path(os.fsdecode(b"x/\xff.png")).write_bytes(b"")
    [(key, reason)] = read("x").items()
    assert key == r"x/\udcff.png"
    assert "No such file" in reason


def test_files_are_read_beside_tars_in_the_order_of_the_listing(here, write_tar):
    write("a.png", "b.png")
    write_tar(here / "s.tar", {f"{n}.png": bytes([n]) * n for n in range(1, 4)})
    expected = {"a.png": b"a.png", "s.tar/1": b"\1", "s.tar/2": b"\2\2", "s.tar/3": b"\3" * 3}
    table = list_images(["a.png", "s.tar", "b.png"])
    assert list(images([table])) == [*expected.items(), ("b.png", b"b.png")]
    assert table["offset"].to_pylist().count(WHOLE) == 2


def test_what_is_no_file_that_can_be_read_is_a_reason(here):
    write("gone.png", "folder.png/x", "large.png")
    os.mkfifo("pipe.png")
    Path("dangling.png").symlink_to("nowhere")
    Path("device.png").symlink_to("/dev/zero")
    os.truncate("large.png", 20 << 30)  # without taking any disk
    names = ["gone", "pipe", "dangling", "device", "large"]
    table = list_images(f"{name}.png" for name in names)
    Path("gone.png").unlink()
    reasons = dict(images([table]))
    assert "No such file" in reasons["gone.png"]
    assert reasons["pipe.png"] == "expected a file, got a folder or device"
    assert reasons["device.png"] == "expected a file, got a folder or device"
    assert "No such file" in reasons["dangling.png"]
    assert reasons["large.png"] == f"expected an image of at most {MAX_IMAGE:,} bytes, got more"


@pytest.mark.parametrize(
    ("number", "refused"), [(errno.EACCES, True), (errno.EIO, True), (errno.EMFILE, False)]
)
def test_a_file_s_own_error_refuses_it_and_a_lack_of_files_stops(
    here, monkeypatch, number, refused
):
    def fail(_):
        raise OSError(number, "as the system says")

    write("a.png")
    monkeypatch.setattr(reader, "_pread", fail)
    if refused:
        assert "expected a file that can be read, got" in read("a.png")["a.png"]
    else:
        with pytest.raises(OSError, match="as the system says"):
            read("a.png")


def test_a_zero_byte_in_a_path_is_a_reason(here):
    pq.write_table(pa.table({"path": ["a\0b.png"]}), "t.parquet")
    assert read("t.parquet") == {"a\0b.png": "expected a path, got embedded null byte"}


def test_images_on_the_web_are_read_and_what_fails_is_refused(here, http_server, write_tar):
    url, served = http_server.url, http_server.folder
    for name in ("a.png", "b"):
        (served / name).write_bytes(name.encode())
    (served / "empty.png").write_bytes(b"")
    write_tar(served / "s.tar", {"c.png": b"c"})
    dead = "http://127.0.0.1:9/x.png"  # nothing listens there
    urls = [f"{url}/a.png", f"{url}/none.png", dead, f"{url}/b", f"{url}/empty.png"]
    (here / "x").mkdir()
    pq.write_table(pa.table({"url": urls}), "x/t.parquet")
    pa.csv.write_csv(pa.table({"path": ["b", f"{url}/a.png"]}), served / "u.csv")
    assert read(f"{url}/u.csv") == {"b": b"b", f"{url}/a.png": b"a.png"}
    reasons = read("x/t.parquet", f"{url}/s.tar", f"{url}/a.png")
    assert reasons[urls[0]] == b"a.png"
    assert "FileNotFoundError" in reasons[urls[1]]
    assert "an answer about http://127.0.0.1:9/x.png, got ClientConnectorError 3" in reasons[dead]
    assert reasons[urls[3]] == b"b"
    assert reasons[urls[4]] == b""
    assert reasons[f"{url}/s.tar/c"] == b"c"


@pytest.mark.parametrize("path", ["/etc/hostname", "file:///etc/hostname"])
def test_a_table_on_the_web_may_not_name_files_of_this_machine(here, http_server, path):
    pa.csv.write_csv(pa.table({"path": [path]}), http_server.folder / "u.csv")
    with pytest.raises(ValueError, match=r"expected URLs, or paths below its own place, in http"):
        list_images([f"{http_server.url}/u.csv"])


@pytest.mark.parametrize("fault", ["error", "throttle", "cut", "drop"])
def test_a_web_server_that_fails_is_asked_again(here, http_server, fault):
    (http_server.folder / "a.png").write_bytes(b"a.png")
    table = list_images([f"{http_server.url}/a.png"])
    http_server.faults([fault, fault])
    assert dict(images([table])) == {f"{http_server.url}/a.png": b"a.png"}
    http_server.faults([fault] * 6)  # the client itself asks twice where a connection is dropped
    [(_, reason)] = images([table])
    assert reason.startswith("expected a file from the web, got ServerError: expected an answer")


def test_no_more_of_a_body_is_read_than_an_image_may_have(here, http_server, monkeypatch):
    monkeypatch.setattr(reader, "MAX_IMAGE", 1000)
    http_server.ranges = False
    stream, read_bytes = reader._stream, []

    def spy(file):
        read_bytes.append(stream(file))
        return read_bytes[-1]

    monkeypatch.setattr(reader, "_stream", spy)
    too_long = "expected an image of at most 1,000 bytes, got more"
    for size, expected in ((1000, bytes(1000)), (1001, too_long), (9000, too_long)):
        (http_server.folder / "a.png").write_bytes(bytes(size))
        [(_, got)] = images([list_images([f"{http_server.url}/a.png"])])
        assert got == expected
    assert [len(content) for content in read_bytes] == [1000, 1001, 1001]


def test_a_web_server_has_its_time_and_no_more(here, http_server, monkeypatch):
    (http_server.folder / "a.png").write_bytes(b"a.png")
    monkeypatch.setattr(reader, "SECONDS", 0.05)
    monkeypatch.setattr(retries, "ATTEMPTS", 1)
    http_server.faults(["stall"], seconds=0.2)
    [(_, reason)] = images([list_images([f"{http_server.url}/a.png"])])
    assert "TimeoutError" in reason


def test_an_object_store_is_listed_and_read(here, s3, write_tar):
    names = ["x/a.png", "x/deep/b.jpg", "x/.hidden/c.png", "x/notes.txt", "y.png", "z"]
    for name in names:
        place(f"{s3}/{name}").write_bytes(name.encode())
    place(f"{s3}/x/empty.png").write_bytes(b"")
    place(f"{s3}/x/s.tar").write_bytes(write_tar(here / "s.tar", {"k.png": b"k"}).read_bytes())
    pq.write_table(pa.table({"file": ["a.png", f"{s3}/none.png"]}), "t.parquet")
    place(f"{s3}/x/t.parquet").write_bytes(Path("t.parquet").read_bytes())
    found = read(f"{s3}/x/")
    expected = {
        "a.png": b"x/a.png",
        "deep/b.jpg": b"x/deep/b.jpg",
        "empty.png": b"",
        "s.tar/k": b"k",
    }
    assert found == {f"{s3}/x/{name}": content for name, content in expected.items()}
    assert read(f"{s3}/z", f"{s3}/?.png") == {f"{s3}/z": b"z", f"{s3}/y.png": b"y.png"}
    table = read(f"{s3}/x/t.parquet")
    assert table["a.png"] == b"x/a.png"
    assert table[f"{s3}/none.png"].startswith("expected a file that can be read, got FileNotFound")
    with pytest.raises(ValueError, match="expected images or tars .* in .*/nothing, got none"):
        list_images([f"{s3}/nothing"])


def test_an_object_store_that_goes_on_failing_stops_the_reading(here, s3, flaky_s3, monkeypatch):
    monkeypatch.setattr(S3FileSystem, "retries", 1)
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    place(f"{s3}/a.png").write_bytes(b"a.png")
    table = list_images([f"{s3}/a.png"])
    flaky_s3.faults(rate=1.0, kinds=("error",))
    with pytest.raises(OSError, match="expected an answer about .*/a.png, got"):
        list(images([table]))
