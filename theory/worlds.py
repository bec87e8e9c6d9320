"""Worlds to sample preferences from, with their populations.

A finite world has finitely many pairs z = (psi1, psi2, y): its population is known exactly and a
sample is a multinomial count, so that n = 1e9 costs what n = 100 does. A continuous world has
isotropic features: its population estimators lie on the line through theta*, where a
one-dimensional quadrature gives them to rounding.

Labels are Bradley–Terry, P(y=1) = sigma(r*(s,a1) - r*(s,a2)), with r* = beta (theta* -
theta_ref).psi unless rewards are given.
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from scipy.special import expit, roots_gegenbauer
from torch import Tensor

from theory.batch import ArrayLike, PairBatch, check_finite, feature_names, pair_batch
from theory.checks import as_array, check_probability, check_reference, check_scale
from theory.policy import Array, kl_to_reference, log_policy
from theory.problem import Problem

if TYPE_CHECKING:  # slow to import, and only tables need it
    import pandas as pd

_DROP = "Drop or impute those pairs first."
TIES = ("half", "drop")  # what is done with pairs whose label is 0.5
_NORM_SLACK = 1e-6  # unit vectors in single precision are within it


# ------------------------------------------------------------------------------------ finite worlds
@dataclass(frozen=True, eq=False)
class FiniteWorld:
    """K atoms z = (psi1, psi2, y) with their probabilities.

    The log-linear setting of arXiv:2502.01930v4, Definition 1 and Assumption 1, on finitely many
    pairs.

    Args:
        psi1, psi2: (K, d) features of the two responses, norms at most 1.
        label: (K,) in {0, 1}, 1 iff the first response wins.
        probability: (K,), non-negative and summing to one.
        beta: of the loss, > 0.
        bound: B in ||theta|| <= B.
        theta_ref: (d,) of the reference policy.
        theta_star: (d,) true parameter, or None where labels come from data.
        policy_features: (S, A, d) with context_probability (S,), where the world comes from a
            policy; they give the KL between policies, in nats.
        context_probability: (S,) of the contexts, or None.

    Raises:
        ValueError: features of unequal shape, not finite or longer than 1, labels other than 0 and
            1, probabilities that are none, or a theta_ref outside of the bound.

    >>> import numpy as np
    >>> from theory import FiniteWorld
    >>> psi1, psi2 = np.array([[1.0], [1.0]]), np.array([[0.0], [0.0]])
    >>> chance = np.array([0.75, 0.25])
    >>> world = FiniteWorld(psi1, psi2, np.array([1, 0]), chance, 1.0, 4.0, np.zeros(1))
    >>> world.u.tolist(), world.dimension
    ([[1.0], [-1.0]], 1)
    >>> world.distance(kappa=0.5).tolist()  # the same features, another label
    [[0.0, 0.5], [0.5, 0.0]]
    """

    psi1: Array
    psi2: Array
    label: Array
    probability: Array
    beta: float
    bound: float
    theta_ref: Array
    theta_star: Array | None = None
    policy_features: Array | None = None
    context_probability: Array | None = None

    def __post_init__(self) -> None:
        for name in (
            "psi1",
            "psi2",
            "label",
            "probability",
            "theta_ref",
            "theta_star",
            "policy_features",
            "context_probability",
        ):
            given = getattr(self, name)
            kept = isinstance(given, np.ndarray) and (
                given.dtype == np.float64 or (name == "label" and given.dtype.kind in "iu")
            )
            if (
                given is not None and not kept
            ):  # unsigned features would wrap round where they are subtracted
                object.__setattr__(self, name, as_array(given, name))
        check_scale("beta", self.beta, "It scales the log-ratio in the margin.")
        check_scale("bound", self.bound, "It is B in ||theta|| <= B.")
        if self.psi1.size == 0 or self.psi1.shape != self.psi2.shape or self.psi1.ndim != 2:
            raise ValueError(
                "a world needs at least one pair of features of equal shape (K, d), got"
                f" {self.psi1.shape} and {self.psi2.shape}."
            )
        for name, psi in (("psi1", self.psi1), ("psi2", self.psi2)):
            check_finite(name, torch.from_numpy(psi), _DROP, rows="pair")
            largest = float(np.linalg.norm(psi, axis=1).max())
            if largest > 1 + _NORM_SLACK:
                raise ValueError(
                    f"{name} has a feature vector of norm {largest:g}, above the bound 1 that the"
                    f" theory assumes. Divide all features by {largest:g}."
                )
        if self.label.shape != (len(self.psi1),) or not np.isin(self.label, (0, 1)).all():
            odd = self.label[~np.isin(self.label, (0, 1))]
            raise ValueError(
                f"labels must be 0 or 1, one for each pair; got shape {self.label.shape} with"
                f" {odd[:3].tolist()}. y = 1 iff the first response wins; `from_labels` takes ties"
                " as 0.5."
            )
        check_probability("probability", self.probability, len(self.psi1))
        check_reference(self.theta_ref, self.dimension, self.bound, torch.zeros(1))

    @property
    def x(self) -> Array:
        """(K, d) feature differences psi1 - psi2."""
        return self.psi1 - self.psi2

    @property
    def u(self) -> Array:
        """(K, d) signed feature differences (2y-1) x."""
        return (2.0 * self.label - 1)[:, None] * self.x

    @property
    def dimension(self) -> int:
        return self.psi1.shape[1]

    @property
    def problem(self) -> Problem:
        """What every estimator needs beside the pairs: `fit(world.u, set, **world.problem)`."""
        return Problem(self.beta, self.bound, self.theta_ref)

    def distance(self, kappa: float = 1.0) -> Array:
        """(K, K) metric ||(psi1,psi2) - (psi1',psi2')|| + kappa 1{y != y'}."""
        z = np.concatenate([self.psi1, self.psi2], axis=1)
        d = np.sqrt(((z[:, None, :] - z[None, :, :]) ** 2).sum(-1)) + kappa * (
            self.label[:, None] != self.label[None, :]
        )
        return (d + d.T) / 2

    def covariance(self) -> Array:
        """E x x', the matrix of the data norm (d, d)."""
        return np.einsum("k,ki,kj->ij", self.probability, self.x, self.x)

    def population(self) -> PairBatch:
        """The exact population as one weighted sample."""
        return pair_batch(self.u, self.probability)

    def merged(self) -> "FiniteWorld":
        """The same world with equal atoms (psi1, psi2, y) as one, in the order of their first
        appearance: their probabilities add up."""
        atoms = np.column_stack([self.psi1, self.psi2, self.label]) + 0.0  # no -0
        _, first, member = np.unique(atoms, axis=0, return_index=True, return_inverse=True)
        mass: Array = np.bincount(member.ravel(), self.probability, len(first)).astype(float)
        order = np.argsort(first)
        kept = first[order]
        return replace(
            self,
            psi1=self.psi1[kept],
            psi2=self.psi2[kept],
            label=self.label[kept],
            probability=mass[order],
        )

    def sample(self, n: int, seeds: list[np.random.SeedSequence]) -> PairBatch:
        """One sample of n pairs for each seed, as weights count/n on the atoms."""
        n, seeds = _sample_size(n), _seeds(seeds)
        counts = [
            np.random.default_rng(seed).multinomial(n, self.probability / self.probability.sum())
            for seed in seeds
        ]
        return pair_batch(self.u, np.asarray(counts) / n)

    def kl_to_reference(self, theta: Array) -> Array | None:
        """E_s KL(pi_theta || pi_ref) in nats for theta (..., d); None where there is no policy."""
        if self.policy_features is None or self.context_probability is None:
            return None
        return kl_to_reference(
            theta, self.theta_ref, self.policy_features, self.context_probability
        )

    def with_rewards(self, reward1: Array, reward2: Array) -> "FiniteWorld":
        """The same pairs, labelled by other rewards (K,): preference shift. Every pair must be
        there with both labels."""
        reward1, reward2 = as_array(reward1, "reward1"), as_array(reward2, "reward2")
        if not (np.isfinite(reward1).all() and np.isfinite(reward2).all()):
            raise ValueError(
                "reward1 or reward2 holds NaN or infinite entries. Every pair needs two finite"
                " rewards."
            )
        chance = np.where(self.label == 1, expit(reward1 - reward2), expit(reward2 - reward1))
        pairs, index = np.unique(
            np.concatenate([self.psi1, self.psi2], axis=1), axis=0, return_inverse=True
        )
        mass = np.bincount(index, weights=self.probability, minlength=len(pairs))[index]
        split = np.bincount(index, weights=chance, minlength=len(pairs))[index]
        if (split == 0).any() or len(np.unique(np.stack([index, self.label], 1), axis=0)) < 2 * len(
            pairs
        ):
            raise ValueError(
                "with_rewards needs each pair with y = 1 and with y = 0. Build the world with"
                " from_rewards or from_policy."
            )
        return replace(self, probability=mass * chance / split, theta_star=None)


def from_policy(
    features: Array,
    theta_star: Array,
    *,
    beta: float,
    bound: float,
    theta_ref: Array | None = None,
    context_probability: Array | None = None,
) -> FiniteWorld:
    """All (s, a1, a2, y) with s ~ mu, a1, a2 iid ~ pi_ref(.|s) and Bradley–Terry labels; features
    (S, A, d). Definition 1, arXiv:2502.01930v4.

    Args:
        features: (S, A, d) psi(s, a), norms at most 1.
        theta_star: (d,) true parameter: rewards are beta (theta_star - theta_ref).psi.
        beta: of the loss, > 0.
        bound: B in ||theta|| <= B.
        theta_ref: (d,) of the reference policy; None: 0, the uniform policy.
        context_probability: (S,) mu; None: 1/S each.

    Returns:
        A `FiniteWorld` of K = 2 S A² atoms.

    Raises:
        ValueError: features of another shape, theta_star outside of the bound, or what
            `FiniteWorld` refuses.

    >>> import numpy as np
    >>> from theory import dpo, from_policy
    >>> star = np.log([3.0])
    >>> world = from_policy(np.array([[[1.0], [0.0]]]), star, beta=1.0, bound=4.0)
    >>> world.u.shape
    (8, 1)
    >>> round(dpo(world.u, world.probability, **world.problem).theta.exp().item(), 6)  # theta_star
    3.0
    """
    features = as_array(features, "features")
    if features.ndim != 3 or 0 in features.shape:
        raise ValueError(
            "features must have shape (S, A, d) with at least one context and action, got"
            f" {features.shape}."
        )
    beta = check_scale("beta", beta, "It scales the log-ratio in the margin.")
    bound = check_scale("bound", bound, "It is B in ||theta|| <= B.")
    S, A, d = features.shape
    ref = np.zeros(d) if theta_ref is None else as_array(theta_ref, "theta_ref")
    mu = (
        np.full(S, 1 / S)
        if context_probability is None
        else check_probability("context_probability", context_probability, S)
    )
    star = as_array(theta_star, "theta_star")
    if star.shape != (d,) or not np.linalg.norm(star) <= bound:
        raise ValueError(
            f"theta_star must have shape ({d},) and a norm of at most B = {bound:g}, got"
            f" {star.tolist()} of shape {star.shape} and norm {np.linalg.norm(star):g}. Enlarge the"
            " bound or shrink theta_star."
        )
    s, a1, a2, y = (
        index.ravel()
        for index in np.meshgrid(np.arange(S), np.arange(A), np.arange(A), [1, 0], indexing="ij")
    )
    pi = np.exp(log_policy(ref, features))
    psi1, psi2 = features[s, a1], features[s, a2]
    score = beta * (psi1 - psi2) @ (star - ref)
    probability = mu[s] * pi[s, a1] * pi[s, a2] * expit(np.where(y == 1, score, -score))
    return FiniteWorld(
        psi1, psi2, y, probability / probability.sum(), beta, bound, ref, star, features, mu
    )


def random_world(
    seed: int,
    *,
    contexts: int,
    actions: int,
    dimension: int,
    beta: float,
    bound: float,
    signal: float | None = None,
) -> FiniteWorld:
    """A finite world with features uniform on the unit sphere, theta_ref = 0 and ||theta*|| =
    signal (default B/2). Its labels are those of `from_policy`: Definition 1, arXiv:2502.01930v4.

    Args:
        seed: of the features and the direction of theta*.
        contexts, actions: S and A.
        dimension: d of the features.
        beta: of the loss, > 0.
        bound: B in ||theta|| <= B.
        signal: length of theta*, at most B; None: B/2.

    Returns:
        A `FiniteWorld` of K = 2 S A² atoms.

    Raises:
        ValueError: a number of contexts, actions or dimensions below 1, or what `from_policy`
            refuses.

    >>> import numpy as np
    >>> from theory import random_world
    >>> world = random_world(0, contexts=3, actions=2, dimension=4, beta=1.0, bound=2.0)
    >>> world.psi1.shape, round(float(np.linalg.norm(world.theta_star)), 6)
    ((24, 4), 1.0)
    >>> round(float(world.probability.sum()), 6)
    1.0
    """
    for name, value in (("contexts", contexts), ("actions", actions), ("dimension", dimension)):
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}: the world would be empty.")
    bound = check_scale("bound", bound, "It is B in ||theta|| <= B.")
    rng = np.random.default_rng(seed)
    features = unit_vectors(rng.standard_normal((contexts, actions, dimension)))
    star = unit_vectors(rng.standard_normal(dimension)) * (bound / 2 if signal is None else signal)
    return from_policy(features, star, beta=beta, bound=bound)


