"""The executor `slurm`: jobs in batches, as array jobs of a Slurm cluster.

Slurm says which batches live; what became of a job, only the store says. submitit writes the scripts, and queues a batch again
before its time is over; its results are never waited for, since they do not come where Slurm keeps no accounts.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from ddbench.api import Executor, ExecutorConfig, Site
from ddbench.errors import ConfigError, did_you_mean
from ddbench.ops.batches import folder_of
from ddbench.ops.batching import BatchExecutor, Engine, Fate, Shape, check_least
from ddbench_plugins.requeued import Requeued

TOOLS = ("sbatch", "srun", "squeue", "sinfo", "scontrol", "scancel")
NAME = "ddbench-"  # and the wave: what the queue calls a batch
SIGNAL_SECONDS = 90  # before the end of its time, a batch is told to be queued again
START_SECONDS = 150.0  # that beginning, and going on, may take
ANSWER_SECONDS = 60.0
IN_JOB, KEPT = "SLURM_JOB_ID", ("SLURM_CONF", "SLURM_CLUSTERS")  # variables: what a job has, and what is not of a job
UP = ("idle", "mixed", "allocated", "completing")  # states of nodes that are there
NO_NODE = "node configuration is not available"  # what sbatch says of jobs for which no node is there now, or ever
HELD = "requeued held"  # why a batch waits for ever whose node could not launch it
NO_OUTPUT = "0:53"  # the exit code of a batch whose output file could not be opened


@dataclass(frozen=True)
class Slurm(ExecutorConfig):
    """slurm: batches of jobs as array jobs of a Slurm cluster whose nodes see the store; needs submitit.

    A batch has `cpus` processors (by default, the threads of its workers) and `gpus` GPUs of one node; `workers` of its jobs run
    side by side, taking turns on the GPUs. `minutes` is its time limit; when that is near, it is queued again, at most `requeues`
    times, and its jobs go on from their checkpoints. `setup` are lines of shell before it, `more` other options of sbatch.
    Raises: ConfigError for numbers out of range; and, before anything is submitted, for what this cluster cannot give.
    """

    partition: str = ""  # Slurm's own default
    account: str = ""
    qos: str = ""
    constraint: str = ""
    minutes: int = 60
    gpus: int = 0
    cpus: int = 0
    memory_gb: float = 0.0  # of a batch; Slurm's own default
    workers: int = 1
    parallel: int = 32  # batches of an array at the same time
    batch_minutes: float = 10.0  # that a batch should take, where it is known how long its jobs do
    requeues: int = 20
    retries: int = 2  # of a job that was lost
    poll_seconds: float = 10.0
    setup: tuple[str, ...] = ()
    python: str = sys.executable  # on the nodes
    more: Mapping[str, str | int | bool] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuse numbers out of range."""
        least = {"minutes": 1, "workers": 1, "parallel": 1, "gpus": 0, "cpus": 0, "requeues": 0, "retries": 0, "memory_gb": 0}
        check_least(self, least)
        if not (self.batch_minutes > 0 and self.poll_seconds > 0):
            raise ConfigError("settings 'batch_minutes' and 'poll_seconds' must be above 0.")

    def open(self, site: Site) -> Executor:
        """Slurm is asked when the first jobs come."""
        shape = Shape(
            device="cuda" if self.gpus else "cpu", workers=self.workers, seconds=60 * self.batch_minutes, retries=self.retries,
            poll_seconds=self.poll_seconds, python=self.python,
        )  # fmt: skip
        return BatchExecutor(site, SlurmEngine(self, site), shape)


