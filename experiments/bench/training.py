"""What a training step of each objective costs, next to plain DPO in our trainer and to DPO in
TRL's, in one run.

All methods train the same model of random weights on the same tokens in the same order, with the
same batch, AdamW and dtype, each in a process of its own (`experiments.bench.training_process`). On
the CPU the methods of a group take turns, a block of steps each, and a ratio of times is the median
over rounds of the ratio of two blocks of the same round: a noisy machine hits all of them. Its
lower and upper quartiles are time_low and time_high. cpu_ratio is the same in processor time, which
others on the machine change little; own_time is the share of its threads' time that a process got.
Where that is below 3/4, time_ratio says more about the machine than about the method, and cpu_ratio
is held against the target. On CUDA, where the models of a group may not fit together, they run one
after the other.

memory_ratio compares peaks of memory over one more step, in MiB in peak_mib. On the CPU that is the
largest resident memory of the process less what it held before there was a model: weights,
gradients, optimizer and activations, as they are touched. The allocator is told to give freed
memory back in that step, without which what it happens to keep differs by a tenth from run to run.
On CUDA it is `torch.cuda.max_memory_allocated`.

The reference "trl dpo" is TRL's DPOTrainer with the log-probabilities of the reference policy
computed beforehand, as ours are; "trl dpo, online" has TRL's default instead, a reference model in
every step. All else is set alike, where TRL's defaults would be bf16 and gradient checkpointing.
Both trainers log once in each block.
"""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
import pandas as pd
import torch

from experiments import screen

if TYPE_CHECKING:  # it imports transformers and trl, which takes seconds
    from experiments.bench.training_process import Method, Setting

COLUMNS = [
    *(
        "objective",
        "mode",
        "accumulation",
        "checkpointing",
        "time_ratio",
        "memory_ratio",
        "reference",
    ),
    *("time_low", "time_high", "cpu_ratio"),
    *(
        "target_time",
        "target_memory",
        "met",
        "seconds_per_step",
        "peak_mib",
        "tokens_per_second",
        "share_of_peak",
    ),
    *("device", "threads", "own_time", "model", "parameters", "batch", "tokens", "loss", "note"),
]
PROFILES = ("smoke", "quick", "paper")
TRL = {"trl": "trl dpo", "trl online": "trl dpo, online"}
ENOUGH_TIME = 0.75  # share of its threads' time that a process must have got
PATIENCE = 600.0  # seconds that a process may take to warm up, or for one block

# Dense bf16 peaks in FLOP/s, from the manufacturers' data sheets; the first name that the device's
# name contains counts.
PEAK_FLOPS = {
    "B200": 2.25e15,
    "H200": 9.89e14,
    "H100 PCIe": 7.56e14,
    "H100": 9.89e14,
    "GH200": 9.89e14,
    "A100": 3.12e14,
    "L40S": 3.62e14,
    "L4": 1.21e14,
    "A10": 1.25e14,
    "RTX 4090": 1.65e14,
    "RTX 3090": 7.1e13,
}


@dataclass
class Training:
    """What the benchmark can be told."""

    out: Path = Path("results/bench")
    """Folder for training.csv."""
    profile: Literal["smoke", "quick", "paper"] = "quick"
    """Size of the benchmark: smoke (a minute), quick (minutes) or paper (more repeats)."""
    device: Literal["cpu", "cuda"] | None = None
    """cpu or cuda; where not given, what there is."""
    model: str | None = None
    """A model with weights instead of one of the profile's size: smollm2, a folder, a name on the
    hub, or a .gguf file."""
    groups: tuple[int, ...] = (1, 2, 3)
    """Which groups of methods: 1 plain, 2 four micro-batches, 3 gradient checkpointing, 4 rows of
    very different lengths, padded and not."""


class Block(NamedTuple):
    """Seconds of one block: of the wall clock, and of its process on all cores."""

    wall: float
    processor: float


class Measured(NamedTuple):
    """What came of one method: its blocks in order of the rounds and what its process reported, or
    why there is nothing."""

    method: "Method"
    blocks: list[Block]
    report: dict[str, Any]
    failure: str = ""


