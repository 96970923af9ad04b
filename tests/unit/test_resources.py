"""Resources: keyed by what they depend on, built once whoever asks, and told when damaged."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from msgspec.structs import replace
from stores import PLACE, plan_of, ref, set_contents, set_record, used
from torch import Tensor

from ddbench.api import Effort, Resource, Spec
from ddbench.cli import main
from ddbench.compute.resources import Need, build, need_of, needs_of
from ddbench.data.subsets import TrainingData
from ddbench.errors import DataError, PluginError
from ddbench.plan import NUMERICS, SetPlan
from ddbench.refs import PluginRef
from ddbench.results.resources import ResourceStore
from ddbench.results.store import Store

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
class Vague(Noise):
    def effort(self, run: Any) -> Effort | None:
        raise KeyError("images")


@dataclass(frozen=True)
class Sneaky(Resource):
    def build(self, run: Any) -> dict[str, Tensor]:
        return run.network("not mine").state_dict()


@dataclass(frozen=True)
class Opaque(Resource):
    call: Callable[[], None] = field(default=lambda: None)
    other: object = object()

    def build(self, run: Any) -> dict[str, Tensor]:
        return {}


class Plain(Resource):
    def build(self, run: Any) -> dict[str, Tensor]:
        return {}


def make_plan(**changed: Any) -> SetPlan:
    network = PluginRef.resolve("architectures", "convnet", {"width": 4, "depth": 1})
    return plan_of(**({"backbone": network} | changed))


def data() -> TrainingData:
    spec = Spec("toy", (1, 8, 8), ("a", "b"), (0.5,), (0.5,))
    images, labels = torch.zeros(4, *spec.shape, dtype=torch.uint8), torch.tensor([0, 0, 1, 1])
    return TrainingData(spec, images, labels, (0, 2, 4), images[:0], labels[:0])


def need(resource: Resource | None = None, owner: PluginRef | None = None, **changed: Any) -> Need:
    return need_of(resource or Noise(), owner, make_plan(**changed))


def built(store: ResourceStore, resource: Resource | None = None) -> Need:
    one = need(resource)
    build(store, one, data(), CPU, PLACE)
    return one


# ---------------------------------------------------------------- keys


def test_the_key_depends_on_what_the_content_depends_on(monkeypatch: pytest.MonkeyPatch) -> None:
    different = [
        need(),
        need(Noise(4)),
        need(Network()),
        need(train_hash="1" * 64),
        need(threads=2),
        need(held_out=0.2),
        need(owner=replace(ref("losses", "dm"), distribution="other")),
    ]
    monkeypatch.setattr(Noise, "numerics", 2)
    different.append(need())
    monkeypatch.undo()
    monkeypatch.setitem(NUMERICS, "training", NUMERICS["training"] + 1)
    different.append(need())
    assert len({one.key for one in different}) == len(different)


def test_the_key_depends_on_nothing_else() -> None:
    """Neither on the cell that asks, nor on versions, nor on fields at their defaults."""
    owner = ref("losses", "dm")
    other = PluginRef.resolve("architectures", "convnet", {"width": 8})
    same = [need(), need(Noise(3)), need(seed=7), need(ipc=9), need(steps=3), need(backbone=other), need(owner=owner)]
    same.append(need(owner=replace(owner, version="9")))
    assert len({one.key for one in same}) == 1
    assert "size" not in json.dumps(need().identity)


def test_streams_are_named_by_less_than_the_key(monkeypatch: pytest.MonkeyPatch) -> None:
    """Other threads, or numbers that were raised, are another resource that draws the same."""
    same = [need(), need(threads=2), need(owner=replace(ref("losses", "dm"), distribution="other"))]
    monkeypatch.setattr(Noise, "numerics", 2)
    same.append(need())
    assert len({one.stream for one in same}) == 1
    different = [need(), need(Noise(4)), need(train_hash="1" * 64), need(held_out=0.2), need(Network())]
    assert len({one.stream for one in different}) == len(different)


def test_the_backbone_counts_where_it_is_used() -> None:
    other = PluginRef.resolve("architectures", "convnet", {"width": 8})
    assert need(Network()).key != need(Network(), backbone=other).key
    assert need(Network()).stream != need(Network(), backbone=other).stream
    assert need(Network()).backbone == make_plan().backbone
    assert need(Noise()).backbone is None


def test_a_resource_is_a_dataclass_of_plain_values() -> None:
    with pytest.raises(PluginError, match=r"resource Plain must be a frozen dataclass deriving from Resource\."):
        need(Plain())
    with pytest.raises(PluginError, match=r"resource \w*test_resources:Opaque has a field that JSON cannot hold"):
        need(Opaque(call=lambda: None, other=object()))


def test_what_a_strangers_code_fails_to_say_is_a_sentence() -> None:
    with pytest.raises(PluginError, match=r"resource \w*test_resources:Vague cannot say what it takes: KeyError: 'images'\."):
        need(Vague()).effort(None)
    assert need(Noise()).effort(None) is None


def test_needs_are_gathered_without_repetition() -> None:
    loss, space = PluginRef.resolve("losses", "dm", {}), PluginRef.resolve("spaces", "hpd", {})
    generator = PluginRef.resolve("generators", "cvae", {})
    plan = replace(make_plan(), loss=loss, space=space, generator=generator)
    found = needs_of(plan, None, [Noise(), Noise()])
    assert [one.resource.describe() for one in found] == ["Noise", "generator cvae, 10 epochs"]
    assert [one.identity["from"] for one in found] == ["ddbench", "ddbench"]
    baseline = replace(plan, baseline=PluginRef.resolve("baselines", "random", {}))
    assert [one.resource.describe() for one in needs_of(baseline, None, [])] == ["generator cvae, 10 epochs"]
    assert needs_of(replace(baseline, generator=None), None, []) == []


# ---------------------------------------------------------------- building and reading


def test_a_resource_that_hides_its_backbone_is_refused(tmp_path: Path) -> None:
    store = ResourceStore(tmp_path / "resources")
    with pytest.raises(PluginError, match="without saying uses_backbone = True"):
        built(store, Sneaky())
    assert not store.is_built(need(Sneaky()).key)


def test_what_is_built_is_loaded_and_built_once(tmp_path: Path) -> None:
    store, one = ResourceStore(tmp_path / "resources"), need()
    (tmp_path / "resources" / f".{one.key[:16]}.dead").mkdir(parents=True)  # of a killed process
    assert not store.is_built(one.key)
    built(store)
    assert store.is_built(one.key)
    tensors, record = store.load(one.key, CPU)
    assert tensors["noise"].shape == (3,)
    assert (record.key, record.describe, record.identity) == (one.key, "Noise", json.loads(json.dumps(one.identity)))
    assert record.place == PLACE
    before = (store.folder(one.key) / "tensors.safetensors").stat().st_mtime_ns
    built(store)
    assert (store.folder(one.key) / "tensors.safetensors").stat().st_mtime_ns == before
    assert [path.name for path in store.root.iterdir()] == [one.key[:16]]
    assert store.keys() == [one.key[:16]]
    assert store.leftovers() == []


def test_what_a_reader_must_know_of_its_building_is_kept(tmp_path: Path) -> None:
    """And asked for once it is built."""
    store, need, told = ResourceStore(tmp_path), need_of(Noise(), None, make_plan()), list[bool]()

    def marks() -> tuple[str, ...]:
        told.append(store.is_built(need.key))
        return ("A plugin of this job changed grad mode while it ran.",)

    build(store, need, data(), CPU, PLACE, None, marks)
    assert store.record(need.key).marks == ("A plugin of this job changed grad mode while it ran.",)
    assert told == [False]


def test_equal_needs_give_equal_bytes(tmp_path: Path) -> None:
    paths = []
    for name in ("a", "b"):
        store = ResourceStore(tmp_path / name / "resources")
        paths.append(store.folder(built(store, Network()).key) / "tensors.safetensors")
    assert paths[0].read_bytes() == paths[1].read_bytes()


def flip(content: bytes) -> bytes:
    return content[:-1] + bytes([content[-1] ^ 1])


@pytest.mark.parametrize(
    ("file", "change", "told"),
    [
        ("tensors.safetensors", lambda _: b"x", "resource {}/tensors.safetensors is damaged: its bytes are not those"),
        ("tensors.safetensors", flip, "resource {}/tensors.safetensors is damaged: its bytes are not those"),
        ("tensors.safetensors", None, "resource {}/tensors.safetensors is missing."),
        ("resource.json", lambda _: b"{", "resource {}/resource.json is damaged ("),
        ("resource.json", None, "resource {}/resource.json is missing."),
        ("resource.json", lambda _: b"{}", "resource {}/resource.json is damaged (Object missing required field `key`)."),
        ("resource.json", lambda text: text.replace(b"Noise", b"Voice"), "resource {}/resource.json was changed after it"),
    ],
)
def test_a_damaged_resource_is_told(tmp_path: Path, file: str, change: Callable[[bytes], bytes] | None, told: str) -> None:
    store = ResourceStore(tmp_path / "resources")
    key = built(store).key
    path = store.folder(key) / file
    if change is None:
        path.unlink()
    else:
        path.write_bytes(change(path.read_bytes()))
    with pytest.raises(DataError) as caught:
        store.load(key, CPU)
    assert str(caught.value).startswith(told.format(store.folder(key)))
    assert str(caught.value).endswith(" Make it anew with: ddbench run SUITE --redo (or remove its folder first).")
    assert (store.flaw(key) is None) == (file == "tensors.safetensors" and change is not None)  # seen without its bytes


def test_a_resource_in_the_place_of_another_is_told(tmp_path: Path) -> None:
    store = ResourceStore(tmp_path / "resources")
    one, two = built(store), built(store, Noise(4))
    (store.folder(one.key) / "resource.json").replace(store.folder(two.key) / "resource.json")
    assert "is another one (Noise), put into its place, or was edited" in (store.flaw(two.key) or "")


SLOW = """
import sys, time
from dataclasses import dataclass
from pathlib import Path
import torch
sys.path.insert(0, sys.argv[2])
from test_resources import CPU, PLACE, Resource, ResourceStore, build, data, need

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
build(store, one, data(), CPU, PLACE)
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


