"""leaderboard.md and the folder around it: images/, plans/, suites/. Equal stores give equal bytes, at any time."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any

from ddbench.errors import ConfigError
from ddbench.files import sha256_file, write_bytes, write_json
from ddbench.leaderboard import costs, habits, legend
from ddbench.leaderboard.cells import Cell, read_cells
from ddbench.leaderboard.rows import Row, Section, method_name, sections
from ddbench.leaderboard.tables import (
    MIXED,
    ONE_SEED,
    REFERENCE,
    accuracy_table,
    as_json,
    escape,
    machines_table,
    markdown,
    spread_table,
    timing_table,
)
from ddbench.plan import digest
from ddbench.results.store import Store, short


@dataclass(frozen=True)
class Surroundings:
    """What the page shows beside cells."""

    images: frozenset[str] = frozenset()  # keys of the cells that have a grid
    suites: Mapping[str, Sequence[str]] = field(default_factory=dict)  # suite name -> its texts, files beside the page
    shipped: frozenset[str] = frozenset()  # suites that come with ddbench, unchanged: a command needs no file
    failed: Sequence[tuple[str, Mapping[str, Any]]] = ()  # (folder, last failure)
    num_unreadable: int = 0


@dataclass(frozen=True)
class Written:
    """What became of a store."""

    path: Path  # of leaderboard.md
    ranked: list[dict[str, Any]]  # rows
    not_ranked: list[dict[str, Any]]  # rows under protocols that measure a habit
    unreadable: list[str]  # a sentence for each record


def page_text(cells: Sequence[Cell], around: Surroundings, reference: str = REFERENCE) -> str:
    """The whole page."""
    parts = ["# Leaderboard", ""]
    if around.num_unreadable:
        parts += [f"**Records that cannot be read and are left out: {around.num_unreadable}.**", ""]
    if not cells:
        parts += ["No cell is finished yet. Run some with: `ddbench run SUITE`", ""]
    made = sections(cells)
    for section in made:
        parts += _section(section, cells, around, reference) if section.is_ranked else []
    unranked = [section for section in made if not section.is_ranked]
    parts += [legend.HABITS] if unranked else []
    for section in unranked:
        parts += _habit(section, cells, around)
    if cells:
        parts += ["## Hardware and versions", "", markdown(machines_table(cells), left=("device", "kind")), ""]
    parts += [*_suites(around), *_failed(around)]
    return "\n".join(parts) + "\n" + legend.LEGEND.format(one_seed=ONE_SEED, mixed=MIXED, reference=escape(reference))


def _section(section: Section, cells: Sequence[Cell], around: Surroundings, reference: str) -> list[str]:
    parts = [f"## {_title(section)}", "", *_facts(section), "", *_accuracy(section, "###")]
    parts += ["### Uncertainty (points of accuracy): 95 % interval of the mean / std over networks / error of the test set", ""]
    parts += [markdown(spread_table(section), left=("method",)), ""]
    timing = timing_table(section, reference)
    if len(timing):
        parts += ["### Time and memory", "", markdown(timing, left=("method",)), ""]
    parts += [*_cost(section, "###"), *_images(section, around, "###")]
    return parts + _reproduce(section, cells, around, "###")


def _habit(section: Section, cells: Sequence[Cell], around: Surroundings) -> list[str]:
    """A section that is not ranked: what the habit is worth, and how to see it again."""
    protocol = section.protocol
    description = protocol.get("description", "").removeprefix("not ranked: ") or "not said"
    told = [f"- What it is: {description}."]
    if protocol.get("snapshots"):
        told.append(f"- Iterates judged beside the final set: {habits.iterates(section)}.")
    parts = [f"### {_title(section)}", "", *map(escape, told), *_facts(section), ""]
    if protocol.get("snapshots"):
        table = markdown(habits.choice_table(section), left=("method", "reading"))
        parts += ["#### Choosing on the test split (accuracy in %)", "", table, "", *_mixed(section), legend.CHOICE]
    else:
        table = markdown(habits.difference_table(section, habits.bases(cells)), left=("method", "against"))
        parts += [*_accuracy(section, "####"), "#### Difference (points)", "", table, "", legend.DIFFERENCE]
    return parts + _cost(section, "####") + _images(section, around, "####") + _reproduce(section, cells, around, "####")


LABELS = {
    "hard": "hard labels",
    "learned": "learned labels",
    "stored": "stored soft labels",
    "teacher": "soft labels (teacher)",
}


def _title(section: Section) -> str:
    ipc = "all training images" if section.ipc is None else f"IPC {section.ipc}"
    labels = LABELS[section.labels]
    return escape(f"{section.data['label']}, {ipc}, {labels}, protocol {section.protocol['id']}")


def _accuracy(section: Section, level: str) -> list[str]:
    table = markdown(accuracy_table(section), left=("method",))
    return [f"{level} Accuracy (%)", "", table, "", *_mixed(section)]


def _cost(section: Section, level: str) -> list[str]:
    """What judging cost, where it was measured."""
    found = costs.of_section(section)
    if not found:
        return []
    parts = [f"{level} Cost of judging", "", markdown(costs.cost_table(found), left=("network", "hardware", "way")), ""]
    if len({cost.machine for cost in found}) > 1:
        parts += ["The cells ran on different hardware, whose costs have no common mean: a line for each.", ""]
    return parts


def _facts(section: Section) -> list[str]:
    protocol, data = section.protocol, section.data
    train, test = _counts(data["train_counts"]), _counts(data["test_counts"])
    name = f"{data['label']} `{data['hash'][:8]}`"
    copy = "" if data["original"] else " **A copy: its files are not the published ones.**"
    full = f" ({protocol['full_data_epochs']} for full-data)" if any(row.is_full_data for row in section.rows) else ""
    facts = [
        f"- Data: {name}, {len(data['test_counts'])} classes, {train} training and {test} test images.{copy}",
        f"- Protocol: {protocol['id']} `{digest(protocol)[:8]}`, {protocol['epochs']} epochs{full}, "
        f"{protocol['repeats']} repeats of each network.",
        f"- Backbone: {', '.join(section.backbones)}. Judged by: {', '.join(section.networks)}.",
    ]
    if section.labels == "teacher":
        teacher = section.rows[0].plan["teacher"]["label"]
        told = f"a teacher ({teacher}, {protocol['teacher']['epochs']} epochs on the real training images) labels every batch"
        facts.append(f"- Labels: {told}; the sets' own do not count. No accuracy under hard or learned labels compares.")
    elif section.labels != "hard":
        facts.append("- Baselines train on hard labels: they stand in the sections of hard labels.")
    return [escape(fact) for fact in facts]


def _counts(counts: Sequence[int]) -> str:
    """`4,000 (400 a class)`."""
    low, high = min(counts, default=0), max(counts, default=0)
    return f"{sum(counts):,} ({low:,}{'' if low == high else f' to {high:,}'} a class)"


def _mixed(section: Section) -> list[str]:
    notes = [
        f"{MIXED} {row.name}: {'; '.join(row.machines)}; Python {', '.join(row.pythons)}."
        for row in section.rows
        if row.is_mixed
    ]
    return [line for note in notes for line in (escape(note), "")]


def _images(section: Section, around: Surroundings, level: str) -> list[str]:
    """The first seed's grid of every row, shown; the other seeds', linked."""
    parts = []
    for row in section.rows:
        have = [cell for cell in row.cells if cell.key in around.images]
        if have:
            caption = f"{escape(row.name)}, seed {have[0].seed}"
            others = ", ".join(f"[{cell.seed}](images/{short(cell.key)}.png)" for cell in have[1:])
            parts += [f"**{caption}**" + (f" (other seeds: {others})" if others else ""), ""]
            parts += [f"![{caption}](images/{short(have[0].key)}.png)", ""]
    return [f"{level} Images", "", *parts] if parts else []


def _reproduce(section: Section, cells: Sequence[Cell], around: Surroundings, level: str) -> list[str]:
    note = (
        "A command runs all seeds of its row. Add `--store STORE` to run only what an existing store lacks, `--prepare` to "
        "train experts and teachers that it lacks."
    )
    parts = [f"{level} Reproduce", "", note, ""]
    for row in section.rows:
        plans = ", ".join(f"[{short(cell.key)}](plans/{short(cell.key)}.json) (seed {cell.seed})" for cell in row.cells)
        spoken = " or ".join(f"`{command}`" for command in commands(row, cells, around))
        parts.append(f"- {escape(row.name)}: {spoken}; plans {plans}")
    return [*parts, ""]


def commands(row: Row, cells: Iterable[Cell], around: Surroundings) -> list[str]:
    """What makes a row again, one for each suite that asked for it; subset and ipc are named where it has several."""
    made = []
    plan = row.plan
    for suite in sorted({cell.suite for cell in row.cells}):
        plans = [cell.plan for cell in cells if cell.suite == suite]
        roles = ("loss", "space")
        where = {"baseline": plan["baseline"]} if plan["baseline"] else {role: plan[role]["name"] for role in roles}
        if len({other["dataset"]["name"] for other in plans}) > 1:
            where["subset"] = plan["dataset"]["name"]
        if not row.is_full_data and len({other["ipc"] for other in plans if other["baseline"] != "full-data"}) > 1:
            where["ipc"] = str(plan["ipc"])
        texts = around.suites.get(suite, ())
        source = texts[0] if len(texts) == 1 and suite not in around.shipped else suite
        made.append(f"ddbench run {source} --only " + ",".join(f"{key}={value}" for key, value in where.items()))
    return made


def _suites(around: Surroundings) -> list[str]:
    """Links to the texts of the suites."""
    if not around.suites:
        return []
    head = "## Suites as they were run\n\nRun a command that names such a file from this page's folder.\n"
    texts = {name: ", ".join(f"[{path}]({path})" for path in paths) for name, paths in sorted(around.suites.items())}
    return [head, *(f"- {escape(name)}: {links}" for name, links in texts.items()), ""]


def _failed(around: Surroundings) -> list[str]:
    """Every cell that failed and has not been finished since, with its last error."""
    lines = []
    for folder, failure in around.failed:
        try:
            plan = failure["plan"]
            what = f"{method_name(plan)}, {plan['dataset']['label']}, ipc {plan['ipc']}, seed {plan['seed']}"
        except (KeyError, TypeError):
            what = "a cell whose plan cannot be read"
        lines.append(f"- {escape(what)} ({folder}): {escape(str(failure.get('error')))}")
    return ["## Failed cells", "", *sorted(lines), ""] if lines else []


def write(store: Store, out: Path, reference: str = REFERENCE) -> Written:
    """Write a store's page, and what it links to, into a folder. Raises ConfigError where that cannot be written."""
    records, bad = store.records()
    cells, damaged = read_cells(records)
    failed, lost = store.failed()
    try:
        suites, shipped = _copy_suites(store, out)
        images = frozenset(cell.key for cell in cells if _copy_image(store, cell, out))
        for cell in cells:
            write_json(out / "plans" / f"{short(cell.key)}.json", cell.plan)
        around = Surroundings(images, suites, shipped, failed, len(bad) + len(damaged))
        write_bytes(out / "leaderboard.md", page_text(cells, around, reference).encode())
    except OSError as error:
        what = f"the leaderboard cannot be written to {out}: {error}"
        elsewhere = f"ddbench leaderboard {store.root} --out FOLDER"  # `ddbench run` has no --out
        raise ConfigError(f"{what}. Make room there, or write it elsewhere with: {elsewhere}") from error
    known, ranked, unranked = habits.bases(cells), [], []
    for section in sections(cells):
        for row in section.rows:
            plain = as_json(section, row, reference)
            if section.is_ranked:
                ranked.append(plain)
            else:
                unranked.append(plain | habits.as_json(section, row, known))
    return Written(out / "leaderboard.md", ranked, unranked, [*bad, *damaged, *lost])


def _copy_image(store: Store, cell: Cell, out: Path) -> bool:
    source = store.cell(cell.key) / "images.png"
    if source.is_file():
        write_bytes(out / "images" / f"{short(cell.key)}.png", source.read_bytes())
    return source.is_file()


def _copy_suites(store: Store, out: Path) -> tuple[dict[str, list[str]], frozenset[str]]:
    """Copy the suites' texts beside the page; tell which of them come with ddbench, unchanged."""
    texts: dict[str, list[str]] = {}
    shipped = set()
    for path in sorted((store.root / "suites").glob("*.toml")):
        name = path.stem.rpartition("-")[0]
        write_bytes(out / "suites" / path.name, path.read_bytes())
        texts.setdefault(name, []).append(f"suites/{path.name}")
        ours = Path(str(files("ddbench.suites"))) / f"{name}.toml"
        if ours.is_file() and sha256_file(ours) == sha256_file(path):
            shipped.add(name)
    return texts, frozenset(shipped)
