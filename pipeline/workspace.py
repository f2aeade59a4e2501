"""The guard against running another checkout's code."""

from importlib.util import find_spec
from pathlib import Path

FOLDERS = ("pipeline", "features", "heads", "eval", "stages")
PACKAGES = ("askance", *(f"askance.{folder}" for folder in FOLDERS))


def check_checkout() -> None:
    """Stop when the current folder is a checkout of ours but other code would run.

    An editable install points at one checkout; DVC runs `--temp` and queued experiments in a copy
    of the repository. A stage started by a console script, or a copy without working links, would
    silently run the original's code under the copy's name.

    Raises:
        ValueError: a package lies outside the checkout in the current folder.
    """
    here = Path.cwd().resolve()
    if not (here / "askance" / "__init__.py").is_file():
        return
    foreign = [f"{name} ({place})" for name, place in _places() if here not in place.parents]
    if foreign:
        raise ValueError(
            f"expected the code of the checkout {here}, got {', '.join(foreign)}: start stages"
            " as 'python -m askance.stages.<name>' from the checkout's root, and check that"
            " askance/ holds working links to pipeline, features, heads, eval and stages"
        )


def _places() -> list[tuple[str, Path]]:
    specs = [(name, find_spec(name)) for name in PACKAGES]
    return [
        (name, Path(spec.origin).resolve() if spec and spec.origin else Path("missing"))
        for name, spec in specs
    ]
