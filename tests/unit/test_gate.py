"""The regression gate: silent on noise, loud on a drop, and clear about what does not compare."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.stats
from msgspec.structs import replace
from synthetic_records import (
    CONVNET,
    FULL_DATA,
    GPU,
    MEAN,
    NUM_TEST,
    SHIFTED,
    VERSIONS,
    VIT,
    Judged,
    baseline,
    draw,
    judged,
    judgement,
    method,
    numbered,
    ref,
    results,
    toy_plans,
    toy_records,
    write_store,
)

from ddbench.cli import main
from ddbench.errors import DataError, Faults
from ddbench.leaderboard.baseline import BaselineRow, entries, group_of, read_baseline, write_baseline
from ddbench.leaderboard.gate import ALPHA, Comparison, Report, compare, judge, noise
from ddbench.plan import short

DISTILLED = 2 * 2 * 3  # networks, losses, spaces


def check(before: list[Judged], now: list[Judged], alpha: float = ALPHA) -> Report:
    return compare(entries(results(before)), results(now), alpha)


def around(mean: float, std: float | None) -> tuple[float, ...]:
    """Two accuracies of that mean and standard deviation; one, where there is none."""
    return (mean,) if std is None else (mean - std / 2**0.5, mean + std / 2**0.5)


def entry(means: list[float], stds: list[float | None] | None = None, name: str = "row", **fields: Any) -> BaselineRow:
    seeds = tuple(range(len(means)))
    values: dict[str, Any] = dict.fromkeys(("protocol", "protocol_hash", "table_hash", "data", "data_hash"), "d")
    values |= {"group": name, "name": name, "network": "net", "num_test": NUM_TEST, "selected": False, "seeds": seeds}
    pairs = zip(means, stds or [0.01] * len(seeds), strict=True)
    values |= {"accuracies": tuple(around(*pair) for pair in pairs), "keys": tuple(map(str, seeds))}
    return BaselineRow(**(values | fields))


def moved(row: BaselineRow, means: list[float]) -> BaselineRow:
    """The same with other means of its seeds."""
    return replace(row, accuracies=tuple(around(mean, 0.01) for mean in means))


# What it must and must not notice


def test_equal_stores_are_equal() -> None:
    report = check(toy_records(), toy_records())
    assert len(report.comparisons) == DISTILLED + 4
    assert {each.change for each in report.comparisons} == {0.0}
    assert report.fallen == report.faults == ()
    assert report.num_new == 0


@pytest.mark.parametrize("number", range(1, 9))
def test_ten_points_are_noticed_with_two_seeds_and_two_repeats(number: int) -> None:
    """In every row that fell, and in no other, although every number of the second store was drawn anew."""
    report = check(toy_records(0), toy_records(number, shift=-0.10))
    assert len(report.fallen) == DISTILLED
    assert all("random" not in each.now.name and "full-data" not in each.now.name for each in report.fallen)
    assert all(0.02 < each.detectable < 0.09 for each in report.comparisons if not each.now.selected)


def test_a_row_that_cannot_fall_visibly_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Two seeds of real images that differ by ten points say nothing."""
    write_store(tmp_path / "store", toy_records())
    write_baseline(tmp_path / "baseline.json", results(toy_records()))
    assert main(["check", str(tmp_path / "store"), "--baseline", str(tmp_path / "baseline.json")]) == 0
    out = capsys.readouterr().out
    blind = [line for line in out.splitlines() if line.startswith("random")]
    assert blind
    assert any(" none " in line for line in blind)
    assert "none: not even a fall to nothing would show, for the seeds are too few" in out
    assert " none " not in next(line for line in out.splitlines() if line.startswith("dm / pixel"))


def test_one_row_that_fell_is_the_one_that_is_named() -> None:
    records = toy_records(0)
    plans = [method("dm", "hpd", seed=seed) for seed in (0, 1)]
    records = [each for each in records if each.plan not in plans]
    records += [judged(plan, {"convnet": [0.5, 0.5], "vit": [0.48, 0.48]}) for plan in plans]
    (fallen,) = check(toy_records(0), records).fallen
    assert (fallen.now.name, fallen.now.network) == ("dm / hpd / cvae, toy, ipc 1, toy-1", "convnet")
    assert fallen.now.keys == tuple(short(plan.key) for plan in plans)


