"""The order of an epoch: which examples form a sub-batch, and in which order all sub-batches are trained on.

A *sub-batch* is what one worker computes at once; its examples come from one dataset. An *update* is ``S``
sub-batches (64 in the paper, §3.2), on as many workers and accumulation steps as there are. The schedule is
the same for every number of workers; :mod:`muppet_fairseq.data.iterator` deals it.
"""

from __future__ import annotations

import heapq
import itertools
import sys
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from muppet_fairseq.errors import MuppetError

STRATEGIES = ("batch_heterogeneous", "batch_homogeneous", "dataset_homogeneous", "stochastic_tasks")
SAMPLINGS = ("natural", "temperature", "uniform")


@dataclass(frozen=True)
class Sizes:
    """What the schedule knows of a dataset; it does not keep it.

    Attributes:
        name: for messages.
        lengths: tokens in an example's longest row, int32 ``[examples]``.
        rows: of an example: its choices or windows, int32 ``[examples]``.
        written: tokens that the decoder writes for an example, int32 ``[examples]``; None where there is no decoder.
    """

    name: str
    lengths: np.ndarray
    rows: np.ndarray
    written: np.ndarray | None = None


@dataclass(frozen=True)
class SubBatchLimits:
    """``max_tokens``: padded tokens of a sub-batch, over all rows; ``max_examples``: its examples."""

    max_tokens: int | None = None
    max_examples: int | None = None

    def __post_init__(self) -> None:
        for option, limit in (("--max-tokens", self.max_tokens), ("--batch-size", self.max_examples)):
            if limit is not None and limit < 1:
                raise MuppetError(f"{option} is {limit}; give at least 1")


