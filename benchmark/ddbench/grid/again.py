"""A stored plan, read back to be run again by itself."""

from __future__ import annotations

from pathlib import Path

from msgspec.structs import replace

from ddbench import schema
from ddbench.data.subsets import default_root
from ddbench.errors import BenchError, ConfigError, Faults
from ddbench.grid.planning import Identities, Planned, with_needs
from ddbench.plan import RANKS, Cell, SetPlan, differences
from ddbench.refs import PluginRef
from ddbench.schema import SetPlanFile
from ddbench.suite.reader import Suite


def load_plan(path: Path) -> tuple[Suite, Planned, Identities]:
    """A stored plan.json as a grid of one set that nobody judges. Raises ConfigError where the plugins installed now are not
    those of the plan, and DataError where the file is damaged."""
    plan = schema.read(path, SetPlanFile, "plan", "Name another file.").plan
    if plan.imported:
        raise ConfigError(f"plan {path} is that of an imported set, which nothing can make again: evaluate its file instead.")
    identities, root = Identities(), default_root()
    now = _resolved_again(plan, path)
    if faults := now.check():
        raise Faults([f"plan {path}: {fault}" for fault in faults])
    if names := differences(plan, now):
        raise ConfigError(f"plan {path} cannot be made as it was: it differs now in {', '.join(names)}.")
    if identities(plan.dataset, root).train_hash != plan.train_hash:
        raise ConfigError(f"plan {path} is for other training images than those of '{plan.dataset.label}' here.")
    for ref in (now.generator, now.baseline):
        if ref:
            ref.ask(lambda plugin: plugin.pins(root))  # raises where its files are missing, or others than the plan's
    planned = with_needs([Cell(replace(now, resources=()), (), 0, "")])
    found = planned.cells[0].set.key if planned.cells else plan.key
    if found != plan.key:
        raise ConfigError(f"plan {path} has the key {plan.key[:16]}, and what is installed now makes {found[:16]} of it.")
    return Suite("plan", plan.name, planned.cells, "", root, (), None), planned, identities


def _resolved_again(plan: SetPlan, path: Path) -> SetPlan:
    """The plan with its plugins as they are installed now."""
    changes = {}
    for name in ("dataset", "baseline", "backbone", "loss", "space", "generator", "proxy", *RANKS):
        ref: PluginRef | str | None = getattr(plan, name)
        if isinstance(ref, PluginRef):
            try:
                changes[name] = replace(PluginRef.resolve(ref.kind, ref.name, ref.settings), label=ref.label)
            except BenchError as error:
                raise ConfigError(f"plan {path}: {error}") from error
    return replace(plan, **changes)
