"""docs/store.md, held against real stores: every array and attribute, in both directions."""

import json
import re
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import zarr

from askance.features.index import SCHEMA
from askance.features.store import FeatureStore
from askance.pipeline.artifacts import listing

PAGE = (Path(__file__).parents[1] / "docs" / "store.md").read_text()
VOTERS, CLASSES, BLOCK = 4, 40, 8


def table(header):
    """Return the cells of each row of the page's table that begins with this."""
    lines = PAGE.split(f"\n| {header} |")[1].split("\n\n")[0].splitlines()[2:]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def names(cell):
    return re.findall("`([^`]+)`", cell)


ARRAYS = {names(name)[0]: cells for name, *cells in table("array | shape")}
WHERE = {names(name)[0]: where for name, where, _ in table("array | in")}
FIELDS = {name: where for cell, where, _ in table("`content.`") for name in names(cell)}


@pytest.fixture(scope="module")
def stores(tmp_path_factory, write_tar, encode, checkpoint, extract):
    """Return one store of each kind that the page tells of, by name."""
    from askance.stages import prepare, probe

    root, members = tmp_path_factory.mktemp("page"), {}
    for i in range(25):
        members |= {f"k{i:02}.png": encode(i), f"k{i:02}.cls": str(i % CLASSES).encode()}
        members[f"k{i:02}.votes.json"] = json.dumps([i, 1, 0, 2]).encode()
    write_tar(root / "s.tar", members)
    prepare.run(root / "voted", [f"shards 'path={root}/s.tar' votes=votes.json"])
    prepare.run(root / "plain", [f"shards 'path={root}/s.tar'"])
    own = {"weights": str(checkpoint(classes=CLASSES, img_size=32)), "classifier": "own"}
    found = {
        "full": extract(
            root / "voted", root / "a.zarr", views=["plain", "crop"], logits="full", **own
        ),
        "top": extract(root / "plain", root / "b.zarr", logits="top", dtype="float16", **own),
        "bare": extract(root / "plain", root / "c.zarr"),
    }
    for name, base, options in (("fitted", "bare", {"folds": 3}), ("restricted", "top", {})):
        found[name] = root / f"{base}.probe.zarr"
        probe.run(found[base], found[name], iterations=2, **options)
    return {name: FeatureStore.open(path) for name, path in found.items()}


def letters(store):
    """Return what the page's letters stand for in a store."""
    shapes = {name: array.shape for name, array in arrays(store).items()}
    n, v = len(store.status), len(store.views)
    width = shapes.get("embedding", shapes.get("classifier/weight"))[-1]
    found = {"n": n, "v": v, "d": width, "b": store.content["block"], "p": VOTERS, "k": 32, "1": 1}
    return found | {
        "c": shapes.get("classifier/bias", [0])[0],
        "f": shapes.get("folds/bias", [0])[0],
    }


def arrays(store):
    return {name: a for name, a in store.group.members(max_depth=None) if isinstance(a, zarr.Array)}


def test_every_array_is_on_the_page_as_it_is(stores):
    seen = set()
    for kind, store in stores.items():
        place = letters(store)
        for name, array in arrays(store).items():
            shape, dtype, chunk, fill = ARRAYS[name]
            sides = [tuple(place[x] for x in re.findall("[a-z1]", cell)) for cell in (shape, chunk)]
            assert (array.shape, array.chunks) == tuple(sides), f"{name} of {kind}"
            assert array.dtype.name in dtype.split(" or "), f"{name} of {kind}"
            np.testing.assert_equal(array.fill_value.item(), {"NaN": np.nan, "0": 0}[fill], name)
            assert not array.compressors, name
            assert array.shards is None, name
            seen.add(name)
    assert seen == set(ARRAYS)


def test_the_page_says_which_stores_have_an_array(stores):
    kinds = {  # the page's words, and the stores above that they mean
        "all": stores,
        "features": ["full", "top", "bare"],
        "features with the view `crop`": ["full"],
        "features whose index has votes": ["full"],
        "features with a classifier, probes": ["full", "top", "fitted", "restricted"],
        "features, `logits: full`": ["full"],
        "features, `logits: top`": ["top"],
        "probes": ["fitted", "restricted"],
        "probes that were fitted": ["fitted"],
    }
    assert set(WHERE) == set(ARRAYS)
    for name, where in WHERE.items():
        assert {kind for kind, store in stores.items() if name in arrays(store)} == set(
            kinds[where]
        )


def test_every_field_of_content_is_on_the_page(stores):
    kinds = {"features": ["full", "top", "bare"], "probes": ["fitted", "restricted"]}
    for where, group in kinds.items():
        told = {name for name, said in FIELDS.items() if said in ("all", where)}
        for kind in group:
            assert set(stores[kind].content) == told, kind
            assert set(stores[kind].group.attrs) == {"format", "fingerprint", "content", "made"}
    assert FIELDS["imported"] == "features of `import-cache`"
    settings = names(next(row[2] for row in table("`content.`") if row[0] == "`probe`"))
    for kind in kinds["probes"]:
        assert set(stores[kind].content["probe"]) <= set(settings)


def test_every_other_file_and_its_fields_are_on_the_page(stores):
    told = {names(cell)[0]: set(names(content)) for cell, content in table("file")}
    for store in stores.values():
        beside = {f for f in listing(store.path) if f.startswith("status/")}
        beside -= {f for f in beside if "/c/" in f or f.endswith("zarr.json")}
        assert {re.sub(r"\d{5}", "00000", file) for file in beside} == set(told)
        for file, fields in told.items():
            if file.endswith(".json"):
                said = set(json.loads((store.path / file).read_text())) - {"seal"}
                about = {"format", "fingerprint", "content", "made"} & said
                assert said - about <= fields, file
            else:
                assert set(pq.read_schema(store.path / file).names) <= fields, file
    assert set(SCHEMA.names) < told["status/index.parquet"]
