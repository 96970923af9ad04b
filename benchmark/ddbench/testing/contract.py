"""The contract checks of one plugin, by name or at hand: as lines of a table, and as cases for pytest."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from ddbench import registry
from ddbench.api import PLUGIN_TYPES
from ddbench.compute.run import DistillRun
from ddbench.entry_points import cause_of
from ddbench.errors import BenchError
from ddbench.testing.architectures import architecture_checks
from ddbench.testing.assets import asset_checks
from ddbench.testing.baselines import baseline_checks
from ddbench.testing.checks import Check, Skipped
from ddbench.testing.datasets import dataset_checks
from ddbench.testing.executors import executor_checks
from ddbench.testing.generators import generator_checks
from ddbench.testing.losses import loss_checks
from ddbench.testing.presets import preset_checks
from ddbench.testing.protocols import protocol_checks
from ddbench.testing.proxies import proxy_checks
from ddbench.testing.rankers import ranker_checks
from ddbench.testing.spaces import space_checks
from ddbench.testing.toys import TOY_NORMED_ARCH, toy_run

CHECKS: dict[str, list[Check]] = {
    "losses": loss_checks,
    "spaces": space_checks,
    "generators": generator_checks,
    "architectures": architecture_checks,
    "proxies": proxy_checks,
    "rankers": ranker_checks,
    "datasets": dataset_checks,
    "baselines": baseline_checks,
    "presets": preset_checks,
    "protocols": protocol_checks,
    "executors": executor_checks,
    "assets": asset_checks,
}
"""The checks of every kind."""

ASKED: Mapping[str, Callable[[Any, DistillRun], object]] = {
    "losses": lambda loss, run: loss.check(run.spec.num_classes * run.ipc, run),
    "generators": lambda generator, run: (generator.depth(run), generator.check(run)),
    "architectures": lambda arch, run: None,
    "proxies": lambda proxy, run: proxy.check(run),
    "rankers": lambda ranker, run: ranker.check(run),
    "baselines": lambda baseline, run: baseline.check(run),
}
"""What a plugin refuses a run by, of the kinds that may."""


@dataclass(frozen=True)
class Outcome:
    """What became of one check of a plugin."""

    check: str
    verdict: str  # met, skipped or failed
    why: str = ""  # a sentence, where it is not met


def suitable_run(kind: str, plugin: Any) -> DistillRun:
    """The first toy run that a plugin does not refuse: of grey images or, for architectures, of coloured ones; else larger, in
    colour, or with a backbone that has BatchNorm; the first one where it refuses them all."""
    first = toy_run(channels=3 if kind == "architectures" else 1)
    for run in (
        first, toy_run(channels=3), *(toy_run(channels=channels, side=side) for side in (32, 64) for channels in (1, 3)),
        *(toy_run(channels=channels, arch=TOY_NORMED_ARCH) for channels in (1, 3)),
    ):  # fmt: skip
        try:
            ASKED.get(kind, lambda plugin, run: None)(plugin, run)
        except BenchError:
            continue
        return run
    return first


def outcomes(kind: str, plugin: Any, run: DistillRun | None = None) -> Iterator[Outcome]:
    """Every check of a kind, each run whatever became of the others."""
    run = run or suitable_run(kind, plugin)
    for check in CHECKS[kind]:
        try:
            check(plugin, run)
        except Skipped as reason:
            yield Outcome(check.__name__, "skipped", " ".join(str(reason).split()))
        except (AssertionError, BenchError) as error:
            yield Outcome(check.__name__, "failed", " ".join(str(error).split()) or "an assertion in its own code is not met.")
        except Exception as error:  # of a stranger's code
            yield Outcome(check.__name__, "failed", cause_of(error))
        else:
            yield Outcome(check.__name__, "met")


def contract(kind: str, plugin: Any, run: DistillRun | None = None, **settings: Any) -> Any:
    """A decorator for a test that takes `check`, and calls it: pytest then runs it once for each check of the kind.

    `plugin`: the name of an installed one, made with these settings, or one at hand. `run`: of other images than the toy ones.
    What does not apply ends as a skip.
    """
    import pytest

    def made() -> Any:
        if isinstance(plugin, str):
            return registry.REGISTRIES[kind].make(plugin, settings)
        told = f"a plugin of kind {kind} must be a {PLUGIN_TYPES[kind].__name__}, got {plugin!r}."
        assert isinstance(plugin, PLUGIN_TYPES[kind]), told
        return plugin

    def checked(check: Check) -> None:
        checking = made()
        check(checking, run or suitable_run(kind, checking))

    cases = [pytest.param(partial(checked, check), id=check.__name__) for check in CHECKS[kind]]
    return pytest.mark.parametrize("check", cases)
