"""What the first step of a process pays is no set's."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from ddbench.compute.warm import warm_up
from ddbench.grid import do
from ddbench.results.store import Store
from ddbench.testing.pretended import Pretended


@pytest.mark.slow
def test_optimisers_import_nothing_after_it() -> None:
    """Torch imports a compiler with a process's first optimiser."""
    words = "import sys, torch; from ddbench.compute.warm import warm_up; before = set(sys.modules); w = torch.zeros(3)"
    words += "; warm_up(torch.device('cpu')); warm = set(sys.modules); torch.optim.SGD([w], lr=1.0); torch.optim.Adam([w])"
    words += "; print(len(set(sys.modules) - warm), len(warm - before) > 0)"
    done = subprocess.run([sys.executable, "-c", words], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["0", "True"]


def test_it_draws_nothing_and_mixes_no_devices() -> None:
    before = torch.get_rng_state()
    warm_up(torch.device("cpu"))
    with Pretended(index=1, num_devices=2) as fake:
        warm_up(fake.device)
    assert torch.equal(before, torch.get_rng_state())


def test_a_process_warms_up_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    warmed = list[torch.device]()
    monkeypatch.setattr(do, "warm_up", warmed.append)
    place = do.Workplace(Store(tmp_path), torch.device("cpu"), None)
    for _ in range(2):
        place.begin(1, False)
    assert warmed == [torch.device("cpu")]
