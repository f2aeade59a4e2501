"""Doctor: each check where all is well and where it isn't, on fake packages, files and machines."""

import errno
import importlib
import json
import os
import shutil
import subprocess
import sys
from collections import namedtuple
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import typer
from typer.testing import CliRunner

import askance
from askance import doctor
from askance.doctor import machine, project, software
from askance.pipeline import vision, workspace

# The checks import these, where sys.path is a fake.
REGISTRY = importlib.import_module("fsspec.registry")  # fsspec.registry is a view of its content
importlib.import_module("packaging.requirements")
ROOT = Path(__file__).parents[1]
Disk = namedtuple("Disk", "total used free")
app = typer.Typer()
app.command()(doctor.main)


def levels(found):
    return [finding.level for finding in found]


def only(found):
    """Return the one finding as the line that is printed."""
    (finding,) = found
    return str(finding)


@pytest.fixture
def install(tmp_path, monkeypatch):
    """Return a function that makes a package, with its requirements, the next of the installed."""
    place = tmp_path / "site"
    place.mkdir()
    monkeypatch.setattr(sys, "path", [str(place)])

    def install(name, number, *requires, top="", extras=(), python=">=3.11"):
        folder = place / f"{name.replace('-', '_')}-{number}.dist-info"
        folder.mkdir()
        lines = [f"Name: {name}", f"Version: {number}", f"Requires-Python: {python}"]
        lines += [f"Requires-Dist: {line}" for line in requires]
        lines += [f"Provides-Extra: {extra}" for extra in extras]
        (folder / "METADATA").write_text("Metadata-Version: 2.1\n" + "\n".join(lines) + "\n")
        (folder / "top_level.txt").write_text(top)
        return place

    return install


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """Make the current folder a checkout with links and settings, in a git repository."""
    folder = tmp_path / "checkout"
    (folder / "askance").mkdir(parents=True)
    (folder / "askance" / "__init__.py").touch()
    for name in project.LINKS:
        (folder / name).mkdir()
        (folder / name / "__init__.py").touch()
        (folder / "askance" / name).symlink_to(Path("..", name))
    (folder / ".dvc" / "tmp").mkdir(parents=True)
    shutil.copy(ROOT / ".dvc" / "config", folder / ".dvc")
    monkeypatch.chdir(folder)
    git("init", "-q", "-b", "main")
    git("add", ".")
    git("-c", "user.name=a", "-c", "user.email=a@b", "commit", "-qm", "first")
    return folder


def git(*arguments):
    subprocess.run(["git", *arguments], check=True, capture_output=True)


@pytest.fixture
def system(tmp_path, monkeypatch):
    """Make /proc, the control groups and the signs of a GPU folders of the test's own."""
    monkeypatch.setattr(machine, "PROC", tmp_path / "proc")
    monkeypatch.setattr(machine, "CGROUP", tmp_path / "cgroup")
    monkeypatch.setattr(machine, "SHARED", tmp_path)
    monkeypatch.setattr(machine, "GPU_SIGNS", (tmp_path / "nvidia0", tmp_path / "driver"))
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    for variable in ("CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS", "OMP_WAIT_POLICY"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1, 2, 3}, raising=False)

    def write(**files):
        for name, text in files.items():
            path = tmp_path / name.replace("__", "/").replace("_max", ".max")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        return tmp_path

    return write


# The command


