"""Leaderboards: honest statistics, tables that mix nothing, a page that is the same from the same records."""

from __future__ import annotations

import copy
import json
import math
import os
import random
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from synthetic_records import (
    BASE,
    CHOICE,
    CONVNET,
    HARDWARE,
    SHIFTED,
    SOFT,
    TEACHER,
    VERSIONS,
    VIT,
    cells_of,
    cost,
    draw,
    method,
    record,
    ref,
    right,
    toy_plans,
    toy_records,
    write_store,
)

from ddbench.cli import main
from ddbench.leaderboard.cells import read_cells
from ddbench.leaderboard.costs import cost_table, of_section
from ddbench.leaderboard.habits import bases, choice, choice_table, difference, difference_table, iterates
from ddbench.leaderboard.page import Surroundings, commands, page_text, write
from ddbench.leaderboard.rows import Section, sections
from ddbench.leaderboard.statistics import accuracy, cross_accuracy, cross_mean, pooled_variance, t_quantile
from ddbench.leaderboard.tables import (
    accuracy_table,
    escape,
    machines_table,
    points,
    ratio,
    spread_table,
    timing_table,
    with_error,
)

GOLDEN = Path(__file__).parent.parent / "golden" / "leaderboard.md"
LEVELS = {"convnet": [0.5, 0.52], "vit": [0.4, 0.42]}


def one_section(records: list[dict[str, Any]]) -> Section:
    (section,) = sections(cells_of(records))
    return section


# Statistics


@pytest.mark.parametrize(
    ("probability", "df", "value"),
    [(0.975, 1, 12.7062), (0.975, 2, 4.3027), (0.975, 4, 2.7764), (0.99, 3, 4.5407), (0.975, math.inf, 1.9600)],
)
def test_t_quantiles_are_those_of_printed_tables(probability: float, df: float, value: float) -> None:
    assert t_quantile(probability, df) == pytest.approx(value, abs=5e-5)


@given(st.floats(0.5, 0.99999), st.integers(1, 200))
def test_t_quantile_is_scipys(probability: float, df: int) -> None:
    assert t_quantile(probability, df) == pytest.approx(scipy.stats.t.ppf(probability, df), rel=1e-6, abs=1e-9)


def test_accuracy_by_hand() -> None:
    """Seeds' means 0.61 and 0.67: std 0.06 / sqrt(2), half-width 12.7062 * 0.03; stds over networks 0.02 / sqrt(2)."""
    made = accuracy([[0.60, 0.62], [0.66, 0.68]], num_test=1000)
    assert made.mean == pytest.approx(0.64)
    assert made.by_seed == pytest.approx((0.61, 0.67))
    assert made.std_seeds == pytest.approx(0.06 / math.sqrt(2))
    assert made.half_width == pytest.approx(12.7062 * 0.03, rel=1e-5)
    assert made.std_networks == pytest.approx(0.02 / math.sqrt(2))
    assert made.test_error == pytest.approx(math.sqrt(0.64 * 0.36 / 1000))
    assert made.num_seeds == 2


def test_repeats_are_no_seeds() -> None:
    """Ten networks that agree on one set say nothing about other sets: the interval is over the two seeds alone."""
    few, many = (accuracy([[0.6] * repeats, [0.7] * repeats], 1000) for repeats in (1, 10))
    assert few.half_width == many.half_width == pytest.approx(12.7062 * 0.05, rel=1e-5)


def test_one_seed_has_no_interval() -> None:
    made = accuracy([[0.6, 0.7]], 1000)
    assert made.half_width is made.std_seeds is None
    assert with_error(made) == "65.0 ± 7.1 †"
    assert with_error(accuracy([[0.6]], 1000)) == "60.0 †"
    assert with_error(accuracy([[0.6, 0.61], [0.62, 0.63]], 1000)) == "61.5 ± 1.4"
    assert with_error(None) == "–"


shapes = st.tuples(st.integers(1, 4), st.integers(2, 5), st.integers(2, 5))


@given(shapes.flatmap(lambda shape: arrays(float, shape, elements=st.floats(0, 1))))
def test_cross_accuracy_is_numpys(values: np.ndarray) -> None:
    """[network, seed, repeat]: networks are averaged within each seed; stds are averaged, not pooled."""
    made = cross_accuracy(values.tolist(), 500)
    by_seed = values.mean((0, 2))
    interval = scipy.stats.t.interval(0.95, len(by_seed) - 1, by_seed.mean(), 1) if len(by_seed) > 1 else (0, 0)
    half_width = (interval[1] - interval[0]) / 2 * scipy.stats.sem(by_seed)
    assert made.mean == pytest.approx(values.mean(), abs=1e-12)
    assert made.std_seeds == pytest.approx(by_seed.std(ddof=1), abs=1e-9)
    assert made.half_width == pytest.approx(half_width, abs=1e-7)
    assert made.std_networks == pytest.approx(values.std(2, ddof=1).mean(), abs=1e-9)


@given(st.lists(arrays(float, st.integers(1, 5), elements=st.floats(0, 1)), max_size=5))
def test_pooled_variance_is_that_of_the_residuals(groups: list[np.ndarray]) -> None:
    residuals = sum(float(((group - group.mean()) ** 2).sum()) for group in groups)
    df = sum(len(group) - 1 for group in groups)
    assert pooled_variance([group.tolist() for group in groups]) == (
        pytest.approx(residuals / max(df, 1), abs=1e-12),
        df,
    )


# Rows


def test_order_of_rows() -> None:
    names = [row.name for row in one_section(toy_records()).rows]
    methods = [f"{loss} / {space}" for loss in ("dc", "dm") for space in ("glad / cvae", "hpd / cvae", "pixel")]
    assert names == ["random", *methods, "full-data"]


