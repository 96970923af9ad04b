"""Records to cells: what the leaderboard reads of a record, checked, so that no damaged one can spoil a table."""

from __future__ import annotations

import base64
import math
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ddbench.errors import DataError
from ddbench.plan import canonical
from ddbench.results.store import short

HARDWARE = ("device", "kind", "cores", "threads")  # seconds compare only where all of these are equal
COSTS = ("seconds_train", "seconds_test", "images_per_second", "flops_per_image", "peak_share", "peak_memory_bytes")
Accuracies = Mapping[str, tuple[float, ...]]
"""By network label, one a repeat."""


@dataclass(frozen=True)
class Cell:
    """What the leaderboard reads of a record."""

    key: str
    suite: str
    seed: int
    plan: Mapping[str, Any]
    data: Mapping[str, Any]  # label, hash, original, train_counts, test_counts
    accuracies: Accuracies
    snapshots: Mapping[int, Accuracies]  # by step: those of the iterates that the protocol asks for
    num_test: int
    num_bytes: int  # the budget: the smaller of what is stored and the decoded images
    steps: int
    seconds: Mapping[str, float]  # by phase
    peak_bytes: float
    costs: Mapping[str, Mapping[str, Any]]  # of judging, by network label: COSTS and way; of networks that were measured
    hardware: Mapping[str, Any]
    versions: Mapping[str, str]

    @classmethod
    def of(cls, record: Mapping[str, Any]) -> Cell:
        """Read a record. Raises DataError, naming it, where something is missing or makes no sense."""
        try:
            return cls(**_fields(record))
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
            what = f"{error.args[0]!r} is missing" if isinstance(error, KeyError) else str(error)
            name = short(str(record.get("key")))
            raise DataError(f"record {name} is damaged: {what}. Remove its folder, then run again.") from error

    @property
    def is_ranked(self) -> bool:
        """Whether its protocol is for results; a habit of published code is not. Protocols that do not say are."""
        return self.plan["protocol"].get("ranked", True)

    @property
    def machine(self) -> str:
        """The hardware in a few words."""
        name, kind, cores, threads = (self.hardware.get(key) for key in HARDWARE)
        return f"{name} ({kind}), {cores} cores, {threads} threads"


def _fields(record: Mapping[str, Any]) -> dict[str, Any]:
    data, distilled, measured = (record[name] for name in ("data", "distilled", "measured"))
    key, plan = record["key"], _plan(record["plan"])
    _need(isinstance(key, str) and re.fullmatch(r"[0-9a-f]{64}", key), "its key is not 64 hex digits")
    _need(isinstance(data["label"], str), "its data set has no name")
    same = isinstance(data["hash"], str) and data["hash"] == plan["data_hash"]
    _need(same, "its data hash is not the one of its plan")
    evaluations, num_test = _evaluations(record["evaluations"], plan)
    return {
        "key": key,
        "suite": str(record["suite"]),
        "seed": plan["seed"],
        "plan": plan,
        "data": {
            "label": data["label"],
            "hash": data["hash"],
            "original": bool(data["original"]),
            "train_counts": _whole_numbers(data["train_counts"]),
            "test_counts": _whole_numbers(data["test_counts"]),
        },
        "accuracies": _accuracies(evaluations),
        "snapshots": _snapshots(record, evaluations, num_test),
        "num_test": num_test,
        "num_bytes": min(_whole_numbers([distilled["bytes_stored"], distilled["bytes_images"]])),
        "steps": _whole_numbers([distilled["steps"]])[0],
        "seconds": {name: _finite(value) for name, value in measured["seconds"].items()},
        "peak_bytes": _finite(measured["peak_memory_bytes"]),
        "costs": {label: _cost(cost) for label, cost in measured.get("networks", {}).items()},
        "hardware": dict(measured["hardware"]),
        "versions": {name: str(value) for name, value in record["versions"].items()},
    }


def _need(truth: object, otherwise: str) -> None:
    if not truth:
        raise ValueError(otherwise)


def _whole_numbers(values: Sequence[Any]) -> list[int]:
    _need(all(type(value) is int and value >= 0 for value in values), f"{values!r:.60} should be whole numbers")
    return list(values)


def _finite(value: Any) -> float:
    _need(math.isfinite(value) and value >= 0, f"{value!r:.60} should be a number of at least 0")
    return float(value)


