"""A worker process of the local executor: does jobs of a store, one after the other, in its own process.

Jobs run in processes of their own so that the number of threads is theirs, a plugin that kills its process breaks only its
job, and the machine's cores or devices are used side by side. The parent writes JSON lines to the standard input: first what
the worker is for, then a job's name a line. The worker answers with JSON lines on a pipe that is its own: what plugins print
goes to the standard error, and they read nothing. When the input ends, the parent is gone, and so is the worker.
"""

from __future__ import annotations

import errno
import json
import os
import queue
import signal
import sys
import threading
import time
import traceback
from pathlib import Path
from typing import Any, TextIO

from ddbench.errors import BenchError, DataError

REPORT_SECONDS = 0.2  # at most so often, progress goes to the parent


def sentence_of(error: BaseException, title: str, store: Path) -> str:
    """One sentence for whatever stopped a job, whatever its exception does when it is asked for its text."""
    from ddbench.compute.device_errors import is_out_of_memory
    from ddbench.results.locks import is_without_right, no_right

    try:
        text = " ".join(str(error).split())
    except Exception:
        text = "its message cannot be printed"
    if isinstance(error, BenchError):
        return text if text.startswith(title) else f"{title}: {text}"
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"the disc that holds {store} is full. Free some space, then give the same command again; finished work is kept."
    if isinstance(error, OSError) and is_without_right(error, store):
        return f"{title}: {no_right(store, error)}"
    if is_out_of_memory(error):
        told = f"{title}: the device ran out of memory. Run fewer jobs on it at the same time (--workers)"
        return f"{told}, or lower 'chunk', the loss's 'batch_real' or the size of its batches, or the width of the network."
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if "site-packages/torch" not in frame.filename]
    where = f" at {Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else ""
    text = text[:300].rstrip(".")
    what = f"{type(error).__name__}{where}{': ' if text else ''}{text}"
    return f"{title}: {what}. Mend the plugin or the plan."


def details_of(error: BaseException) -> str:
    """The traceback, as far as it can be printed."""
    try:
        return "".join(traceback.format_exception(error))
    except Exception:
        return "".join(traceback.format_tb(error.__traceback__)) + f"{type(error).__name__}: its message cannot be printed\n"


def comes_again(error: BaseException) -> bool:
    """Whether the same job would fail so whenever it is done."""
    return isinstance(error, BenchError) and error.comes_again is True


class Reporter:
    """Tells the parent how far a job is, not too often."""

    def __init__(self, out: TextIO) -> None:
        self.out, self.last, self.phase = out, 0.0, ""

    def send(self, **message: Any) -> None:
        """One line. Without a parent there is nothing more to do, and nothing of the job has failed."""
        try:
            self.out.write(json.dumps(message) + "\n")
            self.out.flush()
        except OSError:
            os._exit(1)

    def __call__(self, phase: str, fraction: float) -> None:
        """Progress of the running job."""
        now = time.monotonic()
        if phase != self.phase or now - self.last >= REPORT_SECONDS:
            self.send(phase=phase, fraction=fraction)
            self.last, self.phase = now, phase


def _own_channel() -> TextIO:
    """The pipe to the parent, out of plugins' reach: whatever prints to the standard output prints to the standard error."""
    channel = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    sys.stdout = sys.stderr
    return channel


def _listen(source: TextIO, lines: queue.Queue[str]) -> None:
    """Hand on the parent's lines; a parent that is gone must not leave a worker that computes unseen."""
    for line in source:
        lines.put(line)
    os._exit(1)


def main(source: TextIO) -> None:
    """Do the parent's jobs, a line of `source` each, until it ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the parent, which decides
    reporter = Reporter(_own_channel())
    lines: queue.Queue[str] = queue.Queue()
    about = json.loads(source.readline())
    threading.Thread(target=_listen, args=(source, lines), daemon=True).start()
    from ddbench.compute.run import select_device
    from ddbench.grid.do import Workplace
    from ddbench.results.store import Store

    device = select_device(about["device"])
    root = Path(about["data_root"]) if about["data_root"] else None
    place = Workplace(Store(Path(about["store"])), device, root, about["checkpoint_seconds"])
    reporter.send(ready=True)
    while True:
        name = json.loads(lines.get())["job"]
        end = _do(name, place, reporter)
        if left := place.leave():
            print(f"ddbench: {name} left {left >> 20} MiB on the device, so its process ends.", file=sys.stderr)
        reporter.send(ended=end, stained=place.is_stained)


def _do(name: str, place: Any, reporter: Reporter) -> str:
    """done, found (another process had done it), busy (another is at it) or failed."""
    from ddbench.compute.device_errors import is_lost
    from ddbench.grid.do import do_job

    title, file = name, None
    try:
        file = _read_job(name, place)
        if file is None:  # another run has done it, or will have it written anew
            return "found" if place.store.is_done(name) else "busy"
        title, place.doing = place.title_of(file), ""
        end = do_job(file, place, reporter)
        for mark in place.found:
            print(f"ddbench: {title}: {mark} Its record says so.", file=sys.stderr)
        return end
    except BaseException as error:  # a plugin's sys.exit too
        place.marks()
        place.is_stained |= is_lost(error, place.device)
        title = place.doing or title
        sentence, details = sentence_of(error, title, place.store.root), details_of(error)
        try:
            place.fail(name, title, sentence, details, file if comes_again(error) else None)
        except Exception as again:
            reporter.send(unrecorded=f"{sentence} (Nor could this be recorded: {again}.)")
        return "failed"


def _read_job(name: str, place: Any) -> Any:
    """All that doing a job needs; None where another run that wanted the job too has removed its file."""
    try:
        return place.store.read_job(name)
    except DataError:
        if place.store.job(name).is_file():
            raise
        return None
