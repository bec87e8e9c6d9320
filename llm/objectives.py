"""From a name and its parameters to what is minimised: a function of the log-probabilities of one
effective batch.

Every loss and functional here is a function of `theory.functionals` or `theory.losses`; this
file only says which numbers of a batch go into which of them, what each objective needs, and what a
researcher wants to know about its worst case.
"""

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from functools import partial
from types import MappingProxyType
from typing import Any, Literal

import torch
from torch import Tensor

from llm.objective import Objective, Part
from llm.objective_checks import check_objective
from llm.pair_losses import (
    LINKS,
    PAIR_LOSSES,
    PairLoss,
    PairParameters,
    check_values,
    option,
    pair_loss_name,
)
from llm.plugins import as_pair_loss, imported, is_place, source_sha256
from llm.scores import Pairs, Scores, Singles
from theory import functionals
from theory.losses import kto_loss, least_squares, logistic, squared_hinge
from theory.sets import SETS, AmbiguitySet
from theory.spectra import named_spectrum
from theory.transport import Spectrum

TRANSPORT_COSTS = {
    "logistic": logistic,
    "squared_hinge": squared_hinge,
    "least_squares": least_squares,
}


@dataclass(frozen=True)
class ObjectiveParameters(PairParameters):
    """The objective and its parameters; an option that the chosen objective does not take is
    refused. Each field's help, which `prefdro train --help` prints, says what it is.

    >>> from llm import ObjectiveParameters, make_objective
    >>> make_objective(ObjectiveParameters("cvar", alpha=0.3, rho=0.1))
    Traceback (most recent call last):
    ...
    ValueError: cvar does not take --rho (got 0.1); it takes alpha, link, link_alpha, ld_alpha.
    """

    sft_weight: float | None = option(
        None,
        "weight of an added SFT term, the mean negative log-probability of a token of the chosen"
        " responses (rpo_alpha of other trainers)",
    )
    tau: float | None = option(
        None, "kldpo: temperature of the tilt (Algorithm 2), in units of the loss"
    )
    rho: float | None = option(
        None,
        "radius. kldpo: nats, solved on each effective batch; chi2, tv: of the ball; wdpo: see"
        " rho_unit",
    )
    alpha: float | None = option(None, "cvar: share of the worst pairs, in (0, 1]")
    size: float | None = option(None, "number that sizes a set of weights without another letter")
    b: float | None = option(None, "dr_dpo: temperature of the opposite tilt, in units of the loss")
    released: bool = option(
        False,
        "kldpo with tau, wdpo: what the authors' released code computes instead of the paper's"
        " algorithm",
    )
    h: str | None = option(None, "aot: logistic (default), squared_hinge or least_squares")
    softness: float | None = option(
        None, "aot: soft sorting with this softness, in 1/log-ratio; not given: exact sorting"
    )
    quantile_weights: str | None = option(
        None,
        "aot: weights of the quantile levels: cvar:SHARE (only the lowest), upper_cvar:SHARE,"
        " exponential:RATE (falling in the level), or uniform (default)",
    )
    gain: float | None = option(None, "kto: lambda_D, weight of desirable responses (1)")
    aversion: float | None = option(None, "kto: lambda_U, weight of undesirable responses (1)")
    group_step: float | None = option(
        None, "group_dro: step of the exponentiated gradient on the group weights"
    )
    wdpo_mode: str | None = option(
        None,
        "wdpo: finite_difference (default in float32: the gradient up to its error, at the memory"
        " of a plain step), adversarial (default under bf16: first-order equal, cheapest) or exact"
        " (double backward, several times the memory)",
    )
    squared: bool = option(
        False, "wdpo: penalise the mean squared embedding gradient instead of its root"
    )
    rho_unit: str | None = option(
        None,
        "wdpo: embedding (default: rho is in units of the root-mean-square norm of the token"
        " embeddings) or absolute",
    )
    fd_epsilon: float | None = option(
        None,
        "wdpo finite_difference: step in units of the embedding norm (3e-4; under bf16 autocast"
        " 1e-2)",
    )


Step = Literal["mean", "coupled", "kto", "groups", "wasserstein"]