class SlurmEngine(Engine):
    """A wave is an array job of the name `ddbench-<wave>`."""

    survives = True

    def __init__(self, settings: Slurm, site: Site) -> None:
        self.settings, self.site = settings, site
        self.is_silent = False  # Slurm has not answered

    @property
    def cpus(self) -> int:
        """Of a batch."""
        return self.settings.cpus or self.settings.workers * self.site.threads

    def check(self) -> int:
        """Tools, partition, limits; then Slurm's own opinion of such a job."""
        if importlib.util.find_spec("submitit") is None:
            raise ConfigError(
                "executor 'slurm' needs the package submitit, which is not installed: pip install 'ddbench[slurm]'."
            )
        if missing := [tool for tool in TOOLS if shutil.which(tool) is None]:
            raise ConfigError(
                f"executor 'slurm' needs Slurm's own command '{missing[0]}', which is not on the PATH: give the command on a "
                "machine that submits to the cluster."
            )
        listed = _ask("sinfo", "--noheader", "--format=%P|%l|%c|%m|%G|%T")
        if listed is None:
            raise ConfigError("Slurm does not answer here (sinfo fails): give the command again when it does.")
        check_partition(self.settings, self.cpus, self.site.checkpoint_seconds, listed)
        options = [f"--{name.replace('_', '-')}={value}" for name, value in self._resources().items()]
        with _outside_of_jobs():
            told = subprocess.run(["sbatch", "--test-only", *options, "--wrap=true"], capture_output=True, text=True)
        away = any(not line.rpartition("|")[2].startswith(UP) for line in listed) and NO_NODE in told.stderr  # as long as it is
        if told.returncode and not away:
            raise ConfigError(
                f"Slurm would not take such a job: {_last_line(told.stderr)}. Change the settings of executor 'slurm'."
            )
        return self.settings.parallel

    def start(self, wave: str, commands: Sequence[Sequence[str]], after: str) -> bool:
        """One array job; of a single batch, a job."""
        import submitit
        from submitit.core.utils import FailedJobError

        settings = self.settings
        more: dict[str, Any] = dict(settings.more)
        if after:
            more["dependency"] = f"afterany:{self._id(after)}"
        executor = submitit.SlurmExecutor(folder_of(self.site.store, wave) / "slurm", max_num_timeout=settings.requeues)
        resources = self._resources()
        resources["time"] = settings.minutes
        executor.update_parameters(
            **resources, job_name=NAME + wave, array_parallelism=settings.parallel, setup=list(settings.setup),
            stderr_to_stdout=True, signal_delay_s=SIGNAL_SECONDS, srun_args=[f"--cpus-per-task={self.cpus}"],
            additional_parameters=more, wckey="",
        )  # fmt: skip
        with _outside_of_jobs():
            try:
                executor.map_array(Requeued(), [list(words) for words in commands])
            except FailedJobError as error:
                if self.live([wave]) is None:
                    return False
                raise ConfigError(f"Slurm refuses the jobs: {_last_line(str(error))}.") from error
        return True

    def live(self, waves: Collection[str]) -> dict[tuple[str, int], str] | None:
        """By their names in the queue."""
        listed = _ask("squeue", "--noheader", "--array", f"--user={os.getuid()}", "--format=%j|%F|%K|%T|%N|%L|%r")
        if self.is_silent != (listed is None):
            self.is_silent = listed is None
            told = "Slurm does not answer (squeue fails); waiting for it." if self.is_silent else "Slurm answers again."
            print(f"ddbench: {told}", file=sys.stderr)
        if listed is None:
            return None
        found = {}
        for line in listed:
            name, job, number, state, node, left, reason = (line.split("|") + [""] * 7)[:7]
            wave = name.removeprefix(NAME)
            if name != wave and wave in waves and HELD not in reason:
                index = int(number) if number.isdecimal() else 0
                place = f"{state.lower()} on {node}, {left} left" if node else f"{state.lower()} ({reason})"
                found[wave, index] = f"Slurm job {job}_{index}, {place}"
        return found

    def fate(self, wave: str, number: int) -> Fate:
        """What Slurm still knows of it, some minutes long."""
        job = self._id(wave)
        for name in (f"{job}_{number}", job):
            if job and (listed := _ask("scontrol", "--oneliner", "show", "job", name)):
                facts = dict(re.findall(r"(\w+)=(\S+)", listed[0]))
                state, code, node = facts.get("JobState", ""), facts.get("ExitCode", ""), facts.get("NodeList", "")
                if HELD.replace(" ", "_") in facts.get("Reason", ""):
                    self.stop([(wave, number)])
                    return Fate(f"Slurm could not launch its job {name}")
                if code == NO_OUTPUT:
                    where = f"node {node} does not see the store {self.site.store}"
                    return Fate(f"{where}: name one that lies under the same path on all nodes, with --store", 2)
                refused = re.findall(r"^ddbench: (.*?)\.?$", self._output(wave, name), re.M) if code == "2:0" else []
                if refused:
                    return Fate(refused[-1], 2)
                return Fate(f"Slurm calls its job {name} on {node} {state} (exit code {code})")
        return Fate(f"Slurm does not know its job {job} any more")

    def stop(self, batches: Collection[tuple[str, int]]) -> None:
        """By scancel, batches that wait too."""
        for wave, number in batches:
            job = self._id(wave)
            if job:
                is_array = "_" in self._names(wave)[0]
                _ask("scancel", f"{job}_{number}" if is_array else job)

    def _resources(self) -> dict[str, Any]:
        """As submitit and sbatch both call them."""
        settings = self.settings
        named = {
            name: getattr(settings, name) for name in ("partition", "account", "qos", "constraint") if getattr(settings, name)
        }
        memory = {"mem": f"{int(1024 * settings.memory_gb)}MB"} if settings.memory_gb else {}
        gpus = {"gpus_per_node": settings.gpus} if settings.gpus else {}
        return {**named, **memory, **gpus, "nodes": 1, "ntasks_per_node": 1, "cpus_per_task": self.cpus, "time": settings.minutes}

    def _names(self, wave: str) -> list[str]:
        """Of its jobs, as submitit's files have them."""
        folder = folder_of(self.site.store, wave) / "slurm"
        return [path.name.removesuffix("_submitted.pkl") for path in folder.glob("*_submitted.pkl")]

    def _id(self, wave: str) -> str:
        """Of the array job; empty where nothing is known of it."""
        names = self._names(wave)
        return names[0].partition("_")[0] if names else ""

    def _output(self, wave: str, name: str) -> str:
        path = folder_of(self.site.store, wave) / "slurm" / f"{name}_0_log.out"
        return path.read_text(errors="replace")[-10_000:] if path.is_file() else ""


