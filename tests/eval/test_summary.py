"""Laws and failures of the table of metrics, with hits that all heads share and with own ones."""

import dataclasses
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from askance.eval import metrics, selective
from askance.eval.intervals import interval, resample, weighted_r_auroc
from askance.eval.summary import (
    Mixture,
    Queries,
    Uncertainties,
    average,
    curve,
    nested,
    summarise,
)

RNG = np.random.default_rng(0)
HIT = np.array([True, True, False, True, False, False, True, True])
OWN = np.array([HIT[::-1], ~HIT, np.roll(HIT, 3)])
UNCERTAINTY = RNG.normal(size=(3, 8)).round(1)
FRACTION = RNG.uniform(0.1, 0.75, 8)
ROW = np.arange(8)
NEAR = np.array([1, 0, 3, 4, 3, 6, 7, 0])


def queries_of(name, hit=HIT, fraction=FRACTION, **known):
    row = np.arange(len(hit))
    near = NEAR if len(hit) == 8 else np.roll(row, 1)
    return Queries(name, row, near, hit, fraction, **known)


QUERIES = queries_of("new")
OWNER = Uncertainties("infonce", [0, 1, 2], UNCERTAINTY, near=np.tile(NEAR, (3, 1)), hit=OWN)


def cells(rows):
    return {(row["metric"], row["head"], row["seed"]): row for row in rows}


def summary_of(*heads, queries=QUERIES):
    return summarise(queries, list(heads))


def upstream(name):
    return queries_of(name, correct=~HIT, loss=np.arange(8.0))


def test_own_hits_replace_those_of_the_set_seed_by_seed():
    found = cells(summary_of(OWNER).rows())
    for seed, (u, hit) in enumerate(zip(UNCERTAINTY, OWN, strict=True)):
        assert found["r_auroc", "infonce", seed]["value"] == metrics.r_auroc(u, hit)
        assert found["r_auroc", "infonce", seed]["value"] != metrics.r_auroc(u, HIT)
        assert found["aurc", "infonce", seed]["value"] == selective.aurc(u, hit)
        assert found["r1", "infonce", seed]["value"] == hit.mean()
    recalls = OWN.mean(axis=1)
    mean = found["r1", "infonce", -1]
    assert (mean["value"], mean["sd"]) == (recalls.mean(), recalls.std(ddof=1))
    assert found["r1", "", -1]["value"] == HIT.mean()


@given(arrays(np.float64, (2, 9), elements=st.integers(-3, 3).map(float)), arrays(bool, 9))
def test_own_hits_that_equal_those_of_the_set_change_nothing(uncertainty, hit):
    shared = Uncertainties("a", [4, 7], uncertainty, uncertainty[::-1])
    own = dataclasses.replace(
        shared, near=np.tile(np.roll(np.arange(9), 1), (2, 1)), hit=np.stack([hit, hit])
    )
    queries = queries_of("new", hit, np.arange(9.0), correct=~hit, loss=np.arange(9.0))
    without, given = (summarise(queries, [head]) for head in (shared, own))
    rest = [row for row in given.rows() if row["head"] == "" or row["metric"] != "r1"]
    np.testing.assert_equal(rest, without.rows())
    np.testing.assert_equal(curve(queries, own), curve(queries, shared))


def test_the_interval_of_a_mean_over_seeds_is_about_that_of_the_bootstrap():
    rng = np.random.default_rng(0)
    hit = rng.random(400) < 0.6
    uncertainty = rng.normal(size=(3, 400)) - 0.5 * hit + rng.normal(size=400)
    rows = summary_of(
        Uncertainties("a", [0, 1, 2], uncertainty), queries=queries_of("new", hit, hit + 0.0)
    )
    mean = cells(rows.rows())["r_auroc", "a", -1]
    lower, upper = interval(resample(weighted_r_auroc, uncertainty, hit, 1000))
    assert mean["upper"] - mean["lower"] == pytest.approx(upper - lower, rel=0.15)
    assert mean["lower"] == pytest.approx(lower, abs=0.01)


