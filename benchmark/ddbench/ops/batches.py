"""Batches of jobs as files of a store: what other machines are to do, and what they tell of it.

Batches that are started together are a *wave*, a folder:

    STORE/work/batches/<wave>/orders.json       the jobs of each batch, and how they are done
    STORE/work/batches/<wave>/<number>.log      what a batch tells: JSON lines, for whoever submitted it
    STORE/work/batches/<wave>/...               what else belongs to whatever started it

A machine answers in the store and nowhere else, and nobody compares clocks.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ddbench.api import JobState
from ddbench.errors import DataError

MAX_BYTES = 64 << 20  # of a file of orders, or of a log
BLIND = 2  # the exit code of a batch that has begun nothing because it does not see the store, or must not work there


def folder_of(store: Path, wave: str) -> Path:
    """Of a wave."""
    return store / "work" / "batches" / wave


@dataclass(frozen=True)
class Orders:
    """What is done by the batches of a wave, and how."""

    nonce: str  # a machine that finds another one sees another store
    batches: tuple[tuple[str, ...], ...]  # names of jobs
    device: str
    workers: int  # jobs side by side
    threads: int
    data_root: str | None
    checkpoint_seconds: float

    def write(self, folder: Path) -> None:
        """With an empty log for each batch, so that the files are there before a machine looks for them."""
        folder.mkdir(parents=True)
        for number in range(len(self.batches)):
            (folder / f"{number}.log").touch()
        beside = folder / ".orders.json.tmp"
        beside.write_text(json.dumps(asdict(self)), encoding="utf-8")
        beside.replace(folder / "orders.json")

    @staticmethod
    def read(folder: Path) -> Orders:
        """Raises DataError where they are missing or damaged."""
        path = folder / "orders.json"
        try:
            if path.stat().st_size > MAX_BYTES:
                raise ValueError("it is too large")
            values = json.loads(path.read_bytes())
            values["batches"] = tuple(tuple(map(str, batch)) for batch in values["batches"])
            return Orders(**values)
        except FileNotFoundError as error:
            raise DataError(f"{path} is not there.") from error
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise DataError(f"{path} cannot be read ({error}).") from error


def lines_of(path: Path) -> list[dict[str, Any]]:
    """What a batch has told so far. A line that was torn is left out."""
    found = []
    try:
        with path.open("rb") as file:
            content = file.read(MAX_BYTES)
    except OSError:
        return []
    for line in content.split(b"\n"):
        try:
            value = json.loads(line) if line else None
        except ValueError:
            continue
        if isinstance(value, dict):
            found.append(value)
    return found


@dataclass
class Told:
    """What a batch has told: where it has begun, and the state of each of its jobs that it has spoken of."""

    machine: str = ""
    states: dict[str, JobState] = field(default_factory=dict)

    @staticmethod
    def read(path: Path) -> Told:
        """Of its log."""
        told = Told()
        for line in lines_of(path):
            if "begun" in line:
                told.machine = str(line["begun"])
            elif line.get("state") in ("running", "ended", "lost"):
                fraction = line.get("fraction", 0.0)
                fraction = float(fraction) if isinstance(fraction, int | float) else 0.0
                phase, detail = str(line.get("phase", "")), str(line.get("detail", ""))
                detail += f" on {told.machine}" if line["state"] == "lost" and told.machine else ""
                told.states[str(line.get("job"))] = JobState(line["state"], phase, fraction, detail, told.machine)
        return told


def append(path: Path, value: Mapping[str, Any]) -> None:
    """A line more of a log, whatever a killed process has left at its end."""
    handle = os.open(path, os.O_WRONLY | os.O_APPEND)
    try:
        os.write(handle, b"\n" + json.dumps(value).encode())
    finally:
        os.close(handle)
