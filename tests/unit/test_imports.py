"""The import map: which way imports point, who may open the test split, and who may seed.

Layers are compared by module; what is imported inside a function counts too.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ddbench.compute.run import DistillRun, open_run
from ddbench.data.sealed import open_test
from ddbench.data.subsets import identify, load_training
from ddbench.errors import BenchError
from ddbench.plan import SetPlan
from ddbench.refs import PluginRef

ROOT = Path(__file__).parents[2]
CPU = torch.device("cpu")
FOLDERS = {"ddbench": ROOT / "benchmark", "ddbench_plugins": ROOT / "plugins"}

# From the bottom to the top. A module may import from its own line (without a cycle) and from the lines above it.
LAYERS = (
    ("errors", "durations"),
    ("api",),
    ("ops",),
    ("files", "seeds", "settings", "suites"),
    ("entry_points",),
    ("registry",),
    ("identity", "protocols"),
    ("refs",),
    ("trials",),
    ("plan",),
    ("schema",),
    ("data",),
    ("suite",),
    ("results",),
    ("compute",),
    ("evaluate",),
    ("grid", "leaderboard"),
    ("testing",),
    ("cli", "__main__"),
)
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}
PLUGINS_MAY = ("ddbench.api", "ddbench.ops", "ddbench.errors")
FAMILIES = (
    "ddbench_plugins.stylegan",
    "ddbench_plugins.diffusion",
    "ddbench_plugins.requeued",
)  # helpers, and no plugin themselves


def modules(package: str) -> dict[str, Path]:
    """Every module of a package by its dotted name."""
    folder, found = FOLDERS[package], {}
    for path in sorted((folder / package).rglob("*.py")):
        parts = path.relative_to(folder).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


ALL = {package: modules(package) for package in FOLDERS}
KNOWN = {name for found in ALL.values() for name in found}


def is_typing(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING")


def walk(node: ast.AST, top: bool = True) -> Iterator[tuple[ast.AST, bool]]:
    """Every node that runs, and whether it runs when the module is imported."""
    for child in ast.iter_child_nodes(node):
        if is_typing(child):
            continue
        yield child, top
        yield from walk(child, top and not isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda))


def imports(path: Path) -> Iterator[tuple[str, int, bool]]:
    """(module of ours, line, whether at import) for each import statement."""
    for node, top in walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}:{node.lineno} imports relatively"
            base = node.module or ""
            inside = [f"{base}.{alias.name}" for alias in node.names]
            names = [name if name in KNOWN else base for name in inside]
        else:
            continue
        for name in dict.fromkeys(names):
            if name.split(".")[0] in FOLDERS:
                yield name, node.lineno, top


def part(module: str) -> str:
    """`ddbench.data.sealed` -> `data`; the package itself is the empty string."""
    return module.split(".")[1] if "." in module else ""


def where(path: Path, line: int) -> str:
    return f"{path.relative_to(ROOT)}:{line}"


def test_every_module_has_a_layer() -> None:
    assert {part(name) for name in ALL["ddbench"]} - {""} == set(LEVEL)


UNPICKLERS = {"pickle", "_pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal", "shelve"}


def test_nothing_unpickles() -> None:
    """Files that users bring are read by ddbench.ops.pickles; torch.load is an unpickler as well, and so may numpy.load be."""
    faults = []
    for path in (path for found in ALL.values() for path in found.values()):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            if UNPICKLERS & {name.partition(".")[0] for name in names}:
                faults.append(f"{path.relative_to(ROOT)} imports an unpickler: {ast.unparse(node)}")
            if isinstance(node, ast.Attribute) and ast.unparse(node) in ("torch.load", "torch.jit.load", "np.load", "numpy.load"):
                faults.append(f"{where(path, node.lineno)} calls {ast.unparse(node)}")
    assert not faults, "\n".join(faults)


def test_the_core_imports_downwards_and_no_plugin() -> None:
    faults = []
    for name, path in ALL["ddbench"].items():
        for target, line, _ in imports(path):
            if target.split(".")[0] == "ddbench_plugins":
                faults.append(f"{where(path, line)} imports the plugins: {target}")
            elif part(name) and part(target) and LEVEL[part(target)] > LEVEL[part(name)]:
                faults.append(f"{where(path, line)} imports upwards: {name} -> {target}")
    assert not faults, "\n".join(faults)


def test_plugins_import_the_interface_only() -> None:
    faults = []
    for name, path in ALL["ddbench_plugins"].items():
        for target, line, _ in imports(path):
            ours = target == name or name.startswith(target + ".")
            if not (ours or any(target == may or target.startswith(may + ".") for may in (*PLUGINS_MAY, *FAMILIES))):
                faults.append(f"{where(path, line)} imports {target}")
    assert not faults, "\n".join(faults)


def test_helpers_of_a_family_are_no_plugins() -> None:
    targets = {entry.value.partition(":")[0] for entry in metadata.distribution("ddbench").entry_points}
    for family in FAMILIES:
        inside = {name for name in ALL["ddbench_plugins"] if name == family or name.startswith(f"{family}.")}
        assert inside
        assert not inside & targets
        for name in inside:
            others = [target for target, _, _ in imports(ALL["ddbench_plugins"][name]) if target.startswith("ddbench_plugins.")]
            assert set(others) <= inside, f"{name} imports a plugin"


def test_no_import_runs_in_a_circle() -> None:
    edges = {
        name: {target for target, _, top in imports(path) if top and target != name}
        for found in ALL.values()
        for name, path in found.items()
    }
    done: set[str] = set()

    def visit(name: str, trail: tuple[str, ...]) -> None:
        assert name not in trail, f"a circle: {' -> '.join((*trail[trail.index(name) :], name))}"
        if name not in done:
            for target in sorted(edges.get(name, ())):
                visit(target, (*trail, name))
            done.add(name)

    for name in sorted(edges):
        visit(name, ())


def test_only_the_evaluation_opens_the_test_split() -> None:
    faults = []
    for found in ALL.values():
        for name, path in found.items():
            allowed = name == "ddbench.grid.do" or name.startswith("ddbench.evaluate")
            for target, line, _ in imports(path):
                if target == "ddbench.data.sealed" and not allowed:
                    faults.append(f"{where(path, line)} imports the sealed test split")
            if name in ("ddbench.data.sealed", "ddbench.data.subsets"):
                continue
            for node, _ in walk(ast.parse(path.read_text())):
                named = isinstance(node, ast.Call) and ast.unparse(node.func).rpartition(".")[2] == "load_split"
                if named:
                    faults.append(f"{where(path, node.lineno)} loads a split")  # type: ignore[attr-defined]
    assert not faults, "\n".join(faults)


GLOBAL_DRAWS = {
    "torch.rand", "torch.randn", "torch.randint", "torch.randperm", "torch.normal", "torch.bernoulli", "torch.multinomial",
    "torch.rand_like", "torch.randn_like", "torch.randint_like",
}  # fmt: skip
SEEDERS = ("manual_seed", "manual_seed_all", "fork_rng", "set_rng_state", "seed_all", "initial_seed")


def test_only_seeds_seeds_and_nobody_draws_from_a_global_stream() -> None:
    faults = []
    for name, path in (ALL["ddbench"] | ALL["ddbench_plugins"]).items():
        if part(name) == "testing":  # contract checks: one of them moves the global stream to see that nothing else does
            continue
        initialises = name.startswith("ddbench_plugins.architectures.")  # inside the stream that run.network lends
        for node, _ in walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Call):
                continue
            called = ast.unparse(node.func)
            last = called.rpartition(".")[2]
            own = last == "manual_seed" and called.startswith("torch.Generator(")  # a generator of one's own
            if last in SEEDERS and not own and name != "ddbench.seeds":
                faults.append(f"{where(path, node.lineno)} seeds: {called}")
            if own and name.startswith("ddbench.") and part(name) not in ("seeds", "testing"):
                faults.append(f"{where(path, node.lineno)} makes a stream without a name: {called}")
            keywords = {keyword.arg for keyword in node.keywords}
            if called in GLOBAL_DRAWS and "generator" not in keywords and not initialises:
                faults.append(f"{where(path, node.lineno)} draws from the global stream: {called}")
            if called.startswith(("np.random.", "numpy.random.", "random.")):
                faults.append(f"{where(path, node.lineno)} draws from a stream without a name: {called}")
            seeding = last in ("stream", "global_stream", "seed_of", "rng", "Generator", "manual_seed")
            if seeding and any("time" in ast.unparse(value) for value in (*node.args, *[k.value for k in node.keywords])):
                faults.append(f"{where(path, node.lineno)} seeds from the clock: {ast.unparse(node)}")
    assert not faults, "\n".join(faults)


# What a plugin holds


def reachable(start: object) -> Iterator[tuple[str, Tensor]]:
    """Every tensor that attributes, items and properties lead to, with its path."""
    seen: set[int] = set()
    keep: list[object] = []  # so that no id is used twice
    stack: list[tuple[str, object]] = [("run", start)]
    while stack:
        path, value = stack.pop()
        if id(value) in seen or isinstance(value, str | bytes | int | float | bool | type | None):
            continue
        seen.add(id(value))
        keep.append(value)
        if isinstance(value, Tensor):
            yield path, value
            continue
        if isinstance(value, nn.Module):
            stack.extend((f"{path}.{name}", tensor) for name, tensor in value.state_dict().items())
        if isinstance(value, dict):
            stack.extend((f"{path}[{key!r}]", item) for key, item in value.items())
        elif isinstance(value, list | tuple | set | frozenset):
            stack.extend((f"{path}[{number}]", item) for number, item in enumerate(value))
        bound = getattr(value, "__closure__", None) or ()
        stack.extend((f"{path}.<closure>", cell.cell_contents) for cell in bound)
        if type(value).__module__.split(".")[0] in FOLDERS:
            for name in dir(value):
                if not name.startswith("__"):
                    with suppress(BenchError):  # a generator, where the plan names none
                        stack.append((f"{path}.{name}", getattr(value, name)))


def rows_of(tensor: Tensor, shape: tuple[int, ...]) -> set[bytes]:
    """The images in a tensor, as bytes."""
    if tensor.dim() < 3 or tuple(tensor.shape[-3:]) != shape:
        return set()
    return {image.contiguous().numpy().tobytes() for image in tensor.detach().reshape(-1, *shape)}


@pytest.fixture(scope="module")
def run() -> DistillRun:
    dataset = PluginRef.resolve("datasets", "mnist-5k", {})
    plan = SetPlan(
        dataset=dataset,
        train_hash=identify(dataset, None).train_hash,
        ipc=1,
        seed=0,
        held_out=0.1,
        backbone=PluginRef.resolve("architectures", "convnet", {"width": 4}),
        loss=PluginRef.resolve("losses", "dm", {}),
        space=PluginRef.resolve("spaces", "pixel", {}),
    )
    return open_run(plan, load_training(dataset, None, plan.held_out, CPU), CPU, {})


def both_forms(images: Tensor, run: DistillRun) -> set[bytes]:
    """Test images as the bytes they are kept as, and as networks see them."""
    return rows_of(images, run.spec.shape) | rows_of(run.spec.normalise(images), run.spec.shape)


def test_no_path_from_a_run_leads_to_a_test_image(run: DistillRun) -> None:
    sealed = open_test(PluginRef.resolve("datasets", "mnist-5k", {}), None, CPU)
    test = both_forms(sealed.images, run)
    found = dict(reachable(run))
    assert {"run.data.images", "run.data.validation_images"} & found.keys()  # the walk does arrive at images
    images = {path: rows_of(tensor, run.spec.shape) for path, tensor in found.items()}
    assert sum(map(len, images.values())) >= 3900  # 4,000 training images, some of them possibly equal
    assert [path for path, rows in images.items() if rows & test] == []
    drawn = torch.cat([run.real(label, 10_000, run.rng("all")) for label in range(run.spec.num_classes)])
    assert not rows_of(drawn, run.spec.shape) & test
    assert len(drawn) == 3600


def test_training_and_validation_do_not_overlap(run: DistillRun) -> None:
    assert not rows_of(run.data.images, run.spec.shape) & rows_of(run.data.validation_images, run.spec.shape)
    assert run.data.validation_labels.bincount().tolist() == [40] * 10
    assert run.class_counts == (360,) * 10
    for label, (start, stop) in enumerate(zip(run.data.starts, run.data.starts[1:], strict=False)):
        assert set(run.data.labels[start:stop].tolist()) == {label}


def test_the_walk_finds_hidden_images(run: DistillRun) -> None:
    """The check above can fail: a test image behind a closure or inside a resource is found."""
    sealed = open_test(PluginRef.resolve("datasets", "mnist-5k", {}), None, CPU)
    leaky = DistillRun(run.root, run.data, run.backbone, 1, run.device, {None: {"x": sealed.images[:1]}})  # type: ignore[dict-item]
    test = both_forms(sealed.images, run)
    seen = replace(leaky, resources={None: {"x": run.spec.normalise(sealed.images[:1])}})  # type: ignore[dict-item]
    assert [path for path, tensor in reachable(seen) if rows_of(tensor, run.spec.shape) & test] == ["run.resources[None]['x']"]
    assert [path for path, tensor in reachable(leaky) if rows_of(tensor, run.spec.shape) & test] == ["run.resources[None]['x']"]
    hidden = sealed.images

    def closure() -> Any:
        return hidden

    assert any(tensor is hidden for _, tensor in reachable(closure))
