"""Balls around the label of each pair: the pairs are as they are, only who won is uncertain."""

from abc import abstractmethod
from dataclasses import dataclass, replace
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from theory.batch import ArrayLike, PairBatch, as_float64
from theory.losses import chi2_flips, label_robust_loss, tv_flips
from theory.merging import labels
from theory.sets.base import AmbiguitySet, AtPolicy, Facts, needs_no_losses, one_size
from theory.solvers.adversary import Moves, WorstCase
from theory.solvers.collapse import Collapse
from theory.solvers.labels import labels_collapse, other_label, solve_labels
from theory.solvers.local import AtFit, LocalProgram
from theory.solvers.newton import Domain
from theory.solvers.points import Point
from theory.solvers.wasserstein import settle_collapse


class _LabelBall(AmbiguitySet):
    """{Q with the pairs of P : the labels of each pair within a ball around their chances}.

    Flipping the label of a pair turns its loss l(m) into l(-m) = l(m) + m, so that with chances of
    a flip between a and b the worst case is E l(m) + max(a m, b m).
    """

    confidence: ArrayLike | None

    @property
    def knows_units(self) -> bool:
        return False  # a flip has no length

    @property
    def holds_data(self) -> bool:
        return self.confidence is None

    @property
    def counts_labels(self) -> bool:
        return self.confidence is None

    @abstractmethod
    def flips(self, flip: Tensor, size: Tensor | float) -> tuple[Tensor, Tensor]:
        """The least and the largest chance of a flip around the nominal one."""

    @abstractmethod
    def reach(self, flip: Tensor) -> Tensor:
        """How far these are from the nominal one for each unit of distance, before the cut."""

    @abstractmethod
    def size_of(self, distance: Tensor) -> Tensor:
        """The radius of the set at this distance."""

    @abstractmethod
    def rate(self, size: Tensor) -> Tensor:
        """The derivative of the distance in the radius."""

    def check_atoms(self, n: int) -> None:
        if self.confidence is None:
            return
        chance = as_float64(self.confidence, "confidence")
        if chance.ndim > 1 or (chance.ndim == 1 and len(chance) != n):
            raise ValueError(
                f"confidence must be a number or one for each of {n} pairs, got shape"
                f" {tuple(chance.shape)}."
            )
        bad = ~((chance >= 0) & (chance <= 1))
        if bool(bad.any()):
            raise ValueError(
                "confidence is the probability that a recorded label is right, between 0 and 1,"
                f" got {chance[bad][0].item():g}. Leave it out to take the frequencies of labels"
                " in the sample."
            )

    def alike(self, label: NDArray[np.int64]) -> NDArray[np.int64]:
        if self.confidence is None or as_float64(self.confidence, "confidence").ndim == 0:
            return label
        chance = as_float64(self.confidence, "confidence").cpu().numpy()
        rows = zip(label.tolist(), chance, strict=True)
        return labels([k.to_bytes(8, "big") + c.tobytes() for k, c in rows])

    def on_rows(self, rows: NDArray[np.int64]) -> Self:
        if self.confidence is None:
            return self
        chance = as_float64(self.confidence, "confidence")
        if chance.ndim == 0:
            return self
        taken = chance[torch.from_numpy(rows).to(chance.device)]
        return replace(self, confidence=taken)  # type: ignore[type-var]

    def _flip(self, pairs: PairBatch) -> Tensor:
        """(R, n) nominal chances that the recorded labels are wrong."""
        if self.confidence is None:
            return other_label(pairs)
        chance = as_float64(self.confidence, "confidence", pairs.p.device)
        return (1 - chance).expand(pairs.p.shape)

    def solve(self, pairs: PairBatch, beta: float, domain: Domain, size: Tensor) -> Point:
        flip = self._flip(pairs)
        low, high = self.flips(flip, size[:, None])
        point = solve_labels(pairs, beta, domain, low, high)
        point = settle_collapse(pairs, point, size, beta, domain, self._collapse)
        point.mass = None  # weights of both signs
        point.dual = self._dual(pairs, beta * pairs.project(point.w), flip, size)
        return point

    def _dual(self, pairs: PairBatch, margin: Tensor, flip: Tensor, size: Tensor) -> Tensor:
        """(R,) derivative of the worst case in the radius, from above."""
        low, high = self.flips(flip, size[:, None])
        inside = torch.where(margin > 0, high < 1, low > 0) & (margin != 0)
        moved = torch.where(inside, pairs.p * margin.abs() * self.reach(flip), 0.0).sum(-1)
        return torch.where(moved > 0, moved * self.rate(size), 0.0)

    def collapse(self, pairs: PairBatch) -> Tensor:
        return self._collapse(pairs).radius

    def _collapse(self, pairs: PairBatch) -> Collapse:
        flip = self._flip(pairs)
        found = labels_collapse(pairs, flip, self.reach(flip))
        return replace(found, radius=self.size_of(found.radius))

    def worst(self, at: AtPolicy) -> WorstCase:
        needs_no_losses(type(self).__name__, at)
        self.check_atoms(len(at.p))
        rho, n = one_size(self), len(at.p)
        size = self.sized(rho).check_size(1, torch.zeros(1, dtype=torch.float64))
        p, margin = torch.from_numpy(at.p)[None], torch.from_numpy(at.beta * at.u @ at.w)[None]
        pairs = PairBatch(torch.from_numpy(at.u.T.copy())[None], p)
        flip = self._flip(pairs)
        low, high = self.flips(flip, size[:, None])
        value = (p * label_robust_loss(margin, (low, high))).sum().item()
        t = torch.where(margin > 0, high, torch.where(margin < 0, low, flip))
        mass = torch.cat([p * (1 - t), p * t], 1)[0].numpy()
        flipped = np.repeat([False, True], n)
        live = mass > 0
        source = np.tile(np.arange(n), 2)[live]
        u = np.concatenate([at.u, -at.u])[live]
        expected = float(mass[live] @ np.logaddexp(0, -at.beta * u @ at.w))
        away = (t - flip).abs() / self.reach(flip).clamp(min=1e-300)
        used = self.size_of(torch.where((p > 0) & (self.reach(flip) > 0), away, 0.0).amax())
        gap = value - expected
        moves = Moves(
            source,
            np.full(len(source), -1),
            mass[live],
            u,
            np.zeros(len(source)),
            flipped[live],
        )
        return WorstCase(
            self.name,
            rho,
            value,
            expected,
            gap,
            used.item(),
            self._dual(pairs, margin, flip, size).item(),
            np.nan,
            True,
            abs(gap) <= 1e-9 * value,
            moves=moves,
        )

    def local(self, at: AtFit) -> LocalProgram:
        """With the confidences taken as known: only the pairs are a sample."""
        pairs = PairBatch(at.u.T[None], at.p[None])
        low, high = self._slopes(self._flip(pairs), one_size(self))
        low, high = low[0], high[0]

        def pieces(w: Tensor) -> Tensor:
            loss, margin = at.loss(w), at.beta * (at.u @ w)
            return torch.cat([loss + low * margin, loss + high * margin])

        return LocalProgram(at.w, pieces, torch.arange(len(at.p)).repeat(2), finite=True)

    def _slopes(self, flip: Tensor, size: float) -> tuple[Tensor, Tensor]:
        """What the worst case adds to l(m), in margins, for m < 0 and m > 0, of each atom."""
        return self.flips(flip, size)


