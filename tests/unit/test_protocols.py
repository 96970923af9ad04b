"""The protocols are the published numbers, and the verb that shows them."""

from __future__ import annotations

import json

import pytest

from ddbench import protocols
from ddbench.cli import main
from ddbench.errors import ConfigError


def test_glad_1_is_the_published_recipe():
    glad = protocols.load("glad-1")
    assert (glad.epochs, glad.warmup_epochs, glad.batch, glad.repeats) == (1000, 500, 256, 5)
    assert (glad.momentum, glad.weight_decay, glad.ema, glad.augment, glad.lr_factor) == (0.9, 5e-4, 0.995, True, 1.0)


def test_every_protocol_keeps_the_shape_of_the_recipe():
    for name in protocols.names():
        protocol = protocols.load(name)
        recipe, full = protocol.recipe(0.5), protocol.recipe(0.5, full_data=True)
        assert recipe.lr == full.lr == 0.5 * protocol.lr_factor
        assert (recipe.epochs, full.epochs) == (protocol.epochs, protocol.full_data_epochs)
        assert (recipe.warmup_epochs, full.warmup_epochs) == (protocol.epochs // 2, protocol.full_data_epochs // 2)
        assert (recipe.ema, full.ema) == (0.995, 0.0)
        assert (recipe.batch, recipe.momentum, recipe.weight_decay) == (full.batch, full.momentum, full.weight_decay)


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
