"""The grid through the real command line: kills, stops, several runners at once, plugins that misbehave.

Real data, and a protocol of two epochs; a made-up distribution offers a loss that does what a test asks of it.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from ddbench.errors import ConfigError
from ddbench.grid.runner import Identities, Progress, Runner, devices_of
from ddbench.grid.worker import Message
from ddbench.results.store import Store, stable
from ddbench.suite.reader import Suite

pytestmark = pytest.mark.slow
PATIENCE = 1200  # seconds until a test gives up; nothing is asserted about time

SCRIPTED = '''
import os, signal, sys, time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch

from ddbench.api import Loss

@dataclass(frozen=True)
class Scripted(Loss):
    """Pulls every image towards a real one, harder with every step it remembers; does what `what`, or a file, says at a step."""

    folder: str
    what: str = ""
    rates: ClassVar[Mapping[str, float]] = {"pixels": 0.01, "f": 0.01, "w": 0.01}

    def needs(self, run):
        if self.what == "needs":
            raise RuntimeError("it does not know what it needs")
        return ()

    def init(self, run):
        return {"seen": torch.zeros(())}

    def backward(self, syn, memory, run):
        home = Path(self.folder)
        with (home / "steps").open("a") as log:
            log.write(f"{os.getpid()} {self.what} {syn.images.shape[0]} {run.step}\\n")
        if run.step == 3:
            self.act(home)
        memory["seen"] += 1
        real = torch.cat([run.real(label, 1, run.rng("real", run.step, label)) for label in range(run.spec.num_classes)])
        value = (syn.images - real).square().mean() * memory["seen"]
        value.backward(inputs=syn.leaves)
        return value.detach() * (float("nan") if self.what == "nan" else 1)

    def act(self, home):
        if self.what == "raise":
            raise ValueError("boom, as\\nasked.")
        if self.what == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if self.what == "exit":
            sys.exit("bye")
        for name in ("wait", "orphan"):
            if (home / name).exists():
                (home / name).unlink()
                if name == "orphan":
                    os.kill(os.getppid(), signal.SIGKILL)
                while True:
                    time.sleep(0.05)
'''

TINY = """
schema = 1
name = "tiny"
protocol = "smoke-1"
seeds = [0]
subsets = ["mnist-5k"]
losses = [{losses}]
spaces = [{spaces}]
generator = {{ name = "cvae-random", width = 8 }}
backbone = {{ name = "convnet", width = 4, depth = 1 }}
networks = [{{ name = "convnet", width = 4, depth = 1 }}]
baselines = [{baselines}]
[distill]
steps = 6
rank_epochs = 2
rank_every = 2
proxy_epochs = 1
[[override]]
where = {{ loss = "dm" }}
set = {{ loss = {{ batch_real = 4 }} }}
[[override]]
where = {{ space = "hpd" }}
set = {{ rank_steps = "feature-distance", rank_stages = "validation" }}
"""


@dataclass
class Desk:
    """A folder to run in, and `ddbench run` in it."""

    root: Path
    path: str  # PYTHONPATH

    def suite(self, name: str, losses: list[str], spaces: list[str], baselines: list[str]) -> Path:
        quoted = ", ".join(f'"{baseline}"' for baseline in baselines)
        path = self.root / f"{name}.toml"
        path.write_text(TINY.format(losses=", ".join(losses), spaces=", ".join(spaces), baselines=quoted))
        return path

    def start(self, suite: Path, store: str, *more: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "ddbench", "run", str(suite), "--store", store, "--device", "cpu", "--json", *more]
        environment = os.environ | {"PYTHONPATH": self.path}
        return subprocess.Popen(
            command, cwd=self.root, env=environment, text=True, start_new_session=True, preexec_fn=hear_interrupts,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip

    def run(self, suite: Path, store: str, *more: str) -> tuple[int, dict[str, Any], str]:
        """Exit code, the JSON, what stderr got."""
        out, error, code = finish(self.start(suite, store, *more))
        assert "Traceback" not in error, error
        assert code in (0, 1), error
        return code, json.loads(out), error

    def steps(self, what: str = "") -> list[list[str]]:
        """[pid, what, images, step] of every step that the scripted loss took."""
        log = self.root / "steps"
        lines = [line.split(" ") for line in log.read_text().splitlines()] if log.exists() else []
        return [line for line in lines if line[1] == what]


def hear_interrupts() -> None:
    """A shell that runs the tests in the background lets its children ignore Ctrl-C; as at a terminal, these must not."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def finish(process: subprocess.Popen[str]) -> tuple[str, str, int]:
    try:
        out, error = process.communicate(timeout=PATIENCE)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        raise
    return out, error, process.returncode


