"""From a set in a store to what is judged, and from finished networks to the record of a judgement."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from ddbench.data.subsets import TrainingData
from ddbench.errors import DataError
from ddbench.evaluate import cost
from ddbench.evaluate.evaluator import Evaluator, Finished, Subject
from ddbench.evaluate.sets import Whitening
from ddbench.plan import Block, SetPlan
from ddbench.schema import Data, JudgementRecord, Place, SetRecord, UsedResource

if TYPE_CHECKING:
    from ddbench.results.store import Store


def subject_of(
    store: Store, plan: SetPlan, iterate: int | None, training_data: TrainingData | None, device: torch.device
) -> Subject:
    """A stored set, or an iterate of its distillation, on a device. `training_data` is read where the set is all real training
    images, of which the store holds no copy, and may be None for every other set.

    Images are seen as they are stored: generated ones that were normalised by other constants than the data set's keep them,
    while test images are normalised by the data set's own. Raises DataError where the set is missing or damaged.
    """
    record = store.read_record(plan.key)
    if plan.everything:
        if training_data is None:
            raise DataError(f"{plan.name} is judged on the real training images, and they were not loaded.")
        images, labels = training_data.everything()
        return Subject(images.to(device), labels.to(device), record.set_sha256, everything=True)
    whitening = None
    if iterate is None:
        tensors, _ = store.read_set(plan.key)
        images, labels, sha256 = tensors["images"], tensors["labels"], record.set_sha256
        if "zca_mean" in tensors:
            whitening = Whitening(tensors["zca_mean"], tensors["zca_matrix"]).to(device)
    else:
        images, labels, sha256 = store.read_iterate(plan.key, iterate)
    rate = plan.imported.learned_rate if plan.imported else _learned_rate(record)
    return Subject(images.to(device), labels.to(device), sha256, learned_rate=rate, whitening=whitening)


def _learned_rate(record: SetRecord) -> float | None:
    """What the set's loss has learned as the rate of networks."""
    rate = record.learned.get("student_rate")
    return float(rate) if isinstance(rate, int | float) else None


def record_of(
    block: Block, evaluator: Evaluator, finished: Sequence[Finished], suite: str, data: Data, used: Sequence[UsedResource],
    place: Place, peak_flops: float, marks: Sequence[str] = (), processes: int = 1,
) -> JudgementRecord:  # fmt: skip
    """The record of a finished block. `data` is the test split, `peak_flops` the device's measured peak, `used` the teacher,
    and `processes` how many computed side by side."""
    return JudgementRecord(
        set_key=block.set.key,
        set_sha256=evaluator.subject.sha256,
        key=block.judging.key,
        first=block.first,
        last=block.last,
        suite=suite,
        judging=block.judging,
        data=data,
        repeats=tuple(one.repeat for one in finished),
        resources=tuple(used),
        place=place,
        marks=tuple(marks),
        measured=cost.measured(evaluator, finished, peak_flops, processes),
    )
