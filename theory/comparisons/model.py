"""A robust preference model for people with a table of comparisons.

    model = PreferenceModel("price + time + C(comfort) + change", sides=("1", "2"), set="kl",
                            radius="cv", unpenalised=("order",))
    model.fit(table, table.choice == "choice1", groups=table.id)
    print(model.summary())

In scikit-learn's conventions: the constructor takes settings, `fit` takes data, results end in an
underscore.
"""

from collections.abc import Hashable, Sequence
from typing import Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.optimize import brentq
from scipy.special import expit, xlogy
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils.validation import check_is_fitted

from theory.batch import ArrayLike
from theory.checks import check_count, check_groupings, check_level
from theory.comparisons.radius import choose, scale, scales_meant, the_set
from theory.comparisons.report import RadiusPath, WorstPairs
from theory.comparisons.summary import Results, Summary
from theory.comparisons.table import (
    ALIASES,
    ORDER,
    SignedPairs,
    as_table,
    check_index,
    read_design,
    signed_pairs,
)
from theory.flip_rate import FlipRate, estimate_flip_rate, flip_rates_by_group
from theory.inference import Inference, Wald, infer
from theory.policy import Array
from theory.results import Fit
from theory.separable import separation
from theory.sets import AmbiguitySet

_NOTHING = 1e-14  # KL to the reference, in nats, of a policy that is the reference but for rounding


