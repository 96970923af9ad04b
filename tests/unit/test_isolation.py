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


def run_tests(strangers: Path, *words: str, **settings: str) -> None:
    """Pytest in a process of its own, where the strangers are installed and a user's settings are in the way."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PYTEST_", "DDBENCH_"))}
    odd = {"DDBENCH_DATA": "/nowhere", "DDBENCH_STORE": "/nowhere", "FORCE_COLOR": "1", "COLUMNS": "20"}
    environment = kept | odd | {"PYTHONPATH": str(strangers)} | settings
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *words]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=3600)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.long
def test_other_plugins_and_a_users_settings_change_no_verdict(strangers: Path) -> None:
    """The tests that name plugins and quote lists of them."""
    run_tests(strangers, "-k", "registry or unknown or lists", "tests/unit/test_registry.py", "tests/unit/test_presets.py")


@pytest.mark.long
def test_nor_do_they_of_all_tests_on_a_plainer_processor(strangers: Path) -> None:
    """Torch without the vector instructions of this processor rounds otherwise, as another processor does."""
    plain = {"ATEN_CPU_CAPABILITY": "default", "ONEDNN_MAX_CPU_ISA": "SSE41", "MKL_CBWR": "COMPATIBLE"}
    run_tests(strangers, "-m", "not long", "--numprocesses", "auto", "--dist", "worksteal", **plain)
