"""The paired bootstrap of many heads at once, against the one of a single head."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from askance.eval.intervals import resample, weighted_aurc, weighted_r_auroc
from askance.eval.metrics import r_auroc
from askance.eval.paired import Answers, measure, resampled
from askance.eval.selective import aurc
from askance.pipeline.seeding import generator


def answers(n=200, seeds=2, digits=None, seed=0):
    """Return answers with ties, where `digits` are few, and hits of each seed's own."""
    rng = np.random.default_rng(seed)
    uncertainty = rng.normal(size=(seeds, n)).astype(np.float32)
    hit = rng.random((seeds, n)) < 0.6
    row = np.arange(n)
    near = np.stack([(row + 1 + i) % n for i in range(seeds)])
    return Answers(row, uncertainty if digits is None else uncertainty.round(digits), near, hit)


@given(st.integers(1, 40), st.sampled_from([0, 1, None]), st.integers(0, 99))
def test_it_is_the_bootstrap_of_each_seed(n, digits, seed):
    given = answers(n, digits=digits, seed=seed)
    found = resampled([given], resamples=35, seed="birds")[0]
    for metric, statistic in (("r_auroc", weighted_r_auroc), ("aurc", weighted_aurc)):
        runs = [
            resample(statistic, u[None], hit, resamples=35, seed="birds")
            for u, hit in zip(given.uncertainty, given.hit, strict=True)
        ]
        np.testing.assert_allclose(getattr(found, metric), np.mean(runs, axis=0), atol=1e-12)


def test_every_head_is_asked_about_the_same_draws():
    """By a loop from the definition: draw queries, ask both heads, subtract."""
    first, second = answers(60, seeds=1, digits=1), answers(60, seeds=1, digits=1, seed=1)
    draws = resampled([first, second], resamples=50, seed=3)
    rng = generator("bootstrap", 3)
    for place in range(50):
        drawn = rng.integers(60, size=60)
        for metric, own in (("r_auroc", r_auroc), ("aurc", aurc)):
            values = [own(x.uncertainty[0, drawn], x.hit[0, drawn]) for x in (first, second)]
            found = [getattr(each, metric)[place] for each in draws]
            np.testing.assert_allclose(found, values, atol=1e-12)


def test_measurements_are_those_of_the_metrics():
    given = answers()
    found = measure(given)
    for metric, own in (("r_auroc", r_auroc), ("aurc", aurc)):
        values = [own(u, hit) for u, hit in zip(given.uncertainty, given.hit, strict=True)]
        np.testing.assert_allclose([run.value for run in found[metric]], values)
    np.testing.assert_allclose([run.value for run in found["r1"]], given.hit.mean(axis=1))


def test_an_uncertainty_that_is_not_finite_is_refused():
    given = answers()
    given.uncertainty[1, 3] = np.nan
    with pytest.raises(
        ValueError, match="expected finite values, got 1 of 200 that are not, the first in row 3"
    ):
        resampled([given])
