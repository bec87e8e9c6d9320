"""beta, B and theta_ref: what every estimator needs beside the pairs and the set."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from typing import Any

from theory.batch import ArrayLike


@dataclass(frozen=True, eq=False)
class Problem(Mapping[str, Any]):
    """The problem that an estimator solves, to be handed on as a whole: `fit(u, set, **problem)`.

    Section 4.1, arXiv:2502.01930v4, with ||theta|| <= B.

    Args:
        beta: of the loss, > 0 and without a unit.
        bound: B in ||theta|| <= B, in the inverse unit of the features; None: no bound is wanted.
        theta_ref: (d,) of the reference policy; None: 0, the uniform policy.

    Raises:
        ValueError: none here; `fit` refuses what it cannot use.

    >>> from theory import KL, Problem, fit
    >>> problem = Problem(beta=0.5, bound=4.0)
    >>> dict(problem)
    {'beta': 0.5, 'bound': 4.0, 'theta_ref': None}
    >>> bool(fit([[1.0], [0.2], [-0.4]], KL(0.01), **problem).converged)
    True
    """

    beta: float
    bound: float | None = None
    theta_ref: ArrayLike | None = None

    def __getitem__(self, name: str) -> Any:
        if name not in tuple(self):
            raise KeyError(name)
        return getattr(self, name)

    def __iter__(self) -> Iterator[str]:
        return iter([field.name for field in fields(self)])

    def __len__(self) -> int:
        return len(fields(self))
