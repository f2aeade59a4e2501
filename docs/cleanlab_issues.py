"""Suspect labels of a store, as cleanlab finds them; those the head is sure of come first.

python docs/cleanlab_issues.py STORE PROBE HEAD    # a run's, of a set whose classes are the probe's
"""

import sys
from pathlib import Path

import numpy as np
import torch
from cleanlab.filter import find_label_issues
from cleanlab.rank import get_label_quality_scores
from scipy.special import softmax
from scipy.stats import rankdata

import askance
from askance.heads.checkpoint import load


def suspects(column: np.ndarray, probability: np.ndarray, uncertainty: np.ndarray) -> np.ndarray:
    """Return the rows whose labels are suspect, by rank of label quality plus uncertainty's."""
    found = find_label_issues(column, probability, filter_by="confident_learning", n_jobs=1)
    rows = np.flatnonzero(found)
    quality = get_label_quality_scores(column, probability)[rows]
    return rows[np.argsort(rankdata(quality) + rankdata(uncertainty[rows]), kind="stable")]


def main(store_at: str, probe_at: str, head_at: str) -> None:
    """Print the suspects of a set whose images are new to the probe."""
    store, probe = askance.open_store(store_at), askance.open_store(probe_at)
    if store.index.classes != probe.index.classes:
        raise ValueError(f"expected the classes of {probe_at}, got others in {store_at}")
    saved, embedding = load(Path(head_at)), store.embedding("plain")
    known = probe.array("classifier/label")[:]
    column = np.searchsorted(known, store.labels)
    uncertainty = saved.head.uncertainty(torch.from_numpy(embedding)).numpy()
    probability = softmax(probe.classifier.logits(embedding), axis=1)
    rows, percentile = suspects(column, probability, uncertainty), saved.percentile(uncertainty)
    print(f"{len(rows)} of {len(column)} labels are suspect; the first ten:")
    for row in rows[:10]:
        pair = (int(known[c]) for c in (column[row], probability[row].argmax()))
        names = [store.index.classes.get(label, label) for label in pair]
        print(f"{store.keys[row]}: {names[0]}, or {names[1]}? percentile {percentile[row]:.2f}")


if __name__ == "__main__":
    main(*sys.argv[1:])
