"""docs/faults.md, held to the code: every fault of its tables is made, and ends as its row says.

A fault is a generator: it yields the result of each command that meets the fault, and checks what
is kept, and what the next run makes of it.
"""

import gzip
import inspect
import os
import pickle
import re
import resource
import shutil
import signal
import subprocess
import sys
import tarfile
from contextlib import closing, contextmanager
from pathlib import Path
from typing import NamedTuple

import dask.config
import distributed  # noqa: F401 - dask.config.set would take its defaults away
import pyarrow.parquet as pq
import pytest
import typer
import zarr
from PIL import Image
from s3fs import S3FileSystem
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from askance import doctor, export, hub, published, score, verify
from askance.features.store import FORMAT, FeatureStore
from askance.features.writer import StoreWriter
from askance.pipeline import retries
from askance.pipeline.artifacts import listing, place
from askance.stages import extract, prepare, probe, retrieve, train

PAGE = Path(__file__).parents[1] / "docs" / "faults.md"
FAULTS = {}
HALF = ["00000", "00001"]  # the blocks of four that are finished when the third one fails
CHUNK = "embedding/c/1/0/0"

app = typer.Typer()
for module in (prepare, extract, probe, retrieve, train, verify, doctor, score, export):
    app.command(module.__name__.rpartition(".")[2])(module.main)
app.command("release")(hub.release)
app.command("import-head")(published.COMMANDS["import-head"])


class Row(NamedTuple):
    code: int
    quotes: list[str]  # of the message, in its order


class Result(NamedTuple):
    code: int
    said: str
    exception: BaseException | None = None


def page():
    """Return the rows of the page's tables, by the name of the fault."""
    lines = [line for line in PAGE.read_text().splitlines() if re.match(r"\|.*\| \d+ \|", line)]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return {name: Row(int(code), re.findall("`(.+?)`", read)) for name, code, read, _ in cells}


def fault(name):
    """Register a generator as the maker of a row's fault."""

    def register(make):
        assert name not in FAULTS
        FAULTS[name] = make
        return make

    return register


def content(folder):
    return {name: (folder / name).read_bytes() for name in listing(folder)}


def finished(store):
    return sorted(record.stem for record in (store / "status" / "blocks").glob("*.json"))


def ask(*words):
    """Run a command in this process."""
    result = CliRunner().invoke(app, [str(word) for word in words])
    return Result(result.exit_code, result.output, result.exception)


class Lab:
    """A prepared set of 25 images in shards of 10, and the commands on it."""

    def __init__(self, folder, make_set, weights):
        self.folder, self.shards, self.out = folder, folder / "shards", folder / "a.zarr"
        self.data, self.weights = make_set(folder), weights

    def words(self, *more, out=None, data=None, **options):
        """Return the words of a command that extracts in blocks of 8."""
        defaults = {"backbone": "test_vit", "weights": self.weights, "size": 32, "block": 8}
        defaults |= {"batch": 8, "dtype": "float32", "device": "cpu", "views": "plain"}
        pairs = [(f"--{name}", value) for name, value in (defaults | options).items()]
        chosen = [word for pair in pairs for word in pair]
        return ["extract", data or self.data, out or self.out, *chosen, *more]

    def extract(self, *more, **options):
        return ask(*self.words(*more, **options))

    def unbroken(self):
        """Return the content of the store that an unbroken run writes."""
        out = self.folder / "unbroken" / "a.zarr"
        assert self.extract(out=out).code == 0
        return content(out)

    def goes_on(self):
        """Check that the next run goes on, to the bytes of an unbroken one."""
        code, said, _ = self.extract()
        assert (code, f"{self.out}: continuing" in said) == (0, True)
        assert content(self.out) == self.unbroken()

    def refused_to_prepare(self, source):
        """Prepare another set in the place of the one that is there, which must stay."""
        before = content(self.folder)
        yield ask("prepare", self.data, "--source", f"shards path={source}")
        assert content(self.folder) == before

    def refused_to_begin(self, *more, **options):
        """Extract what must be refused before anything is written."""
        before = content(self.folder)
        yield self.extract(*more, **options)
        assert content(self.folder) == before


@pytest.fixture
def lab(tmp_path, make_set, checkpoint):
    return Lab(tmp_path, make_set, checkpoint(img_size=32))