def from_labels(
    psi1: Array,
    psi2: Array,
    label: Array,
    *,
    beta: float,
    bound: float,
    theta_ref: Array | None = None,
    ties: str = "half",
) -> FiniteWorld:
    """The empirical distribution of labelled pairs: features (N, d) of both responses, label 1 iff
    the first was preferred. The sample P_n of arXiv:2502.01930v4.

    A tie, the label 0.5, is two pairs of half the weight, one for each response: the maximum
    likelihood of Bradley and Terry with half wins.

    Args:
        psi1, psi2: (N, d) features of the two responses, norms at most 1.
        label: (N,) in {0, 0.5, 1}.
        beta: of the loss, > 0.
        bound: B in ||theta|| <= B.
        theta_ref: (d,) of the reference policy; None: 0.
        ties: "half" for two halves, "drop" to leave ties out.

    Returns:
        A `FiniteWorld` of N atoms with the probability 1/N each, whose theta_star is None. A tie
        stands with y = 1 in its place and once more, with y = 0, after all others.

    Raises:
        ValueError: labels that are none of these, ties that are all dropped, or what `FiniteWorld`
            refuses.

    >>> import numpy as np
    >>> from theory import from_labels
    >>> first, second = np.array([[1.0, 0.0], [0.0, 1.0]]), np.array([[0.0, 1.0], [1.0, 0.0]])
    >>> world = from_labels(first, second, np.array([1, 0]), beta=1.0, bound=2.0)
    >>> world.u.tolist(), world.probability.tolist()
    ([[1.0, -1.0], [1.0, -1.0]], [0.5, 0.5])
    >>> world = from_labels(first, second, np.array([1, 0.5]), beta=1.0, bound=2.0)
    >>> world.label.tolist(), world.probability.tolist()
    ([1.0, 1.0, 0.0], [0.5, 0.25, 0.25])
    """
    if ties not in TIES:
        raise ValueError(
            f"ties must be 'half' (two halves) or 'drop', got {ties!r}: what to do with the label"
            " 0.5."
        )
    names = feature_names(psi1)
    psi1, psi2, label = (
        as_array(x, name) for x, name in ((psi1, "psi1"), (psi2, "psi2"), (label, "label"))
    )
    for name, psi in (("psi1", psi1), ("psi2", psi2)):
        check_finite(name, torch.from_numpy(psi), _DROP, names, "pair")
    ref = np.zeros(psi1.shape[-1]) if theta_ref is None else as_array(theta_ref, "theta_ref")
    n = len(psi1)
    odd = ~np.isin(label, (0, 0.5, 1))
    if label.shape != (n,) or odd.any():
        what = ""
        if odd.any():
            shown = label[odd][:3].tolist()
            what = f" with {shown}, the first of them that of pair {np.argwhere(odd)[0][0] + 1}"
        raise ValueError(
            f"labels must be 0 or 1, or 0.5 for a tie, one for each pair; got shape {label.shape}"
            f" for {n} pairs{what}. y = 1 iff the first response wins."
        )
    tied = label == 0.5
    probability = np.full(n, 1 / max(n, 1))
    if tied.any() and psi1.shape == psi2.shape:
        if ties == "drop":
            if tied.all():
                raise ValueError(
                    f"all {n} pairs are ties, and ties='drop' leaves none. ties='half' keeps them."
                )
            psi1, psi2, label = psi1[~tied], psi2[~tied], label[~tied]
            probability = np.full(len(label), 1 / len(label))
        else:
            probability = np.concatenate([np.where(tied, 0.5, 1.0), np.full(tied.sum(), 0.5)]) / n
            label = np.concatenate([np.where(tied, 1.0, label), np.zeros(tied.sum())])
            psi1, psi2 = np.vstack([psi1, psi1[tied]]), np.vstack([psi2, psi2[tied]])
    return FiniteWorld(psi1, psi2, label, probability, beta, bound, ref)


