"""Built-in presets: a TOML file for each family, beside this module."""

from __future__ import annotations

import re
from importlib.resources import files

from ddbench.api import Presets


def _family(name: str) -> Presets:
    return Presets((files(__name__) / f"{name}.toml").read_text(encoding="utf-8"))


def lineage() -> Presets:
    """Pixel space as the papers of the losses have it: DC, DSA, DM, MTT, TESLA, DATM, DataDAM, CAFE, FRePo, DD, SRe2L."""
    return _family("lineage")


def glad() -> Presets:
    """GLaD (CVPR 2023): its losses in pixels, W+ and one layer of a generator."""
    return _family("glad")


def hpd() -> Presets:
    """H-PD (CVPR 2025): its losses on a walk through the layers of a generator."""
    return _family("hpd")


def hpd_equal() -> Presets:
    """H-PD's settings with 1,000 steps over all stages, as many as GLaD has: the form for tables that rank them."""
    text = re.sub(r"(?m)^set\.steps = \d+$", "set.total_steps = 1000", hpd().text)
    return Presets(text.replace("as many steps a stage as published", "1,000 steps shared out over its stages"))
