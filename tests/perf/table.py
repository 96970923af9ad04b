"""pytest-benchmark's JSON of the evaluators to a markdown table of ratios."""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path
from typing import Any


def rows(path: Path) -> list[dict[str, str]]:
    """A row a case: milliseconds a network and epoch by way, and the widespread loop's over the best of ours."""
    cases: dict[tuple[str, int, int], dict[str, dict[str, Any]]] = defaultdict(dict)
    for entry in json.loads(path.read_text())["benchmarks"]:
        about = entry["extra_info"]
        milliseconds = 1000 * entry["stats"]["min"] / (about["epochs"] * about["repeats"])
        key = (about["network"], about["side"], about["ipc"])
        cases[key][about["way"]] = {"ms": milliseconds, "mib": about["peak_bytes"] / 2**20}
    ways = list(dict.fromkeys(way for found in cases.values() for way in found))
    made = []
    for (network, side, ipc), found in cases.items():
        row = {"network": network, "px": str(side), "IPC": str(ipc)}
        row |= {f"{way} ms": f"{found[way]['ms']:,.1f}" if way in found else "does not fit" for way in ways}
        best = min((way for way in found if way != "widespread"), key=lambda way: found[way]["ms"])
        row["widespread / best"] = f"{found['widespread']['ms'] / found[best]['ms']:.2f} ({best})"
        row["peak MiB, same order"] = " / ".join(f"{found[way]['mib']:,.0f}" if way in found else "–" for way in ways)
        made.append(row)
    return made


def markdown(table: list[dict[str, str]]) -> str:
    """A pipe table, numbers aligned right."""
    head = list(table[0])
    lines = ["| " + " | ".join(head) + " |", "|:--|" + "--:|" * (len(head) - 1)]
    return "\n".join([*lines, *("| " + " | ".join(row[name] for name in head) + " |" for row in table)])

