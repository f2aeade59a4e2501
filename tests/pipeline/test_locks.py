"""One writer at a time."""

import pytest

from askance.pipeline.locks import only_writer


def test_there_is_one_writer_until_it_ends_however_it_ends(tmp_path):
    path, lock = tmp_path / "a.zarr", tmp_path / "lock"

    def written():
        with only_writer(path, lock):
            with pytest.raises(ValueError, match="only writer of .*a.zarr, got another .*: wait"):
                only_writer(path, lock).__enter__()
            raise KeyboardInterrupt

    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            written()
