"""Suites: every fault in a sentence, all of them at once; overrides, selection, and how cells are judged."""

# ruff: noqa: E501  (a fault and its sentence stand side by side)

from __future__ import annotations

import hashlib
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from ddbench import protocols, schema
from ddbench.errors import BenchError, ConfigError, DataError, Faults
from ddbench.plan import Cell, Judging
from ddbench.refs import PluginRef
from ddbench.suite import load as grid
from ddbench.suite.bases import MAX_SUITE_BYTES
from ddbench.suite.reader import Suite
from ddbench.suite.selection import select

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


@dataclass(frozen=True)
class Hashes:
    """An identity of data that nobody has."""

    train_hash: str
    test_hash: str


def hash_of(ref: PluginRef, root: Path | None) -> Hashes:
    """Instead of hashing data. Asks for the spec, as whoever hashes data does."""
    ref.ask(lambda dataset: dataset.spec())
    return Hashes(*(hashlib.sha256(f"{split} {ref.label}".encode()).hexdigest() for split in ("train", "test")))


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


def test_a_suite_may_say_how_often_a_network_judges(tmp_path: Path) -> None:
    """No key moves: one more repeat costs itself."""
    plain, more = load(tmp_path, GOOD), load(tmp_path, changed("repeats", "7"))
    assert {cell.repeats for cell in plain.cells} == {1}
    assert {cell.repeats for cell in more.cells} == {7}
    for one, other in zip(plain.cells, more.cells, strict=True):
        assert one.set.key == other.set.key
        assert [judging.key for judging in one.judgings] == [judging.key for judging in other.judgings]
    assert faults(tmp_path, changed("repeats", "0")) == ["'repeats' must lie in 1..10000, got 0."]


def test_a_bad_list_of_numbers_hides_no_fault_of_the_rest(tmp_path: Path) -> None:
    text = changed("ipc", "[0]", changed("losses", '["dmm"]', changed("spaces", '["pixl"]')))
    said = faults(tmp_path, text)
    assert [fault.split("'")[1] for fault in said] == ["ipc", "dmm", "pixl"]


def test_a_grid_is_the_product_of_its_lists(tmp_path: Path) -> None:
    suite = load(tmp_path, GOOD)
    assert (suite.name, suite.broken, suite.text) == ("small", (), GOOD)
    sets = [cell.set for cell in suite.cells]
    places = [(plan.method, plan.ipc, plan.seed) for plan in sets]
    assert places[:5] == [("random", 1, 0), ("random", 1, 1), ("random", 10, 0), ("random", 10, 1), ("full-data", 0, 0)]
    assert places[5:] == [
        (f"{loss} / {space}", ipc, seed)
        for loss in ("dm", "dsa") for space in ("pixel", "glad(layer=2) / cvae") for ipc in (1, 10) for seed in (0, 1)
    ]  # fmt: skip
    assert len({plan.key for plan in sets}) == len(sets) == 21
    assert {plan.steps for plan in sets if not plan.baseline} == {7}
    assert [plan.generator.name if plan.generator else None for plan in sets[5:8]] == [None] * 3
    assert {plan.generator.name for plan in sets if plan.space and plan.space.name == "glad" and plan.generator} == {"cvae"}


Install = Callable[..., None]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Install:
    """Put a made-up distribution on the path: its module's name and text, and by kind its plugins' names and objects."""

    def made(module: str, text: str, **plugins: dict[str, str]) -> None:
        info = tmp_path / "site" / f"{module}-1.0.dist-info"
        info.mkdir(parents=True)
        lines = [f"[ddbench.{kind}]\n" + "\n".join(f"{name} = {module}:{target}" for name, target in these.items())
                 for kind, these in plugins.items()]  # fmt: skip
        (info / "entry_points.txt").write_text("\n".join(lines))
        (info.parent / f"{module}.py").write_text(text)
        monkeypatch.syspath_prepend(str(info.parent))
        monkeypatch.delitem(sys.modules, module, raising=False)

    return made


