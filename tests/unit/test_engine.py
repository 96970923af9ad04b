"""The distillation loop: updates by hand, rankers, learned labels, stages, and going on from a checkpoint at any step."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, Literal

import pytest
import torch
import torch.nn.functional as F
from msgspec.structs import replace as replace_plan
from ranking import feature_distance, images_of, validation_error
from torch import Tensor

from ddbench.api import Batch, Loss, Memory, Ranker, RankRun, Run, Score, Space, State
from ddbench.compute.clock import Stopwatch
from ddbench.compute.decoding import decode_leaf
from ddbench.compute.engine import Distillation, DistilledSet, distill, starting_labels
from ddbench.compute.rank import StageBest, needs
from ddbench.compute.run import DistillRun
from ddbench.errors import ConfigError, PluginError
from ddbench.files import read_tensors, tensors_to_bytes
from ddbench.plan import SetPlan
from ddbench.testing import Given, ToyGenerator, prepared, toy_plan, toy_run
from ddbench_plugins.losses.dc import GradientMatching
from ddbench_plugins.losses.dm import DistributionMatching
from ddbench_plugins.spaces.layered import glad, hpd, w_plus
from ddbench_plugins.spaces.pixel import Pixel


@pytest.fixture
def run() -> DistillRun:
    return toy_run(channels=3, depth=5)


@dataclass(frozen=True)
class Sum(Space):
    """Images a + 2 b + c with c fixed; a second stage has their sum as one tensor, c going along as the same object."""

    stages: int = 1
    tensors: ClassVar[tuple[str, ...]] = ("b", "a", "whole")

    def init(self, run: Run) -> State:
        shape = (run.spec.num_classes * run.ipc, *run.spec.shape)
        a, b, c = (torch.randn(shape, generator=run.rng("init", name)) for name in "abc")
        return State({"b": b, "a": a}, {"c": c})

    def classes(self, state: State, run: Run) -> Tensor:
        return torch.arange(run.spec.num_classes).repeat_interleave(run.ipc)

    def decode(self, state: State, index: Tensor, run: Run) -> Tensor:
        if state.stage:
            return state.params["whole"][index] + state.fixed["c"][index]
        return state.params["a"][index] + 2 * state.params["b"][index] + state.fixed["c"][index]

    def num_stages(self, run: Run) -> int:
        return self.stages

    def advance(self, state: State, run: Run) -> State:
        whole = state.params["whole"] if state.stage else state.params["a"] + 2 * state.params["b"]
        return State({"whole": whole}, state.fixed)


@dataclass(frozen=True)
class Pull(Loss):
    """|images - target|^2 / 2 + shift^2 / 2 - <labels, one-hot of class 0>, target a function of the step; counts its steps."""

    learned: ClassVar[tuple[str, ...]] = ("shift",)
    bad_step: int = -1
    silent: bool = False
    towards: Callable[[int], float] = lambda step: 1.0

    def init(self, run: Run) -> Memory:
        return {"steps": torch.zeros(()), "shift": torch.full((1,), 4.0, requires_grad=True)}

    def params(self, memory: Memory) -> dict[str, Tensor]:
        return {"shift": memory["shift"]}

    def backward(self, syn: Batch, memory: Memory, run: Run) -> Tensor:
        value = (syn.images - self.towards(run.step)).square().sum() / 2 + memory["shift"].square().sum() / 2
        value = value - syn.labels[:, 0].sum()
        if not self.silent:
            value.backward(inputs=[*syn.leaves, memory["shift"]])
        memory["steps"] = memory["steps"] + 1
        return value.detach() * (torch.nan if run.step == self.bad_step else 1)


RATES = {"a": 0.1, "b": 0.02, "whole": 0.05, "shift": 0.3, "labels": 0.5}


def plan_of(space: Space | None = None, loss: Loss | None = None, **changes: Any) -> SetPlan:
    return toy_plan(loss or Pull(), space or Sum(), **({"rates": RATES, "momentum": 0.0, "steps": 4} | changes))


def start(plan: SetPlan, run: DistillRun) -> Distillation:
    loop = Distillation(plan, run, Stopwatch(run.device))
    loop.begin()
    return loop


def made_by(plan: SetPlan, run: DistillRun, keeper: Any = None) -> DistilledSet:
    return distill(plan, run, Stopwatch(run.device), keeper)


def values(state: State) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in state.params.items()}


# ---------------------------------------------------------------- picked images


@dataclass(frozen=True)
class Some(Pull):
    """Needs two images a step, in an order of its own; notes what it was given."""

    given: list[Batch] = field(default_factory=list)
    asked: list[Tensor] = field(default_factory=list)
    chosen: Callable[[int], Tensor] = lambda step: torch.tensor([[4, 1], [0, 5], [2, 3], [3, 1], [5, 0]][step])
    relabels: ClassVar[Literal["never", "last", "always"]] = "always"

    def picks(self, num_images: int, run: Run) -> Tensor:
        assert num_images == 6
        return self.chosen(run.step)

    def relabel(self, images: Tensor, memory: Memory, run: Run) -> Tensor:
        self.asked.append(images)
        return images.flatten(1)[:, :3].softmax(1)

    def backward(self, syn: Batch, memory: Memory, run: Run) -> Tensor:
        self.given.append(syn)
        return Pull.backward(self, syn, memory, run)


@pytest.mark.parametrize("chunk", [1, 100])
@pytest.mark.parametrize("labels", ["hard", "learned", "teacher"])
def test_only_the_images_that_are_picked_are_decoded_and_moved(run: DistillRun, chunk: int, labels: str) -> None:
    loss, decoded = Some(), list[int]()

    class Noting(Sum):
        def decode(self, state: State, index: Tensor, run: Run) -> Tensor:
            decoded.extend(index.tolist())
            return Sum.decode(self, state, index, run)

    loop = start(plan_of(Noting(), loss, chunk=chunk, labels=labels), run)
    for step, index in enumerate(([4, 1], [0, 5])):
        before, whole = values(loop.state), loop.images(loop.state)
        loss.asked.clear()
        decoded.clear()
        loop.one_step()
        assert decoded == index * (1 if chunk == 100 else 2)
        syn = loss.given[step]
        assert (syn.num_images, syn.classes.tolist()) == (6, [number // 2 for number in index])
        assert torch.equal(syn.images, whole[index])
        moved = {name: (tensor != before[name]).flatten(1).any(1) for name, tensor in loop.state.params.items()}
        assert set(moved) == ({"a", "b", "labels"} if labels == "learned" else {"a", "b"})
        for rows in moved.values():
            assert rows.nonzero().flatten().tolist() == sorted(index)
        if labels == "hard":
            assert torch.equal(syn.labels, loop.hard[index])
        elif labels == "learned":
            assert torch.equal(syn.labels, before["labels"][index].softmax(1))
        else:
            assert [len(images) for images in loss.asked] == [2]
            assert torch.equal(syn.labels, loss.relabel(whole[index], {}, run))


def test_the_loss_ranker_compares_the_images_picked(run: DistillRun) -> None:
    loss = Some()
    made_by(plan_of(loss=loss, rank_steps="loss"), run)
    assert [len(syn.classes) for syn in loss.given] == [2] * 5  # four steps, and the iterate after the last
    assert all(syn.num_images == 6 for syn in loss.given)


SEEN: list[tuple[Batch, int]] = []


@dataclass(frozen=True)
class Watching(Ranker):
    """Finds every set better than the one before."""

    def open(self, run: RankRun) -> Score:
        def score(syn: Batch, step: int) -> Tensor:
            SEEN.append((replace(syn, images=syn.images.clone()), step))
            return torch.tensor(float(-len(SEEN)))

        return score


WATCHING = Given.of("rankers", Watching(), "watching")


def test_another_ranker_sees_the_whole_set(run: DistillRun) -> None:
    for loss in (Some(), Pull()):
        SEEN.clear()
        loop = start(plan_of(loss=loss, rank_steps=WATCHING), run)
        wanted = loop.images(loop.state)
        loop.one_step()
        ((syn, step),) = SEEN
        assert torch.equal(syn.images, wanted)
        assert [len(part) for part in (syn.images, syn.labels, syn.classes)] == [6, 6, 6]
        assert step == 0
        assert not syn.leaves


def test_ranking_decodes_nothing_that_the_step_has_decoded(run: DistillRun, monkeypatch: pytest.MonkeyPatch) -> None:
    """But for the iterate after the last update, and, in each stage, the winner that a stage ranker is shown."""
    decoded: list[int] = []
    decode = Pixel.decode
    monkeypatch.setattr(Pixel, "decode", lambda self, *given: decoded.append(len(given[1])) or decode(self, *given))

    def images_decoded(**changes: Any) -> int:
        decoded.clear()
        made_by(toy_plan(DistributionMatching(4), Pixel(), **({"steps": 5} | changes)), run)
        return sum(decoded)

    plain = images_decoded()
    assert images_decoded(rank_steps="loss") == plain + 6
    assert images_decoded(rank_steps=WATCHING) == plain + 6
    assert images_decoded(rank_steps=WATCHING, rank_stages=WATCHING) == plain + 12
    assert images_decoded(rank_steps=WATCHING, chunk=2) == images_decoded(chunk=2) + 6


def test_the_seconds_of_ranking_stand_apart(run: DistillRun, monkeypatch: pytest.MonkeyPatch) -> None:
    """Opening a ranker, scoring steps, what the last iterate takes, and scoring stages: nothing else."""
    phases: list[str] = []
    watch = Stopwatch(run.device)
    opened, offer, images = Watching.open, StageBest.offer, Distillation.images
    monkeypatch.setattr(Watching, "open", lambda self, run: phases.append(watch.running[-1]) or opened(self, run))
    monkeypatch.setattr(StageBest, "offer", lambda self, *given: phases.append(watch.running[-1]) or offer(self, *given))
    plan = plan_of(Sum(2), steps=2, rank_steps=WATCHING, rank_stages=WATCHING)
    distill(plan, run, watch)
    assert phases == ["rank"] * (1 + 2 * 3)
    phases.clear()
    monkeypatch.setattr(Distillation, "images", lambda self, *given: phases.append(watch.running[-1]) or images(self, *given))
    distill(plan_of(Sum(2), steps=2, rank_steps="loss"), run, watch)
    # offers; images of the last iterates; pictures of the stages; the result
    assert phases == [*["rank"] * 4, "rank", *["rank"] * 3, *["aside"] * 2, "distill"]


@pytest.mark.parametrize(
    "chosen",
    [[0, 0], [6], [-1], [], [[0, 1]], [0.0, 1.0], [True, False], list(range(7))],
    ids=["twice", "outside", "below", "none", "table", "floats", "mask", "too many"],
)
def test_what_is_no_choice_of_images_is_a_sentence(run: DistillRun, chosen: Any) -> None:
    loss = Some(chosen=lambda step: torch.tensor(chosen))
    with pytest.raises(PluginError, match=r"^loss Some: `picks` must give int64 \[B\] on the CPU, each of 0\.\.5 at most once"):
        start(plan_of(loss=loss), run).one_step()


# ---------------------------------------------------------------- updates


@pytest.mark.parametrize("chunk", [1, 4, 100])
@pytest.mark.parametrize("momentum", [0.0, 0.7])
def test_updates_by_hand(run: DistillRun, chunk: int, momentum: float) -> None:
    loop = start(plan_of(chunk=chunk, momentum=momentum), run)
    first = Sum().init(run)
    a, b, shift = first.params["a"], first.params["b"], torch.tensor([4.0])
    speeds = [torch.zeros_like(tensor) for tensor in (a, b, shift)]
    for _ in range(4):
        loop.one_step()
        pull = a + 2 * b + first.fixed["c"] - 1
        speeds = [momentum * speed + grad for speed, grad in zip(speeds, (pull, 2 * pull, shift), strict=True)]
        a, b, shift = (
            tensor - RATES[name] * speed for name, tensor, speed in zip(("a", "b", "shift"), (a, b, shift), speeds, strict=True)
        )
    torch.testing.assert_close(values(loop.state), {"b": b, "a": a})
    torch.testing.assert_close(loop.memory["shift"].detach(), shift)
    assert loop.memory["steps"] == 4


def test_a_rate_of_zero_keeps_its_tensor(run: DistillRun) -> None:
    loop = start(plan_of(rates=RATES | {"a": 0.0}), run)
    before = values(loop.state)
    loop.one_step()
    assert torch.equal(loop.state.params["a"], before["a"])
    assert not torch.equal(loop.state.params["b"], before["b"])


def test_a_tensor_without_a_rate_is_a_sentence(run: DistillRun) -> None:
    with pytest.raises(PluginError, match="toy loss / toy space: there is no rate for the tensors b, shift"):
        start(plan_of(rates={"a": 1.0}), run)


def test_decode_leaf_pulls_any_gradient_back(run: DistillRun) -> None:
    state, index = Sum().init(run).clone(), torch.arange(6)
    wanted = torch.randn(6, 3, 8, 8, generator=run.rng("g"))
    for chunk in (1, 4, 6):
        for tensor in state.params.values():
            tensor.grad = None
        leaf, pull_back = decode_leaf(Sum(), state, index, run, chunk)
        assert leaf.is_leaf
        assert leaf.requires_grad
        leaf.grad = wanted
        pull_back()
        assert torch.equal(state.params["a"].grad, wanted)
        assert torch.equal(state.params["b"].grad, 2 * wanted)


def test_every_stage_has_an_optimiser_without_a_past(run: DistillRun) -> None:
    loop = start(plan_of(Sum(2), steps=2, momentum=0.9), run)
    for _ in range(2):
        loop.one_step()
    loop.leave_stage()
    whole, shift = values(loop.state)["whole"], loop.memory["shift"].detach().clone()
    loop.one_step()
    pull = whole + loop.state.fixed["c"] - 1
    torch.testing.assert_close(loop.state.params["whole"].detach(), whole - 0.05 * pull)
    torch.testing.assert_close(loop.memory["shift"].detach(), shift - 0.3 * shift)


def test_steps_are_counted_over_all_stages(run: DistillRun) -> None:
    seen: list[int] = []
    loss = Pull(towards=lambda step: float(seen.append(step) or 1))
    made = made_by(plan_of(Sum(3), loss, steps=3), run)
    assert seen == list(range(9))
    assert made.steps == 9
    assert [stage["chosen_step"] for stage in made.stages] == [3, 6, 9]


def test_no_steps_at_all(run: DistillRun) -> None:
    made = made_by(plan_of(steps=0), run)
    state = Sum().init(run)
    torch.testing.assert_close(made.images, Sum().decode(state, torch.arange(6), run))
    assert made.steps == 0
    assert torch.equal(made.labels, F.one_hot(made.classes, 3).float())


def test_bytes_are_those_of_the_stored_tensors(run: DistillRun) -> None:
    made = made_by(plan_of(), run)
    assert made.stored.num_bytes == 3 * 6 * 3 * 8 * 8 * 4  # a, b and c
    assert made.bytes_images == 6 * 3 * 8 * 8 * 4
    assert made.stages[0]["tensors"] == {"a": [6, 3, 8, 8], "b": [6, 3, 8, 8]}


def test_learned_tensors_of_the_loss_are_in_the_result(run: DistillRun) -> None:
    assert made_by(plan_of(steps=2), run).learned == {"shift": [pytest.approx(4 * 0.7**2)]}


# ---------------------------------------------------------------- what a space adds


@dataclass(frozen=True)
class Clamped(Sum):
    def project_(self, state: State, run: Run) -> None:
        state.params["a"].clamp_(-0.5, 0.5)

    def penalty(self, state: State, memory: Memory, run: Run) -> Tensor | None:
        return 3 * state.params["b"].square().sum() / 2


def test_projection_after_every_step_and_penalty_in_every_gradient(run: DistillRun) -> None:
    loop = start(plan_of(Clamped()), run)
    first = values(loop.state)
    loop.one_step()
    pull = first["a"] + 2 * first["b"] + loop.state.fixed["c"] - 1
    torch.testing.assert_close(loop.state.params["a"].detach(), (first["a"] - 0.1 * pull).clamp(-0.5, 0.5))
    torch.testing.assert_close(loop.state.params["b"].detach(), first["b"] - 0.02 * (2 * pull + 3 * first["b"]))
    assert loop.state.params["a"].is_leaf


def test_the_penalty_counts_for_the_loss_ranker(run: DistillRun) -> None:
    loop = start(plan_of(Clamped(), rank_steps="loss"), run)
    first = values(loop.state)
    loop.one_step()
    pull = first["a"] + 2 * first["b"] + loop.state.fixed["c"] - 1
    wanted = pull.square().sum() / 2 + 8 - 2 + 1.5 * first["b"].square().sum()
    torch.testing.assert_close(loop.best.score, wanted)


# ---------------------------------------------------------------- what goes wrong


@pytest.mark.parametrize("bad_step", [0, 2, 3])
def test_a_loss_that_is_no_number_is_a_sentence(run: DistillRun, bad_step: int) -> None:
    with pytest.raises(PluginError, match=rf"the loss was NaN or infinite at step {bad_step}\. Lower its rates \(a = 0\.1, "):
        made_by(plan_of(loss=Pull(bad_step=bad_step)), run)


def test_it_stops_within_fifty_steps_of_a_bad_one(run: DistillRun) -> None:
    seen: list[int] = []
    loss = Pull(bad_step=3, towards=lambda step: float(seen.append(step) or 1))
    with pytest.raises(PluginError, match="at step 3"):
        made_by(plan_of(loss=loss, steps=500), run)
    assert len(seen) == 50


def test_a_broken_set_is_never_put_away(run: DistillRun) -> None:
    loop = start(plan_of(loss=Pull(bad_step=0)), run)
    loop.one_step()
    with pytest.raises(PluginError, match="at step 0"):
        loop.put_away()


def test_a_loss_without_gradient_is_a_sentence(run: DistillRun) -> None:
    for chunk in (1, 100):
        with pytest.raises(PluginError, match="left no gradient on the images"):
            made_by(plan_of(loss=Pull(silent=True), chunk=chunk), run)


# ---------------------------------------------------------------- rankers


def iterates(plan: SetPlan, run: DistillRun) -> list[tuple[dict[str, Tensor], float]]:
    """Every iterate of the first stage with the loss it has, the last one too, without any ranker."""
    loop, found = start(replace_plan(plan, rank_steps="last"), run), []
    for step in range(plan.steps + 1):
        images = loop.images(loop.state).requires_grad_()
        memory = {name: tensor.detach().clone().requires_grad_(tensor.requires_grad) for name, tensor in loop.memory.items()}
        labels = loop.hard
        found.append((values(loop.state), float(loop.loss.backward(Batch(images, labels, loop.classes), memory, run.at(step)))))
        if step < plan.steps:
            loop.one_step()
    return found


WOBBLE = Pull(towards=lambda step: 3.0 * (-1) ** step + 0.1 * step)  # the best iterate is somewhere in between


@pytest.mark.parametrize("rank_every", [1, 2, 3])
@pytest.mark.parametrize(("loss", "space"), [(WOBBLE, Sum()), (DistributionMatching(4), Pixel()), (Pull(), Sum())])
def test_the_loss_ranker_picks_the_true_minimum(run: DistillRun, loss: Loss, space: Space, rank_every: int) -> None:
    plan = plan_of(space, loss, steps=7, rank_steps="loss", rank_every=rank_every, rates=RATES | {"pixels": 0.5})
    found = iterates(plan, run)
    candidates = [*range(0, 7, rank_every), 7]  # the last iterate always is one
    winner = min(candidates, key=lambda step: found[step][1])
    made = made_by(plan, run)
    assert made.stages[0]["chosen_step"] == winner
    assert made.stages[0]["step_score"] == pytest.approx(found[winner][1], rel=1e-5)
    state = State(found[winner][0], space.init(run).fixed)
    torch.testing.assert_close(made.images, space.decode(state, torch.arange(6), run))


def test_candidates_are_counted_from_the_start_of_each_stage(run: DistillRun) -> None:
    loop, offered = start(plan_of(Sum(2), steps=3, rank_steps="loss", rank_every=2), run), []
    loop.step_score = lambda syn, step: torch.tensor(float(offered.append(loop.step) or 0))
    for _ in range(2):
        for _ in range(3):
            loop.one_step()
        loop.leave_stage()
    assert offered == [0, 2, 3, 3, 5, 6]


def test_the_last_iterate_wins_where_every_step_helps(run: DistillRun) -> None:
    assert made_by(plan_of(rank_steps="loss"), run).stages[0]["chosen_step"] == 4


def test_ranking_changes_no_number_of_the_walk(run: DistillRun) -> None:
    loss = GradientMatching(4, outer_loop=3)  # keeps a network in memory
    plan = plan_of(Pixel(), loss, steps=4, rates={"pixels": 0.1})
    loops = [start(replace_plan(plan, rank_steps=ranker), run) for ranker in ("last", "loss")]
    for loop in loops:
        for _ in range(4):
            loop.one_step()
        before = {name: tensor.clone() for name, tensor in loop.memory.items()}
        loop.leave_stage()
        assert before
        assert all(torch.equal(before[name], loop.memory[name]) for name in before)
    assert torch.equal(loops[0].state.params["pixels"], loops[1].state.params["pixels"])


def test_candidates_are_copies(run: DistillRun) -> None:
    """The latents of step i differ from those of step j, and a winner is what it was when it was offered."""
    found = iterates(plan_of(steps=5), run)
    for number, (params, _) in enumerate(found):
        for other, _ in found[number + 1 :]:
            assert not torch.equal(params["a"], other["a"])
    loop = start(plan_of(loss=Pull(towards=lambda step: 1.0 if step == 0 else 1e3), rank_steps="loss", steps=3), run)
    first = values(loop.state)
    for _ in range(3):
        loop.one_step()
    assert torch.equal(loop.best.params["a"], first["a"])
    assert not torch.equal(loop.state.params["a"], first["a"])
    loop.leave_stage()
    assert torch.equal(loop.stages[0].state.params["a"], first["a"])


def ranked_plan(run: DistillRun, space: Space, **changes: Any) -> tuple[SetPlan, DistillRun]:
    """H-PD's rankers on DM, with the proxy trained."""
    rates = {"f": 0.5, "w": 0.05, "pixels": 0.5, "labels": 0.5}
    settings = {"rates": rates, "steps": 3, "rank_steps": "feature-distance", "rank_stages": "validation", "momentum": 0.5}
    plan = toy_plan(DistributionMatching(4), space, **(settings | changes))
    (need,) = needs(plan)
    return plan, replace(run, resources={need: need.build(run)})


