"""The hub: a release alone, in another process and elsewhere, answers as ``muppet evaluate`` does on every example."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import subprocess
import sys
import zipfile
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from muppet_fairseq.data.tokenizer import Tokenizer
from muppet_fairseq.errors import MuppetError
from muppet_fairseq.hub import MuppetHub
from muppet_fairseq.models.bart import MuppetBartModel
from muppet_fairseq.models.checkpoint import packed
from muppet_fairseq.models.roberta import MuppetRobertaModel
from muppet_fairseq.release import release
from tests import test_tokenizer
from tests.test_bad_input import sentence
from tests.test_evaluate import evaluated, expect_same, lines
from tests.toy_models import (
    ARCHITECTURES,
    SEARCH,
    SEARCH_OPTIONS,
    SUITES,
    ToyModels,
    add_dataset,
    entry,
    long_data_bin,
    raw_examples,
    toy_models,
)
from tests.toy_suite import ROOT, open_task


@pytest.fixture(scope="session")
def models(data: Path) -> ToyModels:
    return toy_models(data)


@pytest.fixture(scope="session")
def hubs(models: ToyModels) -> dict[str, MuppetHub]:
    return {name: MuppetHub.load(folder) for name, folder in models.releases.items()}


@pytest.fixture(scope="session")
def elsewhere(models: ToyModels, tmp_path_factory) -> dict[str, tuple[list[dict], list[list]]]:
    """By model, kind and dataset: the predictions of ``muppet evaluate``, and the answers of another process.

    There the releases lie alone in a folder, and nothing is where the models were made.
    """
    place = tmp_path_factory.mktemp("elsewhere")
    kinds = {"valid": models.data, "long": long_data_bin(models.data, place / "long" / "data-bin")}
    predictions, examples = {}, {}
    for kind, data in kinds.items():
        for name in ARCHITECTURES:
            more = ("--predictions", str(place / kind / name), *SEARCH_OPTIONS)
            evaluated(models.checkpoint(name), data, *more)
            for dataset in SUITES[name]:
                predictions[f"{name} {kind} {dataset}"] = lines(place / kind / name, dataset)
                examples[f"{kind} {dataset}"] = raw_examples(data, dataset)
    (place / "far").mkdir()
    releases = {name: shutil.copytree(folder, place / "far" / name) for name, folder in models.releases.items()}
    given = {"repository": str(ROOT), "releases": {name: str(folder) for name, folder in releases.items()}}
    (place / "far" / "given.json").write_text(json.dumps(given | {"examples": examples, "search": SEARCH}))
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"} | {"OMP_NUM_THREADS": "1"}
    program = [sys.executable, str(ROOT / "tests" / "ask_hub.py"), "given.json", "answers.json"]
    moved = {folder: folder.with_name(f"{folder.name}-away") for folder in (models.home, kinds["long"])}
    for folder, away in moved.items():
        folder.rename(away)
    try:
        done = subprocess.run(program, cwd=place / "far", env=environment, capture_output=True, text=True, check=False)
    finally:
        for folder, away in moved.items():
            away.rename(folder)
    assert done.returncode == 0, done.stderr[-3000:]
    answers = json.loads((place / "far" / "answers.json").read_text())
    assert set(answers) == set(predictions)
    return {key: (predictions[key], answers[key]) for key in answers}


def as_predictions(answers: list[Any], examples: list[dict]) -> list[dict]:
    """What the hub answers, as ``muppet evaluate`` writes it."""
    if isinstance(answers[0], str):
        return [{"text": text} for text in answers]
    for answer, example in zip(answers, examples, strict=True):
        if "choice" in answer:
            assert answer.pop("text") == example["choices"][answer["choice"]]
    return answers


@pytest.mark.parametrize("kind", ["valid", "long"])
@pytest.mark.parametrize(("name", "dataset"), [(name, dataset) for name in ARCHITECTURES for dataset in SUITES[name]])
def test_answers_are_the_predictions_of_evaluate(models, elsewhere, tmp_path, name, dataset, kind):
    """One by one, as lists, and from the model's own class; texts longer than the model are cut alike."""
    data = models.data if kind == "valid" else long_data_bin(models.data, tmp_path / "data-bin")
    examples = raw_examples(data, dataset)
    predictions, ways = elsewhere[f"{name} {kind} {dataset}"]
    predictions = [{key: line[key] for key in line if key not in ("id", "gold")} for line in predictions]
    assert len(predictions) == {"valid": 24, "long": 8}[kind]
    assert len(ways) == 3
    for answers in ways:
        expect_same(as_predictions(answers, examples), predictions, 1e-5)


