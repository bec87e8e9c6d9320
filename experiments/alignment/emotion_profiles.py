"""Sizes and hyperparameters of the emotion study; those of the profile `paper` are of Appendix F,
arXiv:2502.01930."""

from dataclasses import dataclass, replace

from llm.data.corpus import GRAMMAR
from llm.generate import SETTINGS

REWARDS = ("anger", "fear")  # r1, r2


@dataclass(frozen=True)
class Profile:
    """How large the study is, and its hyperparameters: `experiments.alignment.emotion.Emotion` says
    what each is.

    prompt_tokens: tokens of a text that are its prompt. alphas: points of the grid of alpha in the
    test, from 0 to 1. bf16: what is computed in the trainings; everything is judged in float32.
    """

    settings: tuple[str, ...]
    source: str
    model: str | None
    texts: tuple[int, ...]
    seeds: int
    width: int
    layers: int
    vocabulary: int
    prompt_tokens: int
    new_tokens: int
    sft_epochs: float
    sft_learning_rate: float
    reward_epochs: float
    reward_learning_rate: float
    prompts: int
    test_prompts: int
    label_scale: float
    alpha: float
    epochs: float
    learning_rate: float
    batch_size: int
    micro_batch_size: int
    bf16: bool
    beta: float
    control_betas: tuple[float, ...]
    wdpo: str
    wdpo_radii: tuple[float, ...]
    kldpo_radii: tuple[float, ...]
    dr_dpo_radii: tuple[float, ...]
    checkpoints: int
    alphas: int


_QUICK = Profile(
    settings=SETTINGS,
    source=GRAMMAR,
    model=None,
    texts=(4000, 400, 2000),
    seeds=4,
    width=64,
    layers=2,
    vocabulary=8000,
    prompt_tokens=4,
    new_tokens=14,
    sft_epochs=5,
    sft_learning_rate=3e-3,
    reward_epochs=4,
    reward_learning_rate=2e-3,
    prompts=1536,
    test_prompts=512,
    label_scale=4.0,
    alpha=0.1,
    epochs=2,
    learning_rate=3e-4,
    batch_size=24,
    micro_batch_size=24,
    bf16=False,
    beta=0.1,
    control_betas=(0.3, 1.0),
    wdpo="adversarial",
    wdpo_radii=(0.01, 0.05, 0.2),
    kldpo_radii=(0.5, 0.75, 1.0),
    dr_dpo_radii=(0.5, 0.75, 1.0),
    checkpoints=4,
    alphas=11,
)
PROFILES = {
    "smoke": replace(
        _QUICK,
        texts=(200, 20, 100),
        seeds=2,
        width=16,
        layers=1,
        sft_epochs=1,
        reward_epochs=1,
        prompts=64,
        test_prompts=40,
        epochs=1,
        batch_size=8,
        micro_batch_size=4,
        control_betas=(1.0,),
        wdpo_radii=(0.1,),
        kldpo_radii=(1.0,),
        dr_dpo_radii=(1.0,),
        checkpoints=2,
        alphas=3,
    ),
    "quick": _QUICK,
    "small": Profile(  # a pretrained model and real texts, at a size that two cores can do
        settings=("convex", "geometric"),
        source="dair-ai/emotion",
        model="smollm2",
        texts=(2000, 200, 800),
        seeds=3,
        width=576,
        layers=30,
        vocabulary=49152,
        prompt_tokens=4,
        new_tokens=20,
        sft_epochs=1,
        sft_learning_rate=1e-4,
        reward_epochs=2,
        reward_learning_rate=1e-4,
        prompts=256,
        test_prompts=192,
        label_scale=4.0,
        alpha=0.1,
        epochs=1,
        learning_rate=5e-5,
        batch_size=16,
        micro_batch_size=8,
        bf16=True,
        beta=0.1,
        control_betas=(0.3, 1.0),
        wdpo="adversarial",
        wdpo_radii=(0.05, 0.2),
        kldpo_radii=(0.5, 1.0),
        dr_dpo_radii=(0.5, 1.0),
        checkpoints=2,
        alphas=11,
    ),
    "paper": Profile(
        settings=SETTINGS,
        source="dair-ai/emotion",
        model="gpt2",
        texts=(),
        seeds=5,
        width=768,
        layers=12,
        vocabulary=20000,
        prompt_tokens=4,
        new_tokens=64,
        sft_epochs=10,
        sft_learning_rate=5e-7,
        reward_epochs=8,
        reward_learning_rate=5e-5,
        prompts=16000,
        test_prompts=2000,
        label_scale=1.0,
        alpha=0.1,
        epochs=40,
        learning_rate=5e-7,
        batch_size=64,
        micro_batch_size=64,
        bf16=False,
        beta=0.1,
        control_betas=(0.3, 1.0, 3.0),
        wdpo="released",
        wdpo_radii=(50.0, 75.0, 100.0),
        kldpo_radii=(0.5, 0.75, 1.0),
        dr_dpo_radii=(0.5, 0.75, 1.0),
        checkpoints=8,
        alphas=11,
    ),
}
