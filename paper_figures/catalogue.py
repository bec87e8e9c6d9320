"""Every figure and table: what it shows, where it comes from, which experiment makes its rows, and
whether it is drawn.

Nothing here imports matplotlib, so that `prefdro list` starts at once.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import Any

WDPO, AOT, OURS = "arXiv:2502.01930", "arXiv:2406.05882", "our study"
_TABLES = (".csv", ".parquet", ".json")
RECORD = "figures.json"  # in the folder of figures: what was drawn, from which rows, by which code


@dataclass(frozen=True)
class Entry:
    """One figure or table: the stem of its files, what it shows, source, experiment ("": needs no
    rows) and its module."""

    name: str
    title: str
    source: str
    experiment: str
    module: str

    @property
    def ours(self) -> bool:
        """Whether it is a figure of our own study, whose module draws from the study's own
        folder."""
        return self.source == OURS

    @property
    def folder(self) -> str:
        """Its folder among the figures: one for each of our studies, none for what is the
        papers'."""
        return self.experiment if self.ours else ""

    @property
    def key(self) -> str:
        """Name in the record; names of files alone are not unique among our studies."""
        return f"{self.folder}/{self.name}".lstrip("/")

    def command(self, results: Path) -> str:
        """What makes its rows in results/experiment."""
        run = "verify" if self.experiment == "ledger" else f"run {self.experiment}"
        default = Path("results")
        return f"prefdro {run}" + (
            "" if results == default else f" --out {results / self.experiment}"
        )

    def owns(self, path: Path) -> bool:
        """Whether a file is one of its: the stem is its name, or begins with it and an
        underscore."""
        return path.stem == self.name or path.stem.startswith(f"{self.name}_")


ENTRIES = (
    Entry(
        "wdpo_fig1", "Preference shift: a drawn scheme", f"{WDPO}, Fig. 1", "", "paper.wdpo_fig1"
    ),
    Entry(
        "wdpo_fig2",
        "Emotion: reward against alpha, three radii each",
        f"{WDPO}, Fig. 2",
        "emotion",
        "paper.wdpo_fig2",
    ),
    Entry(
        "wdpo_fig3",
        "Five objectives, three training pairs",
        f"{WDPO}, Fig. 3",
        "armorm",
        "paper.wdpo_fig3",
    ),
    Entry(
        "wdpo_fig4",
        "Reward against alpha, three pairs of objectives",
        f"{WDPO}, Fig. 4",
        "armorm",
        "paper.wdpo_fig4",
    ),
    Entry(
        "wdpo_table1",
        "Open LLM Leaderboard v2",
        f"{WDPO}, Table 1",
        "leaderboard",
        "paper.wdpo_table1",
    ),
    Entry(
        "wdpo_table3",
        "39 tasks of the leaderboard, models of 1B",
        f"{WDPO}, Table 3",
        "leaderboard",
        "paper.wdpo_table3",
    ),
    Entry(
        "wdpo_table4",
        "39 tasks of the leaderboard, models of 8B",
        f"{WDPO}, Table 4",
        "leaderboard",
        "paper.wdpo_table4",
    ),
    Entry(
        "aot_fig1a",
        "Quantiles of chosen and rejected rewards",
        f"{AOT}, Fig. 1a",
        "aot-benchmark",
        "paper.aot_fig1a",
    ),
    Entry(
        "aot_fig1b",
        "Quantiles of the log-likelihood ratio",
        f"{AOT}, Fig. 1b",
        "aot-benchmark",
        "paper.aot_fig1b",
    ),
    Entry(
        "aot_fig2",
        "Effect of beta, batch size, h, sorting",
        f"{AOT}, Fig. 2",
        "aot-benchmark",
        "paper.aot_fig2",
    ),
    Entry(
        "aot_benchmarks",
        "Benchmarks",
        f"{AOT}, benchmark tables",
        "aot-benchmark",
        "paper.aot_benchmarks",
    ),
    Entry(
        "held_out",
        "Held-out pairs: accuracy after exchanged labels",
        OURS,
        "aot-benchmark",
        "studies.held_out",
    ),
    Entry(
        "chosen_rejected",
        "Held-out pairs: what happens to chosen and rejected responses",
        OURS,
        "aot-benchmark",
        "studies.chosen_rejected",
    ),
    Entry(
        "estimation_error",
        "Rates: estimation error, with the bounds",
        OURS,
        "estimation-error",
        "studies.estimation_error",
    ),
    Entry(
        "slopes",
        "Rates: slopes with intervals",
        OURS,
        "estimation-error",
        "studies.estimation_error",
    ),
    Entry(
        "tightness",
        "Tightness: bound over error",
        OURS,
        "estimation-error",
        "studies.estimation_error",
    ),
    Entry(
        "bias",
        "Error to the nominal parameter",
        OURS,
        "estimation-error",
        "studies.estimation_error",
    ),
    Entry(
        "sweep",
        "Rates over d, beta and B (of --profile paper)",
        OURS,
        "estimation-error",
        "studies.estimation_error",
    ),
    Entry(
        "worst_weights",
        "Worst-case distributions: weights",
        OURS,
        "worst-case",
        "studies.worst_case",
    ),
    Entry(
        "worst_transport",
        "Worst-case distributions: where the mass goes",
        OURS,
        "worst-case",
        "studies.worst_case",
    ),
    Entry(
        "worst_values",
        "Worst expected loss against the radius",
        OURS,
        "worst-case",
        "studies.worst_case",
    ),
    Entry("regret", "Regret against alpha", OURS, "preference-shift", "studies.preference_shift"),
    Entry(
        "frontier",
        "Worst regret against the KL",
        OURS,
        "preference-shift",
        "studies.preference_shift",
    ),
    Entry("matched", "Regret at equal KL", OURS, "preference-shift", "studies.preference_shift"),
    Entry("aot_rates", "AOT: rates and bounds", OURS, "aot", "studies.aot"),
    Entry("aot_minibatch", "AOT: minibatch bias", OURS, "aot", "studies.aot"),
    Entry("aot_softness", "AOT: soft sorting", OURS, "aot", "studies.aot"),
    Entry("aot_surrogate", "AOT: choice of h", OURS, "aot", "studies.aot"),
    Entry("aot_minima", "AOT: local minima", OURS, "aot", "studies.aot"),
    Entry("aot_quantiles", "AOT: quantiles of the rewards at equal KL", OURS, "aot", "studies.aot"),
    Entry("rewards", "Emotion: reward against alpha", OURS, "emotion", "studies.emotion"),
    Entry("frontier", "Emotion: worst reward against the KL", OURS, "emotion", "studies.emotion"),
    Entry("matched", "Emotion: worst reward at equal KL", OURS, "emotion", "studies.emotion"),
    Entry("ledger", "The claims ledger at a glance", OURS, "ledger", "studies.ledger"),
    Entry("rate-quarter", "Claim: is n^-1/4 the rate?", OURS, "ledger", "studies.ledger"),
    Entry(
        "gradient-norm-rate",
        "Claim: Algorithm 1 can be as slow as n^-1/4",
        OURS,
        "ledger",
        "studies.ledger",
    ),
    Entry("collapse-kl", "Claim: collapse of the KL ball", OURS, "ledger", "studies.ledger"),
    Entry(
        "collapse-wasserstein",
        "Claim: collapse of the Wasserstein balls",
        OURS,
        "ledger",
        "studies.ledger",
    ),
    Entry(
        "kldpo-is-larger-beta",
        "Claim: KLDPO is DPO with a larger beta",
        OURS,
        "ledger",
        "studies.ledger",
    ),
    Entry("aot-minibatch-bias", "Claim: minibatch bias of AOT", OURS, "ledger", "studies.ledger"),
)