def test_one_seed_that_collapses_cannot_hide_behind_the_spread_it_makes() -> None:
    """80 and 10 % instead of 80 and 80 %: the store's own variance would call that noise."""
    rows = [entry([0.80, 0.81], name=str(i)) for i in range(4)]
    broken = [moved(row, [0.80, 0.10]) for row in rows]
    pairs = compare_entries(rows, broken)
    assert all(each.fell for each in pairs)
    assert noise(broken)[0] > 0.2


def compare_entries(before: list[BaselineRow], now: list[BaselineRow], alpha: float = ALPHA) -> tuple[Comparison, ...]:
    return judge(list(zip(before, now, strict=True)), alpha)


def redrawn(rng: np.random.Generator, num_rows: int) -> list[BaselineRow]:
    """Two seeds of two networks in each row, levels fixed, seeds and networks with a std of a point and a half each."""
    level = np.linspace(0.4, 0.8, num_rows)[:, None, None]
    values = level + rng.normal(0, 0.015, (num_rows, 2, 1)) + rng.normal(0, 0.015, (num_rows, 2, 2))
    return [entry(row.mean(1).tolist(), row.std(1, ddof=1).tolist(), str(i)) for i, row in enumerate(values)]


def alarms(alpha: float, shift: float = 0.0, num_rows: int = 8, num: int = 400) -> float:
    """The share of checks that fire, when every number is drawn anew."""
    rng, fired = np.random.default_rng(17), 0
    for _ in range(num):
        before, now = redrawn(rng, num_rows), redrawn(rng, num_rows)
        now = [moved(each, [mean + shift for mean in each.means]) for each in now]
        fired += any(each.fell for each in compare_entries(before, now, alpha))
    return fired / num


def test_false_alarms_keep_to_alpha() -> None:
    """Even other seeds, which vary more than another CPU does, raise hardly an alarm; at 20 % some, so that it can."""
    assert alarms(ALPHA) <= 0.01
    assert 0.02 < alarms(0.2) <= 0.2


def test_a_drop_is_missed_seldom() -> None:
    assert alarms(ALPHA, shift=-0.10) > 0.99


def test_ordinary_numeric_noise_is_silent() -> None:
    """Another CPU: the same seeds, a few test images judged otherwise, in rows that hardly vary otherwise."""
    rng = np.random.default_rng(3)
    before, now = [], []
    for plan, level, _ in toy_plans():
        base = draw(plan, rng, level, spread=0.0)
        other = {name: [value + rng.integers(-8, 9) / NUM_TEST for value in values] for name, values in base.items()}
        before.append(judged(plan, base))
        now.append(judged(plan, other))
    report = check(before, now)
    assert min(each.change for each in report.comparisons) < -0.002
    assert report.fallen == ()


def test_a_rise_is_no_fall() -> None:
    assert check(toy_records(0), toy_records(0, shift=0.2)).fallen == ()


# The formula


def test_detectable_drop_by_hand() -> None:
    """Three rows of two seeds, so df = 3 from the baseline; the store, spread wider, gives 6."""
    means = [[0.50, 0.56], [0.60, 0.62], [0.70, 0.74]]
    before = [entry(row, name=str(i)) for i, row in enumerate(means)]
    variance = np.mean([np.var(row, ddof=1) for row in means])
    level = 1 - ALPHA / 6
    alone = scipy.stats.t.ppf(level, 3) * math.sqrt(2 * variance / 2)
    together = scipy.stats.t.ppf(level, 6) * math.sqrt(2 * variance / 2)
    assert together < alone
    for each in compare_entries(before, before):
        assert (each.detectable, each.df, each.basis) == (pytest.approx(together), 6, "seeds")
    wild = [moved(each, [0.0, 1.0]) for each in before]
    for each in compare_entries(before, wild):
        assert (each.detectable, each.df) == (pytest.approx(alone), 3)


def test_the_test_set_is_a_floor() -> None:
    """Rows that agree to the last image: the binomial variance of 1000 images seen by two networks, p near 0.5."""
    before = [entry([0.5, 0.5], [0.0, 0.0], str(i)) for i in range(3)]
    floor = 0.5 * 0.5 / (NUM_TEST * 2)
    expected = scipy.stats.t.ppf(1 - ALPHA / 6, 6) * math.sqrt(2 * floor / 2)
    (each, *_) = compare_entries(before, before)
    assert each.detectable == pytest.approx(expected)
    (perfect, *_) = compare_entries([entry([1.0, 1.0], [0.0, 0.0])], [entry([0.999, 0.999], [0.0, 0.0])])
    assert not perfect.fell


