"""Where a set lies in its grid, in the words of `--only` and of a suite's overrides."""

from __future__ import annotations

from ddbench.plan import SetPlan
from ddbench.refs import PluginRef

WHERE = ("loss", "space", "subset", "ipc", "budget", "seed", "baseline")  # the keys that name places in a grid


def coordinates(plan: SetPlan) -> dict[str, str]:
    """Where a plan lies in its grid, by the keys that --only and overrides take."""
    names = {"subset": plan.dataset.written, "ipc": str(plan.ipc), "seed": str(plan.seed)}
    if plan.baseline:
        return names | {"baseline": plan.baseline.written}
    if plan.loss and plan.space:
        names |= {"loss": plan.loss.written, "space": plan.space.written, "budget": plan.budget}
    return names


def exact(ref: PluginRef) -> str:
    """The value of `--only` that takes this variant of a plugin alone: its whole label; `dm()` for one without settings."""
    return ref.label if ref.label.endswith(")") else f"{ref.label}()"


def plugin_at(plan: SetPlan, key: str) -> PluginRef | None:
    """The plan's plugin that a key names; None for a key that names none."""
    ref = getattr(plan, "dataset" if key == "subset" else key)
    return ref if isinstance(ref, PluginRef) else None
