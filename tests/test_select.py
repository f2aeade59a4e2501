"""The select command on a tiny pool: whom it chooses, what it writes, and what it refuses."""

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import typer
from typer.testing import CliRunner

from askance import select
from askance.eval.selection import diverse, representative, uncertain
from askance.features.store import FeatureStore
from askance.heads.catalogue import HEADS
from askance.heads.checkpoint import SavedHead, quantiles, save
from askance.heads.head import Setup
from askance.pipeline.seeding import hashed
from askance.stages import uncertainties
from askance.tables import column, read

app = typer.Typer()
app.command()(select.main)


@pytest.fixture(scope="module")
def pool(tmp_path_factory, make_set, extract):
    """Return a store of 40 images and, beside it, a head for its backbone."""
    root = tmp_path_factory.mktemp("pool")
    path = extract(make_set(root, n=40), root / "pool.zarr", views=["plain", "crop"])
    torch.manual_seed(0)
    store = FeatureStore.open(path)
    rows = torch.from_numpy(store.embedding("plain"))
    setup = Setup(rows.shape[1], 8, 2, torch.randn(3, rows.shape[1]), torch.zeros(3))
    for name, backbone in (("head", store.backbone), ("other", store.backbone | {"weights": "x"})):
        head = HEADS["ranking"](setup)
        scale = quantiles(head.uncertainty(rows))
        saved = SavedHead("ranking", 0, head, scale, setup.sizes, backbone, {})
        save(root / f"{name}.safetensors", saved)
    unscaled = replace(saved, quantiles=np.full_like(scale, np.nan), backbone=store.backbone)
    save(root / "imported.safetensors", unscaled)
    return root


def choose(pool, out, *options, head="head"):
    arguments = [pool / "pool.zarr", pool / f"{head}.safetensors", "--out", out, *options]
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def chosen(pool, out, *options):
    result = choose(pool, out, *options)
    assert result.exit_code == 0, result.output
    return pq.read_table(out).to_pydict()


def arrays(pool, view="plain"):
    """Return the pool's embeddings, uncertainties and percentiles."""
    from askance.heads.checkpoint import load

    saved, embedding = load(pool / "head.safetensors"), FeatureStore.open(pool / "pool.zarr")
    embedding = embedding.embedding(view)
    uncertainty = saved.head.uncertainty(torch.from_numpy(embedding)).double().numpy()
    return embedding, uncertainty, saved.percentile(uncertainty)


@pytest.mark.parametrize("how", ["uncertain", "diverse", "representative", "both"])
def test_it_chooses_as_the_function_of_that_name(pool, tmp_path, how):
    embedding, uncertainty, percentile = arrays(pool)
    expected = {
        "uncertain": lambda: uncertain(uncertainty, 9),
        "diverse": lambda: diverse(embedding, 9),
        "representative": lambda: representative(embedding, 9),
        "both": lambda: representative(embedding, 9, percentile),
    }[how]()
    table = chosen(pool, tmp_path / "out.parquet", "--count", 9, "--how", how)
    assert table["rank"] == list(range(9))
    assert table["row"] == expected.row.tolist()
    assert table["key"] == [f"k{row:03}" for row in expected.row]
    np.testing.assert_allclose(table["uncertainty"], uncertainty[expected.row], rtol=1e-5)
    np.testing.assert_allclose(table["percentile"], percentile[expected.row], atol=1e-3)
    np.testing.assert_allclose(table["distance"], expected.distance, rtol=1e-5)
    assert table["reason"][0].startswith("less certain than ")
    assert ("from the nearest" in table["reason"][1]) == (how != "uncertain")


def test_scoring_in_blocks_changes_nothing(pool, tmp_path, monkeypatch):
    whole = chosen(pool, tmp_path / "out.parquet", "--count", 40, "--how", "uncertain")
    monkeypatch.setattr(uncertainties, "AT_A_TIME", 7)
    parts = chosen(pool, tmp_path / "out.parquet", "--count", 40, "--how", "uncertain")
    assert parts["key"] == whole["key"]


@pytest.mark.parametrize("how", ["uncertain", "diverse", "representative", "both"])
def test_what_has_a_label_is_not_chosen_again(pool, tmp_path, how):
    rounds = []
    for number in range(4):
        known = [x for n in range(number) for x in ("--labelled", tmp_path / f"{n}.parquet")]
        options = ["--count", 10, "--how", how, *known]
        rounds += chosen(pool, tmp_path / f"{number}.parquet", *options)["key"]
    assert sorted(rounds) == [f"k{row:03}" for row in range(40)]


def test_another_round_goes_on_from_what_is_labelled(pool, tmp_path):
    whole = chosen(pool, tmp_path / "whole.parquet", "--count", 12)
    first = chosen(pool, tmp_path / "first.parquet", "--count", 5)
    known = ["--labelled", tmp_path / "first.parquet"]
    second = chosen(pool, tmp_path / "second.parquet", "--count", 7, *known)
    assert first["key"] + second["key"] == whole["key"]


