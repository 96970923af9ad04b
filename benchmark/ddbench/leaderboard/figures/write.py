"""The folder of figures: a PNG and an SVG of each, and figures.md, which shows them."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from ddbench.errors import ConfigError, DataError
from ddbench.files import write_if_changed
from ddbench.leaderboard.figures.attention import Classifiers, attention_figure
from ddbench.leaderboard.figures.curves import Losses, accuracy_figure, loss_figure
from ddbench.leaderboard.figures.drawing import Drawn, require_matplotlib
from ddbench.leaderboard.figures.pictures import beside_figure, walk_figure
from ddbench.leaderboard.figures.ranking import ranking_figure
from ddbench.leaderboard.join import results_of
from ddbench.leaderboard.page import title_of
from ddbench.leaderboard.rows import Row
from ddbench.leaderboard.sections import Section, sections
from ddbench.leaderboard.tables import escape
from ddbench.results.contents import Contents
from ddbench.results.losses import read_losses
from ddbench.results.store import Store

PAGE = "figures.md"
RESULTS = ("ranked", "untuned", "constants")  # kinds of sections whose rows are finished sets
NOTHING = """\
There is nothing to draw yet. Losses of steps and stages of walks are kept of sets that this ddbench distils; accuracy on the way
wants iterates, which a suite asks for with `iterates = { steps = [0, 100] }`.
"""


@dataclass
class _Gallery:
    """What is drawn of a store, section by section, and what could not be."""

    store: Store
    contents: Contents
    classifiers: Classifiers | None
    names: set[str] = field(default_factory=set)
    faults: list[str] = field(default_factory=list)

    def of(self, section: Section) -> Iterator[Drawn]:
        """All figures of a section, each under a name that no other has."""
        for drawn in self._drawn(section):
            if drawn:
                words = f"{drawn.values['kind']} {section.test.label} ipc {section.ipc} {section.labels}"
                plain = re.sub("[^a-z0-9]+", "-", words.lower())[:80].strip("-")
                numbers = (f"{plain}-{number}" for number in range(1, len(self.names) + 2))
                name = next(each for each in numbers if each not in self.names)
                self.names.add(name)
                yield replace(drawn, name=name)

    def _drawn(self, section: Section) -> Iterator[Drawn | None]:
        title, rows = title_of(section), [row for row in section.rows if row.is_distilled]
        kept = {key: one.iterates for key, one in self.contents.sets.items()}
        if section.kind == "trajectory":
            yield accuracy_figure(section, f"Accuracy on the way: {title}")
            yield from (ranking_figure(row, kept) for row in section.rows)
        if section.kind in RESULTS:
            yield from self._losses(rows, title)
            yield from map(self._walk, rows)
            yield from (beside_figure(self.store, alike, kept) for alike in _one_generator(rows))
            if self.classifiers:
                yield from (attention_figure(self.store, row, row.results[0], self.classifiers) for row in rows)

    def _losses(self, rows: Sequence[Row], title: str) -> Iterator[Drawn | None]:
        by_loss: dict[str, list[Row]] = defaultdict(list)
        for row in rows:
            by_loss[row.label("loss") or ""].append(row)
        for loss, own in by_loss.items():
            losses = {}
            for result in (result for row in own for result in row.results):
                try:
                    found = read_losses(self.store, result.record)
                except DataError as error:
                    self.faults.append(str(error))
                    continue
                if found:
                    losses[result.key] = Losses(found.every, found.values.numpy())
            yield loss_figure(own, losses, loss, f"Loss of steps: {loss}, {title}")

    def _walk(self, row: Row) -> Drawn | None:
        try:
            return walk_figure(self.store, row, row.results[0])
        except DataError as error:
            self.faults.append(str(error))
            return None


def _one_generator(rows: Sequence[Row]) -> Iterator[list[Row]]:
    """Rows of one loss and generator, which several spaces share."""
    groups: dict[tuple[str | None, str | None], list[Row]] = defaultdict(list)
    for row in rows:
        if row.plan.generator and row.plan.space:
            groups[row.label("loss"), row.label("generator")].append(row)
    yield from groups.values()


@dataclass(frozen=True)
class Figures:
    """What was drawn."""

    page: Path
    drawn: list[Drawn]
    faults: list[str]  # a sentence for each file that is left out


def write_figures(store: Store, contents: Contents, out: Path, classifiers: Classifiers | None = None) -> Figures:
    """Draw all figures of a store into a folder. Raises ConfigError without matplotlib, or where that cannot be written."""
    require_matplotlib()
    results, _ = results_of(contents)
    gallery = _Gallery(store, contents, classifiers, faults=[fault.sentence for fault in contents.faults])
    parts, every = ["# Figures", ""], list[Drawn]()
    try:
        for section in sections(results):
            drawn = list(gallery.of(section))
            behind = " (on the way)" if section.kind == "trajectory" else ""
            parts += [f"## {title_of(section)}{behind}", ""] if drawn else []
            for each in drawn:
                parts += [f"### {escape(each.title)}", "", f"![{escape(each.title)}]({each.name}.png)", ""]
                parts += [f"{escape(each.caption)} ([SVG]({each.name}.svg))", ""]
                for name, content in each.files.items():
                    write_if_changed(out / name, content)
            every += drawn
        write_if_changed(out / PAGE, "\n".join(parts if every else [*parts, NOTHING]).encode())
    except OSError as error:
        raise ConfigError(
            f"the figures cannot be written to {out}: {error}. Make room there, or name another folder by --out."
        ) from error
    return Figures(out / PAGE, every, gallery.faults)
