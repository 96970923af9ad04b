"""MTT, TESLA and DATM: trajectory matching; long because the three share experts, student and checks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Annotated, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.func import functional_call

from ddbench.api import AtMost, Batch, Effort, Loss, Memory, Recipe, Resource, Run, View
from ddbench.errors import ConfigError
from ddbench.ops.augment import ahead
from ddbench.ops.checkpoints import parameters_under
from ddbench.ops.moves import send_together
from ddbench.ops.replays import Backward, unrolled_backward
from ddbench.ops.unroll import Unroll, exact_backward, mini_batches, student_mode, two_pass_backward, within

Steps = Annotated[int, AtMost(10_000)]  # of a student, which are all unrolled
Epochs = Annotated[int, AtMost(1_000)]  # of an expert, each of which keeps a copy of the network
Experts = Annotated[int, AtMost(1_000)]


@dataclass(frozen=True)
class ExpertTrajectory(Resource):
    """The parameters of one network trained on the real training images, before the first epoch and after every one.

    tensors: "<epoch>/<parameter>" for epochs 0..`epochs`, as in "3/features.0.weight". Buffers (the running statistics of
    BatchNorm) are not among them. Trained by plain SGD at a constant rate.
    """

    index: int  # two experts of different indices differ in weights, order of the images and augmentation
    epochs: int
    lr: float
    batch: int
    momentum: float
    weight_decay: float
    augment: bool
    uses_backbone: ClassVar[bool] = True
    costly: ClassVar[bool] = True
    on_host: ClassVar[bool] = True

    def describe(self) -> str:
        """One line."""
        return f"expert trajectory {self.index} of the backbone, {self.epochs} epochs"

    def group(self) -> str:
        """The others of the same recipe."""
        return f"expert trajectories of the backbone, {self.epochs} epochs"

    def effort(self, run: Run) -> Effort:
        """All training images in every epoch; a snapshot before and after each."""
        values = sum(parameter.numel() for parameter in run.skeleton("expert").parameters())
        return Effort(self.epochs * sum(run.class_counts), (self.epochs + 1) * values * 4)

    def build(self, run: Run) -> dict[str, Tensor]:
        """Train one network; copies, since a detached view of a parameter changes with it."""
        network, kept = run.network("expert"), dict[str, Tensor]()

        def keep(epoch: int) -> None:
            kept.update({f"{epoch}/{name}": tensor.detach().clone() for name, tensor in network.named_parameters()})

        keep(0)
        recipe = Recipe(self.epochs, self.lr, self.batch, self.momentum, self.weight_decay, augment=self.augment)
        run.train(network, recipe, "expert", on_epoch=lambda epoch: keep(epoch + 1))
        return kept

    def read(self, held: Mapping[str, Tensor], epoch: int, network: nn.Module) -> dict[str, Tensor]:
        """The snapshot of an epoch, by parameter. Raises ConfigError where it is not one of such a network."""
        return parameters_under(f"{epoch}/", held, network, self.describe(), "Use experts trained with this very backbone.")


@dataclass(frozen=True)
class StudentMatching(Loss):
    """What MTT and TESLA share: experts, the student and its learned rate; they differ in `backward`. Not a plugin itself."""

    syn_steps: Steps = 20  # of the student, on the synthetic set
    expert_epochs: Epochs = 3  # from the student's start to its target
    min_start_epoch: int = 0
    max_start_epoch: Epochs = 5  # the student starts at an epoch below
    first_max_start_epoch: int | None = None  # of step 0, where `expanding_steps` is set
    expanding_steps: int = 0  # over which it grows to max_start_epoch; 0: it is that from the start
    batch_syn: int | None = None  # images of a student's step, all that is decoded; None: the whole set
    student_lr: float = 0.01  # where the learned rate starts
    augment: Literal["dsa", "none"] = "dsa"
    num_experts: Experts = 100
    epochs_trained: Epochs | None = None  # of an expert; None: as many as are ever read
    expert_lr: float = 0.01
    expert_batch: int = 256
    expert_momentum: float = 0.0
    expert_weight_decay: float = 0.0
    expert_augment: bool = True
    order: ClassVar[int] = 2
    rates: ClassVar[Mapping[str, float]] = {"pixels": 1e4, "f": 1e4, "w": 10.0, "student_rate": 1e-6, "labels": 2.0}
    learned: ClassVar[tuple[str, ...]] = ("student_rate",)
    relabels: ClassVar[Literal["never", "last", "always"]] = "always"

    def __post_init__(self) -> None:
        """Refuse what cannot run."""
        for name in ("syn_steps", "expert_epochs", "num_experts", "expert_batch"):
            if getattr(self, name) < 1:
                raise ConfigError(f"'{name}' must be at least 1, got {getattr(self, name)}.")
        if self.batch_syn is not None and self.batch_syn < 1:
            raise ConfigError(f"'batch_syn' must be at least 1, got {self.batch_syn}; leave it out for the whole set.")
        for name in ("student_lr", "expert_lr"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"'{name}' must be above 0, got {getattr(self, name)}.")
        if not 0 <= self.expert_momentum < 1 or self.expert_weight_decay < 0:
            momentum, decay = self.expert_momentum, self.expert_weight_decay
            raise ConfigError(
                f"'expert_momentum' must lie in [0, 1) and 'expert_weight_decay' be at least 0, got {momentum} and {decay}."
            )
        self._check_epochs()

    def _check_epochs(self) -> None:
        if not 0 <= self.min_start_epoch < self.max_start_epoch:
            low, high = self.min_start_epoch, self.max_start_epoch
            raise ConfigError(f"'min_start_epoch' must lie in 0..max_start_epoch - 1, got {low} with max_start_epoch {high}.")
        first = self.first_max_start_epoch
        if self.expanding_steps < 0 or (first is None) != (self.expanding_steps == 0):
            raise ConfigError(
                "'first_max_start_epoch' and 'expanding_steps' (at least 1) go together: set both, or neither; "
                f"got {'none' if first is None else first} and {self.expanding_steps}."
            )
        if first is not None and not self.min_start_epoch < first <= self.max_start_epoch:
            between = f"{self.min_start_epoch + 1}..{self.max_start_epoch}"
            raise ConfigError(f"'first_max_start_epoch' must lie in {between} (above min, up to max), got {first}.")
        if self.epochs_trained is not None and self.epochs_trained < self._last_epoch:
            raise ConfigError(
                f"'epochs_trained' must be at least {self._last_epoch} (max_start_epoch - 1 + expert_epochs), "
                f"got {self.epochs_trained}."
            )

    @property
    def _last_epoch(self) -> int:
        """The last one that is ever read."""
        return self.max_start_epoch - 1 + self.expert_epochs

    def check(self, num_images: int, run: Run) -> None:
        """Whether a mini-batch fits into the set."""
        if self.batch_syn is not None and self.batch_syn > num_images:
            told = f"batch_syn {self.batch_syn} is larger than the set of {num_images} images"
            raise ConfigError(f"{told}: lower it, or leave it out for the whole set.")

    def needs(self, run: Run) -> tuple[Resource, ...]:
        """The experts, each a resource of its own."""
        return tuple(self._expert(index) for index in range(self.num_experts))

    def _expert(self, index: int) -> ExpertTrajectory:
        recipe = (self.expert_lr, self.expert_batch, self.expert_momentum, self.expert_weight_decay, self.expert_augment)
        return ExpertTrajectory(index, self.epochs_trained or self._last_epoch, *recipe)

    def init(self, run: Run) -> Memory:
        """The student's rate, once every snapshot that may be read has been seen to fit the backbone. It is float64: a
        step of 1e-6 times a small gradient would be lost in float32."""
        network = run.skeleton("student")
        for index in range(self.num_experts):
            expert = self._expert(index)
            for epoch in range(self.min_start_epoch, self._last_epoch + 1):
                expert.read(run.resource(expert), epoch, network)
        return {"student_rate": torch.tensor(self.student_lr, dtype=torch.float64, device=run.device).requires_grad_()}

    def params(self, memory: Memory) -> dict[str, Tensor]:
        """The student's rate."""
        return {"student_rate": memory["student_rate"]}

    def choose(self, run: Run) -> tuple[int, int]:
        """The expert and the epoch that the student of this step starts from. Every expert has its turn before one has
        another, in a new order each time."""
        turn = run.step % self.num_experts
        order = torch.randperm(self.num_experts, generator=run.rng("expert", "order", run.step // self.num_experts))
        bound = self.start_bound(run.step)
        epoch = torch.randint(self.min_start_epoch, bound, (), generator=run.rng("expert", "start", run.step))
        return int(order[turn]), int(epoch)

    def start_bound(self, step: int) -> int:
        """Start epochs of a step lie below this: first + floor((max - first) min(1, step / expanding_steps))."""
        if self.first_max_start_epoch is None:
            return self.max_start_epoch
        grown = (self.max_start_epoch - self.first_max_start_epoch) * min(step, self.expanding_steps)
        return self.first_max_start_epoch + grown // self.expanding_steps

    def picks(self, num_images: int, run: Run) -> Tensor | None:
        """The images of this step's mini-batches, sorted."""
        if self.batch_syn is None:
            return None
        index, _ = within(self._chunks(num_images, run))
        return None if len(index) == num_images else index

    def unroll(self, syn: Batch, memory: Memory, run: Run) -> Unroll:
        """This step's student."""
        dtype, parts = syn.images.dtype, self._parts(syn, run)
        views: list[View] = []
        if self.augment == "dsa":  # both passes of TESLA see the same images
            sizes = [len(syn.images) if isinstance(part, slice) else len(part) for part in parts]
            streams = [run.rng("student-augment", run.step, step) for step in range(self.syn_steps)]
            views, _ = ahead([run.augment.draw(rng, num) for rng, num in zip(streams, sizes, strict=True)], run.device)

        def batch(step: int) -> tuple[Tensor, Tensor]:
            images, labels = syn.images[parts[step]], syn.labels[parts[step]]
            return views[step](images) if views else images, labels

        network = student_mode(run.skeleton("student")).to(dtype)
        start, target = self._snapshots(network, dtype, run)
        return Unroll(network, start, target, memory["student_rate"], self.syn_steps, batch)

    def relabel(self, images: Tensor, memory: Memory, run: Run) -> Tensor:
        """This step's target expert is the teacher: softmax of its logits. As TESLA assigns soft labels (section "soft label
        assignment" of its paper); MTT has none."""
        network = student_mode(run.skeleton("student")).to(images.dtype)
        _, target = self._snapshots(network, images.dtype, run)
        return functional_call(network, target, (images,)).softmax(1)

    def _snapshots(self, network: nn.Module, dtype: torch.dtype, run: Run) -> list[dict[str, Tensor]]:
        """The student's start and its target, on the device, by parameter."""
        names = [name for name, _ in network.named_parameters()]
        moved = iter(run.sent("snapshots", partial(self._chosen, network)))
        return [{name: next(moved).to(dtype) for name in names} for _ in range(2)]

    def _chosen(self, network: nn.Module, run: Run) -> list[Tensor]:
        """These snapshots on the host, the start's parameters before the target's."""
        index, epoch = self.choose(run)
        expert = self._expert(index)
        read = [expert.read(run.resource(expert), at, network) for at in (epoch, epoch + self.expert_epochs)]
        return [tensor for snapshot in read for tensor in snapshot.values()]

    def _matched(self, name: str, backward: Backward, syn: Batch, memory: Memory, run: Run) -> Tensor:
        """This step's value; the next one's snapshots are then on their way, beside what the device has yet to do."""
        unroll = self.unroll(syn, memory, run)
        value = unrolled_backward(name, backward, unroll, syn, run)
        run.send_ahead("snapshots", partial(self._chosen, unroll.network))
        return value

    def _parts(self, syn: Batch, run: Run) -> list[slice] | list[Tensor]:
        """Where the images of every step of the student are in the batch, which holds the whole set or what `picks` names."""
        if self.batch_syn is None:
            return [slice(None)] * self.syn_steps
        chunks = self._chunks(syn.num_images, run)
        if len(syn.classes) < syn.num_images:
            _, chunks = within(chunks)
        return send_together(chunks, run.device)

    def _chunks(self, num_images: int, run: Run) -> list[Tensor]:
        """The images of every step of the student, by their places in the whole set."""
        assert self.batch_syn is not None
        return mini_batches(num_images, self.batch_syn, self.syn_steps, run.rng("student-order", run.step))


@dataclass(frozen=True)
class TrajectoryMatching(StudentMatching):
    """MTT: after some steps on the synthetic set, a student that started on an expert's trajectory must be further along it.

    value = ||theta_n - theta*_{t+M}||^2 / ||theta*_t - theta*_{t+M}||^2;  theta_0 = theta*_t, the expert after epoch t;
    theta_{i+1} = theta_i - beta grad CE(f_theta_i(A_i(S_i)), Y_i), n = `syn_steps` of them;  M = `expert_epochs`;  beta:
    learned (`student_rate`);  t uniform in min_start_epoch..max_start_epoch - 1;  S_i: the whole set, or chunks of permutations
    of it;  A_i: one operation of DSA, own parameters for every image. The gradient is that of the whole unroll, and memory
    grows with n.
    Source: Cazenavette et al., Dataset Distillation by Matching Training Trajectories, CVPR 2022, eq. 2 and algorithm 1;
    numbers and rates as GLaD runs it, the rate of learned labels that of DATM (there with momentum 0.9). Departures: an
    expert is trained for the epochs that are read (7 by default; 15 or 50 there; `epochs_trained`); experts are taken in a
    new order each round, not file by file; parameters go by name, so an expert of another network is refused; students
    with BatchNorm use the statistics of the batch at hand, since no running ones are stored; dropout is off. Nothing keeps
    beta above 0.
    Raises: ConfigError if a number is out of range, or before the first step if an expert is not one of the backbone or
    `batch_syn` exceeds the set.
    """

    def backward(self, syn: Batch, memory: Memory, run: Run) -> Tensor:
        """Through the whole unroll."""
        return self._matched("mtt", exact_backward, syn, memory, run)


@dataclass(frozen=True)
class Tesla(StudentMatching):
    """TESLA: MTT in memory that does not grow with the student's steps, by an approximate gradient.

    value: MTT's. The gradient of images and labels holds every theta_i fixed, so that each batch acts by its own step alone:
    dL/dS_i = (2 beta / P) (theta*_{t+M} - theta_0 + beta G) . dg_i/dS_i, G = sum_i g_i, P the value's denominator. It is MTT's
    for one step, and drifts away from it as steps are added; the student's rate likewise, with G fixed.
    Source: Cui, Wang, Si and Hsieh, Scaling Up Dataset Distillation to ImageNet-1K with Constant Memory, ICML 2023, which
    calls its gradient exact. Departures: the factor 2, of which the public code makes a doubled tuple, so that its image
    gradient is half of this and its image rates must be halved here; those of MTT. With labels = "teacher" the step's target
    expert labels the images, as its code does for ImageNet-1K.
    Raises: as MTT.
    """

    exact: ClassVar[bool] = False

    def backward(self, syn: Batch, memory: Memory, run: Run) -> Tensor:
        """In two passes over the steps."""
        return self._matched("tesla", two_pass_backward, syn, memory, run)


def datm(
    form: Literal["mtt", "tesla"] = "mtt",
    syn_steps: Steps = 80,
    expert_epochs: Epochs = 2,
    min_start_epoch: int = 0,
    max_start_epoch: Epochs = 20,
    first_max_start_epoch: int | None = 10,
    expanding_steps: int = 1000,
    batch_syn: int | None = None,
    student_lr: float = 0.01,
    augment: Literal["dsa", "none"] = "dsa",
    num_experts: Experts = 100,
    epochs_trained: Epochs | None = None,
    expert_lr: float = 0.01,
    expert_batch: int = 256,
    expert_momentum: float = 0.0,
    expert_weight_decay: float = 0.0,
    expert_augment: bool = True,
) -> StudentMatching:
    """DATM: MTT or TESLA whose start epochs are aligned with the size of the set, and grow harder in the course of it.

    Start epochs are drawn from min_start_epoch up to a bound that grows from first_max_start_epoch to max_start_epoch (all
    exclusive) over the first `expanding_steps` steps: small sets match early, easy epochs, large ones late ones. The defaults
    are the public code's for CIFAR-10 at IPC 10; at IPC 1 it starts below 4 throughout, at IPC 50 below 20, growing to below 40
    in 2000 steps. A plan should set labels = "learned" and the rates, which the code has by data set and IPC and the default
    ones, MTT's, do not fit: 100 for pixels at CIFAR-10 IPC 10, 1e-5 for the student's rate, 2 for labels.
    Source: Guo et al., Towards Lossless Dataset Distillation via Difficulty-Aligned Trajectory Matching, ICLR 2024, section
    3; ranges of its public code. Departures: labels start from the smoothed hard ones and images as the space says, not from
    the mean logits of the experts that classify an image correctly, and images of that kind; one momentum for images, labels
    and rate; experts are plain SGD's, not flattened ones (FTD); no step is skipped for a large value.
    """
    kind = TrajectoryMatching if form == "mtt" else Tesla
    return kind(
        syn_steps, expert_epochs, min_start_epoch, max_start_epoch, first_max_start_epoch, expanding_steps, batch_syn,
        student_lr, augment, num_experts, epochs_trained, expert_lr, expert_batch, expert_momentum, expert_weight_decay,
        expert_augment,
    )  # fmt: skip
