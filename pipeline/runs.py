"""What runs of a stage took, logged beside its output: `emoji.zarr.runs.jsonl`, a line each.

Not in the output: these figures differ from run to run, and equal outputs are equal to the last
byte. Git and DVC ignore the logs.
"""

import json
import re
import resource
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from askance.pipeline.artifacts import Place, listing
from askance.pipeline.provenance import machine

LOG = ".runs.jsonl"


@dataclass(frozen=True)
class Run:
    """A run of a stage, which begins where this is made: behind the imports, before the work."""

    stage: str
    start: float = field(default_factory=time.monotonic)

    @property
    def seconds(self) -> float:
        """How long it has taken so far."""
        return time.monotonic() - self.start

    def log(self, out: Place, count: int, unit: str, **facts: Any) -> None:  # noqa: ANN401 - of json
        """Append a line to the log of an output: `count` of some `unit` were done.

        The work is done, or what stopped it is being told: a log that can't be written is said on
        standard error, and is no failure.

        Args:
            out: what the stage wrote.
            count: in this run alone.
            unit: "images", ...
            facts: more to note. A run that notes `begun` as false went on with the work of those
                before it with the same `fingerprint`; any other began anew.
        """
        line = {"stage": self.stage, "ended": datetime.now(UTC).isoformat(timespec="seconds")}
        took = {"seconds": round(self.seconds, 3), "count": count, "unit": unit}
        about = {"memory": _peak(), "machine": machine()} | facts
        try:
            _append(log_of(out), json.dumps(line | took | about) + "\n")
        except Exception as error:  # an object store's client has errors of its own
            print(f"askance: no record of this run beside {out}: {error}", file=sys.stderr)


@dataclass(frozen=True)
class Cost:
    """What an output took: its last run, and the earlier ones whose work that went on with."""

    stage: str
    output: Place
    count: int
    unit: str
    seconds: float
    bytes: int  # of the output, as it is now
    memory: int  # peak bytes of the largest process of these runs
    runs: int
    ended: str  # the last of them
    machine: str  # of the last

    @property
    def rate(self) -> float:
        """How many were done in a second."""
        return self.count / max(self.seconds, 1e-3)

    @property
    def name(self) -> str:
        """The output's name without its suffixes: of most stages, that of the set."""
        return self.output.name.partition(".")[0]


def read_costs(*folders: Path) -> list[Cost]:
    """Read what the outputs in some folders took, by folder and name.

    Folders and outputs that are not there, and outputs without a log, are passed over.
    """
    logs = [log for folder in folders for log in sorted(folder.glob(f"*{LOG}"))]
    outputs = [log.with_name(log.name.removesuffix(LOG)) for log in logs]
    return [found for output in outputs if output.exists() for found in _cost(output)]


def _cost(output: Path) -> Iterator[Cost]:
    lines = read_log(output)
    if not lines:
        return
    last = lines[-1]
    runs = lasting(lines, last.get("fingerprint"))
    yield Cost(
        stage=last["stage"],
        output=output,
        count=sum(run["count"] for run in runs),
        unit=last["unit"],
        seconds=sum(run["seconds"] for run in runs),
        bytes=sum(listing(output).values()) if output.is_dir() else output.stat().st_size,
        memory=max(run["memory"] for run in runs),
        runs=len(runs),
        ended=last["ended"],
        machine=last["machine"],
    )


def read_log(out: Place) -> list[dict[str, Any]]:
    """Read the runs of an output, the last one last.

    A line that a kill has cut is left out, and so is one of another version.
    """
    log = log_of(out)
    lines = log.read_text().splitlines() if log.exists() else []
    return [run for line in lines for run in _parsed(line) if "count" in run]


def _parsed(line: str) -> Iterator[dict[str, Any]]:
    with suppress(json.JSONDecodeError):
        yield json.loads(line)


def lasting(lines: list[dict[str, Any]], fingerprint: str | None) -> list[dict[str, Any]]:
    """Return the runs of a fingerprint whose work is in the output: since it was last begun."""
    runs = [run for run in lines if run.get("fingerprint") == fingerprint]
    begun = [at for at, run in enumerate(runs) if run.get("begun", True)]
    return runs[begun[-1] :] if begun else runs


def log_of(out: Place) -> Place:
    """Return the place of an output's log."""
    return out.with_name(f"{out.name}{LOG}")


def _append(log: Place, line: str) -> None:
    if isinstance(log, Path):
        with log.open("a+b") as file:
            file.seek(max(0, file.tell() - 1))
            cut = file.read() not in (b"", b"\n")  # by a kill, or by a full disk
            file.write(b"\n" * cut + line.encode())
    else:  # object stores don't append
        log.write_text((log.read_text() if log.exists() else "") + line)


def _peak() -> int:
    """Return the peak bytes of the largest process: this one, or a child that has ended.

    Of this one Linux tells it in /proc; its usage counts the program that started it, too.
    """
    status = Path("/proc/self/status")
    told = re.search(r"VmHWM:\s*(\d+) kB", status.read_text()) if status.exists() else None
    own = 1024 * int(told[1]) if told else _usage(resource.RUSAGE_SELF)
    return max(own, _usage(resource.RUSAGE_CHILDREN))


def _usage(who: int) -> int:
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(who).ru_maxrss * unit
