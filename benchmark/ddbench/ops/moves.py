"""From the host to a device without waiting for it: through pinned memory, many tensors in one copy."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor, nn

ALIGNED = 128  # bytes that a tensor inside of a larger one begins at a multiple of, as kernels like it


def send(tensor: Tensor, device: torch.device) -> Tensor:
    """A tensor on a device. From the host to a CUDA device it is on its way when this returns: the host waits neither for it nor
    for what the device does, and may change the original at once."""
    if device.type != "cuda" or tensor.device.type != "cpu":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


def send_together(tensors: Sequence[Tensor], device: torch.device) -> list[Tensor]:
    """`send` of each, in one copy for all; they then share their memory, without overlapping."""
    if device.type != "cuda" or not tensors:
        return [tensor.to(device) for tensor in tensors]
    starts = list(accumulate((-(-tensor.nbytes // ALIGNED) * ALIGNED for tensor in tensors), initial=0))
    flat = torch.empty(starts[-1], dtype=torch.uint8)
    for tensor, start in zip(tensors, starts, strict=False):
        flat[start : start + tensor.nbytes] = tensor.detach().flatten().view(torch.uint8)
    there = send(flat, device)
    return [
        there[start : start + tensor.nbytes].view(tensor.dtype).view(tensor.shape)
        for tensor, start in zip(tensors, starts, strict=False)
    ]


@dataclass(frozen=True)
class Sent:
    """Tensors on their way to a CUDA device on a stream of their own."""

    tensors: list[Tensor]
    arrived: torch.cuda.Event

    def take(self) -> list[Tensor]:
        """The tensors, for the current stream, which waits until they are there; the host does not."""
        here = torch.cuda.current_stream(self.tensors[0].device)
        here.wait_event(self.arrived)
        for tensor in self.tensors:
            tensor.record_stream(here)  # or their memory could be given away before this stream has read them
        return self.tensors


class Ahead:
    """What the next step needs of the host's memory, sent to a CUDA device while that computes this step."""

    def __init__(self) -> None:
        self._stream: torch.cuda.Stream | None = None
        self._sent: dict[Hashable, dict[int, Sent | list[Tensor]]] = {}

    def send(self, name: Hashable, step: int, tensors: Sequence[Tensor], device: torch.device) -> None:
        """Begin to send what a later step will `take` under that name."""
        if self._stream is None:
            self._stream = torch.cuda.Stream(device)
        with torch.cuda.stream(self._stream):
            there, arrived = send_together(tensors, device), torch.cuda.Event()
            arrived.record(self._stream)
        self._sent.setdefault(name, {})[step] = Sent(there, arrived)

    def take(self, name: Hashable, step: int) -> list[Tensor] | None:
        """What was sent for this step, as often as it is asked for; None if nothing was. Lets go of earlier steps'."""
        of_name = self._sent.get(name, {})
        for earlier in [number for number in of_name if number < step]:
            del of_name[earlier]
        found = of_name.get(step)
        if isinstance(found, Sent):
            found = of_name[step] = found.take()
        return found

    def keep(self, name: Hashable, step: int, tensors: list[Tensor]) -> None:
        """What was sent in the step itself, so that it is sent once."""
        self._sent.setdefault(name, {})[step] = tensors

    def forget(self) -> None:
        """Let go of all of it."""
        self._sent.clear()


@torch.no_grad()
def send_network(network: nn.Module, device: torch.device) -> nn.Module:
    """A network that is on the host, itself, with its parameters and buffers on a device, in one copy; tied ones stay tied."""
    if device.type != "cuda":
        return network.to(device)
    held = list(dict.fromkeys((*network.parameters(), *network.buffers())))
    for old, new in zip(held, send_together(held, device), strict=True):
        old.data = new
    return network
