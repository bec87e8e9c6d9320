"""Losses of one pair, or one response, as pure elementwise functions: numbers in, losses of the
same shape out.

A margin m is beta times the difference of the two log-ratios, as in `theory.losses.dpo_loss`; a
log-ratio is log pi_theta(y|x) - log pi_ref(y|x), summed over the tokens. Any functional of
`theory.functionals` reduces what comes out.
"""

import math
from inspect import isfunction
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid


def dpo_loss(margin: Tensor) -> Tensor:
    """log(1 + exp(-m)), the pointwise DPO loss of the margin m = beta w.u, elementwise and without
    overflow.

    Section 4.1, arXiv:2502.01930v4. In the log-linear world m = beta (theta - theta_ref).u; for a
    language model m is beta times the difference of the two log-ratios.

    Args:
        margin: (...) margins m, numbers without a unit.

    Returns:
        (...) losses in nats, of the dtype and device of the margins.

    >>> import torch
    >>> from theory import dpo_loss
    >>> dpo_loss(torch.tensor([0.0, 2.0]))
    tensor([0.6931, 0.1269])
    >>> dpo_loss(torch.tensor(-1000.0)).item()
    1000.0
    """
    return -logsigmoid(margin)


def ipo_loss(
    chosen_ratio: Tensor,
    rejected_ratio: Tensor,
    beta: float,
    chosen_length: Tensor | None = None,
    rejected_length: Tensor | None = None,
) -> Tensor:
    """IPO, (Delta - 1/(2 beta))² with Delta the difference of the log-ratios. Eq. (17),
    arXiv:2310.12036, whose tau is beta.

    With the lengths in tokens each log-ratio is first averaged over its tokens, which is what TRL
    does; without them Delta is the sum that the theory needs.

    Args:
        chosen_ratio: (...) log-ratios of the chosen responses, in nats.
        rejected_ratio: (...) log-ratios of the rejected responses, in nats.
        beta: > 0, in 1/nats: 1/(2 beta) is the gap that is aimed at.
        chosen_length: (...) tokens of the chosen responses, or None.
        rejected_length: (...) tokens of the rejected responses, or None.

    Returns:
        (...) losses, in squared nats.

    Raises:
        ValueError: the length of only one of the responses.

    >>> import torch
    >>> from theory import ipo_loss
    >>> chosen, rejected = torch.tensor([3.0, 1.0]), torch.tensor([1.0, 0.0])
    >>> ipo_loss(chosen, rejected, beta=0.5)  # gaps of 2 and 1, where 1 is aimed at
    tensor([1., 0.])
    """
    if (chosen_length is None) != (rejected_length is None):
        raise ValueError(
            "give the lengths of both responses (averages over tokens) or of none (sums), not of"
            " one."
        )
    if chosen_length is not None and rejected_length is not None:
        chosen_ratio, rejected_ratio = (
            chosen_ratio / chosen_length,
            rejected_ratio / rejected_length,
        )
    return (chosen_ratio - rejected_ratio - 1 / (2 * beta)) ** 2


def hinge_loss(margin: Tensor) -> Tensor:
    """(1 - m)_+, SLiC's loss on log-ratios. arXiv:2305.10425; in this form arXiv:2309.06657.

    Args:
        margin: (...) margins m, numbers without a unit.

    Returns:
        (...) losses, in the unit of the margins.

    >>> import torch
    >>> from theory import hinge_loss
    >>> hinge_loss(torch.tensor([-1.0, 0.5, 2.0]))
    tensor([2.0000, 0.5000, 0.0000])
    """
    return torch.relu(1 - margin)


