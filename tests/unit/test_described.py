"""Decoders that a JSON document describes: what it may say, what is refused, and that its operations are torch's."""

from __future__ import annotations

import json
from copy import deepcopy
from typing import Any

import pytest
import torch
from torch import nn

from ddbench.errors import DataError
from ddbench.ops.described import Decoder, Description, read
from ddbench.ops.operations import BatchNorm, Conv, ConvTranspose, Linear, Reshape, Upsample
from ddbench.seeds import global_stream, stream
from made_decoders import DIGITS


def described(content: Any) -> Description:
    return read(json.dumps(content).encode(), "mine.json")


def edited(*path: Any, value: Any = ...) -> dict[str, Any]:
    """The small description with one entry changed, or, without a value, left out."""
    content: Any = deepcopy(DIGITS)
    place = content
    for key in path[:-1]:
        place = place[key]
    if value is ...:
        del place[path[-1]]
    else:
        place[path[-1]] = value
    return content


def test_the_small_one_makes_what_it_says() -> None:
    description = described(DIGITS)
    assert description.image_shape() == (1, 8, 8)
    assert description.code_size == 9
    with global_stream("decoder"):
        decoder = Decoder(description).eval()
    w = decoder.codes(torch.tensor([0, 2, 2]), stream("codes"))
    assert w.shape == (3, 9)
    assert torch.equal(w[1, 5:], w[2, 5:])
    assert torch.equal(w[1, 5:], decoder.embedding.weight[2])
    pixels = decoder(decoder.start(w), 0, 3).detach()
    assert pixels.shape == (3, 1, 8, 8)
    assert 0 <= float(pixels.min()) < float(pixels.max()) <= 1


def test_classes_without_an_embedding_are_one_hot_and_noise_may_be_uniform() -> None:
    content = edited("classes", value={"num": 4, "size": 4}) | {"noise": {"size": 5, "distribution": "uniform"}}
    decoder = Decoder(described(content))
    w = decoder.codes(torch.arange(4), stream("codes"))
    assert torch.equal(w[:, 5:], torch.eye(4))
    assert float(w[:, :5].abs().max()) <= 1
    content = edited("classes", value=None) | {"noise": {"size": 9}}
    assert Decoder(described(content)).codes(torch.arange(3), stream("codes")).shape == (3, 9)


@pytest.mark.parametrize(
    ("operation", "before"),
    [
        (Linear(tensors="x", before=6, after=4), (6,)),
        (Reshape(shape=(3, 2, 2)), (12,)),
        (Reshape(shape=(12,)), (3, 2, 2)),
        (Conv(tensors="x", before=3, after=5, kernel=3, stride=2, padding=1), (3, 7, 8)),
        (ConvTranspose(tensors="x", before=3, after=5, kernel=4, stride=2, padding=1), (3, 7, 8)),
        (ConvTranspose(tensors="x", before=3, after=5, kernel=5, stride=3, padding=2, output_padding=2), (3, 4, 5)),
        (BatchNorm(tensors="x", channels=6), (6,)),
        (BatchNorm(tensors="x", channels=3), (3, 4, 4)),
        (Upsample(factor=3, mode="bilinear"), (3, 4, 5)),
    ],
)
def test_an_operation_makes_the_shape_that_it_says(operation: Any, before: tuple[int, ...]) -> None:
    assert operation.module()(torch.randn(2, *before, generator=stream("x"))).shape == (2, *operation.makes(before))


def test_batch_norm_takes_what_it_has_stored_and_nothing_of_the_batch() -> None:
    ours, theirs = BatchNorm(tensors="x", channels=3, eps=0.8).module(), nn.BatchNorm2d(3, eps=0.8).eval()
    rng = stream("norm")
    state = {name: torch.rand(3, generator=rng) + 0.1 for name in ("weight", "bias", "running_mean", "running_var")}
    ours.load_state_dict(state)
    theirs.load_state_dict(state, strict=False)
    x = torch.randn(2, 3, 4, 4, generator=rng)
    torch.testing.assert_close(ours.train()(x), theirs(x))


