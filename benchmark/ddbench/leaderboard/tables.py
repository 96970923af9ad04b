"""Rows to tables: pandas frames of texts, accuracy in percent, and the markdown of a frame."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

import pandas as pd

from ddbench.leaderboard import tuned
from ddbench.leaderboard.join import CORE, HARDWARE, Result
from ddbench.leaderboard.knowledge import Kind, best, told
from ddbench.leaderboard.rows import PHASES, Row
from ddbench.leaderboard.sections import Section
from ddbench.leaderboard.statistics import Accuracy, Mean
from ddbench.schema import Place

REFERENCE = "glad"  # the space that others' seconds are divided by, where the caller names no other
NOTHING = "–"
ONE_SEED = "†"
MIXED = "‡"
MARKED = "§"
SAW = "saw"
CROSS = "cross-arch. mean"
ALL = "mean over networks"  # where no row has a backbone
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")  # and lone surrogates, which no file holds
_LINK = re.compile(r"\]([(\[:])")  # without one of these behind it, a bracket is a bracket


def escape(text: str) -> str:
    """Text that cannot break a markdown table, or become a heading, a tag, a link or an image."""
    line = _CONTROL.sub("\ufffd", " ".join(text.split())).replace("|", "\\|").replace("<", "&lt;")
    return _LINK.sub(r"]\\\1", line)


def code(text: str) -> str:
    """Text as code in one line, for somebody to copy, whatever backticks are in it, without what would steer a terminal."""
    plain = _CONTROL.sub(chr(0xFFFD), " ".join(text.splitlines()))
    runs = [len(run) for run in re.findall("`+", plain)]
    fence, space = "`" * (1 + max(runs, default=0)), " " if runs else ""
    return f"{fence}{space}{plain}{space}{fence}"


def markdown(frame: pd.DataFrame, left: Sequence[str]) -> str:
    """A pipe table; the columns named in `left` are aligned left, all others, which hold numbers, right."""
    safe = frame.map(escape).rename(columns=escape)
    align = ["left" if name in left else "right" for name in frame.columns]
    return safe.to_markdown(index=False, tablefmt="pipe", colalign=align, disable_numparse=True)


def percent(value: float | None) -> str:
    """`61.2` for 0.612."""
    return NOTHING if value is None else f"{100 * value:.1f}"


def with_error(value: Mean | None) -> str:
    """`61.2 ± 0.8`: the standard deviation over seeds, or, marked, that over networks where there is one seed."""
    return NOTHING if value is None else percent(value.mean) + _error(value)


def points(value: Mean | None) -> str:
    """`+1.2 ± 0.8` for a difference, with the same error."""
    return NOTHING if value is None else f"{round(100 * value.mean, 1) + 0.0:+.1f}" + _error(value)  # + 0.0: no -0.0


def _error(value: Mean) -> str:
    if value.std_seeds is not None:
        return f" ± {percent(value.std_seeds)}"
    spread = "" if value.std_networks is None else f" ± {percent(value.std_networks)}"
    return f"{spread} {ONE_SEED}"


def fewer(row: Row, section: Section) -> str:
    """What stands behind the cross-architecture mean of a row that it takes over fewer networks than others of its table."""
    missing = [name for name in section.networks if name not in (*row.others, row.backbone)]
    return f" ({len(row.others)} of {len(row.others) + len(missing)} networks)" if missing and row.others else ""


def on_network(row: Row, name: str) -> str:
    """A row's accuracy on one network; over how many of its seeds, where that has not judged all."""
    num = len(row.judged_by(name))
    seeds = f" ({num} of {len(row.results)} seeds)" if 0 < num < len(row.results) else ""
    return with_error(row.accuracies.get(name)) + seeds


def columns(row: Row, section: Section) -> dict[str, tuple[str, ...]]:
    """The columns of accuracies, and for each the row's networks that its number is the mean over: none, no number.

    A backbone that all rows share has the column of the same architecture, and none of its own.
    """
    made: dict[str, tuple[str, ...]] = {}
    if section.backbones:
        made[same_column(section)] = (row.backbone,) if row.backbone in row.networks else ()
    made[CROSS if section.backbones else ALL] = row.others
    names = (name for name in section.networks if section.backbones != (name,))
    return made | {name: (name,) if name in row.networks else () for name in names}