def cdpo_loss(margin: Tensor, flip: float) -> Tensor:
    """Conservative DPO, (1 - eps) l(m) + eps l(-m): label smoothing at the flip rate eps. Mitchell
    (2023), a note on DPO.

    Args:
        margin: (...) margins m, numbers without a unit.
        flip: eps in [0, 1/2), the chance that a label is wrong.

    Returns:
        (...) losses in nats.

    Raises:
        ValueError: a flip rate outside of [0, 1/2).

    >>> import torch
    >>> from theory import cdpo_loss
    >>> cdpo_loss(torch.tensor([0.0, 2.0]), flip=0.1)  # l(m) + eps m
    tensor([0.6931, 0.3269])
    """
    _require_flip(flip)
    return (1 - flip) * dpo_loss(margin) + flip * dpo_loss(-margin)


def rdpo_loss(margin: Tensor, flip: float) -> Tensor:
    """Robust DPO, ((1 - eps) l(m) - eps l(-m))/(1 - 2 eps), unbiased under flips at the rate eps.
    arXiv:2403.00409.

    Not bounded below for eps > 0, and not convex in m.

    Args:
        margin: (...) margins m, numbers without a unit.
        flip: eps in [0, 1/2), the chance that a label is wrong.

    Returns:
        (...) losses in nats, which may be negative.

    Raises:
        ValueError: a flip rate outside of [0, 1/2).

    >>> import torch
    >>> from theory import rdpo_loss
    >>> rdpo_loss(torch.tensor([0.0, 2.0]), flip=0.1)  # l(m) - eps m/(1 - 2 eps)
    tensor([ 0.6931, -0.1231])
    """
    _require_flip(flip)
    return ((1 - flip) * dpo_loss(margin) - flip * dpo_loss(-margin)) / (1 - 2 * flip)


def chi2_flips(flip: Tensor, radius: float | Tensor) -> tuple[Tensor, Tensor]:
    """The least and the largest chance of a flipped label within the chi-squared radius rho of eps:
    eps -+ sqrt(rho eps (1 - eps)), cut to [0, 1].

    The two labels of a pair have chi2 = (t - eps)²/eps + (t - eps)²/(1 - eps); derived, for the set
    of DPO-PRO, arXiv:2510.23590v1.

    Args:
        flip: (...) eps in [0, 1], the chance that a recorded label is wrong.
        radius: rho >= 0, a number or (...) of them.

    Returns:
        Two tensors (...) of probabilities.

    >>> import torch
    >>> from theory import chi2_flips
    >>> chi2_flips(torch.tensor([0.0, 0.2, 0.5]), 0.25)
    (tensor([0.0000, 0.0000, 0.2500]), tensor([0.0000, 0.4000, 0.7500]))
    """
    reach = (radius * flip * (1 - flip)) ** 0.5
    return (flip - reach).clamp(min=0), (flip + reach).clamp(max=1)


def tv_flips(flip: Tensor, radius: float | Tensor) -> tuple[Tensor, Tensor]:
    """The least and the largest chance of a flipped label within the total variation rho of eps:
    eps -+ rho, cut to [0, 1]. arXiv:2607.01715v1, for two responses.

    Args:
        flip: (...) eps in [0, 1], the chance that a recorded label is wrong.
        radius: rho >= 0, a number or (...) of them.

    Returns:
        Two tensors (...) of probabilities.

    >>> import torch
    >>> from theory import tv_flips
    >>> tv_flips(torch.tensor([0.0, 0.5]), 0.25)
    (tensor([0.0000, 0.2500]), tensor([0.2500, 0.7500]))
    """
    return (flip - radius).clamp(min=0), (flip + radius).clamp(max=1)


def label_robust_loss(margin: Tensor, flips: tuple[Tensor, Tensor]) -> Tensor:
    """The largest (1 - t) l(m) + t l(-m) = l(m) + t m over a <= t <= b: l(m) + max(a m, b m), where
    only the label of a pair is uncertain.

    Convex in m, with a kink at m = 0. With a, b = eps -+ c it is cDPO plus the penalty c |m| on the
    model's confidence, arXiv:2510.23590v1; with a, b = 0, rho it is (1 - rho) l(m) + rho max(l(m),
    l(-m)), arXiv:2607.01715v1 for two responses.

    Args:
        margin: (...) margins m, numbers without a unit.
        flips: a and b, (...) each or ones that broadcast, as from `chi2_flips` or `tv_flips`.

    Returns:
        (...) losses in nats.

    >>> import torch
    >>> from theory import chi2_flips, label_robust_loss
    >>> flips = chi2_flips(torch.tensor(0.2), 0.25)  # 0.2 -+ 0.2
    >>> label_robust_loss(torch.tensor([-2.0, 0.0, 2.0]), flips)  # l(m), and 0.4 m where m > 0
    tensor([2.1269, 0.6931, 0.9269])
    """
    low, high = flips
    return dpo_loss(margin) + torch.maximum(low * margin, high * margin)


