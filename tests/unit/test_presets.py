"""Presets: published settings under a suite's own; families that are damaged; and every entry of ours, so that none can rot."""

# ruff: noqa: E501  (a fault and its sentence stand side by side)

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

import pytest

from ddbench import protocols, registry
from ddbench.cli import main
from ddbench.cli.presets import page
from ddbench.errors import BenchError, ConfigError, Faults, PluginError
from ddbench.plan import SetPlan
from ddbench.refs import PluginRef
from ddbench.suite import load as grid
from ddbench.suite import presets
from ddbench.suite.presets import Family, Preset
from ddbench.suite.reader import Suite
from ddbench_plugins.losses.dc import LOOPS_BY_IPC
from ddbench_plugins.spaces.layered import Layered

DOCS = Path(__file__).parents[2] / "docs" / "presets.md"
Capture = pytest.CaptureFixture[str]
Install = Callable[[str], None]

TINY = """
schema = 1
description = "small ones"

[[preset]]
where = { loss = ["dm", "dsa"], space = "pixel", subset = "mnist-5k", side = 28, ipc = 1 }
set = { steps = 11, momentum = 0.25, rates = { pixels = 2 }, loss = { batch_real = 8 } }
source = "somebody"
protocol = "smoke-1"

[[preset]]
where = { loss = "dm", space = "pixel", subset = "mnist-5k", ipc = [10, 50] }
set = { steps = 12 }
unknown = { "rates.pixels" = "it is on no page", "loss.batch_real" = "nor is this.", momentum = "or this" }
source = "somebody else"
note = "Beware."
"""

SUITE = """
schema = 1
name = "small"
preset = "tiny"
protocol = "smoke-1"
ipc = [1]
subsets = ["mnist-5k"]
losses = ["dm"]
spaces = ["pixel"]
generator = "cvae"
backbone = { name = "convnet", width = 4 }
networks = [{ name = "convnet", width = 4 }]
baselines = []
"""

PLUGINS = """
from dataclasses import dataclass
from pathlib import Path
from ddbench.api import Dataset, GeneratorConfig, Presets, Spec

def tiny():
    '''A family of small presets.'''
    return Presets((Path(__file__).parent / "tiny.toml").read_text())

def loud():
    return Presets(None)

@dataclass(frozen=True)
class Blank(Dataset):
    '''Colour images that nobody has.'''
    classes: int = 10
    side: int = 32
    def spec(self):
        return Spec("blank", (3, self.side, self.side), tuple(map(str, range(self.classes))), (0.5,) * 3, (0.5,) * 3)
    def load(self, split, root): ...

@dataclass(frozen=True)
class Tall(GeneratorConfig):
    '''As many layers as StyleGAN-XL has for 128 px.'''
    def depth(self, run):
        return 26
    def load(self, run): ...
"""


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Install]:
    """Plugins beside ours: the family `tiny` with a text, a data set and a generator of any size."""
    home = tmp_path / "site"
    info = home / "presets_of_tests-1.0.dist-info"
    info.mkdir(parents=True)
    module = f"presets_of_{hashlib.sha256(str(tmp_path).encode()).hexdigest()[:12]}"
    (home / f"{module}.py").write_text(PLUGINS)
    (info / "entry_points.txt").write_text(
        f"[ddbench.presets]\ntiny = {module}:tiny\nloud = {module}:loud\n[ddbench.datasets]\nblank = {module}:Blank\n"
        f"[ddbench.generators]\ntall = {module}:Tall\n"
    )
    (home / "tiny.toml").write_text(TINY)
    monkeypatch.syspath_prepend(str(home))

    def put(text: str) -> None:
        (home / "tiny.toml").write_text(text)

    yield put
    sys.modules.pop(module, None)


@dataclass(frozen=True)
class Hashes:
    """An identity of data that nobody has."""

    train_hash: str
    test_hash: str


def hash_of(ref: PluginRef, root: Path | None) -> Hashes:
    """Instead of hashing data."""
    return Hashes(*(hashlib.sha256(f"{split} {ref.label}".encode()).hexdigest() for split in ("train", "test")))


def load(tmp_path: Path, text: str) -> Suite:
    path = tmp_path / "suite.toml"
    path.write_text(text)
    return grid.load(str(path), hash_of, None)


def sets(suite: Suite) -> list[SetPlan]:
    return [cell.set for cell in suite.cells]


def only(suite: Suite) -> SetPlan:
    (plan,) = sets(suite)
    return plan


