"""What the documents show works: plugins as they are printed, and the ways to check them."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
import tomllib
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from conftest import install
from ddbench.api import Batch
from ddbench.cli import main
from ddbench.compute.clock import Stopwatch
from ddbench.compute.engine import Distillation
from ddbench.leaderboard.baseline import read_baseline
from ddbench.registry import REGISTRIES
from ddbench.testing import CHECKS, loss_checks, toy_plan, toy_run
from ddbench_plugins.spaces.pixel import Pixel

ROOT = Path(__file__).parents[2]


def printed(document: str, name: str, folder: Path) -> Any:
    """The module of that name that a document prints."""
    (text,) = re.findall(rf"```python\n(# {re.escape(name)}\n.*?)```", (ROOT / document).read_text(), re.DOTALL)
    (folder / name).write_text(text)
    return module(folder / name)


def module(path: Path) -> Any:
    spec = importlib.util.spec_from_file_location(f"shown_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    found = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = found  # dataclasses look their module up
    spec.loader.exec_module(found)
    return found


@pytest.fixture(params=["README.md", "the small distribution"])
def loss(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    if request.param == "README.md":
        return printed("README.md", "my_loss.py", tmp_path).MeanImage()
    return module(ROOT / "tests" / "thirdparty" / "ddbench_example" / "mean_image.py").MeanImage()


@pytest.mark.slow
def test_a_shown_loss_keeps_the_contract(loss: Any) -> None:
    for check in loss_checks:
        check(loss, toy_run())


@pytest.mark.parametrize("ipc", [1, 3])
def test_a_shown_loss_trains_at_the_rate_that_it_names(tmp_path: Path, ipc: int) -> None:
    loss = printed("README.md", "my_loss.py", tmp_path).MeanImage()
    plan = toy_plan(loss, Pixel(init_from="noise"), steps=200, ipc=ipc, rates=dict(loss.rates))
    loop = Distillation(plan, replace(toy_run(), ipc=ipc), Stopwatch(torch.device("cpu")))
    loop.begin()
    means = torch.stack([loop.run.real(label, 10**6, loop.run.rng()).mean(0) for label in range(3)])

    def distance() -> float:
        images = loop.images(loop.state).detach().unflatten(0, (3, ipc)).mean(1)
        return float((images - means).square().sum())

    before = distance()
    for _ in range(plan.steps - 1):
        loop.one_step()
    assert distance() < 0.1 * before


def test_the_printed_loss_sees_all_images_of_a_class_in_spaces_of_more(tmp_path: Path) -> None:
    (source,) = re.findall(r"```python\n# losses\n(.*?)```", (ROOT / "docs" / "plugins.md").read_text(), re.DOTALL)
    (tmp_path / "printed_loss.py").write_text(source)
    run = toy_run()
    classes = torch.arange(run.spec.num_classes).repeat_interleave(2 * run.ipc)
    images = torch.zeros(len(classes), *run.spec.shape, requires_grad=True)
    module(tmp_path / "printed_loss.py").plugin.backward(
        Batch(images, torch.eye(run.spec.num_classes)[classes], classes), {}, run
    )
    assert images.grad is not None
    assert images.grad.flatten(1).any(1).all()


KINDS = tuple(REGISTRIES)
SKIPPED = {"spaces": 2, "datasets": 1}  # one stage and no penalty; no files


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A package of every plugin that docs/plugins.md prints, installed, with the `pyproject.toml` that stands there."""
    folder = tmp_path_factory.mktemp("shown")
    text = (ROOT / "docs" / "plugins.md").read_text()
    (project,) = re.findall(r"```toml\n# pyproject.toml\n(.*?)```", text, re.DOTALL)
    (folder / "my_plugins").mkdir()
    (folder / "my_plugins" / "__init__.py").touch()
    for kind in KINDS:
        (source,) = re.findall(rf"```python\n(# {kind}\n.*?)```", text, re.DOTALL)
        (folder / "my_plugins" / f"{kind}.py").write_text(f"{source}\n\ndef entry() -> type(plugin):\n    return plugin\n")
    (named,) = re.findall(r'"my_plugins\.losses:(\w+)"', project)
    assert f"\nclass {named}(" in text, "the package names the loss that is printed"
    for line in ('[project.entry-points."ddbench.losses"]\n', 'mean-embedding = "my_plugins.losses:MeanEmbedding"\n'):
        assert line in project
        project = project.replace(line, "")
    groups = (f'[project.entry-points."ddbench.{kind}"]\nmine-{kind} = "my_plugins.{kind}:entry"\n' for kind in KINDS)
    (folder / "pyproject.toml").write_text(project + "\n" + "\n".join(groups))
    install(folder, folder / "installed")
    return folder / "installed"


