"""Whether a data set's images suit a network: it is built to see, within bounds, and where it can be without memory."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from ddbench.api import Arch, Spec
from ddbench.errors import ConfigError
from ddbench.refs import PluginRef
from ddbench.suite.findings import Findings

MAX_VALUES = 1 << 30  # of all tensors that building makes: 4 GiB as float32
MAX_TENSORS = 10_000  # the deepest published networks have some thousands
FACTORIES = frozenset(
    (torch.empty, torch.zeros, torch.ones, torch.full, torch.rand, torch.randn, torch.eye, torch.arange, torch.linspace)
)


class Bounded(TorchFunctionMode):
    """A context in which whoever makes more or larger tensors than a network may have gets a ConfigError before they are."""

    def __init__(self, label: str) -> None:
        """`label` is the network's."""
        super().__init__()
        self.label, self.values, self.tensors = label, 0, 0

    def __torch_function__(
        self, func: Callable[..., Any], types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Counts what `func` is about to make."""
        if func in FACTORIES:
            self.tensors += 1
            self.values += _num_values(func, args, kwargs or {})
            if self.values > MAX_VALUES or self.tensors > MAX_TENSORS:
                most = f"at most {MAX_VALUES:,} values in {MAX_TENSORS:,} tensors"
                raise ConfigError(f"architecture '{self.label}' is too large: a network has {most}. Lower its width or depth.")
        return func(*args, **(kwargs or {}))


def _num_values(func: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> int:
    """Of the tensor that a factory makes, asked where it takes no memory; one too many where their number overflows."""
    try:
        return int(func(*args, **{**kwargs, "device": "meta"}).numel())
    except RuntimeError as error:
        return MAX_VALUES + 1 if "overflow" in str(error) else 0  # 0: it fails in earnest too


def try_building(arch: Arch, spec: Spec, label: str) -> None:
    """Build a network and throw it away. Raises ConfigError where it refuses the images or is too large, and whatever else its
    code raises."""
    try:
        with Bounded(label), torch.device("meta"):  # where tensors have shapes and no memory
            arch.build(spec)
    except ConfigError:
        raise
    except Exception:  # it cannot be built there: then in earnest
        with Bounded(label):
            arch.build(spec)


def check_network(findings: Findings, dataset: PluginRef, network: PluginRef) -> None:
    """Remember as a fault that the network cannot take the data set's images."""
    spec: Spec | None = findings.answer("spec", dataset, lambda plugin: plugin.spec())
    if spec is None:
        return

    def ask(arch: Arch) -> None:
        if min(spec.shape[1:]) < arch.min_size:
            sides = " x ".join(map(str, spec.shape[1:]))
            needs = f"architecture '{network.label}' needs images of at least {arch.min_size} px"
            raise ConfigError(f"{needs}; those of '{dataset.label}' are {sides}.")
        try_building(arch, spec, network.label)

    findings.answer("build", network, ask, dataset)