def faults(tmp_path: Path, text: str) -> list[str]:
    """The sentences, without the suite's name in front."""
    with pytest.raises(Faults) as caught:
        load(tmp_path, text)
    return [fault.removeprefix(f"suite '{tmp_path / 'suite.toml'}': ") for fault in caught.value.faults]


def settings(ref: PluginRef | None) -> dict[str, Any]:
    assert ref
    return dict(ref.settings)


# ---------------------------------------------------------------- what a suite gets


def test_a_cell_takes_the_settings_of_its_entry(install: Install, tmp_path: Path) -> None:
    plan = only(load(tmp_path, SUITE))
    assert (plan.steps, plan.momentum, plan.rates, settings(plan.loss)["batch_real"]) == (11, 0.25, {"pixels": 2.0}, 8)
    other = only(load(tmp_path, SUITE.replace('["dm"]', '["dsa"]')))
    assert (other.steps, settings(other.loss)["batch_real"]) == (11, 8)
    assert only(load(tmp_path, SUITE.replace('preset = "tiny"\n', ""))).steps == 1000


def test_what_the_suite_says_beats_the_preset_and_later_beats_earlier(install: Install, tmp_path: Path) -> None:
    def values(text: str) -> tuple[Any, ...]:
        plan = only(load(tmp_path, text))
        return plan.steps, plan.momentum, plan.rates, plan.labels, settings(plan.loss)["batch_real"]

    inline = SUITE.replace('"dm"', '{ name = "dm", batch_real = 9, augment = "none" }')
    assert values(inline) == (11, 0.25, {"pixels": 2.0}, "hard", 9)
    distill = inline + '[distill]\nsteps = 13\nlabels = "learned"\nrates = { labels = 4 }\nloss = { batch_real = 10 }\n'
    assert values(distill) == (13, 0.25, {"pixels": 2.0, "labels": 4.0}, "learned", 10)
    override = (
        distill + "[[override]]\nwhere = { ipc = 1 }\nset = { steps = 14, rates = { pixels = 5 }, loss = { batch_real = 11 } }\n"
    )
    assert values(override) == (14, 0.25, {"pixels": 5.0, "labels": 4.0}, "learned", 11)
    assert settings(only(load(tmp_path, override)).loss)["augment"] == "none"


def test_the_key_is_that_of_the_suite_that_writes_it_all_out(install: Install, tmp_path: Path) -> None:
    written = SUITE.replace('preset = "tiny"\n', "") + "[distill]\nsteps = 11\nmomentum = 0.25\nrates = { pixels = 2.0 }\n"
    inline = written.replace('"dm"', '{ name = "dm", batch_real = 8 }')
    assert only(load(tmp_path, SUITE)) == only(load(tmp_path, inline))
    assert only(load(tmp_path, SUITE)).key == only(load(tmp_path, inline)).key
    assert only(load(tmp_path, SUITE)).key == only(load(tmp_path, written + "loss = { batch_real = 8 }\n")).key
    assert only(load(tmp_path, SUITE)).key != only(load(tmp_path, written)).key


UNKNOWN_TOLD = [
    "preset 'tiny' (entry 2) cannot know rates.pixels of loss dm in space pixel: it is on no page. Give it yourself, as in set = { rates = { pixels = ... } }.",
    "preset 'tiny' (entry 2) cannot know loss.batch_real of loss dm in space pixel: nor is this. Give it yourself, as in set = { loss = { batch_real = ... } }.",
    "preset 'tiny' (entry 2) cannot know momentum of loss dm in space pixel: or this. Give it yourself, as in set = { momentum = ... }.",
]


def test_what_is_unknown_must_be_given(install: Install, tmp_path: Path, capsys: Capture) -> None:
    text = SUITE.replace("ipc = [1]", "ipc = [10, 50]\nseeds = [0, 1]")
    assert faults(tmp_path, text) == UNKNOWN_TOLD  # once, not for every cell
    given = text + "[distill]\nmomentum = 0.5\nrates = { pixels = 7.0 }\n"
    assert faults(tmp_path, given) == UNKNOWN_TOLD[1:2]
    assert main(["plan", str(tmp_path / "suite.toml")]) == 2
    assert UNKNOWN_TOLD[1] in capsys.readouterr().err
    for more in (
        given.replace('"dm"', '{ name = "dm", batch_real = 3 }'),
        given + "loss = { batch_real = 3 }\n",
        given + '[[override]]\nwhere = { loss = "dm" }\nset = { loss = { batch_real = 3 } }\n',
    ):
        plans = sets(load(tmp_path, more))
        assert {(plan.steps, plan.rates["pixels"], settings(plan.loss)["batch_real"]) for plan in plans} == {(12, 7.0, 3)}


