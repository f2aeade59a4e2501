"""Von Mises-Fisher distributions: normaliser, mean cosine and samples, in any dimension D.

The density at a unit vector x is C_D(kappa) exp(kappa cos), where cos is the cosine between x and
the mean direction and kappa the concentration. All is computed in float64 and returned in the type
that came. `published_*` are what the program of URL (arXiv 2307.03810) computes in their place.
"""

import math
from functools import cache

import numpy as np
import torch
from jaxtyping import Float
from numpy.polynomial import Polynomial
from torch import Tensor, nn
from torch.autograd.function import BackwardCFunction, FunctionCtx

ORDER = 24  # from this on, the expansion for a large order is taken,
NEGLIGIBLE = 1e-15  # up to the first term below this
PANELS = 64  # of the angles' distribution, each with a Gauss-Legendre rule:
NODES, WEIGHTS = (part.tolist() for part in np.polynomial.legendre.leggauss(4))
TAIL = 1e-12  # no probability is closer to 0 or 1,
BEFORE, BEHIND = 7.5, 15.0  # and no angle is farther from the mode, in 1 / sqrt(curvature)
NEWTON = 6  # steps to the quantile inside a panel
ROUNDS = 64  # of rejection: at least 0.65 are accepted in each

# {D: (a, b, c, p)} of the published log C = a + b kappa + c kappa^p; the last is for all D above.
PUBLISHED = {
    4: (-0.826604, -0.354357, -0.383723, 1.1),
    8: (-1.29737, 0.36841, -0.80936, 1.1),
    10: (-1.27184, 0.67365, -0.98726, 1.1),
    16: (-0.23773, 1.39146, -1.39819, 1.1),
    32: (8.07579, 2.28954, -1.86925, 1.1),
    64: (38.82967, 2.34269, -1.77425, 1.1),
    512: (866.3, 0.1574, -0.0236, 1.5),
    1024: (2095.0, -0.01204, -0.0007967, 1.9),
}


def log_normaliser(concentration: Float[Tensor, "*shape"], dim: int) -> Float[Tensor, "*shape"]:
    """Return log C_D(kappa) = (D/2 - 1) log kappa - (D/2) log 2 pi - log I_{D/2-1}(kappa).

    At kappa = 0 it is minus the log of the sphere's area. The gradient is -A_D(kappa), and cannot
    be differentiated again. Near -1e5 a float32 result is a multiple of 0.008: where values are
    subtracted, as between classes, hand in float64.

    Args:
        concentration: kappa, 0 or more.
        dim: D, 2 or more; the sphere lies in that many dimensions.

    Raises:
        ValueError: a `dim` below 2.
    """
    with torch.no_grad():
        log_bessel, ratio = _bessel(concentration.double(), dim)
        value = -dim / 2 * math.log(2 * math.pi) - log_bessel
        slope = -concentration * ratio
    return _with_slope(value.to(concentration.dtype), slope, concentration)


def mean_cosine(concentration: Float[Tensor, "*shape"], dim: int) -> Float[Tensor, "*shape"]:
    """Return A_D(kappa) = I_{D/2}(kappa) / I_{D/2-1}(kappa), the mean cosine, from 0 to 1.

    Args and errors are those of `log_normaliser`.
    """
    kappa = concentration.double()
    return (kappa * _bessel(kappa, dim)[1]).to(concentration.dtype)


def sample(
    direction: Float[Tensor, "n d"], concentration: Float[Tensor, " n"], count: int
) -> Float[Tensor, "count n d"]:
    """Return `count` unit vectors per row, with gradients to direction and concentration.

    The angle to the direction is the quantile of a uniform number, to 1e-11, so that its gradient
    is unbiased, as that through a rejection sampler is not. The gradient to a direction turns the
    samples with it. Random numbers are torch's global ones.

    Args:
        direction: mean directions, at unit length, in two dimensions or more.
        concentration: kappa, above 0; accurate up to 1e5 at least.
        count: samples per row.

    Raises:
        ValueError: directions in fewer than two dimensions.
    """
    dim = _checked(direction.shape[1])
    kappa = concentration.detach().double()
    uniform = kappa.new_empty(len(kappa), count).uniform_(TAIL, 1 - TAIL)
    angle, slope = _quantile(uniform, kappa, dim)
    return _Around.apply(direction, _with_slope(angle.T, slope.T, concentration))


def published_log_normaliser(
    concentration: Float[Tensor, "*shape"], dim: int
) -> Float[Tensor, "*shape"]:
    """Return a + b kappa + c kappa^p, URL's stand-in for `log_normaliser`.

    For kappa from 10 to 50 it is wrong by less than 0.2 up to D = 64, 0.8 at 512, 2 at 1024; above,
    it strays (by 42 at D = 4 and kappa = 500), and in more than 1024 dimensions by thousands.

    Raises:
        ValueError: a `dim` that the table lacks.
    """
    known = min(dim, max(PUBLISHED))
    if known not in PUBLISHED:
        dims = ", ".join(map(str, PUBLISHED))
        raise ValueError(f"expected a dimension of {dims} or above, got {dim}: use log_normaliser")
    a, b, c, p = PUBLISHED[known]
    return a + b * concentration + c * concentration**p


