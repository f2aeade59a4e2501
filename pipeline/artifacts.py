"""Files that are either whole or absent, and the hashes that name their content."""

import hashlib
import json
import math
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from upath import UPath

if TYPE_CHECKING:
    Place = Path | UPath  # a local path, or a URL of an object store
else:
    Place = Any  # typer knows no unions


def place(text: str) -> Place:
    """Return the place that a command line names: a path, or a URL.

    Raises:
        ValueError: a URL that may hold credentials, which would be written down with it.
    """
    if "://" not in text:
        return Path(text)
    if "@" in text.partition("://")[2].partition("/")[0] or "?" in text:
        raise ValueError(
            "expected a URL without credentials, got one with '@' in its host or a query: they come"
            " from the environment"
        )
    return UPath(text, use_listings_cache=False)  # another process may write there


@contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path` that takes its place if the block succeeds.

    Works for a file and for a folder. On any failure, an interrupt included, the temporary is
    removed and `path` stays as it was.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.partial")
    remove(temporary)
    try:
        yield temporary
        if temporary.is_dir():
            remove(path)
        temporary.replace(path)
    finally:
        remove(temporary)


def write_bytes(path: Place, content: bytes) -> None:
    """Write a file that is whole or absent; an object store's objects are so by themselves."""
    if not isinstance(path, Path):
        path.write_bytes(content)
        return
    with atomic(path) as temporary:
        temporary.write_bytes(content)


def remove(path: Place) -> None:
    """Remove a file, a link or a whole folder; nothing there is fine."""
    if not isinstance(path, Path):
        if path.exists():
            path.fs.rm(path.path, recursive=True)
    elif path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def listing(path: Place) -> dict[str, int]:
    """Return the files below a place, with their sizes in bytes: {relative name: size}."""
    if isinstance(path, Path):
        found = (file for file in path.rglob("*") if not file.is_dir())
        return {file.relative_to(path).as_posix(): file.lstat().st_size for file in found}
    # Not UPath's own: its `is_file` takes a server's failure for "no".
    path.fs.invalidate_cache()
    lead = len(path.path.rstrip("/")) + 1
    files = path.fs.find(path.path, detail=True)
    return {file[lead:]: int(about["size"]) for file, about in files.items()}


def write_json(path: Place, content: Any) -> None:  # noqa: ANN401 - whatever json can write
    """Write `content` as indented JSON, atomically; NaN is an error (JSON has none)."""
    write_bytes(path, (json.dumps(content, indent=1, allow_nan=False) + "\n").encode())


def defined(number: float) -> float | None:
    """Return a number as JSON can hold it: NaN, which is undefined, as None."""
    return None if math.isnan(number) else number


def read_json(path: Place) -> Any:  # noqa: ANN401 - the caller knows what it wrote
    """Read a JSON file."""
    return json.loads(path.read_text())


def write_sealed(path: Place, content: dict[str, Any]) -> None:
    """Write `content` as JSON with its own hash, so that no later change goes unnoticed."""
    write_json(path, content | {"seal": digest(content)})


def read_sealed(path: Place) -> dict[str, Any]:
    """Read what `write_sealed` wrote.

    Raises:
        ValueError: it was changed, by as little as a bit.
    """
    content = path.read_bytes()
    try:
        sealed = json.loads(content)
        seal = sealed.pop("seal")
        whole = (json.dumps(sealed | {"seal": seal}, indent=1) + "\n").encode() == content
    except (ValueError, AttributeError, KeyError, TypeError):
        whole = False
    if not whole or seal != digest(sealed):
        raise ValueError(f"expected {path} as it was written, got another content: it is damaged")
    return sealed


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digest(content: Any) -> str:  # noqa: ANN401 - whatever json can write
    """Return the SHA-256 of `content` written as canonical JSON: equal content, equal digest."""
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()
