"""``muppet evaluate``: what training logged, what references compute from its predictions, and bad input."""

from __future__ import annotations

import argparse
import json
import os
import pty
import re
import shutil
import subprocess
import sys
import termios
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from muppet_fairseq import cli, evaluate
from muppet_fairseq.trained import TrainedModel
from tests import test_metrics
from tests.test_bad_input import cut, rewrite, sentence
from tests.toy_models import (
    ARCHITECTURES,
    SEARCH,
    SEARCH_OPTIONS,
    SUITES,
    ToyModels,
    add_dataset,
    entry,
    fine_tuned,
    new_data_bin,
    raw_examples,
    record_data_bin,
    toy_models,
)
from tests.toy_suite import ROOT, logged

#: the official SQuAD scripts
squad_cases, official = test_metrics.squad_cases, test_metrics.official


@pytest.fixture(scope="session")
def models(data: Path) -> ToyModels:
    return toy_models(data)


def evaluated(checkpoint: Path, data: Path, *more: str) -> dict[str, Any]:
    """``muppet evaluate`` in this process: ``metrics`` by dataset, and the rest of what it returns."""
    parser = argparse.ArgumentParser()
    evaluate.add_arguments(parser)
    results = evaluate.evaluate(parser.parse_args([str(checkpoint), str(data), *more]))
    return results | {"metrics": {result["dataset"]: result["metrics"] for result in results["results"]}}


def lines(folder: Path, name: str, split: str = "valid") -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / f"{name}.{split}.jsonl").open(encoding="utf-8", newline="\n")]


@pytest.fixture(scope="session")
def outcome(models: ToyModels, tmp_path_factory) -> dict[str, tuple[dict[str, Any], Path]]:
    """By model: the results on its datasets, and the folder of its predictions."""
    found = {}
    for name in ARCHITECTURES:
        folder = tmp_path_factory.mktemp("predictions") / "new"
        more = ("--predictions", str(folder), *SEARCH_OPTIONS)
        found[name] = (evaluated(models.checkpoint(name), models.data, *more), folder)
    return found


# -- numbers ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_metrics_are_those_that_training_logged(models, outcome, name):
    last = logged(models.runs[name], "valid")[-1]
    metrics = {
        f"{dataset}_{metric}": value
        for dataset, own in outcome[name][0]["metrics"].items()
        for metric, value in own.items()
    }
    # ranks do not add up over batches, and the accuracy of tokens needs the right beginning
    expected = {"animals_f1", "animals_accuracy", "pairs_accuracy", "choices_accuracy", "spans_f1", "spans_em"}
    expected |= {"counts_pearson"} | ({f"summaries_rouge{n}" for n in "12L"} if name == "bart" else set())
    assert set(metrics) - {key.removeprefix("valid_") for key in last} == {"counts_spearman"}
    assert set(metrics) == expected | {"counts_spearman"}
    for key in expected:
        # training logs six digits, and sums what a correlation needs in float32
        tolerance = 2e-5 if key == "counts_pearson" else 1e-6
        assert metrics[key] == pytest.approx(float(last[f"valid_{key}"]), abs=tolerance), key
    assert sum(0 < metrics[key] < 1 for key in expected) >= 3


