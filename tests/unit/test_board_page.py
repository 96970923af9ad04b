"""The page of a store: the same from the same records, with everything it links to, and rewritten only where it changed."""

from __future__ import annotations

import json
import os
import random
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace
from synthetic_records import (
    BASE,
    CHOICE,
    FULL_DATA,
    GPU,
    HARDWARE,
    IMAGES,
    MEAN,
    RANDOM,
    RESNET,
    SHIFTED,
    SOFT,
    TEACHER,
    Judged,
    baseline,
    contents_of,
    cost,
    draw,
    judged,
    judgement,
    method,
    numbered,
    ref,
    results,
    seen,
    toy_records,
    write_store,
)

from ddbench.api import Seen
from ddbench.cli import main
from ddbench.leaderboard.beside import Surroundings, commands, places_of
from ddbench.leaderboard.join import results_of
from ddbench.leaderboard.missing import UNKNOWN, missing
from ddbench.leaderboard.page import page_text, write
from ddbench.leaderboard.sections import sections
from ddbench.leaderboard.tables import accuracy_table, escape
from ddbench.plan import Imported, SetPlan, short
from ddbench.results.contents import Contents
from ddbench.results.layout import judgement_job
from ddbench.schema import FailureRecord

DC = ref("losses", "dc")
GOLDEN = Path(__file__).parent.parent / "golden" / "leaderboard.md"
LEVELS = {"convnet": [0.5, 0.52], "vit": [0.4, 0.42]}


# The text


def golden_records() -> list[Judged]:
    """The toy grid, and one of everything else that the page knows to say."""
    rng, records = np.random.default_rng(5), toy_records()
    extra = [
        (method("dm", "pixel", steps=200, seed=1), {"hardware": GPU}),
        (method("dm", "glad", ipc=10), {}),
        (method("dm", "glad", ipc=10, seed=1), {"hardware": GPU, "source": "b"}),
        (method("dm", "glad", labels="learned"), {}),
        (replace(method("dm", "glad"), train_hash="c" * 64), {"label": "toy (copy cccccccc)", "original": False}),
        (method("dm", "glad"), {"suite": "long", "protocol": numbered("glad-1", epochs=1000)}),
        (replace(BASE, imported=Imported("f" * 64, "pixels", "indices")), {"suite": ""}),
    ]
    records += [judged(plan, draw(plan, rng, 0.8), **fields) for plan, fields in extra]
    added = next(each for each in records if each.plan.key == method("dm", "glad", seed=1).key)
    records.append(Judged(added.set, (judgement(added.set, RESNET, [0.5, 0.52], suite="more"),)))
    return [seen(one, *saw_of(one.plan)) for one in records + judged_otherwise(rng)]


def saw_of(plan: SetPlan) -> tuple[Seen, ...]:
    """The training images; a walk is ranked by a network of others, of which one may know the test images."""
    if plan.imported or plan.labels == "learned":
        return ("unknown",)
    if plan.space and plan.space.name == "hpd":
        return ("train", "external-images", "external-labels", *(("test-images",) if plan.seed and plan.loss == DC else ()))
    return ("train",)


def judged_otherwise(rng: np.random.Generator) -> list[Judged]:
    """Under a teacher, with a mark, on two machines; and two habits, one on iterates of the toy grid's own sets."""
    made = []
    marks = ("loss 'dm' changed the float32 matmul precision.",)
    for seed in (0, 1):
        soft = method("dm", "pixel", seed=seed, steps=300)
        costs = {"convnet": cost(8.0 + seed), "vit": cost(20.0 + seed, "stacked", flops_per_image=1.2e9)}
        fields = {"costs": costs, "protocol": SOFT, "teacher": TEACHER, "hardware": GPU if seed else HARDWARE}
        made.append(judged(soft, draw(soft, rng, 0.8), making={"marks": marks}, **fields))
        for space, level in (("glad", 0.55), ("pixel", 0.67)):
            plan = method("dm", space, seed=seed)
            steps = {0: draw(plan, rng, level - 0.05), 50: draw(plan, rng, level)}
            made.append(judged(plan, {}, iterates=steps, costs=costs, protocol=CHOICE))
        plan = method("dm", "glad", seed=seed, synthetic_mean=MEAN)
        made.append(judged(plan, draw(plan, rng, 0.52), protocol=SHIFTED))
    return made


