"""The plane: embeddings as points of a picture, where images that are alike lie together.

t-SNE takes so many steps that the last bit of a sum decides where a point ends. The picture is the
same, byte for byte, on one machine; another processor draws another one, no better and no worse.
UMAP would be the other choice, and brings numba, a compiler that trails Python's and NumPy's
releases.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Float32
from sklearn.manifold import TSNE, trustworthiness
from threadpoolctl import threadpool_limits

from askance.eval.cosine import lengths, units

FLAT = 3  # points that fit a plane as they are
NEAR = 10  # neighbours that trustworthiness looks at


@dataclass(frozen=True)
class Plane:
    """A point for every row; only how near points are to each other means anything.

    `trustworthiness`, 0 to 1: are a point's neighbours in the plane also those in the embedding?
    NaN where undefined: of 20 points or fewer, and of equal ones.
    """

    point: Float32[np.ndarray, "n 2"]
    perplexity: float  # about the number of neighbours that t-SNE kept near; 0: it was not needed
    trustworthiness: float


def plane(embedding: Float[np.ndarray, "n d"], seed: int = 0, perplexity: float = 30.0) -> Plane:
    """Lay out rows by their cosines.

    Up to three rows lie as they do in the embedding, and rows that are all equal in one point.

    Args:
        embedding: of any length; a zero vector is equally far from all others.
        seed: of t-SNE, which starts from the principal components and hardly depends on it.
        perplexity: lowered to a third of the other rows where there are too few.

    Source: L. van der Maaten, "Accelerating t-SNE using tree-based algorithms", JMLR 2014, as in
        scikit-learn; trustworthiness: J. Venna and S. Kaski, ICANN 2001.

    Example:
        >>> plane(np.array([[1, 0], [3, 0]], np.float32)).point.tolist()
        [[0.0, 0.0], [0.0, 0.0]]
    """
    unit = units(embedding, lengths(embedding))
    n = len(unit)
    if n <= FLAT or not np.ptp(unit, axis=0).any():
        return Plane(_principal(unit), 0.0, np.nan)
    perplexity = min(perplexity, (n - 1) / 3)
    with threadpool_limits(1):  # threads add up in another order, and the points end elsewhere
        tsne = TSNE(perplexity=perplexity, init="pca", random_state=seed)
        point = tsne.fit_transform(unit)  # by Euclidean distance, which grows as the cosine falls
        trust = trustworthiness(unit, point, n_neighbors=NEAR) if n > 2 * NEAR else np.nan
    return Plane(point, perplexity, float(trust))


def _principal(unit: Float32[np.ndarray, "n d"]) -> Float32[np.ndarray, "n 2"]:
    """Project on the two directions of largest spread."""
    centred = unit - unit.mean(axis=0, dtype=np.float64)
    _, _, directions = np.linalg.svd(centred, full_matrices=False)
    point = centred @ directions[:2].T
    return np.pad(point, ((0, 0), (0, 2 - point.shape[1]))).astype(np.float32)
