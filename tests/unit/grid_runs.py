"""Running grids in tests: a made-up distribution whose loss does what a test asks of it, tiny suites, and stores compared."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from ddbench.cli import main

PATIENCE = 600  # seconds until a test gives up; nothing is asserted about time

SCRIPTED = '''
import os, signal, sys, time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch

from ddbench.api import Loss, ProtocolText, Resource


class Unprintable(Exception):
    def __str__(self):
        raise RuntimeError("it cannot be printed")


@dataclass(frozen=True)
class Noise(Resource):
    """Something small that is shared."""

    def build(self, run):
        return {"noise": torch.rand(1, generator=run.rng("noise"))}


@dataclass(frozen=True)
class Scripted(Loss):
    """Pulls every image towards a real one, harder with every step it remembers; does what `what`, or a file, says at a step."""

    folder: str
    what: str = ""
    rates: ClassVar[Mapping[str, float]] = {"pixels": 0.01, "f": 0.01, "w": 0.01}

    def needs(self, run):
        if self.what == "needs":
            raise RuntimeError("it does not know what it needs")
        if self.what == "talk":
            print("it talks when it is asked")
        return ()

    def init(self, run):
        return {"seen": torch.zeros(())}

    def backward(self, syn, memory, run):
        home = Path(self.folder)
        with (home / "steps").open("a") as log:
            log.write(f"{os.getpid()} {self.what} {syn.images.shape[0]} {run.step}\\n")
        if run.step == 3:
            for what in self.what.split("+"):
                self.act(what, home, run)
        memory["seen"] += 1
        real = torch.cat([run.real(label, 1, run.rng("real", run.step, label)) for label in range(run.spec.num_classes)])
        value = (syn.images - real).square().mean() * memory["seen"]
        value.backward(inputs=syn.leaves)
        return value.detach() * (float("nan") if self.what == "nan" else 1)

    def act(self, what, home, run):
        if what == "raise":
            raise ValueError("boom, as\\nasked.")
        if what == "unprintable":
            raise Unprintable
        if what == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if what == "leave":  # and leave a child that holds every pipe
            if os.fork():
                os._exit(7)
            until = time.monotonic() + 600
            while not (home / "end").exists() and time.monotonic() < until:
                time.sleep(0.05)
            os._exit(0)
        if what == "exit":
            sys.exit("bye")
        if what == "talk":
            print("it talks while it works", sys.stdin.read())
            os.write(1, b"and below Python\\n")
        if what == "mul":
            run.real(0, 10**9, run.rng("all")).mul_(0.5)
        if what in SWITCHES:
            SWITCHES[what](run)
        for name in ("wait", "orphan"):
            if (home / name).exists():
                (home / name).unlink()
                if name == "orphan":
                    os.kill(os.getppid(), signal.SIGKILL)
                while True:
                    time.sleep(0.05)


def double(*args, **kwargs):
    return args[0]


SWITCHES = {
    "mkldnn": lambda run: setattr(torch.backends.mkldnn, "enabled", False),
    "matmul": lambda run: torch.set_float32_matmul_precision("medium"),
    "autocast": lambda run: torch.autocast("cpu", torch.bfloat16).__enter__(),
    "dtype": lambda run: torch.set_default_dtype(torch.float64),
    "device": lambda run: torch.set_default_device("meta"),
    "grad": lambda run: torch.set_grad_enabled(False),
    "anomaly": lambda run: torch.autograd.set_detect_anomaly(True),
    "hook": lambda run: torch.nn.modules.module.register_module_forward_hook(lambda *given: None),
    "functional": lambda run: setattr(torch.nn.functional, "relu6", double),
    "spec": lambda run: object.__setattr__(run.spec, "mean", (0.9,)),
    "images": lambda run: run.data.images.zero_(),
    "folder": lambda run: os.chdir("/"),
}


def protocol():
    """smoke-1, with two iterates judged beside the set."""
    return ProtocolText(
        'base = "smoke-1"\\nid = "tests-iterates"\\ndescription = "iterates too"\\nranked = false\\n[set]\\niterates = 2\\n'
    )
'''

TINY = """
schema = 1
name = "tiny"
protocol = "{protocol}"
seeds = [{seeds}]
subsets = ["mnist-5k"]
losses = [{losses}]
spaces = [{spaces}]
generator = {{ name = "cvae-random", width = 8 }}
backbone = {{ name = "convnet", width = 4, depth = 1 }}
networks = [{networks}]
baselines = [{baselines}]
[distill]
steps = 6
rank_epochs = 1
proxy_epochs = 1
"""
OVERRIDES = {
    "dm": '[[override]]\nwhere = { loss = "dm" }\nset = { loss = { batch_real = 4 } }\n',
    "hpd": (
        '[[override]]\nwhere = { space = "hpd" }\n'
        'set = { rank_steps = "feature-distance", rank_stages = "validation", rank_every = 3 }\n'
    ),
}
CONVNET = '{ name = "convnet", width = 4, depth = 1 }'


@dataclass
class Home:
    """A folder to run in, with the made-up distribution on the path."""

    root: Path
    path: str  # PYTHONPATH

    def scripted(self, what: str = "") -> str:
        """The loss, in TOML."""
        return f'{{ name = "tests-scripted", folder = "{self.root}", what = "{what}" }}'

    def suite(
        self, name: str, losses: list[str], spaces: tuple[str, ...] = ("pixel",), baselines: tuple[str, ...] = (),
        networks: tuple[str, ...] = (CONVNET,), protocol: str = "smoke-1", seeds: str = "0",
    ) -> Path:  # fmt: skip
        """Write a suite."""
        lists = {"losses": ", ".join(losses), "networks": ", ".join(networks), "protocol": protocol, "seeds": seeds}
        quoted = {key: ", ".join(f'"{word}"' for word in words) for key, words in (("spaces", spaces), ("baselines", baselines))}
        path = self.root / f"{name}.toml"
        used = [text for word, text in OVERRIDES.items() if word in spaces or f'"{word}"' in losses]
        path.write_text(TINY.format(**lists, **quoted) + "".join(used))
        return path

    def command(self, suite: Path, store: Path | str, *more: str) -> list[str]:
        """The words of a run."""
        return ["run", str(suite), "--store", str(store), "--device", "cpu", "--json", *more]

    def start(self, suite: Path, store: Path | str, *more: str) -> subprocess.Popen[str]:
        """A run in a process, and a group, of its own."""
        command = [sys.executable, "-m", "ddbench", *self.command(suite, store, *more)]
        environment = os.environ | {"PYTHONPATH": self.path}
        return subprocess.Popen(
            command, cwd=self.root, env=environment, text=True, start_new_session=True, preexec_fn=hear_interrupts,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip

    def run(self, capfd: pytest.CaptureFixture[str], suite: Path, store: Path, *more: str) -> tuple[int, dict[str, Any], str]:
        """A run in this process, whose workers are processes as ever: exit code, the JSON, what stderr got."""
        capfd.readouterr()
        code = main(self.command(suite, store, *more))
        out, error = capfd.readouterr()
        assert "Traceback" not in error, error
        assert code in (0, 1), error
        return code, json.loads(out), error

    def steps(self, what: str = "") -> list[list[str]]:
        """[pid, what, images, step] of every step that the scripted loss took."""
        log = self.root / "steps"
        lines = [line.split(" ") for line in log.read_text().splitlines()] if log.exists() else []
        return [line for line in lines if len(line) == 4 and line[1] == what]


def make_home(root: Path, *others: Path) -> Home:
    """A folder with the distribution beside it; `others` are put on the path too."""
    home = root / "scripted"
    info = home / "scripted_losses-3.1.dist-info"
    info.mkdir(parents=True)
    points = {"losses": "tests-scripted = scripted:Scripted", "protocols": "tests-iterates = scripted:protocol"}
    (info / "entry_points.txt").write_text("".join(f"[ddbench.{kind}]\n{point}\n" for kind, point in points.items()))
    (home / "scripted.py").write_text(SCRIPTED)
    (root / "runs").mkdir()
    return Home(root / "runs", os.pathsep.join(map(str, (*others, home))))


def hear_interrupts() -> None:
    """A shell that runs the tests in the background lets its children ignore Ctrl-C; as at a terminal, these must not."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def finish(process: subprocess.Popen[str]) -> tuple[str, str, int]:
    """What it printed, and its exit code."""
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
    """Whether a process runs; a zombie does not."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    stat = Path(f"/proc/{pid}/stat")
    try:
        return stat.read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return not Path("/proc/self/stat").exists()


def stable(path: Path) -> bytes:
    """A file of a store; of a record, what must be the same when it is made again."""
    content = path.read_bytes()
    if path.suffix != ".json" or path.name == "plan.json":
        return content
    record = json.loads(content)
    for name in ("measured", "checksum"):
        record.pop(name, None)
    return json.dumps(record, sort_keys=True).encode()


def contents(store: Path, *kinds: str) -> dict[str, bytes]:
    """Everything of a store that must be the same when it is made again, by its path."""
    folders = kinds or ("sets", "judgements", "resources")
    paths = [path for kind in folders for path in (store / kind).rglob("*") if path.is_file()]
    return {str(path.relative_to(store)): stable(path) for path in sorted(paths)}


def times(store: Path, *kinds: str) -> dict[Path, int]:
    """When each file of a store was written."""
    return {path: path.stat().st_mtime_ns for kind in kinds for path in (store / kind).rglob("*") if path.is_file()}


def assert_no_leftovers(store: Path) -> None:
    """Nothing of a job that was stopped."""
    assert [path for path in (store / "work").rglob("*") if path.name != "jobs"] == []
    hidden = [path for path in store.rglob(".*") if path.parent.name != "locks"]
    assert hidden == []
