"""Laws, oracles, golden numbers and failures of the metrics."""

import itertools
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import stats
from sklearn.metrics import roc_auc_score

from askance import metrics
from askance.eval import influences
from askance.eval.estimates import Estimate
from askance.eval.metrics import vote_entropy

GOLDEN = Path(__file__).parents[1] / "golden" / "eval.npz"
RNG = np.random.default_rng(0)
HIT = RNG.random(60) < 0.6
UNCERTAINTY = RNG.normal(size=60).round(1)
LABEL = RNG.integers(5, size=60)
EMBEDDING = RNG.normal(size=(60, 4)).astype(np.float32)
VOTES = RNG.integers(4, size=(60, 3))

# Every metric, by the columns it takes.
CALLS = {
    "hits": (EMBEDDING, LABEL),
    "recall_at_1": (EMBEDDING, LABEL),
    "r_auroc": (UNCERTAINTY, HIT),
    "classification_auroc": (UNCERTAINTY, HIT),
    "crop_win_rate": (UNCERTAINTY, UNCERTAINTY[::-1].copy()),
    "crop_correlation": (UNCERTAINTY, UNCERTAINTY[::-1].copy()),
    "human_correlation": (UNCERTAINTY, VOTES),
    "dirac_auroc": (UNCERTAINTY, VOTES),
    "quantiles": (UNCERTAINTY,),
    "per_class": (UNCERTAINTY, HIT, LABEL),
    "auroc": (UNCERTAINTY, HIT),
    "aurc": (UNCERTAINTY, HIT),
    "excess_aurc": (UNCERTAINTY, HIT),
    "augrc": (UNCERTAINTY, HIT),
    "ood_auroc": (UNCERTAINTY, UNCERTAINTY[:20] + 1),
}


@st.composite
def queries(draw, most=40):
    """Uncertainties with ties, and hits: at least one of either kind."""
    n = draw(st.integers(2, most))
    uncertainty = draw(arrays(np.float64, n, elements=st.integers(-5, 5).map(float)))
    hit = draw(arrays(bool, n))
    hit[:2] = True, False
    return uncertainty, hit


@st.composite
def mapped(draw):
    """Queries, and the same under an arbitrary increasing map."""
    uncertainty, hit = draw(queries())
    levels, group = np.unique(uncertainty, return_inverse=True)
    finite = st.floats(allow_nan=False, allow_infinity=False)
    image = draw(st.lists(finite, min_size=len(levels), max_size=len(levels), unique=True))
    return uncertainty, np.array(sorted(image))[group], hit


def same(first, second):
    """Compare what metrics return: estimates, dictionaries of them, arrays and tables."""
    if type(first) is float:
        assert first == second
    elif isinstance(first, Estimate):
        np.testing.assert_equal([first, vars(first)], [second, vars(second)])
    elif isinstance(first, dict):
        assert first.keys() == second.keys()
        for name in first:
            same(first[name], second[name])
    elif isinstance(first, np.ndarray):
        np.testing.assert_array_equal(first, second)
    else:
        np.testing.assert_equal(first.to_pydict(), second.to_pydict())


@given(queries())
def test_r_auroc_equals_its_definition_and_sklearn(case):
    uncertainty, hit = case
    pairs = list(itertools.product(uncertainty[~hit], uncertainty[hit]))
    wins = sum((miss > hit) + (miss == hit) / 2 for miss, hit in pairs)
    for metric in (metrics.r_auroc, metrics.classification_auroc):
        found = metric(uncertainty, hit)
        np.testing.assert_allclose(found, wins / len(pairs), rtol=1e-12)
        np.testing.assert_allclose(found, roc_auc_score(~hit, uncertainty), rtol=1e-12)


@given(mapped())
def test_any_increasing_map_leaves_r_auroc_with_its_interval(case):
    uncertainty, image, hit = case
    same(metrics.r_auroc(image, hit), metrics.r_auroc(uncertainty, hit))


@given(queries())
def test_negation_turns_r_auroc_round(case):
    uncertainty, hit = case
    found, turned = metrics.r_auroc(uncertainty, hit), metrics.r_auroc(-uncertainty, hit)
    np.testing.assert_allclose(
        [turned, turned.lower, turned.upper],
        [1 - found, 1 - found.upper, 1 - found.lower],
        rtol=0, atol=1e-12,
    )  # fmt: skip