def classified(found: list[dict], labels: tuple[str, ...]) -> tuple[list[int], list[int]]:
    """Gold and predicted classes."""
    return tuple([labels.index(line[key]) for line in found] for key in ("gold", "label"))


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_metrics_are_those_of_references_on_the_written_predictions(outcome, official, name):
    from rouge_score.rouge_scorer import RougeScorer
    from scipy import stats
    from sklearn import metrics as reference

    results, folder = outcome[name]
    gold, predicted = classified(lines(folder, "animals"), ("0", "1"))
    expected = {"f1": reference.f1_score(gold, predicted), "accuracy": reference.accuracy_score(gold, predicted)}
    assert results["metrics"]["animals"] == pytest.approx(expected)
    gold, predicted = classified(lines(folder, "pairs"), ("same", "other", "none"))
    assert results["metrics"]["pairs"] == pytest.approx({"accuracy": reference.accuracy_score(gold, predicted)})
    choices = lines(folder, "choices")
    right = [line["choice"] == line["gold"] for line in choices]
    assert results["metrics"]["choices"] == pytest.approx({"accuracy": right.count(True) / 24})
    spans = [(line["text"], [answer["text"] for answer in line["gold"]]) for line in lines(folder, "spans")]
    exact, f1 = official("v1_1", spans)
    assert results["metrics"]["spans"] == pytest.approx({"f1": f1, "em": exact})
    x, y = ([line[key] for line in lines(folder, "counts")] for key in ("value", "gold"))
    correlations = {"pearson": stats.pearsonr(x, y).statistic, "spearman": stats.spearmanr(x, y).statistic}
    assert results["metrics"]["counts"] == pytest.approx(correlations)
    if name == "bart":
        scorer = RougeScorer(["rouge1", "rouge2", "rougeL"], use_stemmer=True)
        scores = [scorer.score(line["gold"], line["text"]) for line in lines(folder, "summaries")]
        means = {key: np.mean([score[key].fmeasure for score in scores]) for key in scorer.rouge_types}
        assert results["metrics"]["summaries"] == pytest.approx(means)
    assert {result["dataset"]: next(iter(result["metrics"])) for result in results["results"]} == {
        **{"animals": "f1", "pairs": "accuracy", "choices": "accuracy", "spans": "f1"},
        **({"summaries": "rouge1"} if name == "bart" else {}),
        "counts": "pearson",
    }


def test_a_suite_file_chooses_datasets_and_metrics(models, outcome, tmp_path):
    from sklearn import metrics as reference

    gold, predicted = classified(lines(outcome["roberta"][1], "pairs"), ("same", "other", "none"))
    expected = {
        "macro_f1": reference.f1_score(gold, predicted, average="macro", labels=range(3), zero_division=0),
        "matthews": reference.matthews_corrcoef(gold, predicted),
    }
    suite = tmp_path / "suite.yaml"
    for metric, value in expected.items():
        suite.write_text(f"- {{name: pairs, metric: {metric}}}\n- counts\n")
        found = evaluated(models.checkpoint("roberta"), models.data, "--datasets", str(suite))
        assert list(found["metrics"]) == ["pairs", "counts"]
        assert found["metrics"]["pairs"][metric] == pytest.approx(value)
        assert next(iter(found["metrics"]["pairs"])) == metric
    assert 0 < expected["macro_f1"] < 1
    assert found["generation"] is None


def changed_checkpoint(models: ToyModels, name: str, out: Path, change: Any) -> Path:
    """A copy of a checkpoint with another ``task_state``."""
    state = torch.load(models.checkpoint(name), weights_only=True)
    change({spec["name"]: spec for spec in state["task_state"]["specs"]})
    torch.save(state, out / "changed.pt")
    return out / "changed.pt"


def test_metrics_that_training_was_given_are_the_default(models, tmp_path):
    """A suite may name another metric than ``dataset.json``; evaluation without one goes by what was trained with."""

    def change(specs: dict[str, dict]) -> None:
        specs["counts"]["metric"], specs["animals"]["metric"] = "spearman", "accuracy"

    checkpoint = changed_checkpoint(models, "roberta", tmp_path, change)
    metrics = evaluated(checkpoint, models.data)["metrics"]
    assert list(metrics["animals"]) == ["accuracy"]
    assert list(metrics["counts"]) == ["spearman", "pearson"]
    named = evaluated(checkpoint, models.data, "--datasets", "counts")["metrics"]
    assert list(named["counts"]) == ["pearson", "spearman"]


