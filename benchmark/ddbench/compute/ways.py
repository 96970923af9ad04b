"""Which way of training a network was measured fastest, by the device's model: a small table that `make gpu-report` writes."""

from __future__ import annotations

import json
from importlib.resources import files
from typing import Any, Literal

import torch

from ddbench.errors import DataError

Way = Literal["serial", "captured", "streams", "stacked"]
"""One network after the other, by plain steps or by recorded ones; side by side by recorded ones; or all at once. All but the
last give the same numbers."""
WAYS: tuple[Way, ...] = ("serial", "captured", "streams", "stacked")
TABLE = "ways.json"


def fastest(network: str, device: torch.device) -> Way | None:
    """For an architecture's name; None where nobody has measured it. Raises DataError for a damaged table."""
    if device.type != "cuda":
        return None
    way: Any = _table().get(torch.cuda.get_device_name(device), {}).get(network)
    return way if way in WAYS else None


def is_captured(network: str | None, device: torch.device) -> bool:
    """Whether one network of that architecture, or one loss, is fastest by recorded steps."""
    return network is not None and fastest(network, device) in ("captured", "streams")


def _table() -> dict[str, dict[str, str]]:
    text = (files("ddbench.compute") / TABLE).read_text(encoding="utf-8")
    try:
        value = json.loads(text)
    except ValueError as error:
        raise DataError(f"the table {TABLE} of ddbench.compute is damaged ({error}): reinstall ddbench.") from error
    return value if isinstance(value, dict) else {}
