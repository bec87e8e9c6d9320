"""Claims on pairs that look mislabelled: which losses let them go, and what share of the labels is
wrong. arXiv:2505.17859 (Hoelder-DPO)."""

import math
from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from scipy.optimize import minimize_scalar
from scipy.special import expit, logit
from torch import Tensor
from torch.autograd.functional import hessian, jacobian

from theory import losses
from theory.claims.ledger import (
    Claim,
    Finding,
    Kind,
    Measurement,
    Row,
    Verdict,
    conclude,
    curve,
    equality,
    panel,
    pick,
)
from theory.flips import mislabelled_share
from theory.functionals import dr_dpo, mean
from theory.shift import mean_interval
from theory.worlds import unit_vectors

FLIP, LIMIT = 0.1, 4.0
B = 3.0  # temperature of Dr. DPO; from 1 down it has no minimiser in a world of one pair
CONSISTENT = 1.0  # the gamma at which the loss of Hoelder-DPO aims at Bradley and Terry's margin
GAMMA = 2.0  # its authors' choice
Loss = Callable[[Tensor, Tensor], Tensor]  # of the rewards, or log-ratios, r+ and r-
_ONE = torch.ones((), dtype=torch.float64)


def _of_worst_label(flips: Callable[[Tensor, float], tuple[Tensor, Tensor]]) -> Loss:
    def loss(chosen: Tensor, rejected: Tensor) -> Tensor:
        m = chosen - rejected
        return losses.label_robust_loss(m, flips(torch.full_like(m, FLIP), 0.1))

    return loss


def _of_margin(loss: Callable[[Tensor], Tensor]) -> Loss:
    return lambda chosen, rejected: loss(chosen - rejected)


# every loss of a pair in `theory.losses`, at beta = 1 and a length of one token
PULLS: dict[str, Loss] = {
    "dpo": _of_margin(losses.dpo_loss),
    "ipo": lambda a, b: losses.ipo_loss(a, b, 1.0),
    "cdpo": _of_margin(partial(losses.cdpo_loss, flip=FLIP)),
    "rdpo": _of_margin(partial(losses.rdpo_loss, flip=FLIP)),
    "hinge": _of_margin(losses.hinge_loss),
    "dpo_norm": lambda a, b: losses.dpo_norm_loss(a, b, 1.0, _ONE, _ONE),
    "exo": _of_margin(partial(losses.exo_loss, flip=FLIP)),
    "nca": losses.nca_loss,
    "bco": losses.bco_loss,
    "sppo": lambda a, b: losses.sppo_loss(a, b, 1.0),
    "apo_zero": losses.apo_zero_loss,
    "apo_down": losses.apo_down_loss,
    "discopop": _of_margin(losses.discopop_loss),
    "hoelder": _of_margin(partial(losses.hoelder_loss, gamma=CONSISTENT)),
    "winsorised": _of_margin(partial(losses.winsorised_loss, limit=LIMIT)),
    "chi2_label": _of_worst_label(losses.chi2_flips),
    "tv_label": _of_worst_label(losses.tv_flips),
    "rebel": lambda a, b: losses.rebel_loss(a - b, torch.ones_like(a), 1.0),
    # log-probabilities in the place of log-ratios, which have to be negative
    "simpo": lambda a, b: losses.simpo_loss(a, b, 1.0, 0.0, _ONE, _ONE),
    "orpo": lambda a, b: losses.orpo_loss(a - 2000, b - 2000, 1.0, _ONE, _ONE),
}
# what Theorem 3 names, and two losses of 2024 that it does not
THEOREM_3 = ("dpo", "ipo", "cdpo", "rdpo", "dr_dpo")
EARLIER = {"exo": "arXiv:2402.00856", "winsorised": "the clipping of chi-PO, arXiv:2407.13399"}
FAR = 1000.0
SMALL = 1e-6  # share of the flipped pair in the fit that the influence is compared with