def plackett_luce_loss(scores: Tensor) -> Tensor:
    """The negative log-likelihood of a ranking of K responses under Plackett and Luce:
    sum_k log sum_{j >= k} exp(s_j) - s_k.

    For two responses it is DPO's loss of the margin s_1 - s_2. arXiv:2305.18290.

    Args:
        scores: (..., K) scores s, beta times log-ratios, the response ranked first in front.

    Returns:
        (...) losses in nats.

    >>> import torch
    >>> from theory import plackett_luce_loss
    >>> plackett_luce_loss(torch.tensor([[2.0, 0.0, -1.0], [0.0, 0.0, 0.0]]))  # of 3! rankings
    tensor([0.4831, 1.7918])
    """
    rest = torch.logcumsumexp(scores.flip(-1), -1).flip(-1)
    return (rest - scores).sum(-1)


def robust_ranking_loss(scores: Tensor, radius: float) -> Tensor:
    """(1 - rho) PL(ranking) + rho PL(worst ranking): the worst expected loss over all laws of the
    ranking of K responses within total variation rho of the recorded one. arXiv:2607.01715v1.

    Of the K! rankings the worst one sorts the scores from below: O(K log K). Exchanging neighbours
    of which the first has the larger score raises the loss.

    Args:
        scores: (..., K) scores, the response ranked first in front.
        radius: rho in [0, 1].

    Returns:
        (...) losses in nats, convex in the scores.

    Raises:
        ValueError: a radius outside of [0, 1].

    >>> import torch
    >>> from theory import robust_ranking_loss
    >>> robust_ranking_loss(torch.tensor([2.0, 0.0]), 0.25)  # l(2) + rho 2
    tensor(0.6269)
    """
    if not 0 <= radius <= 1:
        raise ValueError(f"the radius is a probability, between 0 and 1, got {radius}.")
    worst = plackett_luce_loss(scores.sort(-1).values)
    return (1 - radius) * plackett_luce_loss(scores) + radius * worst


def dpo_norm_loss(
    chosen_ratio: Tensor,
    rejected_ratio: Tensor,
    beta: float,
    chosen_length: Tensor,
    rejected_length: Tensor,
) -> Tensor:
    """Length-normalised DPO: DPO of log-ratios that are averaged over their tokens, so that long
    responses have no larger margins. TRL 1.16, `sigmoid_norm`.

    Args:
        chosen_ratio: (...) log-ratios of the chosen responses, in nats.
        rejected_ratio: (...) log-ratios of the rejected responses, in nats.
        beta: > 0, in tokens/nats: a margin is a difference of averages, so that beta is larger than
            DPO's by about the length of a response.
        chosen_length: (...) tokens of the chosen responses.
        rejected_length: (...) tokens of the rejected responses.

    Returns:
        (...) losses in nats.

    >>> import torch
    >>> from theory import dpo_norm_loss
    >>> four, two = torch.tensor([4.0]), torch.tensor([2.0])
    >>> dpo_norm_loss(four, two, 1.0, chosen_length=four, rejected_length=two)  # 1 a token each
    tensor([0.6931])
    """
    return dpo_loss(beta * (chosen_ratio / chosen_length - rejected_ratio / rejected_length))


