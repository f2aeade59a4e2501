"""Thresholds: how often the promise is broken, by simulation; how much is reached; failures."""

import functools
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import beta, binom

from askance.eval import guarantee
from askance.eval.guarantee import (
    Threshold,
    at_threshold,
    coverage_interval,
    error_bound,
    guaranteed,
    queries_needed,
)

DRAWS = 700
# How likely a miss is where a share `x` of all queries is more certain.
SHAPES = {
    "informative": lambda x: 0.6 * x,
    "steep": lambda x: x**2,
    "step": lambda x: np.where(x < 0.4, 0.04, 0.5),
    "useless and just too bad": lambda x: np.full_like(x, 0.11),
    "useless and good": lambda x: np.full_like(x, 0.05),
    "at the limit": lambda x: np.full_like(x, 0.1),
    "reversed": lambda x: 0.4 * (1 - x),
    # Its error crosses the limit of 0.1 three times, each time just behind a start.
    "up and down": lambda x: np.select(
        [x < 0.13, x < 0.2, x < 0.26, x < 0.45, x < 0.6], [0.105, 0.08, 0.12, 0.09, 0.13], 0.1
    ),
    "bad only where most certain": lambda x: np.where(x < 0.06, 0.3, 0.0),
}
GRIDS = {"none tied": lambda x: x, "few values": lambda x: np.ceil(x * 8) / 8, "one value": np.ceil}
probabilities = st.floats(0.01, 0.5)


@pytest.fixture
def cached(monkeypatch):
    """Thousands of draws have the same starts."""
    monkeypatch.setattr(guarantee, "_starts", functools.cache(guarantee._starts))


def true_errors(shape, grid):
    """Return distinct uncertainties, the error and the share of all queries up to each."""
    x = (np.arange(20_000) + 0.5) / 20_000
    levels, last = np.unique(grid(x)[::-1], return_index=True)
    last = len(x) - last
    return levels, SHAPES[shape](x).cumsum()[last - 1] / last, last / len(x)


def simulate(shape, grid, n, draws, alpha=0.1, delta=0.1):
    """Return the true error and share of each draw's threshold, 0 where there is none."""
    rng = np.random.default_rng(0)
    levels, error, share = true_errors(shape, grid)
    found = np.full(draws, np.nan)
    for draw in range(draws):
        x = rng.random(n)
        values, *counts = guarantee._counts(grid(x), rng.random(n) >= SHAPES[shape](x))
        end = guarantee._last_passed(*counts, alpha, delta)
        if end >= 0:
            found[draw] = values[end]
    some = ~np.isnan(found)
    place = np.searchsorted(levels, np.where(some, found, 0)).clip(max=len(levels) - 1)
    return np.where(some, error[place], 0), np.where(some, share[place], 0)


@pytest.mark.parametrize("grid", GRIDS.values(), ids=GRIDS)
@pytest.mark.parametrize("shape", SHAPES)
def test_the_error_exceeds_alpha_no_more_often_than_promised(shape, grid, cached):
    error, _ = simulate(shape, grid, 1000, DRAWS)
    assert (error > 0.1 + 1e-9).mean() <= 0.1 + 3 * math.sqrt(0.1 * 0.9 / DRAWS)


def test_the_largest_share_that_passes_alone_would_break_the_promise(cached, monkeypatch):
    """The simulation sees what it is for: without the stop at the first failure it fails."""

    def anywhere(accepted, misses, alpha, delta):
        passed = np.flatnonzero(binom.cdf(misses, accepted, alpha) <= delta)
        return int(passed[-1]) if len(passed) else -1

    monkeypatch.setattr(guarantee, "_last_passed", anywhere)
    error, _ = simulate("useless and just too bad", GRIDS["none tied"], 1000, 200)
    assert (error > 0.1).mean() > 0.2


