"""Tiny models and tokenizers, made here, so that tests need no download and take milliseconds."""

from collections.abc import Iterable

import torch
from tokenizers import Tokenizer, decoders
from tokenizers.models import BPE, WordLevel
from tokenizers.pre_tokenizers import ByteLevel, WhitespaceSplit
from tokenizers.trainers import BpeTrainer
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

WORDS = """the a cat dog bird sun moon is was not red blue green happy sad angry very and in on
sees likes""".split()  # noqa: SIM905
CHAT_TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|> {{ message['content'] }} <eos> "
    "{% endfor %}{% if add_generation_prompt %}<|assistant|> {% endif %}"
)


def tiny_gpt2(
    seed: int = 0, vocabulary: int = 64, width: int = 16, layers: int = 2, dropout: float = 0.0
) -> PreTrainedModel:
    """A GPT-2 with random weights, two heads, 128 positions and tied embeddings; in evaluation
    mode."""
    config = GPT2Config(
        vocab_size=vocabulary,
        n_positions=128,
        n_embd=width,
        n_layer=layers,
        n_head=2,
        resid_pdrop=dropout,
        embd_pdrop=dropout,
        attn_pdrop=dropout,
        # with the usual 0.02 all tokens are about as likely, and errors do not show
        initializer_range=0.5,
        bos_token_id=1,
        eos_token_id=1,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return GPT2LMHeadModel(config).eval()


def tiny_llama(
    seed: int = 0, vocabulary: int = 64, width: int = 16, layers: int = 2
) -> PreTrainedModel:
    """A Llama with random weights, four heads on two of keys and values, rotary positions; in
    evaluation mode."""
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
        initializer_range=0.3,
        bos_token_id=1,
        eos_token_id=1,
        pad_token_id=0,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return LlamaForCausalLM(config).eval()


def word_tokenizer(
    words: Iterable[str] = WORDS, *, chat_template: bool = False, pad: bool = True, eos: bool = True
) -> PreTrainedTokenizerBase:
    """One token a word, split at white space: <pad> 0, <eos> 1, <unk> 2, the role marks 3 to 5,
    then `words` in their order."""
    special = ["<pad>", "<eos>", "<unk>", "<|system|>", "<|user|>", "<|assistant|>"]
    vocabulary = {word: i for i, word in enumerate(dict.fromkeys([*special, *words]))}
    backend = Tokenizer(WordLevel(vocabulary, unk_token="<unk>"))
    backend.pre_tokenizer = WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>")
    tokenizer.add_special_tokens({"additional_special_tokens": special[3:]})
    tokenizer.add_special_tokens(
        ({"pad_token": "<pad>"} if pad else {}) | ({"eos_token": "<eos>"} if eos else {})
    )
    if chat_template:
        tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def byte_tokenizer(
    texts: Iterable[str], vocabulary: int = 300, *, chat_template: bool = False
) -> PreTrainedTokenizerBase:
    """Byte-pair tokens as GPT-2 has them, trained on `texts`: tokens can merge across the end of a
    prompt. <eos> is 0."""
    backend = Tokenizer(BPE())
    backend.pre_tokenizer, backend.decoder = ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    trainer = BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=["<eos>"],
        initial_alphabet=ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<eos>")
    if chat_template:
        tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer
