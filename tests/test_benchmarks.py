"""Benchmarks run and print what they measured."""

import json

import pytest

from benchmarks.__main__ import main


def test_r3f_cost(data, capsys):
    arguments = ["--suite", "pairs,summaries", "--arch", "muppet_bart_tiny", "--max-positions", "32"]
    assert main(["r3f", str(data), *arguments, "--max-tokens", "512", "--steps", "12", "--device", "cpu"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["command"].startswith(f"python -m benchmarks r3f {data}")
    assert list(printed["figures"]) == ["pairs", "summaries", "all"]
    for figures in printed["figures"].values():
        assert figures["ratio"] == pytest.approx(figures["r3f"] / figures["plain"], rel=0.02)
        # twice the rows, once the optimizer
        assert 1 < figures["ratio"] < 4


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
