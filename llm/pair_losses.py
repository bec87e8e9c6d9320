"""The losses of a pair that the trainer knows: their options, and which numbers of a pair each of
them takes.

The losses themselves are functions of `theory.losses`. One that stands in `PAIR_LOSSES` is an
objective of its own, the mean of it, and can stand under every robust objective as `--pair_loss`.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor

from llm.scores import Pairs
from theory import losses


def option(default: Any, text: str) -> Any:
    """A field that is also a command-line option with this help."""
    return field(default=default, metadata={"help": text})


@dataclass(frozen=True)
class PairParameters:
    """The parameters of a loss of a pair; those of an objective begin with them."""

    objective: str = option("dpo", "what is minimised")
    beta: float = option(
        0.1, "beta of the losses; of AOT: slope of the logistic h, or the margin of the other two"
    )
    pair_loss: str = option("dpo", "loss of a pair under a robust objective")
    flip: float | None = option(
        None, "cdpo, rdpo, exo, chi2_label, tv_label: rate of flipped labels, in [0, 1/2)"
    )
    label_rho: float | None = option(
        None,
        "chi2_label, tv_label: radius of the ball around the label of each pair, whose chances are"
        " those of the column label_confidence, or of --flip",
    )
    average_tokens: bool = option(
        True, "ipo: average log-ratios over tokens, as TRL does; false: sum, as the theory has it"
    )
    discopop_tau: float | None = option(
        None, "discopop: margin at which the logistic gives way to the exponential loss (0.05)"
    )
    gamma: float | None = option(
        None, "hoelder: power of the probability; the larger, the less pull of unlikely pairs"
    )
    limit: float | None = option(
        None, "winsorised: largest size of a margin (of beta times a difference of log-ratios)"
    )
    target_margin: float | None = option(None, "simpo: gamma, the margin that is aimed at")
    ld_alpha: float | None = option(
        None,
        "weight in [0, 1] of the tokens of a response beyond the length of the shorter one (LD-DPO,"
        " arXiv:2409.06411), in policy and reference",
    )
    link: str | None = option(
        None,
        "what takes the place of the log-ratios in a margin: forward_kl, jensen_shannon, alpha, chi"
        " (default: the log-ratios)",
    )
    link_alpha: float | None = option(
        None, "--link alpha: alpha as TRL has it, 1 minus that of arXiv:2309.16240"
    )


@dataclass(frozen=True)
class PairLoss:
    """All that is known of a loss of a pair.

    name, about: what it is called, and what it is in a line. source: the paper. value: losses (n,)
    of n pairs, a function of the parameters and the pairs. required, optional: its options beside
    beta. columns: what the data must have for it. sha256: of its source, where it is from outside;
    None of ours.

    A loss of log-probabilities, of one's own, under any name that is not taken yet:

    >>> from llm import PairLoss, make_objective, ObjectiveParameters, register
    >>> def bounded(p, s):
    ...     return (p.beta * (s.rejected_ratio - s.chosen_ratio)).sigmoid()
    >>> register(PairLoss("bounded", "the chance of an error", "your paper", bounded))
    'bounded'
    >>> make_objective(ObjectiveParameters("kldpo", rho=0.1, pair_loss="bounded")).couples
    True
    """

    name: str
    about: str
    source: str
    value: Callable[[PairParameters, Pairs], Tensor]
    required: tuple[str, ...] = ()
    optional: tuple[str, ...] = ()
    columns: tuple[str, ...] = ()
    sha256: str | None = None


@dataclass(frozen=True)
class Link:
    """A function of log-ratios that takes their place in a margin: f' of the f-divergence that
    holds the policy to the reference."""

    name: str
    about: str
    source: str
    value: Callable[[PairParameters, Tensor], Tensor]


_F_DPO = "Wang et al., arXiv:2309.16240"
_LINKS = (
    Link("forward_kl", "1 - exp(-r): forward KL", _F_DPO, lambda p, r: losses.forward_kl_link(r)),
    Link(
        "jensen_shannon",
        "log 2 + log sigma(r): Jensen-Shannon",
        _F_DPO,
        lambda p, r: losses.jensen_shannon_link(r),
    ),
    Link(
        "alpha",
        "(exp((a - 1) r) - 1)/(a - 1): alpha-divergence, a = --link_alpha",
        _F_DPO,
        lambda p, r: losses.alpha_link(r, given(p, "link_alpha")),
    ),
    Link(
        "chi",
        "exp(r) + r: KL and chi-squared; with winsorised and --limit 2 R_max it is chi-PO",
        "Huang et al., arXiv:2407.13399v3",
        lambda p, r: losses.chi_link(r),
    ),
)
LINKS = {link.name: link for link in _LINKS}


def linked_ratios(p: PairParameters, s: Pairs) -> tuple[Tensor, Tensor]:
    """The log-ratios of chosen and rejected responses, each (n,), or what --link makes of them."""
    if p.link is None and p.link_alpha is None:
        return s.chosen_ratio, s.rejected_ratio
    if p.link is not None and p.link not in LINKS:
        raise ValueError(f"unknown --link {p.link!r}; there are {', '.join(LINKS)}.")
    if p.link is None or (p.link == "alpha") != (p.link_alpha is not None):
        raise ValueError(
            f"--link alpha needs --link_alpha, and no other link takes it; got --link {p.link} and"
            f" --link_alpha {p.link_alpha}."
        )
    link = LINKS[p.link].value
    return link(p, s.chosen_ratio), link(p, s.rejected_ratio)


def margin(p: PairParameters, s: Pairs) -> Tensor:
    """m of Section 4.1, arXiv:2502.01930v4: beta times the difference of the log-ratios, or of what
    --link makes of them, (n,)."""
    chosen, rejected = linked_ratios(p, s)
    return p.beta * (chosen - rejected)


def given(p: PairParameters, name: str) -> float:
    """An option that the loss needs, which is there once the parameters are checked."""
    value = getattr(p, name)
    assert value is not None, name
    return value


def _ipo(p: PairParameters, s: Pairs) -> Tensor:
    lengths = (s.chosen_length, s.rejected_length) if p.average_tokens else ()
    return losses.ipo_loss(*linked_ratios(p, s), p.beta, *lengths)


def _rewards(p: PairParameters, s: Pairs) -> tuple[Tensor, Tensor]:
    return p.beta * s.chosen_ratio, p.beta * s.rejected_ratio


def _dpo_norm(p: PairParameters, s: Pairs) -> Tensor:
    ratios = linked_ratios(p, s)
    return losses.dpo_norm_loss(*ratios, p.beta, s.chosen_length, s.rejected_length)


def _discopop(p: PairParameters, s: Pairs) -> Tensor:
    temperature = 0.05 if p.discopop_tau is None else p.discopop_tau
    return losses.discopop_loss(margin(p, s), temperature)


def _simpo(p: PairParameters, s: Pairs) -> Tensor:
    lengths = s.chosen_length, s.rejected_length
    return losses.simpo_loss(s.chosen, s.rejected, p.beta, given(p, "target_margin"), *lengths)


def _orpo(p: PairParameters, s: Pairs) -> Tensor:
    lengths = s.chosen_length, s.rejected_length
    return losses.orpo_loss(s.chosen, s.rejected, p.beta, *lengths)


def _rebel(p: PairParameters, s: Pairs) -> Tensor:
    assert s.reward_difference is not None, "the data are checked for the rewards before training"
    chosen, rejected = linked_ratios(p, s)
    return losses.rebel_loss(chosen - rejected, s.reward_difference.to(chosen.dtype), 1 / p.beta)


_LINK = ("link", "link_alpha")
_MARGIN = (*_LINK, "ld_alpha")  # of losses of sums over tokens alone


def refuse_both(p: PairParameters) -> None:
    """Raise ValueError where --flip stands beside confidences in the data."""
    if p.flip is not None:
        raise ValueError(
            f"the data have a column label_confidence, and --flip is {p.flip}: both say how likely"
            " the labels are. Leave one of them out."
        )


def _label_ball(
    flips: Callable[[Tensor, float], tuple[Tensor, Tensor]], p: PairParameters, s: Pairs
) -> Tensor:
    """The loss of the worst labels; the nominal ones are certain where nothing else is said.

    At a margin of 0, where the worst label is not unique, the gradient is that of the mean of both
    ends.
    """
    m = margin(p, s)
    if s.confidence is not None:
        refuse_both(p)
        flip = 1 - s.confidence.to(m.dtype)
    else:
        flip = torch.full_like(m, 0.0 if p.flip is None else p.flip)
    return losses.label_robust_loss(m, flips(flip, given(p, "label_rho")))


_ALL = (
    PairLoss(
        "dpo",
        "the mean DPO loss",
        "Rafailov et al., arXiv:2305.18290",
        lambda p, s: losses.dpo_loss(margin(p, s)),
        optional=_MARGIN,
    ),
    PairLoss("ipo", "the mean IPO loss", "Azar et al., arXiv:2310.12036", _ipo, optional=_LINK),
    PairLoss(
        "cdpo",
        "DPO with smoothed labels",
        "Mitchell (2023)",
        lambda p, s: losses.cdpo_loss(margin(p, s), given(p, "flip")),
        ("flip",),
        _MARGIN,
    ),
    PairLoss(
        "chi2_label",
        "the worst labels within chi-squared --label_rho: a penalty on confidence (DPO-PRO)",
        "Kim et al., arXiv:2510.23590v1",
        partial(_label_ball, losses.chi2_flips),
        ("label_rho",),
        ("flip", *_MARGIN),
    ),
    PairLoss(
        "tv_label",
        "the worst labels within total variation --label_rho",
        "Wu et al., arXiv:2607.01715v1, for two responses",
        partial(_label_ball, losses.tv_flips),
        ("label_rho",),
        ("flip", *_MARGIN),
    ),
    PairLoss(
        "rdpo",
        "DPO unbiased under flipped labels",
        "Chowdhury et al., arXiv:2403.00409",
        lambda p, s: losses.rdpo_loss(margin(p, s), given(p, "flip")),
        ("flip",),
        _MARGIN,
    ),
    PairLoss(
        "hinge",
        "the mean hinge loss (SLiC)",
        "Zhao et al., arXiv:2305.10425",
        lambda p, s: losses.hinge_loss(margin(p, s)),
        optional=_MARGIN,
    ),
    PairLoss(
        "dpo_norm",
        "DPO of log-ratios averaged over tokens (length-normalised)",
        "TRL 1.16, `sigmoid_norm`",
        _dpo_norm,
        optional=_LINK,
    ),
    PairLoss(
        "exo",
        "KL from the policy's preference to the smoothed label",
        "Ji et al., arXiv:2402.00856",
        lambda p, s: losses.exo_loss(margin(p, s), given(p, "flip")),
        ("flip",),
        _MARGIN,
    ),
    PairLoss(
        "nca",
        "noise contrast of each response with the reference (NCA)",
        "Chen et al., arXiv:2402.05369v3",
        lambda p, s: losses.nca_loss(*_rewards(p, s)),
    ),
    PairLoss(
        "bco",
        "a classifier of single responses (BCO, without reward shift)",
        "Jung et al., arXiv:2404.04656v2",
        lambda p, s: losses.bco_loss(*_rewards(p, s)),
    ),
    PairLoss(
        "sppo",
        "log-ratios regressed on ±1/(2 beta) (SPPO, hard labels)",
        "Wu et al., arXiv:2405.00675",
        lambda p, s: losses.sppo_loss(s.chosen_ratio, s.rejected_ratio, p.beta),
    ),
    PairLoss(
        "rebel",
        "margins regressed on differences of rewards (REBEL on stored pairs, beta = 1/eta)",
        "Gao et al., arXiv:2404.16767; under a set: Sahu and Wells, arXiv:2509.19104v1",
        _rebel,
        optional=_MARGIN,
        columns=("chosen_reward", "rejected_reward"),
    ),
    PairLoss(
        "apo_zero",
        "chosen up, rejected down (APO-zero)",
        "D'Oosterlinck et al., arXiv:2408.06266",
        lambda p, s: losses.apo_zero_loss(*_rewards(p, s)),
    ),
    PairLoss(
        "apo_down",
        "both down, rejected further (APO-down)",
        "D'Oosterlinck et al., arXiv:2408.06266",
        lambda p, s: losses.apo_down_loss(*_rewards(p, s)),
    ),
    PairLoss(
        "discopop",
        "logistic below the reference margin, exponential above (DiscoPOP)",
        "Lu et al., arXiv:2406.08414",
        _discopop,
        optional=("discopop_tau", *_MARGIN),
    ),
    PairLoss(
        "hoelder",
        "Hoelder-DPO: pairs that look mislabelled lose their pull",
        "Fujisawa et al., arXiv:2505.17859v2",
        lambda p, s: losses.hoelder_loss(margin(p, s), given(p, "gamma")),
        ("gamma",),
        _MARGIN,
    ),
    PairLoss(
        "winsorised",
        "DPO of margins cut at ±--limit",
        "the clipping of chi-PO, Huang et al., arXiv:2407.13399v3; cf. wDPO, arXiv:2603.07211v1",
        lambda p, s: losses.winsorised_loss(margin(p, s), given(p, "limit")),
        ("limit",),
        _MARGIN,
    ),
    PairLoss(
        "simpo",
        "DPO of mean token log-probabilities, without reference (SimPO)",
        "Meng et al., arXiv:2405.14734",
        _simpo,
        ("target_margin",),
    ),
    PairLoss(
        "orpo",
        "ORPO's odds ratio, weighted by --beta; --sft_weight 1 adds its other term",
        "Hong et al., arXiv:2403.07691",
        _orpo,
        ("sft_weight",),
    ),
)
PAIR_LOSSES = {loss.name: loss for loss in _ALL}


def pair_loss_name(p: PairParameters) -> str:
    """The loss of a pair that an objective is the mean of, or stands on."""
    return p.objective if p.objective in PAIR_LOSSES else p.pair_loss


def check_values(p: PairParameters, name: str) -> None:
    """Raise ValueError if a parameter is out of the range that the loss itself states: it is asked
    for the loss of one pair."""
    one = torch.ones(1)
    pair = Pairs(-one, -one, -one, -one, one, one, reward_difference=one)
    PAIR_LOSSES[name].value(p, pair)
