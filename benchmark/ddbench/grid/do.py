"""Doing one job of a store: building a resource, making a set, a trial of rates, judging a block of repeats; each can be stopped
and resumed."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from filelock import Timeout
from torch import Tensor, nn

from ddbench import schema
from ddbench.api import Generator, Resource
from ddbench.compute import hardware, precision
from ddbench.compute.capture import clear_workspaces
from ddbench.compute.clock import peak_memory_bytes, reset_peak_memory
from ddbench.compute.flags import Flags, changed_flags, read_flags
from ddbench.compute.run import be_deterministic
from ddbench.compute.warm import warm_up
from ddbench.data.sealed import TestData, open_test
from ddbench.data.subsets import CACHE_BYTES, Identity, TrainingCache, TrainingData, identify, load_scoring
from ddbench.errors import DataError, PluginError
from ddbench.evaluate.cost import peak_flops
from ddbench.files import digest
from ddbench.grid.planning import judging_needs, set_needs
from ddbench.plan import SetPlan
from ddbench.refs import PluginRef
from ddbench.results.store import Store
from ddbench.schema import JobFile, Place, UsedResource

Report = Callable[[str, float], None]
"""(phase, fraction of the job done)."""
GOES_ON = "goes on at"  # how the phase of a job begins that takes up what an earlier process has done
End = Literal["done", "found", "busy"]
MOST_LEFT = 256 << 20  # bytes that a job may leave on a device: constants, what libraries keep, and gaps between what is kept
ROUNDED = "The device rounded float32 products to TF32 although that was not allowed (NVIDIA_TF32_OVERRIDE?)."


@dataclass
class Workplace:
    """What a process keeps between jobs: the store, its device, and data that several jobs share, loaded once."""

    store: Store
    device: torch.device
    data_root: Path | None
    checkpoint_seconds: float = 20.0
    training: TrainingCache = field(default_factory=TrainingCache)
    generators: dict[str, Generator] = field(default_factory=dict)  # loaded
    tests: dict[str, TestData] = field(default_factory=dict)
    identities: dict[str, Identity] = field(default_factory=dict)
    flags: Flags | None = None  # at the start of the running job
    given: list[tuple[TrainingData, tuple[Any, ...]]] = field(default_factory=list)  # to the running job, and as they were then
    found: tuple[str, ...] = ()  # the running job's marks
    is_stained: bool = False  # a job has changed global flags: this process must do no other
    rounded: dict[bool, bool] = field(default_factory=dict)  # whether the device rounds float32 products, by whether it may
    resident: int = 0  # bytes on the CUDA device that are not the running job's
    is_rounded: bool = False  # whether it does so in the running job although that does not allow it
    short_of_memory: str = ""  # a sentence, where memory was and the running job made do with less
    peaks: dict[int, float] = field(default_factory=dict)  # the device's peak, by threads
    is_warm: bool = False  # what the first step of a process pays once has been paid
    doing: str = ""  # what the running job builds, for people, once that is known
    scoring: dict[str, tuple[Tensor, Tensor]] = field(default_factory=dict)  # on the CPU: the images that scored the last trial

    def begin(self, threads: int, tf32: bool) -> None:
        """Fix what numbers depend on beside the seeds, and remember the global flags."""
        be_deterministic(threads, tf32)
        if not self.is_warm:
            warm_up(self.device)
            self.is_warm = True
        if self.device.type == "cuda" and tf32 not in self.rounded:
            self.rounded[tf32] = precision.rounds(self.device)
        self.is_rounded = self.rounded.get(tf32, False) and not tf32
        reset_peak_memory(self.device)
        self.resident = torch.cuda.memory_reserved(self.device) if self.device.type == "cuda" else 0
        self.flags, self.found, self.given, self.short_of_memory = read_flags(), (), [], ""

    def marks(self) -> tuple[str, ...]:
        """Sentences on the global flags of torch and Python, and the shared data, that the running job's plugins have changed;
        the process is then of no further use."""
        try:
            changed = changed_flags(self.flags) if self.flags else []
            changed += ["the data that jobs share"] * any(_state(data) != before for data, before in self.given)
        except Exception as error:  # whatever is left of torch
            changed = [f"torch or the data so that they cannot be read any more ({type(error).__name__})"]
        self.is_stained |= bool(changed)
        self.found = tuple(f"A plugin of this job changed {name} while it ran." for name in changed)
        return (*self.found, *([ROUNDED] * self.is_rounded), *filter(None, [self.short_of_memory]))

    def identity(self, ref: PluginRef) -> Identity:
        """Of a data set."""
        if ref.label not in self.identities:
            self.identities[ref.label] = identify(ref, self.data_root)
        return self.identities[ref.label]

    def training_data(self, ref: PluginRef, train_hash: str, held_out: float, tuning: float = 0.0) -> TrainingData:
        """The training side of a subset."""
        was_there = self.training.has(train_hash, held_out, self.device, tuning)
        data = self.training.load(ref, self.data_root, train_hash, held_out, self.device, tuning)
        self.resident -= data.num_bytes if was_there else 0
        self.given.append((data, _state(data)))
        return data

    def scoring_data(self, plan: SetPlan) -> tuple[Tensor, Tensor]:
        """The training images that score a trial, and their labels, on the CPU."""
        key = digest([plan.train_hash, plan.held_out, plan.tuning])
        if key not in self.scoring:
            self.scoring = {key: load_scoring(plan.dataset, self.data_root, plan.held_out, plan.tuning)}
        return self.scoring[key]

    def test_data(self, ref: PluginRef, test_hash: str) -> TestData:
        """The sealed split, opened when a finished set is judged."""
        data = self.tests.pop(test_hash, None)
        self.resident -= data.num_bytes if data else 0
        self.tests[test_hash] = data or open_test(ref, self.data_root, self.device)  # the one asked for last comes last
        while len(self.tests) > 1 and sum(kept.num_bytes for kept in self.tests.values()) > CACHE_BYTES:
            del self.tests[next(iter(self.tests))]
        return self.tests[test_hash]

    def peak_memory_bytes(self) -> int:
        """The running job's, without what others have left on the device for later ones."""
        return peak_memory_bytes(self.device) - self.resident

    def leave(self) -> int:
        """Bring a CUDA device back to what is kept on purpose. What stayed there beside that, in bytes, where it is worth
        speaking of; this process is then of no further use."""
        if self.device.type != "cuda" or self.is_stained:
            return 0
        gc.collect()
        clear_workspaces()
        torch.cuda.empty_cache()
        modules = [generator for generator in self.generators.values() if isinstance(generator, nn.Module)]
        if len(modules) < len(self.generators):
            return 0  # what a generator of another kind holds is unknown
        kept = self.training.num_bytes + sum(data.num_bytes for data in self.tests.values())
        kept += sum(tensor.nbytes for module in modules for tensor in (*module.parameters(), *module.buffers()))
        left = torch.cuda.memory_reserved(self.device) - kept
        self.is_stained = left > MOST_LEFT
        return left if self.is_stained else 0

    def peak_flops(self, threads: int) -> float:
        """What the device reaches, measured once a process."""
        if threads not in self.peaks:
            self.peaks[threads] = peak_flops(self.device)
        return self.peaks[threads]

    def place(self, threads: int, refs: tuple[PluginRef, ...]) -> Place:
        """Where and with what a job is done."""
        return hardware.place(self.device, threads, refs)

    def title_of(self, file: JobFile) -> str:
        """A job's name for people."""
        if file.judging is not None and file.kind == "judgement":
            return f"{file.judging.network.label} on {file.plan.name}"
        return f"resource {file.resource[:8]} of '{file.plan.dataset.label}'" if file.kind == "resource" else file.plan.name

    def fail(self, name: str, title: str, error: str, details: str, file: JobFile | None) -> None:
        """Record a failed attempt; `file` is that of a job whose own numbers were the reason."""
        threads = file.judging.threads if file and file.judging else file.plan.threads if file else 1
        self.store.fail(name, title, error, details, self.place(threads, file.refs) if file else None)


