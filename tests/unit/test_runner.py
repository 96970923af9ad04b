"""The grid through the real command line: kills, stops, several runners at once, plugins that misbehave.

Real data, and a protocol of two epochs; a made-up distribution offers a loss that does what a test asks of it. What is compared
are whole stores, byte for byte, but for what was measured.
"""

from __future__ import annotations

import json
import math
import os
import random
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from grid_runs import (
    CONVNET,
    Home,
    assert_no_leftovers,
    contents,
    finish,
    is_alive,
    make_home,
    stable,
    times,
    until,
)
from safetensors.torch import load_file

import ddbench
from ddbench.cli import main
from ddbench.grid import local
from ddbench.plan import SetPlan
from ddbench.results.contents import Contents, read_contents
from ddbench.results.merge import merge
from ddbench.results.store import Store

pytestmark = pytest.mark.slow
Capture = pytest.CaptureFixture[str]
SETS = 6  # of the grid below, each judged once
TOTAL = 2 * SETS
STOPPED = "ddbench: stopped. Finished cells are kept; the same command goes on from the last checkpoint."


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory, thirdparty: Path) -> Iterator[Home]:
    made = make_home(tmp_path_factory.mktemp("home"), thirdparty)
    with pytest.MonkeyPatch.context() as patch:
        for folder in made.path.split(os.pathsep):
            patch.syspath_prepend(folder)
        yield made
    (made.root / "end").touch()


@pytest.fixture(scope="module")
def suites(home: Home) -> tuple[Path, Path]:
    """One grid in two orders: 6 sets, of which two need two shared resources, each judged once."""
    losses, spaces, baselines = ['"dm"', home.scripted()], ("pixel", "hpd"), ("random", "full-data")
    forward = home.suite("forward", losses, spaces, baselines)
    return forward, home.suite("backward", losses[::-1], spaces[::-1], baselines[::-1])


class Clean:
    """What an uninterrupted run with one worker makes."""

    def __init__(self, store: Path, summary: dict[str, Any], error: str, steps: int) -> None:
        self.store, self.summary, self.error, self.steps = store, summary, error, steps
        self.contents = contents(store)


@pytest.fixture(scope="module")
def clean(home: Home, suites: tuple[Path, Path]) -> Clean:
    (home.root / "steps").unlink(missing_ok=True)  # of tests that came first
    process = home.start(suites[0], "clean", "--workers", "1")
    out, error, code = finish(process)
    assert code == 0, error
    return Clean(home.root / "clean", json.loads(out), error, len(home.steps()))


def plan_of(found: Contents, loss: str) -> SetPlan:
    """That of a loss in pixels."""
    return next(
        one.plan for one in found.sets.values() if one.plan.loss and one.plan.loss.name == loss and not one.plan.generator
    )


def copy(clean: Clean, to: Path) -> Path:
    """With the times of its files."""
    shutil.copytree(clean.store, to)
    return to


def test_a_run_from_scratch_and_a_second_one(
    home: Home, suites: tuple[Path, Path], clean: Clean, monkeypatch: pytest.MonkeyPatch, capfd: Capture
) -> None:
    summary = clean.summary
    assert (summary["total"], summary["present"], summary["failed"], summary["broken"]) == (TOTAL, 0, {}, [])
    assert (len(summary["computed"]), len(summary["built"])) == (TOTAL, 2)
    assert summary["store"] == str(clean.store)  # absolute
    assert Path(summary["leaderboard"]).is_file()
    assert not {"\x1b", "\r"} & set(clean.error)  # no terminal, no bar
    lines = clean.error.splitlines()
    assert lines[0] == f"{SETS} sets, {SETS} judgements in all; there already: nothing (time left: unknown)"
    counted = [re.match(rf"\[(\d) of {SETS} sets, (\d) of {SETS} judgements\] ", line) for line in lines]
    assert [int(each[1]) + int(each[2]) for each in counted if each] == list(range(1, TOTAL + 1))
    assert sum(line.startswith("begins: ") for line in lines) == TOTAL + 2
    assert any(line.startswith("begins: classifier convnet") and " on mnist-5k, " in line for line in lines)
    assert " left)" in lines[-2]  # what was done says how long the rest takes
    log = (clean.store / "log.txt").read_text().splitlines()
    assert f"] ddbench run {suites[0]} --store clean " in log[0]
    assert f": ddbench {ddbench.__version__}, torch {torch.__version__}, on cpu, in " in log[0]
    assert [line.partition("] ")[2] for line in log[1:-1]] == lines
    assert log[-1].endswith(f"] ended: {SETS} of {SETS} sets, {SETS} of {SETS} judgements there, 0 jobs failed")
    assert all(lines), "an empty line is a bar's remains"
    before = times(clean.store, "sets", "judgements", "resources", "leaderboard", "suites")
    monkeypatch.chdir(home.root)
    monkeypatch.setattr(local, "Worker", None)  # nobody is started
    assert main(["run", str(suites[0]), "--store", "clean"]) == 0
    out, error = capfd.readouterr()
    assert out.splitlines()[0] == f"Nothing to compute: all of {SETS} sets, {SETS} judgements is in {clean.store}."
    assert error == ""
    assert times(clean.store, "sets", "judgements", "resources", "leaderboard", "suites") == before
    assert_no_leftovers(clean.store)