# -- scores of examples -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_example_scores_are_in_the_order_of_the_predictions(models, outcome, name):
    """Of a mean, each is its prediction's own value; of F1 and Pearson's, what leaving it out changes."""
    from rouge_score.rouge_scorer import RougeScorer
    from scipy.stats import pearsonr
    from sklearn.metrics import f1_score

    results, folder = outcome[name]
    assert all("example_scores" not in result for result in results["results"])
    with_scores = evaluated(models.checkpoint(name), models.data, "--example-scores", *SEARCH_OPTIONS)
    assert with_scores["metrics"] == results["metrics"]
    scores = {result["dataset"]: result["example_scores"] for result in with_scores["results"]}
    assert list(scores) == list(SUITES[name])
    assert all("example_groups" not in result for result in with_scores["results"])
    assert scores["pairs"] == [float(line["label"] == line["gold"]) for line in lines(folder, "pairs")]
    assert scores["choices"] == [float(line["choice"] == line["gold"]) for line in lines(folder, "choices")]
    assert len(set(scores["pairs"])) == 2
    for dataset in {"pairs", "choices", "spans", "summaries"} & set(scores):
        assert np.mean(scores[dataset]) == pytest.approx(next(iter(results["metrics"][dataset].values())))
    if name == "bart":
        scorer = RougeScorer(["rouge1"], use_stemmer=True)
        rouge = [scorer.score(line["gold"], line["text"])["rouge1"].fmeasure for line in lines(folder, "summaries")]
        assert scores["summaries"] == pytest.approx(rouge)

    def left_out(metric: Any, *sides: list) -> list[float]:
        without = [metric(*(np.delete(side, place) for side in sides)) for place in range(24)]
        return [24 * metric(*sides) - 23 * value for value in without]

    gold, predicted = classified(lines(folder, "animals"), ("0", "1"))
    assert scores["animals"] == pytest.approx(left_out(f1_score, gold, predicted))
    x, y = ([line[key] for line in lines(folder, "counts")] for key in ("value", "gold"))
    assert scores["counts"] == pytest.approx(left_out(lambda *both: pearsonr(*both).statistic, x, y), abs=1e-6)


def test_examples_about_the_same_thing_are_told(models, tmp_path):
    data = new_data_bin(models.data, tmp_path / "data-bin")
    groups = ["b", "a", "b", None, "a"]
    examples = [
        {"inputs": [f"dog {i}"], "label": "01"[i % 2]} | ({"group": group} if group else {})
        for i, group in enumerate(groups)
    ]
    add_dataset(data, entry("animals", "classification", "f1", ("0", "1"), {"inputs": ["text"]}), valid=examples)
    asked = ("--datasets", "animals")
    (result,) = evaluated(models.checkpoint("roberta"), data, *asked, "--example-scores")["results"]
    assert result["example_groups"] == [0, 1, 0, 2, 1]
    (result,) = evaluated(models.checkpoint("roberta"), data, *asked)["results"]
    assert "example_groups" not in result


def test_the_command_prints_example_scores_as_json_only(models, capsys):
    command = ["evaluate", str(models.checkpoint("roberta")), str(models.data), "--datasets", "animals,spans"]
    cli.main([*command, "--json", "--example-scores"])
    results = json.loads(capsys.readouterr().out)["results"]
    assert [len(result["example_scores"]) for result in results] == [24, 24]
    said = sentence(cli.main, [*command, "--example-scores"])
    assert said == "--example-scores does not fit into the table; give --json, too"


# -- predictions --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_predictions_have_one_line_an_example_in_its_order(models, outcome, name):
    results, folder = outcome[name]
    assert sorted(path.name for path in folder.iterdir()) == sorted(
        f"{dataset}.valid.jsonl" for dataset in SUITES[name]
    )
    keys = {"animals": {"label", "probabilities"}, "choices": {"choice", "probabilities"}, "counts": {"value"}}
    keys |= {"pairs": keys["animals"], "spans": {"text", "start", "end", "score"}, "summaries": {"text"}}
    golds = {"choices": "answer", "spans": "answers", "summaries": "target"}
    for result in results["results"]:
        dataset = result["dataset"]
        found, examples = lines(folder, dataset), raw_examples(models.data, dataset)
        assert result["examples"] == len(found) == len(examples) == 24
        for line, example in zip(found, examples, strict=True):
            assert set(line) == {"id", "gold"} | keys[dataset]
            assert (line["id"], line["gold"]) == (example["id"], example[golds.get(dataset, "label")])
            if dataset in ("animals", "pairs"):
                assert sum(line["probabilities"].values()) == pytest.approx(1, abs=1e-5)
                assert line["label"] == max(line["probabilities"], key=line["probabilities"].get)
            if dataset == "choices":
                assert len(line["probabilities"]) == len(example["choices"])
                assert sum(line["probabilities"]) == pytest.approx(1, abs=1e-5)
                assert line["choice"] == int(np.argmax(line["probabilities"]))
            if dataset == "spans":
                assert line["text"] == example["passage"][line["start"] : line["end"]] != ""