def test_this_machine_has_no_failure_and_no_torch_is_needed_for_help(monkeypatch):
    monkeypatch.chdir(ROOT)
    result = CliRunner().invoke(app, ["--device", "cpu"])
    assert result.exit_code == 0, result.output
    assert "FAIL" not in result.output
    assert len(result.output.splitlines()) >= len(doctor.checks("cpu", "stores"))
    code = (
        "import sys\nfrom askance.__main__ import app\n"
        "try: app(['doctor', '--help'])\nexcept SystemExit: print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, text=True, capture_output=True)
    assert done.stdout.splitlines()[-1] == "False"


@pytest.mark.parametrize(("level", "code"), [("ok", 0), ("warn", 0), ("FAIL", 1)])
def test_it_exits_with_1_where_a_line_says_fail(monkeypatch, level, code):
    lines = (doctor.Finding(level, "a", "b"), doctor.Finding("ok", "c"))
    monkeypatch.setattr(doctor, "checks", lambda device, store: (lambda: iter(lines),))
    result = CliRunner().invoke(app)
    assert (result.exit_code, result.output) == (code, f"{level:<5}a -> b\nok   c\n")


def test_an_exception_in_a_check_is_a_line_and_keeps_the_lines_before_it():
    def lame():
        yield doctor.Finding("ok", "fine")
        raise RuntimeError("two\nlines")

    first, second = map(str, doctor.findings(lame))
    assert first == "ok   fine"
    assert second.startswith("FAIL the check 'lame' ended in RuntimeError: two lines -> mend")


def test_no_value_of_a_credential_is_ever_printed(monkeypatch, checkout):
    secret = "s3cr3t-t0k3n"
    for name in (*project.CREDENTIALS, *project.ENDPOINTS, *project.PROFILES, "AWS_SESSION_TOKEN"):
        monkeypatch.setenv(name, secret)
    (checkout / ".dvc" / "config").write_text(f"{secret}\n[remote\nsecret_access_key = {secret}\n")
    result = CliRunner().invoke(app, ["--device", "cpu", "--store", "s3://bucket/a"])
    assert "AWS_SECRET_ACCESS_KEY" in result.output
    assert "MissingSectionHeaderError" in result.output
    assert secret not in result.output


# Software


def test_python_is_compared_with_the_metadata(install):
    assert only(software.python()).startswith("warn Python 3")  # nothing is installed
    install("askance", askance.__version__, python=">=3.11")
    assert levels(software.python()) == ["ok"]


def test_a_wrong_python_and_an_old_installation_are_told(install):
    install("askance", "0.0.1", python="<3")
    failed, warned = map(str, software.python())
    assert "FAIL expected Python <3, got 3." in failed
    assert f"warn the installation is of askance 0.0.1, the code of {askance.__version__}" in warned


def test_foreign_code_is_told(monkeypatch, checkout):
    assert "expected the code of the checkout" in only(software.code())
    monkeypatch.chdir(ROOT)
    assert only(software.code()) == f"ok   askance {askance.__version__} of {ROOT / 'askance'}"
    monkeypatch.chdir(ROOT.parent)
    assert "not in a checkout" in only(software.code())


def test_requirements_that_are_met_are_one_line(install):
    needs = ["a>=1", 'b>=2; extra == "x"', 'c>=1; extra == "y"', 'd; sys_platform == "none"']
    needs += [f'{name}; extra == "z"' for name in ("b", "e", "f")]  # too little of it is there
    install("askance", "1", *needs, extras=("x", "y", "z"))
    install("a", "1.2+cpu")
    install("b", "2.0")
    assert only(software.requirements()) == "ok   versions in range, of the extras x"


def test_missing_and_wrong_versions_fail_and_those_of_an_extra_warn(install):
    x = ['c>=1; extra == "x"', 'd>=1; extra == "x"']  # half of it is there
    install("askance", "1", "a>=2,<3", "b>=1", *x, extras=("x",))
    install("a", "3.0")
    install("c", "1.0")
    failed, warned = map(str, software.requirements())
    assert failed.startswith("FAIL expected a<3,>=2 (got 3.0), b>=1 (got none) -> ")
    assert failed.endswith("-m pip install 'a<3,>=2' 'b>=1'")
    assert warned.startswith("warn expected for x: d>=1 (got none) -> ")


def test_versions_are_compared_with_the_constraints(install, checkout):
    (checkout / "constraints.txt").write_text("# tested\na==1.0\nb==1.0\nnot-here==3\n")
    install("a", "1.0+cpu")
    install("b", "1.1")
    line = only(software.constraints())
    assert line.startswith("warn tested together were b==1.0 (got 1.1) -> ")
    (checkout / "constraints.txt").write_text("a==1.0\n")
    assert levels(software.constraints()) == ["ok"]


@pytest.mark.parametrize(
    ("torch_version", "fault", "expected"),
    [
        ("2.13.0", None, ["ok   torch 2.13.0, torchvision 0.28.0"]),
        ("2.13.0+cpu", "operators", ["ok   torch 2.13.0+cpu", "operators are absent"]),
        ("2.14.0", None, ["warn torch 2.14.0", "expects torch==2.13.0 (got 2.14.0)", "--upgrade"]),
        ("2.13.0", "import", ["FAIL torch 2.13.0", "no import, OSError: x", "--force-reinstall"]),
    ],
)
def test_torchvision_is_whole_healed_mismatched_or_broken(
    install, monkeypatch, torch_version, fault, expected
):
    def nms(*arguments):
        if fault == "operators":
            raise NotImplementedError

    def load():
        if fault == "import":
            raise OSError("x")
        return SimpleNamespace(ops=SimpleNamespace(nms=nms))

    install("torchvision", "0.28.0", "torch (==2.13.0)")
    install("torch", torch_version)
    monkeypatch.setattr(vision, "import_torchvision", load)
    line = only(software.vision())
    assert all(part in line for part in expected), line


def test_two_faiss_in_one_folder_fail_and_none_is_told(install):
    assert only(software.faiss()).startswith("warn no faiss")
    install("faiss-cpu", "1.15", top="faiss")
    install("faiss-gpu-cu12", "1.14", top="faiss")
    line = only(software.faiss())
    assert line.startswith("FAIL faiss-cpu and faiss-gpu-cu12 write the same folder -> ")
    assert "pip uninstall -y faiss-cpu faiss-gpu-cu12 && " in line
    assert line.endswith("pip install faiss-gpu")


def test_a_faiss_emptied_by_the_removal_of_another_fails(install, monkeypatch):
    place = install("faiss-cpu", "1.15", top="faiss")
    (place / "faiss").mkdir()
    monkeypatch.setitem(sys.modules, "faiss", None)  # so that the real one comes back afterwards
    del sys.modules["faiss"]
    assert "has lost its files" in only(software.faiss())


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        ({"StandardGpuResources": None, "get_num_gpus": lambda: 2}, "ok   faiss-gpu 1.15, GPUs: 2"),
        ({"StandardGpuResources": None, "get_num_gpus": lambda: 0}, "warn faiss-gpu 1.15 finds no"),
        ({}, "FAIL faiss-gpu 1.15 holds a build without GPU support"),
    ],
)
def test_a_faiss_made_for_gpus_must_find_them(install, monkeypatch, names, expected):
    install("faiss-gpu", "1.15", top="faiss")
    monkeypatch.setitem(sys.modules, "faiss", SimpleNamespace(knn=None, **names))
    assert only(software.faiss()).startswith(expected)