def settings(profile: str, device: str) -> "Setting":
    """Model, data and schedule of a profile. Raises ValueError for an unknown profile."""
    from experiments.bench.training_process import Setting

    if profile not in PROFILES:
        raise ValueError(f"profile must be one of {', '.join(PROFILES)}, got {profile!r}.")
    if profile == "smoke":
        return Setting(
            device,
            width=32,
            layers=2,
            heads=2,
            vocabulary=128,
            length=24,
            batch=4,
            warmup=1,
            block=1,
            blocks=2,
        )
    if device == "cpu":
        turns = {"quick": 7, "paper": 40}[profile]
        return Setting(
            device, width=128, layers=4, heads=4, vocabulary=8192, length=128, batch=8, blocks=turns
        )
    common: dict[str, Any] = {
        "heads": 16,
        "layers": 24,
        "vocabulary": 32_000,
        "length": 1024,
        "batch": 8,
        "bf16": True,
    }
    if profile == "quick":  # 0.37 billion parameters
        return Setting(device, width=1024, warmup=4, block=4, blocks=5, **common)
    return Setting(device, width=2048, warmup=4, block=4, blocks=10, **common)  # 1.34 billion


def groups(profile: str) -> dict[int, list["Method"]]:
    """Methods to compare with each other, by the number of their group, at equal accumulation and
    checkpointing; the first is plain DPO in our trainer."""
    from experiments.bench.training_process import Method

    robust = [
        Method("kldpo", "tilt", parameters={"tau": 1.0}),
        Method("kldpo", "ball", parameters={"rho": 0.1}),
        Method("aot"),
        Method("dr_dpo", parameters={"b": 1.0}),
        Method("cvar", parameters={"alpha": 0.5}),
    ]
    adversarial, difference, exact = (
        Method("wdpo", mode, parameters={"rho": 1e-3, "wdpo_mode": mode})
        for mode in ("adversarial", "finite_difference", "exact")
    )
    dpo, trl, online = (
        Method("dpo"),
        Method("dpo", "trl", trainer="trl"),
        Method("dpo", "trl, online", trainer="trl online"),
    )
    by_length = replace(dpo, mode="sorted", by_length=True)
    free = [replace(one, mode="padding free", padding_free=True) for one in (dpo, robust[0])]
    spread = [replace(method, accumulation=2) for method in (dpo, by_length, trl, *free)]
    if profile == "smoke":
        return {
            1: [dpo, trl, online, robust[0], adversarial, difference, exact],
            2: [replace(method, accumulation=2) for method in (dpo, trl, robust[0])],
            4: spread[:2] + spread[3:4],
        }
    return {
        1: [dpo, trl, online, *robust, adversarial, difference, exact],
        2: [
            replace(method, accumulation=4)
            for method in (dpo, trl, *robust, adversarial, difference, exact)
        ],
        3: [
            replace(method, checkpointing=True)
            for method in (dpo, trl, robust[0], adversarial, difference)
        ],
        4: spread,
    }


# ---------------------------------------------------------------------------------------- measuring
def measure(methods: list["Method"], setting: "Setting") -> Iterator[list[Measured]]:
    """The blocks of all methods: in turn on the CPU, together; on CUDA one method after the other,
    all so far each time."""
    if setting.device != "cuda":
        yield _take_turns(methods, setting)
        return
    found: list[Measured] = []
    for method in methods:
        found += _take_turns([method], setting)
        yield found


def _take_turns(methods: list["Method"], setting: "Setting") -> list[Measured]:
    from experiments.bench.training_process import run as run_process

    if setting.device == "cuda":
        context: Any = get_context(
            "spawn"
        )  # imports may look for devices, after which a fork cannot use them
    else:
        context = get_context(
            "forkserver"
        )  # forks from a process that has imported everything and has no threads
        context.set_forkserver_preload(
            ["experiments.bench.training_process", "trl.trainer.dpo_trainer"]
        )
    pipes: list[Connection] = []
    for method in methods:
        here, there = context.Pipe()
        context.Process(target=run_process, args=(method, setting, there), daemon=True).start()
        there.close()  # so that the end of the process ends our waiting
        pipes.append(here)
    found = [
        Measured(method, [], {}, _failure(_receive(pipe)))
        for method, pipe in zip(methods, pipes, strict=True)
    ]
    for turn in range(setting.blocks):
        for k in range(len(methods)):
            i = (turn + k) % len(methods)  # none is always the first
            if found[i].failure:
                continue
            time.sleep(0.02)  # threads of the one before spin for a while after their work
            pipes[i].send(True)
            answer = _receive(pipes[i])
            if isinstance(answer, tuple):
                found[i].blocks.append(Block(*answer))
            else:
                found[i] = found[i]._replace(failure=str(answer))
    for i, pipe in enumerate(pipes):
        if not found[i].failure:
            pipe.send(False)
            report = _receive(pipe)
            found[i] = (
                found[i]._replace(failure=report)
                if isinstance(report, str)
                else found[i]._replace(report=report)
            )
        pipe.close()
    return found


