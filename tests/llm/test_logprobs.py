"""Log-probabilities of completions, against a log-softmax of the full logits."""

import copy

import pytest
import torch
from torch import Tensor, nn
from transformers import (
    CohereConfig,
    CohereForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2Model,
    GraniteConfig,
    GraniteForCausalLM,
    PreTrainedModel,
)

from llm import logprobs
from llm.logprobs import head_can_be_fused, sequence_logprobs
from tests.llm.models import tiny_gpt2, tiny_llama
from tests.llm.precision import ROUNDINGS, UNIT
from tests.llm.training import all_logps, one_batch, random_pairs

SIZES = {
    "vocab_size": 64,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 4,
    "max_position_embeddings": 128,
    "initializer_range": 0.5,
    "bos_token_id": 1,
    "eos_token_id": 1,
    "pad_token_id": 0,
}


def made(kind: type[PreTrainedModel], config: object) -> PreTrainedModel:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return kind(config).eval()


FUSIBLE = {"gpt2": tiny_gpt2, "llama": tiny_llama}
NOT_FUSIBLE = {  # they change the logits after the head
    "gemma2": lambda: made(Gemma2ForCausalLM, Gemma2Config(**SIZES, final_logit_softcapping=5.0)),
    "cohere": lambda: made(CohereForCausalLM, CohereConfig(**SIZES, logit_scale=0.25)),
    "granite": lambda: made(GraniteForCausalLM, GraniteConfig(**SIZES, logits_scaling=4.0)),
}


@pytest.fixture(scope="module")
def batch() -> dict[str, Tensor]:
    return one_batch(random_pairs(6))


@pytest.mark.parametrize("name", [*FUSIBLE, *NOT_FUSIBLE])
def test_against_full_logits(name: str, batch: dict[str, Tensor]) -> None:
    model = (FUSIBLE | NOT_FUSIBLE)[name]()
    assert head_can_be_fused(model) == (name in FUSIBLE)
    truth = all_logps(model, batch)
    for fused in (False, True) if name in FUSIBLE else (False,):
        found = sequence_logprobs(model, batch, fused=fused)
        torch.testing.assert_close(found, truth, rtol=1e-5, atol=1e-4)
        gradients = [
            torch.autograd.grad(x.tanh().sum(), model.lm_head.weight, retain_graph=True)[0]
            for x in (found, truth)
        ]
        torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-5)
    if name in NOT_FUSIBLE:  # what the check protects from
        assert (sequence_logprobs(model, batch) - truth).abs().max() > 0.1


def test_a_soft_cap_is_found_where_it_hardly_acts_yet() -> None:
    """Logits near 0.1 under a cap of 30: training would make them larger."""
    small = Gemma2Config(**(SIZES | {"initializer_range": 0.02}), final_logit_softcapping=30.0)
    assert not head_can_be_fused(made(Gemma2ForCausalLM, small))
    assert head_can_be_fused(
        made(Gemma2ForCausalLM, Gemma2Config(**SIZES, final_logit_softcapping=None))
    )


def test_the_check_leaves_the_model_as_it_was() -> None:
    for training in (True, False):
        model = tiny_gpt2().train(training)
        state, random = copy.deepcopy(model.state_dict()), torch.get_rng_state()
        assert head_can_be_fused(model)
        assert all(module.training == training for module in model.modules())
        assert (
            torch.equal(torch.get_rng_state(), random) and "forward" not in model.lm_head.__dict__
        )
        torch.testing.assert_close(model.state_dict(), state, rtol=0, atol=0)


def test_a_model_without_a_head_is_not_fused() -> None:
    class OwnHead(GPT2Model):
        def get_output_embeddings(self) -> None:
            return None

        def forward(
            self, input_ids: Tensor, attention_mask: Tensor | None = None, **_: object
        ) -> object:
            out = super().forward(input_ids, attention_mask=attention_mask)
            out.logits = out.last_hidden_state @ self.wte.weight.T
            return out

    model = OwnHead(
        GPT2Config(vocab_size=64, n_positions=32, n_embd=16, n_layer=1, n_head=2)
    ).eval()
    with pytest.warns(UserWarning, match="taken from full logits: the head cannot be fused"):
        assert not head_can_be_fused(model)