# The machine


def torch_like(count=0, cuda="13.0", major=9):
    """Return what doctor uses of a torch that sees `count` GPUs."""

    def ones(n, device):
        if device == "cpu" or (device.startswith("cuda") and int(device[5:] or 0) < count):
            return torch.ones(n)
        raise RuntimeError("no such device\nbelow it a long hint")

    card = SimpleNamespace(name="H200", total_memory=139 * 2**30, major=major)
    gpus = SimpleNamespace(
        is_available=lambda: count > 0,
        device_count=lambda: count,
        get_device_properties=lambda index: card,
    )
    return SimpleNamespace(ones=ones, cuda=gpus, version=SimpleNamespace(cuda=cuda, hip=None))


@pytest.mark.parametrize(
    ("device", "sign", "like", "hidden", "expected"),
    [
        ("auto", "", {}, None, "ok   device cpu (no GPU found)"),
        ("cpu", "nvidia0", {}, None, "ok   device cpu (asked for)"),
        ("auto", "nvidia0", {"count": 2}, None, "ok   device cuda of 0: H200, 139 GiB; 1: H200"),
        ("cuda:1", "", {"count": 2}, None, "ok   device cuda:1 of 0: H200"),
        ("auto", "nvidia0", {"cuda": None}, None, "(no such device) -> this torch is built with"),
        ("auto", "nvidia0", {}, "", "-> unset CUDA_VISIBLE_DEVICES"),
        ("auto", "driver", {}, None, "-> hand the GPU to this container"),
        ("auto", "nvidia0", {}, None, "-> install a driver for CUDA 13.0"),
        ("cuda", "", {}, None, "FAIL cuda was asked for: torch can't use it"),
        ("cuda:5", "", {"count": 2}, None, "-> choose from cuda:0 to cuda:1"),
        ("gpu", "", {}, None, "-> choose auto, cpu, cuda or cuda:<number>"),
    ],
)
def test_the_device_asked_for_is_compared_with_those_found(
    system, monkeypatch, device, sign, like, hidden, expected
):
    monkeypatch.setitem(sys.modules, "torch", torch_like(**like))
    if sign:
        system(**{sign: ""})
    if hidden is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", hidden)
    line = only(machine.gpu(device))
    assert expected in line
    assert line.startswith("FAIL") == ("->" in line)


