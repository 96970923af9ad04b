"""Sets from files beyond plain pixels: whitened images, logits, learned rates; and what is wrong with them, in a sentence.

The tests of the verb judge in this process, see `in_process`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import in_process
import pytest
import torch
from msgspec.structs import replace as replace_plan
from safetensors.torch import save_file
from torch import Tensor

from ddbench import protocols
from ddbench.api import Recipe
from ddbench.cli import main
from ddbench.data.sealed import TestData
from ddbench.errors import ConfigError, DataError
from ddbench.evaluate import evaluator
from ddbench.evaluate.evaluator import Evaluator, Subject
from ddbench.evaluate.sets import read_set
from ddbench.files import tensors_to_bytes
from ddbench.grid import runner
from ddbench.plan import Judging
from ddbench.seeds import stream
from ddbench.testing import TOY_ARCH, Given, toy_spec

SPEC = replace(toy_spec(channels=3), shape=(3, 4, 5))
SIZE = 3 * 4 * 5
CLASSES = torch.arange(6) % 3


@pytest.fixture(scope="module", autouse=True)
def light() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        in_process.be_light(patch)
        yield


def drawn(*shape: int, name: str = "x") -> Tensor:
    return torch.rand(*shape, generator=stream(name))


def whitened(**changes: Any) -> dict[str, Any]:
    """What a file of whitened images holds."""
    mean, matrix = drawn(SIZE, name="mean"), drawn(SIZE, SIZE, name="matrix") - 0.5
    images = (drawn(6, SIZE, name="pixels") - mean) @ matrix
    values = {"images": images.view(6, *SPEC.shape), "labels": CLASSES, "zca_mean": mean, "zca_matrix": matrix}
    return {name: value for name, value in (values | changes).items() if value is not None}


def write(path: Path, values: dict[str, Any]) -> Path:
    save_file(values, path) if path.suffix == ".safetensors" else torch.save(values, path)
    return path


def ours(path: Path, labels: Tensor | None = None, **changes: Any) -> Path:
    """A file as a cell writes it, of toy images."""
    tensors = {"images": drawn(6, *SPEC.shape), "labels": torch.eye(3)[CLASSES] if labels is None else labels}
    meta = {"dataset": "toy", "class_names": SPEC.class_names, "mean": SPEC.mean, "std": SPEC.std, "learned": {}}
    path.write_bytes(tensors_to_bytes(tensors, meta | changes))
    return path


def evaluator_of(whitening: Any) -> Evaluator:
    network, dataset = Given.of("architectures", TOY_ARCH), Given.of("datasets", None)
    judging = Judging(network=network, numbers=protocols.load("smoke-1").judging, dataset=dataset, test_hash="0" * 64)
    pixels = torch.randint(256, (4, *SPEC.shape), generator=stream("test"), dtype=torch.uint8)
    subject = Subject(torch.zeros(1), torch.zeros(1), "1" * 64, whitening=whitening)
    return Evaluator(judging, SPEC, subject, TestData(pixels, CLASSES[:4]))


# ---------------------------------------------------------------- whitened images


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_a_whitened_set_brings_its_transform(tmp_path: Path, suffix: str) -> None:
    values = whitened()
    read = read_set(write(tmp_path / f"a{suffix}", values), SPEC, "whitened")
    assert torch.equal(read.images, values["images"])
    assert torch.equal(read.labels, torch.eye(3)[CLASSES])
    assert read.whitening is not None
    assert torch.equal(read.whitening.mean, values["zca_mean"])
    assert torch.equal(read.whitening.matrix, values["zca_matrix"])
    assert (read.kind, read.warnings, read.learned_rate) == ("hard", (), None)


def test_the_mean_that_whitened_images_may_be_a_row(tmp_path: Path) -> None:
    values = whitened()
    row = read_set(write(tmp_path / "a.pt", values | {"zca_mean": values["zca_mean"][None]}), SPEC, "whitened").whitening
    assert row is not None
    assert torch.equal(row.mean, values["zca_mean"])


def test_other_sets_bring_none(tmp_path: Path) -> None:
    values = whitened(images=drawn(6, *SPEC.shape))
    for how in ("pixels", "normalised"):
        assert read_set(write(tmp_path / "a.pt", values), SPEC, how).whitening is None
    assert read_set(ours(tmp_path / "ours.safetensors"), SPEC, "whitened").whitening is None  # it says that it is normalised


def test_doubles_are_read_as_floats(tmp_path: Path) -> None:
    values = {name: value.double() if value.is_floating_point() else value for name, value in whitened().items()}
    read = read_set(write(tmp_path / "a.pt", values), SPEC, "whitened")
    assert read.whitening is not None
    assert {tensor.dtype for tensor in (read.images, read.whitening.mean, read.whitening.matrix)} == {torch.float32}


def test_test_images_are_whitened_too(tmp_path: Path) -> None:
    values = whitened()
    judged = evaluator_of(read_set(write(tmp_path / "a.pt", values), SPEC, "whitened").whitening)
    pixels = judged.test.images.double().view(4, SIZE) / 255
    by_hand = (pixels - values["zca_mean"].double()) @ values["zca_matrix"].double()
    seen = judged.seen(judged.test.images)
    torch.testing.assert_close(seen, by_hand.float().view(4, *SPEC.shape), rtol=1e-4, atol=1e-4)
    for number in range(4):  # each by itself
        torch.testing.assert_close(judged.seen(judged.test.images[number : number + 1])[0], seen[number])
    assert torch.equal(evaluator_of(None).seen(judged.test.images), SPEC.normalise(judged.test.images))


def test_training_and_test_images_end_in_one_space(tmp_path: Path) -> None:
    """Someone who whitens a test image as the set was whitened gets what the networks are shown."""
    values, pixels = whitened(), evaluator_of(None).test.images
    flat = pixels.float().flatten(1) / 255
    values["images"] = ((flat - values["zca_mean"]) @ values["zca_matrix"]).view(4, *SPEC.shape)
    read = read_set(write(tmp_path / "a.pt", values | {"labels": CLASSES[:4]}), SPEC, "whitened")
    torch.testing.assert_close(evaluator_of(read.whitening).seen(pixels), read.images)


NAN = whitened()["zca_matrix"].index_fill(0, torch.tensor([2]), torch.nan)
WHITENED = {
    "no mean": ({"zca_mean": None}, r"need the tensor zca_mean, finite floats \[60\]"),
    "no matrix": ({"zca_matrix": None}, r"need the tensor zca_matrix, finite floats \[60, 60\]"),
    "mean as an image": ({"zca_mean": drawn(3, 4, 5)}, r"zca_mean, finite floats \[60\]"),
    "a matrix of pixels": ({"zca_matrix": drawn(20, 20)}, r"zca_matrix, finite floats \[60, 60\]"),
    "half a matrix": ({"zca_matrix": drawn(SIZE, 20)}, r"zca_matrix, finite floats \[60, 60\]"),
    "nan": ({"zca_matrix": NAN}, r"zca_matrix, finite floats"),
    "infinite": ({"zca_mean": torch.full((SIZE,), torch.inf)}, r"zca_mean, finite floats"),
    "integers": ({"zca_mean": torch.zeros(SIZE, dtype=torch.int64)}, r"zca_mean, finite floats"),
    "a list": ({"zca_mean": [0.0] * SIZE}, r"zca_mean, finite floats"),
    "bytes": ({"images": torch.zeros(6, *SPEC.shape, dtype=torch.uint8)}, "whitened images must be floats, got torch.uint8"),
    "nan images": ({"images": torch.full((6, *SPEC.shape), torch.nan)}, "images hold NaN or infinite values"),
    "another size": ({"images": drawn(6, 3, 5, 4)}, "images are 5 x 4 px and those of 'toy' 4 x 5 px"),
}


@pytest.mark.parametrize("case", WHITENED)
def test_a_fault_of_a_whitened_set_is_one_sentence(tmp_path: Path, case: str) -> None:
    changes, told = WHITENED[case]
    refused(write(tmp_path / "a.pt", whitened(**changes)), told, "whitened")


def refused(path: Path, told: str, *how: Any, **more: Any) -> None:
    with pytest.raises(DataError, match=told) as caught:
        read_set(path, SPEC, *how, **more)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)


# ---------------------------------------------------------------- labels


def labelled(path: Path, labels: Tensor) -> Path:
    return write(path, {"images": drawn(6, *SPEC.shape), "labels": labels})


def test_logits_become_probabilities(tmp_path: Path) -> None:
    logits = 4 * torch.randn(6, 3, generator=stream("logits"))
    read = read_set(labelled(tmp_path / "a.pt", logits), SPEC, "pixels", kind="logits")
    exponents = logits.exp()
    torch.testing.assert_close(read.labels, exponents / exponents.sum(1, keepdim=True))
    assert read.kind == "soft"
    shifted = read_set(labelled(tmp_path / "b.pt", logits.double() - 300), SPEC, "pixels", kind="logits")
    torch.testing.assert_close(shifted.labels, read.labels)


def test_saying_what_labels_look_like_changes_nothing(tmp_path: Path) -> None:
    soft = drawn(6, 3).softmax(1)
    for labels, kind in ((CLASSES, "indices"), (CLASSES.int(), "indices"), (soft, "probabilities")):
        path = labelled(tmp_path / "a.pt", labels)
        unsaid, said = read_set(path, SPEC, "pixels"), read_set(path, SPEC, "pixels", kind=kind)
        assert torch.equal(unsaid.labels, said.labels)
        assert said.labels.shape == (6, 3)


@pytest.mark.parametrize(
    ("labels", "kind", "told"),
    [
        (CLASSES, "logits", r"labels \[6\] are not logits\. Say what they are with --labels"),
        (CLASSES, "probabilities", r"labels \[6\] are not probabilities"),
        (torch.eye(3)[CLASSES], "indices", r"labels \[6, 3\] are not indices"),
        (3 * torch.eye(3)[CLASSES] - 1, None, "probabilities, not logits: .* say --labels logits"),
        (3 * torch.eye(3)[CLASSES] - 1, "probabilities", "probabilities, not logits"),
        (torch.full((6, 3), torch.nan), "logits", "its logits hold NaN or infinite values"),
        (torch.full((6, 3), torch.nan), None, "probabilities, not logits"),
        (torch.zeros(6, 4), "logits", r"must be \[6\] class indices or \[6, 3\] probabilities, got torch.float32 \[6, 4\]"),
        (torch.zeros(6, 3, dtype=torch.int64), "logits", r"got torch.int64 \[6, 3\]"),
        (CLASSES - 1, "indices", r"labels must lie in 0\.\.2, got -1\.\.1"),
        (CLASSES.float(), "indices", r"got torch.float32 \[6\]"),
    ],
)
def test_labels_that_are_not_what_is_said(tmp_path: Path, labels: Tensor, kind: Any, told: str) -> None:
    refused(labelled(tmp_path / "a.pt", labels), told, "pixels", kind=kind)


def test_our_labels_are_probabilities_whatever_is_said(tmp_path: Path) -> None:
    soft = drawn(6, 3).softmax(1)
    path = ours(tmp_path / "a.safetensors", soft)
    assert torch.equal(read_set(path, SPEC, kind="logits").labels, soft)


# ---------------------------------------------------------------- a learned rate


def rated(path: Path, rate: Any) -> Path:
    return write(path, {"images": drawn(6, *SPEC.shape), "labels": CLASSES, "learned_rate": rate})


def test_our_set_says_the_rate_that_it_has_learned(tmp_path: Path) -> None:
    assert read_set(ours(tmp_path / "a.safetensors", learned={"student_rate": 0.0213}), SPEC).learned_rate == 0.0213
    assert read_set(ours(tmp_path / "b.safetensors", learned={"shift": 3.0}), SPEC).learned_rate is None
    assert read_set(ours(tmp_path / "c.safetensors"), SPEC).learned_rate is None


@pytest.mark.parametrize("rate", [torch.tensor(0.5), torch.tensor([0.5]), torch.tensor(0.5, dtype=torch.float64), 0.5])
def test_a_strangers_rate_is_a_tensor_or_a_number(tmp_path: Path, rate: Any) -> None:
    read = read_set(rated(tmp_path / "a.pt", rate), SPEC, "pixels")
    assert read.learned_rate == 0.5
    assert type(read.learned_rate) is float


def test_a_whole_number_is_a_rate(tmp_path: Path) -> None:
    for rate in (2, torch.tensor(2)):
        assert read_set(rated(tmp_path / "a.pt", rate), SPEC, "pixels").learned_rate == 2.0


def test_safetensors_hold_rates_too(tmp_path: Path) -> None:
    assert read_set(rated(tmp_path / "a.safetensors", torch.tensor([0.25])), SPEC, "pixels").learned_rate == 0.25


@pytest.mark.parametrize("rate", [-0.1, 0.0, float("nan"), float("inf"), True, "0.1", [0.1], {"rate": torch.eye(2)}])
def test_a_rate_that_is_none_is_one_sentence(tmp_path: Path, rate: Any) -> None:
    refused(rated(tmp_path / "a.pt", rate), "its learned rate must be a number above 0, got ", "pixels")


@pytest.mark.parametrize("rate", [torch.tensor(-0.1), torch.tensor(torch.nan), torch.zeros(2, 2), torch.empty(0)])
def test_a_tensor_that_is_no_rate_is_one_sentence(tmp_path: Path, rate: Tensor) -> None:
    refused(rated(tmp_path / "a.pt", rate), "its learned rate must be a number above 0, got ", "pixels")


@pytest.mark.parametrize("rate", [-0.5, 0.0, "fast", [0.1], True])
def test_a_rate_in_our_metadata_is_checked_too(tmp_path: Path, rate: Any) -> None:
    path = ours(tmp_path / "a.safetensors", learned={"student_rate": rate})
    refused(path, "its learned rate must be a number above 0, got ")


def test_metadata_that_learned_no_table_is_refused(tmp_path: Path) -> None:
    refused(ours(tmp_path / "a.safetensors", learned=[0.1]), "its metadata must hold")


# ---------------------------------------------------------------- the verb


@pytest.fixture
def verb(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> Callable[..., tuple[dict[str, Any], list[float]]]:
    """`ddbench evaluate` on digits under a protocol cut down to two epochs: what it prints, and the rates of its recipes."""
    load, train = protocols.load, evaluator.train

    def cut(id: str) -> protocols.Protocol:
        protocol = load(id)
        numbers = replace_plan(protocol.judging, epochs=2, test_batch=500, warmup_epochs=min(protocol.judging.warmup_epochs, 1))
        return replace_plan(protocol, repeats=1, judging=numbers)

    rates: list[float] = []

    def spy(network: Any, images: Any, labels: Any, recipe: Recipe, *more: Any) -> float:
        rates.append(recipe.lr)
        return train(network, images, labels, recipe, *more)

    monkeypatch.setattr(protocols, "load", cut)
    monkeypatch.setattr(evaluator, "train", spy)
    monkeypatch.setattr(runner, "run", in_process.run)

    def call(path: Path, *words: object) -> tuple[dict[str, Any], list[float]]:
        rates.clear()
        told = ["--data", "mnist-5k", "--archs", "convnet(width=4,depth=1)", "--device", "cpu", "--json"]
        assert main(["evaluate", str(path), *told, "--store", str(tmp_path / "store"), *map(str, words)]) == 0
        return json.loads(capsys.readouterr().out), list(rates)

    return call


def digits(path: Path, **more: Any) -> Path:
    return write(path, {"images": drawn(10, 1, 28, 28), "labels": torch.arange(10)} | more)


@pytest.mark.slow
def test_rates_of_networks_on_a_set_with_a_learned_rate(verb: Any, tmp_path: Path) -> None:
    path = digits(tmp_path / "a.pt", learned_rate=torch.tensor(0.02))
    pixels, lineage = ("--images", "pixels"), ("--protocol", "lineage-1")
    assert verb(path, *pixels)[1] == [0.001]  # glad-1 has a rate of its own
    assert verb(path, *pixels, *lineage)[1] == [pytest.approx(0.02)]
    assert verb(path, *pixels, *lineage, "--rate", 0.3)[1] == [0.3]  # what the user says goes before
    plain = digits(tmp_path / "b.pt")
    assert verb(plain, *pixels, *lineage)[1] == [0.01]
    assert verb(plain, *pixels, *lineage, "--rate", 0.3)[1] == [0.3]


def mistake(capsys: pytest.CaptureFixture[str], path: Path, *words: str) -> str:
    """What the verb says that refuses."""
    told = ["--data", "mnist-5k", "--images", "pixels", "--device", "cpu", "--store", str(path.parent / "store"), *words]
    assert main(["evaluate", str(digits(path)), *told]) == 2
    assert not (path.parent / "store").exists()  # nothing was begun
    return capsys.readouterr().err


@pytest.mark.parametrize("protocol", ["glad-1", "sre2l-1"])
def test_a_rate_is_refused_where_it_would_not_be_used(capsys: Any, tmp_path: Path, protocol: str) -> None:
    told = "ddbench: --rate must be above 0 and is for the protocols that use it (lineage-1); this is "
    assert mistake(capsys, tmp_path / "a.pt", "--protocol", protocol, "--rate", "0.3") == f"{told}'{protocol}'.\n"
    if protocol == "glad-1":  # which is the default
        assert mistake(capsys, tmp_path / "a.pt", "--rate", "0.3") == f"{told}'glad-1'.\n"


@pytest.mark.parametrize("rate", ["0", "-1", "nan", "inf"])
def test_a_rate_must_be_one(capsys: Any, tmp_path: Path, rate: str) -> None:
    said = mistake(capsys, tmp_path / "a.pt", "--protocol", "lineage-1", f"--rate={rate}")
    assert said.startswith("ddbench: --rate must be above 0")


def test_a_whitened_set_is_judged_on_whitened_images(verb: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """By the identity and no mean, networks see pixels; by ten times that, ten times the pixels."""
    largest, predict = [], evaluator.predict

    def spy(network: Any, images: Tensor, batch: int, view: Any) -> Tensor:
        largest.append(view(images).max().item())
        return predict(network, images, batch, view)

    monkeypatch.setattr(evaluator, "predict", spy)
    for factor in (1.0, 10.0):
        path = digits(tmp_path / "a.pt", zca_mean=torch.zeros(784), zca_matrix=factor * torch.eye(784))
        shown, _ = verb(path, "--images", "whitened", "--protocol", "smoke-1")
        assert shown["whitened"] is True
    assert largest == pytest.approx([1.0, 10.0])
    shown, _ = verb(digits(tmp_path / "b.pt"), "--images", "pixels", "--protocol", "smoke-1")
    assert "whitened" not in shown
    assert largest[2] == pytest.approx((1 - 0.1315) / 0.3088)


def test_what_must_be_said_names_all_ways_to_say_it(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="add --images normalised, pixels or whitened"):
        read_set(write(tmp_path / "a.pt", whitened()), SPEC)