@given(queries(), st.randoms(use_true_random=False))
def test_the_order_of_rows_does_not_matter(case, random):
    uncertainty, hit = case
    rows = random.sample(range(len(hit)), len(hit))
    found, again = metrics.r_auroc(uncertainty, hit), metrics.r_auroc(uncertainty[rows], hit[rows])
    np.testing.assert_allclose([again, again.lower], [found, found.lower], rtol=0, atol=1e-12)


def test_equal_uncertainties_are_a_coin():
    assert metrics.r_auroc(np.full(7, 3.0), np.arange(7) < 2) == 0.5


@pytest.mark.parametrize(
    ("hit", "reason"),
    [
        ([True] * 40, "no miss among 40 queries"),
        ([False] * 3, "no hit among 3 queries"),
        ([], "no query"),
    ],
)
def test_undefined_r_auroc_is_nan_with_a_reason(hit, reason):
    found = metrics.r_auroc(np.arange(len(hit)) / 1.0, np.array(hit, bool))
    assert math.isnan(found)
    assert (found.reason, math.isnan(found.lower)) == (reason, True)


@pytest.mark.parametrize(
    ("found", "reason"),
    [
        (metrics.classification_auroc(UNCERTAINTY, HIT | True), "no wrong row among 60 rows"),
        (metrics.crop_win_rate(np.empty(0), np.empty(0)), "no image"),
        (metrics.crop_correlation(np.zeros(3), np.arange(3.0)), "constant uncertainty"),
        (metrics.crop_correlation(np.arange(3.0), np.zeros(3)), "constant fraction"),
        (metrics.crop_correlation(np.empty(0), np.empty(0)), "no row"),
        (
            metrics.human_correlation(np.zeros(3), np.eye(3, dtype=int)),
            "constant uncertainty and entropy of votes",
        ),
        (metrics.human_correlation(np.arange(3.0), np.zeros((3, 2), int)), "no row"),
        (metrics.dirac_auroc(np.arange(3.0), np.eye(3, dtype=int)), "no disputed row among 3 rows"),
        (metrics.dirac_auroc(np.arange(3.0), np.ones((3, 2), int)), "no agreed row among 3 rows"),
        (metrics.recall_at_1(EMBEDDING[:1], LABEL[:1]), "no other row to retrieve"),
        (metrics.ood_auroc(UNCERTAINTY, np.empty(0)), "no downstream row among 60 rows"),
        (metrics.quantiles(np.empty(0))["q50"], "no row"),
    ],
)
def test_what_is_undefined_says_why(found, reason):
    assert math.isnan(found)
    assert found.reason == reason


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("kind", [torch.float64, torch.float32])
def test_tensors_give_the_numbers_of_arrays(name, kind):
    given = [torch.from_numpy(column) for column in CALLS[name]]
    given = [column.to(kind) if column.is_floating_point() else column for column in given]
    expected = [column.numpy() for column in given]
    same(getattr(metrics, name)(*given), getattr(metrics, name)(*expected))


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16])
def test_small_floats_and_tensors_with_gradients_are_ranked_as_they_are(kind):
    uncertainty = torch.from_numpy(UNCERTAINTY).to(kind).requires_grad_()
    expected = metrics.r_auroc(uncertainty.detach().double().numpy(), HIT)
    same(metrics.r_auroc(uncertainty, torch.from_numpy(HIT)), expected)


def test_a_hit_is_a_nearest_other_row_of_the_same_label():
    unit = EMBEDDING / np.linalg.norm(EMBEDDING, axis=1, keepdims=True)
    similarity = unit @ unit.T - 9 * np.eye(60)
    expected = LABEL[similarity.argmax(axis=1)] == LABEL
    np.testing.assert_array_equal(metrics.hits(EMBEDDING, LABEL), expected)
    assert metrics.recall_at_1(EMBEDDING.astype(np.float64), LABEL) == expected.mean()


def test_mutual_neighbours_are_found_among_rows_numbered_in_any_way():
    rng = np.random.default_rng(0)
    row = rng.permutation(90)[:60]
    near = rng.integers(90, size=60)
    near[:20] = row[np.arange(20) ^ 1]  # ten pairs, and those by chance
    hit = rng.random(60) < 0.5
    found = influences.recall(hit, row, near)
    nearest = dict(zip(row.tolist(), near.tolist(), strict=True))
    mutual = np.array([nearest.get(nearest[i]) == i for i in row.tolist()])
    assert 20 <= mutual.sum() < 60
    paired = (found.influence[mutual] ** 2).sum() / 60**2
    assert found.doubt == pytest.approx(paired, rel=1e-12)
    everyone = influences.recall(np.ones(60, bool), row, near)
    assert everyone.trials == 60 - mutual.sum() // 2
    assert influences.recall(hit[:0], row[:0], near[:0]).reason == "no query"