def test_networks_stand_in_where_there_is_one_seed() -> None:
    before = [entry([0.5], [0.08], "a"), entry([0.5], [0.06], "b")]
    variance = (0.08**2 + 0.06**2) / 2 / 2
    (each, *_) = compare_entries(before, before)
    expected = scipy.stats.t.ppf(1 - ALPHA / 4, 4) * math.sqrt(2 * variance)
    assert (each.detectable, each.df, each.basis) == (pytest.approx(expected), 4, "networks")


def test_the_test_set_stands_in_where_there_is_one_network() -> None:
    before = [entry([0.5], [None])]
    (each,) = compare_entries(before, before)
    expected = scipy.stats.norm.ppf(1 - ALPHA / 2) * math.sqrt(2 * 0.25 / NUM_TEST)
    assert (each.detectable, each.basis) == (pytest.approx(expected), "test set")
    assert each.to_json()["df"] is None


def test_networks_data_and_baselines_do_not_pool() -> None:
    calm = [entry([0.50, 0.501], name=str(i)) for i in range(3)]
    for other in ({"network": "other"}, {"data_hash": "other"}, {"table_hash": "other"}, {"selected": True}):
        noisy = [entry([0.3, 0.7], name=str(i), **other) for i in range(3)]
        drops = [each.detectable for each in compare_entries(calm + noisy, calm + noisy)]
        assert max(drops[:3]) < 0.1 < 1 < min(drops[3:])


# What compares


@pytest.mark.parametrize(
    "change",
    [
        {"loss": replace(ref("losses", "dm"), version="9", distribution="other", label="dm(x=1)")},
        {"loss": ref("losses", "dm", numerics=2)},
        {"engine": 2},
        {"threads": 4},
        {"dataset": ref("datasets", "toy", folder="/elsewhere")},
        {"seed": 7},
        {"resources": ("8" * 64,)},
        {"train_hash": "c" * 64},
    ],
    ids=["version", "numerics", "engine", "threads", "data path", "seed", "resources", "data"],
)
def test_a_group_survives(change: dict[str, Any]) -> None:
    plan = method("dm", "pixel")
    assert group_of(replace(plan, **change)) == group_of(plan)


@pytest.mark.parametrize(
    "change",
    [
        {"loss": ref("losses", "dm", batch_real=8)},
        {"loss": ref("losses", "dc")},
        {"steps": 101},
        {"rates": {"pixels": 1.0}},
        {"ipc": 10},
        {"labels": "learned"},
        {"backbone": VIT},
        {"dataset": ref("datasets", "other")},
    ],
    ids=str,
)
def test_a_group_is_another(change: dict[str, Any]) -> None:
    plan = method("dm", "pixel")
    assert group_of(replace(plan, **change)) != group_of(plan)


def test_another_release_compares() -> None:
    now = []
    for plan, level, seconds in toy_plans():
        if plan.loss:
            plan = replace(plan, loss=ref("losses", plan.loss.name, numerics=2))
        values = draw(plan, np.random.default_rng(plan.seed), level - 0.2 * bool(plan.loss))
        now.append(judged(plan, values, seconds=seconds, versions=VERSIONS | {"ddbench": "0.2.0"}, hardware=GPU, source="b"))
    report = check(toy_records(), now)
    assert report.faults == ()
    assert len(report.fallen) == DISTILLED


def test_two_releases_in_a_store_are_both_compared_and_no_baseline() -> None:
    plan = method("dm", "pixel")
    newer = replace(plan, space=ref("spaces", "pixel", numerics=2))
    values = {"convnet": [0.8, 0.8], "vit": [0.7, 0.7]}
    lower = {"convnet": [0.2, 0.2], "vit": [0.7, 0.7]}
    both = [judged(each, v) for one, v in ((plan, values), (newer, lower)) for each in (one, replace(one, seed=1))]
    report = check(both[:2], both)
    assert len(report.comparisons) == 4
    assert {each.df for each in report.comparisons} == {3}  # of one row of the baseline and two of the store
    assert [each.now.name for each in report.fallen] == ["dm / pixel [space.numerics=2], toy, ipc 1, toy-1"]
    with pytest.raises(Faults, match="differ in versions, threads or paths alone"):
        write_baseline(Path("unused"), results(both))


def test_seeds_that_the_baseline_lacks_do_not_count() -> None:
    before, now = toy_records(0, seeds=(0, 1)), toy_records(0, seeds=(0, 1))
    now += [judged(method("dm", "pixel", seed=2), {"convnet": [0.0, 0.0], "vit": [0.0, 0.0]})]
    report = check(before, now)
    assert {each.change for each in report.comparisons} == {0.0}
    assert {each.now.seeds for each in report.comparisons} == {(0, 1), (0,)}


