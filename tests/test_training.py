"""``fairseq-train`` runs on small real files: one worker and two, stopped and resumed, from checkpoints."""

import json
from collections import Counter
from pathlib import Path

import pytest
import torch

from muppet_fairseq.data.schedule import STRATEGIES
from muppet_fairseq.suite import Suite
from tests.runs import parameters
from tests.toy_suite import NAMES, logged, options, train, trained, write_data_bin


@pytest.fixture(scope="session")
def pre_finetuned(data, tmp_path_factory) -> Path:
    """Folder of a run over all four datasets, thirty epochs."""
    save_dir = tmp_path_factory.mktemp("pre")
    more = (
        "--max-epoch",
        "30",
        "--lr",
        "0.002",
        "--log-interval",
        "100",
        "--tensorboard-logdir",
        str(save_dir / "tensorboard"),
    )
    best = ("--best-checkpoint-metric", "score", "--maximize-best-checkpoint-metric")
    trained(options(data, save_dir, *more, *best, "--save-interval", "10", "--validate-interval", "1"))
    return save_dir


def read_trace(folder: Path) -> list[list[dict]]:
    """The traced updates of each worker."""
    return [[json.loads(line) for line in file.read_text().splitlines()] for file in sorted(folder.iterdir())]


def examples_of(trace: list[list[dict]]) -> Counter:
    """How often each (dataset, example, number of its items) was trained on."""
    seen: Counter = Counter()
    for worker in trace:
        for update in worker:
            for dataset, ids in update["sub_batches"]:
                seen.update((dataset, example) for example in ids)
    return seen


def test_it_learns_every_family(pre_finetuned):
    first, *_, last = logged(pre_finetuned, "valid")
    assert float(first["valid_loss"]) > 0.7
    assert float(last["valid_animals_f1"]) > 0.8
    assert float(last["valid_choices_accuracy"]) > 0.8
    assert float(last["valid_loss"]) < 0.65
    mains = [float(last[f"valid_{key}"]) for key in ("animals_f1", "pairs_accuracy", "choices_accuracy", "spans_f1")]
    assert float(last["valid_score"]) == pytest.approx(sum(mains) / 4, abs=1e-4)


def test_logs_have_metrics_of_datasets_and_families_also_in_tensorboard(pre_finetuned):
    last = logged(pre_finetuned, "train")[-1]
    for key in (*(f"{name}_loss" for name in NAMES), "classification_loss", "commonsense_accuracy", "mrc_em", "mrc_f1"):
        assert 0 <= float(last[f"train_{key}"]) <= 3, key
    files = list((pre_finetuned / "tensorboard").rglob("*tfevents*"))
    assert files
    content = b"".join(file.read_bytes() for file in files)
    assert b"spans_f1" in content
    assert b"choices_accuracy" in content


def test_checkpoint_carries_the_specs(pre_finetuned):
    checkpoint = torch.load(pre_finetuned / "checkpoint_best.pt", weights_only=True)
    specs = {spec["name"]: spec for spec in checkpoint["task_state"]["specs"]}
    assert list(specs) == list(NAMES)
    assert specs["pairs"]["labels"] == ["same", "other", "none"]
    assert specs["animals"]["metric"] == "f1"


def test_two_workers_train_different_datasets_in_one_update_and_agree(data, tmp_path):
    """Their parameters are bit-identical after every update, and equal one worker's up to summation order."""
    # SGD: Adam would blow up the rounding errors of gradients that are 0, such as a ranking head's last bias
    still = ("--dropout", "0", "--attention-dropout", "0", "--optimizer", "sgd", "--lr", "0.1")
    still += ("--max-epoch", "1", "--disable-validation")
    trained(options(data, tmp_path / "two", *still), workers=2, trace=tmp_path / "trace2", command=True)
    trained(options(data, tmp_path / "one", *still), trace=tmp_path / "trace1")
    trained(options(data, tmp_path / "ddp", *still, "--ddp-backend", "pytorch_ddp"), workers=2)

    first, second = read_trace(tmp_path / "trace2")
    assert len(first) == len(second) > 5
    for a, b in zip(first, second, strict=True):
        assert a["parameters"] == b["parameters"]
    apart = [
        {d for d, _ in a["sub_batches"]} != {d for d, _ in b["sub_batches"]} for a, b in zip(first, second, strict=True)
    ]
    assert sum(apart) > len(apart) / 2

    # the log tells which datasets an update held: those that have a loss
    for line, a, b in zip(logged(tmp_path / "two", "train_inner"), first, second, strict=True):
        held = {NAMES[dataset] for dataset, _ in (*a["sub_batches"], *b["sub_batches"])}
        assert {name for name in NAMES if line.get(f"{name}_loss") is not None} == held
        assert float(line["datasets"]) == len(held)

    (one,) = read_trace(tmp_path / "trace1")
    assert examples_of([first, second]) == examples_of([one])
    ours, reference, ddp = (parameters(tmp_path / name) for name in ("two", "one", "ddp"))
    for key in reference:
        torch.testing.assert_close(ours[key], reference[key], atol=1e-6, rtol=1e-5, msg=key)
        torch.testing.assert_close(ddp[key], reference[key], atol=1e-6, rtol=1e-5, msg=key)


