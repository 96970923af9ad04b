"""The local executor with workers that are scripts of a few lines: which process does what, and how workers end."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from grid_runs import is_alive, until

from ddbench.api import Job, JobState, Request, Site
from ddbench.grid import local
from ddbench.grid.local import Local, LocalExecutor

# Speaks the lines of ddbench.grid.worker: what a job does is its title.
SCRIPT = r"""
import json, os, signal, sys, time
from pathlib import Path
log = Path(os.environ["TESTS_LOG"])
def say(**message):
    os.write(1, json.dumps(message).encode() + b"\n")
def note(word):
    with log.open("a") as file:
        file.write(f"{os.getpid()} {word}\n")
json.loads(sys.stdin.readline())
about = json.loads(sys.stdin.readline())
note("begins")
say(ready=True)
for line in sys.stdin:
    name = json.loads(line)["job"]
    what = name.partition(".")[2]
    note(name)
    if what == "dies":
        os.kill(os.getpid(), signal.SIGKILL)
    if what == "leaves":
        os._exit(3)
    if what == "orphan":  # a child that holds the pipes outlives it
        if os.fork():
            os._exit(4)
        while not Path(os.environ["TESTS_LOG"] + ".end").exists():
            time.sleep(0.05)
        os._exit(0)
    if what == "hangs":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        say(phase="hangs", fraction=0.5)
        time.sleep(600)
    if what == "babbles":
        os.write(1, b"no JSON\n[1, 2]\n7\n")
    if what == "waits":
        say(phase="waits", fraction=0.5)
        while not Path(os.environ["TESTS_LOG"] + ".go").exists():
            time.sleep(0.01)
    if what == "unrecorded":
        say(unrecorded="why it failed")
    say(ended="failed" if what == "unrecorded" else "done", stained=what == "stains")