# ---------------------------------------------------------------- the command line


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """One resource that a set has used, one that nobody has, and what a killed build has left behind."""
    store = Store(tmp_path / "store")
    one, _ = built(store.resources), built(store.resources, Noise(4))
    plan = plan_of()
    store.publish_set(plan, set_record(plan, resources=(used(one.key),)), set_contents(plan))
    (store.resources.root / f".{'a' * 16}.dead").mkdir()
    return store


def listed(store: Store, capsys: pytest.CaptureFixture[str], *arguments: str, code: int = 0) -> dict[str, Any]:
    assert main(["resources", str(store.root), "--json", *arguments]) == code
    return json.loads(capsys.readouterr().out)


def test_resources_are_listed_with_their_uses(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    rows = listed(store, capsys)["resources"]
    assert {row["key"]: row["uses"] for row in rows} == {need().key[:16]: 1, need(Noise(4)).key[:16]: 0}
    assert {row["resource"] for row in rows} == {"Noise"}
    assert main(["resources", str(store.root)]) == 0
    assert capsys.readouterr().out.endswith("2 resources, 0.0 MiB.\n")


def test_a_damaged_resource_is_seen_when_its_bytes_are_read(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    path = store.resources.folder(need().key) / "tensors.safetensors"
    path.write_bytes(flip(path.read_bytes()))
    assert {row["state"] for row in listed(store, capsys)["resources"]} == {"ok"}
    rows = listed(store, capsys, "--verify", code=1)["resources"]
    assert sorted(row["state"] == "ok" for row in rows) == [False, True]


def test_what_is_of_no_use_is_pruned(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    removed = listed(store, capsys, "--prune")["removed"]
    assert removed == [need(Noise(4)).key[:16], f".{'a' * 16}.dead"]
    assert store.resources.keys() == [need().key[:16]]


def test_what_a_job_under_way_may_be_waiting_for_is_not_pruned(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    store.work("set-0123456789abcdef").mkdir(parents=True)
    assert listed(store, capsys, "--prune")["removed"] == [f".{'a' * 16}.dead"]
