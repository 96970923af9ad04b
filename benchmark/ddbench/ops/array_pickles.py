"""Arrays out of the pickles that CIFAR is published as, read as data: no unpickler has a part in it (`ddbench.ops.pickles`)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ddbench.ops.pickles.arrays import ARRAYS, StoredArray
from ddbench.ops.pickles.machine import Machine, StrangeNameError, sentence


class UnreadablePickleError(Exception):
    """A pickle that is damaged or asks for something else than numbers, and why."""


def read_arrays(path: Path, what: str) -> Any:
    """What a pickle holds: numbers, texts, lists, dictionaries by text, and records of arrays, for `byte_rows`. `what` it is, for
    messages. Raises UnreadablePickleError."""
    try:
        return Machine(ARRAYS, strict=True).run(path.read_bytes())[0]
    except StrangeNameError as error:
        raise UnreadablePickleError(f"it asks for {error}, which {what} does not need") from error
    except (ValueError, RecursionError) as error:
        raise UnreadablePickleError(sentence(error)) from error


def byte_rows(value: Any, width: int) -> npt.NDArray[np.uint8] | None:
    """An array's uint8 [n,width], a copy; None for anything else."""
    try:
        if isinstance(value, StoredArray) and value.shape[1:] == (width,) and value.kind == np.uint8:
            return np.array(value.read(), order="C")
    except ValueError:
        return None
    return None
