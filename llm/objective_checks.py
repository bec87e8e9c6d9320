"""What a training step takes for granted of an objective, asked of a few pairs: shapes, dtypes,
finite numbers and gradients, losses that belong to one pair each, worst cases that are
probabilities.

The tests ask it of every objective that is here; one from outside is asked before it is trained.
"""

from collections.abc import Callable, Sequence
from dataclasses import fields

import torch
from torch import Tensor

from llm.objective import Objective
from llm.scores import Pairs, replaced

N = 6
_SAME = {torch.float32: 1e-4, torch.float64: 1e-8}  # relative to the largest number
# how far the policy has moved from the reference, in nats: chosen and rejected responses
_APART = (0.0, 2.0, -1.0, 0.5, 30.0, -30.0), (0.0, -1.0, 1.5, 0.5, 1.0, -1.0)
_STEP = 2.0  # nats, by which a loss is asked which way it pulls


def sample(
    dtype: torch.dtype = torch.float64,
    chosen: Sequence[float] = _APART[0],
    rejected: Sequence[float] = _APART[1],
) -> Pairs:
    """A few pairs as a training sees them, with these log-ratios to the reference."""
    one = torch.tensor([-50.0, -65.0, -38.0, -80.0, -57.0, -94.0], dtype=dtype)
    other = torch.tensor([-54.0, -60.0, -39.0, -71.0, -57.0, -99.0], dtype=dtype)
    up, down = (torch.tensor(x, dtype=dtype) for x in (chosen, rejected))
    lengths = torch.tensor([5, 9, 2, 11, 7, 13]), torch.tensor([6, 7, 3, 9, 7, 15])
    weights = torch.tensor([0.1, 0.2, 0.3, 0.1, 0.2, 0.1], dtype=dtype)
    return Pairs(
        one + up,
        other + down,
        one,
        other,
        *lengths,
        weights,
        chosen_tokens=(weights * lengths[0]).sum(),
        reward_difference=torch.tensor([1.0, 0.2, 2.0, -0.3, 0.5, 0.0], dtype=dtype),
    )


def check_objective(objective: Objective, *, worst_case: bool = False) -> None:
    """Refuse an objective of pairs that a training step would make something else of.

    Args:
        objective: what was made of the name and its parameters.
        worst_case: its functional is the worst mean loss over a set that has the data in it.

    Raises:
        ValueError: with what it gave, the likely cause and the next step.
    """
    for dtype in (torch.float32, torch.float64):
        s = sample(dtype)
        if objective.losses is not None:
            _check_losses(objective.name, objective.losses, s)
        value = _number(objective, s)
        if not objective.couples:
            parts = [_number(objective, _rows(s, k)) for k in (slice(0, 2), slice(2, N))]
            _refuse_unless(
                torch.isclose(sum(parts), value, rtol=_SAME[dtype], atol=_SAME[dtype]),  # type: ignore[arg-type]
                f"the value of {objective.name} is {value.item():.6g} of {N} pairs, and"
                f" {sum(parts).item():.6g} as the sum over two parts of them. It is said to be a"  # type: ignore[union-attr]
                " weighted mean, as theory.functionals.mean with the weights of the pairs; if it is"
                ' a function of the whole batch, say so: couples=True, and step="coupled".',
            )
    _check_direction(objective)
    if worst_case:
        _check_worst(objective)


def _check_losses(name: str, losses: Callable[[Pairs], Tensor], s: Pairs) -> None:
    """Losses (n,) of the dtype of the pairs, each of its own pair, with a gradient."""
    found = _asked(name, losses, s)
    shape = tuple(found.shape)
    mean = " Leave out the mean or sum: the functional takes it." if shape == () else ""
    _refuse_unless(
        shape == (N,), f"{name} gave the shape {shape} for {N} pairs, and not ({N},).{mean}"
    )
    _check_dtype(name, found, s)
    _refuse_unless(
        bool(found.isfinite().all()),
        f"{name} gave {[round(x, 4) for x in found.tolist()]} for {N} pairs whose policy is within"
        " 30 nats of the reference. Likely an exp or log of a large margin: use"
        " torch.nn.functional.logsigmoid, softplus, or a clamp.",
    )
    again, alone = _asked(name, losses, s), _asked(name, losses, _rows(s, slice(0, 2)))
    same = _SAME[found.dtype] * found.abs().max().item()
    _refuse_unless(
        bool(((found - again).abs() <= same).all()),
        f"{name} gave other losses when it was asked twice: it draws random numbers, or keeps"
        " something between calls. A step asks twice, and must see the same.",
    )
    _refuse_unless(
        alone.shape == (2,) and bool(((found[:2] - alone).abs() <= same).all()),
        f"{name} gave {found[:2].tolist()} for two pairs among {N}, and {alone.tolist()} for them"
        " alone: a loss must depend on its own pair only, or micro-batches would change it. What"
        " couples pairs is a functional: see `llm.robust`.",
    )


