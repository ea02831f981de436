"""A dataset whose loss is not finite: it is named, and with ``--on-bad-loss skip`` the update goes on without it."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fairseq.trainer import Trainer

from muppet_fairseq.audit import FOLDER, describe
from muppet_fairseq.criterions.muppet import MuppetCriterion
from muppet_fairseq.families.base import Sample
from muppet_fairseq.tasks.muppet import MuppetTask
from tests.runs import Run, equal, finished, parameters
from tests.toy_suite import NAMES, logged, open_task, options, trained

CHOICES = NAMES.index("choices")
SKIP = ("--on-bad-loss", "skip")


class Poison:
    """In the losses or gradients of some examples of a dataset.

    Args:
        value: what the loss becomes: nan, inf; None: it is finite, and its gradient is not.
        examples: which; None: all of the dataset.
        dataset: its number in the suite; None: all datasets.
    """

    def __init__(
        self, value: float | None, examples: tuple[int, ...] | None = (3, 17, 38), dataset: int | None = CHOICES
    ) -> None:
        self.value, self.examples, self.dataset = value, examples, dataset

    def hits(self, sample: Sample) -> torch.Tensor:
        """Which examples of a sample are poisoned, bool ``[B]``."""
        here = self.dataset in (None, sample["dataset"])
        among = [(here and self.examples in (None,)) or (here and i in self.examples) for i in sample["id"].tolist()]
        return torch.tensor(among)

    def __call__(self, rank: int) -> None:
        predict, value, hits = MuppetCriterion.predict, self.value, self.hits

        def poisoned(self: MuppetCriterion, family: Any, model: Any, sample: Sample) -> Any:
            logits, losses, further = predict(self, family, model, sample)
            if value is None:
                losses = torch.where(hits(sample), _BrokenGradient.apply(losses), losses)
            else:
                losses = torch.where(hits(sample), losses + value, losses)
            return logits, losses, further

        MuppetCriterion.predict = poisoned


class _BrokenGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, losses: torch.Tensor) -> torch.Tensor:
        return losses.clone()

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
        return torch.where(gradient != 0, gradient * torch.inf, gradient)


def without(poison: Poison, seen: Path) -> Callable[[int], None]:
    """The reference: the sub-batches with poisoned examples never reach the trainer; they are counted in ``seen``."""

    def inject(rank: int) -> None:
        train_step = Trainer.train_step

        def step(self: Trainer, samples: list[Sample], *arguments: Any) -> Any:
            good = [sample for sample in samples if sample and not poison.hits(sample).any()]
            bad = sum(bool(sample) for sample in samples) - len(good)
            with (seen / str(rank)).open("a") as file:
                file.write("bad\n" * bad)
            return train_step(self, [{}] * (len(samples) - len(good)) + good, *arguments)

        seen.mkdir(parents=True, exist_ok=True)
        Trainer.train_step = step

    return inject


def warnings(run: Run) -> list[str]:
    return re.findall(r"WARNING \| \S+ \| (.*)$", (run.folder / "worker-0.out").read_text(), flags=re.MULTILINE)


def skipped(run: Run) -> int:
    """Sub-batches that the log counts as left out."""
    out = (run.folder / "worker-0.out").read_text()
    return sum(int(n) for n in re.findall(r"train_inner \| .*\"skipped\": \"(\d+)\"", out))


CASES = [(1, "legacy_ddp", np.nan), (2, "pytorch_ddp", None), (2, "legacy_ddp", np.inf)]
CASES += [
    (w, b, v) for w, b in ((1, "legacy_ddp"), (2, "legacy_ddp"), (2, "pytorch_ddp")) for v in (np.nan, np.inf, None)
]


@pytest.mark.parametrize("number", range(len(CASES)))
def test_the_update_is_that_without_the_bad_sub_batches(data, tmp_path, ledger, tries, number):
    tries(number == 0, 1)
    workers, backend, value = CASES[number]
    more = ("--max-epoch", "1", "--dropout", "0.1", "--ddp-backend", backend, "--update-freq", str(4 // workers), *SKIP)
    more += ("--loss-scaling", "inverse", "--disable-validation")
    poison = Poison(value)
    reference = finished(
        options(data, tmp_path / "reference", *more),
        tmp_path / "reference",
        workers=workers,
        inject=without(poison, tmp_path / "seen"),
    )
    words = options(data, tmp_path / "run", *more, "--audit")
    run = finished(words, tmp_path / "run", workers=workers, inject=poison)
    audited = describe(tmp_path / "run" / FOLDER)
    bad = sum(file.read_text().count("bad") for file in (tmp_path / "seen").iterdir())
    same = equal(parameters(tmp_path / "run"), parameters(tmp_path / "reference"))
    what = {np.nan: "nan", np.inf: "inf"}.get(value, "infinite gradient")
    lost = audited["lost"] + audited["repeated"]
    ledger.note(f"loss of one dataset: {what}, skipped", survived=same and skipped(run) == bad, lost=lost)
    assert same
    assert (lost, audited["epochs"][0]["datasets"]["choices"]["skipped"]) == (0, audited["skipped"])
    assert audited["skipped"] >= len(poison.examples)
    assert skipped(run) == bad == len(warnings(run)) >= 2
    assert skipped(reference) == 0


@pytest.mark.parametrize("workers", [1, 2])
def test_stopped_with_the_dataset_and_the_examples(data, tmp_path, ledger, tries, workers):
    tries(workers == 2, 1)
    arguments = options(data, tmp_path / "run", "--max-epoch", "1", "--update-freq", str(4 // workers))
    run = Run(arguments, tmp_path / "run", workers=workers, inject=Poison(np.nan, (17,)))
    statuses = run.wait()
    expected = (
        "update 1: choices: the loss is nan for the example 17 (counted from 0); look at the data, lower --lr, or "
    )
    expected += "go on without such sub-batches by --on-bad-loss skip"
    survived = statuses == [1] * workers and all(run.sentences(rank) == [expected] for rank in range(workers))
    ledger.note("loss of one dataset: nan, stopped", survived=survived)
    assert survived, (statuses, run.errors())
    assert "Traceback" not in run.errors()
    assert not list((tmp_path / "run").glob("*.pt"))


def test_an_update_of_which_nothing_is_left_is_none(data, tmp_path, ledger, tries):
    """One sub-batch an update, as in fine-tuning: the updates are those of the other sub-batches."""
    tries(0, 1)
    more = ("--update-freq", "1", "--max-epoch", "1", "--disable-validation", *SKIP)
    run = finished(
        options(data, tmp_path / "run", *more, suite="choices"), tmp_path / "run", inject=Poison(np.nan, dataset=0)
    )
    whole = finished(options(data, tmp_path / "whole", *more, suite="choices"), tmp_path / "whole")
    updates = [out.count('"num_updates"') for out in ((r.folder / "worker-0.out").read_text() for r in (run, whole))]
    ledger.note("all losses of an update: nan, skipped", survived=updates[0] == updates[1] - len(warnings(run)))
    assert updates[0] == updates[1] - len(warnings(run))
    assert len(warnings(run)) >= 2


@pytest.mark.parametrize("workers", [1, 2])
def test_what_a_worker_without_work_computes_is_finite(data, tmp_path, ledger, tries, workers):
    """The cheapest example, which fills idle rounds, is of the dataset that is bad; some workers get nothing else."""
    tries(workers == 1, 1)
    sizes = ("--max-epoch", "1", "--disable-validation", "--update-freq", "4")
    sizes += ("--sub-batches", "5" if workers == 2 else "3")
    poison = Poison(np.nan, None, dataset=None)
    cheapest = NAMES[_dataset_of_the_cheapest_example(data)]
    poison.dataset = NAMES.index(cheapest)
    run = finished(options(data, tmp_path / "run", *sizes, *SKIP), tmp_path / "run", workers=workers, inject=poison)
    ledger.note("loss of an idle worker: nan", survived=True)
    assert {sentence.split(": ")[1] for sentence in warnings(run)} == {cheapest}
    assert all(value.isfinite().all() for value in parameters(tmp_path / "run").values())


def _dataset_of_the_cheapest_example(data: Path) -> int:
    task = open_task(data, ",".join(NAMES))
    task.load_dataset("train")
    iterator = task.get_batch_iterator(task.dataset("train"), max_tokens=256)
    return iterator.first_batch["dataset"]


def poisoned_checkpoint(data: Path, folder: Path, key: str) -> Path:
    """A checkpoint of two updates in which one tensor is not a number: what a torn or hostile file may hold."""
    finished(options(data, folder, "--max-update", "2", "--disable-validation"), folder)
    path = folder / "checkpoint_last.pt"
    checkpoint = torch.load(path, weights_only=True)
    checkpoint["model"][next(name for name in checkpoint["model"] if key in name)].fill_(torch.nan)
    torch.save(checkpoint, path)
    return path


def test_a_head_that_is_broken_leaves_the_others_alone(data, tmp_path, ledger, tries):
    """In a real process, without injection: commonsense's head is not a number, the others go on and learn."""
    tries(0, 1)
    path = poisoned_checkpoint(data, tmp_path / "before", "heads.commonsense.out_proj.weight")
    more = ("--finetune-from-model", str(path), "--reuse-heads", "--max-epoch", "2", "--lr", "0.002")
    trained(options(data, tmp_path / "run", *more, *SKIP))
    lines = [logged(tmp_path / "run", "train")[-1], logged(tmp_path / "run", "valid")[-1]]
    survived = all(f"{part}_choices_loss" not in line for part, line in zip(("train", "valid"), lines, strict=True))
    ledger.note("head of one dataset: nan", survived=survived)
    assert survived, lines
    assert float(lines[0]["train_skipped"]) > 5
    assert float(lines[1]["valid_loss"]) < 1.1
    assert 0 < float(lines[1]["valid_animals_f1"]) <= 1


