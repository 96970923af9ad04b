"""Records to cells: what the leaderboard reads of a record, checked, so that no damaged one can spoil a table."""

from __future__ import annotations

import base64
import math
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ddbench.config import canonical
from ddbench.errors import DataError
from ddbench.store import short

HARDWARE = ("device", "kind", "cores", "threads")  # seconds compare only where all of these are equal


@dataclass(frozen=True)
class Cell:
    """What the leaderboard reads of a record."""

    key: str
    suite: str
    seed: int
    plan: Mapping[str, Any]
    data: Mapping[str, Any]  # label, hash, original, train_counts, test_counts
    accuracies: Mapping[str, tuple[float, ...]]  # by network label, one a repeat
    num_test: int
    num_bytes: int  # the budget: the smaller of what is stored and the decoded images
    steps: int
    seconds: Mapping[str, float]  # by phase
    peak_bytes: float
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
    accuracies, num_test = _accuracies(record["evaluations"])
    networks = [ref["label"] for ref in plan["networks"]]
    lacking = sorted(set(networks) - accuracies.keys())
    _need(networks and not lacking, f"it has no evaluation of {', '.join(lacking) or 'any network'}")
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
        "accuracies": {label: accuracies[label] for label in networks},
        "num_test": num_test,
        "num_bytes": min(_whole_numbers([distilled["bytes_stored"], distilled["bytes_images"]])),
        "steps": _whole_numbers([distilled["steps"]])[0],
        "seconds": {name: _finite(value) for name, value in measured["seconds"].items()},
        "peak_bytes": _finite(measured["peak_memory_bytes"]),
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
    optional = (plan[role] for role in ("loss", "space", "generator", "proxy"))
    for ref in (*(plan[role] for role in roles), *plan["networks"], *(ref for ref in optional if ref is not None)):
        for name in ("kind", "name", "label", "distribution", "version"):
            _need(isinstance(ref[name], str), f"a plugin of its plan has no {name}")
        _need(isinstance(ref["settings"], dict), "a plugin of its plan has no settings")
    protocol = plan["protocol"]
    _whole_numbers([plan["ipc"], plan["seed"], *(protocol[name] for name in ("epochs", "repeats", "full_data_epochs"))])
    texts = (protocol["id"], plan["labels"], plan["baseline"] or "")
    _need(all(isinstance(text, str) for text in texts), "its protocol, labels or baseline have no name")
    return plan


def _accuracies(evaluations: Sequence[Mapping[str, Any]]) -> tuple[dict[str, tuple[float, ...]], int]:
    """By network, in the order of repeats, each checked against its correctness bits; and the number of test images."""
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
    return {network: tuple(values[repeat] for repeat in sorted(values)) for network, values in found.items()}, sizes[0]


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
