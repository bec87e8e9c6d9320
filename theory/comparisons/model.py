"""A robust preference model for people with a table of comparisons.

    model = PreferenceModel("price + time + C(comfort) + change", sides=("1", "2"), set="kl",
                            radius="cv", unpenalised=("order",))
    model.fit(table, table.choice == "choice1", groups=table.id)
    print(model.summary())

In scikit-learn's conventions: the constructor takes settings, `fit` takes data, results end in an
underscore.
"""

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from scipy.special import expit, xlogy
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.model_selection import GroupKFold
from sklearn.utils.validation import check_is_fitted

from theory.batch import ArrayLike, pair_batch
from theory.checks import check_clusters, check_number
from theory.comparisons.report import RadiusPath, Summary, WorstPairs
from theory.comparisons.table import (
    ORDER,
    as_table,
    read_design,
    signed_pairs,
)
from theory.fitting import dpo, far_bound, fit
from theory.inference import Inference, infer
from theory.policy import Array
from theory.radius_choice import suggest_radii
from theory.results import Fit
from theory.separable import separation
from theory.sets import SETS, AmbiguitySet
from theory.sets.wasserstein_free import WassersteinFree

# what moving a column that no set moves costs, against the others: the objective differs from that
# of an infinite cost by at most radius beta |coefficient|/1e4, which the gap counts; a larger cost
# would take digits off the certificate
_UNMOVED = 1e4
_FRACTIONS = (0.0, 0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)


