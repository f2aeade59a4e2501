"""The `askance` command: a subcommand per stage, and those for what a run made."""

from typing import Annotated

import typer

from askance import (
    __version__,
    compare,
    doctor,
    export,
    hub,
    plan,
    published,
    score,
    select,
    threshold,
    verify,
)
from askance.stages import (
    curate,
    evaluate,
    extract,
    mix,
    prepare,
    probe,
    report,
    retrieve,
    train,
)
from askance.stages import map as map_

STAGES = (prepare, extract, probe, retrieve, mix, map_, train, evaluate, curate, report)
app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_show_locals=False)
for module in (*STAGES, doctor, verify, plan, select, threshold, score, export, compare):
    app.command(module.__name__.rpartition(".")[2])(module.main)
for name, wrapped in {**hub.COMMANDS, **published.COMMANDS}.items():
    app.command(name)(wrapped)


def _show_version(wanted: bool) -> None:
    if wanted:
        print(f"askance {__version__}")
        raise typer.Exit


@app.callback()
def _about(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="and exit")
    ] = False,
) -> None:
    """Pretrained visual uncertainties for any frozen backbone."""


def main() -> None:
    """Run the command line."""
    app()


if __name__ == "__main__":
    main()