def published_sample(
    direction: Float[Tensor, "n d"], concentration: Float[Tensor, " n"], count: int
) -> Float[Tensor, "count n d"]:
    """Return samples as URL's program draws them: wrong where kappa is above 10 but not above D.

    That is rejection by Ulrich 1984 and Wood 1994, as in Davidson et al. 2018 (arXiv 1804.00891),
    whose proposal has b = (D - 1) / 4 kappa from kappa = 11 on, which is its limit for kappa far
    above D only, while the test of acceptance is for the exact b. The gradient goes through b, as
    if every proposal were accepted. In three dimensions the program, too, takes the quantile.
    Args and errors are those of `sample`.
    """
    dim = _checked(direction.shape[1])
    if dim == 3:
        return sample(direction, concentration, count)
    kappa, d = concentration.double(), dim - 1
    root = torch.sqrt(4 * kappa**2 + d**2)
    blend = (kappa - 10).clamp(0, 1)
    b = blend * d / (4 * kappa) + (1 - blend) * d / (root + 2 * kappa)
    with torch.no_grad():
        odds = _published_odds((d + 2 * kappa + root) / 4, b, d, count)
    return _Around.apply(direction, 2 * torch.atan(torch.sqrt(b * odds)))


def _checked(dim: int) -> int:
    if dim < 2:
        raise ValueError(f"expected directions in at least 2 dimensions, got {dim}")
    return dim


def _with_slope(value: Tensor, slope: Tensor, source: Tensor) -> Tensor:
    """Return the value, with this derivative towards its source."""
    return value + slope.to(value.dtype) * (source - source.detach())


@cache
def _expansion(order: float) -> tuple[list[float], list[float]]:
    """Return the coefficients in p of `_bessel`'s series: of the ratio's, and the logarithm's.

    They are the uniform expansion (DLMF 10.41.3), by the Riccati equation s^2 + x s' = w^2 of
    s = x I_v'(x) / I_v(x) = w + (1 - p^2) (c_0(p) + c_1(p) / w + c_2(p) / w^2 + ...).
    """
    p = Polynomial([0.0, 1.0])
    terms = [Polynomial([-0.5])]
    ratio, log = terms[0], 0 * p
    while True:
        k, last = len(terms), (1 - p**2) * terms[-1]
        products = sum((a * b for a, b in zip(terms, reversed(terms), strict=True)), 0 * p)
        term = (p * last.deriv() + (k - 1) * last - (1 - p**2) * products) / 2
        terms.append(term)
        power = (p / order) ** k  # w^-k
        ratio += power * term
        log -= power * Polynomial([c / (m + k) for m, c in enumerate(term.coef.tolist())])
        if np.abs((power * term)(np.linspace(0, 1))).max() < NEGLIGIBLE:
            return ratio.coef.tolist(), log.coef.tolist()


def _horner(coefficients: list[float], p: Tensor) -> Tensor:
    value = torch.full_like(p, coefficients[-1])
    for coefficient in reversed(coefficients[:-1]):
        value = (value * p).add_(coefficient)
    return value


