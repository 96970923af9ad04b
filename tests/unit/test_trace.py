"""What a distillation leaves beside its set: the loss of every step, scores of kept iterates, names and images of its stages."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from msgspec.structs import replace as replace_plan
from PIL import Image
from stores import plan_of, set_contents, set_record
from torch import Tensor

from ddbench.api import Batch, Loss, Memory, Run
from ddbench.compute import trace
from ddbench.compute.clock import Stopwatch
from ddbench.compute.distilled import set_files
from ddbench.compute.engine import Distillation, DistilledSet, distill
from ddbench.compute.picture import GAP, WALK_SIDE, stages_shown, tiles, walk_png
from ddbench.compute.rank import needs
from ddbench.compute.run import DistillRun
from ddbench.compute.trace import LossTrace
from ddbench.errors import DataError
from ddbench.files import read_tensors
from ddbench.plan import SetPlan
from ddbench.results.losses import read_losses
from ddbench.results.store import Store
from ddbench.testing import toy_plan, toy_run
from ddbench_plugins.losses.dm import DistributionMatching
from ddbench_plugins.spaces.layered import hpd, w_plus
from ddbench_plugins.spaces.multi_formation import MultiFormation
from ddbench_plugins.spaces.pixel import Pixel


@dataclass(frozen=True)
class Told(Loss):
    """Its value is what it is told to be, in the same tensor at every step, as a replayed step has it."""

    value: Callable[[int], float] = lambda step: step / 3
    rates: ClassVar[dict[str, float]] = {"pixels": 0.1}

    def init(self, run: Run) -> Memory:
        return {"value": torch.zeros(())}

    def backward(self, syn: Batch, memory: Memory, run: Run) -> Tensor:
        syn.images.square().sum().backward(inputs=syn.leaves)
        return memory["value"].fill_(self.value(run.step))


@pytest.fixture
def run() -> DistillRun:
    return toy_run(channels=3, depth=5)


def made_by(plan: SetPlan, run: DistillRun, **more: Any) -> DistilledSet:
    return distill(plan, run, Stopwatch(run.device), **more)


def losses_of(made: DistilledSet) -> dict[int, float]:
    assert made.losses
    return made.losses.kept


def single(value: float) -> float:
    return float(torch.tensor(value))


def test_every_step_has_its_loss(run: DistillRun) -> None:
    made = made_by(toy_plan(Told(), Pixel(), steps=120), run)
    assert losses_of(made) == {step: single(step / 3) for step in range(120)}


def test_more_steps_are_thinned_and_those_of_iterates_are_kept(run: DistillRun, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trace, "MOST", 4)
    put: list[int] = []
    plan = toy_plan(Told(), Pixel(), steps=11)
    made = made_by(plan, run, iterates=(4, 6), put_aside=lambda step, *rest: put.append(step))
    assert put == [4, 6]
    assert losses_of(made) == {step: single(step / 3) for step in (0, 3, 4, 6, 9)}
    assert "stages.png" not in set_files(plan, made, run.spec)
    assert made.losses
    assert made.losses.even().tolist() == [single(step / 3) for step in (0, 3, 6, 9)]


def test_nothing_is_fetched_in_a_step(run: DistillRun) -> None:
    loop = Distillation(toy_plan(Told(), Pixel(), steps=60), run, Stopwatch(run.device))
    loop.begin()
    for _ in range(7):
        loop.one_step()
    assert (len(loop.losses.waiting), loop.losses.kept) == (7, {})
    loop.look()
    assert (len(loop.losses.waiting), len(loop.losses.kept)) == (0, 7)


def test_a_checkpoint_without_losses_leaves_a_gap() -> None:
    losses = LossTrace(3)
    losses.take_up({})
    losses.note(2, torch.tensor(0.5))
    assert losses.fetch() is None
    assert losses.even().isnan().tolist() == [True, True, False]


def ranked(run: DistillRun, **changes: Any) -> tuple[SetPlan, DistillRun]:
    rates = {"f": 0.5, "w": 0.05, "pixels": 0.5}
    space = hpd(first=1, step=2, samples=4)
    plan = toy_plan(DistributionMatching(4), space, **({"rates": rates, "steps": 3, "rank_steps": "feature-distance"} | changes))
    return plan, replace(run, resources={need: need.build(run) for need in needs(plan)})


@pytest.mark.slow
def test_an_iterate_is_scored_as_the_ranker_scores_it_off_the_clock(run: DistillRun) -> None:
    plan, run = ranked(run)
    scores: dict[int, float | None] = {}
    loop = Distillation(plan, run, Stopwatch(run.device))
    loop.begin()
    loop.one_step()
    wanted = float(loop.best.score)  # of the only candidate so far, which is the iterate before step 0
    watch = Stopwatch(run.device)
    made = distill(
        plan, run, watch, iterates=(0, 1), put_aside=lambda step, images, labels, score: scores.update({step: score})
    )  # fmt: skip
    assert scores[0] == pytest.approx(wanted, rel=1e-5)
    assert scores[1] not in (None, scores[0])
    assert watch.seconds()["aside"] > 0
    assert {0, 1} <= losses_of(made).keys()
    plain = replace_plan(plan, rank_steps="last")
    distill(plain, run, watch, iterates=(0,), put_aside=lambda step, images, labels, score: scores.update({step: score}))
    assert scores[0] is None


@pytest.mark.slow
def test_the_stages_of_a_walk_have_names_and_a_picture(run: DistillRun) -> None:
    plan, run = ranked(run, rank_steps="last")
    made = made_by(plan, run)
    assert [stage["name"] for stage in made.stages] == ["layer 1", "layer 3", "images"]
    assert made.walk is not None
    assert made.walk.shape == (3, 3, *run.spec.shape)  # of three classes
    assert torch.equal(made.walk[-1], made.images[::2])  # the last stage is the set, of two images a class
    assert not torch.equal(made.walk[0], made.walk[1])
    files = set_files(plan, made, run.spec)
    picture = Image.open(io.BytesIO(files["stages.png"]))
    found = tiles(picture, 3, 3)
    assert [len(row) for row in found] == [3, 3, 3]
    wanted = (run.spec.denormalise(made.walk[1, 2]).clamp(0, 1) * 255).round().byte()
    shown = torch.tensor(np.asarray(found[1][2].resize((8, 8), Image.Resampling.NEAREST))).permute(2, 0, 1)
    assert torch.equal(shown, wanted)
    with pytest.raises(ValueError, match="has not 4 rows of 3"):
        tiles(picture, 4, 3)


def test_a_space_around_another_calls_stages_as_that_does(run: DistillRun) -> None:
    inner = hpd(first=1, step=2)
    assert MultiFormation(inner=inner).stage_name(1, run) == inner.stage_name(1, run) == "layer 3"
    assert w_plus().stage_name(0, run) == "codes"
    assert Pixel().stage_name(0, run) == ""


def test_a_picture_of_a_walk_is_bounded() -> None:
    assert stages_shown(3) == [0, 1, 2]
    many = stages_shown(1000)
    assert (len(many), many[0], many[-1]) == (20, 0, 999)
    spec = toy_run(channels=3).spec
    sheet = Image.open(io.BytesIO(walk_png(torch.zeros(2, 3, 3, 300, 150), spec)))
    assert sheet.size == (3 * (WALK_SIDE // 2 + GAP) + GAP, 2 * (WALK_SIDE + GAP) + GAP)


def test_losses_of_a_stored_set_are_read_and_checked(tmp_path: Path) -> None:
    store, plan, run = Store(tmp_path / "store"), plan_of(), toy_run(channels=3)
    made = made_by(toy_plan(Told(), Pixel(), steps=5), run)
    content = set_files(plan, made, run.spec)["losses.safetensors"]
    files = set_record(plan).files | {"losses.safetensors": hashlib.sha256(content).hexdigest()}
    record = set_record(plan, files=files)
    store.publish_set(plan, record, set_contents(plan) | {"losses.safetensors": content})
    found = read_losses(store, record)
    assert found
    assert (found.every, found.values.tolist()) == (1, [single(step / 3) for step in range(5)])
    assert read_losses(store, set_record(plan)) is None  # a record that names none
    path = store.folder(plan.key) / "losses.safetensors"
    assert read_tensors(path, "losses")[1] == {"schema": 1, "key": plan.key, "every": 1}
    path.write_bytes(content[:-1])
    with pytest.raises(DataError, match=r"losses\.safetensors is missing or damaged"):
        read_losses(store, record)
