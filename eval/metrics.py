"""Metrics: how well an uncertainty foretells errors.

Comes in: numpy arrays or torch tensors, one row per query; uncertainties are larger where less
certain. Goes out: `Estimate`s, floats with their 95 % interval over queries; what is undefined is
NaN with a reason. Ranks are exact in float64: only the order of the uncertainties counts.
"""

import math

import numpy as np
import pyarrow as pa
from jaxtyping import Bool, Float64, Int64

from askance.eval import influences
from askance.eval.columns import Array, columns
from askance.eval.estimates import Estimate, Z, wilson
from askance.eval.influences import vote_entropy as vote_entropy
from askance.eval.ranks import check_finite

QUANTILES = (10, 25, 50, 75, 90)  # per cent


def hits(embedding: Array, label: Array) -> Bool[np.ndarray, " n"]:
    """Return for each row whether the nearest other row has its label.

    Args:
        embedding: (n, d) floats of any length and at least two rows.
        label: (n,) integers.

    Raises:
        ValueError: fewer than two rows, a row that is not finite, or columns that don't match.

    Source: recall at 1 of URL (arXiv 2307.03810, section 2); see `askance.eval.retrieval`.

    Example:
        >>> hits(np.array([[1.0, 0], [3, 4], [0, 2]]), np.array([5, 7, 7]))
        array([False,  True,  True])
    """
    embedding, label = columns(embedding=embedding, label=label)
    return np.asarray(label[_nearest(embedding)] == label, bool)


def _nearest(embedding: np.ndarray) -> Int64[np.ndarray, " n"]:
    from askance.eval.retrieval import neighbours

    return neighbours(embedding).row


def recall_at_1(embedding: Array, label: Array) -> Estimate:
    """Return the share of rows whose nearest other row has their label, 0 to 1.

    NaN for fewer than two rows. The interval heeds that two rows, each the nearest of the other,
    hit or miss together.

    Args:
        embedding: (n, d) floats.
        label: (n,) integers.

    Raises:
        ValueError: a row is not finite, or columns don't match.

    Source: recall at 1 of URL (arXiv 2307.03810, section 2).
    """
    embedding, label = columns(embedding=embedding, label=label)
    if len(label) < 2:
        return Estimate(math.nan, reason="no other row to retrieve")
    near = _nearest(embedding)
    return influences.recall(label[near] == label, np.arange(len(near)), near).estimate()


def r_auroc(uncertainty: Array, hit: Array) -> Estimate:
    """Return the chance that a random miss is more uncertain than a random hit, ties one half.

    From 0 over 0.5 (no better than a coin) to 1 (every miss is less certain than every hit). NaN
    without a miss or without a hit.

    Args:
        uncertainty: (n,) floats.
        hit: (n,) booleans, such as `hits` returns.

    Raises:
        ValueError: an uncertainty is NaN or infinite, or columns don't match.

    Source: URL benchmark (arXiv 2307.03810, section 2); the interval has the variance of DeLong et
        al. 1988.

    Example:
        >>> r_auroc(np.array([0.1, 0.2, 0.2, 0.9]), np.array([True, True, False, False]))
        0.875 (0.3463 to 0.9893)
    """
    uncertainty, hit = columns(uncertainty=uncertainty, hit=hit)
    return influences.r_auroc(uncertainty, hit).estimate()


def classification_auroc(uncertainty: Array, correct: Array) -> Estimate:
    """Return the chance that a wrongly classified row is more uncertain than a right one.

    As `r_auroc`, with `correct`, (n,) booleans: the classifier named the row's class.

    Raises:
        ValueError: an uncertainty is NaN or infinite, or columns don't match.

    Source: URL benchmark (arXiv 2307.03810), `auroc_classification` of its program.
    """
    uncertainty, correct = columns(uncertainty=uncertainty, correct=correct)
    return influences.auroc(uncertainty, ~correct, ("wrong row", "correct row")).estimate()


def crop_win_rate(plain: Array, cropped: Array) -> Estimate:
    """Return the share of images that are less certain cropped than plain; a tie is no win.

    From 0 to 1; NaN without an image.

    Args:
        plain: (n,) uncertainties of the images.
        cropped: (n,) uncertainties of crops of them.

    Raises:
        ValueError: an uncertainty is NaN or infinite, or columns don't match.

    Source: URL benchmark (arXiv 2307.03810), `croppedHasBiggerUnc` of its program.

    Example:
        >>> crop_win_rate(np.array([0.1, 0.2]), np.array([0.3, 0.2]))
        0.5 (0.09453 to 0.9055)
    """
    plain, cropped = columns(plain=plain, cropped=cropped)
    check_finite(plain)
    check_finite(cropped)
    return influences.share(plain < cropped, "no image").estimate()


def crop_correlation(cropped: Array, fraction: Array) -> Estimate:
    """Return the rank correlation of a crop's certainty with how much of the image it shows.

    From -1 to 1, larger is better; NaN where one is constant.

    Args:
        cropped: (n,) uncertainties of the crops.
        fraction: (n,) floats, the crops' sides as fractions of the images'.

    Raises:
        ValueError: a value is NaN or infinite, or columns don't match.

    Source: URL benchmark (arXiv 2307.03810), `rcorr_crop_unc` of its program.
    """
    cropped, fraction = columns(cropped=cropped, fraction=fraction)
    names = "uncertainty", "fraction"
    return influences.spearman(-cropped, fraction, names).estimate()