def from_rewards(
    psi1: Array,
    psi2: Array,
    reward1: Array,
    reward2: Array,
    *,
    beta: float,
    bound: float,
    theta_ref: Array | None = None,
) -> FiniteWorld:
    """Pairs (N, d) whose labels are Bradley–Terry in the given rewards (N,): each pair stands with
    both labels. P(y=1) = sigma(r1 - r2), as in arXiv:2502.01930v4.

    Args:
        psi1, psi2: (N, d) features of the two responses, norms at most 1.
        reward1, reward2: (N,) rewards, in log-odds.
        beta: of the loss, > 0.
        bound: B in ||theta|| <= B.
        theta_ref: (d,) of the reference policy; None: 0.

    Returns:
        A `FiniteWorld` of 2N atoms: all pairs with y = 1, then all with y = 0.

    Raises:
        ValueError: rewards that are not finite or not one for each pair, or what `FiniteWorld`
            refuses.

    >>> import numpy as np
    >>> from theory import from_rewards
    >>> first, second = np.array([[1.0]]), np.array([[0.0]])
    >>> world = from_rewards(first, second, np.log([3.0]), np.zeros(1), beta=1.0, bound=4.0)
    >>> world.label.tolist(), world.probability.round(6).tolist()
    ([1, 0], [0.75, 0.25])
    """
    psi1, psi2 = as_array(psi1, "psi1"), as_array(psi2, "psi2")
    reward1, reward2 = as_array(reward1, "reward1"), as_array(reward2, "reward2")
    for name, reward in (("reward1", reward1), ("reward2", reward2)):
        if not np.isfinite(reward).all():
            bad = np.argwhere(~np.isfinite(reward))[0]
            raise ValueError(
                f"{name} must be finite, but that of pair {bad[0] + 1} is {reward[tuple(bad)]:g}."
                " Drop such pairs first."
            )
        if np.shape(reward) != (len(psi1),):
            raise ValueError(
                f"{name} must have shape ({len(psi1)},), one number for each pair, got"
                f" {np.shape(reward)}."
            )
    ref = np.zeros(psi1.shape[-1]) if theta_ref is None else as_array(theta_ref, "theta_ref")
    chance = expit(reward1 - reward2) / max(len(psi1), 1)
    label = np.repeat([1, 0], len(psi1))
    probability = np.concatenate([chance, 1 / max(len(psi1), 1) - chance])
    return FiniteWorld(
        np.tile(psi1, (2, 1)), np.tile(psi2, (2, 1)), label, probability, beta, bound, ref
    )


