"""Networks without weights of their own, for code that loads other weights right away.

Drawing a network's weights takes several times as long as copying its layers, and losses that keep weights between steps would
do it at every step for nothing. So a run builds a network once and copies that.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from ddbench.api import Spec
from ddbench.refs import PluginRef
from ddbench.seeds import global_stream

PROBE = 1e-3  # what a copy's parameters hold while it is tried: small, so that deep networks stay finite


class Skeletons:
    """The templates of a run. Those who copy a run share it."""

    def __init__(self) -> None:
        self._templates: list[tuple[PluginRef, Spec, torch.device, nn.Module | None]] = []

    def make(self, ref: PluginRef, spec: Spec, device: torch.device) -> nn.Module | None:
        """A network in training mode whose parameters are NaN and whose buffers are those of a new one; None for a network that
        cannot be copied. Its Dropout layers have no stream yet."""
        for known, its_spec, its_device, template in self._templates:
            if known is ref and its_spec == spec and its_device == device:
                return None if template is None else without_weights(template)
        self._templates.append((ref, spec, device, _template(ref, spec, device)))
        return self.make(ref, spec, device)


def without_weights(network: nn.Module) -> nn.Module:
    """A copy in which every parameter is a new one, tied ones still tied; NaN, so that one which is forgotten shows."""
    memo: dict[int, object] = {id(old): nn.Parameter(_blank(old), old.requires_grad) for old in network.parameters()}
    return copy.deepcopy(network, memo)


def _blank(parameter: Tensor) -> Tensor:
    return torch.full_like(parameter, torch.nan) if parameter.is_floating_point() else torch.zeros_like(parameter)


def _template(ref: PluginRef, spec: Spec, device: torch.device) -> nn.Module | None:
    """A network to copy from, its own parameters NaN; None where a copy does not stand alone, as where a closure keeps hold of
    the layers that it was written for."""
    with global_stream("skeleton"):
        template: nn.Module = ref.make().build(spec).to(device).train()
        try:
            return template if _stands_alone(template, spec, device) else None
        except Exception:  # of a stranger's network: it is then built anew each time
            return None


@torch.no_grad()
def _stands_alone(template: nn.Module, spec: Spec, device: torch.device) -> bool:
    """Blank the template's parameters, and see whether a copy with parameters of its own gives numbers."""
    for parameter in template.parameters():
        parameter.copy_(_blank(parameter))
    tried = without_weights(template).eval()
    for parameter in tried.parameters():
        parameter.fill_(PROBE)
    like = next(tried.parameters())
    return bool(tried(torch.zeros(2, *spec.shape, dtype=like.dtype, device=device)).isfinite().all())