def expect_same(found: list[dict], others: list[dict], tolerance: float) -> None:
    """Equal in all but the last digits of numbers that are no counts."""
    for line, other in zip(found, others, strict=True):
        assert set(line) == set(other)
        for key, value in line.items():
            assert value == (
                pytest.approx(other[key], abs=tolerance) if key in ("probabilities", "value", "score") else other[key]
            )


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_predictions_do_not_depend_on_the_batches(models, outcome, tmp_path, monkeypatch, name):
    batches = []
    collect = TrainedModel.predict

    def predict(*arguments: Any, **keywords: Any) -> list[dict]:
        progress = keywords.pop("progress")
        counts: list[int] = []
        batches.append(counts)
        return collect(*arguments, **keywords, progress=lambda count: (counts.append(count), progress(count)))

    monkeypatch.setattr(TrainedModel, "predict", predict)
    small = evaluated(
        *(models.checkpoint(name), models.data, "--max-tokens", "160", "--predictions", str(tmp_path), *SEARCH_OPTIONS)
    )
    evaluated(models.checkpoint(name), models.data, *SEARCH_OPTIONS)
    assert all(sum(counts) == 24 for counts in batches)
    number = len(SUITES[name])
    assert all(len(few) > len(many) for few, many in zip(batches[:number], batches[number:], strict=True))
    for dataset in SUITES[name]:
        expect_same(lines(tmp_path, dataset), lines(outcome[name][1], dataset), 1e-4)
        assert small["metrics"][dataset] == pytest.approx(outcome[name][0]["metrics"][dataset], abs=1e-4)


# -- the command --------------------------------------------------------------------------------------


def test_the_command_on_a_terminal(models, outcome, tmp_path):
    """JSON on standard output, a bar on the terminal; the same as in this process."""
    command = [sys.executable, "-m", "muppet_fairseq.cli", "evaluate", str(models.checkpoint("bart")), str(models.data)]
    command += ["--json", "--predictions", str(tmp_path / "new"), *SEARCH_OPTIONS]
    terminal, other_end = pty.openpty()
    termios.tcsetwinsize(other_end, (24, 100))
    environment = os.environ | {"OMP_NUM_THREADS": "1", "TERM": "xterm"}
    with subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=other_end, text=True
    ) as run:
        os.close(other_end)
        shown = b""
        try:
            while part := os.read(terminal, 4096):
                shown += part
        except OSError:  # Linux says so when the other end is closed
            pass
        output = run.stdout.read()
    os.close(terminal)
    assert run.returncode == 0, shown
    results = json.loads(output)
    expected, folder = outcome["bart"]
    assert results == {key: value for key, value in expected.items() if key != "metrics"}
    for dataset in SUITES["bart"]:
        assert re.search(rf"{dataset}: +\d+%.*/24 ", shown.decode()), shown
        assert lines(tmp_path / "new", dataset) == lines(folder, dataset)
    packages = ("muppet_fairseq", "torch", "ve-fairseq", "numpy")
    python = ".".join(map(str, sys.version_info[:3]))
    assert results["versions"] == {"python": python, **{package: version(package) for package in packages}}
    generation = {"lenpen": 1.0, "no_repeat_ngram_size": 0, "min_len": 1, "max_len_a": 0.0}
    assert results["generation"] == generation | SEARCH
    assert (results["checkpoint"], results["data"]) == (str(models.checkpoint("bart")), str(models.data))
    assert results["split"] == "valid"


def test_the_table_and_no_bar_without_a_terminal(models, outcome, capfd):
    cli.main(["evaluate", str(models.checkpoint("roberta")), str(models.data)])
    shown = capfd.readouterr()
    assert not shown.err
    head, *rows = shown.out.splitlines()
    assert head.split() == ["dataset", "family", "examples", "valid,", "x", "100"]
    families = {"choices": "commonsense", "spans": "mrc", "counts": "regression"}
    for row, (dataset, metrics) in zip(rows, outcome["roberta"][0]["metrics"].items(), strict=True):
        numbers = [word for metric, value in metrics.items() for word in (metric, f"{100 * value:.2f}")]
        assert row.split() == [dataset, families.get(dataset, "classification"), "24", *numbers]


