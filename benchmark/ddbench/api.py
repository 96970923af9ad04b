"""The types that plugins are written against, long because they are read in one place; imports nothing of ddbench but `errors`.

A distilled set is a few stored tensors and a function that decodes them:

    stored tensors --decode--> images, a leaf --Loss.backward--> images.grad --pull back, a chunk at a time--> stored.grad

A `Loss` sees decoded images and nothing behind them. A `Space` knows how to decode and nothing of losses. A `Generator` is
a stack of layers and knows neither. The engine joins them by the chain rule, so every loss works in every space.

Every plugin is a frozen dataclass whose fields are its settings: the keys a user writes in a suite's TOML. An entry point
may also name a factory function that returns one, with some fields filled in (a preset); its parameters are then the keys.

Shapes: B batch, N synthetic images, K classes, C channels, H height, W width, D features. Images that networks see are
normalised float32; images of data sets are uint8; generators give pixels, about in [0, 1] and not clamped.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol

import torch
from torch import Tensor, nn

from ddbench.errors import ConfigError

Memory = dict[str, Tensor]
"""What a loss keeps between two steps: named tensors and nothing else, so that a checkpoint can hold it."""

Split = Literal["train", "test"]
Budget = Literal["images", "bytes"]
"""What IPC bounds of a distilled set. "images": items, counted as papers count them. "bytes": what is delivered, stored tensors
with their decoder or rendered float32 images, whichever are smaller: at most IPC * C * H * W * 4 bytes a class."""
GENERATOR = "generator"  # in `Space.decoder`: the run's
IMAGENET_CLASSES = 1000

Seen = Literal["train", "external-images", "external-labels", "test-images", "unknown"]
"""What something has learned from, or was picked from: the subset's own training images (and their labels); images of others;
labels of others; images that are the subset's test images, or may be among them; nobody has said."""
Saw = frozenset[Seen]
NOTHING: Saw = frozenset()
TRAIN: Saw = frozenset({"train"})
UNKNOWN: Saw = frozenset({"unknown"})


@dataclass(frozen=True)
class AtMost:
    """The most that an integer setting may be, as a mark of its annotation: `width: Annotated[int, AtMost(1024)] = 32`.

    For sizes, which would take all memory, and numbers of things that plans list, so that one that nobody can mean is refused
    before anything is made. Without a mark, a million is the most: enough for steps and epochs, and for numbers of images where
    there are no more than the data has. Seeds say more."""

    most: int


