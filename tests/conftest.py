"""What tests of several folders share."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def thirdparty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `tests/thirdparty` installed as pip installs a stranger's plugins, to be put on PYTHONPATH."""
    source, target = Path(__file__).parent / "thirdparty", tmp_path_factory.mktemp("thirdparty")
    offline = ["--quiet", "--disable-pip-version-check", "--no-deps", "--no-index", "--no-build-isolation"]
    command = [sys.executable, "-m", "pip", "install", *offline, "--target", str(target), str(source)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    if done.returncode:
        pytest.fail(f"pip cannot install {source} (is hatchling installed?):\n{done.stdout}{done.stderr}")
    return target
