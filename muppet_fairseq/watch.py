"""Workers that wait for each other, but not for ever: who is gone or hangs is named, and the others stop.

In an update every worker waits for all others. One that dies closes its connections, or (another host's, NCCL's) does
not; one that hangs leaves the others waiting. So each worker says every second how far it is, in the store in which the
workers found each other. A worker whose step does not go on looks there for those that are behind.
"""

from __future__ import annotations

import itertools
import json
import logging
import os
import socket
import sys
import threading
import time
import traceback
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from datetime import timedelta
from functools import cache
from pathlib import Path
from typing import Any

import torch.distributed
from torch.distributed.distributed_c10d import _get_default_store

from muppet_fairseq.errors import MuppetError

logger = logging.getLogger(__name__)

#: seconds between two signs of life
BEAT = 1.0

#: seconds after which an operation on the store has failed
_STORE_TIMEOUT = 10.0

AGAIN = "the run goes on from its last checkpoint when the same command is started again"


@dataclass(frozen=True)
class Sign:
    """What a worker says of itself.

    Attributes:
        rank, process, host: who it is.
        system: what can see its process: this boot of a machine, and a container on it.
        beat: counts its signs of life.
        step, place: how far it is: steps (updates and validation's batches) begun, and places passed in this one. They
            are the same for all workers at the same point of their work.
        doing: the same for people.
        failed: why it stops, if it does.
    """

    rank: int
    process: int
    host: str
    system: str
    beat: int = 0
    step: int = 0
    place: int = 0
    doing: str = "before the first update"
    failed: str | None = None

    def __str__(self) -> str:
        return f"worker {self.rank} (process {self.process} on {self.host})"

    def is_dead(self) -> bool:
        """Whether its process is known to be gone: where this one could see it, on Linux."""
        if not self.system or self.system != _system():
            return False
        try:
            # a process that ended stays until its parent asks for its status
            return Path(f"/proc/{self.process}/stat").read_text().rpartition(")")[2].split()[0] in "ZX"
        except OSError:
            return True