def test_records_name_where_plugins_come_from_and_nothing_is_marked(clean: Clean) -> None:
    found = read_contents(Store(clean.store, create=False))
    assert found.faults == ()
    assert len(found.sets) == len(found.judgements) == TOTAL // 2
    losses = {one.plan.loss.name: one.plan.loss for one in found.sets.values() if one.plan.loss}
    assert (losses["tests-scripted"].distribution, losses["tests-scripted"].version) == ("scripted-losses", "3.1")
    for one in found.sets.values():
        assert one.record.marks == ()
        distilled = {"losses.safetensors"} if one.plan.loss else set()
        distilled |= {"stages.png"} if len(one.record.stages) > 1 else set()
        assert one.plan.everything or {"set.safetensors", "images.png"} | distilled == one.record.files.keys()
        assert not one.plan.loss or any(one.plan.loss.name in label for label in one.record.place.sources)
    assert all(record.marks == () for record in found.judgements)
    assert all(not any("tests-scripted" in label for label in record.place.sources) for record in found.judgements)


def test_records_say_what_a_set_takes(clean: Clean) -> None:
    weights = set()
    for one in read_contents(Store(clean.store, create=False)).sets.values():
        plan, record, size = one.plan, one.record, one.record.size
        assert size
        assert (size.budget, size.images_per_class) == ("images", record.num_images / 10)
        assert size.bytes_without_decoder == record.bytes_stored
        if plan.baseline:
            assert (size.floats, size.bytes_with_decoder) == (0, record.bytes_images)
            continue
        tensors = record.stages[record.chosen_stage].tensors
        assert size.floats == sum(math.prod(shape) for shape in tensors.values())
        assert size.bytes_with_decoder
        weights |= {(plan.generator is not None and "pixels" not in tensors, size.bytes_with_decoder - record.bytes_stored)}
    assert (False, 0) in weights
    assert all((extra > 50_000) == decodes for decodes, extra in weights), weights


# Stopped runs


def test_stopped_and_killed_runs_end_with_the_same_bytes(
    home: Home, suites: tuple[Path, Path], clean: Clean, capfd: Capture
) -> None:
    """Ctrl-C, SIGTERM, a killed parent, a killed worker, a killed group, then to the end: not a byte tells."""
    store, more = home.root / "killed", ("--workers", "1", "--checkpoint-seconds", "0")
    alone = home.suite("alone", [home.scripted()])
    (home.root / "steps").unlink()

    # Ctrl-C while a worker is inside a step; then SIGTERM, after it has gone on from there
    for number, (sign, step) in enumerate(((signal.SIGINT, 3), (signal.SIGTERM, 3))):
        (home.root / "wait").touch()
        first = len(home.steps())
        process = home.start(alone, "killed", *more)
        until(lambda: not (home.root / "wait").exists(), process)
        process.send_signal(sign)
        _, error, code = finish(process)
        assert (code, error.splitlines()[-1]) == (130, STOPPED)
        assert "Traceback" not in error
        assert not any(is_alive(int(line[0])) for line in home.steps())
        assert ("goes on at step 3 of " in error) == bool(number)
        assert int(home.steps()[first][3]) == (0, 3)[number]
        checkpoints = list((store / "work").glob("*/checkpoint.safetensors"))
        assert any(float(load_file(path).get("memory.seen", -1)) == step for path in checkpoints)

    # the parent alone: its workers notice. They also go on from step 3, not from 0
    first = len(home.steps())
    (home.root / "orphan").touch()
    process = home.start(alone, "killed", *more)
    finish(process)
    assert process.returncode == -signal.SIGKILL
    assert not (home.root / "orphan").exists()
    until(lambda: not any(is_alive(int(line[0])) for line in home.steps()))
    assert int(home.steps()[first][3]) == 3
    assert list((store / "failed").glob("*/*.json")) == []  # a parent that dies is no failure of a job

    # the whole group, where a seeded draw falls
    draw = random.Random(20)
    points: list[Callable[[], object]] = [
        lambda: list((store / "work").glob("*/repeats.json")),
        lambda: list((store / "work").glob(".*.*")),
    ]
    for point in draw.sample(points, 1):
        process = home.start(suites[0], "killed", *more)
        until(point, process)
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        finish(process)

    code, summary, error = home.run(capfd, suites[0], store, *more)
    assert code == 0, error
    assert summary["present"] + len(summary["computed"]) == TOTAL
    assert contents(store) == clean.contents
    assert_no_leftovers(store)


