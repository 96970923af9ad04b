"""Discovery, messages and settings, with made-up distributions and one that pip installs."""

from __future__ import annotations

import argparse
import importlib
import json
import os
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from textwrap import dedent
from types import SimpleNamespace
from typing import Any

import pytest
import tabulate  # noqa: F401  (the tests below take site-packages off the path)
import torch

import ddbench.api
from ddbench import registry
from ddbench.cli import main, plugins
from ddbench.entry_points import twice
from ddbench.errors import ConfigError, Faults, PluginError
from ddbench.refs import PluginRef
from ddbench.registry import REGISTRIES, REQUIRED, Origin, PluginRow, Registry

Install = Callable[..., Path]

PRELUDE = """
from __future__ import annotations
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal
from ddbench.api import Dataset, Loss, Space
from ddbench.errors import ConfigError, DataError
"""

BETA = """
@dataclass(frozen=True)
class DistributionMatching(Loss):
    '''Match means.

    More words.
    '''
    batch_real: int = 256
    rate: float = 1
    paired: bool = False
    mode: Literal["first", "last"] = "first"
    sizes: tuple[int, ...] = (1, 2)
    span: tuple[int, float] = (0, 1.0)
    clip: float | None = None
    rates: Mapping[str, float] = field(default_factory=dict)
    note: str = ""
    folder: Path | None = None
    names: list[str] = field(default_factory=list)
    anything: Any = None
    hook: Callable[[int], int] | None = None

    def __post_init__(self) -> None:
        if self.batch_real < 1:
            raise ConfigError(f"batch_real must be at least 1, got {self.batch_real}.")

    def backward(self, syn, memory, run): ...


def preset(batch_real: int, scale=3, *, note: str = "preset", **rest) -> DistributionMatching:
    '''A factory.'''
    return DistributionMatching(batch_real * scale, note=note)
"""


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Install]:
    """Write made-up distributions; for the length of the test they are the only ones that offer plugins."""
    before, others = set(sys.modules), [entry for entry in sys.path if not list(Path(entry).glob("ddbench*-info"))]
    monkeypatch.setattr(sys, "path", [str(tmp_path), *others])

    def write(info: str, entry_points: str | bytes, folder: str = "", **modules: str) -> Path:
        home = tmp_path / folder
        path = home / f"{info}.dist-info" / "entry_points.txt"
        path.parent.mkdir(parents=True)
        path.write_bytes(entry_points if isinstance(entry_points, bytes) else dedent(entry_points).encode())
        for name, source in modules.items():
            (home / f"{name}.py").write_text(PRELUDE + dedent(source))
        if str(home) not in sys.path:
            sys.path.append(str(home))
        importlib.invalidate_caches()
        return path

    yield write
    for name in set(sys.modules) - before:
        if str(getattr(sys.modules[name], "__file__", None)).startswith(str(tmp_path)):
            del sys.modules[name]


def losses() -> Registry:
    """A registry that has read nothing yet."""
    return Registry("losses")


@pytest.fixture
def dm(install: Install) -> Registry:
    lines = "[ddbench.losses]\ndm = beta:DistributionMatching\npreset = beta:preset\n"
    install("beta-2.0", lines, beta=BETA)
    return losses()


def message(kind: type[Exception], call: Callable[..., object], *args: object) -> str:
    with pytest.raises(kind) as caught:
        call(*args)
    return str(caught.value)


# Discovery


