"""The report in a browser: what its script draws, and what it does when it is asked."""

import json

import numpy as np
import pytest

from askance.stages.report import run
from tests.browser import chromium, opened
from tests.results import HOSTILE, SETS, curated, write_folders, write_map, write_more


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    """A page of three sets, whose curves, unlike the others', differ by head."""
    results, data = write_folders(tmp_path_factory.mktemp("report"))
    points = json.loads((results / "curves.json").read_text())
    for point in points:
        point["risk"] *= {"ranking": 0.5}.get(point["head"], 1)
    (results / "curves.json").write_text(json.dumps(points))
    write_more(results, curated())
    for name in ("emoji", "digits"):
        write_map(results, name)
    run(results, data, pictures=4)
    return results / "report.html"


@pytest.fixture(scope="module")
def browser():
    with chromium() as found:
        yield found


@pytest.fixture
def page(browser, path):
    """The page, drawn; it must have asked for nothing else, and have complained of nothing."""
    page, asked, said = opened(browser, path, viewport={"width": 1200, "height": 900})
    page.wait_for_selector("html[data-drawn]", state="attached")
    yield page
    assert said == []
    assert [url for url in asked if not url.startswith("data:")] == [path.as_uri()]
    page.close()


def slide(page, percent):
    page.locator("#share").fill(str(percent))


def kept(page):
    rows = page.locator("#kept tbody tr").all_inner_texts()
    return {row.split("\t")[0]: row.split("\t")[1:] for row in rows}


def test_every_chart_is_drawn(page):
    charts = page.locator("[data-chart]")
    kinds = [charts.nth(at).get_attribute("data-chart") for at in range(charts.count())]
    assert kinds == ["risk"] * 3 + ["safe"] * 2 + ["calibration"] * 3
    assert page.locator(".chart canvas").count() == 9  # and the map
    for at in range(9):
        box = page.locator(".chart canvas").nth(at).bounding_box()
        assert min(box["width"], box["height"]) > 150


@pytest.mark.parametrize("percent", [10, 50, 100])
def test_the_slider_changes_the_numbers_to_those_of_the_curve(page, percent):
    slide(page, percent)
    coverage = max(c for c in np.linspace(0.01, 1, 20) if c <= percent / 100 + 1e-9)
    images = f"{round(coverage * 40)} of 40"
    told = [images, f"{25 * coverage:.1f} %", "25.0 %"]  # of all: where its curve ends
    assert kept(page) == dict.fromkeys(SETS, told)
    assert page.locator("output").inner_text() == f"{percent} %"


def test_the_slider_moves_the_line_in_the_charts(page):
    chart = page.locator("[data-chart=risk]").first
    slide(page, 30)
    page.wait_for_timeout(200)
    before = chart.screenshot()
    slide(page, 60)
    page.wait_for_timeout(200)
    assert chart.screenshot() != before


def test_another_head_changes_numbers_and_names(page):
    slide(page, 100)
    assert kept(page)["seen"][1] == "25.0 %"
    page.select_option("#head", "entropy")
    assert kept(page)["seen"][1] == "50.0 %"
    assert set(page.locator("[data-head]").all_inner_texts()) == {"entropy †"}
    assert "Wrong by entropy †: 50 % of the most" in page.locator(".gallery").first.inner_text()


def test_a_gallery_shows_both_ends_and_a_click_opens_the_pair(page):
    gallery = page.locator(".gallery").nth(1)
    captions = gallery.locator("figcaption b").all_text_contents()
    assert captions[:3] == [HOSTILE, HOSTILE, "cat & dog"]
    assert captions[4] == "owl"  # the least certain
    assert not page.locator("dialog").is_visible()
    gallery.locator("button").nth(1).click()
    dialog = page.locator("dialog")
    assert dialog.is_visible()
    text = dialog.inner_text()
    assert "picture1" in text
    assert "picture2" in text  # what it retrieved
    assert "no: of another class" in text
    assert dialog.locator("figure.miss .tile").count() == 2
    dialog.get_by_text("close").click()
    assert not dialog.is_visible()
    gallery.locator("button").nth(2).click()
    assert dialog.locator("figure.hit").count() == 1


def test_a_gallery_of_one_class(page):
    gallery = page.locator(".gallery").first
    options = gallery.locator("option").all_text_contents()
    assert options[:2] == ["all", "owl (97 %)"]  # the most uncertain class first
    assert options[-1] == f"{HOSTILE} (1 %)"
    gallery.locator("select").select_option(label="owl (97 %)")
    assert gallery.locator("figcaption b").all_text_contents() == ["owl", "owl"]


def test_a_picture_that_can_not_be_read_is_a_box_with_its_key(page):
    boxes = page.locator(".gallery").nth(1).locator(".unreadable")
    assert set(boxes.all_inner_texts()) == {"picture0"}


def test_every_tile_shows_its_own_part_of_the_mosaic(page):
    places = (
        page.locator(".gallery")
        .first.locator(".query .tile")
        .evaluate_all(
            "all => all.map((each) => getComputedStyle(each).backgroundPosition + each.title)"
        )
    )
    assert len(set(places)) == len(places) == 8


def test_the_map_shows_the_picture_under_the_pointer_and_opens_it(page):
    chart = page.locator("#map canvas")
    chart.scroll_into_view_if_needed()
    box = chart.bounding_box()
    # The images stand in a line from corner to corner: the middle one, or its neighbour, is here.
    middle = box["x"] + box["width"] / 2, box["y"] + (box["height"] - 30) / 2
    found = None
    for step in range(-24, 25, 2):
        page.mouse.move(middle[0] + step, middle[1] + step / 2)
        if page.locator("#hover").is_visible():
            found = page.locator("#hover").inner_text()
            break
    assert found
    assert "right" in found or "class" in found
    page.mouse.down()
    page.mouse.up()
    assert page.locator("dialog").is_visible()
    assert page.locator("dialog b").inner_text() in found


def test_the_map_is_of_the_sets_that_have_one_in_the_colours_asked_for(page):
    assert page.locator("#mapped option").all_inner_texts() == ["emoji", "digits"]
    chart = page.locator("#map .chart")
    first = chart.screenshot()
    page.select_option("#colour", "class")
    page.wait_for_timeout(300)
    assert chart.screenshot() != first


@pytest.mark.parametrize("width", [360, 1200])
def test_the_page_is_no_wider_than_the_screen(browser, path, width):
    page, _, said = opened(browser, path, viewport={"width": width, "height": 800})
    page.wait_for_selector("html[data-drawn]", state="attached")
    assert page.evaluate("document.documentElement.scrollWidth") == width
    assert said == []
    page.close()


def test_the_charts_take_on_the_colours_of_a_dark_page(browser, path):
    page, _, said = opened(browser, path, color_scheme="light")
    page.wait_for_selector("html[data-drawn]", state="attached")
    chart = page.locator("[data-chart=risk]").first
    light = chart.screenshot()
    page.emulate_media(color_scheme="dark")
    page.wait_for_timeout(500)
    assert chart.screenshot() != light
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(20, 23, 27)"
    assert said == []
    page.close()