PLACE = "loss dm, space pixel, subset mnist-5k, side 28, ipc"
NO_MATCH = {
    "ipc": (
        SUITE.replace("ipc = [1]", "ipc = [2]"),
        f"preset 'tiny' has nothing for {PLACE} 2. Nearest for loss dm: space pixel, subset mnist-5k, side 28, ipc 1; space pixel, subset mnist-5k, ipc 10 or 50.",
    ),
    "loss": (
        SUITE.replace('["dm"]', '["dc"]'),
        "preset 'tiny' has nothing for loss dc, space pixel, subset mnist-5k, side 28, ipc 1. Did you mean 'dm'? It has losses: dm, dsa.",
    ),
    "side": (
        SUITE.replace('"mnist-5k"', '"blank"'),
        "preset 'tiny' has nothing for loss dm, space pixel, subset blank, side 32, ipc 1. Nearest for loss dm: ",
    ),
    "two families": (
        SUITE.replace('"tiny"', '["tiny", "lineage"]').replace("ipc = [1]", "ipc = [3]"),
        f"preset 'tiny' or 'lineage' has nothing for {PLACE} 3. Nearest for loss dm: ",
    ),
    "twice": (
        SUITE.replace('"tiny"', '["tiny", "tiny"]'),
        f"presets 'tiny' and 'tiny' each have settings for {PLACE} 1: name one of them.",
    ),
    "no text": (SUITE.replace('"tiny"', "3"), "'preset' must be a list, got 3."),
    "no texts": (SUITE.replace('"tiny"', "[3]"), "an entry of 'preset' must be text, got 3."),
    "unknown": (SUITE.replace('"tiny"', '"linaege"'), "unknown preset 'linaege'. Did you mean 'lineage'? Installed: glad, hpd, "),
    "the suite's own setting": (
        SUITE.replace('"dm"', '{ name = "dm", batch_rael = 3 }'),
        "loss 'dm' has no setting 'batch_rael'. Did you mean 'batch_real'?",
    ),
}


@pytest.mark.parametrize(("text", "told"), NO_MATCH.values(), ids=NO_MATCH)
def test_a_fault_is_one_clear_sentence(install: Install, tmp_path: Path, text: str, told: str) -> None:
    (said,) = faults(tmp_path, text)
    assert said.startswith(told)
    assert "\n" not in said


def test_other_faults_are_told_with_it(install: Install, tmp_path: Path) -> None:
    said = faults(tmp_path, SUITE.replace("ipc = [1]", "ipc = [2]").replace('["pixel"]', '[{ name = "pixel", clmap = true }]'))
    assert [fault.split(".")[0] for fault in said] == [
        f"preset 'tiny' has nothing for {PLACE} 2",
        "space 'pixel' has no setting 'clmap'",
    ]


def test_families_stand_side_by_side(install: Install, tmp_path: Path) -> None:
    install(TINY.replace("mnist-5k", "cifar10"))
    text = SUITE.replace('"tiny"', '["tiny", "lineage"]').replace("mnist-5k", "cifar10").replace("ipc = [1]", "ipc = [50]")
    assert faults(tmp_path, text) == [
        "presets 'tiny' and 'lineage' each have settings for loss dm, space pixel, subset cifar10, side 32, ipc 50: name one of them."
    ]
    assert only(load(tmp_path, text.replace("[50]", "[100]"))).rates == {"pixels": 10.0}  # lineage alone has it


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("batch_real = 8", "batch_rael = 8", "preset 'tiny', entry 1: loss 'dm' has no setting 'batch_rael'."),
        ("batch_real = 8", "batch_real = 'x'", "preset 'tiny', entry 1: loss 'dm': setting 'batch_real' must be"),
        ("steps = 11", "stesp = 11", "is damaged: entry 1: 'set' has no key 'stesp'. Did you mean 'steps'?"),
    ],
)
def test_a_broken_family_takes_the_distilled_cells_only(install: Install, tmp_path: Path, old: str, new: str, told: str) -> None:
    """It is its author's fault, not the suite's."""
    install(TINY.replace(old, new))
    suite = load(tmp_path, SUITE.replace("baselines = []", 'baselines = ["random"]'))
    (said,) = suite.broken
    assert told in said
    assert [plan.method for plan in sets(suite)] == ["random"]


