"""What a step and an epoch ask of a device, counted: not more than the recorded numbers."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from perf import launches

GOLDEN = Path(__file__).parent.parent / "golden" / "launches.json"


@pytest.mark.slow
def test_no_step_asks_for_more_than_it_did() -> None:
    """Rewrite the numbers with: DDBENCH_GOLDEN=write pytest tests/unit/test_launches.py, and read the difference.

    torch's releases may differ in what they launch: a tenth more is allowed. Copies, blocking ones and waits are ours.
    """
    found = {name: launches.plain(counts) for name, counts in launches.counted()}
    if os.environ.get("DDBENCH_GOLDEN") == "write":
        GOLDEN.write_text(json.dumps(found, indent=1) + "\n")
    golden = json.loads(GOLDEN.read_text())
    assert found.keys() == golden.keys()
    for name, now in found.items():
        assert now["launches"] <= 1.1 * golden[name]["launches"], name
        for what in ("copies", "blocking", "waits"):
            assert now[what] <= golden[name][what], f"{name}: {what}"
    steps = [now for name, now in found.items() if name.startswith("step of")]
    assert {(now["blocking"], now["waits"]) for now in found.values()} == {(0, 0)}
    assert max(now["copies"] for now in steps) <= 2