def test_a_rows_numbers_come_from_its_own_cells() -> None:
    plans = [method("dm", "pixel", seed=seed) for seed in (0, 1)]
    values = [{"convnet": [0.60, 0.62], "vit": [0.40, 0.44]}, {"convnet": [0.66, 0.68], "vit": [0.50, 0.50]}]
    others = [record(method("dm", "glad", seed=seed), LEVELS) for seed in (0, 1)]
    section = one_section([*map(record, plans, values), *others])
    (line,) = accuracy_table(section).query("method == 'dm / pixel'").to_dict("records")
    assert line["same arch. (convnet)"] == f"64.0 ± {100 * 0.06 / 2**0.5:.1f}"
    assert line["vit"] == line["cross-arch. mean"] == f"46.0 ± {100 * 0.08 / 2**0.5:.1f}"
    assert (line["seeds"], line["networks per seed"], line["KiB"], line["s to distil"]) == ("2", "2", "4.0", "11.0")
    (line,) = spread_table(section).query("method == 'dm / pixel'").to_dict("records")
    assert line["same arch. (convnet)"] == f"{100 * 12.7062 * 0.03:.1f} / 1.4 / 1.5"
    assert line["vit"] == f"{100 * 12.7062 * 0.04:.1f} / 1.4 / 1.6"


def test_the_cross_architecture_mean_leaves_the_backbone_out() -> None:
    resnet = ref("architectures", "resnet18")
    plan = replace(method("dm", "pixel"), networks=(CONVNET, VIT, resnet))
    values = {"convnet": [0.9, 0.9], "vit": [0.4, 0.4], "resnet18": [0.6, 0.6]}
    section = one_section([record(plan, values)])
    (line,) = accuracy_table(section).to_dict("records")
    assert line["same arch. (convnet)"] == "90.0 ± 0.0 †"
    assert line["cross-arch. mean"] == "50.0 ± 0.0 †"
    alone = one_section([record(replace(plan, networks=(CONVNET,)), values), record(replace(plan, seed=1), values)])
    assert [row.cross and row.cross.mean for row in alone.rows] == [None, 0.5]


def test_rows_judged_by_fewer_networks_say_so() -> None:
    resnet = ref("architectures", "resnet18")
    values = {"convnet": [0.9], "vit": [0.4], "resnet18": [0.6]}
    plan = method("dm", "pixel")
    section = one_section(
        [record(plan, values), record(replace(method("dm", "glad"), networks=(CONVNET, VIT, resnet)), values)]
    )
    assert dict(accuracy_table(section)[["method", "cross-arch. mean"]].itertuples(index=False)) == {
        "dm / pixel": "40.0 † (1 of 2 networks)",
        "dm / glad / cvae": "50.0 †",
    }


def test_a_backbone_that_judges_nothing_has_no_same_architecture() -> None:
    section = one_section([record(replace(method("dm", "pixel"), networks=(VIT,)), LEVELS)])
    assert accuracy_table(section)["same arch. (convnet)"].tolist() == ["–"]


def test_several_backbones_are_named_and_keep_their_columns() -> None:
    section = one_section(
        [record(method("dm", "pixel"), LEVELS), record(replace(method("dm", "pixel"), backbone=VIT), LEVELS)]
    )
    assert [row.name for row in section.rows] == ["dm / pixel on convnet", "dm / pixel on vit"]
    table = accuracy_table(section)
    assert {"same arch.", "convnet", "vit"} <= set(table.columns)
    assert table["same arch."].tolist() == ["51.0 ± 1.4 †", "41.0 ± 1.4 †"]


@pytest.mark.parametrize(
    ("change", "fields"),
    [
        ({"protocol": replace(BASE.protocol, id="glad-1")}, {}),
        ({"protocol": replace(BASE.protocol, epochs=301)}, {}),  # same id, other content: somebody edited it
        ({"data_hash": "c" * 64}, {"label": "toy (copy cccccccc)", "original": False}),
        ({"data_hash": "c" * 64}, {}),  # same name, other images
        ({"labels": "learned"}, {}),
        ({"protocol": SOFT, "teacher": TEACHER}, {}),
        ({"protocol": replace(SOFT, id="toy-1"), "teacher": TEACHER}, {}),
        ({"protocol": SHIFTED}, {}),
        ({"ipc": 10}, {}),
    ],
    ids=["protocol", "edited protocol", "copy", "data", "labels", "teacher", "teacher, same id", "habit", "ipc"],
)
def test_what_does_not_compare_never_shares_a_table(change: dict[str, Any], fields: dict[str, Any]) -> None:
    plan = method("dm", "pixel")
    other = replace(plan, **change)
    made = sections(cells_of([record(plan, LEVELS), record(other, LEVELS, **fields)]))
    assert sorted(cell.key for section in made for row in section.rows for cell in row.cells) == sorted(
        [plan.key, other.key]
    )
    assert [len(section.rows) for section in made] == [1, 1]


@pytest.mark.parametrize("labels", ["hard", "learned"])
def test_soft_labels_of_a_teacher_are_called_so(labels: str) -> None:
    """Whatever the set's own labels: the networks never saw them."""
    plan = replace(method("dm", "pixel", labels=labels), protocol=SOFT, teacher=TEACHER)
    records = [record(plan, LEVELS), record(replace(BASE, protocol=SOFT, teacher=TEACHER, baseline="random"), LEVELS)]
    assert one_section(records).labels == "teacher"
    text = page_text(cells_of(records), Surroundings()).partition("## How to read")[0]
    assert "\n## toy, IPC 1, soft labels (teacher), protocol soft-1\n" in text
    assert "a teacher (resnet18-bn, 50 epochs on the real training images) labels every batch" in text
    assert f"{labels} labels, protocol" not in text
    assert "Baselines train on hard labels" not in text


def test_labels_that_a_teacher_stored_have_a_table_of_their_own() -> None:
    plans = [method("dm", "pixel", labels=labels) for labels in ("hard", "teacher")]
    text = page_text(cells_of([record(plan, LEVELS) for plan in plans]), Surroundings()).partition("## How to read")[0]
    assert text.count("\n## toy, IPC 1, hard labels, protocol ") == 1
    assert text.count("\n## toy, IPC 1, stored soft labels, protocol ") == 1
    assert "labels every batch" not in text


def test_under_a_teacher_the_sets_own_labels_tell_rows_apart() -> None:
    plans = [replace(method("dm", "pixel", labels=labels), protocol=SOFT, teacher=TEACHER) for labels in ("hard", "learned")]
    names = [row.name for row in one_section([record(plan, LEVELS) for plan in plans]).rows]
    assert names == ["dm / pixel [labels=hard]", "dm / pixel [labels=learned]"]