def experiments() -> list[str]:
    """Every experiment that has a figure, in the order of the catalogue."""
    return list(dict.fromkeys(entry.experiment for entry in ENTRIES if entry.experiment))


def modules_of(experiment: str) -> list[str]:
    """The modules that draw from an experiment's rows."""
    return list(dict.fromkeys(entry.module for entry in ENTRIES if entry.experiment == experiment))


def has_rows(entry: Entry, results: Path) -> bool:
    """Whether its experiment has finished, which its run.json says, or none is needed."""
    return not entry.experiment or (results / entry.experiment / "run.json").is_file()


def state(entry: Entry, results: Path, out: Path, drawn: dict[str, Any] | None = None) -> str:
    """`drawn`, `rows there` (not drawn since they or the code changed), or `no rows: COMMAND`.

    Args:
        results: the folder that holds the studies' folders.
        out: the folder of figures.
        drawn: the record of that folder, where it has been read already.
    """
    if not has_rows(entry, results):
        return f"no rows: {entry.command(results)}"
    known = (record(out) if drawn is None else drawn).get(entry.key, {})
    same = known.get("rows") == rows_digest(entry, results) and known.get("code") == code_digest()
    if same and known["files"] and all((out / name).is_file() for name in known["files"]):
        return "drawn"
    return "nothing for it" if same and not known["files"] else "rows there"


def record(out: Path) -> dict[str, Any]:
    """What was drawn into a folder of figures: key -> files, rows, code; empty where nothing
    was."""
    path = out / RECORD
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def rows_digest(entry: Entry, results: Path) -> str:
    """Names, sizes and times of the tables of its experiment."""
    if not entry.experiment:
        return ""
    tables = sorted(
        path
        for path in (results / entry.experiment).iterdir()
        if path.suffix in _TABLES and path.name[0] != "."
    )
    facts = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in tables]
    return sha256(repr(facts).encode()).hexdigest()[:16]


@cache
def code_digest() -> str:
    """Of all that draws: the code here and the printed numbers."""
    files: Sequence[Path] = sorted(
        [*Path(__file__).parent.rglob("*.py"), *Path(__file__).parent.rglob("*.json")]
    )
    return sha256(b"".join(file.read_bytes() for file in files)).hexdigest()[:16]
