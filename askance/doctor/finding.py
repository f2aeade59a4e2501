"""What a check finds, and what the checks share."""

import shlex
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Literal

Level = Literal["ok", "warn", "FAIL"]


@dataclass(frozen=True)
class Finding:
    """A line of the report: how bad it is, what was found, and what mends it, if it needs to."""

    level: Level
    what: str
    mend: str = ""

    def __str__(self) -> str:
        text = f"{self.what} -> {self.mend}" if self.mend else self.what
        return f"{self.level:<5}{' '.join(text.split())}"


Findings = Iterator[Finding]


def in_checkout() -> bool:
    """Whether the current folder is a checkout of ours, as `check_checkout` sees it."""
    return Path("askance", "__init__.py").is_file()


def version(package: str) -> str:
    """Return the installed version of a package, "" where there is none."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return ""


def pip(*arguments: str) -> str:
    """Return the command that runs pip in the environment that runs this."""
    return shlex.join([sys.executable, "-m", "pip", *arguments])


def output(*command: str) -> str | None:
    """Return what a program prints, None where it fails."""
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    return None if done.returncode else done.stdout