def _check_direction(objective: Objective) -> None:
    """A finite gradient, some of it at the reference, and smaller values where the chosen responses
    are the likelier ones; not for every step there: DiscoPOP rises at the reference."""
    for gradient in _gradient(objective, sample()):
        _refuse_unless(
            bool(gradient.isfinite().all()),
            f"the gradient of {objective.name} is {gradient.tolist()} on {N} pairs. Likely a square"
            " root, a norm or a division at 0, or torch.where with a branch that is not finite:"
            " make that branch finite before it is chosen.",
        )
    none, up, down = [0.0] * N, [_STEP] * N, [-_STEP] * N
    _refuse_unless(
        any(bool(x.any()) for x in _gradient(objective, sample(torch.float64, none, none))),
        f"{objective.name} has no gradient at the reference policy, where a training begins: it"
        " would stay there. Likely a clamp that holds at margin 0, or a detach.",
    )
    right, wrong = (
        _number(objective, sample(torch.float64, *x)).item() for x in ((up, down), (down, up))
    )
    _refuse_unless(
        right < wrong,
        f"{objective.name} is {right:.6g} where the chosen responses have become {_STEP:g} nats"
        f" likelier and the rejected ones less likely, and {wrong:.6g} the other way round: it"
        " would train the rejected ones up. Likely a sign: a loss falls as the margin grows.",
    )


def _check_worst(objective: Objective) -> None:
    """A worst mean loss: at least the mean, with a gradient that is a distribution."""
    assert objective.functional is not None
    l = torch.tensor([0.2, 1.5, 0.7, 3.0, 0.1, 0.9], dtype=torch.float64, requires_grad=True)
    p = sample().weights
    assert p is not None
    value = objective.functional(l, p)
    (q,) = torch.autograd.grad(value, l)
    said = f"the worst case of {objective.name} at losses {l.tolist()} has the weights {q.tolist()}"
    _refuse_unless(
        bool((q >= -1e-9).all()) and abs(q.sum().item() - 1) < 1e-6,
        f"{said}, which are no probabilities: the derivative of a worst mean loss in the losses is"
        " its worst-case distribution. See worst_value of its set.",
    )
    _refuse_unless(
        value.item() >= (p @ l).item() - 1e-9,
        f"the worst case of {objective.name} is {value.item():.6g}, below the mean loss"
        f" {(p @ l).item():.6g}: the data themselves would not be in the set.",
    )


# ------------------------------------------------------------------------------------------- pieces
def _asked(name: str, function: Callable[[Pairs], Tensor], s: Pairs) -> Tensor:
    """What a function says of pairs, as a tensor; errors of its own with the name in front."""
    try:
        found = function(s)
    except Exception as error:  # whatever the reader's own code does
        raise ValueError(
            f"{name} ended with {type(error).__name__}: {error}, asked of {len(s.chosen)} pairs of"
            f" {s.chosen.dtype}. A function is given margins (n,); a PairLoss the parameters and"
            " the pairs (`llm.Pairs`)."
        ) from error
    _refuse_unless(
        isinstance(found, Tensor),
        f"{name} gave {found!r}, a {type(found).__name__}, and not a tensor: compute with torch, so"
        " that there is a gradient, and return what was computed.",
    )
    return found


def _number(objective: Objective, s: Pairs) -> Tensor:
    value = _asked(objective.name, objective.value, s)
    _refuse_unless(
        value.shape == () and bool(value.isfinite()),
        f"the value of {objective.name} is {value.tolist()} of {len(s.chosen)} pairs, and not one"
        " finite number.",
    )
    _check_dtype(objective.name, value, s)
    return value


def _check_dtype(name: str, found: Tensor, s: Pairs) -> None:
    _refuse_unless(
        found.dtype == s.chosen.dtype,
        f"{name} gave {found.dtype} for {s.chosen.dtype}. Likely a tensor with a dtype of its own"
        " in it: make constants Python numbers, or torch.full_like.",
    )


def _gradient(objective: Objective, s: Pairs) -> tuple[Tensor, Tensor]:
    leaves = [x.clone().requires_grad_() for x in (s.chosen, s.rejected)]
    with torch.enable_grad():
        value = _asked(
            objective.name,
            objective.value,
            replaced(s, dict(zip(("chosen", "rejected"), leaves, strict=True))),  # type: ignore[arg-type]
        )
        _refuse_unless(
            value.requires_grad,
            f"{objective.name} has no gradient: something in it leaves torch (item, numpy, detach,"
            " no_grad, a comparison). Compute with torch functions alone.",
        )
        up, down = torch.autograd.grad(value, leaves, allow_unused=True)
    return tuple(torch.zeros_like(s.chosen) if x is None else x for x in (up, down))  # type: ignore[return-value]


def _rows(s: Pairs, k: slice) -> Pairs:
    """Some of the pairs, with the weights that they have in the whole."""
    values = {f.name: getattr(s, f.name) for f in fields(s)}
    return Pairs(**{name: x if x is None or x.ndim == 0 else x[k] for name, x in values.items()})


def _refuse_unless(fine: bool | Tensor, why: str) -> None:
    if not fine:
        raise ValueError(why)
