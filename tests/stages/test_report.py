import base64
import hashlib
import io
import json
import re
import subprocess
import sys
from html.parser import HTMLParser
from xml.etree import ElementTree

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import scipy.stats
from PIL import Image

from askance.features.index import read_index
from askance.stages.explore import certain_first, shown
from askance.stages.pictures import TILE, mosaic, thumbnail
from askance.stages.report import best, run
from askance.stages.tables import Cell, Cells, Column, Table, agreements
from tests.results import (
    HEADS,
    HOSTILE,
    NAN,
    SETS,
    VOTED,
    about,
    curated,
    more_rows,
    png,
    row,
    table_rows,
    write_folders,
    write_map,
    write_more,
    write_set,
)

DROPPING = "What dropping the uncertain buys"


def written(results):
    return (results / "report.html").read_text(encoding="utf-8")


def read(results):
    """Return the page without what its scripts hold, and the data they draw."""
    parts = re.split(r"(<script[^>]*>)(.*?)</script>", written(results), flags=re.DOTALL)
    return "".join(parts[0::3]), json.loads(parts[2])


@pytest.fixture
def folders(tmp_path):
    return write_folders(tmp_path)


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    results, data = write_folders(tmp_path_factory.mktemp("page"))
    run(results, data, pictures=4)
    return read(results)[0]


@pytest.fixture(scope="module")
def full(tmp_path_factory):
    """The page with every metric that a set may have, and with what curate found."""
    results, data = write_folders(tmp_path_factory.mktemp("full"))
    write_more(results, curated())
    write_map(results, "emoji")
    run(results, data, pictures=4)
    return read(results)[0]


@pytest.fixture
def drawn(folders):
    """What the scripts draw of the sets, by name."""
    write_more(folders[0], curated())
    write_map(folders[0], "emoji")
    run(*folders, pictures=4)
    return {each["name"]: each for each in read(folders[0])[1]["sets"]}


class Reader(HTMLParser):
    """Collects the rows of every table as text, the text of the page, and unbalanced tags."""

    PLAIN = str.maketrans({"\N{EN DASH}": "-", "\N{MINUS SIGN}": "-"})
    VOID = frozenset({"meta", "link", "img", "br", "input"})

    def __init__(self, page):
        super().__init__()
        self.rows, self.words, self.open, self.images = [], [], [], []
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        if tag not in self.VOID:
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
        if tag == "img":
            self.images.append(dict(attributes))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" in self.open:
            return
        data = data.translate(self.PLAIN)
        self.words.append(data)
        if {"td", "th"} & set(self.open):
            self.rows[-1][-1] += data

    @property
    def text(self):
        return " ".join("".join(self.words).split())

    def row(self, start, nth=0):
        found = [row for row in self.rows if row and row[0].split()[:1] == [start]]
        return [" ".join(cell.split()) for cell in found[nth]]


def section(page, title):
    """Return what the page says from this heading on, up to the next."""
    (found,) = (part for part in page.split("<h2")[1:] if f">{title}</h2>" in part)
    return Reader(f"<h2{found}".split("</main>")[0])


def test_main_table_shows_rounded_means_with_interval_and_deviation(page):
    row = Reader(page).row("ranking")
    assert row == [
        "ranking trained, 3 seeds",
        "0.68 0.65-0.71 ±0.01",
        "0.62 0.58-0.66 ±0.02",
        "↓ 0.44 0.40-0.48 ±0.03",
        "0.53 0.50-0.56 ±0.02",
    ]
    assert Reader(page).row("R@1") == ["R@1 share retrieved right", "0.71", "0.47", "0.90", "0.68"]


def test_other_measures_stand_in_a_table_for_each_set(page):
    part = section(page, "Other measures of the same heads")
    titles = [" ".join(cell.split()) for cell in part.rows[0][1:]]
    assert titles == [
        "AURC of retrieval",
        "wins of crops",
        "AUROC of the classifier",
        "correlation of its loss",
    ]
    assert part.row("ranking") == ["ranking", "0.234", "0.66", "0.77", "-0.05"]
    assert part.row("ranking", nth=1) == part.row("ranking", nth=2) == ["ranking", "0.234", "0.66"]
    assert len(re.findall("<details", page)) == len(re.findall("<details open", page)) + 2 == 3