def exo_loss(margin: Tensor, flip: float) -> Tensor:
    """EXO of a pair, KL((sigma(m), sigma(-m)) || (1 - eps, eps)), whose minimum 0 is at sigma(m) =
    1 - eps. Eq. (16), arXiv:2402.00856.

    Args:
        margin: (...) margins m, numbers without a unit.
        flip: eps in (0, 1/2), the smoothing of the labels; the paper takes 1e-3.

    Returns:
        (...) losses in nats, not convex in m.

    Raises:
        ValueError: eps outside of (0, 1/2).

    >>> import torch
    >>> from theory import exo_loss
    >>> exo_loss(torch.tensor([0.0]), flip=0.1)
    tensor([0.5108])
    """
    _require_flip(flip)
    if flip == 0:
        raise ValueError("exo needs a flip rate above 0, got 0: the KL to (1, 0) is infinite.")
    return torch.sigmoid(margin) * (logsigmoid(margin) - math.log1p(-flip)) + torch.sigmoid(
        -margin
    ) * (logsigmoid(-margin) - math.log(flip))


def nca_loss(chosen_reward: Tensor, rejected_reward: Tensor) -> Tensor:
    """NCA of a pair, l(r+) + (l(-r+) + l(-r-))/2: noise contrast of each response with the
    reference, against a falling likelihood of the chosen ones. arXiv:2402.05369v3.

    Args:
        chosen_reward: (...) r+, beta times the log-ratios of the chosen responses.
        rejected_reward: (...) r-, the same of the rejected responses.

    Returns:
        (...) losses in nats.

    >>> import torch
    >>> from theory import nca_loss
    >>> nca_loss(torch.tensor([0.0]), torch.tensor([0.0]))  # 2 log 2
    tensor([1.3863])
    """
    below = dpo_loss(-chosen_reward) + dpo_loss(-rejected_reward)
    return dpo_loss(chosen_reward) + below / 2


def bco_loss(chosen_reward: Tensor, rejected_reward: Tensor) -> Tensor:
    """BCO of a pair without reward shift, l(r+) + l(-r-): a classifier of single responses.
    arXiv:2404.04656v2, whose shift, a running mean of the rewards, TRL's `bco_pair` has not either.

    Args:
        chosen_reward: (...) r+, beta times the log-ratios of the chosen responses.
        rejected_reward: (...) r-, the same of the rejected responses.

    Returns:
        (...) losses in nats.

    >>> import torch
    >>> from theory import bco_loss
    >>> bco_loss(torch.tensor([0.0]), torch.tensor([0.0]))  # 2 log 2
    tensor([1.3863])
    """
    return dpo_loss(chosen_reward) + dpo_loss(-rejected_reward)


def sppo_loss(chosen_ratio: Tensor, rejected_ratio: Tensor, beta: float) -> Tensor:
    """SPPO with hard labels, (r+ - 1/(2 beta))² + (r- + 1/(2 beta))².
    arXiv:2405.00675, with win rates of 1 and 0 and eta = 1/beta.

    Args:
        chosen_ratio: (...) r+, log-ratios of the chosen responses, in nats.
        rejected_ratio: (...) r-, log-ratios of the rejected responses, in nats.
        beta: > 0, in 1/nats.

    Returns:
        (...) losses, in squared nats.

    >>> import torch
    >>> from theory import sppo_loss
    >>> sppo_loss(torch.tensor([0.0, 1.0]), torch.tensor([0.0, -1.0]), beta=0.5)
    tensor([2., 0.])
    """
    return (chosen_ratio - 0.5 / beta) ** 2 + (rejected_ratio + 0.5 / beta) ** 2


def apo_zero_loss(chosen_reward: Tensor, rejected_reward: Tensor) -> Tensor:
    """APO-zero, sigma(-r+) + sigma(r-): chosen responses up, rejected ones down. Eq. (7),
    arXiv:2408.06266; for chosen responses that are better than the reference's own.

    Args:
        chosen_reward: (...) r+, beta times the log-ratios of the chosen responses.
        rejected_reward: (...) r-, the same of the rejected responses.

    Returns:
        (...) losses between 0 and 2, without a unit.

    >>> import torch
    >>> from theory import apo_zero_loss
    >>> apo_zero_loss(torch.tensor([0.0, 9.0]), torch.tensor([0.0, 9.0]))
    tensor([1., 1.])
    """
    return torch.sigmoid(-chosen_reward) + torch.sigmoid(rejected_reward)


