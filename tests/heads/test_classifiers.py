"""The heads that are classifiers: against the original program, their definitions, and laws.

Also that they find the ambiguous rows of an easy synthetic set, and what lies far from it.
"""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score
from torch.nn.functional import layer_norm, linear, softplus

from askance.heads import softmax
from askance.heads.dropout import Dropout, DropoutJsd
from askance.heads.ensemble import Ensemble, EnsembleJsd
from askance.heads.entropy import entropy
from askance.heads.gp import RIDGE, Gp, GpPublished, posterior_variance, precision_after
from askance.heads.head import Batch, Setup
from askance.heads.hetxl import (
    HetXl,
    HetXlDet,
    HetXlDetPublished,
    HetXlPublished,
    log_determinant,
)
from askance.heads.softmax import jensen_shannon, log_mean_softmax, mixture_entropy, mixture_loss

GOLDEN = np.load(Path(__file__).parents[1] / "golden" / "classifiers.npz")
JSD = [DropoutJsd, EnsembleJsd]
ENTROPY = [Dropout, Ensemble, HetXl, HetXlPublished, Gp]
DETERMINANT = [HetXlDet, HetXlDetPublished]
KINDS = [*ENTROPY, *JSD, *DETERMINANT, GpPublished]
DIM, CLASSES = 16, 4


def golden(name: str) -> torch.Tensor:
    return torch.from_numpy(GOLDEN[name])


