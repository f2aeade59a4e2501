"""Experiments by name: parameters, code and results, out of DVC and git, with no checkout.

Comes in: names as DVC has them: an experiment, a git revision, `workspace`. Goes out: for each what
`dvc exp show` tells of it, and evaluate's tables, read from the DVC cache or its remote.
"""

import io
import itertools
import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pyarrow as pa
    from dvc.api import DVCFileSystem  # type: ignore[import-untyped]

Json = dict[str, Any]

WORKSPACE = "workspace"
RESULTS = "results"  # the folder that evaluate writes, in every commit
UNFINISHED = {  # states that `dvc exp show` knows, and what to do
    "queued": "is queued: dvc exp run --run-all runs it",
    "running": "is running: dvc queue status tells when it is done",
    "failed": "failed: dvc queue logs {} tells why",
}


@dataclass(frozen=True)
class Experiment:
    """One experiment; its `commit` is git's, or `workspace`.

    `params`: by dotted name. `code`: the hash of each dependency that no stage makes. `metrics`:
    those of metrics.json. `run`: evaluate's description. `queries`: its table of each set: keys,
    labels, neighbours, hits and uncertainties.
    """

    name: str
    commit: str
    created: str
    params: Json
    code: dict[str, str]
    metrics: Json
    run: Json
    queries: dict[str, "pa.Table"]

    @property
    def heads(self) -> dict[str, Json]:
        """What run.json says of each head, and of the reference, by name."""
        return {head["name"]: head for head in self.run["heads"]}

    @property
    def zero_shot(self) -> list[str]:
        """The sets whose classes are not the upstream's."""
        return [each["name"] for each in self.run["sets"] if each["kind"] == "zero-shot"]


def read(names: Sequence[str]) -> list[Experiment]:
    """Read experiments of the DVC repository around the current folder.

    Raises:
        ValueError: no such repository; a name that is not that of a finished experiment; or two
            names of the same one.
        FileNotFoundError: the results of one are neither in the DVC cache nor in its remote.
    """
    try:
        from dvc.api import DVCFileSystem
        from dvc.exceptions import DvcException  # type: ignore[import-untyped]
    except ImportError as error:
        raise ValueError(
            "expected DVC, which keeps the experiments, got no such package: pip install -c"
            " constraints.txt -e '.[demo]'"
        ) from error
    revs = [name for name in names if name != WORKSPACE]
    showing = _show(*(f"--rev={rev}" for rev in revs))  # while this process looks the names up
    files, name = {}, ""
    try:
        for name in names:
            files[name] = DVCFileSystem(rev=None if name == WORKSPACE else name)
            files[name].repo  # noqa: B018 - a property that looks the name up
    except DvcException as error:
        showing.communicate()
        raise ValueError(_not_found(name)) from error
    shown = {entry["rev"]: entry for entry in _shown(showing)}
    commits = {name: _commit(name, each) for name, each in files.items()}
    for first, second in itertools.combinations(commits, 2):
        if commits[first] == commits[second]:
            raise ValueError(
                f"expected different experiments, got {first} and {second}, which are both"
                f" {commits[first][:8]}: leave one out"
            )
    return [_experiment(name, shown[commits[name]], each) for name, each in files.items()]


def code_changes(before: Experiment, after: Experiment) -> dict[str, str]:
    """Return how code differs: by file the lines added and taken, "+3 -1".

    Only of files below the dependencies that differ; where git knows of no difference, the
    dependency itself, "changed".
    """
    paths = dict.fromkeys([*before.code, *after.code])
    differ = [path for path in paths if before.code.get(path) != after.code.get(path)]
    if not differ:
        return {}
    commits = [each.commit for each in (before, after) if each.commit != WORKSPACE]
    options = ["--numstat", "--no-renames", "-z", *(["-R"] if before.commit == WORKSPACE else [])]
    command = ["git", "diff", *options, *commits, "--", *(f":(top){path}" for path in differ)]
    told = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    lines = [line.split("\t") for line in told.split("\0") if line]
    files = {file: f"+{added} -{taken}" for added, taken, file in lines}
    whole = [path for path in differ if not any(_below(file, path) for file in files)]
    return files | dict.fromkeys(whole, "changed")


