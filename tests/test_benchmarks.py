"""Benchmarks run and print what they measured."""

import json

import pytest

from benchmarks.__main__ import main


def test_r3f_cost(data, capsys):
    arguments = ["--suite", "pairs,summaries", "--arch", "muppet_bart_tiny", "--max-positions", "32"]
    assert main(["r3f", str(data), *arguments, "--max-tokens", "512", "--steps", "2", "--device", "cpu"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["command"].startswith(f"python -m benchmarks r3f {data}")
    assert list(printed["figures"]) == ["pairs", "summaries", "all"]
    for figures in printed["figures"].values():
        assert figures["ratio"] == pytest.approx(figures["r3f"] / figures["plain"], rel=0.02)
        # twice the rows, once the optimizer
        assert 1 < figures["ratio"] < 4


def test_bad_input_is_one_sentence(tmp_path, capsys):
    assert main(["r3f", str(tmp_path / "none"), "--suite", "animals"]) == 1
    assert capsys.readouterr().err.startswith("benchmarks: there is no folder")
