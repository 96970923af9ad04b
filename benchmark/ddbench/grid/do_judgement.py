"""Judging a block of repeats: networks trained on a set, each read once on the sealed test split."""

from __future__ import annotations

import shutil
from pathlib import Path

import msgspec
from msgspec.structs import replace

from ddbench.compute.knowledge import saw_of_judging
from ddbench.errors import ConfigError, DataError
from ddbench.evaluate.evaluator import Evaluator, Finished, evaluate_block
from ddbench.evaluate.judge import record_of, subject_of
from ddbench.evaluate.teacher import load_teacher
from ddbench.files import write_bytes
from ddbench.grid.do import GOES_ON, End, Report, Workplace, data_of, load_resources
from ddbench.grid.do_set import go_on_only_where_it_began
from ddbench.plan import Block, short
from ddbench.results.iterates import step_of
from ddbench.results.merge import parts
from ddbench.results.store import Store
from ddbench.schema import JobFile, JudgementRecord


def judge_block(file: JobFile, here: Workplace, report: Report) -> End:
    """Compute the repeats of a job that the store lacks, and publish them as one block."""
    plan, judging, store = file.plan, file.judging, here.store
    assert judging is not None
    if plan.is_trial:
        raise ConfigError(f"{plan.name} chooses rates, and no test image judges it.")
    if set(range(file.first, file.last + 1)) <= store.repeats(plan.key, judging.key):
        return "found"
    here.begin(judging.threads, judging.numbers.tf32)
    identity = here.identity(judging.dataset)
    if identity.test_hash != judging.test_hash:
        what = f"the test images of '{judging.dataset.label}' are not those of the plan"
        raise DataError(f"{what} ({identity.test_hash[:8]} here, {judging.test_hash[:8]} there): use the data it was made for.")
    peak = here.peak_flops(judging.threads)  # before the work, which nothing can take any more when it is done
    work, place = store.work(file.name), here.place(judging.threads, judging.refs)
    go_on_only_where_it_began(work, place)
    tensors_of, used = load_resources(file, here, judging.resources)
    spec = judging.dataset.make().spec()
    teacher = None
    for tensors in tensors_of.values():
        teacher = load_teacher(judging, tensors, spec, here.device)

    training = here.training_data(plan.dataset, plan.train_hash, plan.held_out) if plan.everything else None
    step = step_of(plan, store.read_record(plan.key), judging)
    subject = subject_of(store, plan, step, training, here.device)
    test = here.test_data(judging.dataset, judging.test_hash)
    evaluator = Evaluator(judging, spec, subject, test, teacher, here.resident)
    path = work / "repeats.json"

    def keep(finished: list[Finished]) -> None:
        write_bytes(path, msgspec.json.encode(_Kept(subject.sha256, finished)))

    kept = _kept(path, subject.sha256)
    phase = f"{GOES_ON} repeat {len(kept)} of {file.last - file.first + 1}" if kept else "judge"

    def tick(fraction: float) -> None:
        report(phase, fraction)

    finished = evaluate_block(evaluator, file.first, file.last, kept, keep, tick)
    data = data_of(judging.dataset, judging.test_hash, identity, tuple(identity.test_counts))
    block = Block(plan, judging, file.first, file.last)
    resources, marks = [one.resource for one in used], (*here.marks(), *(mark for one in used for mark in one.marks))
    record = record_of(block, evaluator, finished, file.suite, data, resources, place, peak, marks)
    seconds, saw = {one.resource.key: one.seconds for one in used}, saw_of_judging(judging, tensors_of)
    _publish(replace(record, saw=saw, measured=replace(record.measured, resources=seconds)), store)
    shutil.rmtree(work, ignore_errors=True)
    return "done"


def _publish(record: JudgementRecord, store: Store) -> None:
    """Publish the repeats that are not there: another run may have done some of them meanwhile, as part of another block."""
    with store.lock(f"blocks-{short(record.set_key)}-{short(record.key)}"):
        there = store.repeats(record.set_key, record.key)
        for part in parts(record, [repeat for repeat in record.repeats if repeat.repeat not in there]):
            store.publish_judgement(part)


class _Kept(msgspec.Struct):
    """The repeats that are finished, and what they were judged on."""

    set_sha256: str
    finished: list[Finished]


def _kept(path: Path, sha256: str) -> list[Finished]:
    """The repeats that an earlier process has finished on the very same set; none where its file is damaged."""
    try:
        kept = msgspec.json.decode(path.read_bytes(), type=_Kept)
    except (FileNotFoundError, msgspec.MsgspecError):
        return []
    return kept.finished if kept.set_sha256 == sha256 else []