def until(condition: Callable[[], object], process: subprocess.Popen[str] | None = None) -> None:
    """Wait for something to become true, or for the process to end."""
    give_up = time.monotonic() + PATIENCE
    while not condition() and (process is None or process.poll() is None):
        assert time.monotonic() < give_up, "waited in vain"
        time.sleep(0.005)


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    stat = Path(f"/proc/{pid}/stat")
    return not stat.exists() or stat.read_text().rpartition(")")[2].split()[0] != "Z"  # a zombie is dead


def kill_group(process: subprocess.Popen[str]) -> None:
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
    finish(process)


def contents(store: Path) -> dict[str, dict[str, bytes]]:
    """Every finished cell's files; of the record, what must be the same when it is made again."""
    cells: dict[str, dict[str, bytes]] = {}
    for folder in sorted((store / "cells").iterdir()):
        files = {path.name: path.read_bytes() for path in folder.iterdir()}
        record = json.loads(files["record.json"])
        assert set(record["measured"]["seconds"]) == {"resources", "distill", "rank", "evaluate"}
        cells[folder.name] = files | {"record.json": json.dumps(stable(record), sort_keys=True).encode()}
    return cells


def assert_no_leftovers(store: Path) -> None:
    assert list((store / "work").iterdir()) == []
    assert [path for path in (store / "resources").iterdir() if path.is_dir() and path.name.startswith(".")] == []


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory, thirdparty: Path) -> Desk:
    root, home = tmp_path_factory.mktemp("desk"), tmp_path_factory.mktemp("scripted")
    info = home / "scripted_losses-3.1.dist-info"
    info.mkdir()
    (info / "entry_points.txt").write_text("[ddbench.losses]\ntests-scripted = scripted:Scripted\n")
    (home / "scripted.py").write_text(SCRIPTED)
    return Desk(root, os.pathsep.join([str(thirdparty), str(home)]))


def scripted(desk: Desk, what: str = "") -> str:
    return f'{{ name = "tests-scripted", folder = "{desk.root}", what = "{what}" }}'


@pytest.fixture(scope="module")
def suites(desk: Desk) -> tuple[Path, Path]:
    """One grid in two orders: 8 cells, of which two need two shared resources."""
    losses, spaces = ['"dm"', scripted(desk), '"tests-mean-image"'], ['"pixel"', '{ name = "hpd" }']
    override = """
[[override]]
where = { loss = "tests-mean-image" }
set = { rates = { pixels = 0.1 } }
[[override]]
where = { loss = "tests-mean-image", space = "hpd" }
set = { rates = { f = 0.1, w = 0.1 } }
"""
    first = desk.suite("forward", losses, spaces, ["random", "full-data"])
    second = desk.suite("backward", losses[::-1], spaces[::-1], ["full-data", "random"])
    for path in (first, second):
        path.write_text(path.read_text() + override)
    return first, second


@pytest.fixture(scope="module")
def clean(desk: Desk, suites: tuple[Path, Path]) -> tuple[dict[str, dict[str, bytes]], dict[str, Any], str]:
    """What an uninterrupted run with one worker makes; its summary and its stderr."""
    code, summary, error = desk.run(suites[0], "clean", "--workers", "1")
    assert code == 0, error
    return contents(desk.root / "clean"), summary, error


