"""A real Slurm of one node on this machine: begun and ended by tests, with the settings in slurm/.

Needs root and the packages slurmd, slurmctld, slurm-client and munge. Everything lies in one folder; no service of the machine
is touched. By hand: `python tests/cluster/real_slurm.py FOLDER`, which runs until Ctrl-C.
"""

from __future__ import annotations

import ctypes
import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

SETTINGS = Path(__file__).parent / "slurm"
TOOLS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "squeue", "sinfo", "scontrol", "scancel")
PATIENCE = 60.0
HOST = socket.gethostname().partition(".")[0]
PATH = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"


def missing() -> str:
    """Why no Slurm can be begun here; or nothing."""
    if os.geteuid() != 0:
        return "only root can begin a Slurm"
    lacking = [tool for tool in TOOLS if shutil.which(tool, path=PATH) is None]
    return f"{', '.join(lacking)} not installed: apt-get install slurmd slurmctld slurm-client munge" if lacking else ""


class RealSlurm:
    """The three daemons and their folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self.is_over = threading.Event()
        self.environment = {"SLURM_CONF": str(folder / "slurm.conf")}
        self._write()

    def begin(self) -> None:
        """Returns when the node is idle."""
        for name in ("munged", "slurmctld", "slurmd"):
            self.start(name)
        until = time.monotonic() + PATIENCE
        while "idle" not in self.ask("sinfo", "--noheader", "--format=%T"):
            if time.monotonic() > until:
                raise RuntimeError(f"Slurm does not begin: see the logs in {self.folder}")
            time.sleep(0.2)
        threading.Thread(target=self.look_after, daemon=True).start()

    def start(self, name: str) -> None:
        """One of the daemons; it stays a child of this process."""
        words = {
            "munged": [
                "--foreground", "--force", f"--socket={self.folder}/munge.socket", f"--key-file={self.folder}/munge.key",
                f"--log-file={self.folder}/munged.log", f"--pid-file={self.folder}/munged.pid", f"--seed-file={self.folder}/seed",
            ],
            "slurmctld": ["-D", "-i"],
            "slurmd": ["-D"],
        }  # fmt: skip
        with (self.folder / f"{name}.out").open("ab") as out:
            self.processes[name] = subprocess.Popen(
                [shutil.which(name, path=PATH) or name, *words[name]], env=os.environ | self.environment,
                stdin=subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True, preexec_fn=end_with_parent,
            )  # fmt: skip
        if name == "munged":
            until = time.monotonic() + PATIENCE
            while not (self.folder / "munge.socket").exists() and time.monotonic() < until:
                time.sleep(0.05)

    def resume(self) -> None:
        """Do what an administrator does with a node that is drained or down since its daemon died."""
        if re.search("drain|down", self.ask("sinfo", "--noheader", "--format=%T")):
            self.ask("scontrol", "update", f"NodeName={HOST}", "State=RESUME")

    def look_after(self) -> None:
        """Do so again and again."""
        while not self.is_over.wait(3.0):
            with suppress(subprocess.TimeoutExpired):
                self.resume()

    def kill(self, name: str) -> None:
        """As a crash does; but the controller may save its state, of which it else lacks the last seconds: it then gives job
        numbers twice, and the node is drained."""
        self.processes[name].send_signal(signal.SIGTERM if name == "slurmctld" else signal.SIGKILL)
        self.processes[name].wait()

    def ask(self, *words: str) -> str:
        """What one of Slurm's commands says."""
        told = subprocess.run(words, env=os.environ | self.environment, capture_output=True, text=True, timeout=PATIENCE)
        return told.stdout

    def end(self) -> None:
        """Jobs first, then the daemons."""
        self.is_over.set()
        with suppress(subprocess.TimeoutExpired):
            self.ask("scancel", "--user=root", "--signal=KILL")
            self.ask("scancel", "--user=root")
        until = time.monotonic() + 20
        while self.ask("squeue", "--noheader").strip() and time.monotonic() < until:
            time.sleep(0.2)
        for name in ("slurmd", "slurmctld", "munged"):
            process = self.processes.get(name)
            if process and process.poll() is None:
                process.send_signal(signal.SIGTERM)
                try:
                    process.wait(20)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()

    def _write(self) -> None:
        """Settings, and a key for munge."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self.folder.chmod(0o755)
        ports = _free_ports(2)
        words = {"HOST": HOST, "PORT": ports[0], "PORT2": ports[1], "FOLDER": self.folder}
        text = (SETTINGS / "slurm.conf.in").read_text()
        for word, value in words.items():
            text = text.replace(f"@{word}@", str(value))
        (self.folder / "slurm.conf").write_text(text)
        shutil.copy(SETTINGS / "cgroup.conf", self.folder / "cgroup.conf")
        for name in ("state", "spool"):
            (self.folder / name).mkdir(exist_ok=True)
        key = self.folder / "munge.key"
        key.touch(0o600)
        key.write_bytes(secrets.token_bytes(1024))
        key.chmod(0o400)


def end_with_parent() -> None:
    """However the tests end, no daemon stays."""
    ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG


def _free_ports(num: int) -> list[int]:
    sockets = [socket.socket() for _ in range(num)]
    try:
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]
    finally:
        for each in sockets:
            each.close()


@contextmanager
def real_slurm(folder: Path) -> Iterator[RealSlurm]:
    """A Slurm, while it is used; its commands find it by the environment."""
    slurm, before = RealSlurm(folder), os.environ.get("SLURM_CONF")
    try:
        slurm.begin()
        os.environ |= slurm.environment
        yield slurm
    finally:
        slurm.end()
        os.environ.pop("SLURM_CONF", None)
        if before is not None:
            os.environ["SLURM_CONF"] = before


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with real_slurm(Path(sys.argv[1]).absolute()) as begun:
        print(f"export SLURM_CONF={begun.folder / 'slurm.conf'}", flush=True)
        with suppress(KeyboardInterrupt):
            while True:
                time.sleep(1)
