"""How large an experiment on language models is, and its hyperparameters: one set for each profile,
and what replaces them."""

from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from llm.data.corpus import GRAMMAR

NONE = "none"  # instead of a reward model


@dataclass(frozen=True)
class Sizes:
    """Sizes and hyperparameters that all of these experiments have: `Options` says what each is."""

    model: str | None
    judge: str | None
    source: str
    split: str
    test_split: str
    seeds: int
    prompts: int
    test_prompts: int
    prompt_tokens: int
    new_tokens: int
    completions: int
    temperature: float
    label_scale: float
    epochs: float
    learning_rate: float
    schedule: str
    warmup: float
    batch_size: int
    micro_batch_size: int
    beta: float
    bf16: bool  # in the training, and of a given reward model
    lora: int  # rank of the adapter that is trained; 0: all weights are
    wdpo: str


@dataclass
class Options:
    """What all of these experiments can be told. What is not given is taken from the profile."""

    profile: str = "quick"
    """Size: smoke (seconds), quick (minutes on two cores, on generated texts), small (where there
    is one: an hour or two on two cores, `smollm2` and real texts) or paper (needs GPUs, models and
    data)."""
    seed: int = 0
    """Seed of all random numbers; the same seed gives the same rows."""
    seeds: int | None = None
    """Replicates: other order of the training and samples of the test, and other labels where
    labels are drawn here; prompts and completions are the same."""
    model: str | None = None
    """Model to start from: a folder, or its name on the hub; `generated` for a small GPT-2 that is
    trained here."""
    judge: str | None = None
    """Reward model: a folder, or its name on the hub (ArmoRM, or any sequence classifier);
    `generated` for one trained here."""
    source: str | None = None
    """Prompts or preferences: a folder, file or data set on the hub; `grammar` for generated
    texts."""
    split: str | None = None
    """Split of the source that the policies are trained on."""
    test_split: str | None = None
    """Split of the source that they are judged on."""
    prompts: int | None = None
    """Prompts of the training, at most as many as there are."""
    test_prompts: int | None = None
    """Prompts of the evaluation, at most as many as there are."""
    prompt_tokens: int | None = None
    """Longest prompt, in tokens."""
    new_tokens: int | None = None
    """Longest completion, in tokens."""
    completions: int | None = None
    """Completions of each prompt of the training."""
    temperature: float | None = None
    """Temperature of all completions."""
    label_scale: float | None = None
    """Factor on the rewards in Bradley-Terry labels; 1 as in the papers, larger for surer
    annotators."""
    epochs: float | None = None
    """Epochs of the preference training."""
    learning_rate: float | None = None
    """Learning rate of the preference training."""
    batch_size: int | None = None
    """Pairs in a step, over all processes."""
    micro_batch_size: int | None = None
    """Pairs that a process holds in memory at once; the step is the same."""
    beta: float | None = None
    """beta of every objective."""
    bf16: bool | None = None
    """Train in bfloat16, with weights in float32, and hold a given reward model in it; policies are
    judged in float32."""
    lora: int | None = None
    """Rank of the adapter that is trained instead of all weights; 0: all weights."""
    wdpo: str | None = None
    """How WDPO is computed: adversarial, finite_difference, exact, or released (the squared penalty
    of the authors' code)."""
    training: Path | None = None
    """YAML file of more options of `prefdro train` for every policy, such as
    gradient_checkpointing, lora or deepspeed."""
    trust_remote_code: bool = False
    """Run code that comes with a model. ArmoRM needs none here."""
    workers: int | None = None
    """Processes that train at the same time; by default one for each core, or one where there is a
    GPU."""
    part: str | None = None
    """K/N: only every N-th policy from the K-th on, for jobs of the same options that share OUT; at
    the end run it without."""
    shared: Path = Path("results/generated")
    """Folder of the generated texts, model and judge, which all experiments use."""


