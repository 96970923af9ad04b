"""On a pretended CUDA device: what it sees, and that whole runs mix no devices and do not make the host wait in a step."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import in_process
import pytest
import torch
from torch import Tensor, nn

from ddbench.api import Batch, Recipe, Spec
from ddbench.cli import main
from ddbench.compute.clock import Stopwatch
from ddbench.compute.engine import Distillation
from ddbench.compute.rank import needs
from ddbench.compute.run import DistillRun
from ddbench.compute.train import train
from ddbench.grid import runner
from ddbench.ops.augment import SiameseAugment
from ddbench.ops.moves import send, send_network, send_together
from ddbench.plan import SetPlan
from ddbench.results.contents import read_contents
from ddbench.results.store import Store
from ddbench.seeds import global_stream, stream
from ddbench.testing import TOY_NORMED_ARCH, prepared, toy_network, toy_plan, toy_run, toy_spec
from ddbench.testing.pretended import Counts, DeviceError, Pretended, device_of, moved
from ddbench_plugins.losses.bn_statistics import BatchNormStatistics
from ddbench_plugins.losses.cafe import FeatureAlignment
from ddbench_plugins.losses.datadam import AttentionMatching
from ddbench_plugins.losses.dc import GradientMatching, dsa
from ddbench_plugins.losses.dd import DatasetDistillation
from ddbench_plugins.losses.dm import DistributionMatching
from ddbench_plugins.losses.krr import FeatureRegression
from ddbench_plugins.losses.mtt import Tesla, TrajectoryMatching
from ddbench_plugins.spaces.layered import glad, hpd, w_plus
from ddbench_plugins.spaces.pixel import Pixel

CPU = torch.device("cpu")

# ---------------------------------------------------------------- what it sees


def test_tensors_are_where_they_were_made_or_moved() -> None:
    with Pretended() as fake:
        there, here = torch.ones(3, device="cuda"), torch.ones(3)
        assert (there.device, there.is_cuda, here.device) == (fake.device, True, CPU)
        assert here.to("cuda").device == here.cuda().device == torch.as_tensor([1.0], device="cuda:0").device == fake.device
        assert there[1:].device == (there + 1).device == torch.zeros_like(there).device == fake.device
        assert there.to("cpu").device == there.cpu().device == CPU
        assert there.double().device == there.to(torch.float16).device == fake.device
        network = nn.Linear(3, 2).to("cuda")
        assert {parameter.device for parameter in network.parameters()} == {fake.device}
        network(there).sum().backward()
        assert network.weight.grad is not None
        assert network.weight.grad.device == fake.device
    assert there.device == CPU


@pytest.mark.parametrize(
    ("do", "told"),
    [
        (lambda there, here: there + here, "mixes tensors on cpu and cuda:0"),
        (lambda there, here: torch.cat([there, here]), "mixes tensors on cpu and cuda:0"),
        (lambda there, here: there + here.to("cuda:1"), "mixes tensors on cuda:0 and cuda:1"),
        (lambda there, here: here[there.long()], "mixes tensors on cpu and cuda:0"),
        (lambda there, here: torch.rand(3, device="cuda", generator=torch.Generator()), "from a generator of cpu"),
        (lambda there, here: torch.rand(3, generator=torch.Generator("cuda")), "draws on cpu from a generator of cuda"),
        (lambda there, here: there.numpy(), r"numpy\(\) of a tensor on the device"),
    ],
    ids=["sum", "list", "two devices", "index", "generator", "its generator", "numpy"],
)
def test_what_a_device_refuses_is_refused(do: Callable[[Tensor, Tensor], Any], told: str) -> None:
    with Pretended(num_devices=2), pytest.raises(DeviceError, match=told):
        do(torch.ones(3, device="cuda"), torch.ones(3))


def test_a_number_on_the_host_may_meet_what_is_on_the_device() -> None:
    with Pretended() as fake:
        assert (torch.ones(3, device="cuda") * torch.tensor(2.0)).device == fake.device


@pytest.mark.parametrize(
    ("do", "waits"),
    [
        (float, 1), (bool, 1), (Tensor.item, 1), (lambda x: x.expand(2).tolist(), 1), (Tensor.cpu, 1), (lambda x: x + 1, 0),
        (lambda x: x.expand(3)[x.expand(3) > 0], 1), (lambda x: x.expand(3).nonzero(), 1), (lambda x: torch.equal(x, x), 1),
        (lambda x: torch.where(x > 0, x, 0), 0), (lambda x: torch.cuda.synchronize(), 1),
        (lambda x: x.to("cpu", non_blocking=True), 0),
        (lambda x: torch.nn.functional.one_hot(x.long().expand(3), 2), 0), (lambda x: torch.bincount(x.long().expand(3)), 1),
    ],
)  # fmt: skip
def test_waits_are_counted(do: Callable[[Tensor], Any], waits: int) -> None:
    with Pretended() as fake:
        value = torch.ones((), device="cuda")
        with fake.counting() as counts:
            do(value)
    assert len(counts.waits) == waits
    assert all(line.startswith("test_pretended.py:") for line in counts.waits)


def test_copies_from_the_host_are_counted_and_blocking_ones_named() -> None:
    with Pretended() as fake:
        buffer = torch.empty(3, device="cuda")
        with fake.counting() as counts:
            torch.ones(3).to("cuda")
            buffer.copy_(torch.ones(3))
            buffer.copy_(torch.ones(3), non_blocking=True)
            torch.tensor([1.0], device="cuda")
            buffer[torch.tensor([0, 1])]  # torch moves the index
            torch.ones(3).pin_memory().to("cuda", non_blocking=True)
            torch.arange(3, device="cuda")  # made there
    assert (len(counts.copies), len(counts.blocking)) == (6, 4)


def test_launches_are_counted_forwards_and_backwards() -> None:
    with Pretended() as fake:
        x = torch.ones(3, device="cuda", requires_grad=True)
        with fake.counting() as counts:
            torch.ones(3) + 1  # on the host
            y = (x * 2).view(3, 1).t()  # one, and two views
            torch.empty(3, device="cuda")
        forwards = counts.launches
        with fake.counting() as counts:
            y.sum().backward()
    assert (forwards, counts.launches) == (1, 3)  # sum; its own gradient of one; times 2


def test_cuda_refuses_calls_before_it_was_started() -> None:
    with Pretended(is_started=False):
        with pytest.raises(RuntimeError, match="did you call init"):
            torch.cuda.reset_peak_memory_stats(0)
        torch.cuda.set_device(0)
        torch.cuda.reset_peak_memory_stats(0)


def test_a_capture_is_recorded_and_not_done_and_a_replay_does_it() -> None:
    with Pretended() as fake:
        weight, source = torch.ones(3, device="cuda"), torch.ones(3, device="cuda")
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            made = source * 2
            weight.add_(made)
        assert weight.tolist() == [1.0] * 3
        graph.replay()
        assert weight.tolist() == [3.0] * 3
        source.fill_(5)
        graph.replay()
        assert (made.tolist(), weight.tolist()) == ([10.0] * 3, [13.0] * 3)
        for bad in (lambda: float(made[0]), lambda: torch.ones(3).to("cuda"), lambda: torch.tensor([1.0], device="cuda")):
            with pytest.raises(DeviceError, match="capture"), torch.cuda.graph(torch.cuda.CUDAGraph()):
                bad()
        with pytest.raises(DeviceError, match="on cuda:1 in a capture of cuda:0"), torch.cuda.graph(torch.cuda.CUDAGraph()):
            torch.ones(3, device="cuda:1")
        rng = torch.Generator("cuda").manual_seed(1)
        with pytest.raises(DeviceError, match="that the graph does not know"), torch.cuda.graph(torch.cuda.CUDAGraph()):
            torch.rand(3, device="cuda", generator=rng)
        assert fake.graph is None


# ---------------------------------------------------------------- moves


def test_many_tensors_go_in_one_copy_that_does_not_wait() -> None:
    parts = [torch.arange(5), torch.tensor(2.5, dtype=torch.float64), torch.ones(2, 3) / 3, torch.tensor([True, False, True])]
    parts += [torch.arange(6.0).view(2, 3).t(), torch.empty(0, 3)]
    with Pretended() as fake, fake.counting() as counts:
        moved = send_together(parts, fake.device)
        assert send_together([], fake.device) == []
        assert (len(counts.copies), counts.blocking) == (1, [])
        assert {tensor.device for tensor in moved} == {fake.device}
        send(torch.ones(3), fake.device)
        assert counts.blocking == []
    for part, there in zip(parts, moved, strict=True):
        assert (there.dtype, there.shape) == (part.dtype, part.shape)
        assert torch.equal(there, part)
        assert there.data_ptr() % there.element_size() == 0
    moved[0].zero_()  # nobody else's
    assert torch.equal(moved[2], parts[2])
    assert all(there is part for there, part in zip(send_together(parts, CPU), parts, strict=True))


def test_a_network_goes_in_one_copy_and_what_is_tied_stays_tied() -> None:
    network = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3), nn.Linear(3, 3))
    network[2].weight = network[0].weight
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    with Pretended() as fake, fake.counting() as counts:
        assert send_network(network, fake.device) is network
        assert (len(counts.copies), counts.blocking) == (1, [])
        assert {tensor.device for tensor in network.state_dict().values()} == {fake.device}
        assert network[2].weight is network[0].weight
        network(torch.ones(4, 3, device=fake.device)).sum().backward()
    for name, tensor in network.state_dict().items():
        if "running" not in name and "tracked" not in name:
            assert torch.equal(tensor, before[name])


def test_what_the_next_step_needs_is_sent_ahead_of_it() -> None:
    """Once, in the step before, to the values that it would have if it were sent when needed; two steps' are kept at most."""

    def choose(run: Any) -> list[Tensor]:
        return [torch.full((2,), float(run.step)), torch.arange(run.step + 1)]

    with Pretended(index=1, num_devices=2) as fake:
        first = fake.run(toy_run())
        for step in range(4):
            run = first.at(step)
            with fake.counting() as counts:
                found = [run.sent("mine", choose) for _ in range(2)][1]
            assert (len(counts.copies), counts.blocking, counts.waits) == (1 if step == 0 else 0, [], [])
            for there, wanted in zip(found, choose(run), strict=True):
                assert there.device == fake.device
                assert torch.equal(there.cpu(), wanted)
            assert len(run.ahead._sent[run.root, "mine"]) == 1
            with fake.counting() as counts:
                run.send_ahead("mine", choose)
            assert (len(counts.copies), counts.blocking, counts.waits) == (1, [], [])
        assert torch.equal(first.at(7).sent("mine", choose)[1].cpu(), torch.arange(8))  # nobody had sent these
        assert [tensor.numel() for tensor in first.under("x").at(7).sent("mine", lambda run: [torch.ones(5)])] == [5]


