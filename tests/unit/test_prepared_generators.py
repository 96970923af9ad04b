"""Generators from official files: converted once, pinned by hash, told in one sentence where something is wrong."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from golden_stylegan import CASES, describe, tensor, weights
from official_pickles import Writer, discriminator, generator, official
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from test_grid import hash_of

from ddbench import registry
from ddbench.cli import main
from ddbench.data.weights import find_prepared
from ddbench.errors import ConfigError, DataError, Faults
from ddbench.files import sha256_file
from ddbench.plan import SetPlan
from ddbench.refs import PluginRef
from ddbench.suite import load as grid
from ddbench.suite.reader import Suite
from ddbench.testing import run_checks, toy_run
from ddbench_plugins.assets.stylegan_xl import StyleganWeights
from ddbench_plugins.datasets.cifar10 import BATCHES, CLASSES, FOLDER, META
from ddbench_plugins.generators.stylegan_xl import StyleganXL
from ddbench_plugins.stylegan import prepared
from ddbench_plugins.stylegan.catalogue import known

PRECISIONS = ("float32", "bfloat16")
SUITE = """
schema = 1
name = "small"
protocol = "smoke-1"
subsets = ["cifar10"]
losses = ["dm"]
spaces = [{ name = "glad", layer = 4 }]
generator = "stylegan-xl/mine"
backbone = { name = "convnet", width = 4 }
networks = [{ name = "convnet", width = 4 }]
baselines = []
[distill]
steps = 2
"""


def brought(root: Path, case: str = "sr32", name: str = "mine") -> Path:
    """An official file where it belongs."""
    path = root / "weights" / "stylegan-xl" / f"{name}.pkl"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(official(case))
    return path


def prepare(root: Path, case: str = "sr32", name: str = "mine") -> Path:
    """The description of a prepared generator."""
    source = brought(root, case, name)
    StyleganWeights(name).prepare(source, sha256_file(source), root)
    source.unlink()  # and never opened again
    return source.with_suffix(".json")


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


# ---------------------------------------------------------------- conversion


@pytest.mark.parametrize("case", CASES)
def test_a_converted_generator_is_the_official_one(tmp_path: Path, case: str) -> None:
    target = prepare(tmp_path, case)
    found, tensors = prepared.load(target, prepared.pin(prepared.read(target)))
    wanted = weights(case)
    assert msgspec.structs.replace(found, source=None, tensors=None) == describe(case)
    assert tensors.keys() == wanted.keys()
    assert all(torch.equal(tensors[name], wanted[name]) for name in wanted)
    assert tensors["synthesis.input.freqs"].dtype == torch.float32
    assert [path.name for path in sorted(target.parent.iterdir())] == ["mine.json", "mine.safetensors"]
    with safe_open(target.with_suffix(".safetensors"), framework="np") as file:  # the library takes it, and finds all there
        assert set(file.keys()) == set(wanted)


def test_equal_files_are_equal_whatever_their_names(tmp_path: Path) -> None:
    one, other = prepare(tmp_path / "a"), prepare(tmp_path / "b", name="another")
    assert one.with_suffix(".safetensors").read_bytes() == other.with_suffix(".safetensors").read_bytes()
    assert prepared.pin(prepared.read(one)) == prepared.pin(prepared.read(other))
    assert prepared.pin(prepared.read(one)) != prepared.pin(prepared.read(prepare(tmp_path / "c", "plain32")))


def test_the_pin_hangs_on_every_setting(tmp_path: Path) -> None:
    target = prepare(tmp_path)
    before = prepared.pin(prepared.read(target))
    told = json.loads(target.read_text())
    told["output_scale"] = 0.5
    target.write_text(json.dumps(told))
    assert prepared.pin(prepared.read(target)) != before
    with pytest.raises(DataError, match="is not the generator that was planned"):
        prepared.load(target, before)


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    target = prepare(tmp_path)
    before = content(tmp_path)
    assert prepare(tmp_path) == target  # the same again
    assert content(tmp_path) == before
    with pytest.raises(DataError, match=r"mine\.json was made of another file: remove both, or prepare this under another name"):
        prepare(tmp_path, "plain32")
    brought(tmp_path).unlink()
    assert content(tmp_path) == before
    target.unlink()
    before = content(tmp_path)
    with pytest.raises(DataError, match=r"mine\.safetensors is there and holds something else"):
        prepare(tmp_path, "plain32")
    brought(tmp_path).unlink()
    assert content(tmp_path) == before


def test_two_at_once_do_not_meet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While one writes, another is told so, and takes nothing away from it."""
    source, genuine, told = brought(tmp_path), prepared._write, []

    def meanwhile(*arguments: Any) -> str:
        monkeypatch.setattr(prepared, "_write", genuine)
        with pytest.raises(DataError, match=r"mine\.json is being prepared by another process: wait for it") as caught:
            StyleganWeights("mine").prepare(source, "0" * 64, tmp_path)
        told.append(caught.value)
        return genuine(*arguments)

    monkeypatch.setattr(prepared, "_write", meanwhile)
    StyleganWeights("mine").prepare(source, "0" * 64, tmp_path)
    assert len(told) == 1
    prepared.check(source.with_suffix(".json"))


