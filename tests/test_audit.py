"""``--audit`` and ``muppet audit``: they say what was trained on, whatever was killed, redone or computed twice."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from muppet_fairseq import cli
from muppet_fairseq.audit import FOLDER, Audit, Header, attempts, describe, history
from muppet_fairseq.data.schedule import SAMPLINGS, BatchSchedule, Sizes, SubBatchLimits
from muppet_fairseq.errors import MuppetError
from muppet_fairseq.tasks.muppet import MuppetTask
from muppet_fairseq.trainer import MuppetTrainer
from tests.runs import finished
from tests.toy_suite import NAMES, open_task, options

HEADER = Header(1, ["a", "b"], [3, 2], "batch_heterogeneous", "natural", 2.0, 1)


def sample(dataset: int, *items: int) -> dict:
    return {"dataset": dataset, "items": np.array(items)}


def write(folder: Path, attempt: int, worker: int, header: Header, lines: list[dict], cut: bool = False) -> Path:
    """A worker's file of an attempt; ``cut``: it was killed while it wrote the last line."""
    folder.mkdir(exist_ok=True)
    text = "".join(json.dumps(line) + "\n" for line in [asdict(header), *lines])
    path = folder / f"attempt-{attempt:04}.worker-{worker:03}.jsonl"
    path.write_text(text[: -len(text.splitlines()[-1]) // 2] if cut else text)
    return path


def line(update: int, *sub_batches: list, epoch: int = 1, ends_epoch: bool = False) -> dict:
    return {"epoch": epoch, "update": update, "ends_epoch": ends_epoch, "sub_batches": sub_batches, "skipped": []}


# -- one worker ---------------------------------------------------------------------------------------


def test_what_is_collected_counts_when_the_update_is_done(tmp_path):
    audit = Audit(tmp_path, HEADER)
    audit.begin_epoch(1)
    audit.begin_update()
    audit.trained(sample(0, 0, 1))
    audit.skipped(sample(1, 0))
    audit.begin_update()  # it was dropped
    audit.trained(sample(1, 1))
    audit.end_update(1, ends_epoch=False)
    audit.begin_update()
    audit.trained(sample(0, 2))
    audit.end_update(2, ends_epoch=False)
    audit.begin_update()
    audit.trained(sample(0, 0))
    audit.end_update(2, ends_epoch=True)  # it was computed, but not kept: this one has its number
    audit.sync()
    figures = describe(tmp_path)
    assert (figures["attempts"], figures["updates"], figures["updates_done_again"]) == (1, 2, 0)
    assert (figures["skipped"], figures["lost"], figures["repeated"]) == (1, 2, 0)
    a, b = figures["epochs"][0]["datasets"].values()
    assert a == {"examples": 3, "once": 1, "skipped": 0, "lost": 2, "repeated": 0, "left": 0}
    assert b == {"examples": 2, "once": 1, "skipped": 1, "lost": 0, "repeated": 0, "left": 0}


def test_each_start_is_an_attempt_of_its_own(tmp_path):
    for number in range(1, 4):
        audit = Audit(tmp_path, HEADER)
        assert audit.path.name == f"attempt-{number:04}.worker-000.jsonl"
    audit.begin_epoch(2)
    audit.end_update(7, ends_epoch=False)
    assert [attempt.first for attempt in attempts(tmp_path)] == [float("inf"), float("inf"), 7]


def test_a_record_that_cannot_be_written_is_said(tmp_path):
    (tmp_path / FOLDER).write_text("")
    with pytest.raises(MuppetError, match="cannot write"):
        Audit(tmp_path / FOLDER, HEADER)


# -- attempts -----------------------------------------------------------------------------------------


@st.composite
def stories(draw):
    """Datasets, the updates of two epochs, and attempts: where each goes on, how far it gets, its workers, and of how
    many of them the last line is missing or cut off."""
    sizes = draw(st.lists(st.integers(1, 6), min_size=1, max_size=3))
    updates = []
    for epoch in (1, 2):
        examples = draw(st.permutations([(d, i) for d, size in enumerate(sizes) for i in range(size)]))
        while examples:
            size = draw(st.integers(1, 4))
            updates.append((epoch, [[d, [i]] for d, i in examples[:size]], len(examples) <= size))
            examples = examples[size:]
    plan, done = [], 0
    for _ in range(draw(st.integers(0, 4))):
        begin = draw(st.integers(0, done))  # the last checkpoint
        end = draw(st.integers(begin, len(updates)))
        workers = draw(st.integers(1, 3))
        plan.append((begin, end, workers, draw(st.integers(0, workers)), draw(st.booleans())))
        done = end - 1 if end > begin and plan[-1][3] else end
        done = max(done, begin)
    plan.append((draw(st.integers(0, done)), len(updates), draw(st.integers(1, 3)), 0, False))
    return sizes, updates, plan


def record(folder: Path, sizes: list[int], updates: list, plan: list) -> None:
    names = [f"d{number}" for number in range(len(sizes))]
    for attempt, (begin, end, workers, short, cut) in enumerate(plan, 1):
        header = Header(workers, names, sizes, "batch_heterogeneous", "natural", 2.0, 1)
        for worker in range(workers):
            lines = [
                line(
                    number + 1,
                    *updates[number][1][worker::workers],
                    epoch=updates[number][0],
                    ends_epoch=updates[number][2],
                )
                for number in range(begin, end)
            ]
            if worker < short and lines:
                write(folder, attempt, worker, header, lines if cut else lines[:-1], cut=cut)
            else:
                write(folder, attempt, worker, header, lines)


@given(stories())
def test_killed_attempts_neither_lose_nor_repeat(tmp_path_factory, story):
    sizes, updates, plan = story
    folder = tmp_path_factory.mktemp("audit")
    record(folder, sizes, updates, plan)
    figures = describe(folder)
    assert (figures["lost"], figures["repeated"], figures["updates"]) == (0, 0, len(updates))
    for epoch in figures["epochs"]:
        assert epoch["finished"]
        assert [d["once"] for d in epoch["datasets"].values()] == sizes
    # an update that an attempt did, and a later one did again (or that one before it)
    again = 0
    for place, (begin, end, workers, short, _) in enumerate(plan):
        recorded = end - 1 if short == workers and end > begin else end
        starts = [b for b, e, w, s, _ in plan[place + 1 :] if (e - 1 if s == w else e) > b]
        again += len([number for number in range(begin, recorded) if any(number >= start for start in starts)])
    assert figures["updates_done_again"] == again


@given(stories(), st.data())
def test_what_is_lost_or_repeated_is_counted(tmp_path_factory, story, data):
    """Take examples out of updates that count, or put some in."""
    sizes, updates, plan = story
    updates = [(epoch, [list(sub_batch) for sub_batch in parts], ends) for epoch, parts, ends in updates]
    folder = tmp_path_factory.mktemp("audit")
    expected = Counter()
    for number in data.draw(st.sets(st.integers(0, len(updates) - 1))):
        parts = updates[number][1]
        if data.draw(st.booleans()):
            expected["lost"] += 1
            del parts[data.draw(st.integers(0, len(parts) - 1))]
        else:
            expected["repeated"] += 1
            parts.append(data.draw(st.sampled_from(parts)))
    record(folder, sizes, updates, plan)
    figures = describe(folder)
    assert (figures["lost"], figures["repeated"]) == (expected["lost"], expected["repeated"])


def test_an_epoch_that_goes_on_has_examples_left_and_none_lost(tmp_path):
    write(tmp_path, 1, 0, HEADER, [line(1, [0, [0, 1]], [1, [0]])])
    (epoch,) = describe(tmp_path)["epochs"]
    assert not epoch["finished"]
    assert epoch["datasets"]["a"] == {"examples": 3, "once": 2, "skipped": 0, "lost": 0, "repeated": 0, "left": 1}
    write(tmp_path, 2, 0, HEADER, [line(2, [0, [0, 1, 2]], epoch=2)])
    first, _ = describe(tmp_path)["epochs"]
    assert first["datasets"]["a"]["lost"] == 1, "a later epoch has begun"


def test_a_run_begun_anew_in_the_same_folder(tmp_path):
    """With other data, too: what was before does not count."""
    write(
        tmp_path, 1, 0, Header(1, ["old"], [9], "batch_heterogeneous", "natural", 2.0, 1), [line(1, [0, [8]]), line(2)]
    )
    write(tmp_path, 2, 0, HEADER, [line(1, [0, [0, 1, 2]], [1, [0, 1]], ends_epoch=True)])
    figures = describe(tmp_path)
    assert (figures["lost"], figures["repeated"], figures["updates_done_again"]) == (0, 0, 2)
    write(tmp_path, 3, 0, Header(1, ["old"], [9], "batch_heterogeneous", "natural", 2.0, 1), [line(2, [0, [8]])])
    with pytest.raises(MuppetError, match="attempts at epoch 1 had different data"):
        describe(tmp_path)


@given(
    st.lists(st.integers(1, 40), min_size=1, max_size=4),
    st.sampled_from(SAMPLINGS),
    st.floats(1, 5),
    st.integers(0, 99),
    st.integers(1, 9),
)
def test_what_is_planned_is_what_the_schedule_has(sizes, sampling, temperature, seed, epoch):
    header = Header(1, [str(n) for n in sizes], sizes, "batch_heterogeneous", sampling, temperature, seed)
    datasets = [Sizes(str(n), np.arange(4, 4 + n, dtype=np.int32), np.ones(n, np.int32)) for n in sizes]
    schedule = BatchSchedule(
        datasets, SubBatchLimits(max_examples=3), sampling=sampling, temperature=temperature, seed=seed, epoch=epoch
    )
    visits = np.bincount(schedule.examples, minlength=sum(sizes))
    assert np.array_equal(np.concatenate(header.planned(epoch)), visits)


# -- what cannot be read ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (1, "[]"),
        (1, '{"workers": 1}'),
        (1, json.dumps(asdict(HEADER) | {"datasets": ["a"]})),
        (1, json.dumps(asdict(HEADER) | {"examples": [3, 2.5]})),
        (2, "{"),
        (2, json.dumps(line(1, [0, [0]]) | {"update": "1"})),
        (2, json.dumps(line(1, [0, [0.5]]))),
        (2, '{"epoch": 1}'),
        (3, json.dumps(line(2, [0, [3]]))),
        (3, json.dumps(line(2, [2, [0]]))),
        (3, json.dumps(line(2, [0, [-1]]))),
        (3, json.dumps(line(2, [0, ["x"]]))),
        (3, json.dumps(line(2, [0]))),
    ],
)
def test_a_line_that_is_none_of_ours_is_named(tmp_path, number, text):
    path = write(tmp_path, 1, 0, HEADER, [line(1, [0, [0]]), line(2, [0, [1]]), line(3, [0, [2]])])
    lines = path.read_text().splitlines()
    lines[number - 1] = text
    path.write_text("\n".join(lines) + "\n")
    with pytest.raises(MuppetError, match=f"worker-000.jsonl: line {number} is not what --audit writes"):
        describe(tmp_path)