def test_nothing_is_sent_ahead_on_a_cpu() -> None:
    run, held = toy_run(), torch.ones(3)
    run.send_ahead("mine", lambda run: pytest.fail("asked for"))
    assert run.sent("mine", lambda run: [held])[0] is held
    assert not run.ahead._sent


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_what_is_sent_ahead_arrives_while_the_device_computes() -> None:
    run = moved(toy_run(), torch.device("cuda", 0))
    busy, sums = torch.randn(2048, 2048, device=run.device), []

    def choose(run: Any) -> list[Tensor]:
        return [torch.full((1 << 20,), float(run.step)), torch.full((3,), run.step)]

    for step in range(50):
        big, small = run.at(step).sent("mine", choose)
        sums.append(torch.stack([big.double().mean(), small.double().mean()]))
        busy = busy @ busy * 1e-4
        run.at(step).send_ahead("mine", choose)
    assert torch.stack(sums).cpu().tolist() == [[float(step)] * 2 for step in range(50)]


@pytest.mark.parametrize("kind", [TrajectoryMatching, Tesla])
def test_expert_snapshots_are_there_before_their_step(kind: Any) -> None:
    loss = kind(num_experts=3, syn_steps=2, augment="none")
    ready = run_of(loss)
    with Pretended() as fake:
        run = fake.run(ready)
        memory, classes = loss.init(run), torch.arange(3, device=fake.device)
        images = torch.zeros(3, *run.spec.shape, device=fake.device).requires_grad_()
        labels = torch.nn.functional.one_hot(classes, 3).float()
        for step in range(3):
            loss.backward(Batch(images, labels, classes), memory, run.at(step))
            with fake.counting() as counts:
                unroll = loss.unroll(Batch(images, labels, classes), memory, run.at(step + 1))
            assert counts.copies == []
            index, epoch = loss.choose(run.at(step + 1))
            held = run.resource(loss._expert(index))
            for at, snapshot in ((epoch, unroll.start), (epoch + loss.expert_epochs, unroll.target)):
                for name, tensor in snapshot.items():
                    assert torch.equal(tensor.cpu(), held[f"{at}/{name}"])


