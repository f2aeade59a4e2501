"""ImageNet-21k of winter 2021: 13 million photos, a class per folder or per tar, named by its wnid.

Nothing inside says the label: it is the class's place in a classifier's list of wnids. Other sets
in this layout, such as ImageNet-1k with class folders, are read as well.
"""

import os
import re
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from askance.features.shards import IMAGES, scan
from askance.features.sources.shards import THREADS, expand
from askance.pipeline.progress import progress
from askance.pipeline.retries import patiently

WNID = re.compile("n[0-9]{8}")
TIMM = "timm:"
TEXT, NUMBER = pa.string(), pa.int64()
PLACE = [("shard", TEXT), ("position", NUMBER), ("offset", NUMBER), ("size", NUMBER)]
ROW = [("key", TEXT), ("class", TEXT), ("name", TEXT), ("split", TEXT)]
IN_TARS, IN_FOLDERS = pa.schema([*ROW, *PLACE]), pa.schema([*ROW, ("file", TEXT)])


@dataclass(frozen=True)
class ImageNet21k:
    """Photos of classes at `path`: a folder of class folders (n01440764/*.JPEG) or of class tars.

    Class tars (n01440764.tar) may also be given as a pattern or fsspec URLs, as for `shards`; they
    stay where they are. `wnids` is a text file with a wnid at the beginning of each line, whose
    number from 0 is the label; or `timm:<subset>`, one of timm's own lists: the default's 21,843
    are the columns of Google's classifiers (`vit_*.augreg_in21k`). A class that isn't listed is
    refused; with `unlisted=leave` it is left out, and standard error says how many were.

    The key is `<wnid>/<name>`, the class's name its wnid. There is no official split; with `val=N`
    N evenly spaced images of each class that has more than twice as many are `val`, all others
    `train`.
    """

    path: str
    wnids: str = "timm:imagenet-21k"
    unlisted: str = "refuse"
    val: int = 0

    def samples(self) -> pa.Table:
        """List the images, class by class as the places lie; of tars only headers are read.

        Raises:
            ValueError: no class, one that isn't listed, a name that is no wnid, tars beside
                folders, a damaged tar or one with more than images, a list that can't be read.
            OSError: a tar or folder can't be read.
        """
        return self._table.select([name for name in self._table.column_names if name != "file"])

    def image(self, row: int) -> tuple[str, bytes]:
        """Return the file's bytes; never asked of images in tars."""
        path = Path(self._table["file"][row].as_py())
        return path.suffix[1:].lower(), path.read_bytes()

    @cached_property
    def _table(self) -> pa.Table:
        label, places = _labels(self.wnids), _places(self.path)
        in_tars = places[0].endswith(".tar")
        places = self._listed(places, label)
        threads = THREADS if "://" in self.path else 1
        tables = [(IN_TARS if in_tars else IN_FOLDERS).empty_table()]

        def of_class(place: str) -> pa.Table:
            columns = _tar(place) if in_tars else _folder(place)
            count, wnid = len(columns["key"]), _wnid(place)
            columns |= {"class": [str(label[wnid])] * count, "name": [wnid] * count}
            return pa.table(columns | {"split": _splits(count, self.val)}, tables[0].schema)

        with ThreadPoolExecutor(threads) as pool, progress("list", len(places), "classes") as done:
            for table in pool.map(of_class, places):
                tables.append(table)
                done(1)
        table = pa.concat_tables(tables)
        return table if in_tars else table.combine_chunks()  # whose rows are looked up one by one

    def _listed(self, places: list[str], label: dict[str, int]) -> list[str]:
        """Return the places of classes that have a label."""
        if self.unlisted not in ("refuse", "leave"):
            raise ValueError(
                f"expected unlisted=refuse or unlisted=leave, got unlisted={self.unlisted}"
            )
        left = [place for place in places if _wnid(place) not in label]
        if not left:
            return places
        few = ", ".join(map(_wnid, left[:5]))
        said = f"{len(left):,} of {len(places):,} that {self.wnids} doesn't list, such as {few}"
        if self.unlisted == "refuse":
            raise ValueError(
                f"expected classes that have a column in the classifier, got {said} (at"
                f" {self.path}): give the wnids= of your classifier, or leave them out with"
                " unlisted=leave"
            )
        print(f"left out the classes, {said}", file=sys.stderr)
        return [place for place in places if _wnid(place) in label]