def redescending_losses(
    profile: str,
    seed: int,
    *,
    said: tuple[str, ...] = THEOREM_3,
    earlier: tuple[str, ...] = tuple(EARLIER),
) -> Finding:
    """The loss of Hoelder-DPO redescends, and no earlier one does.

    said, earlier: the methods that are held against the statement.
    """
    rng = np.random.default_rng(seed)
    worlds = pick(profile, 1, 3, 10)
    slopes = {name: _pull(loss, 0.0) for name, loss in PULLS.items()}
    both = {name: _pull(loss, FAR) for name, loss in PULLS.items()}
    rows: list[Row] = []
    lines: list[Measurement] = []
    names = list(dict.fromkeys(("hoelder", *said, *earlier)))
    far = dict.fromkeys(names, 0.0)
    worst = 0.0
    example = ""
    for index in range(worlds):
        x = unit_vectors(rng.standard_normal((8, 2)))
        star = 1.5 * unit_vectors(rng.standard_normal(2))
        u = torch.from_numpy(np.concatenate([x, -x]))
        p = torch.from_numpy(np.concatenate([expit(x @ star), expit(-x @ star)]) / 8)
        for name in names:
            at = _minimum(partial(_objective, name, u, p), torch.from_numpy(star))
            for distance in (1.0, 3.0, 10.0, 30.0, 100.0):
                flipped = -distance * at / at.norm()
                found = _influence(name, u, p, at, flipped)
                rows += curve([distance], [max(found.norm().item(), 1e-12)], name)
                if distance == 3.0:
                    measured = _difference(name, u, p, at, flipped)
                    error = ((measured - found).norm() / found.norm().clamp(min=1e-3)).item()
                    if error > worst:
                        worst, example = error, f"world {index}, {name}: {error:.2g}"
            far[name] = max(far[name], found.norm().item())
    lines.append(
        equality(
            "influence by its formula against a fit with one pair in a million flipped",
            worst,
            1e-3,
            example,
            step=True,
        )
    )
    lines.append(_redescends("hoelder", far["hoelder"], slopes["hoelder"], True, ""))
    for name in said:
        lines.append(_redescends(name, far[name], slopes.get(name), False, "Theorem 3"))
    for name in earlier:
        lines.append(_redescends(name, far[name], slopes[name], False, EARLIER[name]))
    gone = [name for name, slope in slopes.items() if slope < 1e-6]
    more = [name for name in slopes if both[name] < 1e-6 and name not in gone]
    figure = (
        f"of {len(PULLS)} losses {', '.join(gone)} redescend; {', '.join(more)} where the chosen"
        " response is far as well"
    )
    if "dr_dpo" in said:
        figure += f"; Dr. DPO's influence at distance 100 is {far['dr_dpo']:.1e}"
    table = panel(rows, "distance of the flipped pair", "its influence on theta", log="xy")
    return conclude(figure, lines, {"what one flipped pair does": table})


def _redescends(
    name: str, far: float, slope: float | None, claimed: bool, source: str
) -> Measurement:
    """Whether the influence of a far flipped pair is nothing, against what is claimed."""
    pull = "" if slope is None else f", slope {slope:.3g} at margin -{FAR:g}"
    figure = f"influence {far:.3g} at distance 100{pull}"
    what = f"{name} {'redescends' if claimed else 'does not redescend'}"
    found = far < 1e-6
    if found == claimed:
        return Measurement(what, Verdict.HOLDS, figure)
    if not found and far < 1e-2:
        return Measurement(what, Verdict.INCONCLUSIVE, figure, decides="a larger distance")
    words = f"{name} ({source}): {figure}"
    return Measurement(what, Verdict.REFUTED, figure, counterexample=words)


