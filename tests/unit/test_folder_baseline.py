"""The baseline `folder`: which images it takes of a folder of others, what pins them, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from image_trees import class_tree
from test_grid import hash_of

from ddbench.cli import main
from ddbench.compute.knowledge import saw_of_set
from ddbench.compute.run import DistillRun, open_run
from ddbench.errors import BenchError, ConfigError, DataError, Faults
from ddbench.grid.do_set import built
from ddbench.grid.planning import check_plans
from ddbench.ops.pictures import decode
from ddbench.plan import SetPlan
from ddbench.refs import PluginRef
from ddbench.suite.load import load
from ddbench.suite.reader import Suite
from ddbench.testing import toy_data, toy_run
from ddbench_plugins.baselines.folder import ImagesOfOthers
from made_folders import CLASSES, folders, png

OTHERS = ImagesOfOthers("others")


@pytest.fixture
def run(tmp_path: Path) -> DistillRun:
    """Of three classes with four images each at 8 px; IPC 2."""
    folders(tmp_path / "others")
    return replace(toy_run(), folder=tmp_path)


def pixels_of(run: DistillRun, baseline: ImagesOfOthers = OTHERS) -> list[bytes]:
    made = baseline.build(run)
    assert made.classes.tolist() == [label for label in range(3) for _ in range(run.ipc)]
    assert torch.equal(made.labels, torch.eye(3).repeat_interleave(run.ipc, 0))
    return [image.tobytes() for image in (run.spec.denormalise(made.images) * 255).round().to(torch.uint8).numpy()]


def images_of(*seeds: int, side: int = 8) -> list[bytes]:
    return [decode(png(seed), side)[:1].tobytes() for seed in seeds]


def test_where_a_class_has_ipc_images_every_seed_takes_them_all(run: DistillRun) -> None:
    run = replace(run, ipc=4)
    assert pixels_of(run) == pixels_of(replace(run, root=("distill", 1))) == wanted_of((0, 1, 2))


def test_where_it_has_more_the_seed_draws_different_ones_of_each_class(run: DistillRun) -> None:
    drawn = [pixels_of(replace(run, root=("distill", seed))) for seed in range(6)]
    assert len({tuple(one) for one in drawn}) > 1
    for one in drawn:
        for label in range(3):
            own = one[2 * label : 2 * label + 2]
            assert len(set(own)) == 2
            assert set(own) <= set(images_of(*(100 * label + number for number in range(4))))


def test_images_are_resized_and_cropped_as_real_ones_are(run: DistillRun) -> None:
    assert run.folder
    for name in CLASSES:
        (run.folder / "others" / name / "0.png").write_bytes(png(7, side=19))
    assert pixels_of(replace(run, ipc=4))[0] == decode(png(7, side=19), 8)[:1].tobytes()


def spec_of(run: DistillRun, **changes: Any) -> DistillRun:
    spec = replace(run.spec, **changes)
    return replace(run, data=toy_data(spec), ipc=4)


def wanted_of(order: Sequence[int]) -> list[bytes]:
    """All images of the folders that were made at these places."""
    return images_of(*(100 * place + number for place in order for number in range(4)))


def test_class_folders_are_named_by_name_id_or_number_and_others_are_passed_over(tmp_path: Path) -> None:
    run = spec_of(replace(toy_run(), folder=tmp_path), class_names=("b", "a", "c"), class_ids=("n2", "n1", "n3"))
    for kind, names in (("names", ("b", "a", "c")), ("ids", ("n2", "n1", "n3")), ("numbers", ("new2", "new0", "new01"))):
        folders(tmp_path / kind, names)
        more = folders(tmp_path / f"{kind} and more", (*names, "other"))
        order = (1, 2, 0) if kind == "numbers" else (0, 1, 2)
        wanted = wanted_of(order)
        assert pixels_of(run, ImagesOfOthers(kind)) == wanted
        if kind == "numbers":  # somebody else's numbers
            with pytest.raises(DataError, match=r"no images in folders for these classes of 'toy': b, a, c\. Name them"):
                ImagesOfOthers(more.name).build(run)
        else:
            assert pixels_of(run, ImagesOfOthers(more.name)) == wanted
    (tmp_path / "names" / "a").rename(tmp_path / "names" / "images")
    (tmp_path / "names" / "a").mkdir()
    (tmp_path / "names" / "images").rename(tmp_path / "names" / "a" / "images")
    assert pixels_of(run, ImagesOfOthers("names")) == wanted_of((0, 1, 2))


def test_the_pin_hangs_on_every_name_and_byte_and_on_nothing_else(run: DistillRun) -> None:
    assert run.folder
    pins, where = OTHERS.pins(run.folder), run.folder / "others"
    assert pins == {"sha256": pins["sha256"], "saw": ["unknown"]}
    (where / "class 0" / "notes.txt").write_text("no image")
    (where / "class 0" / "0.png").touch()
    (where / "empty").mkdir()
    assert OTHERS.pins(run.folder) == pins
    pinned, seen = replace(OTHERS, sha256=pins["sha256"]), {pins["sha256"]}
    assert pinned.pins(run.folder) == pins
    assert pixels_of(run, pinned) == pixels_of(run)
    image = where / "class 1" / "2.png"
    renamed = where / "class 1" / "20.png"
    for change in (lambda: image.write_bytes(png(9)), lambda: image.rename(renamed), lambda: folders(where, ("d",))):
        change()
        seen.add(OTHERS.pins(run.folder)["sha256"])
    assert len(seen) == 4
    with pytest.raises(DataError, match=r"the images in 'others' have the SHA-256 [0-9a-f]{64}, not "):
        pinned.pins(run.folder)
    with pytest.raises(DataError, match="have changed since they were planned"):
        pinned.build(run)


def remove(where: Path) -> None:
    for path in (where / "class 1").iterdir():
        path.unlink()


def cut(where: Path, *names: str) -> None:
    for name in names:
        path = where / name
        path.write_bytes(path.read_bytes()[:40])


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda where: (where / "class 2" / "3.png").unlink(), r"ipc 4 is more than the 3 images in .*class 2: lower it, or put"),
        (remove, r"no images in folders for these classes of 'toy': class 1\. Name them"),
        (lambda where: cut(where, "class 0/1.png"), r"1 image of 12 cannot be used: \S*others/class 0/1\.png \(.*\)\. Make"),
        (lambda where: cut(where, *(f"class 1/{n}.png" for n in range(4))), r"4 images of 12 .*1/2\.png .* and 1 more\."),
        (lambda where: (where / "class 0" / "0.png").write_bytes(png(1, channels=3)), "it has colours, and the data set is grey"),
        (lambda where: where.rename(where.with_name("gone")), r"others is not there: put a folder of images for each class"),
        (lambda where: [p.rename(p.with_suffix(".txt")) for p in where.rglob("*.png")], "holds no images in folders by class"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said_in_a_sentence(run: DistillRun, change: Any, told: str) -> None:
    assert run.folder
    change(run.folder / "others")
    with pytest.raises(BenchError, match=told):
        OTHERS.build(replace(run, ipc=4))


@pytest.mark.parametrize("folder", ["", "/tmp", "../others", "a/../../others"])
def test_a_folder_elsewhere_is_refused(run: DistillRun, folder: str) -> None:
    with pytest.raises(ConfigError, match="is named by its path below the data folder"):
        ImagesOfOthers(folder).check(run)


def test_images_that_files_cannot_give_are_refused(run: DistillRun) -> None:
    for shape in ((2, 8, 8), (1, 8, 10)):
        odd = replace(run, data=toy_data(replace(run.spec, shape=shape, mean=(0.5,) * shape[0], std=(0.5,) * shape[0])))
        with pytest.raises(ConfigError, match="and files of images give square ones, grey or in colour"):
            OTHERS.check(odd)
    with pytest.raises(DataError, match="DDBENCH_DATA is not set"):
        OTHERS.check(replace(run, folder=None))


# ---------------------------------------------------------------- in suites

SUITE = """
schema = 1
name = "others"
protocol = "smoke-1"
subsets = [{ name = "image-folder", folder = "zoo", side = 8 }]
baselines = ["folder/sets/made", { name = "folder", folder = "sets/made", saw = ["train", "external-images"] }]
ipc = [IPC]
repeats = 1
networks = [{ name = "convnet", width = 4 }]
backbone = { name = "convnet", width = 4 }
"""


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A data folder with a data set `zoo` and images of its classes in `sets/made`."""
    class_tree(tmp_path / "data" / "zoo", ("ant", "bee"), {"train": 6, "val": 2})
    folders(tmp_path / "data" / "sets" / "made", ("bee", "ant"), each=3, side=12, channels=3)
    monkeypatch.setenv("DDBENCH_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("DDBENCH_CACHE", str(tmp_path / "decoded"))
    return tmp_path / "data"


def read(root: Path, text: str = SUITE, lenient: bool = False) -> Suite:
    path = root.parent / "suite.toml"
    path.write_text(text.replace("IPC", "2"))
    return load(str(path), hash_of, root, lenient)


def identities(ref: PluginRef, root: Path | None) -> Any:
    """Without decoding."""
    return SimpleNamespace(train_counts=(6, 6))


def plans(root: Path) -> list[SetPlan]:
    return [cell.set for cell in read(root).cells]


def test_the_content_and_what_it_saw_are_in_the_key_and_not_in_the_name(root: Path) -> None:
    first, second = plans(root)
    assert [plan.method for plan in (first, second)] == ["folder/sets/made"] * 2
    assert first.key != second.key
    assert [saw_of_set(plan, ()) for plan in (first, second)] == [("unknown",), ("train", "external-images")]
    assert first.key == plans(root)[0].key
    (root / "sets" / "made" / "ant" / "0.png").write_bytes(png(5, channels=3))
    assert {plan.key for plan in plans(root)}.isdisjoint({first.key, second.key})
    nothing = PluginRef.resolve("baselines", "folder", {"folder": "x", "saw": []})
    assert nothing.make().saw == frozenset()
    with pytest.raises(ConfigError, match=r"setting 'saw' must be a list of words among 'train', .*, got \['trian'\] \(list\)\."):
        PluginRef.resolve("baselines", "folder", {"folder": "x", "saw": ["trian"]})


def test_a_missing_folder_is_a_fault_of_the_suite_and_a_lenient_reader_goes_on(root: Path) -> None:
    (root / "sets" / "made").rename(root / "gone")
    with pytest.raises(Faults) as caught:
        read(root)
    (fault,) = caught.value.faults
    assert fault.endswith("sets/made is not there: put a folder of images for each class into it.")
    suite = read(root, lenient=True)
    assert len(suite.cells) == 2
    assert all(suite.lacks(cell.set) for cell in suite.cells)


@pytest.mark.parametrize("folder", ["zoo/val", "zoo/train", "zoo", "elsewhere"])
def test_images_of_the_data_set_itself_are_refused_wherever_they_are_named(root: Path, folder: str) -> None:
    (root / "elsewhere").symlink_to(root / "zoo" / "val")
    folders(root / "zoo", ("ant", "bee"), channels=3)  # images of others, beside the data set's
    text = SUITE.replace('"folder/sets/made",', f'"folder/{folder}",').replace(', saw = ["train", "external-images"]', "")
    suite = read(root, text.replace(', { name = "folder", folder = "sets/made" }', ""))
    with pytest.raises(Faults, match=r"holds images of 'zoo' itself: name one of images that others have made\."):
        check_plans(suite.cells, identities, root)
    plan = suite.cells[0].set
    data = toy_data(plan.dataset.make().spec())
    assert plan.baseline
    with pytest.raises(ConfigError, match="holds images of 'zoo' itself"):
        built(plan.baseline, open_run(plan, data, torch.device("cpu"), {}, root))


def test_a_baseline_whose_files_are_missing_is_not_asked_by_who_only_looks(root: Path) -> None:
    text = SUITE.replace('"folder/sets/made",', '"folder/none", "latent-clusters/dit", "ddim-groups/dit",')
    suite = read(root, text, lenient=True)
    missing = dict(suite.missing)
    check_plans(suite.cells, identities, root, missing)
    told = " ".join(missing.values())
    assert "data/none is not there: put a folder of images for each class into it." in told
    assert "the pipeline 'dit' lacks the file" in told
    with pytest.raises(Faults, match="the pipeline 'dit' is not pinned: reading a suite does that"):
        check_plans(suite.cells, identities, root, {})


@pytest.mark.long
def test_a_suite_runs_on_it_and_its_plan_again(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    suite, store = tmp_path / "suite.toml", tmp_path / "store"
    suite.write_text(SUITE.replace("IPC", "2, 3, 4"))
    assert main(["run", str(suite), "--store", str(store)]) == 2
    assert "on 'image-folder/zoo(side=8)', ipc 4: ipc 4 is more than the" in capsys.readouterr().err
    suite.write_text(SUITE.replace("IPC", "3").replace('"folder/sets/made", ', ""))
    assert main(["run", str(suite), "--store", str(store), "--workers", "1", "--device", "cpu", "--quiet"]) == 0
    (folder,) = (store / "sets").iterdir()
    record = json.loads((folder / "record.json").read_text())
    assert record["saw"] == ["train", "external-images"]
    capsys.readouterr()
    (root / "sets" / "made" / "ant" / "0.png").write_bytes(png(5, channels=3))
    assert main(["run", "--plan", str(folder / "plan.json"), "--store", str(tmp_path / "again"), "--workers", "1"]) == 2
    assert "the images in 'sets/made' have the SHA-256" in capsys.readouterr().err