@contextmanager
def at_third_block(act):
    """Have something done, once, when two blocks of four are written."""
    write = StoreWriter.write

    def acting(self, block, *rest):
        if block.number == 2:
            patch.undo()
            act()
        write(self, block, *rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(StoreWriter, "write", acting)
        yield


# prepare


def cut(within):
    def make(lab):
        shard = lab.shards / "s1.tar"
        with tarfile.open(shard) as tar:
            member = tar.getmembers()[4]
        os.truncate(shard, member.offset_data + 100 if within else member.offset)
        yield from lab.refused_to_prepare(shard)

    return make


fault("shard cut between two members")(cut(within=False))
fault("shard cut within a member")(cut(within=True))


def member(name, kind=tarfile.REGTYPE):
    def make(lab, write_tar):
        entry = tarfile.TarInfo(name)
        entry.type, entry.linkname = kind, "/etc/passwd"
        shard = write_tar(lab.folder / "x.tar", {"a.png": b"1", "a.cls": b"1", entry: b""})
        yield from lab.refused_to_prepare(shard)

    return make


fault("member that leaves its folder")(member("../x.png"))
fault("member that is a link")(member("x.png", tarfile.SYMTYPE))
fault("member that is a device")(member("x.png", tarfile.CHRTYPE))
fault("member that is a pickle")(member("x.pkl"))


@fault("gzip under the name of a tar")
def _(lab):
    shard = lab.shards / "s1.tar"
    shard.write_bytes(gzip.compress(shard.read_bytes()))
    yield from lab.refused_to_prepare(shard)


fault("source that is a command")(
    lambda lab: lab.refused_to_prepare(f"'pipe:touch {lab.folder}/hacked'")
)


@fault("source with credentials in its URL")
def _(lab):
    for result in lab.refused_to_prepare("s3://key:PLANTED-SECRET@bucket/x.tar"):
        assert "PLANTED" not in result.said
        yield result


@fault("two samples with one key")
def _(lab, write_shard):
    one, other = (write_shard(lab.folder / name, ("k", 1)) for name in ("x.tar", "y.tar"))
    yield from lab.refused_to_prepare(f"{{{one},{other}}}")


fault("sample without a label")(
    lambda lab, write_tar: lab.refused_to_prepare(write_tar(lab.folder / "x.tar", {"a.png": b"1"}))
)
fault("source that matches nothing")(
    lambda lab: lab.refused_to_prepare(lab.folder / "nothing-*.tar")
)


@fault("web server without byte ranges")
def _(lab, http_server):
    http_server.ranges = False
    (http_server.folder / "x.tar").write_bytes((lab.shards / "s1.tar").read_bytes())
    yield from lab.refused_to_prepare(f"{http_server.url}/x.tar")


# extract: before it begins


fault("no prepared set")(lambda lab: lab.refused_to_begin(data=lab.folder / "nothing"))
fault("unknown option")(lambda lab: lab.refused_to_begin("--rate", 1))
fault("unknown backbone")(lambda lab: lab.refused_to_begin(backbone="test_vitt"))
fault("weights that are not there")(
    lambda lab: lab.refused_to_begin(weights=lab.folder / "nothing.pth")
)
fault("weights of another architecture")(
    lambda lab, checkpoint: lab.refused_to_begin(weights=checkpoint("test_resnet"))
)


class Hostile:
    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


@fault("checkpoint with code in it")
def _(lab):
    weights = lab.folder / "x.pth"
    weights.write_bytes(pickle.dumps({"weight": Hostile(lab.folder / "hacked")}, protocol=2))
    yield from lab.refused_to_begin(weights=weights)
    assert not (lab.folder / "hacked").exists()


fault("device that is not there")(lambda lab: lab.refused_to_begin(device="cuda:99"))
fault("label outside the backbone's own classifier")(
    lambda lab, checkpoint: lab.refused_to_begin(
        classifier="own", weights=checkpoint(classes=2, img_size=32)
    )
)


@fault("something else in the store's place")
def _(lab):
    lab.out.mkdir()
    (lab.out / "thesis").write_text("1")
    yield lab.extract()
    assert content(lab.out) == {"thesis": b"1"}


# extract: images


def image(spoilt):
    def make(lab, make_set, encode):
        samples = {f"k{i}": (encode(i), i) for i in range(3)} | {"k1": (spoilt(encode), 1)}
        lab.data = make_set(lab.folder / "spoilt", samples)
        yield lab.extract()
        [refused] = pq.read_table(lab.out / "status" / "refused.parquet").to_pylist()
        assert (refused["row"], refused["key"]) == (1, "k1")
        assert refused["shard"].endswith("spoilt/shards/s0.tar")
        assert f"({refused['reason']})" in lab.extract().said
        assert FeatureStore.open(lab.out).keys == ["k0", "k2"]

    return make


fault("image that is damaged or cut")(image(lambda encode: encode(1)[:-40]))
fault("image that is something else")(image(lambda encode: b"this is no image"))
fault("image with too many pixels")(image(lambda encode: b"P6 30000 30000 255 "))
fault("image that is a strip")(image(lambda encode: encode(Image.new("RGB", (2000, 2)))))


def lose(lab):
    """Let a shard vanish; return where it is kept."""
    return (lab.shards / "s1.tar").rename(lab.folder / "kept")


@fault("fewer refused than `--refusals` allows")
def _(lab):
    lose(lab)
    assert lab.extract(refusals=0.39).code == 3
    yield lab.extract(refusals=0.4)
    assert FeatureStore.open(lab.out).rows.tolist() == [*range(10), *range(20, 25)]


@fault("shard that vanished after prepare")
def _(lab):
    lose(lab)
    yield lab.extract()
    yield lab.extract()
    assert FeatureStore.open(lab.out).rows.tolist() == [*range(10), *range(20, 25)]


@fault("the same once the shard is back, with `--retry`")
def _(lab):
    unbroken, kept = lab.unbroken(), lose(lab)
    assert lab.extract().code == 3
    kept.rename(lab.shards / "s1.tar")
    yield lab.extract("--retry")
    assert content(lab.out) == unbroken


@fault("shard cut after prepare")
def _(lab):
    unbroken, whole = lab.unbroken(), (lab.shards / "s1.tar").read_bytes()
    os.truncate(lab.shards / "s1.tar", 512 * 14)
    yield lab.extract()
    assert {f"k{i:03}" for i in (0, 10, 20)} < set(FeatureStore.open(lab.out).keys)
    (lab.shards / "s1.tar").write_bytes(whole)
    assert lab.extract("--retry").code == 0
    assert content(lab.out) == unbroken


@fault("shard exchanged for another after prepare")
def _(lab):
    (lab.shards / "s2.tar").replace(lab.shards / "s1.tar")
    yield lab.extract()
    assert FeatureStore.open(lab.out).rows.tolist() == list(range(10))


# extract: the run


@fault("embedding outside the range of float16")
def _(lab):
    state = load_file(lab.weights)
    state["norm.weight"] *= 1e6
    lab.weights = lab.folder / "large.safetensors"
    save_file(state, lab.weights)
    yield lab.extract(dtype="float16")
    assert finished(lab.out) == []
    assert lab.extract(dtype="float32").code == 0


@fault("disk full")
def _(lab):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        with at_third_block(lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (100, hard))):
            result = lab.extract()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    yield result
    assert finished(lab.out) == HALF
    lab.goes_on()


