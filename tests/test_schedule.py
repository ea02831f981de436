"""The schedule: every example once, evenly spread, the same for every number of workers, costs dealt evenly."""

import itertools
import math
import time
from functools import partial

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from torch.utils.data import Dataset

from muppet_fairseq.data.iterator import ScheduleIterator
from muppet_fairseq.data.schedule import (
    SAMPLINGS,
    STRATEGIES,
    BatchSchedule,
    Sizes,
    SubBatchLimits,
    deal,
    drawn_tasks,
    evenly_spread,
    form_sub_batches,
    in_runs,
    in_updates,
    sampled_counts,
)
from muppet_fairseq.errors import MuppetError

#: train sizes of the 46 pre-finetuning datasets (the paper's section A.1)
PUBLISHED_SIZES = [
    *(8551, 67349, 3668, 363846, 392702, 104743, 2490, 635, 9427, 27243, 5428, 554, 250, 400, 120000, 25000),
    *(392702, 549367, 30000, 8530, 560000, 24029, 20360, 5452, 23097, 287113, 18949, 204045, 14436, 44972),
    *(29837, 4957, 73546, 39905, 87866, 9741, 25262, 2251, 1119, 11679, 87599, 307373, 77400, 100730, 90447),
    138384,
]


@st.composite
def suites(draw) -> list[Sizes]:
    """Up to six datasets of up to 60 examples with 1 to 5 rows of up to 40 tokens."""
    datasets = []
    for number in range(draw(st.integers(1, 6))):
        size = draw(st.integers(1, 60))
        seed = draw(st.integers(0, 999))
        rng = np.random.default_rng(seed)
        rows = rng.integers(1, 1 + draw(st.integers(1, 5)), size).astype(np.int32)
        datasets.append(Sizes(f"d{number}", rng.integers(3, 41, size).astype(np.int32), rows))
    return datasets


limits = st.builds(SubBatchLimits, st.integers(200, 900), st.one_of(st.none(), st.integers(1, 9)))


@given(suites(), limits, st.sampled_from(STRATEGIES), st.integers(1, 9), st.integers(1, 5), st.booleans())
def test_every_example_once_and_limits_kept(datasets, limit, strategy, size, epoch, shuffle):
    schedule = BatchSchedule(
        datasets, limit, strategy=strategy, sub_batches_per_update=size, epoch=epoch, shuffle=shuffle
    )
    order = schedule.order()
    seen = np.concatenate([schedule[sub_batch] for sub_batch in order])
    assert sorted(seen) == list(range(sum(len(d.lengths) for d in datasets)))

    ends = np.cumsum([len(d.lengths) for d in datasets])
    lengths = np.concatenate([d.lengths for d in datasets])
    rows = np.concatenate([d.rows for d in datasets])
    for sub_batch in order:
        examples = schedule[sub_batch]
        assert set(np.searchsorted(ends, examples, side="right")) == {schedule.dataset[sub_batch]}
        padded = lengths[examples].max() * rows[examples].sum()
        assert padded == schedule.cost[sub_batch]
        assert padded <= limit.max_tokens
        assert limit.max_examples is None or len(examples) <= limit.max_examples


@given(suites(), limits, st.sampled_from(STRATEGIES), st.integers(1, 4), st.integers(1, 4))
def test_the_order_is_the_same_for_any_number_of_workers(datasets, limit, strategy, half_workers, rounds):
    workers = 2 * half_workers
    schedule = BatchSchedule(datasets, limit, strategy=strategy, sub_batches_per_update=workers * rounds)
    many = deal(schedule.updates, schedule.cost, workers, rounds)
    few = deal(schedule.updates, schedule.cost, 2, half_workers * rounds)
    one = deal(schedule.updates, schedule.cost, 1, workers * rounds)
    for update, *dealt in zip(schedule.updates, many, few, one, strict=True):
        for shares in dealt:
            assert sorted(shares.reshape(-1)) == sorted(update)