def test_the_feature_distance_ranker_picks_the_true_minimum(run: DistillRun) -> None:
    plan, run = ranked_plan(run, glad(2), steps=6, rank_stages="last")
    network = run.build(plan.proxy, "proxy").eval().requires_grad_(False)
    network.load_state_dict(next(iter(run.resources.values())))
    score, space = feature_distance(network, run), glad(2)
    scores = []
    for params, _ in iterates(plan, run):
        images = space.decode(State(params), torch.arange(6), run)
        scores.append(float(score(images_of(images, torch.arange(3).repeat_interleave(2)), 0)))
    made = made_by(plan, run)
    assert made.stages[0]["chosen_step"] == scores.index(min(scores))
    assert made.stages[0]["step_score"] == pytest.approx(min(scores), rel=1e-4)
    assert len(set(scores)) == 7


def test_every_stage_starts_from_the_winner_of_the_one_before(run: DistillRun) -> None:
    plan, run = ranked_plan(run, hpd(first=1, step=2, samples=4))
    loop = start(plan, run)
    for stage in range(loop.num_stages):
        for _ in range(3):
            loop.one_step()
        loop.leave_stage()
        winner = loop.stages[stage].state
        if stage + 1 < loop.num_stages:
            with torch.no_grad():
                before = loop.space.decode(winner, loop.index, run)
            torch.testing.assert_close(loop.images(loop.state), before)
            assert loop.state.stage == stage + 1
    assert loop.num_stages == 3
    assert set(loop.state.params) == {"pixels"}