@dataclass(frozen=True)
class LabelChiSquared(_LabelBall):
    """Labels within chi-squared radius rho of their nominal chances, for each pair by itself:
    DPO-PRO, arXiv:2510.23590v1.

    With the chance c that the recorded label of a pair is right, its worst case is l(m) + (1 - c) m
    + sqrt(rho c (1 - c)) |m|: the loss of the soft label, plus a penalty on the confidence of the
    policy that is largest for doubtful labels. Where that would take the chance of the other label
    out of [0, 1], it stays there. The form is derived: of the paper the abstract was read.

    Args:
        radius: rho >= 0, a number or (R,) of them; None where only the kind matters.
        confidence: c, a number or (n,) of them in [0, 1], one for each pair: the nominal chance
            that its recorded label is right, such as an annotator's or a judge's. None: how often
            a comparison, u or -u, has this label in the sample. A pair that is recorded once is
            then certain, which no radius changes.

    Raises:
        ValueError: where it is used, a radius that is missing, negative or not finite, or
            confidences out of [0, 1] or not one for each pair.

    >>> from theory import LabelChiSquared, fit, worst_case
    >>> ball = LabelChiSquared(0.25, confidence=[0.8, 0.5])
    >>> worst = worst_case([[1.0], [-1.0]], [0.5], ball, beta=1.0)
    >>> worst.moves.mass.round(6).tolist()  # of 0.2 flipped to 0.4; of 0.5 turned back to 0.25
    [0.3, 0.375, 0.2, 0.125]
    >>> found = fit([[1.0], [-1.0]], LabelChiSquared(0.04), [0.8, 0.2], beta=1.0)
    >>> round(found.theta.exp().item(), 6)  # 0.72 to 0.28, for 0.2 + 0.2 sqrt(0.8 0.2) = 0.28
    2.571429
    """

    radius: ArrayLike | None = None
    confidence: ArrayLike | None = None

    facts = Facts(
        name="chi2-label",
        method="chi2-label-dpo",
        title="chi-squared of labels",
        about="DPO over chi-squared balls of labels, exact (DPO-PRO)",
        source="DPO-PRO, arXiv:2510.23590v1",
        objective="chi2_label",
        option="label_rho",
        order=24,
    )

    def flips(self, flip: Tensor, size: Tensor | float) -> tuple[Tensor, Tensor]:
        return chi2_flips(flip, size)

    def reach(self, flip: Tensor) -> Tensor:
        return (flip * (1 - flip)).sqrt()

    def size_of(self, distance: Tensor) -> Tensor:
        return distance**2

    def rate(self, size: Tensor) -> Tensor:
        return 0.5 / size.sqrt()

    def local(self, at: AtFit) -> LocalProgram:
        if self.confidence is None and one_size(self) > 0:
            flip = self._flip(PairBatch(at.u.T[None], at.p[None]))
            if bool(((flip > 0) & (at.p > 0)).any()):
                raise ValueError(
                    "no limit law of LabelChiSquared is known where the confidences are those of"
                    " the sample, whose worst case is not linear in its frequencies. Give"
                    " confidence, or resample."
                )
        return super().local(at)


