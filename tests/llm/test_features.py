"""Features of texts: the states that each text has alone, axes that see no label, and a table that
the studies take."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from experiments.cli import main
from llm.data.tokens import tokenise
from llm.features import fit_projection, response_states
from llm.models import language_model, word_tokenizer
from theory import read_table, suggest_radii

WORDS = [f"w{k}" for k in range(30)]
TOKENIZER = word_tokenizer([" ".join(WORDS)], 33)


def tiny(length: int = 64) -> Any:
    model = language_model(None, TOKENIZER, width=16, layers=2, length=length, seed=0)
    return model.double().eval()  # type: ignore[no-any-return]


def rows(n: int, seed: int = 0) -> list[dict[str, str]]:
    rng = np.random.default_rng(seed)

    def text(least: int, most: int) -> str:
        return " ".join(rng.choice(WORDS, rng.integers(least, most)))

    return [
        {"prompt": text(2, 9), "chosen": " " + text(1, 9), "rejected": " " + text(1, 9)}
        for _ in range(n)
    ]


@pytest.mark.parametrize("pooling", ["last", "mean"])
@pytest.mark.parametrize("layer", [0, 1, -1])
def test_states_are_those_of_each_text_alone(pooling: str, layer: int) -> None:
    model, data = tiny(), tokenise(rows(7), TOKENIZER)
    found = response_states(model, data, pad=0, layer=layer, pooling=pooling, batch_size=4)
    assert found.shape == (len(data), 2, 16)
    for row, pair in zip(data, found, strict=True):
        for side, state in zip(("chosen", "rejected"), pair, strict=True):
            ids = torch.tensor([row["prompt_ids"] + row[f"{side}_ids"]])
            with torch.no_grad():
                hidden = model(ids, output_hidden_states=True).hidden_states[layer][0]
            own = hidden[len(row["prompt_ids"]) :]
            np.testing.assert_allclose(
                state, own[-1] if pooling == "last" else own.mean(0), atol=1e-9
            )


def test_axes_see_no_label_and_no_prompt() -> None:
    rng = np.random.default_rng(0)
    states = rng.standard_normal((40, 2, 6)) * [5, 3, 1, 1, 1, 0.1]
    plain = fit_projection(states, 3)
    swapped = states.copy()
    swapped[::3] = swapped[::3, ::-1]
    of_prompts = states + 100 * rng.standard_normal((40, 1, 6))
    for other in (swapped, of_prompts):
        np.testing.assert_allclose(fit_projection(other, 3).axes, plain.axes, atol=1e-9)
    # truth: eigenvectors of the second moment of the differences
    d = states[:, 0] - states[:, 1]
    sizes, vectors = np.linalg.eigh(d.T @ d)
    np.testing.assert_allclose(np.abs(plain.axes @ vectors[:, ::-1][:, :3]), np.eye(3), atol=1e-9)
    np.testing.assert_allclose(plain.explained, sizes[::-1][:3] / sizes.sum())
    np.testing.assert_allclose(plain.axes @ plain.axes.T, np.eye(3), atol=1e-12)


def test_what_cannot_be_a_feature_is_told() -> None:
    model, data = tiny(), tokenise(rows(5), TOKENIZER)
    with pytest.raises(ValueError, match="pooling must be last or mean, got 'first'"):
        response_states(model, data, pad=0, pooling="first")
    with pytest.raises(ValueError, match="layer must be from -3 to 2"):
        response_states(model, data, pad=0, layer=3)
    with pytest.raises(ValueError, match="max_length of at most 8"):
        response_states(tiny(8), data, pad=0)
    with torch.no_grad():
        model.transformer.wte.weight[data[2]["chosen_ids"][0]] = float("nan")
    with pytest.raises(ValueError, match=r"states that are not finite for \d rows .*3"):
        response_states(model, data, pad=0)
    states = np.zeros((5, 2, 4))
    with pytest.raises(ValueError, match="6 dimensions cannot be fitted to 5 pairs"):
        fit_projection(states, 6)
    states[:, 0, 0] = 1.0
    with pytest.raises(ValueError, match="differ in 1 directions only"):
        fit_projection(states, 2)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, texts, and the table of `prefdro features`."""
    folder = tmp_path_factory.mktemp("features")
    tiny().float().save_pretrained(folder / "model")
    TOKENIZER.save_pretrained(folder / "model")
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, rows(60))))
    words = f"features --data {folder}/rows.jsonl --model {folder}/model --out {folder}/pairs.csv"
    main([*words.split(), "--dimensions", "3", "--length"])
    return folder