def test_stages_may_have_steps_of_their_own(run: DistillRun) -> None:
    space = hpd(first=1, step=2, samples=4)
    plan, run = ranked_plan(run, space, steps=2)
    alike = made_by(plan, run)
    assert torch.equal(made_by(replace_plan(plan, stage_steps=(2, 2, 2)), run).images, alike.images)
    made = made_by(replace_plan(plan, stage_steps=(2, 1, 3)), run)
    assert made.steps == 6
    assert made.stages[0] == alike.stages[0]
    assert all(stage["chosen_step"] <= end for stage, end in zip(made.stages, (2, 3, 6), strict=True))
    assert made.stages[1] != alike.stages[1]
    with pytest.raises(ConfigError, match="'stage_steps' gives the steps of 2 stages, and there are 3"):
        made_by(replace_plan(plan, stage_steps=(2, 1)), run)


def test_the_best_stage_is_that_of_the_smallest_validation_error(run: DistillRun) -> None:
    plan, run = ranked_plan(run, hpd(first=1, step=2, samples=4), rank_epochs=20)
    made = made_by(plan, run)
    scores = [stage["stage_score"] for stage in made.stages]
    assert made.chosen_stage == scores.index(min(scores))
    error = validation_error(plan, run)(Batch(made.images, made.labels, made.classes), 0)
    assert float(error) == pytest.approx(min(scores))