@pytest.mark.long
@pytest.mark.parametrize("document", ["CONTRIBUTING.md", "docs/plugins.md"])
def test_three_lines_check_a_plugin_of_every_kind(shown: Path, tmp_path: Path, document: str) -> None:
    """As they are printed, but for the kind and the name."""
    (lines,) = re.findall(r"```python\n(from ddbench.testing import contract\n.*?)```", (ROOT / document).read_text(), re.DOTALL)
    assert len([line for line in lines.splitlines() if line]) == 3
    for kind in KINDS:
        (tmp_path / f"test_{kind}.py").write_text(re.sub('"losses", "mean-[a-z]+"', f'"{kind}", "mine-{kind}"', lines))
    words = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", "."]
    path = os.pathsep.join([str(shown), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(words, cwd=tmp_path, env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    met = sum(map(len, CHECKS.values())) - sum(SKIPPED.values())
    assert f"{met} passed, {sum(SKIPPED.values())} skipped" in done.stdout, done.stdout


@pytest.mark.slow
def test_a_distribution_is_checked_by_its_name(
    shown: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(shown)
    assert main(["plugins", "check", "My_Plugins"]) == 0
    last = capsys.readouterr().out.splitlines()[-1]
    num, skipped = sum(map(len, CHECKS.values())), sum(SKIPPED.values())
    assert last == f"{len(KINDS)} plugins, {num} checks: {num - skipped} met, {skipped} skipped, 0 failed."


def test_a_plugin_is_checked_with_settings(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plugins", "check", "convnet(width=4, depth=1)", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert {line["verdict"] for line in told["checks"]} == {"met"}
    assert [line["check"] for line in told["checks"]] == [check.__name__ for check in CHECKS["architectures"]]


def test_a_plugin_that_breaks_its_contract_or_cannot_be_made(
    thirdparty: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(thirdparty)
    info = tmp_path / "odd-1.0.dist-info"
    info.mkdir()
    (info / "entry_points.txt").write_text("[ddbench.baselines]\nodd = odd:Odd\n")
    (tmp_path / "odd.py").write_text(ODD)
    monkeypatch.syspath_prepend(tmp_path)
    assert main(["plugins", "check", "odd"]) == 1
    told = capsys.readouterr().out
    assert "failed: ZeroDivisionError: division by zero." in told
    assert re.search(r"1 plugin, \d checks: .* [1-9] failed\.", told)
    assert main(["plugins", "check", "tests-broken"]) == 2
    assert "this module breaks when it is imported." in capsys.readouterr().out
    assert main(["plugins", "check", "nothing-of-that-name"]) == 2
    assert "there is no plugin 'nothing-of-that-name', nor a distribution of that name." in capsys.readouterr().err
    assert main(["plugins", "check"]) == 2
    assert "takes nothing, or check NAME" in capsys.readouterr().err


ODD = """
from dataclasses import dataclass
from ddbench.api import TRAIN, Baseline

@dataclass(frozen=True)
class Odd(Baseline):
    saw = TRAIN
    def build(self, run):
        1 / 0
"""


def test_the_package_to_copy_is_whole() -> None:
    """Its workflow runs what its README says, and its suite and baseline are of its own loss."""
    home = ROOT / "tests" / "thirdparty"
    workflow, readme = ((home / name).read_text() for name in (".github/workflows/plugin.yml", "README.md"))
    name = tomllib.loads((home / "pyproject.toml").read_text())["project"]["name"]
    for command in ("pytest", f"ddbench plugins check {name}", "ddbench run suite.toml --store runs/example"):
        assert f"- run: {command}\n" in workflow
        assert command in readme
    assert "- run: ddbench check runs/example --baseline baseline.json\n" in workflow
    rows = read_baseline(home / "baseline.json")
    assert {row.name.partition(",")[0] for row in rows} == {"random", "tests-mean-image / pixel"}
