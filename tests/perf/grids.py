"""The grids of the report's part `tables`, small enough for some minutes of a card, and what their store says of them.

python tests/perf/grids.py STORE        accuracies and seconds of a store, as JSON
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import tomllib
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

SUITES = Path(__file__).resolve().parents[2] / "benchmark" / "ddbench" / "suites"
NAMES = ("hpd-table7", "glad-table3")
DATA = {
    "cifar10": "CIFAR-10 and a random StyleGAN3 of the published size",
    "digits": "5,000 digits that come with a package, and a random generator of six layers, in place of CIFAR-10",
}
FEW = [(name, "loss=dm") for name in NAMES]
STEPS = [("glad-table3", "baseline=random")]
STEPS += [(name, f"loss={loss}") for loss in ("dm", "dsa", "tesla") for name in NAMES]  # what is cut off is the last loss
CHANGES = {  # the shapes of the tables, which a card has the time for; steps, experts and epochs stay those of a CPU
    "subsets": ["cifar10"], "generator": {"name": "stylegan3-random"}, "backbone": "convnet",
}  # fmt: skip
NETWORKS = {"hpd-table7": ["convnet"], "glad-table3": ["alexnet"]}
TINY = {"protocol": "smoke-1", "seeds": [0]}
TINY_DISTILL = {"rank_epochs": 2, "proxy_epochs": 1}


def data() -> str:
    """Of DATA, what lies where data sets are looked for."""
    root = os.environ.get("DDBENCH_DATA")
    return "cifar10" if root and (Path(root) / "cifar-10-batches-py" / "test_batch").is_file() else "digits"


def suite(name: str, folder: Path, data: str, tiny: bool) -> str:
    """What `ddbench run` takes: the shipped suite's reduced form, or a file in the folder that differs from it."""
    if data == "digits" and not tiny:
        return f"{name}:reduced"
    raw = tomllib.loads((SUITES / f"{name}.toml").read_text(encoding="utf-8"))
    form: dict[str, Any] = raw | {"name": f"{name}-{'tiny' if tiny else data}"} | raw["reduced"]
    form["description"] = f"{name}:reduced on {data}{', tiny' if tiny else ''}"
    del form["reduced"]
    if data == "cifar10":
        form |= CHANGES | {"networks": NETWORKS[name]}
    if tiny:
        few = "total_steps" if "total_steps" in form["distill"] else "steps"
        form |= TINY | {"distill": form["distill"] | TINY_DISTILL | {few: 3}}
        form["override"] = [rule | {"set": _fewer(rule["set"])} for rule in form["override"]]
    path = folder / f"{form['name']}.toml"
    path.write_text("".join(f"{key} = {inline(value)}\n" for key, value in form.items()), encoding="utf-8")
    return str(path)


def _fewer(settings: Mapping[str, Any]) -> dict[str, Any]:
    return {name: 2 if name == "steps" else value for name, value in settings.items()}


def inline(value: Any) -> str:
    """As TOML writes it in one line."""
    if isinstance(value, Mapping):
        return "{ " + ", ".join(f"{key} = {inline(entry)}" for key, entry in value.items()) + " }"
    if isinstance(value, list):
        return f"[{', '.join(map(inline, value))}]"
    return json.dumps(value)


def of_store(root: Path) -> dict[str, Any]:
    """The rows of both tables: a method's accuracy on each network, and the seconds of its phases, means over its sets."""
    from ddbench.leaderboard.join import Result, results_of
    from ddbench.results.contents import read_contents
    from ddbench.results.store import Store

    groups: dict[tuple[str, str, int], list[Result]] = defaultdict(list)
    for result in results_of(read_contents(Store(root, create=False)))[0]:
        groups[result.plan.method, result.record.data.label, result.record.steps].append(result)
    found: dict[str, Any] = {"accuracies": [], "seconds": []}
    for (method, data, steps), results in sorted(groups.items()):
        about = {"method": method, "data": data, "steps": steps, "sets": len(results)}
        for network in sorted({name for result in results for name in result.accuracies}):
            seeds = [statistics.fmean(result.accuracies[network]) for result in results if network in result.accuracies]
            spread = statistics.stdev(seeds) if len(seeds) > 1 else None
            found["accuracies"].append(about | {"network": network, "mean": statistics.fmean(seeds), "std": spread})
        found["seconds"].append(about | _spent(results))
    return found


def _spent(results: Iterable[Any]) -> dict[str, Any]:
    """Means over sets; of memory the most that one took."""
    results = list(results)
    phases = {name: statistics.fmean(result.seconds.get(name, 0.0) for result in results) for name in PHASES}
    plan, record = results[0].plan, results[0].record
    return phases | {
        "loss": plan.loss.name if plan.loss else "",
        "space": plan.space.name if plan.space else "",
        "stages": len(record.stages),
        "peak_making": max(result.record.measured.peak_memory_bytes for result in results),
        "peak_judging": max(each.measured.peak_memory_bytes for result in results for each in result.judged),
    }


PHASES = ("resources", "distill", "rank", "evaluate")


def tables(found: Mapping[str, Any]) -> list[list[dict[str, str]]]:
    """For the page: accuracies, then seconds."""
    accuracies = []
    for row in found["accuracies"]:
        spread = f" ± {100 * row['std']:.1f}" if row["std"] is not None else ""
        line = _named(row) | {"sets": str(row["sets"]), "network": row["network"]}
        accuracies.append(line | {"accuracy %": f"{100 * row['mean']:.1f}{spread}"})
    return [accuracies, [_seconds(row, found["seconds"]) for row in found["seconds"]]]


def _named(row: Mapping[str, Any]) -> dict[str, str]:
    return {"method": row["method"], "data": row["data"], "steps": str(row["steps"])}


def _seconds(row: Mapping[str, Any], others: Iterable[Mapping[str, Any]]) -> dict[str, str]:
    spent = row["distill"] + row["rank"]
    glad = [one["distill"] + one["rank"] for one in _as_many(row, others) if one["space"] == "glad"]
    line = _named(row) | {"stages": str(row["stages"])}
    line |= {"shared s": f"{row['resources']:.1f}", "distil s": f"{row['distill']:.2f}", "rank s": f"{row['rank']:.2f}"}
    line["ms a step"] = f"{1000 * row['distill'] / row['steps']:.1f}" if row["steps"] else "–"
    line["of glad"] = f"{spent / glad[0]:.2f}" if glad and glad[0] else "–"
    line["judge s"] = f"{row['evaluate']:.2f}"
    line["peak MiB, making / judging"] = f"{row['peak_making'] / 2**20:,.0f} / {row['peak_judging'] / 2**20:,.0f}"
    return line


def _as_many(row: Mapping[str, Any], others: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The rows of its loss and data; those of as many steps first."""
    same = [one for one in others if (one["loss"], one["data"]) == (row["loss"], row["data"]) and row["loss"]]
    return sorted(same, key=lambda one: abs(one["steps"] - row["steps"]))


if __name__ == "__main__":
    print(json.dumps(of_store(Path(sys.argv[1]))))
