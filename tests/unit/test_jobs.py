"""From cells to jobs, and what the runner makes of them, with made-up sets and an executor that starts no process."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import msgspec
import pytest
import torch
from made_jobs import Config, Made, Noise, cell, go, judged, publish, shared
from msgspec.structs import replace
from stores import (
    CONVNET,
    FINISHED,
    PLACE,
    VIT,
    judgement,
    judging_of,
    plan_of,
    ref,
    set_bytes,
    set_contents,
    set_record,
    write_store,
)

from ddbench.api import Job, JobState, Request, Site
from ddbench.compute.resources import need_of
from ddbench.errors import ConfigError
from ddbench.grid import do_judgement
from ddbench.grid.counts import Counts
from ddbench.grid.jobs import Lister, Todo, missing_blocks
from ddbench.grid.planning import Planned, plan_of_need, set_needs, with_needs
from ddbench.grid.runner import Options, list_jobs
from ddbench.grid.sites import devices_of
from ddbench.plan import Cell
from ddbench.refs import PluginRef
from ddbench.results.contents import read_contents
from ddbench.results.layout import resource_job, set_job
from ddbench.results.store import Store
from ddbench.schema import SetMeasured

PLANS = (plan_of("dm"), plan_of("dc"), plan_of(baseline="random"))


def todo(store: Store, *cells: Cell, parts: int = 1) -> Todo:
    return Lister(Planned(cells), store, read_contents(store), "toy", parts).todo()


def names(found: Todo) -> list[str]:
    return [work.job.name for work in found.work]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """Every plan, judged once by one network."""
    return write_store(tmp_path / "store", [(plan, [judgement(plan, judging_of(), [0.5])]) for plan in PLANS])


# What is missing


def test_an_empty_store_lacks_everything_and_judgements_wait_for_their_sets(tmp_path):
    found = todo(Store(tmp_path / "new"), *map(cell, PLANS))
    assert names(found) == [*(set_job(plan.key) for plan in PLANS), *map(judged, PLANS)]
    assert (found.present, found.total) == (0, 6)
    for work in found.work[3:]:
        assert work.job.needs == work.file.needs == (set_job(work.file.plan.key),)
    assert {work.job.kind for work in found.work} == {"set", "judgement"}


def test_a_full_store_lacks_nothing(store):
    assert todo(store, *map(cell, PLANS)) == Todo((), Counts(set=3, judgement=3), Counts(set=3, judgement=3))


def test_a_network_a_repeat_a_protocol_and_a_baseline_add_just_that(store):
    assert names(todo(store, *(cell(plan, CONVNET, VIT) for plan in PLANS))) == [judged(plan, VIT) for plan in PLANS]
    more = todo(store, *(cell(plan, repeats=3) for plan in PLANS))
    assert names(more) == [judged(plan, first=1, last=2) for plan in PLANS]
    assert (more.present, more.total) == (3, 6)
    other = replace(judging_of().numbers, epochs=7)
    assert names(todo(store, cell(PLANS[0], numbers=other))) == [judged(PLANS[0], numbers=other)]
    assert todo(store, cell(PLANS[0], protocol="another-id")).work == ()  # of equal numbers
    full = plan_of(baseline="full-data", ipc=0)
    assert names(todo(store, *map(cell, (*PLANS, full)))) == [set_job(full.key), judged(full)]


def test_sets_that_two_cells_share_are_made_once_with_the_iterates_of_both(store, tmp_path):
    cells = (cell(PLANS[0], iterates=(2, 4)), cell(PLANS[0], iterates=(4, 6)))
    found = todo(store, *cells)
    assert [work.file.iterates for work in found.work if work.job.kind == "set"] == [(2, 4, 6)]
    steps = [work.file.judging.iterate for work in found.work if work.job.kind == "judgement"]
    assert steps == [2, 4, 6]  # the finished set is judged
    assert all(work.job.needs == (set_job(PLANS[0].key),) for work in found.work[1:])
    both = todo(store, *(Cell(each.set, (*each.judgings, judging_of(VIT)), 1, "", each.iterates) for each in cells))
    free = [work for work in both.work if work.job.kind == "judgement" and work.file.judging.iterate is None]
    assert [work.job.needs for work in free] == [()]  # the set is there: nothing is waited for


def test_iterates_that_another_cell_of_a_set_that_is_there_wants_are_made(store):
    found = todo(store, cell(PLANS[0]), cell(PLANS[0], iterates=(2,)))
    assert names(found) == [set_job(PLANS[0].key), judged(PLANS[0], iterate=2)]
    assert found.work[1].job.needs == (set_job(PLANS[0].key),)
    assert (found.present, found.total) == (1, 3)


def test_iterates_by_seconds_are_asked_for_as_such_until_the_set_says_which_they_are(tmp_path):
    plan, empty = PLANS[0], Store(tmp_path / "store")
    wanted = cell(plan, iterates=(2,), iterate_seconds=(1.0, 3.0))
    found = todo(empty, wanted, cell(plan, iterate_seconds=(3.0, 7.0)))
    looks = [judged(plan), judged(plan, iterate=2), *(judged(plan, iterate_seconds=each) for each in (1.0, 3.0, 7.0))]
    assert names(found) == [set_job(plan.key), *looks]
    assert all(work.job.needs == (set_job(plan.key),) for work in found.work[1:])
    assert (found.work[0].file.iterates, found.work[0].file.iterate_seconds) == ((2,), (1.0, 3.0, 7.0))
    assert found.work[-1].job.title.endswith(" after 7 s")
    timeline = tuple((step, step / 2) for step in range(10))
    measured = SetMeasured(seconds={}, peak_memory_bytes=1, commit=None, finished=FINISHED, timeline=timeline)
    empty.publish_set(plan, set_record(plan, measured=measured), set_contents(plan))
    later = todo(empty, wanted)
    assert names(later) == [set_job(plan.key), *looks[:4]]
    assert (later.work[0].file.iterates, later.work[0].file.iterate_seconds) == ((2, 6), ())
    empty.add_iterates(plan.key, set_record(plan).set_sha256, {2: set_bytes(2.0), 6: set_bytes(6.0)})
    assert names(todo(empty, wanted)) == looks[:4]


def test_iterates_that_are_there_are_not_asked_for(store):
    plan = PLANS[0]
    store.add_iterates(plan.key, set_record(plan).set_sha256, {2: set_bytes(2.0)})
    assert names(todo(store, cell(plan, iterates=(2,)))) == [judged(plan, iterate=2)]
    (work, *_) = todo(store, cell(plan, iterates=(2, 4))).work
    assert (work.job.name, work.file.iterates) == (set_job(plan.key), (4,))


def test_what_is_damaged_is_left_alone(store):
    (store.folder(PLANS[0].key) / "set.safetensors").write_bytes(b"x")
    store.judgement(PLANS[1].key, judging_of().key, 0, 0).write_text("{")
    found = todo(store, *(cell(plan, CONVNET, VIT) for plan in PLANS))
    assert names(found) == [judged(plan, VIT) for plan in PLANS[1:]]
    assert (found.present, found.total) == (3, 9)


@pytest.mark.parametrize(
    ("there", "parts", "blocks"),
    [
        ((), 1, [(0, 4)]),
        ((0, 1, 2, 3, 4), 1, []),
        ((2,), 1, [(0, 1), (3, 4)]),
        ((), 2, [(0, 2), (3, 4)]),
        ((), 9, [(0, 0), (1, 1), (2, 2), (3, 3), (4, 4)]),
        ((0, 7), 2, [(1, 2), (3, 4)]),
    ],
)
def test_missing_repeats_are_runs(there, parts, blocks):
    found = missing_blocks(PLANS[0], judging_of(), 5, set(there), parts)
    assert [(block.first, block.last) for block in found] == blocks


# What is shared


def test_a_resource_comes_before_its_sets_and_once(tmp_path):
    planned, need = shared(*map(cell, PLANS[:2]))
    store = Store(tmp_path / "store")
    found = Lister(planned, store, read_contents(store), "toy").todo()
    assert names(found)[0] == resource_job(need.key)
    assert [work.job.needs for work in found.work[1:3]] == [(resource_job(need.key),)] * 2
    assert found.total == 4  # sets and judgements are counted, and what they share is not


def test_a_resource_is_built_without_the_plugins_that_have_no_part_in_it(tmp_path):
    """Their code might change what others share."""
    stranger = replace(ref("losses", "dm"), distribution="other", distributions=("other",))
    plan = plan_of(generator=ref("generators", "cvae"))
    plan = replace(plan, loss=stranger)
    for owner, kept in ((plan.generator, ("generator",)), (None, ()), (stranger, ("loss",))):
        found = plan_of_need(plan, need_of(Noise(), owner, plan))
        assert [name for name in ("loss", "space", "generator") if getattr(found, name)] == list(kept)
        assert need_of(Noise(), owner, found).key == need_of(Noise(), owner, plan).key
    planned, _need = shared(cell(plan), owner=plan.generator)
    store = Store(tmp_path / "store")
    work = {each.job.kind: each.job for each in Lister(planned, store, read_contents(store), "toy").todo().work}
    assert work["resource"].distributions == ()
    assert work["set"].distributions == ("other",)
    assert work["judgement"].distributions == ()


def test_a_resource_that_several_plugins_ask_for_is_built_for_the_first_of_them(tmp_path):
    """Its job has that plugin's plan, and finds it among what this one needs."""
    data = PluginRef.resolve("datasets", "mnist-5k", {})
    plans = [plan_of(baseline=name, backbone=CONVNET, dataset=data) for name in ("herding", "k-means", "rded")]
    planned = with_needs(map(cell, plans))
    (key,) = planned.needs
    store = Store(tmp_path / "store")
    found = Lister(planned, store, read_contents(store), "toy").todo()
    (work,) = [each for each in found.work if each.job.kind == "resource"]
    assert work.file.plan.baseline == plans[0].baseline
    assert [need.key for need in set_needs(work.file.plan)] == [key]


