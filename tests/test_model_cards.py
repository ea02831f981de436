"""Model cards of exports: of which data, how good, how to cite; and nothing about where they were made."""

from __future__ import annotations

import json
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path

import pytest

from muppet_fairseq import cli
from muppet_fairseq.hf.export import export
from tests.test_bad_input import sentence
from tests.toy_models import SEARCH_OPTIONS, ToyModels, toy_models


@pytest.fixture(scope="session")
def models(data: Path) -> ToyModels:
    return toy_models(data)


@pytest.mark.parametrize("name", ["bart", "roberta"])
def test_a_run_is_exported_with_its_evaluation(models: ToyModels, name: str, tmp_path: Path) -> None:
    """The commands, from the checkpoint of a run: the card has its licences, citations and scores."""
    checkpoint = models.checkpoint(name)
    with redirect_stdout(StringIO()) as printed:
        cli.main(["evaluate", str(checkpoint), str(models.data), "--json", *SEARCH_OPTIONS])
    evaluation = tmp_path / "evaluation.json"
    evaluation.write_text(printed.getvalue())
    with redirect_stdout(StringIO()) as printed:
        cli.main(["export-hf", str(checkpoint), str(tmp_path / "out"), "--evaluation", str(evaluation)])
    lines = printed.getvalue().splitlines()
    assert lines[0].startswith(f"exported {checkpoint} as {tmp_path / 'out'}: B")
    heads = {path.name for path in (tmp_path / "out" / "heads").iterdir()}
    assert len(lines) == 1 + len(heads)
    card = (tmp_path / "out" / "README.md").read_text()
    for result in json.loads(evaluation.read_text())["results"]:
        metric, value = next(iter(result["metrics"].items()))
        assert f"| {result['dataset']} | valid | {result['examples']} | {metric} {100 * value:.2f}" in card
        assert f"| {result['dataset']} | {result['family']} |" in card
    for head in heads:
        assert f"| `heads/{head}` |" in card
        own = (tmp_path / "out" / "heads" / head / "README.md").read_text()
        assert f'from_pretrained("{head}")' in own
        assert "## Evaluation" in own
    for part in ("## Citation", "- `lr`: [0.003]", "library_name: transformers"):
        assert part in card
    # nothing says where it was made
    assert not [path for path in (tmp_path / "out").rglob("*.*") if str(models.home).encode() in path.read_bytes()]


def test_an_evaluation_of_another_checkpoint_is_refused(models: ToyModels, tmp_path: Path) -> None:
    evaluation = tmp_path / "evaluation.json"
    evaluation.write_text(json.dumps({"checkpoint": "elsewhere/a.pt", "split": "valid", "results": []}))
    said = sentence(export, models.checkpoint("roberta"), tmp_path / "out", None, None, [evaluation])
    assert said.startswith(f"{evaluation} is an evaluation of elsewhere/a.pt, not of ")
    for content in ("{}", "no JSON", '{"checkpoint": 1, "split": "valid", "results": [{}]}'):
        evaluation.write_text(content)
        said = sentence(export, models.checkpoint("roberta"), tmp_path / "out", None, None, [evaluation])
        assert said.startswith(f"{evaluation} holds no evaluation;")
    said = sentence(export, models.checkpoint("roberta"), tmp_path / "out", None, None, [tmp_path / "no.json"])
    assert said.startswith(f"the evaluation {tmp_path / 'no.json'} cannot be read (No such file")
