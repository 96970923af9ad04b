"""The protocols that come with ddbench, each a TOML file beside this module."""

from __future__ import annotations

from importlib.resources import files

from ddbench.api import ProtocolText


def _shipped(id: str) -> ProtocolText:
    return ProtocolText((files("ddbench.protocols") / f"{id}.toml").read_text(encoding="utf-8"))


def glad_1() -> ProtocolText:
    """GLaD's evaluation recipe, which H-PD follows."""
    return _shipped("glad-1")


def glad_1_best_of_test() -> ProtocolText:
    """Not ranked: glad-1 on iterates too, for the gain that choosing on the test split brings."""
    return _shipped("glad-1-best-of-test")


def glad_1_svhn_mean() -> ProtocolText:
    """Not ranked: generated images normalised with SVHN's mean, as in GLaD's code."""
    return _shipped("glad-1-svhn-mean")


def glad_1_unnormalised() -> ProtocolText:
    """Not ranked: generated images not normalised, as in H-PD's code."""
    return _shipped("glad-1-unnormalised")


def gift_1() -> ProtocolText:
    """GIFT's loss: the cosine with a teacher's outputs, refined by the class."""
    return _shipped("gift-1")


def lineage_1() -> ProtocolText:
    """The recipe that DC, DSA, DM, MTT and TESLA share."""
    return _shipped("lineage-1")


def quick_1() -> ProtocolText:
    """glad-1 with fewer epochs and repeats, for CPU."""
    return _shipped("quick-1")


def quick_1_best_of_test() -> ProtocolText:
    """Not ranked: quick-1 on iterates too."""
    return _shipped("quick-1-best-of-test")


def smoke_1() -> ProtocolText:
    """Two epochs: proves that things run; its accuracies mean nothing."""
    return _shipped("smoke-1")


def sre2l_1() -> ProtocolText:
    """SRe2L's soft labels: a teacher labels every augmented batch."""
    return _shipped("sre2l-1")
