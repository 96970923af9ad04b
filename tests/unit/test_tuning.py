"""Tuning rates: the grid, the images and streams of trials, what is chosen, and that nothing of it is taken for a result."""

from __future__ import annotations

import ast
import dataclasses
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import in_process
import pytest
import synthetic_records as synthetic
import torch
from grid_runs import contents as files_of
from grid_runs import hear_interrupts, make_home, until
from msgspec.structs import replace
from test_grid import GOOD, changed, faults, load
from test_imports import ALL, imports

from ddbench import schema
from ddbench.cli import main
from ddbench.compute.resources import needs_of
from ddbench.compute.run import open_run
from ddbench.data.subsets import identify, load_scoring, load_training
from ddbench.durations import duration
from ddbench.errors import DataError
from ddbench.grid import do, runner
from ddbench.grid.planning import planning_run
from ddbench.grid.tuning import methods_of
from ddbench.leaderboard import legend
from ddbench.leaderboard.beside import Surroundings
from ddbench.leaderboard.join import results_of
from ddbench.leaderboard.page import page_text
from ddbench.leaderboard.sections import sections
from ddbench.leaderboard.tuned import lines as trial_lines
from ddbench.plan import SetPlan
from ddbench.refs import PluginRef
from ddbench.results.contents import Contents, read_contents
from ddbench.results.merge import merge
from ddbench.results.store import Store
from ddbench.results.trials import check_trial, check_tuning, drop_trials, publish_tuning
from ddbench.schema import TrialRecord, Tried, TuningRecord
from ddbench.trials import UNTUNED, Scoring, Tuning, choose, default_factors, tuning_key

CPU = torch.device("cpu")
MNIST = PluginRef.resolve("datasets", "mnist-5k", {})
NETWORK = '{ name = "convnet", width = 4, depth = 1 }'
SUITE = f"""
schema = 1
name = "tiny"
protocol = "smoke-1"
seeds = [0, 1]
subsets = ["mnist-5k"]
losses = [{{ name = "dm", batch_real = 4 }}]
spaces = ["pixel", {{ name = "glad", layer = 2 }}]
generator = {{ name = "cvae-random", width = 8 }}
backbone = {NETWORK}
networks = [{NETWORK}]
baselines = ["random"]
[distill]
steps = 6
"""
TUNE = "[tune]\ntrials = 4\nsteps = 0.5\n"

# ---------------------------------------------------------------- the grid and the choice


def test_the_default_grid_is_fixed_and_holds_a_methods_own_rates() -> None:
    assert default_factors(8) == (0.01, 0.03162, 0.1, 0.3162, 1.0, 3.162, 10.0, 31.62)
    assert default_factors(4) == (0.01, 0.1, 1.0, 10.0)
    assert all(1.0 in default_factors(num) for num in range(2, 65, 2))


def test_the_smallest_mean_wins_and_of_equal_ones_the_smaller_rates() -> None:
    grid = [{"f": 3.0}, {"f": 1.0}, {"f": 2.0}]
    sound = [False] * 3
    assert choose(grid, [[0.5, 0.6], [0.9, 0.1], [0.6, 0.6]], sound) == 1
    assert choose(grid, [[0.5, 0.6], [0.6, 0.5], [0.55, 0.55]], sound) == 1
    assert choose(grid, [[0.5, 0.6], [0.0, 0.0], [0.5, 0.6]], [False, True, False]) == 2
    assert choose(grid, [[0.5], [0.5], [0.5]], [True] * 3) is None


def test_every_method_has_as_many_trials_and_its_own_grid(tmp_path: Path) -> None:
    text = changed("losses", '["dm", { name = "mtt", num_experts = 1, expert_epochs = 1, max_start_epoch = 1 }]')
    methods = methods_of(load(tmp_path, text + "[tune]\ntrials = 4\n").cells)
    assert len(methods) == 2 * 2 * 2  # losses, spaces, ipcs; whatever the seed
    assert {len(method.tuning.grid) for method in methods} == {4}
    for method in methods:
        own, last = method.plan.rates, method.tuning.grid[3]
        assert method.tuning.grid[2] == own
        scaled = {name for name in own if last[name] == own[name] * 10}
        assert own.keys() - scaled == ({"student_rate"} if method.plan.loss and method.plan.loss.name == "mtt" else set())


