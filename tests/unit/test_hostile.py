"""Hostile or careless input: a sentence each, before anything large is made; and names that would steer what shows them."""

from __future__ import annotations

import errno
import io
import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, get_args, get_origin

import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from torch import nn

from ddbench import registry
from ddbench.api import Arch, Spec
from ddbench.cli import main
from ddbench.cli.terminal import Plain, plain
from ddbench.entry_points import NOUNS
from ddbench.errors import BenchError, ConfigError, DataError
from ddbench.evaluate.asked import networks_of
from ddbench.files import parse_toml, read_json
from ddbench.grid.sites import devices_of
from ddbench.grid.worker import sentence_of
from ddbench.leaderboard.tables import code, escape
from ddbench.results import locks
from ddbench.results.store import Store
from ddbench.settings import REQUIRED, Setting, plugin_kind
from ddbench.suite import load
from ddbench.suite.building import Bounded, try_building

Capture = pytest.CaptureFixture[str]
SUITE: dict[str, str] = {
    "schema": "1", "name": '"tiny"', "protocol": '"smoke-1"', "seeds": "[0]", "ipc": "[1]", "subsets": '["mnist-5k"]',
    "losses": '["dm"]', "spaces": '["pixel"]', "backbone": '{ name = "convnet", width = 4, depth = 1 }',
    "networks": '[{ name = "convnet", width = 4, depth = 1 }]', "baselines": "[]",
}  # fmt: skip
BILLION = 10**9
DIGITS = Spec("digits", (1, 28, 28), 10, (0.5,), (0.5,))


class Known:
    """A data set's identity, of no data set."""

    train_hash = test_hash = "0" * 64


def text_of(more: str = "", **changed: str) -> str:
    return "\n".join(f"{key} = {value}" for key, value in {**SUITE, **changed}.items()) + "\n" + more


def refused(tmp_path: Path, text: str) -> str:
    """What is said of a suite."""
    path = tmp_path / "suite.toml"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load.load(str(path), lambda ref, root: Known(), None)
    return str(caught.value)


NESTED, DOTTED = "[" * 5000 + "]" * 5000, ".".join(["a"] * 20_000)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (text_of(networks=NESTED), "nests too deep"),
        (text_of(networks="[" * 40 + "]" * 40), "nests deeper than 32 levels"),
        (f"{DOTTED} = 1\n", "a key has more than 32 parts"),
        (f"[{DOTTED}]\n", "a key has more than 32 parts"),
        (text_of('[distill]\n"a" . ' + DOTTED + " = 1\n"), "a key has more than 32 parts"),
        (text_of(threads="1" + "0" * 5000), "out of range"),
        (text_of(seeds="[100000000000000000000]"), "more than 64 bits"),
        (text_of(data_root='"a\\u0000b"'), "null byte"),
    ],
)
def test_a_text_that_no_suite_is(tmp_path: Path, text: str, told: str) -> None:
    assert told in refused(tmp_path, text)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"networks": '[{ name = "convnet", width = 1000000 }]'}, "'convnet(width=1000000)' is too large"),
        ({"backbone": '{ name = "convnet", width = 1000000 }'}, "'convnet(width=1000000)' is too large"),
        ({"networks": '[{ name = "resnet18", width = 1000000 }]'}, "is too large"),
        ({"networks": '[{ name = "vgg11", width = 1000000000000000000 }]'}, "setting 'width' must be at most 1000000, got 1000"),
        ({"networks": '[{ name = "convnet", depth = 1000000 }]'}, "setting 'depth' must be at most 16"),
        ({"networks": '[{ name = "vit", width = 8, depth = 1000000 }]'}, "setting 'depth' must be at most 1000, got 1000000"),
        ({"spaces": '[{ name = "pixel", repeat = 1000000000 }]'}, "'repeat' must be at most 1000"),
        ({"spaces": '[{ name = "layered", first = 1, repeat = 1000000000 }]'}, "'repeat' must be at most 1000"),
        ({"threads": "1000000000"}, "'threads' must lie in 1..1024, got 1000000000."),
        ({"repeats": "1000000000"}, "'repeats' must lie in 1..10000"),
        ({"ipc": "[]"}, "'ipc' is an empty list"),
        ({"seeds": "[]"}, "'seeds' is an empty list"),
        ({"schema": "true"}, "a suite must say schema = 1; got True"),
        ({"schema": "-1"}, "a suite must say schema = 1; got -1"),
        ({"data_root": '"~nobody-of-that-name/data"'}, "names the home of a user who is not there"),
    ],
)
def test_a_value_that_nobody_can_mean(tmp_path: Path, change: dict[str, str], told: str) -> None:
    assert told in refused(tmp_path, text_of(**change))


