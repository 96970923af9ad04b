"""The losses of a stored set's distillation, checked."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from ddbench.errors import DataError
from ddbench.files import read_tensors, sha256_file
from ddbench.results.layout import LOSSES
from ddbench.results.store import Store
from ddbench.schema import REMEDY_FOLDER, SetRecord


class StepLosses(NamedTuple):
    """The loss of every `every`-th step, from step 0 on; NaN where it was not noted."""

    every: int
    values: Tensor  # float32 [n]


def read_losses(store: Store, record: SetRecord) -> StepLosses | None:
    """Of a set; None where none were kept, as of a baseline, or by an earlier ddbench. Raises DataError for damaged ones."""
    if LOSSES not in record.files:
        return None
    path = store.folder(record.key) / LOSSES
    if not path.is_file() or sha256_file(path) != record.files[LOSSES]:
        raise DataError(f"{path} is missing or damaged: its bytes are not those that were written. {REMEDY_FOLDER}")
    tensors, meta = read_tensors(path, "losses", REMEDY_FOLDER)
    values, every = tensors.get("losses"), meta.get("every")
    if values is None or values.dim() != 1 or not isinstance(every, int) or every < 1:
        raise DataError(f"{path} holds no losses by step. {REMEDY_FOLDER}")
    return StepLosses(every, values.float())
