"""What training takes is tried out on random images, once for each network, within limits, and without a trace."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from msgspec.structs import replace
from stores import judging_of, plan_of

from ddbench.api import Recipe, Resource, Run
from ddbench.compute.resources import need_of
from ddbench.compute.run import DistillRun
from ddbench.grid import calibration
from ddbench.grid.calibration import Calibration
from ddbench.refs import PluginRef

CPU = torch.device("cpu")
PLAN = replace(plan_of("dm"), dataset=PluginRef.resolve("datasets", "mnist-5k", {}))
JUDGING = replace(judging_of(), dataset=PLAN.dataset)
COUNTS = (400,) * 10


@dataclass(frozen=True)
class Trained(Resource):
    """Trains a network; and what it does before and after may be wrong."""

    epochs: int = 50
    what: str = ""
    networks: int = 1

    def build(self, run: Run) -> dict[str, Any]:
        if self.what == "nothing":
            return {}
        if self.what == "raise":
            raise ValueError("it wants a file")
        network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(784, 10))
        for number in range(self.networks):
            run.train(network, Recipe(self.epochs, 0.01), "x", number)
        raise AssertionError("what comes after is no matter")


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """A second passes between two looks at it."""
    now = [0.0]

    def look() -> float:
        now[0] += 1.0
        return now[0]

    monkeypatch.setattr(calibration.time, "perf_counter", look)
    return now


def need(**fields: Any) -> Any:
    return need_of(Trained(**fields), None, PLAN)


def test_building_takes_its_epochs_of_all_images() -> None:
    tried = Calibration(CPU, 100.0)
    seconds = tried.seconds_to_build(need(), PLAN, COUNTS)
    assert seconds
    assert tried.seconds_to_build(need(), PLAN, (800,) * 10) == pytest.approx(2 * seconds)  # tried once


def test_every_training_of_a_resource_counts_and_one_is_done(clock: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    seconds, seen = [], []
    own = DistillRun.train
    monkeypatch.setattr(DistillRun, "train", lambda self, *given, **more: seen.append(given) or own(self, *given, **more))
    for networks in (1, 5):
        seconds.append(Calibration(CPU, 100.0).seconds_to_build(need(networks=networks), PLAN, COUNTS))
    assert seconds[1] == pytest.approx(5 * seconds[0])
    assert len(seen) == 2


def test_what_trains_nothing_or_breaks_is_unknown() -> None:
    tried = Calibration(CPU, 100.0)
    assert tried.seconds_to_build(need(what="nothing"), PLAN, COUNTS) is None
    assert tried.seconds_to_build(need_of(Trained(what="raise"), None, PLAN), PLAN, COUNTS) is None


@pytest.mark.slow
def test_judging_takes_its_epochs_of_all_images() -> None:
    tried = Calibration(CPU, 100.0)
    tried.peaks[JUDGING.threads] = 1e12  # however busy this machine is
    seconds = tried.seconds_to_judge(JUDGING, 1000)
    assert seconds
    assert tried.seconds_to_judge(JUDGING, 2000) == pytest.approx(2 * seconds)
    assert len(tried.known) == 1


def test_no_time_no_try(clock: list[float]) -> None:
    tried = Calibration(CPU, 0.0)
    tried.peaks[1] = 1e12
    assert tried.seconds_to_build(need(), PLAN, COUNTS) is None
    assert tried.seconds_to_judge(JUDGING, 10) is None
    assert tried.known == {}
    slow = Calibration(CPU, 100.0)
    slow.peaks[JUDGING.threads] = 1.0  # an operation a second
    assert slow.seconds_to_judge(JUDGING, 10) is None
    assert slow.known == {}


def test_a_measurement_costs_of_what_all_have(clock: list[float]) -> None:
    tried = Calibration(CPU, 3.0)
    assert tried.seconds_to_build(need(), PLAN, COUNTS) is not None
    assert tried.left < 0
    assert tried.seconds_to_build(need(), PLAN, COUNTS) is not None
    assert tried.seconds_to_build(need_of(Trained(epochs=7), None, PLAN), PLAN, COUNTS) is None


def test_strangers_are_not_run_and_threads_are_given_back(monkeypatch: pytest.MonkeyPatch) -> None:
    tried, seen = Calibration(CPU, 100.0), []
    monkeypatch.setattr(calibration, "foreign", lambda *refs: ("a stranger",))
    assert tried.seconds_to_judge(JUDGING, 10) is None
    monkeypatch.undo()
    monkeypatch.setattr(Trained, "build", lambda self, run: seen.append(torch.get_num_threads()))
    torch.set_num_threads(2)
    tried.seconds_to_build(need(), replace(PLAN, threads=1), COUNTS)
    assert (seen[0], torch.get_num_threads()) == (1, 2)
