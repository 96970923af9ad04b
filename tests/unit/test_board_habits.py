"""What habits of published code are worth: read from judgements, and held apart from results."""

from __future__ import annotations

from typing import Any

import pytest
from msgspec.structs import replace
from synthetic_records import (
    CHOICE,
    CONVNET,
    MEAN,
    PROTOCOL,
    RANDOM,
    RESNET,
    SHIFTED,
    VERSIONS,
    Judged,
    baseline,
    contents_of,
    judged,
    judgement,
    method,
    numbered,
    results,
)

from ddbench.leaderboard.beside import Surroundings
from ddbench.leaderboard.habits import bases, choice, choice_table, difference, difference_table, iterates
from ddbench.leaderboard.join import results_of
from ddbench.leaderboard.page import page_text
from ddbench.leaderboard.sections import Section, sections
from ddbench.leaderboard.tables import accuracy_table
from ddbench.plan import SetPlan

LEVELS = {"convnet": [0.5, 0.52], "vit": [0.4, 0.42]}


def chosen(seed: int = 0, **changes: Any) -> SetPlan:
    return method("dm", "pixel", seed=seed, **changes)


# Means over networks: 0.50 final, 0.525 at step 0, 0.52 at step 50; convnet is best at 50, vit at 0. Then: final 0.55, best.
FIRST = judged(
    chosen(0), {"convnet": [0.59, 0.61], "vit": [0.40, 0.40]}, protocol=CHOICE,
    iterates={0: {"convnet": [0.55, 0.57], "vit": [0.48, 0.50]}, 50: {"convnet": [0.63, 0.65], "vit": [0.40, 0.40]}},
)  # fmt: skip
SECOND = judged(
    chosen(1), {"convnet": [0.60, 0.60], "vit": [0.50, 0.50]}, protocol=CHOICE,
    iterates={0: {"convnet": [0.50, 0.50], "vit": [0.52, 0.54]}, 50: {"convnet": [0.60, 0.60], "vit": [0.45, 0.45]}},
)  # fmt: skip


def of_kind(kind: str, records: list[Judged]) -> Section:
    """The only section of a kind."""
    (section,) = (section for section in sections(results(records)) if section.kind == kind)
    return section


# The choice among iterates


def test_choosing_on_the_test_split_by_hand() -> None:
    section = of_kind("choice", [FIRST, SECOND])
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
    table = choice_table(of_kind("choice", [FIRST]))
    assert table["vit"].tolist()[2] == "+9.0 ± 1.4 †"


def test_of_equals_the_final_set_is_chosen() -> None:
    section = of_kind("choice", [judged(chosen(), LEVELS, iterates={0: LEVELS, 50: LEVELS})])
    assert choice(section.rows[0]).steps == (None,)
    assert choice_table(section)["vit"].tolist()[2] == "+0.0 ± 0.0 †"


def test_the_finished_set_of_a_habit_on_iterates_is_a_result_like_any_other() -> None:
    """It stands in one table with what was judged under the base, which has equal numbers."""
    other = judged(method("dc", "pixel"), LEVELS)
    ranked = of_kind("ranked", [FIRST, SECOND, other])
    assert (ranked.protocol, [row.name for row in ranked.rows]) == ("toy-1", ["dc / pixel", "dm / pixel"])
    assert accuracy_table(ranked)["same arch. (convnet)"].tolist()[1] == "60.0 ± 0.0"
    assert of_kind("choice", [FIRST, other]).protocol == "toy-1-best-of-test"


def test_what_has_no_iterates_has_nothing_to_choose() -> None:
    section = of_kind("choice", [FIRST, judged(baseline(RANDOM), LEVELS, protocol=CHOICE)])
    assert choice_table(section)["method"].tolist() == ["dm / pixel"] * 5
    assert iterates(section) == "steps 0, 50"
    longer = judged(chosen(steps=200), LEVELS, iterates={0: LEVELS, 100: LEVELS})
    names = "steps 0, 100 (dm / pixel [iterates=0/100, steps=200]); steps 0, 50 (dm / pixel [iterates=0/50, steps=100])"
    assert iterates(of_kind("choice", [FIRST, longer])) == names


def test_seeds_with_other_iterates_are_other_rows() -> None:
    """The best of fewer candidates would look like less."""
    fewer = judged(chosen(1), LEVELS, iterates={0: LEVELS})
    section = of_kind("choice", [FIRST, fewer])
    assert [row.name for row in section.rows] == ["dm / pixel [iterates=0/50]", "dm / pixel [iterates=0]"]
    (row,) = of_kind("ranked", [FIRST, fewer]).rows
    assert (row.name, [result.seed for result in row.results]) == ("dm / pixel", [0, 1])


def test_only_networks_and_repeats_that_judged_every_candidate_count() -> None:
    """resnet18 has judged the finished set and one iterate; convnet a third repeat of the finished set."""
    more = [
        judgement(FIRST.set, CONVNET, [1.0], first=2),
        judgement(FIRST.set, RESNET, [0.1, 0.1]),
        judgement(FIRST.set, RESNET, [0.9, 0.9], iterate=50),
    ]
    records = [FIRST, Judged(FIRST.set, tuple(more))]
    assert choice_table(of_kind("choice", records)).equals(choice_table(of_kind("choice", [FIRST])))
    assert {"convnet": (0.59, 0.61, 1.0)}.items() <= of_kind("ranked", records).rows[0].results[0].accuracies.items()