def test_numbers_that_a_cell_refuses_are_told(install: Install, tmp_path: Path) -> None:
    install(TINY.replace("momentum = 0.25", "momentum = 1.5"))
    assert faults(tmp_path, SUITE) == ["'momentum' must lie in [0, 1), got 1.5."]
    assert only(load(tmp_path, SUITE + "[distill]\nmomentum = 0.5\n")).momentum == 0.5


# ---------------------------------------------------------------- reading a family

ENTRY = '[[preset]]\nwhere = { loss = "dm" }\nset = {}\nsource = "x"\n'
DAMAGED = {
    "no TOML": ("a = = 1", "x is not valid TOML: "),
    "deep": ("a = " + "[" * 5000, "x is not valid TOML: "),
    "schema": (TINY.replace("schema = 1", "schema = 2"), "it must say schema = 1; got 2. Update ddbench if it is newer."),
    "key": ("persets = 1\n" + TINY, "it has no key 'persets'. Did you mean 'preset'? It takes: schema, description, preset."),
    "description": (TINY.replace('"small ones"', "1"), "'description' must be text, got 1."),
    "none": ("schema = 1", "it must hold 1 to 1000 entries [[preset]], got 0."),
    "many": ("schema = 1\n" + ENTRY * 1001, "it must hold 1 to 1000 entries [[preset]], got 1001."),
    "no list": ("schema = 1\npreset = 3", "'preset' must be a list, got 3."),
    "no table": ("schema = 1\npreset = [3]", "entry 1: it must be a table, got 3."),
    "entry's key": (TINY.replace("note =", "ntoe ="), "entry 2: it has no key 'ntoe'. Did you mean 'note'? It takes: where, set, "),
    "no source": (TINY.replace('source = "somebody"\n', ""), "entry 1: it needs 'source'."),
    "empty source": (TINY.replace('"somebody"', '""'), "entry 1: it needs 'source'."),
    "no where": (TINY.replace('where = { loss = "dm", space', 'whree = { loss = "dm", space'), "entry 2: it needs 'where'."),
    "no set": (ENTRY.replace("set = {}\n", "") + "\nschema = 1", "entry 1: it needs 'set'."),
    "place": (TINY.replace("side = 28", "sied = 28"), "entry 1: 'where' has no key 'sied'. Did you mean 'side'? It takes: loss, space, subset, side, ipc."),
    "ipc": (TINY.replace("[10, 50]", "[10, '50']"), "entry 2: 'where': 'ipc' must be a whole number, got '50'."),
    "loss": (TINY.replace('["dm", "dsa"]', "3"), "entry 1: 'where': 'loss' must be text, got 3."),
    "empty list": (TINY.replace("[10, 50]", "[]"), "entry 2: 'where': 'ipc' is an empty list, which fits nothing: leave the key out to fit all."),
    "setting": (TINY.replace("steps = 11", "stesp = 11"), "entry 1: 'set' has no key 'stesp'. Did you mean 'steps'? It takes: steps, total_steps, momentum, "),
    "type": (TINY.replace("steps = 11", "steps = 1.5"), "entry 1: 'set': 'steps' must be a whole number, got 1.5."),
    "rate": (TINY.replace("pixels = 2", "pixels = 'fast'"), "entry 1: 'set': rate 'pixels' must be a number, got 'fast'."),
    "name": (TINY.replace("batch_real = 8", 'name = "dc"'), "entry 1: 'set': 'loss' holds settings of a plugin, not its name."),
    "no setting": (TINY.replace('"rates.pixels"', '"rate.pixels"'), "entry 2: 'unknown': 'rate.pixels' is no setting; write steps, rates.pixels, "),
    "a table": (TINY.replace('"rates.pixels"', '"rates"'), "entry 2: 'unknown': 'rates' is no setting; write steps, rates.pixels, "),
    "known": (TINY.replace("steps = 12", "momentum = 0.1"), "entry 2: 'unknown': 'momentum' stands in 'set' as well."),
    "known setting": (TINY.replace("steps = 12", "rates = { pixels = 1 }"), "entry 2: 'unknown': 'rates.pixels' stands in 'set' as well."),
    "why": (TINY.replace('"it is on no page"', '""'), "entry 2: 'unknown': 'rates.pixels' must say why, got ''."),
    "no mark": (TINY.replace("note =", "marks = { steps = 1 }\nnote ="), "entry 2: 'marks': 'steps' must say what to know, got 1."),
    "mark of nothing": (TINY.replace("note =", 'marks = { momentum = "x" }\nnote ='), "entry 2: 'marks': 'momentum' does not stand in 'set'."),
    "both lengths": (TINY.replace("steps = 11", "steps = 11, total_steps = 2"), "entry 1: 'set' has 'steps' and 'total_steps': give one of"),
    "overlap": (TINY.replace("[10, 50]", "[1, 10]"), "entries 1 and 2 fit the same place (loss dm or dsa, space pixel, subset mnist-5k, side 28, ipc 1)."),
    "overlap of all": ("schema = 1\n" + ENTRY + ENTRY.replace('loss = "dm"', 'space = "pixel"'), "entries 1 and 2 fit the same place (loss dm)."),
}  # fmt: skip


