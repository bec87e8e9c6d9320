"""Signed pairs in the unit of a metric, and the set around them: which size, and its fit.

Columns that no set moves cost 1e4 times as much to move as the others, in the same metric: dividing
their coefficients by 1e4 leaves them out of the norm that a transport ball charges, up to radius
beta |coefficient|/1e4 in the objective, which the gap counts.
"""

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from scipy.special import expit
from sklearn.model_selection import GroupKFold

from theory.batch import pair_batch
from theory.checks import check_number
from theory.comparisons.table import SignedPairs
from theory.fitting import dpo, far_bound, fit
from theory.policy import Array
from theory.radius_choice import suggest_radii
from theory.results import Fit
from theory.separable import separation
from theory.sets import SETS, AmbiguitySet
from theory.sets.wasserstein_free import WassersteinFree

_UNMOVED = 1e4  # a larger cost would take digits off the certificate
_SHARES = (0.0, 0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
METRICS = ("columns", "whitened", "raw")


@contextmanager
def scales_meant() -> Iterator[None]:
    """Without the warning of features in very different units: unpenalised ones are meant to be."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "feature .* times as large as feature", UserWarning)
        yield


def the_set(given: str | AmbiguitySet | None) -> AmbiguitySet | None:
    """A set by its name; None: plain DPO."""
    if given is None or (isinstance(given, str) and given == "dpo"):
        return None
    if isinstance(given, AmbiguitySet):
        kind = given
    elif given in SETS:
        kind = SETS[given]
    else:
        raise ValueError(f"set must be one of {', '.join(SETS)} or None, got {given!r}.")
    if kind.facts.atoms:
        raise ValueError(
            f"{type(kind).__name__} needs distances between comparisons, which a model that"
            " predicts new ones does not have. Use fit(u, set) for it, or WassersteinFree."
        )
    return kind


# ----------------------------------------------------------------------------- in the metric's unit
@dataclass(frozen=True, eq=False)
class Scaled:
    """pairs: as they are. unit: (d, d), pairs.u times this is in the unit of the metric, and a
    coefficient is this times theta. free: (d,) which columns a set that moves features does not
    move. members: (m,) the group of each row, in none, one or two groupings. plain: (d,)
    coefficients of plain DPO. bound: of theta."""

    pairs: SignedPairs
    unit: Array
    free: NDArray[np.bool_]
    members: tuple[NDArray[np.intp], ...]
    plain: Array
    names: tuple[str, ...]
    beta: float
    bound: float

    @cached_property
    def u(self) -> Array:
        """(m, d) signed differences in the unit of the metric."""
        return self.pairs.u @ self.unit

    @property
    def weights(self) -> Array:
        return self.pairs.weights

    @property
    def units(self) -> NDArray[np.intp]:
        """(m,) what is independent of what: groups, the first where there are two groupings, or
        comparisons, of which a tie has two rows."""
        return self.members[0] if self.members else self.pairs.row

    def fit(self, set: AmbiguitySet | None, weights: Array | None = None) -> Fit:
        """The fit of the pairs, or of R samples of them with weights (R, m)."""
        u = pd.DataFrame(self.u, columns=list(self.names))
        w = self.weights if weights is None else weights
        with scales_meant():
            found = fit(u, set, w, beta=self.beta, bound=self.bound, tolerance=self._tolerance)
        return self._at_rest(found, set) if found.theta.ndim == 1 else found

    @property
    def _tolerance(self) -> float:
        return 1e-8 if self.free.any() else 1e-10

    def parts(self, kind: AmbiguitySet, shares: Sequence[float]) -> Array:
        """The sizes at these shares of the way to collapse."""
        if self.free.any():
            return np.array(shares) * self._rest(kind)[0]
        pairs, how = pair_batch(self.u, self.weights), {"beta": self.beta, "bound": self.bound}
        return np.array([kind.size_at(share, pairs, **how) for share in shares])

    def _rest(self, kind: AmbiguitySet) -> tuple[float, Array]:
        """Where all features that may move have the coefficient 0, and theta there.

        The gradient of the mean loss, beta E sigma(-m) u over the moved features, is there as large
        as the slope of the penalty, radius beta times 1 (p = 1) or (E sigma(-m)²)^(1/2) (p = 2).
        """
        if not isinstance(kind, WassersteinFree) or kind.label_cost is not None:
            raise ValueError(
                f"where {kind.name} leaves only the unpenalised columns is not known: give its"
                f" {kind.facts.size} as a number, or leave unpenalised out."
            )
        u, free = self.u, self.free
        found = dpo(u[:, free], self.weights, beta=self.beta, bound=self.bound).theta.numpy()
        down = expit(-self.beta * u[:, free] @ found)
        pull = float(np.linalg.norm((self.weights * down) @ u[:, ~free]))
        theta = np.zeros(len(free))
        theta[free] = found
        return pull / (1.0 if kind.power == 1 else float(np.sqrt(self.weights @ down**2))), theta

    def _at_rest(self, found: Fit, set: AmbiguitySet | None) -> Fit:
        """Exactly 0 for the features that move, where the radius is beyond all that they say."""
        if not (isinstance(set, WassersteinFree) and self.free.any() and set.label_cost is None):
            return found
        edge, theta = self._rest(set)
        if set.size < edge:
            return found
        loss = np.logaddexp(0, -self.beta * self.u @ theta)
        value = torch.tensor(float(self.weights @ loss), dtype=torch.float64)
        return replace(
            found,
            theta=torch.from_numpy(theta),
            value=value,
            gap=(value - found.value + found.gap).clamp(min=0).minimum(value),
            collapsed=torch.tensor(True),
        )

    def not_moved(self, found: Fit, set: AmbiguitySet | None) -> float:
        """What the finite cost of moving unpenalised columns may add to the objective, in nats."""
        if not (isinstance(set, WassersteinFree) and self.free.any()):
            return 0.0
        return float(set.size * self.beta * np.linalg.norm(found.theta.numpy()[self.free]))


def scale(
    pairs: SignedPairs,
    x: Array,
    free: NDArray[np.bool_],
    kind: AmbiguitySet | None,
    members: tuple[NDArray[np.intp], ...],
    metric: str,
    names: Sequence[str],
    *,
    beta: float,
    bound: float | None,
) -> Scaled:
    """The pairs in the unit of a metric; x: (n, d) differences of all comparisons."""
    unit = _unit(x, free, metric)
    u = pairs.u @ unit
    far = far_bound(pair_batch(u, pairs.weights), beta) if bound is None else bound
    found = dpo(u, pairs.weights, beta=beta, bound=far)
    theta = found.theta.numpy()
    plain = unit @ theta
    moves = kind is not None and kind.knows_units
    # other sets have refused such comparisons
    if bound is None and moves and separation(pairs.u, pairs.weights) is not None:
        plain = np.full(len(plain), np.nan)
    if free.any() and moves:
        unit = unit * np.where(free, _UNMOVED, 1.0)
        if bound is None:  # gaps grow with the bound, and robust coefficients are not larger
            far = 4 * (1.0 + float(np.linalg.norm(theta)))
    held = free if moves else free & False
    return Scaled(pairs, unit, held, members, plain, tuple(names), beta, far)


def _unit(x: Array, free: NDArray[np.bool_], metric: str) -> Array:
    if metric not in METRICS:
        raise ValueError(f"metric must be one of {', '.join(METRICS)}, got {metric!r}.")
    size = np.sqrt(np.mean(x**2, axis=0))
    unit = np.diag(np.ones(len(size)) if metric == "raw" else 1 / size)
    if metric == "whitened":
        moved = np.flatnonzero(~free)
        second = x[:, moved].T @ x[:, moved] / len(x)
        values, vectors = np.linalg.eigh(second / np.outer(size[moved], size[moved]))
        if len(values) and values[0] <= 1e-10 * values[-1]:
            raise ValueError(
                "the features are linearly dependent, so that their second moment matrix has no"
                " inverse root: leave one of them out."
            )
        root = vectors / np.sqrt(values) @ vectors.T
        unit[np.ix_(moved, moved)] = root / size[moved][:, None]
    return unit


# --------------------------------------------------------------------------------------- which size
@dataclass(frozen=True, eq=False)
class Sized:
    """set: with its size; None: plain DPO. why: how the size came about. validation: the table of
    the cross-validation, where there was one."""

    set: AmbiguitySet | None
    size: float
    why: str
    validation: pd.DataFrame | None = None


def choose(
    kind: AmbiguitySet | None,
    scaled: Scaled,
    *,
    radius: float | str | None,
    of_collapse: float | None,
    folds: int,
    seed: int,
) -> Sized:
    """The set with the size that is asked for, as `PreferenceModel` has it.

    Raises:
        ValueError: no size, two, or one that cannot be had here.
    """
    if kind is None:
        if radius is not None or of_collapse is not None:
            raise ValueError("plain DPO has no radius: leave it out, or name a set.")
        return Sized(None, 0.0, "plain DPO")
    if radius is not None and of_collapse is not None:
        raise ValueError("give radius or of_collapse, not both.")
    if of_collapse is not None:
        share = check_number("of_collapse", of_collapse)
        if not 0 <= share <= 1:
            raise ValueError(f"of_collapse must be between 0 and 1, got {share:g}.")
        size = float(scaled.parts(kind, [share])[0])
        return _of(kind, size, f"{share:.0%} of the way to collapse")
    if radius is None:
        own = getattr(kind, kind.facts.size)
        if own is None:
            raise ValueError(
                f"how large is {type(kind).__name__}? Give radius=, a number, 'coverage' or 'cv',"
                " or of_collapse=, a share between 0 and 1."
            )
        return _of(kind, check_number(kind.facts.size, own), "given")
    if isinstance(radius, str):
        if radius == "coverage":
            by = ", groups counted" if scaled.members else ""
            return _of(kind, _coverage(kind, scaled), f"covers the truth with 95 %{by}")
        if radius == "cv":
            return _cross_validated(kind, scaled, folds, seed)
        raise ValueError(f"radius must be a number, 'coverage' or 'cv', got {radius!r}.")
    return _of(kind, check_number("radius", radius), "given")


def _of(kind: AmbiguitySet, size: float, why: str, table: pd.DataFrame | None = None) -> Sized:
    """A radius of 0 is plain DPO."""
    nothing = size == 0 and kind.smallest == 0 and kind.holds_data
    return Sized(None if nothing else kind.sized(size), size, why, table)


def _coverage(kind: AmbiguitySet, scaled: Scaled) -> float:
    name = {"kl": "kl", "w1-free": "w1", "w2-free": "w2"}.get(kind.name)
    if name is None or scaled.free.any():
        raise ValueError(
            "a radius that covers the truth is known for kl, and for w1-free and w2-free without"
            f" unpenalised columns (as the order effect), not for {kind.name} here. Give radius or"
            " of_collapse, or take 'cv'."
        )
    if len(scaled.members) > 1:
        raise ValueError(
            "a radius that covers the truth is known for one grouping, not for two that cross. Give"
            " radius or of_collapse, take 'cv', or fit with one grouping and give its radius_."
        )
    choice = suggest_radii(
        scaled.u,
        weights=scaled.weights,
        groups=scaled.units,
        beta=scaled.beta,
        bound=scaled.bound,
    )
    return float(getattr(choice, name).theta)


def _cross_validated(kind: AmbiguitySet, scaled: Scaled, folds: int, seed: int) -> Sized:
    """The size of least held-out loss, whole groups held out: one batched fit for each fold."""
    shares = [x for x in _SHARES if x > 0 or kind.smallest == 0]
    sizes = scaled.parts(kind, shares)
    if not np.isfinite(sizes).all() or len(np.unique(sizes)) < 2:
        raise ValueError(
            f"{type(kind).__name__} has no radii to choose among here: its collapse radius is"
            f" {sizes[-1]:g}. Give a radius."
        )
    count = len(np.unique(scaled.units))
    if not 2 <= folds <= count:
        raise ValueError(
            f"folds must be from 2 to the number of groups or comparisons, {count}, got {folds}."
            f" Set folds={max(count, 2)}, or fewer."
        )
    split = GroupKFold(folds, shuffle=True, random_state=seed)
    held = np.zeros(len(sizes))
    for train, test in split.split(scaled.u, groups=scaled.units):
        weights = np.zeros(len(scaled.weights))
        weights[train] = scaled.weights[train] / scaled.weights[train].sum()
        theta = scaled.fit(kind.sized(sizes), np.tile(weights, (len(sizes), 1))).theta.numpy()
        loss = np.logaddexp(0, -scaled.beta * scaled.u[test] @ theta.T)
        held += scaled.weights[test] @ loss
    best = int(np.argmin(held))
    table = pd.DataFrame({"share": shares, "radius": sizes, "held_out_loss": held})
    by = ("comparisons", "groups", "the first groups")[len(scaled.members)]
    why = f"{shares[best]:.0%} of the way to collapse, by {folds}-fold validation over {by}"
    return _of(kind, float(sizes[best]), why, table)
