"""Seconds by phase and peak memory: what a cell costs. Nothing here touches a result."""

from __future__ import annotations

import ctypes
import gc
import resource
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

import torch

_STATUS = Path("/proc/self/status")


class Stopwatch:
    """Seconds by phase. A phase inside another is taken from the outer one, so that the phases add up to the whole.

    On a CUDA device work is still running when a phase ends; event pairs mark the phases there and are read at the end, so
    that measuring does not make the host wait.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.total: dict[str, float] = {}
        self.running: list[str] = []
        self.mark = self._now()
        self.pairs: list[tuple[str, torch.cuda.Event, torch.cuda.Event]] = []

    def _now(self) -> float | torch.cuda.Event:
        if self.device.type != "cuda":
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(self.device))
        return event

    def _charge(self) -> None:
        """Charge the time since the last mark to the innermost phase."""
        now = self._now()
        if self.running:
            if isinstance(now, float) and isinstance(self.mark, float):
                self.total[self.running[-1]] = self.total.get(self.running[-1], 0.0) + now - self.mark
            elif isinstance(now, torch.cuda.Event) and isinstance(self.mark, torch.cuda.Event):
                self.pairs.append((self.running[-1], self.mark, now))
        self.mark = now

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Charge what runs inside to a phase."""
        self._charge()
        self.running.append(name)
        try:
            yield
        finally:
            self._charge()
            self.running.pop()

    def add(self, seconds: Mapping[str, float]) -> None:
        """Count in what an earlier process measured."""
        for name, value in seconds.items():
            self.total[name] = self.total.get(name, 0.0) + value

    def restart(self) -> None:
        """Forget what was measured so far, for what is begun again."""
        self.seconds()
        self.total = dict.fromkeys(self.total, 0.0)

    def sum(self, *phases: str) -> float:
        """Seconds of these phases together so far; waits for a CUDA device."""
        seconds = self.seconds()
        return sum(seconds.get(name, 0.0) for name in phases)

    def seconds(self) -> dict[str, float]:
        """Seconds by phase so far; waits for a CUDA device."""
        self._charge()
        for name, start, stop in self.pairs:
            stop.synchronize()
            self.add({name: start.elapsed_time(stop) / 1000})
        self.pairs.clear()
        return dict(self.total)


def reset_peak_memory(device: torch.device) -> None:
    """Start a new measurement of the peak, where the system can (CUDA; Linux).

    What earlier cells of the same process have freed goes back to the system first, or it would count for this one.
    """
    if device.type == "cuda":
        torch.cuda.init()  # the reset does not start CUDA, and raises before it has started
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
    elif _STATUS.exists():
        gc.collect()
        with suppress(OSError, AttributeError):  # only glibc has it
            ctypes.CDLL(None).malloc_trim(0)
        with suppress(OSError):  # some containers forbid it; the peak is then that of the process so far
            Path("/proc/self/clear_refs").write_text("5")


def peak_memory_bytes(device: torch.device) -> int:
    """The most memory used since the last reset: taken from a CUDA device, with what recorded graphs keep for themselves, or
    resident of this whole process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_reserved(device)
    lines = _STATUS.read_text().splitlines() if _STATUS.exists() else []
    for line in lines:
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # since the process began
    return peak if sys.platform == "darwin" else peak * 1024