def test_metrics_are_those_of_plain_arrays():
    rng = np.random.default_rng(0)
    votes = rng.integers(0, 3, (8, 4))
    votes[2], votes[0] = 0, [3, 0, 0, 0]
    mixture = Mixture(np.arange(10) < 5, rng.random(10) < 0.5)
    plain, cropped, mixed = (rng.normal(size=(1, n)) for n in (8, 8, 10))
    queries = queries_of("new", votes=votes, correct=~HIT, loss=FRACTION, mixture=mixture)
    found = cells(summarise(queries, [Uncertainties("a", [0], plain, cropped, mixed)]).rows())
    u, v, m = plain[0], cropped[0], mixed[0]
    expected = {
        "r_auroc": metrics.r_auroc(u, HIT),
        "aurc": selective.aurc(u, HIT),
        "excess_aurc": selective.excess_aurc(u, HIT),
        "augrc": selective.augrc(u, HIT),
        "crop_win": metrics.crop_win_rate(u, v),
        "crop_correlation": metrics.crop_correlation(v, FRACTION),
        "human_correlation": metrics.human_correlation(u, votes),
        "dirac_auroc": metrics.dirac_auroc(u, votes),
        "mixed_r_auroc": metrics.r_auroc(m, mixture.hit),
        "ood_auroc": metrics.r_auroc(m, mixture.upstream),
        "auroc_classification": metrics.classification_auroc(u, ~HIT),
    }
    for metric, estimate in expected.items():
        row = found[metric, "a", 0]
        assert (row["value"], row["lower"], row["upper"]) == (
            estimate,
            estimate.lower,
            estimate.upper,
        )
    assert set(expected) | {"spearman_loss"} == {metric for metric, head, _ in found if head == "a"}


def test_a_curve_of_own_hits_ends_at_their_own_risk():
    end = curve(QUERIES, OWNER)[-1]
    assert end["coverage"] == 1
    assert end["risk"] == pytest.approx(1 - OWN.mean())
    risks = [selective.risk_coverage(u, h)[1] for u, h in zip(UNCERTAINTY, OWN, strict=True)]
    points = [point["risk"] for point in curve(QUERIES, OWNER)]
    np.testing.assert_array_equal(points, np.mean(risks, axis=0))


def test_one_seed_without_a_miss_is_undefined_with_its_reason_and_so_is_the_mean():
    hit = OWN.copy()
    hit[1] = True
    found = cells(summary_of(dataclasses.replace(OWNER, hit=hit)).rows())
    seeds = [found["r_auroc", "infonce", seed] for seed in (0, 1, 2)]
    assert [math.isnan(row["value"]) for row in seeds] == [False, True, False]
    assert [row["reason"] for row in seeds] == ["", "no miss among 8 queries", ""]
    mean = found["r_auroc", "infonce", -1]
    assert mean["reason"] == "seed 1: no miss among 8 queries"
    assert all(math.isnan(mean[name]) for name in ("value", "lower", "upper", "sd"))
    assert (found["aurc", "infonce", 1]["value"], found["aurc", "infonce", 1]["reason"]) == (0, "")
    assert (found["r1", "infonce", 1]["value"], found["r1", "infonce", -1]["reason"]) == (1, "")


def test_hits_that_all_seeds_share_give_one_reason():
    heads = Uncertainties("a", [0, 1], UNCERTAINTY[:2])
    found = cells(summary_of(heads, queries=queries_of("new", np.zeros(8, bool))).rows())
    assert {found["r_auroc", "a", seed]["reason"] for seed in (-1, 0, 1)} == {
        "no hit among 8 queries"
    }
    assert found["r1", "", -1]["reason"] == ""


def test_without_a_query_all_is_undefined_with_a_reason():
    none = np.empty((1, 0))
    head = Uncertainties(
        "a", [0], none, none, near=np.empty((1, 0), int), hit=np.empty((1, 0), bool)
    )
    queries = queries_of("new", np.empty(0, bool), np.empty(0))
    found = summary_of(head, queries=queries).rows()
    assert {row["metric"] for row in found} >= {"r1", "r_auroc", "aurc", "crop_win"}
    assert all(math.isnan(row["value"]) for row in found)
    assert {row["reason"] for row in found} == {"no query", "no row"}