def workers_of(process: subprocess.Popen[str]) -> list[psutil.Process]:
    try:
        return [child for child in psutil.Process(process.pid).children() if "ddbench.grid.worker" in " ".join(child.cmdline())]
    except psutil.Error:
        return []


def kill_somebody(process: subprocess.Popen[str], victim: str) -> None:
    """The parent, a worker, or the group with all that have left it."""
    workers = workers_of(process)
    if victim == "worker":
        for worker in workers[:1]:
            with suppress(psutil.Error):
                worker.kill()
        return
    if process.poll() is None:
        (os.killpg if victim == "group" else os.kill)(process.pid, signal.SIGKILL)
    if victim == "group":
        for worker in workers:
            with suppress(psutil.Error):
                worker.kill()


def wait(seconds: float, process: subprocess.Popen[str]) -> None:
    """So long, or until the process ends."""
    with suppress(subprocess.TimeoutExpired):
        process.wait(seconds)


@pytest.mark.long
def test_a_hundred_kills_at_random_moments(home: Home, suites: tuple[Path, Path], clean: Clean, tmp_path: Path) -> None:
    """The whole campaign, `make test-kills`. Every store is killed several times, at moments that a seeded draw spreads over a
    third of the time that the work takes, then finished, and compared."""
    seed = int(os.environ.get("DDBENCH_KILL_SEED", "2026"))
    draw, kills, stores = random.Random(seed), 0, 0
    more = ("--workers", "2", "--checkpoint-seconds", "0")
    process = home.start(suites[0], tmp_path / "measured", *more)
    until(lambda: list((tmp_path / "measured").glob("work/jobs/*")), process)
    began = time.monotonic()
    _, error, code = finish(process)
    assert code == 0, error
    span = time.monotonic() - began
    while kills < 100:
        store, is_whole = tmp_path / f"{stores}", False
        for _ in range(draw.randrange(3, 8)):
            victim, moment = draw.choice(["parent", "group", "worker"]), draw.uniform(0.0, span / 3)
            process = home.start(draw.choice(suites), store, *more)
            until(lambda: list(store.glob("work/jobs/*")), process)  # noqa: B023
            wait(moment, process)
            is_whole = process.poll() is not None
            kill_somebody(process, victim)
            finish(process)
            kills += not is_whole
            if is_whole:
                break
        _, error, code = finish(home.start(suites[0], store, *more))
        assert code == 0, (seed, stores, error)
        assert contents(store) == clean.contents, (seed, stores)
        assert_no_leftovers(store)
        shutil.rmtree(store)
        stores += 1
        print(f"{kills} kills, {stores} stores, all equal", flush=True)


# Several runners


