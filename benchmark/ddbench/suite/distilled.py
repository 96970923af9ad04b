"""Distilled sets of a grid: the plan of a place, checked before any step."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from dataclasses import replace as replace_place
from math import inf
from pathlib import Path
from typing import Any

from msgspec.structs import replace

from ddbench.api import Budget
from ddbench.errors import BenchError, ConfigError, DataError, PluginError, did_you_mean
from ddbench.plan import RANKS, SetPlan, in_plan
from ddbench.protocols import Protocol
from ddbench.refs import PluginRef
from ddbench.registry import REGISTRIES
from ddbench.suite.building import check_network
from ddbench.suite.findings import Findings
from ddbench.suite.generators import Generators
from ddbench.suite.iterates import Asked
from ddbench.suite.places import Places
from ddbench.suite.stages import PlanningRun, Unanswered, iterate_steps
from ddbench.suite.tuning import Tune
from ddbench.trials import Tuning


@dataclass(frozen=True)
class Common:
    """What all distilled sets of a suite share."""

    protocol: Protocol
    backbone: PluginRef
    threads: int
    asked: Asked  # of iterates
    data_root: Path | None  # the user's data folder
    generators: Generators
    tune: Tune | None = None  # None: rates stay as they are


@dataclass(frozen=True)
class Placed:
    """What there is at a place of the grid."""

    plan: SetPlan
    iterates: tuple[int, ...]  # the steps of those that the protocol and the suite ask for
    marks: tuple[str, ...]  # of the preset


class Distilled:
    """Makes the plans of distilled sets; those of one place differ in their seed alone, and are checked once."""

    def __init__(self, raw: Mapping[str, Any], places: Places, common: Common, findings: Findings) -> None:
        """`raw` is the suite's TOML."""
        self.raw, self.places, self.common, self.findings = raw, places, common, findings
        self._plans: dict[tuple[Any, ...], Placed | None] = {}
        self._tensors: set[str] = set()  # that the grid's spaces and losses have
        self._rated: dict[str, None] = {}  # names that rates are given for, in the order of the file
        self._unknown = False  # whether the tensors of a place are
        self._most_steps = 0  # of a distillation whose steps were asked for

    def plans(
        self, numbers: tuple[int, int], loss: Any, space: Any, dataset: PluginRef, train_hash: str, ipc: int, budget: Budget,
        seed: int,
    ) -> Iterator[Placed]:  # fmt: skip
        """The plans of a place, one for each of its variants, with what belongs to them; those where something is wrong are left
        out.

        `numbers`: of the loss and the space in the suite's lists.
        """
        place = {
            "loss": loss.get("name") if isinstance(loss, dict) else loss,
            "space": space.get("name") if isinstance(space, dict) else space,
            "subset": dataset.written, "ipc": str(ipc), "budget": budget, "seed": str(seed),
        }  # fmt: skip
        fitting = self.places.fitting(place)
        for variant in self.places.variants_of(place):
            key = (numbers, dataset, ipc, budget, fitting, variant)
            if key not in self._plans:
                values = self.places.values(place, fitting, loss, space, dataset, variant)
                plan = self._plan(values[0], loss, space, dataset, train_hash, ipc, budget) if values else None
                self._unknown |= values is None
                self._plans[key] = Placed(plan, self._iterates(plan), values[1]) if plan and values else None
            if made := self._plans[key]:
                yield replace_place(made, plan=replace(made.plan, seed=seed))

    def _plan(
        self, values: dict[str, Any], loss_entry: Any, space_entry: Any, dataset: PluginRef, train_hash: str, ipc: int,
        budget: Budget,
    ) -> SetPlan | None:  # fmt: skip
        """The plan of seed 0. Goes on after a fault, so that all are found."""
        settings, given, labels = values.pop("generator"), values.pop("rates"), values.get("labels", "hard")
        total = values.pop("total_steps", None)
        values["stage_steps"] = tuple(values.get("stage_steps", ()))
        loss = self.findings.plugin("losses", loss_entry, values.pop("loss"))
        space = self.findings.plugin("spaces", space_entry, values.pop("space"))
        proxy = self._proxy(values.pop("proxy", self.raw.get("proxy", self.raw.get("backbone", "convnet"))))
        rankers = self._rankers({role: values.pop(role, "last") for role in RANKS})
        rates = self._rates(loss, space, given, labels) if loss and space else None
        if loss is None or space is None or rates is None:
            self._unknown = True
            return None
        self._check_loss(loss, labels)
        needs_generator = self.findings.answer("needs_generator", space, lambda plugin: bool(plugin.needs_generator))
        generator = self.common.generators.of(space, dataset, settings) if needs_generator else None
        if needs_generator is None or (needs_generator and generator is None) or proxy is None or rankers is None:
            return None
        protocol, making = self.common.protocol, self.common.protocol.set
        plan = SetPlan(
            dataset=dataset, train_hash=train_hash, ipc=ipc, seed=0, held_out=making.held_out, backbone=self.common.backbone,
            loss=loss, space=space, generator=generator, rates=rates, ranking=protocol.judging.own_labels(),
            proxy=proxy, synthetic_mean=making.synthetic_mean, synthetic_std=making.synthetic_std, tf32=protocol.judging.tf32,
            threads=self.common.threads, budget=budget, **rankers, **values,
        ).without_idle_settings()  # fmt: skip
        for sentence in plan.check():
            self.findings.fault(sentence)
        if plan.proxy and plan.proxy.kind == "architectures":
            check_network(self.findings, dataset, plan.proxy)
        self._check_items(plan)
        num = self._num_stages(plan, "'stage_steps' gives the steps of each stage") if plan.stage_steps else None
        if num and (sentence := plan.fit_of_stages(num)):
            self.findings.fault(f"{plan.method}: {sentence}")
        return plan if total is None else self._shared_out(plan, total)

    def _check_items(self, plan: SetPlan) -> None:
        """Whether an item of each class is in the budget. A space that needs to know more, or is broken, tells that later."""
        assert plan.space
        try:
            run = self._run(plan)
            if run is not None:
                plan.space.ask(lambda plugin: int(plugin.num_images(run)))
        except (DataError, PluginError, Unanswered):
            return
        except BenchError as error:
            self.findings.fault(f"{plan.method} on '{plan.dataset.label}', ipc {plan.ipc}: {error}")

    def _shared_out(self, plan: SetPlan, total: int) -> SetPlan:
        """With so many steps over all stages."""
        num = self._num_stages(plan, "'total_steps' are shared out over the stages")
        try:
            return plan.with_total_steps(total, num) if num else replace(plan, steps=total)
        except ConfigError as error:
            self.findings.fault(f"{plan.method}: {error}")
        return plan

    def _proxy(self, entry: Any) -> PluginRef | None:
        """An architecture, which is then trained on the data set, or a network that others have trained."""
        name = entry.get("name") if isinstance(entry, dict) else entry
        kinds = [kind for kind in ("architectures", "proxies") if isinstance(name, str) and REGISTRIES[kind].offers(name)]
        if len(kinds) > 1:
            told = f"'{name}' is an architecture and a proxy that others have trained"
            self.findings.fault(f"{told}: uninstall one of the two, for a suite cannot say which it means.")
            return None
        near = not kinds and isinstance(name, str) and did_you_mean(name, REGISTRIES["proxies"].names())
        if not kinds and not near and not did_you_mean(str(name), REGISTRIES["architectures"].names()):
            known = ", ".join(REGISTRIES["proxies"].names())
            self.findings.fault(f"unknown proxy '{name}': name an architecture, which is trained for it, or one of {known}.")
            return None
        return self.findings.plugin(kinds[0] if kinds else "proxies" if near else "architectures", entry)

    def _rankers(self, entries: Mapping[str, Any]) -> dict[str, Any] | None:
        """What ranks steps and stages, as plans hold it; None where one of them cannot."""
        held = {role: self._ranker(role, entry) for role, entry in entries.items()}
        return None if None in held.values() else held

    def _ranker(self, role: str, entry: Any) -> str | PluginRef | None:
        """A word of the role, or a ranker that held-out images are there for."""
        name, words = entry.get("name") if isinstance(entry, dict) else entry, RANKS[role]
        if name in words and entry in (name, {"name": name}):
            return str(name)
        if isinstance(name, str) and not REGISTRIES["rankers"].offers(name):
            known = [*words, *REGISTRIES["rankers"].names()]
            told = f"there is no ranker '{name}'.{did_you_mean(name, known)}"
            if any(name in others for others in RANKS.values()):
                told = f"'{name}' takes no settings." if name in words else f"'{name}' ranks the steps of a stage only."
            self.findings.fault(f"'{role}': {told} It takes: {', '.join(known)}.")
            return None
        ref = self.findings.plugin("rankers", entry)
        if ref is None or self.findings.answer("uses_proxy", ref, lambda plugin: bool(plugin.uses_proxy)) is None:
            return None
        uses_held_out = self.findings.answer("uses_held_out", ref, lambda plugin: bool(plugin.uses_held_out))
        if uses_held_out and not self.common.protocol.set.held_out:
            reads = f"'{role}': ranker '{ref.name}' reads held-out training images"
            none = f"protocol '{self.common.protocol.id}' holds out none"
            self.findings.fault(f"{reads}, and {none}: name another ranker, or another protocol.")
        return None if uses_held_out is None else in_plan(ref)

    def _check_loss(self, loss: PluginRef, labels: str) -> None:
        """Whether the backbone and the labels suit it."""
        backbone = self.common.backbone
        order = self.findings.answer("order", loss, lambda plugin: int(plugin.order))
        twice_too = self.findings.answer("double_backward", backbone, lambda plugin: bool(plugin.double_backward))
        if order is not None and order > 1 and not twice_too:
            twice = f"loss '{loss.name}' differentiates the backbone twice"
            self.findings.fault(f"{twice}, and '{backbone.label}' cannot be: name another backbone.")
        if labels == "teacher" and self.findings.answer("relabels", loss, lambda plugin: str(plugin.relabels)) == "never":
            self.findings.fault(f"loss '{loss.name}' has no teacher to give labels: set labels to hard or learned.")

    def _rates(self, loss: PluginRef, space: PluginRef, given: Mapping[str, Any], labels: str) -> dict[str, float] | None:
        """The learning rate of every tensor that the space, the loss or learned labels may optimise; None: one is broken."""
        ask = self.findings.answer
        defaults = ask("rates", loss, lambda plugin: {name: float(rate) for name, rate in plugin.rates.items()})
        learned = ask("learned", loss, lambda plugin: set(plugin.learned))
        tensors = ask("tensors", space, lambda plugin: set(plugin.tensors))
        alike = ask("rates_of", space, lambda plugin: {str(name): str(other) for name, other in plugin.rates_of.items()})
        if defaults is None or learned is None or tensors is None or alike is None:
            return None
        names = tensors | learned | ({"labels"} if labels == "learned" else set())
        self._tensors |= {*defaults, *names}
        defaults = {name: defaults[other] for name, other in alike.items() if other in defaults} | defaults
        rates = {name: rate for name, rate in defaults.items() if name in names}
        for name, rate in given.items():
            self._rated[name] = None
            if type(rate) not in (int, float):
                self.findings.fault(f"rate '{name}' must be a number, got {rate!r}.")
            elif not 0 < rate < inf:
                self.findings.fault(f"rate '{name}' must be a number above 0, got {float(rate)}.")
            elif name in names:
                rates[name] = float(rate)
        for name in sorted(names - rates.keys() - given.keys()):
            needs = f"loss '{loss.name}' in space '{space.name}' needs a rate for '{name}'"
            self.findings.fault(f"{needs}: add rates = {{ {name} = ... }}.")
        return rates

    def check_rated(self) -> None:
        """Whether some space or loss of the grid has each tensor that a rate is given for: one table serves all cells, and a cell
        ignores what it lacks. Where the tensors of a place are unknown, nobody can say."""
        for name in self._rated:
            if name not in self._tensors and not self._unknown:
                near = did_you_mean(name, self._tensors)
                known = ", ".join(sorted(self._tensors))
                self.findings.fault(f"there is no tensor '{name}' to give a rate.{near} Known: {known}.")

    def check_reached(self) -> None:
        """Whether some distillation of the grid has each iterate that the suite asks for: shorter ones have fewer."""
        asked, complete = self.common.asked, self.findings.complete
        if complete and not self._plans and (asked.steps or asked.seconds):
            self.findings.fault("'iterates' asks for iterates of distillations, and the grid distils nothing: take it out.")
        elif complete and asked.steps and asked.steps[-1] >= self._most_steps:
            longest = f"the longest distillation of the grid has {self._most_steps} steps"
            self.findings.fault(f"'iterates.steps' holds {asked.steps[-1]}, and {longest}: name steps below that, from 0 on.")

    def tuning(self, plan: SetPlan) -> Tuning | None:
        """How the rates of a plan are tuned, where the suite wants that."""
        tune, space = self.common.tune, plan.space
        if tune is None or space is None:
            return None
        if tune.rates and plan.rates.keys().isdisjoint(tune.rates):
            listed = ", ".join(tune.rates)
            self.findings.fault(f"'tune.rates' lists {listed}, and {plan.method} has none of these: its trials would all be one.")
        tensors = self.findings.answer("tensors", space, lambda plugin: set(plugin.tensors))
        return tune.tuning(plan, tensors or ())

    def check_tuned(self) -> None:
        """Whether the table [tune] has something to tune, and some space or loss of the grid each tensor that it lists."""
        tune, complete = self.common.tune, not self.findings.faults and not self.findings.broken
        if tune and complete and not self._plans:
            self.findings.fault("'tune' tunes the rates of distillations, and the grid distils nothing: take it out.")
        for name in tune.rates if tune and self._tensors and not self._unknown else ():
            if name not in self._tensors:
                near, known = did_you_mean(name, self._tensors), ", ".join(sorted(self._tensors))
                self.findings.fault(f"there is no tensor '{name}' to tune.{near} Known: {known}.")

    def _iterates(self, plan: SetPlan) -> tuple[int, ...]:
        """The steps whose iterates the protocol and the suite ask for."""
        num, asked = self.common.protocol.set.iterates, self.common.asked.steps
        if not (num or asked):
            return ()
        who = "'iterates' asks for steps" if asked else f"protocol '{self.common.protocol.id}' judges iterates"
        stages = self._num_stages(plan, who)
        if stages is None:
            return ()
        total = plan.stage_start(stages)
        self._most_steps = max(self._most_steps, total)
        return tuple(sorted({*iterate_steps(num, total), *(step for step in asked if step < total)}))

    def _run(self, plan: SetPlan) -> PlanningRun | None:
        """What a space is asked with; None where the files of its generator are not there. Raises what a plugin raises."""
        if plan.generator in self.findings.missing:
            return None
        depth = self.common.generators.depth(plan.generator, plan.dataset) if plan.generator else None
        return PlanningRun(plan.dataset.make().spec(), plan.ipc, depth, budget=plan.budget)

    def _num_stages(self, plan: SetPlan, who: str) -> int | None:
        """How many stages the space of a plan has; None, and remembered, where nobody can say. `who` wants to know."""
        assert plan.space
        try:
            run = self._run(plan)
            return None if run is None else plan.space.ask(lambda plugin: int(plugin.num_stages(run)))
        except PluginError as error:
            self.findings.broke(error)
        except DataError as error:
            assert plan.generator
            self.findings.lacks(plan.generator, error)
        except BenchError as error:
            space = f"space '{plan.space.label}' cannot say beforehand how many stages it has"
            self.findings.fault(f"{who}, and {space}: {error}")
        return None