@pytest.mark.parametrize(
    ("shape", "n", "least"),
    [
        ("useless and good", 1000, 0.9),
        ("steep", 1000, 0.8),
        ("step", 1000, 0.75),
        ("informative", 3000, 0.75),
        ("informative", 20_000, 0.9),
    ],
)
def test_most_of_what_an_oracle_accepts_is_accepted(shape, n, least, cached):
    _, error, share = true_errors(shape, GRIDS["none tied"])
    _, found = simulate(shape, GRIDS["none tied"], n, 100)
    assert found.mean() >= least * share[error <= 0.1].max()


@given(st.integers(1, 3000), probabilities, probabilities)
def test_levels_and_what_is_unknown_about_starts_add_up_to_delta(n, alpha, delta):
    level, starts = guarantee._starts(n, alpha, delta)
    shares = 0.5 ** np.arange(1, len(starts) + 1)
    if len(starts) == 1 and binom.cdf(starts[0][0] - 1, n, 0.5) > delta / 20:
        return  # one start at another share: see below
    spent = sum(
        level + binom.cdf(first - 1, n, share) + binom.sf(least - 1, n, share)
        for share, (first, least) in zip(shares, starts, strict=True)
    )
    assert spent <= delta * (1 + 1e-9)


@pytest.mark.parametrize("n", [42, 45, 60])
def test_a_small_sample_has_one_start_of_its_own(n):
    level, [(first, least)] = guarantee._starts(n, 0.1, 0.05)
    shares = np.linspace(0, 1, 10_001)
    unknown = binom.cdf(first - 1, n, shares) + binom.sf(least - 1, n, shares)
    assert level + unknown.min() <= 0.05
    assert 0.9**first <= level


