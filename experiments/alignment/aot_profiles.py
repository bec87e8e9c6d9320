"""Sizes, methods and hyperparameters of the AOT benchmark."""

from dataclasses import asdict, dataclass, replace

from experiments.alignment.benchmarks import BenchmarkSizes
from experiments.alignment.sizes import NONE, PAPER, QUICK, SMALL, SMOKE

METHODS = ("dpo", "ipo", "kto", "aot", "aot_unpaired")
AOT_METHODS = ("aot", "aot_unpaired")
ROBUST = ("kldpo", "wdpo")
KNOWING = ("cdpo", "rdpo")  # are told the rate of flips
AGAINST_FLIPS = (*KNOWING, "dr_dpo")
H = ("logistic", "squared_hinge", "least_squares")


@dataclass(frozen=True)
class Profile(BenchmarkSizes):
    """Sizes, and what is varied: `AotBenchmark` says what each is."""

    betas: tuple[float, ...]
    batch_sizes: tuple[int, ...]
    h: tuple[str, ...]
    softness: tuple[float, ...]
    methods: tuple[str, ...]
    kldpo_radius: float
    wdpo_radius: float
    dr_dpo_radius: float
    flips: tuple[float, ...]
    shifted: str | None
    shifted_split: str
    shifted_pairs: int
    whole: bool
    strings: str | None


_QUICK = Profile(
    **asdict(QUICK),
    score="joy",
    benchmarks="local",
    questions=100,
    chat=False,
    betas=(0.03, 0.1, 0.3),
    batch_sizes=(8, 24, 96),
    h=H,
    softness=(0.3, 3.0),
    methods=METHODS,
    kldpo_radius=1.0,
    wdpo_radius=0.1,
    dr_dpo_radius=1.0,
    flips=(),
    shifted=None,
    shifted_split="test",
    shifted_pairs=100,
    whole=False,
    strings=None,
)
PROFILES = {
    "smoke": replace(
        _QUICK,
        **asdict(SMOKE),
        questions=10,
        betas=(0.1, 0.3),
        batch_sizes=(8, 16),
        h=("logistic", "squared_hinge"),
        softness=(1.0,),
    ),
    "quick": _QUICK,
    "small": replace(
        _QUICK,
        **asdict(
            replace(
                SMALL,
                model="smollm2",
                judge=NONE,
                source="trl-lib/ultrafeedback_binarized",
                prompts=64,
                test_prompts=200,
                prompt_tokens=96,
                new_tokens=96,
                learning_rate=5e-4,
                batch_size=8,
                micro_batch_size=1,  # two responses of one pair: the least padding
            )
        ),
        benchmarks=NONE,
        betas=(),
        batch_sizes=(),
        h=(),
        softness=(),
        methods=(*METHODS, *ROBUST),
        flips=(0.2,),
        shifted="Anthropic/hh-rlhf",
        shifted_pairs=60,
        whole=True,
        strings="chat",
    ),
    "paper": replace(
        _QUICK,
        **asdict(
            replace(
                PAPER,
                model="ibm-research/merlinite-7b",
                source="HuggingFaceH4/ultrafeedback_binarized",
                split="train_prefs",
                test_split="test_prefs",
                new_tokens=512,
                epochs=1,
            )
        ),
        score="ArmoRM",
        benchmarks="aot",
        questions=100,
        chat=False,
        betas=(0.01, 0.05, 0.1),
        batch_sizes=(32, 64, 128),
        h=H,
        softness=(0.1,),
    ),
}
