"""Accuracy on the way: iterates by steps and by seconds, on the board."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from synthetic_records import VIT, Judged, judged, judgement, method, results, set_of, write_store

from ddbench.leaderboard.beside import Surroundings
from ddbench.leaderboard.page import page_text
from ddbench.leaderboard.sections import Section, sections
from ddbench.leaderboard.trajectory import as_json, trajectory_table
from ddbench.results.contents import read_contents

LEVELS = {"convnet": [0.6, 0.62]}
SLOW = ((0, 0.0), (20, 8.0), (40, 16.0))  # s before these steps; of 100
FAST = ((0, 0.0), (20, 4.0), (40, 8.0), (60, 12.0))


def walked(seed: int, timeline: Iterable[tuple[int, float]], levels: dict[float, float]) -> Judged:
    """A set whose iterates after so many seconds were judged by vit, which gets so much right; 50 % in the end."""
    plan = method("dm", "pixel", seed=seed)
    stored = set_of(plan, (20, 40, 60), timeline=tuple(timeline))
    looks = [judgement(stored, VIT, [level, level], iterate_seconds=seconds) for seconds, level in levels.items()]
    return Judged(stored, (judgement(stored, VIT, [0.5, 0.5]), judgement(stored, VIT, [0.2, 0.2], iterate=20), *looks))


def trajectory_of(records: Iterable[Judged]) -> Section:
    (section,) = (section for section in sections(results(records)) if section.kind == "trajectory")
    return section


SLOWLY, FASTER = walked(0, SLOW, {8.0: 0.2, 10.0: 0.3, 90.0: 0.5}), walked(1, FAST, {8.0: 0.4, 10.0: 0.44, 90.0: 0.5})


def test_the_steps_that_seconds_fell_on_stand_beside_them() -> None:
    table = trajectory_table(trajectory_of([SLOWLY, FASTER]))
    assert table["iterate"].tolist() == ["step 20", "8 s", "10 s", "90 s", "finished"]
    assert table["steps"].tolist() == ["20", "20, 40", "40, 60", "finished", "finished"]
    assert table["vit"].tolist() == ["20.0 ± 0.0", "30.0 ± 14.1", "37.0 ± 9.9", "50.0 ± 0.0", "50.0 ± 0.0"]
    assert set(table["seeds"]) == {"2"}


def test_iterates_by_seconds_alone_have_no_choice_and_leave_the_ranked_row_as_it_is() -> None:
    plan = method("dm", "pixel")
    stored = set_of(plan, (20,), timeline=SLOW)
    only = Judged(stored, (judgement(stored, VIT, [0.5]), judgement(stored, VIT, [0.3], iterate_seconds=5.0)))
    found = {section.kind: section for section in sections(results([only]))}
    assert list(found) == ["ranked", "trajectory"]
    assert found["ranked"].rows[0].results[0].accuracies == {"vit": (0.5,)}
    assert found["ranked"].rows[0].results[0].looks == ()


def test_seeds_with_other_moments_are_other_rows() -> None:
    section = trajectory_of([SLOWLY, walked(1, FAST, {8.0: 0.4})])
    assert [row.name for row in section.rows] == ["dm / pixel [iterates=20/8 s/10 s/90 s]", "dm / pixel [iterates=20/8 s]"]


def test_plain_values_say_the_same() -> None:
    (row,) = trajectory_of([SLOWLY, FASTER]).rows
    told = as_json(row)
    assert [(point["step"], point["seconds"], point["steps"]) for point in told] == [
        (20, None, [20, 20]), (None, 8.0, [20, 40]), (None, 10.0, [40, 60]), (None, 90.0, [None, None]),
        (None, None, [None, None]),
    ]  # fmt: skip
    assert [round(point["networks"]["vit"]["mean"], 3) for point in told] == [0.2, 0.3, 0.37, 0.5, 0.5]


def test_the_page_has_a_part_for_them_where_there_are_any(tmp_path: Path) -> None:
    text = page_text(results([SLOWLY, FASTER]), Surroundings())
    before, heading, rest = text.partition("\n## On the way (not ranked)\n")
    assert heading
    assert "#### Accuracy on the way (%)" in rest
    assert "| dm / pixel | 10 s " in rest
    assert "10 s" not in before
    assert "On the way" not in page_text(results([judged(method("dm", "pixel"), LEVELS)]), Surroundings())
    found = read_contents(write_store(tmp_path / "store", [SLOWLY, FASTER]))
    assert (len(found.judgements), found.faults) == (10, ())
