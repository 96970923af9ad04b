"""Batches of jobs for other machines: files, the command of a machine, the executor around an engine, settings of executors."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from collections.abc import Collection, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
from made_jobs import Config, Made, cell, go, publish
from stores import plan_of, seeds

from ddbench.api import Job, JobState, Request, Site
from ddbench.cli import main
from ddbench.errors import ConfigError, Faults
from ddbench.grid import batch, detach, runner
from ddbench.grid.handles import Handles
from ddbench.grid.jobs import Lister
from ddbench.grid.planning import Planned
from ddbench.grid.runner import Options, list_jobs
from ddbench.ops.batches import BLIND, Orders, Told, append, folder_of
from ddbench.ops.batching import BatchExecutor, Engine, Fate, Shape, pack
from ddbench.ops.commands import run_command
from ddbench.results.contents import read_contents
from ddbench.results.layout import set_job
from ddbench.results.store import Store
from ddbench.suite import executors
from ddbench_plugins.executors.slurm import Slurm, check_partition

NAMES = [f"set-{digit * 16}" for digit in "0123456789"]
JOBS = [Job("set", name, name) for name in NAMES]
SHAPE = Shape(poll_seconds=0.0, seconds=100.0)


class Fake(Engine):
    """Keeps what it is asked; batches live until a test ends them."""

    survives = True

    def __init__(self) -> None:
        self.started: list[tuple[str, list[list[str]], str]] = []
        self.alive: set[tuple[str, int]] = set()
        self.stopped: set[tuple[str, int]] = set()
        self.is_silent = False
        self.end = Fate("the node went up in smoke")

    def check(self) -> int:
        return 4

    def start(self, wave: str, commands: Sequence[Sequence[str]], after: str) -> bool:
        if self.is_silent:
            return False
        self.started.append((wave, [list(words) for words in commands], after))
        self.alive |= {(wave, number) for number in range(len(commands))}
        return True

    def live(self, waves: Collection[str]) -> Mapping[tuple[str, int], str] | None:
        return None if self.is_silent else {place: "on node1" for place in self.alive if place[0] in waves}

    def fate(self, wave: str, number: int) -> Fate:
        return self.end

    def stop(self, batches: Collection[tuple[str, int]]) -> None:
        self.stopped |= set(batches)
        self.alive -= set(batches)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def opened(store: Store, engine: Engine) -> BatchExecutor:
    return BatchExecutor(Site(store.root, ("cpu",)), engine, SHAPE)


def states(executor: BatchExecutor, handles: list[str]) -> list[str]:
    return [state.state for state in executor.poll(handles, 0.0)]


def log(store: Store, place: tuple[str, int]) -> Path:
    return folder_of(store.root, place[0]) / f"{place[1]}.log"


def test_jobs_of_known_length_fill_batches_and_the_others_are_divided() -> None:
    def sizes(seconds: Sequence[float | None], workers: int = 1) -> list[int]:
        return [len(each) for each in pack(list(zip(JOBS, seconds, strict=False)), Shape(seconds=100.0, workers=workers), 4)]

    assert sizes([30.0] * 10) == [4, 4, 2]
    assert sizes([30.0] * 10, workers=2) == [7, 3]
    assert sizes([1000.0] * 3) == [1, 1, 1]
    assert sizes([None] * 10) == [3, 3, 3, 1]
    assert sizes([None, 1.0, 1.0]) == [1, 2]
    assert sizes([]) == []
    strange = [Job("set", name, name, (), ("x",) * (number % 2)) for number, name in enumerate(NAMES)]
    flat = [job for each in pack([(job, None) for job in strange], SHAPE, 2) for job in each]
    assert [job.distributions for job in flat] == [()] * 5 + [("x",)] * 5


def test_jobs_of_several_kinds_are_started_together_and_told_of_by_the_store(store: Store) -> None:
    engine = Fake()
    executor = opened(store, engine)
    handles = executor.submit(JOBS[:2], Request(seconds=1.0)) + executor.submit(JOBS[2:3], Request(seconds=2.0))
    assert engine.started == []
    assert states(executor, handles) == ["waiting"] * 3
    ((wave, commands, after),) = engine.started
    orders = Orders.read(folder_of(store.root, wave))
    assert (orders.batches, after) == ((tuple(NAMES[:3]),), "")
    assert commands == [[sys.executable, "-P", "-m", "ddbench", "work", str(store.root), wave, "0", orders.nonce]]
    append(log(store, (wave, 0)), {"begun": "node1"})
    append(log(store, (wave, 0)), {"job": NAMES[0], "state": "ended", "detail": "done"})
    append(log(store, (wave, 0)), {"job": NAMES[1], "state": "running", "phase": "step 3", "fraction": 0.5})
    with log(store, (wave, 0)).open("a") as file:
        file.write('\n{"job": "set-torn')
    first, second, third = executor.poll(handles, 0.0)
    assert first == JobState("ended", detail="done", where="node1")
    assert second == JobState("running", "step 3", 0.5, where="node1; on node1")
    assert third.state == "waiting"
    engine.alive.clear()
    kept = executor.poll(handles, 0.0)
    assert [state.state for state in kept] == ["ended", "lost", "lost"]
    assert kept[2].detail == "the batch that did it has ended on node1: the node went up in smoke"
    executor.close()
    assert not (store.root / "work" / "batches").exists()


def test_an_engine_that_does_not_answer_loses_nothing(store: Store) -> None:
    engine = Fake()
    executor = opened(store, engine)
    engine.is_silent = True
    handles = executor.submit(JOBS[:1], Request())
    assert states(executor, handles) == ["waiting"]
    assert not list((store.root / "work").glob("batches/*"))
    engine.is_silent = False
    assert states(executor, handles) == ["waiting"]
    assert len(engine.started) == 1
    engine.is_silent = True
    assert states(executor, handles) == ["waiting"]


def test_what_a_killed_process_has_left_goes_where_nothing_of_it_can_live(store: Store) -> None:
    engine = Fake()
    engine.survives = False
    first, other = opened(store, engine), opened(store, engine)
    states(first, first.submit(JOBS[:1], Request()))
    engine.alive.clear()
    other.close()
    (folder,) = (store.root / "work" / "batches").iterdir()  # whose driver lives
    first.locks.clear()  # as the system does with those of a process that dies
    other.close()
    assert not folder.exists()


def test_a_later_process_asks_and_stops_by_the_same_handles(store: Store) -> None:
    engine = Fake()
    first = opened(store, engine)
    handles = first.submit(JOBS, Request())
    assert states(first, handles) == ["waiting"] * 10
    (place,) = {place for place in engine.alive if place[1] == 0}
    append(log(store, place), {"job": NAMES[0], "state": "ended", "detail": "done"})
    later = opened(store, engine)
    assert states(later, [*handles, "nobody/knows"]) == ["ended", *["waiting"] * 9, "lost"]
    later.cancel(handles[1:4])  # what has ended does not keep a batch; what is of another batch does
    assert engine.stopped == {place}
    later.close()  # other batches live on: nothing is removed
    assert folder_of(store.root, place[0]).is_dir()
    (left,) = [handle for handle in handles if handle.endswith(NAMES[9])]
    assert states(later, [left]) == ["waiting"]
    told = {number for _, number in engine.alive}
    engine.alive.clear()
    for number in told:
        append(log(store, (place[0], number)), {"job": NAMES[9], "state": "ended"})
    assert states(later, [left]) == ["ended"]
    more = later.submit([Job("set", "set-new", "set-new")], Request())
    assert states(later, more) == ["waiting"]
    assert not folder_of(store.root, place[0]).exists()  # a driver that goes on leaves no folders behind


def test_a_machine_that_sees_another_store_is_refused_before_any_work(
    store: Store, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batch, "LocalExecutor", None)  # nobody works
    folder = folder_of(store.root, "abc")
    command = ["work", str(store.root), "abc", "0"]
    assert main([*command, "n"]) == BLIND
    assert "does not see the store" in capsys.readouterr().err
    Orders("n", ((NAMES[0],), ("../../x",)), "cpu", 1, 1, None, 0.0).write(folder)
    assert main([*command, "other"]) == BLIND
    assert "sees another store" in capsys.readouterr().err
    assert main(["work", str(store.root), "abc", "1", "n"]) == BLIND
    assert main(["work", str(store.root), "..", "0", "n"]) == BLIND
    assert main(["work", "relative", "abc", "0", "n"]) == BLIND
    (folder / "0.log").unlink()
    assert main([*command, "n"]) == BLIND
    assert "cannot write in the store" in capsys.readouterr().err
    (folder / "orders.json").write_text('{"nonce": "n"')
    assert main([*command, "n"]) == BLIND
    engine = Fake()
    executor = opened(store, engine)
    handles = executor.submit(JOBS[:1], Request())
    executor.poll(handles, 0.0)
    engine.alive.clear()
    engine.end = Fate("node1 does not see the store", BLIND)
    assert executor.poll(handles, 0.0) == [JobState("ended", detail="node1 does not see the store.")]  # and is not tried again


def test_a_batch_does_what_has_not_ended_and_can_be_done(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    submitted: list[str] = []

    class Worker(Made):
        def __init__(self, site: Site) -> None:
            super().__init__(lambda name: JobState("lost", detail="killed") if name == "x" else publish(store, name))

        def submit(self, jobs: Sequence[Job], request: Request) -> list[str]:
            submitted.extend(job.name for job in jobs)
            return super().submit(jobs, request)

    monkeypatch.setattr(batch, "LocalExecutor", Worker)
    plans = seeds(plan_of(), 3)
    names = [set_job(plan.key) for plan in plans]
    todo = Lister(Planned(tuple(map(cell, plans))), store, read_contents(store), "toy").todo()
    for work in todo.work:
        store.write_job(work.file)
    judgement = next(work.job.name for work in todo.work if work.job.kind == "judgement")
    folder = folder_of(store.root, "abc")
    Orders("n", ((judgement, *names, NAMES[0]),), "cpu", 1, 1, None, 0.0).write(folder)
    append(folder / "0.log", {"job": names[0], "state": "ended", "detail": "failed"})
    append(folder / "0.log", {"job": names[1], "state": "running"})
    batch.work_off(store.root, "abc", 0, "n")
    assert submitted == names[1:]
    told = Told.read(folder / "0.log")
    assert told.machine
    assert {name: state.state for name, state in told.states.items()} == dict.fromkeys([judgement, *names, NAMES[0]], "ended")
    assert told.states[judgement].detail.startswith(f"it needs {names[0]}, which is not there")
    assert "missing" in told.states[NAMES[0]].detail


def test_a_lost_job_is_tried_again_so_often_and_each_time_recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "LOST_SECONDS", 0.0)
    for retries, lost in ((2, 2), (2, 3), (0, 1)):
        store, left = Store(tmp_path / f"{retries}-{lost}"), [lost]

        def act(name: str, store: Store = store, left: list[int] = left) -> JobState | None:
            if left[0] and name.startswith("set-"):
                left[0] -= 1
                return JobState("lost", detail="node1 is gone")
            return publish(store, name)

        executor = Made(act)
        executor.retries = retries
        plan = plan_of()
        outcome, told = go(store, executor, cell(plan))
        name = set_job(plan.key)
        assert executor.submitted.count(name) == min(lost, retries) + 1
        assert len(store.failures(name)) == lost
        assert "node1 is gone" in store.read_failure(store.failures(name)[0]).error
        assert (name in outcome.failed) == (lost > retries)
        assert [end for kind, end in told.ends if kind == "set"] == ["again"] * min(lost, retries) + [
            "failed" if lost > retries else "done"
        ]


def test_detached_jobs_are_known_and_stopped_later(
    store: Store, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    engine, plan = Fake(), plan_of()
    planned, contents = Planned((cell(plan),)), read_contents(store)
    options = Options("toy", Site(store.root, ("cpu",)), Config(opened(store, engine)), "fake", {"partition": "p"})
    names = detach.detach(list_jobs(planned, store, contents, options), planned, store, contents, options)
    assert [name.partition("-")[0] for name in names] == ["set", "judgement"]
    (first, _, nothing), (_, _, after) = engine.started
    assert (nothing, after) == ("", first)
    assert {path.stem for path in (store.root / "work" / "jobs").iterdir()} == set(names)
    made: list[Any] = []
    monkeypatch.setattr(detach, "_opened", lambda driver, store: made.append(driver) or opened(store, engine))
    assert main(["status", str(store.root)]) == 0
    out = capsys.readouterr().out
    assert "2 jobs of the executor fake, submitted by a command that has ended: 2 waiting" in out
    assert f"  {names[0]}: waiting (on node1)" in out
    assert made[0].settings == {"partition": "p"}
    again = Options("toy", Site(store.root, ("cpu",)), Config(opened(store, engine)), "fake")
    todo = list_jobs(planned, store, contents, again)
    with pytest.raises(ConfigError, match="are still under way"):
        detach.detach(todo, planned, store, contents, again)
    assert main(["cancel", str(store.root), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"cancelled": names}
    assert engine.alive == set()
    assert not [path for path in (store.root / "work").rglob("*") if path.is_file()]
    assert main(["status", str(store.root)]) == 0
    assert "No jobs are known" in capsys.readouterr().out
    assert main(["cancel", str(store.root)]) == 0
    assert "Nothing to cancel" in capsys.readouterr().out


def test_jobs_of_a_command_that_still_runs_are_not_stopped_behind_its_back(
    store: Store, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    executor = opened(store, Fake())
    monkeypatch.setattr(detach, "_opened", lambda driver, store: executor)
    driver = Handles(store.root, executor, "fake")
    with driver.held():
        driver.remember({NAMES[0]: executor.submit(JOBS[:1], Request())[0]})
        assert main(["cancel", str(store.root)]) == 2
        assert "stop it with Ctrl-C" in capsys.readouterr().err
        assert main(["status", str(store.root), "--json"]) == 0
        assert [row["driven"] for row in json.loads(capsys.readouterr().out)] == [True]


def test_a_command_ends_with_its_process_and_its_last_lines_are_kept(capfd: pytest.CaptureFixture[str]) -> None:
    said = run_command([sys.executable, "-c", "import sys; [print(n, file=sys.stderr) for n in range(30)]; sys.exit(7)"])
    assert (said.code, said.last.splitlines()) == (7, [str(number) for number in range(10, 30)])
    assert capfd.readouterr().err.splitlines()[0] == "0"
    code = (
        "import sys; from ddbench.ops.commands import run_command; print('begun', flush=True); "
        "run_command([sys.executable, '-c', 'import sys; sys.stdin.read()'])"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    assert process.stdout
    assert process.stdout.readline() == b"begun\n"
    process.kill()
    assert process.stdout.read() == b""  # which the child would hold open
    process.wait()


# Settings


ROWS = ["cpu*|1-00:00:00|16|64000|(null)|", "gpu|2:00:00|32|128000|gpu:a100:4(S:0-1),shard:8|", "gpu|2:00:00|8|64000|(null)|"]


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"partition": "gpus"}, "Slurm has no partition 'gpus'. Did you mean 'gpu'? It has: cpu, gpu."),
        ({"gpus": 1}, "no node of the partition 'cpu' has more than 0: a job would wait for ever"),
        ({"gpus": 5, "partition": "gpu"}, "has more than 4"),
        ({"cpus": 17}, "asks for 17 processors, and a node of the partition 'cpu' has 16"),
        ({"minutes": 121, "partition": "gpu"}, "the partition 'gpu' allows 120"),
        ({"minutes": 5}, "too short to reach a checkpoint"),
        ({"partition": "gpu", "gpus": 4, "minutes": 120, "cpus": 32}, ""),
        ({}, ""),
    ],
)
def test_what_a_partition_cannot_give_is_refused(settings: dict[str, Any], sentence: str) -> None:
    asked = Slurm(**settings)
    with pytest.raises(ConfigError) if sentence else nullcontext() as error:
        check_partition(asked, asked.cpus or 1, 20.0, ROWS)
    assert sentence in str(error.value if error else "")


def test_a_cluster_without_a_default_partition_is_told_of() -> None:
    with pytest.raises(ConfigError, match="Slurm has no default partition: set 'partition'"):
        check_partition(Slurm(), 1, 20.0, ["gpu|2:00:00|32|128000|(null)|"])


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    path = executors.user_file()
    path.parent.mkdir(parents=True)
    return path


def test_options_stand_above_the_suite_and_that_above_the_users_file(own: Path) -> None:
    own.write_text('[executor.slurm]\npartition = "a"\nqos = "q"\nminutes = 10\n')
    suite = {"slurm": {"partition": "b", "minutes": 20}}
    options = ["partition=c", "account=123", 'setup=["module load x"]']
    found = executors.settings_of("slurm", options, suite)
    assert found == {"partition": "c", "qos": "q", "minutes": 20, "account": "123", "setup": ["module load x"]}
    assert executors.settings_of("local", [], suite) == {}


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("[executor.slrm]\n", "unknown executor 'slrm'. Did you mean 'slurm'?"),
        ('[executor.slurm]\npartitoin = "a"\n', "has no setting 'partitoin'. Did you mean 'partition'?"),
        ("[exceutor.slurm]\n", "have no key 'exceutor'. Did you mean 'executor'?"),
        ("executor = 3\n", "'executor' must hold tables"),
        ("[executor\n", "cannot be read"),
    ],
)
def test_a_users_file_with_a_mistake_is_refused(own: Path, text: str, sentence: str) -> None:
    own.write_text(text)
    with pytest.raises(ConfigError) as error:
        executors.settings_of("local", [], {})
    assert sentence in str(error.value)
    assert str(own) in str(error.value)


def test_a_users_file_that_is_named_must_be_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DDBENCH_CONFIG", str(tmp_path / "none.toml"))
    with pytest.raises(ConfigError, match="is no file"):
        executors.settings_of("local", [], {})


GRID = 'schema = 1\nprotocol = "smoke-1"\nsubsets = ["mnist-5k"]\nbaselines = ["random"]\nnetworks = ["convnet"]\n'


@pytest.mark.slow
@pytest.mark.parametrize(
    ("lines", "words", "sentence"),
    [
        ("[executor.slurm]\nminuts = 3\n", [], "executor 'slurm' has no setting 'minuts'. Did you mean 'minutes'?"),
        ("", ["--executor", "slrum"], "unknown executor 'slrum'. Did you mean 'slurm'?"),
        ("", ["--executor", "slurm", "--executor-option", "partion=x"], "Did you mean 'partition'?"),
        ("", ["--executor", "slurm", "--executor-option", "partition"], "--executor-option takes key=value, got 'partition'."),
        ("", ["--executor", "slurm", "--executor-option", "workers=0"], "setting 'workers' must be at least 1, got 0."),
        ("", ["--executor", "slurm"], "needs the package submitit, which is not installed: pip install 'ddbench[slurm]'."),
        ("", ["--executor", "ray"], "needs the package ray, which is not installed: pip install 'ddbench[ray]'."),
        ("", ["--detach"], "this executor's jobs end with the command that began them"),
        ("", ["--detach", "--executor", "ray"], "this executor's jobs end with the command that began them"),
    ],
)
def test_a_mistake_is_a_sentence_before_anything_is_submitted(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    lines: str,
    words: list[str],
    sentence: str,
) -> None:
    path, found = tmp_path / "grid.toml", importlib.util.find_spec
    path.write_text(GRID + lines)
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *more: None if name in ("ray", "submitit") else found(name, *more)
    )
    assert main(["run", str(path), "--store", str(tmp_path / "store"), *words]) == 2
    error = capsys.readouterr().err
    assert sentence in error
    assert "Traceback" not in error
    assert not [each for each in tmp_path.glob("store/work/**/*") if each.is_file()]


def test_slurm_without_its_commands_is_a_sentence(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *more: object())
    monkeypatch.setenv("PATH", "")
    with pytest.raises(ConfigError, match="'sbatch', which is not on the PATH"):
        Slurm().open(Site(store.root, ("cpu",))).submit(JOBS[:1], Request())


def test_settings_out_of_range_are_refused() -> None:
    for settings in ({"workers": 0}, {"gpus": -1}, {"poll_seconds": 0.0}, {"batch_minutes": float("nan")}, {"memory_gb": -1.0}):
        with pytest.raises((ConfigError, Faults)):
            Slurm(**settings)
