"""The command line: a mistake is one sentence on stderr and exit code 2; help is light; no terminal, no bar."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ddbench.cli import main
from ddbench.cli.bar import Bar
from ddbench.cli.run import summary_line
from ddbench.grid.runner import Outcome
from ddbench.grid.worker import Message, sentence_of

TINY = """
schema = 1
name = "tiny"
protocol = "smoke-1"
subsets = ["mnist-5k"]
losses = ["dm"]
spaces = ["pixel"]
backbone = { name = "convnet", width = 4 }
networks = ["convnet"]
baselines = []
"""

Capture = pytest.CaptureFixture[str]


@pytest.fixture
def suite(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DDBENCH_DATA", raising=False)
    path = tmp_path / "tiny.toml"
    path.write_text(TINY)
    return path


def mistake(capsys: Capture, *argv: object) -> str:
    """What a command says that ends with exit code 2 and prints nothing else."""
    assert main([str(word) for word in argv]) == 2
    out, error = capsys.readouterr()
    assert out == ""
    assert error.startswith("ddbench: ")
    assert error.endswith("\n")
    assert "Traceback" not in error
    return error.removeprefix("ddbench: ").rstrip("\n")


def test_an_unknown_suite(capsys: Capture, suite: Path) -> None:
    for verb in ("run", "plan"):
        assert mistake(capsys, verb, "tyni").startswith("unknown suite 'tyni'. It is neither a file nor one of: ")


def test_ipc_zero(capsys: Capture, suite: Path) -> None:
    suite.write_text(TINY + "ipc = [0]\n")
    assert mistake(capsys, "run", suite) == (
        f"suite '{suite}': 'ipc' holds 0; each entry must be a whole number of at least 1."
    )
    assert not (suite.parent / "runs").exists()  # nothing is made for a mistake


def test_a_missing_data_set(capsys: Capture, suite: Path) -> None:
    suite.write_text(TINY.replace("mnist-5k", "cifar10"))
    said = mistake(capsys, "run", suite)
    assert said.startswith(f"suite '{suite}': dataset 'cifar10' is not under DDBENCH_DATA: expected cifar-10-batches-py/")
    assert " Put them there, or " in said


@pytest.mark.parametrize("more", [("--workers", 0), ("--device", "gpu"), ("--device", "cuda:99"), ("--only", "loss=x")])
def test_wrong_options_make_no_store(capsys: Capture, suite: Path, more: tuple[object, ...]) -> None:
    said = mistake(capsys, "run", suite, *more)
    assert said.startswith({
        "0": "--workers must be at least 1, got 0.",
        "gpu": "unknown device 'gpu'. Name cpu, cuda, cuda:0, ... or auto.",
        "cuda:99": "device 'cuda:99' is not there: ",
        "loss=x": "--only loss=x matches none of the 1 cells.",
    }[str(more[1])])  # fmt: skip
    assert not (suite.parent / "runs").exists()


@pytest.mark.slow
def test_stores_that_cannot_be_used(capsys: Capture, suite: Path) -> None:
    newer = suite.parent / "newer"
    newer.mkdir()
    (newer / "store.json").write_text('{"schema": 7}')
    told = f"store {newer} has schema 7, this ddbench knows 1. Update ddbench, or name another store."
    assert mistake(capsys, "run", suite, "--store", newer) == told
    assert mistake(capsys, "plan", suite, "--store", newer) == told
    assert mistake(capsys, "run", suite, "--store", suite.parent).startswith(f"{suite.parent} holds other things")
    said = mistake(capsys, "run", suite, "--store", "/proc/nothing/store")
    assert said.endswith("Check the path, its rights and the free space.")
    assert "/proc/nothing" in said
    assert mistake(capsys, "plan", suite, "--store", "none").startswith("there is no store at none. Make one with: ddbench run")


def test_plan_shows_the_cells_and_writes_nothing(capsys: Capture, suite: Path) -> None:
    assert main(["plan", str(suite), "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert [(cell["method"], cell["state"]) for cell in shown["cells"]] == [("dm / pixel", "missing")]
    assert shown["shared"] == []
    assert main(["plan", str(suite)]) == 0
    assert "1 cells, 0 done, 1 to run." in capsys.readouterr().out
    assert [path.name for path in suite.parent.iterdir()] == ["tiny.toml"]


def test_a_suite_of_broken_plugins_only_runs_nothing(
    capsys: Capture, suite: Path, thirdparty: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(thirdparty))
    suite.write_text(TINY.replace('"dm"', '"tests-broken"'))
    for verb in ("plan", "run"):
        assert main([verb, str(suite)]) == 1
        out, error = capsys.readouterr()
        assert error.startswith("ddbench: loss 'tests-broken' (ddbench_example.broken:Broken, from ddbench-example-plugin)")
        assert len(error.splitlines()) == 1
    assert out.splitlines()[-1] == "runs/tiny/leaderboard/leaderboard.md"


@pytest.mark.parametrize("argv", [["--help"], ["run", "--help"], ["plan", "--help"], ["--version"]])
def test_help_imports_nothing_heavy(argv: list[str]) -> None:
    code = (
        "import sys\nfrom ddbench.cli import main\n"
        f"try: main({argv!r})\nexcept SystemExit as end: assert not end.code\n"
        "heavy = {'torch', 'pandas', 'numpy', 'scipy', 'rich', 'PIL', 'ddbench_plugins'} & sys.modules.keys()\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    assert "ddbench" in done.stdout


@pytest.mark.slow
def test_python_m_is_the_command(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "ddbench", "run", "nothing-like-it"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("ddbench: unknown suite 'nothing-like-it'.")
    assert len(done.stderr.splitlines()) == 1


def test_a_stop_is_a_sentence(capsys: Capture, monkeypatch: pytest.MonkeyPatch, suite: Path) -> None:
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("ddbench.cli.run.load_suite", stop)
    assert main(["run", str(suite)]) == 130
    assert capsys.readouterr().err == (
        "ddbench: stopped. Finished cells are kept; the same command goes on from the last checkpoint.\n"
    )


def test_what_was_done_in_a_sentence() -> None:
    assert summary_line(Outcome(3), 3, "s") == "Nothing to compute: all 3 cells are in s."
    outcome = Outcome(1, ["a"], {"b": "why"})
    assert summary_line(outcome, 3, "s") == "1 of 3 cells computed, 1 were there, 1 failed, in s."


def job(name: str, resource: str | None = None) -> Any:
    return SimpleNamespace(plan=SimpleNamespace(name=name, method=name), resource=resource)


def test_no_bar_without_a_terminal_and_names_are_not_markup(capsys: Capture) -> None:
    bar, odd = Bar(), job("dm(sizes=[1,2]) / [/red]")
    bar.start(2, 0)
    bar.update(odd, Message("progress", "distill", 0.5))
    for _ in range(3):
        bar.finish(odd, Message("busy"), 0.1)
    bar.finish(odd, Message("found"), 0.1)
    bar.finish(job("x", "0123456789"), Message("done"), 1.25)
    bar.finish(job("other"), Message("failed"), 2.0)
    bar.close()
    out, error = capsys.readouterr()
    assert out == ""
    assert error.splitlines() == [
        "2 cells, 0 already there",
        "dm(sizes=[1,2]) / [/red]: another run is computing it; waiting",
        "[1/2] dm(sizes=[1,2]) / [/red]: another run computed it",
        "[shared] resource 01234567 for x: done in 1.2 s",
        "[2/2] other: failed in 2.0 s",
    ]


def test_whatever_a_plugin_raises_is_a_sentence(tmp_path: Path) -> None:
    plan: Any = SimpleNamespace(name="the cell")
    for error, told in (
        (ValueError("two\nlines."), "the cell: ValueError at test_command_line.py:"),
        (KeyError(), "the cell: KeyError at test_command_line.py:"),
        (RuntimeError("x" * 1000), "the cell: RuntimeError at test_command_line.py:"),
    ):
        try:
            raise error
        except Exception as caught:
            said = sentence_of(caught, plan, tmp_path)
        assert said.startswith(told)
        assert said.endswith(". The traceback is in the failure record; mend the plugin or the plan.")
        assert "\n" not in said
        assert ".." not in said
        assert len(said) < 500
