"""Global flags of torch and Python that decide numbers, read before and after a job: a plugin that changes one is named."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F

from ddbench.compute import precision

Flags = Mapping[str, Any]


def read_flags() -> Flags:
    """By the name that a reader knows them by."""
    module = torch.nn.modules.module
    hooks = (
        module._global_forward_hooks, module._global_forward_pre_hooks, module._global_backward_hooks,
        module._global_backward_pre_hooks, module._global_module_registration_hooks, module._global_parameter_registration_hooks,
        module._global_buffer_registration_hooks,
    )  # fmt: skip
    return {
        "torch.backends.mkldnn.enabled": torch.backends.mkldnn.enabled,
        "torch.backends.mkldnn.deterministic": torch.backends.mkldnn.deterministic,
        "the float32 matmul precision": precision.settings(),
        "autocast": tuple(torch.is_autocast_enabled(kind) for kind in ("cpu", "cuda")),
        "the default dtype": torch.get_default_dtype(),
        "the default device": torch.get_default_device(),
        "grad mode": torch.is_grad_enabled(),
        "inference mode": torch.is_inference_mode_enabled(),
        "anomaly mode": torch.is_anomaly_enabled(),
        "deterministic algorithms": torch.are_deterministic_algorithms_enabled(),
        "flushing of denormal numbers": torch.tensor(1e-45, dtype=torch.float32, device="cpu").mul(1).item() == 0.0,
        "the number of threads": torch.get_num_threads(),
        "global hooks of torch.nn.Module": tuple(tuple(held) for held in hooks),
        "torch.nn.functional": {name: id(value) for name, value in vars(F).items() if callable(value)},
        "torch.nn.Module.__call__": id(torch.nn.Module.__call__),
        "the working directory": _folder(),
    }


def _folder() -> str:
    try:
        return str(os.getcwd())  # noqa: PTH109 - a name for a message; a folder that is gone is an answer too
    except OSError:
        return "gone"


def changed_flags(before: Flags) -> list[str]:
    """The names of those that are not as they were."""
    now = read_flags()
    return [name for name, value in before.items() if now[name] != value]