def test_repeats_that_the_baseline_lacks_do_not_count() -> None:
    """One more repeat costs itself, and does not end the comparison."""
    one = judged(method("dm", "pixel"), {"convnet": [0.5, 0.6]})
    more = judgement(one.set, CONVNET, [0.0], first=2)
    (each,) = check([one], [Judged(one.set, (*one.judgements, more))]).comparisons
    assert (each.change, each.now.num_repeats) == (0.0, 2)


def test_a_network_that_the_baseline_lacks_is_new() -> None:
    one = judged(method("dm", "pixel"), {"convnet": [0.5, 0.6]})
    more = judgement(one.set, VIT, [0.0, 0.0])
    report = check([one], [Judged(one.set, (*one.judgements, more))])
    assert (len(report.comparisons), report.faults, report.num_new) == (1, (), 1)


def test_full_data_come_once_under_the_protocol_that_asked_for_them() -> None:
    longer = judged(method("dm", "pixel"), {"convnet": [0.5]}, protocol=numbered("a-1", epochs=999))
    full = judged(baseline(FULL_DATA), {"convnet": [0.9]})
    own = judged(method("dm", "pixel"), {"convnet": [0.5]})
    names = [each.name for each in entries(results([longer, full, own]))]
    assert sorted(names) == ["dm / pixel, toy, ipc 1, a-1", "dm / pixel, toy, ipc 1, toy-1", "full-data, toy, toy-1"]


def without(records: list[Judged], **where: Any) -> list[Judged]:
    """Less those of loss dm in space pixel, and of a seed if one is given."""
    plans = {method("dm", "pixel", seed=seed).key for seed in (0, 1) if where.get("seed", seed) == seed}
    return [each for each in records if each.plan.key not in plans]


def test_a_missing_row_is_a_fault() -> None:
    report = check(toy_records(), without(toy_records()))
    assert report.faults == tuple(
        f"'dm / pixel, toy, ipc 1, toy-1' on {network} is in the baseline and not in the store. "
        "Run its suite, or write the baseline anew."
        for network in ("convnet", "vit")
    )
    assert len(report.comparisons) == DISTILLED + 2


def test_a_missing_seed_is_a_fault() -> None:
    report = check(toy_records(), without(toy_records(), seed=1))
    assert len(report.faults) == 2
    assert all("the store lacks seed 1 of the baseline" in fault for fault in report.faults)


def test_missing_repeats_are_a_fault() -> None:
    plan, values = method("dm", "pixel"), {"convnet": [0.5, 0.5], "vit": [0.5, 0.5]}
    report = check([judged(plan, values)], [judged(plan, {name: v[:1] for name, v in values.items()})])
    assert "the store lacks the 2 repeats of the baseline" in report.faults[0]


@pytest.mark.parametrize(
    ("change", "fields", "sentence"),
    [
        ({"train_hash": "c" * 64}, {}, "the store has data toy "),
        ({}, {"test_hash": "c" * 64}, "the store has data toy "),
        ({}, {"protocol": numbered("glad-1", epochs=1000)}, "the store has protocol glad-1 "),
    ],
    ids=["training data", "test data", "protocol"],
)
def test_other_data_and_other_protocols_are_faults(change: dict[str, Any], fields: dict[str, Any], sentence: str) -> None:
    plan, values = method("dm", "pixel"), {"convnet": [0.5, 0.5], "vit": [0.5, 0.5]}
    report = check([judged(plan, values)], [judged(replace(plan, **change), values, **fields)])
    assert report.comparisons == ()
    assert len(report.faults) == 2
    assert all(sentence in fault and "They do not compare." in fault for fault in report.faults)


def test_equal_numbers_under_another_id_compare() -> None:
    plan, values = method("dm", "pixel"), {"convnet": [0.5, 0.5]}
    report = check([judged(plan, values)], [judged(plan, values, protocol=replace(SHIFTED, id="another"))])
    assert (len(report.comparisons), report.faults) == (1, ())


def test_new_rows_are_counted_and_not_compared() -> None:
    report = check(without(toy_records()), toy_records())
    assert (len(report.comparisons), report.faults, report.num_new) == (DISTILLED + 2, (), 2)


