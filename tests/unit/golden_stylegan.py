"""Three tiny StyleGAN generators with random weights, evaluated by the official code on a CPU: tests/golden/stylegan_xl.npz.

`sr32`: 32 px, 10 classes, 12 layers of which the first are 1x1 with radial filters. `sr128`: 128 px, 12 classes, the 26 layers
of the published ImageNet model at 6 channels. `plain32`: 32 px, unconditional, one stage, a clamp that acts.
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ddbench_plugins.stylegan.description import Description, InputShape, LayerShape, MappingShape
from ddbench_plugins.stylegan.network import StyleGAN, build

PATH = Path(__file__).parents[1] / "golden" / "stylegan_xl.npz"
CASES = ("sr32", "sr128", "plain32")
AS_THEY_ARE = ("is_torgb", "in_channels", "out_channels", "conv_kernel", "up_factor", "down_factor", "conv_clamp", "use_fp16")


@cache
def archive() -> dict[str, np.ndarray]:
    """Everything, by its key."""
    with np.load(PATH, allow_pickle=False) as file:
        return {key: file[key] for key in file.files}


def meta(case: str) -> dict[str, Any]:
    """What the official objects hold beside tensors: `modules` by path, each with `class_name`, `init_kwargs` and `attrs`."""
    found: dict[str, Any] = json.loads(archive()[f"{case}/meta"].tobytes())
    return found


def attributes(case: str, module: str) -> dict[str, Any]:
    """Of one module."""
    found: dict[str, Any] = meta(case)["modules"][module]["attrs"]
    return found


def tensor(case: str, key: str) -> Tensor:
    """A new one."""
    return torch.from_numpy(archive()[f"{case}/{key}"].copy())


def weights(case: str) -> dict[str, Tensor]:
    """The official state dict."""
    start = f"{case}/sd/"
    return {key.removeprefix(start): torch.from_numpy(value.copy()) for key, value in archive().items() if key.startswith(start)}


def describe(case: str) -> Description:
    """From the attributes of its modules, as a loader reads them."""
    mapping, synthesis, start = (attributes(case, name) for name in ("mapping", "synthesis", "synthesis.input"))
    layers = []
    for name in synthesis["layer_names"]:
        found = attributes(case, f"synthesis.{name}")
        same = {key: found[key] for key in AS_THEY_ARE}
        layers.append(LayerShape(name=name, padding=tuple(found["padding"]), **same))
    multiplier = attributes(case, "mapping.fc0")["bias_gain"]
    return Description(
        schema=1, kind="stylegan", layers=tuple(layers),
        mapping=MappingShape(num_layers=mapping["num_layers"], lr_multiplier=multiplier),
        input=InputShape(size=tuple(start["size"]), sampling_rate=start["sampling_rate"], bandwidth=start["bandwidth"]),
        **{key: mapping[key] for key in ("z_dim", "c_dim", "w_dim")},
        **{key: synthesis[key] for key in ("img_resolution", "img_channels", "output_scale", "num_ws")},
    )  # fmt: skip


def network(case: str, form: str = "fast", precision: str = "float32") -> StyleGAN:
    """Built from them."""
    return build(describe(case), weights(case), torch.device("cpu"), precision, form)
