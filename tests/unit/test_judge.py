"""From a file to a set of a store, from that to what is judged, and from there to the record of a judgement."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from msgspec.structs import replace as replace_plan
from safetensors.torch import save_file
from torch import Tensor

from ddbench import protocols, schema
from ddbench.compute import hardware
from ddbench.compute.distilled import DistilledSet, Stored, set_files
from ddbench.compute.run import be_deterministic
from ddbench.data.sealed import open_test
from ddbench.data.subsets import identify, load_training
from ddbench.errors import DataError
from ddbench.evaluate import cost, evaluator
from ddbench.evaluate.evaluator import Evaluator, Subject, evaluate_block
from ddbench.evaluate.imports import NewSet, import_set
from ddbench.evaluate.judge import record_of, subject_of
from ddbench.evaluate.judged import Judged
from ddbench.evaluate.set_layouts import open_set
from ddbench.evaluate.sets import read_set
from ddbench.files import read_tensors, sha256_file, tensors_to_bytes
from ddbench.plan import Block, Imported, Judging, SetPlan
from ddbench.refs import PluginRef
from ddbench.results.store import Store
from ddbench.schema import Data, JudgementRecord
from ddbench.seeds import stream
from ddbench_plugins.datasets import mnist_5k

CPU = torch.device("cpu")
MNIST = PluginRef.resolve("datasets", "mnist-5k", {})
NETWORK = PluginRef.resolve("architectures", "convnet", {"width": 4, "depth": 1})
SPEC = MNIST.make().spec()
PLAIN = protocols.load("smoke-1")


@pytest.fixture(scope="module", autouse=True)
def light() -> Iterator[None]:
    """The table of digits is unpacked once, and memory is not handed back to the system before each block."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mnist_5k, "_read", cache(mnist_5k._read))
        patch.setattr(evaluator, "reset_peak_memory", lambda device: None)
        be_deterministic(1)
        yield


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def pixels(num: int = 20) -> Tensor:
    return torch.rand(num, *SPEC.shape, generator=stream("pixels"))


def file_of(path: Path, **values: Any) -> Path:
    save_file({"images": pixels(), "labels": torch.arange(20) % 10} | values, path)
    return path


def imported(path: Path, *how: Any, making: protocols.Making = PLAIN.set, **more: Any) -> NewSet:
    given = read_set(path, SPEC, *how, **more)
    return import_set(given, MNIST, identify(MNIST, None), making, hardware.place(CPU, 1, (MNIST,)))


def published(store: Store, new: NewSet) -> NewSet:
    store.publish_set(new.plan, new.record, new.contents)
    return new


# ---------------------------------------------------------------- from a file to a set


def test_a_file_becomes_a_set_whose_origin_is_its_hash(tmp_path: Path, store: Store) -> None:
    path = file_of(tmp_path / "a.safetensors")
    new = published(store, imported(path, "pixels"))
    assert new.plan.imported == Imported(sha256_file(path), "pixels", "indices")
    assert (new.plan.ipc, new.plan.seed, new.plan.held_out, new.plan.labels) == (2, 0, 0.0, "hard")
    assert new.plan.train_hash == new.record.data.hash == identify(MNIST, None).train_hash
    assert not new.plan.everything
    assert store.read_plan(new.plan.key) == new.plan
    record = store.read_record(new.plan.key)
    assert record == schema.sealed(new.record)
    assert (record.key, record.num_images, record.steps, record.suite) == (new.plan.key, 20, 0, "")
    size = record.bytes_stored
    assert record.bytes_images == size == 20 * 28 * 28 * 4
    assert record.size == schema.Size(
        budget="images", images_per_class=2, floats=None, bytes_without_decoder=size, bytes_with_decoder=size
    )  # fmt: skip
    assert record.set_sha256 == hashlib.sha256(new.contents["set.safetensors"]).hexdigest() == record.files["set.safetensors"]
    tensors, meta = store.read_set(new.plan.key)
    assert torch.equal(tensors["images"], SPEC.normalise(pixels()))
    assert torch.equal(tensors["labels"], torch.eye(10)[torch.arange(20) % 10])
    assert torch.equal(tensors["classes"], torch.arange(20) % 10)
    assert (meta["key"], meta["dataset"], tuple(meta["mean"]), meta["labels"]) == (new.plan.key, "mnist-5k", SPEC.mean, "hard")
    assert new.contents["images.png"].startswith(b"\x89PNG")


