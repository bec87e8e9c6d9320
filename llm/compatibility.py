"""Combinations in which an objective would not be what it says: refused with the reason, or, where
harmless, warned of."""

import time
import warnings

import pyarrow.compute as pc
import torch
from accelerate import Accelerator
from datasets import Dataset
from torch import Tensor, nn

from llm.arguments import PreferenceArguments
from llm.logprobs import unwrapped
from llm.objective import Objective
from llm.objectives import SPECS, ObjectiveParameters
from llm.pair_losses import PAIR_LOSSES, pair_loss_name, refuse_both
from llm.reference import row_lengths
from llm.wasserstein import settled_mode

# Largest error of a summed log-probability, in nats, as measured at 256 tokens.
LOGPROB_ERROR = {"float32": 1e-4, "bf16 autocast": 0.2, "bfloat16": 3.0}
# Instructions that multiply in bfloat16, as torch.cpu.get_capabilities names them.
BFLOAT16 = ("avx512_bf16", "amx_bf16", "bf16", "sve_bf16")
LARGE_ENOUGH_FOR_BFLOAT16 = 10_000_000  # weights


def refuse_inexact(
    p: ObjectiveParameters,
    objective: Objective,
    model: nn.Module,
    args: PreferenceArguments,
    accelerator: Accelerator,
) -> None:
    """Raise ValueError if the model, the arguments or the parallelism would make the objective
    inexact."""
    for reason, found in _reasons(p, objective, model, args, accelerator):
        if found:
            raise ValueError(f"{p.objective} is refused here: {reason}.")
    if (
        args.world_size * args.per_device_train_batch_size * args.gradient_accumulation_steps == 1
        and objective.couples
    ):
        plain = "DPO" if objective.losses is None else "the plain mean of its pair loss"
        warnings.warn(
            f"the effective batch is one pair, for which {p.objective} is {plain}: the batch is its"
            " sample of the distribution. Raise --per_device_train_batch_size or"
            " --gradient_accumulation_steps.",
            stacklevel=2,
        )


def refuse_columns(p: ObjectiveParameters, dataset: Dataset | None) -> None:
    """Raise ValueError if the columns of tokenised data cannot serve the objective."""
    if dataset is None:
        return
    columns = dataset.column_names
    if p.softness is not None and "weight" in columns:
        raise ValueError(
            f"--softness {p.softness:g} sorts rows of equal weight, but the data have a column"
            " `weight`. Leave one of them out."
        )
    loss = PAIR_LOSSES[pair_loss_name(p)]
    if missing := [name for name in loss.columns if name not in columns]:
        raise ValueError(
            f"{loss.name} needs the columns {', '.join(loss.columns)}, but the data have no"
            f" {' and no '.join(missing)}. Add numbers under these names, or say what they are"
            " called, as in --columns chosen_reward=score_chosen,rejected_reward=score_rejected."
        )
    known = "label_confidence" in columns
    if known and loss.name in ("chi2_label", "tv_label"):
        refuse_both(p)  # before the reference is computed
    if loss.name == "chi2_label" and p.flip is None and not known:
        raise ValueError(
            "chi2_label leaves labels that are certain as they are, and nothing says how likely"
            " these are to be right. Add a column `label_confidence` of probabilities, give --flip,"
            " the rate of wrong labels, or take tv_label."
        )
    if p.objective == "aot_unpaired" and "label" in columns and len(set(dataset["label"])) == 1:
        raise ValueError(
            f"aot_unpaired compares desirable with undesirable responses, but all {len(dataset)}"
            f" labels are {dataset['label'][0]}. Add responses of the other kind."
        )


def refuse_rows_beyond(model: nn.Module, dataset: Dataset | None) -> None:
    """Raise ValueError if tokenised rows are longer than the model has positions, or have tokens
    that it does not know."""
    if dataset is None:
        return
    longest, positions = (
        int(row_lengths(dataset).max()),
        getattr(model.config, "max_position_embeddings", None),
    )
    if positions is not None and longest > positions:
        raise ValueError(
            f"the longest row has {longest} tokens, prompt and completion together, and the model"
            f" has {positions} positions. Set --max_length {positions} or less."
        )
    columns = [column for column in dataset.column_names if column.endswith("_ids")]
    table = dataset.select_columns(columns).with_format("arrow")[:]
    largest = max(pc.max(pc.list_flatten(table[column])).as_py() for column in columns)
    known = unwrapped(model).get_input_embeddings().weight.shape[0]
    if largest >= known:
        raise ValueError(
            f"the data have the token {largest}, and the model knows {known} (0 to {known - 1}):"
            " the tokenizer is that of another model. Give the model's own, or resize the model's"
            " embeddings and save it."
        )