CASES = {
    "unknown key": (changed("sedes", "[1]"), "a suite has no key 'sedes'. Did you mean 'seeds'? It takes: schema, name, "),
    "no schema": (changed("schema", "2"), "a suite must say schema = 1; got 2. Update ddbench if it is newer."),
    "unknown protocol": (changed("protocol", '"quick-2"'), "unknown protocol 'quick-2'. Did you mean 'quick-1'? Installed: "),
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
    "unknown data set": (changed("subsets", '["mnist-6k"]'), "unknown dataset 'mnist-6k'. Did you mean 'mnist-5k'? Installed: "),
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
        "unknown baseline 'randon'. Did you mean 'random'? Installed: ",
    ),
    "nothing": (changed("losses", "[]", changed("baselines", "[]")), "the grid is empty: name at least one loss and space, or one baseline."),
    "too many": (
        changed("seeds", "[" + ", ".join(map(str, range(13_000))) + "]"),
        "the grid has 156000 cells; at most 100000 are run from one suite.",
    ),
    "name with folders": (changed("name", '"../x"'), "'name' must be made of letters, digits, '.', '-' and '_' and not begin with '.'"),
    "threads 0": (changed("threads", "0"), "'threads' must lie in 1..1024, got 0."),
    "small images": (
        changed("backbone", '{ name = "convnet", depth = 6 }'),
        "architecture 'convnet(depth=6)' needs images of at least 64 px; those of 'mnist-5k' are 28 x 28.",
    ),
    "unknown number": (GOOD + "stesp = 1\n", "[distill] has no key 'stesp'. Did you mean 'steps'? It takes: steps, total_steps, momentum, "),
    "steps a fraction": (GOOD + "chunk = 1.5\n", "[distill]: 'chunk' must be a whole number, got 1.5."),
    "negative chunk": (GOOD + "chunk = 0\n", "'chunk' must be at least 1, got 0."),
    "momentum": (GOOD + "momentum = nan\n", "'momentum' must lie in [0, 1), got nan."),
    "labels": (GOOD + 'labels = "soft"\n', "'labels' must be one of hard, learned, teacher, got 'soft'."),
    "ranker": (GOOD + 'rank_stages = "loss"\n', "'rank_stages': 'loss' ranks the steps of a stage only. It takes: last, "),
    "rate of nothing": (changed("losses", '["dm"]') + "rates = { pixel = 1.0 }\n", "there is no tensor 'pixel' to give a rate. Did you mean 'pixels'? Known: "),
    "rate 0": (GOOD + "rates = { pixels = 0 }\n", "rate 'pixels' must be a number above 0, got 0.0."),
    "rate infinite": (GOOD + "rates = { pixels = inf }\n", "rate 'pixels' must be a number above 0, got inf."),
    "rate of another type": (GOOD + "rates = { pixels = true }\n", "rate 'pixels' must be a number, got True."),
    "missing rate": (GOOD + 'labels = "learned"\n', "loss 'dm' in space 'pixel' needs a rate for 'labels': add rates = { labels = ... }."),
    "iterates no table": (changed("iterates", "10"), "'iterates' must be a table, as in iterates = { steps = [0, 100], seconds = [60] }; got 10."),
    "iterates key": (changed("iterates", "{ step = [1] }"), "'iterates' has no key 'step'. Did you mean 'steps'? It takes: steps, seconds."),
    "iterates no list": (changed("iterates", "{ steps = 10 }"), "'iterates.steps' must be a list, got 10"),
    "iterates of a part": (changed("iterates", "{ steps = [0.5] }"), "'iterates.steps' holds 0.5; each entry must be a whole number of steps, at least 0."),
    "iterates before": (changed("iterates", "{ seconds = [-1] }"), "'iterates.seconds' holds -1; each entry must be a number, at least 0."),
    "iterates never": (changed("iterates", "{ seconds = [inf] }"), "'iterates.seconds' holds inf; each entry must be a number, at least 0."),
    "iterates of a word": (changed("iterates", "{ seconds = [true] }"), "'iterates.seconds' holds True; each entry must be a number, at least 0."),
    "iterates too late": (
        changed("iterates", "{ steps = [3, 7] }"),
        "'iterates.steps' holds 7, and the longest distillation of the grid has 7 steps: name steps below that, from 0 on.",
    ),
    "iterates without end": (
        changed("iterates", f"{{ seconds = {list(range(1001))} }}"), "'iterates.seconds' names 1001 iterates; at most 1000 are kept of a set.",
    ),
    "iterates of nothing": (
        changed("losses", "[]", changed("spaces", "[]", changed("iterates", "{ seconds = [1] }"))),
        "'iterates' asks for iterates of distillations, and the grid distils nothing: take it out.",
    ),
    "override of nothing": (
        GOOD + '[[override]]\nwhere = { loss = "mtt" }\nset = { steps = 1 }\n',
        "override 1 (where = {'loss': 'mtt'}) matches no cell: mend its 'where' or remove it.",
    ),
    "override where": (
        GOOD + "[[override]]\nwhere = { spase = 1 }\nset = { steps = 1 }\n",
        "override 1: 'where' has no key 'spase'. Did you mean 'space'? It takes: loss, space, subset, ipc, budget, seed.",
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


def test_two_ways_of_writing_one_set_are_one(tmp_path: Path) -> None:
    text = changed(
        "losses", '["dsa"]', changed("spaces", '[{ name = "glad", layer = 4 }, { name = "layered", first = 4, last = 4 }]')
    )
    where = "mnist-5k, ipc 1, seed 0"
    said = faults(tmp_path, text)
    assert len(said) == 4  # ipc and seeds
    assert said[0] == (
        f"the grid holds the cell 'dsa / glad(layer=4) / cvae, {where}' 2 times, also as "
        f"'dsa / layered(first=4, last=4) / cvae, {where}': name each loss, space, subset, baseline and variant once."
    )
    (twice,) = faults(tmp_path, changed("networks", '["convnet", { name = "convnet", width = 128 }]'))
    assert twice == "'networks' must name at least one network, and none twice."


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
    def missing(ref: PluginRef, root: Path | None) -> Hashes:
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
    assert sentence("quikstart").startswith(
        "unknown suite 'quikstart'. Did you mean 'quickstart'? It is neither a file nor one of: "
    )
    path = tmp_path / "a.toml"
    path.write_text("a = = 1")
    assert sentence(str(path)).startswith(f"suite '{path}' is not valid TOML: ")
    path.write_bytes(b"\xff\xfe\x00")
    assert sentence(str(path)).startswith(f"suite '{path}' cannot be read as text: ")
    path.write_bytes(b"#" * (MAX_SUITE_BYTES + 1))
    assert sentence(str(path)) == f"suite '{path}' is larger than {MAX_SUITE_BYTES} bytes: it is hardly a suite."
    assert sentence(str(tmp_path)).startswith(f"unknown suite '{tmp_path}'.")


REDUCED = [f"{name}:reduced" for name in grid.shipped() if "\n[reduced]\n" in grid.read(name)]
QUICK = ("quickstart", "cifar10", "hpd-table7", "hpd-table15", "hpd-table13:reduced", "glad-table3:reduced")  # the rest are long


def of_suites(names: list[str]) -> list[Any]:
    return [pytest.param(name, marks=[] if name in QUICK else pytest.mark.long) for name in names]


@pytest.mark.slow
@pytest.mark.parametrize("name", of_suites([*grid.shipped(), *REDUCED]))
def test_shipped_suites_are_whole(name: str) -> None:
    """But for what lies in files that nobody has; the reduced ones need none."""
    suite = grid.load(name, hash_of, None, lenient=":" not in name)
    assert suite.name == name.replace(":", "-")
    assert suite.cells
    assert suite.broken == ()


def test_later_overrides_win_and_settings_merge(tmp_path: Path) -> None:
    text = (
        GOOD
        + """
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
    )
    sets = [cell.set for cell in load(tmp_path, text).cells]
    plans = {(p.loss.name, p.space.name, p.ipc, p.seed): p for p in sets if p.loss and p.space}

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
    cells = load(tmp_path, GOOD).cells
    assert select(cells, None) == select(cells, "") == cells
    chosen = select(cells, "loss=dm,space=glad,ipc=10,seed=1,subset=mnist-5k")
    assert [cell.name for cell in chosen] == ["dm / glad(layer=2) / cvae, mnist-5k, ipc 10, seed 1"]
    assert {cell.set.method for cell in select(cells, "baseline=full-data")} == {"full-data"}
    assert len(select(cells, "ipc=10")) == 10
    for only, told in (
        (
            "los=dm",
            "--only takes key=value,... with keys loss, space, subset, ipc, budget, seed, baseline; got 'los=dm'. Did you mean 'loss'?",
        ),
        ("loss", "--only: 'loss' lacks a value. Write it as in loss=VALUE."),
        (
            "loss=dmm,ipc=10",
            "--only loss=dmm,ipc=10 matches none of the 21 cells. There is no loss 'dmm'. Did you mean 'dm'? It has: ",
        ),
        ("loss=dm,baseline=random", "--only loss=dm,baseline=random matches none of the 21 cells. Look at them with: ddbench"),
    ):
        with pytest.raises(ConfigError) as caught:
            select(cells, only)
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
    assert len(suite.cells) == num


@pytest.mark.parametrize("key", ["backbone", "proxy", "generator", "networks"])
def test_a_broken_plugin_that_every_cell_needs_takes_them_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, key: str) -> None:
    """No cell may be run with less than it asks for."""
    info = tmp_path / "broken-1.0.dist-info"
    info.mkdir()
    lines = "\n".join(f"[ddbench.{kind}]\nbad = nowhere_at_all:x" for kind in ("architectures", "generators"))
    (info / "entry_points.txt").write_text(lines)
    monkeypatch.syspath_prepend(str(tmp_path))
    suite = load(tmp_path, changed(key, '["bad", "convnet"]' if key == "networks" else '"bad"'))
    assert len(suite.broken) == 1
    assert "cannot be imported: ModuleNotFoundError" in suite.broken[0]
    left = {cell.set.method for cell in suite.cells}
    whole = {"random", "full-data"}
    assert left == {"backbone": set(), "networks": set(), "proxy": whole, "generator": whole | {"dm / pixel", "dsa / pixel"}}[key]


# Keys of cells


def keys_of(cell: Cell) -> tuple[str, ...]:
    """The set's and those of its judgings."""
    return (cell.set.key, *(judging.key for judging in cell.judgings))


def test_keys_do_not_depend_on_where_data_lie_or_how_a_suite_is_called(tmp_path: Path) -> None:
    keys = list(map(keys_of, load(tmp_path, GOOD).cells))
    assert list(map(keys_of, load(tmp_path, changed("data_root", '"/elsewhere"')).cells)) == keys
    assert list(map(keys_of, load(tmp_path, changed("name", '"other"')).cells)) == keys
    path = tmp_path / "suite.toml"
    path.write_text(GOOD)
    assert list(map(keys_of, grid.load(str(path), hash_of, Path("/x")).cells)) == keys
    roots = []
    grid.load(str(path), lambda ref, root: roots.append(root) or hash_of(ref, root), Path("/x"))
    assert roots == [Path("/x")]


def test_a_grid_grows_without_moving_keys(tmp_path: Path) -> None:
    """One more loss, seed, network or repeat costs itself."""
    before = {cell.name: keys_of(cell) for cell in load(tmp_path, GOOD).cells}
    more = changed("seeds", "[0, 1, 2]", changed("losses", '["dc", "dsa", "dm"]'))
    after = {cell.name: keys_of(cell) for cell in load(tmp_path, more).cells}
    assert len(after) > len(before)
    assert {name: after[name] for name in before} == before
    network = changed("networks", '["vit", { name = "convnet", width = 4 }, { name = "alexnet", width = 4 }]')
    other = {cell.name: keys_of(cell) for cell in load(tmp_path, network).cells}
    assert {name: (keys[0], *keys[2:]) for name, keys in other.items()} == before


@pytest.mark.slow
@pytest.mark.parametrize("name", of_suites(grid.shipped()))
def test_plans_of_shipped_suites_come_back_from_json(name: str) -> None:
    """A stored plan can be run: it is equal to the one that was written, and so are its keys."""
    cells = grid.load(name, hash_of, None, lenient=True).cells
    for cell in cells:
        again = schema.parse(schema.to_bytes(schema.SetPlanFile(plan=cell.set)), schema.SetPlanFile, "plan").plan
        assert again == cell.set
        assert again.key == cell.set.key
    for judging in {id(judging): judging for cell in cells for judging in cell.judgings}.values():
        same = msgspec.json.decode(msgspec.json.encode(judging), type=Judging)
        assert same == judging
        assert (same.key, same.stream) == (judging.key, judging.stream)


def test_a_plugin_is_resolved_once_however_many_cells_have_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A grid of 100,000 judgements is read in seconds."""
    asked: list[str] = []
    resolve = PluginRef.resolve
    monkeypatch.setattr(PluginRef, "resolve", lambda kind, name, given: asked.append(name) or resolve(kind, name, given))
    override = GOOD + '[[override]]\nwhere = { loss = "dm", seed = 3 }\nset = { steps = 9, loss = { batch_real = 5 } }\n'
    cells = load(tmp_path, changed("seeds", str(list(range(200))), override)).cells
    assert len(cells) == 200 * 10 + 1
    assert {cell.set.seed for cell in cells if cell.set.steps == 9} == {3}
    assert sorted(set(asked)) == ["alexnet", "convnet", "cvae", "dm", "dsa", "full-data", "glad", "mnist-5k", "pixel", "random"]
    assert len(asked) == 11  # dm twice: with other settings where the override has it


# How cells are judged


def test_a_cell_is_judged_by_every_network_with_its_seed_as_draw(tmp_path: Path) -> None:
    suite = load(tmp_path, changed("threads", "2", changed("seeds", "[3, 1]")))
    assert suite.protocol == protocols.load("smoke-1")
    for cell in suite.cells:
        assert [judging.network.label for judging in cell.judgings] == ["convnet(width=4)", "alexnet(width=4)"]
        assert {judging.draw for judging in cell.judgings} == {3 if cell.set.everything else cell.set.seed}  # the first seed
        assert {judging.numbers for judging in cell.judgings} == {suite.protocol.numbers(everything=cell.set.everything)}
        hashes = hash_of(cell.set.dataset, None)
        assert {(judging.test_hash, cell.set.train_hash) for judging in cell.judgings} == {(hashes.test_hash, hashes.train_hash)}
        assert {judging.threads for judging in cell.judgings} == {2}
        assert (cell.repeats, cell.protocol, cell.iterates) == (1, "smoke-1", ())
        assert {judging.protocol for judging in cell.judgings} == {"smoke-1"}
    assert len({id(cell.judgings) for cell in suite.cells}) == 3  # sets that are judged alike share the objects


def test_what_a_protocol_says_of_sets_is_in_their_plans(tmp_path: Path) -> None:
    held_out = {cell.set.method: (cell.set.held_out, cell.set.threads) for cell in load(tmp_path, changed("threads", "2")).cells}
    assert held_out["random"] == held_out["dm / pixel"] == (0.1, 2)
    assert held_out["full-data"] == (0.0, 1)  # it selects nothing, and nothing is summed
    colour = changed("subsets", '["imagenet-a"]', changed("protocol", '"glad-1-svhn-mean"'))
    means = {cell.set.method: cell.set.synthetic_mean for cell in load(tmp_path, colour).cells}
    assert means["dm / glad(layer=2) / cvae"] == (0.4377, 0.4438, 0.4728)
    assert means["dm / pixel"] == means["random"] == ()
    assert faults(tmp_path, changed("protocol", '"glad-1-svhn-mean"')) == [
        "protocol 'glad-1-svhn-mean' on 'mnist-5k': constants of 3 channels cannot normalise 'mnist-5k', whose images have 1."
    ]
    load(tmp_path, changed("protocol", '"glad-1-svhn-mean"', changed("spaces", '["pixel"]')))  # generates nothing
    (told,) = faults(tmp_path, changed("subsets", '["cifar10"]', changed("protocol", '"glad-1-unnormalised"')))
    assert told.startswith(
        "protocol 'glad-1-unnormalised' repeats what published code does to classes of ImageNet, which 'cifar10'"
    )


def test_rankers_by_validation_train_as_the_protocol_has_it_and_without_its_teacher(tmp_path: Path) -> None:
    text = changed("networks", '["resnet18-bn"]', changed("protocol", '"sre2l-1"', changed("backbone", '"resnet18-bn"')))
    plain = load(tmp_path, text).cells
    assert {cell.set.ranking for cell in plain} == {None}
    assert {judging.teacher.label for cell in plain for judging in cell.judgings if judging.teacher} == {"resnet18-bn"}
    ranked = load(tmp_path, text + 'rank_stages = "validation"\n').cells
    rankings = [cell.set.ranking for cell in ranked if not cell.set.baseline]
    assert {ranking.epochs for ranking in rankings if ranking} == {100}
    assert all(ranking and ranking.teacher is None for ranking in rankings)


def test_iterates_are_spread_over_the_steps_of_all_stages(tmp_path: Path) -> None:
    text = changed("spaces", '["pixel", { name = "hpd", first = 2, last = 6 }]', changed("protocol", '"quick-1-best-of-test"'))
    found = {cell.set.method: cell.iterates for cell in load(tmp_path, text).cells}
    assert found["dm / pixel"] == (0, 1, 2, 4, 5)  # of 7 steps
    assert found["dm / hpd(last=6) / cvae"] == (0, 4, 8, 12, 16)  # of 21 in three stages
    assert found["random"] == found["full-data"] == ()
    few = {cell.set.method: cell.iterates for cell in load(tmp_path, text.replace("steps = 7", "steps = 1")).cells}
    assert few["dm / pixel"] == (0,)
    none = {cell.set.method: cell.iterates for cell in load(tmp_path, text.replace("steps = 7", "steps = 0")).cells}
    assert none["dm / pixel"] == ()


def test_a_suite_asks_for_iterates_by_steps_and_by_seconds(tmp_path: Path) -> None:
    asked = changed(
        "iterates",
        "{ steps = [20, 5, 5], seconds = [60, 0.5] }",
        changed("spaces", '["pixel", { name = "hpd", first = 2, last = 6 }]'),
    )
    found = {cell.set.method: (cell.iterates, cell.iterate_seconds) for cell in load(tmp_path, asked).cells}
    assert found["dm / pixel"] == ((5,), (0.5, 60.0))  # of 7 steps; those of the longest distillation are enough
    assert found["dm / hpd(last=6) / cvae"] == ((5, 20), (0.5, 60.0))
    assert found["random"] == found["full-data"] == ((), ())
    both = load(tmp_path, changed("protocol", '"quick-1-best-of-test"', asked)).cells
    assert {cell.set.method: cell.iterates for cell in both}["dm / pixel"] == (0, 1, 2, 4, 5)
    cell = next(cell for cell in load(tmp_path, asked).cells if cell.set.loss)
    wanted = [(None, None), (5, None), (None, 0.5), (None, 60.0)]
    assert [(each.iterate, each.iterate_seconds) for each in cell.all_judgings()] == [
        pair for pair in wanted for _ in cell.judgings
    ]
    assert len({judging.key for judging in cell.all_judgings()}) == 4 * len(cell.judgings)
    plain = load(tmp_path, changed("spaces", '["pixel", { name = "hpd", first = 2, last = 6 }]')).cells
    assert [each.set.key for each in plain] == [each.set.key for each in load(tmp_path, asked).cells]


STAGES = """
from dataclasses import dataclass
from ddbench.api import Space

@dataclass(frozen=True)
class Many(Space):
    what: str = "ipc"
    tensors = ("pixels",)
    def num_stages(self, run):
        return {"ipc": lambda: run.ipc + run.spec.num_classes, "data": lambda: run.class_counts, "bug": lambda: 1 // 0}[self.what]()
    def init(self, run): ...
    def classes(self, state, run): ...
    def decode(self, state, index, run): ...
"""


def test_a_space_that_cannot_count_its_stages_beforehand_has_no_iterates(tmp_path: Path, install: Install) -> None:
    install("stages_of_tests", STAGES, spaces={"many": "Many"})
    text = changed("spaces", '[{ name = "many", what = "WHAT" }]', changed("protocol", '"quick-1-best-of-test"'))
    found = {cell.set.ipc: cell.iterates for cell in load(tmp_path, text.replace("WHAT", "ipc")).cells if cell.set.loss}
    assert found == {1: (0, 15, 30, 46, 61), 10: (0, 28, 56, 84, 112)}
    assert faults(tmp_path, text.replace("WHAT", "data")) == [
        "protocol 'quick-1-best-of-test' judges iterates, and space 'many(what=data)' cannot say beforehand how many stages it has: "
        "it asks for run.class_counts, which is not there yet."
    ]
    silent = changed("protocol", '"quick-1"', text.replace("WHAT", "data"))
    load(tmp_path, silent)  # asks for no iterates
    load(tmp_path, changed("iterates", "{ seconds = [1] }", silent))  # nor for any whose step must be known
    assert faults(tmp_path, changed("iterates", "{ steps = [1] }", silent))[0].startswith("'iterates' asks for steps, and space ")
    (said,) = load(tmp_path, text.replace("WHAT", "bug")).broken
    assert said.startswith("space 'many' (from stages-of-tests 1.0) is broken: ZeroDivisionError: ")


def test_a_damaged_protocol_is_told(tmp_path: Path, install: Install) -> None:
    install(
        "protocol_of_tests",
        "from ddbench.api import ProtocolText\ndef mine():\n    return ProtocolText('a = = 1')\n",
        protocols={"mine": "mine"},
    )
    (said,) = faults(tmp_path, changed("protocol", '"mine"'))
    assert said.startswith("protocol 'mine' (protocol_of_tests:mine, from protocol-of-tests) is damaged: it is not valid TOML (")


# Baselines


BASELINE = """
from dataclasses import dataclass
from ddbench.api import Baseline

@dataclass(frozen=True)
class Picky(Baseline):
    num: int = 3
    uses_backbone = True
    def build(self, run): ...

@dataclass(frozen=True)
class Torn(Baseline):
    @property
    def everything(self):
        raise RuntimeError("not today")
    def build(self, run): ...
"""


def test_baselines_are_plugins_with_settings(tmp_path: Path, install: Install) -> None:
    install("baselines_of_tests", BASELINE, baselines={"picky": "Picky", "torn": "Torn"})
    text = changed("losses", "[]", changed("baselines", '["random", { name = "picky", num = 4 }, "picky"]'))
    cells = load(tmp_path, text).cells
    assert [cell.set.method for cell in cells[::4]] == ["random", "picky(num=4)", "picky"]
    assert [cell.set.backbone.label if cell.set.backbone else None for cell in cells[::4]] == [None, *["convnet(width=4)"] * 2]
    assert len({cell.set.key for cell in cells}) == 12
    suite = load(tmp_path, changed("baselines", '["torn", "random"]', text))
    assert suite.broken == ("baseline 'torn' (from baselines-of-tests 1.0) is broken: RuntimeError: not today.",)
    assert {cell.set.method for cell in suite.cells} == {"random"}
    assert faults(tmp_path, changed("baselines", '[{ name = "picky", mun = 4 }]', text)) == [
        "baseline 'picky' has no setting 'mun'. It takes: num."
    ]


def test_random_images_must_be_enough_in_every_class() -> None:
    """Whoever plans asks this of a run that counts images and holds none."""
    random = PluginRef.resolve("baselines", "random", {}).make()
    random.check(SimpleNamespace(class_counts=(500, 360), ipc=360))
    with pytest.raises(ConfigError, match=r"^ipc 361 is more than the 360 images that a class trains on: lower it\.$"):
        random.check(SimpleNamespace(class_counts=(500, 360), ipc=361))


@pytest.mark.parametrize("seeds", ["[0]", "[5, 2]"])
def test_all_real_images_are_one_set_whatever_the_seeds(tmp_path: Path, seeds: str) -> None:
    (cell,) = select(load(tmp_path, changed("seeds", seeds)).cells, "baseline=full-data")
    assert (cell.set.ipc, cell.set.seed, cell.set.everything, cell.name) == (0, 0, True, "full-data, mnist-5k")
    assert {judging.numbers.epochs for judging in cell.judgings} == {protocols.load("smoke-1").full_data.epochs}


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
    def depth(self, run):
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
        (
            "subsets",
            '["mnist-5k", "shaky"]',
            "dataset 'shaky' (from shaky-plugins 1.0) is broken: RuntimeError: no spec today.",
            21,
        ),
        ("generator", '"shaky"', "generator 'shaky' (from shaky-plugins 1.0) is broken: RuntimeError: no depth today.", 13),
        ("spaces", '["pixel", "shaky"]', "space 'shaky' (from shaky-plugins 1.0) is broken: RuntimeError: no check today.", 13),
        ("losses", '["dm", "shaky"]', "loss 'shaky' (from shaky-plugins 1.0) is broken: ValueError: could not convert", 13),
        ("losses", '["dm", "shaky-none"]', "loss 'shaky-none' (from shaky-plugins 1.0) is broken: AttributeError: ", 13),
    ],
)
def test_a_plugin_that_fails_while_a_grid_is_read_takes_its_own_cells_only(
    tmp_path: Path, install: Install, key: str, value: str, told: str, left: int
) -> None:
    names = {"datasets": "Data", "generators": "Gen", "spaces": "Room"}
    plugins = {kind: {"shaky": name} for kind, name in names.items()}
    install("shaky_plugins", SHAKY, losses={"shaky": "Odd", "shaky-none": "None_"}, **plugins)
    suite = load(tmp_path, changed(key, value))
    assert len(suite.broken) == 1
    assert suite.broken[0].startswith(told)
    assert len(suite.cells) == left


TENSORS = """
from dataclasses import dataclass
from ddbench.api import Loss, Space

@dataclass(frozen=True)
class Low(Space):
    both: bool = False
    @property
    def tensors(self):
        return ("low", "high") if self.both else ("low",)
    def init(self, run): ...
    def classes(self, state, run): ...
    def decode(self, state, index, run): ...

@dataclass(frozen=True)
class Guess(Loss):
    learned = ("guess",)
    rates = {"low": 2.0, "high": 3.0, "pixels": 4.0}
    def backward(self, syn, memory, run): ...

class Torn(Low):
    @property
    def tensors(self):
        raise RuntimeError("no tensors today")
"""


@pytest.fixture
def tensors(install: Install) -> None:
    """A space with tensors of its own, by its settings; a loss that learns one; a space that is broken."""
    install("own_tensors", TENSORS, spaces={"low": "Low", "torn": "Torn"}, losses={"guess": "Guess"})


def own(spaces: str, rates: str, losses: str = '["dm"]') -> str:
    return changed("spaces", spaces, changed("losses", losses)) + f"rates = {{ {rates} }}\n"


@pytest.mark.usefixtures("tensors")
def test_a_rate_for_a_tensor_of_another_space_or_loss_of_the_grid_is_taken(tmp_path: Path) -> None:
    suite = load(tmp_path, own('["pixel", "low"]', "low = 0.5, guess = 0.25", losses='["dm", "guess"]') + 'labels = "hard"\n')
    found = {plan.method: dict(plan.rates) for plan in (cell.set for cell in suite.cells) if not plan.baseline}
    assert found["dm / pixel"] == {"pixels": 10.0}
    assert found["dm / low"] == {"low": 0.5}
    assert found["guess / pixel"] == {"pixels": 4.0, "guess": 0.25}
    assert found["guess / low"] == {"low": 0.5, "guess": 0.25}


@pytest.mark.usefixtures("tensors")
def test_tensors_may_hang_on_a_space_s_settings(tmp_path: Path) -> None:
    said = faults(tmp_path, own('[{ name = "low", both = true }, "low"]', "low = 0.5"))
    assert said == ["loss 'dm' in space 'low' needs a rate for 'high': add rates = { high = ... }."]
    load(tmp_path, own('[{ name = "low", both = true }, "low"]', "low = 0.5, high = 1.5"))


@pytest.mark.usefixtures("tensors")
def test_a_rate_for_a_tensor_that_nothing_in_the_grid_has_is_a_fault_told_once(tmp_path: Path) -> None:
    said = faults(tmp_path, own('["pixel", "low"]', "low = 0.5, hihg = 1.0"))
    assert said == ["there is no tensor 'hihg' to give a rate. Known: f, low, pixels, w."]


@pytest.mark.usefixtures("tensors")
def test_a_broken_space_may_be_what_a_rate_is_for(tmp_path: Path) -> None:
    suite = load(tmp_path, own('["pixel", "torn"]', "low = 0.5"))
    assert [sentence.partition(" is broken")[0] for sentence in suite.broken] == ["space 'torn' (from own-tensors 1.0)"]
    assert {plan.method for plan in (cell.set for cell in suite.cells) if not plan.baseline} == {"dm / pixel"}


@pytest.mark.parametrize("text", ["threads = 0", "description = 3", 'data_root = "~nobody-of-that-name/x"'])
def test_faults_outside_the_cells_are_found_too(tmp_path: Path, text: str) -> None:
    key = text.partition(" ")[0]
    base = "\n".join(line for line in GOOD.splitlines() if not line.startswith(key))
    assert len(faults(tmp_path, text + "\n" + base)) == 1


def test_only_takes_a_key_once(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="names 'loss' twice"):
        select(load(tmp_path, GOOD).cells, "loss=dm,loss=dsa")


def test_only_tells_variants_apart_by_their_labels(tmp_path: Path) -> None:
    cells = load(tmp_path, changed("losses", '["dm", { name = "dm", batch_real = 8, augment = "none" }]')).cells
    whole = "dm(batch_real=8, augment=none)"
    assert len(select(cells, "loss=dm,space=pixel,ipc=1,seed=0")) == 2
    (cell,) = select(cells, f"space=pixel,loss={whole},ipc=1,seed=0")
    assert cell.set.method == f"{whole} / pixel"
    with pytest.raises(ConfigError, match="There is no ipc ''"):
        select(cells, "ipc=")
