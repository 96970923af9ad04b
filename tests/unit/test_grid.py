"""Suites: every fault in a sentence, all of them at once; overrides, selection, and keys that stay."""

# ruff: noqa: E501  (a fault and its sentence stand side by side)

from __future__ import annotations

import hashlib
import json
import re
import sys
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest

import ddbench
from ddbench.data.subsets import identify
from ddbench.errors import BenchError, ConfigError, DataError, Faults
from ddbench.grid.runner import Identities
from ddbench.plan import Plan, PluginRef, canonical, digest
from ddbench.protocols import load as load_protocol
from ddbench.suite import load as grid
from ddbench.suite.reader import Suite

GOOD = """
schema = 1
name = "small"
protocol = "smoke-1"
seeds = [0, 1]
ipc = [1, 10]
subsets = ["mnist-5k"]
losses = ["dm", "dsa"]
spaces = ["pixel", { name = "glad", layer = 2 }]
generator = "cvae"
backbone = { name = "convnet", width = 4 }
networks = [{ name = "convnet", width = 4 }, { name = "alexnet", width = 4 }]
[distill]
steps = 7
"""


def hash_of(ref: PluginRef, root: Path | None) -> str:
    """Instead of hashing data."""
    return hashlib.sha256(ref.label.encode()).hexdigest()


def load(tmp_path: Path, text: str, identify: Any = hash_of) -> Suite:
    path = tmp_path / "suite.toml"
    path.write_text(text)
    return grid.load(str(path), identify, None)


def changed(key: str, value: str, text: str = GOOD) -> str:
    """GOOD with another line for a key; a key that it lacks is added on top."""
    line = f"{key} = {value}\n"
    found = re.subn(rf"^{key} = .*\n", lambda _: line, text, flags=re.MULTILINE)
    return found[0] if found[1] else line + text


def faults(tmp_path: Path, text: str, identify: Any = hash_of) -> list[str]:
    """The sentences, without the suite's name in front."""
    with pytest.raises(Faults) as caught:
        load(tmp_path, text, identify)
    assert str(caught.value) == "\n".join(caught.value.faults)
    start = f"suite '{tmp_path / 'suite.toml'}': "
    assert all(fault.startswith(start) for fault in caught.value.faults), caught.value.faults
    return [fault.removeprefix(start) for fault in caught.value.faults]


def test_a_grid_is_the_product_of_its_lists(tmp_path: Path) -> None:
    suite = load(tmp_path, GOOD)
    assert (suite.name, suite.broken, suite.text) == ("small", (), GOOD)
    cells = [(plan.method, plan.ipc, plan.seed) for plan in suite.plans]
    assert cells[:5] == [("random", 1, 0), ("random", 1, 1), ("random", 10, 0), ("random", 10, 1), ("full-data", 1, 0)]
    assert cells[5:] == [
        (f"{loss} / {space}", ipc, seed)
        for loss in ("dm", "dsa") for space in ("pixel", "glad(layer=2)") for ipc in (1, 10) for seed in (0, 1)
    ]  # fmt: skip
    assert len({plan.key for plan in suite.plans}) == len(suite.plans) == 21
    assert {plan.steps for plan in suite.plans if not plan.baseline} == {7}
    assert [plan.generator.name if plan.generator else None for plan in suite.plans[5:8]] == [None] * 3
    assert {plan.generator.name for plan in suite.plans if plan.space and plan.space.name == "glad" and plan.generator} == {"cvae"}