@fault("second extract to one store at the same time")
def _(lab):
    second = []
    with at_third_block(lambda: second.append(lab.extract())):
        assert lab.extract().code == 0
    yield second[0]
    assert content(lab.out) == lab.unbroken()


@fault("another parameter than the store was made with")
def _(lab):
    assert lab.extract().code == 0
    before = content(lab.out)
    yield lab.extract(seed=1)
    [aside] = lab.folder.glob("a.zarr.????????????")
    assert content(aside) == before
    assert f"taken back {aside.name}" in lab.extract().said
    assert content(lab.out) == before


DYING = """
import os, signal
from askance.__main__ import main
from askance.features import writer

write_sealed, sealed = writer.write_sealed, []

def dying(path, content):
    sealed.append(path)
    if len(sealed) == 4:  # the manifest, two blocks, and the third, whose arrays are written
        os.kill(os.getpid(), signal.SIGKILL)
    write_sealed(path, content)

writer.write_sealed = dying
main()
"""


@fault("killed (`kill -9`, no memory left)")
def _(lab):
    command = [sys.executable, "-c", DYING, *map(str, lab.words())]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert "askance:" not in done.stderr
    yield Result(128 - done.returncode, done.stdout)  # as a shell has it
    assert finished(lab.out) == HALF
    lab.goes_on()


