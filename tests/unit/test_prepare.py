"""`ddbench prepare` and `ddbench resources`: what is shared is told, built once, listed, verified and pruned."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from stores import judgement, judging_of, plan_of, set_contents, set_record

from ddbench.cli import main
from ddbench.results.store import Store
from ddbench.schema import UsedResource

pytestmark = pytest.mark.slow

SUITE = """
schema = 1
name = "tm"
protocol = "smoke-1"
seeds = [0, 1]
subsets = ["mnist-5k"]
losses = [{ name = "mtt", num_experts = 2, syn_steps = 2, max_start_epoch = 1, expert_epochs = 1, expert_batch = 64 }]
spaces = ["pixel"]
backbone = { name = "convnet", width = 2 }
networks = [{ name = "convnet", width = 2 }]
baselines = ["random"]
[distill]
steps = 1
"""


@pytest.fixture(scope="module")
def suite(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The suite, prepared in the folder `store` beside it."""
    path = tmp_path_factory.mktemp("prepared") / "tm.toml"
    path.write_text(SUITE)
    assert main(["prepare", str(path), "--store", str(path.parent / "store"), "--device", "cpu", "--json"]) == 0
    return path


def told(capsys: pytest.CaptureFixture[str], *words: object, code: int = 0) -> dict:
    assert main([*map(str, words), "--json"]) == code
    return json.loads(capsys.readouterr().out)


def test_an_estimate_builds_nothing_and_counts_the_work(tmp_path, suite, capsys):
    found = told(capsys, "prepare", suite, "--store", tmp_path / "new", "--estimate")
    (group,) = found["groups"]
    assert (group["there"], group["missing"]) == (0, 2)  # once, though two seeds need them
    assert group["shared"] == "expert trajectories of convnet(width=2), 1 epochs"
    assert group["known_by"] == "counted"  # tests have no time to try
    assert not (tmp_path / "new").exists()  # who only looks makes no store


def test_an_estimate_says_how_it_is_known_or_what_is_missing(tmp_path, capsys, monkeypatch):
    path = tmp_path / "shared.toml"
    text = SUITE.replace(SUITE.split("losses = ")[1].split("\n")[0], '["dm"]').replace('["pixel"]', '["hpd"]')
    more = 'generator = { name = "cvae", epochs = 1 }\n[distill]\nrank_steps = "feature-distance"\nproxy_epochs = 1'
    path.write_text(text.replace("[distill]", more))
    unseen = "unknown: none like it has been made in this store, and it could not be tried here in a few seconds"
    for seconds, known in ((0.0, {unseen}), (100.0, {"tried"})):
        monkeypatch.setattr("ddbench.grid.calibration.MOST_SECONDS", seconds)
        groups = told(capsys, "prepare", path, "--store", tmp_path / "none", "--estimate")["groups"]
        assert {group["shared"] for group in groups} == {"generator cvae, 1 epochs", "classifier convnet(width=2), 1 epochs"}
        assert {group["known_by"] for group in groups} == known
        assert all((group["about_min"] is not None) == bool(seconds) and group["about_MiB"] is not None for group in groups)


def test_what_is_prepared_is_there_and_is_not_built_again(suite, capsys):
    store = Store(suite.parent / "store", create=False)
    before = {key: (store.resources.folder(key) / "resource.json").read_bytes() for key in store.resources.keys()}  # noqa: SIM118
    assert len(before) == 2
    assert not [*store.root.glob("sets/*"), *store.root.glob("judgements/*")]  # nothing else was computed
    (group,) = told(capsys, "prepare", suite, "--store", store.root)["groups"]
    assert (group["there"], group["missing"], group["about_min"], group["about_MiB"]) == (2, 0, 0.0, 0.0)
    assert before == {key: (store.resources.folder(key) / "resource.json").read_bytes() for key in before}