def test_gpus_that_torch_leaves_out_and_old_ones_are_told(system, monkeypatch):
    program = (
        system(bin__nvidia_smi="")
        .joinpath("bin", "nvidia_smi")
        .rename(machine.PROC.parent / "bin" / "nvidia-smi")
    )
    card = "GPU {}: NVIDIA V100 (UUID: GPU-0)"
    program.write_text(f"#!/bin/sh\necho '{card.format(0)}'\necho '{card.format(1)}'\n")
    program.chmod(0o755)
    monkeypatch.setitem(sys.modules, "torch", torch_like(count=1, major=7))
    told, warned = map(str, machine.gpu("auto"))
    assert "of 2 in the system" in told
    assert warned.startswith("warn a GPU without bfloat16 units -> leave extract.precision=")
    monkeypatch.setitem(sys.modules, "torch", torch_like(count=0))
    assert "the system has NVIDIA V100, NVIDIA V100, but" in only(machine.gpu("auto"))


CGROUP1 = "4:cpuacct,cpu:/job\n5:memory:/job\n0::/\n"


@pytest.mark.parametrize(
    ("files", "usable"),
    [
        ({"proc__self__cgroup": "0::/job/step", "cgroup__job__cpu_max": "150000 100000"}, 1),
        ({"proc__self__cgroup": CGROUP1, "cgroup__cpu__job__cpu.cfs_quota_us": "200000"}, 2),
    ],
)
def test_a_quota_with_fewer_cores_than_threads_is_told(system, files, usable):
    system(**files)
    told, warned = map(str, machine.processor("cuda"))
    assert told.startswith("ok   4 cores")
    assert warned == f"warn 4 OpenMP threads for {usable} cores -> export OMP_NUM_THREADS={usable}"


@pytest.mark.parametrize("quota", ["cpu_max", "cpu__cpu.cfs_quota_us"])
def test_no_quota_is_no_finding(system, quota):
    system(
        proc__self__cgroup="4:cpu:/\n0::/",
        **{f"cgroup__{quota}": "max 1" if "max" in quota else "-1"},
    )
    assert levels(machine.processor("cuda")) == ["ok"]


def test_threads_that_spin_and_a_processor_without_bfloat16_are_told(system, monkeypatch):
    system(proc__cpuinfo="flags : fpu avx512_bf16 sse", proc__self__cgroup="0::/")
    assert levels(machine.processor("cpu")) == ["ok"]
    system(proc__cpuinfo="flags : fpu sse")
    monkeypatch.setenv("OMP_WAIT_POLICY", "active")
    _, spin, units = map(str, machine.processor("cpu"))
    assert spin.startswith("warn OpenMP threads that spin")
    assert units.startswith("warn a processor without bfloat16 units -> leave extract.precision=")
    assert "bfloat16" not in "".join(map(str, machine.processor("cuda")))


def test_little_memory_and_little_shared_memory_are_told(system, monkeypatch):
    monkeypatch.setattr(os, "sysconf", lambda name: 2**12 if "SIZE" in name else 2**22)
    system(proc__meminfo="MemAvailable: 8388608 kB", proc__self__cgroup="0::/job")
    assert only(machine.memory()) == "ok   8.0 GiB of memory free"
    system(cgroup__job__memory_max=str(2**30))
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Disk(0, 0, 2**20))
    memory, shared = map(str, machine.memory())
    assert memory.startswith("warn 1.0 GiB of memory free, the container's limit is 1.0 -> ")
    assert shared.startswith("warn 1 MiB free in")


