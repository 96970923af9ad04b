"""Figures of a store: what is drawn is what the records say, the bytes are the same every time, and what is missing is told."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Mapping
from dataclasses import replace as replace_all
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import matplotlib as mpl
import numpy as np
import pytest
import stores
import synthetic_records as made_up
import torch
from msgspec.structs import replace
from scipy import stats
from torch import Tensor, nn

from ddbench.cli import main
from ddbench.compute.picture import walk_png
from ddbench.errors import DataError
from ddbench.files import tensors_to_bytes
from ddbench.leaderboard.figures import attention
from ddbench.leaderboard.figures.attention import Classifiers, attention_figure, overlay
from ddbench.leaderboard.figures.curves import Losses, accuracy_figure, loss_figure
from ddbench.leaderboard.figures.drawing import Drawn
from ddbench.leaderboard.figures.pictures import beside_figure, walk_figure
from ddbench.leaderboard.figures.ranking import ranking_figure, told
from ddbench.leaderboard.figures.write import PAGE
from ddbench.leaderboard.join import Result, results_of
from ddbench.leaderboard.rows import Row
from ddbench.leaderboard.sections import Section, sections
from ddbench.leaderboard.statistics import spearman
from ddbench.ops.attention import class_activation
from ddbench.plan import SetPlan
from ddbench.results.contents import read_contents
from ddbench.results.iterates import Scored
from ddbench.results.store import Store
from ddbench.schema import Stage
from ddbench.testing import toy_run

TIMELINE = ((0, 0.0), (50, 5.0))  # of 100 steps in 11 s
LEVELS = {0: 0.2, 50: 0.4}  # accuracies of the iterates


def walked(seed: int, shift: float = 0.0) -> made_up.Judged:
    """A set of 60 % with iterates before steps 0 and 50."""
    iterates = {step: {"convnet": [level + shift]} for step, level in LEVELS.items()}
    plan = made_up.method("dm", "pixel", seed=seed)
    return made_up.judged(plan, {"convnet": [0.6 + shift], "vit": [0.5]}, iterates=iterates, making={"timeline": TIMELINE})


def trajectory(*records: made_up.Judged) -> Section:
    (section,) = (each for each in sections(made_up.results(records)) if each.kind == "trajectory")
    return section


def accuracy() -> Drawn:
    drawn = accuracy_figure(trajectory(walked(0), walked(1, 0.02)), "title")
    assert drawn
    return drawn


@pytest.fixture(scope="module")
def drawn() -> Drawn:
    return accuracy()


@pytest.mark.slow
def test_accuracies_stand_at_their_steps_and_seconds(drawn: Drawn) -> None:
    panels = drawn.values["panels"]
    assert list(panels) == ["same arch. (convnet)", "cross-arch. mean"]
    line = panels["same arch. (convnet)"]["dm / pixel"]
    assert [(point["steps"], point["seconds"]) for point in line] == [(0, 0.0), (50, 5.0), (100, 11.0)]
    assert [point["accuracy"] for point in line] == pytest.approx([0.21, 0.41, 0.61])
    assert [point["std"] for point in line] == pytest.approx([0.02 / 2**0.5] * 3)
    assert [point["label"] for point in panels["cross-arch. mean"]["dm / pixel"]] == ["finished"]


@pytest.mark.slow
def test_a_figure_has_the_same_bytes_whatever_the_user_has_set_and_no_date(drawn: Drawn) -> None:
    with mpl.rc_context({"lines.linewidth": 9, "svg.hashsalt": None, "figure.facecolor": "red"}):
        again = accuracy()
        assert mpl.rcParams["lines.linewidth"] == 9
    assert drawn.files == again.files
    assert drawn.png.startswith(b"\x89PNG")
    assert b"<svg" in drawn.svg
    assert b"<dc:date>" not in drawn.svg
    assert "matplotlib.pyplot" not in sys.modules


def test_the_rank_correlation_is_scipy_s() -> None:
    rng = np.random.default_rng(0)
    for one, other in [(rng.normal(size=9), rng.normal(size=9)), (rng.integers(0, 3, 20), rng.integers(0, 3, 20))]:
        assert spearman(one.tolist(), other.tolist()) == pytest.approx(stats.spearmanr(one, other).statistic)
    assert spearman([1, 2], [2, 1]) is None
    assert spearman([1, 1, 1], [1, 2, 3]) is None


@pytest.mark.slow
def test_scores_and_losses_are_held_against_the_accuracy_of_the_same_iterate() -> None:
    records = [walked(0), walked(1, 0.02)]
    section = trajectory(*records)
    scores = {0: {0: 9.0, 50: 1.0}, 1: {0: 8.0, 50: 2.0}}  # by seed and step: rho -0.8 with 0.2, 0.4, 0.22, 0.42
    kept = {
        each.plan.key: {
            step: replace(iterate, step_score=scores[each.plan.seed][step], loss=None if step else 1.0)
            for step, iterate in each.set.iterates.items()
        }
        for each in records
    }
    row = section.rows[0]
    ranked = Row(row.name, tuple(changed(result, rank_steps="feature-distance") for result in row.results), row.backbone)
    drawn = ranking_figure(ranked, kept)
    assert drawn
    assert list(drawn.values["panels"]) == ["step_score"]  # of the losses there are two, too few for a correlation
    panel = drawn.values["panels"]["step_score"]
    assert [(point["seed"], point["step"], point["step_score"]) for point in panel["points"]] == [
        (0, 0, 9.0), (0, 50, 1.0), (1, 0, 8.0), (1, 50, 2.0),
    ]  # fmt: skip
    assert panel["spearman"] == pytest.approx(-0.8)
    assert told(panel) == "Spearman -0.80 (n = 4)"
    assert drawn.values["judged_by"] == "convnet"
    by_loss = Row(row.name, tuple(changed(result, rank_steps="loss") for result in row.results), row.backbone)
    assert ranking_figure(by_loss, kept) is None  # the score is the loss, and is not shown twice
    assert ranking_figure(row, {}) is None


def changed(result: Result, **fields: Any) -> Result:
    """The same result of another plan, whatever its key."""
    return replace_all(result, plan=replace(result.plan, **fields))


@pytest.mark.slow
def test_losses_are_drawn_by_step_over_all_seeds() -> None:
    (section,) = (each for each in sections(made_up.results([walked(0), walked(1)])) if each.kind == "ranked")
    first, second = (result.key for result in section.rows[0].results)
    losses = {
        first: Losses(1, np.array([8.0, 4.0, 2.0, np.nan], dtype=np.float32)),
        second: Losses(1, np.array([10.0, 6.0, 2.0, np.nan], dtype=np.float32)),
    }
    drawn = loss_figure(section.rows, losses, "dm", "title")
    assert drawn
    assert drawn.values["lines"] == {"dm / pixel": {"steps": [0.0, 1.0, 2.0], "median": [9.0, 5.0, 2.0]}}
    assert loss_figure(section.rows, {}, "dm", "title") is None


# ---------------------------------------------------------------- pictures of a store

SPEC = toy_run(channels=3).spec  # three classes at 8 px


def contents(value: float, walk: bool = False) -> dict[str, bytes]:
    """The files of a set whose images have that value, one a class."""
    meta = {"mean": SPEC.mean, "std": SPEC.std}
    tensors = {"images": torch.full((3, 3, 8, 8), value), "labels": torch.eye(3), "classes": torch.arange(3)}
    made = {"set.safetensors": tensors_to_bytes(tensors, meta), "images.png": b"png"}
    return made | ({"stages.png": walk_png(torch.zeros(2, 3, 3, 8, 8), SPEC)} if walk else {})


def publish(store: Store, plan: SetPlan, value: float, start: float | None = None, walk: bool = False) -> None:
    """A set, judged, and its iterate before step 0."""
    made = contents(value, walk)
    files = {name: hashlib.sha256(content).hexdigest() for name, content in made.items()}
    stages = [Stage(tensors={"f": (3,)}, chosen_step=step, step_score=None, stage_score=0.25, name=name) for step, name in WALK]
    data = replace(stores.set_record(plan).data, counts=(500,) * 3)
    more: dict[str, Any] = {"stages": tuple(stages), "chosen_stage": 1} if walk else {}
    record = stores.set_record(plan, files=files, set_sha256=files["set.safetensors"], data=data, **more)
    store.publish_set(plan, record, made)
    judged = stores.judgement(plan, stores.judging_of(), [0.5])
    store.publish_judgement(replace(judged, set_sha256=record.set_sha256))
    if start is not None:
        content = tensors_to_bytes({"images": torch.full((3, 3, 8, 8), start), "labels": torch.eye(3)})
        store.add_iterates(plan.key, record.set_sha256, {0: content}, {0: Scored(0.5, 2.0)})


WALK = ((5, "layer 2"), (10, ""))
GENERATOR = stores.ref("generators", "cvae")
GLAD, HPD = (stores.plan_of("dm", space, generator=GENERATOR) for space in ("glad", "hpd"))


def store_of(root: Path, starts: Mapping[str, float | None]) -> Store:
    store = Store(root)
    publish(store, GLAD, 0.0, starts["glad"])
    publish(store, HPD, 0.5, starts["hpd"], walk=True)
    return store


def rows_of(store: Store) -> tuple[Row, ...]:
    results, _ = results_of(read_contents(store))
    (section,) = sections(results)
    return section.rows


@pytest.mark.parametrize(
    ("starts", "same", "sentence"),
    [
        ({"glad": 1.0, "hpd": 1.0}, True, "All start from the same images, those of the first row."),
        ({"glad": 1.0, "hpd": 1.0 + 1e-5}, True, "All start from the same images but for rounding"),
        ({"glad": 1.0, "hpd": 0.0}, False, "They start from different images."),
        ({"glad": 1.0, "hpd": None}, None, "ask for it with iterates = { steps = [0] }"),
    ],
)
def test_one_start_is_claimed_only_where_it_is_known(
    tmp_path: Path, starts: dict[str, float | None], same: bool | None, sentence: str
) -> None:  # fmt: skip
    store = store_of(tmp_path / "store", starts)
    kept = {key: one.iterates for key, one in read_contents(store).sets.items()}
    drawn = beside_figure(store, rows_of(store), kept)
    assert drawn
    assert drawn.values == {"kind": "beside", "methods": ["dm / glad / cvae", "dm / hpd / cvae"], "seed": 0, "same_start": same}
    assert sentence in drawn.caption
    assert beside_figure(store, rows_of(store)[:1], kept) is None


def test_a_walk_is_shown_by_its_stages(tmp_path: Path) -> None:
    store = store_of(tmp_path / "store", {"glad": None, "hpd": None})
    glad, hpd = rows_of(store)
    drawn = walk_figure(store, hpd, hpd.results[0])
    assert drawn
    assert drawn.values["stages"] == ["layer 2, after step 5, score 0.25", "stage 2, after step 10, score 0.25 (chosen)"]
    assert drawn.values["classes"] == ["0", "1", "2"]  # the data set is not installed
    assert walk_figure(store, glad, glad.results[0]) is None
    path = store.folder(HPD.key) / "stages.png"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(DataError, match=r"stages\.png is missing or damaged"):
        walk_figure(store, hpd, hpd.results[0])


@pytest.mark.slow
def test_the_command_writes_a_page_and_tells_what_is_damaged(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = store_of(tmp_path / "store", {"glad": None, "hpd": None})
    assert main(["figures", str(store.root), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert [each["kind"] for each in told["figures"]] == ["walk", "beside"]
    page = Path(told["page"])
    assert page == store.root / "leaderboard" / "figures" / PAGE
    links = {f"{each['name']}.{end}" for each in told["figures"] for end in ("png", "svg")}
    assert {path.name for path in page.parent.iterdir()} == {PAGE, *links}
    assert all(f"]({name})" in page.read_text() for name in links)
    (store.folder(GLAD.key) / "set.safetensors").write_bytes(b"")
    assert main(["figures", str(store.root), "--out", str(tmp_path / "out")]) == 1
    out, error = capsys.readouterr()
    assert out.strip() == str(tmp_path / "out" / PAGE)
    assert "set.safetensors is damaged" in error
    assert "Side by side" not in (tmp_path / "out" / PAGE).read_text()


def test_the_board_shows_a_walk_too(tmp_path: Path) -> None:
    store = store_of(tmp_path / "store", {"glad": None, "hpd": None})
    assert main(["leaderboard", str(store.root)]) == 0
    text = (store.root / "leaderboard" / "leaderboard.md").read_text()
    assert "Through the stages, from the top: layer 2, after step 5, score 0.25; stage 2, after step 10" in text
    (linked,) = (word for word in text.replace("(", " ").replace(")", " ").split() if word.endswith("-stages.png"))
    assert (store.root / "leaderboard" / linked).read_bytes() == (store.folder(HPD.key) / "stages.png").read_bytes()


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--cam-epochs", "0", "--cam"], "--cam-epochs must lie in 1..10000, got 0."),
        (["--cam", "convnett"], "unknown architecture 'convnett'. Did you mean 'convnet'?"),
        (["--cam", "convnet,vit"], "--cam takes one network, got convnet,vit."),
    ],
)
def test_a_mistake_is_a_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], sentence: str) -> None:
    Store(tmp_path / "store")
    assert main(["figures", str(tmp_path / "store"), *words]) == 2
    assert sentence in capsys.readouterr().err


def test_without_matplotlib_it_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    Store(tmp_path / "store")
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert main(["figures", str(tmp_path / "store")]) == 2
    assert "pip install 'ddbench[figures]'" in capsys.readouterr().err


def test_an_empty_store_has_a_page_that_says_what_to_ask_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Store(tmp_path / "store")
    assert main(["figures", str(tmp_path / "store")]) == 0
    assert "iterates = { steps = [0, 100] }" in Path(capsys.readouterr().out.strip()).read_text()


@pytest.mark.slow
def test_a_store_of_before_has_what_its_records_hold(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = Path(__file__).parents[2] / "leaderboards" / "quickstart" / "store"
    assert main(["figures", str(store), "--out", str(tmp_path), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)["figures"]
    assert [(each["kind"], each["same_start"]) for each in told] == [("beside", None), ("beside", None)]  # of dm and dsa


# ---------------------------------------------------------------- where a network looks


class Pooled(nn.Module):
    """A mean over the maps, then a linear layer: its maps are known in closed form."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 4, 3, stride=2, padding=1), nn.Linear(4, 3)

    def forward_features(self, images: Tensor) -> Tensor:
        return self.conv(images)

    def forward_head(self, features: Tensor, pre_logits: bool = False) -> Tensor:
        return self.head(features.mean((2, 3)))

    def forward(self, images: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(images))


