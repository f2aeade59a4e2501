"""The templates of `dvc plots`: every plot of dvc.yaml can be drawn, without a network."""

import io
import re
from pathlib import Path

import pytest
import yaml
from dvc_render import VegaRenderer
from PIL import Image

from askance.pipeline.plots import file_name, picture, write_template

ROOT = Path(__file__).parents[2]
TEMPLATED = {
    name: about
    for plot in yaml.safe_load((ROOT / "dvc.yaml").read_text())["plots"]
    for name, about in plot.items()
    if "template" in about
}


def spec(name, revisions=("workspace",), **change):
    """Return a plot of dvc.yaml as DVC fills it, of two sets and two lines."""
    about = TEMPLATED[name]
    [y] = about["y"].values()
    points = [
        {about["x"]: x, y: "abc"[i] if y == "head" else x, "set": set_, "head": head, "rev": rev}
        | {"lower": x / 2, "upper": x}
        for rev in revisions
        for set_ in ("seen", "new")
        for head in ("ranking", "norm")
        for i, x in enumerate((0.1, 0.5, 1.0))
    ]
    labels = {label: about[label] for label in ("x_label", "y_label", "title") if label in about}
    template = {"template": about["template"], "template_dir": str(ROOT / ".dvc" / "plots")}
    properties = {"x": about["x"], "y": y} | labels | template
    return VegaRenderer(points, name, **properties).get_filled_template()


@pytest.mark.parametrize("name", TEMPLATED)
def test_every_plot_is_drawn_of_one_revision_and_of_two(name):
    one, two = (
        Image.open(io.BytesIO(picture(spec(name, revisions))))
        for revisions in (["workspace"], ["workspace", "HEAD"])
    )
    assert one.format == "PNG"
    assert one.size > (600, 200)
    assert len(one.getcolors(10**6)) > 20  # lines, bars, words: not an empty frame
    assert one.tobytes() != two.tobytes()


def test_the_page_asks_nobody_for_its_library(tmp_path):
    write_template(tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    assert not re.search(r"<(script|link)[^>]+(src|href)=", page)
    assert "{plot_divs}" in page
    assert "window.vegaEmbed" in page


def test_names_of_files_tell_the_plot():
    assert file_name("risk-coverage") == "risk-coverage"
    assert file_name("results/training/plots/metrics/r_auroc/elk.tsv") == "r_auroc-elk"