# -- ReCoRD, MultiRC, SQuAD 2 -------------------------------------------------------------------------


@pytest.fixture(scope="session")
def record(data: Path) -> Path:
    return record_data_bin(data)


@pytest.fixture(scope="session")
def superglue(data: Path) -> tuple[Path, Path]:
    return fine_tuned(data)


def window_scores(model: TrainedModel, question: str, passage: str) -> list[tuple[int, np.ndarray, float]]:
    """First word, logits ``[words, 2]`` and score of no answer of each window; a word is a token here."""
    index = model.task.dictionary.index
    asked, told = question.split(), passage.split()
    room = 32 - 4 - len(asked)
    windows = []
    for first in range(0, len(told), room - 8):
        part = told[first : first + room]
        row = ["<s>", *asked, "</s>", "</s>", *part, "</s>"]
        with torch.no_grad():
            scores = model.model(torch.tensor([[index(word) for word in row]]), head="mrc")[0]
        windows.append((first, scores[len(asked) + 3 : -1].numpy(), float(scores[0].sum())))
        if first + room >= len(told):
            return windows
    raise AssertionError


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_record_predicts_the_best_entity(models, record, official, tmp_path, name):
    results = evaluated(models.checkpoint(name), record, "--datasets", "entities", "--predictions", str(tmp_path))
    model = TrainedModel.load(models.checkpoint(name), record / "dict.txt")
    found, later = lines(tmp_path, "entities"), 0
    for line, example in zip(found, raw_examples(record, "entities"), strict=True):
        passage, scores = example["passage"], {}
        for first, logits, _ in window_scores(model, "who is", passage):
            for entity in example["entities"]:
                begin = len(passage[: entity["start"]].split()) - first
                end = begin + len(entity["text"].split()) - 1
                if begin >= 0 and end < len(logits):
                    score = float(logits[begin, 0] + logits[end, 1])
                    scores[score] = (entity["start"], entity["text"], first)
        start, text, window = scores[max(scores)]
        later += window > 0
        assert line["text"] in {entity["text"] for entity in example["entities"]}
        assert line == {
            **{"id": example["id"], "text": text, "start": start, "end": start + len(text)},
            **{"score": pytest.approx(max(scores), abs=1e-4), "gold": example["answers"]},
        }
    assert later >= 5
    assert sum(" " in line["text"] for line in found) >= 3
    exact, f1 = official("v1_1", [(line["text"], [gold["text"] for gold in line["gold"]]) for line in found])
    assert results["metrics"]["entities"] == pytest.approx({"f1": f1, "em": exact})


def test_multirc(superglue, tmp_path):
    from sklearn.metrics import f1_score

    out, run = superglue
    examples = raw_examples(out, "answers")
    assert {tuple(example) for example in examples} == {("id", "inputs", "label", "question")}
    results = evaluated(run / "checkpoint_last.pt", out, "--predictions", str(tmp_path))
    found = lines(tmp_path, "answers")
    asked = [example["question"] for example in examples]
    assert asked != sorted(asked)
    questions = dict.fromkeys(asked, True)
    for line, example in zip(found, examples, strict=True):
        questions[example["question"]] &= line["label"] == example["label"]
    gold, predicted = classified(found, ("0", "1"))
    assert results["metrics"]["answers"] == pytest.approx(
        {
            "f1a": f1_score(gold, predicted),
            "accuracy": np.mean(np.equal(gold, predicted)),
            "em": np.mean(list(questions.values())),
        }
    )
    assert len(questions) == 12
    assert 0 < results["metrics"]["answers"]["em"] < results["metrics"]["answers"]["accuracy"] < 1
    # training knows nothing of questions
    last = logged(run, "valid")[-1]
    assert float(last["valid_answers_f1a"]) == pytest.approx(f1_score(gold, predicted), abs=1e-6)
    assert "valid_answers_em" not in last
    mains = [float(last[f"valid_{key}"]) for key in ("answers_f1a", "maybe_f1", "entities_f1", "spans_f1")]
    assert float(last["valid_score"]) == pytest.approx(np.mean(mains), abs=1e-5)


