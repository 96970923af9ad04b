"""How much autograd keeps for a backward pass: a count without the noise that resident memory has on a CPU."""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Callable

import torch
from torch import Tensor


class Held:
    """A tensor that autograd keeps."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor


def peak_saved_bytes(step: Callable[[], object]) -> int:
    """The most bytes that autograd holds at once while a step runs; a storage that several tensors share counts once."""
    users: Counter[int] = Counter()
    live, peak = 0, 0

    def pack(tensor: Tensor) -> Held:
        nonlocal live, peak
        held, storage = Held(tensor), tensor.untyped_storage()
        address, size = storage.data_ptr(), storage.nbytes()
        users[address] += 1
        if users[address] == 1:
            live += size
            peak = max(peak, live)
        weakref.finalize(held, drop, address, size)
        return held

    def drop(address: int, size: int) -> None:
        nonlocal live
        users[address] -= 1
        if not users[address]:
            live -= size

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda held: held.tensor):
        step()
    return peak