def test_other_measures_show_intervals_in_their_own_digits(full):
    part = section(full, "Other measures of the same heads")
    average, seen = part.row("norm"), part.row("ranking", nth=1)
    assert average == ["norm", "-", "-0.16 -0.19 to -0.13"]
    assert part.row("ranking") == ["ranking", "0.82 0.80-0.84 ±0.01", "0.42 0.40-0.45 ±0.02"]
    assert seen[1:5] == ["0.234", "0.100 0.080-0.130 ±0.001", "0.66", "-"]


@pytest.mark.parametrize(
    "title",
    [
        "What people doubt, too",
        "Known or new",
        "Two kinds of uncertainty",
        "Images and labels that deserve a look",
        DROPPING,
    ],
)
def test_what_was_not_measured_has_no_section(page, full, title):
    assert title not in page
    assert f">{title}</h2>" in full


def test_people_are_compared_where_they_voted(full):
    part = section(full, "What people doubt, too")
    assert [" ".join(cell.split()) for cell in part.rows[0][1:]] == [
        "emoji correlation",
        "average correlation",
        "emoji disputed",
    ]
    both = "0.30 0.20-0.40 ±0.05"
    assert part.row("ranking") == ["ranking", both, both, "-"]
    assert part.row("norm")[1] == "-0.04 -0.10 to 0.02"
    assert part.row("neighbour-distance")[1:] == ["0.21 0.10-0.30", "-", "-"]
    assert f'<abbr title="{VOTED}">' in full
    assert [row[0].split()[0] for row in part.rows[1:]] == ["ranking", "norm", "neighbour-distance"]


def test_mixtures_are_shown_for_heads_that_were_asked(full):
    part = section(full, "Known or new")
    assert part.row("ranking") == [
        "ranking",
        "0.73 0.70-0.76 ±0.01",
        "0.71 0.69-0.72 ±0.02",
        "0.61 0.59-0.63 ±0.02",
    ]
    assert part.row("entropy")[:2] == ["entropy †", "-"]
    assert "neighbour-distance" not in part.text
    assert "‡ its neighbours, and so hits" in part.text


def test_a_line_divides_columns_of_different_kinds(full):
    header = full.split('aria-labelledby="known"')[1].split("</thead>")[0]
    assert re.findall(r'<th scope="col"( class="divided")?>(\w+) <small>(\w+)', header) == [
        ("", "emoji", "mixed"),
        (' class="divided"', "emoji", "OOD"),
        ("", "average", "OOD"),
    ]


def test_both_kinds_of_uncertainty_stand_side_by_side(full):
    part = section(full, "Two kinds of uncertainty")
    assert [" ".join(cell.split()) for cell in part.rows[0][1:]] == [
        "R-AUROC either",
        "human correlation aleatoric",
        "crop wins aleatoric",
        "crop correlation aleatoric",
        "OOD AUROC epistemic",
    ]
    assert part.row("elk")[1:] == ["0.51 0.48-0.53 ±0.02", "-", "-", "-", "0.63 0.60-0.65 ±0.02"]
    assert "neighbour-distance" not in part.text
    for title in ("R-AUROC", "human correlation", "crop wins", "crop correlation"):
        assert full.count(f'aria-label="{title} against OOD AUROC"') == 1


def test_rank_correlations_say_how_many_heads_they_are_of(full):
    part = section(full, "Two kinds of uncertainty")
    # R-AUROC orders elk, ranking, entropy; OOD AUROC ranking, entropy, elk
    assert part.row("OOD", nth=0)[1:] == ["-0.50 3 heads", "- 2 heads", "- 1 heads", "- 2 heads"]
    assert '<abbr title="heads with both: 2, fewer than 3">' in full
    assert "chance alone" not in part.text  # three heads can't tell


def add_percentiles(results, heads):
    for name in SETS:
        path = results / "queries" / f"{name}.parquet"
        table = pq.read_table(path)
        for head in heads:
            table = table.append_column(f"percentile/{head['name']}", table["similarity"])
        pq.write_table(table, path)


