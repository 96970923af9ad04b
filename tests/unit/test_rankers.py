"""Rankers as plugins: ours against their formulas, what suites say of them, what they may ask for, and those of strangers."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import in_process
import pytest
import torch
from msgspec.structs import replace as replace_plan
from ranking import feature_distance, opened, validation_error

from ddbench import schema
from ddbench.api import Batch, Ranker, RankRun, Score, Seen
from ddbench.cli import main
from ddbench.compute.rank import RankingRun, needs, open_ranker, scores
from ddbench.compute.run import DistillRun
from ddbench.errors import ConfigError, Faults, PluginError
from ddbench.grid import runner
from ddbench.ops.gated import class_means, gated_features, layer_of
from ddbench.plan import SetPlan, in_plan
from ddbench.refs import PluginRef
from ddbench.results.contents import read_contents
from ddbench.results.store import Store
from ddbench.suite import load as grid
from ddbench.testing import Given, toy_plan, toy_run
from ddbench_plugins.architectures.vit import vit
from ddbench_plugins.losses.dm import DistributionMatching
from ddbench_plugins.rankers.feature_distance import FeatureDistance
from ddbench_plugins.rankers.released import ReleasedDistance
from ddbench_plugins.rankers.validation import Validation
from ddbench_plugins.spaces.pixel import Pixel

CLASSES = torch.arange(3).repeat_interleave(2)


@pytest.fixture
def run() -> DistillRun:
    return toy_run(channels=3)


def some_set(run: DistillRun) -> Batch:
    images = torch.randn(6, *run.spec.shape, generator=run.rng("images"))
    return Batch(images, torch.eye(3).repeat_interleave(2, 0), CLASSES)


# ---------------------------------------------------------------- formulas


@pytest.mark.parametrize("gradient", ["grad-cam", "elementwise"])
@pytest.mark.parametrize("layer", ["", "features.2"])
def test_the_l2_metric_sums_norms_over_classes(run: DistillRun, gradient: Any, layer: str) -> None:
    network, syn = run.network("proxy").eval().requires_grad_(False), some_set(run)
    cut, norms = layer_of(network, layer), []
    for label in range(3):
        real, own = run.read(label, None), syn.images[label == CLASSES]
        of_real = gated_features(network, real, torch.full((len(real),), label), gradient, cut).mean(0)
        norms.append((of_real - gated_features(network, own, torch.full((2,), label), gradient, cut).mean(0)).norm())
    settings = {"gradient": gradient, "layer": layer}
    torch.testing.assert_close(feature_distance(network, run, metric="l2", **settings)(syn, 0), torch.stack(norms).sum())
    squares = torch.stack(norms).square().sum()
    torch.testing.assert_close(feature_distance(network, run, **settings)(syn, 0), squares)


def test_a_rankers_own_settings_go_above_those_of_the_suite(run: DistillRun) -> None:
    network, syn = run.network("proxy").eval().requires_grad_(False), some_set(run)
    said = {"proxy_layer": "features.2", "proxy_gradient": "elementwise"}
    wanted = feature_distance(network, run, layer="features.2", gradient="elementwise")(syn, 0)
    assert torch.equal(opened(FeatureDistance(), run, network, **said)(syn, 0), wanted)
    plain = opened(FeatureDistance(layer="", gradient="grad-cam"), run, network, **said)
    assert torch.equal(plain(syn, 0), feature_distance(network, run)(syn, 0))
    plan = toy_plan(DistributionMatching(), Pixel(), rank_epochs=3, rank_repeats=2)
    other = open_ranker(Validation(epochs=3, repeats=2), replace_plan(plan, rank_epochs=9, rank_repeats=5), run)
    assert torch.equal(other(syn, 0), validation_error(plan, run)(syn, 0))


def test_the_released_distance_is_its_formula(run: DistillRun) -> None:
    """By loops over networks, batches, classes and maps; the last map of the real images is that of the first batch alone."""
    syn, layers = some_set(run), (2, 5)  # behind the activations of the toy network
    networks, batches, each = 2, 3, 4
    view = run.augment.draw(run.rng("released", "augment", 7))
    backbone, total = run.network("released", 7), 0.0
    with torch.no_grad():
        for number, end in enumerate(layers):
            own = class_means(backbone.features[:end](view(syn.images)), CLASSES, 3)
            for label in range(3):
                maps = []
                for network, batch in [(network, batch) for network in range(networks) for batch in range(batches)]:
                    place = ("released", "real", network, batch)
                    augment = run.augment.draw(run.rng(*place, "augment"))
                    images = torch.cat([run.real(other, each, run.rng(*place, other)) for other in range(3)])
                    untrained = run.network("released", "real", network).features[:end]
                    maps.append(untrained(augment(images)[label * each : (label + 1) * each]).mean(0))
                real = maps[0] if number + 1 == len(layers) else torch.stack(maps).mean(0)
                total += float((real - own[label]).square().sum())
    found = opened(ReleasedDistance(networks, batches, each), run)
    assert float(found(syn, 7)) == pytest.approx(total, rel=1e-5)
    assert float(found(syn, 8)) != float(found(syn, 7))  # another network


def test_a_backbone_without_maps_is_refused_by_the_released_distance(run: DistillRun) -> None:
    tokens = replace(run, backbone=Given.of("architectures", vit(width=16, depth=1)))
    with pytest.raises(ConfigError, match="Name a convolutional backbone"):
        ReleasedDistance().check(tokens)
    ReleasedDistance().check(run)


# ---------------------------------------------------------------- what rankers are given


@dataclass(frozen=True)
class Asking(Ranker):
    """Asks for what it does not declare."""

    what: str = "proxy"

    def open(self, run: RankRun) -> Score:
        if self.what == "proxy":
            run.proxy.eval()
        if self.what == "held out":
            run.held_out_error(run.network("a"))
        if self.what == "trained":
            run.trained_on(Batch(torch.zeros(3, *run.spec.shape), torch.eye(3), torch.arange(3)), 1, "a")
        return lambda syn, step: torch.zeros(2) if self.what == "shape" else 0  # type: ignore[return-value]


@pytest.mark.parametrize(
    ("what", "sentence"),
    [
        ("proxy", "ranker Asking looks through the proxy without saying uses_proxy = True."),
        ("held out", "ranker Asking reads held-out images without saying uses_held_out = True."),
        ("trained", "ranker Asking trains networks on the set without saying uses_held_out = True."),
        ("shape", r"ranker Asking: a score must be a tensor \[\] on cpu, got \[2\] on cpu."),
        ("none", r"ranker Asking: a score must be a tensor \[\] on cpu, got int."),
    ],
)
def test_what_a_ranker_does_not_declare_it_is_not_given(run: DistillRun, what: str, sentence: str) -> None:
    with pytest.raises(PluginError, match=sentence):
        opened(Asking(what), run, run.network("proxy"))(some_set(run), 0)


def test_a_ranker_is_given_training_images_only(run: DistillRun) -> None:
    plan = toy_plan(DistributionMatching(), Pixel())
    ranking = RankingRun.of(run, plan, FeatureDistance())
    images, classes = (torch.cat(parts) for parts in zip(*ranking.training_batches(5), strict=True))
    assert torch.equal(images, run.data.seen(run.data.images))
    assert torch.equal(classes, run.data.labels)
    public = {name for name in (*dir(RankRun), *dir(ranking)) if not name.startswith("_")}
    assert not [name for name in public if "test" in name or "seal" in name]


OPENED: list[Ranker] = []


@dataclass(frozen=True)
class Counted(Ranker):
    """Notes that it was opened."""

    def open(self, run: RankRun) -> Score:
        OPENED.append(self)
        return lambda syn, step: syn.images.sum()


def test_a_ranker_of_steps_and_stages_is_opened_once(run: DistillRun) -> None:
    OPENED.clear()
    ref = Given.of("rankers", Counted(), "counted")
    of_steps, of_stages = scores(toy_plan(DistributionMatching(), Pixel(), rank_steps=ref, rank_stages=ref), run)
    assert of_steps is of_stages
    assert len(OPENED) == 1


def test_a_set_may_have_learned_labels_whose_gradient_no_ranker_touches(run: DistillRun) -> None:
    labels = torch.eye(3).repeat_interleave(2, 0).requires_grad_()
    syn = replace(some_set(run), labels=labels.softmax(1))
    assert not validation_error(toy_plan(DistributionMatching(), Pixel()), run)(syn, 0).requires_grad
    assert labels.grad is None


# ---------------------------------------------------------------- suites, plans and keys

SUITE = """
schema = 1
protocol = "{protocol}"
subsets = ["mnist-5k"]
losses = ["dm"]
spaces = ["pixel"]
networks = ["convnet"]
baselines = []
[distill]
{more}
"""


def hash_of(ref: PluginRef, root: Path | None) -> Any:
    return SimpleNamespace(**{f"{split}_hash": hashlib.sha256(split.encode()).hexdigest() for split in ("train", "test")})


def plan_of(tmp_path: Path, more: str, protocol: str = "smoke-1") -> SetPlan:
    (tmp_path / "suite.toml").write_text(SUITE.format(more=more, protocol=protocol))
    (cell,) = grid.load(str(tmp_path / "suite.toml"), hash_of, None).cells
    return cell.set


def faults(tmp_path: Path, more: str, protocol: str = "smoke-1") -> list[str]:
    with pytest.raises(Faults) as caught:
        plan_of(tmp_path, more, protocol)
    return [fault.partition("suite.toml': ")[2] for fault in caught.value.faults]


STEPS, STAGES = 'rank_steps = "feature-distance"\n', 'rank_stages = "validation"\n'


@pytest.mark.parametrize(
    ("more", "key"),
    [
        (STEPS, "5727616a35751f1c"),
        (STEPS + 'proxy_layer = "x"\nproxy_gradient = "elementwise"\nproxy_epochs = 3\n', "3224e529568a2774"),
        (STAGES + "rank_epochs = 5\nrank_repeats = 2\n", "a60f544a9d2966ce"),
        ('rank_stages = "feature-distance"\nproxy = { name = "alexnet", width = 8 }\n', "78f26499f519d60d"),
        ('rank_steps = "loss"\n', "0f850b3f43d32360"),
        ('rank_epochs = 3\nproxy_layer = "x"\n', "b35c5159fa37e18a"),
    ],
)
def test_keys_are_those_of_before_rankers_were_plugins(tmp_path: Path, more: str, key: str) -> None:
    assert plan_of(tmp_path, more).key[:16] == key


def test_a_ranker_at_its_defaults_is_its_name(tmp_path: Path) -> None:
    """However it is written; and so a stored plan of before reads as one of now."""
    plain = plan_of(tmp_path, STEPS + STAGES)
    assert (plain.rank_steps, plain.rank_stages) == ("feature-distance", "validation")
    table = 'rank_steps = { name = "feature-distance", metric = "squared" }\nrank_stages = { name = "validation" }'
    assert plan_of(tmp_path, table) == plain
    assert [ref.name for ref in plain.rankers] == ["feature-distance", "validation"]
    assert set(plain.rankers) <= set(plain.refs)
    raised = replace_plan(plain.rankers[0], what=plain.rankers[0].what | {"numerics": 2})
    assert in_plan(raised) is raised


@pytest.mark.parametrize(
    "more",
    [
        'rank_steps = { name = "feature-distance", metric = "l2" }', 'rank_steps = { name = "feature-distance", layer = "x" }',
        'rank_steps = { name = "feature-distance", gradient = "elementwise" }', 'rank_steps = "feature-distance-released"',
        'rank_steps = { name = "feature-distance-released", networks = 2 }', 'rank_steps = "validation"',
        'rank_stages = { name = "validation", repeats = 2 }', 'rank_stages = { name = "validation", epochs = 7 }',
    ],
)  # fmt: skip
def test_a_rankers_settings_are_in_the_key_and_in_the_stored_plan(tmp_path: Path, more: str) -> None:
    plan = plan_of(tmp_path, more)
    others = [plan_of(tmp_path, text).key for text in ("", STEPS, STAGES)]
    assert plan.key not in others
    schema.write(tmp_path / "plan.json", schema.SetPlanFile(plan=plan))
    again = schema.read(tmp_path / "plan.json", schema.SetPlanFile, "plan", "Name another.").plan
    assert again == plan
    assert again.key == plan.key
    assert [ref.make() for ref in again.rankers] == [ref.make() for ref in plan.rankers]


def test_what_rankers_do_not_read_is_in_no_plan(tmp_path: Path) -> None:
    idle = 'proxy_epochs = 3\nproxy_layer = "x"\nrank_epochs = 7\n'
    released = 'rank_steps = "feature-distance-released"\n'
    assert plan_of(tmp_path, released + idle) == plan_of(tmp_path, released)
    assert needs(plan_of(tmp_path, released)) == ()
    assert plan_of(tmp_path, released).proxy is None
    assert plan_of(tmp_path, 'rank_steps = "validation"\n' + idle).proxy is None
    assert plan_of(tmp_path, 'rank_steps = "validation"\n' + idle).rank_epochs == 7


def test_a_ranker_on_top_displaces_the_one_below(tmp_path: Path) -> None:
    override = '[[override]]\nwhere = {{ loss = "dm" }}\nset = {{ rank_steps = {0} }}'
    below = 'rank_steps = { name = "feature-distance", metric = "l2" }\n'
    assert plan_of(tmp_path, below + override.format('"loss"')).rank_steps == "loss"
    assert plan_of(tmp_path, below + override.format('{ name = "feature-distance" }')).rank_steps == "feature-distance"
    assert plan_of(tmp_path, STEPS + override.format('{ name = "feature-distance", metric = "l2" }')) == plan_of(tmp_path, below)


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        (
            'rank_steps = "feature-distanc"',
            "'rank_steps': there is no ranker 'feature-distanc'. Did you mean 'feature-distance'",
        ),
        (
            'rank_steps = "lats"',
            "'rank_steps': there is no ranker 'lats'. Did you mean 'last'? It takes: last, loss, feature",
        ),
        ('rank_stages = "loss"', "'rank_stages': 'loss' ranks the steps of a stage only. It takes: last, feature-distance, "),
        ('rank_steps = { name = "loss", metric = "l2" }', "'rank_steps': 'loss' takes no settings. It takes: last, loss, "),
        ("rank_steps = 3", "[distill]: 'rank_steps' must be a name or a table with it, got 3."),
        ('rank_steps = { metric = "l2" }', "an entry of rankers must be a name or a table with a name, got {'metric': 'l2'}."),
        (
            'rank_steps = { name = "feature-distance", metrc = "l2" }',
            "ranker 'feature-distance' has no setting 'metrc'. Did you mean",
        ),
        (
            'rank_steps = { name = "feature-distance", metric = "l1" }',
            "ranker 'feature-distance': setting 'metric' must be one of 'squared', 'l2', got 'l1' (text).",
        ),
        ('rank_stages = { name = "validation", repeats = 0 }', "ranker 'validation': repeats must be at least 1, got 0."),
        (
            'rank_steps = { name = "feature-distance-released", batches = 0 }',
            "ranker 'feature-distance-released': batches must be at least 1, got 0.",
        ),
    ],
)
def test_a_fault_of_a_ranker_is_one_sentence(tmp_path: Path, more: str, sentence: str) -> None:
    (told,) = faults(tmp_path, more)
    assert told.startswith(sentence), told


def test_all_faults_of_rankers_are_told_at_once(tmp_path: Path) -> None:
    told = faults(tmp_path, 'rank_steps = "nearest"\nrank_stages = { name = "validation", epochs = 0 }')
    assert [fault.partition(":")[0] for fault in told] == ["'rank_steps'", "ranker 'validation'"]


# ---------------------------------------------------------------- a ranker of a stranger

STRANGER = '''
from dataclasses import dataclass
from typing import ClassVar

import torch

from ddbench.api import ProtocolText, Ranker, Resource
from ddbench.errors import ConfigError, PluginError


@dataclass(frozen=True)
class Tastes(Resource):
    """Something of others."""

    saw: ClassVar = frozenset({"external-labels"})

    def build(self, run):
        return {"taste": torch.ones(1)}


@dataclass(frozen=True)
class Tasty(Ranker):
    """The brightest is the best."""

    what: str = ""
    saw: ClassVar = frozenset({"external-images"})

    def needs(self, run):
        return (Tastes(),)

    def check(self, run):
        if self.what == "refuse":
            raise ConfigError("it does not like such images.")

    def open(self, run):
        taste = run.resource(Tastes())["taste"]
        if self.what == "open":
            raise PluginError("it burns")
        return lambda syn, step: -(syn.images.mean() * taste).sum()


def unheld():
    return ProtocolText('base = "smoke-1"\\nid = "tests-unheld-1"\\ndescription = "none held out"\\n[set]\\nheld_out = 0.0\\n')


'''

TASTED = """
schema = 1
name = "tasted"
protocol = "smoke-1"
subsets = ["mnist-5k"]
losses = ["dm"]
spaces = ["pixel"]
backbone = {{ name = "convnet", width = 4, depth = 1 }}
networks = [{{ name = "convnet", width = 4, depth = 1 }}]
baselines = ["random"]
[distill]
steps = 2
loss = {{ batch_real = 4 }}
{more}
"""


@pytest.fixture
def stranger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    """Writes a suite; a distribution with a ranker is on the path, and jobs are done in this process."""
    info = tmp_path / "taste" / "taste-1.0.dist-info"
    info.mkdir(parents=True)
    points = "[ddbench.rankers]\ntests-tasty = taste:Tasty\n[ddbench.protocols]\ntests-unheld-1 = taste:unheld\n"
    (info / "entry_points.txt").write_text(points)
    (tmp_path / "taste" / "taste.py").write_text(STRANGER)
    monkeypatch.syspath_prepend(tmp_path / "taste")
    in_process.be_light(monkeypatch)
    monkeypatch.setattr(runner, "run", in_process.run)
    monkeypatch.chdir(tmp_path)

    def suite(more: str) -> Path:
        path = tmp_path / "tasted.toml"
        path.write_text(TASTED.format(more=more))
        return path

    return suite


def sets_of(store: str) -> dict[str, tuple[SetPlan, tuple[Seen, ...], set[str]]]:
    found = read_contents(Store(Path(store)))
    assert found.faults == ()
    return {
        each.plan.method.partition("(")[0]: (each.plan, each.record.saw, set(each.record.place.sources))
        for each in found.sets.values()
    }


@pytest.mark.slow
def test_a_strangers_ranker_runs_and_is_in_key_and_record(stranger: Callable[[str], Path]) -> None:
    """Its source, and what it saw, itself and by its resource."""
    assert main(["run", str(stranger('rank_steps = "tests-tasty"')), "--store", "store", "--device", "cpu"]) == 0
    plan, saw, sources = sets_of("store")["dm"]
    assert isinstance(plan.rank_steps, PluginRef)
    assert plan.rank_steps.what["from"] == "taste"
    assert saw == ("train", "external-images", "external-labels")
    assert "ranker 'tests-tasty'" in sources
    assert len(plan.resources) == 1
    assert sets_of("store")["random"][1] == ("train",)


@pytest.mark.long
def test_what_a_strangers_ranker_ranked_is_made_again_and_known_as_old(
    stranger: Callable[[str], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    """By its plan; and once the ranker's source is another."""
    assert main(["run", str(stranger('rank_steps = "tests-tasty"')), "--store", "store", "--device", "cpu"]) == 0
    plan = sets_of("store")["dm"][0]
    assert main(["run", "--plan", f"store/sets/{plan.key[:16]}/plan.json", "--store", "other", "--device", "cpu"]) == 0
    source = Path("taste/taste.py")
    source.write_text(source.read_text() + "# changed\n")
    capsys.readouterr()
    assert main(["run", str(stranger('rank_steps = "tests-tasty"')), "--store", "store", "--device", "cpu"]) == 0
    assert "ranker 'tests-tasty'" in capsys.readouterr().err


