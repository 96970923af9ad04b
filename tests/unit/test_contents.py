"""Reading a whole store: every tampering is named and left out, and all the rest is kept."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from stores import VIT, bitmap, judgement, judging_of, plan_of, seeds, set_bytes, set_record, write_store

from ddbench import schema
from ddbench.cli import main
from ddbench.files import sha256_of_tensors
from ddbench.plan import short
from ddbench.results.contents import Contents, read_contents
from ddbench.results.folders import Fault
from ddbench.results.store import Store
from ddbench.results.verify import verify
from ddbench.schema import REMEDY_FOLDER, JudgementRecord, SetRecord

ONE, TWO = seeds(plan_of(), 2)
EVERYTHING = plan_of(baseline="full-data", ipc=0)
CONVNET, VIT_JUDGING = judging_of(), judging_of(VIT)
AT_FIVE = judging_of(iterate=5)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """Three sets; each has two judgements in a block, and the first an iterate with a judgement."""
    plans = (ONE, TWO, EVERYTHING)
    entries = [(plan, [judgement(plan, judging, [0.5, 0.25]) for judging in (CONVNET, VIT_JUDGING)]) for plan in plans]
    store = write_store(tmp_path / "store", entries)
    store.add_iterates(ONE.key, set_record(ONE).set_sha256, {5: set_bytes(0.5)})
    sha256 = store.iterates(ONE.key)[5].sha256
    store.publish_judgement(judgement(ONE, AT_FIVE, [0.1, 0.1], set_sha256=sha256))
    return store


def only(store: Store) -> tuple[Contents, Fault]:
    """The contents, and the one fault; `verify` and the command line see the same."""
    contents = read_contents(store)
    assert len(contents.faults) == 1, contents.faults
    (fault,) = contents.faults
    assert "\n" not in fault.sentence
    assert str(fault.path) in fault.sentence
    assert verify(store).faults == contents.faults
    return contents, fault


def kept(contents: Contents) -> tuple[set[str], set[tuple[str, str]]]:
    judged = {(record.set_key, record.key) for record in contents.judgements}
    return set(contents.sets), judged


def file_of(store: Store, plan: Any, judging: Any = CONVNET, first: int = 0, last: int = 1) -> Path:
    return store.judgement(plan.key, judging.key, first, last)


def test_a_sound_store_is_read_whole(store: Store) -> None:
    contents = read_contents(store)
    assert contents.faults == ()
    assert list(contents.sets) == sorted(plan.key for plan in (ONE, TWO, EVERYTHING))
    assert contents.sets[ONE.key].plan == ONE
    assert contents.sets[ONE.key].record == schema.sealed(set_record(ONE))
    assert list(contents.sets[ONE.key].iterates) == [5]
    assert len(contents.judgements) == 7
    order = [(record.set_key, record.key, record.first) for record in contents.judgements]
    assert order == sorted(order)
    assert contents.has_set(ONE.key)
    assert contents.repeats(ONE.key, CONVNET.key) == {0, 1}
    assert contents.repeats(ONE.key, judging_of(draw=1).key) == set()
    assert verify(store).faults == ()


def test_equal_images_are_found_whatever_seed_their_files_name(tmp_path: Path) -> None:
    store = Store(tmp_path)
    for seed, value, picture in ((0, 0.5, b"A"), (1, 0.5, b"A"), (2, 0.6, b"A"), (3, 0.5, b"B")):
        plan = plan_of(seed=seed)
        content = set_bytes(value).replace(b"toy", f"k-{seed}".encode())
        files = {"set.safetensors": content, "images.png": picture}
        hashes = {name: hashlib.sha256(each).hexdigest() for name, each in files.items()}
        store.publish_set(plan, set_record(plan, files=hashes, set_sha256=hashes["set.safetensors"]), files)
    contents = read_contents(store)
    assert not contents.faults
    assert len({one.record.set_sha256 for one in contents.sets.values()}) == 4
    first, second, third, other = (contents.sets[plan_of(seed=seed).key].images_sha256 for seed in range(4))
    assert first == second != third
    assert len(first) == len(third) == 64
    assert other == ""  # no other set has its picture: nothing is hashed


@pytest.mark.parametrize("content", [b"", b"{}", b"\xff" * 40, b"\2" + b"\0" * 7 + b"[]", b"\2" + b"\0" * 7 + b"{]"])
def test_a_file_that_is_no_safetensors_has_no_hash_of_tensors(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(content)
    assert sha256_of_tensors(tmp_path / "file") == ""


def test_blocks_of_a_judgement_are_joined(store: Store) -> None:
    store.publish_judgement(judgement(ONE, CONVNET, [0.5], first=4))
    assert read_contents(store).repeats(ONE.key, CONVNET.key) == {0, 1, 4}


def test_an_empty_store_is_sound(tmp_path: Path) -> None:
    contents = read_contents(Store(tmp_path))
    assert (contents.sets, contents.judgements, contents.faults) == ({}, (), ())


# ---------------------------------------------------------------- sets


def flip_a_bit(store: Store) -> None:
    path = store.folder(ONE.key) / "set.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def delete_the_set(store: Store) -> None:
    (store.folder(ONE.key) / "set.safetensors").unlink()


def delete_the_picture(store: Store) -> None:
    (store.folder(ONE.key) / "images.png").unlink()


def delete_the_plan(store: Store) -> None:
    (store.folder(ONE.key) / "plan.json").unlink()


def cut_the_record(store: Store) -> None:
    path = store.folder(ONE.key) / "record.json"
    path.write_bytes(path.read_bytes()[:-40])


def edit(path: Path, change: Callable[[dict[str, Any]], None], checksum: bool = False) -> None:
    """Change a record's text; with `checksum`, as somebody who computes it anew."""
    value = json.loads(path.read_text())
    change(value)
    if checksum:
        kind: Any = {"plan.json": schema.SetPlanFile, "record.json": SetRecord}.get(path.name, JudgementRecord)
        path.write_bytes(schema.to_bytes(msgspec.convert(value, kind)))
    else:
        path.write_text(json.dumps(value))