def _reasons(
    p: ObjectiveParameters,
    objective: Objective,
    model: nn.Module,
    args: PreferenceArguments,
    accelerator: Accelerator,
) -> list[tuple[str, bool]]:
    wdpo = SPECS[p.objective].step == "wasserstein"
    half = next(model.parameters()).dtype in (torch.bfloat16, torch.float16)
    mode = settled_mode(p, autocast=args.bf16, half=half) if wdpo else ""
    exact, shifted = mode == "exact", mode in ("finite_difference", "adversarial")
    checkpointing = args.gradient_checkpointing and (args.gradient_checkpointing_kwargs or {}).get(
        "use_reentrant", False
    )
    attention = str(getattr(getattr(model, "config", None), "_attn_implementation", None))
    kind = str(accelerator.distributed_type)
    split = (
        args.parallelism_config is not None
        and args.parallelism_config.total_size > args.parallelism_config.data_parallel_size
    )
    return [
        (
            (
                "DataParallel splits each batch in one process; start one process per GPU with"
                " torchrun or accelerate launch"
            ),
            args.n_gpu > 1,
        ),
        (
            (
                "tensor, context and sequence parallelism put one row on several ranks, whose"
                " scores would be counted twice"
            ),
            bool(split),
        ),
        (
            (
                "reentrant checkpointing cannot give the gradient at the embedding; set"
                " use_reentrant to false"
            ),
            wdpo and checkpointing,
        ),
        (
            (
                f"{attention} has no second derivative; use --attention sdpa or eager, or"
                " --wdpo_mode finite_difference"
            ),
            exact and "flash" in attention,
        ),
        (
            (
                "FSDP does not support a double backward; use --wdpo_mode finite_difference or"
                " adversarial"
            ),
            exact and "FSDP" in kind,
        ),
        (
            "DeepSpeed does not support several backward passes in a step",
            wdpo and "DEEPSPEED" in kind,
        ),
        (
            (
                "most of a small shift of the embeddings rounds away in weights of half precision;"
                " load them with --dtype float32 and use --bf16 for autocast"
            ),
            shifted and half,
        ),
        (
            "several processes with batches of different sizes; set --dataloader_drop_last",
            args.world_size > 1 and not args.dataloader_drop_last,
        ),
        (
            (
                "the KL on own samples needs the whole model in one process, which FSDP does not"
                " keep; set --kl_prompts 0"
            ),
            bool(args.kl_prompts) and ("FSDP" in kind or "DEEPSPEED" in kind),
        ),
    ]


def warn_of_rounding(p: ObjectiveParameters, model: nn.Module, args: PreferenceArguments) -> None:
    """Warn of what the precision makes rough: a tilt whose temperature is below the rounding error
    of the losses, a difference.

    Of three models of a few ten thousand parameters the direction of the finite difference under
    bf16, at its default step, had a cosine of 0.92 to 0.99 with that of the exact penalty; which
    step is best differed between them by a factor of 100.
    """
    if p.wdpo_mode == "finite_difference" and args.bf16:
        warnings.warn(
            "under bf16 the finite difference is a rough estimate of the penalty's gradient, and"
            " the best --fd_epsilon depends on the model. Leave out --bf16, or use --wdpo_mode"
            " exact or adversarial.",
            stacklevel=2,
        )
    temperature = p.tau if p.tau is not None else p.b
    if temperature is None:
        return
    half = next(model.parameters()).dtype in (torch.bfloat16, torch.float16)
    kind = "bfloat16" if half else "bf16 autocast" if args.bf16 else "float32"
    error = p.beta * LOGPROB_ERROR[kind]
    if temperature < error:
        warnings.warn(
            f"the temperature {temperature:g} is below the rounding error of the losses in {kind},"
            f" about {error:g} (beta times {LOGPROB_ERROR[kind]:g} nats): the worst-case weights"
            f" would follow the rounding. Use float32, or a temperature above {error:g}.",
            stacklevel=2,
        )


