"""The heads whose classes are densities: against the original, their definitions, and laws.

Also that they find the ambiguous images of an easy synthetic set.
"""

import math
from functools import partial
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import i0e, logsumexp
from scipy.stats import ortho_group
from sklearn.metrics import roc_auc_score
from torch.nn.functional import cross_entropy, normalize

from askance.heads import elk, nivmf, vmf
from askance.heads.elk import Elk, ElkPublished, elk_similarity
from askance.heads.head import Batch, Need, Setup
from askance.heads.nivmf import (
    Nivmf,
    NivmfPublished,
    log_mean_density,
    nivmf_similarity,
    published_similarity,
)

GOLDEN = np.load(Path(__file__).parents[1] / "golden" / "densities.npz")
DEFAULTS, ALL = [Elk, Nivmf], [Elk, Nivmf, ElkPublished, NivmfPublished]
CIRCLE = np.linspace(0, 2 * np.pi, 4096, endpoint=False)
angles, concentrations = st.floats(0, 2 * np.pi), st.floats(0.5, 300)
seeds = st.integers(0, 2**16)


def golden(name: str) -> torch.Tensor:
    return torch.from_numpy(GOLDEN[name])


def equals(found: torch.Tensor, name: str) -> None:
    torch.testing.assert_close(found.detach(), golden(name), rtol=1e-6, atol=1e-9)


