"""`dvc plots show` without a network: a page that holds its drawing library, and a PNG a plot.

python -m askance.pipeline.plots OUT

DVC's own page loads the library from a CDN.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path, PurePath
from typing import Annotated, Any

import typer

from askance.pipeline.artifacts import atomic, write_bytes
from askance.pipeline.command import command

PAGE = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><title>askance: curves</title>{refresh_tag}
<script type="module">BUNDLE</script></head>
<body>{plot_divs}</body></html>
"""
# DVC's plots call vegaEmbed as they are read; modules run later, so the calls are kept for them.
EARLY = "<script>var calls = []; var vegaEmbed = (...call) => calls.push(call);</script>"
LATE = "window.vegaEmbed = vegaEmbed; calls.forEach((call) => vegaEmbed(...call));"
SHARP = 2.0  # pixels of a PNG by one of the page


def run(out: Annotated[Path, typer.Argument(help="the folder to write")]) -> None:
    """Write OUT/index.html with all plots of dvc.yaml, and OUT/<plot>.png for each.

    Raises:
        ValueError: DVC can't load a plot, or there is none.
    """
    with tempfile.TemporaryDirectory() as folder:
        write_template(Path(folder) / "page.html")
        _dvc("--html-template", f"{folder}/page.html", "-o", str(out))
    shown = json.loads(_dvc("--json", "-o", str(out)))
    if shown.get("errors") or not shown.get("data"):
        raise ValueError(f"expected plots, got {shown.get('errors') or 'none'}: run dvc repro")
    for name, plots in shown["data"].items():
        for plot in plots:  # none where there is no data
            write_bytes(out / f"{file_name(name)}.png", picture(plot["content"]))


def _dvc(*options: str) -> str:
    # -P: none of the folders here may stand in for a package of the same name.
    command = [sys.executable, "-P", "-m", "dvc", "plots", "show", *options]
    return subprocess.run(command, check=True, text=True, stdout=subprocess.PIPE).stdout


def file_name(plot: str) -> str:
    """Return a plot's name in DVC as a file's: that of its file and of the folder it lies in."""
    return "-".join(PurePath(plot).with_suffix("").parts[-2:])


def picture(content: dict[str, Any]) -> bytes:
    """Draw a Vega-Lite plot as a PNG."""
    import vl_convert

    return vl_convert.vegalite_to_png(content, scale=SHARP, allowed_base_urls=[])


def write_template(path: Path) -> None:
    """Write a template of the page."""
    import vl_convert

    bundle = vl_convert.javascript_bundle(LATE).replace("</script>", "<\\/script>")
    page = PAGE.replace("BUNDLE", bundle).replace("<script type", f"{EARLY}\n<script type")
    with atomic(path) as temporary:
        temporary.write_text(page, encoding="utf-8")


main = command(run)

if __name__ == "__main__":
    typer.run(main)