@pytest.mark.parametrize(("text", "told"), DAMAGED.values(), ids=DAMAGED)
def test_a_damaged_family_says_where(text: str, told: str) -> None:
    with pytest.raises(PluginError) as caught:
        presets.read("x", "tiny", text)
    assert told in str(caught.value)
    assert "\n" not in str(caught.value)


def test_all_faults_of_a_family_are_told_at_once() -> None:
    text = TINY.replace("steps = 11", "stesp = 11").replace('source = "somebody else"', "").replace("side =", "sied =")
    with pytest.raises(PluginError) as caught:
        presets.read("x", "tiny", text)
    assert str(caught.value).startswith("x is damaged: entry 1: ")
    assert all(part in str(caught.value) for part in ("'stesp'", "'sied'", "entry 2: it needs 'source'."))
    many = "schema = 1\n" + "".join(ENTRY.replace("set = {}", f"set = {{ x{number} = 1 }}") for number in range(30))
    with pytest.raises(PluginError, match=r"'x19'.* And 10 more\.$"):
        presets.read("x", "tiny", many)


@pytest.mark.parametrize("text", [None, "#" * (presets.MAX_CHARS + 1)])
def test_a_family_is_a_text_of_some_size(text: Any) -> None:
    with pytest.raises(PluginError, match="x must be a text of at most"):
        presets.read("x", "tiny", text)


def test_reading_keeps_everything() -> None:
    family = presets.read("x", "tiny", TINY)
    assert (family.name, family.description, len(family.entries)) == ("tiny", "small ones", 2)
    first, second = family.entries
    where = {"loss": ("dm", "dsa"), "space": ("pixel",), "subset": ("mnist-5k",), "side": ("28",), "ipc": ("1",)}
    assert (first.where, first.source, first.protocol, first.unknown, first.note) == (where, "somebody", "smoke-1", {}, "")
    assert first.set == {"steps": 11, "momentum": 0.25, "rates": {"pixels": 2}, "loss": {"batch_real": 8}}
    assert (second.number, second.set, second.note) == (2, {"steps": 12}, "Beware.")
    assert list(second.unknown) == ["rates.pixels", "loss.batch_real", "momentum"]


# ---------------------------------------------------------------- ours

OURS = [presets.load(name) for name in ("lineage", "glad", "hpd", "hpd-equal")]
ENTRIES = [entry for family in OURS for entry in family.entries]
CLASSES = {"cifar100": 100, "tiny-imagenet": 200, "imagenet-1k": 1000}  # others have 10
SIDES = {"mnist": 28, "fashion-mnist": 28, "tiny-imagenet": 64, "imagenet-1k": 64}  # of entries without a side; others have 32
TESTED = """
schema = 1
name = "tested"
protocol = "smoke-1"
generator = "tall"
networks = [{ name = "convnet", width = 4 }]
baselines = []
"""


def toml(value: Any) -> str:
    """A value as TOML."""
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{key} = {toml(item)}" for key, item in value.items()) + " }"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(toml, value)) + "]"
    return json.dumps(value)


def given(entry: Preset, loss: str, space: str) -> dict[str, Any]:
    """Some value for each that the entry does not know: the plugin's default, or 1."""
    plain = {"steps": 7, "optimizer": "adam"}
    found: dict[str, Any] = {}
    for path in entry.unknown:
        table, dot, name = path.partition(".")
        if not dot:
            found[path] = plain[path]
        elif table == "rates":
            found.setdefault(table, {})[name] = 1.0
        else:
            source, plugin = (registry.losses, loss) if table == "loss" else (registry.spaces, space)
            found.setdefault(table, {})[name] = source.settings(plugin)[name]
    return found


