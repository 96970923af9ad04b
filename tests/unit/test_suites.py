"""The suites that are shipped: planned where nobody has their data, and the controls run to their end."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Any

import pytest
from in_process import be_light
from in_process import run as run_in_process
from test_grid import hash_of

from ddbench.cli import main
from ddbench.errors import ConfigError
from ddbench.grid import runner
from ddbench.leaderboard.beside import copy_suites
from ddbench.results.contents import read_contents
from ddbench.results.store import Store
from ddbench.suite import load as grid
from ddbench.suite import presets
from ddbench.suite.bases import whole

Capture = pytest.CaptureFixture[str]


def planned(capsys: Capture, *argv: str) -> tuple[int, dict[str, Any]]:
    code = main(["plan", *argv, "--json"])
    return code, json.loads(capsys.readouterr().out)


QUICK = ("quickstart", "hpd-table1", "imagenette64-autoencoder-dm")


@pytest.mark.slow
@pytest.mark.parametrize("name", [pytest.param(name, marks=[] if name in QUICK else pytest.mark.long) for name in grid.shipped()])
def test_every_suite_is_planned_without_data_and_weights(
    name: str, capsys: Capture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its jobs are counted, what is missing is named in a sentence each, and keys that hang on that are not shown."""
    monkeypatch.delenv("DDBENCH_DATA", raising=False)
    monkeypatch.chdir(tmp_path)
    code, shown = planned(capsys, name)
    suite = grid.load(name, hash_of, None, lenient=True)
    assert len(shown["cells"]) == len(suite.cells)
    assert code == (1 if shown["missing"] else 0)
    assert all(sentence.endswith(".") and "\n" not in sentence for sentence in shown["missing"])
    raw, _ = whole(name)
    generator = raw.get("generator", "")
    lacks_weights = isinstance(generator, dict) and "weights" in generator
    assert any("stylegan-xl/" in sentence for sentence in shown["missing"]) == lacks_weights
    lacks_data = raw["subsets"] != ["mnist-5k"]
    assert any("dataset " in sentence for sentence in shown["missing"]) == lacks_data
    assert {cell["key"] == "unknown" for cell in shown["cells"]} == {lacks_data}
    outlook = {line["jobs"]: line for line in shown["outlook"]}
    sets = {jobs: line for jobs, line in outlook.items() if jobs.startswith("sets: ")}
    judgements = {jobs: line for jobs, line in outlook.items() if jobs.startswith("judgements: ")}
    assert sum(line["missing"] for line in sets.values()) == len({cell.set.key for cell in suite.cells})
    assert sum(line["missing"] for line in judgements.values()) == sum(len(list(cell.all_judgings())) for cell in suite.cells)
    assert all(line["memory_bytes"] is None for line in outlook.values())  # nothing has been done here yet
    for line in judgements.values():  # all are counted but those of full data that are not there
        assert line["seconds"] > 0
        assert line["unknown"] == len(raw["subsets"]) * ("full-data" in raw.get("baselines", ["full-data"]) and lacks_data)
    assert all(line["unknown"] == line["missing"] for jobs, line in sets.items() if " / " in jobs)
    assert not (tmp_path / "runs").exists()