# ---------------------------------------------------------------- steps

EXPERTS = {"num_experts": 2, "syn_steps": 3}
LOSSES: dict[str, Any] = {
    "bn-statistics": BatchNormStatistics(teacher_epochs=1), "cafe": FeatureAlignment(4), "datadam": AttentionMatching(4),
    "dc": GradientMatching(4), "dc, inner loop": GradientMatching(4, outer_loop=2, inner_loop=2), "dsa": dsa(4),
    "dsa, class by class": dsa(4, batched=False), "dm": DistributionMatching(4), "dd": DatasetDistillation(4),
    "dm, class by class": DistributionMatching(4, batched=False), "krr": FeatureRegression(4, pool=1),
    "mtt": TrajectoryMatching(**EXPERTS), "mtt, mini-batches": TrajectoryMatching(**EXPERTS, batch_syn=4),
    "tesla": Tesla(**EXPERTS),
}  # fmt: skip
SPACES = {"glad": glad(2), "w-plus": w_plus(), "hpd": hpd(first=1, step=4, samples=4), "pixel": Pixel(clamp=True)}
CHANGES: dict[str, dict[str, Any]] = {
    "learned labels": {"labels": "learned"}, "by loss": {"rank_steps": "loss"}, "by distance": {"rank_steps": "feature-distance"},
    "chunks": {"chunk": 4}, "adam": {"optimizer": "adam", "schedule": "cosine"},
}  # fmt: skip