def test_the_maps_are_those_of_a_pooled_linear_head_in_closed_form() -> None:
    rng = torch.Generator().manual_seed(0)
    network, images, classes = (
        Pooled().requires_grad_(False),
        torch.randn(5, 3, 8, 8, generator=rng),
        torch.tensor([0, 1, 2, 1, 0]),
    )
    with torch.no_grad():
        for tensor in network.parameters():
            tensor.copy_(torch.randn(tensor.shape, generator=rng))
    weighed = torch.einsum("bk,bkhw->bhw", network.head.weight[classes], network.conv(images)).relu()
    wanted = nn.functional.interpolate(weighed[:, None], (8, 8), mode="bilinear", align_corners=False)[:, 0]
    found = class_activation(network, images, classes)
    torch.testing.assert_close(found, wanted / wanted.amax((1, 2), keepdim=True))
    network.head.weight.zero_()
    assert class_activation(network, images, classes).count_nonzero() == 0


def test_a_map_colours_grey_pixels() -> None:
    shown = overlay(np.full((2, 2, 3), 100, dtype=np.uint8), torch.tensor([[0.0, 1.0], [0.0, 1.0]]))
    assert shown[0, 1, 0] > shown[0, 0, 0]
    assert shown[0, 0, 2] > shown[0, 0, 0]


