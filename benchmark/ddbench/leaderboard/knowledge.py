"""What sets saw, in words, and which numbers of a column are the best among those of sets that saw the same."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any, get_args

from ddbench.api import Seen

Kind = tuple[Seen, ...]
"""What the sets of a row saw, and the teacher that judges them, in the order of `Seen`."""
WORDS = {
    "train": "training images", "external-images": "external images", "external-labels": "external labels",
    "test-images": "test images?", "unknown": "unknown",
}  # fmt: skip


def kind_of(records: Iterable[Iterable[Seen]]) -> Kind:
    """All that several records say."""
    found = {word for record in records for word in record}
    return tuple(word for word in get_args(Seen) if word in found)


def told(kind: Kind) -> str:
    """`training images, external images`, or `nothing`; what is unknown in part is unknown."""
    return WORDS["unknown"] if "unknown" in kind else ", ".join(WORDS[word] for word in kind) or "nothing"


def order(kind: Kind) -> tuple[Any, ...]:
    """Who saw less comes first, who did not say last."""
    return "unknown" in kind, len(kind), kind


def best(column: Sequence[tuple[Kind, float | None]]) -> set[int]:
    """The places of the largest numbers among those of one kind, of which there must be two; None does not compete, and nothing
    does whose kind is unknown: nobody can say what it would be the best of."""
    places: dict[Kind, dict[int, float]] = defaultdict(dict)
    for place, (kind, number) in enumerate(column):
        if number is not None and "unknown" not in kind:
            places[kind][place] = number
    return {
        place for found in places.values() if len(found) > 1 for place, number in found.items() if number == max(found.values())
    }
