"""What a step and an epoch ask of a device, counted: not more than the recorded numbers."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from perf import launches

GOLDEN = Path(__file__).parent.parent / "golden" / "launches.json"
WRITE = os.environ.get("DDBENCH_GOLDEN") == "write"


COSTLY = ("step of tesla, replayed", "step of mtt, replayed")


def golden() -> dict[str, dict[str, int]]:
    found: dict[str, dict[str, int]] = json.loads(GOLDEN.read_text())
    return found


@pytest.mark.slow
@pytest.mark.parametrize("name", [pytest.param(name, marks=[pytest.mark.long] * (name in COSTLY)) for name in launches.counted()])
def test_nothing_asks_for_more_than_it_did(name: str) -> None:
    """Rewrite the numbers with: DDBENCH_GOLDEN=write pytest -n 0 tests/unit/test_launches.py, and read the difference.

    torch's releases may differ in what they launch: a tenth more is allowed. Copies, blocking ones and waits are ours.
    """
    now = launches.plain(launches.counted()[name]())
    if WRITE:
        GOLDEN.write_text(json.dumps(golden() | {name: now}, indent=1) + "\n")
    before = golden()[name]
    assert now["launches"] <= 1.1 * before["launches"]
    assert {what: now[what] for what in before if what != "launches" and now[what] > before[what]} == {}
    assert (now["blocking"], now["waits"]) == (0, 0)


def test_the_recorded_numbers_are_of_what_is_counted() -> None:
    assert golden().keys() == launches.counted().keys()
    assert max(numbers["copies"] for numbers in golden().values()) <= 2
    for name, numbers in golden().items():
        if name.endswith(", replayed"):
            assert numbers["launches"] < golden()[name.removesuffix(", replayed")]["launches"]