def _show(*options: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        # -P: none of the folders here may stand in for a package of the same name.
        [sys.executable, "-P", "-m", "dvc", "exp", "show", "--json", *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def _shown(showing: "subprocess.Popen[str]") -> list[Json]:
    """Return what `dvc exp show` tells: an entry per revision, with its experiments.

    Raises:
        ValueError: it failed.
    """
    told, complaint = showing.communicate()
    if showing.returncode:
        raise ValueError(
            "expected a DVC repository, in git, around the current folder, got from dvc exp show:"
            f" {complaint.strip().removeprefix('ERROR: ')}"
        )
    return json.loads(told)


def _not_found(name: str) -> str:
    """Say why a name is not that of a finished experiment, and which are."""
    ranges = [each for entry in _shown(_show()) for each in entry["experiments"] or []]
    states = {each["name"]: (each["executor"] or {}).get("state") for each in ranges}
    if (state := states.get(name)) in UNFINISHED:
        return f"expected a finished experiment, got {name}, which {UNFINISHED[state].format(name)}"
    finished = [each for each, state in states.items() if state not in UNFINISHED]
    return (
        f"expected an experiment, a git revision or {WORKSPACE}, got {name}; the experiments of"
        f" HEAD are {', '.join(finished) or 'none'}; dvc exp list --all-commits tells all"
    )


def _commit(name: str, files: "DVCFileSystem") -> str:
    return WORKSPACE if name == WORKSPACE else files.repo.get_rev()


def _experiment(name: str, entry: Json, files: "DVCFileSystem") -> Experiment:
    """Gather what is known of an experiment.

    Raises:
        ValueError: DVC can't read its dvc.yaml or its parameters.
        FileNotFoundError: its results are not to be had.
    """
    about = entry["data"] or {}
    faults = [entry["error"], *(each.get("error") for each in about.get("params", {}).values())]
    for fault in filter(None, faults):
        raise ValueError(f"expected dvc.yaml and parameters of {name}, got {fault['msg']}")
    code = {
        path: dependency["hash"]
        for path, dependency in about["deps"].items()
        if not any(_below(out, path) or _below(path, out) for out in about["outs"])
    }
    run = json.loads(_bytes(files, name, "run.json"))
    names = [each["name"] for each in run["sets"]]
    return Experiment(
        name=name,
        commit=_commit(name, files),
        created=(about["timestamp"] or "").replace("T", " "),
        params=dict(_flat(about["params"])),
        code=code,
        metrics=about["metrics"].get(f"{RESULTS}/metrics.json", {}).get("data", {}),
        run=run,
        queries={each: _table(_bytes(files, name, f"queries/{each}.parquet")) for each in names},
    )


def _bytes(files: "DVCFileSystem", name: str, path: str) -> bytes:
    """Read one of the results."""
    from dvc_data.index import DataIndexError

    try:
        return files.read_bytes(f"{RESULTS}/{path}")
    except (FileNotFoundError, DataIndexError) as error:
        again = "dvc repro" if name == WORKSPACE else f"dvc exp apply {name} && dvc repro"
        raise FileNotFoundError(
            f"expected {RESULTS}/{path} of {name} in the DVC cache or its remote, got neither: dvc"
            f" fetch --all-commits, dvc exp pull, or run it again: {again}"
        ) from error


def _table(content: bytes) -> "pa.Table":
    import pyarrow.parquet as pq

    file = pq.ParquetFile(io.BytesIO(content))
    wanted = {"row", "key", "label", "neighbour", "hit", "uncertainty"}
    return file.read([name for name in file.schema_arrow.names if name.split("/")[0] in wanted])


def _flat(files: Json) -> Iterator[tuple[str, Any]]:
    """Yield every parameter by its dotted name, with its file's where there are several files."""
    for file, content in files.items():
        levels = [(f"{file}:" if len(files) > 1 else "", content["data"])]
        while levels:
            start, level = levels.pop()
            for key, value in level.items():
                if isinstance(value, dict):
                    levels.append((f"{start}{key}.", value))
                else:
                    yield f"{start}{key}", value


def _below(path: str, folder: str) -> bool:
    return path == folder or path.startswith(f"{folder}/")
