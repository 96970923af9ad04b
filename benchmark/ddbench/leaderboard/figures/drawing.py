"""Drawing without pyplot: equal inputs give equal bytes, whatever a user's settings of matplotlib are."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ddbench.errors import ConfigError
from ddbench.schema import IterateRecord

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")  # Okabe and Ito's, without yellow
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
LINES = ("-", "--", "-.", ":")
DPI = 100
Kept = Mapping[str, Mapping[int, IterateRecord]]
"""By key of a set, its iterates by step."""
SETTINGS: Any = {"svg.hashsalt": "ddbench", "font.size": 9.0, "axes.grid": True, "grid.alpha": 0.3, "axes.axisbelow": True}
MISSING = "figures are drawn by matplotlib, which is not installed. Install it with: pip install 'ddbench[figures]'"


@dataclass(frozen=True)
class Drawn:
    """A figure: words for people, and what is drawn as plain values, `kind` first."""

    title: str
    caption: str
    png: bytes
    svg: bytes
    values: Mapping[str, Any]
    name: str = ""  # of its files, without a suffix

    @property
    def files(self) -> dict[str, bytes]:
        """By name."""
        return {f"{self.name}.png": self.png, f"{self.name}.svg": self.svg}


def require_matplotlib() -> None:
    """Raise ConfigError where it is not installed."""
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError as error:
        raise ConfigError(MISSING) from error


def rendered(
    size: tuple[float, float], draw: Callable[[Figure], None], layout: str | None = "constrained"
) -> tuple[bytes, bytes]:
    """(PNG, SVG) of a figure of that size in inches. Raises ConfigError without matplotlib."""
    require_matplotlib()
    from matplotlib.figure import Figure

    made = []
    with _settings():
        for kind, about in (("png", {"Software": None}), ("svg", {"Date": None, "Creator": None})):
            figure = Figure(figsize=size, dpi=DPI, layout=layout)  # type: ignore[arg-type]
            draw(figure)
            content = io.BytesIO()
            figure.savefig(content, format=kind, dpi=DPI, metadata=about)
            made.append(content.getvalue())
    return made[0], made[1]


def _settings() -> AbstractContextManager[Any]:
    """matplotlib's own defaults, and ours; a user's come back at the end."""
    import matplotlib
    import matplotlib.style

    stack = ExitStack()
    stack.enter_context(matplotlib.style.context("default"))
    stack.enter_context(matplotlib.rc_context(SETTINGS))
    return stack


def style(number: int) -> dict[str, Any]:
    """Of the number-th line: told from its neighbours by colour, by marker and by dashes."""
    return {
        "color": COLOURS[number % len(COLOURS)],
        "marker": MARKERS[number % len(MARKERS)],
        "linestyle": LINES[number % len(LINES)],
        "markersize": 4,
        "linewidth": 1.4,
    }


def legend_below(figure: Figure, axes: Axes, names: Sequence[str]) -> None:
    """One line a name, under all panels."""
    handles, _ = axes.get_legend_handles_labels()
    figure.legend(handles, [plain(name) for name in names], loc="outside lower center", fontsize=8, frameon=False)


def plain(text: str) -> str:
    """A line that matplotlib takes as it is: a dollar sign would begin a formula."""
    line = "".join(letter if letter.isprintable() else "\ufffd" for letter in " ".join(text.split()))
    return line.replace("$", r"\$")
