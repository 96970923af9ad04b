"""Mistakes that a type checker finds before anything runs, one a line that says so."""

from dataclasses import dataclass

from torch import Tensor

from ddbench.api import Batch, Loss, Memory, Run, Spec


@dataclass(frozen=True)
class Wrong(Loss):
    """A loss that gives a number, asks a run for what it has not, and picks with a list."""

    def picks(self, num_images: int, run: Run) -> list[int]:  # wrong: override
        return [0]

    def backward(self, syn: Batch, memory: Memory, run: Run) -> float:  # wrong: override
        test: Tensor = run.test_images  # wrong: attr-defined
        return float(test.mean())


SPEC = Spec("wrong", (1, 8, 8), ("a", "b"), 0.5, (0.25,))  # wrong: arg-type