def same_column(section: Section) -> str:
    """Its heading."""
    return "same arch." + (f" ({section.backbones[0]})" if len(section.backbones) == 1 else "")


def _accuracies(row: Row, section: Section) -> dict[str, str]:
    """A row's cells in the columns of accuracies."""
    cells = {}
    for column, networks in columns(row, section).items():
        if column in (CROSS, ALL):
            cells[column] = with_error(row.cross) + fewer(row, section)
        else:
            cells[column] = on_network(row, networks[0]) if networks else NOTHING
    return cells


def _best(section: Section) -> set[tuple[int, str]]:
    """The cells, by the number of the row and the column, that are the best among rows that saw the same. Full data and means
    over fewer networks or seeds than others have do not compete."""
    found: dict[str, list[tuple[Kind, float | None]]] = {}
    most = max(len(row.results) for row in section.rows)
    for row in section.rows:
        competes = len(row.results) == most and not row.is_full_data
        for column, networks in columns(row, section).items():
            if column in (CROSS, ALL):
                value = None if fewer(row, section) else row.cross
            else:
                value = row.accuracies[networks[0]] if networks and len(row.judged_by(networks[0])) == len(row.results) else None
            found.setdefault(column, []).append((row.saw, value.mean if value and competes else None))
    return {(number, column) for column, cells in found.items() for number in best(cells)}


def frame(rows: list[dict[str, str]]) -> pd.DataFrame:
    """Texts, a line a row."""
    return pd.DataFrame(rows, dtype=str)


def most(row: Row, number: Callable[[Result], int | None]) -> int | None:
    """The most of its sets; None where it is unknown of one."""
    values = [number(result) for result in row.results]
    known = [value for value in values if value is not None]
    return max(known) if len(known) == len(values) else None


def kib(num_bytes: int | None) -> str:
    """`30.6`."""
    return NOTHING if num_bytes is None else f"{num_bytes / 1024:,.1f}"


def accuracy_table(section: Section) -> pd.DataFrame:
    """A line a row: accuracies by network, and what they were bought with; in ranked tables the best of each kind is bold."""
    lines, bold = [], _best(section) if section.kind == "ranked" else set()
    for number, row in enumerate(section.rows):
        line = {"method": " ".join([row.name, *([MIXED] if row.mixed else []), *([MARKED] if row.marks else [])])}
        line |= {SAW: told(row.saw)} if len(section.kinds) > 1 else {}
        cells = _accuracies(row, section)
        line |= {column: f"**{cell}**" if (number, column) in bold else cell for column, cell in cells.items()}
        repeats = sorted({len(values) for result in row.results for values in result.accuracies.values()})
        line["seeds"] = NOTHING if row.is_full_data else str(len(row.results))
        line["networks per seed"] = "–".join(map(str, dict.fromkeys((repeats[0], repeats[-1]))))
        line["KiB"] = kib(most(row, lambda result: result.num_bytes))
        line["s to distil"] = seconds(row, "distill", "rank") if row.is_distilled else NOTHING
        if tuned.concerns(section):
            line["tuning"] = tuned.spent(row)
        lines.append(line)
    return frame(lines)


def spread_table(section: Section) -> pd.DataFrame:
    """The rest of the uncertainty: 95 % interval of the mean / over networks / of the test set."""

    def parts(value: Accuracy | None) -> str:
        if value is None:
            return NOTHING
        return " / ".join(map(percent, (value.half_width, value.std_networks, value.test_error)))

    lines = []
    for row in section.rows:
        line = {"method": row.name}
        for column, networks in columns(row, section).items():
            one = row.accuracies.get(networks[0]) if networks else None
            line[column] = parts(row.cross if column in (CROSS, ALL) else one)
        lines.append(line)
    return frame(lines)


def seconds(row: Row, *phases: str) -> str:
    """The mean over seeds; marked where they ran on different hardware."""
    machines = row.judges if "evaluate" in phases else row.makers
    return f"{row.seconds(*phases):,.1f}" + (f" {MIXED}" if len(machines) > 1 else "")


