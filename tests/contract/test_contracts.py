"""Every registered plugin keeps the contract, every loss runs in every space, and every check can fail."""

from __future__ import annotations

import atexit
import importlib
import importlib.util
import math
import re
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from msgspec.structs import replace as replace_plan
from torch import Tensor, nn

import made_decoders
import made_folders
import made_pipelines
from ddbench import registry, testing
from ddbench.api import (
    Arch,
    Asset,
    AssetFacts,
    Baseline,
    Batch,
    Dataset,
    Executor,
    ExecutorConfig,
    Generator,
    GeneratorConfig,
    Job,
    JobState,
    LabelledImages,
    Loss,
    Memory,
    Presets,
    ProtocolText,
    Proxy,
    Ranker,
    RankRun,
    Request,
    Resource,
    Run,
    Saw,
    Score,
    Site,
    Space,
    Spec,
    Split,
    State,
)
from ddbench.compute.clock import Stopwatch
from ddbench.compute.engine import Distillation, distill
from ddbench.compute.run import DistillRun
from ddbench.errors import BenchError, ConfigError, DataError
from ddbench.ops.moves import send, send_network
from ddbench.ops.pretrained import Adapted
from ddbench.ops.wrapping import Wrapping
from ddbench.testing import CHECKS, TOY_ARCH, TOY_NORMED_ARCH, Skipped, ToyGenerator, run_checks, toy_network, toy_plan, toy_run

# Given to every plugin that has the setting, so that tests are quick.
SMALL = {
    "width": 16, "samples": 8, "epochs": 1, "num_experts": 3, "syn_steps": 5, "teacher_epochs": 2, "side": 32,
    "units": 3, "fit_steps": 3, "inner": "pixel", "networks": 2, "batches": 2,
    "classes": ("n02102040", "n01440764"),
}  # fmt: skip
EXCEPTIONS: dict[tuple[str, str, str], str] = {}  # (kind, name, check) -> why it fails; each a strict xfail
SIDES = {("generators", "stylegan-xl-random"): 32, ("generators", "stylegan3-random"): 32}  # of images that a plugin is for
MEMBERS = {  # of a family, which cannot be made without one; a small one for each sort
    ("generators", "stylegan-xl"): ("stylegan-xl/tiny",),  # nobody has it: skipped aloud, and checked with a file elsewhere
    ("assets", "stylegan-xl"): ("stylegan-xl/imagenet128", "stylegan-xl/mine"),
    ("architectures", "timm"): ("timm/resnet10t", "timm/vit_tiny_patch16_224"),
    ("datasets", "image-folder"): ("image-folder/imagenette-224-subset",),
}
MADE = {  # of those that read files of users, what makes small ones and gives the settings that name them
    ("generators", "tiny-autoencoder"): made_decoders.tiny,
    ("generators", "dcgan"): made_decoders.digits,
    ("generators", "autoencoder-kl"): made_decoders.kl,
    ("baselines", "folder"): made_folders.images_of_others,
    ("baselines", "latent-clusters"): made_pipelines.few_steps,
    ("baselines", "ddim-groups"): made_pipelines.few_groups,
}
OWN = {("rankers", "validation"): {"epochs": 20}}  # of those that SMALL makes too small: one epoch trains nothing
DIFFUSED = {("generators", "autoencoder-kl"), ("baselines", "latent-clusters"), ("baselines", "ddim-groups")}
IN_COLOUR = {("generators", "tiny-autoencoder"), *DIFFUSED}  # that make no other images
EXTRAS = dict.fromkeys(DIFFUSED, "diffusers")  # what users install for some plugins alone
BACKBONES = {("losses", "bn-statistics"): TOY_NORMED_ARCH}  # of those that the plain toy network does not serve
NAMED = [
    (kind, member)
    for kind, source in registry.REGISTRIES.items()
    for name in source.names()
    for member in MEMBERS.get((kind, name), (name,))
]


def make(kind: str, name: str) -> Any:
    source = registry.REGISTRIES[kind]
    known = source.settings(name)
    own = MADE[kind, name](files()) if (kind, name) in MADE else OWN.get((kind, name), {})
    return source.make(name, {key: value for key, value in SMALL.items() if key in known} | own)


