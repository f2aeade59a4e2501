"""Where a result comes from: versions and machine."""

import os
import platform
from importlib.metadata import PackageNotFoundError, version

PACKAGES = ("askance", "torch", "timm", "numpy", "pillow", "zarr")


def versions() -> dict[str, str]:
    """Return the versions that can change a stored number, by package name."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:  # run from a clone without installing
            found[package] = "not installed"
    return found


def machine() -> str:
    """Describe the processor and the number of cores this process may use."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{_processor()}, {cores} cores"


def _processor() -> str:
    try:
        with open("/proc/cpuinfo") as file:  # noqa: PTH123 - no file of ours
            names = [line.partition(":")[2].strip() for line in file if "model name" in line]
    except OSError:
        names = []
    return names[0] if names else platform.processor() or platform.machine()