def ratio(row: Row, section: Section, reference: str = REFERENCE) -> float | str:
    """Seconds to distil over those of the reference space with the same loss in this table, or why there is none."""
    found = section.distilled.get((row.label("loss"), reference), [])
    if row.plan.space and row.plan.space.name == reference:
        found = [row]
    elif len(found) > 1:
        found = [other for other in found if _made_with(other) == _made_with(row)] or found
    if len(found) != 1:
        return f"n/a: {'several' if found else 'no'} {reference} {'rows' if found else 'row'}"
    if len({*row.makers, *found[0].makers}) > 1:
        return "n/a: hardware differs"
    below = found[0].seconds("distill", "rank")
    return row.seconds("distill", "rank") / below if below > 0 else f"n/a: {reference} took no time"


def _made_with(row: Row) -> dict[str, str]:
    return dict(row.results[0].record.place.versions)


def timing_table(section: Section, reference: str = REFERENCE) -> pd.DataFrame:
    """A line for each distilled row: where the seconds went, and how they compare with the reference space."""
    lines = []
    for row in section.rows:
        if not row.is_distilled:
            continue
        line = {"method": row.name} | {f"{phase} s": seconds(row, phase) for phase in PHASES}
        line["distill + rank s"] = seconds(row, "distill", "rank")
        value = ratio(row, section, reference)
        line[f"/ {reference}"] = value if isinstance(value, str) else f"{value:.2f}"
        line["steps"] = " or ".join(map(str, sorted({result.record.steps for result in row.results})))
        line["peak MiB"] = f"{max(result.record.measured.peak_memory_bytes for result in row.results) / 2**20:,.0f}"
        line[same_column(section)] = on_network(row, row.backbone) if row.same and row.backbone else NOTHING
        lines.append(line)
    return frame(lines)


def machines_table(results: Sequence[Result]) -> pd.DataFrame:
    """A line for each combination of hardware and versions, with its number of sets and of judgements."""
    sets = {result.key: result.record.place for result in results}
    judgements = [record.place for result in results for record in (*result.judged, *result.looks)]
    count = {"sets": Counter(map(_line, sets.values())), "judgements": Counter(map(_line, judgements))}
    names = (*HARDWARE, "python", *CORE, "other versions")
    lines = []
    for line in sorted(count["sets"].keys() | count["judgements"].keys()):
        lines.append(dict(zip(names, line, strict=True)) | {what: str(num[line]) for what, num in count.items()})
    made = frame(lines)
    return made if (made["other versions"] != NOTHING).any() else made.drop(columns="other versions")


def _line(place: Place) -> tuple[str, ...]:
    hardware = [str(getattr(place.hardware, name)) or NOTHING for name in HARDWARE]
    versions = [place.versions.get(name, NOTHING) for name in ("python", *CORE)]
    others = (f"{name} {version}" for name, version in sorted(place.versions.items()) if name not in ("python", *CORE))
    return (*hardware, *versions, ", ".join(others) or NOTHING)


def plain(value: Mean | None) -> dict[str, Any] | None:
    """For JSON; fractions."""
    return None if value is None else asdict(value)


def as_json(section: Section, row: Row, reference: str = REFERENCE) -> dict[str, Any]:
    """A row as plain values; accuracies are fractions."""
    return {
        "protocol": section.protocol,
        "protocols": list(section.protocols),
        "data": section.test.label,
        "train_hash": section.train.hash,
        "test_hash": section.test.hash,
        "ipc": section.ipc,
        "labels": section.labels,
        "method": row.name,
        "baseline": row.label("baseline"),
        "imported": row.plan.imported.sha256 if row.plan.imported else None,
        "loss": row.label("loss"),
        "space": row.label("space"),
        "generator": row.label("generator"),
        "backbone": row.backbone,
        "seeds": [result.seed for result in row.results],
        "sets": [result.key for result in row.results],
        "same_architecture": plain(row.same),
        "cross_architecture": plain(row.cross),
        "networks": {name: plain(value) for name, value in row.accuracies.items()},
        "steps": max(result.record.steps for result in row.results),
        "seconds": {phase: row.seconds(phase) for phase in PHASES},
        "seconds_distil": row.seconds("distill", "rank"),
        "reference_space": reference,
        "seconds_ratio": ratio(row, section, reference) if row.is_distilled else None,
        "peak_bytes": max(result.record.measured.peak_memory_bytes for result in row.results),
        "made_on": list(row.makers),
        "judged_on": list(row.judges),
        "versions": row.results[0].software,
        "mixed": list(row.mixed),
        "marks": list(row.marks),
        "saw": list(row.saw),
        "tuning": tuned.as_json(row),
    }
