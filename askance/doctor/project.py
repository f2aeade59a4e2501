"""Checks of a checkout and of what its data flow through: links, DVC, git and object storage."""

import configparser
import json
import os
import shutil
import sys
from pathlib import Path

from askance.doctor.finding import Finding, Findings, Level, in_checkout, output, pip, version
from askance.doctor.software import INSTALL, ours, unmet

LINKS = ("pipeline", "features", "heads", "eval", "stages")  # workspace.FOLDERS, behind a link
SETTINGS = {
    "core.analytics": "false",
    "core.autostage": "true",
    "core.check_update": "false",
    "parsing.bool": "boolean_optional",  # the two without which the commands are other ones
    "parsing.list": "append",
}
PAIR = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")
CREDENTIALS = (*PAIR, "AWS_PROFILE", "AWS_WEB_IDENTITY_TOKEN_FILE", "FSSPEC_S3_KEY")
ENDPOINTS = ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "FSSPEC_S3_ENDPOINT_URL")
PROFILES = {"AWS_SHARED_CREDENTIALS_FILE": "credentials", "AWS_CONFIG_FILE": "config"}


def links() -> Findings:
    """Find links that git or a file system has turned into something else."""
    paths = [Path("askance", name) for name in LINKS if in_checkout()]
    broken = [str(p) for p in paths if not (p.is_symlink() and (p / "__init__.py").is_file())]
    if broken:
        what = f"expected links in askance/, got something else at {', '.join(broken)}"
        mend = f"git config core.symlinks true && git checkout -- {' '.join(broken)}"
        yield Finding("FAIL", what, f"{mend} (on a file system that has symbolic links)")
    elif paths:
        yield Finding("ok", "the five links in askance/ resolve")


def graph() -> Findings:
    """Check what `dvc repro` needs: DVC, git, the committed settings, and `python`."""
    if not in_checkout():
        return
    if not version("dvc"):
        yield Finding("FAIL", "no DVC, which runs the graph", pip(*INSTALL))
    if not shutil.which("git"):
        yield Finding("FAIL", "no git, which DVC needs", "install git with the system's packages")
    elif output("git", "rev-parse", "--git-dir") is None:
        mend = "clone the repository instead of copying its files"
        yield Finding("FAIL", "git finds no repository here", mend)
    settings = _settings()
    other = {k: v for k, v in SETTINGS.items() if settings.get(k) != v}
    if other:
        level: Level = "FAIL" if any(k.startswith("parsing") for k in other) else "warn"
        what = f"expected {', '.join(f'{k}={v}' for k, v in other.items())} in .dvc/config"
        yield Finding(level, what, " && ".join(f"dvc config {k} {v}" for k, v in other.items()))
    else:
        yield Finding("ok", "the graph's settings are in .dvc/config")
    found, own = shutil.which("python"), Path(sys.executable).parent
    if not found or Path(found).parent != own:
        what = f"stages start as 'python', which is {found or 'not there'}"
        yield Finding("warn", what, f"export PATH={own}:$PATH")


def _settings() -> dict[str, str]:
    parser = configparser.ConfigParser(interpolation=None, strict=False)
    try:
        parser.read(".dvc/config")
    except configparser.Error as error:  # its text would quote the file, secrets and all
        raise ValueError(f"expected sections in .dvc/config: {type(error).__name__}") from None
    return {f"{s}.{k}": v.lower() for s in parser.sections() for k, v in parser.items(s)}


def leftovers() -> Findings:
    """Find what a killed DVC left behind: a detached HEAD, and locks."""
    if not in_checkout():
        return
    detached = output("git", "symbolic-ref", "-q", "HEAD") is None
    merge = output("git", "rev-parse", "-q", "--verify", "refs/exps/exec/EXEC_MERGE")
    if detached and merge:
        what = "HEAD is detached: 'dvc exp run' is running, or was killed"
        yield Finding("warn", what, "if none runs: git switch - (which takes your changes along)")
    for file in (Path(".dvc/tmp/rwlock"), Path(".dvc/tmp/exps/rwlock")):
        remove = f"if no dvc runs: rm {file}"
        try:
            dead = _dead(file.read_text()) if file.is_file() else []
        except ValueError:
            yield Finding("FAIL", f"{file} is cut off: DVC can't read it", remove)
            continue
        if dead:
            what = f"{file} holds locks of processes that are gone: {', '.join(map(str, dead))}"
            yield Finding("warn", what, remove)


def _dead(locks: str) -> list[int]:
    """Return the processes of a file of locks that don't run DVC (any more)."""
    held = json.loads(locks)
    readers = [owner for owners in held.get("read", {}).values() for owner in owners]
    pids = {owner["pid"] for owner in [*held.get("write", {}).values(), *readers]}
    return sorted(pid for pid in pids if not _runs_dvc(pid))


def _runs_dvc(pid: int) -> bool:
    try:  # a process may have got the number of a dead one: DVC then waits for it in vain
        return b"dvc" in Path("/proc", str(pid), "cmdline").read_bytes()
    except OSError:
        return False


def storage(store: str) -> Findings:
    """Check what s3:// URLs need: s3fs, libraries that fit it, and credentials (by name only)."""
    scheme = store.partition("://")[0] if "://" in store else ""
    need = ours("s3fs", "dvc-s3")
    if version("s3fs"):
        told = [unmet(name) for name in ("s3fs", "aiobotocore", "boto3") if version(name)]
        if wrong := ", ".join(f"{k} (got {v})" for each in told for k, v in each.items()):
            # All in one command: piece by piece each moves botocore out of another's range.
            mend = pip("install", "--upgrade", *need)
            yield Finding("FAIL" if scheme == "s3" else "warn", f"s3fs expects {wrong}", mend)
        yield _credentials(scheme == "s3")
    elif scheme != "s3":
        yield Finding("ok", "no s3fs, so no s3:// URLs")
    if scheme:
        yield _opens(scheme, pip("install", *need))


def _opens(scheme: str, s3: str) -> Finding:
    import fsspec

    try:
        fsspec.get_filesystem_class(scheme)
    except (ImportError, ValueError) as error:
        mend = s3 if scheme == "s3" else "install fsspec's package of it, or store elsewhere"
        return Finding("FAIL", f"{scheme}:// can't be opened: {error}", mend)
    return Finding("ok", f"{scheme}:// can be opened; what lies there is not looked at")


def _credentials(needed: bool) -> Finding:
    endpoint = [name for name in ENDPOINTS if name in os.environ]
    named = [name for name in CREDENTIALS if os.environ.get(name)]
    for variable, name in PROFILES.items():
        default = Path.home() / ".aws" / name
        if Path(os.environ.get(variable, default)).expanduser().is_file():
            named.append(f"a file of profiles ({variable if variable in os.environ else default})")
    half = [name for name in PAIR if name in named]
    if len(half) == 1:
        return Finding("FAIL", f"of {' and '.join(PAIR)} only {half[0]} is set", "set both or none")
    told = f"S3: credentials {', '.join(named) or 'none'}; endpoint {', '.join(endpoint) or 'AWS'}"
    if needed and not named:
        mend = f"export {' and '.join(PAIR)}, or AWS_PROFILE; unless this machine's role has them"
        return Finding("warn", told, mend)
    return Finding("ok", told)