def test_a_classifier_is_trained_once_on_the_training_images_of_the_set_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    store = store_of(tmp_path / "store", {"glad": None, "hpd": None})
    data = toy_run(channels=3).data
    asked: list[tuple[Any, ...]] = []
    monkeypatch.setattr(attention, "identify", lambda ref, root: SimpleNamespace(train_hash=GLAD.train_hash))
    monkeypatch.setattr(attention, "load_training", lambda *given: asked.append(given) or data)
    monkeypatch.setattr(attention, "trained_classifier", lambda ref, data, *more: Pooled().requires_grad_(False))
    classifiers = Classifiers(None, 2, torch.device("cpu"), None)
    for row in rows_of(store):
        drawn = attention_figure(store, row, row.results[0], classifiers)
        assert drawn
        assert (drawn.values["network"], len(drawn.values["right"])) == ("convnet", 3)
    assert len(asked) == 1
    monkeypatch.setattr(attention, "identify", lambda ref, root: SimpleNamespace(train_hash="0" * 64))
    with pytest.raises(DataError, match="not those that the sets were made from: use these, or leave out --cam"):
        Classifiers(None, 2, torch.device("cpu"), None).of(rows_of(store)[0].results[0])


@pytest.mark.slow
def test_a_classifier_learns_and_is_the_same_twice() -> None:
    from ddbench.compute.attention import trained_classifier
    from ddbench.refs import PluginRef

    data, ref = toy_run(channels=3).data, PluginRef.resolve("architectures", "convnet", {"width": 4, "depth": 1})
    one, other, more = (trained_classifier(ref, data, torch.device("cpu"), epochs) for epochs in (1, 1, 2))
    states = [network.state_dict() for network in (one, other, more)]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert not all(torch.equal(states[0][name], states[2][name]) for name in states[0])
    assert not one.training
