"""Plugins that shipped suites name and that may not be installed: stand-ins with their names, so that the suites can be read."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from ddbench import registry

SUBSETS = [*(f"imagenet-{name}" for name in ("a", "b", "c", "d", "e", "birds", "fruits", "cats")), "imagenette", "imagewoof"]
NAMES = {
    "datasets": dict.fromkeys(SUBSETS, "Subset") | {"image-folder": "Folder"},
    "generators": {"stylegan-xl": "Trained", "stylegan-xl-random": "Untrained", "stylegan3-random": "Untrained"},
}
SOURCE = """
from dataclasses import dataclass
from ddbench.api import Dataset, GeneratorConfig, Spec
from ddbench.errors import ConfigError, DataError

@dataclass(frozen=True)
class Subset(Dataset):
    '''Ten classes of ImageNet that nobody has.'''
    side: int = 128
    def spec(self):
        return Spec("subset", (3, self.side, self.side), tuple(map(str, range(10))), (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    def load(self, split, root):
        raise DataError("dataset 'subset' is not under DDBENCH_DATA: put ImageNet there.")

@dataclass(frozen=True)
class Folder(Subset):
    '''Ten classes in a folder that nobody has.'''
    folder: str = ""

@dataclass(frozen=True)
class Trained(GeneratorConfig):
    '''As many layers as StyleGAN-XL has; it knows none of them before its file is there.'''
    weights: str
    def depth(self, run):
        raise DataError(f"generator 'stylegan-xl/{self.weights}' is not there: put its file under DDBENCH_DATA.")
    def load(self, run): ...

@dataclass(frozen=True)
class Untrained(GeneratorConfig):
    '''As many layers as the papers' generators have.'''
    width: int = 0
    def depth(self, run):
        return {32: 16, 128: 26, 256: 31}[run.spec.shape[-1]]
    def load(self, run): ...
"""


@pytest.fixture
def stand_ins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Each of `NAMES` that is not installed, installed."""
    module = f"stand_ins_{hashlib.sha256(str(tmp_path).encode()).hexdigest()[:12]}"
    home = tmp_path / "stand-ins"
    info = home / "stand_ins_of_tests-1.0.dist-info"
    info.mkdir(parents=True)
    (home / f"{module}.py").write_text(SOURCE)
    lines = []
    for kind, names in NAMES.items():
        known = registry.REGISTRIES[kind].names()
        lines += [f"[ddbench.{kind}]", *(f"{name} = {module}:{what}" for name, what in names.items() if name not in known)]
    (info / "entry_points.txt").write_text("\n".join(lines) + "\n")
    monkeypatch.syspath_prepend(str(home))
    yield
    sys.modules.pop(module, None)