def share(home: Home, suites: tuple[Path, ...], clean: Clean, store: Path, runners: int, workers: int) -> None:
    """Runners of one grid, in turns of its two orders, on one store."""
    (home.root / "steps").unlink(missing_ok=True)
    processes = [home.start(suites[number % 2], store, "--workers", str(workers)) for number in range(runners)]
    ends = [finish(process) for process in processes]
    assert [code for _, _, code in ends] == [0] * runners, ends
    summaries = [json.loads(out) for out, _, _ in ends]
    computed = [name for summary in summaries for name in summary["computed"]]
    assert len(computed) == len(set(computed)) == TOTAL  # each job once, by one of them
    assert all(summary["present"] + len(summary["computed"]) == TOTAL for summary in summaries)
    assert len(home.steps()) == clean.steps  # and no step of a distillation twice
    for _, error, _ in ends:
        waiting = [line for line in error.splitlines() if line.endswith("another run is computing it; waiting")]
        assert len(waiting) == len(set(waiting))  # said once
    assert contents(store) == clean.contents
    assert_no_leftovers(store)
    assert not list((store / "failed").glob("*/*.json"))


@pytest.mark.long
def test_two_runners_share_one_store_in_another_order(home: Home, suites: tuple[Path, Path], clean: Clean) -> None:
    share(home, suites, clean, home.root / "two", runners=2, workers=1)


@pytest.mark.long
def test_four_runners_share_one_store(home: Home, suites: tuple[Path, Path], clean: Clean) -> None:
    share(home, suites, clean, home.root / "four", runners=4, workers=2)


@pytest.mark.long
def test_shards_of_a_grid_make_the_whole(home: Home, suites: tuple[Path, Path], clean: Clean, capfd: Capture) -> None:
    one, two = home.root / "shard-1", home.root / "shard-2"
    pair, names = home.suite("pair", ['"dm"'], baselines=("random",)), []
    for number, store in ((1, one), (2, two)):
        code, summary, error = home.run(capfd, pair, store, "--shard", f"{number}/2", "--workers", "1")
        assert code == 0, error
        names.append(set(summary["computed"]))
        assert len(names[-1]) == summary["total"] == 2
    assert not names[0] & names[1]
    assert names[0] | names[1] <= set(clean.summary["computed"])
    report = merge(Store(one), Store(two, create=False))
    assert report.is_clean, report
    made = contents(one)
    assert made.items() <= clean.contents.items()
    assert len([name for name in made if name.endswith("record.json") or name.startswith("judgements")]) == 4


# What is added costs itself


def test_a_network_and_a_baseline_cost_themselves(
    home: Home, suites: tuple[Path, Path], clean: Clean, tmp_path: Path, capfd: Capture
) -> None:
    store, before = copy(clean, tmp_path / "store"), clean.contents
    untouched = times(store, "sets", "judgements", "resources")
    small = '{ name = "convnet", width = 2, depth = 1 }'
    wider = home.suite("wider", ['"dm"', home.scripted()], ("pixel", "hpd"), ("full-data",), (CONVNET, small))
    code, summary, error = home.run(capfd, wider, store, "--only", "space=pixel", "--workers", "1")
    assert code == 0, error
    assert [name.partition("-")[0] for name in summary["computed"]] == ["judgement"] * 2
    assert (summary["total"], summary["present"], summary["built"]) == (6, 4, [])
    now = times(store, "sets", "judgements", "resources")
    assert untouched.items() <= now.items()
    assert {path.parent.parent.name for path in now.keys() - untouched.keys()} == {"judgements"}
    assert before.items() <= contents(store).items()
    assert main(["plan", str(wider), "--store", str(store)]) == 0
    out = capfd.readouterr().out
    assert "Sets: 5 in all, 5 there, 0 missing." in out
    assert "Judgements: 10 in all, 7 there, 3 missing." in out


@pytest.mark.long
def test_iterates_asked_for_later_come_from_the_same_distillation(
    home: Home, suites: tuple[Path, Path], clean: Clean, tmp_path: Path, capfd: Capture
) -> None:
    store = copy(clean, tmp_path / "store")
    later = home.suite("later", [home.scripted()], protocol="tests-iterates")
    main(["plan", str(later), "--store", str(store)])
    assert "lacks iterates" in capfd.readouterr().out
    set_key = plan_of(read_contents(Store(store)), "tests-scripted").key
    untouched = times(store, "sets", "judgements")
    code, summary, error = home.run(capfd, later, store, "--workers", "1")
    assert code == 0, error
    kinds = [name.partition("-")[0] for name in summary["computed"]]
    assert kinds == ["set", "judgement", "judgement"]  # of the iterates: the finished set was judged by equal numbers before
    assert untouched.items() <= times(store, "sets", "judgements").items()
    found = read_contents(Store(store))
    assert found.faults == ()
    assert len(found.sets[set_key].iterates) == 2
    assert_no_leftovers(store)


