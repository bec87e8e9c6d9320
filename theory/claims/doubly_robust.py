"""The claim on doubly robust estimates of a policy's total preference: arXiv:2506.01183."""

import math
from dataclasses import dataclass

import numpy as np
from scipy.special import expit

from theory.claims.ledger import (
    Claim,
    Finding,
    Measurement,
    Row,
    Verdict,
    conclude,
    curve,
    equality,
    panel,
    pick,
    rate_reached,
)
from theory.claims.predictions import predicted_mean
from theory.doubly_robust import Estimate, finite_terms, total_preference
from theory.fitting import dpo
from theory.policy import Array, log_policy
from theory.rates import rate
from theory.worlds import FiniteWorld, from_policy, unit_vectors

SPECIFIED = {
    "both right": (True, True),
    "reference wrong": (True, False),
    "preferences wrong": (False, True),
    "both wrong": (False, False),
}
FEATURES_KEPT = 1  # by the preference model that is wrong; the reference that is wrong is uniform


@dataclass(frozen=True)
class _Setting:
    """A log-linear world, a target policy (S, A), the true reference (S, A) and the true chances
    (S, A, A)."""

    world: FiniteWorld
    policy: Array
    reference: Array
    preference: Array

    @property
    def truth(self) -> float:
        """By enumeration: the chance that a response of the policy beats one of the reference."""
        mu = self.world.context_probability
        assert mu is not None
        return float(np.einsum("s,sa,sb,sab->", mu, self.policy, self.reference, self.preference))

    def nuisances(
        self, p: Array, preference_right: bool, reference_right: bool, n: float, position: float
    ) -> tuple[Array, Array]:
        """A preference model (R, S, A, A), by DPO on all features or on the first, and a reference
        (R, S, A), by counting or uniform, from weights p (R, K) of the atoms."""
        world = self.world
        features = world.policy_features
        assert features is not None
        kept = slice(None) if preference_right else slice(FEATURES_KEPT)
        theta = dpo(
            world.u[:, kept],
            p,
            beta=world.beta,
            bound=10 * world.bound,
            theta_ref=world.theta_ref[kept],
        ).theta.numpy()
        score = world.beta * np.einsum(
            "sad,rd->rsa", features[..., kept], theta - world.theta_ref[kept]
        )
        model = expit(score[..., :, None] - score[..., None, :] + position)
        S, A = self.policy.shape
        seen = p.reshape(-1, S, A, A, 2).sum(-1)
        count = seen.sum(3) + seen.sum(2) + (1 / n)  # one more response of each kind in n pairs
        reference = count / count.sum(2, keepdims=True)
        return model, reference if reference_right else np.full_like(reference, 1 / A)


def doubly_robust_preference(
    profile: str, seed: int, *, position: float = 0.0, without: str = ""
) -> Finding:
    """The doubly robust estimate is consistent unless both models are wrong.

    position: what the preference model adds to the log-odds of the response in the first place.
    without: "weights" or "model", a part that the estimate leaves out.
    """
    worlds, replicates = pick(profile, (1, 600), (3, 1000), (6, 4000))
    sizes = (300, 3000, 30000, *pick(profile, (), (300000,), (300000,)))
    lines: list[Measurement] = []
    rows: list[Row] = []
    slopes: list[float] = []
    left: list[float] = []
    limit_error = product_error = 0.0
    for index in range(worlds):
        setting = _setting([seed, index])
        truth, population = setting.truth, setting.world.probability[None]
        for words, right in SPECIFIED.items():
            nuisances = setting.nuisances(population, *right, math.inf, position)
            limit = _estimate(setting, population, *nuisances, without).value.item() - truth
            if words == "both wrong":
                product_error = max(product_error, abs(limit - _product(setting, *nuisances)))
                left.append(abs(limit))
            else:
                limit_error = max(limit_error, abs(limit))
            errors = []
            for n in sizes:
                seeds = np.random.SeedSequence([seed, index, n]).spawn(replicates)
                p = setting.world.sample(n, seeds).p.numpy()
                found = _estimate(
                    setting, p, *setting.nuisances(p, *right, float(n), position), without
                )
                errors.append(found.value - truth)
            size = np.sqrt(np.square(errors).mean(1))
            rows += curve(sizes, size, words if worlds == 1 else f"{words}, world {index + 1}")
            what = f"world {index + 1}, {words}"
            if words == "both wrong":
                lines.append(_stays(f"{what}: mean error at n = {sizes[-1]:g}", errors[-1], limit))
                continue
            slope = rate(np.array(sizes), np.array(errors), seed=seed)
            slopes.append(slope.slope)
            lines.append(
                rate_reached(f"{what}: error on n", slope.slope, slope.low, slope.high, -0.5)
            )
            if words == "both right":
                deviation = _estimate(setting, population, *nuisances, without).deviation.item()
                lines.append(
                    predicted_mean(
                        f"{what}: n times the squared error at n = {sizes[-1]:g}, by the"
                        " efficient variance",
                        sizes[-1] * np.square(errors[-1]),
                        deviation**2,
                        0.1,
                    )
                )
    lines += [
        equality(
            "error in the population, unless both are wrong",
            limit_error,
            1e-7,
            f"seed {seed}: {limit_error:.4g}",
        ),
        equality(
            "error in the population where both are wrong, by the product of the two errors",
            product_error,
            1e-10,
            f"seed {seed}: {product_error:.4g} off",
        ),
    ]
    figure = (
        f"slopes {min(slopes):.3f} to {max(slopes):.3f} unless both are wrong; then an error of"
        f" {min(left):.3f} or more stays"
    )
    table = panel(rows, "pairs n", "root mean square error", log="xy")
    return conclude(figure, lines, {"one right model is enough": table})


