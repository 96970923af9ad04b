"""Budgets: what a set of every space takes, by formulas written out here; equal bytes; and what is refused with what is allowed."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from msgspec.structs import replace as replace_plan
from torch import Tensor

from ddbench.api import Budget, Run, Space, State
from ddbench.compute.clock import Stopwatch
from ddbench.compute.distilled import Stored, marks_of
from ddbench.compute.engine import Distillation, distill
from ddbench.compute.run import DistillRun
from ddbench.errors import ConfigError, PluginError
from ddbench.ops.codes import starting_codes
from ddbench.testing import ToyGenerator, toy_plan, toy_run
from ddbench.testing.spaces import stages
from ddbench_plugins.losses.dm import DistributionMatching
from ddbench_plugins.spaces.factorised import Factorised
from ddbench_plugins.spaces.frequency import Frequency
from ddbench_plugins.spaces.implicit import Implicit
from ddbench_plugins.spaces.inverted import Inverted
from ddbench_plugins.spaces.layered import Layered, glad, hpd, w_plus
from ddbench_plugins.spaces.multi_formation import MultiFormation
from ddbench_plugins.spaces.pixel import Pixel
from ddbench_plugins.spaces.upsampled import Upsampled
from ddbench_plugins.stylegan.schedule import planned, stylegan_xl

K, CHW, HW, DEPTH = 3, 3 * 8 * 8, 8 * 8, 7  # of the toy run
WEIGHTS = 4 * (
    3 * (4 * 4 * 4) + 6 * (4 * 4 * 9) + 3 * 4 * 9 + 6 * (3 * 8) + 3 * 6
)  # bytes of its generator: start, kernels, styles
CODES = 7 * 3  # a code of 3 numbers for each layer
F1, F4 = 4 * 4 * 4, 4 * 8 * 8  # features before the side doubles, and behind it


def run_of(ipc: int, budget: Budget) -> DistillRun:
    return replace(toy_run(channels=3, depth=DEPTH), ipc=ipc, budget=budget)


@dataclass(frozen=True)
class Case:
    """What a space has of a class: images, floats that are optimised, and other numbers that it stores; and of all classes."""

    space: Space
    ipc: int
    images: int
    floats: int
    fixed: int = 0
    networks: int = 0  # floats that all images share
    generator: bool = False
    item: int = CHW  # floats of one more item of a class, delivered
    budget: Budget = "images"

    def __str__(self) -> str:
        return f"{self.budget}-{type(self.space).__name__}-{self.floats}"


HABA = 2 * (2 * (3 * 3 * 9 + 3) + 2 * 3 * 6 * 6)  # two networks: two convolutions with biases, a scale and a shift between
SIREN = 3 * 3 + 4 * 3 + 4 * 3  # 2 -> 3 -> 3 -> 3, with biases
IMAGES = [
    Case(Pixel(), 4, 4, 4 * CHW),
    Case(Pixel(clamp=True), 4, 4, 4 * CHW),
    Case(Pixel("generator"), 4, 4, 4 * CHW),
    Case(Frequency(kept=16), 4, 4 * HW // 16, 16 * 3 * 16, fixed=16),
    Case(MultiFormation(Pixel(clamp=True, clamp_every=100), 2), 4, 16, 4 * CHW),
    Case(MultiFormation(Frequency(kept=16), 2), 4, 64, 16 * 3 * 16, fixed=16),
    Case(MultiFormation(glad(layer=1), 2), 4, 16, 4 * (F1 + CODES), generator=True),
    Case(Upsampled(2), 4, 16, 16 * 3 * 4 * 4),
    Case(Upsampled(3), 4, 4 * 64 // 9, 28 * 3 * 3 * 3),
    Case(Implicit(units=3, fit_steps=0), 4, 4 * CHW // SIREN, 23 * SIREN),
    Case(Factorised(hallucinators=2), 4, 8, 4 * CHW, networks=HABA),
    Case(w_plus(), 1, 1, CODES, generator=True),
    Case(glad(layer=1), 1, 1, F1 + CODES, generator=True),
    Case(glad(layer=4), 2, 2, 2 * (F4 + CODES), generator=True),
    Case(Layered(first=-1), 2, 2, 2 * CHW),
    Case(Inverted(fit_steps=0, features=0), 1, 1, CODES, generator=True),
]
BYTES = [
    *(
        replace(case, budget="bytes")
        for case in IMAGES
        if not isinstance(case.space, Frequency | MultiFormation | Factorised)
    ),
    # 4 images of floats hold n * 3 * 16 coefficients and their 16 places: n = (768 - 16) // 48
    Case(Frequency(kept=16), 4, 15, 15 * 3 * 16, fixed=16, item=48, budget="bytes"),
    Case(MultiFormation(Frequency(kept=16), 2), 4, 60, 15 * 3 * 16, fixed=16, item=48, budget="bytes"),
    Case(MultiFormation(Pixel(clamp=True, clamp_every=100), 2), 4, 16, 4 * CHW, budget="bytes"),
    # four images of a generator's one are delivered
    Case(MultiFormation(glad(layer=1), 2), 4, 4, F1 + CODES, generator=True, item=4 * CHW, budget="bytes"),
    # three classes of 4 images hold 2304 floats, the networks take 768 of them: two bases a class
    Case(Factorised(hallucinators=2), 4, 4, 2 * CHW, networks=HABA, budget="bytes"),
]  # fmt: skip


@pytest.mark.parametrize("case", IMAGES + BYTES, ids=str)
def test_what_a_set_of_a_space_takes(case: Case) -> None:
    space, run = case.space, run_of(case.ipc, case.budget)
    state, floats, weights = space.init(run), K * case.floats + case.networks, WEIGHTS if case.generator else 0
    stored, num = Stored.of(space, state, run), len(space.classes(state, run))
    assert (num, stored.floats) == (K * case.images, floats)
    assert num == space.num_images(run)
    size = stored.size(case.budget, num, K)
    assert size.images_per_class == case.images
    assert size.bytes_without_decoder == 4 * (floats - case.networks + K * case.fixed)
    assert size.bytes_with_decoder == 4 * (floats + K * case.fixed) + weights
    if case.budget == "bytes":
        whole = 4 * K * case.ipc * CHW
        assert whole - 4 * K * case.item < stored.delivered(num, run.spec) <= whole


def test_the_toy_generator_is_as_large_as_its_weights() -> None:
    assert run_of(1, "images").generator.bytes_stored == WEIGHTS


def test_a_walk_has_as_many_images_at_every_layer_and_sheds_its_decoder_in_the_end() -> None:
    run = run_of(2, "bytes")
    space = hpd(first=1, samples=4)
    sizes = [Stored.of(space, state, run) for state in stages(space, run)]
    assert [size.generator for size in sizes] == [WEIGHTS] * (len(sizes) - 1) + [0]
    assert sizes[-1].num_bytes == 4 * K * 2 * CHW
    assert {size.delivered(K * 2, run.spec) for size in sizes} == {4 * K * 2 * CHW}


def test_latents_are_as_much_larger_than_the_image_as_the_docs_say() -> None:
    """F_0 .. F_26 of StyleGAN-XL at 128 px: the table has every layer, and those that GLaD and H-PD name are among the rows."""
    maps = [layer.before for layer in planned(stylegan_xl(128, 1000))[:1]]
    maps += [layer.after for layer in planned(stylegan_xl(128, 1000))]
    text = (Path(__file__).parents[2] / "docs" / "spaces.md").read_text()
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("| F")]
    listed = []
    for name, shape, floats, times in rows:
        first, _, last = name.replace("F", "").partition(" to ")
        for number in range(int(first), int(last or first) + 1):
            one = maps[number]
            size = one.channels * one.size**2
            assert shape == f"{one.channels:,} x {one.size} x {one.size}"
            assert (floats, times) == (f"{size:,}", f"{size / (3 * 128**2):.0f}")
            listed.append((number, times))
    assert [number for number, _ in listed] == list(range(27))
    assert (dict(listed)[0], dict(listed)[20], dict(listed)[26]) == ("27", "456", "1")


# ---------------------------------------------------------------- what is refused


REFUSED: dict[str, tuple[Space, int, Budget, str]] = {
    "frequency, no two images": (Frequency(kept=65), 4, "images", "'kept' must lie in 1..64"),
    "frequency in bytes, its places count": (
        Frequency(kept=64),
        2,
        "bytes",
        "leaves a class 1 images at IPC 2.*must lie in 1..54",
    ),
    "networks of HaBa": (
        Factorised(hallucinators=2),
        2,
        "bytes",
        r"one image of each class has 576 values.*an ipc of at least 3",
    ),
    "a network for an image": (Implicit(units=50), 1, "bytes", "has 2,853 weights|give it fewer 'units'"),
    "tiles of a generator's images": (MultiFormation(glad(1), 2), 6, "bytes", "'ipc' must be a multiple of 4, got 6"),
    "a tile of nothing": (MultiFormation(Pixel(), 5), 1, "bytes", "it may be 4 at most"),
}


@pytest.mark.parametrize(("space", "ipc", "budget", "told"), REFUSED.values(), ids=REFUSED)
def test_less_than_an_item_is_refused_with_what_is_allowed(space: Space, ipc: int, budget: Budget, told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        space.num_images(run_of(ipc, budget))


@pytest.mark.parametrize(
    ("space", "ipc"), [(Factorised(hallucinators=2), 3), (Frequency(kept=54), 2), (MultiFormation(glad(1), 2), 8)]
)
def test_what_is_allowed_is_not_refused(space: Space, ipc: int) -> None:
    assert space.num_images(run_of(ipc, "bytes")) > 0


class Few(ToyGenerator):
    """Knows three codes of a class."""

    def num_latents(self, label: int) -> int:
        return 3

    def latents(self, classes: Tensor, rng: torch.Generator) -> Tensor:
        return self.embedding[classes][:, None].repeat(1, self.depth, 1) + (torch.arange(len(classes)) % 3)[:, None, None]


@pytest.mark.parametrize("how", ["sample", "average"])
def test_codes_that_make_images_of_a_class_equal_are_refused(how: Any) -> None:
    run = replace(run_of(4, "images"), loaded=Few(toy_run(channels=3).spec, DEPTH))
    with pytest.raises(ConfigError, match="has 3 codes of class 0, and ipc 4 would make images of it equal: it may be 3 at most"):
        starting_codes(run, how, 1000)
    codes = starting_codes(replace(run, ipc=3), how, 1000).unflatten(0, (K, 3))
    assert all(len({tuple(code.flatten().tolist()) for code in of_class}) == 3 for of_class in codes)


class Greedy(Pixel):
    """Takes twice as much as it may, whatever the budget."""

    def num_images(self, run: Run) -> int:
        return 2 * super().num_images(run)

    def init(self, run: Run) -> State:
        return State({"pixels": super().init(run).params["pixels"].repeat(2, 1, 1, 1)})

    def classes(self, state: State, run: Run) -> Tensor:
        return super().classes(state, run).repeat_interleave(2)


def test_a_space_that_takes_more_than_its_budget_is_stopped_before_a_step() -> None:
    plan, run = toy_plan(DistributionMatching(batch_real=4), Greedy()), run_of(2, "images")
    loop = Distillation(plan, run, Stopwatch(run.device))
    loop.begin()
    loop = Distillation(plan, replace(run, budget="bytes"), Stopwatch(run.device))
    with pytest.raises(PluginError, match="takes 9,216 bytes, and ipc 2 in bytes allows 4,608. The space must heed run.budget"):
        loop.begin()
    assert loop.step == 0


def test_a_set_that_a_small_generator_makes_says_that_more_would_have_fitted() -> None:
    plan = toy_plan(DistributionMatching(batch_real=4), w_plus(), ipc=4, budget="bytes")
    run = run_of(4, "bytes")
    made = distill(plan, run, Stopwatch(run.device))
    (mark,) = marks_of(plan, made, run.spec)
    assert f"delivered in {4 * K * 4 * CODES + WEIGHTS:,} of the {4 * K * 4 * CHW:,} bytes of its budget" in mark
    assert marks_of(replace_plan(plan, budget="images"), made, run.spec) == ()
    assert marks_of(replace_plan(plan, ipc=1), made, run.spec) == (), "the weights are larger than one image a class"
