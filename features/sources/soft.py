"""Images that several people labelled, as the benchmark DCIC publishes them (Zenodo 7152309).

Schmarje et al., "Is one annotation enough?", NeurIPS 2022: a folder for each set, with fold1 to
fold5 and `annotations.json`. The URL benchmark tests on five of the sets.
"""

import json
import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
from jaxtyping import Int32

from askance.features.sources.archive import check_whole, find
from askance.features.sources.listed import Listed

SPLITS = {"fold1": "val", "fold2": "test", "fold3": "train", "fold4": "train", "fold5": "train"}


@dataclass(frozen=True)
class Soft:
    """A set in the folder `path`, with votes; the splits are the URL benchmark's.

    Fold 1 is `val`, fold 2 is `test`, the others are `train`. The label is the class with most
    votes, of two the first by name. Images that nobody labelled have no label: they are left out.
    """

    path: str

    title: ClassVar[str]  # the set's, with which the annotations' paths begin
    size: ClassVar[tuple[int, int]]  # classes, images

    def samples(self) -> pa.Table:
        """List the labelled images by path; classes are numbers, as votes are counted by them.

        Raises:
            ValueError: no annotations, those of another set or form, or not all images.
        """
        table = self._listed.samples()
        check_whole(table, *self.size, self._json)
        labels, splits = self._votes.argmax(1), [file.partition("/")[0] for file in self._files]
        return (
            table.append_column("name", pa.array([self._classes[label] for label in labels]))
            .append_column("split", pa.array([SPLITS[fold] for fold in splits]))
            .append_column("votes", pa.array(list(self._votes)))
        )

    def image(self, row: int) -> tuple[str, bytes]:
        """Return the file's bytes."""
        return self._listed.image(row)

    @cached_property
    def _json(self) -> Path:
        get = (
            "get the set's zip from https://doi.org/10.5281/zenodo.7152309, unpack it, and give its"
            " folder as path="
        )
        return find(self.path, ["annotations.json"], get)

    @cached_property
    def _labels(self) -> list[tuple[str, str]]:
        """Every vote: (image, class), an image as `fold1/x.png`."""
        try:
            found = [
                (entry["image_path"], entry["class_label"])
                for annotator in json.loads(self._json.read_bytes())
                for entry in annotator["annotations"]
                if entry["class_label"] is not None
            ]
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise ValueError(
                f"expected lists of annotations, each with image_path and class_label, in"
                f" {self._json}, got {error!r}: unpack the archive again"
            ) from error
        if not found:
            raise ValueError(f"expected a label at least in {self._json}, got none")
        return [(self._file(path), self._class(name)) for path, name in found]

    def _file(self, path: Any) -> str:  # noqa: ANN401 - whatever JSON holds
        pattern = re.escape(self.title) + r"/(fold[1-5]/.+)"
        match = re.fullmatch(pattern, path) if isinstance(path, str) else None
        if match is None:
            raise ValueError(
                f"expected images like {self.title}/fold1/NAME in {self._json}, got {path!r}: is"
                f" path= the folder of {self.title}?"
            )
        return match[1]

    def _class(self, name: Any) -> str:  # noqa: ANN401 - whatever JSON holds
        if not isinstance(name, str) or not name:
            raise ValueError(f"expected the name of a class in {self._json}, got {name!r}")
        return name

    @cached_property
    def _files(self) -> list[str]:
        return sorted({file for file, _ in self._labels})

    @cached_property
    def _classes(self) -> list[str]:
        return sorted({name for _, name in self._labels})

    @cached_property
    def _votes(self) -> Int32[np.ndarray, "n c"]:
        rows = {file: row for row, file in enumerate(self._files)}
        columns = {name: column for column, name in enumerate(self._classes)}
        votes = np.zeros((len(rows), len(columns)), np.int32)
        for file, name in self._labels:
            votes[rows[file], columns[name]] += 1
        return votes

    @cached_property
    def _listed(self) -> Listed:
        numbers = tuple(str(label) for label in self._votes.argmax(1))
        return Listed(self._json.parent, tuple(self._files), numbers, self._json)


class Benthic(Soft):
    """Animals of the sea floor."""

    title = "Benthic"
    size = (8, 4_867)


class Cifar10hFolds(Soft):
    """CIFAR-10H in the benchmark's folds: 1,981 of the 10,000 images are `test`."""

    title = "CIFAR10H"
    size = (10, 10_000)


class Pig(Soft):
    """Tails of pigs, hurt or not."""

    title = "Pig"
    size = (4, 10_237)


class Treeversity(Soft):
    """Parts of plants: Treeversity#1."""

    title = "Treeversity#1"
    size = (6, 9_489)


class Turkey(Soft):
    """Turkeys, hurt or not."""

    title = "Turkey"
    size = (3, 8_040)