def suite_of(entry: Preset, loss: str, space: str, subset: str, distill: dict[str, Any], preset: str) -> str:
    """A suite for the places of an entry, on images like those of the subset."""
    side = int(entry.where["side"][0]) if "side" in entry.where else SIDES.get(subset, 32)
    data = {"name": "blank", "classes": CLASSES.get(subset, 10), "side": side}
    lines = {"ipc": [int(ipc) for ipc in entry.where["ipc"]], "subsets": [data], "losses": [loss], "spaces": [space]}
    backbone = "resnet18-bn" if loss == "bn-statistics" else {"name": "convnet", "width": 4}
    top = "\n".join(f"{key} = {toml(value)}" for key, value in (lines | {"backbone": backbone}).items())
    return f"{preset}{TESTED}{top}\n[distill]\n" + "\n".join(f"{key} = {toml(value)}" for key, value in distill.items())


@pytest.mark.slow
@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: f"{entry.family}-{entry.number}")
def test_every_entry_of_ours_can_be_used(
    install: Install, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, entry: Preset
) -> None:
    """On images like those of its data sets, it gives the very cells of the suite that writes its values out."""
    here = Family(entry.family, "", (replace(entry, where={**entry.where, "subset": ("blank",)}),))
    monkeypatch.setattr(presets, "load", lambda name: here)
    for loss, space, subset in product(*(entry.where[key] for key in ("loss", "space", "subset"))):
        if subset in entry.where["subset"][1:] and subset not in CLASSES:
            continue  # as the first
        more = given(entry, loss, space)
        plans = sets(load(tmp_path, suite_of(entry, loss, space, subset, more, 'preset = "it"')))
        assert [str(plan.ipc) for plan in plans] == list(entry.where["ipc"])
        everything = {**entry.set, **more}
        everything |= {table: entry.set.get(table, {}) | more.get(table, {}) for table in presets.TABLES}
        written = sets(load(tmp_path, suite_of(entry, loss, space, subset, everything, "")))
        assert [plan.key for plan in plans] == [plan.key for plan in written]
        for plan in plans:
            assert plan.loss
            assert plan.space
            for key, value in entry.set.items():
                num_stages = len(Layered(**plan.space.settings).layers(26)) if key == "total_steps" else 0  # of `tall`
                own = {"loss": settings(plan.loss), "space": settings(plan.space), "total_steps": plan.stage_start(num_stages)}
                have = own[key] if key in own else getattr(plan, key)
                if key == "rates":  # of tensors that are optimised
                    value = {name: rate for name, rate in value.items() if name in plan.rates}
                    assert value
                assert (value.items() <= have.items()) if isinstance(value, dict) else have == value


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: f"{entry.family}-{entry.number}")
def test_every_entry_of_ours_says_where_it_is_from(entry: Preset) -> None:
    assert entry.where.keys() >= {"loss", "space", "subset", "ipc"}
    assert any(
        word in entry.source for word in (" at ", "issue", "Table")
    )  # a repository and its commit, a thread, a paper's table
    assert entry.protocol in ("", *protocols.names())
    assert all(len(why) > 20 for why in entry.unknown.values())
    batch = entry.set.get("loss", {}).get("batch_syn", 1)
    least = min(CLASSES.get(subset, 10) for subset in entry.where["subset"]) * min(map(int, entry.where["ipc"]))
    assert batch <= least, "a mini-batch is larger than the set"


def entry_for(family: str, **place: Any) -> Preset:
    found = next(one for one in OURS if one.name == family)
    return presets.choose([found], {"side": "32", "ipc": "1"} | {key: str(value) for key, value in place.items()})


def test_dc_and_dsa_have_the_loops_of_their_papers_and_glad_its_own() -> None:
    """A step is one match: 1,000 iterations of a loop of 10 are 10,000 steps."""
    for (ipc, (outer, _)), loss in product(LOOPS_BY_IPC.items(), ("dc", "dsa")):
        entry = entry_for("lineage", loss=loss, space="pixel", subset="cifar10", ipc=ipc)
        assert (entry.set["steps"], entry.set["loss"]["loops"]) == (1000 * outer, "by-ipc")
    for ipc, loss, space in product((1, 10), ("dc", "dsa"), ("pixel", "glad")):
        entry = entry_for("glad", loss=loss, space=space, subset="imagenet-a", side=128, ipc=ipc)
        assert (entry.set["loss"]["outer_loop"], entry.set["loss"]["inner_loop"], entry.set["steps"]) == (1, 1, 1000)
        assert entry.set["loss"].get("augment", "dsa") == "dsa"


