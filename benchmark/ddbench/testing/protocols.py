"""The contract of protocols."""

from __future__ import annotations

from ddbench import protocols, registry
from ddbench.api import ProtocolText
from ddbench.compute.run import DistillRun
from ddbench.errors import BenchError
from ddbench.protocols import Protocol
from ddbench.testing.checks import Check


def _read(protocol: ProtocolText) -> Protocol:
    try:
        return protocols.read(protocol.text, "the protocol")
    except BenchError as error:
        raise AssertionError(str(error)) from error


def protocol_can_be_read(protocol: ProtocolText, run: DistillRun) -> None:
    """Its text is what `ddbench.protocols` describes, and says what it is."""
    assert _read(protocol).description, "the protocol needs a description."


def protocol_names_installed_networks(protocol: ProtocolText, run: DistillRun) -> None:
    """Those that judge, and its teacher, are architectures that are installed."""
    found = _read(protocol)
    teacher = found.judging.teacher
    for name in (*found.networks, *([teacher.network] if teacher else [])):
        try:
            registry.architectures.origin(name)
        except BenchError as error:
            raise AssertionError(str(error)) from error


protocol_checks: list[Check] = [protocol_can_be_read, protocol_names_installed_networks]
