"""Errors of a device: a lost one ends the process, and where memory was short a job makes do with less if that changes no bit."""

from __future__ import annotations

import gc
import io
from pathlib import Path
from typing import Any

import in_process
import pytest
import torch
from torch import nn

from ddbench.compute import engine
from ddbench.compute.device_errors import is_lost, is_out_of_memory
from ddbench.data.subsets import identify
from ddbench.errors import PluginError
from ddbench.evaluate import cost
from ddbench.grid import do, worker
from ddbench.grid.do import Workplace, do_job
from ddbench.plan import PluginRef, SetPlan
from ddbench.results.layout import set_job
from ddbench.results.store import Store
from ddbench.schema import JobFile

CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)
MNIST = PluginRef.resolve("datasets", "mnist-5k", {})


def caused(by: BaseException) -> PluginError:
    error = PluginError("it failed.")
    error.__cause__ = by
    return error


@pytest.mark.parametrize(
    ("error", "lost", "short"),
    [
        (RuntimeError("CUDA error: device-side assert triggered"), True, False),
        (RuntimeError("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED"), True, False),
        (caused(RuntimeError("CUDA error: an illegal memory access was encountered")), True, False),
        (torch.OutOfMemoryError("CUDA out of memory."), False, True),
        (caused(torch.OutOfMemoryError("CUDA out of memory.")), False, True),
        (RuntimeError("shapes do not fit"), False, False),
        (ValueError("CUDA error"), False, False),
    ],
)
def test_errors_of_a_device_are_told_apart(monkeypatch: pytest.MonkeyPatch, error: Exception, lost: bool, short: bool) -> None:
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: None)
    assert (is_lost(error, CUDA), is_lost(error, CPU), is_out_of_memory(error)) == (lost, False, short)


def test_an_error_that_the_device_reports_late_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def synchronize(device: torch.device) -> None:
        raise RuntimeError("CUDA error: device-side assert triggered")

    monkeypatch.setattr(torch.cuda, "synchronize", synchronize)
    assert is_lost(ValueError("something else"), CUDA)


@pytest.fixture
def place(tmp_path: Path) -> Workplace:
    return Workplace(Store(tmp_path / "store"), CUDA, None, peaks={1: 1.0})


@pytest.mark.parametrize(
    ("error", "stained", "told"),
    [
        (RuntimeError("CUDA error: device-side assert triggered"), True, "RuntimeError at "),
        (torch.OutOfMemoryError("CUDA out of memory."), False, "the device ran out of memory. Run fewer jobs"),
        (ValueError("no such thing"), False, "ValueError at "),
    ],
)
def test_a_process_that_has_lost_its_device_takes_no_other_job(
    monkeypatch: pytest.MonkeyPatch, place: Workplace, error: Exception, stained: bool, told: str
) -> None:
    def fails(*_: Any) -> None:
        raise error

    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: None)
    monkeypatch.setattr(do, "do_job", fails)
    file = JobFile(kind="set", name=set_job(PLAN.key), suite="", plan=PLAN)
    place.store.write_job(file)
    assert worker._do(file.name, place, worker.Reporter(io.StringIO())) == "failed"
    assert place.is_stained is stained
    (path,) = place.store.failures(file.name)
    assert place.store.read_failure(path).error.startswith(f"{PLAN.name}: {told}")


# ---------------------------------------------------------------- memory

PLAN = SetPlan(
    dataset=MNIST, train_hash=identify(MNIST, None).train_hash, ipc=1, seed=3, held_out=0.1,
    backbone=PluginRef.resolve("architectures", "convnet", {"width": 4, "depth": 1}),
    loss=PluginRef.resolve("losses", "dm", {"batch_real": 4}), space=PluginRef.resolve("spaces", "pixel", {}), steps=4,
    rates={"pixels": 10.0},
)  # fmt: skip


def made(tmp_path: Path, name: str, checkpoint_seconds: float = 1e9) -> Store:
    here = in_process.workplace(Store(tmp_path / name), checkpoint_seconds=checkpoint_seconds)
    file = JobFile(kind="set", name=set_job(PLAN.key), suite="", plan=PLAN)
    assert do_job(file, here, lambda phase, fraction: None) == "done"
    return here.store


