"""Files that users bring: listed, downloaded on demand, prepared once, and checked by hash; and `ddbench data`."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import pytest
from official_pickles import official

from ddbench import registry
from ddbench.api import Asset, AssetFacts
from ddbench.cli import main
from ddbench.data import assets, fetch
from ddbench.data.assets import Placed, place, prepare, verify
from ddbench.errors import ConfigError, DataError, PluginError
from ddbench.files import sha256_file
from ddbench_plugins.stylegan.catalogue import known

CONTENT = bytes(range(256)) * 20_000  # 5 MB
Capture = pytest.CaptureFixture[str]


def quiet(size: int, total: int | None) -> None:
    """Nobody looks."""


# ---------------------------------------------------------------- a server of files


@dataclass
class Server:
    """What it does: `cut` ends an answer after so many bytes, without `etag` nothing can be gone on with."""

    content: bytes = CONTENT
    etag: str = '"one"'
    cut: int | None = None
    lie: int = 0  # added to the length that it tells
    status: int | None = None
    shift: int = 0  # of the range that it gives
    odd: str = ""  # what it calls a part's version, whatever was asked for
    seen: list[dict[str, str]] = field(default_factory=list)
    address: str = ""


@pytest.fixture
def server() -> Iterator[Server]:
    made = Server()

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *args: Any) -> None:
            """Not on the tests' stderr."""

        def do_GET(self) -> None:
            made.seen.append(dict(self.headers))
            if made.status:
                self.send_error(made.status)
                return
            start, wanted = 0, self.headers.get("Range", "")
            if wanted and self.headers.get("If-Range") == made.etag:
                start = int(wanted.removeprefix("bytes=").removesuffix("-"))
                if start >= len(made.content):
                    self.send_error(416)
                    return
                self.send_response(206)
                last = len(made.content) - 1
                self.send_header("Content-Range", f"bytes {start + made.shift}-{last}/{len(made.content)}")
            else:
                self.send_response(200)
            if made.etag:
                self.send_header("ETag", made.odd if start and made.odd else made.etag)
            body = made.content[start:]
            self.send_header("Content-Length", str(len(body) + made.lie))
            self.end_headers()
            self.wfile.write(body if made.cut is None else body[: made.cut])

    class Quiet(ThreadingHTTPServer):
        def handle_error(self, request: Any, address: Any) -> None:
            """A client that went away in the middle is what some tests want."""

    httpd = Quiet(("127.0.0.1", 0), Handler)
    made.address = f"http://127.0.0.1:{httpd.server_port}/x.pkl"
    thread = threading.Thread(target=httpd.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    yield made
    httpd.shutdown()
    httpd.server_close()


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_download_appears_whole(server: Server, tmp_path: Path) -> None:
    told: list[tuple[int, int | None]] = []
    fetch.fetch(server.address, tmp_path / "a" / "x.pkl", lambda *where: told.append(where))
    assert (tmp_path / "a" / "x.pkl").read_bytes() == CONTENT
    assert names_in(tmp_path / "a") == ["x.pkl"]
    assert (told[0], told[-1]) == ((0, len(CONTENT)), (len(CONTENT), len(CONTENT)))


def test_a_cut_download_is_gone_on_with(server: Server, tmp_path: Path) -> None:
    target, server.cut = tmp_path / "x.pkl", 1_000_000
    with pytest.raises(DataError, match=r"(ended after 1000000 of|IncompleteRead).*The same command goes on from there"):
        fetch.fetch(server.address, target, quiet)
    assert not target.exists()
    assert (tmp_path / ".x.pkl.part").stat().st_size == 1_000_000
    server.cut = None
    fetch.fetch(server.address, target, quiet)
    assert target.read_bytes() == CONTENT
    assert server.seen[-1]["Range"] == "bytes=1000000-"
    assert names_in(tmp_path) == ["x.pkl"]


@pytest.mark.parametrize("etag", ['"two"', ""])
def test_another_version_is_begun_anew(server: Server, tmp_path: Path, etag: str) -> None:
    target, server.cut = tmp_path / "x.pkl", 1000
    with pytest.raises(DataError):
        fetch.fetch(server.address, target, quiet)
    server.cut, server.etag, server.content = None, etag, CONTENT[::-1]
    fetch.fetch(server.address, target, quiet)
    assert target.read_bytes() == CONTENT[::-1]


def test_what_has_come_of_another_address_does_not_count(server: Server, tmp_path: Path) -> None:
    (tmp_path / ".x.pkl.part").write_bytes(b"something else")
    (tmp_path / ".x.pkl.part.json").write_text(json.dumps({"address": "http://elsewhere", "version": server.etag}))
    fetch.fetch(server.address, tmp_path / "x.pkl", quiet)
    assert (tmp_path / "x.pkl").read_bytes() == CONTENT
    assert "Range" not in server.seen[0]


def test_downloads_that_cannot_be_had_are_told(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "x.pkl"
    server.status = 404
    with pytest.raises(DataError, match=r"cannot be downloaded \(HTTPError: Not Found\)"):
        fetch.fetch(server.address, target, quiet)
    server.status, server.lie = None, 10
    with pytest.raises(DataError, match=r"5120000 of 5120010 bytes|IncompleteRead"):
        fetch.fetch(server.address, target, quiet)
    server.lie = 0
    with pytest.raises(DataError, match="is another file than the one that was begun: run the same command again"):
        fetch.fetch(server.address, target, quiet)
    server.cut = 5000
    with pytest.raises(DataError):
        fetch.fetch(server.address, target, quiet)
    server.cut, server.shift = None, 1
    with pytest.raises(DataError, match="another part of the file than the one asked for"):
        fetch.fetch(server.address, target, quiet)
    server.shift, server.odd = 0, '"two"'  # in spite of If-Range
    with pytest.raises(DataError, match="another part of the file than the one asked for"):
        fetch.fetch(server.address, target, quiet)
    server.odd, server.content = "", b""
    with pytest.raises(DataError, match=r"answers with nothing \(status 200\)"):
        fetch.fetch(server.address, tmp_path / "y.pkl", quiet)
    server.content = CONTENT
    with pytest.raises(DataError, match="cannot be downloaded"):
        fetch.fetch("http://a..b/x.pkl", tmp_path / "z.pkl", quiet)
    monkeypatch.setattr(fetch, "MAX_BYTES", 1000)
    with pytest.raises(DataError, match="it is hardly what was meant"):
        fetch.fetch(server.address, target, quiet)
    assert not target.exists()
    for address in ("file:///etc/passwd", "ftp://x/y", "x.pkl"):
        with pytest.raises(ConfigError, match="no address of a file on the web"):
            fetch.fetch(address, target, quiet)


# ---------------------------------------------------------------- assets


@dataclass(frozen=True)
class Doubled(Asset):
    """Its file, twice; `fault` says what goes wrong."""

    address: str | None = None
    fault: str = ""
    calls: ClassVar[list[str]] = []

    def facts(self) -> AssetFacts:
        if self.fault == "facts":
            raise RuntimeError("no facts")
        return AssetFacts("a file", "free", "../x" if self.fault == "outside" else "w/x.bin", ("w/x.twice",), self.address)

    def prepare(self, source: Path, sha256: str, root: Path) -> tuple[str, ...]:
        self.calls.append(sha256)
        (root / "w").mkdir(exist_ok=True)
        (root / "w" / "x.twice").write_bytes(source.read_bytes() * 2)
        return ("doubled.",)

    def check(self, root: Path) -> None:
        content = (root / "w" / "x.twice").read_bytes()
        if content[: len(content) // 2] != content[len(content) // 2 :]:
            raise DataError("x.twice is damaged.")


def placed(root: Path, **settings: Any) -> Placed:
    asset = Doubled(**settings)
    return Placed("doubled", asset, asset.facts(), root)


def test_a_hash_is_recorded_on_first_use_and_checked_afterwards(tmp_path: Path) -> None:
    one = placed(tmp_path)
    assert one.state == "missing"
    (tmp_path / "w").mkdir()
    one.source.write_bytes(b"abc")
    assert one.state == "there"
    assert prepare(one, None, False, quiet) == ("doubled.",)
    assert one.state == "prepared"
    assert json.loads(one.record.read_text())["sha256"] == sha256_file(one.source)
    assert prepare(one, None, False, quiet) == ("doubled is prepared already.",)
    assert verify(one) == []
    one.source.write_bytes(b"abd")
    (told,) = verify(one)
    assert told.startswith(f"doubled: {one.source} has the SHA-256 {sha256_file(one.source)}, and ")
    one.files[0].unlink()
    with pytest.raises(DataError, match=r"get the file anew, or remove .*x\.bin\.sha256\.json if it is meant to be another"):
        prepare(one, None, False, quiet)
    assert one.state == "there"
    one.record.write_text("{}")
    with pytest.raises(DataError, match="is none of ddbench's"):
        prepare(one, None, False, quiet)
    assert verify(one) == [f"doubled: record {one.record} is none of ddbench's. Remove it: the hash is recorded again."]


def test_damage_is_told(tmp_path: Path) -> None:
    one, given = placed(tmp_path), tmp_path / "given"
    given.write_bytes(b"abc")
    prepare(one, given, False, quiet)
    assert not one.source.exists()  # the one given serves where it lies
    one.files[0].write_bytes(b"abcabd")
    assert verify(one) == ["doubled: x.twice is damaged."]
    with pytest.raises(DataError, match="damaged"):
        prepare(one, None, False, quiet)


def test_a_file_that_is_swapped_while_it_is_prepared_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one, given = placed(tmp_path), tmp_path / "given"
    given.write_bytes(b"abc")
    genuine = Doubled.prepare

    def swapped(self: Doubled, source: Path, sha256: str, root: Path) -> tuple[str, ...]:
        source.write_bytes(b"abd")
        return genuine(self, source, sha256, root)

    monkeypatch.setattr(Doubled, "prepare", swapped)
    with pytest.raises(DataError, match="given was changed while it was read: run again once it is in place"):
        prepare(one, given, False, quiet)
    assert not one.is_there
    assert not one.record.exists()
    monkeypatch.undo()
    prepare(one, given, False, quiet)
    assert one.files[0].read_bytes() == b"abdabd"


def test_what_a_killed_process_left_is_removed(tmp_path: Path) -> None:
    folder = tmp_path / "weights" / "stylegan-xl"
    folder.mkdir(parents=True)
    (folder / "mine.pkl").write_bytes(official("plain32"))
    left = [".mine.safetensors.01.tmp", ".mine.json.45.tmp", ".mine.pkl.sha256.json.6.tmp", ".mine.pkl.sha256.json.lock"]
    for name in (*left, ".other.json.89.tmp"):
        (folder / name).write_bytes(b"half")
    prepare(place("stylegan-xl/mine", tmp_path), None, False, quiet)
    kept = [".other.json.89.tmp", "mine.json", "mine.pkl", "mine.pkl.sha256.json", "mine.safetensors"]
    assert names_in(folder) == kept


def test_two_at_once_do_not_meet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While one prepares, another is told so, and takes nothing away from it."""
    one, given, genuine = placed(tmp_path), tmp_path / "given", Doubled.prepare
    given.write_bytes(b"abc")

    def meanwhile(self: Doubled, source: Path, sha256: str, root: Path) -> tuple[str, ...]:
        monkeypatch.setattr(Doubled, "prepare", genuine)
        (tmp_path / "w" / ".x.twice.0.tmp").write_bytes(b"half")
        with pytest.raises(DataError, match="'doubled' is being prepared by another process: wait for it"):
            prepare(one, given, False, quiet)
        assert names_in(tmp_path / "w") == [".x.bin.sha256.json.lock", ".x.twice.0.tmp"]
        return genuine(self, source, sha256, root)

    monkeypatch.setattr(Doubled, "prepare", meanwhile)
    assert prepare(one, given, False, quiet) == ("doubled.",)


def test_no_asset_has_the_name_of_another_ones_record_or_download(server: Server, tmp_path: Path) -> None:
    """What has come of x.pkl, and its mark, are hidden: x.pkl.part may be an asset, whose description is x.pkl.part.json."""
    server.cut = 1000
    with pytest.raises(DataError):
        fetch.fetch(server.address, tmp_path / "x.pkl", quiet)
    assert all(name.startswith(".x.pkl.") for name in names_in(tmp_path))
    assert place("stylegan-xl/x.pkl.part", tmp_path).state == "missing"
    with pytest.raises(ConfigError, match=r"would have the file .*x\.pkl\.sha256\.json, a name that ddbench keeps for itself"):
        place("stylegan-xl/x.pkl.sha256", tmp_path)


def test_nothing_is_downloaded_unless_told(server: Server, tmp_path: Path) -> None:
    one = placed(tmp_path, address=server.address)
    with pytest.raises(DataError, match=r"put its file at .*w/x\.bin, or name it with --from FILE\. It is published at http"):
        prepare(one, None, False, quiet)
    assert server.seen == []
    prepare(one, None, True, quiet)
    assert one.source.read_bytes() == CONTENT
    with pytest.raises(ConfigError, match="knows no address of 'doubled'"):
        prepare(placed(tmp_path / "other"), None, True, quiet)
    with pytest.raises(DataError, match="is no file: name the one that holds 'doubled'"):
        prepare(one, tmp_path / "nothing", False, quiet)


def test_broken_plugins_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry.assets, "names", lambda: ["doubled"])
    for fault, told in (("facts", "'doubled' is broken: RuntimeError: no facts"), ("outside", "outside of the data folder")):
        monkeypatch.setattr(registry.assets, "make", lambda name, fault=fault: Doubled(fault=fault))
        with pytest.raises(PluginError, match=told):
            place("doubled", tmp_path)


def test_names_are_helped_with(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"unknown asset 'imagenet128'\. Did you mean 'stylegan-xl/imagenet128'\?"):
        place("imagenet128", tmp_path)
    with pytest.raises(ConfigError, match="set DDBENCH_DATA"):
        place("stylegan-xl/imagenet128", None)
    assert "stylegan-xl/imagenet128" in list(assets.names(None))


# ---------------------------------------------------------------- the command


def test_ddbench_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    monkeypatch.setenv("DDBENCH_DATA", str(tmp_path))
    folder = tmp_path / "weights" / "stylegan-xl"
    folder.mkdir(parents=True)
    assert main(["data", "verify"]) == 0  # nothing is there
    assert capsys.readouterr().out == ""
    (folder / "mine.pkl").write_bytes(official("plain32"))
    (folder / "a name with spaces.pkl").touch()
    assert main(["data", "list", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["data"]
    states = {row["name"]: row["state"] for row in rows if row["kind"] != "file"}
    assert states["stylegan-xl/mine"] == "there"
    assert len(states) == len(known()) + 1 + len(registry.datasets.names())
    assert main(["data", "prepare", "stylegan-xl/mine"]) == 0
    out, said = capsys.readouterr()
    assert out.splitlines() == [str(folder / "mine.json"), str(folder / "mine.safetensors")]
    assert "mine: 9 layers, 32 px, unconditional." in said
    assert main(["data", "list", "--json"]) == 0
    rows = {row["name"]: row for row in json.loads(capsys.readouterr().out)["data"]}
    assert rows["mnist-5k"]["state"] == "there"
    assert rows["cifar10"]["state"] == "missing"
    assert "cifar-10-batches-py" in rows["cifar10"]["about"]
    assert (rows["stylegan-xl/mine"]["state"], rows["stylegan-xl/imagenet128"]["state"]) == ("prepared", "missing")
    assert rows["stylegan-xl/mine"]["bytes"] == sum((folder / f"mine.{end}").stat().st_size for end in ("json", "safetensors"))
    assert rows["stylegan-xl/imagenet128"]["where"] == str(folder / "imagenet128.pkl")
    assert main(["data", "list"]) == 0
    table = capsys.readouterr().out
    assert "| weights  | stylegan-xl/mine" in table
    assert table.count("cifar-10-batches-py") == 1
    assert main(["data", "verify"]) == 0
    assert capsys.readouterr().out == "stylegan-xl/mine: prepared\n"
    with (folder / "mine.safetensors").open("r+b") as file:
        file.seek(-1, 2)
        file.write(b"\x7f")
    assert main(["data", "verify", "stylegan-xl/mine", "stylegan-xl/imagenet16"]) == 1
    out, said = capsys.readouterr()
    assert out == "stylegan-xl/mine: damaged\nstylegan-xl/imagenet16: missing\n"
    assert "has the SHA-256" in said
    assert "imagenet16 is missing: put its file at" in said


def test_mistakes_of_ddbench_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    for command, told in (
        (["verify"], "set DDBENCH_DATA to the folder"),
        (["prepare", "stylegan-xl/imagenet16"], "set DDBENCH_DATA to the folder"),
        (["prepare", "cifar10"], "dataset 'cifar10' is not under DDBENCH_DATA"),
        (["prepare", "cifar10", "--from", "x"], "data set 'cifar10' is read as it is"),
        (["prepare", "cifar10", "--download"], "where to? Name a folder with --root, or set DDBENCH_DATA"),
        (["prepare", "nonsense", "--root", str(tmp_path)], "unknown asset 'nonsense'"),
        (["prepare", "stylegan-xl/a b", "--root", str(tmp_path)], "a generator's name is made of letters"),
    ):
        assert main(["data", *command]) == 2
        assert told in capsys.readouterr().err
    assert main(["data", "prepare", "mnist-5k"]) == 0
    assert capsys.readouterr().out == "installed\n"
    assert main(["data", "verify", "mnist-5k", "--root", str(tmp_path)]) == 0
    assert capsys.readouterr().out == "mnist-5k: whole\n"
    assert main(["data", "verify", "cifar10", "--root", str(tmp_path)]) == 1
    assert capsys.readouterr().out == "cifar10: missing\n"
    assert main(["data", "list"]) == 0
    assert "DDBENCH_DATA is not set" in capsys.readouterr().out
