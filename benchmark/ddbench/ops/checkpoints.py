"""Fitting a state dict from elsewhere to a network of ours."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from ddbench.errors import ConfigError, DataError
from ddbench.ops.pickles.records import printable

PREFIXES = ("", "module.", "model.")  # that wrappers put before every name


def fit_state(network: nn.Module, tensors: Mapping[str, Tensor], rows: Sequence[int], what: str) -> dict[str, Tensor]:
    """The tensors under the network's own names, in its types, ready for `load_state_dict`.

    A prefix that all names of one side share (`module.`, `model.`) does not count, nor does a missing count of batches, which
    BatchNorm layers do not use. `rows`, if any: which outputs of the checkpoint's last layer are the network's classes, in their
    order. `what` begins each message. Raises DataError where names or shapes differ, or a tensor is not plain (`check_plain`).
    """
    wanted = network.state_dict()
    given = _renamed(wanted, tensors)
    fitted: dict[str, Tensor] = {}
    for name, like in wanted.items():
        if name not in given and name.endswith("num_batches_tracked"):
            fitted[name] = like
            continue
        if name not in given:
            raise DataError(f"{what} do not fit the network: they lack '{name}'. Name the network that they are of.")
        tensor = given[name]
        check_plain(tensor, f"{what}: '{name}'")
        if rows and tensor.shape[:1] != like.shape[:1] and tensor.shape[1:] == like.shape[1:]:
            tensor = _chosen(tensor, rows, len(like), f"{what}: '{name}'")
        if tensor.shape != like.shape:
            shapes = f"{list(tensor.shape)}, and the network's is {list(like.shape)}"
            raise DataError(f"{what} do not fit the network: '{name}' is {shapes}.{_hint(tensor, like)}")
        fitted[name] = tensor.to(like.dtype)
    extra = next((name for name in given if name not in wanted and not name.endswith("num_batches_tracked")), None)
    if extra is not None:
        raise DataError(f"{what} do not fit the network: it has no '{printable(extra)}'. Name the network that they are of.")
    return fitted


def check_plain(tensor: Tensor, what: str) -> None:
    """Raise DataError, `what` and a reason, for a tensor that networks do not compute with: sparse, quantised, complex, without
    numbers, or expanded, so that it would take more memory than it was stored in."""
    if tensor.layout != torch.strided or tensor.is_quantized or tensor.is_nested:
        kind = "quantised" if tensor.is_quantized else "nested" if tensor.is_nested else "sparse"
    elif tensor.is_complex():
        kind = "complex"
    elif tensor.is_meta:
        kind = "a meta tensor, without numbers"
    elif tensor.numel() > tensor.untyped_storage().nbytes() // tensor.itemsize:
        kind = "expanded, more numbers than are stored"
    else:
        return
    raise DataError(f"{what} is {kind}: store plain dense tensors of real numbers.")


def parameters_under(prefix: str, tensors: Mapping[str, Tensor], network: nn.Module, what: str, remedy: str) -> dict[str, Tensor]:
    """The tensors whose names begin with a prefix, by the parameters' names behind it. `what` begins each message, `remedy` ends
    it. Raises ConfigError where these are not just the parameters of such a network."""
    wanted = {prefix + name: parameter for name, parameter in network.named_parameters()}
    found = {key: tensor for key, tensor in tensors.items() if key.startswith(prefix)}
    odd = next((key for key in (*wanted, *found) if key not in wanted or key not in found), None)
    if odd is not None:
        where = "the network" if odd in wanted else "the trajectory"
        raise ConfigError(f"{what}, does not fit the network: only {where} has '{odd}'. {remedy}")
    for key, parameter in wanted.items():
        if found[key].shape != parameter.shape:
            shapes = f"{list(found[key].shape)} and {list(parameter.shape)}"
            raise ConfigError(f"{what}, does not fit the network: the shapes of '{key}' are {shapes}. {remedy}")
    return {key.removeprefix(prefix): found[key] for key in wanted}


def _renamed(wanted: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors by the names of the network, where dropping one side's prefix and adding the other's gives these."""
    for theirs in PREFIXES:
        for ours in PREFIXES:
            if all(name.startswith(theirs) for name in tensors):
                renamed = {ours + name.removeprefix(theirs): tensor for name, tensor in tensors.items()}
                if len(renamed.keys() & wanted.keys()) > len(wanted) // 2:
                    return renamed
    return dict(tensors)


def _chosen(tensor: Tensor, rows: Sequence[int], num: int, what: str) -> Tensor:
    """Those rows of a last layer's weight or bias."""
    if len(rows) != num or min(rows) < 0 or max(rows) >= len(tensor):
        told = f"has {len(tensor)} rows, of which {len(rows)} are named"
        raise DataError(f"{what} {told}: name {num}, one for each class of the data set, from 0 to {len(tensor) - 1}.")
    return tensor[list(rows)]


def _hint(tensor: Tensor, like: Tensor) -> str:
    several = tensor.shape[1:] == like.shape[1:] and len(tensor) > len(like)
    return f" Say which {len(like)} of its {len(tensor)} outputs are the data set's classes." if several else ""
