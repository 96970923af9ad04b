"""Spaces inside a generator: W+, GLaD's one fixed layer, and H-PD's walk through the layers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from ddbench.api import Run, Space, State
from ddbench.errors import ConfigError


@dataclass(frozen=True)
class Layered(Space):
    """The features F_n that enter layer n of a generator, with the codes w; in stages, n walks from `first` to `last`.

    Image = layers n..L-1 applied to F_n under the codes that these read, then normalised like real images. Where they read none,
    as in a plain decoder, F_n is all that is kept. Without `first` the codes alone are optimised (W+): in such a decoder, the
    latent itself. With `first` = `last` it is GLaD. With `step` it is H-PD's walk: first, first + step, ..., last;
    F_L is the image itself, normalised pixels without codes, so that a walk to L ends in pixels.
    Layers count from the front; a negative one counts from the end: -1 is L, the image.
    Source: Cazenavette et al., Generalizing Dataset Distillation via Deep Generative Prior (GLaD), CVPR 2023, section 3;
    Zhong et al., Hierarchical Features Matter (H-PD), CVPR 2025, section 3 and algorithm 1. Departures: latents stay float32
    (GLaD keeps them in float16 under rates of up to 10,000); with IPC > 1 and init "average" every image averages samples of
    its own, since averaging all would make the images of a class equal, and a limited number of codes of a class is shared out
    among its images, so that none is in two averages; the released H-PD never reaches pixels, its paper does.
    Raises: ConfigError where a layer does not exist in the generator.
    """

    first: int | None = None
    last: int | None = None  # None: the same as first
    step: int = 1
    init_from: Literal["sample", "average"] = "sample"  # of w: one code an image, or the mean of `samples` codes of its class
    samples: int = 1000
    clip: float = 10.0  # of new features: NaN to 0, infinities to half of it, then into [-clip, clip]; 0: leave them as they are
    needs_generator: ClassVar[bool] = True
    tensors: ClassVar[tuple[str, ...]] = ("w", "f", "pixels")

    def __post_init__(self) -> None:
        """Refuse what has no meaning for any generator."""
        if self.step < 1 or self.samples < 1 or self.clip < 0:
            raise ConfigError(
                f"'step' and 'samples' must be at least 1 and 'clip' at least 0, got {self.step}, {self.samples}, {self.clip}."
            )
        if self.first is None and self.last is not None:
            raise ConfigError("'last' has no meaning without 'first'.")

    def layers(self, depth: int) -> tuple[int | None, ...]:
        """The layer of every stage; None is W+. Raises ConfigError where one does not exist."""
        if self.first is None:
            return (None,)
        first, last = self._layer(self.first, depth), self._layer(self.first if self.last is None else self.last, depth)
        if first > last:
            raise ConfigError(f"layer 'first' ({self.first}) lies behind 'last' ({self.last}) in a generator of {depth} layers.")
        walk = list(range(first, last, self.step))
        return (*walk, last)

    @staticmethod
    def _layer(layer: int, depth: int) -> int:
        found = layer + depth + 1 if layer < 0 else layer
        if not 0 <= found <= depth:
            raise ConfigError(f"layer {layer} does not exist: this generator has layers 0..{depth}, where {depth} is the image.")
        return found

    def check(self, depth: int) -> None:
        """Every layer of the walk must exist."""
        self.layers(depth)

    def num_stages(self, run: Run) -> int:
        """One, or as many as the walk has layers."""
        return len(self.layers(run.generator.depth))

    def init(self, run: Run) -> State:
        """w: [N, num_codes, D]; f: the feature map of layer `first` under w."""
        classes, rng = self._classes(run), run.rng("latents")
        with torch.no_grad():
            if self.init_from == "average":
                w = torch.cat([self._averages(run, label, rng) for label in range(run.spec.num_classes)])
            else:
                w = run.generator.latents(classes, rng)
            layer = self.layers(run.generator.depth)[0]
            if layer is None:
                return State({"w": w})
            if layer == 0:
                return self._state(w, run.generator.synthesize(w, None, 0, 0), 0, run)
            return self._state(w, run.generator.synthesize(w, None, 0, layer), layer, run)

    def _averages(self, run: Run, label: int, rng: torch.Generator) -> Tensor:
        """The mean codes [IPC, codes, D] of samples of a class, which the images of the class share out among them."""
        limit = run.generator.num_latents(label)
        num = max(1, (self.samples if limit is None else min(self.samples, limit)) // run.ipc)
        if limit is None:
            of_class = torch.full((num,), label, device=run.device)
            return torch.stack([run.generator.latents(of_class, rng).mean(0) for _ in range(run.ipc)])
        drawn = run.generator.latents(torch.full((run.ipc * num,), label, device=run.device), rng)  # at once: all different
        return drawn.unflatten(0, (run.ipc, num)).mean(1)

    def _state(self, w: Tensor, features: Tensor, layer: int, run: Run) -> State:
        """The tensors of a stage at a layer, from new features."""
        if layer == run.generator.depth:
            return State({"pixels": run.spec.normalise(features)})
        if self.clip:
            features = features.nan_to_num(0.0, self.clip / 2, -self.clip / 2).clamp(-self.clip, self.clip)
        return State({"f": features, "w": w} if run.generator.reads_codes(layer) else {"f": features})

    def _classes(self, run: Run) -> Tensor:
        return torch.arange(run.spec.num_classes, device=run.device).repeat_interleave(run.ipc)

    def classes(self, state: State, run: Run) -> Tensor:
        """Sorted by class."""
        return self._classes(run)

    def decode(self, state: State, index: Tensor, run: Run) -> Tensor:
        """Through the rest of the generator, then the data set's normalisation; not clamped."""
        if "pixels" in state.params:
            return state.params["pixels"][index]
        generator, layer = run.generator, self.layers(run.generator.depth)[state.stage]
        if layer is None:
            return run.spec.normalise(generator.synthesize(state.params["w"][index], None, 0, generator.depth))
        features = state.params["f"][index]
        w = state.params["w"][index] if "w" in state.params else _no_codes(features)
        return run.spec.normalise(generator.synthesize(w, features, layer, generator.depth))

    def advance(self, state: State, run: Run) -> State:
        """The features of the next layer of the walk; the codes go along."""
        layers = self.layers(run.generator.depth)
        here, there = layers[state.stage], layers[state.stage + 1]
        assert here is not None
        assert there is not None
        features = state.params["f"]
        w = state.params.get("w", _no_codes(features))
        return self._state(w, run.generator.synthesize(w, features, here, there), there, run)


def _no_codes(features: Tensor) -> Tensor:
    """[B, 0, 0], for layers that read none."""
    return features.new_empty(len(features), 0, 0)


def w_plus(init_from: Literal["sample", "average"] = "sample", samples: int = 1000) -> Layered:
    """W+: the codes of a generator, one for each layer, and nothing else."""
    return Layered(init_from=init_from, samples=samples)


def glad(layer: int = 12, init_from: Literal["sample", "average"] = "sample", samples: int = 1000, clip: float = 10.0) -> Layered:
    """GLaD: the features of one fixed layer of a generator, and its codes. StyleGAN-XL at 128 px: 12 for MTT, 16 DC, 20 DM."""
    return Layered(layer, layer, 1, init_from, samples, clip)


def hpd(
    first: int = 2,
    last: int = -1,
    step: int = 2,
    init_from: Literal["sample", "average"] = "average",
    samples: int = 1000,
    clip: float = 10.0,
) -> Layered:
    """H-PD: a walk through a generator's layers, two a stage, from averaged codes, ending in pixels."""
    return Layered(first, last, step, init_from, samples, clip)
