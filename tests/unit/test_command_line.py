"""The command line: a mistake is one sentence on stderr and exit code 2; help is light; no terminal, no bar."""

from __future__ import annotations

import csv
import errno
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from msgspec.structs import replace
from stores import set_contents, set_record

import ddbench.cli
from ddbench.api import Job, JobState
from ddbench.cli import main
from ddbench.cli.bar import Bar
from ddbench.cli.common import load_suite
from ddbench.cli.run import summary_line
from ddbench.errors import ConfigError
from ddbench.grid import worker
from ddbench.grid.counts import Counts
from ddbench.grid.do import GOES_ON
from ddbench.grid.estimates import Estimates
from ddbench.grid.forecast import Forecast
from ddbench.grid.jobs import Work
from ddbench.grid.progress import Outcome
from ddbench.grid.telling import Teller
from ddbench.grid.worker import details_of, sentence_of
from ddbench.leaderboard.tables import CROSS
from ddbench.results.log import Log
from ddbench.results.store import Store
from ddbench.suites import shipped

TINY = """
schema = 1
name = "tiny"
protocol = "smoke-1"
subsets = ["mnist-5k"]
losses = ["dm"]
spaces = ["pixel"]
backbone = { name = "convnet", width = 4 }
networks = [{ name = "convnet", width = 4 }]
baselines = []
"""

Capture = pytest.CaptureFixture[str]


