"""What is committed in ``results/`` follows from its records, and its pages say what these say."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest
from matplotlib import image

from muppet_fairseq import cli
from results.pages import PROJECT, RECORDED, RESULTS, headed, headline, problems, refreshed


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
def test_the_command_for_a_single_run_does_a_recorded_run_again(name, monkeypatch, capsys):
    monkeypatch.chdir(RESULTS.parent)
    recorded = {json.loads(line)["path"] for line in (RESULTS / name / "runs.jsonl").read_text().splitlines()}
    commands = re.findall(r"A single run again: `(.+)`", (RESULTS / name / "report.md").read_text())
    assert len(commands) == len(list((RESULTS / name).glob("studies/*/study.json")))
    for command in commands:
        cli.main([*shlex.split(command)[1:], "--dry-run"])
        said = capsys.readouterr().out
        done = set(re.findall(r"^fairseq-train .* --save-dir again/(\S+)", said, re.MULTILINE))
        assert done
        assert done <= recorded
        assert ": finished" not in said


@pytest.mark.parametrize("name", RECORDED)
def test_every_number_of_a_page_names_its_record(name):
    page = (RESULTS / name / "README.md").read_text(encoding="utf-8")
    assert not problems(page, RESULTS / name)
    assert refreshed(page, RESULTS / name) == page


def test_the_headline_is_of_records():
    page = PROJECT.read_text(encoding="utf-8")
    cells = json.loads((RESULTS / "mini" / "report.json").read_text())["studies"]["scale"]["models"][0]["cells"]
    (mean,) = (c["mean"] for c in cells if (c["start"], c["column"]) == ("all_datasets", "mean"))
    assert f" | {mean:.1f} | +" in headline()
    assert headline() in page
    assert headed(page) == page
    stale = page.replace(f" | {mean:.1f} | +", " | 99.9 | +").replace("[+", "[+1")
    assert stale.count("+1") > page.count("+1")
    assert headed(stale) == page


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """One study with a cell of 41.26 and a difference of -1.96."""
    place = {"start": "mpt", "variant": None, "column": "Short texts"}
    model = {"cells": [{**place, "mean": 41.26}], "pre_finetuning": [{"start": "mpt", "runs": [{"updates": 1100}]}]}
    comparisons = [{**place, "difference": -1.96, "over_seeds": {"low": -2.5}}]
    report = {"studies": {"one": {"models": [model], "comparisons": comparisons}}}
    (tmp_path / "report.json").write_text(json.dumps(report))
    head = "| start | mean |\n| --- | ---: |\n"
    (tmp_path / "report.md").write_text(f"{head}| mpt | 41.3 |\n\n{head}| spot | 5.0 |\n\n| p |\n| --- |\n| 0.1 |\n")
    (tmp_path / "model.yaml").write_text("fine_tuning: {seeds: 3, names: [a, b]}")
    return tmp_path


@pytest.mark.parametrize(
    "text",
    [
        "[41.3](report.json#one/mpt/Short%20texts/mean), [-2.0 points](report.json#one/mpt/Short%20texts/difference)",
        "[-2.5](report.json#one/mpt/Short%20texts/over_seeds.low) at least, as R3F in §5.2, Tables 3 and 4 (95%).",
        "After [1,100 updates](report.json#one/mpt/pre_finetuning/runs.0.updates); `--seeds 4` of mini_scale_4.",
        "[3 seeds](model.yaml#fine_tuning/seeds) of [2](model.yaml#fine_tuning/names), [1 stage](model.yaml#)",
        "# 5 things\n\n```sh\nsleep 5\n```\n\nnone",
        "| start | mean |\n| --- | ---: |\n| mpt | 41.3 |\n",
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
        ("| start | mean |\n| --- | ---: |\n| mpt | 41.2 |\n", "this table is not the report's"),
    ],
)
def test_what_the_records_do_not_say_is_found(folder, text, problem):
    (found,) = problems(text, folder)
    assert found.startswith(problem)


PAGE = """# 5 things

[{}](report.json#one/mpt/Short%20texts/mean), [{} points](report.json#one/mpt/Short%20texts/difference), at least
[{}](report.json#one/mpt/Short%20texts/over_seeds.low), [{} updates](report.json#one/mpt/pre_finetuning/runs.0.updates),
[{} seeds](model.yaml#fine_tuning/seeds), [it](report.md).

| start | mean |
| --- | ---: |
| mpt | {} |

| start | mean |
| --- | ---: |
| spot | 5.0 |

| a table | of the page's own |
"""


def test_a_page_is_refreshed(folder):
    stale = PAGE.format("1.0", "+3.00", "1", "9", "1", "7")
    assert problems(stale, folder)
    assert refreshed(stale, folder) == PAGE.format("41.3", "-1.96", "-2", "1,100", "3", "41.3")