@pytest.mark.parametrize("checkpoint_seconds", [0.0, 1e9])
def test_a_set_that_ran_out_of_memory_is_made_in_smaller_chunks(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, checkpoint_seconds: float
) -> None:
    whole, decode, asked = made(tmp_path, "whole"), engine.decode_leaf, list[int]()

    def short(space: Any, state: Any, index: Any, run: Any, chunk: int) -> Any:
        asked.append(chunk)
        if run.step == 2 and chunk > 5:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return decode(space, state, index, run, chunk)

    monkeypatch.setattr(engine, "decode_leaf", short)
    store = made(tmp_path, "short", checkpoint_seconds)
    before, after = (each.read_record(PLAN.key) for each in (whole, store))
    assert asked == [10] * 3 + [5] * (2 if checkpoint_seconds == 0 else 4)
    assert after.set_sha256 == before.set_sha256
    assert after.marks == ("Its device ran out of memory with chunk 10: chunk 5 was taken, which changes no bit.",)
    assert len(after.measured.timeline) == 4


def test_a_set_that_is_short_of_memory_for_good_fails(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def short(*_: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(engine, "decode_leaf", short)
    with pytest.raises(torch.OutOfMemoryError):
        made(tmp_path, "store")


def test_the_peak_of_a_full_device_is_measured_on_less(monkeypatch: pytest.MonkeyPatch) -> None:
    sides = list[int]()

    def product(side: int, device: torch.device) -> float:
        sides.append(side)
        if side > 512:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return 7.0

    monkeypatch.setattr(cost, "_flops_of_product", product)
    assert cost.peak_flops(CPU) == 7.0
    assert sides == [1024, 512]
    monkeypatch.setattr(cost, "SMALLEST_SIDE", 1024)
    assert cost.peak_flops(CPU) == 0.0  # unknown


class Held:
    """A device's memory, in MiB."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now, self.most, self.emptied = 0, 0, 0
        monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: self.now << 20)
        monkeypatch.setattr(torch.cuda, "max_memory_reserved", lambda device: self.most << 20)
        monkeypatch.setattr(torch.cuda, "empty_cache", self.empty)
        monkeypatch.setattr(gc, "collect", lambda: 0)

    def empty(self) -> None:
        self.emptied += 1


def test_a_job_that_leaves_much_on_the_device_ends_its_process(monkeypatch: pytest.MonkeyPatch, place: Workplace) -> None:
    held = Held(monkeypatch)
    held.now = 250
    assert (place.leave(), place.is_stained, held.emptied) == (0, False, 1)
    module = nn.Linear(1 << 10, 10 << 10)  # 40 MiB
    place.generators["kept"] = module  # type: ignore[assignment]
    held.now = 290
    assert (place.leave(), place.is_stained) == (0, False)
    held.now = 400
    assert place.leave() >> 20 == 359
    assert place.is_stained
    assert Workplace(place.store, CPU, None).leave() == 0


def test_what_lies_on_the_device_for_others_is_not_in_a_job_s_peak(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    held = Held(monkeypatch)
    place = Workplace(Store(tmp_path / "store"), CUDA, None, is_warm=True)
    monkeypatch.setattr(do, "reset_peak_memory", lambda device: None)
    monkeypatch.setattr(do.precision, "rounds", lambda device: False)
    do_test = do.TestData(torch.zeros(3 << 20, dtype=torch.uint8), torch.zeros(0))
    monkeypatch.setattr(do, "open_test", lambda *given: do_test)
    held.now, held.most = 10, 50
    place.begin(1, tf32=False)
    place.test_data(MNIST, "a")  # loaded now: it is in the peak
    assert place.peak_memory_bytes() >> 20 == 40
    place.begin(1, tf32=False)
    place.test_data(MNIST, "a")  # there before, and used
    assert place.peak_memory_bytes() >> 20 == 43
