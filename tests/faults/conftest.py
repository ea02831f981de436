"""What the fault-injection suite shares: how often a fault is tried, and the table of what came of it."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.faults.ledger import Ledger


@pytest.fixture(scope="session")
def tries(pytestconfig: pytest.Config) -> Callable[[int, int], int]:
    """``tries(few, many)``: how often to try; few in ``make test``, many in ``make test-faults``."""
    return lambda few, many: many if pytestconfig.getoption("--faults") else few


@pytest.fixture(scope="session")
def ledger(pytestconfig: pytest.Config) -> Ledger:
    """Where a test notes each fault that it tried."""
    return pytestconfig.stash[Ledger.KEY]