@cache
def files() -> Path:
    """A folder for the files that plugins of this module's tests read, gone at the end."""
    folder = tempfile.mkdtemp(prefix="ddbench-contract-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return Path(folder)


def the_run(kind: str, name: str) -> DistillRun:
    colour, side = kind == "architectures" or (kind, name) in IN_COLOUR, SIDES.get((kind, name), 8)
    run = toy_run(channels=3 if colour else 1, side=side, arch=BACKBONES.get((kind, name), TOY_ARCH))
    return replace(run, folder=files()) if (kind, name) in MADE else run


def lacks_extra(kind: str, name: str) -> str:
    """The package that a plugin needs and that is not installed; or nothing."""
    extra = EXTRAS.get((kind, name), "")
    return extra if extra and importlib.util.find_spec(extra) is None else ""


@cache
def verdict(kind: str, name: str, check: str) -> Exception | None:
    """What a check raises, so that two tests can look at it."""
    (found,) = (entry for entry in CHECKS[kind] if entry.__name__ == check)
    if extra := lacks_extra(kind, name):
        return Skipped(f"{extra} is not installed: pip install 'ddbench[{extra}]'")
    try:
        found(make(kind, name), the_run(kind, name))
    except Exception as error:
        return error
    return None


def cases() -> list[Any]:
    listed = []
    for kind, name in NAMED:
        for check in CHECKS[kind]:
            why = EXCEPTIONS.get((kind, name, check.__name__))
            marks = [pytest.mark.xfail(strict=True, reason=why)] if why else []
            listed.append(pytest.param(kind, name, check.__name__, marks=marks, id=f"{kind}-{name}-{check.__name__}"))
    return listed


@pytest.mark.parametrize(("kind", "name", "check"), cases())
def test_every_plugin_keeps_every_part_of_the_contract(user_data: Path | None, kind: str, name: str, check: str) -> None:
    error = verdict(kind, name, check)
    if isinstance(error, Skipped):
        pytest.skip(str(error))
    if error is not None:
        raise error


def may_skip(kind: str, plugin: Any, user_data: Path | None) -> set[str]:
    """The checks that may skip a plugin, decided here and not by the checks."""
    if kind == "losses":
        return set() if plugin.exact else {"loss_gradient_is_the_slope"}
    if kind == "spaces":
        one = plugin.num_stages(toy_run()) == 1
        inside = plugin
        while isinstance(inside, Wrapping):
            inside = inside.inner
        own = type(inside).penalty is not Space.penalty
        return ({"space_keeps_images_when_it_advances"} if one else set()) | (set() if own else {"space_penalty_is_a_number"})
    if kind == "architectures":
        return set() if plugin.double_backward else {"architecture_has_second_derivatives"}
    if kind == "generators":
        try:
            plugin.pins(user_data)
        except DataError:
            return {check.__name__ for check in CHECKS[kind]} - {"generator_says_what_it_saw"}
        return set()
    if kind == "baselines":
        return {check.__name__ for check in CHECKS[kind]} - {"baseline_says_what_it_saw"} if plugin.everything else set()
    if kind == "proxies":
        known = replace(testing.toy_spec(channels=3), class_indices=(1, 2, 3))
        try:
            plugin.check(replace(toy_run(), data=testing.toy_data(known)))
        except BenchError:  # its file or package is not there
            return {check.__name__ for check in CHECKS[kind]} - {"proxy_says_what_it_saw"}
        return set()
    if kind == "rankers":
        return {"ranker_stays_on_its_device"} if plugin.uses_held_out else set()
    if kind == "datasets":
        try:
            plugin.load("train", user_data)
        except DataError:
            return {check.__name__ for check in CHECKS[kind]} - {"dataset_spec_is_sound"}
        return set() if plugin.files(user_data) else {"dataset_names_its_files"}
    return set()


@pytest.mark.long
@pytest.mark.parametrize(("kind", "name"), NAMED)
def test_no_check_skips_without_a_reason(user_data: Path | None, kind: str, name: str) -> None:
    found = {check.__name__: verdict(kind, name, check.__name__) for check in CHECKS[kind]}
    skipped = {check for check, error in found.items() if isinstance(error, Skipped)}
    met = {check for check, error in found.items() if error is None}
    excused = {check for k, n, check in EXCEPTIONS if (k, n) == (kind, name)}
    if lacks_extra(kind, name):
        assert skipped == {check.__name__ for check in CHECKS[kind]}
        return
    assert skipped == may_skip(kind, make(kind, name), user_data)
    assert len(met) == len(CHECKS[kind]) - len(skipped) - len(excused)
    idle = (kind, name) in (("baselines", "full-data"), ("generators", "stylegan-xl/tiny"))  # which build nothing
    assert met or idle, "no check at all was met"


def test_all_kinds_have_plugins_and_checks() -> None:
    assert set(CHECKS) == set(registry.REGISTRIES)
    assert all(source.names() for source in registry.REGISTRIES.values())
    listed = [check for checks in CHECKS.values() for check in checks]
    rooms = [importlib.import_module(f"ddbench.testing.{kind}") for kind in CHECKS]
    named = [entry for room in rooms for entry in vars(room).items()]
    written = {value for name, value in named if name.split("_")[0] in registry.NOUNS.values() and callable(value)}
    assert set(listed) == written, "a check is in no list"
    assert len(listed) == len(set(listed))


def test_checks_name_no_plugin() -> None:
    texts = [path.read_text() for path in Path(testing.__file__).parent.glob("*.py")]
    words = [word for text in texts for word in text.split('"')[1::2]]  # what stands in quotes
    names = {name for source in registry.REGISTRIES.values() for name in source.names()}
    assert not names & set(words)


# ---------------------------------------------------------------- every loss in every space

PAIRS = [(loss, space) for loss in registry.REGISTRIES["losses"].names() for space in registry.REGISTRIES["spaces"].names()]


@pytest.mark.parametrize(("loss", "space"), PAIRS)
def test_every_loss_in_every_space_for_two_steps(loss: str, space: str) -> None:
    matching, where = make("losses", loss), make("spaces", space)
    run = testing.prepared(matching, testing.prepared(where, the_run("losses", loss)))
    plan = toy_plan(matching, where)
    made = distill(plan, run, Stopwatch(run.device))
    assert made.steps == 2 * where.num_stages(run)
    assert made.images.isfinite().all()
    assert len(made.stages) == where.num_stages(run)
    start = distill(replace_plan(plan, steps=0), run, Stopwatch(run.device))
    assert start.images.shape == made.images.shape
    assert not torch.equal(made.images, start.images), "two steps have changed nothing"
    assert torch.equal(made.images, distill(plan, run, Stopwatch(run.device)).images), "the same plan gives another set"


@pytest.mark.parametrize("labels", ["hard", "learned"])
@pytest.mark.parametrize(("loss", "space"), PAIRS)
def test_gradients_do_not_depend_on_the_chunk(loss: str, space: str, labels: str) -> None:
    matching, where = make("losses", loss), make("spaces", space)
    run = testing.prepared(matching, testing.prepared(where, the_run("losses", loss)))
    grads = []
    for chunk in (1, 4, 100):  # one image, a chunk that does not divide 6, all at once
        loop = Distillation(toy_plan(matching, where, chunk=chunk, labels=labels), run, Stopwatch(run.device))
        loop.begin()
        loop.one_step()
        grads.append({name: tensor.grad for name, tensor in loop.state.params.items() if tensor.grad is not None})
    assert set(grads[0]) >= set(where.init(run).params)
    for other in grads[1:]:
        assert other.keys() == grads[0].keys()
        for name, grad in other.items():
            # Losses that solve systems of images that are alike (krr) make much of rounding; a fault is of the order of 1.
            torch.testing.assert_close(grad, grads[0][name], rtol=1e-4, atol=1e-4 * float(grad.abs().max()))
            if where.any_chunk:
                assert torch.equal(grad, grads[0][name]), "the space says that a chunk changes no bit"


# ---------------------------------------------------------------- sound toys, and broken ones that must fail


@dataclass(frozen=True)
class TwoStages(Space):
    """Pixels as a scale times a pattern, then as they are; what is fixed goes along. With a penalty and a projection."""

    tensors: ClassVar[tuple[str, ...]] = ("scale", "pattern", "pixels")

    def init(self, run: Run) -> State:
        shape = (run.spec.num_classes * run.ipc, *run.spec.shape)
        pattern = torch.randn(shape, generator=run.rng("pattern")).to(run.device)
        scale, offset = torch.ones(shape[0], 1, 1, 1, device=run.device), torch.full(shape, 0.1, device=run.device)
        return State({"scale": scale, "pattern": pattern}, {"offset": offset})

    def classes(self, state: State, run: Run) -> Tensor:
        return torch.arange(run.spec.num_classes, device=run.device).repeat_interleave(run.ipc)

    def decode(self, state: State, index: Tensor, run: Run) -> Tensor:
        if state.stage == 0:
            return state.params["scale"][index] * state.params["pattern"][index] + state.fixed["offset"][index]
        return state.params["pixels"][index] + state.fixed["offset"][index]

    def num_stages(self, run: Run) -> int:
        return 2

    def advance(self, state: State, run: Run) -> State:
        return State({"pixels": state.params["scale"] * state.params["pattern"]}, state.fixed)

    def project_(self, state: State, run: Run) -> None:
        for tensor in state.params.values():
            tensor.clamp_(-3, 3)

    def penalty(self, state: State, memory: Memory, run: Run) -> Tensor | None:
        return 0.1 * state.params["scale"].square().sum() if state.stage == 0 else None


@dataclass(frozen=True)
class MeanPixel(Loss):
    """(mean pixel of syn - shift - mean pixel of real)^2 a class, weighted by the label; the shift is learned."""

    exact: ClassVar[bool] = True
    learned: ClassVar[tuple[str, ...]] = ("shift",)

    def init(self, run: Run) -> Memory:
        return {name: torch.zeros((), device=run.device, requires_grad=name == "shift") for name in ("shift", "steps")}

    def params(self, memory: Memory) -> dict[str, Tensor]:
        return {"shift": memory["shift"]}

    def value(self, syn: Batch, memory: Memory, run: Run) -> Tensor:
        total = syn.images.new_zeros(())
        for label in range(run.spec.num_classes):
            own = slice(label * run.ipc, (label + 1) * run.ipc)
            real = run.real(label, 4, run.rng("real", run.step, label)).mean()
            weighted = (syn.images[own].mean((1, 2, 3)) * syn.labels[own, label]).mean()
            total = total + (weighted - memory["shift"] - real).square()
        return total * (1 + memory["steps"])

    def backward(self, syn: Batch, memory: Memory, run: Run) -> Tensor:
        value = self.value(syn, memory, run)
        value.backward(inputs=[*syn.leaves, memory["shift"]])
        memory["steps"] = memory["steps"] + 1
        return value.detach()


@dataclass(frozen=True)
class Ready(GeneratorConfig):
    """A generator that stands ready."""

    kind: type[Generator] = ToyGenerator
    moves: bool = True

    def depth(self, run: Run) -> int:
        return self.kind(run.spec).depth  # type: ignore[call-arg]

    def load(self, run: Run) -> Generator:
        made = self.kind(run.spec)  # type: ignore[call-arg]
        return made.to(run.device) if self.moves else made  # type: ignore[attr-defined]


@dataclass(frozen=True)
class Noise(Dataset):
    """Noise of three classes."""

    def spec(self) -> Spec:
        return testing.toy_spec()

    def load(self, split: Split, root: Path | None) -> LabelledImages:
        rng = torch.Generator().manual_seed(len(split))
        images = torch.randint(256, (9, *self.spec().shape), generator=rng, dtype=torch.uint8)
        return LabelledImages(images, torch.arange(9) % 3)


def family(more: str = "", loss: str = "dm", settings: str = "batch_real = 4") -> Presets:
    """A small one."""
    return Presets(f'''
        schema = 1
        description = "small"
        {more}
        [[preset]]
        where = {{ loss = "{loss}", space = "pixel" }}
        set = {{ loss = {{ {settings} }}, rates = {{ pixels = 1 }} }}
        source = "nobody"
    ''')


SOUND: dict[str, tuple[Any, set[str]]] = {
    "spaces": (TwoStages(), set()),
    "losses": (MeanPixel(), set()),
    "generators": (Ready(), set()),
    "architectures": (TOY_ARCH, set()),
    "datasets": (Noise(), {"dataset_names_its_files"}),
    "presets": (family(), set()),
}


@dataclass(frozen=True)
class Elsewhere(Proxy):
    """The toy network with fixed weights for 100 classes, of which the data set names its own; `fault` says what is wrong."""

    fault: str = ""
    saw: ClassVar[Saw] = frozenset({"external-images"})

    def load(self, run: Run) -> nn.Module:
        names = tuple(map(str, range(100)))
        with nullcontext() if self.fault == "global" else run.seeded("elsewhere"):
            network = toy_network(replace(run.spec, shape=(3, 16, 16), class_names=names, class_indices=()))
        if self.fault == "clock":
            network.classifier.weight.data.mul_(torch.rand((), generator=FREE))
        outputs = {"all": range(100), "order": sorted(run.spec.class_indices)}.get(self.fault, run.spec.class_indices)
        spec = testing.toy_spec(channels=3) if self.fault == "constants" else run.spec
        made = Batchwise if self.fault in ("batch", "wait") else Adapted
        proxy = made(network, spec, (0.5,) * 3, (0.5,) * 3, outputs, 16).requires_grad_(False)
        return proxy if self.fault == "left" else send_network(proxy, run.device)


class Batchwise(Adapted):
    """Centres the logits of a batch, and looks at them."""

    def forward_head(self, features: Tensor, pre_logits: bool = False) -> Tensor:
        made = super().forward_head(features, pre_logits)
        return made - float(made.detach().mean())


SOUND["proxies"] = (Elsewhere(), set())


@dataclass(frozen=True)
class Nearness(Ranker):
    """|mean of the set - mean of the real images|^2 and a little noise of the step's; `fault` says what is wrong."""

    fault: str = ""

    def open(self, run: RankRun) -> Score:
        real, calls = torch.cat([images for images, _ in run.training_batches(5)]).mean(0), []
        if self.fault == "real":
            run.data.images.zero_()  # type: ignore[attr-defined]

        def score(syn: Batch, step: int) -> Tensor:
            calls.append(step)
            noise = 1e-3 * torch.rand((), generator=FREE if self.fault == "clock" else run.rng("noise", step))
            value = (syn.images.mean(0) - real).square().sum() + send(noise, run.device)
            if self.fault in ("images", "labels"):
                getattr(syn, self.fault).mul_(0.5)
            wrong: dict[str, Callable[[], Any]] = {
                "global": lambda: value + torch.rand(()), "memory": lambda: value * len(calls), "nan": lambda: value * torch.nan,
                "constant": lambda: torch.zeros((), device=run.device), "graph": lambda: value.requires_grad_(),
                "classes": lambda: value.expand(3), "number": lambda: float(value), "wait": lambda: value + float(value),
                "left": lambda: (syn.images - torch.zeros(run.spec.shape)).sum(),
            }  # fmt: skip
            return wrong.get(self.fault, lambda: value)()

        return score


SOUND["rankers"] = (Nearness(), set())


def refuse_small(spec: Spec) -> nn.Module:
    if min(spec.shape[1:]) < 4:
        raise ConfigError("too small")
    return toy_network(spec)


SOUND["architectures"] = (replace(TOY_ARCH, build=refuse_small), set())


@pytest.mark.parametrize("kind", SOUND)
def test_a_sound_toy_meets_every_check(kind: str) -> None:
    plugin, skipped = SOUND[kind]
    outcome = run_checks(kind, plugin, toy_run())
    assert set(outcome.skipped) == skipped
    assert len(outcome.met) == len(CHECKS[kind]) - len(skipped)


def test_run_checks_wants_the_right_type() -> None:
    with pytest.raises(AssertionError, match="kind losses must be a Loss"):
        run_checks("losses", TwoStages(), toy_run())


def broken(base: type[Any], methods: Mapping[str, Any]) -> Any:
    kind: type[Any] = type("Broken", (base,), {"__doc__": "Broken.", **methods})
    return dataclass(frozen=True)(kind)()


def broken_space(**methods: Any) -> Space:
    return broken(TwoStages, methods)


def broken_loss(**methods: Any) -> Loss:
    return broken(MeanPixel, methods)


def broken_generator(**methods: Any) -> GeneratorConfig:
    return Ready(type("Broken", (ToyGenerator,), methods))


def broken_dataset(**methods: Any) -> Dataset:
    return broken(Noise, methods)


def after(method: Callable[..., Any], change: Callable[[Any], Any]) -> Callable[..., Any]:
    """The method with its result changed."""
    return lambda *arguments: change(method(*arguments))


def renamed(state: State) -> State:
    return State({**state.params, "extra": torch.ones(1)}, state.fixed, state.stage)


def finite_or_nothing(images: Tensor) -> Tensor:
    return images if bool(images.isfinite().all()) else images * 0


def on_the_host(state: State) -> State:
    return State({name: tensor.cpu() for name, tensor in state.params.items()}, state.fixed)


def noisy_init(self: TwoStages, run: Run) -> State:
    state = TwoStages.init(self, run)
    return State({**state.params, "pattern": torch.randn_like(state.params["pattern"])}, state.fixed)


def by_position(self: TwoStages, state: State, index: Tensor, run: Run) -> Tensor:
    return TwoStages.decode(self, state, torch.arange(len(index)) % len(state.fixed["offset"]), run)


def by_step(self: TwoStages, state: State, index: Tensor, run: Run) -> Tensor:
    return TwoStages.decode(self, state, index, run) + run.step


def remembering(seen: list[Tensor]) -> Callable[..., Tensor]:
    def decode(self: TwoStages, state: State, index: Tensor, run: Run) -> Tensor:
        seen.append(state.params[min(state.params)])  # keeps something that is not in the state
        return TwoStages.decode(self, state, index, run) + (0.0 if seen[-1] is seen[0] else 1.0)

    return decode


def frozen_scale(self: TwoStages, state: State, index: Tensor, run: Run) -> Tensor:
    if state.stage == 0:
        return state.params["pattern"][index] + 0 * state.params["scale"][index]
    return TwoStages.decode(self, state, index, run)


def halving(self: TwoStages, state: State, run: Run) -> None:
    for tensor in state.params.values():
        tensor.mul_(0.5)


FREE = torch.Generator().manual_seed(0)  # goes on from network to network
SAID = "must be a frozenset of words among train, external-images, "

BROKEN_SPACES: dict[str, list[tuple[str, Space, str]]] = {
    "space_says_what_it_saw": [("list", broken_space(saw=["train"]), SAID)],
    "space_starts_the_same_every_time": [("global", broken_space(init=noisy_init), "global generator")],
    "space_names_its_tensors": [
        ("unnamed", broken_space(init=after(TwoStages.init, renamed)), "does not name: extra"),
        ("later", broken_space(tensors=("scale", "pattern")), "does not name: pixels"),
    ],
    "space_sorts_its_classes": [
        ("order", broken_space(classes=after(TwoStages.classes, lambda found: found.flip(0))), "must be sorted"),
        ("counts", broken_space(classes=after(TwoStages.classes, lambda found: found[1:])), "same number of images"),
        ("dtype", broken_space(classes=after(TwoStages.classes, Tensor.float)), "must be int64"),
    ],
    "space_decodes_images": [
        ("shape", broken_space(decode=after(TwoStages.decode, lambda images: images[:, :, 1:])), "decode must give"),
        ("nan", broken_space(decode=after(TwoStages.decode, lambda images: images / 0)), "not all finite"),
    ],
    "space_decodes_by_index": [
        ("position", broken_space(decode=by_position), "permuted"),
        ("batch", broken_space(decode=after(TwoStages.decode, lambda images: images - images.sum(0))), "index"),
        ("step", broken_space(decode=by_step), "at another step"),
    ],
    "space_state_survives_a_file": [("memory", broken_space(decode=remembering([])), "saved and read")],
    "space_passes_gradients": [
        ("cut", broken_space(decode=after(TwoStages.decode, Tensor.detach)), "cuts the graph"),
        ("zero", broken_space(decode=frozen_scale), "'scale' in stage 0 is zero"),
    ],
    "space_keeps_images_when_it_advances": [
        (
            "moved",
            broken_space(advance=after(TwoStages.advance, lambda s: State({"pixels": s.params["pixels"] + 1}, s.fixed))),
            "changes the images",
        ),
    ],
    "space_stays_on_its_device": [
        ("host", broken_space(init=after(TwoStages.init, on_the_host)), "must be on the run's device, cuda:0, and is on cpu"),
        ("classes", broken_space(classes=after(TwoStages.classes, Tensor.cpu)), "classes must be on the run's device"),
        ("wait", broken_space(decode=after(TwoStages.decode, finite_or_nothing)), "a step in stage 0 makes the host wait"),
    ],
    "space_heeds_the_budget": [
        ("number", broken_space(num_images=lambda self, run: 7), "num_images says 7 under the budget of images, and there are 6"),
        ("name", broken_space(decoder=lambda self, state: ("net",)), "`decoder` names what is no tensor of stage 0: net"),
        (
            "full",
            broken_space(
                num_images=lambda self, run: 2 * TwoStages.num_images(self, run),
                classes=after(TwoStages.classes, lambda found: found.repeat_interleave(2)),
            ),
            "stage 0 takes 3072 bytes, and ipc 2 allows 1536: num_images must heed run.budget",
        ),
    ],
    "space_projects_once": [("halving", broken_space(project_=halving), "project_ applied once")],
    "space_penalty_is_a_number": [
        ("vector", broken_space(penalty=lambda self, state, memory, run: next(iter(state.params.values())).flatten()), "0-d"),
        ("detached", broken_space(penalty=lambda self, state, memory, run: torch.ones(())), "has no graph"),
    ],
}


def doubled(self: MeanPixel, syn: Batch, memory: Memory, run: Run) -> Tensor:
    return 2 * MeanPixel.backward(self, syn, memory, run)


def attached(self: MeanPixel, syn: Batch, memory: Memory, run: Run) -> Tensor:
    MeanPixel.backward(self, syn, memory, run)
    return syn.images.sum()


def global_noise(self: MeanPixel, syn: Batch, memory: Memory, run: Run) -> Tensor:
    return MeanPixel.backward(self, syn, memory, run) + torch.rand(())


def overwriting(self: MeanPixel, syn: Batch, memory: Memory, run: Run) -> Tensor:
    for leaf in syn.leaves:
        leaf.grad = None
    return MeanPixel.backward(self, syn, memory, run)


def in_place(self: MeanPixel, syn: Batch, memory: Memory, run: Run) -> Tensor:
    value = MeanPixel.backward(self, syn, memory, run)
    syn.images.detach().mul_(0.5)
    return value


def elsewhere(self: MeanPixel, syn: Batch, memory: Memory, run: Run) -> Tensor:
    memory["hidden"] = torch.zeros(2, requires_grad=True)
    memory["hidden"].grad = torch.ones(2)
    return MeanPixel.backward(self, syn, memory, run)


def unasked(self: MeanPixel, syn: Batch, memory: Memory, run: Run) -> Tensor:
    value = MeanPixel.backward(self, syn, memory, run)
    syn.labels.grad = torch.ones_like(syn.labels)
    return value


def remembers(self: MeanPixel, syn: Batch, memory: Memory, run: Run) -> Tensor:
    memory["net"] = [1, 2]  # type: ignore[assignment]
    return MeanPixel.backward(self, syn, memory, run)


def counting(count: dict[int, int]) -> Callable[..., Tensor]:
    def backward(self: MeanPixel, syn: Batch, memory: Memory, run: Run) -> Tensor:
        count[id(memory)] = count.get(id(memory), 0) + 1
        return MeanPixel.backward(self, syn, memory, run) * count[id(memory)]

    return backward


def uniform(self: MeanPixel, images: Tensor, memory: Memory, run: Run) -> Tensor:
    return torch.full((len(images), run.spec.num_classes), 1 / run.spec.num_classes)


def moody(self: MeanPixel, images: Tensor, memory: Memory, run: Run) -> Tensor:
    return torch.rand(len(images), run.spec.num_classes, generator=FREE).softmax(1)


def left_behind(self: MeanPixel, run: Run) -> Memory:
    return {"shift": torch.zeros(1, requires_grad=True), "steps": torch.zeros(())}


def masked(self: MeanPixel, syn: Batch, memory: Memory, run: Run) -> Tensor:
    return MeanPixel.backward(self, syn, memory, run) + 0 * syn.images.detach()[syn.classes == 0].sum()


def from_the_host(self: MeanPixel, syn: Batch, memory: Memory, run: Run) -> Tensor:
    return MeanPixel.backward(self, syn, memory, run) + torch.tensor([0.0], device=run.device).sum()


def drawn_there(self: MeanPixel, syn: Batch, memory: Memory, run: Run) -> Tensor:
    noise = torch.rand(3, generator=run.rng("noise", run.step), device=run.device)
    return MeanPixel.backward(self, syn, memory, run) + 0 * noise.sum()


def greedy(self: MeanPixel, syn: Batch, memory: Memory, run: Run) -> Tensor:
    value = MeanPixel.backward(self, syn, memory, run)
    assert syn.images.grad is not None
    syn.images.grad.mul_(1 if syn.whole is None else 2)
    return value


@dataclass(frozen=True)
class Boastful(Resource):
    """Something trained on what there is no word for."""

    saw: ClassVar[Any] = frozenset({"train", "imagenet"})

    def build(self, run: Run) -> dict[str, Tensor]:
        return {}


BROKEN_LOSSES: dict[str, list[tuple[str, Loss, str]]] = {
    "loss_says_what_it_saw": [
        ("word", broken_loss(saw=frozenset({"imagenet"})), "got also imagenet"),
        ("resource", broken_loss(needs=lambda self, run: (Boastful(),)), "`saw` of Boastful must be .*, got also imagenet"),
    ],
    "loss_gradient_is_the_slope": [("doubled", broken_loss(backward=doubled), "gradient of the images is wrong")],
    "loss_gives_a_detached_number": [
        ("attached", broken_loss(backward=attached), "detached"),
        ("vector", broken_loss(backward=after(MeanPixel.backward, lambda value: value[None])), "0-d"),
        ("nan", broken_loss(backward=after(MeanPixel.backward, lambda value: value * torch.nan)), "the value is nan"),
    ],
    "loss_repeats_itself": [("global", broken_loss(backward=global_noise), "global generator")],
    "loss_adds_to_gradients": [("overwrites", broken_loss(backward=overwriting), "overwrites the .grad of the images")],
    "loss_touches_only_its_leaves": [
        ("in-place", broken_loss(backward=in_place), "changes the images in place"),
        ("memory", broken_loss(backward=elsewhere), "leaves a gradient on 'hidden'"),
        ("labels", broken_loss(backward=unasked), "labels that want none"),
    ],
    "loss_memory_is_tensors": [
        ("list", broken_loss(backward=remembers), "holds 'net': list"),
        ("unnamed", broken_loss(learned=()), "does not name 'shift'"),
        ("copy", broken_loss(params=lambda self, memory: {"shift": memory["shift"] + 0}), r"memory\['shift'\] itself"),
    ],
    "loss_goes_on_from_a_checkpoint": [("counts", broken_loss(backward=counting({})), "kept elsewhere")],
    "loss_teacher_gives_labels": [
        ("unsaid", broken_loss(relabel=uniform), "says relabels = never"),
        ("missing", broken_loss(relabels="last"), "has no relabel"),
        ("shape", broken_loss(relabels="last", relabel=after(uniform, lambda made: made[1:])), "must give"),
        ("sum", broken_loss(relabels="always", relabel=after(uniform, lambda made: 2 * made)), "do not sum to 1"),
        ("sign", broken_loss(relabels="last", relabel=after(uniform, lambda made: made - 0.5)), "negative"),
        ("global", broken_loss(relabels="last", relabel=moody), "other labels the second time"),
    ],
    "loss_stays_on_its_device": [
        ("mask", broken_loss(backward=masked), "a step makes the host wait for the device: test_contracts.py"),
        ("number", broken_loss(backward=after(MeanPixel.backward, lambda value: value * float(value))), "_local_scalar_dense"),
        ("host", broken_loss(backward=from_the_host), "waits for copies to the device"),
        ("elsewhere", broken_loss(init=left_behind), "mixes tensors on cpu and cuda:0"),
        ("value", broken_loss(backward=after(MeanPixel.backward, Tensor.cpu)), "the value must be on the run's device"),
        ("generator", broken_loss(backward=drawn_there), "from a generator of cpu"),
    ],
    "loss_picks_what_it_needs": [
        ("dtype", broken_loss(picks=lambda self, num, run: torch.ones(num)), "must give int64"),
        ("twice", broken_loss(picks=lambda self, num, run: torch.tensor([0, 0])), "at most once"),
        ("outside", broken_loss(picks=lambda self, num, run: torch.tensor([num])), "each of 0..5"),
        ("moody", broken_loss(picks=lambda self, num, run: torch.randperm(num, generator=FREE)), "other images the second time"),
        ("too few", broken_loss(picks=lambda self, num, run: torch.tensor([0, 2, 4])), "give another value"),
        ("gradient", broken_loss(picks=lambda self, num, run: torch.arange(num), backward=greedy), "gradient of the images"),
    ],
}


def forgets_start(self: ToyGenerator, w: Tensor, hidden: Tensor | None, start: int, stop: int) -> Tensor:
    return ToyGenerator.synthesize(self, w, hidden, max(start - 1, 0), stop)


def only_one(self: ToyGenerator, classes: Tensor, rng: torch.Generator) -> Tensor:
    w = ToyGenerator.latents(self, classes, rng)
    return w if len(classes) > 2 else w[:1].repeat(len(classes), 1, 1)


def deaf(self: ToyGenerator, w: Tensor, hidden: Tensor | None, start: int, stop: int) -> Tensor:
    return ToyGenerator.synthesize(self, w if hidden is None else 0 * w.detach() + w.sum() * 0, hidden, start, stop)


def hears_nothing(self: ToyGenerator, w: Tensor, hidden: Tensor | None, start: int, stop: int) -> Tensor:
    return ToyGenerator.synthesize(self, w if w.numel() else w.new_zeros(len(w), self.depth, 3), hidden, start, stop)


def with_one_at_3(made: Tensor) -> Tensor:
    return made.flatten(1).index_fill(1, torch.tensor(0, device=made.device), 3.0).view_as(made)


class Thawed(nn.Module, ToyGenerator):
    """Its weights want gradients."""

    def __init__(self, spec: Spec) -> None:
        nn.Module.__init__(self)
        ToyGenerator.__init__(self, spec)
        self.gain = nn.Parameter(torch.ones(()))


@dataclass(frozen=True)
class Vain(Ready):
    """Says that it saw a text."""

    saw: ClassVar[Any] = "train"


BROKEN_GENERATORS: dict[str, list[tuple[str, GeneratorConfig, str]]] = {
    "generator_says_what_it_saw": [("text", Vain(), SAID)],
    "generator_layers_compose": [("twice", broken_generator(synthesize=forgets_start), "0 to 1 and then 1 to 13")],
    "generator_gives_pixels": [
        ("range", broken_generator(synthesize=after(ToyGenerator.synthesize, lambda made: 2 * made)), r"\[0, 1\]"),
        ("far", broken_generator(synthesize=after(ToyGenerator.synthesize, with_one_at_3)), "to 3, 9[0-9]% of them inside"),
        ("nan", broken_generator(synthesize=after(ToyGenerator.synthesize, lambda made: made * math.nan)), r"\[0, 1\]"),
        (
            "batch",
            broken_generator(synthesize=after(ToyGenerator.synthesize, lambda made: made / made.max())),
            "depends on the others",
        ),
        ("shape", broken_generator(synthesize=after(ToyGenerator.synthesize, lambda made: made[:, :, 1:])), "must give"),
    ],
    "generator_draws_codes_from_its_stream": [
        ("global", broken_generator(latents=after(ToyGenerator.latents, torch.randn_like)), "global generator"),
        ("constant", broken_generator(latents=after(ToyGenerator.latents, torch.ones_like)), "does not use rng"),
        ("one code", broken_generator(latents=after(ToyGenerator.latents, lambda w: w[:, 0])), "must be"),
        ("one more", broken_generator(num_codes=property(lambda self: self.depth + 1)), r"\[6, 14, D\], got \[6, 13, 3\]"),
        ("few", broken_generator(num_latents=lambda self, label: 2, latents=only_one), "drawn at once must all be different"),
    ],
    "generator_says_where_codes_are_read": [
        ("never", broken_generator(reads_codes=lambda self, start: start > 2), "none does later"),
        ("not read", broken_generator(synthesize=deaf), "get no gradient from layer 0 on"),
        ("read", broken_generator(reads_codes=lambda self, start: start < 12, synthesize=hears_nothing), "read no codes, and do"),
    ],
    "generator_stays_on_its_device": [
        ("host", broken_generator(latents=after(ToyGenerator.latents, Tensor.cpu)), "the codes must be on the run's device"),
        ("left", Ready(ToyGenerator, moves=False), "mixes tensors on cpu and cuda:0"),
        ("wait", broken_generator(synthesize=after(ToyGenerator.synthesize, finite_or_nothing)), "synthesize makes the host"),
    ],
    "generator_is_frozen": [
        (
            "cut",
            broken_generator(synthesize=after(ToyGenerator.synthesize, lambda made: made.detach().requires_grad_())),
            "no gradient",
        ),
        ("thawed", Ready(Thawed), "must not want gradients: gain"),
    ],
}


class Headless(nn.Module):
    """`forward` adds something that `forward_head` does not know; or wrong shapes; or constants for weights."""

    def __init__(self, spec: Spec, fault: str) -> None:
        super().__init__()
        self.inner, self.fault = refuse_small(spec), fault
        if fault == "constant":
            for parameter in self.parameters():
                nn.init.constant_(parameter, 0.1)
        if fault == "clock":
            self.inner.classifier.weight.data.mul_(torch.rand((), generator=FREE))

    def forward_features(self, images: Tensor) -> Tensor:
        features = self.inner.forward_features(images)
        return Once.apply(features) if self.fault == "hard" else features

    def forward_head(self, features: Tensor, pre_logits: bool = False) -> Tensor:
        if pre_logits and self.fault == "maps":
            return features
        return self.inner.forward_head(features, pre_logits)

    def forward(self, images: Tensor) -> Tensor:
        logits = self.forward_head(self.forward_features(images))
        if self.fault == "extra":
            return logits + 1
        if self.fault == "left":
            return logits + torch.zeros(logits.shape[1])
        if self.fault == "wait":
            return logits * float(logits.isfinite().all())
        return logits - logits.mean(0) if self.fault == "batch" else logits


class Once(torch.autograd.Function):
    """A function with a first derivative and no second one."""

    @staticmethod
    def forward(ctx: Any, images: Tensor) -> Tensor:
        return images.clone()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad.clone()


def broken_arch(fault: str) -> Arch:
    return replace(TOY_ARCH, build=lambda spec: Headless(spec, fault))


BROKEN_ARCHITECTURES: dict[str, list[tuple[str, Arch, str]]] = {
    "architecture_has_its_shapes": [("maps", broken_arch("maps"), "pre_logits")],
    "architecture_is_head_of_features": [
        ("extra", broken_arch("extra"), "forward_head of forward_features"),
        ("batch", broken_arch("batch"), "forward_head of forward_features"),
    ],
    "architecture_has_second_derivatives": [("hard", broken_arch("hard"), "double_backward = False")],
    "architecture_refuses_smaller_images": [
        ("takes", replace(TOY_ARCH, build=refuse_small, min_size=6), "takes 5 x 5 px as well"),
        (
            "crashes",
            replace(TOY_ARCH, build=lambda spec: nn.Linear(spec.shape[1] // 4, -1)),
            "must raise ConfigError, and raises",
        ),
        ("rate", replace(TOY_ARCH, lr=0.0), "lr must be positive"),
    ],
    "architecture_stays_on_its_device": [
        ("left", broken_arch("left"), "mixes tensors on cpu and cuda:0"),
        ("wait", broken_arch("wait"), "a training step makes the host wait"),
    ],
    "architecture_starts_from_the_global_stream": [
        ("constant", broken_arch("constant"), "another seed gives the same weights"),
        ("clock", broken_arch("clock"), "gives another 'inner.classifier.weight'"),
    ],
}


def changed(**fields: Any) -> Callable[[LabelledImages], LabelledImages]:
    return lambda data: replace(data, **{name: change(getattr(data, name)) for name, change in fields.items()})


BROKEN_DATASETS: dict[str, list[tuple[str, Dataset, str]]] = {
    "dataset_spec_is_sound": [
        ("std", broken_dataset(spec=lambda self: replace(testing.toy_spec(), std=(0.1, 0.1))), "must have 1 entries"),
        ("names", broken_dataset(spec=lambda self: replace(testing.toy_spec(), class_names=("a", "a", "b"))), "distinct"),
    ],
    "dataset_fits_its_spec": [
        ("float", broken_dataset(load=after(Noise.load, changed(images=Tensor.float))), "must be uint8"),
        ("shape", broken_dataset(load=after(Noise.load, changed(images=lambda images: images[..., 1:]))), "the spec says"),
        ("labels", broken_dataset(load=after(Noise.load, changed(labels=lambda labels: labels[1:]))), "labels must be int64"),
    ],
    "dataset_covers_its_classes": [
        ("missing", broken_dataset(load=after(Noise.load, changed(labels=lambda labels: labels % 2))), "must be all of"),
    ],
    "dataset_loads_the_same_every_time": [
        (
            "order",
            broken_dataset(load=after(Noise.load, changed(images=lambda images: images[torch.randperm(9, generator=FREE)]))),
            "another the second time",
        ),
    ],
    "dataset_names_its_files": [
        ("missing", broken_dataset(files=lambda self, root: (Path("not-there.bin"),)), "no file: not-there.bin"),
        ("twice", broken_dataset(files=lambda self, root: (Path(__file__),) * 2), "names a file twice"),
    ],
    "dataset_says_whether_it_is_prepared": [
        ("never", broken_dataset(is_prepared=lambda self, root: False), "must be True once a split was loaded, got False"),
        ("no bool", broken_dataset(is_prepared=lambda self, root: 1), "must be True once a split was loaded, got 1"),
    ],
}

BROKEN_PRESETS: dict[str, list[tuple[str, Presets, str]]] = {
    "preset_family_can_be_read": [
        ("no TOML", Presets("a = = 1"), "is not valid TOML"),
        ("key", family("more = 1"), "it has no key 'more'"),
        ("silent", Presets(family().text.replace('"small"', '""')), "needs a description"),
    ],
    "preset_fits_the_plugins": [
        ("loss", family(loss="dmm"), "entry 1: unknown loss 'dmm'"),
        ("setting", family(settings="batch_rael = 4"), "entry 1: loss 'dm' has no setting 'batch_rael'"),
        ("refused", family(settings="batch_real = 0"), "'batch_real' must be at least 1"),
        ("rate", Presets(family().text.replace("pixels =", "pixel =")), "no tensor of its losses and spaces is called 'pixel'"),
        (
            "unknown",
            Presets(family().text + "unknown = { \"loss.batch\" = 'why' }"),
            "'unknown' names 'loss.batch', and loss 'dm' has no such setting",
        ),
    ],
    "preset_names_a_known_protocol": [
        ("protocol", Presets(family().text + "protocol = 'glad-9'"), "unknown protocol 'glad-9'"),
    ],
}


@dataclass(frozen=True)
class FirstReal(Baseline):
    """The first real images of every class; `change` does something to the set before it is given away."""

    change: Callable[[Batch, Run], Batch] = lambda batch, run: batch

    def build(self, run: Run) -> Batch:
        num = run.spec.num_classes
        images = torch.cat([run.real(label, run.ipc, run.rng("first", label)) for label in range(num)])
        classes = torch.arange(num, device=run.device).repeat_interleave(run.ipc)
        return self.change(Batch(images, torch.eye(num, device=run.device)[classes], classes), run)


def with_batch(**changes: Callable[[Tensor], Tensor]) -> FirstReal:
    def change(batch: Batch, run: Run) -> Batch:
        return replace(batch, **{name: made(getattr(batch, name)) for name, made in changes.items()})

    return FirstReal(change)


def darkened(batch: Batch, run: Run) -> Batch:
    run.data.images.div_(2, rounding_mode="floor")  # type: ignore[attr-defined]
    return batch


@dataclass(frozen=True)
class Silent(FirstReal):
    """Says that it saw nothing, in no set."""

    saw: ClassVar[Any] = None


BROKEN_BASELINES: dict[str, list[tuple[str, Baseline, str]]] = {
    "baseline_says_what_it_saw": [("none", Silent(), f"{SAID}.*got None")],
    "baseline_builds_a_set": [
        ("empty", with_batch(images=lambda images: images[:0]), "at least one image"),
        ("shape", with_batch(images=lambda images: images[..., 1:]), "images must be"),
        ("bytes", with_batch(images=lambda images: images.to(torch.uint8)), "normalised floats"),
        ("nan", with_batch(images=lambda images: images * float("nan")), "NaN"),
        ("logits", with_batch(labels=lambda labels: 2 * labels), "probabilities"),
        ("classes", with_batch(classes=lambda classes: classes[1:]), "classes must be"),
    ],
    "baseline_sorts_its_classes": [
        ("turned", with_batch(classes=lambda classes: classes.flip(0)), "must be sorted"),
        ("beyond", with_batch(classes=lambda classes: classes + 1), "none of the data set's"),
    ],
    "baseline_repeats_itself": [
        ("clock", with_batch(images=lambda images: images + torch.rand(1, generator=FREE)), "gives other images"),
        ("global", with_batch(images=lambda images: images + torch.rand(1)), "global generator"),
    ],
    "baseline_stays_on_its_device": [
        ("host", with_batch(images=lambda images: images + torch.zeros(images.shape)), "mixes tensors on cpu and cuda:0"),
    ],
    "baseline_keeps_the_real_images": [("darkened", FirstReal(darkened), "changed the real images")],
}

SMOKE = registry.protocols.make("smoke-1").text
BROKEN_PROTOCOLS: dict[str, list[tuple[str, ProtocolText, str]]] = {
    "protocol_can_be_read": [
        ("no TOML", ProtocolText("a = = 1"), "not valid TOML"),
        ("key", ProtocolText(SMOKE.replace("[judging]", "[judging]\nmore = 1")), "unknown field `more`"),
        ("epochs", ProtocolText(SMOKE.replace("epochs = 2", "epochs = 0")), "at least 1 epoch"),
        ("silent", ProtocolText(re.sub('description = ".*"', 'description = ""', SMOKE)), "needs a description"),
    ],
    "protocol_names_installed_networks": [
        ("network", ProtocolText('networks = ["convnte"]\n' + SMOKE), "unknown architecture 'convnte'"),
    ],
}


@dataclass(frozen=True)
class Idle(ExecutorConfig):
    """An executor that does nothing; `fault` says what it gets wrong."""

    fault: str

    def open(self, site: Site) -> Executor:
        return IdleExecutor(self.fault)


class IdleExecutor(Executor):
    def __init__(self, fault: str) -> None:
        self.fault = fault

    def submit(self, jobs: Sequence[Job], request: Request) -> list[str]:
        return ["handle"] if self.fault == "handle" else []

    def poll(self, handles: Sequence[str], seconds: float) -> list[JobState]:
        return [JobState("waiting" if self.fault == "waits" else "lost") for _ in handles]

    def cancel(self, handles: Sequence[str]) -> None:
        return


BROKEN_EXECUTORS: dict[str, list[tuple[str, ExecutorConfig, str]]] = {
    "executor_takes_no_jobs_too": [("handle", Idle("handle"), "must give no handles")],
    "executor_knows_no_strange_handle": [("waits", Idle("waits"), "must be lost")],
}


@dataclass(frozen=True)
class Secretive(Elsewhere):
    """Says what there is no word for."""

    saw: ClassVar[Any] = frozenset({"imagenet"})


BROKEN_PROXIES: dict[str, list[tuple[str, Proxy, str]]] = {
    "proxy_names_the_classes": [
        ("all", Elsewhere("all"), "the data set's classes, .*, got .*100"),
        ("batch", Elsewhere("batch"), "depend on the others"),
    ],
    "proxy_follows_the_data_set": [
        ("order", Elsewhere("order"), "another normalisation or order"),
        ("constants", Elsewhere("constants"), "another normalisation or order"),
    ],
    "proxy_is_the_same_every_time": [
        ("global", Elsewhere("global"), "global generator"),
        ("clock", Elsewhere("clock"), "other logits"),
    ],
    "proxy_stays_on_its_device": [
        ("left", Elsewhere("left"), "mixes tensors on cpu and cuda:0"),
        ("wait", Elsewhere("wait"), "a feature distance makes the host wait"),
    ],
    "proxy_says_what_it_saw": [("word", Secretive(), "got also imagenet")],
}


@dataclass(frozen=True)
class SecretiveToo(Nearness):
    """Says what there is no word for."""

    saw: ClassVar[Any] = frozenset({"imagenet"})


BROKEN_RANKERS: dict[str, list[tuple[str, Ranker, str]]] = {
    "ranker_scores_a_set": [
        ("classes", Nearness("classes"), r"must be a tensor \[\], got"),
        ("number", Nearness("number"), r"must be a tensor \[\], got"),
        ("nan", Nearness("nan"), "must be a finite number"),
        ("graph", Nearness("graph"), "must have no graph"),
    ],
    "ranker_tells_sets_apart": [("constant", Nearness("constant"), "very different sets all have the score 0.0")],
    "ranker_repeats_itself": [
        ("global", Nearness("global"), "global generator"),
        ("memory", Nearness("memory"), "asked again, it gives another score"),
        ("clock", Nearness("clock"), "asked again, it gives another score"),
    ],
    "ranker_leaves_images_alone": [
        ("images", Nearness("images"), "has changed the set's images"),
        ("labels", Nearness("labels"), "has changed the set's labels"),
        ("real", Nearness("real"), "has changed the real images"),
    ],
    "ranker_stays_on_its_device": [
        ("left", Nearness("left"), "mixes tensors on cpu and cuda:0"),
        ("wait", Nearness("wait"), "a score makes the host wait"),
    ],
    "ranker_says_what_it_saw": [("word", SecretiveToo(), "got also imagenet")],
}


@dataclass(frozen=True)
class Brought(Asset):
    """A file that is copied; `fault` says what it gets wrong."""

    fault: str = ""

    def facts(self) -> AssetFacts:
        files = {"outside": ("../x",), "twice": ("a/source",)}.get(self.fault, ("a/made",))
        return AssetFacts("a file", "" if self.fault == "licence" else "free", "a/source", files)

    def prepare(self, source: Path, sha256: str, root: Path) -> tuple[str, ...]:
        if self.fault == "leaves":
            (root / "left").touch()
        if self.fault != "takes all":
            raise DataError("it is another file.")
        return ()

    def check(self, root: Path) -> None:
        if self.fault == "writes":
            (root / "made").touch()
        if self.fault != "never misses":
            raise DataError("it is missing.")


BROKEN_ASSETS: dict[str, list[tuple[str, Asset, str]]] = {
    "asset_says_where_it_belongs": [
        ("licence", Brought("licence"), "what is known of its terms"),
        ("outside", Brought("outside"), "inside of the data folder"),
        ("twice", Brought("twice"), "names a file twice"),
    ],
    "asset_misses_its_files": [
        ("never-misses", Brought("never misses"), "must raise DataError where its files are missing"),
        ("writes", Brought("writes"), "writes into the data folder"),
    ],
    "asset_refuses_other_files": [
        ("takes-all", Brought("takes all"), "must raise DataError for a file of something else"),
        ("leaves", Brought("leaves"), "leaves files behind"),
    ],
}

BROKEN: dict[str, dict[str, list[Any]]] = {
    "proxies": BROKEN_PROXIES,
    "rankers": BROKEN_RANKERS,
    "spaces": BROKEN_SPACES,
    "losses": BROKEN_LOSSES,
    "generators": BROKEN_GENERATORS,
    "architectures": BROKEN_ARCHITECTURES,
    "datasets": BROKEN_DATASETS,
    "baselines": BROKEN_BASELINES,
    "presets": BROKEN_PRESETS,
    "protocols": BROKEN_PROTOCOLS,
    "executors": BROKEN_EXECUTORS,
    "assets": BROKEN_ASSETS,
}


def test_every_check_is_shown_to_fail() -> None:
    for kind, checks in CHECKS.items():
        assert {check.__name__ for check in checks} == set(BROKEN[kind])


@pytest.mark.parametrize(
    ("check", "plugin", "sentence"),
    [
        pytest.param(check, plugin, sentence, id=f"{check.__name__}-{label}")
        for kind, checks in CHECKS.items()
        for check in checks
        for label, plugin, sentence in BROKEN[kind][check.__name__]
    ],
)
def test_a_broken_toy_fails(check: testing.Check, plugin: Any, sentence: str) -> None:
    with pytest.raises(AssertionError, match=sentence):
        check(plugin, toy_run())


def test_a_loss_that_states_an_approximation_skips_aloud() -> None:
    outcome = run_checks("losses", broken_loss(exact=False, backward=doubled), toy_run())
    assert set(outcome.skipped) == {"loss_gradient_is_the_slope"}
    assert "exact = False" in outcome.skipped["loss_gradient_is_the_slope"]


def test_an_architecture_without_second_derivative_skips_aloud() -> None:
    outcome = run_checks("architectures", replace(broken_arch("hard"), double_backward=False), toy_run())
    assert outcome.skipped == {"architecture_has_second_derivatives": "the architecture says double_backward = False"}


def test_missing_data_skip_with_their_sentence() -> None:
    def missing(self: Noise, split: Split, root: Path | None) -> LabelledImages:
        raise DataError("dataset 'noise' is not there.")

    outcome = run_checks("datasets", broken_dataset(load=missing), toy_run())
    assert outcome.met == ("dataset_spec_is_sound",)
    assert set(outcome.skipped.values()) == {"dataset 'noise' is not there."}


# ---------------------------------------------------------------- the toys themselves


def test_what_needs_declares_is_built_and_nothing_else() -> None:
    @dataclass(frozen=True)
    class Seven(Resource):
        def build(self, run: Run) -> dict[str, Tensor]:
            return {"seven": torch.tensor(7.0)}

    @dataclass(frozen=True)
    class Asking(MeanPixel):
        declared: bool = True

        def needs(self, run: Run) -> tuple[Resource, ...]:
            return (Seven(),) if self.declared else ()

        def backward(self, syn: Batch, memory: Memory, run: Run) -> Tensor:
            assert "seven" in run.resource(Seven())
            return MeanPixel.backward(self, syn, memory, run)

    assert len(run_checks("losses", Asking(), toy_run()).met) == len(CHECKS["losses"])
    with pytest.raises(Exception, match="not declared"):
        run_checks("losses", Asking(declared=False), toy_run())


def test_a_space_that_uses_a_generator_must_say_so() -> None:
    def init(self: TwoStages, run: Run) -> State:
        assert run.generator.depth
        return TwoStages.init(self, run)

    with pytest.raises(ConfigError, match="names no generator"):
        run_checks("spaces", broken_space(init=init), toy_run())
    run_checks("spaces", broken_space(init=init, needs_generator=True), toy_run())


def test_toy_run_in_double() -> None:
    run = toy_run(channels=3, double=True)
    assert run.real(0, 2, run.rng("x")).dtype == torch.float64
    assert {parameter.dtype for parameter in run.network("x").parameters()} == {torch.float64}
    single = toy_run(channels=3)
    for a, b in zip(single.network("x").parameters(), run.network("x").parameters(), strict=True):
        assert torch.equal(a.double(), b), "the same weights, drawn in float32"
    both = [one.real(1, 5, one.rng("x")).double() for one in (single, run)]
    torch.testing.assert_close(*both, rtol=0, atol=1e-6)
