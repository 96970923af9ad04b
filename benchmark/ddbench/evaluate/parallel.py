"""The plain evaluator in several processes: repeats and networks side by side on the cores of a CPU.

Every process computes with the plan's number of threads, so each number is the one that the plain evaluator gives, to the
bit, whatever the number of processes. Where threads share two cores well it is no faster than one process with all of them
(docs/performance.md); more threads, though, are other bits.
"""

from __future__ import annotations

import multiprocessing
import signal
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ddbench.api import Spec
from ddbench.compute.run import be_deterministic
from ddbench.data.sealed import open_test
from ddbench.errors import BenchError
from ddbench.evaluate.evaluator import Entry, Exam, evaluate_once
from ddbench.evaluate.sets import Whitening
from ddbench.evaluate.teacher import load_teacher
from ddbench.plan import Plan, PluginRef

LOOK_SECONDS = 0.2  # between two looks at how far the processes are


@dataclass(frozen=True)
class Paper:
    """An exam as it travels to another process, on the CPU; the test split is opened there."""

    plan: Plan
    spec: Spec
    images: Any  # [N,C,H,W] as numpy: tensors would travel through shared memory, of which containers have little
    labels: Any
    root: Path | None
    teacher: dict[str, Any] | None
    learned_rate: float | None
    whitening: tuple[Any, Any] | None

    def open(self) -> Exam:
        """The exam."""
        device = torch.device("cpu")
        state = None if self.teacher is None else {name: torch.from_numpy(array) for name, array in self.teacher.items()}
        teacher = None if state is None else load_teacher(self.plan, state, self.spec, device)
        test = open_test(self.plan.dataset, self.root, device)
        images, labels = torch.from_numpy(self.images), torch.from_numpy(self.labels)
        whitening = Whitening(*map(torch.from_numpy, self.whitening)) if self.whitening else None
        return Exam(self.plan, self.spec, images, labels, test, teacher, self.learned_rate, whitening)


class _Desk:
    """A process's own exam, and where it notes how far it is."""

    exam: Exam
    progress: Any


def _sit_down(paper: Paper, progress: Any) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the parent, which ends its pool
    be_deterministic(paper.plan.threads, paper.plan.protocol.tf32)
    _Desk.exam, _Desk.progress = paper.open(), progress


def _answer(number: int, ref: PluginRef, repeat: int) -> Entry:
    epochs = _Desk.exam.recipe(ref).epochs

    def on_epoch(epoch: int) -> None:
        _Desk.progress[number] = (epoch + 1) / epochs

    return evaluate_once(_Desk.exam, ref, repeat, on_epoch)


def evaluate_side_by_side(
    exam: Exam, root: Path | None, teacher: dict[str, Tensor] | None, workers: int, tick: Callable[[float], None]
) -> list[Entry]:
    """Every network and repeat of an exam on the CPU, in the plan's order, as `evaluate` gives them.

    Raises what an evaluation raises, and BenchError where a process dies.
    """
    plan = exam.plan
    tasks = [(ref, repeat) for ref in plan.networks for repeat in range(plan.protocol.repeats)]
    state = None if teacher is None else {name: tensor.numpy() for name, tensor in teacher.items()}
    white = (exam.whitening.mean.numpy(), exam.whitening.matrix.numpy()) if exam.whitening else None
    images, labels = exam.images.numpy(), exam.labels.numpy()
    paper = Paper(plan, exam.spec, images, labels, root, state, exam.learned_rate, white)
    context = multiprocessing.get_context("spawn")
    progress = context.Array("d", len(tasks), lock=False)
    pool = ProcessPoolExecutor(min(workers, len(tasks)), context, _sit_down, (paper, progress))
    try:
        running = [pool.submit(_answer, number, ref, repeat) for number, (ref, repeat) in enumerate(tasks)]
        _watch(running, lambda: tick(sum(progress) / len(tasks)))
        return [future.result() for future in running]
    except BrokenProcessPool as error:
        told = "a process of the evaluation died, perhaps for lack of memory. Try fewer with --workers."
        raise BenchError(told) from error
    finally:
        processes = list((pool._processes or {}).values())  # before the pool forgets them
        pool.shutdown(wait=False, cancel_futures=True)
        for process in processes:
            process.terminate()


def _watch(running: list[Future[Entry]], look: Callable[[], None]) -> None:
    """Until all are done. Raises what the first to fail raises, without waiting for the others."""
    waiting = set(running)
    while waiting:
        done, waiting = wait(waiting, timeout=LOOK_SECONDS, return_when=FIRST_COMPLETED)
        look()
        for future in done:
            future.result()