def test_a_separately_installed_distribution_is_found(thirdparty: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "tests-mean-image" not in registry.losses.names()
    monkeypatch.syspath_prepend(str(thirdparty))
    assert {"tests-mean-image", "tests-broken", "dm"} <= set(registry.losses.names())
    assert registry.losses.origin("tests-mean-image") == Origin(
        "losses", "tests-mean-image", "ddbench_example.mean_image:MeanImage", "ddbench-example-plugin", "1.2.3"
    )
    assert registry.losses.resolve("tests-mean-image") == {"batch_real": 64}
    assert registry.losses.make("tests-mean-image", {"batch_real": 8}).batch_real == 8
    assert Path(sys.modules["ddbench_example"].__file__ or "").is_relative_to(thirdparty)
    assert message(PluginError, registry.losses.make, "tests-broken") == (
        "loss 'tests-broken' (ddbench_example.broken:Broken, from ddbench-example-plugin) cannot be imported: "
        "RuntimeError: this module breaks when it is imported."
    )
    assert message(ConfigError, registry.losses.make, "tests-mean-image", {"batch_real": 0}) == (
        "loss 'tests-mean-image': batch_real must be at least 1, got 0."
    )


def test_the_example_loss_has_the_gradient_of_its_formula(thirdparty: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(thirdparty))
    loss = registry.losses.make("tests-mean-image")
    real = torch.arange(16.0).reshape(2, 2, 1, 2, 2)  # [K, images of a class, C, H, W]
    run: Any = SimpleNamespace(
        spec=SimpleNamespace(num_classes=2), step=0, rng=lambda *name: None, real=lambda label, num, rng: real[label]
    )
    images, labels = torch.zeros(3, 1, 2, 2, requires_grad=True), torch.eye(2)[[0, 0, 1]].requires_grad_()
    value = loss.backward(ddbench.api.Batch(images, labels, torch.tensor([0, 0, 1])), {}, run)
    means = real.mean(1)
    assert value == means.square().sum()
    assert not value.requires_grad
    assert images.grad is not None
    torch.testing.assert_close(images.grad, torch.stack([-means[0], -means[0], -2 * means[1]]))


@pytest.mark.slow
def test_from_a_shell_with_pythonpath_the_broken_one_is_only_a_line(thirdparty: Path) -> None:
    code = dedent("""
        import argparse, sys
        from ddbench.cli import plugins
        parser = argparse.ArgumentParser()
        plugins.add_parser(parser.add_subparsers())
        assert "torch" not in sys.modules
        args = parser.parse_args(["plugins", "--kind", "losses", "--json"])
        sys.exit(args.main(args))
    """)
    rows = {row["name"]: row for row in json.loads(_python(code, PYTHONPATH=str(thirdparty)))}
    assert rows["tests-mean-image"] == {
        "kind": "losses",
        "name": "tests-mean-image",
        "distribution": "ddbench-example-plugin",
        "version": "1.2.3",
        "description": "Squared distance of the mean images of every class, without a network.",
        "status": "ok",
        "target": "ddbench_example.mean_image:MeanImage",
        "settings": {"batch_real": 64},
    }
    assert "RuntimeError: this module breaks when it is imported." in rows["tests-broken"]["status"]


def test_listing_names_imports_no_plugin_and_no_torch() -> None:
    code = """if True:
        import sys
        from ddbench import registry
        for kind in registry.REGISTRIES.values():
            kind.names()
        registry.losses.origin("dm")
        print({"torch", "ddbench_plugins", "ddbench.api", "numpy"} & set(sys.modules))
    """
    assert _python(code).strip() == "set()"


def _python(code: str, **environment: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=os.environ | environment, timeout=600)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_there_is_a_registry_for_every_kind_of_the_api() -> None:
    assert list(REGISTRIES) == list(ddbench.api.PLUGIN_TYPES)
    assert all(REGISTRIES[kind] is getattr(registry, kind) for kind in REGISTRIES)
    assert {"dm", "dc", "dsa"} <= set(registry.losses.names())
    assert registry.losses.names() == sorted(registry.losses.names())


def test_two_owners_of_a_name_are_refused_only_when_it_is_used(install: Install, dm: Registry) -> None:
    install("alpha-1.0", "[ddbench.losses]\ndm = ddbench_plugins.losses.dm:DistributionMatching")
    sentence = "loss 'dm' is offered twice: by alpha (ddbench_plugins.losses.dm) and beta (beta). "
    sentence += "Uninstall one or rename it."
    dm.refresh()
    assert dm.names() == ["dm", "preset"]
    for use in (dm.make, dm.origin, dm.settings, dm.resolve):
        assert message(PluginError, use, "dm") == sentence
    assert dm.make("preset", {"batch_real": 1}).batch_real == 3
    assert [(row.distribution, row.status) for row in dm.rows() if row.name == "dm"] == [
        ("alpha", sentence),
        ("beta", sentence),
    ]


def test_three_owners_are_all_named(install: Install) -> None:
    for owner in ("gamma", "beta", "alpha"):
        install(f"{owner}-1", f"[ddbench.losses]\nx = {owner}.x:X")
    assert "offered 3 times: by alpha (alpha.x), beta (beta.x) and gamma (gamma.x)." in message(PluginError, losses().origin, "x")


def test_a_distribution_found_twice_counts_once_and_the_first_wins(install: Install) -> None:
    install("my_beta-2.0", "[ddbench.losses]\ndm = beta:New", folder="first")
    install("My.Beta-1.0", "[ddbench.losses]\ndm = beta:Old\ngone = beta:Gone", folder="second")
    assert losses().names() == ["dm"]
    origin = losses().origin("dm")
    assert (origin.target, origin.distribution, origin.version) == ("beta:New", "my-beta", "2.0")


def test_a_newer_version_without_plugins_hides_an_older_one(install: Install, tmp_path: Path) -> None:
    install("beta-2.0", "[console_scripts]\nbeta = beta:main", folder="first")
    install("beta-1.0", "[ddbench.losses]\ndm = beta:Old", folder="second")
    (tmp_path / "first" / "gamma-1.0.dist-info").mkdir()
    install("gamma-0.9", "[ddbench.losses]\nold = gamma:Old", folder="third")
    assert losses().names() == []


def test_a_distribution_found_twice_is_told(install: Install, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Such as beside a stale egg-info; one that offers nothing is nobody's concern."""
    install("beta-0.0.1", "[console_scripts]\nbeta = beta:main", folder="first")
    install("beta-0.1", "[ddbench.losses]\ndm = beta:Old", folder="second")
    install("plain-1.0", "[console_scripts]\nx = x:y", folder="first")
    install("plain-2.0", "[console_scripts]\nx = x:y", folder="second")
    places = f"0.0.1 in {tmp_path / 'first'} counts, 0.1 in {tmp_path / 'second'} does not"
    told = f"beta is found twice: {places}. Uninstall what is stale."
    assert twice() == [told]
    assert main(["plugins", "--kind", "losses"]) == 0
    assert told in capsys.readouterr().out


def test_leftovers_of_pip_and_other_groups_are_passed_over(install: Install) -> None:
    install("~eta-1.0", "[ddbench.losses]\ndm = beta:X")
    install("delta-1.0", "[ddbench.spaces]\npixel = delta:X\n[other]\nodd line = ! !")
    assert losses().names() == []
    assert losses().rows() == []
    assert Registry("spaces").names() == ["pixel"]


def test_versions_of_a_setuptools_checkout_come_from_its_metadata(install: Install, tmp_path: Path) -> None:
    info = install("unused-1.0", "").parent.rename(tmp_path / "gamma.egg-info")
    (info / "entry_points.txt").write_text("[ddbench.losses]\nx = gamma:X")
    assert losses().origin("x").version == "unknown"
    (info / "PKG-INFO").write_text("Metadata-Version: 2.1\nName: gamma\nVersion: 3.1\n")
    assert losses().origin("x").version == "3.1"


def test_plugins_in_a_zip_file_are_found_and_a_damaged_one_is_named(install: Install, tmp_path: Path) -> None:
    install("unused-1.0", "")
    for name, text in (("zeta", "[ddbench.losses]\nz = zeta:Z"), ("eta", "no section, ddbench.losses")):
        with zipfile.ZipFile(tmp_path / f"{name}-1.0.zip", "w") as archive:
            archive.writestr(f"{name}-1.0.dist-info/entry_points.txt", text)
        sys.path.append(str(tmp_path / f"{name}-1.0.zip"))
    assert losses().names() == ["z"]
    assert [row.distribution for row in losses().rows()] == ["eta", "zeta"]
    assert "MissingSectionHeaderError" in losses().rows()[0].status


def test_what_is_installed_later_is_seen(install: Install, dm: Registry) -> None:
    assert dm.names() == ["dm", "preset"]
    path = install("gamma-1.0", "[ddbench.losses]\nx = gamma:X", folder="later")
    assert dm.names() == ["dm", "preset", "x"]
    path.write_text("[ddbench.losses]\ny = gamma:Y")
    dm.refresh()
    assert dm.names() == ["dm", "preset", "y"]


# Damaged entry points


@pytest.mark.parametrize(
    ("line", "shown"),
    [
        ("bad = beta dm", "'bad = beta dm'"),
        ("bad =", "'bad = '"),
        ("bad = beta", "'bad = beta'"),
        ("bad = beta:dm:x", "'bad = beta:dm:x'"),
        ("bad = beta:100%", "'bad = beta:100%'"),
    ],
)
def test_a_malformed_line_is_reported_and_breaks_nothing_else(
    install: Install, recwarn: pytest.WarningsRecorder, line: str, shown: str
) -> None:
    install("gamma-1.0", f"[ddbench.losses]\n{line}\ndm = beta:DistributionMatching", beta=BETA)
    sentence = f"loss 'bad' of gamma 1.0 cannot be read: its entry point {shown} is not of the form "
    sentence += "'name = module:object'."
    assert losses().names() == ["dm"]
    assert losses().make("dm").batch_real == 256
    assert message(ConfigError, losses().make, "bad") == f"unknown loss 'bad'. Installed: dm. {sentence}"
    assert losses().rows()[0] == PluginRow("losses", "bad", "gamma", "1.0", "", sentence)
    assert not recwarn.list


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        (b"x = gamma:X  # of ddbench.losses", "MissingSectionHeaderError"),
        (b"[ddbench.losses]\nx = gamma:X\nno equals sign", "[line 3]: 'no equals sign'"),
        (b"[ddbench.losses]\nx = gamma:X\nx = gamma:Y", "[line 3]: option 'x'"),
        (b"[ddbench.losses]\nx = gamma:X\xff", "UnicodeDecodeError"),
    ],
)
def test_a_damaged_file_is_reported_and_hides_no_neighbour(install: Install, dm: Registry, content: bytes, fault: str) -> None:
    install("alpha-1.0", content)
    install("zeta-1.0", "[ddbench.losses]\nz = beta:DistributionMatching")
    dm.refresh()
    assert dm.names() == ["dm", "preset", "z"]
    row = dm.rows()[0]
    assert (row.name, row.distribution, row.version) == ("?", "alpha", "1.0")
    assert row.status.startswith("the entry points of alpha 1.0 cannot be read: ")
    assert fault in row.status
    assert "\n" not in row.status
    assert message(ConfigError, dm.make, "x").endswith(f"Installed: dm, preset, z. {row.status}")
    assert Registry("spaces").rows() == []


