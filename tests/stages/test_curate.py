"""The stage on tiny stores: images, classes, labels and copies, and what it refuses."""

import ast
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import zarr
from scipy.stats import rankdata

from askance.eval.curation import kinds, suspects
from askance.features.classify import Classifier
from askance.features.store import REFUSED, FeatureStore
from askance.heads.checkpoint import SavedHead, load
from askance.stages import cases, curate, probe, retrieve, train

SETS = ["upstream", "seen", "new"]
COPY, ORIGINAL = "k029", "k003"  # in `new`, of classes 4 and 3


@pytest.fixture(scope="module")
def chain(tmp_path_factory, make_set, extract, encode):
    """Make everything that comes before: 40 upstream images, 16 of their classes, 30 of others."""
    root = tmp_path_factory.mktemp("chain")
    seen = {f"k{i:03}": (encode(200 + i), i % 4) for i in range(16)}
    new = {f"k{i:03}": (encode(100 + i), i % 5) for i in range(30)}
    new[COPY] = (new[ORIGINAL][0], 4)
    (root / "neighbours").mkdir()
    for name, samples in (("upstream", None), ("seen", seen), ("new", new)):
        made = make_set(root / name, samples, n=40, classes=4)
        extract(made, root / "stores" / f"{name}.zarr")
    for name in SETS:
        retrieve.run(root / "stores" / f"{name}.zarr", root / "neighbours" / f"{name}.parquet")
    places = [root / "stores" / f"upstream{kind}.zarr" for kind in ("", ".probe")]
    probe.run(*places, folds=4, iterations=20)
    heads = {"heads": ["infonce", "ranking", "norm"], "seeds": [0, 1], "steps": 5, "batch": 16}
    train.run(*places, root / "models", root / "training", **heads, width=8)
    return root


def run(root, out=None, **options):
    places = [root / name for name in ("models", "stores/upstream.probe.zarr", "stores")]
    options = {"sets": SETS, "upstream": ["upstream", "seen"], "similarity": 0.9999} | options
    curate.run(*places, root / "neighbours", out or root / "curation", **options)


@pytest.fixture(scope="module")
def curated(chain):
    run(chain)
    return chain / "curation"


def images(curated, name):
    return pq.read_table(curated / "images" / f"{name}.parquet").to_pydict()


def summaries(curated):
    about = json.loads((curated / "summary.json").read_text())
    return about, {each["name"]: each for each in about["sets"]}


def test_each_image_has_its_percentile_over_the_seeds_of_the_first_head_without_a_map(
    chain, curated
):
    table, store = images(curated, "new"), FeatureStore.open(chain / "stores" / "new.zarr")
    percentile = curate_percentile(chain, "ranking", store)
    np.testing.assert_allclose(table["percentile"], percentile, rtol=1e-6)
    assert table["key"] == store.keys
    assert set(table["set"]) == {"new"}
    assert table["class"] == [f"class {label}" for label in table["label"]]
    about, _ = summaries(curated)
    assert (about["head"], about["seeds"]) == ("ranking", [0, 1])


def seeds_of(chain, head):
    return [load(chain / "models" / f"{head}-{seed}.safetensors") for seed in (0, 1)]


def uncertainties(chain, head, store):
    rows = torch.from_numpy(store.embedding("plain"))
    return [saved.head.uncertainty(rows).double().numpy() for saved in seeds_of(chain, head)]


def curate_percentile(chain, head, store):
    each = zip(seeds_of(chain, head), uncertainties(chain, head, store), strict=True)
    return np.mean([saved.percentile(uncertainty) for saved, uncertainty in each], axis=0)


@pytest.mark.parametrize("at", [None, 0.0, 1.0])
def test_images_are_ranked_by_percentile_and_of_one_percentile_by_their_ranks_over_the_seeds(
    chain, curated, tmp_path, monkeypatch, at
):
    if at is not None:  # all images more, or less, certain than every upstream one
        monkeypatch.setattr(SavedHead, "percentile", lambda self, u: np.full(len(u), at))
        run(chain, tmp_path, sets=["new"], upstream=[])
        curated = tmp_path
    table, store = images(curated, "new"), FeatureStore.open(chain / "stores" / "new.zarr")
    percentile = curate_percentile(chain, "ranking", store)
    rank = sum(map(rankdata, uncertainties(chain, "ranking", store)))
    order = sorted(range(30), key=lambda row: (-percentile[row], -rank[row], row))
    assert (len(set(table["percentile"])) > 1) == (at is None)
    assert np.argsort(table["rank"]).tolist() == order
    for each in pq.read_table(curated / "classes" / "new.parquet").to_pylist():
        mine = [row for row in order if table["label"][row] == each["label"]]
        assert [table["rank_in_class"][row] for row in mine] == list(range(len(mine)))
        ends = table["key"][mine[0]], table["key"][mine[-1]]
        assert (each["uncertain"], each["certain"]) == ends
    assert max(row["share"] for row in safe(curated, "new", "global", 0.5).values()) < 0.6