CASES = {
    "unknown key": (changed("sedes", "[1]"), "a suite has no key 'sedes'. Did you mean 'seeds'? It takes: schema, name, "),
    "no schema": (changed("schema", "2"), "a suite must say schema = 1; got 2. Update ddbench if it is newer."),
    "unknown protocol": (changed("protocol", '"quick-2"'), "unknown protocol 'quick-2'. Did you mean 'quick-1'? Known: "),
    "protocol no text": (changed("protocol", "1"), "'protocol' must be text, got 1."),
    "unknown loss": (changed("losses", '["dmm"]'), "unknown loss 'dmm'. Did you mean 'dm'? Installed: "),
    "loss no name": (changed("losses", "[3]"), "an entry of losses must be a name or a table with a name, got 3."),
    "loss table without name": (changed("losses", "[{ x = 1 }]"), "an entry of losses must be a name or a table with a name"),
    "unknown setting": (
        changed("losses", '[{ name = "dm", batch_rael = 1 }]'),
        "loss 'dm' has no setting 'batch_rael'. Did you mean 'batch_real'? It takes: ",
    ),
    "setting of another type": (changed("losses", '[{ name = "dm", batch_real = "x" }]'), "loss 'dm': setting 'batch_real' must be "),
    "refused setting": (
        changed("losses", '[{ name = "dm", batch_real = 0 }]'),
        "loss 'dm': 'batch_real' must be at least 1, got 0.",
    ),
    "refused network": (changed("networks", '[{ name = "convnet", width = 0 }]'), "architecture 'convnet' needs width of at least 1"),
    "unknown space": (changed("spaces", '["pixle"]'), "unknown space 'pixle'. Did you mean 'pixel'? Installed: "),
    "unknown data set": (changed("subsets", '["mnist"]'), "unknown dataset 'mnist'. Did you mean 'mnist-5k'? Installed: "),
    "unknown backbone": (changed("backbone", '"convnett"'), "unknown architecture 'convnett'. Did you mean 'convnet'?"),
    "layer that the generator lacks": (
        changed("spaces", '["glad"]'),
        "space 'glad' with generator 'cvae' on 'mnist-5k': layer 12 does not exist: this generator has layers 0..6, where 6 is the image.",
    ),
    "unknown proxy": (changed("proxy", '"convnett"'), "unknown architecture 'convnett'. Did you mean 'convnet'?"),
    "unknown generator": (changed("generator", '"cvea"'), "unknown generator 'cvea'. Did you mean 'cvae'? Installed: "),
    "missing generator": (
        GOOD.replace('generator = "cvae"\n', ""),
        "space 'glad' needs a generator: add generator = \"cvae\", or another, to the suite.",
    ),
    "ipc 0": (changed("ipc", "[0]"), "'ipc' holds 0; each entry must be a whole number of at least 1."),
    "ipc a fraction": (changed("ipc", "[1.5]"), "'ipc' holds 1.5; each entry must be a whole number of at least 1."),
    "ipc true": (changed("ipc", "[true]"), "'ipc' holds True; each entry must be a whole number of at least 1."),
    "ipc no list": (changed("ipc", "1"), "'ipc' must be a list, got 1."),
    "negative seed": (changed("seeds", "[-1]"), "'seeds' holds -1; each entry must be a whole number of at least 0."),
    "seed twice": (changed("seeds", "[1, 1]"), "'seeds' names a value twice: [1, 1]."),
    "loss twice": (changed("losses", '["dm", "dm"]'), "the grid holds the cell 'dm / pixel, mnist-5k, ipc 1, seed 0' 2 times: "),
    "subset twice": (changed("subsets", '["mnist-5k", "mnist-5k"]'), "the grid holds the cell 'random, mnist-5k, ipc 1, seed 0' 2 times: "),
    "network twice": (changed("networks", '["convnet", "convnet"]'), "'networks' must name at least one network, and none twice."),
    "no network": (changed("networks", "[]"), "'networks' must name at least one network, and none twice."),
    "no subset": (changed("subsets", "[]"), "'subsets' must name at least one data set."),
    "unknown baseline": (
        changed("baselines", '["randon"]'),
        "unknown baseline 'randon'. Did you mean 'random'? Known: random, full-data.",
    ),
    "nothing": (changed("losses", "[]", changed("baselines", "[]")), "the grid is empty: name at least one loss and space, or one baseline."),
    "too many": (
        changed("seeds", "[" + ", ".join(map(str, range(13_000))) + "]"),
        "the grid has 104000 cells; at most 100000 are run from one suite.",
    ),
    "name with folders": (changed("name", '"../x"'), "'name' must be made of letters, digits, '.', '-' and '_' and not begin with '.'"),
    "threads 0": (changed("threads", "0"), "'threads' must be at least 1, got 0."),
    "small images": (
        changed("backbone", '{ name = "convnet", depth = 6 }'),
        "architecture 'convnet(depth=6)' needs images of at least 64 px; those of 'mnist-5k' are 28 x 28.",
    ),
    "unknown number": (GOOD + "stesp = 1\n", "[distill] has no key 'stesp'. Did you mean 'steps'? It takes: steps, momentum, "),
    "steps a fraction": (GOOD + "chunk = 1.5\n", "[distill]: 'chunk' must be a whole number, got 1.5."),
    "negative chunk": (GOOD + "chunk = 0\n", "'chunk' must be at least 1, got 0."),
    "momentum": (GOOD + "momentum = nan\n", "'momentum' must lie in [0, 1), got nan."),
    "labels": (GOOD + 'labels = "soft"\n', "'labels' must be one of hard, learned, teacher, got 'soft'."),
    "ranker": (GOOD + 'rank_stages = "loss"\n', "'rank_stages' must be one of last, feature-distance, validation, got 'loss'."),
    "rate of nothing": (changed("losses", '["dm"]') + "rates = { pixel = 1.0 }\n", "there is no tensor 'pixel' to give a rate. Did you mean 'pixels'? Known: "),
    "rate 0": (GOOD + "rates = { pixels = 0 }\n", "rate 'pixels' must be a number above 0, got 0.0."),
    "rate infinite": (GOOD + "rates = { pixels = inf }\n", "rate 'pixels' must be a number above 0, got inf."),
    "rate of another type": (GOOD + "rates = { pixels = true }\n", "rate 'pixels' must be a number, got True."),
    "missing rate": (GOOD + 'labels = "learned"\n', "loss 'dm' in space 'pixel' needs a rate for 'labels': add rates = { labels = ... }."),
    "override of nothing": (
        GOOD + '[[override]]\nwhere = { loss = "mtt" }\nset = { steps = 1 }\n',
        "override 1 (where = {'loss': 'mtt'}) matches no cell: mend its 'where' or remove it.",
    ),
    "override where": (
        GOOD + "[[override]]\nwhere = { spase = 1 }\nset = { steps = 1 }\n",
        "override 1: 'where' has no key 'spase'. Did you mean 'space'? It takes: loss, space, subset, ipc, seed.",
    ),
    "override set": (GOOD + "[[override]]\nset = { stesp = 1 }\n", "override 1 has no key 'stesp'. Did you mean 'steps'?"),
    "override key": (
        GOOD + "[[override]]\nwhen = { loss = 1 }\nset = { steps = 1 }\n",
        "override 1 has no key 'when'. Did you mean 'where'? It takes: where, set.",
    ),
    "override no table": (changed("override", "[1]"), "override 1 must be a table, got 1."),
    "override setting": (
        GOOD + '[[override]]\nwhere = { loss = "dm" }\nset = { loss = { batch_rel = 1 } }\n',
        "loss 'dm' has no setting 'batch_rel'. Did you mean 'batch_real'?",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("text", "told"), CASES.values(), ids=CASES)
def test_a_fault_is_one_clear_sentence(tmp_path: Path, text: str, told: str) -> None:
    said = faults(tmp_path, text)
    assert sum(fault.startswith(told) for fault in said) == 1, said
    assert all(fault.endswith((".", "?")) and "\n" not in fault for fault in said)
    assert len(said) == len(set(said))


def test_all_faults_are_told_at_once(tmp_path: Path) -> None:
    """One suite with a fault of many kinds; the two of one plugin's settings are lines of their own."""
    text = changed("losses", '[{ name = "dm", batch_real = "x", agument = "dsa" }, "dsaa"]')
    for key, value in (("sedes", "1"), ("ipc", "[0, 1]"), ("baselines", '["x"]'), ("protocol", '"x"'), ("seeds", "[-3, 2]")):
        text = changed(key, value, text)
    said = faults(tmp_path, text + "rates = { pixels = 0 }\nstesp = 3\n")
    for part in ("'sedes'", "'ipc' holds 0", "unknown baseline 'x'", "unknown protocol 'x'", "'seeds' holds -3", "'dsaa'",
                 "setting 'batch_real' must be", "has no setting 'agument'", "no key 'stesp'"):  # fmt: skip
        assert sum(part in fault for fault in said) == 1, (part, said)
    assert all("\n" not in fault for fault in said)
    assert len(said) == 9


def test_missing_data_are_a_fault_among_others(tmp_path: Path) -> None:
    def missing(ref: PluginRef, root: Path | None) -> str:
        raise DataError("dataset 'mnist-5k' is not there.")

    assert faults(tmp_path, changed("seeds", "[-1]"), missing) == [
        "'seeds' holds -1; each entry must be a whole number of at least 0.",
        "dataset 'mnist-5k' is not there.",
    ]


def sentence(name: str) -> str:
    with pytest.raises(ConfigError) as caught:
        grid.load(name, hash_of, None)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_what_is_no_suite(tmp_path: Path) -> None:
    assert sentence("quikstart").startswith("unknown suite 'quikstart'. Did you mean 'quickstart'? It is neither a file nor one of: ")
    path = tmp_path / "a.toml"
    path.write_text("a = = 1")
    assert sentence(str(path)).startswith(f"suite '{path}' is not valid TOML: ")
    path.write_bytes(b"\xff\xfe\x00")
    assert sentence(str(path)).startswith(f"suite '{path}' cannot be read as text: ")
    path.write_bytes(b"#" * (grid.MAX_SUITE_BYTES + 1))
    assert sentence(str(path)) == f"suite '{path}' is larger than {grid.MAX_SUITE_BYTES} bytes: it is hardly a suite."
    assert sentence(str(tmp_path)).startswith(f"unknown suite '{tmp_path}'.")


@pytest.mark.slow
@pytest.mark.parametrize("name", grid.shipped())
def test_shipped_suites_are_whole(name: str) -> None:
    suite = grid.load(name, hash_of, None)
    assert suite.name == name
    assert suite.plans
    assert suite.broken == ()


def test_later_overrides_win_and_settings_merge(tmp_path: Path) -> None:
    text = GOOD + """
[distill.loss]
batch_real = 3
[[override]]
where = { loss = "dm" }
set = { steps = 10, momentum = 0.1, rates = { pixels = 2.0 } }
[[override]]
where = { loss = "dm", ipc = 10 }
set = { steps = 20, loss = { augment = "none" }, rates = { pixels = 3 } }
[[override]]
where = { seed = 1, space = "pixel" }
set = { momentum = 0.2, loss = { batch_real = 4 } }
"""
    plans = {(p.loss.name, p.space.name, p.ipc, p.seed): p for p in load(tmp_path, text).plans if p.loss and p.space}

    def values(*where: Any) -> tuple[Any, ...]:
        plan = plans[where]
        assert plan.loss
        chosen = plan.loss.settings["batch_real"], plan.loss.settings.get("augment")
        return (plan.steps, plan.momentum, plan.rates.get("pixels"), *chosen)

    assert values("dm", "pixel", 1, 0) == (10, 0.1, 2.0, 3, "dsa")
    assert values("dm", "pixel", 10, 0) == (20, 0.1, 3.0, 3, "none")
    assert values("dm", "pixel", 10, 1) == (20, 0.2, 3.0, 4, "none")
    assert values("dm", "glad", 10, 1)[:2] == (20, 0.1)
    assert values("dsa", "pixel", 1, 1)[:2] == (7, 0.2)
    assert values("dsa", "pixel", 1, 0)[:2] == (7, 0.5)


def test_only_selects(tmp_path: Path) -> None:
    plans = load(tmp_path, GOOD).plans
    assert grid.select(plans, None) == grid.select(plans, "") == plans
    chosen = grid.select(plans, "loss=dm,space=glad,ipc=10,seed=1,subset=mnist-5k")
    assert [plan.name for plan in chosen] == ["dm / glad(layer=2), mnist-5k, ipc 10, seed 1"]
    assert {plan.baseline for plan in grid.select(plans, "baseline=full-data")} == {"full-data"}
    assert len(grid.select(plans, "ipc=10")) == 10
    for only, told in (
        ("los=dm", "--only takes key=value,... with keys loss, space, subset, ipc, seed, baseline; got 'los=dm'. Did you mean 'loss'?"),
        ("loss", "--only takes key=value,... with keys loss, space, subset, ipc, seed, baseline; got 'loss'."),
        (
            "loss=dmm,ipc=10",
            "--only loss=dmm,ipc=10 matches none of the 21 cells. There is no loss 'dmm'. Did you mean 'dm'? It has: ",
        ),
        ("loss=dm,baseline=random", "--only loss=dm,baseline=random matches none of the 21 cells. Look at them with: ddbench"),
    ):
        with pytest.raises(ConfigError) as caught:
            grid.select(plans, only)
        assert str(caught.value).startswith(told)


# Broken plugins


@pytest.mark.parametrize(
    ("key", "value", "num"),
    [("losses", '["tests-broken", "dm"]', 13), ("losses", '["tests-broken"]', 5)],
)
def test_a_broken_plugin_takes_its_own_cells_only(
    tmp_path: Path, thirdparty: Path, monkeypatch: pytest.MonkeyPatch, key: str, value: str, num: int
) -> None:
    monkeypatch.syspath_prepend(str(thirdparty))
    suite = load(tmp_path, changed(key, value))
    assert suite.broken == (
        "loss 'tests-broken' (ddbench_example.broken:Broken, from ddbench-example-plugin) cannot be imported: "
        "RuntimeError: this module breaks when it is imported.",
    )
    assert len(suite.plans) == num


@pytest.mark.parametrize("key", ["backbone", "proxy", "generator", "networks"])
def test_a_broken_plugin_that_every_cell_needs_takes_them_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, key: str
) -> None:
    """No cell may be run with less than it asks for."""
    info = tmp_path / "broken-1.0.dist-info"
    info.mkdir()
    lines = "\n".join(f"[ddbench.{kind}]\nbad = nowhere_at_all:x" for kind in ("architectures", "generators"))
    (info / "entry_points.txt").write_text(lines)
    monkeypatch.syspath_prepend(str(tmp_path))
    suite = load(tmp_path, changed(key, '["bad", "convnet"]' if key == "networks" else '"bad"'))
    assert len(suite.broken) == 1
    assert "cannot be imported: ModuleNotFoundError" in suite.broken[0]
    left = {plan.method for plan in suite.plans}
    whole = {"random", "full-data"}
    assert left == {"backbone": set(), "networks": set(), "proxy": whole, "generator": whole | {"dm / pixel", "dsa / pixel"}}[key]