def _bessel(x: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """Return log x^-v I_v(x) and I_{v+1}(x) / x I_v(x) at the order v = D/2 - 1.

    The powers of x make both finite at 0. With w = sqrt(v^2 + x^2) and p = v / w, both have a
    series in p for large orders. A small order is reached from a large one by the recurrence
    I_v = I_{v+2} + 2 (v + 1) / x I_{v+1}, which is stable that way.
    """
    order = _checked(dim) / 2 - 1
    steps = max(0, math.ceil(ORDER - order))
    v = order + steps
    w = torch.sqrt(v**2 + x**2)
    for_ratio, for_log = _expansion(v)
    log = w - v * torch.log(v + w) - torch.log(2 * math.pi * w) / 2 + _horner(for_log, v / w)
    ratio = 1 / (v + w) + _horner(for_ratio, v / w) / w**2
    for step in reversed(range(steps)):
        inverse = 2 * (order + step + 1) + x**2 * ratio
        log += torch.log(inverse)
        ratio = 1 / inverse
    return log, ratio


def _log_density(versine: Tensor, kappa: Tensor, dim: int) -> Tensor:
    """Return the log density of an angle, up to a constant, at its versine = (1 - cos) / 2."""
    return torch.special.xlogy((dim - 2) / 2, versine * (1 - versine)) - 2 * kappa * versine


def _integrals(start: Tensor, end: Tensor, kappa: Tensor, dim: int, peak: Tensor) -> Tensor:
    """Return the integrals of exp(log density - peak), and of that times the versine."""
    middle, half = (start + end) / 2, (end - start) / 2
    total = start.new_zeros(2, *start.shape)
    for node, weight in zip(NODES, WEIGHTS, strict=True):
        versine = torch.sin((middle + node * half) / 2) ** 2
        mass = weight * half * torch.exp(_log_density(versine, kappa, dim) - peak)
        total[0] += mass
        total[1] += mass * versine
    return total


@torch.no_grad()
def _quantile(uniform: Tensor, concentration: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """Return the angles at the probabilities (n, count), and their derivatives to kappa (n).

    The density of an angle t is exp(kappa cos t) sin(t)^(D-2), up to a constant. Its integrals over
    panels around the mode find the panel, Newton's method the angle inside. The derivative at a
    fixed probability F is -(dF/dkappa) / (dF/dt).
    """
    kappa = concentration[:, None]
    curvature = torch.hypot(kappa.new_tensor(dim - 2.0), 2 * kappa)  # of the log density
    mode = torch.acos((2 * kappa / (dim - 2 + curvature)).clamp(max=1))
    first = (mode - BEFORE / torch.sqrt(curvature)).clamp(min=0)
    last = (mode + BEHIND / torch.sqrt(curvature)).clamp(max=math.pi)
    parts = torch.linspace(0, 1, PANELS + 1, dtype=kappa.dtype, device=kappa.device)
    edges = torch.lerp(first, last, parts)
    peak = _log_density(torch.sin(mode / 2) ** 2, kappa, dim)
    panels = _integrals(edges[:, :-1], edges[:, 1:], kappa, dim, peak)
    total = nn.functional.pad(panels.cumsum(-1), (1, 0))
    target = uniform * total[0, :, -1:]
    panel = (torch.searchsorted(total[0], target, right=True) - 1).clamp(max=PANELS - 1)
    low, high = edges.gather(1, panel), edges.gather(1, panel + 1)
    below = total.gather(2, panel.expand(2, -1, -1))
    part = (target - below[0]) / panels[0].gather(1, panel)
    # Towards 0 and pi, the probability goes like the distance to the power D - 1.
    part = torch.where(low > 0, part, part ** (1 / (dim - 1)))
    part = torch.where(high < math.pi, part, 1 - (1 - part) ** (1 / (dim - 1)))
    angle = torch.lerp(low, high, part)
    for _ in range(NEWTON):
        mass, moment = below + _integrals(low, angle, kappa, dim, peak)
        density = torch.exp(_log_density(torch.sin(angle / 2) ** 2, kappa, dim) - peak)
        angle = (angle - (mass - target) / density).clamp(low, high)
    mean = total[1, :, -1:] / total[0, :, -1:]
    return angle, 2 * (moment - mean * mass) / density


class _Around(torch.autograd.Function):
    """Random unit vectors at given angles to a direction; their gradient to it turns them with it.

    For a small turn that takes mu to mu + e, x moves by (x . mu) e - (x . e) mu.
    """

    @staticmethod
    def forward(ctx: FunctionCtx, direction: Tensor, angle: Tensor) -> Tensor:
        """Return (count, n, d), from (n, d) and (count, n)."""
        # Around the first axis, or its opposite if that is farther: then mirrored to the direction.
        axis = torch.zeros_like(direction)
        axis[:, 0] = torch.where(direction[:, 0] < 0, 1, -1)
        mirror = nn.functional.normalize(direction.double() - axis).to(direction.dtype)
        out = direction.new_empty(*angle.shape, direction.shape[1]).normal_()
        out[..., 0] = 0
        length = torch.sin(angle).to(out.dtype) / torch.linalg.vector_norm(out, dim=-1)
        out *= length[..., None]
        out[..., 0] = torch.cos(angle) * axis[:, 0]
        out.addcmul_((out * mirror).sum(-1, keepdim=True), mirror, value=-2)
        ctx.save_for_backward(direction, angle, out)
        return out

    @staticmethod
    def backward(ctx: BackwardCFunction, *grads: Tensor) -> tuple[Tensor, Tensor]:
        """Return the gradients to direction and angle."""
        (direction, angle, out), (grad,) = tuple(ctx.saved_tensors), grads
        along = torch.einsum("knd,nd->kn", grad, direction)
        radial = torch.einsum("knd,knd->kn", grad, out)
        cos, sin = torch.cos(angle), torch.sin(angle)
        turned = torch.einsum("kn,knd->nd", cos.to(grad.dtype), grad)
        turned -= torch.einsum("kn,knd->nd", along, out)
        return turned, (cos * radial - along) / sin


def _published_odds(a: Tensor, b: Tensor, d: int, count: int) -> Tensor:
    """Return e / (1 - e) of the accepted proposals e, from Beta(d/2, d/2), as (count, n)."""
    shape = torch.distributions.Gamma(b.new_tensor(d / 2), 1.0)
    a, b = a.repeat(count), b.repeat(count)
    bound = 4 * a * b / (1 + b) - d * math.log(d)
    odds = torch.full_like(b, math.nan)
    left = torch.arange(len(odds), device=odds.device)
    for _ in range(ROUNDS):
        first, second = shape.sample((2, len(left)))
        odds[left] = first / second
        t = 2 * a[left] * b[left] * (1 + odds[left]) / (1 + b[left] * odds[left])
        accepted = d * torch.log(t) - t + bound[left] >= torch.log(torch.rand_like(t))
        left = left[~accepted]
        if not len(left):
            break
    return odds.view(count, -1)