@contextmanager
def interruptible():
    """Hear Ctrl-C, also in a job that was started deaf to it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def interrupt():
    os.kill(os.getpid(), signal.SIGINT)


@fault("Ctrl-C")
def _(lab):
    with interruptible(), at_third_block(interrupt):
        result = lab.extract()
    yield result
    assert finished(lab.out)[:2] == HALF
    lab.goes_on()


@fault("S3: store of another parameter at the URL")
def _(lab, s3):
    lab.out = place(f"{s3}/a.zarr")
    assert lab.extract().code == 0
    before = content(lab.out)
    yield lab.extract(seed=1)
    assert content(lab.out) == before


@fault("S3: something else at the URL")
def _(lab, s3):
    lab.out = place(f"{s3}/a.zarr")
    (lab.out / "thesis").write_bytes(b"1")
    yield lab.extract()
    assert content(lab.out) == {"thesis": b"1"}
    lab.out = place(f"{s3}/b.zarr")
    zarr.open_group(str(lab.out), mode="w").attrs["of"] = "another program"
    yield lab.extract()
    assert zarr.open_group(str(lab.out), mode="r").attrs["of"] == "another program"


@pytest.fixture
def outage(s3, flaky_s3, monkeypatch):
    """Return a function that begins an outage of S3; nobody waits long for its end."""
    monkeypatch.setattr(retries, "LONGEST", 0.01)
    monkeypatch.setattr(S3FileSystem, "retries", 1)
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    return flaky_s3.down


@fault("S3: outage")
def _(lab, s3, flaky_s3, outage):
    lab.out = place(f"{s3}/a.zarr")
    with at_third_block(outage):
        result = lab.extract()
    flaky_s3.up()
    yield result
    assert finished(lab.out) == HALF
    lab.goes_on()


@fault("S3: Ctrl-C during an outage")
def _(lab, s3, flaky_s3, outage):
    lab.out = place(f"{s3}/a.zarr")
    with interruptible(), at_third_block(lambda: (outage(), interrupt())):
        result = lab.extract()
    flaky_s3.up()
    yield result
    assert finished(lab.out) == HALF
    lab.goes_on()


@fault("S3: no credentials")
def _(lab, s3, monkeypatch):
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    data, lab.out = lab.folder / "remote", place(f"{s3}/a.zarr")
    for result in (ask("prepare", data, "--source", f"shards path={s3}/x.tar"), lab.extract()):
        assert os.environ["AWS_SECRET_ACCESS_KEY"] not in result.said
        yield result


@fault("nobody at the scheduler's address")
def _(lab):
    with dask.config.set({"distributed.comm.timeouts.connect": "1s"}):
        yield lab.extract(scheduler="tcp://127.0.0.1:1")
    assert finished(lab.out) == []
    lab.goes_on()


# verify, and what reads a store


def damaged(lab, damage):
    """Damage a finished store; return what was there."""
    assert lab.extract().code == 0
    before = content(lab.out)
    damage()
    return before


def flip(file):
    data = bytearray(file.read_bytes())
    data[77] ^= 4
    file.write_bytes(data)


def found(lab, damage, mended=True):
    """Have damage found that verify leaves as it is, and mends when it is asked to."""
    before = damaged(lab, damage)
    after = content(lab.out)
    yield ask("verify", lab.out)
    assert content(lab.out) == after
    ask("verify", lab.out, "--repair")
    assert content(lab.out) == (before if mended else after)


fault("bit that flipped")(lambda lab: found(lab, lambda: flip(lab.out / CHUNK)))
fault("file that is lost")(lambda lab: found(lab, (lab.out / CHUNK).unlink))
fault("file that does not belong there")(
    lambda lab: found(lab, lambda: (lab.out / "notes.txt").write_text("1"), mended=False)
)


@fault("any damage, with `--repair`")
def _(lab):
    before = damaged(lab, lambda: flip(lab.out / CHUNK))
    yield ask("verify", lab.out, "--repair")
    assert content(lab.out) == before
    assert ask("verify", lab.out).code == 0


def half(lab):
    """Let a run fail half way; return its store."""

    def fail():
        raise OSError

    with at_third_block(fail):
        assert lab.extract().code == 1
    assert finished(lab.out) == HALF
    return lab.out


@fault("verify of a store that is not finished")
def _(lab):
    yield ask("verify", half(lab))
    lab.goes_on()


@fault("probe, retrieve, train of a store that is not finished")
def _(lab):
    store, folder = half(lab), lab.folder
    before = content(folder)
    yield ask("probe", store, folder / "a.probe.zarr")
    yield ask("retrieve", store, folder / "a.parquet")
    heads = ["--heads", "norm", "--seeds", 0]
    yield ask("train", store, store, folder / "models", folder / "training", *heads)
    assert content(folder) == before
    lab.goes_on()


@fault("store that Zarr would read by unpickling it")
def _(lab):
    zarr.open_group(str(lab.out), mode="w", zarr_format=2).attrs["format"] = FORMAT
    yield ask("probe", lab.out, lab.folder / "a.probe.zarr")


@fault("machine that is not set up")
def _():
    yield ask("doctor", "--device", "cuda:99")


# What a run made


class Made:
    """A copy of a run, and the commands on it."""

    def __init__(self, folder, whole_run, weights):
        self.folder, self.out = folder, folder / "out"
        for name in ("models", "stores", "results"):
            shutil.copytree(whole_run / name, folder / name)
        (folder / "photos").mkdir()
        Image.new("RGB", (40, 30)).save(folder / "photos" / "a.png")
        self.head, self.weights = folder / "models" / "ranking-0.safetensors", weights

    def score(self, *more, photos="photos"):
        words = ("--out", self.folder / "s.parquet", "--model", self.folder, "--device", "cpu")
        return ask("score", self.folder / photos, *words, *more)

    def release(self, source=None, *more):
        return ask("release", source or self.folder, self.out, *more)

    def refused_to_release(self, *more):
        yield self.release(None, *more)
        assert not self.out.exists()

    def spoil(self, change):
        """Change the tensors of the head's file."""
        with safe_open(self.head, "pt") as file:
            about = file.metadata()
        tensors = load_file(self.head)
        change(tensors)
        save_file(tensors, self.head, about)