def test_the_description_that_is_checked_is_the_one_that_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is read once: another in its place meanwhile is not looked at."""
    target = prepare(tmp_path)
    wanted, genuine, calls = prepared.pin(prepared.read(target)), prepared.read, []

    def once(path: Path) -> Any:
        found = genuine(path)
        calls.append(path)
        path.write_text("{}")
        return found

    monkeypatch.setattr(prepared, "read", once)
    assert prepared.load(target, wanted)[0].num_ws == 13
    assert calls == [target]


def test_tensors_that_are_swapped_while_they_are_read_do_not_pass(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = prepare(tmp_path)
    wanted, genuine = prepared.pin(prepared.read(target)), prepared.mapped

    def swapped(path: Path) -> Any:
        content = path.read_bytes()
        path.unlink()
        path.write_bytes(content[:-1] + b"\x7f")
        return genuine(path)

    monkeypatch.setattr(prepared, "mapped", swapped)
    with pytest.raises(DataError, match="was changed while it was read"):
        prepared.load(target, wanted)


def test_a_file_of_something_else_leaves_nothing_behind(tmp_path: Path) -> None:
    path = brought(tmp_path)
    for bytes_, told in (
        (Writer().finish({"D": discriminator()}), "holds a discriminator and no generator"),
        (path.read_bytes()[:-5000], "damaged, cut short"),
        (pickle.dumps({"state_dict": 1}), "holds state_dict and no generator"),
    ):
        path.write_bytes(bytes_)
        with pytest.raises(DataError, match=told):
            StyleganWeights("mine").prepare(path, "0" * 64, tmp_path)
        assert [file.name for file in path.parent.iterdir()] == ["mine.pkl"]


def test_numbers_that_are_not_finite_are_refused_before_anything_is_written(tmp_path: Path) -> None:
    broken = weights("plain32")
    broken["synthesis.L0_36_6.weight"][0, 0, 0, 0] = float("nan")
    path = brought(tmp_path)
    path.write_bytes(Writer().finish({"G_ema": generator("plain32", broken)}))
    with pytest.raises(DataError, match=r"the tensor 'synthesis\.L0_36_6\.weight' in mine holds numbers that are not finite"):
        StyleganWeights("mine").prepare(path, "0" * 64, tmp_path)
    assert [file.name for file in path.parent.iterdir()] == ["mine.pkl"]


def test_the_catalogue_asserts_what_it_expects(tmp_path: Path) -> None:
    path = brought(tmp_path, name="imagenet128")
    with pytest.raises(DataError, match=r"not the published 'imagenet128': its img_resolution is 32, and 128 is expected\."):
        StyleganWeights("imagenet128").prepare(path, "0" * 64, tmp_path)
    told = StyleganWeights("cifar10").prepare(path, "0" * 64, tmp_path)  # 13 codes, 10 classes, 32 px
    assert told == ("cifar10: 12 layers, 32 px, 10 classes.",)


def test_the_catalogue_is_whole() -> None:
    found = known()
    assert len(found) == 14
    assert {name: entry.expected["num_ws"] for name, entry in found.items() if "num_ws" in entry.expected} == {
        "imagenet16": (12,), "imagenet32": (17,), "imagenet64": (22,), "imagenet128": (27,), "imagenet256": (32,),
        "imagenet512": (37,), "cifar10": (13, 17),
    }  # fmt: skip
    for name, entry in found.items():
        assert entry.address == f"https://s3.eu-central-1.amazonaws.com/avg-projects/stylegan_xl/models/{name}.pkl"
        side = int("".join(letter for letter in name if letter.isdigit())) if name != "cifar10" else 32
        assert entry.expected["img_resolution"] == (side,)
        assert StyleganWeights(name).facts().source == f"weights/stylegan-xl/{name}.pkl"
    with pytest.raises(ConfigError, match="name is made of letters"):
        StyleganWeights("../x")


# ---------------------------------------------------------------- what is read of it


def damaged(target: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    told = json.loads(target.read_text())
    change(told)
    target.write_text(json.dumps(told))


def other_shapes(target: Path) -> None:
    """Tensors of other shapes, with the right hash."""
    tensors = load_file(target.with_suffix(".safetensors"))
    tensors["mapping.fc0.weight"] = torch.ones(3, 3)
    save_file(tensors, target.with_suffix(".safetensors"))
    sha256 = sha256_file(target.with_suffix(".safetensors"))
    damaged(target, lambda told: told["tensors"].update(sha256=sha256))


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda target: target.unlink(), "is missing"),
        (lambda target: target.write_text("{"), "is not one of a StyleGAN generator"),
        (lambda target: damaged(target, lambda told: told.update(z_dim="16")), r"Expected `int`, got `str` - at `\$\.z_dim`"),
        (lambda target: damaged(target, lambda told: told.update(more=1)), "unknown field `more`"),
        (lambda target: damaged(target, lambda told: told["tensors"].update(file="../x")), "not one of a StyleGAN"),
        (lambda target: damaged(target, lambda told: told.update(tensors=None)), "names no file of tensors"),
        (lambda target: damaged(target, lambda told: told.update(num_ws=9)), "does not fit together"),
        (lambda target: target.with_suffix(".safetensors").unlink(), r"mine\.safetensors is missing, and mine\.json is there"),
        (lambda target: target.with_suffix(".safetensors").write_bytes(b"x"), r"has the SHA-256 .*, and mine\.json says"),
        (other_shapes, r"the tensor 'mapping\.fc0\.weight' of stylegan-xl/mine must have the shape \[64, 32\], got \[3, 3\]"),
    ],
)
def test_what_is_damaged_gets_a_sentence(tmp_path: Path, change: Callable[[Path], Any], sentence: str) -> None:
    change(prepare(tmp_path))
    with pytest.raises(DataError, match=sentence):
        load(tmp_path)


def load(root: Path) -> Any:
    """As a run does."""
    run = replace(toy_run(channels=3, side=32, num_classes=10), folder=root)
    plugin = StyleganXL("mine", **StyleganXL("mine").pins(root))
    return plugin.load(run)


def test_prepared_files_are_found_by_name(tmp_path: Path) -> None:
    target = prepare(tmp_path)
    assert find_prepared(tmp_path, "stylegan-xl/mine.json") == target
    for wrong in ("../x", "/etc/passwd", "a/b/c/d", "", "stylegan-xl/", "a/../b", ".hidden"):
        with pytest.raises(ConfigError, match="must be named by file alone, or by one folder or two and a file"):
            find_prepared(tmp_path, wrong)
    with pytest.raises(DataError, match=r"'stylegan-xl/other\.json' cannot be found"):
        find_prepared(tmp_path, "stylegan-xl/other.json")
    with pytest.raises(DataError, match="set DDBENCH_DATA"):
        find_prepared(None, "stylegan-xl/mine.json")


def test_the_loaded_generator_gives_the_golden_image(tmp_path: Path) -> None:
    prepare(tmp_path)
    loaded = load(tmp_path)
    with torch.no_grad():
        pixels = loaded.synthesize(tensor("sr32", "syn/ws"), None, 0, loaded.depth)
    wanted = tensor("sr32", "syn/img") / 2 + 0.5
    assert float((pixels - wanted).abs().max()) <= 3e-4 * float(wanted.std())


@pytest.mark.slow
def test_it_keeps_the_contract(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prepare(tmp_path, "plain32")
    monkeypatch.setenv("DDBENCH_DATA", str(tmp_path))
    plugin = StyleganXL("mine", **StyleganXL("mine").pins(tmp_path))
    outcome = run_checks("generators", plugin, replace(toy_run(channels=3, side=32), folder=tmp_path))
    assert outcome.skipped == {}


# ---------------------------------------------------------------- in a suite


def suite(tmp_path: Path, text: str = SUITE, root: Path | None = None, lenient: bool = False) -> Suite:
    path = tmp_path / "suite.toml"
    path.write_text(text)
    return grid.load(str(path), hash_of, root, lenient)


def plan_of(found: Suite) -> SetPlan:
    assert (found.broken, dict(found.missing)) == ((), {})
    return found.cells[0].set


def test_the_plan_has_the_content_and_the_label_does_not(tmp_path: Path) -> None:
    target = prepare(tmp_path)
    plan = plan_of(suite(tmp_path, root=tmp_path))
    assert plan.method == "dm / glad(layer=4) / stylegan-xl/mine"
    assert plan.generator is not None
    facts = {"num_layers": 12, "img_resolution": 32, "img_channels": 3, "c_dim": 10}
    assert facts.items() <= plan.generator.settings.items()
    assert plan.generator.settings["sha256"] == prepared.pin(prepared.read(target))
    named = (SUITE.replace('"stylegan-xl/mine"', f'{{ name = "stylegan-xl/mine", precision = "{it}" }}') for it in PRECISIONS)
    again, other = (plan_of(suite(tmp_path, text, tmp_path)) for text in named)
    assert again.key == plan.key
    assert other.key != plan.key
    assert other.method == "dm / glad(layer=4) / stylegan-xl/mine(precision=bfloat16)"
    target.unlink()
    target.with_suffix(".safetensors").unlink()
    changed = {f"synthesis.{name}/conv_clamp": 100 for name in ("L0_36_8", "L1_36_8")}
    brought(tmp_path).write_bytes(official("sr32", **changed))
    StyleganWeights("mine").prepare(target.with_suffix(".pkl"), "0" * 64, tmp_path)
    assert plan_of(suite(tmp_path, root=tmp_path)).key != plan.key


def test_a_suite_may_pin_the_content_itself(tmp_path: Path) -> None:
    pin = prepared.pin(prepared.read(prepare(tmp_path)))
    named = f'{{ name = "stylegan-xl/mine", sha256 = "{pin}" }}'
    plan = plan_of(suite(tmp_path, SUITE.replace('"stylegan-xl/mine"', named), tmp_path))
    assert plan.key == plan_of(suite(tmp_path, root=tmp_path)).key
    assert plan.method == "dm / glad(layer=4) / stylegan-xl/mine"
    told = f"has the pin {pin}, and 'sha256' says {'0' * 64}: prepare that file, or mend the setting"
    with pytest.raises(Faults, match=told):
        suite(tmp_path, SUITE.replace('"stylegan-xl/mine"', named.replace(pin, "0" * 64)), tmp_path)


def test_what_is_missing_is_told_and_the_rest_is_planned(tmp_path: Path) -> None:
    found = suite(tmp_path, SUITE.replace("spaces = [", 'spaces = ["pixel", '), tmp_path, lenient=True)
    assert [cell.set.method for cell in found.cells] == ["dm / pixel", "dm / glad(layer=4) / stylegan-xl/mine"]
    assert [found.lacks(cell.set) for cell in found.cells] == [False, True]
    path = tmp_path / "weights" / "stylegan-xl" / "mine.json"
    told = f"generator 'stylegan-xl/mine' is not prepared ({path} is missing): run: ddbench data prepare stylegan-xl/mine"
    assert list(found.missing.values()) == [told]
    with pytest.raises(Faults, match="is not prepared"):
        suite(tmp_path, root=tmp_path)
    (told,) = suite(tmp_path, lenient=True).missing.values()
    assert told == "generator 'stylegan-xl/mine' reads files of your data folder: set DDBENCH_DATA to that."


@pytest.mark.parametrize(
    ("case", "text", "sentence"),
    [
        ("sr32", SUITE.replace("cifar10", "mnist-5k"), r"makes images of 3 x 32 x 32 and data set 'mnist-5k' has 1 x 28 x 28"),
        ("sr128", SUITE, r"makes images of 3 x 128 x 128 and data set 'cifar10' has 3 x 32 x 32"),
        ("sr32", SUITE.replace("layer = 4", "layer = 13"), r"13"),
        ("sr32", SUITE.replace("stylegan-xl/mine", "stylegan-xl/../x"), "a generator's name is made of letters"),
    ],
)
def test_what_cannot_work_is_told_when_the_suite_is_read(tmp_path: Path, case: str, text: str, sentence: str) -> None:
    prepare(tmp_path, case)
    with pytest.raises(Faults, match=sentence):
        suite(tmp_path, text, tmp_path)


def test_an_unconditional_generator_is_allowed_and_stated(tmp_path: Path) -> None:
    prepare(tmp_path, "plain32")
    plan = plan_of(suite(tmp_path, root=tmp_path))
    assert plan.generator is not None
    assert plan.generator.resolved["c_dim"] == 0


def test_a_plugin_alone_asks_for_a_suite() -> None:
    plugin = registry.generators.make("stylegan-xl/mine")
    with pytest.raises(ConfigError, match="is not pinned: reading a suite does that"):
        plugin.depth(toy_run(channels=3, side=32))


def test_a_reference_keeps_its_label_when_it_is_pinned() -> None:
    ref = PluginRef.resolve("generators", "stylegan-xl/mine", {"precision": "float16", "sha256": "a" * 64})
    pinned = ref.pinned({"sha256": "b" * 64, "num_layers": 3})
    assert pinned.label == "stylegan-xl/mine(precision=float16)"
    assert (pinned.settings["sha256"], pinned.settings["num_layers"]) == ("b" * 64, 3)
    assert pinned.what != ref.what


# ---------------------------------------------------------------- a real run


def fake_cifar(root: Path) -> None:
    """Some images of every class in CIFAR-10's layout."""
    stream, folder = np.random.default_rng(0), root / FOLDER
    folder.mkdir(parents=True)
    for name in (*BATCHES["train"], *BATCHES["test"]):
        data = {"data": stream.integers(0, 256, (20, 3072), dtype=np.uint8), "labels": list(range(10)) * 2}
        (folder / name).write_bytes(pickle.dumps(data, protocol=2))
    (folder / META).write_bytes(pickle.dumps({"label_names": list(CLASSES)}, protocol=2))