def test_rates_of_ones_own_are_taken_side_by_side(tmp_path: Path) -> None:
    text = GOOD + "[tune.rates]\npixels = [3, 1]\nf = [5, 7]\n"
    grids = {method.plan.method: method.tuning.grid for method in methods_of(load(tmp_path, text).cells)}
    assert [rates["pixels"] for rates in grids["dm / pixel"]] == [3.0, 1.0]
    glad = grids["dm / glad(layer=2) / cvae"]
    assert [(rates["f"], rates["pixels"]) for rates in glad] == [(5.0, 3.0), (7.0, 1.0)]
    assert len({rates["w"] for rates in glad}) == 1


def test_a_trial_takes_a_share_of_the_steps_and_one_at_least(tmp_path: Path) -> None:
    (method, *_) = methods_of(load(tmp_path, GOOD + "[tune]\nsteps = 0.33\n").cells)
    assert (method.plan.steps, method.trial(0, 0).steps) == (7, 2)
    (method, *_) = methods_of(load(tmp_path, changed("steps", "1") + "[tune]\nsteps = 0.01\n").cells)
    assert method.trial(0, 0).steps == 1


WRONG = {
    "trials = 0": "'tune.trials' must be an even number from 2 to 64, so that a method's own rates are one of them, got 0.",
    "trials = 5": "'tune.trials' must be an even number from 2 to 64, so that a method's own rates are one of them, got 5.",
    "trials = true": "'tune.trials' must be an even number from 2 to 64, so that a method's own rates are one of them, got True.",
    "trails = 4": "'tune' has no key 'trails'. Did you mean 'trials'? It takes: trials, factors, rates, steps, seeds, repeats, "
    "epochs, held_out.",
    "trials = 4\nfactors = [1, 2]": "'tune' has trials and factors, which exclude one another: keep one of them.",
    "factors = [1]": "'tune.factors' must be a list of 2 to 64 numbers, got [1].",
    "factors = [1, -2]": "'tune.factors' holds -2; each entry must be a number above 0.",
    "factors = [1, nan]": "'tune.factors' holds nan; each entry must be a number above 0.",
    "rates = { pixls = [1, 2], pixels = [1, 2], f = [1, 2] }": "there is no tensor 'pixls' to tune. Did you mean 'pixels'? "
    "Known: f, labels, pixels, w.",
    "rates = { pixels = [1, 2], f = [1, 2, 3] }": "'tune.rates' must have as many values for every tensor, one a trial; it has "
    "pixels 2, f 3.",
    "rates = { w = [1, 2] }": "'tune.rates' lists w, and dm / pixel has none of these: its trials would all be one.",
    "rates = {}": "'tune.rates' names no tensor, as in rates = { pixels = [0.1, 1, 10] }.",
    "steps = 0": "'tune.steps' is a share of a method's steps, above 0 and at most 1, got 0.0.",
    "steps = 300": "'tune.steps' is a share of a method's steps, above 0 and at most 1, got 300.0.",
    "repeats = 0": "'tune.repeats' must be a whole number from 1 to 100, got 0.",
    "held_out = 1": "'tune.held_out' must lie between 0 and 1, got 1.0.",
}


@pytest.mark.parametrize("text", WRONG, ids=[text.replace("\n", " ") for text in WRONG])
def test_what_is_wrong_with_the_table_is_said(tmp_path: Path, text: str) -> None:
    assert WRONG[text] in faults(tmp_path, f"{GOOD}[tune]\n{text}\n")


def test_a_grid_without_distillations_has_nothing_to_tune(tmp_path: Path) -> None:
    text = changed("losses", "[]") + "[tune]\n"
    assert faults(tmp_path, text) == ["'tune' tunes the rates of distillations, and the grid distils nothing: take it out."]


def test_a_suite_that_is_tuned_has_the_keys_that_it_had(tmp_path: Path) -> None:
    plain, tuned = load(tmp_path, GOOD), load(tmp_path, GOOD + "[tune]\n")
    assert [cell.set.key for cell in plain.cells] == [cell.set.key for cell in tuned.cells]


# ---------------------------------------------------------------- images and streams


def rows(images: torch.Tensor) -> list[bytes]:
    return [image.numpy().tobytes() for image in images]


def test_the_images_that_score_trials_train_and_rank_nothing() -> None:
    """All four parts together are the training split, and validation is the same with trials as without."""
    whole, trial = (load_training(MNIST, None, 0.1, CPU, share) for share in (0.0, 0.25))
    images, labels = load_scoring(MNIST, None, 0.1, 0.25)
    assert labels.bincount().tolist() == [90] * 10
    assert trial.counts == (270,) * 10
    assert torch.equal(trial.validation_images, whole.validation_images)
    assert sorted([*rows(trial.images), *rows(images)]) == sorted(rows(whole.images))
    parts = [set(rows(part)) for part in (trial.images, trial.validation_images, images)]
    assert len(set.union(*parts)) == sum(map(len, parts)) == len({*rows(whole.images), *rows(whole.validation_images)})