def golden_text(contents: Contents) -> str:
    """With keys and hashes that no new field of a plan or a protocol can change."""
    made, notes = results_of(contents)
    assert notes == []
    keys = list(dict.fromkeys(each.plan.key for each in golden_records()))
    failure = FailureRecord(
        job="set-0123456789abcdef", title="dc / hpd / cvae, toy, ipc 1, seed 7", error="the loss was NaN | at step 3",
        details="", place=None,
    )  # fmt: skip
    around = Surroundings(
        images=frozenset(keys[number] for number in (0, 1, 3)),
        suites={"toy-grid": ["suites/toy-grid-0123abcd.toml"]},
        failed=[("set-0123456789abcdef", failure)],
        num_faults=1,
        num_unjudged=2,
        places=places_of(made),
    )
    text = page_text(made, around)
    for number, key in enumerate(keys):
        text = text.replace(short(key), f"{number:016x}")
    return re.sub(r"^(- Protocol: \S+) `[0-9a-f]{8}`", r"\1 `01234567`", text, flags=re.MULTILINE)


def test_the_page_is_the_golden_one() -> None:
    """Rewrite it with: DDBENCH_GOLDEN=write pytest tests/unit/test_board_page.py, and read the difference."""
    text = golden_text(contents_of(golden_records()))
    if os.environ.get("DDBENCH_GOLDEN") == "write":
        GOLDEN.write_text(text, encoding="utf-8")
    assert text == GOLDEN.read_text(encoding="utf-8")


@settings(max_examples=5, deadline=None)
@given(st.randoms(use_true_random=False))
def test_the_order_of_records_does_not_matter(order: random.Random) -> None:
    contents = contents_of(golden_records())
    keys, judgements = list(contents.sets), list(contents.judgements)
    order.shuffle(keys)
    order.shuffle(judgements)
    shuffled = Contents({key: contents.sets[key] for key in keys}, tuple(judgements), ())
    assert golden_text(shuffled) == GOLDEN.read_text(encoding="utf-8")


def test_text_cannot_break_a_table() -> None:
    assert escape("a|b\n<script> *") == "a\\|b &lt;script> *"
    records = results([judged(replace(method("dm", "pixel"), loss=ref("losses", "dm", "dm(x=a|b)")), LEVELS)])
    text = page_text(records, Surroundings())
    (line,) = [line for line in text.splitlines() if line.startswith("| dm") and "KiB" not in line and "±" in line][:1]
    assert line.replace("\\|", "").count("|") == len(accuracy_table(sections(records)[0]).columns) + 1


# Commands


@pytest.mark.parametrize(
    ("others", "around", "command"),
    [
        ([], {}, "ddbench run toy-grid --only loss=dm,space=glad"),
        ([method("dm", "glad", ipc=10)], {}, "ddbench run toy-grid --only loss=dm,space=glad,ipc=1"),
        (
            [replace(method("dm", "glad"), dataset=ref("datasets", "other"), train_hash="c" * 64)],
            {},
            "ddbench run toy-grid --only loss=dm,space=glad,subset=toy",
        ),
        ([], {"suites": {"toy-grid": ["suites/a.toml"]}}, "ddbench run suites/a.toml --only loss=dm,space=glad"),
        (
            [],
            {"suites": {"toy-grid": ["suites/a.toml"]}, "shipped": frozenset({"suites/a.toml"})},
            "ddbench run toy-grid --only loss=dm,space=glad",
        ),
        (
            [],
            {
                "suites": {"toy-grid": ["suites/a.toml", "suites/b.toml"]},
                "chosen": {("toy-grid", method("dm", "glad").key): "suites/b.toml"},
            },
            "ddbench run suites/b.toml --only loss=dm,space=glad",
        ),
        (
            [replace(method("dm", "glad"), loss=ref("losses", "dm", "dm(batch_real=8)", batch_real=8))],
            {},
            "ddbench run toy-grid --only 'loss=dm(),space=glad'",
        ),
        ([], {"suites": {"toy-grid": ["suites/ä b.toml"]}}, "ddbench run 'suites/ä b.toml' --only loss=dm,space=glad"),
        ([baseline(FULL_DATA)], {}, "ddbench run toy-grid --only loss=dm,space=glad"),
        (
            [],
            {"suites": {"toy-grid": ["suites/a.toml"]}, "reduced": {"toy-grid": "toy"}},
            "ddbench run suites/a.toml:reduced --only loss=dm,space=glad",
        ),
        (
            [],
            {"suites": {"toy-grid": ["suites/a.toml"]}, "reduced": {"toy-grid": "toy"}, "shipped": frozenset({"suites/a.toml"})},
            "ddbench run toy:reduced --only loss=dm,space=glad",
        ),
    ],
    ids=[
        "alone",
        "ipc",
        "subset",
        "file",
        "shipped",
        "the right one of two",
        "variants",
        "quotes",
        "full data have no ipc",
        "reduced",
        "reduced and shipped",
    ],
)
def test_commands(others: list[SetPlan], around: dict[str, object], command: str) -> None:
    plan = method("dm", "glad")
    made = results([judged(each, LEVELS) for each in [plan, *others]])
    beside = Surroundings(places=places_of(made), **around)
    rows = [(row, section) for section in sections(made) for row in section.rows if row.results[0].key == plan.key]
    assert commands(*rows[0], beside) == [command]