@dataclass(frozen=True)
class Spec:
    """All that is known of an objective; help, checks, model card and training step derive from it.

    name, about: what it is called, and what is minimised over an effective batch. source: the
    paper. required, optional: options beside beta, pair_loss and average_tokens. build: the
    objective from the parameters, once they are checked. step: how a training step goes
    (`llm.steps`, `llm.wasserstein_steps`). of_pair_loss: it stands on --pair_loss. sets: whose
    worst case it is, each with an option of its own. sha256: of its source, where it is from
    outside; None of ours.

    >>> from llm import SPECS
    >>> SPECS["cvar"].required, SPECS["cvar"].of_pair_loss, SPECS["cvar"].sha256
    (('alpha',), True, None)
    """

    name: str
    about: str
    source: str
    build: Callable[[ObjectiveParameters], Objective]
    required: tuple[str, ...] = ()
    optional: tuple[str, ...] = ()
    step: Step = "mean"
    of_pair_loss: bool = False
    sets: tuple[AmbiguitySet, ...] = ()
    sha256: str | None = None


def make_objective(p: ObjectiveParameters) -> Objective:
    """The objective that the parameters name, for one effective batch. Its source is in `SPECS`.

    Args:
        p: the parameters; objective and pair_loss are names of the registry, or MODULE:NAME from
            outside, which `register` then takes.

    Returns:
        An `Objective`, whose `value` takes `Pairs` or `Singles` of log-probabilities (n,) in nats.

    Raises:
        ValueError: an unknown name, a parameter that is missing, that the objective does not take,
            or out of range.

    >>> import torch
    >>> from llm import ObjectiveParameters, Pairs, make_objective
    >>> lengths, same = torch.tensor([3, 5]), torch.tensor([-4.0, -7.0])
    >>> at_reference = Pairs(same, same, same, same, lengths, lengths)
    >>> objective = make_objective(ObjectiveParameters("kldpo", rho=0.1))
    >>> round(objective.value(at_reference).item(), 6), objective.couples  # log 2
    (0.693147, True)
    """
    for place, part in ((p.objective, "objective"), (p.pair_loss, "pair_loss")):
        if is_place(place):
            _take_in(imported(place, part), place, part)
    _check(p)
    spec = SPECS[p.objective]
    made = replace(spec.build(p), name=p.objective)
    if outside(p):
        if made.kinds != ("pairs",):
            raise ValueError(
                f"{p.objective} is from outside and of the kinds {made.kinds}: only objectives of"
                ' pairs can be, kinds=("pairs",).'
            )
        check_objective(made, worst_case=bool(spec.sets) and not p.released)
    made = made if p.ld_alpha is None else replace(made, tail=p.ld_alpha)
    return made if p.sft_weight is None else made.plus(Part("sft", p.sft_weight, _sft))


def register(thing: Any, name: str | None = None) -> str:
    """Make a loss or an objective of one's own known to the trainer, under a name.

    What it computes is checked where an objective is made of it: see `llm.objective_checks`. From
    the command line the same is `--objective MODULE:NAME`, or `--pair_loss MODULE:NAME`.

    Args:
        thing: a function of margins (n,) that returns losses (n,), or an object called like one,
            whose other parameters are options of the same names (`llm.plugins.NUMBERS`); a
            `PairLoss`; a set of weights, a `theory.AmbiguitySet`, whose worst case is minimised;
            or a `Spec`.
        name: what it is called; that of the thing itself where not given.

    Returns:
        The name, for `ObjectiveParameters`.

    Raises:
        ValueError: a name that is one of ours, or a thing that is none of these.

    >>> import torch
    >>> from llm import ObjectiveParameters, make_objective, register
    >>> def savage(margin):
    ...     return torch.sigmoid(-margin) ** 2
    >>> register(savage)
    'savage'
    >>> make_objective(ObjectiveParameters("cvar", alpha=0.5, pair_loss="savage")).couples
    True
    """
    if isinstance(thing, type) and issubclass(thing, AmbiguitySet):
        thing = thing()
    name = name or getattr(thing, "name", None) or getattr(thing, "__name__", None)
    if not isinstance(name, str) or is_place(name):
        raise ValueError(f"{thing!r} has no name that could be taken, got {name!r}: give name=.")
    if name in SPECS and SPECS[name].sha256 is None:
        raise ValueError(f"the name {name!r} is taken by an objective of ours: give another one.")
    _take_in(thing, name, "objective")
    return name