class Watch:
    """One worker's watch over all.

    Args:
        store: where the workers met; this object's own connection to it.
        name: of these workers' common start; the store may have been that of an earlier one.
        rank, workers: which worker this is, of how many.
        timeout: seconds that a step may stand still.
    """

    def __init__(self, store: torch.distributed.Store, name: str, rank: int, workers: int, timeout: float) -> None:
        self.store, self.workers, self.timeout = store, workers, timeout
        self.sign = Sign(rank, os.getpid(), socket.gethostname(), _system())
        #: the last sign of everyone that was seen
        self.seen: dict[int, Sign] = {}
        self._step, self._waits, self._moved = "", False, time.monotonic()
        #: held for ever by the thread that says why this worker ends
        self._ends = threading.Lock()
        self._beats = itertools.count()
        self._prefix = f"muppet/{name}"
        self._post()
        # two, for the store's answer may never come
        for work in (self._beat, self._look):
            threading.Thread(target=work, name="watch", daemon=True).start()

    @classmethod
    def start(cls, timeout: float) -> Watch:
        """Watch over the workers of PyTorch's default process group."""
        if not timeout > 0:
            raise MuppetError(f"--worker-timeout is {timeout:g}; give seconds above 0 (inf: for ever)")
        _warn_of_shared_store()
        store = _get_default_store().clone()
        store.set_timeout(timedelta(seconds=_STORE_TIMEOUT))
        name = [uuid.uuid4().hex]
        torch.distributed.broadcast_object_list(name, src=0)
        return cls(store, name[0], torch.distributed.get_rank(), torch.distributed.get_world_size(), timeout)

    # -- what the main thread says ----------------------------------------------------------------------

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        """Inside it this worker waits for others. An error that comes from one that is gone names it (MuppetError)."""
        self._step = name
        self._move(step=self.sign.step + 1, place=0, doing=name)
        self._waits = True
        try:
            yield
        except Exception as error:
            if isinstance(error, RuntimeError):  # what a broken connection raises, among other things
                self._raise_for_the_gone(error)
            self._ends.acquire()
            self._move(failed=str(error).partition("\n")[0] or type(error).__name__)
            self._post()
            raise
        finally:
            self._waits = False
        self._move(place=sys.maxsize, doing=f"after {name}")

    def passes(self, doing: str) -> None:
        """This worker is one place further in its step."""
        self._move(place=self.sign.place + 1, doing=f"{self._step}, {doing}")

    def says(self, doing: str) -> None:
        """Between two steps, this worker does something that the others do not."""
        if not self._waits:
            self._move(doing=doing)

    def _move(self, **changes: Any) -> None:
        self.sign = replace(self.sign, **changes)
        self._moved = time.monotonic()

    # -- the store --------------------------------------------------------------------------------------

    def _post(self) -> None:
        self.store.set(f"{self._prefix}/{self.sign.rank}", json.dumps(asdict(self.sign) | {"beat": next(self._beats)}))

    def _read(self) -> dict[int, Sign]:
        """The last signs of all workers that gave one."""
        keys = [f"{self._prefix}/{rank}" for rank in range(self.workers)]
        signs = (json.loads(value) for value in self.store.multi_get([key for key in keys if self.store.check([key])]))
        self.seen |= {sign["rank"]: Sign(**sign) for sign in signs}
        return dict(self.seen)

    def _agreed(self, sentence: str | None = None) -> str | None:
        """Why all workers stop: what the first of them has said. ``sentence`` is what this one has to say."""
        key = f"{self._prefix}/why"
        if sentence is not None:
            return self.store.compare_set(key, "", sentence).decode()
        return self.store.get(key).decode() if self.store.check([key]) else None

    # -- what the other threads do ------------------------------------------------------------------------

    def _beat(self) -> None:
        while True:
            everyone = len(self.seen) == self.workers
            time.sleep(BEAT if everyone else BEAT / 10)
            try:
                self._post()
                if not everyone:
                    self._read()
                why = self._agreed() if self._waits else None
            except RuntimeError:
                continue  # a worker that waits in vain will find it out
            self._end_for(why)

    def _look(self) -> None:
        while True:
            time.sleep(BEAT)
            if self._stands_still():
                self._end_for(self._who_holds_up())

    def _end_for(self, why: str | None) -> None:
        if why is not None and self._waits and self._ends.acquire(blocking=False):
            self._end(why)

    def _stands_still(self) -> bool:
        return self._waits and time.monotonic() - self._moved > self.timeout

    def _end(self, why: str) -> None:
        print(f"muppet: {why}", file=sys.stderr)
        frame = sys._current_frames().get(threading.main_thread().ident or 0)
        if self.sign.rank in (sign.rank for sign in self._behind()) and frame is not None:
            where = "".join(traceback.format_stack(frame)[-6:])
            print(f"worker {self.sign.rank} is here:\n{where}", file=sys.stderr)
        sys.stderr.flush()
        self._let_others_hear()
        os._exit(1)  # the main thread cannot be woken

    def _let_others_hear(self) -> None:
        """The store may end with the first worker."""
        if self.sign.rank == 0:
            time.sleep(3 * BEAT)

    def _behind(self) -> list[Sign]:
        """Those that are least far; none where all are equally far."""
        least = min((sign.step, sign.place) for sign in self.seen.values())
        behind = [sign for sign in self.seen.values() if (sign.step, sign.place) == least]
        return behind if len(behind) < self.workers else []

    def _who_holds_up(self) -> str | None:
        """Why this worker's step stands still; None where it went on meanwhile."""
        waited = f"for {self.timeout:g} s (--worker-timeout)"
        try:
            silent = self._silent_soon()
        except RuntimeError:
            return f"{self._lost_store()}, and {self.sign.doing} has stood still {waited}; {AGAIN}"
        if not self._stands_still():
            return None
        behind = self._behind()
        if silent:
            why = f"{_and(silent)} gave no sign of life and held up {self.sign.doing} {waited}"
        elif behind:
            doing = "; ".join(dict.fromkeys(sign.doing for sign in behind))
            why = f"{_and(behind)} held up the others {waited}, last seen in {doing}"
        else:
            hosts = sorted({sign.host for sign in self.seen.values()})
            why = (
                f"all workers waited for each other {waited} in {self.sign.doing}; look at the network of {_and(hosts)}"
            )
        return self._agreed(f"{why}; {AGAIN}")

    def _silent(self) -> list[Sign]:
        """Those that give no sign of life for some beats. Raises RuntimeError where the store is gone."""
        before = self._read()
        for _ in range(4):
            time.sleep(BEAT)
            self._post()
        after = self._read()
        return [sign for rank, sign in after.items() if rank in before and sign.beat == before[rank].beat]

    def _silent_soon(self) -> list[Sign]:
        """:meth:`_silent`; a store that does not answer, since the network to it is gone, counts as gone."""
        answers: list[list[Sign]] = []

        def ask() -> None:
            with suppress(RuntimeError):
                answers.append(self._silent())

        asking = threading.Thread(target=ask, daemon=True)
        asking.start()
        asking.join(_STORE_TIMEOUT)
        if not answers:
            raise RuntimeError("the store does not answer")
        return answers[0]

    def _lost_store(self) -> str:
        """What there is to say where no worker can be asked for."""
        first = self.seen.get(0)
        if first and first.is_dead():  # it had the store, unless torchrun's agent has it
            return f"{first} has died"
        return f"{first or 'worker 0'} or the network to it is gone, for the store of the workers cannot be reached,"

    # -- after an error -----------------------------------------------------------------------------------

    def _raise_for_the_gone(self, error: RuntimeError) -> None:
        """Raise MuppetError if a worker has failed, died, or gives no sign of life any more."""
        try:
            why = self._gone()
            if why is not None:
                why = self._agreed(why)
        except RuntimeError:
            why = f"{self._lost_store()} in {self.sign.doing}; {AGAIN}"
        if why is None:
            return
        self._ends.acquire()
        self._let_others_hear()
        raise MuppetError(why) from error

    def _gone(self) -> str | None:
        """Who is gone, for people. Raises RuntimeError where the store is."""
        until = time.monotonic() + BEAT
        while time.monotonic() < until:
            signs = self._read()
            why = self._agreed()
            # a worker that stops for another one comes to its end, too; it has said so before
            if why is not None:
                return why
            for sign in signs.values():
                if sign.failed:
                    return f"{sign} has stopped in {sign.doing}: {sign.failed}"
                if sign.is_dead():
                    return self._agreed() or f"{sign} has died in {self.sign.doing}; {AGAIN}"
            time.sleep(0.05)
        silent = self._silent()
        return f"{_and(silent)} gave no sign of life any more in {self.sign.doing}; {AGAIN}" if silent else None


@cache
def _system() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip() + os.readlink("/proc/self/ns/pid")
    except OSError:
        return ""


def _warn_of_shared_store() -> None:
    """PyTorch 2.13: workers that torchrun starts again find the addresses of their dead predecessors in its store, and
    cannot join, unless each start has a store of its own."""
    restarts = int(os.environ.get("TORCHELASTIC_MAX_RESTARTS", "0"))
    if restarts and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True" and torch.distributed.get_rank() == 0:
        logger.warning(
            "torchrun's --max-restarts works with --standalone or --rdzv-backend c10d, and only if the variable "
            "TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 is set where torchrun is started"
        )


def _and(things: list) -> str:
    """``a, b and c``."""
    words = list(map(str, things))
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)