class LooksAhead(nn.Module):
    """A model whose attention is not causal: padding would be seen."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = tiny_gpt2()

    def get_input_embeddings(self) -> nn.Module:
        return self.inner.get_input_embeddings()

    def get_output_embeddings(self) -> nn.Module:
        return self.inner.get_output_embeddings()

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, **_: object
    ) -> object:
        z = self.inner.get_input_embeddings()(input_ids)
        seen = z if attention_mask is None else z * attention_mask[..., None]
        return self.inner(
            inputs_embeds=z + seen.mean(1, keepdim=True), attention_mask=attention_mask
        )


def test_a_model_that_sees_padding_is_not_fused() -> None:
    assert not head_can_be_fused(LooksAhead().eval())


@pytest.mark.parametrize("training", [True, False])
def test_chunks_change_nothing(training: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    batch = one_batch(random_pairs(150))  # more completion tokens than the smallest chunk has
    assert int(batch["completion_mask"].sum()) > 4 * 256
    model = tiny_llama().train(training)
    values, gradients = [], []
    for size in (2**24, 1):
        monkeypatch.setattr(logprobs, "CHUNK_LOGITS", size)
        found = sequence_logprobs(model, batch)
        values.append(found)
        gradients.append(
            torch.cat(
                [g.flatten() for g in torch.autograd.grad(found.sum(), list(model.parameters()))]
            )
        )
        with torch.no_grad():
            torch.testing.assert_close(sequence_logprobs(model, batch), found, rtol=0, atol=1e-5)
    torch.testing.assert_close(values[0], values[1], rtol=0, atol=1e-5)
    assert (gradients[0] - gradients[1]).norm() / gradients[0].norm() < 1e-6


def test_dtypes(batch: dict[str, Tensor]) -> None:
    """Sums of float32 under autocast: of values near -25 a bf16 sum would be a multiple of 1/8."""
    double = tiny_gpt2().double()
    found = sequence_logprobs(double, batch)
    assert found.dtype == torch.float64
    torch.testing.assert_close(found, all_logps(double, batch), rtol=1e-12, atol=1e-12)
    for fused in (True, False):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            low = sequence_logprobs(tiny_gpt2(), batch, fused=fused)
        assert low.dtype == torch.float32
        assert ((low * 8) % 1).abs().min() > 0
        torch.testing.assert_close(low.double(), found, rtol=0.03, atol=0.3)
        half = sequence_logprobs(tiny_gpt2().bfloat16(), batch, fused=fused)
        assert half.dtype == torch.float32
        torch.testing.assert_close(half.double(), found, rtol=0.05, atol=0.5)


@pytest.mark.parametrize("name", [*FUSIBLE, *NOT_FUSIBLE])
def test_padding_does_not_matter(name: str, batch: dict[str, Tensor]) -> None:
    model = (FUSIBLE | NOT_FUSIBLE)[name]()
    wider = {
        key: torch.cat([batch[key], batch[key].new_zeros(12, 9)], 1)
        for key in batch
        if batch[key].ndim == 2
    }
    wider["input_ids"][wider["attention_mask"] == 0] = 17
    fused = name in FUSIBLE
    found = sequence_logprobs(model, batch, fused=fused)
    rounded = ROUNDINGS * UNIT * float(found.abs().max())
    torch.testing.assert_close(
        sequence_logprobs(model, wider, fused=fused), found, rtol=0, atol=rounded
    )
    for i in range(3):
        length = int(batch["attention_mask"][i].sum())
        alone = {key: x[i : i + 1, :length] for key, x in batch.items() if x.ndim == 2}
        torch.testing.assert_close(
            sequence_logprobs(model, alone, fused=fused)[0], found[i], rtol=0, atol=rounded
        )


def test_a_row_without_completion_is_zero(batch: dict[str, Tensor]) -> None:
    mask = batch["completion_mask"].clone()
    mask[2] = 0
    found = sequence_logprobs(tiny_gpt2(), batch | {"completion_mask": mask})
    assert found[2] == 0 and (found[[0, 1, 3]] < 0).all()


def test_a_tail_beyond_the_shorter_response_by_hand() -> None:
    """Uniform logits: of 5 and 2 tokens the shared 2 count fully, the other 3 by 0.3; of 1 and 1
    all do."""
    model = tiny_gpt2()
    with torch.no_grad():
        model.lm_head.weight.zero_()
    mask = torch.tensor(
        [[0, 1, 1, 1, 1, 1], [0, 0, 1, 0, 0, 0], [0, 1, 1, 0, 0, 0], [0, 0, 0, 1, 0, 0]]
    )
    attention = mask.flip(1).cumsum(1).flip(1).clamp(max=1)
    batch = {"input_ids": 5 * attention, "attention_mask": attention, "completion_mask": mask}
    truth = -torch.log(torch.tensor(64.0)) * torch.tensor([2 + 3 * 0.3, 1.0, 2.0, 1.0])
    for fused in (True, False):
        found = sequence_logprobs(model, batch, fused=fused, tail=0.3)
        torch.testing.assert_close(found, truth)


def test_tokens_by_hand() -> None:
    """Uniform logits: each completion token costs log 64, whatever the prompt."""
    model = tiny_gpt2()
    with torch.no_grad():
        model.lm_head.weight.zero_()
    ids = torch.tensor([[5, 6, 7, 8], [5, 6, 7, 0]])
    completion = torch.tensor([[0, 1, 1, 1], [0, 0, 1, 0]])
    found = sequence_logprobs(
        model, {"input_ids": ids, "attention_mask": (ids > 0).long(), "completion_mask": completion}
    )
    torch.testing.assert_close(found, -torch.log(torch.tensor(64.0)) * torch.tensor([3.0, 1.0]))