def _receive(pipe: Connection) -> Any:
    """The next message, or why there is none."""
    try:
        return pipe.recv() if pipe.poll(PATIENCE) else f"no answer within {PATIENCE:.0f} s"
    except (EOFError, OSError):
        return "its process ended, possibly for lack of memory"


def _failure(answer: Any) -> str:
    return "" if answer is None else str(answer)


# --------------------------------------------------------------------------------------------- rows
def rows(found: list[Measured], setting: "Setting") -> Iterator[dict[str, Any]]:
    """Each method against our plain DPO, and each of ours against TRL's; the first of `found` is
    our plain DPO."""
    from experiments.bench.training_process import tokens_per_step

    tokens = tokens_per_step(setting)
    references = [("ours dpo", found[0])]
    references += [(TRL[one.method.trainer], one) for one in found if one.method.trainer in TRL]
    for one in found:
        for name, reference in references:
            if one.method.trainer == "ours" or name == "ours dpo":
                yield row(one, name, reference, setting, tokens)


def row(
    one: Measured, name: str, reference: Measured, setting: "Setting", tokens: float
) -> dict[str, Any]:
    """One method against one reference of the same group."""
    method, report = one.method, one.report
    target_time, target_memory = targets(method, name) if setting.device == "cpu" else (None, None)
    found: dict[str, Any] = {
        "objective": method.objective,
        "mode": method.mode,
        "accumulation": method.accumulation,
        "checkpointing": method.checkpointing,
        "reference": name,
        "target_time": target_time,
        "target_memory": target_memory,
        "device": torch.cuda.get_device_name() if setting.device == "cuda" else "cpu",
        "model": setting.model
        or (
            f"llama, {setting.layers} layers of width {setting.width}, vocabulary"
            f" {setting.vocabulary}"
        ),
        "batch": setting.batch,
        "tokens": tokens,
        "note": one.failure or (f"reference: {reference.failure}" if reference.failure else ""),
    }
    if one.failure:
        return found
    wall, processor = (np.array([block[clock] for block in one.blocks]) for clock in (0, 1))
    seconds = float(np.median(wall)) / setting.block
    found |= {"seconds_per_step": seconds, "tokens_per_second": tokens / seconds}
    found |= {"own_time": float(processor.sum() / wall.sum()) / report["threads"]}
    found |= {name: report[name] for name in ("peak_mib", "threads", "parameters", "loss")}
    if setting.device == "cuda":
        found["share_of_peak"] = share_of_peak(
            found["tokens_per_second"], report["parameters"], found["device"]
        )
        found["note"] = f"{report['attention']}, bf16 autocast"
    if reference.failure:
        return found
    ratios = wall / [block.wall for block in reference.blocks]
    low, middle, high = np.quantile(ratios, [0.25, 0.5, 0.75])
    found |= {"time_ratio": middle, "time_low": low, "time_high": high}
    found["cpu_ratio"] = float(
        np.median(processor / [block.processor for block in reference.blocks])
    )
    found["memory_ratio"] = report["peak_mib"] / reference.report["peak_mib"]
    if target_time is not None:
        busy = found["own_time"] < ENOUGH_TIME
        judged = found["cpu_ratio"] if busy else middle
        if busy:
            found["note"] = "busy machine: judged by processor time"
        found["met"] = bool(
            judged <= target_time
            and (target_memory is None or found["memory_ratio"] <= target_memory)
        )
    return found


def targets(method: "Method", reference: str) -> tuple[float | None, float | None]:
    """Largest ratios of time and of memory that we want on the CPU; None where a ratio is only
    reported."""
    if method.trainer != "ours":
        return None, None
    if reference == "trl dpo":
        return (1.0, None) if method.objective == "dpo" else (None, None)
    if reference == "ours dpo" and method.objective == "dpo" and method.padding_free:
        return 1 / 1.3, 1.0
    if reference != "ours dpo" or method.objective == "dpo" or method.padding_free:
        return None, None
    if method.objective == "wdpo":
        wanted: dict[str, tuple[float | None, float | None]] = {
            "adversarial": (2.0, 1.1),
            "finite_difference": (3.1, 1.15),
        }
        return wanted.get(method.mode, (None, None))
    return (1.05 if method.accumulation == 1 else 1.4), None