def test_broken_parameters_stop_even_skipping(data, tmp_path, ledger):
    path = poisoned_checkpoint(data, tmp_path / "before", "embed_positions.weight")
    more = ("--finetune-from-model", str(path), "--max-epoch", "2", *SKIP)
    run = Run(options(data, tmp_path / "run", *more), tmp_path / "run")
    statuses, sentences = run.wait(), run.sentences()
    survived = statuses == [1] and len(sentences) == 1 and "no dataset has a finite loss any more" in sentences[0]
    ledger.note("parameters of the encoder: nan", survived=survived)
    assert survived, (statuses, run.errors())


def test_validation_names_the_examples_and_leaves_them_out(data, tmp_path, ledger):
    """And what it logs is the mean over the others."""
    poison = Poison(np.nan, (3,))
    more = ("--max-update", "1", "--batch-size-valid", "1", "--update-freq", "1", "--lr", "1e-9")
    run = finished(options(data, tmp_path / "run", *more, *SKIP), tmp_path / "run", inject=_in_validation(poison))
    whole = finished(
        options(data, tmp_path / "whole", *more), tmp_path / "whole", inject=_without_in_validation(poison)
    )
    lines = [_validated(one) for one in (run, whole)]
    survived = lines[0]["valid_choices_loss"] == lines[1]["valid_choices_loss"]
    ledger.note("loss in validation: nan, skipped", survived=survived)
    assert survived
    assert lines[0]["valid_loss"] == lines[1]["valid_loss"]
    expected = "validation: choices: the loss is nan for the example 3 (counted from 0); it is left out of the figures"
    assert warnings(run) == [expected]
    stopped = Run(options(data, tmp_path / "stop", *more), tmp_path / "stop", inject=_in_validation(poison))
    assert stopped.wait() == [1]
    assert stopped.sentences()[0].startswith(
        "validation: choices: the loss is nan for the example 3 (counted from 0); "
    )


def _in_validation(poison: Poison) -> Callable[[int], None]:
    hits = poison.hits

    def inject(rank: int) -> None:
        MuppetTask.valid_step = _marking(MuppetTask.valid_step)
        poison.hits = lambda sample: hits(sample) & sample.get("validated", False)
        poison(rank)

    return inject


def _marking(valid_step: Callable[..., Any]) -> Callable[..., Any]:
    return lambda self, sample, *rest: valid_step(self, sample | {"validated": True}, *rest)


def _without_in_validation(poison: Poison) -> Callable[[int], None]:
    def inject(rank: int) -> None:
        valid_step = Trainer.valid_step

        def step(self: Trainer, sample: Sample, *rest: Any) -> Any:
            return None if poison.hits(sample).any() else valid_step(self, sample, *rest)

        Trainer.valid_step = step

    return inject


def _validated(run: Run) -> dict[str, Any]:
    out = (run.folder / "worker-0.out").read_text()
    return json.loads(re.findall(r" \| valid \| (\{.*\})$", out, flags=re.MULTILINE)[-1])