def test_a_proxy_is_tried_too(tmp_path: Path) -> None:
    more = '[distill]\nrank_steps = "feature-distance"\nrank_every = 1\nproxy = { name = "convnet", width = 1000000 }\n'
    assert "'convnet(width=1000000)' is too large" in refused(tmp_path, text_of(more))


def holds_integers(annotation: Any) -> bool:
    return annotation is int or any(map(holds_integers, get_args(annotation)))


def example_of(setting: Setting) -> str:
    kind = plugin_kind(setting.annotation)
    return f'"{registry.REGISTRIES[kind].names()[0]}"' if kind else '"x"'


def absurd(kind: str) -> Iterator[tuple[str, str, str, str]]:
    """Of shipped plugins of a kind, every integer setting, with a table of the plugin where it is 10**9."""
    for name in registry.REGISTRIES[kind].names():
        known = registry.REGISTRIES[kind].known(name)
        needed = {key: example_of(setting) for key, setting in known.items() if setting.default is REQUIRED}
        for key, setting in known.items():
            if holds_integers(setting.annotation) and not (key == "seed" and setting.most > BILLION):
                inside = {tuple: f"[{BILLION}]", Mapping: f'{{"x": {BILLION}}}'}
                value = inside.get(get_origin(setting.annotation), str(BILLION))
                told = ", ".join(f"{name} = {value}" for name, value in (needed | {key: value}).items())
                yield name, key, value, f'{{ name = "{name}", {told} }}'


def test_no_integer_setting_of_ours_takes_what_nobody_can_mean(tmp_path: Path, capsys: Capture) -> None:
    """All in one plan, where they can stand beside one another; the rest by themselves."""
    kinds = {"losses": "losses", "spaces": "spaces", "baselines": "baselines", "networks": "architectures", "subsets": "datasets"}
    tables = {key: f"[{', '.join(table for *_, table in absurd(kind))}]" for key, kind in kinds.items()}
    (tmp_path / "suite.toml").write_text(text_of(**tables))
    assert main(["plan", str(tmp_path / "suite.toml"), "--store", str(tmp_path / "store")]) == 2
    told, num = capsys.readouterr().err, 0
    for kind in kinds.values():
        for name, key, *_ in absurd(kind):
            assert f"{NOUNS[kind]} '{name}': setting '{key}' must be at most " in told, (kind, name, key)
            num += 1
    assert told.count(" must be at most ") == num > 80
    for kind in registry.REGISTRIES.keys() - set(kinds.values()):
        for name, key, value, _ in absurd(kind):
            with pytest.raises(ConfigError, match=f"setting '{key}' must be at most "):
                registry.REGISTRIES[kind].resolve(name, {key: json.loads(value)})


def test_a_generator_of_no_size_is_refused_in_a_plan(tmp_path: Path) -> None:
    text = text_of(spaces='["layered"]', generator='{ name = "cvae-random", width = 1000000000 }')
    assert "generator 'cvae-random': setting 'width' must be at most 1024" in refused(tmp_path, text)


@pytest.mark.parametrize("name", ["steps", "total_steps", "rank_every", "rank_epochs", "rank_repeats", "proxy_epochs", "chunk"])
def test_numbers_of_a_distillation(tmp_path: Path, name: str) -> None:
    with_rankers = 'rank_steps = "feature-distance"\nrank_stages = "validation"\n'
    assert f"'{name}' must be at most 1000000" in refused(tmp_path, text_of(f"[distill]\n{with_rankers}{name} = {BILLION}\n"))


