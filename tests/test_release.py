"""``muppet release``: whole or not there, silent on where it was made, and of the same use as the checkpoint."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from muppet_fairseq import cli
from muppet_fairseq import release as module
from muppet_fairseq.files import write_text
from muppet_fairseq.hub import MuppetHub
from muppet_fairseq.provenance import versions
from muppet_fairseq.release import release
from muppet_fairseq.trained import TrainedModel
from tests.test_bad_input import sentence
from tests.test_evaluate import evaluated, lines
from tests.toy_models import (
    ARCHITECTURES,
    SEARCH_OPTIONS,
    SUITES,
    ToyModels,
    add_dataset,
    entry,
    fine_tuned,
    toy_models,
)
from tests.toy_suite import ROOT, logged

FILES = ["README.md", "config.json", "dict.txt", "model.pt", "tokenizer.json"]


@pytest.fixture(scope="session")
def models(data: Path) -> ToyModels:
    return toy_models(data)


def names(folder: Path) -> list[str]:
    """All that is below a folder, hidden or not."""
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


# -- what is in it ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_it_has_what_prediction_needs_and_nothing_else(models, name):
    folder = models.releases[name]
    assert names(folder) == FILES
    for file in ("config.json", "dict.txt", "tokenizer.json"):
        assert (folder / file).read_bytes() == (models.data / "tokenizer" / file).read_bytes()
    state = torch.load(folder / "model.pt", weights_only=True)
    assert state["last_optimizer_state"] is None
    run = torch.load(models.checkpoint(name), weights_only=True)
    assert run["last_optimizer_state"]
    assert set(state["cfg"]) == {"task", "model"}
    assert set(state["cfg"]["task"]) == {"_name", "data", "suite", "max_positions", "window_overlap"}
    assert len(state["cfg"]["model"]) < len(vars(run["cfg"]["model"])) / 2
    assert set(state["model"]) == set(run["model"])
    for key, value in run["model"].items():
        assert torch.equal(state["model"][key], value), key
    assert [spec["name"] for spec in state["task_state"]["specs"]] == list(SUITES[name])


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_it_names_nothing_of_where_it_was_made(models, name):
    wanted = [
        str(models.home.parent),
        models.home.name,
        models.runs[name].name,
        "data-bin",
        str(ROOT),
        str(Path.home()),
    ]
    with zipfile.ZipFile(models.releases[name] / "model.pt") as archive:
        parts = [archive.read(part) for part in archive.namelist()]
    parts += [(models.releases[name] / file).read_bytes() for file in FILES]
    for word in wanted:
        assert not any(word.encode() in part for part in parts), word
    # a run's checkpoint does
    with zipfile.ZipFile(models.checkpoint(name)) as archive:
        assert any(str(models.home).encode() in archive.read(part) for part in archive.namelist())


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_tensors_are_stored_once_and_alone(models, name):
    trained = TrainedModel.load(models.releases[name] / "model.pt", models.releases[name] / "dict.txt")
    values = [*trained.model.parameters(), *trained.model.buffers()]
    wanted = sum(value.numel() * value.element_size() for value in values)
    with zipfile.ZipFile(models.releases[name] / "model.pt") as archive:
        stored = sum(part.file_size for part in archive.infolist() if "/data/" in part.filename)
    assert stored == wanted
    if name == "bart":
        tied = ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight", "decoder.output_projection.weight")
        state = torch.load(models.releases[name] / "model.pt", weights_only=True)["model"]
        assert len({state[key].data_ptr() for key in tied}) == 1


def test_spectrally_normalised_heads_stay_so(models):
    """As trained: the stored weights are others, their normalised selves have norm 1."""
    hub = MuppetHub.load(models.releases["roberta"])
    stored = torch.load(models.checkpoint("roberta"), weights_only=True)["model"]
    assert set(hub.model.heads) == {"animals", "pairs", "commonsense", "mrc", "counts"}
    for name, head in hub.model.heads.items():
        original = stored[f"heads.{name}.out_proj.parametrizations.weight.original"]
        assert torch.linalg.matrix_norm(head.out_proj.weight, 2).item() == pytest.approx(1, abs=1e-4)
        assert abs(torch.linalg.matrix_norm(original, 2).item() - 1) > 1e-2
        torch.testing.assert_close(head.out_proj.parametrizations.weight.original, original)


# -- what it does -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_it_predicts_as_the_checkpoint(models, tmp_path, name):
    found = {}
    for kind, checkpoint in (("run", models.checkpoint(name)), ("release", models.releases[name])):
        more = ("--predictions", str(tmp_path / kind), *SEARCH_OPTIONS)
        found[kind] = evaluated(checkpoint, models.data, *more)
        assert found[kind].pop("checkpoint") == str(checkpoint)
    assert found["release"] == found["run"]
    for dataset in SUITES[name]:
        assert lines(tmp_path / "release", dataset) == lines(tmp_path / "run", dataset)


def test_it_starts_a_new_run_with_its_heads(data):
    """``fairseq-train --finetune-from-model RELEASE/model.pt --reuse-heads`` on other datasets and ``spans``."""
    _, run = fine_tuned(data)
    log = (run / "train.log").read_text()
    assert "heads re-used: mrc\n" in log
    assert "heads fresh: answers\n" in log
    assert "heads left out: animals, commonsense, counts, pairs\n" in log
    losses = {}
    for line in logged(run, "train_inner"):
        for name in ("spans", "answers"):
            if line.get(f"{name}_loss") is not None:
                losses.setdefault(name, float(line[f"{name}_loss"]))
    # a uniform prediction costs 1
    assert losses["spans"] < 0.4
    assert losses["answers"] == pytest.approx(1, abs=0.2)


def test_the_model_card(models, tmp_path, monkeypatch):
    """It says what and how, and its lines of Python run beside the folder."""
    copy = Path(shutil.copytree(models.data, tmp_path / "data-bin"))
    labels = ("same", "other", "none")
    add_dataset(
        copy, entry("pairs", "classification", "accuracy", labels), valid=[{"inputs": ["a", "b"], "label": "same"}]
    )
    shutil.rmtree(copy / "counts")
    release(models.checkpoint("bart"), tmp_path / "my-model", copy)
    card = (tmp_path / "my-model" / "README.md").read_text(encoding="utf-8")
    assert card.startswith("# my-model\n")
    assert "`muppet_bart_tiny`" in card
    rows = {
        row[0]: row[1:] for row in re.findall(r"^\| (\w+) \| (\w+) \| (.*?) \| (\w+) \| (.*?) \|$", card, re.MULTILINE)
    }
    assert list(rows) == ["dataset", *SUITES["bart"]]
    assert rows["pairs"] == ("classification", "same, other, none", "pairs", "CC-Toy 4.0")
    assert rows["summaries"] == ("summarization", "", "none", "none")
    assert rows["spans"] == ("mrc", "", "mrc", "none")
    assert rows["counts"][-1] == "see its authors"
    assert "- pairs: Toy et al. 2020\n" in card
    assert "- animals: none\n" in card
    for line in ("`lr`: [0.003]", "`loss_scaling`: log", "`seed`: 1", "`max_positions`: 32 tokens a row"):
        assert f"- {line}\n" in card
    for package, number in versions().items():
        assert f"- {package} {number}\n" in card
    parameters = sum(p.numel() for p in MuppetHub.load(tmp_path / "my-model").model.parameters())
    assert f" {parameters:,} parameters" in card
    monkeypatch.chdir(tmp_path)
    (code,) = re.findall(r"```python\n(.*?)```", card, flags=re.DOTALL)
    assert all(f"hub.{method}(" in code for method in ("classify", "choose", "answer", "summarize", "score"))
    exec(code, {})


# -- how it is written --------------------------------------------------------------------------------


def test_an_archive_holds_the_same_in_one_folder(models, tmp_path):
    out = tmp_path / "new" / "toy-roberta.tar.gz"
    release(models.checkpoint("roberta"), out, models.data)
    assert names(tmp_path / "new") == ["toy-roberta.tar.gz"]
    with tarfile.open(out) as archive:
        assert sorted(archive.getnames()) == ["toy-roberta", *(f"toy-roberta/{file}" for file in FILES)]
        archive.extractall(tmp_path / "unpacked", filter="data")
    folder, reference = tmp_path / "unpacked" / "toy-roberta", models.releases["roberta"]
    for file in set(FILES) - {"model.pt"}:
        assert (folder / file).read_bytes() == (reference / file).read_bytes()
    states = [torch.load(place / "model.pt", weights_only=True) for place in (folder, reference)]
    torch.testing.assert_close(*(state["model"] for state in states), atol=0, rtol=0)
    assert states[0]["cfg"] == states[1]["cfg"]
    assert MuppetHub.load(folder).classify("animals", "dog") == MuppetHub.load(reference).classify("animals", "dog")


def test_the_command_from_another_folder(models, tmp_path):
    """A run with a relative data-bin is released from elsewhere with --data; without, one sentence says so."""
    state = torch.load(models.checkpoint("roberta"), weights_only=True)
    state["cfg"]["task"]["data"] = "data-bin"
    torch.save(state, tmp_path / "run.pt")
    program = [sys.executable, "-m", "muppet_fairseq.cli", "release", "run.pt", "made/here"]
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    said = "data-bin is no data-bin folder, it has no dict.txt; name the one of the run with --data"
    assert sentence(release, tmp_path / "run.pt", tmp_path / "out") == said
    more = ["--data", os.path.relpath(models.data, tmp_path)]
    done = subprocess.run([*program, *more], cwd=tmp_path, env=environment, check=False, **streams)
    assert (done.returncode, done.stderr) == (0, "")
    assert re.fullmatch(r"released run.pt as made/here: [0-9,]+ parameters\n", done.stdout)
    assert names(tmp_path / "made" / "here") == FILES
    assert names(tmp_path) == sorted(["made", "made/here", *(f"made/here/{file}" for file in FILES), "run.pt"])
    with pytest.raises(Exception, match="is there already"):
        cli.main(["release", str(tmp_path / "run.pt"), str(tmp_path / "made" / "here")])


@pytest.mark.parametrize("end", ["", ".tar.gz"])
def test_what_is_there_is_not_replaced(models, tmp_path, end):
    out = tmp_path / f"out{end}"
    out.write_text("mine")
    said = f"{out} is there already; name a new folder, or a new file that ends in .tar.gz"
    assert sentence(release, models.checkpoint("roberta"), out) == said
    assert out.read_text() == "mine"
    assert names(tmp_path) == [out.name]


@pytest.mark.parametrize("end", ["", ".tar.gz"])
def test_where_nothing_can_be_written(models, tmp_path, end):
    (tmp_path / "file").write_text("mine")
    for out in (tmp_path / "file" / f"out{end}", Path(f"/proc/nowhere/out{end}")):
        assert sentence(release, models.checkpoint("roberta"), out).startswith(f"cannot write {out} (")
    assert names(tmp_path) == ["file"]


def _full(state: Any, file: Any) -> None:
    file.write(b"half of it")
    raise RuntimeError("[enforce fail at inline_container.cc:603] . unexpected pos 64 vs 0")


def _stopped(state: Any, file: Any) -> None:
    file.write(b"half of it")
    raise KeyboardInterrupt


@pytest.mark.parametrize("end", ["", ".tar.gz"])
def test_interrupted_nothing_is_left(models, tmp_path, monkeypatch, end):
    """By a full disk, or by Ctrl-C: whether the model or what comes last is being written."""
    out = tmp_path / f"out{end}"
    monkeypatch.setattr(module.torch, "save", _full)
    assert sentence(release, models.checkpoint("roberta"), out).startswith(f"cannot write {out} (")
    assert names(tmp_path) == []
    monkeypatch.setattr(module.torch, "save", _stopped)
    with pytest.raises(KeyboardInterrupt):
        release(models.checkpoint("roberta"), out)
    assert names(tmp_path) == []
    monkeypatch.undo()

    def stop(*_: Any, **__: Any) -> None:
        assert not out.exists()
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "_card", stop) if not end else monkeypatch.setattr(tarfile.TarFile, "add", stop)
    with pytest.raises(KeyboardInterrupt):
        release(models.checkpoint("roberta"), out)
    assert names(tmp_path) == []
    monkeypatch.undo()
    release(models.checkpoint("roberta"), out)
    assert out.exists()


def reordered(path: Path) -> None:
    path.write_text(path.read_text().replace("dog 1\ncat 1\n", "cat 1\ndog 1\n"))


def without(name: str) -> Callable[[Path], None]:
    return lambda data: (data / name).unlink()


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda data: [reordered(data / name) for name in ("dict.txt", "tokenizer/dict.txt")], "another dictionary"),
        # what is released is the tokenizer's
        (lambda data: reordered(data / "tokenizer" / "dict.txt"), "another dictionary"),
        (without("dict.txt"), "is no data-bin folder, it has no dict.txt; name the one of the run with --data"),
        (without("tokenizer/tokenizer.json"), "has no tokenizer.json"),
        (lambda data: (data / "tokenizer/tokenizer.json").open("a").write(" "), "is not the tokenizer that"),
        (without("tokenizer/config.json"), "config.json cannot be read"),
    ],
)
def test_data_that_are_not_the_runs(models, tmp_path, damage, said):
    data = Path(shutil.copytree(models.data, tmp_path / "data-bin"))
    damage(data)
    assert said in sentence(release, models.checkpoint("roberta"), tmp_path / "out", data)
    assert not (tmp_path / "out").exists()


def test_what_is_no_checkpoint(models, tmp_path):
    missing = tmp_path / "missing.pt"
    assert sentence(release, missing, tmp_path / "out").startswith(f"the checkpoint {missing} cannot be read")
    torch.save({"model": {}}, missing)
    assert "does not say which datasets it was trained on" in sentence(release, missing, tmp_path / "out")
    assert names(tmp_path) == ["missing.pt"]


def test_a_text_that_cannot_be_written_is_one_sentence(tmp_path):
    (tmp_path / "file").write_text("")
    assert sentence(write_text, tmp_path / "file" / "report.md", "x").startswith(f"cannot write {tmp_path}")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