def test_entry_points_that_cannot_be_opened_are_reported(install: Install, dm: Registry) -> None:
    path = install("gamma-1.0", "")
    path.unlink()
    path.mkdir()  # as root, no permission is denied
    dm.refresh()
    assert dm.names() == ["dm", "preset"]
    assert "IsADirectoryError" in dm.rows()[0].status


# Names and settings


def test_an_unknown_name_is_answered_with_the_nearest(install: Install) -> None:
    lines = "\n".join(f"{name} = beta:X" for name in ("mtt", "dm", "tesla", "dc"))
    install("beta-2.0", f"[ddbench.losses]\n{lines}")
    assert message(ConfigError, losses().make, "dmm") == ("unknown loss 'dmm'. Did you mean 'dm'? Installed: dc, dm, mtt, tesla.")
    assert message(ConfigError, losses().origin, "quite-other").startswith("unknown loss 'quite-other'. Installed: dc")
    assert {kind: message(ConfigError, Registry(kind).make, "x").split("'")[0] for kind in REGISTRIES} == {
        "losses": "unknown loss ",
        "spaces": "unknown space ",
        "generators": "unknown generator ",
        "architectures": "unknown architecture ",
        "proxies": "unknown proxy ",
        "rankers": "unknown ranker ",
        "datasets": "unknown dataset ",
        "baselines": "unknown baseline ",
        "presets": "unknown preset ",
        "protocols": "unknown protocol ",
        "executors": "unknown executor ",
        "assets": "unknown asset ",
    }
    assert message(ConfigError, Registry("spaces").make, "x") == "unknown space 'x'. Installed: none."