@pytest.mark.parametrize(("scores", "winner"), [([3, 1, 2], 1), ([2, 1, 1], 1), ([1, 1, 1], 0)])
def test_the_earliest_of_equal_stages_wins(run: DistillRun, scores: list[float], winner: int) -> None:
    loop, answers = start(plan_of(Sum(3), steps=1), run), iter(scores)
    loop.stage_score = lambda syn, step: torch.tensor(float(next(answers)))
    for _ in range(3):
        loop.one_step()
        loop.leave_stage()
    made = loop.result()
    assert made.chosen_stage == winner
    torch.testing.assert_close(made.images, loop.images(loop.stages[winner].state))


def test_without_a_stage_ranker_the_last_stage_is_the_result(run: DistillRun) -> None:
    assert made_by(plan_of(Sum(3)), run).chosen_stage == 2


# ---------------------------------------------------------------- labels


def test_learned_labels_start_near_the_hard_ones() -> None:
    hard = F.one_hot(torch.arange(4), 4).float()
    probabilities = starting_labels(hard).softmax(1)
    torch.testing.assert_close(probabilities, 0.9 * hard + 0.1 / 4)


def test_learned_labels_get_gradients_and_stay_probabilities(run: DistillRun) -> None:
    loop = start(plan_of(labels="learned"), run)
    logits = values(loop.state)["labels"]
    loop.one_step()
    probabilities = logits.softmax(1)  # the loss is - sum_i p_i0: its gradient by the logits, by hand
    grad = -probabilities[:, :1] * (F.one_hot(torch.zeros(6, dtype=torch.int64), 3) - probabilities)
    torch.testing.assert_close(loop.state.params["labels"].detach(), logits - 0.5 * grad)
    made = made_by(plan_of(labels="learned", steps=30), run)
    torch.testing.assert_close(made.labels.sum(1), torch.ones(6))
    assert (made.labels > 0).all()
    assert (made.labels[:, 0] > probabilities[:, 0]).all()
    assert not made.labels.requires_grad


