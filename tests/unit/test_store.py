"""The store: cells appear whole, nothing is rewritten, damage is told in a sentence."""

from __future__ import annotations

import errno
import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ddbench.errors import DataError
from ddbench.grid.worker import sentence_of
from ddbench.plan import Plan, PluginRef
from ddbench.protocols import load as load_protocol
from ddbench.results.store import Store, group_key, read_record, short, stable
from ddbench.suite.reader import Suite


@pytest.fixture(scope="module")
def plan() -> Plan:
    network = PluginRef.resolve("architectures", "convnet", {"width": 4})
    dataset = PluginRef.resolve("datasets", "mnist-5k", {})
    return Plan(dataset, "0" * 64, load_protocol("smoke-1"), (network,), network, ipc=1, seed=0, baseline="random")


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def record_of(plan: Plan, **changed: Any) -> dict[str, Any]:
    names = ("schema", "key", "suite", "data", "plan", "distilled", "evaluations", "resources", "versions", "measured")
    return {name: {} for name in names} | {"schema": 1, "key": plan.key} | changed


def sentence(call: Any, *args: Any) -> str:
    with pytest.raises(DataError) as caught:
        call(*args)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_new_store_has_a_marker(tmp_path: Path) -> None:
    root = tmp_path / "a" / "b"
    Store(root)
    assert json.loads((root / "store.json").read_text()) == {"schema": 1}
    Store(root)  # and opens again
    assert [path.name for path in root.iterdir()] == ["store.json"]


def test_what_is_no_store_is_refused(tmp_path: Path) -> None:
    (tmp_path / "photo.jpg").touch()
    refusal = f"{tmp_path} holds other things and no store.json: name an empty or new folder with --store."
    assert sentence(Store, tmp_path) == refusal
    file = tmp_path / "photo.jpg"
    assert sentence(Store, file).startswith(f"{file} holds other things")
    absent = tmp_path / "none"
    assert sentence(Store, absent, False) == f"there is no store at {absent}. Make one with: ddbench run SUITE --store {absent}"
    assert not absent.exists()


def test_a_marker_that_another_process_is_writing_is_no_other_thing(tmp_path: Path) -> None:
    (tmp_path / ".store.json.0123.tmp").write_text('{"sch')
    assert Store(tmp_path).root == tmp_path


@pytest.mark.parametrize("schema", [2, "1", None])
def test_a_newer_store_is_refused(tmp_path: Path, schema: object) -> None:
    (tmp_path / "store.json").write_text(json.dumps({"schema": schema}))
    told = f"store {tmp_path} has schema {schema}, this ddbench knows 1. Update ddbench, or name another store."
    assert sentence(Store, tmp_path) == told


def test_a_damaged_marker_is_told(tmp_path: Path) -> None:
    (tmp_path / "store.json").write_text("{")
    assert sentence(Store, tmp_path).startswith(f"store marker {tmp_path}/store.json is damaged or cut short (")


def test_a_cell_is_published_whole_and_its_work_goes(store: Store, plan: Plan) -> None:
    store.work(plan.key).mkdir(parents=True)
    (store.work(plan.key) / "checkpoint.safetensors").touch()
    (store.root / "work" / f".{short(plan.key)}.1.dead").mkdir()
    (store.root / "work" / ".another.1.alive").mkdir()
    assert not store.is_done(plan.key)
    store.publish(plan, record_of(plan), {"images.png": b"png"})
    assert store.is_done(plan.key)
    assert sorted(path.name for path in store.cell(plan.key).iterdir()) == ["images.png", "plan.json", "record.json"]
    assert json.loads((store.cell(plan.key) / "plan.json").read_text()) == plan.to_json()
    assert [path.name for path in (store.root / "work").iterdir()] == [".another.1.alive"]
    assert store.record(plan.key) == record_of(plan)


def test_a_cell_is_never_rewritten(store: Store, plan: Plan) -> None:
    store.publish(plan, record_of(plan, suite="first"), {})
    store.publish(plan, record_of(plan, suite="second"), {})
    assert store.record(plan.key)["suite"] == "first"
    assert list((store.root / "work").iterdir()) == []


