"""Spaces inside a generator: W+, GLaD's one fixed layer, and H-PD's walk through the layers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
from torch import Tensor

from ddbench.api import GENERATOR, AtMost, Run, Space, State
from ddbench.errors import ConfigError
from ddbench.ops.codes import Samples, full_precision, gaussian_like, pushed, starting_codes

Stages = Annotated[int, AtMost(1_000)]  # stages at a layer: each of them is listed


@dataclass(frozen=True)
class Layered(Space):
    """The features F_n that enter layer n of a generator, with the codes w; in stages, n walks from `first` to `last`.

    Image = layers n..L-1 applied to F_n under the codes that these read, then normalised like real images. Where they read none,
    as in a plain decoder, F_n is all that is kept. Without `first` the codes alone are optimised (W+): in such a decoder, the
    latent itself. With `first` = `last` it is GLaD. With `step` it is H-PD's walk: first, first + step, ..., last;
    F_L is the image itself, normalised pixels without codes, so that a walk to L ends in pixels. With `repeat` every layer has
    that many stages, each from the best of the one before: what H-PD's search does without its walk.
    Layers count from the front; a negative one counts from the end: -1 is L, the image.
    Source: Cazenavette et al., Generalizing Dataset Distillation via Deep Generative Prior (GLaD), CVPR 2023, section 3;
    Zhong et al., Hierarchical Features Matter (H-PD), CVPR 2025, section 3 and algorithm 1. Departures: latents stay float32
    (GLaD keeps them in float16 under rates of up to 10,000); with IPC > 1 and init "average" every image averages samples of
    its own, since averaging all would make the images of a class equal, and a limited number of codes of a class is shared out
    among its images, so that none is in two averages; the released H-PD never reaches pixels, its paper does. What a generator
    gives in half precision is kept in float32.
    Raises: ConfigError where a layer does not exist in the generator.
    """

    first: int | None = None
    last: int | None = None  # None: the same as first
    step: int = 1
    init_from: Literal["sample", "average"] = "sample"  # of w: one code an image, or the mean of `samples` codes of its class
    samples: Samples = 1000
    clip: float = 10.0  # of new features: NaN to 0, infinities to half of it, then into [-clip, clip]; 0: leave them as they are
    features: Literal["forward", "gaussian"] = "forward"  # of the first layer: its own, or noise of their mean and spread
    repeat: Stages = 1  # stages at each layer
    needs_generator: ClassVar[bool] = True
    tensors: ClassVar[tuple[str, ...]] = ("w", "f", "pixels")

    def __post_init__(self) -> None:
        """Refuse what has no meaning for any generator."""
        if min(self.step, self.samples, self.repeat) < 1 or self.clip < 0:
            got = f"{self.step}, {self.samples}, {self.repeat}, {self.clip}"
            raise ConfigError(f"'step', 'samples' and 'repeat' must be at least 1 and 'clip' at least 0, got {got}.")
        if self.first is None and self.last is not None:
            raise ConfigError("'last' has no meaning without 'first'.")
        if self.first is None and self.features == "gaussian":
            raise ConfigError("'features' has no meaning without 'first': W+ has codes alone.")

    def layers(self, depth: int) -> tuple[int | None, ...]:
        """The layer of every stage; None is W+. Raises ConfigError where one does not exist."""
        if self.first is None:
            return (None,) * self.repeat
        named = (self.first, self.first if self.last is None else self.last)
        first, last = (layer + depth + 1 if layer < 0 else layer for layer in named)
        odd = dict.fromkeys(str(name) for name, layer in zip(named, (first, last), strict=True) if not 0 <= layer <= depth)
        if odd:
            which = f"layers {' and '.join(odd)} do" if len(odd) > 1 else f"layer {' '.join(odd)} does"
            raise ConfigError(f"{which} not exist: this generator has layers 0..{depth}, where {depth} is the image.")
        if first > last:
            raise ConfigError(f"layer 'first' ({self.first}) lies behind 'last' ({self.last}) in a generator of {depth} layers.")
        walk = (*range(first, last, self.step), last)
        return tuple(layer for layer in walk for _ in range(self.repeat))

    def check(self, depth: int) -> None:
        """Every layer of the walk must exist."""
        self.layers(depth)

    def num_stages(self, run: Run) -> int:
        """As many as the walk has layers, each as often as it is repeated."""
        return len(self.layers(run.generator.depth))

    def decoder(self, state: State) -> tuple[str, ...]:
        """The generator, where there is more to do than to show pixels."""
        return () if "pixels" in state.params else (GENERATOR,)

    def stage_name(self, stage: int, run: Run) -> str:
        """The layer, codes or images."""
        depth = run.generator.depth
        layer = self.layers(depth)[stage]
        return "codes" if layer is None else "images" if layer == depth else f"layer {layer}"

    def init(self, run: Run) -> State:
        """w: [N, num_codes, D]; f: the feature map of layer `first` under w, or noise like it."""
        with torch.no_grad():
            w = starting_codes(run, self.init_from, self.samples)
            layer = self.layers(run.generator.depth)[0]
            if layer is None:
                return State({"w": w})
            features = pushed(run, w, None, 0, layer)
            if self.features == "gaussian":
                features = gaussian_like(features, run.rng("features"))
            return self._state(w, features, layer, run)

    def _state(self, w: Tensor, features: Tensor, layer: int, run: Run) -> State:
        """The tensors of a stage at a layer, from new features."""
        if layer == run.generator.depth:
            return State({"pixels": run.spec.normalise(features)})
        if self.clip:
            features = features.nan_to_num(0.0, self.clip / 2, -self.clip / 2).clamp(-self.clip, self.clip)
        return State({"f": features, "w": w} if run.generator.reads_codes(layer) else {"f": features})

    def classes(self, state: State, run: Run) -> Tensor:
        """Sorted by class."""
        return torch.arange(run.spec.num_classes, device=run.device).repeat_interleave(run.ipc)

    def decode(self, state: State, index: Tensor, run: Run) -> Tensor:
        """Through the rest of the generator, then the data set's normalisation; not clamped."""
        if "pixels" in state.params:
            return state.params["pixels"][index]
        generator, layer = run.generator, self.layers(run.generator.depth)[state.stage]
        if layer is None:
            images = generator.synthesize(state.params["w"][index], None, 0, generator.depth)
        else:
            features = state.params["f"][index]
            w = state.params["w"][index] if "w" in state.params else _no_codes(features)
            images = generator.synthesize(w, features, layer, generator.depth)
        return run.spec.normalise(full_precision(images))

    def advance(self, state: State, run: Run) -> State:
        """The features of the next layer of the walk; the codes go along. At the same layer, the same tensors."""
        layers = self.layers(run.generator.depth)
        here, there = layers[state.stage], layers[state.stage + 1]
        if here == there:
            return state.clone()
        assert here is not None
        assert there is not None
        features = state.params["f"]
        w = state.params.get("w", _no_codes(features))
        return self._state(w, pushed(run, w, features, here, there), there, run)


