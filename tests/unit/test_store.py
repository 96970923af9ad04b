"""The store: sets appear whole, nothing is rewritten, damage is told in a sentence, locks are kept."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from filelock import BaseFileLock, Timeout
from msgspec.structs import replace
from stores import PLACE, judgement, judging_of, plan_of, set_bytes, set_contents, set_record, write_store

from ddbench import schema
from ddbench.errors import DataError
from ddbench.files import tensors_to_bytes
from ddbench.plan import SetPlan, short
from ddbench.results.layout import block_name, job_of, judgement_job, parts_of_job, resource_job, set_job
from ddbench.results.store import Store
from ddbench.schema import REMEDY_FOLDER, IterateRecord, JobFile

PLAN, JUDGING = plan_of(), judging_of()


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def publish(store: Store, plan: SetPlan = PLAN, value: float = 0.0, **changed: Any) -> None:
    store.publish_set(plan, set_record(plan, value, **changed), set_contents(plan, value))


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []


def sentence(call: Any, *args: Any) -> str:
    with pytest.raises(DataError) as caught:
        call(*args)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# ---------------------------------------------------------------- opening


def test_a_new_store_has_a_marker(tmp_path: Path) -> None:
    root = tmp_path / "a" / "b"
    Store(root)
    assert json.loads((root / "store.json").read_text()) == {"schema": 2}
    Store(root)  # and opens again
    assert names(root) == ["store.json"]


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


@pytest.mark.parametrize("number", [3, -1, 0, 1.5, "2", None, True])
def test_a_store_of_another_schema_is_refused(tmp_path: Path, number: object) -> None:
    (tmp_path / "store.json").write_text(json.dumps({"schema": number}))
    told = f"store {tmp_path} has schema {number!r}, this ddbench reads 2. Update ddbench, or name another store."
    assert sentence(Store, tmp_path) == told


def test_an_old_store_is_refused(tmp_path: Path) -> None:
    (tmp_path / "store.json").write_text('{"schema": 1}')
    told = f"store {tmp_path} was written by ddbench 0.1, which can still read it; name another store."
    assert sentence(Store, tmp_path) == told


def test_a_damaged_marker_is_told(tmp_path: Path) -> None:
    (tmp_path / "store.json").write_text("{")
    assert sentence(Store, tmp_path).startswith(f"store marker {tmp_path}/store.json is damaged or cut short (")


def test_the_root_stays_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A plugin that changes the folder moves no result."""
    monkeypatch.chdir(tmp_path)
    store = Store(Path("here"))
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    publish(store)
    assert (tmp_path / "here" / "sets" / short(PLAN.key) / "record.json").is_file()
    assert store.resources.root == tmp_path / "here" / "resources"


# ---------------------------------------------------------------- names


def test_jobs_are_named_by_what_they_make() -> None:
    assert set_job(PLAN.key) == f"set-{PLAN.key[:16]}"
    name = judgement_job(PLAN.key, JUDGING.key, 0, 4)
    assert name == f"judgement-{PLAN.key[:16]}-{JUDGING.key[:16]}.0-4"
    kind, set16, block = parts_of_job(name)
    assert (kind, set16, str(block)) == ("judgement", PLAN.key[:16], f"{JUDGING.key[:16]}.0-4")
    assert parts_of_job(resource_job("a" * 64)) == ("resource", "a" * 16, None)
    common = {"suite": "toy", "plan": PLAN, "resource": "a" * 64, "judging": JUDGING, "first": 0, "last": 4}
    for kind, expected in (("set", set_job(PLAN.key)), ("judgement", name), ("resource", resource_job("a" * 64))):
        assert job_of(JobFile(kind=kind, name="", **common)) == expected


@pytest.mark.parametrize("name", ["set", "set-12", "../set-0123456789abcdef", f"judgement-{'a' * 16}-{'b' * 16}.3-2", "jobs"])
def test_what_names_no_job(name: str) -> None:
    with pytest.raises(ValueError, match="names no job"):
        parts_of_job(name)