@dataclass(frozen=True)
class Spec:
    """What the images of a subset look like: their shape, classes in label order, and the one normalisation used everywhere."""

    name: str
    shape: tuple[int, int, int]  # C, H, W
    class_names: tuple[str, ...]
    mean: tuple[float, ...]  # per channel, of pixels in [0, 1]
    std: tuple[float, ...]
    augmentation: str = "color_crop_cutout_flip_scale_rotate"  # the siamese strategy; digits leave out flip
    class_ids: tuple[str, ...] = ()  # by class, in a vocabulary that others share: ImageNet's wnids; empty: there is none
    class_indices: tuple[int, ...] = ()  # by class, among the outputs of ImageNet-1K's networks and generators, 0..999

    def __post_init__(self) -> None:
        """Refuse identifiers that are not one a class. Raises ConfigError."""
        for name, values in (("class_ids", self.class_ids), ("class_indices", self.class_indices)):
            if values and (len(values) != self.num_classes or len(set(values)) < len(values)):
                wanted = f"'{name}' must name each of the {self.num_classes} classes once or be empty"
                raise ConfigError(f"data set '{self.name}': {wanted}, got {values}.")
        if not all(0 <= index < IMAGENET_CLASSES for index in self.class_indices):
            last = IMAGENET_CLASSES - 1
            raise ConfigError(f"data set '{self.name}': 'class_indices' must lie in 0..{last}, got {self.class_indices}.")

    @property
    def num_classes(self) -> int:
        """K."""
        return len(self.class_names)

    def normalise(self, pixels: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        """Pixels [B,C,H,W], uint8 or float in [0, 1], to the normalised images that networks see: in float `dtype` where they
        are uint8, else in their own."""
        if pixels.dtype == torch.uint8:
            pixels = pixels.to(dtype).div_(255)
        return (pixels - self._channels("mean", pixels)) / self._channels("std", pixels)

    def denormalise(self, images: Tensor) -> Tensor:
        """The inverse of `normalise`: normalised [B,C,H,W] to pixels, in [0, 1] where the images are real; not clamped."""
        return images * self._channels("std", images) + self._channels("mean", images)

    def _channels(self, name: str, like: Tensor) -> Tensor:
        """A constant where the images are: moved there once, for a copy from the host makes it wait for the device."""
        known: dict[Any, Tensor] = vars(self).setdefault("_constants", {})  # no field: it is neither compared nor shown
        key = (name, like.dtype, like.device)
        if key not in known:
            known[key] = torch.tensor(getattr(self, name), dtype=like.dtype, device=like.device)[:, None, None]
        return known[key]


@dataclass(frozen=True)
class Batch:
    """Synthetic images as a loss sees them: the whole set, or those that `Loss.picks` names, in its order."""

    images: Tensor  # [B,C,H,W], normalised
    labels: Tensor  # [B,K], probabilities
    classes: Tensor  # [B] int64, the class each image was made for
    whole: int | None = None  # N, the images of the whole set; None: these are all

    @property
    def num_images(self) -> int:
        """N, of the whole set."""
        return len(self.classes) if self.whole is None else self.whole

    @property
    def leaves(self) -> list[Tensor]:
        """Those of images and labels that want a gradient; `Loss.backward` adds to the `.grad` of these and no others."""
        return [tensor for tensor in (self.images, self.labels) if tensor.requires_grad]


@dataclass(frozen=True)
class Recipe:
    """How `train()` trains a network, on batches drawn without replacement, in a new order every epoch.

    `optimizer`: SGD with momentum, or AdamW (betas 0.9 and 0.999, `momentum` unused).
    `schedule`: "constant"; "glad", a linear warm-up over `warmup_epochs` and a cosine, as GLaD's code has it; "step", a tenth
    of the rate in the second half; "cosine", a linear warm-up from a hundredth (none with `warmup_epochs` 0) and a cosine to 0.
    `ema` is the largest decay of the average of the weights taken after every epoch; 0: no average.
    """

    epochs: int
    lr: float
    batch: int = 256
    momentum: float = 0.9
    weight_decay: float = 5e-4
    warmup_epochs: int = 0
    ema: float = 0.0
    augment: bool = True  # one operation a batch, own parameters for every image
    optimizer: Literal["sgd", "adamw"] = "sgd"
    schedule: Literal["constant", "glad", "step", "cosine"] = "constant"

    def __post_init__(self) -> None:
        """Refuse what cannot be trained with."""
        if self.epochs < 1 or self.batch < 1:
            raise ConfigError(f"a recipe needs at least 1 epoch and batches of at least 1, got {self.epochs} and {self.batch}.")
        if not 0 <= self.warmup_epochs <= self.epochs:
            raise ConfigError(f"warmup_epochs must lie in 0..{self.epochs} (the epochs), got {self.warmup_epochs}.")
        if self.schedule == "glad" and not self.warmup_epochs:
            raise ConfigError("the schedule 'glad' begins with a warm-up: warmup_epochs must be at least 1.")


Objective = Callable[[nn.Module, Tensor, Tensor, torch.Generator], Tensor]
"""(network, images [B,C,H,W], targets, rng) -> loss, 0-d. Targets are [B] int64 or [B,K] probabilities."""


class View(Protocol):
    """One draw of augmentation: a differentiable function of a batch."""

    def __call__(self, images: Tensor) -> Tensor:
        """[B,C,H,W] -> [B,C,H,W]."""
        ...


class Augment(Protocol):
    """Differentiable siamese augmentation with explicit parameters."""

    def draw(self, rng: torch.Generator, num: int | None = None) -> View:
        """One operation drawn from the strategy. `num` None: one parameter set, shared by every image of any batch
        (siamese). `num` B: one parameter set for each of B images; the view then takes batches of B only."""
        ...


class Run(Protocol):
    """All that a plugin may ask for. There is no test data here, and no way to it."""

    @property
    def spec(self) -> Spec:
        """The subset's shape, classes and normalisation."""
        ...

    @property
    def ipc(self) -> int:
        """Images per class."""
        ...

    @property
    def budget(self) -> Budget:
        """What `ipc` bounds: how many items a space has of a class hangs on it, where these are not whole images."""
        ...

    @property
    def step(self) -> int:
        """The step, counted over all stages."""
        ...

    @property
    def device(self) -> torch.device:
        """Where tensors live."""
        ...

    @property
    def augment(self) -> Augment:
        """The siamese augmentation of this data set."""
        ...

    @property
    def generator(self) -> Generator:
        """The plan's generator, loaded. Raises ConfigError where the plan names none."""
        ...

    @property
    def class_counts(self) -> tuple[int, ...]:
        """The number of real training images of every class."""
        ...

    def real(self, label: int, num: int, rng: torch.Generator) -> Tensor:
        """Real training images of a class, without replacement, all of them if fewer: normalised [num,C,H,W]. The caller's own:
        changing them in place changes nobody else's."""
        ...

    def choose(self, label: int, num: int, rng: torch.Generator) -> Tensor | None:
        """What `read` wants for the images that `real` gives of a class: a tensor on the host, their positions or, where the real
        images are not on the device, their bytes; None for all of the class. So the choices of all classes can go to the device
        in one copy (`ddbench.ops.moves.send_together`)."""
        ...

    def read(self, label: int, chosen: Tensor | None) -> Tensor:
        """The real training images of a class that were chosen, by what `choose` gave, on the device."""
        ...

    def rng(self, *name: str | int) -> torch.Generator:
        """The random stream of that name (on the CPU). Streams of different names are independent; the same name starts again."""
        ...

    def seeded(self, *name: str | int) -> AbstractContextManager[None]:
        """Inside it, torch's global generators are at the start of the stream of that name: for layer initialisers, which know
        no other source. They are put back at the end."""
        ...

    def network(self, *name: str | int) -> nn.Module:
        """The plan's backbone with fresh weights drawn from the stream of that name, in training mode, on the device.
        It has `forward_features` [B,C,H,W] -> [B,D,h,w] and `forward_head(features, pre_logits=False)` -> [B,K]."""
        ...

    def skeleton(self, *name: str | int) -> nn.Module:
        """`network` of that name but for its weights, and several times as fast: for code that puts other weights in right away,
        by `load_state_dict`, or by `functional_call` with all parameters. Guaranteed: the same layers on the same device, in
        training mode, dropout with the stream that it has in `network`, and buffers, those outside the state dict too, as
        they are when a network is built. Parameters hold anything at all, NaN as a rule: read none before it is overwritten."""
        ...

    @property
    def replays(self) -> bool:
        """Whether `replayed` records: on a CUDA device, for losses that were measured faster by it."""
        ...

    def replayed(
        self, name: str, step: Callable[..., tuple[Tensor, ...]], network: nn.Module, *inputs: Tensor
    ) -> tuple[Tensor, ...]:  # fmt: skip
        """`step(network, *inputs)`. Where the run `replays`, the first call of that name with inputs of such shapes is recorded
        as a CUDA graph, and later ones are replays of it with their network's weights and their inputs: so `step` must hang on
        nothing else, draw no random numbers and ask nothing of the host. Results hold until the next call of that name."""
        ...

    def resource(self, need: Resource) -> dict[str, Tensor]:
        """The tensors of a resource that `needs` declared, on the device, or on the host where it says so."""
        ...

    def sent(self, name: str, choose: Callable[[Run], Sequence[Tensor]]) -> list[Tensor]:
        """`choose(run)`, tensors on the host, such as parts of a resource that is `on_host`, on the device: found there already
        where `send_ahead` of that name was called in the step before, or else sent now, all in one copy. Valid in this step."""
        ...

    def send_ahead(self, name: str, choose: Callable[[Run], Sequence[Tensor]]) -> None:
        """Begin to send what `choose` gives for the next step, while the device still computes this one: to be called last in a
        step. `choose` must hang on the run's step and streams alone. On a CPU, nothing: there is nothing to send."""
        ...

    def prepared(self, file: str) -> Path:
        """The path of a file that `ddbench data prepare` has put under the folder `weights` of the user's data folder, such as
        `stylegan-xl/imagenet128.json`. Raises ConfigError for a name that leads elsewhere, DataError where it is missing."""
        ...

    def weights(self, file: str, sha256: str) -> dict[str, Tensor]:
        """The tensors of a file of trained weights that the user has put into the folder `weights` of the data folder, or into
        a folder there (`folder/file`, `folder/part/file`), on the CPU; for `Resource.build`. `sha256` pins its content. Nothing
        pickled is executed. Raises ConfigError or DataError, and PluginError while a resource is built that does not declare its
        `saw`."""
        ...

    def user_folder(self, folder: str) -> Path:
        """The path of a folder that the user has put into the data folder, by its path below that. Raises ConfigError for a path
        that leads elsewhere, or to the data set's own images, whose test split is sealed; DataError where there is none."""
        ...

    def document(self, file: str, sha256: str) -> bytes:
        """The bytes of a JSON file that describes weights and lies beside them, named as they are, at most 1 MiB; for
        `GeneratorConfig.depth` too. `sha256` pins its content. Raises ConfigError or DataError."""
        ...

    def train(
        self, network: nn.Module, recipe: Recipe, *name: str | int, objective: Objective | None = None,
        on_epoch: Callable[[int], None] | None = None, augment: Augment | None = None,
    ) -> None:  # fmt: skip
        """Train a network in place on the real training images; random streams by that name; cross-entropy and the data
        set's siamese augmentation by default. `on_epoch(epoch)` is called after each epoch, for snapshots; it must not wait
        for the device."""
        ...


@dataclass(frozen=True)
class Effort:
    """What a resource takes."""

    images: int  # that pass through the network that is trained, the backbone where it uses one
    bytes: int  # that are stored


class Resource(ABC):
    """Something trained once, stored under a key made of its type, its fields and the data, and shared by every cell.

    A frozen dataclass. Abstract: build.
    """

    numerics: ClassVar[int] = 1  # raised by its author when equal fields give other tensors than before
    uses_backbone: ClassVar[bool] = False  # True: `build` may call run.network, and every backbone has a resource of its own
    costly: ClassVar[bool] = False  # True: `ddbench run` builds it only if told to, by --prepare
    on_host: ClassVar[bool] = False  # True: `run.resource` gives it in the host's memory, where its file is mapped: for what is
    # large and read in small parts, which its reader moves (`Run.sent`)

    @property
    def saw(self) -> Saw:
        """What it has learned from; by itself what `build` is given, the training images. A class variable, as in all kinds of
        plugins, will do here too."""
        return TRAIN

    def describe(self) -> str:
        """One line for progress bars and plans."""
        return type(self).__name__

    def group(self) -> str:
        """What resources of a kind have in common, for lists that are too long line by line."""
        return self.describe()

    def effort(self, run: Run) -> Effort | None:
        """What building it takes, as far as that is known beforehand. `run` counts images and holds none."""
        return None

    @abstractmethod
    def build(self, run: Run) -> dict[str, Tensor]:
        """Train it. `run` has streams of its own, the same whichever cell asked first, and neither an `ipc` nor a generator."""


@dataclass(frozen=True)
class State:
    """All that is stored of a distilled set before decoding."""

    params: dict[str, Tensor]  # optimised in this stage, by name ("pixels", "w", "f"): float leaves that want a gradient
    fixed: dict[str, Tensor] = field(default_factory=dict)  # needed to decode, never optimised
    stage: int = 0

    def clone(self) -> State:
        """An independent copy: a kept reference to tensors that the optimiser changes in place is not a snapshot."""
        params = {name: tensor.detach().clone().requires_grad_() for name, tensor in self.params.items()}
        return State(params, {name: tensor.clone() for name, tensor in self.fixed.items()}, self.stage)


class Space(ABC):
    """A parameterisation of the distilled set. A frozen dataclass. Abstract: init, classes, decode."""

    plugin_kind: ClassVar[str] = "spaces"
    numerics: ClassVar[int] = 1  # raised by its author when equal settings give other numbers than before
    any_chunk: ClassVar[bool] = False  # True: images and gradients have the same bits, however many images are decoded at once

    @property
    def needs_generator(self) -> bool:
        """Whether the plan must name a generator. A space may set a class variable of that name instead; one that wraps another
        answers with what that says."""
        return False

    @property
    def tensors(self) -> tuple[str, ...]:
        """Every name that State.params may hold in any stage. A class variable will do here too."""
        return ()

    @property
    def rates_of(self) -> Mapping[str, str]:
        """By tensor: another whose learning rate it takes where neither the loss nor the suite names its own, as coefficients of
        an orthonormal transform may take that of "pixels". A class variable will do here too."""
        return {}

    @property
    def saw(self) -> Saw:
        """What it brings along from elsewhere than its resources. One that wraps another adds what that says."""
        return NOTHING

    def needs(self, run: Run) -> tuple[Resource, ...]:
        """What must be trained before `init`; checked and built before step 0. One that wraps another adds what that needs."""
        return ()

    def check(self, depth: int) -> None:
        """Raise ConfigError where this space cannot live in a generator of that many layers; asked before any step."""
        return

    def num_images(self, run: Run) -> int:
        """N, the decodable images, under the run's budget; asked before any step, of a run without data. Raises ConfigError, with
        what is allowed, where not one item of a class fits."""
        return run.spec.num_classes * run.ipc

    @property
    def is_rendered(self) -> bool:
        """Whether a generator decodes what is stored. Its weights are larger than the images that are asked for, so under the
        budget of bytes these are delivered: IPC a class. A class variable will do here too."""
        return self.needs_generator

    def decoder(self, state: State) -> tuple[str, ...]:
        """What decodes all images of a state and is no item of the set: names of its tensors, as of shared networks, and
        `GENERATOR` for the weights of the run's. Bytes are counted with it and without."""
        return (GENERATOR,) if self.is_rendered else ()

    @abstractmethod
    def init(self, run: Run) -> State:
        """The starting point."""

    @abstractmethod
    def classes(self, state: State, run: Run) -> Tensor:
        """[N] int64, one entry a decodable image, sorted; N may exceed K * IPC."""

    @abstractmethod
    def decode(self, state: State, index: Tensor, run: Run) -> Tensor:
        """Index [B] -> normalised images [B,C,H,W]; the same index always gives the same image."""

    def num_stages(self, run: Run) -> int:
        """How many sets of tensors are optimised one after the other."""
        return 1

    def stage_name(self, stage: int, run: Run) -> str:
        """What a stage is called under pictures, such as `layer 4`; empty: by its number."""
        return ""

    def advance(self, state: State, run: Run) -> State:
        """The next stage's tensors: others, that decode to the same images."""
        raise NotImplementedError  # abstract where num_stages > 1

    def project_(self, state: State, run: Run) -> None:
        """Bring the tensors back to where they are valid, in place, after the step `run.step`."""
        return

    def init_memory(self, run: Run) -> Memory:
        """What it keeps between steps and is no part of the set, as an adversary is; asked once, before `init`."""
        return {}

    def penalty(self, state: State, memory: Memory, run: Run) -> Tensor | None:
        """A term of the space's own, added to the loss: 0-d with a graph to the state, or None. It leaves `memory` as it is."""
        return None

    def after_step(self, state: State, memory: Memory, run: Run) -> None:
        """Train what is in `memory`, in place, after the state's update at step `run.step`. The state is only read."""
        return


@dataclass(frozen=True)
class UserFile:
    """A file that users bring into the folder `weights` of the data folder, and that a plugin reads as it is."""

    file: str  # as `Run.weights` and `Run.document` take it
    what: str  # in a few words, with whence it comes
    sha256: str = ""  # that it must have; empty: the plugin names none yet
    module: str = ""  # the package to import, where `file` is the name of an installable one that holds it


class Loss(ABC):
    """A matching loss. A frozen dataclass; what it keeps between steps is the `Memory` it made. Abstract: backward."""

    plugin_kind: ClassVar[str] = "losses"
    numerics: ClassVar[int] = 1  # raised by its author when equal settings give other numbers than before
    order: ClassVar[int] = 1  # 2: differentiates the network twice
    exact: ClassVar[bool] = True  # False: the gradient is a stated approximation
    rates: ClassVar[Mapping[str, float]] = {}  # default learning rates by tensor name, tied to this loss's scale
    learned: ClassVar[tuple[str, ...]] = ()  # every name that `params` may return; `student_rate` is what protocols may train at
    relabels: ClassVar[Literal["never", "last", "always"]] = "never"  # whether it has a teacher for labels = "teacher", and when

    @property
    def saw(self) -> Saw:
        """What it matches, beside what its resources saw: the training images."""
        return TRAIN

    def check(self, num_images: int, run: Run) -> None:
        """Raise ConfigError where it cannot match a set of that many images, or this backbone; asked before any step, of a run
        without data."""
        return

    def needs(self, run: Run) -> tuple[Resource, ...]:
        """Expert trajectories, a teacher: built before step 0."""
        return ()

    def brings(self) -> tuple[UserFile, ...]:
        """The files that users bring and it reads, there or not, for those who want to see what is missing; no file is opened."""
        return ()

    def relabel(self, images: Tensor, memory: Memory, run: Run) -> Tensor:
        """What its teacher says of images [B,C,H,W]: [B,K] probabilities, without a graph. For plans with labels = "teacher":
        `relabels` "last", once, for the finished set; "always", at every step too."""
        raise NotImplementedError  # abstract unless relabels is "never"

    def init(self, run: Run) -> Memory:
        """What it keeps between steps."""
        return {}

    def params(self, memory: Memory) -> dict[str, Tensor]:
        """Learned tensors of the loss itself, among those in `memory`."""
        return {}

    def picks(self, num_images: int, run: Run) -> Tensor | None:
        """Which of the N images of the set this step needs: [B] int64 on the CPU, each at most once; None: all of them.

        Only these are decoded and labelled by a teacher, and `backward` is given them alone, in this order, with
        `syn.num_images` = N; the others get no gradient in this step. Given the whole set, `backward` must give the same value
        and the same gradients. A ranker that goes by the loss compares values of the images picked.
        """
        return None

    @abstractmethod
    def backward(self, syn: Batch, memory: Memory, run: Run) -> Tensor:
        """Add the gradient to `.grad` of `syn.leaves` and of `params(memory)`; return the value, 0-d and detached.
        It must not wait for the device."""


class Generator(ABC):
    """A loaded generator: a stack of `depth` layers, F_0 -> ... -> F_depth. Abstract: latents, synthesize.

    F_depth is pixels: real images lie in [0, 1], and what a generator makes lies about there. It is not clamped where its
    authors do not clamp it, so that gradients are those of the published methods. Nothing here says that it is a GAN: a decoder
    whose layers read no codes has one, `num_codes` = 1, of which F_0 is made, and `reads_codes` says so.
    """

    depth: int

    @property
    def num_codes(self) -> int:
        """How many codes an image has, L' of w [B, L', D]; which layer uses which is the generator's business. As here: one a
        layer. A class variable will do here too."""
        return self.depth

    def reads_codes(self, start: int) -> bool:
        """Whether any layer from `start` on reads codes. Where none does, features are all that a space keeps."""
        return True

    @property
    def bytes_stored(self) -> int | None:
        """Of the weights that `synthesize` needs; None: nobody knows. As here: of all tensors of a module's state."""
        return sum(tensor.nbytes for tensor in self.state_dict().values()) if isinstance(self, nn.Module) else None

    def num_latents(self, label: int) -> int | None:
        """How many different codes `latents` has for a class; None: as many as are asked for."""
        return None

    @abstractmethod
    def latents(self, classes: Tensor, rng: torch.Generator) -> Tensor:
        """A random set of codes for each class label: [B] -> w [B, num_codes, D] (W+). Where a class has a limited number, those
        of one call are different ones as long as that lasts."""

    @abstractmethod
    def synthesize(self, w: Tensor, hidden: Tensor | None, start: int, stop: int) -> Tensor:
        """F_start -> F_stop under the codes w [B, num_codes, D]; `hidden` is F_start, or None for start 0: F_0 comes from w.
        Given `hidden`, w may be [B, 0, 0] where no layer from `start` on reads codes."""


class GeneratorConfig(ABC):
    """A generator as a plugin: its settings, what must be trained for it, and how to load it. A frozen dataclass."""

    plugin_kind: ClassVar[str] = "generators"
    numerics: ClassVar[int] = 1  # raised by its author when equal settings give other numbers than before

    @property
    def saw(self) -> Saw:
        """What it has learned from, beside what its resources saw: NOTHING for random weights, and for weights that are a
        resource."""
        return UNKNOWN

    def needs(self, run: Run) -> tuple[Resource, ...]:
        """What must be trained before `load`."""
        return ()

    def brings(self) -> tuple[UserFile, ...]:
        """The files that users bring and it reads, there or not, for those who want to see what is missing; no file is opened."""
        return ()

    def pins(self, root: Path | None) -> Mapping[str, Any]:
        """Settings that what lies in the data folder decides: above all the hash of a file that it reads. Asked when a suite is
        read; plans, keys and records have them, labels do not show them. `root` is the folder that DDBENCH_DATA names. Raises
        DataError where a file is missing or another than a setting says."""
        return {}

    @abstractmethod
    def depth(self, run: Run) -> int:
        """How many layers it has for images as `run.spec` says; asked before any step, of a run that has no more than `spec` and
        `document`. Raises ConfigError where it cannot make them."""

    def check(self, run: Run) -> None:
        """Raise ConfigError or DataError where it could not be loaded, such as for a file that is missing; asked before any step,
        of a run without data."""
        return

    @abstractmethod
    def load(self, run: Run) -> Generator:
        """Frozen, in evaluation mode, on the run's device. It may keep the run, to draw latents from `run.real`; `run.spec`
        normalises as real images are normalised here."""


@dataclass(frozen=True)
class Arch:
    """An architecture: how to build it for a data set, and what a protocol must know of it.

    `build(spec)` gives a module with default torch initialisation whose `forward` is `forward_head(forward_features(x))`:
    `forward_features` [B,C,H,W] -> [B,D,h,w], `forward_head` -> [B,K], and `forward_head(x, pre_logits=True)` -> [B,D'], the
    embedding that feature-matching losses compare.
    """

    build: Callable[[Spec], nn.Module]
    lr: float  # at which the evaluation protocols train it
    min_size: int  # smallest image side
    double_backward: bool = True  # False: it cannot be differentiated twice
    stacked: tuple[str, ...] = ()  # kinds of device (cpu, cuda) on which training its repeats at once was measured faster
    numerics: int = 1  # raised by its author when equal settings give other numbers than before
    software: tuple[str, ...] = ()  # what decides its numbers beside its settings: a library that defines it, with its version
    plugin_kind: ClassVar[str] = "architectures"


class Proxy(ABC):
    """A network that others have trained, for the class-relevant feature distance; it is not trained here. A frozen dataclass.

    An architecture may be named in its place, and is then trained on the training images. Abstract: load.
    """

    plugin_kind: ClassVar[str] = "proxies"
    numerics: ClassVar[int] = 1  # raised by its author when equal settings give other numbers than before

    @property
    def saw(self) -> Saw:
        """What it was trained on, beside what its resources saw."""
        return UNKNOWN

    def needs(self, run: Run) -> tuple[Resource, ...]:
        """Its weights, from where `load` takes them."""
        return ()

    def brings(self) -> tuple[UserFile, ...]:
        """The files that users bring and it reads, there or not, for those who want to see what is missing; no file is opened."""
        return ()

    def check(self, run: Run) -> None:
        """Raise ConfigError or DataError where it does not know the data set's classes, cannot take its images, or is not there;
        asked before any step, of a run without data."""
        return

    @abstractmethod
    def load(self, run: Run) -> nn.Module:
        """On the run's device, a network as `Arch.build` promises it: for images as the run's networks see them, with the logits
        of the data set's classes [B,K], in their order."""


Gradients = Literal["grad-cam", "elementwise"]
"""What weighs the maps of a proxy: the spatial mean of their gradient, or the gradient itself."""


@dataclass(frozen=True)
class RankDefaults:
    """What a suite says once for all rankers of a plan (`proxy_layer`, `proxy_gradient`, `rank_epochs`, `rank_repeats`); a
    ranker's own settings go above it."""

    layer: str = ""  # of the proxy, the one whose maps are compared; empty: the last before the head
    gradient: Gradients = "grad-cam"
    epochs: int = 100  # over which networks are trained on a set
    repeats: int = 1  # how many of them


class RankRun(Run, Protocol):
    """What a ranker may ask for: a run, and training images only, also those that are held out. There is no test data here."""

    @property
    def defaults(self) -> RankDefaults:
        """What the suite says for all rankers."""
        ...

    @property
    def proxy(self) -> nn.Module:
        """The plan's proxy, frozen, in evaluation mode, as `Proxy.load` promises it. Only where the ranker `uses_proxy`."""
        ...

    def training_batches(self, size: int = 256) -> Iterator[tuple[Tensor, Tensor]]:
        """All real training images, in the order of their classes, so many at once: normalised [B,C,H,W], classes [B]."""
        ...

    def trained_on(self, syn: Batch, epochs: int, *name: str | int) -> nn.Module:
        """`network` of that name, trained on a set as the protocol trains networks that judge, over so many epochs; in evaluation
        mode. Its streams are the same at every step, so that sets are compared under equal chances. Only where the ranker
        `uses_held_out`."""
        ...

    def held_out_error(self, network: nn.Module) -> Tensor:
        """The share of the held-out training images that a network gets wrong, 0-d. Only where the ranker `uses_held_out`."""
        ...


Score = Callable[[Batch, int], Tensor]
"""(the whole set, the step) -> 0-d on the run's device, without a graph; smaller is better. It changes nothing of the set and
remembers nothing: the same set at the same step has the same score, also in a process that goes on from a checkpoint."""


class Ranker(ABC):
    """Chooses among the iterates of a stage, and among the best of each stage, by a score. A frozen dataclass. Abstract: open.

    `last` and `loss` are no plugins: what comes last, and the loss's own value, need no score.
    """

    plugin_kind: ClassVar[str] = "rankers"
    numerics: ClassVar[int] = 1  # raised by its author when equal settings give other numbers than before
    uses_proxy: ClassVar[bool] = False  # True: it looks through the plan's proxy, `run.proxy`
    uses_held_out: ClassVar[bool] = False  # True: it trains networks on the set, which held-out training images judge

    @property
    def saw(self) -> Saw:
        """What it compares sets with, beside what its resources and the proxy saw: the training images."""
        return TRAIN

    def needs(self, run: Run) -> tuple[Resource, ...]:
        """What must be trained before `open`."""
        return ()

    def check(self, run: Run) -> None:
        """Raise ConfigError where it cannot rank sets of such images, or with this backbone; asked before any step, of a run
        without data."""
        return

    @abstractmethod
    def open(self, run: RankRun) -> Score:
        """The score, with what it compares sets with. On a device it should not wait, for it may be asked at every step."""


@dataclass(frozen=True)
class LabelledImages:
    """A split of a data set."""

    images: Tensor  # uint8 [N,C,H,W]
    labels: Tensor  # int64 [N], positions in Spec.class_names
    mapped: bool = False  # True: the images lie in a mapped file, of which no copy is made where the host computes


class Dataset(ABC):
    """Real data. A frozen dataclass. Abstract: spec, load."""

    plugin_kind: ClassVar[str] = "datasets"

    @abstractmethod
    def spec(self) -> Spec:
        """The images' shape, classes and normalisation; needs no file."""

    @abstractmethod
    def load(self, split: Split, root: Path | None) -> LabelledImages:
        """A whole split, in a fixed order. `root` is the folder DDBENCH_DATA names, None where unset.
        Raises DataError, saying which file was expected where, if it is missing."""

    def files(self, root: Path | None) -> tuple[Path, ...]:
        """Every file that `load` and `is_original` read. While their sizes and times stay as they are, nothing is decoded only to
        see what the data are. None named, as here: it is decoded at every command. Raises DataError as `load` does."""
        return ()

    def is_original(self, root: Path | None) -> bool:
        """Whether the files are the published ones; False marks every result with a copy's name."""
        return True

    def is_prepared(self, root: Path | None) -> bool:
        """Whether `load` only reads. False where it would first write what it decodes, as commands that only look must not: they
        then go without what hangs on the images. Raises DataError as `load` does."""
        return True

    @property
    def test_images_elsewhere(self) -> bool:
        """Whether its test images are in circulation as training images, as those of fastai's Imagenette are among ImageNet's:
        then whatever saw external images may have seen them. A class variable or a setting of that name will do too."""
        return False

    def prepare(self, root: Path | None, progress: Callable[[str, float], None] | None = None) -> None:
        """Do beforehand what the first `load` would do, building a cache above all, and check in full what is there of it: for
        those who asked for it. `progress(what, fraction)` is told how far it is. Nothing, as here, where there is no cache.
        Raises DataError as `load` does."""
        return

    def download(self, root: Path) -> None:
        """Fetch the published files into `root`, because the user asked for it."""
        raise ConfigError(f"data set '{self.spec().name}' cannot be downloaded by ddbench; see its documentation.")


@dataclass(frozen=True)
class AssetFacts:
    """What is known of a file that users bring, there or not. Paths are relative to the data folder, with slashes."""

    what: str  # in a few words
    licence: str  # what the user must know of its terms
    source: str  # where it belongs when it is put there by hand
    files: tuple[str, ...]  # what `prepare` makes of it, and runs read; none: they read it as it is
    address: str | None = None  # where it is published; None: ddbench knows of no place


class Asset(ABC):
    """A file that users bring, such as published weights, and what is made of it once, so that runs never open it. A frozen
    dataclass; as a rule a family, of which each member is a file. Abstract: facts, prepare, check."""

    plugin_kind: ClassVar[str] = "assets"

    @classmethod
    def members(cls, root: Path | None) -> tuple[str, ...]:
        """Of a family, the members to list: those that it knows, and those that are prepared in the data folder."""
        return ()

    @abstractmethod
    def facts(self) -> AssetFacts:
        """What is known of it; needs no file."""

    @abstractmethod
    def prepare(self, source: Path, sha256: str, root: Path) -> tuple[str, ...]:
        """Make `files` of the source, whose content has that hash, and tell what the user should know, a sentence each. Files
        appear whole or not at all (unfinished ones are called `.NAME.*.tmp`, beside NAME, and removed by the next attempt), and
        nothing that holds something else is overwritten. Nothing in the source is executed.
        Raises DataError where it is not what is expected."""

    @abstractmethod
    def check(self, root: Path) -> None:
        """Raise DataError where one of `files` is missing, damaged, or does not fit the others."""


class Baseline(ABC):
    """A set that is made without a matching loss: selected, sampled or read. A frozen dataclass. Abstract: build."""

    plugin_kind: ClassVar[str] = "baselines"
    numerics: ClassVar[int] = 1  # raised by its author when equal settings give other numbers than before
    everything: ClassVar[bool] = False  # True: all real training images, of which no copy is stored; `build` is never asked
    uses_backbone: ClassVar[bool] = False  # True: `build` may call run.network, and every backbone has a set of its own
    needs_generator: ClassVar[bool] = False  # True: the suite must name a generator, `run.generator`

    @property
    def saw(self) -> Saw:
        """What its images come from, beside what its resources saw: TRAIN for a selection of the training images. A setting of
        that name will do here too."""
        return UNKNOWN

    def needs(self, run: Run) -> tuple[Resource, ...]:
        """What must be trained before `build`."""
        return ()

    def brings(self) -> tuple[UserFile, ...]:
        """The files that users bring and it reads, there or not, for those who want to see what is missing; no file is opened."""
        return ()

    def pins(self, root: Path | None) -> Mapping[str, Any]:
        """Settings that what lies in the data folder decides, as `GeneratorConfig.pins`: above all the hash of what it reads."""
        return {}

    def check(self, run: Run) -> None:
        """Raise ConfigError where it cannot make a set of `run.ipc` images a class, DataError where files are missing; asked
        before any step, of a run without data."""
        return

    @abstractmethod
    def build(self, run: Run) -> Batch:
        """The set: normalised images [N,C,H,W], probabilities [N,K], and the class each image stands for [N], sorted."""


@dataclass(frozen=True)
class Presets:
    """A family of presets: settings that papers publish, by where a cell lies in its grid, each with its source."""

    text: str  # TOML, as ddbench.suite.presets describes it


@dataclass(frozen=True)
class ProtocolText:
    """An evaluation protocol: how networks are trained on a set and read."""

    text: str  # TOML, as ddbench.protocols describes it


JobKind = Literal["resource", "set", "judgement", "trial"]


@dataclass(frozen=True)
class Job:
    """One thing to do in a store. Its plan lies there before it is submitted, so that a name is all that travels."""

    kind: JobKind
    name: str  # of its files in the store, without a suffix: unique among all jobs
    title: str  # for people
    needs: tuple[str, ...] = ()  # names of jobs that must have ended well before
    distributions: tuple[str, ...] = ()  # other than ddbench, whose code it runs


@dataclass(frozen=True)
class Site:
    """Where a run takes place: what all of its jobs have in common."""

    store: Path  # absolute
    devices: tuple[str, ...]  # of this machine, one entry for each job that may run here at the same time: cpu, cuda:0, ...
    threads: int = 1  # of a job, on a CPU
    data_root: Path | None = None  # absolute; the folder that DDBENCH_DATA names
    checkpoint_seconds: float = 20.0


@dataclass(frozen=True)
class Request:
    """What each of some jobs asks for. Memory and seconds are the most that jobs of the same kind have taken before, on whatever
    machine did them; None where the store has none: ask for what a job of any kind may take."""

    devices: int = 1  # CUDA devices, or processes on a CPU
    memory_bytes: int | None = None  # of the CUDA device, or resident in the process on a CPU
    seconds: float | None = None


@dataclass(frozen=True)
class JobState:
    """What an executor knows of a submitted job. Whether it did well, only the store says."""

    state: Literal["waiting", "running", "ended", "lost"]  # lost: died, or nobody knows it any more
    phase: str = ""
    fraction: float = 0.0  # done, of a running job
    detail: str = ""  # of a lost one, a sentence
    where: str = ""  # for people: the machine, what the queue calls the job, how long it may still run


class Executor(ABC):
    """Runs jobs somewhere: "do this job in this store". It carries no results. All abstract but `close`."""

    window: int | None = None  # at most so many jobs are submitted and not ended; None: as many as are ready
    survives: bool = False  # whether handles still mean something once the process that submitted them has ended
    retries: int = 0  # how often a job that was lost is submitted again by the same run

    @abstractmethod
    def submit(self, jobs: Sequence[Job], request: Request) -> list[str]:
        """Begin, or queue, jobs of which each asks for as much; gives a handle for each, a text that a later process can poll
        too. It may be called several times before it is polled, once for each kind of job."""

    @abstractmethod
    def poll(self, handles: Sequence[str], seconds: float) -> list[JobState]:
        """The state of each, after at most so many seconds of waiting for news."""

    @abstractmethod
    def cancel(self, handles: Sequence[str]) -> None:
        """Stop them, or take them out of the queue."""

    def detach(self, stages: Sequence[Sequence[tuple[Job, Request]]]) -> list[list[str]]:
        """Submit jobs that go on when this process has ended, those of a stage once all of the stage before have ended; gives
        the handles. Raises ConfigError where the executor cannot."""
        raise ConfigError("this executor's jobs end with the command that began them: leave --detach out, and keep it running.")

    def close(self) -> None:
        """No more jobs are coming; stop what still runs."""
        return


class ExecutorConfig(ABC):
    """An executor as a plugin: its settings, and how to start it. A frozen dataclass. Abstract: open."""

    plugin_kind: ClassVar[str] = "executors"

    @abstractmethod
    def open(self, site: Site) -> Executor:
        """Ready for jobs. Raises ConfigError where the place or the settings cannot work."""


PLUGIN_TYPES: Mapping[str, type[Any]] = {
    "losses": Loss,
    "spaces": Space,
    "generators": GeneratorConfig,
    "architectures": Arch,
    "proxies": Proxy,
    "rankers": Ranker,
    "datasets": Dataset,
    "baselines": Baseline,
    "presets": Presets,
    "protocols": ProtocolText,
    "executors": ExecutorConfig,
    "assets": Asset,
}
"""What the entry points of each group `ddbench.<kind>` must make."""