class BatchSchedule:
    """The sub-batches of one epoch, in order.

    Args:
        datasets: one entry for each dataset of the suite; global example indices count through them.
        limits: how large a sub-batch may be; with ``max_tokens`` alone, shuffled ones end at :func:`even_limit`.
        strategy: ``batch_heterogeneous`` (an update holds sub-batches of different datasets, the method),
            ``batch_homogeneous`` (all sub-batches of an update are from one dataset) or
            ``dataset_homogeneous`` (one dataset after the other): §5.2, Figure 2. Or ``stochastic_tasks`` (each
            update draws which datasets it holds, see :func:`drawn_tasks`).
        sampling: ``natural`` (every example once an epoch), ``uniform`` (as many examples of each dataset)
            or ``temperature`` (shares proportional to ``size ** (1 / temperature)``): §3.4. An epoch has as
            many examples as the natural one.
        sub_batches_per_update: ``S``.
        seed, epoch: equal values give the equal schedule.
        shuffle: without it, datasets follow each other, longest examples first (validation).

    Attributes:
        examples: global example indices, int32 (int64 from 2**31 on); sub-batch ``b`` is
            ``examples[starts[b]:starts[b + 1]]``.
        starts: int64 ``[sub-batches + 1]``.
        dataset: dataset index of each sub-batch, int32.
        cost: padded tokens x rows of each sub-batch, int64.
        updates: sub-batch indices, int64 ``[updates, S]``; -1 fills an update that has fewer.
    """

    def __init__(
        self,
        datasets: Sequence[Sizes],
        limits: SubBatchLimits,
        *,
        strategy: str = "batch_heterogeneous",
        sampling: str = "natural",
        temperature: float = 2.0,
        sub_batches_per_update: int = 64,
        seed: int = 1,
        epoch: int = 1,
        shuffle: bool = True,
    ) -> None:
        if strategy not in STRATEGIES or sampling not in SAMPLINGS:
            raise ValueError(f"unknown strategy {strategy!r} or sampling {sampling!r}")
        rng = np.random.default_rng([seed, epoch])
        chosen = choose_examples([len(d.lengths) for d in datasets], sampling, temperature, rng, shuffle=shuffle)
        ties = rng if shuffle else None
        runs = [in_runs(sizes, own, ties) for sizes, own in zip(datasets, chosen, strict=True)]
        if shuffle and limits.max_tokens is not None and limits.max_examples is None:
            limits = SubBatchLimits(even_limit(runs, limits.max_tokens))
        parts = [form_sub_batches(own, limits) for own in runs]
        used = np.cumsum([0, *(len(own.examples) for own in runs)])
        offsets = np.cumsum([0, *(len(sizes.lengths) for sizes in datasets)])
        self.num_datasets = len(datasets)
        #: whether an update must not be put together otherwise, because it is of one dataset, or of those drawn for it
        self.keeps_updates_whole = shuffle and strategy in ("batch_homogeneous", "stochastic_tasks")
        self.examples = np.empty(used[-1], dtype=np.int32 if offsets[-1] < 2**31 else np.int64)
        for own, begin, offset in zip(runs, used, offsets, strict=False):
            np.add(own.examples, offset, out=self.examples[begin : begin + len(own.examples)], casting="unsafe")
        self.starts = np.concatenate(
            [*(first + begin for (first, _), begin in zip(parts, used, strict=False)), used[-1:]]
        )
        self.dataset = np.repeat(np.arange(len(parts), dtype=np.int32), [len(first) for first, _ in parts])
        self.cost = np.concatenate([cost for _, cost in parts])
        self.updates = self._plan(strategy, sub_batches_per_update, rng, shuffle=shuffle)

    def __len__(self) -> int:
        """Number of sub-batches."""
        return len(self.dataset)

    def __getitem__(self, sub_batch: int) -> np.ndarray:
        """Global example indices of one sub-batch; none for -1."""
        if sub_batch < 0:
            return self.examples[:0]
        return self.examples[self.starts[sub_batch] : self.starts[sub_batch + 1]]

    def order(self) -> np.ndarray:
        """All sub-batches in training order, without the fill of short updates."""
        flat = self.updates.reshape(-1)
        return flat[flat >= 0]

    def _plan(self, strategy: str, size: int, rng: np.random.Generator, *, shuffle: bool) -> np.ndarray:
        if not shuffle:
            return in_updates(np.arange(len(self)), size)
        own = [rng.permutation(np.flatnonzero(self.dataset == d)) for d in range(self.num_datasets)]
        if strategy == "batch_heterogeneous":
            return in_updates(_merge(own, evenly_spread([len(o) for o in own], rng)), size)
        if strategy == "stochastic_tasks":
            return in_updates(_merge(own, drawn_tasks([len(o) for o in own], size, rng)), size)
        if strategy == "batch_homogeneous":
            updates = np.concatenate([in_updates(o, size) for o in own])
            return updates[rng.permutation(len(updates))]
        return in_updates(np.concatenate([own[d] for d in rng.permutation(self.num_datasets)]), size)