def apo_down_loss(chosen_reward: Tensor, rejected_reward: Tensor) -> Tensor:
    """APO-down, sigma(r+) + sigma(r- - r+): both down, rejected responses further. Eq. (8),
    arXiv:2408.06266; for chosen responses that are worse than the reference's own.

    Args:
        chosen_reward: (...) r+, beta times the log-ratios of the chosen responses.
        rejected_reward: (...) r-, the same of the rejected responses.

    Returns:
        (...) losses between 0 and 2, without a unit.

    >>> import torch
    >>> from theory import apo_down_loss
    >>> apo_down_loss(torch.tensor([0.0]), torch.tensor([0.0]))
    tensor([1.])
    """
    return torch.sigmoid(chosen_reward) + torch.sigmoid(rejected_reward - chosen_reward)


def discopop_loss(margin: Tensor, temperature: float = 0.05) -> Tensor:
    """DiscoPOP, (1 - s) l(m) + s exp(-m) with s = sigma(m/tau): logistic where the margin is
    negative, exponential where it is positive. Eq. (5), arXiv:2406.08414.

    Args:
        margin: (...) margins m, numbers without a unit.
        temperature: tau > 0, in the unit of the margins.

    Returns:
        (...) losses in nats, not convex in m.

    Raises:
        ValueError: a temperature that is not positive and finite.

    >>> import torch
    >>> from theory import discopop_loss
    >>> discopop_loss(torch.tensor([-2.0, 0.0, 2.0]))
    tensor([2.1269, 0.8466, 0.1353])
    """
    _require_positive("temperature", temperature)
    switch = margin / temperature
    # as one exponent, for exp(-m) overflows where its weight vanishes
    return torch.sigmoid(-switch) * dpo_loss(margin) + torch.exp(logsigmoid(switch) - margin)


def hoelder_loss(margin: Tensor, gamma: float) -> Tensor:
    """Hoelder-DPO, -(1 + gamma) sigma(m)^gamma + gamma sigma(m)^(1 + gamma), as its authors' code
    has it. arXiv:2505.17859v2.

    Its slope, -gamma (1 + gamma) sigma(m)^gamma (1 - sigma(m))², redescends: a pair that the policy
    takes for mislabelled, m -> -inf, loses its pull. For gamma -> 0, (loss + 1)/gamma tends to
    -log sigma(m) + sigma(m) - 1, whose slope is DPO's times 1 - sigma(m): DPO's where m -> -inf,
    and not elsewhere, for the sum over the sample stands in the place of a normalising integral.
    Where one response wins with the chance q, the loss is least at the margin logit(q)/(2 - gamma),
    DPO's for gamma = 1, and from gamma = 2 on, the authors' choice, at none. Derived.

    Args:
        margin: (...) margins m, numbers without a unit.
        gamma: > 0; the larger, the smaller the pull of pairs far on the wrong side.

    Returns:
        (...) losses between -1 and 0, without a unit, not convex in m.

    Raises:
        ValueError: a gamma that is not positive and finite.

    >>> import torch
    >>> from theory import hoelder_loss
    >>> hoelder_loss(torch.tensor([0.0, 20.0]), gamma=2.0)
    tensor([-0.5000, -1.0000])
    """
    _require_positive("gamma", gamma)
    power = torch.exp(gamma * logsigmoid(margin))  # sigma^gamma, to its digits far in the tail
    return power * (gamma * torch.sigmoid(margin) - (1 + gamma))


