"""The probe: against scikit-learn, and what cross-fitting promises."""

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from askance.heads.probe import cross_fit, fit_probe, folds_of


def blobs(n: int = 300, d: int = 5, classes: int = 3, noise: float = 1.5):
    random = np.random.default_rng(0)
    label = random.integers(classes, size=n)
    centres = random.normal(size=(classes, d))
    embedding = 3 * (centres[label] + noise * random.normal(size=(n, d))) + 7
    return torch.from_numpy(embedding).float(), torch.from_numpy(label)


def test_probe_equals_scikit_learn():
    x, y = blobs()
    probe = fit_probe(x, y, classes=3, decay=0.01, iterations=500)
    scaler = StandardScaler().fit(x.numpy())
    oracle = LogisticRegression(C=1 / (0.01 * len(x)), tol=1e-8, max_iter=5000)
    oracle.fit(scaler.transform(x.numpy()), y.numpy())
    found = (x @ probe.weight.T + probe.bias).softmax(-1).numpy()
    np.testing.assert_allclose(found, oracle.predict_proba(scaler.transform(x.numpy())), atol=2e-3)


@given(st.integers(2, 6), st.integers(1, 60), st.integers(0, 5))
def test_folds_deal_every_class_evenly(folds, images, seed):
    column = np.random.default_rng(seed).integers(4, size=images)
    fold = folds_of(column, folds)
    for c in np.unique(column):
        counts = np.bincount(fold[column == c], minlength=folds)
        assert counts.max() - counts.min() <= 1


def test_cross_fitted_losses_do_not_know_their_image():
    """Random labels: in sample the loss falls far below chance, cross-fitted it can't."""
    torch.manual_seed(0)
    embedding, column = torch.randn(60, 2, 80), torch.randint(2, (60,))
    fold = torch.from_numpy(folds_of(column.numpy(), 5))
    probes = cross_fit(embedding, column, fold, classes=2, decay=1e-4, iterations=50)
    crossed = torch.stack(
        [embedding[i] @ probes[fold[i]].weight.T + probes[fold[i]].bias for i in range(60)]
    )
    kept = fit_probe(embedding.flatten(0, 1), column.repeat_interleave(2), 2, 1e-4, 50)
    inside = embedding @ kept.weight.T + kept.bias
    loss = torch.nn.CrossEntropyLoss()
    assert loss(inside.flatten(0, 1), column.repeat_interleave(2)) < 0.2
    assert loss(crossed.flatten(0, 1), column.repeat_interleave(2)) > np.log(2)


def test_a_class_without_rows_keeps_its_column():
    x, y = blobs()
    probe = fit_probe(x, y, classes=4, decay=0.01, iterations=50)
    probability = (x @ probe.weight.T + probe.bias).softmax(-1)
    assert probe.weight.shape == (4, 5)
    assert probability[:, 3].max() < 0.2
