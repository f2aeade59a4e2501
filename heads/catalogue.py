"""The heads by name; adding one is a file and a line."""

from askance.heads.dropout import Dropout, DropoutJsd
from askance.heads.elk import Elk, ElkPublished
from askance.heads.ensemble import Ensemble, EnsembleJsd
from askance.heads.entropy import Entropy
from askance.heads.gp import Gp, GpPublished
from askance.heads.head import Head
from askance.heads.hetxl import HetXl, HetXlDet, HetXlDetPublished, HetXlPublished
from askance.heads.hib import Hib, HibPublished
from askance.heads.infonce import InfoNce, InfoNcePublished
from askance.heads.maxprob import MaxProb
from askance.heads.mcinfonce import McInfoNce, McInfoNcePublished
from askance.heads.nivmf import Nivmf, NivmfPublished
from askance.heads.norm import Norm
from askance.heads.ranking import Ranking
from askance.heads.squared import Squared

HEADS: dict[str, type[Head]] = {
    "ranking": Ranking,
    "squared": Squared,
    "entropy": Entropy,
    "maxprob": MaxProb,
    "norm": Norm,
    "infonce": InfoNce,
    "infonce-published": InfoNcePublished,
    "mcinfonce": McInfoNce,
    "mcinfonce-published": McInfoNcePublished,
    "hib": Hib,
    "hib-published": HibPublished,
    "elk": Elk,
    "elk-published": ElkPublished,
    "nivmf": Nivmf,
    "nivmf-published": NivmfPublished,
    "hetxl": HetXl,
    "hetxl-published": HetXlPublished,
    "hetxl-det": HetXlDet,
    "hetxl-det-published": HetXlDetPublished,
    "gp": Gp,
    "gp-published": GpPublished,
    "dropout": Dropout,
    "dropout-jsd": DropoutJsd,
    "ensemble": Ensemble,
    "ensemble-jsd": EnsembleJsd,
}


def find(name: str) -> type[Head]:
    """Return the head called `name`.

    Raises:
        ValueError: there is none.
    """
    if name not in HEADS:
        raise ValueError(f"expected a head among {', '.join(HEADS)}, got {name!r}")
    return HEADS[name]