def outside(p: ObjectiveParameters) -> dict[str, str]:
    """What of an objective is from outside, once it has been made: names, with the SHA-256 of the
    source of each."""
    found = {p.objective: SPECS[p.objective].sha256}
    if SPECS[p.objective].of_pair_loss:
        found[p.pair_loss] = PAIR_LOSSES[p.pair_loss].sha256
    return {name: sha256 for name, sha256 in found.items() if sha256 is not None}


def robust(
    p: ObjectiveParameters,
    functional: Callable[[Tensor, Tensor | None], Tensor],
    dual: Callable[[Tensor, Tensor], Tensor] | None = None,
) -> Objective:
    """A functional of a batch of pair losses, the loss that --pair_loss names: what a `Spec` of
    one's own builds, with step="coupled" and of_pair_loss=True.

    Args:
        p: the parameters.
        functional: of losses (n,) and their weights (n,), which sum to one, or None: a scalar.
        dual: of losses and weights, the dual variable that is logged; None for none.

    Returns:
        An `Objective` that sees the effective batch as a whole.

    >>> from llm import ObjectiveParameters, Spec, make_objective, register, robust
    >>> def build(p):
    ...     return robust(p, lambda losses, weights: losses.amax())
    >>> register(Spec("largest", "the largest loss", "your paper", build, step="coupled",
    ...               of_pair_loss=True))
    'largest'
    >>> make_objective(ObjectiveParameters("largest", pair_loss="hinge")).couples
    True
    """
    loss = _pair_loss(p)

    def value(s: Scores) -> Tensor:
        return functional(loss(s), s.weights)

    return Objective(
        p.objective, ("pairs",), value, couples=True, losses=loss, functional=functional, dual=dual
    )


def group_value(
    losses: Tensor, groups: Tensor, group_weights: Tensor, step: float, weights: Tensor | None
) -> tuple[Tensor, Tensor]:
    """One step of group DRO on an effective batch: first the group weights, then the objective at
    them. arXiv:1911.08731.

    Returns the objective and the new group weights (count,).
    """
    moved = functionals.group_weights_step(losses, groups, group_weights, step, weights)
    return functionals.group_dro(losses, groups, moved, weights), moved


def worst_case_weights(value: Callable[[Tensor], Tensor], losses: Tensor) -> Tensor:
    """Derivative of the objective in each loss, (n,): the worst-case weights of a robust
    functional."""
    leaf = losses.detach().requires_grad_()
    with torch.enable_grad():
        return torch.autograd.grad(value(leaf), leaf)[0]


# ------------------------------------------------------------------------------------------- pieces
def _pair_loss(p: ObjectiveParameters) -> Callable[[Scores], Tensor]:
    return partial(PAIR_LOSSES[pair_loss_name(p)].value, p)


def _plain(p: ObjectiveParameters) -> Objective:
    """The mean of a pair loss."""
    loss = _pair_loss(p)
    return Objective(p.objective, ("pairs",), _weighted_mean(loss), couples=False, losses=loss)


def _groups(p: ObjectiveParameters) -> Objective:
    """The value needs the current group weights: see `group_value`."""
    return replace(_plain(p), couples=True)


def _sft(s: Scores) -> Tensor:
    assert isinstance(s, Pairs)
    return functionals.token_mean(-s.chosen, s.chosen_length, s.weights, s.chosen_tokens)


def _dr_dpo(p: ObjectiveParameters) -> Objective:
    assert p.b is not None
    return robust(p, partial(_sized, functionals.dr_dpo, p.b))


def _over_a_set(p: ObjectiveParameters) -> Objective:
    """The worst case over the ambiguity set whose option is given."""
    (kind,) = (s for s in SPECS[p.objective].sets if getattr(p, _option(s)) is not None)
    size = getattr(p, _option(kind))
    if p.released:
        return robust(p, partial(_sized, partial(functionals.kl_tilt, released=True), size))
    dual = None if kind.facts.dual is None else partial(kind.dual_of, size)
    return robust(p, partial(_sized, kind.worst_value, size), dual)


