"""Spaces that hold more images than IPC in the floats of IPC images: frequencies, tiles, small images, small networks."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import scipy.fft
import torch
from torch import Tensor

from ddbench.api import Space, State
from ddbench.compute.run import DistillRun
from ddbench.errors import ConfigError
from ddbench.ops.codes import starting_codes
from ddbench.ops.vision import load_torchvision
from ddbench.testing import ToyGenerator, prepared, toy_data, toy_run, toy_spec
from ddbench_plugins.spaces.frequency import Frequency
from ddbench_plugins.spaces.implicit import Implicit
from ddbench_plugins.spaces.inverted import Inverted
from ddbench_plugins.spaces.layered import glad
from ddbench_plugins.spaces.multi_formation import MultiFormation
from ddbench_plugins.spaces.pixel import Pixel
from ddbench_plugins.spaces.upsampled import Upsampled

SIDE = 8


@pytest.fixture
def run() -> DistillRun:
    return toy_run(channels=3, side=SIDE)


def decode(space: Space, state: State, run: DistillRun) -> Tensor:
    with torch.no_grad():
        return space.decode(state, torch.arange(len(space.classes(state, run))), run)


def resized(image: Tensor, sides: list[int], how: str = "BILINEAR", antialias: bool = False) -> Tensor:
    """By torchvision."""
    functional = load_torchvision().transforms.functional
    return functional.resize(image, sides, getattr(functional.InterpolationMode, how), antialias=antialias)


def real(run: DistillRun, num: int) -> Tensor:
    """The images that a space starts from, [K * num, C, H, W]."""
    return torch.cat([run.real(label, num, run.rng("init", label)) for label in range(run.spec.num_classes)])


def published(images: Tensor) -> np.ndarray[Any, Any]:
    """The un-normalised DCT-II of FreD's code, of each channel [N,C,H,W], by SciPy."""
    return np.asarray(scipy.fft.dctn(images.double().numpy(), type=2, axes=(2, 3), norm=None))


# ---------------------------------------------------------------- frequency


def test_all_coefficients_are_the_images(run: DistillRun) -> None:
    space = Frequency(kept=SIDE**2)
    torch.testing.assert_close(decode(space, space.init(run), run), real(run, run.ipc), rtol=0, atol=1e-5)


def test_coefficients_are_those_of_the_published_transform_but_for_one_number(run: DistillRun) -> None:
    space = Frequency(kept=SIDE**2)
    expected = torch.from_numpy(published(real(run, run.ipc)) / (2 * SIDE)).float().flatten(2)
    torch.testing.assert_close(space.init(run).params["coefficients"], expected, rtol=0, atol=1e-5)


def test_the_inverse_puts_coefficients_where_scipy_does(run: DistillRun) -> None:
    space, rng = Frequency(kept=20), torch.Generator().manual_seed(0)
    state = space.init(run)
    state.params["coefficients"] = torch.randn(state.params["coefficients"].shape, generator=rng)
    whole = torch.zeros(len(state.params["coefficients"]), 3, SIDE**2)
    for number, label in enumerate(space.classes(state, run).tolist()):
        whole[number][:, state.fixed["places"][label]] = state.params["coefficients"][number] * 2 * SIDE
    expected = scipy.fft.idctn(whole.unflatten(2, (SIDE, SIDE)).double().numpy(), type=2, axes=(2, 3), norm=None)
    torch.testing.assert_close(decode(space, state, run), torch.from_numpy(expected).float(), rtol=0, atol=1e-5)


def test_a_class_keeps_the_coefficients_that_vary_most_in_the_published_transform(run: DistillRun) -> None:
    space, num = Frequency(kept=20), 2 * SIDE**2 // 20
    places = space.init(run).fixed["places"]
    spread = published(real(run, num)).reshape(3, num, 3, -1).mean(2).var(1, ddof=1)
    for label in range(3):
        assert set(places[label].tolist()) == set(np.argsort(spread[label])[-20:].tolist())
    assert len({tuple(row) for row in places.tolist()}) == 3, "classes of their own"


