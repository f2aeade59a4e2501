"""Von Mises-Fisher densities against 60 digits, and samples against what their density says."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.integrate import cumulative_trapezoid
from scipy.special import xlogy
from scipy.stats import kstest
from torch.nn.functional import normalize

from askance.heads import vmf
from askance.heads.vmf import (
    log_normaliser,
    mean_cosine,
    published_log_normaliser,
    published_sample,
    sample,
)

GOLDEN = np.load(Path(__file__).parents[1] / "golden" / "vmf.npz")
DIMS = GOLDEN["exact.dims"].tolist()
CASES = [(2, 1.0), (2, 50.0), (3, 30.0), (8, 20.0), (64, 12.0), (512, 100.0)]
# What the original program's sampler gave, to three digits.
PUBLISHED = {(64, 12.0): -0.133, (512, 100.0): -0.122, (512, 1e3): 0.773, (2048, 1e3): 0.323}


def tensor(name: str) -> torch.Tensor:
    return torch.from_numpy(GOLDEN[name])


def number(value: float) -> torch.Tensor:
    return torch.tensor(value, dtype=torch.float64)


def directions(rows: int, dim: int) -> torch.Tensor:
    torch.manual_seed(dim)
    return normalize(torch.randn(rows, dim, dtype=torch.float64), dim=1)


def cosines(sampler, dim: int, kappa: float, rows: int = 100, count: int = 100) -> torch.Tensor:
    direction = directions(rows, dim)
    samples = sampler(direction, torch.full((rows,), kappa, dtype=torch.float64), count)
    return (samples * direction).sum(-1)


def errors_of_mean(values: torch.Tensor, mean: float) -> float:
    """Return how many standard errors the mean of the values is from what it should be."""
    return abs(float((values.mean() - mean) / values.std())) * math.sqrt(values.numel())


def probability(angle: np.ndarray, kappa: float, dim: int) -> np.ndarray:
    """Return the chance of a smaller angle, from the density on a fine grid."""
    grid = np.linspace(0, min(math.pi, 1.5 * angle.max()), 400_001)
    log = kappa * np.cos(grid) + xlogy(dim - 2, np.sin(grid))
    total = cumulative_trapezoid(np.exp(log - log.max()), grid, initial=0)
    return np.interp(angle, grid, total / total[-1])


@pytest.mark.parametrize("row", range(len(DIMS)), ids=DIMS)
def test_normaliser_and_mean_cosine_equal_60_digits(row):
    dim = DIMS[row]
    kappa = tensor("exact.kappa").requires_grad_()
    log, cosine = log_normaliser(kappa, dim), mean_cosine(kappa, dim)
    torch.testing.assert_close(log, tensor("exact.log_normaliser")[row], rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(cosine, tensor("exact.mean_cosine")[row], rtol=1e-14, atol=0)
    (of_log,) = torch.autograd.grad(log.sum(), kappa)
    (of_cosine,) = torch.autograd.grad(cosine.sum(), kappa)
    torch.testing.assert_close(of_log, -tensor("exact.mean_cosine")[row], rtol=1e-14, atol=0)
    torch.testing.assert_close(of_cosine, tensor("exact.slope")[row], rtol=1e-9, atol=0)


@settings(max_examples=30)
@given(st.integers(2, 2048), st.floats(1e-3, 1e5))
def test_normalisers_two_dimensions_apart_differ_by_the_mean_cosine(dim, kappa):
    concentration = number(kappa)
    ratio = torch.log(concentration / (2 * math.pi * mean_cosine(concentration, dim)))
    expected = log_normaliser(concentration, dim) + ratio
    found = log_normaliser(concentration, dim + 2)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dim", [2, 3, 7, 64, 2048])
def test_without_concentration_the_density_is_one_over_the_area(dim):
    kappa = number(0.0).requires_grad_()
    log_area = math.log(2) + dim / 2 * math.log(math.pi) - math.lgamma(dim / 2)
    log = log_normaliser(kappa, dim)
    assert log.item() == pytest.approx(-log_area, rel=1e-13)
    assert torch.autograd.grad(log, kappa)[0] == 0
    (slope,) = torch.autograd.grad(mean_cosine(kappa, dim), kappa)
    assert slope.item() == pytest.approx(1 / dim, rel=1e-12)


def test_single_precision_and_any_shape_come_back_as_they_went_in():
    kappa = tensor("exact.kappa").float().view(3, 5).requires_grad_()
    log = log_normaliser(kappa, 384)
    assert (log.dtype, log.shape) == (torch.float32, (3, 5))
    assert torch.equal(log, log_normaliser(kappa.double(), 384).float())
    assert log_normaliser(torch.tensor(3.0), 5).shape == ()
    log.sum().backward()
    assert torch.equal(kappa.grad, -mean_cosine(kappa, 384))


@pytest.mark.parametrize("row", range(9))
def test_published_normaliser_equals_the_original_and_ours_its_exact_values(row):
    dim, kappa = int(GOLDEN["published.dims"][row]), tensor("published.kappa")
    found = published_log_normaliser(kappa, dim)
    torch.testing.assert_close(found, tensor("published.approx")[row], rtol=1e-12, atol=0)
    exact = tensor("published.exact")[row]
    torch.testing.assert_close(log_normaliser(kappa, dim), exact, rtol=1e-12, atol=0)


@pytest.mark.parametrize("dim", [3, 384, 1023])
def test_published_normaliser_names_the_dimensions_that_it_has(dim):
    known = f"expected a dimension of 4, 8, 10, 16, 32, 64, 512, 1024 or above, got {dim}"
    with pytest.raises(ValueError, match=known):
        published_log_normaliser(torch.ones(2), dim)


def test_fewer_than_two_dimensions_are_refused():
    for function in (log_normaliser, mean_cosine):
        with pytest.raises(ValueError, match="at least 2 dimensions, got 1"):
            function(torch.ones(2), 1)
    for sampler in (sample, published_sample):
        with pytest.raises(ValueError, match="at least 2 dimensions, got 1"):
            sampler(torch.ones(2, 1), torch.ones(2), 3)


@pytest.mark.parametrize("kappa", [1e-3, 0.5, 14.0, 300.0, 1e5])
@pytest.mark.parametrize("dim", [2, 3, 8, 24, 384, 2048])
def test_angles_are_the_quantiles_of_their_density(dim, kappa):
    rare = np.logspace(-9, -4, 6)
    expected = np.concatenate([rare, np.linspace(0.001, 0.999, 99), 1 - rare])
    angle, _ = vmf._quantile(torch.from_numpy(expected)[None], number(kappa)[None], dim)
    found = probability(angle[0].numpy(), kappa, dim)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-8)


@pytest.mark.parametrize("kappa", [0.5, 14.0, 300.0, 1e5])
@pytest.mark.parametrize("dim", [2, 3, 8, 24, 384, 2048])
def test_slopes_of_angles_are_those_of_the_quantile(dim, kappa):
    uniform = torch.linspace(0.001, 0.999, 99, dtype=torch.float64)[None]
    step = 1e-4 * kappa
    _, slope = vmf._quantile(uniform, number(kappa)[None], dim)
    more, _ = vmf._quantile(uniform, number(kappa + step)[None], dim)
    less, _ = vmf._quantile(uniform, number(kappa - step)[None], dim)
    torch.testing.assert_close(slope, (more - less) / (2 * step), rtol=1e-5, atol=0)


@pytest.mark.parametrize(("dim", "kappa"), CASES)
def test_samples_follow_their_density(dim, kappa):
    angle = torch.acos(cosines(sample, dim, kappa, count=50)).flatten().numpy()
    assert kstest(angle, lambda angle: probability(angle, kappa, dim)).pvalue > 0.01


@pytest.mark.parametrize(
    ("dim", "kappa"), [*CASES, *PUBLISHED, (2, 0.1), (2, 1e5), (4, 500.0), (2048, 0.01)]
)
def test_mean_of_samples_is_exact(dim, kappa):
    mean = mean_cosine(number(kappa), dim).item()
    assert errors_of_mean(cosines(sample, dim, kappa, rows=20), mean) < 4


@pytest.mark.parametrize(("dim", "kappa"), PUBLISHED)
def test_published_samples_are_wrong_as_published(dim, kappa):
    cosine = cosines(published_sample, dim, kappa, rows=20)
    assert cosine.mean().item() == pytest.approx(PUBLISHED[dim, kappa], abs=2e-3)
    assert errors_of_mean(cosine, mean_cosine(number(kappa), dim).item()) > 4


@pytest.mark.parametrize(("dim", "kappa"), [(2, 9.0), (4, 8.0), (64, 9.0), (4, 1e5), (64, 1e5)])
def test_published_samples_are_right_where_the_published_are(dim, kappa):
    mean = mean_cosine(number(kappa), dim).item()
    assert errors_of_mean(cosines(published_sample, dim, kappa), mean) < 4


def test_published_samples_are_ours_in_three_dimensions():
    assert torch.equal(cosines(published_sample, 3, 12.0), cosines(sample, 3, 12.0))


@pytest.mark.parametrize(("dim", "kappa"), CASES)
def test_gradient_to_the_concentration_is_unbiased(dim, kappa):
    direction = directions(100, dim)
    concentration = torch.full((100,), kappa, dtype=torch.float64, requires_grad=True)
    cosine = (sample(direction, concentration, 100) * direction).sum(-1)
    exact = number(kappa).requires_grad_()
    mean = mean_cosine(exact, dim)
    for found, expected in ((cosine, mean), (cosine**2, 1 - (dim - 1) * mean / exact)):
        (rows,) = torch.autograd.grad(found.mean(0).sum(), concentration, retain_graph=True)
        (slope,) = torch.autograd.grad(expected, exact, retain_graph=True)
        assert errors_of_mean(rows, slope.item()) < 4


@pytest.mark.parametrize(("dim", "kappa"), CASES)
def test_gradient_to_the_direction_is_unbiased_and_tangent(dim, kappa):
    direction = directions(200, dim).requires_grad_()
    target = direction[0].detach() + direction[1].detach()
    samples = sample(direction, torch.full((200,), kappa, dtype=torch.float64), 50)
    (found,) = torch.autograd.grad((samples @ target).mean(0).sum(), direction)
    direction = direction.detach()
    torch.testing.assert_close((found * direction).sum(1), torch.zeros(200, dtype=torch.float64))
    tangent = target - (direction @ target)[:, None] * direction
    expected = mean_cosine(number(kappa), dim) * tangent  # of kappa's mean cosine times mu . target
    assert errors_of_mean(((found - expected) * tangent).sum(1), 0.0) < 4


@pytest.mark.parametrize("dim", [2, 3, 5, 64])
@pytest.mark.parametrize("sampler", [sample, published_sample])
def test_samples_are_isotropic_around_the_direction(sampler, dim):
    direction = directions(1, dim)
    samples = sampler(direction, number(3.0)[None], 20_000)[:, 0]
    cosine = samples @ direction[0]
    tangent = normalize(samples - cosine[:, None] * direction, dim=1)
    products = tangent[:, :, None] * tangent[:, None, :5]
    expected = (torch.eye(dim).double() - direction.T @ direction)[:, :5] / (dim - 1)
    assert (tangent.mean(0).abs() < 5 / math.sqrt(20_000)).all()
    assert ((tangent * cosine[:, None]).mean(0).abs() < 5 / math.sqrt(20_000)).all()
    assert ((products.mean(0) - expected).abs() < 5 / math.sqrt(20_000)).all()


@pytest.mark.parametrize("sampler", [sample, published_sample])
@pytest.mark.parametrize("sign", [1, -1])
def test_samples_around_the_axis_that_they_are_drawn_about_are_as_around_any(sampler, sign):
    """They are mirrored from the first axis, or its opposite, to the direction."""
    direction = torch.zeros(1, 4, dtype=torch.float64)
    direction[0, 0] = sign
    samples = sampler(direction, number(8.0)[None], 10_000)[:, 0]
    assert samples.isfinite().all()
    mean = mean_cosine(number(8.0), 4).item()
    assert errors_of_mean(sign * samples[:, 0], mean) < 4
    assert (samples[:, 1:].mean(0).abs() < 5 / 100).all()


@pytest.mark.parametrize("sampler", [sample, published_sample])
@pytest.mark.parametrize("kappa", [0.01, 10.5, 1e5])
@pytest.mark.parametrize("dim", [2, 3, 2048])
def test_single_precision_samples_have_unit_length_and_finite_gradients(sampler, dim, kappa):
    direction = directions(20, dim).float().requires_grad_()
    concentration = torch.full((20,), kappa, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        samples = sampler(direction, concentration, 50)
    assert (samples.dtype, samples.shape) == (torch.float32, (50, 20, dim))
    torch.testing.assert_close(samples.norm(dim=-1), torch.ones(50, 20), rtol=0, atol=2e-6)
    samples.square()[..., 0].sum().backward()
    for leaf in (direction, concentration):
        assert leaf.grad.dtype == torch.float32
        assert leaf.grad.isfinite().all()
        assert leaf.grad.any()


@pytest.mark.parametrize("sampler", [sample, published_sample])
def test_samples_are_the_same_for_the_same_global_seed(sampler):
    def draw(seed: int) -> torch.Tensor:
        direction = directions(5, 6)
        torch.manual_seed(seed)
        return sampler(direction, torch.full((5,), 20.0).double(), 7)

    assert torch.equal(draw(3), draw(3))
    assert not torch.equal(draw(3), draw(4))


@pytest.mark.parametrize("sampler", [sample, published_sample])
@pytest.mark.parametrize("dim", [2, 5])
def test_an_undefined_concentration_spoils_its_own_row_only(sampler, dim):
    samples = sampler(directions(3, dim), torch.tensor([1.0, math.nan, 1.0]).double(), 4)
    assert samples[:, 1].isnan().all()
    assert samples[:, ::2].isfinite().all()


def test_everything_is_made_on_the_device_of_what_came():
    direction = torch.empty(4, 5, device="meta", requires_grad=True)
    concentration = torch.empty(4, device="meta", requires_grad=True)
    samples = sample(direction, concentration, 3)
    (samples.sum() + log_normaliser(concentration, 5).sum()).backward()
    for made in (samples, direction.grad, concentration.grad, mean_cosine(concentration, 5)):
        assert made.is_meta
