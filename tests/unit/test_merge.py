"""Merging stores: what is missing comes in whole, equal bits stay once, other bits are named and the first is kept."""

from __future__ import annotations

import errno
import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from msgspec.structs import replace
from stores import PLACE, VIT, judgement, judging_of, plan_of, seeds, set_bytes, set_record, write_store

from ddbench.cli import main
from ddbench.errors import ConfigError
from ddbench.plan import short
from ddbench.results.contents import read_contents
from ddbench.results.iterates import Scored
from ddbench.results.layout import judgement_job, set_job
from ddbench.results.merge import MergeReport, merge
from ddbench.results.store import Store
from ddbench.schema import JudgementRecord

ONE, TWO, THREE = seeds(plan_of(), 3)
EVERYTHING = plan_of(baseline="full-data", ipc=0)
CONVNET, VIT_JUDGING, AT_FIVE = judging_of(), judging_of(VIT), judging_of(iterate=5)


def judged(plan: Any, judging: Any = CONVNET, accuracies: Any = (0.5, 0.25), **changed: Any) -> JudgementRecord:
    return judgement(plan, judging, accuracies, **changed)


def add_iterate(store: Store, plan: Any, value: float, accuracies: Any = (0.1,)) -> None:
    """The iterate at step 5, and a judgement of it."""
    store.add_iterates(plan.key, store.read_record(plan.key).set_sha256, {5: set_bytes(value)}, {5: Scored(0.75, value)})
    store.publish_judgement(judged(plan, AT_FIVE, accuracies, set_sha256=store.iterates(plan.key)[5].sha256))


@pytest.fixture
def here(tmp_path: Path) -> Store:
    return write_store(tmp_path / "here", [(ONE, [judged(ONE)]), (TWO, [judged(TWO)])])


@pytest.fixture
def there(tmp_path: Path) -> Store:
    entries = [(TWO, [judged(TWO), judged(TWO, VIT_JUDGING)]), (THREE, [judged(THREE)]), (EVERYTHING, [judged(EVERYTHING)])]
    store = write_store(tmp_path / "there", entries)
    add_iterate(store, THREE, 0.5)
    store.add_suite("toy", "a = 1")
    with store.resources.lock("0" * 16):
        store.resources.publish({"type": "noise"}, {"x": torch.ones(2)}, "Noise", PLACE, 1.0)
    return store


def files(store: Store) -> dict[str, bytes]:
    """All that a store keeps, without locks."""
    paths = (path for path in store.root.rglob("*") if path.is_file() and "locks" not in path.parts)
    return {str(path.relative_to(store.root)): path.read_bytes() for path in paths}


def test_what_is_missing_comes_in_and_what_is_there_stays(here: Store, there: Store) -> None:
    before, source = files(here), files(there)
    report = merge(here, there)
    assert report.is_clean
    assert report.added == {"sets": 2, "iterates": 1, "judgements": 4, "trials": 0, "tunings": 0, "resources": 1, "suites": 1}
    assert report.present == {"sets": 1, "iterates": 0, "judgements": 1, "trials": 0, "tunings": 0, "resources": 0, "suites": 0}
    assert files(here) == source | before
    assert files(there) == source  # nothing of it is changed
    contents = read_contents(here)
    assert contents.faults == ()
    assert set(contents.sets) == {plan.key for plan in (ONE, TWO, THREE, EVERYTHING)}


def test_a_second_merge_changes_nothing(here: Store, there: Store) -> None:
    merge(here, there)
    before = {path: path.stat().st_mtime_ns for path in here.root.rglob("*.json")}
    report = merge(here, there)
    assert report.is_clean
    assert sum(report.added.values()) == 0
    assert report.present == {"sets": 3, "iterates": 1, "judgements": 5, "trials": 0, "tunings": 0, "resources": 1, "suites": 1}
    assert {path: path.stat().st_mtime_ns for path in here.root.rglob("*.json")} == before


def test_a_new_store_takes_all(tmp_path: Path, there: Store) -> None:
    new = Store(tmp_path / "new")
    assert merge(new, there).is_clean
    assert files(new) == files(there)