def test_a_run_from_scratch_and_a_second_one(desk: Desk, suites: tuple[Path, Path], clean: Any) -> None:
    cells, summary, error = clean
    assert len(cells) == 8
    assert len(summary["computed"]) == 8
    assert (summary["present"], summary["failed"], summary["broken"]) == (0, {}, [])
    assert Path(desk.root, summary["leaderboard"]).is_file()
    assert "\x1b" not in error  # no terminal, no bar
    assert "\r" not in error
    lines = error.splitlines()
    assert lines[0] == "8 cells, 0 already there"
    assert [line.partition("]")[0] for line in lines if line.startswith("[") and "shared" not in line] == [
        f"[{number}/8" for number in range(1, 9)
    ]
    assert all(lines), "an empty line is a bar's remains"
    before = {path: path.stat().st_mtime_ns for path in (desk.root / "clean" / "cells").rglob("*")}
    process = subprocess.run(
        [sys.executable, "-m", "ddbench", "run", str(suites[0]), "--store", "clean"],
        cwd=desk.root, env=os.environ | {"PYTHONPATH": desk.path}, capture_output=True, text=True, timeout=PATIENCE,
    )  # fmt: skip
    assert process.returncode == 0
    assert process.stdout.splitlines() == ["Nothing to compute: all 8 cells are in clean.", "clean/leaderboard/leaderboard.md"]
    assert process.stderr == ""
    assert {path: path.stat().st_mtime_ns for path in (desk.root / "clean" / "cells").rglob("*")} == before
    assert_no_leftovers(desk.root / "clean")


def test_records_name_where_plugins_come_from(desk: Desk, clean: Any) -> None:
    plans = [json.loads(files["plan.json"]) for files in clean[0].values()]
    losses = {plan["loss"]["name"]: plan["loss"] for plan in plans if plan["loss"]}
    sources = {name: (loss["distribution"], loss["version"]) for name, loss in losses.items()}
    assert sources["tests-mean-image"] == ("ddbench-example-plugin", "1.2.3")
    assert sources["tests-scripted"] == ("scripted-losses", "3.1")
    for files in clean[0].values():
        record = json.loads(files["record.json"])
        assert record["plan"] == json.loads(files["plan.json"])
        assert len(record["evaluations"]) == 1
        if record["plan"]["baseline"] != "full-data":
            assert {"distilled.safetensors", "images.png"} <= files.keys()


def test_killed_runs_end_with_the_same_bytes(desk: Desk, suites: tuple[Path, Path], clean: Any) -> None:
    """Ctrl-C, a killed parent, killed groups at points that differ, then to the end: not a byte tells."""
    store = desk.root / "killed"
    alone, more = (("--workers", str(num), "--checkpoint-seconds", "0") for num in (1, 2))
    (desk.root / "steps").unlink()

    # Ctrl-C while the worker is inside a step; of two, either could come to that step first
    (desk.root / "wait").touch()
    process = desk.start(suites[0], "killed", *alone)
    until(lambda: desk.steps() and not (desk.root / "wait").exists(), process)
    os.killpg(process.pid, signal.SIGINT)
    _, error, code = finish(process)
    assert code == 130
    assert error.splitlines()[-1] == (
        "ddbench: stopped. Finished cells are kept; the same command goes on from the last checkpoint."
    )
    assert "Traceback" not in error
    assert not any(is_alive(int(line[0])) for line in desk.steps())
    checkpoints = list((store / "work").glob("*/checkpoint.safetensors"))
    assert checkpoints, "the point was to go on from the middle of a cell"
    assert any(float(load_file(path).get("memory.seen", -1)) == 3 for path in checkpoints)

    # the parent alone: its worker notices. It also goes on from step 3, not from 0
    first = len(desk.steps())
    (desk.root / "orphan").touch()
    process = desk.start(suites[0], "killed", *alone)
    finish(process)
    assert process.returncode == -signal.SIGKILL
    assert not (desk.root / "orphan").exists()
    until(lambda: not any(is_alive(int(line[0])) for line in desk.steps()))
    assert int(desk.steps()[first][3]) == 3

    # the whole group: while something is written, between two files, and wherever a seeded draw falls
    draw = random.Random(20)
    num_steps = len(desk.steps()) + draw.randrange(2, 9)
    points: list[Callable[[], object]] = [
        lambda: list((store / "work").glob("*/evaluations.json")),
        lambda: list((store / "work").glob(".*.*")),
        lambda: len(desk.steps()) >= num_steps,
    ]
    for point in points:
        process = desk.start(suites[0], "killed", *more)
        until(point, process)
        time.sleep(draw.random() / 20)
        kill_group(process)

    code, summary, error = desk.run(suites[0], "killed", *more)
    assert code == 0, error
    assert summary["present"] + len(summary["computed"]) == 8
    assert contents(store) == clean[0]
    assert_no_leftovers(store)


