"""A pretended CUDA device, for tests on machines without one; long because it stands for a whole device.

Tensors are real ones on the CPU whose storages carry a mark. A function mode answers `.device` and moves; a dispatch mode sees
every operation, also of backward passes, refuses those that mix devices or draw from a generator of another one, and counts what
a real device would be asked to do: launches (a lower bound: one an operation that makes a tensor, or changes one), copies, and
waits, where the host would stop until the device has caught up. `torch.cuda` is a stub that refuses calls before it was started.
A captured graph is a list of operations that is run again when it is replayed, on the very tensors, as a real graph is.

What it cannot see: the order of kernels on several streams, rounding, memory, and speed.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import Any, ClassVar
from unittest import mock

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map_only

from ddbench.compute.run import DistillRun
from ddbench.compute.skeleton import Skeletons

MARK = "_ddbench_device"
CPU = torch.device("cpu")
WAITS = frozenset(
    [
        "_local_scalar_dense",
        "nonzero",
        "masked_select",
        "equal",
        "is_nonzero",
        "_unique2",
        "unique_dim",
        "unique_consecutive",
        "bincount",
        "_linalg_check_errors",
    ]
)  # operations whose result, or its size, the host has to know
RESHAPING = frozenset(["squeeze_", "unsqueeze_", "transpose_", "t_", "as_strided_", "detach_"])  # that change no value
UNSAID = {"aten::native_batch_norm": (3, 4)}  # what operations write that do not say so: the running statistics
CHECKED = (torch.nn.functional.one_hot,)  # that look at values on a CPU alone, as fused optimisers look at a rate
INDEXED = ("index", "index_put", "index_put_", "_index_put_impl_")  # that take an index on the host too
FROM_HOST = ("tensor", "as_tensor", "asarray", "new_tensor")  # that copy values from the host
SILENT = frozenset(["empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided"])  # that launch nothing


class DeviceError(AssertionError):
    """What a real device would refuse, or would silently do elsewhere."""


def bare(tensor: Tensor) -> Tensor:
    """Out of what vmap and grad wrap it in."""
    while torch._C._functorch.is_functorch_wrapped_tensor(tensor):
        tensor = torch._C._functorch.get_unwrapped(tensor)
    return tensor


def device_of(tensor: Tensor) -> torch.device:
    """Where a tensor is, or is pretended to be."""
    with torch._C.DisableTorchFunction():
        inner = bare(tensor)
        return getattr(inner.untyped_storage(), MARK, inner.device)


def _mark(tensor: Tensor, device: torch.device) -> None:
    with torch._C.DisableTorchFunction():
        storage = bare(tensor).untyped_storage()
        if device.type == "cuda":
            setattr(storage, MARK, device)
        elif hasattr(storage, MARK):
            delattr(storage, MARK)


def _tensors(*values: Any) -> list[Tensor]:
    return [value for value in tree_flatten(values)[0] if isinstance(value, Tensor)]


def _where() -> str:
    """The line of the innermost caller that is neither torch's nor of this module."""
    frame = sys._getframe(1)
    while frame.f_back and ("/torch/" in frame.f_code.co_filename or frame.f_code.co_filename in (__file__, mock.__file__)):
        frame = frame.f_back
    return f"{frame.f_code.co_filename.rpartition('/')[2]}:{frame.f_lineno}"


@dataclass
class Counts:
    """What a device was asked to do."""

    launches: int = 0
    waits: list[str] = field(default_factory=list)  # the lines that stopped the host
    copies: list[str] = field(default_factory=list)  # the lines that copied from the host
    blocking: list[str] = field(default_factory=list)  # those of them that waited for the device


_REAL = torch.Generator  # under which name a pretended device puts its own


class Generator(torch.Generator):
    """Draws on the CPU, and says that it does so on the device."""

    pretended: torch.device
    known: ClassVar[dict[int, Generator]] = {}  # by what torch calls them inside, where they have another face

    def __new__(cls, device: Any = "cpu") -> Generator:
        """As torch's."""
        made: Generator = _REAL.__new__(cls, "cpu")  # type: ignore[call-arg]
        made.pretended = torch.device(device)
        cls.known[made._cdata] = made  # type: ignore[attr-defined]
        return made

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        """The one that was asked for."""
        return self.pretended