def test_a_set_of_other_bits_is_named_and_its_judgements_are_dropped_by_name(tmp_path: Path, here: Store) -> None:
    there = write_store(tmp_path / "there", [(ONE, [])], value=1.0)
    there.publish_judgement(judged(ONE, VIT_JUDGING, value=1.0))
    before = files(here)
    report = merge(here, there)
    assert files(here) == before
    mine, other = set_record(ONE).set_sha256[:8], set_record(ONE, 1.0).set_sha256[:8]
    (differing,), (dropped,) = report.differing, report.dropped
    assert differing == (
        f"set {short(ONE.key)} ({ONE.name}) has other bits: {mine} in {here.root}, {other} in {there.root}. The first is kept."
    )
    assert dropped == (
        f"judgement {short(ONE.key)}/{short(VIT_JUDGING.key)}.0-1 (vit on {ONE.name}) of {there.root} was dropped: "
        f"its set {short(ONE.key)} was not kept."
    )
    assert not report.is_clean


def test_settings_that_the_key_does_not_tell_apart_are_named(tmp_path: Path, here: Store) -> None:
    loss = ONE.loss
    assert loss is not None
    other = replace(ONE, loss=replace(loss, resolved={"batch_real": 7}))
    assert other.key == ONE.key
    there = write_store(tmp_path / "there", [(other, [])], value=1.0)
    (differing,) = merge(here, there).differing
    assert differing.endswith("Their plans differ in dm.batch_real (None then, 7 now).")


def test_a_repeat_of_other_bits_is_named_and_the_first_is_kept(tmp_path: Path, here: Store) -> None:
    there = write_store(tmp_path / "there", [(ONE, [judged(ONE, accuracies=(0.5, 0.75, 0.125))])])
    report = merge(here, there)
    (differing,) = report.differing
    assert differing == (
        f"judgement {short(ONE.key)}/{short(CONVNET.key)} (convnet on {ONE.name}), repeat 1, has other bits: accuracy 0.2500 in "
        f"{here.root}, 0.7500 in {there.root}. The first is kept."
    )
    assert accuracies(here, ONE) == [0.5, 0.25, 0.125]


def accuracies(store: Store, plan: Any, judging: Any = CONVNET) -> list[float]:
    contents = read_contents(store)
    assert contents.faults == ()
    records = [record for record in contents.judgements if (record.set_key, record.key) == (plan.key, judging.key)]
    return [repeat.accuracy for record in records for repeat in record.repeats]


def test_repeats_that_are_missing_come_in_as_blocks_of_their_own(tmp_path: Path) -> None:
    """With their share of the seconds, and none twice."""
    here = write_store(tmp_path / "here", [(ONE, [judged(ONE, accuracies=(0.3,), first=1)])])
    there = write_store(tmp_path / "there", [(ONE, [judged(ONE, accuracies=(0.2, 0.3, 0.4, 0.5))])])
    report = merge(here, there)
    assert report.is_clean
    assert report.added["judgements"] == 2
    blocks = {(record.first, record.last): record for record in read_contents(here).judgements}
    assert sorted(blocks) == [(0, 0), (1, 1), (2, 3)]
    assert [blocks[each].measured.seconds_train for each in sorted(blocks)] == [2.0, 8.0, 4.0]
    assert accuracies(here, ONE) == [0.2, 0.3, 0.4, 0.5]
    assert merge(here, there).added["judgements"] == 0


def test_iterates_join_a_set_of_equal_bits(here: Store, there: Store) -> None:
    add_iterate(there, TWO, 0.5)
    report = merge(here, there)
    assert report.is_clean
    assert here.iterates(TWO.key) == there.iterates(TWO.key)
    assert [(each.step_score, each.loss) for each in here.iterates(TWO.key).values()] == [(0.75, 0.5)]
    assert accuracies(here, TWO, AT_FIVE) == [0.1]


def test_an_iterate_of_other_bits_is_named_and_its_judgements_are_dropped(here: Store, there: Store) -> None:
    add_iterate(here, TWO, 0.25, (0.2,))
    add_iterate(there, TWO, 0.5)
    report = merge(here, there)
    assert [text.startswith(f"iterate 5 of set {short(TWO.key)}") for text in report.differing] == [True]
    assert [text.endswith(f"its iterate of set {short(TWO.key)} at step 5 was not kept.") for text in report.dropped] == [True]
    assert accuracies(here, TWO, AT_FIVE) == [0.2]


def test_a_resource_of_other_bits_is_named(here: Store, there: Store) -> None:
    with here.resources.lock("0" * 16):
        here.resources.publish({"type": "noise"}, {"x": torch.zeros(2)}, "Noise", PLACE, 1.0)
    report = merge(here, there)
    (key,) = here.resources.keys()
    assert [text.startswith(f"resource {key} (Noise) has other bits: ") for text in report.differing] == [True]
    assert here.resources.read(key)[0]["x"].tolist() == [0, 0]


