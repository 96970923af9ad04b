"""What tests of several folders share, and what keeps the machine they run on out of their verdicts."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

# Before any test imports torch: its threads only get in one another's way on tensors as small as these, all the more where
# other processes want the same cores.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["OMP_WAIT_POLICY"] = "PASSIVE"  # those of tests that ask for more sleep while they wait, and leave others the cores

# A user's own settings decide nothing here. What tests ask for by name stays; the data folder has a fixture, `user_data`.
OWN = {"DDBENCH_GOLDEN", "DDBENCH_KILL_SEED", "DDBENCH_PERF_SECONDS", "DDBENCH_PERF_SIDE", "DDBENCH_PERF_WIDTH"}
DATA = os.environ.get("DDBENCH_DATA")
for name in [name for name in os.environ if name.startswith("DDBENCH_") and name not in OWN]:
    del os.environ[name]

import only_ours  # noqa: E402, F401  (hides other distributions' plugins before a test module lists any)

with suppress(ImportError):  # a machine that only measures may lack it
    from hypothesis import HealthCheck, settings

    # That examples are slow to make says how busy a machine is, or that lines are counted, and nothing of the code.
    settings.register_profile("any machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
    settings.load_profile("any machine")

TERMINAL = ("COLUMNS", "LINES", "FORCE_COLOR", "NO_COLOR", "CLICOLOR", "CLICOLOR_FORCE", "TTY_COMPATIBLE", "TTY_INTERACTIVE")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """A process for each core that may be used; by itself pytest-xdist counts those of the whole machine."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    limit = Path("/sys/fs/cgroup/cpu.max")  # of a container: microseconds of work and of time, or "max"
    work, _, period = limit.read_text().partition(" ") if limit.is_file() else ("max", "", "")
    return cores if work == "max" else max(1, min(cores, int(work) // int(period)))


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    """Processes of pytest-xdist begin with the environment that is left here: they are told of the real data by word."""
    node.workerinput["user_data"] = DATA


@pytest.fixture(scope="session", autouse=True)
def no_terminal() -> Iterator[None]:
    """What a terminal, or a service that colours its logs, says of itself changes no output."""
    with pytest.MonkeyPatch.context() as patch:
        for name in TERMINAL:
            patch.delenv(name, raising=False)
        yield


@pytest.fixture(scope="session", autouse=True)
def nothing_is_tried() -> Iterator[None]:
    """What is only planned is not tried out for seconds; the tests of trying set this back."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ddbench.grid.calibration.MOST_SECONDS", 0.0)
        yield


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """A test that computes with more threads, as commands do by default, leaves one to the next."""
    yield
    if torch := sys.modules.get("torch"):
        torch.set_num_threads(1)


@pytest.fixture
def user_data(pytestconfig: pytest.Config, monkeypatch: pytest.MonkeyPatch) -> Path | None:
    """The folder of real data that DDBENCH_DATA named when the tests began, and names again for this test; else None."""
    told = getattr(pytestconfig, "workerinput", {"user_data": DATA})["user_data"]
    if not told:
        return None
    folder = Path(told).absolute()
    monkeypatch.setenv("DDBENCH_DATA", str(folder))
    return folder


@pytest.fixture(scope="session", autouse=True)
def _cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Identities of data sets, decoded images and a user's settings lie in folders of the tests' own, not in the user's."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CONFIG_HOME", str(tmp_path_factory.mktemp("config")))
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        patch.setenv("DDBENCH_CACHE", str(tmp_path_factory.mktemp("images")))
        yield


@pytest.fixture(scope="session")
def thirdparty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `tests/thirdparty` installed as pip installs a stranger's plugins, and a broken plugin beside it, to be put
    on PYTHONPATH. The processes of pytest-xdist share one."""
    own = tmp_path_factory.getbasetemp()
    shared = own.parent if "PYTEST_XDIST_WORKER" in os.environ else own
    source, target = Path(__file__).parent / "thirdparty", shared / "thirdparty"
    with FileLock(shared / "thirdparty.lock"):
        if not target.exists():
            install(source, shared / "thirdparty-unfinished")
            add_broken(shared / "thirdparty-unfinished")
            (shared / "thirdparty-unfinished").rename(target)
    return target


BROKEN = '''"""A plugin that is broken on purpose: ddbench has to name it, and to work without it."""

raise RuntimeError("this module breaks when it is imported")
'''


def add_broken(folder: Path) -> None:
    """One more loss of the installed example, which breaks when it is imported."""
    (folder / "ddbench_example" / "broken.py").write_text(BROKEN)
    (lines,) = folder.glob("*.dist-info/entry_points.txt")
    lines.write_text(f"{lines.read_text().rstrip()}\ntests-broken = ddbench_example.broken:Broken\n")


def install(source: Path, target: Path) -> None:
    """Into a folder, without a network and without the user's own settings of pip."""
    offline = ["--quiet", "--disable-pip-version-check", "--no-deps", "--no-index", "--no-build-isolation"]
    command = [sys.executable, "-m", "pip", "--isolated", "install", *offline, "--target", str(target), str(source)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    if done.returncode:
        pytest.fail(f"pip cannot install {source} (is hatchling installed?):\n{done.stdout}{done.stderr}")
