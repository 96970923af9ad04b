"""ImageNet-1K's classes in the order of its networks and generators: WordNet ids, names, and the constants of its pixels."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)


def imagenet_classes() -> tuple[tuple[str, str], ...]:
    """(WordNet id, name) of the classes 0..999; ids ascend, names are distinct. Names as torchvision's models list them."""
    table = json.loads((Path(__file__).parent / "imagenet_classes.json").read_text(encoding="utf-8"))
    return tuple((wnid, name) for wnid, name in table)


def class_facts(wnids: Sequence[str]) -> tuple[tuple[str, ...], tuple[int, ...]] | None:
    """The names and indices of classes by their ids; None where one of them is not among the thousand."""
    known = {wnid: (name, index) for index, (wnid, name) in enumerate(imagenet_classes())}
    if not wnids or not set(wnids) <= known.keys():
        return None
    names, indices = zip(*(known[wnid] for wnid in wnids), strict=True)
    return names, indices
