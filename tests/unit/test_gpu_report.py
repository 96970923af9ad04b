"""The report of a card, rehearsed on a CPU: whoever has a card for some minutes must not find out that a script is broken."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from perf import gpu_report
from perf.gpu_report import entry_points, fastest, replays, with_section

ROOT = Path(__file__).parents[2]


def rehearse(part: str, into: Path, *words: str) -> subprocess.CompletedProcess[str]:
    places = ["--folder", str(into / "work"), "--into", str(into / "out")]
    words = (sys.executable, "tests/perf/gpu_report.py", part, "--rehearse", *places, *words)
    return subprocess.run(words, capture_output=True, text=True, cwd=ROOT)


def found(part: str, into: Path) -> dict[str, object]:
    """Its record, once its section stands on the page."""
    (path,) = (into / "out" / "docs" / "gpu").glob(f"{part}-*.json")
    record: dict[str, object] = json.loads(path.read_text())
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
    if part == "losses":
        assert list(record["tables"]) == ["one form"]  # type: ignore[call-overload]
    if part == "generator":
        precisions = [(row["form"], row["precision"]) for row in record["rows"]]  # type: ignore[attr-defined]
        assert precisions == [("plain", "float32"), ("fast", "float32"), ("fast", "float16"), ("fast", "bfloat16")]
        errors = [row["image error, worst"] for row in record["rows"]]  # type: ignore[attr-defined]
        assert errors[:2] == ["–", "–"]
        assert 0 < float(errors[2]) < float(errors[3])


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