def _option(set: AmbiguitySet) -> str:
    """The option that sizes it: its own, or the one for sets without another letter."""
    return set.facts.option or "size"


def _sized(
    functional: Callable[..., Tensor], size: float, losses: Tensor, weights: Tensor | None
) -> Tensor:
    return functional(losses, size, weights)


def _weighted_mean(loss: Callable[[Scores], Tensor]) -> Callable[[Scores], Tensor]:
    return lambda s: functionals.mean(loss(s), s.weights)


def _kto(p: ObjectiveParameters) -> Objective:
    loss = _kto_loss(p)
    return Objective("kto", ("unpaired",), _weighted_mean(loss), couples=False, losses=loss)


def _kto_loss(p: ObjectiveParameters) -> Callable[[Scores], Tensor]:
    gain, aversion = 1.0 if p.gain is None else p.gain, 1.0 if p.aversion is None else p.aversion

    def loss(s: Scores) -> Tensor:
        assert isinstance(s, Singles) and s.reference_point is not None
        return kto_loss(
            s.ratio, s.desirable, s.reference_point, beta=p.beta, gain=gain, aversion=aversion
        )

    return loss


def _transport(p: ObjectiveParameters) -> Objective:
    h = TRANSPORT_COSTS["logistic" if p.h is None else p.h]
    spectrum = _spectrum(p)
    if p.objective == "aot":

        def paired(s: Scores) -> Tensor:
            assert isinstance(s, Pairs)
            policy, reference = s.chosen - s.rejected, s.reference_chosen - s.reference_rejected
            return functionals.aot_paired(
                policy, reference, h, p.beta, s.weights, softness=p.softness, spectrum=spectrum
            )

        return Objective("aot", ("pairs",), paired, couples=True)

    def unpaired(s: Scores) -> Tensor:
        if isinstance(s, Pairs):
            u, v, a, b = s.chosen_ratio, s.rejected_ratio, s.weights, s.weights
        else:
            weights = torch.ones_like(s.ratio) if s.weights is None else s.weights
            sides = (s.desirable, ~s.desirable)
            u, v = (s.ratio[side] for side in sides)
            mass = [float(weights[side].sum()) for side in sides]
            if min(mass) <= 0:
                raise ValueError(
                    "unpaired AOT compares chosen with rejected responses, but a batch of"
                    f" {len(s.ratio)} has {len(u)} chosen ones of total weight {mass[0]:g} and"
                    f" {len(v)} rejected ones of total weight {mass[1]:g}. Use a larger effective"
                    " batch, or more balanced data."
                )
            a, b = (
                (None, None)
                if s.weights is None
                else (weights[side] / weights[side].sum() for side in sides)
            )
        return functionals.aot_unpaired(
            u, v, h, p.beta, a, b, softness=p.softness, spectrum=spectrum
        )

    return Objective("aot_unpaired", ("pairs", "unpaired"), unpaired, couples=True)


def _spectrum(p: ObjectiveParameters) -> Spectrum | None:
    return None if p.quantile_weights is None else named_spectrum(p.quantile_weights)


# ----------------------------------------------------------------------------------------- registry
def _of_loss(loss: PairLoss) -> Spec:
    """The mean of a loss of a pair."""
    return Spec(loss.name, loss.about, loss.source, _plain, loss.required, loss.optional)


def _of_sets(name: str, sets: tuple[AmbiguitySet, ...]) -> Spec:
    """The worst case over the one of these sets whose option is given."""
    options = tuple(_option(s) for s in sets)
    released = ("released",) if "tau" in options else ()
    return Spec(
        name,
        "; ".join(f"{s.facts.about} (--{_option(s)})" for s in sets),
        "; ".join(dict.fromkeys(s.facts.source for s in sets)),
        _over_a_set,
        options if len(options) == 1 else (),
        (*(options if len(options) > 1 else ()), *released),
        step="coupled",
        of_pair_loss=True,
        sets=sets,
    )


