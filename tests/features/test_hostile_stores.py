"""Stores are strangers' files, too: nothing in one is ever unpickled."""

import json
import pickle

import pytest
import zarr
from numcodecs.pickles import Pickle

from askance.features.store import FORMAT, FeatureStore

CODECS = {"dtype": "|O", "filters": [{"id": "vlen-utf8"}, {"id": "pickle", "protocol": 2}]}


@pytest.fixture
def unpickled(monkeypatch):
    """Return the list of what was unpickled: releases of numcodecs differ in whether they do so."""
    seen = []
    monkeypatch.setattr(
        Pickle, "decode", lambda self, buf, out=None: seen.append(bytes(buf)) or buf
    )
    return seen


def old(path):
    """Write a group of format 2 whose array `status` is read by unpickling it."""
    group = zarr.open_group(str(path), mode="w", zarr_format=2, attributes={"format": FORMAT})
    group.attrs["content"] = {}
    group.create_array(
        "status", shape=(1,), chunks=(1,), dtype="u1", compressors=None, filters=None
    )
    metadata = json.loads((path / "status" / ".zarray").read_text()) | CODECS
    (path / "status" / ".zarray").write_text(json.dumps(metadata))
    (path / "status" / "0").write_bytes(pickle.dumps(1, protocol=2))
    return metadata


def new(path):
    """Write a group of format 3 whose consolidated metadata tell of that array."""
    metadata = old(path)
    for name in (".zgroup", ".zattrs"):
        (path / name).unlink()
    group = {"zarr_format": 3, "node_type": "group"}
    group["attributes"] = {"format": FORMAT, "content": {}}
    entry = metadata | {"node_type": "array", "attributes": {}}
    told = {"kind": "inline", "must_understand": False, "metadata": {"status": entry}}
    (path / "zarr.json").write_text(json.dumps(group | {"consolidated_metadata": told}))


@pytest.mark.parametrize("write", [old, new])
@pytest.mark.filterwarnings("ignore")  # Zarr's, about the array
def test_a_store_that_would_be_unpickled_is_no_store(tmp_path, write, unpickled):
    write(tmp_path / "a.zarr")
    with pytest.raises((ValueError, KeyError), match="expected a store of format|status"):
        FeatureStore.open(tmp_path / "a.zarr")
    assert unpickled == []


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("write", [old, new])
def test_zarr_itself_would_unpickle_it(tmp_path, write, unpickled):
    write(tmp_path / "a.zarr")
    with pytest.raises(Exception, match=""):
        zarr.open_group(str(tmp_path / "a.zarr"), mode="r")["status"][:]
    assert unpickled
