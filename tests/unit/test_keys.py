"""Keys: what changes them and what must not; and every default beside its `numerics`, so that none changes unnoticed.

tests/golden/identities.json holds what plugins, protocols and plans resolve to by default. Keys leave out what is at its
default, so that a changed default gives other numbers under an old key, unless whoever changes it raises `numerics`. What is
new (a plugin, a setting with a default, a field) changes no key; take it into the file with

    DDBENCH_GOLDEN=write pytest tests/unit/test_keys.py

which refuses where a default changed and no `numerics` did. Read the difference before you commit it.
"""

from __future__ import annotations

import dataclasses
import importlib
import json
import os
import pkgutil
from collections.abc import Iterator
from copy import deepcopy
from importlib import metadata
from pathlib import Path
from typing import Any

import msgspec
import pytest
from msgspec.structs import fields, replace

import ddbench
import ddbench_plugins
from ddbench import api, ops, plan, protocols
from ddbench.api import Recipe, Resource
from ddbench.files import digest
from ddbench.identity import fields_of
from ddbench.plan import Cell, Imported, Judging, SetPlan, differences
from ddbench.protocols import Numbers, Teacher
from ddbench.refs import PluginRef
from ddbench_plugins.losses.dm import DistributionMatching

GOLDEN = Path(__file__).parents[1] / "golden" / "identities.json"
KINDS = ("losses", "spaces", "generators", "architectures", "proxies", "rankers", "baselines")  # data sets are their hash
MEMBERS: dict[str, dict[str, Any]] = {  # an example of every family
    "architectures timm": {"model": "resnet18"},
    "generators stylegan-xl": {"weights": "imagenet128"},
    "generators autoencoder-kl": {"folder": "vae"},
    "spaces multi-formation": {"inner": "pixel"},
    "baselines folder": {"folder": "others", "saw": ["train"]},
    "baselines latent-clusters": {"folder": "dit"},
    "baselines ddim-groups": {"folder": "dit"},
}
BASELINES_TOO = ("imported", "baseline", "backbone", "tf32", "threads", "resources")  # fields of sets whose keys no engine is in

# ---------------------------------------------------------------- the golden file


def shipped(group: str) -> list[str]:
    """The names that this distribution itself offers."""
    return sorted(entry.name for entry in metadata.distribution("ddbench").entry_points if entry.group == f"ddbench.{group}")


def plugin_now(kind: str, name: str) -> dict[str, Any]:
    """What a name means, and the part of it that keys are made of; without the versions of libraries."""
    ref = PluginRef.resolve(kind, name, MEMBERS.get(f"{kind} {name}", {}))
    return {part: {key: value for key, value in getattr(ref, part).items() if key != "software"} for part in ("what", "resolved")}


def resources() -> Iterator[type[Resource]]:
    """Those of the shipped plugins, and those that plugins share."""
    own = pkgutil.walk_packages(ddbench_plugins.__path__, "ddbench_plugins.")
    shared = pkgutil.walk_packages(ops.__path__, "ddbench.ops.")
    for module in (*shared, *own):
        for target in vars(importlib.import_module(module.name)).values():
            if isinstance(target, type) and issubclass(target, Resource) and target.__module__ == module.name:
                yield target


def defaults_of(kind: type) -> dict[str, Any]:
    """The fields of a structure or a dataclass that have a default."""
    if issubclass(kind, msgspec.Struct):
        values = plan._defaults(kind)
        return {name: msgspec.to_builtins(value) for name, value in values.items() if value is not msgspec.NODEFAULT}
    found = {field.name: field.default for field in dataclasses.fields(kind) if field.init}
    return {name: value for name, value in found.items() if value is not dataclasses.MISSING}


def current() -> dict[str, Any]:
    """What the golden file should hold, as JSON gives it back."""
    both = {id: protocols.load(id) for id in shipped("protocols")}
    structures = (SetPlan, Judging, Imported, Numbers, Teacher, Recipe)
    now = {
        "plugins": {f"{kind} {name}": plugin_now(kind, name) for kind in KINDS for name in shipped(kind)},
        "resources": {
            f"{kind.__module__}:{kind.__qualname__}": {"numerics": kind.numerics, "defaults": defaults_of(kind)}
            for kind in resources()
        },
        "protocols": {
            id: {"numbers": msgspec.to_builtins(one.judging), "everything": msgspec.to_builtins(one.numbers(everything=True))}
            for id, one in both.items()
        },
        "structures": {kind.__name__: defaults_of(kind) for kind in structures},
        "numerics": dict(plan.NUMERICS),
    }
    return json.loads(json.dumps(now))