def winsorised_loss(margin: Tensor, limit: float) -> Tensor:
    """DPO of margins that are winsorised: m below -c or above c counts as -c or c, so that no loss
    is above log(1 + exp(c)) and pairs beyond the limits have no pull.

    With the link `chi_link` and c = 2 R_max it is chi-PO, arXiv:2407.13399v3. Capping the largest
    losses is also the second step of wDPO, arXiv:2603.07211v1, which does so softly and corrects
    labels before it: its formulas have not been read.

    Args:
        margin: (...) margins m, numbers without a unit.
        limit: c > 0, in the unit of the margins.

    Returns:
        (...) losses in nats, not convex in m.

    Raises:
        ValueError: a limit that is not positive and finite.

    >>> import torch
    >>> from theory import winsorised_loss
    >>> winsorised_loss(torch.tensor([-9.0, -1.0, 0.0, 9.0]), limit=1.0)
    tensor([1.3133, 1.3133, 0.6931, 0.3133])
    """
    _require_positive("limit", limit)
    return dpo_loss(margin.clamp(-limit, limit))


def simpo_loss(
    chosen: Tensor,
    rejected: Tensor,
    beta: float,
    target_margin: float,
    chosen_length: Tensor,
    rejected_length: Tensor,
) -> Tensor:
    """SimPO, l(beta (a+ - a-) - gamma) with a the mean log-probability of a token: DPO without a
    reference. arXiv:2405.14734.

    Args:
        chosen: (...) log-probabilities of the chosen responses under the policy, in nats.
        rejected: (...) log-probabilities of the rejected responses, in nats.
        beta: > 0, in tokens/nats; the paper takes 2 to 10.
        target_margin: gamma >= 0, the margin that is aimed at, a number without a unit.
        chosen_length: (...) tokens of the chosen responses.
        rejected_length: (...) tokens of the rejected responses.

    Returns:
        (...) losses in nats.

    Raises:
        ValueError: a target margin that is negative or not finite.

    >>> import torch
    >>> from theory import simpo_loss
    >>> one, two = torch.tensor([-2.0]), torch.tensor([-4.0])
    >>> simpo_loss(one, two, 1.0, 0.0, chosen_length=-one, rejected_length=-two)  # -1 a token each
    tensor([0.6931])
    """
    if not 0 <= target_margin < math.inf:
        raise ValueError(f"target_margin must not be negative, got {target_margin}.")
    return dpo_loss(beta * (chosen / chosen_length - rejected / rejected_length) - target_margin)


def orpo_loss(
    chosen: Tensor,
    rejected: Tensor,
    beta: float,
    chosen_length: Tensor,
    rejected_length: Tensor,
) -> Tensor:
    """The odds ratio term of ORPO, beta l(log odds(a+) - log odds(a-)) with a the mean
    log-probability of a token and odds(a) = e^a/(1 - e^a). Eqs. (4) and (7), arXiv:2403.07691.

    ORPO adds the SFT loss of the chosen responses to it (`token_mean`); beta is its lambda.

    Args:
        chosen: (...) log-probabilities of the chosen responses under the policy, in nats.
        rejected: (...) log-probabilities of the rejected responses, in nats.
        beta: > 0, weight of this term beside the SFT loss.
        chosen_length: (...) tokens of the chosen responses.
        rejected_length: (...) tokens of the rejected responses.

    Returns:
        (...) losses in nats.

    >>> import torch
    >>> from theory import orpo_loss
    >>> four, two = torch.tensor([4.0]), torch.tensor([2.0])
    >>> orpo_loss(-four, -two, 1.0, chosen_length=four, rejected_length=two)  # -1 a token each
    tensor([0.6931])
    """
    chosen, rejected = chosen / chosen_length, rejected / rejected_length
    return beta * dpo_loss(_log_odds(chosen) - _log_odds(rejected))


