"""The contract that ddbench asks of a loss."""

from collections.abc import Callable

from ddbench.testing import contract


@contract("losses", "tests-mean-image")
def test_contract(check: Callable[[], None]) -> None:
    check()
