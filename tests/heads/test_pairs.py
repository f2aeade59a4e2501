"""The heads trained on pairs of views: against the original program, their definitions, and laws.

Also that they find the noisy images of an easy synthetic set.
"""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import ortho_group
from sklearn.metrics import log_loss, roc_auc_score
from torch.autograd.graph import saved_tensors_hooks
from torch.nn.functional import normalize

from askance.heads.head import Batch, Setup
from askance.heads.hib import (
    Hib,
    HibPublished,
    hib,
    identity,
    of_all_pairs,
    published_hib,
    published_match,
    row_mean,
)
from askance.heads.infonce import (
    InfoNce,
    InfoNcePublished,
    info_nce,
    log_match,
    published_log_match,
)
from askance.heads.mcinfonce import McInfoNce, McInfoNcePublished, mc_info_nce

GOLDEN = np.load(Path(__file__).parents[1] / "golden" / "pairs.npz")
DEFAULTS = [InfoNce, McInfoNce, Hib]
PUBLISHED = [InfoNcePublished, McInfoNcePublished, HibPublished]
SCATTER = [McInfoNce, Hib, McInfoNcePublished, HibPublished]
KAPPA, SCALE, OFFSET = torch.tensor([9.0, 7.0, -2.0], dtype=torch.float64)

LOSSES = {
    "infonce": lambda samples: info_nce(samples[0], KAPPA),
    "infonce-published": lambda samples: info_nce(samples[0], KAPPA, published_log_match),
    "mcinfonce": lambda samples: mc_info_nce(samples, KAPPA),
    "mcinfonce-published": lambda samples: mc_info_nce(samples, KAPPA, published_log_match),
    "hib": lambda samples: hib(samples, SCALE, OFFSET),
    "hib-published": lambda samples: published_hib(
        of_all_pairs(published_match, samples, SCALE, OFFSET), neighbours(samples.shape[1])
    ),
}


def golden(name: str) -> torch.Tensor:
    return torch.from_numpy(GOLDEN[name])


def neighbours(rows: int) -> torch.Tensor:
    """Return which pairs of rows are views of one image."""
    image = torch.arange(rows) // 2
    return (image == image[:, None]) & ~torch.eye(rows, dtype=torch.bool)


