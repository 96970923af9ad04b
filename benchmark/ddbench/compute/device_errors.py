"""What an error says of the device: that its memory was short, or that it is lost to this process."""

from __future__ import annotations

from collections.abc import Iterator

import torch

OF_CUDA = ("CUDA error", "CUDNN_STATUS", "CUBLAS_STATUS")  # in the messages of those of its errors that have no type of their own


def is_out_of_memory(error: BaseException) -> bool:
    """Whether it is, or comes of, too little memory on a device: the process can go on."""
    return any(isinstance(one, torch.OutOfMemoryError) for one in _chain(error))


def is_lost(error: BaseException, device: torch.device) -> bool:
    """Whether a CUDA device is of no further use to this process: after an assertion in a kernel or an illegal access every call
    fails, also the next job's. Waits for the device, which reports such errors late."""
    if device.type != "cuda":
        return False
    if any(_is_of_cuda(one) for one in _chain(error)):
        return True
    try:
        torch.cuda.synchronize(device)
    except Exception:
        return True
    return False


def _is_of_cuda(error: BaseException) -> bool:
    if isinstance(error, torch.OutOfMemoryError):
        return False
    kind: type[Exception] | None = getattr(torch, "AcceleratorError", None)  # from torch 2.8 on
    if kind is not None and isinstance(error, kind):
        return True
    return isinstance(error, RuntimeError) and any(word in _text(error) for word in OF_CUDA)


def _text(error: BaseException) -> str:
    try:
        return str(error)
    except Exception:
        return ""


def _chain(error: BaseException) -> Iterator[BaseException]:
    """The error and what it comes of."""
    seen = set[int]()
    one: BaseException | None = error
    while one is not None and id(one) not in seen:
        seen.add(id(one))
        yield one
        one = one.__cause__ or one.__context__
