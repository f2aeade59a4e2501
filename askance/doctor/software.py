"""Checks of what is installed: Python, our own code, and the packages around it."""

from importlib import import_module, metadata
from pathlib import Path
from platform import python_version

from askance import __version__
from askance.doctor.finding import Finding, Findings, in_checkout, pip, version

INSTALL = ("install", "-c", "constraints.txt", "-e", ".[cpu,demo]")
NO_GPU = "see the line on GPUs; on a machine without one take faiss-cpu"


def python() -> Findings:
    """Compare Python, and the metadata of the installation, with the code."""
    from packaging.specifiers import SpecifierSet

    running, installed = python_version(), version("askance")
    if not installed:
        what = f"Python {running}; askance is not installed, so its requirements are not known"
        yield Finding("warn", what, pip(*INSTALL))
        return
    wanted = metadata.metadata("askance")["Requires-Python"]
    if SpecifierSet(wanted).contains(running, prereleases=True):
        yield Finding("ok", f"Python {running}")
    else:
        mend = f"make another environment, with Python {wanted}"
        yield Finding("FAIL", f"expected Python {wanted}, got {running}", mend)
    if installed != __version__:
        what = f"the installation is of askance {installed}, the code of {__version__}"
        yield Finding("warn", what, pip(*INSTALL))


def code() -> Findings:
    """Say whose code runs."""
    from askance.pipeline.workspace import check_checkout

    try:
        check_checkout()
    except ValueError as error:
        what, _, mend = str(error).partition(": ")
        yield Finding("FAIL", what, mend)
        return
    unchecked = "" if in_checkout() else "; not in a checkout, so no links and no graph to check"
    yield Finding("ok", f"askance {__version__} of {Path(__file__).parents[1]}{unchecked}")


def requirements() -> Findings:
    """Compare versions with the ranges of askance, and of its extras that seem installed."""
    if not version("askance"):
        return  # `python` says so
    base, extras = unmet("askance"), _installed_extras()
    more = {k: v for extra in extras for k, v in unmet("askance", extra).items() if k not in base}
    if base:
        yield Finding("FAIL", f"expected {_told(base)}", pip("install", *base))
    if more:
        what = f"expected for {', '.join(extras)}: {_told(more)}"
        yield Finding("warn", what, pip("install", *more))
    if not base and not more:
        yield Finding("ok", f"versions in range, of the extras {', '.join(extras) or 'none'}")


def constraints() -> Findings:
    """List packages of another version than the one that was tested."""
    from packaging.requirements import Requirement

    file = Path("constraints.txt")
    if not in_checkout() or not file.is_file():
        return
    lines = [line.partition("#")[0].strip() for line in file.read_text().splitlines()]
    pins = [Requirement(line) for line in lines if line]
    other = {
        str(pin): found
        for pin in pins
        if (found := version(pin.name)) and not pin.specifier.contains(found, prereleases=True)
    }
    if other:
        yield Finding("warn", f"tested together were {_told(other)}", pip("install", *other))
    else:
        yield Finding("ok", "versions as in constraints.txt")


def vision() -> Findings:
    """Check that torch and torchvision belong together and can be imported."""
    from askance.pipeline.vision import import_torchvision

    pair = f"torch {version('torch')}, torchvision {version('torchvision')}"
    wanted = ours("torch", "torchvision")
    wrong = unmet("torchvision")
    if wrong:
        what = f"{pair}, which expects {_told(wrong)}"
        yield Finding("warn", what, pip("install", "--upgrade", *wanted))
    try:
        library = import_torchvision()
    except Exception as error:  # whatever a loader of shared libraries comes up with
        what = f"{pair}: no import, {type(error).__name__}: {error}"
        yield Finding("FAIL", what, pip("install", "--force-reinstall", *wanted))
        return
    import torch

    try:
        library.ops.nms(torch.zeros(1, 4), torch.zeros(1), 0.5)
    except (RuntimeError, NotImplementedError):
        pair += ", compiled for another build of torch: its operators are absent, and not needed"
    if not wrong:
        yield Finding("ok", pair)


def faiss() -> Findings:
    """Check that there is one faiss, whole, and that one made for GPUs finds them."""
    owners = sorted(set(metadata.packages_distributions().get("faiss", [])))
    if not owners:
        what = "no faiss, which approximate search needs; beside a CUDA GPU take faiss-gpu"
        yield Finding("warn", what, pip("install", *ours("faiss-cpu")))
        return
    wanted = "faiss-gpu" if any("gpu" in owner for owner in owners) else "faiss-cpu"
    again = f"{pip('uninstall', '-y', *owners)} && {pip('install', *ours(wanted))}"
    if len(owners) > 1:
        yield Finding("FAIL", f"{' and '.join(owners)} write the same folder", again)
        return
    library = import_module("faiss")
    told = f"{owners[0]} {version(owners[0])}"
    if not hasattr(library, "knn"):  # an empty folder is a package without names
        yield Finding("FAIL", f"{told} has lost its files to another faiss' removal", again)
    elif wanted == "faiss-cpu":
        yield Finding("ok", told)
    elif not hasattr(library, "StandardGpuResources"):
        yield Finding("FAIL", f"{told} holds a build without GPU support", again)
    elif library.get_num_gpus():
        yield Finding("ok", f"{told}, GPUs: {library.get_num_gpus()}")
    else:
        yield Finding("warn", f"{told} finds no GPU and searches on the processor", NO_GPU)


def unmet(package: str, extra: str = "") -> dict[str, str]:
    """Return the requirements of a package that are not met, and the versions in their place."""
    from packaging.requirements import Requirement

    wrong = {}
    for wanted in map(Requirement, metadata.requires(package) or ()):
        if wanted.marker is None or wanted.marker.evaluate({"extra": extra}):
            found = version(wanted.name)
            if not found or not wanted.specifier.contains(found, prereleases=True):
                wrong[f"{wanted.name}{wanted.specifier}"] = found or "none"
    return wrong


def ours(*names: str) -> list[str]:
    """Return askance's own requirements of these packages, the bare names where unknown."""
    from packaging.requirements import Requirement

    if not version("askance"):
        return list(names)
    known = map(Requirement, metadata.requires("askance") or ())
    return [f"{wanted.name}{wanted.specifier}" for wanted in known if wanted.name in names]


def _installed_extras() -> list[str]:
    """Return the extras of askance of which at least half is there."""
    from packaging.requirements import Requirement

    wanted = [Requirement(line) for line in metadata.requires("askance") or ()]
    found = []
    for extra in metadata.metadata("askance").get_all("Provides-Extra") or ():
        own = [r.name for r in wanted if r.marker and r.marker.evaluate({"extra": extra})]
        if own and 2 * sum(bool(version(name)) for name in own) >= len(own):
            found.append(extra)
    return found


def _told(wrong: dict[str, str]) -> str:
    return ", ".join(f"{wanted} (got {found})" for wanted, found in wrong.items())
