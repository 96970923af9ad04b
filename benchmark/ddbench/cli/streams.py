"""Printing to streams that know few letters: what they cannot encode is replaced, so that no print loses a result."""

from __future__ import annotations

import codecs
import io
import sys

PLAIN = {"±": "+-", "–": "-", "†": "*", "‡": "**", "§": "***"}  # what tables use; "?" for anything else


def print_anywhere() -> None:
    """Have the standard output replace what its encoding lacks."""
    codecs.register_error("ddbench", _replaced)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="ddbench")


def _replaced(error: UnicodeError) -> tuple[str, int]:
    assert isinstance(error, UnicodeEncodeError)
    return "".join(PLAIN.get(letter, "?") for letter in error.object[error.start : error.end]), error.end
