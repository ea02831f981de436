"""What is committed in ``results/`` follows from its records, and its pages say what these say."""

from __future__ import annotations

import functools
import json
import re
import shutil
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import numpy as np
import pytest
import yaml
from matplotlib import image

from muppet_fairseq import cli

RESULTS = Path(__file__).parents[1] / "results"
#: folders with records
RECORDED = sorted(path.parent.name for path in RESULTS.glob("*/runs.jsonl"))

_LINK = re.compile(r"\[([^\]]*)\]\(([^)\s]*)\)")
#: what a number must not touch: R3F, §5.2 and mini_scale_4 are names
_NUMBER = re.compile(r"(?<![\w§.,+-])[+-]?\d[\d,]*(?:\.\d+)?(?![\w-])")
#: numbers that are names of places in a paper, and the level of the intervals
_PLACE = r"\d+(?:\.\d+)*"
_NAMES = re.compile(rf"\b(?:Figure|Table|Section|Eq\.)s? {_PLACE}(?:(?:,| and| to) {_PLACE})*|\b95%")


@functools.cache
def content(file: Path) -> Any:
    text = file.read_text(encoding="utf-8")
    return json.loads(text) if file.suffix == ".json" else yaml.safe_load(text)


def recorded(target: str, folder: Path) -> Any:
    """What ``FILE#A/B/C`` leads to, in a JSON or YAML file beside the page.

    In ``report.json``, that is ``STUDY[/VARIANT]/START/COLUMN/FIGURE``, where FIGURE is of the cell (``mean``, ``sd``)
    or of its comparison with the base (``difference``, ``over_seeds.low``, ``over_examples.p``), or
    ``STUDY[/VARIANT]/START/pre_finetuning/FIGURE`` (``runs.0.loss``, ``teachers.0.loss``). Elsewhere, a list or a
    mapping stands for its length.
    """
    name, _, fragment = target.partition("#")
    found = content((folder / name).resolve())
    keys = [unquote(key) for key in fragment.split("/")]
    if name != "report.json":
        for key in keys:
            found = found[int(key) if isinstance(found, list) else key]
        return len(found) if isinstance(found, (list, dict)) else found
    study, *variant, start, column, figure = keys
    study = found["studies"][study]
    (model,) = study["models"]
    place = {"start": start, "variant": variant[0] if variant else None, "column": column}
    if column == "pre_finetuning":
        entries, place = model["pre_finetuning"], {"start": start}
    else:
        entries = model["cells"] if figure in ("mean", "sd") else study["comparisons"]
    (one,) = (entry for entry in entries if place.items() <= entry.items())
    for key in figure.split("."):
        one = one[int(key)] if isinstance(one, list) else one[key]
    return one


def is_said(text: str, value: float) -> bool:
    """Whether the number that begins ``text`` is ``value`` to as many places."""
    number = re.match(r"[+-]?\d[\d,]*(?:\.(\d+))?", text)
    if number is None:
        return False
    places = len(number[1] or "")
    sign = "+" if text.startswith("+") else ""
    return number[0] == f"{value:{sign},.{places}f}"


def sentences(page: str) -> list[str]:
    """The prose of a page: no code, headings or tables."""
    page = re.sub(r"^```.*?^```$", "", page, flags=re.MULTILINE | re.DOTALL)
    blocks = re.split(r"\n\s*\n|\n(?=- )", page)
    prose = [" ".join(block.split()) for block in blocks if not re.match(r"\s*(?:#|\||!\[)", block)]
    return [sentence for block in prose for sentence in re.split(r"(?<=[.:;]) +", re.sub(r"`[^`]*`", "", block))]


def problems(page: str, folder: Path) -> list[str]:
    """What a page says that its records do not, or that does not name its record."""
    found = []
    for sentence in sentences(page):
        for text, target in _LINK.findall(sentence):
            if "#" in target and not is_said(text, recorded(target, folder)):
                found.append(f"{text!r} is not {recorded(target, folder)}, which {target} says")
        for number in _NUMBER.findall(_NAMES.sub("", _LINK.sub("", sentence))):
            found.append(f"{number} names no record: {sentence}")
    return found


def tables(page: str) -> list[str]:
    return re.findall(r"(?:^\|.*\|$\n?)+", page, flags=re.MULTILINE)


@pytest.mark.parametrize("name", RECORDED)
def test_a_report_is_made_again_of_its_records(name, tmp_path):
    there, again = RESULTS / name, tmp_path / name
    for file in [there / "runs.jsonl", *there.glob("studies/*/study.json")]:
        (again / file.relative_to(there)).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, again / file.relative_to(there))
    cli.main(["report", str(again)])
    for file in ("report.md", "report.json"):
        assert (again / file).read_bytes() == (there / file).read_bytes()
    made = {path.name: path for path in again.glob("figures/*.png")}
    assert made
    for file, path in made.items():
        assert np.array_equal(image.imread(path), image.imread(there / "figures" / file)), file


@pytest.mark.parametrize("name", RECORDED)
def test_every_number_of_a_page_names_its_record(name):
    page = (RESULTS / name / "README.md").read_text(encoding="utf-8")
    assert not problems(page, RESULTS / name)
    report = tables((RESULTS / name / "report.md").read_text(encoding="utf-8"))
    for table in tables(page):
        assert table in report, f"this table is not the report's:\n{table}"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """One study with a cell of 41.26 and a difference of -1.96."""
    place = {"start": "mpt", "variant": None, "column": "Short texts"}
    model = {"cells": [{**place, "mean": 41.26}], "pre_finetuning": [{"start": "mpt", "runs": [{"updates": 1100}]}]}
    comparisons = [{**place, "difference": -1.96, "over_seeds": {"low": -2.5}}]
    report = {"studies": {"one": {"models": [model], "comparisons": comparisons}}}
    (tmp_path / "report.json").write_text(json.dumps(report))
    (tmp_path / "model.yaml").write_text("fine_tuning: {seeds: 3, names: [a, b]}")
    return tmp_path


@pytest.mark.parametrize(
    "text",
    [
        "[41.3](report.json#one/mpt/Short%20texts/mean), [-2.0 points](report.json#one/mpt/Short%20texts/difference)",
        "[-2.5](report.json#one/mpt/Short%20texts/over_seeds.low) at least, as R3F in §5.2, Tables 3 and 4 (95%).",
        "After [1,100 updates](report.json#one/mpt/pre_finetuning/runs.0.updates); `--seeds 4` of mini_scale_4.",
        "[3 seeds](model.yaml#fine_tuning/seeds) of [2](model.yaml#fine_tuning/names)",
        "# 5 things\n\n```sh\nsleep 5\n```\n\nnone",
    ],
)
def test_what_the_records_say_may_be_said(folder, text):
    assert not problems(text, folder)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("[41.2](report.json#one/mpt/Short%20texts/mean)", "'41.2' is not 41.26, which"),
        ("[2.0](report.json#one/mpt/Short%20texts/difference)", "'2.0' is not -1.96, which"),
        ("[much](report.json#one/mpt/Short%20texts/mean)", "'much' is not 41.26, which"),
        ("It gains 3 points.", "3 names no record"),
        ("First.\n- It gains +3.1 points.", "+3.1 names no record"),
        ("[It](report.md) gains 12%.", "12 names no record"),
    ],
)
def test_what_the_records_do_not_say_is_found(folder, text, problem):
    (found,) = problems(text, folder)
    assert found.startswith(problem)