def test_places_that_can_be_written_are_told_once_each(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ASKANCE_CACHE", "cache")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Disk(0, 0, 2**33))
    for store, places in [("stores", 3), ("s3://a/b", 3), ("elsewhere/far", 4)]:
        assert levels(machine.places(store)) == ["ok"] * places
    assert not list(tmp_path.iterdir())


def test_places_without_room_or_rights_are_told(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ASKANCE_CACHE", "cache")
    Path("data").touch()
    Path("stores").symlink_to("a-missing-disk")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Disk(0, 0, 2**29))
    data, stores, cache = map(str, machine.places("stores"))
    assert data.startswith("FAIL data can't be written: Not a directory -> ")
    assert stores.startswith("FAIL stores can't be written: No such file or directory -> ")
    expected = "warn cache: 0.5 GiB of disk free -> free some, or export ASKANCE_CACHE=<folder>"
    assert cache.startswith(expected)


def test_a_disk_without_room_for_more_files_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Disk(0, 0, 2**33))
    for free, files, level in [(9, 10**6, "warn"), (10**5, 10**6, "ok"), (0, 0, "ok")]:
        counted = SimpleNamespace(f_favail=free, f_files=files)
        monkeypatch.setattr(os, "statvfs", lambda path, counted=counted: counted)
        assert levels(machine.places(str(tmp_path)))[-1] == level

    def full(**where):
        raise OSError(errno.EDQUOT, "Disk quota exceeded")

    monkeypatch.setattr(machine.tempfile, "TemporaryFile", full)
    assert "can't be written: Disk quota exceeded" in str(next(machine.places("stores")))


def test_few_open_files_and_another_encoding_are_told(monkeypatch):
    monkeypatch.setattr(machine.resource, "getrlimit", lambda which: (1024, 4096))
    monkeypatch.setattr(machine.locale, "getpreferredencoding", lambda setlocale: "UTF-8")
    assert levels(machine.limits()) == ["ok", "ok"]
    monkeypatch.setattr(machine.resource, "getrlimit", lambda which: (256, 4096))
    monkeypatch.setattr(machine.locale, "getpreferredencoding", lambda setlocale: "latin-1")
    files, encoding = map(str, machine.limits())
    assert files == "warn at most 256 open files -> ulimit -n 4096"
    assert "latin-1" in encoding
    assert encoding.endswith("export PYTHONUTF8=1")


# The project


def test_the_links_are_those_of_the_guard_and_broken_ones_fail(checkout):
    assert project.LINKS == workspace.FOLDERS
    assert levels(project.links()) == ["ok"]
    Path("askance", "heads").unlink()
    Path("askance", "heads").write_text("../heads")  # what git writes without core.symlinks
    line = only(project.links())
    assert line.startswith(
        "FAIL expected links in askance/, got something else at askance/heads ->"
    )
    assert "git checkout -- askance/heads" in line
    Path("askance", "eval").unlink()
    shutil.copytree("eval", Path("askance", "eval"))  # what an archive without links holds
    assert "askance/heads, askance/eval" in only(project.links())


def test_a_folder_that_is_no_checkout_has_no_graph_to_check(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    checks = (project.links, project.graph, project.leftovers, software.constraints)
    assert [found for check in checks for found in check()] == []


def test_the_graph_needs_dvc_git_settings_and_python(install, checkout, monkeypatch):
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    dvc, settings = map(str, project.graph())
    assert dvc.startswith("FAIL no DVC")
    install("dvc", "3.67")
    assert settings.startswith("ok")
    (checkout / ".dvc" / "config").write_text("[core]\n    analytics = False\n")
    line = only(project.graph())
    assert line.startswith("FAIL expected core.autostage=true, core.check_update=false, parsing.b")
    assert line.endswith("&& dvc config parsing.list append")
    monkeypatch.setenv("PATH", str(checkout))
    git, _, python = map(str, project.graph())
    assert git.startswith("FAIL no git")
    assert python.startswith("warn stages start as 'python', which is not there -> export PATH=")


def test_files_without_their_repository_fail(install, checkout, monkeypatch):
    install("dvc", "3.67")
    shutil.rmtree(checkout / ".git")
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(checkout.parent))
    assert "FAIL git finds no repository here" in str(next(project.graph()))


