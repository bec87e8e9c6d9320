"""The trainer: every objective exact over the effective batch, whatever the micro-batches and
ranks.

A subclass of `transformers.Trainer` through public hooks: `get_batch_samples` sees all
micro-batches of a step and lets the objective's step (`llm.steps`) prepare what couples them;
`compute_loss` asks it for the loss of one micro-batch.
"""

import contextlib
import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_utils import EvalLoopOutput

from llm.arguments import PreferenceArguments
from llm.compatibility import (
    refuse_columns,
    refuse_inexact,
    warn_of_lost_steps,
    warn_of_rounding,
    warn_of_slow_bfloat16,
)
from llm.finite import stop_if_not_finite
from llm.global_batch import concatenate, gather, normalised, scores_of
from llm.judges.divergence import kl_on_own_samples
from llm.logprobs import head_can_be_fused, pack_sequences, random_in_training, unwrapped
from llm.memory import Memory, estimate
from llm.metrics import reward_metrics
from llm.objective import Objective, weighted
from llm.objectives import SPECS, ObjectiveParameters, make_objective
from llm.reference import (
    model_fingerprint,
    reference_identity,
    reference_logps,
    row_lengths,
    row_tokens,
)
from llm.scores import Pairs, Scores, replaced
from llm.steps import (
    Batch,
    Coupled,
    GroupRobust,
    GroupWeights,
    KahnemanTversky,
    Mean,
    part_values,
    worst_case_metrics,
)
from llm.wasserstein import embedding_norm, settled_mode, twice_differentiable_attention
from llm.wasserstein_steps import Adversarial, Exact, FiniteDifference, Wasserstein
from theory.functionals import kto_reference_point, worst_group


