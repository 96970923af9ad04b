"""`ddbench evaluate`: our sets and others', judged as the runner judges them; what is wrong with a file is one sentence.

Most tests judge in this process, see `in_process`; the last ones start the real runner and its workers.
"""

from __future__ import annotations

import io
import json
import os
import shutil
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import in_process
import pytest
import torch
from msgspec.structs import replace as replace_plan
from safetensors.torch import save_file

from ddbench import protocols
from ddbench.cli import main
from ddbench.compute import hardware
from ddbench.data.subsets import identify
from ddbench.errors import BenchError, ConfigError, DataError
from ddbench.evaluate import evaluator
from ddbench.evaluate.asked import ask, compared_with_real
from ddbench.evaluate.evaluator import Finished, pack, unpack
from ddbench.evaluate.imports import import_set
from ddbench.evaluate.sets import read_set
from ddbench.grid import runner
from ddbench.refs import PluginRef
from ddbench.registry import datasets
from ddbench.results.store import Store
from ddbench.seeds import stream
from ddbench_plugins.datasets import mnist_5k

SPEC = datasets.make("mnist-5k").spec()
SMALL = ["--protocol", "smoke-1", "--archs", "convnet(width=4,depth=1)", "--device", "cpu", "--threads", "1", "--json"]


def pixels(num: int = 10) -> torch.Tensor:
    return torch.rand(num, *SPEC.shape, generator=stream("pixels"))


def write(path: Path, images: torch.Tensor, labels: torch.Tensor) -> Path:
    if path.suffix == ".safetensors":
        save_file({"images": images, "labels": labels}, path)
    else:
        torch.save({"images": images, "labels": labels}, path)
    return path


@pytest.fixture(scope="module", autouse=True)
def light():
    with pytest.MonkeyPatch.context() as patch:
        in_process.be_light(patch)
        yield


