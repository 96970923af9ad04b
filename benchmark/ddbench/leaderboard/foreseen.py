"""What a board of a grid will look like, as far as its networks decide it: columns that would be empty, or say a thing twice."""

from __future__ import annotations

from collections.abc import Iterable

from ddbench.plan import Cell


def foreseen(cells: Iterable[Cell]) -> list[str]:
    """A sentence for each such column of distilled rows, each once."""
    found: dict[str, None] = {}
    for cell in cells:
        backbone, networks = cell.set.backbone, [judging.network for judging in cell.judgings]
        if cell.set.loss is None or cell.set.baseline or backbone is None:
            continue
        others = [network.label for network in networks if network.what != backbone.what]
        alike = any(network.name == backbone.name for network in networks)  # else nobody wanted the backbone to judge
        if alike and len(others) == len(networks):
            told = f"the backbone '{backbone.label}' is none of the networks that judge ({', '.join(others)})"
            found[f"{told}: 'same arch.' stays empty. Add it to 'networks', or name one of these as the backbone."] = None
        if len(others) == 1:
            told = f"'{others[0]}' is the only network beside the backbone that judges"
            found[f"{told}: 'cross-arch. mean' repeats its column. Add another network for a mean over architectures."] = None
    return list(found)