@pytest.mark.long
def test_iterates_are_the_same_whether_they_are_asked_for_later_or_at_once(home: Home, tmp_path: Path, capfd: Capture) -> None:
    first, later = home.suite("first", [home.scripted()]), home.suite("later", [home.scripted()], protocol="tests-iterates")
    for suite, store in ((first, "later"), (later, "later"), (later, "at-once")):
        code, _, error = home.run(capfd, suite, tmp_path / store, "--workers", "1")
        assert code == 0, error
    assert contents(tmp_path / "at-once", "sets") == contents(tmp_path / "later", "sets")


# A stored plan


def test_a_stored_plan_makes_the_same_bits_elsewhere(home: Home, clean: Clean, tmp_path: Path, capfd: Capture) -> None:
    found = read_contents(Store(clean.store, create=False))
    folder = clean.store / "sets" / plan_of(found, "dm").key[:16]
    words = ["run", "--plan", str(folder / "plan.json"), "--store", str(tmp_path / "store"), "--device", "cpu", "--json"]
    assert main([*words, "--workers", "1"]) == 0
    assert json.loads(capfd.readouterr().out)["computed"] == [f"set-{folder.name}"]
    other = tmp_path / "store" / "sets" / folder.name
    assert {path.name: path.read_bytes() for path in other.iterdir() if path.name != "record.json"} == {
        path.name: path.read_bytes() for path in folder.iterdir() if path.name != "record.json"
    }
    records = [json.loads(stable(path / "record.json")) for path in (folder, other)]
    assert [record.pop("suite") for record in records] == ["tiny", "plan"]
    assert records[0] == records[1]


# Damage


def test_damage_is_named_and_left_out_and_redo_mends_it(
    home: Home, suites: tuple[Path, Path], clean: Clean, tmp_path: Path, capfd: Capture
) -> None:
    store, only = copy(clean, tmp_path / "store"), ("--only", "space=pixel", "--workers", "1")
    found = read_contents(Store(store))
    dm, scripted = plan_of(found, "dm"), plan_of(found, "tests-scripted")
    tensors = store / "sets" / dm.key[:16] / "set.safetensors"
    content = bytearray(tensors.read_bytes())
    content[-1] ^= 1
    tensors.write_bytes(content)
    (judgement,) = (store / "judgements" / scripted.key[:16]).iterdir()
    judgement.write_text(judgement.read_text().replace('"accuracy": 0.', '"accuracy": 0.0'))
    code, summary, error = home.run(capfd, suites[0], store, *only)
    assert code == 1
    assert (summary["computed"], summary["present"], summary["total"], summary["failed"]) == ([], 1, 4, {})
    assert len(summary["damaged"]) == 2
    assert f"{tensors} is damaged" in error
    assert str(judgement) in error
    assert main(["plan", str(suites[0]), "--store", str(store)]) == 1
    assert "damaged" in capfd.readouterr().out

    (store / "sets" / dm.key[:16] / "notes.txt").write_text("mine")  # what is nothing of ours hinders nothing
    code, summary, error = home.run(capfd, suites[0], store, "--redo", *only)
    assert code == 0, error
    assert sorted(name.partition("-")[0] for name in summary["computed"]) == ["judgement", "judgement", "set"]
    assert contents(store) == clean.contents


# Plugins that misbehave


def by_what(summary: dict[str, Any], what: str) -> str:
    return next(sentence for sentence in summary["failed"].values() if f"what={what})" in sentence.partition(" / ")[0])


