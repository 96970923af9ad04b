"""`ddbench plan`: what is missing comes first, what is unknown is called so, and nothing is written by looking."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from image_trees import class_tree
from test_image_runs import SUITE, WNIDS

from ddbench.cli import main
from ddbench.durations import duration
from ddbench.grid.jobs import Lister
from ddbench.grid.planning import Identities, with_needs, with_subsets
from ddbench.plan import short
from ddbench.results.contents import NOTHING
from ddbench.results.store import Store
from ddbench.suite import load
from ddbench.testing.datasets import dataset_says_whether_it_is_prepared
from ddbench.testing.toys import toy_run
from ddbench_plugins.datasets.image_folder import image_folder

Capture = pytest.CaptureFixture[str]


@pytest.fixture
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A suite on a folder of images that nobody has decoded, in the working folder."""
    class_tree(tmp_path / "data" / "photos", WNIDS, {"train": 6, "val": 2})
    monkeypatch.setenv("DDBENCH_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("DDBENCH_CACHE", raising=False)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos.toml").write_text(SUITE)
    return tmp_path


def as_json(capsys: Capture, *words: str) -> tuple[int, dict[str, Any]]:
    capsys.readouterr()
    code = main(["plan", *words, "--json"])
    return code, json.loads(capsys.readouterr().out)


def files_under(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


def test_planning_decodes_no_images(photos: Path, capsys: Capture) -> None:
    before = files_under(photos)
    code, shown = as_json(capsys, "photos.toml")
    assert files_under(photos) == before
    assert code == 0  # nothing is missing
    assert shown["missing"] == []
    assert {cell["key"] for cell in shown["cells"]} == {"unknown"}
    told = "the 25 files of 'image-folder/photos(side=16)' are not decoded yet, so keys are unknown"
    assert shown["undecoded"] == [f"{told}: the first run decodes them, and so does `ddbench prepare`."]
    assert main(["plan", "photos.toml"]) == 0
    out = capsys.readouterr().out
    assert f"Not known yet:\n- {told}" in out
    assert "Run what is missing with: ddbench run photos.toml" in out
    assert main(["plan", "photos.toml", "--jobs"]) == 2  # their names hang on the images
    assert "are not decoded yet" in capsys.readouterr().err
    assert files_under(photos) == before


def test_decoded_images_are_known_even_where_only_their_hash_is_left(photos: Path, capsys: Capture) -> None:
    identities = Identities()
    keys = {short(cell.set.key) for cell in load.load("photos.toml", identities, photos / "data").cells}
    code, shown = as_json(capsys, "photos.toml")
    assert (code, shown["undecoded"]) == (0, [])
    assert {cell["key"] for cell in shown["cells"]} == keys


def test_a_data_set_that_is_not_decoded_says_so(photos: Path) -> None:
    folder, run = image_folder("photos", side=16), toy_run()
    assert not folder.is_prepared(photos / "data")
    dataset_says_whether_it_is_prepared(folder, run)  # decodes it
    assert folder.is_prepared(photos / "data")
    shutil.rmtree(photos / "data" / "cache")
    assert not folder.is_prepared(photos / "data")


@pytest.mark.slow
def test_what_is_missing_comes_first_and_long_tables_only_where_asked(
    capsys: Capture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("DDBENCH_DATA", raising=False)
    monkeypatch.chdir(tmp_path)
    assert main(["plan", "hpd-table7"]) == 1
    out = capsys.readouterr().out
    first, _, tables = out.partition("What is missing takes, one job after the other:")
    assert len(first.splitlines()) < 12
    assert first.count("needs ImageNet under DDBENCH_DATA") == 1
    assert "(The same of: imagenet-b, imagenet-c, imagenet-d, imagenet-e.)" in first
    assert "generator 'stylegan-xl/imagenet128' reads files" in first
    assert "| imagenet-e |" in tables
    shared = [line for line in tables.splitlines() if line.startswith("| classifier")]
    assert len(shared) == 5
    assert all(line.rstrip(" |").endswith("unknown") for line in shared)
    assert {line.split("|")[2].strip() for line in shared} == {f"imagenet-{letter}" for letter in "abcde"}
    assert main(["plan", "hpd-table1"]) == 1
    assert "Sets and their judgements: 310 rows, which --cells shows." in capsys.readouterr().out
    assert main(["plan", "hpd-table1", "--cells"]) == 1
    out = capsys.readouterr().out
    assert out.count("needs ImageNet under DDBENCH_DATA") == 10
    assert out.count("| hpd") + out.count("/ hpd") >= 90


TAUGHT = """
schema = 1
name = "taught"
protocol = "smoke-1"
subsets = ["mnist-5k"]
losses = [{ name = "bn-statistics", teacher_weights = "mine.pth", teacher_sha256 = "00" }]
spaces = ["pixel"]
backbone = { name = "convnet", width = 4, depth = 1, norm = "batch" }
networks = [{ name = "convnet", width = 4, depth = 1 }]
baselines = []
[distill]
steps = 1
"""


@pytest.mark.slow
def test_the_missing_file_of_a_loss_is_listed_too(photos: Path, capsys: Capture) -> None:
    (photos / "taught.toml").write_text(TAUGHT)
    code, shown = as_json(capsys, "taught.toml")
    assert code == 1
    assert [sentence.partition(":")[0] for sentence in shown["missing"]] == ["the weights 'mine.pth' cannot be found"]
    assert {entry["key"] for entry in (*shown["cells"], *shown["shared"])} == {"unknown"}
    assert main(["run", "taught.toml"]) == 2
    assert "the weights 'mine.pth' cannot be found: put this file at" in capsys.readouterr().err


def test_running_jobs_are_called_as_boards_call_their_data(photos: Path, tmp_path: Path) -> None:
    """A copy differs from the original."""
    (photos / "data" / "photos" / "train" / WNIDS[0] / "0.jpg").write_bytes(b"no image")
    (photos / "copy.toml").write_text(SUITE.replace("side = 16 }", 'side = 16, unreadable = "skip" }'))
    identities = Identities()
    suite = load.load("copy.toml", identities, photos / "data")
    dataset = suite.cells[0].set.dataset
    label = identities(dataset, photos / "data").label(dataset.label)
    assert label != dataset.label
    planned = with_subsets(with_needs(suite.cells), identities, photos / "data")
    titles = [work.job.title for work in Lister(planned, Store(tmp_path / "store"), NOTHING, "copy").todo().work]
    assert len(titles) == 6
    assert all(label in title for title in titles)


@pytest.mark.parametrize(
    ("seconds", "told"),
    [(0.0, "1 s"), (0.4, "1 s"), (40.4, "40 s"), (89.4, "89 s"), (90.0, "2 min"), (720.0, "12 min"), (5399.0, "90 min"),
     (5400.0, "1.5 h"), (12_240.0, "3.4 h"), (359_999.0, "100.0 h"), (360_000.0, "100 h"), (7_200_000.0, "2,000 h")],
)  # fmt: skip
def test_durations_have_the_unit_that_suits_them(seconds: float, told: str) -> None:
    assert duration(seconds) == told
