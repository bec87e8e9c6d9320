"""Tokenizers and language models: from the hub or a folder, or made here to be trained from
scratch."""

import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from llm.adapters import CONFIG, adapter_base, adapter_config, merged
from llm.data.chat import without_the_date
from llm.special_ids import forget_ids_beyond
from llm.weights import located

PAD, EOS, UNKNOWN = "[PAD]", "[EOS]", "[UNK]"


def word_tokenizer(texts: Sequence[str], vocabulary: int) -> Any:
    """A `PreTrainedTokenizerFast` of the most frequent words (ties: alphabetical).

    Args:
        texts: that the words are counted in.
        vocabulary: how many entries, with [PAD], [EOS] and [UNK].

    Returns:
        The tokenizer.

    >>> from llm import word_tokenizer
    >>> word_tokenizer(["a good answer"], 6)("a good one").input_ids
    [3, 5, 2]
    """
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import WhitespaceSplit
    from transformers import PreTrainedTokenizerFast

    special = (PAD, EOS, UNKNOWN)
    counts = Counter(word for text in texts for word in text.split())
    words = sorted(counts, key=lambda word: (-counts[word], word))[: vocabulary - len(special)]
    tokenizer = Tokenizer(
        WordLevel({word: k for k, word in enumerate((*special, *words))}, unk_token=UNKNOWN)
    )
    tokenizer.pre_tokenizer = WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token=PAD, eos_token=EOS, unk_token=UNKNOWN
    )


def load_tokenizer(
    name: str, *, revision: str | None = None, trust_remote_code: bool = False
) -> Any:
    """The tokenizer of a model or adapter on the hub or in a folder; an adapter without one has
    that of its model.

    Args:
        name: of a folder or on the hub, smollm2, or a .gguf file (`located`).
        revision: on the hub.
        trust_remote_code: run code that comes with it.

    Returns:
        The tokenizer of transformers, whose chat template does not name the day.

    Raises:
        ValueError: it cannot be loaded.

    >>> import tempfile
    >>> from llm import load_tokenizer, word_tokenizer
    >>> folder = tempfile.mkdtemp()
    >>> _ = word_tokenizer(["a good answer"], 6).save_pretrained(folder)
    >>> load_tokenizer(folder)("good").input_ids
    [5]
    """
    from transformers import AutoTokenizer

    name = located(name)
    there = Path(name).is_dir() and not any(
        (Path(name) / file).exists() for file in ("tokenizer_config.json", "tokenizer.json")
    )
    if there and (base := adapter_base(name)) is not None:
        name, revision = located(base), None
    try:
        return without_the_date(
            AutoTokenizer.from_pretrained(
                name, revision=revision, trust_remote_code=trust_remote_code
            )
        )
    except (OSError, ValueError) as error:
        raise cannot_load("tokenizer", name, error) from error


def load_language_model(
    name: str,
    *,
    dtype: torch.dtype | str = torch.float32,
    revision: str | None = None,
    trust_remote_code: bool = False,
    attention: str | None = None,
) -> Any:
    """The causal language model of a folder or hub name. An adapter of peft is merged into the
    model that it names.

    Args:
        name: of a folder or on the hub, smollm2, or a .gguf file (`located`).
        dtype: of the weights, or "auto".
        revision: on the hub.
        trust_remote_code: run code that comes with it.
        attention: the kernel, as transformers names it; None: its choice.

    Returns:
        The model of transformers, on the CPU.

    Raises:
        ValueError: it cannot be loaded, or is an adapter that cannot be merged.

    >>> import tempfile
    >>> from llm import language_model, load_language_model, word_tokenizer
    >>> tokenizer, folder = word_tokenizer(["a good answer"], 6), tempfile.mkdtemp()
    >>> size = {"width": 8, "layers": 1, "length": 16}
    >>> language_model(None, tokenizer, seed=0, **size).save_pretrained(folder)
    >>> load_language_model(folder).dtype
    torch.float32
    """
    from safetensors import SafetensorError
    from transformers import AutoConfig, AutoModelForCausalLM

    name = located(name)
    options: dict[str, Any] = {"revision": revision, "trust_remote_code": trust_remote_code}
    base = adapter_base(name, revision)
    adapter = adapter_config(name, revision) if base is not None else None
    if adapter is not None:
        on = adapter["base_model_name_or_path"]
        try:
            below = load_language_model(
                on,
                dtype=dtype,
                revision=adapter.get("revision"),
                trust_remote_code=trust_remote_code,
                attention=attention,
            )
        except ValueError as error:
            raise ValueError(
                f"{name} is an adapter of the model {on}, which cannot be had: {error} Where that"
                " model lies elsewhere now, write its place into `base_model_name_or_path` of"
                f" {Path(name) / CONFIG}."
            ) from error
        return merged(below, name, revision)
    try:
        config = AutoConfig.from_pretrained(name, **options)
        if forget_ids_beyond(
            config, getattr(config.get_text_config(), "vocab_size", None) or sys.maxsize
        ):
            options["config"] = (
                config  # else an id of padding beyond the embeddings is an error in loading
            )
        return AutoModelForCausalLM.from_pretrained(
            name, dtype=dtype, attn_implementation=attention, **options
        )
    except (
        OSError,
        ValueError,
        ImportError,
        RuntimeError,
        AssertionError,
        SafetensorError,
    ) as error:
        raise cannot_load("model", name, error) from error


