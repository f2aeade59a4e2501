"""Start doctor where the `askance` command does not start."""

import typer

from askance.doctor import main

if __name__ == "__main__":
    typer.run(main)