def edit_steps(store: Store) -> None:
    edit(store.folder(ONE.key) / "plan.json", lambda value: value["plan"].update(steps=9))


def edit_seed_and_checksum(store: Store) -> None:
    edit(store.folder(ONE.key) / "plan.json", lambda value: value["plan"].update(seed=9), checksum=True)


def edit_the_sha(store: Store) -> None:
    edit(store.folder(ONE.key) / "record.json", lambda value: value.update(set_sha256="0" * 64), checksum=True)


def edit_the_data(store: Store) -> None:
    edit(store.folder(ONE.key) / "record.json", lambda value: value["data"].update(hash="0" * 64), checksum=True)


def point_elsewhere(store: Store) -> None:
    change = {"../../store.json": "0" * 64}
    edit(store.folder(ONE.key) / "record.json", lambda value: value["files"].update(change), checksum=True)


def nonsense_in_the_record(store: Store) -> None:
    edit(store.folder(ONE.key) / "record.json", lambda value: value.update(num_images=-3), checksum=False)


def a_word_for_a_number(store: Store) -> None:
    edit(store.folder(ONE.key) / "record.json", lambda value: value["measured"].update(peak_memory_bytes="many"))


def of_a_newer_schema(store: Store) -> None:
    edit(store.folder(ONE.key) / "record.json", lambda value: value.update(schema=3))