def test_squad_2_knows_unanswerable_questions(superglue, official, tmp_path):
    out, run = superglue
    results = evaluated(run / "checkpoint_last.pt", out, "--datasets", "maybe", "--predictions", str(tmp_path))
    model = TrainedModel.load(run / "checkpoint_last.pt", out / "dict.txt")
    found = lines(tmp_path, "maybe")
    for line, example in zip(found, raw_examples(out, "maybe"), strict=True):
        windows = window_scores(model, "who is", example["passage"])
        best = max(
            logits[i, 0] + logits[j, 1]
            for _, logits, _ in windows
            for i in range(len(logits))
            for j in range(i, len(logits))
        )
        null = min(score for _, _, score in windows)
        assert (line["text"] == "") == (null > best)
        assert line["score"] == pytest.approx(max(null, best), abs=1e-4)
        assert line["text"] == example["passage"][line["start"] : line["end"]]
    assert 5 <= sum(line["text"] == "" for line in found) <= 55
    exact, f1 = official("v2_0", [(line["text"], [gold["text"] for gold in line["gold"]]) for line in found])
    assert results["metrics"]["maybe"] == pytest.approx({"f1": f1, "em": exact})
    last = logged(run, "valid")[-1]
    assert float(last["valid_maybe_f1"]) == pytest.approx(f1, abs=1e-6)
    assert any(not line["gold"] for line in found)
    assert 0 < exact < 1


# -- bad input ----------------------------------------------------------------------------------------


@pytest.fixture
def copy(models: ToyModels, tmp_path: Path) -> Path:
    """A copy of the data-bin, to be damaged."""
    return Path(shutil.copytree(models.data, tmp_path / "data-bin"))


def refused(checkpoint: Path, data: Path, *more: str) -> str:
    return sentence(evaluated, checkpoint, data, *more)


