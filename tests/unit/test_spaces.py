"""The built-in spaces: what they start from, and the walk through a generator's layers."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor

from ddbench.api import Resource, Run, Space, State
from ddbench.compute.run import DistillRun
from ddbench.errors import ConfigError
from ddbench.testing import ToyGenerator, run_checks, stages, toy_run
from ddbench_plugins.spaces.layered import Layered, glad, hpd, w_plus
from ddbench_plugins.spaces.pixel import Pixel

DEPTH = 7


@pytest.fixture
def run() -> DistillRun:
    return toy_run(channels=3, depth=DEPTH)


def decode(space: Any, state: State, run: DistillRun) -> Tensor:
    with torch.no_grad():
        return space.decode(state, torch.arange(len(space.classes(state, run))), run)


def test_pixel_starts_from_distinct_real_images_of_its_class(run: DistillRun) -> None:
    state = Pixel().init(run)
    images = decode(Pixel(), state, run)
    for number, label in enumerate(Pixel().classes(state, run).tolist()):
        own = run.data.seen(run.data.images[run.data.labels == label])
        assert sum(torch.equal(images[number], real) for real in own) == 1
    assert not torch.equal(images[0], images[1])


def test_pixel_does_not_share_memory_with_the_data(run: DistillRun) -> None:
    run = replace(run, ipc=12)  # all real images
    before = run.data.images.clone()
    Pixel().init(run).params["pixels"].zero_()
    assert torch.equal(run.data.images, before)


def test_pixel_repeats_images_where_there_are_too_few(run: DistillRun) -> None:
    images = Pixel().init(replace(run, ipc=15)).params["pixels"]
    assert len(images) == 45
    assert torch.equal(images[12:15], images[0:3])


def test_pixel_from_noise(run: DistillRun) -> None:
    pixels = Pixel("noise").init(replace(run, ipc=100)).params["pixels"]
    assert pixels.shape == (300, 3, 8, 8)
    assert pixels.mean().item() == pytest.approx(0, abs=0.02)
    assert pixels.std().item() == pytest.approx(1, abs=0.02)


@pytest.mark.parametrize(
    ("space", "layers"),
    [
        (w_plus(), (None,)),
        (glad(3), (3,)),
        (glad(0), (0,)),
        (Layered(-1), (7,)),
        (hpd(), (2, 4, 6, 7)),
        (hpd(first=1, step=2), (1, 3, 5, 7)),
        (hpd(first=0, last=3, step=10), (0, 3)),
        (Layered(2, 5), (2, 3, 4, 5)),
        (Layered(-3, -1), (5, 6, 7)),
    ],
)
def test_the_walk(space: Layered, layers: tuple[int | None, ...], run: DistillRun) -> None:
    assert space.layers(DEPTH) == layers
    assert space.num_stages(run) == len(layers)


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: Layered(8).layers(DEPTH), r"layer 8 does not exist: this generator has layers 0..7, where 7 is the image"),
        (lambda: Layered(-9).layers(DEPTH), "layer -9 does not exist"),
        (lambda: Layered(4, 2).layers(DEPTH), r"'first' \(4\) lies behind 'last' \(2\)"),
        (lambda: Layered(None, 3), "'last' has no meaning without 'first'"),
        (lambda: Layered(1, step=0), "must be at least 1"),
        (lambda: Layered(1, clip=-1.0), "'clip' at least 0"),
    ],
)
def test_layers_that_do_not_exist(make: Any, sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        make()


@pytest.mark.parametrize("layer", range(DEPTH + 1))
def test_every_layer_starts_from_the_image_of_its_codes(layer: int, run: DistillRun) -> None:
    start = decode(w_plus(), w_plus().init(run), run)
    state = glad(layer).init(run)
    torch.testing.assert_close(decode(glad(layer), state, run), start)
    assert set(state.params) == ({"pixels"} if layer == DEPTH else {"f", "w"})


def test_images_are_normalised_like_real_ones(run: DistillRun) -> None:
    pixels = run.spec.denormalise(decode(w_plus(), w_plus().init(run), run))
    assert 0 <= float(pixels.min()) < float(pixels.max()) <= 1


def test_features_of_a_layer_are_what_the_layers_before_make(run: DistillRun) -> None:
    state = glad(4).init(run)
    wanted = run.generator.synthesize(state.params["w"], None, 0, 4)
    assert torch.equal(state.params["f"], wanted)
    assert torch.equal(state.params["w"], w_plus().init(run).params["w"])


def test_only_the_codes_behind_a_layer_decode(run: DistillRun) -> None:
    space = glad(4)
    state = space.init(run)
    images = decode(space, state, run)
    for layer in range(DEPTH):
        moved = state.clone()
        with torch.no_grad():
            moved.params["w"][:, layer] += 1
        assert torch.equal(decode(space, moved, run), images) == (layer < 4)


def test_the_walk_takes_optimised_tensors_along_and_ends_in_pixels(run: DistillRun) -> None:
    space = hpd()
    state = State({name: tensor + 0.1 for name, tensor in space.init(run).params.items()})
    names, images = [set(state.params)], decode(space, state, run)
    for stage in range(1, space.num_stages(run)):
        before = state
        state = replace(space.advance(state, run), stage=stage)
        names.append(set(state.params))
        torch.testing.assert_close(decode(space, state, run), images)
        if "w" in state.params:
            assert torch.equal(state.params["w"], before.params["w"])
    assert names == [{"f", "w"}] * 3 + [{"pixels"}]
    assert len(list(stages(space, run))) == 4


class Loud(ToyGenerator):
    """Its features are NaN, infinite and large here and there."""

    def synthesize(self, w: Tensor, hidden: Tensor | None, start: int, stop: int) -> Tensor:
        made = super().synthesize(w, hidden, start, stop)
        if 0 < stop < self.depth:
            made[:, 0, 0, :4] = torch.tensor([torch.nan, torch.inf, -torch.inf, 12.0])
        return made


def test_new_features_are_made_sane(run: DistillRun) -> None:
    run = replace(run, loaded=Loud(run.spec, DEPTH))
    first = glad(3).init(run).params["f"]
    assert first[0, 0, 0, :4].tolist() == [0, 5, -5, 10]
    later = hpd().advance(hpd().init(run), run).params["f"]
    assert later[0, 0, 0, :4].tolist() == [0, 5, -5, 10]
    raw = glad(3, clip=0.0).init(run).params["f"]
    assert raw[0, 0, 0, 3] == 12
    assert raw[0, 0, 0, 0].isnan()


def test_averaged_codes_lie_closer_together_and_differ_within_a_class(run: DistillRun) -> None:
    run = replace(run, ipc=3)
    sample, average = (w_plus(how, 300).init(run).params["w"].view(3, 3, DEPTH, -1) for how in ("sample", "average"))
    assert average.var(1).mean() < 0.05 * sample.var(1).mean()  # a hundred codes a mean
    assert not torch.equal(average[0, 0], average[0, 1])
    centre = run.generator.embedding  # type: ignore[attr-defined]
    torch.testing.assert_close(average[:, :, 0].mean(1), centre, atol=0.1, rtol=0)


def test_too_few_samples_still_average_one(run: DistillRun) -> None:
    assert w_plus("average", 1).init(run).params["w"].isfinite().all()


def test_presets() -> None:
    assert w_plus() == Layered()
    assert glad() == Layered(12, 12)
    assert hpd() == Layered(2, -1, 2, "average", 1000, 10.0)


@dataclass(frozen=True)
class Mirrored(Space):
    """Another space's images, mirrored; it answers with what that needs."""

    inner: Space

    @property
    def needs_generator(self) -> bool:
        return self.inner.needs_generator

    @property
    def tensors(self) -> tuple[str, ...]:
        return self.inner.tensors

    def needs(self, run: Run) -> tuple[Resource, ...]:
        return self.inner.needs(run)

    def num_stages(self, run: Run) -> int:
        return self.inner.num_stages(run)

    def init(self, run: Run) -> State:
        return self.inner.init(run)

    def advance(self, state: State, run: Run) -> State:
        return self.inner.advance(state, run)

    def classes(self, state: State, run: Run) -> Tensor:
        return self.inner.classes(state, run)

    def decode(self, state: State, index: Tensor, run: Run) -> Tensor:
        return self.inner.decode(state, index, run).flip(3)


@pytest.mark.parametrize(
    ("inner", "needs_generator", "tensors"),
    [(Pixel(), False, ("pixels",)), (hpd(first=1, samples=10), True, ("w", "f", "pixels"))],
    ids=["pixel", "hpd"],
)
def test_a_space_that_wraps_another_answers_for_it(
    run: DistillRun, inner: Space, needs_generator: bool, tensors: tuple[str, ...]
) -> None:
    space = Mirrored(inner)
    assert (space.needs_generator, space.tensors) == (needs_generator, tensors)
    assert "space_names_its_tensors" in run_checks("spaces", space, run).met


def test_a_space_that_says_nothing_has_no_tensors_and_needs_no_generator() -> None:
    class Silent(Mirrored):
        needs_generator = Space.needs_generator
        tensors = Space.tensors

    assert not Silent(hpd()).needs_generator
    assert Silent(hpd()).tensors == ()
