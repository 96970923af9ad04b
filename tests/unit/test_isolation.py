"""The verdicts of these tests are the project's own: other plugins and a user's settings do not count."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
KINDS = ("losses", "spaces", "generators", "architectures", "datasets", "presets")
LOUD = "raise RuntimeError('a test has imported a plugin of another distribution')"


@pytest.fixture
def strangers(tmp_path: Path) -> Path:
    """A folder with a distribution that offers plugins of every kind, none of which can be imported."""
    names = ("mean-image", "broken-on-import", "scripted", "x", "dmm", "tiny", "bad", "shaky")
    lines = [f"[ddbench.{kind}]\n" + "".join(f"{name} = stranger:X\n" for name in names) for kind in KINDS]
    info = tmp_path / "stranger-1.0.dist-info"
    info.mkdir()
    (info / "entry_points.txt").write_text("\n".join(lines))
    (tmp_path / "stranger.py").write_text(LOUD)
    return tmp_path


@pytest.mark.slow
def test_other_plugins_and_a_users_settings_change_no_verdict(strangers: Path) -> None:
    """The tests that name plugins and quote lists of them, in a process of their own."""
    unset = {name: value for name, value in os.environ.items() if not name.startswith(("PYTEST_", "DDBENCH_"))}
    settings = {"DDBENCH_DATA": "/nowhere", "DDBENCH_STORE": "/nowhere", "FORCE_COLOR": "1", "COLUMNS": "20"}
    environment = unset | settings | {"PYTHONPATH": str(strangers)}
    files = [f"tests/unit/test_{name}.py" for name in ("registry", "presets", "grid", "timm_models")]
    chosen = "registry or unknown or lists or broken or fault or imports_timm"
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-k", chosen, *files]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