# The runner


@pytest.fixture
def empty(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def test_everything_is_done_in_turn(empty):
    executor = Made(lambda name: publish(empty, name), window=2)
    outcome, told = go(empty, executor, *(cell(plan, CONVNET, VIT, repeats=2) for plan in PLANS))
    assert executor.submitted == outcome.computed
    assert (outcome.total, outcome.present, len(outcome.computed), outcome.failed) == (9, 0, 9, {})
    assert told.ends == [("set", "done")] * 3 + [("judgement", "done")] * 6
    assert read_contents(empty).faults == ()
    assert list((empty.root / "work" / "jobs").iterdir()) == []
    again = Made(lambda name: publish(empty, name))
    outcome, _ = go(empty, again, *(cell(plan, CONVNET, VIT, repeats=2) for plan in PLANS))
    assert (outcome.present, outcome.total, again.submitted) == (9, 9, [])


def test_an_executor_that_says_done_is_not_believed(empty):
    outcome, told = go(empty, Made(lambda name: None), cell(PLANS[0]))
    name, title = set_job(PLANS[0].key), PLANS[0].name
    assert outcome.failed == dict.fromkeys((name, judged(PLANS[0])), f"{title}: it ended without a result.")
    assert told.ends == [("set", "failed")]


def test_what_a_job_recorded_is_told_and_its_followers_fail_with_it(empty):
    def act(name: str) -> JobState | None:
        if name == set_job(PLANS[0].key):
            empty.fail(name, "title", "it went wrong.", "")
            return JobState("ended", detail="failed")
        return publish(empty, name)

    empty.fail(set_job(PLANS[0].key), "title", "an old failure.", "")
    outcome, _ = go(empty, Made(act), *map(cell, PLANS[:2]))
    path = empty.root / "failed" / set_job(PLANS[0].key) / "1.json"
    assert outcome.failed == dict.fromkeys((set_job(PLANS[0].key), judged(PLANS[0])), f"it went wrong. Its record: {path}")
    assert outcome.computed == [set_job(PLANS[1].key), judged(PLANS[1])]


@pytest.mark.parametrize("failed", ["set", "judgement"])
def test_what_failed_by_its_numbers_is_kept_and_tried_again_only_where_asked(empty, failed):
    name = set_job(PLANS[0].key) if failed == "set" else judged(PLANS[0])
    because_of_it = {name, judged(PLANS[0])}

    def diverges(job: str) -> JobState | None:
        if job == name:
            empty.fail(name, "title", "the loss was NaN.", "", PLACE)
            return JobState("ended", detail="failed")
        return publish(empty, job)

    first, _ = go(empty, Made(diverges), *map(cell, PLANS[:2]))
    record = empty.failures(name)[0]
    assert first.failed == dict.fromkeys(because_of_it, f"the loss was NaN. Its record: {record}")
    executor = Made(lambda job: publish(empty, job))
    kept, heard = go(empty, executor, *map(cell, PLANS[:2]))
    assert executor.submitted == kept.computed == []
    assert set(kept.failed) == because_of_it
    told = "the loss was NaN. It failed so before, and is tried again only with --redo."
    assert set(kept.failed.values()) == {f"{told} Its record: {record}"}
    assert heard.ends == [(failed, "failed")]
    assert len(empty.failures(name)) == 1
    again, _ = go(empty, executor, *map(cell, PLANS[:2]), again=True)
    assert (set(again.computed), again.failed) == (because_of_it, {})
    assert go(empty, executor, *map(cell, PLANS[:2]))[0].failed == {}


def test_a_failure_after_one_that_is_kept_may_be_tried_again(empty):
    """As where `--redo` ended by a full disc."""
    name = set_job(PLANS[0].key)
    empty.fail(name, "title", "the loss was NaN.", "", PLACE)
    empty.fail(name, "title", "the disc was full.", "")
    outcome, _ = go(empty, Made(lambda job: publish(empty, job)), cell(PLANS[0]))
    assert (outcome.failed, len(outcome.computed)) == ({}, 2)


def test_a_lost_job_is_recorded_and_one_that_the_store_has_is_done(empty):
    def act(name: str) -> JobState:
        if name != set_job(PLANS[0].key):
            publish(empty, name)
        return JobState("lost", detail="its process died")

    outcome, _ = go(empty, Made(act), *map(cell, PLANS[:2]))
    assert outcome.computed == [set_job(PLANS[1].key), judged(PLANS[1])]
    told = f"{PLANS[0].name}: its process died. Give the same command again to go on from its checkpoint."
    (path,) = empty.failures(set_job(PLANS[0].key))
    assert empty.read_failure(path).error == told
    assert outcome.failed[set_job(PLANS[0].key)] == f"{told} Its record: {path}"


@pytest.mark.parametrize("word", ["busy", "found"])
def test_a_job_that_another_run_is_at_is_looked_at_again(empty, monkeypatch, word):
    """`found` is said of a set that is there, without the iterates that are wanted."""
    monkeypatch.setattr("ddbench.grid.runner.BUSY_SECONDS", 0.0)
    plan, turns = PLANS[0], iter([word, word, ""])
    if word == "found":
        empty.publish_set(plan, set_record(plan), set_contents(plan))

    def act(name: str) -> JobState | None:
        said = next(turns) if name == set_job(plan.key) else ""
        return JobState("ended", detail=said) if said else publish(empty, name)

    executor = Made(act)
    outcome, told = go(empty, executor, cell(plan, iterates=(2,)))
    assert executor.submitted.count(set_job(plan.key)) == 3
    assert [end for kind, end in told.ends if kind == "set"] == ["busy", "busy", "done"]
    assert outcome.failed == {}


@pytest.mark.parametrize("word", ["found", "busy"])  # busy: it was finished between the worker's word and the driver's look
def test_what_another_run_did_meanwhile_counts_as_there(empty, word):
    def act(name: str) -> JobState:
        publish(empty, name)
        return JobState("ended", detail=word)

    outcome, told = go(empty, Made(act), cell(PLANS[0]))
    assert (outcome.computed, outcome.present, outcome.total) == ([], 2, 2)
    assert told.ends == [("set", "found"), ("judgement", "found")]


@pytest.mark.parametrize(("word", "num_built"), [("found", 0), ("busy", 0), ("done", 1)])
def test_a_resource_that_another_run_built_meanwhile_is_not_counted_as_built(empty, word, num_built):
    planned, need = shared(cell(PLANS[0]))

    def act(name: str) -> JobState | None:
        if name != resource_job(need.key):
            return publish(empty, name)
        empty.resources.publish(need.identity, {"x": torch.zeros(1)}, "Noise", PLACE, seconds=1.0)
        return JobState("ended", detail=word)

    outcome, _ = go(empty, Made(act), planned=planned)
    assert (len(outcome.built), len(outcome.computed), outcome.present) == (num_built, 2, 0)


def test_a_damaged_iterate_fails_its_job_and_stops_nothing(empty):
    plan = PLANS[0]
    empty.publish_set(plan, set_record(plan), set_contents(plan))

    def act(name: str) -> JobState | None:
        if name == set_job(plan.key):
            (empty.folder(plan.key) / "iterates").mkdir(exist_ok=True)
            (empty.folder(plan.key) / "iterates" / "2.json").write_text("{")
            return JobState("ended", detail="failed")
        return publish(empty, name)

    outcome, _ = go(empty, Made(act), cell(plan, iterates=(2,)), cell(PLANS[1]))
    assert set_job(plan.key) in outcome.failed
    assert set_job(PLANS[1].key) in outcome.computed


def test_a_stopped_run_cancels_what_it_began_and_leaves_no_file(empty):
    def act(name: str) -> JobState:
        raise KeyboardInterrupt

    for survives in (False, True):
        executor = Made(act, survives=survives)
        with pytest.raises(KeyboardInterrupt):
            go(empty, executor, *map(cell, PLANS))
        assert executor.closed
        assert executor.cancelled == [f"handle of {set_job(plan.key)}" for plan in PLANS]
        assert not list((empty.root / "work").rglob("*.json"))


def test_a_driver_that_is_started_again_takes_over_what_still_runs(empty):
    """The first one is killed: its file of handles stays, and its lock is free."""
    states = {set_job(PLANS[0].key): "running", set_job(PLANS[1].key): "lost", "set-0123456789abcdef": "waiting"}
    path = empty.root / "work" / "drivers" / "0.json"
    path.parent.mkdir(parents=True)
    path.write_bytes(msgspec.json.encode({"executor": "made", "jobs": {name: f"handle of {name}" for name in states}}))
    other = path.with_name("1.json")
    other.write_bytes(msgspec.json.encode({"executor": "another", "jobs": {"x": "y"}}))
    first = [True]

    def act(name: str) -> JobState | None:
        if first[0] and name in states:
            return JobState(states[name])
        return publish(empty, name)

    class Polled(Made):
        def submit(self, jobs: Sequence[Job], request: Request) -> list[str]:
            first[0] = False
            return super().submit(jobs, request)

    for plan in PLANS[:1]:  # what the first driver put down for the job that runs
        file = todo(empty, cell(plan)).work[0].file
        empty.write_job(file)
    executor = Polled(act, survives=True)
    outcome, _ = go(empty, executor, *map(cell, PLANS))
    assert outcome.failed == {}
    assert len(outcome.computed) == 6
    assert set_job(PLANS[0].key) not in executor.submitted
    assert set_job(PLANS[1].key) in executor.submitted
    assert executor.cancelled == []  # a job of another suite waits for a run of that suite
    left = msgspec.json.decode(path.read_bytes())
    assert left["jobs"] == {"set-0123456789abcdef": "handle of set-0123456789abcdef"}
    assert other.is_file()
    assert sorted(each.name for each in path.parent.glob("*.json")) == ["0.json", "1.json"]


def test_one_job_brings_all_that_it_needs_at_any_depth(empty):
    planned, need = shared(*(cell(plan, CONVNET, VIT) for plan in PLANS[:2]))
    plan = planned.cells[1].set
    wanted = judged(plan, VIT)
    options = Options("toy", Site(empty.root, ("cpu",)), Config(None), choose=lambda work: work.job.name == wanted)
    found = list_jobs(planned, empty, read_contents(empty), options)
    assert names(found) == [resource_job(need.key), set_job(plan.key), wanted]
    assert (found.present, found.total) == (0, 2)


# Blocks


def test_blocks_that_overlap_are_published_once(store: Store) -> None:
    """Two runs of other numbers of repeats judge the same at the same time: none of the repeats is there twice."""
    plan, judging = PLANS[0], judging_of()
    do_judgement._publish(judgement(plan, judging, [0.5, 0.6, 0.7]), store)
    do_judgement._publish(judgement(plan, judging, [0.5, 0.6, 0.7]), store)
    do_judgement._publish(judgement(plan, judging, [0.7, 0.8], first=2), store)
    found = read_contents(store)
    assert found.faults == ()
    assert found.repeats(plan.key, judging.key) == {0, 1, 2, 3}
    assert sorted((one.first, one.last) for one in found.judgements if one.set_key == plan.key) == [(0, 0), (1, 2), (3, 3)]


def test_repeats_of_other_bits_are_not_gone_on_from(tmp_path: Path) -> None:
    path = tmp_path / "repeats.json"
    repeat = judgement(PLANS[0], judging_of(), [0.5]).repeats[0]
    finished = [do_judgement.Finished(repeat, 1.0, 1.0, 1, "serial")]
    path.write_bytes(msgspec.json.encode(do_judgement._Kept("a", finished)))
    assert do_judgement._kept(path, "a") == finished
    assert do_judgement._kept(path, "b") == []
    path.write_text("{")
    assert do_judgement._kept(path, "a") == []
    assert do_judgement._kept(tmp_path / "none", "a") == []


def test_workers_are_as_many_as_asked_or_as_cores_allow() -> None:
    assert devices_of("cpu", 3, 1) == ["cpu"] * 3
    assert set(devices_of("cpu", None, 1)) == {"cpu"}
    assert devices_of("cpu", None, 10_000) == ["cpu"]
    with pytest.raises(ConfigError, match=r"^--workers must lie in 1\.\.1024, got 0\.$"):
        devices_of("cpu", 0, 1)
    with pytest.raises(ConfigError, match="unknown device 'gpu'"):
        devices_of("gpu", 1, 1)