# --------------------------------------------------------------------------------------- real pairs
def read_table(path: str | Path, *, exclude: Collection[str] = ()) -> dict[str, Array]:
    """Numeric columns of a .csv, .parquet, .json, .jsonl or .npz file, as float arrays.

    Args:
        path: of the file; its ending says what it is.
        exclude: names of columns that are not looked at.

    Returns:
        The columns by name, (N,) each; of .npz all arrays, in their own shapes. Columns of text are
        left out, truth values become 0 and 1, empty cells NaN.

    Raises:
        ValueError: no file there, an ending that is none of these, or text among the numbers of a
            column, with its row.

    >>> import tempfile
    >>> import pandas as pd
    >>> from theory import read_table
    >>> pairs = pd.DataFrame({"length": [1, 2], "text": ["a", "b"], "won": [True, False]})
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     pairs.to_csv(f"{folder}/pairs.csv", index=False)
    ...     table = read_table(f"{folder}/pairs.csv")
    >>> {name: column.tolist() for name, column in table.items()}
    {'length': [1.0, 2.0], 'won': [1.0, 0.0]}
    """
    return read_columns(path, exclude=exclude)[0]


def read_columns(
    path: str | Path, *, exclude: Collection[str] = ()
) -> tuple[dict[str, Array], list[str], list[str]]:
    """`read_table`, and the names of what is left out: columns of text, and excluded ones."""
    import pandas as pd

    path = Path(path)
    if not path.exists():
        raise ValueError(
            f"no file at {path}. Give the path of a .csv, .parquet, .json, .jsonl or .npz table of"
            " pairs."
        )
    if path.suffix == ".npz":
        with np.load(path, allow_pickle=False) as arrays:
            names = list(arrays.files)
            columns = {name: arrays[name] for name in names if name not in exclude}
        found = {
            name: (
                _numbers(pd.Series(array), f"{path.name}, {name}")
                if array.ndim == 1 and array.dtype.kind not in "biuf"
                else as_array(array, f"{path.name}, {name}")
            )
            for name, array in columns.items()
        }
    else:
        readers: dict[str, Callable[[Path], pd.DataFrame]] = {
            ".csv": pd.read_csv,
            ".parquet": pd.read_parquet,
            ".json": pd.read_json,
            ".jsonl": lambda p: pd.read_json(p, lines=True),
        }
        if path.suffix not in readers:
            raise ValueError(
                f"cannot read {path.name}: unknown ending {path.suffix!r}. Use one of"
                f" {', '.join([*readers, '.npz'])}."
            )
        table = readers[path.suffix](path)
        names = [str(name) for name in table.columns]
        found = {
            str(name): _numbers(table[name], f"{path.name}, {name}")
            for name in table.columns
            if str(name) not in exclude
        }
    numeric = {name: column for name, column in found.items() if column is not None}
    text = [name for name in found if name not in numeric]
    return numeric, text, [name for name in names if name in exclude]


