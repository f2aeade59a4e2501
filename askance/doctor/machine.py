"""Checks of the machine: GPU, processor, memory, disks and the limits of a process."""

import locale
import os
import re
import resource
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

from askance.doctor.finding import Finding, Findings, output, pip
from askance.doctor.software import ours

GIB = 2**30
LITTLE = 2 * GIB  # the default run holds 0.9 GiB of memory and writes 0.4 GiB
LITTLE_SHARED, FEW_INODES, FEW_FILES = 2**26, 10_000, 1024
PROC, CGROUP = Path("/proc"), Path("/sys/fs/cgroup")
SHARED = Path("/dev/shm")  # nosec B108  # only its size is asked
GPU_SIGNS = (Path("/dev/nvidia0"), Path("/proc/driver/nvidia/version"))
BFLOAT16 = {"avx512_bf16", "amx_bf16", "bf16"}  # flags of x86 and of Arm
FLOAT32 = "leave extract.precision=float32, the default: bfloat16 is slower here"


def gpu(device: str) -> Findings:
    """Compare the device that is asked for with what the system has and what torch can use."""
    import torch

    seen = [] if device == "cpu" else _gpus()
    automatic = "cuda" if seen or torch.cuda.is_available() else "cpu"
    wanted = automatic if device == "auto" else device
    try:
        (torch.ones(2, device=wanted) + 1).sum().item()  # a kernel really runs
    except (RuntimeError, AssertionError) as error:
        place = f"the system has {', '.join(seen)}, but" if seen else f"{device} was asked for:"
        reason = str(error).partition("\n")[0]
        yield Finding("FAIL", f"{place} torch can't use it ({reason})", _mend(torch, wanted))
        return
    if not wanted.startswith("cuda"):
        asked = "no GPU found" if device == "auto" else "asked for"
        yield Finding("ok", f"device {wanted} ({asked})")
        return
    cards = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
    names = [f"{i}: {c.name}, {c.total_memory / GIB:.0f} GiB" for i, c in enumerate(cards)]
    rest = f", of {len(seen)} in the system" if len(seen) > len(cards) else ""
    yield Finding("ok", f"device {wanted} of {'; '.join(names)}{rest} (a process uses one)")
    if torch.version.cuda and min(card.major for card in cards) < 8:
        yield Finding("warn", "a GPU without bfloat16 units", FLOAT32)


def _gpus() -> list[str]:
    """Return the names of NVIDIA's GPUs, or a file that tells of one, without asking torch."""
    listed = output("nvidia-smi", "-L") if shutil.which("nvidia-smi") else None
    names = re.findall(r"^GPU \d+: (.*?)(?: \(UUID|$)", listed or "", re.MULTILINE)
    return names or [str(sign) for sign in GPU_SIGNS if sign.exists()][:1]


def _mend(torch: Any, wanted: str) -> str:  # noqa: ANN401 - the module
    if not wanted.startswith("cuda"):
        return "choose auto, cpu, cuda or cuda:<number>"
    if count := torch.cuda.device_count():
        return f"choose from cuda:0 to cuda:{count - 1}, or install a torch made for this GPU"
    if not _gpus():
        return "run where a GPU is, or with --device cpu"
    if not (torch.version.cuda or torch.version.hip):
        again = pip("install", "--force-reinstall", *ours("torch", "torchvision"))
        return f"this torch is built without CUDA: {again}; or --device cpu"
    if os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1"):
        return "unset CUDA_VISIBLE_DEVICES, which hides every GPU, or --device cpu"
    if not (shutil.which("nvidia-smi") or GPU_SIGNS[0].exists()):
        return "hand the GPU to this container (docker run --gpus all ...), or --device cpu"
    return f"install a driver for CUDA {torch.version.cuda} (nvidia-smi tells what it has now)"


