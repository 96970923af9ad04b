"""What tells rows of one method apart, and what marks those that mix circumstances."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from msgspec.structs import replace
from synthetic_records import (
    CONVNET,
    GPU,
    HARDWARE,
    VERSIONS,
    Judged,
    judged,
    judgement,
    method,
    ref,
    results,
    toy_records,
)

from ddbench.leaderboard.beside import Surroundings
from ddbench.leaderboard.page import page_text
from ddbench.leaderboard.sections import Section, sections
from ddbench.leaderboard.tables import accuracy_table, machines_table, timing_table

LEVELS = {"convnet": [0.5, 0.52], "vit": [0.4, 0.42]}


def one_section(records: list[Judged]) -> Section:
    (section,) = sections(results(records))
    return section


def page(records: list[Judged]) -> str:
    """Without the legend."""
    return page_text(results(records), Surroundings()).partition("## How to read")[0]


@pytest.mark.parametrize(
    ("change", "fields", "names"),
    [
        ({"steps": 200}, {}, ["dm / pixel [steps=100]", "dm / pixel [steps=200]"]),
        ({"rates": {"pixels": 0.5}}, {}, ["dm / pixel [rates.pixels=0.5]", "dm / pixel [rates.pixels=unset]"]),
        ({"proxy": CONVNET}, {}, ["dm / pixel [proxy=convnet]", "dm / pixel [proxy=unset]"]),
        (
            {"proxy": CONVNET, "proxy_epochs": 5, "rank_steps": "feature-distance"},
            {},
            ["dm / pixel [rank_steps=feature-distance]", "dm / pixel [rank_steps=last]"],
        ),
        (
            {"loss": ref("losses", "dm", numerics=2)},
            {},
            ["dm / pixel [loss.numerics=1]", "dm / pixel [loss.numerics=2]"],
        ),
        (
            {"loss": ref("losses", "dm", batch_real=8)},  # a default changed: the labels are equal, the settings are not
            {},
            ["dm / pixel [loss.batch_real=8]", "dm / pixel [loss.batch_real=unset]"],
        ),
        ({"seed": 1}, {"versions": VERSIONS | {"torch": "2.7.0"}}, ["dm / pixel [torch=2.6.0]", "dm / pixel [torch=2.7.0]"]),
        ({"seed": 1}, {"making": {"versions": VERSIONS | {"beta": "1"}}}, ["dm / pixel [beta=1]", "dm / pixel [beta=unset]"]),
        ({"seed": 1}, {"threads": 4}, ["dm / pixel [judging.threads=1]", "dm / pixel [judging.threads=4]"]),
        ({"threads": 4}, {"threads": 4}, ["dm / pixel [threads=1]", "dm / pixel [threads=4]"]),
        ({"seed": 1}, {"versions": VERSIONS | {"python": "3.11.10"}}, ["dm / pixel"]),
        ({"seed": 1}, {"hardware": replace(HARDWARE, device="Other")}, ["dm / pixel"]),
        ({"seed": 1}, {"source": "b"}, ["dm / pixel"]),
        ({"seed": 1, "resources": ("8" * 64,)}, {}, ["dm / pixel"]),
        (
            {"resources": ("8" * 64,)},  # of one seed: a resource that gives other numbers
            {},
            ["dm / pixel [resources=8888888888888888]", "dm / pixel [resources=]"],
        ),
        (
            {"loss": ref("losses", "dm", "dm(batch_real=8)", batch_real=8)},
            {},
            ["dm / pixel", "dm(batch_real=8) / pixel"],
        ),
    ],
    ids=[
        "steps", "rates", "proxy", "ranker", "numerics", "default", "torch", "library", "threads of judging", "threads", "python",
        "hardware", "source", "resource of a seed", "resources", "setting",
    ],
)  # fmt: skip
def test_rows_are_told_apart_by_what_differs(change: dict[str, Any], fields: dict[str, Any], names: list[str]) -> None:
    plan = method("dm", "pixel")
    section = one_section([judged(plan, LEVELS), judged(replace(plan, **change), LEVELS, **fields)])
    assert [row.name for row in section.rows] == names
    assert len(accuracy_table(section)) == len(names)


# Marks


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        (
            {"hardware": replace(HARDWARE, device="Other")},
            "made on Other (cpu, AVX2), 2 cores, 1 threads and Some CPU (cpu, AVX2), 2 cores, 1 threads; "
            "judged on Other (cpu, AVX2), 2 cores, 1 threads and Some CPU (cpu, AVX2), 2 cores, 1 threads",
        ),
        (
            {"making": {"hardware": replace(HARDWARE, instructions="AVX512")}},
            "made on Some CPU (cpu, AVX2), 2 cores, 1 threads and Some CPU (cpu, AVX512), 2 cores, 1 threads",
        ),
        ({"versions": VERSIONS | {"python": "3.12.1"}}, "python 3.11.9 and 3.12.1"),
        (
            {"making": {"source": "b"}},
            "other sources of architecture 'convnet' (a0000000 and b0000000), dataset 'toy' (a0000000 and b0000000), "
            "loss 'dm' (a0000000 and b0000000), space 'pixel' (a0000000 and b0000000)",
        ),
    ],
    ids=["machine", "instructions", "python", "source"],
)
def test_a_row_of_mixed_circumstances_is_marked(fields: dict[str, Any], told: str) -> None:
    plan = method("dm", "pixel")
    records = [judged(plan, LEVELS), judged(replace(plan, seed=1), LEVELS, **fields)]
    assert accuracy_table(one_section(records))["method"].tolist() == ["dm / pixel ‡"]
    (line,) = [line for line in page(records).splitlines() if line.startswith("‡")]
    assert line == f"‡ dm / pixel: {told}."


def test_an_edited_plugin_of_a_stranger_has_a_row_of_its_own() -> None:
    """Under an unchanged version: never one row of two codes."""
    loss = msgspec.structs.replace(ref("losses", "dm"), distribution="beta", distributions=("beta",))
    plan = replace(method("dm", "pixel"), loss=loss)
    section = one_section([judged(plan, LEVELS), judged(replace(plan, seed=1), LEVELS, source="b")])
    ours = [f"source of loss 'dm'={n}0000000, source of space 'pixel'={n}0000000" for n in "ab"]
    assert [row.name for row in section.rows] == [f"dm / pixel [{told}]" for told in ours]


def test_two_sources_in_one_row_are_marked_where_only_judging_differs() -> None:
    one = judged(method("dm", "pixel"), {"convnet": [0.5]})
    more = judgement(one.set, CONVNET, [0.6], first=1, source="b")
    (line,) = [line for line in page([Judged(one.set, (*one.judgements, more))]).splitlines() if line.startswith("‡")]
    both = "(a0000000 and b0000000)"
    assert line == f"‡ dm / pixel: other sources of architecture 'convnet' {both}, dataset 'toy' {both}."


def test_seconds_of_different_hardware_are_marked() -> None:
    plan = method("dm", "pixel")
    records = [judged(plan, LEVELS), judged(replace(plan, seed=1), LEVELS, making={"hardware": GPU})]
    assert accuracy_table(one_section(records))["s to distil"].tolist() == ["11.0 ‡"]
    assert timing_table(one_section(records))["evaluate s"].tolist() == ["17.0"]
    table = machines_table(results(records))
    assert table[["device", "sets", "judgements"]].to_numpy().tolist() == [["Some CPU", "1", "4"], ["Some GPU", "1", "0"]]
    assert "‡" not in str(accuracy_table(one_section(toy_records())))


def test_made_on_one_machine_and_judged_on_another_is_no_mixture() -> None:
    records = [judged(method("dm", "pixel", seed=seed), LEVELS, making={"hardware": GPU}) for seed in (0, 1)]
    assert accuracy_table(one_section(records))["method"].tolist() == ["dm / pixel"]


def test_what_records_say_a_reader_must_know_stands_below_the_table() -> None:
    sentence = "loss 'dm' of alpha changed torch's float32 matmul precision."
    one = judged(method("dm", "pixel"), LEVELS, making={"marks": (sentence,)})
    text = page([one, judged(method("dc", "pixel"), LEVELS)])
    assert "| dm / pixel § " in text
    assert f"\n§ dm / pixel: {sentence}\n" in text
    assert "| dc / pixel § " not in text