def test_a_copy_of_the_data_is_called_one() -> None:
    plan = replace(method("dm", "pixel"), data_hash="c" * 64)
    text = page_text(cells_of([record(plan, LEVELS, label="toy (copy cccccccc)", original=False)]), Surroundings())
    assert "## toy (copy cccccccc), IPC 1, hard labels, protocol toy-1" in text
    assert "A copy: its files are not the published ones." in text


def test_full_data_stand_in_every_ipc_of_their_data_and_protocol() -> None:
    full = replace(BASE, baseline="full-data")
    plans = [full, replace(full, data_hash="c" * 64), method("dm", "pixel"), method("dm", "pixel", ipc=10)]
    made = sections(cells_of(record(plan, LEVELS) for plan in plans))
    found = [(section.data["hash"][0], section.ipc, [row.name for row in section.rows]) for section in made]
    assert found == [
        ("c", None, ["full-data"]),
        ("d", 1, ["dm / pixel", "full-data"]),
        ("d", 10, ["dm / pixel", "full-data"]),
    ]


@pytest.mark.parametrize(
    ("change", "fields", "names"),
    [
        ({"steps": 200}, {}, ["dm / pixel [steps=100]", "dm / pixel [steps=200]"]),
        ({"rates": {"pixels": 0.5}}, {}, ["dm / pixel [rates.pixels=0.5]", "dm / pixel [rates.pixels=unset]"]),
        (
            {"loss": replace(ref("losses", "dm"), version="0.2.0")},
            {},
            ["dm / pixel [loss version=ddbench 0.1.0]", "dm / pixel [loss version=ddbench 0.2.0]"],
        ),
        (
            {"seed": 1},
            {"versions": VERSIONS | {"torch": "2.7.0"}},
            ["dm / pixel [torch=2.6.0]", "dm / pixel [torch=2.7.0]"],
        ),
        ({"seed": 1}, {"versions": VERSIONS | {"python": "3.11.10"}}, ["dm / pixel"]),
        ({"seed": 1}, {"hardware": HARDWARE | {"device": "Other"}}, ["dm / pixel"]),
        (
            {"loss": ref("losses", "dm", "dm(batch_real=8)", batch_real=8)},
            {},
            ["dm / pixel", "dm(batch_real=8) / pixel"],
        ),
    ],
    ids=["steps", "rates", "plugin version", "torch", "python", "hardware", "setting"],
)
def test_rows_are_told_apart_by_what_differs(change: dict[str, Any], fields: dict[str, Any], names: list[str]) -> None:
    plan = method("dm", "pixel")
    section = one_section([record(plan, LEVELS), record(replace(plan, **change), LEVELS, **fields)])
    assert [row.name for row in section.rows] == names
    assert len(accuracy_table(section)) == len(names)


def test_rows_that_nothing_tells_apart_get_their_keys() -> None:
    """A default changed, and nobody changed the version: the labels are equal, the settings are not."""
    plans = [replace(method("dm", "pixel"), loss=ref("losses", "dm", "dm", batch_real=size)) for size in (8, 16)]
    names = [row.name for row in one_section([record(plan, LEVELS) for plan in plans]).rows]
    assert names == sorted(f"dm / pixel [{plan.key[:16]}]" for plan in plans)


def test_a_row_of_mixed_hardware_is_marked() -> None:
    plan = method("dm", "pixel")
    records = [record(plan, LEVELS), record(replace(plan, seed=1), LEVELS, hardware=HARDWARE | {"device": "Other"})]
    table = accuracy_table(one_section(records))
    assert table["method"].tolist() == ["dm / pixel ‡"]
    assert table["s to distil"].tolist() == ["11.0 ‡"]
    text = page_text(cells_of(records), Surroundings())
    assert "‡ dm / pixel: Other (cpu), 2 cores, 1 threads; Some CPU (cpu), 2 cores, 1 threads; Python 3.11.9." in text
    assert machines_table(cells_of(records))["cells"].tolist() == ["1", "1"]
    assert "‡" not in str(accuracy_table(one_section(toy_records())))


# Timing


def timed(loss: str, space: str, seconds: float, seed: int = 0, **fields: Any) -> dict[str, Any]:
    return record(method(loss, space, seed=seed), LEVELS, seconds=seconds, **fields)


def ratios(records: list[dict[str, Any]], reference: str = "glad") -> dict[str, float | str]:
    section = one_section(records)
    return {row.name: ratio(row, section, reference) for row in section.rows if not row.plan["baseline"]}


def test_ratio_is_to_the_reference_space_of_the_same_loss() -> None:
    records = [timed("dm", "glad", 10), timed("dm", "hpd", 15), timed("dc", "glad", 100), timed("dc", "pixel", 50)]
    expected = {"dc / glad / cvae": 1, "dc / pixel": 0.5, "dm / glad / cvae": 1, "dm / hpd / cvae": 1.5}
    assert ratios(records) == pytest.approx(expected)
    assert ratios(records, "pixel")["dc / glad / cvae"] == pytest.approx(2)
    table = timing_table(one_section(records))
    assert table["/ glad"].tolist() == ["1.00", "0.50", "1.00", "1.50"]
    assert table["distill + rank s"].tolist() == ["110.0", "55.0", "11.0", "16.5"]
    assert table["rank s"].tolist() == ["10.0", "5.0", "1.0", "1.5"]
    assert table["peak MiB"].tolist() == ["300"] * 4


def test_seconds_are_means_over_seeds() -> None:
    records = [timed("dm", "glad", 10), timed("dm", "glad", 30, seed=1), timed("dm", "pixel", 10)]
    assert ratios(records)["dm / pixel"] == pytest.approx(0.5)


@pytest.mark.parametrize("key", ["device", "kind", "cores", "threads"])
def test_ratio_is_refused_where_hardware_differs(key: str) -> None:
    other = HARDWARE | {key: "cuda" if key in ("device", "kind") else 64}
    assert ratios([timed("dm", "glad", 10), timed("dm", "pixel", 5, hardware=other)]) == {
        "dm / glad / cvae": 1.0,
        "dm / pixel": "n/a: hardware differs",
    }
    within = [timed("dm", "glad", 10), timed("dm", "glad", 10, seed=1, hardware=other), timed("dm", "pixel", 5)]
    assert set(ratios(within).values()) == {"n/a: hardware differs"}


