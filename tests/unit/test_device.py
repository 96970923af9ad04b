"""Which device a process computes on, with a torch.cuda that refuses calls before CUDA has started, as the real one does."""

from __future__ import annotations

import io
import json
import signal
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from ddbench.compute import precision
from ddbench.compute.clock import reset_peak_memory
from ddbench.compute.run import pick_device, select_device
from ddbench.errors import ConfigError
from ddbench.grid import worker


class Cuda:
    """Two devices; what was called, in order."""

    def __init__(self) -> None:
        self.started = False
        self.current = 0
        self.calls: list[str] = []

    def init(self) -> None:
        self.started = True

    def set_device(self, device: torch.device) -> None:
        self.started, self.current = True, device.index
        self.calls.append(f"set_device {device}")

    def reset_peak_memory_stats(self, device: torch.device) -> None:
        if not self.started:
            raise RuntimeError("Invalid device argument 0: did you call init?")
        self.calls.append(f"reset {device}")


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> Cuda:
    stub = Cuda()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    for name in ("init", "set_device", "reset_peak_memory_stats"):
        monkeypatch.setattr(torch.cuda, name, getattr(stub, name))
    return stub


@pytest.fixture
def interrupts() -> Iterator[None]:
    """Ctrl-C means the same after the test as before it."""
    handler = signal.getsignal(signal.SIGINT)
    yield
    signal.signal(signal.SIGINT, handler)


def test_the_stub_refuses_what_the_real_one_refuses(cuda: Cuda) -> None:
    with pytest.raises(RuntimeError, match="did you call init"):
        torch.cuda.reset_peak_memory_stats(torch.device("cuda:0"))


@pytest.mark.parametrize(("name", "wanted"), [("cuda", "cuda:0"), ("auto", "cuda:0"), ("cuda:1", "cuda:1"), ("cpu", "cpu")])
def test_a_device_that_is_picked_has_an_index_and_is_not_started(cuda: Cuda, name: str, wanted: str) -> None:
    assert str(pick_device(name)) == wanted
    assert not cuda.started


def test_a_device_that_is_not_there_is_a_sentence(cuda: Cuda) -> None:
    with pytest.raises(ConfigError, match=r"^device 'cuda:2' is not there: 2 CUDA devices are visible"):
        pick_device("cuda:2")


def test_selecting_a_device_starts_it_and_makes_it_the_current_one(cuda: Cuda) -> None:
    assert str(select_device("cpu")) == "cpu"
    assert not cuda.started
    assert str(select_device("cuda:1")) == "cuda:1"
    assert (cuda.started, cuda.current) == (True, 1)


def test_the_peak_is_reset_before_anything_has_started_cuda(cuda: Cuda) -> None:
    reset_peak_memory(torch.device("cuda:1"))
    assert cuda.calls == ["reset cuda:1"]


def test_a_worker_selects_its_device_before_its_first_job(
    cuda: Cuda, interrupts: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The job's file is read once the device is current; then the test ends the worker."""

    class Ended(BaseException):
        pass

    def read(name: str, place: Any) -> Any:
        cuda.calls.append(f"reads {name} on {place.device}")
        raise Ended

    def do(name: str, place: Any, reporter: Any) -> str:
        return read(name, place)

    about = {"store": str(tmp_path / "store"), "device": "cuda:1", "data_root": None, "checkpoint_seconds": 60.0}
    lines = io.StringIO("\n".join(map(json.dumps, (about, {"job": "set-0"}))) + "\n")
    monkeypatch.setattr(worker, "_do", do)
    monkeypatch.setattr(worker, "_own_channel", io.StringIO)
    monkeypatch.setattr(worker, "_listen", lambda source, queue: [queue.put(line) for line in source])  # and does not exit
    with pytest.raises(Ended):
        worker.main(lines)
    assert cuda.calls == ["set_device cuda:1", "reads set-0 on cuda:1"]


# ---------------------------------------------------------------- TF32

NEW = ("cuda.matmul", "cudnn.conv", "cudnn.rnn")


@pytest.fixture
def precisions() -> Iterator[None]:
    """As they were, after the test."""
    if not hasattr(torch.backends, "fp32_precision"):
        pytest.skip("this torch has the old settings alone")
    before = torch.backends.fp32_precision
    yield
    torch.backends.fp32_precision = before
    precision.allow_tf32(False)


@pytest.mark.parametrize("around", ["none", "ieee", "tf32"])
def test_tf32_is_as_it_was_asked_for_whatever_somebody_has_set(precisions: None, around: str) -> None:
    torch.backends.fp32_precision = around  # type: ignore[attr-defined]
    for allowed in (True, False):
        precision.allow_tf32(allowed)
        found = precision.settings()
        assert {found[name] for name in NEW} == {"tf32" if allowed else "ieee"}
        assert {value for name, value in found.items() if name not in NEW} == {"ieee"}  # no CPU rounds


def test_a_torch_without_the_new_settings_is_told_by_the_old_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    old = SimpleNamespace(
        cuda=SimpleNamespace(matmul=SimpleNamespace(allow_tf32=True)), cudnn=SimpleNamespace(allow_tf32=True)
    )  # fmt: skip
    monkeypatch.setattr(torch, "backends", old)
    monkeypatch.setattr(torch, "get_float32_matmul_precision", lambda: "highest")
    precision.allow_tf32(False)
    assert (old.cuda.matmul.allow_tf32, old.cudnn.allow_tf32) == (False, False)
    assert precision.settings() == {"matmul": "highest"}


def test_a_device_that_rounds_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu, conv = torch.device("cpu"), torch.nn.functional.conv2d
    assert not precision.rounds(cpu)
    monkeypatch.setattr(torch.nn.functional, "conv2d", lambda *given: conv(*given).half().float())
    assert precision.rounds(cpu)