def _no_codes(features: Tensor) -> Tensor:
    """[B, 0, 0], for layers that read none."""
    return features.new_empty(len(features), 0, 0)


def w_plus(init_from: Literal["sample", "average"] = "sample", samples: Samples = 1000) -> Layered:
    """W+: the codes of a generator, one for each layer, and nothing else."""
    return Layered(init_from=init_from, samples=samples)


def glad(
    layer: int = 12,
    init_from: Literal["sample", "average"] = "sample",
    samples: Samples = 1000,
    clip: float = 10.0,
    features: Literal["forward", "gaussian"] = "forward",
    repeat: Stages = 1,
) -> Layered:
    """GLaD: the features of one fixed layer of a generator, and its codes. StyleGAN-XL at 128 px: 12 for MTT, 16 DC, 20 DM."""
    return Layered(layer, layer, 1, init_from, samples, clip, features, repeat)


def hpd(
    first: int = 2,
    last: int = -1,
    step: int = 2,
    init_from: Literal["sample", "average"] = "average",
    samples: Samples = 1000,
    clip: float = 10.0,
    features: Literal["forward", "gaussian"] = "forward",
) -> Layered:
    """H-PD: a walk through a generator's layers, two a stage, from averaged codes, ending in pixels."""
    return Layered(first, last, step, init_from, samples, clip, features)