@pytest.mark.parametrize("at", range(3))
def test_a_full_disc_leaves_no_half_of_a_cell(
    store: Store, plan: Plan, monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    """At the first, second and third file of a cell; an earlier cell stays."""
    earlier = replace(plan, seed=1)
    store.publish(earlier, record_of(earlier), {})
    fsync, calls = os.fsync, iter(range(100))

    def full(handle: int) -> None:
        if next(calls) == at:
            raise OSError(errno.ENOSPC, "No space left on device")
        fsync(handle)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left") as caught:
        store.publish(plan, record_of(plan), {"images.png": b"png"})
    told = sentence_of(caught.value, plan, store.root)
    assert told == (
        f"the disc that holds {store.root} is full. Free some space, then give the same command again; "
        "finished cells are kept."
    )
    assert not store.is_done(plan.key)
    assert list((store.root / "work").iterdir()) == []
    assert store.records() == ([record_of(earlier)], [])


def test_what_a_killed_process_left_is_tidied_unless_the_cell_is_running(store: Store, plan: Plan) -> None:
    store.publish(plan, record_of(plan), {})
    store.work(plan.key).mkdir()
    with store.lock(plan.key):
        Store(store.root).tidy(plan.key)
        assert store.work(plan.key).exists()
    store.tidy(plan.key)
    assert not store.work(plan.key).exists()
    other = replace(plan, seed=1)
    store.work(other.key).mkdir()  # not finished: its checkpoint is wanted
    store.tidy(other.key)
    assert store.work(other.key).exists()


def test_failures_are_counted_up_and_the_last_one_is_told(store: Store, plan: Plan) -> None:
    for error in ("first", "second"):
        store.fail(plan, error, "Traceback ...")
    paths = store.failures(plan.key)
    assert [path.name for path in paths] == ["0.json", "1.json"]
    first = json.loads(paths[0].read_text())
    assert first == {"schema": 1, "key": plan.key, "plan": plan.to_json(), "error": "first", "details": "Traceback ..."}
    good, bad = store.failed()
    assert [(folder, failure["error"]) for folder, failure in good] == [(short(plan.key), "second")]
    assert bad == []
    paths[1].write_text("{")  # a damaged one stops nothing
    store.fail(plan, "third", "")
    assert [path.name for path in store.failures(plan.key)] == ["0.json", "1.json", "2.json"]
    store.publish(plan, record_of(plan), {})
    assert store.failed() == ([], [])  # finished since


def test_a_damaged_failure_record_is_told(store: Store, plan: Plan) -> None:
    store.fail(plan, "x", "")
    store.failures(plan.key)[0].write_text("{")
    good, bad = store.failed()
    assert good == []
    assert len(bad) == 1
    assert bad[0].startswith(f"failure record {store.root}/failed/{short(plan.key)}/0.json is damaged")


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ('{"schema": 1, "key"', "record {} is damaged or cut short ("),
        ('{"schema": 2}', "record {} has schema 2, this ddbench knows 1. Update ddbench."),
        ("{}", "record {} has schema None, this ddbench knows 1. Update ddbench."),
        ('{"schema": 1, "key": ""}', "record {} lacks data, distilled, evaluations, measured, plan, resources, suite, versions."),
        (None, "record {} is missing."),
    ],
)
def test_an_unreadable_record_is_a_sentence_and_the_others_are_read(
    store: Store, plan: Plan, content: str | None, told: str
) -> None:
    other = replace(plan, seed=1)
    for each in (plan, other):
        store.publish(each, record_of(each), {})
    path = store.cell(plan.key) / "record.json"
    path.unlink() if content is None else path.write_text(content)
    good, bad = store.records()
    assert good == [record_of(other)]
    assert len(bad) == 1
    assert bad[0].startswith(told.format(path))
    assert bad[0].endswith(("Remove its folder, then run again to make it anew.", "Update ddbench."))
    assert sentence(read_record, path) == bad[0]


def test_suites_are_kept_by_name_and_content(store: Store) -> None:
    for text in ("a = 1", "a = 1", "a = 2"):
        store.add_suite(Suite("s", "", (), text, None))
    paths = sorted((store.root / "suites").iterdir())
    assert sorted(path.read_text() for path in paths) == ["a = 1", "a = 2"]
    assert all(path.name.startswith("s-") and len(path.stem) == 10 for path in paths)


def test_what_counts_as_the_same(plan: Plan) -> None:
    record = record_of(plan, measured={"seconds": 1})
    assert stable(record) == {name: value for name, value in record.items() if name != "measured"}
    other = replace(plan, seed=5)
    assert group_key(plan.to_json()) == group_key(other.to_json())
    assert group_key(plan.to_json()) != group_key(replace(plan, ipc=2).to_json())


def test_a_cell_begun_elsewhere_is_begun_anew(tmp_path: Path) -> None:
    """No record mixes two machines or two versions of torch."""
    from ddbench.grid.cell import go_on_only_where_it_began

    work, here = tmp_path / "work", {"versions": {"torch": "1"}, "hardware": {"kind": "cpu"}}
    go_on_only_where_it_began(work, here)
    (work / "checkpoint.safetensors").write_bytes(b"x")
    go_on_only_where_it_began(work, here)
    assert (work / "checkpoint.safetensors").is_file()
    go_on_only_where_it_began(work, here | {"versions": {"torch": "2"}})
    assert [path.name for path in work.iterdir()] == ["place.json"]
