"""The same arrays through other libraries: which metrics agree, and why the others don't.

Each difference is explained by doing as the other library does: where that doesn't give its number,
either, the difference is unexplained and the run fails. All get float32; every library gets the
uncertainty or, where it wants probabilities, an increasing map of the certainty.
"""

import math
import sys
import warnings
from collections.abc import Callable
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import numpy as np
import torch
from scipy.stats import rankdata, spearmanr
from sklearn.metrics import roc_auc_score

from askance import metrics
from askance.eval.ranks import auroc, levels
from askance.pipeline.vision import import_torchvision

import_torchvision()  # before torchmetrics, which imports it

from torchmetrics.functional.classification import binary_auroc  # noqa: E402
from torchmetrics.functional.regression import spearman_corrcoef  # noqa: E402

CLOSE = 1e-6  # theirs are float32
COVERAGE, ACCURACY = 0.07, 0.8
UNDEFINED = "0 where it is undefined (ours: NaN and why)"
ORDER = "tied queries in the order the sort left them (ours: the mean over all orders)"

Columns = tuple[np.ndarray, np.ndarray]
Number = Callable[[np.ndarray, np.ndarray], float]


class Row(NamedTuple):
    """A metric of a library, ours, and ways to do as the library does: why, and how."""

    metric: str
    peer: str
    theirs: Number
    ours: Number
    ways: dict[str, Number]


def queries(rows: int = 300) -> dict[str, Columns]:
    """Return uncertainties and hits: plain, tied, outside 0 to 1, and degenerate."""
    rng = np.random.default_rng(0)
    hit = rng.random(rows) < 0.7
    u = rng.beta(3 - hit, 3).astype(np.float32)
    return {
        "no ties": (u, hit),
        "11 levels": (u.round(1), hit),
        "0 to 60": (np.float32(60) * u, hit),
        "tiny": (np.float32(-1e-8) * (1 - u), hit),
        "constant": (np.full_like(u, 0.3), hit),
        "no miss": (u, np.ones(rows, bool)),
        "no hit": (u, np.zeros(rows, bool)),
    }


def pairs() -> dict[str, Columns]:
    """Return columns that correlate: plain, a few levels, many rows of a few levels, constant."""
    rng = np.random.default_rng(0)
    first, second = rng.normal(size=(2, 200_000)).astype(np.float32)
    second = first + second
    return {
        "no ties": (first[:2000], second[:2000]),
        "levels, 2,000": (first[:2000].round(), second[:2000]),
        "levels, 200,000": (first.round(), second),
        "constant": (np.zeros(2000, np.float32), second[:2000]),
    }


def zero_where_undefined(ours: Number) -> Number:
    return lambda *case: 0.0 if math.isnan(ours(*case)) else math.inf


def nan_where_zero(ours: Number) -> Number:
    return lambda *case: math.inf if ours(*case) else math.nan


def sigmoid(u: np.ndarray, hit: np.ndarray) -> float:
    return auroc(torch.from_numpy(u).sigmoid().numpy(), ~hit)


def rank_sums_in_int32(first: np.ndarray, second: np.ndarray) -> float:
    """Return Spearman's correlation with sums of tied ranks that overflow."""
    ranks = []
    for column in (first, second):
        level, rank = levels(column), rankdata(column)
        total = np.rint(np.bincount(level, weights=rank)).astype(np.int64).astype(np.int32)
        ranks.append((total / np.bincount(level))[level])
    return float(np.corrcoef(*ranks)[0, 1])


def correlation(first: np.ndarray, second: np.ndarray) -> float:
    return metrics.crop_correlation(-first, second)


def coverage(u: np.ndarray, hit: np.ndarray) -> float:
    return metrics.coverage_at_accuracy(u, hit, ACCURACY)


def correlations() -> list[Row]:
    """Return the rows of R-AUROC and Spearman's correlation."""
    return [
        Row(
            "r_auroc", "torchmetrics",
            lambda u, hit: binary_auroc(torch.from_numpy(u), torch.from_numpy(~hit)).item(),
            metrics.r_auroc,
            {
                "a float32 sigmoid, as a score lies outside 0 to 1, ties what it rounds": sigmoid,
                UNDEFINED: zero_where_undefined(metrics.r_auroc),
            },
        ),
        Row("r_auroc", "scikit-learn", lambda u, hit: roc_auc_score(~hit, u), metrics.r_auroc, {}),
        Row(
            "spearman", "torchmetrics",
            lambda a, b: spearman_corrcoef(torch.from_numpy(a), torch.from_numpy(b)).item(),
            correlation,
            {
                "sums of tied ranks overflow int32": rank_sums_in_int32,
                UNDEFINED: zero_where_undefined(correlation),
            },
        ),
        Row(
            "spearman", "SciPy",
            lambda a, b: spearmanr(a, b)[0], correlation, {},
        ),
    ]  # fmt: skip


def probability(u: np.ndarray) -> torch.Tensor:
    """Return the probability of class 1, from 0.6 to 0.9: larger where more certain."""
    level = levels(u)
    return torch.from_numpy(0.9 - 0.3 * level / max(1, level.max())).float()


def sorted_risks(u: np.ndarray, hit: np.ndarray) -> np.ndarray:
    """Return the risks with ties in the order that torch's sort leaves them."""
    order = probability(u).argsort(descending=True).numpy()
    return (~hit)[order].cumsum() / np.arange(1, len(hit) + 1)


