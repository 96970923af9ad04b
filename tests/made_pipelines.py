"""A small random class-conditional diffusion pipeline, built of diffusers' own classes and saved as it saves them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ddbench.ops.vision import load_torchvision
from ddbench.seeds import global_stream
from ddbench_plugins.diffusion.pipeline import hash_files
from made_decoders import KL

TRANSFORMER: dict[str, Any] = {  # three classes; latents of 4 x 4, images of 8 px
    "num_attention_heads": 2, "attention_head_dim": 4, "in_channels": 3, "out_channels": 6, "num_layers": 1, "sample_size": 4,
    "patch_size": 2, "num_embeds_ada_norm": 3, "norm_num_groups": 4,
}  # fmt: skip
SCHEDULER: dict[str, Any] = {"num_train_timesteps": 40, "beta_start": 0.002, "beta_end": 0.2, "clip_sample": False}


def pipeline(root: Path, folder: str = "dit", **changes: Any) -> dict[str, Any]:
    """In `weights` under a data folder; the settings that name it. Needs diffusers."""
    load_torchvision()
    from diffusers import AutoencoderKL, DDIMScheduler, DiTTransformer2DModel

    with global_stream("made pipeline"):
        vae = AutoencoderKL(**{name: value for name, value in KL.items() if name[0] != "_"}, scaling_factor=0.5)
        transformer = DiTTransformer2DModel(**TRANSFORMER | changes)
    for name, part in (("vae", vae), ("transformer", transformer), ("scheduler", DDIMScheduler(**SCHEDULER))):
        part.save_pretrained(root / "weights" / folder / name)  # as DiTPipeline.save_pretrained does, which needs transformers
    return {"folder": folder, "hashes": hash_files(folder, (), root)}


def few_steps(root: Path) -> dict[str, Any]:
    """The same, to be walked in four steps."""
    return pipeline(root) | {"steps": 4}


def few_groups(root: Path) -> dict[str, Any]:
    """The same for what draws groups, too."""
    return few_steps(root) | {"levels": 2, "groups": 20}