def test_what_a_file_was_read_as_is_part_of_the_key_and_its_name_is_not(tmp_path: Path) -> None:
    path = file_of(tmp_path / "a.safetensors")
    plain = imported(path, "normalised").plan
    own = imported(path, "normalised", list(SPEC.mean), list(SPEC.std)).plan
    assert own.key == plain.key  # what is the data set's own need not be said
    other = imported(path, "normalised", [0.5], [0.25]).plan
    assert other.imported is not None
    assert (other.imported.mean, other.imported.std) == ((0.5,), (0.25,))
    assert len({plain.key, other.key, imported(path, "pixels").plan.key}) == 3
    again = tmp_path / "b.safetensors"
    again.write_bytes(path.read_bytes())
    assert imported(again, "normalised").plan.key == plain.key
    file_of(again, labels=9 - torch.arange(20) % 10)
    assert imported(again, "normalised").plan.key != plain.key


def test_warnings_stand_in_the_record(tmp_path: Path) -> None:
    new = imported(file_of(tmp_path / "a.safetensors"), "normalised")
    (mark,) = new.record.marks
    assert mark.endswith("Are they pixels?")
    assert str(tmp_path) not in mark


def test_soft_labels_logits_and_a_learned_rate(tmp_path: Path, store: Store) -> None:
    logits = torch.randn(20, 10, generator=stream("logits"))
    path = file_of(tmp_path / "a.safetensors", labels=logits, learned_rate=torch.tensor(0.5))
    new = published(store, imported(path, "pixels", kind="logits"))
    assert new.plan.imported == Imported(sha256_file(path), "pixels", "logits", learned_rate=0.5)
    assert new.plan.labels == "learned"
    tensors, meta = store.read_set(new.plan.key)
    torch.testing.assert_close(tensors["labels"], logits.softmax(1))
    assert torch.equal(tensors["classes"], logits.argmax(1))
    assert meta["learned"] == new.record.learned == {"student_rate": 0.5}


def whitened_file(path: Path) -> tuple[Path, Tensor, Tensor]:
    mean, matrix = torch.rand(784, generator=stream("mean")), torch.randn(784, 784, generator=stream("matrix")) / 28
    images = ((pixels().flatten(1) - mean) @ matrix).view(20, *SPEC.shape)
    return file_of(path, images=images, zca_mean=mean, zca_matrix=matrix), mean, matrix


def test_a_whitened_set_is_kept_with_its_transform(tmp_path: Path, store: Store) -> None:
    path, mean, matrix = whitened_file(tmp_path / "a.safetensors")
    new = published(store, imported(path, "whitened"))
    tensors, meta = store.read_set(new.plan.key)
    assert torch.equal(tensors["zca_mean"], mean)
    assert torch.equal(tensors["zca_matrix"], matrix)
    assert meta["images"].startswith("whitened: ")
    subject = subject_of(store, new.plan, None, None, CPU)
    given = read_set(path, SPEC, "whitened")
    assert torch.equal(subject.images, given.images)
    assert subject.whitening is not None
    assert given.whitening is not None
    test = open_test(MNIST, None, CPU).images[:4]
    assert torch.equal(subject.whitening(test), given.whitening(test))


@pytest.mark.parametrize("how", ["pixels", "whitened"])
def test_a_set_of_ours_can_be_imported_like_any_other(tmp_path: Path, store: Store, how: str) -> None:
    path = tmp_path / "a.safetensors"
    new = imported(whitened_file(path)[0] if how == "whitened" else file_of(path, learned_rate=torch.tensor(0.5)), how)
    ours = tmp_path / "set.safetensors"
    ours.write_bytes(new.contents["set.safetensors"])
    assert open_set(ours).meta["key"] == new.plan.key
    again = published(store, imported(ours))
    assert again.plan.imported == Imported(
        sha256_file(ours), "whitened" if how == "whitened" else "normalised", "probabilities",
        learned_rate=None if how == "whitened" else 0.5,
    )  # fmt: skip
    before, _ = read_tensors(ours, "set")
    after, _ = store.read_set(again.plan.key)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_under_other_constants_a_files_images_count_as_generated(tmp_path: Path, store: Store) -> None:
    path, habit = file_of(tmp_path / "a.safetensors"), protocols.load("glad-1-unnormalised")
    new = published(store, imported(path, "pixels", making=habit.set))
    assert new.plan.is_habit
    assert new.plan.key != imported(path, "pixels").plan.key
    subject = subject_of(store, new.plan, None, None, CPU)
    torch.testing.assert_close(subject.images, pixels(), rtol=1e-5, atol=1e-5)  # mean 0, std 1
    judged = evaluator_of(subject)
    assert torch.equal(judged.seen(judged.test.images[:4]), SPEC.normalise(judged.test.images[:4]))  # test images by their own