def test_rank_correlations_of_many_heads_say_what_chance_does(folders):
    extra = [HEADS[0] | {"name": f"head{number}"} for number in range(4)]
    (folders[0] / "run.json").write_text(json.dumps(about() | {"heads": [*HEADS, *extra]}))
    rows = [
        row(metric, head["name"], "average", (least + number / 10, NAN, NAN, NAN))
        for metric, least in {"crop_win": 0.2, "ood_auroc": 0.5}.items()
        for number, head in enumerate(extra)
    ]
    rows += table_rows() + more_rows()
    pq.write_table(pa.Table.from_pylist(rows), folders[0] / "table.parquet")
    add_percentiles(folders[0], extra)
    run(*folders, pictures=1)
    page = read(folders[0])[0]
    part = section(page, "Two kinds of uncertainty")
    assert part.row("OOD")[3] == "0.70 5 heads"  # ranking: fifth by crops, third by OOD
    assert "even of 5 unrelated ones, chance alone exceeds ±0.98 one time in twenty." in part.text


def test_both_kinds_need_both(folders):
    rows = [row for row in table_rows() + more_rows() if row["metric"] in ("r_auroc", "ood_auroc")]
    pq.write_table(pa.Table.from_pylist(rows), folders[0] / "table.parquet")
    run(*folders, pictures=1)
    page = read(folders[0])[0]
    assert "Known or new" in page
    assert "Two kinds of uncertainty" not in page
    assert "Other measures" not in page


def agreement(x, y):
    cells = Cells()
    for head, numbers in enumerate(zip(x, y, strict=True)):
        for metric, number in zip("xy", numbers, strict=True):
            cells[metric, str(head), "s"] = Cell(number)
    shown = Table([Column(m, "", m, "s") for m in "xy"], [list("0123"), list("456789")])
    return agreements(cells, shown)["x", "y"]


def test_rank_correlations_are_those_of_scipy_over_heads_with_both():
    rng = np.random.default_rng(0)
    x, y = rng.integers(0, 6, (2, 10)).astype(float)  # with ties
    y[4] = NAN
    found = agreement(x.tolist(), y.tolist())
    both = np.isfinite(y)
    assert found.value == pytest.approx(scipy.stats.spearmanr(x[both], y[both]).statistic)
    assert (found.reason, found.heads) == ("", 9)


def test_a_rank_correlation_of_equal_numbers_is_undefined():
    found = agreement([0.5] * 10, list(range(10)))
    assert np.isnan(found.value)
    assert found.reason == "one of the two is the same for every head"


def test_suspect_labels_show_both_classes_and_their_probabilities(full):
    part = section(full, "Images and labels that deserve a look")
    assert "Found by elk †‡ and by" in part.text
    assert (
        "56 clear images with a suspect label, 214 uncertain images with one, 548 uncertain images"
        " without, 682 clear ones without. " in part.text
    )
    assert f"cat & dog 1 %; likelier: {HOSTILE} 88 %" in part.text
    keys = [image["alt"] for image in part.images]
    assert keys[:4] == [  # four at most: the clear one first
        "suspect picture3, labelled cat & dog",
        *[f"suspect picture0, labelled {HOSTILE}"] * 3,
    ]


def test_twins_are_shown_if_their_labels_differ(full):
    part = section(full, "Images and labels that deserve a look")
    assert [image["alt"] for image in part.images[4:]] == [
        "first picture2, labelled cat & dog",
        "second picture38, labelled owl",
    ]
    assert "cat & dog owl cosine 0.991" in part.text.replace("dogowl", "dog owl")
    assert (
        "88 near-duplicates (cosine from 0.98) in 35 groups: 53 pairs, 1 of them exact, 42 of two"
        " labels, 7 across splits." in part.text
    )


def test_uncertain_classes_stand_with_their_share_of_errors(full):
    part = section(full, "Images and labels that deserve a look")
    assert part.rows[0] == ["class", "images", "uncertainty", "wrong"]
    assert [" ".join(cell.split()) for cell in part.rows[1]] == [HOSTILE, "1,200", "85 %", "75 %"]
    assert "share wrong have the rank correlation -0.39." in part.text


def test_what_curate_could_not_ask_is_said(full):
    part = section(full, "Images and labels that deserve a look")
    assert "emoji 40 images Labels not judged: only where the classes are the " in part.text
    assert "No near-duplicates (cosine from 0.98)." in part.text
    assert '<abbr title="1 class: nothing to rank">' in full


