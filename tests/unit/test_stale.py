"""A plugin whose code is edited under the same version: told, computed again when asked, and never one row of two codes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from grid_runs import CONVNET, assert_no_leftovers, contents, times
from msgspec.structs import replace
from stores import PLACE, judgement, judging_of, plan_of, set_contents, set_record

from ddbench.cli import main
from ddbench.grid import stale
from ddbench.grid.planning import Planned
from ddbench.grid.stale import Stale, find_stale, told
from ddbench.plan import Cell
from ddbench.results.contents import read_contents
from ddbench.results.store import Store

Capture = pytest.CaptureFixture[str]

LOSS = '''
from dataclasses import dataclass
from ddbench.api import Loss

SCALE = {scale}

@dataclass(frozen=True)
class Mean(Loss):
    """Squared distance of class means."""
    rates = {{"pixels": 10.0, "f": 1.0, "w": 0.01}}

    def backward(self, syn, memory, run):
        means = [run.real(c, 64, run.rng("real", run.step, c)).mean(0) for c in range(run.spec.num_classes)]
        value = SCALE * sum((syn.images[syn.classes == c].mean(0) - mean).square().sum() for c, mean in enumerate(means))
        value.backward(inputs=syn.leaves)
        {last}
        return value.detach()
'''

SUITE = """
schema = 1
name = "stale"
protocol = "smoke-1"
seeds = {seeds}
subsets = ["mnist-5k"]
losses = ["tests-mean"]
spaces = ["pixel"]
backbone = {convnet}
networks = [{convnet}]
baselines = []
[distill]
steps = {steps}
"""

# What a store holds and what is installed, without running anything


NOW = {"loss 'dm'": "1" * 64, "space 'pixel'": "2" * 64, "architecture 'convnet'": "3" * 64}


@pytest.fixture
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Store, Planned]:
    """Four sets: as installed now, of another loss's source, without sources, and judged with another network's source."""
    monkeypatch.setattr(stale, "sources", lambda refs: {key: NOW[key] for key in NOW if f"'{refs[0].name}'" in key})
    store, judging = Store(tmp_path / "store"), judging_of()
    plans = [plan_of(seed=seed) for seed in range(4)]
    of_sets = [NOW, NOW | {"loss 'dm'": "9" * 64}, {}, NOW]
    of_judgements = [NOW, NOW, NOW, NOW | {"architecture 'convnet'": "9" * 64}]
    for plan, before, judged in zip(plans, of_sets, of_judgements, strict=True):
        store.publish_set(plan, set_record(plan, place=replace(PLACE, sources=before)), set_contents(plan))
        store.publish_judgement(judgement(plan, judging, [0.5], place=replace(PLACE, sources=judged)))
    return store, Planned(tuple(Cell(plan, (judging,), 1, "smoke-1") for plan in plans))


def test_only_what_was_made_with_other_source_is_stale(made: tuple[Store, Planned]) -> None:
    store, planned = made
    found = find_stale(planned, read_contents(store), store)
    keys = [cell.set.key for cell in planned.cells]
    path = store.judgement(keys[3], judging_of().key, 0, 0)
    assert found == [
        Stale("set", keys[1], store.folder(keys[1]), ("loss 'dm'",)),
        Stale("judgement", keys[3], path, ("architecture 'convnet'",)),
    ]
    ours = Planned(planned.cells[:1])
    assert find_stale(ours, read_contents(store), store) == []  # what is not asked for is not looked at


def test_a_sentence_for_each_plugin() -> None:
    here = Path("x")
    found = [Stale("set", "a", here, ("loss 'dm'",)), Stale("set", "b", here, ("loss 'dm'", "space 'pixel'")), Stale("judgement", "c", here, ("loss 'dm'",))]  # fmt: skip  # noqa: E501
    more = "of this store were made; they are kept as they are. Add --redo to compute them again."
    assert told(found) == [
        f"the source of loss 'dm' has changed since 1 judgement, 2 sets {more}",
        f"the source of space 'pixel' has changed since 1 set {more}",
    ]
    assert told([]) == []


def test_what_is_stale_or_damaged_of_a_suite_goes_and_nothing_else(made: tuple[Store, Planned]) -> None:
    store, planned = made
    keys = [cell.set.key for cell in planned.cells]
    (store.folder(keys[2]) / "set.safetensors").write_bytes(b"x")
    (store.folder(keys[0]) / "notes.txt").write_text("mine")
    contents, before = read_contents(store), times(store.root, "sets", "judgements")
    gone = stale.drop(find_stale(planned, contents, store), contents, Planned(planned.cells[1:]), store)
    assert sum(line.startswith("set ") for line in gone) == 2
    left = times(store.root, "sets", "judgements")
    assert left.items() <= before.items()
    assert {path.parent.name for path in left} == {keys[0][:16], keys[3][:16]}
    assert not store.judgement(keys[3], judging_of().key, 0, 0).exists()
    assert (store.folder(keys[0]) / "notes.txt").is_file()


# The whole way


class Edited:
    """A plugin that is installed, a suite of it, and a store."""

    def __init__(self, root: Path) -> None:
        self.module, self.root, self.store = root / "site" / "tests_mean.py", root, root / "store"
        info = root / "site" / "tests_mean-0.1.dist-info"
        info.mkdir(parents=True)
        (info / "entry_points.txt").write_text("[ddbench.losses]\ntests-mean = tests_mean:Mean\n")
        self.edit(1.0)
        self.suite()

    def edit(self, scale: float, last: str = "pass") -> None:
        self.module.write_text(LOSS.format(scale=scale, last=last))

    def suite(self, seeds: str = "[0]", steps: int = 3) -> None:
        (self.root / "stale.toml").write_text(SUITE.format(seeds=seeds, convnet=CONVNET, steps=steps))

    def call(self, capfd: Capture, verb: str, *more: str) -> tuple[int, Any, str]:
        capfd.readouterr()
        words = [] if verb == "plan" else ["--workers", "1"]
        code = main([verb, str(self.root / "stale.toml"), "--store", str(self.store), "--json", *words, *more])
        out, error = capfd.readouterr()
        return code, json.loads(out), error


@pytest.fixture
def edited(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Edited]:
    import sys

    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    yield Edited(tmp_path)
    sys.modules.pop("tests_mean", None)


TOLD = "the source of loss 'tests-mean' has changed since 1 set of this store were made"


@pytest.mark.long
def test_an_edited_plugin_is_told_and_redo_computes_it_again(edited: Edited, capfd: Capture) -> None:
    code, summary, error = edited.call(capfd, "run")
    assert (code, len(summary["computed"])) == (0, 2)
    assert "the source of" not in error
    first = contents(edited.store)
    edited.edit(-3.0)
    for verb in ("plan", "run"):
        code, summary, error = edited.call(capfd, verb)
        assert code == 0
        assert TOLD in error
    assert (summary["present"], summary["computed"]) == (2, [])
    assert contents(edited.store) == first  # nothing finished is lost unasked

    edited.suite("[0, 1]")
    code, summary, error = edited.call(capfd, "run")
    assert (code, len(summary["computed"]), summary["present"]) == (0, 2, 2)
    page = Path(summary["leaderboard"]).read_text()
    assert page.count("tests-mean / pixel [source of loss 'tests-mean'=") >= 2  # never one row of two codes
    assert "other sources of loss" not in page

    code, summary, error = edited.call(capfd, "run", "--redo")
    assert code == 0
    assert len(summary["computed"]) == 2
    assert "is removed, to be made again where it is needed." in error
    again = contents(edited.store)
    changed = {name for name in first if first[name] != again[name]}
    assert {name.rpartition("/")[2] for name in changed if name.startswith("sets")} >= {"set.safetensors", "record.json"}
    code, _, error = edited.call(capfd, "run")
    assert "the source of" not in error


@pytest.mark.long
def test_a_mended_plugin_does_not_go_on_from_what_it_has_spoilt(edited: Edited, capfd: Capture) -> None:
    """The checkpoint of the failed attempt holds NaN."""
    spoil = 'syn.images.grad.fill_(float("nan")) if run.step >= 1 else None'
    edited.edit(1.0, spoil)
    code, summary, error = edited.call(capfd, "run", "--checkpoint-seconds", "0")
    assert code == 1
    assert any("NaN" in sentence for sentence in summary["failed"].values()), error
    assert list(edited.store.glob("work/set-*/checkpoint.safetensors"))
    edited.edit(1.0)
    code, summary, error = edited.call(capfd, "run", "--checkpoint-seconds", "0")
    assert (code, summary["failed"], len(summary["computed"])) == (0, {}, 2), error
    assert_no_leftovers(edited.store)
    assert all(one.record.steps == 3 for one in read_contents(Store(edited.store)).sets.values())