@pytest.mark.parametrize(
    ("tamper", "told"),
    [
        (flip_a_bit, "set.safetensors is damaged: its bytes are not those that were written."),
        (delete_the_set, "set.safetensors is missing."),
        (delete_the_picture, "images.png is missing."),
        (delete_the_plan, "plan.json is missing."),
        (cut_the_record, "record.json is damaged ("),
        (edit_steps, "plan.json was changed after it was written"),
        (
            edit_seed_and_checksum,
            "plan.json is of another set (dm / pixel, toy, ipc 1, seed 9)",
        ),
        (edit_the_sha, "contradicts itself: its set_sha256 is not the one of set.safetensors."),
        (edit_the_data, "contradicts itself: its data are not those of its plan."),
        (point_elsewhere, "contradicts itself: it names files that are not beside it."),
        (nonsense_in_the_record, "record.json is damaged (Expected `int` >= 0 - at `$.num_images`)."),
        (a_word_for_a_number, "record.json is damaged (Expected `int`, got `str` - at `$.measured.peak_memory_bytes`)."),
        (of_a_newer_schema, "record.json has schema 3, this ddbench reads 2. Update ddbench."),
    ],
)
def test_a_faulty_set_is_named_once_and_takes_its_judgements_out(
    store: Store, tamper: Callable[[Store], None], told: str
) -> None:
    before_sets, before_judged = kept(read_contents(store))
    tamper(store)
    contents, fault = only(store)
    assert told in fault.sentence
    assert fault.path == store.folder(ONE.key)
    assert fault.sentence.endswith("Left out with its 3 judgements.")
    assert REMEDY_FOLDER in fault.sentence or "Update ddbench." in fault.sentence
    assert not contents.has_set(ONE.key)
    expected = before_sets - {ONE.key}, {each for each in before_judged if each[0] != ONE.key}
    assert kept(contents) == expected


def test_bytes_are_not_compared_where_nobody_asks(store: Store) -> None:
    flip_a_bit(store)
    assert read_contents(store, hash_bytes=False).faults == ()
    delete_the_set(store)
    assert len(read_contents(store, hash_bytes=False).faults) == 1


def test_two_records_that_were_swapped_are_both_named(store: Store) -> None:
    paths = [store.folder(plan.key) / "record.json" for plan in (ONE, TWO)]
    contents = [path.read_bytes() for path in paths]
    for path, content in zip(paths, reversed(contents), strict=True):
        path.write_bytes(content)
    found = read_contents(store)
    assert {fault.path for fault in found.faults} == {store.folder(plan.key) for plan in (ONE, TWO)}
    assert all("is of another set" in fault.sentence for fault in found.faults)
    assert set(found.sets) == {EVERYTHING.key}


def test_two_folders_that_were_swapped_are_both_named(store: Store) -> None:
    aside = store.root / "aside"
    for source, target in ((ONE, aside), (TWO, store.folder(ONE.key)), (aside, store.folder(TWO.key))):
        (source if isinstance(source, Path) else store.folder(source.key)).rename(target)
    assert {fault.path for fault in read_contents(store).faults} == {store.folder(plan.key) for plan in (ONE, TWO)}


def test_all_real_images_are_known_by_their_hash(store: Store) -> None:
    path = store.folder(EVERYTHING.key) / "record.json"
    edit(path, lambda value: value.update(set_sha256="0" * 64), checksum=True)
    contents, fault = only(store)
    assert "its set_sha256 is not the one of its data" in fault.sentence
    assert set(contents.sets) == {ONE.key, TWO.key}


# ---------------------------------------------------------------- iterates


@pytest.mark.parametrize("file", ["5.safetensors", "5.json"])
def test_a_damaged_iterate_is_named_with_its_judgement_and_the_set_stays(store: Store, file: str) -> None:
    path = store.folder(ONE.key) / "iterates" / file
    path.write_bytes(path.read_bytes()[:-2])
    contents = read_contents(store)
    assert [fault.path.name for fault in contents.faults] == [file_of(store, ONE, AT_FIVE).name, "5.json"]
    assert "is of the iterate at step 5, which is not there" in contents.faults[0].sentence
    assert str(path) in contents.faults[1].sentence
    assert contents.has_set(ONE.key)
    assert contents.sets[ONE.key].iterates == {}
    assert contents.repeats(ONE.key, CONVNET.key) == {0, 1}


def test_an_iterate_of_another_step_is_named(store: Store) -> None:
    folder = store.folder(ONE.key) / "iterates"
    for end in ("json", "safetensors"):
        shutil.copy(folder / f"5.{end}", folder / f"6.{end}")
    _, fault = only(store)
    assert "6.json is of another set or step" in fault.sentence


def test_an_iterate_that_is_being_written_is_none_yet(store: Store) -> None:
    (store.folder(ONE.key) / "iterates" / "6.safetensors").write_bytes(b"")
    assert read_contents(store).faults == ()


# ---------------------------------------------------------------- judgements


