"""Baselines of a latent diffusion model: the walk against diffusers' own, clusters and groups against plain forms, faults."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import made_pipelines
from ddbench.compute.run import DistillRun
from ddbench.errors import BenchError, ConfigError, DataError
from ddbench.seeds import stream
from ddbench.testing import prepared, toy_data, toy_run
from ddbench_plugins.baselines.diffused import DdimGroups, LatentClusters, best_group, clusters, misfit
from ddbench_plugins.diffusion import transformer as dit
from ddbench_plugins.diffusion.pipeline import FILES, hash_files
from ddbench_plugins.diffusion.schedule import Schedule, read_schedule

SCHEDULE = Schedule(num_train_timesteps=40, beta_start=0.002, beta_end=0.2)
X = torch.randn(2, 3, 4, 4, generator=stream("x"), dtype=torch.float64)


def needs_diffusers() -> None:
    pytest.importorskip("diffusers", reason="diffusers is not installed: pip install 'ddbench[diffusers]'")


def model(x: Tensor, time: int) -> Tensor:
    """Some smooth function of both."""
    return torch.tanh(x.roll(1, 3) + time / 40)


# ---------------------------------------------------------------- the walk


@pytest.mark.parametrize("kind", ["linear", "scaled_linear"])
def test_the_signal_left_is_a_running_product(kind: Any) -> None:
    first, last = 0.002, 0.2
    alphas, left = msgspec.structs.replace(SCHEDULE, beta_schedule=kind).alphas(), 1.0
    for number, alpha in enumerate(alphas.tolist()):
        part = number / 39
        beta = first + part * (last - first) if kind == "linear" else (first**0.5 + part * (last**0.5 - first**0.5)) ** 2
        left *= 1 - beta
        assert alpha == pytest.approx(left)


def test_a_step_of_the_walk_and_back_is_none_and_the_last_one_gives_the_image() -> None:
    noise = model(X, 7)
    moved = SCHEDULE.moved(X, noise, 7, 23)
    torch.testing.assert_close(SCHEDULE.moved(moved, noise, 23, 7), X)
    noised = SCHEDULE.noised(X, noise, 23)
    torch.testing.assert_close(SCHEDULE.moved(noised, noise, 23, -10), X)
    assert SCHEDULE.times(4) == [30, 20, 10, 0]
    for steps in (0, 41):
        with pytest.raises(ConfigError, match=r"'steps' must lie in 1\.\.40, the steps that the model was trained with"):
            SCHEDULE.times(steps)


def test_the_inversion_ends_where_the_walk_to_images_begins() -> None:
    seen: list[int] = []

    def noise(x: Tensor, time: int) -> Tensor:
        seen.append(time)
        return torch.full_like(x, 0.3)  # of a model that always sees the same noise, the walk goes back as it came

    inverted = SCHEDULE.inverted(X, noise, 8, 5)
    assert seen == [5, 10, 15, 20, 25]
    back = SCHEDULE.denoised(inverted, noise, 8, 6)
    assert seen[5:] == [25, 20, 15, 10, 5, 0]
    torch.testing.assert_close(back, SCHEDULE.moved(X, torch.full_like(X, 0.3), 0, -5))


@pytest.mark.slow
@pytest.mark.parametrize("change", [{}, {"set_alpha_to_one": False, "steps_offset": 1, "beta_schedule": "scaled_linear"}])
def test_the_walk_is_that_of_diffusers(change: dict[str, Any]) -> None:
    needs_diffusers()
    from diffusers import DDIMScheduler

    theirs = DDIMScheduler(**made_pipelines.SCHEDULER | change)
    theirs.set_timesteps(8)
    ours = read_schedule(json.dumps(dict(theirs.config)).encode(), "scheduler_config.json")
    assert ours.times(8) == theirs.timesteps.tolist()
    x = X
    for time in theirs.timesteps.tolist():
        x = theirs.step(model(x, time), time, x, eta=0.0).prev_sample
    torch.testing.assert_close(ours.denoised(X, model, 8, 8), x, rtol=1e-4, atol=1e-5)


# ---------------------------------------------------------------- clusters and groups


def test_a_group_s_misfit_is_its_distance_by_hand() -> None:
    groups = torch.randn(3, 4, 6, generator=stream("groups"), dtype=torch.float64)
    mean, std = torch.linspace(-1, 1, 6, dtype=torch.float64), torch.linspace(0.5, 2, 6, dtype=torch.float64)
    for group, found in zip(groups, misfit(groups, mean, std), strict=True):
        own, spread = group.sum(0) / 4, ((group - group.sum(0) / 4) ** 2).sum(0).div(3).sqrt()
        skewness = torch.stack([6 / (5 * 4) * sum(((image - own) / spread) ** 3) for image in group])
        wanted = (own - mean).square().sum().sqrt() + (spread - std).square().sum().sqrt() + 0.1 * skewness.square().sum().sqrt()
        torch.testing.assert_close(found, wanted)
    torch.testing.assert_close(misfit(groups[:, :1], mean, std), (groups[:, 0] - mean).norm(dim=1))


def test_the_best_of_all_groups_is_taken() -> None:
    mean, std = torch.full((1, 2, 2), 3.0), torch.full((1, 2, 2), 0.5)
    chosen = best_group(mean, std, 3, 50, stream("draws"))
    drawn = mean + std * torch.randn(50, 3, 1, 2, 2, generator=stream("draws"))
    scores = misfit(drawn.flatten(2), mean.flatten(), std.flatten())
    assert torch.equal(chosen, drawn[scores.argmin()])
    assert float(scores.min()) < float(scores[0])


@pytest.mark.slow  # it imports scikit-learn
def test_clusters_are_one_pass_of_mini_batches() -> None:
    centres = torch.tensor([[10.0, 0], [0, 10], [-10, -10]])
    blobs = centres.repeat(14, 1) + 0.1 * torch.randn(42, 2, generator=stream("blobs"))  # 30 rows, and 12 that are enough
    found = clusters(blobs.view(42, 2, 1, 1), 3).view(3, 2)
    nearest = torch.cdist(centres, found).argmin(1)
    assert sorted(nearest.tolist()) == [0, 1, 2]
    for label, place in enumerate(nearest.tolist()):  # a mean of all its rows: each counts once
        torch.testing.assert_close(found[place], blobs[label::3].mean(0), rtol=0, atol=1e-4)
    left_over = torch.cat([blobs[:30], 1e3 * torch.ones(2, 2)])  # of which the last two are too few
    assert float(clusters(left_over.view(32, 2, 1, 1), 3).max()) < 11


# ---------------------------------------------------------------- with a pipeline of diffusers


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data folder with a pipeline `dit`."""
    needs_diffusers()
    root = tmp_path_factory.mktemp("data")
    made_pipelines.pipeline(root)
    return root


