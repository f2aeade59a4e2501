import math
import re
import subprocess
import sys
from xml.etree import ElementTree

import pytest

from askance.eval.figures import (
    COLORS,
    GREY,
    MARKS,
    Dot,
    against,
    dots,
    marked,
    styles,
    swatch,
)

SVG = "{http://www.w3.org/2000/svg}"
HOSTILE = '<script>&"$x_1$'
LOOKS = styles(["ranking", "entropy"], ["neighbour-distance"])
ESTIMATES = [
    Dot("emoji", "ranking", 0.62, 0.58, 0.66),
    Dot("emoji", "entropy", 0.51, 0.47, 0.55),
    Dot("digits", "ranking", 0.46, math.nan, math.nan),
    Dot("digits", "entropy", math.nan, math.nan, math.nan),
]


def texts(svg):
    return ["".join(text.itertext()) for text in ElementTree.fromstring(svg).iter(f"{SVG}text")]


def markers(svg, color):
    uses = ElementTree.fromstring(svg).iter(f"{SVG}use")
    return [use for use in uses if color in use.get("style")]


def lines(svg, color):
    paths = ElementTree.fromstring(svg).iter(f"{SVG}path")
    return [
        path
        for path in paths
        if f"stroke: {color}" in path.get("style", "") and path.get("clip-path")
    ]


def charts():
    return [
        dots(ESTIMATES, LOOKS, "emoji"),
        dots(ESTIMATES, LOOKS, HOSTILE),
        against({"ranking": (0.6, 0.5), "entropy": (0.4, 0.7)}, LOOKS, "OOD AUROC", "R-AUROC"),
        against({}, LOOKS, HOSTILE, HOSTILE),
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
    svg = dots([], styles([HOSTILE]), HOSTILE)
    assert texts(svg).count(HOSTILE) == 2  # the head, and the data set
    assert f"R-AUROC on {HOSTILE}" == ElementTree.fromstring(svg).get("aria-label")


def test_names_in_any_script_draw_without_a_warning():
    assert "数字 🦉" in texts(dots([Dot("数字 🦉", "ranking", 0.6, 0.5, 0.7)], LOOKS, "数字 🦉"))


def test_dots_draw_what_is_defined_on_their_own_set_only():
    svg = dots(ESTIMATES, LOOKS, "emoji")
    assert len(markers(svg, COLORS[0])) == len(markers(svg, COLORS[1])) == 1
    assert len(lines(svg, COLORS[0])) == len(lines(svg, COLORS[1])) == 1
    svg = dots(ESTIMATES, LOOKS, "digits")
    assert (len(markers(svg, COLORS[0])), len(lines(svg, COLORS[0]))) == (1, 0)
    assert (len(markers(svg, COLORS[1])), len(lines(svg, COLORS[1]))) == (0, 0)


def test_dots_name_every_head_and_the_data_set():
    svg = dots(ESTIMATES, LOOKS, "digits")
    assert [text for text in texts(svg) if text[0].isalpha()] == [
        "R-AUROC (0.5: a coin)",
        "ranking",
        "entropy",
        "neighbour-distance",
        "digits",
    ]


def test_dots_stand_in_the_order_of_their_values_in_the_same_range_on_all_sets():
    values = {"a": 0.5, "b": 0.7, "c": 0.4}
    estimates = [Dot(g, "ranking", v, math.nan, math.nan) for g, v in values.items()]
    uses = [markers(dots(estimates, LOOKS, group), COLORS[0]) for group in values]
    assert [len(use) for use in uses] == [1, 1, 1]
    a, b, c = (float(use[0].get("x")) for use in uses)
    assert c < a < b
    assert (b - a) / (a - c) == pytest.approx(2, rel=1e-4)


def test_against_draws_a_dot_for_each_head_with_both_numbers():
    looks = styles(["a", "b", "c", "d"])
    places = {"a": (0.4, 0.7), "b": (0.6, 0.5), "c": (0.5, math.nan), "other": (0.1, 0.1)}
    svg = against(places, looks, "OOD AUROC", "R-AUROC")
    assert [len(markers(svg, color)) for color in COLORS[:4]] == [1, 1, 0, 0]
    a, b = (markers(svg, color)[0] for color in COLORS[:2])
    assert float(a.get("x")) < float(b.get("x"))
    assert float(a.get("y")) < float(b.get("y"))  # y grows downwards
    assert [text for text in texts(svg) if text[0].isalpha()] == ["OOD AUROC", "R-AUROC"]
    assert ElementTree.fromstring(svg).get("aria-label") == "R-AUROC against OOD AUROC"


def test_heads_differ_in_colour_and_in_marker():
    looks = styles([f"head{number}" for number in range(6)], ["reference"])
    assert len({look.color for look in looks.values()}) == 7
    assert len({look.marker for look in looks.values()}) == 7
    assert looks["head0"].width > looks["head1"].width


def test_more_heads_than_colours_are_grey():
    looks = styles([f"head{number}" for number in range(20)], ["reference"])
    assert [look.color for look in looks.values()][5:8] == [COLORS[5], GREY, GREY]
    assert looks["head19"] == looks["head6"]
    assert looks["reference"].color not in (*COLORS, GREY)


@pytest.mark.parametrize(
    ("of_backbone", "mapped", "shown"),
    [(False, False, "elk"), (True, False, "elk †"), (True, True, "elk †‡"), (False, True, "elk ‡")],
)
def test_names_carry_the_marks_that_are_explained(of_backbone, mapped, shown):
    assert marked({"name": "elk", "of_backbone": of_backbone, "mapped": mapped}) == shown
    assert MARKS["†"].endswith("; not the published row")
    assert "own linear map" in MARKS["‡"]


def test_importing_does_not_load_matplotlib():
    code = "import sys, askance.eval.figures; sys.exit('matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
