"""Every file of a store as one typed, versioned record, with one way in and one way out; long because it holds them all.

Records are JSON: strict (an unknown or missing field, a value of another type or out of its range, a number that is not finite
are refused), versioned by `schema`, and each carries a `checksum` of all its other fields, so that an edited one is named.
A field called `measured` holds what differs when the same plan is computed again on the same machine.
"""

from __future__ import annotations

import base64
import hashlib
import json
import stat
from itertools import pairwise
from operator import le
from pathlib import Path
from typing import Annotated, Any, TypeVar

import msgspec
from msgspec.structs import replace

from ddbench.api import Budget, Seen
from ddbench.errors import DataError
from ddbench.files import MAX_JSON_BYTES, write_bytes
from ddbench.plan import Judging, SetPlan
from ddbench.refs import PluginRef
from ddbench.trials import Scoring, Tuning

SCHEMA = 2
REMEDY = "Remove it, then run again to make it anew."
REMEDY_FOLDER = "Make it anew with: ddbench run SUITE --redo (or remove its folder first)."

Sha256 = Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{64}$")]
Share = Annotated[float, msgspec.Meta(ge=0, le=1)]
Amount = Annotated[float, msgspec.Meta(ge=0)]
Count = Annotated[int, msgspec.Meta(ge=0)]
Some = Annotated[int, msgspec.Meta(ge=1)]