def test_values_that_are_easily_mistaken() -> None:
    """Each of these is told in the entry's source or note."""
    assert entry_for("lineage", loss="dm", space="pixel", subset="cifar10", ipc=50).set["rates"] == {"pixels": 1.0}
    assert entry_for("lineage", loss="dm", space="pixel", subset="cifar10", ipc=100).set["rates"] == {"pixels": 10.0}
    tesla = entry_for("lineage", loss="tesla", space="pixel", subset="cifar10")
    assert tesla.set["rates"]["pixels"] == 500.0  # half of the command's
    assert "rates.pixels" in entry_for("lineage", loss="mtt", space="pixel", subset="cifar10", ipc=10).unknown
    glad = [entry for entry in ENTRIES if entry.family in ("glad", "hpd") and "cifar10" in entry.where["subset"]]
    assert glad
    assert all("steps" in entry.unknown and "rates" not in entry.set for entry in glad)
    layers = {
        loss: entry_for("glad", loss=loss, space="glad", subset="imagewoof", side=128).set["space"]["layer"]
        for loss in ("tesla", "dsa", "dm")
    }
    assert layers == {"tesla": 12, "dsa": 16, "dm": 20}
    walks = [entry for entry in ENTRIES if "hpd" in entry.where["space"]]
    assert all(("space.first" in entry.unknown) != (entry.where.get("side") == ("128",)) for entry in walks)


def test_glad_and_hpd_fit_into_one_suite() -> None:
    places = [
        {"loss": loss, "space": space, "subset": "imagenet-c", "side": "128", "ipc": "1"}
        for loss in ("dsa", "dm", "tesla") for space in ("pixel", "w-plus", "glad", "hpd")
    ]  # fmt: skip
    found = {place["space"]: presets.choose(OURS[1:3], place).family for place in places}
    assert found == {"pixel": "glad", "w-plus": "glad", "glad": "glad", "hpd": "hpd"}


# ---------------------------------------------------------------- the command


