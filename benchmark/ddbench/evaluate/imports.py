"""From a set that was read from a file to one of the store, whose origin is the SHA-256 of that file."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import get_args

from ddbench.api import Seen, Spec
from ddbench.compute import hardware
from ddbench.compute.distilled import DistilledSet, Stored, set_files
from ddbench.data.subsets import Identity
from ddbench.errors import ConfigError, did_you_mean
from ddbench.evaluate.sets import ImportedSet
from ddbench.plan import Imported, SetPlan
from ddbench.protocols import Making, synthetic_spec
from ddbench.refs import PluginRef
from ddbench.schema import Data, Place, SetMeasured, SetRecord


@dataclass(frozen=True)
class NewSet:
    """A set as the store takes it."""

    plan: SetPlan
    record: SetRecord
    contents: dict[str, bytes]  # set.safetensors and images.png


def saw_of_words(text: str | None) -> tuple[Seen, ...]:
    """What somebody says that a file's set saw: `nothing`, or words with commas between them. Raises ConfigError."""
    if text is None:
        return ("unknown",)
    words, known = set() if text == "nothing" else set(text.split(",")), get_args(Seen)
    if odd := sorted(words - set(known)):
        raise ConfigError(f"--saw takes nothing, or of {', '.join(known)}; got '{odd[0]}'.{did_you_mean(odd[0], known)}")
    return tuple(word for word in known if word in words)


def check_saw(record: SetRecord, text: str | None) -> None:
    """Raise ConfigError where somebody says what a stored set saw and its record, which is never rewritten, something else."""
    if text is not None and set(record.saw) != set(saw_of_words(text)):
        kept = ",".join(record.saw) or "nothing"
        raise ConfigError(f"--saw says {text}, and the record of the stored set {kept}: leave it out, or name another --store.")


def plan_of(given: ImportedSet, dataset: PluginRef, identity: Identity, making: Making) -> SetPlan:
    """Of the set that was read from a file. Under a protocol whose `making` has constants of its own for generated images, the
    set's images count as such and are normalised by them. `identity` is the data set's."""
    how = (given.values, given.label_values, *given.constants, given.learned_rate, given.experiment)
    return SetPlan(
        dataset=dataset,
        train_hash=identity.train_hash,
        ipc=len(given.images) // dataset.make().spec().num_classes,
        seed=0,
        held_out=0.0,
        imported=Imported(given.sha256, *how),
        labels="hard" if given.kind == "hard" else "learned",
        synthetic_mean=making.synthetic_mean,
        synthetic_std=making.synthetic_std,
    )


def import_set(
    given: ImportedSet, dataset: PluginRef, identity: Identity, making: Making, place: Place,
    saw: tuple[Seen, ...] = ("unknown",),
) -> NewSet:  # fmt: skip
    """The set that was read from a file, for `Store.publish_set`; what it `saw`, only the caller knows. `place` is where this
    runs; the other arguments are those of `plan_of`."""
    plan = plan_of(given, dataset, identity, making)
    spec: Spec = dataset.make().spec()
    made = _made(given, spec, plan)
    whitening = given.whitening
    transform = {"zca_mean": whitening.mean, "zca_matrix": whitening.matrix} if whitening else None
    contents = set_files(plan, made, spec, transform)
    return NewSet(plan, _record(plan, made, given, identity, place, contents, saw), contents)


def _made(given: ImportedSet, spec: Spec, plan: SetPlan) -> DistilledSet:
    """The file's images as networks are to see them, and no more than the file says."""
    images, synthetic = given.images, synthetic_spec(spec, plan.synthetic_mean, plan.synthetic_std)
    if synthetic != spec:
        images = synthetic.normalise(spec.denormalise(images))
    learned = {} if given.learned_rate is None else {"student_rate": given.learned_rate}
    return DistilledSet(images, given.labels, given.labels.argmax(1), 0, Stored(images.nbytes, floats=None), learned=learned)


def _record(
    plan: SetPlan, made: DistilledSet, given: ImportedSet, identity: Identity, place: Place, contents: dict[str, bytes],
    saw: tuple[Seen, ...],
) -> SetRecord:  # fmt: skip
    files = {name: hashlib.sha256(content).hexdigest() for name, content in contents.items()}
    return SetRecord(
        key=plan.key,
        suite="",
        data=Data(
            label=identity.label(plan.dataset.label),
            hash=identity.train_hash,
            original=identity.original,
            counts=identity.train_counts,
            class_ids=plan.dataset.make().spec().class_ids,
        ),
        num_images=len(made.images),
        bytes_stored=made.stored.num_bytes,
        bytes_images=made.bytes_images,
        size=made.stored.size(plan.budget, len(made.images), made.labels.shape[1]),
        steps=0,
        stages=(),
        chosen_stage=0,
        learned=made.learned,
        files=files,
        set_sha256=files["set.safetensors"],
        resources=(),
        place=place,
        marks=given.warnings,
        saw=saw,
        measured=SetMeasured(
            seconds={},
            peak_memory_bytes=0,
            commit=hardware.commit(),
            finished=datetime.now(UTC).isoformat(timespec="seconds"),
        ),
    )
