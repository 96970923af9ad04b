"""A grid on a real Ray of this machine: the bytes of one local worker, whatever is killed, and mistakes told in a sentence."""

from __future__ import annotations

import json
from pathlib import Path

import psutil
import pytest
from faults import at_work, batches, kill, kill_driver, kill_until_noticed, workers
from grid_runs import Home, contents, finish, until

ray = pytest.importorskip("ray", reason="ray is not installed: pip install 'ddbench[ray]'")
pytestmark = pytest.mark.slow
ON_RAY = ("--executor", "ray", "--executor-option", "poll_seconds=0.5")


def daemons() -> list[str]:
    """Ray's own processes."""
    names = ("raylet", "gcs_server")
    return [process.info["name"] for process in psutil.process_iter(["name"]) if process.info["name"] in names]


def test_a_grid_ends_in_the_same_bytes(home: Home, suite: Path, local: Path) -> None:
    store = home.root / "ray"
    out, error, code = finish(home.start(suite, store, *ON_RAY))
    assert code == 0, error
    assert json.loads(out)["failed"] == {}
    assert contents(store) == contents(local)
    assert [path for path in (store / "work").rglob("*") if path.is_file()] == []
    assert not (store / "failed").exists()
    until(lambda: not daemons())


def test_whatever_is_killed_the_bytes_are_the_same(home: Home, suite: Path, local: Path) -> None:
    store, more = home.root / "killed-on-ray", (*ON_RAY, "--executor-option", "retries=9", "--checkpoint-seconds", "0")
    process = home.start(suite, store, *more)
    kill_until_noticed(store, process, lambda: kill(workers(store)))
    kill_until_noticed(store, process, lambda: kill([above for each in at_work(store) if (above := each.parent())]))  # Ray's own
    until(lambda: workers(store), process)
    assert kill_driver(process)  # its Ray and its batches end with it
    until(lambda: not batches(store) and not daemons())
    process = home.start(suite, store, *more)
    until(lambda: workers(store), process)
    assert kill([each for each in psutil.process_iter() if each.name() == "raylet"])  # the node's daemon: Ray is begun anew
    _, error, code = finish(process)
    assert code == 0, error
    assert contents(store) == contents(local)
    assert [path for path in (store / "work").rglob("*") if path.is_file()] == []


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["gpus=1"], "asks for 1 GPU, and no node has more than 0: it would wait for ever"),
        (["cpus=1000"], "asks for 1000 CPU, and no node has more than "),
        (["resources={licence=1}"], "asks for 1 licence, and no node has more than 0"),
        (["address=127.0.0.1:1"], "executor 'ray' finds no Ray at '127.0.0.1:1'"),
    ],
)
def test_a_mistake_is_a_sentence_before_anything_is_submitted(
    home: Home, suite: Path, tmp_path: Path, options: list[str], sentence: str
) -> None:
    more = [word for option in options for word in ("--executor-option", option)]
    _, error, code = finish(home.start(suite, tmp_path / "store", "--executor", "ray", *more))
    assert code == 2
    assert sentence in error
    assert "Traceback" not in error


@pytest.mark.long
def test_the_quickstart_ends_in_the_same_bytes(home: Home) -> None:
    for store, more in (("quick-by-local", ()), ("quick-by-ray", ON_RAY)):
        _, error, code = finish(home.start(Path("quickstart"), store, *more))
        assert code == 0, error
    assert contents(home.root / "quick-by-ray") == contents(home.root / "quick-by-local")