@pytest.mark.slow
def test_a_strangers_ranker_that_breaks_breaks_its_own_cells_only(
    stranger: Callable[[str], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    broken = stranger('rank_stages = { name = "tests-tasty", what = "open" }')
    assert main(["run", str(broken), "--store", "store", "--device", "cpu"]) == 1
    assert "it burns" in capsys.readouterr().err
    assert set(sets_of("store")) == {"random"}


def test_what_a_strangers_ranker_refuses_is_told_by_plan(
    stranger: Callable[[str], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    refused = stranger('rank_steps = { name = "tests-tasty", what = "refuse" }\nrank_stages = "validation"')
    assert main(["plan", str(refused), "--store", "store"]) == 2
    told = "ranker 'tests-tasty(what=refuse)' on 'mnist-5k': it does not like such images."
    assert told in capsys.readouterr().err


def test_held_out_images_must_be_there_for_a_ranker_that_reads_them(stranger: Callable[[str], Path], tmp_path: Path) -> None:
    for role in ("rank_steps", "rank_stages"):
        (told,) = faults(tmp_path, f'{role} = "validation"', "tests-unheld-1")
        assert told == (
            f"'{role}': ranker 'validation' reads held-out training images, and protocol 'tests-unheld-1' holds out none: name "
            "another ranker, or another protocol."
        )
    plan_of(tmp_path, STEPS, "tests-unheld-1")
