"""pytest-benchmark's JSON of the evaluators, or of the losses, to markdown tables of ratios."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable
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


def loss_cases(paths: Iterable[Path]) -> list[dict[str, Any]]:
    """A case of each kind in the order found: what it was, its fastest step, and its highest peak."""
    found: dict[tuple[Any, ...], dict[str, Any]] = {}
    for path in paths:
        for entry in json.loads(path.read_text())["benchmarks"]:
            about = entry["extra_info"]
            case = about | {"ms": 1000 * entry["stats"]["min"]}
            key = (about["loss"], about["ipc"], about.get("form"), about.get("syn_steps"))
            before = found.setdefault(key, case)
            before["ms"] = min(before["ms"], case["ms"])
            before["peak_bytes"] = max(before["peak_bytes"], case["peak_bytes"])
    return list(found.values())


def loss_tables(cases: list[dict[str, Any]]) -> dict[str, list[dict[str, str]]]:
    """The losses of two forms, plain against batched; those of one; those that unroll a student; and replayed steps."""
    tables: dict[str, list[dict[str, str]]] = {"two forms": [], "one form": [], "unrolled": [], "replayed": []}
    forms = {(case["loss"], case["ipc"], case.get("form")): case for case in cases}
    for case in cases:
        row = {"loss": case["loss"], "IPC": str(case["ipc"])}
        if "syn_steps" in case:
            row |= {"student steps": str(case["syn_steps"]), "ms": f"{case['ms']:,.1f}"}
            row |= {"held by autograd MiB": mib(case["saved_bytes"], 1), "peak MiB": mib(case["peak_bytes"])}
            tables["unrolled"].append(row)
            continue
        if case["form"] == "replayed":
            tables["replayed"].append(row | {"replayed ms": f"{case['ms']:,.1f}", "peak MiB": mib(case["peak_bytes"])})
            continue
        row["real a class"] = str(case["batch_real"] or "none")
        if case["form"] == "default":
            tables["one form"].append(row | {"ms": f"{case['ms']:,.1f}", "peak MiB": mib(case["peak_bytes"])})
        elif case["form"] == "plain" and (batched := forms.get((case["loss"], case["ipc"], "batched"))):
            row |= {"plain ms": f"{case['ms']:,.1f}", "batched ms": f"{batched['ms']:,.1f}"}
            row["plain / batched"] = f"{case['ms'] / batched['ms']:.2f}"
            row["peak MiB, same order"] = f"{mib(case['peak_bytes'])} / {mib(batched['peak_bytes'])}"
            tables["two forms"].append(row)
    return {name: rows for name, rows in tables.items() if rows}


def mib(num: int, places: int = 0) -> str:
    return f"{num / 2**20:,.{places}f}"


def markdown(table: list[dict[str, str]]) -> str:
    """A pipe table, numbers aligned right."""
    head = list(table[0])
    lines = ["| " + " | ".join(head) + " |", "|:--|" + "--:|" * (len(head) - 1)]
    return "\n".join([*lines, *("| " + " | ".join(row[name] for name in head) + " |" for row in table)])


def generator_cases(paths: Iterable[Path]) -> list[dict[str, Any]]:
    """A case of each kind in the order found, with its fastest step."""
    entries = [entry for path in paths for entry in json.loads(path.read_text())["benchmarks"]]
    return [entry["extra_info"] | {"ms": 1000 * entry["stats"]["min"]} for entry in entries]


def generator_table(cases: list[dict[str, Any]]) -> list[dict[str, str]]:
    """A row a case; the ratio is to the plain form's time with as many images, where that was measured."""
    plain = {case["num"]: case["ms"] for case in cases if case["form"] == "plain"}
    made = []
    for case in cases:
        row = {"form": case["form"], "precision": case["precision"], "width": str(case["width"]), "px": str(case["side"])}
        row |= {"images": str(case["num"]), "at once": str(case["chunk"]), "ms": f"{case['ms']:,.0f}"}
        row["of plain"] = f"{case['ms'] / plain[case['num']]:.2f}" if case["num"] in plain else "–"
        row["peak MiB"] = mib(case["peak_bytes"])
        row["held by autograd MiB"] = mib(case["saved_bytes"]) if "saved_bytes" in case else "–"
        row["image error, worst"] = f"{case['image_error']:.1e}" if "image_error" in case else "–"
        row["gradient error, rms"] = f"{case['gradient_error']:.1e}" if "gradient_error" in case else "–"
        made.append(row)
    return made