@pytest.mark.parametrize(
    ("name", "given", "sentence"),
    [
        ("batch_real", "abc", "must be an integer, got 'abc' (text)."),
        ("batch_real", True, "must be an integer, got true (boolean)."),
        ("batch_real", 2.0, "must be an integer, got 2.0 (number)."),
        ("batch_real", None, "must be an integer, got none."),
        ("batch_real", {}, "must be an integer, got {} (table)."),
        ("rate", False, "must be a number, got false (boolean)."),
        ("rate", "1", "must be a number, got '1' (text)."),
        ("rate", float("inf"), "must be something that JSON can hold, got inf (number)."),
        ("paired", 1, "must be true or false, got 1 (integer)."),
        ("mode", "frist", "must be one of 'first', 'last', got 'frist' (text). Did you mean 'first'?"),
        ("mode", 1, "must be one of 'first', 'last', got 1 (integer)."),
        ("sizes", 3, "must be a list of integers, got 3 (integer)."),
        ("sizes", [1, "a"], "must be a list of integers, got [1, 'a'] (list)."),
        ("span", [1], "must be a list of 2 values, got [1] (list)."),
        ("clip", "no", "must be a number or none, got 'no' (text)."),
        ("rates", {"w": "x"}, "must be a table of numbers, got {'w': 'x'} (table)."),
        ("rates", [1], "must be a table of numbers, got [1] (list)."),
        ("note", 5, "must be text, got 5 (integer)."),
        ("names", ["a", 1], "must be a list of texts, got ['a', 1] (list)."),
        ("folder", 5, "must be of type Path or none, got 5 (integer)."),
        ("note", object(), "must be text, got <object object>."),
    ],
)
def test_a_setting_of_another_type_is_refused(dm: Registry, name: str, given: object, sentence: str) -> None:
    assert message(ConfigError, dm.resolve, "dm", {name: given}) == f"loss 'dm': setting '{name}' {sentence}"