@pytest.fixture
def run(home: Path) -> DistillRun:
    return replace(toy_run(channels=3), folder=home)


def made(home: Path, kind: Callable[..., Any] = LatentClusters, **settings: Any) -> Any:
    return kind("dit", tuple(hash_files("dit", (), home)), steps=4, **settings)


def test_a_pipeline_says_what_diffusers_does(run: DistillRun, home: Path) -> None:
    from diffusers import AutoencoderKL, DiTTransformer2DModel

    pipeline = made(home).load(run)
    vae = AutoencoderKL.from_pretrained(home / "weights" / "dit" / "vae").eval()
    transformer = DiTTransformer2DModel.from_pretrained(home / "weights" / "dit" / "transformer").eval()
    pixels = run.spec.denormalise(run.read(1, None))
    with torch.no_grad():
        latents = vae.encode(2 * pixels - 1).latent_dist.mean * 0.5
        torch.testing.assert_close(pipeline.latents(1), latents)
        torch.testing.assert_close(pipeline.images(latents), (vae.decode(latents / 0.5).sample / 2 + 0.5).clamp(0, 1))
        own, none = (
            transformer(latents, timestep=torch.full((12,), 7), class_labels=torch.full((12,), label)).sample[:, :3]
            for label in (1, 3)
        )
    torch.testing.assert_close(pipeline.noise(latents, 7, 1, 1.0), own)
    torch.testing.assert_close(pipeline.noise(latents, 7, 1, 4.0), none + 4 * (own - none), rtol=1e-4, atol=1e-5)
    assert float((own - none).abs().max()) > 1e-4


