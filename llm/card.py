"""The model card: what was trained, on what, with which objective and radius, and what has been
measured."""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, ModelCardData

from llm.objectives import SPECS, ObjectiveParameters


def write_card(
    folder: Path,
    objective: ObjectiveParameters,
    *,
    model: str,
    data: str,
    facts: Mapping[str, Any],
    metrics: Mapping[str, float],
) -> Path:
    """Write README.md for the trained model.

    Args:
        facts: named settings and fingerprints, shown as a table in their order.
        metrics: named results, of the last log and the last evaluation.
    """
    given = {
        name: value
        for name, value in asdict(objective).items()
        if value != getattr(ObjectiveParameters(), name)
    }
    given = {"objective": objective.objective, "beta": objective.beta} | given
    header = ModelCardData(
        library_name="transformers",
        base_model=model if not Path(model).exists() else None,
        datasets=data if not Path(data).exists() else None,
        tags=["prefdro", objective.objective.rpartition(":")[2], "preference-alignment"],
    )
    text = "\n".join(
        [
            f"---\n{header.to_yaml()}\n---\n",
            f"# {Path(model).name} trained with {objective.objective}\n",
            (
                f"Preference alignment by prefdro. Objective: {objective.objective}"
                f" ({SPECS[objective.objective].source}).\n"
            ),
            "## Objective\n",
            _table(given),
            "## Training\n",
            _table(facts),
            "## Results\n",
            _table({name: f"{value:.6g}" for name, value in metrics.items()}),
            (
                "Rewards are beta times the log-ratio to the reference. Whether the objective's"
                " robustness shows in use depends on the data: compare with plain DPO at the same"
                " KL to the reference."
            ),
        ]
    )
    path = folder / "README.md"
    ModelCard(text).save(path)
    return path


def _table(rows: Mapping[str, Any]) -> str:
    return (
        "\n".join(
            ["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows.items())]
        )
        + "\n"
    )