def test_iterates_that_no_network_has_judged_all_of_are_named() -> None:
    one = judged(chosen(), {"convnet": [0.5]}, iterates={0: {"vit": [0.5]}})
    found, (note,) = results_of(contents_of([one]))
    assert "no network has judged all of its iterates" in note
    assert [section.kind for section in sections(found)] == ["ranked", "trajectory"]


def test_judged_iterates_of_a_set_that_is_not_judged_are_named() -> None:
    found, (note,) = results_of(contents_of([judged(chosen(), {}, iterates={0: LEVELS})]))
    assert found == []
    assert "has judged iterates, and is not judged itself" in note


# Other constants for generated images


def shifted(seed: int, values: dict[str, list[float]], **fields: Any) -> Judged:
    plan = method("dm", "glad", seed=seed, synthetic_mean=MEAN)
    return judged(plan, values, protocol=SHIFTED, **fields)


def line_of(records: list[Judged]) -> dict[str, str]:
    """The line of the table of differences."""
    (line,) = difference_table(of_kind("constants", records), bases(results(records))).to_dict("records")
    return line


def test_a_habit_is_held_against_its_base_by_hand() -> None:
    """Seeds 0 and 1 are in both, seed 2 in the habit alone; differences -2, -4 and -1, -3 on the backbone."""
    base = {0: {"convnet": [0.60, 0.64], "vit": [0.40, 0.42]}, 1: {"convnet": [0.60, 0.60], "vit": [0.40, 0.42]}}
    habit = {0: {"convnet": [0.58, 0.60], "vit": [0.40, 0.42]}, 1: {"convnet": [0.59, 0.57], "vit": [0.40, 0.42]}, 2: LEVELS}
    records = [judged(method("dm", "glad", seed=seed), values) for seed, values in base.items()]
    records += [shifted(seed, values) for seed, values in habit.items()]
    assert line_of(records) == {
        "method": "dm / glad / cvae", "same arch. (convnet)": "-2.5 ± 0.7", "cross-arch. mean": "+0.0 ± 0.0",
        "vit": "+0.0 ± 0.0", "against": "toy-1", "seeds": "2",
    }  # fmt: skip


def test_a_network_that_the_base_lacks_has_no_difference() -> None:
    line = line_of([judged(method("dm", "glad"), {"convnet": [0.5, 0.5]}), shifted(0, LEVELS)])
    assert (line["same arch. (convnet)"], line["vit"]) == ("+1.0 ± 1.4 †", "–")


@pytest.mark.parametrize(
    ("change", "fields"),
    [
        ({"steps": 200}, {}),
        ({"seed": 1}, {}),
        ({"train_hash": "c" * 64}, {}),
        ({}, {"test_hash": "c" * 64}),
        ({}, {"protocol": numbered("toy-1", epochs=301)}),
        ({}, {"draw": 7}),
        ({"synthetic_std": (1.0,)}, {}),
        ({}, {"versions": VERSIONS | {"torch": "2.7.0"}}),
    ],
    ids=["plan", "seed", "training data", "test data", "protocol", "draw", "a habit too", "torch"],
)
def test_a_habit_is_held_against_nothing_else(change: dict[str, Any], fields: dict[str, Any]) -> None:
    other, habit = judged(method("dm", "glad", **change), LEVELS, **fields), shifted(0, LEVELS)
    (row,) = of_kind("constants", [habit]).rows
    assert difference(row, bases(results([other, habit]))).seeds == ()
    line = line_of([habit, judged(method("dc", "pixel"), LEVELS)])
    assert (line["vit"], line["against"], line["seeds"]) == ("–", "n/a: not in this store", "–")


def test_habits_stand_after_everything_that_is_ranked() -> None:
    """Although their ids come first in the alphabet."""
    first = replace(SHIFTED, id="a-1")
    habit = judged(method("dm", "glad", synthetic_mean=MEAN), LEVELS, protocol=first)
    records = [judged(method("dm", "glad"), LEVELS), habit, FIRST]
    text = page_text(results(records), Surroundings())
    ranked, heading, rest = text.partition("\n## Habits of published code (not ranked)\n")
    assert heading
    assert ranked.count("| dm / pixel ") == ranked.count("| dm / glad / cvae ") == 4  # accuracy, uncertainty, size, time
    assert "protocol a-1" not in ranked
    assert ranked.count("protocol toy-1") == 1
    assert rest.index("### toy, IPC 1, hard labels, protocol a-1") < rest.index("protocol toy-1-best-of-test")
    constants = "images of generators are normalised by mean 0.4, 0.4, 0.5 and the data set's own standard deviation"
    assert f"- What it is: {constants}, real images by the data set's own constants." in rest
    assert "- Iterates judged beside the finished set: steps 0, 50." in rest
    assert "\n## " not in rest.partition("\n## On the way (not ranked)")[0]
    assert "Habits of published code" not in page_text(results(records[:1]), Surroundings())


def test_a_habit_with_iterates_stands_in_no_ranked_table() -> None:
    habit = shifted(0, LEVELS, iterates={0: LEVELS})
    assert sorted(section.kind for section in sections(results([habit]))) == ["choice", "constants", "trajectory"]


def test_pixels_have_no_other_constants() -> None:
    """A plan without a generator is the base's own: the habit is one of generated images."""
    plan = method("dm", "pixel", synthetic_mean=MEAN).without_idle_settings()
    assert plan.key == method("dm", "pixel").key
    assert [section.kind for section in sections(results([judged(plan, LEVELS, protocol=PROTOCOL)]))] == ["ranked"]