def test_a_published_rate_divided_by_four_times_the_pixels_makes_the_published_step(run: DistillRun) -> None:
    """A step of gradient descent on un-normalised coefficients, against one on ours: constant ones count too."""
    space, rate = Frequency(kept=SIDE**2), 500.0
    state = space.init(run)
    ours = state.params["coefficients"].clone().requires_grad_()
    cotangent = torch.randn(6, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(1))
    images = space.decode(State({"coefficients": ours}, state.fixed), torch.arange(6), run)
    images.backward(cotangent)
    moved = State({"coefficients": ours.detach() - rate / (4 * SIDE**2) * ours.grad}, state.fixed)
    # d idctn(X) . g / dX is the transposed inverse: a DCT-III scaled; by SciPy's own numbers, one basis image at a time.
    basis = scipy.fft.idctn(np.eye(SIDE**2).reshape(-1, SIDE, SIDE), type=2, axes=(1, 2), norm=None).reshape(SIDE**2, -1)
    theirs = published(real(run, run.ipc)).reshape(6, 3, -1)
    theirs = theirs - rate * cotangent.double().flatten(2).numpy() @ basis.T
    expected = scipy.fft.idctn(theirs.reshape(6, 3, SIDE, SIDE), type=2, axes=(2, 3), norm=None)
    torch.testing.assert_close(decode(space, moved, run), torch.from_numpy(expected).float(), rtol=0, atol=1e-4)


@pytest.mark.parametrize(("side", "ipc", "kept", "num"), [(32, 1, 64, 16), (32, 1, 32, 32), (128, 1, 2048, 8), (32, 2, 32, 64)])
def test_how_many_images_frequencies_leave(side: int, ipc: int, kept: int, num: int) -> None:
    run = replace(toy_run(channels=3, side=side), ipc=ipc)
    assert Frequency(kept).num_images(run) == 3 * num


@pytest.mark.parametrize("kept", [65, 127, 1000])
def test_too_many_coefficients_are_refused_with_the_range(run: DistillRun, kept: int) -> None:
    with pytest.raises(ConfigError, match=r"it needs 2 at least, so 'kept' must lie in 1\.\.64"):
        Frequency(kept).num_images(run)


# ---------------------------------------------------------------- multi-formation and small images


@pytest.mark.parametrize("factor", [2, 3])
def test_tiles_are_cut_and_enlarged_as_torchvision_does(run: DistillRun, factor: int) -> None:
    space = MultiFormation(Pixel("noise"), factor)
    state = space.init(run)
    whole, tile = state.params["pixels"], math.ceil(SIDE / factor)
    assert len(whole) == 3 * run.ipc
    edge = tile * factor - SIDE
    grey = float(run.spec.normalise(torch.full((1, 3, 1, 1), 0.5)).mean())
    padded = torch.nn.functional.pad(whole, (0, edge, 0, edge), value=grey)
    made = decode(space, state, run)
    assert len(made) == len(whole) * factor**2 == space.num_images(run)
    for number, image in enumerate(made):
        owner, place = divmod(number, factor**2)
        top, left = (tile * one for one in divmod(place, factor))
        cut = padded[owner, :, top : top + tile, left : left + tile]
        expected = resized(cut, [SIDE, SIDE])
        torch.testing.assert_close(image, expected, rtol=0, atol=1e-5)


