"""Rows' names: the method, and behind it what tells rows of one method apart."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import msgspec

from ddbench.files import canonical
from ddbench.leaderboard.join import Result
from ddbench.plan import Judging, SetPlan, short
from ddbench.refs import PluginRef

UNTOLD = ("seed", "dataset", "train_hash", "imported", "network", "test_hash", "draw", "iterate", "iterate_seconds", "protocol")
"""Fields that the table, the rest of the name or the seed tells already."""


OF_RANKERS = ("proxy", "proxy_epochs", "proxy_layer", "proxy_gradient", "rank_every", "rank_epochs", "rank_repeats", "ranking")
"""Settings that some rankers read and others do not: where rankers differ, these go with them."""


def suffixes(results: Sequence[Result]) -> list[str]:
    """For each result, of a row of its own, ` [steps=20]`: what is not the same in all; its key too where these look alike."""
    if len(results) == 1:
        return [""]
    texts = _told_apart([_facts(result) for result in results])
    if len(set(texts)) < len(texts):
        texts = [f"{text}; {short(result.key)}".removeprefix("; ") for text, result in zip(texts, results, strict=True)]
    return [f" [{text}]" for text in texts]


def variants(plans: Sequence[SetPlan]) -> list[str]:
    """For each plan of one name, ` [steps=20]`: what tells it from the others."""
    texts = _told_apart([dict(_flatten(plan)) for plan in plans])
    return [f" [{text}]" if text else "" for text in texts]


def _told_apart(facts: Sequence[dict[str, str]]) -> list[str]:
    """What is not the same in all, for each."""
    names = _differing(facts)
    return [", ".join(f"{name}={each.get(name, 'unset')}" for name in names) for each in facts]


def _differing(facts: Sequence[dict[str, str]]) -> list[str]:
    """The names of facts that differ: of a plugin its label, else the settings it resolves to; what judging has in common with
    the making of a set, once."""
    names = {name for name in set().union(*facts) if len({each.get(name) for each in facts}) > 1}

    def is_told(name: str) -> bool:
        above, _, below = name.partition(".")
        same = above == "judging" and all(each.get(name) == each.get(below) for each in facts)
        return same or (above != "judging" and bool(below) and above in names)

    told = {name for name in names if not is_told(name)}
    told -= {
        name for name in told if name.partition(".")[0] in OF_RANKERS and _follows(facts, name, ("rank_steps", "rank_stages"))
    }
    return sorted(told - {"resources"} or told)  # what is shared follows from what a plan says


def _follows(facts: Sequence[dict[str, str]], name: str, of: Sequence[str]) -> bool:
    """Whether a fact is the same wherever these others are, and one of them is not the same in all."""
    seen: dict[tuple[str | None, ...], set[str | None]] = {}
    for each in facts:
        seen.setdefault(tuple(each.get(other) for other in of), set()).add(each.get(name))
    return len(seen) > 1 and all(len(values) == 1 for values in seen.values())


def _facts(result: Result) -> dict[str, str]:
    """(name, text) of every setting and version."""
    made = dict(_flatten(result.plan)) | result.software
    made |= {f"source of {name}": source[:8] for name, source in result.sources.items()}
    made |= {f"judging.{name}": text for name, text in _flatten(result.judging)}
    looks = [*map(str, result.iterates), *(f"{seconds:g} s" for seconds in result.by_seconds)]
    return made | ({"iterates": "/".join(looks)} if looks else {})


def _flatten(plan: SetPlan | Judging) -> Iterator[tuple[str, str]]:
    """A plugin is its label and what it resolves to; numbers stand one by one."""
    for field in plan.__struct_fields__:
        value = getattr(plan, field)
        if field in UNTOLD or value is None:
            continue
        if isinstance(value, PluginRef):
            yield field, value.label
            parts = value.resolved | {"numerics": value.what.get("numerics")}
            yield from ((f"{field}.{name}", canonical(part)) for name, part in parts.items())
        elif field == "numbers":
            yield from ((name, _text(part)) for name, part in msgspec.to_builtins(value).items())
        elif field == "resources":
            yield field, ", ".join(map(short, value))
        elif isinstance(value, dict | msgspec.Struct):
            yield from ((f"{field}.{name}", _text(part)) for name, part in msgspec.to_builtins(value).items())
        else:
            yield field, _text(value)


def _text(value: Any) -> str:
    return value if isinstance(value, str) else canonical(msgspec.to_builtins(value))
