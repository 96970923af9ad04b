"""Resources: keyed by what they depend on, built once whoever asks, and told when damaged."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

from ddbench.api import Resource, Spec
from ddbench.compute.resources import Need, ResourceStore, need_of, needs_of
from ddbench.data.subsets import TrainingData
from ddbench.errors import DataError, PluginError
from ddbench.plan import Plan, PluginRef
from ddbench.protocols import load as load_protocol

CPU = torch.device("cpu")


@dataclass(frozen=True)
class Noise(Resource):
    size: int = 3

    def build(self, run: Any) -> dict[str, Tensor]:
        return {"noise": torch.randn(self.size, generator=run.rng("noise"))}


@dataclass(frozen=True)
class Network(Resource):
    uses_backbone: ClassVar[bool] = True

    def build(self, run: Any) -> dict[str, Tensor]:
        return run.network("own").state_dict()


@dataclass(frozen=True)
class Sneaky(Resource):
    def build(self, run: Any) -> dict[str, Tensor]:
        return run.network("not mine").state_dict()


class Plain(Resource):
    def build(self, run: Any) -> dict[str, Tensor]:
        return {}


def make_plan(**changed: Any) -> Plan:
    network = PluginRef.resolve("architectures", "convnet", {"width": 4, "depth": 1})
    dataset = PluginRef.resolve("datasets", "mnist-5k", {})
    values: dict[str, Any] = {"dataset": dataset, "data_hash": "0" * 64, "protocol": load_protocol("smoke-1")}
    values |= {"networks": (network,), "backbone": network, "ipc": 1, "seed": 0}
    return Plan(**(values | changed))


def data() -> TrainingData:
    spec = Spec("toy", (1, 8, 8), ("a", "b"), (0.5,), (0.5,))
    images, labels = torch.zeros(4, *spec.shape), torch.tensor([0, 0, 1, 1])
    return TrainingData(spec, images, labels, (0, 2, 4), images[:0], labels[:0])


def need(resource: Resource | None = None, **changed: Any) -> Need:
    return need_of(resource or Noise(), None, make_plan(**changed), CPU)


def test_the_key_depends_on_what_the_content_depends_on() -> None:
    protocol = load_protocol("smoke-1")
    owner = PluginRef.resolve("losses", "dm", {})
    plan = make_plan()
    different = [
        need(),
        need(Noise(4)),
        need(Network()),
        need(data_hash="1" * 64),
        need(threads=2),
        need(protocol=replace(protocol, validation_fraction=0.2)),
        need_of(Noise(), None, plan, torch.device("cuda")),
        need_of(Noise(), replace(owner, version="9"), plan, CPU),
        need_of(Noise(), replace(owner, distribution="other"), plan, CPU),
    ]
    assert len({one.key for one in different}) == len(different)


def test_the_key_depends_on_nothing_else() -> None:
    other = PluginRef.resolve("architectures", "convnet", {"width": 8})
    same = [need(), need(seed=7), need(ipc=9), need(steps=3), need(networks=(other,)), need(backbone=other)]
    assert len({one.key for one in same}) == 1
    cuda = [need_of(Noise(), None, make_plan(), torch.device(name)).key for name in ("cuda:0", "cuda:1")]
    assert cuda[0] == cuda[1]


def test_the_backbone_counts_where_it_is_used() -> None:
    other = PluginRef.resolve("architectures", "convnet", {"width": 8})
    assert need(Network()).key != need(Network(), backbone=other).key
    assert need(Network()).backbone == make_plan().backbone
    assert need(Noise()).backbone is None


def test_a_resource_is_a_dataclass() -> None:
    with pytest.raises(PluginError, match=r"resource Plain must be a frozen dataclass deriving from Resource\."):
        need_of(Plain(), None, make_plan(), CPU)


def test_a_resource_that_hides_its_backbone_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PluginError, match="without saying uses_backbone = True"):
        ResourceStore(tmp_path).build(need(Sneaky()), data(), CPU)
    assert not ResourceStore(tmp_path).is_built(need(Sneaky()).key)


def test_what_is_built_is_loaded_and_built_once(tmp_path: Path) -> None:
    store, one = ResourceStore(tmp_path / "resources"), need()
    (tmp_path / "resources" / f".{one.key[:16]}.dead").mkdir(parents=True)  # of a killed process
    assert not store.is_built(one.key)
    store.build(one, data(), CPU)
    assert store.is_built(one.key)
    tensors, meta = store.load(one.key, CPU)
    assert tensors["noise"].shape == (3,)
    assert (meta["key"], meta["describe"], meta["identity"]) == (one.key, "Noise", json.loads(json.dumps(one.identity)))
    before = (store.folder(one.key) / "tensors.safetensors").stat().st_mtime_ns
    store.build(one, data(), CPU)
    assert (store.folder(one.key) / "tensors.safetensors").stat().st_mtime_ns == before
    assert sorted(path.name for path in store.root.iterdir()) == [one.key[:16], f"{one.key[:16]}.lock"]


def test_equal_needs_give_equal_bytes(tmp_path: Path) -> None:
    paths = []
    for name in ("a", "b"):
        store = ResourceStore(tmp_path / name)
        store.build(need(Network()), data(), CPU)
        paths.append(store.folder(need(Network()).key) / "tensors.safetensors")
    assert paths[0].read_bytes() == paths[1].read_bytes()


@pytest.mark.parametrize(
    ("file", "content", "told"),
    [
        ("tensors.safetensors", b"x", "resource {}/tensors.safetensors is damaged or cut short ("),
        ("tensors.safetensors", None, "resource {}/tensors.safetensors is missing."),
        ("tensors.safetensors", "flip", "resource {} is damaged: its tensors are not those that were built."),
        ("resource.json", b"{", "resource {}/resource.json is damaged or cut short ("),
        ("resource.json", None, "resource {}/resource.json is missing."),
        ("resource.json", b"{}", "resource {} lacks describe, key, seconds, sha256."),
    ],
)
def test_a_damaged_resource_is_told(tmp_path: Path, file: str, content: bytes | str | None, told: str) -> None:
    store, one = ResourceStore(tmp_path), need()
    store.build(one, data(), CPU)
    path = store.folder(one.key) / file
    if content == "flip":
        raw = bytearray(path.read_bytes())
        raw[-1] ^= 1
        content = bytes(raw)
    path.unlink() if content is None else path.write_bytes(content)  # type: ignore[arg-type]
    with pytest.raises(DataError) as caught:
        store.load(one.key, CPU)
    assert str(caught.value).startswith(told.format(store.folder(one.key)))
    assert str(caught.value).endswith(" Remove its folder, then run again to make it anew.")


SLOW = """
import sys, time
from dataclasses import dataclass
from pathlib import Path
import torch
sys.path.insert(0, sys.argv[2])
from test_resources import CPU, Resource, ResourceStore, data, need

