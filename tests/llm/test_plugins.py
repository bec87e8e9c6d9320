"""Losses and objectives from outside: a package that is made here, trained from its name and
resumed, and what is said of one that cannot be trained with."""

import hashlib
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from llm import train as module
from llm.objective_checks import check_objective, sample
from llm.objectives import (
    OBJECTIVES,
    SPECS,
    ObjectiveParameters,
    Spec,
    make_objective,
    outside,
    register,
)
from llm.pair_losses import PAIR_LOSSES, PairLoss
from llm.plugins import NUMBERS
from llm.train import parse, train
from tests.launches import run
from tests.llm.test_objectives import THEORY
from tests.llm.test_train import as_if_killed, model, pairs, same, weights, words  # noqa: F401
from theory import functionals, losses

LOSSES = '''
"""Losses of one's own."""

import torch
from torch.nn.functional import softplus

from llm import PairLoss, Spec, robust
from theory import KL


def squared_hinge(margin):
    """(1 - m)_+²."""
    return torch.relu(1 - margin) ** 2


def tempered(margin, gamma, *, beta, limit=3.0, scale=1.0):
    return scale * softplus(-gamma * margin.clamp(-limit, limit)) / gamma + 0 * beta


class Smooth:
    """The hinge with a round corner."""

    def __init__(self, width=0.5):
        self.width = width

    def __call__(self, margin):
        return self.width * softplus((1 - margin) / self.width)


class NeedsWidth(Smooth):
    def __init__(self, width):
        super().__init__(width)


def _by_length(p, s):
    return softplus(-p.beta * (s.chosen_ratio / s.chosen_length - s.rejected_ratio))


by_length = PairLoss("by_length", "mean over tokens", "nobody", _by_length)
largest = Spec(
    "largest", "the largest", "nobody",
    lambda p: robust(p, lambda losses, weights: losses.amax()), step="coupled", of_pair_loss=True,
)


class Pinsker(KL):
    """The KL ball that lies in the total-variation ball of this radius."""

    def worst_value(self, losses, size, weights=None):
        return super().worst_value(losses, 2 * size**2, weights)


number = 3.0
take_away = Spec("x", "x", "x", lambda p: None, step="groups")


def shape(margin):
    return torch.relu(1 - margin).mean()


def double(margin):
    return margin.double().neg().exp()


def overflow(margin):
    return torch.exp(-50 * margin)


def upside_down(margin):
    return -softplus(-margin)


def detached(margin):
    return torch.relu(1 - margin.detach())


def couples(margin):
    return torch.relu(1 - margin + margin.mean())


def random(margin):
    return torch.relu(1 - margin) + 0.1 * torch.rand_like(margin)


def text(margin):
    return "0.3"


def breaks(pairs):
    return -pairs.chosen


def dead(margin):
    return torch.relu(-margin) ** 2 * (margin.abs() > 0.01)


def strange(margin, temperature):
    return softplus(-margin / temperature)


def nothing():
    return 0


def root(margin):
    return torch.relu(1 - margin) + (margin**2).sqrt()


class Swollen(Pinsker):
    def worst_value(self, losses, size, weights=None):
        return 2 * super().worst_value(losses, size, weights)


class Low(Pinsker):
    def worst_value(self, losses, size, weights=None):
        return losses.amin()


def plain_value(p):
    made = robust(p, lambda losses, weights: losses.amax())
    from dataclasses import replace
    return replace(made, couples=False)


torn = Spec("torn", "x", "x", plain_value, of_pair_loss=True)
'''


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with a package, from which the command is started; forgotten afterwards."""
    folder = tmp_path / "project"
    (folder / "mine").mkdir(parents=True)
    (folder / "mine" / "__init__.py").write_text("")
    (folder / "mine" / "losses.py").write_text(LOSSES)
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "path", list(sys.path))
    before = set(SPECS), set(PAIR_LOSSES)
    yield folder
    for registry, ours in zip((SPECS, PAIR_LOSSES), before, strict=True):
        for name in set(registry) - ours:
            del registry[name]  # type: ignore[attr-defined]
    forget()


def forget() -> None:
    for name in [name for name in sys.modules if name.split(".")[0] == "mine"]:
        del sys.modules[name]


@pytest.mark.parametrize("name", [name for name in OBJECTIVES if name != "kto"])
def test_what_is_asked_of_others_is_true_of_ours(name: str) -> None:
    p = ObjectiveParameters(name, 0.3, **THEORY[name][0])
    check_objective(make_objective(p), worst_case=bool(SPECS[name].sets))


def test_what_a_name_stands_for(package: Path) -> None:
    """Function, options, class, PairLoss, Spec and set, against the same by hand."""
    s = sample()
    m = 0.3 * (s.chosen_ratio - s.rejected_ratio)
    mean, kl = functionals.mean, functionals.kl_ball
    softplus = torch.nn.functional.softplus
    hinge = torch.relu(1 - m) ** 2
    by_length = softplus(-0.3 * (s.chosen_ratio / s.chosen_length - s.rejected_ratio))
    options: dict[str, Any] = {"pair_loss": "mine.losses:squared_hinge"}
    for name, others, truth in (
        ("squared_hinge", {}, mean(hinge, s.weights)),
        ("tempered", {"gamma": 2.0}, mean(softplus(-2 * m.clamp(-3, 3)) / 2, s.weights)),
        (
            "tempered",
            {"gamma": 2.0, "limit": 0.5},
            mean(softplus(-2 * m.clamp(-0.5, 0.5)) / 2, s.weights),
        ),
        ("Smooth", {}, mean(softplus(2 * (1 - m)) / 2, s.weights)),
        ("by_length", {}, mean(by_length, s.weights)),
        ("largest", options, hinge.amax()),
        ("Pinsker", {"rho": 0.2, **options}, kl(hinge, 0.08, s.weights)),
        ("Pinsker", {"rho": 0.2}, kl(losses.dpo_loss(m), 0.08, s.weights)),
    ):
        made = make_objective(ObjectiveParameters(f"mine.losses:{name}", 0.3, **others))
        torch.testing.assert_close(made.value(s), truth)
    made = make_objective(ObjectiveParameters("kldpo", 0.3, rho=0.1, **options))
    torch.testing.assert_close(made.value(s), kl(hinge, 0.1, s.weights))
    chi = make_objective(ObjectiveParameters("mine.losses:squared_hinge", 0.3, link="chi"))
    near = sample(torch.float64, [0.1] * 6, [-0.1] * 6)
    moved = 0.3 * (np.exp(0.1) - np.exp(-0.1) + 0.2)
    np.testing.assert_allclose(chi.value(near), (1 - moved) ** 2)


def test_a_name_of_ones_own_in_python(package: Path) -> None:
    def savage(margin: torch.Tensor) -> torch.Tensor:
        return torch.sigmoid(-margin) ** 2

    assert register(savage) == "savage" and register(savage, "again") == "again"
    p = ObjectiveParameters("cvar", alpha=0.5, pair_loss="savage")
    s = sample()
    truth = functionals.cvar(
        torch.sigmoid(-0.1 * (s.chosen_ratio - s.rejected_ratio)) ** 2, 0.5, s.weights
    )
    torch.testing.assert_close(make_objective(p).value(s), truth)
    file = hashlib.sha256(Path(__file__).read_bytes()).hexdigest()
    assert outside(p) == {"savage": file}
    with pytest.raises(ValueError, match="the name 'hinge' is taken by an objective of ours"):
        register(savage, "hinge")
    with pytest.raises(ValueError, match="has no name that could be taken, got 'a:b': give name="):
        register(savage, "a:b")


WRONG = {
    "mine.losses": "unknown objective 'mine.losses'; there are dpo, .*, or MODULE:NAME",
    "mine/losses.py:shape": "not of the form MODULE:NAME. Write the module as in an import",
    "mine.losses:": "not of the form MODULE:NAME",
    "yours.losses:shape": "there is no module yours on Python's path, nor in .*project. Start the",
    "mine.other:shape": r"there is no module mine.other on Python's path",
    "mine.broken:loss": r"importing mine.broken ended with ZeroDivisionError: division by zero",
    "mine.lacking:loss": "importing mine.lacking ended with ModuleNotFoundError: No module named",
    "mine.losses:squared_hing": r"has no squared_hing. Did you mean squared_hinge\?",
    "mine.losses:qwertyuiop": "has no qwertyuiop. It has ",
    "mine.losses:number": "is 3.0, which cannot be called. Give a function of margins",
    "mine.losses:NeedsWidth": "a class that cannot be made without arguments .*'width'",
    "mine.losses:strange": r"has the signature \(margin, temperature\). A loss takes the margins "
    f"first and after them only numbers with the names {', '.join(NUMBERS)}",
    "mine.losses:nothing": r"has the signature \(\)",
    "mine.losses:tempered": "tempered needs --gamma, which was not given",
    "mine.losses:shape": r"gave the shape \(\) for 6 pairs, and not \(6,\). Leave out the mean",
    "mine.losses:double": "gave torch.float64 for torch.float32. Likely a tensor with a dtype",
    "mine.losses:overflow": "inf.*for 6 pairs .* Likely an exp or log of a large margin",
    "mine.losses:upside_down": "it would train the rejected ones up. Likely a sign",
    "mine.losses:detached": "has no gradient: something in it leaves torch",
    "mine.losses:couples": "a loss must depend on its own pair only",
    "mine.losses:random": "gave other losses when it was asked twice",
    "mine.losses:text": "gave '0.3', a str, and not a tensor",
    "mine.losses:breaks": "ended with AttributeError: .*'chosen', asked of 6 pairs of torch",
    "mine.losses:dead": "has no gradient at the reference policy",
    "mine.losses:root": "the gradient of .* is .*nan",
    "mine.losses:take_away": "is 'groups', one of ours alone; from outside it is mean or coupled",
    "mine.losses:torn": "as the sum over two parts of them. It is said to be a weighted mean",
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_refused_and_with_which_words(name: str, package: Path) -> None:
    (package / "mine" / "broken.py").write_text("1 / 0\n")
    (package / "mine" / "lacking.py").write_text("import no_such_module_anywhere\n")
    with pytest.raises(ValueError, match=WRONG[name]):
        make_objective(ObjectiveParameters(name))


def test_sets_that_are_none(package: Path) -> None:
    for name, message in (
        ("Pinsker", "mine.losses:Pinsker needs --rho"),
        ("Swollen", "which are no probabilities: the derivative of a worst mean loss"),
        ("Low", "below the mean loss .*: the data themselves would not be in the set"),
    ):
        with pytest.raises(ValueError, match=message):
            rho = None if name == "Pinsker" else 0.1
            make_objective(ObjectiveParameters(f"mine.losses:{name}", rho=rho))
    with pytest.raises(ValueError, match="is no loss of a pair: give it as --objective mine"):
        make_objective(ObjectiveParameters("kldpo", tau=1.0, pair_loss="mine.losses:Pinsker"))


def test_unpaired_objectives_are_ours_alone() -> None:
    def build(p: ObjectiveParameters) -> Any:
        return make_objective(ObjectiveParameters("kto"))

    name = register(Spec("single", "x", "x", build))
    with pytest.raises(ValueError, match="only objectives of pairs can be"):
        make_objective(ObjectiveParameters(name))
    del SPECS[name]


def test_trained_resumed_and_recorded(
    model: Path,  # noqa: F811
    pairs: Path,  # noqa: F811
    package: Path,
    tmp_path: Path,
) -> None:
    """From the command line in another process, begun; here, with nothing imported, resumed to the
    weights of a whole run with the same loss of ours; with another source, refused."""
    options = "--objective kldpo --rho 0.1 --pair_loss"
    ours, here = tmp_path / "ours", tmp_path / "here"
    (package / "mine" / "losses.py").write_text(
        "import torch\n\n\ndef hinge(margin):\n    return torch.relu(1 - margin)\n"
    )
    command = words(model, pairs, here, options, "mine.losses:hinge")
    environment = {
        **os.environ,
        "PYTHONPATH": str(Path(module.__file__).resolve().parent.parent),
        "PYTHONSAFEPATH": "1",  # as an installed command, which does not search its folder
    }
    run([sys.executable, "-m", "llm.train", *command], cwd=package, env=environment)
    record = json.loads((here / "training.json").read_text())
    sha256 = hashlib.sha256((package / "mine" / "losses.py").read_bytes()).hexdigest()
    assert record["plugins"] == {"mine.losses:hinge": sha256}
    card = (here / "README.md").read_text()
    assert "| pair_loss | mine.losses:hinge |" in card
    assert f"| sha256 of the source of `mine.losses:hinge` | {sha256} |" in card

    as_if_killed(here, "checkpoint-6")
    assert "mine.losses" not in sys.modules
    train(*parse(command))
    train(*parse(words(model, pairs, ours, options, "hinge")))
    assert same(weights(here), weights(ours))

    forget()
    file = package / "mine" / "losses.py"
    file.write_text(file.read_text() + "\n\nOTHER = 1\n")
    with pytest.raises(ValueError, match=r"the source of mine.losses:hinge .* then, .* now"):
        train(*parse(command))


def test_a_loss_of_ones_own_as_the_objective(
    model: Path,  # noqa: F811
    pairs: Path,  # noqa: F811
    package: Path,
    tmp_path: Path,
) -> None:
    """Its mean is the step; the card and its tags name it."""
    out = tmp_path / "out"
    train(*parse(words(model, pairs, out, "--objective mine.losses:squared_hinge --max_steps 2")))
    card = (out / "README.md").read_text()
    assert "- squared_hinge\n" in card and "Objective: mine.losses:squared_hinge (from out" in card
    log = json.loads((out / "checkpoint-2" / "trainer_state.json").read_text())["log_history"]
    # a first step at the reference, where every loss is (1 - 0)², and one beside it
    assert log[0]["loss"] == pytest.approx(1, abs=0.2)
    assert isinstance(PAIR_LOSSES["mine.losses:squared_hinge"], PairLoss)
