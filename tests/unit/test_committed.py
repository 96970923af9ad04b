"""What is committed under leaderboards/ is what the committed records give, and the README quotes it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from ddbench.cli import main
from ddbench.grid.planning import Identities, with_needs
from ddbench.leaderboard.page import write
from ddbench.results.contents import read_contents
from ddbench.results.store import Store
from ddbench.suite.load import load

ROOT = Path(__file__).parents[2]
BOARDS = sorted(path.parent for path in (ROOT / "leaderboards").glob("*/store/store.json"))


def test_there_is_a_reference_run_of_the_quickstart():
    assert ROOT / "leaderboards" / "quickstart" / "store" in BOARDS


@pytest.mark.parametrize("store", BOARDS, ids=lambda path: path.parent.name)
def test_a_committed_board_is_what_its_records_give(store, tmp_path):
    written = write(Store(store, create=False), tmp_path)
    assert not written.unreadable
    made = {path.relative_to(tmp_path): path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    kept = {path: (store.parent / path).read_bytes() for path in made}
    assert made == kept


def test_the_committed_run_passes_its_own_gate(capsys):
    board = ROOT / "leaderboards" / "quickstart"
    assert main(["check", str(board / "store"), "--baseline", str(board / "baseline.json")]) == 0
    assert "dm" in capsys.readouterr().out


def test_the_readme_quotes_the_committed_table():
    page = (ROOT / "leaderboards" / "quickstart" / "leaderboard.md").read_text()
    readme = (ROOT / "README.md").read_text()
    table = re.search(r"### Accuracy \(%\)\n\n(.*?)\n\n", page, re.S)
    quoted = re.search(r"<!-- quickstart-table -->\n\n(.*?)\n\n<!-- /quickstart-table -->", readme, re.S)
    assert table
    assert quoted
    assert quoted[1] == table[1]


@pytest.mark.parametrize("store", BOARDS, ids=lambda path: path.parent.name)
def test_a_committed_store_is_sound(store, capsys):
    assert main(["store", "verify", str(store)]) == 0
    assert "0 faults" in capsys.readouterr().out


def test_every_loss_beats_random_images_on_cifar10():
    """By more than the intervals of both: the reduced run on a CPU distils, whatever its width."""
    contents = read_contents(Store(ROOT / "leaderboards" / "cifar10-small" / "store", create=False))
    means: dict[str, list[float]] = {}
    for record in contents.judgements:
        plan = contents.sets[record.set_key].plan
        assert (record.judging.protocol, len(record.repeats)) == ("lineage-1", 20)
        name = plan.baseline.name if plan.baseline else plan.loss.name
        means.setdefault(name, []).append(sum(repeat.accuracy for repeat in record.repeats) / len(record.repeats))
    assert {name: len(found) for name, found in means.items()} == dict.fromkeys(("random", "dc", "dsa", "dm", "mtt"), 2)
    for name in means.keys() - {"random"}:
        assert min(means[name]) > max(means["random"]) + 0.05, f"{name}: {means[name]} against random {means['random']}"


def test_the_sets_of_the_quickstart_are_those_of_the_suite_as_it_is_now():
    """Its keys have not moved since the committed run: a second run there would compute nothing."""
    contents = read_contents(Store(ROOT / "leaderboards" / "quickstart" / "store", create=False))
    cells = with_needs(load("quickstart", Identities(), None).cells).cells
    assert {cell.set.key for cell in cells} == contents.sets.keys()
    for cell in cells:
        for judging in cell.all_judgings():
            assert contents.repeats(cell.set.key, judging.key) == set(range(cell.repeats)), cell.name
