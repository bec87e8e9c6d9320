"""Reference log-probabilities. Their truth is torch's own cross entropy, row by row, without a
batch."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from llm.data.tokens import PreferenceCollator, tokenise
from llm.reference import (
    data_fingerprint,
    model_fingerprint,
    reference_identity,
    reference_logps,
    tokenizer_fingerprint,
)
from tests.launches import launch
from tests.llm.models import WORDS, tiny_gpt2, tiny_llama, word_tokenizer

TOKENIZER = word_tokenizer()
COLLATE = PreferenceCollator(0)


def pairs(count: int = 11, seed: int = 0) -> Dataset:
    """Pairs of random words, of all lengths."""
    draw = torch.Generator().manual_seed(seed)

    def text(longest: int) -> str:
        length = int(torch.randint(1, longest, (), generator=draw))
        return " ".join(WORDS[int(i)] for i in torch.randint(len(WORDS), (length,), generator=draw))

    rows = [
        {"prompt": text(6), "chosen": f" {text(12)} sun", "rejected": f" {text(12)} moon"}
        for _ in range(count)
    ]
    return tokenise(Dataset.from_list(rows), TOKENIZER)


def responses(count: int = 7) -> Dataset:
    rows = [
        {
            "prompt": f"the {WORDS[i]}",
            "completion": " is" + f" {WORDS[-i]}" * (i + 1),
            "label": i % 2 == 0,
        }
        for i in range(count)
    ]
    return tokenise(Dataset.from_list(rows), TOKENIZER, "unpaired")


def score(model: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
    logits = (
        model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])
        .logits[:, :-1]
        .float()
    )
    tokens = -cross_entropy(logits.transpose(1, 2), batch["input_ids"][:, 1:], reduction="none")
    return (tokens * batch["completion_mask"][:, 1:]).sum(1)


def one_by_one(model: nn.Module, data: Dataset, completions: str) -> list[float]:
    values = []
    for row in data:
        ids = torch.tensor([row["prompt_ids"] + row[completions]])
        with torch.no_grad():
            logits = model(input_ids=ids).logits[0, len(row["prompt_ids"]) - 1 : -1].double()
        values.append(
            -float(cross_entropy(logits, ids[0, len(row["prompt_ids"]) :], reduction="sum"))
        )
    return values


def compute(
    model: nn.Module, data: Dataset, batch_size: int = 4, cache: Path | None = None, **options: Any
) -> Dataset:
    identity = reference_identity(model, TOKENIZER, data, torch.float32)
    return reference_logps(
        model,
        data,
        COLLATE,
        batch_size,
        cache=cache,
        identity=identity,
        **{"score": score} | options,
    )


@pytest.mark.parametrize("make", [tiny_gpt2, tiny_llama])
@pytest.mark.parametrize("batch_size", [1, 4, 100])
def test_values_are_those_of_single_rows_whatever_the_batch(make, batch_size):
    model, data = make(), pairs()
    filled = compute(model, data, batch_size)
    for column in ("chosen", "rejected"):
        expected = one_by_one(model, data, f"{column}_ids")
        assert list(filled[f"ref_{column}_logps"]) == pytest.approx(expected, rel=1e-5, abs=1e-5)
    assert (
        filled.remove_columns(["ref_chosen_logps", "ref_rejected_logps"]).to_list()
        == data.to_list()
    )
    batch = COLLATE([filled[0], filled[1]])
    columns = [
        filled[column][i] for column in ("ref_chosen_logps", "ref_rejected_logps") for i in (0, 1)
    ]
    assert batch["reference_logps"].tolist() == columns


def test_values_of_unpaired_responses_and_of_the_other_completions():
    model, data = tiny_gpt2(), responses()
    filled = compute(model, data, 3)
    assert list(filled["ref_logps"]) == pytest.approx(
        one_by_one(model, data, "completion_ids"), rel=1e-5
    )
    assert list(filled["ref_kl_logps"]) == pytest.approx(
        one_by_one(model, data, "kl_completion_ids"), rel=1e-5
    )


def test_dropout_is_off_and_the_modes_come_back():
    model, data = tiny_gpt2(dropout=0.5), pairs()
    expected = compute(model, data)["ref_chosen_logps"]
    model.train()
    model.transformer.h[0].eval()
    before = [module.training for module in model.modules()]

    def watched(model: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
        assert not torch.is_grad_enabled()
        return score(model, batch)

    assert list(compute(model, data, score=watched)["ref_chosen_logps"]) == list(expected)
    assert [module.training for module in model.modules()] == before
    with pytest.raises(ZeroDivisionError):
        compute(model, data, score=lambda model, batch: 1 / 0)
    assert [module.training for module in model.modules()] == before


#  the file ----------------------------------------------------------------------------------------


def refuse(model: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
    raise AssertionError("the model was asked, though the cache has the values")


@pytest.mark.parametrize("data", [pairs(), responses()], ids=["pairs", "unpaired"])
def test_the_file_is_used_and_gives_the_same(tmp_path, data):
    model, cache = tiny_gpt2(), tmp_path / "new" / "reference.safetensors"
    first = compute(model, data, cache=cache)
    assert [path.name for path in cache.parent.iterdir()] == [cache.name]
    assert compute(tiny_gpt2(), data, cache=cache, score=refuse).to_list() == first.to_list()


@pytest.mark.parametrize("part", ["model", "tokenizer", "data", "dtype", "weight of tokens"])
def test_a_file_of_something_else_is_refused_by_name(tmp_path, part):
    model, data, cache = tiny_gpt2(), pairs(), tmp_path / "reference.safetensors"
    compute(model, data, cache=cache)
    given = {"model": model, "tokenizer": TOKENIZER, "dataset": data, "dtype": torch.float32}
    given |= {
        "model": {"model": tiny_gpt2(seed=1)},
        "tokenizer": {"tokenizer": word_tokenizer(chat_template=True)},
        "data": {"dataset": data.select(range(1, len(data)))},
        "dtype": {"dtype": torch.bfloat16},
        "weight of tokens": {"tail": 0.5},
    }[part]
    identity = reference_identity(**given)
    with pytest.raises(
        ValueError,
        match=(
            rf"holds log-probabilities of another {part}.* \(.*Give another --reference_cache or"
            r" --output_dir"
        ),
    ):
        reference_logps(
            given["model"],
            given["dataset"],
            COLLATE,
            4,
            cache=cache,
            identity=identity,
            score=score,
        )
    assert cache.exists()


def test_all_that_differs_is_named(tmp_path):
    cache = tmp_path / "reference.safetensors"
    compute(tiny_gpt2(), pairs(), cache=cache)
    with pytest.raises(ValueError, match=r"of another model and data \("):
        compute(tiny_gpt2(seed=1), pairs(seed=1), cache=cache)


@pytest.mark.parametrize(
    "damage", ["truncated", "empty", "text", "foreign", "format", "rows", "columns", "folder"]
)
def test_damaged_and_foreign_files(tmp_path, damage):
    model, data, cache = tiny_gpt2(), pairs(), tmp_path / "reference.safetensors"
    compute(model, data, cache=cache)
    good = cache.read_bytes()
    metadata = {"prefdro_reference": "1"} | reference_identity(
        model, TOKENIZER, data, torch.float32
    )
    values = torch.zeros(len(data))
    if damage == "foreign":
        save_file({"ref_chosen_logps": values}, cache)
    elif damage == "format":
        save_file(
            {"ref_chosen_logps": values}, cache, metadata=metadata | {"prefdro_reference": "0"}
        )
    elif damage == "rows":
        save_file(
            {"ref_chosen_logps": values[1:].clone(), "ref_rejected_logps": values},
            cache,
            metadata=metadata,
        )
    elif damage == "columns":
        save_file({"ref_chosen_logps": values}, cache, metadata=metadata)
    elif damage == "folder":
        cache.unlink()
        cache.mkdir()
    else:
        cache.write_bytes({"truncated": good[:-10], "empty": b"", "text": b"{}\n" * 99}[damage])
    messages = {
        "foreign": "was not written as a file of reference log-probabilities",
        "format": "has format 0, this version reads 1",
        "rows": "does not hold ref_chosen_logps and ref_rejected_logps of 11 rows",
        "columns": "does not hold ref_chosen_logps and ref_rejected_logps",
    }
    with pytest.raises(
        ValueError, match=messages.get(damage, "is truncated, damaged or no file of safetensors")
    ) as error:
        compute(model, data, cache=cache)
    assert (
        "Give another --reference_cache or --output_dir; or move the file away, and they are"
        " computed again" in str(error.value)
    )


def test_a_write_that_fails_leaves_no_file(tmp_path, monkeypatch):
    def fail(tensors: dict[str, Tensor], path: Path, metadata: dict[str, str]) -> None:
        Path(path).write_bytes(b"half")
        raise OSError("No space left on device")

    monkeypatch.setattr("llm.reference.save_file", fail)
    with pytest.raises(OSError, match="No space"):
        compute(tiny_gpt2(), pairs(), cache=tmp_path / "reference.safetensors")
    assert list(tmp_path.iterdir()) == []


#  several ranks -----------------------------------------------------------------------------------

RANK = """
import sys
from pathlib import Path
import torch
from accelerate import Accelerator
from torch.nn.parallel import DistributedDataParallel
from llm.reference import reference_identity, reference_logps
from tests.llm.models import tiny_gpt2
from tests.llm.test_reference import COLLATE, TOKENIZER, pairs, score

