"""The `askance` command: one subcommand per stage."""

from typing import Annotated

import typer

from askance import __version__, doctor, hub, plan, published, score, select, threshold, verify
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

STAGES = (prepare, extract, probe, retrieve, mix, train, evaluate, curate, report)
app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_show_locals=False)
for stage in STAGES:
    app.command(stage.__name__.rpartition(".")[2])(stage.main)
app.command("doctor")(doctor.main)
app.command("verify")(verify.main)
app.command("plan")(plan.main)
app.command("select")(select.main)
app.command("threshold")(threshold.main)
app.command("score")(score.main)
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