def test_memory_is_no_hardware_difference() -> None:
    records = [timed("dm", "glad", 10), timed("dm", "pixel", 5, hardware=HARDWARE | {"memory_bytes": 1})]
    assert ratios(records)["dm / pixel"] == pytest.approx(0.5)


def test_ratio_is_refused_without_one_reference_row() -> None:
    assert ratios([timed("dm", "pixel", 5), timed("dc", "glad", 5)])["dm / pixel"] == "n/a: no glad row"
    two = [timed("dm", "glad", 10), record(method("dm", "glad", steps=200), LEVELS), timed("dm", "pixel", 5)]
    assert ratios(two)["dm / pixel"] == "n/a: several glad rows"
    assert ratios([timed("dm", "glad", 0), timed("dm", "pixel", 5)])["dm / pixel"] == "n/a: glad took no time"
    new = VERSIONS | {"torch": "2.7.0"}
    seeds = [(0, 10, 5, VERSIONS), (1, 10, 20, new)]
    versions = [
        timed("dm", space, s, seed, versions=v)
        for seed, *both, v in seeds
        for space, s in zip(("glad", "pixel"), both, strict=True)
    ]
    assert ratios(versions)["dm / pixel [torch=2.6.0]"] == pytest.approx(0.5)
    assert ratios(versions)["dm / pixel [torch=2.7.0]"] == pytest.approx(2)


# What judging cost


def costs_of(records: list[dict[str, Any]]) -> list[dict[str, str]]:
    return cost_table(of_section(one_section(records))).to_dict("records")


def test_cost_is_a_mean_over_the_cells_that_were_measured() -> None:
    plan = method("dm", "pixel")
    few, much = cost(8.0), cost(12.0, images_per_second=250.0, peak_share=0.02, peak_memory_bytes=900 << 20)
    records = [
        record(plan, LEVELS, costs={"convnet": few, "vit": cost(100.0, "stacked", processes=2)}),
        record(replace(plan, seed=1), LEVELS, costs={"convnet": much}),
        record(replace(plan, seed=2), LEVELS),
    ]
    convnet, vit = costs_of(records)
    assert convnet == {
        "network": "convnet", "s to train": "10.0", "s to test": "0.5", "images/s": "500", "GFLOP per image": "0.0387",
        "% of peak": "22.0", "peak MiB": "900", "way": "serial", "cells": "2",
    }  # fmt: skip
    assert (vit["s to train"], vit["way"], vit["cells"]) == ("100.0", "stacked, 2 processes", "1")


def test_full_data_are_no_part_of_the_cost_of_distilled_sets() -> None:
    """They train on all real images: their seconds are of another kind."""
    full = record(replace(BASE, baseline="full-data"), LEVELS, costs={"convnet": cost(500.0)})
    (line,) = costs_of([full, record(method("dm", "pixel"), LEVELS, costs={"convnet": cost(8.0)})])
    assert line["s to train"] == "8.0"
    (line,) = costs_of([full])
    assert line["s to train"] == "500.0"


@pytest.mark.parametrize("key", ["device", "kind", "cores", "threads"])
def test_costs_of_different_hardware_have_no_mean(key: str) -> None:
    other = HARDWARE | {key: "cuda" if key in ("device", "kind") else 64}
    plan = method("dm", "pixel")
    records = [record(plan, LEVELS, costs={"vit": cost(10.0)}), record(replace(plan, seed=1), LEVELS, costs={"vit": cost(20.0)})]
    told = "The cells ran on different hardware"
    assert [line["s to train"] for line in costs_of(records)] == ["15.0"]
    assert told not in page_text(cells_of(records), Surroundings())
    records[1]["measured"]["hardware"] = other
    lines = costs_of(records)
    assert sorted((line["s to train"], line["cells"]) for line in lines) == [("10.0", "1"), ("20.0", "1")]
    assert len({line["hardware"] for line in lines}) == 2
    assert told in page_text(cells_of(records), Surroundings())


def test_where_nothing_was_measured_there_is_no_table() -> None:
    records = [record(method("dm", "pixel"), LEVELS)]
    old = copy.deepcopy(records[0])
    del old["measured"]["networks"]  # as records once were
    for made in (records, [old]):
        assert "Cost of judging\n" not in page_text(cells_of(made), Surroundings())
    records[0]["measured"]["networks"] = {"convnet": cost()}
    assert "### Cost of judging\n" in page_text(cells_of(records), Surroundings())


# Habits of published code


def chosen(seed: int = 0, **changes: Any) -> Any:
    return replace(method("dm", "pixel", seed=seed, **changes), protocol=CHOICE)


# Means over networks: 0.50 final, 0.525 at step 0, 0.52 at step 50; convnet is best at 50, vit at 0. Then: final 0.55, best.
FIRST = record(
    chosen(0), {"convnet": [0.59, 0.61], "vit": [0.40, 0.40]},
    iterates={0: {"convnet": [0.55, 0.57], "vit": [0.48, 0.50]}, 50: {"convnet": [0.63, 0.65], "vit": [0.40, 0.40]}},
)  # fmt: skip
SECOND = record(
    chosen(1), {"convnet": [0.60, 0.60], "vit": [0.50, 0.50]},
    iterates={0: {"convnet": [0.50, 0.50], "vit": [0.52, 0.54]}, 50: {"convnet": [0.60, 0.60], "vit": [0.45, 0.45]}},
)  # fmt: skip


def test_choosing_on_the_test_split_by_hand() -> None:
    section = one_section([FIRST, SECOND])
    assert choice(section.rows[0]).steps == (0, None)
    table = choice_table(section).set_index("reading")
    assert table.index.tolist() == [
        "final set",
        "best of test, one iterate",
        "gain, one iterate (points)",
        "best of test, each network by itself",
        "gain, each network by itself (points)",
    ]
    assert table["same arch. (convnet)"].tolist() == [
        "60.0 ± 0.0",
        "58.0 ± 2.8",  # 56 and 60
        "-2.0 ± 2.8",  # what is best for all costs the backbone four points in the first seed
        "62.0 ± 2.8",  # 64 and 60
        "+2.0 ± 2.8",
    ]
    assert table["vit"].tolist() == ["45.0 ± 7.1", "49.5 ± 0.7", "+4.5 ± 6.4", "51.0 ± 2.8", "+6.0 ± 4.2"]
    assert table["cross-arch. mean"].tolist() == table["vit"].tolist()
    assert table["chosen step"].tolist() == ["–", "0, final", "–", "–", "–"]
    assert iterates(section) == "steps 0, 50"