def test_latent_clusters_are_centres_noised_and_walked_by_the_class(run: DistillRun, home: Path) -> None:
    baseline = made(home, strength=0.6, guidance=2.0)
    pipeline, images = baseline.load(run), baseline.build(run).images
    centres = clusters(pipeline.latents(2), 2)
    x = SCHEDULE.noised(centres, torch.randn(2, 3, 4, 4, generator=run.rng("latent-clusters", 2)), 10)
    for start, stop in ((10, 0), (0, -10)):
        x = SCHEDULE.moved(x, pipeline.noise(x, start, 2, 2.0), start, stop)
    torch.testing.assert_close(images[4:], run.spec.normalise(pipeline.images(x)))
    other = baseline.build(replace(run, root=("distill", 1))).images
    assert not torch.equal(images, other)


@pytest.mark.slow
def test_ddim_groups_are_drawn_from_the_latents_that_were_walked_back(run: DistillRun, home: Path) -> None:
    baseline = made(home, DdimGroups, levels=2, groups=30)
    run = prepared(baseline, run)
    fitted, pipeline = run.resource(baseline.needs(run)[0]), baseline.load(run)

    def noise(x: Tensor, time: int) -> Tensor:
        return pipeline.noise(x, time, 1, 4.0)

    x = SCHEDULE.inverted(pipeline.latents(1), noise, 4, 2)
    torch.testing.assert_close(fitted["mean"][1], x.mean(0))
    torch.testing.assert_close(fitted["std"][1], x.std(0))
    chosen = best_group(fitted["mean"][1], fitted["std"][1], 2, 30, run.rng("ddim-groups", 1))
    wanted = pipeline.images(SCHEDULE.denoised(chosen, noise, 4, 3))
    torch.testing.assert_close(baseline.build(run).images[2:4], run.spec.normalise(wanted))
    assert baseline.needs(run)[0] == baseline.needs(replace(run, ipc=7))[0]


def test_images_of_another_side_are_resized(home: Path) -> None:
    run = replace(toy_run(channels=3, side=12), folder=home)
    pipeline = made(home).load(run)
    assert pipeline.latents(0).shape == (12, 3, 4, 4)
    assert pipeline.images(torch.zeros(1, 3, 4, 4)).shape == (1, 3, 12, 12)


def test_classes_are_imagenet_s_or_those_of_the_data_set(run: DistillRun, home: Path, tmp_path: Path) -> None:
    settings = made_pipelines.pipeline(tmp_path, num_embeds_ada_norm=1000)
    baseline = LatentClusters("dit", tuple(settings["hashes"]), steps=4)
    known = replace(run, folder=tmp_path, data=toy_data(replace(run.spec, class_indices=(7, 999, 0))))
    assert baseline.load(known).labels.tolist() == [7, 999, 0]
    assert made(home).load(replace(known, folder=home)).labels.tolist() == [0, 1, 2]  # it was trained on these three
    with pytest.raises(ConfigError, match="the diffusion model knows 1000 classes, and 'toy' has 3 others: it must know"):
        baseline.check(replace(run, folder=tmp_path))


# ---------------------------------------------------------------- faults


def edited(change: Callable[[dict[str, Any]], object], file: str) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        content = json.loads((folder / file).read_text())
        change(content)
        (folder / file).write_text(json.dumps(content))

    return edit


