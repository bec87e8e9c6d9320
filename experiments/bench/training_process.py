"""One method of the training benchmark in a process of its own: a real `Trainer.train()`, stopped
after each block of steps.

The process says when it is warm, then waits at the end of each block until it is told to go on, so
that the blocks of many methods can take turns. A block is timed from the end of one step to the end
of another and so holds everything that a user pays: fetching and collating rows, the passes before
and in the step, gradient clipping, the optimizer, and one log.
"""

import copy
import ctypes
import math
import os
import resource
import sys
import time
import warnings
from dataclasses import dataclass, field, replace
from multiprocessing.connection import Connection
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, cast

import torch
from datasets import Dataset, disable_progress_bars
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    PreTrainedTokenizerFast,
    PrinterCallback,
    Trainer,
    TrainerCallback,
)
from transformers.utils import is_flash_attn_2_available, logging

from llm.arguments import PreferenceArguments
from llm.data.tokens import PreferenceCollator, tokenise
from llm.models import check_length, load_language_model
from llm.objectives import ObjectiveParameters
from llm.reference import reference_logps
from llm.trainer import PreferenceTrainer

MIB = 2**20
M_MMAP_THRESHOLD = -3  # malloc.h: larger blocks are mapped, and unmapped when freed
SHARED = 0.6  # of the variance of two responses' log-lengths
SPECIAL = ("<pad>", "<eos>", "<unk>")


@dataclass(frozen=True)
class Setting:
    """Model, data and schedule that all methods share. batch: preference pairs of one optimizer
    step; length: tokens of a row, or of the longest where they are spread as UltraFeedback's."""

    device: str
    width: int
    layers: int
    heads: int
    vocabulary: int
    length: int
    batch: int
    bf16: bool = False
    warmup: int = 2
    block: int = 1
    blocks: int = 7
    spread: bool = False
    model: str | None = None  # with weights, in the place of one of this size


@dataclass(frozen=True)
class Method:
    """What is trained and how. trainer: "ours", "trl" (reference computed beforehand, as ours) or
    "trl online" (its default). by_length: each batch is sorted by length before it is cut into
    micro-batches."""

    objective: str
    mode: str = ""
    trainer: str = "ours"
    accumulation: int = 1
    checkpointing: bool = False
    padding_free: bool = False
    by_length: bool = False
    parameters: dict[str, Any] = field(default_factory=dict)


def attention(method: Method, setting: Setting) -> str:
    """The fastest kernel at hand: flash attention where it is installed, except that it has no
    second derivative."""
    twice = method.objective == "wdpo" and method.mode == "exact"
    flash = setting.device == "cuda" and setting.bf16 and is_flash_attn_2_available() and not twice
    return "flash_attention_2" if flash else "sdpa"


def run(method: Method, setting: Setting, pipe: Connection) -> None:
    """Train, sending None when warm and then the seconds of each block that was asked for by True;
    False ends it.

    The last message is a dictionary of what was measured, or, of whatever went wrong, a string.
    """
    warnings.simplefilter("ignore")  # on arguments that are chosen here on purpose
    logging.set_verbosity_error()
    disable_progress_bars()
    os.environ["TQDM_DISABLE"] = "1"
    try:
        _touch(method, setting)
        pipe.send(_train(method, setting, pipe))
    except torch.cuda.OutOfMemoryError:
        pipe.send("out of memory")
    except Exception as error:  # it must reach the table, whatever it is
        pipe.send(f"{type(error).__name__}: {error}".splitlines()[0])


def _touch(method: Method, setting: Setting) -> None:
    """Two steps of a minute model, so that the code they use is in memory and does not count as a
    method's."""
    minute = replace(
        setting,
        width=8 * setting.heads,
        layers=1,
        vocabulary=64,
        length=16,
        warmup=0,
        block=2,
        blocks=0,
        model=None,
    )
    with TemporaryDirectory() as out:
        make_trainer(
            method, minute, make_model(method, minute), make_tokenizer(minute), out, []
        ).train()