def test_only_the_seed_with_a_constant_score_has_no_rank_correlation():
    scores = Uncertainties("a", [0, 1], np.stack([UNCERTAINTY[0], np.ones(8)]))
    found = cells(summary_of(scores, queries=upstream("new")).rows())
    reasons = [found["spearman_loss", "a", seed]["reason"] for seed in (0, 1, -1)]
    assert reasons == ["", "constant uncertainty", "seed 1: constant uncertainty"]


def test_averages_take_own_recall_seed_by_seed_over_the_zero_shot_sets():
    other = dataclasses.replace(OWNER, hit=~OWN)
    sets = [
        summary_of(OWNER),
        summary_of(other, queries=queries_of("far")),
        summary_of(OWNER, queries=upstream("seen")),
    ]
    found = cells(average(sets))
    assert [found["r1", "infonce", seed]["value"] for seed in (0, 1, 2, -1)] == [0.5] * 4
    assert found["r1", "", -1]["value"] == HIT.mean()
    each = [cells(s.rows())["r_auroc", "infonce", -1]["value"] for s in sets[:2]]
    assert found["r_auroc", "infonce", -1]["value"] == pytest.approx(np.mean(each))


def test_a_seed_undefined_on_one_set_is_undefined_on_average_and_the_others_are_not():
    hit = OWN.copy()
    hit[2] = False
    sets = [
        summary_of(OWNER),
        summary_of(dataclasses.replace(OWNER, hit=hit), queries=queries_of("far")),
    ]
    found = cells(average(sets))
    assert [found["r_auroc", "infonce", seed]["reason"] for seed in (0, 1, 2, -1)] == [
        "",
        "",
        "far: no hit among 8 queries",
        "seed 2: far: no hit among 8 queries",
    ]
    assert math.isfinite(found["r_auroc", "infonce", 1]["value"])
    assert math.isnan(found["r_auroc", "infonce", -1]["value"])


def test_nested_numbers_keep_the_recall_of_the_backbone_beside_that_of_the_heads():
    tree = nested(summary_of(OWNER, Uncertainties("norm", [0], UNCERTAINTY[:1])).rows())
    assert tree["r1"] == {
        "backbone": {"new": 0.625},
        "infonce": {"new": round(float(OWN.mean()), 4)},
    }
    assert set(tree["r1_sd"]) == {"infonce"}
    assert set(tree["r_auroc"]) == {"infonce", "norm"}


def test_heads_are_compared_with_the_first_on_the_same_queries():
    rng = np.random.default_rng(0)
    hit = rng.random(60) < 0.6
    heads = [Uncertainties(name, [0, 1], rng.normal(size=(2, 60))) for name in "abc"]
    queries = queries_of("new", hit, hit + 0.0)
    sets = [summary_of(*heads, queries=queries), summary_of(*heads, queries=queries)]
    found = cells(sets[0].rows())
    means = {name: found["r_auroc", name, -1]["value"] for name in "abc"}
    differences = {head: row for (metric, head, _), row in found.items() if "difference" in metric}
    assert set(differences) == {"b", "c"}
    for name, row in differences.items():
        assert row["value"] == pytest.approx(means[name] - means["a"])
        assert row["lower"] < row["value"] < row["upper"]
        both = cells(average(sets))["r_auroc_difference", name, -1]
        assert both["value"] == pytest.approx(row["value"])
        assert both["upper"] - both["lower"] < row["upper"] - row["lower"]


def test_the_main_head_is_the_first_without_a_map():
    plain = [
        Uncertainties(name, [0, 1, 2], UNCERTAINTY * sign) for name, sign in (("a", 1), ("b", -1))
    ]
    found = cells(summary_of(OWNER, *plain).rows())
    compared = {head for metric, head, _ in found if metric == "r_auroc_difference"}
    assert compared == {"infonce", "b"}
    first, other = (found["r_auroc", name, -1]["value"] for name in ("a", "infonce"))
    value = found["r_auroc_difference", "infonce", -1]["value"]
    assert value == pytest.approx(other - first)
