"""A page for `dvc plots show` that holds its drawing library; DVC's own loads it from a CDN.

python -m askance.pipeline.plots TEMPLATE
"""

import sys
from pathlib import Path

from askance.pipeline.artifacts import atomic

PAGE = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><title>askance: curves</title>{refresh_tag}
<script type="module">BUNDLE</script></head>
<body>{plot_divs}</body></html>
"""
# DVC's plots call vegaEmbed as they are read; modules run later, so the calls are kept for them.
EARLY = "<script>var calls = []; var vegaEmbed = (...call) => calls.push(call);</script>"
LATE = "window.vegaEmbed = vegaEmbed; calls.forEach((call) => vegaEmbed(...call));"


def write_template(path: Path) -> None:
    """Write the template."""
    import vl_convert

    bundle = vl_convert.javascript_bundle(LATE).replace("</script>", "<\\/script>")
    page = PAGE.replace("BUNDLE", bundle).replace("<script type", f"{EARLY}\n<script type")
    with atomic(path) as temporary:
        temporary.write_text(page, encoding="utf-8")


if __name__ == "__main__":
    write_template(Path(sys.argv[1]))