@pytest.mark.parametrize("more", ["", "set = {}\n"])
def test_an_override_that_sets_nothing(tmp_path: Path, more: str) -> None:
    told = refused(tmp_path, text_of(f'[[override]]\nwhere = {{ loss = "dm" }}\n{more}'))
    assert "override 1 sets nothing" in told


@pytest.mark.parametrize("broken", [{"subsets": '["cifar11"]'}, {"networks": '["convnett"]'}, {"protocol": '"glad1"'}])
def test_faults_of_losses_and_spaces_are_told_with_those_of_the_rest(tmp_path: Path, broken: dict[str, str]) -> None:
    losses = '["dmm", { name = "dm", batch_rael = 1 }, 7]'
    told = refused(tmp_path, text_of(**broken, losses=losses, spaces='["pixxel", { name = "glad" }]'))
    for part in (*broken.values(), "unknown loss 'dmm'", "no setting 'batch_rael'", "got 7", "unknown space 'pixxel'"):
        assert part.strip('[]"') in told
    assert told.count("unknown loss 'dmm'") == 1


def test_cells_of_baselines_count(tmp_path: Path) -> None:
    many = {"seeds": str(list(range(4000))), "ipc": str(list(range(1, 4001)))}
    told = refused(tmp_path, text_of(**many, losses="[]", spaces="[]", baselines='["random"]'))
    assert "the grid has 16000000 cells; at most 100000 are run from one suite." in told


# ---------------------------------------------------------------- networks


def arch(build: Callable[[Spec], nn.Module]) -> Arch:
    return Arch(build, lr=0.01, min_size=1)


def test_a_network_of_too_many_tensors_is_stopped_on_the_way() -> None:
    def build(spec: Spec) -> nn.Module:
        return nn.Sequential(*(nn.Linear(1, 1) for _ in range(1_000_000)))

    with pytest.raises(ConfigError, match="'endless' is too large: a network has at most"):
        try_building(arch(build), DIGITS, "endless")


def test_one_that_needs_numbers_is_built_in_earnest_and_bounded_all_the_same() -> None:
    seen = []

    def build(spec: Spec, width: int) -> nn.Module:
        rates = [x.item() for x in torch.linspace(0, 1, 2)]  # refused where tensors have no memory
        seen.append(rates)
        return nn.Linear(width, width)

    try_building(arch(lambda spec: build(spec, 4)), DIGITS, "small")
    assert seen == [[0.0, 1.0]]
    with pytest.raises(ConfigError, match="'large' is too large"):
        try_building(arch(lambda spec: build(spec, 1 << 20)), DIGITS, "large")


def test_what_is_counted_is_what_a_network_is_made_of() -> None:
    with Bounded("x") as bounded, torch.device("meta"):
        nn.Conv2d(3, 5, 3)
    assert bounded.values == 3 * 5 * 9 + 5
    assert bounded.tensors == 2


# ---------------------------------------------------------------- the command line


@pytest.mark.parametrize(
    "text",
    ["convnet(width=" + "[" * 3000 + ")", "convnet(depth=1" + "0" * 5000 + ")", "(" * 5000, ",", "convnet(width=\udcff)"],
)
def test_networks_that_are_none(text: str) -> None:
    with pytest.raises(ConfigError):
        networks_of(text)


@pytest.mark.parametrize("workers", [0, -1, 10**9])
def test_workers_that_nobody_can_mean(workers: int) -> None:
    with pytest.raises(ConfigError, match=r"--workers must lie in 1\.\.1024"):
        devices_of("cpu", workers, 1)


