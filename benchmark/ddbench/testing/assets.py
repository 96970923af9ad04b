"""The contract of assets, as far as it can be seen without a file."""

from __future__ import annotations

import tempfile
from pathlib import Path, PurePosixPath

from ddbench.api import Asset
from ddbench.compute.run import DistillRun
from ddbench.errors import DataError
from ddbench.testing.checks import Check


def asset_says_where_it_belongs(asset: Asset, run: DistillRun) -> None:
    """Its facts need no file, say something, and name files inside of the data folder, each once."""
    facts = asset.facts()
    assert facts == asset.facts(), "facts gives something else the second time."
    assert facts.what, "facts must say what it is."
    assert facts.licence, "facts must say what is known of its terms."
    files = (facts.source, *facts.files)
    assert len(set(files)) == len(files), f"facts names a file twice: {', '.join(files)}."
    outside = [file for file in files if file.startswith("/") or not {"..", ""}.isdisjoint((*PurePosixPath(file).parts, file))]
    assert not outside, f"files must lie inside of the data folder, got {', '.join(outside)}."


def asset_misses_its_files(asset: Asset, run: DistillRun) -> None:
    """In an empty data folder, `check` raises DataError, and leaves it empty."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            asset.check(Path(folder))
        except DataError:
            assert not any(Path(folder).iterdir()), "check writes into the data folder."
            return
    raise AssertionError("check must raise DataError where its files are missing.")


def asset_refuses_other_files(asset: Asset, run: DistillRun) -> None:
    """A file of something else is a DataError of `prepare`, which then leaves nothing behind."""
    with tempfile.TemporaryDirectory() as folder:
        root, source = Path(folder, "data"), Path(folder, "source")
        root.mkdir()
        source.write_bytes(b"this is no such file")
        try:
            asset.prepare(source, "0" * 64, root)
        except DataError:
            left = [str(path) for path in root.rglob("*") if path.is_file()]
            assert not left, f"prepare leaves files behind when it fails: {', '.join(left)}."
            return
    raise AssertionError("prepare must raise DataError for a file of something else.")


asset_checks: list[Check] = [asset_says_where_it_belongs, asset_misses_its_files, asset_refuses_other_files]
