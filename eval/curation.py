"""Curation: which images, classes and labels of a set deserve a look.

Comes in: uncertainties (larger is less certain), labels, hits, nearest neighbours and class
probabilities, as plain arrays with one row per image. Goes out: ranks, a row per class, groups of
near-duplicates, suspected labels, and what an uncertainty and a suspicion mean together.
"""

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Float64, Int64, Integer
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from askance.eval.ranks import check_finite, spearman

EXACT = 1 - 1e-12  # cosine of equal embeddings, as rounded
KINDS = ("clean", "ambiguous", "mislabelled", "both")


@dataclass(frozen=True)
class Classes:
    """A row per class that occurs, by rising label.

    `mean` and `median` are of the class's uncertainties, `recall` is its share of hits;
    `uncertain` and `certain` are the rows of the image that is most so.
    """

    label: Int64[np.ndarray, " c"]
    count: Int64[np.ndarray, " c"]
    mean: Float64[np.ndarray, " c"]
    median: Float64[np.ndarray, " c"]
    recall: Float64[np.ndarray, " c"]
    uncertain: Int64[np.ndarray, " c"]
    certain: Int64[np.ndarray, " c"]


@dataclass(frozen=True)
class Duplicates:
    """Pairs of rows, first < second, the most similar first; `group` (n,) of every row, -1: none.

    A group is named by its smallest row.
    """

    first: Int64[np.ndarray, " p"]
    second: Int64[np.ndarray, " p"]
    similarity: Float64[np.ndarray, " p"]
    group: Int64[np.ndarray, " n"]

    @property
    def exact(self) -> Bool[np.ndarray, " p"]:
        """Which pairs are equal in all but length, up to rounding."""
        return self.similarity >= EXACT


@dataclass(frozen=True)
class Suspects:
    """What a classifier that never saw an image says of its label, (n,) each.

    `confidence` is the probability of the label's class, `suggested` the class that the image
    seems to have (the label's own unless it is suspect), `suggested_confidence` that one's.
    """

    confidence: Float64[np.ndarray, " n"]
    suggested: Int64[np.ndarray, " n"]
    suggested_confidence: Float64[np.ndarray, " n"]


def ranks(
    uncertainty: Float[np.ndarray, " n"], label: Integer[np.ndarray, " n"]
) -> Int64[np.ndarray, " n"]:
    """Return each image's place in its class, 0 for the most uncertain; of equals the first row.

    With one label for all it is the place in the whole set.

    Raises:
        ValueError: an uncertainty is NaN or infinite.

    Example:
        >>> ranks(np.array([0.1, 0.9, 0.5, 0.7]), np.array([4, 4, 4, 8]))
        array([2, 0, 1, 0])
    """
    check_finite(uncertainty)
    order = np.lexsort((-uncertainty, label))  # a stable sort
    start, count = _runs(label[order])
    rank = np.empty(len(label), np.int64)
    rank[order] = np.arange(len(label)) - start.repeat(count)
    return rank