def test_learned_labels_go_on_through_the_stages(run: DistillRun) -> None:
    loop = start(plan_of(Sum(2), labels="learned", steps=2), run)
    for _ in range(2):
        loop.one_step()
    learned = values(loop.state)["labels"]
    loop.leave_stage()
    assert torch.equal(loop.state.params["labels"], learned)


def test_dc_learns_labels(run: DistillRun) -> None:
    made = made_by(plan_of(Pixel(), GradientMatching(4), rates={"pixels": 0.1, "labels": 5.0}, labels="learned"), run)
    start_from = starting_labels(F.one_hot(made.classes, 3).float()).softmax(1)
    assert not torch.allclose(made.labels, start_from, atol=1e-5)


# ---------------------------------------------------------------- steps shared out, generators that overflow


def test_stages_have_the_steps_that_were_shared_out(run: DistillRun) -> None:
    """Rates fall over each stage's own length, candidates are counted from its beginning."""
    plan = plan_of(Sum(3), rank_steps="loss", rank_every=2, schedule="cosine").with_total_steps(8, 3)
    assert (plan.steps, plan.extra_steps) == (2, 2)
    loop, ticks, lengths, rates = start(plan, run), [], [], []
    while len(loop.stages) < 3:
        before = loop.step
        while loop.step < plan.stage_start(len(loop.stages) + 1):
            loop.one_step()
            rates.append(loop.optimizer.param_groups[-1]["lr"] / RATES["shift"])
        lengths.append(loop.step - before)
        loop.leave_stage()
    assert lengths == [3, 3, 2]
    assert rates == pytest.approx([1, 0.75, 0.25, 1, 0.75, 0.25, 1, 0.5])
    made = distill(plan, run, Stopwatch(run.device), tick=lambda done, total: ticks.append((done, total)))
    assert ticks == [(step, 8) for step in range(1, 9)]
    assert made.steps == 8
    assert [step for step, _ in made.timeline] == list(range(8))
    same = made_by(plan_of(Sum(3), rank_steps="loss", rank_every=2, schedule="cosine", steps=3), run)
    assert same.steps == 9
    assert made_by(plan_of(Sum(3)).with_total_steps(12, 3), run).images.equal(made_by(plan_of(Sum(3)), run).images)


