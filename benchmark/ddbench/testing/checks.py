"""What the checks of every kind share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, get_args
from unittest import SkipTest

from torch import Tensor

from ddbench.api import Seen
from ddbench.compute.run import DistillRun

Check = Callable[[Any, DistillRun], None]

STEP = 1e-5  # of finite differences, in float64
TOLERANCE = 1e-5  # of a derivative against its finite difference, relative
CLOSE = 1e-5  # of float32 numbers that two orders of summation give


class Skipped(SkipTest):
    """A check that does not apply to a plugin, and why; unittest's and pytest's own word for it, so that both show a skip."""


def assert_says_what_it_saw(plugin: Any, run: DistillRun) -> None:
    """It and each of its resources says it in the words of `ddbench.api.Seen`."""
    for one in (plugin, *plugin.needs(run)):
        said, words = one.saw, get_args(Seen)
        told = f"`saw` of {type(one).__name__} must be a frozenset of words among {', '.join(words)}"
        assert isinstance(said, frozenset), f"{told}, got {said!r}."
        assert said <= set(words), f"{told}, got also {', '.join(sorted(map(str, said - set(words))))}."


def assert_close(got: Tensor, wanted: Tensor, sentence: str) -> None:
    """Equal shapes and, up to rounding, values; else AssertionError with the sentence."""
    assert got.shape == wanted.shape, f"{sentence} Shapes: {list(got.shape)} and {list(wanted.shape)}."
    if wanted.numel() == 0:
        return
    gap = float((got - wanted).detach().abs().max())
    limit = CLOSE * max(1.0, float(wanted.detach().abs().max()))
    assert gap <= limit, f"{sentence} Largest difference: {gap:.3g}."