@pytest.mark.parametrize("text", ["0123456789abcdef.0-01", "0123456789abcdef.2-1", "0123456789abcdef.0-1000000", "a.0-1"])
def test_what_names_no_block(text: str) -> None:
    assert block_name(text) is None


# ---------------------------------------------------------------- sets


def test_a_set_is_published_whole_and_its_work_goes(store: Store) -> None:
    job = set_job(PLAN.key)
    store.work(job).mkdir(parents=True)
    (store.work(job) / "checkpoint.safetensors").touch()
    store.aside(job).mkdir()  # of a process that was killed
    other = store.aside(set_job(plan_of(seed=1).key))
    other.mkdir()
    assert not store.has_set(PLAN.key)
    assert not store.is_done(job)
    publish(store)
    assert store.has_set(PLAN.key)
    assert store.is_done(job)
    assert names(store.folder(PLAN.key)) == ["images.png", "plan.json", "record.json", "set.safetensors"]
    assert names(store.root / "work") == [other.name]
    assert store.read_plan(PLAN.key) == PLAN
    assert store.read_record(short(PLAN.key)) == schema.sealed(set_record(PLAN))
    tensors, meta = store.read_set(PLAN.key)
    assert tensors["labels"].equal(torch.eye(2))
    assert meta == {"key": "toy"}


def test_a_set_is_never_rewritten(store: Store) -> None:
    publish(store, suite="first")
    publish(store, suite="second")
    assert store.read_record(PLAN.key).suite == "first"
    assert names(store.root / "work") == []


def test_all_real_images_are_a_set_without_a_copy(store: Store) -> None:
    plan = plan_of(baseline="full-data", ipc=0)
    publish(store, plan)
    assert names(store.folder(plan.key)) == ["plan.json", "record.json"]
    assert store.read_record(plan.key).set_sha256 == schema.sha256_of_everything(plan.train_hash)
    assert sentence(store.read_set, plan.key).endswith("is all real training images: no copy of them is stored.")


