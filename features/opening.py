"""The place of a store at the start of a run: whatever is there, the wanted store is afterwards.

Comes in: a place, and what tells the wanted store from others. Goes out: that store, continued,
taken back or begun, and a line on what was done.

No store is deleted because a parameter changed. On a local disk it is set aside under a name with
its fingerprint, and taken back when its parameters are wanted again. An object store can't rename,
nor begin a store all at once: there a run with other parameters is refused, and a start that was
cut short is begun again.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from askance.features.store import BLOCKS, MANIFEST, attributes
from askance.pipeline.artifacts import Place, atomic, listing, remove
from askance.pipeline.locks import only_writer


@contextmanager
def locked(path: Place) -> Iterator[None]:
    """Be the only writer of a store; on an object store that is up to the user.

    Raises:
        ValueError: another process is writing it.
    """
    if not isinstance(path, Path):
        yield
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with only_writer(path, path.with_name(f".{path.name}.lock")):
        yield


def continue_or_begin(
    path: Place, fingerprint: str, content: dict[str, Any], create: Callable[[Place], None]
) -> str:
    """Make the wanted store the one at `path`; return a line on that, or "" where it was there.

    Args:
        path: the store's place.
        fingerprint: of the wanted store.
        content: what that is the hash of: where another store is there, it says what changed.
        create: writes the wanted store, with no block done, to a place.

    Raises:
        ValueError: what is there is no store, a damaged one, or can't be set aside.
    """
    found = attributes(path)
    if found.get("fingerprint") != fingerprint:
        message = _set_aside(path, found, content) if listing(path) else ""
    elif (path / MANIFEST).exists():
        _sweep(path)
        return ""
    else:
        _check_cut_short(path)
        message = f"{path}: a start that was cut short is begun again"
    aside = _begin(path, fingerprint, create)
    if aside:
        return f"{message or path}; taken back {aside}"
    return message or f"{path}: new"


def _begin(path: Place, fingerprint: str, create: Callable[[Place], None]) -> str:
    """Take the wanted store back if it was set aside, else create it; return its name aside."""
    if not isinstance(path, Path):
        create(path)
        return ""
    for litter in path.parent.glob(f".{path.name}.*.partial"):  # of starts that were killed
        remove(litter)
    aside = _aside(path, fingerprint)
    if aside.exists():
        aside.rename(path)
        _sweep(path)
        return aside.name
    with atomic(path) as temporary:
        create(temporary)
    return ""


def _set_aside(path: Place, found: dict[str, Any], content: dict[str, Any]) -> str:
    """Set another store, with the attributes `found`, aside; return a line on that."""
    if "fingerprint" not in found:
        raise ValueError(f"expected a store or nothing, got something else at {path}: move it")
    changed = _changed(found.get("content", {}), content)
    if not isinstance(path, Path):
        raise ValueError(  # noqa: TRY004 - not a matter of types
            f"expected a new place or a store made with the same parameters, got {path}, where"
            f" {changed} changed: name another place (object stores can't set one aside)"
        )
    aside = _aside(path, str(found["fingerprint"]))
    path.rename(aside)
    return f"{path}: {changed} changed; the old store is set aside as {aside.name}"


def _changed(old: dict[str, Any], new: dict[str, Any]) -> str:
    names = sorted(name for name in {*old, *new} if old.get(name) != new.get(name))
    return ", ".join(names) or "its format"


def _aside(path: Path, fingerprint: str) -> Path:
    return path.with_name(f"{path.name}.{fingerprint[:12]}")


def _check_cut_short(path: Place) -> None:
    """Check that the wanted store, without its manifest, is a start cut short and nothing else."""
    if isinstance(path, Path) or any(file.startswith(BLOCKS) for file in listing(path)):
        raise ValueError(
            f"expected {MANIFEST} in {path}, got none: the store is damaged, run askance verify"
            " --repair"
        )


def _sweep(path: Place) -> None:
    """Remove what a killed writer left behind: half-written chunks under temporary names."""
    if isinstance(path, Path):
        for litter in path.rglob("*.partial"):
            remove(litter)
