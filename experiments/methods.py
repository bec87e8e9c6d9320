"""The estimators of the studies by name: plain DPO, and the exact estimator of every ambiguity set.

Sizes are given as fractions of the collapse radius in the population, so that 1 means that the
reference policy itself is the answer, whatever the set; `AmbiguitySet.size_at` turns a fraction
into what the set is sized by.
"""

from dataclasses import dataclass

from theory.batch import ArrayLike, PairBatch
from theory.fitting import fit
from theory.policy import Array
from theory.problem import Problem
from theory.results import Fit
from theory.sets import SETS, AmbiguitySet


@dataclass(frozen=True)
class Setting:
    """What an estimator needs besides the sample: the problem, the label cost and the metric on
    the atoms."""

    problem: Problem
    label_cost: float
    distance: Array | None = None  # only in a finite world


@dataclass(frozen=True)
class Method:
    """One estimator; `set` is None for plain DPO."""

    set: AmbiguitySet | None

    @property
    def about(self) -> str:
        return "DPO, the mean loss" if self.set is None else self.set.facts.about

    @property
    def finite_only(self) -> bool:
        """Whether it needs the distances between finitely many atoms."""
        return self.set is not None and self.set.facts.atoms

    @property
    def counts_labels(self) -> bool:
        """Whether it needs comparisons that are met many times, which most samples have not."""
        return self.set is not None and self.set.counts_labels

    @property
    def grows(self) -> bool:
        """Whether its size is in proportion to the fraction of collapse."""
        return self.set is not None and self.set.facts.grows and self.set.smallest == 0

    def scaled(self, knob: float, factor: float) -> float:
        """The size of the set whose radius is `factor` times that of this one."""
        return knob if self.set is None else self.set.scaled(knob, factor)

    def knob(self, population: PairBatch, fraction: float, setting: Setting) -> float:
        """What sizes it at a fraction of collapse in the population; 0 where nothing does."""
        if self.set is None:
            return 0.0
        return _there(self.set, setting).size_at(fraction, population, **setting.problem)

    def fit(self, pairs: PairBatch, knob: ArrayLike, setting: Setting) -> Fit:
        """Its fits to the samples of a batch (R of them), with one knob or one for each."""
        features = pairs.ut.mT
        u = features[0] if features.shape[0] == 1 else features
        set = None if self.set is None else _there(self.set, setting).sized(knob)
        return fit(u, set, pairs.p, **setting.problem)


def _there(set: AmbiguitySet, setting: Setting) -> AmbiguitySet:
    return set.in_metric(setting.distance, setting.label_cost)


METHODS: dict[str, Method] = {
    "dpo": Method(None),
    **{set.facts.method: Method(set) for set in SETS.values()},
}
# what a study fits that is not told otherwise
USUAL = tuple(name for name, method in METHODS.items() if not method.counts_labels)