class Overflowing(ToyGenerator):
    """Its last layers overflow."""

    def synthesize(self, w: Tensor, hidden: Tensor | None, start: int, stop: int) -> Tensor:
        made = super().synthesize(w, hidden, start, stop)
        return made if stop < self.depth else torch.where(made > made.mean(), torch.inf, made)


@pytest.mark.parametrize(("space", "step"), [(glad(2), 0), (w_plus(), 0), (hpd(), 0), (Pixel("generator"), 0)])
def test_a_generator_that_overflows_is_told_before_a_step(space: Space, step: int, run: DistillRun) -> None:
    run = replace(run, loaded=Overflowing(run.spec, 5))
    plan = plan_of(space, DistributionMatching(batch_real=2), rates=dict.fromkeys(("w", "f", "pixels"), 0.1))
    plan = replace_plan(plan, generator=plan.space)  # any: it is loaded already
    ticks: list[int] = []
    with pytest.raises(PluginError) as caught:
        distill(plan, run, Stopwatch(run.device), tick=lambda done, total: ticks.append(done))
    assert "values of the generator's images are NaN or infinite before step 0: half precision overflows" in str(caught.value)
    assert ticks == []


@pytest.mark.parametrize("space", [glad(2), glad(2, repeat=2), Pixel("generator-average", repeat=2)])
def test_spaces_of_one_layer_can_be_ranked_as_a_walk_is(space: Space, run: DistillRun) -> None:
    rates = dict.fromkeys(("w", "f", "pixels"), 0.1)
    rankers = {"rank_steps": "feature-distance", "rank_stages": "validation"}
    plan = plan_of(space, DistributionMatching(batch_real=2), rates=rates, steps=3, **rankers)
    need = needs(plan)[0]
    made = made_by(plan, replace(run, resources={need: need.build(run)}))
    assert len(made.stages) == space.num_stages(run)
    assert all(stage["step_score"] is not None and stage["stage_score"] is not None for stage in made.stages)
    scores = [stage["stage_score"] for stage in made.stages]
    assert made.chosen_stage == scores.index(min(scores))