def close(found: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(found.detach(), expected, rtol=1e-6, atol=1e-12)


def normal(seed: int, *shape: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def upstream(seed: int = 0) -> Setup:
    """Return class centres as a classifier."""
    return Setup(DIM, 1, 1, normal(seed, CLASSES, DIM).float(), torch.zeros(CLASSES))


def head_of(kind):
    torch.manual_seed(0)
    return kind(upstream())


def rows_of(seed: int, n: int) -> tuple[Batch, np.ndarray]:
    """Return rows around class centres, and which lie half-way to another class: label random."""
    generator = torch.Generator().manual_seed(seed)
    column, other = torch.randint(CLASSES, (2, n), generator=generator)
    ambiguous = torch.rand(n, generator=generator) < 0.3
    centre = 2 * upstream().weight
    share = torch.where(ambiguous & (column != other), 0.5, 0.0)[:, None]
    embedding = centre[column] * (1 - share) + centre[other] * share
    embedding = embedding + 0.5 * torch.randn(n, DIM, generator=generator)
    return Batch(embedding, torch.zeros(n), column), (share.flatten() > 0).numpy()


def trained(kind, steps: int = 120, rate: float = 1e-3):
    head = head_of(kind).train()
    adamw = torch.optim.AdamW(head.parameters(), lr=rate)
    losses = []
    for step in range(steps):
        loss = head.objective(rows_of(step, 64)[0])
        adamw.zero_grad()
        loss.backward()
        adamw.step()
        losses.append(loss.item())
    return head.eval(), losses


# The original program's numbers.


def test_cross_entropy_plain_and_smoothed_equals_the_original():
    logits, column = golden("losspred.logits")[None], golden("losspred.target")
    close(mixture_loss(logits, column, 0.0), golden("ce.plain"))
    close(mixture_loss(logits, column), golden("ce.smooth01"))


def test_entropy_of_extreme_logits_equals_the_original():
    logits = golden("entropy_extreme.logits32")
    for found in (entropy(logits), mixture_entropy(logits[None])):
        torch.testing.assert_close(
            found, golden("entropy_extreme.entropy32"), rtol=1e-4, atol=1e-12
        )


@pytest.fixture
def golden_ensemble():
    class Three(EnsembleJsd):
        MEMBERS = 3

    head = Three(Setup(6, 1, 1, torch.zeros(5, 6), torch.zeros(5))).double()
    state = {"members.weight": golden("ens.W"), "members.bias": golden("ens.b")}
    head.load_state_dict(state)
    return head


def test_ensemble_equals_the_original(golden_ensemble):
    embedding, column = golden("uncmod.features"), golden("ens.target")
    logits = golden_ensemble.logits(embedding)
    close(logits, golden("ens.logits_per_head"))
    close(log_mean_softmax(logits), golden("ens.out_logmeanprob"))
    close(golden_ensemble(embedding), golden("ens.jsd"))
    close(Ensemble.scalar(golden_ensemble, embedding), golden("ens.class_entropy"))
    close(mixture_loss(logits, column, 0.0), golden("ens.train_loss_ce"))
    batch = Batch(embedding, torch.zeros(10), column)
    close(golden_ensemble.objective(batch), golden("ens.train_loss_smooth01"))


def golden_hetxl(kind):
    class RankTwo(kind):
        RANK = 2

    head = RankTwo(Setup(4, 1, 1, golden("hetxl.W"), golden("hetxl.b"))).double()
    state = {"temperature": golden("hetxl.temp_raw"), "covariance": golden("hetxl.C")}
    head.load_state_dict(head.state_dict() | state)
    return head


def test_hetxl_equals_the_original_with_its_noise():
    noise = (golden(f"hetxl.noise_{name}").movedim(1, 0) for name in ("lowrank", "diag"))
    logits = golden_hetxl(HetXlPublished).sampled(golden("hetxl.x"), *noise)
    close(log_mean_softmax(logits), golden("hetxl.out_logmeanprob"))


def test_hetxl_det_is_the_determinant_and_the_published_one_equals_the_original():
    embedding = golden("hetxl.x")
    close(golden_hetxl(HetXlDetPublished)(embedding), golden("hetxl.logdet_unc"))
    close(golden_hetxl(HetXlDet)(embedding), golden("hetxl.true_logdet_of_VVt_plus_diag"))


def golden_gp(kind):
    class Nine(kind):
        FEATURES = 9

    head = Nine(Setup(4, 1, 1, torch.zeros(5, 4), torch.zeros(5))).double()
    names = {"normalise.weight": "ln_w", "normalise.bias": "ln_b", "frequency": "rf_w"}
    names |= {"phase": "rf_b", "output": "beta", "covariance": "covariance"}
    state = head.state_dict()
    head.load_state_dict(state | {k: golden(f"gp.{v}") for k, v in names.items() if k in state})
    return head


def test_gp_equals_the_original_with_its_covariance():
    head, embedding = golden_gp(GpPublished), golden("gp.x")
    close(linear(head.features(embedding), head.output), golden("gp.logits_train"))
    close(head.logits(embedding)[0], golden("gp.logits_eval_meanfield"))
    close(head(embedding), golden("gp.class_entropy_eval"))


def test_gp_has_the_originals_mean_and_the_precision_it_would_have_if_it_were_updated():
    head = golden_gp(Gp)
    features = head.features(golden("gp.x"))
    close(linear(features, head.output), golden("gp.logits_train"))
    precision = precision_after(torch.zeros(9, 9).double(), features)
    close(precision, golden("gp.precision_after_one_direct_call"))
    close(posterior_variance(precision, features), golden("gp.predvar_after_update"))


# Definitions and laws.

LOGITS = st.builds(
    lambda seed, s, n, c, scale: scale * normal(seed, s, n, c),
    st.integers(0, 999),
    st.integers(1, 12),
    st.integers(1, 6),
    st.integers(1, 9),
    st.sampled_from([0.0, 0.1, 3.0, 300.0]),
)


@given(LOGITS)
def test_entropy_and_divergence_are_their_definitions_within_bounds_in_any_order(logits):
    p = logits.softmax(-1)
    total = torch.special.entr(p.mean(0)).sum(-1)
    apart = total - torch.special.entr(p).sum(-1).mean(0)
    found, divergence = mixture_entropy(logits), jensen_shannon(logits)
    torch.testing.assert_close(found, total)
    torch.testing.assert_close(divergence, apart, rtol=1e-6, atol=1e-12)
    assert ((found >= 0) & (found <= math.log(logits.shape[2]) + 1e-12)).all()
    assert ((divergence >= 0) & (divergence <= math.log(len(logits)) + 1e-12)).all()
    torch.testing.assert_close(mixture_entropy(logits.flip(0)), found)
    torch.testing.assert_close(jensen_shannon(logits.flip(0)), divergence, rtol=1e-6, atol=1e-12)


def test_divergence_is_ln_s_of_members_certain_of_different_classes():
    torch.testing.assert_close(
        jensen_shannon(1e4 * torch.eye(3)[:, None]), torch.tensor([math.log(3)])
    )


def test_divergence_of_equal_members_is_0_or_just_above_in_float32():
    divergence = jensen_shannon(normal(0, 1, 2_000, 2).float().expand(7, -1, -1))
    assert ((divergence >= 0) & (divergence < 1e-10)).all()


def test_logits_in_bfloat16_are_summed_in_float32():
    logits = (9 * normal(0, 3, 50, 20)).bfloat16()
    column = torch.arange(50) % 20
    assert torch.equal(mixture_loss(logits, column), mixture_loss(logits.float(), column))


def test_divergence_of_confident_rows_keeps_its_order_in_float32():
    logits = 40 * normal(0, 1, 500, 100) + normal(1, 10, 500, 100)
    exact, found = jensen_shannon(logits), jensen_shannon(logits.float()).double()
    ranks = torch.stack([exact, found]).argsort(1).argsort(1).double()
    assert torch.corrcoef(ranks)[0, 1] > 0.9999


@given(st.integers(0, 999), st.integers(1, 8), st.integers(1, 4), st.floats(-6, 3))
def test_log_determinant_is_that_of_the_dense_matrix(seed, dim, rank, log_scale):
    factor = normal(seed, 3, dim, rank)
    diagonal = (normal(seed + 1, 3, dim) + log_scale).exp()
    dense = factor @ factor.mT + torch.diag_embed(diagonal)
    found = log_determinant(factor, diagonal)
    torch.testing.assert_close(found, torch.linalg.slogdet(dense).logabsdet)


def test_hetxl_noise_has_the_covariance_whose_determinant_it_reports_the_published_rank_2():
    samples, ranks = 40_000, []
    for kind in (HetXl, HetXlPublished):
        head = head_of(kind).double()
        with torch.no_grad():
            head.covariance *= 20
            embedding = normal(3, 1, DIM)
            draws = head.noise(samples, 1, torch.Generator().manual_seed(0))
            head.weight, head.bias = torch.nn.Parameter(torch.eye(DIM).double()), None
            noise = (head.sampled(embedding, *draws) * softplus(head.temperature))[:, 0] - embedding
            factor, variance = head.spread(embedding)
        ranks.append(int(torch.linalg.matrix_rank(noise)))
        if kind is HetXl:
            dense = factor[0] @ factor[0].T + variance[0].diag()
            spread = (dense.diag()[:, None] * dense.diag()).sqrt()
            assert ((noise.T @ noise / samples - dense) / spread).abs().max() < 0.03
    assert ranks == [DIM, 2]


@pytest.mark.parametrize("kind", [Dropout, HetXl])
def test_classifier_starts_as_the_upstream_one(kind):
    setup, embedding = upstream(), normal(0, 5, DIM).float()
    head = kind(setup)
    if kind is Dropout:
        head.mask.fill_(1)
        found = head.logits(embedding)[0]
    else:
        found = head.sampled(embedding, *(torch.zeros_like(x) for x in head.noise(1, 5)))[0]
        found = found * softplus(torch.tensor(1.0))
    torch.testing.assert_close(found, embedding @ setup.weight.T + setup.bias)
    assert head.weight.data_ptr() != setup.weight.data_ptr()


def test_members_of_an_ensemble_differ_at_the_start():
    logits = head_of(Ensemble).logits(normal(0, 5, DIM).float())
    assert len({tuple(member.flatten().tolist()) for member in logits}) == Ensemble.MEMBERS


def test_dropout_keeps_the_mean_of_the_embedding_and_drops_its_rate():
    head = Dropout(Setup(5_000, 1, 1, torch.zeros(2, 5_000), torch.zeros(2)))
    assert head.mask.mean().item() == pytest.approx(1, abs=0.02)
    assert (head.mask == 0).float().mean().item() == pytest.approx(Dropout.RATE, abs=0.01)
    assert len(head.mask.unique(dim=0)) == Dropout.PASSES


def test_features_of_gp_approximate_its_kernel():
    head, embedding = head_of(Gp).double(), normal(1, 30, DIM)
    features = head.features(embedding)
    x = layer_norm(embedding, (DIM,))
    kernel = (-torch.cdist(x, x).square() / (2 * DIM)).exp()
    found = 2 / Gp.FEATURES * features @ features.T
    assert (found - kernel).abs().max() < 0.15
    assert (found - kernel).square().mean().sqrt() < 0.03


@pytest.mark.parametrize(("kind", "variance"), [(Gp, 1 / DIM), (GpPublished, 1)])
def test_frequencies_of_gp_are_orthogonal_and_of_their_variance(kind, variance):
    frequency = head_of(kind).frequency
    gram = frequency[:DIM] @ frequency[:DIM].T
    torch.testing.assert_close(gram, gram.diag().diag(), rtol=0, atol=1e-5)
    assert frequency.square().mean().item() == pytest.approx(variance, rel=0.05)


def test_variance_of_gp_is_that_of_its_prior_before_it_has_seen_a_row():
    head = head_of(Gp)
    features = head.features(normal(0, 5, DIM).float())
    torch.testing.assert_close(head.variance(features), features.square().sum(-1))


def test_posterior_variance_is_that_of_gaussian_process_regression():
    seen, asked = normal(0, 4, 7), normal(1, 5, 7)
    across, noise = asked @ seen.T, 4 * RIDGE * torch.eye(4)
    known = across @ torch.linalg.solve(seen @ seen.T + noise, across.T)
    expected = (asked @ asked.T - known).diagonal()
    torch.testing.assert_close(
        posterior_variance(seen.T @ seen / 4, asked), expected, rtol=1e-5, atol=0
    )


def test_gp_counts_every_batch_as_evidence_and_the_published_one_none():
    head, expected = head_of(Gp), torch.zeros(Gp.FEATURES, Gp.FEATURES)
    for seed in range(2):
        batch = rows_of(seed, 8)[0]
        phi = math.sqrt(2 / Gp.FEATURES) * head.features(batch.embedding).detach()
        expected = 0.999 * expected + 0.001 * phi.T @ phi / 8
        head.objective(batch)
    torch.testing.assert_close(head.precision, expected)
    published = trained(GpPublished, steps=3)[0]
    assert not published.precision.any()


def test_gp_is_uncertain_far_from_the_data_and_the_published_variance_does_nothing():
    near, far = rows_of(1_000_000, 300)[0].embedding, 6 * normal(7, 300, DIM).float()
    rows, is_far = torch.cat([near, far]), np.repeat([0, 1], 300)
    head = trained(Gp)[0]
    with torch.inference_mode():
        variance = head.variance(head.features(rows))
    assert roc_auc_score(is_far, variance) > 0.95
    assert roc_auc_score(is_far, head.uncertainty(rows)) > 0.8
    published = trained(GpPublished)[0]
    with torch.inference_mode():
        logits = published.logits(rows)[0]
        plain = linear(published.features(rows), published.output)
    change = ((logits - plain) / plain).abs()
    assert 1e-6 < change.median() < 3e-5
    assert change.max() < 1e-4
    assert roc_auc_score(is_far, published.variance(published.features(rows)).detach()) < 0.7


# What every head promises.


@pytest.mark.parametrize("kind", [*ENTROPY, *JSD])
def test_ambiguous_rows_are_uncertain_and_the_objective_falls(kind):
    # The members' random start, in which longer rows disagree more, takes its time to be forgotten.
    head, losses = trained(kind, 1_500, 5e-3) if kind is EnsembleJsd else trained(kind)
    batch, ambiguous = rows_of(1_000_000, 600)
    assert roc_auc_score(ambiguous, head.uncertainty(batch.embedding)) > 0.8
    assert np.mean(losses[-10:]) < np.mean(losses[:10]) - 0.05


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_all_that_is_learnt_gets_a_gradient_and_the_embedding_none(kind, dtype):
    head = head_of(kind).to(dtype)
    batch = rows_of(0, 32)[0]
    embedding = batch.embedding.to(dtype).requires_grad_()
    head.objective(batch._replace(embedding=embedding)).backward()
    assert embedding.grad is None
    for name, parameter in head.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.any(), name


@pytest.mark.parametrize(
    ("kind", "learnt", "kept"),
    [
        (Dropout, {"weight", "bias"}, {"mask"}),
        (Ensemble, {"members.weight", "members.bias"}, set()),
        (HetXl, {"weight", "bias", "temperature", "covariance"}, {"low_rank", "diagonal"}),
        (
            Gp,
            {"output", "normalise.weight", "normalise.bias"},
            {"frequency", "phase", "precision"},
        ),
    ],
)
def test_state_holds_what_is_learnt_and_what_use_needs(kind, learnt, kept):
    head = kind(upstream())
    assert {name for name, _ in head.named_parameters()} == learnt
    assert set(head.state_dict()) == learnt | kept


@pytest.mark.parametrize("kind", [Dropout, HetXl, HetXlPublished])
def test_draws_of_use_do_not_depend_on_the_seed(kind):
    one, other = kind(upstream()), kind(upstream())
    for (name, draw), (_, again) in zip(one.named_buffers(), other.named_buffers(), strict=True):
        assert torch.equal(draw, again), name


@pytest.mark.parametrize("kind", KINDS)
def test_state_is_all_there_is(kind):
    head, _ = trained(kind, steps=3)
    torch.manual_seed(5)
    other = kind(Setup(DIM, 1, 1, torch.zeros(CLASSES, DIM), torch.zeros(CLASSES))).eval()
    other.load_state_dict(head.state_dict())
    embedding = rows_of(1, 20)[0].embedding
    assert torch.equal(other.uncertainty(embedding), head.uncertainty(embedding))
    torch.manual_seed(6)
    assert torch.equal(other.uncertainty(embedding), head.uncertainty(embedding))


@pytest.mark.parametrize("kind", KINDS)
def test_a_row_is_the_same_alone_and_in_parts_of_bounded_size(kind, monkeypatch):
    head, embedding = trained(kind, steps=5)[0], rows_of(1, 8)[0].embedding
    together = head.uncertainty(embedding)
    assert together.shape == (8,)
    alone = torch.cat([head.uncertainty(row[None]) for row in embedding])
    torch.testing.assert_close(alone, together, rtol=1e-4, atol=1e-6)
    monkeypatch.setattr(softmax, "HELD", 3 * head.held + 1)
    parts = []
    scalar = head.scalar
    monkeypatch.setattr(head, "scalar", lambda part: parts.append(len(part)) or scalar(part))
    torch.testing.assert_close(head.uncertainty(embedding), together, rtol=1e-4, atol=1e-6)
    assert parts == [3, 3, 2]
    assert head.logits(embedding).numel() <= 8 * head.held


@pytest.mark.parametrize("kind", [k for k in KINDS if k.in_bfloat16])
def test_objective_bears_bfloat16(kind):
    head, batch = trained(kind, steps=20)[0], rows_of(1, 256)[0]
    torch.manual_seed(0)
    exact = head.objective(batch)
    torch.manual_seed(0)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = head.objective(batch._replace(embedding=batch.embedding.half()))
    rounded.backward()
    torch.testing.assert_close(rounded, exact, rtol=0.02, atol=0)
    assert all(p.grad.isfinite().all() for p in head.parameters())


@pytest.mark.parametrize("kind", [EnsembleJsd, DropoutJsd, HetXlDet, HetXlDetPublished])
def test_twin_takes_the_state_of_the_head_it_is_named_after(kind):
    parent = kind.__base__
    assert kind.twin
    assert kind.objective is parent.objective
    kind(upstream()).load_state_dict(parent(upstream()).state_dict())


def test_hetxl_survives_a_variance_that_rounds_to_0():
    head, batch = head_of(HetXlDet), rows_of(0, 16)[0]
    with torch.no_grad():
        head.covariance.fill_(-20)
    batch = batch._replace(embedding=batch.embedding.abs())
    head.objective(batch).backward()
    assert head.covariance.grad.isfinite().all()
    assert head.uncertainty(batch.embedding).isfinite().all()
