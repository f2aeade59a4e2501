"""The published program's numbers, errors included: to compare with what others have printed.

Comes in: what the functions of the same names in `askance.eval.metrics` and `.mixture` take. Goes
out: plain floats. Uncertainties are float32 here, and AUROC passes them through a sigmoid where one
lies outside 0 to 1, which ties large ones; it is 0 where it is undefined, and takes NaN for the
most certain. Values are rounded to 4 decimals where that program rounds them, and it averages them
as they are. Not copied is how it searches: it drops the first of two neighbours for the query
itself, so that among exact duplicates the order of the rows decides; a lone row is a hit (here R@1
is NaN); NaN in an embedding becomes 0 (here an error), and more than 90 % rows of zeros are an
error (not here).

Source: github.com/mkirchhof/url, validate.py.
"""

from collections.abc import Iterable
from typing import Any

import numpy as np
from jaxtyping import Bool, Int64

from askance.eval import metrics, ranks
from askance.eval.columns import Array, columns
from askance.eval.metrics import QUANTILES
from askance.eval.mixture import Set


def recall_at_1(embedding: Array, label: Array) -> float:
    """Return the share of rows whose nearest other row has their label, rounded."""
    return round(float(metrics.recall_at_1(embedding, label)), 4)


def r_auroc(uncertainty: Array, hit: Array) -> float:
    """Return `auroc_correct`: the AUROC of certainty for hits, rounded.

    Example:
        >>> r_auroc(np.array([110.0, 120, 130]), np.array([True, False, False]))
        0.5
    """
    return round(_auroc(-_float32(uncertainty), columns(hit=hit)[0]), 4)


def classification_auroc(uncertainty: Array, correct: Array) -> float:
    """Return `auroc_classification`: the AUROC of certainty for right classes, rounded."""
    return r_auroc(uncertainty, correct)


def crop_win_rate(plain: Array, cropped: Array) -> float:
    """Return `croppedHasBiggerUnc`: the share of images less certain cropped, rounded."""
    return round(float((_float32(plain) < _float32(cropped)).mean()), 4)


def crop_correlation(cropped: Array, fraction: Array) -> float:
    """Return `rcorr_crop_unc`: the rank correlation of certainty and crop, rounded."""
    fraction = columns(fraction=fraction)[0].astype(np.float64)
    return round(ranks.spearman(-_float32(cropped), fraction), 4)


def human_correlation(uncertainty: Array, votes: Array) -> float:
    """Return `rcorr_entropy`: the rank correlation with the entropy of votes, rounded.

    In float32, equal votes for other classes may differ in entropy. Rows without votes are skipped.
    """
    import torch

    counts = torch.from_numpy(columns(votes=votes)[0]).float()
    portion = counts / counts.sum(1, keepdim=True)
    entropy = -(portion * portion.log().clamp(min=-10e6)).sum(1)
    known = ~entropy.isnan().numpy()
    return round(ranks.spearman(_float32(uncertainty)[known], entropy.numpy()[known]), 4)


def quantiles(uncertainty: Array) -> dict[str, float]:
    """Return min, max and mean, quantiles and their distances, in float32 and not rounded."""
    values = _float32(uncertainty)
    found = {f"q{q}": float(np.quantile(values, q / 100)) for q in QUANTILES}
    return {
        "min": float(values.min()),
        "max": float(values.max()),
        "mean": float(values.mean()),
        **found,
        "iqr_90_10": found["q90"] - found["q10"],
        "iqr_75_25": found["q75"] - found["q25"],
    }


def union_label(upstream_label: Array, downstream_label: Array) -> Int64[np.ndarray, " n"]:
    """Return labels for k upstream rows and then all downstream rows; they may collide.

    The upstream's are shifted beyond the first k downstream labels only.

    Example:
        >>> union_label(np.array([0]), np.array([0, 1]))
        array([1, 0, 1])
    """
    upstream, downstream = (columns(label=each)[0] for each in (upstream_label, downstream_label))
    shifted = upstream + downstream[: len(upstream)].max() + 1
    return np.concatenate([shifted, downstream]).astype(np.int64)


def mixed_r_auroc(
    upstream: Set,
    downstream: Set,
    upstream_rows: Int64[np.ndarray, " k"],
    downstream_rows: Int64[np.ndarray, " k"],
) -> float:
    """Return `auroc_correct_mixed`: R-AUROC inside a mixture of k rows of either set, not rounded.

    Args:
        upstream: embedding (n, d), label (n,) and uncertainty (n,) of the upstream set.
        downstream: the same of the downstream set.
        upstream_rows: drawn from the upstream set.
        downstream_rows: drawn from the downstream set; the shift of labels does not heed them.
    """
    known, known_label, known_uncertainty = _picked(upstream, upstream_rows)
    new, _, new_uncertainty = _picked(downstream, downstream_rows)
    label = union_label(known_label, downstream[1])
    rows = np.concatenate([np.arange(len(known)), len(known) + downstream_rows])
    hit = metrics.hits(np.concatenate([known, new]), label[rows])
    return _auroc(-np.concatenate([known_uncertainty, new_uncertainty]).astype(np.float32), hit)


def ood_auroc(upstream_uncertainty: Array, downstream_uncertainty: Array) -> float:
    """Return `auroc_ood`: the AUROC of uncertainty for new images, not rounded."""
    known, new = _float32(upstream_uncertainty), _float32(downstream_uncertainty)
    downstream = np.arange(len(known) + len(new)) >= len(known)
    return _auroc(np.concatenate([known, new]), downstream)


def average(values: Iterable[float]) -> float:
    """Return the mean over sets, not rounded; of values as the functions here return them."""
    return float(np.mean(list(values)))


def _auroc(score: np.ndarray, positive: Bool[np.ndarray, " n"]) -> float:
    """Return torchmetrics' binary_auroc of float32 scores."""
    import torch

    if not ((score >= 0) & (score <= 1)).all():
        score = torch.from_numpy(score).sigmoid().numpy()
    value = ranks.auroc(np.nan_to_num(score, nan=2.0), positive)
    return float(np.nan_to_num(np.float32(value), nan=0.0))


def _float32(values: Array) -> np.ndarray:
    return columns(uncertainty=values)[0].astype(np.float32)


def _picked(given: Set, rows: Int64[np.ndarray, " k"]) -> Any:  # noqa: ANN401
    embedding, label, uncertainty = given
    found = columns(embedding=embedding, label=label, uncertainty=uncertainty)
    return [column[rows] for column in found]