def processor(device: str) -> Findings:
    """Check cores, the threads that will share them, and bfloat16 units."""
    import torch

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    words = [*_limits("cpu", "cpu.max"), *_limits("cpu", "cpu.cfs_quota_us")]
    # Version 1 has the period in another file; runtimes leave it at 100,000 microseconds.
    quota = [int(w[0]) / int([*w, "100000"][1]) for w in words if w[0] not in ("max", "-1")]
    usable = max(1, int(min([cores or 1, *quota])))
    threads, policy = (os.environ.get(f"OMP_{name}") for name in ("NUM_THREADS", "WAIT_POLICY"))
    told = f"{cores} cores" + (f", a quota of {min(quota):g}" if quota else "")
    told += f"; OMP_NUM_THREADS {threads or 'unset'}, OMP_WAIT_POLICY {policy or 'unset'}"
    yield Finding("ok", told)
    started = int(threads.split(",")[0]) if threads else cores or 1
    if started > usable:
        what = f"{started} OpenMP threads for {usable} cores"
        yield Finding("warn", what, f"export OMP_NUM_THREADS={usable}")
    if (policy or "").upper() == "ACTIVE":
        yield Finding("warn", "OpenMP threads that spin slow others down", "unset OMP_WAIT_POLICY")
    on_processor = device == "cpu" or (device == "auto" and not torch.cuda.is_available())
    flags = set(_text(PROC / "cpuinfo").split())
    if on_processor and flags and not flags & BFLOAT16:
        yield Finding("warn", "a processor without bfloat16 units", FLOAT32)


def memory() -> Findings:
    """Check the memory that is free, the container's limit, and shared memory."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    free = re.search(r"MemAvailable:\s+(\d+)", _text(PROC / "meminfo"))
    words = _limits("memory", "memory.max", "memory.limit_in_bytes")
    limit = min([total, *(int(word[0]) for word in words if word[0] != "max")])
    usable = min(limit, int(free[1]) * 1024 if free else total)
    told = f"{usable / GIB:.1f} GiB of memory free"
    told += f", the container's limit is {limit / GIB:.1f}" if limit < total else ""
    if usable < LITTLE:
        mend = "end other programs, raise the limit, or lower extract.batch and extract.threads"
        yield Finding("warn", told, mend)
    else:
        yield Finding("ok", told)
    if SHARED.is_dir() and (shared := shutil.disk_usage(SHARED).free) < LITTLE_SHARED:
        mend = "in a container: docker run --shm-size=1g ...; elsewhere: empty it"
        yield Finding("warn", f"{shared / 2**20:.0f} MiB free in {SHARED}", mend)


def places(store: str) -> Findings:
    """Check that folders can be written, and have room for bytes and files."""
    from askance.features.packages import cache

    folders = [Path("data"), Path("stores"), cache()]
    if "://" not in store:
        folders.append(Path(store))
    for folder in dict.fromkeys(folders):
        yield _room(folder, "ASKANCE_CACHE" if folder == cache() else "")


def _room(folder: Path, variable: str) -> Finding:
    ground = folder.absolute()
    while not os.path.lexists(ground):  # a link to a missing disk is there, and fails below
        ground = ground.parent
    elsewhere = f"export {variable}=<folder>" if variable else f"make {folder} a link to a folder"
    mend = f"free some, or {elsewhere} on another disk"
    try:
        with tempfile.TemporaryFile(dir=ground) as file:
            file.write(b"room")
        free, system = shutil.disk_usage(ground).free, os.statvfs(ground)
    except OSError as error:
        rights = f"mend the rights or the mount of {ground}, or {elsewhere}"
        return Finding("FAIL", f"{folder} can't be written: {error.strerror}", rights)
    if free < LITTLE:
        return Finding("warn", f"{folder}: {free / GIB:.1f} GiB of disk free", mend)
    if system.f_files and system.f_favail < FEW_INODES:  # some file systems count none
        return Finding("warn", f"{folder}: room for {system.f_favail} more files only", mend)
    return Finding("ok", f"{folder}: {free / GIB:.0f} GiB of disk free")


def limits() -> Findings:
    """Check open files and the encoding of names and text."""
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if files < FEW_FILES:
        yield Finding("warn", f"at most {files} open files", "ulimit -n 4096")
    else:
        yield Finding("ok", f"at most {files} open files")
    found = {sys.getfilesystemencoding(), locale.getpreferredencoding(False)}
    if {name.lower().replace("-", "") for name in found} == {"utf8"}:
        yield Finding("ok", "names and text are UTF-8")
    else:
        yield Finding("warn", f"names and text are {' and '.join(found)}", "export PYTHONUTF8=1")


def _limits(controller: str, *names: str) -> list[list[str]]:
    """Return the words in the limit files of this process' control groups and all above them."""
    found = []
    for line in _text(PROC / "self" / "cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers == "" or controller in controllers.split(","):
            group = CGROUP / (controllers and controller) / path.lstrip("/")
            files = [folder / name for folder in (group, *group.parents) for name in names]
            found += [file.read_text().split() for file in files if file.is_file()]
    return found


def _text(path: Path) -> str:
    """Return a file of the system, "" where the system has none."""
    return path.read_text() if path.is_file() else ""