def test_commands_of_baselines() -> None:
    plans = [baseline(RANDOM), baseline(RANDOM, ipc=10), baseline(FULL_DATA)]
    made = results([judged(plan, LEVELS) for plan in plans])
    around = Surroundings(places=places_of(made))
    found = {command for section in sections(made) for row in section.rows for command in commands(row, section, around)}
    run = "ddbench run toy-grid --only baseline="
    assert found == {f"{run}random,ipc=1", f"{run}random,ipc=10", f"{run}full-data"}


def test_every_suite_that_asked_for_a_part_has_its_command() -> None:
    """A network that another suite added; and one that `ddbench evaluate` did."""
    one = judged(method("dm", "pixel"), {"convnet": [0.5]})
    more = [judgement(one.set, RESNET, [0.4], suite="more"), judgement(one.set, TEACHER, [0.4], suite="")]
    made = results([Judged(one.set, (*one.judgements, *more))])
    (section,) = sections(made)
    assert commands(section.rows[0], section, Surroundings(places=places_of(made))) == [
        f"ddbench evaluate STORE/sets/{short(one.plan.key)} --store STORE --protocol toy-1 "
        f"--archs {TEACHER.label} --repeats 1 --threads 1",
        "ddbench run more --only loss=dm,space=pixel",
        "ddbench run toy-grid --only loss=dm,space=pixel",
    ]


def test_the_choice_among_iterates_has_the_command_of_who_asked_for_it() -> None:
    one = judged(method("dm", "pixel"), LEVELS)
    looks = judged(method("dm", "pixel"), {}, iterates={0: LEVELS}, protocol=CHOICE, suite="looks")
    made = results([one, looks])
    around = Surroundings(places=places_of(made))
    found = {section.kind: commands(section.rows[0], section, around) for section in sections(made)}
    assert found == {
        "ranked": ["ddbench run toy-grid --only loss=dm,space=pixel"],
        "choice": ["ddbench run looks --only loss=dm,space=pixel"],
        "trajectory": ["ddbench run looks --only loss=dm,space=pixel"],
    }


def test_seeds_that_a_network_has_not_judged_are_told_with_the_reason() -> None:
    """Of four seeds one was judged by all, two diverged on a network, of one nobody knows; and a network failed on every seed."""
    plans = [method("dm", "pixel", seed=seed) for seed in range(4)]
    records = [judged(plans[0], LEVELS), *(judged(plan, {"convnet": [0.5]}) for plan in plans[1:])]
    others = [judged(method("dc", "pixel", seed=seed), {"convnet": [0.4]}) for seed in range(2)]

    def failed(one: Judged, network: str, error: str) -> tuple[str, FailureRecord]:
        other = judged(one.plan, {network: [0.1]}).judgements[0]
        job, title = judgement_job(one.plan.key, other.key, 0, 4), f"{network} on seed {one.plan.seed}"
        return job, FailureRecord(job=job, title=title, error=f"{title}: {error}", details="", place=None)

    failures = [failed(one, "vit", "training diverged.") for one in (*records[1:3], *others)]
    failures.append(failed(others[0], RESNET.label, "of a network in no column."))
    made = results([*records, *others])
    text = page_text(made, Surroundings(failed=failures))
    assert re.findall("^.* has no number for .*$", text, re.M) == [
        "dc / pixel: vit has no number for seeds 0, 1: training diverged.",
        "dm / pixel: vit has no number for seeds 1, 2: training diverged.",
        f"dm / pixel: vit has no number for seed 3: {UNKNOWN}",
    ]
    assert "(1 of 4 seeds)" in text
    (section,) = sections(made)
    told = [each.as_json() for each in missing(section, section.rows[0], failures)]
    assert told == [{"network": "vit", "seeds": [0, 1], "why": "training diverged."}]