def _numbers(column: "pd.Series", where: str) -> Array | None:
    """A column as numbers, or None where it is none of them: at least half of the cells that are
    not empty spell a number, and then all must."""
    import pandas as pd
    from pandas.api.types import is_bool_dtype, is_numeric_dtype

    if is_numeric_dtype(column.dtype) or is_bool_dtype(column.dtype):
        return as_array(column.to_numpy(dtype=float, na_value=np.nan), where)
    if pd.api.types.is_datetime64_any_dtype(column.dtype) or column.dtype.kind in "mM":
        return None
    cells = column.tolist()
    numbers = [_number(cell) for cell in cells]
    odd = [row for row, number in enumerate(numbers) if number is None]
    given = sum(number is None or not np.isnan(number) for number in numbers)
    if 2 * len(odd) > given or given == 0:
        return None
    if odd:
        shown = ", ".join(f"row {row + 1} has {str(cells[row])[:40]!r}" for row in odd[:3])
        more = f" and {len(odd) - 3} more" if len(odd) > 3 else ""
        raise ValueError(
            f"{where}: a column of numbers with text among them: {shown}{more} (the first row is"
            " 1). Correct these cells, or exclude the column."
        )
    return np.array(numbers, dtype=float)


def _number(cell: object) -> float | None:
    """The number that a cell is or spells, NaN where it is empty, None for text."""
    if cell is None or cell != cell or str(cell) == "<NA>":
        return float("nan")
    if isinstance(cell, str):
        word = cell.strip()
        if not word:
            return float("nan")
        try:
            return None if "_" in word else float(word)
        except ValueError:
            return None
    try:
        return float(cell)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return None