def _take_in(thing: Any, name: str, part: str) -> None:
    """Put what is from outside into the registries under this name. part: of an objective, that it
    is to be."""
    given = thing
    if isinstance(thing, type) and issubclass(thing, AmbiguitySet):
        thing = thing()
    if part == "pair_loss" and isinstance(thing, (Spec, AmbiguitySet)):
        raise ValueError(f"{name} is no loss of a pair: give it as --objective {name}.")
    if _TAKEN.get(name) is given:  # its file may have changed since, but not what was imported
        return
    sha256 = source_sha256(given)
    if isinstance(thing, AmbiguitySet):
        if not thing.facts.reweights or _option(thing) not in _LETTERS:
            raise ValueError(
                f"{name} is a set whose facts have reweights={thing.facts.reweights} and"
                f" option={thing.facts.option!r}. A trainer minimises the worst case over weights"
                f" on the pairs, reweights=True, with an option among"
                f" {', '.join(sorted(_LETTERS))}."
            )
        thing = _of_sets(name, (thing,))
    if isinstance(thing, Spec):
        if thing.step not in ("mean", "coupled"):
            raise ValueError(
                f"the step of {name} is {thing.step!r}, one of ours alone; from outside it is mean"
                " or coupled."
            )
        SPECS[name] = replace(thing, name=name, sha256=sha256)
        PAIR_LOSSES.pop(name, None)
    else:
        loss = thing if isinstance(thing, PairLoss) else as_pair_loss(thing, name)
        PAIR_LOSSES[name] = replace(loss, name=name, sha256=sha256)
        SPECS[name] = replace(_of_loss(PAIR_LOSSES[name]), sha256=sha256)
    _TAKEN[name] = given


def _specs() -> dict[str, Spec]:
    """The objectives that are named here, one for every loss of a pair, and one for every ambiguity
    set that a trainer can take: a set of `theory.sets` with an objective and an option is found by
    itself."""
    transport = ("h", "softness", "quantile_weights")
    weights = [s for s in SETS.values() if s.facts.reweights and s.facts.objective is not None]
    over_sets = [
        _of_sets(str(name), tuple(s for s in weights if s.facts.objective == name))
        for name in dict.fromkeys(s.facts.objective for s in weights)
    ]
    kto = "Ethayarajh et al., arXiv:2402.01306"
    aot = "Melnyk et al., arXiv:2406.05882v1"
    named = [
        *[_of_loss(loss) for loss in PAIR_LOSSES.values()],
        Spec("kto", "KTO of unpaired responses", kto, _kto, (), ("gain", "aversion"), "kto"),
        Spec(
            "dr_dpo",
            "-b log E exp(-l/b), the opposite tilt",
            "Wu et al., arXiv:2407.07880",
            _dr_dpo,
            ("b",),
            step="coupled",
            of_pair_loss=True,
        ),
        *[spec for spec in over_sets if spec.name == "kldpo"],
        Spec(
            "wdpo",
            "the mean loss plus the norm of its gradient at the embeddings (Algorithm 1)",
            "Xu et al., arXiv:2502.01930v4",
            _plain,
            ("rho",),
            ("released", "wdpo_mode", "squared", "rho_unit", "fd_epsilon"),
            step="wasserstein",
            of_pair_loss=True,
        ),
        Spec("aot", "transport of paired log-ratios", aot, _transport, (), transport, "coupled"),
        Spec(
            "aot_unpaired",
            "transport of chosen against rejected rewards",
            aot,
            _transport,
            (),
            transport,
            "coupled",
        ),
        *[spec for spec in over_sets if spec.name != "kldpo"],
        Spec(
            "group_dro",
            "the groups weighted by exponentiated gradient",
            "Sagawa et al., arXiv:1911.08731",
            _groups,
            ("group_step",),
            step="groups",
            of_pair_loss=True,
        ),
    ]
    return {spec.name: spec for spec in named}


