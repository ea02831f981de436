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
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from datetime import timedelta
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
        beat: counts its signs of life.
        step, place: how far it is: steps (updates and validation's batches) begun, and places passed in this one. They
            are the same for all workers at the same point of their work.
        doing: the same for people.
        failed: why it stops, if it does.
        blames: the rank of the worker for which it stops, if it does.
    """

    rank: int
    process: int
    host: str
    beat: int = 0
    step: int = 0
    place: int = 0
    doing: str = "before the first update"
    failed: str | None = None
    blames: int | None = None

    def __str__(self) -> str:
        return f"worker {self.rank} (process {self.process} on {self.host})"

    def is_dead(self) -> bool:
        """Whether its process is known to be gone: where it is of this host."""
        if self.host != socket.gethostname():
            return False
        try:
            # Linux keeps a process that ended until its parent asks for its status
            return Path(f"/proc/{self.process}/stat").read_text().rpartition(")")[2].split()[0] in "ZX"
        except OSError:
            return Path("/proc/self/stat").exists()


class Watch:
    """One worker's watch over all.

    Args:
        store: where the workers met; this object's own connection to it.
        rank, workers: which worker this is, of how many.
        timeout: seconds that a step may stand still.
    """

    def __init__(self, store: torch.distributed.Store, rank: int, workers: int, timeout: float) -> None:
        self.store, self.workers, self.timeout = store, workers, timeout
        self.sign = Sign(rank, os.getpid(), socket.gethostname())
        #: the last sign of everyone that was seen
        self.seen: dict[int, Sign] = {}
        self._waits = False
        self._moved = time.monotonic()
        self._beats = itertools.count()
        # a worker that is started again after a fault must not find what the last one has left
        self._prefix = f"muppet/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}"
        self._post()
        # two, for the store's answer may never come
        for work in (self._beat, self._look):
            threading.Thread(target=work, name="watch", daemon=True).start()

    @classmethod
    def start(cls, timeout: float) -> Watch:
        """Watch over the workers of PyTorch's default process group."""
        if not timeout > 0:
            raise MuppetError(f"--worker-timeout is {timeout:g}; give seconds above 0 (inf: for ever)")
        store = _get_default_store().clone()
        store.set_timeout(timedelta(seconds=_STORE_TIMEOUT))
        return cls(store, torch.distributed.get_rank(), torch.distributed.get_world_size(), timeout)

    # -- what the main thread says ----------------------------------------------------------------------

    @contextmanager
    def step(self, doing: str) -> Iterator[None]:
        """Inside it this worker waits for others. An error that comes from one that is gone names it (MuppetError)."""
        self._move(step=self.sign.step + 1, place=0, doing=doing)
        self._waits = True
        try:
            yield
        except Exception as error:
            if isinstance(error, RuntimeError):  # what a broken connection raises, among other things
                self._raise_for_the_gone(error)
            self._move(failed=str(error).partition("\n")[0] or type(error).__name__)
            self._post()
            raise
        finally:
            self._waits = False
        self._move(place=sys.maxsize, doing=f"after {doing}")

    def passes(self, doing: str) -> None:
        """This worker is one place further in its step."""
        self._move(place=self.sign.place + 1, doing=doing)

    def says(self, doing: str) -> None:
        """This worker does something that the others do not."""
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

    # -- what the other threads do ------------------------------------------------------------------------

    def _beat(self) -> None:
        while True:
            time.sleep(BEAT)
            try:
                self._post()
                if len(self.seen) < self.workers:
                    self._read()
            except RuntimeError:
                logger.debug("no sign of life could be given")  # who waits will say it

    def _look(self) -> None:
        while True:
            time.sleep(BEAT)
            if self._stands_still():
                self._stop_if_still()

    def _stands_still(self) -> bool:
        return self._waits and time.monotonic() - self._moved > self.timeout

    def _stop_if_still(self) -> None:
        who = self._who_holds_up()
        if not self._stands_still():  # it went on meanwhile
            return
        print(f"muppet: {who}; {AGAIN}", file=sys.stderr)
        frame = sys._current_frames().get(threading.main_thread().ident or 0)
        if self.sign.rank in (sign.rank for sign in self._behind()) and frame is not None:
            where = "".join(traceback.format_stack(frame)[-6:])
            print(f"muppet: worker {self.sign.rank} is here:\n{where}", file=sys.stderr)
        sys.stderr.flush()
        os._exit(1)  # the main thread cannot be woken

    def _behind(self) -> list[Sign]:
        """Those that are least far; none where all are equally far."""
        least = min((sign.step, sign.place) for sign in self.seen.values())
        behind = [sign for sign in self.seen.values() if (sign.step, sign.place) == least]
        return behind if len(behind) < self.workers else []

    def _who_holds_up(self) -> str:
        waited = f"for {self.timeout:g} s (--worker-timeout)"
        try:
            silent = self._silent_soon()
        except RuntimeError:
            return f"{self._lost_store()}, and {self.sign.doing} has stood still {waited}"
        if silent:
            return f"{_and(silent)} gave no sign of life and held up {self.sign.doing} {waited}"
        behind = self._behind()
        if behind:
            doing = "; ".join(dict.fromkeys(sign.doing for sign in behind))
            return f"{_and(behind)} held up the others {waited}, last seen in {doing}"
        hosts = sorted({sign.host for sign in self.seen.values()})
        return f"all workers waited for each other {waited} in {self.sign.doing}; look at the network of {_and(hosts)}"

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
        first = self.seen.get(0)
        return f"{first or 'worker 0'} or the network to it is gone, for the store of the workers cannot be reached"

    # -- after an error -----------------------------------------------------------------------------------

    def _raise_for_the_gone(self, error: RuntimeError) -> None:
        """Raise MuppetError if a worker has failed, died, or gives no sign of life any more."""
        doing = self.sign.doing
        try:
            gone = self._gone()
        except RuntimeError:
            raise MuppetError(f"{self._lost_store()} ({doing}); {AGAIN}") from error
        if gone is None:
            return
        self._move(blames=gone.rank)
        self._post()
        if gone.failed:
            raise MuppetError(f"{gone} has stopped in {gone.doing}: {gone.failed}") from error
        how = "has died" if gone.is_dead() else "gave no sign of life any more"
        raise MuppetError(f"{gone} {how} in {doing}; {AGAIN}") from error

    def _gone(self) -> Sign | None:
        """The worker for which all others stop. Raises RuntimeError where the store is gone."""
        until = time.monotonic() + BEAT
        while time.monotonic() < until:
            others = [sign for sign in self._read().values() if sign.rank != self.sign.rank]
            # a worker that stops for another one comes to its end, too
            for sign in others:
                if sign.blames is not None:
                    return self.seen[sign.blames]
            for sign in others:
                if sign.failed or sign.is_dead():
                    return sign
            time.sleep(0.05)
        return next(iter(self._silent()), None)


def _and(things: list) -> str:
    """``a, b and c``."""
    words = list(map(str, things))
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)
