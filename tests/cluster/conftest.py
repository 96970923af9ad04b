"""What the tests on real clusters share: a small grid, and the store that one local worker makes of it."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "unit"))

from grid_runs import Home, finish, make_home
from real_slurm import RealSlurm, missing, real_slurm


@pytest.fixture(scope="session")
def home(tmp_path_factory: pytest.TempPathFactory) -> Home:
    """With the made-up distribution: jobs of strangers' code are done elsewhere too."""
    return make_home(tmp_path_factory.mktemp("home"))


@pytest.fixture(scope="session")
def suite(home: Home) -> Path:
    """Four sets, of which one needs two shared resources, each judged once."""
    return home.suite("tiny", ['"dm"', home.scripted()], ("pixel", "hpd"), ("random",))


@pytest.fixture(scope="session")
def local(home: Home, suite: Path) -> Path:
    """The store that the executor local makes."""
    out, error, code = finish(home.start(suite, "local", "--workers", "2"))
    assert code == 0, error
    assert json.loads(out)["failed"] == {}
    return home.root / "local"


@pytest.fixture(scope="session")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealSlurm]:
    """A Slurm of one node, which ends with the tests."""
    pytest.importorskip("submitit", reason="submitit is not installed: pip install 'ddbench[slurm]'")
    if why := missing():
        pytest.skip(why)
    with real_slurm(tmp_path_factory.mktemp("slurm")) as begun:
        yield begun