def bfloat16_slowdown() -> float:
    """Time of a product of matrices in bfloat16 over that in float32, on this processor, now.

    Processors without instructions for bfloat16 emulate it: of one with AVX2 only it was 7 to 20,
    of one with AVX-512 BF16 1/2.
    """
    seconds = {}
    for dtype in (torch.float32, torch.bfloat16):
        a = torch.ones(256, 512, dtype=dtype)
        times = []
        for _ in range(4):  # the first one also prepares what the others use
            began = time.perf_counter()
            a @ a.T
            times.append(time.perf_counter() - began)
        seconds[dtype] = min(times)
    return seconds[torch.bfloat16] / seconds[torch.float32]


def warn_of_slow_bfloat16(leave_out: str) -> None:
    """Warn where the training will run on a processor that takes longer in bfloat16 than in
    float32; `leave_out` is the option that changes to float32."""
    if torch.accelerator.is_available() or (slower := bfloat16_slowdown()) < 1.2:
        return
    warnings.warn(
        f"bfloat16 takes {slower:.1f} times as long as float32 here: this processor has no"
        f" instructions for it. {leave_out} is faster, and more precise.",
        stacklevel=2,
    )


def bfloat16_offer(model: nn.Module, args: PreferenceArguments) -> str | None:
    """A line that offers --bf16 to a training in float32 on a processor that multiplies matrices
    faster in bfloat16; None where it would gain nothing, or a device trains.

    Small models are left out, whose steps are spent on other things than products of matrices.
    """
    weights = list(model.parameters())
    small = sum(weight.numel() for weight in weights) < LARGE_ENOUGH_FOR_BFLOAT16
    if args.bf16 or small or weights[0].dtype != torch.float32 or args.device.type != "cpu":
        return None
    there = torch.cpu.get_capabilities()
    if not any(there.get(name) for name in BFLOAT16) or (slower := bfloat16_slowdown()) > 0.8:
        return None
    error = LOGPROB_ERROR["bf16 autocast"]
    return (
        f"this processor has instructions for bfloat16, and multiplies {1 / slower:.1f} times as"
        " fast in it as in float32: --bf16 True trains faster. Weights and optimizer stay in"
        f" float32, sums of log-probabilities are rounded by up to {error:g} nats, and wdpo is"
        " computed by --wdpo_mode adversarial where nothing else is said."
    )


def warn_of_lost_steps(
    model: nn.Module, args: PreferenceArguments, accelerator: Accelerator
) -> None:
    """Warn where the weights are of half precision and most of them are further from their
    neighbours than a step is long.

    Adam moves each weight by at most about the learning rate; what is less than half the spacing of
    the numbers there is rounded away, step after step. Nothing is said of other optimizers, whose
    steps have the size of the gradient.
    """
    optimizer = str(getattr(args.optim, "value", args.optim))
    upcast = "DEEPSPEED" in str(accelerator.distributed_type) or (
        "FSDP" in str(accelerator.distributed_type) and args.bf16
    )
    if (
        upcast
        or not ("adam" in optimizer or "lion" in optimizer)
        or "anyprecision" in optimizer
        or args.learning_rate <= 0
    ):
        return
    moved, total, found = 0.0, 0, None
    for weight in model.parameters():
        if weight.requires_grad and weight.numel():
            total += weight.numel()
            share = 1.0
            if weight.dtype in (torch.bfloat16, torch.float16):
                found, share = weight.dtype, _moved_by(weight.detach(), args.learning_rate)
            moved += share * weight.numel()
    if found is not None and moved / total < 0.5:
        warnings.warn(
            f"the trained weights are {str(found).removeprefix('torch.')}, in which a step of"
            f" --learning_rate {args.learning_rate:g} changes {moved / total:.1%} of them: the"
            " others have no neighbour that near and are rounded back to what they were in every"
            " step. Train weights that keep small steps: --dtype float32, with --bf16 for the"
            " computation; or --lora, whose weights are float32.",
            stacklevel=2,
        )


def _moved_by(weight: Tensor, step: float) -> float:
    """The share of the weights, of a hundred thousand of them, that are another number after a step
    of this length."""
    some = weight.flatten()[:: max(1, weight.numel() // 100_000)]
    return float(((some + step != some) | (some - step != some)).float().mean())