STAGE = schema.Stage(tensors={"pixels": (2, 1)}, chosen_step=1, step_score=None, stage_score=None)
SIZE: dict[str, Any] = {"images_per_class": 1, "floats": 8, "bytes_without_decoder": 32, "bytes_with_decoder": 32}


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"key": "0" * 64}, "its key is not the one of its plan"),
        ({"files": {}}, "its set_sha256 is not the one of set.safetensors"),
        ({"set_sha256": "0" * 64}, "its set_sha256 is not the one of set.safetensors"),
        ({"data": schema.Data(label="x", hash="0" * 64, original=True, counts=(1,))}, "its data are not those of its plan"),
        ({"stages": (STAGE,), "chosen_stage": 1}, "it chose stage 1 of 1, counted from 0"),
        ({"size": schema.Size(budget="bytes", **SIZE)}, "its budget is bytes, and that of its plan images"),
    ],
)
def test_a_set_that_contradicts_itself_is_not_published(store: Store, changed: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        publish(store, **changed)
    with pytest.raises(ValueError, match="does not name the files as they are"):
        store.publish_set(PLAN, set_record(PLAN), set_contents(PLAN) | {"images.png": b"another"})
    assert not store.has_set(PLAN.key)


def test_a_number_that_is_not_finite_is_not_published(store: Store) -> None:
    with pytest.raises(ValueError, match="JSON"):
        publish(store, learned={"student_rate": float("nan")})
    assert not store.has_set(PLAN.key)


def test_whole_numbers_are_kept_as_the_fractions_they_are_read_as(store: Store) -> None:
    """A record whose author writes 0 for 0.0 is sound."""
    publish(store, measured=replace(set_record(PLAN).measured, seconds={"distill": 0}))
    assert store.read_record(PLAN.key).measured.seconds == {"distill": 0.0}
    odd = plan_of(held_out=0)  # another key than 0.0 has: nothing may be kept under it
    with pytest.raises(ValueError, match="another key when it is read back"):
        publish(store, odd)


@pytest.mark.parametrize("at", range(4))
def test_a_full_disc_leaves_no_half_of_a_set(store: Store, monkeypatch: pytest.MonkeyPatch, at: int) -> None:
    """At each of its four files; an earlier set stays."""
    earlier = plan_of(seed=1)
    publish(store, earlier)
    fsync, calls = os.fsync, iter(range(100))

    def full(handle: int) -> None:
        if next(calls) == at:
            raise OSError(errno.ENOSPC, "No space left on device")
        fsync(handle)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        publish(store)
    assert names(store.root / "work") == []
    assert names(store.root / "sets") == [short(earlier.key)]


@pytest.mark.parametrize(
    ("file", "content", "told"),
    [
        ("record.json", b'{"schema": 2, "key"', "record {} is damaged ("),
        ("record.json", b'{"schema": 3}', "record {} has schema 3, this ddbench reads 2. Update ddbench."),
        ("record.json", b"{}", "record {} is damaged (Object missing required field `key`)."),
        ("record.json", None, "record {} is missing."),
        ("plan.json", None, "plan {} is missing."),
        ("set.safetensors", None, "{} is missing."),
        ("set.safetensors", b"x", "{} is damaged: its bytes are not those that were written."),
    ],
)
def test_a_damaged_set_is_told_in_a_sentence(store: Store, file: str, content: bytes | None, told: str) -> None:
    publish(store)
    path = store.folder(PLAN.key) / file
    path.unlink() if content is None else path.write_bytes(content)
    read = {"plan.json": store.read_plan, "record.json": store.read_record, "set.safetensors": store.read_set}[file]
    message = sentence(read, PLAN.key)
    assert message.startswith(told.format(path))
    assert message.endswith((REMEDY_FOLDER, "Update ddbench."))


def test_a_set_is_dropped_with_its_judgements_and_what_is_under_way(store: Store) -> None:
    other = plan_of(seed=1)
    for plan in (PLAN, other):
        write_store(store.root, [(plan, [judgement(plan, JUDGING, [0.5])])])
    job = judgement_job(PLAN.key, JUDGING.key, 1, 1)
    store.work(job).mkdir()
    assert store.drop_set(PLAN.key) == [
        f"judgement {short(JUDGING.key)}.0-0 of set {short(PLAN.key)}",
        f"set {short(PLAN.key)}",
    ]
    assert names(store.root / "sets") == names(store.root / "judgements") == [short(other.key)]
    assert names(store.root / "work") == []
    assert store.drop_set(PLAN.key) == []


def test_a_set_that_is_being_made_is_not_dropped(store: Store) -> None:
    with store.lock(set_job(PLAN.key)):
        assert "is being computed by another process" in sentence(store.drop_set, PLAN.key)


def test_a_judgement_is_dropped_alone(store: Store) -> None:
    another = judging_of(draw=1)
    write_store(store.root, [(PLAN, [judgement(PLAN, judging, [0.5]) for judging in (JUDGING, another)])])
    assert store.drop_judgement(PLAN.key, JUDGING.key) == [f"judgement {short(JUDGING.key)}.0-0 of set {short(PLAN.key)}"]
    assert store.repeats(PLAN.key, JUDGING.key) == set()
    assert store.repeats(PLAN.key, another.key) == {0}
    assert store.has_set(PLAN.key)


# ---------------------------------------------------------------- iterates


def iterate_contents(plan: SetPlan, step: int, value: float) -> dict[str, bytes]:
    content = set_bytes(value)
    sha256 = sha_of(content)
    record = IterateRecord(key=plan.key, set_sha256=set_record(plan).set_sha256, step=step, sha256=sha256)
    return {f"iterates/{step}.safetensors": content, f"iterates/{step}.json": schema.to_bytes(record)}


def sha_of(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def test_iterates_are_kept_with_a_set_or_added_later(store: Store) -> None:
    store.publish_set(PLAN, set_record(PLAN), set_contents(PLAN) | iterate_contents(PLAN, 5, 0.5))
    assert list(store.iterates(PLAN.key)) == [5]
    store.work(set_job(PLAN.key)).mkdir()
    record = store.read_record(PLAN.key)
    store.add_iterates(PLAN.key, record.set_sha256, {5: set_bytes(0.5), 10: set_bytes(1.0)})
    assert list(store.iterates(PLAN.key)) == [5, 10]
    images, labels, sha256 = store.read_iterate(PLAN.key, 10)
    assert images.equal(torch.ones(2, 1, 2, 2))
    assert labels.equal(torch.eye(2))
    assert sha256 == store.iterates(PLAN.key)[10].sha256 == sha_of(set_bytes(1.0))
    assert names(store.root / "work") == []


def test_iterates_of_another_distillation_are_refused(store: Store) -> None:
    publish(store)
    told = sentence(store.add_iterates, PLAN.key, "0" * 64, {5: set_bytes(0.5)})
    assert "has other bytes than the same distillation gives here" in told
    assert store.iterates(PLAN.key) == {}
    sha256 = set_record(PLAN).set_sha256
    store.add_iterates(PLAN.key, sha256, {5: set_bytes(0.5)})
    assert "the first is kept" in sentence(store.add_iterates, PLAN.key, sha256, {5: set_bytes(0.75)})
    assert store.read_iterate(PLAN.key, 5)[0].unique().tolist() == [0.5]


def test_a_damaged_iterate_is_told(store: Store) -> None:
    store.publish_set(PLAN, set_record(PLAN), set_contents(PLAN) | iterate_contents(PLAN, 5, 0.5))
    path = store.folder(PLAN.key) / "iterates" / "5.safetensors"
    path.write_bytes(tensors_to_bytes({"images": torch.zeros(1)}))
    assert sentence(store.read_iterate, PLAN.key, 5).startswith(f"{path} is damaged: its bytes are not those")


# ---------------------------------------------------------------- judgements


def test_judgements_are_kept_by_blocks_of_repeats(store: Store) -> None:
    publish(store)
    store.work(judgement_job(PLAN.key, JUDGING.key, 2, 3)).mkdir(parents=True)
    for first in (0, 2):
        store.publish_judgement(judgement(PLAN, JUDGING, [0.5, 0.25], first=first))
    assert names(store.judgements(PLAN.key)) == [f"{short(JUDGING.key)}.{block}.json" for block in ("0-1", "2-3")]
    assert store.repeats(PLAN.key, JUDGING.key) == {0, 1, 2, 3}
    assert store.repeats(PLAN.key, judging_of(draw=1).key) == set()
    assert store.is_done(judgement_job(PLAN.key, JUDGING.key, 1, 2))
    assert not store.is_done(judgement_job(PLAN.key, JUDGING.key, 3, 4))
    assert names(store.root / "work") == []


def test_a_judgement_is_never_rewritten(store: Store) -> None:
    path = store.judgement(PLAN.key, JUDGING.key, 0, 0)
    store.publish_judgement(judgement(PLAN, JUDGING, [0.5], suite="first"))
    before = path.read_bytes()
    store.publish_judgement(judgement(PLAN, JUDGING, [0.5], suite="second"))
    assert path.read_bytes() == before


def test_a_judgement_that_contradicts_itself_is_not_published(store: Store) -> None:
    record = judgement(PLAN, JUDGING, [0.5])
    with pytest.raises(ValueError, match=r"accuracy 0\.75 is not 500 of 1000 images"):
        store.publish_judgement(replace(record, repeats=(replace(record.repeats[0], accuracy=0.75),)))
    with pytest.raises(ValueError, match="JSON"):
        store.publish_judgement(replace(record, repeats=(replace(record.repeats[0], train_loss=float("inf")),)))
    assert store.repeats(PLAN.key, JUDGING.key) == set()


# ---------------------------------------------------------------- jobs and failures


def job_file(**changed: Any) -> JobFile:
    return JobFile(**({"kind": "set", "name": set_job(PLAN.key), "suite": "toy", "plan": PLAN} | changed))


def test_jobs_are_written_and_read(store: Store) -> None:
    job = job_file(iterates=(5,))
    store.write_job(job)
    path = store.job(job.name)
    before = path.stat().st_mtime_ns
    store.write_job(job)  # nothing new
    assert path.stat().st_mtime_ns == before
    assert store.read_job(job.name) == schema.sealed(job)
    assert store.begun() == [job.name]
    publish(store)
    assert store.begun() == []


def test_a_job_under_another_name_is_refused(store: Store) -> None:
    with pytest.raises(ValueError, match="another name"):
        store.write_job(job_file(name="set-0123456789abcdef"))
    other = job_file(plan=plan_of(seed=1), name=set_job(plan_of(seed=1).key))
    for job in (job_file(), other):
        store.write_job(job)
    store.job(job_file().name).write_bytes(store.job(other.name).read_bytes())
    assert "is another one" in sentence(store.read_job, job_file().name)
    assert sentence(store.read_job, "set-0123456789abcdef").endswith("is missing. Give the command again that it was made for.")


def test_a_job_of_an_older_engine_keeps_its_key(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was stored before `numerics` was raised is still sound; only new plans have another key."""
    from ddbench.plan import NUMERICS
    from ddbench.results.contents import read_contents

    write_store(store.root, [(PLAN, [judgement(PLAN, JUDGING, [0.5])])])
    for name in ("engine", "training", "evaluator"):
        monkeypatch.setitem(NUMERICS, name, NUMERICS[name] + 1)
    assert read_contents(store).faults == ()
    assert plan_of().key != PLAN.key
    assert judging_of().key != JUDGING.key
    assert any("'engine' is 1" in fault for fault in store.read_plan(PLAN.key).check())


def test_failures_are_counted_up_and_the_last_one_is_told(store: Store) -> None:
    job = set_job(PLAN.key)
    for error in ("first", "second"):
        store.fail(job, PLAN.name, error, "Traceback ...", PLACE)
    paths = store.failures(job)
    assert [path.name for path in paths] == ["0.json", "1.json"]
    good, bad = store.failed()
    assert [(name, failure.error, failure.title) for name, failure in good] == [(job, "second", PLAN.name)]
    assert bad == []
    paths[1].write_text("{")  # a damaged one stops nothing
    good, bad = store.failed()
    assert good == []
    assert [text.startswith(f"failure record {paths[1]} is damaged") for text in bad] == [True]
    store.fail(job, PLAN.name, "third", "")
    assert [path.name for path in store.failures(job)] == ["0.json", "1.json", "2.json"]
    publish(store)
    assert store.failed() == ([], [])  # done since


def test_suites_are_kept_by_name_and_content(store: Store) -> None:
    for text in ("a = 1", "a = 1", "a = 2"):
        store.add_suite("s", text)
    paths = sorted((store.root / "suites").iterdir())
    assert sorted(path.read_text() for path in paths) == ["a = 1", "a = 2"]
    assert all(path.name.startswith("s-") and len(path.stem) == 10 for path in paths)


# ---------------------------------------------------------------- what killed processes leave, and locks


def left_behind(store: Store) -> list[Path]:
    """Everything that a killed process may leave; the set and its judgement are there."""
    job, key16 = set_job(PLAN.key), short(PLAN.key)
    paths = [
        store.aside(job) / "record.json",
        store.work(job) / "checkpoint.safetensors",
        store.work(judgement_job(PLAN.key, JUDGING.key, 0, 0)) / "kept.json",
        store.root / "judgements" / key16 / f".{short(JUDGING.key)}.1-1.json.0123.tmp",
        store.root / "sets" / key16 / "iterates" / "7.safetensors",
        store.root / "sets" / key16 / "iterates" / ".7.json.0123.tmp",
        store.root / "work" / "jobs" / f".{job}.json.0123.tmp",
        store.root / "suites" / ".s-01234567.toml.0123.tmp",
        store.root / "failed" / job / ".0.json.0123.tmp",
        store.root / "resources" / f".{'a' * 16}.0123" / "tensors.safetensors",
    ]
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return paths


def test_what_killed_processes_left_is_tidied(store: Store) -> None:
    write_store(store.root, [(PLAN, [judgement(PLAN, JUDGING, [0.5])])])
    store.add_iterates(PLAN.key, set_record(PLAN).set_sha256, {5: set_bytes(0.5)})
    store.write_job(job_file())  # done
    unfinished = job_file(plan=plan_of(seed=1), name=set_job(plan_of(seed=1).key))
    store.write_job(unfinished)
    store.work(unfinished.name).mkdir()  # its checkpoint is wanted
    left = left_behind(store)
    store.tidy()
    assert [path for path in left if path.exists()] == []
    assert names(store.root / "work") == ["jobs", unfinished.name]
    assert names(store.root / "work" / "jobs") == [f"{unfinished.name}.json"]
    assert list(store.iterates(PLAN.key)) == [5]
    assert store.repeats(PLAN.key, JUDGING.key) == {0}


def test_what_is_under_way_is_not_tidied(store: Store) -> None:
    write_store(store.root, [(PLAN, [judgement(PLAN, JUDGING, [0.5])])])
    store.write_job(job_file())
    left = left_behind(store)
    held = [set_job(PLAN.key), *(judgement_job(PLAN.key, JUDGING.key, repeat, repeat) for repeat in (0, 1)), "store"]
    with holding(store, *held, resource_job("a" * 16)):
        Store(store.root).tidy()
    assert [path for path in left if not path.exists()] == []
    assert store.job(set_job(PLAN.key)).exists()


@contextmanager
def holding(store: Store, *jobs: str) -> Iterator[None]:
    locks = [store.lock(job) for job in jobs]
    for lock in locks:
        lock.acquire(timeout=0)
    try:
        yield
    finally:
        for lock in locks:
            lock.release()


def test_one_process_holds_a_lock_and_its_death_frees_it(store: Store) -> None:
    code = (
        "import sys\nfrom pathlib import Path\nfrom ddbench.results.locks import Locks\n"
        "lock = Locks(Path(sys.argv[1]) / 'locks').lock('set-0123456789abcdef')\nlock.acquire()\n"
        "print('held', flush=True)\nsys.stdin.read()"
    )
    command = [sys.executable, "-c", code, str(store.root)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        with pytest.raises(Timeout):
            store.lock("set-0123456789abcdef").acquire(timeout=0)
    finally:
        process.kill()
        process.communicate(timeout=60)
    with store.lock("set-0123456789abcdef").acquire(timeout=60):
        pass


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_is_told(store: Store, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    fcntl = pytest.importorskip("fcntl")

    def refuse(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", refuse)
    told = sentence(store.lock, set_job(PLAN.key))
    assert told.startswith(f"this file system gives no locks ({os.strerror(number)}: {store.root}/locks/")
    assert told.endswith("name a store on a local disc or on one that is mounted with locks, with --store.")
    assert names(store.root / "locks") == []


def test_a_lock_file_that_may_not_be_written_is_told(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Such as another user's. A full disc is no such thing, and is told by whoever takes the lock."""
    lock = store.lock(set_job(PLAN.key))
    for number, kind in ((errno.EACCES, DataError), (errno.ENOLCK, DataError), (errno.ENOSPC, OSError)):

        def refuse(*_: object, number: int = number, **__: object) -> None:
            raise OSError(number, os.strerror(number))

        monkeypatch.setattr(BaseFileLock, "acquire", refuse)
        with pytest.raises(kind, match=os.strerror(number)):
            lock.acquire(timeout=0)


@pytest.mark.parametrize(
    ("asked", "stays"),
    [('{"steps": [5], "seconds": []}', True), ('{"steps": []}', False), ("[5]", False), ("[", False), (None, False)],
)
def test_work_on_iterates_of_a_set_that_is_there_outlives_a_tidying(store: Store, asked: str | None, stays: bool) -> None:
    """It is the distillation run again for them, with a checkpoint; other work on a set that is there is of no use."""
    publish(store)
    work = store.work(set_job(PLAN.key))
    work.mkdir(parents=True)
    (work / "checkpoint.safetensors").touch()
    if asked is not None:
        (work / "asked.json").write_text(asked)
    store.tidy()
    assert work.exists() == stays
