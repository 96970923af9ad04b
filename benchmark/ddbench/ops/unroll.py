"""A student's plain SGD on a synthetic set, unrolled: how far it ends from an expert, and the gradient of that.

    theta_0 = start;  theta_{i+1} = theta_i - beta g_i;  g_i = grad_theta CE(f_theta_i(X_i), Y_i);  i = 0..n-1
    L = |theta_n - target|^2 / P;  P = |start - target|^2;  norms over all parameters together

(X_i, Y_i): step i's images [B,C,H,W] and labels [B,K], functions of the synthetic set; beta: the student's learning rate, 0-d.
Parameters go by name, as `nn.Module.named_parameters` names them, so that no two networks can be confused. The network gives
the function f alone: its own parameters are neither read nor changed; its running statistics may change.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

Parameters = Mapping[str, Tensor]


@dataclass(frozen=True, eq=False)
class Unroll:
    """One student: `num_steps` steps from `start`, to be compared with `target`."""

    network: nn.Module  # gives f
    start: Parameters  # theta_0
    target: Parameters  # the expert, some epochs on
    rate: Tensor  # beta, 0-d; it may want a gradient
    num_steps: int
    batch: Callable[[int], tuple[Tensor, Tensor]]  # i -> X_i, Y_i, with a graph to the set; the same tensors at every call

    def gradient(self, at: Parameters, step: int, create_graph: bool) -> dict[str, Tensor]:
        """g_i at parameters that want gradients; with a graph to them and to the set, or without any."""
        with torch.set_grad_enabled(create_graph):
            images, labels = self.batch(step)
        with torch.enable_grad():
            loss = F.cross_entropy(functional_call(self.network, dict(at), (images,)), labels)
            gradients = torch.autograd.grad(loss, list(at.values()), create_graph=create_graph)
        return dict(zip(at, gradients, strict=True))


def exact_backward(unroll: Unroll, leaves: Sequence[Tensor]) -> Tensor:
    """Add dL/d(leaf) to `.grad` of the leaves, and dL/dbeta to the rate's; give L, 0-d and detached.

    Differentiates through the whole unroll: each g_i depends on X_i, and by theta_i on all batches before it. Memory grows
    with `num_steps`. Source: Cazenavette et al., Dataset Distillation by Matching Training Trajectories, CVPR 2022, eq. 2
    and algorithm 1.
    """
    theta = as_leaves(unroll.start)
    for step in range(unroll.num_steps):
        gradient = unroll.gradient(theta, step, create_graph=True)
        theta = {name: theta[name] - unroll.rate * gradient[name] for name in theta}
    value = squared_distance(theta, unroll.target) / squared_distance(unroll.start, unroll.target)
    value.backward(inputs=[*leaves, unroll.rate])
    return value.detach()


def two_pass_backward(unroll: Unroll, leaves: Sequence[Tensor]) -> Tensor:
    """The same with every theta_i held fixed in the gradients of the leaves: in memory that does not grow with `num_steps`.

    theta_n = start - beta G, G = sum_i g_i. With theta_i fixed, X_i enters by g_i alone, and
        dL/dX_i = v . dg_i/dX_i,  v = dL/dG = (2 beta / P) (target - start + beta G),  the same v for every step.
    The first pass walks to find G, and so L and v; the second walks again and pulls v back through one g_i after the other.
    dL/dbeta comes from L = |start - beta G - target|^2 / P with G fixed. All this is L's gradient for one step, and for more
    an approximation.
    Source: Cui, Wang, Si and Hsieh, Scaling Up Dataset Distillation to ImageNet-1K with Constant Memory, ICML 2023, which
    calls it exact. Departures: the factor 2, of which the public code makes a doubled tuple, so that its gradient is half of
    this; theta_i are walked through twice instead of kept.
    """
    rate, total = unroll.rate, {name: torch.zeros_like(tensor) for name, tensor in unroll.start.items()}
    theta = as_leaves(unroll.start)
    for step in range(unroll.num_steps):
        gradient = unroll.gradient(theta, step, create_graph=False)
        total = {name: total[name] + gradient[name] for name in total}
        theta = _next(theta, rate, gradient)
    scale = squared_distance(unroll.start, unroll.target)
    end = {name: unroll.start[name] - rate * total[name] for name in total}
    value = squared_distance(end, unroll.target) / scale
    value.backward(inputs=[rate])
    pull = {name: -2 * rate.detach() * (end[name].detach() - unroll.target[name]) / scale for name in end}
    theta = as_leaves(unroll.start)
    for step in range(unroll.num_steps):
        theta = _next(theta, rate, _pull_back(unroll, theta, step, pull, leaves))
    return value.detach()


def _pull_back(unroll: Unroll, theta: Parameters, step: int, pull: Parameters, leaves: Sequence[Tensor]) -> dict[str, Tensor]:
    """Add v . dg_i/d(leaf) to `.grad` of the leaves; give g_i, and leave nothing of its graph."""
    gradient = unroll.gradient(theta, step, create_graph=True)
    torch.stack([(pull[name] * gradient[name]).sum() for name in pull]).sum().backward(inputs=leaves)
    return {name: tensor.detach() for name, tensor in gradient.items()}


def _next(theta: Parameters, rate: Tensor, gradient: Parameters) -> dict[str, Tensor]:
    """theta - beta g without a graph, as leaves."""
    return as_leaves({name: theta[name].detach() - rate.detach() * gradient[name] for name in theta})


def as_leaves(parameters: Parameters) -> dict[str, Tensor]:
    """The same values, without their past, as leaves that want gradients."""
    return {name: tensor.detach().requires_grad_() for name, tensor in parameters.items()}


def squared_distance(a: Parameters, b: Parameters) -> Tensor:
    """|a - b|^2 over all parameters together: 0-d."""
    return torch.stack([(a[name] - b[name]).square().sum() for name in a]).sum()


def student_mode(network: nn.Module) -> nn.Module:
    """The network as a function of its parameters and a batch alone: BatchNorm by the statistics of the batch at hand,
    since trajectories hold no running ones, and dropout off, since both passes must see one function. In place."""
    network.eval()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            module.train()
    return network


def within(batches: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
    """The images [B] that mini-batches hold together, sorted and each once, and the batches by their places among these."""
    held = torch.cat(list(batches)).unique()
    return held, [torch.searchsorted(held, batch) for batch in batches]


def mini_batches(num: int, size: int, num_steps: int, rng: torch.Generator) -> list[Tensor]:
    """The images of each step: a random permutation of `num` is cut into chunks of `size`, which are used up from the last,
    the rest of the division, to the first; then another permutation is drawn. int64 [size or less] each, on the CPU."""
    passes = -(-num_steps // -(-num // size))
    chunks = [chunk for _ in range(passes) for chunk in reversed(torch.randperm(num, generator=rng).split(size))]
    return chunks[:num_steps]
