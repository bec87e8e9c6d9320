"""The limit law of a robust estimator around its population's minimiser."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch

from theory.batch import ArrayLike, pair_batch
from theory.checks import check_probability
from theory.fitting import fit
from theory.laws.program import Derivative, derivative
from theory.policy import Array
from theory.results import Fit, Made
from theory.sets.base import AmbiguitySet
from theory.solvers.local import AtFit, LocalProgram, NoLaw, mean_program

_NOWHERE = 1e-12  # margins that rounding alone leaves at the reference policy
_DRAWS = 200_000  # of the limit, for quantiles: a 95 % quantile has an error of 0.3 %


@dataclass(frozen=True, eq=False)
class Law:
    """The limit of sqrt(n)(theta_n - theta_rho) for samples of n pairs.

    kind: "normal", also with a singular covariance; "directional", where a kink or the bound is met
    without a multiplier: the solution of a random quadratic program, which is not normal; or
    "none", with the `reason`. Theorems F1 to F3, docs/theorems/limit-laws.md.

    Attributes:
        kind: "normal", "directional" or "none".
        reason: in words, what decides the kind.
        theta: (d,) theta_rho, in the inverse unit of the features.
        covariance: (d, d) of the limit; NaN unless it is normal.
        influence: (K, d) of the atoms, theta_n - theta_rho = sum_i (p_n - p)_i influence_i + o(
            n^-1/2); NaN unless the law is normal.
        p: (K,) probabilities of the atoms.
        derivative: how the solution moves with p, nuisances included; None where there is no law.

    >>> from theory import KL, limit_law
    >>> u, p = [[1.0], [-1.0]], [0.8, 0.2]
    >>> law = limit_law(u, p, KL(0.05), beta=1.0, bound=4.0)
    >>> law.kind, law.covariance.shape
    ('normal', (1, 1))
    >>> bool(law.quantile(0.95, n=400) > law.quantile(0.95, n=10_000))
    True
    """

    kind: Literal["normal", "directional", "none"]
    reason: str
    theta: Array
    covariance: Array
    influence: Array
    p: Array
    derivative: Derivative | None

    def draw(self, k: int, generator: np.random.Generator) -> Array:
        """(k, d) draws of the limit.

        Raises:
            ValueError: the kind is "none".
        """
        if self.derivative is None:
            raise ValueError(f"there is no limit law to draw from: {self.reason}")
        d = len(self.theta)
        if self.kind == "normal":
            size, basis = np.linalg.eigh(self.covariance)
            return generator.standard_normal((k, d)) * np.sqrt(size.clip(min=0)) @ basis.T
        z = generator.standard_normal((k, len(self.p))) * np.sqrt(self.p)
        z -= z.sum(1, keepdims=True) * self.p  # N(0, diag p - p p')
        return self.derivative.along(z)[:, :d]

    def quantile(self, level: float, n: float, *, seed: int = 0) -> float:
        """The quantile of ||theta_n - theta_rho|| that the law predicts for n pairs.

        Raises:
            ValueError: the kind is "none".
        """
        draws = _DRAWS if self.kind == "normal" else _DRAWS // 10
        sizes = np.linalg.norm(self.draw(draws, np.random.default_rng(seed)), axis=1)
        return float(np.quantile(sizes, level) / np.sqrt(n))


def limit_law(
    u: ArrayLike,
    p: ArrayLike,
    ball: AmbiguitySet | None,
    *,
    beta: float,
    bound: float,
    theta_ref: ArrayLike | None = None,
) -> Law:
    """The limit law of sqrt(n)(theta_n - theta_rho) in a population on finitely many atoms.

    theta_n is `fit` on n independent pairs, theta_rho on the population. Theorems F1 to F3,
    docs/theorems/limit-laws.md; van der Vaart (1998), Theorem 5.23; Shapiro (1988).

    Args:
        u: (K, d) signed feature differences, the atoms.
        p: (K,) their probabilities.
        ball: one of `theory.SETS` with a single size; None: plain DPO.
        beta, bound, theta_ref: as for `fit`.

    Returns:
        A `Law`; of the kind "none" where the population's minimiser is theta_ref (collapse), or has
        no curvature, with the reason.

    Raises:
        ValueError: as `fit`, or a set whose limit law is not known.
        RuntimeError: the population's fit did not converge.

    >>> import numpy as np
    >>> from theory import KL, limit_law
    >>> law = limit_law([[1.0], [-1.0]], [0.8, 0.2], None, beta=1.0, bound=4.0)
    >>> law.covariance.round(6).tolist()  # 1/(0.8 * 0.2), of a log-odds
    [[6.25]]
    """
    pairs = pair_batch(u, p)
    weights = check_probability("p", p, pairs.p.shape[1])
    found = fit(u, ball, torch.from_numpy(weights), beta=beta, bound=bound, theta_ref=theta_ref)
    if found.theta.ndim != 1 or not bool(found.converged):
        raise RuntimeError(
            f"the population's fit did not converge to one point: {found!r}. Give one sample and"
            " one size; else look at the gap."
        )
    return law_at(found)


def law_at(found: Fit) -> Law:
    """The limit law around a fit, its sample taken for the population."""
    theta = found.theta.numpy()
    d, nothing = len(theta), np.full((len(theta), len(theta)), np.nan)
    p = _made(found).pairs.p[0].numpy()
    try:
        moved = derivative_at(found)
    except NoLaw as error:
        return Law("none", str(error), theta, nothing, np.full((len(p), d), np.nan), p, None)
    if not moved.linear:
        why = (
            f"{len(moved.free)} of the kinks and bounds that the solution meets have no multiplier"
        )
        return Law("directional", why, theta, nothing, np.full((len(p), d), np.nan), p, moved)
    influence = moved.influence[:, :d]
    influence = influence - p @ influence
    covariance = (influence * p[:, None]).T @ influence
    held = len(moved.held)
    why = f"kinks or bounds hold it in {held} directions" if held else "smooth at the solution"
    return Law("normal", why, theta, covariance, influence, p, moved)


def derivative_at(found: Fit) -> Derivative:
    """How a fit moves with the weights of its pairs.

    Raises:
        NoLaw: it collapsed, or as `derivative`.
        ValueError: the set does not say what its program is.
    """
    made = _made(found)
    reference = made.domain.theta_ref.numpy()
    return derivative(local_program(found), made.pairs.p[0].numpy(), reference, made.domain.bound)


def local_program(found: Fit) -> LocalProgram:
    """The program of a single fit near its solution."""
    made = _made(found)
    w = found.theta - made.domain.theta_ref
    margins = made.beta * (made.pairs.ut[0].T @ w)
    if bool(found.collapsed) or (made.set is not None and margins.abs().max() < _NOWHERE):
        raise NoLaw(
            "the fit is the reference policy: the set is at or beyond its collapse radius, where"
            " the law is not that of a smooth point. Take a smaller radius."
        )
    dual = None if found.dual is None else found.dual.item()
    at = AtFit(made.pairs.ut[0].T.contiguous(), made.pairs.p[0], w, made.beta, dual)
    return mean_program(at) if made.set is None else made.set.local(at)


def _made(found: Fit) -> Made:
    """What a fit was made from."""
    assert found._made is not None
    return found._made