def check_partition(settings: Slurm, cpus: int, checkpoint_seconds: float, listed: Sequence[str]) -> None:
    """Whether a batch can ever run: `listed` are lines of sinfo, partition, time limit, and a node's processors, memory and GPUs.
    Raises ConfigError."""
    rows = [(line.split("|") + [""] * 6)[:6] for line in listed]
    names = list(dict.fromkeys(row[0].rstrip("*") for row in rows))
    default = next((row[0].rstrip("*") for row in rows if row[0].endswith("*")), "")
    name = settings.partition or default
    if name not in names:
        known = ", ".join(names) or "none"
        what = (
            f"Slurm has no partition '{name}'" if name else "Slurm has no default partition: set 'partition' of executor 'slurm'"
        )
        raise ConfigError(f"{what}.{did_you_mean(name, names)} It has: {known}.")
    nodes = [row for row in rows if row[0].rstrip("*") == name]
    most_gpus = max(_gpus(row[4]) for row in nodes)
    if settings.gpus > most_gpus:
        raise ConfigError(
            f"setting 'gpus' of executor 'slurm' is {settings.gpus}, and no node of the partition '{name}' has more than "
            f"{most_gpus}: a job would wait for ever. Name another partition, or fewer."
        )
    most_cpus = max(int(row[2].rstrip("+") or 0) for row in nodes)
    if cpus > most_cpus:
        raise ConfigError(
            f"a batch asks for {cpus} processors, and a node of the partition '{name}' has {most_cpus}: set fewer 'workers'."
        )
    limit = _minutes(nodes[0][1])
    if limit is not None and settings.minutes > limit:
        raise ConfigError(
            f"setting 'minutes' of executor 'slurm' is {settings.minutes}; the partition '{name}' allows {limit:.0f}."
        )
    least = (START_SECONDS + SIGNAL_SECONDS + 60 + checkpoint_seconds) / 60
    if settings.minutes < least:
        raise ConfigError(
            f"setting 'minutes' of executor 'slurm' is {settings.minutes}, too short to reach a checkpoint, which takes "
            f"{least:.0f} minutes with all that begins and ends a batch: set more, or fewer --checkpoint-seconds."
        )


def _gpus(text: str) -> int:
    """Of a node, from its generic resources, such as `gpu:a100:4(S:0-1),shard:8`."""
    return sum(int(number) for number in re.findall(r"\bgpu(?::[^:,()]+)?:(\d+)", text))


def _minutes(text: str) -> float | None:
    """A time limit as Slurm writes it, days-hours:minutes:seconds; None for none."""
    if not re.fullmatch(r"(\d+-)?\d+(:\d+)*", text):
        return None
    days, _, clock = text.rpartition("-")
    parts = [int(part) for part in clock.split(":")]
    parts = [0] * (3 - len(parts)) + parts
    return 1440 * int(days or 0) + 60 * parts[0] + parts[1] + parts[2] / 60


def _ask(*words: str) -> list[str] | None:
    """The lines of one of Slurm's commands; None where it fails."""
    try:
        told = subprocess.run(words, capture_output=True, text=True, timeout=ANSWER_SECONDS)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return told.stdout.splitlines() if told.returncode == 0 else None


@contextmanager
def _outside_of_jobs() -> Iterator[None]:
    """The environment without what Slurm tells the job that this process may be part of: a batch would inherit it."""
    inside = [name for name in os.environ if IN_JOB in os.environ and name.startswith(("SLURM_", "SRUN_")) and name not in KEPT]
    hidden = {name: os.environ.pop(name) for name in inside}
    try:
        yield
    finally:
        os.environ |= hidden


def _last_line(text: str) -> str:
    """Of an error message, without what begins and ends it."""
    lines = [line for line in text.splitlines() if line.strip()]
    found = next((line for line in lines if "error:" in line), lines[-1] if lines else "it does not say why")
    return found.rpartition("error: ")[2].strip().rstrip(".")
