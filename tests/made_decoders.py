"""Small made-up files for generators that read weights which users bring, so that no test needs published ones.

Gives the settings that name them; the files lie in `weights` under a folder that a run or DDBENCH_DATA is told of.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from ddbench.files import sha256_file
from ddbench.ops.described import Decoder, read
from ddbench.ops.vision import load_torchvision
from ddbench.seeds import global_stream
from ddbench_plugins.diffusion import vae
from ddbench_plugins.generators import tiny_autoencoder

DIGITS = {  # three classes of grey images of 8 px
    "schema": 1,
    "kind": "decoder",
    "source": "made up",
    "noise": {"size": 5},
    "classes": {"num": 3, "size": 4, "embedding": "table"},
    "start": [
        {"op": "linear", "tensors": "first", "before": 9, "after": 12, "bias": False},
        {"op": "reshape", "shape": [3, 2, 2]},
    ],
    "layers": [
        [
            {"op": "conv-transpose", "tensors": "up", "before": 3, "after": 6, "kernel": 4, "stride": 2, "padding": 1},
            {"op": "batch-norm", "tensors": "norm", "channels": 6},
            {"op": "leaky-relu", "slope": 0.2},
        ],
        [{"op": "upsample", "factor": 2, "mode": "bilinear"}],
        [{"op": "conv", "tensors": "last", "before": 6, "after": 1, "kernel": 3, "padding": 1}, {"op": "tanh"}],
    ],
    "black": -1,
    "white": 1,
}
KL: dict[str, Any] = {
    "_class_name": "AutoencoderKL",
    "block_out_channels": [8, 8],
    "norm_num_groups": 4,
    "latent_channels": 3,
    "down_block_types": ["DownEncoderBlock2D"] * 2,
    "up_block_types": ["UpDecoderBlock2D"] * 2,
    "layers_per_block": 1,
}


def save(root: Path, file: str, tensors: dict[str, Tensor]) -> str:
    """As weights; the hash of the file."""
    path = root / "weights" / file
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path)
    return sha256_file(path)


def write(root: Path, file: str, content: Any) -> str:
    """As a description; the hash of the file."""
    path = root / "weights" / file
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
    return sha256_file(path)


def tiny(root: Path) -> dict[str, Any]:
    """An untrained encoder and decoder, in float16 as the published ones are."""
    settings: dict[str, Any] = {}
    for half, modules in (("encoder", tiny_autoencoder.encoder_modules), ("decoder", tiny_autoencoder.decoder_modules)):
        with global_stream("made", half):
            tensors = {name: tensor.half() for name, tensor in modules().state_dict().items()}
        if half == "decoder":
            tensors["19.bias"] += 0.5  # images are grey rather than black
        settings |= {half: f"{half}.safetensors", f"{half}_sha256": save(root, f"{half}.safetensors", tensors)}
    return settings


def digits(root: Path, description: Any = None) -> dict[str, Any]:
    """An untrained decoder, with a description."""
    sha256 = write(root, "digits.json", description or DIGITS)
    decoder = Decoder(read((root / "weights" / "digits.json").read_bytes(), "digits.json"))
    with global_stream("made digits"):
        for tensor in decoder.state_dict().values():
            nn.init.uniform_(tensor, 0.1, 1.0) if tensor.dim() == 1 else nn.init.normal_(tensor, std=0.5)
    tensors = {theirs: decoder.state_dict()[ours] for ours, theirs in decoder._names()}
    tensors |= {"norm.num_batches_tracked": torch.tensor(7)} if "norm.weight" in tensors else {}
    weights = save(root, "digits.safetensors", tensors)
    return {"weights": "digits.safetensors", "sha256": weights, "description": "digits.json", "description_sha256": sha256}


def kl(root: Path, old_names: bool = False) -> dict[str, Any]:
    """An untrained AutoencoderKL; `old_names`: its attention written as older files have it. Needs diffusers."""
    load_torchvision()
    from diffusers import AutoencoderKL

    with global_stream("made kl"):
        tensors = AutoencoderKL(**{name: value for name, value in KL.items() if name[0] != "_"}).state_dict()
    if old_names:
        for old, new in vae.RENAMED.items():
            changes = {name: name.replace(new, old) for name in tensors if new in name}
            tensors = {changes.get(name, name): t[..., None, None] if name in changes and t.dim() == 2 else t
                       for name, t in tensors.items()}  # fmt: skip
    sha256 = save(root, "vae/diffusion_pytorch_model.safetensors", tensors)
    return {"folder": "vae", "sha256": sha256, "config_sha256": write(root, "vae/config.json", KL)}
