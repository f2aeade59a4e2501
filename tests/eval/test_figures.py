import math
import re
import subprocess
import sys
from xml.etree import ElementTree

import pytest

from askance.eval.figures import (
    COLORS,
    Estimate,
    Point,
    dots,
    risk_coverage,
    styles,
    swatch,
)

SVG = "{http://www.w3.org/2000/svg}"
HOSTILE = '<script>&"$x_1$'
LOOKS = styles(["ranking", "entropy"], ["neighbour-distance"])
ESTIMATES = [
    Estimate("emoji", "ranking", 0.62, 0.58, 0.66),
    Estimate("emoji", "entropy", 0.51, 0.47, 0.55),
    Estimate("digits", "ranking", 0.46, math.nan, math.nan),
    Estimate("digits", "entropy", math.nan, math.nan, math.nan),
]
POINTS = [
    Point(group, head, coverage, coverage * 0.5)
    for group in ("emoji", "digits")
    for head in ("ranking", "entropy", "neighbour-distance")
    for coverage in (0.25, 0.5, 1.0)
]


def texts(svg):
    return ["".join(text.itertext()) for text in ElementTree.fromstring(svg).iter(f"{SVG}text")]


def markers(svg, color):
    uses = ElementTree.fromstring(svg).iter(f"{SVG}use")
    return [use for use in uses if color in use.get("style")]


def lines(svg, color):
    paths = ElementTree.fromstring(svg).iter(f"{SVG}path")
    return [
        path for path in paths if f"stroke: {color}" in path.get("style") and path.get("clip-path")
    ]


def charts():
    return [
        dots(ESTIMATES, LOOKS, HOSTILE),
        risk_coverage(POINTS, LOOKS, "emoji"),
        risk_coverage([], LOOKS, HOSTILE),
        *(swatch(look) for look in LOOKS.values()),
    ]


@pytest.mark.parametrize("svg", charts())
def test_charts_are_one_svg_element_in_the_ink_of_the_page(svg):
    assert ElementTree.fromstring(svg).tag == f"{SVG}svg"
    assert svg.startswith("<svg ")
    assert "<metadata" not in svg
    assert "#000000" not in svg
    assert "#010203" not in svg
    assert "DejaVu" not in svg


def test_charts_are_byte_equal_on_every_drawing():
    assert charts() == charts()


def test_every_id_is_used_and_every_use_has_its_id():
    for svg in charts():
        defined = set(re.findall(r' id="([^"]+)"', svg))
        assert defined == set(re.findall(r'(?:href="|url\()#([\w-]+)', svg))


def test_names_are_escaped_and_no_formula():
    svg = risk_coverage([], LOOKS, HOSTILE)
    assert HOSTILE in texts(svg)
    assert f"Risk by coverage on {HOSTILE}" == ElementTree.fromstring(svg).get("aria-label")


def test_names_in_any_script_draw_without_a_warning():
    assert "数字 🦉" in texts(dots([Estimate("数字 🦉", "ranking", 0.6, 0.5, 0.7)], LOOKS, "title"))


def test_dots_draw_what_is_defined_only():
    svg = dots(ESTIMATES, LOOKS, "title")
    assert len(markers(svg, COLORS[0])) == 2
    assert len(lines(svg, COLORS[0])) == 1
    assert len(markers(svg, COLORS[1])) == 1
    assert texts(svg)[-2:] == ["emoji", "digits"]


def test_dots_stand_in_the_order_of_their_values():
    svg = dots(
        [Estimate("a", "ranking", v, math.nan, math.nan) for v in (0.5, 0.7, 0.4)], LOOKS, "t"
    )
    x = [float(use.get("x")) for use in markers(svg, COLORS[0])]
    assert x[2] < x[0] < x[1]


def test_risk_coverage_draws_the_curves_of_its_own_set_only():
    svg = risk_coverage(POINTS, LOOKS, "emoji")
    assert len(lines(svg, COLORS[0])) == 1
    assert len(lines(svg, COLORS[1])) == 1
    other = [Point("digits", "ranking", 0.5, 0.1)]
    assert risk_coverage(POINTS + other, LOOKS, "emoji") == svg
    assert not lines(risk_coverage(other, LOOKS, "emoji"), COLORS[0])


def test_risk_coverage_leaves_out_undefined_risks_and_sorts_by_coverage():
    points = [Point("emoji", "ranking", c, r) for c, r in ((1, 0.5), (0.5, None), (0.2, 0.1))]
    path = lines(
        risk_coverage([*points, Point("emoji", "ranking", 0.7, math.nan)], LOOKS, "emoji"),
        COLORS[0],
    )
    x = [float(x) for x in re.findall(r"[ML] ([\d.]+)", path[0].get("d"))]
    assert len(x) == 2
    assert x == sorted(x)


def test_heads_differ_in_colour_and_in_marker():
    looks = styles([f"head{number}" for number in range(6)], ["reference"])
    assert len({look.color for look in looks.values()}) == 7
    assert len({look.marker for look in looks.values()}) == 7
    assert looks["head0"].width > looks["head1"].width


def test_more_heads_than_colours_begin_again():
    assert len(styles([f"head{number}" for number in range(20)])) == 20


def test_importing_does_not_load_matplotlib():
    code = "import sys, askance.eval.figures; sys.exit('matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
