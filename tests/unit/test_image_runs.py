"""A suite on folders of images, from its text to the board: mapped images are distilled from, trained on, judged on, recorded."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from image_trees import class_tree

from ddbench.results.store import Store

WNIDS = ("n01440764", "n02102040", "n03028079")
SUITE = """
schema = 1
name = "photos"
description = "toy photographs"
protocol = "smoke-1"
seeds = [0]
ipc = [1]
subsets = [{ name = "image-folder", folder = "photos", side = 16 }]
losses = [{ name = "dm", batch_real = 3 }]
spaces = ["pixel"]
backbone = { name = "convnet", width = 4, depth = 2 }
networks = [{ name = "convnet", width = 4, depth = 2 }]
baselines = ["random", "full-data"]
threads = 1
[distill]
steps = 2
"""


@pytest.mark.long
def test_a_suite_on_a_folder_runs_and_says_which_classes(tmp_path: Path) -> None:
    class_tree(tmp_path / "data" / "photos", WNIDS, {"train": 6, "val": 2})
    (tmp_path / "photos.toml").write_text(SUITE)
    environment = os.environ | {"DDBENCH_DATA": str(tmp_path / "data"), "DDBENCH_CACHE": str(tmp_path / "decoded")}
    command = [sys.executable, "-m", "ddbench", "run", "photos.toml", "--store", "store", "--device", "cpu"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    store = Store(tmp_path / "store")
    records = [store.read_record(folder.name) for folder in (tmp_path / "store" / "sets").iterdir()]
    assert len(records) == 3
    for record in records:
        assert (record.data.class_ids, record.data.counts) == (WNIDS, (6, 6, 6))
        assert record.data.label == "image-folder/photos(side=16)"
        assert not record.marks
    (tmp_path / "data" / "photos" / "val" / WNIDS[0] / "0.jpg").write_bytes(b"no image")
    again = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=600, check=False)
    assert again.returncode == 2
    assert "1 of 24 images of dataset 'photos' cannot be read: val/n01440764/0.jpg (none of JPEG, PNG" in again.stderr
    assert "Traceback" not in again.stderr