def test_dropping_the_uncertain_shows_recalls_at_the_published_share(full):
    part = section(full, DROPPING)
    assert [" ".join(cell.split()) for cell in part.rows[0]] == [
        "R@1",
        "all queries whole gallery",
        "certain queries whole gallery",
        "certain queries certain gallery",
        "all queries certain gallery",
    ]
    assert part.row("seen") == [
        "seen 90 % of all images",
        "0.396",
        "0.436",
        "0.439 117 of 1,350 hopeless",
        "0.400 149 of 1,500 hopeless",
    ]
    assert part.row("seen", nth=1) == [
        "seen 90 % of each class (66 % of all)",
        "0.396",
        "-",
        "0.380 450 of 990 hopeless",
        "0.346 450 of 1,500 hopeless",
    ]
    assert [row[0].split()[0] for row in part.rows[1:]] == ["seen", "emoji"] * 2
    assert "the most certain by elk †‡." in part.text
    assert "With 52 % of seen kept, 1,037 of 1,500 queries are." in part.text
    assert "head was trained on" not in part.text
    assert f'<abbr title="no query {HOSTILE}">' not in full
    assert '<abbr title="no query &lt;script&gt;' in full


def test_dropping_the_uncertain_is_drawn_for_each_set(full, drawn):
    for name, count in {"seen": 1, "emoji": 1, "digits": 0}.items():
        assert full.count(f'aria-label="R@1 by share kept on {name}"') == count
    assert drawn["digits"]["safe"] == []
    shares = {(each["case"], each["share"]): each["recall"] for each in drawn["seen"]["safe"]}
    assert len(shares) == 4 * 3  # of all images, not of each class
    assert shares["safe gallery", 0.9] == 0.4004
    assert shares["safe queries", 0.52] is None


def test_curves_are_of_every_head_at_the_coverages_of_the_set(drawn):
    assert set(drawn["seen"]["risk"]) == {head["name"] for head in HEADS}
    assert len(drawn["seen"]["coverage"]) == 20
    assert drawn["seen"]["risk"]["elk"] == [round(c / 2, 4) for c in np.linspace(0.01, 1, 20)]


def test_an_undefined_risk_is_a_gap(folders):
    point = {"set": "seen", "head": "ranking", "coverage": 0.5, "risk": None}
    (folders[0] / "curves.json").write_text(json.dumps([point]))
    run(*folders)
    assert read(folders[0])[1]["sets"][0]["risk"] == {"ranking": [None]}


