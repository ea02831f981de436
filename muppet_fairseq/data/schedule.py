"""The order of an epoch: which examples form a sub-batch, and in which order all sub-batches are trained on.

A *sub-batch* is what one worker computes at once; its examples come from one dataset. An *update* is ``S``
sub-batches (64 in the paper, §3.2), on as many workers and accumulation steps as there are. The schedule is
the same for every number of workers; :mod:`muppet_fairseq.data.iterator` deals it.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from muppet_fairseq.errors import MuppetError

STRATEGIES = ("batch_heterogeneous", "batch_homogeneous", "dataset_homogeneous")
SAMPLINGS = ("natural", "temperature", "uniform")


@dataclass(frozen=True)
class Sizes:
    """What the schedule knows of a dataset: ``lengths`` (tokens in an example's longest row) and ``rows``
    (rows of an example: its choices or windows), both int32 ``[examples]``."""

    name: str
    lengths: np.ndarray
    rows: np.ndarray


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
        limits: how large a sub-batch may be.
        strategy: ``batch_heterogeneous`` (an update holds sub-batches of different datasets, the method),
            ``batch_homogeneous`` (all sub-batches of an update are from one dataset) or
            ``dataset_homogeneous`` (one dataset after the other): §5.2, Figure 2.
        sampling: ``natural`` (every example once an epoch), ``uniform`` (as many examples of each dataset)
            or ``temperature`` (shares proportional to ``size ** (1 / temperature)``): §3.4. An epoch has as
            many examples as the natural one.
        sub_batches_per_update: ``S``.
        seed, epoch: equal values give the equal schedule.
        shuffle: without it, datasets follow each other, longest examples first (validation).

    Attributes:
        examples: global example indices, int64; sub-batch ``b`` is ``examples[starts[b]:starts[b + 1]]``.
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
        examples, starts, dataset, cost = [], [], [], []
        offset, used = 0, 0
        for number, (sizes, own) in enumerate(zip(datasets, chosen, strict=True)):
            ordered, first = form_sub_batches(sizes, own, limits)
            examples.append(ordered + offset)
            starts.append(first + used)
            dataset.append(np.full(len(first), number, dtype=np.int32))
            cost.append(_costs(sizes, ordered, first))
            offset, used = offset + len(sizes.lengths), used + len(ordered)
        self.num_datasets = len(datasets)
        #: whether an update must not be put together otherwise, because it is of one dataset
        self.keeps_updates_whole = shuffle and strategy == "batch_homogeneous"
        self.examples = np.concatenate(examples)
        self.starts = np.concatenate([*starts, [used]])
        self.dataset = np.concatenate(dataset)
        self.cost = np.concatenate(cost)
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
    """The examples of each dataset in an epoch: indices within it."""
    counts = sampled_counts(sizes, sampling, temperature)
    return [_choose(size, int(count), rng, shuffle=shuffle) for size, count in zip(sizes, counts, strict=True)]


def _choose(size: int, count: int, rng: np.random.Generator, *, shuffle: bool) -> np.ndarray:
    """``count`` of ``size`` examples in random order: each as often as any other, give or take one."""
    if not shuffle:
        return np.arange(count)
    full, rest = divmod(count, size)
    passes = [rng.permutation(size) for _ in range(full)]
    if rest:
        passes.append(rng.permutation(size)[:rest])
    return np.concatenate(passes) if passes else np.arange(0)


def form_sub_batches(sizes: Sizes, chosen: np.ndarray, limits: SubBatchLimits) -> tuple[np.ndarray, np.ndarray]:
    """Group examples of like length and equal number of rows into sub-batches as large as the limits allow.

    Returns the examples in order and the position where each sub-batch starts. Examples of equal length stay
    in the (random) order of ``chosen``. Longest first, the first example of a sub-batch says how many fit:
    so one step for each distinct length is enough, whatever the number of examples.
    """
    # lexsort is stable: ties keep the order of `chosen`
    ordered = chosen[np.lexsort((-sizes.lengths[chosen], -sizes.rows[chosen]))]
    lengths, rows = sizes.lengths[ordered].astype(np.int64), sizes.rows[ordered].astype(np.int64)
    changes = np.flatnonzero((np.diff(lengths) != 0) | (np.diff(rows) != 0)) + 1
    run_starts = np.concatenate([[0], changes])
    run_ends = np.append(changes, len(ordered))
    same_rows_until = np.append(np.flatnonzero(np.diff(rows)) + 1, len(ordered))
    starts: list[np.ndarray] = []
    position = 0
    for begin, end in zip(run_starts.tolist(), run_ends.tolist(), strict=True):
        if position >= end:
            continue
        limit = int(same_rows_until[np.searchsorted(same_rows_until, begin, side="right")])
        fit = _how_many_fit(sizes, ordered, begin, limits)
        first = np.arange(max(position, begin), end, fit)
        starts.append(first)
        position = min(int(first[-1]) + fit, limit)
    return ordered, np.concatenate(starts) if starts else np.arange(0)


def _how_many_fit(sizes: Sizes, ordered: np.ndarray, position: int, limits: SubBatchLimits) -> int:
    example = ordered[position]
    cost = int(sizes.lengths[example]) * int(sizes.rows[example])
    fit = len(ordered) if limits.max_tokens is None else limits.max_tokens // cost
    if fit == 0:
        raise MuppetError(
            f"{sizes.name}: example {example} takes {cost} tokens ({sizes.rows[example]} rows of "
            f"{sizes.lengths[example]}), but --max-tokens is {limits.max_tokens}; raise it or lower "
            "--max-positions"
        )
    return fit if limits.max_examples is None else min(fit, limits.max_examples)


def _costs(sizes: Sizes, ordered: np.ndarray, starts: np.ndarray) -> np.ndarray:
    if not len(starts):
        return np.zeros(0, dtype=np.int64)
    rows = np.add.reduceat(sizes.rows[ordered].astype(np.int64), starts)
    return sizes.lengths[ordered[starts]] * rows  # the first example of a sub-batch is its longest


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
    keys, opened_until = (
        key[by_opening].tolist(),
        np.searchsorted(opens[by_opening], np.arange(total), "right"),
    )
    heap: list[int] = []
    order, pushed = [0] * total, 0
    for place, until in enumerate(opened_until.tolist()):
        while pushed < until:
            heapq.heappush(heap, keys[pushed])
            pushed += 1
        order[place] = heapq.heappop(heap)
    spread = (np.array(order, dtype=np.int64) % len(counts)).astype(np.int32)
    return np.roll(spread, int(rng.integers(total))) if total else spread


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