@pytest.mark.long
def test_a_suite_runs_on_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    root, store = tmp_path / "data", tmp_path / "store"
    fake_cifar(root)
    monkeypatch.setenv("DDBENCH_DATA", str(root))
    (tmp_path / "suite.toml").write_text(SUITE)
    command = [str(tmp_path / "suite.toml"), "--store", str(store)]
    assert main(["run", *command, "--workers", "1"]) == 2  # not prepared
    told = capsys.readouterr().err
    assert "is not prepared" in told
    assert "ddbench data prepare stylegan-xl/mine" in told
    assert main(["plan", command[0]]) == 1
    assert "is not prepared" in capsys.readouterr().out
    given = tmp_path / "elsewhere.pkl"
    given.write_bytes(official("sr32"))
    assert main(["data", "prepare", "stylegan-xl/mine", "--from", str(given)]) == 0
    given.unlink()
    assert main(["run", *command, "--workers", "1"]) == 0
    (folder,) = (store / "sets").iterdir()
    plan = json.loads((folder / "plan.json").read_text())
    assert prepared.pin(prepared.read(root / "weights/stylegan-xl/mine.json")) in json.dumps(plan)
    assert main(["run", "--plan", str(folder / "plan.json"), "--store", str(tmp_path / "again"), "--workers", "1"]) == 0
    (again,) = (tmp_path / "again" / "sets").iterdir()
    assert again.name == folder.name
    assert (again / "set.safetensors").read_bytes() == (folder / "set.safetensors").read_bytes()
    capsys.readouterr()
    damaged(root / "weights/stylegan-xl/mine.json", lambda told: told.update(output_scale=0.5))
    assert main(["run", "--plan", str(folder / "plan.json"), "--store", str(tmp_path / "third"), "--workers", "1"]) == 2
    assert "has the pin" in capsys.readouterr().err
