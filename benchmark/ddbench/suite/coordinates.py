"""Where a set lies in its grid, in the words of `--only` and of a suite's overrides."""

from __future__ import annotations

from ddbench.plan import SetPlan

WHERE = ("loss", "space", "subset", "ipc", "seed", "baseline")  # the keys that name places in a grid


def coordinates(plan: SetPlan) -> dict[str, str]:
    """Where a plan lies in its grid, by the keys that --only and overrides take."""
    names = {"subset": plan.dataset.written, "ipc": str(plan.ipc), "seed": str(plan.seed)}
    if plan.baseline:
        return names | {"baseline": plan.baseline.written}
    if plan.loss and plan.space:
        names |= {"loss": plan.loss.written, "space": plan.space.written}
    return names