def human_correlation(uncertainty: Array, votes: Array) -> Estimate:
    """Return the rank correlation of uncertainty with the entropy of people's votes, -1 to 1.

    Rows without a vote are skipped. NaN where uncertainty or entropy is constant.

    Args:
        uncertainty: (n,) floats.
        votes: (n, c) counts, how many people voted for each class.

    Raises:
        ValueError: an uncertainty is NaN or infinite, a count negative, or columns don't match.

    Source: URL benchmark (arXiv 2307.03810), `rcorr_entropy` of its program.
    """
    uncertainty, votes = _counted(uncertainty, votes)
    return influences.human_correlation(uncertainty, votes).estimate()


def dirac_auroc(uncertainty: Array, votes: Array) -> Estimate:
    """Return the chance that an image people disagree on is more uncertain than an agreed one.

    From 0 over 0.5 to 1. Rows without a vote are skipped. NaN where people agree on all, or none.

    Args:
        uncertainty: (n,) floats.
        votes: (n, c) counts, how many people voted for each class.

    Raises:
        ValueError: an uncertainty is NaN or infinite, a count negative, or columns don't match.

    Source: Pretrained Visual Uncertainties (arXiv 2402.16569), which asks for a "Dirac" label.
    """
    uncertainty, votes = _counted(uncertainty, votes)
    return influences.dirac_auroc(uncertainty, votes).estimate()


def _counted(uncertainty: Array, votes: Array) -> list[np.ndarray]:
    """Return the columns, after a look at the counts."""
    uncertainty, votes = columns(uncertainty=uncertainty, votes=votes)
    check_finite(uncertainty)
    bad = np.flatnonzero(~((votes >= 0) & np.isfinite(votes)).all(axis=1))
    if len(bad):
        raise ValueError(
            f"expected counts of at least 0 in votes, got others in {len(bad)} rows, the first in"
            f" row {bad[0]}: pass how many people voted for each class"
        )
    return [uncertainty, votes.astype(np.float64)]


def quantiles(uncertainty: Array) -> dict[str, Estimate]:
    """Return how uncertainties spread: min, q10, q25, q50, q75, q90, max, mean and iqr.

    `iqr` is q75 - q25. Quantiles interpolate linearly; their intervals are order statistics, NaN
    where there are too few rows. All are NaN without a row. min, max and iqr have no interval.

    Raises:
        ValueError: an uncertainty is NaN or infinite.
    """
    (uncertainty,) = columns(uncertainty=uncertainty)
    check_finite(uncertainty)
    ordered = np.sort(uncertainty).astype(np.float64)
    if not len(ordered):
        names = ["min", *(f"q{q}" for q in QUANTILES), "max", "mean", "iqr"]
        return dict.fromkeys(names, Estimate(math.nan, reason="no row"))
    found = {f"q{q}": _quantile(ordered, q / 100) for q in QUANTILES}
    mean = float(ordered.mean())
    margin = Z * float(ordered.std()) / math.sqrt(len(ordered))
    return {
        "min": Estimate(ordered[0]),
        **found,
        "max": Estimate(ordered[-1]),
        "mean": Estimate(mean, mean - margin, mean + margin),
        "iqr": Estimate(found["q75"] - found["q25"]),
    }


def _quantile(ordered: Float64[np.ndarray, " n"], q: float) -> Estimate:
    """Between two order statistics: how many of n rows lie below the true quantile is binomial."""
    n = len(ordered)
    spread = Z * math.sqrt(n * q * (1 - q))
    lower, upper = math.floor(n * q - spread) - 1, math.ceil(n * q + spread)
    value = float(np.quantile(ordered, q))
    if lower < 0 or upper >= n:
        return Estimate(value)
    return Estimate(value, ordered[lower], ordered[upper])


def per_class(uncertainty: Array, hit: Array, label: Array) -> pa.Table:
    """Return a row per class: which ones are uncertain, and where uncertainty can be trusted.

    Columns: label, count, recall, recall_lower, recall_upper, uncertainty (the mean), r_auroc,
    r_auroc_lower, r_auroc_upper, and the reason why R-AUROC is undefined, if it is.

    Args:
        uncertainty: (n,) floats.
        hit: (n,) booleans.
        label: (n,) integers.

    Raises:
        ValueError: an uncertainty is NaN or infinite, or columns don't match.
    """
    from askance.eval.curation import by_class

    uncertainty, hit, label = columns(uncertainty=uncertainty, hit=hit, label=label)
    classes = by_class(uncertainty, hit, label)
    order, start = label.argsort(kind="stable"), classes.count.cumsum() - classes.count
    of_class = np.split(order, start[1:]) if len(start) else []
    ranked = [influences.r_auroc(uncertainty[rows], hit[rows]).estimate() for rows in of_class]
    certain = zip(classes.recall.tolist(), classes.count.tolist(), strict=True)
    recall = [wilson(share, float(count)) for share, count in certain]
    return pa.table(
        {
            "label": classes.label,
            "count": classes.count,
            "recall": classes.recall,
            "recall_lower": pa.array([lower for lower, _ in recall], pa.float64()),
            "recall_upper": pa.array([upper for _, upper in recall], pa.float64()),
            "uncertainty": classes.mean,
            "r_auroc": pa.array(map(float, ranked), pa.float64()),
            "r_auroc_lower": pa.array([each.lower for each in ranked], pa.float64()),
            "r_auroc_upper": pa.array([each.upper for each in ranked], pa.float64()),
            "reason": pa.array([each.reason for each in ranked], pa.string()),
        }
    )