# Keys


@pytest.fixture(scope="module")
def plan() -> Plan:
    """A plan whose parts are written out, so that no default and no installed version moves its key."""

    def ref(kind: str, name: str, settings: dict[str, Any]) -> PluginRef:
        return PluginRef(kind, name, settings, "ddbench", "0.1.0", name)

    net, data = ref("architectures", "convnet", {"width": 4, "depth": None}), ref("datasets", "mnist-5k", {})
    loss, space = ref("losses", "dm", {"batch_real": 4, "augment": "dsa"}), ref("spaces", "pixel", {"init_from": "real"})
    generator = ref("generators", "cvae", {"epochs": 1})
    return Plan(
        data, "ab" * 32, load_protocol("smoke-1"), (net,), net, 1, 0, None, loss, space, generator,
        rates={"pixels": 10.0, "w": 0.01}, proxy=net,
    )  # fmt: skip


def test_the_key_is_the_hash_of_the_canonical_json(plan: Plan) -> None:
    text = json.dumps({"ddbench": ddbench.__version__, "plan": plan.to_json()}, sort_keys=True, separators=(",", ":"))
    assert plan.key == hashlib.sha256(text.encode()).hexdigest()
    assert canonical({"b": 1, "a": [None, 0.1, "ü"]}) == '{"a":[null,0.1,"\\u00fc"],"b":1}'


