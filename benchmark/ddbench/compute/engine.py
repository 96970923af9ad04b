"""distill(): the one distillation loop; long because all of its state is begun, put away and taken up again in one class.

Every method is a plan for it, none is a script of its own.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from dataclasses import replace
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from ddbench.api import Batch, Loss, Memory, Score, Space, State
from ddbench.compute.clock import Stopwatch
from ddbench.compute.decoding import decode_leaf, picked_index
from ddbench.compute.distilled import DistilledSet, Stage, Stored, bytes_of, state_from, state_tensors, under
from ddbench.compute.picture import WALK_COLUMNS, stages_shown
from ddbench.compute.rank import StageBest, scores
from ddbench.compute.run import DistillRun
from ddbench.compute.trace import LossTrace
from ddbench.errors import ConfigError, DivergedError, PluginError
from ddbench.plan import SetPlan
from ddbench.refs import require

LOOK_EVERY = 50  # steps between two looks at whether the loss is still finite; each look waits for the device
ADAM_BETAS = (0.5, 0.9)  # of SRe2L
RELABEL_BATCH = 256  # images that a teacher labels at once
POINTS = 100  # of the timeline, at least where there are as many steps; each waits for the device
COUNTED = ("distill", "rank")  # the phases whose seconds count
SMOOTHING = 0.1  # of the hard labels that learned ones start from


class Keeper(Protocol):
    """Where checkpoints go. `due` and `save` are called between steps."""

    def load(self) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """The newest checkpoint, or None."""
        ...

    def due(self) -> bool:
        """Whether it is time for another."""
        ...

    def save(self, tensors: dict[str, Tensor], meta: dict[str, Any]) -> None:
        """Replace the checkpoint."""
        ...


def starting_labels(hard: Tensor) -> Tensor:
    """[N,K] logits that learned labels start from: the logarithm of the smoothed hard ones."""
    return ((1 - SMOOTHING) * hard + SMOOTHING / hard.shape[1]).log()


class Distillation:
    """The loop's whole state, so that it can be put away and taken up again at any step with the same numbers after it."""

    def __init__(self, plan: SetPlan, run: DistillRun, watch: Stopwatch) -> None:
        self.plan, self.run, self.watch = plan, run, watch
        self.space: Space = require(plan.space, "space").make()
        self.loss: Loss = require(plan.loss, "loss").make()
        self.num_stages = self.space.num_stages(run)
        if sentence := plan.fit_of_stages(self.num_stages):
            raise ConfigError(f"{plan.method}: {sentence}")
        self.total_steps = plan.stage_start(self.num_stages)
        self.step_score, self.stage_score = self._scores()
        self.losses = LossTrace(self.total_steps)
        self.stages: list[Stage] = []
        self.timeline: list[tuple[int, float]] = []
        self.step = 0

    def _scores(self) -> tuple[Score | None, Score | None]:
        """Of steps and of stages; where nothing ranks, ranking takes no time."""
        if not self.plan.rankers:
            return None, None
        with self.watch.phase("rank"):
            return scores(self.plan, self.run)

    def begin(self) -> None:
        """Step 0."""
        self.loss.check(self.space.num_images(self.run), self.run)
        self.memory: Memory = self.loss.init(self.run)
        self.space_memory: Memory = self.space.init_memory(self.run)
        self._enter(self.space.init(self.run))
        self._check_bytes(Stored.of(self.space, self.state, self.run))
        self._look_at_images()

    def _look_at_images(self) -> None:
        """Stop where a generator cannot show what a stage begins with."""
        if self.plan.generator is None:
            return
        images = self.images(self.state)
        bad = int((~images.isfinite()).sum())
        if bad:
            what = f"{bad} of {images.numel()} values of the generator's images are NaN or infinite before step {self.step}"
            raise PluginError(
                f"{self.plan.name}: {what}: half precision overflows beyond 65,504. Let the generator compute in float32, or "
                "start from another layer or seed."
            )

    def _check_bytes(self, stored: Stored) -> None:
        """Stop where a space stores more than the budget allows."""
        spec = self.run.spec
        whole, delivered = bytes_of(spec.num_classes * self.run.ipc, spec), stored.delivered(len(self.classes), spec)
        if self.run.budget == "bytes" and delivered > whole:
            told = f"its set takes {delivered:,} bytes, and ipc {self.run.ipc} in bytes allows {whole:,}"
            raise PluginError(f"{self.plan.name}: {told}. The space must heed run.budget in num_images.")

    def _enter(self, state: State) -> None:
        """Make a stage's tensors leaves, with learned labels among them, and give them an optimiser without a past."""
        self._number(state)
        params = dict(state.params)
        if self.plan.labels == "learned":
            params["labels"] = self.stages[-1].state.params["labels"] if self.stages else starting_labels(self.hard)
        leaves = {name: tensor.detach().clone().requires_grad_() for name, tensor in params.items()}
        self.state, self.best = State(leaves, state.fixed, state.stage), StageBest()
        self._new_optimizer()

    def _number(self, state: State) -> None:
        """The classes, indices and hard labels of a state's images."""
        self.classes = self.space.classes(state, self.run)
        self.index = torch.arange(len(self.classes), device=self.run.device)
        self.hard = F.one_hot(self.classes, self.run.spec.num_classes).float()

    def _new_optimizer(self) -> None:
        tensors = self.state.params | self.loss.params(self.memory)
        missing = sorted(tensors.keys() - self.plan.rates.keys())
        if missing:
            raise PluginError(
                f"{self.plan.method}: there is no rate for the tensors {', '.join(missing)}. The plugin must name them in its "
                "`tensors` or `learned`, and the suite give them rates."
            )
        self.optimized = tuple(tensors)  # names, in the optimiser's order
        groups = [{"params": [tensor], "lr": self.plan.rates[name]} for name, tensor in tensors.items()]
        self.optimizer: torch.optim.Optimizer = torch.optim.SGD(groups, momentum=self.plan.momentum)
        if self.plan.optimizer == "adam":
            self.optimizer = torch.optim.Adam(groups, betas=ADAM_BETAS)

    def _set_rates(self) -> None:
        """By the schedule: a rate times (1 + cos(pi t / steps)) / 2 at step t of the stage."""
        if self.plan.schedule == "cosine":
            start, end = (self.plan.stage_start(self.state.stage + one) for one in (0, 1))
            share = (self.step - start) / (end - start)
            for name, group in zip(self.optimized, self.optimizer.param_groups, strict=True):
                group["lr"] = self.plan.rates[name] * 0.5 * (1 + math.cos(math.pi * share))

    def labels(self, state: State, images: Tensor, finished: bool = False, index: Tensor | None = None) -> Tensor:
        """[B,K] probabilities for the images of a state, all or those of an index; some teachers label finished sets only."""
        if self.plan.labels == "learned":
            logits = state.params["labels"]
            return (logits if index is None else logits[index]).softmax(1)
        if self.plan.labels == "teacher" and (finished or self.loss.relabels == "always"):
            with torch.no_grad():
                parts = images.detach().split(RELABEL_BATCH)
                return torch.cat([self.loss.relabel(part, self.memory, self.run.at(self.step)) for part in parts])
        return self.hard if index is None else self.hard[index]

    def _batch(self, images: Tensor, labels: Tensor, index: Tensor | None) -> Batch:
        """What the loss is given: all images, or those of an index."""
        classes = self.classes if index is None else self.classes[index]
        return Batch(images, labels, classes, None if index is None else len(self.index))

    def one_step(self) -> None:
        """Decode, match, pull back, update; rank the iterate before the update."""
        now = self.run.at(self.step)
        picked = picked_index(self.loss, len(self.index), now)
        index = self.index if picked is None else picked
        leaf, pull_back = decode_leaf(self.space, self.state, index, now, self.plan.chunk)
        labels = self.labels(self.state, leaf, index=picked)
        label_leaf = labels.detach().requires_grad_(self.plan.labels == "learned")
        self.optimizer.zero_grad()
        value = self.loss.backward(self._batch(leaf, label_leaf, picked), self.memory, now)
        if leaf.grad is None:
            raise PluginError(f"{self.plan.method}: the loss left no gradient on the images: backward must add to syn.leaves.")
        penalty = self.space.penalty(self.state, self.space_memory, now)
        if penalty is not None:
            penalty.backward()
            value = value + penalty.detach()
        self.losses.note(self.step, value)
        if self.plan.rank_steps != "last" and (self.step - self.plan.stage_start(self.state.stage)) % self.plan.rank_every == 0:
            self._offer(value, leaf if picked is None else None)
        pull_back()
        if label_leaf.grad is not None:
            labels.backward(label_leaf.grad)
        self._set_rates()
        self.optimizer.step()
        with torch.no_grad():
            self.space.project_(self.state, now)
        self.space.after_step(self.state, self.space_memory, now)
        self.step += 1

    def _offer(self, value: Tensor, images: Tensor | None) -> None:
        """Make the iterate a candidate, by the step ranker's score of the whole set, or by the loss where that is the ranker;
        without images the set is decoded for the former."""
        with self.watch.phase("rank"):
            score = value
            if self.step_score:
                images = self.images(self.state) if images is None else images
                score = self.step_score(Batch(images, self.labels(self.state, images), self.classes), self.step)
            self.best.offer(self.state, score, self.step)

    def _offer_last(self) -> None:
        """The iterate after the last update, whose loss no step has computed: here it is, on a copy of the memory."""
        value = torch.tensor(torch.inf, device=self.run.device)
        if self.step_score is None:
            now = self.run.at(self.step)
            picked = picked_index(self.loss, len(self.index), now)
            images = self.images(self.state, picked)
            memory = {name: tensor.detach().clone().requires_grad_(tensor.requires_grad) for name, tensor in self.memory.items()}
            labels = self.labels(self.state, images, index=picked).detach()
            value = self.loss.backward(self._batch(images.requires_grad_(), labels, picked), memory, now)
            penalty = self.space.penalty(self.state, self.space_memory, now)
            value = value if penalty is None else value + penalty.detach()
        self._offer(value, None)

    def aside(self) -> tuple[Tensor, Tensor, float | None]:
        """Images and labels of the iterate before this step, and the step ranker's score of it; the step's loss will be kept."""
        self.losses.asked.add(self.step)
        images, score = self.images(self.state), math.nan
        if self.step_score:
            score = float(self.step_score(Batch(images, self.labels(self.state, images), self.classes), self.step))
        return images, self.labels(self.state, images, finished=True).detach(), score if math.isfinite(score) else None

    def images(self, state: State, index: Tensor | None = None) -> Tensor:
        """The whole set, or the images of an index, decoded without a graph."""
        parts = (self.index if index is None else index).split(self.plan.chunk)
        with torch.no_grad():
            return torch.cat([self.space.decode(state, part, self.run.at(self.step)) for part in parts])

    def passes(self, seconds: Collection[float]) -> bool:
        """Note the time, where the step is one of the timeline's points; whether it passed one of these since the last point."""
        if self.step % max(1, self.total_steps // POINTS):
            return False
        before, now = self.timeline[-1][1] if self.timeline else -math.inf, self.watch.sum(*COUNTED)
        self.timeline.append((self.step, now))
        return any(before < wanted <= now for wanted in seconds)

    def look(self) -> None:
        """Fetch the losses since the last look, and stop where one is no number."""
        step = self.losses.fetch()
        if step is not None:
            rates = ", ".join(f"{name} = {rate:g}" for name, rate in self.plan.rates.items())
            raise DivergedError(
                f"{self.plan.name}: the loss was NaN or infinite at step {step}. Lower its rates ({rates}) in the suite."
            )

    def leave_stage(self) -> None:
        """Keep the stage's winner and go on from it, if there is another stage."""
        self.look()
        if self.plan.rank_steps != "last":
            with self.watch.phase("rank"):
                self._offer_last()
        ranked = bool(self.best.params)
        state = self.best.state(self.state) if ranked else self.state.clone()
        chosen = int(self.best.step) if ranked else self.step
        distance = float(self.best.score) if ranked else None
        score = None
        if self.stage_score:
            with self.watch.phase("rank"):
                images = self.images(state)
                score = float(self.stage_score(Batch(images, self.labels(state, images, True), self.classes), self.step))
        self.stages.append(Stage(state, chosen, distance, score, self._stage_name(len(self.stages))))
        if len(self.stages) < self.num_stages:
            with torch.no_grad():
                self._enter(replace(self.space.advance(state, self.run.at(self.step)), stage=len(self.stages)))
            self._look_at_images()

    def _stage_name(self, stage: int) -> str:
        return self.space.stage_name(stage, self.run) if self.num_stages > 1 else ""

    def _walk(self) -> Tensor | None:
        """One image of each class, of the first ones, from the stages that a picture shows: [S,K',C,H,W]; of a walk alone."""
        if self.num_stages == 1:
            return None
        shown = list[Tensor]()
        for number in stages_shown(self.num_stages):
            state = self.stages[number].state
            self._number(state)
            labels = torch.arange(min(self.run.spec.num_classes, WALK_COLUMNS), device=self.run.device)
            shown.append(self.images(state, torch.searchsorted(self.classes, labels)).float().cpu())
        return torch.stack(shown)

    def result(self) -> DistilledSet:
        """The best stage's set: the smallest score, the earliest of equals; the last stage where none was scored."""
        scored = [(stage.score, number) for number, stage in enumerate(self.stages) if stage.score is not None]
        chosen = min(scored)[1] if scored else len(self.stages) - 1
        with self.watch.phase("aside"):
            walk = self._walk()
        state = self.stages[chosen].state
        self._number(state)
        stored, images = Stored.of(self.space, state, self.run), self.images(state)
        self._check_bytes(stored)
        return DistilledSet(
            images.float().cpu(),
            self.labels(state, images, finished=True).detach().cpu(),
            self.classes.cpu(),
            self.step,
            stored,
            tuple(stage.to_json() for stage in self.stages),
            chosen,
            {name: tensor.detach().cpu().tolist() for name, tensor in self.loss.params(self.memory).items()},
            tuple(self.timeline),
            self.losses,
            walk,
        )

    def put_away(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Everything a later process needs to go on."""
        self.look()
        tensors = {f"memory.{name}": tensor for name, tensor in self.memory.items()}
        tensors |= {f"space.{name}": tensor for name, tensor in self.space_memory.items()}
        tensors |= {f"losses.{name}": tensor for name, tensor in self.losses.tensors().items()}
        tensors |= state_tensors("state", self.state) | {f"best.{name}": tensor for name, tensor in self.best.tensors().items()}
        for number, stage in enumerate(self.stages):
            tensors |= state_tensors(f"stage{number}", stage.state)
        for number, entry in self.optimizer.state_dict()["state"].items():
            own = f"optimizer.{self.optimized[number]}."
            tensors |= {own + name: value for name, value in entry.items() if isinstance(value, Tensor)}
        stages = [{"chosen_step": s.chosen_step, "distance": s.distance, "score": s.score} for s in self.stages]
        tensors = {name: tensor.detach().clone() for name, tensor in tensors.items()}  # stages may share what is fixed
        ranked = bool(self.best.params)
        meta = {"step": self.step, "stages": stages, "ranked": ranked, "seconds": self.watch.seconds()}
        return tensors, meta | {"timeline": self.timeline}

    def take_up(self, tensors: dict[str, Tensor], meta: dict[str, Any]) -> None:
        """Go on where a checkpoint ends."""
        tensors = {name: tensor.to(self.run.device) for name, tensor in tensors.items()}
        self.memory, self.space_memory = under("memory.", tensors), under("space.", tensors)
        self.losses.take_up(under("losses.", tensors))
        for name in self.loss.params(self.memory):
            self.memory[name].requires_grad_()
        self.stages = [
            Stage(state_from(f"stage{number}", number, tensors), **entry, name=self._stage_name(number))
            for number, entry in enumerate(meta["stages"])
        ]
        self._enter(state_from("state", len(self.stages), tensors))
        if self.plan.labels == "learned":
            self.state.params["labels"].data.copy_(tensors["state.params.labels"])
        if meta["ranked"]:
            self.best = StageBest.of_tensors(under("best.", tensors))
        entries: dict[int, dict[str, Tensor]] = {}
        for name, tensor in under("optimizer.", tensors).items():
            owner, _, key = name.rpartition(".")
            # Adam counts its steps on the host, and would ask a device for the number at every step.
            entries.setdefault(self.optimized.index(owner), {})[key] = tensor.cpu() if key == "step" else tensor
        self.optimizer.load_state_dict({"state": entries, "param_groups": self.optimizer.state_dict()["param_groups"]})
        self.step = meta["step"]
        self.timeline = [(step, seconds) for step, seconds in meta["timeline"]]
        self.watch.add(meta["seconds"])


def distill(
    plan: SetPlan, run: DistillRun, watch: Stopwatch, keeper: Keeper | None = None,
    tick: Callable[[int, int], None] | None = None, iterates: Collection[int] = (),
    put_aside: Callable[[int, Tensor, Tensor, float | None], None] | None = None, iterate_seconds: Collection[float] = (),
) -> DistilledSet:  # fmt: skip
    """Distil a plan's set. Goes on from the keeper's checkpoint if there is one; `tick(done, total)` is called there and
    after every step, `put_aside(step, images, labels, score)`, off the clock, before each of the steps `iterates` and before the
    first point of the timeline at which each of `iterate_seconds` has passed; `score` is the step ranker's, where one scores.

    Raises PluginError where the loss stops being a number, and whatever a plugin raises.
    """
    with watch.phase("distill"):
        loop = Distillation(plan, run, watch)
        if kept := keeper.load() if keeper else None:
            loop.take_up(*kept)
            if tick:
                tick(loop.step, loop.total_steps)
        else:
            loop.begin()
        while len(loop.stages) < loop.num_stages:
            end = plan.stage_start(len(loop.stages) + 1)
            while loop.step < end:
                passes = loop.passes(iterate_seconds)
                if put_aside and (passes or loop.step in iterates):
                    with watch.phase("aside"):
                        put_aside(loop.step, *loop.aside())
                loop.one_step()
                if loop.step % LOOK_EVERY == 0:
                    loop.look()
                if tick:
                    tick(loop.step, loop.total_steps)
                if keeper and loop.step < end and keeper.due():
                    keeper.save(*loop.put_away())
            loop.leave_stage()
            if keeper and len(loop.stages) < loop.num_stages and keeper.due():
                keeper.save(*loop.put_away())
        return loop.result()