def test_an_image_starts_with_as_many_real_ones_as_tiles(run: DistillRun) -> None:
    space = MultiFormation(Pixel(), 2)
    whole, own = space.init(run).params["pixels"], real(run, run.ipc * 4)
    for number, image in enumerate(own):
        owner, place = divmod(number, 4)
        top, left = (SIDE // 2 * one for one in divmod(place, 2))
        shown = whole[owner, :, top : top + SIDE // 2, left : left + SIDE // 2]
        torch.testing.assert_close(shown, resized(image, [SIDE // 2] * 2, "NEAREST"))


def test_few_tiles_are_those_of_all(run: DistillRun) -> None:
    space = MultiFormation(Pixel(), 2)
    state, some = space.init(run), torch.tensor([5, 0, 17])
    assert torch.equal(space.decode(state, some, run), decode(space, state, run)[some])


def test_tiles_of_a_generators_images(run: DistillRun) -> None:
    space = MultiFormation(glad(layer=1, samples=8), 2)
    state = space.init(run)
    assert set(state.params) == {"f", "w"}
    assert space.needs_generator
    assert isinstance(run.generator, ToyGenerator)
    assert decode(space, state, run).shape == (space.num_images(run), 3, SIDE, SIDE)


def test_a_wrapper_around_itself_is_refused() -> None:
    with pytest.raises(ConfigError, match="one of its own kind"):
        MultiFormation(MultiFormation(Pixel(), 2), 2)


def test_a_factor_that_leaves_no_tile_is_refused(run: DistillRun) -> None:
    with pytest.raises(ConfigError, match="less than 2 px: it may be 4 at most"):
        MultiFormation(Pixel(), 5).num_images(run)


def test_idc_clamps_once_in_a_hundred_steps(run: DistillRun) -> None:
    space = MultiFormation(Pixel(clamp=True, clamp_every=100), 2)
    state = space.init(run)
    state.params["pixels"].fill_(9.0)
    space.project_(state, run.at(98))
    assert float(state.params["pixels"].max()) == 9.0
    space.project_(state, run.at(99))
    assert float(run.spec.denormalise(state.params["pixels"]).max()) == pytest.approx(1)


def test_small_images_are_enlarged_as_torchvision_does(run: DistillRun) -> None:
    space = Upsampled(2)
    state = space.init(run)
    small = state.params["small"]
    assert small.shape == (3 * run.ipc * 4, 3, SIDE // 2, SIDE // 2)
    assert len(small) == space.num_images(run)
    torch.testing.assert_close(small, resized(real(run, run.ipc * 4), [SIDE // 2] * 2, antialias=True), rtol=0, atol=1e-5)
    expected = resized(small, [SIDE, SIDE])
    torch.testing.assert_close(decode(space, state, run), expected, rtol=0, atol=1e-5)


# ---------------------------------------------------------------- implicit


@pytest.mark.parametrize(
    ("side", "units", "hidden", "weights", "num"), [(32, 6, 2, 81, 37), (128, 20, 3, 963, 51)], ids=["CIFAR", "128 px"]
)
def test_a_network_has_the_papers_weights_and_a_class_as_many_networks(
    side: int, units: int, hidden: int, weights: int, num: int
) -> None:
    run = replace(toy_run(channels=3, side=side), ipc=1)
    space = Implicit(units=units, hidden=hidden)
    assert space.num_weights(run) == weights
    assert space.num_images(run) == 3 * num


def test_networks_are_fitted_to_real_images_before_step_0() -> None:
    spec = toy_spec(channels=1, side=8)
    run = replace(toy_run(), data=toy_data(spec), ipc=2)
    wanted = real(run, 5)

    def error(steps: int) -> float:
        space = Implicit(units=3, fit_steps=steps, fit_rate=1e-2)
        return float((decode(space, space.init(run), run) - wanted).square().mean())

    assert error(200) < 0.5 * error(0)


def test_a_network_says_the_colour_at_each_place_as_its_formula_does(run: DistillRun) -> None:
    space = Implicit(units=3, hidden=2, fit_steps=0)
    siren = space.init(run).params["siren"][0].double()
    ends = np.cumsum([0, 6, 3, 9, 3, 9, 3])
    w1, b1, w2, b2, w3, b3 = (siren[start:stop] for start, stop in pairwise(ends.tolist()))
    places = torch.linspace(-1, 1, SIDE, dtype=torch.float64)
    for row, column in ((0, 0), (2, 5), (7, 1)):
        at = torch.stack([places[row], places[column]])
        first = torch.sin(30 * (w1.view(3, 2) @ at + b1))
        second = torch.sin(10 * (w2.view(3, 3) @ first + b2))
        shown = space.decode(space.init(run), torch.tensor([0]), run)[0, :, row, column]
        torch.testing.assert_close(shown.double(), w3.view(3, 3) @ second + b3, rtol=0, atol=1e-4)


def test_a_network_that_is_larger_than_the_images_is_refused(run: DistillRun) -> None:
    with pytest.raises(ConfigError, match="give it fewer 'units'"):
        Implicit(units=100).num_images(run)


# ---------------------------------------------------------------- codes that start from real images


@pytest.mark.parametrize("features", [0.0, 1.0])
def test_inverted_codes_make_images_like_the_real_ones(run: DistillRun, features: float) -> None:
    def errors(steps: int) -> Tensor:
        space = Inverted(fit_steps=steps, fit_rate=0.02, features=features, epochs=1)
        ready = prepared(space, run)
        return (decode(space, space.init(ready), ready) - real(run, run.ipc)).square().flatten(1).mean(1)

    assert bool((errors(60) < errors(0)).all())
    assert float(errors(60).mean()) < 0.7 * float(errors(0).mean())


def test_each_image_is_inverted_by_itself(run: DistillRun) -> None:
    space = Inverted(fit_steps=5, features=0)
    first = space.init(run).params["w"]
    alone = space._fitted(starting_codes(run, "sample", 1)[2:3], real(run, run.ipc)[2:3], None, run)
    torch.testing.assert_close(first[2:3], alone)
