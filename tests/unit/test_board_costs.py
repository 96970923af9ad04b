"""What sets and their judging cost: seconds compare only where hardware is equal."""

from __future__ import annotations

from typing import Any

import pytest
from msgspec.structs import replace
from synthetic_records import (
    CONVNET,
    FULL_DATA,
    GPU,
    HARDWARE,
    VERSIONS,
    Judged,
    baseline,
    cost,
    judged,
    judgement,
    method,
    results,
)

from ddbench.leaderboard.beside import Surroundings
from ddbench.leaderboard.costs import cost_table, of_section
from ddbench.leaderboard.page import page_text
from ddbench.leaderboard.sections import Section, sections
from ddbench.leaderboard.tables import ratio, timing_table

LEVELS = {"convnet": [0.5, 0.52], "vit": [0.4, 0.42]}


def one_section(records: list[Judged]) -> Section:
    (section,) = sections(results(records))
    return section


def page(records: list[Judged]) -> str:
    """Without the legend."""
    return page_text(results(records), Surroundings()).partition("## How to read")[0]


def timed(loss: str, space: str, seconds: float, seed: int = 0, **fields: Any) -> Judged:
    return judged(method(loss, space, seed=seed), LEVELS, seconds=seconds, **fields)


def ratios(records: list[Judged], reference: str = "glad") -> dict[str, float | str]:
    section = one_section(records)
    return {row.name: ratio(row, section, reference) for row in section.rows if row.is_distilled}


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


@pytest.mark.parametrize("key", ["device", "kind", "cores", "threads", "instructions"])
def test_ratio_is_refused_where_hardware_differs(key: str) -> None:
    other = replace(HARDWARE, **{key: 64 if key in ("cores", "threads") else "cuda"})
    assert ratios([timed("dm", "glad", 10), timed("dm", "pixel", 5, hardware=other)]) == {
        "dm / glad / cvae": 1.0,
        "dm / pixel": "n/a: hardware differs",
    }
    within = [timed("dm", "glad", 10), timed("dm", "glad", 10, seed=1, hardware=other), timed("dm", "pixel", 5)]
    assert set(ratios(within).values()) == {"n/a: hardware differs"}


def test_memory_is_no_hardware_difference_and_judging_does_not_count() -> None:
    records = [timed("dm", "glad", 10), timed("dm", "pixel", 5, hardware=replace(HARDWARE, memory_bytes=1))]
    assert ratios(records)["dm / pixel"] == pytest.approx(0.5)
    elsewhere = timed("dm", "pixel", 5, hardware=GPU, making={"hardware": HARDWARE})
    assert ratios([timed("dm", "glad", 10), elsewhere])["dm / pixel"] == pytest.approx(0.5)


def test_ratio_is_refused_without_one_reference_row() -> None:
    assert ratios([timed("dm", "pixel", 5), timed("dc", "glad", 5)])["dm / pixel"] == "n/a: no glad row"
    two = [timed("dm", "glad", 10), judged(method("dm", "glad", steps=200), LEVELS), timed("dm", "pixel", 5)]
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


def costs_of(records: list[Judged]) -> list[dict[str, str]]:
    return cost_table(of_section(one_section(records))).to_dict("records")


def test_cost_is_a_mean_over_the_sets_that_a_network_judged() -> None:
    plan = method("dm", "pixel")
    few, much = cost(8.0), cost(12.0, images_per_second=250.0, peak_share=0.02, peak_memory_bytes=900 << 20)
    records = [
        judged(plan, LEVELS, costs={"convnet": few, "vit": cost(100.0, "stacked", processes=2)}),
        judged(replace(plan, seed=1), {"convnet": [0.5]}, costs={"convnet": much}),
    ]
    convnet, vit = costs_of(records)
    assert convnet == {
        "network": "convnet", "s to train": "10.0", "s to test": "0.5", "images/s": "500", "GFLOP per image": "0.0387",
        "% of peak": "22.0", "peak MiB": "900", "way": "serial", "sets": "2",
    }  # fmt: skip
    assert (vit["s to train"], vit["way"], vit["sets"]) == ("100.0", "stacked, 2 processes", "1")


def test_the_cost_of_blocks_is_that_of_all_repeats_together() -> None:
    """30 seconds at 100 images a second and 10 at 300: 150 on average."""
    one = judged(method("dm", "pixel"), {"convnet": [0.5]}, costs={"convnet": cost(30.0, images_per_second=100.0)})
    more = judgement(one.set, CONVNET, [0.5], first=1, measured=cost(10.0, images_per_second=300.0))
    (line,) = costs_of([Judged(one.set, (*one.judgements, more))])
    assert (line["s to train"], line["s to test"], line["images/s"], line["sets"]) == ("40.0", "1.0", "150", "1")


def test_full_data_are_no_part_of_the_cost_of_distilled_sets() -> None:
    """They train on all real images: their seconds are of another kind."""
    full = judged(baseline(FULL_DATA), {"convnet": [0.9]}, costs={"convnet": cost(500.0)})
    (line,) = costs_of([full, judged(method("dm", "pixel"), {"convnet": [0.5]}, costs={"convnet": cost(8.0)})])
    assert line["s to train"] == "8.0"
    (line,) = costs_of([full])
    assert line["s to train"] == "500.0"


@pytest.mark.parametrize("key", ["device", "kind", "cores", "threads", "instructions"])
def test_costs_of_different_hardware_have_no_mean(key: str) -> None:
    other = replace(HARDWARE, **{key: 64 if key in ("cores", "threads") else "cuda"})
    plan, told = method("dm", "pixel"), "They were judged on different hardware"
    first, same, elsewhere = (
        judged(replace(plan, seed=seed), {"vit": [0.4]}, costs={"vit": cost(seconds)}, hardware=hardware)
        for seed, seconds, hardware in ((0, 10.0, HARDWARE), (1, 20.0, HARDWARE), (1, 20.0, other))
    )
    assert [line["s to train"] for line in costs_of([first, same])] == ["15.0"]
    assert told not in page([first, same])
    lines = costs_of([first, elsewhere])
    assert sorted((line["s to train"], line["sets"]) for line in lines) == [("10.0", "1"), ("20.0", "1")]
    assert len({line["hardware"] for line in lines}) == 2
    assert told in page([first, elsewhere])