def test_labels_are_words(hubs):
    answer = hubs["bart"].classify("pairs", "the dog is same", "a dog")
    assert set(answer) == {"label", "probabilities"}
    assert list(answer["probabilities"]) == ["same", "other", "none"]
    assert answer["label"] == max(answer["probabilities"], key=answer["probabilities"].get)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_features_are_what_the_heads_read(models, hubs, name):
    """RoBERTa's heads read the first token, BART's the last; also of pairs, one and many."""
    hub = hubs[name]
    texts = [example["inputs"][0] for example in raw_examples(models.data, "animals")]
    pairs = list(zip(*(example["inputs"] for example in raw_examples(models.data, "pairs")), strict=True))
    for dataset, parts in (("animals", [texts]), ("pairs", pairs)):
        features = hub.extract_features(*parts)
        for states, question, answer in zip(
            features, zip(*parts, strict=True), hub.classify(dataset, *parts), strict=True
        ):
            assert states.shape == (sum(len(encoding.ids) + 2 for encoding in hub.tokenizer.encode(question)), 64)
            torch.testing.assert_close(hub.extract_features(*question), states, atol=1e-5, rtol=0)
            with torch.no_grad():
                scores = hub.model.heads[dataset](states[[0 if name == "roberta" else -1]])[0]
            assert scores.softmax(dim=0).tolist() == pytest.approx(list(answer["probabilities"].values()), abs=1e-5)
    assert hub.extract_features("dog " * 50, truncate=True).shape == (32, 64)


def test_empty_lists_and_other_sequences(hubs):
    hub = hubs["bart"]
    assert hub.classify("animals", []) == hub.classify("pairs", [], []) == hub.score("counts", []) == []
    assert hub.choose([], []) == hub.answer([], []) == hub.summarize([]) == hub.extract_features([]) == []
    answers = hub.choose(["who is the dog"], [["cat", "dog"]])
    assert hub.choose(("who is the dog",), (("cat", "dog"),)) == answers
    assert hub.choose(np.array(["who is the dog"]), np.array([["cat", "dog"]])) == answers


def test_an_answer_may_be_empty(hubs):
    hub = hubs["bart"]
    answer = hub.answer("who is", "cat cow who is dog")
    assert answer["text"] == "cat cow who is dog"[answer["start"] : answer["end"]] != ""
    null = hub.answer("who is", "cat cow hen", allow_empty=True)
    best = hub.answer("who is", "cat cow hen")
    assert null == best if null["text"] else null["score"] > best["score"]
    assert hub.answer("who is", "cat cow hen", dataset="spans") == best


@pytest.fixture(scope="session")
def gpt2_release(gpt2_folder: Path, tmp_path_factory) -> tuple[Path, Path, Path]:
    """Data-bin, checkpoint and release of an untrained RoBERTa over GPT-2's vocabulary."""
    place = tmp_path_factory.mktemp("gpt2-hub")
    data = place / "data-bin"
    data.mkdir()
    Tokenizer.load(gpt2_folder).save(data / "tokenizer")
    shutil.copyfile(gpt2_folder / "dict.txt", data / "dict.txt")
    texts = [text for text in test_tokenizer.ODD_TEXTS if text.strip() and "\x00" not in text]
    passages = [f"{text} Émile  Zola (1840\u20131902) 🙂 {text}" for text in texts]
    add_dataset(
        data,
        entry("spans", "mrc", "squad"),
        valid=[
            {"question": f"who {text}?", "passage": p, "answers": [{"text": "Zola", "start": p.index("Zola")}]}
            for text, p in zip(texts, passages, strict=True)
        ],
    )
    add_dataset(
        data,
        entry("pairs", "classification", "accuracy", ("yes", "no")),
        valid=[{"inputs": [text, passage], "label": "yes"} for text, passage in zip(texts, passages, strict=True)],
    )
    task = open_task(data, "spans,pairs", max_positions=64)
    options = Namespace(arch="muppet_roberta_tiny", pooler_dropout=0.0)
    torch.manual_seed(4)
    from fairseq.models import ARCH_CONFIG_REGISTRY

    ARCH_CONFIG_REGISTRY[options.arch](options)
    model = MuppetRobertaModel.build_model(options, task)
    for head in model.heads.values():
        torch.nn.init.normal_(head.out_proj.weight)
    cfg = {"_name": "muppet", "data": str(data), "max_positions": 64, "window_overlap": 8, "suite": "spans,pairs"}
    state = packed(cfg, vars(options) | {"_name": options.arch}, model.state_dict(), dict(task.state.state_dict))
    torch.save(state, place / "checkpoint.pt")
    release(place / "checkpoint.pt", place / "release")
    return data, place / "checkpoint.pt", place / "release"