accelerator = Accelerator(cpu=True)
out, rank = Path(sys.argv[1]), accelerator.process_index
model, data = DistributedDataParallel(tiny_gpt2()), pairs()
counts = []

def counted(model, batch):
    counts.append(len(batch["index"]))
    return score(model, batch)

def run(cache, dtype):
    more = {"identity": reference_identity(model, TOKENIZER, data, dtype), "score": counted}
    return reference_logps(model, data, COLLATE, 4, cache=cache, accelerator=accelerator, **more)

filled = run(out / f"of-rank-{rank}", torch.float32)  # as on two machines that share no folder
assert len(counts) == 2, counts  # three batches: the second rank repeats one
filled.to_json(out / f"rank-{rank}.json")
accelerator.wait_for_everyone()
assert sorted(path.name for path in out.glob("of-rank-*")) == ["of-rank-0"]
assert run(out / f"of-rank-{rank}", torch.float32).to_list() == filled.to_list()
assert len(counts) == 2
try:
    run(out / f"of-rank-{rank}", torch.bfloat16)
except ValueError as error:
    assert "another dtype" in str(error)
    (out / f"refused-{rank}").touch()
accelerator.end_training()
"""


@pytest.mark.slow
def test_two_ranks_share_the_work_and_get_the_same(tmp_path):
    (tmp_path / "rank.py").write_text(RANK)
    done = launch([tmp_path / "rank.py", tmp_path], tmp_path)
    assert done.returncode == 0, done.stderr
    expected = compute(tiny_gpt2(), pairs())
    for rank in range(2):
        filled = Dataset.from_json(
            str(tmp_path / f"rank-{rank}.json"), cache_dir=str(tmp_path / "cache")
        )
        for column in ("ref_chosen_logps", "ref_rejected_logps"):
            assert list(filled[column]) == pytest.approx(list(expected[column]), rel=1e-5)
        assert (tmp_path / f"refused-{rank}").exists()


#  bad input ---------------------------------------------------------------------------------------


def test_values_that_are_not_finite(tmp_path):
    model, data, cache = tiny_gpt2(), pairs(), tmp_path / "reference.safetensors"
    with torch.no_grad():
        model.transformer.wte.weight[TOKENIZER.convert_tokens_to_ids("moon")] = torch.nan
    with pytest.raises(
        ValueError,
        match=r"gives 11 of 11 rows a log-probability that is not finite; the first is row 1",
    ):
        compute(model, data, cache=cache)
    assert not cache.exists()


def test_columns_that_are_there_already_and_a_batch_of_nothing():
    filled = compute(tiny_gpt2(), pairs())
    with pytest.raises(
        ValueError, match="the data have ref_chosen_logps, ref_rejected_logps already"
    ):
        compute(tiny_gpt2(), filled)
    with pytest.raises(ValueError, match="batch_size must be at least 1, got 0"):
        compute(tiny_gpt2(), pairs(), 0)


#  fingerprints ------------------------------------------------------------------------------------


def test_the_fingerprint_of_a_model_is_that_of_its_weights():
    model = tiny_gpt2()
    fingerprint = model_fingerprint(model)
    assert fingerprint == model_fingerprint(tiny_gpt2()) == model_fingerprint(model.train())
    assert fingerprint == model_fingerprint(torch.nn.DataParallel(model))
    others = [tiny_gpt2(seed=1), tiny_gpt2().to(torch.bfloat16), tiny_llama(), tiny_gpt2(layers=1)]
    changed = tiny_gpt2()
    with torch.no_grad():
        changed.transformer.ln_f.bias[3] = 1e-20
    swapped = tiny_gpt2()
    first, second = (block.mlp.c_fc for block in swapped.transformer.h)
    first.weight, second.weight = second.weight, first.weight
    fingerprints = [model_fingerprint(other) for other in [*others, changed, swapped]]
    assert len({fingerprint, *fingerprints}) == 7


def test_settings_that_change_the_model_count_in_its_fingerprint():
    model, other = tiny_gpt2(), tiny_gpt2()
    other.config.activation_function = "relu"
    assert model_fingerprint(model) != model_fingerprint(other)
    renamed = tiny_gpt2()
    renamed.config.update(
        {"_name_or_path": "elsewhere", "pad_token_id": 3, "use_cache": False, "resid_pdrop": 0.1}
    )
    assert model_fingerprint(model) == model_fingerprint(renamed)


def test_shapes_count_in_the_fingerprint():
    flat, square = nn.Linear(6, 1, bias=False), nn.Linear(3, 2, bias=False)
    with torch.no_grad():
        square.weight.copy_(flat.weight.reshape(2, 3))
    assert model_fingerprint(flat) != model_fingerprint(square)


@pytest.mark.parametrize(
    "config",
    [
        LoraConfig(r=2, target_modules=["c_attn"], fan_in_fan_out=True),
        LoraConfig(r=2, target_modules=["c_attn", "wte"], fan_in_fan_out=True),
        LoraConfig(
            r=2,
            target_modules=["c_fc"],
            use_dora=True,
            fan_in_fan_out=True,
            modules_to_save=["ln_f"],
        ),
    ],
    ids=["lora", "embedding", "dora-and-saved-module"],
)
@pytest.mark.filterwarnings("ignore:Model has .tie_word_embeddings")
def test_the_reference_of_a_model_with_adapters_is_its_base(config, tmp_path):
    data, cache = pairs(), tmp_path / "reference.safetensors"
    base = compute(tiny_gpt2(), data, cache=cache)
    model = get_peft_model(tiny_gpt2(), config)
    with torch.no_grad():  # adapters that do something
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.3)
    adapted = score(model, COLLATE([data[0]]))
    assert abs(adapted[0].item() - base["ref_chosen_logps"][0]) > 0.01
    assert list(compute(model, data)["ref_chosen_logps"]) == pytest.approx(
        list(base["ref_chosen_logps"]), rel=1e-5
    )
    assert torch.equal(score(model, COLLATE([data[0]])), adapted)  # the adapters are on again
    assert compute(model, data, cache=cache, score=refuse).to_list() == base.to_list()
    assert model_fingerprint(model) != model_fingerprint(get_peft_model(tiny_gpt2(seed=1), config))


def test_the_fingerprint_of_a_tokenizer():
    fingerprint = tokenizer_fingerprint(word_tokenizer())
    used = word_tokenizer()
    used(["the cat", "a"], padding=True, truncation=True, max_length=4)
    renamed = word_tokenizer()
    renamed.name_or_path = "elsewhere"
    assert fingerprint == tokenizer_fingerprint(used) == tokenizer_fingerprint(renamed)
    others = [
        word_tokenizer(chat_template=True),
        word_tokenizer(WORDS[::-1]),
        word_tokenizer(eos=False),
    ]
    assert len({fingerprint, *(tokenizer_fingerprint(other) for other in others)}) == 4


def test_the_fingerprint_of_data(tmp_path):
    data = pairs()
    fingerprint = data_fingerprint(data)
    data.save_to_disk(tmp_path / "saved")
    same = [
        pairs(),
        Dataset.load_from_disk(str(tmp_path / "saved")),
        data.add_column("weight", [1.0] * len(data)),
        data.select(range(len(data))[::-1]).select(range(len(data))[::-1]),
        Dataset.from_list(json.loads(json.dumps(data.to_list()))),  # int64 in place of int32
        data.with_format("torch"),
    ]
    assert {data_fingerprint(other) for other in same} == {fingerprint}
    moved = data.to_list()
    moved[0]["prompt_ids"], moved[0]["chosen_ids"] = [1, 2], [3]
    boundary = data.to_list()
    boundary[0]["prompt_ids"], boundary[0]["chosen_ids"] = [1], [2, 3]
    renamed = data.rename_columns({"chosen_ids": "rejected_ids", "rejected_ids": "chosen_ids"})
    others = [pairs(seed=1), data.select(range(10)), data.select(range(len(data))[::-1]), renamed]
    others += [Dataset.from_list(moved), Dataset.from_list(boundary)]
    assert len({fingerprint, *(data_fingerprint(other) for other in others)}) == 7
    rows = [Dataset.from_dict({"prompt_ids": ids}) for ids in ([[1, 2], [3]], [[1], [2, 3]])]
    assert data_fingerprint(rows[0]) != data_fingerprint(rows[1])
