"""Reference log-probabilities: computed once, kept in a file, refused where it is of another model,
tokenizer or data."""

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc
import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, extract_model_from_parallel
from datasets import Dataset, Value
from datasets.utils import tqdm
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

FORMAT = "1"  # to be raised whenever the file gets another meaning
PARTS = ("model", "tokenizer", "data", "dtype")  # what the log-probabilities depend on
TAIL = "weight of tokens beyond the shorter response"  # one more, where it is not 1
Score = Callable[[nn.Module, Mapping[str, Tensor]], Tensor]


def reference_logps(
    model: nn.Module,
    dataset: Dataset,
    collate: Callable[[Sequence[dict[str, Any]]], dict[str, Tensor]],
    batch_size: int,
    *,
    cache: Path | None,
    identity: Mapping[str, str],
    score: Score,
    accelerator: Accelerator | None = None,
) -> Dataset:
    """The tokenised data with log pi_ref of the completions: ref_chosen_logps, ref_rejected_logps;
    or ref_logps, ref_kl_logps.

    Computed without gradients and in evaluation mode, longest rows first. A PEFT model is its own
    reference: its adapters are switched off meanwhile. Every rank computes a share and gets
    everything; all must call this, and make as many forward passes.

    Args:
        model: the reference policy, wrapped or not.
        dataset: what `llm.data.tokens.tokenise` returns.
        collate: rows -> batch, as `llm.data.tokens.PreferenceCollator`.
        batch_size: rows of `dataset` at once on each rank; a pair is two sequences.
        cache: file to read them from if it exists, and else to write them to; None: neither.
        identity: what they depend on, from `reference_identity`.
        score: (model, batch) -> log-probabilities (sequences,), as
            `llm.logprobs.sequence_logprobs`.
        accelerator: needed where there are several ranks, and for its mixed precision.

    Raises:
        ValueError: the cache is damaged, or of another model, tokenizer, data or dtype; a
            log-probability is not finite.

    Returns:
        The data with the new columns (rows,), float32, in nats.

    >>> from llm import PreferenceCollator, language_model, reference_logps, sequence_logprobs
    >>> from llm import tokenise, word_tokenizer
    >>> tokenizer = word_tokenizer(["is it good bad"], 7)
    >>> data = tokenise([{"prompt": "is it", "chosen": " good", "rejected": " bad"}], tokenizer)
    >>> model = language_model(None, tokenizer, width=8, layers=1, length=16, seed=0)
    >>> scored = reference_logps(
    ...     model,
    ...     data,
    ...     PreferenceCollator(tokenizer.pad_token_id),
    ...     batch_size=4,
    ...     cache=None,
    ...     identity={},
    ...     score=sequence_logprobs,
    ... )
    >>> max(scored["ref_chosen_logps"]) < 0
    True
    """
    columns = _columns(dataset)
    found = (
        _read_for_all(cache, identity, columns, len(dataset), accelerator)
        if cache is not None
        else None
    )
    if found is None:
        found = _compute(model, dataset, collate, batch_size, score, accelerator)
        if cache is not None and (accelerator is None or accelerator.is_main_process):
            _write(cache, found, identity)
    for column in columns:
        dataset = dataset.add_column(column, found[column].numpy(), feature=Value("float32"))
    return dataset


def reference_identity(
    model: nn.Module | str,
    tokenizer: PreTrainedTokenizerBase,
    dataset: Dataset,
    dtype: torch.dtype | str,
    tail: float = 1.0,
) -> dict[str, str]:
    """What reference log-probabilities depend on. `dtype` is that of the computation: of autocast,
    or else of the weights.

    model: the model, or its fingerprint. tail: see `llm.logprobs.sequence_logprobs`.
    """
    of_model = model if isinstance(model, str) else model_fingerprint(model)
    fingerprints = (
        of_model,
        tokenizer_fingerprint(tokenizer),
        data_fingerprint(dataset),
        str(dtype),
    )
    weighted = {} if tail == 1 else {TAIL: str(tail)}
    return dict(zip(PARTS, fingerprints, strict=True)) | weighted


