"""The schedule: what is ready, running, done, failed and left, without processes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ddbench.api import Job
from ddbench.grid.scheduler import Schedule


def job(name: str, *needs: str) -> Job:
    return Job("set", name, name, needs)


def names(jobs: list[Job]) -> list[str]:
    return [each.name for each in jobs]


GRID = (job("r"), job("s1", "r"), job("s2"), job("j1", "s1"), job("j2", "s1", "s2"), job("alone"))


def test_jobs_become_ready_as_what_they_need_is_done():
    schedule = Schedule(GRID)
    assert names(schedule.take()) == ["r", "s2", "alone"]
    assert schedule.take() == []
    schedule.finish("r")
    assert names(schedule.take()) == ["s1"]
    schedule.finish("s1")
    assert names(schedule.take()) == ["j1"]  # j2 still waits for s2
    schedule.finish("s2")
    assert names(schedule.take()) == ["j2"]
    assert schedule.left == 3
    for name in ("j1", "j2", "alone"):
        schedule.finish(name)
    assert schedule.left == 0
    assert schedule.done == {each.name for each in GRID}


def test_some_at_a_time_in_their_order():
    schedule = Schedule(GRID)
    assert names(schedule.take(2)) == ["r", "s2"]
    assert names(schedule.take(2)) == ["alone"]


def test_a_failure_takes_with_it_all_that_need_it_and_nothing_else():
    schedule = Schedule(GRID)
    schedule.take()
    assert names(schedule.fail("r")) == ["s1", "j1", "j2"]
    schedule.finish("s2")
    assert schedule.take() == []
    schedule.finish("alone")
    assert (schedule.left, schedule.failed) == (0, {"r", "s1", "j1", "j2"})
    assert schedule.fail("s1") == []  # told once


def test_a_job_that_is_taken_again_comes_after_those_that_are_ready():
    schedule = Schedule([job("a"), job("b"), job("c")])
    assert names(schedule.take(1)) == ["a"]
    schedule.again("a")
    assert names(schedule.take()) == ["b", "c", "a"]
    assert schedule.left == 3


def test_what_is_needed_and_no_job_counts_as_done():
    assert names(Schedule([job("a", "elsewhere")]).take()) == ["a"]


@pytest.mark.parametrize("jobs", [[job("a"), job("a")], [job("a", "b"), job("b", "a")], [job("a", "a")]])
def test_two_of_one_name_and_circles_are_refused(jobs):
    with pytest.raises(ValueError, match=r"one name|circle"):
        Schedule(jobs)


@st.composite
def graphs(draw: st.DrawFn) -> list[Job]:
    num = draw(st.integers(1, 12))
    needs = [draw(st.sets(st.integers(0, number - 1))) if number else set() for number in range(num)]
    order = draw(st.permutations(range(num)))
    return [job(f"j{number}", *(f"j{need}" for need in sorted(needs[number]))) for number in order]


@given(graphs(), st.randoms(use_true_random=False), st.data())
def test_every_job_ends_once_and_never_before_what_it_needs(jobs, random, data):
    schedule, running, ended = Schedule(jobs), list[Job](), dict[str, bool]()
    while schedule.left:
        taken = schedule.take(data.draw(st.integers(1, 3)))
        running += taken
        for each in taken:
            assert all(ended.get(need) for need in each.needs)
        assert running, "jobs are left and none is ready or running"
        each = running.pop(random.randrange(len(running)))
        match data.draw(st.sampled_from(["finish", "finish", "fail", "again"])):
            case "finish":
                schedule.finish(each.name)
                assert each.name not in ended
                ended[each.name] = True
            case "fail":
                for fallen in (each, *schedule.fail(each.name)):
                    assert fallen.name not in ended
                    ended[fallen.name] = False
            case _:
                schedule.again(each.name)
    assert ended.keys() == {each.name for each in jobs}