def test_a_release_with_gpt2s_tokenizer(gpt2_release, tmp_path):
    """Accents, emoji and spaces: characters, not bytes, are what answers are counted in."""
    data, checkpoint, folder = gpt2_release
    assert sorted(p.name for p in folder.iterdir()) == [
        *("README.md", "config.json", "dict.txt", "encoder.json", "model.pt", "vocab.bpe")
    ]
    evaluated(checkpoint, data, "--predictions", str(tmp_path))
    hub = MuppetRobertaModel.from_pretrained(folder)
    for example, line in zip(raw_examples(data, "spans"), lines(tmp_path, "spans"), strict=True):
        answer = hub.answer(example["question"], example["passage"])
        assert answer["text"] == example["passage"][answer["start"] : answer["end"]]
        expect_same([answer], [{key: line[key] for key in answer}], 1e-4)
    found = {line["text"] for line in lines(tmp_path, "spans")}
    assert any(not text.isascii() for text in found)
    for example, line in zip(raw_examples(data, "pairs"), lines(tmp_path, "pairs"), strict=True):
        answer = hub.classify("pairs", *example["inputs"], truncate=True)
        expect_same([answer], [{key: line[key] for key in answer}], 1e-5)


# -- bad input ----------------------------------------------------------------------------------------

LONG = "dog " * 50
TOO_LONG = "tokens, the model reads 32: shorten it, or cut it with truncate=True"


@pytest.mark.parametrize(
    ("method", "given", "said"),
    [
        (
            "classify",
            ("animal", "dog"),
            "'animal' is unknown to the model (did you mean 'animals'?): for classification",
        ),
        ("classify", ("counts", "dog"), "'counts' is of another family: for classification it has animals, pairs"),
        ("score", ("animals", "dog"), "'animals' is of another family: for regression it has counts"),
        ("classify", ("animals", LONG), f"text 1 of 1 has 52 {TOO_LONG}"),
        ("classify", ("animals", ["dog", "cat", LONG]), f"text 3 of 3 has 52 {TOO_LONG}"),
        ("classify", ("pairs", "dog", LONG), f"text 1 of 1 has 55 {TOO_LONG}"),
        ("score", ("counts", LONG), f"text 1 of 1 has 52 {TOO_LONG}"),
        ("choose", ("dog", ["cat", LONG]), f"text 1 of 1 has 55 {TOO_LONG}"),
        ("summarize", (LONG,), f"text 1 of 1 has 52 {TOO_LONG}"),
        ("extract_features", (["dog", LONG],), f"text 2 of 2 has 52 {TOO_LONG}"),
        ("classify", ("pairs", "dog"), "pairs has 2 texts an example, 1 given: it takes a second text, too"),
        ("classify", ("animals", "dog", "cat"), "animals has 1 texts an example, 2 given: it takes one text alone"),
        ("classify", ("pairs", ["dog"], ["cat", "hen"]), "the lists differ in length (1 of 'text', 2 of 'second'); "),
        ("choose", (["dog"], []), "the lists differ in length (1 of 'context', 0 of 'choices'); "),
        ("answer", (["who", "is"], ["dog"]), "the lists differ in length (2 of 'question', 1 of 'passage'); "),
        ("classify", ("pairs", ["dog"], "cat"), "'second' is 'cat'; give a text, or lists"),
        ("classify", ("pairs", "dog", ["cat"]), "a text is ['cat'], which is no text; give a str"),
        ("answer", ("who", ["dog", "cat"]), "a passage is ['dog', 'cat'], which is no text; give a str"),
        ("choose", ("who", ["dog"]), "question 1 of 1 cannot be used: it has 1 choices, at least 2 are needed"),
        ("choose", ("who", []), "question 1 of 1 cannot be used: it has 0 choices, at least 2 are needed"),
        ("choose", ("who", "dog"), "what a question may choose from is 'dog'; give a list of texts"),
        ("choose", (["who", "is"], ["dog", "cat"]), "what a question may choose from is 'dog'; give a list of texts"),
        ("choose", ("who", [["dog", "cat"]]), "a choice is ['dog', 'cat'], which is no text; give a str"),
        ("answer", ("who", " "), "question 1 of 1 cannot be used: its passage is empty"),
        ("answer", (["who", "who"], ["dog", ""]), "question 2 of 2 cannot be used: its passage is empty"),
        ("answer", ("who", "\u200b"), "question 1 of 1 cannot be used: its passage is empty"),
        ("classify", ("animals", " "), "question 1 of 1 cannot be used: its text is empty"),
        ("score", ("counts", ["dog", ""]), "question 2 of 2 cannot be used: its text is empty"),
        ("summarize", ("",), "question 1 of 1 cannot be used: its source is empty"),
        # other than texts
        ("classify", (None, "dog"), "a dataset's name is None, which is no text; give a str"),
        ("classify", (["animals"], "dog"), "a dataset's name is ['animals'], which is no text; give a str"),
        ("classify", ("animals", None), "'text' is None; give a text, or lists"),
        ("classify", ("animals", b"dog"), "'text' is b'dog'; give a text, or lists"),
        ("classify", ("animals", {"text": "dog"}), "'text' is {'text': 'dog'}; give a text, or lists"),
        ("classify", ("animals", ["dog", 3]), "a text is 3, which is no text; give a str"),
        ("classify", ("animals", "\ud83d"), "a text is '\\ud83d', which holds half a character; give all of it"),
        ("classify", ("pairs", "dog", 3.5), "a text is 3.5, which is no text; give a str"),
        ("score", ("counts", 3), "'text' is 3; give a text, or lists"),
        ("choose", (None, ["dog", "cat"]), "'context' is None; give a text, or lists"),
        ("choose", ("who", ["dog", None]), "a choice is None, which is no text; give a str"),
        ("choose", ("who", None), "what a question may choose from is None; give a list of texts"),
        ("answer", ("who", None), "a passage is None, which is no text; give a str"),
        ("answer", ([7], ["dog"]), "a question is 7, which is no text; give a str"),
        ("summarize", (None,), "'texts' is None; give a text, or lists"),
        ("summarize", ([None],), "a text is None, which is no text; give a str"),
        ("extract_features", (None,), "'text' is None; give a text, or lists"),
    ],
)
def test_questions_that_cannot_be_answered(hubs, method, given, said):
    for hub in (hubs["bart"], hubs["roberta"]) if method != "summarize" else (hubs["bart"],):
        assert sentence(getattr(hub, method), *given).startswith(said)


