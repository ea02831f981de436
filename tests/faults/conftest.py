"""What the fault-injection suite shares: how often a fault is tried, and the table of what came of it."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.faults.ledger import Ledger


@pytest.fixture(scope="session")
def tries(pytestconfig: pytest.Config) -> Callable[[int, int], int]:
    """``tries(few, many)``: how often to try; few in ``make test``, many in ``make test-faults``. It skips a test that
    is not to try anything."""

    def number(few: int, many: int) -> int:
        wanted = many if pytestconfig.getoption("--faults") else few
        if not wanted:
            pytest.skip("make test-faults tries it" if many else "make test-faults tries more")
        return wanted

    return number


@pytest.fixture(scope="session")
def ledger(pytestconfig: pytest.Config) -> Ledger:
    """Where a test notes each fault that it tried."""
    return pytestconfig.stash[Ledger.KEY]