@pytest.fixture
def made(tmp_path, whole_run, checkpoint):
    return Made(tmp_path, whole_run, str(checkpoint(img_size=32)))


@fault("score: image that is damaged, or something else")
def _(made):
    (made.folder / "photos" / "b.jpg").write_text("not a picture")
    yield made.score()
    table = pq.read_table(made.folder / "s.parquet")
    assert table["uncertainty"].is_null().to_pylist() == [False, True]


@fault("score: nothing to score")
def _(made):
    (made.folder / "empty").mkdir()
    yield made.score(photos="empty")


@fault("head that is cut")
def _(made):
    made.head.write_bytes(made.head.read_bytes()[:-100])
    yield made.score()
    yield from made.refused_to_release()


@fault("head with NaN or infinity in it")
def _(made):
    made.spoil(lambda tensors: tensors["head.layers.0.bias"].fill_(float("nan")))
    yield made.score()
    yield from made.refused_to_release()


@fault("backbone with other weights")
def _(made, checkpoint):
    other = ("--weights", checkpoint(seed=1, img_size=32))
    yield made.score(*other)
    yield from made.refused_to_release(*other)


@fault("results of other heads in the run")
def _(made):
    made.spoil(lambda tensors: tensors["head.layers.0.bias"].add_(1))
    yield made.score()
    yield from made.refused_to_release()


@fault("released model whose tensors are others")
def _(made):
    assert made.release().code == 0
    (made.out / "model.safetensors").write_bytes(made.head.read_bytes())
    yield made.release(made.out)


@fault("release or pull into a folder with other files")
def _(made):
    made.out.mkdir()
    (made.out / "README.md").write_text("mine")
    yield made.release()
    assert content(made.out) == {"README.md": b"mine"}


@fault("original's checkpoint with code in it")
def _(made):
    path = made.folder / "best.pth.tar"
    path.write_bytes(pickle.dumps({"args": Hostile(made.folder / "hacked")}, protocol=2))
    yield ask("import-head", path, made.out, "--backbone", "test_vit")
    assert not (made.folder / "hacked").exists()


@fault("export without a file to write")
def _(made):
    yield ask("export", made.folder)


# The page


def test_the_page_names_the_faults_made_here_and_no_other():
    assert list(page()) == list(FAULTS)
    assert len(PAGE.read_text().splitlines()) < 100


def test_every_row_quotes_enough_of_its_message_to_tell_it_from_others():
    for name, row in page().items():
        assert sum(map(len, row.quotes)) >= 10 or row.code == 137, name


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_ends_as_its_row_says(name, request):
    make, row, judged = FAULTS[name], page()[name], 0
    fixtures = [request.getfixturevalue(word) for word in inspect.signature(make).parameters]
    with closing(make(*fixtures)) as results:
        for result in results:
            assert result.exception is None or isinstance(result.exception, SystemExit)
            assert result.code == row.code, result.said
            message = ".*".join(map(re.escape, row.quotes))
            assert re.search(message, result.said, re.DOTALL), result.said
            judged += 1
    assert judged
