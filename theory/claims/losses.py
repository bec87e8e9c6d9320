"""Claims on the pointwise loss: its score and its curvature. Appendix B.1 and Lemma 10, arXiv:2502.01930."""

import numpy as np
import torch
from torch.func import hessian, vmap

from theory.bounds import curvature
from theory.claims.ledger import Claim, Finding, conclude, equality, inequality, pick
from theory.objectives import dpo_loss


def score_and_hessian(profile: str, seed: int, *, power: int = 2, reach: float = 4.0) -> Finding:
    """Claim 1: Hess l = beta^power sigma(m) sigma(-m) x x', and |m| <= reach beta B."""
    count = pick(profile, 50, 500, 5000)
    rng = np.random.default_rng(seed)
    worst_hessian = 0.0
    reached, floor = np.inf, np.inf
    example_margin = example_floor = example_hessian = ""
    for beta, bound in ((0.1, 1.0), (1.0, 1.0), (3.0, 2.0)):
        w, psi1, psi2 = _ball(rng, count, 2 * bound), _ball(rng, count, 1.0), _ball(rng, count, 1.0)
        # the corner where the bound on the margin is met: antipodal features, theta and theta_ref at opposite ends
        w[0], psi1[0], psi2[0] = 2 * bound * np.eye(3)[0], np.eye(3)[0], -np.eye(3)[0]
        x = psi1 - psi2
        margin = beta * (w * x).sum(1)
        measured = vmap(hessian(lambda w, x, b=beta: dpo_loss(b * (w * x).sum())))(
            torch.from_numpy(w), torch.from_numpy(x)
        ).numpy()
        spread = np.exp(-np.abs(margin)) / (1 + np.exp(-np.abs(margin))) ** 2
        claimed = beta**power * spread[:, None, None] * x[:, :, None] * x[:, None, :]
        errors = np.abs(measured - claimed).max((1, 2))
        if errors.max() > worst_hessian:
            worst_hessian, i = float(errors.max()), int(errors.argmax())
            example_hessian = f"beta={beta}, w={w[i].round(4)}, x={x[i].round(4)}: Hessian {measured[i].round(6).tolist()}"
        largest = np.abs(margin).max()
        if reach * beta * bound / largest < reached:
            reached = reach * beta * bound / largest
            example_margin = f"beta={beta}, B={bound}, w=({2 * bound:g}, 0, 0), x=(2, 0, 0): |m| = {largest:.6g}"
        least = spread.min() * beta**2 / curvature(beta, bound)
        if least < floor:
            floor, example_floor = least, f"beta={beta}, B={bound}: sigma(m)sigma(-m) = {spread.min():.6g}"
    lines = [
        equality("Hessian of the loss against automatic differentiation", worst_hessian, 1e-10, example_hessian),
        inequality(f"|m| <= {reach:g} beta B", reached, example_margin),
        inequality("sigma(m) sigma(-m) >= its value at the largest margin", floor, example_floor),
    ]
    return conclude(f"Hessian error {worst_hessian:.0e}; margin bound met exactly ({reached:.3f})", lines)


def _ball(rng: np.random.Generator, count: int, radius: float) -> np.ndarray:
    v = rng.standard_normal((count, 3))
    return radius * v / np.linalg.norm(v, axis=1, keepdims=True) * rng.random((count, 1)) ** (1 / 3)


CLAIMS = (
    Claim(
        "score-and-hessian",
        "arXiv:2502.01930, App. B.1",
        "Hess l = beta² sigma(m) sigma(-m) x x', |m| <= 4 beta B",
        "The preference score is linear in theta with gradient x; the loss has the Hessian beta² sigma(m) sigma(-m) x x'; with "
        "||psi|| <= 1 and theta, theta_ref in the ball of radius B, |m| <= 4 beta B, so that sigma(m) sigma(-m) is at least its "
        "value there.",
        "||psi|| <= 1, ||theta||, ||theta_ref|| <= B.",
        "Hessians by automatic differentiation at random points of three settings; the corner of antipodal features is added.",
        "A Hessian that differs by more than 1e-10, a margin above 4 beta B, or a curvature below the floor.",
        score_and_hessian,
    ),
)
