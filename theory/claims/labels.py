"""Claims on labels that are uncertain: the worst labels of a pair, and the worst ranking of a
list."""

from itertools import permutations

import numpy as np
import torch
from scipy.optimize import linprog

from theory.claims.ledger import (
    Claim,
    Finding,
    Kind,
    Row,
    conclude,
    curve,
    equality,
    inequality,
    panel,
    pick,
)
from theory.duals import chi2_ball_dual
from theory.losses import chi2_flips, dpo_loss, label_robust_loss, robust_ranking_loss


def chi2_label_penalty(
    profile: str, seed: int, *, power: float = 0.5, reach: float = 1.0
) -> Finding:
    """sup over the chi-squared ball of two labels = cDPO + (rho eps (1 - eps))^power |m|, the
    chance of the worse label cut at `reach`."""
    count = pick(profile, 300, 3000, 100_000)
    rng = np.random.default_rng(seed)
    m, eps, rho = (
        torch.from_numpy(x)
        for x in (
            rng.normal(0, 3, count),
            rng.uniform(0.01, 0.6, count),
            rng.exponential(0.5, count),
        )
    )
    both, chance = torch.stack([dpo_loss(m), dpo_loss(-m)], 1), torch.stack([1 - eps, eps], 1)
    worst = chi2_ball_dual(both, chance, rho).value
    plain = (chance * both).sum(1)
    penalty = (rho * eps * (1 - eps)) ** power * m.abs()
    room = torch.where(m > 0, 1 - eps, eps) * reach  # to a certain label
    inside = (rho * eps * (1 - eps)).sqrt() <= torch.where(m > 0, 1 - eps, eps)
    scale = 1 + m.abs()
    error = ((worst - plain - penalty).abs() / scale)[inside]
    k = int(error.argmax())
    case = [x[inside][k].item() for x in (m, eps, rho, worst, plain, penalty)]
    cut = ((worst - plain - room * m.abs()).abs() / scale)[~inside]
    j = int(cut.argmax())
    gone = [x[~inside][j].item() for x in (m, eps, rho, worst, plain)]
    ours = label_robust_loss(m, chi2_flips(eps, rho))
    lines = [
        equality(
            "worst of the two labels - cDPO against the penalty, the chances within [0, 1]",
            error.max().item(),
            1e-9,
            _case(("m", "eps", "rho", "worst", "cDPO", "penalty"), case),
        ),
        equality(
            "the same where they would leave [0, 1]: all of the label turns",
            cut.max().item(),
            1e-9,
            _case(("m", "eps", "rho", "worst", "cDPO"), gone),
        ),
        equality(
            "the loss of the trainer and of the fits against the ball of two labels",
            ((ours - worst).abs() / scale).max().item(),
            1e-9,
        ),
    ]
    rows = list[Row]()
    grid = torch.linspace(-4, 4, 81, dtype=torch.float64)
    for flip in (0.05, 0.2, 0.5):
        low_high = chi2_flips(torch.full_like(grid, flip), 0.25)
        rows += curve(grid, label_robust_loss(grid, low_high), f"eps = {flip:g}")
    figure = (
        f"exact to {error.max().item():.0e} in {int(inside.sum())} cases, and to"
        f" {cut.max().item():.0e} in {int((~inside).sum())} where the penalty is cut"
    )
    return conclude(figure, lines, {"robust loss, rho = 0.25": panel(rows, "margin", "loss")})


def _case(names: tuple[str, ...], numbers: list[float]) -> str:
    return ", ".join(f"{name} = {x:.8g}" for name, x in zip(names, numbers, strict=True))