def test_the_classes_are_those_of_the_images(curated):
    table, found = images(curated, "new"), pq.read_table(curated / "classes" / "new.parquet")
    columns = {name: np.array(values) for name, values in table.items()}
    for row in found.to_pylist():
        mine = columns["label"] == row["label"]
        assert row["count"] == mine.sum()
        assert row["mean"] == pytest.approx(columns["percentile"][mine].mean())
        assert row["recall"] == pytest.approx(columns["hit"][mine].mean())
        first = mine & (columns["rank_in_class"] == 0)
        last = mine & (columns["rank_in_class"] == mine.sum() - 1)
        assert row["uncertain"] == columns["key"][first].item()
        assert row["certain"] == columns["key"][last].item()


def test_a_copy_under_another_label_is_found(curated):
    [pair] = pq.read_table(curated / "duplicates" / "new.parquet").to_pylist()
    assert (pair["first_key"], pair["second_key"]) == (ORIGINAL, COPY)
    assert (pair["exact"], pair["cross_label"], pair["cross_split"]) == (True, True, False)
    table = images(curated, "new")
    grouped = {k: g for k, g in zip(table["key"], table["group"], strict=True) if g >= 0}
    assert grouped == {ORIGINAL: 3, COPY: 3}
    assert summaries(curated)[1]["new"]["duplicates"] == {
        "images": 2, "groups": 1, "pairs": 1, "exact": 1, "cross_label": 1, "cross_split": 0
    }  # fmt: skip


def safe(curated, name, rule, keep):
    rows = pq.read_table(curated / "safe" / f"{name}.parquet").to_pylist()
    return {row["case"]: row for row in rows if (row["rule"], row["keep"]) == (rule, keep)}


def found_by_hand(chain, queries, kept):
    """Return recall, queries, gallery and hopeless ones of each case in `new`, by definition."""
    store = FeatureStore.open(chain / "stores" / "new.zarr")
    rows, label = store.embedding("plain").astype(np.float64), store.labels
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    cosine = np.round(rows @ rows.T, 12)
    np.fill_diagonal(cosine, -np.inf)
    every, found = np.arange(30), {}
    safely = {"full": (queries, every), "safe gallery": (queries, kept)}
    some = np.intersect1d(queries, kept)
    safely |= {"safe gallery and queries": (some, kept), "safe queries": (some, every)}
    for case, (asked, gallery) in safely.items():
        hit = label[gallery[cosine[np.ix_(asked, gallery)].argmax(axis=1)]] == label[asked]
        alone = sum(not (label[np.setdiff1d(gallery, row)] == label[row]).any() for row in asked)
        found[case] = (hit.mean(), len(asked), len(gallery), alone)
    return found


def most_certain(curated, count):
    rank = np.array(images(curated, "new")["rank"])
    return np.flatnonzero(rank >= 30 - count)


def numbers(rows):
    return {
        case: (row["recall"], row["queries"], row["gallery"], row["hopeless"])
        for case, row in rows.items()
    }


@pytest.mark.parametrize(("keep", "count"), [(1.0, 30), (0.9, 27), (0.5, 15)])
def test_leaving_out_the_uncertain_is_as_by_hand(chain, curated, keep, count):
    kept = most_certain(curated, count)
    expected = found_by_hand(chain, np.arange(30), kept)
    found = safe(curated, "new", "global", keep)
    assert numbers(found) == expected
    assert {(row["set"], row["share"]) for row in found.values()} == {("new", count / 30)}


def test_leaving_out_the_uncertain_of_each_class_is_as_by_hand(chain, curated):
    table = images(curated, "new")
    largest = [row for row, rank in enumerate(table["rank_in_class"]) if rank == 0]
    expected = found_by_hand(chain, np.arange(30), np.setdiff1d(np.arange(30), largest))
    assert numbers(safe(curated, "new", "per class", 0.9)) == expected


def test_the_summary_has_all_of_safe_retrieval(curated):
    for name, each in summaries(curated)[1].items():
        rows = pq.read_table(curated / "safe" / f"{name}.parquet").to_pylist()
        assert each["safe"] == rows
        assert len(rows) == 28
        assert list(rows[0]) == [
            "set", "rule", "keep", "share", "case", "recall", "queries", "gallery", "hopeless",
            "reason",
        ]  # fmt: skip