def test_an_update_of_a_size_that_the_workers_do_not_share_evenly(data, tmp_path):
    """Three sub-batches on two workers with room for four: the updates of one worker that does all three."""
    still = ("--dropout", "0", "--attention-dropout", "0", "--optimizer", "sgd", "--lr", "0.1", "--max-epoch", "1")
    still += ("--disable-validation",)
    # the later --update-freq is each worker's
    two = ("--update-freq", "2", "--sub-batches", "3")
    trained(options(data, tmp_path / "two", *still, *two), workers=2, trace=tmp_path / "trace2")
    trained(options(data, tmp_path / "one", *still, "--update-freq", "3"), trace=tmp_path / "trace1")
    (first, second), (one,) = read_trace(tmp_path / "trace2"), read_trace(tmp_path / "trace1")
    for a, b, whole in zip(first, second, one, strict=True):
        both = [examples for dataset, examples in (*a["sub_batches"], *b["sub_batches"]) if examples]
        assert sorted(both) == sorted(examples for _, examples in whole["sub_batches"])
    ours, reference = parameters(tmp_path / "two"), parameters(tmp_path / "one")
    for key in reference:
        torch.testing.assert_close(ours[key], reference[key], atol=1e-6, rtol=1e-5, msg=key)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_batching_strategies_in_training(data, tmp_path, strategy):
    """Every example once an epoch, whatever the strategy; the datasets of an update are as the strategy says."""
    more = ("--batching", strategy, "--max-epoch", "1", "--disable-validation", "--no-save")
    trained(options(data, tmp_path / "run", *more), workers=2, trace=tmp_path / "trace")
    trace = read_trace(tmp_path / "trace")
    seen = examples_of(trace)
    spans = {count for (dataset, _), count in seen.items() if dataset == NAMES.index("spans")}
    assert {count for (dataset, _), count in seen.items() if dataset != NAMES.index("spans")} == {1}
    assert max(spans) > 1, "a passage longer than a row is trained on window by window"
    assert len(seen) == 150 + 61 + 90 + 45
    held = [{d for worker in update for d, _ in worker["sub_batches"]} for update in zip(*trace, strict=True)]
    if strategy == "batch_heterogeneous":
        assert sum(map(len, held)) / len(held) > 2
    elif strategy == "batch_homogeneous":
        assert all(len(datasets) == 1 for datasets in held)
    elif strategy == "stochastic_tasks":
        assert {len(datasets) for datasets in held[:-3]} == {2, 3, 4}
    else:
        assert sum(len(datasets) > 1 for datasets in held) <= 3


@pytest.mark.parametrize("scaling", ["log", "inverse"])
def test_resumed_in_mid_epoch_is_bit_identical(data, tmp_path, scaling):
    """Stopped after 7 updates and resumed, with dropout: the sub-batches left, and the same parameters."""
    more = ("--disable-validation", "--loss-scaling", scaling, "--dropout", "0.1", "--max-update")
    trained(options(data, tmp_path / "whole", *more, "15"), trace=tmp_path / "whole_trace")
    trained(options(data, tmp_path / "parts", *more, "7"), trace=tmp_path / "parts_trace")
    trained(options(data, tmp_path / "parts", *more, "15"), trace=tmp_path / "parts_trace")
    (whole,), (parts,) = read_trace(tmp_path / "whole_trace"), read_trace(tmp_path / "parts_trace")
    assert [update["sub_batches"] for update in parts] == [update["sub_batches"] for update in whole]
    assert [update["parameters"] for update in parts] == [update["parameters"] for update in whole]
    ours, reference = parameters(tmp_path / "parts"), parameters(tmp_path / "whole")
    assert ours.keys() == reference.keys()
    assert all(ours[key].equal(reference[key]) for key in reference)