BROKEN: list[tuple[Any, str]] = [
    (edited("schema", value=2), "Invalid enum value 2"),
    (edited("kind"), "missing required field `kind`"),
    (edited("more", value=1), "unknown field `more`"),
    (edited("layers", value=[]), "length >= 1"),
    (edited("layers", 1, value=[]), "length >= 1"),
    (edited("layers", value=[[{"op": "tanh"}]] * 257), "length <= 256"),
    (edited("layers", 1, 0, "op", value="exec"), "Invalid value 'exec'"),
    (edited("layers", 1, 0, "factor", value="2"), "Expected `int`, got `str`"),
    (edited("layers", 1, 0, "factor", value=9), "`int` <= 8"),
    (edited("layers", 2, 0, "tensors", value="x" * 201), "length <= 200"),
    (edited("layers", 2, 0, "before", value=5), "operation 0 of layers.2 takes 5 channels and gets 6"),
    (edited("layers", 0, 1, "channels", value=5), "operation 1 of layers.0 takes 5 channels and gets 6"),
    (edited("layers", 2, 0, "kernel", value=31), "operation 0 of layers.2 would have a tensor or a map of 1 x -20 x -20 values"),
    (edited("start", 0, "before", value=10), "operation 0 of start takes 10 channels and gets 9"),
    (edited("start", 1, "shape", value=[3, 2, 3]), r"operation 1 of start cannot make \[3, 2, 3\] of \[12\]"),
    (edited("start", 1), "operation 0 of layers.0 takes a map and gets"),
    (edited("start", value=[{"op": "linear", "tensors": "x", "before": 9, "after": 1 << 20}] * 1 + DIGITS["start"]), "channels"),
    (edited("layers", 0, 0, "output_padding", value=2), "needs an 'output_padding' below its 'stride'"),
    (edited("layers", 2, 0, value={"op": "reshape", "shape": [384]}), "its last layer gives"),
    (edited("white", value=-1.0), "'black' and 'white' are equal"),
    (edited("classes", "embedding"), "as many numbers as there are classes"),
    (edited("black", value="NaN"), "Expected `float`"),
    ([], "Expected `object`"),
]


@pytest.mark.parametrize(("content", "sentence"), BROKEN)
def test_another_document_is_refused_in_a_sentence(content: Any, sentence: str) -> None:
    with pytest.raises(DataError, match=rf"^the description 'mine\.json' is not one of a decoder: .*{sentence}.*\.$"):
        described(content)


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"[" * 100_000, b'{"schema": 1e999}', b"NaN"])
def test_bytes_that_are_no_json_are_refused_in_a_sentence(content: bytes) -> None:
    with pytest.raises(DataError, match=r"^the description 'mine\.json' is not one of a decoder: .*\.$"):
        read(content, "mine.json")


def test_sizes_are_bounded_before_anything_is_allocated() -> None:
    wide = [{"op": "linear", "tensors": name, "before": before, "after": 1 << 20} for name, before in (("a", 9), ("b", 1 << 20))]
    with pytest.raises(DataError, match="operation 1 of start would have a tensor or a map of 1048576 x 1048576 values"):
        described(edited("start", value=wide))
    grown = [[{"op": "upsample", "factor": 8}]] * 8
    with pytest.raises(DataError, match=r"operation 0 of layers\.3 would have a tensor or a map"):
        described(edited("layers", value=grown))


def test_a_file_must_hold_just_what_is_described() -> None:
    decoder = Decoder(described(DIGITS))
    good = {theirs: decoder.state_dict()[ours] for ours, theirs in decoder._names()}
    assert "up.weight" in good
    assert decoder.fit(good | {"norm.num_batches_tracked": torch.tensor(1)}, "the file").keys() == decoder.state_dict().keys()
    halves = {name: tensor.half() for name, tensor in good.items()}
    assert decoder.fit(halves, "the file")["embedding.weight"].dtype == torch.float32
    for tensors, sentence in (
        ({name: tensor for name, tensor in good.items() if name != "up.bias"}, r"they lack 'up\.bias'"),
        (good | {"odd": torch.ones(1)}, "it does not name 'odd'"),
        (good | {"up.bias": torch.ones(7)}, r"'up\.bias' is torch\.float32 \[7\], and must be floats \[6\]"),
        (good | {"up.bias": torch.ones(6, dtype=torch.int64)}, r"is torch\.int64 \[6\]"),
    ):
        with pytest.raises(DataError, match=rf"^the file do not fit their description: .*{sentence}"):
            decoder.fit(tensors, "the file")
    for odd, sentence in (
        (torch.ones(6, dtype=torch.complex64), "complex"),
        (torch.ones(6).to_sparse(), "sparse"),
        (torch.empty(6, device="meta"), "a meta tensor, without numbers"),
        (torch.ones(1).expand(6), "expanded, more numbers than are stored"),
    ):
        with pytest.raises(DataError, match=rf"^the file: 'up\.bias' is {sentence}: store plain dense tensors"):
            decoder.fit(good | {"up.bias": odd}, "the file")