def test_a_long_value_is_not_quoted_whole(dm: Registry) -> None:
    assert len(message(ConfigError, dm.resolve, "dm", {"batch_real": "x" * 1000})) < 150


@pytest.mark.parametrize(
    ("name", "given", "made", "resolved"),
    [
        ("rate", 3, 3.0, 3.0),
        ("sizes", [4, 5], (4, 5), [4, 5]),
        ("span", [1, 2], (1, 2.0), [1, 2.0]),
        ("clip", 2, 2.0, 2.0),
        ("clip", None, None, None),
        ("rates", {"w": 1}, {"w": 1.0}, {"w": 1.0}),
        ("mode", "last", "last", "last"),
        ("folder", "a/b", Path("a/b"), "a/b"),
        ("names", ("a",), ["a"], ["a"]),
        ("anything", [1, {"a": None}], [1, {"a": None}], [1, {"a": None}]),
    ],
)
def test_values_of_toml_become_what_the_annotation_asks(
    dm: Registry, name: str, given: object, made: object, resolved: object
) -> None:
    value = getattr(dm.make("dm", {name: given}), name)
    assert (value, type(value)) == (made, type(made))
    settings = dm.resolve("dm", {name: given})
    assert (settings[name], type(settings[name])) == (resolved, type(resolved))
    assert json.loads(json.dumps(settings)) == settings
    assert dm.make("dm", settings) == dm.make("dm", {name: given})


def test_a_default_spelled_out_changes_nothing_in_the_key(dm: Registry) -> None:
    defaults = dm.settings("dm")
    assert defaults == dm.resolve("dm") == dm.resolve("dm", defaults)
    assert list(defaults)[:5] == ["batch_real", "rate", "paired", "mode", "sizes"]
    assert json.dumps(dm.resolve("dm", {"rate": 1})) == json.dumps(dm.resolve("dm"))
    assert defaults["sizes"] == [1, 2]
    assert dm.make("dm", defaults) == dm.make("dm")


def test_unknown_settings_and_several_faults(dm: Registry) -> None:
    assert message(ConfigError, dm.make, "preset", {"batch_real": 1, "scael": 2}) == (
        "loss 'preset' has no setting 'scael'. Did you mean 'scale'? It takes: batch_real, scale, note."
    )
    with pytest.raises(Faults) as caught:
        dm.resolve("dm", {"batch_rael": 3, "rate": "fast"})
    assert [fault.split(" It takes")[0] for fault in caught.value.faults] == [
        "loss 'dm' has no setting 'batch_rael'. Did you mean 'batch_real'?",
        "loss 'dm': setting 'rate' must be a number, got 'fast' (text).",
    ]


def test_the_parameters_of_a_factory_are_its_settings(dm: Registry) -> None:
    assert dm.settings("preset") == {"batch_real": REQUIRED, "scale": 3, "note": "preset"}
    assert dm.resolve("preset", {"batch_real": 2}) == {"batch_real": 2, "scale": 3, "note": "preset"}
    assert dm.make("preset", {"batch_real": 2, "scale": 1}).batch_real == 2
    sentence = "loss 'preset' needs setting 'batch_real', which has no default. It takes: batch_real, scale, note."
    assert message(ConfigError, dm.make, "preset") == message(ConfigError, dm.resolve, "preset") == sentence
    assert [row.status for row in dm.rows()] == ["ok", "ok"]


SIZES = """
from dataclasses import dataclass
from typing import Annotated
from ddbench.api import AtMost, Loss, Space

Width = Annotated[int, AtMost(10)]

@dataclass(frozen=True)
class Sized(Loss):
    plain: int = 0
    width: Width = 3
    depth: Width | None = None
    sides: tuple[Width, ...] = ()
    seed: Annotated[int, AtMost(2**63 - 1)] = 0
    inner: "Space | None" = None
    def backward(self, syn, memory, run): ...

def sized(width: Width = 4):
    return Sized(width=width)
"""


