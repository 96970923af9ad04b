"""What is committed under leaderboards/ is what the committed records give, and the README quotes it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from ddbench.cli import main
from ddbench.leaderboard.page import write
from ddbench.store import Store

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