def stepped(fake: Pretended, run: DistillRun, plan: SetPlan) -> Counts:
    """What the last step but one asks of the device; what is made once is there by then."""
    loop = Distillation(plan, fake.run(run), Stopwatch(fake.device))
    loop.begin()
    for _ in range(plan.steps - 2):
        loop.one_step()
    with fake.counting() as counts:
        loop.one_step()
    for name, tensor in (loop.state.params | loop.memory).items():
        assert device_of(tensor) == fake.device, name
    return counts


def run_of(*plugins: Any, normed: bool = False) -> DistillRun:
    run = toy_run(depth=5, **({"arch": TOY_NORMED_ARCH} if normed else {}))
    for plugin in plugins:
        run = prepared(plugin, run)
    return run


@pytest.mark.slow
@pytest.mark.parametrize("name", LOSSES)
def test_a_step_of_a_loss_waits_for_nothing(name: str) -> None:
    run = run_of(LOSSES[name], normed=name == "bn-statistics")
    with Pretended() as fake:
        counts = stepped(fake, run, toy_plan(LOSSES[name], Pixel(), steps=4))
    assert (counts.waits, counts.blocking) == ([], [])
    assert len(counts.copies) <= 5


@pytest.mark.parametrize("name", SPACES)
def test_a_step_in_a_space_waits_for_nothing(name: str) -> None:
    with Pretended() as fake:
        counts = stepped(fake, run_of(SPACES[name]), toy_plan(DistributionMatching(4), SPACES[name], steps=4))
    assert (counts.waits, counts.blocking) == ([], [])