def worst_ranking(profile: str, seed: int, *, share: float = 1.0) -> Finding:
    """sup over TV(Q, point mass) <= rho of E_Q PL: (1 - r) PL + r PL(ascending), r = rho share."""
    rng = np.random.default_rng(seed)
    error, lowest, example, cases = 0.0, np.inf, "", 0
    for _ in range(pick(profile, 20, 100, 1000)):
        k, rho = int(rng.integers(2, 6)), float(rng.uniform(0, 0.9))
        scores = rng.normal(0, 2, k)
        every = np.array(
            [_negative_log_likelihood(scores[list(r)]) for r in permutations(range(k))]
        )
        n = len(every)  # the first of them is the recorded one
        start = np.eye(n)[0]
        # q = start - a + b, sum a = sum b <= rho
        found = linprog(
            -np.concatenate([-every, every]),
            A_eq=np.concatenate([np.ones(n), -np.ones(n)])[None],
            b_eq=[0.0],
            A_ub=np.concatenate([np.ones(n), np.zeros(n)])[None],
            b_ub=[rho],
            bounds=[(0, mass) for mass in start] + [(0, None)] * n,
        )
        truth = every[0] - float(found.fun)
        ours = robust_ranking_loss(torch.from_numpy(scores), rho * share).item()
        cases += 1
        if abs(ours - truth) / truth > error:
            error = abs(ours - truth) / truth
            example = (
                f"scores {scores.round(4).tolist()}, rho = {rho:.4f}: {truth:.8g}, not {ours:.8g}"
            )
        ascending = _negative_log_likelihood(np.sort(scores))
        lowest = min(lowest, ascending / every.max())
    m, rho = torch.from_numpy(rng.normal(0, 3, 200)), 0.3
    pairs = robust_ranking_loss(torch.stack([m, torch.zeros_like(m)], 1), rho * share)
    label = dpo_loss(m) + rho * m.clamp(min=0)
    lines = [
        equality("the decomposition against a program over all rankings", error, 1e-9, example),
        inequality("loss of the ascending ranking over the largest of all", lowest, slack=1e-12),
        equality(
            "two responses: l(m) + rho m where m > 0", (pairs - label).abs().max().item(), 1e-12
        ),
    ]
    return conclude(f"exact to {error:.0e} in {cases} lists of 2 to 5 responses", lines)


def _negative_log_likelihood(scores: np.ndarray) -> float:
    """Plackett and Luce's, choice by choice."""
    return float(sum(np.log(np.exp(scores[k:] - scores[k]).sum()) for k in range(len(scores))))


CLAIMS = (
    Claim(
        "label-chi2-is-a-penalty",
        "derived; named in the abstract of arXiv:2510.23590v1 (DPO-PRO)",
        "chi-squared robustness of a label is DPO plus a penalty on confidence",
        "Where only the label of a pair is uncertain, of nominal chances (1 - eps, eps), the worst"
        " expected DPO loss within chi-squared rho is (1 - eps) l(m) + eps l(-m) + sqrt(rho eps (1"
        " - eps)) |m|. Where that takes the chance of the worse label beyond 1, it is that label's"
        " loss. The abstract says that the robust loss is a regularised DPO loss which penalises"
        " overconfidence under weak preference signals; the form is derived. Proof: l(-m) - l(m) ="
        " m, so that the expected loss is linear in the chance t of the other label, and the ball"
        " is |t - eps| <= sqrt(rho eps (1 - eps)).",
        "The logistic loss; eps from 0.01 to 0.6.",
        "The dual of the chi-squared ball on two atoms, l(m) and l(-m), at random m, eps and rho,"
        " less the loss of the nominal labels.",
        "A penalty of another size: with the exponent 0.55 for the root, or with a chance of the"
        " worse label cut at 0.9 of the way, it fails.",
        chi2_label_penalty,
        Kind.DERIVED,
    ),
    Claim(
        "worst-ranking-is-ascending",
        "arXiv:2607.01715v1, abstract",
        "the worst ranking within total variation sorts the scores from below",
        "The worst Plackett–Luce loss over all laws of the ranking of K responses within total"
        " variation rho of the recorded one is (1 - rho) times the loss of that ranking plus rho"
        " times that of the ranking in ascending order of the scores; for two responses, l(m) + rho"
        " m where m > 0.",
        "Finitely many responses; the recorded ranking has all the nominal mass.",
        "A linear program over all K! rankings of random lists, K from 2 to 5, whose losses are"
        " computed choice by choice.",
        "A program that finds more or less (with 1.1 rho in the sum it does), or a ranking that is"
        " worse than the ascending one.",
        worst_ranking,
    ),
)