@pytest.mark.parametrize(
    ("option", "value"), [("--repeats", 10**20), ("--threads", 10**9), ("--workers", 0), ("--seed", -1), ("--seed", 10**30)]
)
def test_numbers_of_evaluate(capsys: Capture, tmp_path: Path, option: str, value: int) -> None:
    argv = ["evaluate", tmp_path / "no.pt", "--data", "mnist-5k", "--protocol", "smoke-1", "--store", tmp_path / "s"]
    assert main([*map(str, argv), option, str(value)]) == 2
    assert capsys.readouterr().err.startswith(f"ddbench: {option} must lie in ")
    assert not (tmp_path / "s").exists()


@pytest.mark.skipif(not Path("/dev/zero").exists(), reason="no file here never ends")
@pytest.mark.parametrize("argv", [("run", "--plan", "/dev/zero"), ("check", "STORE", "--baseline", "/dev/zero")])
def test_a_file_that_never_ends(capsys: Capture, tmp_path: Path, argv: tuple[str, ...]) -> None:
    Store(tmp_path / "store")
    assert main([str(tmp_path / "store") if word == "STORE" else word for word in argv]) == 2
    assert "/dev/zero is no regular file" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["\x1b[31mred", "\x9b31m", "\u202eevil", "a\udcffb"])
def test_a_name_does_not_reach_the_terminal_as_it_is(capsys: Capture, name: str) -> None:
    assert main(["plan", name]) == 2
    told = capsys.readouterr().err
    assert told.isprintable() or told.replace("\n", "").isprintable()
    assert "unknown suite" in told


def test_a_result_outlives_a_stream_that_lacks_a_character() -> None:
    raw = io.BytesIO()
    stream = Plain(io.TextIOWrapper(raw, encoding="ascii"))
    print("61.2 ± 0.8 – done", file=stream)
    stream.flush()
    assert raw.getvalue() == b"61.2 +- 0.8 - done\n"


def test_the_streams_are_a_callers_own_again(capsys: Capture) -> None:
    before = sys.stdout, sys.stderr
    main(["protocols", "nothing-of-that-name"])
    with pytest.raises(SystemExit):
        main(["no-such-verb"])
    assert (sys.stdout, sys.stderr) == before


@given(st.text())
@example("\x1b]0;title\x07")
def test_plain_text_is_plain_and_says_the_same(text: str) -> None:
    shown = plain(text)
    assert all(char in "\n\t" or ord(char) >= 32 for char in shown)
    assert plain(shown) == shown


# ---------------------------------------------------------------- pages


@pytest.mark.parametrize(
    "text", ["a\n# Heading", "x\u2028# y", "[text](http://evil)", "![i](u)", "[a]: http://evil", "[a][b]", "|", "<b>"]
)
def test_a_name_becomes_nothing_else_on_a_page(text: str) -> None:
    safe = escape(text)
    assert len(safe.splitlines()) == 1
    for sign in ("](", "]:", "][", "<"):
        assert sign not in safe
    assert safe.count("|") == safe.count("\\|")


@pytest.mark.parametrize("text", ["\\ud800", "\\uDFFF", "\\udc00\\ud800"])
def test_half_a_surrogate_pair_is_no_json(capsys: Capture, tmp_path: Path, text: str) -> None:
    """Wherever it stands; a whole pair is a character."""
    path = tmp_path / "baseline.json"
    path.write_text(f'{{"schema": 3, "rows": [{{"name": "{text}"}}]}}')
    with pytest.raises(DataError, match="half of a surrogate pair"):
        read_json(path, "baseline")
    Store(tmp_path / "store")
    assert main(["check", str(tmp_path / "store"), "--baseline", str(path)]) == 2
    assert "half of a surrogate pair" in capsys.readouterr().err
    path.write_text('{"a": "\\ud83d\\ude00"}')
    assert read_json(path, "x") == {"a": "\N{GRINNING FACE}"}


def test_a_page_is_always_utf8() -> None:
    assert escape("\x1b[31m\ud800").encode() == "\N{REPLACEMENT CHARACTER}[31m\N{REPLACEMENT CHARACTER}".encode()
    assert code("a\x1b\nc") == "`a\N{REPLACEMENT CHARACTER} c`"
    assert code("a`b``c") == "``` a`b``c ```", "no backtick ends it"


