"""Deals the schedule's sub-batches to workers, and resumes where it was stopped."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from fairseq.data.iterators import EpochBatchIterator

from muppet_fairseq.data.multitask import MultitaskDataset
from muppet_fairseq.data.schedule import BatchSchedule, deal, in_updates
from muppet_fairseq.errors import MuppetError
from muppet_fairseq.families.base import Sample


class Stateful(Protocol):
    """Something that must be saved and restored along with the position in the data."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


def sub_batches_per_update(wanted: int | None, workers: int, update_freq: int) -> int:
    """``wanted``, or as many as the workers contribute. Raises MuppetError where these contribute less."""
    room = workers * update_freq
    if wanted is None:
        return room
    if not 0 < wanted <= room:
        needed = -(-wanted // workers)
        raise MuppetError(
            f"--sub-batches is {wanted}, but {workers} workers with --update-freq {update_freq} have room for {room}; "
            + (f"set --update-freq {needed}" if wanted > 0 else "give at least 1")
        )
    return wanted


def give_back_memory() -> None:
    """Return to the system what was freed: glibc keeps the blocks of planning, which are as large as the data."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


class WorkerSubBatches(Sequence):
    """The sub-batches of one worker in one epoch: global example indices, empty where it has nothing to do.

    Args:
        examples: of all of its sub-batches, ``[examples]``.
        starts: where each begins in them, and the end, int64 ``[sub-batches + 1]``.
    """

    def __init__(self, examples: np.ndarray, starts: np.ndarray) -> None:
        self.examples, self.starts = examples, starts

    def __len__(self) -> int:
        return len(self.starts) - 1

    def __getitem__(self, index: int | slice) -> Any:
        if isinstance(index, slice):
            begin, end, step = index.indices(len(self))
            if step != 1:
                raise ValueError(f"sub-batches are taken one after the other, not in steps of {step}")
            return WorkerSubBatches(self.examples, self.starts[begin : max(begin, end) + 1])
        if not 0 <= index < len(self):
            raise IndexError(f"there are {len(self)} sub-batches, none has number {index}")
        return self.examples[self.starts[index] : self.starts[index + 1]]

    def preceded_by(self, empty: int) -> WorkerSubBatches:
        """The same after so many empty ones."""
        return WorkerSubBatches(self.examples, np.concatenate([np.zeros(empty, dtype=np.int64), self.starts]))


@dataclass(frozen=True)
class Share:
    """What one worker needs of an epoch's schedule: a schedule takes memory in proportion to the data, this does not
    but for the worker's part.

    Attributes:
        own: the worker's sub-batches, those left out that were done when the epoch was taken up.
        sub_batches: of the whole epoch, of all workers.
        ends: where an update must stay as it is, the sub-batches up to the end of each, int64 ``[updates]``; else None.
    """

    own: WorkerSubBatches
    sub_batches: int
    ends: np.ndarray | None


class ScheduleIterator(EpochBatchIterator):
    """fairseq's epoch iterator over a :class:`BatchSchedule`.

    The position that a checkpoint keeps is counted in sub-batches of the global order, so a run may be
    resumed with another number of workers, and goes on with just the sub-batches that were left.

    Args:
        dataset: the training or validation data.
        plan: makes the schedule of an epoch, given the number of sub-batches of an update.
        update_freq: sub-batches that one worker contributes to an update at most, by epoch (the last entry stays).
        sub_batches: of an update; None: as many as all workers contribute.
        num_shards, shard_id: the number of workers and which one this is.
        companion: saved and restored with the position.
        collate_fn, epoch, num_workers, buffer_size: as in fairseq.
    """

    def __init__(
        self,
        dataset: MultitaskDataset,
        plan: Callable[[int, int], BatchSchedule],
        *,
        update_freq: Sequence[int],
        sub_batches: int | None = None,
        num_shards: int,
        shard_id: int,
        companion: Stateful | None = None,
        collate_fn: Callable[[list], Sample],
        **options: Any,
    ) -> None:
        self.plan, self.update_freq, self.sub_batches, self.companion = plan, list(update_freq), sub_batches, companion
        self._shares: dict[tuple[int, int, int], Share] = {}
        # where this process took up an epoch: (epoch, sub-batches done before, own iterations done before)
        self._taken_up = (0, 0, 0)
        super().__init__(
            dataset,
            collate_fn,
            batch_sampler=lambda dataset, epoch: (),  # the schedule takes its place
            num_shards=num_shards,
            shard_id=shard_id,
            **options,
        )

    def rounds(self, epoch: int) -> int:
        """Sub-batches, empty ones included, that one worker contributes to an update in this epoch."""
        return self.update_freq[min(epoch, len(self.update_freq)) - 1]

    def sub_batches_per_update(self, epoch: int) -> int:
        return sub_batches_per_update(self.sub_batches, self.num_shards, self.rounds(epoch))

    def share(self, epoch: int, done: int = 0) -> Share:
        """This worker's part after ``done`` sub-batches of the global order; the last one asked for is kept."""
        key = (epoch, self.sub_batches_per_update(epoch), done)
        if key not in self._shares:
            self._shares.clear()  # before the next is planned, which takes memory
            self._shares[key] = self._plan_share(*key)
            give_back_memory()
        return self._shares[key]

    def _plan_share(self, epoch: int, sub_batches_per_update: int, done: int) -> Share:
        schedule = self.plan(epoch, sub_batches_per_update)
        updates, ends = schedule.updates, None
        if schedule.keeps_updates_whole:
            ends = np.cumsum((updates >= 0).sum(axis=1))
            updates = updates[ends > done]
        elif done:
            updates = in_updates(schedule.order()[done:], sub_batches_per_update)
        dealt = deal(updates, schedule.cost, self.num_shards, self.rounds(epoch))
        mine = dealt[:, self.shard_id].reshape(-1)
        # the rounds of the last update in which no worker has anything are left out
        idle = int((dealt[-1] < 0).all(axis=0).sum()) if len(dealt) else 0
        last = len(mine) - self.rounds(epoch)
        parts = [schedule[sub_batch] for sub_batch in (*mine[:last], *mine[last + idle :])]
        starts = np.cumsum([0, *map(len, parts)], dtype=np.int64)
        return Share(WorkerSubBatches(np.concatenate([schedule[-1], *parts]), starts), len(schedule), ends)

    def _taken_up_in(self, epoch: int) -> tuple[int, int]:
        """Sub-batches of the global order, and own iterations, that were done before this process took up the epoch."""
        taken_up, done, before = self._taken_up
        return (done, before) if taken_up == epoch else (0, 0)

    # -- what fairseq's class asks for ----------------------------------------------------------------

    def ordered_batches(self, epoch: int, fix_batches_to_gpus: bool, shuffle: bool) -> WorkerSubBatches:
        done, before = self._taken_up_in(epoch)
        # fairseq cuts off what was iterated before; here that is cut off already
        return self.share(epoch, done).own.preceded_by(before)

    @property
    def first_batch(self) -> Sample:
        """A small batch: fairseq's trainer computes it (times zero) where a worker has nothing to do."""
        return next(self.smallest_batches())

    def smallest_batches(self) -> Iterator[Sample]:
        """The cheapest example of each dataset, the cheapest of all first."""
        cheapest = []
        for sizes, end in zip(self.dataset.sizes_by_dataset(), self.dataset.ends.tolist(), strict=True):
            cost = sizes.lengths * sizes.rows
            cheapest.append((int(cost.min()), end - len(cost) + int(cost.argmin())))
        for _, example in sorted(cheapest):
            yield self.collate_fn([self.dataset[example]])

    def __len__(self) -> int:
        epoch = self.next_epoch_idx
        done, before = self._taken_up_in(epoch)
        return before + len(self.share(epoch, done).own)

    def _done(self) -> int:
        """Sub-batches of the global order that all workers have done in this epoch."""
        done, before = self._taken_up_in(self.epoch)
        updates = -(-(self.iterations_in_epoch - before) // self.rounds(self.epoch))
        ends = self.share(self.epoch, done).ends
        if ends is not None:
            first = int(np.searchsorted(ends, done, side="right"))
            return int(ends[first + updates - 1]) if updates else done
        return done + updates * self.sub_batches_per_update(self.epoch)

    def state_dict(self) -> dict[str, Any]:
        state = super().state_dict()
        if state["iterations_in_epoch"] > 0:
            state["sub_batches_done"] = self._done()
            state["sub_batches_per_update"] = self.sub_batches_per_update(self.epoch)
        done, _ = self._taken_up_in(state["epoch"])
        state["sub_batches_in_epoch"] = self.share(state["epoch"], done).sub_batches
        if self.companion is not None:
            state["companion"] = self.companion.state_dict()
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if self.companion is not None and "companion" in state:
            self.companion.load_state_dict(state["companion"])
        epoch, done = state["epoch"], state.get("sub_batches_done", 0)
        share = self.share(epoch, done)
        if state.get("sub_batches_in_epoch") != share.sub_batches:
            raise MuppetError(
                f"the checkpoint's epoch {epoch} has {state.get('sub_batches_in_epoch')} sub-batches, this "
                f"run's {share.sub_batches}: resume with the same suite, --max-tokens, --batch-size, "
                "--max-positions and --sampling, or start the data anew with --reset-dataloader"
            )
        now = self.sub_batches_per_update(epoch)
        if done and share.ends is not None and state["sub_batches_per_update"] != now:
            raise MuppetError(
                f"the checkpoint's updates have {state['sub_batches_per_update']} sub-batches, this run's {now}: "
                "with --batching batch_homogeneous or stochastic_tasks set --update-freq so that workers x update-freq "
                "stays"
            )
        # iterations are counted per worker and in rounds; with another number of workers they are others
        before = -(-done // now) * self.rounds(epoch)
        self._taken_up = (epoch, done, before)
        super().load_state_dict({**state, "iterations_in_epoch": before})
