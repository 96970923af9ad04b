"""The contract of plugins that compute: on a CUDA device, a pretended one, they mix no devices and do not make the host wait."""

from __future__ import annotations

import torch
from torch import Tensor

from ddbench.testing.pretended import Counts, device_of


def all_on(device: torch.device, **tensors: Tensor) -> None:
    """Every one of these."""
    for name, tensor in tensors.items():
        where = device_of(tensor)
        assert where == device, f"{name} must be on the run's device, {device}, and is on {where}."


def runs_ahead(counts: Counts, what: str) -> None:
    """The host did not have to wait."""
    assert not counts.waits, f"{what} makes the host wait for the device: {', '.join(dict.fromkeys(counts.waits))}."
    lines = ", ".join(dict.fromkeys(counts.blocking))
    assert not counts.blocking, f"{what} waits for copies to the device ({lines}): use ddbench.ops.moves.send."