def _state(data: TrainingData) -> tuple[Any, ...]:
    """What changes when somebody writes into training data, or into what they are."""
    images = (data.images, data.validation_images)
    return (repr(asdict(data.spec)), data.starts, *((id(part), part._version) for part in images))


def do_job(file: JobFile, here: Workplace, report: Report) -> End:
    """Do it and publish it. Raises whatever a plugin raises."""
    from ddbench.grid.do_judgement import judge_block
    from ddbench.grid.do_set import make_set
    from ddbench.grid.do_trial import run_trial

    lock = here.store.lock(file.name)
    try:
        held = lock.acquire(timeout=0)
    except Timeout:
        return "busy"
    if file.kind == "resource":  # whose building takes the lock itself
        held.lock.release()
        return _build(file, here, report)
    with held:
        if file.kind == "trial":
            return run_trial(file, here, report)
        if file.kind == "set":
            return make_set(file, here, report)
        return judge_block(file, here, report)


def _build(file: JobFile, here: Workplace, report: Report) -> End:
    from ddbench.compute.resources import build

    if here.store.resources.is_built(file.resource):
        return "found"
    threads = file.judging.threads if file.judging else file.plan.threads
    here.begin(threads, file.judging.numbers.tf32 if file.judging else file.plan.tf32)
    needs = judging_needs(file.plan, file.judging) if file.judging else set_needs(file.plan)
    need = next((need for need in needs if need.key == file.resource), None)
    if need is None:
        raise PluginError("its plugin does not ask for it any more: give the command again.")
    here.doing = need.title(file.plan.dataset.label)
    report(need.resource.describe(), 0.0)
    held_out, tuning = (file.judging.held_out, 0.0) if file.judging else (file.plan.held_out, file.plan.tuning)
    data = here.training_data(file.plan.dataset, file.plan.train_hash, held_out, tuning)
    refs = file.judging.refs if file.judging else file.plan.refs
    build(here.store.resources, need, data, here.device, here.place(threads, refs), here.data_root, here.marks)
    return "done"