class PreferenceModel(ClassifierMixin, BaseEstimator):
    """Preferences between two alternatives, log-linear in their features, fitted robustly.

    P(the first is preferred) = sigma(beta coef.x), x the features of the first less those of the
    second. coef minimises the worst mean log loss over an ambiguity set around the data: Section
    4.1, arXiv:2502.01930v4; plain DPO (logistic regression) for `set=None` or a radius of 0.

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
        groups: name of the column of the table that says which comparisons belong together, or of
            two columns, where `fit` is given none; scikit-learn's searches hand a table on, but no
            groups.
        resamples: fits to smaller samples, where the law of the fit is not normal.

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
        n_comparisons_, n_ties_, n_groups_: what was fitted to; the last None without groups, a
            pair of numbers with two groupings.
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
        groups: str | Sequence[str] | None = None,
        resamples: int = 200,
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
        self.groups = groups
        self.resamples = resamples

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
            X: (n, ...) a row for each comparison, as `formula` and `sides` read it: a table of
                pandas, polars or pyarrow, or an array.
            y: (n,) 1 or True where the first alternative was preferred, 0 or False where the
                second, 0.5 for a tie.
            groups: (n,) labels of people, prompts or sessions, whose comparisons may depend on each
                other: standard errors, coverage, folds and the bootstrap go by them. (n, 2) for two
                groupings that cross, such as people and the items that all of them saw: standard
                errors and the bootstrap go by both, folds by the first.
            sample_weight: (n,) not negative.

        Returns:
            The model itself.
        """
        check_level(self.level)
        check_count("resamples", self.resamples)
        check_index(X, y=y, groups=groups, sample_weight=sample_weight)
        order = any(name in ALIASES for name in _texts(self.unpenalised))
        columns = () if self.groups is None else _texts(self.groups)
        self.design_, x = read_design(X, self.formula, self.sides, order, columns)
        pairs = signed_pairs(x, y, sample_weight, self.ties)
        self._rows = len(x)
        if len(pairs.row) == 2 * pairs.pairs:
            raise ValueError("all comparisons are ties, from which no preference can be fitted.")
        if groups is None and columns:
            named = as_table(X, columns)
            groups = named[columns[0]] if len(columns) == 1 else named
        members: tuple[NDArray[np.intp], ...] = ()
        if groups is not None:
            found = check_groupings(groups, len(x), name="groups")
            members = tuple(member[pairs.row] for member in found)
        self.names_ = self.design_.names
        read = as_table(X)
        self.n_features_in_ = len(read.columns)
        if isinstance(X, pd.DataFrame) or hasattr(X, "to_pandas"):
            self.feature_names_in_ = np.array(read.columns, dtype=object)
        self.classes_ = np.array([0, 1])
        free, kind = self._unmoved(), the_set(self.set)
        if self.bound is None:
            _refuse_separable(pairs, free, kind, self.names_)
        scaled = scale(
            pairs,
            x,
            free,
            kind,
            members,
            self.metric,
            self.names_,
            beta=self.beta,
            bound=self.bound,
        )
        self.dpo_ = scaled.plain
        sized = choose(
            kind,
            scaled,
            radius=self.radius,
            of_collapse=self.of_collapse,
            folds=self.folds,
            seed=self.random_state,
        )
        self.set_, self.radius_, self.radius_why_ = sized.set, sized.size, sized.why
        self.cv_ = sized.validation
        self._scaled = scaled
        self._settle(scaled.fit(self.set_))
        return self

    def _settle(self, found: Fit) -> None:
        """Everything that follows from the fit."""
        scaled = self._scaled
        pairs = scaled.pairs
        self.fit_ = found
        self.coef_ = scaled.unit @ found.theta.numpy()
        self.intercept_ = float(self.coef_[-1]) if self.design_.order else 0.0
        self.objective_, self.converged_ = found.value.item(), bool(found.converged)
        self.gap_ = found.gap.item() + scaled.not_moved(found, self.set_)
        self.collapsed_ = bool(found.collapsed)
        self.rival_beta_, self.rival_ = self._rival()
        self.kl_ = self._kl(self.coef_)
        self.n_comparisons_, self.n_ties_ = pairs.pairs, pairs.ties
        counts = tuple(len(np.unique(member)) for member in scaled.members)
        self.n_groups_ = counts if len(counts) > 1 else next(iter(counts), None)
        self.effective_ = float("nan")
        if self.set_ is not None and self.set_.facts.reweights and not self.collapsed_:
            worst = found.worst
            assert not isinstance(worst, list) and worst.weights is not None
            self.effective_ = float(1 / np.square(pairs.by_comparison(worst.weights)).sum())
        self.inference_, self._no_inference = self._inferred(found)

    def _unmoved(self) -> NDArray[np.bool_]:
        """(d,) which features no set moves."""
        wanted = {ORDER if name in ALIASES else name for name in _texts(self.unpenalised)}
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

    # ------------------------------------------------------------------------ what follows from it
    def _inferred(self, found: Fit) -> tuple[Inference | None, str]:
        """In the columns' own units; None, and why, where there is none."""
        if bool(found.collapsed):
            left = " but for the unpenalised columns" if self._scaled.free.any() else ""
            return None, (
                "the radius is at or beyond collapse: the set holds a law that knows no preference"
                f"{left}, and the answer is the reference"
            )
        scaled = self._scaled
        equal = bool(np.allclose(scaled.weights, scaled.weights[0], rtol=1e-9, atol=0))
        once = not scaled.members and len(np.unique(scaled.units)) == len(scaled.units)
        clusters = None if once and equal else scaled.units
        if len(scaled.members) > 1:
            clusters = np.column_stack(scaled.members)
        try:
            seen = infer(
                found,
                clusters=clusters,
                level=self.level,
                resamples=self.resamples,
                seed=self.random_state,
            )
        except (ValueError, RuntimeError) as error:  # the coefficients stand without
            return None, str(error)
        return seen.in_units(scaled.unit, self.names_), ""

    def _rival(self) -> tuple[float, Array]:
        """Plain DPO at the beta at which its KL to the reference is that of the fit.

        Its minimiser at beta s is 1/s times that at beta, so that a line search in s is all.
        """
        target = self._kl(self.coef_)
        if not np.isfinite(self.dpo_).all():
            return float("nan"), self.dpo_
        if target < _NOTHING:
            return float("inf"), np.zeros_like(self.coef_)
        low, high = 0.0, 1.0
        while self._kl(high * self.dpo_) < target and high < 1e6:
            low, high = high, 2 * high
        shrink = brentq(lambda s: self._kl(s * self.dpo_) - target, low, high, xtol=1e-14)
        return self.beta / shrink, shrink * self.dpo_

    def _kl(self, coef: Array) -> float:
        """Mean over the comparisons of KL(policy || uniform) on the two alternatives, in nats; the
        policy chooses the first with the probability that the model gives it."""
        chance = expit(self.beta * self._scaled.pairs.u @ coef)
        each = xlogy(chance, 2 * chance) + xlogy(1 - chance, 2 * (1 - chance))
        return float(self._scaled.pairs.weights @ each)

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
        check_index(X, y=y, sample_weight=sample_weight)
        x = self.design_.differences(X)
        pairs = signed_pairs(x, y, sample_weight, self.ties)
        return -float(pairs.weights @ np.logaddexp(0, -self.beta * pairs.u @ self.coef_))

    # ----------------------------------------------------------------------------------- results
    def summary(self, *, odds: bool = False) -> Summary:
        """The table of results, to be printed or written with `to_csv` and `to_latex`.

        Args:
            odds: odds ratios exp(beta coef) with their intervals in the place of coefficients: by
                how much the odds of an alternative are multiplied where the feature is larger by
                one.
        """
        check_is_fitted(self)
        return Summary.of(
            Results(
                names=self.names_,
                coef=self.coef_,
                inference=self.inference_,
                inferred=self._no_inference,
                dpo=self.dpo_,
                rival_beta=self.rival_beta_,
                rival=self.rival_,
                asked=the_set(self.set),
                set=self.set_,
                size=self.radius_,
                why=self.radius_why_,
                metric=self.metric,
                some_unmoved=bool(self._scaled.free.any()),
                level=self.level,
                comparisons=self.n_comparisons_,
                ties=self.n_ties_,
                ties_taken=self.ties,
                groups=self.n_groups_,
                objective=self.objective_,
                gap=self.gap_,
                converged=self.converged_,
                effective=self.effective_,
                kl=self.kl_,
                remarks=self.fit_.remarks,
                beta=self.beta,
                terms=self.design_.terms,
            ),
            odds,
        )

    def to_csv(self, path: Any, *, odds: bool = False) -> None:
        """Write the table of coefficients, or of odds ratios."""
        self.summary(odds=odds).to_csv(path)

    def to_latex(self, path: Any = None, *, odds: bool = False, **how: Any) -> str:
        """The table of coefficients, or of odds ratios, in LaTeX (booktabs), also written where a
        path is given; how: caption, label, names and columns, as `Summary.to_latex`."""
        return self.summary(odds=odds).to_latex(path, **how)

    def wald(self, *terms: str) -> Wald:
        """Wald's test that all coefficients of these terms are 0.

        Args:
            terms: of the formula, as "C(comfort)" for all its levels, or features by their names.

        Returns:
            A `theory.inference.Wald`: statistic, degrees of freedom, P; NaN where the law of the
            fit is not known to be normal.

        Raises:
            ValueError: no such term, a fit without standard errors, or a set that moves features:
                the robust coefficient of a feature without any effect is then not 0.
        """
        check_is_fitted(self)
        known = self.design_.terms | {name: (name,) for name in self.names_}
        unknown = [term for term in terms if term not in known]
        if unknown or not terms:
            raise ValueError(
                f"no term {unknown[0] if unknown else ''!r} to test; there are {', '.join(known)}."
            )
        if self.set_ is not None and self.set_.knows_units:
            raise ValueError(
                f"{self.set_.name} moves features, and shares its penalty among those that go"
                " together: the robust coefficient of a feature without any effect is not 0, and a"
                " test of that says nothing. Test with set=None."
            )
        if self.inference_ is None:
            raise ValueError(f"no standard errors to test with: {self._no_inference.rstrip('.')}.")
        return self.inference_.wald([name for term in terms for name in known[term]])

    def flip_rate(self) -> FlipRate:
        """The chance that an answer is turned round, if they follow the log-linear model but for
        that: `theory.estimate_flip_rate` of the comparisons, ties left out. It knows no set, and
        takes the answers for independent.

        Raises:
            ValueError: comparisons with weights that differ.
        """
        return estimate_flip_rate(self._answered()[0], level=self.level)

    def flip_rates_by_group(self, groups: ArrayLike) -> dict[Hashable, FlipRate]:
        """The same for each person, or any other groups: `theory.flip_rates_by_group`.

        Args:
            groups: (n,) a name for each row of the table that was fitted.

        Raises:
            ValueError: groups of another length, or comparisons with weights that differ.
        """
        u, row = self._answered()
        names = np.asarray(groups)
        if names.shape != (self._rows,):
            raise ValueError(
                f"groups must be ({self._rows},), a name for each row that was fitted, got"
                f" {names.shape}."
            )
        return flip_rates_by_group(u, names[row], level=self.level)

    def _answered(self) -> tuple[Array, NDArray[np.intp]]:
        """Signed differences of the comparisons that are no ties, and their rows."""
        check_is_fitted(self)
        pairs = self._scaled.pairs
        once = np.bincount(pairs.row)[pairs.row] == 1
        mass = pairs.weights[once]
        if not np.allclose(mass, mass[0], rtol=1e-9, atol=0):
            raise ValueError(
                f"the comparisons have weights that differ, from {mass.min():.3g} to"
                f" {mass.max():.3g} of the whole: the interval of a flip rate is of answers that"
                " count the same. Fit without sample_weight."
            )
        return pairs.u[once], pairs.row[once]

    def worst_case(self) -> WorstPairs:
        """What the adversary does to each comparison at the fit.

        Returns:
            A `WorstPairs`: its `table` has a row for each comparison, `by` sums over groups.

        Raises:
            ValueError: plain DPO, which has no adversary.
        """
        check_is_fitted(self)
        if self.set_ is None:
            why = "" if the_set(self.set) is None else f": its radius is 0 ({self.radius_why_})"
            raise ValueError(f"plain DPO has no worst case{why}. Take a set with another radius.")
        with scales_meant():
            worst = self.fit_.worst
        assert not isinstance(worst, list)
        pairs = self._scaled.pairs
        mass = pairs.by_comparison(pairs.weights)
        table = pd.DataFrame({"row": pairs.rows, "share": mass})
        if worst.weights is not None:
            table["worst_share"] = pairs.by_comparison(worst.weights)
            table["times"] = table.worst_share / table.share
        else:
            assert worst.moves is not None
            moves = worst.moves
            far, turned = moves.mass * moves.distance, moves.mass * moves.flipped
            table["moved"] = pairs.by_comparison(far, moves.source) / mass
            table["flipped"] = pairs.by_comparison(turned, moves.source) / mass
        margin = self.beta * pairs.u @ self.coef_
        table["loss"] = pairs.by_comparison(pairs.weights * np.logaddexp(0, -margin)) / mass
        return WorstPairs(table, worst, self.n_comparisons_)

    def path(self, shares: ArrayLike | None = None) -> RadiusPath:
        """Coefficients over radii, from the data alone to collapse, in one batched fit.

        Args:
            shares: of the way to collapse, between 0 and 1; None: 25 of them.

        Raises:
            ValueError: plain DPO, a set that never collapses, or shares out of range.
        """
        check_is_fitted(self)
        kind = the_set(self.set)
        if kind is None:
            raise ValueError("plain DPO has no radius to vary. Name a set.")
        given = np.linspace(0, 0.96, 25) if shares is None else np.asarray(shares, dtype=float)
        if given.ndim != 1 or not ((given >= 0) & (given <= 1)).all():
            raise ValueError(
                "shares are a list of numbers from 0, the data alone, to 1, collapse; got"
                f" {shares!r}."
            )
        asked = [float(x) for x in given if x > 0 or kind.smallest == 0]
        sizes = self._scaled.parts(kind, asked)
        if not np.isfinite(sizes).all():
            raise ValueError(
                f"the collapse radius of {type(kind).__name__} is infinite here, so that there are"
                " no shares of it."
            )
        found = self._scaled.fit(kind.sized(sizes))
        coef = found.theta.numpy() @ self._scaled.unit.T
        table = pd.DataFrame({"share": asked, "radius": sizes, "objective": found.value.numpy()})
        table["kl"] = [self._kl(row) for row in coef]
        table["converged"] = found.converged.numpy()
        return RadiusPath(
            pd.concat([table, pd.DataFrame(coef, columns=list(self.names_))], axis=1),
            self.names_,
            self.radius_,
            np.abs(self.coef_) * np.sqrt(np.mean(self._scaled.pairs.u**2, axis=0)),
        )

    def bootstrap(self, resamples: int = 300) -> pd.DataFrame:
        """Coefficients of fits to resampled comparisons, or groups where there are groups:
        (resamples, d), one batched fit. The size of the set is kept.

        Efron and Tibshirani (1993); percentile intervals are its quantiles. With two groupings both
        are resampled, and a comparison counts as often as its two groups together: the pigeonhole
        bootstrap of Owen (2007), Annals of Applied Statistics 1, whose spread is rather too large.
        """
        check_is_fitted(self)
        resamples = check_count("resamples", resamples)
        rng = np.random.default_rng(self.random_state)
        weights = np.tile(self._scaled.pairs.weights, (resamples, 1))
        for labels in self._scaled.members or (self._scaled.units,):
            _, place = np.unique(labels, return_inverse=True)
            count = int(place.max()) + 1
            weights *= rng.multinomial(count, np.full(count, 1 / count), size=resamples)[:, place]
        weights = weights[weights.sum(1) > 0]  # of few groups, those drawn may never have met
        weights /= weights.sum(1, keepdims=True)
        found = self._scaled.fit(self.set_, weights)
        return pd.DataFrame(found.theta.numpy() @ self._scaled.unit.T, columns=list(self.names_))


def _texts(names: Sequence[str]) -> Sequence[str]:
    return (names,) if isinstance(names, str) else tuple(names)


def _refuse_separable(
    pairs: SignedPairs,
    free: NDArray[np.bool_],
    kind: AmbiguitySet | None,
    names: tuple[str, ...],
) -> None:
    """No finite estimate exists where comparisons are separable, by the columns that nothing holds:
    a set that moves features puts a price on the others."""
    held = np.ones(len(free), dtype=bool) if kind is None or not kind.knows_units else free
    if not held.any():
        return
    found = separation(pairs.u[:, held], pairs.weights)
    if found is not None:
        kept = [name for name, own in zip(names, held, strict=True) if own]
        raise ValueError(f"{found.describe(kept)}; or take a set that moves features, w2-free.")
