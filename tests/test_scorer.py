"""The estimator for arrays: what scikit-learn asks of one, laws, and what it refuses."""

import pickle
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import percentileofscore, spearmanr
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import check_estimator

import askance
from askance.heads.checkpoint import load

QUICK = {"steps": 40, "width": 16, "lr": 1e-2, "device": "cpu"}


def scorer(head="ranking", **options):
    return askance.UncertaintyScorer(head, **QUICK | options)


@pytest.fixture(scope="module")
def rows():
    """Return embeddings and losses that grow with the first column alone."""
    embedding = np.random.default_rng(0).normal(size=(300, 5)).astype(np.float32)
    return embedding, np.exp(embedding[:, 0]) + 1


def test_it_is_an_estimator_as_scikit_learn_defines_one():
    strange = "check_do_not_raise_errors_in_init_or_set_params"
    found = check_estimator(
        scorer(steps=20),
        expected_failed_checks={strange: "the type checks of tests refuse strange values at once"},
        on_fail=None,
        on_skip=None,
    )
    other = {check["check_name"]: check["status"] for check in found if check["status"] != "passed"}
    # The latter needs an environment variable that is read at import.
    assert other == {strange: "xfail", "check_array_api_input": "skipped"}
    assert len(found) > 40


@pytest.mark.parametrize("head", ["ranking", "squared"])
def test_an_easy_order_is_learnt_and_holds_for_new_rows(rows, head):
    embedding, loss = rows
    fitted = scorer(head, steps=150).fit(embedding[:200], loss[:200])
    assert fitted.score(embedding[200:], loss[200:]) > 0.8
    assert scorer(head, steps=1).fit(embedding[:200], loss[:200]).score(*rows) < 0.8


def test_the_score_is_the_rank_correlation_with_the_losses(rows):
    fitted = scorer().fit(*rows)
    expected = spearmanr(fitted.predict(rows[0]), rows[1]).statistic
    np.testing.assert_allclose(fitted.score(*rows), expected, rtol=1e-9)
    np.testing.assert_equal(fitted.score(rows[0], np.ones(len(rows[1]))), np.nan)


def test_a_percentile_is_the_rank_among_the_rows_of_fit(rows):
    embedding, loss = rows
    fitted = scorer().fit(embedding[:200], loss[:200])
    known, new = fitted.predict(embedding[:200]), fitted.predict(embedding)
    expected = percentileofscore(known, new, kind="mean") / 100
    np.testing.assert_allclose(fitted.percentile(embedding), expected, atol=0.01)


@settings(max_examples=5)
@given(constant=st.integers(-1000, 1000))
@pytest.mark.parametrize("head", ["ranking", "squared"])
def test_a_constant_added_to_all_losses_changes_nothing(rows, head, constant):
    embedding, loss = rows[0][:60], np.round(rows[1][:60], 2)
    first, second = (
        scorer(head, steps=5).fit(embedding, y).predict(embedding) for y in (loss, loss + constant)
    )
    np.testing.assert_allclose(first, second, rtol=1e-5)


def test_losses_that_only_say_wrong_or_right_are_taken(rows):
    embedding, loss = rows
    wrong = loss > np.median(loss)
    assert scorer().fit(embedding, wrong).score(embedding, wrong) > 0.5


def test_the_same_seed_gives_the_same_head_and_no_other_random_state_is_touched(rows):
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    first, second, other = (scorer(random_state=s).fit(*rows).predict(rows[0]) for s in (1, 1, 2))
    np.testing.assert_array_equal(first, second)
    assert (first != other).all()
    torch.testing.assert_close(torch.rand(3), expected)


def test_more_rows_than_a_batch_are_dealt_once_an_epoch(monkeypatch, rows):
    seen = []
    step = askance.scorer.Training.step
    monkeypatch.setattr(
        askance.scorer.Training,
        "step",
        lambda self, batch, *rest: (seen.append(batch.loss), step(self, batch, *rest)),
    )
    scorer(batch=100, steps=6).fit(*rows)
    expected = torch.from_numpy(np.float32(np.sort(rows[1] - rows[1].min())))
    for epoch in (seen[:3], seen[3:]):
        torch.testing.assert_close(torch.cat(epoch).sort().values, expected)
    assert not torch.equal(torch.cat(seen[:3]), torch.cat(seen[3:]))