def test_datasets_and_options_that_are_not_there(hubs):
    bart, roberta = hubs["bart"], hubs["roberta"]
    assert sentence(bart.choose, "who", ["dog", "cat"], dataset="choice") == (
        "'choice' is unknown to the model (did you mean 'choices'?): for commonsense it has choices"
    )
    assert sentence(bart.answer, "who", "dog", dataset="choices").startswith("'choices' is of another family: for mrc")
    assert sentence(bart.summarize, "dog", bean=3).startswith(
        "there is no generation option 'bean' (did you mean 'beam'?); there are beam, lenpen, "
    )
    assert sentence(bart.summarize, "dog", beam=2.5) == "the generation option beam takes a whole number, not 2.5"
    assert sentence(roberta.summarize, "dog").startswith("the model is an encoder alone, which cannot write texts")


# -- files --------------------------------------------------------------------------------------------


@pytest.fixture
def copy(models: ToyModels, tmp_path: Path) -> Path:
    """A copy of the released RoBERTa, to be damaged."""
    return Path(shutil.copytree(models.releases["roberta"], tmp_path / "copy"))


def test_folders_that_hold_no_release(models, copy, tmp_path):
    made = "name a folder that 'muppet release' made (unpack a .tar.gz first)"
    for folder in (tmp_path, tmp_path / "missing", models.runs["bart"], copy / "model.pt"):
        assert sentence(MuppetHub.load, folder) == f"{folder} holds no model.pt; {made}"
    roberta, bart = models.releases["roberta"], str(models.releases["bart"])
    assert sentence(MuppetBartModel.from_pretrained, roberta) == (
        f"{roberta} holds a MuppetRobertaModel, not a MuppetBartModel; load it with that"
    )
    assert "holds a MuppetBartModel" in sentence(MuppetRobertaModel.from_pretrained, bart)
    assert isinstance(MuppetRobertaModel.from_pretrained(str(roberta)).model, MuppetRobertaModel)
    for name in ("dict.txt", "tokenizer.json", "config.json"):
        (copy / name).rename(tmp_path / name)
        assert name in sentence(MuppetHub.load, copy)
        (tmp_path / name).rename(copy / name)
    path = copy / "dict.txt"
    path.write_text(path.read_text().replace("dog 1\ncat 1\n", "cat 1\ndog 1\n"))
    assert "another dictionary" in sentence(MuppetHub.load, copy)


