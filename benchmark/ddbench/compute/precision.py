"""How float32 products are rounded: on CUDA devices TF32 cuts factors to 10 bits where one of several settings allows it.

torch has two interfaces to it, and refuses to answer the old one once the new one has said something that it cannot express. So
the new one alone is used where torch has it: with `torch.backends.fp32_precision` set by somebody, the old one changes nothing.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping

import torch
import torch.nn.functional as F

CUDA = ("cuda.matmul", "cudnn.conv", "cudnn.rnn")
CPU = ("mkldnn.matmul", "mkldnn.conv", "mkldnn.rnn")
SIDE = 128  # of the matrices, and channels of the images, that a rounding is tried on: tensor cores take such


def _read(name: str) -> str | None:
    """None where torch has no such setting."""
    try:
        return str(operator.attrgetter(name)(torch.backends).fp32_precision)
    except (AttributeError, RuntimeError):
        return None


def settings() -> Mapping[str, str | None]:
    """What decides it, by name, as far as torch says it."""
    found = {name: _read(name) for name in (*CUDA, *CPU)}
    return found if found["cuda.matmul"] is not None else {"matmul": torch.get_float32_matmul_precision()}


def allow_tf32(allowed: bool) -> None:
    """Let CUDA devices round, or not; CPUs never do."""
    if _read("cuda.matmul") is None:
        torch.backends.cuda.matmul.allow_tf32 = allowed
        torch.backends.cudnn.allow_tf32 = allowed
        return
    wanted = dict.fromkeys(CUDA, "tf32" if allowed else "ieee") | dict.fromkeys(CPU, "ieee")
    for name, value in wanted.items():
        if _read(name) is not None:
            operator.attrgetter(name)(torch.backends).fp32_precision = value


def rounds(device: torch.device) -> bool:
    """Whether a product and a convolution on a device are rounded now, whatever was asked for: a driver may be told otherwise by
    NVIDIA_TF32_OVERRIDE. 1 + 2^-11 has one bit more than TF32 keeps. Waits for the device."""
    odd = torch.full((SIDE, SIDE), 1 + 2.0**-11, device=device)
    one = torch.eye(SIDE, device=device)
    product = odd @ one
    mapped = F.conv2d(odd.view(1, SIDE, SIDE, 1), one.view(SIDE, SIDE, 1, 1)).view(SIDE, SIDE)
    return not bool(((product == odd) & (mapped == odd)).all())
