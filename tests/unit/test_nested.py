"""Plugins that are settings of plugins: from TOML to a set's plan, its label, its key, its file, and the objects made of it."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from ddbench import schema
from ddbench.errors import DataError, Faults
from ddbench.plan import SetPlan
from ddbench.refs import PluginRef, foreign
from ddbench.suite import load as grid
from ddbench_plugins.spaces.layered import Layered
from ddbench_plugins.spaces.pixel import Pixel

MODULE = "wrapping_of_tests"
WRAPPER = """
from dataclasses import dataclass
from ddbench.api import Space

@dataclass(frozen=True)
class Wrapper(Space):
    '''Several images from each image of another space.'''
    factor: int
    inner: Space
    second: Space | None = None

    @property
    def needs_generator(self):
        return self.inner.needs_generator
    @property
    def tensors(self):
        return self.inner.tensors
    def check(self, depth):
        self.inner.check(depth)
    def init(self, run):
        return self.inner.init(run)
    def classes(self, state, run): ...
    def decode(self, state, index, run): ...

@dataclass(frozen=True)
class Mean(Space):
    colour: str = "grey"
    tensors = ("pixels",)
    def init(self, run): ...
    def classes(self, state, run): ...
    def decode(self, state, index, run): ...
"""

SUITE = """
schema = 1
name = "nested"
protocol = "smoke-1"
subsets = ["mnist-5k"]
losses = ["dm"]
spaces = [{ name = "wrapper", factor = 2, inner = { name = "layered", first = 2 } }]
generator = "cvae"
backbone = { name = "convnet", width = 4 }
networks = [{ name = "convnet", width = 4 }]
baselines = []
"""


@dataclass(frozen=True)
class Hashes:
    train_hash: str = "ab" * 32
    test_hash: str = "cd" * 32


@pytest.fixture(autouse=True)
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The wrapper in one made-up distribution, a space of its own in another."""
    for name, space in (("wrapping-of-tests", "wrapper = Wrapper"), ("mean-of-tests", "mean = Mean")):
        info = tmp_path / "site" / f"{name.replace('-', '_')}-1.0.dist-info"
        info.mkdir(parents=True)
        (info / "entry_points.txt").write_text(f"[ddbench.spaces]\n{space.replace('= ', f'= {MODULE}:')}\n")
    (tmp_path / "site" / f"{MODULE}.py").write_text(WRAPPER)
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    monkeypatch.delitem(sys.modules, MODULE, raising=False)


def plan_of(tmp_path: Path, *changes: tuple[str, str]) -> SetPlan:
    text = SUITE
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    path = tmp_path / "suite.toml"
    path.write_text(text)
    (cell,) = grid.load(str(path), lambda ref, root: Hashes(), None).cells
    return cell.set


def space_of(plan: SetPlan) -> PluginRef:
    assert plan.space
    return plan.space


INNER = '{ name = "layered", first = 2 }'


def test_a_nested_space_goes_through_plan_label_and_identity(tmp_path: Path) -> None:
    space = space_of(plan_of(tmp_path))
    assert space.label == "wrapper(factor=2, inner=layered(first=2))"
    assert space.written == "wrapper"
    inner = {"plugin": "layered", "from": "ddbench", "numerics": 1, "settings": {"first": 2}}
    assert space.what == {
        "plugin": "wrapper", "from": "wrapping-of-tests", "numerics": 1, "settings": {"factor": 2, "inner": inner},
    }  # fmt: skip
    assert space.distributions == ("ddbench", "wrapping-of-tests")
    mean = space_of(plan_of(tmp_path, (INNER, '{ name = "mean", colour = "red" }')))
    assert mean.label == "wrapper(factor=2, inner=mean(colour=red))"
    assert mean.distributions == ("mean-of-tests", "wrapping-of-tests")
    assert foreign(*plan_of(tmp_path, (INNER, '"mean"')).refs) == ("mean-of-tests", "wrapping-of-tests")