def in_updates(order: np.ndarray, size: int) -> np.ndarray:
    """Cut an order of sub-batches into updates ``[updates, size]``; -1 fills the last."""
    updates = np.full((-(-len(order) // size), size), -1, dtype=np.int64)
    updates.reshape(-1)[: len(order)] = order
    return updates


def sampled_counts(sizes: Sequence[int], sampling: str, temperature: float) -> np.ndarray:
    """Examples of each dataset in an epoch; they add up to the natural number (largest remainders)."""
    natural = np.asarray(sizes, dtype=np.int64)
    if sampling == "natural":
        return natural
    if temperature <= 0:
        raise MuppetError(f"--sampling-temperature is {temperature:g}; give more than 0")
    weights = natural ** (1 / temperature) if sampling == "temperature" else np.ones(len(natural))
    exact = weights / weights.sum() * natural.sum()
    counts = np.floor(exact).astype(np.int64)
    counts[np.argsort(counts - exact, kind="stable")[: natural.sum() - counts.sum()]] += 1
    return counts


def choose_examples(
    sizes: Sequence[int], sampling: str, temperature: float, rng: np.random.Generator, *, shuffle: bool = True
) -> list[np.ndarray]:
    """The examples of each dataset in an epoch: indices within it, int32."""
    counts = sampled_counts(sizes, sampling, temperature)
    return [_choose(size, int(count), rng, shuffle=shuffle) for size, count in zip(sizes, counts, strict=True)]


def _choose(size: int, count: int, rng: np.random.Generator, *, shuffle: bool) -> np.ndarray:
    """``count`` of ``size`` examples: each as often as any other, give or take one, which is up to chance."""
    if not shuffle:
        return np.arange(count, dtype=np.int32)
    full, rest = divmod(count, size)
    passes = [np.arange(size, dtype=np.int32)] * full
    if rest:
        passes.append(rng.permutation(size)[:rest].astype(np.int32))
    return np.concatenate(passes) if passes else np.arange(0, dtype=np.int32)


@dataclass(frozen=True)
class Runs:
    """Examples of one dataset in the order in which they fill sub-batches, longest first, and where they are alike.

    Attributes:
        name: the dataset.
        examples: indices within it, ``[examples]``.
        starts: the places where runs of examples of equal length and equal number of rows begin, int64 ``[runs]``.
        lengths, rows: of a run's examples, int64 ``[runs]``.
    """

    name: str
    examples: np.ndarray
    starts: np.ndarray
    lengths: np.ndarray
    rows: np.ndarray

    @property
    def counts(self) -> np.ndarray:
        """Examples of each run."""
        return np.diff(self.starts, append=len(self.examples))


def in_runs(sizes: Sizes, chosen: np.ndarray, rng: np.random.Generator | None) -> Runs:
    """Sort examples by length, then by rows, then by the text to write, the largest first.

    Examples that are equal in all of these come in random order; without ``rng`` they stay in the order of ``chosen``.
    (Shuffling them all before sorting would be simpler, but leaves the processor's caches: for ten times as many
    examples, planning would take 14 times as long.)
    """
    ordered = chosen.copy()
    for key in (sizes.written, sizes.rows, sizes.lengths):
        if key is not None and len(key) and key.min() != key.max():
            ordered = ordered[_descending(key[ordered], int(key.max()))]
    lengths, rows = sizes.lengths[ordered], sizes.rows[ordered]
    differ = (lengths[1:] != lengths[:-1]) | (rows[1:] != rows[:-1])
    starts = _starts(differ, len(ordered))
    if rng is not None:
        if sizes.written is not None:
            written = sizes.written[ordered]
            differ |= written[1:] != written[:-1]
        ties = _starts(differ, len(ordered))
        for begin, count in zip(ties.tolist(), np.diff(ties, append=len(ordered)).tolist(), strict=True):
            if count > 1:
                rng.shuffle(ordered[begin : begin + count])
    return Runs(sizes.name, ordered, starts, lengths[starts].astype(np.int64), rows[starts].astype(np.int64))


def _starts(differ: np.ndarray, count: int) -> np.ndarray:
    """Where runs of equal examples start, of ``count`` examples that differ from the next one or not."""
    return np.concatenate([np.arange(min(1, count)), np.flatnonzero(differ) + 1])


def _descending(key: np.ndarray, largest: int) -> np.ndarray:
    """The stable order from the largest to the smallest; linear in time (numpy sorts 16 bits by radix) up to 65,535."""
    return np.argsort((largest - key).astype(np.uint16 if largest < 2**16 else np.int64), kind="stable")


def form_sub_batches(runs: Runs, limits: SubBatchLimits) -> tuple[np.ndarray, np.ndarray]:
    """Cut examples of like length into sub-batches as large as the limits allow.

    Longest first, the first example of a sub-batch says how many rows fit: so one step for each run is enough,
    whatever the number of examples.

    Returns:
        The place where each sub-batch starts, and its cost (padded tokens x rows), both int64.

    Raises:
        MuppetError: an example alone is over the limit.
    """
    most = sys.maxsize if limits.max_examples is None else limits.max_examples
    steps = list(zip(*(a.tolist() for a in (runs.starts, runs.counts, runs.lengths, runs.rows)), strict=True))
    starts, costs = [np.arange(0)], [np.arange(0)]
    position = 0
    for number, (begin, count, length, rows) in enumerate(steps):
        end = begin + count
        if position >= end:
            continue
        room = sys.maxsize if limits.max_tokens is None else limits.max_tokens // length
        fit = min(room // rows, most)
        if fit == 0:
            raise MuppetError(
                f"{runs.name}: example {runs.examples[begin]} takes {length * rows} tokens ({rows} rows of {length}), "
                f"but --max-tokens is {limits.max_tokens}; raise it or lower --max-positions"
            )
        first = np.arange(position, end, min(fit, count))
        cost = np.full(len(first), length * rows * fit)
        taken = end - int(first[-1])
        taken_rows = taken * rows
        position = end
        # the last one has room for examples of the runs that follow
        for _, next_count, _, next_rows in steps[number + 1 :]:
            more = min((room - taken_rows) // next_rows, most - taken, next_count)
            position, taken, taken_rows = position + more, taken + more, taken_rows + more * next_rows
            if more < next_count:
                break
        cost[-1] = length * taken_rows
        starts.append(first)
        costs.append(cost)
    return np.concatenate(starts), np.concatenate(costs)


#: the share of ``max_tokens`` that :func:`even_limit` leaves at least
_LEAST = 7 / 8


def even_limit(datasets: Sequence[Runs], max_tokens: int) -> int:
    """The most tokens of a sub-batch, up to ``max_tokens``, with which workers wait least for each other.

    An update takes as long as its costliest sub-batch, so an epoch takes (number of sub-batches) x (tokens of a full
    one). Long examples fill ``max_tokens`` badly: of 512 tokens 8 fit into 4,400, which leaves 7% unused; sub-batches
    of at most 4,096 are a few more, but each is full.
    """
    costs = np.concatenate([runs.lengths * runs.rows for runs in datasets])
    cost, place = np.unique(costs, return_inverse=True)
    examples = np.bincount(place, weights=np.concatenate([runs.counts for runs in datasets]))
    limits = np.unique(max_tokens // cost * cost)
    limits = limits[limits >= max(_LEAST * max_tokens, cost[-1])]
    if not len(limits):
        return max_tokens
    idle = [limit * (examples / (limit // cost)).sum() for limit in limits]
    return int(limits[::-1][np.argmin(idle[::-1])])


#: places that :func:`evenly_spread` fills at a time
_BLOCK = 2**15


def evenly_spread(counts: Sequence[int], rng: np.random.Generator) -> np.ndarray:
    """Interleave the datasets so that each is spread evenly: int32 ``[sum(counts)]`` of dataset indices.

    Item ``j`` of a dataset with share ``p`` has the window of places ``[j / p, (j + 1) / p)``; each place
    goes to the open window that closes first. As the shares add up to 1, every item finds a place in its
    window (earliest deadline first is optimal; Baruah et al. 1996 call the property proportionate
    fairness), so after any ``k`` places a dataset has had ``k * p`` items, give or take less than one. Any
    update of S therefore holds floor(S p) - 1 to ceil(S p) + 1 of it, whatever the other datasets. The result
    is rotated by a random amount, so that no epoch begins with the same datasets.
    """
    counts = np.asarray(counts, dtype=np.int64)
    total = int(counts.sum())
    dataset = np.repeat(np.arange(len(counts)), counts)
    item = np.arange(total) - np.repeat(np.cumsum(counts) - counts, counts)
    opens = item * total // counts[dataset]
    closes = -(-(item + 1) * total // counts[dataset])
    # one integer orders a window: when it closes, then at random, then which dataset it is
    tie = rng.permutation(len(counts))[dataset]
    key = (closes * len(counts) + tie) * len(counts) + dataset
    by_opening = np.argsort(opens, kind="stable")
    keys, opened_until = key[by_opening], np.searchsorted(opens[by_opening], np.arange(total), "right")
    heap: list[int] = []
    spread = np.empty(total, dtype=np.int32)
    pushed = 0
    # a block at a time: lists of Python's numbers take much more memory than arrays
    for begin in range(0, total, _BLOCK):
        untils = opened_until[begin : begin + _BLOCK]
        opened, order = iter(keys[pushed : untils[-1]].tolist()), []
        for until in untils.tolist():
            for window in itertools.islice(opened, until - pushed):
                heapq.heappush(heap, window)
            pushed = until
            order.append(heapq.heappop(heap))
        spread[begin : begin + len(order)] = np.array(order) % len(counts)
    return np.roll(spread, int(rng.integers(total))) if total else spread


#: updates for which :func:`drawn_tasks` draws random numbers at a time
_DRAWN = 2**10


def drawn_tasks(counts: Sequence[int], size: int, rng: np.random.Generator) -> np.ndarray:
    """The datasets of updates that each draw theirs: int32 ``[sum(counts)]`` of dataset indices, ``size`` an update.

    Of the k datasets that still have sub-batches, an update takes K ~ U{2..min(k, size)} (MPT, Wang et al. 2023,
    §3.2), one after the other with probability proportional to what each has left, so that none is left over at the
    end. Each gets one place, and what it has left says how many of the others (largest remainders). Where the K have
    less than ``size``, more are drawn in the same way: only the last update is short.
    """
    left = np.array(counts, dtype=np.int64)
    drawn = np.empty(left.sum(), dtype=np.int32)
    there = np.flatnonzero(left)
    for number, begin in enumerate(range(0, len(drawn), size)):
        row = number % _DRAWN
        if row == 0:
            times, uniform = rng.exponential(size=(_DRAWN, len(left))), rng.random(_DRAWN).tolist()
        room = min(size, len(drawn) - begin)
        most = min(len(there), size)
        least = min(2, most)
        wanted = least + int(uniform[row] * (most - least + 1))
        # the first of exponential times with these rates: drawn one after the other
        order = there[(times[row, there] / left[there]).argsort()]
        enough = 1 + int(left[order].cumsum().searchsorted(room))
        taken = order[: max(wanted, enough)]
        places = _places(left[taken], room)
        left[taken] -= places
        drawn[begin : begin + room] = taken.repeat(places)
        if not left[taken].all():
            there = np.flatnonzero(left)
    return drawn


def _places(left: np.ndarray, size: int) -> np.ndarray:
    """Share ``size`` places in proportion to ``left``, at least one for each; of equal remainders the first are
    rounded up.

    As ``size`` is at most ``sum(left)``, what a dataset gets beyond the first place is at most ``left - 1``: none gets
    more than it has.
    """
    rest = size - len(left)
    beyond = np.maximum(left * (size / left.sum()) - 1, 0)
    exact = beyond * (rest / max(beyond.sum(), 1))
    places = exact.astype(np.int64) + 1
    missing = size - int(places.sum())
    if missing:
        places[(places - exact).argsort(kind="stable")[:missing]] += 1
    return places


def _merge(own: list[np.ndarray], order: np.ndarray) -> np.ndarray:
    """Fill the places of each dataset in ``order`` with its own sub-batches, in their order."""
    merged = np.empty(len(order), dtype=np.int64)
    for number, sub_batches in enumerate(own):
        merged[order == number] = sub_batches
    return merged


def deal(updates: np.ndarray, cost: np.ndarray, workers: int, rounds: int) -> np.ndarray:
    """Deal the sub-batches of each update to workers so that their costs are even.

    ``updates`` is ``[U, S]``, with ``S`` at most ``workers * rounds``; returns ``[U, workers, rounds]``. In each
    round, the costliest sub-batches left go to the workers that have least so far. What fills up short
    updates (-1) comes first in a worker's row: fairseq forgets the sample size of a worker whose *last*
    sub-batch of an update is empty.
    """
    updates = np.pad(updates, ((0, 0), (0, workers * rounds - updates.shape[1])), constant_values=-1)
    costs = np.where(updates >= 0, cost[updates], 0)
    descending = np.argsort(-costs, axis=1, kind="stable")
    load = np.zeros((len(updates), workers), dtype=np.int64)
    dealt = np.empty((len(updates), workers, rounds), dtype=np.int64)
    for number in range(rounds):
        taken = descending[:, number * workers : (number + 1) * workers]
        lightest = np.argsort(load, axis=1, kind="stable")
        np.put_along_axis(dealt[:, :, number], lightest, np.take_along_axis(updates, taken, axis=1), axis=1)
        added = np.zeros_like(load)
        np.put_along_axis(added, lightest, np.take_along_axis(costs, taken, axis=1), axis=1)
        load += added
    # costliest first; the fill, which costs nothing, was dealt last
    return dealt[:, :, ::-1]