def test_the_estimate_of_bytes_is_what_is_stored(tmp_path, suite, capsys, monkeypatch):
    from ddbench.cli import prepare

    monkeypatch.setattr(prepare, "round", lambda value, digits: value, raising=False)
    (group,) = told(capsys, "prepare", suite, "--store", tmp_path / "new", "--estimate")["groups"]
    resources = Store(suite.parent / "store", create=False).resources
    stored = sum((resources.folder(key) / "tensors.safetensors").stat().st_size for key in resources.keys())  # noqa: SIM118
    assert 0.5 < group["about_MiB"] * 2**20 / stored <= 1  # the file also has names
    assert group["about_min"] > 0


def test_resources_are_listed_verified_and_pruned(tmp_path, suite, capsys):
    import shutil

    root = tmp_path / "copy"
    shutil.copytree(suite.parent / "store", root)
    store = Store(root, create=False)
    first, second = store.resources.keys()
    rows = told(capsys, "resources", root, "--verify")["resources"]
    assert [row["key"] for row in rows] == [first, second]
    assert {row["state"] for row in rows} == {"ok"}
    assert {row["resource"] for row in rows} == {f"expert trajectory {index} of the backbone, 1 epochs" for index in (0, 1)}

    tensors = store.resources.folder(first) / "tensors.safetensors"
    content = bytearray(tensors.read_bytes())
    content[-1] ^= 1
    tensors.write_bytes(content)
    assert {row["state"] for row in told(capsys, "resources", root)["resources"]} == {"ok"}  # nobody has looked
    rows = told(capsys, "resources", root, "--verify", code=1)["resources"]
    assert "is damaged: its bytes are not those that were built" in rows[0]["state"]
    assert rows[1]["state"] == "ok"

    (root / "work" / "set-0123456789abcdef").mkdir(parents=True)  # an unfinished set may be waiting for the sound one
    (root / "resources" / f".{first}.dead").mkdir()
    assert told(capsys, "resources", root, "--prune")["removed"] == [first, f".{first}.dead"]
    (root / "work" / "set-0123456789abcdef").rmdir()
    assert told(capsys, "resources", root, "--prune")["removed"] == [second]  # nothing that is finished has used it
    assert store.resources.keys() == []


def test_a_resource_that_a_set_or_a_judgement_used_is_kept(tmp_path, suite, capsys):
    import shutil

    root = tmp_path / "copy"
    shutil.copytree(suite.parent / "store", root)
    store, plan = Store(root, create=False), plan_of()
    first, second = (store.resources.record(key) for key in store.resources.keys())  # noqa: SIM118
    by_set = (UsedResource(key=first.key, describe="", sha256=first.sha256),)
    store.publish_set(plan, set_record(plan, resources=by_set), set_contents(plan))
    store.publish_judgement(judgement(plan, judging_of(), [0.5], resources=by_set))
    found = told(capsys, "resources", root, "--prune")
    assert found["removed"] == [second.key[:16]]
    assert [row["uses"] for row in found["resources"]] == [2, 0]


def test_a_suite_that_shares_nothing_says_so(tmp_path, capsys):
    path = tmp_path / "dm.toml"
    path.write_text(SUITE.replace(SUITE.split("losses = ")[1].split("\n")[0], '["dm"]'))
    assert main(["prepare", str(path), "--store", str(tmp_path / "store"), "--device", "cpu"]) == 0
    assert "tm shares nothing." in capsys.readouterr().out


def test_a_plan_shows_many_of_a_kind_in_one_line(tmp_path, capsys):
    path = tmp_path / "many.toml"
    path.write_text(SUITE.replace("num_experts = 2", "num_experts = 20"))
    assert main(["plan", str(path), "--store", str(tmp_path / "none")]) == 0
    assert not (tmp_path / "none").exists()
    capsys.readouterr()
    Store(tmp_path / "store")
    assert main(["prepare", str(path), "--store", str(tmp_path / "store"), "--estimate"]) == 0
    assert main(["plan", str(path), "--store", str(tmp_path / "store")]) == 0
    out = capsys.readouterr().out
    assert "0 of 20 done" in out
    assert out.count("expert trajector") == 3  # in the estimate, in the plan, and in what it will take
    assert len(told(capsys, "plan", path, "--store", tmp_path / "store")["shared"]) == 20


