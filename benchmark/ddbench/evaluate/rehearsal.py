"""A step of a network on blank images, before hours are spent: what it cannot do is said by its name."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from ddbench.api import Spec
from ddbench.compute.run import build_network
from ddbench.errors import BenchError, PluginError
from ddbench.refs import PluginRef
from ddbench.seeds import global_stream


def rehearse(network: PluginRef, spec: Spec, num: int = 0, batch: int = 2) -> None:
    """Take a training step as the last batch of `num` images in batches of `batch` will be, if it is one image, and one on two
    images, on the CPU. Raises PluginError, naming the network, for whatever it raises; BenchErrors pass as they are."""
    _step(network, spec, 2, "cannot be trained")
    if num % batch == 1:
        where = "the set has one image" if num == 1 else f"the last batch of {num} images in batches of {batch} is one"
        _step(network, spec, 1, f"cannot be trained on one image, as a network with BatchNorm cannot, and {where}", REMEDY)


REMEDY = "Bring an image more, or name a network without BatchNorm, such as convnet"


def _step(network: PluginRef, spec: Spec, num: int, what: str, remedy: str = "Mend the plugin, or name another network") -> None:
    try:
        built = build_network(network, spec, torch.device("cpu"), "rehearsal")
        with global_stream("rehearsal"):
            logits = built(torch.zeros(num, *spec.shape))
            if list(logits.shape) != [num, spec.num_classes]:
                raise ValueError(f"it gives {list(logits.shape)} for [{num}, {spec.num_classes}] logits")
            F.cross_entropy(logits, torch.zeros(num, dtype=torch.int64)).backward()
    except BenchError:
        raise
    except Exception as error:  # a stranger's code
        told = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}".rstrip(".: ")
        raise PluginError(f"network '{network.label}' {what} ({told}). {remedy}.") from error