@given(suites(), limits, st.sampled_from(STRATEGIES), st.integers(0, 99), st.integers(1, 3))
def test_equal_seed_and_epoch_give_the_equal_schedule_and_others_another(datasets, limit, strategy, seed, epoch):
    def plan(seed: int, epoch: int) -> BatchSchedule:
        return BatchSchedule(datasets, limit, strategy=strategy, sub_batches_per_update=4, seed=seed, epoch=epoch)

    first, again = plan(seed, epoch), plan(seed, epoch)
    assert np.array_equal(first.updates, again.updates)
    assert np.array_equal(first.examples, again.examples)
    if len(first) > 12:
        others = [plan(seed + 1, epoch), plan(seed, epoch + 1)]
        assert all(
            not (np.array_equal(first.updates, o.updates) and np.array_equal(first.examples, o.examples))
            for o in others
        )


@settings(max_examples=200)
@given(st.lists(st.integers(1, 400), min_size=1, max_size=25), st.integers(1, 64), st.integers(0, 999))
def test_heterogeneous_order_is_evenly_spread(counts, size, seed):
    """Any window of S places holds floor(S p) or ceil(S p), give or take one, of a dataset with share p."""
    order = evenly_spread(counts, np.random.default_rng(seed))
    assert np.array_equal(np.bincount(order, minlength=len(counts)), counts)
    size = min(size, len(order))
    held = np.cumsum(np.eye(len(counts), dtype=int)[order], axis=0)
    held = np.concatenate([np.zeros((1, len(counts)), dtype=int), held])
    windows = held[size:] - held[:-size]
    for dataset, count in enumerate(counts):
        # Fractions of whole numbers, so that no rounding loosens the bound
        low = size * count // len(order) - 1
        high = -(-size * count // len(order)) + 1
        assert windows[:, dataset].min() >= low
        assert windows[:, dataset].max() <= high


def test_heterogeneous_order_on_the_published_sizes():
    """One update of 64 holds many more datasets than at random, and small datasets never bunch."""
    counts = [-(-size // 16) for size in PUBLISHED_SIZES]
    order = evenly_spread(counts, np.random.default_rng(1))
    held = np.stack([np.bincount(u, minlength=46) for u in in_updates(order, 64)[:-1]])
    expected = 64 * np.array(counts) / sum(counts)
    assert np.abs(held - expected).max() < 2
    distinct = (held > 0).sum(axis=1)
    assert distinct.min() >= 19
    assert distinct.mean() > 23
    small = np.array(counts) < 64 * len(held) / 64
    assert held[:, small].max() <= 2


def test_batch_homogeneous_updates_hold_one_dataset_each():
    datasets = [Sizes(str(n), np.full(n, 10, np.int32), np.ones(n, np.int32)) for n in (37, 5, 90)]
    schedule = BatchSchedule(datasets, SubBatchLimits(None, 2), strategy="batch_homogeneous", sub_batches_per_update=4)
    held = [set(schedule.dataset[update[update >= 0]]) for update in schedule.updates]
    assert all(len(datasets_of_update) == 1 for datasets_of_update in held)
    runs = 1 + sum(a != b for a, b in itertools.pairwise(held))
    assert runs > 3, "updates come in random order, not dataset after dataset"


def test_dataset_homogeneous_order_finishes_a_dataset_before_the_next():
    datasets = [Sizes(str(n), np.full(n, 10, np.int32), np.ones(n, np.int32)) for n in (37, 5, 90)]
    schedule = BatchSchedule(
        datasets, SubBatchLimits(None, 2), strategy="dataset_homogeneous", sub_batches_per_update=4
    )
    sequence = schedule.dataset[schedule.order()]
    assert 1 + np.count_nonzero(np.diff(sequence)) == 3


@settings(max_examples=100)
@given(st.lists(st.integers(0, 300), min_size=1, max_size=12), st.integers(1, 20), st.integers(0, 999))
def test_each_update_draws_two_tasks_or_more_while_there_are_so_many(counts, size, seed):
    drawn = drawn_tasks(counts, size, np.random.default_rng(seed))
    assert np.array_equal(np.bincount(drawn, minlength=len(counts)), counts)
    left = np.array(counts)
    for begin in range(0, len(drawn), size):
        held = np.bincount(drawn[begin : begin + size], minlength=len(counts))
        most = min(np.count_nonzero(left), size, len(drawn) - begin)
        assert min(2, most) <= np.count_nonzero(held) <= most
        # what is left says how many places: never fewer for more of it
        (there,) = np.nonzero(held)
        by_size = there[np.lexsort((held[there], left[there]))]
        assert np.all(np.diff(held[by_size]) >= 0)
        left -= held


def test_the_number_of_tasks_is_uniform():
    counts, size = [40_000] * 12, 16
    distinct = [
        len(np.unique(update)) for update in drawn_tasks(counts, size, np.random.default_rng(1)).reshape(-1, size)
    ]
    # while none can have run out
    numbers = np.bincount(distinct[: min(counts) // size], minlength=13)[2:]
    assert len(numbers) == 11
    assert numbers.sum() == 2500
    assert stats.chisquare(numbers).pvalue > 0.01


def test_tasks_are_drawn_one_after_the_other_by_what_they_have_left():
    weights = [1, 2, 3, 4]
    pairs = [tuple(sorted(drawn_tasks(weights, 2, np.random.default_rng(seed))[:2])) for seed in range(3000)]
    both = list(itertools.combinations(range(4), 2))
    share = {a: weight / sum(weights) for a, weight in enumerate(weights)}
    expected = [share[a] * share[b] / (1 - share[a]) + share[b] * share[a] / (1 - share[b]) for a, b in both]
    assert sum(expected) == pytest.approx(1)
    assert stats.chisquare([pairs.count(pair) for pair in both], np.array(expected) * len(pairs)).pvalue > 0.01


@pytest.mark.parametrize("size", [4, 16, 64])
def test_equal_tasks_are_consumed_evenly_and_none_is_left_over(size):
    drawn = drawn_tasks([1000] * 8, size, np.random.default_rng(1))
    had = np.cumsum(np.eye(8, dtype=int)[drawn], axis=0)[size - 1 :: size]
    assert np.ptp(had, axis=1).max() < 2.5 * size + 30
    alone = [update for update in in_updates(drawn, size) if len(np.unique(update)) == 1]
    assert len(alone) <= 2


def test_small_tasks_stay_among_large_ones_until_the_end():
    counts = [-(-size // 16) for size in PUBLISHED_SIZES]
    updates = in_updates(drawn_tasks(counts, 64, np.random.default_rng(1)), 64)
    distinct = [len(np.unique(update[update >= 0])) for update in updates]
    assert min(distinct[:-3]) >= 2
    # 46 at first, fewer where small ones have run out
    assert np.mean(distinct) > 15
    assert np.mean(distinct[-100:]) > 10


def test_drawing_tasks_takes_a_second():
    """600,000 sub-batches; the bound is loose (machines here are shared)."""
    counts = np.array(PUBLISHED_SIZES) * 600_000 // sum(PUBLISHED_SIZES)
    begin = time.perf_counter()
    drawn_tasks(counts, 64, np.random.default_rng(1))
    assert time.perf_counter() - begin < 5


@pytest.mark.parametrize("strategy", ["batch_homogeneous", "stochastic_tasks"])
def test_updates_that_are_kept_whole_keep_their_size(strategy):
    datasets = [Sizes(str(n), np.full(n, 10, np.int32), np.ones(n, np.int32)) for n in (37, 25, 90)]

    def iterator(rounds: int) -> ScheduleIterator:
        def plan(epoch: int, size: int) -> BatchSchedule:
            limit = SubBatchLimits(None, 2)
            return BatchSchedule(datasets, limit, strategy=strategy, sub_batches_per_update=size, epoch=epoch)

        return ScheduleIterator(NoData(), plan, update_freq=[rounds], num_shards=1, shard_id=0, collate_fn=list)

    state = {"epoch": 1, "sub_batches_done": 8, "sub_batches_in_epoch": len(iterator(4).plan(1, 4))}
    with pytest.raises(
        MuppetError, match=r"updates have 4 sub-batches, this run's 8: with --batching .* workers x upd"
    ):
        iterator(8).load_state_dict(state | {"sub_batches_per_update": 4})


@given(st.lists(st.integers(1, 10_000), min_size=1, max_size=20), st.floats(1, 20))
def test_samplings_keep_the_epoch_length(sizes, temperature):
    counts = {s: sampled_counts(sizes, s, temperature) for s in SAMPLINGS}
    assert all(count.sum() == sum(sizes) for count in counts.values())
    assert counts["natural"].tolist() == sizes
    assert np.ptp(counts["uniform"]) <= 1
    weights = np.array(sizes) ** (1 / temperature)
    assert np.abs(counts["temperature"] - weights / weights.sum() * sum(sizes)).max() <= 1


def test_up_sampled_examples_are_repeated_evenly():
    datasets = [Sizes(str(n), np.full(n, 10, np.int32), np.ones(n, np.int32)) for n in (10, 290)]
    schedule = BatchSchedule(datasets, SubBatchLimits(None, 4), sampling="uniform", sub_batches_per_update=4)
    times = np.bincount(np.concatenate([schedule[b] for b in schedule.order()]), minlength=300)
    assert set(times[:10]) == {15}
    assert times[10:].sum() == 150
    assert times[10:].max() == 1


@given(st.integers(1, 12), st.integers(1, 6), st.integers(0, 11), st.integers(1, 30), st.integers(0, 999))
def test_deal_keeps_updates_and_puts_the_fill_first(workers, rounds, missing, sub_batches, seed):
    """Also where an update has fewer sub-batches than the workers have room for."""
    size = max(1, workers * rounds - missing)
    cost = np.random.default_rng(seed).integers(1, 1000, sub_batches)
    updates = in_updates(np.random.default_rng(seed).permutation(sub_batches), size)
    dealt = deal(updates, cost, workers, rounds)
    assert dealt.shape == (len(updates), workers, rounds)
    for update, shares in zip(updates, dealt, strict=True):
        assert sorted(shares.reshape(-1)) == sorted([*update, *[-1] * (workers * rounds - size)])
        for own in shares:
            filled = own >= 0
            assert np.all(filled[np.argmax(filled) :]) or not filled.any()


def test_deal_evens_out_the_costs():
    rng = np.random.default_rng(1)
    cost = rng.integers(500, 4400, 64 * 100)
    updates = in_updates(np.arange(len(cost)), 64)
    dealt = cost[deal(updates, cost, 16, 4)].sum(axis=2)
    plain = cost[updates].reshape(len(updates), 16, 4).sum(axis=2)

    def balance(load: np.ndarray) -> float:
        return (load.mean(axis=1) / load.max(axis=1)).mean()

    assert balance(dealt) > 0.97
    assert balance(plain) < 0.8


def test_sub_batches_group_like_lengths():
    rng = np.random.default_rng(1)
    lengths = rng.integers(5, 200, 5000).astype(np.int32)
    sizes = Sizes("d", lengths, np.ones(5000, np.int32))
    runs = in_runs(sizes, np.arange(5000), rng)
    starts, costs = form_sub_batches(runs, SubBatchLimits(4400))
    padded = sum(part.max() * len(part) for part in np.split(lengths[runs.examples], starts[1:]))
    assert padded == costs.sum()
    assert lengths.sum() / padded > 0.97


def test_examples_of_different_numbers_of_rows_share_sub_batches():
    sizes = Sizes("arc", np.array([10, 10, 8, 8, 6], np.int32), np.array([3, 5, 4, 4, 2], np.int32))
    schedule = BatchSchedule([sizes], SubBatchLimits(80), shuffle=False)
    assert [schedule[b].tolist() for b in range(len(schedule))] == [[1, 0], [2, 3, 4]]
    assert schedule.cost.tolist() == [80, 80]


def test_summaries_of_equally_long_sources_are_grouped_by_what_is_written():
    written = np.random.default_rng(1).integers(5, 100, 640).astype(np.int32)
    sizes = Sizes("news", np.full(640, 512, np.int32), np.ones(640, np.int32), written)
    schedule = BatchSchedule([sizes], SubBatchLimits(4096))
    groups = [written[schedule[b]] for b in range(len(schedule))]
    assert {len(group) for group in groups} == {8}
    assert written.sum() / sum(8 * group.max() for group in groups) > 0.97


def test_full_sub_batches_are_equally_costly():
    """8 rows of 512 tokens fit into 4,400: those of 400 are not to take more, for all would wait for them."""
    lengths = np.repeat(np.array([512, 400, 64], np.int32), [800, 20, 2000])
    schedule = BatchSchedule([Sizes("d", lengths, np.ones(2820, np.int32))], SubBatchLimits(4400))
    assert schedule.cost.max() == 4096
    assert np.mean(schedule.cost >= 4000) > 0.95
    # not far below the limit, and as it says without shuffling
    few = Sizes("d", np.repeat(np.array([300, 512], np.int32), 60), np.ones(120, np.int32))
    assert BatchSchedule([few], SubBatchLimits(600)).cost.max() == 600
    assert BatchSchedule([few], SubBatchLimits(4400), shuffle=False).cost.max() == 4200


@settings(max_examples=50)
@given(suites(), st.integers(200, 900), st.integers(1, 5), st.integers(1, 3), st.integers(0, 40))
def test_a_worker_keeps_its_part_of_the_schedule(datasets, max_tokens, workers, rounds, done):
    """All workers' parts are what the schedule has left after ``done`` sub-batches, in the order of the updates."""
    plan = partial(_plan, datasets, max_tokens)
    schedule = plan(1, workers * rounds)
    parts = []
    for worker in range(workers):
        iterator = ScheduleIterator(
            NoData(), plan, update_freq=[rounds], num_shards=workers, shard_id=worker, collate_fn=list
        )
        share = iterator.share(1, done)
        assert share.sub_batches == len(schedule)
        own = list(share.own)
        assert [e.tolist() for e in share.own[1:]] == [e.tolist() for e in own[1:]]
        assert [len(e) for e in share.own.preceded_by(2)] == [0, 0, *map(len, own)]
        parts.append(own)
    assert len({len(own) for own in parts}) == 1
    found = sorted(sub_batch.tolist() for own in parts for sub_batch in own if len(sub_batch))
    assert found == sorted(schedule[b].tolist() for b in schedule.order()[done:])


class NoData(Dataset):
    """fairseq's iterator asks for a dataset; the schedule knows its sizes."""


def _plan(datasets, max_tokens, epoch, size) -> BatchSchedule:
    return BatchSchedule(datasets, SubBatchLimits(max_tokens), sub_batches_per_update=size, epoch=epoch)


def test_an_example_over_the_limit_is_named():
    sizes = Sizes("race", np.array([10, 512], np.int32), np.array([4, 4], np.int32))
    with pytest.raises(MuppetError, match=r"race: example 1 takes 2048 tokens \(4 rows of 512\).*--max-tokens is 1000"):
        BatchSchedule([sizes], SubBatchLimits(1000))


def test_planning_the_published_sizes_takes_seconds():
    """4.4 million examples; the bound is loose (machines here are shared), the benchmark measures it."""
    rng = np.random.default_rng(0)
    datasets = [
        Sizes(str(n), np.clip(rng.lognormal(4, 0.6, n), 8, 512).astype(np.int32), np.ones(n, np.int32))
        for n in PUBLISHED_SIZES
    ]
    begin = time.perf_counter()
    schedule = BatchSchedule(datasets, SubBatchLimits(4400))
    assert time.perf_counter() - begin < 10
    assert len(schedule.examples) == sum(PUBLISHED_SIZES)
    assert math.ceil(len(schedule) / 64) == len(schedule.updates)
