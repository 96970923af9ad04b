"""The protocols are the published numbers, come from plugins, and the verb that shows them."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
from msgspec.structs import replace

from ddbench import protocols, registry
from ddbench.api import Recipe
from ddbench.cli import main
from ddbench.compute.train import rate_at
from ddbench.errors import ConfigError, PluginError, UntrainableError
from ddbench.protocols import Making, Numbers, Teacher

Install = Callable[[str], None]
OURS = (
    "glad-1", "glad-1-best-of-test", "glad-1-svhn-mean", "glad-1-unnormalised", "lineage-1", "quick-1", "quick-1-best-of-test",
    "smoke-1", "sre2l-1", "gift-1",
)  # fmt: skip
GLAD = Numbers(
    epochs=1000, optimizer="sgd", schedule="glad", warmup_epochs=500, lr=0.0, lr_factor=1.0, learned_rate=False, batch=256,
    momentum=0.9, weight_decay=5e-4, ema=0.995, augment="siamese", test_batch=128, channels_last=False, tf32=False,
)  # fmt: skip
QUICK = replace(GLAD, epochs=300, warmup_epochs=150, lr_factor=10.0)
SRE2L_TEACHER = Teacher(
    network="resnet18-bn", epochs=50, warmup_epochs=5, lr=0.2, batch=256, momentum=0.9, weight_decay=1e-4, temperature=20.0
)
JUDGING = {
    "glad-1": GLAD, "glad-1-best-of-test": GLAD, "glad-1-svhn-mean": GLAD, "glad-1-unnormalised": GLAD,
    "lineage-1": replace(GLAD, epochs=1001, schedule="step", warmup_epochs=0, lr=0.01, learned_rate=True, ema=0.0),
    "quick-1": QUICK, "quick-1-best-of-test": QUICK,
    "smoke-1": replace(GLAD, epochs=2, warmup_epochs=1, lr_factor=10.0, test_batch=500),
    "sre2l-1": replace(
        GLAD, epochs=100, schedule="cosine", warmup_epochs=5, lr=0.2, weight_decay=1e-4, ema=0.0, augment="crop-flip",
        teacher=SRE2L_TEACHER,
    ),
}  # fmt: skip
JUDGING["gift-1"] = replace(
    JUDGING["sre2l-1"], criterion="gift", optimizer="adamw", lr=0.001, teacher=replace(SRE2L_TEACHER, temperature=1.0)
)
FULL_DATA = {"lineage-1": (101, 0), "quick-1": (16, 8), "quick-1-best-of-test": (16, 8), "smoke-1": (2, 1), "sre2l-1": (100, 5)}
FULL_DATA["gift-1"] = FULL_DATA["sre2l-1"]
REPEATS = {"lineage-1": 20, "quick-1": 2, "quick-1-best-of-test": 2, "smoke-1": 1, "sre2l-1": 3, "gift-1": 3}
NETWORKS = {"lineage-1": ("convnet",), "sre2l-1": ("resnet18-bn",), "gift-1": ("resnet18-bn",)}
MAKING = Making(held_out=0.1, iterates=0, synthetic_mean=(), synthetic_std=())
SETS = {
    "glad-1-best-of-test": replace(MAKING, iterates=10),
    "quick-1-best-of-test": replace(MAKING, iterates=5),
    "glad-1-svhn-mean": replace(MAKING, synthetic_mean=(0.4377, 0.4438, 0.4728), imagenet_only=True),
    "glad-1-unnormalised": replace(MAKING, synthetic_mean=(0.0,), synthetic_std=(1.0,), imagenet_only=True),
}


@pytest.mark.parametrize("id", OURS)
def test_the_texts_hold_the_numbers_they_held(id):
    """A protocol never changes: another number makes another id."""
    protocol = protocols.load(id)
    assert protocol.id == id
    assert protocol.judging == JUDGING[id]
    assert (protocol.full_data.epochs, protocol.full_data.warmup_epochs) == FULL_DATA.get(id, (100, 50))
    assert protocol.full_data.ema == 0.0
    assert protocol.repeats == REPEATS.get(id, 5)
    assert protocol.networks == NETWORKS.get(id, ("convnet", "alexnet", "vgg11", "resnet18", "vit"))
    assert protocol.set == SETS.get(id, MAKING)
    assert protocol.ranked is (id not in SETS)


def test_ours_are_all_there():
    shipped = {id for id in protocols.names() if registry.protocols.origin(id).distribution == "ddbench"}
    assert shipped == set(OURS)
    folder = Path(protocols.__file__).parent
    assert {path.stem for path in folder.glob("*.toml")} == set(OURS)


def test_glad_1_is_the_published_recipe():
    glad = protocols.load("glad-1").judging
    assert glad.recipe(0.001) == Recipe(1000, 0.001, 256, 0.9, 5e-4, 500, 0.995, True, "sgd", "glad")
    assert glad.recipe(0.001, learned=0.3).lr == 0.001


def test_lineage_1_is_the_recipe_of_dc_dm_and_mtt():
    lineage = protocols.load("lineage-1")
    recipe = lineage.judging.recipe(0.001)
    assert recipe == Recipe(1001, 0.01, 256, 0.9, 5e-4, 0, 0.0, True, "sgd", "step")
    assert [rate_at(epoch, recipe) for epoch in (0, 500, 501, 1000)] == [0.01, 0.01, 0.001, 0.001]
    assert lineage.judging.recipe(0.001, learned=0.3).lr == 0.3
    assert lineage.numbers(everything=True).recipe(0.001, learned=0.3).lr == 0.01
    for rate in (0.0, -0.01, math.nan):
        with pytest.raises(UntrainableError, match="at which no network can be trained"):
            lineage.judging.recipe(0.001, learned=rate)


def test_sre2l_1_is_the_recipe_for_tiny_imagenet():
    numbers = protocols.load("sre2l-1").judging
    recipe = numbers.recipe(0.001)
    assert recipe == Recipe(100, 0.2, 256, 0.9, 1e-4, 5, 0.0, True, "sgd", "cosine")
    assert [rate_at(epoch, recipe) / 0.2 for epoch in (0, 5)] == pytest.approx([0.01, 1.0])
    assert rate_at(52, recipe) / 0.2 == pytest.approx(0.5 * (1 + math.cos(math.pi * 47 / 95)))
    assert numbers.teacher is not None
    assert numbers.teacher.recipe() == Recipe(50, 0.2, 256, 0.9, 1e-4, 5, 0.0, True, "sgd", "cosine")


def test_gift_is_a_criterion_that_changes_no_other_key_and_has_no_temperature():
    gift, sre2l = protocols.load("gift-1").judging, protocols.load("sre2l-1").judging
    assert gift.recipe(0.1) == replace(sre2l, optimizer="adamw", lr=0.001).recipe(0.1)
    assert all(protocols.load(id).judging.criterion == "entropy" for id in OURS if id != "gift-1")
    assert gift.own_labels() == replace(gift, teacher=None, criterion="entropy")
    with pytest.raises(PluginError, match=r"criterion 'gift' has no temperature: the teacher's must be 1, got 20\.0"):
        protocols.read('base = "sre2l-1"\nid = "x"\n[judging]\ncriterion = "gift"', "x")


def test_what_shortens_glad_1_keeps_its_shape():
    for name in ("glad-1", "quick-1", "smoke-1"):
        protocol = protocols.load(name)
        recipe, full = protocol.judging.recipe(0.5), protocol.numbers(everything=True).recipe(0.5)
        assert recipe.lr == full.lr == 0.5 * protocol.judging.lr_factor
        assert (recipe.epochs, full.epochs) == (protocol.judging.epochs, protocol.full_data.epochs)
        assert (recipe.warmup_epochs, full.warmup_epochs) == (protocol.judging.epochs // 2, protocol.full_data.epochs // 2)
        assert (recipe.ema, full.ema) == (0.995, 0.0)
        assert (recipe.batch, recipe.momentum, recipe.weight_decay) == (full.batch, full.momentum, full.weight_decay)


@pytest.mark.parametrize("name", OURS)
def test_every_protocol_shortens(name):
    numbers = protocols.load(name).judging
    for epochs in (1, 2, 7, numbers.epochs):
        recipe = numbers.shortened(epochs).recipe(0.1)
        assert recipe.epochs == epochs
        assert all(math.isfinite(rate_at(epoch, recipe)) for epoch in range(epochs))
    assert numbers.shortened(numbers.epochs) == numbers


def test_upstream_habits_are_not_ranked_and_nothing_else_is_unranked():
    habits = {name: protocols.load(name) for name in OURS if not protocols.load(name).ranked}
    assert habits.keys() == {"glad-1-best-of-test", "quick-1-best-of-test", "glad-1-unnormalised", "glad-1-svhn-mean"}
    for name, habit in habits.items():
        base = protocols.load("quick-1" if name.startswith("quick") else "glad-1")
        assert {part for part, value in habit.to_json().items() if value != base.to_json()[part]} == {
            "id", "description", "ranked", "set",
        }  # fmt: skip
        changed = {key for key, value in msgspec.to_builtins(habit.set).items() if value != msgspec.to_builtins(base.set)[key]}
        constants = {"synthetic_mean", "imagenet_only"}
        assert changed in ({"iterates"}, constants, constants | {"synthetic_std"})


# ---------------------------------------------------------------- protocols of other distributions


@pytest.fixture
def install(tmp_path, monkeypatch) -> Install:
    """Give a made-up distribution a protocol `mine-1` with a text."""
    info = tmp_path / "protocol_of_tests-1.0.dist-info"
    info.mkdir()
    (info / "entry_points.txt").write_text("[ddbench.protocols]\nmine-1 = protocol_of_tests:mine\n")
    module = "from pathlib import Path\nfrom ddbench.api import ProtocolText\ndef mine():\n"
    module += "    return ProtocolText(Path(__file__).with_suffix('.toml').read_text())\n"
    (tmp_path / "protocol_of_tests.py").write_text(module)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "protocol_of_tests", raising=False)
    return lambda text: (tmp_path / "protocol_of_tests.toml").write_text(text) and None


MINE = """
base = "lineage-1"
id = "mine-1"
description = "ours"
repeats = 7

