"""The executor `ray`: jobs in batches, as tasks of a Ray cluster, or of a Ray that is started here and ends with the run.

A task only runs a command on its machine; what became of a job, only the store says.
"""

from __future__ import annotations

import importlib.util
import os
import re
import secrets
import socket
import sys
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ddbench.api import Executor, ExecutorConfig, Site
from ddbench.errors import ConfigError, did_you_mean
from ddbench.ops.batching import BatchExecutor, Engine, Fate, Shape, check_least
from ddbench.ops.commands import run_command

OBJECTS_BYTES = 100 << 20  # of a Ray started here, for objects, of which there are none to speak of
GROWN = 16  # batches that a cluster that can grow is thought to run at the same time
KNOCK_SECONDS = 10.0
QUIET = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_DEDUP_LOGS": "0"}


@dataclass(frozen=True)
class Ray(ExecutorConfig):
    """ray: batches of jobs as tasks of a Ray cluster whose nodes see the store, or of a Ray on this machine; needs ray.

    `address` as ray.init takes it ("auto": the cluster that this machine belongs to); empty: one is started here. A batch has
    `cpus` processors (by default, the threads of its workers), `gpus` GPUs and `resources` of one node; `workers` of its jobs run
    side by side. `can_grow`: nodes come when they are asked for, so that what no node has now is no mistake.
    Raises: ConfigError for numbers out of range; and, before anything is submitted, for what this cluster cannot give.
    """

    address: str = ""
    gpus: float = 0.0
    cpus: float = 0.0
    resources: Mapping[str, float] = field(default_factory=dict)
    memory_gb: float = 0.0  # that Ray keeps for a batch; it limits nothing
    workers: int = 1
    batch_minutes: float = 5.0  # that a batch should take, where it is known how long its jobs do
    retries: int = 2  # of a job that was lost
    poll_seconds: float = 1.0
    python: str = sys.executable  # on the nodes
    can_grow: bool = False

    def __post_init__(self) -> None:
        """Refuse numbers out of range."""
        check_least(self, {"workers": 1, "gpus": 0, "cpus": 0, "retries": 0, "memory_gb": 0})
        if not (self.batch_minutes > 0 and self.poll_seconds > 0):
            raise ConfigError("settings 'batch_minutes' and 'poll_seconds' must be above 0.")

    def open(self, site: Site) -> Executor:
        """Ray is started, or connected to, when the first jobs come."""
        shape = Shape(
            device="cuda" if self.gpus else "cpu", workers=self.workers, seconds=60 * self.batch_minutes, retries=self.retries,
            poll_seconds=self.poll_seconds, python=self.python,
        )  # fmt: skip
        return BatchExecutor(site, RayEngine(self, site), shape)


