"""What a radius that shrinks with n costs against theta*: the price of coverage.

With Bradley-Terry labels, H the Hessian, G the gradient and l the loss at theta*, and
V = H^-1 Cov(G) H^-1 the variance of DPO,

    KL, rho = c/n:                 sqrt(n)(theta_n - theta*) -> N(-sqrt(2c) b, V),
    W1, W2 free, rho = c/sqrt(n):                            -> N(-c b, V),

with b = H^-1 Cov(G, l)/sd(l) for KL, b = H^-1 grad pen(theta*) for W1 and W2,
pen = beta ||w|| for W1 and beta ||w|| (E sigma(-m)²)^(1/2) for W2. So coverage of P on K atoms
costs a factor that grows with K, coverage of theta* one that grows with d, and no radius gains to
first order. Theorem R of docs/theorems/price.md.
"""

import math
from dataclasses import dataclass

import numpy as np
from scipy.special import expit
from scipy.stats import binom, chi2

from theory.batch import ArrayLike
from theory.bounds.papers import check_constants
from theory.checks import as_array, check_probability, check_scale
from theory.policy import Array


@dataclass(frozen=True)
class Price:
    """The law of sqrt(n)(theta_n - theta*) under shrinking radii: N(-strength * bias, variance).

    bias: b (d,), variance: V (d, d). root: whether the strength is sqrt(2 n rho) (KL) instead of
    sqrt(n) rho (W1, W2).
    """

    bias: Array
    variance: Array
    root: bool

    def strength(self, n: float, radius: float) -> float:
        """sqrt(2 n rho) or sqrt(n) rho.

        Raises:
            ValueError: a radius that is negative or not a number.
        """
        if not radius >= 0:
            raise ValueError(f"radius must not be negative, got {radius}.")
        return math.sqrt(2 * n * radius) if self.root else math.sqrt(n) * radius

    def mean_square(self, n: float, radius: float) -> float:
        """E ||theta_n - theta*||² to first order: (strength² ||b||² + tr V)/n."""
        squared = self.strength(n, radius) ** 2 * float(self.bias @ self.bias)
        return (squared + float(np.trace(self.variance))) / n

    def factor(self, n: float, radius: float) -> float:
        """What the radius multiplies DPO's mean squared error by: 1 + strength² ||b||²/tr V."""
        return self.mean_square(n, radius) * n / float(np.trace(self.variance))

    def coverage_factor(self, degrees: int, level: float = 0.95) -> float:
        """The factor of the KL radius chi2_{degrees, level}/(2n): K - 1 degrees cover P, d degrees
        cover theta*.

        Raises:
            ValueError: of another ball than KL, whose radii are not quantiles of chi2.
        """
        if not self.root:
            raise ValueError("chi2 radii are those of the KL ball. Use factor(n, radius).")
        return self.factor(1.0, float(chi2.ppf(level, degrees)) / 2)


def price_of_radius(
    u: ArrayLike,
    p: ArrayLike,
    theta_star: ArrayLike,
    ball: str,
    *,
    beta: float,
    theta_ref: ArrayLike | None = None,
) -> Price:
    """Bias and variance of a robust estimator whose radius shrinks with n.

    Theorem R of docs/theorems/price.md; derived. The bias of the W balls: arXiv:1712.06050 (Gao,
    Chen, Kleywegt) for the penalty that they are to first order.

    Args:
        u: (K, d) signed feature differences, the atoms.
        p: (K,) their probabilities.
        theta_star: (d,) the minimiser of the mean loss.
        ball: "kl", "w1-free" or "w2-free".
        beta: of the loss.
        theta_ref: (d,) of the reference policy; None: 0.

    Raises:
        ValueError: another ball; losses that are all equal at theta* (KL), or theta* = theta_ref
            (W), where the bias has another order; features that do not span all dimensions; or a
            theta* at which the mean gradient does not vanish.

    >>> found = price_of_radius([[1.0], [-1.0]], [0.75, 0.25], [math.log(3)], "kl", beta=1.0)
    >>> (found.bias * math.sqrt(3 / 16)).round(6).tolist()
    [1.0]
    >>> (found.variance * 3 / 16).round(6).tolist()
    [[1.0]]
    """
    atoms, star = as_array(u, "u"), as_array(theta_star, "theta_star")
    if not (np.isfinite(atoms).all() and np.isfinite(star).all()):
        raise ValueError(
            "u or theta_star holds NaN or infinite entries. Leave such atoms out, with their"
            " probabilities, or look at the fit that gave theta_star."
        )
    mass = check_probability("p", p, len(atoms))
    beta = check_scale("beta", beta, "It scales the log-ratio in the margin.")
    w = star - (0.0 if theta_ref is None else as_array(theta_ref, "theta_ref"))
    margin = beta * atoms @ w
    down = expit(-margin)
    losses, G = np.logaddexp(0, -margin), -beta * down[:, None] * atoms
    H = beta**2 * np.einsum("k,ki,kj->ij", mass * down * (1 - down), atoms, atoms)
    spectrum = np.linalg.eigvalsh(H)
    if spectrum[0] <= 1e-13 * spectrum[-1]:
        raise ValueError(
            f"the Hessian at theta* has the eigenvalues {spectrum.tolist()}: the features do not"
            " tell all directions of theta apart. Project them onto the span of the pairs."
        )
    mean = mass @ G
    if np.linalg.norm(mean) > 1e-6 * np.sqrt(mass @ (G**2).sum(1)):
        raise ValueError(
            f"the mean gradient at theta_star is {mean.tolist()}, not 0: it is no minimiser of the"
            " mean loss. Give the population's DPO solution."
        )
    slope = _slope(ball, atoms, mass, losses, G, w, down, beta)
    inverse = np.linalg.inv(H)
    variance = inverse @ (G.T @ (mass[:, None] * G)) @ inverse
    return Price(inverse @ slope, variance, ball == "kl")