def _train(method: Method, setting: Setting, pipe: Connection) -> dict[str, Any]:
    _forget_peak(setting.device)
    before = _peak(setting.device)
    model, tokenizer = make_model(method, setting), make_tokenizer(setting)
    blocks = _Blocks(setting, pipe)
    with TemporaryDirectory() as out:
        trainer = make_trainer(method, setting, model, tokenizer, out, [blocks])
        trainer.train()
        peak = _peak(setting.device) - before
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    return {
        "peak_mib": peak / MIB,
        "parameters": sum(p.numel() for p in model.parameters()),
        "threads": torch.get_num_threads(),
        "attention": attention(method, setting),
        "loss": losses[-1],
    }


def _peak(device: str) -> int:
    """Bytes: of the tensors on the CUDA device, or resident of this process, at their largest since
    `_forget_peak`."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (
        1 if sys.platform == "darwin" else 1024
    )


def _forget_peak(device: str) -> None:
    """Begin a new measurement. On Linux, freed memory is given back from now on, which the
    allocator else does by chance."""
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    elif sys.platform == "linux":
        libc = ctypes.CDLL(None)
        if hasattr(libc, "mallopt") and hasattr(libc, "malloc_trim"):  # glibc
            libc.mallopt(M_MMAP_THRESHOLD, 2**16)
            libc.malloc_trim(0)
        Path("/proc/self/clear_refs").write_text(
            "5", encoding="utf-8"
        )  # proc(5): resets the peak resident set size


def _clocks() -> tuple[float, float]:
    """Seconds of the wall clock and of this process on all cores."""
    return time.perf_counter(), time.process_time()


class _Blocks(TrainerCallback):
    """Waits before each block of steps, and sends how long it took; ends with one more step, for
    its memory."""

    def __init__(self, setting: Setting, pipe: Connection) -> None:
        self.setting, self.pipe = setting, pipe
        self.start: tuple[float, float] | None = None
        self.timed = False

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        done = state.global_step - self.setting.warmup
        if self.timed:  # this was the step whose memory is measured
            control.should_training_stop = True
        elif done >= 0 and done % self.setting.block == 0:
            self._pause()

    def _pause(self) -> None:
        if self.setting.device == "cuda":
            torch.cuda.synchronize()
        self.pipe.send(
            None
            if self.start is None
            else tuple(now - then for now, then in zip(_clocks(), self.start, strict=True))
        )
        if not self.pipe.recv():
            self.timed = True
            _forget_peak(self.setting.device)
        self.start = _clocks()


# ------------------------------------------------------------------ what all methods have in common
def make_model(method: Method, setting: Setting) -> nn.Module:
    """A Llama of random weights, or the given model: the same for all methods; float32, whatever it
    computes in."""
    if setting.model is not None:
        given = load_language_model(setting.model, attention=attention(method, setting))
        check_length(given.config, setting.length)
        return cast(nn.Module, given.to(setting.device))
    config = LlamaConfig(
        vocab_size=setting.vocabulary,
        hidden_size=setting.width,
        intermediate_size=setting.width * 8 // 3 // 16 * 16,
        num_hidden_layers=setting.layers,
        num_attention_heads=setting.heads,
        max_position_embeddings=setting.length,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=1,
    )
    torch.manual_seed(0)
    with torch.device(setting.device):
        return AutoModelForCausalLM.from_config(
            config, dtype=torch.float32, attn_implementation=attention(method, setting)
        )


def make_tokenizer(setting: Setting) -> PreTrainedTokenizerFast:
    """One token for each word, so that lengths in words are lengths in tokens."""
    words = [*SPECIAL, *(f"w{i}" for i in range(setting.vocabulary - len(SPECIAL)))]
    backend = Tokenizer(WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    backend.pre_tokenizer = WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>"
    )


def make_texts(setting: Setting) -> Dataset:
    """Four batches of random words: prompts fill half of the length, completions a quarter to a
    half; or lengths as spread as UltraFeedback's."""
    g = torch.Generator().manual_seed(0)
    half = setting.length // 2

    def count_in(low: int, high: int) -> int:
        return int(torch.randint(low, high + 1, (), generator=g))

    def counts() -> tuple[int, int, int]:
        if setting.spread:
            return _spread_lengths(setting.length, g)
        return half, count_in(half // 2, half - 1), count_in(half // 2, half - 1)

    def words(count: int) -> str:
        return "".join(
            f" w{i}"
            for i in torch.randint(
                setting.vocabulary - len(SPECIAL), (count,), generator=g
            ).tolist()
        )

    rows = [
        dict(zip(("prompt", "chosen", "rejected"), map(words, counts()), strict=True))
        for _ in range(4 * setting.batch)
    ]
    return Dataset.from_list(rows)


def _spread_lengths(longest: int, g: torch.Generator) -> tuple[int, int, int]:
    """Words of a prompt and its two responses, log-normal, with the medians and 90 % quantiles of
    1000 pairs of UltraFeedback cut at 1024 tokens: 77 and 446 of a prompt, 205 and 600 of a
    response. Responses to one prompt are of like length: padding one pair adds as much there."""
    prompt, both, *each = torch.randn(4, generator=g).tolist()
    of_prompt = min(max(round(0.075 * longest * math.exp(1.37 * prompt)), 1), longest // 2)
    of_responses = [
        0.2 * longest * math.exp(0.86 * (SHARED**0.5 * both + (1 - SHARED) ** 0.5 * own))
        for own in each
    ]
    chosen, rejected = (min(max(round(x), 1), longest - of_prompt - 1) for x in of_responses)
    return of_prompt, chosen, rejected


def _by_length(texts: Dataset, batch: int) -> Dataset:
    """The same batches, each from its shortest to its longest row."""
    lengths = [
        len(row["prompt"].split()) + max(len(row[name].split()) for name in ("chosen", "rejected"))
        for row in texts
    ]
    return texts.select(sorted(range(len(texts)), key=lambda i: (i // batch, lengths[i])))


def tokens_per_step(setting: Setting) -> float:
    """Tokens of both responses with their prompts, end-of-sequence tokens included, padding not."""
    texts = make_texts(setting)
    counts = [
        2 * len(row["prompt"].split())
        + len(row["chosen"].split())
        + len(row["rejected"].split())
        + 2
        for row in texts
    ]
    return sum(counts) / 4


def make_trainer(
    method: Method,
    setting: Setting,
    model: nn.Module,
    tokenizer: Any,
    out: str,
    callbacks: list[TrainerCallback],
) -> Trainer:
    """The trainer of a method, with the reference log-probabilities of the data where it takes them
    beforehand."""
    texts, micro = make_texts(setting), setting.batch // method.accumulation
    if method.by_length:
        texts = _by_length(texts, setting.batch)
    common: dict[str, Any] = {
        "output_dir": out,
        "use_cpu": setting.device == "cpu",
        "bf16": setting.bf16,
        "per_device_train_batch_size": micro,
        "gradient_accumulation_steps": method.accumulation,
        "gradient_checkpointing": method.checkpointing,
        "gradient_checkpointing_kwargs": {"use_reentrant": False} if method.checkpointing else None,
        "max_steps": setting.warmup + setting.block * setting.blocks + 2,
        "train_sampling_strategy": "sequential",
        "learning_rate": 1e-4,
        "lr_scheduler_type": "constant",
        "logging_steps": setting.block,
        "save_strategy": "no",
        "report_to": [],
        "disable_tqdm": True,
    }
    if method.trainer == "ours":
        data = tokenise(texts, tokenizer)
        collate = PreferenceCollator(tokenizer.pad_token_id)
        args = PreferenceArguments(**common, padding_free=method.padding_free)
        objective = ObjectiveParameters(objective=method.objective, **method.parameters)
        trainer = PreferenceTrainer(
            model,
            args,
            objective,
            train_dataset=data,
            data_collator=collate,
            processing_class=tokenizer,
            callbacks=callbacks,
        )
        trainer.train_dataset = reference_logps(
            trainer.model,
            data,
            collate,
            micro,
            cache=None,
            identity={},
            score=trainer.step.score,
            accelerator=trainer.accelerator,
        )
        return _silent(trainer)
    from trl import DPOConfig, DPOTrainer  # only where it is compared with

    online = method.trainer == "trl online"
    args = DPOConfig(**common, beta=0.1, max_length=None, precompute_ref_log_probs=not online)
    reference = copy.deepcopy(model).eval() if online else None
    return _silent(
        DPOTrainer(
            model,
            reference,
            args,
            train_dataset=texts,
            processing_class=tokenizer,
            callbacks=callbacks,
        )
    )


def _silent(trainer: Trainer) -> Trainer:
    trainer.remove_callback(PrinterCallback)
    return trainer
