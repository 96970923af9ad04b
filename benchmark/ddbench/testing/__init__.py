"""The contract checks that every plugin must pass, and a toy run to pass them on: for our plugins and anybody else's.

In a test of your own package, without data, network or accelerator:

    from ddbench.testing import contract

    @contract("losses", "my-loss")
    def test_contract(check): check()

`ddbench plugins check my-loss` runs the same checks and shows a table; run_checks("losses", MyLoss(), toy_run()) is a plain call.

A check is a function `check(plugin, run)`. It returns where the plugin keeps that part of the contract, raises
AssertionError with a sentence where it does not, and `Skipped` where that part does not apply, such as the second
derivative of an architecture that says it has none. `run_checks` lists both, so that a skip cannot pass for green.
No plugin is named here: an exception belongs into the tests, with its reason.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ddbench.api import PLUGIN_TYPES
from ddbench.compute.run import DistillRun
from ddbench.testing.architectures import architecture_checks
from ddbench.testing.assets import asset_checks
from ddbench.testing.baselines import baseline_checks
from ddbench.testing.checks import Check, Skipped
from ddbench.testing.contract import CHECKS, Outcome, contract, outcomes, suitable_run
from ddbench.testing.datasets import dataset_checks
from ddbench.testing.executors import executor_checks
from ddbench.testing.generators import generator_checks
from ddbench.testing.losses import loss_checks
from ddbench.testing.presets import preset_checks
from ddbench.testing.protocols import protocol_checks
from ddbench.testing.proxies import proxy_checks
from ddbench.testing.rankers import ranker_checks
from ddbench.testing.spaces import space_checks, stages
from ddbench.testing.toys import (
    TOY_ARCH,
    TOY_NORMED_ARCH,
    Given,
    ToyGenerator,
    in_double,
    prepared,
    toy_data,
    toy_network,
    toy_plan,
    toy_run,
    toy_spec,
)

__all__ = [
    "CHECKS",
    "TOY_ARCH",
    "TOY_NORMED_ARCH",
    "Check",
    "ContractReport",
    "Given",
    "Outcome",
    "Skipped",
    "ToyGenerator",
    "architecture_checks",
    "asset_checks",
    "baseline_checks",
    "contract",
    "dataset_checks",
    "executor_checks",
    "generator_checks",
    "in_double",
    "loss_checks",
    "outcomes",
    "prepared",
    "preset_checks",
    "protocol_checks",
    "proxy_checks",
    "ranker_checks",
    "run_checks",
    "space_checks",
    "stages",
    "suitable_run",
    "toy_data",
    "toy_network",
    "toy_plan",
    "toy_run",
    "toy_spec",
]  # fmt: skip


@dataclass(frozen=True)
class ContractReport:
    """What became of a plugin's checks."""

    met: tuple[str, ...]
    skipped: dict[str, str]  # name to reason


def run_checks(kind: str, plugin: Any, run: DistillRun) -> ContractReport:
    """Every check of a kind ("losses", "spaces", ...). Raises AssertionError at the first that is not met."""
    met, skipped = [], {}
    assert isinstance(plugin, PLUGIN_TYPES[kind]), (
        f"a plugin of kind {kind} must be a {PLUGIN_TYPES[kind].__name__}, got {plugin!r}."
    )
    for check in CHECKS[kind]:
        try:
            check(plugin, run)
            met.append(check.__name__)
        except Skipped as reason:
            skipped[check.__name__] = str(reason)
    return ContractReport(tuple(met), skipped)