def test_the_way_through_the_labelled_is_shown(pool, tmp_path):
    first = ["--count", 5, "--how", "diverse"]
    assert "with the labelled" not in choose(pool, tmp_path / "first.parquet", *first).stderr
    known = ["--labelled", tmp_path / "first.parquet"]
    result = choose(pool, tmp_path / "second.parquet", *first, *known)
    assert "compare with the labelled: 35/35 images" in result.stderr
    assert "choose: 5/5 images" in result.stderr


def test_of_a_large_pool_a_sample_that_depends_on_keys_alone_is_compared(pool, tmp_path):
    table = chosen(pool, tmp_path / "out.parquet", "--count", 5, "--sample", 12)
    sample = np.sort(hashed(FeatureStore.open(pool / "pool.zarr").keys)[:12])
    expected = sample[representative(arrays(pool)[0][sample], 5).row]
    assert table["row"] == expected.tolist()


def test_a_head_without_percentiles_says_so_of_each_image(pool, tmp_path):
    result = choose(pool, tmp_path / "out.parquet", "--count", 2, head="imported")
    assert result.exit_code == 0, result.output
    reasons = pq.read_table(tmp_path / "out.parquet")["reason"].to_pylist()
    assert all(reason.startswith("of unknown percentile") for reason in reasons)


def test_another_view_can_be_looked_at(pool, tmp_path):
    table = chosen(pool, tmp_path / "out.parquet", "--count", 5, "--view", "crop")
    assert table["row"] == representative(arrays(pool, "crop")[0], 5).row.tolist()


def test_the_table_says_what_it_was_made_from(pool, tmp_path):
    chosen(pool, tmp_path / "out.parquet", "--count", 2)
    about = pq.read_schema(tmp_path / "out.parquet").metadata
    store = FeatureStore.open(pool / "pool.zarr")
    assert about[b"store"].decode() == store.fingerprint
    assert (about[b"head"], about[b"how"]) == (b"ranking-0", b"representative")


@pytest.mark.parametrize(
    ("options", "head", "message"),
    [
        (["--count", 41], "head", "count from 1 to the 40 rows without a label, got 41"),
        (["--count", 41, "--how", "uncertain"], "head", "from 1 to the 40 rows"),
        (["--count", 41, "--sample", 5], "head", "from 1 to the 40 rows"),
        (["--count", 2, "--how", "both"], "imported", "knows upstream images for --how both"),
        (["--count", 2], "other", "expected embeddings of the backbone that head ranking"),
        (["--count", 2], "missing", "missing.safetensors"),
        (["--count", 2, "--view", "augment"], "head", "expected one of the views"),
    ],
)
def test_what_can_not_be_done_is_said_and_nothing_is_written(
    pool, tmp_path, options, head, message
):
    result = choose(pool, tmp_path / "out.parquet", *options, head=head)
    assert result.exit_code == 1
    assert message in result.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"key": ["k001", "z"]}, "got 1 others, such as 'z'"),
        ({"key": [7, 5]}, "got 2 others, such as 5"),
        ({"key": ["k001", None, "z"]}, "every row of column key of {path}, got 1 empty ones"),
        ({"row": [1]}, "expected column key in {path}, got row"),
    ],
)
def test_labelled_tables_must_be_of_this_pool(pool, tmp_path, columns, message):
    path = tmp_path / "labelled.parquet"
    pq.write_table(pa.table(columns), path)
    result = choose(pool, tmp_path / "out.parquet", "--count", 2, "--labelled", path)
    assert result.exit_code == 1
    assert message.format(path=path) in result.stderr


def test_what_is_no_table_of_labelled_images_is_told(pool, tmp_path):
    (text := tmp_path / "text.parquet").write_text("key\nk001\n")
    for path, message in (
        (tmp_path / "none", "expected a table of labelled images, got no {path}: check the path"),
        (text, "expected a Parquet or .csv table in {path}, got"),
    ):
        result = choose(pool, tmp_path / "out.parquet", "--count", 2, "--labelled", path)
        assert result.exit_code == 1
        assert message.format(path=path) in result.stderr


def test_labelled_images_may_be_named_in_a_csv(pool, tmp_path):
    known = [f"k{row:03}" for row in range(35)]
    (path := tmp_path / "labelled.csv").write_text(
        "\n".join(["note,key", *(f",{k}" for k in known)])
    )
    table = chosen(pool, tmp_path / "out.parquet", "--count", 5, "--labelled", path)
    assert sorted(table["key"]) == [f"k{row:03}" for row in range(35, 40)]


def test_keys_in_a_csv_are_text_even_where_all_are_digits(tmp_path):
    (path := tmp_path / "labelled.csv").write_text("key\n007\n042\n")
    assert column(read(path, "images"), path, "key").tolist() == ["007", "042"]