def test_a_golden_key(plan: Plan) -> None:
    """A change of this number makes every stored cell anew: say so in the changelog."""
    values = {name: value for name, value in plan.to_json().items() if name != "protocol"}  # that has an id of its own
    assert digest(values) == "bfecbc61ccb95012c55b7b45f61761fb41a5144979002db5c1aa5aba05d0ae25"


def test_the_order_of_settings_does_not_count(plan: Plan) -> None:
    assert plan.loss
    turned = replace(plan.loss, settings=dict(reversed(plan.loss.settings.items())))
    other = replace(plan, loss=turned, rates=dict(reversed(plan.rates.items())))
    assert list(other.rates) != list(plan.rates)
    assert other.key == plan.key
    assert hash(turned) == hash(plan.loss)


def test_the_key_changes_with_whatever_changes_a_number(plan: Plan) -> None:
    numbers = {
        "data_hash": "cd" * 32, "ipc": 2, "seed": 1, "baseline": "random", "steps": 7, "rates": {"pixels": 9.0, "w": 0.01},
        "momentum": 0.6, "optimizer": "adam", "schedule": "cosine", "labels": "learned", "rank_steps": "loss", "rank_every": 2, "rank_stages": "validation",
        "rank_epochs": 9, "rank_repeats": 2, "proxy_epochs": 9, "chunk": 9, "threads": 2,
        "protocol": replace(plan.protocol, epochs=3), "networks": (), "generator": None, "teacher": plan.backbone,
    }  # fmt: skip
    for role in ("dataset", "backbone", "loss", "space", "proxy"):
        numbers[role] = replace(getattr(plan, role), settings={"other": 1})
    assert numbers.keys() == {field.name for field in fields(Plan)}
    keys = {plan.key, *(replace(plan, **{name: value}).key for name, value in numbers.items())}
    assert len(keys) == len(numbers) + 1
    for part in ("version", "distribution", "name"):
        assert replace(plan, loss=replace(plan.loss, **{part: "x"})).key not in keys