class RayEngine(Engine):
    """A batch is a task."""

    def __init__(self, settings: Ray, site: Site) -> None:
        self.settings, self.site = settings, site
        self.tasks: dict[tuple[str, int], Any] = {}  # those that have not ended, as Ray's references
        self.fates: dict[tuple[str, int], Fate] = {}
        self.is_ours = False  # this process has started or connected to Ray

    def check(self) -> int:
        """Whether Ray is there, and one of its nodes has what a batch asks for."""
        if importlib.util.find_spec("ray") is None:
            raise ConfigError("executor 'ray' needs the package ray, which is not installed: pip install 'ddbench[ray]'.")
        self._connect()
        import ray

        asked = self._asked()
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        room = sum(int(min(node.get(name, 0) / num for name, num in asked.items())) for node in nodes)
        if room or self.settings.can_grow:
            return max(room, GROWN * self.settings.can_grow)
        known = {name for node in nodes for name in node if not name.startswith(("node:", "object_store"))}
        for name, num in asked.items():
            most = max((node.get(name, 0) for node in nodes), default=0)
            if most < num:
                near = did_you_mean(name, known) if name not in known else ""
                what = f"a batch of executor 'ray' asks for {num:g} {name}, and no node has more than {most:g}"
                raise ConfigError(
                    f"{what}: it would wait for ever.{near} Ask for less, or set 'can_grow' where nodes come on demand."
                )
        raise ConfigError(f"no node of this Ray has all that a batch asks for at once ({_listed(asked)}): ask for less.")

    def start(self, wave: str, commands: Sequence[Sequence[str]], after: str) -> bool:
        """A task each; Ray queues them. Where all of its nodes have died, they are waited for, or Ray is begun anew."""
        import ray

        if not any(node["Alive"] for node in ray.nodes()):
            if not self.settings.address:
                self.fates |= dict.fromkeys(self.tasks, Fate("Ray's own processes have died"))
                self.tasks.clear()
                ray.shutdown()
                self._connect()
            return False
        asked = self._asked()
        special = {name: asked[name] for name in asked if name not in ("CPU", "GPU", "memory")}
        options: dict[str, Any] = {
            "num_cpus": asked.get("CPU", 0),
            "resources": special,
            "max_retries": 0,
            "name": f"ddbench {wave}",
        }
        options |= {"num_gpus": asked["GPU"]} if "GPU" in asked else {}
        options |= {"memory": asked["memory"]} if "memory" in asked else {}
        run = ray.remote(run_command).options(**options)
        self.tasks |= {(wave, number): run.remote(list(words)) for number, words in enumerate(commands)}
        return True

    def live(self, waves: Collection[str]) -> dict[tuple[str, int], str] | None:
        """The tasks that have not ended."""
        for place, task in list(self.tasks.items()):
            import ray

            ended, _ = ray.wait([task], timeout=0)
            if ended:
                del self.tasks[place]
                self.fates[place] = _fate(task)
        return {(wave, number): "" for wave, number in self.tasks if wave in waves}

    def fate(self, wave: str, number: int) -> Fate:
        """What its command said at last, or what Ray says of its worker."""
        return self.fates.get((wave, number), Fate("Ray does not know it any more"))

    def stop(self, batches: Collection[tuple[str, int]]) -> None:
        """Kill the tasks; their commands end with them."""
        import ray

        for place in batches:
            if task := self.tasks.get(place):
                ray.cancel(task, force=True)

    def close(self) -> None:
        """Leave Ray; one that was started here ends."""
        if self.is_ours:
            import ray

            ray.shutdown()
            self.is_ours = False

    def _connect(self) -> None:
        """To the cluster, or to a Ray of our own: no dashboard, no reports to its makers, nothing in the user's home."""
        for name, value in QUIET.items():
            os.environ.setdefault(name, value)
        if not self.settings.address:
            os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
        import ray

        if ray.is_initialized():
            return
        given: dict[str, Any] = {"address": self.settings.address or "local", "log_to_driver": False, "logging_level": "ERROR"}
        if not self.settings.address:
            given |= {"include_dashboard": False, "object_store_memory": OBJECTS_BYTES}
        try:
            _knock(self.settings.address)
            ray.init(**given)
        except (OSError, ValueError, RuntimeError) as error:
            told = " ".join(str(error).split())[:300].rstrip(".")
            where = f"at '{self.settings.address}'" if self.settings.address else "here"
            raise ConfigError(f"executor 'ray' finds no Ray {where}: {told}.") from error
        self.is_ours = True

    def _asked(self) -> dict[str, float]:
        """What a batch takes of a node, by Ray's names."""
        settings = self.settings
        asked = {"CPU": settings.cpus or float(settings.workers * self.site.threads), **settings.resources}
        asked |= {"GPU": settings.gpus}
        asked |= {"memory": settings.memory_gb * (1 << 30)}
        return {name: num for name, num in asked.items() if num > 0}


def _knock(address: str) -> None:
    """Raise an OSError where nobody listens at `host:port`: Ray would try for minutes."""
    if match := re.fullmatch(r"(?:ray://)?([^/:]+):(\d+)", address):
        socket.create_connection((match[1], int(match[2])), KNOCK_SECONDS).close()


def _fate(task: Any) -> Fate:
    """Of a task that has ended."""
    import ray

    try:
        said = ray.get(task)
    except ray.exceptions.RayError as error:
        lines = [line for line in str(error).splitlines() if line.strip()]
        return Fate(f"Ray says: {' '.join(lines[0].split())[:300].rstrip('.') if lines else type(error).__name__}")
    told = said.last.rpartition("\n")[2].removeprefix("ddbench: ").rstrip(".")
    return Fate(told or f"its command ended with exit code {said.code}", said.code)


def _listed(asked: Mapping[str, float]) -> str:
    return ", ".join(f"{num:g} {name}" for name, num in asked.items())