def test_presets_lists_the_families_and_what_is_wrong_with_them(install: Install, capsys: Capture) -> None:
    install(TINY.replace("steps = 11", "stesp = 11"))
    assert main(["presets"]) == 0
    out = capsys.readouterr().out
    named = [line.split()[0] for line in out.splitlines()[2:7]]
    assert named == ["glad", "hpd", "hpd-equal", "lineage", "loud"]
    assert out.count("broken") == 2
    assert "is damaged: entry 1: 'set' has no key 'stesp'." in out
    assert "must be a text of at most" in out
    assert main(["presets", "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert {row["family"]: row["entries"] for row in shown["families"]}["lineage"] == len(OURS[0].entries)
    assert len(shown["faults"]) == 2
    assert main(["presets", "tiny"]) == 2
    assert "is damaged" in capsys.readouterr().err


def test_presets_shows_a_family(install: Install, capsys: Capture) -> None:
    assert main(["presets", "tiny"]) == 0
    out = capsys.readouterr().out
    for part in ("tiny: small ones.", "| 1  | dm, dsa / pixel;", "steps 11, momentum 0.25, rates.pixels", "smoke-1",
                 "Unknown, rates.pixels of 2: it is on no page.", "[1] somebody.", "[2] somebody else.", "[3] Beware."):  # fmt: skip
        assert part in out, out
    assert max(map(len, out.splitlines())) <= 130
    assert main(["presets", "tiny", "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert (shown["name"], shown["presets"][1]["unknown"]["momentum"]) == ("tiny", "or this")
    assert shown["presets"][0]["where"]["ipc"] == ["1"]


def test_an_unknown_family_is_a_mistake(capsys: Capture) -> None:
    assert main(["presets", "linage"]) == 2
    out, error = capsys.readouterr()
    assert out == ""
    assert error == "ddbench: unknown preset 'linage'. Did you mean 'lineage'? Installed: glad, hpd, hpd-equal, lineage.\n"
    assert main(["plugins", "--kind", "presets"]) == 0
    assert "GLaD (CVPR 2023)" in capsys.readouterr().out


def test_glad_s_layer_marks_the_record_and_a_suite_s_own_does_not(install: Install, tmp_path: Path) -> None:
    """Its authors chose it on test images; who names another has chosen it himself."""
    entry = entry_for("glad", loss="dm", space="glad", subset="imagenet-a", side=128)
    assert "test images" in entry.marks["space.layer"]
    listed = {"loss": "dm", "space": "glad"}
    values: dict[str, Any] = {table: {} for table in presets.TABLES}
    place = {"loss": "dm", "space": "glad"}
    merged, marks = presets.under(entry, place, listed, values)
    assert merged["space"]["layer"] == 20
    assert marks == (f"space.layer is from preset 'glad': {entry.marks['space.layer']}",)
    assert presets.under(entry, place, listed | {"space": {"name": "glad", "layer": 4}}, values)[1] == ()
    assert presets.under(entry, place, listed, values | {"space": {"layer": 4}})[1] == ()
    install(TINY.replace('source = "somebody"', 'source = "somebody"\nmarks = { "loss.batch_real" = "beware" }'))
    (cell,) = load(tmp_path, SUITE).cells
    assert cell.marks == ("loss.batch_real is from preset 'tiny': beware",)


def test_total_steps_are_shared_out_over_the_stages(install: Install, tmp_path: Path) -> None:
    """As evenly as they can be; where that is even, the key is the one of `steps`. One length displaces the other."""
    text = SUITE.replace('preset = "tiny"\n', "").replace('["pixel"]', '["hpd"]').replace('"cvae"', '"tall"')

    def plan(distill: str) -> SetPlan:
        return only(load(tmp_path, f"{text}[distill]\nrates = {{ f = 1, w = 1, pixels = 1 }}\n{distill}"))

    uneven = plan("total_steps = 1000")  # 2, 4, ... 24 and the image of 26 layers
    assert (uneven.steps, uneven.extra_steps) == (76, 12)
    lengths = [uneven.stage_start(stage + 1) - uneven.stage_start(stage) for stage in range(13)]
    assert lengths == [77] * 12 + [76]
    assert sum(lengths) == 1000
    assert plan("total_steps = 1300").key == plan("steps = 100").key != uneven.key
    pixel = only(load(tmp_path, SUITE + "[distill]\ntotal_steps = 9\n"))
    assert (pixel.steps, pixel.extra_steps) == (9, 0)  # the preset says steps = 11
    override = '[[override]]\nwhere = { loss = "dm" }\nset = { steps = 3 }\n'
    assert only(load(tmp_path, SUITE + "[distill]\ntotal_steps = 9\n" + override)).steps == 3
    base = f"{text}[distill]\nrates = {{ f = 1, w = 1, pixels = 1 }}\n"
    assert faults(tmp_path, base + "total_steps = 12\n") == [
        "dm / hpd / tall: 'total_steps' (12) must be at least the number of stages (13), for a step each."
    ]
    assert faults(tmp_path, base + "steps = 1\ntotal_steps = 13\n") == [
        "[distill] has 'steps' and 'total_steps': give one of 'steps', of every stage, 'stage_steps', of each, or "
        "'total_steps', shared out over the stages."
    ]


ABOUT = """\
# Presets

Settings that papers publish, by loss, space, data set and images per class, each with its source: `preset = "lineage"` in a
suite, or `preset = ["glad", "hpd"]`. For every distilled cell exactly one entry of the families named must fit; whatever the
suite says itself goes on top of it. A value that could not be found out is not in a preset: the suite has to give it, and is
told why. `ddbench/suite/presets.py` describes the format, in which anybody's package can bring families of its own (entry points
`ddbench.presets`). Data sets may be named here that no installed plugin has.

This page is what `ddbench presets FAMILY` prints; tests/unit/test_presets.py keeps it so.
"""


def test_the_page_is_what_the_command_prints() -> None:
    """Rewrite it with: DDBENCH_GOLDEN=write pytest tests/unit/test_presets.py, and read the difference."""
    text = ABOUT + "".join(f"\n## {family.name}\n\n```text\n{page(family)}\n```\n" for family in OURS)
    if os.environ.get("DDBENCH_GOLDEN") == "write":
        DOCS.write_text(text, encoding="utf-8")
    assert text == DOCS.read_text(encoding="utf-8")
    assert max(map(len, text.splitlines())) <= 130


def test_errors_are_those_of_the_bench() -> None:
    assert issubclass(PluginError, BenchError)
    with pytest.raises(ConfigError):
        presets.load("nothing")