class PreferenceModel(ClassifierMixin, BaseEstimator):
    """Preferences between two alternatives, log-linear in their features, fitted robustly.

    P(the first is preferred) = sigma(beta coef.x), x the features of the first less those of the
    second. coef minimises the worst mean log loss over an ambiguity set around the data: Eq. (1),
    (8), (9), arXiv:2502.01930v4; plain DPO (logistic regression) for `set=None` or a radius of 0.

    Args:
        formula: in the features of one alternative, as "price + time + C(comfort) + price:income"
            (formulaic); None: all columns, as numbers.
        sides: what tells the columns of the two alternatives apart, as ("1", "2") for price1 and
            price2; None: the columns are differences, first less second.
        set: "kl" or another of `theory.SETS`, or one with its settings, as
            `WassersteinFree(power=2)`; None: plain DPO.
        radius: its size in its own unit (nats for "kl", of the columns in `metric` for "w1-free");
            "coverage": the smallest that covers the truth with 95 % (`suggest_radii`; "kl",
            "w1-free", "w2-free"); "cv": the one of least held-out loss in cross-validation, whole
            groups held out where there are groups.
        of_collapse: in the place of `radius`, the share of the way to where the answer is that
            all alternatives are equal; between 0 and 1.
        beta: of the loss. With the reference policy at 0 it is the unit of the coefficients: those
            of a logistic regression for 1.
        unpenalised: columns that no set moves and no penalty shrinks. "order" (or "intercept")
            among them adds the effect of being shown first, (2y-1) 1 in signed differences. Sets
            that reweigh pairs (KL, chi-squared, CVaR, total variation) move no column at all.
        ties: "half": a comparison with the label 0.5 counts half for each answer; "drop".
        metric: in which features move, for Wasserstein sets: "columns": each in units of the root
            mean square of its differences; "whitened": of their whole second moment matrix, so that
            the answer does not depend on how categories are coded; "raw": as they are.
        bound: B of the coefficients in the unit of `metric`; None: none.
        level: of the intervals.
        folds: of the cross-validation.
        random_state: a seed, of the folds and of draws.

    Attributes:
        coef_: (d,) in the inverse units of the columns. names_: (d,). intercept_: the order effect,
            0 where it was not asked for.
        inference_: standard errors and intervals, as `theory.infer` says them of `coef_`.
        radius_, radius_why_: the size and how it came about. set_: the set with that size, or None.
        objective_, gap_, converged_, collapsed_: of the fit, in nats, with its certificate.
        dpo_: (d,) of plain DPO at the same beta. rival_beta_, rival_: the beta at which plain DPO
            is as far from the reference as this fit, and its coefficients: compare with it always.
        effective_: effective number of comparisons that the worst case leaves; NaN where features
            move.
        kl_: mean KL to the reference over the comparisons, in nats.
        n_comparisons_, n_ties_, n_groups_: what was fitted to.
        fit_: the `theory.Fit` in the unit of `metric`.

    Raises:
        ValueError: by `fit`: data that cannot be read, with row and column; separable comparisons,
            with the columns concerned; settings that do not go together.

    >>> import numpy as np
    >>> from theory import PreferenceModel
    >>> rng = np.random.default_rng(0)
    >>> x = rng.normal(size=(400, 2))
    >>> y = rng.random(400) < 1 / (1 + np.exp(-x @ [1.0, -0.5]))
    >>> model = PreferenceModel(set="kl", radius=0.01).fit(x, y)
    >>> model.coef_.round(2).tolist(), model.dpo_.round(2).tolist()
    ([0.56, -0.14], [0.87, -0.22])
    >>> model.predict_proba(x[:1]).round(2).tolist()
    [[0.48, 0.52]]
    """

    def __init__(
        self,
        formula: str | None = None,
        *,
        sides: tuple[str, str] | None = None,
        set: str | AmbiguitySet | None = "kl",
        radius: float | str | None = None,
        of_collapse: float | None = None,
        beta: float = 1.0,
        unpenalised: Sequence[str] = (),
        ties: Literal["half", "drop"] = "half",
        metric: Literal["columns", "whitened", "raw"] = "columns",
        bound: float | None = None,
        level: float = 0.95,
        folds: int = 5,
        random_state: int = 0,
    ) -> None:
        self.formula = formula
        self.sides = sides
        self.set = set
        self.radius = radius
        self.of_collapse = of_collapse
        self.beta = beta
        self.unpenalised = unpenalised
        self.ties = ties
        self.metric = metric
        self.bound = bound
        self.level = level
        self.folds = folds
        self.random_state = random_state

    # ------------------------------------------------------------------------------------- the fit
    def fit(
        self,
        X: pd.DataFrame | ArrayLike,
        y: ArrayLike,
        groups: ArrayLike | None = None,
        sample_weight: ArrayLike | None = None,
    ) -> "PreferenceModel":
        """Fit to comparisons.

        Args:
            X: (n, ...) a row for each comparison, as `formula` and `sides` read it.
            y: (n,) 1 or True where the first alternative was preferred, 0 or False where the
                second, 0.5 for a tie.
            groups: (n,) labels of people, prompts or sessions, whose comparisons may depend on each
                other: standard errors, coverage, folds and the bootstrap go by them.
            sample_weight: (n,) not negative.

        Returns:
            The model itself.
        """
        order = any(name in (ORDER, "intercept") for name in _texts(self.unpenalised))
        self.design_ = read_design(X, self.formula, self.sides, order)
        x = self.design_.differences(X)
        pairs = signed_pairs(x, y, sample_weight, self.ties)
        member = (
            None if groups is None else check_clusters(groups, len(x), name="groups")[pairs.row]
        )
        self.names_ = self.design_.names
        self.n_features_in_ = len(as_table(X).columns)
        if isinstance(X, pd.DataFrame):
            self.feature_names_in_ = np.array([str(name) for name in X.columns], dtype=object)
        self.classes_ = np.array([0, 1])
        self._pairs, self._member, self._free = pairs, member, self._unmoved()
        if self.bound is None and (found := separation(pairs.u, pairs.weights)) is not None:
            raise ValueError(f"{found.describe(self.names_)}.")
        own = _unit(x, self._free, self.metric)
        u = pairs.u @ own
        bound = self.bound
        if bound is None:
            bound = far_bound(pair_batch(u, pairs.weights), self.beta)
        plain = dpo(u, pairs.weights, beta=self.beta, bound=bound)
        self.dpo_ = own @ plain.theta.numpy()
        self._unit, self._bound = own, bound
        if self._free.any() and self._moves():
            self._unit = own * np.where(self._free, _UNMOVED, 1.0)
            if self.bound is None:  # gaps grow with the bound; robust coefficients are not larger
                self._bound = 4 * (1.0 + float(plain.theta.norm()))
        self._settle(member)
        return self

    def _settle(self, member: NDArray[np.intp] | None) -> None:
        """Everything that follows from the pairs."""
        pairs, how = self._pairs, self._how
        u = pd.DataFrame(pairs.u @ self._unit, columns=list(self.names_))
        self.set_, self.radius_, self.radius_why_ = self._sized(u.to_numpy())
        found = fit(u, self.set_, pairs.weights, **how)
        found = self._at_rest(found, u.to_numpy())
        self.fit_ = found
        self.coef_ = self._unit @ found.theta.numpy()
        self.intercept_ = float(self.coef_[-1]) if self.design_.order else 0.0
        self.objective_, self.converged_ = found.value.item(), bool(found.converged)
        self.gap_ = found.gap.item() + self._not_moved(found)
        self.collapsed_ = bool(found.collapsed)
        self.rival_beta_, self.rival_ = self._rival()
        self.kl_ = self._kl(self.coef_)
        self.n_comparisons_, self.n_ties_ = pairs.pairs, pairs.ties
        self.n_groups_ = None if member is None else int(member.max()) + 1
        self.effective_ = float("nan")
        if self.set_ is not None and self.set_.facts.reweights and not self.collapsed_:
            worst = found.worst
            assert not isinstance(worst, list) and worst.weights is not None
            self.effective_ = float(1 / np.square(self._by_row(worst.weights)).sum())
        self.inference_ = self._inferred(found, member)

    @property
    def _how(self) -> dict[str, Any]:
        tolerance = 1e-8 if self._free.any() and self._moves() else 1e-10
        return {"beta": self.beta, "bound": self._bound, "tolerance": tolerance}

    @property
    def _where(self) -> dict[str, Any]:
        return {"beta": self.beta, "bound": self._bound}

    def _moves(self) -> bool:
        """Whether the set moves features."""
        kind = self._kind()
        return kind is not None and not kind.facts.reweights

    def _unmoved(self) -> NDArray[np.bool_]:
        """(d,) which features no set moves."""
        wanted = {ORDER if name == "intercept" else name for name in _texts(self.unpenalised)}
        found = np.array([name in wanted for name in self.names_])
        missing = wanted - {name for name in self.names_}
        for name in list(missing):  # a column of the table, or a category with all its levels
            made = np.array(
                [
                    feature == f"C({name})" or feature.startswith((f"C({name})[", f"{name}["))
                    for feature in self.names_
                ]
            )
            if made.any():
                found |= made
                missing.remove(name)
        if missing:
            raise ValueError(
                f"unpenalised names {sorted(missing)[0]!r}, which is no feature; there are"
                f" {', '.join(self.names_)}."
            )
        return found

    # ---------------------------------------------------------------------------------- the radius
    def _kind(self) -> AmbiguitySet | None:
        if self.set is None or self.set == "dpo":
            return None
        if isinstance(self.set, AmbiguitySet):
            return self.set
        if self.set not in SETS:
            raise ValueError(f"set must be one of {', '.join(SETS)} or None, got {self.set!r}.")
        return SETS[self.set]

    def _sized(self, u: Array) -> tuple[AmbiguitySet | None, float, str]:
        """The set with its size, the size, and how it came about."""
        kind = self._kind()
        given = [name for name in ("radius", "of_collapse") if getattr(self, name) is not None]
        if kind is None:
            if given:
                raise ValueError(f"plain DPO has no radius: leave {given[0]} out, or name a set.")
            return None, 0.0, "plain DPO"
        if len(given) > 1:
            raise ValueError("give radius or of_collapse, not both.")
        if kind.facts.atoms:
            raise ValueError(
                f"{type(kind).__name__} needs distances between comparisons, which a model that"
                " predicts new ones does not have. Use fit(u, set) for it, or WassersteinFree."
            )
        if not given:
            own = getattr(kind, kind.facts.size)
            if own is not None:
                return kind, float(own), "given"
            raise ValueError(
                f"how large is {type(kind).__name__}? Give radius=, a number, 'coverage' or 'cv',"
                " or of_collapse=, a share between 0 and 1."
            )
        if self.of_collapse is not None:
            share = check_number("of_collapse", self.of_collapse)
            if not 0 <= share <= 1:
                raise ValueError(f"of_collapse must be between 0 and 1, got {share:g}.")
            size = self._part(kind, share, u)
            return kind.sized(size), size, f"{share:.0%} of the way to collapse"
        if self.radius == "coverage":
            size = self._coverage(kind, u)
            by = "" if self._member is None else ", groups counted"
            return kind.sized(size), size, f"covers the truth with 95 %{by}"
        if self.radius == "cv":
            size, share = self._cross_validated(kind, u)
            by = "groups" if self._member is not None else "comparisons"
            why = f"{share:.0%} of the way to collapse, by {self.folds}-fold validation over {by}"
            return kind.sized(size), size, why
        if isinstance(self.radius, str):
            raise ValueError(f"radius must be a number, 'coverage' or 'cv', got {self.radius!r}.")
        assert self.radius is not None
        size = check_number("radius", self.radius)
        return (None if size == 0 and kind.smallest == 0 else kind.sized(size)), size, "given"

    def _part(self, kind: AmbiguitySet, share: float, u: Array) -> float:
        """The size at a share of the way to collapse."""
        if not (self._free.any() and isinstance(kind, WassersteinFree)):
            return kind.size_at(share, pair_batch(u, self._pairs.weights), **self._where)
        return share * self._rest(kind, u)[0]

    def _rest(self, kind: WassersteinFree, u: Array) -> tuple[float, Array]:
        """Where all features that may move have the coefficient 0, and the others' coefficients.

        There the gradient of the mean loss, beta E sigma(-m) u over the moved features, is as large
        as the slope of the penalty, radius beta times 1 (p = 1) or (E sigma(-m)²)^(1/2) (p = 2).
        """
        if kind.label_cost is not None:
            raise ValueError(
                "of_collapse, 'cv' and 'coverage' do not know where W1 with labels leaves only the"
                " unpenalised columns: give its radius, or leave unpenalised out."
            )
        weights, free = self._pairs.weights, self._free
        found = dpo(u[:, free], weights, **self._how).theta.numpy()
        down = expit(-self.beta * u[:, free] @ found)
        pull = float(np.linalg.norm((weights * down) @ u[:, ~free]))
        theta = np.zeros(len(free))
        theta[free] = found
        return pull / (1.0 if kind.power == 1 else float(np.sqrt(weights @ down**2))), theta

    def _at_rest(self, found: Fit, u: Array) -> Fit:
        """Exactly 0 for the features that move, where the radius is beyond all that they say."""
        kind = self.set_
        if not (isinstance(kind, WassersteinFree) and self._free.any()):
            return found
        if kind.label_cost is not None:
            return found
        edge, theta = self._rest(kind, u)
        if self.radius_ < edge:
            return found
        alone = dpo(u, self._pairs.weights, **self._how)
        value = float(self._pairs.weights @ np.logaddexp(0, -self.beta * u @ theta))
        exact = torch.tensor(value, dtype=torch.float64)
        assert found._made is not None
        return Fit(
            torch.from_numpy(theta),
            exact,
            (exact - found.value).abs().minimum(exact),
            found.dual,
            alone.converged,
            torch.tensor(True),
            found.iterations,
            found.at_bound,
            found._made,
        )

    def _not_moved(self, found: Fit) -> float:
        """What the finite cost of moving unpenalised columns may add to the objective, in nats."""
        if not (isinstance(self.set_, WassersteinFree) and self._free.any()):
            return 0.0
        fixed = found.theta.numpy()[self._free]
        return float(self.radius_ * self.beta * np.linalg.norm(fixed))

    def _coverage(self, kind: AmbiguitySet, u: Array) -> float:
        name = {"kl": "kl", "w1-free": "w1", "w2-free": "w2"}.get(kind.name)
        if name is None or (name != "kl" and self._free.any()):
            raise ValueError(
                f"a radius that covers the truth is known for kl, and for w1-free and w2-free"
                f" without unpenalised columns, not for {kind.name} here. Give radius or"
                " of_collapse, or take 'cv'."
            )
        choice = suggest_radii(
            u, weights=self._pairs.weights, groups=self._member, beta=self.beta, bound=self._bound
        )
        covers = getattr(choice, name).theta
        return float(choice.w2.theta if covers is None else covers)

    def _cross_validated(self, kind: AmbiguitySet, u: Array) -> tuple[float, float]:
        """The size of least held-out loss, and its share of the way to collapse."""
        shares = [x for x in _FRACTIONS if x > 0 or kind.smallest == 0]
        sizes = np.array([self._part(kind, x, u) for x in shares])
        if not np.isfinite(sizes).all() or len(set(sizes)) < 2:
            raise ValueError(
                f"{type(kind).__name__} has no radii to choose among here: its collapse radius is"
                f" {sizes[-1]:g}. Give a radius."
            )
        weights = self._pairs.weights
        unit = self._pairs.row if self._member is None else self._member
        folds = GroupKFold(self.folds, shuffle=True, random_state=self.random_state)
        if len(np.unique(unit)) < self.folds:
            raise ValueError(
                f"{self.folds} folds need as many groups or comparisons, there are"
                f" {len(np.unique(unit))}. Take fewer folds."
            )
        held = np.zeros(len(sizes))
        for train, test in folds.split(u, groups=unit):
            inside = weights[train] / weights[train].sum()
            found = fit(u[train], kind.sized(sizes), inside, **self._how).theta.numpy()
            loss = np.logaddexp(0, -self.beta * u[test] @ found.T)
            held += weights[test] @ loss
        best = int(np.argmin(held))
        self.cv_ = pd.DataFrame({"share": shares, "radius": sizes, "held_out_loss": held})
        return float(sizes[best]), shares[best]

    # ------------------------------------------------------------------------ what follows from it
    def _inferred(self, found: Fit, member: NDArray[np.intp] | None) -> Inference | None:
        """In the columns' own units; None where the fit is exactly at rest."""
        if bool(found.collapsed):
            return None
        pairs = self._pairs
        # a tie is two rows of one comparison, which depend on each other
        unit = pairs.row if member is None else member
        once = member is None and len(np.unique(pairs.row)) == len(pairs.row)
        equal = bool(np.allclose(pairs.weights, pairs.weights[0], rtol=1e-9, atol=0))
        clusters = None if once and equal else unit
        seen = infer(found, clusters=clusters, level=self.level, seed=self.random_state)
        return seen.in_units(self._unit, self.names_)

    def _rival(self) -> tuple[float, Array]:
        """Plain DPO at the beta at which its KL to the reference is that of the fit.

        Its minimiser at beta s is 1/s times that at beta, so that a line search in s is all.
        """
        target = self._kl(self.coef_)
        if self.kl_is_zero(target):
            return float("inf"), np.zeros_like(self.coef_)
        low, high = 0.0, 1.0
        while self._kl(high * self.dpo_) < target and high < 1e6:
            low, high = high, 2 * high
        for _ in range(80):
            middle = (low + high) / 2
            low, high = (middle, high) if self._kl(middle * self.dpo_) < target else (low, middle)
        return self.beta / high, high * self.dpo_

    @staticmethod
    def kl_is_zero(kl: float) -> bool:
        """Whether a policy is the reference but for rounding."""
        return kl < 1e-14

    def _kl(self, coef: Array) -> float:
        """Mean over the comparisons of KL(policy || uniform) on the two alternatives, in nats; the
        policy chooses the first with the probability that the model gives it."""
        chance = expit(self.beta * self._pairs.u @ coef)
        each = xlogy(chance, 2 * chance) + xlogy(1 - chance, 2 * (1 - chance))
        return float(self._pairs.weights @ each)

    def _by_row(self, q: Array) -> Array:
        """Weights of the comparisons from those of their signed rows."""
        _, place = np.unique(self._pairs.row, return_inverse=True)
        return np.bincount(place, q).astype(float)

    # ------------------------------------------------------------------------------- scikit-learn's
    def decision_function(self, X: pd.DataFrame | ArrayLike) -> Array:
        """(n,) log-odds that the first alternative is preferred."""
        check_is_fitted(self)
        return self.beta * self.design_.differences(X) @ self.coef_

    def predict_proba(self, X: pd.DataFrame | ArrayLike) -> Array:
        """(n, 2) probabilities that the second, and that the first alternative is preferred."""
        chance = expit(self.decision_function(X))
        return np.column_stack([1 - chance, chance])

    def predict(self, X: pd.DataFrame | ArrayLike) -> NDArray[np.intp]:
        """(n,) 1 where the first alternative is the likelier choice, else 0."""
        return (self.decision_function(X) > 0).astype(np.intp)

    def score(
        self,
        X: pd.DataFrame | ArrayLike,
        y: ArrayLike,
        sample_weight: ArrayLike | None = None,
    ) -> float:
        """Mean log-likelihood of comparisons, in nats: -log 2 for a coin, larger is better. For the
        share that is predicted rightly use `scoring="accuracy"`."""
        x = self.design_.differences(X)
        pairs = signed_pairs(x, y, sample_weight, self.ties)
        return -float(pairs.weights @ np.logaddexp(0, -self.beta * pairs.u @ self.coef_))

    # ----------------------------------------------------------------------------------- results
    def summary(self) -> Summary:
        """The table of results, to be printed or written with `to_csv` and `to_latex`."""
        check_is_fitted(self)
        return Summary.of(self)

    def to_csv(self, path: Any) -> None:
        """Write the table of coefficients."""
        self.summary().to_csv(path)

    def to_latex(self, path: Any = None) -> str:
        """The table of coefficients in LaTeX (booktabs), also written where a path is given."""
        return self.summary().to_latex(path)

    def worst_case(self) -> WorstPairs:
        """What the adversary does to each comparison at the fit.

        Returns:
            A `WorstPairs`: its `table` has a row for each comparison, `by` sums over groups.

        Raises:
            ValueError: plain DPO, which has no adversary.
        """
        check_is_fitted(self)
        if self.set_ is None:
            raise ValueError("plain DPO has no ambiguity set, and so no worst case. Name a set.")
        worst = self.fit_.worst
        assert not isinstance(worst, list)
        rows = np.unique(self._pairs.row)
        mass = self._by_row(self._pairs.weights)
        table = pd.DataFrame({"row": rows, "share": mass})
        if worst.weights is not None:
            table["worst_share"] = self._by_row(worst.weights)
            table["times"] = table.worst_share / table.share
        else:
            assert worst.moves is not None
            moves = worst.moves
            _, place = np.unique(self._pairs.row, return_inverse=True)
            moved = np.bincount(place[moves.source], moves.mass * moves.distance, len(rows))
            turned = np.bincount(place[moves.source], moves.mass * moves.flipped, len(rows))
            table["moved"] = moved / mass
            table["flipped"] = turned / mass
        margin = self.beta * self._pairs.u @ self.coef_
        table["loss"] = self._by_row(self._pairs.weights * np.logaddexp(0, -margin)) / mass
        return WorstPairs(table, worst, self.n_comparisons_)

    def path(self, shares: ArrayLike | None = None) -> RadiusPath:
        """Coefficients over radii, from the data alone to collapse, in one batched fit.

        Args:
            shares: of the way to collapse, between 0 and 1; None: 25 of them.

        Raises:
            ValueError: plain DPO, or a set that never collapses.
        """
        check_is_fitted(self)
        kind = self._kind()
        if kind is None:
            raise ValueError("plain DPO has no radius to vary. Name a set.")
        u = self._pairs.u @ self._unit
        given = np.linspace(0, 0.96, 25) if shares is None else np.asarray(shares, dtype=float)
        asked = [float(x) for x in given if x > 0 or kind.smallest == 0]
        sizes = np.array([self._part(kind, x, u) for x in asked])
        if not np.isfinite(sizes).all():
            raise ValueError(
                f"the collapse radius of {type(kind).__name__} is infinite here, so that there are"
                " no shares of it."
            )
        found = fit(u, kind.sized(sizes), self._pairs.weights, **self._how)
        coef = found.theta.numpy() @ self._unit.T
        table = pd.DataFrame({"share": asked, "radius": sizes, "objective": found.value.numpy()})
        table["kl"] = [self._kl(row) for row in coef]
        table["converged"] = found.converged.numpy()
        return RadiusPath(
            pd.concat([table, pd.DataFrame(coef, columns=list(self.names_))], axis=1),
            self.names_,
            self.radius_,
            kind.facts.symbol,
        )

    def bootstrap(self, resamples: int = 300) -> pd.DataFrame:
        """Coefficients of fits to resampled comparisons, or groups where there are groups:
        (resamples, d), one batched fit. The size of the set is kept.

        Efron and Tibshirani (1993); percentile intervals are its quantiles.
        """
        check_is_fitted(self)
        unit = self._pairs.row if self._member is None else self._member
        _, place = np.unique(unit, return_inverse=True)
        count = int(place.max()) + 1
        rng = np.random.default_rng(self.random_state)
        times = rng.multinomial(count, np.full(count, 1 / count), size=resamples)
        weights = times[:, place] * self._pairs.weights
        weights /= weights.sum(1, keepdims=True)
        found = fit(self._pairs.u @ self._unit, self.set_, weights, **self._how)
        return pd.DataFrame(found.theta.numpy() @ self._unit.T, columns=list(self.names_))


def _texts(names: Sequence[str]) -> Sequence[str]:
    return (names,) if isinstance(names, str) else tuple(names)


def _unit(x: Array, free: NDArray[np.bool_], metric: str) -> Array:
    """(d, d): u times this is in the unit of the metric, and coef is this times theta."""
    d = x.shape[1]
    if metric not in ("columns", "whitened", "raw"):
        raise ValueError(f"metric must be 'columns', 'whitened' or 'raw', got {metric!r}.")
    size = np.sqrt(np.mean(x**2, axis=0))
    unit = np.diag(np.ones(d) if metric == "raw" else 1 / size)
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