def lacks_a_tensor(folder: Path) -> None:
    tensors = load_file(folder / FILES[3])
    tensors.pop("proj_out_2.bias")
    save_file(tensors, folder / FILES[3])


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda folder: (folder / FILES[4]).unlink(), r"the pipeline 'dit' lacks the file \S*safetensors: save it with safe_"),
        (lacks_a_tensor, r"the weights 'dit/transformer/\S*safetensors' do not fit the network: they lack 'proj_out_2\.bias'"),
        (edited(lambda told: told.update(num_layers=10**9), FILES[1]), r"'dit/transformer/config.json' does not describe a DiT"),
        (edited(lambda told: told.update(extra=1), FILES[1]), "does not describe a DiTTransformer2DModel: .*`extra`"),
        (edited(lambda told: told.update(sample_size=5), FILES[1]), "'sample_size' must be a multiple of 'patch_size'"),
        (edited(lambda told: told.update(in_channels=4, out_channels=8), FILES[1]), "latents of 4 and 3 channels: they are of"),
        (edited(lambda told: told.update(_class_name="UNet2DModel"), FILES[1]), "it is of the class 'UNet2DModel'"),
        (edited(lambda told: told.update(prediction_type="sample"), FILES[0]), "does not describe noise that is known here"),
    ],
)  # fmt: skip
def test_another_pipeline_is_refused_in_a_sentence(
    run: DistillRun, home: Path, tmp_path: Path, change: Callable[[Path], None], told: str
) -> None:
    shutil.copytree(home, tmp_path / "data")
    change(tmp_path / "data" / "weights" / "dit")
    run = replace(run, folder=tmp_path / "data")
    with pytest.raises(BenchError, match=told):
        made(tmp_path / "data").build(run)


def test_a_pipeline_is_pinned_by_the_hash_of_each_file(run: DistillRun, home: Path, tmp_path: Path) -> None:
    pins = LatentClusters("dit").pins(home)
    assert pins == {"hashes": hash_files("dit", (), home), "saw": ["external-images", "external-labels", "train"]}
    assert [file.file for file in LatentClusters("dit").brings()] == [f"dit/{file}" for file in FILES]
    assert LatentClusters("dit", tuple(pins["hashes"])).pins(home) == pins
    shutil.copytree(home, tmp_path / "data")
    edited(lambda told: told.update(beta_end=0.1), FILES[0])(tmp_path / "data" / "weights" / "dit")
    for act in (lambda one: one.pins(tmp_path / "data"), lambda one: one.check(replace(run, folder=tmp_path / "data"))):
        with pytest.raises(DataError, match=r"scheduler_config\.json has the SHA-256 [0-9a-f]{64}, not "):
            act(made(home))
    with pytest.raises(ConfigError, match="the pipeline 'dit' is not pinned: reading a suite does that"):
        LatentClusters("dit").check(run)
    with pytest.raises(ConfigError, match="'hashes' must be 5, of scheduler/"):
        LatentClusters("dit", ("0",)).pins(home)


def test_without_diffusers_it_is_told_before_any_step(run: DistillRun, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    baseline = made(home, DdimGroups, levels=2)
    baseline.check(run)
    monkeypatch.setitem(sys.modules, "diffusers", None)
    with pytest.raises(ConfigError, match=r"baseline 'ddim-groups' needs the package diffusers, .* 'ddbench\[diffusers\]'"):
        baseline.check(run)


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"guidance": 0.5}, "'guidance' must be at least 1"),
        ({"levels": 50}, r"'levels' must lie in 1\.\.49, below 'steps', got 50"),
        ({"groups": 0}, "'groups' must be at least 1"),
    ],
)
def test_settings_that_mean_nothing_are_refused(settings: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        DdimGroups("dit", **settings)
    with pytest.raises(ConfigError, match=r"'strength' must lie in \(0, 1\], got 0"):
        LatentClusters("dit", strength=0)
    for folder in ("a/b", "..", ".dit"):
        with pytest.raises(ConfigError, match="named without a path"):
            hash_files(folder, (), Path("/nowhere"))


def test_what_older_files_say_beside_is_passed_over_where_it_is_off() -> None:
    told = made_pipelines.TRANSFORMER | {
        "_class_name": "Transformer2DModel",
        "cross_attention_dim": None,
        "only_cross_attention": False,
    }
    config = dit.read_config(json.dumps(told).encode(), "config.json")
    assert (config.sample_size, config.num_embeds_ada_norm) == (4, 3)
    with pytest.raises(DataError, match="`cross_attention_dim`"):
        dit.read_config(json.dumps(told | {"cross_attention_dim": 8}).encode(), "config.json")
