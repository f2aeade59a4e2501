"""Emoji: the same things drawn by nine designers, out of npm's `@iconify-json/*`, as 64-pixel PNG.

Each package is one JSON of SVG drawings by name. A class is an emoji, a sample a designer's drawing
of it. Licences: each package's own (Apache-2.0, MIT, CC-BY-4.0, CC-BY-SA-4.0).
"""

import json
import re
from collections import Counter, defaultdict
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import pyarrow as pa

from askance.features import packages
from askance.pipeline.seeding import generator

SETS = {  # name: (version, SHA-256)
    "emojione": ("1.2.3", "26a14f44284407e8bcde91799388dca2bfd91dbcd55a97f425524a1c5b73610e"),
    "emojione-v1": ("1.2.3", "6641d59d48a42823fdc2b84e7427e9f302944eb98d2c7d94d6e67c139e7b37b3"),
    "fluent-emoji": ("1.2.7", "8044210dbf11e016d4de85f15d01a243423bd832457e7e2491df1b751c0e272b"),
    "fluent-emoji-flat": (
        "1.2.6",
        "7d064769dee690815f823bc5bcc511d957198caf9f5edd8dd9c1aa48a6aeb175",
    ),
    "fxemoji": ("1.2.2", "f3e72b3c59d05e1db03b7e308d55c0d05bd7ba3f625a90da1b79313c12858eef"),
    "noto": ("1.2.9", "3e918d88fc945c0bb3d468dbace6f88caef67f01c9f0e7bcae0915a042e8f1ad"),
    "noto-v1": ("1.2.5", "2bf62c26c2c2884aa99e90aec942cdaee17a5921f05690694f4978ad4b017c37"),
    "openmoji": ("1.2.29", "03181e2c156cab35cf4a62f1f7886bd971d59212e75ac3f189d5a4cae3930fc5"),
    "twemoji": ("1.2.5", "19046dff7d8707ce96212ec86468b36ac5f8e60409629dd13f809265c6d0ebb7"),
}
TONE = re.compile(r"-(medium-)?(dark|light|medium)$")
FLAG = re.compile(r"^flag-for-(flag-)?")  # some sets write flag-for-spain, some flag-spain
GLYPH = re.compile(r"digit-[a-z]+|asterisk|pound-symbol")  # parts of others; some sets: white

Collection = dict[str, Any]  # an icons.json


@dataclass(frozen=True)
class Emoji:
    """Emoji that at least `sets` of the nine sets draw, without variants in skin tone.

    The key is `<set>/<name>`. About a quarter of each class's drawings is the split `test`, the
    rest `train`.
    """

    sets: int = 3
    size: int = 64

    def samples(self) -> pa.Table:
        """List the drawings, by class."""
        columns: dict[str, list[str]] = {"key": [], "class": [], "split": []}
        for name, keys in self._classes.items():
            test = sorted(keys, key=lambda key: generator("emoji", key).random())
            test = test[: (len(keys) + 1) // 4]
            columns["key"] += keys
            columns["class"] += [name] * len(keys)
            columns["split"] += ["test" if key in test else "train" for key in keys]
        return pa.table(columns)

    def image(self, row: int) -> tuple[str, bytes]:
        """Render one drawing on white, fitted into a square.

        Raises:
            ValueError: the renderer is not installed.
        """
        try:
            from resvg_py import svg_to_bytes
        except ImportError as error:
            raise ValueError(
                f"expected resvg-py, which renders SVG, got {error}: install askance[demo]"
            ) from error
        name, _, icon = self._keys[row].partition("/")
        collection = self._collections[name]
        drawing = {key: collection.get(key) for key in ("width", "height")}
        drawing |= collection["icons"][icon]
        svg = (
            '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
            f' width="{self.size}" height="{self.size}"'
            f' viewBox="0 0 {drawing["width"]} {drawing["height"]}">{drawing["body"]}</svg>'
        )
        return "png", svg_to_bytes(svg_string=svg, background="white", skip_system_fonts=True)

    @cached_property
    def _collections(self) -> dict[str, Collection]:
        archives = {
            name: packages.npm(f"@iconify-json/{name}", *pinned) for name, pinned in SETS.items()
        }
        return {
            name: json.loads(packages.read(archive, "package/icons.json"))
            for name, archive in archives.items()
        }

    @cached_property
    def _classes(self) -> dict[str, list[str]]:
        found = group(self._collections)
        return {name: keys for name, keys in found.items() if len(keys) >= self.sets}

    @cached_property
    def _keys(self) -> list[str]:
        return [key for keys in self._classes.values() for key in keys]


def group(collections: dict[str, Collection]) -> dict[str, list[str]]:
    """Group the drawings of one emoji: {class: ["<set>/<icon>", ...]}, sorted by class.

    Names that lead to one drawing in any set are one class, called by the name that most sets use.
    A set that draws an emoji twice (an old and a new design, a flag that two countries share)
    gives the drawing of that name.
    """
    root: dict[str, str] = {}
    drawings = []  # (name, set, icon)
    for title, collection in collections.items():
        icons = collection["icons"]
        plain = {FLAG.sub("flag-", icon): icon for icon in icons if not _left_out(icon, icons)}
        drawings += [(name, title, icon) for name, icon in plain.items()]
        for alias, target in collection.get("aliases", {}).items():
            if set(target) == {"parent"}:  # otherwise turned or mirrored: another drawing
                names = [FLAG.sub("flag-", name) for name in (alias, target["parent"])]
                root[_find(root, names[0])] = _find(root, names[1])
    use = Counter(name for name, _, _ in drawings)
    grouped = defaultdict(list)
    for drawing in sorted(drawings, key=lambda drawing: (-use[drawing[0]], drawing)):
        grouped[_find(root, drawing[0])].append(drawing)
    return {members[0][0]: _one_per_set(members) for members in sorted(grouped.values())}


def _one_per_set(drawings: list[tuple[str, str, str]]) -> list[str]:
    """Return the keys of the first drawing of each set."""
    first: dict[str, str] = {}
    for _, title, icon in drawings:
        first.setdefault(title, icon)
    return sorted(f"{title}/{icon}" for title, icon in first.items())


def _left_out(icon: str, icons: Collection) -> bool:
    """Whether a drawing is a bare glyph or a variant in skin tone (`police-car-light` is none)."""
    plain = TONE.sub("", icon)
    toned = plain != icon and f"{plain}-medium-dark" in icons
    return toned or "skin-tone" in icon or GLYPH.fullmatch(icon) is not None


def _find(root: dict[str, str], name: str) -> str:
    """Return the name that stands for all names united with `name`."""
    while root.get(name, name) != name:
        name = root[name]
    return name