def random(seed: int, *shape: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def directions(seed: int, *shape: int) -> torch.Tensor:
    return normalize(random(seed, *shape), dim=-1)


def on_circle(angle: float) -> torch.Tensor:
    return torch.tensor([[math.cos(angle), math.sin(angle)]], dtype=torch.float64)


def setup_of(dim: int = 8, classes: int = 3, scale: float = 1.0) -> Setup:
    torch.manual_seed(0)
    return Setup(dim, 16, 1, scale * torch.randn(classes, dim), torch.zeros(classes))


def batch_of(embedding: torch.Tensor, column: torch.Tensor) -> Batch:
    return Batch(embedding, torch.zeros(len(embedding)), column)


def ambiguous(dim: int, rows: int = 3000):
    """Return images around five centres, half of them with ten times the noise, and the centres."""
    torch.manual_seed(0)
    centre, column = torch.randn(5, dim), torch.randint(5, (rows,))
    noisy = torch.rand(rows) < 0.5
    noise = torch.where(noisy, 4.0, 0.4)[:, None] * torch.randn(rows, dim)
    return centre[column] + noise, column, noisy, centre


def trained(head, embedding: torch.Tensor, column: torch.Tensor, steps: int) -> list[float]:
    torch.manual_seed(1)
    adamw, history = torch.optim.AdamW(head.parameters(), lr=1e-3), []
    for _ in range(steps):
        rows = torch.randint(len(embedding), (128,))
        objective = head.train().objective(batch_of(embedding[rows], column[rows]))
        adamw.zero_grad()
        objective.backward()
        adamw.step()
        history.append(objective.item())
    head.eval()
    return history


def elk_of_originals() -> tuple[torch.Tensor, ...]:
    inputs = (golden(f"elk.d8.{name}") for name in ("features", "unc", "weight"))
    return tuple(tensor.requires_grad_() for tensor in inputs)


def test_elk_with_the_published_normaliser_equals_the_original():
    features, uncertainty, weight = elk_of_originals()
    similarity = elk_similarity(
        normalize(features, dim=-1),
        1 / uncertainty,
        normalize(weight, dim=-1),
        golden("elk.d8.inv_temp") * weight.norm(dim=-1).clamp(min=1),
        partial(vmf.published_log_normaliser, dim=8),
    )
    loss = cross_entropy(similarity, golden("elk.d8.target"))
    loss.backward()
    equals(similarity, "elk.d8.sim")
    equals(loss, "elk.d8.loss")
    equals(features.grad, "elk.d8.grad_features")
    equals(uncertainty.grad, "elk.d8.grad_unc")
    equals(weight.grad, "elk.d8.grad_weight")


def test_published_elk_equals_the_original(monkeypatch):
    features, uncertainty, weight = elk_of_originals()
    monkeypatch.setattr(elk, "PUBLISHED_SCALE", float(GOLDEN["elk.d8.inv_temp"]))
    head = ElkPublished(Setup(8, 4, 1, weight.detach(), torch.zeros(5))).double()
    monkeypatch.setattr(head, "concentration", lambda _: 1 / uncertainty)
    equals(head.class_concentration(), "elk.d8.class_kappa")
    loss = head.objective(batch_of(features.detach(), golden("elk.d8.target")))
    loss.backward()
    equals(loss, "elk.d8.loss")
    equals(uncertainty.grad, "elk.d8.grad_unc")
    equals(head.weight.grad, "elk.d8.grad_weight")


def test_published_nivmf_similarity_equals_the_original():
    """One of the concentrations lies below 0.1, where it has no gradient."""
    names = ("contr.samples", "nivmf.weight", "nivmf.kappa")
    samples, weight, kappa = (golden(name).requires_grad_() for name in names)
    normaliser = partial(vmf.published_log_normaliser, dim=10)
    similarity = published_similarity(samples, normalize(weight, dim=-1), kappa, normaliser)
    loss = cross_entropy(similarity, golden("nivmf.target"))
    loss.backward()
    equals(similarity, "nivmf.sim")
    equals(loss, "nivmf.loss")
    equals(samples.grad, "nivmf.grad_samples")
    equals(weight.grad, "nivmf.grad_weight")
    equals(kappa.grad, "nivmf.grad_kappa")
    assert kappa.grad[0, 0] == 0


def test_published_nivmf_equals_the_original(monkeypatch):
    asked = {}

    def sample(direction, concentration, count):
        asked.update(direction=direction, concentration=concentration, count=count)
        return golden("contr.samples")

    head = NivmfPublished(Setup(8, 4, 1, golden("nivmf.weight"), torch.zeros(5))).double()
    head.log_concentration.copy_(golden("nivmf.kappa").log())
    monkeypatch.setattr(head, "sample", sample)
    monkeypatch.setattr(head, "concentration", lambda _: 1 / golden("contr.unc"))
    loss = head.objective(batch_of(golden("contr.features"), golden("nivmf.target")))
    loss.backward()
    equals(loss, "nivmf.loss")
    equals(head.weight.grad, "nivmf.grad_weight")
    torch.testing.assert_close(asked["concentration"], 1 / golden("contr.unc"))
    torch.testing.assert_close(asked["direction"], normalize(golden("contr.features"), dim=-1))
    assert asked["count"] == 16


@given(angles, angles, concentrations, concentrations)
def test_elk_is_the_log_of_the_integral_of_both_densities(image, class_, kappa_i, kappa_c):
    def log_density(angle, kappa):  # i0e is scaled by exp(-kappa)
        return kappa * (np.cos(CIRCLE - angle) - 1) - np.log(2 * np.pi * i0e(kappa))

    product = log_density(image, kappa_i) + log_density(class_, kappa_c)
    integral = logsumexp(product) + math.log(2 * np.pi / len(CIRCLE))
    kappas = (torch.tensor([k], dtype=torch.float64) for k in (kappa_i, kappa_c))
    found = elk_similarity(
        on_circle(image),
        next(kappas),
        on_circle(class_),
        next(kappas),
        partial(vmf.log_normaliser, dim=2),
    )
    assert found.item() == pytest.approx(integral, rel=1e-9, abs=1e-7)


@given(seeds, st.integers(2, 12))
def test_elk_is_unchanged_by_a_rotation(seed, dim):
    turn = torch.from_numpy(ortho_group(dim, seed=seed).rvs())
    image, class_ = directions(seed, 4, dim), directions(seed + 1, 3, dim)
    kappa_i, kappa_c = random(seed, 4).exp(), random(seed, 3).exp()
    normaliser = partial(vmf.log_normaliser, dim=dim)
    torch.testing.assert_close(
        elk_similarity(image @ turn, kappa_i, class_ @ turn, kappa_c, normaliser),
        elk_similarity(image, kappa_i, class_, kappa_c, normaliser),
    )


@given(seeds, st.permutations(range(4)))
def test_similarities_move_with_their_classes(seed, order):
    order, normaliser = list(order), partial(vmf.log_normaliser, dim=5)
    image, class_ = directions(seed, 6, 5), directions(seed + 1, 4, 5)
    kappa, table = random(seed, 4).exp(), random(seed, 4, 5).exp()
    for found, moved in (
        (
            elk_similarity(image, random(seed, 6).exp(), class_, kappa, normaliser),
            elk_similarity(image, random(seed, 6).exp(), class_[order], kappa[order], normaliser),
        ),
        *(
            (
                similarity(image[None], class_, table, normaliser),
                similarity(image[None], class_[order], table[order], normaliser),
            )
            for similarity in (nivmf_similarity, published_similarity)
        ),
    ):
        torch.testing.assert_close(moved, found[:, order])


@pytest.mark.parametrize("kappa", [10.0, 1e3, 1e5])
def test_elk_in_float32_is_that_of_float64_in_value_and_gradient(kappa):
    image = directions(0, 30, 384)
    class_ = normalize(image[:20] + 0.5 * directions(1, 20, 384), dim=-1)
    found = {}
    for dtype in (torch.float32, torch.float64):
        concentration = torch.full((30,), kappa, dtype=dtype, requires_grad=True)
        classes = torch.full((20,), 28.0, dtype=dtype)
        normaliser = partial(vmf.log_normaliser, dim=384)
        similarity = elk_similarity(
            image.to(dtype), concentration, class_.to(dtype), classes, normaliser
        )
        cross_entropy(similarity, torch.arange(30) % 20).backward()
        assert similarity.dtype == dtype
        found[dtype] = similarity.detach().double(), concentration.grad.double()
    (value, gradient), (exact, slope) = found.values()
    torch.testing.assert_close(value, exact, rtol=0, atol=1e-4)
    torch.testing.assert_close(gradient, slope, rtol=1e-4, atol=1e-5 * slope.abs().max().item())


def test_elk_of_opposite_densities_has_finite_gradients():
    image = on_circle(0.3).float().requires_grad_()
    kappa = torch.tensor([50.0], requires_grad=True)
    normaliser = partial(vmf.log_normaliser, dim=2)
    similarity = elk_similarity(image, kappa, -image, kappa, normaliser)
    similarity.sum().backward()
    assert similarity.isfinite().all()
    assert image.grad.isfinite().all()
    assert kappa.grad.isfinite().all()


@given(angles, st.floats(0.3, 9), st.floats(0.3, 9))
def test_a_class_of_nivmf_integrates_to_1(angle, first, second):
    points = torch.from_numpy(np.stack([np.cos(CIRCLE), np.sin(CIRCLE)], 1))[None]
    table = torch.tensor([[first, second]], dtype=torch.float64)
    normaliser = partial(vmf.log_normaliser, dim=2)
    density = nivmf_similarity(points, on_circle(angle), table, normaliser).exp()
    assert density.mean().item() * 2 * np.pi == pytest.approx(1, rel=1e-9)


@given(seeds, st.integers(2, 9))
def test_nivmf_is_the_log_mean_of_its_definition_in_value_and_gradient(seed, dim):
    samples, table = directions(seed, 3, 4, dim), random(seed, dim).exp().requires_grad_()
    mu, normaliser = directions(seed + 1, dim), partial(vmf.log_normaliser, dim=dim)
    turned, aim = table * samples, table * mu
    exponent = aim.norm() * torch.cosine_similarity(turned, aim, dim=-1)
    jacobian = table.prod() / turned.norm(dim=-1) ** dim
    expected = (torch.exp(normaliser(aim.norm()) + exponent) * jacobian).mean(dim=0).log()
    found = nivmf_similarity(samples, mu[None], table[None], normaliser).squeeze(1)
    torch.testing.assert_close(found, expected)
    gradients = [torch.autograd.grad(value.sum(), table)[0] for value in (found, expected)]
    torch.testing.assert_close(*gradients)


@given(seeds, st.floats(0.5, 50))
def test_nivmf_of_equal_concentrations_is_the_vmf_density(seed, kappa):
    samples, class_ = directions(seed, 1, 4, 6), directions(seed + 1, 2, 6)
    normaliser = partial(vmf.log_normaliser, dim=6)
    found = nivmf_similarity(samples, class_, torch.full_like(class_, kappa), normaliser)
    density = normaliser(torch.tensor(kappa, dtype=torch.float64)) + kappa * samples[0] @ class_.T
    torch.testing.assert_close(found, density)


def test_nivmf_in_float32_is_that_of_float64():
    samples, class_ = directions(0, 16, 20, 384), directions(1, 9, 384)
    table, normaliser = 28 * random(2, 9, 384).exp(), partial(vmf.log_normaliser, dim=384)
    found = nivmf_similarity(samples.float(), class_.float(), table.float(), normaliser)
    exact = nivmf_similarity(samples, class_, table, normaliser)
    torch.testing.assert_close(found.double(), exact, rtol=0, atol=1.5e-4)


@pytest.mark.parametrize("similarity", [nivmf_similarity, published_similarity])
def test_nivmf_in_parts_is_nivmf_at_once(similarity, monkeypatch):
    def value_and_gradients():
        inputs = [directions(0, 3, 7, 5), directions(1, 4, 5), random(2, 4, 5).exp()]
        inputs = [tensor.requires_grad_() for tensor in inputs]
        found = similarity(*inputs, partial(vmf.published_log_normaliser, dim=10))
        return found.detach(), torch.autograd.grad(found.square().sum(), inputs)

    whole = value_and_gradients()
    monkeypatch.setattr(nivmf, "AT_ONCE", 3 * 4 * 2)  # two rows
    torch.testing.assert_close(value_and_gradients(), whole)


def test_no_more_densities_than_allowed_are_in_memory(monkeypatch):
    sizes = []

    def log_density(x):
        sizes.append(x.shape[0] * x.shape[1] * 10)
        return x @ torch.ones(5, 10, dtype=x.dtype)

    monkeypatch.setattr(nivmf, "AT_ONCE", 100)
    log_mean_density(directions(0, 4, 9, 5), log_density, 10)
    assert max(sizes) <= 100
    assert sum(sizes) == 4 * 9 * 10


@pytest.mark.parametrize("kind", ALL)
@pytest.mark.parametrize("norm", [0.05, 5.0])
def test_a_fresh_head_learns_from_the_first_step_whatever_the_classifiers_norms(kind, norm):
    dim = 512  # which the published table has
    setup = setup_of(dim, classes=100)
    weight = norm * normalize(setup.weight, dim=-1)
    head = kind(Setup(dim, 16, 1, weight, setup.bias))
    column = torch.randint(100, (64,))
    embedding = setup.weight[column] + 5 * torch.randn(64, dim)
    objective = head.objective(batch_of(embedding, column))
    objective.backward()
    assert objective.isfinite()
    for name, parameter in head.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad.isfinite().all(), name
            assert parameter.grad.any(), name


@pytest.mark.parametrize("kind", DEFAULTS)
def test_the_classifiers_scale_does_not_matter(kind):
    small, large = (kind(setup_of(scale=scale)).state_dict() for scale in (0.01, 100))
    torch.testing.assert_close(small, large)


@pytest.mark.parametrize("kind", ALL)
def test_what_is_learnt(kind):
    head = kind(setup_of())
    learnt = {name for name, p in head.named_parameters() if p.requires_grad}
    learnt = {name for name in learnt if not name.startswith("layers.")}
    constants = {"map.weight", "weight"}
    assert learnt == (constants | {"log_concentration"} if kind in DEFAULTS else constants)
    assert head.needs == {Need.LABEL}
    assert head.of_backbone


def test_the_published_nivmf_alone_draws_with_the_biased_sampler():
    assert Nivmf.sample is vmf.sample
    assert NivmfPublished.sample is vmf.published_sample


def test_published_class_concentrations_are_28_times_a_norm_of_1_or_more():
    weight = torch.diag(torch.tensor([0.5, 1.0, 3.0, 0.0])).double()
    head = ElkPublished(Setup(4, 4, 1, weight, torch.zeros(4)))
    assert head.class_concentration().tolist() == [28, 28, 84, 28]


def test_published_elk_without_an_entry_in_the_table_is_refused_before_any_step():
    with pytest.raises(ValueError, match="expected a dimension of 4, 8, .* or above, got 384"):
        ElkPublished(setup_of(384))


@pytest.mark.parametrize("kind", ALL)
def test_images_with_ten_times_the_noise_are_more_uncertain(kind):
    embedding, column, noisy, centre = ambiguous(dim=16)
    torch.manual_seed(0)
    head = kind(Setup(16, 64, 1, centre, torch.zeros(5)))
    history = trained(head, embedding[:2000], column[:2000], steps=60)
    assert np.mean(history[-10:]) < 0.95 * np.mean(history[:10])
    uncertainty = head.uncertainty(embedding[2000:])
    assert roc_auc_score(noisy[2000:].numpy(), uncertainty.numpy()) > 0.8


@pytest.mark.parametrize("kind", ALL)
def test_a_rows_uncertainty_is_its_own_and_survives_a_round_trip(kind):
    setup = setup_of()
    head, again = kind(setup), kind(Setup(8, 16, 1, torch.zeros(3, 8), torch.zeros(3)))
    again.load_state_dict(head.state_dict())
    embedding = random(0, 50, 8).float()
    found = head.uncertainty(embedding)
    torch.testing.assert_close(again.uncertainty(embedding), found)
    alone = torch.cat([head.uncertainty(row) for row in islice(embedding.split(1), 5)])
    torch.testing.assert_close(alone, found[:5])


@pytest.mark.parametrize("kind", ALL)
def test_the_frozen_embedding_gets_no_gradient(kind):
    embedding = random(0, 12, 8).float().requires_grad_()
    kind(setup_of()).objective(batch_of(embedding, torch.arange(12) % 3)).backward()
    assert embedding.grad is None


@pytest.mark.parametrize("kind", ALL)
def test_the_objective_is_that_of_the_random_state(kind):
    head, batch = kind(setup_of()).double(), batch_of(random(0, 12, 8), torch.arange(12) % 3)
    first, second = (torch.manual_seed(7) and head.objective(batch) for _ in range(2))
    assert first.dtype == torch.float64
    torch.testing.assert_close(first, second, rtol=0, atol=0)
