"""The trainer on a CUDA device: one step of every objective against the formulas in float64, and a
run from the command line."""

import copy
import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from llm.train import parse, train
from tests.llm.models import tiny_gpt2, tiny_llama
from tests.llm.test_gradients import (
    PAIRS,
    ROWS,
    SINGLES,
    WAYS,
    WDPO,
    check,
    embedding_norm,
    parameters,
    singles_truth,
    truth,
    wdpo_truth,
)
from tests.llm.test_resume import Place
from tests.llm.training import random_pairs, random_singles, relative_error, step_gradient

pytestmark = pytest.mark.gpu
MODELS = {"gpt2": tiny_gpt2, "llama": tiny_llama}


@pytest.mark.parametrize("name", PAIRS)
def test_objectives_of_pairs(name: str, tmp_path: Path) -> None:
    settings, formula = PAIRS[name]
    for seed, make in enumerate(MODELS.values()):
        data = random_pairs(ROWS, seed, weights="softness" not in settings and not seed, groups=3)
        micros = (ROWS,) if seed or "softness" in settings else (5,)
        check(
            make(),
            data,
            parameters(name, settings),
            tmp_path,
            lambda m, d=data: truth(m, d, formula),
            micros=micros,
            use_cpu=False,
        )


@pytest.mark.parametrize("name", SINGLES)
def test_objectives_of_single_responses(name: str, tmp_path: Path) -> None:
    p, formula = SINGLES[name]
    data = random_singles(ROWS, weights=True)
    check(
        tiny_llama(),
        data,
        p,
        tmp_path,
        lambda m: singles_truth(m, data, formula),
        micros=(5,),
        use_cpu=False,
    )


@pytest.mark.parametrize("name", [name for name in WDPO if not name.startswith("finite")])
def test_wdpo(name: str, tmp_path: Path) -> None:
    settings, which = WDPO[name]
    p = parameters("wdpo", {"rho": 0.2} | settings)
    for make in MODELS.values():
        model, data = make(), random_pairs(ROWS, weights=True)
        unit = embedding_norm(model)
        radius = 0.2 * (unit**2 if which.get("squared") else unit)
        check(
            model,
            data,
            p,
            tmp_path,
            lambda m, d=data, r=radius: wdpo_truth(m, d, r, **which),
            micros=(5,),
            use_cpu=False,
        )


@pytest.mark.parametrize(
    "way",
    [
        "checkpointing gpt2",
        "checkpointing llama",
        "lora gpt2",
        "lora on the embeddings",
        "tied llama",
    ],
)
def test_ways_to_train(way: str, tmp_path: Path) -> None:
    make, settings = WAYS[way]
    data = random_pairs(ROWS, 2, weights=True)
    p, formula = parameters("kldpo tau", PAIRS["kldpo tau"][0]), PAIRS["kldpo tau"][1]
    check(
        make(),
        data,
        p,
        tmp_path,
        lambda m: truth(m, data, formula),
        micros=(5,),
        use_cpu=False,
        **settings,
    )


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("name", ["dpo", "kldpo tau", "aot"])
def test_bfloat16_is_as_exact_as_on_the_cpu(
    name: str, model: str, attention: str, tmp_path: Path
) -> None:
    """Rounding to 8 bits is the error of both, at other places: within a factor of 3 of each
    other's size."""
    settings, formula = PAIRS[name]
    policy, data, p = MODELS[model](), random_pairs(48, 3), parameters(name, settings)
    policy.set_attn_implementation(attention)
    _, exact = truth(copy.deepcopy(policy), data, formula)
    errors = {}
    for use_cpu in (True, False):
        found, _ = step_gradient(
            copy.deepcopy(policy), data, p, tmp_path, micro=16, use_cpu=use_cpu, bf16=True
        )
        errors[use_cpu] = relative_error(found, {n: g.to(found[n].dtype) for n, g in exact.items()})
    assert errors[False] < 3 * errors[True], errors


@pytest.mark.parametrize(
    "objective",
    ["--objective kldpo --tau 0.5", "--objective wdpo --rho 1e-3 --wdpo_mode adversarial --bf16"],
)
def test_a_run_that_is_stopped_goes_on(objective: str, tmp_path: Path) -> None:
    """The weights of a run in two parts are those of a run in one; on CUDA sums of gradients may be
    taken in another order."""
    place = Place(tmp_path / "a")
    words = [word if word != "cpu" else "cuda" for word in place.words(objective)]
    train(*parse(words))
    whole = _weights(place.out)
    record = place.out / "training.json"
    found = json.loads(record.read_text(encoding="utf-8"))
    del found["metrics"]
    record.write_text(json.dumps(found), encoding="utf-8")
    (place.out / "model.safetensors").unlink()
    shutil.rmtree(place.out / "checkpoint-4")
    train(*parse(words))
    for name, weight in _weights(place.out).items():
        torch.testing.assert_close(weight, whole[name], rtol=1e-4, atol=1e-5)


def _weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")