def habits(level: float = 0.1) -> list[Judged]:
    """Two sets that repeat a habit of published code."""
    values = {"convnet": [level, level], "vit": [level, level]}
    return [judged(method("dm", "glad", seed=seed, synthetic_mean=MEAN), values, protocol=SHIFTED) for seed in (0, 1)]


def test_a_habit_is_neither_compared_nor_new() -> None:
    report = check(toy_records(), toy_records() + habits())
    assert (len(report.comparisons), report.faults, report.num_new, report.num_unranked) == (DISTILLED + 4, (), 0, 2)
    assert all(each.now.protocol == "toy-1" for each in report.comparisons)
    assert check(toy_records(), toy_records()).num_unranked == 0


def test_a_habit_makes_no_entry() -> None:
    assert entries(results(habits())) == []
    assert entries(results(toy_records() + habits())) == entries(results(toy_records()))


# The file


def test_a_baseline_comes_back_as_it_was_written(tmp_path: Path) -> None:
    made = results(toy_records())
    path = tmp_path / "baseline.json"
    assert write_baseline(path, made) == DISTILLED + 4
    assert read_baseline(path) == entries(made)
    value = json.loads(path.read_bytes())
    assert value["schema"] == 3
    row = next(row for row in value["rows"] if row["name"] == "dm / pixel, toy, ipc 1, toy-1" and row["network"] == "vit")
    values = [each.accuracies["vit"] for each in made if short(each.key) in row["keys"]]
    assert sorted(row["accuracies"]) == sorted(map(list, values))
    assert (row["seeds"], row["num_test"]) == ([0, 1], NUM_TEST)


def test_an_empty_store_is_no_baseline(tmp_path: Path) -> None:
    with pytest.raises(Faults, match="no judged set"):
        write_baseline(tmp_path / "baseline.json", [])
    assert not (tmp_path / "baseline.json").exists()


def test_a_store_of_habits_alone_is_no_baseline(tmp_path: Path) -> None:
    with pytest.raises(Faults, match="no judged set to write a baseline of, or none is ranked"):
        write_baseline(tmp_path / "baseline.json", results(habits()))
    assert not (tmp_path / "baseline.json").exists()