def test_the_gain_of_one_seed_has_the_spread_of_its_networks() -> None:
    """Repeats are paired: +8 and +10 points on vit."""
    table = choice_table(one_section([FIRST]))
    assert table["vit"].tolist()[2] == "+9.0 ± 1.4 †"


def test_of_equals_the_final_set_is_chosen() -> None:
    same = record(chosen(), LEVELS, iterates={0: LEVELS, 50: LEVELS})
    made = choice(one_section([same]).rows[0])
    assert made.steps == (None,)
    assert choice_table(one_section([same]))["vit"].tolist()[2] == "+0.0 ± 0.0 †"


def test_what_has_no_iterates_has_nothing_to_choose() -> None:
    section = one_section([FIRST, record(replace(BASE, baseline="random", protocol=CHOICE), LEVELS)])
    assert choice_table(section)["method"].tolist() == ["random"] + ["dm / pixel"] * 5
    assert iterates(section) == "steps 0, 50"
    longer = record(chosen(steps=200), LEVELS, iterates={0: LEVELS, 100: LEVELS})
    assert iterates(one_section([FIRST, longer])) == "steps 0, 50 (dm / pixel [steps=100]); steps 0, 100 (dm / pixel [steps=200])"


def test_a_difference_has_no_minus_zero() -> None:
    assert points(cross_mean([[[1e-9, -1e-9]]])) == "+0.0 ± 0.0 †"
    assert points(cross_mean([[[-1e-9, -1e-9]]])) == "+0.0 ± 0.0 †"
    assert points(None) == "–"


def shifted(records: list[dict[str, Any]]) -> tuple[Section, dict[str, str]]:
    """The section that is not ranked, and its line of dm / pixel."""
    cells = cells_of(records)
    (section,) = (section for section in sections(cells) if not section.is_ranked)
    (line,) = difference_table(section, bases(cells)).query("method == 'dm / pixel'").to_dict("records")
    return section, line


def test_a_habit_is_held_against_its_base_by_hand() -> None:
    """Seeds 0 and 1 are in both, seed 2 in the habit alone; differences -2, -4 and -1, -3 on the backbone."""
    plan = method("dm", "pixel")
    base = {0: {"convnet": [0.60, 0.64], "vit": [0.40, 0.42]}, 1: {"convnet": [0.60, 0.60], "vit": [0.40, 0.42]}}
    habit = {0: {"convnet": [0.58, 0.60], "vit": [0.40, 0.42]}, 1: {"convnet": [0.59, 0.57], "vit": [0.40, 0.42]}, 2: LEVELS}
    records = [record(replace(plan, seed=seed), values) for seed, values in base.items()]
    records += [record(replace(plan, seed=seed, protocol=SHIFTED), values) for seed, values in habit.items()]
    _, line = shifted(records)
    assert line == {
        "method": "dm / pixel", "same arch. (convnet)": "-2.5 ± 0.7", "cross-arch. mean": "+0.0 ± 0.0", "vit": "+0.0 ± 0.0",
        "against": "toy-1", "seeds": "2",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("change", "fields"),
    [
        ({"steps": 200}, {}),
        ({"seed": 1}, {}),
        ({"data_hash": "c" * 64}, {}),
        ({"protocol": replace(BASE.protocol, epochs=301)}, {}),
        ({"protocol": replace(SHIFTED, id="other", synthetic_mean=())}, {}),
        ({}, {"versions": VERSIONS | {"torch": "2.7.0"}}),
    ],
    ids=["plan", "seed", "data", "protocol", "not ranked", "torch"],
)
def test_a_habit_is_held_against_nothing_else(change: dict[str, Any], fields: dict[str, Any]) -> None:
    plan = method("dm", "pixel")
    other = record(replace(plan, **change), LEVELS, **fields)
    habit = record(replace(plan, protocol=SHIFTED), LEVELS)
    known = bases(cells_of([other, habit]))
    rows = [row for section in sections(cells_of([habit])) for row in section.rows]
    assert difference(rows[0], known).seeds == ()
    _, line = shifted([habit, record(method("dc", "pixel"), LEVELS)])
    assert (line["vit"], line["against"], line["seeds"]) == ("–", "n/a: not in this store", "–")


def test_habits_stand_after_everything_that_is_ranked() -> None:
    """Although their ids come first in the alphabet."""
    plan = method("dm", "pixel")
    first = replace(SHIFTED, id="a-1")
    records = [record(plan, LEVELS), record(replace(plan, protocol=first), LEVELS), FIRST]
    text = page_text(cells_of(records), Surroundings())
    ranked, heading, rest = text.partition("\n## Habits of published code (not ranked)\n")
    assert heading
    assert ranked.count("| dm / pixel ") == 3  # accuracy, uncertainty, time
    assert "protocol a-1" not in ranked
    assert ranked.count("protocol toy-1") == 1
    assert rest.index("### toy, IPC 1, hard labels, protocol a-1") < rest.index("protocol toy-1-best-of-test")
    assert "- What it is: another mean." in rest
    assert "- What it is: toy-1 on iterates too." in rest
    assert "- Iterates judged beside the final set: steps 0, 50." in rest
    assert "\n## " not in rest.partition("\n## Hardware and versions")[0]
    assert "Habits of published code" not in page_text(cells_of(records[:1]), Surroundings())


def test_a_protocol_that_does_not_say_whether_it_is_ranked_is() -> None:
    """As those of old records."""
    old = record(method("dm", "pixel"), LEVELS)
    for name in ("ranked", "snapshots", "teacher", "description"):
        del old["plan"]["protocol"][name]
    del old["plan"]["teacher"]
    (cell,) = cells_of([old])
    assert cell.is_ranked
    assert "Habits of published code" not in page_text([cell], Surroundings())


# The page


