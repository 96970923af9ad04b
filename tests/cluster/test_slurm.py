"""A grid on a real Slurm of one node: the bytes of one local worker, whatever is killed, and mistakes told in a sentence."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
from faults import at_work, kill, kill_driver, kill_until_noticed, workers
from grid_runs import Home, contents, finish, until
from real_slurm import RealSlurm

pytestmark = pytest.mark.slow
ON_SLURM = ("--executor", "slurm", "--executor-option", "poll_seconds=0.5")


def ddbench(home: Home, *words: str) -> tuple[str, str, int]:
    """Another command of the tool."""
    command, environment = [sys.executable, "-m", "ddbench", *words], os.environ | {"PYTHONPATH": home.path}
    done = subprocess.run(command, cwd=home.root, env=environment, capture_output=True, text=True, timeout=600)
    return done.stdout, done.stderr, done.returncode


def kill_job(slurm: RealSlurm) -> bool:
    """One that runs, by the queue."""
    jobs = slurm.ask("squeue", "--noheader", "--array", "--states=R", "--format=%i").split()
    slurm.ask("scancel", "--signal=KILL", "--full", *jobs[:1])
    return bool(jobs)


def files_of_work(store: Path) -> list[Path]:
    return [path for path in (store / "work").rglob("*") if path.is_file()]


def test_a_grid_ends_in_the_same_bytes(home: Home, suite: Path, local: Path, slurm: RealSlurm) -> None:
    out, error, code = finish(home.start(suite, "slurm", *ON_SLURM))
    assert code == 0, error
    assert json.loads(out)["failed"] == {}
    assert contents(home.root / "slurm") == contents(local)
    assert files_of_work(home.root / "slurm") == []
    assert not (home.root / "slurm" / "failed").exists()
    assert slurm.ask("squeue", "--noheader") == ""


def test_whatever_is_killed_the_bytes_are_the_same(home: Home, suite: Path, local: Path, slurm: RealSlurm) -> None:
    store, more = home.root / "killed", (*ON_SLURM, "--executor-option", "retries=9", "--checkpoint-seconds", "0")
    process = home.start(suite, store, *more)
    kill_until_noticed(store, process, lambda: kill(workers(store)))  # whose batch goes on
    kill_until_noticed(store, process, lambda: kill(at_work(store)))  # a batch's command
    kill_until_noticed(store, process, lambda: kill_job(slurm))
    until(lambda: workers(store), process)
    slurm.kill("slurmctld")  # the queue, which comes again
    assert not slurm.ask("squeue", "--noheader")
    time.sleep(2)  # some looks of the driver go unanswered
    slurm.start("slurmctld")
    until(lambda: slurm.ask("sinfo", "--noheader", "--format=%T"))
    until(lambda: workers(store), process)
    assert kill_driver(process)  # whose jobs go on
    slurm.kill("slurmd")  # the node's daemon, while jobs run
    slurm.start("slurmd")
    process = home.start(suite, store, *more)
    _, error, code = finish(process)
    assert code == 0, error
    assert contents(store) == contents(local)
    assert files_of_work(store) == []
    (first, *_) = sorted(store.glob("failed/*/*.json"), key=lambda path: path.stat().st_mtime_ns)
    assert "exit code -9" in json.loads(first.read_text())["error"]


def test_a_detached_grid_goes_on_alone_and_can_be_stopped(home: Home, suite: Path, local: Path, slurm: RealSlurm) -> None:
    store = home.root / "detached"
    words = ("run", str(suite), "--store", str(store), "--device", "cpu", "--detach", *ON_SLURM)
    out, error, code = ddbench(home, *words)
    assert code == 0, error
    assert "ddbench status" in out
    out, error, code = ddbench(home, "status", str(store))
    assert code == 0, error
    assert "submitted by a command that has ended" in out
    assert re.search(r"set-\w+: (waiting|running).*\(.*Slurm job \d+_\d+, ", out)
    assert ddbench(home, *words)[2] == 2  # they are under way already
    out, error, code = ddbench(home, "cancel", str(store))
    assert code == 0, error
    assert re.match(r"Cancelled: \d+ jobs", out)
    until(lambda: not slurm.ask("squeue", "--noheader"))
    _, error, code = ddbench(home, *words)
    assert code == 0, error
    until(lambda: not slurm.ask("squeue", "--noheader"))
    assert contents(store).keys() == contents(local).keys()  # without anybody
    out, error, code = finish(home.start(suite, store, *ON_SLURM))
    assert (code, json.loads(out)["computed"]) == (0, []), error
    assert contents(store) == contents(local)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["partition=debgu"], "Slurm has no partition 'debgu'. Did you mean 'debug'? It has: debug."),
        (["gpus=1"], "no node of the partition 'debug' has more than 0: a job would wait for ever"),
        (["minutes=500"], "the partition 'debug' allows 120"),
        (["constraint=moon"], "Slurm would not take such a job: "),
        (["more={no-such=1}"], "Slurm refuses the jobs: "),
    ],
)
def test_a_mistake_is_a_sentence_before_anything_is_submitted(
    home: Home, suite: Path, slurm: RealSlurm, tmp_path: Path, options: list[str], sentence: str
) -> None:
    more = [word for option in options for word in ("--executor-option", option)]
    _, error, code = finish(home.start(suite, tmp_path / "store", "--executor", "slurm", *more))
    assert code == 2
    assert sentence in error
    assert "Traceback" not in error
    assert slurm.ask("squeue", "--noheader") == ""
    assert files_of_work(tmp_path / "store") == []


@pytest.mark.long
def test_the_quickstart_ends_in_the_same_bytes(home: Home, slurm: RealSlurm) -> None:
    for store, more in (("quick-local", ()), ("quick-slurm", ON_SLURM)):
        _, error, code = finish(home.start(Path("quickstart"), store, *more))
        assert code == 0, error
    assert contents(home.root / "quick-slurm") == contents(home.root / "quick-local")
