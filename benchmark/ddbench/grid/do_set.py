"""Making a set: distilling it, or asking its baseline, with checkpoints; iterates that were asked for are kept beside it."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Collection, Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import torch
from msgspec.structs import replace
from torch import Tensor

from ddbench import schema
from ddbench.api import Baseline, Seen
from ddbench.compute import hardware
from ddbench.compute.clock import Stopwatch
from ddbench.compute.distilled import DistilledSet, Stored, marks_of, set_files
from ddbench.compute.engine import COUNTED, distill
from ddbench.compute.knowledge import saw_of_set
from ddbench.compute.run import DistillRun, open_run
from ddbench.data.subsets import TrainingData
from ddbench.errors import DataError, DivergedError, PluginError
from ddbench.files import read_tensors, tensors_to_bytes, write_bytes
from ddbench.grid.do import GOES_ON, Clock, End, Report, Used, Workplace, data_of, load_resources, plan_data
from ddbench.plan import SetPlan
from ddbench.refs import PluginRef, foreign, require
from ddbench.results.iterates import UNSCORED, Scored, Scores, iterate_record, lacking
from ddbench.results.layout import ASKED
from ddbench.schema import JobFile, Place, SetRecord


class Checkpoint:
    """A set's newest checkpoint: one file, replaced whole."""

    def __init__(self, folder: Path, every: float) -> None:
        self.path, self.clock = folder / "checkpoint.safetensors", Clock(every)
        self.step = 0  # of the checkpoint that was loaded

    def load(self) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """Tensors and numbers, or None at the start."""
        if not self.path.is_file():
            return None
        tensors, meta = read_tensors(self.path, "checkpoint")
        self.step = int(meta["step"])
        return tensors, meta

    def due(self) -> bool:
        """Whether the last one is old enough."""
        return self.clock.due()

    def save(self, tensors: dict[str, Tensor], meta: dict[str, Any]) -> None:
        """Replace it."""
        write_bytes(self.path, tensors_to_bytes(tensors, meta))
        self.clock.tick()


def make_set(file: JobFile, here: Workplace, report: Report) -> End:
    """Make the set of a job and publish it; or, where it is there, add the iterates that were asked for later."""
    plan, store = file.plan, here.store
    there = store.has_set(plan.key)
    steps, seconds = file.iterates, file.iterate_seconds
    if there:
        steps, seconds = tuple(store.lacking(plan, steps, seconds)), ()
        if not steps:
            return "found"
    here.begin(plan.threads, plan.tf32)
    data, work = plan_data(plan, here), store.work(file.name)
    place = here.place(plan.threads, plan.refs)
    go_on_only_where_it_began(work, place)
    _go_on_only_with_iterates(work, steps, seconds)
    resources, used = load_resources(file, here, plan.resources)
    saw = saw_of_set(plan, resources)
    watch = Stopwatch(here.device)
    watch.add({"distill": 0.0, "rank": 0.0})
    made = None
    if not plan.everything:
        shared = here.generators if not foreign(*plan.refs) else None  # a stranger's code might write into one
        run = open_run(plan, data, here.device, resources, here.data_root, shared)
        made = _make(replace(file, iterates=steps, iterate_seconds=seconds), run, work, here, watch, report)
        _refuse_nonsense(plan, made)
    _publish(file, made, data, used, saw, place, watch.seconds(), here)
    return "done"


