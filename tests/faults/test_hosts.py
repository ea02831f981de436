"""A run over two hosts (network namespaces): as on one, and what becomes of it when one of them is lost."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.faults.hosts import Hosts, HostsRun, unavailable
from tests.faults.ledger import Ledger
from tests.faults.test_ddp import furthest
from tests.runs import finished, parameters
from tests.toy_suite import options

#: updates of a run, and after how many of them the fault comes
UPDATES, FAULT = 40, 8
#: seconds: --worker-timeout, and within which the other host must have stopped, on a busy machine
TIMEOUT, SOON = 5, 60
TWO = ("--ddp-backend", "legacy_ddp", "--update-freq", "1")


@pytest.fixture
def hosts(tries) -> Iterator[Hosts]:
    tries(0, 1)
    if (why := unavailable()) is not None:
        pytest.skip(why)
    with Hosts.joined() as hosts:
        yield hosts


def words(data: Path, folder: Path, *more: str) -> list[str]:
    still = ("--dropout", "0", "--attention-dropout", "0", "--optimizer", "sgd", "--lr", "0.1", "--disable-validation")
    often = ("--save-interval-updates", "5", "--keep-interval-updates", "1", "--max-update", str(UPDATES))
    return options(data, folder / "save", *still, *often, *TWO, *more)


@pytest.fixture(scope="module")
def on_one_host(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], dict]:
    """What the run leaves without hosts and without faults, by its number of workers."""

    def run(workers: int) -> dict:
        folder = tmp_path_factory.mktemp("one-host")
        finished(words(data, folder), folder, workers=workers)
        return parameters(folder / "save")

    return run


def ended(run: HostsRun, timeout: float = 180) -> list[int | None]:
    """The exit statuses of both hosts."""
    until = time.monotonic() + timeout
    return [run.wait(host, max(0.1, until - time.monotonic())) for host in (0, 1)]


@pytest.mark.parametrize(("rendezvous", "workers"), [("c10d", 1), ("c10d", 2), ("static", 1)])
def test_two_hosts_end_as_one(hosts, data, tmp_path, ledger, on_one_host, rendezvous, workers):
    run = HostsRun(hosts, words(data, tmp_path), tmp_path, rendezvous=rendezvous, workers=workers)
    try:
        assert ended(run) == [0, 0], run.log(0)[-2000:] + run.log(1)[-2000:]
    finally:
        run.kill()
    difference = furthest(parameters(tmp_path / "save"), on_one_host(2 * workers))
    ledger.note("two hosts instead of one", survived=difference <= 1e-6)
    assert difference <= 1e-6


def kill_worker(hosts: Hosts, run: HostsRun) -> None:
    os.kill(run.workers(1)[0], signal.SIGKILL)


def kill_host(hosts: Hosts, run: HostsRun) -> None:
    run.kill_host(1)


def pull_cable(hosts: Hosts, run: HostsRun) -> None:
    hosts.pull_cable()


@pytest.mark.parametrize(
    ("fault", "row"),
    [
        (kill_worker, "two hosts: a worker killed"),
        (kill_host, "two hosts: one killed with all its processes"),
        (pull_cable, "two hosts: the cable pulled"),
    ],
)
def test_the_other_host_stops_and_says_who_is_gone(
    hosts: Hosts, data: Path, tmp_path: Path, ledger: Ledger, fault: Callable[[Hosts, HostsRun], None], row: str
) -> None:
    run = HostsRun(hosts, words(data, tmp_path, "--worker-timeout", str(TIMEOUT)), tmp_path)
    try:
        run.wait_for_updates(FAULT)
        (gone,) = run.workers(1)
        fault(hosts, run)
        began = time.monotonic()
        status = run.wait(0, SOON)
        took = time.monotonic() - began
        # also on a host that is cut off
        while run.workers(1) and time.monotonic() - began < SOON:
            time.sleep(0.1)
        left = run.workers(1)
    finally:
        run.kill()
    named = [sentence for sentence in run.sentences(0) if f"worker 1 (process {gone} on host-1)" in sentence]
    ledger.note(row, survived=status not in (None, 0) and bool(named) and not left, recovery=took)
    assert status not in (None, 0), f"still there after {SOON} s"
    assert not left, run.log(1)[-2000:]
    assert named, run.sentences(0)


def goes_on(run: HostsRun, fault: Callable[[], None]) -> float:
    """Seconds from the end of a fault to the next update; after it the run ends well."""
    try:
        run.wait_for_updates(FAULT)
        fault()
        began, seen = time.monotonic(), run.updates()
        if seen < UPDATES:
            run.wait_for_updates(seen + 1)
        took = time.monotonic() - began
        statuses = ended(run)
    finally:
        run.kill()
    assert statuses == [0, 0], run.log(0)[-2000:] + run.log(1)[-2000:]
    return took


def test_a_worker_killed_and_started_again_by_torchrun(hosts, data, tmp_path, ledger, on_one_host):
    """``--max-restarts``: both hosts go on from the last checkpoint, to the same parameters."""
    run = HostsRun(hosts, words(data, tmp_path), tmp_path, restarts=3)
    took = goes_on(run, lambda: kill_worker(hosts, run))
    difference = furthest(parameters(tmp_path / "save"), on_one_host(2))
    ledger.note("two hosts: a worker killed, --max-restarts", survived=difference <= 1e-6, recovery=took)
    assert difference <= 1e-6


def test_a_cable_that_is_put_back_in_time(hosts, data, tmp_path, ledger, on_one_host):
    """Within ``--worker-timeout`` nothing is lost: the run goes on by itself."""

    def fault() -> None:
        hosts.pull_cable()
        time.sleep(3)
        hosts.put_cable_back()

    took = goes_on(HostsRun(hosts, words(data, tmp_path, "--worker-timeout", "60"), tmp_path), fault)
    difference = furthest(parameters(tmp_path / "save"), on_one_host(2))
    ledger.note("two hosts: the cable pulled and put back", survived=difference <= 1e-6, recovery=took)
    assert difference <= 1e-6