def feature_columns(table: dict[str, Array], names: list[str]) -> Array:
    """Stack the named columns to (N, d)."""
    missing = [name for name in names if name not in table]
    if missing:
        raise ValueError(f"no numeric column {missing} in the table; it has {sorted(table)}.")
    return np.stack([table[name] for name in names], axis=1)


def common_scale(
    psi1: ArrayLike, psi2: ArrayLike, *, names: Sequence[str] | None = None
) -> tuple[Array, Array]:
    """Standardise both responses' columns together and divide by the largest norm, so that ||psi||
    <= 1.

    The largest norm is that of one response: an outlier makes all features smaller, and all
    coefficients larger. `common_units` says by how much; in the units of the raw features a
    coefficient hangs on no outlier.

    Args:
        psi1, psi2: (N, d) raw features of the two responses.
        names: (d,) of the features, for the errors; None: the columns of a table.

    Returns:
        Both (N, d), without a unit.

    Raises:
        ValueError: shapes that differ, features that are not finite or the same everywhere, with
            their names.
    """
    both, centre, spread, longest = _standard(psi1, psi2, names)
    z = (both - centre) / spread
    z /= longest
    half = len(both) // 2
    return z[:half], z[half:]


def common_units(
    psi1: ArrayLike, psi2: ArrayLike, *, names: Sequence[str] | None = None
) -> tuple[Array, Array]:
    """Centre and unit (d,) of each feature, in its own unit: `common_scale` is (psi - centre)/unit.

    theta / unit are the coefficients of the raw features. Arguments and errors as `common_scale`.

    >>> import numpy as np
    >>> from theory.worlds import common_scale, common_units
    >>> raw = np.array([[1.0], [5.0]]), np.array([[3.0], [3.0]])
    >>> centre, unit = common_units(*raw)
    >>> centre.tolist(), unit.tolist()
    ([3.0], [2.0])
    >>> common_scale(*raw)[0].tolist()
    [[-1.0], [1.0]]
    """
    _, centre, spread, longest = _standard(psi1, psi2, names)
    return centre, spread * longest