def change_repeat(path: Path, checksum: bool, **changed: Any) -> None:
    edit(path, lambda value: value["repeats"][0].update(changed), checksum)


@pytest.mark.parametrize(
    ("changed", "checksum", "told"),
    [
        ({"accuracy": 0.75, "correct": bitmap(750)}, False, "was changed after it was written"),
        ({"accuracy": 0.75}, True, "accuracy 0.75 is not 500 of 1000 images"),
        ({"correct": bitmap(750)}, True, "accuracy 0.5 is not 750 of 1000 images"),
        ({"correct": "?"}, True, "contradicts itself: "),
        ({"repeat": 1}, True, "it does not hold each of the repeats 0 to 1 once"),
        ({"num_test": 999}, True, "it is on [999, 1000] test images"),
        ({"accuracy": 1.5}, False, "is damaged (Expected `float` <= 1.0"),
        ({"train_loss": "low"}, False, "is damaged (Expected `float`, got `str`"),
        ({"mood": 1}, False, "is damaged (Object contains unknown field `mood`"),
    ],
)
def test_a_changed_judgement_is_named_and_left_out(store: Store, changed: dict[str, Any], checksum: bool, told: str) -> None:
    path = file_of(store, ONE)
    change_repeat(path, checksum, **changed)
    contents, fault = only(store)
    assert told in fault.sentence
    assert fault.path == path
    assert contents.repeats(ONE.key, CONVNET.key) == set()
    assert len(contents.judgements) == 6
    assert len(contents.sets) == 3


@pytest.mark.parametrize("number", ["NaN", "Infinity", "1e999"])
def test_a_number_that_is_not_finite_is_named(store: Store, number: str) -> None:
    path = file_of(store, ONE)
    path.write_text(path.read_text().replace('"train_loss": 0.25', f'"train_loss": {number}'))
    _, fault = only(store)
    assert f"judgement {path} is damaged (" in fault.sentence


def test_a_judgement_of_another_place_is_named(store: Store) -> None:
    shutil.copy(file_of(store, TWO), file_of(store, ONE))
    _, fault = only(store)
    assert "is another one (" in fault.sentence
    shutil.copy(file_of(store, ONE, VIT_JUDGING), file_of(store, ONE))
    _, fault = only(store)
    assert "is another one (" in fault.sentence


def test_a_judgement_under_other_repeats_is_named(store: Store) -> None:
    file_of(store, ONE).rename(file_of(store, ONE, first=2, last=3))
    contents, fault = only(store)
    assert "is another one (" in fault.sentence
    assert contents.repeats(ONE.key, CONVNET.key) == set()


def test_a_judgement_of_other_bytes_is_named(store: Store) -> None:
    """The set was made anew with other bits; its judgements are of the old one."""
    shutil.rmtree(store.folder(ONE.key))
    write_store(store.root, [(ONE, [])], value=1.0)
    contents = read_contents(store)
    told = sorted(fault.sentence.partition(" is of ")[2] for fault in contents.faults)
    rest = "Remove it, then run again to make it anew."
    expected = [f"other bytes than the set has. {rest}"] * 2 + [f"the iterate at step 5, which is not there. {rest}"]
    assert told == sorted(expected)
    assert contents.has_set(ONE.key)


def test_judgements_without_a_set_are_named_once(store: Store) -> None:
    shutil.rmtree(store.folder(ONE.key))
    contents, fault = only(store)
    assert fault.path == store.judgements(ONE.key)
    assert f"its 3 judgements left out, for the set {store.folder(ONE.key)} is not there" in fault.sentence
    assert len(contents.judgements) == 4


def test_overlapping_blocks_are_named_and_the_first_is_kept(store: Store) -> None:
    store.publish_judgement(judgement(ONE, CONVNET, [0.25, 0.75, 0.75], first=1))
    contents, fault = only(store)
    name = f"{short(CONVNET.key)}.0-1.json"
    assert fault.sentence.endswith(f"holds repeat 1, which {name} beside it holds too. Remove one of them.")
    assert contents.repeats(ONE.key, CONVNET.key) == {0, 1}