def test_upstream_labels_are_judged_by_the_probes_that_never_saw_the_image(chain, curated):
    table = images(curated, "upstream")
    losses = FeatureStore.open(chain / "stores" / "upstream.probe.zarr")
    loss = losses.read("loss")[:, losses.views.index("plain")]
    np.testing.assert_allclose(-np.log(table["confidence"]), loss, rtol=0.01, atol=0.01)
    inside = losses.read("loss_in_sample")[:, losses.views.index("plain")]
    assert np.abs(loss - inside).mean() > 0.5


def test_other_sets_of_these_classes_are_judged_by_the_probe_itself(chain, curated):
    table, store = images(curated, "seen"), FeatureStore.open(chain / "stores" / "seen.zarr")
    losses = FeatureStore.open(chain / "stores" / "upstream.probe.zarr")
    logits = losses.classifier.logits(store.embedding("plain")).astype(np.float64)
    probability = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    found = suspects(lambda: [probability], store.labels, 4)
    np.testing.assert_allclose(table["confidence"], found.confidence, rtol=1e-4)
    assert table["suggested"] == found.suggested.tolist()
    suspect = np.array(table["suggested"]) != table["label"]
    assert 0 < suspect.sum() < 16
    assert table["suspect"] == suspect.tolist()
    assert table["kind"] == kinds(np.array(table["percentile"]) >= 0.5, suspect).tolist()


def test_the_lines_for_cleanlab_in_the_documents_run_on_these_stores(
    chain, curated, monkeypatch, capsys
):
    pytest.importorskip("cleanlab")
    page = Path(__file__).parents[2] / "docs" / "curation.md"
    [lines] = re.findall(r"```python\n(.*?cleanlab.*?)```", page.read_text(), re.DOTALL)
    monkeypatch.chdir(chain)
    names = {}
    exec(lines, names)
    table = images(curated, "seen")
    suspects = {k for k, suspect in zip(table["key"], table["suspect"], strict=True) if suspect}
    issues = {k for k, issue in zip(table["key"], names["issues"], strict=True) if issue}
    assert suspects
    assert suspects <= issues
    assert issues & set(ast.literal_eval(capsys.readouterr().out))


def test_judging_some_images_at_a_time_changes_nothing(chain, curated, tmp_path, monkeypatch):
    told = []
    monkeypatch.setattr(cases, "CELLS", 4 * 3)  # of 4 classes
    logits = Classifier.logits
    monkeypatch.setattr(
        Classifier, "logits", lambda self, x: told.append(len(x)) or logits(self, x)
    )
    run(chain, tmp_path, sets=["seen", "upstream"])
    assert max(told) <= 3
    for name in ("seen", "upstream"):
        found, expected = (images(out, name) for out in (tmp_path, curated))
        np.testing.assert_allclose(found["confidence"], expected["confidence"], rtol=1e-5)
        assert found["suggested"] == expected["suggested"]


@pytest.fixture
def copies(chain, tmp_path):
    for name in ("models", "stores", "neighbours"):
        shutil.copytree(chain / name, tmp_path / name)
    return tmp_path


def neighbours_again(copies):
    retrieve.run(copies / "stores/upstream.zarr", copies / "neighbours/upstream.parquet")


@pytest.mark.parametrize("refused", [[], [3]])
def test_labels_are_not_judged_by_probes_of_another_store_of_these_images(copies, refused):
    """With other views, say, or with images that were refused and have been mended since."""
    path = copies / "stores" / ("upstream.zarr" if not refused else "upstream.probe.zarr")
    group = zarr.open_group(str(path))
    if refused:
        group["status"].oindex[refused] = REFUSED
    else:
        group.attrs["fingerprint"] = "other"
    neighbours_again(copies)
    with pytest.raises(ValueError, match="expected the losses of .*upstream.zarr.*run probe again"):
        run(copies)
    run(copies, upstream=["seen"])  # its images are none of the probe's


def test_labels_of_unknown_classes_are_not_judged(curated):
    assert "kind" not in images(curated, "new")
    summary = summaries(curated)[1]["new"]
    assert summary["kinds"] is None
    assert set(summary["lists"]) == {"uncertain", "certain", "pairs", "classes"}


def test_the_summary_has_the_first_of_each_list(curated):
    table = images(curated, "seen")
    summary = summaries(curated)[1]["seen"]
    assert sum(summary["kinds"].values()) == summary["images"] == 16
    by_rank = [table["key"][row] for row in np.argsort(table["rank"])]
    shown = {
        kind: [row["key"] for row in rows]
        for kind, rows in summary["lists"].items()
        if kind not in ("pairs", "classes")
    }
    assert shown["uncertain"] == by_rank[:8]
    assert shown["certain"] == by_rank[::-1][:8]
    for kind in ("ambiguous", "mislabelled", "both"):
        assert len(shown[kind]) == min(8, summary["kinds"][kind])
        margins = [
            row["suggested_confidence"] - row["confidence"] for row in summary["lists"][kind]
        ]
        if kind != "ambiguous":
            assert margins == sorted(margins, reverse=True)
    means = [row["mean"] for row in summary["lists"]["classes"]]
    assert means == sorted(means, reverse=True)