@pytest.mark.slow
def test_what_is_missing_is_a_fault_where_it_is_needed(capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DDBENCH_DATA", raising=False)
    assert main(["plan", "glad-table4"]) == 1
    out, error = capsys.readouterr()
    assert "Not there yet, and needed before anything can run:\n- dataset " in out
    assert "| sets: dsa / pixel" in out
    assert "Sets: 65 in all, 0 there, 65 missing." in out
    assert error == ""
    assert main(["plan", "glad-table4", "--jobs"]) == 2
    assert "DDBENCH_DATA" in capsys.readouterr().err
    assert main(["run", "glad-table4"]) == 2
    assert "DDBENCH_DATA" in capsys.readouterr().err


def test_a_reduced_suite_is_the_suite_with_what_its_table_says(capsys: Capture) -> None:
    raw = tomllib.loads(grid.read("hpd-table7"))
    made = grid.reduced(raw, "hpd-table7")
    assert made["name"] == "hpd-table7-reduced"
    assert made["subsets"] == ["mnist-5k"]
    assert made["schema"] == 1
    assert "reduced" not in made
    with pytest.raises(ConfigError, match=r"suite 'quickstart' has no table \[reduced\]: name it without ':reduced'"):
        grid.load("quickstart:reduced", hash_of, None)
    assert main(["plan", "quickstart:reduced"]) == 2
    assert main(["plan", "nothing:reduced"]) == 2
    assert "unknown suite 'nothing'" in capsys.readouterr().err


def test_a_board_tells_a_reduced_suite_from_one_of_that_name(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    store.add_suite("hpd-table7-reduced", grid.read("hpd-table7"))
    store.add_suite("mine-reduced", 'name = "mine-reduced"')
    store.add_suite("quickstart", grid.read("quickstart"))
    store.add_suite("hpd-table13", whole("hpd-table13")[1])  # stands on two others
    texts, shipped, reduced = copy_suites(store, tmp_path / "board")
    assert set(texts) == {"hpd-table7-reduced", "mine-reduced", "quickstart", "hpd-table13"}
    assert shipped == {*texts["hpd-table7-reduced"], *texts["quickstart"], *texts["hpd-table13"]}
    assert reduced == {"hpd-table7-reduced": "hpd-table7"}


def small(name: str, folder: Path, **changes: Any) -> Path:
    """A shipped suite, reduced where it can be, with a few steps and the judging of smoke-1, as a file."""
    raw, _ = whole(name)
    raw = grid.reduced(raw, name) if "reduced" in raw else raw
    distill = {**raw["distill"], "rank_epochs": 1, "proxy_epochs": 1, **changes.pop("distill", {})}
    raw |= {"protocol": "smoke-1", "seeds": [0], "baselines": [], "distill": distill, **changes}
    path = folder / f"{name}.toml"
    path.write_text("".join(f"{key} = {_toml(value)}\n" for key, value in raw.items()))
    return path


def _toml(value: Any) -> str:
    if isinstance(value, dict):
        return "{ " + ", ".join(f'"{key}" = {_toml(item)}' for key, item in value.items()) + " }"
    return "[" + ", ".join(map(_toml, value)) + "]" if isinstance(value, list) else json.dumps(value)


@pytest.mark.long
def test_the_controls_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    """Every space under H-PD's rankers, as many steps for each, and the stages that the walk has."""
    be_light(monkeypatch)
    monkeypatch.setattr(runner, "run", run_in_process)
    generator = {"name": "cvae", "epochs": 1, "width": 8}
    path = small("controls", tmp_path, distill={"total_steps": 7}, generator=generator, networks=["convnet"])
    assert main(["run", str(path), "--store", str(tmp_path / "store"), "--workers", "1"]) == 0
    contents = read_contents(Store(tmp_path / "store", create=False))
    found = {stored.plan.space.label: stored for stored in contents.sets.values() if stored.plan.space}
    assert len(found) == 8
    for label, stored in found.items():
        assert stored.record.steps == 7
        assert len(stored.record.stages) == (3 if "repeat=3" in label or label == "hpd" else 1)
        assert all(None not in (stage.step_score, stage.stage_score) for stage in stored.record.stages)
    board = (tmp_path / "store" / "leaderboard" / "leaderboard.md").read_text()
    assert all(f"{label} " in board for label in found)


MARKED = """
schema = 1
[[preset]]
where = { space = "pixel" }
set = { steps = 2, momentum = 0.5 }
marks = { steps = "somebody chose them on test images", momentum = "this too" }
source = "nobody"
"""


@pytest.mark.slow
def test_a_preset_s_marks_are_in_the_record_and_on_the_board(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    """Those of values that the suite has from there; no key knows of them."""
    be_light(monkeypatch)
    monkeypatch.setattr(runner, "run", run_in_process)
    monkeypatch.setattr(presets, "load", lambda name: presets.read("x", "mine", MARKED))
    changes = {"spaces": ["pixel"], "networks": [{"name": "convnet", "width": 4}], "preset": "mine"}
    path = small("controls", tmp_path, distill={"rank_steps": "last", "rank_stages": "last"}, **changes)
    path.write_text(path.read_text().replace('"total_steps" = 45', '"momentum" = 0.5'))
    assert main(["run", str(path), "--store", str(tmp_path / "store"), "--workers", "1"]) == 0
    (stored,) = read_contents(Store(tmp_path / "store", create=False)).sets.values()
    assert stored.record.marks == ("steps is from preset 'mine': somebody chose them on test images",)
    assert stored.record.steps == 2
    assert "somebody chose them on test images" in (tmp_path / "store" / "leaderboard" / "leaderboard.md").read_text()
    raw = tomllib.loads(path.read_text())
    raw |= {"preset": [], "distill": raw["distill"] | {"steps": 2}}
    path.write_text("".join(f"{key} = {_toml(value)}\n" for key, value in raw.items()))
    capsys.readouterr()
    assert [cell["set"] for cell in planned(capsys, str(path), "--store", str(tmp_path / "store"))[1]["cells"]] == ["done"]


@pytest.mark.long
def test_seconds_are_compared_and_stop_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    be_light(monkeypatch)
    monkeypatch.setattr(runner, "run", run_in_process)
    generator = {"name": "cvae", "epochs": 1, "width": 8}
    override = [{"where": {"space": "hpd"}, "set": {"total_steps": 4, "rank_steps": "feature-distance"}}]
    changes = {"generator": generator, "override": override, "iterates": {"seconds": [0.0, 1e6]}}
    path = small("controls-seconds", tmp_path, distill={"total_steps": 8}, **changes)
    assert main(["run", str(path), "--store", str(tmp_path / "store"), "--workers", "1"]) == 0
    contents = read_contents(Store(tmp_path / "store", create=False))
    steps = {stored.plan.space.name: stored.record.steps for stored in contents.sets.values() if stored.plan.space}
    assert steps == {"pixel": 8, "glad": 8, "hpd": 4}
    moments = {record.judging.iterate_seconds for record in contents.judgements}
    assert moments == {None, 0.0, 1e6}
    assert "0 s" in (tmp_path / "store" / "leaderboard" / "leaderboard.md").read_text()


@pytest.mark.long
def test_a_table_runs_reduced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    """The timing table, whose board has the seconds of both."""
    be_light(monkeypatch)
    monkeypatch.setattr(runner, "run", run_in_process)
    path = small("hpd-table7", tmp_path, distill={"steps": 4})
    argv = ["run", str(path), "--store", str(tmp_path / "store"), "--workers", "1", "--prepare"]
    assert main(argv) == 0
    contents = read_contents(Store(tmp_path / "store", create=False))
    steps = {(stored.plan.loss.name, stored.plan.space.name): stored.record.steps for stored in contents.sets.values()}
    assert steps[("dm", "glad")] == 4
    assert steps[("dm", "hpd")] == 9  # 3 a stage
    assert steps[("dsa", "hpd")] == steps[("tesla", "hpd")] == 39
    board = (tmp_path / "store" / "leaderboard" / "leaderboard.md").read_text()
    assert "distill + rank s" in board