def test_odd_numbers_of_rows_and_odd_batches_form_pairs_all_the_same(rows):
    for count, batch in ((3, 256), (60, 7)):
        fitted = scorer(batch=batch).fit(rows[0][:count], rows[1][:count])
        assert len(fitted.predict(rows[0])) == 300


def test_tensors_and_tables_are_taken_as_arrays_are(rows):
    embedding, loss = rows
    expected = scorer().fit(embedding, loss).predict(embedding)
    frame = pd.DataFrame(embedding, columns=list("abcde"))
    for kind in (torch.from_numpy(embedding), frame, pa.table(frame)):
        fitted = scorer().fit(kind, pd.Series(loss))
        np.testing.assert_array_equal(fitted.predict(kind), expected)


def test_pipelines_searches_and_pickles_work(rows):
    pipeline = make_pipeline(StandardScaler(), scorer())
    search = GridSearchCV(pipeline, {"uncertaintyscorer__steps": [1, 80]}, cv=2).fit(*rows)
    assert search.best_params_ == {"uncertaintyscorer__steps": 80}
    again = pickle.loads(pickle.dumps(search))
    np.testing.assert_array_equal(again.predict(rows[0]), search.predict(rows[0]))


def test_a_saved_head_is_one_that_the_commands_read(rows, tmp_path):
    fitted = scorer().fit(*rows)
    fitted.save(tmp_path / "mine-0.safetensors", {"backbone": "test_vit"})
    saved = load(tmp_path / "mine-0.safetensors")
    uncertainty = saved.head.uncertainty(torch.from_numpy(rows[0])).numpy()
    np.testing.assert_array_equal(uncertainty, fitted.predict(rows[0]))
    np.testing.assert_array_equal(saved.percentile(uncertainty), fitted.percentile(rows[0]))
    assert (saved.name, saved.seed, saved.backbone) == ("ranking", 0, {"backbone": "test_vit"})
    assert saved.note == {"steps": 40, "batch": 256, "lr": 1e-2}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"head": "entropy"}, "head that learns from losses alone (ranking, squared), got 'entro"),
        ({"head": "other"}, "head that learns from losses alone (ranking, squared), got 'other'"),
        ({"steps": 0}, "expected steps from 1 on, got 0"),
        ({"batch": 1}, "expected batch from 2 on, got 1"),
        ({"width": 0}, "expected width from 1 on, got 0"),
        ({"depth": 0}, "expected depth from 1 on, got 0"),
        ({"lr": 1e30}, "others: lower lr (1e+30), or scale the columns"),
        ({"device": "cuda:99"}, "expected the device 'cuda:99', which was asked for"),
    ],
)
def test_parameters_that_can_not_be_are_told(rows, options, message):
    with pytest.raises(ValueError) as error:
        scorer(**options).fit(*rows)
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("embedding", "loss", "message"),
    [
        (np.full((4, 2), np.nan), np.arange(4), "Input X contains NaN"),
        (np.full((4, 2), np.inf), np.arange(4), "or a value too large for dtype('float32')"),
        (np.ones((4, 2)), np.array([0, 1, np.nan, 2]), "Input y contains NaN"),
        (np.ones((1, 2)), np.ones(1), "1 sample(s) (shape=(1, 2)) while a minimum of 2"),
        (np.ones((4, 2)), np.ones(3), "inconsistent numbers of samples: [4, 3]"),
        (np.ones(4), np.ones(4), "Expected 2D array, got 1D array"),
    ],
)
def test_rows_that_nothing_can_be_learnt_from_are_told(embedding, loss, message):
    with pytest.raises(ValueError) as error:
        scorer().fit(embedding, loss)
    assert message in str(error.value)


def test_embeddings_of_another_width_and_losses_of_another_length_are_told(rows):
    fitted = scorer().fit(*rows)
    for method in (fitted.predict, fitted.percentile):
        with pytest.raises(
            ValueError, match="X has 4 features, but UncertaintyScorer is expecting"
        ):
            method(rows[0][:, :4])
    with pytest.raises(ValueError, match="inconsistent numbers of samples"):
        fitted.score(rows[0], rows[1][:-1])


def test_what_was_never_fitted_is_told(tmp_path, rows):
    with pytest.raises(ValueError, match="This UncertaintyScorer instance is not fitted yet"):
        scorer().percentile(rows[0])
    with pytest.raises(ValueError, match="This UncertaintyScorer instance is not fitted yet"):
        scorer().save(Path(tmp_path / "a.safetensors"), {})
    assert not list(tmp_path.iterdir())
