"""Plans: what decides the numbers of a set and of a judgement, and the keys made of it; long because both are written out here.

A **set** is what was distilled, selected, sampled or imported, under the key of a `SetPlan`. A **judgement** is one network
trained on a set under one protocol for a block of repeats, under the key of a `Judging`. A set never knows who will judge it.

Everything in them is resolved to the last default. A key is the SHA-256 of what decides the numbers and of nothing else: settings
at their defaults, prose, versions and machines are outside of it; records hold these. Fields that differ from their default stand
in the key under their own name, so that a new field changes no key as long as it is at its default.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any, get_args

import msgspec
from msgspec.structs import fields, replace

from ddbench.api import Budget
from ddbench.errors import ConfigError
from ddbench.files import digest
from ddbench.protocols import Numbers
from ddbench.refs import OURS, PluginRef
from ddbench.settings import MOST
from ddbench.trials import Tuning

MOST_STEPS = 100_000_000  # of a stage; published ones have some millions at most
NUMERICS: Mapping[str, int] = {"engine": 1, "training": 1, "evaluator": 1, "crops": 2}
"""Raised by whoever makes equal settings give other numbers: in `ddbench.compute.engine` and `rank`; in `ddbench.compute.train`
and what it trains with; in `ddbench.evaluate`; in `ddbench.ops.crops`, for the numbers that ask for its crops."""

LABELS = ("hard", "learned", "teacher")
RANKS = {"rank_steps": ("last", "loss"), "rank_stages": ("last",)}
"""What steps and stages are ranked by where no ranker gives a score: the order of events, and the loss."""
PROXY_GRADIENTS = ("grad-cam", "elementwise")
OPTIMIZERS = ("sgd", "adam")
SCHEDULES = ("constant", "cosine")


def short(key: str) -> str:
    """The part of a key that names files."""
    return key[:16]


class Imported(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where a set that was not made here comes from, and how its file was read."""

    sha256: str  # of the file; of several, or of a folder, of their hashes
    images: str  # normalised, pixels or whitened
    labels: str  # indices, probabilities or logits
    mean: tuple[float, ...] = ()  # that normalised images were normalised by; empty: the data set's own
    std: tuple[float, ...] = ()
    learned_rate: float | None = None
    experiment: int | None = None  # which of a file's sets it is; None where there is one only