def _make(file: JobFile, run: DistillRun, work: Path, here: Workplace, watch: Stopwatch, report: Report) -> DistilledSet:
    plan = file.plan
    if plan.baseline:
        report("build", 0.0)
        with watch.phase("distill"):
            return built(plan.baseline, run)
    keeper = Checkpoint(work, here.checkpoint_seconds)

    def put_aside(step: int, images: Tensor, labels: Tensor, score: float | None) -> None:
        content = tensors_to_bytes({"images": images.float().cpu(), "labels": labels.cpu()})
        write_bytes(work / "iterates" / f"{step}.score.json", msgspec.json.encode(score))
        write_bytes(work / "iterates" / f"{step}.safetensors", content)

    def tick(done: int, total: int) -> None:
        report(f"{GOES_ON} step {keeper.step} of {total}" if keeper.step else "distill", done / max(total, 1))

    def made(plan: SetPlan) -> DistilledSet:
        return distill(plan, run, watch, keeper, tick, file.iterates, put_aside, file.iterate_seconds)

    smaller = replace(plan, chunk=min(plan.chunk, run.spec.num_classes * plan.ipc) // 2)
    if smaller.chunk < 1 or not require(plan.space, "space").make().any_chunk:
        return made(plan)
    try:
        return made(plan)
    except torch.OutOfMemoryError:
        short = f"Its device ran out of memory with chunk {plan.chunk}"
        here.short_of_memory = f"{short}: chunk {smaller.chunk} was taken, which changes no bit."
    watch.restart()
    run.recorder.forget()  # its graphs hold memory too
    run.ahead.forget()
    return made(smaller)  # from the last checkpoint; outside of the handler, so that what it held is free


def built(baseline: PluginRef, run: DistillRun) -> DistilledSet:
    """What a baseline makes. Raises PluginError where it is no set."""
    plugin: Baseline = baseline.make()
    batch = plugin.build(run)
    images, labels, classes = (tensor.detach().cpu() for tensor in (batch.images, batch.labels, batch.classes))
    num, spec = len(images), run.spec
    fits = tuple(images.shape[1:]) == spec.shape and images.is_floating_point() and num > 0
    if not fits or labels.shape != (num, spec.num_classes) or classes.shape != (num,):
        shapes = f"{list(images.shape)}, {list(labels.shape)} and {list(classes.shape)}"
        raise PluginError(f"baseline '{baseline.name}' must build float images, probabilities and classes; it gave {shapes}.")
    return DistilledSet(images.float(), labels.float(), classes, 0, Stored(images.numel() * 4))


def _refuse_nonsense(plan: SetPlan, made: DistilledSet) -> None:
    """No set with values that are no numbers is kept: it would fail every judgement, and stay."""
    for name, tensor in (("images", made.images), ("labels", made.labels)):
        if not bool(tensor.isfinite().all()):
            raise DivergedError(f"{plan.name}: its {name} hold NaN or infinite values. Lower its rates, or mend the plugin.")


def go_on_only_where_it_began(work: Path, place: Place) -> None:
    """Drop what a job has so far if it was begun on other hardware, under other libraries, or with plugins of another source: no
    record mixes two."""
    path = work / "place.json"
    content = msgspec.json.encode(place, order="sorted")
    if path.is_file() and path.read_bytes() != content:
        shutil.rmtree(work)
    if not path.is_file():
        write_bytes(path, content)


def _go_on_only_with_iterates(work: Path, steps: Collection[int], seconds: Collection[float]) -> None:
    """Drop a checkpoint that lies behind an iterate that was not asked for when it passed."""
    asked = work / ASKED
    content = msgspec.json.encode({"steps": sorted(steps), "seconds": sorted(seconds)})
    if asked.is_file() and asked.read_bytes() != content:
        (work / "checkpoint.safetensors").unlink(missing_ok=True)
        shutil.rmtree(work / "iterates", ignore_errors=True)
    write_bytes(asked, content)


def _publish(
    file: JobFile, made: DistilledSet | None, data: TrainingData, used: tuple[Used, ...], saw: tuple[Seen, ...], place: Place,
    seconds: dict[str, float], here: Workplace,
) -> None:  # fmt: skip
    """Into the store; where the set is there already, only the iterates, once the bits have been seen to be the same."""
    plan, store = file.plan, here.store
    contents = set_files(plan, made, data.spec) if made else {}
    sha256 = _sha256(contents["set.safetensors"]) if contents else hashlib.sha256(plan.train_hash.encode()).hexdigest()
    folder = store.work(file.name) / "iterates"
    kept = {int(path.stem): path for path in sorted(folder.glob("*.safetensors"))}
    if store.has_set(plan.key):
        _add_iterates(file, made, sha256, kept, here)
        return
    identity = here.identity(plan.dataset)
    images = data.everything()[0] if made is None else made.images
    size = images.numel() * 4  # four bytes a value, for real and synthetic images alike
    stored = made.stored if made else Stored(size)
    record = SetRecord(
        key=plan.key,
        suite=file.suite,
        data=data_of(plan.dataset, plan.train_hash, identity, tuple(identity.train_counts)),
        num_images=len(images),
        bytes_stored=stored.num_bytes,
        bytes_images=size,
        size=stored.size(plan.budget, len(images), data.spec.num_classes),
        steps=made.steps if made else 0,
        stages=_stages(made),
        chosen_stage=made.chosen_stage if made else 0,
        learned=made.learned if made else {},
        files={name: _sha256(content) for name, content in contents.items()},
        set_sha256=sha256,
        resources=tuple(one.resource for one in used),
        place=place,
        marks=(*file.marks, *_marks(plan, made, data), *here.marks(), *(mark for one in used for mark in one.marks)),
        saw=saw,
        rates_from=file.rates_from,
        measured=schema.SetMeasured(
            seconds={name: value for name, value in seconds.items() if name in COUNTED},
            resources={one.resource.key: one.seconds for one in used},
            peak_memory_bytes=here.peak_memory_bytes(),
            commit=hardware.commit(),
            finished=datetime.now(UTC).isoformat(timespec="seconds"),
            timeline=made.timeline if made else (),
        ),
    )
    wanted = lacking(plan, record, (), file.iterates, file.iterate_seconds) if kept else []
    iterates = {step: kept[step].read_bytes() for step in wanted}
    scored = _scored(plan, made, folder, wanted)
    store.publish_set(plan, record, contents | iterate_files(plan.key, sha256, iterates, scored))


def _add_iterates(
    file: JobFile, made: DistilledSet | None, sha256: str, kept: Mapping[int, Path], here: Workplace
) -> None:  # fmt: skip
    """To a set that is there already and lacks some."""
    plan, store = file.plan, here.store
    if store.read_record(plan.key).set_sha256 != sha256:
        what = "distilling it again gave other bits than those that are kept, so its iterates would not be its own"
        raise DataError(f"{plan.name}: {what}. Use the machine and versions of its record, or --redo it.")
    wanted = store.lacking(plan, file.iterates, file.iterate_seconds)
    missing = {step: kept[step].read_bytes() for step in wanted}
    store.add_iterates(plan.key, sha256, missing, _scored(plan, made, store.work(file.name) / "iterates", wanted))
    shutil.rmtree(store.work(file.name), ignore_errors=True)


def _marks(plan: SetPlan, made: DistilledSet | None, data: TrainingData) -> tuple[str, ...]:
    return marks_of(plan, made, data.spec) if made else ()


def _scored(plan: SetPlan, made: DistilledSet | None, folder: Path, steps: Iterable[int]) -> dict[int, Scored]:
    """What is known of iterates whose files lie in a folder; where the loss ranks steps, it is the score."""
    losses = made.losses.kept if made and made.losses else {}
    scored = {}
    for step in steps:
        path = folder / f"{step}.score.json"  # an earlier ddbench, whose work goes on here, wrote none
        score: float | None = msgspec.json.decode(path.read_bytes()) if path.is_file() else None
        scored[step] = Scored(losses.get(step) if plan.rank_steps == "loss" else score, losses.get(step))
    return scored


def iterate_files(key: str, set_sha256: str, iterates: Mapping[int, bytes], scored: Scores = UNSCORED) -> dict[str, bytes]:
    """The files of iterates beside a set, by name."""
    files = {}
    for step, content in iterates.items():
        record = iterate_record(key, set_sha256, step, content, scored.get(step, Scored()))
        files[f"iterates/{step}.safetensors"] = content
        files[f"iterates/{step}.json"] = schema.to_bytes(record)
    return files


def _stages(made: DistilledSet | None) -> tuple[schema.Stage, ...]:
    return msgspec.convert([] if made is None else list(made.stages), tuple[schema.Stage, ...], strict=False)


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
