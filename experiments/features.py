"""`prefdro features`: a table of features from preference texts, for the theory's studies.

    prefdro features --data pairs.jsonl --model smollm2 --out pairs.parquet
    prefdro run estimation-error --pairs pairs.parquet

The table has the columns first_NAME, second_NAME and label, 0.5 for a tie; which response stands
first is drawn by the seed, so that the label is not always 1.
"""

import sys
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd

from experiments.engine.provenance import provenance
from experiments.engine.store import write_json, write_table


@dataclass
class Features:
    """Features of both responses of each preference pair, from the hidden states of a language
    model, as a table for `--pairs`."""

    data: str
    """A .jsonl, .json, .csv or .parquet file, a folder, or the name of a data set on the hub."""
    out: Path = Path("results/features/pairs.parquet")
    """The table, .parquet or .csv; beside it NAME-made.json says how it was made."""
    model: str = "smollm2"
    """Folder of a model, its name on the hub, smollm2, or a .gguf file."""
    split: str = "train"
    """Split of a folder or of a data set on the hub."""
    columns: str | None = None
    """Columns of the data under other names, such as prompt=question,chosen=best."""
    strings: Literal["raw", "chat", "templated", "json"] | None = None
    """How strings are read, as for `prefdro train`."""
    pairs: int | None = None
    """The first so many pairs; all where not given."""
    max_length: int = 1024
    """Tokens of prompt and response; longer responses are cut, longer prompts left out."""
    layer: int = -1
    """Layer of the states: 0 the embeddings, -1 the last."""
    pooling: Literal["last", "mean"] = "last"
    """The response's last token, or the mean over its tokens."""
    dimensions: int | None = 8
    """Features kept: directions in which the responses of a pair differ most, whichever was chosen.
    None: the states as they are."""
    length: bool = False
    """The number of tokens of a response as one more feature."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Precision of the model."""
    batch_size: int = 8
    """Responses at once."""
    ties: Literal["half", "drop", "ignore"] = "half"
    """Pairs with a label of 0.5, or a true tie, beside chosen and rejected: half gives them the
    label 0.5, drop leaves them out, ignore reads neither column."""
    seed: int = 0
    """Which response of a pair stands first."""
    drop_bad_rows: bool = False
    """Leave out rows that cannot be used instead of ending."""


def run(config: Features) -> None:
    """Compute the table and write it; prints what is in it."""
    import torch

    from llm.data.tokens import BadRows, load_rows, padding_token, tokenise
    from llm.features import fit_projection, response_states
    from llm.models import load_language_model, load_tokenizer
    from llm.reference import data_fingerprint, model_fingerprint
    from llm.train import as_a_line, columns_of

    if config.out.suffix not in (".parquet", ".csv"):
        raise ValueError(f"--out {config.out} must end with .parquet or .csv.")
    bad = BadRows(config.drop_bad_rows)
    rows = load_rows(config.data, config.split, bad=bad)
    if config.pairs is not None:
        rows = rows[: config.pairs]
    tokenizer = load_tokenizer(config.model)
    warnings.formatwarning = as_a_line  # type: ignore[assignment]
    data = tokenise(
        rows,
        tokenizer,
        max_length=config.max_length,
        columns=columns_of(config.columns),
        strings=config.strings,
        ties=config.ties,
        bad=bad,
    )
    # a tie stands there twice, once for each response
    index, first, count = np.unique(data["index"], return_index=True, return_counts=True)
    data, tied = data.select(first), count == 2
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = load_language_model(config.model, dtype=getattr(torch, config.dtype))
    model = model.to(device).eval()
    states = response_states(
        model,
        data,
        pad=padding_token(tokenizer),
        layer=config.layer,
        pooling=config.pooling,
        batch_size=config.batch_size,
        progress=_progress(2 * len(data)),
    )
    made: dict[str, Any] = {
        "data": config.data,
        "pairs": len(data),
        "model": config.model,
        "layer": config.layer,
        "pooling": config.pooling,
        "hidden size": states.shape[2],
        "sha256 of the model": model_fingerprint(model),
        "sha256 of the rows": data_fingerprint(data),
    }
    if config.dimensions is None:
        features, names = states, [f"h{k + 1}" for k in range(states.shape[2])]
    else:
        projection = fit_projection(states, config.dimensions)
        features = projection(states)
        names = [f"axis{k + 1}" for k in range(config.dimensions)]
        made["share of the squared differences"] = projection.explained.tolist()
    # what both responses of a pair share, their prompt, cancels in the policy: without it
    # distances and scales are those of the responses
    features = features - features.mean(1, keepdims=True)
    if config.length:
        lengths = [[len(row["chosen_ids"]), len(row["rejected_ids"])] for row in data]
        features = np.concatenate([features, np.array(lengths, dtype=float)[:, :, None]], 2)
        names.append("tokens")
    made["features"] = names
    made["largest norm"] = float(np.linalg.norm(features, axis=2).max())
    made["root mean square of a difference"] = dict(
        zip(names, np.sqrt(((features[:, 0] - features[:, 1]) ** 2).mean(0)).tolist(), strict=True)
    )
    table = as_table(features, names, index, config.seed, tied)
    config.out.parent.mkdir(parents=True, exist_ok=True)
    write_table(table, config.out)
    write_json(made | provenance(), config.out.with_name(f"{config.out.stem}-made.json"))
    _say(config, made, len(rows))


def as_table(
    features: np.ndarray,
    names: list[str],
    rows: np.ndarray,
    seed: int,
    tied: np.ndarray | None = None,
) -> pd.DataFrame:
    """One row a pair: its row in the data from 1, label, first_NAME and second_NAME.

    features: (N, 2, d), chosen and rejected. tied: (N,) pairs whose label is 0.5. A pair's order
    hangs on the seed and on its row alone.
    """
    label = np.array([np.random.default_rng([seed, int(row)]).integers(2) for row in rows])
    first = np.where(label[:, None] == 1, features[:, 0], features[:, 1])
    second = np.where(label[:, None] == 1, features[:, 1], features[:, 0])
    if tied is not None and tied.any():
        label = np.where(tied, 0.5, label)
    columns = {"row": rows + 1, "label": label}
    for side, values in (("first", first), ("second", second)):
        columns |= {f"{side}_{name}": values[:, k] for k, name in enumerate(names)}
    return pd.DataFrame(columns)


def _progress(total: int) -> Any:
    from tqdm import tqdm

    bar = tqdm(total=total, desc="responses", file=sys.stderr, disable=None)

    def told(done: int) -> None:
        bar.update(done - bar.n)

    return told


def _say(config: Features, made: dict[str, Any], given: int) -> None:
    left = given - made["pairs"]
    print(f"{made['pairs']} pairs of {given}{f', {left} left out' if left else ''}.")
    if "share of the squared differences" in made:
        kept = sum(made["share of the squared differences"])
        print(
            f"{config.dimensions} axes keep {100 * kept:.1f} % of the squared differences between"
            f" the responses of a pair, of {made['hidden size']} numbers in layer {config.layer}."
        )
    print(
        f"table: {config.out}. Next: prefdro run estimation-error --pairs {config.out}, or"
        f" suggest_radii on it."
    )
