"""The heads by name; adding one is a file and a line."""

from askance.heads.entropy import Entropy
from askance.heads.head import Head
from askance.heads.maxprob import MaxProb
from askance.heads.norm import Norm
from askance.heads.ranking import Ranking
from askance.heads.squared import Squared

HEADS: dict[str, type[Head]] = {
    "ranking": Ranking,
    "squared": Squared,
    "entropy": Entropy,
    "maxprob": MaxProb,
    "norm": Norm,
}


def find(name: str) -> type[Head]:
    """Return the head called `name`.

    Raises:
        ValueError: there is none.
    """
    if name not in HEADS:
        raise ValueError(f"expected a head among {', '.join(HEADS)}, got {name!r}")
    return HEADS[name]
