"""What a set or a judgement has seen: what its plugins and resources declare, put together for its record."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, get_args

from ddbench.api import Resource, Seen
from ddbench.errors import PluginError
from ddbench.plan import Judging, SetPlan
from ddbench.refs import PluginRef

WORDS: tuple[Seen, ...] = get_args(Seen)


def declares(resource: Resource) -> bool:
    """Whether its class says itself what it saw."""
    return type(resource).saw is not Resource.saw


def saw_of_set(plan: SetPlan, resources: Iterable[Resource]) -> tuple[Seen, ...]:
    """What all has seen that has a part in a set: generator, space, loss, rankers and their proxy, or the baseline, and all
    that is trained or read for them. Raises PluginError where a plugin says what is no such thing."""
    refs = (plan.baseline,) if plan.baseline else (plan.generator, plan.space, plan.loss, plan.pretrained, *plan.rankers)
    found = {word for ref in refs if ref for word in _words(ref.ask(lambda plugin: plugin.saw), ref.label)}
    return _put_together(found, resources, plan.dataset)


def saw_of_judging(judging: Judging, resources: Iterable[Resource]) -> tuple[Seen, ...]:
    """What the protocol's teacher has seen; networks that judge are trained on the set alone. Raises PluginError."""
    return _put_together(set(), resources, judging.dataset)


def _put_together(found: set[Seen], resources: Iterable[Resource], dataset: PluginRef) -> tuple[Seen, ...]:
    """With the test images, where external ones may have been these."""
    found |= {word for resource in resources for word in _words(resource.saw, resource.describe())}
    if "external-images" in found and dataset.ask(lambda plugin: bool(plugin.test_images_elsewhere)):
        found.add("test-images")
    return tuple(word for word in WORDS if word in found)


def _words(said: Any, who: str) -> frozenset[Seen]:
    """What somebody declares, checked."""
    if not isinstance(said, frozenset) or not said <= set(WORDS):
        got = sorted(map(str, said)) if isinstance(said, frozenset) else said
        raise PluginError(f"'{who}' says that it saw {got!r}: `saw` must be a frozenset of these words: {', '.join(WORDS)}.")
    return said
