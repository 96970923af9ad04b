"""`ddbench evaluate`: our sets and others', judged as the runner judges them; what is wrong with a file is one sentence."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from ddbench.cli import main
from ddbench.errors import BenchError, ConfigError, DataError
from ddbench.evaluate.evaluator import pack, unpack
from ddbench.evaluate.sets import read_set
from ddbench.registry import datasets
from ddbench.results.store import Store
from ddbench.seeds import stream

SPEC = datasets.make("mnist-5k").spec()
BOARD = Path(__file__).parents[2] / "leaderboards" / "quickstart" / "store"
SMALL = ["--protocol", "smoke-1", "--archs", "convnet(width=4)", "--json"]


def pixels(num: int = 10) -> torch.Tensor:
    return torch.rand(num, *SPEC.shape, generator=stream("pixels"))


def write(path: Path, images: torch.Tensor, labels: torch.Tensor) -> Path:
    if path.suffix == ".safetensors":
        save_file({"images": images, "labels": labels}, path)
    else:
        torch.save({"images": images, "labels": labels}, path)
    return path


def judged(capsys: pytest.CaptureFixture[str], *words: object) -> dict:
    assert main(["evaluate", *map(str, words), *SMALL]) == 0
    return json.loads(capsys.readouterr().out)


@pytest.fixture(scope="module")
def ours() -> Path:
    return next(path for path in sorted((BOARD / "cells").iterdir()) if (path / "distilled.safetensors").is_file())


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
    (tmp_path / "set.npz").write_bytes(b"")

    def file(name: str, images: torch.Tensor, labels: torch.Tensor = labels) -> Path:
        return write(tmp_path / f"{name}.pt", images, labels)

    return {
        "missing": (tmp_path / "no.pt", how, ConfigError, "there is no file"),
        "kind": (tmp_path / "set.npz", how, ConfigError, "neither a .safetensors nor a .pt"),
        "cut pt": (tmp_path / "cut.pt", how, DataError, "cannot be read"),
        "cut safetensors": (tmp_path / "cut.safetensors", how, DataError, "damaged or cut short"),
        "code": (tmp_path / "malice.pt", how, DataError, "pickled code is never run"),
        "lacks": (tmp_path / "lacks.pt", how, DataError, "must hold the tensors images and labels; it holds x"),
        "bare": (tmp_path / "bare.pt", how, DataError, "must hold a dictionary or a pair"),
        "unsaid": (file("unsaid", good), {}, ConfigError, "--images normalised, pixels or whitened"),
        "nan": (file("nan", nan), how, DataError, "NaN or infinite"),
        "channels": (file("rgb", good.expand(-1, 3, -1, -1).clone()), how, DataError, r"\[N, 1, H, W\]"),
        "side": (file("side", good[..., :20].clone()), how, DataError, "28 x 20 px"),
        "range": (file("range", SPEC.normalise(good) * 3), how, DataError, "must be uint8 or lie in"),
        "bytes": (file("bytes", good.to(torch.uint8)), {"values": "normalised"}, DataError, "Are they pixels"),
        "label": (file("label", good, labels + 1), how, DataError, r"labels must lie in 0\.\.9, got 1\.\.10"),
        "logits": (file("logits", good, torch.eye(10) * 5), how, DataError, "probabilities, not logits"),
        "lengths": (file("lengths", good, labels[:5].clone()), how, DataError, r"labels must be \[10\]"),
        "integers": (file("integers", (good * 255).int()), how, DataError, "floats or uint8 pixels, got torch.int32"),
        "complex": (file("complex", good.to(torch.complex64)), how, DataError, "floats or uint8 pixels, got torch.complex64"),
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


@pytest.mark.slow
def test_our_set_needs_no_words_and_repeats_itself(ours, capsys):
    once, again = (judged(capsys, ours / "distilled.safetensors") for _ in range(2))
    assert once["data"] == "mnist-5k"
    assert once["labels"] == "hard"
    assert [entry["correct"] for entry in once["evaluations"]] == [entry["correct"] for entry in again["evaluations"]]
    other = judged(capsys, ours / "distilled.safetensors", "--seed", 1)
    assert [entry["correct"] for entry in once["evaluations"]] != [entry["correct"] for entry in other["evaluations"]]


@pytest.mark.slow
def test_repeats_do_not_change_one_another(ours, capsys):
    few, many = (judged(capsys, ours / "distilled.safetensors", "--repeats", num) for num in (1, 3))
    assert [entry["repeat"] for entry in many["evaluations"]] == [0, 1, 2]
    assert few["evaluations"][0]["correct"] == many["evaluations"][0]["correct"]


@pytest.mark.slow
def test_a_strangers_set_is_judged_like_ours(ours, tmp_path, capsys):
    record = Store(BOARD, create=False).record(json.loads((ours / "record.json").read_text())["key"])
    assert record["data"]["label"] == "mnist-5k"
    mine = read_set(ours / "distilled.safetensors", SPEC)
    path = write(tmp_path / "theirs.pt", mine.images, mine.labels)
    theirs = judged(capsys, path, "--data", "mnist-5k", "--images", "normalised")
    assert theirs["evaluations"][0]["correct"] == judged(capsys, ours / "distilled.safetensors")["evaluations"][0]["correct"]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--archs", "convnett"], "unknown architecture 'convnett'. Did you mean 'convnet'?"),
        (["--archs", "convnet(wdth=4)"], "has no setting 'wdth'"),
        (["--archs", "convnet(4)"], "must be name=value"),
        (["--archs", "convnet,convnet"], "names a network twice"),
        (["--archs", "vit-noln(form=high)"], "vit"),
        (["--protocol", "glad1"], "unknown protocol 'glad1'"),
        (["--repeats", "0"], "--repeats, --threads and --workers must be at least 1"),
        (["--data", "cifar10"], "was made for the classes"),
    ],
)
def test_a_mistake_is_one_sentence(ours, capsys, words, told):
    assert main(["evaluate", str(ours / "distilled.safetensors"), *words]) == 2
    err = capsys.readouterr().err
    assert err.startswith("ddbench: ")
    assert told in err
    assert "Traceback" not in err