@pytest.fixture
def judged(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """What the verb prints as JSON, judging in this process."""
    monkeypatch.setattr(runner, "run", in_process.run)

    def call(*words: object) -> dict[str, Any]:
        assert main(["evaluate", *SMALL, "--store", str(tmp_path / "store"), *map(str, words)]) == 0
        return json.loads(capsys.readouterr().out)

    return call


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The repeats that are trained from now on."""
    numbers, once = [], evaluator.evaluate_once

    def spy(judged: Any, repeat: int, *more: Any) -> Finished:
        numbers.append(repeat)
        return once(judged, repeat, *more)

    monkeypatch.setattr(evaluator, "evaluate_once", spy)
    return numbers


@pytest.fixture
def own(tmp_path: Path) -> Store:
    """A store that holds one set of ours."""
    store, dataset = Store(tmp_path / "store"), PluginRef.resolve("datasets", "mnist-5k", {})
    path = write(tmp_path / "origin.pt", pixels(), torch.arange(10))
    given, making = read_set(path, SPEC, "pixels"), protocols.load("smoke-1").set
    new = import_set(given, dataset, identify(dataset, None), making, hardware.place(in_process.CPU, 1, (dataset,)))
    store.publish_set(new.plan, new.record, new.contents)
    return store


def sets_of(store: Store) -> list[Path]:
    return sorted((store.root / "sets").glob("*/set.safetensors"))


@pytest.fixture
def ours(own: Store, tmp_path: Path) -> Path:
    """A set that ddbench wrote, in no store."""
    (path,) = sets_of(own)
    return Path(shutil.copy(path, tmp_path / "ours.safetensors"))


def bits(told: dict[str, Any]) -> list[tuple[str, float]]:
    return [(entry["correct"], entry["train_loss"]) for entry in told["evaluations"]]


def test_bitmaps_survive():
    correct = torch.rand(1003, generator=stream("bits")) < 0.5
    assert torch.equal(unpack(pack(correct), 1003), correct)


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_hard_and_soft_labels_pixels_and_normalised_are_read_alike(tmp_path, suffix):
    images, labels = pixels(), torch.arange(10)
    plain = read_set(write(tmp_path / f"a{suffix}", images, labels), SPEC, "pixels")
    normalised = read_set(write(tmp_path / f"b{suffix}", SPEC.normalise(images), torch.eye(10)), SPEC, "normalised")
    other = write(tmp_path / f"c{suffix}", (images - 0.5) / 0.25, labels)
    assert torch.equal(plain.images, SPEC.normalise(images))
    assert torch.equal(plain.images, normalised.images)
    assert torch.equal(plain.labels, normalised.labels)
    torch.testing.assert_close(read_set(other, SPEC, "normalised", [0.5], [0.25]).images, plain.images)
    assert (plain.kind, plain.warnings) == ("hard", ())
    soft = read_set(write(tmp_path / f"d{suffix}", images, torch.full((10, 10), 0.1)), SPEC, "pixels")
    assert soft.kind == "soft"


def test_bytes_are_pixels(tmp_path):
    images = (pixels() * 255).round().to(torch.uint8)
    read = read_set(write(tmp_path / "a.safetensors", images, torch.arange(10)), SPEC, "pixels")
    assert torch.equal(read.images, SPEC.normalise(images))


def test_a_pair_saved_by_torch_is_read(tmp_path):
    torch.save((pixels(), torch.arange(10)), tmp_path / "pair.pt")
    assert len(read_set(tmp_path / "pair.pt", SPEC, "pixels").images) == 10


def test_pixels_that_are_said_to_be_normalised_are_pointed_out(tmp_path):
    (told,) = read_set(write(tmp_path / "a.pt", pixels(), torch.arange(10)), SPEC, "normalised").warnings
    assert told.endswith("Are they pixels?")


class Malice:
    def __reduce__(self):
        return os.system, ("touch executed",)


def faulty(tmp_path: Path) -> dict[str, tuple[Path, dict, type[BenchError], str]]:
    good, labels, how = pixels(), torch.arange(10), {"values": "pixels"}
    nan = good.clone()
    nan[3, 0, 5, 5] = torch.nan
    (tmp_path / "cut.pt").write_bytes(b"PK\x03\x04 nothing")
    (tmp_path / "cut.safetensors").write_bytes(b"\x10")
    torch.save({"images": good, "labels": labels, "more": Malice()}, tmp_path / "malice.pt")
    torch.save({"x": good}, tmp_path / "lacks.pt")
    torch.save(good, tmp_path / "bare.pt")
    odd = {"ddbench": json.dumps({"dataset": 3, "mean": [0.1]})}
    save_file({"images": good, "labels": labels}, tmp_path / "odd.safetensors", odd)
    (tmp_path / "set.mat").write_bytes(b"")

    def file(name: str, images: torch.Tensor, labels: torch.Tensor = labels) -> Path:
        return write(tmp_path / f"{name}.pt", images, labels)

    return {
        "missing": (tmp_path / "no.pt", how, ConfigError, "there is no file"),
        "kind": (tmp_path / "set.mat", how, ConfigError, "is none of .safetensors, .pt, .pth, .npz, .npy, and no folder"),
        "cut pt": (tmp_path / "cut.pt", how, DataError, "cannot be read"),
        "cut safetensors": (tmp_path / "cut.safetensors", how, DataError, "damaged or cut short"),
        "code": (tmp_path / "malice.pt", how, DataError, "pickled code is never run"),
        "lacks": (tmp_path / "lacks.pt", how, DataError, "must hold the tensors images .* and labels .*; it holds x"),
        "bare": (tmp_path / "bare.pt", how, ConfigError, "holds images alone: name the file of images, then that of labels"),
        "unsaid": (file("unsaid", good), {}, ConfigError, "--images normalised, pixels or whitened"),
        "nan": (file("nan", nan), how, DataError, "NaN or infinite"),
        "channels": (file("rgb", good.repeat(1, 2, 1, 1)), how, DataError, r"\[N, 1, H, W\]"),
        "side": (file("side", good[..., :20].clone()), how, DataError, "28 x 20 px"),
        "range": (file("range", SPEC.normalise(good) * 3), how, DataError, "must be uint8 or lie in"),
        "bytes": (file("bytes", good.to(torch.uint8)), {"values": "normalised"}, DataError, "Are they pixels"),
        "label": (file("label", good, labels + 1), how, DataError, r"labels must lie in 0\.\.9, got 1\.\.10"),
        "logits": (file("logits", good, torch.eye(10) * 5), how, DataError, "probabilities, not logits"),
        "lengths": (file("lengths", good, labels[:5].clone()), how, DataError, r"labels must be \[10\]"),
        "integers": (file("integers", (good * 255).int()), how, DataError, "floats or uint8 pixels, got torch.int32"),
        "complex": (file("complex", good.to(torch.complex64)), how, DataError, "'images' holds complex numbers"),
        "metadata": (tmp_path / "odd.safetensors", {}, DataError, "its metadata must hold dataset, class_names, mean and std"),
        "std": (file("std", good), {"values": "normalised", "mean": [0.1], "std": [0.0]}, ConfigError, "--std above 0"),
        "half": (file("half", good), {"values": "normalised", "mean": [0.1]}, ConfigError, "go together"),
    }


CASES = (
    "missing", "kind", "cut pt", "cut safetensors", "code", "lacks", "bare", "unsaid", "nan", "channels", "side", "range",
    "bytes", "label", "logits", "lengths", "std", "half", "integers", "complex", "metadata",
)  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_a_faulty_set_is_one_sentence(tmp_path, monkeypatch, case):
    monkeypatch.chdir(tmp_path)
    path, how, kind, told = faulty(tmp_path)[case]
    with pytest.raises(kind, match=told) as caught:
        read_set(path, SPEC, **how)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "executed").exists()


def test_every_fault_is_a_case(tmp_path):
    assert set(faulty(tmp_path)) == set(CASES)


def test_our_set_needs_no_words_and_repeats_itself(ours, judged, tmp_path):
    once, again = judged(ours), judged(ours, "--store", tmp_path / "another")
    assert once["data"] == "mnist-5k"
    assert once["labels"] == "hard"
    assert bits(once) == bits(again)
    other = judged(ours, "--seed", 1)
    assert other["seed"] == 1
    assert once["evaluations"][0]["train_loss"] != other["evaluations"][0]["train_loss"]


def test_a_judgement_is_kept_and_only_what_is_missing_is_computed(ours, judged, trained):
    few = judged(ours, "--repeats", 1)
    assert trained == [0]
    many = judged(ours, "--repeats", 3)
    assert trained == [0, 1, 2]
    assert [entry["repeat"] for entry in many["evaluations"]] == [0, 1, 2]
    assert bits(many)[:1] == bits(few)
    two = judged(ours, "--repeats", 2)
    assert trained == [0, 1, 2]
    assert two["evaluations"] == many["evaluations"][:2]  # the first ones
    assert two["networks"][0]["seconds_train"] < many["networks"][0]["seconds_train"]
    wider = judged(ours, "--repeats", 3, "--archs", "convnet(width=4,depth=1),convnet(width=5,depth=1)")
    assert trained == [0, 1, 2, 0, 1, 2]  # another network costs itself
    assert [row["network"] for row in wider["networks"]] == ["convnet(width=4, depth=1)", "convnet(width=5, depth=1)"]
    assert wider["evaluations"][:3] == many["evaluations"]


def test_the_table_has_mean_and_spread(ours, judged, capsys):
    three = judged(ours, "--repeats", 3)
    accuracies = [entry["accuracy"] for entry in three["evaluations"]]
    (row,) = three["networks"]
    assert row["accuracy"] == pytest.approx(statistics.fmean(accuracies))
    assert row["std"] == pytest.approx(statistics.stdev(accuracies))
    words = [word for word in SMALL if word != "--json"] + ["--store", three["store"]]
    assert main(["evaluate", str(ours), *words, "--repeats", "3"]) == 0
    assert f"| {100 * row['accuracy']:.1f} ± {100 * row['std']:.1f} |" in " ".join(capsys.readouterr().out.split())
    assert main(["evaluate", str(ours), *words]) == 0
    assert f"| {100 * accuracies[0]:.1f} |" in " ".join(capsys.readouterr().out.split())
    assert judged(ours)["networks"][0]["std"] is None


def test_a_strangers_set_is_judged_like_ours(ours, judged, tmp_path):
    mine = read_set(ours, SPEC)
    path = write(tmp_path / "theirs.pt", mine.images, mine.labels)
    theirs = judged(path, "--data", "mnist-5k", "--images", "normalised")
    again = judged(ours)
    assert bits(theirs) == bits(again)
    assert theirs["key"] != again["key"]


def test_a_set_of_the_store_is_judged_where_it_lies(own, judged, tmp_path):
    (path,) = sets_of(own)
    told = judged(path)
    assert sets_of(own) == [path]
    assert told["key"].startswith(path.parent.name)
    assert len(list((own.root / "judgements" / path.parent.name).glob("*.0-0.json"))) == 1
    copy = Path(shutil.copytree(own.root / "sets", tmp_path / "elsewhere")) / path.parent.name / path.name
    assert judged(copy)["key"] != told["key"]  # the same file, but not in the store
    other = judged(path, "--store", tmp_path / "other")
    assert other["key"] != told["key"]
    assert len(sets_of(Store(tmp_path / "other"))) == 1
    assert bits(other) == bits(told)


def test_whoever_brings_a_set_may_say_what_it_saw(judged, capsys, tmp_path):
    """Once: the record is never rewritten. Unsaid, it is unknown."""
    store, path = Store(tmp_path / "store"), write(tmp_path / "a.pt", pixels(), torch.arange(10))
    words = ("--data", "mnist-5k", "--images", "pixels")
    key = judged(path, *words, "--saw", "external-images,train")["key"]
    assert store.read_record(key).saw == ("train", "external-images")
    assert judged(path, *words)["key"] == key  # it is in no key
    assert judged(path, *words, "--saw", "train,external-images")["key"] == key
    silent = write(tmp_path / "b.pt", pixels() / 2, torch.arange(10))
    assert store.read_record(judged(silent, *words)["key"]).saw == ("unknown",)
    for said, sentence in (
        ("nothing", "--saw says nothing, and the record of the stored set train,external-images: leave it out"),
        ("imagenet,train", "--saw takes nothing, or of train, external-images,"),
    ):
        assert main(["evaluate", *SMALL, "--store", str(store.root), str(path), *words, "--saw", said]) == 2
        assert sentence in capsys.readouterr().err


def test_a_damaged_set_of_a_store_is_refused_there_and_elsewhere(own, judged, capsys, tmp_path):
    """Also where all that is asked for was judged before the damage."""
    (path,) = sets_of(own)
    judged(path)
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    for store in (own.root, tmp_path / "other"):
        assert main(["evaluate", *SMALL, "--store", str(store), str(path)]) == 2
        said = capsys.readouterr()
        assert (said.out, said.err.count("\n")) == ("", 1)
        assert f"{path} is damaged" in said.err
    assert not (tmp_path / "other" / "sets").exists()


def test_a_set_of_the_store_that_is_judged_otherwise_is_imported(own, judged, monkeypatch):
    (path,) = sets_of(own)
    load = protocols.load

    def short(id: str) -> protocols.Protocol:
        protocol = load(id)
        judging = replace_plan(protocol.judging, epochs=2, warmup_epochs=1)
        making = replace_plan(protocol.set, imagenet_only=False)
        return replace_plan(protocol, repeats=1, judging=judging, set=making)

    monkeypatch.setattr(protocols, "load", short)
    plain = judged(path, "--protocol", "glad-1")
    rated = judged(path, "--protocol", "lineage-1", "--rate", "0.5")
    habit = judged(path, "--protocol", "glad-1-unnormalised")
    assert len({told["key"] for told in (plain, rated, habit)}) == len(sets_of(own)) == 3
    assert plain["key"].startswith(path.parent.name)
    plan = own.read_plan(rated["key"])
    assert plan.imported is not None
    assert plan.imported.learned_rate == 0.5
    assert own.read_plan(habit["key"]).synthetic_std == (1.0,)
    tensors, _ = own.read_set(habit["key"])
    torch.testing.assert_close(tensors["images"], pixels(), rtol=1e-5, atol=1e-5)


def test_what_cannot_be_judged_is_a_sentence_and_the_rest_is_shown(ours, judged, capsys, monkeypatch, tmp_path):
    once = evaluator.evaluate_once

    def spy(judged: Any, *more: Any) -> Finished:
        if judged.judging.network.settings["width"] == 5:
            raise DataError("training diverged.")
        return once(judged, *more)

    monkeypatch.setattr(evaluator, "evaluate_once", spy)
    words = [*SMALL, "--store", str(tmp_path / "store"), "--archs", "convnet(width=4,depth=1),convnet(width=5,depth=1)"]
    assert main(["evaluate", str(ours), *words]) == 1
    said = capsys.readouterr()
    assert "ddbench: training diverged." in said.err
    told = json.loads(said.out)
    assert [row["network"] for row in told["networks"]] == ["convnet(width=4, depth=1)"]
    assert list(told["failed"].values()) == ["training diverged."]


def test_experiments_of_a_file_are_sets_of_their_own(judged, tmp_path):
    path = tmp_path / "res.pt"
    torch.save({"data": [[pixels() / number, torch.arange(10)] for number in (1, 2)]}, path)
    words = (path, "--data", "mnist-5k", "--images", "pixels")
    first, second = (judged(*words, "--experiment", number) for number in (0, 1))
    assert first["key"] != second["key"]
    assert bits(first) != bits(second)
    plan = Store(tmp_path / "store").read_plan(second["key"])
    assert plan.imported.experiment == 1
    assert plan.method.endswith(" experiment 1")


def test_images_and_labels_may_lie_in_two_files(judged, tmp_path):
    images, labels, both = (tmp_path / f"{name}.pt" for name in ("images_best", "labels_best", "both"))
    torch.save(pixels(), images)
    torch.save(torch.arange(10), labels)
    write(both, pixels(), torch.arange(10))
    words = ("--data", "mnist-5k", "--images", "pixels")
    two = judged(images, labels, *words)
    assert two["set"] == f"{images} and {labels}"
    assert two["holds"] == "10 images, 1 a class"
    assert bits(two) == bits(judged(both, *words))


def test_labels_that_are_not_those_of_real_classes_are_pointed_out(monkeypatch, tmp_path):
    """By the training images alone."""
    load, splits, path = mnist_5k.Mnist5k.load, list[str](), tmp_path / "a.pt"

    def spy(dataset: Any, split: Any, root: Any) -> Any:
        splits.append(split)
        return load(dataset, split, root)

    data = load(mnist_5k.Mnist5k(), "train", None)
    rows = torch.cat([torch.where(data.labels == label)[0][:5] for label in range(10)])
    monkeypatch.setattr(mnist_5k.Mnist5k, "load", spy)
    for shift in (0, 3):
        torch.save((data.images[rows], (data.labels[rows] + shift) % 10), path)
        asked = ask(path, data="mnist-5k", archs="convnet(width=4,depth=1)")
        warnings = compared_with_real(asked, None).given.warnings
        assert [warning.endswith("do they count the classes in another order?") for warning in warnings] == [True] * bool(shift)
    assert set(splits) == {"train"}


def test_what_the_terminal_cannot_show_is_replaced(ours, judged, monkeypatch):
    """The judgement is kept before it is printed, and every number of it is shown."""
    told = judged(ours, "--repeats", 2)
    out = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr("sys.stdout", out)
    words = [word for word in SMALL if word != "--json"] + ["--store", told["store"], "--repeats", "2"]
    assert main(["evaluate", str(ours), *words]) == 0
    out.seek(0)
    (row,) = told["networks"]
    assert f"{100 * row['accuracy']:.1f} +- {100 * row['std']:.1f} |" in out.read()


def test_a_network_that_cannot_take_a_step_is_named_before_any_is_taken(ours, judged, trained, capsys, monkeypatch, tmp_path):
    def broken(network: Any, pre_logits: Any) -> None:
        raise KeyError("no such layer")

    monkeypatch.setattr("ddbench.ops.layers.Network.forward", broken)
    assert main(["evaluate", str(ours), *SMALL, "--store", str(tmp_path / "new")]) == 2
    said = capsys.readouterr().err
    assert said.startswith("ddbench: network 'convnet(width=4, depth=1)' cannot be trained (KeyError: 'no such layer')")
    assert trained == []
    assert not (tmp_path / "new").exists()


def test_a_warning_names_the_file(judged, capsys, tmp_path):
    path = write(tmp_path / "a.pt", pixels(), torch.arange(10))
    words = ["--data", "mnist-5k", "--images", "normalised", "--store", str(tmp_path / "store")]
    assert main(["evaluate", str(path), *SMALL, *words]) == 0
    assert f"warning: {path}: the images are said to be normalised" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--archs", "convnett"], "unknown architecture 'convnett'. Did you mean 'convnet'?"),
        (["--archs", "convnet(wdth=4)"], "has no setting 'wdth'"),
        (["--archs", "convnet(4)"], "must be name=value"),
        (["--archs", "convnet,convnet"], "names a network twice"),
        (["--archs", "vit-noln(form=high)"], "vit"),
        (["--protocol", "glad1"], "unknown protocol 'glad1'"),
        (["--repeats", "0"], "--repeats must lie in 1..10000, got 0."),
        (["--repeats", str(10**20)], "--repeats must lie in 1..10000, got 100000000000000000000."),
        (["--workers", "0"], "--workers must lie in 1..1024, got 0."),
        (["--data", "cifar10"], "was made for the classes"),
        (["--protocol", "glad-1", "--rate", "0.1"], "is for the protocols that use it (lineage-1)"),
    ],
)
def test_a_mistake_is_one_sentence(ours, capsys, words, told, tmp_path):
    assert main(["evaluate", str(ours), "--store", str(tmp_path / "new"), *words]) == 2
    err = capsys.readouterr().err
    assert err.startswith("ddbench: ")
    assert told in err
    assert "Traceback" not in err
    assert not (tmp_path / "new").exists()


# ---------------------------------------------------------------- the real runner


@pytest.mark.slow
def test_workers_give_the_bits_of_this_process(ours, judged, capsys, monkeypatch, tmp_path):
    here = judged(ours, "--repeats", 3)
    monkeypatch.undo()
    words = [*SMALL, "--store", str(tmp_path / "of workers"), "--repeats", "3", "--workers", "2"]
    assert main(["evaluate", str(ours), *words]) == 0
    assert bits(json.loads(capsys.readouterr().out)) == bits(here)


@pytest.mark.slow
def test_a_divergence_in_a_worker_is_a_sentence(ours, capsys, tmp_path, monkeypatch):
    load = protocols.load

    def hot(id: str) -> protocols.Protocol:
        protocol = load(id)
        return replace_plan(protocol, judging=replace_plan(protocol.judging, lr_factor=1e30))

    monkeypatch.setattr(protocols, "load", hot)
    assert main(["evaluate", str(ours), *SMALL, "--store", str(tmp_path / "s")]) == 1
    assert "training diverged" in capsys.readouterr().err