def _pull(loss: Loss, chosen: float) -> float:
    """|dl/dr+| + |dl/dr-| where the rejected response has the reward `FAR` and the chosen one minus
    `chosen`: Definition 2 lets the first go to infinity."""
    point = torch.tensor([-chosen, FAR], dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(loss(point[0], point[1]), point)
    return slope.abs().sum().item()


def _objective(name: str, u: Tensor, p: Tensor, w: Tensor) -> Tensor:
    margins = u @ w
    if name == "dr_dpo":
        return dr_dpo(losses.dpo_loss(margins), B, p)
    return mean(PULLS[name](margins, torch.zeros_like(margins)), p)


def _minimum(objective: Callable[[Tensor], Tensor], start: Tensor) -> Tensor:
    """Newton with halved steps from the true parameter."""
    w = start.clone()
    for _ in range(30):
        slope, bend = jacobian(objective, w), hessian(objective, w)
        bends, axes = torch.linalg.eigh(bend)
        step = axes @ ((axes.T @ slope) / bends.abs().clamp(min=1e-8))
        size = 1.0
        while size > 1e-9 and objective(w - size * step) > objective(w):
            size /= 2
        w = w - size * step
        if step.norm() < 1e-11 or size <= 1e-9:
            break
    return w


def _influence(name: str, u: Tensor, p: Tensor, at: Tensor, flipped: Tensor) -> Tensor:
    """-H^-1 times the flipped pair's gradient: the derivative of the minimiser in its share."""
    bend = hessian(partial(_objective, name, u, p), at)
    with_it = torch.cat([u, flipped[None]])

    def slope_at(eps: float) -> Tensor:
        mixed = torch.cat([(1 - eps) * p, torch.tensor([eps], dtype=p.dtype)])
        return jacobian(partial(_objective, name, with_it, mixed), at)

    # the gradient is linear in the share, or, for Dr. DPO, so near it that its slope at 0 is meant
    slope = (slope_at(SMALL) - slope_at(0.0)) / SMALL
    return -torch.linalg.solve(bend, slope)


def _difference(name: str, u: Tensor, p: Tensor, at: Tensor, flipped: Tensor) -> Tensor:
    mixed = torch.cat([(1 - SMALL) * p, torch.tensor([SMALL], dtype=p.dtype)])
    return (
        _minimum(partial(_objective, name, torch.cat([u, flipped[None]]), mixed), at) - at
    ) / SMALL


# ------------------------------------------------------------------------------- the share of flips
SHARES = (0.0, 0.1, 0.2, 0.3, 0.4)


def mislabelled_share_estimate(
    profile: str, seed: int, *, sure: float = 12.0, gamma: float = GAMMA
) -> Finding:
    """The estimated share of wrong labels is right where preferences are sure.

    sure: the margin of every pair in the world of sure preferences.
    """
    rng = np.random.default_rng(seed)
    replicates, n = pick(profile, (6, 2000), (40, 4000), (100, 20_000))
    lines: list[Measurement] = []
    rows: list[Row] = []
    off = 0.0
    for share in SHARES:
        for size in (1.0, 2.0, 4.0):
            right = (1 - share) * expit(size) + share * expit(-size)
            exact = mislabelled_share(
                torch.tensor([size, -size], dtype=torch.float64),
                gamma,
                torch.tensor([right, 1 - right], dtype=torch.float64),
            ).item()
            off = max(off, abs(exact - _closed_form(size, right, gamma)))
            rows += curve([share], [exact], f"margins ±{size:g}, at the true policy")
    lines.append(equality("two margins against the closed form", off, 1e-12))
    largest, aim = 0.0, 0.0
    for power in (0.5, 1.0, 1.5):
        for right in (0.6, 0.8, 0.95):
            aim = max(aim, abs(_aim(power, right) * (2 - power) / logit(right) - 1))
    lines.append(
        equality("margin that the loss aims at, by logit(q)/(2 - gamma): ratio less 1", aim, 1e-5)
    )
    for share in SHARES:
        found = []
        for _ in range(replicates):
            # pairs along both axes and between, all with the margin `sure` at the true parameter
            angle = rng.uniform(-0.6, 0.6, n)
            x = np.column_stack([np.ones(n), np.tan(angle)])
            wrong = rng.random(n) < share
            label = rng.random(n) < expit(sure)
            u = torch.from_numpy(np.where(label ^ wrong, 1.0, -1.0)[:, None] * x)
            p = torch.full((n,), 1 / n, dtype=torch.float64)
            start = torch.tensor([sure, 0.0], dtype=torch.float64)
            at = _descended(u, p, start, gamma)
            found.append(mislabelled_share(u @ at, gamma).item() - wrong.mean())
        middle, low, high = mean_interval(np.array(found), 0.99)
        largest = max(largest, abs(middle))
        rows += curve([share], [middle + share], f"sure preferences, fits to n = {n}")
        lines.append(
            _near(f"sure preferences, share {share:g}: estimate minus truth", middle, low, high)
        )
    usual = _closed_form(2.0, float(expit(2.0)), gamma)
    lines.append(
        Measurement(
            "preferences of margin 2 and no flips: the estimate is above 0",
            Verdict.HOLDS if usual > 0.01 else Verdict.REFUTED,
            f"{usual:.4f}, and {expit(-2.0):.4f} of the labels by chance",
        )
    )
    table = panel(rows, "share of the labels turned round", "estimate", guide="y = x")
    figure = (
        f"off by at most {largest:.4f} where preferences are sure; {usual:.3f} without any flips at"
        " margins of 2"
    )
    return conclude(figure, lines, {"what is called mislabelled": table})


def _aim(gamma: float, right: float) -> float:
    """The margin of least expected loss where one response wins with the chance `right`."""

    def loss(m: float) -> float:
        both = losses.hoelder_loss(torch.tensor([m, -m], dtype=torch.float64), gamma)
        return float(right * both[0] + (1 - right) * both[1])

    return float(minimize_scalar(loss, bounds=(0, 10), options={"xatol": 1e-10}).x)


def _closed_form(size: float, right: float, gamma: float) -> float:
    """1 - E s E s^gamma / E s^(1 + gamma) where s is sigma(size) with the chance `right`, else
    sigma(-size)."""
    s = np.array([expit(size), expit(-size)])
    p = np.array([right, 1 - right])
    return float(1 - (p @ s) * (p @ s**gamma) / (p @ s ** (1 + gamma)))


def _descended(u: Tensor, p: Tensor, start: Tensor, gamma: float) -> Tensor:
    """Where 15 steps of gradient descent on the Hoelder loss from the true parameter end: its slope
    is next to nothing there."""
    w = start.clone()
    for _ in range(15):
        slope = jacobian(lambda w: mean(losses.hoelder_loss(u @ w, gamma), p), w)
        w = w - 4.0 * slope
    return w


def _near(what: str, middle: float, low: float, high: float, room: float = 0.01) -> Measurement:
    figure = f"{middle:.4f} [{low:.4f}, {high:.4f}], room {room:g}"
    if low > room or high < -room:
        return Measurement(what, Verdict.REFUTED, figure, counterexample=figure)
    if max(abs(low), abs(high)) > 2 * room or not math.isfinite(middle):
        return Measurement(what, Verdict.INCONCLUSIVE, figure, decides="more samples")
    return Measurement(what, Verdict.HOLDS, figure)


CLAIMS = (
    Claim(
        "redescending-losses",
        "arXiv:2505.17859v2, abstract, Theorem 3 and Corollary 1",
        "Hoelder-DPO redescends: the influence of a far flipped pair is 0; no earlier loss does",
        "The influence of a flipped pair on theta goes to 0 as its rejected response's reward goes"
        " to infinity (Definition 2) for the loss of Hoelder-DPO (Corollary 1), and not for DPO,"
        " IPO, cDPO, rDPO and Dr. DPO (Theorem 3), nor for any alignment method before (abstract).",
        "Bounded gradients of the log-policy, a positive definite Hessian at the clean optimum.",
        "Log-linear Bradley-Terry worlds: influence functions at the population's optimum of each"
        " loss, compared with fits that hold one flipped pair in a million, for pairs at distances"
        " 1 to 100; Hoelder-DPO at gamma = 1. Slopes of all losses of a pair at a reward of 1000."
        " Dr. DPO's influence has the clean population's E sigma^(1/b) in its denominator, where"
        " Lemma 6 takes the flipped pairs': it goes to 0 as sigma^(1/b). EXO and the clipping of"
        " chi-PO are of 2024.",
        "An influence that stays above 1e-6 for Hoelder-DPO, or falls below for one of the others."
        " Held against DPO, IPO, cDPO and rDPO only, it holds.",
        redescending_losses,
    ),
    Claim(
        "mislabelled-share",
        "derived; on arXiv:2505.17859v2, Prop. 1 and Eq. (27)",
        "the estimated share of wrong labels counts chance as well, and is right without chance",
        "The estimate 1 - E sigma E sigma^gamma / E sigma^(1 + gamma) of Hoelder-DPO tends to the"
        " share of flipped labels where all preferences are sure; in a Bradley-Terry world it is"
        " above 0 with no flips, by the closed form of its margins. The loss as its authors' code"
        " has it aims at the margin logit(q)/(2 - gamma), Bradley and Terry's at gamma = 1 only;"
        " from gamma = 2 on, their choice, it has no minimiser there.",
        "Flips that do not depend on the pair. What the paper calls tail contamination, E"
        " sigma^gamma of flipped pairs nearly 0, is that preferences are sure.",
        "Closed forms with two margins; fits by gradient descent from the true policy on samples"
        " with 0 to 40 % flips and margins of 12.",
        "An estimate more than 0.01 off where preferences are sure. At margins of 3 it is.",
        mislabelled_share_estimate,
        Kind.DERIVED,
    ),
)