"""


@pytest.fixture
def log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """What the scripts note: their process, and each job."""
    path = tmp_path / "log"
    monkeypatch.setenv("TESTS_LOG", str(path))
    monkeypatch.setattr(local, "BOOTSTRAP", SCRIPT)
    yield path
    Path(f"{path}.end").touch()


Open = Callable[[int], LocalExecutor]


@pytest.fixture
def opened(tmp_path: Path) -> Iterator[Open]:
    """Makes executors with so many workers, and closes them."""
    made: list[LocalExecutor] = []

    def make(workers: int) -> LocalExecutor:
        executor = Local().open(Site(tmp_path, ("cpu",) * workers))
        made.append(executor)
        return executor

    yield make
    for executor in made:
        executor.close()


def job(name: str, *distributions: str) -> Job:
    return Job("set", name, name, (), distributions)


def work_off(executor: LocalExecutor, *jobs: Job) -> dict[str, JobState]:
    """Submit, and poll until all have ended."""
    left = dict(zip(executor.submit(jobs, Request()), (each.name for each in jobs), strict=True))
    ends: dict[str, JobState] = {}

    def done() -> bool:
        for handle, state in zip(list(left), executor.poll(list(left), 0.5), strict=True):
            if state.state in ("ended", "lost"):
                ends[left.pop(handle)] = state
        return not left

    until(done)
    return ends


def noted(log: Path) -> dict[str, int]:
    """The process that each job was done in."""
    lines = [line.split(" ") for line in log.read_text().splitlines()]
    return {name: int(pid) for pid, name in lines if name != "begins"}


def num_processes(log: Path) -> int:
    return sum(line.endswith("begins") for line in log.read_text().splitlines())


def test_jobs_of_ours_share_processes_and_those_of_others_do_not(log: Path, opened: Open) -> None:
    jobs = [job("a"), job("x1", "x"), job("b"), job("y", "y"), job("xy", "x", "y"), job("x2", "x"), job("c")]
    ends = work_off(opened(1), *jobs)
    assert {state.state for state in ends.values()} == {"ended"}
    assert {state.detail for state in ends.values()} == {"done"}
    places = noted(log)
    assert places["a"] == places["b"] == places["c"]
    assert places["x1"] == places["x2"]
    assert len(set(places.values())) == num_processes(log) == 4  # ours, x, y, and both


def test_each_of_several_workers_goes_on_with_its_own(log: Path, opened: Open) -> None:
    executor = opened(2)
    work_off(executor, job("a"), job("x", "x"))
    work_off(executor, job("x2", "x"))  # the first worker, of ours, is idle too, and stays what it is
    work_off(executor, job("a2"))
    places = noted(log)
    assert places["x"] == places["x2"]
    assert places["a"] == places["a2"]
    assert num_processes(log) == 2


def test_a_job_of_others_after_which_nothing_is_right_ends_the_process(log: Path, opened: Open) -> None:
    ends = work_off(opened(1), job("1.stains", "x"), job("2", "x"), job("3", "x"))
    assert {state.detail for state in ends.values()} == {"done"}
    places = noted(log)
    assert places["1.stains"] != places["2"] == places["3"]


def test_progress_is_told_and_noise_is_not_heard(log: Path, opened: Open) -> None:
    executor = opened(1)
    handles = executor.submit([job("a.babbles"), job("b.waits")], Request())
    states: list[list[JobState]] = []

    def hears() -> bool:
        states.append(executor.poll(handles, 0.5))
        return states[-1][1].phase == "waits"

    until(hears)
    assert states[-1][1] == JobState("running", "waits", 0.5)
    assert any(state[0] == JobState("ended", detail="done") for state in states)


@pytest.mark.parametrize(
    ("what", "told"),
    [
        ("dies", "its worker process died with exit code -9 (signal 9: the system may have run out of memory)"),
        ("leaves", "its worker process died with exit code 3"),
        ("orphan", "its worker process died with exit code 4"),
    ],
)
def test_a_worker_that_dies_takes_its_job_and_no_other(log: Path, opened: Open, what: str, told: str) -> None:
    ends = work_off(opened(1), job(f"a.{what}"), job("b"))
    assert ends == {f"a.{what}": JobState("lost", detail=told), "b": JobState("ended", detail="done")}
    places = noted(log)
    assert not is_alive(places[f"a.{what}"])


def test_what_a_worker_could_not_record_is_told(log: Path, opened: Open) -> None:
    assert work_off(opened(1), job("a.unrecorded"))["a.unrecorded"] == JobState("ended", detail="why it failed")


DEAD = (
    "raise SystemExit(5)",  # before it has read anything
    "import sys; sys.stdin.readline(); import nothing_of_that_name",
    "import os; os.close(1); import time; time.sleep(600)",  # its pipe is closed, and it lives
)


@pytest.mark.parametrize("script", DEAD, ids=["at once", "import", "mute"])
def test_workers_that_are_dead_at_the_start_are_told_and_hang_nothing(
    tmp_path: Path, opened: Open, monkeypatch: pytest.MonkeyPatch, script: str
) -> None:
    monkeypatch.setattr(local, "BOOTSTRAP", script)
    monkeypatch.setattr(local, "DEATH_SECONDS", 0.5)
    ends = work_off(opened(2), job("a"), job("b", "x"), job("c"))
    assert {state.state for state in ends.values()} == {"lost"}
    assert all(state.detail.startswith("its worker process died with exit code ") for state in ends.values())


def test_a_long_search_path_does_not_block_a_worker_that_does_not_read(
    log: Path, opened: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More than a pipe holds: the parent waits for its reader, or for its end."""
    monkeypatch.setattr(local, "BOOTSTRAP", "import os; os._exit(6)")
    monkeypatch.setattr(sys, "path", [*sys.path, *(f"/nowhere/{number}" * 20 for number in range(2000))])
    assert work_off(opened(1), job("a"))["a"].detail == "its worker process died with exit code 6"