@pytest.mark.parametrize("name", CHANGES)
def test_a_step_of_a_plan_waits_for_nothing(name: str) -> None:
    loss, space = DistributionMatching(4), SPACES["hpd"]
    plan = toy_plan(loss, space, **({"steps": 4} | CHANGES[name]))
    run = run_of()
    run = replace(run, resources={need: need.build(run.under("proxy")) for need in needs(plan)})
    with Pretended() as fake:
        counts = stepped(fake, run, plan)
    assert (counts.waits, counts.blocking) == ([], [])


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_a_step_after_a_checkpoint_waits_for_nothing(optimizer: str) -> None:
    plan = toy_plan(DistributionMatching(4), Pixel(), steps=9, optimizer=optimizer, momentum=0.5)
    with Pretended() as fake:
        run = fake.run(run_of())
        loop = Distillation(plan, run, Stopwatch(fake.device))
        loop.begin()
        loop.one_step()
        tensors, meta = loop.put_away()
        again = Distillation(plan, run, Stopwatch(fake.device))
        again.take_up({name: tensor.cpu() for name, tensor in tensors.items()}, meta)
        for one in (loop, again):
            one.one_step()
            with fake.counting() as counts:
                one.one_step()
            assert (counts.waits, counts.blocking) == ([], [])
    assert torch.equal(loop.state.params["pixels"], again.state.params["pixels"])


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_training_waits_at_its_end_alone(optimizer: Any) -> None:
    spec, recipe = toy_spec(), Recipe(3, 0.01, 4, ema=0.9, optimizer=optimizer)
    images, labels = torch.randn(8, *spec.shape, generator=stream("images")), torch.arange(8) % 3
    trained = []
    for pretended in (True, False):
        with Pretended() if pretended else nullcontext() as fake:
            device = fake.device if fake else CPU
            network = send_network(drawn(spec), device)
            with fake.counting() if fake else nullcontext(Counts()) as counts:
                train(network, images.to(device), labels.to(device), recipe, ("t",), SiameseAugment(spec.augmentation))
        if pretended:
            assert [line.rpartition(" ")[2] for line in counts.waits] == ["(_local_scalar_dense)"]  # the last epoch's loss
            assert all(line.startswith("test_pretended") for line in counts.blocking)  # the images above
            assert len(counts.copies) <= 2 + 3 * (1 + 2)  # the images; an epoch's order, and a batch's parameters
        trained.append({name: tensor.clone() for name, tensor in network.state_dict().items()})
    torch.testing.assert_close(trained[0], trained[1])  # a device's rate is a float32


def drawn(spec: Spec) -> nn.Module:
    with global_stream("drawn"):
        return toy_network(spec)


# ---------------------------------------------------------------- whole cells


@pytest.mark.slow
def test_a_whole_cell_mixes_no_devices(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A generator, a proxy, H-PD's walk with both rankers, and judging by two networks."""
    in_process.be_light(monkeypatch)
    monkeypatch.setattr(runner, "run", in_process.run)
    monkeypatch.setattr(in_process, "CPU", torch.device("cuda", 1))
    monkeypatch.chdir(tmp_path)
    Path("suite.toml").write_text(CELL)
    with Pretended(index=1, num_devices=2):
        assert main(["run", "suite.toml", "--store", "store", "--device", "cuda:1", "--prepare"]) == 0
    found = read_contents(Store(Path("store")))
    assert found.faults == ()
    assert len(found.judgements) == 4
    assert {record.place.hardware.device for record in found.judgements} == {"Pretended"}


CELL = """
schema = 1
protocol = "smoke-1"
subsets = ["mnist-5k"]
losses = ["dm"]
spaces = ["hpd"]
baselines = ["random"]
generator = { name = "cvae", epochs = 1, width = 8 }
backbone = { name = "convnet", width = 4, depth = 1 }
networks = [{ name = "convnet", width = 4, depth = 1 }, { name = "alexnet", width = 4 }]
[distill]
steps = 2
rank_epochs = 2
proxy_epochs = 1
rank_steps = "feature-distance"
rank_stages = "validation"
loss = { batch_real = 4 }
space = { samples = 4 }
"""
