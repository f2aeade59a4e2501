"""The `askance doctor` command: what is wrong with a machine's set-up, and what mends it.

A check is a function that yields findings, and an entry of `checks`. Nothing is changed or fetched,
and of credentials only the names are told. Checks import what they look at themselves, so that
doctor starts where it is broken (`python -m askance.doctor` even without the links in askance/).
"""

import warnings
from collections.abc import Callable
from functools import partial
from typing import Annotated

import typer

from askance.doctor.finding import Finding, Findings
from askance.doctor.machine import gpu, limits, memory, places, processor
from askance.doctor.project import graph, leftovers, links, storage
from askance.doctor.software import code, constraints, faiss, python, requirements, vision

Check = Callable[[], Findings]


def main(
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, ...")] = "auto",
    store: Annotated[str, typer.Option(help="where stores shall lie: folder or URL")] = "stores",
) -> None:
    """Check this machine, a line per finding; exit with 1 if one says FAIL."""
    failed = False
    for check in checks(device, store):
        for finding in findings(check):
            print(finding, flush=True)
            failed |= finding.level == "FAIL"
    if failed:
        raise typer.Exit(1)


def checks(device: str, store: str) -> tuple[Check, ...]:
    """Return the checks in the order of the report."""
    return (
        python,
        code,
        links,
        requirements,
        constraints,
        vision,
        faiss,
        partial(gpu, device),
        partial(processor, device),
        memory,
        partial(places, store),
        limits,
        graph,
        leftovers,
        partial(storage, store),
    )


def findings(check: Check) -> list[Finding]:
    """Run a check; an exception in it is one more finding."""
    found: list[Finding] = []
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found.extend(check())  # keeps what came before an exception
    except Exception as error:
        name = getattr(check, "func", check).__name__
        what = f"the check '{name}' ended in {type(error).__name__}: {error}"
        found.append(Finding("FAIL", what, "mend the other lines, then run doctor again"))
    return found