def directions(seed: int, *shape: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return normalize(torch.randn(shape, generator=generator, dtype=torch.float64), dim=-1)


def head_of(kind, dim: int = 8, width: int = 16):
    torch.manual_seed(0)
    return kind(Setup(dim, width, 1, torch.zeros(2, dim), torch.zeros(2)))


def batch_of(embedding: torch.Tensor) -> Batch:
    return Batch(embedding, torch.zeros(len(embedding)), torch.zeros(len(embedding)).long())


def assert_golden(found: torch.Tensor, name: str) -> None:
    torch.testing.assert_close(found.detach().squeeze(), golden(name).squeeze(), rtol=1e-6, atol=0)


# ---- the original program's numbers


def test_published_info_nce_and_its_gradients_equal_the_original():
    features = golden("contr.features").requires_grad_()
    kappa = golden("contr.kappa_init").requires_grad_()
    loss = info_nce(normalize(features, dim=-1), kappa, published_log_match)
    loss.backward()
    assert_golden(loss, "infonce.unsup.loss")
    assert_golden(features.grad, "infonce.unsup.grad_features")
    assert_golden(kappa.grad, "infonce.unsup.grad_kappa")


def test_published_mc_info_nce_and_its_gradients_equal_the_original():
    samples = golden("contr.samples").requires_grad_()
    kappa = golden("contr.kappa_init").requires_grad_()
    loss = mc_info_nce(samples, kappa, published_log_match)
    loss.backward()
    assert_golden(loss, "mcinfonce.unsup.loss")
    assert_golden(samples.grad, "mcinfonce.unsup.grad_samples")
    assert_golden(kappa.grad, "mcinfonce.unsup.grad_kappa")


@pytest.mark.parametrize("case", ["unsup", "sup"])
def test_hib_of_published_probabilities_and_its_gradients_equal_the_corrected_original(case):
    """The corrected program's loss differs from `published_hib` in the negatives' term alone."""
    samples = golden("contr.samples").requires_grad_()
    scale, offset = golden("hib.kappa_init").requires_grad_(), golden("hib.b").requires_grad_()
    match = of_all_pairs(published_match, samples, scale, offset)
    label, itself = golden("contr.target_sup"), identity(match)
    positive = neighbours(12) if case == "unsup" else (label == label[:, None]) & ~itself
    log_mismatch = (1 - match).log()
    loss = -(row_mean(match.log(), positive) + row_mean(log_mismatch, ~(positive | itself))).mean()
    loss.backward()
    assert_golden(loss, f"hib.{case}.loss")
    assert_golden(samples.grad, f"hib.{case}.grad_samples")
    assert_golden(scale.grad, f"hib.{case}.grad_kappa")
    assert_golden(offset.grad, f"hib.{case}.grad_b")


def test_hib_is_the_corrected_original_but_for_its_floor():
    loss = hib(golden("contr.samples"), golden("hib.kappa_init"), golden("hib.b"))
    torch.testing.assert_close(loss, golden("hib.unsup.loss"), rtol=1e-3, atol=0)


@pytest.mark.parametrize("kind", SCATTER)
def test_the_sampler_is_asked_for_what_the_originals_was(kind):
    asked = {}

    class Given(kind):
        """Knows the uncertainties, and keeps what it asks its sampler for."""

        def forward(self, embedding):
            return golden("contr.unc")

        def sample(self, direction, concentration, count):
            asked.update(direction=direction, concentration=concentration, count=count)
            return golden("contr.samples")

    head_of(Given).double().objective(batch_of(golden("contr.features")))
    assert_golden(asked["direction"], "vmfargs.loc")
    assert_golden(asked["concentration"], "vmfargs.kappa")
    assert asked["count"] == 16


# ---- definitions


def log_mean(values: list[float]) -> float:
    return math.log(sum(values) / len(values))


def match_by_definition(x: np.ndarray, i: int) -> float:
    others = [math.exp(9 * x[i] @ x[j]) for j in range(len(x)) if j != i]
    return math.exp(9 * x[i] @ x[i ^ 1]) / sum(others)


def probability_by_definition(samples: np.ndarray, i: int, j: int) -> float:
    return float(np.mean([1 / (1 + math.exp(2 - 7 * x[i] @ x[j])) for x in samples]))


def test_info_nce_is_its_definition():
    x = directions(0, 8, 5)
    definition = -np.mean([math.log(match_by_definition(x.numpy(), i)) for i in range(8)])
    assert info_nce(x, KAPPA).item() == pytest.approx(definition, rel=1e-12)


def test_info_nce_is_the_log_loss_of_classifying_the_partner():
    x = directions(1, 6, 4)
    weight = np.exp(9 * x.numpy() @ x.numpy().T) * (1 - np.eye(6))
    probability = weight / weight.sum(axis=1, keepdims=True)
    assert info_nce(x, KAPPA).item() == pytest.approx(log_loss([1, 0, 3, 2, 5, 4], probability))


def test_mc_info_nce_is_its_definition():
    samples = directions(2, 3, 8, 5)
    definition = -np.mean(
        [log_mean([match_by_definition(x, i) for x in samples.numpy()]) for i in range(8)]
    )
    assert mc_info_nce(samples, KAPPA).item() == pytest.approx(definition, rel=1e-12)


@pytest.mark.parametrize("name", ["hib", "hib-published"])
def test_hib_is_its_definition(name):
    samples, rows = directions(3, 3, 6, 5), []
    for i in range(6):
        chance = [probability_by_definition(samples.numpy(), i, j) for j in range(6)]
        others = [chance[j] for j in range(6) if j not in (i, i ^ 1)]
        if name == "hib":
            rows.append(math.log(chance[i ^ 1]) + np.mean([math.log(1 - p) for p in others]))
        else:
            rows.append(
                math.log(chance[i ^ 1] + 1e-5) - np.mean([math.log(p + 1e-5) for p in others])
            )
    assert LOSSES[name](samples).item() == pytest.approx(-np.mean(rows), rel=1e-12)


def test_hib_takes_more_rows_than_it_holds_at_a_time(monkeypatch):
    samples = directions(4, 3, 20, 5)
    whole = hib(samples, SCALE, OFFSET)
    monkeypatch.setattr("askance.heads.hib.ROWS", 7)
    torch.testing.assert_close(hib(samples, SCALE, OFFSET), whole)


# ---- laws


@pytest.mark.parametrize("name", LOSSES)
@settings(max_examples=25)
@given(seed=st.integers(0, 99), pairs=st.integers(2, 6))
def test_order_of_the_pairs_and_of_the_views_does_not_matter(name, seed, pairs):
    samples = directions(seed, 3, 2 * pairs, 4)
    order = torch.randperm(pairs, generator=torch.Generator().manual_seed(seed))
    views = samples.unflatten(1, (pairs, 2))[:, order].flip(2).flatten(1, 2)
    torch.testing.assert_close(LOSSES[name](views), LOSSES[name](samples))


@pytest.mark.parametrize("name", LOSSES)
@settings(max_examples=25)
@given(seed=st.integers(0, 99))
def test_a_rotation_of_everything_changes_nothing(name, seed):
    samples = directions(seed, 3, 8, 5)
    rotation = torch.from_numpy(ortho_group.rvs(5, random_state=seed))
    torch.testing.assert_close(LOSSES[name](samples @ rotation), LOSSES[name](samples))


@settings(max_examples=25)
@given(seed=st.integers(0, 99))
def test_mc_info_nce_of_samples_that_do_not_scatter_is_info_nce(seed):
    x = directions(seed, 8, 5)
    torch.testing.assert_close(mc_info_nce(x.expand(4, 8, 5), KAPPA), info_nce(x, KAPPA))


@settings(max_examples=25)
@given(seed=st.integers(0, 99), kappa=st.floats(0.1, 100))
def test_a_log_match_is_a_log_probability_but_the_published_one_is_not(seed, kappa):
    x = directions(seed, 8, 5)
    assert (log_match(x, torch.tensor(kappa).double()) <= 0).all()
    views = x[::2].repeat_interleave(2, dim=0)
    assert published_log_match(views, torch.tensor(99.0).double()).max() > 0


def test_equal_directions_are_told_apart_by_chance():
    x = directions(0, 1, 4).expand(8, 4)
    torch.testing.assert_close(info_nce(x, KAPPA), torch.tensor(math.log(7)).double())


# ---- bounds and failures


@pytest.mark.parametrize("name", ["mcinfonce", "mcinfonce-published", "hib", "hib-published"])
def test_the_similarities_of_all_samples_are_never_kept_together(name):
    samples, kept = directions(0, 16, 64, 4).requires_grad_(), []
    with saved_tensors_hooks(lambda x: kept.append(x.numel()) or x, lambda x: x):
        loss = LOSSES[name](samples)
    assert sum(kept) < 16 * 64 * 64 / 2
    loss.backward()
    assert samples.grad.isfinite().all()


@pytest.mark.parametrize("scale", [1.0, 1e2, 1e4])
def test_hib_and_its_gradients_are_finite_at_any_scale(scale):
    samples = directions(5, 4, 8, 3).float().requires_grad_()
    factor = torch.tensor(scale, requires_grad=True)
    loss = hib(samples, factor, torch.tensor(2.0))
    loss.backward()
    assert loss.isfinite()
    assert samples.grad.isfinite().all()
    assert factor.grad.isfinite()
    assert samples.grad.abs().max() > 0


@pytest.mark.parametrize("rows", [2, 3, 7])
@pytest.mark.parametrize("kind", DEFAULTS + PUBLISHED)
def test_a_batch_that_is_not_of_two_pairs_or_more_is_refused(kind, rows):
    message = f"expected an even batch, whose rows form 2 pairs or more, got {rows}"
    with pytest.raises(ValueError, match=message):
        head_of(kind).objective(batch_of(torch.ones(rows, 8)))


# ---- the heads


@pytest.mark.parametrize("kind", DEFAULTS)
def test_every_parameter_of_a_default_learns_and_the_embedding_does_not(kind):
    head, embedding = head_of(kind), torch.randn(16, 8, requires_grad=True)
    head.objective(batch_of(embedding)).backward()
    assert embedding.grad is None
    for name, parameter in head.named_parameters():
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().max() > 0, name


@pytest.mark.parametrize("kind", PUBLISHED)
def test_the_parameters_of_a_published_loss_stay_where_they_are(kind):
    head = head_of(kind)
    head.objective(batch_of(torch.randn(16, 8))).backward()
    fixed = {name for name, parameter in head.named_parameters() if parameter.grad is None}
    assert fixed == {name for name, parameter in head.named_parameters() if parameter.ndim == 0}
    assert fixed


@pytest.mark.parametrize("kind", DEFAULTS + PUBLISHED)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_objective_comes_in_the_type_of_the_head(kind, dtype):
    embedding = torch.randn(16, 8, dtype=dtype)
    objective = head_of(kind).to(dtype).objective(batch_of(embedding))
    assert objective.dtype == dtype
    assert objective.isfinite()


@pytest.mark.parametrize("kind", DEFAULTS + PUBLISHED)
def test_a_row_is_as_uncertain_alone_as_in_a_batch_and_after_a_round_trip(kind):
    head, embedding = head_of(kind).double(), torch.randn(9, 8, dtype=torch.float64)
    with torch.no_grad():
        head.map.weight.add_(torch.randn(8, 8))
    back = kind(Setup(8, 16, 1, torch.zeros(2, 8), torch.zeros(2))).double()
    back.load_state_dict(head.state_dict())
    alone = torch.cat([back(row[None]) for row in embedding])
    torch.testing.assert_close(alone, head(embedding))
    assert (alone > 0).all()


def test_a_fresh_infonce_head_is_one_over_the_norm():
    embedding = torch.randn(5, 8)
    torch.testing.assert_close(head_of(InfoNce)(embedding), 1 / embedding.norm(dim=1))


def test_infonce_gives_no_reason_to_scale_the_map():
    head = head_of(InfoNce).double()
    head.objective(batch_of(directions(0, 16, 8))).backward()
    along = (head.map.weight * head.map.weight.grad).sum()
    torch.testing.assert_close(along, torch.zeros(()).double())
    assert head.map.weight.grad.abs().max() > 1e-3


def views(images: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return two noisy views each of random directions, and which have ten times the noise."""
    generator = torch.Generator().manual_seed(seed)
    direction = normalize(torch.randn(images, 16, generator=generator), dim=-1)
    noisy = torch.rand(images, generator=generator) < 0.5
    noise = torch.where(noisy, 2.0, 0.2).repeat_interleave(2)[:, None] / 4
    view = direction.repeat_interleave(2, dim=0)
    view = view + noise * torch.randn(2 * images, 16, generator=generator)
    return 4 * view, noisy.repeat_interleave(2)


def train(kind, batches: torch.Tensor) -> tuple[list[float], torch.nn.Module]:
    torch.manual_seed(0)
    head = kind(Setup(16, 64, 1, torch.zeros(2, 16), torch.zeros(2)))
    adamw = torch.optim.AdamW(head.parameters(), lr=1e-3)
    history = []
    for embedding in batches:
        objective = head.objective(batch_of(embedding))
        adamw.zero_grad()
        objective.backward()
        adamw.step()
        history.append(objective.item())
    return history, head.eval()


@pytest.mark.parametrize("kind", DEFAULTS + PUBLISHED)
def test_the_objective_goes_down(kind):
    embedding, _ = views(16, seed=0)
    history, _ = train(kind, embedding.expand(50, 32, 16))
    assert np.mean(history[-5:]) < np.mean(history[:5]) - 0.1


def noise_found(kind) -> float:
    """Return how well a trained head tells the noisy images from the others."""
    embedding, _ = views(8000, seed=0)
    _, head = train(kind, embedding.view(-1, 80, 16))
    unseen, noisy = views(1000, seed=1)
    return roc_auc_score(noisy, head.uncertainty(unseen))


@pytest.mark.parametrize("kind", [McInfoNce, Hib, McInfoNcePublished])
def test_images_with_ten_times_the_noise_become_more_uncertain(kind):
    assert noise_found(kind) > 0.8


def test_the_published_hib_makes_them_more_certain():
    assert noise_found(HibPublished) < 0.2
