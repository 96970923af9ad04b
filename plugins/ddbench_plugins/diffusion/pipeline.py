"""A class-conditional latent diffusion model from a folder that diffusers has written: its files, and what it computes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ddbench.api import IMAGENET_CLASSES, Run, Spec, UserFile
from ddbench.errors import ConfigError, DataError
from ddbench.ops.checkpoints import fit_state
from ddbench.ops.steady import sha256_of, steady
from ddbench_plugins.diffusion import transformer as dit
from ddbench_plugins.diffusion import vae as kl
from ddbench_plugins.diffusion.schedule import Schedule, read_schedule

SCHEDULE, CONFIGS = "scheduler/scheduler_config.json", ("transformer/config.json", "vae/config.json")
WEIGHTS = ("transformer/diffusion_pytorch_model.safetensors", "vae/diffusion_pytorch_model.safetensors")
FILES = (SCHEDULE, *CONFIGS, *WEIGHTS)
SCALE = 0.18215  # of latents, where a config does not say
AT_ONCE = 16  # images or latents that a network is given


def files_of(folder: str, hashes: Sequence[str] = ()) -> tuple[UserFile, ...]:
    """The files of a pipeline that are read."""
    known = hashes or ("",) * len(FILES)
    what = "of a class-conditional diffusion pipeline (DiT), as diffusers saves it"
    return tuple(UserFile(f"{folder}/{file}", what, sha256) for file, sha256 in zip(FILES, known, strict=True))


def hash_files(folder: str, hashes: Sequence[str], root: Path | None) -> list[str]:
    """The SHA-256 of each. Raises ConfigError for a path, DataError where one is missing, or is another than `hashes` say."""
    if Path(folder).name != folder or folder.startswith("."):
        raise ConfigError(f"a pipeline's folder must lie in the folder weights, named without a path, got '{folder}'.")
    if hashes and len(hashes) != len(FILES):
        raise ConfigError(f"'hashes' must be {len(FILES)}, of {', '.join(FILES)}; or leave them out.")
    if root is None:
        raise DataError(f"the pipeline '{folder}' must lie in the folder weights of your data folder: set DDBENCH_DATA to that.")
    found = []
    for number, file in enumerate(FILES):
        path = root / "weights" / folder / file
        if not path.is_file():
            raise DataError(f"the pipeline '{folder}' lacks the file {path}: save it with safe_serialization=True.")
        with steady(path) as opened:
            found.append(sha256_of(opened))
        if hashes and hashes[number] != found[-1]:
            raise DataError(f"{path} has the SHA-256 {found[-1]}, not {hashes[number]}: get the right file, or mend 'hashes'.")
    return found


@dataclass(frozen=True)
class Settings:
    """What the documents of a pipeline say."""

    schedule: Schedule
    transformer: dit.DiTConfig
    vae: kl.KLConfig

    @property
    def side(self) -> int:
        """Of the images that it was trained on, px."""
        return self.transformer.sample_size * self.vae.factor

    @property
    def scale(self) -> float:
        """Of latents: what the autoencoder gives, times this, is what the transformer takes."""
        told = self.vae.scaling_factor
        return float(told) if isinstance(told, int | float) and told else SCALE

    def labels(self, spec: Spec) -> tuple[int, ...]:
        """By class of a data set: the transformer's. Raises ConfigError where it has no such classes."""
        known = self.transformer.num_embeds_ada_norm
        if spec.class_indices and known == IMAGENET_CLASSES:
            return spec.class_indices
        if known == spec.num_classes:
            return tuple(range(known))
        told = f"knows {known} classes, and '{spec.name}' has {spec.num_classes} others"
        raise ConfigError(
            f"the diffusion model {told}: it must know ImageNet-1K's or just those of the data set, in their order."
        )


