"""`ddbench plugins check NAME`: the contract checks of a plugin, or of all plugins of a distribution, as a table."""

from __future__ import annotations

import json
import re
import sys
from dataclasses import asdict
from typing import Any

from ddbench.cli.common import asking_plugins
from ddbench.errors import BenchError, ConfigError
from ddbench.evaluate.asked import name_and_settings
from ddbench.registry import REGISTRIES


def check(entry: str, kind: str | None, as_json: bool) -> int:
    """0: every check that applies is met; 1: some are not; 2: something cannot be checked at all."""
    targets = _targets(entry, kind)
    lines, unmade = list[dict[str, Any]](), list[str]()
    for each, name, settings in targets:
        print(f"checking {each}: {name}", file=sys.stderr)
        try:
            lines += _outcomes(each, name, settings)
        except BenchError as error:
            unmade.append(str(error))
    if as_json:
        print(json.dumps({"checks": lines, "unmade": unmade}, indent=1))
    else:
        _print(lines, len(targets), unmade)
    return 2 if unmade else 1 if any(line["verdict"] == "failed" for line in lines) else 0


def _targets(entry: str, kind: str | None) -> list[tuple[str, str, dict[str, Any]]]:
    """(kind, name, settings) of what is meant. Raises ConfigError where nothing has that name."""
    name, settings = name_and_settings(entry, "ddbench plugins check")
    kinds = [kind] if kind else list(REGISTRIES)
    found = [(each, name, settings) for each in kinds if REGISTRIES[each].offers(name)]
    if len(found) > 1:
        raise ConfigError(f"several kinds have a '{name}': add --kind {' or --kind '.join(each for each, *_ in found)}.")
    wanted = re.sub(r"[-_.]+", "-", name).lower()
    offers = {each: REGISTRIES[each].offered_by(wanted) for each in kinds}
    found = found or [(each, own, settings) for each, names in offers.items() for own in names]
    if not found:
        known = ", ".join(sorted({origin for each in kinds for origin in REGISTRIES[each].distributions()}))
        told = f"there is no plugin '{name}'" + (f" among the {kind}" if kind else "")
        raise ConfigError(f"{told}, nor a distribution of that name. `ddbench plugins` lists them; distributions: {known}.")
    return found


def _outcomes(kind: str, name: str, settings: dict[str, Any]) -> list[dict[str, Any]]:
    from ddbench.testing import outcomes

    with asking_plugins():
        plugin = REGISTRIES[kind].make(name, settings)
        return [{"kind": kind, "plugin": name, **asdict(outcome)} for outcome in outcomes(kind, plugin)]


def _print(lines: list[dict[str, Any]], num: int, unmade: list[str]) -> None:
    from tabulate import tabulate

    if lines:
        print(tabulate([[line[key] for key in ("plugin", "check", "verdict")] for line in lines], ("plugin", "check", "verdict")))
    told = [f"{line['plugin']}, {line['check']}, {line['verdict']}: {line['why']}" for line in lines if line["why"]]
    print("\n".join(["", *told, *unmade, ""] if told or unmade else [""]), end="")
    count = {verdict: sum(line["verdict"] == verdict for line in lines) for verdict in ("met", "skipped", "failed")}
    counted = ", ".join(f"{number} {verdict}" for verdict, number in count.items())
    more = f"; {len(unmade)} could not be checked" if unmade else ""
    print(f"{num} plugin{'s' * (num != 1)}, {len(lines)} checks: {counted}{more}.")