def a_plan(**changes: Any) -> SetPlan:
    values: dict[str, Any] = {"dataset": MNIST, "train_hash": identify(MNIST, None).train_hash, "ipc": 1, "seed": 0}
    network = PluginRef.resolve("architectures", "convnet", {"width": 4, "depth": 1})
    parts = {"loss": "dm", "space": "pixel"}
    refs = {role: PluginRef.resolve({"loss": "losses", "space": "spaces"}[role], name, {}) for role, name in parts.items()}
    how = {"held_out": 0.1, "backbone": network, "rates": {"pixels": 1.0}, "steps": 3}
    return SetPlan(**(values | refs | how | changes))


def test_a_trial_draws_from_streams_that_no_reported_set_has() -> None:
    """Whatever the seeds: the names of the streams begin otherwise."""
    reported, trial = a_plan(), a_plan(tuning=0.25)
    data = load_training(MNIST, None, 0.1, CPU)
    one, other = (open_run(plan, data, CPU, {}) for plan in (reported, trial))
    assert one.root == ("distill", 0)
    assert other.root == ("tune", 0)
    assert not torch.equal(torch.rand(8, generator=one.rng("x")), torch.rand(8, generator=other.rng("x")))
    assert reported.key != trial.key
    assert trial.check() == []
    assert a_plan(tuning=1.0).check() == ["'tuning' must lie in [0, 1), got 1.0."]


def test_what_trials_share_has_not_seen_the_images_that_score_them() -> None:
    """Resources of trials are others; but they draw the same numbers, so that a random generator is the same."""
    generator = PluginRef.resolve("generators", "cvae", {"epochs": 1, "width": 8})
    space = PluginRef.resolve("spaces", "glad", {"layer": 2})
    plans = [a_plan(generator=generator, space=space, tuning=share) for share in (0.0, 0.25)]
    (one,), (other,) = (needs_of(plan, planning_run(plan), ()) for plan in plans)
    assert one.key != other.key
    assert one.stream == other.stream


def test_scoring_imports_nothing_that_knows_the_test_split() -> None:
    """Neither directly, nor by what it imports."""
    seen: set[str] = set()
    todo = ["ddbench.compute.score"]
    while todo:
        name = todo.pop()
        # The package itself has functions for notebooks, which import when they are called.
        if name in seen or name not in ALL["ddbench"] or name == "ddbench":
            continue
        seen.add(name)
        todo += [target for target, _, _ in imports(ALL["ddbench"][name])]
    assert "ddbench.compute.train" in seen
    assert "ddbench.data.sealed" not in seen
    for name in ("ddbench.grid.do_trial", "ddbench.grid.tuning", "ddbench.cli.tune"):
        path = ALL["ddbench"][name]
        targets = {target for target, _, _ in imports(path)}
        assert not {target for target in targets if target == "ddbench.data.sealed" or target.startswith("ddbench.evaluate")}
        names = {node.attr for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Attribute)}
        assert not names & {"test_data", "tests", "open_test"}


# ---------------------------------------------------------------- tuning a real suite, in this process


@pytest.fixture(scope="module")
def light() -> Iterator[pytest.MonkeyPatch]:
    """Jobs are done in this process."""
    with pytest.MonkeyPatch.context() as patch:
        in_process.be_light(patch)
        patch.setattr(runner, "run_jobs", in_process.run_jobs)
        yield patch


def refuse(*given: Any) -> None:
    raise AssertionError("the test split was opened")