@given(st.text())
def test_no_line_of_a_name_survives(text: str) -> None:
    assert len(escape(text).splitlines()) <= 1
    escape(text).encode()


# ---------------------------------------------------------------- stores


def test_a_store_without_its_marker_is_told_the_same_by_all(capsys: Capture, tmp_path: Path) -> None:
    root = tmp_path / "store"
    Store(root)
    (root / "sets").mkdir()
    (root / "store.json").unlink()
    told = set()
    for create in (True, False):
        with pytest.raises(DataError) as caught:
            Store(root, create=create)
        told.add(str(caught.value))
    (sentence,) = told
    assert "no store.json" in sentence
    line = sentence.partition("put the line ")[2].partition(" into ")[0]
    (root / "store.json").write_text(line)
    Store(root, create=False)


@pytest.mark.parametrize("number", [errno.EACCES, errno.EPERM])
def test_a_folder_of_somebody_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    store = Store(tmp_path / "store")
    opened = os.open

    def refuse(path: Any, flags: int, *more: Any, **named: Any) -> int:
        if ".lock" in str(path):
            raise OSError(number, os.strerror(number), str(path))
        return opened(path, flags, *more, **named)

    monkeypatch.setattr(locks.os, "open", refuse)
    with pytest.raises(DataError, match=r"no right to write in .*group.*umask"):
        store.lock("x")


def test_a_job_that_may_not_write_does_not_blame_its_plugin(tmp_path: Path) -> None:
    inside = PermissionError(errno.EACCES, "Permission denied", str(tmp_path / "store" / "sets" / "x"))
    told = sentence_of(inside, "dm / pixel", tmp_path / "store")
    assert "no right to write in" in told
    assert "mend the plugin" not in told.lower()
    elsewhere = PermissionError(errno.EACCES, "Permission denied", "/root/x")
    assert "mend the plugin" in sentence_of(elsewhere, "dm / pixel", tmp_path / "store").lower()


# ---------------------------------------------------------------- anything at all

KEYS = (*SUITE, "distill", "override", "iterates", "tune", "proxy", "generator", "preset", "threads", "repeats", "reduced", "x")
LEAVES = st.one_of(
    st.booleans(), st.integers(-(2**70), 2**70), st.floats(), st.text(max_size=8),
    st.sampled_from(["dm", "convnet", "pixel", "mnist-5k", "random", "glad", "cvae", "steps", "name", "where", "set", "width"]),
)  # fmt: skip
NAMES = st.sampled_from(["name", "width", "depth", "where", "set", "loss", "steps", "rates", "pixels"])
VALUES = st.recursive(LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=3), max_leaves=6)


def toml(value: Any) -> str:
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{json.dumps(key)} = {toml(item)}" for key, item in value.items()) + " }"
    if isinstance(value, list):
        return "[" + ", ".join(map(toml, value)) + "]"
    if isinstance(value, float):
        return repr(value)  # as TOML writes it too
    return json.dumps(value).replace("\x7f", "\\u007f") if isinstance(value, str | bool) else str(value)


@pytest.mark.slow
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(st.dictionaries(st.sampled_from(KEYS), VALUES, max_size=3))
def test_a_suite_of_anything_is_read_or_refused(tmp_path: Path, changed: dict[str, Any]) -> None:
    path = tmp_path / "suite.toml"
    path.write_text(text_of(**{key: toml(value) for key, value in changed.items()}), encoding="utf-8", errors="replace")
    try:
        load.load(str(path), lambda ref, root: Known(), None, lenient=True)
    except BenchError:
        return


@given(st.text(max_size=200))
def test_a_text_of_anything_is_toml_or_a_value_error(text: str) -> None:
    try:
        parse_toml(text)
    except ValueError:
        return


@given(st.binary(max_size=200))
def test_bytes_of_anything_are_json_or_a_data_error(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "anything.json"
    path.write_bytes(content)
    try:
        read_json(path, "thing")
    except DataError:
        return