class SetPlan(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, dict=True):
    """One set: distilled with one seed, made by a baseline, or imported."""

    dataset: PluginRef
    train_hash: str  # of the real training images and what normalises them, see ddbench.data
    ipc: int  # 0 for all real training images
    seed: int
    held_out: float  # the share of the training images of every class that nothing trains on, for selection
    tuning: float = 0.0  # above 0: a trial, from streams of its own; the share of the rest that nothing of it trains on
    imported: Imported | None = None  # then nothing is made, and the fields below do not count
    baseline: PluginRef | None = None  # then nothing is distilled, and the fields of distillation do not count
    backbone: PluginRef | None = None  # the network that distils it
    loss: PluginRef | None = None
    space: PluginRef | None = None
    generator: PluginRef | None = None
    steps: int = 1000  # of every stage
    extra_steps: int = 0  # so many of the first stages have one more: what is left over where `total_steps` are shared out
    stage_steps: tuple[int, ...] = ()  # of each stage, where they differ otherwise; the two above do not count then
    rates: dict[str, float] = {}  # by tensor name
    momentum: float = 0.5  # of sgd
    optimizer: str = "sgd"  # or adam, with betas 0.5 and 0.9, as SRe2L has it
    schedule: str = "constant"  # of the rates; or cosine, to 0 over every stage
    labels: str = "hard"
    rank_steps: str | PluginRef = "last"  # last, loss, or a ranker: see `in_plan`
    rank_every: int = 1  # steps between two candidates; the last iterate always is one
    rank_stages: str | PluginRef = "last"  # likewise without loss
    rank_epochs: int = 100  # of the networks that rankers train on a set
    rank_repeats: int = 1
    ranking: Numbers | None = None  # how these networks are trained, over `rank_epochs`; None where no ranker trains any
    proxy: PluginRef | None = None  # that rankers look through: an architecture, or a network of others; None where none does
    proxy_epochs: int = 10  # for which an architecture is trained
    proxy_layer: str = ""  # of its modules, the one whose maps are compared; empty: the last before the head
    proxy_gradient: str = "grad-cam"  # what weighs a map: the spatial mean of its gradient; or elementwise, the gradient
    chunk: int = 10  # images decoded with a graph at once
    synthetic_mean: tuple[float, ...] = ()  # what generated images are normalised by; empty: the data set's own
    synthetic_std: tuple[float, ...] = ()
    tf32: bool = False
    threads: int = 1  # of the process on a CPU: sums in another order are other numbers
    resources: tuple[str, ...] = ()  # keys of all that must be trained before
    budget: Budget = "images"  # what ipc bounds: items, or the bytes that they take; of baselines and imports these are the same
    engine: int = msgspec.field(default_factory=lambda: NUMERICS["engine"])  # kept, so that a stored plan keeps its key

    @property
    def refs(self) -> tuple[PluginRef, ...]:
        """Its plugins."""
        refs = (self.dataset, self.baseline, self.backbone, self.loss, self.space, self.generator, self.proxy)
        return tuple(ref for ref in (*refs, *self.rankers) if ref)

    def ranker(self, role: str) -> PluginRef | None:
        """What gives the scores of steps (`rank_steps`) or of stages (`rank_stages`); None where nothing does. Raises ConfigError
        or PluginError where a ranker of ddbench's own is not as it should be."""
        named: str | PluginRef = getattr(self, role)
        if self.baseline or self.imported or named in RANKS[role]:
            return None
        return named if isinstance(named, PluginRef) else PluginRef.resolve("rankers", named, {})

    @cached_property
    def rankers(self) -> tuple[PluginRef, ...]:
        """Those of steps and of stages, each once."""
        return tuple(dict.fromkeys(ref for ref in map(self.ranker, RANKS) if ref))

    @property
    def everything(self) -> bool:
        """Whether it is all real training images, of which no copy is stored."""
        return self.ipc == 0 and self.imported is None

    @property
    def method(self) -> str:
        """The row's name: `dm / glad / cvae`, the baseline's, or `imported`."""
        if self.imported:
            number = "" if self.imported.experiment is None else f" experiment {self.imported.experiment}"
            return f"imported {self.imported.sha256[:8]}{number}"
        if self.baseline:
            return " / ".join(ref.label for ref in (self.baseline, self.generator) if ref)
        return " / ".join(ref.label for ref in (self.loss, self.space, self.generator) if ref)

    @property
    def is_distilled(self) -> bool:
        """Whether a loss made it."""
        return self.loss is not None and not (self.baseline or self.imported)

    @property
    def is_trial(self) -> bool:
        """Whether it is one of the trials by which rates are chosen: no board shows it, and no test image judges it."""
        return self.tuning > 0

    @property
    def root(self) -> tuple[str, int]:
        """What its random streams are named under: by the seed alone, so that methods share what they draw alike; those of trials
        are none of a reported set's, whatever the seed."""
        return ("tune" if self.is_trial else "distill", self.seed)

    @property
    def name(self) -> str:
        """The set's name in one line, for messages."""
        return self.named(self.dataset.label)

    def named(self, subset: str) -> str:
        """The same with another name of the data set: of a copy, for progress, as boards have it."""
        if self.everything:
            return f"{self.method}, {subset}"
        place = f"{self.method}, {subset}, ipc {self.ipc}" + (" in bytes" if self.budget == "bytes" else "")
        if self.is_trial:
            rates = ", ".join(f"{name} {rate:.3g}" for name, rate in self.rates.items())
            return f"trial of {place} at {rates}, tuning seed {self.seed}"
        return f"{place}, seed {self.seed}"

    @property
    def is_habit(self) -> bool:
        """Whether it repeats a habit of published code, whose results stand apart: other constants for generated images."""
        return bool(self.synthetic_mean or self.synthetic_std)

    @property
    def pretrained(self) -> PluginRef | None:
        """The rankers' proxy, where others have trained it."""
        return self.proxy if self.proxy and self.proxy.kind == "proxies" else None

    def identity(self) -> dict[str, Any]:
        """What the key is made of. The data set is its hash; its name says nothing more."""
        made = {"kind": "set"} | _identity(self, ("dataset", "engine"))
        return made if self.baseline or self.imported else made | {"engine": self.engine}

    @cached_property
    def key(self) -> str:
        """64 hex digits: equal keys mean equal numbers on one machine."""
        return digest(self.identity())

    @property
    def stem(self) -> dict[str, Any]:
        """The identity without the seed: what the seeds of one row share."""
        return {name: value for name, value in self.identity().items() if name not in ("seed", "resources")}

    def stage_start(self, stage: int) -> int:
        """The step that a stage begins with, counted over all stages, from 0; of `num_stages` the number of all steps."""
        if self.stage_steps:
            return sum(self.stage_steps[:stage])
        return stage * self.steps + min(stage, self.extra_steps)

    @property
    def steps_a_stage(self) -> float:
        """On average, but for what is left over."""
        return sum(self.stage_steps) / len(self.stage_steps) if self.stage_steps else self.steps

    def fit_of_stages(self, num_stages: int) -> str:
        """A sentence where `stage_steps` do not fit so many stages; else empty."""
        if not self.stage_steps or len(self.stage_steps) == num_stages:
            return ""
        return f"'stage_steps' gives the steps of {len(self.stage_steps)} stages, and there are {num_stages}: give as many."

    def with_total_steps(self, total: int, num_stages: int) -> SetPlan:
        """The same plan with so many steps in all, shared out evenly; what is left over goes to the first stages, one each.
        Raises ConfigError where a stage would have none."""
        if total < num_stages:
            raise ConfigError(f"'total_steps' ({total}) must be at least the number of stages ({num_stages}), for a step each.")
        if total > MOST_STEPS * num_stages:
            raise ConfigError(f"'total_steps' must be at most {MOST_STEPS} a stage, got {total} for {num_stages}.")
        return replace(self, steps=total // num_stages, extra_steps=total % num_stages)

    def without_idle_settings(self) -> SetPlan:
        """The same plan with the settings that nothing of it reads at their defaults, so that they do not count. Raises
        PluginError where a ranker cannot say what it uses."""
        idle: dict[str, Any] = {}
        if not any(ref.ask(lambda ranker: bool(ranker.uses_proxy)) for ref in self.rankers):
            idle |= dict.fromkeys(("proxy", "proxy_epochs", "proxy_layer", "proxy_gradient"))
        elif self.pretrained:
            idle |= dict.fromkeys(("proxy_epochs",))
        if not any(ref.ask(lambda ranker: bool(ranker.uses_held_out)) for ref in self.rankers):
            idle |= dict.fromkeys(("rank_epochs", "rank_repeats", "ranking"))
        if self.rank_steps == "last":
            idle |= dict.fromkeys(("rank_every",))
        if self.optimizer != "sgd":
            idle |= dict.fromkeys(("momentum",))
        if self.stage_steps:
            idle |= dict.fromkeys(("steps", "extra_steps"))
        if self.generator is None:
            idle |= dict.fromkeys(("synthetic_mean", "synthetic_std"))
        return replace(self, **{name: _defaults(SetPlan)[name] for name in idle})

    def check(self) -> list[str]:
        """What is wrong with the values, a sentence each."""
        faults = [
            f"'{name}' must be at least {least}, got {getattr(self, name)}."
            for name, least in _LEAST.items()
            if getattr(self, name) < least
        ]
        large = {name: most for name, most in _MOST.items() if getattr(self, name) > most}
        faults += [f"'{name}' must be at most {most}, got {getattr(self, name)}." for name, most in large.items()]
        if min(self.stage_steps, default=1) < 1:
            faults.append(f"'stage_steps' must give every stage at least 1, got {list(self.stage_steps)}.")
        if sum(self.stage_steps) > _MOST["steps"]:
            faults.append(f"'stage_steps' must give at most {_MOST['steps']} in all, got {sum(self.stage_steps)}.")
        words = (("budget", get_args(Budget)), ("labels", LABELS), ("optimizer", OPTIMIZERS), ("schedule", SCHEDULES))
        for name, allowed in (*words, ("proxy_gradient", PROXY_GRADIENTS)):
            if getattr(self, name) not in allowed:
                faults.append(f"'{name}' must be one of {', '.join(allowed)}, got '{getattr(self, name)}'.")
        if not 0 <= self.momentum < 1:
            faults.append(f"'momentum' must lie in [0, 1), got {self.momentum}.")
        if not 0 <= self.tuning < 1:
            faults.append(f"'tuning' must lie in [0, 1), got {self.tuning}.")
        if self.engine != NUMERICS["engine"]:
            now = NUMERICS["engine"]
            faults.append(f"'engine' is {self.engine}, this ddbench's is {now} and gives other numbers: plan anew.")
        return faults


_LEAST = {
    "ipc": 0, "seed": 0, "steps": 0, "extra_steps": 0, "rank_every": 1, "rank_epochs": 1, "rank_repeats": 1,
    "proxy_epochs": 1, "chunk": 1, "threads": 1,
}  # fmt: skip
_MOST = {"steps": MOST_STEPS} | dict.fromkeys(("rank_every", "rank_epochs", "rank_repeats", "proxy_epochs", "chunk"), MOST)


class Judging(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, dict=True):
    """One network under one protocol, whatever the set; its repeats are counted from 0."""

    network: PluginRef
    numbers: Numbers  # those of the protocol
    dataset: PluginRef
    test_hash: str  # of the official evaluation images and what normalises them
    draw: int = 0  # names the random streams: suites set it to the distillation seed, so that methods stay paired
    iterate: int | None = None  # the step before which the iterate was kept that is judged, not the finished set
    iterate_seconds: float | None = None  # likewise, the seconds after which
    teacher: PluginRef | None = None  # the network that labels batches, where the protocol has one
    held_out: float = 0.0  # the share of the training images that the teacher does not see; 0 without a teacher
    threads: int = 1
    resources: tuple[str, ...] = ()  # the key of the trained teacher
    protocol: str = ""  # the id, for people; equal numbers under another id are the same judgement
    training: int = msgspec.field(default_factory=lambda: NUMERICS["training"])  # kept, so that a stored plan keeps its key
    evaluator: int = msgspec.field(default_factory=lambda: NUMERICS["evaluator"])

    @property
    def refs(self) -> tuple[PluginRef, ...]:
        """Its plugins."""
        return tuple(ref for ref in (self.network, self.dataset, self.teacher) if ref)

    @property
    def is_of_iterate(self) -> bool:
        """Whether it is of an iterate of the distillation, not of the finished set."""
        return self.iterate is not None or self.iterate_seconds is not None

    @property
    def where(self) -> str:
        """Which iterate it is of, behind a name: ` at step 20`, ` after 10 s`; nothing for the finished set."""
        if self.iterate_seconds is not None:
            return f" after {self.iterate_seconds:g} s"
        return "" if self.iterate is None else f" at step {self.iterate}"

    def identity(self) -> dict[str, Any]:
        """What the key is made of."""
        made = _identity(self, ("dataset", "protocol", "training", "evaluator"))
        return {"kind": "judgement"} | made | {"training": self.training, "evaluator": self.evaluator}

    @cached_property
    def key(self) -> str:
        """64 hex digits."""
        return digest(self.identity())

    @property
    def stem(self) -> dict[str, Any]:
        """What judgements share that may stand in one table: all but network, draw and iterate."""
        apart = ("network", "draw", "iterate", "iterate_seconds", "resources")
        return {name: value for name, value in self.identity().items() if name not in apart}

    @property
    def stream(self) -> tuple[str, int, str]:
        """The name that its random streams begin with: by what the network is, and not by its label or its rate."""
        what = {name: value for name, value in self.network.what.items() if name not in ("numerics", "lr", "software")}
        return ("evaluate", self.draw, short(digest(what)))


def in_plan(ranker: PluginRef) -> str | PluginRef:
    """A ranker as plans hold it: one of ddbench's own at its defaults is its name, so that a plan, and its key, say no more than
    that, as they did before rankers were plugins."""
    plain = {"plugin": ranker.name, "from": OURS, "numerics": 1, "settings": {}}
    return ranker.name if ranker.what == plain else ranker


def _identity(plan: msgspec.Struct, without: tuple[str, ...] = ()) -> dict[str, Any]:
    """The fields that differ from their defaults, plugins as what they are, structures inside in the same way."""
    made: dict[str, Any] = {}
    for name, default in _defaults(type(plan)).items():
        value = getattr(plan, name)
        if name in without or value == default:
            continue
        if isinstance(value, PluginRef):
            made[name] = value.what
        else:
            made[name] = _identity(value) if isinstance(value, msgspec.Struct) else msgspec.to_builtins(value)
    return made | ({"crops": NUMERICS["crops"]} if isinstance(plan, Numbers) and plan.augment == "crop-flip" else {})


@cache
def _defaults(kind: type[msgspec.Struct]) -> dict[str, Any]:
    """By field; NODEFAULT for one without."""
    factories = {field.name: field.default_factory for field in fields(kind)}
    made = {field.name: field.default for field in fields(kind)}
    return made | {name: factory() for name, factory in factories.items() if factory is not msgspec.NODEFAULT}


@dataclass(frozen=True)
class Block:
    """Repeats `first` to `last` of a judgement of a set: what one job computes."""

    set: SetPlan
    judging: Judging
    first: int
    last: int

    @property
    def name(self) -> str:
        """For progress bars and messages."""
        return f"{self.judging.network.label} on {self.set.name}{self.judging.where}"


@dataclass(frozen=True)
class Cell:
    """A place of a grid: a set, and how it is judged."""

    set: SetPlan
    judgings: tuple[Judging, ...]  # one a network
    repeats: int
    protocol: str  # its id
    iterates: tuple[int, ...] = ()  # steps before which iterates are kept, and judged too
    iterate_seconds: tuple[float, ...] = ()  # seconds after which they are
    marks: tuple[str, ...] = ()  # what a reader of the set's record must know of where its settings are from
    tuning: Tuning | None = None  # how its rates are tuned, where its suite wants that
    rates_from: str = ""  # the key of the tuning that they are from; or UNTUNED; empty where the suite tunes nothing

    @property
    def name(self) -> str:
        """For messages."""
        return self.set.name

    def all_judgings(self) -> Iterator[Judging]:
        """Those of the finished set, then those of the iterates."""
        yield from self.judgings
        for step in self.iterates:
            yield from (replace(judging, iterate=step) for judging in self.judgings)
        for seconds in self.iterate_seconds:
            yield from (replace(judging, iterate_seconds=seconds) for judging in self.judgings)


def differences(stored: msgspec.Struct, now: msgspec.Struct, new_too: bool = False) -> list[str]:
    """What differs between two plans of one key, by name: resolved settings of plugins, and fields. A setting that the stored
    plan does not know is new, and at its default, or the key were another: `new_too` names it all the same."""
    names = []
    for field in now.__struct_fields__:
        before, after = getattr(stored, field), getattr(now, field)
        if isinstance(before, PluginRef) and isinstance(after, PluginRef):
            names_of = before.resolved.keys() | (after.resolved.keys() if new_too else set())
            odd = sorted(key for key in names_of if before.resolved.get(key) != after.resolved.get(key))
            names += [f"{after.name}.{key} ({before.resolved.get(key)!r} then, {after.resolved.get(key)!r} now)" for key in odd]
        elif field not in ("protocol", "dataset") and before != after:
            names.append(f"{field} ({before!r} then, {after!r} now)")
    return names