@pytest.mark.parametrize(
    ("name", "value", "most"),
    [("plain", 10**6, 10**6), ("width", 10, 10), ("depth", 10, 10), ("sides", [1, 10], 10), ("seed", 2**63 - 1, 2**63 - 1)],
)
def test_an_integer_setting_has_a_most(install: Install, name: str, value: Any, most: int) -> None:
    install("delta-1.0", "[ddbench.losses]\nsized = sizes:Sized\nfactory = sizes:sized", sizes=SIZES)
    found = losses()
    assert found.resolve("sized", {name: value})[name] == value
    larger = [*value[:-1], most + 1] if isinstance(value, list) else most + 1
    for call in (found.make, found.resolve):
        told = message(ConfigError, call, "sized", {name: larger})
        assert told.startswith(f"loss 'sized': setting '{name}' must be at most {most}, got ")
    assert found.make("factory", {"width": 10}).width == 10
    assert message(ConfigError, found.make, "factory", {"width": 11}) == (
        "loss 'factory': setting 'width' must be at most 10, got 11 (integer)."
    )


FAMILY = """
@dataclass(frozen=True)
class Named(Loss):
    '''One of many.'''
    model: str
    rate: float = 1.0

    def __post_init__(self) -> None:
        if self.rate < 0:
            raise ConfigError(f"loss 'named' needs a rate of at least 0, got {self.rate}.")

    def backward(self, syn, memory, run): ...

def two(a: str, b: str) -> Named: return Named(a + b)
def number(size: int) -> Named: return Named(str(size))
def none(model: str = "a") -> Named: return Named(model)
"""


@pytest.fixture
def family(install: Install) -> Registry:
    names = {"named": "Named", "two": "two", "number": "number", "none": "none"}
    lines = "".join(f"{name} = family:{target}\n" for name, target in names.items())
    install("delta-1.0", f"[ddbench.losses]\n{lines}named/own = family:none\n", family=FAMILY)
    return losses()


def test_a_member_of_a_family_fills_the_required_setting(family: Registry) -> None:
    assert family.origin("named/x") == family.origin("named")
    assert family.resolve("named/x") == family.resolve("named", {"model": "x"}) == {"model": "x", "rate": 1.0}
    assert family.make("named/x", {"rate": 2}) == family.make("named", {"model": "x", "rate": 2.0})
    assert family.make("named/a/b.c").model == "a/b.c"  # whatever follows the first slash
    assert family.settings("named/x") == family.settings("named") == {"model": REQUIRED, "rate": 1.0}
    assert [family.member(name) for name in ("named", "named/x", "two", "number", "none")] == ["model", "model", *[None] * 3]


def test_a_plugin_whose_own_name_has_a_slash_goes_first(family: Registry) -> None:
    assert family.origin("named/own").name == "named/own"
    assert family.resolve("named/own") == {"model": "a"}


@pytest.mark.parametrize(
    ("name", "given", "sentence"),
    [
        ("name/x", {}, "unknown loss 'name/x'. Did you mean 'named'? Installed: named, named/own, none, number, two."),
        ("named/", {}, "unknown loss 'named/'. Did you mean 'named'? Installed: named, named/own, none, number, two."),
        ("named", {}, "loss 'named' needs setting 'model', which has no default. Write named/MODEL. It takes: model, rate."),
        ("named/x", {"model": "x"}, "loss 'named': the name 'named/x' gives the setting 'model' already. Remove one of the two."),
        ("named/x", {"rate": "y"}, "loss 'named': setting 'rate' must be a number, got 'y' (text)."),
        (
            "none/x",
            {},
            "loss 'none' has no member 'x': none/MEMBER would fill its one required setting, a text, and required here are: "
            "none. Write 'none' and give its settings by name.",
        ),
        (
            "two/x",
            {},
            "loss 'two' has no member 'x': two/MEMBER would fill its one required setting, a text, and required here are: a, b. "
            "Write 'two' and give its settings by name.",
        ),
        (
            "number/3",
            {},
            "loss 'number' has no member '3': number/MEMBER would fill its one required setting, a text, and required here are: "
            "size. Write 'number' and give its settings by name.",
        ),
    ],
)
def test_wrong_members(family: Registry, name: str, given: dict[str, object], sentence: str) -> None:
    assert message(ConfigError, family.make, name, given) == message(ConfigError, family.resolve, name, given) == sentence