def part(chain, root, queries):
    """Curate `new` where only some queries were drawn."""
    root.mkdir()
    for name in ("models", "stores"):
        (root / name).symlink_to(chain / name)
    (root / "neighbours").mkdir()
    table = pq.read_table(chain / "neighbours" / "new.parquet").take(queries)
    pq.write_table(table, root / "neighbours" / "new.parquet")
    run(root, sets=["new"], upstream=[])
    return root / "curation"


def test_only_images_that_were_queries_are_listed_but_their_copies_are_found(chain, tmp_path):
    found = part(chain, tmp_path / "part", np.arange(25, 30))
    assert images(found, "new")["key"] == [f"k{i:03}" for i in range(25, 30)]
    [pair] = pq.read_table(found / "duplicates" / "new.parquet").to_pylist()
    assert (pair["first_key"], pair["second_key"]) == (ORIGINAL, COPY)


def test_of_some_queries_the_gallery_is_still_all_images(chain, curated, tmp_path):
    queries = np.arange(3, 20, 2)
    found = part(chain, tmp_path / "part", queries)
    expected = found_by_hand(chain, queries, most_certain(curated, 27))
    assert numbers(safe(found, "new", "global", 0.9)) == expected


def test_where_every_query_is_left_out_recall_is_undefined(chain, curated, tmp_path):
    last = np.flatnonzero(np.array(images(curated, "new")["rank"]) == 0)
    found = part(chain, tmp_path / "part", last)
    row = safe(found, "new", "global", 0.9)["safe queries"]
    assert np.isnan(row["recall"])
    assert (row["queries"], row["reason"]) == (0, "no query")
    [each] = summaries(found)[0]["sets"]
    undefined = [row for row in each["safe"] if row["recall"] is None]
    assert undefined
    assert {row["reason"] for row in undefined} == {"no query"}


def test_a_head_can_be_named(chain, tmp_path, capsys):
    run(chain, tmp_path / "out", sets=["new"], upstream=[], head="norm")
    assert summaries(tmp_path / "out")[0]["head"] == "norm"
    assert "30 images, 2 near-duplicates in 1 groups" in capsys.readouterr().out
    with pytest.raises(ValueError, match="one of the heads infonce, ranking, norm, got 'elk'"):
        run(chain, tmp_path / "out", head="elk")


def test_curves_are_safe_retrieval_of_every_set_by_the_share_of_all_images(curated):
    _, found = summaries(curated)
    curves = json.loads((curated / "curves.json").read_text())
    assert curves == [
        {"set": name} | {column: row[column] for column in ("case", "share", "recall")}
        for name in SETS
        for row in found[name]["safe"]
        if row["rule"] == "global"
    ]


def test_a_failed_run_leaves_the_former_result(chain, curated, tmp_path):
    out = shutil.copytree(curated, tmp_path / "out")
    with pytest.raises(ValueError, match="leave new out of the upstream sets"):
        run(chain, out, upstream=SETS)
    assert summaries(out) == summaries(curated)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_what_does_not_fit_together_is_refused(chain, tmp_path):
    with pytest.raises(ValueError, match=r"curate.upstream among \['new'\], got \['seen'\]"):
        run(chain, sets=["new"], upstream=["seen"])
    for name in ("models", "stores", "neighbours"):
        shutil.copytree(chain / name, tmp_path / name)
    places = [tmp_path / "stores" / f"upstream{kind}.zarr" for kind in ("", ".probe")]
    probe.run(*places, folds=2, iterations=2)
    with pytest.raises(ValueError, match="expected heads trained on .*upstream.probe.zarr"):
        run(tmp_path)
    shutil.rmtree(tmp_path / "stores")
    shutil.copytree(chain / "stores", tmp_path / "stores")
    (tmp_path / "neighbours" / "seen.parquet").unlink()
    with pytest.raises(FileNotFoundError, match="run retrieve"):
        run(tmp_path)
    group = zarr.open_group(str(tmp_path / "stores" / "upstream.zarr"))
    group.attrs["content"] = group.attrs["content"] | {"weights": "other"}
    with pytest.raises(ValueError, match="expected embeddings of the backbone that head ranking"):
        run(tmp_path)
