"""leaderboard.md and the folder around it: images/, plans/, suites/. Equal stores give equal bytes, at any time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ddbench.errors import ConfigError, command
from ddbench.files import digest, write_if_changed
from ddbench.leaderboard import budgets, costs, habits, knowledge, legend, trajectory, tuned
from ddbench.leaderboard.beside import Surroundings, commands, copy_image, copy_plan, copy_suites, places_of
from ddbench.leaderboard.join import Result, results_of
from ddbench.leaderboard.missing import missing, reason
from ddbench.leaderboard.sections import Section, sections
from ddbench.leaderboard.tables import (
    MARKED,
    MIXED,
    NOTHING,
    ONE_SEED,
    REFERENCE,
    SAW,
    accuracy_table,
    as_json,
    code,
    escape,
    frame,
    machines_table,
    markdown,
    spread_table,
    timing_table,
)
from ddbench.leaderboard.texts import chosen_texts
from ddbench.leaderboard.walks import rows_of_walk
from ddbench.plan import short
from ddbench.results.contents import Contents, read_contents
from ddbench.results.layout import WALK
from ddbench.results.store import Store


@dataclass(frozen=True)
class Written:
    """What became of a store."""

    path: Path  # of leaderboard.md
    ranked: list[dict[str, Any]]  # rows
    not_ranked: list[dict[str, Any]]  # rows that measure a habit, or what iterates do
    unreadable: list[str]  # a sentence for each file that is left out
    notes: list[str]  # a sentence for what is sound and counts nowhere


def page_text(results: Sequence[Result], around: Surroundings, reference: str = REFERENCE) -> str:
    """The whole page."""
    return _page(sections(results), results, around, reference)


def _page(made: Sequence[Section], results: Sequence[Result], around: Surroundings, reference: str) -> str:
    parts = ["# Leaderboard", ""]
    if around.num_faults:
        told = f"{around.num_faults} file{'s' if around.num_faults > 1 else ''}"
        parts += [f"**Damaged and left out of this page: {told}.** `ddbench leaderboard` names what is wrong.", ""]
    if around.num_unjudged:
        parts += [f"**Sets that no network has judged yet: {around.num_unjudged}.**", ""]
    if not results:
        parts += ["No set has been judged yet. Run a suite with: `ddbench run SUITE`", ""]
    for section in made:
        parts += _section(section, around, reference) if section.kind == "ranked" else []
    late = [section for section in made if section.kind == "untuned"]
    parts += [legend.UNTUNED] if late else []
    for section in late:
        parts += [f"### {title_of(section)}", "", *_accuracy(section, around, "####"), *_reproduce(section, around, "####")]
    unranked = [section for section in made if section.kind in ("constants", "choice")]
    parts += [legend.HABITS] if unranked else []
    known = habits.bases(results) if unranked else {}
    for section in unranked:
        parts += _choice(section, around) if section.kind == "choice" else _constants(section, around, known)
    walks = [section for section in made if section.kind == "trajectory"]
    parts += [legend.TRAJECTORY] if walks else []
    for section in walks:
        parts += _trajectory(section, around)
    if results:
        table = markdown(machines_table(results), left=("device", "kind", "instructions", "other versions"))
        parts += ["## Hardware and versions", "", table, ""]
    parts += [*_suites(around), *_failed(around)]
    words = legend.LEGEND.format(unknown=NOTHING, one_seed=ONE_SEED, mixed=MIXED, marked=MARKED, reference=escape(reference))
    tells = any(tuned.concerns(section) for section in made)
    return "\n".join(parts) + "\n" + words + (legend.TUNING if tells else "")


def _section(section: Section, around: Surroundings, reference: str) -> list[str]:
    parts = [f"## {title_of(section)}", "", *_facts(section), "", *_accuracy(section, around, "###")]
    parts += ["### Uncertainty (points of accuracy): 95 % interval of the mean / std over networks / error of the test set", ""]
    parts += [markdown(spread_table(section), left=("method",)), ""]
    parts += ["### Size", "", markdown(budgets.budget_table(section), left=("method",)), ""]
    timing = timing_table(section, reference)
    if len(timing):
        parts += ["### Time and memory", "", markdown(timing, left=("method",)), ""]
    if lines := tuned.lines(section):
        parts += ["### Tuning", "", markdown(frame(lines), left=("method", "rates", "which")), ""]
    return parts + _cost(section, "###") + _images(section, around, "###") + _reproduce(section, around, "###")


def _trajectory(section: Section, around: Surroundings) -> list[str]:
    """The accuracies of iterates, and how to see them again."""
    table = markdown(trajectory.trajectory_table(section), left=("method", "iterate"))
    parts = [f"### {title_of(section)}", "", *_facts(section), "", "#### Accuracy on the way (%)", "", table, ""]
    return [*parts, *_footnotes(section), *_reproduce(section, around, "####")]


def _constants(section: Section, around: Surroundings, known: habits.Bases) -> list[str]:
    """Sets whose generated images have other constants: what that is worth, and how to see it again."""
    table = markdown(habits.difference_table(section, known), left=("method", "against"))
    parts = [*_habit(section), *_accuracy(section, around, "####"), "#### Difference (points)", "", table, "", legend.DIFFERENCE]
    return parts + _cost(section, "####") + _images(section, around, "####") + _reproduce(section, around, "####")


def _choice(section: Section, around: Surroundings) -> list[str]:
    """What choosing among iterates on the test split brings, and how to see it again."""
    table = markdown(habits.choice_table(section), left=("method", "reading"))
    parts = [*_habit(section), "#### Choosing on the test split (accuracy in %)", "", table, "", *_footnotes(section)]
    return [*parts, legend.CHOICE, *_reproduce(section, around, "####")]


def _habit(section: Section) -> list[str]:
    told = [f"- What it is: {habits.described(section)}."]
    if section.kind == "choice":
        told.append(f"- Iterates judged beside the finished set: {habits.iterates(section)}.")
    return [f"### {title_of(section)}", "", *map(escape, told), *_facts(section), ""]


LABELS = {
    "hard": "hard labels",
    "learned": "learned labels",
    "stored": "stored soft labels",
    "file": "soft labels of a file",
    "teacher": "soft labels (teacher)",
}


def title_of(section: Section) -> str:
    """The heading of a section."""
    bound = f"IPC {section.ipc}" + (" in bytes" if section.budget == "bytes" else "")
    ipc = "all training images" if section.ipc is None else bound
    labels = LABELS[section.labels]
    return escape(f"{section.test.label}, {ipc}, {labels}, protocol {section.protocol}")


def _accuracy(section: Section, around: Surroundings, level: str) -> list[str]:
    table = markdown(accuracy_table(section), left=("method", SAW))
    lacking = [each.sentence for row in section.rows for each in missing(section, row, around.failed)]
    return [f"{level} Accuracy (%)", "", table, "", *_footnotes(section, lacking)]


def _cost(section: Section, level: str) -> list[str]:
    """What judging cost, where it was measured."""
    found = costs.of_section(section)
    if not found:
        return []
    parts = [f"{level} Cost of judging", "", markdown(costs.cost_table(found), left=("network", "hardware", "way")), ""]
    if len({cost.machine for cost in found}) > 1:
        parts += ["They were judged on different hardware, whose costs have no common mean: a line for each.", ""]
    return parts


def _facts(section: Section) -> list[str]:
    """What holds for all rows of a section."""
    train, test, numbers = section.train, section.test, section.numbers
    copy = "" if train.original and test.original else " **A copy: its files are not the published ones.**"
    full = sorted({row.results[0].judging.numbers.epochs for row in section.rows if row.is_full_data})
    epochs = f"{numbers.epochs} epochs"
    if full and section.ipc is not None:
        epochs += f" ({' or '.join(map(str, full))} for full-data)"
    alike = f" Equal numbers were asked for as {', '.join(section.protocols[1:])}." if len(section.protocols) > 1 else ""
    backbones = ", ".join(section.backbones) or "none"
    facts = [
        f"- Data: {test.label}, {len(test.counts)} classes, {_counts(train.counts)} training images `{train.hash[:8]}` and "
        f"{_counts(test.counts)} test images `{test.hash[:8]}`.{copy}",
        f"- Protocol: {section.protocol} `{digest(numbers.identity)[:8]}`, {epochs}.{alike}",
        f"- Backbone: {backbones}. Judged by: {', '.join(section.networks)}.",
    ]
    facts += [] if section.ipc is None else [f"- Budget: {budgets.TOLD[section.budget]}."]
    one = knowledge.told(min(section.kinds)) if len(section.kinds) == 1 else "as the table says"
    facts.append(f"- What the sets saw: {one}.")
    teacher = section.lead.judging.teacher
    if numbers.teacher and teacher:
        told = f"a teacher ({teacher.label}, {numbers.teacher.epochs} epochs on the real training images) labels every batch"
        own = (
            "the sets' own name the class that refines them (GIFT)"
            if numbers.criterion == "gift"
            else "the sets' own do not count"
        )
        facts.append(f"- Labels: {told}; {own}. No accuracy under hard or learned labels compares.")
    elif section.labels != "hard":
        facts.append("- Baselines train on hard labels: they stand in the sections of hard labels.")
    return [escape(fact) for fact in facts]


def _counts(counts: Sequence[int]) -> str:
    """`4,000 (400 a class)`."""
    low, high = min(counts, default=0), max(counts, default=0)
    return f"{sum(counts):,} ({low:,}{'' if low == high else f' to {high:,}'} a class)"


def _footnotes(section: Section, more: Sequence[str] = ()) -> list[str]:
    """A line for each row of mixed circumstances, and for everything else that a reader must know of one; then `more`."""
    notes = [f"{MIXED} {row.name}: {'; '.join(row.mixed)}." for row in section.rows if row.mixed]
    marked: dict[str, list[str]] = {}
    for row in section.rows:
        for mark in row.marks:
            marked.setdefault(mark, []).append(row.name)
    notes += [f"{MARKED} {'; '.join(names)}: {mark}" for mark, names in marked.items()]
    return [line for note in (*notes, *more) for line in (escape(note), "")]


def _images(section: Section, around: Surroundings, level: str) -> list[str]:
    """The first seed's grid of every row, shown; the other seeds', linked."""
    parts = []
    for row in section.rows:
        have = [result for result in row.results if result.key in around.images]
        if have:
            caption = f"{escape(row.name)}, seed {have[0].seed}"
            others = ", ".join(f"[{each.seed}](images/{short(each.key)}.png)" for each in have[1:])
            parts += [f"**{caption}**" + (f" (other seeds: {others})" if others else ""), ""]
            parts += [f"![{caption}](images/{short(have[0].key)}.png)", ""]
        if have and WALK in have[0].record.files:
            parts += [f"Through the stages, from the top: {escape('; '.join(rows_of_walk(have[0])))}", ""]
            parts += [f"![{caption}, through the stages](images/{short(have[0].key)}-{WALK})", ""]
    return [f"{level} Images", "", *parts] if parts else []


def _reproduce(section: Section, around: Surroundings, level: str) -> list[str]:
    note = (
        "A command runs all seeds of its row. Add `--store STORE` to run only what an existing store lacks, `--prepare` to "
        "train experts and teachers that it lacks."
    )
    parts = [f"{level} Reproduce", "", note, ""]
    for row in section.rows:
        plans = ", ".join(f"[{short(each.key)}](plans/{short(each.key)}.json) (seed {each.seed})" for each in row.results)
        told = commands(row, section, around)
        spoken = " and ".join(map(code, told))
        if row.tuning and any(each.startswith("ddbench run ") for each in told):
            tunes = (each.replace("ddbench run ", "ddbench tune ", 1) for each in told if each.startswith("ddbench run "))
            spoken = f"{' and '.join(map(code, tunes))}, then {spoken}"
        file = f", where FILE has the SHA-256 {row.plan.imported.sha256}" if row.plan.imported else ""
        parts.append(f"- {escape(row.name)}: {spoken}{file}; plans {plans}")
    return [*parts, ""]


def _suites(around: Surroundings) -> list[str]:
    """Links to the texts of the suites."""
    if not around.suites:
        return []
    head = "## Suites as they were run\n\nRun a command that names such a file from this page's folder.\n"
    texts = {name: ", ".join(f"[{path}]({path})" for path in paths) for name, paths in sorted(around.suites.items())}
    return [head, *(f"- {escape(name)}: {links}" for name, links in texts.items()), ""]


def _failed(around: Surroundings) -> list[str]:
    """Every job that failed and has not been done since, with its last error."""
    lines = [f"- {escape(failure.title)} ({job}): {escape(reason(failure))}" for job, failure in around.failed]
    return ["## Failed jobs", "", *sorted(lines), ""] if lines else []


def write(store: Store, out: Path, reference: str = REFERENCE, contents: Contents | None = None) -> Written:
    """Write a store's page, and what it links to, into a folder; `contents` are what the store holds, where that has been read.
    Raises ConfigError where that cannot be written."""
    contents = contents or read_contents(store)
    results, notes = results_of(contents)
    failed, lost = store.failed()
    made = sections(results)
    try:
        suites, shipped, reduced = copy_suites(store, out)
        judged = {result.key: result for result in results}
        images = frozenset(key for key, result in judged.items() if copy_image(store, result, out))
        for result in judged.values():
            copy_plan(store, result, out)
        unjudged = len({key for key, one in contents.sets.items() if not one.plan.is_trial} - judged.keys())
        chosen, num = chosen_texts(suites, out, reduced, results), len(contents.faults)
        around = Surroundings(images, suites, shipped, failed, num, unjudged, places_of(results), reduced, chosen)
        write_if_changed(out / "leaderboard.md", _page(made, results, around, reference).encode())
    except OSError as error:
        what = f"the leaderboard cannot be written to {out}: {error}"
        elsewhere = command("leaderboard", store.root, "--out", "FOLDER")  # `ddbench run` has no --out
        raise ConfigError(f"{what}. Make room there, or write it elsewhere with: {elsewhere}") from error
    known, ranked, unranked = habits.bases(results), [], []
    for section in made:
        for row in section.rows:
            lacking = {"missing": [each.as_json() for each in missing(section, row, failed)]}
            plain = as_json(section, row, reference) | budgets.as_json(section, row) | lacking
            if section.kind == "ranked":
                ranked.append(plain)
            elif section.kind == "untuned":
                unranked.append(plain | {"untuned": True})
            elif section.kind == "trajectory":
                unranked.append(plain | {"trajectory": trajectory.as_json(row)})
            else:
                unranked.append(plain | habits.as_json(section, row, known))
    faults = [fault.sentence for fault in contents.faults]
    return Written(out / "leaderboard.md", ranked, unranked, [*faults, *lost], notes)