def pretrained_tokenizer(name: str, *, trust_remote_code: bool = False) -> Any:
    """The tokenizer of a model on the hub or in a folder; where it has no padding token, the end of
    sequence stands for it.

    Raises:
        ValueError: it cannot be loaded, or has no end-of-sequence token.
    """
    tokenizer = load_tokenizer(name, trust_remote_code=trust_remote_code)
    if tokenizer.eos_token is None:
        raise ValueError(
            f"the tokenizer of {name!r} has no end-of-sequence token: completions would not end."
            " Set its eos_token."
        )
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def gpt2_config(tokenizer: Any, *, width: int, layers: int, length: int) -> Any:
    """A GPT-2 architecture without dropout for a tokenizer: heads of up to 64 numbers, positions
    for `length` tokens."""
    from transformers import GPT2Config

    return GPT2Config(
        vocab_size=len(tokenizer),
        n_positions=length,
        n_embd=width,
        n_layer=layers,
        n_head=max(2, width // 64),
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        activation_function="gelu_pytorch_tanh",  # GPT-2's own in one operation instead of eight
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.eos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )


def language_model(
    name: str | None, tokenizer: Any, *, width: int, layers: int, length: int, seed: int
) -> nn.Module:
    """The causal language model of a hub id or folder; without a name a GPT-2 of that size with
    random weights from the seed.

    Args:
        name: of a folder or on the hub, or None.
        tokenizer: whose ids it takes.
        width, layers: of the GPT-2.
        length: tokens that a text may have.
        seed: of the weights.

    Returns:
        The model of transformers.

    Raises:
        ValueError: it cannot be loaded, or has fewer positions than `length` tokens.

    >>> from llm import language_model, word_tokenizer
    >>> tokenizer = word_tokenizer(["a good answer"], 6)
    >>> model = language_model(None, tokenizer, width=8, layers=1, length=16, seed=0)
    >>> model.config.model_type, model.config.n_positions
    ('gpt2', 16)
    """
    if name is None:
        from transformers import AutoModelForCausalLM

        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(
            gpt2_config(tokenizer, width=width, layers=layers, length=length)
        )
    else:
        model = load_language_model(name)
    check_length(model.config, length)
    return model


def check_length(config: Any, length: int) -> None:
    """Raise ValueError where a model has fewer positions than a text may have tokens."""
    positions = getattr(config, "max_position_embeddings", length)
    if positions < length:
        raise ValueError(
            f"the model has {positions} positions, and texts have up to {length} tokens: shorten"
            " them or take another model."
        )


def cannot_load(what: str, name: str, error: Exception) -> ValueError:
    """The error for a model or tokenizer that is neither in a folder nor within reach on the
    hub."""
    looks_local = name.startswith((".", "/", "~")) or "\\" in name or name.count("/") > 1
    where = (
        " There is no such folder here."
        if looks_local and not Path(name).expanduser().exists()
        else ""
    )
    return ValueError(
        f"cannot load the {what} {name!r} ({type(error).__name__}: {first_line(error)}).{where}"
        " Give the folder of a downloaded snapshot, or a name on the hub that this machine can"
        " reach; the emotion study can also start from `scratch`."
    )


def first_line(error: Exception) -> str:
    """The first line of what an error says."""
    return (str(error).strip().splitlines() or [""])[0]
