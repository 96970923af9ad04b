"""Suites that stand on another, and variants of a cell: what is taken over, what is refused, and what is stored."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import pytest
from test_grid import GOOD, faults, hash_of, load

from ddbench.cli import main
from ddbench.errors import ConfigError
from ddbench.suite import bases
from ddbench.suite import load as grid

VARIANTS = """
[[variant]]
where = { loss = "dm" }
set = { steps = 8 }
[[variant]]
where = { loss = "dm", space = "pixel" }
set = { steps = 8, momentum = 0.25 }
[[variant]]
where = { space = "glad" }
set = { total_steps = 9, rank_steps = "loss" }
"""


def test_a_suite_takes_over_what_it_does_not_say() -> None:
    base = {
        "losses": ["dm"], "distill": {"total_steps": 5, "rates": {"pixels": 1.0}}, "generator": {"name": "a", "weights": "b"},
        "reduced": {"seeds": [0], "distill": {"steps": 1, "rank_epochs": 2}},
    }  # fmt: skip
    own = {
        "losses": ["dsa"], "distill": {"steps": 3}, "generator": {"name": "c"}, "name": "mine",
        "reduced": {"ipc": [1], "distill": {"total_steps": 4}},
    }  # fmt: skip
    assert bases.on_top(base, own) == {
        "losses": ["dsa"], "distill": {"steps": 3, "rates": {"pixels": 1.0}}, "generator": {"name": "c"}, "name": "mine",
        "reduced": {"seeds": [0], "ipc": [1], "distill": {"total_steps": 4, "rank_epochs": 2}},
    }  # fmt: skip


def test_what_is_stored_says_all_of_it(tmp_path: Path) -> None:
    """The text alone, anywhere, gives the same cells; its base may change after that."""
    (tmp_path / "base.toml").write_text(GOOD)
    (tmp_path / "folder").mkdir()
    own = tmp_path / "folder" / "mine.toml"
    own.write_text('# mine\nbase = "../base.toml"\nname = "mine"\nseeds = [5]\n[distill]\nmomentum = 0.25\n')
    suite = grid.load(str(own), hash_of, None)
    assert suite.name == "mine"
    assert {cell.set.seed for cell in suite.cells if not cell.set.everything} == {5}
    assert {cell.set.momentum for cell in suite.cells if cell.set.loss} == {0.25}
    assert "base" not in tomllib.loads(suite.text)
    copied = load(tmp_path, suite.text)
    assert [cell.set.key for cell in copied.cells] == [cell.set.key for cell in suite.cells]
    assert grid.load(str(tmp_path / "base.toml"), hash_of, None).text == GOOD  # a suite on its own stays as it was written


def test_a_base_may_be_one_that_is_shipped(tmp_path: Path) -> None:
    suite = load(
        tmp_path, 'base = "quickstart"\nname = "mine"\nlosses = ["dm"]\nspaces = ["pixel"]\nseeds = [3]\noverride = []\n'
    )
    assert [cell.name for cell in suite.cells if cell.set.loss] == ["dm(batch_real=32) / pixel, mnist-5k, ipc 1, seed 3"]


@pytest.mark.parametrize(
    ("texts", "told"),
    [
        ({"a": "base = 3"}, "suite '{a}': 'base' must be the name of a suite, got 3."),
        ({"a": 'base = "quikstart"'}, "It is neither a file nor one of: "),
        ({"a": 'base = "a.toml"'}, "suite '{a}' stands on itself, or on more than 8 others: {a} -> {a}. Mend its 'base'."),
        ({"a": 'base = "b.toml"', "b": 'base = "a.toml"'}, "stands on itself, or on more than 8 others: {a} -> {b} -> {a}."),
        ({"a": 'base = "b.toml"', "b": "x = ["}, "suite '{b}' is not valid TOML: "),
        ({f"{chr(97 + i)}": f'base = "{chr(98 + i)}.toml"' for i in range(10)}, "stands on itself, or on more than 8 others: "),
    ],
    ids=["no name", "unknown", "itself", "in a ring", "no TOML", "too many"],
)
def test_a_base_that_will_not_do_is_a_sentence(
    texts: dict[str, str], told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, text in texts.items():
        (tmp_path / f"{name}.toml").write_text(text)
    paths = {name: str(tmp_path / f"{name}.toml") for name in texts}
    with pytest.raises(ConfigError) as caught:
        bases.whole(paths["a"])
    assert told.format(**paths) in str(caught.value)
    assert main(["plan", paths["a"]]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


# Steps of each stage


def test_each_stage_has_its_own_steps(tmp_path: Path) -> None:
    text = GOOD.replace("steps = 7", "stage_steps = [3, 1, 2]").replace('["pixel", { name = "glad", layer = 2 }]', '["hpd"]')
    plan = next(cell.set for cell in load(tmp_path, text).cells if cell.set.loss)
    assert [plan.stage_start(stage) for stage in range(4)] == [0, 3, 4, 6]
    usual = next(cell.set for cell in load(tmp_path, text.replace("[3, 1, 2]", "[2, 2, 2]")).cells if cell.set.loss)
    assert plan.key != usual.key
    assert plan.steps == usual.steps  # which says nothing then


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ("stage_steps = [3, 1]", "'stage_steps' gives the steps of 2 stages, and there are 3: give as many."),
        ("stage_steps = [3, 1, 0]", "'stage_steps' must give every stage at least 1, got [3, 1, 0]."),
        ("stage_steps = [3, 1, 1.5]", "'stage_steps' must be a list of whole numbers, one for each stage, got [3, 1, 1.5]."),
        ("stage_steps = []", "'stage_steps' must be a list of whole numbers, one for each stage, got []."),
        ("stage_steps = 3", "'stage_steps' must be a list, got 3."),
        ("steps = 3\nstage_steps = [3, 1, 2]", "[distill] has 'steps' and 'stage_steps': give one of 'steps', of every stage, "),
    ],
)
def test_steps_of_stages_that_do_not_fit_are_a_sentence(given: str, told: str, tmp_path: Path) -> None:
    text = GOOD.replace("steps = 7", given).replace('["pixel", { name = "glad", layer = 2 }]', '["hpd"]')
    assert any(told in sentence for sentence in faults(tmp_path, text))


# Variants


def test_each_variant_that_fits_is_a_cell_of_its_own(tmp_path: Path) -> None:
    found: dict[tuple[str, str], list[tuple[int, float, Any]]] = {}
    for cell in load(tmp_path, GOOD + VARIANTS).cells:
        plan = cell.set
        if plan.loss and plan.space and (plan.ipc, plan.seed) == (1, 0):
            found.setdefault((plan.loss.name, plan.space.name), []).append((plan.steps, plan.momentum, plan.rank_steps))
    (usual,) = found["dsa", "pixel"]  # no variant fits: the cell as it is without
    steps, momentum, _ = usual
    assert steps == 7
    assert found["dm", "pixel"] == [(8, momentum, "last"), (8, 0.25, "last")]
    assert found["dm", "glad"] == [(8, momentum, "last"), (9, momentum, "loss")]
    assert found["dsa", "glad"] == [(9, momentum, "loss")]


def test_variants_stand_above_overrides(tmp_path: Path) -> None:
    override = '[[override]]\nwhere = { loss = "dm" }\nset = { steps = 4, momentum = 0.125 }\n'
    text = GOOD + override + "[[variant]]\nset = { steps = 6 }\n"
    plans = [cell.set for cell in load(tmp_path, text).cells if cell.set.loss]
    assert {(plan.loss.name, plan.steps, plan.momentum == 0.125) for plan in plans if plan.loss} == {
        ("dm", 6, True),
        ("dsa", 6, False),
    }


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ('[[variant]]\nwhere = { loss = "mtt" }\nset = { steps = 1 }\n', "variant 1 (where = {'loss': 'mtt'}) matches no cell: "),
        ("[[variant]]\nset = { stesp = 1 }\n", "variant 1 has no key 'stesp'. Did you mean 'steps'?"),
        ("[[variant]]\nwhere = {}\n", "variant 1 sets nothing: "),
        ("[[variant]]\nset = { steps = 3 }\n[[variant]]\nset = { steps = 3 }\n", "subset, baseline and variant once."),
        ("[[variant]]\nset = { rank_every = 0, rank_steps = 'loss' }\n", "'rank_every' must be at least 1, got 0."),
    ],
    ids=["of nothing", "unknown", "empty", "twice", "out of range"],
)
def test_a_variant_that_will_not_do_is_a_sentence(text: str, told: str, tmp_path: Path) -> None:
    assert any(told in sentence for sentence in faults(tmp_path, GOOD + text))


def test_a_plan_tells_variants_apart(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    Path("suite.toml").write_text(GOOD.replace("[0, 1]", "[0]").replace("[1, 10]", "[1]") + VARIANTS)
    assert main(["plan", "suite.toml", "--cells"]) == 0
    out = capsys.readouterr().out
    for name in ("dm / pixel [momentum=0.25]", "dm / glad(layer=2) / cvae [rank_steps=last, steps=8]", "| dsa / pixel   "):
        assert name in out