def test_what_an_inner_plugin_resolves_to_decides_the_key(tmp_path: Path) -> None:
    key = plan_of(tmp_path, (INNER, '{ name = "glad", layer = 4 }')).key
    assert plan_of(tmp_path, (INNER, '{ name = "layered", first = 4, last = 4 }')).key == key
    assert plan_of(tmp_path, (INNER, '{ name = "glad", layer = 5 }')).key != key
    assert plan_of(tmp_path, (INNER, '{ name = "glad", layer = 4, samples = 1000 }')).key == key
    assert plan_of(tmp_path, (INNER, '{ name = "glad", layer = 4, samples = 10 }')).key != key
    assert plan_of(tmp_path, (INNER, '"pixel"')).key == plan_of(tmp_path, (INNER, '{ name = "pixel" }')).key


def test_a_plan_with_a_nested_space_comes_back_from_its_file(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, ("factor = 2", 'factor = 2, second = "pixel"'))
    path = tmp_path / "plan.json"
    schema.write(path, schema.SetPlanFile(plan=plan))
    again = schema.read(path, schema.SetPlanFile, "plan").plan
    assert again == plan
    assert again.key == plan.key
    made = space_of(again).make()
    assert (made.inner, made.second, made.factor) == (Layered(first=2), Pixel(), 2)
    path.write_bytes(path.read_bytes().replace(b'"first": 2', b'"first": 3'))
    with pytest.raises(DataError, match="was changed after it was written"):
        schema.read(path, schema.SetPlanFile, "plan")


def test_the_wrapper_answers_for_its_inner_space(tmp_path: Path) -> None:
    """Whether a generator is needed, which tensors want rates, and whether its layers exist."""
    plan = plan_of(tmp_path)
    assert plan.generator
    assert plan.rates.keys() == {"f", "w", "pixels"}
    plan = plan_of(tmp_path, (INNER, '"pixel"'))
    assert plan.generator is None
    assert plan.rates.keys() == {"pixels"}


TABLE = "must be the name of one of the spaces, or a table with it, got "
FAULTS: dict[str, tuple[str, Any]] = {
    "unknown": ('{ name = "layred" }', "unknown space 'layred'. Did you mean 'layered'? Installed: "),
    "setting": ('{ name = "layered", frist = 2 }', "space 'layered' has no setting 'frist'. Did you mean 'first'?"),
    "type": ('{ name = "layered", first = "x" }', "space 'layered': setting 'first' must be "),
    "refused": ('{ name = "layered", first = 2, step = 0 }', "space 'layered': 'step', 'samples' and 'repeat' must be at least "),
    "no table": ("3", f"space 'wrapper': setting 'inner' {TABLE}3"),
    "no name": ("{ first = 2 }", f"space 'wrapper': setting 'inner' {TABLE}"),
    "another kind": ('"dm"', "unknown space 'dm'."),
    "layer": ('{ name = "glad" }', "space 'wrapper(factor=2, inner=glad)' with generator 'cvae' on 'mnist-5k': layer 12 "),
}


@pytest.mark.parametrize(("inner", "told"), FAULTS.values(), ids=FAULTS)
def test_what_is_wrong_inside_is_told_in_a_sentence(tmp_path: Path, inner: str, told: str) -> None:
    with pytest.raises(Faults) as caught:
        plan_of(tmp_path, (INNER, inner))
    (said,) = caught.value.faults
    assert said.startswith(f"suite '{tmp_path / 'suite.toml'}': {told}"), said
    assert "\n" not in said


def test_an_override_replaces_an_inner_plugin(tmp_path: Path) -> None:
    override = 'baselines = []\n[[override]]\nwhere = { space = "wrapper" }\nset = { space = { inner = "pixel" } }\n'
    assert space_of(plan_of(tmp_path, ("baselines = []\n", override))).label == "wrapper(factor=2, inner=pixel)"