def test_run_refuses_to_train_experts_unasked(tmp_path, suite, capsys):
    store = tmp_path / "new"
    assert main(["run", str(suite), "--store", str(store), "--device", "cpu", "--only", "loss=mtt"]) == 2
    said = capsys.readouterr().err
    told = "not yet trained on 'mnist-5k': expert trajectories of convnet(width=2), 1 epochs (0 of 2 are there)."
    assert f"{told} Make them with: ddbench prepare {suite} --store {store}, or add --prepare to this command." in said
    assert not list(Store(store, create=False).root.glob("sets/*"))
    assert main(["run", str(suite), "--store", str(store), "--device", "cpu", "--only", "baseline=random"]) == 0  # needs none


@pytest.mark.long
def test_run_prepares_where_it_is_told_to_and_then_needs_no_telling(tmp_path, suite):
    command = ["run", str(suite), "--store", str(tmp_path / "new"), "--device", "cpu", "--only", "loss=mtt,seed=0"]
    assert main([*command, "--prepare"]) == 0
    assert main([*command[:-1], "loss=mtt,seed=1"]) == 0


def test_half_built_and_foreign_experts_are_refused_all_at_once(tmp_path, suite, capsys):
    import shutil

    root = tmp_path / "copy"
    shutil.copytree(suite.parent / "store", root)
    store = Store(root, create=False)
    first, second = (store.resources.folder(key) for key in store.resources.keys())  # noqa: SIM118
    (first / "tensors.safetensors").unlink()
    shutil.rmtree(second)
    shutil.copytree(first, second)  # under another's key
    assert main(["run", str(suite), "--store", str(root), "--device", "cpu", "--only", "loss=mtt"]) == 2
    said = capsys.readouterr().err
    assert f"resource {first}/tensors.safetensors is missing." in said
    assert f"resource {second} is another one (expert trajectory" in said
    shutil.rmtree(second)
    assert main(["run", str(suite), "--store", str(root), "--device", "cpu", "--only", "loss=mtt"]) == 2
    said = capsys.readouterr().err
    assert "(1 of 2 are there)" in said
    assert f"resource {first}/tensors.safetensors is missing." in said


def test_what_a_loss_cannot_match_is_refused_all_at_once_and_before_its_resources(tmp_path, capsys):
    text = SUITE.replace("losses = [", 'losses = ["bn-statistics", { name = "dsa", loops = "by-ipc" }, ')
    text = text.replace("num_experts = 2", "batch_syn = 500, num_experts = 2").replace("seeds", "ipc = [2]\nseeds", 1)
    path = tmp_path / "bad.toml"
    path.write_text(text)
    for verb in ("plan", "prepare", "run"):
        assert main([verb, str(path), "--store", str(tmp_path / "store"), "--device", "cpu"]) == 2
        said = capsys.readouterr().err
        assert "bn-statistics / pixel on 'mnist-5k', ipc 2: compares with the statistics that BatchNorm layers store" in said
        assert "ipc 2: loops = 'by-ipc' knows the IPCs 1, 10, 20, 30, 40, 50, not 2" in said
        assert "ipc 2: batch_syn 500 is larger than the set of 20 images" in said
        assert said.count("batch_syn 500 is larger") == 1  # two seeds, one mistake
    assert not (tmp_path / "store").exists()


def test_labels_of_a_teacher_need_one(tmp_path, capsys):
    path = tmp_path / "bad.toml"
    path.write_text(SUITE.replace("losses = [", 'losses = ["dm", ').replace("steps = 1", 'steps = 1\nlabels = "teacher"'))
    assert main(["plan", str(path)]) == 2
    assert "loss 'dm' has no teacher to give labels: set labels to hard or learned." in capsys.readouterr().err
