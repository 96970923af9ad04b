"""The protocols are the published numbers, and the verb that shows them."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from ddbench import protocols
from ddbench.api import Recipe
from ddbench.cli import main
from ddbench.compute.train import rate_at
from ddbench.errors import ConfigError


def test_glad_1_is_the_published_recipe():
    glad = protocols.load("glad-1")
    assert (glad.epochs, glad.warmup_epochs, glad.batch, glad.repeats, glad.schedule) == (1000, 500, 256, 5, "glad")
    assert (glad.momentum, glad.weight_decay, glad.ema, glad.augment) == (0.9, 5e-4, 0.995, "siamese")
    assert glad.recipe(0.001) == Recipe(1000, 0.001, 256, 0.9, 5e-4, 500, 0.995, True, "sgd", "glad")
    assert glad.recipe(0.001, learned=0.3).lr == 0.001


def test_lineage_1_is_the_recipe_of_dc_dm_and_mtt():
    lineage = protocols.load("lineage-1")
    recipe = lineage.recipe(0.001)
    assert recipe == Recipe(1001, 0.01, 256, 0.9, 5e-4, 0, 0.0, True, "sgd", "step")
    assert [rate_at(epoch, recipe) for epoch in (0, 500, 501, 1000)] == [0.01, 0.01, 0.001, 0.001]
    assert lineage.recipe(0.001, learned=0.3).lr == 0.3
    assert lineage.recipe(0.001, full_data=True, learned=0.3).lr == 0.01
    assert lineage.repeats == 20
    for rate in (0.0, -0.01, math.nan):
        with pytest.raises(ConfigError, match="at which no network can be trained"):
            lineage.recipe(0.001, learned=rate)


def test_sre2l_1_is_the_recipe_for_tiny_imagenet():
    protocol = protocols.load("sre2l-1")
    recipe, teacher = protocol.recipe(0.001), protocol.teacher
    assert recipe == Recipe(100, 0.2, 256, 0.9, 1e-4, 5, 0.0, True, "sgd", "cosine")
    assert [rate_at(epoch, recipe) / 0.2 for epoch in (0, 5)] == pytest.approx([0.01, 1.0])
    assert rate_at(52, recipe) / 0.2 == pytest.approx(0.5 * (1 + math.cos(math.pi * 47 / 95)))
    assert teacher is not None
    assert (teacher.network, teacher.temperature) == ("resnet18-bn", 20.0)
    assert teacher.recipe() == Recipe(50, 0.2, 256, 0.9, 1e-4, 5, 0.0, True, "sgd", "cosine")


def test_what_shortens_glad_1_keeps_its_shape():
    for name in ("glad-1", "quick-1", "smoke-1"):
        protocol = protocols.load(name)
        recipe, full = protocol.recipe(0.5), protocol.recipe(0.5, full_data=True)
        assert recipe.lr == full.lr == 0.5 * protocol.lr_factor
        assert (recipe.epochs, full.epochs) == (protocol.epochs, protocol.full_data_epochs)
        assert (recipe.warmup_epochs, full.warmup_epochs) == (protocol.epochs // 2, protocol.full_data_epochs // 2)
        assert (recipe.ema, full.ema) == (0.995, 0.0)
        assert (recipe.batch, recipe.momentum, recipe.weight_decay) == (full.batch, full.momentum, full.weight_decay)


@pytest.mark.parametrize("name", protocols.names())
def test_every_protocol_shortens(name):
    protocol = protocols.load(name)
    for epochs in (1, 2, 7, protocol.epochs):
        recipe = protocol.shortened(epochs).recipe(0.1)
        assert recipe.epochs == epochs
        assert all(math.isfinite(rate_at(epoch, recipe)) for epoch in range(epochs))
    assert protocol.shortened(protocol.epochs) == protocol


def test_upstream_habits_are_not_ranked_and_nothing_else_is_unranked():
    habits = {name: protocols.load(name) for name in protocols.names() if not protocols.load(name).ranked}
    assert habits.keys() == {"glad-1-best-of-test", "quick-1-best-of-test", "glad-1-unnormalised", "glad-1-svhn-mean"}
    for name, habit in habits.items():
        base = protocols.load("quick-1" if name.startswith("quick") else "glad-1")
        changed = {key for key, value in habit.to_json().items() if value != base.to_json()[key]}
        wrong = ({"snapshots"}, {"synthetic_mean"}, {"synthetic_mean", "synthetic_std"})
        assert changed - {"id", "description", "ranked"} in wrong


def test_an_unknown_protocol_names_the_nearest():
    with pytest.raises(ConfigError, match=r"^unknown protocol 'glad1'\. Did you mean 'glad-1'\? Known: .*quick-1"):
        protocols.load("glad1")


def test_the_verb_lists_them(capsys):
    assert main(["protocols", "--json"]) == 0
    assert [entry["id"] for entry in json.loads(capsys.readouterr().out)] == protocols.names()
    assert main(["protocols"]) == 0
    assert all(name in capsys.readouterr().out for name in protocols.names()[:1])


def test_the_verb_says_what_differs(capsys):
    assert main(["protocols", "diff", "glad-1", "quick-1", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["epochs"] == [1000, protocols.load("quick-1").epochs]
    assert "momentum" not in found
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


@pytest.mark.parametrize("first", protocols.names())
@pytest.mark.parametrize("second", protocols.names())
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
    assert (rows["teacher.network"]["glad-1"], rows["teacher.network"]["sre2l-1"]) == ("none", "resnet18-bn")
    assert rows["teacher.temperature"]["sre2l-1"] == "20.0"
    assert not {"id", "description", "teacher", "momentum"} & rows.keys()
    assert text.startswith("glad-1: GLaD's evaluation recipe")
    assert main(["protocols", "diff", "glad-1", "glad-1-svhn-mean"]) == 0
    rows = table_of(capsys.readouterr().out)
    assert (rows["synthetic_mean"]["glad-1"], rows["synthetic_mean"]["glad-1-svhn-mean"]) == ("none", "0.4377, 0.4438, 0.4728")
    assert (rows["ranked"]["glad-1"], rows["ranked"]["glad-1-svhn-mean"]) == ("yes", "no")
    assert main(["protocols", "diff", "glad-1", "sre2l-1", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["teacher"][1]["network"] == "resnet18-bn"


def test_the_docs_restate_the_numbers():
    text = (Path(__file__).parents[2] / "docs" / "protocols.md").read_text()
    assert [name for name in protocols.names() if name not in text] == []
    head, _, *lines = [line.strip("|").split("|") for line in text.split("\n\n")[2].splitlines()]
    table = {line[0].strip(): dict(zip(map(str.strip, head[1:]), map(str.strip, line[1:]), strict=True)) for line in lines}
    for name, shown in table["epochs"].items():
        protocol = protocols.load(name)
        assert shown == f"{protocol.epochs:,}"
        assert table["repeats (random initialisations) of each"][name] == str(protocol.repeats)
        full = f" ({protocol.full_data_warmup_epochs})" if protocol.full_data_warmup_epochs else ""
        assert table["epochs of the row full-data (of which warm-up)"][name] == f"{protocol.full_data_epochs}{full}"
        decay = f"{protocol.weight_decay:.0e}".replace("e-0", "e-")
        assert table["SGD momentum / weight decay (on all parameters)"][name] == f"{protocol.momentum} / {decay}"
        assert table["weights judged"][name] == ("average" if protocol.ema else "last")
        assert table["labels"][name] == ("a teacher's" if protocol.teacher else "the set's")