@pytest.fixture(scope="module")
def tuned(light: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a suite and its store, tuned; the test split cannot be opened meanwhile."""
    home = tmp_path_factory.mktemp("tuned")
    (home / "tiny.toml").write_text(SUITE + TUNE)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(do, "open_test", refuse)
        assert main(["tune", str(home / "tiny.toml"), "--store", str(home / "store"), "--device", "cpu"]) == 0
    return home


@pytest.fixture
def copy(tuned: Path, tmp_path: Path) -> Store:
    """A store of one's own."""
    shutil.copytree(tuned / "store", tmp_path / "store")
    return Store(tmp_path / "store")


def call(capsys: pytest.CaptureFixture[str], *words: Any) -> tuple[int, Any, str]:
    """Exit code, the JSON, what stderr got."""
    capsys.readouterr()
    code = main([*map(str, words), "--json"])
    out, error = capsys.readouterr()
    return code, json.loads(out) if out else None, error


@pytest.mark.slow
def test_the_choice_is_the_best_trial_and_all_of_them_are_kept(tuned: Path) -> None:
    contents = read_contents(Store(tuned / "store"))
    assert contents.faults == ()
    assert (len(contents.trials), len(contents.tunings), len(contents.sets), len(contents.judgements)) == (8, 2, 8, 0)
    for record in contents.tunings.values():
        assert record.tuning.budget == (4, 1, 0.5)
        means = [sum(point.errors) / len(point.errors) for point in record.tried]
        assert means[record.choice] == min(means)
        assert record.plan.rates == record.tried[record.choice].rates
        assert record.seconds > 0
    for trial in contents.trials.values():
        assert (trial.num_scored, len(trial.errors), trial.plan.steps) == (360, 2, 3)
        assert contents.sets[trial.plan.key].plan == trial.plan


@pytest.mark.slow
def test_a_second_call_computes_nothing_and_any_order_gives_the_same(
    tuned: Path, copy: Store, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    suite = tuned / "tiny.toml"
    before = {path: path.read_bytes() for path in copy.root.rglob("*.json")}
    code, told, _ = call(capsys, "tune", suite, "--store", copy.root, "--device", "cpu")
    assert (code, told["computed"], told["present"]) == (0, [], 8)
    assert before == {path: path.read_bytes() for path in copy.root.rglob("*.json")}
    turned = tmp_path / "turned.toml"
    text = suite.read_text().replace('spaces = ["pixel", ', "spaces = [").replace("layer = 2 }]", 'layer = 2 }, "pixel"]')
    turned.write_text(text)
    elsewhere = tmp_path / "elsewhere"
    for only in ("space=glad,seed=1", "space=pixel"):
        assert main(["tune", str(turned), "--store", str(elsewhere), "--device", "cpu", "--only", only]) == 0
    assert files_of(elsewhere, "sets", "trials") == files_of(copy.root, "sets", "trials")
    choices = [
        {key: (record.choice, [point.errors for point in record.tried]) for key, record in read_contents(store).tunings.items()}
        for store in (copy, Store(elsewhere))
    ]
    assert choices[0] == choices[1]


def board(store: Path) -> str:
    return (store / "leaderboard" / "leaderboard.md").read_text()


@pytest.mark.slow
def test_a_run_takes_what_was_chosen_and_the_board_says_what_that_took(
    tuned: Path, copy: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    code, _, error = call(capsys, "run", tuned / "tiny.toml", "--store", copy.root, "--device", "cpu")
    assert (code, error.count("not tuned")) == (0, 0)
    contents = read_contents(copy)
    chosen = {record.key: record.plan.rates for record in contents.tunings.values()}
    reported = [one for one in contents.sets.values() if one.plan.loss and not one.plan.is_trial]
    assert len(reported) == 4
    for one in reported:
        assert one.plan.rates == chosen[one.record.rates_from]
        assert (one.plan.tuning, one.plan.steps) == (0.0, 6)
    judged = {record.set_key for record in contents.judgements}
    assert judged == {key for key, one in contents.sets.items() if not one.plan.is_trial}
    page = board(copy.root)
    assert page.count("4 trials of 50% of the steps, ") == 2
    assert re.search(r"\| random +\|.*\| +– \|\n", page)
    assert "### Tuning" in page
    assert re.search(r"`ddbench tune suites/tiny-\w+.toml --only loss=dm,space=pixel`, then `ddbench run", page)
    assert "not ranked" not in page.partition("## How to read")[0]
    assert "no network has judged" not in page
    code, told, _ = call(capsys, "leaderboard", copy.root)
    assert [(row["tuning"] or {}).get("trials") for row in told["ranked"]] == [None, 4, 4]
    assert told["not_ranked"] == []
    assert main(["store", "verify", str(copy.root)]) == 0
    assert "14 sets, 6 judgements, 8 trials, 2 tunings" in capsys.readouterr().out


@pytest.mark.slow
def test_rows_that_were_not_tuned_alike_are_not_ranked(tuned: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    suite, store = tuned / "tiny.toml", tmp_path / "store"
    run = ["run", suite, "--store", store, "--device", "cpu"]
    code, _, error = call(capsys, *run)
    assert code == 0
    assert "not tuned yet, and made at their own rates, which boards do not rank: dm(batch_real=4) / pixel, dm" in error
    assert {one.record.rates_from for one in read_contents(Store(store)).sets.values() if one.plan.loss} == {UNTUNED}
    code, told, _ = call(capsys, "leaderboard", store)
    assert [row["method"] for row in told["ranked"]] == ["random"]
    assert [row["untuned"] for row in told["not_ranked"]] == [True, True]
    assert "## Rates not tuned (not ranked)" in board(store)

    tune = ["tune", suite, "--store", store, "--device", "cpu"]
    assert call(capsys, *tune, "--only", "space=pixel")[0] == 0
    assert call(capsys, *run)[0] == 0
    code, told, _ = call(capsys, "leaderboard", store)
    assert [row["space"] for row in told["ranked"]] == [None, "pixel"]

    assert call(capsys, *tune, "--trials", "2", "--only", "space=glad")[0] == 0  # of fewer trials
    assert call(capsys, *run)[0] == 0
    code, told, _ = call(capsys, "leaderboard", store)
    assert [row["space"] for row in told["ranked"]] == [None, "pixel"]
    assert {(row["tuning"] or {}).get("trials") for row in told["not_ranked"]} == {None, 2}


GOLDEN = """\
| method                | same arch. (convnet) | cross-arch. mean | vit | seeds | networks per seed | KiB | s to distil | tuning |
| random | 45.0 ± 0.0 | 30.0 ± 0.0 | 30.0 ± 0.0 | 2 | 1 | 4.0 | – | – |
| dm / pixel § | 60.0 ± 0.0 | 45.0 ± 0.0 | 45.0 ± 0.0 | 2 | 1 | 4.0 | 11.0 | 3 trials x 2 seeds, 600 s |
| method | rates | held-out error (%) | s | which |
| dm / pixel | pixels 1 | **40.0 ± 14.1** | 200.0 | chosen |
| dm / pixel | pixels 10 | 50.0 ± 14.1 | 200.0 | own |
| dm / pixel | pixels 100 | diverged | 200.0 | |
| method | same arch. (convnet) | cross-arch. mean | vit | seeds | networks per seed | KiB | s to distil |
| dm / glad / cvae | 70.0 ± 0.0 | 55.0 ± 0.0 | 55.0 ± 0.0 | 2 | 1 | 30.6 | 11.0 |
"""


def a_choice(method: SetPlan) -> TuningRecord:
    """Of the smallest of three rates, the largest of which diverged."""
    grid = tuple(method.rates | {"pixels": rate} for rate in (1.0, 10.0, 100.0))
    scoring = Scoring(numbers=synthetic.PROTOCOL.judging, repeats=1, training=1)
    tuning = Tuning(grid=grid, seeds=2, share=1.0, held_out=0.1, scoring=scoring)
    errors = [(0.3, 0.5), (0.4, 0.6), (1.0, 0.2)]
    tried = tuple(
        Tried(rates=rates, trials=("a" * 64, "b" * 64), errors=found, diverged=1.0 in found, seconds=200.0)
        for rates, found in zip(grid, errors, strict=True)
    )
    record = TuningRecord(
        key=tuning_key(method.stem, tuning), suite="toy", method=method, tuning=tuning, tried=tried, choice=0
    )  # fmt: skip
    check_tuning(record)
    return record


@pytest.mark.parametrize(
    ("grid", "choice", "is_at_end"),
    [
        ([{"f": 1.0}, {"f": 10.0}, {"f": 100.0}], 0, True),
        ([{"f": 1.0}, {"f": 10.0}, {"f": 100.0}], 1, False),
        ([{"f": 1.0}, {"f": 10.0}, {"f": 100.0}], 2, True),
        ([{"f": 10.0}, {"f": 1.0}, {"f": 100.0}], 0, False),  # in any order
        ([{"f": 0.01}, {"f": 1.0}], 1, False),  # of two trials each is an end
        ([{"f": 1.0, "w": 0.1}, {"f": 10.0, "w": 1.0}, {"f": 100.0, "w": 1.0}], 2, True),
        ([{"f": 1.0, "w": 1.0}, {"f": 10.0, "w": 0.1}, {"f": 100.0, "w": 1.0}], 2, False),  # no line
        ([{"f": 1.0}, {"f": 1.0}, {"f": 1.0}], 0, False),  # nothing to choose between
        ([{}, {}, {}], 0, False),
    ],
)
def test_only_a_grid_that_could_go_on_has_an_end(grid: list[dict[str, float]], choice: int, is_at_end: bool) -> None:
    tried = [Tried(rates=rates, trials=("a" * 64,), errors=(0.5,), diverged=False, seconds=1.0) for rates in grid]
    record = a_choice(synthetic.method("dm", "pixel", rates={"pixels": 10.0}))
    assert replace(record, tried=tuple(tried), choice=choice).is_at_end == is_at_end


def test_own_rates_that_no_trial_had_stand_before_the_trials() -> None:
    own = synthetic.method("dm", "pixel", rates={"pixels": 5.0})
    record = a_choice(own)
    one = synthetic.judged(replace(own, rates={"pixels": 1.0}), {"convnet": [0.5]})
    results, _ = results_of(dataclasses.replace(synthetic.contents_of([one]), tunings={record.key: record}))
    (section,) = sections(results)
    assert [(line["rates"], line["which"]) for line in trial_lines(section)] == [
        ("pixels 5", "own"), ("pixels 1", "chosen"), ("pixels 10", ""), ("pixels 100", ""),
    ]  # fmt: skip


def test_a_board_of_a_tuned_row_and_one_that_is_not() -> None:
    own = synthetic.method("dm", "pixel", rates={"pixels": 10.0})
    plans = [
        (replace(own, rates={"pixels": 1.0}), 0.6), (synthetic.method("dm", "glad", rates={"f": 1.0}), 0.7),
        (synthetic.baseline(synthetic.RANDOM), 0.45),
    ]  # fmt: skip
    accuracies = [(replace(plan, seed=seed), level) for plan, level in plans for seed in (0, 1)]
    records = [synthetic.judged(plan, {"convnet": [level], "vit": [level - 0.15]}) for plan, level in accuracies]
    contents = synthetic.contents_of(records)
    record = a_choice(own)
    results, notes = results_of(dataclasses.replace(contents, tunings={record.key: record}))
    assert notes == []
    page = page_text(results, Surroundings())
    wanted = [re.sub(r" +", " ", line) for line in GOLDEN.splitlines()]
    lines = [re.sub(r" +", " ", line) for line in page.splitlines()]
    assert [line for line in lines if line in wanted] == wanted
    assert "§ dm / pixel: Its rates lie at the end of the grid that they were chosen from." in lines
    assert legend.TUNING in page
    assert legend.UNTUNED in page
    plain = page_text(results_of(contents)[0], Surroundings())
    assert "tun" not in plain  # a board of a store without tuning says nothing of it
    assert [len(section.rows) for section in sections(results_of(contents)[0])] == [3]


@pytest.mark.slow
def test_a_plan_tells_what_is_there(
    tuned: Path, copy: Store, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    suite = tuned / "tiny.toml"
    monkeypatch.chdir(tmp_path)  # where there is no store
    _, told, _ = call(capsys, "plan", suite)
    assert told["tuning"] == {"methods": 2, "chosen": 0, "trials": 8, "there": 0, "missing": 8, "seconds": None}
    _, told, _ = call(capsys, "plan", suite, "--store", copy.root)
    assert told["tuning"] == {"methods": 2, "chosen": 2, "trials": 8, "there": 8, "missing": 0, "seconds": 0}
    for path in list((copy.root / "trials").iterdir())[:3]:
        path.unlink()
    _, told, _ = call(capsys, "plan", suite, "--store", copy.root)
    assert (told["tuning"]["missing"], told["tuning"]["seconds"] > 0) == (3, True)
    assert main(["plan", str(suite), "--store", str(copy.root)]) == 1
    about = f"3 missing, about {duration(told['tuning']['seconds'])} on one worker. Make them with: ddbench tune"
    assert about in capsys.readouterr().out


@pytest.mark.slow
def test_trials_that_diverge_are_kept_as_the_worst(light: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    suite, store = tmp_path / "wild.toml", tmp_path / "store"
    text = SUITE.replace('spaces = ["pixel", { name = "glad", layer = 2 }]', 'spaces = ["pixel"]')
    suite.write_text(text + "[tune]\nfactors = [1e30, 1]\n")
    code, told, error = call(capsys, "tune", suite, "--store", store, "--device", "cpu")
    (method,) = told["methods"]
    assert (code, told["failed"]) == (0, {})
    assert [(trial["diverged"], trial["error"] is None, trial["chosen"]) for trial in method["trials"]] == [
        (True, True, False), (False, False, True),
    ]  # fmt: skip
    assert "end of the grid" not in error  # of two trials
    (wild,) = (record for record in read_contents(Store(store)).trials.values() if record.diverged)
    assert (wild.errors, wild.set_sha256) == ((1.0, 1.0), "")
    assert "NaN or infinite" in wild.diverged
    assert list((store / "work").glob("[st]*")) == []
    suite.write_text(text + "[tune]\nfactors = [1e30, 1e31]\n")
    code, told, error = call(capsys, "tune", suite, "--store", store, "--device", "cpu")
    assert (code, told["methods"][0]["rates"]) == (1, None)
    assert "dm(batch_real=4) / pixel, mnist-5k, ipc 1: nothing is chosen: trials are missing, or all have diverged." in error


def test_mistakes_are_sentences(light: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    suite = tmp_path / "tiny.toml"

    def said(text: str, *more: str) -> str:
        suite.write_text(SUITE + text)
        assert main(["tune", str(suite), "--store", str(tmp_path / "store"), *more]) == 2
        return capsys.readouterr().err

    nothing = "has no rates to tune here: that takes a table [tune] in it, or --trials 8, and a cell that distils."
    assert nothing in said("")
    assert nothing in said(TUNE, "--only", "baseline=random")
    assert "'tune.trials' must be an even number from 2 to 64" in said("", "--trials", "0")
    left = "'tune.held_out' leaves trials 0 training images of the smallest class of 'mnist-5k', and they distil 1 of a class"
    assert left in said("[tune]\nheld_out = 0.999\n")
    assert not (tmp_path / "store").exists()


@pytest.mark.slow
def test_a_set_of_a_trial_is_never_judged(tuned: Path, copy: Store, capsys: pytest.CaptureFixture[str]) -> None:
    contents = read_contents(copy)
    plan = next(iter(contents.sets.values())).plan
    file = copy.folder(plan.key) / "set.safetensors"
    assert main(["evaluate", str(file), "--store", str(copy.root), "--protocol", "smoke-1"]) == 2
    assert "is of a trial by which rates were chosen: no test image judges it" in capsys.readouterr().err


# ---------------------------------------------------------------- what is checked when it is read


def first_trial(store: Store) -> tuple[Path, TrialRecord]:
    path = sorted((store.root / "trials").iterdir())[0]
    return path, schema.read(path, TrialRecord, "trial")


def first_tuning(store: Store) -> tuple[Path, TuningRecord]:
    path = sorted((store.root / "tuning").iterdir())[0]
    return path, schema.read(path, TuningRecord, "tuning")


def better(store: Store) -> None:
    path, record = first_trial(store)
    schema.write(path, replace(record, errors=(0.0, 0.0)))


def lost(store: Store) -> None:
    first_trial(store)[0].unlink()


def setless(store: Store) -> None:
    store.drop_set(first_trial(store)[1].plan.key)


def other_choice(store: Store) -> None:
    path, record = first_tuning(store)
    schema.write(path, replace(record, choice=(record.choice + 1) % 4))


def misplaced(store: Store) -> None:
    path, record = first_trial(store)
    schema.write(path.with_name(f"{'0' * 16}.json"), record)


def torn(store: Store) -> None:
    path, _ = first_tuning(store)
    path.write_bytes(path.read_bytes()[:100])


def strange(store: Store) -> None:
    (store.root / "trials" / "notes.txt").write_text("x")


HURT: dict[Callable[[Store], None], tuple[str, ...]] = {
    better: ("has other errors than its trials",),
    lost: ("names trials that are not there",),
    setless: ("is of a set that is not there", "names trials that are not there"),
    other_choice: ("its choice is not the best of its trials",),
    misplaced: ("is another one",),
    torn: ("is damaged",),
    strange: ("is nothing of a store's",),
}


@pytest.mark.slow
@pytest.mark.parametrize("hurt", HURT, ids=lambda hurt: hurt.__name__)
def test_what_is_wrong_is_named_and_left_out(copy: Store, hurt: Callable[[Store], None]) -> None:
    hurt(copy)
    contents = read_contents(copy)
    told = [fault.sentence for fault in contents.faults]
    assert len(told) == len(HURT[hurt])
    for words in HURT[hurt]:
        assert any(words in sentence for sentence in told), told
    assert main(["store", "verify", str(copy.root)]) == 1


@pytest.mark.slow
def test_records_that_contradict_themselves_are_not_written(copy: Store) -> None:
    _, trial = first_trial(copy)
    _, tuning = first_tuning(copy)
    for wrong in (
        replace(trial, key="0" * 64), replace(trial, plan=replace(trial.plan, tuning=0.0)), replace(trial, errors=(0.5,)),
        replace(trial, set_sha256=""),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=r"its key|no trial's|errors of|did not diverge"):
            check_trial(wrong)
    for bad in (replace(tuning, key="0" * 64), replace(tuning, tried=tuning.tried[::-1]), replace(tuning, choice=9)):
        with pytest.raises(ValueError, match=r"its key|its grid|its choice"):
            check_tuning(bad)
    with pytest.raises(ValueError, match="its choice"):
        publish_tuning(copy, replace(tuning, choice=9))


@pytest.mark.slow
def test_two_stores_of_trials_become_one(tuned: Path, copy: Store, tmp_path: Path) -> None:
    into = Store(tmp_path / "into")
    report = merge(into, copy)
    assert report.is_clean
    assert (report.added["trials"], report.added["tunings"]) == (8, 2)
    assert contents_alike(read_contents(into), read_contents(copy))
    again = merge(into, copy)
    assert (sum(again.added.values()), again.present["trials"], again.present["tunings"]) == (0, 8, 2)
    path, record = first_trial(into)
    schema.write(path, replace(record, errors=(0.75, 0.75)))
    (name,) = (each.key for each in read_contents(copy).tunings.values() if any(record.key in p.trials for p in each.tried))
    into.tuning(name).unlink()
    report = merge(into, copy)
    assert len(report.differing) == 1
    assert f"trial {record.key[:16]}" in report.differing[0]


def contents_alike(one: Contents, other: Contents) -> bool:
    return (one.sets, one.trials, one.tunings) == (other.sets, other.trials, other.tunings)


@pytest.mark.slow
def test_trials_are_taken_away_with_their_sets_when_they_are_made_again(copy: Store) -> None:
    _, record = first_trial(copy)
    sound = read_contents(copy).trials
    assert drop_trials(copy, sound, {record.plan.key}) == [f"trial {record.key[:16]}"]
    assert len(read_contents(copy).trials) == 7
    with copy.lock(f"trial-{first_trial(copy)[1].key[:16]}"), pytest.raises(DataError, match="by another process"):
        drop_trials(copy, sound, {first_trial(copy)[1].plan.key})


@pytest.mark.slow
def test_what_is_damaged_is_made_again_where_asked(tuned: Path, copy: Store, capsys: pytest.CaptureFixture[str]) -> None:
    tune = ["tune", tuned / "tiny.toml", "--store", copy.root, "--device", "cpu"]
    torn(copy)
    assert call(capsys, *tune)[0] == 0  # the choice follows from its trials
    assert read_contents(copy).faults == ()
    setless(copy)
    code, told, error = call(capsys, *tune)
    assert (code, told["computed"]) == (1, [])
    assert "nothing is chosen: trials are missing" in error
    code, told, _ = call(capsys, *tune, "--redo")
    assert (code, len(told["computed"])) == (0, 1)
    assert files_of(copy.root, "sets", "trials") == files_of(tuned / "store", "sets", "trials")


# ---------------------------------------------------------------- with the real runner


@pytest.mark.long
def test_a_tuning_that_was_killed_goes_on_with_two_workers_to_the_same_choice(tuned: Path, tmp_path: Path) -> None:
    """Killed after its first trial; what was there is not made again."""
    store = tmp_path / "store"
    command = [sys.executable, "-m", "ddbench", "tune", str(tuned / "tiny.toml"), "--store", str(store), "--device", "cpu"]
    process = subprocess.Popen(
        [*command, "--workers", "1"], start_new_session=True, preexec_fn=hear_interrupts, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )  # fmt: skip
    until(lambda: list((store / "trials").glob("[0-9a-f]*.json")), process)
    assert process.poll() is None
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    times = {path: path.stat().st_mtime_ns for path in (store / "trials").glob("[0-9a-f]*.json")}
    assert 1 <= len(times) < 8
    done = subprocess.run([*command, "--workers", "2"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert {path: path.stat().st_mtime_ns for path in times} == times
    assert files_of(store, "sets", "trials") == files_of(tuned / "store", "sets", "trials")
    ours, theirs = (read_contents(Store(root)).tunings for root in (store, tuned / "store"))
    assert {key: record.choice for key, record in ours.items()} == {key: record.choice for key, record in theirs.items()}
    assert list((store / "work").glob("[st]*")) == []


@pytest.mark.long
def test_what_a_plugin_does_to_its_process_does_not_reach_the_scores(tmp_path: Path) -> None:
    """The set is made, its process ends, and another scores."""
    home = make_home(tmp_path)
    suite = home.suite("stained", [home.scripted("matmul")])
    suite.write_text(suite.read_text() + "[tune]\nfactors = [0.5, 1]\n")
    command = [sys.executable, "-m", "ddbench", "tune", str(suite), "--store", str(tmp_path / "store"), "--device", "cpu"]
    done = subprocess.run(command, env=os.environ | {"PYTHONPATH": home.path}, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "store" / "trials"
    found = [schema.read(path, TrialRecord, "trial") for path in folder.iterdir()]
    assert [len(record.errors) for record in found] == [2, 2]
    assert all("A plugin of this job changed" in " ".join(record.marks) for record in found)
    assert len({pid for pid, *_ in home.steps("matmul")}) == 2