def changed(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """The keys whose values are no longer what they were; new ones do not count."""
    return [f"{key} ({value!r} then, {new.get(key, 'gone')!r} now)" for key, value in old.items() if new.get(key, ...) != value]


def refused(golden: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """Changes under which an old key would stand for other numbers, a sentence each."""
    said = []
    for id, old in golden["protocols"].items():
        new = now["protocols"].get(id, old)
        odd = [one for part in old for one in changed(old[part], new[part])]
        said += [f"protocol {id}: {one}: another number makes another protocol, with another id." for one in odd]
    raised = {name for name, old in golden["numerics"].items() if now["numerics"].get(name, 0) > old}
    lowered = [name for name, old in golden["numerics"].items() if now["numerics"].get(name, 0) < old]
    said += [f"NUMERICS: '{name}' was lowered." for name in lowered]
    said += refused_plugins(golden["plugins"], now["plugins"])
    said += refused_resources(golden["resources"], now["resources"])
    return [*said, *refused_structures(golden["structures"], now["structures"], raised)]


def refused_plugins(golden: dict[str, Any], now: dict[str, Any]) -> Iterator[str]:
    """Names that mean something else, and are in keys what they were."""
    for name, old in golden.items():
        new = now.get(name, old)
        if new["what"].get("numerics", 1) < old["what"].get("numerics", 1):
            yield f"{name}: its numerics were lowered."
        elif new["what"] == old["what"]:
            yield from (f"{name}: {odd}: raise its numerics." for odd in changed(old["resolved"], new["resolved"]))


def refused_resources(golden: dict[str, Any], now: dict[str, Any]) -> Iterator[str]:
    """Defaults of resources that changed under the same numerics."""
    for name, old in golden.items():
        new = now.get(name, old)
        if new["numerics"] < old["numerics"]:
            yield f"{name}: its numerics were lowered."
        elif new["numerics"] == old["numerics"]:
            yield from (f"{name}: {odd}: raise its numerics." for odd in changed(old["defaults"], new["defaults"]))


def refused_structures(golden: dict[str, Any], now: dict[str, Any], raised: set[str]) -> Iterator[str]:
    """Defaults of fields of plans that changed, where no number in all their keys was raised."""
    enough = {"SetPlan": {"engine"}, "Judging": {"training", "evaluator"}, "Recipe": {"training"}}
    for name, old in golden.items():
        mending = enough.get(name, set())
        advice = f"raise NUMERICS of {' or '.join(sorted(mending))}" if mending else "give it back its default"
        for field, value in old.items():
            if not mending & raised or (name == "SetPlan" and field in BASELINES_TOO):
                yield from (f"{name}: {odd}: {advice}." for odd in changed({field: value}, now.get(name, {})))


@pytest.fixture(scope="module")
def now() -> dict[str, Any]:
    return current()


@pytest.fixture
def golden() -> dict[str, Any]:
    return json.loads(GOLDEN.read_text(encoding="utf-8"))


def compare(path: Path, now: dict[str, Any], write: bool) -> None:
    """Fail where the file holds something else; or take what is new into it, unless a changed default must be told first."""
    if path.exists():
        assert refused(json.loads(path.read_text(encoding="utf-8")), now) == []
    if write:
        path.write_text(json.dumps(now, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    held = json.loads(path.read_text(encoding="utf-8"))
    assert now == held, "something is new: take it into the golden file, as the head of this module says"


def test_no_default_changes_unless_numerics_do(now: dict[str, Any]) -> None:
    compare(GOLDEN, now, write=os.environ.get("DDBENCH_GOLDEN") == "write")


def test_what_is_new_is_written_and_a_changed_default_is_not(tmp_path: Path, golden: dict[str, Any]) -> None:
    path = tmp_path / "identities.json"
    compare(path, golden, write=True)
    new, odd = deepcopy(golden), deepcopy(golden)
    new["plugins"]["losses dm"]["resolved"]["margin"] = 0.5
    odd["plugins"]["losses dm"]["resolved"]["batch_real"] = 7
    with pytest.raises(AssertionError, match="something is new"):
        compare(path, new, write=False)
    before = path.read_bytes()
    for write in (True, False):
        with pytest.raises(AssertionError, match="raise its numerics"):
            compare(path, odd, write=write)
    assert path.read_bytes() == before
    compare(path, new, write=True)
    compare(path, new, write=False)


def test_a_changed_default_is_refused_and_raised_numerics_mend_it(
    golden: dict[str, Any], now: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The very thing that an author does: another default in the class."""
    field = DistributionMatching.__dataclass_fields__["batch_real"]
    monkeypatch.setattr(field, "default", 128)
    changed_now = deepcopy(now)
    changed_now["plugins"]["losses dm"] = plugin_now("losses", "dm")
    assert refused(golden, changed_now) == ["losses dm: batch_real (256 then, 128 now): raise its numerics."]
    monkeypatch.setattr(DistributionMatching, "numerics", 2)
    changed_now["plugins"]["losses dm"] = plugin_now("losses", "dm")
    assert refused(golden, changed_now) == []
    monkeypatch.setattr(DistributionMatching, "numerics", 0)
    changed_now["plugins"]["losses dm"] = plugin_now("losses", "dm")
    assert refused(golden, changed_now) == ["losses dm: its numerics were lowered."]


def test_a_new_setting_is_taken(golden: dict[str, Any], now: dict[str, Any]) -> None:
    """It has changed no key, and from then on it is held."""
    more = deepcopy(now)
    more["plugins"]["losses dm"]["resolved"]["margin"] = 0.5
    more["plugins"]["losses new"] = more["plugins"]["losses dm"]
    more["structures"]["SetPlan"]["warmth"] = 3
    more["protocols"]["mine-1"] = more["protocols"]["glad-1"]
    assert more != golden
    assert refused(golden, more) == []
    assert len(refused(more, now)) == 2  # taken away again: the setting and the field, not the plugin and the protocol


@pytest.mark.parametrize(
    ("path", "value", "told"),
    [
        (("plugins", "spaces layered", "resolved", "clip"), 5.0, "spaces layered: clip (10.0 then, 5.0 now): raise "),
        (("plugins", "architectures convnet", "resolved", "width"), 64, "architectures convnet: width (128 then, 64 now): "),
        (("protocols", "quick-1", "numbers", "batch"), 128, "protocol quick-1: batch (256 then, 128 now): another "),
        (("structures", "SetPlan", "steps"), 500, "SetPlan: steps (1000 then, 500 now): raise NUMERICS of engine."),
        (("structures", "SetPlan", "threads"), 2, "SetPlan: threads (1 then, 2 now): raise NUMERICS of engine."),
        (("structures", "Judging", "draw"), 1, "Judging: draw (0 then, 1 now): raise NUMERICS of evaluator or training."),
        (("structures", "Recipe", "batch"), 1, "Recipe: batch (256 then, 1 now): raise NUMERICS of training."),
        (("structures", "Numbers", "teacher"), 1, "Numbers: teacher (None then, 1 now): give it back its default."),
        (("numerics", "engine"), 0, "NUMERICS: 'engine' was lowered."),
    ],
)
def test_whatever_would_reuse_an_old_key_is_refused(
    golden: dict[str, Any], now: dict[str, Any], path: tuple[str, ...], value: Any, told: str
) -> None:
    edited = deepcopy(now)
    table = edited
    for key in path[:-1]:
        table = table[key]
    assert table[path[-1]] != value
    table[path[-1]] = value
    (said,) = refused(golden, edited)
    assert said.startswith(told)
    edited["numerics"] = {name: number + 1 for name, number in now["numerics"].items()}
    mended = path in (("structures", "SetPlan", "steps"), ("structures", "Judging", "draw"), ("structures", "Recipe", "batch"))
    assert bool(refused(golden, edited)) is not (mended or path[0] == "numerics")


def test_a_resource_s_defaults_are_held(now: dict[str, Any]) -> None:
    @dataclasses.dataclass(frozen=True)
    class Expert(Resource):
        epochs: int
        lr: float = 0.01

    assert any(name.endswith(":ExpertTrajectory") for name in now["resources"])
    before = {**now, "resources": {"x:Expert": {"numerics": Expert.numerics, "defaults": defaults_of(Expert)}}}
    after = deepcopy(before)
    after["resources"]["x:Expert"]["defaults"]["lr"] = 0.1
    assert refused(before, after) == ["x:Expert: lr (0.01 then, 0.1 now): raise its numerics."]
    after["resources"]["x:Expert"]["numerics"] = 2
    assert refused(before, after) == []
    after["resources"]["x:Expert"] = {"numerics": 0, "defaults": {"lr": 0.01}}
    assert refused(before, after) == ["x:Expert: its numerics were lowered."]


# ---------------------------------------------------------------- what keys are made of


def ref(kind: str, name: str, **settings: Any) -> PluginRef:
    """A plugin written out, so that no installed version moves its key."""
    what = {"plugin": name, "from": "ddbench", "numerics": 1, "settings": settings}
    if kind == "architectures":
        what |= {"lr": 0.001, "software": []}
    return PluginRef(kind, name, settings, "ddbench", "0.1.0", name, what, settings, ("ddbench",))


NET, DATA = ref("architectures", "convnet", width=4), ref("datasets", "mnist-5k")
NUMBERS = Numbers(
    epochs=3, optimizer="sgd", schedule="constant", warmup_epochs=0, lr=0.0, lr_factor=1.0, learned_rate=False, batch=256,
    momentum=0.9, weight_decay=5e-4, ema=0.0, augment="none", test_batch=128, channels_last=False, tf32=False,
)  # fmt: skip
SET = SetPlan(
    dataset=DATA, train_hash="ab" * 32, ipc=1, seed=0, held_out=0.1, backbone=NET, loss=ref("losses", "dm", batch_real=4),
    space=ref("spaces", "pixel"), generator=ref("generators", "cvae", epochs=1), rates={"pixels": 10.0, "w": 0.01}, proxy=NET,
)  # fmt: skip
JUDGING = Judging(network=NET, numbers=NUMBERS, dataset=DATA, test_hash="cd" * 32)
OTHER = {
    "train_hash": "ef" * 32, "ipc": 2, "budget": "bytes", "seed": 1, "held_out": 0.2, "steps": 7, "extra_steps": 1,
    "stage_steps": (3, 1),
    "rates": {"pixels": 9.0}, "momentum": 0.6, "baseline": ref("baselines", "random"),
    "imported": Imported(sha256="ab" * 32, images="pixels", labels="indices"),
    "optimizer": "adam", "schedule": "cosine", "labels": "learned", "rank_steps": "loss", "rank_every": 2, "rank_epochs": 9,
    "rank_stages": "validation", "rank_repeats": 2, "ranking": NUMBERS, "proxy_epochs": 9, "proxy_layer": "layer3",
    "proxy_gradient": "elementwise", "chunk": 9, "synthetic_mean": (0.5,),
    "synthetic_std": (0.5,), "tf32": True, "threads": 2, "resources": ("ab" * 32,), "generator": None,
    "backbone": ref("architectures", "convnet", width=5), "loss": ref("losses", "dm", batch_real=5), "proxy": None,
    "space": ref("spaces", "pixel", clamp=True), "engine": 9, "tuning": 0.1,
}  # fmt: skip
OTHER_JUDGING = {
    "network": ref("architectures", "convnet", width=5), "numbers": replace(NUMBERS, epochs=4), "test_hash": "ef" * 32, "draw": 1,
    "iterate": 0, "iterate_seconds": 2.5, "teacher": NET, "threads": 2, "resources": ("ab" * 32,), "held_out": 0.1, "training": 9,
    "evaluator": 9,
}  # fmt: skip
PLANS = [(SET, OTHER, {"dataset"}), (JUDGING, OTHER_JUDGING, {"dataset", "protocol"})]


@pytest.mark.parametrize(("base", "others", "apart"), PLANS, ids=["set", "judging"])
def test_every_field_that_changes_a_number_changes_the_key(base: Any, others: dict[str, Any], apart: set[str]) -> None:
    assert others.keys() | apart == {field.name for field in fields(base)}
    keys = {base.key, *(replace(base, **{name: value}).key for name, value in others.items())}
    assert len(keys) == len(others) + 1


def test_golden_keys() -> None:
    """A change of these makes everything stored anew: say so in the changelog."""
    assert (SET.key[:16], JUDGING.key[:16]) == ("43751d58e02e55b9", "de90c71f3df51540")
    assert SET.key == digest(SET.identity())


@pytest.mark.parametrize(("name", "shown"), [("quick-1", "cd8a293d"), ("lineage-1", "ac869956")])
def test_hashes_of_protocols_are_those_that_boards_have_shown(name: str, shown: str) -> None:
    """A field that is added leaves them, and with them the keys of trials, where it changes nothing."""
    numbers = protocols.load(name).judging
    assert digest(numbers.identity)[:8] == shown
    assert digest(replace(numbers, criterion="gift").identity)[:8] != shown


def test_what_a_plugin_is_called_and_where_it_is_from_changes_no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    assert SET.loss
    prose = {"version": "9.9", "label": "DM, ours", "resolved": {"batch_real": 4, "new": 1}, "settings": {"new": 1}}
    for name, value in prose.items():
        loss, network = replace(SET.loss, **{name: value}), replace(NET, **{name: value})
        assert replace(SET, loss=loss).key == SET.key, name
        assert replace(JUDGING, network=network).key == JUDGING.key, name
    assert replace(SET, dataset=ref("datasets", "other")).key == SET.key  # its hash says what it is
    assert replace(JUDGING, dataset=ref("datasets", "other"), protocol="mine-1").key == JUDGING.key
    keys = SET.key, JUDGING.key
    monkeypatch.setattr(ddbench, "__version__", "9.9")
    assert (replace(SET).key, replace(JUDGING).key) == keys


def test_the_order_of_settings_does_not_count() -> None:
    turned = replace(SET, rates=dict(reversed(SET.rates.items())))
    assert list(turned.rates) != list(SET.rates)
    assert turned.key == SET.key


def anew(one: Any) -> Any:
    """The same, planned now: what was planned before keeps the numerics of its time, and so its key."""
    kept = {field.name: getattr(one, field.name) for field in fields(one) if field.name not in plan.NUMERICS}
    return type(one)(**kept)


def test_numerics_count(monkeypatch: pytest.MonkeyPatch) -> None:
    assert SET.loss
    raised = replace(SET.loss, what=SET.loss.what | {"numerics": 2})
    assert replace(SET, loss=raised).key != SET.key
    random = SetPlan(dataset=DATA, train_hash="ab" * 32, ipc=1, seed=0, held_out=0.1, baseline=ref("baselines", "random"))
    keys = SET.key, JUDGING.key, random.key
    for name, moved in (("engine", (0,)), ("training", (1,)), ("evaluator", (1,))):
        monkeypatch.setattr(plan, "NUMERICS", {**plan.NUMERICS, name: 9})
        now = [anew(one).key for one in (SET, JUDGING, random)]
        assert [number for number, key in enumerate(now) if key != keys[number]] == list(moved), name
        monkeypatch.undo()


def test_the_training_split_counts_for_sets_and_the_test_split_for_judgings() -> None:
    assert "test_hash" not in {field.name for field in fields(SET)}
    assert "train_hash" not in {field.name for field in fields(JUDGING)}
    assert "mnist-5k" not in json.dumps([SET.identity(), JUDGING.identity()])


def test_a_network_or_a_repeat_more_costs_itself() -> None:
    """Neither is in the key of a set, nor in that of another judging."""
    cell = Cell(SET, (JUDGING,), 2, "mine-1", iterates=(0, 5))
    before = [judging.key for judging in cell.all_judgings()]
    other = replace(JUDGING, network=ref("architectures", "vit"))
    more = dataclasses.replace(cell, judgings=(JUDGING, other), repeats=3)
    after = [judging.key for judging in more.all_judgings()]
    assert len(before) == 3
    assert len(set(after)) == 6
    assert set(before) < set(after)
    assert more.set.key == cell.set.key


def test_a_key_is_made_anew_for_a_changed_plan() -> None:
    """It is kept on the plan, and must not travel with a copy."""
    assert SET.key != replace(SET, seed=5).key
    assert SET.stem == replace(SET, seed=5).stem
    assert SET.stem != replace(SET, ipc=5).stem


@pytest.mark.parametrize(
    ("kind", "one", "other"),
    [
        ("spaces", ("glad", {"layer": 4}), ("layered", {"first": 4, "last": 4})),
        ("spaces", ("w-plus", {}), ("layered", {})),
        ("losses", ("dsa", {}), ("dc", {"augment": "dsa"})),
        ("losses", ("dm", {}), ("dm", {"batch_real": 256})),
    ],
)
def test_two_ways_of_writing_a_plugin_are_one(kind: str, one: tuple[str, Any], other: tuple[str, Any]) -> None:
    first, second = PluginRef.resolve(kind, *one), PluginRef.resolve(kind, *other)
    role = {"spaces": "space", "losses": "loss"}[kind]
    assert first.what == second.what
    assert first.resolved == second.resolved
    assert replace(SET, **{role: first}).key == replace(SET, **{role: second}).key
    changed_too = PluginRef.resolve(kind, other[0], other[1] | ({"samples": 7} if kind == "spaces" else {"batch_real": 7}))
    assert replace(SET, **{role: changed_too}).key != replace(SET, **{role: first}).key


def test_streams_of_judging_are_named_by_what_the_network_is() -> None:
    assert JUDGING.stream != replace(JUDGING, draw=1).stream  # two seeds draw other initialisations
    assert JUDGING.stream != replace(JUDGING, network=ref("architectures", "convnet", width=5)).stream
    same = (
        replace(JUDGING, network=replace(NET, label="ours")),
        replace(JUDGING, network=replace(NET, what=NET.what | {"lr": 0.5, "numerics": 2, "software": ["timm 9"]})),
        replace(JUDGING, numbers=replace(NUMBERS, lr=0.5), test_hash="00", iterate=3, threads=2, protocol="mine-1"),
    )
    assert {judging.stream for judging in same} == {JUDGING.stream}
    assert same[1].key != JUDGING.key


def test_differences_name_what_is_not_as_it_was() -> None:
    """Under one key: a default that was changed without raising numerics."""
    assert SET.loss
    assert differences(SET, replace(SET)) == []
    now = replace(SET, loss=replace(SET.loss, resolved={"batch_real": 4, "augment": "none"}))
    assert differences(SET, now) == []  # a new setting
    assert differences(SET, now, new_too=True) == ["dm.augment (None then, 'none' now)"]
    assert differences(now, replace(SET, steps=7)) == ["dm.augment ('none' then, None now)", "steps (1000 then, 7 now)"]
    assert differences(JUDGING, replace(JUDGING, protocol="mine-1", dataset=ref("datasets", "other"))) == []


def test_what_nothing_reads_does_not_count() -> None:
    idle: dict[str, Any] = {"proxy_layer": "layer3", "proxy_gradient": "elementwise"}
    idle |= {"proxy": NET, "proxy_epochs": 3, "rank_epochs": 3, "rank_repeats": 3, "ranking": NUMBERS, "rank_every": 3}
    plain = replace(SET, generator=None, proxy=None, momentum=0.5, optimizer="adam")
    more = replace(plain, **idle, momentum=0.9, synthetic_mean=(0.5,), synthetic_std=(0.5,))
    assert more.key != plain.key
    assert more.without_idle_settings() == plain
    read = replace(more, rank_steps="feature-distance", rank_stages="validation", optimizer="sgd", generator=SET.generator)
    assert read.without_idle_settings() == read
    pretrained = replace(read, proxy=ref("proxies", "resnet18-imagenet"))
    assert pretrained.without_idle_settings() == replace(pretrained, proxy_epochs=10)  # it is not trained here


def test_the_fields_of_an_object_are_those_that_differ_from_their_defaults() -> None:
    loss = DistributionMatching(batch_real=8)
    assert fields_of(loss, all_of_them=False) == {"batch_real": 8}
    assert fields_of(loss)["augment"] == DistributionMatching().augment
    assert api.PLUGIN_TYPES.keys() > set(KINDS)