@dataclass(frozen=True)
class LabelTotalVariation(_LabelBall):
    """Labels within total variation rho of their nominal chances, for each pair by itself:
    arXiv:2607.01715v1, for two responses.

    With recorded labels that are certain the worst case of a pair is (1 - rho) l(m) + rho
    max(l(m), l(-m)); with the chance c that the label is right it is l(m) + (1 - c) m + rho |m|,
    the chance of the other label held in [0, 1].

    Args:
        radius: rho >= 0, a probability, a number or (R,) of them; None where only the kind matters.
        confidence: c, a number or (n,) of them in [0, 1], one for each pair: the nominal chance
            that its recorded label is right. None: how often a comparison, u or -u, has this label
            in the sample; 1 takes all labels as they are recorded.

    Raises:
        ValueError: where it is used, a radius that is missing, negative or not finite, or
            confidences out of [0, 1] or not one for each pair.

    >>> from theory import LabelTotalVariation, fit
    >>> found = fit([[1.0]], LabelTotalVariation(0.2), beta=1.0)
    >>> round(found.theta.exp().item(), 6)  # the odds of (0.8, 0.2)
    4.0
    """

    radius: ArrayLike | None = None
    confidence: ArrayLike | None = None

    facts = Facts(
        name="tv-label",
        method="tv-label-dpo",
        title="total variation of labels",
        about="DPO over total-variation balls of labels, exact",
        source="Wu et al., arXiv:2607.01715v1, for two responses",
        objective="tv_label",
        option="label_rho",
        order=25,
    )

    def flips(self, flip: Tensor, size: Tensor | float) -> tuple[Tensor, Tensor]:
        return tv_flips(flip, size)

    def reach(self, flip: Tensor) -> Tensor:
        return torch.ones_like(flip)

    def size_of(self, distance: Tensor) -> Tensor:
        return distance

    def rate(self, size: Tensor) -> Tensor:
        return torch.ones_like(size)

    def _slopes(self, flip: Tensor, size: float) -> tuple[Tensor, Tensor]:
        """The chances of the sample are its weights over those of both labels, so that the worst
        case of a comparison is linear in them: -rho |m| or, where a label is certain, all of it."""
        if self.confidence is not None:
            return super()._slopes(flip, size)
        low, high = self.flips(flip, size)
        # an atom with its label stays where the other label's chance is 0, and turns where it is 1
        return torch.where(low > 0, low.new_tensor(-size), 0.0), torch.where(high < 1, size, 1.0)


MEMBERS = (LabelChiSquared(), LabelTotalVariation())
ESTIMATORS = ()