def test_pairs_say_what_was_retrieved_and_whether_it_hit(drawn):
    emoji = drawn["emoji"]
    pairs = emoji["pairs"]
    at = {each["key"]: place for place, each in enumerate(pairs["query"])}
    assert len(at) == emoji["images"] == 40
    for number in range(40):
        place, near = at[f"picture{number}"], (number + 1) % 40
        assert pairs["neighbour"][place]["key"] == f"picture{near}"
        assert pairs["hit"][place] == (number // 2 == near // 2)
        assert pairs["percentile"]["ranking"][place] == round(0.987 * number / 39, 4)
    names = {each["key"]: emoji["classes"][each["label"]] for each in pairs["query"]}
    assert (names["picture0"], names["picture2"], names["picture9"]) == (
        HOSTILE,
        "cat & dog",
        "class 4",
    )


def test_an_unreadable_picture_has_no_tile(drawn):
    tiles = {each["key"]: each["tile"] for each in drawn["emoji"]["pairs"]["query"]}
    assert [key for key, tile in tiles.items() if tile < 0] == ["picture0"]
    assert sorted(tiles.values()) == list(range(-1, 39))
    assert min(each["tile"] for each in drawn["seen"]["pairs"]["query"]) == 0


def test_only_mapped_images_have_a_place(folders):
    write_map(folders[0], "emoji", rows=range(0, 40, 2))
    run(*folders)
    page, data = read(folders[0])
    seen, emoji, digits = (each["pairs"] for each in data["sets"])
    assert {*seen["x"], *digits["y"]} == {None}
    for query, x, y in zip(emoji["query"], emoji["x"], emoji["y"], strict=True):
        number = int(query["key"].removeprefix("picture"))
        assert (x, y) == ((number, -number) if number % 2 == 0 else (None, None))
    assert '<select id="mapped"><option value="1">emoji</option></select>' in page


def test_a_page_without_maps_has_no_map(page):
    assert 'id="map"' not in page
    assert '<a href="#map-title">' not in page


def test_percentiles_are_counted_in_tenths_with_their_errors(drawn):
    bins = drawn["seen"]["calibration"]["ranking"]
    assert [each["images"] for each in bins] == [4, 4, 4, 4, 4, 4, 4, 4, 4, 4]
    assert bins[0] == {
        "start": 0.0,
        "stop": 0.1,
        "images": 4,
        "share": 0.1,
        "wrong": 0.5,
        "lower": 0.15,
        "upper": 0.85,
    }
    assert drawn["seen"]["tenths"]["ranking"] == [0.5, 0.5]


def test_a_large_set_shows_its_extremes_and_what_is_on_the_map(folders):
    write_map(folders[0], "emoji", rows=[20, 21])
    run(*folders, pictures=2, limit=36)  # twelve images a set: six queries
    page, data = read(folders[0])
    emoji = data["sets"][1]["pairs"]
    keys = [each["key"] for each in emoji["query"]]
    assert set(keys) == {f"picture{number}" for number in (0, 1, 38, 39, 20, 21)}
    assert keys != sorted(keys, key=lambda key: int(key[7:]))  # by lot
    assert page.count("The page holds 6 of 40: the extremes of every head, and others by lot.") == 3


def test_heads_with_neighbours_of_their_own_are_not_to_choose(folders):
    run(*folders)
    page, data = read(folders[0])
    assert data["choices"] == ["ranking", "norm", "entropy"]
    assert 'value="elk"' not in page
    labels = {head["name"]: head["label"] for head in data["heads"]}
    assert labels["elk"] == "elk †‡"


def test_what_it_cost_is_told_by_stage(folders):
    line = {"stage": "train", "ended": "2026-12-01T07:55:00+00:00", "seconds": 240.0}
    line |= {"count": 600, "unit": "steps", "memory": 3 << 28, "machine": "AMD EPYC, 2 cores"}
    (folders[0].parent / "models").mkdir()
    (folders[0].parent / "models" / "head").write_bytes(bytes(2048))
    (folders[0].parent / "models.runs.jsonl").write_text(json.dumps(line) + "\n")
    run(*folders)
    page = read(folders[0])[0]
    part = section(page, "What it cost")
    assert part.row("train") == [
        "train models",
        "4.0 min",
        "2.5 steps/s 600 steps",
        "2 KiB",
        "768.0 MiB",
        "2026-12-01 07:55",
    ]
    assert "4.0 min of work, ended 2026-12-01 07:55 UTC" in Reader(page).text


def test_costs_that_nobody_recorded_are_said(page):
    assert "Time not recorded here" in Reader(page).text.replace("Timenot", "Time not")
    assert "Not recorded here" in section(page, "What it cost").text


def test_the_set_that_the_head_was_trained_on_is_named(folders):
    write_more(folders[0], curated())
    upstream = about()["upstream"] | {"name": "seen"}
    (folders[0] / "run.json").write_text(json.dumps(about() | {"upstream": upstream}))
    run(*folders, pictures=1)
    part = section(read(folders[0])[0], DROPPING)
    assert "but of two images one is left. The head was trained on seen." in part.text


def test_a_summary_of_another_preparation_is_refused(folders):
    summary = curated()
    summary["sets"][0]["lists"]["mislabelled"][0]["key"] = "other"
    write_more(folders[0], summary)
    with pytest.raises(ValueError, match=r"expected 'other' in row 3 of .*curate again"):
        run(*folders)
    assert not (folders[0] / "report.html").exists()


def test_undefined_values_are_a_dash_with_the_reason(page):
    assert '<abbr title="expected a finite score, got none">\N{EN DASH}</abbr>' in page
    assert Reader(page).row("norm")[3:] == ["-", "-"]


def test_notes_say_where_the_head_stands_against_a_coin(page):
    text = Reader(page).text
    assert (
        "ranking: better than a coin on seen (0.68), emoji (0.62); worse than one (what it trusts"
        " is wrong more often) on digits (0.44). " in text
    )
    assert (
        "Better than a coin, of 4 heads: 3 on seen, 2 on emoji, 1 on digits."
        " Worse: 0 on seen, 0 on emoji, 1 on digits. " in text
    )


def test_notes_say_where_other_heads_are_ahead(page):
    text = Reader(page).text
    assert (
        "Untrained heads ahead of ranking: 1 of 2 on seen, the best entropy † (0.70) against 0.68"
        " (within chance); 1 of 2 on digits, the best entropy † (0.55) against 0.44. " in text
    )
    assert (
        "Other trained heads ahead of ranking: 1 of 1 on seen, the best elk †‡ (0.69) against 0.68"
        " (within chance); 1 of 1 on digits, the best elk †‡ (0.46) against 0.44 (within chance)"
        ". " in text
    )
    assert "it learned from 5,000 images in 600 steps, where the published heads saw" in text


def test_the_best_head_is_marked_only_above_one_half(page):
    marked = re.findall(r'<td class="\w+ best">([\d.]+)', page)
    assert marked == ["0.62", "0.70", "0.55"]  # by rows: ranking on emoji, entropy on the others


def test_heads_stand_by_kind_and_then_by_their_average(page):
    names = [row[0].split()[0] for row in Reader(page).rows if row and row[0].strip()]
    order = ["ranking", "elk", "entropy", "norm", "neighbour-distance"]
    assert names == ["R@1", *order, "kept", *order * 3]  # R-AUROC, and measures of three sets
    kinds = re.findall(r"<tbody>(.*?)</tbody>", page, re.DOTALL)
    assert [kind.count("<tr>") for kind in kinds if kind] == [2, 2, 1] * 4


def test_marked_heads_are_explained_wherever_they_are_shown(page):
    row = Reader(page).row("elk")
    assert row[0] == "elk †‡ trained, 3 seeds"
    assert row[1:4] == [
        "0.69 0.66-0.72 ±0.01 R@1 0.66 ±0.01",
        "0.55 0.51-0.59 ±0.02 R@1 0.40 ±0.01",
        "0.46 0.42-0.50 ±0.02 R@1 0.91 ±0.01",
    ]
    assert "R@1" not in " ".join(Reader(page).row("entropy"))
    assert Reader(page).row("entropy", nth=1)[0] == "entropy †"
    titles = 'id="scores"', 'id="sets"', 'id="trust"', ">Other measures"
    sections = [s for s in page.split("<h2")[1:] if any(each in s for each in titles)]
    assert len(sections) == 4
    for section in sections:
        assert "entropy †<" in section
        assert "elk †‡<" in section
        assert "† frozen-backbone variant: the published method trains the backbone" in section
        assert "‡ its neighbours, and so hits, R@1, R-AUROC and AURC, are those of its" in section
    assert page.count(">elk †‡</text>") == 4  # in the charts of 3 sets, and of their average


def test_no_mark_is_explained_that_no_head_carries(folders):
    plain = [head | {"of_backbone": False, "mapped": False} for head in HEADS]
    (folders[0] / "run.json").write_text(json.dumps(about() | {"heads": plain}))
    run(*folders, pictures=1)
    page = read(folders[0])[0]
    assert not {"†", "‡"} & set(page)


@pytest.mark.parametrize(
    ("mapped", "main"), [(["ranking"], "norm"), ([head["name"] for head in HEADS], "ranking")]
)
def test_the_pictures_are_of_the_first_head_with_the_neighbours_shown(folders, mapped, main):
    heads = [head | {"mapped": head["name"] in mapped} for head in HEADS]
    (folders[0] / "run.json").write_text(json.dumps(about() | {"heads": heads}))
    run(*folders, pictures=1)
    text = Reader(read(folders[0])[0]).text
    shown = f"{main} ‡" if main in mapped else main
    assert f"rank of its uncertainty by {shown}: 98 %" in text
    assert ("for its own neighbours, not those shown" in text) == (main in mapped)


def test_many_heads_are_told_apart_up_to_six(folders):
    extra = [HEADS[0] | {"name": f"head{number}"} for number in range(16)]
    (folders[0] / "run.json").write_text(json.dumps(about() | {"heads": [*HEADS, *extra]}))
    add_percentiles(folders[0], extra)
    run(*folders, pictures=1)
    page = read(folders[0])[0]
    key = re.search(r'<p class="key">(.*?)</p>', page, re.DOTALL)[1]
    names = re.findall(r'<span class="name">.*?</svg>(.*?)</span>', key, re.DOTALL)
    assert names == [
        "ranking",
        "entropy †",
        "elk †‡",
        "head0",
        "head1",
        "head2",
        "neighbour-distance",
        "the other 14 heads",
    ]
    assert len(page.encode()) < 1e6


def test_the_level_of_every_set_is_the_risk_by_the_frozen_embedding(drawn):
    assert [each["level"] for each in drawn.values()] == [0.5] * 3


def test_the_footer_names_the_seeds_once(page):
    assert "ranking, elk: seeds 0, 1, 2 " in Reader(page).text


def test_the_reference_stands_apart_with_its_note(page):
    assert "neighbour-distance is a reference, not a head: it is not a function of the" in page


def test_loss_sentence_compares_in_sample_and_cross_fitted(page):
    text = Reader(page).text
    assert "its mean loss is 0.40; cross-fitted, from classifiers that never saw the image" in text
    assert "it is 1.20 (rank correlation of the two: 0.90)" in text


def test_no_loss_sentence_for_a_classifier_of_the_backbone(folders):
    own = {"loss": {"classifier": "own", "mean": 1.1}}
    (folders[0] / "run.json").write_text(json.dumps(about() | own))
    run(*folders)
    assert "cross-fitted" not in read(folders[0])[0]


@pytest.mark.parametrize("name", ["page", "full"])
def test_texts_are_escaped(name, request):
    page = request.getfixturevalue(name)
    assert HOSTILE not in page
    if name == "full":
        assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
        assert "cat &amp; dog" in page


def test_only_our_scripts_may_run(folders):
    run(*folders)
    page = written(folders[0])
    assert HOSTILE not in page
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', page)[1]
    scripts = re.findall(r'<script type="module">(.*?)</script>', page, re.DOTALL)
    digests = [base64.b64encode(hashlib.sha256(s.encode()).digest()).decode() for s in scripts]
    assert len(digests) == page.count("<script") - 1 == 2
    allowed = " ".join(f"'sha256-{digest}'" for digest in digests)
    assert policy == (
        f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src {allowed}"
    )


@pytest.mark.parametrize("name", ["page", "full"])
def test_page_is_well_formed_self_contained_and_small(name, request):
    page = request.getfixturevalue(name)
    assert Reader(page).open == []
    outside = set(re.findall(r"https?://[^\"' ]+", page))
    assert outside == {"http://www.w3.org/1999/xlink", "http://www.w3.org/2000/svg"}  # namespaces
    assert not re.findall(r'(?:src|href)="(?!data:|#)', page)
    assert "@import" not in page
    assert len(page.encode()) < 1e6
    for svg in re.findall(r"<svg.*?</svg>", page, re.DOTALL):
        ElementTree.fromstring(svg)


def test_page_is_the_same_on_every_run(folders):
    write_map(folders[0], "emoji")
    run(*folders, pictures=4)
    first = written(folders[0])
    run(*folders, pictures=4)
    assert written(folders[0]) == first


@pytest.mark.parametrize(
    "name", ["run.json", "table.parquet", "curves.json", "queries/emoji.parquet"]
)
def test_a_missing_result_says_to_run_evaluate(folders, name):
    (folders[0] / name).unlink()
    with pytest.raises(FileNotFoundError, match=rf"got no .*{name}: run evaluate"):
        run(*folders)
    assert not (folders[0] / "report.html").exists()


def test_results_of_another_preparation_are_refused(folders):
    results, data = folders
    path = results / "queries" / "emoji.parquet"
    table = pq.read_table(path)
    keys = pa.array([f"other{key}" for key in table["key"].to_pylist()])
    pq.write_table(table.set_column(1, "key", keys), path)
    with pytest.raises(
        ValueError, match=r"expected 'otherpicture\d+' in row \d+ of .*: run evaluate and"
    ):
        run(results, data)


def test_no_neighbour_is_shown_as_such(folders):
    results, data = folders
    path = results / "queries" / "emoji.parquet"
    table = pq.read_table(path)
    alone = pa.array([-1] * table.num_rows)
    pq.write_table(table.set_column(3, "neighbour", alone), path)
    run(results, data, pictures=2)
    assert read(results)[1]["sets"][1]["pairs"]["neighbour"] == [None] * 40


def test_certain_first_leaves_out_undefined_and_keeps_ties_in_the_order_of_the_lot():
    percentile = np.array([0.5, np.nan, 0.1, *[1.0] * 50])
    lot = np.random.default_rng(0).permutation(53)
    order = certain_first(percentile, lot)
    assert order[:2].tolist() == [2, 0]
    assert order[2:].tolist() == [row for row in lot if row > 2]


def test_all_rows_are_shown_where_there_is_room_and_never_more():
    lot = np.random.default_rng(0).permutation(40)
    orders, mapped = [np.arange(40), np.arange(40)[::-1]], np.arange(40) >= 20
    assert shown(lot, orders, mapped, 2, ends=3, limit=42).tolist() == lot.tolist()
    assert len(shown(lot, orders, mapped, 2, ends=3, limit=41)) == 20
    some = shown(lot, orders, mapped, 0, ends=3, limit=39)
    assert len(some) == 19
    assert {0, 1, 2, 37, 38, 39} <= set(some.tolist())
    assert sum(mapped[some]) == 16  # all but the three extremes that are not on the map


def tiles(found):
    kind, content = found.address.split(";base64,")
    assert kind == "data:image/webp"
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(content))))