def share_of_peak(tokens_per_second: float, parameters: int, device: str) -> float | None:
    """6 x parameters x tokens FLOPs of a forward and a backward pass, per second, over the device's
    peak; None for others.

    Attention, and the passes that an objective adds, are work that this does not count.
    """
    peak = next((flops for name, flops in PEAK_FLOPS.items() if name in device), None)
    return None if peak is None else 6 * parameters * tokens_per_second / peak


# ------------------------------------------------------------------------------------------- report
def run(config: Training) -> None:
    """Run the benchmark with these options."""
    bench_training(config.out, config.profile, config.device, config.model, config.groups)


def bench_training(
    out: Path,
    profile: str,
    device: str | None = None,
    model: str | None = None,
    wanted: Sequence[int] = (1, 2, 3),
) -> pd.DataFrame:
    """Run the benchmark, print the most of its table and write all of it to `out`/training.csv.

    profile: "smoke" (seconds), "quick" (minutes) or "paper" (more rounds, on CUDA a larger model).
    device: "cpu" or "cuda"; where not given, CUDA if there is one. model: one with weights. wanted:
    numbers of the groups of methods. Raises ValueError for an unknown profile or group, or for CUDA
    where there is none.
    """
    if not wanted or not set(wanted) <= {1, 2, 3, 4}:
        raise ValueError(f"groups must be among 1, 2, 3 and 4, got {tuple(wanted)}.")
    if device not in (None, "cpu", "cuda"):
        raise ValueError(f"device must be cpu or cuda, got {device!r}.")
    if device == "cuda" and not torch.cuda.is_available():
        raise ValueError(
            "device cuda was asked for, but torch sees none: check the driver and that torch is a"
            " CUDA build, or use cpu."
        )
    setting = settings(profile, device or ("cuda" if torch.cuda.is_available() else "cpu"))
    setting = replace(setting, model=model)
    out.mkdir(parents=True, exist_ok=True)
    table = pd.DataFrame(columns=COLUMNS)
    for number, group in groups(profile).items():
        if number not in wanted:
            continue
        own = replace(setting, spread=True, length=4 * setting.length) if number == 4 else setting
        how = f"accumulation {group[0].accumulation}" + (
            ", gradient checkpointing" if group[0].checkpointing else ""
        )
        how += ", lengths as spread as UltraFeedback's" if own.spread else ""
        print(f"group {number}: {len(group)} methods, {how}")
        before = table.to_dict("records")
        for found in measure(group, own):
            table = pd.DataFrame([*before, *rows(found, own)], columns=COLUMNS)
            # as soon as something is there: an interrupted run keeps what it has measured
            table.to_csv(out / "training.csv", index=False)
    _show(table)
    print(f"written to {out / 'training.csv'}")
    return table


def _show(table: pd.DataFrame) -> None:
    """Ratios of time and memory to the reference, and what is to be said of some rows; memory,
    quartiles and processor time are in the file, and so is what is neither DPO nor against ours."""
    shown, notes = [], []
    for row in table.to_dict("records"):
        if row["reference"] != "ours dpo" and row["objective"] != "dpo":
            continue
        many, checkpointing = row["accumulation"] > 1, row["checkpointing"]
        what = [
            row["objective"],
            row["mode"].replace("_", " "),
            f"x{row['accumulation']}" * many,
            "ckpt" * checkpointing,
        ]
        shown.append(
            {
                "objective": " ".join(filter(None, what)),
                "reference": row["reference"],
                "s/step": row["seconds_per_step"],
                "time": row["time_ratio"],
                "memory": row["memory_ratio"],
                "targets": " / ".join(
                    f"{row[name]:g}"
                    for name in ("target_time", "target_memory")
                    if not pd.isna(row[name])
                ),
                "met": row["met"],
            }
        )
        if row["note"]:
            notes.append(f"{shown[-1]['objective']} against {row['reference']}: {row['note']}")
    first = table.iloc[0]
    screen.show(
        shown,
        f"{first.model},\n{first.batch} pairs of {first.tokens:.0f} tokens a step, on"
        f" {first.device}",
    )
    print("x4: four micro-batches; ckpt: gradient checkpointing", *notes, sep="\n")