@pytest.fixture
def suite(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DDBENCH_DATA", raising=False)
    path = tmp_path / "tiny.toml"
    path.write_text(TINY)
    return path


def mistake(capsys: Capture, *argv: object) -> str:
    """What a command says that ends with exit code 2 and prints nothing else."""
    assert main([str(word) for word in argv]) == 2
    out, error = capsys.readouterr()
    assert out == ""
    assert error.startswith("ddbench: ")
    assert error.endswith("\n")
    assert "Traceback" not in error
    return error.removeprefix("ddbench: ").rstrip("\n")


def test_an_unknown_suite(capsys: Capture, suite: Path) -> None:
    for verb in ("run", "plan"):
        assert mistake(capsys, verb, "tyni").startswith("unknown suite 'tyni'. It is neither a file nor one of: ")


def test_ipc_zero(capsys: Capture, suite: Path) -> None:
    suite.write_text(TINY + "ipc = [0]\n")
    assert mistake(capsys, "run", suite) == (f"suite '{suite}': 'ipc' holds 0; each entry must be a whole number of at least 1.")
    assert not (suite.parent / "runs").exists()  # nothing is made for a mistake


@pytest.mark.parametrize("verb", ["plan", "run"])
def test_a_store_made_with_another_default(capsys: Capture, suite: Path, verb: str) -> None:
    """The key counts only settings that are told, so a default that changes without `numerics` must not pass for the same."""
    plan = load_suite(str(suite), []).planned.cells[0].set
    assert plan.loss is not None
    before = replace(plan, loss=replace(plan.loss, resolved=plan.loss.resolved | {"momentum": 0.25}))
    store = Store(suite.parent / "runs/tiny")
    assert before.key == plan.key
    store.publish_set(before, set_record(before), set_contents(before))
    assert main([verb, str(suite)]) == 2
    out, error = capsys.readouterr()
    said = error.splitlines()[-1]
    assert out == ""
    assert f"'{plan.name}' ({plan.key[:16]}) with other settings: dm.momentum (0.25 then, None now)." in said
    assert said.endswith("Name another store, or raise `numerics` of the plugin whose default has changed.")


def test_a_missing_data_set(capsys: Capture, suite: Path) -> None:
    suite.write_text(TINY.replace("mnist-5k", "cifar10"))
    said = mistake(capsys, "run", suite)
    assert said.startswith(f"suite '{suite}': dataset 'cifar10' is not under DDBENCH_DATA: expected cifar-10-batches-py/")
    assert " Put them there, or " in said


@pytest.mark.parametrize("more", [("--workers", 0), ("--device", "gpu"), ("--device", "cuda:99"), ("--only", "loss=x")])
def test_wrong_options_make_no_store(capsys: Capture, suite: Path, more: tuple[object, ...]) -> None:
    said = mistake(capsys, "run", suite, *more)
    assert said.startswith({
        "0": "--workers must lie in 1..1024, got 0.",
        "gpu": "unknown device 'gpu'. Name cpu, cuda, cuda:0, ... or auto.",
        "cuda:99": "device 'cuda:99' is not there: ",
        "loss=x": "--only loss=x matches none of the 1 cells.",
    }[str(more[1])])  # fmt: skip
    assert not (suite.parent / "runs").exists()


@pytest.mark.parametrize("verb", ["plan", "prepare", "tune", "run"])
@pytest.mark.parametrize("device", ["nonsense", "cuda:99", "meta"])
def test_a_device_that_is_not_there_is_refused_by_all(capsys: Capture, suite: Path, verb: str, device: str) -> None:
    suite.write_text(TINY + "[tune]\ntrials = 2\n")
    assert f"'{device}'" in mistake(capsys, verb, suite, "--device", device)
    assert not (suite.parent / "runs").exists()


@pytest.mark.slow
def test_stores_that_cannot_be_used(capsys: Capture, suite: Path) -> None:
    newer = suite.parent / "newer"
    newer.mkdir()
    (newer / "store.json").write_text('{"schema": 7}')
    told = f"store {newer} has schema 7, this ddbench reads 2. Update ddbench, or name another store."
    assert mistake(capsys, "run", suite, "--store", newer) == told
    assert mistake(capsys, "plan", suite, "--store", newer) == told
    assert mistake(capsys, "run", suite, "--store", suite.parent).startswith(f"{suite.parent} holds other things")
    said = mistake(capsys, "run", suite, "--store", "/proc/nothing/store")
    assert said.endswith("Check the path, its rights and the free space.")
    assert "/proc/nothing" in said


def test_a_store_that_is_not_there_yet_can_be_planned_for(capsys: Capture, suite: Path) -> None:
    (suite.parent / "empty").mkdir()
    assert main(["plan", str(suite)]) == 0
    plain = capsys.readouterr().out.replace("ddbench run tiny.toml", "")
    for name in ("none", "empty"):
        assert main(["plan", str(suite), "--store", name]) == 0
        told = f"There is no store at {name} yet: all of it is missing.\n"
        out = capsys.readouterr().out
        assert told in out
        assert f"ddbench run {suite} --store {name}" in out
        assert out.replace(told, "").replace(f" --store {name}", "").replace("ddbench run tiny.toml", "") == plain
    assert sorted(path.name for path in suite.parent.iterdir()) == ["empty", "tiny.toml"]
    assert list((suite.parent / "empty").iterdir()) == []
    assert mistake(capsys, "plan", suite, "--store", suite.parent).startswith(f"there is no store at {suite.parent}. Make one")


def test_plan_shows_the_cells_and_writes_nothing(capsys: Capture, suite: Path) -> None:
    assert main(["plan", str(suite), "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert [(cell["method"], cell["set"], cell["judged"]) for cell in shown["cells"]] == [("dm / pixel", "missing", "0 of 1")]
    assert shown["shared"] == []
    assert main(["plan", str(suite)]) == 0
    out = capsys.readouterr().out
    assert "Sets: 1 in all, 0 there, 1 missing.\nJudgements: 1 in all, 0 there, 1 missing. Shared: 0, 0 built." in out
    assert [path.name for path in suite.parent.iterdir()] == ["tiny.toml"]


ALONE = f"ddbench: 'convnet' is the only network beside the backbone that judges: '{CROSS}' repeats its column."
NONE = "ddbench: the backbone 'convnet(width=4)' is none of the networks that judge"
NARROW = '{ name = "convnet", width = 4 }'


@pytest.mark.parametrize(
    ("networks", "told"),
    [
        ('["convnet"]', [f"{NONE} (convnet): ", ALONE]),
        (f'["convnet", {NARROW}]', [ALONE]),
        ('["convnet", "resnet18"]', [f"{NONE} (convnet, resnet18): "]),
        (f'["convnet", "resnet18", {NARROW}]', []),
        (f"[{NARROW}]", []),
        ('["alexnet", "resnet18"]', []),
    ],
)
def test_a_plan_tells_of_columns_that_say_nothing(capsys: Capture, suite: Path, networks: str, told: list[str]) -> None:
    suite.write_text(TINY.replace(f"[{NARROW}]", networks).replace("baselines = []", 'baselines = ["random"]'))
    assert main(["plan", str(suite), "--json"]) == 0
    out, error = capsys.readouterr()
    lines = error.splitlines()
    assert len(lines) == len(told)
    assert all(map(str.startswith, lines, told))
    assert [f"ddbench: {sentence}" for sentence in json.loads(out)["warnings"]] == lines


def test_a_suite_of_broken_plugins_only_runs_nothing(
    capsys: Capture, suite: Path, thirdparty: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(thirdparty))
    suite.write_text(TINY.replace('"dm"', '"tests-broken"'))
    for verb in ("plan", "run"):
        assert main([verb, str(suite)]) == 1
        out, error = capsys.readouterr()
        assert error.startswith("ddbench: loss 'tests-broken' (ddbench_example.broken:Broken, from ddbench-example-plugin)")
        assert len(error.splitlines()) == 1
    assert out.splitlines()[-1] == str(suite.parent / "runs/tiny/leaderboard/leaderboard.md")


@pytest.mark.parametrize("argv", [["--help"], ["run", "--help"], ["plan", "--help"], ["--version"]])
def test_help_imports_nothing_heavy(argv: list[str]) -> None:
    code = (
        "import sys\nfrom ddbench.cli import main\n"
        f"try: main({argv!r})\nexcept SystemExit as end: assert not end.code\n"
        "heavy = {'torch', 'pandas', 'numpy', 'scipy', 'rich', 'PIL', 'ddbench_plugins'} & sys.modules.keys()\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    assert "ddbench" in done.stdout


@pytest.mark.slow
def test_python_m_is_the_command(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "ddbench", "run", "nothing-like-it"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("ddbench: unknown suite 'nothing-like-it'.")
    assert len(done.stderr.splitlines()) == 1


def test_a_stop_is_a_sentence(capsys: Capture, monkeypatch: pytest.MonkeyPatch, suite: Path) -> None:
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("ddbench.cli.run.load_suite", stop)
    assert main(["run", str(suite)]) == 130
    assert capsys.readouterr().err == (
        "ddbench: stopped. Finished cells are kept; the same command goes on from the last checkpoint.\n"
    )


def test_what_was_done_in_a_sentence() -> None:
    two, one = Counts(set=2, judgement=4), Counts(set=1, judgement=1)
    assert summary_line(Outcome(two, two.copy()), "s") == "Nothing to compute: all of 2 sets, 4 judgements is in s."
    assert summary_line(Outcome(), "s") == "Nothing to compute: what was asked for is in s."
    failed = {"set-1": "no", "resource-1": "no"}
    assert summary_line(Outcome(two, one, computed=["judgement-2"], failed=failed), "s") == (
        "Computed: 0 of 2 sets, 1 of 4 judgements; there before: 1 set, 1 judgement; failed: 1 shared thing, 1 set; "
        "2 left out because of damage (--redo makes them anew). All in s."
    )


def waiting(*seconds: float | None) -> Forecast:
    """The forecast of a run with a job for each, of which the records of the store say so much; None: they say nothing."""

    class Known(Estimates):
        def __init__(self) -> None:
            pass

        def kind(self, file: Any) -> str:
            return str(file)

        def units(self, file: Any) -> int:
            return 1

        def seconds_a_unit(self, kind: str) -> float | None:
            return seconds[int(kind)]

    work = [Work(Job("set", f"set-{number}", "x"), cast(Any, number)) for number in range(len(seconds))]
    return Forecast(work, Known(), workers=2, clock=lambda: 0.0)


def test_what_a_run_tells_without_a_terminal(capsys: Capture, tmp_path: Path) -> None:
    """Every job that begins and ends, with how long the rest takes; names are no markup, and there is no bar."""
    forecast, odd = waiting(60.0, 200.0, None), Job("set", "set-1", "dm(sizes=[1,2]) / [/red]")
    bar, total = Bar(Log(tmp_path)), Counts(set=1, judgement=2)
    bar.start(total, Counts(judgement=1), forecast)
    bar.begin(odd)
    for fraction in (0.25, 0.5):
        bar.update(odd, JobState("running", f"{GOES_ON} step 20 of 100", fraction))
    for _ in range(3):
        bar.finish(odd, "busy", 0.1)
    bar.finish(odd, "found", 0.1)
    forecast.finish("set-1")
    shared = Job("resource", "resource-1", "classifier convnet on x, 10 epochs")
    bar.begin(shared)
    bar.finish(shared, "done", 1.25)
    bar.finish(Job("judgement", "judgement-1", "other"), "failed", 200.0)
    bar.end(Outcome(failed={"judgement-1": "it broke."}))
    bar.close()
    out, error = capsys.readouterr()
    assert out == ""
    left = "about 60 s and 1 job of unknown length left"
    lines = [
        "1 set, 2 judgements in all; there already: 1 judgement (about 2 min and 1 job of unknown length left)",
        "begins: dm(sizes=[1,2]) / [/red] (about 2 min and 1 job of unknown length left)",
        "dm(sizes=[1,2]) / [/red]: goes on at step 20 of 100",
        "dm(sizes=[1,2]) / [/red]: another run is computing it; waiting",
        "[1 of 1 set, 1 of 2 judgements] dm(sizes=[1,2]) / [/red]: another run computed it "
        "(about 2 min and 1 job of unknown length left)",
        f"begins: classifier convnet on x, 10 epochs ({left})".replace("60 s", "30 s"),
        f"classifier convnet on x, 10 epochs: done in 1.2 s ({left})".replace("60 s", "30 s"),
        f"[1 of 1 set, 1 of 2 judgements] other: failed in 3 min ({left})".replace("60 s", "30 s"),
    ]
    assert error.splitlines() == lines
    logged = (tmp_path / "log.txt").read_text().splitlines()
    assert [line.partition("] ")[2] for line in logged] == [
        *lines, "failed: it broke.", "ended: 1 of 1 set, 1 of 2 judgements there, 1 jobs failed",
    ]  # fmt: skip
    assert all(re.match(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ \[\d+\] ", line) for line in logged)


def test_a_running_job_says_how_far_it_is_once_a_minute() -> None:
    now, lines, job = [0.0], list[str](), Job("set", "set-1", "dm")
    teller = Teller(lines.append, clock=lambda: now[0])
    teller.start(Counts(set=1), Counts())
    teller.begin(job)
    for second in range(0, 200, 10):
        now[0] = second
        teller.update(job, JobState("running", "distill", second / 200))
    assert lines[2:] == ["dm: distill, 30 %", "dm: distill, 60 %", "dm: distill, 90 %"]


def test_quiet_is_quiet_and_the_log_still_has_it(capsys: Capture, tmp_path: Path) -> None:
    bar = Bar(Log(tmp_path), quiet=True)
    bar.start(Counts(set=1), Counts())
    bar.begin(Job("set", "set-1", "dm"))
    bar.close()
    assert capsys.readouterr() == ("", "")
    assert (tmp_path / "log.txt").read_text().endswith("begins: dm\n")


def test_a_log_is_appended_to_bounded_and_plain(tmp_path: Path) -> None:
    log = Log(tmp_path, most_bytes=200)
    log.add("one\n\x1b[31mtwo")
    Log(tmp_path, most_bytes=200).add("three" * 10)
    first, second = log.path.read_text().splitlines()
    assert first.endswith("] one  [31mtwo")
    assert second.endswith("] " + "three" * 10)
    for number in range(20):
        log.add(f"line {number}")
    assert log.path.read_text().endswith("line 19\n")
    assert log.path.stat().st_size <= 200
    assert log.older.stat().st_size <= 200
    log.path.unlink()
    log.path.mkdir()
    log.add("nowhere")  # no run fails for it


def test_a_forecast_learns_from_the_run_itself() -> None:
    now = [0.0]
    forecast = waiting(None, None, 100.0)
    forecast.clock = lambda: now[0]
    assert str(forecast.left()) == "about 50 s and 2 jobs of unknown length left"
    forecast.begin("set-0")
    now[0] = 10.0
    forecast.update("set-0", 0.5)  # another process has done so much
    assert forecast.left().unknown == 2
    now[0] = 20.0
    forecast.update("set-0", 0.75)  # a quarter takes ten seconds, so there are ten more
    assert (forecast.left().unknown, forecast.left().seconds) == (1, (10 + 100) / 2)
    forecast.finish("set-0")
    forecast.begin("set-2")
    now[0] = 50.0  # it does not say how far it is
    assert forecast.left().seconds == (100 - 30) / 2
    forecast.finish("set-2")
    assert str(forecast.left()) == "time left: unknown"
    forecast.finish("set-1")
    assert str(forecast.left()) == "nothing left"


def test_a_forecast_counts_what_jobs_took_from_begin_to_end() -> None:
    """Records count less: no process that starts, no data that are read."""
    now, forecast = [0.0], waiting(1.0, 1.0)
    forecast.clock = lambda: now[0]
    forecast.place = dict.fromkeys(forecast.place, ("0", 1))
    forecast.jobs, forecast.units = Counter({"0": 2}), Counter({"0": 2})
    assert forecast.left().seconds == 1.0
    forecast.begin("set-0")
    now[0] = 30.0
    forecast.finish("set-0")
    assert forecast.left().seconds == 30.0


class Unprintable(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no")


def test_whatever_a_plugin_raises_is_a_sentence(tmp_path: Path) -> None:
    for error, told in (
        (ValueError("two\nlines."), "the cell: ValueError at test_command_line.py:"),
        (KeyError(), "the cell: KeyError at test_command_line.py:"),
        (RuntimeError("x" * 1000), "the cell: RuntimeError at test_command_line.py:"),
        (Unprintable(), "the cell: Unprintable at test_command_line.py:"),
        (SystemExit("bye"), "the cell: SystemExit at test_command_line.py:"),
    ):
        try:
            raise error
        except BaseException as caught:
            said, details = sentence_of(caught, "the cell", tmp_path), details_of(caught)
        assert said.startswith(told)
        assert said.endswith(". Mend the plugin or the plan.")
        assert "\n" not in said
        assert ".." not in said
        assert len(said) < 500
        assert type(error).__name__ in details
        assert "test_command_line.py" in details


def test_a_mistake_and_a_full_disc_are_told_as_they_are(tmp_path: Path) -> None:
    assert sentence_of(ConfigError("name another."), "the cell", tmp_path) == "the cell: name another."
    assert sentence_of(ConfigError("the cell: name another."), "the cell", tmp_path) == "the cell: name another."
    told = f"the disc that holds {tmp_path} is full. Free some space, then give the same command again; finished work is kept."
    assert sentence_of(OSError(errno.ENOSPC, "no space"), "the cell", tmp_path) == told


def test_a_shared_thing_that_fails_is_named_by_what_it_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    told = list[str]()

    def build(file: Any, place: Any, report: Any) -> str:
        place.doing = "classifier convnet on x, 10 epochs"
        raise ConfigError("no room.")

    monkeypatch.setattr("ddbench.grid.do.do_job", build)
    store = SimpleNamespace(root=tmp_path, read_job=lambda name: "a file")
    place = SimpleNamespace(
        store=store, title_of=lambda file: "resource 01234567", marks=tuple, is_stained=False, device=torch.device("cpu"),
        fail=lambda name, title, sentence, *more: told.append(sentence),
    )  # fmt: skip
    assert worker._do("resource-0123456789abcdef", place, cast(Any, None)) == "failed"
    assert told == ["classifier convnet on x, 10 epochs: no room."]


# Options of a run


@pytest.mark.parametrize("shard", ["0/2", "3/2", "1", "a/b", "1/0", "-1/2", "1/2/3"])
def test_a_shard_is_one_of_several(capsys: Capture, suite: Path, shard: str) -> None:
    with pytest.raises(SystemExit):
        main(["run", str(suite), f"--shard={shard}"])
    assert "must be I/N with I from 1 to N, as in 2/8" in capsys.readouterr().err


@pytest.mark.parametrize("seconds", ["-1", "nan", "inf", "soon"])
def test_seconds_between_checkpoints_are_a_number(capsys: Capture, suite: Path, seconds: str) -> None:
    with pytest.raises(SystemExit):
        main(["run", str(suite), f"--checkpoint-seconds={seconds}"])
    assert "must be a number of seconds, at least 0" in capsys.readouterr().err


def test_a_run_is_of_a_suite_or_of_a_plan(capsys: Capture, suite: Path) -> None:
    assert mistake(capsys, "run").startswith("name a suite (such as quickstart), or a stored plan with --plan plan.json")
    assert mistake(capsys, "run", suite, "--plan", "plan.json").endswith("and not both.")
    assert mistake(capsys, "run", suite, "--job", "x", "--shard", "1/2").startswith("--job and --shard exclude one another")


def test_stored_plans_that_cannot_be_made(capsys: Capture, suite: Path) -> None:
    assert mistake(capsys, "run", "--plan", "none.json").startswith("plan none.json is missing.")
    (suite.parent / "plan.json").write_text("{")
    assert mistake(capsys, "run", "--plan", "plan.json").startswith("plan plan.json is damaged (")


def test_a_job_that_there_is_not(capsys: Capture, suite: Path) -> None:
    assert mistake(capsys, "run", suite, "--job", "set-0123456789abcdef").startswith(
        "there is no job 'set-0123456789abcdef' to do. List them with: ddbench plan SUITE --jobs"
    )


def test_jobs_are_listed_by_name(capsys: Capture, suite: Path) -> None:
    assert mistake(capsys, "plan", suite, "--jobs").startswith("--jobs needs a store that is there")
    Store(suite.parent / "store")
    words = ["plan", str(suite), "--store", "store", "--jobs"]
    assert main([*words, "--json"]) == 0
    made, judged = json.loads(capsys.readouterr().out)["jobs"]
    assert (made["kind"], judged["kind"], judged["needs"]) == ("set", "judgement", [made["name"]])
    assert (made["seconds"], made["memory_bytes"]) == (None, None)  # nothing like it has been done here
    assert main(words) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines == [f"{made['name']}  {made['title']}", f"{judged['name']}  {judged['title']}"]


# Ends


def test_sigterm_ends_like_a_stop(capsys: Capture, monkeypatch: pytest.MonkeyPatch, suite: Path) -> None:
    before = signal.getsignal(signal.SIGTERM)

    def stop(*_: object) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        threading.Event().wait(60)

    monkeypatch.setattr("ddbench.cli.run.load_suite", stop)
    assert main(["run", str(suite)]) == 130
    assert capsys.readouterr().err.startswith("ddbench: stopped.")
    assert signal.getsignal(signal.SIGTERM) == before


def test_outside_of_the_main_thread_signals_are_left_alone(capsys: Capture) -> None:
    ends: list[int] = []
    thread = threading.Thread(target=lambda: ends.append(main(["plan", "nothing-like-it"])))
    thread.start()
    thread.join()
    assert ends == [2]


COMMITTED = Path(__file__).parents[2] / "leaderboards" / "quickstart" / "store"


BASELINE = str(COMMITTED.parent / "baseline.json")


@pytest.mark.slow
@pytest.mark.parametrize(
    "words",
    [
        "plan tiny.toml --json", f"leaderboard {COMMITTED} --out page --json",
        *(pytest.param(words, marks=pytest.mark.long)
          for words in ("plan tiny.toml", f"store verify {COMMITTED}", f"check {COMMITTED} --baseline {BASELINE}", "plugins",
                        "run --help", "")),
    ],
    ids=lambda words: " ".join(word for word in words.split() if "/" not in word),
)  # fmt: skip
@pytest.mark.parametrize("both", [pytest.param(True, marks=pytest.mark.long), False])
def test_whoever_reads_may_go(tmp_path: Path, suite: Path, words: str, both: bool) -> None:
    """A pipe that nobody reads any more ends a command without a word; also where it gets what is unbuffered, and the errors."""
    read, write = os.pipe()
    os.close(read)
    errors = tmp_path / "errors"
    with errors.open("w") as file:
        command = [sys.executable, *(["-u"] if both else []), "-m", "ddbench", *words.split()]
        done = subprocess.run(command, stdout=write, stderr=write if both else file, timeout=600, cwd=tmp_path)
    os.close(write)
    assert errors.read_text() == ""
    assert done.returncode in (0, 141)


def keys_of(value: Any) -> set[str]:
    """All keys of an object and of those in it."""
    if isinstance(value, dict):
        return {*value, *(key for part in value.values() for key in keys_of(part))}
    return {key for part in value for key in keys_of(part)} if isinstance(value, list) else set()


@pytest.mark.slow
@pytest.mark.parametrize(
    "words",
    ["plan tiny.toml", "prepare tiny.toml --estimate", f"leaderboard {COMMITTED} --out page", f"store verify {COMMITTED}",
     f"check {COMMITTED} --baseline {BASELINE}", "plugins", f"resources {COMMITTED}", "protocols", "presets lineage",
     "data list"],
    ids=lambda words: words.split()[0],
)  # fmt: skip
def test_json_has_no_keys_with_spaces(capsys: Capture, suite: Path, words: str) -> None:
    assert main([*words.split(), "--json"]) == 0
    assert [key for key in keys_of(json.loads(capsys.readouterr().out)) if " " in key] == []


@pytest.mark.slow
def test_commands_that_only_look_write_nothing(capsys: Capture, suite: Path) -> None:
    shutil.copytree(COMMITTED, suite.parent / "kept")

    def state() -> dict[Path, int]:
        return {path: path.stat().st_mtime_ns for path in suite.parent.rglob("*")}

    before = state()
    for words in (
        "plan tiny.toml", "prepare tiny.toml --estimate", "prepare quickstart --estimate --store kept",
        "plan quickstart --store kept", "plan quickstart --store kept --jobs", "resources kept", "resources kept --verify",
        "store verify kept", f"check kept --baseline {BASELINE}", "data list", "plugins", "presets lineage",
    ):  # fmt: skip
        assert main(words.split()) == 0, words
        assert state() == before, words


def test_a_board_is_exported_as_csv(capsys: Capture, tmp_path: Path) -> None:
    command = ["leaderboard", str(COMMITTED), "--out", str(tmp_path)]
    assert main([*command, "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["ranked"]
    assert main([*command, "--csv"]) == 0
    lines = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert len(lines) == len(rows)
    for row, line in zip(rows, lines, strict=True):
        assert (line["method"], line["ranked"], line["seeds"]) == (row["method"], "True", "; ".join(map(str, row["seeds"])))
        for name, value in row["networks"].items():
            assert float(line[f"networks.{name}.mean"]) == value["mean"]


# What plugins do while they are asked

LOUD = """
import os
from dataclasses import dataclass
from pathlib import Path
from ddbench.api import Loss
print("it talks when it is imported")
@dataclass(frozen=True)
class Loud(Loss):
    rates = {"pixels": 1.0}
    def needs(self, run):
        print("it talks when it is asked")
        os.chdir("/")
        return ()
    def backward(self, syn, memory, run):
        raise AssertionError("nobody distils here")
"""


def test_plugins_that_print_or_change_folder_while_they_are_asked(
    capsys: Capture, suite: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    info = suite.parent / "site" / "tests_loud-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "entry_points.txt").write_text("[ddbench.losses]\ntests-loud = tests_loud:Loud\n")
    (info.parent / "tests_loud.py").write_text(LOUD)
    monkeypatch.syspath_prepend(str(info.parent))
    suite.write_text(TINY.replace('"dm"', '"tests-loud"'))
    Store(suite.parent / "here")
    assert main(["plan", "tiny.toml", "--store", "here", "--json"]) == 0
    out, error = capsys.readouterr()
    assert json.loads(out)["store"] == "here"
    assert "it talks when it is imported" in error
    assert "it talks when it is asked" in error
    assert Path.cwd() == suite.parent


# Scripts


SCRIPT = """
from ddbench.cli import main
end = main(["run", "tiny.toml", "--store", "store", "--workers", "1", "--device", "cpu", "--only", "baseline=random", "--json"])
print("the script goes on after", end)
"""


@pytest.mark.slow
@pytest.mark.parametrize("place", [pytest.param("a file", marks=pytest.mark.long), "standard input"])
def test_a_script_without_a_main_guard_just_works(suite: Path, place: str) -> None:
    text = TINY.replace("width = 4 }", "width = 4, depth = 1 }")
    suite.write_text(text.replace("baselines = []", 'baselines = ["random"]'))
    (suite.parent / "script.py").write_text(SCRIPT)
    command = [sys.executable, *(["script.py"] if place == "a file" else ["-"])]
    given = None if place == "a file" else SCRIPT
    done = subprocess.run(command, input=given, cwd=suite.parent, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("the script goes on after 0\n")
    assert done.stdout.count("the script") == 1  # no worker has run it again
    assert len(list((suite.parent / "store" / "judgements").rglob("*.json"))) == 1


DEAD = """
import os, sys
if "-c" in sys.orig_argv and any("ddbench.grid.worker" in word for word in sys.orig_argv):
    print("no JSON")
    sys.stdout.flush()
    os._exit(1)
"""


def test_workers_that_die_at_the_start_are_a_sentence(capsys: Capture, suite: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (suite.parent / "dead").mkdir()
    (suite.parent / "dead" / "sitecustomize.py").write_text(DEAD)
    monkeypatch.setenv("PYTHONPATH", str(suite.parent / "dead"))
    assert main(["run", str(suite), "--store", "store", "--device", "cpu", "--workers", "2", "--json"]) == 1
    out, error = capsys.readouterr()
    failed = json.loads(out)["failed"]
    assert len(failed) == 2
    (sentence,) = set(failed.values())
    assert "its worker process died with exit code 1. Give the same command again" in sentence
    assert f"ddbench: {sentence}" in error.splitlines()


# The first words, and wrong ones


def test_a_newcomer_is_greeted(capsys: Capture) -> None:
    assert main([]) == 0
    out, error = capsys.readouterr()
    assert out.startswith(f"ddbench {ddbench.__version__} makes tiny synthetic training sets")
    assert "ddbench run quickstart     begin here" in out
    assert error == ""


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["rnu", "quickstart"], "Did you mean 'run'?"),
        (["run", "quickstart", "--stroe", "x"], "unrecognized arguments: --stroe x. Did you mean '--store'?"),
        (["store", "verfy", "x"], "Did you mean 'verify'?"),
        (["evaluate", "x.pt", "--image=pixel", "--arch"], "Did you mean 'pixels'?"),
        (["plan", "quickstart", "--zzz"], "ddbench plan: error: unrecognized arguments: --zzz"),
    ],
)
def test_a_wrong_word_is_answered_with_the_near_one(capsys: Capture, words: list[str], told: str) -> None:
    with pytest.raises(SystemExit) as end:
        main(words)
    assert end.value.code == 2
    assert capsys.readouterr().err.rstrip().endswith(told)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("line", "expected"),
    [("ddbench pl", {"plan", "plugins"}), ("ddbench run glad-t", {name for name in shipped() if name.startswith("glad-t")}),
     ("ddbench prepare quickstart --es", {"--estimate"})],
)  # fmt: skip
def test_shells_complete_words(tmp_path: Path, line: str, expected: set[str]) -> None:
    asked = {"_ARGCOMPLETE": "1", "COMP_LINE": line, "COMP_POINT": str(len(line)), "_ARGCOMPLETE_STDOUT_FILENAME": "words"}
    subprocess.run([sys.executable, "-m", "ddbench"], env=os.environ | asked, cwd=tmp_path, timeout=600, check=False)
    assert {word.strip() for word in (tmp_path / "words").read_text().split("\x0b")} == expected


def test_scripts_of_the_command_are_marked_for_completion() -> None:
    source = Path(str(ddbench.cli.__file__)).read_text()
    assert "PYTHON_ARGCOMPLETE_OK" in source[:1024]