@pytest.mark.parametrize(
    "strategy", ["batch_heterogeneous", "stochastic_tasks", pytest.param("batch_homogeneous", marks=pytest.mark.slow)]
)
def test_resumed_with_another_number_of_workers_no_example_is_lost_or_repeated(data, tmp_path, strategy):
    more = ("--disable-validation", "--batching", strategy, "--max-epoch", "1")
    trained(options(data, tmp_path / "run", *more, "--max-update", "6"), trace=tmp_path / "before")
    trained(options(data, tmp_path / "run", *more), workers=2, trace=tmp_path / "after")
    trained(options(data, tmp_path / "whole", *more), trace=tmp_path / "whole_trace")
    together = examples_of(read_trace(tmp_path / "before")) + examples_of(read_trace(tmp_path / "after"))
    assert together == examples_of(read_trace(tmp_path / "whole_trace"))


def test_fine_tuning_with_the_checkpoints_heads_or_fresh_ones(data, pre_finetuned, tmp_path):
    """Re-used heads know the dataset at once; fresh ones do not. A resumed run keeps its own either way."""
    more = ("--finetune-from-model", str(pre_finetuned / "checkpoint_last.pt"), "--max-update", "1", "--lr", "1e-9")
    best = ("--best-checkpoint-metric", "accuracy", "--maximize-best-checkpoint-metric")
    scores = {}
    for name, reuse in (("reused", ["--reuse-heads"]), ("fresh", [])):
        trained(options(data, tmp_path / name, *more, *best, *reuse, suite="choices"))
        scores[name] = float(logged(tmp_path / name, "valid")[-1]["valid_accuracy"])
    assert scores["reused"] > 0.8 > scores["fresh"]

    checkpoint = torch.load(tmp_path / "fresh" / "checkpoint_best.pt", weights_only=True)
    heads = {key.split(".")[1] for key in checkpoint["model"] if key.startswith("heads.")}
    assert heads == {"commonsense"}
    trained([*options(data, tmp_path / "fresh", *more, *best, suite="choices"), "--max-update", "2"])
    resumed = torch.load(tmp_path / "fresh" / "checkpoint_last.pt", weights_only=True)
    key = "heads.commonsense.out_proj.weight"
    torch.testing.assert_close(resumed["model"][key], checkpoint["model"][key], atol=1e-6, rtol=0)


def test_examples_and_partition_choose_what_is_trained_on(data, tmp_path):
    chosen = []
    for name, text in (("a", "examples: 20"), ("b", "examples: 20, partition: 2")):
        (tmp_path / f"{name}.yaml").write_text(f"- {{name: spans, {text}}}\n")
        more = ("--max-epoch", "1", "--no-save", "--disable-validation")
        trained(
            options(data, tmp_path / name, *more, suite=str(tmp_path / f"{name}.yaml")), trace=tmp_path / f"t{name}"
        )
        chosen.append(set(examples_of(read_trace(tmp_path / f"t{name}"))))
    assert [len(examples) for examples in chosen] == [20, 20]
    assert chosen[0] != chosen[1]


def test_a_users_mistake_ends_training_with_one_sentence(data, tmp_path):
    done = train(options(data, tmp_path / "run", suite="animals,chioces"), command=True)
    assert done.returncode == 1
    assert "Traceback" not in done.stdout + done.stderr
    sentence = [line for line in done.stderr.splitlines() if line.startswith("muppet: ")]
    assert sentence == [
        f"muppet: suite 'animals,chioces': there is no dataset 'chioces' in {data} (did you mean 'choices'?)"
    ]


def test_another_dictionary_than_the_checkpoints_is_refused(data, pre_finetuned, tmp_path):
    """Also through fairseq, which wraps errors of loading into its own."""
    other = write_data_bin_with_other_dictionary(tmp_path)
    more = ("--finetune-from-model", str(pre_finetuned / "checkpoint_last.pt"), "--max-update", "1")
    done = train(options(other, tmp_path / "run", *more))
    assert done.returncode == 1
    assert "Traceback" not in done.stdout + done.stderr
    assert "muppet: the checkpoint was trained with another dictionary" in done.stderr


def write_data_bin_with_other_dictionary(folder: Path) -> Path:
    """The toy data, binarised with the same words in another order."""
    from tests import toy_suite

    words = toy_suite.WORDS
    try:
        toy_suite.WORDS = words[::-1]
        return write_data_bin(folder)
    finally:
        toy_suite.WORDS = words


def test_suite_of_the_toy_data_reads_back(data):
    assert [spec.family for spec in Suite.load(",".join(NAMES)).specs(data)] == [
        *("classification", "classification", "commonsense", "mrc")
    ]