def _setting(seed: list[int]) -> _Setting:
    """Three contexts, four responses, three features; reference and target lean different ways."""
    rng = np.random.default_rng(seed)
    features = unit_vectors(rng.standard_normal((3, 4, 3)))
    star, reference, target = 1.5 * unit_vectors(rng.standard_normal((3, 3)))
    world = from_policy(features, star, beta=2.0, bound=4.0, theta_ref=reference)
    score = world.beta * features @ (star - reference)
    return _Setting(
        world,
        np.exp(log_policy(target, features)),
        np.exp(log_policy(reference, features)),
        expit(score[:, :, None] - score[:, None, :]),
    )


def _estimate(
    setting: _Setting, p: Array, model: Array, reference: Array, without: str
) -> Estimate:
    found = total_preference(*finite_terms(setting.policy, reference, model), p)
    return {"": found.doubly_robust, "weights": found.direct, "model": found.weighted}[without]


def _product(setting: _Setting, model: Array, reference: Array) -> float:
    """E (w(y) - w^(y)) (g^ - g)(y, y') over pairs of the reference, for a model that treats both
    places alike."""
    mu, true = setting.world.context_probability, setting.reference
    assert mu is not None
    excess = setting.policy / true - setting.policy / reference[0]
    return float(
        np.einsum("s,sa,sb,sa,sab->", mu, true, true, excess, model[0] - setting.preference)
    )


def _stays(what: str, errors: Array, limit: float) -> Measurement:
    """Neither the mean nor the limit is 0, and they agree: the estimate is not consistent."""
    error = float(errors.std(ddof=1) / math.sqrt(len(errors)))
    mean = float(errors.mean())
    figure = f"{mean:.4f} ± {error:.4f}, predicted {limit:.4f}"
    if abs(mean - limit) > 4 * error + 0.02 * abs(limit):
        return Measurement(what, Verdict.REFUTED, figure, counterexample=figure)
    if abs(mean) < 4 * error:
        return Measurement(what, Verdict.INCONCLUSIVE, figure, decides="more pairs")
    return Measurement(what, Verdict.HOLDS, figure)


CLAIMS = (
    Claim(
        "doubly-robust-preference",
        "arXiv:2506.01183v2, Eq. (8), Corollaries 3 and 4",
        "the doubly robust estimate needs the preference model or the reference policy, not both",
        "The estimate of the chance that a policy's response beats the reference's converges to it"
        " if the preference model or the reference policy is correctly specified; if both are, its"
        " mean squared error is that of the efficient estimator. If neither is, its error is in"
        " the limit the mean product of the two models' errors.",
        "Pairs of independent responses of the reference; a target policy whose responses the"
        " reference can give; a preference model that treats both places alike, g(y, y') +"
        " g(y', y) = 1: not said in what we read, and needed.",
        "Log-linear worlds. Preference models by DPO on all features, or on one of three;"
        " references by counting responses, or uniform. Errors against enumeration at n = 300 to"
        " 300,000, their slopes with bootstrap intervals, and limits in the population.",
        "A slope surely above -1/2, or a population limit off by more than 1e-7, where one model is"
        " right; a squared error 10 % off the efficient variance. A model that favours the first"
        " place by 0.1 in its log-odds, or an estimate without the weights or without the model,"
        " does that.",
        doubly_robust_preference,
    ),
)
