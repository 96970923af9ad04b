"""What the command line prints, made safe: nothing that a name or a message holds steers the terminal or ends the program.

Names come from suites, plugins, files and records of others. A control character among them is printed as its escape, and a
character that the stream's encoding lacks as a question mark, or, where tables use it, as others: ± as +- in ASCII.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

_UNSEEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
"""Control characters but for the tab and the end of a line, marks that turn the direction of writing, and lone surrogates."""

_PLAINER = str.maketrans({"±": "+-", "–": "-", "†": "*", "‡": "**", "§": "***"})


def plain(text: str) -> str:
    """The text with escapes, such as `\\x1b`, for all that would steer a terminal."""
    return _UNSEEN.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


class Plain:
    """A stream of text that writes `plain` text to another. All else is that stream's."""

    def __init__(self, stream: Any) -> None:
        """`stream` is what Python or a caller has put in place of the standard output or error."""
        self.stream = stream

    def write(self, text: str) -> int:
        """What the encoding lacks is replaced: a result must not be lost for it."""
        safe = plain(text)
        try:
            self.stream.write(safe)
        except UnicodeEncodeError as error:
            self.stream.write(safe.translate(_PLAINER).encode(error.encoding, "replace").decode(error.encoding))
        return len(text)

    def writelines(self, lines: Any) -> None:
        """One after the other."""
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        """The other stream's."""
        return getattr(self.stream, name)


@contextmanager
def plainly() -> Iterator[None]:
    """The standard output and error are `Plain` meanwhile."""
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = Plain(before[0]), Plain(before[1])
    try:
        yield
    finally:
        sys.stdout, sys.stderr = before


def steered() -> Any:
    """The standard error as it is, for a progress bar, which moves the cursor; what it shows of others must be `plain`."""
    return sys.stderr.stream if isinstance(sys.stderr, Plain) else sys.stderr