def _plan(plan: dict[str, Any]) -> dict[str, Any]:
    """The plan, once everything that rows are grouped and named by has been looked at."""
    canonical(plan)  # refuses NaN, which no digest takes
    roles = ("dataset", "backbone", *(() if plan["baseline"] else ("loss", "space")))
    optional = (*(plan[role] for role in ("loss", "space", "generator", "proxy")), plan.get("teacher"))
    for ref in (*(plan[role] for role in roles), *plan["networks"], *(ref for ref in optional if ref is not None)):
        for name in ("kind", "name", "label", "distribution", "version"):
            _need(isinstance(ref[name], str), f"a plugin of its plan has no {name}")
        _need(isinstance(ref["settings"], dict), "a plugin of its plan has no settings")
    protocol = plan["protocol"]
    counts = [protocol.get("snapshots", 0), *(protocol[name] for name in ("epochs", "repeats", "full_data_epochs"))]
    _whole_numbers([plan["ipc"], plan["seed"], *counts])
    texts = (protocol["id"], protocol.get("description", ""), plan["labels"], plan["baseline"] or "")
    _need(all(isinstance(text, str) for text in texts), "its protocol, labels or baseline have no name")
    _need(isinstance(protocol.get("ranked", True), bool), "its protocol does not say whether it is ranked")
    both = protocol.get("teacher"), plan.get("teacher")
    _need((both[0] is None) == (both[1] is None), "of its protocol and its plan, one has a teacher and one has none")
    _need(both[0] is None or _whole_numbers([both[0]["epochs"]]), "its teacher has no epochs")
    return plan


def _evaluations(evaluations: Sequence[Mapping[str, Any]], plan: Mapping[str, Any]) -> tuple[dict[str, dict[int, float]], int]:
    """Accuracies by network of the plan and repeat, each checked against its correctness bits; the number of test images."""
    networks = [ref["label"] for ref in plan["networks"]]
    found: dict[str, dict[int, float]] = defaultdict(dict)
    sizes = sorted({*_whole_numbers([entry["num_test"] for entry in evaluations])})
    _need(len(sizes) == 1 and sizes[0] > 0, f"its evaluations are on {sizes} test images")
    for entry in evaluations:
        network, repeat, accuracy = entry["network"], entry["repeat"], _finite(entry["accuracy"])
        num_right = int.from_bytes(base64.b64decode(entry["correct"], validate=True)).bit_count()
        same = abs(accuracy * sizes[0] - num_right) < 0.5 and num_right <= sizes[0]
        _need(same, f"{network}, repeat {repeat}: accuracy {accuracy} is not {num_right} of {sizes[0]} test images")
        _need(repeat not in found[network], f"{network} has repeat {repeat} twice")
        found[network][repeat] = accuracy
    lacking = sorted(set(networks) - found.keys())
    _need(networks and not lacking, f"it has no evaluation of {', '.join(lacking) or 'any network'}")
    return {label: found[label] for label in networks}, sizes[0]


def _accuracies(evaluations: Mapping[str, Mapping[int, float]]) -> dict[str, tuple[float, ...]]:
    """By network, in the order of repeats."""
    return {network: tuple(values[repeat] for repeat in sorted(values)) for network, values in evaluations.items()}


def _snapshots(
    record: Mapping[str, Any], final: Mapping[str, Mapping[int, float]], num_test: int
) -> dict[int, dict[str, tuple[float, ...]]]:
    """By step, each iterate checked as the finished set is, and as many as the protocol asks for: the best of fewer, or of
    other networks and test images, would look like less."""
    plan, steps, given = record["plan"], record["distilled"]["steps"], record.get("snapshots", [])
    num = min(plan["protocol"].get("snapshots", 0), steps)  # baselines have no steps
    _need(len(given) == num, f"its protocol asks for {num} iterates, and it has {len(given)}")
    found: dict[int, dict[str, tuple[float, ...]]] = {}
    for entry in given:
        step = _whole_numbers([entry["step"]])[0]
        _need(step < steps and step not in found, f"its iterate {step} stands twice or is none of its {steps} steps")
        try:
            evaluations, num_images = _evaluations(entry["evaluations"], plan)
        except ValueError as error:
            raise ValueError(f"iterate {step}: {error}") from error
        same = num_images == num_test and all(evaluations[name].keys() == final[name].keys() for name in final)
        _need(same, f"iterate {step} and the finished set have not the same repeats and test images")
        found[step] = _accuracies(evaluations)
    return dict(sorted(found.items()))


def _cost(cost: Mapping[str, Any]) -> dict[str, Any]:
    """What judging by one network cost."""
    way, num = cost["way"], _whole_numbers([cost["processes"]])[0]
    _need(isinstance(way, str), "it does not say in which way it was judged")
    return {name: _finite(cost[name]) for name in COSTS} | {"way": way + (f", {num} processes" if num > 1 else "")}


def read_cells(records: Iterable[Mapping[str, Any]]) -> tuple[list[Cell], list[str]]:
    """The cells in the order of their keys, and a sentence for each record that is damaged or stands twice."""
    cells: dict[str, Cell] = {}
    bad = []
    for record in records:
        try:
            cell = Cell.of(record)
        except DataError as error:
            bad.append(str(error))
            continue
        if cell.key in cells:
            bad.append(f"record {short(cell.key)} stands twice: its folder was copied. Remove the copy.")
        cells.setdefault(cell.key, cell)
    return [cells[key] for key in sorted(cells)], sorted(bad)