def _standard(
    psi1: ArrayLike, psi2: ArrayLike, names: Sequence[str] | None
) -> tuple[Array, Array, Array, float]:
    """Both responses (2N, d), mean and spread of each feature, and the largest norm after them."""
    called = list(names) if names is not None else list(feature_names(psi1))
    psi1, psi2 = as_array(psi1, "psi1"), as_array(psi2, "psi2")
    if psi1.ndim != 2 or psi1.shape != psi2.shape or 0 in psi1.shape:
        raise ValueError(
            f"both responses need features of equal shape (N, d), got {psi1.shape} and"
            f" {psi2.shape}."
        )
    both = np.concatenate([psi1, psi2])
    holes = ~np.isfinite(both)
    if holes.any():
        pairs = sorted({int(row) % len(psi1) + 1 for row in np.flatnonzero(holes.any(axis=1))})
        more = " and more" if len(pairs) > 5 else ""
        raise ValueError(
            f"{int(holes.sum())} features are not finite, in the pairs {pairs[:5]}{more} (the first"
            f" pair is 1){_in_columns(holes.any(axis=0), called)}. Drop or impute those pairs"
            " first."
        )
    centre, spread = both.mean(axis=0), both.std(axis=0)
    if (spread == 0).any():
        flat = np.flatnonzero(spread == 0)
        which = (
            f"feature column(s) {', '.join(repr(called[k]) for k in flat)}"
            if called
            else f"feature column(s) number {(flat + 1).tolist()}, as Python counts {flat.tolist()}"
        )
        raise ValueError(f"{which} are constant and carry no preference. Leave them out.")
    longest = float(np.linalg.norm((both - centre) / spread, axis=1).max())
    return both, centre, spread, longest


def _in_columns(some: Array, names: Sequence[str]) -> str:
    """`, of the features 'price', 'time'`: which of the columns."""
    found = np.flatnonzero(some)
    shown = ", ".join(repr(names[k]) if names else str(k + 1) for k in found[:5])
    more = " and more" if len(found) > 5 else ""
    return f", of the feature{'s' if len(found) > 1 else ''} {shown}{more}"