def test_the_table_is_one_that_the_theory_takes(made: Path, tmp_path: Path) -> None:
    table = pd.read_csv(made / "pairs.csv")
    names = ["axis1", "axis2", "axis3", "tokens"]
    assert list(table) == ["row", "label"] + [
        f"{s}_{n}" for s in ("first", "second") for n in names
    ]
    assert 10 < table.label.sum() < 50  # either response stands first
    record = json.loads((made / "pairs-made.json").read_text())
    assert record["features"] == names and record["pairs"] == len(table)
    assert len(record["share of the squared differences"]) == 3
    read = read_table(made / "pairs.csv")
    u = np.stack([read[f"first_{n}"] - read[f"second_{n}"] for n in names], 1)
    u *= np.where(read["label"] == 1, 1, -1)[:, None]
    choice = suggest_radii(u / np.abs(u).max(0), beta=1.0, bound=10.0)
    assert choice.kl.radius >= 0
    words = "run estimation-error --profile smoke --replicates 3 --sizes 50 200 --methods dpo kldpo"
    main([*words.split(), "--pairs", str(made / "pairs.csv"), "--out", str(tmp_path / "study")])
    errors = pd.read_parquet(tmp_path / "study" / "errors.parquet")
    assert errors.converged.all() and errors.world.str.contains("pairs").any()


def test_chosen_is_what_the_label_says(made: Path) -> None:
    """The tokens are those of the texts."""
    table, texts = pd.read_csv(made / "pairs.csv"), rows(60)
    for pair in table.itertuples():
        first, second = ("chosen", "rejected") if pair.label == 1 else ("rejected", "chosen")
        lengths = [len(texts[pair.row - 1][side].split()) + 1 for side in (first, second)]
        assert [pair.first_tokens, pair.second_tokens] == lengths


def test_the_same_rows_whatever_the_batch_size(made: Path, tmp_path: Path) -> None:
    words = f"features --data {made}/rows.jsonl --model {made}/model --out {tmp_path}/pairs.csv"
    main([*words.split(), "--dimensions", "3", "--length", "--batch-size", "3"])
    one, other = pd.read_csv(made / "pairs.csv"), pd.read_csv(tmp_path / "pairs.csv")
    np.testing.assert_allclose(one, other, atol=2e-4)  # float32 sums in another order


def test_a_tie_has_the_label_of_one(made: Path, tmp_path: Path) -> None:
    """It stands there once, and a pair labelled 0 is won by what is called rejected."""
    labelled = [row | {"label": (1, 0.5, 0)[i % 3]} for i, row in enumerate(rows(60))]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, labelled)))
    words = f"features --data {tmp_path}/rows.jsonl --model {made}/model --out {tmp_path}/pairs.csv"
    main([*words.split(), "--dimensions", "3", "--length"])
    table = pd.read_csv(tmp_path / "pairs.csv")
    assert table.row.tolist() == pd.read_csv(made / "pairs.csv").row.tolist()
    assert ((table.label == 0.5) == (table.row % 3 == 2)).all()
    for pair in table[table.row % 3 == 0].itertuples():
        winner = "first" if pair.label == 1 else "second"
        words = rows(60)[pair.row - 1]["rejected"].split()
        assert getattr(pair, f"{winner}_tokens") == len(words) + 1


def test_an_ending_that_is_no_table(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(f"features --data {made}/rows.jsonl --model {made}/model --out x.txt".split())
    assert "must end with .parquet or .csv" in capsys.readouterr().err


def test_a_model_without_a_chat_template_under_conversations(
    made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    talk = [{"role": "user", "content": "w1"}]
    row = {
        "prompt": talk,
        "chosen": [{"role": "assistant", "content": "w2"}],
        "rejected": [{"role": "assistant", "content": "w3"}],
    }
    (tmp_path / "rows.jsonl").write_text(json.dumps(row))
    shutil.copytree(made / "model", tmp_path / "model")
    with pytest.raises(SystemExit):
        main(f"features --data {tmp_path}/rows.jsonl --model {tmp_path}/model".split())
    assert "chat template" in capsys.readouterr().err