@pytest.mark.parametrize("classes", [3, 30])
def test_intervals_of_recall_cover_though_neighbours_hit_together(classes):
    rng = np.random.default_rng(0)
    centre = rng.normal(size=(classes, 8))

    def recall():
        label = rng.integers(classes, size=200)
        return metrics.recall_at_1(centre[label] + 1.5 * rng.normal(size=(200, 8)), label)

    found = [recall() for _ in range(500)]
    truth = np.mean(found)
    covered = np.mean([each.lower <= truth <= each.upper for each in found])
    assert 0.915 < covered < 0.98


@pytest.mark.parametrize("kind", [np.float16, np.float32, np.float64])
def test_the_plain_auroc_is_that_with_an_interval(kind):
    uncertainty = UNCERTAINTY.astype(kind)
    found = metrics.auroc(uncertainty, ~HIT)
    assert type(found) is float
    assert found == pytest.approx(metrics.r_auroc(uncertainty, HIT), abs=1e-12)
    assert metrics.auroc(torch.from_numpy(uncertainty), torch.from_numpy(~HIT)) == found
    assert math.isnan(metrics.auroc(uncertainty, HIT | True))


def test_a_crop_wins_only_if_strictly_less_certain():
    plain, cropped = np.array([0.1, 0.2, 0.3, 0.4]), np.array([0.2, 0.2, 0.1, 0.9])
    assert metrics.crop_win_rate(plain, cropped) == 0.5


def test_a_crop_that_shows_more_should_be_more_certain():
    fraction = RNG.uniform(size=50)
    assert metrics.crop_correlation(-fraction, fraction) == 1
    found = metrics.crop_correlation(UNCERTAINTY[:50], fraction)
    expected = stats.spearmanr(-UNCERTAINTY[:50], fraction)[0]
    np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_human_correlation_is_with_the_entropy_of_rows_with_votes():
    votes = np.where(np.arange(60)[:, None] % 7 == 0, 0, VOTES)
    some = votes.any(axis=1)
    entropy = stats.entropy(votes[some], axis=1).round(12)
    expected = stats.spearmanr(UNCERTAINTY[some], entropy)[0]
    np.testing.assert_allclose(metrics.human_correlation(UNCERTAINTY, votes), expected, rtol=1e-12)


@given(arrays(np.int64, (3, 9), elements=st.integers(0, 9)), st.permutations(range(9)))
def test_entropy_does_not_depend_on_which_class_got_the_votes(votes, order):
    votes[:, 0] += 1
    found = vote_entropy(votes)
    np.testing.assert_array_equal(vote_entropy(votes[:, order] * 3), found)
    np.testing.assert_allclose(found, stats.entropy(votes, axis=1), rtol=0, atol=1e-12)


def test_a_label_is_disputed_where_votes_go_to_two_classes():
    votes = np.array([[5, 0, 0], [0, 4, 1], [0, 0, 0], [1, 1, 1], [0, 0, 2]])
    found = metrics.dirac_auroc(np.array([0.1, 0.3, 99.0, 0.2, 0.2]), votes)
    assert found == roc_auc_score([0, 1, 1, 0], [0.1, 0.3, 0.2, 0.2])


def test_quantiles_are_numpys_and_their_intervals_cover():
    found = metrics.quantiles(UNCERTAINTY)
    for q in (10, 25, 50, 75, 90):
        assert found[f"q{q}"] == np.quantile(UNCERTAINTY, q / 100)
    for name, value in (("min", UNCERTAINTY.min()), ("max", UNCERTAINTY.max())):
        assert found[name] == value
    assert found["mean"] == pytest.approx(UNCERTAINTY.mean())
    assert found["iqr"] == found["q75"] - found["q25"]
    assert math.isnan(metrics.quantiles(UNCERTAINTY[:9])["q10"].lower)
    rng = np.random.default_rng(0)
    drawn = [metrics.quantiles(rng.normal(size=200)) for _ in range(400)]
    for name, truth in (("q10", stats.norm.ppf(0.1)), ("q50", 0), ("mean", 0)):
        covered = np.mean([each[name].lower <= truth <= each[name].upper for each in drawn])
        assert 0.92 < covered < 0.985