def test_only_what_is_sound_comes_in(here: Store, there: Store) -> None:
    path = there.folder(THREE.key) / "set.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    bad = there.judgement(TWO.key, VIT_JUDGING.key, 0, 1)
    bad.write_text("{")
    report = merge(here, there)
    assert sorted(fault.path for fault in report.faults) == sorted([there.folder(THREE.key), bad])
    assert not here.has_set(THREE.key)
    assert here.repeats(TWO.key, VIT_JUDGING.key) == set()
    assert here.has_set(EVERYTHING.key)
    assert read_contents(here).faults == ()


def test_a_faulty_set_of_the_first_store_is_named_and_stays(here: Store, there: Store) -> None:
    path = here.folder(TWO.key) / "record.json"
    path.write_text("{")
    report = merge(here, there)
    assert [fault.path for fault in report.faults] == [here.folder(TWO.key)]
    assert path.read_text() == "{"
    assert len(report.dropped) == 2  # of the set that is faulty here
    shutil.rmtree(here.folder(TWO.key))  # as the sentence says
    assert merge(here, there).is_clean
    assert read_contents(here).faults == ()


def test_judgements_that_lost_their_set_get_it_back_and_no_repeat_comes_twice(tmp_path: Path, here: Store) -> None:
    there = write_store(tmp_path / "there", [(ONE, [judged(ONE, accuracies=(0.5,))])])
    shutil.rmtree(here.folder(ONE.key))
    report = merge(here, there)
    assert report.is_clean
    assert report.present["judgements"] == 1
    assert accuracies(here, ONE) == [0.5, 0.25]


def test_what_another_process_computes_is_told(here: Store, there: Store) -> None:
    block = judgement_job(TWO.key, VIT_JUDGING.key, 0, 1)
    with here.lock(set_job(THREE.key)), here.lock(block):
        report = merge(here, there)
    told = f"is being computed in {here.root} by another process: merge again when it has ended."
    assert report.busy == [f"{job} {told}" for job in (set_job(THREE.key), block)]
    assert merge(here, there).is_clean


def test_a_merge_that_stopped_goes_on(tmp_path: Path, here: Store, there: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Wherever the disc was full; given again, the store is as after a merge at one go."""
    expected = files(there) | files(here)
    fsync, calls, limit = os.fsync, 0, 1_000_000

    def counted(handle: int) -> None:
        nonlocal calls
        calls += 1
        if calls > limit:
            raise OSError(errno.ENOSPC, "No space left on device")
        fsync(handle)

    def copy(name: str) -> Store:
        nonlocal calls
        calls = 0
        return Store(Path(shutil.copytree(here.root, tmp_path / name)))

    monkeypatch.setattr(os, "fsync", counted)
    merge(copy("whole"), there)
    total = calls
    assert total > 10
    for at in range(0, total, 4):
        store, limit = copy(f"stopped at {at}"), at
        with pytest.raises(OSError, match="No space left"):
            merge(store, there)
        limit = 1_000_000
        assert read_contents(store).faults == ()
        assert merge(store, there).is_clean
        assert files(store) == expected


def test_a_store_is_not_merged_into_itself(here: Store) -> None:
    with pytest.raises(ConfigError, match="cannot be merged into itself"):
        merge(here, Store(here.root))


def test_the_report_is_clean_where_all_is_there() -> None:
    assert MergeReport().is_clean
    assert not MergeReport(busy=["x"]).is_clean


def test_the_command_line_merges_several(tmp_path: Path, here: Store, there: Store, capsys: pytest.CaptureFixture[str]) -> None:
    into = tmp_path / "into"
    assert main(["store", "merge", str(into), str(here.root), str(there.root)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines == [
        f"{here.root}: 2 sets, 2 judgements added, 0 were there.",
        f"{there.root}: 2 sets, 1 iterate, 4 judgements, 1 resource, 1 suite added, 2 were there.",
    ]
    assert files(Store(into)) == files(there) | files(here)
    other = write_store(tmp_path / "other", [(ONE, [])], value=1.0)
    assert main(["store", "merge", str(into), str(other.root), "--json"]) == 1
    value = json.loads(capsys.readouterr().out)
    assert value["from"][0]["store"] == str(other.root)
    assert len(value["from"][0]["differing"]) == 1


def test_the_command_line_makes_no_store_that_is_merged_from(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["store", "merge", str(tmp_path / "into"), str(tmp_path / "none")]) == 2
    assert "there is no store at" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
