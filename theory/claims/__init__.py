"""The claims ledger: every statement of the two papers, and what was derived from them, as a
measurement.

Each module holds the claims of one subject and ends in a tuple CLAIMS; `CLAIMS` here has them all
by name, in the ledger's order.
"""

from importlib import import_module

from theory.claims.ledger import Claim, Finding, Kind, Measurement, Verdict

_SUBJECTS = (
    "losses",
    "regularity",
    "estimators",
    "sharp",
    "bounds",
    "limit_laws",
    "intervals",
    "slowest",
    "uniformity",
    "radii",
    "collapse",
    "edges",
    "efficiency",
    "lower",
    "price",
    "worst_cases",
    "labels",
    "shift",
    "doubly_robust",
    "flips",
    "transport",
    "aot",
    "aot_laws",
    "dominance",
)

CLAIMS: dict[str, Claim] = {
    claim.name: claim
    for subject in _SUBJECTS
    for claim in import_module(f"theory.claims.{subject}").CLAIMS
}

__all__ = ["CLAIMS", "Claim", "Finding", "Kind", "Measurement", "Verdict"]