# ---------------------------------------------------------------- what is judged


def evaluator_of(subject: Subject, **changes: Any) -> Evaluator:
    test_hash = identify(MNIST, None).test_hash
    judging = Judging(network=NETWORK, numbers=PLAIN.judging, dataset=MNIST, test_hash=test_hash)
    return Evaluator(replace_plan(judging, **changes), SPEC, subject, open_test(MNIST, None, CPU))


def test_a_stored_set_is_judged_as_it_lies_there(tmp_path: Path, store: Store) -> None:
    path = file_of(tmp_path / "a.safetensors", learned_rate=torch.tensor(0.5))
    new = published(store, imported(path, "pixels"))
    subject = subject_of(store, new.plan, None, None, CPU)
    assert torch.equal(subject.images, SPEC.normalise(pixels()))
    assert (subject.sha256, subject.learned_rate) == (new.record.set_sha256, 0.5)
    assert not subject.everything
    assert subject.whitening is None


@pytest.mark.parametrize(("learned", "rate"), [({"student_rate": 0.25}, 0.25), ({"shift": 2.0}, None), ({}, None)])
def test_the_rate_that_our_sets_have_learned_stands_in_their_record(
    tmp_path: Path, store: Store, learned: dict[str, Any], rate: float | None
) -> None:
    new = imported(file_of(tmp_path / "a.safetensors"), "pixels")
    plan = replace_plan(new.plan, imported=None, baseline=PluginRef.resolve("baselines", "random", {}))
    images, labels = SPEC.normalise(pixels()), torch.eye(10)[torch.arange(20) % 10]
    contents = set_files(plan, DistilledSet(images, labels, labels.argmax(1), 0, Stored(images.nbytes), learned=learned), SPEC)
    files = {name: hashlib.sha256(content).hexdigest() for name, content in contents.items()}
    told = {"key": plan.key, "learned": learned, "files": files, "set_sha256": files["set.safetensors"]}
    store.publish_set(plan, replace_plan(new.record, **told), contents)
    assert subject_of(store, plan, None, None, CPU).learned_rate == rate


def test_an_iterate_is_judged_by_its_own_hash(tmp_path: Path, store: Store) -> None:
    new = published(store, imported(file_of(tmp_path / "a.safetensors", learned_rate=torch.tensor(0.5)), "pixels"))
    content = tensors_to_bytes({"images": 0.5 * pixels(), "labels": torch.full((20, 10), 0.1)})
    store.add_iterates(new.plan.key, new.record.set_sha256, {7: content})
    subject = subject_of(store, new.plan, 7, None, CPU)
    assert torch.equal(subject.images, 0.5 * pixels())
    assert subject.sha256 == hashlib.sha256(content).hexdigest()
    assert subject.learned_rate == 0.5


def test_all_real_images_are_read_from_the_data(tmp_path: Path, store: Store) -> None:
    identity = identify(MNIST, None)
    baseline = PluginRef.resolve("baselines", "full-data", {})
    plan = SetPlan(dataset=MNIST, train_hash=identity.train_hash, ipc=0, seed=0, held_out=0.1, baseline=baseline)
    record = imported(file_of(tmp_path / "a.safetensors"), "pixels").record
    sha256 = schema.sha256_of_everything(plan.train_hash)
    store.publish_set(plan, replace_plan(record, key=plan.key, files={}, set_sha256=sha256), {})
    data = load_training(MNIST, None, 0.1, CPU)
    subject = subject_of(store, plan, None, data, CPU)
    assert len(subject.images) == len(subject.labels) == 4000  # the held-out ones among them
    assert (subject.everything, subject.learned_rate, subject.sha256) == (True, None, sha256)
    with pytest.raises(DataError, match="is judged on the real training images, and they were not loaded"):
        subject_of(store, plan, None, None, CPU)