def kto_loss(
    ratio: Tensor,
    desirable: Tensor,
    reference_point: Tensor,
    *,
    beta: float,
    gain: float = 1.0,
    aversion: float = 1.0,
) -> Tensor:
    """KTO of single responses, lambda_y - v(y), v = lambda_D sigma(beta (r - z0)) or lambda_U
    sigma(beta (z0 - r)).

    arXiv:2402.01306; r is the log-ratio, desirable a mask, gain and aversion are lambda_D and
    lambda_U. The constant is subtracted in the form lambda sigma(-.), which keeps its digits.

    Args:
        ratio: (...) log-ratios r, in nats.
        desirable: (...) truth values, whether a response is one to reinforce.
        reference_point: z0, in nats; broadcasts against the log-ratios.
        beta: > 0, in 1/nats.
        gain: lambda_D > 0, weight of the desirable responses.
        aversion: lambda_U > 0, weight of the others.

    Returns:
        (...) losses between 0 and lambda_y, without a unit.

    >>> import torch
    >>> from theory import kto_loss
    >>> ratio, desirable = torch.tensor([0.0, 2.0, 2.0]), torch.tensor([True, True, False])
    >>> kto_loss(ratio, desirable, torch.tensor(0.0), beta=1.0)
    tensor([0.5000, 0.1192, 0.8808])
    """
    lam = torch.full_like(ratio, aversion).masked_fill(desirable, gain)
    advantage = beta * (ratio - reference_point)
    return lam * torch.sigmoid(torch.where(desirable, -advantage, advantage))


def rebel_loss(ratio_difference: Tensor, reward_difference: Tensor, eta: float) -> Tensor:
    """REBEL, (Delta/eta - (r1 - r2))²: log-ratios regressed on reward differences.
    arXiv:2404.16767.

    Args:
        ratio_difference: (...) Delta, difference of the two log-ratios, in nats.
        reward_difference: (...) r1 - r2, in the unit of the rewards.
        eta: step size > 0, in nats per unit of reward.

    Returns:
        (...) losses, in squared units of the rewards.

    >>> import torch
    >>> from theory import rebel_loss
    >>> rebel_loss(torch.tensor([2.0, 0.5]), torch.tensor([1.0, 1.0]), eta=0.5)
    tensor([9., 0.])
    """
    return (ratio_difference / eta - reward_difference) ** 2


# ------------------------------------------------------------------- links of f-divergences, f'(t)
def forward_kl_link(ratio: Tensor) -> Tensor:
    """1 - exp(-r), what takes the place of a log-ratio r in a margin where the policy is held to
    the reference by the forward KL. arXiv:2309.16240.

    Args:
        ratio: (...) log-ratios r, in nats.

    Returns:
        (...) numbers without a unit; below r = -80 that of r = -80, for float32 ends soon after.

    >>> import torch
    >>> from theory import forward_kl_link
    >>> forward_kl_link(torch.tensor([0.0, 1.0]))
    tensor([0.0000, 0.6321])
    """
    return -torch.expm1(_below_overflow(-ratio))


def jensen_shannon_link(ratio: Tensor) -> Tensor:
    """log 2 + log sigma(r), in the place of a log-ratio r: the Jensen-Shannon divergence.
    arXiv:2309.16240.

    Args:
        ratio: (...) log-ratios r, in nats.

    Returns:
        (...) numbers of at most log 2, in nats.

    >>> import torch
    >>> from theory import jensen_shannon_link
    >>> jensen_shannon_link(torch.tensor([1.0, 9.0]))
    tensor([0.3799, 0.6930])
    """
    return math.log(2) + logsigmoid(ratio)


def alpha_link(ratio: Tensor, alpha: float) -> Tensor:
    """(exp((alpha - 1) r) - 1)/(alpha - 1), in the place of a log-ratio r: the alpha-divergence in
    TRL's parameter, which is 1 - alpha of arXiv:2309.16240.

    alpha = 1 is DPO's own link, r, and alpha = 0 that of the forward KL.

    Args:
        ratio: (...) log-ratios r, in nats.
        alpha: any number.

    Returns:
        (...) numbers without a unit; where the exponent is above 80 that of 80.

    Raises:
        ValueError: an alpha that is not finite.

    >>> import torch
    >>> from theory import alpha_link
    >>> alpha_link(torch.tensor([0.0, 1.0]), 0.5)
    tensor([0.0000, 0.7869])
    """
    if not math.isfinite(alpha):
        raise ValueError(f"alpha must be finite, got {alpha}.")
    power = alpha - 1
    return ratio if power == 0 else torch.expm1(_below_overflow(power * ratio)) / power


