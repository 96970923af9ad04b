"""Results of another source: what a store holds that was made by plugins whose code has changed since, and doing it again."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from ddbench.compute.hardware import sources
from ddbench.errors import BenchError
from ddbench.grid.planning import Planned
from ddbench.plan import short
from ddbench.refs import PluginRef
from ddbench.results.contents import Contents
from ddbench.results.layout import ITERATES, block_name
from ddbench.results.store import Store
from ddbench.schema import FailureRecord, JobFile


@dataclass(frozen=True)
class Stale:
    """Something in a store that the plugins installed now might not make again."""

    kind: str  # set, judgement or resource
    key: str  # of the set; of the resource
    path: Path
    plugins: tuple[str, ...]  # `loss 'dm'`, whose source is another


def find_stale(planned: Planned, contents: Contents, store: Store) -> list[Stale]:
    """The sets, judgements and resources of these cells that were made with other source. Plugins that cannot be loaded now are
    not compared."""
    found: list[Stale] = []
    now: dict[str, Mapping[str, str]] = {}
    keys = {cell.set.key for cell in planned.cells}
    plans = {cell.set.key: cell.set for cell in planned.cells}
    for key in sorted(keys & contents.sets.keys()):
        stored = contents.sets[key]
        if odd := _odd(stored.record.place.sources, _installed(plans[key].refs, now)):
            found.append(Stale("set", key, store.folder(key), odd))
    for record in contents.judgements:
        if record.set_key in keys and (odd := _odd(record.place.sources, _installed(record.judging.refs, now))):
            folder = store.root / "judgements" / short(record.set_key)
            path = folder / f"{short(record.key)}.{record.first}-{record.last}.json"
            found.append(Stale("judgement", record.set_key, path, odd))
    return found + _stale_resources(planned, store, now)


def _stale_resources(planned: Planned, store: Store, now: dict[str, Mapping[str, str]]) -> list[Stale]:
    found = []
    for key in planned.needs:
        if not store.resources.is_built(key):
            continue
        judging = planned.judgings.get(key)
        refs = judging.refs if judging else planned.owners[key].refs
        try:
            record = store.resources.record(key)
        except BenchError:  # named where resources are read
            continue
        owner = planned.needs[key].owner
        wanted = {owner.kind: owner.name} if owner else {}
        names = {label for label in record.place.sources if not wanted or f"'{owner.name}'" in label}  # type: ignore[union-attr]
        before = {label: digest for label, digest in record.place.sources.items() if label in names}
        if odd := _odd(before, _installed(refs, now)):
            found.append(Stale("resource", key, store.resources.folder(key), odd))
    return found


def _odd(before: Mapping[str, str], now: Mapping[str, str]) -> tuple[str, ...]:
    return tuple(sorted(name for name in before.keys() & now.keys() if before[name] != now[name]))


def _installed(refs: Iterable[PluginRef], now: dict[str, Mapping[str, str]]) -> dict[str, str]:
    found: dict[str, str] = {}
    for ref in refs:
        name = f"{ref.kind} {ref.label}"
        if name not in now:
            try:
                now[name] = sources([ref])
            except BenchError:
                now[name] = {}
        found |= now[name]
    return found


def told(stale: Iterable[Stale]) -> list[str]:
    """A sentence for each plugin."""
    counts: dict[str, dict[str, int]] = {}
    for entry in stale:
        for plugin in entry.plugins:
            of_kind = counts.setdefault(plugin, {})
            of_kind[entry.kind] = of_kind.get(entry.kind, 0) + 1
    sentences = []
    for plugin, kinds in sorted(counts.items()):
        what = ", ".join(f"{num} {kind}{'s' if num > 1 else ''}" for kind, num in sorted(kinds.items()))
        sentences.append(
            f"the source of {plugin} has changed since {what} of this store were made; they are kept as they are. "
            "Add --redo to compute them again."
        )
    return sentences


def drop(stale: Iterable[Stale], contents: Contents, planned: Planned, store: Store) -> list[str]:
    """Take away what is stale, and what is damaged of these cells, so that a run makes it anew; says what went."""
    gone: list[str] = []
    for entry in stale:
        if entry.kind == "set" and store.has_set(entry.key):
            gone += store.drop_set(entry.key)
        elif entry.kind == "judgement" and entry.path.is_file():
            entry.path.unlink()
            gone.append(f"{entry.path}")
        elif entry.kind == "resource" and store.resources.is_built(entry.key):
            store.resources.remove(entry.key)
            gone.append(f"{entry.path}")
    keys = {short(cell.set.key): cell.set.key for cell in planned.cells}
    for fault in contents.faults:
        gone += _drop_damaged(fault.path, keys, store)
    for key in planned.needs:
        if store.resources.is_built(key) and _is_damaged(key, store):
            store.resources.remove(key)
            gone.append(f"{store.resources.folder(key)}")
    return gone


def _drop_damaged(path: Path, keys: Mapping[str, str], store: Store) -> list[str]:
    """A damaged thing of these cells: a set with what hangs on it, or a judgement. What is nothing of a store's stays."""
    kind, key16, *rest = path.relative_to(store.root).parts + ("",) * 2
    if key16 not in keys:
        return []
    if kind == "sets" and store.has_set(key16) and (not rest[0] or path.parent.name == ITERATES):
        return store.drop_set(keys[key16])
    if kind == "judgements" and path.is_file() and block_name(path.stem):
        path.unlink()
        return [str(path)]
    return []


def _is_damaged(key: str, store: Store) -> bool:
    try:
        store.resources.read(key)
    except BenchError:
        return True
    return False


def kept_failure(store: Store, file: JobFile) -> FailureRecord | None:
    """The last failed attempt of a job where it would come again: by the job's own numbers, and with the sources that are
    installed now. None where the next run tries it: all other reasons, such as a full disc, may have gone."""
    attempts = store.failures(file.name)
    with suppress(BenchError, OSError):
        last = store.read_failure(attempts[-1]) if attempts else None
        if last and last.place and not _odd(last.place.sources, _installed(file.refs, {})):
            return last
    return None
