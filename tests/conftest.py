"""What tests of several folders share."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

# Before any test imports torch: its threads only get in one another's way on tensors as small as these, all the more where
# other processes want the same cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")


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