def chi_link(ratio: Tensor) -> Tensor:
    """exp(r) + r, in the place of a log-ratio r: chi-PO, the KL with a chi-squared divergence
    beside it. arXiv:2407.13399v3.

    Args:
        ratio: (...) log-ratios r, in nats.

    Returns:
        (...) numbers without a unit; the exponential is that of 80 above r = 80.

    >>> import torch
    >>> from theory import chi_link
    >>> chi_link(torch.tensor([0.0, 1.0]))
    tensor([1.0000, 3.7183])
    """
    return torch.exp(_below_overflow(ratio)) + ratio


# ------------------------------------------------------------------ h of one-dimensional transport
def logistic(t: Tensor, beta: float) -> Tensor:
    """h(t) = log(1 + exp(-beta t)), at a difference t of quantiles. arXiv:2406.05882v1.

    Args:
        t: (...) differences of quantiles, in nats where they are of log-ratios.
        beta: slope > 0, in the inverse unit of t.

    Returns:
        (...) costs in nats.

    >>> import torch
    >>> from theory import logistic
    >>> logistic(torch.tensor([0.0, 1.0]), beta=2.0)
    tensor([0.6931, 0.1269])
    """
    return dpo_loss(beta * t)


def squared_hinge(t: Tensor, beta: float) -> Tensor:
    """h(t) = (beta - t)_+², beta the margin from which it vanishes. arXiv:2406.05882v1.

    Args:
        t: (...) differences of quantiles, in nats where they are of log-ratios.
        beta: margin, in the unit of t.

    Returns:
        (...) costs, in the squared unit of t.

    >>> import torch
    >>> from theory import squared_hinge
    >>> squared_hinge(torch.tensor([0.0, 1.0, 3.0]), beta=1.0)
    tensor([1., 0., 0.])
    """
    return torch.relu(beta - t) ** 2


def least_squares(t: Tensor, beta: float) -> Tensor:
    """h(t) = (beta - t)²; it also penalises a gap above beta. arXiv:2406.05882v1.

    Args:
        t: (...) differences of quantiles, in nats where they are of log-ratios.
        beta: the gap that is aimed at, in the unit of t.

    Returns:
        (...) costs, in the squared unit of t.

    >>> import torch
    >>> from theory import least_squares
    >>> least_squares(torch.tensor([0.0, 1.0, 3.0]), beta=1.0)
    tensor([1., 0., 4.])
    """
    return (beta - t) ** 2


# ------------------------------------------------------------------------------------------- checks
def _require_flip(flip: float) -> None:
    if not 0 <= flip < 0.5:
        raise ValueError(
            f"the flip rate must be in [0, 1/2), got {flip}: at 1/2 the labels say nothing."
        )


def _require_positive(name: str, value: float) -> None:
    if not 0 < value < math.inf:
        raise ValueError(f"{name} must be positive and finite, got {value}.")


def _below_overflow(exponent: Tensor) -> Tensor:
    return exponent.clamp(max=10.0 if exponent.dtype == torch.float16 else 80.0)


def _log_odds(logp: Tensor) -> Tensor:
    """log(p/(1 - p)); a probability that rounds to 1 in float32 counts as the next one below."""
    logp = logp.clamp(max=-max(torch.finfo(logp.dtype).eps, 2.0**-23))
    return logp - torch.log(-torch.expm1(logp))


EXPORTS: dict[str, Any] = {
    name: thing
    for name, thing in globals().items()
    if isfunction(thing) and thing.__module__ == __name__ and not name.startswith("_")
}