@dataclass(frozen=True)
class Slow(Resource):
    def build(self, run):
        root = Path(sys.argv[1])
        with (root / "builds").open("a") as log:
            log.write("built\\n")
        while not (root / "go").exists():
            time.sleep(0.01)
        return {"noise": torch.randn(3, generator=run.rng("noise"))}

root = Path(sys.argv[1])
store, one = ResourceStore(root / "resources"), need(Slow())
print("ready", flush=True)
store.build(one, data(), CPU)
print(store.load(one.key, CPU)[0]["noise"].tolist(), flush=True)
"""


@pytest.mark.slow
def test_two_processes_build_it_once(tmp_path: Path) -> None:
    script = tmp_path / "slow.py"
    script.write_text(SLOW)
    command = [sys.executable, str(script), str(tmp_path), str(Path(__file__).parent)]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=dict(os.environ)) for _ in range(2)]
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    (tmp_path / "go").touch()  # both have begun; one builds, the other waits or finds it
    results = [process.communicate(timeout=600)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    assert results[0] == results[1]
    assert results[0].startswith("[")
    assert (tmp_path / "builds").read_text() == "built\n"


def test_needs_are_gathered_without_repetition() -> None:
    loss, space = PluginRef.resolve("losses", "dm", {}), PluginRef.resolve("spaces", "hpd", {})
    generator = PluginRef.resolve("generators", "cvae", {})
    plan = make_plan(loss=loss, space=space, generator=generator)
    found = needs_of(plan, None, [Noise(), Noise()], CPU)  # type: ignore[arg-type]
    assert [one.resource.describe() for one in found] == ["Noise", "generator cvae, 10 epochs"]
    assert found[0].identity["owner"] == ["ddbench", "0.1.0"]
    baseline = make_plan(baseline="random", generator=generator)
    assert needs_of(baseline, None, [], CPU) == []  # type: ignore[arg-type]
