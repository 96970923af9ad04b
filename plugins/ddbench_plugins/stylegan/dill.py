"""What stands for the functions of the package dill in official pickles: names, types and arrays, written in forms of its own."""

from __future__ import annotations

from typing import Any

from ddbench.ops.pickles.arrays import StoredArray
from ddbench.ops.pickles.records import Maker, Name, Thing


def _attribute(of: Any, name: Any, *rest: Any) -> Any:
    """An attribute of a module, by name."""
    return Name(of.full, name) if isinstance(of, Name) else Thing(None)


def _array(function: Any = None, arguments: Any = None, state: Any = None, *rest: Any) -> StoredArray:
    made = StoredArray()
    made.receive(state)
    return made


DILL: dict[str, Maker] = {
    "dill._dill._import_module": lambda name, *rest: Name(name, ""),
    "dill._dill._get_attr": _attribute,
    "dill._dill._load_type": lambda name, *rest: Name("builtins", name),
    "dill._dill._create_type": lambda *rest: Name("dill", "type"),
    "dill._dill._create_array": _array,
}