def golden_records() -> list[dict[str, Any]]:
    """The toy grid, and one of everything else that the page knows to say."""
    rng, records = np.random.default_rng(5), toy_records()
    other = HARDWARE | {"device": "Some GPU", "kind": "cuda"}
    extra = [
        (method("dm", "pixel", steps=200, seed=1), {"hardware": other}),
        (method("dm", "glad", ipc=10), {}),
        (method("dm", "glad", ipc=10, seed=1), {"hardware": other}),
        (method("dm", "glad", labels="learned"), {}),
        (replace(method("dm", "glad"), data_hash="c" * 64), {"label": "toy (copy cccccccc)", "original": False}),
        (replace(method("dm", "glad"), protocol=replace(BASE.protocol, id="glad-1", epochs=1000)), {"suite": "long"}),
    ]
    records += [record(plan, draw(plan, rng, 0.8), **fields) for plan, fields in extra]
    records += judged_otherwise(rng)
    for number, entry in enumerate(records):  # keys and hashes that no new field of a plan or a protocol can change
        entry["key"] = f"{number:016x}" * 4
        protocol = entry["plan"]["protocol"]
        kept = ["id", "epochs", "repeats", "full_data_epochs"]
        if not protocol["ranked"]:
            kept += ["ranked", "description", "snapshots"]
        entry["plan"]["protocol"] = {name: protocol[name] for name in kept}
        if protocol["teacher"]:
            entry["plan"]["protocol"]["teacher"] = {"network": "resnet18-bn", "epochs": 50}
    return records


def judged_otherwise(rng: np.random.Generator) -> list[dict[str, Any]]:
    """Under a teacher, with costs, on two machines; and two habits, one on iterates."""
    other = HARDWARE | {"device": "Some GPU", "kind": "cuda"}
    made = []
    for seed in (0, 1):
        soft = replace(method("dm", "pixel", seed=seed), protocol=SOFT, teacher=TEACHER)
        costs = {"convnet": cost(8.0 + seed), "vit": cost(20.0 + seed, "stacked", flops_per_image=1.2e9)}
        made.append(record(soft, draw(soft, rng, 0.8), costs=costs, hardware=other if seed else HARDWARE))
        for space, level in (("glad", 0.55), ("pixel", 0.67)):
            plan = replace(method("dm", space, seed=seed), protocol=CHOICE)
            steps = {0: draw(plan, rng, level - 0.05), 50: draw(plan, rng, level)}
            made.append(record(plan, draw(plan, rng, level), iterates=steps, costs=costs))
            plan = replace(plan, protocol=SHIFTED)
            made.append(record(plan, draw(plan, rng, level - 0.03)))
    random = replace(BASE, baseline="random", protocol=CHOICE)
    return [*made, record(random, draw(random, rng, 0.45))]


GOLDEN_AROUND = Surroundings(
    images=frozenset(f"{number:016x}" * 4 for number in (0, 1, 3)),
    suites={"toy-grid": ["suites/toy-grid-0123abcd.toml"]},
    failed=[
        ("0123456789abcdef", {"plan": method("dc", "hpd", seed=7).to_json(), "error": "the loss was NaN | at step 3"})
    ],
    num_unreadable=1,
)


def test_the_page_is_the_golden_one() -> None:
    """Rewrite it with: DDBENCH_GOLDEN=write pytest tests/unit/test_leaderboard.py, and read the difference."""
    text = page_text(cells_of(golden_records()), GOLDEN_AROUND)
    if os.environ.get("DDBENCH_GOLDEN") == "write":
        GOLDEN.write_text(text, encoding="utf-8")
    assert text == GOLDEN.read_text(encoding="utf-8")


@settings(max_examples=10, deadline=None)
@given(st.randoms(use_true_random=False))
def test_the_order_of_records_does_not_matter(order: random.Random) -> None:
    records = copy.deepcopy(golden_records())
    order.shuffle(records)
    for entry in records:
        order.shuffle(entry["evaluations"])
        order.shuffle(entry.get("snapshots", []))
    assert page_text(cells_of(records), GOLDEN_AROUND) == GOLDEN.read_text(encoding="utf-8")


def test_an_empty_store_says_what_to_do(tmp_path: Path) -> None:
    written = write(write_store(tmp_path / "store", []), tmp_path / "out")
    assert "No cell is finished yet. Run some with: `ddbench run SUITE`" in written.path.read_text()


def test_text_cannot_break_a_table() -> None:
    assert escape("a|b\n<script> *") == "a\\|b &lt;script> *"
    plan = replace(method("dm", "pixel"), loss=ref("losses", "dm", "dm(x=a|b)"))
    text = page_text(cells_of([record(plan, LEVELS)]), Surroundings())
    (line,) = [line for line in text.splitlines() if line.startswith("| dm") and "KiB" not in line and "±" in line][:1]
    assert line.replace("\\|", "").count("|") == len(accuracy_table(one_section([record(plan, LEVELS)])).columns) + 1


@pytest.mark.parametrize(
    ("others", "around", "command"),
    [
        ([], Surroundings(), "ddbench run toy-grid --only loss=dm,space=glad"),
        ([method("dm", "glad", ipc=10)], Surroundings(), "ddbench run toy-grid --only loss=dm,space=glad,ipc=1"),
        (
            [replace(method("dm", "glad"), dataset=ref("datasets", "other"))],
            Surroundings(),
            "ddbench run toy-grid --only loss=dm,space=glad,subset=toy",
        ),
        (
            [],
            Surroundings(suites={"toy-grid": ["suites/a.toml"]}),
            "ddbench run suites/a.toml --only loss=dm,space=glad",
        ),
        (
            [],
            Surroundings(suites={"toy-grid": ["suites/a.toml"]}, shipped=frozenset({"toy-grid"})),
            "ddbench run toy-grid --only loss=dm,space=glad",
        ),
        (
            [],
            Surroundings(suites={"toy-grid": ["suites/a.toml", "suites/b.toml"]}),
            "ddbench run toy-grid --only loss=dm,space=glad",
        ),
        (
            [replace(BASE, baseline="full-data", ipc=5)],
            Surroundings(),
            "ddbench run toy-grid --only loss=dm,space=glad",
        ),
    ],
    ids=["alone", "ipc", "subset", "file", "shipped", "ambiguous", "full data have no ipc"],
)
def test_commands(others: list[Any], around: Surroundings, command: str) -> None:
    plan = method("dm", "glad")
    cells = cells_of(record(each, LEVELS) for each in [plan, *others])
    rows = [row for section in sections(cells) for row in section.rows if row.cells[0].key == plan.key]
    assert commands(rows[0], cells, around) == [command]