def test_two_runners_share_one_store_in_another_order(desk: Desk, suites: tuple[Path, Path], clean: Any) -> None:
    processes = [desk.start(suite, "shared", "--workers", "1") for suite in suites]
    ends = [finish(process) for process in processes]
    summaries = [json.loads(out) for out, _, _ in ends]
    assert [code for _, _, code in ends] == [0, 0], ends
    computed = [key for summary in summaries for key in summary["computed"]]
    assert len(computed) == len(set(computed)) == 8  # each cell once, by one of them
    assert all(summary["present"] + len(summary["computed"]) == 8 for summary in summaries)
    for _, error, _ in ends:
        waiting = [line for line in error.splitlines() if line.endswith("another run is computing it; waiting")]
        assert len(waiting) == len(set(waiting))  # said once
    assert contents(desk.root / "shared") == clean[0]
    assert_no_leftovers(desk.root / "shared")


def test_plugins_that_misbehave_break_their_own_cells(desk: Desk) -> None:
    whats = ["raise", "nan", "kill", "exit", "needs"]
    losses = [*(scripted(desk, what) for what in whats), '"tests-broken"', '"dm"']
    suite = desk.suite("trouble", losses, ['"pixel"'], ["random"])
    for attempt in range(2):
        code, summary, error = desk.run(suite, "trouble", "--workers", "2")
        assert code == 1
        assert (len(summary["computed"]), summary["present"]) == ((2, 0) if attempt == 0 else (0, 2))
        assert summary["broken"] == [
            "loss 'tests-broken' (ddbench_example.broken:Broken, from ddbench-example-plugin) cannot be imported: "
            "RuntimeError: this module breaks when it is imported."
        ]
        said = sorted(summary["failed"].values())
        assert len(said) == len(whats)
        assert all("\n" not in sentence and f"ddbench: {sentence}" in error.splitlines() for sentence in said)
        by_what = {what: next(s for s in said if f"what={what}" in s.partition(")")[0]) for what in whats}
        assert "ValueError at scripted.py:" in by_what["raise"]
        assert by_what["raise"].endswith(
            ": boom, as asked. The traceback is in the failure record; mend the plugin or the plan."
        )
        assert "the loss was NaN or infinite at step 0. Lower its rates (pixels = 0.01)" in by_what["nan"]
        assert "its worker process died with exit code -9 (signal 9:" in by_what["kill"]
        assert "its worker process died with exit code 1." in by_what["exit"]
        assert "RuntimeError at scripted.py:" in by_what["needs"]
        for key, sentence in summary["failed"].items():  # every attempt is on record, none is rewritten
            paths = Store(desk.root / "trouble").failures(key)
            assert [path.name for path in paths] == [f"{number}.json" for number in range(attempt + 1)]
            assert json.loads(paths[-1].read_text())["error"] == sentence


class Calls(Progress):
    def __init__(self) -> None:
        self.kinds: list[str] = []

    def finish(self, job: Any, message: Message, seconds: float) -> None:
        self.kinds.append(message.kind)


@pytest.fixture
def idle(tmp_path: Path) -> Runner:
    return Runner(Suite("none", "", (), "", None), [], Store(tmp_path / "store"), Identities(), Calls())


def test_a_runner_without_cells_does_nothing(idle: Runner) -> None:
    outcome = idle.run(["cpu"])
    assert (outcome.present, outcome.computed, outcome.failed) == (0, [], {})
    assert idle.workers == []


def test_workers_are_as_many_as_asked_or_as_cores_allow() -> None:
    assert devices_of("cpu", 3, []) == ["cpu"] * 3
    assert set(devices_of("cpu", None, [])) == {"cpu"}
    with pytest.raises(ConfigError, match=r"^--workers must be at least 1, got 0\.$"):
        devices_of("cpu", 0, [])
    with pytest.raises(ConfigError, match="unknown device 'gpu'"):
        devices_of("gpu", 1, [])
