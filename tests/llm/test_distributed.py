"""Two processes, under DDP and under FSDP2, against one process that sees the whole batch; see
`distributed_worker`."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.launches import launch
from tests.llm.distributed_worker import DOUBLE_BACKWARD, OBJECTIVES, everything


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return everything(tmp_path_factory.mktemp("alone"), None, 1)


@pytest.fixture(scope="module")
def launched(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files of what two processes find under both wrappers."""
    folder = tmp_path_factory.mktemp("launched")
    done = launch(["-m", "tests.llm.distributed_worker", folder], folder)
    assert done.returncode == 0, done.stderr[-4000:]
    return folder


@pytest.fixture(scope="module", params=["ddp", "fsdp"])
def together(request: pytest.FixtureRequest, launched: Path) -> dict[str, Any]:
    return torch.load(launched / f"{request.param}.pt") | {"wrapper": request.param}


def distance(found: dict[str, Tensor], truth: dict[str, Tensor]) -> float:
    """Relative to the norm of the second."""
    assert found.keys() == truth.keys()
    off = torch.cat([(found[n] - truth[n]).flatten() for n in truth])
    return float(off.norm() / torch.cat([t.flatten() for t in truth.values()]).norm())


def same_numbers(found: dict[str, float], truth: dict[str, float]) -> None:
    clock = ("_runtime", "_per_second", "epoch")
    names = {name for name in truth if not name.endswith(clock)}
    assert names == {name for name in found if not name.endswith(clock)}
    for name in names:
        assert found[name] == pytest.approx(truth[name], rel=2e-6, abs=1e-6), name


def test_gradient_metrics_and_evaluation(alone: dict[str, Any], together: dict[str, Any]) -> None:
    """In float64, but for rounding of rewards to float32 in the data; the finite difference takes a
    small step there."""
    compared = set()
    for name in OBJECTIVES:
        for accumulation in (1, 2):
            found = together.get(f"{name}, {accumulation}")
            if found is None:
                continue
            truth = alone[f"{name}, 1"]
            assert {"ddp": "DistributedDataParallel", "fsdp": "FSDPModule"}[
                together["wrapper"]
            ] in found["kind"]
            assert distance(found["gradient"], truth["gradient"]) < 1e-6, (name, accumulation)
            same_numbers(found["logged"], truth["logged"])
            same_numbers(found["evaluated"], truth["evaluated"])
            compared.add(name)
    assert compared == set(OBJECTIVES) - set(
        DOUBLE_BACKWARD if together["wrapper"] == "fsdp" else ()
    )


def test_another_model_in_float32(alone: dict[str, Any], together: dict[str, Any]) -> None:
    assert distance(together["llama"]["gradient"], alone["llama"]["gradient"]) < 1e-5


def test_short_training(alone: dict[str, Any], together: dict[str, Any]) -> None:
    for name in ("training, kldpo tau", "training, group_dro"):
        assert distance(together[name]["parameters"], alone[name]["parameters"]) < 1e-6
        assert together[name]["losses"] == pytest.approx(alone[name]["losses"], rel=1e-5)
        assert len(set(together[name]["losses"])) == 3


def test_every_rank_stops_where_one_of_them_has_to(together: dict[str, Any]) -> None:
    assert len(together["bad row"]) == 2
    for said in together["bad row"]:
        assert "no weight has been changed" in said


def test_exact_wdpo_is_refused_under_fsdp(together: dict[str, Any]) -> None:
    if together["wrapper"] == "fsdp":
        assert "FSDP does not support a double backward" in together["refused"]
