"""The functions for notebooks: what they take and give, and the example of the documents, run without a main guard."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from stores import judgement, judging_of, plan_of, seeds, write_store

import ddbench
from ddbench.cli.notebook import arguments
from ddbench.cli.run import perform
from ddbench.errors import BenchError, ConfigError

ROOT = Path(__file__).parents[2]
SUITE = """
schema = 1
name = "mine"
protocol = "smoke-1"
subsets = ["mnist-5k"]
losses = [{ name = "dm", batch_real = 4 }]
spaces = ["pixel"]
backbone = { name = "convnet", width = 4, depth = 1 }
networks = [{ name = "convnet", width = 4, depth = 1 }]
baselines = ["random"]
[distill]
steps = 2
"""


@pytest.mark.long
def test_the_example_works_as_it_is_printed(tmp_path: Path) -> None:
    (example,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "python.md").read_text(), re.S)
    (tmp_path / "my-suite.toml").write_text(SUITE)
    more = "print(ran.computed, ran.is_whole, len(board), ran.failed, len(found.repeats))\n"
    more += 'print(len(ddbench.run("my-suite.toml", store="results", device="cpu", quiet=True).rows), "and nothing to compute")\n'
    done = subprocess.run(
        [sys.executable, "-"], input=example + more, cwd=tmp_path, capture_output=True, text=True, timeout=600, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-2:] == ["4 True 2 {} 2", "2 and nothing to compute"]
    assert "torch.Size([10, 1, 28, 28]) torch.Size([10, 10])" in done.stdout
    assert "begins: dm(batch_real=4) / pixel" in done.stderr
    assert "ddbench run --store=results --workers=1 --device=cpu -- my-suite.toml: " in (tmp_path / "results/log.txt").read_text()


def test_options_are_those_of_the_command_line() -> None:
    only = {"loss": "dm(batch_real=8)", "space": "glad"}
    args = arguments("run", "quickstart", only=only, checkpoint_seconds=0.5, redo=True, prepare=False, workers=None)
    assert (args.suite, args.only, args.checkpoint_seconds) == ("quickstart", "loss=dm(batch_real=8),space=glad", 0.5)
    assert (args.redo, args.prepare, args.workers) == (True, False, None)
    found = arguments("evaluate", "-odd.pt", archs=["convnet(width=4)", "vit"], mean=[-0.5, 0.5])
    assert (found.archs, found.mean) == ("convnet(width=4),vit", [-0.5, 0.5])
    assert arguments("run", plan="plan.json").suite is None
    asked = arguments("run", "quickstart", executor="slurm", executor_option={"partition": "a b", "gpus": 1, "setup": ["x, y"]})
    assert asked.executor_option == ['partition="a b"', "gpus=1", 'setup=["x, y"]']
    with pytest.raises(ConfigError, match="has no result to give"):
        perform(arguments("run", "quickstart", detach=True))


def test_mistakes_are_raised(tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=r"ddbench\.run: unrecognized arguments: --stroe=x\. Did you mean '--store'\?"):
        ddbench.run("quickstart", stroe="x")
    with pytest.raises(ConfigError, match=r"unknown suite 'quikstart'\. Did you mean 'quickstart'"):
        ddbench.run("quikstart")
    with pytest.raises(BenchError, match="there is no store at"):
        ddbench.records("nowhere")
    with pytest.raises(BenchError, match=r"none\.pt"):
        ddbench.evaluate("none.pt", data="mnist-5k", images="pixels")
    with pytest.raises(BenchError, match=r"none\.pt"):
        ddbench.load_set("none.pt")
    with pytest.raises(AttributeError, match="has no attribute 'recrods'"):
        ddbench.recrods  # noqa: B018
    assert capfd.readouterr() == ("", "")
    assert list(tmp_path.iterdir()) == []


def test_a_set_may_lie_in_two_files(tmp_path: Path) -> None:
    torch.save(torch.zeros(10, 1, 28, 28, dtype=torch.uint8), tmp_path / "images.pt")
    torch.save(torch.arange(10), tmp_path / "labels.pt")
    loaded = ddbench.load_set([tmp_path / "images.pt", str(tmp_path / "labels.pt")], "mnist-5k")
    assert (loaded.images.shape, loaded.labels.argmax(1).tolist()) == ((10, 1, 28, 28), list(range(10)))
    with pytest.raises(ConfigError, match="holds one set: leave out --experiment"):
        ddbench.load_set([tmp_path / "images.pt", tmp_path / "labels.pt"], "mnist-5k", experiment=0)


def test_records_are_frames(tmp_path: Path) -> None:
    plans = seeds(plan_of("dm"), 2)
    write_store(tmp_path / "store", [(plan, [judgement(plan, judging_of(draw=plan.seed), [0.5, 0.75])]) for plan in plans])
    found = ddbench.records(tmp_path / "store")
    assert list(found.sets["seed"]) == [one for _, one in sorted((plan.key, plan.seed) for plan in plans)]
    assert set(found.sets["method"]) == {"dm / pixel"}
    assert set(found.sets["seconds_distill"]) == {1.5}
    means = found.judgements.groupby(["set", "network"])["accuracy"].mean()
    assert list(means) == [0.625, 0.625]
    assert found.faults == []
    (tmp_path / "store" / "sets" / plans[0].key[:16] / "record.json").write_text("{")
    hurt = ddbench.records(tmp_path / "store")
    assert (len(hurt.sets), len(hurt.judgements)) == (1, 2)
    assert hurt.faults


def test_importing_is_quick_and_the_package_can_be_called() -> None:
    code = (
        "import sys, ddbench\n"
        "assert not {'torch', 'pandas', 'numpy'} & sys.modules.keys()\n"
        "assert ddbench.evaluate is sys.modules['ddbench.evaluate'] and callable(ddbench.evaluate)\n"
        "assert not {'torch', 'pandas', 'numpy'} & sys.modules.keys()\n"
        "import ddbench.evaluate.sets\n"
        "assert callable(ddbench.evaluate) and ddbench.evaluate.sets\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr
