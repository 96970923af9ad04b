"""What a newcomer reads first is true: the command that it names, the picture, the links, the version."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
from PIL import Image

import ddbench

ROOT = Path(__file__).parents[2]
DOCUMENTS = [*ROOT.glob("*.md"), ROOT / "leaderboards" / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
CALL = ".venv/bin/ddbench"


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_what_documents_link_to_is_there(path: Path) -> None:
    text = re.sub(r"```.*?```|`[^`]*`", "", path.read_text(), flags=re.S)
    targets = {target.partition("#")[0] for target in re.findall(r"\]\(([^)\s]+)\)", text)}
    local = {target for target in targets if target and "://" not in target}
    assert [target for target in sorted(local) if not (path.parent / target).exists()] == []


def test_the_readme_tells_at_once_how_to_call_the_command_and_shows_a_picture() -> None:
    text = (ROOT / "README.md").read_text()
    first = re.findall(r"```sh\n(.*?)```", text, re.S)[0]
    assert first.index("make install") < first.index(f"{CALL} run quickstart")
    assert ". .venv/bin/activate" in first
    assert "uv run --no-sync ddbench" in first
    shown, found = re.search(r"!\[([^\]]+)\]\(([^)]+)\)", text, re.S), text.index("```sh")
    assert shown
    assert shown.start() < found
    assert len(shown[1]) > 50  # who cannot see it is told what is there
    with Image.open(ROOT / shown[2]) as picture:
        assert picture.width > 500


def test_the_last_line_of_make_install_tells_how_to_go_on() -> None:
    text = (ROOT / "Makefile").read_text()
    recipe = re.search(r"^install:.*\n((?:\t.*\n)+)", text, re.M)
    assert recipe
    assert "$(BIN)/ddbench run quickstart" in recipe[1].splitlines()[-1]
    assert "--quiet" not in text  # pip says what it does


def test_the_version_is_one() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    top = re.search(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), re.M)
    assert top
    assert ddbench.__version__ == project["version"] == top[1]