def test_a_mosaic_of_tiny_images_keeps_every_pixel(folders):
    index = read_index(folders[1] / "emoji")  # whose first image can't be read
    found = mosaic(index, np.array([0, 3, 5, 7, 9]))
    assert (found.places, found.columns, found.rows) == ({3: 0, 5: 1, 7: 2, 9: 3}, 2, 2)
    assert found.tiny
    pixels = tiles(found)
    assert pixels.shape[:2] == (32, 32)
    for number, place in found.places.items():
        y, x = 16 * (place // 2), 16 * (place % 2)
        own = np.asarray(Image.open(io.BytesIO(png(number))))
        np.testing.assert_array_equal(pixels[y : y + 16, x : x + 16, :3], own)


def test_a_mosaic_fits_larger_images_into_squares_and_enlarges_smaller_ones(tmp_path):
    wide = io.BytesIO()
    Image.new("RGB", (300, 150), "red").save(wide, "png")
    index = write_set(tmp_path / "mixed", [wide.getvalue(), png(1, side=8)], [0, 0], {})
    found = mosaic(index, np.array([0, 1]))
    pixels = tiles(found)
    assert not found.tiny
    assert pixels.shape[:2] == (TILE, 2 * TILE)
    assert (pixels[TILE // 2, :TILE, 0] > 200).all()
    alpha = pixels[..., 3]
    assert (alpha[[0, -1], :TILE] == 0).all()  # above and below the wide one
    assert (alpha[:, TILE:] == 255).all()


def test_a_set_without_a_readable_picture_has_an_empty_mosaic(tmp_path):
    index = write_set(tmp_path / "broken", [b"no image"], [0], {})
    found = mosaic(index, np.array([0]))
    assert (found.places, tiles(found).shape[:2]) == ({}, (1, 1))


@pytest.mark.parametrize(
    ("cell", "standing"),
    [
        (Cell(0.6, 0.51, 0.7), "above"),
        (Cell(0.6, 0.5, 0.7), "coin"),
        (Cell(0.4, 0.3, 0.5), "coin"),
        (Cell(0.4, 0.3, 0.49), "below"),
        (Cell(0.6), "above"),
        (Cell(), "undefined"),
    ],
)
def test_standing_reads_the_interval(cell, standing):
    assert cell.standing == standing


def test_best_needs_an_interval_above_one_half():
    cells = Cells({("r_auroc", "a", "s"): Cell(0.6, 0.49, 0.7)})
    assert best(cells, ["a", "b"], "s") is None
    cells["r_auroc", "b", "s"] = Cell(0.7, 0.6, 0.8)
    assert best(cells, ["a", "b"], "s") == "b"


def test_thumbnails_are_small_and_only_tiny_images_stay_lossless():
    address = thumbnail(png(0, side=300))
    kind, content = address.split(";base64,")
    assert kind == "data:image/jpeg"
    assert Image.open(io.BytesIO(base64.b64decode(content))).size == (96, 96)
    assert thumbnail(png(0, side=8)).startswith("data:image/png;base64,")


def test_module_starts_without_torch():
    code = (
        "import sys, askance.stages.report;"
        "print(*{'torch', 'timm', 'faiss', 'matplotlib'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.strip()) == (0, "")


def test_command_prints_one_line_on_missing_results(tmp_path):
    command = [sys.executable, "-m", "askance.stages.report", str(tmp_path), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr == (
        f"askance: expected the results of evaluate, got no {tmp_path}/run.json: run evaluate\n"
    )