def test_closing_leaves_no_process(log: Path, opened: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local, "DEATH_SECONDS", 0.5)  # one of them does not listen to SIGTERM
    executor = opened(2)
    handles = executor.submit([job("a.hangs"), job("b.waits"), job("c")], Request())
    until(lambda: [state.phase for state in executor.poll(handles, 0.1)] == ["hangs", "waits", ""])
    pids = set(noted(log).values())
    executor.close()
    assert not any(is_alive(pid) for pid in pids)
    assert not [child for child in psutil.Process().children() if child.pid in pids]  # nor a zombie


def test_a_cancelled_job_goes_with_its_worker_and_a_queued_one_is_never_begun(log: Path, opened: Open) -> None:
    executor = opened(1)
    running, queued, later = executor.submit([job("a.waits"), job("b"), job("c")], Request())
    until(lambda: executor.poll([running], 0.1)[0].phase == "waits")
    executor.cancel([running, queued])
    assert {state.state for state in executor.poll([running, queued], 0.0)} == {"ended"}
    until(lambda: executor.poll([later], 0.5)[0].state in ("ended", "lost"))
    assert noted(log).keys() == {"a.waits", "c"}


def test_a_handle_of_nobody_is_lost(opened: Open) -> None:
    executor = opened(1)
    (state,) = executor.poll(["local-1-1"], 0.0)
    assert state == JobState("lost", detail="the process that ran it is gone")
    assert not executor.survives


def test_a_worker_is_told_where_modules_and_results_lie(tmp_path: Path, opened: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    script = (
        "import json, os, sys\n"
        "lines = [json.loads(sys.stdin.readline()) for _ in range(2)]\n"
        "lines.append(os.environ['OMP_NUM_THREADS'])\n"
        f"open({str(tmp_path / 'lines')!r}, 'w').write(json.dumps(lines))\n"
    )
    monkeypatch.setattr(local, "BOOTSTRAP", script)
    work_off(opened(1), job("a"))
    path, about, threads = json.loads((tmp_path / "lines").read_text())
    assert path == [entry for entry in sys.path if isinstance(entry, str)]
    assert about == {"store": str(tmp_path), "device": "cpu", "checkpoint_seconds": 20.0, "data_root": None}
    assert threads == "1"


@pytest.mark.slow
def test_a_real_worker_reads_nothing_that_is_not_its_own(tmp_path: Path, opened: Open) -> None:
    """The job is not in the store: it says busy, and lives."""
    executor = opened(1)
    name = "set-0123456789abcdef"
    assert work_off(executor, job(name)) == {name: JobState("ended", detail="busy")}
    assert work_off(executor, job(name)) == {name: JobState("ended", detail="busy")}
    (worker,) = [worker for worker in executor.workers if worker]
    assert os.getpgid(worker.process.pid) == worker.process.pid  # Ctrl-C at a terminal does not reach it


@pytest.mark.parametrize("where", ["before it is listened to", "while it is stopped"])
def test_ctrl_c_at_any_moment_leaves_no_worker_and_no_error(
    log: Path, opened: Open, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    """It comes between the two lines that begin a worker, or those that end one; the executor is then closed."""
    executor = opened(2)

    def interrupt(*more: object) -> None:
        monkeypatch.undo()
        raise KeyboardInterrupt

    if where == "before it is listened to":
        monkeypatch.setattr(executor.selector, "register", interrupt)
        with pytest.raises(KeyboardInterrupt):
            executor.submit([job("1.waits"), job("2.waits")], Request())
    else:
        executor.submit([job("1.waits"), job("2.waits")], Request())
        monkeypatch.setattr(local.Worker, "stop", interrupt)
        with pytest.raises(KeyboardInterrupt):
            executor.close()
    processes = [worker.process for worker in executor.workers if worker]
    assert processes
    executor.close()
    assert all(process.returncode is not None for process in processes)