QUICK = Sizes(
    model=None,
    judge=None,
    source=GRAMMAR,
    split="train",
    test_split="test",
    seeds=3,
    prompts=512,
    test_prompts=256,
    prompt_tokens=4,
    new_tokens=14,
    completions=2,
    temperature=1.0,
    label_scale=4.0,
    epochs=2,
    learning_rate=3e-4,
    schedule="constant_with_warmup",
    warmup=0.1,
    batch_size=24,
    micro_batch_size=24,
    beta=0.1,
    bf16=False,
    lora=0,
    wdpo="adversarial",
)
SMOKE = replace(
    QUICK, seeds=2, prompts=64, test_prompts=40, epochs=1, batch_size=8, micro_batch_size=8
)
SMALL = replace(  # a pretrained model on real texts, at a size that two cores can do
    QUICK,
    source="dair-ai/emotion",
    seeds=2,
    prompts=192,
    test_prompts=128,
    new_tokens=20,
    epochs=1,
    batch_size=16,
    micro_batch_size=8,
    bf16=True,
    lora=16,
)
PAPER = Sizes(  # of Section 7 and Appendix F, arXiv:2502.01930
    model="meta-llama/Llama-3.2-1B-Instruct",
    judge="RLHFlow/ArmoRM-Llama3-8B-v0.1",
    source="nvidia/HelpSteer2",
    split="train",
    test_split="validation",
    seeds=3,
    prompts=100_000,
    test_prompts=1_000,
    prompt_tokens=1024,
    new_tokens=1024,
    completions=2,
    temperature=0.7,
    label_scale=1.0,
    epochs=4,
    learning_rate=5e-7,
    schedule="cosine",
    warmup=0.1,
    batch_size=128,
    micro_batch_size=2,
    beta=0.01,
    bf16=True,
    lora=0,
    wdpo="released",
)


def chosen(profiles: dict[str, Any], options: Options, *, judged: bool = True) -> Any:
    """The profile with what the options replace. judged: a reward model is needed.

    Raises:
        ValueError: an unknown or impossible value.
    """
    if options.profile not in profiles:
        raise ValueError(
            f"unknown profile {options.profile!r}; choose one of {', '.join(profiles)}."
        )
    sizes = profiles[options.profile]
    given = {field.name: getattr(options, field.name, None) for field in fields(sizes)}
    sizes = replace(sizes, **{name: value for name, value in given.items() if value is not None})
    sizes = replace(
        sizes, **{name: None for name in ("model", "judge") if getattr(sizes, name) == "generated"}
    )
    if options.seed < 0 or sizes.seeds < 2:
        raise ValueError(
            f"needs a non-negative seed and at least 2 seeds for intervals, got {options.seed} and"
            f" {sizes.seeds}."
        )
    for name, value in asdict(sizes).items():
        numbers = [
            x
            for x in (value if isinstance(value, (tuple, list)) else (value,))
            if isinstance(x, (int, float)) and not isinstance(x, bool)
        ]
        if name not in ("alpha", "warmup", "lora") and any(x <= 0 for x in numbers):
            raise ValueError(f"{name} must be positive, got {value}.")
    if judged and sizes.judge == NONE:
        raise ValueError(
            "judge is none, but policies are judged by a reward model here: name one, or leave"
            " judge out."
        )
    if sizes.lora < 0:
        raise ValueError(f"lora must be a rank, or 0 for all weights, got {sizes.lora}.")
    generated = sizes.model is None
    # of the profile small the models that are made here are of real texts
    texts_for_it = sizes.source == GRAMMAR or (generated and options.profile == "small")
    if generated != (sizes.judge is None) or generated != texts_for_it:
        raise ValueError(
            f"model, judge and source do not go together: {sizes.model or 'generated'},"
            f" {sizes.judge or 'generated'}, {sizes.source}. The generated model and judge know"
            " generated texts only: give all three, or none."
        )
    if options.workers is not None and options.workers < 1:
        raise ValueError(f"workers must be at least 1, got {options.workers}.")
    part_of(options.part)
    return sizes


def part_of(part: str | None) -> tuple[int, int]:
    """The first policy and the step of K/N, from 0: (K - 1, N); (0, 1) for all.

    Raises:
        ValueError: it is not K/N with 1 <= K <= N.
    """
    if part is None:
        return 0, 1
    words = part.split("/")
    if (
        len(words) != 2
        or not all(word.isdigit() for word in words)
        or not 1 <= int(words[0]) <= int(words[1])
    ):
        raise ValueError(f"part must be K/N with 1 <= K <= N, such as 2/8, got {part!r}.")
    return int(words[0]) - 1, int(words[1])