@pytest.mark.parametrize("keep", [0, 1, 4, 1000, -1, -100, -100_000])
def test_a_model_that_is_cut_off(copy, keep):
    path = copy / "model.pt"
    path.write_bytes(path.read_bytes()[:keep])
    assert sentence(MuppetHub.load, copy).startswith(f"{path} is damaged")


def loaded(folder: Path) -> MuppetHub | str:
    """The hub, or the sentence that refuses it."""
    try:
        return MuppetHub.load(folder)
    except MuppetError as error:
        return str(error)


def test_a_model_with_a_changed_byte(copy):
    """A byte in any part of the file: it is refused, or (in the zip's padding) says the same as before."""
    path = copy / "model.pt"
    whole, before = path.read_bytes(), MuppetHub.load(copy).classify("animals", "dog cat")
    with zipfile.ZipFile(path) as archive:
        (pickled,) = [part for part in archive.infolist() if part.filename.endswith("data.pkl")]
        largest = max(archive.infolist(), key=lambda part: part.file_size)
    inside = [
        part.header_offset + 500 + i
        for part in (pickled, largest)
        for i in range(0, part.file_size - 600, part.file_size // 9)
    ]
    places = [
        *inside,
        *np.random.default_rng(0).integers(0, len(whole), 20).tolist(),
        *range(len(whole) - 30, len(whole), 3),
    ]
    for number, place in enumerate(places):
        damaged = bytearray(whole)
        damaged[place] ^= 0x55
        path.write_bytes(damaged)
        hub = loaded(copy)
        if isinstance(hub, str):
            assert hub.startswith(f"{path} is damaged"), place
            assert "\n" not in hub
        else:
            assert number >= len(inside), place
            assert hub.classify("animals", "dog cat") == before


class Malicious:
    """Unpickled, it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return os.system, (f"touch {self.path}",)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("kind", ["zip", "legacy", "pickle"])
def test_a_model_that_pickles_code_is_not_loaded(copy, tmp_path, kind):
    path, code = copy / "model.pt", Malicious(tmp_path / "executed")
    state = torch.load(path, weights_only=True) | {"extra": code}
    if kind == "pickle":
        path.write_bytes(pickle.dumps({"model": {}, "extra": code}))
    else:
        torch.save(state, path, _use_new_zipfile_serialization=kind == "zip")
    said = sentence(MuppetHub.load, copy)
    # of a pickle that no torch.save has made, not even the opcodes are known
    refused = (
        "is damaged, or no checkpoint" if kind == "pickle" else "holds code besides tensors and plain values (posix."
    )
    assert said.startswith(f"{path} {refused}")
    assert "weights_only" not in said  # PyTorch advises to switch the check off
    assert not (tmp_path / "executed").exists()
    if kind != "pickle":  # the file is one that would have run it
        torch.load(path, weights_only=False)
        assert (tmp_path / "executed").exists()


def change(folder: Path, how: Callable[[dict[str, Any]], Any]) -> None:
    state = torch.load(folder / "model.pt", weights_only=True)
    how(state)
    torch.save(state, folder / "model.pt")


def test_models_that_are_not_ours(copy):
    """A plain fairseq checkpoint, one without a head, and those of other versions."""
    path = copy / "model.pt"
    change(copy, lambda state: state["model"].pop("heads.counts.out_proj.bias"))
    assert (
        sentence(MuppetHub.load, copy)
        == f"{path} lacks heads.counts.out_proj.bias, which its datasets need; copy it again"
    )
    change(copy, lambda state: state["task_state"]["specs"][0].update(colour="red"))
    assert sentence(MuppetHub.load, copy) == f"{path} is of another version of muppet_fairseq; load it with that"
    change(copy, lambda state: state["task_state"]["specs"][0].pop("colour"))
    change(copy, lambda state: state["cfg"]["model"].update(arch="muppet_t5"))
    assert sentence(MuppetHub.load, copy) == f"{path} is of another version of muppet_fairseq; load it with that"
    change(copy, lambda state: state.update(task_state={}))
    unknown = f"{path} does not say which datasets it was trained on: "
    assert sentence(MuppetHub.load, copy).startswith(unknown)
    torch.save([torch.zeros(3)], path)
    assert sentence(MuppetHub.load, copy).startswith(unknown)
    # as roberta.base/model.pt was saved
    torch.save({"args": Namespace(arch="roberta_base"), "model": {}}, path, _use_new_zipfile_serialization=False)
    assert sentence(MuppetHub.load, copy).startswith(unknown)
