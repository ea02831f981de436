"""Benchmarks run and print what they measured."""

import json
from pathlib import Path

import pytest

from benchmarks.__main__ import main
from benchmarks.measure import Target, in_turns, ratio, spread
from benchmarks.table import markdown


def test_kinds_take_turns():
    calls = []
    kinds = {"a": lambda number: calls.append(("a", number)), "b": lambda number: calls.append(("b", number))}
    seconds = in_turns(kinds, rounds=2, warm_up=1)
    assert calls == [("b", 0), ("a", 0), ("a", 1), ("b", 1), ("b", 2), ("a", 2)]
    assert [len(values) for values in seconds.values()] == [2, 2]


def test_ratios_are_of_the_same_round():
    seconds = {"a": [2.0, 3.0, 40.0], "b": [1.0, 2.0, 10.0]}
    assert ratio(seconds, "a", "b") == {"median": 2.0, "quartiles": [1.75, 3.0], "n": 3}
    assert spread([1.0, 2.0, 4.0])["median"] == 2.0


def test_table_says_what_was_reached(tmp_path, capsys):
    first, second = Target("first", 1.5, 1.3, at_least=True), Target("second", 3.25, 2.0, at_least=False)
    result = {"benchmark": "x", "targets": [first.to_dict(), second.to_dict()]}
    (tmp_path / "x.json").write_text(json.dumps(result))
    assert main(["table", str(tmp_path / "x.json")]) == 0
    assert capsys.readouterr().out.splitlines()[2:] == [
        "| `x` | first | ≥ 1.3 | 1.5 | reached |",
        "| `x` | second | ≤ 2 | 3.25 | **not reached** |",
    ]
    (tmp_path / "y.json").write_text("[]")
    assert main(["table", str(tmp_path / "y.json")]) == 1
    assert "y.json is no result of a benchmark" in capsys.readouterr().err


def test_r3f_cost(data, capsys):
    arguments = ["--suite", "pairs,summaries", "--arch", "muppet_bart_tiny", "--max-positions", "32"]
    assert main(["r3f", str(data), *arguments, "--max-tokens", "512", "--steps", "12", "--device", "cpu"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["command"].startswith(f"python -m benchmarks r3f {data}")
    assert list(printed["figures"]) == ["pairs", "summaries"]
    (target,) = printed["targets"]
    plain, noised = (sum(f[kind]["median"] for f in printed["figures"].values()) for kind in ("plain", "r3f"))
    assert target["value"] == pytest.approx(noised / plain, rel=0.01)
    # twice the rows, once the optimizer
    assert 1 < target["value"] < 4


@pytest.mark.parametrize("page", ["README.md", "results/benchmarks/README.md"])
def test_the_pages_show_what_was_measured(page):
    root = Path(__file__).parents[1]
    table = markdown(sorted((root / "results" / "benchmarks").glob("*.json")))
    assert table in (root / page).read_text(encoding="utf-8")


@pytest.mark.slow
def test_preprocess_beside_fairseq(gpt2_folder, tmp_path, capsys):
    text = tmp_path / "text.txt"
    text.write_text("".join(f"The dog ran {i} times, didn't it? \u00fc\u4e2d\n\n" for i in range(50)), encoding="utf-8")
    arguments = [str(text), "--tokenizer", str(gpt2_folder), "--workers", "2", "--folder", str(tmp_path / "scratch")]
    assert main(["preprocess", *arguments]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["lines"] == 50
    assert printed["tokens"] > 500
    seconds = sum(step["seconds"] for step in printed["fairseq"].values())
    assert printed["ratio"] == pytest.approx(seconds / printed["ours"]["seconds"], rel=0.02)
    # a process that has imported PyTorch
    assert printed["ours"]["peak_mb"] > 100
    assert list((tmp_path / "scratch").iterdir()) == []


def test_bad_input_is_one_sentence(tmp_path, capsys, gpt2_folder):
    assert main(["r3f", str(tmp_path / "none"), "--suite", "animals"]) == 1
    assert capsys.readouterr().err.startswith("benchmarks: there is no folder")
    for content, message in (("", "the texts have no lines"), ("\n \n", "the texts have no lines"), (None, "none.txt")):
        text = tmp_path / ("none.txt" if content is None else "text.txt")
        if content is not None:
            text.write_text(content)
        assert main(["preprocess", str(text), "--tokenizer", str(gpt2_folder)]) == 1
        assert message in capsys.readouterr().err
