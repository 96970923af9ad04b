"""The report of a card, rehearsed on a CPU: whoever has a card for some minutes must not find out that a script is broken."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from ddbench.grid.planning import Identities
from ddbench.suite import load
from perf import gpu_report, grids
from perf.gpu_report import Report, entry_points, fastest, replays, section, with_section

ROOT = Path(__file__).parents[2]


def rehearse(part: str, into: Path, *words: str) -> subprocess.CompletedProcess[str]:
    places = ["--folder", str(into / "work"), "--into", str(into / "out")]
    words = (sys.executable, "tests/perf/gpu_report.py", part, "--rehearse", *places, *words)
    return subprocess.run(words, capture_output=True, text=True, cwd=ROOT)


def found(part: str, into: Path) -> dict[str, Any]:
    """Its record, once its section stands on the page."""
    (path,) = (into / "out" / "docs" / "gpu").glob(f"{part}-*.json")
    record: dict[str, Any] = json.loads(path.read_text())
    page = (into / "out" / "docs" / "performance.md").read_text()
    assert page.count(f"`make gpu-report PART={part}`") == page.count("A rehearsal in tiny sizes") == 1
    assert record["rehearsal"] is True
    assert record["part"] == part
    return record


@pytest.mark.long
def test_a_part_is_measured_once_and_written_down(tmp_path: Path) -> None:
    for _ in range(2):
        done = rehearse("evaluators", tmp_path)
        assert done.returncode == 0, done.stderr
    assert done.stderr == ""  # nothing was measured again
    record = found("evaluators", tmp_path)
    assert record["fastest"] == {"convnet": "serial"}
    table = json.loads((tmp_path / "out" / "benchmark" / "ddbench" / "compute" / "ways.json").read_text())
    assert list(table.values()) == [{"convnet": "serial"}]


@pytest.mark.long
@pytest.mark.parametrize("part", gpu_report.PARTS)
def test_every_part_runs_to_its_end(part: str, tmp_path: Path) -> None:
    done = rehearse(part, tmp_path)
    assert done.returncode == 0, done.stderr
    record = found(part, tmp_path)
    assert "failed" not in done.stderr
    if part == "tests":
        assert (record["failed"], record["store"]) == ({}, "sound: 3 sets, 6 judgements, 1 resource, 1 suite; 0 faults.")
    if part == "tables":
        check_tables(record)
    if part == "losses":
        assert list(record["tables"]) == ["one form"]
    if part == "generator":
        precisions = [(row["form"], row["precision"]) for row in record["rows"]]
        assert precisions == [("plain", "float32"), ("fast", "float32"), ("fast", "float16"), ("fast", "bfloat16")]
        errors = [row["image error, worst"] for row in record["rows"]]
        assert errors[:2] == ["–", "–"]
        assert 0 < float(errors[2]) < float(errors[3])


def check_tables(record: dict[str, Any]) -> None:
    assert (record["failed"], record["left out"]) == ({}, [])
    assert record["store"] == "sound: 4 sets, 4 judgements, 2 resources, 2 suites; 0 faults."
    rows = record["seconds"]
    assert sorted(row["space"] for row in rows) == ["glad", "glad", "hpd", "pixel"]
    assert all(row["distill"] > 0 and row["evaluate"] > 0 and row["peak_making"] > 0 for row in rows)
    assert [row["rank"] > 0 for row in rows] == [row["space"] == "hpd" for row in rows]


def report_of_tables(folder: Path, seconds: float, monkeypatch: pytest.MonkeyPatch, codes: list[int]) -> dict[str, Any]:
    """Of a card with so many seconds, where each run that is begun ends with the next code; and what its page says."""
    given = argparse.Namespace(part="tables", folder=folder, rehearse=False, into=folder / "out", minutes=seconds / 60)
    (folder / "tables").mkdir(parents=True)
    begun = []

    def call(*words: str, reserve: float = 0.0) -> subprocess.CompletedProcess[str]:
        if "run" in words:
            begun.append(words)
        code = codes[len(begun) - 1] if "run" in words else 2
        return subprocess.CompletedProcess(words, code, '{"failed": {"set-1": "no memory"}}' if code == 1 else "", "")

    report = Report(given)
    monkeypatch.setattr(report, "call", call)
    told = report.tables({})
    about = {"hardware": {"device": "Card"}, "versions": {}}
    return told | {"begun": len(begun), "page": section("tables", about, told)}


def test_what_does_not_fit_or_fails_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DDBENCH_DATA", raising=False)
    told = report_of_tables(tmp_path / "a", 500, monkeypatch, [0, 0, 1, 0, 0, gpu_report.LATE, 0])
    assert told["left out"] == ["hpd-table7, tesla"]
    assert told["failed"] == {"glad-table3, dm: set-1": "no memory"}
    assert "in place of CIFAR-10" in told["page"]
    for words in ("Left out, for the time was up: hpd-table7, tesla.", "Failed: glad-table3, dm: set-1."):
        assert words in told["page"]
    late = report_of_tables(tmp_path / "b", gpu_report.RESERVE, monkeypatch, [])
    assert late["begun"] == 0
    assert len(late["left out"]) == len(grids.STEPS)


@pytest.mark.parametrize(("data", "tiny"), [("cifar10", False), ("digits", True), ("cifar10", True)])
@pytest.mark.parametrize("name", grids.NAMES)
def test_its_suites_can_be_read(name: str, data: str, tiny: bool, tmp_path: Path) -> None:
    suite = load.load(grids.suite(name, tmp_path, data, tiny), Identities(), None, lenient=True)
    assert not suite.broken
    assert {cell.set.dataset.name for cell in suite.cells} == {"cifar10" if data == "cifar10" else "mnist-5k"}
    steps = sum(cell.set.steps for cell in suite.cells)
    whole = load.load(f"{name}:reduced", Identities(), None, lenient=True)
    assert (steps < sum(cell.set.steps for cell in whole.cells)) == tiny
    if data == "cifar10":
        assert {cell.set.generator.name for cell in suite.cells if cell.set.generator} == {"stylegan3-random"}


def test_the_page_divides_by_glad_of_the_nearest_steps() -> None:
    row = {"method": "m", "data": "d", "loss": "dm", "stages": 1, "rank": 0.0, "resources": 0.0, "evaluate": 1.0}
    row |= {"peak_making": 1 << 20, "peak_judging": 1 << 21}
    rows = [row | {"space": space, "steps": steps, "distill": s} for space, steps, s in (("glad", 30, 3.0), ("glad", 1000, 50.0))]
    rows += [row | {"space": "hpd", "steps": 900, "distill": 60.0, "rank": 40.0}]
    rows += [row | {"space": "pixel", "steps": 30, "distill": 1.5}]
    rows += [row | {"loss": "dsa", "space": "hpd", "steps": 30, "distill": 1.0}]
    accuracies, seconds = grids.tables({"accuracies": [], "seconds": rows})
    assert accuracies == []
    assert [line["of glad"] for line in seconds] == ["1.00", "1.00", "2.00", "0.50", "–"]
    assert seconds[0]["peak MiB, making / judging"] == "1 / 2"


def test_it_wants_a_card_or_to_be_told_that_there_is_none(tmp_path: Path) -> None:
    for words, told in ((["--rehearse"], "name a folder with --into"), (["--minutes", "-3"], "must be at least 1")):
        words = [sys.executable, "tests/perf/gpu_report.py", "losses", *words]
        done = subprocess.run(words, capture_output=True, text=True, cwd=ROOT)
        assert told in done.stderr
        assert done.returncode == 2


@pytest.mark.slow
def test_a_clone_that_is_not_installed_has_its_plugins(tmp_path: Path) -> None:
    """Beside a Python that has the dependencies alone."""
    folder = entry_points(tmp_path)
    places = [str(folder), str(ROOT / "benchmark"), str(ROOT / "plugins")]
    words = "from importlib.metadata import distribution; found = distribution('ddbench'); "
    words += "print(found.version, len(found.entry_points), found.entry_points[0].load().__name__)"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(places)}
    done = subprocess.run([sys.executable, "-c", words], capture_output=True, text=True, env=environment, check=True)
    version, num, name = done.stdout.split()
    assert version == "0.2.0"
    assert int(num) > 30
    assert name


def test_the_fastest_way_of_ours_is_found(tmp_path: Path) -> None:
    path = tmp_path / "case.json"
    seconds = {"plain": 3.0, "widespread": 0.5, "captured": 1.0, "stacked": 2.0}
    path.write_text(json.dumps({"benchmarks": [{"extra_info": {"way": w}, "stats": {"min": s}} for w, s in seconds.items()]}))
    assert fastest(path) == "captured"


def test_losses_that_replay_faster_are_found() -> None:
    told = [("dm", "plain", 9.0), ("dm", "batched", 5.0), ("dm", "replayed", 4.0)]
    told += [("dc", "batched", 1.0), ("dc", "replayed", 2.0)]
    cases: list[dict[str, object]] = [{"loss": loss, "ipc": 1, "form": form, "ms": ms} for loss, form, ms in told]
    cases += [{"loss": "mtt", "ipc": 1, "syn_steps": 20, "ms": 8.0}, {"loss": "mtt", "ipc": 1, "form": "replayed", "ms": 3.0}]
    cases += [{"loss": "dc", "ipc": 10, "form": "replayed", "ms": 0.1}, {"loss": "krr", "ipc": 1, "form": "default", "ms": 1.0}]
    assert replays(cases) == ["dm", "mtt"]


def test_a_section_takes_the_place_of_its_last_one() -> None:
    page = "# Speed\n\nWords.\n"
    once = with_section(page, "losses, Card", "first")
    assert once.startswith("# Speed\n\nWords.\n\n<!-- gpu-report: losses, Card -->\nfirst\n")
    both = with_section(with_section(once, "tests, Card", "other"), "losses, Card", "second")
    assert "first" not in both
    assert both.index("second") < both.index("other")
    assert with_section(both, "losses, Card", "second") == both
