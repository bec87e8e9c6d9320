"""The `prefdro` command: which words reach which function. Modules that take long to import are
imported when their command is asked for."""

import os
import signal
import sys
from collections.abc import Callable
from importlib import import_module
from subprocess import CalledProcessError
from threading import current_thread, main_thread
from typing import Annotated, Any, NoReturn, get_type_hints

import tyro

from experiments import BENCHMARKS, EXPERIMENTS, Entry
from experiments.engine.errors import CellsFailed, StoreError
from experiments.shadowing import refuse_shadowed

Command = Callable[..., None]
GROUPS = {"run": EXPERIMENTS, "bench": BENCHMARKS}
ALONE = {
    "verify": Entry(
        "experiments.verify",
        "Check the claims of the theory and compare the verdicts with those on record.",
    ),
    "flip-rate": Entry(
        "experiments.flip_rate",
        "The rate of flipped labels in a table of comparisons, for cdpo and rdpo.",
    ),
    "features": Entry(
        "experiments.features",
        "Features of preference texts from a language model, as a table for the studies.",
    ),
}
_DESCRIPTION = (
    "Robust preference alignment: estimators, bounds and experiments. `prefdro verify` checks the"
    " claims of the theory; `prefdro run --help` lists the experiments."
)


def main(arguments: list[str] | None = None) -> None:
    """Entry point; unusable input ends with a message on stderr and exit status 1."""
    words = sys.argv[1:] if arguments is None else arguments
    ours = current_thread() is main_thread() and signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    if ours:
        signal.signal(signal.SIGTERM, _terminated)
    try:
        refuse_shadowed()
        _obey(words)
        sys.stdout.flush()
    except BrokenPipeError:  # the reader, such as head, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)  # 128 + SIGPIPE, as the shell reports it
    except (
        ValueError,
        ImportError,
        OSError,
        FloatingPointError,
        CalledProcessError,
        StoreError,
        CellsFailed,
    ) as error:
        print("prefdro:", error, *getattr(error, "__notes__", ()), file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt as stopped:
        print(
            "prefdro: stopped; what is finished is kept, and the same command resumes.",
            file=sys.stderr,
        )
        sys.exit(143 if isinstance(stopped, _Terminated) else 130)  # 128 + the signal
    finally:
        if ours:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)


class _Terminated(KeyboardInterrupt):
    """SIGTERM: ends a command as control-C does. Unhandled it would end this process alone, and
    leave its workers to go on."""


def _terminated(*_: object) -> NoReturn:
    raise _Terminated


def _obey(words: list[str]) -> None:
    from llm.console import (  # not before this llm is known to be ours
        print_whatever_the_encoding,
        refuse_undecoded,
    )

    print_whatever_the_encoding()
    refuse_undecoded(words)
    first, rest = (words[0] if words else ""), words[1:]
    parse = tyro.extras.subcommand_cli_from_dict
    if first == "train":  # has a parser of its own
        train(*rest)
    elif first in GROUPS:
        asked = rest[0].replace("_", "-") if rest else ""  # tyro takes both
        parse(commands(first, asked), prog=f"prefdro {first}", args=rest)
    else:
        parse(commands("", first), prog="prefdro", description=_DESCRIPTION, args=words)


def commands(group: str, asked: str) -> dict[str, Command]:
    """The commands of a group, or the top ones, by name. Of those with a module of their own only
    the one that is asked for has its options: the others are names to list."""
    if group:
        return {
            name: _loaded(group, name, entry) if name == asked else _named(entry.about)
            for name, entry in GROUPS[group].items()
        }
    from experiments.figures import figures  # not before paper_figures is known to be ours
    from experiments.listing import list_all

    return {
        "list": list_all,
        **{
            name: _loaded("", name, entry) if name == asked else _named(entry.about)
            for name, entry in ALONE.items()
        },
        "run": _named("Run an experiment."),
        "figures": figures,
        "bench": _named("Run a benchmark."),
        "train": train,
    }


def train(*words: str) -> None:
    """Train a language model on preferences with any objective; `prefdro train --help` lists the
    options."""
    from llm.train import main as train_main  # transformers is slow to import and only needed here

    train_main(list(words))


def _loaded(group: str, name: str, entry: Entry) -> Command:
    """The command that hands its options to the module: those that its function `run` takes."""
    module = import_module(entry.module)

    def command(config: Any) -> None:
        if group == "run":
            from experiments.running import run_experiment

            run_experiment(name, module, config)
        elif status := module.run(config):
            sys.exit(status)

    options = get_type_hints(module.run)["config"]
    command.__annotations__ = {"config": Annotated[options, tyro.conf.arg(name="")], "return": None}
    command.__doc__ = entry.about
    return command


def _named(about: str) -> Command:
    def command() -> None:
        raise AssertionError("a command that was not asked for")

    command.__doc__ = about
    return command
