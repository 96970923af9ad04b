"""The order in which a set's labels count the classes, where its file or its folders name them, beside the data set's own."""

from __future__ import annotations

from collections.abc import Sequence

from ddbench.api import Spec
from ddbench.errors import DataError
from ddbench.evaluate.set_layouts import Found
from ddbench.ops.class_folders import numbered
from ddbench.ops.image_files import some


def in_order_of(found: Found, spec: Spec) -> tuple[list[int] | None, tuple[str, ...]]:
    """The class of the data set that each class of the file is, None where they are the same, and what a user should know of it.

    Names are compared with the data set's names, then with its identifiers (wnids). A file may name some of the classes only.
    Folders of other names are classes by number, as `new000` or `7` are, or, where there is one for each class, in the order of
    their names, as torchvision's ImageFolder counts them. Raises DataError where names are other classes'.
    """
    names = found.class_names
    if names is None or names == spec.class_names:
        return None, ()
    for known in (spec.class_names, spec.class_ids):
        if set(names) <= set(known):
            order = [known.index(name) for name in names]
            same = order == list(range(spec.num_classes))
            told = f"the file counts the classes in the order {some(names)}; its labels were brought into that of '{spec.name}'."
            return (None, ()) if same else (order, () if found.are_folders else (told,))
    if not found.are_folders:
        raise _others(found.name, names, spec)
    numbers = numbered(names, spec.num_classes)
    if numbers is not None:
        return numbers, ()
    if len(names) != spec.num_classes:
        raise _others(found.name, names, spec)
    told = f"the folders {some(names)} are not named as the classes of '{spec.name}', and were taken in the order of their names."
    return None, (told,)


def _others(name: str, names: Sequence[str], spec: Spec) -> DataError:
    told = f"was made for the classes {some(names)}, and '{spec.name}' has {some(spec.class_names)}"
    return DataError(f"{name} {told}: name its own data set with --data, or save labels and class_names of this one.")
