"""Docstrings as they are written here, told to griffe, which mkdocstrings reads them with."""

import re
from typing import Any

import griffe

HANGING = re.compile(r"^Source: .*(?:\n[ ]+\S.*)+", re.MULTILINE)


class Sections(griffe.Extension):
    """Makes `Example:` one of griffe's sections, and `Source:`, however long, a paragraph."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:  # noqa: ANN401
        """Rewrite an object's docstring."""
        if obj.docstring:
            text = re.sub(r"^Example:$", "Examples:", obj.docstring.value, flags=re.MULTILINE)
            obj.docstring.value = HANGING.sub(lambda found: " ".join(found[0].split()), text)
