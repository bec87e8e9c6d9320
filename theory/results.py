"""What a fit returns: theta with its certificate, and what can be asked of it."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from theory.batch import PairBatch
from theory.solvers.adversary import WorstCase
from theory.solvers.newton import Domain

if TYPE_CHECKING:
    from theory.sets.base import AmbiguitySet


_FAR = 20.0  # a margin at which a label is certain: from here on separation is looked for


@dataclass(frozen=True, eq=False)
class Made:
    """What a fit was made from."""

    set: "AmbiguitySet | None"
    pairs: PairBatch
    beta: float
    domain: Domain
    names: tuple[str, ...]
    bounded: bool = True  # whether a bound was asked for


@dataclass(frozen=True, repr=False, eq=False)
class Fit:
    """A fitted policy with its certificate, or R of them, where the input had a batch axis.

    The gap is a duality gap, as `theory.fitting` explains: Boyd and Vandenberghe, Convex
    Optimization, section 5.5. Printing a fit shows a short table.

    Attributes:
        theta: (d,) or (R, d), in the inverse unit of the features.
        value: objective at theta, () or (R,) as all that follows, in nats.
        gap: certified bound on value - optimum, in nats; where the objective is not convex, as of
            `gradient_penalty`, the same expression only measures stationarity.
        dual: multiplier of the radius (lambda or eta), None where there is none.
        converged: gap <= tolerance * max(1, |value|).
        collapsed: theta is exactly theta_ref because the set is at or beyond its collapse radius;
            then gap is what the worst case certifies, or 0 on the word of that radius.
        iterations: of the solver.
        at_bound: ||theta|| = B, so that the answer is the bound's as much as the data's. With the
            bound that `fit` takes where none is given: the pairs are separable, or nearly so.

    >>> from theory import KL, dpo, fit
    >>> u = [[1.0], [1.0], [1.0], [-1.0]]
    >>> dpo(u, beta=1.0)
    DPO: objective 0.56233514, gap ..., converged
      feature 1       1.09861
    >>> found = fit(u, KL(1.0), beta=1.0)  # beyond the collapse radius: log 2 at the reference
    >>> bool(found.collapsed), found.theta.tolist(), round(found.value.item(), 6)
    (True, [0.0], 0.693147)
    >>> found.worst.name, found.names
    ('kl', ('feature 1',))
    """

    theta: Tensor
    value: Tensor
    gap: Tensor
    dual: Tensor | None
    converged: Tensor
    collapsed: Tensor
    iterations: Tensor
    at_bound: Tensor
    _made: Made | None = field(default=None, compare=False)
    _several: Tensor | None = field(default=None, compare=False)  # where another theta was found

    def of(
        self,
        set: "AmbiguitySet | None",
        pairs: PairBatch,
        beta: float,
        domain: Domain,
        names: tuple[str, ...],
        *,
        bounded: bool = True,
    ) -> "Fit":
        """The same, knowing what it was made from."""
        return replace(self, _made=Made(set, pairs, beta, domain, names, bounded))

    @staticmethod
    def joined(fits: Sequence["Fit"]) -> "Fit":
        """The fits of several batches as one."""
        duals = [fit.dual for fit in fits if fit.dual is not None]
        several = [fit._several for fit in fits if fit._several is not None]
        return Fit(
            torch.cat([fit.theta for fit in fits]),
            torch.cat([fit.value for fit in fits]),
            torch.cat([fit.gap for fit in fits]),
            torch.cat(duals) if duals else None,
            torch.cat([fit.converged for fit in fits]),
            torch.cat([fit.collapsed for fit in fits]),
            torch.cat([fit.iterations for fit in fits]),
            torch.cat([fit.at_bound for fit in fits]),
            _several=torch.cat(several) if several else None,
        )

    def without_batch(self) -> "Fit":
        """The only fit of a batch of one."""
        dual = None if self.dual is None else self.dual[0]
        return self._picked(0, dual, self._made)

    def one(self, replicate: int) -> "Fit":
        """The fit of one replicate of a batch, as if it had been fitted alone.

        Raises:
            ValueError: a single fit.
        """
        if self.theta.ndim == 1:
            raise ValueError("this is a single fit already: there is no other replicate.")
        made = self._made
        if made is not None:
            index = torch.tensor([replicate], device=made.pairs.p.device)
            ball = made.set
            if ball is not None:
                size = ball.check_size(made.pairs.replicates, made.pairs.p)
                ball = ball.sized(size[replicate].item())
            made = replace(made, set=ball, pairs=made.pairs.select(index))
        dual = None if self.dual is None else self.dual[replicate]
        return self._picked(replicate, dual, made)

    def _picked(self, place: int, dual: Tensor | None, made: Made | None) -> "Fit":
        parts = (self.converged, self.collapsed, self.iterations, self.at_bound)
        converged, collapsed, iterations, at_bound = (part[place] for part in parts)
        theta, value, gap = self.theta[place], self.value[place], self.gap[place]
        several = None if self._several is None else self._several[place]
        return Fit(
            theta, value, gap, dual, converged, collapsed, iterations, at_bound, made, several
        )

    @property
    def worst(self) -> WorstCase | list[WorstCase]:
        """The worst case of the set at theta, one for each replicate; its `weights` are those of
        the pairs, where it keeps to them.

        Raises:
            ValueError: a plain fit, which has no set.
        """
        from theory.worst_cases import worst_case  # which takes a Fit

        made = self._made
        if made is None or made.set is None:
            raise ValueError(
                "plain DPO has no ambiguity set, and so no worst case. Use fit(u, set)."
            )
        size = made.set.check_size(made.pairs.replicates, made.pairs.p)
        found = []
        for r in range(made.pairs.replicates):
            one = made.pairs.select(torch.tensor([r], device=made.pairs.p.device))
            theta = self.theta if self.theta.ndim == 1 else self.theta[r]
            found.append(
                worst_case(
                    one.ut[0].T,
                    theta,
                    made.set.sized(size[r].item()),
                    one.p[0],
                    beta=made.beta,
                    theta_ref=made.domain.theta_ref,
                )
            )
        return found[0] if self.theta.ndim == 1 else found

    @property
    def unique(self) -> Tensor:
        """Whether no other theta has the same value, () or (R,).

        Where one has, `theta` is the one nearest to the reference policy. Pairs that do not span
        all features leave some free, and so does a worst case that sits on few atoms, unless the
        set or the bound holds ||theta||. A worst case that is not known atom by atom, as far beyond
        the collapse radius, counts as one with all of them.

        Raises:
            ValueError: an objective that is not convex, whose minimisers are not known, or fits
                that were joined.

        >>> from theory import CVaR, dpo, fit
        >>> bool(dpo([[1.0, 2.0], [-1.0, -2.0]], beta=1.0).unique)  # a line of theta is as good
        False
        >>> u = [[-1.0, 0.0], [2.0, 0.0], [1.0, 1.0], [3.0, 0.5]]  # the worst half is the first two
        >>> found = fit(u, CVaR(0.5), beta=1.0, bound=4.0)
        >>> bool(found.unique), found.theta.numpy().round(6).tolist()
        (False, [0.419618, 0.419618])
        """
        made = self._made
        if made is None:
            raise ValueError(
                "the fits were joined, and do not know their pairs. Ask each of them before."
            )
        if made.set is not None and not made.set.facts.convex:
            raise ValueError(
                f"{made.set.facts.about} is not convex: whether its minimiser is unique is not"
                " known. Take an exact set, such as WassersteinFree."
            )
        theta = self.theta if self.theta.ndim == 2 else self.theta[None]
        held = self.at_bound.reshape(-1).clone()
        if made.set is not None:
            size = made.set.check_size(made.pairs.replicates, made.pairs.p)
            held |= made.set.holds_norm(theta - made.domain.theta_ref, made.beta, size, self.dual)
        one = made.pairs.ut.shape[0] == 1
        everywhere = made.set is not None and made.set.facts.atoms
        for r in (~held).nonzero()[:, 0].tolist():
            rows = made.pairs.ut[0 if one else r].T
            seen = rows if everywhere else rows[made.pairs.p[r] > 0]
            size = seen.square().mean(0).sqrt().clamp(min=1e-300)
            held[r] = int(torch.linalg.matrix_rank(seen / size, rtol=1e-10)) == rows.shape[1]
        if self._several is not None:
            held &= ~self._several.reshape(-1)
        return held if self.theta.ndim == 2 else held[0]

    @property
    def names(self) -> tuple[str, ...]:
        """Of the features: the columns of a table, else their numbers."""
        if self._made is not None and self._made.names:
            return self._made.names
        return tuple(f"feature {k + 1}" for k in range(self.theta.shape[-1]))

    def __repr__(self) -> str:
        """A short table."""
        made = self._made
        kind = "DPO" if made is None or made.set is None else made.set.facts.about
        if self.theta.ndim == 2:
            left, met = int((~self.converged).sum()), int(self.at_bound.sum())
            return (
                f"{len(self.theta)} fits of {kind}: values {self.value.min():.6g} to"
                f" {self.value.max():.6g}, largest gap {self.gap.max():.1e}, {left} not converged"
                + (f", {met} on the bound" if met else "")
            )
        width = max(len(name) for name in self.names)
        rows = [
            f"  {name:<{width}}  {x:12.6g}"
            for name, x in zip(self.names, self.theta.tolist(), strict=True)
        ]
        state = "converged" if self.converged else "NOT converged"
        more = " (the reference policy: collapsed)" if self.collapsed else ""
        dual = "" if self.dual is None else f", dual {self.dual.item():.6g}"
        head = (
            f"{kind}: objective {self.value.item():.8g}, gap {self.gap.item():.1e}, {state}{more}"
        )
        rows += [f"  {remark}" for remark in self.remarks]
        return "\n".join([head + dual, *rows])

    @property
    def remarks(self) -> list[str]:
        """What to know before theta is believed, in words: that other theta are as good, that the
        bound binds, or that the pairs are separable. Of a single fit."""
        made = self._made
        if made is None:
            return []
        remarks = []
        if (made.set is None or made.set.facts.convex) and not bool(self.unique):
            few = self._several is not None and bool(self._several)
            remarks.append(
                "theta is not unique: "
                + ("the worst case holds too few pairs" if few else "the pairs do not span all")
                + " to fix every direction of the features, and other theta have the same value."
                " This is the one nearest to the reference policy"
            )
        margin = made.beta * made.pairs.project(self.theta[None] - made.domain.theta_ref)
        if not bool(self.at_bound) and margin.abs().max() < _FAR:
            return remarks
        from theory.separable import separation  # which most fits have no need of

        found = separation(made.pairs.ut[0].T, made.pairs.p[0])
        remarks += [] if found is None else [found.describe(self.names)]
        if bool(self.at_bound):
            remarks.append(
                f"theta is on the bound ||theta|| <= {made.domain.bound:g}, and is the bound's"
                " answer as much as the data's: take a larger one, or None"
            )
        return remarks
