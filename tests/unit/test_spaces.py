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


def test_gaussian_features_have_each_image_s_own_mean_and_spread(run: DistillRun) -> None:
    """One number each over a whole map; other noise in every image; codes as without."""
    run = toy_run(channels=3, depth=DEPTH, side=32)
    plain, noise = (glad(3, clip=0.0, features=how).init(run).params for how in ("forward", "gaussian"))
    assert torch.equal(plain["w"], noise["w"])
    f, g = plain["f"].flatten(1), noise["f"].flatten(1)
    torch.testing.assert_close(g.mean(1), f.mean(1), atol=0.15, rtol=0)  # 1,024 numbers
    torch.testing.assert_close(g.std(1), f.std(1), rtol=0.15, atol=0)
    assert not torch.allclose(f.mean(1)[0], f.mean(1)[-1], atol=0.01)
    unit = (g - f.mean(1, keepdim=True)) / f.std(1, keepdim=True)
    assert unit.corrcoef().fill_diagonal_(0).abs().max() < 0.2
    assert (torch.stack([unit, (f - f.mean(1, keepdim=True)) / f.std(1, keepdim=True)]).prod(0).mean(1).abs() < 0.2).all()
    assert torch.equal(noise["f"], glad(3, clip=0.0, features="gaussian").init(run).params["f"])
    assert glad(3, clip=0.5, features="gaussian").init(run).params["f"].abs().max() == 0.5  # clipped after
    with pytest.raises(ConfigError, match="'features' has no meaning without 'first'"):
        Layered(features="gaussian")


def test_noise_is_at_the_first_layer_alone(run: DistillRun) -> None:
    space = hpd(features="gaussian", clip=0.0)
    state = space.init(run)
    later = replace(space.advance(state, run), stage=1)
    torch.testing.assert_close(decode(space, later, run), decode(space, state, run))


class Half(ToyGenerator):
    """Computes in half precision."""

    def latents(self, classes: Tensor, rng: torch.Generator) -> Tensor:
        return super().latents(classes, rng).half()

    def synthesize(self, w: Tensor, hidden: Tensor | None, start: int, stop: int) -> Tensor:
        return super().synthesize(w.float(), None if hidden is None else hidden.float(), start, stop).half()


@pytest.mark.parametrize("space", [w_plus(), glad(3), glad(3, features="gaussian"), hpd(), Pixel("generator-average")])
def test_what_is_optimised_is_never_in_half_precision(space: Space, run: DistillRun) -> None:
    run = replace(run, loaded=Half(run.spec, DEPTH))
    for state in stages(space, run):
        assert {tensor.dtype for tensor in state.params.values()} == {torch.float32}
        assert decode(space, state, run).dtype == torch.float32


@pytest.mark.parametrize(("start", "codes"), [("generator", "sample"), ("generator-average", "average")])
def test_pixel_starts_from_the_images_of_a_generator(start: Any, codes: Any, run: DistillRun) -> None:
    """Where W+ and H-PD start, with equal codes."""
    space = Pixel(start)
    assert space.needs_generator
    assert not Pixel().needs_generator
    images = decode(space, space.init(run), run)
    torch.testing.assert_close(images, decode(w_plus(codes), w_plus(codes).init(run), run))
    walk = hpd(init_from=codes)
    torch.testing.assert_close(images, decode(walk, walk.init(run), run))


@pytest.mark.parametrize("space", [Pixel(repeat=3), glad(3, repeat=3), Layered(repeat=3)])
def test_a_repeated_stage_begins_with_the_tensors_of_the_one_before(space: Space, run: DistillRun) -> None:
    assert space.num_stages(run) == 3
    state = State({name: tensor + 20 for name, tensor in space.init(run).params.items()})  # beyond what new features may be
    later = space.advance(state, run)
    assert state.params.keys() == later.params.keys()
    for name, tensor in state.params.items():
        assert torch.equal(later.params[name], tensor)
        assert later.params[name].data_ptr() != tensor.data_ptr()
    assert torch.equal(decode(space, replace(later, stage=1), run), decode(space, state, run))
    assert Layered(2, 6, 2, repeat=2).layers(DEPTH) == (2, 2, 4, 4, 6, 6)
    for make in (lambda: Pixel(repeat=0), lambda: Pixel(samples=0), lambda: glad(repeat=0)):
        with pytest.raises(ConfigError, match="must be at least 1"):
            make()


class Counting(ToyGenerator):
    """Knows the largest batch that it has made images of."""

    most = 0

    def synthesize(self, w: Tensor, hidden: Tensor | None, start: int, stop: int) -> Tensor:
        self.most = max(self.most, len(w))
        return super().synthesize(w, hidden, start, stop)


@pytest.mark.parametrize(("side", "most"), [(64, 6), (66, 1)])
def test_large_images_go_through_the_layers_one_at_a_time(side: int, most: int) -> None:
    run = toy_run(channels=3, depth=4, side=side)
    loaded = Counting(run.spec, 4)
    run = replace(run, loaded=loaded)
    hpd(init_from="sample").advance(hpd(init_from="sample").init(run), run)
    Pixel("generator").init(run)
    assert loaded.most == most


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
