"""The place of a store: locked while it is open, and never without the store that was there."""

import pytest

from askance.features.store import MANIFEST
from askance.features.writer import StoreWriter
from askance.pipeline.artifacts import place
from tests.features.test_store import content, index, layout, values, write_all


def test_a_place_that_can_not_be_opened_is_not_kept_locked(tmp_path):
    rows, path = index(tmp_path), tmp_path / "a.zarr"
    path.mkdir()
    (path / "photo.jpg").write_bytes(b"of somebody's")
    refused = StoreWriter(path, layout(), rows)
    with pytest.raises(ValueError, match=r"expected a store or nothing, .* at .*a.zarr: move it"):
        refused.__enter__()
    path.rename(tmp_path / "moved")
    with StoreWriter(path, layout(), rows) as writer:
        assert writer.message == f"{path}: new"
    assert (tmp_path / "moved" / "photo.jpg").read_bytes() == b"of somebody's"


def test_a_local_store_without_its_manifest_is_damaged_and_stays(tmp_path):
    """It is created all at once, so that this is no start that was cut short."""
    writer = StoreWriter(tmp_path / "a.zarr", layout(), index(tmp_path))
    write_all(writer)
    (writer.path / MANIFEST).unlink()
    before = content(writer.path)
    with pytest.raises(ValueError, match="manifest.json in .*damaged, run askance verify --repair"):
        writer.__enter__()
    assert content(writer.path) == before


def test_starts_that_were_killed_leave_no_litter(tmp_path):
    litter = tmp_path / ".a.zarr.123.partial"
    (litter / "embedding").mkdir(parents=True)
    with StoreWriter(tmp_path / "a.zarr", layout(), index(tmp_path)):
        assert not litter.exists()


@pytest.mark.parametrize("done", [False, True])
def test_an_object_store_begins_again_what_was_cut_short_unless_a_block_is_done(tmp_path, done):
    rows, path = index(tmp_path), place(f"memory://opening/{done}/a.zarr")
    with StoreWriter(path, layout(), rows) as writer:
        if done:
            block = writer.blocks[0]
            writer.write(block, values(block), {})
    (path / MANIFEST).unlink()
    again = StoreWriter(path, layout(), rows)
    if done:
        with pytest.raises(ValueError, match="the store is damaged, run askance verify --repair"):
            again.__enter__()
        return
    with again:
        assert again.message == f"{path}: a start that was cut short is begun again"
        assert (path / MANIFEST).exists()