def _places(path: str) -> list[str]:
    """Return the places of the classes: all folders, or all tars."""
    root = Path(path).expanduser()
    if "://" in path or not root.is_dir():
        places = expand(path)
    else:
        found = [entry for entry in sorted(root.iterdir()) if not entry.name.startswith(".")]
        kinds = {"tar", *IMAGES}
        places = [str(e) for e in found if e.is_dir() or e.suffix[1:].lower() in kinds]
    wrong = [place for place in places if not WNID.fullmatch(_wnid(place))]
    if wrong or not places:
        got = f"{wrong[0]!r} among {len(places):,}" if wrong else "none"
        raise ValueError(
            "expected class folders named by their wnids (n01440764), or a tar of each"
            f" (n01440764.tar), at {path}, got {got}: unpack a tar of tars once, and give the"
            " folder that holds the classes or, for tars, a pattern (.../n*.tar)"
        )
    folders = [place for place in places if not place.endswith(".tar")]
    if folders and ("://" in path or len(folders) < len(places)):
        raise ValueError(
            f"expected class tars at {path}, or class folders (which must be local) and no tars,"
            f" got {folders[0]} among {len(places):,}: give a pattern (.../n*.tar)"
        )
    return places


def _wnid(place: str) -> str:
    return place.rpartition("/")[2].removesuffix(".tar")


def _labels(wnids: str) -> dict[str, int]:
    """Return {wnid: label}."""
    names = _of_timm(wnids.removeprefix(TIMM)) if wnids.startswith(TIMM) else _of_file(wnids)
    labels = {name: number for number, name in enumerate(names)}
    if len(labels) < len(names):
        twice = next(name for number, name in enumerate(names) if labels[name] != number)
        raise ValueError(f"expected each wnid once in {wnids}, got {twice} twice: mend the list")
    return labels


def _of_timm(subset: str) -> list[str]:
    from askance.pipeline.vision import import_torchvision

    import_torchvision()  # before timm, which imports it
    from timm.data import ImageNetInfo

    try:
        return ImageNetInfo(subset).label_names()
    except AssertionError as error:
        raise ValueError(
            "expected wnids=timm: with a subset that timm lists, such as imagenet-21k (21,843"
            f" classes), imagenet-22k (21,841), imagenet-12k, imagenet-21k-miil or imagenet-1k, got"
            f" {subset!r}"
        ) from error


def _of_file(path: str) -> list[str]:
    file = Path(path).expanduser()
    if not file.is_file():
        raise ValueError(
            f"expected a text file with a wnid per line, or timm:<subset>, as wnids=, got no file"
            f" {path}"
        )
    names = []
    for number, line in enumerate(file.read_text().splitlines(), 1):
        found = WNID.match(line)
        if found is None:
            raise ValueError(
                f"expected a wnid (n01440764) at the beginning of line {number} of {path}, got"
                f" {line[:80]!r}"
            )
        names.append(found[0])
    return names


def _tar(shard: str) -> dict[str, list[Any]]:
    """List the images of a class tar."""
    return patiently(shard, _members, shard) if "://" in shard else _members(shard)


def _members(shard: str) -> dict[str, list[Any]]:
    wnid = _wnid(shard)
    columns: dict[str, list[Any]] = {name: [] for name in ("key", "position", "offset", "size")}
    for position, (key, members) in enumerate(scan(shard)):
        image = members[0]
        if len(members) > 1 or image.extension not in IMAGES:
            got = ", ".join(f"{key}.{member.extension}" for member in members)
            raise ValueError(
                "expected nothing but images, each with a name of its own, in the class tar"
                f" {shard}, got {got}: unpack a tar of tars once; shards with labels inside are for"
                " the source shards"
            )
        columns["key"].append(key if key.startswith(f"{wnid}/") else f"{wnid}/{key}")
        columns["position"].append(position)
        columns["offset"].append(image.offset)
        columns["size"].append(image.size)
    return columns | {"shard": [shard] * len(columns["key"])}


def _folder(folder: str) -> dict[str, list[Any]]:
    """List the images below a class folder, at any depth; hidden ones are left out."""
    root, files = Path(folder), list[str]()
    for place, below, names in os.walk(root, onerror=_fail):
        below[:] = sorted(name for name in below if not name.startswith("."))
        plain = sorted(name for name in names if not name.startswith("."))
        files += [f"{place}/{name}" for name in plain if Path(name).suffix[1:].lower() in IMAGES]
    start = len(f"{root.parent}/")
    keys = [file[start:].rpartition(".")[0].replace(".", "_") for file in files]
    return {"key": keys, "file": files}


def _fail(error: OSError) -> None:
    raise error


def _splits(count: int, val: int) -> list[str]:
    if not val:
        return [""] * count
    taken = np.linspace(0, count - 1, val).round().astype(int).tolist() if count > 2 * val else []
    return ["val" if position in taken else "train" for position in range(count)]