def model_fingerprint(model: nn.Module) -> str:
    """SHA-256 of settings and weights: names in sorted order, dtypes, shapes, bytes. To be taken
    before the weights are sharded.

    Of a PEFT model it is that of the base model, whether there are adapters or not.
    """
    model = extract_model_from_parallel(model, keep_torch_compile=False)
    state = dict(_base_state(model)) if _is_peft(model) else model.state_dict()
    digest = hashlib.sha256(json.dumps(_settings(model), sort_keys=True, default=str).encode())
    for name in sorted(state):
        tensor = state[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _settings(model: nn.Module) -> dict[str, Any]:
    """The configuration, less what changes no log-probability: names, versions, precision, special
    tokens, dropout, caching."""
    config = getattr(model, "config", None)
    if config is None:
        return {}
    unimportant = (
        "name",
        "version",
        "dtype",
        "architectures",
        "_token_id",
        "drop",
        "use_cache",
        "attn_implementation",
        "output_",
    )
    return {k: v for k, v in config.to_dict().items() if not any(part in k for part in unimportant)}


def tokenizer_fingerprint(tokenizer: PreTrainedTokenizerBase) -> str:
    """SHA-256 of what the tokenizer does to a text, and of its chat template. Its name, padding and
    truncation do not count."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:  # a tokenizer in Python
        rules: Any = [
            type(tokenizer).__name__,
            tokenizer.get_vocab(),
            sorted(map(str, tokenizer.all_special_tokens)),
        ]
    else:
        rules = json.loads(backend.to_str())
        for changes_with_use in ("padding", "truncation"):
            rules.pop(changes_with_use, None)
    return hashlib.sha256(
        json.dumps([rules, tokenizer.chat_template], sort_keys=True).encode()
    ).hexdigest()


def data_fingerprint(dataset: Dataset) -> str:
    """SHA-256 of the token ids, in the order of the rows. Weights, groups, labels and the way of
    storage do not count."""
    columns = sorted(column for column in dataset.column_names if column.endswith("_ids"))
    lengths, ids = ({column: hashlib.sha256() for column in columns} for _ in range(2))
    for batch in dataset.select_columns(columns).with_format("arrow").iter(batch_size=10_000):
        for column in columns:
            lengths[column].update(
                pc.list_value_length(batch[column]).to_numpy().astype("<i8").tobytes()
            )
            ids[column].update(pc.list_flatten(batch[column]).to_numpy().astype("<i8").tobytes())
    parts = [
        f"{column} {lengths[column].hexdigest()} {ids[column].hexdigest()}\n" for column in columns
    ]
    return hashlib.sha256("".join(parts).encode()).hexdigest()


def _columns(dataset: Dataset) -> list[str]:
    columns = (
        ["ref_chosen_logps", "ref_rejected_logps"]
        if "chosen_ids" in dataset.column_names
        else ["ref_logps", "ref_kl_logps"]
    )
    there = [column for column in columns if column in dataset.column_names]
    if there:
        raise ValueError(
            f"the data have {', '.join(there)} already. Remove them: they are computed here."
        )
    return columns


def _compute(
    model: nn.Module,
    dataset: Dataset,
    collate: Callable[[Sequence[dict[str, Any]]], dict[str, Tensor]],
    batch_size: int,
    score: Score,
    accelerator: Accelerator | None,
) -> dict[str, Tensor]:
    """The columns, each (rows,) float32 on the CPU."""
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}.")
    columns, count = _columns(dataset), len(dataset)
    rank, ranks = (accelerator.process_index, accelerator.num_processes) if accelerator else (0, 1)
    device = accelerator.device if accelerator else next(model.parameters()).device
    longest_first = np.argsort(
        -row_lengths(dataset), kind="stable"
    )  # less padding, and too large a batch fails at once
    batches = [longest_first[i : i + batch_size] for i in range(0, count, batch_size)]
    rounds = -(
        -len(batches) // ranks
    )  # a forward of a sharded model needs all ranks: those without a batch repeat the last one

    values = torch.zeros(len(columns), count, dtype=torch.float32, device=device)
    with (
        _as_reference(model),
        torch.no_grad(),
        accelerator.autocast() if accelerator else nullcontext(),
    ):
        for i in tqdm(
            range(rounds), desc="reference log-probabilities", unit="batch", disable=rank != 0
        ):
            mine = i * ranks + rank
            rows = batches[min(mine, len(batches) - 1)]
            batch = {
                key: value.to(device)
                for key, value in collate(dataset.__getitems__(rows.tolist())).items()
            }
            parts = [score(model, batch)]
            if "kl_input_ids" in batch:
                other = ("input_ids", "attention_mask", "completion_mask")
                parts.append(score(model, {key: batch[f"kl_{key}"] for key in other}))
            if mine < len(batches):
                values[:, torch.from_numpy(rows).to(device)] = (
                    torch.cat(parts).float().reshape(len(columns), len(rows))
                )
    if accelerator and ranks > 1:
        values = accelerator.reduce(
            values, "sum"
        )  # exact: each value is of one rank, and zero on the others
    values = values.cpu()
    bad = (~torch.isfinite(values)).any(0).nonzero().flatten()
    if len(bad):
        row = int(bad[0])
        number = (int(dataset[row]["index"]) if "index" in dataset.column_names else row) + 1
        raise ValueError(
            f"the reference gives {len(bad)} of {count} rows a log-probability that is not finite;"
            f" the first is row {number} ({values[:, row].tolist()}). Check the model's weights,"
            " its dtype, and that no row is longer than its positions."
        )
    return dict(zip(columns, values, strict=True))


def row_lengths(dataset: Dataset) -> np.ndarray:
    """Tokens of each row's longest sequence."""
    return np.max(_sequences(dataset), axis=0)


def row_tokens(dataset: Dataset) -> np.ndarray:
    """Tokens of all sequences that a row trains on: of both responses of a pair, each with the
    prompt, or of the one."""
    return np.sum(_sequences(dataset, without="kl_completion_ids"), axis=0)


def _sequences(dataset: Dataset, without: str = "") -> list[np.ndarray]:
    """Tokens of the prompt with each of the completions, (rows,) each."""
    columns = [
        column for column in dataset.column_names if column.endswith("_ids") and column != without
    ]
    table = dataset.select_columns(columns).with_format("arrow")[:]
    lengths = {column: pc.list_value_length(table[column]).to_numpy() for column in columns}
    prompt = lengths.pop("prompt_ids")
    return [prompt + length for length in lengths.values()]


@contextmanager
def _as_reference(model: nn.Module) -> Iterator[None]:
    """Evaluation mode and, with PEFT, no adapters; afterwards everything as it was."""
    training = [module for module in model.modules() if module.training]
    inner = extract_model_from_parallel(model)
    model.eval()
    try:
        with inner.disable_adapter() if _is_peft(inner) else nullcontext():
            yield
    finally:
        for module in training:
            module.training = True


def _is_peft(model: nn.Module) -> bool:
    from peft import PeftModel

    return isinstance(model, PeftModel)


def _base_state(model: Any) -> Iterator[tuple[str, Tensor]]:
    """The weights of the model inside a PEFT model, under the names that they have without it."""
    base = model.get_base_model()
    adapter = getattr(model.base_model, "prefix", None)  # such as lora_
    for name, tensor in base.state_dict().items():
        parts = name.split(".")
        if "modules_to_save" in parts or (
            adapter and any(part.startswith(adapter) for part in parts)
        ):
            continue
        yield (
            ".".join(part for part in parts if part not in ("base_layer", "original_module")),
            tensor,
        )


def _read_for_all(
    cache: Path,
    identity: Mapping[str, str],
    columns: list[str],
    count: int,
    accelerator: Accelerator | None,
) -> dict[str, Tensor] | None:
    """What the main process finds in the cache, on every rank, or its error: a file may be visible
    to one machine only."""
    if accelerator is None or accelerator.num_processes == 1:
        return _read(cache, identity, columns, count)
    outcome: list[Any] = [None]
    if accelerator.is_main_process:
        try:
            outcome = [_read(cache, identity, columns, count)]
        except ValueError as error:
            outcome = [error]
    outcome = broadcast_object_list(outcome)
    if isinstance(outcome[0], ValueError):
        raise outcome[0]
    return outcome[0]


def _read(
    cache: Path, identity: Mapping[str, str], columns: list[str], count: int
) -> dict[str, Tensor] | None:
    if not cache.exists():
        return None
    remedy = (
        "Give another --reference_cache or --output_dir; or move the file away, and they are"
        " computed again"
    )
    try:
        with safe_open(cache, framework="pt") as file:
            stored = file.metadata() or {}
            values = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118, not a mapping
    except (SafetensorError, OSError) as error:
        raise ValueError(
            f"{cache} is truncated, damaged or no file of safetensors ({error}). {remedy}."
        ) from error
    if "prefdro_reference" not in stored:
        raise ValueError(
            f"{cache} was not written as a file of reference log-probabilities. {remedy}."
        )
    if stored["prefdro_reference"] != FORMAT:
        raise ValueError(
            f"{cache} has format {stored['prefdro_reference']}, this version reads {FORMAT}."
            f" {remedy}."
        )
    differ = [part for part in (*PARTS, TAIL) if stored.get(part) != identity.get(part)]
    if differ:
        received = "; ".join(
            f"{part} {_short(stored.get(part))} there, {_short(identity.get(part))} here"
            for part in differ
        )
        raise ValueError(
            f"{cache} holds log-probabilities of another {' and '.join(differ)} ({received})."
            f" {remedy}."
        )
    if sorted(values) != sorted(columns) or any(
        value.shape != (count,) for value in values.values()
    ):
        raise ValueError(
            f"{cache} does not hold {' and '.join(columns)} of {count} rows: it is damaged."
            f" {remedy}."
        )
    return values


def _write(cache: Path, values: dict[str, Tensor], identity: Mapping[str, str]) -> None:
    temporary = cache.with_name(f".{cache.name}.{os.getpid()}")
    metadata = {"prefdro_reference": FORMAT, **identity}
    try:
        cache.parent.mkdir(parents=True, exist_ok=True)
        save_file(
            {column: value.contiguous() for column, value in values.items()},
            temporary,
            metadata=metadata,
        )
        os.replace(temporary, cache)
    finally:
        temporary.unlink(missing_ok=True)


def _short(fingerprint: str | None) -> str:
    return "nothing" if fingerprint is None else fingerprint[:12]