# A store


def test_an_empty_store_says_what_to_do(tmp_path: Path) -> None:
    written = write(write_store(tmp_path / "store", []), tmp_path / "out")
    assert "No set has been judged yet. Run a suite with: `ddbench run SUITE`" in written.path.read_text()


def test_the_verb_writes_everything(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    records = [*toy_records(), judged(method("dm", "pixel", steps=7), {})]
    store = write_store(tmp_path / "store", records)
    store.add_suite("toy-grid", "schema = 1\n")
    (suite,) = (path.name for path in (store.root / "suites").iterdir())
    missing, done = (f"set-{short(method('dc', 'pixel', seed=seed).key)}" for seed in (9, 0))
    store.fail(missing, "dc / pixel, toy, ipc 1, seed 9", "went\nwrong", "")
    store.fail(missing, "dc / pixel, toy, ipc 1, seed 9", "went wrong again", "")
    store.fail(done, "dc / pixel, toy, ipc 1, seed 0", "finished since", "")
    assert main(["leaderboard", str(store.root)]) == 0
    out = store.root / "leaderboard"
    assert capsys.readouterr().out.splitlines()[-1] == str(out / "leaderboard.md")
    text = (out / "leaderboard.md").read_text()
    key = short(method("dm", "glad").key)
    assert f"![dm / glad / cvae, seed 0](images/{key}.png)" in text
    assert (out / "images" / f"{key}.png").read_bytes() == IMAGES
    assert len(list((out / "images").iterdir())) == 14  # full data have no grid, and the set that nothing judged no row
    assert (out / "plans" / f"{key}.json").read_bytes() == (store.folder(key) / "plan.json").read_bytes()
    assert "**Sets that no network has judged yet: 1.**" in text
    assert f"`ddbench run suites/{suite} --only loss=dm,space=glad`" in text
    assert (out / "suites" / suite).read_text() == "schema = 1\n"
    assert f"- dc / pixel, toy, ipc 1, seed 9 ({missing}): went wrong again\n" in text
    assert "left out" not in text.partition("## How to read")[0]
    assert "finished since" not in text
    assert main(["leaderboard", str(store.root), "--out", str(tmp_path / "elsewhere")]) == 0
    assert (tmp_path / "elsewhere" / "leaderboard.md").read_text() == text
    assert str(tmp_path) not in text


def test_nothing_is_rewritten_that_has_not_changed(tmp_path: Path) -> None:
    store = write_store(tmp_path / "store", toy_records())
    write(store, tmp_path / "out")

    def state() -> dict[Path, tuple[int, int]]:
        files = [path for path in (tmp_path / "out").rglob("*") if path.is_file()]
        return {path: (path.stat().st_mtime_ns, path.stat().st_ino) for path in files}

    before = state()
    assert len(before) > 20
    write(store, tmp_path / "out")
    assert state() == before
    write_store(store.root, [judged(method("dm", "pixel", seed=7), LEVELS)])
    write(store, tmp_path / "out")
    after = state()
    added = short(method("dm", "pixel", seed=7).key)
    assert {path.name for path in after.keys() - before.keys()} == {f"{added}.json", f"{added}.png"}
    assert [path.name for path in before if before[path] != after[path]] == ["leaderboard.md"]


def test_every_link_of_the_page_leads_somewhere(tmp_path: Path) -> None:
    page = write(write_store(tmp_path / "store", golden_records()), tmp_path / "out").path
    links = [part.split(")")[0] for part in page.read_text().split("](")[1:]]
    assert len(links) > 20
    assert [link for link in links if not (page.parent / link).is_file()] == []


def test_json_rows(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    records = toy_records()
    write_store(tmp_path / "store", records)
    assert main(["leaderboard", str(tmp_path / "store"), "--json"]) == 0
    value = json.loads(capsys.readouterr().out)
    rows, (section,) = value["ranked"], sections(results(records))
    assert value == {"ranked": rows, "not_ranked": []}
    assert [row["method"] for row in rows] == [row.name for row in section.rows]
    row = next(row for row in rows if row["method"] == "dm / pixel")
    assert row["same_architecture"]["mean"] == pytest.approx(section.rows[-2].same.mean)
    assert row["seconds_ratio"] == pytest.approx(9 / 21)
    assert row["sets"] == [method("dm", "pixel", seed=seed).key for seed in (0, 1)]
    assert (tmp_path / "store" / "leaderboard" / "leaderboard.md").is_file()


def test_json_keeps_habits_apart_and_says_what_they_are_worth(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plan, lower = method("dm", "glad"), {"convnet": [0.45, 0.47], "vit": [0.4, 0.42]}
    better = {"convnet": [0.55, 0.57], "vit": [0.3, 0.32]}
    records = [judged(plan, LEVELS), judged(replace(plan, synthetic_mean=MEAN), lower, protocol=SHIFTED)]
    records.append(judged(plan, {}, iterates={0: better, 50: lower}, protocol=CHOICE))
    write_store(tmp_path / "store", records)
    assert main(["leaderboard", str(tmp_path / "store"), "--json"]) == 0
    value = json.loads(capsys.readouterr().out)
    assert [row["protocol"] for row in value["ranked"]] == ["toy-1"]
    best, walk, other = value["not_ranked"]
    assert (best["protocol"], other["protocol"]) == ("toy-1-best-of-test", "toy-1-svhn-mean")
    assert best["one_iterate_gain"]["same_architecture"]["mean"] == pytest.approx(0.0)
    assert best["each_network_gain"]["networks"]["convnet"]["by_seed"] == pytest.approx([0.05])
    assert best["each_network"]["cross_architecture"]["mean"] == pytest.approx(0.41)
    assert [(point["step"], point["seconds"], point["steps"]) for point in walk["trajectory"]] == [
        (0, None, [0]), (50, None, [50]), (None, None, [None]),
    ]  # fmt: skip
    assert walk["trajectory"][1]["networks"]["convnet"]["mean"] == pytest.approx(0.46)
    assert walk["trajectory"][1]["cross_architecture"]["mean"] == pytest.approx(0.41)
    assert (best["iterates"], best["chosen_steps"]) == ([0, 50], [None])
    assert other["difference"]["same_architecture"]["mean"] == pytest.approx(-0.05)
    assert (other["difference_to"], other["difference_seeds"]) == (["toy-1"], [0])
    assert "mean 0.4, 0.4, 0.5" in other["habit"]


def test_a_damaged_file_is_a_warning_and_the_rest_is_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    records = toy_records()
    store = write_store(tmp_path / "store", records)
    cut = store.folder(records[0].plan.key) / "record.json"
    cut.write_bytes(cut.read_bytes()[:-100])
    (edited, *_) = (store.root / "judgements" / short(records[-1].plan.key)).iterdir()
    edited.write_text(edited.read_text().replace('"toy-grid"', '"another"'))
    assert main(["leaderboard", str(store.root)]) == 1
    output = capsys.readouterr()
    warnings = output.err.splitlines()
    assert len(warnings) == 2
    assert all(line.startswith("warning: ") for line in warnings)
    assert str(cut) in output.err
    assert str(edited) in output.err
    text = Path(output.out.splitlines()[-1]).read_text()
    assert "**Damaged and left out of this page: 2 files.**" in text
    assert "| dm / glad / cvae " in text


def test_what_counts_nowhere_is_a_warning_and_no_fault(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one = judged(method("dm", "pixel"), LEVELS)
    write_store(tmp_path / "store", [Judged(one.set, (*one.judgements, judgement(one.set, RESNET, [0.5], first=3)))])
    assert main(["leaderboard", str(tmp_path / "store")]) == 0
    assert "repeat 3 of resnet18 counts nowhere" in capsys.readouterr().err


def test_unreadable_failures_are_warnings_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = write_store(tmp_path / "store", toy_records())
    folder = store.root / "failed" / "set-0123456789abcdef"
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
        write_store(tmp_path / "store", [judged(method("dm", "pixel"), LEVELS)])
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