def test_the_key_changes_with_the_version(plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    before = plan.key
    monkeypatch.setattr(ddbench, "__version__", "9.9")
    assert plan.key != before


def test_keys_do_not_depend_on_where_data_lie_or_how_a_suite_is_called(tmp_path: Path) -> None:
    keys = [plan.key for plan in load(tmp_path, GOOD).plans]
    assert [plan.key for plan in load(tmp_path, changed("data_root", '"/elsewhere"')).plans] == keys
    assert [plan.key for plan in load(tmp_path, changed("name", '"other"')).plans] == keys
    path = tmp_path / "suite.toml"
    path.write_text(GOOD)
    assert [plan.key for plan in grid.load(str(path), hash_of, Path("/x")).plans] == keys
    roots = []
    grid.load(str(path), lambda ref, root: roots.append(root) or hash_of(ref, root), Path("/x"))  # type: ignore[func-returns-value]
    assert roots == [Path("/x")]


def test_a_grid_grows_without_moving_keys(tmp_path: Path) -> None:
    before = {plan.name: plan.key for plan in load(tmp_path, GOOD).plans}
    more = changed("seeds", "[1, 0, 2]", changed("losses", '["dc", "dsa", "dm"]'))
    after = {plan.name: plan.key for plan in load(tmp_path, more).plans}
    full = [name for name in before if name.startswith("full-data")]  # has the first seed
    assert {name: after[name] for name in before if name not in full} == {
        name: key for name, key in before.items() if name not in full
    }


def test_faults_are_errors_of_the_configuration() -> None:
    error = Faults(["a.", "b."])
    assert isinstance(error, ConfigError | BenchError)
    assert str(error) == "a.\nb."


SHAKY = """
from dataclasses import dataclass
from ddbench.api import Dataset, Generator, GeneratorConfig, Loss, Space

@dataclass(frozen=True)
class Data(Dataset):
    def spec(self):
        raise RuntimeError("no spec today")
    def load(self, split, root): ...

@dataclass(frozen=True)
class Gen(GeneratorConfig):
    def depth(self, spec):
        raise RuntimeError("no depth today")
    def load(self, run): ...

@dataclass(frozen=True)
class Room(Space):
    needs_generator = True
    def check(self, depth):
        raise RuntimeError("no check today")
    def init(self, run): ...
    def classes(self, state, run): ...
    def decode(self, state, index, run): ...

@dataclass(frozen=True)
class Odd(Loss):
    rates = {"pixels": "fast"}
    def backward(self, syn, memory, run): ...

@dataclass(frozen=True)
class None_(Odd):
    rates = None
"""


@pytest.mark.parametrize(
    ("key", "value", "told", "left"),
    [
        ("subsets", '["mnist-5k", "shaky"]', "dataset 'shaky' (from shaky 1.0) is broken: RuntimeError: no spec today.", 21),
        ("generator", '"shaky"', "generator 'shaky' (from shaky 1.0) is broken: RuntimeError: no depth today.", 13),
        ("spaces", '["pixel", "shaky"]', "space 'shaky' (from shaky 1.0) is broken: RuntimeError: no check today.", 13),
        ("losses", '["dm", "shaky"]', "loss 'shaky' (from shaky 1.0) is broken: ValueError: could not convert", 13),
        ("losses", '["dm", "shaky-none"]', "loss 'shaky-none' (from shaky 1.0) is broken: AttributeError: ", 13),
    ],
)
def test_a_plugin_that_fails_while_a_grid_is_read_takes_its_own_cells_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, key: str, value: str, told: str, left: int
) -> None:
    info = tmp_path / "shaky-1.0.dist-info"
    info.mkdir()
    names = {"datasets": "Data", "generators": "Gen", "spaces": "Room", "losses": "Odd"}
    lines = [f"[ddbench.{kind}]\nshaky = shaky_plugins:{name}" for kind, name in names.items()]
    (info / "entry_points.txt").write_text("\n".join([*lines, "shaky-none = shaky_plugins:None_"]))
    (tmp_path / "shaky_plugins.py").write_text(SHAKY)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "shaky_plugins", raising=False)
    suite = load(tmp_path, changed(key, value), identify=lambda ref, root: identify(ref, root).hash)
    assert len(suite.broken) == 1
    assert suite.broken[0].startswith(told)
    assert len(suite.plans) == left


@pytest.mark.parametrize("text", ["threads = 0", 'description = 3', 'data_root = "~nobody-of-that-name/x"'])
def test_faults_outside_the_cells_are_found_too(tmp_path: Path, text: str) -> None:
    key = text.partition(" ")[0]
    base = "\n".join(line for line in GOOD.splitlines() if not line.startswith(key))
    assert len(faults(tmp_path, text + "\n" + base)) == 1


def test_only_takes_a_key_once(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="names 'loss' twice"):
        grid.select(load(tmp_path, GOOD).plans, "loss=dm,loss=dsa")


def test_more_images_a_class_than_there_are_is_a_fault(tmp_path: Path) -> None:
    identities = Identities()
    path = tmp_path / "much.toml"
    path.write_text(changed("ipc", "[361]"))
    suite = grid.load(str(path), identities, None)
    with pytest.raises(ConfigError, match=r"ipc 361 is more than the 360 images that a class of 'mnist-5k' trains on: lower it\."):
        identities.check_ipc(suite.plans)