def by_class(
    uncertainty: Float[np.ndarray, " n"],
    hit: Bool[np.ndarray, " n"],
    label: Integer[np.ndarray, " n"],
) -> Classes:
    """Summarise each class that occurs.

    Raises:
        ValueError: an uncertainty is NaN or infinite.

    Example:
        >>> by_class(np.array([0.1, 0.9, 0.5]), np.array([True, False, True]), np.array([7, 7, 2]))
        Classes(label=array([2, 7]), count=array([1, 2]), mean=array([0.5, 0.5]),
        median=array([0.5, 0.5]), recall=array([1. , 0.5]),
        uncertain=array([2, 1]), certain=array([2, 0]))
    """
    check_finite(uncertainty)
    order = np.lexsort((-uncertainty, label))
    start, count = _runs(label[order])
    u = uncertainty[order].astype(np.float64)
    return Classes(
        label=label[order[start]].astype(np.int64),
        count=count,
        mean=np.add.reduceat(u, start) / count if len(u) else u,
        median=(u[start + (count - 1) // 2] + u[start + count // 2]) / 2,
        recall=np.add.reduceat(hit[order].astype(np.float64), start) / count if len(u) else u,
        uncertain=order[start],
        certain=order[start + count - 1],
    )


def class_agreement(
    uncertainty: Float[np.ndarray, " c"], recall: Float[np.ndarray, " c"]
) -> tuple[float, str]:
    """Return the rank correlation of mean uncertainty and error (1 - recall) over classes.

    From -1 to 1; positive where the classes that go wrong are the uncertain ones. Undefined it is
    NaN, and the text says why; "" otherwise.

    Raises:
        ValueError: a value is NaN or infinite.

    Example:
        >>> class_agreement(np.array([0.1, 0.9, 0.5]), np.array([0.9, 0.2, 0.7]))
        (1.0, '')
    """
    value = spearman(uncertainty, -recall)
    if not math.isnan(value):
        return value, ""
    if len(recall) < 2:
        return value, f"{len(recall)} class: nothing to rank"
    same = "recall" if np.ptp(recall) == 0 else "mean uncertainty"
    return value, f"all {len(recall)} classes have the same {same}"


def near_duplicates(
    neighbour: Integer[np.ndarray, " n"], similarity: Float[np.ndarray, " n"], above: float
) -> Duplicates:
    """Find pairs of nearest neighbours at least this similar, and the groups that they form.

    Every image with a duplicate in the set is found, since its nearest neighbour is one; of a
    group of many not every pair is listed, and two tight groups near each other may stay two.

    Args:
        neighbour: the row of each row's nearest other row.
        similarity: their cosine, -1 to 1.
        above: the smallest cosine of near-duplicates.

    Example:
        >>> near_duplicates(np.array([2, 0, 0]), np.array([1.0, 0.5, 1.0]), above=0.95)
        Duplicates(first=array([0]), second=array([2]), similarity=array([1.]),
        group=array([ 0, -1,  0]))
    """
    n = len(neighbour)
    row = np.flatnonzero(similarity >= above)
    pairs = np.sort(np.stack([row, neighbour[row].astype(np.int64)]), axis=0)
    pairs, kept = np.unique(pairs, axis=1, return_index=True)
    similar = similarity[row][kept].astype(np.float64)
    order = np.lexsort((pairs[1], pairs[0], -similar))
    first, second = pairs[:, order]
    graph = coo_array((np.ones(len(first), bool), (first, second)), shape=(n, n))
    component = connected_components(graph, directed=False)[1]
    _, smallest, which, size = np.unique(
        component, return_index=True, return_inverse=True, return_counts=True
    )
    group = np.where(size[which] > 1, smallest[which], -1)
    return Duplicates(first, second, similar[order], group)


def class_confidence(
    confidence: Float[np.ndarray, " n"], column: Integer[np.ndarray, " n"], classes: int
) -> Float64[np.ndarray, " {classes}"]:
    """Return the mean probability that images have of their own class, infinite without any.

    Args:
        confidence: the probability of the image's own class, by a classifier that never saw it.
        column: that class, 0 to classes - 1.
        classes: how many there are.

    Source: the thresholds t_j of confident learning (Northcutt et al. 2021, arXiv 1911.00068,
        equation 2).

    Example:
        >>> class_confidence(np.array([0.9, 0.5, 0.3]), np.array([0, 0, 2]), 3)
        array([0.7, inf, 0.3])
    """
    count = np.bincount(column, minlength=classes)
    total = np.bincount(column, weights=confidence, minlength=classes)
    return np.divide(total, count, out=np.full(classes, np.inf), where=count > 0)


def suggested(
    probability: Float[np.ndarray, "n c"],
    column: Integer[np.ndarray, " n"],
    threshold: Float[np.ndarray, " c"],
) -> Int64[np.ndarray, " n"]:
    """Return the class that each image seems to have: its own unless its label is suspect.

    A label is suspect if some other class is at least as probable as it is, on average, for images
    of that class, and more probable than the image's own; the most probable of these is suggested.

    Args:
        probability: of each class, by a classifier that never saw the image.
        column: the class that the label says.
        threshold: what `class_confidence` returns.

    Source: the off-diagonal of the confident joint (Northcutt et al. 2021, arXiv 1911.00068,
        equation 1). That an image's own class must be less probable is cleanlab's: without it
        images would be suspect that the classifier gets right.

    Example:
        >>> suggested(np.array([[0.9, 0.1], [0.2, 0.8]]), np.array([1, 1]), np.array([0.7, 0.6]))
        array([0, 1])
    """
    own = _taken(probability, column)
    confident = (probability >= threshold) & (probability > own[:, None])
    best = np.where(confident, probability, -1).argmax(axis=1)
    return np.where(confident.any(axis=1), best, column)


def suspects(
    probabilities: Callable[[], Iterable[Float[np.ndarray, "_ c"]]],
    column: Integer[np.ndarray, " n"],
    classes: int,
) -> Suspects:
    """Ask of each image what its label is worth, by `class_confidence` and `suggested`.

    Args:
        probabilities: yields the class probabilities of some images at a time, in order; called
            twice, so that they need not be held: of an array `p`, `lambda: [p]`.
        column: the class that each label says, 0 to classes - 1.
        classes: how many there are.

    Example:
        >>> p = np.array([[0.9, 0.1], [0.3, 0.7], [0.8, 0.2]])
        >>> suspects(lambda: [p], np.array([0, 1, 0]), 2).suggested
        array([0, 1, 0])
    """
    confidence = np.empty(len(column))
    for part, p in _placed(probabilities()):
        confidence[part] = _taken(p, column[part])
    threshold = class_confidence(confidence, column, classes)
    best, other = np.empty(len(column), np.int64), np.empty(len(column))
    for part, p in _placed(probabilities()):
        best[part] = suggested(p, column[part], threshold)
        other[part] = _taken(p, best[part])
    return Suspects(confidence, best, other)


def _placed(
    blocks: Iterable[Float[np.ndarray, "_ c"]],
) -> Iterator[tuple[slice, Float[np.ndarray, "_ c"]]]:
    start = 0
    for block in blocks:
        yield slice(start, start + len(block)), block
        start += len(block)


def _taken(
    probability: Float[np.ndarray, "n c"], column: Integer[np.ndarray, " n"]
) -> Float[np.ndarray, " n"]:
    return np.take_along_axis(probability, column[:, None].astype(np.int64), axis=1)[:, 0]


def kinds(uncertain: Bool[np.ndarray, " n"], suspect: Bool[np.ndarray, " n"]) -> np.ndarray:
    """Return what doubt in the image and doubt in its label mean together, (n,) of text.

    `clean`: neither. `ambiguous`: the image is uncertain, its label is not suspect. `mislabelled`:
    a clear image with a suspect label. `both`: an image that would be hard with any label.

    Example:
        >>> kinds(np.array([False, True, False]), np.array([False, True, True])).tolist()
        ['clean', 'both', 'mislabelled']
    """
    return np.array(KINDS)[uncertain + 2 * suspect.astype(np.int64)]


def _runs(
    ordered: Integer[np.ndarray, " n"],
) -> tuple[Int64[np.ndarray, " c"], Int64[np.ndarray, " c"]]:
    """Return where each run of equal labels starts, and its length."""
    _, start, count = np.unique(ordered, return_index=True, return_counts=True)
    return start.astype(np.int64), count.astype(np.int64)
