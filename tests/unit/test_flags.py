"""Global flags: each that a plugin may change is noticed and named, and a job that changes none has no mark."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch.nn.modules import module

from ddbench.compute.flags import changed_flags, read_flags
from ddbench.compute.precision import allow_tf32
from ddbench.compute.run import be_deterministic
from ddbench.data.subsets import TrainingData, load_training
from ddbench.grid.do import Workplace
from ddbench.plan import PluginRef
from ddbench.results.store import Store

CPU = torch.device("cpu")
Undo = Callable[[], object]


def autocast() -> Undo:
    context = torch.autocast("cpu", torch.bfloat16)
    context.__enter__()
    return lambda: context.__exit__(None, None, None)


def inference() -> Undo:
    context = torch.inference_mode()
    context.__enter__()
    return lambda: context.__exit__(None, None, None)


def set_back(change: Callable[[Any], object], value: Any, before: Any) -> Undo:
    change(value)
    return lambda: change(before)


def attribute(owner: Any, name: str, value: Any) -> Undo:
    before = getattr(owner, name)
    setattr(owner, name, value)
    return lambda: setattr(owner, name, before)


SWITCHES: dict[str, Callable[[], Undo]] = {
    "torch.backends.mkldnn.enabled": lambda: attribute(torch.backends.mkldnn, "enabled", False),
    "torch.backends.mkldnn.deterministic": lambda: attribute(torch.backends.mkldnn, "deterministic", True),
    "the float32 matmul precision": lambda: set_back(torch.set_float32_matmul_precision, "medium", "highest"),
    "autocast": autocast,
    "the default dtype": lambda: set_back(torch.set_default_dtype, torch.float64, torch.float32),
    "the default device": lambda: set_back(torch.set_default_device, "meta", None),
    "grad mode": lambda: set_back(torch._C._set_grad_enabled, False, True),
    "inference mode": inference,
    "anomaly mode": lambda: set_back(torch.autograd.set_detect_anomaly, True, False),
    "deterministic algorithms": lambda: set_back(torch.use_deterministic_algorithms, True, False),
    "the number of threads": lambda: set_back(torch.set_num_threads, 2, 1),
    "global hooks of torch.nn.Module": lambda: module.register_module_forward_hook(lambda *given: None).remove,
    "torch.nn.functional": lambda: attribute(F, "relu6", lambda value: value),
    "torch.nn.Module.__call__": lambda: attribute(torch.nn.Module, "__call__", lambda *given: None),
}


@pytest.fixture
def undone() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        torch.set_num_threads(1)
        yield stack


@pytest.mark.parametrize("name", SWITCHES)
def test_a_switch_is_noticed_and_named_until_it_is_back(name: str, undone: ExitStack) -> None:
    allow_tf32(False)  # as a job begins
    before = read_flags()
    assert changed_flags(before) == []
    undone.callback(SWITCHES[name]())
    assert name in changed_flags(before)
    undone.close()
    assert changed_flags(before) == []


def test_each_hook_of_a_kind_counts(undone: ExitStack) -> None:
    for register in (
        module.register_module_forward_pre_hook,
        module.register_module_full_backward_hook,
        module.register_module_parameter_registration_hook,
    ):
        before = read_flags()
        handle = register(lambda *given: None)
        undone.callback(handle.remove)
        assert changed_flags(before) == ["global hooks of torch.nn.Module"]


def test_the_folder_is_noticed_and_may_be_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = read_flags()
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    assert changed_flags(before) == ["the working directory"]


def test_what_jobs_set_themselves_is_no_change() -> None:
    be_deterministic(1)
    before = read_flags()
    network = (
        PluginRef.resolve("architectures", "convnet", {"width": 4})
        .make()
        .build(PluginRef.resolve("datasets", "mnist-5k", {}).make().spec())
    )
    network(torch.zeros(1, 1, 28, 28)).sum().backward()
    assert changed_flags(before) == []


# A process that does jobs


@pytest.fixture
def place(tmp_path: Path) -> Workplace:
    return Workplace(Store(tmp_path / "store"), CPU, None)


@pytest.fixture(scope="module")
def loaded() -> TrainingData:
    return load_training(PluginRef.resolve("datasets", "mnist-5k", {}), None, 0.1, CPU)


def test_a_job_that_changes_nothing_has_no_mark(place: Workplace) -> None:
    for _ in range(2):
        place.begin(1, tf32=False)
        assert place.marks() == ()
    assert not place.is_stained


def test_a_job_that_changes_a_flag_is_marked_and_its_process_is_of_no_further_use(place: Workplace, undone: ExitStack) -> None:
    place.begin(1, tf32=False)
    undone.callback(SWITCHES["anomaly mode"]())
    assert place.marks() == ("A plugin of this job changed anomaly mode while it ran.",)
    undone.close()
    assert place.is_stained
    place.begin(1, tf32=False)
    assert (place.marks(), place.is_stained) == ((), True)


@pytest.mark.parametrize("what", ["spec", "images", "held out"])
def test_shared_data_that_a_job_changes_are_noticed(place: Workplace, loaded: TrainingData, what: str) -> None:
    ref = PluginRef.resolve("datasets", "mnist-5k", {})
    place.training.put("hash", 0.1, CPU, loaded)
    place.begin(1, tf32=False)
    data = place.training_data(ref, "hash", 0.1)
    assert place.marks() == ()
    before = data.spec.mean
    if what == "spec":
        object.__setattr__(data.spec, "mean", (0.9,))
    else:
        (data.images if what == "images" else data.validation_images).add_(0)
    assert place.marks() == ("A plugin of this job changed the data that jobs share while it ran.",)
    assert place.is_stained
    object.__setattr__(data.spec, "mean", before)


def test_flags_that_cannot_be_read_any_more_are_a_mark(place: Workplace, undone: ExitStack) -> None:
    place.begin(1, tf32=False)
    undone.callback(attribute(torch, "is_grad_enabled", None))
    (mark,) = place.marks()
    assert mark.startswith("A plugin of this job changed torch or the data so that they cannot be read any more (TypeError)")
    assert place.is_stained