# -------------------------------------------------------------------------------- continuous worlds
@dataclass(frozen=True, eq=False)
class ContinuousWorld:
    """Isotropic features in R^d: psi uniform on the unit sphere, or Gaussian with E||psi||² = 1;
    theta_ref = 0.

    The law of psi is invariant under rotations that fix theta*, and the robust objectives are
    convex and equally invariant, so that their population minimisers lie on the line through
    theta*. Only the law of the projection x.theta*/||theta*|| matters there, and `line` gives it by
    tensor quadrature. Gaussian features exceed the norm bound of the theory: rates are meaningful
    for them, the printed bounds are not (`bounded` is False). Derived; the bounds are those of
    arXiv:2502.01930v4.

    Args:
        features: "sphere" or "gaussian".
        dimension: d >= 2.
        theta_star: (d,) true parameter, with a norm in (0, bound].
        beta: of the loss, > 0.
        bound: B in ||theta|| <= B.

    Raises:
        ValueError: other features, fewer dimensions, or a theta_star of another shape or norm.

    >>> import numpy as np
    >>> from theory import ContinuousWorld, dpo
    >>> world = ContinuousWorld("sphere", 3, np.array([0.0, 1.5, 0.0]), beta=1.0, bound=4.0)
    >>> line = world.line(nodes=8)  # the population, along theta*
    >>> found = dpo(line.ut[0].T, line.p[0], beta=1.0, bound=4.0)
    >>> (world.lift(found.theta).round(6) + 0.0).tolist()  # theta_star
    [0.0, 1.5, 0.0]
    >>> world.sample(100, [np.random.SeedSequence(0)]).ut.shape
    torch.Size([1, 3, 100])
    """

    features: str
    dimension: int
    theta_star: Array
    beta: float
    bound: float

    def __post_init__(self) -> None:
        object.__setattr__(self, "theta_star", as_array(self.theta_star, "theta_star"))
        check_scale("beta", self.beta, "It scales the log-ratio in the margin.")
        check_scale("bound", self.bound, "It is B in ||theta|| <= B.")
        if self.features not in ("sphere", "gaussian"):
            raise ValueError(f"features must be 'sphere' or 'gaussian', got {self.features!r}.")
        if self.dimension < 2:
            raise ValueError(
                f"a continuous world needs dimension >= 2, got {self.dimension}. In one dimension"
                " use a finite world."
            )
        norm = float(np.linalg.norm(self.theta_star))
        if self.theta_star.shape != (self.dimension,) or not 0 < norm <= self.bound:
            raise ValueError(
                f"theta_star must have shape ({self.dimension},) and a norm in (0, {self.bound:g}],"
                f" got {self.theta_star.shape} and {norm:g}."
            )

    @property
    def bounded(self) -> bool:
        """Whether ||psi|| <= 1, as the theorems assume."""
        return self.features == "sphere"

    @property
    def theta_ref(self) -> Array:
        return np.zeros(self.dimension)

    @property
    def problem(self) -> Problem:
        """What every estimator needs beside the pairs, also on the `line`: theta_ref is 0."""
        return Problem(self.beta, self.bound)

    @property
    def direction(self) -> Array:
        return self.theta_star / np.linalg.norm(self.theta_star)

    def covariance(self) -> Array:
        """E x x' = (2/d) I for both laws."""
        return 2 / self.dimension * np.eye(self.dimension)

    def sample(self, n: int, seeds: list[np.random.SeedSequence]) -> PairBatch:
        """One sample of n pairs for each seed; features (R, n, d)."""
        n, seeds = _sample_size(n), _seeds(seeds)
        u = np.empty((len(seeds), n, self.dimension))
        for row, seed in zip(u, seeds, strict=True):
            rng = np.random.default_rng(seed)
            psi = rng.standard_normal((2, n, self.dimension))
            psi = unit_vectors(psi) if self.features == "sphere" else psi / np.sqrt(self.dimension)
            x = psi[0] - psi[1]
            y = rng.random(n) < expit(self.beta * x @ self.theta_star)
            row[:] = np.where(y, 1.0, -1.0)[:, None] * x
        return pair_batch(u)

    def line(self, nodes: int = 64) -> PairBatch:
        """The law of the signed projection u.theta*/||theta*|| as a weighted sample in one
        dimension."""
        if self.features == "sphere":
            # the first coordinate of a point on the sphere has density ∝ (1-t²)^((d-3)/2)
            exponent = (self.dimension - 2) / 2
            if exponent > 0:
                t, w = roots_gegenbauer(nodes, exponent)
            else:  # on the circle the density is the Chebyshev weight
                t, w = np.cos((2 * np.arange(nodes) + 1) * np.pi / (2 * nodes)), np.ones(nodes)
            w = w / w.sum()
            x = (t[:, None] - t[None, :]).ravel()
            weight = (w[:, None] * w[None, :]).ravel()
        else:
            # x is N(0, 2/d); for it the trapezoidal rule is exponentially accurate, and does not
            # mind a kink much
            t = np.linspace(-9, 9, nodes**2)
            x, weight = t * np.sqrt(2 / self.dimension), np.exp(-(t**2) / 2)
            weight = weight / weight.sum()
        score = self.beta * np.linalg.norm(self.theta_star) * x
        u = np.concatenate([x, -x])
        p = np.concatenate([weight * expit(score), weight * expit(-score)])
        return pair_batch(torch.from_numpy(u[:, None]), p / p.sum())

    def lift(self, along: Tensor) -> Array:
        """theta of the population fit from its coordinate on the line, (1,) -> (d,)."""
        return float(along.squeeze()) * self.direction


World = FiniteWorld | ContinuousWorld


def _seeds(seeds: object) -> list[np.random.SeedSequence]:
    """A list of seeds, one for each sample."""
    if not isinstance(seeds, (list, tuple)) or not seeds:
        raise ValueError(
            f"seeds must be a list, one seed for each sample, got {seeds!r}. For one sample give"
            " [0], for R of them np.random.SeedSequence(0).spawn(R)."
        )
    return list(seeds)


def _sample_size(n: int) -> int:
    if not (1 <= n < np.inf) or int(n) != n:
        raise ValueError(f"the sample size n must be a whole number of at least 1, got {n}.")
    return int(n)


def unit_vectors(v: Array) -> Array:
    """v (..., d) scaled to length one."""
    return v / np.linalg.norm(v, axis=-1, keepdims=True)