def test_what_is_no_checkpoint(models, tmp_path):
    data = models.data
    missing = tmp_path / "missing.pt"
    for named, read in ((missing, missing), (tmp_path, tmp_path / "model.pt")):
        said = f"the checkpoint {read} cannot be read (No such file or directory); name another one"
        assert refused(named, data) == said
    damaged = tmp_path / "damaged.pt"
    whole = models.checkpoint("roberta").read_bytes()
    for content in (b"", b"PK", whole[:-100], whole[: len(whole) // 2], b"hello" * 99):
        damaged.write_bytes(content)
        assert refused(damaged, data).startswith(f"{damaged} is damaged, or no checkpoint (")
    torch.save({"model": {}}, damaged)
    assert refused(damaged, data).startswith(f"{damaged} does not say which datasets it was trained on: ")


def test_what_is_no_data_bin(models, copy, tmp_path):
    checkpoint = models.checkpoint("roberta")
    for folder in (tmp_path, tmp_path / "missing", checkpoint):
        said = f"{folder} is no data-bin folder: it has no dict.txt; name one that 'preprocess' made"
        assert refused(checkpoint, folder) == said
    path = copy / "dict.txt"
    path.write_text("".join(reversed(path.read_text().splitlines(keepends=True))))
    assert refused(checkpoint, copy).startswith("the checkpoint was trained with another dictionary than ")


def test_datasets_that_cannot_be_evaluated(models, copy, record):
    roberta, data = models.checkpoint("roberta"), models.data
    assert refused(roberta, data, "--datasets", "animls") == (
        f"suite 'animls': there is no dataset 'animls' in {data} (did you mean 'animals'?)"
    )
    assert refused(roberta, data, "--datasets", "summaries").startswith(
        "the model is an encoder alone, which cannot write texts for summaries"
    )
    labels = ("0", "1")
    two = [{"inputs": ["the dog"], "label": label} for label in labels]
    add_dataset(copy, entry("animal", "classification", "f1", labels, {"inputs": ["text"]}), valid=two)
    assert refused(roberta, copy, "--datasets", "animals,animal") == (
        "the model has no head for animal (did you mean 'animals'?); it has animals, commonsense, counts, mrc, pairs"
    )
    add_dataset(copy, entry("animals", "classification", "f1", labels[::-1], {"inputs": ["text"]}), valid=two)
    assert refused(roberta, copy) == (
        f"{copy}/animals has the classes 1, 0, the checkpoint 0, 1: evaluate on the data that it was trained with"
    )
    # the data of the checkpoint's other datasets are not there
    assert refused(roberta, record).startswith(
        "suite 'animals,pairs,choices,spans,counts': there is no dataset 'animals'"
    )


def test_splits_that_cannot_be_evaluated(models, copy):
    roberta = models.checkpoint("roberta")
    assert refused(roberta, copy, "--split", "test") == f"{copy}/animals has no split 'test'; it has train, valid"
    assert refused(roberta, copy, "--split", "train") == (
        "the split 'train' is kept without its texts, so it cannot be judged; name another one with --split"
    )
    cut(copy, "pairs/input0/valid.idx", 40)
    said = refused(roberta, copy)
    assert said.startswith(f"{copy}/pairs/input0/valid.idx is truncated")


@pytest.mark.parametrize("name", ["animals", "choices", "spans", "counts"])
def test_texts_that_do_not_fit_their_rows(models, copy, name):
    """``raw`` of another number of examples, and raw that is no JSON."""
    again = "prepare the dataset again"
    rewrite(copy, f"{name}/raw/valid", lambda items: items[5].__setitem__(0, ord("[")))
    said = refused(models.checkpoint("roberta"), copy, "--datasets", name)
    assert said.startswith(f"{copy}/{name}/raw/valid.bin: example 5 cannot be used: it is no JSON (")
    assert said.endswith(again)
    rewrite(copy, f"{name}/raw/valid", lambda items: items.pop())
    said = refused(models.checkpoint("roberta"), copy, "--datasets", name)
    assert said.startswith(f"{copy}/{name}: the streams of 'valid' differ in length (")
    (copy / name / "raw/valid.idx").unlink()
    assert (
        refused(models.checkpoint("roberta"), copy, "--datasets", name)
        == f"{copy}/{name}/raw/valid.idx is missing; {again}"
    )


def test_a_metric_that_the_examples_do_not_allow(models, tmp_path):
    suite = tmp_path / "suite.yaml"
    suite.write_text("- {name: animals, metric: multirc}\n")
    assert refused(models.checkpoint("roberta"), models.data, "--datasets", str(suite)).startswith(
        f"{models.data}/animals: its examples have no 'question', which the metric multirc needs; "
    )


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (("--max-tokens", "20"), "choices: example 2 takes 45 tokens (5 rows of 9), but --max-tokens is 20; "),
        (("--max-tokens", "0"), "--max-tokens is 0; give at least 1"),
        (("--device", "gpu"), "the device 'gpu' cannot be used ("),
        (("--device", "meta"), "the device 'meta' cannot be used ("),
        (("--device", "cuda:99"), "the device 'cuda:99' cannot be used ("),
        (("--beam", "0"), "the generation option beam is 0; give at least 1"),
        (("--min-len", "40"), "the generation option min_len is 40, but a text may have 30 tokens here"),
        (("--datasets", "a.yaml"), "the suite a.yaml cannot be read (No such file or directory)"),
        (("--datasets", ""), "suite '': '' is no dataset name"),
    ],
)
def test_options_that_cannot_be(models, given, said):
    more = () if "--datasets" in given else ("--datasets", "choices,summaries")
    assert said in refused(models.checkpoint("bart"), models.data, *given, *more)


def test_predictions_that_cannot_be_written_are_told_before_anything_is_predicted(models, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(TrainedModel, "predict", lambda *_, **__: pytest.fail("it predicts"))
    for place in (tmp_path / "file", tmp_path / "file" / "folder"):
        said = refused(models.checkpoint("roberta"), models.data, "--predictions", str(place))
        assert said.startswith(f"cannot write {place} (")


def test_the_command_says_it_with_exit_status_1(models, tmp_path):
    other = new_data_bin(models.data, tmp_path / "other")
    (other / "dict.txt").write_text((other / "dict.txt").read_text().replace("dog 1\ncat 1\n", "cat 1\ndog 1\n"))
    program = [sys.executable, "-m", "muppet_fairseq.cli", "evaluate", str(models.checkpoint("roberta")), str(other)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(program, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("muppet: the checkpoint was trained with another dictionary than this data-bin's ")
    assert done.stderr.count("\n") == 1