class PreferenceTrainer(Trainer):
    """Trains a causal language model on preferences with an objective of `theory.functionals`.

    Args:
        model: a causal language model, with or without adapters; its dropout is turned off.
        args: the arguments of the Trainer and a few more.
        objective: what is minimised; DPO where not given.
        others: arguments of the Trainer. train_dataset and eval_dataset as
            `llm.data.tokens.tokenise` makes them, with the columns of
            `llm.reference.reference_logps`; data_collator: `llm.data.tokens.PreferenceCollator`.

    Raises:
        ValueError: a combination in which the objective could not be exact, with the reason.

    >>> import tempfile
    >>> from llm import ObjectiveParameters, PreferenceArguments, PreferenceCollator
    >>> from llm import PreferenceTrainer, language_model, reference_logps, sequence_logprobs
    >>> from llm import tokenise, word_tokenizer
    >>> tokenizer = word_tokenizer(["is it good bad"], 7)
    >>> data = tokenise([{"prompt": "is it", "chosen": " good", "rejected": " bad"}], tokenizer)
    >>> model = language_model(None, tokenizer, width=8, layers=1, length=16, seed=0)
    >>> collator = PreferenceCollator(tokenizer.pad_token_id)
    >>> how = {"batch_size": 4, "cache": None, "identity": {}, "score": sequence_logprobs}
    >>> quiet = {"report_to": [], "disable_tqdm": True, "log_level": "error"}
    >>> arguments = PreferenceArguments(tempfile.mkdtemp(), max_steps=1, run_on="cpu", **quiet)
    >>> trainer = PreferenceTrainer(
    ...     model,
    ...     arguments,
    ...     ObjectiveParameters("kldpo", rho=0.1),
    ...     train_dataset=reference_logps(model, data, collator, **how),
    ...     data_collator=collator,
    ... )
    >>> trained = trainer.train()
    {'train_runtime'...
    >>> round(trained.training_loss, 4)  # log 2: the model is its own reference
    0.6931
    """

    def __init__(
        self,
        model: nn.Module,
        args: PreferenceArguments,
        objective: ObjectiveParameters | None = None,
        **others: Any,
    ) -> None:
        self.args: PreferenceArguments
        self.parameters = ObjectiveParameters() if objective is None else objective
        self.objective: Objective = make_objective(self.parameters)
        for name in ("compute_metrics", "compute_loss_func", "preprocess_logits_for_metrics"):
            if others.get(name) is not None:
                raise ValueError(
                    f"{name} is refused: the objective and its metrics are functions of"
                    " log-probabilities. Leave it out."
                )
        turn_off_dropout(model)
        if args.gradient_checkpointing and args.gradient_checkpointing_kwargs is None:
            args.gradient_checkpointing_kwargs = {"use_reentrant": False}
        if args.world_size > 1:
            args.dataloader_drop_last = True  # ranks must hold equally many rows
        self._initial = None  # a second model is only needed to measure the KL to it
        if args.kl_prompts and not hasattr(model, "disable_adapter"):
            self._initial = copy.deepcopy(model).eval().requires_grad_(False)
        super().__init__(model=model, args=args, **others)
        if random_in_training(self.model):
            raise ValueError(
                "the model is random in training mode, although its dropout modules are off: two"
                " passes over a batch would see different models. Set the dropout and noise of its"
                " configuration to zero before loading it."
            )
        for rows in (self.train_dataset, self.eval_dataset):
            refuse_columns(self.parameters, rows)
        refuse_inexact(self.parameters, self.objective, self.model, args, self.accelerator)
        warn_of_rounding(self.parameters, self.model, args)
        if args.bf16:
            warn_of_slow_bfloat16("To leave out --bf16")
        warn_of_lost_steps(self.model, args, self.accelerator)
        self.loss_is_scaled_for_ga = True  # shares of the effective batch add up
        if args.padding_free:
            pack_sequences(self.model)
        self.step = self._make_step(fused=head_can_be_fused(self.model))
        self.reference_identity: dict[str, str] = {}
        self.rows: list[
            Tensor
        ] = []  # of the current step, to name them if the objective is not a number
        self.add_callback(_StopBeforeNotFinite(self))

    def _make_step(self, *, fused: bool) -> Mean:
        p, common = (
            self.parameters,
            {
                "objective": self.objective,
                "accelerator": self.accelerator,
                "fused": fused,
                "packed": self.args.padding_free,
            },
        )
        step = SPECS[p.objective].step
        if step == "kto":
            return KahnemanTversky(**common)
        if step == "groups":
            assert p.group_step is not None
            self.add_callback(GroupWeights(_first_group_weights(self.train_dataset)))
            if self.eval_dataset is not None:
                _groups(self.eval_dataset, "evaluation")
            return GroupRobust(
                **common, callbacks=self.callback_handler.callbacks, step=p.group_step
            )
        if step == "wasserstein":
            return self._make_wasserstein_step(common)
        return Coupled(**common) if step == "coupled" else Mean(**common)

    def _make_wasserstein_step(self, common: dict[str, Any]) -> Mean:
        p = self.parameters
        assert p.rho is not None
        unit = 1.0 if p.rho_unit == "absolute" else embedding_norm(self.model)
        squared = p.squared or p.released
        wasserstein = common | {
            "radius": p.rho * (unit**2 if squared else unit),
            "squared": squared,
        }
        half = next(self.model.parameters()).dtype in (torch.bfloat16, torch.float16)
        mode = settled_mode(p, autocast=self.args.bf16, half=half)
        if mode == "adversarial":
            return Adversarial(**wasserstein)
        if mode == "finite_difference":
            step = p.fd_epsilon or (1e-2 if self.args.bf16 else 3e-4)
            return FiniteDifference(**wasserstein, epsilon=step * embedding_norm(self.model))
        return Exact(**wasserstein)

    def memory(self) -> Memory | None:
        """What a step on the longest rows needs, counted on short ones; None where the model is
        sharded over ranks."""
        if self.train_dataset is None or self.is_fsdp_enabled or self.is_deepspeed_enabled:
            return None
        if self.args.gradient_checkpointing:  # `train` does it again
            self.model.gradient_checkpointing_enable(self.args.gradient_checkpointing_kwargs)
        pairs = "pairs" in self.objective.kinds and "chosen_ids" in self.train_dataset.column_names
        self.model.to(self.args.device)
        wasserstein, exact = isinstance(self.step, Wasserstein), isinstance(self.step, Exact)
        size = self.args.per_device_train_batch_size
        rows = size * (2 if pairs else 1)
        tokens = int(row_lengths(self.train_dataset).max())
        if self.args.padding_free:  # the mean of the sequences of the largest micro-batch
            largest = np.sort(row_tokens(self.train_dataset))[-size:]
            tokens = -(-int(largest.sum()) // (rows // size * len(largest)))
        return estimate(
            self.model,
            rows=rows,
            tokens=tokens,
            optimizer=str(getattr(self.args.optim, "value", self.args.optim)),
            exact=exact,
            compare_exact=wasserstein and not exact,
            fused=self.step.fused,
            packed=self.step.packed,
            autocast=self.args.bf16,
        )

    def add_reference(
        self,
        train_cache: Path | None,
        eval_cache: Path | None,
        batch_size: int,
        fingerprint: str | None = None,
    ) -> None:
        """Put the reference log-probabilities of the model as it is now into the data, from a cache
        where there is one.

        See `llm.reference`; `reference_identity` keeps the fingerprints of model, tokenizer and
        training data. The model is moved to this rank's device as a whole, whatever shards it in
        training. fingerprint: the model's, where it is known.
        """
        assert self.processing_class is not None and self.data_collator is not None
        model = self.model.to(self.args.device)
        dtype = torch.bfloat16 if self.args.bf16 else next(model.parameters()).dtype
        for name, cache in (("train_dataset", train_cache), ("eval_dataset", eval_cache)):
            data = getattr(self, name)
            if data is None:
                continue
            fingerprint = fingerprint or model_fingerprint(model)
            identity = reference_identity(
                fingerprint, self.processing_class, data, dtype, self.objective.tail
            )
            self.reference_identity = self.reference_identity or identity
            scored = reference_logps(
                model,
                data,
                self.data_collator,
                batch_size,
                cache=cache,
                identity=identity,
                score=self.step.score,
                accelerator=self.accelerator,
            )
            setattr(self, name, scored)

    # ------------------------------------------------------------------------------------- training
    def get_batch_samples(
        self, epoch_iterator: Iterator, num_batches: int, device: torch.device
    ) -> tuple[list, None]:
        """The micro-batches of one step, with what couples them."""
        batches, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        batches = [self._prepare_inputs(batch) for batch in batches]
        if self.args.logging_strategy == "no":
            self.step.forget()
        if batches:
            self.rows = [batch["index"] for batch in batches]
            self.model_wrapped.train()
            with self._attention():
                self.step.before(self.model_wrapped, batches)
        return batches, None

    def training_step(
        self, model: nn.Module, inputs: Batch, num_items_in_batch: Any = None
    ) -> Tensor:
        """Forward and backward of one micro-batch; of the finite difference, of both its ends."""
        if isinstance(self.step, FiniteDifference):
            with self.accelerator.no_sync(model):
                super().training_step(model, {**inputs, "sign": 1}, num_items_in_batch)
            inputs = {**inputs, "sign": -1}
        with self._attention():
            return super().training_step(model, inputs, num_items_in_batch)

    def compute_loss(
        self,
        model: nn.Module,
        inputs: Batch,
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Tensor:
        """The share of one micro-batch in the objective of the effective batch; see `llm.steps`."""
        if return_outputs:
            raise NotImplementedError(
                "the objective is a function of log-probabilities: there are no outputs to return."
            )
        return self.step.loss(model, inputs)

    def _attention(self) -> contextlib.AbstractContextManager:
        return (
            twice_differentiable_attention()
            if isinstance(self.step, Exact)
            else contextlib.nullcontext()
        )

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the metrics of all pairs since the last log, over all ranks."""
        if self.step.seen and "loss" in logs:
            scores = gather(concatenate(self.step.seen), self.accelerator)
            logs |= reward_metrics(scores, self.parameters.beta)
            logs |= self.step.logged()
            self.step.forget()
        super().log(logs, start_time)

    # ----------------------------------------------------------------------------------- evaluation
    def get_eval_dataloader(self, eval_dataset: Any = None) -> DataLoader:
        """All rows, also where training drops the last ones so that ranks hold equally many."""
        kept, self.args.dataloader_drop_last = self.args.dataloader_drop_last, False
        try:
            return super().get_eval_dataloader(eval_dataset)
        finally:
            self.args.dataloader_drop_last = kept

    def evaluation_loop(
        self,
        dataloader: DataLoader,
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> EvalLoopOutput:
        """The objective and the metrics of a whole evaluation set, seen as one batch.

        WDPO reports its mean loss, without the penalty; group DRO the mean loss of its worst group.
        """
        scores = self._scores_of_all(dataloader)
        value = self._evaluation_value(scores)
        found = {"loss": float(value)} | reward_metrics(scores, self.parameters.beta)
        for name, part in part_values(self.objective, scores, value).items():
            found[name] = float(part)
        found |= worst_case_metrics(self.objective, scores)
        if self.args.kl_prompts:
            found |= self._kl_on_own_samples(dataloader.dataset)
        count = len(scores.chosen if isinstance(scores, Pairs) else scores.policy)
        named = {f"{metric_key_prefix}_{name}": number for name, number in found.items()}
        return EvalLoopOutput(predictions=None, label_ids=None, metrics=named, num_samples=count)

    @torch.no_grad()
    def _scores_of_all(self, dataloader: DataLoader) -> Scores:
        model = self.model_wrapped
        model.eval()
        parts, mismatched = [], []
        with self.accelerator.autocast():
            for batch in dataloader:
                batch = self._prepare_inputs(batch)
                scores = scores_of(batch, self.step.score(model, batch))
                columns = {name: x for name, x in vars(scores).items() if isinstance(x, Tensor)}
                parts.append(replaced(scores, self.accelerator.gather_for_metrics(columns)))
                if isinstance(self.step, KahnemanTversky):
                    mismatched.append(
                        self.accelerator.gather_for_metrics(
                            self.step.mismatched_ratio(model, batch)
                        )
                    )
        scores = normalised(concatenate(parts))
        if not mismatched:
            return scores
        return replaced(
            scores, {"reference_point": kto_reference_point(torch.cat(mismatched), scores.weights)}
        )

    def _evaluation_value(self, scores: Scores) -> Tensor:
        if SPECS[self.objective.name].step != "groups":
            return self.objective.value(scores)
        assert isinstance(scores, Pairs) and scores.groups is not None
        count = int(scores.groups.max()) + 1  # groups that training does not have count too
        worst = worst_group(self.step.losses(scores), scores.groups, count, scores.weights)
        return worst + weighted(self.objective.added, scores)

    def _kl_on_own_samples(self, dataset: Any) -> dict[str, float]:
        assert self.processing_class is not None
        if self._initial is not None:
            self._initial.to(self.args.device)
        with (
            self.accelerator.autocast()
        ):  # both in the same precision, else the rounding of one would be part of the KL
            return kl_on_own_samples(
                unwrapped(self.model),
                self._initial,
                dataset[: self.args.kl_prompts]["prompt_ids"],
                tokenizer=self.processing_class,
                length=self.args.kl_max_new_tokens,
                seed=self.args.seed,
                batch_size=self.args.per_device_eval_batch_size,
            )


class _StopBeforeNotFinite(TrainerCallback):
    def __init__(self, trainer: PreferenceTrainer) -> None:
        self.trainer = trainer

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        trainer = self.trainer
        stop_if_not_finite(
            trainer.step, trainer.rows, trainer.model, trainer.args, state.global_step
        )


def turn_off_dropout(model: nn.Module) -> None:
    """Set every dropout to zero: two passes over a batch must see the same model."""
    for module in model.modules():
        for name, value in list(
            vars(module).items()
        ):  # p of a module; numbers that others keep for their kernels
            if isinstance(value, float) and (
                "drop" in name or (name == "p" and "Dropout" in type(module).__name__)
            ):
                setattr(module, name, 0.0)


def _groups(dataset: Any, name: str) -> list[int]:
    if dataset is None or "group" not in dataset.column_names:
        raise ValueError(
            f"group_dro needs a column `group` in the {name} data, which has none. Add it, or take"
            " another objective."
        )
    groups = dataset["group"]
    largest, count = max(groups), len(set(groups))
    if largest > 1000 + 2 * count:  # each number up to the largest has a weight, and is logged
        raise ValueError(
            f"the {name} data have {count} groups, with numbers up to {largest}. Number them from"
            " 0, or give them names."
        )
    return groups


def _first_group_weights(dataset: Any) -> list[float]:
    """Equal for all groups that occur; numbers that none has keep the weight zero."""
    there = set(_groups(dataset, "training"))
    return [(number in there) / len(there) for number in range(max(there) + 1)]
