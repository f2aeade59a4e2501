"""A machine that writes, dies, resumes, mends, changes parameters, damages and checks a store."""

import shutil
import tempfile
from pathlib import Path

import numpy as np
import zarr
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from askance.features.blocks import plan
from askance.features.store import FeatureStore
from askance.features.verify import Told, check_files
from askance.features.writer import StoreWriter
from tests.features.test_store import content, index, layout, values

ROWS, BLOCK = 10, 4
BLOCKS = plan(ROWS, BLOCK)
blocks = st.sampled_from(BLOCKS)
seeds = st.integers(0, 2)
rows = st.sets(st.integers(0, ROWS - 1), max_size=4)


class Store(RuleBasedStateMachine):
    """The store, beside what it must hold: {seed: {block number: its refused rows}}."""

    def __init__(self):
        super().__init__()
        self.folder = Path(tempfile.mkdtemp())
        self.path, self.index = self.folder / "a.zarr", index(self.folder, ROWS)
        self.seed, self.held = 0, {}
        self.open(0)

    def teardown(self):
        shutil.rmtree(self.folder)

    def open(self, seed):
        self.seed = seed
        self.held.setdefault(seed, {})
        return StoreWriter(self.path, layout(BLOCK, seed), self.index)

    @property
    def done(self):
        return self.held[self.seed]

    def arrays(self, block, refused):
        arrays = values(block, self.seed)
        arrays["embedding"][[row - block.start for row in refused]] = np.nan
        return arrays

    def write(self, writer, block, refused):
        here = {row: "no image" for row in sorted(refused) if row in block.rows}
        writer.write(block, self.arrays(block, here), here)
        self.done[block.number] = set(here)

    @rule(seed=seeds)
    def start_with_some_parameters(self, seed):
        with self.open(seed):
            pass

    @rule(count=st.integers(1, 3), refused=rows)
    def go_on(self, count, refused):
        with self.open(self.seed) as writer:
            for block in writer.missing()[:count]:
                self.write(writer, block, refused)

    @rule(block=blocks, litter=st.booleans())
    def die_within_a_block(self, block, litter):
        """Arrays and status are there, the record is not."""
        with self.open(self.seed) as writer:
            if writer.done(block):
                return
            group = zarr.open_group(self.path)
            group["embedding"][block.start : block.stop] = 7
            group["status"][block.start : block.stop] = 1
            if litter:
                (self.path / "embedding" / "c" / "x.partial").write_bytes(b"half a chunk")

    @rule(block=blocks, found=rows)
    def retry(self, block, found):
        with self.open(self.seed) as writer:
            if not self.done.get(block.number):
                return
            refused = self.done[block.number]
            still = dict.fromkeys(sorted(refused - found), "no image")
            writer.mend(block, list(block.rows), self.arrays(block, still), still)
            self.done[block.number] = set(still)

    @precondition(lambda self: len(self.done) == len(BLOCKS))
    @rule()
    def finish(self):
        """The store is that of a run which never died, byte for byte, and told nothing wrong."""
        with self.open(self.seed) as writer:
            table = writer.finish()
        refused = sorted(row for found in self.done.values() for row in found)
        assert table["row"].to_pylist() == refused
        store = FeatureStore.open(self.path)
        assert store.rows.tolist() == sorted(set(range(ROWS)) - set(refused))
        whole = StoreWriter(self.folder / "whole" / "a.zarr", layout(BLOCK, self.seed), self.index)
        with whole:
            for block in BLOCKS:
                self.write(whole, block, refused)
            whole.finish()
        assert content(self.path) == content(whole.path)
        shutil.rmtree(whole.path.parent)

    @precondition(lambda self: len(self.done) == len(BLOCKS))
    @rule(data=st.data())
    def damage(self, data):
        """One bit of one file is found, named, and nothing else is."""
        with self.open(self.seed) as writer:
            writer.finish()
        files = sorted(p for p in self.path.rglob("*") if p.is_file() and p.stat().st_size)
        file = data.draw(st.sampled_from(files))
        before = bytearray(file.read_bytes())
        bit = data.draw(st.integers(0, 8 * len(before) - 1))
        after = before.copy()
        after[bit // 8] ^= 1 << bit % 8
        file.write_bytes(after)
        found = list(check_files(Told.read(self.path), lambda _: None))
        assert any(str(file.relative_to(self.path)) in str(finding) for finding in found)
        file.write_bytes(before)
        assert not list(check_files(Told.read(self.path), lambda _: None))

    @invariant()
    def what_is_done_is_there_and_nothing_else_counts(self):
        with self.open(self.seed) as writer:
            missing = {block.number for block in writer.missing()}
            assert missing == {block.number for block in BLOCKS} - set(self.done)
            group = zarr.open_group(self.path, mode="r")
            for block in BLOCKS:
                if block.number in self.done:
                    held = group["embedding"][block.start : block.stop]
                    expected = self.arrays(block, self.done[block.number])["embedding"]
                    np.testing.assert_array_equal(held, expected)
                    assert writer.refused(block).keys() == self.done[block.number]


TestStore = Store.TestCase
TestStore.settings = settings(max_examples=20, stateful_step_count=15, deadline=None)
