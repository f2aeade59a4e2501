import re

import numpy as np
import pyarrow as pa
import pytest

from askance.features.index import SCHEMA, read_index, write_index

CONTENTS = {"x-0.tar": "h"}
REMOTE = "memory://bucket/x-0.tar"


def table(keys=("a", "b"), shard="x-0.tar"):
    count = len(keys)
    columns = {
        "key": list(keys),
        "shard": [shard] * count,
        "position": range(count),
        "offset": [512 * number for number in range(count)],
        "size": [9] * count,
        "label": [3] * count,
        "split": ["train"] * count,
        "votes": [[1, number] if number else None for number in range(count)],
    }
    return pa.table({name: pa.array(columns[name], SCHEMA.field(name).type) for name in columns})


def test_what_was_written_is_read_back(tmp_path):
    written = write_index(tmp_path, table(), {3: "dog"}, CONTENTS)
    read = read_index(tmp_path)
    assert read.table.equals(written.table)
    assert read.classes == {3: "dog"}
    assert read.keys == ["a", "b"]
    assert len(read) == 2
    np.testing.assert_array_equal(read.labels, np.array([3, 3], np.int32), strict=True)


def test_the_digest_depends_on_the_rows_and_not_on_the_place_of_the_shards(tmp_path):
    here = write_index(tmp_path / "a", table(), {}, CONTENTS)
    there = write_index(tmp_path / "b", table(shard=REMOTE), {}, {REMOTE: "h"})
    other = write_index(tmp_path / "c", table(keys=("a", "c")), {}, CONTENTS)
    assert here.digest == there.digest == read_index(tmp_path / "a").digest
    assert here.digest != other.digest
    mended = write_index(tmp_path / "d", table(), {}, {"x-0.tar": "other bytes"})
    assert here.digest != mended.digest


def test_the_digest_does_not_depend_on_how_the_table_came_about(tmp_path):
    whole = table(keys="abcd")
    pieces = pa.concat_tables([whole.slice(0, 1), whole.filter([False, True, True, True])])
    assert (
        write_index(tmp_path / "a", whole, {}, CONTENTS).digest
        == write_index(tmp_path / "b", pieces, {}, CONTENTS).digest
    )


def test_two_samples_with_one_key_are_refused_with_both_places(tmp_path):
    twice = pa.concat_tables([table(), table(shard="y-0.tar", keys=("b", "z"))])
    message = "got 2 with the key 'b': x-0.tar (sample 1) and y-0.tar (sample 0)"
    with pytest.raises(ValueError, match=re.escape(message)):
        write_index(tmp_path, twice, {}, CONTENTS)
    assert not list(tmp_path.iterdir())


def test_an_empty_set_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"expected samples for .*, got none"):
        write_index(tmp_path, table().slice(0, 0), {}, CONTENTS)


def test_a_folder_without_an_index_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"got no .*index.parquet: run prepare"):
        read_index(tmp_path)


def test_relative_shards_lie_beside_the_index(tmp_path):
    index = write_index(tmp_path, table(), {}, CONTENTS)
    assert index.location("x-0.tar") == str(tmp_path / "x-0.tar")
    assert index.location("/data/x-0.tar") == "/data/x-0.tar"
    assert index.location("s3://bucket/x-0.tar") == "s3://bucket/x-0.tar"