class _Functions(TorchFunctionMode):
    """Python's side: where a tensor is, moves, and which device a function makes new tensors on."""

    def __init__(self, state: Pretended) -> None:
        super().__init__()
        self.state = state
        self.getters = {
            Tensor.device.__get__: device_of,
            Tensor.is_cuda.__get__: lambda tensor: device_of(tensor).type == "cuda",  # type: ignore[attr-defined]
            Tensor.is_cpu.__get__: lambda tensor: device_of(tensor).type == "cpu",  # type: ignore[attr-defined]
            Tensor.get_device: lambda tensor: -1 if device_of(tensor).index is None else device_of(tensor).index,
            Tensor.is_pinned: lambda tensor: False,
            Tensor.pin_memory: lambda tensor: tensor,
        }

    def __torch_function__(self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None) -> Any:
        """See the class."""
        kwargs, state = dict(kwargs or {}), self.state
        if func in self.getters:
            return self.getters[func](*args[:1])
        if func in (Tensor.to, Tensor.cpu, Tensor.cuda):
            return self._to(func, *args, **kwargs)
        inputs = _tensors(args, kwargs)
        on_device = any(device_of(tensor).type == "cuda" for tensor in inputs)
        if func is Tensor.numpy and on_device:
            raise DeviceError(f"{_where()}: numpy() of a tensor on the device: move it first.")
        if func is Tensor.tolist and on_device:
            state.wait("tolist")
        named = kwargs.get("device")
        device = state.normal(named) if named is not None else state.device_of_all(inputs)
        if device.type == "cuda" and named is not None:
            kwargs["device"] = CPU
        state.making.append(device)
        state.is_checking = func in CHECKED or getattr(func, "__name__", "").startswith("_fused_")
        try:
            made = func(*args, **kwargs)
        finally:
            state.making.pop()
            state.is_checking = False
        if named is not None and getattr(func, "__name__", "") in FROM_HOST and device.type == "cuda":
            _mark(made, device)
            state.copy(blocking=True)
        return made

    def _to(self, func: Any, tensor: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """A move, a cast or a change of layout."""
        if func is Tensor.cpu:
            args, kwargs = (CPU,), {}
        elif func is Tensor.cuda:
            args, kwargs = (kwargs.get("device", args[0] if args else "cuda"),), {}
        if args and isinstance(args[0], Tensor):
            args = (device_of(args[0]), args[0].dtype, *args[1:])
        copy = kwargs.pop("copy", False)
        device, dtype, non_blocking, layout = torch._C._nn._parse_to(*args, **kwargs)
        casts = {"dtype": dtype or tensor.dtype, "copy": copy} | ({"memory_format": layout} if layout is not None else {})
        before = device_of(tensor)
        after = before if device is None else self.state.normal(device)
        if "meta" in (before.type, after.type):
            return tensor.to(after, dtype or tensor.dtype)
        if after == before:
            self.state.making.append(before)
            try:
                return tensor.to(**casts)
            finally:
                self.state.making.pop()
        with self.state.quiet():
            moved = tensor.to(**casts)
            if bare(moved).untyped_storage()._cdata == bare(tensor).untyped_storage()._cdata:
                moved = moved.clone()
        _mark(moved, after)
        if after.type == "cuda":
            self.state.copy(blocking=not non_blocking)
        elif not non_blocking:
            self.state.wait("a move to the host")
        return moved


class _Operations(TorchDispatchMode):
    """Every operation, whoever calls it."""

    def __init__(self, state: Pretended) -> None:
        super().__init__()
        self.state = state

    def __torch_dispatch__(self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None) -> Any:
        """See the class."""
        kwargs, state = dict(kwargs or {}), self.state
        if func.namespace != "aten":
            return func(*args, **kwargs)
        inputs, name = _tensors(args, kwargs), func._schema.name.partition("::")[2]
        devices = {device_of(tensor) for tensor in inputs if tensor.dim() or device_of(tensor).type == "cuda"}
        if name == "copy_" and len(devices) > 1:
            self._copies(args, kwargs)
        elif name in INDEXED and len(devices) > 1 and device_of(args[0]).type == "cuda":
            state.copy(blocking=True)  # torch moves the index
            devices = {device_of(args[0])}
        elif len(devices) > 1 and not state.is_quiet:
            raise DeviceError(f"{_where()}: {func} mixes tensors on {' and '.join(sorted(map(str, devices)))}.")
        device = next(iter(devices)) if devices else (state.making[-1] if state.making and not inputs else CPU)
        self._check_generator(func, device, args, kwargs)
        if device.type == "cuda" and (name in WAITS or self._asks_for_a_mask(name, args)):
            state.wait(name)
        if state.graph is not None and device.type == "cuda" and device.index != state.current:
            raise DeviceError(f"{_where()}: {func} on {device} in a capture of cuda:{state.current}, which does not see it.")
        is_recorded = state.graph is not None and device.type == "cuda" and name not in RESHAPING
        given = tree_map_only(Tensor, Tensor.detach, (args, kwargs)) if is_recorded else None  # shapes as they are now
        state.remember(func, args, is_recorded)
        made = func(*args, **kwargs)
        old = {tensor.untyped_storage()._cdata for tensor in inputs}
        new = [tensor for tensor in _tensors(made) if tensor.untyped_storage()._cdata not in old]
        for tensor in new:
            _mark(tensor, device)
        if device.type == "cuda" and (new or func._schema.is_mutable) and name not in SILENT and not state.is_quiet:
            state.counts.launches += 1
        if given is not None:
            state.tape.append((func, *given, [tensor.detach() for tensor in _tensors(made)] if new else []))
        return made

    def _copies(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        """Between the host and the device, by `copy_`."""
        non_blocking = kwargs.get("non_blocking", args[2] if len(args) > 2 else False)
        if device_of(args[0]).type == "cuda":
            self.state.copy(blocking=not non_blocking)
        elif not non_blocking:
            self.state.wait("a copy to the host")

    def _check_generator(self, func: Any, device: torch.device, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        for value in (*args, *kwargs.values()):
            if isinstance(value, _REAL):
                known = self.state.generators.get(value._cdata)  # type: ignore[attr-defined]
                own = known.pretended if known else CPU
                if own.type != device.type or (own.index or 0) != (device.index or 0):
                    raise DeviceError(f"{_where()}: {func} draws on {device} from a generator of {own}.")
                if self.state.graph is not None and device.type == "cuda" and known not in self.state.graph.generators:
                    raise DeviceError(f"{_where()}: {func} draws from a generator that the graph does not know.")

    @staticmethod
    def _asks_for_a_mask(name: str, args: Sequence[Any]) -> bool:
        """Whether it is an index by a mask, whose number of hits has to be known."""
        return name == "index" and any(part is not None and part.dtype in (torch.bool, torch.uint8) for part in args[1])


class Event:
    """Stands for torch.cuda.Event: a millisecond between any two."""

    def __init__(self, *_: Any, **__: Any) -> None:
        """Nothing is measured."""

    def record(self, *_: Any) -> None:
        """Nothing."""

    def wait(self, *_: Any) -> None:
        """A stream waits, and not the host."""

    def synchronize(self) -> None:
        """The host waits for work that is done; counted where it was asked for."""

    def elapsed_time(self, other: Event) -> float:
        """Milliseconds."""
        return 1.0


class Graph:
    """Stands for torch.cuda.CUDAGraph."""

    state: ClassVar[Pretended]

    def __init__(self) -> None:
        """Empty."""
        self.tape: list[tuple[Any, ...]] = []
        self.generators: list[torch.Generator] = []
        self.changed: dict[int, tuple[Tensor, Tensor]] = {}  # storage -> (its bytes, and what they were before the capture)
        self.made: set[int] = set()  # storages of the capture's own

    def register_generator_state(self, rng: torch.Generator) -> None:
        """Its draws are part of the graph."""
        self.generators.append(rng)

    def replay(self) -> None:
        """Run the operations again, on the very tensors: one launch."""
        self.state.counts.launches += 1
        with torch.no_grad(), self.state.quiet():
            for func, args, kwargs, made in self.tape:
                again = func(*args, **kwargs)
                for old, new in zip(made, _tensors(again), strict=False):
                    if old.untyped_storage()._cdata != new.untyped_storage()._cdata:
                        old.copy_(new)


class Pretended:
    """The device and what is counted on it: `with Pretended() as fake: ...`."""

    def __init__(self, index: int = 0, num_devices: int = 1, is_started: bool = True) -> None:
        """`index`: of the device that is used; others are there too. Without `is_started` CUDA has not been."""
        self.device, self.num_devices = torch.device("cuda", index), max(num_devices, index + 1)
        self.counts, self.making = Counts(), list[torch.device]()
        self.is_quiet = self.is_checking = False
        self.graph: Graph | None = None
        self.tape: list[tuple[Any, ...]] = []
        self.is_started, self.current = is_started, index if is_started else 0
        self.generators: dict[int, Generator] = {}
        self.stack = ExitStack()

    def __enter__(self) -> Pretended:
        """From now on there is such a device."""
        for name, stub in self._cuda().items():
            self.stack.enter_context(mock.patch.object(torch.cuda, name, stub))
        # It takes a real stream alone, and has nothing to do: memory here is given back when nothing holds it.
        self.stack.enter_context(mock.patch.object(Tensor, "record_stream", return_value=None))
        own = type("Generator", (Generator,), {"known": self.generators})
        self.stack.enter_context(mock.patch.object(torch, "Generator", own))
        self.stack.enter_context(_Operations(self))
        self.stack.enter_context(_Functions(self))
        return self

    def __exit__(self, *told: object) -> None:
        """And now there is none."""
        self.stack.close()

    # ------------------------------------------------------------ what is counted

    @contextmanager
    def counting(self) -> Iterator[Counts]:
        """What is asked of the device meanwhile."""
        before, self.counts = self.counts, Counts()
        try:
            yield self.counts
        finally:
            self.counts = before

    @contextmanager
    def quiet(self) -> Iterator[None]:
        """What is done meanwhile is part of something that is counted otherwise."""
        before, self.is_quiet = self.is_quiet, True
        try:
            yield
        finally:
            self.is_quiet = before

    def wait(self, what: str) -> None:
        """The host stops until the device has caught up."""
        if self.is_checking or self.is_quiet:
            return
        if self.graph is not None:
            raise DeviceError(f"{_where()}: {what} in a capture, which cannot wait.")
        self.counts.waits.append(f"{_where()} ({what})")

    def copy(self, blocking: bool) -> None:
        """Something goes from the host to the device."""
        if self.is_quiet:
            return
        if self.graph is not None:
            raise DeviceError(f"{_where()}: a copy from the host in a capture, which would hold the values of that moment.")
        self.counts.copies.append(_where())
        if blocking:
            self.counts.blocking.append(_where())

    # ------------------------------------------------------------ devices

    def normal(self, device: Any) -> torch.device:
        """With an index."""
        made = torch.device(device) if not isinstance(device, int) else torch.device("cuda", device)
        return torch.device("cuda", self.current if made.index is None else made.index) if made.type == "cuda" else made

    @staticmethod
    def device_of_all(tensors: Iterable[Tensor]) -> torch.device:
        """The device that one of these is on, or the CPU."""
        return next((device for device in map(device_of, tensors) if device.type == "cuda"), CPU)

    def run(self, run: DistillRun) -> DistillRun:
        """A run on the CPU, moved to the device with all that it holds."""
        return moved(run, self.device)

    # ------------------------------------------------------------ captures

    def remember(self, func: Any, args: Sequence[Any], is_recorded: bool) -> None:
        """Keep what a recorded operation is about to change."""
        if self.graph is None or not is_recorded:
            return
        written = UNSAID.get(func._schema.name, ())
        for number, (argument, value) in enumerate(zip(func._schema.arguments, args, strict=False)):
            if number in written or (argument.alias_info is not None and argument.alias_info.is_write):
                for tensor in _tensors(value):
                    key = tensor.untyped_storage()._cdata
                    if key not in self.graph.changed:
                        content = torch.empty(0, dtype=torch.uint8).set_(tensor.untyped_storage())
                        self.graph.changed[key] = (content, content.clone())

    @contextmanager
    def _capture(self, graph: Graph, *_: Any, **__: Any) -> Iterator[None]:
        """What is done meanwhile is recorded and, as on a real device, not done."""
        self.graph, self.tape = graph, graph.tape
        draws = [rng.get_state() for rng in graph.generators]
        try:
            yield
        finally:
            self.graph = None
            with torch.no_grad(), self.quiet():
                for tensor, content in graph.changed.values():
                    tensor.copy_(content)
            for rng, state in zip(graph.generators, draws, strict=True):
                rng.set_state(state)

    # ------------------------------------------------------------ torch.cuda

    def _cuda(self) -> dict[str, Any]:
        """The stubs, by name."""

        def started(value: Any) -> Any:
            def answer(*_: Any, **__: Any) -> Any:
                if not self.is_started:
                    raise RuntimeError("Invalid device argument 0: did you call init?")
                return value

            return answer

        def start(*_: Any, **__: Any) -> None:
            self.is_started = True

        def set_device(device: Any) -> None:
            start()
            self.current = self.normal(device).index

        @contextmanager
        def on(device: Any) -> Iterator[None]:
            before, self.current = self.current, self.normal(device).index
            try:
                yield
            finally:
                self.current = before

        @contextmanager
        def stream(made: Any) -> Iterator[None]:
            with on(made.device):
                yield

        def make_stream(device: Any = None, *_: Any, **__: Any) -> Any:
            where = self.normal("cuda" if device is None else device)
            waits = {name: lambda other: None for name in ("wait_stream", "wait_event")}  # a stream waits, and not the host
            return SimpleNamespace(device=where, synchronize=lambda: self.wait("synchronize"), **waits)

        properties = SimpleNamespace(name="Pretended", total_memory=80 << 30, major=9, minor=0, multi_processor_count=132)
        memory = torch.ByteTensor(8).zero_()
        return {
            "is_available": lambda: True, "device_count": lambda: self.num_devices, "is_initialized": lambda: self.is_started,
            "init": start, "set_device": set_device, "device": on, "current_device": lambda: self.current,
            "get_device_properties": started(properties), "get_device_name": started("Pretended"),
            "get_device_capability": started((9, 0)), "reset_peak_memory_stats": started(None),
            "max_memory_allocated": started(0), "memory_allocated": started(0), "memory_reserved": started(0),
            "max_memory_reserved": started(0),
            "mem_get_info": started((80 << 30, 80 << 30)), "empty_cache": started(None),
            "synchronize": lambda *_: self.wait("synchronize"), "get_rng_state": lambda *_: memory,
            "set_rng_state": lambda *_: None, "manual_seed": lambda seed: None, "manual_seed_all": lambda seed: None,
            "current_stream": make_stream, "Stream": make_stream, "stream": stream, "Event": Event,
            "CUDAGraph": type("CUDAGraph", (Graph,), {"state": self}),
            "graph": self._capture,
        }  # fmt: skip


def moved(run: DistillRun, device: torch.device) -> DistillRun:
    """A run on the CPU, moved to a device, pretended or real, with all that it holds."""
    names = ("images", "labels", "validation_images", "validation_labels")
    data = replace(run.data, **{name: getattr(run.data, name).to(device) for name in names})
    resources = {
        need: {name: tensor.to(CPU if need.on_host else device) for name, tensor in tensors.items()}
        for need, tensors in run.resources.items()
    }
    loaded: Any = run.loaded
    generator = loaded.to(device) if hasattr(loaded, "to") else loaded
    return replace(run, device=device, data=data, resources=resources, skeletons=Skeletons(), loaded=generator)