def test_a_plugin_is_named_once_in_what_it_refuses(family: Registry) -> None:
    sentence = "loss 'named' needs a rate of at least 0, got -1.0."
    assert message(ConfigError, family.make, "named/x", {"rate": -1}) == sentence


def test_labels_of_members(family: Registry) -> None:
    def ref(name: str, **given: object) -> PluginRef:
        return PluginRef.resolve("losses", name, given)

    assert ref("named/x") == ref("named", model="x") == ref("named", model="x", rate=1)
    found = ref("named/x", rate=2)
    assert (found.name, found.label, found.written) == ("named", "named/x(rate=2.0)", "named/x")
    assert found.settings == {"model": "x", "rate": 2.0}
    others = ref("none"), ref("none", model="b"), ref("number", size=3), ref("two", a="p", b="q")
    assert [other.label for other in others] == ["none", "none(model=b)", "number(size=3)", "two(a=p, b=q)"]
    assert [other.written for other in others] == ["none", "none", "number", "two"]


def test_what_the_plugin_refuses_says_which_plugin(dm: Registry) -> None:
    sentence = "batch_real must be at least 1, got 0."
    assert message(ConfigError, dm.make, "dm", {"batch_real": 0}) == f"loss 'dm': {sentence}"
    assert message(ConfigError, dm.make, "preset", {"batch_real": 0}) == f"loss 'preset': {sentence}"


# Plugins that are not what they should be

STRANGE = """
from typing import TYPE_CHECKING
if TYPE_CHECKING:
    from nowhere import Nothing

class NotFrozen(Loss):
    def backward(self, syn, memory, run): ...

@dataclass
class Thawed(Loss):
    def backward(self, syn, memory, run): ...

@dataclass(frozen=True)
class Abstract(Space):
    def init(self, run): ...

@dataclass(frozen=True)
class Concrete(Loss):
    def backward(self, syn, memory, run): ...

@dataclass(frozen=True)
class Absent(Loss):
    nothing: Nothing = None
    def backward(self, syn, memory, run): ...

@dataclass(frozen=True)
class BadDefault(Loss):
    size: int = "many"
    def backward(self, syn, memory, run): ...

@dataclass(frozen=True)
class LargeDefault(Loss):
    size: int = 10**9
    def backward(self, syn, memory, run): ...

@dataclass(frozen=True)
class NoJson(Loss):
    parts: Any = field(default_factory=lambda: {1, 2})
    def backward(self, syn, memory, run): ...

def gives_function(): return gives_function
def gives_class(): return Concrete
def gives_number(): return 3
def gives_other(): return Abstract
def lacks(): return Abstract()
def fails(): raise KeyError("w")
def no_data(): raise DataError("no file.")
number = 3
"""


@pytest.mark.parametrize(
    ("target", "sentence"),
    [
        ("NotFrozen", "{} must be a frozen dataclass deriving from Loss, got <class NotFrozen>."),
        ("Thawed", "{} must be a frozen dataclass deriving from Loss, got <class Thawed>."),
        ("Abstract", "{} must be a frozen dataclass deriving from Loss, got <class Abstract>."),
        ("gives_function", "{} must be a frozen dataclass deriving from Loss, got <function gives_function>."),
        ("gives_class", "{} must be a frozen dataclass deriving from Loss, got <class Concrete>."),
        ("gives_number", "{} must be a frozen dataclass deriving from Loss, got 3 (integer)."),
        ("number", "{} must be a frozen dataclass deriving from Loss, got 3 (integer)."),
        ("lacks", "{} cannot be made: TypeError: Can't instantiate abstract class Abstract with"),
        ("fails", "{} cannot be made: KeyError: 'w'."),
        ("no_data", "{} cannot be made: DataError: no file."),
        ("missing", "{} cannot be imported: AttributeError: module 'strange' has no attribute 'missing'."),
        ("Absent", "the settings of {} cannot be read: NameError: name 'Nothing' is not defined."),
        ("BadDefault", "the settings of {} cannot be read: ValueError: the default of 'size' must be an integer, "),
        ("LargeDefault", "the settings of {} cannot be read: ValueError: the default of 'size' must be at most 1000000, unless "),
    ],
)
def test_a_plugin_that_breaks_its_contract(install: Install, target: str, sentence: str) -> None:
    lines = f"[ddbench.losses]\nx = strange:{target}\ngood = strange:Concrete"
    install("gamma-1.0", lines, strange=STRANGE)
    found = message(PluginError, losses().make, "x")
    assert found.startswith(sentence.format(f"loss 'x' (strange:{target}, from gamma)"))
    rows = {row.name: row.status for row in losses().rows()}
    assert rows == {"x": found, "good": "ok"}