@pytest.mark.parametrize("n", [30, 100, 1000])
@pytest.mark.parametrize("alpha", [0.1, 0.3])
def test_a_threshold_is_what_the_definition_says(n, alpha):
    rng = np.random.default_rng(n)
    for worst in (0.1, 0.3, 0.6):
        uncertainty = rng.integers(1 + n // 3, size=n) / 7
        hit = rng.random(n) > uncertainty / uncertainty.max() * worst
        level, starts = guarantee._starts(n, alpha, 0.1)
        expected = math.nan
        for place, (first, least) in enumerate(starts):
            for value in np.unique(uncertainty):
                inside = uncertainty <= value
                lent = sum(inside.sum() >= least for _, least in starts[:place])
                if inside.sum() < first:
                    continue
                if binom.cdf((inside & ~hit).sum(), inside.sum(), alpha) > level * (1 + lent):
                    break
                if inside.sum() >= least:
                    expected = np.fmax(expected, value)
        found = guaranteed(uncertainty, hit, alpha, 0.1)
        np.testing.assert_equal(found.uncertainty, expected)
        if not found.reason:
            assert found == at_threshold(uncertainty, hit, found.uncertainty)


@given(st.integers(0, 2**32), st.floats(0.01, 100), st.floats(-100, 100))
def test_only_the_order_counts(seed, scale, shift):
    rng = np.random.default_rng(seed)
    uncertainty = rng.integers(100, size=200).astype(float)
    hit = rng.random(200) > uncertainty / 400
    plain = guaranteed(uncertainty, hit, 0.2, 0.1)
    scaled = guaranteed(uncertainty * scale + shift, hit, 0.2, 0.1)
    assert (plain.accepted, plain.misses) == (scaled.accepted, scaled.misses)


def test_without_a_miss_all_are_accepted():
    found = guaranteed(np.arange(100.0), np.ones(100, bool), 0.1, 0.05)
    assert (found.uncertainty, found.accepted, found.misses, found.reason) == (99.0, 100, 0, "")
    assert (found.coverage, found.error) == (1.0, 0.0)


def test_too_few_queries_are_told_how_many_are_needed():
    needed = queries_needed(0.1, 0.05)
    for n, there in ((needed, True), (needed - 1, False)):
        found = guaranteed(np.arange(float(n)), np.ones(n, bool), 0.1, 0.05)
        assert bool(found.accepted) == there
    assert found.reason == "41 queries are too few: about 42 are needed even if none is a miss"
    assert math.isnan(found.uncertainty)


@pytest.mark.parametrize(("alpha", "delta"), [(0.001, 0.05), (0.01, 0.01), (0.5, 0.2)])
def test_queries_needed_are_needed_within_a_percent(alpha, delta):
    needed = queries_needed(alpha, delta)
    assert guarantee._starts(needed, alpha, delta)[1]
    assert not guarantee._starts(math.floor(needed / 1.01) - 1, alpha, delta)[1]


def test_a_sample_that_is_too_small_for_its_errors_says_how_many_would_do():
    hit = np.arange(400) % 20 != 10
    found = guaranteed(np.arange(200.0), hit[:200], 0.1, 0.05)
    assert found.reason == "200 queries are too few: about 400 are needed if more are like these"
    assert guaranteed(np.arange(400.0), hit, 0.1, 0.05).accepted > 300


def test_no_query_and_errors_that_no_sample_mends_are_told():
    none = np.zeros(0)
    found = guaranteed(none, none.astype(bool), 0.1, 0.05)
    assert found.reason == "0 queries are too few: about 42 are needed even if none is a miss"
    assert math.isnan(found.coverage)
    found = guaranteed(np.arange(500.0), np.arange(500) % 3 > 0, 0.1, 0.05)
    assert "the error is too large, or the uncertainty too weak: accepting" in found.reason
    assert "it is 0.33" in found.reason


@given(st.integers(0, 60), st.integers(0, 60), probabilities)
def test_the_bound_on_the_error_is_clopper_and_pearsons(misses, hits, delta):
    bound = error_bound(Threshold(0.0, misses + hits, misses + hits, misses), delta)
    assert bound == pytest.approx(beta.ppf(1 - delta, misses + 1, hits) if hits else 1.0)


@given(st.integers(0, 40), st.integers(0, 40), probabilities)
def test_the_interval_of_the_coverage_is_clopper_and_pearsons(accepted, rejected, delta):
    lower, upper = coverage_interval(Threshold(0.0, accepted + rejected, accepted, 0), delta)
    expected = beta.ppf(delta / 2, accepted, rejected + 1) if accepted else 0.0
    assert lower == pytest.approx(expected, abs=1e-12)
    assert upper == pytest.approx(
        beta.ppf(1 - delta / 2, accepted + 1, rejected) if rejected else 1.0
    )


def test_what_cannot_be_meant_is_refused():
    some, hit = np.array([0.1, np.nan]), np.array([True, False])
    with pytest.raises(ValueError, match="expected finite values, got 1 of 2 that are not"):
        guaranteed(some, hit, 0.1, 0.05)
    with pytest.raises(ValueError, match="expected finite values"):
        at_threshold(some[:1], hit[:1], math.nan)
    for alpha, delta, name in ((0.0, 0.05, "alpha"), (0.1, 1.0, "delta"), (math.nan, 0.1, "alpha")):
        with pytest.raises(ValueError, match=f"expected {name} between 0 and 1, both excluded"):
            guaranteed(some[:1], hit[:1], alpha, delta)


@pytest.mark.parametrize("hit", [np.ones(60, int), np.ones(60), np.ones(61, bool)])
def test_hits_that_are_no_booleans_or_too_many_are_refused(hit):
    for promise in (
        lambda: guaranteed(np.arange(60.0), hit, 0.1, 0.05),
        lambda: at_threshold(np.arange(60.0), hit, 3.0),
    ):
        with pytest.raises(ValueError, match=r"expected (booleans|one row per row of uncertainty)"):
            promise()


def test_tensors_are_taken_as_arrays_are():
    uncertainty, hit = np.arange(300) / 300, np.arange(300) < 240
    tensors = torch.from_numpy(uncertainty), torch.from_numpy(hit)
    assert guaranteed(*tensors, 0.1, 0.05) == guaranteed(uncertainty, hit, 0.1, 0.05)
