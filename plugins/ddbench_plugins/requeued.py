"""What submitit unpickles and runs on a node of a Slurm cluster: a command, which is queued again when its time is nearly over.

A module of its own that imports nothing heavy, for the process that runs it only waits.
"""

from __future__ import annotations

import sys

from ddbench.ops.commands import run_command


class Requeued:
    """A command that goes on, when it is queued again, from what the store has."""

    def __call__(self, words: list[str]) -> None:
        """Ends this process with the command's exit code where that is not 0."""
        said = run_command(words)
        if said.code:
            sys.exit(said.code if said.code > 0 else 128 - said.code)

    def checkpoint(self, words: list[str]) -> object:
        """What submitit asks for before it queues a job again."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self, words)
