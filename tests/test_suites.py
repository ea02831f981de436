"""The suites of ``examples/suites`` are what the command writes, and what their headers say."""

from __future__ import annotations

import re
from collections import Counter
from itertools import pairwise
from pathlib import Path

import pytest

import preprocess.__main__ as command
from muppet_fairseq.study.settings import read_study
from muppet_fairseq.suite import Suite
from preprocess.catalog import CATALOG, mini
from preprocess.suites import suites

EXAMPLES = Path(__file__).parent.parent / "examples"
SUITES = EXAMPLES / "suites"

PAPER = {"classification": 25, "summarization": 5, "commonsense": 10, "mrc": 6}
SCALE = [f"scale_{size}" for size in (10, 15, 20, 25, 30, 35, 40, "all")]
MINI = [f"mini_scale_{size}" for size in (4, 8, 12, 16, 20, "all")]


def names_of(suite: str) -> list[str]:
    return Suite.load(SUITES / f"{suite}.yaml").names


def families_of(suite: str) -> dict[str, int]:
    return dict(Counter(CATALOG[name].family for name in names_of(suite)))


def test_the_committed_suites_are_what_the_command_writes(tmp_path: Path, capsys: pytest.CaptureFixture):
    assert command.main(["suites", "--out", str(tmp_path)]) == 0
    written = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert capsys.readouterr().out.split() == [str(tmp_path / name) for name in suites()]
    committed = {path.name: path.read_bytes() for path in SUITES.glob("*.yaml") if path.name != "four_families.yaml"}
    assert written == committed


def test_a_folder_that_cannot_be_made_is_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture):
    (tmp_path / "file").write_text("")
    assert command.main(["suites", "--out", str(tmp_path / "file" / "suites")]) == 1
    assert re.fullmatch(r"muppet: .*; check the disk and the rights\n", capsys.readouterr().err)


def test_the_papers_suites():
    assert families_of("paper") == PAPER
    assert families_of("paper_roberta") == {family: n for family, n in PAPER.items() if family != "summarization"}
    assert set(names_of("paper_roberta")) < set(names_of("paper"))
    lines = [int(line) for line in re.findall(r"# line (\d+)", (SUITES / "paper.yaml").read_text(encoding="utf-8"))]
    assert lines == [line for line in range(1, 48) if line != 9]


def test_the_papers_suites_say_what_the_alias_weighs():
    names = names_of("paper")
    total = sum(CATALOG[name].published["train"] for name in names)
    both = 100 * 2 * 392_702 / total
    one = 100 * 392_702 / (total - 392_702)
    header = " ".join((SUITES / "paper.yaml").read_text(encoding="utf-8").replace("\n# ", " ").split())
    assert f"these 392,702 examples count twice: {both:.1f}% of the suite" in header
    assert f"without the line '- multinli' they are {one:.1f}% of {total - 392_702:,}" in header
    assert (CATALOG["multinli"].alias, both > 15, one < 10) == ("mnli", True, True)


@pytest.mark.parametrize("nested", [SCALE, MINI], ids=["scale", "mini_scale"])
def test_each_size_has_the_datasets_of_the_smaller_ones(nested: list[str]):
    for smaller, larger in pairwise(map(names_of, nested)):
        assert smaller == larger[: len(smaller)]
        assert len(smaller) < len(larger)
    for suite in nested[:-1]:
        assert len(names_of(suite)) == int(suite.rpartition("_")[2])


def test_the_suites_of_scale():
    assert set(names_of("scale_10")) > {"stsb", "boolq", "race", "squad", "mnli", "rte"}
    assert set(names_of("scale_all")) == {*names_of("paper_roberta"), "stsb"}
    assert set(names_of("scale_all")) - set(names_of("scale_40")) == {"cola", "qnli"}


def test_the_suite_of_batching():
    names = names_of("batching_35")
    assert len(names) == 35
    assert set(names) < set(names_of("paper_roberta"))


def test_the_suites_have_what_is_called_seen_and_not_what_is_called_kept_out():
    quickstart = read_study(EXAMPLES / "quickstart" / "quickstart.yaml")
    first = EXAMPLES / "quickstart" / "pre_finetuning.yaml"
    for study, smallest, largest in (
        (quickstart, first, first),
        (read_study(EXAMPLES / "studies" / "scale.yaml"), SUITES / "mini_scale_4.yaml", SUITES / "mini_scale_all.yaml"),
    ):
        by_group = {"kept out": set(), "seen": set()}
        for column in study.columns:
            by_group[column.group].update(column.datasets)
        assert not by_group["kept out"] & set(Suite.load(largest).names)
        assert by_group["seen"] < set(Suite.load(smallest).names)
    unseen = by_group["kept out"]
    encoded = {entry.name for entry in mini.ENTRIES if entry.family != "summarization"}
    assert set(names_of("mini_scale_all")) == encoded - unseen
    assert set(families_of("mini_scale_4")) == {"commonsense", "classification", "mrc"}
    for suite in MINI:
        header = (SUITES / f"{suite}.yaml").read_text(encoding="utf-8").partition("\n- ")[0]
        assert all(name in header for name in unseen)


def test_another_seed_draws_others_but_keeps_what_is_fixed():
    one, two = suites(1), suites(2)
    assert list(one) == list(two)
    drawn = {
        name: [re.findall(r"^- (?:{name: )?(\w+)", text[name], re.MULTILINE) for text in (one, two)] for name in one
    }
    same = {name for name, (first, second) in drawn.items() if first == second}
    assert same == {"paper.yaml", "paper_roberta.yaml", "mini_scale_4.yaml"}
    for first, second in drawn.values():
        assert len(first) == len(second)
    assert drawn["scale_10.yaml"][0][:6] == drawn["scale_10.yaml"][1][:6]
    assert set(drawn["scale_40.yaml"][0]) == set(drawn["scale_40.yaml"][1])