def test_commands_of_baselines() -> None:
    plans = [replace(BASE, baseline=name, ipc=ipc) for name, ipc in (("random", 1), ("random", 10), ("full-data", 1))]
    cells = cells_of(record(plan, LEVELS) for plan in plans)
    found = {
        command
        for section in sections(cells)
        for row in section.rows
        for command in commands(row, cells, Surroundings())
    }
    run = "ddbench run toy-grid --only baseline="
    assert found == {f"{run}random,ipc=1", f"{run}random,ipc=10", f"{run}full-data"}


# Damaged records


def nodes(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    if path:
        yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, entry in items:
        yield from nodes(entry, (*path, key))


WHOLE = json.loads(json.dumps(toy_records()[-1]))
MEASURED = record(replace(method("dm", "pixel"), protocol=SOFT, teacher=TEACHER), LEVELS, costs={"vit": cost()})
SIBLING = record(method("dm", "pixel", steps=200), LEVELS)  # of equal name, so that differences are looked for
GONE = object()


@pytest.mark.slow
@settings(max_examples=300, deadline=None)
@given(
    st.sampled_from([(whole, path) for whole in (WHOLE, MEASURED, FIRST) for path in nodes(whole)]),
    st.sampled_from([GONE, None, "x", -1, math.nan, 1e400, {}, [], [None], {"x": None}, True]),
)
def test_no_damage_is_a_traceback(place: tuple[dict[str, Any], tuple[Any, ...]], value: Any) -> None:
    """Whatever becomes of any value, the record is left out with a sentence or the page is written."""
    whole, path = place
    damaged = copy.deepcopy(whole)
    *way, last = path
    parent = damaged
    for key in way:
        parent = parent[key]
    if value is GONE:
        del parent[last]
    else:
        parent[last] = value
    cells, bad = read_cells([damaged, SIBLING])
    assert len(cells) + len(bad) == 2
    assert all("\n" not in sentence and "is damaged" in sentence for sentence in bad)
    assert page_text(cells, Surroundings()).startswith("# Leaderboard")


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda r: r["evaluations"][0].update(accuracy=0.9), "is not"),
        (lambda r: r["evaluations"][1].update(repeat=0), "repeat 0 twice"),
        (lambda r: r["evaluations"].__delitem__(slice(2, 4)), "no evaluation of vit"),
        (lambda r: r["data"].update(hash="c" * 64), "not the one of its plan"),
        (lambda r: r.update(key="../../etc"), "not 64 hex digits"),
        (lambda r: r["distilled"].pop("steps"), "'steps' is missing"),
    ],
)
def test_damage_is_named(change: Any, sentence: str) -> None:
    damaged = copy.deepcopy(WHOLE)
    change(damaged)
    cells, (found,) = read_cells([damaged])
    assert not cells
    assert sentence in found


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda r: r.pop("snapshots"), "its protocol asks for 2 iterates, and it has 0"),
        (lambda r: r["snapshots"].pop(), "its protocol asks for 2 iterates, and it has 1"),
        (lambda r: r["snapshots"].append(r["snapshots"][0]), "its protocol asks for 2 iterates, and it has 3"),
        (lambda r: r["snapshots"][1].update(step=0), "its iterate 0 stands twice"),
        (lambda r: r["snapshots"][1].update(step=100), "its iterate 100 stands twice or is none of its 100 steps"),
        (lambda r: r["snapshots"][1].update(step=-1), "should be whole numbers"),
        (lambda r: r["snapshots"][1]["evaluations"][0].update(accuracy=0.9), "iterate 50: convnet, repeat 0: accuracy 0.9"),
        (lambda r: r["snapshots"][1]["evaluations"].__delitem__(slice(2, 4)), "iterate 50: it has no evaluation of vit"),
        (lambda r: r["snapshots"][1]["evaluations"].pop(), "have not the same repeats and test images"),
        (lambda r: r["plan"]["protocol"].update(snapshots=0), "its protocol asks for 0 iterates, and it has 2"),
        (lambda r: r["plan"]["protocol"].update(snapshots=-1), "should be whole numbers"),
        (lambda r: r["plan"]["protocol"].update(ranked="no"), "does not say whether it is ranked"),
        (lambda r: r["plan"].update(teacher=TEACHER.settings | vars(TEACHER)), "one has a teacher and one has none"),
        (lambda r: r["measured"].update(networks={"vit": cost() | {"peak_share": math.nan}}), "should be a number"),
        (lambda r: r["measured"].update(networks={"vit": cost() | {"way": None}}), "in which way it was judged"),
        (lambda r: r["measured"].update(networks={"vit": {}}), "is missing"),
    ],
)
def test_damage_to_iterates_and_costs_is_named(change: Any, sentence: str) -> None:
    """The best of fewer or of other candidates would look like less."""
    assert cells_of([FIRST])
    damaged = copy.deepcopy(FIRST)
    change(damaged)
    cells, (found,) = read_cells([damaged])
    assert not cells
    assert sentence in found


def test_iterates_on_other_test_images_are_refused() -> None:
    damaged = copy.deepcopy(FIRST)
    for entry in damaged["snapshots"][0]["evaluations"]:
        entry.update(num_test=500, accuracy=0.5, correct=right(250, 500))
    _, (found,) = read_cells([damaged])
    assert "iterate 0 and the finished set have not the same repeats and test images" in found


def test_a_copied_folder_counts_once() -> None:
    cells, bad = read_cells([WHOLE, copy.deepcopy(WHOLE)])
    assert len(cells) == 1
    assert len(bad) == 1
    assert "stands twice" in bad[0]


# The verb


