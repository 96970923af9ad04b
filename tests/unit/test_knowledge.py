"""What sets saw: declared by plugins, put together in records, and told on boards, whose best is the best of one kind."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import in_process
import pytest
import torch
from msgspec.structs import replace as replace_plan
from synthetic_records import BASE, FULL_DATA, RANDOM, RESNET, Judged, baseline, judged, judgement, method, results, seen, set_of
from torch import Tensor

from ddbench import schema
from ddbench.api import NOTHING, TRAIN, UNKNOWN, Baseline, GeneratorConfig, Proxy, Resource, Run, Saw, Seen
from ddbench.cli import main
from ddbench.compute.knowledge import saw_of_judging, saw_of_set
from ddbench.compute.resources import build, need_of
from ddbench.errors import PluginError
from ddbench.files import sha256_file
from ddbench.grid import runner
from ddbench.leaderboard.beside import Surroundings
from ddbench.leaderboard.knowledge import best, kind_of, order, told
from ddbench.leaderboard.page import page_text
from ddbench.leaderboard.sections import Section, sections
from ddbench.leaderboard.tables import accuracy_table, as_json
from ddbench.ops.vision import load_torchvision
from ddbench.plan import Judging, SetPlan
from ddbench.registry import REGISTRIES
from ddbench.results.contents import read_contents
from ddbench.results.store import Store
from ddbench.seeds import global_stream
from ddbench.testing import Given, toy_data, toy_plan, toy_run, toy_spec
from ddbench.testing.toys import TOY_RECIPE
from ddbench_plugins.baselines.real import FullData, RandomReal
from ddbench_plugins.generators.cvae import ConditionalVAE, random_weights
from ddbench_plugins.losses.bn_statistics import BatchNormStatistics
from ddbench_plugins.losses.dm import DistributionMatching
from ddbench_plugins.losses.mtt import TrajectoryMatching
from ddbench_plugins.proxies.imagenet import EfficientNetLite0ImageNet, ResNet18ImageNet
from ddbench_plugins.spaces.pixel import Pixel

EXTERNAL: Saw = frozenset({"external-images", "external-labels"})

# ---------------------------------------------------------------- what plugins say


def whole(plugin: Any) -> Saw:
    """Of a plugin and its resources."""
    run = toy_run(channels=3)
    return plugin.saw.union(*(resource.saw for resource in plugin.needs(run)))


@pytest.mark.parametrize(
    ("plugin", "saw"),
    [
        (ConditionalVAE(), TRAIN),
        (random_weights(), NOTHING),
        (RandomReal(), TRAIN),
        (FullData(), TRAIN),
        (DistributionMatching(), TRAIN),
        (TrajectoryMatching(), TRAIN),
        (Pixel(), NOTHING),
        (BatchNormStatistics(), TRAIN),
        (BatchNormStatistics(teacher_weights="a.pt", teacher_sha256="0", teacher_classes=(0, 217, 3)), TRAIN | EXTERNAL),
        (BatchNormStatistics(teacher_weights="a.pt", teacher_sha256="0"), TRAIN | UNKNOWN),
        (ResNet18ImageNet(), EXTERNAL),
        (EfficientNetLite0ImageNet(), EXTERNAL),
    ],
    ids=lambda value: type(value).__name__,
)
def test_built_in_plugins_say_what_they_saw(plugin: Any, saw: Saw) -> None:
    assert whole(plugin) == saw


def test_who_says_nothing_is_unknown_but_for_what_is_given_the_training_images() -> None:
    class Trained(Resource):
        def build(self, run: Run) -> dict[str, Tensor]:
            return {}

    kinds: tuple[Any, ...] = (GeneratorConfig, Baseline, Proxy)
    for kind in kinds:
        silent = type("Silent", (kind,), dict.fromkeys(kind.__abstractmethods__))
        assert silent().saw == UNKNOWN, kind
    assert Trained().saw == TRAIN


# ---------------------------------------------------------------- put together


@dataclass(frozen=True)
class Told(Resource):
    """A resource that says what it is told to."""

    saw: Any = TRAIN

    def build(self, run: Run) -> dict[str, Tensor]:
        return {"some": torch.zeros(1)}


@dataclass(frozen=True)
class Plugin:
    """Anything with a field for what it saw."""

    saw: Any = NOTHING
    test_images_elsewhere: bool = False


def plan_of(**roles: Any) -> SetPlan:
    kinds = {"generator": "generators", "baseline": "baselines", "proxy": "proxies", "dataset": "datasets", "loss": "losses"}
    given = {role: Given.of(kinds[role], plugin, role) for role, plugin in ({"dataset": Plugin()} | roles).items()}
    return replace_plan(toy_plan(DistributionMatching(), Pixel()), **given)


def test_a_set_saw_what_any_part_of_it_saw() -> None:
    assert saw_of_set(plan_of(), ()) == ("train",)  # the loss
    assert saw_of_set(plan_of(loss=Plugin(), generator=Plugin()), ()) == ()
    more = plan_of(generator=Plugin(frozenset({"external-labels", "external-images"})))
    assert saw_of_set(more, ()) == ("train", "external-images", "external-labels")
    assert saw_of_set(plan_of(loss=Plugin()), [Told(TRAIN), Told(frozenset({"external-labels"}))]) == ("train", "external-labels")
    assert saw_of_set(plan_of(baseline=Plugin(UNKNOWN)), ()) == ("unknown",)  # of a baseline no loss counts


def test_a_proxy_counts_where_a_ranker_reads_it() -> None:
    plan = plan_of(proxy=Plugin(EXTERNAL))
    assert saw_of_set(plan.without_idle_settings(), ()) == ("train",)
    for role in ("rank_steps", "rank_stages"):
        wanted = ("train", "external-images", "external-labels")
        assert saw_of_set(replace_plan(plan, **{role: "feature-distance"}), ()) == wanted
    trained = replace_plan(toy_plan(DistributionMatching(), Pixel()), rank_steps="feature-distance", dataset=plan.dataset)
    assert saw_of_set(trained, [Told(TRAIN)]) == ("train",)


@pytest.mark.parametrize("elsewhere", [False, True])
def test_external_images_may_have_been_the_test_images(elsewhere: bool) -> None:
    dataset = Plugin(test_images_elsewhere=elsewhere)
    external = plan_of(dataset=dataset, generator=Plugin(frozenset({"external-images"})))
    assert ("test-images" in saw_of_set(external, ())) is elsewhere
    labels_alone = plan_of(dataset=dataset, generator=Plugin(frozenset({"external-labels"})))
    assert "test-images" not in saw_of_set(labels_alone, ())


@pytest.mark.parametrize("said", [frozenset({"imagenet"}), "train", ["train"], None])
def test_a_word_that_is_none_is_named_before_any_step(said: Any) -> None:
    for plan, resources in ((plan_of(generator=Plugin(said)), ()), (plan_of(), [Told(said)])):
        with pytest.raises(PluginError, match=r"says that it saw .* must be a frozenset of these words: train, external-images"):
            saw_of_set(plan, resources)


def test_the_teacher_counts_for_the_judgement() -> None:
    judging = Judging(network=RESNET, numbers=TOY_RECIPE, dataset=Given.of("datasets", Plugin()), test_hash="0" * 64)
    assert saw_of_judging(judging, ()) == ()
    assert saw_of_judging(judging, [Told(TRAIN)]) == ("train",)


def test_whoever_reads_weights_says_what_they_saw(tmp_path: Path) -> None:
    """Only while a resource is built: looking whether a file is there asks nothing."""

    @dataclass(frozen=True)
    class Silent(Resource):
        def build(self, run: Run) -> dict[str, Tensor]:
            return run.weights("a.pt", "0" * 64)

    @dataclass(frozen=True)
    class Open(Silent):
        saw: ClassVar[Saw] = EXTERNAL

    store, plan = Store(tmp_path / "store").resources, toy_plan(DistributionMatching(), Pixel())
    data = toy_data(toy_spec())
    for kind, error in ((Silent, "reads the weights 'a.pt' and does not say what they"), (Open, "'a.pt' cannot be found")):
        with pytest.raises(Exception, match=error):
            build(store, need_of(kind(), None, plan), data, torch.device("cpu"), set_of(BASE).record.place, tmp_path)


# ---------------------------------------------------------------- records


def test_records_of_before_are_read_and_are_unknown() -> None:
    record = set_of(BASE, saw=("train",)).record
    old = json.loads(schema.to_bytes(record))
    assert old.pop("saw") == ["train"]
    old["checksum"] = schema._checksum(old)
    found = schema.parse(json.dumps(old).encode(), schema.SetRecord, "record")
    assert found.saw == ("unknown",)
    assert replace_plan(found, saw=("train",), checksum="") == replace_plan(record, checksum="")
    judged_before = json.loads(schema.to_bytes(judgement(set_of(BASE), RESNET, [0.5])))
    assert judged_before.pop("saw") == []
    judged_before["checksum"] = schema._checksum(judged_before)
    assert schema.parse(json.dumps(judged_before).encode(), schema.JudgementRecord, "judgement").saw == ()


def test_what_was_seen_is_in_no_key_and_a_word_of_no_kind_is_refused() -> None:
    assert "saw" not in json.dumps(BASE.identity())
    odd = json.loads(schema.to_bytes(set_of(BASE).record)) | {"saw": ["imagenet"]}
    odd["checksum"] = schema._checksum(odd)
    with pytest.raises(Exception, match=r"saw"):
        schema.parse(json.dumps(odd).encode(), schema.SetRecord, "record")


# ---------------------------------------------------------------- boards


def test_kinds_in_words_and_in_order() -> None:
    kinds: list[tuple[Seen, ...]] = [("unknown",), ("train", "external-images"), (), ("train",), ("train", "unknown")]
    words = ["unknown", "training images, external images", "nothing", "training images", "unknown"]
    assert [told(kind) for kind in kinds] == words
    assert sorted(kinds, key=order) == [(), ("train",), ("train", "external-images"), ("unknown",), ("train", "unknown")]
    assert kind_of([("external-labels",), (), ("train", "external-labels")]) == ("train", "external-labels")


def test_the_best_is_the_best_of_its_kind() -> None:
    train, more, unknown = ("train",), ("train", "external-images"), ("unknown",)
    assert best([(train, 0.5), (train, 0.6), (more, 0.9), (more, 0.8), (unknown, 1.0), (unknown, 0.9)]) == {1, 2}  # type: ignore[list-item]
    assert best([(train, 0.5), (more, 0.9)]) == set()  # type: ignore[list-item]
    assert best([(train, 0.6), (train, 0.6), (train, None)]) == {0, 1}  # type: ignore[list-item]
    assert best([(train, 0.6), (train, None)]) == set()  # type: ignore[list-item]


def table_of(*rows: Judged) -> tuple[Section, dict[str, dict[str, str]]]:
    (section,) = sections(results(rows))
    return section, {line["method"]: line for line in accuracy_table(section).to_dict("records")}


def row(plan: SetPlan, level: float, *saw: Seen) -> Judged:
    return seen(judged(plan, {"convnet": [level] * 2, "vit": [level / 2] * 2}), *saw)


def test_a_board_says_who_saw_what_and_compares_within_a_kind() -> None:
    section, lines = table_of(
        row(baseline(RANDOM), 0.2, "train"),
        row(method("dm", "pixel"), 0.3, "train"),
        row(method("dc", "glad"), 0.25, "train"),
        row(method("dc", "hpd"), 0.7, "train", "external-images"),
        row(method("dm", "hpd"), 0.6, "train", "external-images"),
        row(method("dm", "glad"), 0.8, "unknown"),
        row(baseline(FULL_DATA), 0.9, "train"),
    )  # fmt: skip
    bold = {name for name, line in lines.items() if line["same arch. (convnet)"].startswith("**")}
    assert bold == {"dm / pixel", "dc / hpd / cvae"}
    assert lines["dm / pixel"]["cross-arch. mean"] == "**15.0 ± 0.0 †**"
    assert lines["dm / pixel"]["saw"] == "training images"
    assert lines["dc / hpd / cvae"]["saw"] == "training images, external images"
    assert lines["dm / glad / cvae"]["saw"] == "unknown"
    names = ["random", "dc / glad / cvae", "dm / pixel", "dc / hpd / cvae", "dm / hpd / cvae", "dm / glad / cvae", "full-data"]
    assert [each.name for each in section.rows] == names
    assert as_json(section, section.rows[3])["saw"] == ["train", "external-images"]


def test_where_all_saw_the_same_a_line_says_it() -> None:
    rows = [row(method("dm", "pixel"), 0.3, "train"), row(method("dc", "pixel"), 0.25, "train")]
    _, lines = table_of(*rows)
    assert all("saw" not in line for line in lines.values())
    text = page_text(results(rows), Surroundings())
    assert "- What the sets saw: training images." in text
    mixed = page_text(results([*rows, row(method("dm", "hpd"), 0.3)]), Surroundings())
    assert "- What the sets saw: as the table says." in mixed
    assert "| nothing " in mixed


def test_fewer_seeds_or_networks_do_not_compete() -> None:
    two = [row(method("dm", "pixel", seed=seed), 0.3, "train") for seed in (0, 1)]
    two += [row(method("dc", "pixel", seed=seed), 0.2, "train") for seed in (0, 1)]
    _, lines = table_of(*two, row(method("dc", "glad"), 0.9, "train"))
    assert [name for name, line in lines.items() if "**" in line["vit"]] == ["dm / pixel"]
    more = Judged(two[2].set, (judgement(two[2].set, RESNET, [0.9, 0.9]),))
    _, lines = table_of(*two, more)
    assert "**" not in "".join(line["resnet18"] for line in lines.values())
    assert "**" not in "".join(line["cross-arch. mean"] for line in lines.values())


def test_a_row_saw_what_any_of_its_seeds_and_its_teacher_saw() -> None:
    one, other = row(method("dm", "pixel"), 0.3, "train"), row(method("dm", "pixel", seed=1), 0.3, "unknown")
    (section,) = sections(results([one, other]))
    assert section.rows[0].saw == ("train", "unknown")
    nothing = row(method("dm", "pixel"), 0.3)
    by_teacher = tuple(schema.sealed(replace_plan(record, saw=("train",))) for record in nothing.judgements)
    (section,) = sections(results([replace(nothing, judgements=by_teacher)]))
    assert section.rows[0].saw == ("train",)


# ---------------------------------------------------------------- from the suite to the record

WOOL = '''
from dataclasses import dataclass
from typing import ClassVar

import torch

from ddbench.api import Baseline, Batch, Dataset, GeneratorConfig, LabelledImages, Proxy, Spec
from ddbench.ops.pretrained import Adapted, imagenet_outputs
from ddbench.ops.layers import Network


@dataclass(frozen=True)
class Wool(Dataset):
    """Three of ImageNet's classes, whose test images everybody has."""

    known: bool = True
    test_images_elsewhere: bool = True

    def spec(self):
        indices = (348, 355, 341) if self.known else ()
        return Spec("wool", (3, 32, 32), ("ram", "llama", "hog"), (0.5,) * 3, (0.25,) * 3, class_indices=indices)

    def load(self, split, root):
        rng = torch.Generator().manual_seed(len(split))
        labels = torch.arange(30) % 3
        images = torch.randint(256, (30, 3, 32, 32), generator=rng, dtype=torch.uint8)
        return LabelledImages(images // 2 + (labels * 50)[:, None, None, None].to(torch.uint8), labels)


@dataclass(frozen=True)
class Seer(Proxy):
    """Knows colours."""

    saw: ClassVar = frozenset({"external-images", "external-labels"})

    def load(self, run):
        network = Network(torch.nn.Conv2d(3, 4, 3), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Linear(4, 1000))
        for number, tensor in enumerate(network.parameters()):
            tensor.data.copy_(torch.linspace(-1, 1, tensor.numel()).view_as(tensor).roll(number))
        return Adapted(network, run.spec, (0.5,) * 3, (0.5,) * 3, imagenet_outputs(run.spec)).to(run.device)

    def check(self, run):
        imagenet_outputs(run.spec)


@dataclass(frozen=True)
class Hearsay(Baseline):
    """Real images that do not say so."""

    def build(self, run):
        images = torch.cat([run.real(label, run.ipc, run.rng("first", label)) for label in range(3)])
        return Batch(images, torch.eye(3), torch.arange(3))


def convnet():
    return Seer()
'''

SUITE = """
schema = 1
name = "wool"
protocol = "smoke-1"
subsets = [{subset}]
losses = ["dm"]
spaces = ["pixel"]
backbone = {{ name = "convnet", width = 4, depth = 1 }}
networks = [{{ name = "convnet", width = 4, depth = 1 }}]
baselines = ["random", "tests-hearsay"]
[distill]
steps = 2
proxy_epochs = 3
rank_steps = "feature-distance"
loss = {{ batch_real = 4 }}
{more}
"""


@pytest.fixture
def wool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Writes a suite; a distribution with a data set of ImageNet's classes is on the path."""
    home = tmp_path / "wool"
    info = home / "wool-1.0.dist-info"
    info.mkdir(parents=True)
    points = {"datasets": "tests-wool = wool:Wool", "proxies": "tests-seer = wool:Seer"}
    points |= {"baselines": "tests-hearsay = wool:Hearsay"}
    (info / "entry_points.txt").write_text("".join(f"[ddbench.{kind}]\n{line}\n" for kind, line in points.items()))
    (home / "wool.py").write_text(WOOL)
    monkeypatch.syspath_prepend(home)
    in_process.be_light(monkeypatch)
    monkeypatch.setattr(runner, "run", in_process.run)
    monkeypatch.chdir(tmp_path)

    def suite(more: str = "", subset: str = '"tests-wool"') -> Path:
        path = tmp_path / "suite.toml"
        path.write_text(SUITE.format(more=more, subset=subset))
        return path

    return suite


def run_suite(path: Path, store: str = "store") -> dict[str, tuple[SetPlan, tuple[Seen, ...]]]:
    """What the sets saw, by their method."""
    assert main(["run", str(path), "--store", store, "--device", "cpu"]) == 0
    found = read_contents(Store(Path(store)))
    assert found.faults == ()
    assert all(record.saw == () for record in found.judgements)
    return {each.plan.method.partition("(")[0]: (each.plan, each.record.saw) for each in found.sets.values()}


@pytest.mark.slow
def test_a_run_records_what_its_sets_saw(wool: Callable[..., Path], capsys: pytest.CaptureFixture[str]) -> None:
    """With a proxy of others: external images, which may have been the test images. Nothing is trained for it."""
    plain = run_suite(wool(), "plain")
    saw = {name: found for name, (_, found) in plain.items()}
    assert saw == {"random": ("train",), "tests-hearsay": ("unknown",), "dm": ("train",)}
    by_hand = run_suite(wool('proxy = "tests-seer"'))
    assert by_hand["dm"][1] == ("train", "external-images", "external-labels", "test-images")
    assert by_hand["random"] == plain["random"]
    plan = by_hand["dm"][0]
    assert (plan.proxy and plan.proxy.kind, plan.proxy_epochs, plan.resources) == ("proxies", 10, ())
    assert plan.key != plain["dm"][0].key
    again = run_suite(wool('proxy = { name = "tests-seer" }\nproxy_gradient = "elementwise"'), "again")
    assert again["dm"][0].proxy_gradient == "elementwise"
    page = Path("store/leaderboard/leaderboard.md").read_text()
    assert "external labels, test images? " in page
    capsys.readouterr()
    assert main(["run", "--plan", f"store/sets/{plan.key[:16]}/plan.json", "--store", "third", "--device", "cpu"]) == 0


@pytest.mark.slow
def test_a_suite_names_a_proxy_by_place_and_is_told_what_cannot_be(
    wool: Callable[..., Path], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    def faults(more: str, subset: str = '"tests-wool"') -> str:
        capsys.readouterr()
        assert main(["plan", str(wool(more, subset)), "--store", "store"]) == 2
        return capsys.readouterr().err

    Store(Path("store"))
    nameless = '{ name = "tests-wool", known = false }'
    assert "does not say which of ImageNet's classes its classes are" in faults('proxy = "tests-seer"', nameless)
    assert main(["plan", str(wool("", nameless)), "--store", "store"]) == 0
    assert "unknown proxy 'tests-seers'. Did you mean 'tests-seer'?" in faults('proxy = "tests-seers"')
    assert "unknown architecture 'convnett'. Did you mean 'convnet'?" in faults('proxy = "convnett"')
    assert "'proxy' must be a name or a table with it, got 3." in faults("proxy = 3")
    assert "'proxy_gradient' must be one of grad-cam, elementwise, got 'sum'." in faults('proxy_gradient = "sum"')
    override = '[[override]]\nwhere = { space = "pixel" }\nset = { proxy = { name = "efficientnet-lite0-imagenet", side = -1 } }'
    assert "'side' must be at least 0" in faults(override)
    capsys.readouterr()
    assert main(["plan", str(wool('proxy = "resnet18-imagenet"')), "--store", "store"]) == 1  # listed, as generators' files are
    listed = capsys.readouterr().out.partition("needed before anything can run:")[2]
    assert "the folder weights of your data folder" in listed
    assert "| proxy resnet18-f37072fd.pth (f37072fd) | tests-wool |       1 | missing | unknown |" in listed
    points = tmp_path / "wool" / "wool-1.0.dist-info" / "entry_points.txt"
    points.write_text(points.read_text().replace("[ddbench.proxies]\n", "[ddbench.proxies]\nconvnet = wool:convnet\n"))
    REGISTRIES["proxies"].refresh()
    assert "'convnet' is an architecture and a proxy that others have trained: uninstall one" in faults('proxy = "convnet"')


@pytest.mark.slow
def test_weights_that_the_user_brings_are_read_once_for_all_sets(
    wool: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "weights").mkdir()
    with global_stream("weights"):
        torch.save(load_torchvision().models.resnet18(weights=None).state_dict(), tmp_path / "weights" / "r.pth")
    monkeypatch.setenv("DDBENCH_DATA", str(tmp_path))
    sha256 = sha256_file(tmp_path / "weights" / "r.pth")
    suite = wool(f'proxy = {{ name = "resnet18-imagenet", file = "r.pth", sha256 = "{sha256}" }}')
    suite.write_text("seeds = [0, 1]\n" + suite.read_text())
    run_suite(suite)
    records = [each.record for each in read_contents(Store(Path("store"))).sets.values() if each.plan.loss]
    assert [record.saw for record in records] == [("train", "external-images", "external-labels", "test-images")] * 2
    (resource,) = {record.resources for record in records}
    assert resource[0].describe == f"proxy r.pth ({sha256[:8]})"
    (tmp_path / "weights" / "r.pth").write_bytes(b"another file")
    capsys.readouterr()
    assert main(["plan", str(suite), "--store", "store"]) == 1
    assert "get the right file" in capsys.readouterr().out.partition("needed before anything can run")[2]
    assert main(["run", str(suite), "--store", "store"]) == 2
    assert "get the right file" in capsys.readouterr().err