# ---------------------------------------------------------------- checkpoints


class Interrupted(Exception):
    pass


class FileKeeper:
    """Saves once, at a step of its own, and then dies; or only loads."""

    def __init__(self, path: Path, at: int | None) -> None:
        self.path, self.at, self.asked = path, at, 0

    def load(self) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        return read_tensors(self.path, "checkpoint") if self.path.exists() else None

    def due(self) -> bool:
        self.asked += 1
        return self.asked - 1 == self.at

    def save(self, tensors: dict[str, Tensor], meta: dict[str, Any]) -> None:
        self.path.write_bytes(tensors_to_bytes(tensors, meta))
        raise Interrupted


def scenarios(run: DistillRun) -> dict[str, tuple[SetPlan, DistillRun]]:
    dc = GradientMatching(4, "dsa", outer_loop=3, inner_loop=1)
    rates = {"pixels": 0.1, "f": 0.1, "w": 0.01, "labels": 1.0}
    pull = {"momentum": 0.6, "steps": 3}
    return {
        "pixel-dm": (toy_plan(DistributionMatching(4), Pixel(), rates=rates, steps=4, momentum=0.5), run),
        "pixel-dc-outer-loop": (toy_plan(dc, Pixel(), rates=rates, steps=5, momentum=0.5), run),
        "glad-dc-learned-labels": (toy_plan(dc, glad(2), rates=rates, steps=4, momentum=0.5, labels="learned", chunk=4), run),
        "glad-ranked-by-loss": (toy_plan(dc, glad(2), rates=rates, steps=4, rank_steps="loss", rank_every=2), run),
        "hpd-ranked": ranked_plan(run, hpd(first=1, step=2, samples=4)),
        "hpd-ranked-learned-labels": ranked_plan(run, hpd(first=3, step=1, samples=4), labels="learned", steps=2),
        "shared-fixed-tensors-and-a-learned-rate": (plan_of(Sum(3), WOBBLE, rank_steps="loss", **pull), run),
        "no-momentum": (plan_of(Sum(2), steps=2), run),
    }