def test_the_verb_writes_everything(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    records = toy_records()
    store = write_store(tmp_path / "store", records, images=b"a grid")
    (tmp_path / "store" / "suites").mkdir()
    (tmp_path / "store" / "suites" / "toy-grid-0123abcd.toml").write_text("schema = 1\n")
    store.fail(method("dc", "pixel", seed=9), "went\nwrong", "")
    store.fail(method("dc", "pixel", seed=9), "went wrong again", "")
    store.fail(method("dc", "pixel", seed=0), "finished since", "")
    assert main(["leaderboard", str(store.root)]) == 0
    out = store.root / "leaderboard"
    assert capsys.readouterr().out.splitlines()[-1] == str(out / "leaderboard.md")
    text = (out / "leaderboard.md").read_text()
    key = method("dm", "glad").key
    assert f"![dm / glad / cvae, seed 0](images/{key[:16]}.png)" in text
    assert (out / "images" / f"{key[:16]}.png").read_bytes() == b"a grid"
    assert len(list((out / "images").iterdir())) == len(records) - 1  # full data have no grid
    assert json.loads((out / "plans" / f"{key[:16]}.json").read_bytes()) == method("dm", "glad").to_json()
    assert "`ddbench run suites/toy-grid-0123abcd.toml --only loss=dm,space=glad`" in text
    assert (out / "suites" / "toy-grid-0123abcd.toml").read_text() == "schema = 1\n"
    assert "- dc / pixel, toy, ipc 1, seed 9 (" in text
    assert "went wrong again" in text
    assert "left out" not in text
    assert "finished since" not in text
    before = text
    assert main(["leaderboard", str(store.root), "--out", str(tmp_path / "elsewhere")]) == 0
    assert (tmp_path / "elsewhere" / "leaderboard.md").read_text() == before
    assert str(tmp_path) not in before


def test_every_link_of_the_page_leads_somewhere(tmp_path: Path) -> None:
    store = write_store(tmp_path / "store", toy_records(), images=b"a grid")
    page = write(store, tmp_path / "out").path
    links = [part.split(")")[0] for part in page.read_text().split("](")[1:]]
    assert len(links) > 20
    assert [link for link in links if not (page.parent / link).is_file()] == []


def test_json_rows(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    records = toy_records()
    write_store(tmp_path / "store", records)
    assert main(["leaderboard", str(tmp_path / "store"), "--json"]) == 0
    value = json.loads(capsys.readouterr().out)
    rows = value["ranked"]
    assert value == {"ranked": rows, "not_ranked": []}
    assert [row["method"] for row in rows] == [row.name for row in one_section(records).rows]
    row = next(row for row in rows if row["method"] == "dm / pixel")
    assert row["same_architecture"]["mean"] == pytest.approx(one_section(records).rows[-2].same.mean)
    assert row["seconds_ratio"] == pytest.approx(9 / 21)
    assert (tmp_path / "store" / "leaderboard" / "leaderboard.md").is_file()


def test_json_keeps_habits_apart_and_says_what_they_are_worth(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plan = method("dm", "pixel")
    lower = {"convnet": [0.45, 0.47], "vit": [0.4, 0.42]}
    records = [record(plan, LEVELS), record(replace(plan, protocol=SHIFTED), lower), FIRST, SECOND]
    write_store(tmp_path / "store", records)
    assert main(["leaderboard", str(tmp_path / "store"), "--json"]) == 0
    value = json.loads(capsys.readouterr().out)
    assert [row["protocol"] for row in value["ranked"]] == ["toy-1"]
    best, other = value["not_ranked"]
    assert (best["protocol"], other["protocol"]) == ("toy-1-best-of-test", "toy-1-svhn-mean")
    assert best["description"] == "not ranked: toy-1 on iterates too"
    assert best["one_iterate_gain"]["same_architecture"]["mean"] == pytest.approx(-0.02)
    assert best["each_network_gain"]["networks"]["vit"]["by_seed"] == pytest.approx([0.09, 0.03])
    assert best["each_network"]["cross_architecture"]["mean"] == pytest.approx(0.51)
    assert (best["iterates"], best["chosen_steps"]) == ([0, 50], [0, None])
    assert other["difference"]["same_architecture"]["mean"] == pytest.approx(-0.05)
    assert (other["difference_to"], other["difference_seeds"]) == (["toy-1"], [0])


def test_an_unreadable_record_is_a_warning_and_the_rest_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    records = toy_records()
    store = write_store(tmp_path / "store", records)
    cut, damaged = (store.cell(entry["key"]) / "record.json" for entry in (records[0], records[-1]))
    cut.write_bytes(cut.read_bytes()[:-100])
    damaged.write_text(json.dumps(records[-1] | {"evaluations": 3}))
    assert main(["leaderboard", str(store.root)]) == 1
    output = capsys.readouterr()
    warnings = output.err.splitlines()
    assert len(warnings) == 2
    assert all(line.startswith("warning: record ") for line in warnings)
    text = Path(output.out.splitlines()[-1]).read_text()
    assert "left out: 2." in text
    assert "| dm / glad / cvae " in text


def test_unreadable_failures_are_warnings_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = write_store(tmp_path / "store", toy_records())
    folder = store.root / "failed" / "0123456789abcdef"
    folder.mkdir(parents=True)
    (folder / "0.json").write_text("{")
    (folder / "notes.json").write_text("not ours")
    assert main(["leaderboard", str(store.root)]) == 1
    assert "failure record" in capsys.readouterr().err


@pytest.mark.parametrize("where", ["missing store", "a file as target"])
def test_mistakes_are_sentences(where: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    if where == "missing store":
        arguments = ["leaderboard", str(tmp_path / "nothing")]
    else:
        write_store(tmp_path / "store", toy_records())
        arguments = ["leaderboard", str(tmp_path / "store"), "--out", str(tmp_path / "file")]
    assert main(arguments) == 2
    (sentence,) = capsys.readouterr().err.splitlines()
    assert not (tmp_path / "nothing").exists()
    if where == "a file as target":  # `ddbench run` says it too, and has no --out of its own
        assert f"write it elsewhere with: ddbench leaderboard {tmp_path / 'store'} --out FOLDER" in sentence


def test_the_verbs_import_nothing_heavy() -> None:
    code = "import sys, ddbench.cli.leaderboard, ddbench.cli.check; print({'pandas', 'scipy'} & sys.modules.keys())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


def test_the_synthetic_grid_is_the_one_that_was_meant() -> None:
    assert len(toy_plans()) == len({plan.key for plan, *_ in toy_plans()}) == 2 * (1 + 2 * 3) + 1
