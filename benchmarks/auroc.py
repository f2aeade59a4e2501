"""AUROC of a million and of ten million scores, with and without ties, beside other ways.

CPU-seconds of one thread; the contenders take turns and each reports the median of its rounds. All
get float32 scores; torchmetrics gets them inside 0 to 1, where it needs no sigmoid. Errors are
against rank sums in float64.
"""

import numpy as np
import torch
import typer
from scipy.stats import rankdata
from sklearn.metrics import roc_auc_score
from threadpoolctl import threadpool_limits

from askance.eval.metrics import r_auroc
from askance.eval.ranks import auroc
from askance.pipeline.provenance import machine
from askance.pipeline.vision import import_torchvision
from benchmarks.rates import measured

import_torchvision()  # before torchmetrics, which imports it

from torchmetrics.functional.classification import binary_auroc  # noqa: E402

TIES = {"no ties": None, "1,000 levels": 3, "10 levels": 1}  # decimals of scores from 0 to 1


def scores(rows: int, decimals: int | None) -> tuple[np.ndarray, np.ndarray]:
    """Return float32 scores from 0 to 1, higher for positives, and which are positive."""
    rng = np.random.default_rng(0)
    positive = rng.random(rows) < 0.4
    score = rng.beta(2 + positive, 2).astype(np.float32)
    return (score if decimals is None else score.round(decimals)), positive


def rank_sum(score: np.ndarray, positive: np.ndarray) -> float:
    positives = int(positive.sum())
    total = rankdata(score)[positive].sum() - positives * (positives + 1) / 2
    return total / positives / (len(score) - positives)


def compare(rows: int, ties: str, rounds: int) -> None:
    """Print CPU-seconds, ratios to torchmetrics, and errors."""
    score, positive = scores(rows, TIES[ties])
    tensors = torch.from_numpy(score), torch.from_numpy(positive)
    contenders = {
        "torchmetrics": lambda: binary_auroc(*tensors).item(),
        "scikit-learn": lambda: float(roc_auc_score(positive, score)),
        "askance, value": lambda: auroc(score, positive),
        "askance, with interval": lambda: float(r_auroc(score, ~positive)),
    }
    exact = rank_sum(score, positive)

    def timed(work):
        return lambda: (work(), rows)[1]

    found = measured({name: timed(work) for name, work in contenders.items()}, rounds)
    for name, rate in found.items():
        print(
            f"{rows:>10,} {ties:13} {name:23} {rows / rate.cpu:7.3f} CPU-s"
            f"  x{rate.cpu / found['torchmetrics'].cpu:5.2f}"
            f"  error {abs(contenders[name]() - exact):.0e}",
            flush=True,
        )


def main(rounds: int = 3) -> None:
    """Print rates and errors at both sizes, for scores with more and more ties."""
    torch.set_num_threads(1)
    print(f"{machine()}, one thread; float32 scores; x: times as fast as torchmetrics")
    with threadpool_limits(1):
        for rows in (10**6, 10**7):
            for ties in TIES:
                compare(rows, ties, rounds)


if __name__ == "__main__":
    typer.run(main)
