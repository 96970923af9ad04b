"""The commands that a board prints run: each takes the sets and judgements of its row, and no others."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest
from image_trees import class_tree
from stores import judgement, set_contents, set_record

from ddbench.cli import main
from ddbench.cli.common import load_suite
from ddbench.results.store import Store

SUITE = """
schema = 1
name = "mine"
protocol = "smoke-1"
seeds = [0, 1]
subsets = ["image-folder/pets", "mnist-5k"]
losses = ["dm", {{ name = "dm", batch_real = {batch} }}]
spaces = ["pixel"]
backbone = {{ name = "convnet", width = 4, depth = 2 }}
networks = [{{ name = "timm/resnet10t", min_size = 28, lr = 0.01 }}]
baselines = ["random"]
[distill]
steps = {steps}
"""
Capture = pytest.CaptureFixture[str]


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of a name that shells split, with data and a store of made-up results of two texts of one suite."""
    home = tmp_path / "mein größter Ordner"
    class_tree(home / "data" / "pets", ("cat", "dog"), {"train": 4, "val": 1})
    monkeypatch.setenv("DDBENCH_DATA", str(home / "data"))
    monkeypatch.setenv("DDBENCH_CACHE", str(tmp_path / "decoded"))
    monkeypatch.chdir(home)
    store = Store(home / "mein store")
    for steps in (2, 3):
        text = SUITE.format(steps=steps, batch=steps + 6)
        (home / "mine.toml").write_text(text)
        loaded = load_suite("mine.toml", None)
        store.add_suite(loaded.suite.name, text)
        for cell in loaded.planned.cells:
            if not store.has_set(cell.set.key):
                store.publish_set(cell.set, set_record(cell.set, suite="mine"), set_contents(cell.set))
            for judging in cell.judgings:
                store.publish_judgement(judgement(cell.set, judging, [0.5] * cell.repeats, suite="mine"))
    return home


def reproduced(page: str) -> list[tuple[str, set[str]]]:
    """The commands, and the short keys of the sets behind each."""
    lines = re.findall(r"^- .*?: (`.*`); plans (.*)$", page, re.M)
    rows = ((re.findall(r"`(.*?)`", told), set(re.findall(r"\[([0-9a-f]{16})\]", plans))) for told, plans in lines)
    return [(command, keys) for commands, keys in rows for command in commands]


@pytest.mark.slow
def test_every_command_of_a_board_takes_its_row_alone(home: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    assert main(["leaderboard", "mein store"]) == 0
    board = Path(capsys.readouterr().out.strip())
    found = reproduced(board.read_text())
    assert len(found) == 2 * (2 * 2 + 1)  # by data set: two losses of each text, and what is random, which both texts have
    monkeypatch.chdir(board.parent)
    for command, keys in found:
        program, verb, *words = shlex.split(command)
        assert (program, verb) == ("ddbench", "run")
        assert main(["plan", *words, "--store", str(home / "mein store"), "--json"]) == 0, command
        cells = json.loads(capsys.readouterr().out)["cells"]
        assert {cell["key"] for cell in cells} == keys, command
        assert {(cell["set"], cell["judged"]) for cell in cells} == {("done", "1 of 1")}


@pytest.mark.slow
def test_commands_of_messages_are_quoted(home: Path, capsys: Capture) -> None:
    store = home / "neuer store"
    assert main(["leaderboard", str(store)]) == 2
    assert shlex.split(capsys.readouterr().err.partition("with: ")[2]) == ["ddbench", "run", "SUITE", "--store", str(store)]
    (home / "meine suite.toml").write_text(SUITE.format(steps=4, batch=9))
    assert main(["plan", "meine suite.toml", "--only", "subset=image-folder/pets,loss=dm(batch_real=9)"]) == 0
    shown = capsys.readouterr().out
    said = shlex.split(re.search("with: (ddbench run .*)", shown)[1])
    assert said == ["ddbench", "run", "meine suite.toml", "--only", "subset=image-folder/pets,loss=dm(batch_real=9)"]
    assert main(["plan", *said[2:], "--json"]) == 0
    assert {cell["method"] for cell in json.loads(capsys.readouterr().out)["cells"]} == {"dm(batch_real=9) / pixel"}