def read_settings(run: Run, folder: str, hashes: Sequence[str]) -> Settings:
    """From the documents of a pinned pipeline. Raises ConfigError where it cannot serve the run, DataError for damaged ones."""
    if not hashes:
        raise ConfigError(f"the pipeline '{folder}' is not pinned: reading a suite does that.")
    names = [f"{folder}/{file}" for file in FILES]
    documents = [run.document(name, sha256) for name, sha256 in zip(names[:3], hashes, strict=False)]
    schedule = read_schedule(documents[0], names[0])
    found = Settings(schedule, dit.read_config(documents[1], names[1]), kl.read_config(documents[2], names[2]))
    if found.transformer.in_channels != found.vae.latent_channels:
        told = f"{found.transformer.in_channels} and {found.vae.latent_channels} channels"
        raise DataError(f"the transformer and the autoencoder of '{folder}' have latents of {told}: they are of two models.")
    if run.spec.shape[0] != 3 or run.spec.shape[1] != run.spec.shape[2]:
        shape = " x ".join(map(str, run.spec.shape))
        raise ConfigError(f"the diffusion model makes square colour images, and those of '{run.spec.name}' are {shape}.")
    found.labels(run.spec)
    return found


class Pipeline:
    """The networks, loaded, and what they say of a data set's images. All in float32, without gradients."""

    def __init__(self, run: Run, folder: str, hashes: Sequence[str], who: str) -> None:
        """`who` needs it. Raises ConfigError or DataError where it cannot be loaded."""
        self.run, self.settings = run, read_settings(run, folder, hashes)
        self.labels = torch.tensor(self.settings.labels(run.spec), device=run.device)
        transformer = dit.build_network(self.settings.transformer, who)
        vae = kl.build_network(self.settings.vae, who)
        tensors = [run.weights(f"{folder}/{file}", sha256) for file, sha256 in zip(WEIGHTS, hashes[3:], strict=True)]
        told = [f"the weights '{folder}/{file}'" for file in WEIGHTS]
        transformer.load_state_dict(fit_state(transformer, tensors[0], (), told[0]), assign=True)
        vae.load_state_dict(kl.fit_weights(vae, tensors[1], told[1]), assign=True)
        self.transformer: Any = transformer.to(run.device).eval().requires_grad_(False)
        self.vae: Any = vae.to(run.device).eval().requires_grad_(False)

    def latents(self, label: int) -> Tensor:
        """Of all real training images of a class, the means that the encoder gives, scaled: [N,C,h,w]."""
        pixels = self.run.spec.denormalise(self.run.read(label, None))
        return torch.cat([self._encoded(part) for part in pixels.split(AT_ONCE)])

    @torch.no_grad()
    def _encoded(self, pixels: Tensor) -> Tensor:
        sides = (self.settings.side, self.settings.side)
        pixels = pixels if pixels.shape[2:] == sides else F.interpolate(pixels, sides, mode="bilinear", antialias=True)
        return self.vae.encode(2 * pixels - 1).latent_dist.mode() * self.settings.scale

    @torch.no_grad()
    def images(self, latents: Tensor) -> Tensor:
        """[B,C,h,w] -> pixels in [0, 1] of the data set's side, as real images are resized."""
        sides = self.run.spec.shape[1:]
        parts = [self.vae.decode(part / self.settings.scale).sample for part in latents.split(AT_ONCE)]
        pixels = (torch.cat(parts) / 2 + 0.5).clamp(0, 1)
        return pixels if pixels.shape[2:] == sides else F.interpolate(pixels, sides, mode="bilinear", antialias=True).clamp(0, 1)

    @torch.no_grad()
    def noise(self, x: Tensor, time: int, label: int, guidance: float) -> Tensor:
        """In x_t [B,C,h,w] of a class: u + g (c - u), of what the model says for no class and for the class; c alone at g = 1."""
        return torch.cat([self._noise(part, time, label, guidance) for part in x.split(AT_ONCE)])

    def _noise(self, x: Tensor, time: int, label: int, guidance: float) -> Tensor:
        own, channels = self.labels[label].expand(len(x)), x.shape[1]
        none = torch.full_like(own, self.settings.transformer.num_embeds_ada_norm)
        both, classes = (x, own) if guidance == 1 else (torch.cat([x, x]), torch.cat([own, none]))
        times = torch.full((len(both),), time, device=x.device)
        said = self.transformer(both, timestep=times, class_labels=classes).sample[:, :channels]  # the rest is a learned variance
        if guidance == 1:
            return said
        with_class, without = said.chunk(2)
        return without + guidance * (with_class - without)
