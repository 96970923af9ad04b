"""Budgets: what a set of every space takes, by formulas written out here; equal bytes; what is refused, and what is not."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from msgspec.structs import replace as replace_plan
from synthetic_records import BASE, FULL_DATA, RANDOM, SPACES, Judged, baseline, draw, judged, method, results, write_store
from torch import Tensor

from ddbench.api import Budget, Run, Space, State
from ddbench.cli import main
from ddbench.cli.plan_text import where_told
from ddbench.compute.clock import Stopwatch
from ddbench.compute.distilled import Stored, marks_of
from ddbench.compute.engine import Distillation, distill
from ddbench.compute.run import DistillRun
from ddbench.errors import ConfigError, Faults, PluginError
from ddbench.leaderboard.beside import Surroundings, commands, places_of
from ddbench.leaderboard.page import page_text, write
from ddbench.leaderboard.sections import sections
from ddbench.ops.codes import starting_codes
from ddbench.plan import Imported
from ddbench.schema import Stage, sealed
from ddbench.suite.load import load
from ddbench.suite.reader import Suite
from ddbench.suite.selection import select
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
WEIGHTS = 4 * (3 * (4 * 4 * 4) + 6 * (4 * 4 * 9) + 3 * 4 * 9 + 6 * (3 * 8) + 3 * 6)  # bytes of its generator's weights
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
    "frequency, no two images": (Frequency(kept=65), 4, "images", r"'kept' must lie in 1\.\.64"),
    "frequency, its places count": (Frequency(kept=64), 2, "bytes", r"a class 1 images at IPC 2.*'kept' must lie in 1\.\.54"),
    "networks of HaBa": (Factorised(hallucinators=2), 2, "bytes", "each class has 576 values.*an ipc of at least 3"),
    "a network for an image": (Implicit(units=50), 1, "bytes", "give it fewer 'units', 10 at most"),
    "tiles of a generator's images": (MultiFormation(glad(1), 2), 6, "bytes", "'ipc' must be a multiple of 4, got 6"),
    "enlarged from nothing": (Upsampled(8), 1, "images", "it may be 7 at most"),
    "a tile of nothing": (MultiFormation(Pixel(), 5), 1, "bytes", "it may be 4 at most"),
}
ALLOWED: list[tuple[Space, int]] = [
    (Factorised(hallucinators=2), 3), (Frequency(kept=54), 2), (Implicit(units=10), 1), (MultiFormation(glad(1), 2), 8),
    (Upsampled(7), 1), (MultiFormation(Pixel(), 4), 1),
]  # fmt: skip


@pytest.mark.parametrize(("space", "ipc", "budget", "told"), REFUSED.values(), ids=REFUSED)
def test_less_than_an_item_is_refused_with_what_is_allowed(space: Space, ipc: int, budget: Budget, told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        space.num_images(run_of(ipc, budget))


@pytest.mark.parametrize(("space", "ipc"), ALLOWED)
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
    with pytest.raises(PluginError, match=r"takes 9,216 bytes, and ipc 2 in bytes allows 4,608\. The space must heed"):
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


# ---------------------------------------------------------------- suites


SUITE = """
schema = 1
protocol = "smoke-1"
ipc = [2]
budget = ["images", "bytes"]
subsets = ["mnist-5k"]
losses = ["dm"]
spaces = ["pixel", { name = "frequency", kept = 49 }, { name = "multi-formation", inner = "pixel" }]
generator = "cvae"
baselines = ["random"]
"""


@dataclass(frozen=True)
class Hashes:
    """An identity of data that nobody has."""

    train_hash: str = "d" * 64
    test_hash: str = "e" * 64


def read(tmp_path: Path, text: str) -> Suite:
    path = tmp_path / "suite.toml"
    path.write_text(text)
    return load(str(path), lambda ref, root: Hashes(), None)


def with_line(key: str, value: str) -> str:
    return re.sub(rf"(?m)^{key} = .*$", f"{key} = {value}", SUITE)


def test_a_suite_says_what_ipc_bounds(tmp_path: Path) -> None:
    both, plain = read(tmp_path, SUITE), read(tmp_path, with_line("budget", '"images"'))
    unsaid = read(tmp_path, SUITE.replace('budget = ["images", "bytes"]\n', ""))
    equal = read(tmp_path, with_line("budget", '"bytes"'))
    keys = [{cell.set.key for cell in suite.cells} for suite in (both, plain, unsaid, equal)]
    assert [len(each) for each in keys] == [7, 4, 4, 4]
    assert keys[1] == keys[2] < keys[0]
    assert keys[1] | keys[3] == keys[0]
    assert keys[1] & keys[3] == {cell.set.key for cell in both.cells if cell.set.baseline}, "which are made once"
    assert [cell.name for cell in select(both.cells, "budget=bytes,space=frequency")] == [
        "dm / frequency(kept=49), mnist-5k, ipc 2 in bytes, seed 0"
    ]


def test_a_plan_shows_budgets_where_they_are_not_all_images() -> None:
    rows = [{"method": "random", "budget": ""}, {"method": "dm / pixel", "budget": "images"}]
    assert where_told(rows, "budget", "bytes") == [{"method": "random"}, {"method": "dm / pixel"}]
    rows.append({"method": "dm / pixel", "budget": "bytes"})
    assert where_told(rows, "budget", "bytes") == rows


@pytest.mark.parametrize("value", ['"byte"', '["images", "images"]', "[]", "1", '[["bytes"]]'])
def test_another_budget_is_a_fault(tmp_path: Path, value: str) -> None:
    with pytest.raises(Faults) as caught:
        read(tmp_path, with_line("budget", value))
    (told,) = caught.value.faults
    assert "'budget' must be images or bytes, or a list of them, none twice; got " in told
    assert told.endswith("Did you mean 'bytes'?") == (value == '"byte"')


BAD = """[
  { name = "frequency", kept = 785 }, { name = "implicit", units = 60 }, { name = "upsampled", factor = 28 },
  { name = "factorised", hallucinators = 40 }, { name = "multi-formation", factor = 15, inner = "pixel" },
  { name = "multi-formation", factor = 2, inner = { name = "multi-formation", factor = 3, inner = "pixel" } },
  { name = "multi-formation", factor = 2, inner = { name = "glad", layer = 2 } },
  { name = "multi-formation", inner = "random" }, { name = "multi-formation", inner = { name = "glad", layer = 7 } },
  { name = "glad", layer = 9 }, { name = "layered", first = 4, last = 2 }, { name = "layered", last = 3 },
  { name = "hpd", step = 0 }, { name = "layered", first = -9, last = 8 },
]""".replace("\n", "")


@pytest.mark.slow
def test_every_bad_space_of_a_suite_is_told_at_once_with_what_is_allowed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "bad.toml"
    text = with_line("spaces", BAD).replace('["images", "bytes"]', '"bytes"')
    path.write_text(text + "[distill]\nrates = { siren = 1 }\n")
    assert main(["plan", str(path)]) == 2
    said = [line.partition(": ")[2] for line in capsys.readouterr().err.splitlines()]
    for told in (
        "'kept' must lie in 1..522", "give it fewer 'units', 37 at most", "it may be 27 at most", "an ipc of at least 8, got 2",
        "less than 2 px: it may be 14 at most", "wrapped around one of its own kind", "'ipc' must be a multiple of 4, got 2",
        "unknown space 'random'", "layer 7 does not exist: this generator has layers 0..6",
        "layer 9 does not exist: this generator has layers 0..6", "layer 'first' (4) lies behind 'last' (2)",
        "'last' has no meaning without 'first'", "'step', 'samples' and 'repeat' must be at least 1",
        "layers -9 and 8 do not exist: this generator has layers 0..6",
    ):  # fmt: skip
        assert sum(told in line for line in said) == 1, (told, said)
    assert len(said) == 14


# ---------------------------------------------------------------- boards


def both_budgets() -> list[Judged]:
    """Pixels under both, with a baseline, an imported set and full data beside them."""
    rng = np.random.default_rng(0)
    plans = [
        *(method("dm", space, budget=budget) for space in SPACES[1:] for budget in ("images", "bytes")),
        baseline(RANDOM), baseline(FULL_DATA), replace_plan(BASE, imported=Imported("f" * 64, "pixels", "indices")),
    ]  # fmt: skip
    return [judged(plan, draw(plan, rng, 0.8)) for plan in plans]


def test_a_board_of_both_budgets_has_two_tables_and_mixes_no_rows() -> None:
    found = results(both_budgets())
    images, equal = sections(found)
    assert (images.budget, equal.budget) == ("images", "bytes")
    for section in (images, equal):
        assert {row.plan.budget for row in section.rows if row.is_distilled} == {section.budget}
        assert [row.name for row in section.rows] == [
            "random", "dm / hpd / cvae", "dm / pixel", "imported ffffffff", "full-data"
        ]  # fmt: skip
    page = page_text(found, Surroundings(places=places_of(found)))
    assert "\n## toy, IPC 1, hard labels, protocol toy-1\n" in page
    assert "\n## toy, IPC 1 in bytes, hard labels, protocol toy-1\n" in page
    assert page.count("### Accuracy (%)") == page.count("### Size") == 2
    (row,) = (row for row in equal.rows if row.name == "dm / pixel")
    assert commands(row, equal, Surroundings(places=places_of(found))) == [
        "ddbench run toy-grid --only loss=dm,space=pixel,budget=bytes"
    ]


def test_a_board_of_bytes_alone_has_no_other_table() -> None:
    found = results(one for one in both_budgets() if one.plan.budget == "bytes" or not one.plan.is_distilled)
    (section,) = sections(found)
    assert (section.budget, len(section.rows)) == ("bytes", 5)
    (row,) = (row for row in section.rows if row.name == "dm / pixel")
    (told,) = commands(row, section, Surroundings(places=places_of(found)))
    assert told.endswith("--only loss=dm,space=pixel")


def test_what_a_record_of_before_does_not_say_is_a_dash(tmp_path: Path) -> None:
    """Of a generator's weights nobody counted: delivered is unknown, unless what is stored is larger than the images."""
    old, new = judged(method("dm", "hpd"), {"convnet": [0.5]}), judged(method("dm", "pixel"), {"convnet": [0.5]})
    large = replace_plan(method("dm", "hpd"), ipc=2)
    stored = judged(large, {"convnet": [0.5]})
    record = replace_plan(stored.set.record, bytes_stored=stored.set.record.bytes_images + 1)
    stored = replace(stored, set=replace(stored.set, record=sealed(record)))
    written = write(write_store(tmp_path, [old, new, stored]), tmp_path / "out")
    rows = {(row["method"], row["ipc"]): row for row in written.ranked}
    known = rows["dm / pixel", 1]
    assert {name: known[name] for name in NAMES} == dict(zip(NAMES, ("images", 1, 1024, 4096, 4096, 31360, 4096), strict=True))
    before = rows["dm / hpd / cvae", 1]
    assert {name: before[name] for name in NAMES} == dict(zip(NAMES, ("images", 1, None, None, None, 31360, None), strict=True))
    assert rows["dm / hpd / cvae", 2]["bytes"] == 62720
    text = (tmp_path / "out" / "leaderboard.md").read_text()
    assert re.search(r"\| dm / hpd / cvae \| +1 \| +– \| +– \| +– \| +30.6 \| +– \|", text)


NAMES = ("budget", "images_per_class", "floats", "bytes_without_decoder", "bytes_with_decoder", "bytes_rendered", "bytes")


def test_a_record_of_before_tells_floats_by_the_shapes_of_its_tensors() -> None:
    one = judged(method("dm", "hpd", labels="learned"), {"convnet": [0.5]})
    tensors = {"f": (10, 4, 7, 7), "w": (10, 6, 32), "labels": (10, 10)}
    stage = Stage(tensors=tensors, chosen_step=5, step_score=None, stage_score=None)
    record = sealed(replace_plan(one.set.record, stages=(stage,)))
    (result,) = results([replace(one, set=replace(one.set, record=record))])
    assert result.floats == 10 * 4 * 7 * 7 + 10 * 6 * 32