def test_per_class_is_each_metric_on_the_rows_of_a_class():
    label = np.where(np.arange(60) == 30, -4, LABEL)
    rows = metrics.per_class(UNCERTAINTY, HIT, label).to_pylist()
    assert [row["label"] for row in rows] == sorted(set(label.tolist()))
    assert sum(row["count"] for row in rows) == 60
    for row in rows[1:]:
        mine = label == row["label"]
        ranked = metrics.r_auroc(UNCERTAINTY[mine], HIT[mine])
        share = influences.share(HIT[mine]).estimate()
        found = [row["recall"], row["recall_lower"], row["recall_upper"]]
        np.testing.assert_allclose(found, [share, share.lower, share.upper], rtol=0, atol=1e-12)
        assert row["uncertainty"] == pytest.approx(UNCERTAINTY[mine].mean())
        assert (row["r_auroc"], row["r_auroc_lower"]) == (ranked, ranked.lower)
    assert rows[0]["reason"] in ("no miss among 1 queries", "no hit among 1 queries")
    assert metrics.per_class(np.empty(0), HIT[:0], LABEL[:0]).num_rows == 0


@pytest.mark.parametrize("prefix", ["val.soft.up.", "val.soft.down."])
def test_exact_numbers_of_a_published_evaluation(prefix):
    with np.load(GOLDEN) as file:
        golden = {name.removeprefix(prefix): file[name] for name in file if prefix in name}
    hit = metrics.hits(golden["features"], golden["targets"])
    assert metrics.recall_at_1(golden["features"], golden["targets"]) == golden["own_r1"]
    found = metrics.r_auroc(golden["unc"], hit)
    np.testing.assert_allclose(found, golden["own_auroc_correct"], rtol=1e-12)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", [name for name in CALLS if name not in ("hits", "recall_at_1")])
def test_uncertainties_that_are_not_finite_are_never_ranked(name, value):
    first, *others = CALLS[name]
    bad = first.copy()
    bad[[2, 7]] = value
    with pytest.raises(ValueError, match=r"expected finite values, got 2 of \d+ that are not, the"):
        getattr(metrics, name)(bad, *others)


@pytest.mark.parametrize("name", ["crop_win_rate", "crop_correlation", "ood_auroc"])
def test_neither_of_two_columns_may_be_nan(name):
    with pytest.raises(ValueError, match=r"that are not, the first in row \d+ \(nan\)"):
        getattr(metrics, name)(np.arange(3.0), np.array([0.0, np.nan, 1.0]))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: metrics.r_auroc(UNCERTAINTY, HIT[1:]), "in hit, got 59 rows and 60: pass"),
        (
            lambda: metrics.r_auroc(UNCERTAINTY, HIT * 1),
            r"booleans of shape \(n,\) in hit, got int",
        ),
        (lambda: metrics.r_auroc(LABEL, HIT), r"floats of shape \(n,\) in uncertainty, got int64"),
        (lambda: metrics.r_auroc(UNCERTAINTY[:, None], HIT), r"got float64 of shape \(60, 1\)"),
        (lambda: metrics.hits(EMBEDDING[0], LABEL), r"of shape \(n, d\) in embedding, got float32"),
        (
            lambda: metrics.hits(EMBEDDING, UNCERTAINTY),
            r"integers of shape \(n,\) in label, got fl",
        ),
        (lambda: metrics.hits(EMBEDDING[:1], LABEL[:1]), "expected at least two rows, got 1"),
        (
            lambda: metrics.dirac_auroc(UNCERTAINTY, VOTES[:, 0]),
            r"numbers of shape \(n, c\) in vot",
        ),
        (lambda: metrics.dirac_auroc(UNCERTAINTY, VOTES - 1), "counts of at least 0 in votes, got"),
        (lambda: metrics.human_correlation(UNCERTAINTY, VOTES * np.nan), "others in 60 rows, the"),
    ],
)
def test_columns_that_do_not_fit_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_the_public_names_exist_and_the_heavy_ones_are_imported_when_used():
    code = (
        "import sys, askance; m = askance.metrics\n"
        "print([x for x in ('torch', 'torchmetrics', 'faiss', 'scipy') if x in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], text=True, capture_output=True, check=True)
    assert done.stdout.strip() == "[]"
    assert [name for name in dir(metrics) if not hasattr(metrics, name)] == []
    assert not hasattr(metrics, "nothing")