class _Record(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    schema: int = SCHEMA


class StoreMarker(_Record, frozen=True, kw_only=True):
    """store.json: that a folder is a store, and of which schema."""


class Hardware(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The machine that computed something."""

    device: str  # its model
    kind: str  # cpu or cuda
    cores: Some
    threads: Some
    memory_bytes: Count  # of the device
    instructions: str  # the instruction set that torch uses, as it names it; empty on CUDA


class Place(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where and with what something was computed."""

    hardware: Hardware
    versions: dict[str, str]  # of python, torch, numpy, ddbench and what else decides numbers
    sources: dict[str, str]  # by `loss 'dm'`, the SHA-256 of each plugin's source


class Data(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """A split of a data set."""

    label: str  # a copy's name differs from the original's
    hash: Sha256
    original: bool  # False: the files are not the published ones
    counts: tuple[Count, ...]  # images by class
    class_ids: tuple[str, ...] = ()  # in label order, where the data set has such: ImageNet's wnids


class UsedResource(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Something that was trained once and used here."""

    key: Sha256
    describe: str
    sha256: Sha256


class Stage(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What came out of a stage of a distillation."""

    tensors: dict[str, tuple[Count, ...]]  # the shape of each
    chosen_step: Count  # over all stages; the number of updates the chosen tensors had seen
    step_score: float | None  # the step ranker's score of the chosen iterate, smaller is better
    stage_score: float | None
    name: str = ""  # as its space calls it, such as `layer 4`


class Size(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a set takes, and how many images that makes."""

    budget: Budget  # what the ipc of its plan bounds
    images_per_class: Amount  # that it decodes to; the mean where classes differ
    floats: Count | None  # values optimised in the chosen stage, without labels and what the loss learns; None: unknown
    bytes_without_decoder: Count  # of the stored tensors, less networks that all images share
    bytes_with_decoder: Count | None  # with these, and the weights of the generator that is needed; None: nobody knows those


class SetPlanFile(_Record, frozen=True, kw_only=True):
    """sets/<key16>/plan.json."""

    plan: SetPlan
    checksum: str = ""


class SetMeasured(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What differs when a set is made again."""

    seconds: dict[str, Amount]  # by phase: distill, rank
    resources: dict[str, Amount] = {}  # seconds that building each of those used took, by key
    peak_memory_bytes: Count
    commit: str | None
    finished: str  # UTC
    timeline: tuple[tuple[Count, Amount], ...] = ()  # (step, seconds of distilling and ranking that had passed before it)


class SetRecord(_Record, frozen=True, kw_only=True):
    """sets/<key16>/record.json."""

    key: Sha256
    suite: str  # the name of the suite that asked first; empty for an imported set
    data: Data  # the training split
    num_images: Count
    bytes_stored: Count  # of the tensors that decode to the images
    bytes_images: Count  # of the decoded images, four bytes a value
    size: Size | None = None  # records of before did not say
    steps: Count
    stages: tuple[Stage, ...]
    chosen_stage: Count
    learned: dict[str, float | list]  # the loss's own learned tensors
    files: dict[str, Sha256]  # of what lies beside; without set.safetensors for all real training images
    set_sha256: Sha256  # of set.safetensors; `sha256_of_everything` where there is none
    resources: tuple[UsedResource, ...]
    place: Place
    marks: tuple[str, ...]  # sentences: what a reader must know of how it came about
    saw: tuple[Seen, ...] = ("unknown",)  # all that has a part in it; records of before did not say
    rates_from: str = ""  # the key of the tuning that chose its rates; or `trials.UNTUNED`; empty where its suite tunes nothing
    measured: SetMeasured
    checksum: str = ""


class IterateRecord(_Record, frozen=True, kw_only=True):
    """sets/<key16>/iterates/<step>.json: an iterate of the distillation that led to the set."""

    key: Sha256  # of the set
    set_sha256: Sha256
    step: Count
    sha256: Sha256  # of <step>.safetensors
    step_score: float | None = None  # the step ranker's, smaller is better; None where none scores
    loss: float | None = None  # of the step that began with it
    checksum: str = ""


class Repeat(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One network, trained and read."""

    repeat: Count
    accuracy: Share
    num_test: Some
    correct: str  # base64 of a bitmap: one bit a test image in its order, most significant bit first
    train_loss: float


class JudgementMeasured(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What differs when a judgement is made again."""

    seconds_train: Amount  # of all repeats together
    seconds_test: Amount
    images_per_second: Amount  # of training steps
    flops_per_image: Amount  # of a training step, forward and backward
    peak_share: Amount  # of the device's peak that the training reached
    peak_memory_bytes: Count
    way: str  # serial, captured, streams or stacked
    processes: Some  # side by side
    commit: str | None
    finished: str
    resources: dict[str, Amount] = {}  # seconds that building each of those used took, by key


class JudgementRecord(_Record, frozen=True, kw_only=True):
    """judgements/<set16>/<key16>.<first>-<last>.json: repeats first to last of one network on one set."""

    set_key: Sha256
    set_sha256: Sha256  # of the very set, or iterate, that was judged
    key: Sha256
    first: Count
    last: Count
    suite: str
    judging: Judging
    data: Data  # the test split
    repeats: tuple[Repeat, ...]
    resources: tuple[UsedResource, ...]
    place: Place
    marks: tuple[str, ...]
    saw: tuple[Seen, ...] = ()  # the protocol's teacher
    measured: JudgementMeasured
    checksum: str = ""


class TrialMeasured(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What differs when a trial is made again."""

    seconds: dict[str, Amount]  # by phase: distill, rank, score; of one that diverged, all under distill
    resources: dict[str, Amount] = {}  # seconds that building each of those used took, by key
    peak_memory_bytes: Count
    commit: str | None
    finished: str  # UTC


class TrialRecord(_Record, frozen=True, kw_only=True):
    """trials/<key16>.json: a set that was distilled to try rates, scored."""

    key: Sha256
    suite: str
    plan: SetPlan  # of the set
    set_sha256: str  # empty where there is none, for it diverged
    scoring: Scoring
    data: Data  # the training split
    num_scored: Some  # images of it that score
    errors: tuple[Share, ...]  # of each network, the share of these that it got wrong; 1 where it could not be trained
    diverged: str  # a sentence where the distillation, or the training of a network, stopped being a number
    place: Place
    marks: tuple[str, ...]
    measured: TrialMeasured
    checksum: str = ""


class Tried(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A point of the grid."""

    rates: dict[str, Amount]  # by tensor
    trials: tuple[Sha256, ...]  # keys, one a seed
    errors: tuple[Share, ...]  # of all their networks
    diverged: bool  # any of them
    seconds: Amount  # of all of them


class TuningRecord(_Record, frozen=True, kw_only=True):
    """tuning/<key16>.json: the rates that were chosen for a method on a data set and ipc."""

    key: Sha256
    suite: str
    method: SetPlan  # at its own rates
    tuning: Tuning
    tried: tuple[Tried, ...]  # as the grid is
    choice: Count  # among them
    checksum: str = ""

    @property
    def plan(self) -> SetPlan:
        """The method at the chosen rates."""
        return replace(self.method, rates=self.tried[self.choice].rates)

    @property
    def seconds(self) -> float:
        """Of all trials together."""
        return sum(point.seconds for point in self.tried)

    @property
    def is_at_end(self) -> bool:
        """Whether the choice has the smallest or the largest rates of a grid that could go on there: better ones may lie beyond.
        Of two trials each is an end, and where tensors do not rise together, or nothing differs, there is none."""
        points = [tuple(rate for _, rate in sorted(point.rates.items())) for point in self.tried]
        order = sorted(points)
        rises = all(low != high and all(map(le, low, high)) for low, high in pairwise(order))
        return len(points) > 2 and rises and points[self.choice] in (order[0], order[-1])


class ResourceMeasured(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What differs when a resource is built again."""

    seconds: Amount


class ResourceRecord(_Record, frozen=True, kw_only=True):
    """resources/<key16>/resource.json."""

    key: Sha256
    describe: str
    identity: dict[str, Any]
    sha256: Sha256  # of tensors.safetensors
    bytes: Count
    place: Place
    marks: tuple[str, ...] = ()  # as of a set; sets and judgements that use it take them over
    measured: ResourceMeasured
    checksum: str = ""


class FailureRecord(_Record, frozen=True, kw_only=True):
    """failed/<job>/<n>.json: one attempt."""

    job: str
    title: str
    error: str  # a sentence
    details: str  # a traceback, or nothing
    place: Place | None  # of one by the job's own numbers, which would come again from these sources
    checksum: str = ""


class JobFile(_Record, frozen=True, kw_only=True):
    """work/jobs/<job>.json: all that doing a job needs beside the store and the data."""

    kind: str  # resource, set, judgement or trial
    name: str
    suite: str
    needs: tuple[str, ...] = ()  # names of jobs
    plan: SetPlan  # of the set; of one that asked for the resource
    iterates: tuple[Count, ...] = ()  # steps before which a set's iterates are kept
    iterate_seconds: tuple[Amount, ...] = ()  # seconds after which they are, as `SetMeasured.timeline` counts them
    marks: tuple[str, ...] = ()  # of the record of a set
    resource: str = ""  # the key of the resource
    judging: Judging | None = None
    scoring: Scoring | None = None  # of a trial
    rates_from: str = ""  # as the record of a set has it
    first: Count = 0
    last: Count = 0
    checksum: str = ""

    @property
    def refs(self) -> tuple[PluginRef, ...]:
        """The plugins whose code does it."""
        return (self.judging or self.plan).refs


R = TypeVar("R", bound=msgspec.Struct)


def sealed(record: R) -> R:
    """The record as it will be read, with its checksum. Raises msgspec.ValidationError for a value that would be refused then."""
    record = msgspec.convert(msgspec.to_builtins(record), type(record))  # whole numbers become fractions where those belong
    return replace(record, checksum=_checksum(msgspec.to_builtins(record)))


def sha256_of_everything(train_hash: str) -> str:
    """What stands for the bytes of a set that is all real training images, of which no copy is stored."""
    return hashlib.sha256(train_hash.encode()).hexdigest()


def _checksum(values: dict[str, Any]) -> str:
    """Of the values as they stand in the file, not of its text: it may be laid out anew; and not of the fields that this ddbench
    knows: a later one has more, with defaults. msgspec's own JSON is ten times as fast as the one of keys."""
    return hashlib.sha256(msgspec.json.encode(values | {"checksum": ""}, order="sorted")).hexdigest()


def to_bytes(record: msgspec.Struct) -> bytes:
    """The text of a record, with its checksum. Raises ValueError for numbers that are not finite, and for any value that would be
    refused when it is read."""
    value = msgspec.to_builtins(sealed(record) if "checksum" in record.__struct_fields__ else record)
    return (json.dumps(value, indent=1, sort_keys=True, allow_nan=False) + "\n").encode()


def write(path: Path, record: msgspec.Struct) -> None:
    """Write it whole."""
    write_bytes(path, to_bytes(record))


def read(path: Path, kind: type[R], what: str, remedy: str = REMEDY) -> R:
    """A record from a file. Raises DataError, naming the file, where it is missing, too large, of another schema, or has not the
    content that it was written with."""
    try:
        about = path.stat()
        if not stat.S_ISREG(about.st_mode):  # a device or a pipe may never end
            raise DataError(f"{what} {path} is no regular file: name another.")
        if about.st_size > MAX_JSON_BYTES:
            raise DataError(f"{what} {path} is larger than {MAX_JSON_BYTES} bytes: it is not one of ddbench's. Move it away.")
        content = path.read_bytes()
    except FileNotFoundError as error:
        raise DataError(f"{what} {path} is missing. {remedy}") from error
    return parse(content, kind, f"{what} {path}", remedy)


def parse(content: bytes, kind: type[R], where: str, remedy: str = REMEDY) -> R:
    """A record from its text; `where` begins the message. Raises DataError."""
    try:
        record = msgspec.json.decode(content, type=kind)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        schema = _schema_of(content)
        if isinstance(schema, int) and not isinstance(schema, bool) and schema != SCHEMA:
            older = "It was written by an older ddbench, which can still read it."
            advice = older if 1 <= schema < SCHEMA else "Update ddbench."
            raise DataError(f"{where} has schema {schema}, this ddbench reads {SCHEMA}. {advice}") from error
        raise DataError(f"{where} is damaged ({error}). {remedy}") from error
    if record.schema != SCHEMA:  # type: ignore[attr-defined]
        raise DataError(f"{where} has schema {record.schema}, this ddbench reads {SCHEMA}. Update ddbench.")  # type: ignore[attr-defined]
    if "checksum" in kind.__struct_fields__ and record.checksum != _checksum(msgspec.json.decode(content)):  # type: ignore[attr-defined]
        raise DataError(f"{where} was changed after it was written: its checksum is another. {remedy}")
    return record


def _schema_of(content: bytes) -> Any:
    class _OnlySchema(msgspec.Struct):
        schema: Any = None

    try:
        return msgspec.json.decode(content, type=_OnlySchema).schema
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None


def num_right(repeat: Repeat) -> int:
    """The bits that are set. Raises ValueError for a bitmap that is no base64."""
    return int.from_bytes(base64.b64decode(repeat.correct, validate=True)).bit_count()


def check_judgement(record: JudgementRecord) -> None:
    """Raise ValueError, with what is wrong, where its parts contradict one another."""
    if record.judging.key != record.key:
        raise ValueError("its key is not the one of its plan")
    if [repeat.repeat for repeat in record.repeats] != list(range(record.first, record.last + 1)):
        raise ValueError(f"it does not hold each of the repeats {record.first} to {record.last} once")
    sizes = {repeat.num_test for repeat in record.repeats}
    if sizes != {sum(record.data.counts)}:
        raise ValueError(f"it is on {sorted(sizes)} test images, and its data have {sum(record.data.counts)}")
    if record.data.hash != record.judging.test_hash:
        raise ValueError("its data are not those of its plan")
    for repeat in record.repeats:
        right = num_right(repeat)
        if right > repeat.num_test or repeat.accuracy != right / repeat.num_test:
            raise ValueError(f"repeat {repeat.repeat}: accuracy {repeat.accuracy} is not {right} of {repeat.num_test} images")
