"""Data sets as their publishers' archives unpack: your copy, or one fetched into the cache."""

import shutil
import sys
import tarfile
import zipfile
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import ClassVar
from urllib.request import urlopen

from askance.features import packages
from askance.pipeline.artifacts import atomic
from askance.pipeline.artifacts import sha256 as hash_of
from askance.pipeline.progress import progress
from askance.pipeline.retries import patiently

TIMEOUT = 60.0  # seconds without an answer
CHUNK = 1 << 20


@dataclass(frozen=True)
class Published:
    """A data set in the folder `path`; without it, in the cache, into which it is fetched once.

    A set states its `name`, its `files` (addresses and their SHA-256, none where they can't be
    fetched), the folder `inside` their content that `path` names, and what that folder `holds`.
    """

    path: str = ""

    name: ClassVar[str]
    files: ClassVar[tuple[tuple[str, str], ...]] = ()
    inside: ClassVar[str] = ""
    holds: ClassVar[tuple[str, ...]] = ()

    @cached_property
    def _root(self) -> Path:
        if not self.path and not self.files:
            raise ValueError(
                f"expected path=FOLDER for {self.name}, got none: its publisher has no address to"
                " fetch it from"
            )
        root = Path(self.path).expanduser()
        if not self.path:
            root = unpacked(self.name, self.files) / self.inside
        for name in self.holds:
            if not (root / name).exists():
                raise ValueError(
                    f"expected {self.name} as its publisher packs it, got no {name!r} in {root}:"
                    f" give path= the folder that holds {', '.join(self.holds)}"
                )
        return root


def unpacked(name: str, files: tuple[tuple[str, str], ...]) -> Path:
    """Return the folder `name` of the cache with the content of files: (address, SHA-256).

    The files are kept in the cache's folder `archives/<name>`, where they may be put by hand, and
    are not needed any more once they are unpacked.

    Raises:
        OSError: a file could not be fetched.
        ValueError: a server gave another file.
    """
    folder = packages.cache() / name
    if folder.is_dir():
        return folder
    archives = packages.cache() / "archives" / name
    paths = [fetch(url, archives / url.rpartition("/")[2], sha256) for url, sha256 in files]
    with atomic(folder) as partial:
        partial.mkdir()
        for path in paths:
            print(f"unpacking {path} into {folder}", file=sys.stderr, flush=True)
            _unpack(path, partial)
    return folder


def fetch(url: str, path: Path, sha256: str) -> Path:
    """Return `path`, which holds the file at `url`; where it doesn't, the file is fetched.

    Raises:
        OSError: it could not be fetched.
        ValueError: the server gave another file than the one with this SHA-256.
    """
    if path.is_file():
        if hash_of(path) == sha256:
            return path
        print(f"{path} is damaged: its SHA-256 is not {sha256}", file=sys.stderr)
    print(f"fetching {url} to {path}", file=sys.stderr, flush=True)
    with atomic(path) as partial:
        try:
            patiently(url, _download, url, partial)
        except OSError as error:
            raise OSError(
                f"expected the file {url}, got {error.__cause__ or error}: check the network, or"
                f" put the file at {path}"
            ) from error
        if (got := hash_of(partial)) != sha256:
            raise ValueError(
                f"expected {url} with the SHA-256 {sha256}, got {got}: the server gives another"
                f" file, which is not used; put the right one at {path}"
            )
    return path


def _download(url: str, path: Path) -> None:
    # The addresses are constants of ours, and what comes is compared with its SHA-256.
    with urlopen(url, timeout=TIMEOUT) as answer, path.open("wb") as file:  # nosec B310
        size = int(answer.headers.get("Content-Length", 0))
        with progress("fetch", size, "bytes") as advance:
            while chunk := answer.read(CHUNK):
                file.write(chunk)
                advance(len(chunk))


def _unpack(archive: Path, folder: Path) -> None:
    """Unpack a tar or a zip, and the tars in a zip; any other file is copied as it is."""
    if archive.suffix == ".zip":
        with zipfile.ZipFile(archive) as file:
            file.extractall(folder)  # nosec B202  # zipfile drops `..` and roots from names
        for inner in sorted(folder.rglob("[!.]*.tar.gz")):
            _unpack(inner, inner.parent)
            inner.unlink()
    elif tarfile.is_tarfile(archive):
        with tarfile.open(archive) as file:
            file.extractall(folder, filter="data")
    else:
        shutil.copy(archive, folder)