def test_a_judging_that_was_edited_is_named(store: Store) -> None:
    edit(file_of(store, ONE), lambda value: value["judging"].update(draw=7), checksum=True)
    _, fault = only(store)
    assert "contradicts itself: its key is not the one of its plan" in fault.sentence


# ---------------------------------------------------------------- the rest


def test_what_is_nothing_of_ours_is_named_unless_it_is_hidden(store: Store) -> None:
    strange = [
        store.root / "sets" / "notes.txt",
        store.folder(ONE.key) / "thumbs.db",
        store.folder(ONE.key) / "iterates" / "x.png",
        store.root / "judgements" / "notes.txt",
        store.judgements(ONE.key) / "notes.json",
        store.judgements(ONE.key) / f"{short(CONVNET.key)}.2-1.json",
    ]
    hidden = [store.root / "sets" / ".DS_Store", store.judgements(ONE.key) / ".x.json.0123.tmp"]
    for path in (*strange, *hidden):
        path.touch()
    contents = read_contents(store)
    assert sorted(fault.path for fault in contents.faults) == sorted(strange)
    assert len(contents.sets) == 3
    assert len(contents.judgements) == 7


def test_what_cannot_be_read_is_named(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    path, read_bytes = file_of(store, ONE), Path.read_bytes

    def refuse(each: Path) -> bytes:
        if each == path:
            raise PermissionError(13, "Permission denied", str(each))
        return read_bytes(each)

    monkeypatch.setattr(Path, "read_bytes", refuse)
    _, fault = only(store)
    assert fault.sentence == f"{path} cannot be read (Permission denied): check its rights and the disc."


def test_every_fault_of_many_is_told_at_once(store: Store) -> None:
    flip_a_bit(store)
    change_repeat(file_of(store, TWO), False, accuracy=0.75)
    edit(file_of(store, EVERYTHING), lambda value: value.update(first="x"))
    assert len(read_contents(store).faults) == 3


def test_any_byte_of_a_judgement_counts(store: Store) -> None:
    """Whichever character is changed, the judgement is as it was, or it is left out and named."""
    path = file_of(store, ONE)
    before, text = read_contents(store), path.read_bytes()
    for at in range(0, len(text), 61):
        path.write_bytes(text[:at] + (b"7" if text[at : at + 1] != b"7" else b"8") + text[at + 1 :])
        after = read_contents(store, hash_bytes=False)
        assert after == before or (len(after.faults) == 1 and len(after.judgements) == 6)


# ---------------------------------------------------------------- verify, and the command line


def test_verify_looks_at_everything(store: Store) -> None:
    store.add_suite("toy", "a = 1")
    (suite,) = (store.root / "suites").iterdir()
    assert verify(store).suites == (suite.name,)
    suite.write_text("a = 2")
    (store.root / "resources" / ("a" * 16)).mkdir(parents=True)
    (store.root / "notes.txt").touch()
    (store.root / "leaderboard").mkdir()
    found = verify(store)
    assert [fault.path.name for fault in found.faults] == ["notes.txt", "a" * 16, suite.name]
    assert found.suites == found.resources == ()


def test_the_command_line_names_faults_and_says_so_with_its_exit_code(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["store", "verify", str(store.root)]) == 0
    assert capsys.readouterr().out == "sound: 3 sets, 1 iterate, 7 judgements; 0 faults.\n"
    flip_a_bit(store)
    assert main(["store", "verify", str(store.root)]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert [line.startswith(f"{store.folder(ONE.key)}/set.safetensors is damaged") for line in lines] == [True, False]
    assert lines[1] == "sound: 2 sets, 4 judgements; 1 fault."
    assert main(["store", "verify", str(store.root), "--json"]) == 1
    value = json.loads(capsys.readouterr().out)
    assert value["sound"] == {"sets": 2, "iterates": 0, "judgements": 4, "trials": 0, "tunings": 0, "resources": 0, "suites": 0}
    assert [fault["path"] for fault in value["faults"]] == [str(store.folder(ONE.key))]


def test_the_command_line_takes_stores_only(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["store", "verify", str(tmp_path / "none")]) == 2
    assert "there is no store at" in capsys.readouterr().err