def test_plugins_that_misbehave_break_their_own_jobs(
    home: Home, clean: Clean, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Capture
) -> None:
    """Whatever a plugin does in its process, built-in jobs get the bits that they get without it, where the user wants them."""
    switches = "mkldnn+matmul+autocast+dtype+anomaly+hook+functional+spec+images+folder"
    whats = ["raise", "unprintable", "nan", "exit", "leave", "needs"]
    losses = [*(home.scripted(what) for what in (*whats, switches, "talk+mul")), '"tests-broken"', '"dm"']
    suite = home.suite("trouble", losses)
    monkeypatch.chdir(tmp_path)
    code, summary, error = home.run(capfd, suite, Path("trouble"), "--workers", "1")
    store = tmp_path / "trouble"
    assert code == 1
    assert summary["broken"] == [
        "loss 'tests-broken' (ddbench_example.broken:Broken, from ddbench-example-plugin) cannot be imported: "
        "RuntimeError: this module breaks when it is imported."
    ]
    sentences = set(summary["failed"].values())  # a judgement's is that of its set
    assert len(sentences) == len(whats)
    assert all("\n" not in sentence and f"ddbench: {sentence}" in error.splitlines() for sentence in sentences)
    assert "ValueError at scripted.py:" in by_what(summary, "raise")
    assert ": boom, as asked. Mend the plugin or the plan. Its record: " in by_what(summary, "raise")
    assert "Unprintable at scripted.py:" in by_what(summary, "unprintable")
    assert "its message cannot be printed" in by_what(summary, "unprintable")
    assert "the loss was NaN or infinite at step 0. Lower its rates (pixels = 0.01)" in by_what(summary, "nan")
    assert "SystemExit at scripted.py:" in by_what(summary, "exit")
    assert "its worker process died with exit code 7." in by_what(summary, "leave")
    assert " is broken: RuntimeError: it does not know what it needs. Its record" in by_what(summary, "needs")
    failed = [name for name in summary["failed"] if name.startswith("set-")]
    assert len(failed) == len(whats)
    for name in failed:
        (path,) = Store(store).failures(name)
        assert summary["failed"][name].startswith(json.loads(path.read_text())["error"])
        assert summary["failed"][name].endswith(f": {path}")

    kept = {name for name in failed if Store(store).read_failure(Store(store).failures(name)[-1]).place}
    assert len(kept) == 1  # what diverged; whatever else a plugin does wrong may be mended
    assert "NaN" in summary["failed"][kept.pop()]

    found = read_contents(Store(store))
    assert found.faults == ()
    marks = {one.plan.method: one.record.marks for one in found.sets.values()}
    assert len(marks) == 3
    (marked,) = (told for told in marks.values() if told)
    words = ("mkldnn", "matmul", "autocast", "dtype", "anomaly", "hooks", "functional", "the data", "working directory")
    assert [word for word in words if not any(word in mark for mark in marked)] == []
    assert all(f"{mark} Its record says so." in error for mark in marked)
    assert all(record.marks == () for record in found.judgements)
    assert "it talks while it works" in error
    assert "and below Python" in error
    keys = [one.plan.key[:16] for one in found.sets.values() if one.plan.loss.name == "dm"]
    ours = {name: content for name, content in contents(store, "sets", "judgements").items() if keys[0] in name}
    assert ours
    assert ours.items() <= clean.contents.items()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["trouble"]


@pytest.mark.long
def test_each_switch_alone_changes_nothing_for_others(home: Home, clean: Clean, tmp_path: Path, capfd: Capture) -> None:
    """A process each, for every one ends the use of its own. Some stop their own distillation, and say why."""
    words = {
        "mkldnn": "mkldnn", "matmul": "matmul", "autocast": "autocast", "dtype": "dtype", "device": "device", "grad": "grad mode",
        "anomaly": "anomaly", "hook": "hooks", "functional": "functional", "spec": "the data", "images": "the data",
        "folder": "working directory",
    }  # fmt: skip
    suite = home.suite("switches", [*map(home.scripted, words), '"dm"'])
    code, summary, error = home.run(capfd, suite, tmp_path / "store", "--workers", "2")
    found = read_contents(Store(tmp_path / "store"))
    assert found.faults == ()
    for what, word in words.items():
        marks = [one.record.marks for one in found.sets.values() if f"what={what})" in one.plan.method]
        failed = [sentence for sentence in summary["failed"].values() if f"what={what})" in sentence]
        assert failed or any(word in mark for mark in marks[0]), what
    assert len(found.sets) + len([name for name in summary["failed"] if name.startswith("set-")]) == len(words) + 1
    assert code == int(bool(summary["failed"])), error
    key = plan_of(found, "dm").key[:16]
    ours = {name: content for name, content in contents(tmp_path / "store").items() if key in name}
    assert ours.items() <= clean.contents.items()
    assert len(ours) >= 4