[judging]
epochs = 50

[set]
held_out = 0.0
"""


def test_a_protocol_of_another_distribution_is_found(install, capsys):
    install(MINE)
    assert "mine-1" in protocols.names()
    mine, lineage = protocols.load("mine-1"), protocols.load("lineage-1")
    assert (mine.repeats, mine.description, mine.set.held_out) == (7, "ours", 0.0)
    assert mine.judging == replace(lineage.judging, epochs=50)
    assert (mine.full_data, mine.networks, mine.set.iterates) == (lineage.full_data, lineage.networks, 0)
    assert main(["protocols", "diff", "lineage-1", "mine-1", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["judging.epochs"] == [1001, 50]


DAMAGED = {
    "no TOML": ("a = = 1", "it is not valid TOML ("),
    "deep": ("a = " + "[" * 5000, "it is not valid TOML ("),
    "long": ("#" * (protocols.MAX_CHARS + 1), "it must be a text of at most 65536 characters."),
    "another id": (MINE.replace('"mine-1"', '"mine-2"'), "it calls itself 'mine-2'."),
    "itself": (MINE.replace('"lineage-1"', '"mine-1"'), "its base 'mine-1' is no other protocol."),
    "no base": (MINE.replace('"lineage-1"', "3"), "its base 3 is no other protocol."),
    "not whole": (MINE.replace('base = "lineage-1"\n', ""), "Object missing required field "),
    "a field": (MINE.replace("epochs = 50", "epohcs = 50"), "Object contains unknown field `epohcs`"),
    "a type": (MINE.replace("epochs = 50", "epochs = 'many'"), "Expected `int`, got `str` - at `$.judging.epochs`."),
    "no table": (MINE.replace("[judging]\nepochs = 50", "judging = 3"), "Expected `object`, got `int` - at `$.judging`."),
    "a choice": (MINE.replace("epochs = 50", "schedule = 'fast'"), "Invalid enum value 'fast' - at `$.judging.schedule`."),
    "epochs": (MINE.replace("epochs = 50", "epochs = 0"), "a recipe needs at least 1 epoch and batches of at least 1, got 0 "),
    "warm-up": (MINE.replace("epochs = 50", "warmup_epochs = 2000"), "warmup_epochs must lie in 0..1001 (the epochs), got 2000."),
    "of all images": (MINE.replace("[judging]\nepochs = 50", "[full_data]\nepochs = 0"), "a recipe needs at least 1 epoch"),
    "repeats": (MINE.replace("repeats = 7", "repeats = 0"), "repeats and networks must be at least 1"),
    "networks": (MINE.replace("repeats = 7", "networks = []"), "repeats and networks must be at least 1"),
    "held out": (MINE.replace("held_out = 0.0", "held_out = 1.0"), "held_out lie in [0, 1)"),
    "iterates": (MINE.replace("held_out = 0.0", "iterates = -1"), "iterates be at least 0"),
}


@pytest.mark.parametrize(("text", "told"), DAMAGED.values(), ids=DAMAGED)
def test_a_damaged_protocol_is_its_author_s_fault(install, text, told):
    install(text)
    with pytest.raises(PluginError) as caught:
        protocols.load("mine-1")
    said = str(caught.value)
    assert said.startswith("protocol 'mine-1' (protocol_of_tests:mine, from protocol-of-tests) is damaged: ")
    assert told in said
    assert said.endswith(" Reinstall or mend it.")
    assert "\n" not in said
    assert protocols.load("glad-1").judging == GLAD  # others are not


def test_a_base_that_leads_in_a_circle_is_refused(install, tmp_path):
    install(MINE)
    (tmp_path / "protocol_of_tests-1.0.dist-info" / "entry_points.txt").write_text(
        "[ddbench.protocols]\nmine-1 = protocol_of_tests:mine\nmine-2 = protocol_of_tests:other\n"
    )
    registry.protocols.refresh()
    module = tmp_path / "protocol_of_tests.py"
    module.write_text(module.read_text() + 'def other():\n    return ProtocolText(\'base = "mine-1"\\nid = "mine-2"\')\n')
    (tmp_path / "protocol_of_tests.toml").write_text(MINE.replace('"lineage-1"', '"mine-2"'))
    with pytest.raises(PluginError, match=r"its base 'mine-[12]' is no other protocol"):
        protocols.load("mine-1")
    with pytest.raises(PluginError, match=r"its base 'mine-[12]' is no other protocol"):
        protocols.load("mine-2")


def test_an_unknown_base_is_told(install):
    install(MINE.replace('"lineage-1"', '"linage-1"'))
    with pytest.raises((ConfigError, PluginError), match=r"unknown protocol 'linage-1'\. Did you mean 'lineage-1'\?"):
        protocols.load("mine-1")


# ---------------------------------------------------------------- the verb


def test_an_unknown_protocol_names_the_nearest():
    with pytest.raises(ConfigError, match=r"^unknown protocol 'glad1'\. Did you mean 'glad-1'\? Installed: .*quick-1"):
        protocols.load("glad1")


def test_the_verb_lists_them(capsys):
    assert main(["protocols", "--json"]) == 0
    assert [entry["id"] for entry in json.loads(capsys.readouterr().out)] == protocols.names()
    assert main(["protocols"]) == 0
    assert all(name in capsys.readouterr().out for name in protocols.names()[:1])


def test_a_damaged_protocol_is_left_out_of_the_list_and_told(install, capsys):
    install("a = = 1")
    for words in (["protocols"], ["protocols", "--json"]):
        assert main(words) == 0
        out, error = capsys.readouterr()
        assert "glad-1" in out
        assert "mine-1" not in out
        assert error.startswith("ddbench: protocol 'mine-1' (protocol_of_tests:mine, from protocol-of-tests) is damaged: ")
    assert main(["protocols", "diff", "glad-1", "mine-1"]) == 2


def test_the_verb_says_what_differs(capsys):
    assert main(["protocols", "diff", "glad-1", "quick-1", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["judging.epochs"] == [1000, protocols.load("quick-1").judging.epochs]
    assert not any("momentum" in name for name in found)
    assert main(["protocols", "diff", "glad-1", "glad-1"]) == 0
    assert capsys.readouterr().out == "glad-1: nothing differs.\n"


@pytest.mark.parametrize("words", [["diff"], ["diff", "glad-1"], ["show", "glad-1", "quick-1"], ["diff", "glad-1", "x"]])
def test_the_verb_refuses_anything_else(words, capsys):
    assert main(["protocols", *words]) == 2
    assert capsys.readouterr().err.startswith("ddbench: ")


def table_of(text: str) -> dict[str, dict[str, str]]:
    """The lines of the first table by their first cell, then by column."""
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("|")]
    return {line[0]: dict(zip(lines[0], line, strict=True)) for line in lines[2:]}


def test_the_list_says_what_decides_and_fits_a_page(capsys):
    assert main(["protocols"]) == 0
    text = capsys.readouterr().out
    assert max(map(len, text.splitlines())) <= 130
    rows = table_of(text)
    assert list(rows) == protocols.names()
    assert rows["glad-1"] == {
        "id": "glad-1", "epochs": "1000", "schedule": "glad", "repeats": "5",
        "networks": "convnet, alexnet, vgg11, resnet18, vit", "labels": "set", "ranked": "yes",
    }  # fmt: skip
    assert (rows["sre2l-1"]["labels"], rows["sre2l-1"]["schedule"]) == ("teacher", "cosine")
    assert (rows["lineage-1"]["networks"], rows["lineage-1"]["schedule"]) == ("convnet", "step")
    assert {name for name, row in rows.items() if row["ranked"] == "no"} == {
        name for name in protocols.names() if not protocols.load(name).ranked
    }
    unwrapped = " ".join(text.split())
    assert all(f"{name}: {protocols.load(name).description}" in unwrapped for name in protocols.names())


@pytest.mark.parametrize("first", OURS)
@pytest.mark.parametrize("second", OURS)
def test_differences_are_readable(first, second, capsys):
    """No Python: no brackets, no None, no True; what both say of themselves stands above the table, not in it."""
    assert main(["protocols", "diff", first, second]) == 0
    text = capsys.readouterr().out
    assert max(map(len, text.splitlines())) <= 130
    cells = [cell for row in table_of(text).values() for cell in row.values()]
    assert not {character for cell in cells for character in cell} & set("[]{}()'")
    assert not {"None", "True", "False", ""} & set(cells)
    assert all(row[first] != row[second] for row in table_of(text).values())


def test_nested_and_listed_settings_differ_one_by_one(capsys):
    assert main(["protocols", "diff", "glad-1", "sre2l-1"]) == 0
    text = capsys.readouterr().out
    rows = table_of(text)
    assert rows["networks"]["glad-1"] == "convnet, alexnet, vgg11, resnet18, vit"
    assert rows["networks"]["sre2l-1"] == "resnet18-bn"
    teacher = rows["judging.teacher.network"]
    assert (teacher["glad-1"], teacher["sre2l-1"]) == ("none", "resnet18-bn")
    assert rows["judging.teacher.temperature"]["sre2l-1"] == "20.0"
    assert not {"id", "description", "judging", "judging.teacher", "judging.momentum"} & rows.keys()
    assert text.startswith("glad-1: GLaD's evaluation recipe")
    assert main(["protocols", "diff", "glad-1", "glad-1-svhn-mean"]) == 0
    rows = table_of(capsys.readouterr().out)
    mean = rows["set.synthetic_mean"]
    assert (mean["glad-1"], mean["glad-1-svhn-mean"]) == ("none", "0.4377, 0.4438, 0.4728")
    assert (rows["ranked"]["glad-1"], rows["ranked"]["glad-1-svhn-mean"]) == ("yes", "no")
    assert main(["protocols", "diff", "glad-1", "sre2l-1", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["judging.teacher.network"] == [None, "resnet18-bn"]


def test_the_docs_restate_the_numbers():
    text = (Path(__file__).parents[2] / "docs" / "protocols.md").read_text()
    assert [name for name in OURS if name not in text] == []
    head, _, *lines = [line.strip("|").split("|") for line in text.split("\n\n")[2].splitlines()]
    table = {line[0].strip(): dict(zip(map(str.strip, head[1:]), map(str.strip, line[1:]), strict=True)) for line in lines}
    for name, shown in table["epochs"].items():
        protocol = protocols.load(name)
        numbers, full = protocol.judging, protocol.full_data
        assert shown == f"{numbers.epochs:,}"
        assert table["repeats (random initialisations) of each"][name] == str(protocol.repeats)
        warmup = f" ({full.warmup_epochs})" if full.warmup_epochs else ""
        assert table["epochs of the row full-data (of which warm-up)"][name] == f"{full.epochs}{warmup}"
        decay = f"{numbers.weight_decay:.0e}".replace("e-0", "e-")
        assert table["SGD momentum / weight decay (on all parameters)"][name] == f"{numbers.momentum} / {decay}"
        assert table["weights judged"][name] == ("average" if numbers.ema else "last")
        assert table["labels"][name] == ("a teacher's" if numbers.teacher else "the set's")