def _slope(
    ball: str, u: Array, p: Array, losses: Array, G: Array, w: Array, down: Array, beta: float
) -> Array:
    """The gradient at theta* of what a small ball adds to the mean loss, per unit of strength."""
    size = float(np.linalg.norm(w))
    if ball == "kl":
        deviation = losses - p @ losses
        spread = math.sqrt(float(p @ deviation**2))
        if spread <= 1e-12 * float(np.abs(losses).max()):
            raise ValueError(
                "the losses at theta* are all equal, so that the KL ball adds nothing of the order"
                " sqrt(rho). There is no price to first order."
            )
        return (p * deviation) @ G / spread
    if ball not in ("w1-free", "w2-free"):
        raise ValueError(f"ball must be 'kl', 'w1-free' or 'w2-free', got {ball!r}.")
    if size == 0:
        raise ValueError(
            "theta* is theta_ref: the penalty has a kink there and theta_n is theta_ref with"
            " positive probability. See theory.laws.collapse for the law at an edge."
        )
    if ball == "w1-free":
        return beta * w / size
    root = math.sqrt(float(p @ down**2))
    inner = -beta * (p * down**2 * (1 - down)) @ u / root
    return beta * (w / size * root + size * inner)


# ------------------------------------------------------------------------- one pair, in closed form
def coin_error(n: int, chance: float, radius: float, bound: float = 12.0) -> float:
    """E (theta_n - theta*)² of KLDPO for x = 1, P(y = 1) = chance > 1/2, beta = 1: an exact sum.

    With two atoms the robust answer is logit q, q in [1/2, wins/n] with KL((q, 1 - q)||(wins/n,
    ..)) = radius, or 0; |theta| <= bound. No sampling and no asymptotics.

    Raises:
        ValueError: a chance outside of (1/2, 1), a radius that is negative or not a number, an n
            that is no whole number, or a theta* beyond the bound.
    """
    if not 0.5 < chance < 1 or math.log(chance / (1 - chance)) >= bound:
        raise ValueError(
            f"chance must lie in (1/2, 1) with its log-odds below {bound:g}, got {chance}."
        )
    if not radius >= 0:
        raise ValueError(f"radius must not be negative, got {radius}. It is in nats.")
    check_constants(n)
    if n != int(n):
        raise ValueError(f"n must be a whole number of pairs, got {n}.")
    n = int(n)
    # all but 1e-16 of the binomial law
    low, high = (int(binom.ppf(level, n, chance)) for level in (1e-17, 1 - 1e-16))
    wins = np.arange(max(low - 1, 0), min(high + 2, n) + 1)
    theta = np.clip(_robust_logit(wins / n, radius), -bound, bound)
    star = math.log(chance / (1 - chance))
    return float(binom.pmf(wins, n, chance) @ (theta - star) ** 2)


def coin_gain(chance: float) -> tuple[float, float]:
    """The best radius of `coin_error` and what it gains, to leading order: n² rho and n² (error of
    DPO - error at rho).

    The radius enters the error as 2 rho b² + sqrt(2 rho) gamma/n, b² = 1/(chance (1 - chance)),
    with gamma = -2 (2 chance - 1) b³: shrinking corrects the bias of the logit, of order 1/n.
    So rho = (2 chance - 1)² b²/(2 n²), and it gains (2 chance - 1)² b⁴/n² of an error b²/n:
    nothing to first order. Theorem R, docs/theorems/price.md.

    >>> radius, gain = coin_gain(0.75)
    >>> round(radius, 6), round(gain, 6)
    (0.666667, 7.111111)
    """
    if not 0.5 < chance < 1:
        raise ValueError(
            f"chance must lie in (1/2, 1), got {chance}: it is the probability that the better"
            " response wins."
        )
    b2 = 1 / (chance * (1 - chance))
    return (2 * chance - 1) ** 2 * b2 / 2, ((2 * chance - 1) * b2) ** 2


def _robust_logit(share: Array, radius: float) -> Array:
    """logit of the robust share, towards 1/2, by bisection on it; odd in share - 1/2."""
    side = np.sign(share - 0.5)
    p = np.maximum(share, 1 - share)
    with np.errstate(divide="ignore", invalid="ignore"):
        logit_p = np.log(p) - np.log1p(-p)
        if radius == 0:
            return side * logit_p
        low, high = np.zeros_like(p), np.minimum(logit_p, 700.0)
        for _ in range(200):
            middle = (low + high) / 2
            q = expit(middle)
            # by what q is off, as for small radii the logs of the ratios cancel
            off = p - q
            kl = q * np.log1p(-off / p) + np.where(p < 1, (1 - q) * np.log1p(off / (1 - p)), np.inf)
            inside = kl <= radius  # the ball holds q: go further towards 1/2
            low, high = np.where(inside, low, middle), np.where(inside, middle, high)
        return np.where(p < 1, side * high, side * np.inf)
