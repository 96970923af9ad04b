"""Files that appear whole or not at all, and reading what may be damaged."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
import torch

from ddbench import files
from ddbench.errors import DataError
from ddbench.files import publish, read_json, read_tensors, tensors_to_bytes, write_bytes, write_if_changed, write_json


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("*"))


def test_what_is_written_is_read(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "a.json"
    write_json(path, {"b": 1, "a": [1.5, None]})
    assert path.read_bytes() == b'{\n "a": [\n  1.5,\n  null\n ],\n "b": 1\n}\n'
    assert read_json(path, "thing") == {"a": [1.5, None], "b": 1}
    write_json(path, {})
    assert read_json(path, "thing") == {}
    assert names(tmp_path) == ["a.json", "deep"]


def test_nan_is_refused_and_the_old_file_stays(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_json(path, {"x": 1})
    with pytest.raises(ValueError, match="JSON"):
        write_json(path, {"x": float("nan")})
    assert read_json(path, "thing") == {"x": 1}


@pytest.mark.parametrize("where", ["fsync", "replace"])
def test_a_write_that_fails_leaves_the_old_file_and_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str) -> None:
    path = tmp_path / "a"
    write_bytes(path, b"old")

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(*((os, "fsync", full) if where == "fsync" else (Path, "replace", full)))
    with pytest.raises(OSError, match="No space left"):
        write_bytes(path, b"new")
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == ["a"]


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"", "thing {} is damaged or cut short (Expecting value: line 1 column 1 (char 0))."),
        (b'{"a": 1', "thing {} is damaged or cut short (Expecting ',' delimiter: line 1 column 8 (char 7))."),
        (b"\xff\xfe\xfa", "thing {} is damaged or cut short ("),
        (b"[" * 100_000, "thing {} is damaged or cut short ("),
        (b"[1]", "thing {} holds no JSON object."),
    ],
)
def test_damaged_json_is_told_in_a_sentence(tmp_path: Path, content: bytes, sentence: str) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(content)
    with pytest.raises(DataError) as caught:
        read_json(path, "thing")
    assert str(caught.value).startswith(sentence.format(path))
    assert str(caught.value).endswith(" Remove it, then run again to make it anew.")


def test_missing_and_huge_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.json"
    with pytest.raises(DataError) as caught:
        read_json(path, "thing", "Mend it.")
    assert str(caught.value) == f"thing {path} is missing. Mend it."
    monkeypatch.setattr(files, "MAX_JSON_BYTES", 3)
    path.write_text('{"a": 1}')
    with pytest.raises(DataError, match="is larger than 3 bytes"):
        read_json(path, "thing")


def test_equal_tensors_give_equal_bytes(tmp_path: Path) -> None:
    a, b = torch.arange(6.0).reshape(2, 3), torch.tensor([1, 2])
    one = tensors_to_bytes({"a": a, "b": b}, {"x": 1, "y": [2]})
    assert one == tensors_to_bytes({"b": b.clone(), "a": a.clone().requires_grad_()}, {"y": [2], "x": 1})
    assert one == tensors_to_bytes({"a": a.t().contiguous().t(), "b": b}, {"x": 1, "y": [2]})  # strides do not count
    assert one != tensors_to_bytes({"a": a + 1, "b": b}, {"x": 1, "y": [2]})
    assert one != tensors_to_bytes({"a": a, "b": b}, {"x": 2, "y": [2]})
    path = tmp_path / "t"
    path.write_bytes(one)
    tensors, meta = read_tensors(path, "set")
    assert meta == {"x": 1, "y": [2]}
    assert torch.equal(tensors["a"], a)
    assert torch.equal(tensors["b"], b)
    assert tensors["b"].dtype == torch.int64


def test_tensors_that_share_memory_are_written(tmp_path: Path) -> None:
    tied = torch.arange(4.0)
    path = tmp_path / "t"
    path.write_bytes(tensors_to_bytes({"a": tied, "b": tied, "c": tied[1:3], "empty": torch.empty(0), "one": tied[2]}))
    tensors, meta = read_tensors(path, "set")
    assert meta == {}
    assert torch.equal(tensors["b"], tied)
    assert torch.equal(tensors["c"], tied[1:3])
    assert tensors["empty"].shape == (0,)
    assert float(tensors["one"]) == 2


@pytest.mark.parametrize("damage", ["cut", "junk", "empty", "header"])
def test_damaged_tensors_are_told_in_a_sentence(tmp_path: Path, damage: str) -> None:
    path, whole = tmp_path / "t", tensors_to_bytes({"a": torch.zeros(100)})
    path.write_bytes({"cut": whole[:-7], "junk": b"x" * 50, "empty": b"", "header": b"\xff" * 8 + whole[8:]}[damage])
    with pytest.raises(DataError) as caught:
        read_tensors(path, "set")
    assert str(caught.value).startswith(f"set {path} is damaged or cut short (")
    assert str(caught.value).endswith("). Remove it, then run again to make it anew.")
    path.unlink()
    with pytest.raises(DataError, match="is missing"):
        read_tensors(path, "set")


def test_a_folder_is_published_once(tmp_path: Path) -> None:
    for number in (1, 2):
        aside = tmp_path / f".aside{number}"
        write_bytes(aside / "x", str(number).encode())
        assert publish(aside, tmp_path / "cells" / "a") is (number == 1)
        assert not aside.exists()
    assert (tmp_path / "cells" / "a" / "x").read_bytes() == b"1"


def test_publishing_into_a_place_that_is_no_folder_fails(tmp_path: Path) -> None:
    (tmp_path / "target").write_text("in the way")
    write_bytes(tmp_path / "aside" / "x", b"1")
    with pytest.raises(OSError, match="Not a directory"):
        publish(tmp_path / "aside", tmp_path / "target")
    assert (tmp_path / "aside" / "x").exists()


def test_what_a_file_already_holds_is_not_written_again(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "a"
    write_if_changed(path, b"one")
    before = (path.stat().st_ino, path.stat().st_mtime_ns)
    write_if_changed(path, b"one")
    assert (path.stat().st_ino, path.stat().st_mtime_ns) == before
    write_if_changed(path, b"two")  # of the same length
    assert path.read_bytes() == b"two"
    assert [each.name for each in path.parent.iterdir()] == ["a"]