def test_a_head_that_a_killed_experiment_left_detached_is_told(checkout):
    git("checkout", "-q", "--detach")
    assert list(project.leftovers()) == []  # as automatic checkouts are
    git("update-ref", "refs/exps/exec/EXEC_MERGE", "HEAD")
    assert only(project.leftovers()).startswith("warn HEAD is detached: 'dvc exp run' is running")
    git("switch", "-")
    assert list(project.leftovers()) == []


def test_locks_of_processes_that_run_no_dvc_are_told(checkout):
    gone = subprocess.Popen(["true"])
    gone.wait()
    dvc = [sys.executable, "-c", "input()", "dvc"]
    with (
        subprocess.Popen(dvc, stdin=subprocess.PIPE) as alive,
        subprocess.Popen(["cat"], stdin=subprocess.PIPE) as other,  # got the number of a dead one
    ):
        locks = {"read": {"a": [{"pid": gone.pid}, {"pid": alive.pid}]}}
        locks["write"] = {"b": {"pid": other.pid}}
        Path(".dvc/tmp/rwlock").write_text(json.dumps(locks))
        line = only(project.leftovers())
        Path(".dvc/tmp/rwlock").write_text(json.dumps({"write": {"a": {"pid": alive.pid}}}))
        assert list(project.leftovers()) == []
        alive.communicate(b"\n")
    dead = ", ".join(map(str, sorted([gone.pid, other.pid])))
    assert line.endswith(f"gone: {dead} -> if no dvc runs: rm .dvc/tmp/rwlock")
    Path(".dvc/tmp/rwlock").write_text('{"read": ')
    assert only(project.leftovers()).startswith("FAIL .dvc/tmp/rwlock is cut off")


@pytest.fixture
def nobody(tmp_path, monkeypatch):
    """Take all credentials away."""
    for name in (*project.CREDENTIALS, *project.ENDPOINTS, *project.PROFILES):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    return tmp_path


def test_credentials_are_told_by_name(nobody, monkeypatch):
    line = only(project.storage("stores"))
    assert line == "ok   S3: credentials none; endpoint AWS"
    missing, opens = map(str, project.storage("s3://bucket/a"))
    assert missing.startswith("warn S3: credentials none")
    assert opens.startswith("ok   s3:// can be opened")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "x")
    assert "FAIL of AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY only" in only(project.storage("a"))
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    (nobody / ".aws").mkdir()
    (nobody / ".aws" / "credentials").touch()
    monkeypatch.setenv("AWS_ENDPOINT_URL", "x")
    line = str(next(project.storage("s3://bucket/a")))
    assert line.startswith("ok   S3: credentials a file of profiles")
    assert line.endswith("endpoint AWS_ENDPOINT_URL")


def test_a_store_that_no_package_can_open_fails(nobody, install, monkeypatch):
    assert only(project.storage("stores")) == "ok   no s3fs, so no s3:// URLs"
    monkeypatch.setitem(sys.modules, "s3fs", None)
    monkeypatch.delitem(REGISTRY._registry, "s3", raising=False)
    line = only(project.storage("s3://bucket/a"))
    assert line.startswith("FAIL s3:// can't be opened: Install s3fs")
    assert line.endswith("pip install s3fs dvc-s3")
    _, line = map(str, project.storage("nonsense://a"))
    assert line.startswith("FAIL nonsense:// can't be opened")


def test_libraries_of_s3_that_do_not_fit_are_told(nobody, install):
    install("s3fs", "2026.1", "aiobotocore>=2")
    install("aiobotocore", "3.1", "botocore>=1.43,<1.44")
    install("botocore", "1.50")
    wrong, _ = map(str, project.storage("stores"))
    assert wrong.startswith("warn s3fs expects botocore<1.44,>=1.43 (got 1.50) -> ")
    assert wrong.endswith("pip install --upgrade s3fs dvc-s3")


def test_what_is_to_be_installed_has_the_ranges_of_askance(install):
    assert software.ours("a", "b") == ["a", "b"]
    install("askance", "1", "a<3,>=2", 'b>=1; extra == "x"', "c")
    assert software.ours("a", "b") == ["a<3,>=2", "b>=1"]