def test_missing_methods_are_named(install: Install) -> None:
    install("gamma-1.0", "[ddbench.spaces]\nx = strange:Abstract", strange=STRANGE)
    assert message(PluginError, Registry("spaces").make, "x") == (
        "space 'x' (strange:Abstract, from gamma) does not define what every space must: classes, decode."
    )


def test_a_default_that_json_cannot_hold_is_the_authors_fault(install: Install) -> None:
    install("gamma-1.0", "[ddbench.losses]\nx = strange:NoJson", strange=STRANGE)
    sentence = "loss 'x' (strange:NoJson, from gamma): setting 'parts' must be something that JSON can hold, got "
    assert message(PluginError, losses().resolve, "x") == sentence + "<set object>."
    assert losses().rows()[0].status == sentence + "<set object>."


@pytest.mark.parametrize(
    ("source", "cause"),
    [
        ("import nowhere", "ModuleNotFoundError: No module named 'nowhere'."),
        ("def (", "SyntaxError: invalid syntax (broken.py, line"),
        ("raise SystemExit(3)", "SystemExit: 3."),
        ("raise ValueError", "ValueError."),
        ("raise ConfigError('two\\nlines.')", "ConfigError: two lines."),
    ],
)
def test_a_broken_import_breaks_its_own_plugin_only(install: Install, dm: Registry, source: str, cause: str) -> None:
    install("gamma-1.0", "[ddbench.losses]\nbroken = broken:Broken", broken=source)
    dm.refresh()
    sentence = f"loss 'broken' (broken:Broken, from gamma) cannot be imported: {cause}"
    assert message(PluginError, dm.make, "broken").startswith(sentence)
    assert message(PluginError, dm.settings, "broken").startswith(sentence)
    assert dm.make("dm").batch_real == 256
    assert [row.status == "ok" for row in dm.rows()] == [False, True, True]


def test_interrupts_are_not_swallowed(install: Install) -> None:
    install("gamma-1.0", "[ddbench.losses]\nx = stopped:X", stopped="raise KeyboardInterrupt")
    with pytest.raises(KeyboardInterrupt):
        losses().make("x")


# The verb

TABLE = """\
kind    name    from       status    description
------  ------  ---------  --------  -------------
losses  dm      beta 2.0   ok        Match means.
losses  lost    gamma 1.0  broken
losses  preset  beta 2.0   ok        A factory.

loss 'lost' (nowhere:X, from gamma) cannot be imported: ModuleNotFoundError: No module named 'nowhere'.
"""


@pytest.fixture
def ddbench_plugins(install: Install, dm: Registry, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    def call(*argv: str) -> str:
        parser = argparse.ArgumentParser()
        plugins.add_parser(parser.add_subparsers())
        args = parser.parse_args(["plugins", *argv])
        assert args.main(args) == 0
        return capsys.readouterr().out

    install("gamma-1.0", "[ddbench.losses]\nlost = nowhere:X")
    return call


def test_the_table(ddbench_plugins: Callable[..., str]) -> None:
    assert [line.rstrip() for line in ddbench_plugins().splitlines()] == TABLE.splitlines()
    assert ddbench_plugins("--kind", "losses") == ddbench_plugins()
    assert ddbench_plugins("--kind", "spaces").splitlines()[0].split() == TABLE.splitlines()[0].split()


def test_the_json(ddbench_plugins: Callable[..., str]) -> None:
    rows = json.loads(ddbench_plugins("--json"))
    assert rows[0].pop("settings")["batch_real"] == 256
    assert rows[0] == {
        "kind": "losses",
        "name": "dm",
        "distribution": "beta",
        "version": "2.0",
        "description": "Match means.",
        "status": "ok",
        "target": "beta:DistributionMatching",
    }
    keys = [*rows[0], "settings"]
    assert [(row["name"], row["status"] == "ok", list(row)) for row in rows[1:]] == [
        ("lost", False, keys),
        ("preset", True, keys),
    ]


def test_a_two_owner_name_is_explained_once(install: Install, ddbench_plugins: Callable[..., str]) -> None:
    install("alpha-1.0", "[ddbench.losses]\ndm = alpha.dm:X")
    registry.losses.refresh()
    assert ddbench_plugins().count("is offered twice: by alpha (alpha.dm) and beta (beta).") == 1
