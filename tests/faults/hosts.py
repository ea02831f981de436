"""Two hosts on one machine: network namespaces with a cable between them, which can be pulled."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path

from muppet_fairseq.errors import sentences_in
from tests.toy_suite import LAUNCH, ROOT

_PORT = 29400


@cache
def unavailable() -> str | None:
    """Why this machine cannot have two hosts, or None."""
    missing = [name for name in ("ip", "unshare") if shutil.which(name) is None]
    if sys.platform != "linux" or missing:
        return f"needs Linux with {' and '.join(missing or ('ip', 'unshare'))}"
    try:
        with Hosts.joined():
            return None
    except subprocess.CalledProcessError as error:
        return f"no network namespaces: {error.stderr.strip()}"


class Hosts:
    """``host-0`` and ``host-1``, each with its own network and name; processes and files are those of this machine."""

    def __init__(self) -> None:
        self.names = [f"muppet-{os.getpid()}-{host}" for host in (0, 1)]

    @classmethod
    @contextmanager
    def joined(cls) -> Iterator[Hosts]:
        hosts = cls()
        try:
            for name in hosts.names:
                _ip("netns", "add", name)
            _ip(
                "link",
                "add",
                "cable",
                "netns",
                hosts.names[0],
                "type",
                "veth",
                "peer",
                "cable",
                "netns",
                hosts.names[1],
            )
            for host, name in enumerate(hosts.names):
                _ip("-n", name, "address", "add", f"{hosts.address(host)}/24", "dev", "cable")
                _ip("-n", name, "link", "set", "lo", "up")
                _ip("-n", name, "link", "set", "cable", "up")
            yield hosts
        finally:
            for name in hosts.names:
                subprocess.run(["ip", "netns", "delete", name], check=False, capture_output=True)

    @staticmethod
    def address(host: int) -> str:
        return f"10.77.0.{host + 1}"

    def pull_cable(self) -> None:
        _ip("-n", self.names[1], "link", "set", "cable", "down")

    def put_cable_back(self) -> None:
        _ip("-n", self.names[1], "link", "set", "cable", "up")


class HostsRun:
    """``fairseq-train`` over two hosts: one ``torchrun`` on each, with ``workers`` processes each.

    Args:
        arguments: of ``fairseq-train``; ``--update-freq`` is that of each worker.
        folder: gets ``host-0.log`` and ``host-1.log``, what each host printed.
        rendezvous: ``c10d`` or ``static``.
        restarts: ``--max-restarts`` of each ``torchrun``.
    """

    def __init__(
        self,
        hosts: Hosts,
        arguments: Sequence[str],
        folder: Path,
        *,
        workers: int = 1,
        rendezvous: str = "c10d",
        restarts: int = 0,
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.logs = [folder / f"host-{host}.log" for host in (0, 1)]
        train = [sys.executable, str(ROOT / "tests" / "traced_train.py"), *arguments]
        environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "GLOO_SOCKET_IFNAME": "cable"}
        environment |= {"TRACE": "", "PYTHONUNBUFFERED": "1", "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
        self.agents = []
        for host, name in enumerate(hosts.names):
            agent = [sys.executable, "-m", "torch.distributed.run", "--nnodes", "2", "--nproc-per-node", str(workers)]
            agent += ["--node-rank", str(host), "--max-restarts", str(restarts), "--local-addr", hosts.address(host)]
            if rendezvous == "static":
                agent += ["--master-addr", hosts.address(0), "--master-port", str(_PORT)]
            else:
                agent += ["--rdzv-backend", rendezvous, "--rdzv-id", "toy"]
                agent += ["--rdzv-endpoint", f"{hosts.address(0)}:{_PORT}"]
            # torchrun looks its host's name and that of this one up
            lines = ["127.0.0.1 localhost\n", *(f"{hosts.address(number)} host-{number}\n" for number in (0, 1))]
            (folder / "hosts").write_text("".join(lines))
            named = f'hostname host-{host} && mount --bind "$0" /etc/hosts && exec "$@"'
            words = ["ip", "netns", "exec", name, "unshare", "--uts", "sh", "-c", named, str(folder / "hosts")]
            words += [*agent, "--no-python", "sh", "-c", LAUNCH, "sh", *train]
            with self.logs[host].open("ab") as log:
                # its own session: what kills it does not kill the tests
                self.agents.append(
                    subprocess.Popen(words, stdout=log, stderr=log, env=environment, start_new_session=True)
                )

    def log(self, host: int) -> str:
        return self.logs[host].read_text(errors="replace")

    def sentences(self, host: int) -> list[str]:
        """The sentences of errors that a host printed."""
        return sentences_in(self.log(host))

    def wait_for_updates(self, number: int, timeout: float = 120) -> None:
        """Wait until so many updates are logged, those of an earlier attempt included."""
        until = time.monotonic() + timeout
        while self.updates() < number:
            if time.monotonic() > until or any(agent.poll() is not None for agent in self.agents):
                self.kill()
                raise TimeoutError(f"no {number} updates: {self.log(0)[-2000:]}{self.log(1)[-2000:]}")
            time.sleep(0.02)

    def updates(self) -> int:
        """How many are logged."""
        return sum(self.log(host).count("| train_inner |") for host in (0, 1))

    def workers(self, host: int) -> list[int]:
        """The processes that train on a host."""
        program = str(ROOT / "tests" / "traced_train.py").encode()
        return [process for process in _children(self.agents[host].pid) if _program(process)[1:2] == [program]]

    def kill_host(self, host: int) -> None:
        """All processes of a host at once, as a power cut does."""
        for process in [self.agents[host].pid, *_children(self.agents[host].pid)]:
            with suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)

    def kill(self) -> None:
        for host, agent in enumerate(self.agents):
            if agent.poll() is None:
                self.kill_host(host)

    def wait(self, host: int, timeout: float) -> int | None:
        """A host's exit status; None if it has not ended by then."""
        try:
            return self.agents[host].wait(timeout)
        except subprocess.TimeoutExpired:
            return None


def _children(process: int) -> list[int]:
    """All descendants of a process; none of one that has ended."""
    found = []
    with suppress(FileNotFoundError, ProcessLookupError):
        for task in Path(f"/proc/{process}/task").iterdir():
            for child in map(int, (task / "children").read_text().split()):
                found += [child, *_children(child)]
    return found


def _program(process: int) -> list[bytes]:
    """What a process runs: its words, none where it has ended."""
    with suppress(FileNotFoundError, ProcessLookupError):
        return Path(f"/proc/{process}/cmdline").read_bytes().split(b"\0")
    return []


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True, text=True)
