"""A step on a CUDA device, recorded once as a graph and replayed: the host launches one thing where it launched hundreds.

A graph reads and writes the very tensors that it was recorded with. So a recorded step has inputs of its own, into which a batch
is copied, and everything else that it changes must stay where it is.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

WARM_UPS = 3  # steps before a capture, as CUDA graphs want
CLOSE = {torch.float64: 1e-9, torch.float32: 1e-3}  # how far a replay may be from the plain step, relative to the largest value

Step = Callable[..., tuple[Tensor, ...]]
"""Inputs -> results, detached. Draws from known generators alone, and asks nothing of the host."""
Changed = Callable[[], Mapping[str, Tensor]]
"""All that a step changes, by name; an optimiser's tensors are there after its first step."""


class Recorded:
    """A recorded step."""

    def __init__(self, graph: torch.cuda.CUDAGraph, inputs: Sequence[Tensor], results: tuple[Tensor, ...]) -> None:
        self.graph, self.inputs, self.results = graph, inputs, results

    def __call__(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """One step. The results are valid until the next one."""
        torch._foreach_copy_(list(self.inputs), list(inputs))
        self.graph.replay()
        return self.results


def record(
    step: Step, inputs: Sequence[Tensor], changed: Changed, rngs: Sequence[torch.Generator], device: torch.device,
    allow: Callable[[bool], None] = lambda allowed: None,
) -> Recorded | None:  # fmt: skip
    """Record a step; nothing has changed when this returns. None where a replay is not the plain step, as where a step keeps
    something that a graph cannot see: the plain step must then be taken.

    `rngs` are the generators on the device that the step draws from. `allow` is told when a capture begins and ends.
    """
    own = [tensor.clone() for tensor in inputs]
    before = {name: tensor.detach().clone() for name, tensor in changed().items()}
    draws = [rng.get_state() for rng in rngs]

    @torch.no_grad()
    def put_back() -> None:
        for name, tensor in changed().items():
            if name in before:
                tensor.copy_(before[name])
            else:  # an optimiser begins with zeros
                tensor.zero_()
        for rng, state in zip(rngs, draws, strict=True):
            rng.set_state(state)

    with torch.cuda.device(device):
        side = torch.cuda.Stream(device)
        side.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(side):
            for _ in range(WARM_UPS):
                step(*own)
        torch.cuda.current_stream(device).wait_stream(side)
        put_back()
        plain = [result.clone() for result in step(*own)]
        wanted = {name: tensor.detach().clone() for name, tensor in changed().items()}
        put_back()
        graph = torch.cuda.CUDAGraph()
        for rng in rngs:
            graph.register_generator_state(rng)
        clear_workspaces()  # that graphs which run side by side do not share the one of the stream that captures
        allow(True)
        try:
            with torch.cuda.graph(graph):
                results = step(*own)
        except torch.OutOfMemoryError:  # a graph keeps what a plain step gives back
            put_back()
            return None
        finally:
            allow(False)
            clear_workspaces()
        graph.replay()
        same = [_alike(one, other) for one, other in zip(results, plain, strict=True)]
        same += [_alike(tensor.detach(), wanted[name]) for name, tensor in changed().items()]
        is_step = bool(torch.stack(same).all())
        put_back()
    return Recorded(graph, own, results) if is_step else None


def clear_workspaces() -> None:
    """Give back the scratch memory that torch keeps for cuBLAS, by handle and stream; it is taken again where it is needed."""
    clear: Callable[[], None] | None = getattr(torch._C, "_cuda_clearCublasWorkspaces", None)
    if clear is not None and torch.cuda.is_initialized():
        clear()


def _alike(one: Tensor, other: Tensor) -> Tensor:
    """0-d bool."""
    if not one.is_floating_point():
        return (one == other).all()
    if not one.numel():
        return torch.ones((), dtype=torch.bool, device=one.device)
    return (one - other).abs().max() <= CLOSE.get(one.dtype, 1e-2) * other.abs().max()


class Recorder:
    """Recorded calls of functions of a network and of tensors, by name and shapes; off, it calls."""

    def __init__(self, is_on: bool = False) -> None:
        self.is_on = is_on
        self._known: dict[tuple[object, ...], tuple[nn.Module, Recorded | None]] = {}

    def forget(self) -> None:
        """Let go of all graphs, and of the memory that they keep."""
        self._known.clear()

    def call(
        self, name: str, step: Step, network: nn.Module, inputs: Sequence[Tensor], device: torch.device
    ) -> tuple[Tensor, ...]:  # fmt: skip
        """`step(network, *inputs)`."""
        if not self.is_on or device.type != "cuda":
            return step(network, *inputs)
        key = (name, *((tensor.shape, tensor.dtype) for tensor in inputs))
        if key not in self._known:
            self._known[key] = network, record(lambda *given: step(network, *given), inputs, dict, (), device)
        own, recorded = self._known[key]
        if recorded is None:
            return step(network, *inputs)
        if own is not network:
            with torch.no_grad():
                torch._foreach_copy_(_tensors_of(own), _tensors_of(network))
        return recorded(*inputs)


def _tensors_of(network: nn.Module) -> list[Tensor]:
    return [*network.parameters(), *network.buffers()]


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Its momenta and counts, by parameter and name; they exist after its first step."""
    return {
        f"{number}.{name}": tensor
        for number, state in enumerate(optimizer.state.values())
        for name, tensor in state.items()
        if isinstance(tensor, Tensor)
    }


def rates_on(device: torch.device, optimizer: torch.optim.Optimizer) -> None:
    """Keep its rates on a CUDA device: a number would be frozen into a graph. Others keep numbers."""
    if device.type == "cuda":
        for group in optimizer.param_groups:
            group["lr"] = torch.zeros((), device=device)


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Of all its parameters."""
    for group in optimizer.param_groups:
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(rate)
        else:
            group["lr"] = rate


def allow_capture(optimizer: torch.optim.Optimizer, allowed: bool) -> None:
    """Say to AdamW that its step is captured, or it refuses, and that it is not, or it warns. Its fused step is the same."""
    for group in optimizer.param_groups:
        group["capturable"] = allowed
