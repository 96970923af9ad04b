"""Plans: everything that decides a cell's numbers, resolved to the last default, and the key made of it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, TypeVar

import ddbench
from ddbench import registry
from ddbench.errors import BenchError, ConfigError, PluginError
from ddbench.protocols import Protocol

LABELS = ("hard", "learned", "teacher")
STEP_RANKERS = ("last", "loss", "feature-distance")
STAGE_RANKERS = ("last", "feature-distance", "validation")
OPTIMIZERS = ("sgd", "adam")
SCHEDULES = ("constant", "cosine")
T = TypeVar("T")
BASELINES = ("random", "full-data")
WHERE = ("loss", "space", "subset", "ipc", "seed", "baseline")  # the keys that name places in a grid


def canonical(value: Any) -> str:
    """The one JSON text of a value: sorted keys, no spaces."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def digest(value: Any) -> str:
    """The SHA-256 of the canonical JSON, in hex."""
    return hashlib.sha256(canonical(value).encode()).hexdigest()


@dataclass(frozen=True)
class PluginRef:
    """A plugin by name with all its settings, and where it comes from."""

    kind: str
    name: str
    settings: Mapping[str, Any]
    distribution: str
    version: str
    label: str  # the name, or `family/member`, with the settings that differ from the plugin's defaults

    @classmethod
    def resolve(cls, kind: str, name: str, given: Mapping[str, Any]) -> PluginRef:
        """Look a plugin up, check its settings and fill in its defaults. Raises ConfigError or PluginError.

        A member of a family, however it is written, has the family's name and `family/member` as its label.
        """
        source = registry.REGISTRIES[kind]
        settings = source.resolve(name, given)
        origin, member = source.origin(name), source.member(name)
        written = f"{origin.name}/{settings[member]}" if member else origin.name
        defaults = source.settings(name) | ({member: settings[member]} if member else {})
        changed = ", ".join(f"{key}={_show(value)}" for key, value in settings.items() if value != defaults.get(key))
        label = f"{written}({changed})" if changed else written
        return cls(kind, origin.name, settings, origin.distribution, origin.version, label)

    @property
    def written(self) -> str:
        """The name as suites and `--only` write it: `family/member`, or the plain name."""
        return self.label.partition("(")[0]

    def __hash__(self) -> int:
        """By what it is; the settings are a dictionary, which has no hash of its own."""
        return hash((self.kind, self.name, canonical(self.settings)))

    def make(self) -> Any:
        """The plugin itself."""
        return registry.REGISTRIES[self.kind].make(self.name, self.settings)

    def ask(self, question: Callable[[Any], T]) -> T:
        """What the plugin answers. Raises PluginError for whatever a stranger's code raises; BenchErrors pass as they are."""
        plugin = self.make()
        try:
            return question(plugin)
        except BenchError:
            raise
        except Exception as error:
            what = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
            noun = registry.NOUNS[self.kind]
            raise PluginError(f"{noun} '{self.name}' (from {self.distribution} {self.version}) is broken: {what}.") from error


def _show(value: Any) -> str:
    return value if isinstance(value, str) else canonical(value)


@dataclass(frozen=True)
class Plan:
    """One cell: one distilled set with one distillation seed, and how it is judged."""

    dataset: PluginRef
    data_hash: str  # of the images, labels, classes and normalisation, see ddbench.data
    protocol: Protocol
    networks: tuple[PluginRef, ...]  # that judge it
    backbone: PluginRef  # that distils it
    ipc: int
    seed: int
    baseline: str | None = None  # "random" or "full-data": nothing is distilled, and the fields below do not count
    loss: PluginRef | None = None
    space: PluginRef | None = None
    generator: PluginRef | None = None
    steps: int = 1000  # of every stage
    rates: Mapping[str, float] = field(default_factory=dict)  # by tensor name
    momentum: float = 0.5  # of sgd
    optimizer: str = "sgd"  # or adam, with betas 0.5 and 0.9, as SRe2L has it
    schedule: str = "constant"  # of the rates; or cosine, to 0 over every stage
    labels: str = "hard"
    rank_steps: str = "last"
    rank_every: int = 1  # steps between two candidates; the last iterate always is one
    rank_stages: str = "last"
    rank_epochs: int = 100  # of the networks that rank stages by validation
    rank_repeats: int = 1
    proxy: PluginRef | None = None  # the network of the class-relevant feature distance
    proxy_epochs: int = 10
    chunk: int = 10  # images decoded with a graph at once
    threads: int = 1  # of the cell's process on a CPU: sums in another order are other numbers
    teacher: PluginRef | None = None  # the network that labels batches, where the protocol has one

    @property
    def method(self) -> str:
        """The row's name: `dm / glad`, or the baseline's."""
        if self.baseline:
            return self.baseline
        return f"{self.loss.label} / {self.space.label}" if self.loss and self.space else "none"

    @property
    def name(self) -> str:
        """The cell's name in one line, for progress bars and messages."""
        return f"{self.method}, {self.dataset.label}, ipc {self.ipc}, seed {self.seed}"

    def to_json(self) -> dict[str, Any]:
        """Everything, as the store keeps it."""
        return json.loads(canonical(asdict(self)))

    @property
    def key(self) -> str:
        """64 hex digits: equal keys mean equal numbers on one machine."""
        return digest({"plan": self.to_json(), "ddbench": ddbench.__version__})

    def without_idle_settings(self) -> Plan:
        """The same plan with the rankers' settings that no ranker of it reads at their defaults, so that they do not count."""
        rankers = (self.rank_steps, self.rank_stages)
        idle: dict[str, Any] = {}
        if "feature-distance" not in rankers:
            idle |= {"proxy": None, "proxy_epochs": Plan.proxy_epochs}
        if "validation" not in rankers:
            idle |= {"rank_epochs": Plan.rank_epochs, "rank_repeats": Plan.rank_repeats}
        if self.rank_steps == "last":
            idle |= {"rank_every": Plan.rank_every}
        return replace(self, **idle)

    def check(self) -> list[str]:
        """What is wrong with the values, a sentence each."""
        faults = [
            f"'{name}' must be at least {least}, got {getattr(self, name)}."
            for name, least in _LEAST.items()
            if getattr(self, name) < least
        ]
        words = (("labels", LABELS), ("rank_steps", STEP_RANKERS), ("rank_stages", STAGE_RANKERS))
        for name, allowed in (*words, ("optimizer", OPTIMIZERS), ("schedule", SCHEDULES)):
            if getattr(self, name) not in allowed:
                faults.append(f"'{name}' must be one of {', '.join(allowed)}, got '{getattr(self, name)}'.")
        if not 0 <= self.momentum < 1:
            faults.append(f"'momentum' must lie in [0, 1), got {self.momentum}.")
        return faults


_LEAST = {
    "ipc": 1, "seed": 0, "steps": 0, "rank_every": 1, "rank_epochs": 1, "rank_repeats": 1, "proxy_epochs": 1, "chunk": 1,
    "threads": 1,
}  # fmt: skip


def require(ref: PluginRef | None, role: str) -> PluginRef:
    """The plugin of a role that a step cannot do without."""
    if ref is None:
        raise ConfigError(f"the plan names no {role}.")
    return ref


def coordinates(plan: Plan) -> dict[str, str]:
    """Where a plan lies in its grid, by the keys that --only and overrides take."""
    names = {"subset": plan.dataset.written, "ipc": str(plan.ipc), "seed": str(plan.seed)}
    if plan.baseline:
        return names | {"baseline": plan.baseline}
    if plan.loss and plan.space:
        names |= {"loss": plan.loss.written, "space": plan.space.written}
    return names