@dataclass(frozen=True)
class Used:
    """A resource that a job used, and what building it took."""

    resource: UsedResource
    seconds: float
    marks: tuple[str, ...]


def load_resources(
    file: JobFile, here: Workplace, keys: tuple[str, ...]
) -> tuple[dict[Resource, dict[str, Tensor]], tuple[Used, ...]]:
    """The tensors of what a job needs, by resource, and what records say of it. They must be built."""
    if not keys:
        return {}, ()
    needs = judging_needs(file.plan, file.judging) if file.judging else set_needs(file.plan)
    found: dict[Resource, dict[str, Tensor]] = {}
    used = []
    for need in needs:
        where = torch.device("cpu") if need.resource.on_host else here.device
        found[need.resource], record = here.store.resources.load(need.key, where)
        marks = tuple(f"Of its {record.describe}: {mark}" for mark in record.marks)
        resource = UsedResource(key=need.key, describe=record.describe, sha256=record.sha256)
        used.append(Used(resource, record.measured.seconds, marks))
    return found, tuple(used)


def data_of(ref: PluginRef, hash: str, identity: Identity, counts: tuple[int, ...]) -> schema.Data:
    """What records say of a split."""
    label, ids = identity.label(ref.label), ref.make().spec().class_ids
    return schema.Data(label=label, hash=hash, original=identity.original, counts=counts, class_ids=ids)


class Clock:
    """Whether it is time for another checkpoint."""

    def __init__(self, every: float) -> None:
        self.every, self.last = every, time.monotonic()

    def due(self) -> bool:
        """Whether the last one is old enough."""
        return time.monotonic() - self.last >= self.every

    def tick(self) -> None:
        """One was made."""
        self.last = time.monotonic()


def plan_data(plan: SetPlan, here: Workplace) -> TrainingData:
    """The training side of a set's subset. Raises DataError where the files are not those of the plan."""
    check_data(plan, here)
    return here.training_data(plan.dataset, plan.train_hash, plan.held_out, plan.tuning)


def check_data(plan: SetPlan, here: Workplace) -> Identity:
    """The identity of a set's subset. Raises DataError where its training files are not those of the plan."""
    identity = here.identity(plan.dataset)
    if identity.train_hash != plan.train_hash:
        what = f"the training images of '{plan.dataset.label}' are not those of the plan"
        raise DataError(f"{what} ({identity.train_hash[:8]} here, {plan.train_hash[:8]} there): use the data it was made for.")
    return identity