# ---------------------------------------------------------------- the record


def record_of_block(store: Store, path: Path, first: int, last: int) -> JudgementRecord:
    new = imported(file_of(path), "pixels")
    if not store.has_set(new.plan.key):
        published(store, new)
    judged = evaluator_of(subject_of(store, new.plan, None, None, CPU))
    finished = evaluate_block(judged, first, last, [], lambda finished: None, lambda fraction: None)
    identity = identify(MNIST, None)
    data = Data(label="mnist-5k", hash=identity.test_hash, original=True, counts=identity.test_counts)
    block, place = Block(new.plan, judged.judging, first, last), hardware.place(CPU, 1, (NETWORK,))
    return record_of(block, judged, finished, "a suite", data, (), place, 1e10, ("a mark",))


def test_a_record_holds_the_block_and_what_it_cost(tmp_path: Path, store: Store) -> None:
    record = record_of_block(store, tmp_path / "a.safetensors", 1, 2)
    schema.check_judgement(record)
    assert (record.first, record.last, record.suite, record.marks) == (1, 2, "a suite", ("a mark",))
    assert [repeat.repeat for repeat in record.repeats] == [1, 2]
    assert record.set_sha256 == store.read_record(record.set_key).set_sha256
    told = record.measured
    assert told.flops_per_image == cost.flops_of_step(NETWORK, SPEC)
    assert told.images_per_second == pytest.approx(2 * 20 * 2 / told.seconds_train)  # repeats, images, epochs
    assert told.peak_share == pytest.approx(told.images_per_second * told.flops_per_image / 1e10)
    assert (told.way, told.processes) == ("serial", 1)
    assert told.peak_memory_bytes > 0


def test_a_record_goes_through_its_file_unchanged(tmp_path: Path, store: Store) -> None:
    record = schema.sealed(record_of_block(store, tmp_path / "a.safetensors", 0, 0))
    assert schema.parse(schema.to_bytes(record), JudgementRecord, "judgement") == record


# ---------------------------------------------------------------- what records say together


def with_accuracies(record: JudgementRecord, first: int, *accuracies: float) -> JudgementRecord:
    own = record.repeats[0]
    repeats = tuple(replace_plan(own, repeat=first + number, accuracy=value) for number, value in enumerate(accuracies))
    return replace_plan(record, first=first, last=first + len(repeats) - 1, repeats=repeats)


def test_the_table_shows_the_first_repeats_their_mean_and_their_spread(tmp_path: Path, store: Store) -> None:
    record = record_of_block(store, tmp_path / "a.safetensors", 0, 0)
    blocks = [with_accuracies(record, 0, 0.5, 0.7), with_accuracies(record, 2, 0.9, 0.1)]
    judging = record.judging
    judged = Judged(judging, blocks, 3)
    assert judged.is_whole
    assert [entry["repeat"] for entry in judged.entries()] == [0, 1, 2]
    row = judged.row()
    assert row["accuracy"] == pytest.approx(0.7)
    assert row["std"] == pytest.approx(0.2)  # of 0.5, 0.7 and 0.9, over two degrees of freedom
    assert row["seconds_train"] == pytest.approx(1.5 * record.measured.seconds_train)  # half of the second block
    assert row["devices"] == [record.place.hardware.device]
    assert Judged(judging, blocks, 1).row()["std"] is None
    assert not Judged(judging, blocks, 5).is_whole
    assert not Judged(judging, blocks[1:], 3).is_whole
    assert not Judged(replace_plan(judging, draw=1), blocks, 1).is_whole
    twice = Judged(judging, [*blocks, with_accuracies(record, 0, 0.0, 0.0, 0.0)], 3)
    assert twice.row() == row  # a repeat counts once
    json.dumps(twice.entries())


def test_records_of_two_blocks_hold_the_repeats_of_one(tmp_path: Path, store: Store) -> None:
    whole = record_of_block(store, tmp_path / "a.safetensors", 0, 1)
    parts = [record_of_block(store, tmp_path / "a.safetensors", number, number) for number in range(2)]
    assert whole.repeats == tuple(repeat for part in parts for repeat in part.repeats)
    assert whole.repeats[0].train_loss != whole.repeats[1].train_loss
