"""What a stranger's type checker sees of us: both packages say that they are typed, and mypy believes them."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TYPED = ROOT / "tests" / "typed"


@pytest.mark.long
def test_mypy_takes_right_plugins_and_finds_what_is_wrong_with_others(tmp_path: Path) -> None:
    """Strictly, from a folder without any configuration; torch's own `backward` has no types, so such calls are allowed."""
    pytest.importorskip("mypy", reason="mypy is not installed: pip install mypy")
    for name in ("plugins.py", "wrong.py"):
        shutil.copy(TYPED / name, tmp_path)
    options = ["--strict", "--allow-untyped-calls", "--config-file=", f"--cache-dir={tmp_path / 'cache'}", "--no-error-summary"]
    command = [sys.executable, "-m", "mypy", *options, "plugins.py", "wrong.py"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=600)
    found = set(re.findall(r"^(\S+):(\d+): error: .*\[([a-z-]+)\]$", done.stdout, flags=re.MULTILINE))
    lines = (TYPED / "wrong.py").read_text().splitlines()
    marked = {(number, line.partition("# wrong: ")[2]) for number, line in enumerate(lines, 1) if "# wrong: " in line}
    assert len(marked) == 4
    assert found == {("wrong.py", str(number), code) for number, code in marked}, done.stdout + done.stderr


@pytest.mark.slow
def test_wheels_say_that_they_are_typed(tmp_path: Path) -> None:
    offline = ["--quiet", "--disable-pip-version-check", "--no-deps", "--no-index", "--no-build-isolation"]
    command = [sys.executable, "-m", "pip", "wheel", *offline, "--wheel-dir", str(tmp_path), str(ROOT)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, f"(is hatchling installed?)\n{done.stdout}{done.stderr}"
    (wheel,) = tmp_path.glob("*.whl")
    assert {"ddbench/py.typed", "ddbench_plugins/py.typed"} <= set(zipfile.ZipFile(wheel).namelist())