# every objective: what it minimises, its source, the options it takes
SPECS = _specs()
OBJECTIVES = tuple(SPECS)
_TAKEN: dict[str, Any] = {}  # from outside: name -> what the registries have it from
# the help of these two, which the class above cannot know yet
_STANDS_ON = ", ".join(spec.name for spec in SPECS.values() if spec.of_pair_loss)
for _name, _help in (
    ("objective", f"what is minimised: {', '.join(OBJECTIVES)}; or MODULE:NAME, your own"),
    (
        "pair_loss",
        f"loss of a pair under {_STANDS_ON}: {', '.join(PAIR_LOSSES)}; or MODULE:NAME, your own",
    ),
):
    ObjectiveParameters.__dataclass_fields__[_name].metadata = MappingProxyType({"help": _help})
_LETTERS = {field.name for field in fields(ObjectiveParameters)}
for _set in SETS.values():
    if _set.facts.objective is not None and _set.facts.option not in _LETTERS:
        raise ValueError(
            f"the set {_set.name} names the option {_set.facts.option!r}, which `prefdro train`"
            ' does not have: give its facts option="size", or another of'
            f" {', '.join(sorted(_LETTERS))}."
        )


def objectives_table() -> str:
    """The registry as Markdown, for docs/training.md: what is ours."""
    rows = ["| `--objective` | what is minimised over an effective batch | takes | source |"]
    rows.append("|---|---|---|---|")
    for spec in (SPECS[name] for name in OBJECTIVES):
        takes = [f"`--{name}` (needed)" for name in spec.required]
        takes += [f"`--{name}`" for name in spec.optional]
        takes += ["`--pair_loss`"] if spec.of_pair_loss else []
        rows.append(f"| `{spec.name}` | {spec.about} | {', '.join(takes)} | {spec.source} |")
    rows += ["", "| `--link` | in the place of a log-ratio r: f' of the divergence | source |"]
    rows.append("|---|---|---|")
    rows += [f"| `{link.name}` | {link.about} | {link.source} |" for link in LINKS.values()]
    return "\n".join(rows)


# ------------------------------------------------------------------------------------------- checks
# options whose checks are not those of `Spec.required` and `Spec.optional`
_COMMON = ("objective", "beta", "pair_loss", "average_tokens", "sft_weight")