def trapezoids(values: np.ndarray) -> float:
    """Return the area from coverage 1 / n to 1, by its width."""
    return float(np.trapezoid(values) / (len(values) - 1))


def coverage_of(risk: np.ndarray) -> float:
    """Return the largest coverage whose risk is small enough; NaN where none is."""
    enough = np.flatnonzero(risk <= np.float32(1 - ACCURACY))
    return (enough[-1] + 1) / len(risk) if len(enough) else float("nan")


def torch_uncertainty() -> ModuleType | None:
    """Return its metrics of the risk-coverage curve, or none where it isn't installed.

    Only their file is loaded: the package imports all of lightning, which they don't need.
    """
    package = find_spec("torch_uncertainty")
    if package is None or package.origin is None:
        return None
    path = Path(package.origin).parent / "metrics" / "classification" / "risk_coverage.py"
    spec = spec_from_file_location("risk_coverage", path)
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def asked(metric: type, *options: float) -> Number:
    """Return what a metric of the library makes of uncertainties and hits."""

    def theirs(u: np.ndarray, hit: np.ndarray) -> float:
        made = metric(*options)
        made.update(probability(u), torch.from_numpy(hit).long())
        return float(made.compute())

    return theirs


def risk(u: np.ndarray, hit: np.ndarray) -> np.ndarray:
    return metrics.risk_coverage(u, hit)[1]


def share(u: np.ndarray) -> np.ndarray:
    return np.arange(1, len(u) + 1) / len(u)


def at_coverage(risks: np.ndarray) -> float:
    """Return the risk where the library looks for it: a float's rounding may be a query more."""
    return float(risks[int(np.ceil(len(risks) * COVERAGE)) - 1])


def areas(peer: ModuleType) -> list[Row]:
    """Return the rows of areas under the risk-coverage curve."""
    edge = "trapezoids from coverage 1 / n (ours: "
    return [
        Row("aurc", "torch_uncertainty", asked(peer.AURC), metrics.aurc, {
            edge + "the mean of all n risks)": lambda u, hit: trapezoids(risk(u, hit)),
            f"the same, and {ORDER}": lambda u, hit: trapezoids(sorted_risks(u, hit)),
        }),
        Row("augrc", "torch_uncertainty", asked(peer.AUGRC), metrics.augrc, {
            edge + "from 0)": lambda u, hit: trapezoids(share(u) * risk(u, hit)),
            f"the same, and {ORDER}": lambda u, hit: trapezoids(share(u) * sorted_risks(u, hit)),
        }),
    ]  # fmt: skip


def points(peer: ModuleType) -> list[Row]:
    """Return the rows of points on the risk-coverage curve."""
    return [
        Row(
            f"risk at coverage {COVERAGE}", "torch_uncertainty", asked(peer.RiskAtxCov, COVERAGE),
            lambda u, hit: 1 - metrics.accuracy_at_coverage(u, hit, COVERAGE),
            {
                f"one query more: {COVERAGE} n rounds to just above a whole number":
                    lambda u, hit: at_coverage(risk(u, hit)),
                f"the same, and {ORDER}": lambda u, hit: at_coverage(sorted_risks(u, hit)),
            },
        ),
        Row(
            f"coverage at accuracy {ACCURACY}", "torch_uncertainty",
            asked(peer.CovAtxRisk, round(1 - ACCURACY, 9)),
            coverage,
            {
                "NaN where no coverage will do (ours: 0)": nan_where_zero(coverage),
                "a group of tied queries is cut (ours: whole groups only)":
                    lambda u, hit: coverage_of(sorted_risks(u, hit)),
            },
        ),
    ]  # fmt: skip


def selective() -> list[Row]:
    """Return the rows of the risk-coverage curve; none without the library."""
    peer = torch_uncertainty()
    if peer is None:
        print("torch_uncertainty is not installed: its rows are left out")
        return []
    return areas(peer) + points(peer)


def verdict(row: Row, case: Columns, theirs: float, ours: float) -> str:
    """Return "agree", the first reason that gives their number, or "UNEXPLAINED"."""

    def close(value: float) -> bool:
        return bool(np.isclose(theirs, value, rtol=0, atol=CLOSE, equal_nan=True))

    if close(ours):
        return "agree"
    return next((why for why, way in row.ways.items() if close(way(*case))), "UNEXPLAINED")


def main() -> None:
    """Print a line per metric, library and case; fail if a difference is unexplained."""
    warnings.simplefilter("ignore")  # of the peers, about what is undefined
    kinds = ((correlations()[:2] + selective(), queries()), (correlations()[2:], pairs()))
    verdicts = []
    for rows, cases in kinds:
        for row in rows:
            for name, case in cases.items():
                theirs, ours = float(row.theirs(*case)), float(row.ours(*case))
                verdicts.append(verdict(row, case, theirs, ours))
                print(
                    f"{row.metric:25}{row.peer:19}{name:17}{theirs:10.6f}{ours:10.6f}"
                    f"  {verdicts[-1]}"
                )
    agree, unexplained = verdicts.count("agree"), verdicts.count("UNEXPLAINED")
    print(f"{agree} of {len(verdicts)} agree, {unexplained} unexplained")
    if unexplained:
        sys.exit(1)


if __name__ == "__main__":
    main()
