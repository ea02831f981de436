"""Deals the schedule's sub-batches to workers, and resumes where it was stopped."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
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


class WorkerSubBatches(Sequence):
    """The sub-batches of one worker in one epoch: looked up when needed, so that nothing is copied."""

    def __init__(self, schedule: BatchSchedule, sub_batches: np.ndarray) -> None:
        self.schedule, self.sub_batches = schedule, sub_batches

    def __len__(self) -> int:
        return len(self.sub_batches)

    def __getitem__(self, index: int | slice) -> Any:
        if isinstance(index, slice):
            return WorkerSubBatches(self.schedule, self.sub_batches[index])
        return self.schedule[self.sub_batches[index]]

    def __iter__(self) -> Iterator[np.ndarray]:
        return (self.schedule[sub_batch] for sub_batch in self.sub_batches)


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
        self._schedules: dict[tuple[int, int], BatchSchedule] = {}
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

    def schedule(self, epoch: int) -> BatchSchedule:
        key = (epoch, self.sub_batches_per_update(epoch))
        if key not in self._schedules:
            self._schedules = {key: self.plan(*key)}
        return self._schedules[key]

    def worker_sub_batches(self, epoch: int, done: int = 0) -> np.ndarray:
        """Sub-batch indices of this worker after ``done`` sub-batches of the global order; -1 is an empty one."""
        schedule = self.schedule(epoch)
        updates = schedule.updates
        if done:
            updates = in_updates(schedule.order()[done:], self.sub_batches_per_update(epoch))
            if schedule.keeps_updates_whole:
                updates = schedule.updates[np.cumsum((schedule.updates >= 0).sum(axis=1)) > done]
        dealt = deal(updates, schedule.cost, self.num_shards, self.rounds(epoch))
        mine = dealt[:, self.shard_id].reshape(-1)
        # the rounds of the last update in which no worker has anything are left out
        idle = int((dealt[-1] < 0).all(axis=0).sum()) if len(dealt) else 0
        last = len(mine) - self.rounds(epoch)
        return np.concatenate([mine[:last], mine[last + idle :]])

    # -- what fairseq's class asks for ----------------------------------------------------------------

    def ordered_batches(self, epoch: int, fix_batches_to_gpus: bool, shuffle: bool) -> WorkerSubBatches:
        taken_up, done, before = self._taken_up
        if taken_up != epoch:
            done, before = 0, 0
        mine = self.worker_sub_batches(epoch, done)
        # fairseq cuts off what was iterated before; here that is cut off already
        return WorkerSubBatches(self.schedule(epoch), np.concatenate([np.full(before, -1), mine]))

    @property
    def first_batch(self) -> Sample:
        """A small batch: fairseq's trainer computes it (times zero) where a worker has nothing to do."""
        return next(self.smallest_batches())

    def smallest_batches(self) -> Iterator[Sample]:
        """The cheapest example of each dataset, the cheapest of all first."""
        costs = [sizes.lengths * sizes.rows for sizes in self.dataset.sizes_by_dataset()]
        for number in np.argsort([cost.min() for cost in costs], kind="stable"):
            offset = int(self.dataset.ends[number]) - len(costs[number])
            yield self.collate_fn([self.dataset[offset + int(costs[number].argmin())]])

    def __len__(self) -> int:
        taken_up, done, before = self._taken_up
        if taken_up != self.next_epoch_idx:
            return len(self.worker_sub_batches(self.next_epoch_idx))
        return before + len(self.worker_sub_batches(taken_up, done))

    def _done(self) -> int:
        """Sub-batches of the global order that all workers have done in this epoch."""
        taken_up, done, before = self._taken_up
        if taken_up != self.epoch:
            done, before = 0, 0
        updates = -(-(self.iterations_in_epoch - before) // self.rounds(self.epoch))
        schedule = self.schedule(self.epoch)
        if schedule.keeps_updates_whole:
            ends = np.cumsum((schedule.updates >= 0).sum(axis=1))
            first = int(np.searchsorted(ends, done, side="right"))
            return int(ends[first + updates - 1]) if updates else done
        return done + updates * self.sub_batches_per_update(self.epoch)

    def state_dict(self) -> dict[str, Any]:
        state = super().state_dict()
        if state["iterations_in_epoch"] > 0:
            state["sub_batches_done"] = self._done()
            state["sub_batches_per_update"] = self.sub_batches_per_update(self.epoch)
        state["sub_batches_in_epoch"] = len(self.schedule(state["epoch"]))
        if self.companion is not None:
            state["companion"] = self.companion.state_dict()
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if self.companion is not None and "companion" in state:
            self.companion.load_state_dict(state["companion"])
        epoch, done = state["epoch"], state.get("sub_batches_done", 0)
        if state.get("sub_batches_in_epoch") != len(self.schedule(epoch)):
            raise MuppetError(
                f"the checkpoint's epoch {epoch} has {state.get('sub_batches_in_epoch')} sub-batches, this "
                f"run's {len(self.schedule(epoch))}: resume with the same suite, --max-tokens, --batch-size, "
                "--max-positions and --sampling, or start the data anew with --reset-dataloader"
            )
        now = self.sub_batches_per_update(epoch)
        if done and self.schedule(epoch).keeps_updates_whole and state["sub_batches_per_update"] != now:
            raise MuppetError(
                f"the checkpoint's updates have {state['sub_batches_per_update']} sub-batches, this run's {now}: "
                "with --batching batch_homogeneous set --update-freq so that workers x update-freq stays"
            )
        # iterations are counted per worker and in rounds; with another number of workers they are others
        before = -(-done // now) * self.rounds(epoch)
        self._taken_up = (epoch, done, before)
        super().load_state_dict({**state, "iterations_in_epoch": before})