def _check(p: ObjectiveParameters) -> None:
    if p.objective not in SPECS:
        raise ValueError(
            f"unknown objective {p.objective!r}; there are {', '.join(SPECS)}, or MODULE:NAME."
        )
    spec = SPECS[p.objective]
    for name in spec.required:
        if getattr(p, name) is None:
            raise ValueError(f"{p.objective} needs --{name}, which was not given.")
    if p.pair_loss not in PAIR_LOSSES:
        raise ValueError(
            f"unknown pair loss {p.pair_loss!r}; there are {', '.join(PAIR_LOSSES)}, or"
            " MODULE:NAME."
        )
    if p.pair_loss != "dpo" and not spec.of_pair_loss:
        raise ValueError(f"--pair_loss is for {_STANDS_ON}; {p.objective} is a loss of its own.")
    below = PAIR_LOSSES[p.pair_loss] if spec.of_pair_loss else None
    for name in () if below is None else below.required:
        if getattr(p, name) is None:
            raise ValueError(f"--pair_loss {p.pair_loss} needs --{name}, which was not given.")
    if not p.average_tokens and pair_loss_name(p) != "ipo":
        raise ValueError("--average_tokens false is for IPO only: no other loss has the choice.")
    if p.sft_weight is not None and spec.step in ("kto", "wasserstein"):
        raise ValueError(
            f"{p.objective} does not take --sft_weight (got {p.sft_weight}): "
            + (
                "its responses are unpaired, and it weights the desirable ones by --gain."
                if spec.step == "kto"
                else "the shift of the embeddings would be one of the SFT term, too."
            )
        )
    if p.sft_weight is not None and p.ld_alpha is not None:
        raise ValueError(
            f"--sft_weight {p.sft_weight:g} and --ld_alpha {p.ld_alpha:g} exclude each other: the"
            " SFT term counts all tokens of a response, --ld_alpha the last of the longer one less."
        )
    takes = [*spec.required, *spec.optional]
    takes += [] if below is None else [*below.required, *below.optional]
    defaults = ObjectiveParameters()
    for field in fields(p):
        value = getattr(p, field.name)
        if value != getattr(defaults, field.name) and field.name not in (*_COMMON, *takes):
            raise ValueError(
                f"{p.objective} does not take --{field.name} (got {value}); it takes"
                f" {', '.join(takes or ['nothing beside beta'])}."
            )
    sets = spec.sets
    given = [s for s in sets if getattr(p, _option(s)) is not None]
    if len(sets) > 1 and len(given) != 1:
        ways = " or ".join(f"--{_option(s)} ({s.facts.size}: {s.facts.about})" for s in sets)
        got = ", ".join(f"{_option(s)}={getattr(p, _option(s))}" for s in sets)
        raise ValueError(f"{p.objective} takes either {ways}, got {got}.")
    if p.objective == "wdpo":
        _check_wdpo(p)
    elif p.released and p.tau is None:
        raise ValueError(
            "--released is the authors' code for KLDPO with a temperature: give --tau, not --rho."
        )
    if p.h is not None and p.h not in TRANSPORT_COSTS:
        raise ValueError(f"unknown h {p.h!r}; there are {', '.join(TRANSPORT_COSTS)}.")
    try:
        _spectrum(p)
    except ValueError as wrong:
        raise ValueError(f"--quantile_weights {p.quantile_weights}: {wrong}") from None
    for name in ("beta", "sft_weight", "tau", "b", "softness", "group_step", "gain", "aversion"):
        value = getattr(p, name)
        if value is not None and not 0 < value < float("inf"):
            raise ValueError(f"--{name} must be positive and finite, got {value}.")
    for name in ("rho", "label_rho"):
        value = getattr(p, name)
        if value is not None and not 0 <= value < float("inf"):
            raise ValueError(f"--{name} must not be negative, got {value}; 0 is plain DPO.")
    if p.alpha is not None and not 0 < p.alpha <= 1:
        raise ValueError(
            f"--alpha is the share of worst pairs, in (0, 1], got {p.alpha}; 1 is plain DPO."
        )
    if p.ld_alpha is not None and not 0 <= p.ld_alpha <= 1:
        raise ValueError(
            "--ld_alpha is the weight of the tokens beyond the shorter response, in [0, 1], got"
            f" {p.ld_alpha}; 1 is without it."
        )
    if p.size is not None or spec.sha256 is not None:
        for kind in given:
            kind.sized(getattr(p, _option(kind))).check_size(1, torch.zeros(1))
    if p.flip is not None and not 0 <= p.flip < 0.5:
        raise ValueError(
            f"--flip must be in [0, 1/2), got {p.flip}: at 1/2 the labels say nothing."
        )
    loss = pair_loss_name(p) if spec.of_pair_loss or p.objective in PAIR_LOSSES else None
    if loss is not None and PAIR_LOSSES[loss].sha256 is None:  # of the others `check_objective`
        check_values(p, loss)


def _check_wdpo(p: ObjectiveParameters) -> None:
    mode = p.wdpo_mode
    if mode not in (None, "exact", "finite_difference", "adversarial"):
        raise ValueError(
            f"unknown --wdpo_mode {mode!r}; there are exact, finite_difference and adversarial."
        )
    if p.rho_unit not in (None, "embedding", "absolute"):
        raise ValueError(f"unknown --rho_unit {p.rho_unit!r}; there are embedding and absolute.")
    if p.released and (mode not in (None, "exact") or p.squared):
        raise ValueError(
            f"--released is the exact squared penalty already; leave out --wdpo_mode {mode} and"
            " --squared, or --released."
        )
    if p.squared and mode == "adversarial":
        raise ValueError(
            "--squared cannot be adversarial: a step of length rho is first-order equal to the"
            " penalty with the square root only. Use --wdpo_mode finite_difference."
        )
    if p.fd_epsilon is not None and (mode != "finite_difference" or not 0 < p.fd_epsilon < 1):
        raise ValueError(
            "--fd_epsilon is for --wdpo_mode finite_difference and lies in (0, 1), got"
            f" {p.fd_epsilon} with {mode}."
        )