def edit(change: Callable[[dict[str, Any]], Any]) -> Callable[[str], str]:
    def edited(text: str) -> str:
        value = json.loads(text)
        change(value)
        return json.dumps(value)

    return edited


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text[: len(text) // 2],
        lambda text: "",
        lambda text: "[]",
        lambda text: "[" * 100_000,
        edit(lambda value: value.pop("schema")),
        edit(lambda value: value.update(schema=1)),
        edit(lambda value: value.update(schema=2)),
        edit(lambda value: value.update(schema=4)),
        edit(lambda value: value.update(schema=True)),
        edit(lambda value: value.update(rows=[])),
        edit(lambda value: value.update(rows={})),
        edit(lambda value: value.update(rows=[None])),
        edit(lambda value: value["rows"][3].pop("accuracies")),
        edit(lambda value: value["rows"][3].update(accuracies=[[0.5]])),
        edit(lambda value: value["rows"][3].update(accuracies=[[0.5], []])),
        edit(lambda value: value["rows"][3].update(accuracies=[[0.5], [61.2]])),
        edit(lambda value: value["rows"][3].update(accuracies=[[0.5], [math.nan]])),
        edit(lambda value: value["rows"][3].update(accuracies=[[0.5], [None]])),
        edit(lambda value: value["rows"][3].update(accuracies=0.5)),
        edit(lambda value: value["rows"][3].update(seeds=[0, 0])),
        edit(lambda value: value["rows"][3].update(num_test=0)),
        edit(lambda value: value["rows"][3].update(name=3)),
        edit(lambda value: value["rows"][3].update(keys=[1, 2])),
        edit(lambda value: value["rows"][3].update(more=1)),
    ],
)
def test_a_damaged_baseline_is_one_sentence(
    damage: Callable[[str], str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, records = tmp_path / "baseline.json", toy_records()
    write_store(tmp_path / "store", records)
    write_baseline(path, results(records))
    path.write_text(damage(path.read_text()))
    with pytest.raises(DataError):
        read_baseline(path)
    assert main(["check", str(tmp_path / "store"), "--baseline", str(path)]) == 2
    output = capsys.readouterr()
    assert output.out == ""
    assert len(output.err.splitlines()) == 1
    assert str(path) in output.err


def test_a_baseline_of_before_says_how_to_write_it_anew(tmp_path: Path) -> None:
    path = tmp_path / "baseline.json"
    path.write_text(json.dumps({"schema": 1, "rows": []}))
    told = f"has schema 1, this ddbench reads 3. Write it anew with: ddbench check STORE --write-baseline {path}"
    with pytest.raises(DataError, match=re.escape(told)):
        read_baseline(path)


# The verb


@pytest.fixture
def kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    write_store(tmp_path / "old", toy_records(0))
    path = tmp_path / "baseline.json"
    assert main(["check", str(tmp_path / "old"), "--write-baseline", str(path)]) == 0
    assert capsys.readouterr().out == f"{path}\n"
    return path


def test_the_verb_passes(kept: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_store(kept.parent / "new", toy_records(1))
    assert main(["check", str(kept.parent / "new"), "--baseline", str(kept)]) == 0
    text = capsys.readouterr().out
    assert "FELL" not in text
    assert text.count(" ok\n") == DISTILLED + 4
    assert "t(1 - alpha / 2m, df) * sqrt(2 v / seeds)" in text
    assert "alpha = 1 %" in text


def test_the_verb_fires_and_names_rows_and_sets(kept: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_store(kept.parent / "new", toy_records(1, shift=-0.1))
    assert main(["check", str(kept.parent / "new"), "--baseline", str(kept)]) == 1
    text = capsys.readouterr().out
    assert text.count(" FELL\n") == DISTILLED
    lines = [line for line in text.splitlines() if line.startswith("fell: dm / pixel, toy, ipc 1, toy-1 on vit by ")]
    assert len(lines) == 1
    assert short(method("dm", "pixel", seed=1).key) + " (seed 1)" in lines[0]


def test_the_verb_lists_faults_after_the_table(kept: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_store(kept.parent / "new", without(toy_records(1, shift=-0.1)))
    assert main(["check", str(kept.parent / "new"), "--baseline", str(kept)]) == 2
    output = capsys.readouterr()
    assert output.out.count(" FELL\n") == DISTILLED - 2
    assert output.err.count("is in the baseline and not in the store") == 2


def test_the_verb_speaks_json(kept: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_store(kept.parent / "new", without(toy_records(1, shift=-0.1)))
    assert main(["check", str(kept.parent / "new"), "--baseline", str(kept), "--json"]) == 2
    value = json.loads(capsys.readouterr().out)
    assert (len(value["rows"]), len(value["faults"]), value["alpha"]) == (DISTILLED + 2, 2, ALPHA)
    for row in value["rows"]:
        assert row["change"] == pytest.approx(row["now"] - row["baseline"])
        assert row["fell"] == (row["change"] < -row["smallest_detectable_drop"])


def test_the_verb_says_what_it_left_out(kept: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store, other = kept.parent / "new", kept.parent / "other.json"
    write_store(store, toy_records(0))
    assert main(["check", str(store), "--baseline", str(kept)]) == 0
    assert "a habit" not in capsys.readouterr().out
    write_store(store, habits())
    assert main(["check", str(store), "--baseline", str(kept)]) == 0
    assert "\n2 judged sets that repeat a habit of published code left out.\n" in capsys.readouterr().out
    assert main(["check", str(store), "--baseline", str(kept), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["num_unranked"] == 2
    assert main(["check", str(store), "--write-baseline", str(other)]) == 0
    output = capsys.readouterr()
    assert (output.out, output.err) == (f"{other}\n", "2 judged sets that repeat a habit of published code left out.\n")
    assert other.read_bytes() == kept.read_bytes()


def test_an_empty_store_does_not_pass(kept: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_store(kept.parent / "new", [])
    assert main(["check", str(kept.parent / "new"), "--baseline", str(kept)]) == 2
    output = capsys.readouterr()
    assert "0 comparisons" in output.out
    assert output.err.count("not in the store") == DISTILLED + 4


def test_a_damaged_file_is_a_warning_and_its_row_a_fault(kept: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = write_store(kept.parent / "new", toy_records(0))
    path = store.folder(method("dm", "pixel", seed=1).key) / "record.json"
    path.write_text("{")
    assert main(["check", str(store.root), "--baseline", str(kept)]) == 2
    error = capsys.readouterr().err
    assert error.startswith("warning: ")
    assert str(path) in error.splitlines()[0]
    assert error.count("the store lacks seed 1 of the baseline") == 2
    assert main(["check", str(store.root), "--write-baseline", str(kept.parent / "other.json")]) == 2
    assert not (kept.parent / "other.json").exists()