def test_a_folder_without_records_is_said(tmp_path):
    write(tmp_path, 1, 0, HEADER, [], cut=True)
    with pytest.raises(MuppetError, match="there is no record of a training here; train with --audit"):
        cli.main(["audit", str(tmp_path)])


# -- real runs ----------------------------------------------------------------------------------------


def compute_one_update_twice(folder: Path):
    """Write the examples of every update beside the audit, and have the second update computed twice."""

    def inject(rank: int) -> None:
        train_step = MuppetTrainer.train_step

        def step(self: MuppetTrainer, samples: list, *arguments: Any) -> Any:
            if self.get_num_updates() == 1:
                for part in samples:
                    self.task.train_step(part, self.model, self.criterion, self.optimizer, 1)
            before = self.get_num_updates()
            output = train_step(self, samples, *arguments)
            assert self.get_num_updates() == before + 1
            with open(folder / f"{rank}.jsonl", "a") as trace:
                parts = [[part["dataset"], part["id"].tolist()] for part in samples if part]
                trace.write(json.dumps([before + 1, parts]) + "\n")
            return output

        MuppetTrainer.train_step = step

    return inject


@pytest.mark.parametrize("workers", [1, 2])
def test_the_audit_names_the_examples_that_were_trained_on(data, tmp_path, capsys, workers):
    """By an independent record of the examples' ids; also of passages, which are trained on window by window, and of
    an update that is computed twice."""
    save_dir = tmp_path / "run"
    words = options(data, save_dir, "--audit", "--max-epoch", "1", "--disable-validation", "--no-save")
    words += ["--update-freq", str(3 - workers), "--sub-batches", "2"]
    finished(words, tmp_path, workers=workers, inject=compute_one_update_twice(tmp_path))
    task: MuppetTask = open_task(data, ",".join(NAMES))
    task.load_dataset("train")
    train = task.datasets["train"]
    named, traced = Counter(), Counter()
    for _, update, counts in history(attempts(save_dir / FOLDER)):
        assert counts
        for dataset, items in update.sub_batches:
            ids = train.datasets[dataset].example_of(np.array(train.subsets[dataset])[items])
            named.update((update.update, dataset, int(number)) for number in ids)
    for rank in range(workers):
        for text in (tmp_path / f"{rank}.jsonl").read_text().splitlines():
            update, parts = json.loads(text)
            traced.update((update, dataset, number) for dataset, ids in parts for number in ids)
    assert named == traced

    cli.main(["audit", str(save_dir), "--json"])
    figures = json.loads(capsys.readouterr().out)
    assert (figures["attempts"], figures["lost"], figures["repeated"], figures["updates_done_again"]) == (1, 0, 0, 0)
    (epoch,) = figures["epochs"]
    counts = {name: len(subset) for name, subset in zip(NAMES, train.subsets, strict=True)}
    assert {name: dataset["once"] for name, dataset in epoch["datasets"].items()} == counts
    assert counts["spans"] > 45
    cli.main(["audit", str(save_dir)])
    rows = [text.split() for text in capsys.readouterr().out.splitlines()]
    assert ["updates", str(epoch["updates"])] in rows
    assert ["spans", *(str(counts["spans"]),) * 2, "0", "0", "0", "0"] in rows


def test_without_the_option_nothing_is_recorded(data, tmp_path):
    finished(options(data, tmp_path / "run", "--max-update", "1", "--disable-validation", "--no-save"), tmp_path)
    assert not (tmp_path / "run" / FOLDER).exists()
