"""What the documents show works: plugins as they are printed, and the ways to check them."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from ddbench.compute.clock import Stopwatch
from ddbench.compute.engine import Distillation
from ddbench.testing import loss_checks, toy_plan, toy_run
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


@pytest.mark.slow
def test_a_check_that_does_not_apply_is_a_skip_for_whoever_copies_the_lines(tmp_path: Path) -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text()
    (lines,) = re.findall(r"```python\n(import pytest\nfrom ddbench import registry, testing.*?)```", text, re.DOTALL)
    lines = lines.replace("testing.loss_checks", "testing.space_checks").replace("losses.make", "spaces.make")
    (tmp_path / "test_mine.py").write_text(lines.replace("mean-image", "pixel"))
    words = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_mine.py"]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    assert re.search(r"\d+ passed, 2 skipped", done.stdout), done.stdout