@pytest.mark.slow
@pytest.mark.parametrize("scenario", list(scenarios(toy_run(channels=3, depth=5))))
def test_going_on_from_a_checkpoint_at_any_step_is_bit_equal(run: DistillRun, scenario: str, tmp_path: Path) -> None:
    plan, run = scenarios(run)[scenario]
    run = prepared(plan.space.make(), run)
    counting = FileKeeper(tmp_path / "never", None)
    whole = made_by(plan, run, counting)
    chances = counting.asked  # every step but the last of a stage, and every change of stage
    stages = plan.space.make().num_stages(run)
    assert chances == stages * (plan.steps - 1) + stages - 1
    for at in range(chances):
        path = tmp_path / f"{at}.safetensors"
        with pytest.raises(Interrupted):
            made_by(plan, run, FileKeeper(path, at))
        again = made_by(plan, run, FileKeeper(path, None))
        assert torch.equal(again.images, whole.images), f"other images after an interruption at {at}"
        assert torch.equal(again.labels, whole.labels)
        assert (again.stages, again.chosen_stage, again.learned) == (whole.stages, whole.chosen_stage, whole.learned)
        assert (again.steps, again.stored) == (whole.steps, whole.stored)
        assert again.losses.kept == whole.losses.kept
        assert torch.equal(again.walk, whole.walk) if whole.walk is not None else again.walk is None


def test_an_interruption_of_an_interruption(run: DistillRun, tmp_path: Path) -> None:
    plan, run = scenarios(run)["hpd-ranked"]
    path, interruptions = tmp_path / "checkpoint", 0
    whole = made_by(plan, run)
    while True:
        try:
            again = made_by(plan, run, FileKeeper(path, 0))  # dies after its first step, again and again
            break
        except Interrupted:
            interruptions += 1
    assert interruptions == 8
    assert torch.equal(again.images, whole.images)
    assert again.stages == whole.stages


def test_a_checkpoint_does_not_change_with_the_loop(run: DistillRun) -> None:
    loop = start(plan_of(momentum=0.5, rank_steps="loss"), run)
    loop.one_step()
    tensors, _ = loop.put_away()
    before = {name: tensor.clone() for name, tensor in tensors.items()}
    loop.one_step()
    assert all(torch.equal(tensors[name], before[name]) for name in before)


def test_seconds_add_up_over_processes(run: DistillRun) -> None:
    loop = start(plan_of(), run)
    loop.one_step()
    tensors, meta = loop.put_away()
    watch = Stopwatch(run.device)
    Distillation(plan_of(), run, watch).take_up(tensors, meta | {"seconds": {"distill": 100.0}})
    assert watch.seconds()["distill"] == 100


def test_tick_is_called_every_step(run: DistillRun) -> None:
    ticks: list[tuple[int, int]] = []
    distill(plan_of(Sum(2), steps=2), run, Stopwatch(run.device), tick=lambda done, total: ticks.append((done, total)))
    assert ticks == [(1, 4), (2, 4), (3, 4), (4, 4)]
